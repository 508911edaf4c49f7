#![doc = include_str!("../README.md")]
#![allow(unsafe_code, reason = "calls C functions and frees what they return")]

pub mod bench;
mod convert;
mod device;
mod error;
mod graph;
mod linear;
mod matrix;
mod operations;
mod weight;

pub use device::{Device, DeviceInfo, Stream, Timer};
pub use error::Error;
pub use graph::Graph;
pub use linear::{Algorithm, Intermediates, LinearPlan, Shape};
pub use matrix::{Buffer, Float, Matrix, Scalar};
pub use operations::{DenseProduct, dequantize, input_gradient, int8_product, quantize_rows};
pub use weight::{KeepExact, Weight};
