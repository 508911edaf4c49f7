//! Which experts compute a token, from the logits of a router.

use crate::config::{ExpertGroups, ExpertsConfig, Scores};

/// How the logits of a router become experts and weights.
#[derive(Debug, Clone, PartialEq)]
pub struct Routing {
    /// Experts to choose from, without the shared one. Those that a model has no weights of return their input.
    pub count: usize,
    /// Experts a token, without the shared one.
    pub chosen: usize,
    /// The weights are divided by the sum over the chosen experts.
    pub normalized: bool,
    /// Added to their sum.
    pub sum_floor: f32,
    /// From logits to scores.
    pub scores: Scores,
    /// `[count]`: added to the scores where experts are chosen.
    pub correction: Option<Vec<f32>>,
    /// Only experts of the best groups are chosen.
    pub groups: Option<ExpertGroups>,
    /// The weights are multiplied by this.
    pub scale: f32,
    /// `[count]`: and each by that of its expert.
    pub expert_scales: Option<Vec<f32>>,
    /// Weights multiply the inputs of the experts instead of their outputs.
    pub weighs_inputs: bool,
    /// A shared expert sees every token.
    pub shared: Option<SharedWeight>,
}

/// The weight of the shared expert.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum SharedWeight {
    /// This.
    Constant(f32),
    /// `σ` of the logit behind those of the other experts.
    Gate,
}

impl Routing {
    /// As the configuration says.
    pub(crate) fn new(settings: &ExpertsConfig, correction: Option<Vec<f32>>) -> Self {
        let ExpertsConfig {
            count, chosen, normalized, sum_floor, scores, groups, scale, weighs_inputs, ..
        } = *settings;
        let constant = SharedWeight::Constant(settings.shared_scale);
        let count = count + settings.identities;
        let weight = if settings.shared_gate { SharedWeight::Gate } else { constant };
        let shared = settings.shared_intermediate_size.map(|_| weight);
        let expert_scales = None;
        Self {
            count,
            chosen,
            normalized,
            sum_floor,
            scores,
            correction,
            groups,
            scale,
            expert_scales,
            weighs_inputs,
            shared,
        }
    }

    /// Logits of a token.
    pub fn logits(&self) -> usize {
        self.count + usize::from(self.shared == Some(SharedWeight::Gate))
    }
}

/// The experts of one token with their weights: the `chosen` best, and the shared one.
pub(super) fn route(logits: &[f32], routing: &Routing) -> Vec<(usize, f32)> {
    let (routed, gate) = logits.split_at(routing.count);
    let mut weights = match routing.scores {
        Scores::SparseMixer { jitter } => sparse_mixer(routed, jitter),
        scores => choose(routed, scores, routing),
    };
    if routing.normalized {
        let sum = weights.iter().map(|(_, weight)| weight).sum::<f32>() + routing.sum_floor;
        weights.iter_mut().for_each(|(_, weight)| *weight /= sum);
    }
    weights.iter_mut().for_each(|(_, weight)| *weight *= routing.scale);
    if let Some(scales) = &routing.expert_scales {
        weights.iter_mut().for_each(|(expert, weight)| *weight *= scales[*expert]);
    }
    match routing.shared {
        None => {}
        Some(SharedWeight::Constant(weight)) => weights.push((routing.count, weight)),
        Some(SharedWeight::Gate) => weights.extend(gate.iter().map(|logit| (routing.count, sigmoid(*logit)))),
    }
    weights
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

fn softmax(logits: impl Iterator<Item = f32> + Clone) -> Vec<f32> {
    let max = logits.clone().fold(f32::NEG_INFINITY, f32::max);
    let exponentials: Vec<f32> = logits.map(|logit| (logit - max).exp()).collect();
    let sum: f32 = exponentials.iter().sum();
    exponentials.into_iter().map(|value| value / sum).collect()
}

/// The experts with the best scores, and these.
fn choose(logits: &[f32], scores: Scores, routing: &Routing) -> Vec<(usize, f32)> {
    let weights = match scores {
        Scores::Softmax => softmax(logits.iter().copied()),
        _ => logits.iter().copied().map(sigmoid).collect(),
    };
    let ranks = if scores == Scores::SigmoidOfLogits { logits } else { &weights };
    let mut ranks = ranks.to_vec();
    for (rank, correction) in ranks.iter_mut().zip(routing.correction.iter().flatten()) {
        *rank += correction;
    }
    if let Some(groups) = routing.groups {
        exclude_groups(&mut ranks, groups);
    }
    let mut order: Vec<usize> = (0..ranks.len()).collect();
    // Stable: of equally good experts the first. A NaN makes every weight NaN, so any choice carries it on.
    order.sort_by(|a, b| ranks[*b].total_cmp(&ranks[*a]));
    order.truncate(routing.chosen);
    order.into_iter().map(|expert| (expert, weights[expert])).collect()
}

/// Sets the ranks of all experts outside the best groups to −∞.
fn exclude_groups(ranks: &mut [f32], groups: ExpertGroups) {
    let size = ranks.len() / groups.count;
    let score = |group: &[f32]| -> f32 {
        let mut sorted = group.to_vec();
        sorted.sort_by(|a, b| b.total_cmp(a));
        sorted.iter().take(groups.best).sum()
    };
    let scores: Vec<f32> = ranks.chunks_exact(size).map(score).collect();
    let mut order: Vec<usize> = (0..groups.count).collect();
    order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
    for group in &order[groups.chosen..] {
        ranks[group * size..(group + 1) * size].fill(f32::NEG_INFINITY);
    }
}

/// Two experts with the weights of [`Scores::SparseMixer`].
fn sparse_mixer(logits: &[f32], jitter: f32) -> Vec<(usize, f32)> {
    let mut rest = logits.to_vec();
    let mut chosen = Vec::new();
    for _ in 0..2 {
        let best = (0..rest.len()).rev().max_by(|a, b| rest[*a].total_cmp(&rest[*b])).unwrap_or_default();
        let max = rest[best];
        let too_small = |logit: f32| (max - logit) / logit.abs().max(max) > 2.0 * jitter;
        let competing = rest
            .iter()
            .zip(logits)
            .map(|(left, logit)| if too_small(*logit) { f32::NEG_INFINITY } else { *left });
        chosen.push((best, softmax(competing)[best]));
        rest[best] = f32::NEG_INFINITY;
    }
    chosen
}
