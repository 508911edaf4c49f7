//! GPT-J (Wang and Komatsuzaki, 2021): rotary positions on the first dimensions of each head, in interleaved pairs; attention
//! and MLP in parallel behind one LayerNorm; biases in the MLP and the head only.

use int8_core::FloatType;

use super::{Family, LayerNames, TensorNames, deinterleaved, gpt2};
use crate::Error;
use crate::config::{Biases, BlockKind, DecoderConfig, Positions, RawConfig, Rotary, RotaryScaling};

pub(crate) const FAMILY: Family = Family { model_types: &["gptj"], config, names };

fn config(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    base(raw)?.validate(raw)
}

/// The keys that CodeGen shares.
pub(super) fn base(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    Ok(DecoderConfig {
        family: "gptj",
        max_positions: raw.size_or("n_positions", 2048)?,
        block: BlockKind::Parallel,
        shared_norm: true,
        positions: Positions::Rotary(Rotary {
            dims: raw.size_or("rotary_dim", 64)?,
            theta: 10_000.0,
            scaling: RotaryScaling::None,
            precision: FloatType::F32,
        }),
        biases: Biases { head: true, ..Biases::of(false, true) },
        tied_embeddings: raw.flag_or("tie_word_embeddings", false)?,
        ..gpt2::base(raw)?
    })
}

fn names(config: &DecoderConfig) -> TensorNames {
    let config = config.clone();
    let layer = gpt2::tensors(move |block| {
        let rotated = |name: &str| deinterleaved(&block.name(name), config.heads, &config);
        LayerNames::new(
            vec![rotated("attn.q_proj"), rotated("attn.k_proj"), block.part("attn.v_proj")],
            block.part("attn.out_proj"),
            block.mlp(["mlp.fc_in"], "mlp.fc_out"),
        )
        .shared_norm(block.name("ln_1"))
    });
    TensorNames { position_embedding: None, ..layer }
}
