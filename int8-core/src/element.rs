//! The floating-point types of activations and weights.

use half::{bf16, f16};

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for half::f16 {}
    impl Sealed for half::bf16 {}
}

/// The element type of a floating-point tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FloatType {
    /// 32-bit.
    F32,
    /// IEEE half precision.
    F16,
    /// bfloat16: the upper half of an f32.
    Bf16,
}

impl FloatType {
    /// All, widest first.
    pub const ALL: [Self; 3] = [Self::F32, Self::F16, Self::Bf16];

    /// `f32`, `f16`, `bf16`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        }
    }

    /// Bytes of one element.
    pub const fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }
}

impl std::fmt::Display for FloatType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// The type in which a KV cache keeps keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KvType {
    /// 32-bit.
    F32,
    /// IEEE half precision.
    F16,
    /// bfloat16.
    Bf16,
    /// int8 codes with one f32 scale for the key and one for the value of each position and head:
    /// `q = round(x·127/s)`, `s = max |x|`.
    Int8,
}

impl KvType {
    /// All, widest first.
    pub const ALL: [Self; 4] = [Self::F32, Self::F16, Self::Bf16, Self::Int8];

    /// `f32`, `f16`, `bf16`, `int8`.
    pub const fn name(self) -> &'static str {
        match self.float() {
            Some(float) => float.name(),
            None => "int8",
        }
    }

    /// The floating-point type, of one that is such.
    pub const fn float(self) -> Option<FloatType> {
        match self {
            Self::F32 => Some(FloatType::F32),
            Self::F16 => Some(FloatType::F16),
            Self::Bf16 => Some(FloatType::Bf16),
            Self::Int8 => None,
        }
    }

    /// Bytes of a key or a value of `size` numbers, its scale included.
    pub const fn bytes_of(self, size: usize) -> usize {
        match self.float() {
            Some(float) => size * float.bytes(),
            None => size + size_of::<f32>(),
        }
    }
}

impl From<FloatType> for KvType {
    fn from(float: FloatType) -> Self {
        match float {
            FloatType::F32 => Self::F32,
            FloatType::F16 => Self::F16,
            FloatType::Bf16 => Self::Bf16,
        }
    }
}

impl std::fmt::Display for KvType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// A slice whose element type is known at run time.
#[derive(Debug, Clone, Copy)]
pub enum FloatSlice<'a> {
    /// 32-bit.
    F32(&'a [f32]),
    /// IEEE half precision.
    F16(&'a [f16]),
    /// bfloat16.
    Bf16(&'a [bf16]),
}

impl FloatSlice<'_> {
    /// Number of elements.
    pub const fn len(&self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::F16(values) => values.len(),
            Self::Bf16(values) => values.len(),
        }
    }

    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Type of the elements.
    pub const fn float_type(&self) -> FloatType {
        match self {
            Self::F32(_) => FloatType::F32,
            Self::F16(_) => FloatType::F16,
            Self::Bf16(_) => FloatType::Bf16,
        }
    }
}

/// A floating-point element: `f32`, `f16` or `bf16`.
///
/// Conversion to `f32` is exact for all three. Conversion from `f32` or `f64` rounds once, half to even.
pub trait Element: sealed::Sealed + Copy + PartialEq + Send + Sync + std::fmt::Debug + 'static {
    /// The type's name in safetensors: `F32`, `F16`, `BF16`.
    const NAME: &'static str;
    /// The type as a run-time value.
    const TYPE: FloatType;
    /// Unit roundoff `u`: rounding a number in range gives `x·(1 + δ)`, `|δ| ≤ u`. 2⁻²⁴, 2⁻¹¹, 2⁻⁸.
    const UNIT_ROUNDOFF: f64;
    /// Smallest positive (subnormal) number.
    const MIN_SUBNORMAL: f64;
    /// Largest finite number.
    const MAX: f64;

    /// The slice with its type as a run-time value.
    fn slice(values: &[Self]) -> FloatSlice<'_>;
    /// Exact conversion to `f32`.
    fn to_f32(self) -> f32;
    /// Rounds half to even; overflows to ±inf; keeps NaN.
    fn from_f32(value: f32) -> Self;
    /// Rounds half to even, in one step; overflows to ±inf; keeps NaN.
    fn from_f64(value: f64) -> Self;
}

impl Element for f32 {
    const NAME: &'static str = "F32";
    const TYPE: FloatType = FloatType::F32;
    const UNIT_ROUNDOFF: f64 = 1.0 / 16_777_216.0;
    const MIN_SUBNORMAL: f64 = 1.401_298_464_324_817e-45;
    const MAX: f64 = 3.402_823_466_385_288_6e38;

