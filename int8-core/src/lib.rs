//! The mathematics of LLM.int8() (Dettmers, Lewis, Belkada, Zettlemoyer, NeurIPS 2022, arXiv 2208.07339),
//! written to be read, checked and trusted: safe Rust, one thread, no I/O, no device. The fast backends of
//! this project are tested against this crate; other numerics projects can use it alone.
//!
//! A linear layer `y = x·Wᵀ + b` becomes
//!
//! ```text
//! y[m,n] = s_x[m]·s_w[n]/127² · Σ_k (q_x[m,k] − z_x[m])·(q_w[n,k] − z_w[n])     int8 product, i32 accumulator
//!        + Σ_{(m,k) outlier} x[m,k]·W[n,k]                                      outliers, 16-bit
//!        + b[n]
//! ```
//!
//! | step | module | paper |
//! |---|---|---|
//! | which values are outliers | [`outlier`] | §3.2 |
//! | absmax and zero-point codes, per tensor or per row | [`quantize`] | §2.1, §3.1 |
//! | the integer product and its dequantisation | [`product`] | §2.2, eq. 4–7 |
//! | stage 1: outliers and codes of x together | [`activations`] | §3.2 |
//! | the whole layer, and its input gradient | [`linear`](mod@linear) | eq. 8 |
//! | the eight rows of Table 1 | [`scheme`] | §3.3 |
//! | how far a backend may be from this crate | [`bound`] | – |
//! | errors as one reports them | [`metrics`] | – |
//! | inputs every backend is tested on | [`corpus`] | – |
//!
//! ```
//! use int8_core::{linear, Scheme, Weight};
//! use ndarray::array;
//!
//! // One hidden dimension of x carries an outlier: 40 ≥ 6 is multiplied in 16-bit.
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

/// The examples of the README are tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
pub struct Readme;

pub use activations::QuantizedActivations;
pub use element::{Element, FloatSlice, FloatType};
pub use error::Error;
pub use linear::{LinearOutput, Weight, input_gradient, linear, linear_quantized};
pub use named::Named;
pub use outlier::{OutlierGranularity, OutlierRule, Outliers, RowStatistic, find_outliers};
pub use quantize::{Encoding, GROUP, Granularity, QuantizedMatrix, RowMaximum};
pub use scheme::{Config, Scheme};
