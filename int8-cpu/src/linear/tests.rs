//! One value for several weights, and prologues fused with quantisation, bit for bit against the stages one by one.

use half::{bf16, f16};
use int8_core::corpus::Random;
use int8_core::{Encoding, Granularity, OutlierGranularity, OutlierRule, RowMaximum, RowStatistic, Scheme};
use ndarray::Array2;

use super::*;
use crate::activations::apply_prologue;
use crate::kernel::Kernel;
use crate::prologue::activation::Function;
use crate::prologue::encode::scratch_length;
use crate::prologue::outliers::Outliers;

/// Codes of the K values of each row, terms, terms of groups, columns and values of outliers, as bits.
type Parts = (Vec<Vec<i8>>, Vec<[u32; 3]>, Vec<[u32; 3]>, Vec<usize>, Vec<Vec<(u32, u32)>>);

fn parts(x: &QuantizedActivations, sums: bool) -> Parts {
    let Encoded { codes, stride, terms, groups, columns, outliers, .. } = x.encoded();
    let (rows, inner) = x.dim();
    let code_rows =
        (0..rows).map(|row| codes.codes()[row * stride..][..scratch_length(inner)].to_vec()).collect();
    // Where code sums are not needed they are any number.
    let sum = |sum: i32| if sums { sum.cast_unsigned() } else { 0 };
    let terms = terms.iter().map(|row| [row.step.to_bits(), row.zero_point.cast_unsigned(), sum(row.sum)]);
    let groups = groups.iter().map(|g| [g.step, g.zero, g.rest].map(f32::to_bits));
    let outliers = match outliers {
        Outliers::None => Vec::new(),
        Outliers::Dense { values, .. } => vec![values.iter().map(|v| (0, v.to_bits())).collect()],
        Outliers::Sparse(lists) => {
            lists.iter().map(|list| list.iter().map(|(o, v)| (*o, v.to_bits())).collect()).collect()
        }
    };
    (code_rows, terms.collect(), groups.collect(), columns.clone(), outliers)
}

fn configs() -> Vec<Config> {
    let llm = Scheme::LlmInt8Absmax.config();
    let relative = OutlierRule::RelativeToRow { tau: 7.0, statistic: RowStatistic::MedianAbs };
    let value = OutlierGranularity::Value;
    vec![
        llm,
        Config { row_maximum: RowMaximum::Bitsandbytes, ..llm },
        Config { outlier_granularity: value, ..llm },
        Config { weight_encoding: Encoding::Zeropoint, ..llm },
        Config { outlier_granularity: value, weight_encoding: Encoding::Zeropoint, rule: relative, ..llm },
        Scheme::LlmInt8Zeropoint.config(),
        Scheme::AbsmaxVectorWise.config(),
        Scheme::Zeropoint.config(),
        Config { input_granularity: Granularity::Group, weight_granularity: Granularity::Group, ..llm },
        Config {
            input_granularity: Granularity::Group,
            weight_granularity: Granularity::Group,
            outlier_granularity: value,
            rule: relative,
            weight_encoding: Encoding::Zeropoint,
            ..Scheme::LlmInt8Zeropoint.config()
        },
    ]
}

fn pack(kernel: Kernel, w: &Array2<f32>, config: &Config) -> PackedWeight {
    PackedWeight::quantize(kernel, w.view(), config.weight_encoding, config.weight_granularity)
        .expect("a valid weight")
}

fn bits(y: &Array2<f32>) -> Array2<u32> {
    y.mapv(f32::to_bits)
}

fn product(x: &QuantizedActivations, weight: &PackedWeight) -> Array2<u32> {
    let mut y = Array2::zeros((x.dim().0, weight.dim().0));
    multiply(x, weight, OutlierWeights::Dequantized, None, Store::Overwrite, y.view_mut())
        .expect("a product");
    bits(&y)
}

