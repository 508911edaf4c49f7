//! GPT-BigCode (StarCoder; Li et al., 2023): GPT-2 with one key and value head for all queries, and ordinary linear layers.

use super::{Family, LayerNames, TensorNames, gpt2, interleaved_qkv};
use crate::Error;
use crate::config::{DecoderConfig, RawConfig};

pub(crate) const FAMILY: Family = Family { model_types: &["gpt_bigcode"], config, names };

fn config(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    let base = gpt2::base(raw)?;
    DecoderConfig {
        family: "gpt_bigcode",
        kv_heads: if raw.flag_or("multi_query", true)? { 1 } else { base.heads },
        attention_divisor: if raw.flag_or("scale_attn_weights", true)? { None } else { Some(1.0) },
        ..base
    }
    .validate(raw)
}

fn names(config: &DecoderConfig) -> TensorNames {
    let config = config.clone();
    gpt2::tensors(move |block| {
        LayerNames::new(
            interleaved_qkv(&block.name("attn.c_attn"), &config),
            block.part("attn.c_proj"),
            block.mlp(["mlp.c_fc"], "mlp.c_proj"),
        )
        .norms(block.name("ln_1"), block.name("ln_2"))
    })
}
