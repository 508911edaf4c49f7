//! Normalisations and activations, row by row.

use int8_cpu::Kernel;
use int8_cpu::float::{self, Function};
use ndarray::parallel::prelude::*;
use ndarray::{ArrayView2, ArrayViewMut2, Axis};
use rayon::slice::ParallelSliceMut;

use super::PARALLEL_ROWS;
use crate::backend::NormSpec;
use crate::config::{Activation, NormKind};

/// `x = norm(x)` for each row.
pub(super) fn normalize(kernel: Kernel, mut x: ArrayViewMut2<'_, f32>, norm: &NormSpec) {
    let row = |row: &mut [f32]| normalize_row(kernel, row, norm);
    if x.nrows() < PARALLEL_ROWS {
        x.rows_mut()
            .into_iter()
            .for_each(|mut values| row(values.as_slice_mut().expect("rows are contiguous")));
    } else {
        x.axis_iter_mut(Axis(0))
            .into_par_iter()
            .for_each(|mut values| row(values.as_slice_mut().expect("rows are contiguous")));
    }
}

/// Normalises each stretch of the norm's width in `columns`, row by row.
pub(super) fn normalize_columns(
    kernel: Kernel,
    mut x: ArrayViewMut2<'_, f32>,
    columns: std::ops::Range<usize>,
    norm: &NormSpec,
) {
    for mut row in x.rows_mut() {
        let row = &mut row.as_slice_mut().expect("rows are contiguous")[columns.clone()];
        for stretch in row.chunks_exact_mut(norm.gain.len()) {
            normalize_row(kernel, stretch, norm);
        }
    }
}

fn normalize_row(kernel: Kernel, row: &mut [f32], norm: &NormSpec) {
    match norm.kind {
        NormKind::LayerNorm => float::layer_norm(kernel, row, &norm.gain, norm.bias.as_deref(), norm.eps),
        NormKind::RmsNorm => float::rms_norm(kernel, row, &norm.gain, norm.eps),
    }
}

/// `out = act(x)`, `out` of the size of `x`.
pub(super) fn activate(kernel: Kernel, x: ArrayView2<'_, f32>, activation: Activation, out: &mut [f32]) {
    let width = x.ncols();
    let function = function(activation);
    each_row(x, width, out, |x, out| float::activate(kernel, function, x, out));
}

/// `out = act(x[:, ..K])·x[:, K..]`.
pub(super) fn gate(kernel: Kernel, x: ArrayView2<'_, f32>, activation: Activation, out: &mut [f32]) {
    let width = x.ncols() / 2;
    let function = function(activation);
    each_row(x, width, out, |x, out| {
        let (gate, up) = x.split_at(width);
        float::gate(kernel, function, gate, up, out);
    });
}

fn each_row(x: ArrayView2<'_, f32>, width: usize, out: &mut [f32], row: impl Fn(&[f32], &mut [f32]) + Sync) {
    let run = |(x, out): (usize, &mut [f32]), source: &ArrayView2<'_, f32>| {
        row(source.row(x).to_slice().expect("rows are contiguous"), out);
    };
    if x.nrows() < PARALLEL_ROWS {
        out.chunks_exact_mut(width).enumerate().for_each(|pair| run(pair, &x));
    } else {
        out.par_chunks_exact_mut(width).enumerate().for_each(|pair| run(pair, &x));
    }
}

fn function(activation: Activation) -> Function {
    match activation {
        Activation::Relu => Function::Relu,
        Activation::Gelu => Function::Gelu,
        Activation::GeluTanh => Function::GeluTanh,
        Activation::Silu => Function::Silu,
    }
}
