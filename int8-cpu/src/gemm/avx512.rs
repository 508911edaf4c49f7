//! AVX-512 VNNI: `vpdpbusd zmm` multiplies 64 unsigned by signed bytes and adds each group of four to an i32 lane.
//!
//! Codes of `x` are stored with 128 added, and `128·Σ_k w[n, k]` is taken off afterwards. The instruction wraps
//! instead of saturating, so the result is exact whenever the true sum fits an i32.

use std::arch::x86_64::*;

use int8_core::GROUP;

use super::microkernel::{GroupMicrokernel, Microkernel};
use super::operands::{Alone, GroupChannels, GroupOperands, Operands, OuterOperands, StoredChannels, Tile};
use crate::layout::{K_STEP, Layout, NR};
use crate::prefetch::is_amd;
use crate::simd::{LANES, Lane};
use crate::tokens::Avx512Vnni;

/// Calls `$function::<R, …>` for the R that equals `$rows`, 1 to 12.
macro_rules! by_rows {
    ($rows:expr, $function:ident $(::<$($generic:tt),*>)? ($($argument:expr),*)) => {
        match $rows {
            1 => $function::<1 $($(, $generic)*)?>($($argument),*),
            2 => $function::<2 $($(, $generic)*)?>($($argument),*),
            3 => $function::<3 $($(, $generic)*)?>($($argument),*),
            4 => $function::<4 $($(, $generic)*)?>($($argument),*),
            5 => $function::<5 $($(, $generic)*)?>($($argument),*),
            6 => $function::<6 $($(, $generic)*)?>($($argument),*),
            7 => $function::<7 $($(, $generic)*)?>($($argument),*),
            8 => $function::<8 $($(, $generic)*)?>($($argument),*),
            9 => $function::<9 $($(, $generic)*)?>($($argument),*),
            10 => $function::<10 $($(, $generic)*)?>($($argument),*),
            11 => $function::<11 $($(, $generic)*)?>($($argument),*),
            _ => $function::<12 $($(, $generic)*)?>($($argument),*),
        }
    };
}

// SAFETY: line 7: made from an `Avx512Vnni` token, which stands for every feature enabled below. Line 8: MR = 12, and
// each function stores rows 0..R with R = rows.
unsafe impl Microkernel for Avx512Vnni {
    /// 12 rows × 2 registers = 24 accumulators, 2 registers of weights and a broadcast: 27 of 32.
    const MR: usize = 12;

    /// In turns on Zen 4, 4096×4096, against 4 KiB: four rows take 40 % less time on one thread and 10 to 20 % on two, eight rows
    /// 20 to 30 % less on one and 15 to 40 % on two; one row as long or, in a model, a little longer.
    fn alone(rows: usize) -> Alone {
        match rows {
            2..=4 if is_amd() => Alone::Nothing,
            5.. if is_amd() => Alone::Behind(7168),
            _ => Alone::Behind(4096),
        }
    }

    unsafe fn product(self, operands: Operands, acc: &mut Tile<i32>) {
        // SAFETY: lines 1 to 4 are passed on; line 7 for the instructions.
        unsafe { by_rows!(operands.rows, product(operands, acc)) }
    }

    unsafe fn outer<W: Lane>(self, operands: OuterOperands<W>, acc: &mut Tile<f32>) {
        // SAFETY: lines 5 and 6 are passed on; line 7 for the instructions.
        unsafe { outer_tile(self, operands, &mut acc.0) }
    }
}

/// # Safety
/// Lines 1 to 4 of [`Microkernel`] with `rows = R`, and the processor has the enabled features.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn product<const R: usize>(operands: Operands, acc: &mut Tile<i32>) {
    let Operands { a, lda, panel, k, ahead, .. } = operands;
    operands.prefetch_result();
    let mut sums = [[_mm512_setzero_si512(); 2]; R];
    for chunk in (0..k).step_by(K_STEP) {
        ahead.prefetch(chunk);
        for offset in (chunk..chunk + K_STEP).step_by(4) {
            // SAFETY: line 2: offset + 4 ≤ k, so the 128 bytes from offset·NR on lie in the panel, aligned.
            let w = unsafe {
                let at = panel.add(offset * NR);
                [_mm512_load_si512(at.cast()), _mm512_load_si512(at.add(64).cast())]
            };
            for (r, sum) in sums.iter_mut().enumerate() {
                // SAFETY: line 1: r < rows and offset + 4 ≤ k.
                let x = unsafe { _mm512_set1_epi32(a.add(r * lda + offset).cast::<i32>().read_unaligned()) };
                sum[0] = _mm512_dpbusd_epi32(sum[0], x, w[0]);
                sum[1] = _mm512_dpbusd_epi32(sum[1], x, w[1]);
            }
        }
    }
    for (row, sum) in acc.0.iter_mut().zip(sums) {
        // SAFETY: a row of the tile is 32 i32, two registers, and 64-byte aligned.
        unsafe {
            _mm512_store_si512(row.as_mut_ptr().cast(), sum[0]);
            _mm512_store_si512(row.as_mut_ptr().add(16).cast(), sum[1]);
        }
    }
}