    fn slice(values: &[Self]) -> FloatSlice<'_> {
        FloatSlice::F32(values)
    }
    fn to_f32(self) -> f32 {
        self
    }
    fn from_f32(value: f32) -> Self {
        value
    }
    fn from_f64(value: f64) -> Self {
        crate::convert::f64_to_f32(value)
    }
}

impl Element for f16 {
    const NAME: &'static str = "F16";
    const TYPE: FloatType = FloatType::F16;
    const UNIT_ROUNDOFF: f64 = 1.0 / 2048.0;
    const MIN_SUBNORMAL: f64 = 5.960_464_477_539_063e-8;
    const MAX: f64 = 65_504.0;

    fn slice(values: &[Self]) -> FloatSlice<'_> {
        FloatSlice::F16(values)
    }
    fn to_f32(self) -> f32 {
        f16::to_f32(self)
    }
    fn from_f32(value: f32) -> Self {
        f16::from_f32(value)
    }
    fn from_f64(value: f64) -> Self {
        f16::from_f32(crate::convert::f64_to_f32_odd(value))
    }
}

impl Element for bf16 {
    const NAME: &'static str = "BF16";
    const TYPE: FloatType = FloatType::Bf16;
    const UNIT_ROUNDOFF: f64 = 1.0 / 256.0;
    const MIN_SUBNORMAL: f64 = 9.183_549_615_799_121e-41;
    const MAX: f64 = 3.389_531_389_251_535_5e38;

    fn slice(values: &[Self]) -> FloatSlice<'_> {
        FloatSlice::Bf16(values)
    }
    fn to_f32(self) -> f32 {
        bf16::to_f32(self)
    }
    fn from_f32(value: f32) -> Self {
        bf16::from_f32(value)
    }
    fn from_f64(value: f64) -> Self {
        bf16::from_f32(crate::convert::f64_to_f32_odd(value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits_agree_with_the_type<T: Element>() {
        let one_and_half_ulp = T::from_f64(1.0 + T::UNIT_ROUNDOFF).to_f32();
        assert_eq!(one_and_half_ulp, 1.0, "{}: 1 + u ties to even", T::NAME);
        assert!(T::from_f64(1.0 + 1.01 * T::UNIT_ROUNDOFF).to_f32() > 1.0, "{}: just above the tie", T::NAME);
        assert_eq!(f64::from(T::from_f64(T::MAX).to_f32()), T::MAX, "{}", T::NAME);
        assert!(T::from_f64(T::MAX * (1.0 + T::UNIT_ROUNDOFF)).to_f32().is_infinite(), "{}", T::NAME);
        assert_eq!(f64::from(T::from_f64(T::MIN_SUBNORMAL).to_f32()), T::MIN_SUBNORMAL, "{}", T::NAME);
        assert_eq!(T::from_f64(T::MIN_SUBNORMAL * 0.49).to_f32(), 0.0, "{}", T::NAME);
        assert!(T::from_f32(f32::NAN).to_f32().is_nan(), "{}", T::NAME);
    }

    /// The nearest of all numbers of a 16-bit type, ties to even, by exhaustion.
    fn nearest<T: Element>(value: f64, all: impl Iterator<Item = T>) -> f32 {
        all.map(T::to_f32)
            .filter(|candidate| candidate.is_finite())
            .min_by(|a, b| {
                let distance = |candidate: f32| (f64::from(candidate) - value).abs();
                let odd = |candidate: f32| f64::from(candidate) / (2.0 * T::UNIT_ROUNDOFF) % 2.0 != 0.0;
                distance(*a).total_cmp(&distance(*b)).then(odd(*a).cmp(&odd(*b)))
            })
            .expect("there are finite numbers")
    }

    fn is_rounded_once<T: Element>(from_bits: fn(u16) -> T) {
        for beyond_the_tie in [-52, -45, -30].map(|exponent| 2.0_f64.powi(exponent)) {
            for sign in [-1.0, 1.0] {
                for (even, direction) in [(1.0, 1.0), (1.0 + 4.0 * T::UNIT_ROUNDOFF, -1.0)] {
                    let value = sign * (even + direction * (T::UNIT_ROUNDOFF + beyond_the_tie));
                    let expected = nearest(value, (0..=u16::MAX).map(from_bits));
                    assert_eq!(T::from_f64(value).to_f32(), expected, "{} of {value:e}", T::NAME);
                }
            }
        }
    }

    /// Rounding through f32 would hit the tie first; truncating the f64 to its upper word would lose bits below it.
    #[test]
    fn f64_is_rounded_once() {
        is_rounded_once(f16::from_bits);
        is_rounded_once(bf16::from_bits);
    }

    #[test]
    fn limits() {
        limits_agree_with_the_type::<f32>();
        limits_agree_with_the_type::<f16>();
        limits_agree_with_the_type::<bf16>();
    }
}
