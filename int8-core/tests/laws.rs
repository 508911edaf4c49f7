//! Properties that hold for every input.

use std::ops::RangeInclusive;

use int8_core::corpus::Random;
use int8_core::product::{correct_zero_points, dequantize_groups, group_products, int8_product};
use int8_core::quantize::MIN_SCALE;
use int8_core::{
    Config, Element, Encoding, GROUP, Granularity, OutlierGranularity, OutlierRule, QuantizedMatrix,
    RowMaximum, RowStatistic, Scheme, Weight, find_outliers, linear,
};
use ndarray::{Array1, Array2, ArrayView2, Axis, concatenate, s};
use proptest::prelude::*;
use proptest::sample::select;

const U32: f64 = <f32 as Element>::UNIT_ROUNDOFF;

/// An ordinary activation: mostly a few units, some zeros, some large; an eighth are values that the encodings map to
/// the edges of their range.
fn value() -> impl Strategy<Value = f32> {
    prop_oneof![8 => -4.0_f32..4.0, 2 => -80.0_f32..80.0, 1 => Just(0.0), 1 => select(vec![6.0, -6.0, 127.0, -127.0, 0.5])]
}

fn matrix(
    rows: impl Into<RangeInclusive<usize>>,
    columns: impl Into<RangeInclusive<usize>>,
) -> impl Strategy<Value = Array2<f32>> {
    (rows.into(), columns.into()).prop_flat_map(|(rows, columns)| {
        prop::collection::vec(value(), rows * columns).prop_map(move |values| {
            Array2::from_shape_vec((rows, columns), values).expect("rows × columns values")
        })
    })
}

/// `x [M, K]` and `W [N, K]`, all sizes down to one.
fn operands() -> impl Strategy<Value = (Array2<f32>, Array2<f32>)> {
    (1..=6_usize, 1..=40_usize, 1..=6_usize)
        .prop_flat_map(|(m, k, n)| (matrix(m..=m, k..=k), matrix(n..=n, k..=k)))
}

fn encoding() -> impl Strategy<Value = Encoding> {
    select(vec![Encoding::Absmax, Encoding::Zeropoint])
}

fn granularity() -> impl Strategy<Value = Granularity> {
    select(vec![Granularity::Row, Granularity::Group, Granularity::Tensor])
}

/// Every rule whose outcome does not depend on the order of a sum.
fn rule() -> impl Strategy<Value = OutlierRule> {
    prop_oneof![
        Just(OutlierRule::None),
        (1.0_f32..20.0).prop_map(OutlierRule::Absolute),
        (2.0_f32..20.0)
            .prop_map(|tau| OutlierRule::RelativeToRow { tau, statistic: RowStatistic::MedianAbs }),
    ]
}

fn config() -> impl Strategy<Value = Config> {
    let outliers = select(vec![OutlierGranularity::Column, OutlierGranularity::Value]);
    let maximum = select(vec![RowMaximum::Paper, RowMaximum::Bitsandbytes]);
    let encodings = (encoding(), encoding());
    let granularities = (granularity(), granularity());
    (encodings, granularities, rule(), outliers, maximum).prop_map(
        |(encodings, granularities, rule, outlier_granularity, row_maximum)| Config {
            input_encoding: encodings.0,
            weight_encoding: encodings.1,
            input_granularity: granularities.0,
            weight_granularity: granularities.1,
            rule,
            outlier_granularity,
            row_maximum,
        },
    )
}

/// The layer without bias.
fn layer(x: &Array2<f32>, w: &Array2<f32>, config: &Config) -> int8_core::LinearOutput<f32> {
    linear(x.view(), &Weight::quantize(w.view(), config), None, config).expect("a valid layer")
}

fn permutation(length: usize, seed: u64) -> Vec<usize> {
    let mut random = Random::new(seed);
    let mut order: Vec<(u64, usize)> = (0..length).map(|index| (random.bits(), index)).collect();
    order.sort_unstable();
    order.into_iter().map(|(_, index)| index).collect()
}

