//! GPT-J (Wang and Komatsuzaki, 2021): rotary positions on the first dimensions of each head, in interleaved pairs; attention
//! and MLP in parallel behind one LayerNorm; biases in the MLP and the head only.

use super::{Family, LayerNames, MlpNames, TensorNames, halves_from_pairs};
use crate::Error;
use crate::config::{
    BlockKind, DecoderConfig, Positions, RawConfig, Rotary, RotaryPrecision, RotaryScaling, head_size,
};
use crate::weights::Part;

pub(crate) const FAMILY: Family = Family { model_types: &["gptj"], config, names };

fn config(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    let hidden_size = raw.size("n_embd")?;
    let heads = raw.size("n_head")?;
    DecoderConfig {
        family: "gptj",
        vocab_size: raw.size("vocab_size")?,
        hidden_size,
        layers: raw.size("n_layer")?,
        heads,
        kv_heads: heads,
        head_size: head_size(raw, "n_head", hidden_size, heads)?,
        intermediate_size: raw.size_or("n_inner", 4 * hidden_size)?,
        max_positions: raw.size_or("n_positions", 2048)?,
        norm_eps: crate::convert::f32_from(raw.positive_or("layer_norm_epsilon", 1e-5)?),
        block: BlockKind::Parallel,
        shared_norm: true,
        positions: Positions::Rotary(Rotary {
            dims: raw.size_or("rotary_dim", 64)?,
            theta: 10_000.0,
            scaling: RotaryScaling::None,
            precision: RotaryPrecision::F32,
        }),
        activation: raw.activation("activation_function", "gelu_new")?,
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
        roots: &["transformer.", ""],
        token_embedding: "wte",
        position_embedding: None,
        embedding_norm: None,
        project_in: None,
        project_out: None,
        final_norm: Some("ln_f"),
        head: "lm_head",
        layer: Box::new(move |layer| {
            let name = |part: &str| format!("h.{layer}.{part}");
            let rotated = |part: &str| halves_from_pairs(&name(part), config.heads, &config);
            LayerNames {
                attention_norm: Some(name("ln_1")),
                mlp_norm: None,
                branch_norms: None,
                qkv: vec![rotated("attn.q_proj"), rotated("attn.k_proj"), Part::new(&name("attn.v_proj"))],
                query_key_norms: None,
                attention_output: Part::new(&name("attn.out_proj")),
                mlp: MlpNames::Dense {
                    up: vec![Part::new(&name("mlp.fc_in"))],
                    down: Part::new(&name("mlp.fc_out")),
                },
            }
        }),
    }
}
