//! Selection of keys by an indexer (DeepSeek-AI, 2025): small queries and one small key a token score the keys, and attention sees
//! the best.

use ndarray::{Array2, ArrayView1, ArrayView2};

use crate::backend::PageCopy;
use crate::convert;

/// The indexer's keys of all blocks and sequences, `f32`, on the pages of the KV cache; a page is allocated when it is written.
#[derive(Debug, Default)]
pub(super) struct IndexPages {
    /// Blocks with an indexer, and the width of a key.
    layers: usize,
    size: usize,
    positions: usize,
    pages: Vec<Option<Box<[f32]>>>,
}

impl IndexPages {
    pub(super) fn new(layers: usize, size: usize, positions: usize) -> Self {
        Self { layers, size, positions, pages: Vec::new() }
    }

    pub(super) fn copy(&mut self, copy: PageCopy) {
        let (from, to) = (convert::index(copy.from), convert::index(copy.to));
        let page = self.pages.get(from).cloned().flatten();
        if page.is_some() {
            self.grow(to);
            self.pages[to] = page;
        }
    }

    /// Fills a page with NaN.
    pub(super) fn poison(&mut self, page: u32) {
        if let Some(Some(page)) = self.pages.get_mut(convert::index(page)) {
            page.fill(f32::NAN);
        }
    }

    fn grow(&mut self, page: usize) {
        if self.pages.len() <= page {
            self.pages.resize_with(page + 1, || None);
        }
    }

    /// Writes the key of `position` of the sequence with this table.
    pub(super) fn write(&mut self, layer: usize, table: &[u32], position: usize, key: ArrayView1<'_, f32>) {
        let page = convert::index(table[position / self.positions]);
        self.grow(page);
        let length = self.layers * self.positions * self.size;
        let page = self.pages[page].get_or_insert_with(|| vec![0.0; length].into_boxed_slice());
        let first = (layer * self.positions + position % self.positions) * self.size;
        for (target, value) in page[first..first + self.size].iter_mut().zip(key) {
            *target = *value;
        }
    }

    /// The keys of the positions below `length`, `[length, size]`.
    pub(super) fn keys(&self, layer: usize, table: &[u32], length: usize) -> Array2<f32> {
        let mut keys = Array2::zeros((length, self.size));
        for (position, mut key) in keys.rows_mut().into_iter().enumerate() {
            let Some(Some(page)) = self.pages.get(convert::index(table[position / self.positions])) else {
                continue;
            };
            let first = (layer * self.positions + position % self.positions) * self.size;
            key.assign(&ArrayView1::from(&page[first..first + self.size]));
        }
        keys
    }
}

/// `Σ_h weights[h]·max(queries[h]·keys[t], 0)` for each t; `queries [heads, size]`, `keys [t, size]`.
pub(super) fn scores(
    queries: ArrayView2<'_, f32>,
    weights: ArrayView1<'_, f32>,
    keys: ArrayView2<'_, f32>,
) -> Vec<f32> {
    let products = keys.dot(&queries.t());
    let score =
        |products: ArrayView1<'_, f32>| products.iter().zip(weights).map(|(p, w)| p.max(0.0) * w).sum();
    products.rows().into_iter().map(score).collect()
}

/// What is added to the attention score of a key that is not selected: its weight becomes 0.
const UNSEEN: f32 = -1e30;

/// For each score 0 if it is among the `chosen` best, of equal ones the first, else what hides its key. Empty where all are.
pub(super) fn bias(scores: &[f32], chosen: usize) -> Vec<f32> {
    if scores.len() <= chosen {
        return Vec::new();
    }
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.select_nth_unstable_by(chosen, |a, b| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b)));
    let mut bias = vec![UNSEEN; scores.len()];
    order[..chosen].iter().for_each(|position| bias[*position] = 0.0);
    bias
}

#[cfg(test)]
mod tests {
    use ndarray::array;

    use super::*;

    #[test]
    fn the_best_keys_are_selected() {
        let keys = array![[1.0_f32, 0.0], [0.0, 1.0], [-1.0, 0.0], [2.0, 2.0]];
        let queries = array![[1.0_f32, 0.0], [0.0, 2.0]];
        let found = scores(queries.view(), array![1.0_f32, -0.5].view(), keys.view());
        assert_eq!(found, [1.0, -1.0, 0.0, 0.0]);
        // Of the two zeros the first.
        assert_eq!(bias(&found, 2), [0.0, UNSEEN, 0.0, UNSEEN]);
        assert!(bias(&found, 4).is_empty());
    }

    #[test]
    fn keys_lie_on_the_pages_of_their_sequence() {
        let mut pages = IndexPages::new(2, 2, 4);
        let table = [3_u32, 1];
        for position in 0..6 {
            let value = convert::f32_from(convert::f64_from(position));
            pages.write(1, &table, position, array![value, -value].view());
        }
        assert_eq!(pages.keys(1, &table, 6).column(0).to_vec(), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        assert_eq!(pages.keys(0, &table, 6).sum(), 0.0);
        pages.copy(PageCopy { from: 1, to: 7 });
        pages.poison(1);
        assert_eq!(pages.keys(1, &[3, 7], 6).column(1).to_vec(), [0.0, -1.0, -2.0, -3.0, -4.0, -5.0]);
    }
}
