//! 256-bit kernels: AVX2, and AVX-VNNI for processors that have the dot product but no AVX-512.
//!
//! AVX2 has no signed byte product. `vpmaddubsw` multiplies unsigned by signed bytes and adds pairs with saturation to
//! i16; given `|x|` and `sign(x)·w` with codes in [−127, 127], a pair is at most 2·127² = 32,258 and never saturates.

use std::arch::x86_64::*;

use super::microkernel::{GroupMicrokernel, Microkernel};
use super::operands::{Alone, Operands, OuterOperands, Tile};
use crate::layout::{K_STEP, NR};
use crate::simd::{LANES, Lane};
use crate::tokens::{Avx2, AvxVnni};

// SAFETY: line 7: made from an `Avx2` token, which stands for every feature enabled below. Line 8: MR = 4, and each
// function stores rows 0..R with R = rows.
unsafe impl Microkernel for Avx2 {
    /// 4 rows × 2 registers = 8 accumulators, 2 of weights, x, |x|, two products and the ones: 15 of 16.
    const MR: usize = 4;

    fn alone(_rows: usize) -> Alone {
        ALONE
    }

    unsafe fn product(self, operands: Operands, acc: &mut Tile<i32>) {
        // SAFETY: lines 1 to 4 are passed on; line 7 for the instructions.
        unsafe {
            match operands.rows {
                1 => product_signed::<1, 4>(operands, acc),
                2 => product_signed::<2, 4>(operands, acc),
                3 => product_signed::<3, 2>(operands, acc),
                _ => product_signed::<4, 2>(operands, acc),
            }
        }
    }

    unsafe fn outer<W: Lane>(self, operands: OuterOperands<W>, acc: &mut Tile<f32>) {
        // SAFETY: lines 5 and 6 are passed on; line 7 for the instructions.
        unsafe { outer_tile(self, operands, acc) }
    }
}

// SAFETY: line 7: made from an `AvxVnni` token, which stands for every feature enabled below. Line 8: MR = 6, and each
// function stores rows 0..R with R = rows.
unsafe impl Microkernel for AvxVnni {
    /// 6 rows × 2 registers = 12 accumulators, 2 of weights and a broadcast: 15 of 16.
    const MR: usize = 6;

    fn alone(_rows: usize) -> Alone {
        ALONE
    }

    unsafe fn product(self, operands: Operands, acc: &mut Tile<i32>) {
        // SAFETY: lines 1 to 4 are passed on; line 7 for the instructions.
        unsafe { avx_vnni::product(operands, acc) }
    }

    unsafe fn outer<W: Lane>(self, operands: OuterOperands<W>, acc: &mut Tile<f32>) {
        // SAFETY: lines 5 and 6 are passed on; line 7 for the instructions.
        unsafe { outer_tile(self.avx2(), operands, acc) }
    }
}

// SAFETY: line 10: any k that is a multiple of 4.
unsafe impl GroupMicrokernel for Avx2 {}

// SAFETY: line 10: any k that is a multiple of 4.
unsafe impl GroupMicrokernel for AvxVnni {}

/// In models on Zen 3, two threads: one row as fast as without prefetching and a fifth faster than with the next panel, two and four rows
/// a tenth faster than with either.
const ALONE: Alone = Alone::Behind(4096);

/// Registers of a row of the tile: eight i32 each, of which a pass over K computes P. Few rows have one pass: a second would read the
/// panel from L2 and leave the memory idle.
const REGISTERS: usize = NR / 8;

