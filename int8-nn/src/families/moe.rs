//! What families with mixtures of experts share: DeepSeek-V3's routing, which blocks have experts, and the usual names.

use super::{ExpertNames, MlpNames, Module, llama};
use crate::Error;
use crate::config::{ExpertGroups, ExpertsConfig, RawConfig, Scores};

/// DeepSeek-V3's keys and routing (DeepSeek-AI, 2024); the first blocks are dense.
pub(super) fn deepseek(raw: &RawConfig) -> Result<ExpertsConfig, Error> {
    let intermediate_size = raw.size("moe_intermediate_size")?;
    Ok(ExpertsConfig {
        count: raw.size("n_routed_experts")?,
        chosen: raw.size("num_experts_per_tok")?,
        intermediate_size,
        shared_intermediate_size: shared(raw, "n_shared_experts", 1, intermediate_size)?,
        dense_blocks: (0..raw.index_or("first_k_dense_replace", 0)?).collect(),
        ..sigmoid(raw)?
    })
}

/// Scores by the logistic function, chosen with a correction among the best groups.
pub(super) fn sigmoid(raw: &RawConfig) -> Result<ExpertsConfig, Error> {
    let (count, chosen) = (raw.size_or("n_group", 1)?, raw.size_or("topk_group", 1)?);
    Ok(ExpertsConfig {
        normalized: raw.flag_or("norm_topk_prob", true)?,
        scores: Scores::Sigmoid,
        correction: true,
        groups: (count > 1).then_some(ExpertGroups { count, chosen, best: 2 }),
        scale: raw.float_or("routed_scaling_factor", 1.0)?,
        ..ExpertsConfig::default()
    })
}

/// The number of experts: `num_experts`, or `num_local_experts` without it.
pub(super) fn count(raw: &RawConfig, default: usize) -> Result<usize, Error> {
    let key = if raw.get("num_experts").is_some() { "num_experts" } else { "num_local_experts" };
    raw.size_or(key, default)
}

/// The width of the shared experts, which are one MLP: their number under `key`, 0 for none, times `each`.
pub(super) fn shared(
    raw: &RawConfig,
    key: &str,
    default: usize,
    each: usize,
) -> Result<Option<usize>, Error> {
    Ok(Some(each * raw.index_or(key, default)?).filter(|size| *size > 0))
}

/// The blocks that `mlp_layer_types` calls dense; without that key the first `default`.
pub(super) fn dense_blocks(raw: &RawConfig, layers: usize, default: usize) -> Result<Vec<usize>, Error> {
    let dense = raw.marks("mlp_layer_types", layers, "dense", "sparse")?;
    Ok(match dense {
        None => (0..default.min(layers)).collect(),
        Some(dense) => (0..layers).filter(|layer| dense[*layer]).collect(),
    })
}

/// The names of the experts below a block.
#[derive(Debug, Clone, Copy)]
pub(super) struct Names {
    pub(super) module: &'static str,
    pub(super) router: &'static str,
    /// The gate of the shared expert, if it has one.
    pub(super) shared_gate: &'static str,
    /// Below the block, and not the module.
    pub(super) correction: &'static str,
    pub(super) shared: &'static str,
    /// Gate, expansion, contraction of an expert.
    pub(super) projections: [&'static str; 3],
}

impl Default for Names {
    fn default() -> Self {
        Self {
            module: "mlp",
            router: "gate",
            shared_gate: "shared_expert_gate",
            correction: "mlp.gate.e_score_correction_bias",
            shared: "shared_experts",
            projections: ["gate_proj", "up_proj", "down_proj"],
        }
    }
}

impl Names {
    /// Those of block `index`.
    pub(super) fn of(self, index: usize, experts: &ExpertsConfig) -> MlpNames {
        MlpNames::Experts(vec![self.experts(index, experts)])
    }

    /// The same as experts alone.
    pub(super) fn experts(self, index: usize, experts: &ExpertsConfig) -> ExpertNames {
        let count = experts.count;
        let module = Module::new(llama::module(index).name(self.module));
        let gate = experts.shared_intermediate_size.filter(|_| experts.shared_gate);
        ExpertNames {
            router: std::iter::once(self.router)
                .chain(gate.map(|_| self.shared_gate))
                .map(|name| module.name(name))
                .collect(),
            correction: Some(llama::module(index).name(self.correction)),
            fused: Some(["experts.gate_up_proj", "experts.down_proj"].map(|name| module.name(name))),
            expert: Box::new(move |expert| {
                if expert == count {
                    let shared = Module::new(module.name(self.shared));
                    return (shared.parts(["gate_proj", "up_proj"]), shared.part("down_proj"));
                }
                let expert = Module::new(module.name(&format!("experts.{expert}")));
                let [gate, up, down] = self.projections;
                (expert.parts([gate, up]), expert.part(down))
            }),
        }
    }
}
