//! What a model computes beside its int8 layers, in f32: products with 16-bit weights, attention, normalisations,
//! activations. Compiled for each kernel's vector instructions and dispatched with it, as the layer is.
//!
//! Results of different kernels differ by roundings only (fused or not), and do not depend on the number of threads.

mod attention;
mod key_values;

pub use attention::{Attention, Bias, Query};
pub use key_values::{KeyValues, KvCacheType};

pub use crate::gemm::float::product;
pub use crate::prologue::activation::{Function, activate, gate};
pub use crate::prologue::norm::{layer_norm, rms_norm};
pub use crate::simd::functions::exp_sum;
