//! Columns of an int8 weight that are kept in floating point beside its codes, for the outliers that they meet.

use std::sync::OnceLock;

use int8_core::FloatType;

use super::tensor::Tensor;
use crate::convert;
use crate::device::Device;
use crate::error::Error;
use crate::matrix::Buffer;
use crate::weight::RawWeight;

/// Columns of `W [n, k]`; none until [`ExactColumns::set`].
#[derive(Debug, Default)]
pub(super) struct ExactColumns(OnceLock<Kept>);

#[derive(Debug)]
struct Kept {
    /// `[columns, n]` row-major: one column of W after the other.
    values: Tensor,
    /// i32 `[k]`: the place of a column among the kept ones, or −1.
    index: Buffer<i32>,
}

impl ExactColumns {
    /// Keeps these columns of `W [n, k]`, `values [columns, n]`.
    pub(super) fn set(
        &self,
        device: &Device,
        (n, k): (usize, usize),
        columns: &[usize],
        values: Tensor,
    ) -> Result<(), Error> {
        const OPERATION: &str = "keep exact columns";
        let (expected, found) = ((columns.len(), n), (values.rows(), values.width()));
        if expected != found {
            return Err(Error::Shape { operation: OPERATION, what: "columns", expected, found });
        }
        let index = places(columns, k).map_err(|column| {
            let shape = format!("column {column} of W [{n}, {k}]: absent or named twice");
            Error::Invalid { operation: OPERATION, shape }
        })?;
        let kept = Kept { values, index: Buffer::from_host(device, &index)? };
        self.0.set(kept).map_err(|_| {
            let shape = format!("W [{n}, {k}]: its columns were chosen before");
            Error::Invalid { operation: OPERATION, shape }
        })
    }

    /// How many.
    pub(super) fn len(&self) -> usize {
        self.0.get().map_or(0, |kept| kept.values.rows())
    }

    /// Device memory in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.0.get().map_or(0, |kept| kept.values.bytes() + 4 * kept.index.len())
    }

    /// Type of their elements, if there are any.
    pub(super) fn element(&self) -> Option<FloatType> {
        self.0.get().map(|kept| kept.values.element())
    }

    /// The weight with these columns.
    pub(super) fn beside(&self, weight: RawWeight) -> RawWeight {
        let Some(Kept { values, index }) = self.0.get() else { return weight };
        RawWeight {
            exact: values.pointer().cast_const(),
            exact_index: index.pointer().cast_const(),
            exact_strides: (1, convert::size(values.width())),
            ..weight
        }
    }
}

/// For each of `k` columns its place in `columns`, or −1.
///
/// # Errors
/// A column that is not below `k` or stands twice.
fn places(columns: &[usize], k: usize) -> Result<Vec<i32>, usize> {
    let mut index = vec![-1; k];
    for (place, &column) in columns.iter().enumerate() {
        match index.get_mut(column) {
            Some(slot) if *slot < 0 => *slot = convert::index(place),
            _ => return Err(column),
        }
    }
    Ok(index)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_of_columns() {
        assert_eq!(places(&[3, 0], 5), Ok(vec![1, -1, -1, 0, -1]));
        assert_eq!(places(&[], 2), Ok(vec![-1, -1]));
        assert_eq!(places(&[1, 1], 2), Err(1));
        assert_eq!(places(&[2], 2), Err(2));
    }
}
