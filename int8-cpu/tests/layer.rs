//! Sizes at the tile edges and beyond the thresholds of parallel work, and the laws of the layer.

use half::{bf16, f16};
use int8_core::bound::{Arithmetic, compare};
use int8_core::corpus::Random;
use int8_core::{
    Config, Element, Encoding, Granularity, OutlierGranularity, OutlierRule, RowMaximum, RowStatistic,
    Scheme, Weight,
};
use int8_cpu::{
    Error, ExactColumn, ExactColumns, Kernel, LinearStats, OutlierWeights, PackedWeight, Store, int8_product,
    linear,
};
use ndarray::{Array1, Array2, ArrayView2, s};
use proptest::prelude::*;

type SourceError = Box<dyn std::error::Error + Send + Sync>;

/// Exact columns out of a matrix in memory.
struct Columns<'a, T>(ArrayView2<'a, T>);

impl<T: Element> ExactColumns for Columns<'_, T> {
    fn columns(&self, columns: &[usize]) -> Result<Vec<ExactColumn>, SourceError> {
        let column = |k: &usize| ExactColumn::F32(self.0.column(*k).iter().map(|v| v.to_f32()).collect());
        Ok(columns.iter().map(column).collect())
    }
}

fn layer<T: Element>(
    kernel: Kernel,
    x: ArrayView2<'_, T>,
    w: ArrayView2<'_, T>,
    bias: Option<&[f32]>,
    config: &Config,
    exact: bool,
) -> (Array2<T>, LinearStats) {
    let weight = PackedWeight::quantize(kernel, w, config.weight_encoding, config.weight_granularity)
        .expect("a valid weight");
    let source = Columns(w);
    let outlier_weights = if exact { OutlierWeights::Exact(&source) } else { OutlierWeights::Dequantized };
    let mut y = Array2::from_elem((x.nrows(), w.nrows()), T::from_f32(f32::NAN));
    let stats = linear(x, &weight, outlier_weights, bias, config, Store::Overwrite, y.view_mut())
        .expect("a valid call");
    (y, stats)
}

/// Checks one layer of every kernel against the reference; the message says what is wrong.
fn check<T: Element>(
    x: &Array2<f32>,
    w: &Array2<f32>,
    bias: Option<&Array1<f32>>,
    config: &Config,
    exact: bool,
) -> Result<(), String> {
    let (x, w) = (x.mapv(T::from_f32), w.mapv(T::from_f32));
    let mut reference_weight = Weight::quantize(w.view(), config);
    if exact {
        reference_weight = reference_weight.with_all_columns_exact(w.view()).map_err(|e| e.to_string())?;
    }
    let bias_view = bias.map(|bias| bias.view());
    let reference =
        int8_core::linear(x.view(), &reference_weight, bias_view, config).map_err(|e| e.to_string())?;
    let bias = bias.and_then(|bias| bias.as_slice());
    for kernel in Kernel::available() {
        let (y, stats) = layer(kernel, x.view(), w.view(), bias, config, exact);
        let comparison = compare(y.view(), &reference, bias_view, Arithmetic::F32);
        if !comparison.within_bound() || stats.outlier_columns != reference.outliers.columns().len() {
            let (m, k) = x.dim();
            return Err(format!(
                "{kernel} {} [{m}, {k}] x [{}, {k}], {config:?}, exact {exact}: {comparison:?}, {stats:?}, y {:?}, expected {:e}",
                T::NAME,
                w.nrows(),
                y.get(comparison.at),
                reference.exact.get(comparison.at).copied().unwrap_or(0.0),
            ));
        }
    }
    Ok(())
}

