//! Mixers with a recurrent state. Each token's result depends on its own sequence alone, and is the same whether a text comes in
//! one forward or in several: tokens are taken one after the other, threads share out channels or heads.

mod convolution;
mod gated_delta;
mod head_scan;
mod lightning;
#[cfg(test)]
mod linear_attention_tests;
mod selective_scan;
mod short_convolution;
mod states;
#[cfg(test)]
mod tests;

use int8_cpu::Kernel;
use ndarray::{ArrayView2, ArrayViewMut2, Axis, s};
use rayon::prelude::*;

use super::{CpuActivations, Rows};
use crate::Error;
use crate::backend::{Operand, Recurrence};

pub(super) use convolution::convolve;
pub(super) use states::States;

/// Multiply-adds below which a recurrence runs on the calling thread: starting others costs more.
const PARALLEL_WORK: usize = 1 << 15;

/// `out [rows, outputs]` = the recurrence of `layer` over `inputs`, each segment from the state of its sequence.
pub(super) fn recur(
    kernel: Kernel,
    segments: &[Rows],
    states: &mut States,
    layer: usize,
    inputs: &[&CpuActivations],
    out: &mut CpuActivations,
) -> Result<(), Error> {
    let spec = states.layer(layer)?;
    let Some(recurrence) = &spec.recurrence else {
        return Err(Error::Unsupported(format!("layer {layer} has no recurrence")));
    };
    let rows = inputs.first().map_or(0, |input| input.rows);
    let mut out = out.resize(rows);
    for segment in segments {
        let (previous, next) = states.state(layer, segment)?;
        next.copy_from_slice(previous);
        let of = Inputs { inputs, segment };
        let out = out.slice_mut(s![segment.range(), ..]);
        match recurrence {
            Recurrence::SelectiveScan(scan) => selective_scan::run(scan, &of, next, out),
            Recurrence::HeadScan(scan) => head_scan::run(scan, &of, next, out),
            Recurrence::GatedDelta(rule) => gated_delta::run(rule, &of, next, out),
            Recurrence::Lightning(spec) => lightning::run(kernel, spec, &of, next, out),
            Recurrence::ShortConvolution(spec) => short_convolution::run(spec, &of, next, out),
        }
    }
    Ok(())
}

/// The inputs of a recurrence for one segment.
struct Inputs<'a> {
    inputs: &'a [&'a CpuActivations],
    segment: &'a Rows,
}

impl<'a> Inputs<'a> {
    /// `[rows of the segment, columns]`
    fn of(&self, operand: &Operand) -> ArrayView2<'a, f32> {
        let view = self.inputs[operand.input].view();
        view.slice_move(s![self.segment.range(), operand.columns.clone()])
    }

    fn rows(&self) -> usize {
        self.segment.rows
    }
}

/// Runs `unit(index, state, y)` for each unit of a recurrence, a head or some channels, with its part of the state and of the
/// output: `y [rows, width]` becomes columns `index·width..` of `out`. `work`: multiply-adds of all.
fn each_unit(
    state: &mut [f32],
    states: usize,
    width: usize,
    mut out: ArrayViewMut2<'_, f32>,
    work: usize,
    unit: impl Fn(usize, &mut [f32], &mut [f32]) + Sync,
) {
    let rows = out.nrows();
    let mut y = vec![0.0; rows * out.ncols()];
    if work < PARALLEL_WORK {
        let units = state.chunks_mut(states).zip(y.chunks_mut(rows * width));
        units.enumerate().for_each(|(index, (state, y))| unit(index, state, y));
    } else {
        let units = state.par_chunks_mut(states).zip(y.par_chunks_mut(rows * width));
        units.enumerate().for_each(|(index, (state, y))| unit(index, state, y));
    }
    for (index, y) in y.chunks(rows * width).enumerate() {
        // The last unit may be narrower.
        let (first, columns) = (index * width, y.len() / rows);
        let y = ArrayView2::from_shape((rows, columns), y).expect("whole rows");
        out.slice_mut(s![.., first..first + columns]).assign(&y);
    }
}

/// `ln(1 + eˣ)`, as PyTorch computes it: `x` above 20.
fn softplus(x: f32) -> f32 {
    if x > 20.0 { x } else { x.exp().ln_1p() }
}

/// `Σ aᵢ·bᵢ` in eight chains, which vector units add at once.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    const CHAINS: usize = 8;
    let mut sums = [0.0_f32; CHAINS];
    let (a_chunks, b_chunks) = (a.chunks_exact(CHAINS), b.chunks_exact(CHAINS));
    let rest = a_chunks.remainder().iter().zip(b_chunks.remainder());
    let rest: f32 = rest.map(|(a, b)| a * b).sum();
    for (a, b) in a_chunks.zip(b_chunks) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    sums.iter().sum::<f32>() + rest
}

/// A row of a slice of columns.
fn row_of<'a>(values: &ArrayView2<'a, f32>, row: usize) -> &'a [f32] {
    values.index_axis_move(Axis(0), row).to_slice().expect("columns of row-major activations are contiguous")
}
