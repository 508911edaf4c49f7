//! A linear layer: its weight is quantised and packed once, one quantised input serves two weights.
//!
//!     cargo run --release -p int8-cpu --example layer
#![allow(clippy::print_stdout, reason = "an example prints")]

use std::time::Instant;

use int8_core::corpus::Random;
use int8_core::{Granularity, Scheme};
use int8_cpu::{Kernel, OutlierWeights, PackedWeight, Store, linear};
use ndarray::Array2;

fn main() -> Result<(), int8_cpu::Error> {
    let (rows, inputs, outputs) = (64, 2048, 2048);
    let config = Scheme::LlmInt8Absmax.config();
    let kernel = Kernel::select()?;
    let mut random = Random::new(0);
    let w = Array2::from_shape_fn((outputs, inputs), |_| 0.02 * random.normal());
    let weight = PackedWeight::quantize(kernel, w.view(), config.weight_encoding, Granularity::Row)?;

    // One column holds outliers, |x| >= 6: it is multiplied in floating point.
    let mut x = Array2::from_shape_fn((rows, inputs), |_| random.normal());
    x.column_mut(100).fill(30.0);
    let mut y = Array2::<f32>::zeros((rows, outputs));
    for run in 0..3 {
        let begin = Instant::now();
        let stats = linear(
            x.view(),
            &weight,
            OutlierWeights::Dequantized,
            None,
            &config,
            Store::Overwrite,
            y.view_mut(),
        )?;
        let columns = stats.outlier_columns;
        println!("{}: run {run}, {columns} outlier column, {:?}", kernel.name(), begin.elapsed());
    }
    let exact = x.dot(&w.t());
    println!("largest error {:.4}", (&y - &exact).iter().fold(0.0_f32, |most, error| most.max(error.abs())));
    Ok(())
}