fn configs() -> Vec<Config> {
    let llm = Scheme::LlmInt8Absmax.config();
    let mut configs: Vec<Config> = Scheme::ALL.iter().map(|scheme| scheme.config()).collect();
    let relative = |statistic| OutlierRule::RelativeToRow { tau: 7.0, statistic };
    for encoding in [Encoding::Absmax, Encoding::Zeropoint] {
        for row_maximum in [RowMaximum::Paper, RowMaximum::Bitsandbytes] {
            for outlier_granularity in [OutlierGranularity::Column, OutlierGranularity::Value] {
                configs.push(Config {
                    input_encoding: encoding,
                    weight_encoding: encoding,
                    row_maximum,
                    outlier_granularity,
                    ..llm
                });
            }
        }
    }
    configs.push(Config { rule: relative(RowStatistic::MedianAbs), ..llm });
    configs.push(Config {
        rule: relative(RowStatistic::MeanAbs),
        outlier_granularity: OutlierGranularity::Value,
        input_granularity: Granularity::Tensor,
        ..llm
    });
    let groups = Config {
        input_granularity: Granularity::Group,
        weight_granularity: Granularity::Group,
        ..Scheme::LlmInt8Zeropoint.config()
    };
    configs.push(groups);
    configs.push(Config { outlier_granularity: OutlierGranularity::Value, ..groups });
    configs.push(Config { weight_granularity: Granularity::Row, input_encoding: Encoding::Absmax, ..groups });
    configs.push(Config {
        input_granularity: Granularity::Row,
        weight_encoding: Encoding::Zeropoint,
        ..groups
    });
    configs
}

/// Activations with `share` of the columns outlying, as whole columns and as single values.
fn activations(random: &mut Random, rows: usize, inner: usize, share: f32) -> Array2<f32> {
    let mut x = random.matrix(rows, inner, 1.0);
    for column in 0..inner {
        if random.uniform() < share {
            if random.uniform() < 0.5 {
                x.column_mut(column).mapv_inplace(|v| -15.0 - v);
            } else if rows > 0 {
                x[[column % rows, column]] = 11.0;
            }
        }
    }
    x
}

#[test]
fn tile_edges() {
    let mut random = Random::new(11);
    let mut failures = Vec::new();
    let mut cases = 0;
    let rows = [0, 1, 2, 3, 4, 5, 6, 7, 11, 12, 13, 16, 17, 24, 25, 31, 32, 33];
    let outputs = [0, 1, 15, 16, 17, 31, 32, 33, 63, 64, 65];
    let inner = [0, 1, 2, 3, 4, 5, 15, 16, 17, 63, 64, 65, 127, 128, 129];
    let configs = configs();
    for (i, m) in rows.into_iter().enumerate() {
        for (j, n) in outputs.into_iter().enumerate() {
            for (l, k) in inner.into_iter().enumerate() {
                let config = &configs[(i + 3 * j + 5 * l) % configs.len()];
                let share = random.choose(&[0.0, 0.1, 0.5, 1.0]);
                let (x, w) = (activations(&mut random, m, k, share), random.matrix(n, k, 0.05));
                let bias = random.choose(&[true, false]).then(|| Array1::from_elem(n, 0.75));
                let exact = random.choose(&[true, false]);
                let result = match random.choose(&[0, 1, 2]) {
                    0 => check::<f32>(&x, &w, bias.as_ref(), config, exact),
                    1 => check::<f16>(&x, &w, bias.as_ref(), config, exact),
                    _ => check::<bf16>(&x, &w, bias.as_ref(), config, exact),
                };
                failures.extend(result.err());
                cases += 1;
            }
        }
    }
    println!("{cases} cases on {:?}", Kernel::available());
    assert!(
        failures.is_empty(),
        "{} failures\n{}",
        failures.len(),
        failures[..failures.len().min(5)].join("\n")
    );
}

/// Large enough that quantisation and product are cut into tasks, at every share of outliers.
#[test]
fn parallel_sizes() {
    let mut random = Random::new(12);
    let mut failures = Vec::new();
    for (i, share) in [0.0, 0.001, 0.01, 0.2, 0.6, 1.0].into_iter().enumerate() {
        for (j, config) in configs().iter().enumerate() {
            let (m, n, k) = [(41, 70, 1001), (67, 129, 640), (1, 600, 2050)][(i + j) % 3];
            let (x, w) = (activations(&mut random, m, k, share), random.matrix(n, k, 0.05));
            failures.extend(check::<bf16>(&x, &w, None, config, j % 2 == 0).err());
        }
    }
    assert!(
        failures.is_empty(),
        "{} failures\n{}",
        failures.len(),
        failures[..failures.len().min(5)].join("\n")
    );
}

