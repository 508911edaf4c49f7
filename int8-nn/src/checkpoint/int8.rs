//! Reading the int8 layers that bitsandbytes writes.
//!
//! A linear layer `P` of N outputs and K inputs is stored as
//!
//! | tensor | dtype, shape | meaning |
//! |---|---|---|
//! | `P.weight` | I8 `[N, K]` row-major | codes in −127…127; −128 never occurs |
//! | `P.SCB` | F32 `[N]` | absmax of each row; the weight is `code · SCB / 127` |
//! | `P.weight_format` | U8 scalar, may be absent | 0 = row-major, the only layout read |
//!
//! GPT-2's `Conv1D`, whose 16-bit weight is `[K, N]`, is `[N, K]` here, too.

use ndarray::ArrayView2;
use rayon::prelude::*;

use super::error::Quoted;
use super::{Checkpoint, CheckpointError, DType, TensorView};

/// An int8 linear layer as it lies in the file.
#[derive(Debug, Clone)]
pub struct Int8Tensor<'a> {
    /// Codes, i8 `[N, K]` row-major, each in −127…127, borrowed from the file.
    pub codes: ArrayView2<'a, i8>,
    /// Absmax of each row, f32 `[N]`, finite and not negative; row `n` is `codes[n] · scales[n] / 127`.
    pub scales: Vec<f32>,
}

/// `out[k] = codes[k]·scale/127`, the last two operations as one factor.
pub(crate) fn dequantize_row(codes: &[i8], scale: f32, out: &mut [f32]) {
    let step = scale / 127.0;
    for (out, code) in out.iter_mut().zip(codes) {
        *out = f32::from(*code) * step;
    }
}

const USE_16_BIT: &str =
    "Use the model's 16-bit version, or one that bitsandbytes saved with load_in_8bit=True";

/// Layouts by the value of `weight_format` less one, as bitsandbytes numbers them; 0 is row-major.
const TILED_LAYOUTS: [&str; 3] = [
    "the bitsandbytes int8 layout col32",
    "the bitsandbytes int8 layout col_turing",
    "the bitsandbytes int8 layout col_ampere",
];

/// Tensors that show another quantisation of layer `P`: suffix to `P`, name.
const FOREIGN: [(&str, &str); 11] = [
    (".W_q", "HQQ"),
    (".weight._data", "Quanto"),
    (".weight.quant_state.bitsandbytes__nf4", "bitsandbytes 4-bit (NF4)"),
    (".weight.quant_state.bitsandbytes__fp4", "bitsandbytes 4-bit (FP4)"),
    (".weight.quant_map", "bitsandbytes 4-bit"),
    (".weight.absmax", "bitsandbytes 4-bit"),
    (".qweight", "GPTQ or AWQ"),
    (".weight_packed", "compressed-tensors (packed)"),
    (".weight_scale_inv", "8-bit floats with block scales"),
    (".weight_scale", "compressed-tensors or scaled 8-bit floats"),
    (".qzeros", "GPTQ or AWQ"),
];

/// The quantisation that is not read, of which the tensor `name` is a part; `is_there`: whether a tensor of a name exists.
pub(crate) fn foreign_format(name: &str, is_there: impl Fn(&str) -> bool) -> Option<&'static str> {
    FOREIGN.iter().find_map(|(suffix, format)| {
        let prefix = name.strip_suffix(suffix)?;
        (!is_there(&format!("{prefix}.SCB"))).then_some(*format)
    })
}

impl Checkpoint {
    /// Refuses weights that are quantised in a way that is not read, by the names of their tensors.
    ///
    /// # Errors
    /// [`CheckpointError::Quantization`] naming the format.
    pub fn refuse_foreign(&self) -> Result<(), CheckpointError> {
        let is_there = |name: &str| self.contains(name);
        let found =
            self.tensors().find_map(|tensor| Some((foreign_format(tensor.name(), is_there)?, tensor)));
        found.map_or(Ok(()), |(format, tensor)| Err(foreign(&tensor, format)))
    }