/// Rows whose integer and f32 accumulators fit the registers: 6 rows × 4 = 24, weights, a broadcast and temporaries.
const GROUP_ROWS: usize = 6;

/// Calls `$function::<R, $zeros, C>` for the R that equals `$rows`, 1 to 6.
macro_rules! by_group_rows {
    ($rows:expr, $zeros:literal, $function:ident($($argument:expr),*)) => {
        match $rows {
            1 => $function::<1, $zeros, C>($($argument),*),
            2 => $function::<2, $zeros, C>($($argument),*),
            3 => $function::<3, $zeros, C>($($argument),*),
            4 => $function::<4, $zeros, C>($($argument),*),
            5 => $function::<5, $zeros, C>($($argument),*),
            _ => $function::<6, $zeros, C>($($argument),*),
        }
    };
}

// SAFETY: line 10: `group_product` is its own. Line 8: the parts cover rows 0..rows, each stores its own.
unsafe impl GroupMicrokernel for Avx512Vnni {
    unsafe fn group_product(self, operands: GroupOperands, product: &mut Tile<f32>) {
        // SAFETY: lines 1 to 4 and 9 are passed on; line 7 for the instructions.
        unsafe { group_products(operands, product) }
    }

    /// 4 rows × 4 accumulators, 2 of code sums, weights, quantization parameters and temporaries.
    const FEW_ROWS: usize = 4;

    unsafe fn group_product_stored(self, operands: GroupOperands<StoredChannels>, product: &mut Tile<f32>) {
        // SAFETY: as above.
        unsafe { group_products(operands, product) }
    }

    fn group_sums(self, _: Layout, panel: &[i8], sums: &mut [[f32; NR]]) {
        // SAFETY: line 7 for the instructions.
        unsafe { group_sums(panel, sums) }
    }
}

/// ChannelParameters of one panel's columns, 16 at a time.
trait ChannelParameters: Copy {
    /// Whether the code sums are those that the product itself adds up.
    const ADDS_UP: bool;

    fn has_zero_points(self) -> bool;

    /// Steps, code sums and zero points from index `at` on of `[groups, NR]`; `added` are the sums of the product.
    ///
    /// # Safety
    /// Line 9 of [`GroupMicrokernel`], with 16 columns at `at`, and the processor has AVX-512.
    unsafe fn load(self, at: usize, added: __m512i) -> [__m512; 3];
}

impl ChannelParameters for GroupChannels {
    const ADDS_UP: bool = false;

    fn has_zero_points(self) -> bool {
        self.zero_points.is_some()
    }

    #[inline(always)]
    unsafe fn load(self, at: usize, _: __m512i) -> [__m512; 3] {
        // SAFETY: this function's contract: 16 aligned floats in each.
        unsafe {
            let zero_points = match self.zero_points {
                Some(zero_points) => _mm512_load_ps(zero_points.add(at)),
                None => _mm512_setzero_ps(),
            };
            [_mm512_load_ps(self.steps.add(at)), _mm512_load_ps(self.sums.add(at)), zero_points]
        }
    }
}

impl ChannelParameters for StoredChannels {
    const ADDS_UP: bool = true;

    fn has_zero_points(self) -> bool {
        self.zero_points.is_some()
    }

    #[inline(always)]
    unsafe fn load(self, at: usize, added: __m512i) -> [__m512; 3] {
        // SAFETY: this function's contract: 16 scales of 16 bits, 16 zero points of 8.
        unsafe {
            let scales = _mm512_cvtepu16_epi32(_mm256_loadu_si256(self.scales.add(at).cast()));
            let scales = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(scales));
            let zero_points = match self.zero_points {
                Some(zero_points) => {
                    _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(zero_points.add(at).cast())))
                }
                None => _mm512_setzero_ps(),
            };
            [_mm512_div_ps(scales, _mm512_set1_ps(127.0)), _mm512_cvtepi32_ps(added), zero_points]
        }
    }
}

