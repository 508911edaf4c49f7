//! What a model computes beside its int8 layers, in f32: products with 16-bit weights, attention, normalisations,
//! activations. Compiled for each kernel's vector instructions and dispatched with it, as the layer is.
//!
//! Results of different kernels differ by roundings only (fused or not), and do not depend on the number of threads.

mod attention;
mod functions;
mod key_values;
mod product;
mod rows;

pub use attention::{Attention, Bias, Query};
pub use key_values::{KvCacheType, KvPages, KvSequence, PAGE_POSITIONS};
pub use product::product;
pub use rows::{Function, activate, exp_sum, gate, layer_norm, rms_norm};

use crate::kernel::{Dispatch, Kernel};
use crate::tile::{TileKernel, Vectorized};

/// Runs a computation compiled with the instructions of a kernel.
struct Job<V>(V);

impl<V: Vectorized> Dispatch for Job<V> {
    type Output = V::Output;

    fn run<K: TileKernel>(self, tile: K) -> V::Output {
        tile.vectorize(self.0)
    }
}

fn run<V: Vectorized>(kernel: Kernel, job: V) -> V::Output {
    kernel.dispatch(Job(job))
}
