//! GPT-2 (Radford et al., 2019): learned positions, LayerNorm, tanh-GELU, fused query-key-value, and weights stored
//! `[in, out]` (Conv1D). bitsandbytes saves the int8 weight of a Conv1D as `[out, in]`.

use super::{Family, LayerNames, MlpNames, TensorNames};
use crate::Error;
use crate::config::{BlockKind, DecoderConfig, NormKind, Positions, RawConfig, head_size};
use crate::weights::Part;

pub(crate) const FAMILY: Family = Family { model_types: &["gpt2"], config, names };

fn config(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    const BY_LAYER: &str = "scale_attn_by_inverse_layer_idx";
    if raw.flag_or(BY_LAYER, false)? {
        return Err(raw.problem(BY_LAYER, "is true, which is not supported"));
    }
    let hidden_size = raw.size("n_embd")?;
    let heads = raw.size("n_head")?;
    DecoderConfig {
        family: "gpt2",
        vocab_size: raw.size("vocab_size")?,
        hidden_size,
        layers: raw.size("n_layer")?,
        heads,
        kv_heads: heads,
        head_size: head_size(raw, "n_head", hidden_size, heads)?,
        intermediate_size: raw.size_or("n_inner", 4 * hidden_size)?,
        max_positions: raw.size_or("n_positions", 1024)?,
        norm: NormKind::LayerNorm,
        norm_eps: crate::convert::f32_from(raw.positive_or("layer_norm_epsilon", 1e-5)?),
        block: BlockKind::PreNorm,
        positions: Positions::Learned { offset: 0 },
        activation: raw.activation("activation_function", "gelu_new")?,
        gated_mlp: false,
        sliding_window: None,
        tied_embeddings: raw.flag_or("tie_word_embeddings", true)?,
        embedding_size: hidden_size,
        eos_token_ids: raw.token_ids("eos_token_id")?,
        ..DecoderConfig::default()
    }
    .validate(raw)
}

fn names(_: &DecoderConfig) -> TensorNames {
    TensorNames {
        roots: &["transformer.", ""],
        token_embedding: "wte",
        position_embedding: Some("wpe"),
        embedding_norm: None,
        project_in: None,
        project_out: None,
        final_norm: Some("ln_f"),
        head: "lm_head",
        layer: Box::new(|layer| {
            let name = |part: &str| format!("h.{layer}.{part}");
            LayerNames {
                attention_norm: Some(name("ln_1")),
                mlp_norm: Some(name("ln_2")),
                branch_norms: None,
                qkv: vec![Part::new(&name("attn.c_attn")).conv1d()],
                query_key_norms: None,
                attention_output: Part::new(&name("attn.c_proj")).conv1d(),
                mlp: MlpNames::Dense {
                    up: vec![Part::new(&name("mlp.c_fc")).conv1d()],
                    down: Part::new(&name("mlp.c_proj")).conv1d(),
                },
            }
        }),
    }
}
