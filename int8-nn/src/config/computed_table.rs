//! Position tables that are computed although positions enter as learned ones do: few checkpoints store them.

use ndarray::Array2;

use crate::convert::{f32_from, f64_from};

/// How a position table is computed: half a row of sines, half a row of cosines of `position·frequency`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ComputedTable {
    /// Frequencies `10000^(−2i/width)` in double precision (Pegasus, Marian). A table of the checkpoint takes precedence.
    Double,
    /// Frequencies `10000^(−i/(width/2 − 1))` in single precision (M2M100). Tables of a checkpoint are not read.
    Single,
}

impl ComputedTable {
    /// Whether a table of the checkpoint takes precedence.
    pub fn may_be_stored(self) -> bool {
        self == Self::Double
    }

    /// The table `f32 [rows, width]`.
    pub(crate) fn table(self, rows: usize, width: usize) -> Array2<f32> {
        match self {
            Self::Double => {
                let sines = width.div_ceil(2);
                Array2::from_shape_fn((rows, width), |(position, column)| {
                    let place = if column < sines { column } else { column - sines };
                    let exponent = f64_from(2 * place) / f64_from(width);
                    let angle = f64_from(position) / 10_000_f64.powf(exponent);
                    f32_from(if column < sines { angle.sin() } else { angle.cos() })
                })
            }
            Self::Single => {
                let half = width / 2;
                let step = f32_from(-(10_000_f64.ln() / (f64_from(half) - 1.0)));
                let frequencies: Vec<f32> =
                    (0..half).map(|place| (f32_from(f64_from(place)) * step).exp()).collect();
                Array2::from_shape_fn((rows, width), |(position, column)| {
                    let position = f32_from(f64_from(position));
                    match column {
                        column if column < half => (position * frequencies[column]).sin(),
                        column if column < 2 * half => (position * frequencies[column - half]).cos(),
                        // The last column of an odd width.
                        _ => 0.0,
                    }
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows of transformers' `create_weight` (Marian) and `get_embedding` (M2M100).
    #[test]
    fn tables_of_known_values() {
        let double = ComputedTable::Double.table(8, 6);
        let expected = [0.656_986_6, 0.319_224_65, 0.015_080_471, 0.753_902_25, 0.947_679_07, 0.999_886_3];
        for (found, expected) in double.row(7).iter().zip(expected) {
            assert!((found - expected).abs() < 1e-6, "{double}");
        }
        let single = ComputedTable::Single.table(8, 7);
        let expected = [0.656_986_6, 0.069_942_85, 7e-4, 0.753_902_25, 0.997_551, 0.999_999_76, 0.0];
        for (found, expected) in single.row(7).iter().zip(expected) {
            assert!((found - expected).abs() < 1e-6, "{single}");
        }
    }
}
