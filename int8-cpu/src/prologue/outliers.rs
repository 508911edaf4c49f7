//! Outliers of rows of f32: found, listed, and gathered for the product with their weights.

use super::encode::BLOCK;
use crate::convert;
use crate::simd::{Instructions, LANES};

/// Single values are multiplied as dense columns when at least one in this many of the columns' values left: a dense
/// product shares each load of a weight among the rows of a tile and takes half the time per value.
const DENSE_SHARE: usize = 2;

/// Which values of `x` left the int8 product.
#[derive(Default)]
pub(crate) enum Outliers {
    /// None.
    #[default]
    None,
    /// `f32 [M, O]`, row-major: `whole` columns, or values that fill at least half of their columns. The zeros between
    /// those add exactly nothing, so a row's result is the same as of lists. `count` values left the int8 product.
    Dense { values: Vec<f32>, count: usize, whole: bool },
    /// For each row its outliers, as (position in the list of outlier columns, value), ascending.
    Sparse(Vec<Vec<(u32, f32)>>),
}

/// Sets the flag of every column in which this row has an outlier.
#[inline(always)]
pub(crate) fn flag_outliers<I: Instructions>(simd: I, row: &[f32], threshold: f32, flags: &mut [u8]) {
    let limit = simd.splat(threshold);
    let (vectors, rest) = row.as_chunks::<LANES>();
    for (values, flags) in vectors.iter().zip(flags.chunks_exact_mut(LANES)) {
        if simd.reaching(simd.load(values), limit) != 0 {
            for (flag, value) in flags.iter_mut().zip(values) {
                *flag |= u8::from(value.abs() >= threshold);
            }
        }
    }
    for (flag, value) in flags[row.len() - rest.len()..].iter_mut().zip(rest) {
        *flag |= u8::from(value.abs() >= threshold);
    }
}

/// Appends column and value of every outlier of the row. The zeros behind the last value never are: thresholds are
/// positive.
#[inline(always)]
pub(crate) fn list_outliers<I: Instructions>(
    simd: I,
    blocks: &[[f32; BLOCK]],
    threshold: f32,
    found: &mut Vec<(u32, f32)>,
) {
    let limit = simd.splat(threshold);
    for (index, values) in blocks.as_flattened().as_chunks::<LANES>().0.iter().enumerate() {
        let mut lanes = simd.reaching(simd.load(values), limit);
        while lanes != 0 {
            let lane = lanes.trailing_zeros() as usize;
            found.push((convert::index(index * LANES + lane), values[lane]));
            lanes &= lanes - 1;
        }
    }
}

/// The union of the rows' outlier columns, and the rows' lists with columns replaced by positions in the union.
pub(super) fn union(inner: usize, mut lists: Vec<Vec<(u32, f32)>>) -> (Vec<usize>, Outliers) {
    if lists.iter().all(Vec::is_empty) {
        return (Vec::new(), Outliers::None);
    }
    const UNUSED: u32 = u32::MAX;
    let mut positions = vec![UNUSED; inner];
    lists.iter().flatten().for_each(|(column, _)| positions[*column as usize] = 0);
    let columns: Vec<usize> = (0..inner).filter(|column| positions[*column] != UNUSED).collect();
    for (position, column) in columns.iter().enumerate() {
        positions[*column] = convert::index(position);
    }
    let found: usize = lists.iter().map(Vec::len).sum();
    if found * DENSE_SHARE >= lists.len() * columns.len() {
        let mut dense = vec![0.0_f32; lists.len() * columns.len()];
        for (row, list) in dense.chunks_exact_mut(columns.len()).zip(&lists) {
            for (column, value) in list {
                row[positions[*column as usize] as usize] = *value;
            }
        }
        return (columns, Outliers::Dense { values: dense, count: found, whole: false });
    }
    lists.iter_mut().flatten().for_each(|(column, _)| *column = positions[*column as usize]);
    (columns, Outliers::Sparse(lists))
}
