//! Causal depthwise convolutions with the inputs that a sequence's earlier forwards ended with.

use int8_cpu::{Kernel, float};
use ndarray::{Array2, ArrayView2, ArrayViewMut2, s};

use super::States;
use crate::Error;
use crate::backend::Convolution;
use crate::backend::cpu::{Rows, elementwise};

/// The convolution of `layer`, in place on its columns of `x`.
pub(in crate::backend::cpu) fn convolve(
    kernel: Kernel,
    segments: &[Rows],
    states: &mut States,
    layer: usize,
    mut x: ArrayViewMut2<'_, f32>,
) -> Result<(), Error> {
    let spec = states.layer(layer)?;
    let Some(convolution) = &spec.convolution else {
        return Err(Error::Unsupported(format!("layer {layer} has no convolution")));
    };
    for segment in segments {
        let (previous, next) = states.window(layer, segment)?;
        let columns = x.slice_mut(s![segment.range(), convolution.columns.clone()]);
        run(kernel, convolution, previous, next, columns);
    }
    Ok(())
}

/// `x [rows, channels]` of one segment; `previous` and `next`: `[kernel − 1, channels]`, the oldest token first.
fn run(
    kernel: Kernel,
    convolution: &Convolution,
    previous: &[f32],
    next: &mut [f32],
    mut x: ArrayViewMut2<'_, f32>,
) {
    let (rows, channels) = x.dim();
    let weight = &convolution.weight;
    let kept = weight.ncols() - 1;
    // Taps `[kernel, channels]`: one multiplication of whole rows for each.
    let taps = weight.t().as_standard_layout().into_owned();
    let before = ArrayView2::from_shape((kept, channels), previous).expect("the size of the window");
    let mut inputs = Array2::zeros((kept + rows, channels));
    inputs.slice_mut(s![..kept, ..]).assign(&before);
    inputs.slice_mut(s![kept.., ..]).assign(&x);
    let mut after = ArrayViewMut2::from_shape((kept, channels), next).expect("the size of the window");
    after.assign(&inputs.slice(s![rows.., ..]));
    let mut sum = vec![0.0; channels];
    for (row, mut out) in x.rows_mut().into_iter().enumerate() {
        match &convolution.bias {
            Some(bias) => sum.copy_from_slice(bias),
            None => sum.fill(0.0),
        }
        for (tap, input) in taps.rows().into_iter().zip(inputs.slice(s![row.., ..]).rows()) {
            let (tap, input) = (tap.to_slice().unwrap_or_default(), input.to_slice().unwrap_or_default());
            for ((sum, weight), x) in sum.iter_mut().zip(tap).zip(input) {
                *sum += weight * x;
            }
        }
        let out = out.as_slice_mut().expect("rows are contiguous");
        match convolution.activation {
            Some(activation) => float::activate(kernel, elementwise::function(activation), &sum, out),
            None => out.copy_from_slice(&sum),
        }
    }
}
