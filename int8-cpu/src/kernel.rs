//! Which kernels exist, which of them run on this processor, and how one is chosen.
//!
//! A kernel is a capability token: a zero-sized value that only exists when the processor was asked and said yes, so
//! holding one is the proof that its instructions may be executed.

use std::fmt;

use crate::Error;
use crate::tile::{self, GroupKernel, TileKernel};

/// The environment variable that forces a kernel by name.
pub const KERNEL_VARIABLE: &str = "INT8_KERNEL";

/// How the codes of a weight lie in memory. Both keep panels of 32 output rows with K padded to a multiple of 64.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Layout {
    /// Each row of a panel lies contiguous: `i8 [N/32, 32, K]`.
    Rows,
    /// Four consecutive codes of a row, then those of the next row: `i8 [N/32, K/4, 32, 4]`. What the four-way dot
    /// product instructions and the AMX tiles read.
    Quads,
}

/// Evidence that the portable kernel can run: always there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Portable(());

impl Portable {
    /// Always succeeds.
    pub fn new() -> Option<Self> {
        Some(Self(()))
    }
}

macro_rules! token {
    ($(#[$doc:meta])* $name:ident, $detect:expr) => {
        $(#[$doc])*
        #[cfg(target_arch = "x86_64")]
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub struct $name(());

        #[cfg(target_arch = "x86_64")]
        impl $name {
            /// Asks the processor (the answer is cached by the standard library).
            pub fn new() -> Option<Self> {
                $detect.then_some(Self(()))
            }
        }
    };
}

token!(
    /// Evidence of AVX2, FMA and F16C.
    Avx2,
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
);
token!(
    /// Evidence of AVX-VNNI (the 256-bit dot product of processors without AVX-512), with AVX2, FMA and F16C.
    AvxVnni,
    Avx2::new().is_some() && is_x86_feature_detected!("avxvnni")
);
token!(
    /// Evidence of AVX-512 F, BW, VL, DQ and VNNI, with FMA and F16C.
    Avx512Vnni,
    Avx2::new().is_some()
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512vnni")
);

token!(
    /// Evidence of AMX-TILE and AMX-INT8, of the system's permission to use them, and of AVX-512 VNNI and BF16, which every
    /// processor with AMX has.
    AmxInt8,
    tile::amx::detect()
);

#[cfg(target_arch = "x86_64")]
impl AmxInt8 {
    /// It includes AVX-512 VNNI.
    pub fn avx512(self) -> Avx512Vnni {
        Avx512Vnni(())
    }
}

#[cfg(target_arch = "x86_64")]
impl AvxVnni {
    /// It includes AVX2.
    pub fn avx2(self) -> Avx2 {
        Avx2(())
    }
}

/// Evidence of the dot-product extension of AArch64.
#[cfg(target_arch = "aarch64")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct NeonDotprod(());

#[cfg(target_arch = "aarch64")]
impl NeonDotprod {
    /// Asks the processor (the answer is cached by the standard library).
    pub fn new() -> Option<Self> {
        std::arch::is_aarch64_feature_detected!("dotprod").then_some(Self(()))
    }

    /// The portable functions run everywhere.
    pub fn portable(self) -> Portable {
        Portable(())
    }
}

/// Evidence of the 8-bit matrix multiplication of AArch64.
#[cfg(target_arch = "aarch64")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct NeonI8mm(());

#[cfg(target_arch = "aarch64")]
impl NeonI8mm {
    /// Asks the processor (the answer is cached by the standard library).
    pub fn new() -> Option<Self> {
        std::arch::is_aarch64_feature_detected!("i8mm").then_some(Self(()))
    }

    /// The portable functions run everywhere.
    pub fn portable(self) -> Portable {
        Portable(())
    }
}

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
        kernels.push(Self::Portable(Portable(())));
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

    /// The layout in which it reads a weight.
    pub fn layout(self) -> Layout {
        match self {
            Self::Portable(_) => Layout::Rows,
            #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
            _ => Layout::Quads,
        }
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A computation that is generic over the kernel's tile functions.
pub(crate) trait Dispatch {
    type Output;
    fn run<T: TileKernel>(self, tile: T) -> Self::Output;
}

impl Kernel {
    pub(crate) fn dispatch<D: Dispatch>(self, job: D) -> D::Output {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::AmxInt8(token) => job.run(tile::amx::AmxTile(token)),
            kernel => kernel.dispatch_groups(WithGroups(job)),
        }
    }
}

/// A computation that is generic over the functions for groups of K.
pub(crate) trait DispatchGroups {
    type Output;
    fn run<T: GroupKernel>(self, tile: T) -> Self::Output;
}

/// A computation for any kernel, for one that has groups.
struct WithGroups<D>(D);

impl<D: Dispatch> DispatchGroups for WithGroups<D> {
    type Output = D::Output;

    fn run<T: GroupKernel>(self, tile: T) -> Self::Output {
        self.0.run(tile)
    }
}

impl Kernel {
    /// The kernel itself, but for AMX: a group of 32 is half a tile register, and what a tile multiplies would have to be
    /// stored after each, so that AVX-512 VNNI, which reads the same layout, is faster.
    pub(crate) fn dispatch_groups<D: DispatchGroups>(self, job: D) -> D::Output {
        match self {
            Self::Portable(token) => job.run(tile::portable::PortableTile(token)),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(token) => job.run(tile::avx2::Avx2Tile(token)),
            #[cfg(target_arch = "x86_64")]
            Self::AvxVnni(token) => job.run(tile::avx2::AvxVnniTile(token)),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni(token) => job.run(tile::avx512::Avx512Tile(token)),
            #[cfg(target_arch = "x86_64")]
            Self::AmxInt8(token) => job.run(tile::avx512::Avx512Tile(token.avx512())),
            #[cfg(target_arch = "aarch64")]
            Self::NeonI8mm(token) => job.run(tile::i8mm::I8mmTile(token)),
            #[cfg(target_arch = "aarch64")]
            Self::NeonDotprod(token) => job.run(tile::neon::NeonTile(token)),
        }
    }
}
