//! AMX int8: `tdpbssd` multiplies 16 rows of 64 signed bytes by 16 columns of 64 signed bytes, 16,384 multiply-adds an
//! instruction, exact modulo 2³².
//!
//! The compiler has no stable intrinsics for it, so the instructions are written as inline assembly. The compiler never
//! touches the tile registers by itself, and the system saves them when it switches threads, so what one block leaves
//! in them the next one finds.

use std::arch::asm;
use std::hint::black_box;
use std::time::{Duration, Instant};

use super::avx512::outer_rows;
use super::microkernel::Microkernel;
use super::operands::{Ahead, Operands, OuterOperands, Tile};
use crate::layout::{K_STEP, MAX_MR, NR};
use crate::prefetch::Destination;
use crate::simd::Lane;
use crate::tokens::AmxInt8;

/// Rows of one tile register.
const TILE_ROWS: usize = 16;

/// The 64 bytes of `ldtilecfg`: palette 1, and for each of eight tiles its bytes per row and its rows.
#[repr(C, align(64))]
struct Configuration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    bytes_per_row: [u16; 16],
    rows: [u8; 16],
}

impl Configuration {
    /// Accumulators 0 and 1 and input 4 hold the first 16 rows, 2, 3 and 5 the others, 6 and 7 weights. A row of an input has `step`
    /// bytes of K, which are `step / 4` rows of weights; all else is full.
    const fn of_step(step: u8) -> Self {
        let (input, weights) = (step as u16, step / 4);
        Self {
            palette: 1,
            start_row: 0,
            reserved: [0; 14],
            bytes_per_row: [64, 64, 64, 64, input, input, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
            rows: [16, 16, 16, 16, 16, 16, weights, weights, 0, 0, 0, 0, 0, 0, 0, 0],
        }
    }
}

/// Eight full tiles.
static CONFIGURATION: Configuration = Configuration::of_step(64);

/// The tiles of this thread, configured until it is dropped.
struct Tiles;

impl Tiles {
    /// The token is the proof that the instructions exist.
    fn configure(_: AmxInt8, configuration: &'static Configuration) -> Self {
        // SAFETY: the token; the configurations here and in `groups` are valid for palette 1.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const *configuration, options(nostack, readonly)) };
        Self
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // Back to the initial state: nothing for the system to save when it switches threads.
        // SAFETY: it was made from a token.
        unsafe { asm!("tilerelease", options(nostack, nomem, preserves_flags)) };
    }
}

/// Loads a tile register: 16 rows of 64 bytes, `$stride` bytes apart.
macro_rules! load {
    ($tile:literal, $from:expr, $stride:expr) => {
        load!("tileloadd", $tile, $from, $stride)
    };
    ($instruction:literal, $tile:literal, $from:expr, $stride:expr) => {
        asm!(
            concat!($instruction, " ", $tile, ", [{from} + {stride}*1]"),
            from = in(reg) $from,
            stride = in(reg) $stride,
            options(nostack, readonly, preserves_flags),
        )
    };
}

/// The same for what is not read again soon: it does not displace the panel from L1.
macro_rules! load_once {
    ($tile:literal, $from:expr, $stride:expr) => {
        load!("tileloaddt1", $tile, $from, $stride)
    };
}

/// Stores a tile register.
macro_rules! store {
    ($tile:literal, $to:expr, $stride:expr) => {
        asm!(
            concat!("tilestored [{to} + {stride}*1], ", $tile),
            to = in(reg) $to,
            stride = in(reg) $stride,
            options(nostack, preserves_flags),
        )
    };
}

/// Instructions on tile registers alone.
macro_rules! registers {
    ($($instruction:literal),*) => {
        asm!($($instruction),*, options(nostack, nomem, preserves_flags))
    };
}

mod bf16;
pub(crate) mod groups;

/// Bytes between two rows of the accumulators, and between two steps of four of K in the panel.
const ROW_BYTES: usize = 4 * NR;

/// Up to 16 rows of x by the panel.
///
/// Each operand is loaded for the next step as soon as its register is free: where operands come from L2, a load
/// just before its product was waited for in up to a seventh of the time.
///
/// # Safety
/// Lines 1 to 4 and 11 of [`Microkernel`], and `acc` is valid for 16 rows.
#[inline(always)]
unsafe fn one(operands: Operands, acc: *mut [i32; NR]) {
    let Operands { a, lda, panel, k, continued, ahead, .. } = operands;
    // SAFETY: line 4: the tiles are configured. Line 2: 16 rows of 64 bytes, 128 bytes apart, from each of two addresses, are
    // the 2048 bytes of the panel for a step of K, and every step read is one of the K_STEPs below k. Line 1: rows are
    // readable up to the next multiple of 16; those beyond `rows` are computed and not used. A row of the accumulators
    // is 128 bytes.
    unsafe {
        if continued {
            load!("tmm0", acc, ROW_BYTES);
            load!("tmm1", acc.byte_add(64), ROW_BYTES);
        } else {
            registers!("tilezero tmm0", "tilezero tmm1");
        }
        if k > 0 {
            load!("tmm4", a, lda);
            load!("tmm6", panel, ROW_BYTES);
            load!("tmm7", panel.add(64), ROW_BYTES);
            for next in (K_STEP..k).step_by(K_STEP) {
                ahead.prefetch(next - K_STEP);
                let weights = panel.add(next * NR);
                registers!("tdpbssd tmm0, tmm4, tmm6");
                load!("tmm6", weights, ROW_BYTES);
                registers!("tdpbssd tmm1, tmm4, tmm7");
                load!("tmm4", a.add(next), lda);
                load!("tmm7", weights.add(64), ROW_BYTES);
            }
            ahead.prefetch(k - K_STEP);
            registers!("tdpbssd tmm0, tmm4, tmm6", "tdpbssd tmm1, tmm4, tmm7");
        }
        store!("tmm0", acc, ROW_BYTES);
        store!("tmm1", acc.byte_add(64), ROW_BYTES);
    }
}

/// 17 to 32 rows of x by the panel, as [`one`], but rows of x do not displace the panel from L1, and the lines of the result
/// are prefetched on the way: with K in blocks, 20 to 43 % less time for bare tile loops of 512 rows.
///
/// # Safety
/// As [`one`], with more than 16 rows, and `acc` is valid for 32.
#[inline(always)]
unsafe fn two_below(operands: Operands, acc: *mut [i32; NR]) {
    let Operands { a, lda, rows, panel, k, continued, to, ahead, .. } = operands;
    let mut claim = Claim::new(to, rows, k);
    // SAFETY: as in `one`, for 32 rows.
    unsafe {
        let below = acc.add(TILE_ROWS);
        if continued {
            load!("tmm0", acc, ROW_BYTES);
            load!("tmm1", acc.byte_add(64), ROW_BYTES);
            load!("tmm2", below, ROW_BYTES);
            load!("tmm3", below.byte_add(64), ROW_BYTES);
        } else {
            registers!("tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3");
        }
        if k > 0 {
            let lower = a.add(TILE_ROWS * lda);
            load_once!("tmm4", a, lda);
            load!("tmm6", panel, ROW_BYTES);
            load!("tmm7", panel.add(64), ROW_BYTES);
            load_once!("tmm5", lower, lda);
            for next in (K_STEP..k).step_by(K_STEP) {
                ahead.prefetch(next - K_STEP);
                claim.step();
                let weights = panel.add(next * NR);
                registers!("tdpbssd tmm0, tmm4, tmm6", "tdpbssd tmm1, tmm4, tmm7");
                load_once!("tmm4", a.add(next), lda);
                registers!("tdpbssd tmm2, tmm5, tmm6");
                load!("tmm6", weights, ROW_BYTES);
                registers!("tdpbssd tmm3, tmm5, tmm7");
                load!("tmm7", weights.add(64), ROW_BYTES);
                load_once!("tmm5", lower.add(next), lda);
            }
            ahead.prefetch(k - K_STEP);
            claim.step();
            registers!("tdpbssd tmm0, tmm4, tmm6", "tdpbssd tmm1, tmm4, tmm7");
            registers!("tdpbssd tmm2, tmm5, tmm6", "tdpbssd tmm3, tmm5, tmm7");
        }
        store!("tmm0", acc, ROW_BYTES);
        store!("tmm1", acc.byte_add(64), ROW_BYTES);
        store!("tmm2", below, ROW_BYTES);
        store!("tmm3", below.byte_add(64), ROW_BYTES);
    }
}

/// Prefetches the lines of a tile's result, some rows for each step of K: stores alone would miss all at once when the product
/// is done, and wait.
///
/// They come to L2, and belong to this core unless another has them, too. `prefetchw` takes them on to L1, and through the few
/// buffers that rows of x come through: that costs bf16 results more than it saves.
struct Claim {
    to: Destination,
    /// Rows left, and rows a step.
    left: usize,
    share: usize,
}

impl Claim {
    #[inline(always)]
    fn new(to: Option<Destination>, rows: usize, k: usize) -> Self {
        let share = rows.div_ceil((k / K_STEP).max(1));
        match to {
            Some(to) => Self { to, left: rows, share },
            None => {
                let nowhere = Destination { first: std::ptr::null(), stride: 0, width: 0 };
                Self { to: nowhere, left: 0, share }
            }
        }
    }

