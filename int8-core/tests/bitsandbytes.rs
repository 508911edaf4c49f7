//! Against bitsandbytes 0.50.2 on a CPU: four layers, thresholds 0 and 6, recorded in `data/bnb_golden.safetensors`.
//!
//! Integers and scales are compared exactly (codes: one unit, rarely, because its rounding is torch's), floats with
//! bounds derived from what bitsandbytes computes, which differs from the reference in these roundings:
//!
//! - its CPU constant for 1/127² is 6.200124e-05 by a typo, 1.8e-5 too large;
//! - `scaled_mm` rounds the int8 part plus bias to f16;
//! - outlier weights are dequantised and rounded to f16, their product is added, and the sum is rounded to f16 again.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "says what it measured")]

use half::f16;
use int8_core::product::int8_product;
use int8_core::{
    Config, Element, LinearOutput, QuantizedMatrix, RowMaximum, Scheme, Weight, find_outliers,
    input_gradient, linear,
};
use ndarray::{Array1, Array2, ArrayView2};
use safetensors::{Dtype, SafeTensors};

const GOLDEN: &[u8] = include_bytes!("data/bnb_golden.safetensors");
const CASES: [&str; 8] = ["0.t0", "0.t6", "1.t0", "1.t6", "2.t0", "2.t6", "3.t0", "3.t6"];

const U16: f64 = <f16 as Element>::UNIT_ROUNDOFF;
const U32: f64 = <f32 as Element>::UNIT_ROUNDOFF;
/// Half of the smallest subnormal of f16: the rounding error below the normal range.
const ETA16: f64 = <f16 as Element>::MIN_SUBNORMAL / 2.0;
/// Relative error of bitsandbytes' factor 1/127².
const TYPO: f64 = 6.200_124e-5 * 127.0 * 127.0 - 1.0;

/// Everything recorded for one layer and threshold.
struct Golden {
    name: &'static str,
    config: Config,
    x: Array2<f16>,
    w: Array2<f16>,
    bias: Array1<f32>,
    x_codes: Array2<i8>,
    w_codes: Array2<i8>,
    x_scales: Array1<f32>,
    w_scales: Array1<f32>,
    outlier_columns: Vec<usize>,
    accumulator: Array2<i32>,
    scaled_mm: Array2<f16>,
    matmul: Array2<f16>,
    gradient_of_ones: Array2<f16>,
}

impl Golden {
    fn all() -> Vec<Self> {
        let file = SafeTensors::deserialize(GOLDEN).expect("a safetensors file");
        CASES.into_iter().map(|name| Self::read(&file, name)).collect()
    }

    fn read(file: &SafeTensors, name: &'static str) -> Self {
        let decomposed = name.ends_with("t6");
        let scheme = if decomposed { Scheme::LlmInt8Absmax } else { Scheme::AbsmaxVectorWise };
        let key = |tensor: &str| format!("{name}.{tensor}");
        let columns = |key: String| -> Vec<usize> {
            let columns = vector(file, &key, Dtype::I64, i64::from_le_bytes);
            columns.iter().map(|column| usize::try_from(*column).expect("an index")).collect()
        };
        Self {
            name,
            config: Config { row_maximum: RowMaximum::Bitsandbytes, ..scheme.config() },
            x: matrix(file, &key("A"), Dtype::F16, f16::from_le_bytes),
            w: matrix(file, &key("W"), Dtype::F16, f16::from_le_bytes),
            bias: vector(file, &key("bias"), Dtype::F16, f16::from_le_bytes).mapv(f16::to_f32),
            x_codes: matrix(file, &key("CA"), Dtype::I8, i8::from_le_bytes),
            w_codes: matrix(file, &key("CB"), Dtype::I8, i8::from_le_bytes),
            x_scales: vector(file, &key("SCA"), Dtype::F32, f32::from_le_bytes),
            w_scales: vector(file, &key("SCB"), Dtype::F32, f32::from_le_bytes),
            outlier_columns: if decomposed { columns(key("outlier_cols")) } else { Vec::new() },
            accumulator: matrix(file, &key("acc_i32"), Dtype::I32, i32::from_le_bytes),
            scaled_mm: matrix(file, &key("scaled_mm_f16"), Dtype::F16, f16::from_le_bytes),
            matmul: matrix(file, &key("matmul_f16"), Dtype::F16, f16::from_le_bytes),
            gradient_of_ones: matrix(file, &key("grad_A_ones"), Dtype::F16, f16::from_le_bytes),
        }
    }

