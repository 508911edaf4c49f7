//! From a tile of accumulators in L1 to the output: zero points, scales, outlier part, bias, one rounding.

use std::marker::PhantomData;
use std::ops::Range;

use half::{bf16, f16};

use int8_core::FloatType;

use crate::convert;
use crate::gemm::integer::excess;
use crate::gemm::operands::Tile;
use crate::gemm::panel::TileProduct;
use crate::layout::NR;
use crate::matrix::{Store, Target};
use crate::pack::weight::{PackedWeight, inner_length};
use crate::prefetch;
use crate::prologue::terms::RowTerms;
use crate::simd::{FloatLane, Instructions, LANES, Vectorize, Vectorized};

/// Largest K for which a corrected accumulator, at most K·254², fits an i32: ⌊(2³¹ − 1)/254²⌋.
const MAX_NARROW_INNER: i64 = 2_147_483_647 / (254 * 254);

/// What the epilogue needs of the columns of one panel.
pub(crate) struct PanelTerms<'a> {
    sums: &'a [i32; NR],
    steps: &'a [f32; NR],
    zero_points: &'a [i32; NR],
    has_zero_points: bool,
    bias: [f32; NR],
    inner: i64,
    /// First column and number of columns that exist.
    first: usize,
    width: usize,
}

impl<'a> PanelTerms<'a> {
    pub(crate) fn new(weight: &'a PackedWeight, panel: usize, bias: Option<&[f32]>) -> Self {
        let terms = weight.columns();
        let first = panel * NR;
        let width = NR.min(weight.dim().0 - first);
        let mut padded_bias = [0.0; NR];
        if let Some(bias) = bias {
            padded_bias[..width].copy_from_slice(&bias[first..first + width]);
        }
        Self {
            sums: &terms.sums.as_chunks().0[panel],
            steps: &terms.steps.as_chunks().0[panel],
            zero_points: &terms.zero_points.as_chunks().0[panel],
            has_zero_points: terms.has_zero_points,
            bias: padded_bias,
            inner: inner_length(weight),
            first,
            width,
        }
    }

    /// The first column of the panel, and how many exist.
    pub(crate) fn columns(&self) -> (usize, usize) {
        (self.first, self.width)
    }

    /// Prefetches what `new` reads of a panel: waiting for it takes a tenth as long as the product of a short panel.
    pub(crate) fn prefetch(weight: &PackedWeight, panel: usize) {
        let terms = weight.columns();
        let first = panel * NR;
        for line in [first, first + LANES] {
            prefetch::prefetch(terms.sums[line..].as_ptr());
            prefetch::prefetch(terms.steps[line..].as_ptr());
        }
    }

    /// `(acc − (z_x + offset)·Σq_w − z_w·Σq_x + K·z_x·z_w)·(s_x/127)`; `offset` is what the kernel adds to
    /// the codes of x, and `excess` is what [`excess`] says, if it is not 0. `WIDE` says whether K is such that the corrected sum
    /// may need an i64.
    #[inline(always)]
    fn scale<I: Instructions, const WIDE: bool>(
        &self,
        simd: I,
        acc: &[i32; NR],
        row: RowTerms,
        offset: u8,
        excess: [I::Ints; 2],
    ) -> [I::Floats; 2] {
        // Σq_x − K·z_x, times z_w: the part that exists only for zero-point weights.
        let row_part = i64::from(row.sum) - self.inner * i64::from(row.zero_point);
        if WIDE && (self.has_zero_points || row.zero_point != 0) {
            return self.scale_wide(simd, acc, row, row_part, offset);
        }
        // The corrected sum fits an i32, so it is exact although each term is taken modulo 2³².
        let zero_point = simd.splat_int(row.zero_point);
        let row_part = simd.splat_int(convert::wrap(row_part));
        let row_step = simd.splat(row.step);
        let mut y = [simd.splat(0.0); 2];
        for (half, y) in y.iter_mut().enumerate() {
            let mut corrected = simd.load_int(&acc.as_chunks().0[half]);
            if offset != 0 {
                corrected = simd.add_int(corrected, excess[half]);
            }
            if row.zero_point != 0 {
                let sums = simd.load_int(&self.sums.as_chunks().0[half]);
                corrected = simd.subtract_product(corrected, zero_point, sums);
            }
            if self.has_zero_points {
                let zero_points = simd.load_int(&self.zero_points.as_chunks().0[half]);
                corrected = simd.subtract_product(corrected, row_part, zero_points);
            }
            *y = simd.multiply(simd.to_floats(corrected), row_step);
        }
        y
    }

