//! AMX int8: `tdpbssd` multiplies 16 rows of 64 signed bytes by 16 columns of 64 signed bytes, 16,384 multiply-adds an
//! instruction, exact modulo 2³².
//!
//! The compiler has no stable intrinsics for it, so the instructions are written as inline assembly. The compiler never
//! touches the tile registers by itself, and the system saves them when it switches threads, so what one block leaves
//! in them the next one finds.

use std::arch::asm;
use std::sync::OnceLock;

use super::avx512::{Avx512Tile, outer_rows};
use super::{K_STEP, Lane, Operands, OuterOperands, PANEL, Tile, TileKernel, Vectorized};
use crate::kernel::{AmxInt8, Avx512Vnni};

/// Rows of one tile register.
const TILE_ROWS: usize = 16;

/// Whether processor and system offer AMX int8 to this process; asks the system for permission, once.
pub(crate) fn detect() -> bool {
    static DETECTED: OnceLock<bool> = OnceLock::new();
    *DETECTED.get_or_init(|| Avx512Vnni::new().is_some() && has_instructions() && permission())
}

/// CPUID says AMX-TILE and AMX-INT8, and the system saves both tile states.
fn has_instructions() -> bool {
    use std::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};
    /// CPUID leaf 7, EDX: AMX-TILE and AMX-INT8.
    const AMX: u32 = (1 << 24) | (1 << 25);
    /// CPUID leaf 1, ECX: the system has enabled XGETBV.
    const OSXSAVE: u32 = 1 << 27;
    /// XCR0: tile configuration and tile data.
    const TILE_STATES: u64 = (1 << 17) | (1 << 18);
    if __cpuid(0).eax < 7 || __cpuid_count(7, 0).edx & AMX != AMX || __cpuid(1).ecx & OSXSAVE == 0 {
        return false;
    }
    // SAFETY: OSXSAVE is set, so the instruction exists.
    #[allow(unused_unsafe, reason = "the intrinsic is safe where the feature is a baseline")]
    let enabled = unsafe { _xgetbv(0) };
    enabled & TILE_STATES == TILE_STATES
}

/// Linux hands out the 8 KiB of tile state only to processes that ask for it.
#[cfg(target_os = "linux")]
fn permission() -> bool {
    const ARCH_PRCTL: u64 = 158;
    const ARCH_REQ_XCOMP_PERM: u64 = 0x1023;
    const XFEATURE_XTILEDATA: u64 = 18;
    let result: i64;
    // SAFETY: arch_prctl takes two integers, touches no memory of ours with this code, and returns 0 or an error.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") ARCH_PRCTL => result,
            in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") XFEATURE_XTILEDATA,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    result == 0
}

#[cfg(not(target_os = "linux"))]
fn permission() -> bool {
    false
}

/// The 64 bytes of `ldtilecfg`: palette 1, and for each of eight tiles its bytes per row and its rows.
#[repr(C, align(64))]
struct Configuration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    bytes_per_row: [u16; 16],
    rows: [u8; 16],
}

/// Eight full tiles. Accumulators 0 and 1 and input 4 hold the first 16 rows, 2, 3 and 5 the others, 6 and 7 weights.
static CONFIGURATION: Configuration = Configuration {
    palette: 1,
    start_row: 0,
    reserved: [0; 14],
    bytes_per_row: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
    rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
};

/// The tiles of this thread, configured until it is dropped.
struct Tiles;

