//! AArch64 with 8-bit matrix multiplication: `smmla` multiplies a 2×8 by an 8×2 matrix of signed bytes and adds the four
//! sums to a 2×2 matrix of i32, exact modulo 2³²: twice the multiply-adds of `sdot`.
//!
//! Weights are in `VnniK4` layout as for `sdot`. Two vectors of four outputs by four of K, zipped, are 8 of K for two outputs
//! and for two more: the
//! two zips serve all rows of a tile, so that a layout of its own would save one instruction in four.
//!
//! The compiler has no stable intrinsic for it, so the one instruction is written as inline assembly.

use std::arch::aarch64::{
    int8x16_t, int32x4_t, vcombine_s8, vdupq_n_s8, vdupq_n_s32, vld1_s8, vld1q_s8, vreinterpretq_s8_s32,
    vreinterpretq_s32_s8, vreinterpretq_s32_s64, vreinterpretq_s64_s32, vst1q_s32, vzip1q_s32, vzip1q_s64,
    vzip2q_s32, vzip2q_s64,
};
use std::arch::asm;

use super::microkernel::{GroupMicrokernel, Microkernel};
use super::operands::{Operands, OuterOperands, Tile};
use crate::layout::NR;
use crate::simd::Lane;
use crate::tokens::NeonI8mm;

/// Columns of a panel that are computed at a time.
const COLUMNS: usize = NR / 2;

/// 2×2 accumulators of two rows.
const SQUARES: usize = COLUMNS / 2;

/// What one instruction takes of K.
const DEPTH: usize = 8;

// SAFETY: line 7: made from a `NeonI8mm` token, which stands for the feature enabled below beside the baseline's NEON. Line 8: MR = 6, and rows
// 0..2·P are stored, P pairs of rows being `rows` rounded up.
unsafe impl Microkernel for NeonI8mm {
    /// 3 pairs of rows × 8 squares of half a panel = 24 accumulators, 3 of input, 2 of weights and 2 to zip them: 31 of 32.
    const MR: usize = 6;

    unsafe fn product(self, operands: Operands, acc: &mut Tile<i32>) {
        // SAFETY: lines 1 to 4 are passed on; line 7 for the instruction.
        unsafe {
            match operands.rows.div_ceil(2) {
                1 => product::<1>(operands, acc),
                2 => product::<2>(operands, acc),
                _ => product::<3>(operands, acc),
            }
        }
    }

    unsafe fn outer<W: Lane>(self, operands: OuterOperands<W>, sums: &mut Tile<f32>) {
        // SAFETY: lines 5 and 6 are passed on; NEON is part of the baseline, the compiler uses it there.
        unsafe { self.portable().outer(operands, sums) }
    }
}

// SAFETY: line 10: steps of 8 of K divide GROUP.
unsafe impl GroupMicrokernel for NeonI8mm {}

/// # Safety
/// Lines 1 to 4 of [`Microkernel`] with `rows` rounded up to 2·P, and the processor multiplies matrices of bytes.
#[target_feature(enable = "neon,i8mm")]
unsafe fn product<const P: usize>(operands: Operands, acc: &mut Tile<i32>) {
    let Operands { a, lda, panel, k, .. } = operands;
    for first in [0, COLUMNS] {
        let mut sums: [[int32x4_t; SQUARES]; P] = [[vdupq_n_s32(0); SQUARES]; P];
        for offset in (0..k).step_by(DEPTH) {
            let mut x: [int8x16_t; P] = [vdupq_n_s8(0); P];
            for (pair, x) in x.iter_mut().enumerate() {
                // SAFETY: line 1: rows up to 2·P are readable, and offset + 8 ≤ k.
                *x = unsafe {
                    let at = a.add(2 * pair * lda + offset);
                    vcombine_s8(vld1_s8(at), vld1_s8(at.add(lda)))
                };
            }
            for v in 0..COLUMNS / 4 {
                // SAFETY: line 2: the two steps of four of K from `offset` on lie in the panel, 128 bytes each, of which this
                // takes 16: those of four outputs.
                let (low, high) = unsafe {
                    let at = panel.add(offset * NR + 4 * first + 16 * v);
                    (vreinterpretq_s32_s8(vld1q_s8(at)), vreinterpretq_s32_s8(vld1q_s8(at.add(4 * NR))))
                };
                // Outputs 4v and 4v + 1, and the next two, 8 of K each.
                let w = [vzip1q_s32(low, high), vzip2q_s32(low, high)].map(|w| vreinterpretq_s8_s32(w));
                for (sums, x) in sums.iter_mut().zip(x) {
                    for (sum, w) in sums[2 * v..2 * v + 2].iter_mut().zip(w) {
                        // SAFETY: line 7; registers only.
                        unsafe {
                            asm!(
                                "smmla {sum:v}.4s, {x:v}.16b, {w:v}.16b",
                                sum = inout(vreg) *sum,
                                x = in(vreg) x,
                                w = in(vreg) w,
                                options(pure, nomem, nostack, preserves_flags),
                            );
                        }
                    }
                }
            }
        }
        for (pair, sums) in sums.into_iter().enumerate() {
            for (v, squares) in sums.as_chunks::<2>().0.iter().enumerate() {
                // A square holds two outputs of the first row, then those of the second.
                let [left, right] = squares.map(|square| vreinterpretq_s64_s32(square));
                let rows = [vzip1q_s64(left, right), vzip2q_s64(left, right)];
                for (row, sums) in acc.0[2 * pair..2 * pair + 2].iter_mut().zip(rows) {
                    let target = row[first + 4 * v..first + 4 * v + 4].as_mut_ptr();
                    // SAFETY: four i32 of a row of the tile.
                    unsafe { vst1q_s32(target, vreinterpretq_s32_s64(sums)) };
                }
            }
        }
    }
}
