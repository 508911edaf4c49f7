//! Which experts compute a token, from the logits of a router.

/// The experts of one token with their weights: the `chosen` most probable, and the shared one, whose logit is the last.
pub(super) fn route(logits: &[f32], shared: bool, chosen: usize, normalized: bool) -> Vec<(usize, f32)> {
    let routed = logits.len() - usize::from(shared);
    let (routed_logits, shared) = logits.split_at(routed);
    let max = routed_logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let exponentials: Vec<f32> = routed_logits.iter().map(|logit| (logit - max).exp()).collect();
    let sum: f32 = exponentials.iter().sum();
    let mut weights: Vec<(usize, f32)> =
        exponentials.into_iter().map(|value| value / sum).enumerate().collect();
    // Stable: of equally probable experts the first. A NaN makes every weight NaN, so any choice carries it on.
    weights.sort_by(|(_, a), (_, b)| b.total_cmp(a));
    weights.truncate(chosen);
    if normalized {
        let sum: f32 = weights.iter().map(|(_, weight)| weight).sum();
        weights.iter_mut().for_each(|(_, weight)| *weight /= sum);
    }
    weights.extend(shared.iter().map(|logit| (routed, 1.0 / (1.0 + (-logit).exp()))));
    weights
}