/// All rows of a tile, as many at a time as the registers hold.
///
/// # Safety
/// Lines 1 to 4 of [`Microkernel`] and 9 of [`GroupMicrokernel`], and the processor has AVX-512 VNNI.
unsafe fn group_products<C: ChannelParameters>(operands: GroupOperands<C>, product: &mut Tile<f32>) {
    let GroupOperands { codes, x, ldx, columns } = operands;
    codes.prefetch_result();
    let parts = codes.rows.div_ceil(GROUP_ROWS);
    for part in 0..parts {
        let (first, end) = (codes.rows * part / parts, codes.rows * (part + 1) / parts);
        let sums = &mut product.0[first..end];
        // SAFETY: lines 1 to 4 and 9 for rows first..end, and the instructions.
        unsafe {
            let rows = Operands { a: codes.a.add(first * codes.lda), rows: end - first, ..codes };
            let part = GroupOperands { codes: rows, x: x.add(first * ldx), ldx, columns };
            if columns.has_zero_points() {
                by_group_rows!(end - first, true, group_product(part, first == 0, sums));
            } else {
                by_group_rows!(end - first, false, group_product(part, first == 0, sums));
            }
        }
    }
}

/// # Safety
/// Lines 1 to 4 of [`Microkernel`] and 9 of [`GroupMicrokernel`] with `rows = R`, and the processor has the enabled features.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn group_product<const R: usize, const ZERO_POINTS: bool, C: ChannelParameters>(
    operands: GroupOperands<C>,
    prefetch: bool,
    product: &mut [[f32; NR]],
) {
    let GroupOperands { codes: Operands { a, lda, panel, k, ahead, .. }, x, ldx, columns } = operands;
    let ones = _mm512_set1_epi8(1);
    let mut y = [[_mm512_setzero_ps(); 2]; R];
    for group in 0..k / GROUP {
        let first = group * GROUP;
        if prefetch && first.is_multiple_of(K_STEP) {
            ahead.prefetch(first);
        }
        let mut acc = [[_mm512_setzero_si512(); 2]; R];
        let mut added = [_mm512_setzero_si512(); 2];
        for offset in (first..first + GROUP).step_by(4) {
            // SAFETY: line 2: offset + 4 ≤ k, so the 128 bytes from offset·NR on lie in the panel, aligned.
            let w = unsafe {
                let at = panel.add(offset * NR);
                [_mm512_load_si512(at.cast()), _mm512_load_si512(at.add(64).cast())]
            };
            if C::ADDS_UP {
                added =
                    [_mm512_dpbusd_epi32(added[0], ones, w[0]), _mm512_dpbusd_epi32(added[1], ones, w[1])];
            }
            for (r, acc) in acc.iter_mut().enumerate() {
                // SAFETY: line 1: r < rows and offset + 4 ≤ k.
                let x = unsafe { _mm512_set1_epi32(a.add(r * lda + offset).cast::<i32>().read_unaligned()) };
                acc[0] = _mm512_dpbusd_epi32(acc[0], x, w[0]);
                acc[1] = _mm512_dpbusd_epi32(acc[1], x, w[1]);
            }
        }
        for half in 0..2 {
            // SAFETY: line 9: group < k/GROUP.
            let [steps, sums, zero_points] = unsafe { columns.load(group * NR + half * NR / 2, added[half]) };
            for (r, (acc, y)) in acc.iter().zip(&mut y).enumerate() {
                // SAFETY: line 9: r < rows.
                let terms = unsafe { &*x.add(r * ldx + group) };
                let acc = _mm512_cvtepi32_ps(acc[half]);
                let mut corrected = _mm512_fnmadd_ps(_mm512_set1_ps(terms.zero), sums, acc);
                if ZERO_POINTS {
                    corrected = _mm512_fnmadd_ps(_mm512_set1_ps(terms.rest), zero_points, corrected);
                }
                let scaled = _mm512_mul_ps(corrected, steps);
                y[half] = _mm512_fmadd_ps(_mm512_set1_ps(terms.step), scaled, y[half]);
            }
        }
    }
    for (row, y) in product.iter_mut().zip(y) {
        // SAFETY: a row of the tile is 32 f32, two registers, and 64-byte aligned.
        unsafe {
            _mm512_store_ps(row.as_mut_ptr(), y[0]);
            _mm512_store_ps(row.as_mut_ptr().add(16), y[1]);
        }
    }
}

