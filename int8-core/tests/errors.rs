//! Every caller's mistake is an error that names the operands, never a panic.

use int8_core::product::{MAX_INNER, correct_zero_points, dequantize, int8_product};
use int8_core::{
    Config, Encoding, Error, Granularity, OutlierRule, QuantizedMatrix, RowStatistic, Scheme, Weight,
    input_gradient, linear,
};
use ndarray::{Array1, Array2};

fn ones(rows: usize, columns: usize) -> Array2<f32> {
    Array2::ones((rows, columns))
}

#[test]
fn shapes_of_a_layer() {
    let config = Scheme::LlmInt8Absmax.config();
    let weight = Weight::quantize(ones(3, 4).view(), &config);
    let error = linear(ones(2, 5).view(), &weight, None, &config).expect_err("K differs");
    assert_eq!(
        error.to_string(),
        "linear: inner dimensions differ: x is [2, 5], W is [3, 4] (W is stored [N, K])"
    );
    let bias = Array1::zeros(4);
    let error =
        linear(ones(2, 4).view(), &weight, Some(bias.view()), &config).expect_err("the bias is too long");
    assert_eq!(error.to_string(), "bias: expected 3 elements, found 4");
    let error = input_gradient(ones(2, 4).view(), weight.quantized()).expect_err("dY is [2, 4], N is 3");
    assert!(matches!(error, Error::InnerDimension { x_inner: 4, .. }), "{error}");
}

#[test]
fn thresholds() {
    let x = ones(1, 2);
    for value in [0.0, -1.0, f32::NAN, f32::NEG_INFINITY] {
        let relative = OutlierRule::RelativeToRow { tau: value, statistic: RowStatistic::MedianAbs };
        for (rule, name) in [(OutlierRule::Absolute(value), "threshold"), (relative, "tau")] {
            let config = Config { rule, ..Scheme::LlmInt8Absmax.config() };
            let error = linear(x.view(), &Weight::quantize(x.view(), &config), None, &config)
                .expect_err("no outlier threshold");
            assert!(matches!(error, Error::Threshold { parameter, .. } if parameter == name), "{error}");
        }
    }
}

#[test]
fn exact_columns() {
    let w = ones(3, 4);
    let weight = Weight::quantize(w.view(), &Config::default());
    let error = weight.clone().with_exact_columns(w.view(), &[1, 4]).expect_err("column 4 of 4");
    assert_eq!(error, Error::Column { column: 4, columns: 4 });
    let error = weight.with_exact_columns(ones(4, 3).view(), &[]).expect_err("another W");
    assert_eq!(error, Error::Shape { what: "W", expected: (3, 4), found: (4, 3) });
}

#[test]
fn parts_of_a_file() {
    let codes = Array2::from_elem((2, 3), 5_i8);
    let scales = Array1::ones(2);
    let parts = |codes: &Array2<i8>, scales: &Array1<f32>, zero_points: Option<Vec<i32>>| {
        QuantizedMatrix::from_parts(codes.clone(), scales.clone(), zero_points.map(Array1::from_vec))
    };
    assert!(parts(&codes, &scales, Some(vec![127, -127])).is_ok());
    let error = parts(&codes, &Array1::ones(3), None).expect_err("three scales for two rows");
    assert_eq!(error, Error::Length { what: "scales", expected: 2, found: 3 });
    let error = parts(&codes, &scales, Some(vec![0])).expect_err("one zero point for two rows");
    assert_eq!(error, Error::Length { what: "zero points", expected: 2, found: 1 });
    for value in [128, -128, i32::MIN, i32::MAX] {
        let error = parts(&codes, &scales, Some(vec![0, value])).expect_err("no zero point of this method");
        assert_eq!(error, Error::ZeroPointOutOfRange { row: 1, value });
    }
    let mut minus_128 = codes;
    minus_128[[1, 2]] = i8::MIN;
    let error = parts(&minus_128, &scales, None).expect_err("-128");
    assert_eq!(error, Error::CodeOutOfRange { what: "codes", row: 1, column: 2 });
}

#[test]
fn operands_of_a_product() {
    let (a, w) = (Array2::from_elem((2, 3), 1_i8), Array2::from_elem((4, 5), 1_i8));
    let error = int8_product(a.view(), w.view()).expect_err("K differs");
    assert!(matches!(error, Error::InnerDimension { x_inner: 3, w_inner: 5, .. }), "{error}");
    let minus_128 = Array2::from_elem((1, 3), i8::MIN);
    for (left, right, what) in [(&a, &minus_128, "W"), (&minus_128, &a, "x")] {
        let error = int8_product(left.view(), right.view()).expect_err("-128");
        assert_eq!(error, Error::CodeOutOfRange { what, row: 0, column: 0 });
    }
    let long = Array2::zeros((1, MAX_INNER + 1));
    let error = int8_product(long.view(), long.view()).expect_err("K too long");
    assert_eq!(error, Error::AccumulatorOverflow { inner: MAX_INNER + 1, max: MAX_INNER });
}

#[test]
fn shapes_after_the_product() {
    let [a, w] = [ones(2, 3), ones(4, 3)]
        .map(|m| QuantizedMatrix::quantize(m.view(), Encoding::Absmax, Granularity::Row));
    let wrong = Array2::zeros((4, 2));
    let error = correct_zero_points(wrong.view(), &a, &w).expect_err("a transposed accumulator");
    assert_eq!(error, Error::Shape { what: "accumulator", expected: (2, 4), found: (4, 2) });
    let wrong = Array2::zeros((4, 2));
    let error = dequantize(wrong.view(), a.scales(), w.scales()).expect_err("a transposed accumulator");
    assert_eq!(error, Error::Shape { what: "accumulator", expected: (2, 4), found: (4, 2) });
}

#[test]
fn names_of_schemes() {
    for scheme in Scheme::ALL {
        assert_eq!(scheme.name().parse::<Scheme>().as_ref(), Ok(&scheme));
        assert_eq!(scheme.to_string(), scheme.name());
    }
    let error = "int4".parse::<Scheme>().expect_err("no scheme of the paper");
    let message = error.to_string();
    assert!(message.starts_with("unknown scheme `int4`; known: absmax, zeropoint,"), "{message}");
}
