//! CPU kernels for LLM.int8(): the quantised, decomposed linear layer in one pass, on instructions picked at run time.
#![cfg_attr(docsrs, feature(doc_cfg))]

mod buffer;
mod convert;
mod driver;
mod epilogue;
mod error;
mod input;
pub mod kernel;
mod linear;
mod matrix;
mod outlier;
pub mod probe;
mod rows;
mod tile;
pub mod verify;
mod weight;

pub use error::Error;
pub use kernel::{Kernel, Layout};
pub use linear::{LinearStats, Store, int8_product, int8_product_into, linear};
pub use outlier::{ExactColumn, ExactColumns, OutlierWeights};
pub use weight::PackedWeight;

use ndarray::ArrayView2;

/// Checks that the rows of a matrix are contiguous.
fn rows_of<T>(matrix: ArrayView2<'_, T>, what: &'static str) -> Result<(), Error> {
    let (rows, columns) = matrix.dim();
    if columns <= 1 || rows == 0 || matrix.strides()[1] == 1 {
        return Ok(());
    }
    Err(Error::NotRowMajor { what, rows, columns, strides: matrix.strides().to_vec() })
}