    /// The int8 weight that bitsandbytes made, as one would load it from its checkpoint.
    fn weight(&self) -> QuantizedMatrix {
        QuantizedMatrix::from_parts(self.w_codes.clone(), self.w_scales.clone(), None)
            .expect("bitsandbytes' codes and scales")
    }

    fn linear(&self) -> LinearOutput<f16> {
        let weight = Weight::from_quantized(self.weight());
        linear(self.x.view(), &weight, Some(self.bias.view()), &self.config).expect("a valid layer")
    }
}

fn values<T, const BYTES: usize>(
    file: &SafeTensors,
    key: &str,
    dtype: Dtype,
    from_le_bytes: fn([u8; BYTES]) -> T,
) -> (Vec<usize>, Vec<T>) {
    let tensor = file.tensor(key).unwrap_or_else(|error| panic!("{key}: {error}"));
    assert_eq!(tensor.dtype(), dtype, "{key}");
    let chunks = tensor.data().chunks_exact(BYTES);
    let values =
        chunks.map(|bytes| from_le_bytes(bytes.try_into().expect("chunks of this length"))).collect();
    (tensor.shape().to_vec(), values)
}

fn matrix<T, const BYTES: usize>(
    file: &SafeTensors,
    key: &str,
    dtype: Dtype,
    from_le_bytes: fn([u8; BYTES]) -> T,
) -> Array2<T> {
    let (shape, values) = values(file, key, dtype, from_le_bytes);
    let [rows, columns] = shape[..] else { panic!("{key}: not a matrix: {shape:?}") };
    Array2::from_shape_vec((rows, columns), values).expect("as many values as the shape says")
}

fn vector<T, const BYTES: usize>(
    file: &SafeTensors,
    key: &str,
    dtype: Dtype,
    from_le_bytes: fn([u8; BYTES]) -> T,
) -> Array1<T> {
    Array1::from_vec(values(file, key, dtype, from_le_bytes).1)
}

/// Codes may differ by one unit in fewer than one of 500 places.
fn assert_codes_agree(what: &str, ours: ArrayView2<i8>, theirs: &Array2<i8>) {
    assert_eq!(ours.dim(), theirs.dim(), "{what}");
    let mut differing = 0;
    for ((at, ours), theirs) in ours.indexed_iter().zip(theirs) {
        assert!(ours.abs_diff(*theirs) <= 1, "{what} at {at:?}: {ours}, bitsandbytes has {theirs}");
        differing += usize::from(ours != theirs);
    }
    assert!(differing * 500 < theirs.len(), "{what}: {differing} of {} codes differ", theirs.len());
}

#[test]
fn every_recorded_tensor_is_looked_at() {
    let file = SafeTensors::deserialize(GOLDEN).expect("a safetensors file");
    let read_per_case = |name: &&str| if name.ends_with("t6") { 12 } else { 11 };
    assert_eq!(file.names().len(), CASES.iter().map(read_per_case).sum::<usize>());
}

#[test]
fn weights_become_the_same_codes_and_scales() {
    for golden in Golden::all() {
        let ours = Weight::quantize(golden.w.view(), &golden.config);
        assert_codes_agree(&format!("{} W", golden.name), ours.quantized().codes(), &golden.w_codes);
        assert_eq!(ours.quantized().scales(), golden.w_scales, "{} SCB", golden.name);
    }
}

#[test]
fn inputs_become_the_same_codes_scales_and_outlier_columns() {
    for golden in Golden::all() {
        let ours = golden.linear();
        assert_codes_agree(&format!("{} x", golden.name), ours.input.codes(), &golden.x_codes);
        assert_eq!(ours.input.scales(), golden.x_scales, "{} SCA", golden.name);
        assert_eq!(ours.outliers.columns(), golden.outlier_columns, "{} outlier columns", golden.name);
        let found = find_outliers(golden.x.view(), &golden.config.rule, golden.config.outlier_granularity);
        assert_eq!(found, ours.outliers, "{}", golden.name);
    }
}

#[test]
fn the_integer_product_is_bit_exact() {
    for golden in Golden::all() {
        let ours = int8_product(golden.x_codes.view(), golden.w_codes.view()).expect("bitsandbytes' codes");
        assert_eq!(ours, golden.accumulator, "{}", golden.name);
    }
}

