//! AMX int8 group by group of K: a group of 32 is half of what a row of a tile register holds, so tiles of x have 32 bytes a row and
//! tiles of weights 8 rows, and a product of tiles has half the multiply-adds in the time of a whole one.
//!
//! That is still four times those of `vpdpbusd`. What decides is the correction and scaling of each group in vector registers,
//! under which the tiles are hidden: while vectors work on one group, the products of the next are stored and those of the one after
//! it computed.

use std::arch::asm;
use std::arch::x86_64::*;
use std::mem::MaybeUninit;

use int8_core::GROUP;

use super::super::avx512::{group_sums, outer_rows};
use super::super::microkernel::{GroupMicrokernel, Microkernel};
use super::super::operands::{GroupOperands, Operands, OuterOperands, Tile};
use super::{Configuration, ROW_BYTES, TILE_ROWS, Tiles};
use crate::layout::{K_STEP, Layout, MAX_MR, NR};
use crate::prologue::terms::GroupTerms;
use crate::simd::{Lane, Vectorize, Vectorized};
use crate::tokens::AmxInt8;

/// A step of K is a group.
static CONFIGURATION: Configuration = Configuration::of_step(32);

const _: () = assert!(GROUP == 32, "the step of the tiles");

/// [`AmxInt8`] with tiles for groups.
#[derive(Clone, Copy)]
pub(crate) struct AmxGroups(pub(crate) AmxInt8);

impl Vectorize for AmxGroups {
    const CODE_OFFSET: u8 = AmxInt8::CODE_OFFSET;
    const MR_STEP: usize = AmxInt8::MR_STEP;

    fn vectorize<V: Vectorized>(self, job: V) -> V::Output {
        self.0.vectorize(job)
    }
}

// SAFETY: line 7: made from an `AmxInt8` token. Line 8: MR = 32, and the tiles write 16 or 32 rows.
unsafe impl Microkernel for AmxGroups {
    const MR: usize = 2 * TILE_ROWS;

    fn scoped<R>(self, job: impl FnOnce() -> R) -> R {
        let _tiles = Tiles::configure(self.0, &CONFIGURATION);
        job()
    }

    unsafe fn product(self, operands: Operands, acc: &mut Tile<i32>) {
        let Operands { a, lda, rows, panel, k, .. } = operands;
        // SAFETY: lines 1 to 4: K in whole groups of the rows and of the panel; the accumulators have 32 rows.
        unsafe {
            clear();
            for first in (0..k).step_by(GROUP) {
                multiply(rows, a.add(first), lda, panel.add(first * NR));
            }
            store(rows, acc.0.as_mut_ptr());
        }
    }

    unsafe fn outer<W: Lane>(self, operands: OuterOperands<W>, sums: &mut Tile<f32>) {
        // SAFETY: lines 5 and 6 are passed on; the token includes AVX-512 VNNI.
        unsafe { outer_rows(self.0.avx512(), operands, sums) }
    }
}

// SAFETY: line 10: `group_product` is its own.
unsafe impl GroupMicrokernel for AmxGroups {
    unsafe fn group_product(self, operands: GroupOperands, product: &mut Tile<f32>) {
        // SAFETY: lines 1 to 4 and 9 are passed on; the token stands for the instructions.
        unsafe {
            if operands.columns.zero_points.is_some() {
                group_product::<true>(operands, product);
            } else {
                group_product::<false>(operands, product);
            }
        }
    }

    fn group_sums(self, _: Layout, panel: &[i8], sums: &mut [[f32; NR]]) {
        // SAFETY: the token includes AVX-512 VNNI.
        unsafe { group_sums(panel, sums) }
    }
}

