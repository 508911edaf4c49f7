//! What disentangled attention adds to the scores of a sequence.

use ndarray::parallel::prelude::*;
use ndarray::{Array2, ArrayView2, s};

use crate::backend::DistanceVectors;

/// The products of contents and embedded distances, head by head.
pub(super) struct Terms {
    /// `f32 [tokens, rows]`: of the queries with the keys of distances; empty without this term.
    of_queries: Vec<Array2<f32>>,
    /// `f32 [tokens, rows]`: of the keys with the queries of distances; empty without this term.
    of_keys: Vec<Array2<f32>>,
    /// The row of each distance from `−(tokens − 1)` to `tokens − 1`, a query's position less a key's.
    rows: Vec<usize>,
    heads: usize,
    scale: f32,
}

impl Terms {
    /// Of `queries` and `keys`, both `f32 [tokens, heads·head_size]`, of at least one token.
    pub(super) fn new(
        vectors: &DistanceVectors,
        queries: ArrayView2<'_, f32>,
        keys: ArrayView2<'_, f32>,
        heads: usize,
        scale: f32,
    ) -> Self {
        let reach = queries.nrows().cast_signed() - 1;
        // Rows ascend with the distance; a short text meets those in the middle alone.
        let (first, last) = (vectors.distances.row(-reach), vectors.distances.row(reach));
        let rows = (-reach..=reach).map(|distance| vectors.distances.row(distance) - first).collect();
        let products = |contents: ArrayView2<'_, f32>, distances: &Option<Array2<f32>>| -> Vec<Array2<f32>> {
            let Some(distances) = distances else { return Vec::new() };
            let size = contents.ncols() / heads;
            let of_head = |head: usize| {
                let columns = head * size..(head + 1) * size;
                let distances = distances.slice(s![first..=last, columns.clone()]);
                contents.slice(s![.., columns]).dot(&distances.t())
            };
            (0..heads).into_par_iter().map(of_head).collect()
        };
        Self {
            of_queries: products(queries, &vectors.keys),
            of_keys: products(keys, &vectors.queries),
            rows,
            heads,
            scale,
        }
    }

    /// The biases of the query at `position`, `f32 [heads, 2·tokens − 1]` by the key's position less the query's.
    pub(super) fn of_row(&self, position: usize) -> Array2<f32> {
        let tokens = self.rows.len().div_ceil(2);
        let mut biases = Array2::zeros((self.heads, self.rows.len()));
        for (head, mut biases) in biases.outer_iter_mut().enumerate() {
            let mut biases = biases.slice_mut(s![tokens - 1 - position..2 * tokens - 1 - position]);
            // Later keys have smaller distances.
            let rows = self.rows[position..position + tokens].iter().rev();
            if let Some(products) = self.of_queries.get(head) {
                let products = products.row(position);
                biases.iter_mut().zip(rows.clone()).for_each(|(bias, row)| *bias += products[*row]);
            }
            if let Some(products) = self.of_keys.get(head) {
                let products = products.outer_iter();
                biases.iter_mut().zip(rows).zip(products).for_each(|((bias, row), key)| *bias += key[*row]);
            }
            biases *= self.scale;
        }
        biases
    }
}
