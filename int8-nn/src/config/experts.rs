//! Mixtures of experts: which blocks have them, and how a router's logits become weights.

use super::RawConfig;
use crate::Error;

/// A mixture of experts (Shazeer et al., 2017): for each token a floating-point router chooses the MLPs to run.
#[derive(Debug, Clone, PartialEq)]
pub struct ExpertsConfig {
    /// Experts that the router chooses from.
    pub count: usize,
    /// Further ones that the router chooses from, which return their input.
    pub identities: usize,
    /// Experts chosen for each token.
    pub chosen: usize,
    /// The weights of the chosen experts are divided by their sum.
    pub normalized: bool,
    /// Added to that sum.
    pub sum_floor: f32,
    /// From the router's logits to the scores of the experts.
    pub scores: Scores,
    /// A learned number for each expert is added to its score where experts are chosen, and not where they are weighted.
    pub correction: bool,
    /// Only experts of the best groups are chosen.
    pub groups: Option<ExpertGroups>,
    /// The weights of the chosen experts are multiplied by this, after `normalized`.
    pub scale: f32,
    /// Weights multiply the inputs of the experts instead of their outputs.
    pub weighs_inputs: bool,
    /// Width of an expert's hidden layer.
    pub intermediate_size: usize,
    /// Hidden width of a shared expert, which runs for every token.
    pub shared_intermediate_size: Option<usize>,
    /// The shared expert is weighted by `σ(gate)` instead of `shared_scale`.
    pub shared_gate: bool,
    /// The weight of the shared expert.
    pub shared_scale: f32,
    /// Only each `period`-th block has experts.
    pub period: usize,
    /// Indices of blocks without experts all the same.
    pub dense_blocks: Vec<usize>,
}

/// The scores of experts, from the logits of a router.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Scores {
    /// The softmax over all experts.
    Softmax,
    /// `σ(logit)`, each expert for itself.
    Sigmoid,
    /// `σ(logit)` as weights; chosen by the logit itself.
    SigmoidOfLogits,
    /// Sparse mixing (Liu et al., 2023) of two experts: the weight of each is its share in the softmax over those of the experts
    /// not chosen before whose logit `l` has `(max − l)/max(|l|, max) ≤ 2·jitter`.
    SparseMixer {
        /// Half the relative distance up to which an expert competes.
        jitter: f32,
    },
}

/// Groups of equally many experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExpertGroups {
    /// How many.
    pub count: usize,
    /// Groups whose experts can be chosen.
    pub chosen: usize,
    /// A group's score is the sum over its so many best experts.
    pub best: usize,
}

impl ExpertsConfig {
    /// Whether block `index` has experts.
    pub fn in_block(&self, index: usize) -> bool {
        (index + 1).is_multiple_of(self.period) && !self.dense_blocks.contains(&index)
    }

    /// Checks that the numbers fit each other.
    pub(super) fn validate(&self, raw: &RawConfig) -> Result<(), Error> {
        let Self { count, chosen, .. } = *self;
        if self.identities > 0 && self.shared_intermediate_size.is_some() {
            return Err(
                raw.problem("zero_expert_num", "is set beside shared experts, which is not implemented")
            );
        }
        if chosen > count {
            return Err(
                raw.problem("num_experts_per_tok", format!("is {chosen}; there are only {count} experts"))
            );
        }
        if self.scores.is_sparse_mixer() && chosen != 2 {
            return Err(raw.problem("num_experts_per_tok", format!("is {chosen}; sparse mixing chooses 2")));
        }
        let Some(groups) = self.groups else { return Ok(()) };
        if !count.is_multiple_of(groups.count)
            || groups.chosen > groups.count
            || groups.chosen * (count / groups.count) < chosen
            || groups.best > count / groups.count
        {
            return Err(raw.problem(
                "n_group",
                format!(
                    "is {}, with `topk_group` {}: {chosen} experts cannot be chosen so from {count}",
                    groups.count, groups.chosen
                ),
            ));
        }
        Ok(())
    }
}

impl Scores {
    fn is_sparse_mixer(self) -> bool {
        matches!(self, Self::SparseMixer { .. })
    }
}

impl Default for ExpertsConfig {
    /// Experts in all blocks, weighted by the softmax, no shared one; all sizes are 0.
    fn default() -> Self {
        Self {
            count: 0,
            identities: 0,
            chosen: 0,
            normalized: false,
            sum_floor: 0.0,
            scores: Scores::Softmax,
            correction: false,
            groups: None,
            scale: 1.0,
            weighs_inputs: false,
            intermediate_size: 0,
            shared_intermediate_size: None,
            shared_gate: false,
            shared_scale: 1.0,
            period: 1,
            dense_blocks: Vec::new(),
        }
    }
}