    #[inline(always)]
    fn step(&mut self) {
        for _ in 0..self.share.min(self.left) {
            self.to.prefetch();
            self.to = self.to.below();
            self.left -= 1;
        }
    }
}

// SAFETY: line 7: made from an `AmxInt8` token, which stands for AMX-TILE, AMX-INT8, AVX-512 VNNI and AVX-512 BF16. Line 8: MR = 32,
// and the tiles write 16 or 32 rows.
unsafe impl Microkernel for AmxInt8 {
    /// Two tile registers below each other; with two side by side, four accumulators for four operands loaded.
    const MR: usize = 2 * TILE_ROWS;

    fn scoped<R>(self, job: impl FnOnce() -> R) -> R {
        // Once for a thread, not for a tile: loading and releasing takes a hundred nanoseconds, and a processor that sees
        // the tiles released may run the next ones at a quarter of the speed until it has power for them again.
        let _tiles = Tiles::configure(self, &CONFIGURATION);
        job()
    }

    /// 32 KiB of a panel, of the 48 that L1 has.
    const KC: Option<usize> = Some(1024);

    unsafe fn product(self, operands: Operands, acc: &mut Tile<i32>) {
        // SAFETY: passed on; the accumulators have 32 rows.
        unsafe {
            if operands.rows > TILE_ROWS {
                two_below(operands, acc.0.as_mut_ptr());
            } else {
                one(operands, acc.0.as_mut_ptr());
            }
        }
    }

