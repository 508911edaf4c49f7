//! What this machine can do at best: the two numbers a measured time is compared with.

use std::hint::black_box;
use std::time::Instant;

use rayon::prelude::*;

use crate::convert;
#[cfg(all(target_arch = "x86_64", not(miri)))]
use crate::kernel::AmxInt8;
use crate::kernel::Kernel;
use crate::resident::Resident;

/// Computes at least so many multiply-adds with the kernel's dot-product instruction on registers alone, on this thread, and
/// returns how many. `None` for kernels without a single such instruction.
#[cfg_attr(not(target_arch = "x86_64"), allow(unused_variables, reason = "no such kernel"))]
pub fn dot_products(kernel: Kernel, multiply_adds: usize) -> Option<usize> {
    match kernel {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the token inside the kernel proves the features.
        Kernel::Avx512Vnni(_) => Some(unsafe { x86::dot_products(multiply_adds) }),
        #[cfg(target_arch = "x86_64")]
        Kernel::AmxInt8(token) => Some(crate::tile::amx::dot_products(token, multiply_adds)),
        _ => None,
    }
}

/// Multiply-adds per second that one thread reaches in [`dot_products`], best of several tries.
pub fn peak_per_thread(kernel: Kernel) -> Option<f64> {
    // A tenth to two milliseconds each.
    const WORK: usize = 1 << 29;
    let mut best = None;
    for _ in 0..20 {
        let start = Instant::now();
        let work = dot_products(kernel, WORK)?;
        let rate = convert::count(work) / start.elapsed().as_secs_f64();
        best = Some(rate.max(best.unwrap_or(0.0)));
    }
    best
}

/// Whether this thread has its core to itself now, as far as can be told from inside: false where a second hardware thread works on
/// the core, which on a virtual machine may be somebody else's. Takes some 4 µs.
///
/// With AMX, told by a tile from L1, which takes several times longer than its products on registers as soon as the other thread is in
/// use. Without, by instructions per cycle: those that do nothing pass at four (Zen 4) or six a cycle, and at half of that or less
/// beside a thread that is not waiting; a chain of multiplications, three cycles each whoever else is there, counts the cycles, so that
/// the clock does not matter. Always true on processors other than x86-64.
pub fn has_core() -> bool {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    return match AmxInt8::new() {
        // Between 1.2, and 2 or more.
        Some(token) => crate::tile::amx::slowness(token) < 1.6,
        // Above half of six, below four.
        None => x86::instructions_per_cycle() > 3.3,
    };
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    true
}

/// Bytes per second that the threads of the current rayon pool read together from a buffer far larger than the caches, which
/// lies in memory as weights do; best of several tries.
pub fn read_bandwidth() -> f64 {
    // 512 MiB: 8 to 16 times the last-level cache of the machines this is meant for.
    let mut words = Resident::<u64>::zeroed(64 << 20);
    words.fill(1);
    let bytes = convert::count(words.len() * 8);
    let mut best = 0.0_f64;
    for _ in 0..7 {
        let start = Instant::now();
        let sum: u64 =
            words.par_chunks(1 << 17).map(|chunk| chunk.iter().fold(0_u64, |a, b| a.wrapping_add(*b))).sum();
        black_box(sum);
        best = best.max(bytes / start.elapsed().as_secs_f64());
    }
    best
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::asm;
    use std::arch::x86_64::*;
    use std::hint::black_box;
    use std::time::{Duration, Instant};

    /// How many instructions that do nothing pass in a cycle; best of several tries.
    pub(super) fn instructions_per_cycle() -> f64 {
        const ROUNDS: u32 = 64;
        const MULTIPLIED: u32 = 24;
        let least = |job: fn()| (0..3).map(|_| timed(job)).min().unwrap_or_default().as_secs_f64();
        // 128 a round, and two that count and pass as one.
        let nothing = || {
            for _ in 0..ROUNDS {
                // SAFETY: touches nothing.
                unsafe { asm!(".rept 128", "nop", ".endr", options(nomem, nostack, preserves_flags)) }
            }
        };
        // 32 multiplications of three cycles a round.
        let cycles = || {
            let mut number = 3_u64;
            for _ in 0..MULTIPLIED {
                // SAFETY: registers alone.
                unsafe {
                    asm!(".rept 32", "imul {0}, {0}", ".endr", inout(reg) number, options(nomem, nostack))
                }
            }
            black_box(number);
        };
        let cycles_a_second = f64::from(96 * MULTIPLIED) / least(cycles);
        f64::from(129 * ROUNDS) / least(nothing) / cycles_a_second
    }

    fn timed(job: fn()) -> Duration {
        let start = Instant::now();
        job();
        start.elapsed()
    }

    /// Accumulators: more than latency (5 cycles) times throughput (2 a cycle) of any processor that has it.
    const CHAINS: usize = 16;

    /// # Safety
    /// The processor has AVX-512 VNNI.
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    pub(super) unsafe fn dot_products(multiply_adds: usize) -> usize {
        let rounds = multiply_adds.div_ceil(CHAINS * 64);
        let (a, b) = (black_box(_mm512_set1_epi8(3)), black_box(_mm512_set1_epi8(5)));
        let mut sums = [_mm512_setzero_si512(); CHAINS];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm512_dpbusd_epi32(*sum, a, b);
            }
        }
        black_box(sums);
        rounds * CHAINS * 64
    }
}
