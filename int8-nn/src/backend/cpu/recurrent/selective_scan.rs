//! The selective scan of Mamba: see [`SelectiveScan`].

use ndarray::ArrayViewMut2;

use super::{Inputs, dot, each_unit, row_of, softplus};
use crate::backend::SelectiveScan;

/// Channels that one thread takes at once: their states fill a few cache lines each.
const CHANNELS: usize = 64;

/// `state [channels, dimensions]`, `out [rows, channels]`.
pub(super) fn run(scan: &SelectiveScan, inputs: &Inputs<'_>, state: &mut [f32], out: ArrayViewMut2<'_, f32>) {
    let (channels, dimensions) = scan.transition.dim();
    let [x, steps, b, c] = [&scan.x, &scan.steps, &scan.b, &scan.c].map(|operand| inputs.of(operand));
    let of_group = channels * dimensions / b.ncols();
    // An exponential takes as long as some ten multiplications.
    let work = 16 * inputs.rows() * channels * dimensions;
    each_unit(state, CHANNELS * dimensions, CHANNELS, out, work, |unit, state, y| {
        let (first, width) = (unit * CHANNELS, state.len() / dimensions);
        for (row, y) in y.chunks_exact_mut(width).enumerate() {
            let [b, c] = [&b, &c].map(|values| row_of(values, row));
            for (index, (state, y)) in state.chunks_exact_mut(dimensions).zip(y).enumerate() {
                let channel = first + index;
                let group = channel / of_group * dimensions;
                let (b, c) = (&b[group..group + dimensions], &c[group..group + dimensions]);
                let bias = scan.step_bias.as_ref().map_or(0.0, |bias| bias[channel]);
                let step = softplus(steps[[row, channel]] + bias);
                let x = x[[row, channel]];
                for ((h, a), b) in state.iter_mut().zip(scan.transition.row(channel)).zip(b) {
                    *h = (step * a).exp() * *h + step * b * x;
                }
                *y = dot(state, c) + scan.skip[channel] * x;
            }
        }
    });
}
