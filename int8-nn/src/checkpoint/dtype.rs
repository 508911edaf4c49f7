//! The element types of the safetensors format.

use std::fmt;

use int8_core::FloatType;
use safetensors::Dtype as Stored;

/// Element type of a stored tensor, little-endian. [`Checkpoint`](super::Checkpoint) lists tensors of all types of the
/// format; values are read of those that [`DType::is_readable`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the names are the format's own")]
pub enum DType {
    F64,
    F32,
    F16,
    BF16,
    I64,
    I32,
    I16,
    I8,
    U64,
    U32,
    U16,
    U8,
    Bool,
    C64,
    F8E5M2,
    F8E4M3,
    F8E8M0,
    F8E4M3Fnuz,
    F8E5M2Fnuz,
    F6E2M3,
    F6E3M2,
    F4,
}

impl DType {
    /// The type for the parser's type; `None` for one that a later version of the format adds.
    pub(super) fn from_stored(stored: Stored) -> Option<Self> {
        Some(match stored {
            Stored::F64 => Self::F64,
            Stored::F32 => Self::F32,
            Stored::F16 => Self::F16,
            Stored::BF16 => Self::BF16,
            Stored::I64 => Self::I64,
            Stored::I32 => Self::I32,
            Stored::I16 => Self::I16,
            Stored::I8 => Self::I8,
            Stored::U64 => Self::U64,
            Stored::U32 => Self::U32,
            Stored::U16 => Self::U16,
            Stored::U8 => Self::U8,
            Stored::BOOL => Self::Bool,
            Stored::C64 => Self::C64,
            Stored::F8_E5M2 => Self::F8E5M2,
            Stored::F8_E4M3 => Self::F8E4M3,
            Stored::F8_E8M0 => Self::F8E8M0,
            Stored::F8_E4M3FNUZ => Self::F8E4M3Fnuz,
            Stored::F8_E5M2FNUZ => Self::F8E5M2Fnuz,
            Stored::F6_E2M3 => Self::F6E2M3,
            Stored::F6_E3M2 => Self::F6E3M2,
            Stored::F4 => Self::F4,
            _ => return None,
        })
    }

    /// The parser's type for this one.
    pub(super) fn to_stored(self) -> Stored {
        match self {
            Self::F64 => Stored::F64,
            Self::F32 => Stored::F32,
            Self::F16 => Stored::F16,
            Self::BF16 => Stored::BF16,
            Self::I64 => Stored::I64,
            Self::I32 => Stored::I32,
            Self::I16 => Stored::I16,
            Self::I8 => Stored::I8,
            Self::U64 => Stored::U64,
            Self::U32 => Stored::U32,
            Self::U16 => Stored::U16,
            Self::U8 => Stored::U8,
            Self::Bool => Stored::BOOL,
            Self::C64 => Stored::C64,
            Self::F8E5M2 => Stored::F8_E5M2,
            Self::F8E4M3 => Stored::F8_E4M3,
            Self::F8E8M0 => Stored::F8_E8M0,
            Self::F8E4M3Fnuz => Stored::F8_E4M3FNUZ,
            Self::F8E5M2Fnuz => Stored::F8_E5M2FNUZ,
            Self::F6E2M3 => Stored::F6_E2M3,
            Self::F6E3M2 => Stored::F6_E3M2,
            Self::F4 => Stored::F4,
        }
    }

    /// Size of one element in bits (4 and 6 for the sub-byte types).
    pub const fn bits(self) -> usize {
        match self {
            Self::F64 | Self::I64 | Self::U64 | Self::C64 => 64,
            Self::F32 | Self::I32 | Self::U32 => 32,
            Self::F16 | Self::BF16 | Self::I16 | Self::U16 => 16,
            Self::I8
            | Self::U8
            | Self::Bool
            | Self::F8E5M2
            | Self::F8E4M3
            | Self::F8E8M0
            | Self::F8E4M3Fnuz
            | Self::F8E5M2Fnuz => 8,
            Self::F6E2M3 | Self::F6E3M2 => 6,
            Self::F4 => 4,
        }
    }

    /// Whether [`TensorView`](super::TensorView) converts values of this type.
    pub const fn is_readable(self) -> bool {
        self.is_float()
            || matches!(
                self,
                Self::I64 | Self::I32 | Self::I16 | Self::I8 | Self::U8 | Self::U16 | Self::U32 | Self::Bool
            )
    }

    /// Whether this is one of the float types that weights are read from: F64, F32, F16, BF16.
    pub const fn is_float(self) -> bool {
        matches!(self, Self::F64 | Self::F32 | Self::F16 | Self::BF16)
    }

    /// The type as arithmetic knows it; `None` for integers, and for floats that no weight is kept in.
    pub const fn float_type(self) -> Option<FloatType> {
        match self {
            Self::F32 => Some(FloatType::F32),
            Self::F16 => Some(FloatType::F16),
            Self::BF16 => Some(FloatType::Bf16),
            _ => None,
        }
    }

    /// The format's own name, as in a header.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F64 => "F64",
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::I64 => "I64",
            Self::I32 => "I32",
            Self::I16 => "I16",
            Self::I8 => "I8",
            Self::U64 => "U64",
            Self::U32 => "U32",
            Self::U16 => "U16",
            Self::U8 => "U8",
            Self::Bool => "BOOL",
            Self::C64 => "C64",
            Self::F8E5M2 => "F8_E5M2",
            Self::F8E4M3 => "F8_E4M3",
            Self::F8E8M0 => "F8_E8M0",
            Self::F8E4M3Fnuz => "F8_E4M3FNUZ",
            Self::F8E5M2Fnuz => "F8_E5M2FNUZ",
            Self::F6E2M3 => "F6_E2M3",
            Self::F6E3M2 => "F6_E3M2",
            Self::F4 => "F4",
        }
    }
}

impl From<FloatType> for DType {
    fn from(float: FloatType) -> Self {
        match float {
            FloatType::F32 => Self::F32,
            FloatType::F16 => Self::F16,
            FloatType::Bf16 => Self::BF16,
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