/// # Safety
/// Lines 1 to 4 of [`Microkernel`] with `rows = R`, and the processor has AVX2.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn product_signed<const R: usize, const P: usize>(operands: Operands, acc: &mut Tile<i32>) {
    let Operands { a, lda, panel, k, ahead, .. } = operands;
    operands.prefetch_result();
    let ones = _mm256_set1_epi16(1);
    for first in (0..REGISTERS).step_by(P) {
        let mut sums = [[_mm256_setzero_si256(); P]; R];
        for offset in (0..k).step_by(4) {
            if first == 0 && offset % K_STEP == 0 {
                ahead.prefetch(offset);
            }
            let mut w = [_mm256_setzero_si256(); P];
            for (index, w) in w.iter_mut().enumerate() {
                // SAFETY: line 2: offset + 4 ≤ k, so the 128 bytes from offset·NR on lie in the panel.
                *w = unsafe { _mm256_load_si256(panel.add(offset * NR + (first + index) * 32).cast()) };
            }
            for (r, sum) in sums.iter_mut().enumerate() {
                // SAFETY: line 1: r < rows and offset + 4 ≤ k.
                let x = unsafe { _mm256_set1_epi32(a.add(r * lda + offset).cast::<i32>().read_unaligned()) };
                let magnitude = _mm256_abs_epi8(x);
                for (sum, w) in sum.iter_mut().zip(w) {
                    let pairs = _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(w, x));
                    *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(pairs, ones));
                }
            }
        }
        for (row, sums) in acc.0.iter_mut().zip(sums) {
            for (index, sum) in sums.into_iter().enumerate() {
                // SAFETY: a row of the tile is 32 i32, four registers, and 64-byte aligned.
                unsafe { _mm256_store_si256(row.as_mut_ptr().add((first + index) * 8).cast(), sum) };
            }
        }
    }
}

/// The tile product of a 256-bit `vpdpbusd`, whichever encoding of it the processor has.
macro_rules! dot_product_tile {
    ($module:ident, $features:literal, $dot:ident) => {
        mod $module {
            use super::*;

            /// # Safety
            /// Lines 1 to 4 of [`Microkernel`], and the processor has the enabled features.
            pub(super) unsafe fn product(operands: Operands, acc: &mut Tile<i32>) {
                // SAFETY: passed on.
                unsafe {
                    match operands.rows {
                        1 => rows::<1, 4>(operands, acc),
                        2 => rows::<2, 4>(operands, acc),
                        3 => rows::<3, 2>(operands, acc),
                        4 => rows::<4, 2>(operands, acc),
                        5 => rows::<5, 2>(operands, acc),
                        _ => rows::<6, 2>(operands, acc),
                    }
                }
            }

            /// # Safety
            /// As `product`, with `rows = R`.
            #[target_feature(enable = $features)]
            unsafe fn rows<const R: usize, const P: usize>(operands: Operands, acc: &mut Tile<i32>) {
                let Operands { a, lda, panel, k, ahead, .. } = operands;
                operands.prefetch_result();
                for first in (0..REGISTERS).step_by(P) {
                    let mut sums = [[_mm256_setzero_si256(); P]; R];
                    for offset in (0..k).step_by(4) {
                        if first == 0 && offset % K_STEP == 0 {
                            ahead.prefetch(offset);
                        }
                        let mut w = [_mm256_setzero_si256(); P];
                        for (index, w) in w.iter_mut().enumerate() {
                            // SAFETY: line 2, as in `product_signed`.
                            *w = unsafe {
                                _mm256_load_si256(panel.add(offset * NR + (first + index) * 32).cast())
                            };
                        }
                        for (r, sums) in sums.iter_mut().enumerate() {
                            // SAFETY: line 1: r < rows and offset + 4 ≤ k.
                            let x = unsafe {
                                _mm256_set1_epi32(a.add(r * lda + offset).cast::<i32>().read_unaligned())
                            };
                            for (sum, w) in sums.iter_mut().zip(w) {
                                *sum = $dot(*sum, x, w);
                            }
                        }
                    }
                    for (row, sums) in acc.0.iter_mut().zip(sums) {
                        for (index, sum) in sums.into_iter().enumerate() {
                            // SAFETY: as in `product_signed`.
                            unsafe {
                                _mm256_store_si256(row.as_mut_ptr().add((first + index) * 8).cast(), sum)
                            };
                        }
                    }
                }
            }
        }
    };
}

dot_product_tile!(avx_vnni, "avx2,fma,f16c,avxvnni", _mm256_dpbusd_avx_epi32);
// The same function over the AVX-512 encoding of the instruction, for the tests of machines without AVX-VNNI.
#[cfg(test)]
dot_product_tile!(avx512_vl, "avx2,fma,f16c,avx512vnni,avx512vl", _mm256_dpbusd_epi32);

