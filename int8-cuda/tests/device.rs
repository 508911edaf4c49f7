//! The layer on this machine's GPU against `int8-core`, on a part of the random corpus and on shapes and settings that
//! proptest draws and shrinks; `int8-cuda-verify` runs far more. Without a GPU the tests say so and pass, unless
//! `INT8_REQUIRE_GPU=1`.

use std::io::Write as _;

use half::f16;
use int8_core::bound::{self, Arithmetic};
use int8_core::corpus::{self, Case, Random};
use int8_cuda::{
    Algorithm, Buffer, Device, Error, GemmPlan, KeepExact, LinearPlan, Matrix, QuantizedActivations, Shape,
    Stream, Weight,
};
use ndarray::{Array1, Array2};
use proptest::prelude::*;
use proptest::test_runner::{Config as Runs, TestCaseError, TestRunner};

/// The first device, or `None` after saying why there is none.
fn device() -> Option<Device> {
    match Device::new(0) {
        Ok(device) => Some(device),
        Err(error) => {
            assert!(std::env::var_os("INT8_REQUIRE_GPU").is_none(), "INT8_REQUIRE_GPU is set: {error}");
            // Not by a macro: its output is shown for failing tests only.
            let _ = writeln!(std::io::stderr(), "skipped: {error}");
            None
        }
    }
}

/// A description of the fault of the layer's f16 result on this case, as one call or as prologue and GEMM; `None` without a
/// fault, and where the algorithm does not support the shape.
fn wrong(stream: &Stream, case: &Case, algorithm: Algorithm) -> Result<Option<String>, Error> {
    let device = stream.device();
    let (x, w) = (case.x.mapv(f16::from_f32), case.w.mapv(f16::from_f32));
    let ((m, k), n) = (x.dim(), w.nrows());
    let core = int8_core::Weight::quantize(w.view(), &case.config);
    let bias = case.bias.as_ref();
    let reference = int8_core::linear(x.view(), &core, bias.map(|bias| bias.view()), &case.config)
        .expect("operands that fit");
    let mut plan = match LinearPlan::new(device, Shape { m, n, k }, &case.config, algorithm) {
        Err(Error::Unsupported { .. }) if algorithm != Algorithm::Auto => return Ok(None),
        plan => plan?,
    };
    let device_x = Matrix::from_host(device, m, k, &x.iter().copied().collect::<Vec<_>>())?;
    let device_w = Matrix::from_host(device, n, k, &w.iter().copied().collect::<Vec<_>>())?;
    let weight = Weight::quantize(stream, device_w, &case.config, KeepExact::None)?;
    let device_bias = bias.map(|bias| Buffer::from_host(device, &bias.to_vec())).transpose()?;
    // NaN, so that an element left unwritten is found.
    let mut y = Matrix::from_host(device, m, n, &vec![f16::NAN; m * n])?;
    plan.run(stream, &device_x, &weight, device_bias.as_ref(), &mut y)?;
    let actual = Array2::from_shape_vec((m, n), y.to_host(stream)?).expect("m·n values");
    let found = bound::compare(
        actual.view(),
        &reference,
        bias.map(|bias| bias.view()),
        Arithmetic::tensor_core::<f16>(),
    );
    if !found.within_bound() {
        return Ok(Some(format!("{}: {found:?}", case.name)));
    }
    if plan.algorithm().is_fused() {
        return Ok(None);
    }
    let mut activations = QuantizedActivations::new(device, m, k, &case.config)?;
    activations.quantize(stream, &device_x, m)?;
    let mut gemm = GemmPlan::new(device, Shape { m, n, k }, &case.config, plan.algorithm())?;
    y.copy_from_host(&vec![f16::NAN; m * n])?;
    gemm.run(stream, &activations, &weight, device_bias.as_ref(), &mut y)?;
    let bits = |v: &f16| if v.is_nan() { f16::NAN.to_bits() } else { v.to_bits() };
    let same = actual.iter().zip(&y.to_host(stream)?).all(|(a, b)| bits(a) == bits(b));
    Ok((!same).then(|| format!("{}: two stages by {:?} gave other bits", case.name, plan.algorithm())))
}

