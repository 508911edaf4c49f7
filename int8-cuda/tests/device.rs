//! The layer on this machine's GPU against `int8-core`, on a part of the random corpus; `int8-cuda-verify` runs all of it.
//! Without a GPU the test says so and passes, unless `INT8_REQUIRE_GPU=1`.

use half::f16;
use int8_core::bound::{self, Arithmetic};
use int8_core::corpus;
use int8_cuda::{Algorithm, Buffer, Device, Error, KeepExact, LinearPlan, Matrix, Shape, Stream, Weight};

/// The first device, or `None` after saying why there is none.
fn device() -> Option<Device> {
    match Device::new(0) {
        Ok(device) => Some(device),
        Err(error) => {
            assert!(std::env::var_os("INT8_REQUIRE_GPU").is_none(), "INT8_REQUIRE_GPU is set: {error}");
            println!("skipped: {error}");
            None
        }
    }
}

#[test]
fn random_cases_lie_within_the_bound() -> Result<(), Error> {
    let Some(device) = device() else { return Ok(()) };
    let stream = Stream::new(&device)?;
    let mut failures = Vec::new();
    for seed in 0..60 {
        let case = corpus::random(seed);
        let (x, w) = (case.x.mapv(f16::from_f32), case.w.mapv(f16::from_f32));
        let ((m, k), n) = (x.dim(), w.nrows());
        let core = int8_core::Weight::quantize(w.view(), &case.config);
        let bias = case.bias.as_ref();
        let reference = int8_core::linear(x.view(), &core, bias.map(|bias| bias.view()), &case.config)
            .expect("a valid case");
        let device_x = Matrix::from_host(&device, m, k, &x.iter().copied().collect::<Vec<_>>())?;
        let device_w = Matrix::from_host(&device, n, k, &w.iter().copied().collect::<Vec<_>>())?;
        let weight = Weight::quantize(&stream, device_w, &case.config, KeepExact::None)?;
        let device_bias = bias.map(|bias| Buffer::from_host(&device, &bias.to_vec())).transpose()?;
        let mut y = Matrix::<f16>::zeros(&device, m, n)?;
        let mut plan = LinearPlan::new(&device, Shape { m, n, k }, &case.config, Algorithm::Auto)?;
        plan.run(&stream, &device_x, &weight, device_bias.as_ref(), &mut y)?;
        let actual = ndarray::Array2::from_shape_vec((m, n), y.to_host(&stream)?).expect("m·n values");
        let found = bound::compare(
            actual.view(),
            &reference,
            bias.map(|bias| bias.view()),
            Arithmetic::tensor_core::<f16>(),
        );
        if !found.within_bound() {
            failures.push(format!("{}: {found:?}", case.name));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    Ok(())
}

#[test]
fn a_missing_device_is_an_error() {
    let error = Device::new(4096).expect_err("nobody has 4097 devices");
    assert!(matches!(error, Error::NoDevice { ordinal: 4096, .. }), "{error}");
}