/// # Safety
/// Lines 5 and 6 of [`Microkernel`], and the processor has AVX2 and FMA.
unsafe fn outer_tile<W: Lane>(token: Avx2, operands: OuterOperands<W>, acc: &mut Tile<f32>) {
    // SAFETY: lines 5 and 6 are passed on, and the instructions are there.
    unsafe {
        if operands.streamed {
            outer::<W, true>(token, operands, acc);
        } else {
            outer::<W, false>(token, operands, acc);
        }
    }
}

/// # Safety
/// Lines 5 and 6 of [`Microkernel`], and the processor has AVX2 and FMA.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn outer<W: Lane, const STREAMED: bool>(token: Avx2, operands: OuterOperands<W>, acc: &mut Tile<f32>) {
    let OuterOperands { x, ldx, rows, w, count, .. } = operands;
    // Pairs of rows: 2 × 4 accumulators, 4 registers of weights and a broadcast: 13 of 16.
    for first in (0..rows).step_by(2) {
        let second = (first + 1).min(rows - 1);
        let mut sums = [[_mm256_setzero_ps(); 4]; 2];
        for o in 0..count {
            if STREAMED && first == 0 {
                operands.prefetch(o);
            }
            // SAFETY: line 5: both rows are < rows and o < count.
            let x = unsafe {
                [_mm256_set1_ps(*x.add(first * ldx + o)), _mm256_set1_ps(*x.add(second * ldx + o))]
            };
            // SAFETY: line 6: o < count.
            let w = unsafe { &*w.add(o * NR).cast::<[[W; LANES]; 2]>() };
            let [w0, w1] = W::load(token, &w[0]);
            let [w2, w3] = W::load(token, &w[1]);
            let [mut upper, mut lower] = sums;
            for ((upper, lower), w) in upper.iter_mut().zip(&mut lower).zip([w0, w1, w2, w3]) {
                *upper = _mm256_fmadd_ps(x[0], w, *upper);
                *lower = _mm256_fmadd_ps(x[1], w, *lower);
            }
            sums = [upper, lower];
        }
        // An odd last row stands in both places; both hold the same sums.
        for (row, sum) in [first, second].into_iter().zip(sums) {
            for (i, sum) in sum.into_iter().enumerate() {
                // SAFETY: a row of the tile is 32 f32, four registers, and 64-byte aligned.
                unsafe { _mm256_store_ps(acc.0[row].as_mut_ptr().add(8 * i), sum) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gemm::operands::Ahead;
    use crate::layout::MAX_MR;

    #[test]
    fn dot_product_tile_equals_the_signed_tile() {
        if Avx2::new().is_none()
            || !(is_x86_feature_detected!("avx512vnni") && is_x86_feature_detected!("avx512vl"))
        {
            println!("not run: this processor has no 256-bit vpdpbusd in the AVX-512 encoding");
            return;
        }
        #[repr(align(64))]
        struct Panel([i8; NR * 128]);
        let mut state = 1_u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            [-127_i8, 127, 0, 1, -1, 64, -90, 33][(state >> 29) as usize]
        };
        let mut panel = Panel([0; NR * 128]);
        panel.0.fill_with(&mut next);
        let signed: Vec<i8> = (0..6 * 128).map(|_| next()).collect();
        let unsigned: Vec<i8> = signed.iter().map(|code| code ^ i8::MIN).collect();
        for rows in 1..=6 {
            let mut by_dot = Tile([[0; NR]; MAX_MR]);
            let operands = Operands {
                a: unsigned.as_ptr(),
                lda: 128,
                rows,
                panel: panel.0.as_ptr(),
                k: 128,
                ldw: 0,
                continued: false,
                to: None,
                ahead: Ahead { panel: panel.0.as_ptr(), from: 0, to: 0 },
            };
            // SAFETY: 6 rows of 128 bytes, an aligned panel of 128·NR bytes; features checked above.
            unsafe { avx512_vl::product(operands, &mut by_dot) };
            for r in 0..rows {
                for n in 0..NR {
                    let w = |k: usize| i32::from(panel.0[(k / 4) * 4 * NR + n * 4 + k % 4]);
                    let expected: i32 = (0..128).map(|k| (i32::from(signed[r * 128 + k]) + 128) * w(k)).sum();
                    assert_eq!(by_dot.0[r][n], expected, "rows {rows}, row {r}, column {n}");
                }
            }
        }
    }
}