/// The prologue of `x` in f32, quantised afterwards, in parts and as a product.
fn check<X: Element>(
    x: &Array2<f32>,
    prologue: Prologue<'_>,
    inner: usize,
    random: &mut Random,
    number: usize,
) {
    let x = x.mapv(X::from_f32);
    let w = random.matrix(33, inner, 0.1);
    for kernel in Kernel::available() {
        let mut applied = Array2::zeros((x.nrows(), inner));
        apply_prologue(kernel, x.mapv(X::to_f32).view(), prologue, applied.view_mut()).expect("a prologue");
        let configs = configs();
        // Each a few times over the shapes and prologues.
        for config in configs.iter().skip(number % 3).step_by(3) {
            let weight = pack(kernel, &w, config);
            let sums = weight.has_zero_points();
            let fused = QuantizedActivations::new(x.view(), prologue, config, &[&weight]).expect("valid");
            let apart = QuantizedActivations::new(applied.view(), Prologue::None, config, &[&weight]);
            let apart = apart.expect("valid");
            let what = format!("{kernel} {} {:?} {prologue:?} {config:?}", X::NAME, x.dim());
            assert!(parts(&fused, sums) == parts(&apart, sums), "{what}");
            assert_eq!(fused.stats(), apart.stats(), "{what}");
            assert!(product(&fused, &weight) == product(&apart, &weight), "{what}");
        }
    }
}

/// Every prologue in one pass gives the codes, scales, outliers and results of the prologue first and quantisation
/// second: at the edges of tiles and tasks, for one row, with outlier columns that the first rows have and that
/// they have not, with NaN and infinity.
#[test]
fn prologues_are_fused_exactly() {
    let mut random = Random::new(71);
    let shapes = [(1, 1), (1, 70), (3, 64), (5, 200), (12, 95), (17, 320), (300, 130), (0, 5)];
    let shapes = if cfg!(miri) { &shapes[..3] } else { &shapes[..] };
    println!("on {:?}", Kernel::available());
    let mut number = 0;
    for &(rows, inner) in shapes {
        for case in 0..6 {
            let gain: Vec<f32> = (0..inner).map(|_| 1.0 + 0.3 * random.normal()).collect();
            let bias: Vec<f32> = (0..inner).map(|_| 0.2 * random.normal()).collect();
            let norm = Prologue::LayerNorm { gain: &gain, bias: Some(&bias), eps: 1e-5 };
            let plain_norm = Prologue::LayerNorm { gain: &gain, bias: None, eps: 1e-5 };
            let rms = Prologue::RmsNorm { gain: &gain, eps: 1e-6 };
            let activation = Prologue::Activation(Function::GeluTanh);
            let gate = Prologue::Gate(Function::Silu);
            for prologue in [Prologue::None, norm, plain_norm, rms, activation, gate] {
                let columns = if matches!(prologue, Prologue::Gate(_)) { 2 * inner } else { inner };
                let mut x = random.matrix(rows, columns, 1.0);
                if rows > 0 {
                    let column = columns / 3;
                    match case {
                        1 => x.column_mut(column).fill(40.0),
                        // Not in the rows that columns are guessed from.
                        2 => x[[rows - 1, column]] = 60.0,
                        3 => x[[rows / 2, columns - 1]] = f32::NAN,
                        4 => {
                            x[[rows - 1, columns / 2]] = f32::NEG_INFINITY;
                            x.row_mut(0).fill(0.0);
                        }
                        // Outliers in each row, elsewhere: too many to correct.
                        5 => (0..rows).for_each(|row| x[[row, row * 7 % columns]] = 50.0),
                        _ => {}
                    }
                }
                number += 1;
                match number % 4 {
                    0 => check::<f16>(&x, prologue, inner, &mut random, number),
                    1 => check::<bf16>(&x, prologue, inner, &mut random, number),
                    _ => check::<f32>(&x, prologue, inner, &mut random, number),
                }
            }
        }
    }
}

