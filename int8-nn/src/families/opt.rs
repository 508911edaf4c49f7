//! OPT (Zhang et al., 2022): learned positions with an offset of 2, LayerNorm, ReLU, biases everywhere. The 350m model
//! normalises after the residual addition and projects its embedding.

use super::{Family, LayerNames, MlpNames, TensorNames};
use crate::Error;
use crate::config::{BlockKind, DecoderConfig, NormKind, Positions, RawConfig, head_size};
use crate::weights::Part;

pub(crate) const FAMILY: Family = Family { model_types: &["opt"], config, names };

fn config(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    let hidden_size = raw.size("hidden_size")?;
    let heads = raw.size("num_attention_heads")?;
    DecoderConfig {
        family: "opt",
        vocab_size: raw.size("vocab_size")?,
        hidden_size,
        layers: raw.size("num_hidden_layers")?,
        heads,
        kv_heads: heads,
        head_size: head_size(raw, "num_attention_heads", hidden_size, heads)?,
        intermediate_size: raw.size("ffn_dim")?,
        max_positions: raw.size("max_position_embeddings")?,
        norm: NormKind::LayerNorm,
        norm_eps: 1e-5,
        block: if raw.flag_or("do_layer_norm_before", true)? {
            BlockKind::PreNorm
        } else {
            BlockKind::PostNorm
        },
        positions: Positions::Learned { offset: 2 },
        activation: raw.activation("activation_function", "relu")?,
        gated_mlp: false,
        sliding_window: None,
        tied_embeddings: raw.flag_or("tie_word_embeddings", true)?,
        embedding_size: raw.size_or("word_embed_proj_dim", hidden_size)?,
        eos_token_ids: raw.token_ids("eos_token_id")?,
        ..DecoderConfig::default()
    }
    .validate(raw)
}

fn names(config: &DecoderConfig) -> TensorNames {
    let projected = config.embedding_size != config.hidden_size;
    TensorNames {
        roots: &["model.decoder.", "decoder."],
        token_embedding: "embed_tokens",
        position_embedding: Some("embed_positions"),
        embedding_norm: None,
        project_in: projected.then_some("project_in"),
        project_out: projected.then_some("project_out"),
        final_norm: (config.block != BlockKind::PostNorm).then_some("final_layer_norm"),
        head: "lm_head",
        layer: Box::new(|layer| {
            let name = |part: &str| format!("layers.{layer}.{part}");
            LayerNames {
                attention_norm: Some(name("self_attn_layer_norm")),
                mlp_norm: Some(name("final_layer_norm")),
                branch_norms: None,
                qkv: ["q_proj", "k_proj", "v_proj"]
                    .map(|part| Part::new(&name(&format!("self_attn.{part}"))))
                    .into(),
                query_key_norms: None,
                attention_output: Part::new(&name("self_attn.out_proj")),
                mlp: MlpNames::Dense { up: vec![Part::new(&name("fc1"))], down: Part::new(&name("fc2")) },
            }
        }),
    }
}
