//! Nomic BERT (Nussbaum et al., 2024): BERT with rotary positions and a gated MLP, without biases but in its norms.

use serde_json::{Value, json};

use super::{EncoderFamily, EncoderNames, LayerNames, Module};
use crate::Error;
use crate::config::{
    Biases, BlockKind, DecoderConfig, EncoderConfig, Positions, RawConfig, Rotary, RotaryDefaults, SizeKeys,
};

pub(crate) const FAMILY: EncoderFamily = EncoderFamily { model_types: &["nomic_bert"], config, names };

/// Keys of the first files, which have GPT-2's names, with transformers' for the same.
const OLD_KEYS: [(&str, &str); 7] = [
    ("n_embd", "hidden_size"),
    ("n_layer", "num_hidden_layers"),
    ("n_head", "num_attention_heads"),
    ("n_inner", "intermediate_size"),
    ("layer_norm_epsilon", "layer_norm_eps"),
    ("max_trained_positions", "max_position_embeddings"),
    ("rotary_emb_base", "rope_theta"),
];

/// Keys of the first files with the value that is implemented; each may be absent.
const IMPLEMENTED: [(&str, Value); 13] = [
    ("prenorm", Value::Bool(false)),
    ("parallel_block", Value::Bool(false)),
    ("use_rms_norm", Value::Bool(false)),
    ("causal", Value::Bool(false)),
    ("qkv_proj_bias", Value::Bool(false)),
    ("mlp_fc1_bias", Value::Bool(false)),
    ("mlp_fc2_bias", Value::Bool(false)),
    ("rotary_emb_interleaved", Value::Bool(false)),
    ("scale_attn_by_inverse_layer_idx", Value::Bool(false)),
    ("rotary_emb_scale_base", Value::Null),
    ("rotary_scaling_factor", Value::Null),
    ("moe_every_n_layers", Value::Null),
    ("num_experts", Value::Null),
];

fn config(raw: &RawConfig) -> Result<EncoderConfig, Error> {
    for (key, value) in &IMPLEMENTED {
        // 0 experts are none.
        let other = raw.get(key).filter(|found| *found != value && found.as_u64() != Some(0));
        if let Some(found) = other {
            return Err(raw.problem(key, format!("is {found}; of this family {value} is implemented")));
        }
    }
    if let Some(share) = raw.get("rotary_emb_fraction").filter(|share| share.as_f64() != Some(1.0)) {
        return Err(
            raw.problem("rotary_emb_fraction", format!("is {share}; of this family 1 is implemented"))
        );
    }
    let old = raw.get("n_embd").is_some();
    let raw = OLD_KEYS.iter().fold(raw.clone(), |raw, (old, new)| raw.renamed(old, new));
    // Its activation is SiLU of the gate, under the name of the whole.
    let raw = match raw.text_or("activation_function", "swiglu")? {
        "swiglu" => raw,
        other if old => {
            let problem = format!("is {other:?}; of this family \"swiglu\" is implemented");
            return Err(raw.problem("activation_function", problem));
        }
        _ => raw,
    };
    let raw = &raw.with_defaults(&[
        ("vocab_size", json!(30528)),
        ("hidden_size", json!(768)),
        ("num_hidden_layers", json!(12)),
        ("num_attention_heads", json!(12)),
        ("intermediate_size", json!(3072)),
        ("max_position_embeddings", json!(2048)),
    ]);
    let sized = match raw.get("head_dim") {
        Some(_) => DecoderConfig::sized_by_head(raw, SizeKeys::default(), "head_dim")?,
        None => DecoderConfig::sized_encoder(raw, SizeKeys::default())?,
    };
    let defaults = RotaryDefaults { theta: 1000.0, ..RotaryDefaults::default() };
    let rotary = Rotary::read(raw, sized.head_size, defaults)?;
    let max_positions = rotary.max_positions(raw.size("max_position_embeddings")?);
    let network = DecoderConfig {
        family: "nomic_bert",
        intermediate_size: raw.size("intermediate_size")?,
        max_positions,
        norm_eps: raw.float_or("layer_norm_eps", 1e-12)?,
        block: BlockKind::PostNorm,
        positions: Positions::Rotary(rotary),
        activation: raw.activation("hidden_act", "silu")?,
        gated_mlp: true,
        biases: Biases::blocks(false),
        ..sized
    };
    let token_types = raw.size_or("type_vocab_size", 2)?;
    EncoderConfig { token_types, ..EncoderConfig::of(network.validate(raw)?) }.validate(raw)
}

fn names(_: &EncoderConfig) -> EncoderNames {
    let layer = |layer| {
        let block = Module::new(format!("encoder.layers.{layer}"));
        LayerNames::new(
            block.parts(["attn.Wqkv"]),
            block.part("attn.out_proj"),
            block.mlp(["mlp.fc12", "mlp.fc11"], "mlp.fc2"),
        )
        .norms(block.name("norm1"), block.name("norm2"))
    };
    EncoderNames {
        token_type_embedding: Some("embeddings.token_type_embeddings"),
        embedding_norm: Some("emb_ln"),
        ..EncoderNames::new(&["", "nomic_bert.", "bert."], layer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(changes: &[(&str, Value)]) -> Result<EncoderConfig, Error> {
        let mut file = json!({
            "model_type": "nomic_bert", "activation_function": "swiglu", "causal": false, "layer_norm_epsilon": 1e-12,
            "max_trained_positions": 2048, "mlp_fc1_bias": false, "mlp_fc2_bias": false, "n_embd": 96, "n_head": 4,
            "n_inner": 160, "n_layer": 3, "n_positions": 8192, "parallel_block": false, "prenorm": false,
            "qkv_proj_bias": false, "rotary_emb_base": 1000, "rotary_emb_fraction": 1.0, "rotary_emb_interleaved": false,
            "rotary_emb_scale_base": null, "rotary_scaling_factor": null, "type_vocab_size": 2, "use_rms_norm": false,
            "vocab_size": 30528,
        });
        for (key, value) in changes {
            file[*key] = value.clone();
        }
        config(&RawConfig::from_json("config.json".to_owned(), file)?)
    }

    #[test]
    fn the_first_files_have_names_of_their_own() {
        let EncoderConfig { network, token_types, .. } = read(&[]).expect("a configuration");
        assert_eq!((network.hidden_size, network.layers, network.heads), (96, 3, 4));
        assert_eq!((network.intermediate_size, network.max_positions, token_types), (160, 2048, 2));
        let Positions::Rotary(rotary) = network.positions else { panic!("other positions") };
        assert_eq!((rotary.dims, rotary.theta), (24, 1000.0));
    }

    #[test]
    fn other_models_of_the_name_are_refused() {
        for (key, value) in [
            ("prenorm", json!(true)),
            ("qkv_proj_bias", json!(true)),
            ("rotary_scaling_factor", json!(2)),
            ("rotary_emb_fraction", json!(0.5)),
            ("moe_every_n_layers", json!(2)),
            ("activation_function", json!("gelu")),
            ("max_trained_positions", json!(1 << 20)),
        ] {
            let message = read(&[(key, value)]).expect_err(key).to_string();
            let key = if key == "max_trained_positions" { "max_position_embeddings" } else { key };
            assert!(message.contains(key), "{key} not in: {message}");
        }
        assert!(read(&[("moe_every_n_layers", json!(0)), ("num_experts", json!(0))]).is_ok());
    }
}
