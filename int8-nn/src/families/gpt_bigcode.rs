//! GPT-BigCode (StarCoder; Li et al., 2023): GPT-2 with one key and value head for all queries, and ordinary linear layers.

use super::{Family, LayerNames, MlpNames, TensorNames, interleaved_qkv};
use crate::Error;
use crate::config::{DecoderConfig, Positions, RawConfig, head_size};
use crate::weights::Part;

pub(crate) const FAMILY: Family = Family { model_types: &["gpt_bigcode"], config, names };

fn config(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    let hidden_size = raw.size("n_embd")?;
    let heads = raw.size("n_head")?;
    DecoderConfig {
        family: "gpt_bigcode",
        vocab_size: raw.size("vocab_size")?,
        hidden_size,
        layers: raw.size("n_layer")?,
        heads,
        kv_heads: if raw.flag_or("multi_query", true)? { 1 } else { heads },
        head_size: head_size(raw, "n_head", hidden_size, heads)?,
        intermediate_size: raw.size_or("n_inner", 4 * hidden_size)?,
        max_positions: raw.size_or("n_positions", 1024)?,
        norm_eps: crate::convert::f32_from(raw.positive_or("layer_norm_epsilon", 1e-5)?),
        positions: Positions::Learned { offset: 0 },
        attention_divisor: if raw.flag_or("scale_attn_weights", true)? { None } else { Some(1.0) },
        activation: raw.activation("activation_function", "gelu_pytorch_tanh")?,
        tied_embeddings: raw.flag_or("tie_word_embeddings", true)?,
        embedding_size: hidden_size,
        eos_token_ids: raw.token_ids("eos_token_id")?,
        ..DecoderConfig::default()
    }
    .validate(raw)
}

fn names(config: &DecoderConfig) -> TensorNames {
    let config = config.clone();
    TensorNames {
        roots: &["transformer.", ""],
        token_embedding: "wte",
        position_embedding: Some("wpe"),
        embedding_norm: None,
        project_in: None,
        project_out: None,
        final_norm: Some("ln_f"),
        head: "lm_head",
        layer: Box::new(move |layer| {
            let name = |part: &str| format!("h.{layer}.{part}");
            LayerNames {
                attention_norm: Some(name("ln_1")),
                mlp_norm: Some(name("ln_2")),
                branch_norms: None,
                qkv: interleaved_qkv(&name("attn.c_attn"), &config),
                query_key_norms: None,
                attention_output: Part::new(&name("attn.c_proj")),
                mlp: MlpNames::Dense {
                    up: vec![Part::new(&name("mlp.c_fc"))],
                    down: Part::new(&name("mlp.c_proj")),
                },
            }
        }),
    }
}
