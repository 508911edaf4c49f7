//! Lightning attention: see [`LightningAttention`].

use int8_cpu::{Kernel, float};
use ndarray::ArrayViewMut2;

use super::{Inputs, each_unit, row_of};
use crate::backend::LightningAttention;
use crate::backend::cpu::elementwise;

/// `state [heads, head_size, head_size]`, `out [rows, heads·head_size]`.
pub(super) fn run(
    kernel: Kernel,
    spec: &LightningAttention,
    inputs: &Inputs<'_>,
    state: &mut [f32],
    out: ArrayViewMut2<'_, f32>,
) {
    let size = spec.head_size;
    let operands = [&spec.queries, &spec.keys, &spec.values].map(|operand| inputs.of(operand));
    let work = 3 * inputs.rows() * state.len();
    each_unit(state, size * size, size, out, work, |head, state, y| {
        let decay = (-spec.slopes[head]).exp();
        let mut activated = [vec![0.0; size], vec![0.0; size], vec![0.0; size]];
        for (row, y) in y.chunks_exact_mut(size).enumerate() {
            for (operand, activated) in operands.iter().zip(&mut activated) {
                let of_head = &row_of(operand, row)[head * size..(head + 1) * size];
                float::activate(kernel, elementwise::function(spec.activation), of_head, activated);
            }
            let [query, key, value] = &activated;
            y.fill(0.0);
            for (state, (key, query)) in state.chunks_exact_mut(size).zip(key.iter().zip(query)) {
                for ((state, value), y) in state.iter_mut().zip(value).zip(&mut *y) {
                    *state = decay * *state + key * value;
                    *y += *state * query;
                }
            }
        }
    });
}
