//! The recurrence of Mamba-2: see [`HeadScan`].

use ndarray::ArrayViewMut2;

use super::{Inputs, dot, each_unit, row_of, softplus};
use crate::backend::HeadScan;

/// `state [heads, head_size, dimensions]`, `out [rows, heads·head_size]`.
pub(super) fn run(scan: &HeadScan, inputs: &Inputs<'_>, state: &mut [f32], out: ArrayViewMut2<'_, f32>) {
    let HeadScan { heads, head_size, state: dimensions, step_limits: [least, most], .. } = *scan;
    let [x, steps, b, c] = [&scan.x, &scan.steps, &scan.b, &scan.c].map(|operand| inputs.of(operand));
    let of_group = heads * dimensions / b.ncols();
    let work = 2 * inputs.rows() * heads * head_size * dimensions;
    each_unit(state, head_size * dimensions, head_size, out, work, |head, state, y| {
        let group = head / of_group * dimensions;
        for (row, y) in y.chunks_exact_mut(head_size).enumerate() {
            let [b, c] = [&b, &c].map(|values| &row_of(values, row)[group..group + dimensions]);
            let step = softplus(steps[[row, head]] + scan.step_bias[head]).clamp(least, most);
            let decay = (step * scan.transition[head]).exp();
            let states = state.chunks_exact_mut(dimensions);
            for (channel, (state, y)) in states.zip(y).enumerate() {
                let x = x[[row, head * head_size + channel]];
                for (h, b) in state.iter_mut().zip(b) {
                    *h = decay * *h + step * b * x;
                }
                *y = dot(state, c) + scan.skip[head] * x;
            }
        }
    });
}