    /// The same where the corrected sum needs an i64.
    #[cold]
    fn scale_wide<I: Instructions>(
        &self,
        simd: I,
        acc: &[i32; NR],
        row: RowTerms,
        row_part: i64,
        offset: u8,
    ) -> [I::Floats; 2] {
        let (sums, zero_points) = (self.sums, self.zero_points);
        let mut y = [[0.0; LANES]; 2];
        for (n, y) in y.as_flattened_mut().iter_mut().enumerate() {
            // The plain product fits an i32.
            let plain = acc[n].wrapping_sub(i32::from(offset).wrapping_mul(sums[n]));
            let corrected = i64::from(plain)
                - i64::from(row.zero_point) * i64::from(sums[n])
                - i64::from(zero_points[n]) * row_part;
            *y = convert::wide_accumulator(corrected) * row.step;
        }
        [simd.load(&y[0]), simd.load(&y[1])]
    }
}

/// The outlier part of a tile, `Σ_o x[r, o]·w[o, n]`.
pub(crate) enum OutlierPart<'a> {
    /// There are no outliers.
    None,
    /// Of a single column: its values in the rows of the tile, and in the panel.
    One { x: &'a [f32], w: &'a [f32; NR] },
    /// Of several.
    Sums(&'a Tile<f32>),
    /// The same without the scales of the output channels.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "kernels without tiles of bf16"))]
    Codes(&'a Tile<f32>),
}

impl OutlierPart<'_> {
    /// `y` with that of one row added.
    #[inline(always)]
    fn add_to<I: Instructions>(
        &self,
        simd: I,
        row: usize,
        steps: [I::Floats; 2],
        y: [I::Floats; 2],
    ) -> [I::Floats; 2] {
        let part = match self {
            Self::None => return y,
            Self::One { x, w } => {
                let (x, w) = (simd.splat(x[row]), w.as_chunks::<LANES>().0);
                [simd.multiply(x, simd.load(&w[0])), simd.multiply(x, simd.load(&w[1]))]
            }
            Self::Sums(sums) => {
                let sums = sums.0[row].as_chunks::<LANES>().0;
                [simd.load(&sums[0]), simd.load(&sums[1])]
            }
            Self::Codes(sums) => {
                let sums = sums.0[row].as_chunks::<LANES>().0;
                [simd.multiply(simd.load(&sums[0]), steps[0]), simd.multiply(simd.load(&sums[1]), steps[1])]
            }
        };
        [simd.add(y[0], part[0]), simd.add(y[1], part[1])]
    }
}

/// Finishes one tile: scales, outlier part, bias, and the store.
pub(crate) struct Epilogue<'a, K> {
    /// The kernel of the product.
    pub(crate) kernel: PhantomData<K>,
    pub(crate) product: TileProduct<'a>,
    pub(crate) outliers: OutlierPart<'a>,
    /// The rows of the tile in the output, and what is known of each (nothing where the product is finished).
    pub(crate) rows: Range<usize>,
    pub(crate) terms: &'a [RowTerms],
    pub(crate) panel: &'a PanelTerms<'a>,
    pub(crate) store: Store,
    pub(crate) target: &'a Target<'a>,
}

impl<K: Vectorize> Vectorized for Epilogue<'_, K> {
    type Output = ();

    #[inline(always)]
    fn call<I: Instructions>(self, simd: I) {
        match (self.target.float_type(), self.panel.inner > MAX_NARROW_INNER) {
            (FloatType::F32, false) => self.store_as::<I, f32, false>(simd),
            (FloatType::F32, true) => self.store_as::<I, f32, true>(simd),
            (FloatType::F16, false) => self.store_as::<I, f16, false>(simd),
            (FloatType::F16, true) => self.store_as::<I, f16, true>(simd),
            (FloatType::Bf16, false) => self.store_as::<I, bf16, false>(simd),
            (FloatType::Bf16, true) => self.store_as::<I, bf16, true>(simd),
        }
    }
}

