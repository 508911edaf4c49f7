//! CPU kernels for LLM.int8(): the quantised, decomposed linear layer in one pass, on instructions picked at run time.
//!
//! ```text
//! y[m,n] = s_x[m]/127 · s_w[n]/127 · Σ_k (q_x − z_x)(q_w − z_w)  +  Σ_{k outlier} x[m,k]·W[n,k]  +  bias[n]
//! ```
//!
//! Codes, zero points and accumulators are bit for bit those of [`int8_core`]; results lie inside its derived bound.
//!
//! | stage | modules |
//! |---|---|
//! | `W [N, K]` quantised and packed once, at load | [`PackedWeight`] |
//! | 1: norm, activation or gate, outlier detection, row quantisation, in one pass over `x` | `prologue`; [`QuantizedActivations`], the value that one or several weights read |
//! | 2: schedule × microkernel: i8 × i8 → i32, one tile of output in registers | `gemm` |
//! | 3: scales, zero points, outlier product, bias, one rounding, while the tile is in L1 | `epilogue` |
//! | stages 2 and 3 for one weight; all three | [`multiply`]; [`linear`] |
//!
//! Imports point one way: `arena`, `matrix`, `pool`, `tokens`, `kernel` < `simd` < `prologue` < packing < `gemm` < `epilogue` <
//! attention < [`QuantizedActivations`] < [`linear`] < [`verify`].
//!
//! | kernel | instruction | tile (rows × outputs) |
//! |---|---|---|
//! | `amx-int8` | `tdpbssd` | 32 × 32 |
//! | `avx512-vnni` | `vpdpbusd zmm` | 12 × 32 |
//! | `avx-vnni` | `vpdpbusd ymm` | 6 × 16 |
//! | `avx2` | `vpsignb`, `vpmaddubsw`, `vpmaddwd` | 4 × 16 |
//! | `neon-i8mm` | `smmla` | 6 × 16 |
//! | `neon-dotprod` | `sdot` | 3 × 32 |
//! | `portable` | what the compiler makes of a dot product | 4 × 1 |
//!
//! The best one that the processor offers is taken ([`Kernel::select`]); the environment variable `INT8_KERNEL` forces
//! another by name. Work runs on the current rayon pool; results do not depend on the number of threads. Wrapping a
//! decode step in [`pool::spin_during`] saves entering the pool and waking its threads for each layer.
//!
//! `amx-int8` rounds results to bf16 with the processor's instruction for it, which takes f32 below 2⁻¹²⁶ = 1.2e-38 for 0 (but
//! for products with quantization parameters for groups, which `avx512-vnni` computes).
//!
//! ```
//! use int8_core::{Granularity, Scheme};
//! use int8_cpu::{Kernel, OutlierWeights, PackedWeight, Store, linear};
//! use ndarray::{Array2, array};
//!
//! let config = Scheme::LlmInt8Absmax.config();
//! let w = array![[0.1_f32, 0.2, 0.3], [-0.3, 0.1, 0.2]];
//! let weight = PackedWeight::quantize(Kernel::select()?, w.view(), config.weight_encoding, Granularity::Row)?;
//!
//! // The second column holds outliers, |x| ≥ 6: it is multiplied in f32.
//! let x = array![[0.5_f32, 40.0, -0.25], [1.0, -38.0, 0.75]];
//! let mut y = Array2::<f32>::zeros((2, 2));
//! let stats =
//!     linear(x.view(), &weight, OutlierWeights::Dequantized, None, &config, Store::Overwrite, y.view_mut())?;
//! assert_eq!(stats.outlier_columns, 1);
//! assert!((y[[0, 0]] - 7.975).abs() < 0.05);
//! # Ok::<(), int8_cpu::Error>(())
//! ```
//!
//! All unsafe code of the project's CPU side is here: vector instructions in `simd` and `gemm`, typed views of memory in `matrix`,
//! `buffer` and `arena`. The contract of the microkernels is stated once, on the trait `Microkernel`, and cited by
//! line wherever they are called.
#![allow(unsafe_code, reason = "vector instructions, typed views of memory and mappings need it")]

mod activations;
mod arena;
pub mod attention;
mod buffer;
mod convert;
mod epilogue;
mod error;
pub mod float;
mod gemm;
pub mod kernel;
mod layout;
mod linear;
mod matrix;
mod pack;
pub mod pool;
mod prefetch;
pub mod probe;
mod prologue;
mod simd;
pub mod tokens;
pub mod verify;

pub use activations::{LinearStats, QuantizedActivations, apply_prologue};
pub use arena::ArenaSlice;
pub use epilogue::outliers::{ExactColumn, ExactColumns, OutlierWeights};
pub use error::Error;
pub use kernel::Kernel;
pub use layout::Layout;
pub use linear::{int8_product, int8_product_into, linear, multiply};
pub use matrix::Store;
pub use pack::builder::{PackedWeightBuilder, WeightRows};
pub use pack::rows::{RowQuantizer, quantize_rows};
pub use pack::weight::PackedWeight;
pub use prologue::activation::Function;
pub use prologue::rows::Prologue;
