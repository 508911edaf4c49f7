//! Which kernels exist, which of them run on this processor, and how one is chosen.

use std::fmt;

use crate::error::Error;
use crate::layout::Layout;
use crate::tokens::Portable;
#[cfg(target_arch = "x86_64")]
use crate::tokens::{AmxBf16, AmxInt8, Avx2, Avx512Vnni, AvxVnni};
#[cfg(target_arch = "aarch64")]
use crate::tokens::{NeonDotprod, NeonI8mm};

/// The environment variable that forces a kernel by name.
pub const KERNEL_VARIABLE: &str = "INT8_KERNEL";

/// A kernel that this processor can run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kernel {
    /// Plain Rust that the compiler vectorises for the target's baseline.
    Portable(Portable),
    /// 256-bit `vpsignb`/`vpmaddubsw`/`vpmaddwd`.
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    /// 256-bit `vpdpbusd`.
    #[cfg(target_arch = "x86_64")]
    AvxVnni(AvxVnni),
    /// 512-bit `vpdpbusd`.
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni(Avx512Vnni),
    /// `tdpbssd` on tile registers.
    #[cfg(target_arch = "x86_64")]
    AmxInt8(AmxInt8),
    /// `smmla`.
    #[cfg(target_arch = "aarch64")]
    NeonI8mm(NeonI8mm),
    /// `sdot`.
    #[cfg(target_arch = "aarch64")]
    NeonDotprod(NeonDotprod),
}

/// Names of all kernels of this build, best first, with the processor features they need.
#[cfg(target_arch = "x86_64")]
const KNOWN: &[(&str, &str)] = &[
    ("amx-int8", "AMX-TILE, AMX-INT8, AVX-512 VNNI and BF16, and the system's permission"),
    ("avx512-vnni", "AVX-512 F, BW, DQ, VL and VNNI"),
    ("avx-vnni", "AVX-VNNI, AVX2, FMA and F16C"),
    ("avx2", "AVX2, FMA and F16C"),
    ("portable", "nothing"),
];
#[cfg(target_arch = "aarch64")]
const KNOWN: &[(&str, &str)] = &[
    ("neon-i8mm", "8-bit matrix multiplication (FEAT_I8MM)"),
    ("neon-dotprod", "the dot-product extension (FEAT_DotProd)"),
    ("portable", "nothing"),
];
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
const KNOWN: &[(&str, &str)] = &[("portable", "nothing")];

impl Kernel {
    /// The kernels this processor can run, best first; the last one is `portable`.
    pub fn available() -> Vec<Self> {
        let mut kernels = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            kernels.extend(AmxInt8::new().map(Self::AmxInt8));
            kernels.extend(Avx512Vnni::new().map(Self::Avx512Vnni));
            kernels.extend(AvxVnni::new().map(Self::AvxVnni));
            kernels.extend(Avx2::new().map(Self::Avx2));
        }
        #[cfg(target_arch = "aarch64")]
        {
            kernels.extend(NeonI8mm::new().map(Self::NeonI8mm));
            kernels.extend(NeonDotprod::new().map(Self::NeonDotprod));
        }
        kernels.push(Self::Portable(Portable::ALWAYS));
        kernels
    }

    /// The first of [`available`](Self::available).
    pub fn best() -> Self {
        Self::available()[0]
    }

    /// Names of all kernels of this build, whether or not they run here, best first.
    pub fn known() -> impl Iterator<Item = &'static str> {
        KNOWN.iter().map(|(name, _)| *name)
    }

    /// The kernel of that name.
    ///
    /// # Errors
    /// [`Error::UnknownKernel`], or [`Error::KernelUnavailable`] when this processor lacks what it needs.
    pub fn by_name(name: &str) -> Result<Self, Error> {
        let available = Self::available();
        if let Some(kernel) = available.iter().find(|kernel| kernel.name() == name) {
            return Ok(*kernel);
        }
        match KNOWN.iter().find(|(known, _)| *known == name) {
            Some((_, needs)) => Err(Error::KernelUnavailable {
                name: name.to_owned(),
                needs,
                available: available.iter().map(|kernel| kernel.name()).collect::<Vec<_>>().join(", "),
            }),
            None => Err(Error::UnknownKernel {
                name: name.to_owned(),
                known: Self::known().collect::<Vec<_>>().join(", "),
            }),
        }
    }

    /// The kernel that the environment variable `INT8_KERNEL` names, or else the best.
    ///
    /// # Errors
    /// As [`by_name`](Self::by_name), when the variable is set and not empty.
    pub fn select() -> Result<Self, Error> {
        match std::env::var(KERNEL_VARIABLE) {
            Ok(name) if !name.is_empty() => Self::by_name(&name),
            _ => Ok(Self::best()),
        }
    }

    /// Its name, as [`by_name`](Self::by_name) takes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Portable(_) => "portable",
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(_) => "avx2",
            #[cfg(target_arch = "x86_64")]
            Self::AvxVnni(_) => "avx-vnni",
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni(_) => "avx512-vnni",
            #[cfg(target_arch = "x86_64")]
            Self::AmxInt8(_) => "amx-int8",
            #[cfg(target_arch = "aarch64")]
            Self::NeonI8mm(_) => "neon-i8mm",
            #[cfg(target_arch = "aarch64")]
            Self::NeonDotprod(_) => "neon-dotprod",
        }
    }

    /// Whether attention to a KV cache of bf16 is multiplied on tiles of bf16: some two times as fast as to one of f16.
    pub fn attends_on_bf16_tiles(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return self.bf16_tiles().is_some();
        #[cfg(not(target_arch = "x86_64"))]
        false
    }

    /// The tiles on which attention to a cache of bf16 multiplies, where this kernel has them.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn bf16_tiles(self) -> Option<AmxBf16> {
        match self {
            Self::AmxInt8(_) => AmxBf16::new(),
            _ => None,
        }
    }

    /// The layout in which it reads a weight.
    pub fn layout(self) -> Layout {
        match self {
            Self::Portable(_) => Layout::Rows,
            #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
            _ => Layout::VnniK4,
        }
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