    unsafe fn outer<W: Lane>(self, operands: OuterOperands<W>, sums: &mut Tile<f32>) {
        // SAFETY: lines 5 and 6 are passed on; the token includes AVX-512 VNNI.
        unsafe { outer_rows(self.avx512(), operands, sums) }
    }
}

/// Multiply-adds of a step of K with two by two tiles.
const STEP_WORK: usize = 4 * TILE_ROWS * TILE_ROWS * K_STEP;

/// At least so many multiply-adds, in steps of four independent accumulators on registers alone; how many.
///
/// The token is the proof that the instructions exist.
pub(crate) fn dot_products(token: AmxInt8, multiply_adds: usize) -> usize {
    let steps = multiply_adds.div_ceil(STEP_WORK);
    let _tiles = Tiles::configure(token, &CONFIGURATION);
    // SAFETY: the tiles are configured.
    unsafe { on_registers(steps) };
    steps * STEP_WORK
}

/// # Safety
/// The tiles are configured.
unsafe fn on_registers(steps: usize) {
    // SAFETY: passed on; no memory is touched.
    unsafe {
        for _ in 0..steps {
            asm!(
                "tdpbssd tmm0, tmm4, tmm6",
                "tdpbssd tmm1, tmm4, tmm7",
                "tdpbssd tmm2, tmm5, tmm6",
                "tdpbssd tmm3, tmm5, tmm7",
                options(nostack, nomem, preserves_flags),
            );
        }
    }
}

/// How many times longer a tile takes with its operands in L1 than the same products on registers: by count a fifth longer on a core that
/// runs this thread alone, and two to four times on one of which a second hardware thread is in use, whatever that does. Takes some 3 µs.
///
/// The token is the proof that the instructions exist.
pub(crate) fn slowness(token: AmxInt8) -> f64 {
    const INNER: usize = 1024;
    const ROWS: usize = 2 * TILE_ROWS;
    /// A panel. Rows of x begin in it, one line after the other.
    #[repr(align(64))]
    struct Zeros([i8; INNER * NR]);
    static ZEROS: Zeros = Zeros([0; INNER * NR]);
    let zeros = ZEROS.0.as_ptr();
    let nothing = Ahead { panel: zeros, from: 0, to: 0 };
    let operands = Operands {
        a: zeros,
        lda: K_STEP,
        rows: ROWS,
        panel: zeros,
        k: INNER,
        ldw: 0,
        continued: false,
        to: None,
        ahead: nothing,
    };
    let mut acc = Tile([[0; NR]; MAX_MR]);
    let _tiles = Tiles::configure(token, &CONFIGURATION);
    let (mut tile, mut registers) = (Duration::MAX, Duration::MAX);
    for _ in 0..3 {
        let start = Instant::now();
        // SAFETY: lines 1 and 2: the last row ends at ROWS·64 + INNER of INNER·NR; line 3: 32 rows, K in whole steps; line 4: the
        // tiles are configured; line 11: not continued. The accumulators have 32 rows.
        unsafe { two_below(operands, black_box(&mut acc).0.as_mut_ptr()) };
        tile = tile.min(start.elapsed());
        let start = Instant::now();
        // SAFETY: the tiles are configured.
        unsafe { on_registers(INNER / K_STEP) };
        registers = registers.min(start.elapsed());
    }
    tile.as_secs_f64() / registers.as_secs_f64()
}
