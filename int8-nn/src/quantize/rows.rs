//! Some rows of a weight: codes from values, values from codes, values to bytes.

use std::ops::Range;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use int8_cpu::Kernel;
use ndarray::ArrayView2;

use crate::Error;
use crate::checkpoint::{CheckpointError, DType, TensorView};

/// Why some rows have no codes.
pub(super) enum Problem {
    Error(Error),
    /// NaN or infinity in this row of `[out, in]`.
    NotFinite {
        row: usize,
        column: usize,
    },
}

impl<E: Into<Error>> From<E> for Problem {
    fn from(error: E) -> Self {
        Self::Error(error.into())
    }
}

/// Codes and absmax of the rows `rows` of a weight `[out, in]`, which is stored `[in, out]` if `transposed`.
///
/// The values are rounded to f16 first, as bitsandbytes does whatever the checkpoint's type, so that codes and scales are
/// equal to its own. A row with finite values beyond f16's range, which bitsandbytes turns into infinity, is quantised
/// from the values themselves.
pub(super) fn quantize(
    kernel: Kernel,
    tensor: &TensorView<'_>,
    rows: Range<usize>,
    transposed: bool,
    codes: &mut [i8],
    scales: &mut [f32],
) -> Result<(), Problem> {
    let (height, width) = tensor.matrix_shape()?;
    let inner = if transposed { height } else { width };
    let count = rows.len();
    let mut copy = Vec::new();
    let mut wide = Vec::new();
    let bytes = tensor.bytes();
    let halves: &[f16] = if tensor.dtype() == DType::F16 {
        let place = if transposed { 0..0 } else { rows.start * width * 2..rows.end * width * 2 };
        match bytemuck::try_cast_slice(&bytes[place]) {
            Ok(halves) if !transposed && cfg!(target_endian = "little") => halves,
            _ => {
                copy.resize(count * inner, f16::ZERO);
                if transposed {
                    read_columns(&bytes, width, rows.clone(), &mut copy, f16::from_le_bytes);
                } else {
                    tensor.read_rows(rows.clone(), &mut copy)?;
                }
                &copy
            }
        }
    } else {
        wide.resize(count * inner, 0.0_f32);
        read_f32(tensor, width, rows.clone(), transposed, &mut wide)?;
        copy.resize(count * inner, f16::ZERO);
        copy.convert_from_f32_slice(&wide);
        &copy
    };
    let halves = ArrayView2::from_shape((count, inner), halves).map_err(int8_core_shape)?;
    int8_cpu::quantize_rows(kernel, halves, codes, scales).map_err(Error::from)?;

    for (index, scale) in scales.iter_mut().enumerate().filter(|(_, scale)| !scale.is_finite()) {
        let row = rows.start + index;
        let values: Vec<f32> = match wide.get(index * inner..(index + 1) * inner) {
            Some(values) => values.to_vec(),
            None => halves.row(index).iter().map(|value| value.to_f32()).collect(),
        };
        if let Some(column) = values.iter().position(|value| !value.is_finite()) {
            return Err(Problem::NotFinite { row, column });
        }
        let values = ArrayView2::from_shape((1, inner), &values).map_err(int8_core_shape)?;
        let codes = &mut codes[index * inner..(index + 1) * inner];
        int8_cpu::quantize_rows(kernel, values, codes, std::slice::from_mut(scale)).map_err(Error::from)?;
    }
    Ok(())
}

fn int8_core_shape(error: ndarray::ShapeError) -> Error {
    Error::Input(format!("a block of rows: {error}"))
}

/// Rows of `[out, in]` as f32.
fn read_f32(
    tensor: &TensorView<'_>,
    width: usize,
    rows: Range<usize>,
    transposed: bool,
    out: &mut [f32],
) -> Result<(), CheckpointError> {
    match tensor.dtype() {
        _ if !transposed => tensor.read_rows(rows, out)?,
        DType::BF16 => {
            read_columns(&tensor.bytes(), width, rows, out, |bytes| bf16::from_le_bytes(bytes).to_f32());
        }
        DType::F32 => read_columns(&tensor.bytes(), width, rows, out, f32::from_le_bytes),
        _ => {
            let columns: Vec<usize> = rows.clone().collect();
            let values: Vec<f32> = tensor.columns(&columns)?;
            for (line, values) in values.chunks_exact(columns.len().max(1)).enumerate() {
                for (column, value) in values.iter().enumerate() {
                    out[column * (out.len() / columns.len()) + line] = *value;
                }
            }
        }
    }
    Ok(())
}

/// The columns `columns` of a matrix with `width` of them as the rows of `out`.
fn read_columns<const SIZE: usize, T>(
    bytes: &[u8],
    width: usize,
    columns: Range<usize>,
    out: &mut [T],
    decode: impl Fn([u8; SIZE]) -> T,
) {
    let height = out.len() / columns.len().max(1);
    for (line, bytes) in bytes.chunks_exact((width * SIZE).max(1)).enumerate() {
        let elements = bytes[columns.start * SIZE..columns.end * SIZE].as_chunks::<SIZE>().0;
        for (column, element) in elements.iter().enumerate() {
            out[column * height + line] = decode(*element);
        }
    }
}

/// `codes[n, k]·scales[n]/127` for the lines `lines` of the result: rows of the codes, or columns if `transposed`.
pub(super) fn dequantize(
    codes: &[i8],
    (height, width): (usize, usize),
    scales: &[f32],
    lines: Range<usize>,
    transposed: bool,
) -> Vec<f32> {
    let step = |scale: &f32| scale / 127.0;
    if !transposed {
        let rows = codes[lines.start * width..lines.end * width].chunks_exact(width.max(1));
        let values = rows.zip(&scales[lines]).flat_map(|(row, scale)| {
            let step = step(scale);
            row.iter().map(move |code| f32::from(*code) * step)
        });
        return values.collect();
    }
    let mut values = vec![0.0; lines.len() * height];
    for (n, (row, scale)) in codes.chunks_exact(width.max(1)).zip(scales).enumerate() {
        let step = step(scale);
        for (line, code) in row[lines.clone()].iter().enumerate() {
            values[line * height + n] = f32::from(*code) * step;
        }
    }
    values
}

/// Writes values in another type, rounded once, half to even.
///
/// # Errors
/// The place and value of a finite number that would become infinite.
pub(super) fn store(values: &[f32], to: DType, out: &mut [u8]) -> Result<(), (usize, f32)> {
    let overflow = |(place, value): (usize, &f32)| (place, *value);
    match to {
        DType::F16 => {
            let mut halves = vec![f16::ZERO; values.len()];
            halves.convert_from_f32_slice(values);
            let lost = |(half, value): (&f16, &f32)| half.is_infinite() && value.is_finite();
            if let Some(place) = halves.iter().zip(values).position(lost) {
                return Err((place, values[place]));
            }
            for (out, half) in out.as_chunks_mut::<2>().0.iter_mut().zip(halves) {
                *out = half.to_le_bytes();
            }
        }
        DType::BF16 => {
            for (place, (out, value)) in out.as_chunks_mut::<2>().0.iter_mut().zip(values).enumerate() {
                let rounded = bf16::from_f32(*value);
                if rounded.is_infinite() && value.is_finite() {
                    return Err(overflow((place, value)));
                }
                *out = rounded.to_le_bytes();
            }
        }
        _ => {
            for (out, value) in out.as_chunks_mut::<4>().0.iter_mut().zip(values) {
                *out = value.to_le_bytes();
            }
        }
    }
    Ok(())
}
