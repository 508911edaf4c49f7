//! ALBERT (Lan et al., 2020): BERT whose blocks run several times each, behind a narrow embedding that a linear layer widens.

use super::{EncoderFamily, EncoderNames, LayerNames, Module, bert};
use crate::Error;
use crate::config::{DecoderConfig, EncoderConfig, RawConfig, listed_layers};
use crate::convert;

pub(crate) const FAMILY: EncoderFamily = EncoderFamily { model_types: &["albert"], config, names };

fn config(raw: &RawConfig) -> Result<EncoderConfig, Error> {
    const GROUPS: &str = "num_hidden_groups";
    const INNER: &str = "inner_group_num";
    let raw = &raw.with_defaults(&[
        ("vocab_size", 30000.into()),
        ("hidden_size", 4096.into()),
        ("num_hidden_layers", 12.into()),
        ("num_attention_heads", 64.into()),
        ("intermediate_size", 16384.into()),
        ("max_position_embeddings", 512.into()),
        ("hidden_act", "gelu_new".into()),
        (GROUPS, 1.into()),
        (INNER, 1.into()),
    ]);
    let layers = listed_layers(raw, "num_hidden_layers")?;
    let (groups, inner) = (raw.size(GROUPS)?, raw.size(INNER)?);
    if groups > layers {
        return Err(raw.problem(GROUPS, format!("is {groups}, more than the {layers} layers")));
    }
    if inner != 1 {
        return Err(raw.problem(INNER, format!("is {inner}; implemented: 1")));
    }
    // In the arithmetic of transformers, which decides where a group ends when the groups do not divide the layers.
    let each = convert::f64_from(layers) / convert::f64_from(groups);
    let group = |layer| convert::fraction_of(1, convert::f64_from(layer) / each).min(groups - 1);
    let order = Some((0..layers).map(group).collect());
    let bert = bert::config(raw)?;
    let network = DecoderConfig {
        family: "albert",
        layers: groups,
        embedding_size: raw.size_or("embedding_size", 128)?,
        ..bert.network
    };
    Ok(EncoderConfig { network, order, ..bert })
}

fn names(_: &EncoderConfig) -> EncoderNames {
    let layer = |layer| {
        let block = Module::new(format!("encoder.albert_layer_groups.{layer}.albert_layers.0"));
        LayerNames::new(
            block.parts(["attention.query", "attention.key", "attention.value"]),
            block.part("attention.dense"),
            block.mlp(["ffn"], "ffn_output"),
        )
        .norms(block.name("attention.LayerNorm"), block.name("full_layer_layer_norm"))
    };
    EncoderNames {
        token_type_embedding: Some("embeddings.token_type_embeddings"),
        project_in: Some("encoder.embedding_hidden_mapping_in"),
        ..EncoderNames::new(&["", "albert."], layer)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn blocks_run_group_by_group() {
        let read = |layers: usize, groups: usize, inner: usize| {
            let file = json!({
                "num_hidden_layers": layers, "num_hidden_groups": groups, "inner_group_num": inner,
            });
            config(&RawConfig::from_json("config.json".to_owned(), file).expect("an object"))
        };
        let order = |layers, groups| read(layers, groups, 1).expect("a configuration").order;
        assert_eq!(order(4, 1), Some(vec![0; 4]));
        assert_eq!(order(7, 3), Some(vec![0, 0, 0, 1, 1, 2, 2]));
        assert_eq!(order(3, 3), Some(vec![0, 1, 2]));
        for (refused, key) in [
            (read(4, 1, 2), "inner_group_num"),
            (read(4, 5, 1), "num_hidden_groups"),
            (read(1 << 20, 1, 1), "num_hidden_layers"),
        ] {
            let message = refused.expect_err(key).to_string();
            assert!(message.contains(key), "{key} not in: {message}");
        }
    }
}