/// Bit for bit the same result on 1, 2, 3 and 7 threads.
#[test]
fn any_number_of_threads_gives_the_same_bits() {
    let mut random = Random::new(13);
    for config in configs() {
        for (m, n, k) in [(50, 200, 700), (1, 3000, 900), (300, 40, 300), (13, 128, 1024), (530, 70, 100)] {
            let (x, w) = (activations(&mut random, m, k, 0.05), random.matrix(n, k, 0.05));
            for kernel in Kernel::available() {
                let on = |threads: usize| {
                    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
                    let (y, stats) = pool.install(|| layer(kernel, x.view(), w.view(), None, &config, false));
                    (y.mapv(f32::to_bits), stats)
                };
                let single = on(1);
                for threads in [2, 3, 7] {
                    assert!(
                        on(threads) == single,
                        "{kernel}, {threads} threads, [{m}, {n}, {k}], {config:?}"
                    );
                }
            }
        }
    }
}

/// In `Value` granularity a row's result depends on that row alone.
#[test]
fn value_granularity_is_batch_invariant() {
    let mut random = Random::new(14);
    use Encoding::{Absmax, Zeropoint};
    for (encoding, granularity) in
        [(Absmax, Granularity::Row), (Zeropoint, Granularity::Row), (Zeropoint, Granularity::Group)]
    {
        let config = Config {
            input_encoding: encoding,
            input_granularity: granularity,
            weight_encoding: encoding,
            weight_granularity: granularity,
            outlier_granularity: OutlierGranularity::Value,
            ..Scheme::LlmInt8Absmax.config()
        };
        for share in [0.01, 0.3, 0.9] {
            let (x, w) = (activations(&mut random, 37, 530, share), random.matrix(67, 530, 0.05));
            for kernel in Kernel::available() {
                let (batch, _) = layer(kernel, x.view(), w.view(), None, &config, true);
                for row in 0..x.nrows() {
                    let alone = layer(kernel, x.slice(s![row..=row, ..]), w.view(), None, &config, true).0;
                    assert_eq!(alone.row(0), batch.row(row), "{kernel}, row {row}");
                }
            }
        }
    }
}

#[test]
fn accumulate_adds_to_what_is_there() {
    let mut random = Random::new(15);
    let (x, w) = (activations(&mut random, 5, 100, 0.05), random.matrix(40, 100, 0.05));
    let config = Scheme::LlmInt8Absmax.config();
    for kernel in Kernel::available() {
        let weight = PackedWeight::quantize(kernel, w.view(), config.weight_encoding, Granularity::Row)
            .expect("a weight");
        let (y, _) = layer(kernel, x.view(), w.view(), None, &config, false);
        let before = random.matrix(5, 40, 100.0);
        // Into a window of a larger matrix: rows contiguous, not the whole.
        let mut out = Array2::zeros((5, 50));
        out.slice_mut(s![.., 5..45]).assign(&before);
        let window = out.slice_mut(s![.., 5..45]);
        linear(x.view(), &weight, OutlierWeights::Dequantized, None, &config, Store::Accumulate, window)
            .expect("valid");
        assert_eq!(out.slice(s![.., 5..45]), &before + &y, "{kernel}");
        assert!(out.slice(s![.., ..5]).iter().chain(out.slice(s![.., 45..]).iter()).all(|v| *v == 0.0));
    }
}

/// K so large that a zero-point correction does not fit an i32, with codes at their extremes.
#[test]
fn wide_corrections() {
    let k = 70_000;
    let x = Array2::from_shape_fn((2, k), |(m, k)| if k == 0 { 1.0 } else { [-1.0, -0.98][m] });
    let w = Array2::from_shape_fn((3, k), |(n, k)| if k == 1 { 1.0 } else { [-1.0, 1.0, -0.5][n] });
    let config = Config {
        input_encoding: Encoding::Zeropoint,
        weight_encoding: Encoding::Zeropoint,
        ..Scheme::ZeropointVectorWise.config()
    };
    check::<f32>(&x, &w, None, &config, false).expect("within the bound");
}

