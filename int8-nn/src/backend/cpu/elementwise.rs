//! Normalisations in place, row by row.

use int8_cpu::Kernel;
use int8_cpu::float::{self, Function};
use ndarray::parallel::prelude::*;
use ndarray::{ArrayView2, ArrayViewMut2, Axis};

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

/// Normalises each run of the norm's width among `columns`, row by row.
pub(super) fn normalize_columns(
    kernel: Kernel,
    mut x: ArrayViewMut2<'_, f32>,
    columns: std::ops::Range<usize>,
    norm: &NormSpec,
) {
    for mut row in x.rows_mut() {
        let row = &mut row.as_slice_mut().expect("rows are contiguous")[columns.clone()];
        for run in row.chunks_exact_mut(norm.gain.len()) {
            normalize_row(kernel, run, norm);
        }
    }
}

fn normalize_row(kernel: Kernel, row: &mut [f32], norm: &NormSpec) {
    match norm.kind {
        NormKind::LayerNorm => float::layer_norm(kernel, row, &norm.gain, norm.bias.as_deref(), norm.eps),
        NormKind::RmsNorm => float::rms_norm(kernel, row, &norm.gain, norm.eps),
    }
}

/// `x = act(gates)·x`, row by row.
pub(super) fn gate(
    kernel: Kernel,
    mut x: ArrayViewMut2<'_, f32>,
    gates: ArrayView2<'_, f32>,
    activation: Activation,
) {
    let mut factors = vec![0.0; x.ncols()];
    for (mut row, gates) in x.rows_mut().into_iter().zip(gates.rows()) {
        let row = row.as_slice_mut().expect("rows are contiguous");
        factors.copy_from_slice(row);
        float::gate(kernel, function(activation), gates.to_slice().expect("columns are"), &factors, row);
    }
}

/// The activation as the kernels know it.
pub(super) fn function(activation: Activation) -> Function {
    match activation {
        Activation::Relu => Function::Relu,
        Activation::Gelu => Function::Gelu,
        Activation::GeluTanh => Function::GeluTanh,
        Activation::Silu => Function::Silu,
        Activation::ReluSquared => Function::ReluSquared,
        Activation::GeluClipped => Function::GeluClipped,
        Activation::QuickGelu => Function::QuickGelu,
        Activation::Tanh => Function::Tanh,
        Activation::Sigmoid => Function::Sigmoid,
        Activation::Mish => Function::Mish,
    }
}
