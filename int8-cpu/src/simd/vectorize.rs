//! Computations compiled once for each instruction set, and their dispatch from a [`Kernel`] value.

use super::instructions::Instructions;
use crate::kernel::Kernel;
use crate::tokens::Portable;
#[cfg(target_arch = "x86_64")]
use crate::tokens::{AmxBf16, AmxInt8, Avx2, Avx512Vnni, AvxVnni};
#[cfg(target_arch = "aarch64")]
use crate::tokens::{NeonDotprod, NeonI8mm};

/// A computation over [`Instructions`]. Implementations are `#[inline(always)]`, so that their loops are vectorised with
/// the features of the function they end up in.
pub(crate) trait Vectorized {
    type Output;
    fn call<I: Instructions>(self, instructions: I) -> Self::Output;
}

/// A capability token with what quantisation must know of its kernel: vector instructions, and how it reads codes of `x`.
pub(crate) trait Vectorize: Copy + Send + Sync {
    /// Added to the codes of `x` in memory: 128 where the dot product multiplies unsigned by signed bytes.
    const CODE_OFFSET: u8;
    /// Rows of codes are read, though not used, up to a multiple of this.
    const MR_STEP: usize = 1;

    /// Runs `job` compiled with the instructions that the token stands for.
    fn vectorize<V: Vectorized>(self, job: V) -> V::Output;
}

/// A computation that is generic over the capability token.
pub(crate) trait Dispatch {
    type Output;
    fn run<K: Vectorize>(self, kernel: K) -> Self::Output;
}

impl Kernel {
    pub(crate) fn dispatch<D: Dispatch>(self, job: D) -> D::Output {
        match self {
            Self::Portable(token) => job.run(token),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(token) => job.run(token),
            #[cfg(target_arch = "x86_64")]
            Self::AvxVnni(token) => job.run(token),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni(token) => job.run(token),
            #[cfg(target_arch = "x86_64")]
            Self::AmxInt8(token) => job.run(token),
            #[cfg(target_arch = "aarch64")]
            Self::NeonI8mm(token) => job.run(token),
            #[cfg(target_arch = "aarch64")]
            Self::NeonDotprod(token) => job.run(token),
        }
    }
}

struct Job<V>(V);

impl<V: Vectorized> Dispatch for Job<V> {
    type Output = V::Output;

    fn run<K: Vectorize>(self, kernel: K) -> V::Output {
        kernel.vectorize(self.0)
    }
}

/// Runs a computation compiled with the instructions of a kernel.
pub(crate) fn run<V: Vectorized>(kernel: Kernel, job: V) -> V::Output {
    kernel.dispatch(Job(job))
}

impl Vectorize for Portable {
    const CODE_OFFSET: u8 = 0;

    fn vectorize<V: Vectorized>(self, job: V) -> V::Output {
        job.call(self)
    }
}

#[cfg(target_arch = "x86_64")]
impl Vectorize for Avx2 {
    const CODE_OFFSET: u8 = 0;

    fn vectorize<V: Vectorized>(self, job: V) -> V::Output {
        // SAFETY: the token proves the features.
        unsafe { with_avx2(self, job) }
    }
}

#[cfg(target_arch = "x86_64")]
impl Vectorize for AvxVnni {
    const CODE_OFFSET: u8 = 128;

    fn vectorize<V: Vectorized>(self, job: V) -> V::Output {
        self.avx2().vectorize(job)
    }
}

#[cfg(target_arch = "x86_64")]
impl Vectorize for Avx512Vnni {
    const CODE_OFFSET: u8 = 128;

    fn vectorize<V: Vectorized>(self, job: V) -> V::Output {
        // SAFETY: the token proves the features.
        unsafe { with_avx512(self, job) }
    }
}

#[cfg(target_arch = "x86_64")]
impl Vectorize for AmxInt8 {
    const CODE_OFFSET: u8 = 0;
    /// Rows of a tile register.
    const MR_STEP: usize = 16;

    fn vectorize<V: Vectorized>(self, job: V) -> V::Output {
        // SAFETY: the token proves the features.
        unsafe { with_avx512bf16(self, job) }
    }
}

#[cfg(target_arch = "x86_64")]
impl Vectorize for AmxBf16 {
    const CODE_OFFSET: u8 = 0;
    const MR_STEP: usize = 16;

    fn vectorize<V: Vectorized>(self, job: V) -> V::Output {
        self.int8().vectorize(job)
    }
}

#[cfg(target_arch = "aarch64")]
impl Vectorize for NeonDotprod {
    const CODE_OFFSET: u8 = 0;

    fn vectorize<V: Vectorized>(self, job: V) -> V::Output {
        job.call(self.portable())
    }
}

#[cfg(target_arch = "aarch64")]
impl Vectorize for NeonI8mm {
    const CODE_OFFSET: u8 = 0;
    /// Rows of an operand of `smmla`.
    const MR_STEP: usize = 2;

    fn vectorize<V: Vectorized>(self, job: V) -> V::Output {
        job.call(self.portable())
    }
}

/// # Safety
/// The processor has AVX2, FMA and F16C.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn with_avx2<V: Vectorized>(token: Avx2, job: V) -> V::Output {
    job.call(token)
}

/// # Safety
/// The processor has the enabled features.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn with_avx512<V: Vectorized>(token: Avx512Vnni, job: V) -> V::Output {
    job.call(token)
}

/// # Safety
/// The processor has the enabled features.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16,avx2,fma,f16c")]
unsafe fn with_avx512bf16<V: Vectorized>(token: AmxInt8, job: V) -> V::Output {
    job.call(token)
}
