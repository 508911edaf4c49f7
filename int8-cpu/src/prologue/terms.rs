//! What the epilogue and the group product need of each row, and of each group of a row, of `x`.

use super::parameters::Parameters;

/// Of one row.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct RowTerms {
    /// `s/127`.
    pub(crate) step: f32,
    /// Zero point.
    pub(crate) zero_point: i32,
    /// `Σ_k q`, without the kernel's offset; any number where code sums were not computed.
    pub(crate) sum: i32,
}

impl RowTerms {
    #[inline(always)]
    pub(crate) fn new(parameters: Parameters, sum: i32) -> Self {
        Self { step: parameters.scale / 127.0, zero_point: parameters.zero_point, sum }
    }
}

/// Of one group of a row. Integers, as f32.
#[derive(Clone, Copy, Default, Debug)]
#[repr(C)]
pub(crate) struct GroupTerms {
    /// `s/127`.
    pub(crate) step: f32,
    /// Zero point, with the kernel's offset added.
    pub(crate) zero: f32,
    /// `Σ_{k ∈ g} (q − z)`; only where the weight has zero points.
    pub(crate) rest: f32,
}
