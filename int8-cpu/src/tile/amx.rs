//! AMX int8: `tdpbssd` multiplies 16 rows of 64 signed bytes by 16 columns of 64 signed bytes, 16,384 multiply-adds an
//! instruction, exact modulo 2³².
//!
//! The compiler has no stable intrinsics for it, so the instructions are written as inline assembly. The compiler never
//! touches the tile registers by itself, and the system saves them when it switches threads, so what one block leaves
//! in them the next one finds.

use std::arch::asm;
use std::sync::OnceLock;

use super::avx512::{Avx512Tile, outer_rows};
use super::{K_STEP, Operands, OuterOperands, PANEL, Tile, TileKernel, Vectorized};
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

impl Configuration {
    /// Accumulators 0 and 1 and input 4 hold the first 16 rows, 2, 3 and 5 the others, 6 and 7 the weights.
    fn new(rows: usize) -> Self {
        let [first, second] = [rows.min(TILE_ROWS), rows.saturating_sub(TILE_ROWS).clamp(1, TILE_ROWS)]
            .map(|rows| u8::try_from(rows).unwrap_or(16));
        let mut configuration =
            Self { palette: 1, start_row: 0, reserved: [0; 14], bytes_per_row: [0; 16], rows: [0; 16] };
        configuration.bytes_per_row[..8].fill(64);
        configuration.rows[..8].copy_from_slice(&[first, first, second, second, first, second, 16, 16]);
        configuration
    }
}

/// The AMX tile functions.
#[derive(Clone, Copy)]
pub(crate) struct AmxTile(pub(crate) AmxInt8);

// SAFETY: line 7: made from an `AmxInt8` token, which stands for AMX-TILE, AMX-INT8 and AVX-512 VNNI. Line 8: ROWS = 32,
// and the tiles are configured to the rows that there are.
unsafe impl TileKernel for AmxTile {
    /// Two tile registers below each other; with two side by side, four accumulators for four operands loaded.
    const ROWS: usize = 2 * TILE_ROWS;
    const OFFSET: u8 = 0;

    unsafe fn product(self, operands: Operands, acc: &mut Tile<i32>) {
        let Operands { a, lda, rows, panel, k, ahead } = operands;
        let configuration = Configuration::new(rows);
        // SAFETY: line 7; the configuration is valid for palette 1. Loading it zeroes all tiles.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const configuration, options(nostack, readonly)) };
        let two = rows > TILE_ROWS;
        for chunk in (0..k).step_by(K_STEP) {
            ahead.fetch(chunk);
            // SAFETY: line 2: 16 rows of 64 bytes, 128 bytes apart, from each of the two addresses, are the 2048 bytes
            // of the panel for this chunk of K. Line 1: as many rows of 64 bytes as the input tiles are configured to.
            unsafe {
                let weights = panel.add(chunk * PANEL);
                let upper = a.add(chunk);
                asm!(
                    "tileloadd tmm6, [{weights} + {stride}*1]",
                    "tileloadd tmm7, [{weights} + {stride}*1 + 64]",
                    "tileloadd tmm4, [{upper} + {lda}*1]",
                    "tdpbssd tmm0, tmm4, tmm6",
                    "tdpbssd tmm1, tmm4, tmm7",
                    weights = in(reg) weights,
                    stride = in(reg) 4 * PANEL,
                    upper = in(reg) upper,
                    lda = in(reg) lda,
                    options(nostack, readonly, preserves_flags),
                );
                if two {
                    asm!(
                        "tileloadd tmm5, [{lower} + {lda}*1]",
                        "tdpbssd tmm2, tmm5, tmm6",
                        "tdpbssd tmm3, tmm5, tmm7",
                        lower = in(reg) upper.add(TILE_ROWS * lda),
                        lda = in(reg) lda,
                        options(nostack, readonly, preserves_flags),
                    );
                }
            }
        }
        let to = acc.0.as_mut_ptr();
        // SAFETY: a row of the accumulators is 128 bytes; the tiles write 64 bytes of each of the rows that there are.
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
            // Back to the initial state: nothing to save at the next switch of threads.
            asm!("tilerelease", options(nostack, nomem, preserves_flags));
        }
    }

    unsafe fn outer(self, operands: OuterOperands, sums: &mut Tile<f32>) {
        // SAFETY: lines 4 to 6 are passed on; the token includes AVX-512 VNNI.
        unsafe { outer_rows(operands, sums) }
    }

    fn vectorize<V: Vectorized>(self, job: V) -> V::Output {
        Avx512Tile(self.0.avx512()).vectorize(job)
    }
}

