//! Products of bf16 matrices with sums in f32, in the order in which `tdpbf16ps` adds.

use half::bf16;

use super::operands::Tile;
use crate::layout::{MAX_MR, NR};
use crate::simd::Vectorize;

/// Numbers of K in a fragment: a row of a tile register.
pub(crate) const STEP: usize = 32;

/// One step of K of an operand, 2 KiB: two tile registers.
///
/// Of the left operand `[32, 32]`, K contiguous; of the right one `[16, 32, 2]`: pairs of K, and both numbers of a pair side by
/// side for each of the 32 columns.
#[repr(C, align(64))]
#[derive(Clone)]
pub(crate) struct Fragment(pub(crate) [bf16; STEP * NR]);

impl Fragment {
    pub(crate) const ZERO: Self = Self([bf16::ZERO; STEP * NR]);
}

const _: () = assert!(MAX_MR == 32 && NR == 32, "fragments have the rows and columns of a tile");

/// Multiplies fragments.
///
/// # Safety
/// Contract of [`product`](Self::product): the call is made inside [`scoped`](Self::scoped), on the same thread.
///
/// Contract of the implementor: it can only be made from a capability token, so that its instructions exist on this processor.
pub(crate) unsafe trait Bf16Product: Vectorize {
    /// Runs `job` with the state that [`product`](Self::product) needs set up on this thread.
    fn scoped<R>(self, job: impl FnOnce() -> R) -> R;

    /// `sums[r][n] = Σ_k x[r, k]·w[k, n]` for r below `rows`, or `+=`; other rows get any numbers.
    ///
    /// For each step of K in its order: the sum over the even k and the sum over the odd k, each by fused multiply-adds from 0 on
    /// in the order of k; then these two are added, and the result is added to `sums`. Rounded half to even; subnormal numbers
    /// are taken, and returned, as 0.
    ///
    /// # Safety
    /// The trait's contract.
    ///
    /// # Panics
    /// Unless `1 ≤ rows ≤ 32` and there is a fragment of `w` for each of `x`.
    unsafe fn product(self, rows: usize, x: &[Fragment], w: &[Fragment], add: bool, sums: &mut Tile<f32>);
}