/// The same operations in the same order as on AVX-512 VNNI: the same bits.
///
/// # Safety
/// Lines 1 to 4 of [`Microkernel`] and 9 of [`GroupMicrokernel`], and the processor has the enabled features and AMX.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16,avx2,fma,f16c")]
unsafe fn group_product<const ZERO_POINTS: bool>(operands: GroupOperands, product: &mut Tile<f32>) {
    let GroupOperands { codes, x, ldx, columns } = operands;
    let Operands { a, lda, rows, panel, k, ahead, .. } = codes;
    codes.prefetch_result();
    product.0[..rows].fill([0.0; NR]);
    let groups = k / GROUP;
    // What the tiles of two groups write before it is read.
    let mut stored = MaybeUninit::<[Tile<i32>; 2]>::uninit();
    let stored = stored.as_mut_ptr().cast::<[i32; NR]>();
    let accumulators = |group: usize| stored.wrapping_add(group % 2 * MAX_MR);
    // SAFETY: of `multiply` and `store`: line 4, rows and panel of K codes by lines 1 and 2, and 32 rows of accumulators for each of
    // two groups. The accumulators that are read are of rows and groups that were stored. Line 9 for the terms and columns.
    unsafe {
        let products = |group: usize| {
            clear();
            multiply(rows, a.add(group * GROUP), lda, panel.add(group * GROUP * NR));
        };
        if groups > 0 {
            products(0);
            store(rows, accumulators(0));
        }
        if groups > 1 {
            products(1);
        }
        for group in 0..groups {
            if (group * GROUP).is_multiple_of(K_STEP) {
                ahead.prefetch(group * GROUP);
            }
            if group + 1 < groups {
                store(rows, accumulators(group + 1));
            }
            if group + 2 < groups {
                products(group + 2);
            }
            let (steps, sums) = (load_row(columns.steps, group), load_row(columns.sums, group));
            let zero_points = match columns.zero_points {
                Some(zero_points) => load_row(zero_points, group),
                None => [_mm512_setzero_ps(); 2],
            };
            let acc = accumulators(group);
            for (r, y) in product.0[..rows].iter_mut().enumerate() {
                let terms: &GroupTerms = &*x.add(r * ldx + group);
                let (zero, rest) = (_mm512_set1_ps(terms.zero), _mm512_set1_ps(terms.rest));
                let step = _mm512_set1_ps(terms.step);
                for half in 0..2 {
                    let y = y.as_mut_ptr().add(half * NR / 2);
                    let sum = _mm512_load_si512(acc.add(r).cast::<i32>().add(half * NR / 2).cast());
                    let mut corrected = _mm512_fnmadd_ps(zero, sums[half], _mm512_cvtepi32_ps(sum));
                    if ZERO_POINTS {
                        corrected = _mm512_fnmadd_ps(rest, zero_points[half], corrected);
                    }
                    let scaled = _mm512_mul_ps(corrected, steps[half]);
                    _mm512_store_ps(y, _mm512_fmadd_ps(step, scaled, _mm512_load_ps(y)));
                }
            }
        }
    }
}

/// The 32 values of a group.
///
/// # Safety
/// Line 9 of [`GroupMicrokernel`], and the processor has the enabled feature.
#[target_feature(enable = "avx512f")]
unsafe fn load_row(from: *const f32, group: usize) -> [__m512; 2] {
    // SAFETY: passed on.
    unsafe { [_mm512_load_ps(from.add(group * NR)), _mm512_load_ps(from.add(group * NR + NR / 2))] }
}

/// Accumulators of 0.
///
/// # Safety
/// The tiles are configured.
#[inline(always)]
unsafe fn clear() {
    // SAFETY: passed on; no memory is touched.
    unsafe { registers!("tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3") };
}

/// Adds a group's products.
///
/// # Safety
/// The tiles are configured, `a` is readable for `rows` rows, rounded up to a multiple of 16, of 32 codes, `lda` apart, and `panel` for
/// 1 KiB.
#[inline(always)]
unsafe fn multiply(rows: usize, a: *const i8, lda: usize, panel: *const i8) {
    // SAFETY: passed on. Of the panel: 8 rows of 64 bytes, 128 bytes apart, from each of two addresses.
    unsafe {
        load!("tmm4", a, lda);
        load!("tmm6", panel, ROW_BYTES);
        registers!("tdpbssd tmm0, tmm4, tmm6");
        load!("tmm7", panel.add(64), ROW_BYTES);
        registers!("tdpbssd tmm1, tmm4, tmm7");
        if rows > TILE_ROWS {
            load!("tmm5", a.add(TILE_ROWS * lda), lda);
            registers!("tdpbssd tmm2, tmm5, tmm6", "tdpbssd tmm3, tmm5, tmm7");
        }
    }
}