#[test]
fn random_cases_lie_within_the_bound() -> Result<(), Error> {
    let Some(device) = device() else { return Ok(()) };
    let stream = Stream::new(&device)?;
    let mut failures = Vec::new();
    for seed in 0..60 {
        failures.extend(wrong(&stream, &corpus::random(seed), Algorithm::Auto)?);
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    Ok(())
}

/// Shapes across all tile sizes, under the settings of a random case, by every algorithm.
fn any_case() -> impl Strategy<Value = (Case, Algorithm)> {
    let algorithms: Vec<Algorithm> = Algorithm::LAYER.into_iter().chain([Algorithm::Auto]).collect();
    let share = prop::sample::select(vec![0.0_f32, 0.01, 0.2, 1.0]);
    (1_usize..=140, 1_usize..=300, 1_usize..=700, any::<u64>(), share, prop::sample::select(algorithms))
        .prop_map(|(m, n, k, seed, share, algorithm)| {
            let mut random = Random::new(seed);
            let mut x = random.matrix(m, k, 1.0);
            for mut column in x.columns_mut() {
                if random.uniform() < share {
                    column.mapv_inplace(|v| v - 20.0);
                }
            }
            let w = random.matrix(n, k, 0.02);
            let bias = Some(Array1::from_shape_simple_fn(n, || random.normal()));
            let name = format!("{m}x{n}x{k}, seed {seed}, {share} outlier columns, {algorithm:?}");
            (Case { name, x, w, bias, config: corpus::random(seed).config }, algorithm)
        })
}

#[test]
fn any_shape_lies_within_the_bound() -> Result<(), Error> {
    let Some(device) = device() else { return Ok(()) };
    let stream = Stream::new(&device)?;
    let outcome = TestRunner::new(Runs { failure_persistence: None, ..Runs::with_cases(200) }).run(
        &any_case(),
        |(case, algorithm)| match wrong(&stream, &case, algorithm) {
            Ok(None) => Ok(()),
            Ok(Some(message)) => Err(TestCaseError::fail(message)),
            Err(error) => Err(TestCaseError::fail(error.to_string())),
        },
    );
    assert!(outcome.is_ok(), "{outcome:?}");
    Ok(())
}

#[test]
fn one_value_serves_several_weights_and_sums() -> Result<(), Error> {
    let Some(device) = device() else { return Ok(()) };
    let stream = Stream::new(&device)?;
    let config = int8_core::Scheme::LlmInt8Absmax.config();
    let (m, n, k) = (40, 48, 256);
    let mut random = Random::new(3);
    let mut upload = |rows: usize, scale: f32| {
        let values: Vec<f16> = random.matrix(rows, k, scale).iter().map(|v| f16::from_f32(*v)).collect();
        Matrix::from_host(&device, rows, k, &values)
    };
    let x = upload(m, 3.0)?;
    let weights = [(); 3].map(|()| Weight::quantize(&stream, upload(n, 0.02)?, &config, KeepExact::None));
    let mut linear = LinearPlan::new(&device, Shape { m, n, k }, &config, Algorithm::Mma)?;
    let mut activations = QuantizedActivations::new(&device, 64, k, &config)?;
    let mut gemm = GemmPlan::new(&device, Shape { m: 64, n, k }, &config, Algorithm::Mma)?;
    activations.quantize(&stream, &x, m)?;
    let (mut expected, mut found) =
        (Matrix::<f16>::zeros(&device, m, n)?, Matrix::<f16>::zeros(&device, m, n)?);
    for weight in weights {
        let weight = weight?;
        linear.accumulate(&stream, &x, &weight, None, &mut expected)?;
        gemm.accumulate(&stream, &activations, &weight, None, &mut found)?;
    }
    assert_eq!(expected.to_host(&stream)?, found.to_host(&stream)?);
    let fused = GemmPlan::<f16>::new(&device, Shape { m: 1, n, k }, &config, Algorithm::Gemv);
    assert!(matches!(fused, Err(Error::Unsupported { .. })), "{fused:?}");
    Ok(())
}

#[test]
fn a_missing_device_is_an_error() {
    let error = Device::new(4096).expect_err("no machine has 4097 devices");
    assert!(matches!(error, Error::NoDevice { ordinal: 4096, .. }), "{error}");
}
