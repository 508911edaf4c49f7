//! Software prefetching, always into L2: L1 has few buffers for lines in flight, and microkernels need all of them.

/// Whether the processor is AMD's. Prefetch distances were measured on Zen 4 and on a Xeon with AMX, which do best with
/// different ones; no feature bit tells them apart.
pub(crate) fn is_amd() -> bool {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    {
        static IS_AMD: std::sync::LazyLock<bool> = std::sync::LazyLock::new(|| {
            let vendor = std::arch::x86_64::__cpuid(0);
            [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes).concat() == b"AuthenticAMD"
        });
        *IS_AMD
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    false
}

/// Prefetches a cache line into L2; no operation beside x86-64.
#[inline(always)]
pub(crate) fn prefetch<T>(address: *const T) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: a prefetch never faults, wherever it points.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(address.cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// Bytes by which a stream of floats is prefetched ahead: a little more than a core reads during the latency of one line.
/// Two pages on Zen 4 (GEMV by bf16 weights: 20 % less time than with one page, on one thread).
#[inline(always)]
pub(crate) fn stream_distance() -> usize {
    if is_amd() { 8192 } else { 4096 }
}

/// Prefetches the lines [`stream_distance`] behind `count` elements at `address`.
#[inline(always)]
pub(crate) fn prefetch_behind<T>(address: *const T, count: usize) {
    let distance = stream_distance();
    for line in (0..count * size_of::<T>()).step_by(64) {
        prefetch(address.wrapping_byte_add(distance + line));
    }
}

/// The part of the output matrix that a tile will be stored to. Never read or written through this.
#[derive(Clone, Copy)]
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "kernels without prefetching"))]
pub(crate) struct Destination {
    pub(crate) first: *const u8,
    /// Bytes between two rows.
    pub(crate) stride: isize,
    /// Bytes of a row, at most `4·NR`.
    pub(crate) width: usize,
}

#[cfg(target_arch = "x86_64")]
impl Destination {
    /// The next row and those below it.
    #[inline(always)]
    pub(crate) fn below(self) -> Self {
        Self { first: self.first.wrapping_offset(self.stride), ..self }
    }

    /// Prefetches the lines of the first row into L2, where this core owns them unless another core holds a copy.
    #[inline(always)]
    pub(crate) fn prefetch(self) {
        // A row is at most two lines long but may straddle three. Prefetching one line twice is a hundredth of a product
        // cheaper than a loop over the exact lines.
        prefetch(self.first);
        if self.width > 64 {
            prefetch(self.first.wrapping_add(63));
        }
        prefetch(self.first.wrapping_add(self.width.saturating_sub(1)));
    }
}