/// One value for several weights gives the results that each weight has alone.
#[test]
fn several_weights_read_one_value() {
    let mut random = Random::new(72);
    for (rows, inner) in [(1, 64), (6, 130), (40, 700)] {
        let mut x = random.matrix(rows, inner, 1.0);
        x.column_mut(inner / 3).fill(-9.0);
        let w = [1, 33, 70].map(|outputs| random.matrix(outputs, inner, 0.1));
        for kernel in Kernel::available() {
            for config in configs() {
                let weights = w.each_ref().map(|w| pack(kernel, w, &config));
                let all = weights.each_ref();
                let shared =
                    QuantizedActivations::new(x.view(), Prologue::None, &config, &all).expect("valid");
                for weight in &weights {
                    let mut y = Array2::<f32>::zeros((rows, weight.dim().0));
                    let (outliers, store) = (OutlierWeights::Dequantized, Store::Overwrite);
                    linear(x.view(), weight, outliers, None, &config, store, y.view_mut()).expect("valid");
                    assert!(product(&shared, weight) == bits(&y), "{kernel} {weight:?} {config:?}");
                }
            }
        }
    }
}

/// A weight that needs code sums beside one that does not; weights that the value was not made for.
#[test]
fn weights_that_do_not_fit_are_refused() {
    let mut random = Random::new(73);
    let (x, w) = (random.matrix(3, 40, 1.0), random.matrix(5, 40, 0.1));
    let config = Scheme::LlmInt8Absmax.config();
    let zeropoint = Config { weight_encoding: Encoding::Zeropoint, ..config };
    let groups = Config { weight_granularity: Granularity::Group, ..config };
    let mut y = Array2::<f32>::zeros((3, 5));
    for kernel in Kernel::available() {
        let [plain, zeros, grouped] = [&config, &zeropoint, &groups].map(|config| pack(kernel, &w, config));
        let quantize =
            |weights: &[&PackedWeight]| QuantizedActivations::new(x.view(), Prologue::None, &config, weights);
        let mut call = |x: &QuantizedActivations, weight: &PackedWeight| {
            multiply(x, weight, OutlierWeights::Dequantized, None, Store::Overwrite, y.view_mut())
        };
        let both = quantize(&[&plain, &zeros]).expect("code sums are no obstacle");
        call(&both, &plain).expect("valid");
        call(&both, &zeros).expect("valid");
        let alone = quantize(&[&plain]).expect("valid");
        for weight in [&zeros, &grouped] {
            assert!(matches!(call(&alone, weight), Err(Error::ActivationsMismatch { .. })), "{weight:?}");
        }
        let of_groups = quantize(&[&grouped]).expect("valid");
        assert!(matches!(call(&of_groups, &plain), Err(Error::ActivationsMismatch { .. })));
        assert!(matches!(quantize(&[&plain, &grouped]), Err(Error::WeightsDiffer { .. })));
        assert!(matches!(quantize(&[]), Err(Error::NoWeights)));
        let other = pack(Kernel::available()[0], &w, &config);
        if other.kernel() != kernel {
            assert!(matches!(quantize(&[&plain, &other]), Err(Error::WeightsDiffer { .. })));
            assert!(matches!(call(&alone, &other), Err(Error::ActivationsMismatch { .. })));
        }
        let wide = pack(kernel, &random.matrix(5, 41, 0.1), &config);
        let inner = |error| matches!(error, Error::Core(CoreError::InnerDimension { .. }));
        assert!(inner(quantize(&[&plain, &wide]).unwrap_err()));
        assert!(inner(call(&alone, &wide).unwrap_err()));
        for prologue in [
            Prologue::RmsNorm { gain: &[1.0; 39], eps: 0.0 },
            Prologue::LayerNorm { gain: &[1.0; 40], bias: Some(&[0.0; 41]), eps: 0.0 },
        ] {
            let result = QuantizedActivations::new(x.view(), prologue, &config, &[&plain]);
            assert!(matches!(result, Err(Error::Core(CoreError::Length { .. }))), "{result:?}");
        }
        let gate = QuantizedActivations::new(
            random.matrix(3, 81, 1.0).view(),
            Prologue::Gate(Function::Relu),
            &config,
            &[&plain],
        );
        assert!(matches!(gate, Err(Error::Core(CoreError::Length { .. }))), "{gate:?}");
    }
}
