//! From a [`Kernel`] value to its microkernel.

#[cfg(target_arch = "x86_64")]
use super::amx::groups::AmxGroups;
use super::microkernel::{GroupMicrokernel, Microkernel};
use crate::kernel::Kernel;
#[cfg(target_arch = "x86_64")]
use crate::tokens::Avx512Vnni;

/// A computation that is generic over the microkernel.
pub(crate) trait DispatchGemm {
    type Output;
    fn run<K: Microkernel>(self, kernel: K) -> Self::Output;
}

/// A computation that is generic over the microkernel for groups of K.
pub(crate) trait DispatchGroups {
    type Output;
    fn run<K: GroupMicrokernel>(self, kernel: K) -> Self::Output;
}

/// A computation for any microkernel, for one that has groups.
struct AnyMicrokernel<D>(D);

impl<D: DispatchGemm> DispatchGroups for AnyMicrokernel<D> {
    type Output = D::Output;

    fn run<K: GroupMicrokernel>(self, kernel: K) -> Self::Output {
        self.0.run(kernel)
    }
}

impl Kernel {
    /// The kernel that multiplies `rows` rows with quantization parameters for groups of K: itself, but AVX-512 VNNI, which reads the
    /// same layout, for few rows on AMX. It reads the parameters as they are stored, and a tile has 16 rows.
    pub(crate) fn for_groups(self, rows: usize) -> Self {
        #[cfg(target_arch = "x86_64")]
        if let Self::AmxInt8(token) = self
            && rows <= Avx512Vnni::FEW_ROWS
        {
            return Self::Avx512Vnni(token.avx512());
        }
        let _ = rows;
        self
    }

    pub(crate) fn dispatch_gemm<D: DispatchGemm>(self, job: D) -> D::Output {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::AmxInt8(token) => job.run(token),
            kernel => kernel.dispatch_groups(AnyMicrokernel(job)),
        }
    }

    /// For a kernel [for groups](Self::for_groups) of that number of rows.
    pub(crate) fn dispatch_groups<D: DispatchGroups>(self, job: D) -> D::Output {
        match self {
            Self::Portable(token) => job.run(token),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(token) => job.run(token),
            #[cfg(target_arch = "x86_64")]
            Self::AvxVnni(token) => job.run(token),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni(token) => job.run(token),
            #[cfg(target_arch = "x86_64")]
            Self::AmxInt8(token) => job.run(AmxGroups(token)),
            #[cfg(target_arch = "aarch64")]
            Self::NeonI8mm(token) => job.run(token),
            #[cfg(target_arch = "aarch64")]
            Self::NeonDotprod(token) => job.run(token),
        }
    }
}
