//! The choice between one pass over the rows and two.

use half::{bf16, f16};
use int8_core::{FloatType, OutlierRule};

use super::one_pass::SAMPLES;
use super::quantizer::{Encoded, Quantizer, Workspace};
use crate::simd::Vectorize;

impl<K: Vectorize> Quantizer<'_, K> {
    /// Quantises the rows in the memory of `workspace`.
    pub(crate) fn run(&self, mut workspace: Workspace) -> Encoded {
        self.reserve(&mut workspace.codes);
        if self.is_row_local() {
            return self.in_two_passes(workspace, Vec::new());
        }
        match self.one_pass_threshold() {
            // A guess has nothing to win: the first rows are all, or computing a row again costs more than keeping it.
            Some(_) if self.computes() && (self.rows.prologue.is_costly() || self.rows.len() <= SAMPLES) => {
                self.keeping_rows(workspace)
            }
            Some(threshold) if self.is_16_bit() => match self.rows.x.float_type() {
                FloatType::F16 => self.in_one_pass_16::<f16>(workspace, threshold),
                _ => self.in_one_pass_16::<bf16>(workspace, threshold),
            },
            Some(threshold) => self.in_one_pass(workspace, threshold),
            None => self.knowing_columns(workspace),
        }
    }

    /// The threshold, if outlier columns can be guessed from the first rows and corrected later: absmax of a row, without code
    /// sums, and columns with a value that reaches a threshold.
    pub(crate) fn one_pass_threshold(&self) -> Option<f32> {
        match self.config.rule {
            OutlierRule::Absolute(threshold) if self.without_widening() && !self.sums => Some(threshold),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use int8_core::corpus::Random;
    use int8_core::{Config, Element, Scheme};
    use ndarray::{Array2, ArrayView2};

    use super::*;
    use crate::kernel::Kernel;
    use crate::layout::row_stride;
    use crate::matrix::Source;
    use crate::prologue::encode::scratch_length;
    use crate::prologue::outliers::Outliers;
    use crate::prologue::quantizer::InputGroups;
    use crate::prologue::rows::{Prologue, Rows};
    use crate::simd::Dispatch;

    /// x quantised in the pass that is chosen, in one pass as f32, and in two.
    struct AllWays<'a, T> {
        x: ArrayView2<'a, T>,
        config: Config,
        threshold: f32,
    }

    type Quantised = (Vec<usize>, Vec<u32>, Vec<Vec<i8>>, Vec<u32>);

    fn parts_of(input: &Encoded, rows: usize, inner: usize) -> Quantised {
        let values = match &input.outliers {
            Outliers::Dense { values, .. } => values.iter().map(|value| value.to_bits()).collect(),
            Outliers::None => Vec::new(),
            Outliers::Sparse(_) => panic!("whole columns"),
        };
        let row = |row| input.codes.codes()[row * input.stride..][..scratch_length(inner)].to_vec();
        let steps = input.terms.iter().map(|terms| terms.step.to_bits()).collect();
        (input.columns.clone(), steps, (0..rows).map(row).collect(), values)
    }

    impl<T: Element> Dispatch for AllWays<'_, T> {
        type Output = [Quantised; 3];

        fn run<K: Vectorize>(self, kernel: K) -> Self::Output {
            let (rows, inner) = self.x.dim();
            let x = Source::new(self.x, "x").expect("rows");
            let groups = InputGroups::None;
            let x = Rows { x, prologue: Prologue::None, inner };
            let quantizer = Quantizer { rows: x, config: &self.config, groups, sums: false, kernel };
            assert_eq!(quantizer.one_pass_threshold(), Some(self.threshold));
            let workspace = || {
                let mut workspace = Workspace::default();
                workspace.codes.reserve((rows + K::MR_STEP) * row_stride(inner));
                workspace
            };
            let chosen = quantizer.run(Workspace::default());
            let once = quantizer.in_one_pass(workspace(), self.threshold);
            let twice = quantizer.in_two_passes(workspace(), quantizer.outlier_columns());
            [chosen, once, twice].map(|input| parts_of(&input, rows, inner))
        }
    }

    fn all_ways<T: Element>() {
        let mut random = Random::new(31);
        let special = [f32::NAN, f32::INFINITY, -65_504.0, 1e-40, 0.0, -6.0, 5.97].map(T::from_f32);
        // The last is corrected by several threads.
        let shapes = [(1, 1), (1, 70), (3, 64), (5, 200), (7, 95), (9, 320), (300, 130), (440, 300)];
        // 8, 9 and 10 meet every special value: as many rounds as there are, no multiple of three.
        let shapes = if cfg!(miri) { &shapes[..4] } else { &shapes };
        for &(rows, inner) in shapes {
            let cases = (0..8).chain(special.iter().flat_map(|_| 8..11)).chain(11..14).enumerate();
            for (number, case) in cases {
                let special = special[number % special.len()];
                let threshold = match case {
                    7 => 0.01,
                    11 => f32::INFINITY,
                    _ => 6.0,
                };
                let mut x = Array2::from_shape_simple_fn((rows, inner), || T::from_f32(random.normal()));
                let column = inner / 3;
                match case {
                    // A column of outliers, but in the last row, which has one in another; one with little else.
                    1 => {
                        x.column_mut(column).fill(T::from_f32(-9.5));
                        x[[rows - 1, column]] = T::from_f32(0.5);
                        x[[rows - 1, inner - 1]] = T::from_f32(7.5);
                    }
                    2 => x.column_mut(column).fill(T::from_f32(-9.5)),
                    3 => {
                        x.column_mut(column).fill(T::from_f32(5.5));
                        x[[rows / 2, column]] = T::from_f32(7.0);
                    }
                    // The same magnitude in a column that stays.
                    4 => {
                        x.column_mut(column).fill(T::from_f32(-5.5));
                        x.column_mut(inner - 1).fill(T::from_f32(5.5));
                        x[[rows - 1, column]] = T::from_f32(7.0);
                    }
                    // Special values, in a column of outliers and in others.
                    8 => x[[rows / 2, column]] = special,
                    9 => {
                        x.column_mut(column).fill(T::from_f32(-9.5));
                        x[[rows - 1, column]] = special;
                    }
                    10 => {
                        x.column_mut(column).fill(T::from_f32(-9.5));
                        x[[0, inner - 1]] = special;
                    }
                    // Rows of zeros, and of nothing but outliers.
                    5 => x.row_mut(rows / 2).fill(T::from_f32(0.0)),
                    6 => x.row_mut(rows / 2).fill(T::from_f32(100.0)),
                    // Each row has an outlier in another column.
                    13 => (0..rows).for_each(|row| x[[row, row % inner]] = T::from_f32(9.0)),
                    // A NaN and an outlier in the same column.
                    12 => {
                        x[[0, column]] = T::from_f32(f32::NAN);
                        x[[rows - 1, column]] = T::from_f32(7.0);
                    }
                    _ => {}
                }
                if case == 2 {
                    x.mapv_inplace(|value| if value.to_f32().abs() < 3.0 { T::from_f32(0.0) } else { value });
                }
                let config =
                    Config { rule: OutlierRule::Absolute(threshold), ..Scheme::LlmInt8Absmax.config() };
                for kernel in Kernel::available() {
                    let [chosen, once, twice] = kernel.dispatch(AllWays { x: x.view(), config, threshold });
                    assert_eq!(chosen, twice, "{kernel}, {rows}x{inner}, case {case}: {x:?}");
                    assert_eq!(once, twice, "{kernel}, {rows}x{inner}, case {case}: {x:?}");
                }
            }
        }
    }

    #[test]
    fn one_pass_gives_what_two_give() {
        all_ways::<f32>();
        all_ways::<f16>();
        all_ways::<bf16>();
    }
}
