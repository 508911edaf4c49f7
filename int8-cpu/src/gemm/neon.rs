//! AArch64 with the dot-product extension: `sdot` multiplies 16 signed bytes by a quad of signed bytes and adds each
//! group of four to an i32 lane, exact modulo 2³².
//!
//! The compiler has no stable intrinsic for it, so the one instruction is written as inline assembly.

use std::arch::aarch64::{int8x16_t, int32x4_t, vdupq_n_s32, vld1q_s8, vst1q_s32};
use std::arch::asm;

use super::microkernel::{GroupMicrokernel, Microkernel};
use super::operands::{Operands, OuterOperands, Tile};
use crate::layout::NR;
use crate::simd::Lane;
use crate::tokens::NeonDotprod;

/// Registers of i32 for one row of a panel.
const VECTORS: usize = NR / 4;

// SAFETY: line 7: made from a `NeonDotprod` token, which stands for the one feature enabled below. Line 8: MR = 3, and
// rows 0..R with R = rows are stored.
unsafe impl Microkernel for NeonDotprod {
    /// 3 rows × 8 registers = 24 accumulators, 3 of input and those of the weights in flight: 32.
    const MR: usize = 3;

    unsafe fn product(self, operands: Operands, acc: &mut Tile<i32>) {
        // SAFETY: lines 1 to 4 are passed on; line 7 for the instruction.
        unsafe {
            match operands.rows {
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

// SAFETY: line 10: any k that is a multiple of 16.
unsafe impl GroupMicrokernel for NeonDotprod {}

/// Adds the products of the weights with quad `$lane` of `$x`.
macro_rules! dot {
    ($sum:expr, $weights:expr, $x:expr, $lane:literal) => {
        asm!(
            concat!("sdot {sum:v}.4s, {weights:v}.16b, {x:v}.4b[", $lane, "]"),
            sum = inout(vreg) $sum,
            weights = in(vreg) $weights,
            x = in(vreg) $x,
            options(pure, nomem, nostack, preserves_flags),
        )
    };
}

/// # Safety
/// Lines 1 to 4 of [`Microkernel`] with `rows = R`, and the processor has the dot-product extension.
#[target_feature(enable = "dotprod")]
unsafe fn product<const R: usize>(operands: Operands, acc: &mut Tile<i32>) {
    let Operands { a, lda, panel, k, .. } = operands;
    let mut sums: [[int32x4_t; VECTORS]; R] = [[vdupq_n_s32(0); VECTORS]; R];
    for offset in (0..k).step_by(16) {
        let mut x: [int8x16_t; R] = [std::arch::aarch64::vdupq_n_s8(0); R];
        for (r, x) in x.iter_mut().enumerate() {
            // SAFETY: line 1: r < rows and offset + 16 ≤ k.
            *x = unsafe { vld1q_s8(a.add(r * lda + offset)) };
        }
        for v in 0..VECTORS {
            // SAFETY: line 2: four steps of four of K from `offset` on, 128 bytes each, lie in the panel; v < 8 picks 16 of each.
            let k4: [int8x16_t; 4] = unsafe {
                let at = panel.add(offset * NR + 16 * v);
                [vld1q_s8(at), vld1q_s8(at.add(4 * NR)), vld1q_s8(at.add(8 * NR)), vld1q_s8(at.add(12 * NR))]
            };
            for (sums, x) in sums.iter_mut().zip(x) {
                // SAFETY: line 7; registers only.
                unsafe {
                    dot!(sums[v], k4[0], x, "0");
                    dot!(sums[v], k4[1], x, "1");
                    dot!(sums[v], k4[2], x, "2");
                    dot!(sums[v], k4[3], x, "3");
                }
            }
        }
    }
    for (row, sums) in acc.0.iter_mut().zip(sums) {
        for (v, sum) in sums.into_iter().enumerate() {
            // SAFETY: a row of the tile is 32 i32, eight registers.
            unsafe { vst1q_s32(row.as_mut_ptr().add(4 * v), sum) };
        }
    }
}
