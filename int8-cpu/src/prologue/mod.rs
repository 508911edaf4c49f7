//! Stage 1: normalisation, activation or gate, outlier detection and row quantisation, to codes in the rows that
//! microkernels read.

pub(crate) mod activation;
pub(crate) mod encode;
mod float16;
pub(crate) mod norm;
mod one_pass;
mod one_pass16;
pub(crate) mod outliers;
pub(crate) mod parameters;
mod quantize;
pub(crate) mod quantizer;
pub(crate) mod rows;
mod statistics;
pub(crate) mod terms;
