//! From a tile of accumulators in L1 to the output: zero points, scales, outlier part, bias, one rounding.

use std::ops::Range;

use half::{bf16, f16};

use crate::convert::{self, TypedMut};
use crate::input::RowTerms;
use crate::linear::Store;
use crate::matrix::Target;
use crate::tile::{Instructions, PANEL, Tile, Vectorized};
use crate::weight::{PackedWeight, inner_length};

/// Largest K for which a corrected accumulator, at most K·254², fits an i32: ⌊(2³¹ − 1)/254²⌋.
const MAX_NARROW_INNER: i64 = 2_147_483_647 / (254 * 254);

/// What the epilogue needs of the columns of one panel.
pub(crate) struct PanelTerms {
    sums: [i32; PANEL],
    steps: [f32; PANEL],
    zero_points: [i32; PANEL],
    has_zero_points: bool,
    bias: [f32; PANEL],
    inner: i64,
    /// First column and number of columns that exist.
    first: usize,
    width: usize,
}

impl PanelTerms {
    pub(crate) fn new(weight: &PackedWeight, panel: usize, bias: Option<&[f32]>) -> Self {
        let terms = weight.columns();
        let first = panel * PANEL;
        let width = PANEL.min(weight.dim().0 - first);
        let mut padded_bias = [0.0; PANEL];
        if let Some(bias) = bias {
            padded_bias[..width].copy_from_slice(&bias[first..first + width]);
        }
        Self {
            sums: std::array::from_fn(|n| terms.sums[first + n]),
            steps: std::array::from_fn(|n| terms.steps[first + n]),
            zero_points: std::array::from_fn(|n| terms.zero_points[first + n]),
            has_zero_points: terms.has_zero_points,
            bias: padded_bias,
            inner: inner_length(weight),
            first,
            width,
        }
    }

    /// `(acc − (z_x + offset)·Σq_w − z_w·Σq_x + K·z_x·z_w)·(s_x/127)·(s_w/127)`; `offset` is what the kernel adds to
    /// the codes of x.
    #[inline(always)]
    fn scale(&self, acc: &[i32; PANEL], row: RowTerms, offset: i32) -> [f32; PANEL] {
        let mut y = [0.0; PANEL];
        // Σq_x − K·z_x, times z_w: the part that exists only for zero-point weights.
        let row_part = i64::from(row.sum) - self.inner * i64::from(row.zero_point);
        if self.inner > MAX_NARROW_INNER && (self.has_zero_points || row.zero_point != 0) {
            for n in 0..PANEL {
                let plain = acc[n].wrapping_sub(offset.wrapping_mul(self.sums[n]));
                let corrected = i64::from(plain)
                    - i64::from(row.zero_point) * i64::from(self.sums[n])
                    - i64::from(self.zero_points[n]) * row_part;
                y[n] = convert::wide_accumulator(corrected) * row.step * self.steps[n];
            }
            return y;
        }
        // The corrected sum fits an i32, so it is exact although each term is taken modulo 2³².
        let (column_factor, row_part) = (row.zero_point + offset, convert::wrap(row_part));
        if self.has_zero_points {
            for n in 0..PANEL {
                let corrected = acc[n]
                    .wrapping_sub(column_factor.wrapping_mul(self.sums[n]))
                    .wrapping_sub(self.zero_points[n].wrapping_mul(row_part));
                y[n] = convert::accumulator(corrected) * row.step * self.steps[n];
            }
        } else {
            for n in 0..PANEL {
                let corrected = acc[n].wrapping_sub(column_factor.wrapping_mul(self.sums[n]));
                y[n] = convert::accumulator(corrected) * row.step * self.steps[n];
            }
        }
        y
    }
}

/// Finishes one tile: scales, outlier part, bias, and the store.
pub(crate) struct Finish<'a> {
    pub(crate) acc: &'a Tile<i32>,
    pub(crate) outlier_part: Option<&'a Tile<f32>>,
    /// The rows of the tile in the output, and what is known of each.
    pub(crate) rows: Range<usize>,
    pub(crate) terms: &'a [RowTerms],
    pub(crate) panel: &'a PanelTerms,
    pub(crate) offset: i32,
    pub(crate) store: Store,
    pub(crate) target: &'a Target<'a>,
}

impl Vectorized for Finish<'_> {
    type Output = ();

    #[inline(always)]
    fn call<I: Instructions>(self, instructions: I) {
        let accumulate = self.store == Store::Accumulate;
        for (r, row) in self.rows.enumerate() {
            let mut y = self.panel.scale(&self.acc.0[r], self.terms[r], self.offset);
            if let Some(outlier_part) = self.outlier_part {
                add(&mut y, &outlier_part.0[r]);
            }
            add(&mut y, &self.panel.bias);
            // SAFETY: tasks write blocks that do not overlap, one tile at a time; row < M, first + width ≤ N.
            match unsafe { self.target.slice(row, self.panel.first, self.panel.width) } {
                TypedMut::F32(target) => {
                    if accumulate {
                        add(&mut y, &padded(target));
                    }
                    store(target, &y);
                }
                TypedMut::F16(target) => {
                    if accumulate {
                        let mut before = [0.0; PANEL];
                        instructions.widen(&padded(target), &mut before);
                        add(&mut y, &before);
                    }
                    let mut rounded = [f16::ZERO; PANEL];
                    instructions.narrow(&y, &mut rounded);
                    store(target, &rounded);
                }
                TypedMut::Bf16(target) => {
                    if accumulate {
                        for (y, before) in y.iter_mut().zip(padded(target)) {
                            *y += convert::bf16_to_f32(before);
                        }
                    }
                    let mut rounded = [bf16::ZERO; PANEL];
                    for (rounded, y) in rounded.iter_mut().zip(y) {
                        *rounded = convert::f32_to_bf16(y);
                    }
                    store(target, &rounded);
                }
            }
        }
    }
}

#[inline(always)]
fn add(y: &mut [f32; PANEL], part: &[f32; PANEL]) {
    for (y, part) in y.iter_mut().zip(part) {
        *y += part;
    }
}

/// What the target holds, with zeros where the panel is wider.
#[inline(always)]
fn padded<T: Copy + Default>(target: &[T]) -> [T; PANEL] {
    if let Ok(whole) = <&[T; PANEL]>::try_from(target) {
        return *whole;
    }
    let mut padded = [T::default(); PANEL];
    padded[..target.len()].copy_from_slice(target);
    padded
}

/// Stores as many values as the target has.
#[inline(always)]
fn store<T: Copy>(target: &mut [T], values: &[T; PANEL]) {
    match <&mut [T; PANEL]>::try_from(&mut *target) {
        Ok(whole) => *whole = *values,
        Err(_) => target.copy_from_slice(&values[..target.len()]),
    }
}

/// `sums[n] = Σ_o x[o]·w[o, n]` over the outliers of one row, in order.
pub(crate) struct SparseRow<'a> {
    pub(crate) outliers: &'a [(u32, f32)],
    pub(crate) panel: &'a [[f32; PANEL]],
    pub(crate) sums: &'a mut [f32; PANEL],
}

impl Vectorized for SparseRow<'_> {
    type Output = ();

    #[inline(always)]
    fn call<I: Instructions>(self, instructions: I) {
        let mut sums = [0.0; PANEL];
        for (position, x) in self.outliers {
            let w = &self.panel[*position as usize];
            for (sum, w) in sums.iter_mut().zip(w) {
                *sum = instructions.multiply_add(*x, *w, *sum);
            }
        }
        *self.sums = sums;
    }
}
