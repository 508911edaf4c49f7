//! From a tile of accumulators in L1 to the output: zero points, scales, outlier part, bias, one rounding.

use std::marker::PhantomData;
use std::ops::Range;

use half::{bf16, f16};

use crate::convert::{self, Kind};
use crate::input::RowTerms;
use crate::linear::Store;
use crate::matrix::Target;
use crate::tile::{self, Instructions, LANES, Lane, PANEL, Tile, TileKernel, Vectorized};
use crate::weight::{PackedWeight, inner_length};

/// Largest K for which a corrected accumulator, at most K·254², fits an i32: ⌊(2³¹ − 1)/254²⌋.
const MAX_NARROW_INNER: i64 = 2_147_483_647 / (254 * 254);

/// What the epilogue needs of the columns of one panel.
pub(crate) struct PanelTerms<'a> {
    sums: &'a [i32; PANEL],
    steps: &'a [f32; PANEL],
    zero_points: &'a [i32; PANEL],
    has_zero_points: bool,
    bias: [f32; PANEL],
    inner: i64,
    /// First column and number of columns that exist.
    first: usize,
    width: usize,
}

impl<'a> PanelTerms<'a> {
    pub(crate) fn new(weight: &'a PackedWeight, panel: usize, bias: Option<&[f32]>) -> Self {
        let terms = weight.columns();
        let first = panel * PANEL;
        let width = PANEL.min(weight.dim().0 - first);
        let mut padded_bias = [0.0; PANEL];
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
    pub(crate) fn fetch(weight: &PackedWeight, panel: usize) {
        let terms = weight.columns();
        let first = panel * PANEL;
        for line in [first, first + LANES] {
            tile::fetch(terms.sums[line..].as_ptr());
            tile::fetch(terms.steps[line..].as_ptr());
        }
    }

    /// `(acc − (z_x + offset)·Σq_w − z_w·Σq_x + K·z_x·z_w)·(s_x/127)`; `offset` is what the kernel adds to
    /// the codes of x, and `excess` is what [`excess`] says, if it is not 0. `WIDE` says whether K is such that the corrected sum
    /// may need an i64.
    #[inline(always)]
    fn scale<I: Instructions, const WIDE: bool>(
        &self,
        simd: I,
        acc: &[i32; PANEL],
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
        acc: &[i32; PANEL],
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

/// `−offset·Σq_w`, modulo 2³²: what takes the kernel's offset out of the accumulators of a panel's columns.
#[inline(always)]
pub(crate) fn excess<I: Instructions>(simd: I, offset: i32, sums: &[i32; PANEL]) -> [I::Ints; 2] {
    let (nothing, offset, sums) = (simd.splat_int(0), simd.splat_int(offset), sums.as_chunks().0);
    [
        simd.subtract_product(nothing, offset, simd.load_int(&sums[0])),
        simd.subtract_product(nothing, offset, simd.load_int(&sums[1])),
    ]
}

/// The int8 part of a tile.
#[derive(Clone, Copy)]
pub(crate) enum Product<'a> {
    /// Accumulators over all of K, still to be corrected and scaled.
    Integers(&'a Tile<i32>),
    /// Finished: constants for groups of K are applied on the way.
    Floats(&'a Tile<f32>),
}

/// The outlier part of a tile, `Σ_o x[r, o]·w[o, n]`.
pub(crate) enum OutlierPart<'a> {
    /// There are no outliers.
    None,
    /// Of a single column: its values in the rows of the tile, and in the panel.
    One { x: &'a [f32], w: &'a [f32; PANEL] },
    /// Of several.
    Sums(&'a Tile<f32>),
}

impl OutlierPart<'_> {
    /// `y` with that of one row added.
    #[inline(always)]
    fn add_to<I: Instructions>(&self, simd: I, row: usize, y: [I::Floats; 2]) -> [I::Floats; 2] {
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
        };
        [simd.add(y[0], part[0]), simd.add(y[1], part[1])]
    }
}

/// Finishes one tile: scales, outlier part, bias, and the store.
pub(crate) struct Finish<'a, K> {
    /// The kernel of the product.
    pub(crate) kernel: PhantomData<K>,
    pub(crate) product: Product<'a>,
    pub(crate) outliers: OutlierPart<'a>,
    /// The rows of the tile in the output, and what is known of each (nothing where the product is finished).
    pub(crate) rows: Range<usize>,
    pub(crate) terms: &'a [RowTerms],
    pub(crate) panel: &'a PanelTerms<'a>,
    pub(crate) store: Store,
    pub(crate) target: &'a Target<'a>,
}

impl<K: TileKernel> Vectorized for Finish<'_, K> {
    type Output = ();

    #[inline(always)]
    fn call<I: Instructions>(self, simd: I) {
        match (self.target.kind(), self.panel.inner > MAX_NARROW_INNER) {
            (Kind::F32, false) => self.store_as::<I, f32, false>(simd),
            (Kind::F32, true) => self.store_as::<I, f32, true>(simd),
            (Kind::F16, false) => self.store_as::<I, f16, false>(simd),
            (Kind::F16, true) => self.store_as::<I, f16, true>(simd),
            (Kind::Bf16, false) => self.store_as::<I, bf16, false>(simd),
            (Kind::Bf16, true) => self.store_as::<I, bf16, true>(simd),
        }
    }
}

impl<K: TileKernel> Finish<'_, K> {
    /// To a target of elements T. What can be decided before the loop over the rows is: a row is 32 numbers, some twenty
    /// instructions.
    #[inline(always)]
    fn store_as<I: Instructions, T: Lane, const WIDE: bool>(self, simd: I) {
        let (bias, _) = self.panel.bias.as_chunks::<LANES>();
        let bias = [simd.load(&bias[0]), simd.load(&bias[1])];
        let excess = excess(simd, i32::from(K::OFFSET), self.panel.sums);
        let steps = self.panel.steps.as_chunks::<LANES>().0;
        let steps = [simd.load(&steps[0]), simd.load(&steps[1])];
        for (r, row) in self.rows.enumerate() {
            let y = match self.product {
                Product::Integers(acc) => {
                    let scaled =
                        self.panel.scale::<I, WIDE>(simd, &acc.0[r], self.terms[r], K::OFFSET, excess);
                    [simd.multiply(scaled[0], steps[0]), simd.multiply(scaled[1], steps[1])]
                }
                Product::Floats(product) => {
                    let part = product.0[r].as_chunks::<LANES>().0;
                    [simd.load(&part[0]), simd.load(&part[1])]
                }
            };
            // Each sum is rounded for itself, in the order of the reference: the logits of a small model tell the difference.
            let y = self.outliers.add_to(simd, r, y);
            let y = [simd.add(y[0], bias[0]), simd.add(y[1], bias[1])];
            // SAFETY: blocks do not overlap, and each is taken by one thread; row < M, first + width ≤ N; T is what
            // the target says.
            let target = unsafe { self.target.slice::<T>(row, self.panel.first, self.panel.width) };
            match <&mut [T; PANEL]>::try_from(&mut *target) {
                Ok(whole) => store_row(simd, y, self.store, whole),
                Err(_) => {
                    let mut padded = [T::default(); PANEL];
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
fn store_row<I: Instructions, T: Lane>(simd: I, y: [I::Floats; 2], store: Store, to: &mut [T; PANEL]) {
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
    pub(crate) panel: &'a [[f32; PANEL]],
    pub(crate) sums: &'a mut [f32; PANEL],
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