/// Largest deviation as a share of its bound over all goldens; fails above 1.
fn worst_share(
    what: &str,
    theirs: impl Fn(&Golden) -> &Array2<f16>,
    expected_and_bound: impl Fn(&Golden) -> (Array2<f64>, Array2<f64>),
) -> f64 {
    let mut worst = 0.0_f64;
    for golden in Golden::all() {
        let (expected, bound) = expected_and_bound(&golden);
        assert_eq!(theirs(&golden).dim(), expected.dim(), "{what} {}", golden.name);
        for (at, theirs) in theirs(&golden).indexed_iter() {
            let error = (f64::from(theirs.to_f32()) - expected[at]).abs();
            let share = error / bound[at];
            assert!(
                share <= 1.0,
                "{what} {} at {at:?}: bitsandbytes {theirs}, ours {}, bound {}",
                golden.name,
                expected[at],
                bound[at]
            );
            worst = worst.max(share);
        }
    }
    println!("{what}: worst deviation {worst:.3} of its bound");
    worst
}

/// `int8 part + bias` before it is rounded to f16, and how far bitsandbytes' f32 arithmetic is from it: the constant's
/// typo, four products and the conversion of the accumulator, one addition.
fn scaled_mm(golden: &Golden, ours: &LinearOutput<f16>) -> (Array2<f64>, Array2<f64>) {
    let sum = Array2::from_shape_fn(ours.exact.dim(), |at| ours.int8_part[at] + f64::from(golden.bias[at.1]));
    let error = Array2::from_shape_fn(ours.exact.dim(), |at| {
        (TYPO + 5.0 * U32) * ours.int8_part[at].abs() + U32 * (sum[at].abs() + ours.int8_part[at].abs())
    });
    (sum, error)
}

#[test]
fn the_scaled_product_is_within_the_rounding_of_f16() {
    let worst = worst_share(
        "scaled_mm",
        |golden| &golden.scaled_mm,
        |golden| {
            let (sum, error) = scaled_mm(golden, &golden.linear());
            let bound =
                Array2::from_shape_fn(sum.dim(), |at| error[at] + U16 * (sum[at].abs() + error[at]) + ETA16);
            (sum, bound)
        },
    );
    assert!(worst > 0.5, "the bound of scaled_mm is loose: {worst}");
}

#[test]
fn the_whole_layer_is_within_the_rounding_of_f16() {
    let worst = worst_share(
        "matmul",
        |golden| &golden.matmul,
        |golden| {
            let ours = golden.linear();
            let (sum, error) = scaled_mm(golden, &ours);
            // Without outlier columns nothing is added to scaled_mm, so it is rounded once.
            let decomposed = !golden.outlier_columns.is_empty();
            let bound = Array2::from_shape_fn(sum.dim(), |at| {
                let rounded = error[at] + U16 * (sum[at].abs() + error[at]) + ETA16;
                if !decomposed {
                    return rounded;
                }
                let weights = U16 * ours.outlier_magnitude[at] + ETA16 * ours.outlier_input[at.0];
                // Two products to dequantise, two columns at most: three roundings of the sum.
                let arithmetic = 5.0 * U32 * ours.outlier_magnitude[at];
                let before = rounded + weights + arithmetic;
                before + U16 * (ours.exact[at].abs() + before) + ETA16
            });
            (ours.exact, bound)
        },
    );
    assert!(worst > 0.5, "the bound of matmul is loose: {worst}");
}

/// `dX = dY · W` with dY = 1: bitsandbytes rounds the dequantised weight to f16 and the sum over N once more.
#[test]
fn the_gradient_is_within_the_rounding_of_f16() {
    let worst = worst_share(
        "gradient",
        |golden| &golden.gradient_of_ones,
        |golden| {
            let weight = golden.weight();
            let ones = Array2::from_elem((golden.x.nrows(), golden.w.nrows()), 1.0_f32);
            let ours: Array2<f32> = input_gradient(ones.view(), &weight).expect("shapes of the layer");
            let outputs = f64::from(u32::try_from(golden.w.nrows()).expect("a small layer"));
            let bound = Array2::from_shape_fn(ours.dim(), |(m, k)| {
                let magnitude: f64 = (0..golden.w.nrows()).map(|n| weight.value(n, k).abs()).sum();
                // Weight: scale/127 and its product in f32, then f16. Sum: N additions in f32; ours is rounded once.
                let before = (U16 + (outputs + 3.0) * U32) * magnitude + ETA16 * outputs;
                let value = f64::from(ours[[m, k]].abs());
                before + U16 * (value + before) + ETA16 + U32 * value
            });
            (ours.mapv(f64::from), bound)
        },
    );
    assert!(worst > 0.05, "the bound of the gradient is loose: {worst}");
}
