//! Some rows of a weight: codes from values, values from codes, values to bytes.

use std::ops::Range;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use int8_core::FloatSlice;
use int8_cpu::{Kernel, RowQuantizer};

use crate::checkpoint::{DType, FloatRows, dequantize_row};
use crate::weights::widened;

/// NaN or infinity in a weight `[out, in]`.
pub(super) struct NotFinite {
    pub(super) row: usize,
    pub(super) column: usize,
}

/// Codes `[rows, K]` and absmax of the rows `rows` of a weight `[out, in]`.
///
/// The values are rounded to f16 first, as bitsandbytes does whatever the checkpoint's type, so that codes and scales are
/// equal to its own. A row with finite values beyond f16's range, which bitsandbytes turns into infinity, is quantised
/// from the values themselves.
///
/// # Errors
/// The first value that is not finite.
pub(super) fn quantize(
    kernel: Kernel,
    weight: &FloatRows<'_>,
    rows: Range<usize>,
    codes: &mut [i8],
    scales: &mut [f32],
) -> Result<(), NotFinite> {
    let inner = weight.dim().1;
    let mut quantizer = RowQuantizer::new(kernel);
    let (mut wide, mut narrow) = (Vec::new(), vec![f16::ZERO; inner]);
    let (mut done, mut result) = (0, Ok(()));
    weight.read(rows.clone(), &mut |row| {
        let codes = &mut codes[done * inner..][..inner];
        let rounded = match row {
            FloatSlice::F16(row) => row,
            row => {
                narrow.convert_from_f32_slice(widened(row, &mut wide));
                &narrow
            }
        };
        let mut scale = quantizer.quantize(FloatSlice::F16(rounded), codes);
        if !scale.is_finite() {
            match widened(row, &mut wide).iter().position(|value| !value.is_finite()) {
                Some(column) if result.is_ok() => {
                    result = Err(NotFinite { row: rows.start + done, column });
                }
                Some(_) => {}
                None => scale = quantizer.quantize(row, codes),
            }
        }
        scales[done] = scale;
        done += 1;
    });
    result
}

/// `codes[n, k]·scales[n]/127` for the lines `lines` of the result: rows of the codes, or columns if `transposed`.
pub(super) fn dequantize(
    codes: &[i8],
    (height, width): (usize, usize),
    scales: &[f32],
    lines: Range<usize>,
    transposed: bool,
) -> Vec<f32> {
    if !transposed {
        let mut values = vec![0.0; lines.len() * width];
        let rows = codes[lines.start * width..lines.end * width].chunks_exact(width.max(1));
        for ((row, scale), values) in rows.zip(&scales[lines]).zip(values.chunks_exact_mut(width.max(1))) {
            dequantize_row(row, *scale, values);
        }
        return values;
    }
    let mut values = vec![0.0; lines.len() * height];
    for (n, (row, scale)) in codes.chunks_exact(width.max(1)).zip(scales).enumerate() {
        let step = scale / 127.0;
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
            let mut rounded = vec![f16::ZERO; values.len()];
            rounded.convert_from_f32_slice(values);
            let lost = |(rounded, value): (&f16, &f32)| rounded.is_infinite() && value.is_finite();
            if let Some(place) = rounded.iter().zip(values).position(lost) {
                return Err((place, values[place]));
            }
            for (out, value) in out.as_chunks_mut::<2>().0.iter_mut().zip(rounded) {
                *out = value.to_le_bytes();
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
