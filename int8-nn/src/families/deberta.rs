//! DeBERTa v2 and v3 (He et al., 2021): BERT whose attention has terms of contents and embedded distances.

use serde_json::Value;

use super::{DistanceNames, EncoderFamily, EncoderNames, LayerNames, Module};
use crate::Error;
use crate::config::{BlockKind, DecoderConfig, Disentangled, EncoderConfig, Positions, RawConfig, SizeKeys};
use crate::convert;

pub(crate) const FAMILY: EncoderFamily = EncoderFamily { model_types: &["deberta-v2"], config, names };

fn config(raw: &RawConfig) -> Result<EncoderConfig, Error> {
    let raw = &raw.with_defaults(&[
        ("vocab_size", 128_100.into()),
        ("hidden_size", 1536.into()),
        ("num_hidden_layers", 24.into()),
        ("num_attention_heads", 24.into()),
        ("intermediate_size", 6144.into()),
        ("max_position_embeddings", 512.into()),
    ]);
    let sized = DecoderConfig::sized_encoder(raw, SizeKeys::default())?;
    for (key, implemented) in [
        ("attention_head_size", sized.head_size),
        ("embedding_size", sized.hidden_size),
        ("conv_kernel_size", 0),
    ] {
        let found = raw.index_or(key, implemented)?;
        if found != implemented {
            return Err(
                raw.problem(key, format!("is {found}; with these sizes {implemented} is implemented"))
            );
        }
    }
    let terms = terms(raw)?;
    let positions = match raw.flag_or("relative_attention", false)? {
        true => Positions::Disentangled(Disentangled::read(raw, terms)?),
        false => Positions::None,
    };
    let terms = 1 + terms.iter().filter(|term| **term).count();
    let network = DecoderConfig {
        family: "deberta-v2",
        intermediate_size: raw.size("intermediate_size")?,
        max_positions: raw.size("max_position_embeddings")?,
        norm_eps: raw.float_or("layer_norm_eps", 1e-7)?,
        block: BlockKind::PostNorm,
        positions,
        attention_divisor: Some(convert::f64_from(sized.head_size * terms)),
        activation: raw.activation("hidden_act", "gelu")?,
        ..sized
    };
    EncoderConfig {
        token_types: raw.index_or("type_vocab_size", 0)?,
        position_table: raw.flag_or("position_biased_input", true)?,
        ..EncoderConfig::of(network.validate(raw)?)
    }
    .validate(raw)
}

/// Whether the scores have a term of queries (`c2p`), and one of keys (`p2c`).
fn terms(raw: &RawConfig) -> Result<[bool; 2], Error> {
    const KEY: &str = "pos_att_type";
    let names: Vec<String> = match raw.get(KEY) {
        None => Vec::new(),
        Some(Value::String(names)) => {
            names.to_lowercase().split('|').map(|name| name.trim().to_owned()).collect()
        }
        Some(Value::Array(names)) if names.iter().all(Value::is_string) => {
            names.iter().filter_map(Value::as_str).map(str::to_owned).collect()
        }
        Some(other) => {
            return Err(raw.problem(KEY, format!("is {other}; expected a list of \"c2p\" and \"p2c\"")));
        }
    };
    Ok(["c2p", "p2c"].map(|term| names.iter().any(|name| name == term)))
}

fn block(layer: usize) -> Module {
    Module::new(format!("encoder.layer.{layer}"))
}

fn names(_: &EncoderConfig) -> EncoderNames {
    let layer = |layer| {
        let block = block(layer);
        let qkv = ["attention.self.query_proj", "attention.self.key_proj", "attention.self.value_proj"];
        LayerNames::new(
            block.parts(qkv),
            block.part("attention.output.dense"),
            block.mlp(["intermediate.dense"], "output.dense"),
        )
        .norms(block.name("attention.output.LayerNorm"), block.name("output.LayerNorm"))
    };
    EncoderNames {
        token_type_embedding: Some("embeddings.token_type_embeddings"),
        distances: Some(DistanceNames {
            table: "encoder.rel_embeddings",
            norm: "encoder.LayerNorm",
            projections: |layer| {
                ["attention.self.pos_key_proj", "attention.self.pos_query_proj"]
                    .map(|name| block(layer).part(name))
            },
        }),
        ..EncoderNames::new(&["", "deberta."], layer)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn terms_and_refusals() {
        let read = |key: &str, value: Value| {
            let mut file = json!({
                "hidden_size": 32, "num_attention_heads": 4, "relative_attention": true, "position_buckets": 8,
                "pos_att_type": "P2C| c2p",
            });
            file[key] = value;
            config(&RawConfig::from_json("config.json".to_owned(), file).expect("an object"))
        };
        let both = read("vocab_size", json!(7)).expect("a configuration").network;
        assert_eq!(both.attention_divisor, Some(24.0));
        let one = read("pos_att_type", json!(["c2p"])).expect("a configuration").network;
        let Positions::Disentangled(settings) = one.positions else { panic!("other positions") };
        assert_eq!((settings.of_queries, settings.of_keys, one.attention_divisor), (true, false, Some(16.0)));
        for (key, value) in [
            ("conv_kernel_size", json!(3)),
            ("embedding_size", json!(16)),
            ("attention_head_size", json!(16)),
            ("pos_att_type", json!(3)),
            ("position_buckets", json!(1)),
            ("position_buckets", json!(1 << 20)),
            ("max_relative_positions", json!(4)),
        ] {
            let message = read(key, value.clone()).expect_err(key).to_string();
            let key = if key == "max_relative_positions" { "position_buckets" } else { key };
            assert!(message.contains(key), "{key} = {value} not in: {message}");
        }
    }
}
