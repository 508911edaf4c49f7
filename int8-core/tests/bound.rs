//! The derived bound against layers computed in f32 as backends compute them: none may violate it, and it may not be
//! so wide that nothing could. A wrong code, scale or outlier must be found.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "says what it measured")]

use half::{bf16, f16};
use int8_core::bound::{Arithmetic, compare};
use int8_core::corpus::{Case, Random, cases, group_cases, random, random_groups};
use int8_core::{Element, LinearOutput, QuantizedMatrix, Scheme, Weight, linear};
use ndarray::{Array2, ArrayView1};

const RANDOM_CASES: u64 = 1_000;

/// The choices that backends make differently.
#[derive(Debug, Clone, Copy)]
struct Backend {
    /// `acc·(s_x·s_w·127⁻²)` instead of `acc·((s_x/127)·(s_w/127))`.
    one_factor: bool,
    /// Outliers summed from the last column to the first.
    backwards: bool,
    /// Dequantised outlier weights rounded to the 16-bit type first, as tensor cores need it.
    narrow_weights: bool,
}

impl Backend {
    const ALL: [Self; 4] = [
        Self { one_factor: false, backwards: false, narrow_weights: false },
        Self { one_factor: true, backwards: true, narrow_weights: false },
        Self { one_factor: false, backwards: true, narrow_weights: true },
        Self { one_factor: true, backwards: false, narrow_weights: true },
    ];

    fn arithmetic<T: Element>(self) -> Arithmetic {
        if self.narrow_weights { Arithmetic::tensor_core::<T>() } else { Arithmetic::F32 }
    }

    /// The layer from the reference's integers on, everything in f32.
    fn linear<T: Element>(
        self,
        x: &Array2<T>,
        weight: &Weight<T>,
        bias: Option<ArrayView1<f32>>,
        reference: &LinearOutput<T>,
    ) -> Array2<T> {
        let groups = reference.products.dim().0;
        let scale = |matrix: &QuantizedMatrix, row: usize, group: usize| {
            matrix.scales()[row * matrix.groups() + if matrix.groups() == 1 { 0 } else { group }]
        };
        let mut columns = reference.outliers.columns().to_vec();
        if self.backwards {
            columns.reverse();
        }
        Array2::from_shape_fn(reference.y.dim(), |(m, n)| {
            let term = |group| {
                let acc = to_f32(reference.products[[group, m, n]]);
                let (s_x, s_w) = (scale(&reference.input, m, group), scale(weight.quantized(), n, group));
                if self.one_factor {
                    acc * (s_x * s_w * (1.0 / (127.0 * 127.0)))
                } else {
                    acc * ((s_x / 127.0) * (s_w / 127.0))
                }
            };
            let int8_part: f32 =
                if self.backwards { (0..groups).rev().map(term).sum() } else { (0..groups).map(term).sum() };
            let outliers = columns.iter().filter(|k| reference.outliers.is_outlier(m, **k));
            let outlier_part =
                outliers.fold(0.0, |sum, k| sum + x[[m, *k]].to_f32() * self.outlier_weight(weight, n, *k));
            T::from_f32(int8_part + outlier_part + bias.map_or(0.0, |bias| bias[n]))
        })
    }

    fn outlier_weight<T: Element>(self, weight: &Weight<T>, n: usize, k: usize) -> f32 {
        if let Some(column) = weight.exact_column(k) {
            return column[n].to_f32();
        }
        let weight = weight.quantized();
        let (scale, zero_point) = weight.parameters(n, k);
        let steps = i16::from(weight.codes()[[n, k]])
            - i16::try_from(zero_point).expect("zero points lie in [-127, 127]");
        let value = f32::from(steps) * (scale / 127.0);
        if self.narrow_weights { T::from_f32(value).to_f32() } else { value }
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "the rounding of the accumulator to f32 is part of what is tested"
)]
fn to_f32(accumulator: i64) -> f32 {
    accumulator as f32
}

fn layer<T: Element>(case: &Case, exact_columns: bool) -> (Array2<T>, Weight<T>, LinearOutput<T>) {
    let (x, w) = (case.x.mapv(T::from_f32), case.w.mapv(T::from_f32));
    let mut weight = Weight::quantize(w.view(), &case.config);
    if exact_columns {
        weight = weight.with_all_columns_exact(w.view()).expect("its own W");
    }
    let bias = case.bias.as_ref().map(|bias| bias.view());
    let reference = linear(x.view(), &weight, bias, &case.config).expect("a valid case");
    (x, weight, reference)
}