impl<K: Vectorize> Epilogue<'_, K> {
    /// To a target of elements T. What can be decided before the loop over the rows is: a row is 32 numbers, some twenty
    /// instructions.
    #[inline(always)]
    fn store_as<I: Instructions, T: FloatLane, const WIDE: bool>(self, simd: I) {
        let (bias, _) = self.panel.bias.as_chunks::<LANES>();
        let bias = [simd.load(&bias[0]), simd.load(&bias[1])];
        let excess = excess(simd, i32::from(K::CODE_OFFSET), self.panel.sums);
        let steps = self.panel.steps.as_chunks::<LANES>().0;
        let steps = [simd.load(&steps[0]), simd.load(&steps[1])];
        for (r, row) in self.rows.enumerate() {
            let y = match self.product {
                TileProduct::Integers(acc) => {
                    let scaled =
                        self.panel.scale::<I, WIDE>(simd, &acc.0[r], self.terms[r], K::CODE_OFFSET, excess);
                    [simd.multiply(scaled[0], steps[0]), simd.multiply(scaled[1], steps[1])]
                }
                TileProduct::Floats(product) => {
                    let part = product.0[r].as_chunks::<LANES>().0;
                    [simd.load(&part[0]), simd.load(&part[1])]
                }
            };
            // Each sum is rounded for itself, in the order of the reference: the logits of a small model tell the difference.
            let y = self.outliers.add_to(simd, r, steps, y);
            let y = [simd.add(y[0], bias[0]), simd.add(y[1], bias[1])];
            // SAFETY: blocks do not overlap, and each is taken by one thread; row < M, first + width ≤ N; T is what
            // the target says.
            let target = unsafe { self.target.slice::<T>(row, self.panel.first, self.panel.width) };
            match <&mut [T; NR]>::try_from(&mut *target) {
                Ok(whole) => store_row(simd, y, self.store, whole),
                Err(_) => {
                    let mut padded = [T::default(); NR];
                    padded[..target.len()].copy_from_slice(target);
                    store_row(simd, y, self.store, &mut padded);
                    target.copy_from_slice(&padded[..target.len()]);
                }
            }
        }
    }
}

/// `to = y`, or `to = to + y`.
#[inline(always)]
fn store_row<I: Instructions, T: FloatLane>(simd: I, y: [I::Floats; 2], store: Store, to: &mut [T; NR]) {
    let y = match store {
        Store::Overwrite => y,
        Store::Accumulate => {
            let before = to.as_chunks::<LANES>().0;
            [simd.add(y[0], T::load(simd, &before[0])), simd.add(y[1], T::load(simd, &before[1]))]
        }
    };
    T::store_pair(simd, y, to);
}

/// `sums[n] = Σ_o x[o]·w[o, n]` over the outliers of one row, in order.
pub(crate) struct SparseRow<'a> {
    pub(crate) outliers: &'a [(u32, f32)],
    pub(crate) panel: &'a [[f32; NR]],
    pub(crate) sums: &'a mut [f32; NR],
}

impl Vectorized for SparseRow<'_> {
    type Output = ();

    #[inline(always)]
    fn call<I: Instructions>(self, simd: I) {
        let mut sums = [simd.splat(0.0); 2];
        for (position, x) in self.outliers {
            let w = self.panel[*position as usize].as_chunks::<LANES>().0;
            let x = simd.splat(*x);
            sums = [
                simd.multiply_add(x, simd.load(&w[0]), sums[0]),
                simd.multiply_add(x, simd.load(&w[1]), sums[1]),
            ];
        }
        for (sums, to) in sums.into_iter().zip(self.sums.as_chunks_mut().0) {
            simd.store(sums, to);
        }
    }
}
