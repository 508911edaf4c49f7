//! Normalisations and activations, row by row.

use ndarray::parallel::prelude::*;
use ndarray::{ArrayView2, ArrayViewMut2, Axis};
use rayon::slice::ParallelSliceMut;

use super::PARALLEL_ROWS;
use crate::backend::NormSpec;
use crate::config::{Activation, NormKind};
use crate::convert;

/// Partial sums that a reduction keeps apart: one zmm or two ymm registers of f32, so that additions overlap.
const LANES: usize = 16;

/// `x = norm(x)` for each row.
pub(super) fn normalize(mut x: ArrayViewMut2<'_, f32>, norm: &NormSpec) {
    let row = |row: &mut [f32]| normalize_row(row, norm);
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
    mut x: ArrayViewMut2<'_, f32>,
    columns: std::ops::Range<usize>,
    norm: &NormSpec,
) {
    for mut row in x.rows_mut() {
        let row = &mut row.as_slice_mut().expect("rows are contiguous")[columns.clone()];
        for stretch in row.chunks_exact_mut(norm.gain.len()) {
            normalize_row(stretch, norm);
        }
    }
}

fn normalize_row(row: &mut [f32], norm: &NormSpec) {
    match norm.kind {
        NormKind::LayerNorm => layer_norm(row, norm),
        NormKind::RmsNorm => rms_norm(row, norm),
    }
}

fn layer_norm(row: &mut [f32], norm: &NormSpec) {
    let count = convert::f32_from_count(row.len());
    let mean = sum(row, |value| value) / count;
    let variance = sum(row, |value| (value - mean) * (value - mean)) / count;
    let inverse = 1.0 / (variance + norm.eps).sqrt();
    for (value, gain) in row.iter_mut().zip(&norm.gain) {
        *value = (*value - mean) * inverse * gain;
    }
    if let Some(bias) = &norm.bias {
        for (value, bias) in row.iter_mut().zip(bias) {
            *value += bias;
        }
    }
}

fn rms_norm(row: &mut [f32], norm: &NormSpec) {
    let mean_square = sum(row, |value| value * value) / convert::f32_from_count(row.len());
    let inverse = 1.0 / (mean_square + norm.eps).sqrt();
    for (value, gain) in row.iter_mut().zip(&norm.gain) {
        *value = *value * inverse * gain;
    }
}

/// `Σ term(x)` in a fixed order that the compiler can vectorise: one sum a lane, the lanes added pairwise.
pub(super) fn sum(values: &[f32], term: impl Fn(f32) -> f32) -> f32 {
    let (blocks, rest) = values.as_chunks::<LANES>();
    let mut lanes = [0.0_f32; LANES];
    for block in blocks {
        for (lane, value) in lanes.iter_mut().zip(block) {
            *lane += term(*value);
        }
    }
    add_lanes(lanes) + rest.iter().map(|value| term(*value)).sum::<f32>()
}

/// `Σ a·b`, in the same order.
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let ((a_blocks, a_rest), (b_blocks, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    let mut lanes = [0.0_f32; LANES];
    for (a, b) in a_blocks.iter().zip(b_blocks) {
        for ((lane, a), b) in lanes.iter_mut().zip(a).zip(b) {
            *lane += a * b;
        }
    }
    add_lanes(lanes) + a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum::<f32>()
}

fn add_lanes(lanes: [f32; LANES]) -> f32 {
    let mut lanes = lanes;
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] += lanes[lane + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// `out = act(x)`, `out` of the size of `x`.
pub(super) fn activate(x: ArrayView2<'_, f32>, activation: Activation, out: &mut [f32]) {
    let width = x.ncols();
    each_row(x, width, out, |x, out| {
        for (out, x) in out.iter_mut().zip(x) {
            *out = apply(activation, *x);
        }
    });
}

/// `out = act(x[:, ..K])·x[:, K..]`.
pub(super) fn gate(x: ArrayView2<'_, f32>, activation: Activation, out: &mut [f32]) {
    let width = x.ncols() / 2;
    each_row(x, width, out, |x, out| {
        let (gate, up) = x.split_at(width);
        for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
            *out = apply(activation, *gate) * up;
        }
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

#[inline]
fn apply(activation: Activation, x: f32) -> f32 {
    match activation {
        Activation::Relu => x.max(0.0),
        Activation::Gelu => 0.5 * x * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2)),
        Activation::GeluTanh => {
            // √(2/π)
            const SCALE: f32 = 0.797_884_6;
            0.5 * x * (1.0 + (SCALE * (x + 0.044_715 * x * x * x)).tanh())
        }
        Activation::Silu => x / (1.0 + (-x).exp()),
    }
}

/// The error function, to about 1e-7 absolute: series 7.1.5 of Abramowitz and Stegun for small arguments, the continued
/// fraction 7.1.14 for large ones, in f64.
fn erf(x: f32) -> f32 {
    let x = f64::from(x);
    let magnitude = x.abs();
    if magnitude.is_nan() {
        return f32::NAN;
    }
    let value = if magnitude < 2.5 {
        let square = magnitude * magnitude;
        let (mut term, mut sum, mut n) = (magnitude, magnitude, 1.0);
        while term.abs() > 1e-12 * sum.abs() {
            term *= -square / n;
            sum += term / (2.0 * n + 1.0);
            n += 1.0;
        }
        sum * std::f64::consts::FRAC_2_SQRT_PI
    } else if magnitude < 6.0 {
        let mut fraction = magnitude;
        for n in (1..=40_u32).rev() {
            fraction = magnitude + f64::from(n) * 0.5 / fraction;
        }
        1.0 - (-magnitude * magnitude).exp() / fraction / std::f64::consts::PI.sqrt()
    } else {
        1.0
    };
    convert::f32_from(value.copysign(x))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn erf_at_known_points() {
        // Abramowitz and Stegun, table 7.1, and on both sides of the change of method.
        for (x, expected) in [
            (0.0, 0.0),
            (0.5, 0.520_499_9),
            (1.0, 0.842_700_8),
            (2.0, 0.995_322_3),
            (2.49, 0.999_570_7),
            (2.51, 0.999_614_3),
            (4.0, 1.0),
            (9.0, 1.0),
        ] {
            assert!((erf(x) - expected).abs() < 5e-7, "erf({x}) = {}", erf(x));
            assert_eq!(erf(-x), -erf(x));
        }
        assert!(erf(f32::NAN).is_nan());
    }

    #[test]
    fn sums_cover_every_element() {
        for length in [0, 1, 15, 16, 17, 33] {
            let values = vec![1.0; length];
            assert_eq!(sum(&values, |value| value), convert::f32_from_count(length));
            assert_eq!(dot(&values, &values), convert::f32_from_count(length));
        }
    }
}
