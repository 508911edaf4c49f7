//! AMX bf16: `tdpbf16ps` multiplies 16 rows of 32 bf16 by 16 columns of 32 bf16, 8,192 multiply-adds an instruction, with sums in
//! f32.

use std::arch::asm;

use super::super::bf16::{Bf16Product, Block, Fragment};
use super::super::operands::Tile;
use super::{ROW_BYTES, TILE_ROWS, Tiles};
use crate::layout::{MAX_MR, NR};
use crate::tokens::AmxBf16;

/// Bytes between two rows of a fragment of the left operand.
const X_BYTES: usize = 64;

/// Bytes of sixteen rows of it.
const BELOW: usize = TILE_ROWS * X_BYTES;

// SAFETY: made from an `AmxBf16` token, which stands for AMX-TILE and AMX-BF16.
unsafe impl Bf16Product for AmxBf16 {
    fn scoped<R>(self, job: impl FnOnce() -> R) -> R {
        let _tiles = Tiles::configure(self.int8());
        job()
    }

    unsafe fn product(self, rows: usize, x: &[Fragment], w: &[Fragment], add: bool, sums: &mut Tile<f32>) {
        assert!((1..=MAX_MR).contains(&rows) && x.len() == w.len(), "fragments of both operands");
        // SAFETY: the instructions exist by the token, and the caller is inside `scoped`.
        unsafe {
            if rows > TILE_ROWS {
                two_below(x, w, add, &mut sums.0);
            } else {
                one(x, w, add, &mut sums.0);
            }
        }
    }

    unsafe fn product_of_blocks(
        self,
        rows: usize,
        x: &[Block],
        blocks: usize,
        w: &[Fragment],
        pairs: &[(usize, usize)],
        sums: &mut Tile<f32>,
    ) {
        assert!((1..=MAX_MR).contains(&rows) && x.len() >= MAX_MR * blocks, "rows of blocks");
        assert!(pairs.iter().all(|(i, j)| *i < blocks && *j < w.len()), "blocks and fragments");
        // SAFETY: the instructions exist by the token, the caller is inside `scoped`; the rest was checked.
        unsafe { self::blocks(rows, x.as_ptr(), blocks, w.as_ptr(), pairs, &mut sums.0) };
    }
}

/// As [`Bf16Product::product_of_blocks`].
///
/// # Safety
/// The tiles are configured, and `x` has 32 rows of `blocks` blocks, `w` the fragments, of all pairs.
#[inline(always)]
unsafe fn blocks(
    rows: usize,
    x: *const Block,
    blocks: usize,
    w: *const Fragment,
    pairs: &[(usize, usize)],
    sums: &mut [[f32; NR]; MAX_MR],
) {
    let sums = sums.as_mut_ptr();
    let stride = blocks * size_of::<Block>();
    // SAFETY: of the tiles, the caller. Of memory: 16 rows of 64 bytes, `stride` apart, from block `i` of the first row on and of the
    // seventeenth, and of the fragment as in `one`. A row of the sums is 128 bytes, and there are 32.
    unsafe {
        let below = sums.add(TILE_ROWS);
        registers!("tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3");
        for &(i, j) in pairs {
            let (x, w) = (x.add(i), w.add(j));
            load!("tmm4", x, stride);
            load!("tmm6", w, ROW_BYTES);
            registers!("tdpbf16ps tmm0, tmm4, tmm6");
            load!("tmm7", w.byte_add(64), ROW_BYTES);
            registers!("tdpbf16ps tmm1, tmm4, tmm7");
            if rows > TILE_ROWS {
                load!("tmm5", x.byte_add(TILE_ROWS * stride), stride);
                registers!("tdpbf16ps tmm2, tmm5, tmm6", "tdpbf16ps tmm3, tmm5, tmm7");
            }
        }
        store!("tmm0", sums, ROW_BYTES);
        store!("tmm1", sums.byte_add(64), ROW_BYTES);
        if rows > TILE_ROWS {
            store!("tmm2", below, ROW_BYTES);
            store!("tmm3", below.byte_add(64), ROW_BYTES);
        }
    }
}

/// The first 16 rows.
///
/// # Safety
/// The tiles are configured.
#[inline(always)]
unsafe fn one(x: &[Fragment], w: &[Fragment], add: bool, sums: &mut [[f32; NR]; MAX_MR]) {
    let sums = sums.as_mut_ptr();
    // SAFETY: of the tiles, the caller. Of memory: 16 rows of 64 bytes, 64 or 128 bytes apart, of fragments of 2 KiB; those of w,
    // 128 bytes apart, begin at bytes 0 and 64. A row of the sums is 128 bytes, and there are 32.
    unsafe {
        if add {
            load!("tmm0", sums, ROW_BYTES);
            load!("tmm1", sums.byte_add(64), ROW_BYTES);
        } else {
            registers!("tilezero tmm0", "tilezero tmm1");
        }
        for (x, w) in x.iter().zip(w) {
            let (x, w) = (&raw const *x, &raw const *w);
            load!("tmm4", x, X_BYTES);
            load!("tmm6", w, ROW_BYTES);
            registers!("tdpbf16ps tmm0, tmm4, tmm6");
            load!("tmm7", w.byte_add(64), ROW_BYTES);
            registers!("tdpbf16ps tmm1, tmm4, tmm7");
        }
        store!("tmm0", sums, ROW_BYTES);
        store!("tmm1", sums.byte_add(64), ROW_BYTES);
    }
}

/// All 32 rows.
///
/// # Safety
/// The tiles are configured.
#[inline(always)]
unsafe fn two_below(x: &[Fragment], w: &[Fragment], add: bool, sums: &mut [[f32; NR]; MAX_MR]) {
    let sums = sums.as_mut_ptr();
    // SAFETY: as in `one`, for 32 rows.
    unsafe {
        let below = sums.add(TILE_ROWS);
        if add {
            load!("tmm0", sums, ROW_BYTES);
            load!("tmm1", sums.byte_add(64), ROW_BYTES);
            load!("tmm2", below, ROW_BYTES);
            load!("tmm3", below.byte_add(64), ROW_BYTES);
        } else {
            registers!("tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3");
        }
        for (x, w) in x.iter().zip(w) {
            let (x, w) = (&raw const *x, &raw const *w);
            load!("tmm4", x, X_BYTES);
            load!("tmm6", w, ROW_BYTES);
            registers!("tdpbf16ps tmm0, tmm4, tmm6");
            load!("tmm7", w.byte_add(64), ROW_BYTES);
            registers!("tdpbf16ps tmm1, tmm4, tmm7");
            load!("tmm5", x.byte_add(BELOW), X_BYTES);
            registers!("tdpbf16ps tmm2, tmm5, tmm6", "tdpbf16ps tmm3, tmm5, tmm7");
        }
        store!("tmm0", sums, ROW_BYTES);
        store!("tmm1", sums.byte_add(64), ROW_BYTES);
        store!("tmm2", below, ROW_BYTES);
        store!("tmm3", below.byte_add(64), ROW_BYTES);
    }
}