    /// The bitsandbytes int8 layer `prefix`, or `None` if `prefix.weight` is absent or not quantised.
    ///
    /// Reads all codes once, to check them.
    ///
    /// # Errors
    /// - [`CheckpointError::Quantization`] naming the format: a layout other than row-major, 4-bit weights, GPTQ, AWQ, …;
    /// - [`CheckpointError::MissingTensor`] if codes come without `SCB`;
    /// - [`CheckpointError::Dtype`], [`CheckpointError::Shape`] if the three do not fit together;
    /// - [`CheckpointError::Value`] for a code of −128 or a scale that is negative, infinite or NaN.
    pub fn int8_linear(&self, prefix: &str) -> Result<Option<Int8Tensor<'_>>, CheckpointError> {
        let part = |suffix: &str| self.get(&format!("{prefix}{suffix}"));
        let scales = part(".SCB");
        let found = FOREIGN.iter().find_map(|(suffix, name)| Some((part(suffix)?, *name)));
        if let (None, Some((tensor, format))) = (&scales, found) {
            return Err(foreign(&tensor, format));
        }
        let Some(weight) = part(".weight") else {
            return match scales {
                // Scales of nothing: something was lost.
                Some(scales) => {
                    let hint = format!(" (but its int8 scales {} are there)", Quoted(scales.name()));
                    Err(self.missing_because(&format!("{prefix}.weight"), hint))
                }
                None => Ok(None),
            };
        };
        if weight.dtype() != DType::I8 {
            return match scales {
                Some(_) => Err(weight.dtype_error("I8, because int8 scales (SCB) lie beside it")),
                None => Ok(None),
            };
        }
        if let Some(format) = part(".weight_format") {
            check_layout(&format)?;
        }
        let Some(scales) = scales else {
            let hint = format!(" (but its int8 codes {} are there)", Quoted(weight.name()));
            return Err(self.missing_because(&format!("{prefix}.SCB"), hint));
        };
        let codes = weight.codes()?;
        check_codes(&weight)?;
        let scales = read_scales(&scales, codes.nrows())?;
        Ok(Some(Int8Tensor { codes, scales }))
    }
}

fn foreign(tensor: &TensorView<'_>, format: &'static str) -> CheckpointError {
    CheckpointError::Quantization {
        file: tensor.file().to_owned(),
        tensor: tensor.name().to_owned(),
        format,
        help: USE_16_BIT,
    }
}

fn check_layout(tensor: &TensorView<'_>) -> Result<(), CheckpointError> {
    if tensor.dtype() != DType::U8 {
        return Err(tensor.dtype_error("U8"));
    }
    let &[layout] = &*tensor.bytes() else {
        return Err(tensor.shape_error("[] (a scalar)".to_owned()));
    };
    let Some(tiled) = layout.checked_sub(1) else { return Ok(()) };
    match TILED_LAYOUTS.get(usize::from(tiled)) {
        Some(name) => Err(foreign(tensor, name)),
        None => Err(CheckpointError::Value {
            file: tensor.file().to_owned(),
            tensor: tensor.name().to_owned(),
            expected: "0 (row-major)",
            found: format!("{layout}, which is no layout of bitsandbytes"),
            help: USE_16_BIT,
        }),
    }
}

/// Bytes one task scans for −128: a second-level cache's worth, so that the scan runs at memory speed on each core.
const TASK_CODES: usize = 1 << 20;

/// −128 is no code of absmax quantisation, and kernels rely on its absence.
fn check_codes(weight: &TensorView<'_>) -> Result<(), CheckpointError> {
    /// −128 as it is stored.
    const FORBIDDEN: u8 = 0x80;
    const RUN: usize = 1 << 12;
    let bytes = weight.bytes();
    // Without an end in the middle of a run the comparison is one of vectors.
    let has = |codes: &[u8]| codes.iter().fold(false, |found, code| found | (*code == FORBIDDEN));
    if !bytes.par_chunks(TASK_CODES).any(|codes| codes.chunks(RUN).any(has)) {
        return Ok(());
    }
    let place = bytes.iter().position(|&code| code == FORBIDDEN).unwrap_or_default();
    let width = weight.shape().last().copied().unwrap_or(1).max(1);
    Err(CheckpointError::Value {
        file: weight.file().to_owned(),
        tensor: weight.name().to_owned(),
        expected: "codes in -127…127",
        found: format!("-128 at row {}, column {}", place / width, place % width),
        help: "No absmax quantiser writes this code: the file is damaged or of another format; download it again",
    })
}

fn read_scales(tensor: &TensorView<'_>, rows: usize) -> Result<Vec<f32>, CheckpointError> {
    if tensor.dtype() != DType::F32 {
        return Err(tensor.dtype_error("F32"));
    }
    let scales = tensor.expect_shape(&[rows])?.to_f32()?;
    match scales.iter().position(|scale| !scale.is_finite() || *scale < 0.0) {
        None => Ok(scales),
        Some(row) => Err(CheckpointError::Value {
            file: tensor.file().to_owned(),
            tensor: tensor.name().to_owned(),
            expected: "finite scales that are not negative",
            found: format!("{} at row {row}", scales[row]),
            help: "The file is damaged, or was quantised from weights that held NaN or infinity; \
                   quantise the 16-bit model again",
        }),
    }
}