/// # Safety
/// The processor has the enabled features.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
pub(super) unsafe fn group_sums(panel: &[i8], sums: &mut [[f32; NR]]) {
    let ones = _mm512_set1_epi8(1);
    for (k4, sums) in panel.as_chunks::<{ GROUP * NR }>().0.iter().zip(sums) {
        let mut totals = [_mm512_setzero_si512(); 2];
        for row in k4.as_chunks::<{ 4 * NR }>().0 {
            // SAFETY: 128 bytes.
            let w = unsafe {
                [_mm512_loadu_si512(row.as_ptr().cast()), _mm512_loadu_si512(row.as_ptr().add(64).cast())]
            };
            totals[0] = _mm512_dpbusd_epi32(totals[0], ones, w[0]);
            totals[1] = _mm512_dpbusd_epi32(totals[1], ones, w[1]);
        }
        // SAFETY: 32 f32.
        unsafe {
            _mm512_storeu_ps(sums.as_mut_ptr(), _mm512_cvtepi32_ps(totals[0]));
            _mm512_storeu_ps(sums.as_mut_ptr().add(16), _mm512_cvtepi32_ps(totals[1]));
        }
    }
}

/// As `outer` for any number of rows, twelve at a time.
///
/// # Safety
/// Lines 5 and 6 of [`Microkernel`] with `rows ≤ MAX_MR`, and the processor has AVX-512 VNNI.
pub(super) unsafe fn outer_rows<W: Lane>(token: Avx512Vnni, operands: OuterOperands<W>, acc: &mut Tile<f32>) {
    for first in (0..operands.rows).step_by(Avx512Vnni::MR) {
        let rows = Avx512Vnni::MR.min(operands.rows - first);
        // SAFETY: lines 5 and 6 for these rows; rows of the tile are 128 bytes, so each is aligned as the first.
        unsafe {
            let part = OuterOperands { x: operands.x.add(first * operands.ldx), rows, ..operands };
            outer_tile(token, part, &mut acc.0[first..]);
        }
    }
}

/// # Safety
/// Lines 5 and 6 of [`Microkernel`] with `rows ≤ 12`, and the processor has AVX-512 VNNI.
unsafe fn outer_tile<W: Lane>(token: Avx512Vnni, operands: OuterOperands<W>, acc: &mut [[f32; NR]]) {
    // SAFETY: lines 5 and 6 are passed on, and the instructions are there.
    unsafe {
        if operands.streamed {
            by_rows!(operands.rows, outer::<W, true>(token, operands, acc));
        } else {
            by_rows!(operands.rows, outer::<W, false>(token, operands, acc));
        }
    }
}

/// # Safety
/// Lines 5 and 6 of [`Microkernel`] with `rows = R`, and the processor has the enabled features.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn outer<const R: usize, W: Lane, const STREAMED: bool>(
    token: Avx512Vnni,
    operands: OuterOperands<W>,
    acc: &mut [[f32; NR]],
) {
    let OuterOperands { x, ldx, w, count, .. } = operands;
    let mut sums = [[_mm512_setzero_ps(); 2]; R];
    for o in 0..count {
        if STREAMED {
            operands.prefetch(o);
        }
        // SAFETY: line 6: o < count.
        let w = unsafe { &*w.add(o * NR).cast::<[[W; LANES]; 2]>() };
        let w = [W::load(token, &w[0]), W::load(token, &w[1])];
        for (r, sum) in sums.iter_mut().enumerate() {
            // SAFETY: line 5: r < rows and o < count.
            let x = unsafe { _mm512_set1_ps(*x.add(r * ldx + o)) };
            sum[0] = _mm512_fmadd_ps(x, w[0], sum[0]);
            sum[1] = _mm512_fmadd_ps(x, w[1], sum[1]);
        }
    }
    for (row, sum) in acc.iter_mut().zip(sums) {
        // SAFETY: a row of the tile is 32 f32, two registers, and 64-byte aligned.
        unsafe {
            _mm512_store_ps(row.as_mut_ptr(), sum[0]);
            _mm512_store_ps(row.as_mut_ptr().add(16), sum[1]);
        }
    }
}
