//! Quantises a matrix with one scale a row, and multiplies with and without the decomposition.
//!
//!     cargo run -p int8-core --example quantize
#![allow(clippy::print_stdout, reason = "an example prints")]

use int8_core::corpus::Random;
use int8_core::{Scheme, Weight, linear, metrics};
use ndarray::{Array2, ArrayView2};

fn main() -> Result<(), int8_core::Error> {
    // 32 tokens with 64 features, one of which is large in every token, as in large transformers.
    let mut random = Random::new(0);
    let mut x = Array2::from_shape_fn((32, 64), |_| random.normal());
    x.column_mut(7).mapv_inplace(|value| 40.0 + value);
    let w = Array2::from_shape_fn((48, 64), |_| 0.02 * random.normal()); // [outputs, inputs]
    let exact = x.dot(&w.t());

    for scheme in [Scheme::AbsmaxVectorWise, Scheme::LlmInt8Absmax] {
        let config = scheme.config();
        let weight = Weight::quantize(w.view(), &config).with_exact_columns(w.view(), &[7])?;
        let output = linear(x.view(), &weight, None, &config)?;
        println!("{:<24} relative error {:.5}", scheme.name(), error(output.y.view(), exact.view()));
    }
    Ok(())
}

fn error(found: ArrayView2<'_, f32>, exact: ArrayView2<'_, f32>) -> f64 {
    let values = |matrix: ArrayView2<'_, f32>| matrix.iter().copied().collect::<Vec<f32>>();
    metrics::relative_l2(&values(found), &values(exact))
}