/// The result of multiplying `x`'s row `m` and `w`'s row `n` without any int8, and the sum of magnitudes.
fn exact_product(x: ArrayView2<f32>, w: ArrayView2<f32>) -> (Array2<f64>, Array2<f64>) {
    let terms = |m: usize, n: usize| {
        let pairs: Vec<f64> =
            x.row(m).iter().zip(w.row(n)).map(|(x, w)| f64::from(*x) * f64::from(*w)).collect();
        pairs
    };
    let shape = (x.nrows(), w.nrows());
    (
        Array2::from_shape_fn(shape, |(m, n)| terms(m, n).iter().sum()),
        Array2::from_shape_fn(shape, |(m, n)| terms(m, n).iter().map(|term| term.abs()).sum()),
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// A power of two as unit changes the scales and nothing else.
    #[test]
    fn codes_do_not_depend_on_the_unit(
        x in matrix(1..=6, 1..=40), exponent in -20..=20, encoding in encoding(), granularity in granularity(),
    ) {
        let factor = 2.0_f32.powi(exponent);
        let (plain, scaled) =
            (QuantizedMatrix::quantize(x.view(), encoding, granularity), QuantizedMatrix::quantize((&x * factor).view(), encoding, granularity));
        prop_assert_eq!(plain.codes(), scaled.codes());
        prop_assert_eq!(plain.zero_points(), scaled.zero_points());
        prop_assert_eq!(plain.scales().mapv(|scale| scale * factor), scaled.scales());
    }

    /// With a rule that follows the rows, the whole layer only changes its unit.
    #[test]
    fn a_relative_rule_does_not_depend_on_the_unit((x, w) in operands(), exponent in -20..=20, tau in 2.0_f32..20.0) {
        let rule = OutlierRule::RelativeToRow { tau, statistic: RowStatistic::MedianAbs };
        let config = Config { rule, ..Scheme::LlmInt8Absmax.config() };
        let factor = 2.0_f32.powi(exponent);
        let (plain, scaled) = (layer(&x, &w, &config), layer(&(&x * factor), &w, &config));
        prop_assert_eq!(&plain.outliers, &scaled.outliers);
        prop_assert_eq!(plain.exact.mapv(|y| y * f64::from(factor)), scaled.exact);
    }

    /// `|dequantise(quantise(x)) − x| ≤ step/2`, and what three f32 roundings of `x·127/s` (|·| ≤ 127 or 254) add. That
    /// holds for zero-point rows too: the clamp moves only values that lie next to a tie.
    #[test]
    fn a_code_stands_for_a_value_half_a_step_away(
        x in matrix(1..=6, 1..=40), encoding in encoding(), granularity in granularity(),
    ) {
        let quantized = QuantizedMatrix::quantize(x.view(), encoding, granularity);
        for (at, x) in x.indexed_iter() {
            let step = f64::from(quantized.parameters(at.0, at.1).0) / 127.0;
            let largest = if encoding == Encoding::Absmax { 127.0 } else { 254.0 };
            let error = (quantized.value(at.0, at.1) - f64::from(*x)).abs();
            prop_assert!(error <= step * (0.5 + largest * 4.0 * U32), "{} steps at {:?}", error / step, at);
        }
    }

    /// Whatever the bits are: −128 and zero points out of range never occur, scales are positive, and NaN exactly
    /// where a value that counts is not finite.
    #[test]
    fn no_input_gives_a_code_or_parameter_out_of_range(
        bits in prop::collection::vec(any::<u32>(), 24), encoding in encoding(), granularity in granularity(),
    ) {
        let x = Array2::from_shape_fn((4, 6), |(row, column)| f32::from_bits(bits[row * 6 + column]));
        let quantized = QuantizedMatrix::quantize(x.view(), encoding, granularity);
        prop_assert!(quantized.codes().iter().all(|code| *code != i8::MIN));
        prop_assert!(quantized.zero_points().iter().all(|zero_point| (-127..=127).contains(zero_point)));
        let finite = |row: usize| x.row(row).iter().all(|value| value.is_finite());
        for row in 0..4 {
            let valid = if granularity == Granularity::Tensor { (0..4).all(finite) } else { finite(row) };
            let scale = quantized.scales()[row];
            let right = if valid { scale.is_finite() && scale.is_sign_positive() } else { scale.is_nan() };
            prop_assert!(right, "scale {} of row {}", scale, row);
            if !valid || scale < MIN_SCALE {
                prop_assert!(quantized.codes().row(row).iter().all(|code| *code == 0));
            }
        }
    }

    /// `quantise(−x) = −quantise(x)` for absmax, and values at most one step from it for zero-point.
    #[test]
    fn negation(x in matrix(1..=6, 1..=40), encoding in encoding(), granularity in granularity()) {
        let (plain, negated) =
            (QuantizedMatrix::quantize(x.view(), encoding, granularity), QuantizedMatrix::quantize(x.mapv(|x| -x).view(), encoding, granularity));
        prop_assert_eq!(plain.scales(), negated.scales());
        if encoding == Encoding::Absmax {
            prop_assert_eq!(plain.codes().mapv(|code| -code), negated.codes());
        }
        for ((row, column), _) in x.indexed_iter() {
            let step = f64::from(plain.parameters(row, column).0) / 127.0;
            let difference = (plain.value(row, column) + negated.value(row, column)).abs();
            prop_assert!(difference <= step * 1.000_001, "{} steps", difference / step);
        }
    }

    /// Permuting rows and output channels permutes the result.
    #[test]
    fn permuted_rows_give_permuted_rows((x, w) in operands(), config in config(), seed in any::<u64>()) {
        let (rows, outputs) = (permutation(x.nrows(), seed), permutation(w.nrows(), !seed));
        let plain = layer(&x, &w, &config);
        let permuted = layer(&x.select(Axis(0), &rows), &w.select(Axis(0), &outputs), &config);
        prop_assert_eq!(plain.outliers.columns(), permuted.outliers.columns());
        prop_assert_eq!(plain.accumulator.select(Axis(0), &rows).select(Axis(1), &outputs), permuted.accumulator);
        prop_assert_eq!(plain.exact.select(Axis(0), &rows).select(Axis(1), &outputs), permuted.exact);
    }

    /// Without groups, permuting the inner dimension leaves the integers equal; outliers are summed in another order.
    #[test]
    fn permuted_inner_dimension_changes_nothing((x, w) in operands(), config in config(), seed in any::<u64>()) {
        let rows = |granularity| if granularity == Granularity::Group { Granularity::Row } else { granularity };
        let config = Config {
            input_granularity: rows(config.input_granularity),
            weight_granularity: rows(config.weight_granularity),
            ..config
        };
        let order = permutation(x.ncols(), seed);
        let plain = layer(&x, &w, &config);
        let permuted = layer(&x.select(Axis(1), &order), &w.select(Axis(1), &order), &config);
        prop_assert_eq!(plain.input.codes().select(Axis(1), &order), permuted.input.codes());
        prop_assert_eq!(plain.input.scales(), permuted.input.scales());
        prop_assert_eq!(&plain.products, &permuted.products);
        prop_assert_eq!(&plain.int8_part, &permuted.int8_part);
        for (at, plain_y) in plain.exact.indexed_iter() {
            let slack = 80.0 * f64::EPSILON * (plain.outlier_magnitude[at] + plain.int8_part[at].abs());
            prop_assert!((plain_y - permuted.exact[at]).abs() <= slack);
        }
    }

    /// With row granularity on both sides, `x·Wᵀ` and `W·xᵀ` are each other's transpose.
    #[test]
    fn operands_can_change_places((x, w) in operands(), encoding in encoding()) {
        let config = Config { input_encoding: encoding, weight_encoding: encoding, ..Scheme::AbsmaxVectorWise.config() };
        let (product, swapped) = (layer(&x, &w, &config), layer(&w, &x, &config));
        prop_assert_eq!(product.accumulator, swapped.accumulator.t());
        prop_assert_eq!(product.exact, swapped.exact.t());
    }

    /// `acc − z_w·Σq_a − z_a·Σq_w + K·z_a·z_w` is the sum it stands for.
    #[test]
    fn zero_point_correction_is_the_unrolled_sum((x, w) in operands(), row in any::<bool>()) {
        let granularity = if row { Granularity::Row } else { Granularity::Tensor };
        let [a, b] = [&x, &w].map(|matrix| QuantizedMatrix::quantize(matrix.view(), Encoding::Zeropoint, granularity));
        let accumulator = int8_product(a.codes(), b.codes()).expect("equal K");
        let corrected = correct_zero_points(accumulator.view(), &a, &b).expect("matching shapes");
        let steps = |matrix: &QuantizedMatrix, row: usize, k: usize| {
            i64::from(matrix.codes()[[row, k]]) - i64::from(matrix.zero_points()[row])
        };
        for ((m, n), corrected) in corrected.indexed_iter() {
            prop_assert_eq!(*corrected, (0..x.ncols()).map(|k| steps(&a, m, k) * steps(&b, n, k)).sum::<i64>());
        }
    }

    /// The products of the groups add up to the whole, zero points and all, whichever side has the groups.
    #[test]
    fn products_of_groups_add_up(
        (x, w) in operands(), of_x in granularity(), of_w in granularity(), encoding in encoding(),
    ) {
        let (a, b) = (QuantizedMatrix::quantize(x.view(), encoding, of_x), QuantizedMatrix::quantize(w.view(), Encoding::Zeropoint, of_w));
        let products = group_products(&a, &b).expect("equal K");
        prop_assert_eq!(products.dim().0, a.groups().max(b.groups()));
        let steps = |matrix: &QuantizedMatrix, row: usize, k: usize| {
            i64::from(matrix.codes()[[row, k]]) - i64::from(matrix.parameters(row, k).1)
        };
        for ((m, n), sum) in products.sum_axis(Axis(0)).indexed_iter() {
            prop_assert_eq!(*sum, (0..x.ncols()).map(|k| steps(&a, m, k) * steps(&b, n, k)).sum::<i64>());
        }
        // The sum of products rounds each of them, so terms that cancel inside a group leave an error of their size.
        for ((m, n), sum) in dequantize_groups(products.view(), &a, &b).0.indexed_iter() {
            let terms: Vec<f64> = (0..x.ncols()).map(|k| a.value(m, k) * b.value(n, k)).collect();
            let (values, magnitude) = (terms.iter().sum::<f64>(), terms.iter().map(|term| term.abs()).sum::<f64>());
            prop_assert!((sum - values).abs() <= 1e-12 * magnitude, "{} {}", sum, values);
        }
    }

    /// A group is quantised as a row of its own would be.
    #[test]
    fn a_group_is_a_row_of_its_own(x in matrix(1..=4, 1..=100), encoding in encoding()) {
        let whole = QuantizedMatrix::quantize(x.view(), encoding, Granularity::Group);
        prop_assert_eq!(whole.groups(), x.ncols().div_ceil(GROUP));
        for (group, part) in x.axis_chunks_iter(Axis(1), GROUP).enumerate() {
            let alone = QuantizedMatrix::quantize(part, encoding, Granularity::Group);
            for ((row, column), code) in alone.codes().indexed_iter() {
                let at = group * GROUP + column;
                prop_assert_eq!(*code, whole.codes()[[row, at]]);
                prop_assert_eq!(alone.parameters(row, column), whole.parameters(row, at));
            }
        }
    }

    /// Outliers have the code of 0: the int8 product is that of `x` with zeros in their place.
    #[test]
    fn outliers_contribute_nothing_to_the_int8_product((x, w) in operands(), config in config()) {
        let config = Config { row_maximum: RowMaximum::Paper, ..config };
        let output = layer(&x, &w, &config);
        let rest = Array2::from_shape_fn(x.dim(), |at| {
            if output.outliers.is_outlier(at.0, at.1) { 0.0 } else { x[at] }
        });
        let plain = layer(&rest, &w, &Config { rule: OutlierRule::None, ..config });
        prop_assert_eq!(output.input, plain.input);
        prop_assert_eq!(output.int8_part, plain.int8_part);
    }

    #[test]
    fn values_are_batch_invariant((x, w) in operands(), config in config()) {
        let config = Config {
            outlier_granularity: OutlierGranularity::Value, input_granularity: Granularity::Row, ..config
        };
        let batch = layer(&x, &w, &config);
        for row in 0..x.nrows() {
            let alone = layer(&x.slice(s![row..=row, ..]).to_owned(), &w, &config);
            prop_assert_eq!(alone.exact.row(0), batch.exact.row(row));
            let (alone, batch) = (alone.input.codes(), batch.input.codes());
            prop_assert_eq!(alone.row(0), batch.row(row));
        }
    }

    #[test]
    fn an_infinite_threshold_is_no_decomposition((x, w) in operands(), encoding in encoding()) {
        let plain = Config { input_encoding: encoding, weight_encoding: encoding, ..Scheme::AbsmaxVectorWise.config() };
        let decomposed = Config { rule: OutlierRule::Absolute(f32::INFINITY), ..plain };
        let (plain, decomposed) = (layer(&x, &w, &plain), layer(&x, &w, &decomposed));
        prop_assert!(decomposed.outliers.columns().is_empty());
        prop_assert_eq!(plain.input, decomposed.input);
        prop_assert_eq!(plain.exact, decomposed.exact);
    }

    /// The two readings differ only where an outlier column holds values that are no outliers themselves.
    #[test]
    fn readings_of_the_row_maximum_agree_without_mixed_columns(x in matrix(1..=6, 1..=40), config in config()) {
        let outliers = find_outliers(x.view(), &config.rule, config.outlier_granularity);
        let [paper, bitsandbytes] = [RowMaximum::Paper, RowMaximum::Bitsandbytes]
            .map(|reading| QuantizedMatrix::quantize_without(x.view(), &outliers, config.input_encoding, config.input_granularity, reading));
        let mixed = x.indexed_iter().any(|((row, column), _)| {
            outliers.is_outlier(row, column) && !outliers.reaches_threshold(row, column)
        });
        if !mixed {
            prop_assert_eq!(&paper, &bitsandbytes);
        }
        // Never a smaller range: bitsandbytes counts more values.
        prop_assert!(paper.scales().iter().zip(bitsandbytes.scales()).all(|(paper, other)| paper <= other));
    }

    /// With every value an outlier and every column exact, nothing is quantised.
    #[test]
    fn nothing_but_exact_outliers_is_the_float_product((x, w) in operands(), config in config()) {
        let config = Config { rule: OutlierRule::Absolute(f32::from_bits(1)), ..config };
        let weight = Weight::quantize(w.view(), &config).with_all_columns_exact(w.view()).expect("its own W");
        let output = linear(x.view(), &weight, None, &config).expect("a valid layer");
        let (exact, magnitude) = exact_product(x.view(), w.view());
        for (at, exact) in exact.indexed_iter() {
            prop_assert!((output.exact[at] - exact).abs() <= 80.0 * f64::EPSILON * magnitude[at]);
        }
    }

    /// The method's own error: at most half a step on each side of every product, outliers exact.
    #[test]
    fn quantisation_error_is_bounded_by_the_steps((x, w) in operands(), config in config()) {
        let weight = Weight::quantize(w.view(), &config).with_all_columns_exact(w.view()).expect("its own W");
        let output = linear(x.view(), &weight, None, &config).expect("a valid layer");
        let (exact, _) = exact_product(x.view(), w.view());
        let half_step =
            |matrix: &QuantizedMatrix, row, column| 0.501 * f64::from(matrix.parameters(row, column).0) / 127.0;
        for ((m, n), exact) in exact.indexed_iter() {
            let bound: f64 = (0..x.ncols())
                .filter(|k| !output.outliers.is_outlier(m, *k))
                .map(|k| {
                    let (dx, dw) = (half_step(&output.input, m, k), half_step(weight.quantized(), n, k));
                    dx * f64::from(w[[n, k]].abs()) + dw * f64::from(x[[m, k]].abs()) + dx * dw
                })
                .sum();
            prop_assert!((output.exact[[m, n]] - exact).abs() <= bound + 1e-9, "at [{}, {}]", m, n);
        }
    }

    /// A NaN makes exactly its own row NaN, in every scheme with one scale a row of x.
    #[test]
    fn a_nan_stays_in_its_row((x, w) in operands(), config in config(), at in any::<prop::sample::Index>()) {
        let config = Config { input_granularity: Granularity::Row, ..config };
        let at = at.index(x.len());
        let (row, column) = (at / x.ncols(), at % x.ncols());
        let mut poisoned = x.clone();
        poisoned[[row, column]] = f32::NAN;
        let output = layer(&poisoned, &w, &config);
        for ((m, n), y) in output.y.indexed_iter() {
            prop_assert_eq!(y.is_nan(), m == row, "y[{}, {}] = {}", m, n, y);
        }
        let tensor = layer(&poisoned, &w, &Config { input_granularity: Granularity::Tensor, ..config });
        prop_assert!(tensor.y.row(row).iter().all(|y| y.is_nan()), "one scale for x is no excuse");
    }

    /// So does a NaN in W, with its output.
    #[test]
    fn a_nan_weight_stays_in_its_output((x, w) in operands(), config in config(), at in any::<prop::sample::Index>()) {
        let config = Config { weight_granularity: Granularity::Row, ..config };
        let at = at.index(w.len());
        let output = at / w.ncols();
        let mut poisoned = w.clone();
        poisoned[[output, at % w.ncols()]] = f32::NAN;
        for ((_, n), y) in layer(&x, &poisoned, &config).y.indexed_iter() {
            prop_assert_eq!(y.is_nan(), n == output);
        }
    }

    /// ±inf is an outlier of every rule with a threshold and flows through the 16-bit product: its row is ±inf as the
    /// sign of the weight says, or NaN against a weight of 0, the other rows are finite. Without a rule: NaN.
    #[test]
    fn infinity_flows_through_the_outliers(
        (x, w) in operands(), config in config(), at in any::<prop::sample::Index>(), negative in any::<bool>(),
    ) {
        let config = Config { input_granularity: Granularity::Row, ..config };
        let at = at.index(x.len());
        let (row, column) = (at / x.ncols(), at % x.ncols());
        let infinity = if negative { f32::NEG_INFINITY } else { f32::INFINITY };
        let mut poisoned = x.clone();
        poisoned[[row, column]] = infinity;
        let weight = Weight::quantize(w.view(), &config).with_all_columns_exact(w.view()).expect("its own W");
        let output = linear(poisoned.view(), &weight, None, &config).expect("a valid layer");
        for ((m, n), y) in output.y.indexed_iter() {
            let expected = infinity * w[[n, column]];
            if m != row {
                prop_assert!(y.is_finite(), "y[{}, {}] = {}", m, n, y);
            } else if config.rule == OutlierRule::None || expected.is_nan() {
                prop_assert!(y.is_nan(), "y[{}, {}] = {}", m, n, y);
            } else {
                prop_assert_eq!(*y, expected);
            }
        }
    }

    /// Stacking two batches is computing them apart when no rule looks across rows.
    #[test]
    fn batches_can_be_stacked((x, w) in operands(), encoding in encoding()) {
        let config = Config { input_encoding: encoding, weight_encoding: encoding, ..Scheme::AbsmaxVectorWise.config() };
        let twice = concatenate(Axis(0), &[x.view(), x.view()]).expect("equal widths");
        let (once, twice) = (layer(&x, &w, &config), layer(&twice, &w, &config));
        prop_assert_eq!(&once.exact, &twice.exact.slice(s![..x.nrows(), ..]));
        prop_assert_eq!(&once.exact, &twice.exact.slice(s![x.nrows().., ..]));
    }
}

/// Unlike `Value`, `Column` depends on the batch: one row's outlier makes the column an outlier of all.
#[test]
fn columns_are_not_batch_invariant() {
    let config = Scheme::LlmInt8Absmax.config();
    let w = Array2::from_shape_fn((1, 3), |(_, k)| [0.3_f32, -0.7, 0.2][k]);
    let x = Array2::from_shape_fn((2, 3), |(m, k)| [[1.0_f32, 2.3, 0.4], [9.0, 1.0, 1.0]][m][k]);
    let (batch, alone) = (layer(&x, &w, &config), layer(&x.slice(s![..1, ..]).to_owned(), &w, &config));
    assert_ne!(batch.exact.row(0), alone.exact.row(0));
}

/// The example in the documentation of [`RowMaximum`], as bitsandbytes computes it.
#[test]
fn the_two_readings_of_the_row_maximum() {
    let x = Array2::from_shape_fn((2, 2), |(m, k)| [[7.0_f32, 1.0], [5.0, 1.0]][m][k]);
    let config = Scheme::LlmInt8Absmax.config();
    let outliers = find_outliers(x.view(), &config.rule, config.outlier_granularity);
    let quantized = |reading| {
        QuantizedMatrix::quantize_without(x.view(), &outliers, Encoding::Absmax, Granularity::Row, reading)
    };
    let (paper, bitsandbytes) = (quantized(RowMaximum::Paper), quantized(RowMaximum::Bitsandbytes));
    assert_eq!(paper.scales().to_vec(), [1.0, 1.0]);
    assert_eq!(paper.codes().iter().copied().collect::<Vec<_>>(), [0, 127, 0, 127]);
    assert_eq!(bitsandbytes.scales().to_vec(), [1.0, 5.0]);
    assert_eq!(bitsandbytes.codes().iter().copied().collect::<Vec<_>>(), [0, 127, 0, 25]);
}

#[test]
fn sizes_of_zero() {
    for scheme in Scheme::ALL {
        for (m, n, k) in [(0, 3, 4), (2, 0, 4), (2, 3, 0), (0, 0, 0)] {
            let (x, w) = (Array2::from_elem((m, k), 1.5_f32), Array2::from_elem((n, k), 0.5_f32));
            let bias = Array1::from_elem(n, 0.25_f32);
            let weight = Weight::quantize(w.view(), &scheme.config());
            let output =
                linear(x.view(), &weight, Some(bias.view()), &scheme.config()).expect("a valid layer");
            assert_eq!(output.y.dim(), (m, n), "{scheme}");
            assert!(k > 0 || output.y.iter().all(|y| *y == 0.25), "{scheme}: only the bias is left");
        }
    }
}

/// A row of zeros, of either sign, gives the bias; its scale is +0.
#[test]
fn a_row_of_zeros_is_the_bias() {
    for scheme in Scheme::ALL {
        let x = Array2::from_shape_fn((2, 3), |(m, _)| if m == 0 { 0.0_f32 } else { -0.0 });
        let w = Array2::from_elem((2, 3), 0.5_f32);
        let bias = Array1::from_vec(vec![0.25_f32, -1.0]);
        let weight = Weight::quantize(w.view(), &scheme.config());
        let output = linear(x.view(), &weight, Some(bias.view()), &scheme.config()).expect("a valid layer");
        assert!(output.input.scales().iter().all(|scale| scale.to_bits() == 0), "{scheme}");
        assert!(output.y.rows().into_iter().all(|row| row == bias), "{scheme}");
    }
}

/// The longest K with all codes ±127 fills the accumulator to within one product of its limit.
#[test]
fn the_largest_accumulator_does_not_overflow() {
    let inner = int8_core::product::MAX_INNER;
    let (plus, minus) = (Array2::from_elem((1, inner), 127_i8), Array2::from_elem((1, inner), -127_i8));
    let largest = int8_product(plus.view(), plus.view()).expect("K at the limit")[[0, 0]];
    let smallest = int8_product(plus.view(), minus.view()).expect("K at the limit")[[0, 0]];
    assert_eq!(smallest, -largest);
    assert!(i32::MAX - largest < 127 * 127);
}
