//! From a tile of accumulators in L1 to the output: zero points, scales, outlier part, bias, one rounding.

use half::slice::HalfFloatSliceExt;

use crate::convert::{self, TypedMut};
use crate::input::RowTerms;
use crate::linear::Store;
use crate::tile::{PANEL, Tile, Vectorized, multiply_add};
use crate::weight::{PackedWeight, inner_length};

/// Largest K for which a corrected accumulator, at most K·254², fits an i32: ⌊(2³¹ − 1)/254²⌋.
const MAX_NARROW_INNER: i64 = 2_147_483_647 / (254 * 254);

/// `result[r][n] = (acc − (z_x + offset)·Σq_w − z_w·Σq_x + K·z_x·z_w)·(s_x/127)·(s_w/127)`.
pub(crate) struct Scale<'a> {
    pub(crate) acc: &'a Tile<i32>,
    pub(crate) rows: &'a [RowTerms],
    pub(crate) weight: &'a PackedWeight,
    pub(crate) panel: usize,
    /// What the kernel adds to the codes of x.
    pub(crate) offset: i32,
    pub(crate) result: &'a mut Tile<f32>,
}

impl Vectorized for Scale<'_> {
    type Output = ();

    #[inline(always)]
    fn call<const FMA: bool>(self) {
        let Self { acc, rows, weight, panel, offset, result } = self;
        let terms = weight.columns();
        let span = panel * PANEL..(panel + 1) * PANEL;
        let (sums, steps) = (&terms.sums[span.clone()], &terms.steps[span.clone()]);
        let zeros = &terms.zero_points[span];
        let inner = inner_length(weight);
        for ((acc, row), result) in acc.0.iter().zip(rows).zip(&mut result.0) {
            // Σq_x − K·z_x, times z_w: the part that exists only for zero-point weights.
            let row_part = i64::from(row.sum) - inner * i64::from(row.zero_point);
            if inner > MAX_NARROW_INNER && (terms.has_zero_points || row.zero_point != 0) {
                for n in 0..PANEL {
                    let plain = acc[n].wrapping_sub(offset.wrapping_mul(sums[n]));
                    let corrected = i64::from(plain)
                        - i64::from(row.zero_point) * i64::from(sums[n])
                        - i64::from(zeros[n]) * row_part;
                    result[n] = convert::wide_accumulator(corrected) * row.step * steps[n];
                }
                continue;
            }
            // The corrected sum fits an i32, so it is exact although each term is taken modulo 2³².
            let (column_factor, row_part) = (row.zero_point + offset, convert::wrap(row_part));
            if terms.has_zero_points {
                for n in 0..PANEL {
                    let corrected = acc[n]
                        .wrapping_sub(column_factor.wrapping_mul(sums[n]))
                        .wrapping_sub(zeros[n].wrapping_mul(row_part));
                    result[n] = convert::accumulator(corrected) * row.step * steps[n];
                }
            } else {
                for n in 0..PANEL {
                    let corrected = acc[n].wrapping_sub(column_factor.wrapping_mul(sums[n]));
                    result[n] = convert::accumulator(corrected) * row.step * steps[n];
                }
            }
        }
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
    fn call<const FMA: bool>(self) {
        let mut sums = [0.0; PANEL];
        for (position, x) in self.outliers {
            let w = &self.panel[*position as usize];
            for (sum, w) in sums.iter_mut().zip(w) {
                *sum = multiply_add::<FMA>(*x, *w, *sum);
            }
        }
        *self.sums = sums;
    }
}

/// Adds outlier part and bias to one row of a tile and stores it, rounded once.
pub(crate) struct Finish<'a> {
    pub(crate) int8_part: &'a [f32; PANEL],
    pub(crate) outlier_part: Option<&'a [f32; PANEL]>,
    pub(crate) bias: &'a [f32; PANEL],
    pub(crate) store: Store,
    pub(crate) target: TypedMut<'a>,
}

impl Vectorized for Finish<'_> {
    type Output = ();

    #[inline(always)]
    fn call<const FMA: bool>(self) {
        let mut y = *self.int8_part;
        if let Some(outlier_part) = self.outlier_part {
            y.iter_mut().zip(outlier_part).for_each(|(y, part)| *y += part);
        }
        y.iter_mut().zip(self.bias).for_each(|(y, bias)| *y += bias);
        let accumulate = self.store == Store::Accumulate;
        match self.target {
            TypedMut::F32(target) => {
                if accumulate {
                    y.iter_mut().zip(&*target).for_each(|(y, before)| *y += before);
                }
                target.copy_from_slice(&y[..target.len()]);
            }
            TypedMut::F16(target) => {
                if accumulate {
                    let mut before = [0.0; PANEL];
                    target.convert_to_f32_slice(&mut before[..target.len()]);
                    y.iter_mut().zip(before).for_each(|(y, before)| *y += before);
                }
                target.convert_from_f32_slice(&y[..target.len()]);
            }
            TypedMut::Bf16(target) => {
                if accumulate {
                    y.iter_mut().zip(&*target).for_each(|(y, before)| *y += convert::bf16_to_f32(*before));
                }
                target.iter_mut().zip(y).for_each(|(target, y)| *target = convert::f32_to_bf16(y));
            }
        }
    }
}
