//! GPT (Radford et al., 2018): GPT-2 with LayerNorms after the residual additions, none at the end.

use super::{Family, Module, TensorNames, gpt2};
use crate::Error;
use crate::config::{Activation, BlockKind, DecoderConfig, Positions, RawConfig, SizeKeys};

pub(crate) const FAMILY: Family = Family { model_types: &["openai-gpt"], config, names };

fn config(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    let sized = DecoderConfig::sized(raw, SizeKeys { hidden: "n_embd", layers: "n_layer", heads: "n_head" })?;
    let activation = match raw.text_or("afn", "gelu")? {
        "gelu" => Activation::GeluTanh,
        "relu" => Activation::Relu,
        "silu" | "swish" => Activation::Silu,
        other => {
            return Err(raw.problem("afn", format!("is {other:?}; expected gelu, relu, silu or swish")));
        }
    };
    DecoderConfig {
        family: "openai-gpt",
        max_positions: raw.size_or("n_positions", 512)?,
        norm_eps: raw.float_or("layer_norm_epsilon", 1e-5)?,
        block: BlockKind::PostNorm,
        final_norm: false,
        positions: Positions::Learned { offset: 0 },
        activation,
        tied_embeddings: raw.flag_or("tie_word_embeddings", true)?,
        ..sized
    }
    .validate(raw)
}

fn names(_: &DecoderConfig) -> TensorNames {
    let layer = |index| gpt2::block(&Module::new(format!("h.{index}")));
    TensorNames {
        position_embedding: Some("positions_embed"),
        final_norm: None,
        ..TensorNames::new(&["transformer.", ""], "tokens_embed", "", layer)
    }
}