impl Tiles {
    /// The token is the proof that the instructions exist.
    fn configure(_: AmxInt8) -> Self {
        // SAFETY: the token; the configuration is valid for palette 1.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const CONFIGURATION, options(nostack, readonly)) };
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

/// The AMX tile functions.
#[derive(Clone, Copy)]
pub(crate) struct AmxTile(pub(crate) AmxInt8);

// SAFETY: line 7: made from an `AmxInt8` token, which stands for AMX-TILE, AMX-INT8 and AVX-512 VNNI. Line 8: ROWS = 32,
// and the tiles write 16 or 32 rows.
unsafe impl TileKernel for AmxTile {
    /// Two tile registers below each other; with two side by side, four accumulators for four operands loaded.
    const ROWS: usize = 2 * TILE_ROWS;
    const ROW_STEP: usize = TILE_ROWS;
    const OFFSET: u8 = 0;

    fn scoped<R>(self, job: impl FnOnce() -> R) -> R {
        // Once for a task, not for a tile: loading and releasing takes a hundred nanoseconds, and a processor that sees
        // the tiles released may run the next ones at a quarter of the speed until it has power for them again.
        let _tiles = Tiles::configure(self.0);
        job()
    }

    unsafe fn product(self, operands: Operands, acc: &mut Tile<i32>) {
        let Operands { a, lda, rows, panel, k, ahead, .. } = operands;
        let two = rows > TILE_ROWS;
        // SAFETY: line 4: the tiles are configured. Eight full tiles: rows beyond `rows` are computed and not looked at.
        unsafe {
            asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                options(nostack, nomem, preserves_flags),
            );
        }
        // Each operand is loaded for the next step as soon as its register is free: where operands come from L2, a load
        // just before its product was waited for in up to a seventh of the time.
        let lower = TILE_ROWS * lda;
        // SAFETY: line 2: 16 rows of 64 bytes, 128 bytes apart, from each of the two addresses, are the 2048 bytes of the
        // panel for a step of K, and every step read is one of the K_STEPs below k. Line 1: rows are readable up to the
        // next multiple of 16.
        unsafe {
            if k > 0 {
                asm!(
                    "tileloadd tmm4, [{upper} + {lda}*1]",
                    "tileloadd tmm6, [{weights} + {stride}*1]",
                    "tileloadd tmm7, [{weights} + {stride}*1 + 64]",
                    weights = in(reg) panel,
                    stride = in(reg) 4 * PANEL,
                    upper = in(reg) a,
                    lda = in(reg) lda,
                    options(nostack, readonly, preserves_flags),
                );
                if two {
                    asm!(
                        "tileloadd tmm5, [{lower} + {lda}*1]",
                        lower = in(reg) a.add(lower),
                        lda = in(reg) lda,
                        options(nostack, readonly, preserves_flags),
                    );
                }
            }
            for next in (K_STEP..k).step_by(K_STEP) {
                ahead.fetch(next - K_STEP);
                let (weights, upper) = (panel.add(next * PANEL), a.add(next));
                if two {
                    asm!(
                        "tdpbssd tmm0, tmm4, tmm6",
                        "tdpbssd tmm1, tmm4, tmm7",
                        "tileloadd tmm4, [{upper} + {lda}*1]",
                        "tdpbssd tmm2, tmm5, tmm6",
                        "tileloadd tmm6, [{weights} + {stride}*1]",
                        "tdpbssd tmm3, tmm5, tmm7",
                        "tileloadd tmm7, [{weights} + {stride}*1 + 64]",
                        "tileloadd tmm5, [{lower} + {lda}*1]",
                        weights = in(reg) weights,
                        stride = in(reg) 4 * PANEL,
                        upper = in(reg) upper,
                        lower = in(reg) upper.add(lower),
                        lda = in(reg) lda,
                        options(nostack, readonly, preserves_flags),
                    );
                } else {
                    asm!(
                        "tdpbssd tmm0, tmm4, tmm6",
                        "tileloadd tmm6, [{weights} + {stride}*1]",
                        "tdpbssd tmm1, tmm4, tmm7",
                        "tileloadd tmm4, [{upper} + {lda}*1]",
                        "tileloadd tmm7, [{weights} + {stride}*1 + 64]",
                        weights = in(reg) weights,
                        stride = in(reg) 4 * PANEL,
                        upper = in(reg) upper,
                        lda = in(reg) lda,
                        options(nostack, readonly, preserves_flags),
                    );
                }
            }
            if k > 0 {
                ahead.fetch(k - K_STEP);
                asm!(
                    "tdpbssd tmm0, tmm4, tmm6",
                    "tdpbssd tmm1, tmm4, tmm7",
                    options(nostack, nomem, preserves_flags),
                );
                if two {
                    asm!(
                        "tdpbssd tmm2, tmm5, tmm6",
                        "tdpbssd tmm3, tmm5, tmm7",
                        options(nostack, nomem, preserves_flags),
                    );
                }
            }
        }
        let to = acc.0.as_mut_ptr();
        // SAFETY: a row of the accumulators is 128 bytes, and there are 32; each tile writes 64 bytes of 16 of them.
        unsafe {
            asm!(
                "tilestored [{to} + {stride}*1], tmm0",
                "tilestored [{to} + {stride}*1 + 64], tmm1",
                to = in(reg) to,
                stride = in(reg) 4 * PANEL,
                options(nostack, preserves_flags),
            );
            if two {
                asm!(
                    "tilestored [{to} + {stride}*1], tmm2",
                    "tilestored [{to} + {stride}*1 + 64], tmm3",
                    to = in(reg) to.add(TILE_ROWS),
                    stride = in(reg) 4 * PANEL,
                    options(nostack, preserves_flags),
                );
            }
        }
    }

    unsafe fn outer<W: Lane>(self, operands: OuterOperands<W>, sums: &mut Tile<f32>) {
        // SAFETY: lines 5 and 6 are passed on; the token includes AVX-512 VNNI.
        unsafe { outer_rows(self.0.avx512(), operands, sums) }
    }

    fn vectorize<V: Vectorized>(self, job: V) -> V::Output {
        Avx512Tile(self.0.avx512()).vectorize(job)
    }
}

/// Multiply-adds of `rounds` rounds of four independent accumulators on registers alone.
///
/// The token is the proof that the instructions exist.
pub(crate) fn dot_products(token: AmxInt8, rounds: usize) -> usize {
    let _tiles = Tiles::configure(token);
    // SAFETY: the tiles are configured; no memory is touched.
    unsafe {
        for _ in 0..rounds {
            asm!(
                "tdpbssd tmm0, tmm4, tmm6",
                "tdpbssd tmm1, tmm4, tmm7",
                "tdpbssd tmm2, tmm5, tmm6",
                "tdpbssd tmm3, tmm5, tmm7",
                options(nostack, nomem, preserves_flags),
            );
        }
    }
    rounds * 4 * TILE_ROWS * TILE_ROWS * 64
}
