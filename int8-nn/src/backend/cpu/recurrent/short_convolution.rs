//! Short convolutions between two gates: see [`ShortConvolution`].

use ndarray::ArrayViewMut2;

use super::{Inputs, row_of};
use crate::backend::ShortConvolution;

/// `state [kernel − 1, channels]`, the oldest token first; `out [rows, channels]`.
pub(super) fn run(
    spec: &ShortConvolution,
    inputs: &Inputs<'_>,
    state: &mut [f32],
    mut out: ArrayViewMut2<'_, f32>,
) {
    let (channels, kernel) = spec.weight.dim();
    let [before, after, x] = [&spec.before, &spec.after, &spec.x].map(|operand| inputs.of(operand));
    // Taps `[kernel, channels]`: one multiplication of whole rows for each.
    let taps = spec.weight.t().as_standard_layout().into_owned();
    // The gated inputs of the last `kernel` tokens.
    let mut window = vec![0.0; kernel * channels];
    window[channels..].copy_from_slice(state);
    let mut sum = vec![0.0; channels];
    for (row, mut out) in out.rows_mut().into_iter().enumerate() {
        window.copy_within(channels.., 0);
        let gated = &mut window[(kernel - 1) * channels..];
        for ((gated, gate), x) in gated.iter_mut().zip(row_of(&before, row)).zip(row_of(&x, row)) {
            *gated = gate * x;
        }
        match &spec.bias {
            Some(bias) => sum.copy_from_slice(bias),
            None => sum.fill(0.0),
        }
        for (tap, input) in taps.rows().into_iter().zip(window.chunks_exact(channels)) {
            for ((sum, weight), x) in sum.iter_mut().zip(tap).zip(input) {
                *sum += weight * x;
            }
        }
        for ((out, gate), sum) in out.iter_mut().zip(row_of(&after, row)).zip(&sum) {
            *out = gate * sum;
        }
    }
    state.copy_from_slice(&window[channels..]);
}
