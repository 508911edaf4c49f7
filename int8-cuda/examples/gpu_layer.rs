//! A linear layer on a GPU: plans are made once, a run neither allocates nor waits.
//!
//!     cargo run --release -p int8-cuda --example gpu_layer
#![allow(clippy::print_stdout, reason = "an example prints")]

use half::f16;
use int8_core::Scheme;
use int8_core::corpus::Random;
use int8_cuda::{Algorithm, Device, Error, KeepExact, LinearPlan, Matrix, Shape, Stream, Timer, Weight};

fn main() -> Result<(), Error> {
    let device = Device::new(0)?;
    let stream = Stream::new(&device)?;
    let config = Scheme::LlmInt8Absmax.config();
    let (m, n, k) = (128, 4096, 4096);
    let mut random = Random::new(0);
    let mut values = |count: usize, scale: f32| -> Vec<f16> {
        (0..count).map(|_| f16::from_f32(scale * random.normal())).collect()
    };
    let x = Matrix::from_host(&device, m, k, &values(m * k, 1.0))?;
    let w = Matrix::from_host(&device, n, k, &values(n * k, 0.02))?;
    let weight = Weight::quantize(&stream, w, &config, KeepExact::None)?;
    let mut y = Matrix::<f16>::zeros(&device, m, n)?;
    let mut plan = LinearPlan::<f16>::new(&device, Shape { m, n, k }, &config, Algorithm::Auto)?;
    let timer = Timer::new(&device)?;
    for run in 0..3 {
        let time = timer.measure(&stream, || plan.run(&stream, &x, &weight, None, &mut y))?;
        println!("{}: run {run}, {time:.1} us", device.info().name);
    }
    println!("y[0, 0] = {}", y.to_host(&stream)?[0]);
    Ok(())
}
