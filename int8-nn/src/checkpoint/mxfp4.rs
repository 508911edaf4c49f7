//! MXFP4 (OCP Microscaling Formats 1.0), as gpt-oss stores its experts: `{name}_blocks` u8 `[experts, N, K/32, 16]` and
//! `{name}_scales` u8 `[experts, N, K/32]`.
//!
//! A block is 32 values along K that share a scale: value = `E2M1(nibble) · 2^(scale − 127)`, the low nibble of a byte before its
//! high one; the scale 255 makes a block NaN. Values are read as bf16, which holds each of them exactly.

use half::bf16;

use super::{Checkpoint, CheckpointError, DType, TensorView};

/// Values that share a scale.
const BLOCK: usize = 32;
const BLOCK_BYTES: usize = BLOCK / 2;

/// The sixteen 4-bit floats: sign, two bits of exponent, one of mantissa.
const E2M1: [f32; 16] =
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

/// A matrix `[N, K]`, row-major.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mxfp4<'a> {
    /// `[N, K/32, 16]`
    blocks: &'a [u8],
    /// `[N, K/32]`
    scales: &'a [u8],
    dim: (usize, usize),
}

impl<'a> Mxfp4<'a> {
    /// The tensors of the experts `name`.
    pub(crate) fn tensors(name: &str) -> [String; 2] {
        ["blocks", "scales"].map(|suffix| format!("{name}_{suffix}"))
    }

    /// Matrix `index` of the experts `name`; `None` if the checkpoint does not hold them in this format.
    ///
    /// # Errors
    /// When scales are missing, or types and shapes do not fit together; for an index out of range.
    pub(crate) fn find(
        checkpoint: &'a Checkpoint,
        name: &str,
        index: usize,
    ) -> Result<Option<Self>, CheckpointError> {
        let [blocks, scales] = Self::tensors(name);
        if checkpoint.contains(name) || !checkpoint.contains(&blocks) {
            return Ok(None);
        }
        let (blocks, scales) = (checkpoint.tensor(&blocks)?, checkpoint.tensor(&scales)?);
        let &[experts, rows, groups, BLOCK_BYTES] = blocks.shape() else {
            return Err(
                blocks.shape_error("[experts, N, K/32, 16], blocks of 32 values in 16 bytes".to_owned())
            );
        };
        let scales = scales.expect_shape(&[experts, rows, groups])?;
        Ok(Some(Self {
            blocks: bytes(&blocks, index)?,
            scales: bytes(&scales, index)?,
            dim: (rows, groups * BLOCK),
        }))
    }

    /// `(N, K)`.
    pub(crate) fn dim(&self) -> (usize, usize) {
        self.dim
    }

    /// Row `index` into `out [K]`.
    pub(super) fn read_row(&self, index: usize, out: &mut [bf16]) {
        let groups = self.dim.1 / BLOCK;
        let scales = &self.scales[index * groups..][..groups];
        let blocks = self.blocks[index * groups * BLOCK_BYTES..].chunks_exact(BLOCK_BYTES);
        for ((out, block), scale) in out.chunks_exact_mut(BLOCK).zip(blocks).zip(scales) {
            let values = E2M1.map(|value| bf16::from_f32(value * power(*scale)));
            for (out, byte) in out.chunks_exact_mut(2).zip(block) {
                out[0] = values[usize::from(byte & 15)];
                out[1] = values[usize::from(byte >> 4)];
            }
        }
    }

    /// The value in row `row` and column `column`.
    pub(crate) fn at(&self, row: usize, column: usize) -> f32 {
        let block = row * (self.dim.1 / BLOCK) + column / BLOCK;
        let byte = self.blocks[block * BLOCK_BYTES + column % BLOCK / 2];
        let nibble = if column.is_multiple_of(2) { byte & 15 } else { byte >> 4 };
        E2M1[usize::from(nibble)] * power(self.scales[block])
    }
}

/// The bytes of matrix `index`.
fn bytes<'a>(tensor: &TensorView<'a>, index: usize) -> Result<&'a [u8], CheckpointError> {
    if tensor.dtype() != DType::U8 {
        return Err(tensor.dtype_error("U8, as MXFP4 has it"));
    }
    if !tensor.is_row_major() {
        return Err(tensor.shape_error("row-major".to_owned()));
    }
    Ok(tensor.slab(index)?.bytes)
}

/// `2^(scale − 127)`.
fn power(scale: u8) -> f32 {
    match scale {
        // 2^−127 is no normal number.
        0 => f32::from_bits(1 << 22),
        255 => f32::NAN,
        scale => f32::from_bits(u32::from(scale) << 23),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_those_of_the_formula() {
        // Row 0: scales 127 and 129, row 1: 0 and 254, row 2: 255 and 126.
        let scales = [127, 129, 0, 254, 255, 126];
        let blocks: Vec<u8> =
            (0..6 * 16).map(|index| u8::try_from(index * 37 % 256).expect("a byte")).collect();
        let matrix = Mxfp4 { blocks: &blocks, scales: &scales, dim: (3, 64) };
        let mut row = [bf16::ZERO; 64];
        for index in 0..3 {
            matrix.read_row(index, &mut row);
            for (column, value) in row.iter().enumerate() {
                let byte = blocks[(2 * index + column / 32) * 16 + column % 32 / 2];
                let nibble = if column % 2 == 0 { byte % 16 } else { byte / 16 };
                let (exponent, mantissa) = (nibble / 2 % 4, f64::from(nibble % 2));
                let magnitude = match exponent {
                    0 => mantissa / 2.0,
                    exponent => (1.0 + mantissa / 2.0) * 2_f64.powi(i32::from(exponent) - 1),
                };
                let sign = if nibble < 8 { 1.0 } else { -1.0 };
                let scale = scales[2 * index + column / 32];
                let expected = sign * magnitude * 2_f64.powi(i32::from(scale) - 127);
                let found = f64::from(value.to_f32());
                if scale == 255 {
                    assert!(found.is_nan() && matrix.at(index, column).is_nan());
                } else {
                    assert!(
                        found == expected || expected.abs() > 3.4e38,
                        "{index} {column}: {found} {expected}"
                    );
                    assert_eq!(matrix.at(index, column), value.to_f32());
                }
            }
        }
    }
}
