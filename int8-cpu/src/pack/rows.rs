//! Row-wise absmax quantisation into plain rows, for saving: bit for bit what bitsandbytes stores.

use int8_core::{Element, Encoding, Error as CoreError, FloatSlice};
use ndarray::ArrayView2;

use super::builder::{WeightRows, checked};
use crate::error::Error;
use crate::kernel::Kernel;
use crate::matrix::rows_of;
use crate::prologue::encode::{Keep, encode, range, scratch_length, widen};
use crate::prologue::parameters::Parameters;
use crate::simd::{Instructions, Vectorized, run};

/// `codes[n, k] = round_half_even(w[n, k] · ((1/s)·127))`, `s = scales[n] = max_k |w[n, k]|`, for `w [N, K]` row-major,
/// every operation rounded to f32.
///
/// `codes` is i8 `[N, K]` row-major without padding, `scales` f32 `[N]`. A row of zeros has scale and codes 0; a row with
/// a NaN or infinity has scale NaN and codes 0. The result is the same on every kernel, and that of bitsandbytes on a CPU;
/// [`PackedWeight::quantize`](crate::PackedWeight::quantize), which has the reference's `127/s`, differs from it by one in
/// about one of ten thousand codes.
///
/// Works on the calling thread: rows are independent, so that blocks of them can be quantised on as many as there are.
///
/// # Errors
/// [`Error::NotRowMajor`]; the reference's `Length` when `codes` or `scales` do not have N·K and N elements.
pub fn quantize_rows<T: Element>(
    kernel: Kernel,
    w: ArrayView2<'_, T>,
    codes: &mut [i8],
    scales: &mut [f32],
) -> Result<(), Error> {
    rows_of(w, "W")?;
    let (rows, inner) = w.dim();
    for (what, expected, found) in [("codes", rows * inner, codes.len()), ("scales", rows, scales.len())] {
        if expected != found {
            return Err(CoreError::Length { what, expected, found }.into());
        }
    }
    let mut quantizer = RowQuantizer::new(kernel);
    let mut done = 0;
    w.read(0..rows, &mut |row| {
        scales[done] = quantizer.quantize(row, &mut codes[done * inner..][..inner]);
        done += 1;
    });
    Ok(())
}

/// [`quantize_rows`] for one row after the other, wherever they lie.
#[derive(Debug)]
pub struct RowQuantizer {
    kernel: Kernel,
    /// A row in f32, if it is stored in another type or has not whole blocks.
    floats: Vec<f32>,
    /// Its codes in whole blocks.
    padded: Vec<i8>,
}

impl RowQuantizer {
    /// Uses the instructions of this kernel; results do not depend on it.
    pub fn new(kernel: Kernel) -> Self {
        Self { kernel, floats: Vec::new(), padded: Vec::new() }
    }

    /// Writes the K codes of a row of K elements; returns its scale.
    ///
    /// # Panics
    /// If `codes` has not as many elements as the row.
    pub fn quantize(&mut self, row: FloatSlice<'_>, codes: &mut [i8]) -> f32 {
        let inner = codes.len();
        let row = checked(row, inner);
        let length = scratch_length(inner);
        let Self { kernel, floats, padded } = self;
        // Rows of whole blocks are encoded in place.
        if inner == length {
            return run(*kernel, Row { row, scratch: floats, codes });
        }
        padded.resize(length, 0);
        let scale = run(*kernel, Row { row, scratch: floats, codes: padded });
        codes.copy_from_slice(&padded[..inner]);
        scale
    }
}

/// One row, compiled for the kernel's instruction set.
struct Row<'a> {
    row: FloatSlice<'a>,
    scratch: &'a mut Vec<f32>,
    /// Whole blocks.
    codes: &'a mut [i8],
}

impl Vectorized for Row<'_> {
    type Output = f32;

    #[inline(always)]
    fn call<I: Instructions>(self, simd: I) -> f32 {
        let inner = self.row.len();
        let blocks = widen(simd, self.row, self.scratch);
        let parameters = Parameters::bitsandbytes(range(simd, blocks, Keep::All, Encoding::Absmax));
        encode(simd, blocks, inner, Keep::All, parameters, 0, self.codes);
        parameters.scale
    }
}

#[cfg(test)]
mod tests {
    use int8_core::corpus::Random;

    use super::*;

    /// The formula, in the order of its roundings.
    fn expected(row: &[f32]) -> (Vec<f32>, f32) {
        let scale = row.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
        if row.iter().any(|value| !value.is_finite()) {
            return (vec![0.0; row.len()], f32::NAN);
        }
        let inverse = if scale == 0.0 { 0.0 } else { (1.0 / scale) * 127.0 };
        (row.iter().map(|value| (value * inverse).round_ties_even()).collect(), scale)
    }

    #[test]
    fn rows_are_bitsandbytes_on_every_kernel() {
        let mut random = Random::new(12);
        for kernel in Kernel::available() {
            for (rows, inner) in [(0, 8), (3, 0), (1, 1), (5, 63), (4, 64), (7, 65), (3, 200)] {
                let mut w = random.matrix(rows, inner, 1.0);
                if rows > 2 && inner > 1 {
                    w.row_mut(1).fill(0.0);
                    w[[2, 1]] = f32::NAN;
                }
                let (mut codes, mut scales) = (vec![99; rows * inner], vec![-1.0; rows]);
                quantize_rows(kernel, w.view(), &mut codes, &mut scales).expect("plain rows");
                for row in 0..rows {
                    let values: Vec<f32> = w.row(row).to_vec();
                    let (expected, scale) = expected(&values);
                    let found: Vec<f32> =
                        codes[row * inner..][..inner].iter().map(|code| f32::from(*code)).collect();
                    assert_eq!(found, expected, "{kernel}, row {row} of [{rows}, {inner}]");
                    let same = scales[row] == scale || (scales[row].is_nan() && scale.is_nan());
                    assert!(same, "{kernel}: {} instead of {scale}", scales[row]);
                }
            }
        }
    }

    #[test]
    fn wrong_lengths_are_refused() {
        let w = ndarray::array![[1.0_f32, 2.0]];
        for (codes, scales) in [(1, 1), (2, 0), (3, 1)] {
            let result = quantize_rows(Kernel::best(), w.view(), &mut vec![0; codes], &mut vec![0.0; scales]);
            assert!(matches!(result, Err(Error::Core(CoreError::Length { .. }))), "{codes} {scales}");
        }
    }
}