/// Multiply-adds of `rounds` rounds of four independent accumulators on registers alone.
///
/// The token is the proof that the instructions exist.
pub(crate) fn dot_products(_: AmxInt8, rounds: usize) -> usize {
    let configuration = Configuration::new(2 * TILE_ROWS);
    // SAFETY: the token; no memory but the configuration is touched.
    unsafe {
        asm!("ldtilecfg [{}]", in(reg) &raw const configuration, options(nostack, readonly));
        for _ in 0..rounds {
            asm!(
                "tdpbssd tmm0, tmm4, tmm6",
                "tdpbssd tmm1, tmm4, tmm7",
                "tdpbssd tmm2, tmm5, tmm6",
                "tdpbssd tmm3, tmm5, tmm7",
                options(nostack, nomem, preserves_flags),
            );
        }
        asm!("tilerelease", options(nostack, nomem, preserves_flags));
    }
    rounds * 4 * TILE_ROWS * TILE_ROWS * 64
}

#[cfg(test)]
mod rate {
    use super::*;
    use crate::buffer::Buffer;

    unsafe fn cfg() {
        let c = Configuration::new(32);
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const c, options(nostack, readonly)) };
    }
    // variant: 0 row-major plain; 1 row-major + prefetch t0 one chunk ahead; 2 A packed in tiles; 3 packed + prefetch
    // accumulate: load C first
    #[inline(always)]
    unsafe fn tile<const V: usize>(
        a: *const i8,
        lda: usize,
        b: *const i8,
        k: usize,
        acc: *mut i32,
        load: bool,
    ) {
        use std::arch::x86_64::*;
        unsafe {
            if load {
                asm!("tileloadd tmm0, [{t} + {s}*1]", "tileloadd tmm1, [{t} + {s}*1 + 64]", "tileloadd tmm2, [{u} + {s}*1]", "tileloadd tmm3, [{u} + {s}*1 + 64]", t = in(reg) acc, u = in(reg) acc.add(512), s = in(reg) 128, options(nostack));
            } else {
                asm!("tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3", options(nostack));
            }
            for c in (0..k).step_by(64) {
                let w = b.add(c * 32);
                let (u, l, ld) = if V == 0 || V == 1 || V == 4 {
                    (a.add(c), a.add(c + 16 * lda), lda)
                } else {
                    (a.add(c * 32), a.add(c * 32 + 1024), 64)
                };
                if V == 1 || V == 4 {
                    let d = if V == 1 { 64 } else { 192 };
                    for i in 0..16 {
                        _mm_prefetch::<_MM_HINT_T0>(u.wrapping_add(d + i * lda));
                        _mm_prefetch::<_MM_HINT_T0>(l.wrapping_add(d + i * lda));
                    }
                    for i in 0..32 {
                        _mm_prefetch::<_MM_HINT_T0>(w.wrapping_add(d * 32 + i * 64));
                    }
                }
                if V == 3 {
                    for i in 0..32 {
                        _mm_prefetch::<_MM_HINT_T0>(u.wrapping_add(2048 + i * 64));
                        _mm_prefetch::<_MM_HINT_T0>(w.wrapping_add(2048 + i * 64));
                    }
                }
                asm!("tileloadd tmm6, [{w} + {s}*1]", "tileloadd tmm4, [{u} + {d}*1]", "tileloadd tmm7, [{w} + {s}*1 + 64]", "tileloadd tmm5, [{l} + {d}*1]",
                    "tdpbssd tmm0, tmm4, tmm6", "tdpbssd tmm1, tmm4, tmm7", "tdpbssd tmm2, tmm5, tmm6", "tdpbssd tmm3, tmm5, tmm7",
                    w = in(reg) w, u = in(reg) u, l = in(reg) l, d = in(reg) ld, s = in(reg) 128, options(nostack, readonly));
            }
            asm!("tilestored [{t} + {s}*1], tmm0", "tilestored [{t} + {s}*1 + 64], tmm1", "tilestored [{u} + {s}*1], tmm2", "tilestored [{u} + {s}*1 + 64], tmm3", t = in(reg) acc, u = in(reg) acc.add(512), s = in(reg) 128, options(nostack));
        }
    }
    fn run<const V: usize>(name: &str, peak: f64, kc: usize) {
        let mut line = format!("{name} kc {kc}:");
        for (k, m, panels) in [
            (256, 32, 1),
            (1024, 32, 1),
            (4096, 32, 1),
            (768, 512, 24),
            (2048, 512, 16),
            (4096, 128, 8),
            (4096, 512, 8),
            (4096, 2048, 4),
        ] {
            let stride = crate::input::row_stride(k);
            let mut a = Buffer::zeroed(m * stride + 8192);
            let mut b = Buffer::zeroed(panels * k * 32 + 8192);
            a.codes_mut().fill(3);
            b.codes_mut().fill(5);
            let mut c = Buffer::zeroed(m / 32 * 4096);
            let mut best = f64::MAX;
            for _ in 0..10 + 2_000_000_000 / (k * m * 32 * panels) / 8 {
                let s = std::time::Instant::now();
                unsafe { cfg() };
                for p in 0..panels {
                    let mut k0 = 0;
                    while k0 < k {
                        let kk = kc.min(k - k0);
                        for r in 0..m / 32 {
                            let at = unsafe {
                                if V == 2 || V == 3 {
                                    a.as_ptr().add(r * 32 * k + k0 * 32)
                                } else {
                                    a.as_ptr().add(r * 32 * stride + k0)
                                }
                            };
                            let acc: *mut i32 = unsafe {
                                c.as_mut_ptr().cast::<i32>().add(if kc < k { r * 1024 } else { 0 })
                            };
                            unsafe {
                                tile::<V>(at, stride, b.as_ptr().add(p * k * 32 + k0 * 32), kk, acc, k0 > 0)
                            };
                        }
                        k0 += kk;
                    }
                }
                unsafe { asm!("tilerelease") };
                best = best.min(s.elapsed().as_secs_f64());
            }
            line += &format!(" {k}x{m}x{panels} {:.3}", (k * m * 32 * panels) as f64 / best / peak);
        }
        println!("{line}");
    }
    #[test]
    #[ignore]
    fn rate() {
        let Some(token) = AmxInt8::new() else { return };
        let peak = crate::probe::peak_per_thread(crate::Kernel::AmxInt8(token)).unwrap();
        // as it is
        for (k, m, panels) in [(256, 32, 1), (4096, 32, 1), (768, 512, 24), (4096, 128, 8)] {
            let stride = crate::input::row_stride(k);
            let (a, b) = (Buffer::zeroed(m * stride), Buffer::zeroed(panels * k * 32));
            let mut acc = Tile([[0; PANEL]; 32]);
            let mut best = f64::MAX;
            for _ in 0..100 {
                let s = std::time::Instant::now();
                for p in 0..panels {
                    for r in 0..m / 32 {
                        unsafe {
                            AmxTile(token).product(
                                Operands {
                                    a: a.as_ptr().add(r * 32 * stride),
                                    lda: stride,
                                    rows: 32,
                                    panel: b.as_ptr().add(p * k * 32),
                                    k,
                                    ahead: crate::tile::Ahead::share(b.as_ptr(), 0, 16),
                                },
                                &mut acc,
                            )
                        };
                    }
                }
                best = best.min(s.elapsed().as_secs_f64());
            }
            println!("now {k}x{m}x{panels} {:.3}", (k * m * 32 * panels) as f64 / best / peak);
        }
        for kc in [1 << 20, 512, 1024] {
            run::<0>("rows", peak, kc);
            run::<1>("rows+prefetch1", peak, kc);
            run::<4>("rows+prefetch3", peak, kc);
            run::<2>("tiles", peak, kc);
            run::<3>("tiles+prefetch", peak, kc);
        }
        // cost of configuration
        let s = std::time::Instant::now();
        for _ in 0..10000 {
            unsafe {
                cfg();
                asm!("tilerelease")
            }
        }
        println!("config+release {:.1} ns", s.elapsed().as_secs_f64() * 1e5);
    }
}
