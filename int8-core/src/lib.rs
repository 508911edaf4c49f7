//! The mathematics of LLM.int8() (Dettmers, Lewis, Belkada, Zettlemoyer, NeurIPS 2022, arXiv 2208.07339): the reference that
//! all backends of this project are tested against. Safe Rust, one thread, no I/O, no device.
//!
//! A linear layer `y = x·Wᵀ + b` becomes
//!
//! ```text
//! y[m,n] = s_x[m]·s_w[n]/127² · Σ_k (q_x[m,k] − z_x[m])·(q_w[n,k] − z_w[n])     int8 product, i32 accumulator
//!        + Σ_{(m,k) outlier} x[m,k]·W[n,k]                                      outliers, 16-bit
//!        + b[n]
//! ```
//!
//! | | module | paper |
//! |---|---|---|
//! | outlier detection | [`outlier`] | §3.2 |
//! | absmax and zero-point codes, per tensor, row or group | [`quantize`] | §2.1, §3.1 |
//! | prologue: outliers and codes of x | [`activations`] | §3.2 |
//! | GEMM: the integer product and its dequantisation | [`product`] | §2.2, eq. 4–7 |
//! | the whole layer, and its input gradient | [`linear`](mod@linear) | eq. 8 |
//! | the eight quantised rows of Table 1 | [`scheme`] | §3.3 |
//! | permitted deviation of a backend | [`bound`] | – |
//! | error metrics | [`metrics`] | – |
//! | test inputs of every backend | [`corpus`] | – |
//!
//! ```
//! use int8_core::{linear, Scheme, Weight};
//! use ndarray::array;
//!
//! // Feature 1 of x is an outlier column: |40| ≥ 6 is multiplied in floating point.
//! let x = array![[0.5_f32, 40.0, -0.25], [1.0, -38.0, 0.75]];
//! let w = array![[0.1_f32, 0.2, 0.3], [-0.3, 0.1, 0.2]];
//! let config = Scheme::LlmInt8Absmax.config();
//!
//! let weight = Weight::quantize(w.view(), &config).with_exact_columns(w.view(), &[1])?;
//! let out = linear(x.view(), &weight, None, &config)?;
//! assert_eq!(out.outliers.columns(), [1]);
//! assert!((out.y[[0, 0]] - 7.975).abs() < 0.01);
//! # Ok::<(), int8_core::Error>(())
//! ```
#![forbid(unsafe_code)]

pub mod activations;
pub mod bound;
mod convert;
pub mod corpus;
mod element;
mod error;
pub mod linear;
pub mod metrics;
mod named;
pub mod outlier;
pub mod product;
pub mod quantize;
pub mod scheme;

/// Runs the README's examples as tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
pub struct Readme;

/// The crates whose types are in the signatures, in the versions that fit.
pub use {half, ndarray};

pub use activations::QuantizedActivations;
pub use element::{Element, FloatSlice, FloatType, KvType};
pub use error::Error;
pub use linear::{LinearOutput, Weight, input_gradient, linear, linear_quantized};
pub use named::Named;
pub use outlier::{OutlierGranularity, OutlierRule, Outliers, RowStatistic, find_outliers};
pub use quantize::{Encoding, GROUP, Granularity, QuantizedMatrix, RowMaximum};
pub use scheme::{Config, Scheme};
