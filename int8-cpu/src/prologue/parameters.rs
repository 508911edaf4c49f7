//! Scale and zero point of a row or a group: bit for bit the reference's.

use int8_core::Encoding;
use int8_core::quantize::{MIN_SCALE, group_scale};

use crate::convert;

/// Smallest and largest value of a set, 0 included, and the bits of the largest magnitude, NaN above infinity.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Range {
    pub(super) low: f32,
    pub(super) high: f32,
    pub(super) magnitude: u32,
}

impl Range {
    pub(crate) const EMPTY: Self = Self { low: 0.0, high: 0.0, magnitude: 0 };

    /// Of values whose largest magnitude is this, for absmax.
    pub(crate) fn up_to(magnitude: f32) -> Self {
        Self { magnitude: magnitude.to_bits(), ..Self::EMPTY }
    }

    pub(crate) fn union(self, other: Self) -> Self {
        Self {
            low: if other.low < self.low { other.low } else { self.low },
            high: if other.high > self.high { other.high } else { self.high },
            magnitude: self.magnitude.max(other.magnitude),
        }
    }

    fn finite(self) -> bool {
        self.magnitude < f32::INFINITY.to_bits()
    }
}

/// What maps the values of one row to codes: bit for bit the reference's.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Parameters {
    pub(crate) scale: f32,
    pub(super) inverse: f32,
    pub(crate) zero_point: i32,
}

impl Parameters {
    #[inline(always)]
    pub(crate) fn new(range: Range, encoding: Encoding) -> Self {
        Self::with_scale(range, encoding, |scale| scale)
    }

    #[inline(always)]
    fn with_scale(range: Range, encoding: Encoding, rounded: impl Fn(f32) -> f32) -> Self {
        if !range.finite() {
            return Self { scale: f32::NAN, inverse: 0.0, zero_point: 0 };
        }
        let scale = match encoding {
            Encoding::Absmax => f32::from_bits(range.magnitude),
            // Halved before the subtraction, so that a range wider than f32 does not overflow.
            Encoding::Zeropoint => range.high * 0.5 - range.low * 0.5,
        };
        let scale = rounded(scale);
        if scale < MIN_SCALE {
            return Self { scale, inverse: 0.0, zero_point: 0 };
        }
        let inverse = 127.0 / scale;
        let zero_point = match encoding {
            Encoding::Absmax => 0,
            Encoding::Zeropoint => -convert::round(range.low * inverse) - 127,
        };
        Self { scale, inverse, zero_point }
    }
}

impl Parameters {
    /// What values are multiplied with; nothing where all codes are 0.
    pub(crate) fn inverse(self) -> Option<f32> {
        (self.inverse != 0.0).then_some(self.inverse)
    }

    /// Those of a group: the scale is rounded up to bf16.
    pub(crate) fn of_group(range: Range, encoding: Encoding) -> Self {
        Self::with_scale(range, encoding, group_scale)
    }

    /// Absmax as bitsandbytes computes it on a CPU: `127/s` in PyTorch is `(1/s)·127`, rounded twice. A code differs from the
    /// reference's by one where `x·127/s` lies within that rounding of a half, once in some ten thousand.
    pub(crate) fn bitsandbytes(range: Range) -> Self {
        let parameters = Self::new(range, Encoding::Absmax);
        if parameters.inverse == 0.0 {
            return parameters;
        }
        Self { inverse: (1.0 / parameters.scale) * 127.0, ..parameters }
    }
}