/// The worst share of the bound over the corpus and `RANDOM_CASES` random cases, and as many in groups.
fn worst_share<T: Element>(backend: Backend) -> f64 {
    let mut worst = 0.0_f64;
    let named = cases().into_iter().chain(group_cases());
    let random_cases = (0..RANDOM_CASES).flat_map(|seed| [random(seed), random_groups(seed)]);
    for (index, case) in named.chain(random_cases).enumerate() {
        let (x, weight, reference) = layer::<T>(&case, index % 2 == 0);
        let bias = case.bias.as_ref().map(|bias| bias.view());
        let y = backend.linear(&x, &weight, bias, &reference);
        let found = compare(y.view(), &reference, bias, backend.arithmetic::<T>());
        assert!(found.within_bound(), "{} in {}, {backend:?}: {found:?}", case.name, T::NAME);
        worst = worst.max(found.worst_share);
    }
    println!("{} {backend:?}: worst {worst:.3} of the bound", T::NAME);
    worst
}

fn neither_violated_nor_loose<T: Element>(at_least: f64) {
    for backend in Backend::ALL {
        if T::NAME == "F32" && backend.narrow_weights {
            continue; // there is no narrower type to round to
        }
        let worst = worst_share::<T>(backend);
        assert!(worst >= at_least, "{} {backend:?}: the bound is loose, worst share {worst}", T::NAME);
    }
}

#[test]
fn f32_arithmetic_in_f32() {
    neither_violated_nor_loose::<f32>(0.1);
}

#[test]
fn f32_arithmetic_stored_as_f16() {
    neither_violated_nor_loose::<f16>(0.5);
}

#[test]
fn f32_arithmetic_stored_as_bf16() {
    neither_violated_nor_loose::<bf16>(0.5);
}

/// Weights below the normal range of f16 lose all relative accuracy when they are rounded to it: the bound has an absolute
/// term for that, and only for that.
#[test]
fn weights_that_underflow_in_16_bits_are_covered() {
    let case = Case {
        name: String::from("tiny weights"),
        x: Random::new(1).matrix(4, 24, 1.0).mapv(|x| x + 40.0),
        w: Random::new(2).matrix(6, 24, 1e-7),
        bias: None,
        config: Scheme::LlmInt8Absmax.config(),
    };
    // In f32, so that nothing but the weights is narrow; dequantised, as the exact ones are f32 here.
    let (x, weight, reference) = layer::<f32>(&case, false);
    assert_eq!(reference.outliers.columns().len(), 24);
    let y = Array2::from_shape_fn(reference.y.dim(), |(m, n)| {
        let narrow = |k: usize| {
            let value = weight.quantized().dequantize::<f16>()[[n, k]];
            x[[m, k]] * value.to_f32()
        };
        (0..24).map(narrow).sum::<f32>()
    });
    let arithmetic = Arithmetic::tensor_core::<f16>();
    assert!(compare(y.view(), &reference, None, arithmetic).within_bound());
    let without = Arithmetic { outlier_weight_floor: 0.0, ..arithmetic };
    assert!(!compare(y.view(), &reference, None, without).within_bound());
}

/// Mistakes that a backend could make, each small enough to survive a tolerance chosen by eye.
#[test]
fn small_mistakes_are_outside_the_bound() {
    let backend = Backend::ALL[0];
    let (mut tried, mut missed) = (0, Vec::new());
    for seed in 0..200 {
        let case = random(seed);
        let (x, weight, reference) = layer::<f32>(&case, false);
        let bias = case.bias.as_ref().map(|bias| bias.view());
        let is_found = |mistaken: &LinearOutput<f32>| {
            let y = backend.linear(&x, &weight, bias, mistaken);
            !compare(y.view(), &reference, bias, Arithmetic::F32).within_bound()
        };
        // One unit in one accumulator. Where the int8 part prevails the bound is about 9·2⁻²⁴ ≈ 5.4e-7 of the result,
        // which a unit in an accumulator below 10⁶ exceeds; in a larger one it is lost in f32, rightly.
        let at = (case.x.nrows() - 1, case.w.nrows() - 1);
        let share_of_int8 = reference.int8_part[at].abs()
            / (reference.outlier_magnitude[at]
                + case.bias.as_ref().map_or(0.0, |b| f64::from(b[at.1].abs())));
        let at_first = [0, at.0, at.1];
        let sum = reference.products[at_first];
        if share_of_int8 < 1.0 || sum.abs() > 1_000_000 || sum == 0 {
            continue;
        }
        for unit in [-1, 1] {
            let mut mistaken = reference.clone();
            mistaken.products[at_first] += unit;
            tried += 1;
            if !is_found(&mistaken) {
                missed.push(case.name.clone());
            }
        }
    }
    assert!(tried >= 40, "only {tried} cases could be tried");
    assert!(missed.is_empty(), "{} of {tried} mistakes were not found: {missed:?}", missed.len());
}