/// Stores the accumulators of 16 or 32 rows.
///
/// # Safety
/// The tiles are configured, and `to` is writable for 32 rows.
#[inline(always)]
unsafe fn store(rows: usize, to: *mut [i32; NR]) {
    // SAFETY: passed on; a row is 128 bytes.
    unsafe {
        store!("tmm0", to, ROW_BYTES);
        store!("tmm1", to.byte_add(64), ROW_BYTES);
        if rows > TILE_ROWS {
            let below = to.add(TILE_ROWS);
            store!("tmm2", below, ROW_BYTES);
            store!("tmm3", below.byte_add(64), ROW_BYTES);
        }
    }
}

#[cfg(test)]
mod tests {
    use int8_core::corpus::Random;

    use super::*;
    use crate::gemm::operands::{Ahead, Alone, GroupChannels};

    /// 64-byte aligned floats of the columns of a panel.
    #[repr(align(64))]
    struct Columns<const GROUPS: usize>([[f32; NR]; GROUPS]);

    #[test]
    fn the_same_bits_as_on_avx512() {
        const GROUPS: usize = 6;
        let Some(token) = AmxInt8::new() else { return println!("not run: this processor has no AMX") };
        let mut random = Random::new(7);
        let k = GROUPS * GROUP;
        #[repr(align(64))]
        struct Panel([i8; GROUPS * GROUP * NR]);
        let panel = Panel(std::array::from_fn(|_| random.choose(&[-127, -3, 0, 1, 64, 127])));
        let codes: Vec<i8> = (0..MAX_MR * k).map(|_| random.choose(&[-128, -3, 0, 1, 64, 127])).collect();
        let unsigned: Vec<i8> = codes.iter().map(|code| code.wrapping_sub(-128)).collect();
        let terms: Vec<GroupTerms> = (0..MAX_MR * GROUPS)
            .map(|_| GroupTerms {
                step: random.normal(),
                zero: random.choose(&[-5.0, 0.0, 77.0]),
                rest: random.choose(&[-9.0, 3.0]),
            })
            .collect();
        let moved: Vec<GroupTerms> =
            terms.iter().map(|terms| GroupTerms { zero: terms.zero + 128.0, ..*terms }).collect();
        let mut sums = Columns([[0.0; NR]; GROUPS]);
        AmxGroups(token).group_sums(Layout::VnniK4, &panel.0, &mut sums.0);
        let mut floats =
            || Columns::<GROUPS>(std::array::from_fn(|_| std::array::from_fn(|_| random.normal())));
        let (steps, zeros) = (floats(), floats());
        for rows in [1, 15, 16, 17, 31, 32] {
            for zero_points in [None, Some(zeros.0.as_ptr().cast())] {
                let columns = GroupChannels {
                    steps: steps.0.as_ptr().cast(),
                    sums: sums.0.as_ptr().cast(),
                    zero_points,
                };
                let ahead = Ahead::new(Alone::NextPanel, &panel.0, None, (0, 1));
                let operands = |a: &[i8], rows, x: &[GroupTerms]| GroupOperands {
                    codes: Operands {
                        a: a.as_ptr(),
                        lda: k,
                        rows,
                        panel: panel.0.as_ptr(),
                        k,
                        ldw: 0,
                        continued: false,
                        to: None,
                        ahead,
                    },
                    x: x.as_ptr(),
                    ldx: GROUPS,
                    columns,
                };
                let mut found = Tile([[f32::NAN; NR]; MAX_MR]);
                let mut expected = Tile([[f32::NAN; NR]; MAX_MR]);
                // SAFETY: lines 1 to 3 and 9: 32 rows of codes and terms, a panel and its columns; line 4: inside `scoped`.
                AmxGroups(token).scoped(|| unsafe {
                    AmxGroups(token).group_product(operands(&codes, rows, &terms), &mut found);
                });
                for row in 0..rows {
                    let mut one = Tile([[f32::NAN; NR]; MAX_MR]);
                    // SAFETY: as above, from this row on; nothing to set up.
                    unsafe {
                        let operands = operands(&unsigned[row * k..], 1, &moved[row * GROUPS..]);
                        token.avx512().group_product(operands, &mut one);
                    }
                    expected.0[row] = one.0[0];
                }
                assert_eq!(found.0[..rows], expected.0[..rows], "{rows} rows");
                assert!(
                    found.0[rows..].as_flattened().iter().all(|value| value.is_nan()),
                    "rows behind the last"
                );
            }
        }
    }
}