#[test]
fn not_a_number_is_never_silently_finite() {
    let mut random = Random::new(16);
    let w = random.matrix(33, 70, 0.1);
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for config in configs() {
            let mut x = random.matrix(5, 70, 1.0);
            x[[3, 17]] = bad;
            check::<f32>(&x, &w, None, &config, true).expect("NaN where the reference has it");
            for kernel in Kernel::available() {
                let (y, _) = layer(kernel, x.view(), w.view(), None, &config, true);
                assert!(y.row(3).iter().all(|v| !v.is_finite()), "{kernel} {bad} {config:?}");
            }
            let mut broken = w.clone();
            broken[[7, 5]] = bad;
            check::<f32>(&random.matrix(5, 70, 1.0), &broken, None, &config, false).expect("NaN column");
        }
    }
}

#[test]
fn weights_come_back_as_they_went_in() {
    let mut random = Random::new(17);
    for (n, k) in [(0, 0), (0, 5), (3, 0), (1, 1), (33, 65), (70, 131)] {
        let w = random.matrix(n, k, 1.0);
        for encoding in [Encoding::Absmax, Encoding::Zeropoint] {
            for granularity in [Granularity::Row, Granularity::Group] {
                let expected = int8_core::QuantizedMatrix::quantize(w.view(), encoding, granularity);
                for kernel in Kernel::available() {
                    let weight = PackedWeight::from_quantized(kernel, &expected).expect("a weight");
                    assert_eq!(weight.to_quantized().expect("valid parts"), expected, "{kernel} [{n}, {k}]");
                    for other in Kernel::available() {
                        let again = weight.repack(other).expect("valid codes");
                        assert_eq!(again.to_quantized().expect("valid"), expected, "{kernel} to {other}");
                    }
                }
            }
        }
    }
}

#[test]
fn bad_input_is_an_error() {
    let config = Scheme::LlmInt8Absmax.config();
    let (x, w) = (Array2::<f32>::from_elem((2, 8), 9.0), Array2::<f32>::ones((3, 8)));
    for kernel in Kernel::available() {
        let weight =
            PackedWeight::quantize(kernel, w.view(), Encoding::Absmax, Granularity::Row).expect("valid");
        let call = |x: ArrayView2<'_, f32>, source, bias, config: &Config, shape| {
            let mut y = Array2::<f32>::zeros(shape);
            linear(x, &weight, source, bias, config, Store::Overwrite, y.view_mut())
                .map_err(|e| e.to_string())
        };
        let dequantized = OutlierWeights::Dequantized;
        let narrow = call(x.slice(s![.., ..7]), dequantized, None, &config, (2, 3)).unwrap_err();
        assert!(narrow.contains("inner dimensions differ"), "{narrow}");
        let bias = call(x.view(), dequantized, Some(&[1.0]), &config, (2, 3)).unwrap_err();
        assert!(bias.contains("bias: expected 3"), "{bias}");
        let shape = call(x.view(), dequantized, None, &config, (2, 4)).unwrap_err();
        assert!(shape.contains("out: expected shape (2, 3)"), "{shape}");
        let threshold = Config { rule: OutlierRule::Absolute(-1.0), ..config };
        assert!(call(x.view(), dequantized, None, &threshold, (2, 3)).unwrap_err().contains("threshold"));
        let columns = x.t().as_standard_layout().into_owned();
        let transposed = call(columns.t(), dequantized, None, &config, (2, 3)).unwrap_err();
        assert!(transposed.contains("row-major"), "{transposed}");

        struct Wrong(usize, usize);
        impl ExactColumns for Wrong {
            fn columns(&self, _: &[usize]) -> Result<Vec<ExactColumn>, SourceError> {
                if self.0 == 0 {
                    return Err("the disk is gone".into());
                }
                Ok(vec![ExactColumn::F32(vec![0.0; self.1].into()); self.0])
            }
        }
        let gone = call(x.view(), OutlierWeights::Exact(&Wrong(0, 0)), None, &config, (2, 3)).unwrap_err();
        assert!(gone.contains("the disk is gone"), "{gone}");
        let count = call(x.view(), OutlierWeights::Exact(&Wrong(7, 3)), None, &config, (2, 3)).unwrap_err();
        assert!(count.contains("asked for 8 columns and returned 7"), "{count}");
        let short = call(x.view(), OutlierWeights::Exact(&Wrong(8, 2)), None, &config, (2, 3)).unwrap_err();
        assert!(short.contains("exact column: expected 3"), "{short}");

        let mut codes = Array2::<i8>::zeros((2, 8));
        codes[[1, 3]] = i8::MIN;
        assert!(matches!(
            int8_product(codes.view(), &weight),
            Err(Error::Core(int8_core::Error::CodeOutOfRange { .. }))
        ));
        let scales = Array1::ones(2);
        let packed = PackedWeight::from_codes(kernel, codes.view(), scales.view(), None);
        assert!(packed.unwrap_err().to_string().contains("code -128 at [1, 3]"));
        let too_long = Array2::<i8>::zeros((1, 133_145));
        let packed = PackedWeight::from_codes(kernel, too_long.view(), Array1::ones(1).view(), None);
        assert!(packed.unwrap_err().to_string().contains("too large for an i32 accumulator"));
        let short = PackedWeight::from_codes(kernel, codes.slice(s![..1, ..]), scales.view(), None);
        assert!(short.unwrap_err().to_string().contains("scales: expected 1"));
    }
}

