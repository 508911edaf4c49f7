//! The product of codes alone, i32 out.

use std::ops::Range;

use ndarray::ArrayView2;
use rayon::prelude::*;

use super::dispatch::DispatchGemm;
use super::microkernel::Microkernel;
use super::operands::Tile;
use super::panel::{PanelProduct, Whole};
use super::schedule::{Block, Factors, Grid, for_each_thread};
use crate::buffer::Buffer;
use crate::convert;
use crate::layout::{NR, row_stride};
use crate::matrix::IntegerTarget;
use crate::pack::weight::PackedWeight;
use crate::simd::{Instructions, Vectorized};

/// Rows of codes that a task copies.
const SHIFT_ROWS: usize = 16;

/// `a [M, K] · Wᵀ → i32 [M, N]`.
pub(crate) struct Product<'a> {
    /// Rows contiguous.
    pub(crate) a: ArrayView2<'a, i8>,
    pub(crate) weight: &'a PackedWeight,
    pub(crate) target: IntegerTarget<'a>,
    /// Memory for the codes as the tiles read them.
    pub(crate) codes: &'a mut Buffer,
}

impl DispatchGemm for Product<'_> {
    /// Whether the product was computed: it is not if there is a code of −128.
    type Output = bool;

    fn run<K: Microkernel>(self, tile: K) -> Self::Output {
        let Self { a, weight, target, codes } = self;
        let ((rows, inner), (outputs, _)) = (a.dim(), weight.dim());
        let stride = row_stride(inner);
        let grid = Grid::new(rows, weight);
        codes.reserve((rows + K::MR_STEP) * stride);
        let shift = |(row, target): (usize, &mut [i8])| {
            let codes = a.row(row).to_slice().unwrap_or_default();
            tile.vectorize(ShiftCodes { codes, offset: K::CODE_OFFSET, target })
        };
        let targets = &mut codes.codes_mut()[..rows * stride];
        let out_of_range = if grid.is_parallel() {
            let targets = targets.par_chunks_exact_mut(stride).enumerate().with_min_len(SHIFT_ROWS);
            targets.map(shift).reduce(|| false, |a, b| a | b)
        } else {
            targets.chunks_exact_mut(stride).enumerate().map(shift).fold(false, |a, b| a | b)
        };
        if out_of_range {
            return false;
        }
        let (factors, sums) = (Factors { codes: codes.codes(), stride, weight }, &weight.columns().sums);
        for_each_thread(grid, tile, |blocks| {
            let mut product = Whole::new(tile);
            for Block { rows, panel, next } in blocks {
                let first = panel * NR;
                let width = NR.min(outputs - first);
                let to = |row| target.destination(row, first, width);
                let tiles = rows.tiles();
                let operands = factors.operands::<K>(panel, next, tiles.len(), to);
                // SAFETY: lines 1 to 3: see `Factors`; line 4: threads are run inside `scoped`.
                unsafe { product.start(panel, tiles.clone().enumerate().map(operands)) };
                for (tile_index, rows) in tiles.enumerate() {
                    // SAFETY: as before, and these are the operands of that number.
                    let acc = unsafe { product.integers(tile_index, operands((tile_index, rows.clone()))) };
                    let sums = &sums.as_chunks().0[panel];
                    tile.vectorize(StoreTile {
                        acc,
                        rows,
                        sums,
                        offset: K::CODE_OFFSET,
                        first,
                        width,
                        target: &target,
                    });
                }
            }
        });
        true
    }
}

/// `target = codes + offset`, modulo 2⁸; whether a code is −128.
struct ShiftCodes<'a> {
    codes: &'a [i8],
    offset: u8,
    target: &'a mut [i8],
}

impl Vectorized for ShiftCodes<'_> {
    type Output = bool;

    #[inline(always)]
    fn call<I: Instructions>(self, _: I) -> bool {
        let mut out_of_range = false;
        for (target, code) in self.target.iter_mut().zip(self.codes) {
            *target = convert::code_byte(i32::from(*code), self.offset);
            out_of_range |= *code == i8::MIN;
        }
        out_of_range
    }
}

/// Takes `offset·Σw` off a tile and stores it.
struct StoreTile<'a> {
    acc: &'a Tile<i32>,
    rows: Range<usize>,
    /// One for each output of the panel.
    sums: &'a [i32; NR],
    offset: u8,
    /// First output, and how many exist.
    first: usize,
    width: usize,
    target: &'a IntegerTarget<'a>,
}

impl Vectorized for StoreTile<'_> {
    type Output = ();

    #[inline(always)]
    fn call<I: Instructions>(self, simd: I) {
        let excess = excess(simd, i32::from(self.offset), self.sums);
        for (acc, row) in self.acc.0.iter().zip(self.rows) {
            let mut corrected = [0; NR];
            // SAFETY: blocks do not overlap, and row < M, first + width ≤ N.
            let target = unsafe { self.target.slice(row, self.first, self.width) };
            let whole = target.len() == NR;
            let to = if whole { &mut *target } else { &mut corrected[..] };
            let parts = acc.as_chunks().0.iter().zip(&excess);
            for ((acc, excess), to) in parts.zip(to.as_chunks_mut().0) {
                simd.store_int(simd.add_int(simd.load_int(acc), *excess), to);
            }
            if !whole {
                target.copy_from_slice(&corrected[..target.len()]);
            }
        }
    }
}
/// `−offset·Σq_w`, modulo 2³²: what takes the kernel's offset out of the accumulators of a panel's columns.
#[inline(always)]
pub(crate) fn excess<I: Instructions>(simd: I, offset: i32, sums: &[i32; NR]) -> [I::Ints; 2] {
    let (nothing, offset, sums) = (simd.splat_int(0), simd.splat_int(offset), sums.as_chunks().0);
    [
        simd.subtract_product(nothing, offset, simd.load_int(&sums[0])),
        simd.subtract_product(nothing, offset, simd.load_int(&sums[1])),
    ]
}
