//! Sinusoidal positions (Vaswani et al., 2017): a table that is computed instead of learned.

use ndarray::Array2;

use crate::convert;

/// Row `p` of the table: `sin(p·f_i)` for `i < width/2`, then `cos(p·f_i)`, with `f_i = 10000^(−i/divisor)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sinusoids {
    /// Row of position 0.
    pub offset: usize,
    /// The frequencies end at `1/10000` instead of one step before it.
    pub inclusive: bool,
    /// A row of zeros.
    pub zeros: Option<usize>,
}

impl Sinusoids {
    /// The table `f32 [rows, width]`. Angles are rounded to f32, as where they are computed in it.
    pub(crate) fn table(&self, rows: usize, width: usize) -> Array2<f32> {
        let half = width / 2;
        let divisor =
            convert::f64_from(if self.inclusive { half.saturating_sub(1).max(1) } else { half.max(1) });
        let mut table = Array2::zeros((rows, width));
        for ((row, column), value) in table.indexed_iter_mut() {
            if self.zeros == Some(row) || column >= 2 * half {
                continue;
            }
            let exponent = -convert::f64_from(column % half) / divisor;
            let frequency = convert::f32_from(10_000_f64.powf(exponent));
            let angle = f64::from(convert::f32_from(convert::f64_from(row)) * frequency);
            *value = convert::f32_from(if column < half { angle.sin() } else { angle.cos() });
        }
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sines_come_before_cosines() {
        let sinusoids = Sinusoids { offset: 2, inclusive: true, zeros: Some(1) };
        let table = sinusoids.table(4, 6);
        assert_eq!(table.row(0).to_vec(), [0.0, 0.0, 0.0, 1.0, 1.0, 1.0]);
        assert_eq!(table.row(1).to_vec(), [0.0; 6]);
        let expected = [3.0_f32, 0.03, 3e-4].map(f32::sin);
        for (found, expected) in table.row(3).iter().zip(expected) {
            assert!((found - expected).abs() < 1e-6, "{found} {expected}");
        }
        let other = Sinusoids { inclusive: false, ..sinusoids }.table(4, 6);
        assert!((other[[3, 2]] - (3.0 * 10_000_f32.powf(-2.0 / 3.0)).sin()).abs() < 1e-6);
    }
}
