//! OLMo 2 and OLMoE (OLMo Team, 2024; Muennighoff et al., 2024): norms over all queries and over all keys; OLMo 2 normalises
//! outputs of branches instead of inputs, OLMoE has a mixture of experts.

use super::llama::{self, layer};
use super::{Family, LayerNames, TensorNames, qwen_moe};
use crate::Error;
use crate::config::{DecoderConfig, ExpertsConfig, QueryKeyNorms, RawConfig, RotaryDefaults};

pub(crate) const FAMILY: Family = Family { model_types: &["olmo2", "olmoe"], config, names };

fn config(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    let base = DecoderConfig {
        norm_eps: raw.float_or("rms_norm_eps", 1e-5)?,
        query_key_norms: Some(QueryKeyNorms::Whole),
        ..llama::base(raw, RotaryDefaults::default())?
    };
    let config = if raw.text_or("model_type", "")? == "olmoe" {
        let experts = ExpertsConfig {
            count: raw.size("num_experts")?,
            chosen: raw.size("num_experts_per_tok")?,
            normalized: raw.flag_or("norm_topk_prob", false)?,
            intermediate_size: base.intermediate_size,
            ..ExpertsConfig::default()
        };
        // After the norms.
        let qkv_limit = match raw.get("clip_qkv") {
            Some(_) => Some(raw.float_or("clip_qkv", 0.0)?),
            None => None,
        };
        DecoderConfig { family: "olmoe", experts: Some(experts), qkv_limit, ..base }
    } else {
        DecoderConfig { family: "olmo2", branch_norms: true, ..base }
    };
    config.validate(raw)
}

fn names(config: &DecoderConfig) -> TensorNames {
    let config = config.clone();
    llama::tensors(move |index| {
        if let Some(experts) = &config.experts {
            return LayerNames { mlp: qwen_moe::mlp(index, experts), ..layer(index, &config) };
        }
        let block = llama::module(index);
        let branch_norms = ["post_attention_layernorm", "post_feedforward_layernorm"];
        LayerNames {
            attention_norm: None,
            mlp_norm: None,
            branch_norms: Some(branch_norms.map(|norm| block.name(norm))),
            ..layer(index, &config)
        }
    })
}
