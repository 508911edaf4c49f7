//! The gated delta rule: see [`GatedDeltaRule`].

use ndarray::ArrayViewMut2;

use super::{Inputs, dot, each_unit, row_of, softplus};
use crate::backend::GatedDeltaRule;
use crate::convert;

/// Added to the square of the norm of queries and keys.
const EPS: f32 = 1e-6;

/// `state [heads, key_size, value_size]`, `out [rows, heads·value_size]`.
pub(super) fn run(
    rule: &GatedDeltaRule,
    inputs: &Inputs<'_>,
    state: &mut [f32],
    out: ArrayViewMut2<'_, f32>,
) {
    let GatedDeltaRule { heads, key_heads, key_size, value_size, beta_scale, .. } = *rule;
    let [queries, keys, values] = [&rule.queries, &rule.keys, &rule.values].map(|operand| inputs.of(operand));
    let [betas, steps] = [&rule.betas, &rule.steps].map(|operand| inputs.of(operand));
    let (of_key, decays) = (heads / key_heads, steps.ncols() / heads);
    let query_scale = convert::f32_from(1.0 / convert::f64_from(key_size).sqrt());
    let work = 4 * inputs.rows() * heads * key_size * value_size;
    each_unit(state, key_size * value_size, value_size, out, work, |head, state, y| {
        let (mut query, mut key) = (vec![0.0; key_size], vec![0.0; key_size]);
        let (mut delta, mut decay) = (vec![0.0; value_size], vec![0.0; decays]);
        let (key_columns, value_columns) = (head / of_key * key_size, head * value_size);
        for (row, y) in y.chunks_exact_mut(value_size).enumerate() {
            query.copy_from_slice(&row_of(&queries, row)[key_columns..key_columns + key_size]);
            key.copy_from_slice(&row_of(&keys, row)[key_columns..key_columns + key_size]);
            normalize(&mut query, query_scale);
            normalize(&mut key, 1.0);
            let beta = beta_scale / (1.0 + (-betas[[row, head]]).exp());
            let first = head * decays;
            let of_head = row_of(&steps, row)[first..].iter().zip(&rule.step_bias[first..]);
            for (decay, (step, bias)) in decay.iter_mut().zip(of_head) {
                *decay = (rule.transition[head] * softplus(step + bias)).exp();
            }
            // δ = Sᵀk, while the state decays.
            delta.fill(0.0);
            for (index, (state, key)) in state.chunks_exact_mut(value_size).zip(&key).enumerate() {
                let decay = decay[index % decays];
                for (delta, state) in delta.iter_mut().zip(state) {
                    *state *= decay;
                    *delta += *state * key;
                }
            }
            let value = &row_of(&values, row)[value_columns..value_columns + value_size];
            for (delta, value) in delta.iter_mut().zip(value) {
                *delta = beta * (value - *delta);
            }
            y.fill(0.0);
            for (state, (key, query)) in state.chunks_exact_mut(value_size).zip(key.iter().zip(&query)) {
                for ((state, delta), y) in state.iter_mut().zip(&delta).zip(&mut *y) {
                    *state += key * delta;
                    *y += *state * query;
                }
            }
        }
    });
}

/// `x = scale·x/√(Σx² + ε)`
fn normalize(x: &mut [f32], scale: f32) {
    let factor = scale / (dot(x, x) + EPS).sqrt();
    x.iter_mut().for_each(|value| *value *= factor);
}
