//! A layer's shape, and the algorithms that compute it.

use int8_cuda_sys as sys;

/// `y [m, n] = x [m, k] · Wᵀ`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Rows of x.
    pub m: usize,
    /// Output channels.
    pub n: usize,
    /// Input features.
    pub k: usize,
}

/// How the int8 GEMM is computed. `int8_cuda.h` documents what each supports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Algorithm {
    /// Chosen by shape, from measurements.
    Auto,
    /// `m ≤ 32`, weights read once into registers, `mma.sync`.
    SmallM,
    /// `m = 1`, f16 and bf16, the prologue in the same kernel: for [`crate::LinearPlan`] alone.
    Gemv,
    /// As [`Self::Gemv`], weights through shared memory by TMA loads (sm_90), `k ≤ 16384` a multiple of 128.
    GemvTma,
    /// 128×128 tiles, `mma.sync`: any size, type and device.
    Mma,
    /// 128×256 tiles in clusters of two, `wgmma` (sm_90a), f16 and bf16.
    Wgmma128x256,
    /// 128×128 tiles, ping-pong schedule, `wgmma` (sm_90a), f16 and bf16.
    Wgmma128x128,
    /// 64×128 tiles for few rows, `wgmma` (sm_90a), f16 and bf16.
    Wgmma64x128,
    /// 64×64 tiles for few rows and smaller `n`, `wgmma` (sm_90a), f16 and bf16.
    Wgmma64x64,
    /// 64×32 tiles for few rows and smaller `n` still, `wgmma` (sm_90a), f16 and bf16.
    Wgmma64x32,
    /// cuBLASLt's i8·i8→i32, for [`crate::int8_product`] alone.
    CublasLt,
}

impl Algorithm {
    /// All that compute the layer.
    pub const LAYER: [Self; 9] = [
        Self::SmallM,
        Self::Gemv,
        Self::GemvTma,
        Self::Mma,
        Self::Wgmma128x256,
        Self::Wgmma128x128,
        Self::Wgmma64x128,
        Self::Wgmma64x64,
        Self::Wgmma64x32,
    ];

    /// The algorithm of this name, in upper or lower case: one of [`Self::LAYER`], or [`Self::Auto`].
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        let mut known = Self::LAYER.into_iter().chain([Self::Auto]);
        known.find(|algorithm| format!("{algorithm:?}").eq_ignore_ascii_case(name))
    }

    /// The names that [`Self::named`] knows, separated by commas.
    #[must_use]
    pub fn names() -> String {
        let known = Self::LAYER.into_iter().chain([Self::Auto]);
        known.map(|algorithm| format!("{algorithm:?}")).collect::<Vec<_>>().join(", ")
    }

    /// Whether the prologue is in the same kernel, so that there are no [`crate::QuantizedActivations`].
    #[must_use]
    pub fn is_fused(self) -> bool {
        matches!(self, Self::Gemv | Self::GemvTma)
    }

    pub(crate) const fn raw(self) -> i32 {
        match self {
            Self::Auto => sys::INT8_CUDA_AUTO,
            Self::SmallM => sys::INT8_CUDA_SMALL_M,
            Self::Gemv => sys::INT8_CUDA_GEMV,
            Self::GemvTma => sys::INT8_CUDA_GEMV_TMA,
            Self::Mma => sys::INT8_CUDA_MMA,
            Self::Wgmma128x256 => sys::INT8_CUDA_WGMMA_128X256,
            Self::Wgmma128x128 => sys::INT8_CUDA_WGMMA_128X128,
            Self::Wgmma64x128 => sys::INT8_CUDA_WGMMA_64X128,
            Self::Wgmma64x64 => sys::INT8_CUDA_WGMMA_64X64,
            Self::Wgmma64x32 => sys::INT8_CUDA_WGMMA_64X32,
            Self::CublasLt => sys::INT8_CUDA_CUBLASLT,
        }
    }

    pub(crate) fn from_raw(raw: i32) -> Self {
        Self::LAYER.into_iter().find(|algorithm| algorithm.raw() == raw).unwrap_or(Self::Auto)
    }
}
