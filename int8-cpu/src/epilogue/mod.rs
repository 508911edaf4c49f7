//! Stage 3: from a tile of accumulators in L1 to the output: zero points and scales, outlier product, bias, accumulation,
//! one rounding.

pub(crate) mod dequantize;
#[cfg(any(target_arch = "x86_64", test))]
pub(crate) mod outlier_tiles;
pub(crate) mod outliers;
