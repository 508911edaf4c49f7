//! What this machine can do at best: the two numbers a measured time is compared with.

use std::hint::black_box;
use std::time::Instant;

use rayon::prelude::*;

use crate::arena::ArenaSlice;
use crate::convert;
use crate::kernel::Kernel;

/// Computes at least so many multiply-adds with the kernel's dot-product instruction on registers alone, on this thread, and
/// returns how many. `None` for kernels without a single such instruction.
#[cfg_attr(not(target_arch = "x86_64"), allow(unused_variables, reason = "no such kernel"))]
pub fn dot_products(kernel: Kernel, multiply_adds: usize) -> Option<usize> {
    match kernel {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the token inside the kernel proves the features.
        Kernel::Avx512Vnni(_) => Some(unsafe { x86::dot_products(multiply_adds) }),
        #[cfg(target_arch = "x86_64")]
        Kernel::AmxInt8(token) => Some(crate::gemm::amx::dot_products(token, multiply_adds)),
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

/// Whether this thread has its core to itself now: not where a second hardware thread works on the core, which on a virtual machine
/// may be somebody else's. Takes some 3 µs.
///
/// Told by an AMX tile from L1, which takes several times longer than its products on registers while the other thread is in use,
/// whatever that does and however fast the clock is. `None` without AMX: counting instructions per cycle told little on Zen 4, and on
/// a Xeon only half of the times.
pub fn has_core() -> Option<bool> {
    #[cfg(target_arch = "x86_64")]
    {
        // Between a fifth longer, and twice as long or more.
        crate::tokens::AmxInt8::new().map(|token| crate::gemm::amx::slowness(token) < 1.6)
    }
    #[cfg(not(target_arch = "x86_64"))]
    None
}

/// Bytes per second that the threads of the current rayon pool read together from a buffer far larger than the caches, which
/// lies in memory as weights do; best of several tries.
pub fn read_bandwidth() -> f64 {
    // 512 MiB: 8 to 16 times the last-level cache of the machines this is meant for.
    let mut words = ArenaSlice::<u64>::zeroed(64 << 20);
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
    use std::arch::x86_64::*;
    use std::hint::black_box;

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