#[test]
fn kernels_are_chosen_by_name() {
    let available = Kernel::available();
    assert_eq!(available.first(), Some(&Kernel::best()));
    assert_eq!(available.last().map(|kernel| kernel.name()), Some("portable"));
    for name in Kernel::known() {
        match Kernel::by_name(name) {
            Ok(kernel) => assert_eq!(kernel.name(), name),
            Err(error) => assert!(error.to_string().contains("does not offer"), "{error}"),
        }
    }
    assert!(Kernel::by_name("fast").unwrap_err().to_string().contains("known: "));

    let w = Array2::<f32>::ones((3, 8));
    for packer in &available {
        let weight =
            PackedWeight::quantize(*packer, w.view(), Encoding::Absmax, Granularity::Row).expect("valid");
        for reader in &available {
            let moved = weight.clone().with_kernel(*reader);
            if packer.layout() == reader.layout() {
                assert_eq!(moved.expect("same layout").kernel(), *reader);
            } else {
                assert!(matches!(moved, Err(Error::LayoutMismatch { .. })), "{packer} to {reader}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Any shape, seed and setting: inside the bound on every kernel.
    #[test]
    fn random_layers(m in 0_usize..40, n in 0_usize..70, k in 0_usize..200, seed: u64, setting in 0_usize..18, exact: bool, share in 0.0_f32..1.0) {
        let mut random = Random::new(seed);
        let configs = configs();
        let config = &configs[setting % configs.len()];
        let (x, w) = (activations(&mut random, m, k, share), random.matrix(n, k, 0.1));
        prop_assert_eq!(check::<f16>(&x, &w, None, config, exact), Ok(()));
    }

    /// The integer product is exact for any codes.
    #[test]
    fn random_products(m in 0_usize..40, n in 0_usize..70, k in 0_usize..200, seed: u64) {
        let mut random = Random::new(seed);
        let extreme = random.choose(&[true, false]);
        let mut code = || {
            let code = random.bits().to_le_bytes()[0].cast_signed().max(-127);
            if extreme { if code < 0 { -127 } else { 127 } } else { code }
        };
        let a = Array2::from_shape_simple_fn((m, k), &mut code);
        let w = Array2::from_shape_simple_fn((n, k), &mut code);
        let expected = int8_core::product::int8_product(a.view(), w.view()).expect("valid codes");
        for kernel in Kernel::available() {
            let scales = Array1::ones(n);
            let weight = PackedWeight::from_codes(kernel, w.view(), scales.view(), None).expect("valid codes");
            let product = int8_product(a.view(), &weight).expect("valid shapes");
            prop_assert_eq!(&product, &expected, "{}", kernel);
        }
    }
}
