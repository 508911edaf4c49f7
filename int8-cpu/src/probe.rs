//! What this machine can do at best: the two numbers a measured time is compared with.

use std::hint::black_box;
use std::time::Instant;

use rayon::prelude::*;

use crate::convert;
use crate::kernel::Kernel;
use crate::resident::Resident;

/// Multiply-adds per second that one thread reaches with the kernel's dot-product instruction on registers alone, best
/// of several tries. `None` for kernels without a single such instruction.
pub fn peak_per_thread(kernel: Kernel) -> Option<f64> {
    match kernel {
        #[cfg(target_arch = "x86_64")]
        Kernel::Avx512Vnni(_) => Some(best_rate(|rounds| {
            // SAFETY: the token inside the kernel proves the features.
            unsafe { x86::dot_products(rounds) }
        })),
        #[cfg(target_arch = "x86_64")]
        Kernel::AmxInt8(token) => {
            Some(best_rate(|rounds| crate::tile::amx::dot_products(token, rounds / 16)))
        }
        _ => None,
    }
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

/// The best of several measurements of a function that returns how many multiply-adds it did.
#[cfg(target_arch = "x86_64")]
fn best_rate(run: impl Fn(usize) -> usize) -> f64 {
    let mut best = 0.0_f64;
    for _ in 0..20 {
        let start = Instant::now();
        let work = run(200_000);
        best = best.max(convert::count(work) / start.elapsed().as_secs_f64());
    }
    best
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;
    use std::hint::black_box;

    /// Accumulators: more than latency (5 cycles) times throughput (2 a cycle) of any processor that has it.
    const CHAINS: usize = 16;

    /// # Safety
    /// The processor has AVX-512 VNNI.
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    pub(super) unsafe fn dot_products(rounds: usize) -> usize {
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
