//! GPT-NeoX and Pythia (Black et al., 2022; Biderman et al., 2023): partial rotary positions, attention and MLP in
//! parallel (or in sequence), query-key-value fused head by head.

use super::{Family, LayerNames, MlpNames, TensorNames, interleaved_qkv};
use crate::Error;
use crate::config::{
    BlockKind, DecoderConfig, NormKind, Positions, RawConfig, Rotary, RotaryDefaults, head_size,
};
use crate::weights::Part;

pub(crate) const FAMILY: Family = Family { model_types: &["gpt_neox"], config, names };

/// Share of a head's dimensions that GPT-NeoX rotates when `config.json` says nothing.
const DEFAULT_ROTARY_SHARE: f64 = 0.25;

fn config(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    let hidden_size = raw.size("hidden_size")?;
    let heads = raw.size("num_attention_heads")?;
    let head_size = head_size(raw, "num_attention_heads", hidden_size, heads)?;
    let defaults = RotaryDefaults { share: DEFAULT_ROTARY_SHARE, ..RotaryDefaults::default() };
    let rotary = Rotary::read(raw, head_size, defaults)?;
    DecoderConfig {
        family: "gpt_neox",
        vocab_size: raw.size("vocab_size")?,
        hidden_size,
        layers: raw.size("num_hidden_layers")?,
        heads,
        kv_heads: heads,
        head_size,
        intermediate_size: raw.size("intermediate_size")?,
        max_positions: raw.size_or("max_position_embeddings", 2048)?,
        norm: NormKind::LayerNorm,
        norm_eps: crate::convert::f32_from(raw.positive_or("layer_norm_eps", 1e-5)?),
        block: if raw.flag_or("use_parallel_residual", true)? {
            BlockKind::Parallel
        } else {
            BlockKind::PreNorm
        },
        positions: Positions::Rotary(rotary),
        activation: raw.activation("hidden_act", "gelu")?,
        gated_mlp: false,
        sliding_window: None,
        tied_embeddings: raw.flag_or("tie_word_embeddings", false)?,
        embedding_size: hidden_size,
        eos_token_ids: raw.token_ids("eos_token_id")?,
        ..DecoderConfig::default()
    }
    .validate(raw)
}

fn names(config: &DecoderConfig) -> TensorNames {
    let config = config.clone();
    TensorNames {
        roots: &["gpt_neox.", ""],
        token_embedding: "embed_in",
        position_embedding: None,
        embedding_norm: None,
        project_in: None,
        project_out: None,
        final_norm: Some("final_layer_norm"),
        head: "embed_out",
        layer: Box::new(move |layer| {
            let name = |part: &str| format!("layers.{layer}.{part}");
            LayerNames {
                attention_norm: Some(name("input_layernorm")),
                mlp_norm: Some(name("post_attention_layernorm")),
                branch_norms: None,
                qkv: interleaved_qkv(&name("attention.query_key_value"), &config),
                query_key_norms: None,
                attention_output: Part::new(&name("attention.dense")),
                mlp: MlpNames::Dense {
                    up: vec![Part::new(&name("mlp.dense_h_to_4h"))],
                    down: Part::new(&name("mlp.dense_4h_to_h")),
                },
            }
        }),
    }
}
