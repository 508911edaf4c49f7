//! Operations of a model besides its int8 layers, in f32: products with 16- and 32-bit weights, normalisations, activations.
//! Compiled for the vector instructions of each kernel.
//!
//! Results of different kernels differ by roundings only (fused or not), and do not depend on the number of threads.

pub use crate::gemm::float::product;
pub use crate::prologue::activation::{Function, activate, gate};
pub use crate::prologue::norm::{layer_norm, rms_norm};
pub use crate::simd::functions::exp_sum;
