//! Capability tokens: zero-sized values that exist only when the processor was found to have some instructions, so that
//! holding one is the proof that they may be executed.

/// Evidence that the portable kernel can run: always there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Portable(());

impl Portable {
    /// The portable kernel needs no proof.
    pub(crate) const ALWAYS: Self = Self(());

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
            /// Detected at run time (the standard library caches the answer).
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
    amx::detect()
);

token!(
    /// Evidence of AMX-BF16, beside what [`AmxInt8`] stands for.
    AmxBf16,
    AmxInt8::new().is_some() && amx::has_bf16()
);

#[cfg(target_arch = "x86_64")]
impl AmxBf16 {
    /// It includes AMX-INT8.
    pub fn int8(self) -> AmxInt8 {
        AmxInt8(())
    }
}

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
    /// Detected at run time (the standard library caches the answer).
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
    /// Detected at run time (the standard library caches the answer).
    pub fn new() -> Option<Self> {
        std::arch::is_aarch64_feature_detected!("i8mm").then_some(Self(()))
    }

    /// The portable functions run everywhere.
    pub fn portable(self) -> Portable {
        Portable(())
    }
}

#[cfg(target_arch = "x86_64")]
mod amx {
    //! Detection of AMX.

    use std::arch::asm;
    use std::sync::OnceLock;

    use super::Avx512Vnni;

    /// Whether processor and system offer AMX int8 to this process; asks the system for permission, once.
    pub(super) fn detect() -> bool {
        static DETECTED: OnceLock<bool> = OnceLock::new();
        *DETECTED.get_or_init(|| {
            Avx512Vnni::new().is_some()
                && is_x86_feature_detected!("avx512bf16")
                && has_instructions()
                && permission()
        })
    }

    /// CPUID says AMX-BF16, of a processor that has AMX. Asked once: each layer's attention wants to know, and where the processor
    /// is virtual the answer comes from outside.
    pub(super) fn has_bf16() -> bool {
        use std::arch::x86_64::__cpuid_count;
        /// CPUID leaf 7, EDX.
        const AMX_BF16: u32 = 1 << 22;
        static DETECTED: OnceLock<bool> = OnceLock::new();
        *DETECTED.get_or_init(|| __cpuid_count(7, 0).edx & AMX_BF16 != 0)
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

    /// Linux hands out the 8 KiB of tile state only to processes that request it.
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
}
