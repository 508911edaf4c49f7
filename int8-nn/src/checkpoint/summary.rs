//! A checkpoint's summary: files, dtypes, quantisation.

use std::collections::BTreeMap;
use std::fmt;

use int8_core::FloatType;

use super::int8::foreign_format;
use super::{Checkpoint, DType, FileFormat, TensorView};

/// Totals of one element type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DTypeTotal {
    /// The element type.
    pub dtype: DType,
    /// Number of tensors stored in it.
    pub tensors: usize,
    /// Their elements, those of tied tensors once.
    pub elements: u64,
    /// Their bytes, those of tied tensors once.
    pub bytes: u64,
}

/// Quantisation of the weights, judged by the tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Quantization {
    /// 16/32-bit weights.
    None,
    /// bitsandbytes int8: this many linear layers with `SCB`.
    Bitsandbytes8 {
        /// Number of int8 layers.
        layers: usize,
    },
    /// bitsandbytes 4-bit (NF4 or FP4), not read.
    Bitsandbytes4,
    /// GPTQ or AWQ, not read.
    Gptq,
    /// 8-bit floats, not read.
    Float8,
    /// Another format of this name, not read.
    Other(&'static str),
}

impl fmt::Display for Quantization {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("not quantised"),
            Self::Bitsandbytes8 { layers } => write!(f, "bitsandbytes int8 ({layers} layers)"),
            Self::Bitsandbytes4 => f.write_str("bitsandbytes 4-bit (not supported)"),
            Self::Gptq => f.write_str("GPTQ or AWQ (not supported)"),
            Self::Float8 => f.write_str("8-bit floats (not supported)"),
            Self::Other(name) => write!(f, "{name} (not supported)"),
        }
    }
}

/// A checkpoint's summary, from [`Checkpoint::format`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Format {
    /// The format of the weight files; [`FileFormat::Torch`] if any is a PyTorch file.
    pub container: FileFormat,
    /// The weight files, as in error messages.
    pub files: Vec<String>,
    /// Totals by element type, largest first.
    pub dtypes: Vec<DTypeTotal>,
    /// How the weights are quantised.
    pub quantization: Quantization,
    /// The files' own `__metadata__`, joined.
    pub metadata: BTreeMap<String, String>,
}

impl Checkpoint {
    /// Files, element types with their totals, quantisation.
    pub fn format(&self) -> Format {
        let mut totals: BTreeMap<DType, DTypeTotal> = BTreeMap::new();
        let (mut int8, mut four_bit, mut gptq, mut float8) = (0, false, false, false);
        for tensor in self.tensors() {
            let dtype = tensor.dtype();
            let total =
                totals.entry(dtype).or_insert(DTypeTotal { dtype, tensors: 0, elements: 0, bytes: 0 });
            total.tensors += 1;
            if self.tied_to(tensor.name()).is_none() {
                total.elements += u64::try_from(tensor.len()).unwrap_or(u64::MAX);
                total.bytes += u64::try_from(tensor.byte_len()).unwrap_or(u64::MAX);
            }
            int8 += usize::from(tensor.name().ends_with(".SCB"));
            four_bit |= tensor.name().contains(".quant_state.bitsandbytes__")
                || tensor.name().ends_with(".quant_map");
            gptq |= tensor.name().ends_with(".qweight");
            float8 |= matches!(dtype, DType::F8E4M3 | DType::F8E5M2);
        }
        let mut dtypes: Vec<_> = totals.into_values().collect();
        dtypes.sort_by(|left, right| right.bytes.cmp(&left.bytes).then_with(|| left.dtype.cmp(&right.dtype)));
        let quantization = match int8 {
            _ if four_bit => Quantization::Bitsandbytes4,
            _ if gptq => Quantization::Gptq,
            0 if float8 => Quantization::Float8,
            0 => {
                let format =
                    |tensor: TensorView<'_>| foreign_format(tensor.name(), |name| self.contains(name));
                self.tensors().find_map(format).map_or(Quantization::None, Quantization::Other)
            }
            layers => Quantization::Bitsandbytes8 { layers },
        };
        let metadata = self.inner.files.iter().flat_map(|file| file.contents.metadata.clone()).collect();
        let files = self.files().map(str::to_owned).collect();
        let formats = self.inner.files.iter().map(|file| file.format);
        let container = formats.max().unwrap_or(FileFormat::Safetensors);
        Format { container, files, dtypes, quantization, metadata }
    }

    /// The floating-point type of most of the bytes that are not int8: the one in which a device that computes in a single
    /// type computes this model. `None` without weights in floating point.
    pub fn float_type(&self) -> Option<FloatType> {
        self.format().dtypes.iter().find_map(|total| total.dtype.float_type())
    }
}
