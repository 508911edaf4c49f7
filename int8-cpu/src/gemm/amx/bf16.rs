//! AMX bf16: `tdpbf16ps` multiplies 16 rows of 32 bf16 by 16 columns of 32 bf16, 8,192 multiply-adds an instruction, with sums in
//! f32.

use std::arch::asm;

use super::super::bf16::{Bf16Product, Block, Fragment};
use super::super::operands::Tile;
use super::{CONFIGURATION, ROW_BYTES, TILE_ROWS, Tiles};
use crate::layout::{MAX_MR, NR};
use crate::tokens::AmxBf16;

// SAFETY: made from an `AmxBf16` token, which stands for AMX-TILE and AMX-BF16.
unsafe impl Bf16Product for AmxBf16 {
    fn scoped<R>(self, job: impl FnOnce() -> R) -> R {
        let _tiles = Tiles::configure(self.int8(), &CONFIGURATION);
        job()
    }

    unsafe fn product(self, rows: usize, x: &[Fragment], w: &[Fragment], add: bool, sums: &mut Tile<f32>) {
        assert!((1..=MAX_MR).contains(&rows) && x.len() == w.len(), "fragments of both operands");
        let steps = x.iter().zip(w).map(|(x, w)| ((&raw const *x).cast(), &raw const *w));
        // SAFETY: the instructions exist by the token, and the caller is inside `scoped`; a fragment has 32 blocks.
        unsafe { multiply(rows, 1, steps, add, &mut sums.0) };
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
        let steps = pairs.iter().map(|(i, j)| (x.as_ptr().wrapping_add(*i), w.as_ptr().wrapping_add(*j)));
        // SAFETY: the instructions exist by the token, the caller is inside `scoped`; the rest was checked.
        unsafe { multiply(rows, blocks, steps, false, &mut sums.0) };
    }
}

/// `sums (+)= Σ x·w` over the steps of K: one tile register of rows, or two below each other.
///
/// # Safety
/// The tiles are configured; of each step, the first address is that of a block, with one `blocks` blocks behind it for each of the
/// 31 rows below, and the second that of a fragment.
#[inline(always)]
unsafe fn multiply(
    rows: usize,
    blocks: usize,
    steps: impl Iterator<Item = (*const Block, *const Fragment)>,
    add: bool,
    sums: &mut [[f32; NR]; MAX_MR],
) {
    let two = rows > TILE_ROWS;
    let stride = blocks * size_of::<Block>();
    let sums = sums.as_mut_ptr();
    // SAFETY: of the tiles, the caller. Of memory: 16 rows of 64 bytes, `stride` apart, from the first row on and from the
    // seventeenth; those of a fragment of w, 128 bytes apart, begin at bytes 0 and 64. A row of the sums is 128 bytes, and there are
    // 32.
    unsafe {
        let below = sums.add(TILE_ROWS);
        if add {
            load!("tmm0", sums, ROW_BYTES);
            load!("tmm1", sums.byte_add(64), ROW_BYTES);
            if two {
                load!("tmm2", below, ROW_BYTES);
                load!("tmm3", below.byte_add(64), ROW_BYTES);
            }
        } else {
            registers!("tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3");
        }
        for (x, w) in steps {
            load!("tmm4", x, stride);
            load!("tmm6", w, ROW_BYTES);
            registers!("tdpbf16ps tmm0, tmm4, tmm6");
            load!("tmm7", w.byte_add(64), ROW_BYTES);
            registers!("tdpbf16ps tmm1, tmm4, tmm7");
            if two {
                load!("tmm5", x.byte_add(TILE_ROWS * stride), stride);
                registers!("tdpbf16ps tmm2, tmm5, tmm6", "tdpbf16ps tmm3, tmm5, tmm7");
            }
        }
        store!("tmm0", sums, ROW_BYTES);
        store!("tmm1", sums.byte_add(64), ROW_BYTES);
        if two {
            store!("tmm2", below, ROW_BYTES);
            store!("tmm3", below.byte_add(64), ROW_BYTES);
        }
    }
}
