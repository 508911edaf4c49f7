#![doc = include_str!("../README.md")]
#![allow(unsafe_code, reason = "calls C functions and frees what they return")]

mod activations;
mod algorithm;
pub mod bench;
mod convert;
mod device;
mod error;
mod gemm;
mod graph;
mod linear;
mod matrix;
pub mod model;
mod operations;
mod params;
mod scalar;
mod settings;
mod weight;

pub use activations::{Intermediates, QuantizedActivations};
pub use algorithm::{Algorithm, Shape};
pub use device::{Device, DeviceInfo, Mark, Stream, Timer};
pub use error::Error;
pub use gemm::GemmPlan;
pub use graph::Graph;
pub use linear::LinearPlan;
pub use matrix::{Buffer, Matrix};
pub use operations::{DenseProduct, dequantize, input_gradient, int8_product, quantize_rows};
pub use scalar::{Float, Scalar};
pub use weight::{KeepExact, Weight};
