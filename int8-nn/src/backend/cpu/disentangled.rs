//! What disentangled attention adds to the scores of a sequence.

use ndarray::parallel::prelude::*;
use ndarray::{Array2, ArrayView2, s};

use crate::backend::DistanceVectors;

/// The products of contents and embedded distances, head by head.
pub(super) struct Terms {
    /// `f32 [tokens, 2·span]`: of the queries with the keys of distances.
    of_queries: Vec<Array2<f32>>,
    /// `f32 [tokens, 2·span]`: of the keys with the queries of distances.
    of_keys: Vec<Array2<f32>>,
    /// The row of each distance from `−(tokens − 1)` to `tokens − 1`, a query's position less a key's.
    rows: Vec<usize>,
    tokens: usize,
    heads: usize,
    scale: f32,
}

impl Terms {
    /// Of `queries` and `keys`, both `f32 [tokens, heads·head_size]`.
    pub(super) fn new(
        vectors: &DistanceVectors,
        queries: ArrayView2<'_, f32>,
        keys: ArrayView2<'_, f32>,
        heads: usize,
        scale: f32,
    ) -> Self {
        let products = |contents: ArrayView2<'_, f32>, distances: &Option<Array2<f32>>| -> Vec<Array2<f32>> {
            let Some(distances) = distances else { return Vec::new() };
            let size = contents.ncols() / heads;
            let of_head = |head: usize| {
                let columns = s![.., head * size..(head + 1) * size];
                contents.slice(columns).dot(&distances.slice(columns).t())
            };
            (0..heads).into_par_iter().map(of_head).collect()
        };
        let tokens = queries.nrows();
        let reach = tokens.cast_signed() - 1;
        Self {
            of_queries: products(queries, &vectors.keys),
            of_keys: products(keys, &vectors.queries),
            rows: (-reach..=reach).map(|distance| vectors.distances.row(distance)).collect(),
            tokens,
            heads,
            scale,
        }
    }

    /// The biases of the query at `position`, `f32 [heads, 2·tokens − 1]` by the key's position less the query's.
    pub(super) fn of_row(&self, position: usize) -> Array2<f32> {
        let mut biases = Array2::zeros((self.heads, self.rows.len()));
        for (head, mut biases) in biases.outer_iter_mut().enumerate() {
            for key in 0..self.tokens {
                let row = self.rows[self.tokens - 1 + position - key];
                let of_query = self.of_queries.get(head).map_or(0.0, |products| products[[position, row]]);
                let of_key = self.of_keys.get(head).map_or(0.0, |products| products[[key, row]]);
                biases[self.tokens - 1 + key - position] = self.scale * (of_query + of_key);
            }
        }
        biases
    }
}
