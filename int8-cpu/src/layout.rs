//! The geometry of packed weights and of codes: what packing, quantisation and microkernels agree on.

use half::bf16;
use int8_core::GROUP;

use crate::arena::ArenaSlice;
use crate::buffer::LINE;

/// Output channels of a panel: two zmm registers of i32 accumulators, so that one broadcast of `x` serves two
/// dot-product instructions; two AMX tiles side by side.
pub(crate) const NR: usize = 32;

/// K is padded with zero codes to a multiple of this: one cache line of a row of `x`, one AMX tile row.
pub(crate) const K_STEP: usize = 64;

/// Largest MR of any microkernel.
pub(crate) const MAX_MR: usize = 32;

/// Layout of the codes of a weight: panels of 32 output channels, K padded to a multiple of 64.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Layout {
    /// Each row of a panel is contiguous: `i8 [N/32, 32, K]`.
    Rows,
    /// Four consecutive codes of a row, then those of the next row: `i8 [N/32, K/4, 32, 4]`, the operand of the four-way
    /// dot-product instructions (VNNI, `sdot`) and of AMX tiles.
    VnniK4,
}

impl Layout {
    /// Position in its panel of the code of output channel `n` and input feature `k`.
    pub(crate) fn position(self, n: usize, k: usize, padded_inner: usize) -> usize {
        match self {
            Self::Rows => n * padded_inner + k,
            Self::VnniK4 => (k / 4) * (4 * NR) + n * 4 + k % 4,
        }
    }
}

/// K rounded up to a multiple of [`K_STEP`].
pub(crate) fn padded(inner: usize) -> usize {
    inner.div_ceil(K_STEP) * K_STEP
}

/// Groups in padded K. Those of the padding have steps of 0.
pub(crate) fn padded_groups(inner: usize) -> usize {
    padded(inner) / GROUP
}

/// Bytes between two rows of codes of `x`: an odd number of cache lines, so that the rows of a tile do not all map to the
/// same set of an L1 cache whose number of sets is a power of two.
pub(crate) fn row_stride(inner: usize) -> usize {
    let lines = padded(inner) / LINE;
    (lines + 1 - lines % 2) * LINE
}

/// Quantization parameters of a weight in groups: `[N/NR, padded groups, NR]`, zero in the padding.
#[derive(Clone, Default)]
pub(crate) struct WeightGroups {
    pub(crate) scales: ArenaSlice<bf16>,
    /// Empty where all are 0.
    pub(crate) zero_points: ArenaSlice<i8>,
}

const _: () = assert!(K_STEP.is_multiple_of(GROUP), "padded K is whole groups");
