//! Attention over a cache that is laid out as the tiles read it.
//!
//! ```text
//! out[m] = Σ_p softmax_p(cap(scale·q[m]·k[p]) + bias(m, p))·v[p],   p in the span of row m
//! ```
//!
//! Keys and values are written in panels once, so that both products run on the tile that multiplies outliers
//! (`f32 [rows, count] × [count, 32]`) without packing anything per call.

use std::ops::Range;

use int8_core::Error as CoreError;
use ndarray::{ArrayView1, ArrayView2, ArrayViewMut2, Axis, s};
use rayon::prelude::*;

use super::functions::{add_lanes, exp, padded, tanh};
use crate::buffer::Buffer;
use crate::convert;
use crate::kernel::{Dispatch, Kernel};
use crate::tile::{self, Instructions, LANES, MAX_ROWS, OuterOperands, PANEL, Tile, TileKernel, Vectorized};
use crate::{Error, rows_of};

/// Query rows of a task: four tiles of twelve. Their scores against 1024 positions take 192 KiB.
const TASK_ROWS: usize = 48;

/// Multiply-adds below which attention stays on the calling thread: 32 of them take a cycle or two, so this is some
/// 10 µs, about what waking a sleeping thread costs.
const SERIAL_WORK: usize = 1 << 19;

/// Keys and values of one sequence in one block of a model, f32.
#[derive(Clone, Default)]
pub struct KeyValues {
    heads: usize,
    size: usize,
    /// Positions, a multiple of `PANEL`.
    capacity: usize,
    /// `[heads, capacity/PANEL, size, PANEL]`
    keys: Buffer,
    /// `[heads, ⌈size/PANEL⌉, capacity, PANEL]`, zero beyond `size`.
    values: Buffer,
}

impl std::fmt::Debug for KeyValues {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "KeyValues(heads {}, size {}, capacity {})", self.heads, self.size, self.capacity)
    }
}

impl KeyValues {
    /// Room for `capacity` positions of `heads` heads of width `size`; all zero.
    pub fn new(heads: usize, size: usize, capacity: usize) -> Self {
        let capacity = capacity.next_multiple_of(PANEL);
        Self {
            heads,
            size,
            capacity,
            keys: Buffer::zeroed(heads * capacity * size * 4),
            values: Buffer::zeroed(heads * size.next_multiple_of(PANEL) * capacity * 4),
        }
    }

    /// Positions there is room for.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Writes keys and values, each f32 `[rows, heads·size]`, to the positions from `position` on.
    ///
    /// # Errors
    /// The reference's `Shape` when the widths or numbers of rows differ from what they should be or the rows do not
    /// fit behind `position`; [`Error::NotRowMajor`].
    pub fn write(
        &mut self,
        position: usize,
        keys: ArrayView2<'_, f32>,
        values: ArrayView2<'_, f32>,
    ) -> Result<(), Error> {
        let (rows, size, capacity) = (keys.nrows(), self.size, self.capacity);
        for (what, found) in [("keys", keys.dim()), ("values", values.dim())] {
            let expected = (rows.min(capacity.saturating_sub(position)), self.heads * size);
            if found != expected {
                return Err(CoreError::Shape { what, expected, found }.into());
            }
        }
        rows_of(keys, "keys")?;
        rows_of(values, "values")?;
        if size == 0 {
            return Ok(());
        }
        if rows == 1 {
            self.fetch_position(position);
        }
        let value_panels = size.div_ceil(PANEL);
        let (key_heads, value_heads) = (self.keys.floats_mut(), self.values.floats_mut());
        for head in 0..self.heads {
            let columns = head * size..(head + 1) * size;
            let target = &mut key_heads[head * capacity * size..(head + 1) * capacity * size];
            // Column by column of a panel: consecutive writes to its 32 positions.
            let mut row = 0;
            while row < rows {
                let (panel, lane) = ((position + row) / PANEL, (position + row) % PANEL);
                let count = (PANEL - lane).min(rows - row);
                let part = keys.slice(s![row..row + count, columns.clone()]);
                let panel = &mut target[panel * size * PANEL..(panel + 1) * size * PANEL];
                for (column, target) in part.columns().into_iter().zip(panel.chunks_exact_mut(PANEL)) {
                    target[lane..].iter_mut().zip(column).for_each(|(target, key)| *target = *key);
                }
                row += count;
            }
            let length = value_panels * capacity * PANEL;
            let target = &mut value_heads[head * length..(head + 1) * length];
            for (row, values) in values.slice(s![.., columns]).rows().into_iter().enumerate() {
                for (panel, values) in values.to_slice().unwrap_or_default().chunks(PANEL).enumerate() {
                    let at = (panel * capacity + position + row) * PANEL;
                    target[at..at + values.len()].copy_from_slice(values);
                }
            }
        }
        Ok(())
    }

    /// Prefetches what a key and a value at `position` are written to: a line for each column, each far from the last.
    fn fetch_position(&self, position: usize) {
        for head in 0..self.heads {
            let keys = &self.key_panel(head, position / PANEL)[position % PANEL..];
            keys.iter().step_by(PANEL).for_each(|key| tile::fetch(key));
            for panel in 0..self.size.div_ceil(PANEL) {
                fetch_all(self.value_panel(head, panel, position..position + 1));
            }
        }
    }

    /// Panel of the keys of a head: `f32 [size, PANEL]`.
    fn key_panel(&self, head: usize, panel: usize) -> &[f32] {
        let length = self.size * PANEL;
        let at = (head * (self.capacity / PANEL) + panel) * length;
        &self.keys.floats()[at..at + length]
    }

    /// Prefetches what is read after the keys of a panel: the next panel, and the values at the positions of this one.
    fn fetch_ahead(&self, head: usize, panel: usize, end: usize) {
        let first = panel * PANEL;
        if first + PANEL < end {
            fetch_all(self.key_panel(head, panel + 1));
        }
        for part in 0..self.size.div_ceil(PANEL) {
            fetch_all(self.value_panel(head, part, first..end.min(first + PANEL)));
        }
    }

    /// Panel of the values of a head at some positions: `f32 [positions, PANEL]`.
    fn value_panel(&self, head: usize, panel: usize, positions: Range<usize>) -> &[f32] {
        let first = (head * self.size.div_ceil(PANEL) + panel) * self.capacity;
        &self.values.floats()[(first + positions.start) * PANEL..(first + positions.end) * PANEL]
    }
}

fn fetch_all(values: &[f32]) {
    values.iter().step_by(LANES).for_each(|line| tile::fetch(line));
}

/// How queries attend to a cache.
#[derive(Debug, Clone, Copy)]
pub struct Attention<'a> {
    /// Where it is computed.
    pub kernel: Kernel,
    /// Query heads: a multiple of the cache's heads. Query head h reads head `h / (heads / cache heads)`.
    pub heads: usize,
    /// What scores are multiplied with, positive: usually 1/√size.
    pub scale: f32,
    /// `c`: a scaled score becomes `c·tanh(score/c)`.
    pub softcap: Option<f32>,
    /// What is added to a score.
    pub bias: Bias<'a>,
}

/// What is added to the score of a query and a key, by head and distance.
#[derive(Debug, Clone, Copy, Default)]
pub enum Bias<'a> {
    /// Nothing.
    #[default]
    None,
    /// ALiBi: `−slope·(position of the query − position of the key)`, one slope for each query head.
    Slopes(&'a [f32]),
    /// `f32 [heads, 2·reach + 1]`, by `position of the key − position of the query` from −reach to reach; beyond, the
    /// value at the end.
    Distances(ArrayView2<'a, f32>),
}

/// One query row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    /// Its position.
    pub position: usize,
    /// The positions it sees.
    pub span: Range<usize>,
}

impl Attention<'_> {
    /// `out [rows, heads·size]` from `queries [rows, heads·size]`, of which `rows` tells the positions.
    ///
    /// The result does not depend on the number of threads.
    ///
    /// # Errors
    /// The reference's `Length` (slopes, distances) and `Shape` (queries, out; also for a span that is empty or leaves
    /// the cache); [`Error::NotRowMajor`].
    pub fn attend(
        &self,
        queries: ArrayView2<'_, f32>,
        cache: &KeyValues,
        rows: &[Query],
        mut out: ArrayViewMut2<'_, f32>,
    ) -> Result<(), Error> {
        let (heads, size) = (self.heads, cache.size);
        let expected = (rows.len(), heads * size);
        for (what, found) in [("queries", queries.dim()), ("attention output", out.dim())] {
            if found != expected || cache.heads == 0 || !heads.is_multiple_of(cache.heads) {
                return Err(CoreError::Shape { what, expected, found }.into());
            }
        }
        let (biases, what) = match self.bias {
            Bias::None => (heads, "bias"),
            Bias::Slopes(slopes) => (slopes.len(), "slopes"),
            Bias::Distances(table) if table.ncols() == 0 => (0, "distances"),
            Bias::Distances(table) => (table.nrows(), "distances"),
        };
        if biases != heads {
            return Err(CoreError::Length { what, expected: heads, found: biases }.into());
        }
        if let Some(Query { span, .. }) =
            rows.iter().find(|row| row.span.is_empty() || row.span.end > cache.capacity)
        {
            let (expected, found) = ((0, cache.capacity), (span.start, span.end));
            return Err(CoreError::Shape { what: "span of positions", expected, found }.into());
        }
        rows_of(queries, "queries")?;
        rows_of(out.view(), "attention output")?;
        if rows.is_empty() || size == 0 {
            return Ok(());
        }
        let work = 2 * heads * size * rows.iter().map(|row| row.span.len()).sum::<usize>();
        // One row reads the cache for itself alone, from memory.
        let serial = if rows.len() == 1 { SERIAL_WORK / 4 } else { SERIAL_WORK };
        let parallel = work >= serial && rayon::current_num_threads() > 1;
        let group = heads / cache.heads;
        const CONTIGUOUS: &str = "rows_of checked that rows are contiguous";
        if let [query] = rows {
            // The heads that share a cached head are the rows of a tile: its keys and values are read once.
            let shape = (heads, size);
            let row = queries.row(0);
            let queries = ArrayView2::from_shape(shape, row.to_slice().expect(CONTIGUOUS)).expect(CONTIGUOUS);
            let mut row = out.row_mut(0);
            let row = row.as_slice_mut().expect(CONTIGUOUS);
            let mut out = ArrayViewMut2::from_shape(shape, row).expect(CONTIGUOUS);
            let parts =
                queries.axis_chunks_iter(Axis(0), group).zip(out.axis_chunks_iter_mut(Axis(0), group));
            let blocks = parts.enumerate().map(|(head, (queries, out))| {
                let rows = (head * group..(head + 1) * group).map(|head| (head, query)).collect();
                Block { attention: self, cache, head, queries, rows, out }
            });
            self.run(blocks.collect(), parallel);
            return Ok(());
        }
        let mut blocks = Vec::new();
        for (chunk, mut rest) in out.axis_chunks_iter_mut(Axis(0), TASK_ROWS).enumerate() {
            let span = chunk * TASK_ROWS..chunk * TASK_ROWS + rest.nrows();
            for head in 0..heads {
                let (out, others) = rest.split_at(Axis(1), size);
                rest = others;
                let rows = rows[span.clone()].iter().map(|row| (head, row)).collect();
                let queries = queries.slice(s![span.clone(), head * size..(head + 1) * size]);
                blocks.push(Block { attention: self, cache, head: head / group, queries, rows, out });
            }
        }
        self.run(blocks, parallel);
        Ok(())
    }

    fn run(&self, blocks: Vec<Block<'_, '_>>, parallel: bool) {
        let task = |scores: &mut Vec<f32>, block: Block<'_, '_>| self.kernel.dispatch(Job { block, scores });
        if parallel {
            blocks.into_par_iter().for_each_init(Vec::new, task);
        } else {
            let mut scores = Vec::new();
            blocks.into_iter().for_each(|block| task(&mut scores, block));
        }
    }
}

/// Some query rows that read the same head of the cache.
struct Block<'a, 'b> {
    attention: &'a Attention<'b>,
    cache: &'a KeyValues,
    head: usize,
    queries: ArrayView2<'a, f32>,
    /// For each row its query head.
    rows: Vec<(usize, &'a Query)>,
    out: ArrayViewMut2<'a, f32>,
}

impl Block<'_, '_> {
    /// The rows of one tile. `scores` is scratch.
    fn tile<K: TileKernel>(&mut self, tile: K, tile_rows: Range<usize>, scores: &mut Vec<f32>) {
        let (cache, head) = (self.cache, self.head);
        let rows = &self.rows[tile_rows.clone()];
        let begin = rows.iter().map(|(_, row)| row.span.start).min().unwrap_or(0);
        let end = rows.iter().map(|(_, row)| row.span.end).max().unwrap_or(0);
        // Scores begin at a panel of keys. The rows lie one cache line more apart than they are long: with a power of
        // two they would share sets of the cache.
        let origin = begin / PANEL * PANEL;
        let stride = (end - origin).next_multiple_of(PANEL) + LANES;
        scores.resize(rows.len() * stride, 0.0);
        let mut sums = Tile([[0.0; PANEL]; MAX_ROWS]);
        // Nobody else reads what a single tile reads: it comes from memory, in many short stretches.
        let ahead = self.rows.len() <= K::ROWS;

        let queries = self.queries.slice(s![tile_rows.clone(), ..]);
        for panel in origin / PANEL..end.div_ceil(PANEL) {
            if ahead {
                cache.fetch_ahead(head, panel, end);
            }
            let operands = OuterOperands {
                x: queries.as_ptr(),
                ldx: queries.strides()[0].unsigned_abs(),
                rows: rows.len(),
                w: cache.key_panel(head, panel).as_ptr(),
                count: cache.size,
            };
            // SAFETY: line 5: `size` contiguous values in each row of the view, whose strides are not negative; line
            // 6: a panel of `size` vectors in a line-aligned buffer, and tiles have 1 to ROWS rows.
            unsafe { tile.outer(operands, &mut sums) };
            for (row, sums) in scores.chunks_exact_mut(stride).zip(&sums.0).take(rows.len()) {
                row[panel * PANEL - origin..][..PANEL].copy_from_slice(sums);
            }
        }
        let mut inverse = [0.0; MAX_ROWS];
        for (((head, row), scores), inverse) in
            rows.iter().zip(scores.chunks_exact_mut(stride)).zip(&mut inverse)
        {
            let (first, last) = (row.span.start - origin, row.span.end - origin);
            scores[begin - origin..first].fill(0.0);
            scores[last..end - origin].fill(0.0);
            let Attention { scale, softcap, bias, .. } = *self.attention;
            let (slope, distances) = match bias {
                Bias::None => (0.0, Vec::new()),
                Bias::Slopes(slopes) => (slopes[*head], Vec::new()),
                Bias::Distances(table) => (0.0, by_position(table.row(*head), row)),
            };
            let first_distance = convert::real(row.span.start) - convert::real(row.position);
            let scores = &mut scores[first..last];
            *inverse = 1.0
                / tile.vectorize(Exponentials {
                    scores,
                    scale,
                    softcap,
                    slope,
                    first_distance,
                    distances: &distances,
                });
        }
        for panel in 0..cache.size.div_ceil(PANEL) {
            let operands = OuterOperands {
                x: scores[begin - origin..].as_ptr(),
                ldx: stride,
                rows: rows.len(),
                w: cache.value_panel(head, panel, begin..end).as_ptr(),
                count: end - begin,
            };
            // SAFETY: line 5: a row of `stride` scores for each row; line 6: a panel of end − begin vectors in a
            // line-aligned buffer, and tiles have 1 to ROWS rows.
            unsafe { tile.outer(operands, &mut sums) };
            let columns = panel * PANEL..cache.size.min((panel + 1) * PANEL);
            let mut out = self.out.slice_mut(s![tile_rows.clone(), columns]);
            for ((mut out, sums), inverse) in out.rows_mut().into_iter().zip(&sums.0).zip(inverse) {
                out.iter_mut().zip(sums).for_each(|(out, sum)| *out = sum * inverse);
            }
        }
    }
}

struct Job<'a, 'b, 's> {
    block: Block<'a, 'b>,
    scores: &'s mut Vec<f32>,
}

impl Dispatch for Job<'_, '_, '_> {
    type Output = ();

    fn run<K: TileKernel>(self, tile: K) {
        let Self { mut block, scores } = self;
        let count = block.rows.len();
        for first in (0..count).step_by(K::ROWS) {
            block.tile(tile, first..count.min(first + K::ROWS), scores);
        }
    }
}

/// The biases of a row's span.
fn by_position(table: ArrayView1<'_, f32>, row: &Query) -> Vec<f32> {
    // The middle of the table is distance 0.
    let (middle, last) = (table.len() / 2, table.len() - 1);
    row.span
        .clone()
        .map(|position| table[(middle + position).saturating_sub(row.position).min(last)])
        .collect()
}

/// `score = exp(t − max t)` with `t = cap(scale·score) + slope·(position of the key − that of the query) + distances`;
/// returns the sum.
struct Exponentials<'a> {
    scores: &'a mut [f32],
    scale: f32,
    softcap: Option<f32>,
    slope: f32,
    first_distance: f32,
    /// One for each score, or nothing.
    distances: &'a [f32],
}

impl Exponentials<'_> {
    /// `t` of the vector that begins at `index`.
    #[inline(always)]
    fn shifted<I: Instructions>(&self, simd: I, scores: &[f32; LANES], index: usize) -> I::Floats {
        const LANE: [f32; LANES] =
            [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0];
        let mut score = simd.multiply(simd.load(scores), simd.splat(self.scale));
        if let Some(cap) = self.softcap {
            let ratio = simd.divide(score, simd.splat(cap));
            score = simd.multiply(tanh(simd, ratio), simd.splat(cap));
        }
        if self.slope != 0.0 {
            let first = self.first_distance + convert::real(index);
            let distance = simd.add(simd.load(&LANE), simd.splat(first));
            score = simd.multiply_add(distance, simd.splat(self.slope), score);
        }
        match self.distances.get(index..) {
            Some(distances) if !distances.is_empty() => {
                let count = distances.len().min(LANES);
                simd.add(score, simd.load(&padded(&distances[..count], 0.0)))
            }
            _ => score,
        }
    }
}

impl Vectorized for Exponentials<'_> {
    type Output = f32;

    #[inline(always)]
    fn call<I: Instructions>(self, simd: I) -> f32 {
        // A NaN score may leave any maximum; the sum of the exponentials is NaN all the same.
        let mut largest = simd.splat(f32::NEG_INFINITY);
        let (vectors, rest) = self.scores.as_chunks::<LANES>();
        let (count, rest_length) = (vectors.len(), rest.len());
        for (i, scores) in vectors.iter().enumerate() {
            largest = simd.maximum(largest, self.shifted(simd, scores, i * LANES));
        }
        let last = self.shifted(simd, &padded(rest, 0.0), count * LANES);
        let (mut lanes, mut last_lanes) = ([0.0; LANES], [0.0; LANES]);
        simd.store(largest, &mut lanes);
        simd.store(last, &mut last_lanes);
        let largest =
            lanes.iter().chain(&last_lanes[..rest_length]).fold(f32::NEG_INFINITY, |a, b| a.max(*b));

        let shift = simd.splat(-largest);
        let mut sum = simd.splat(0.0);
        for i in 0..count {
            let scores = &self.scores.as_chunks::<LANES>().0[i];
            let power = exp(simd, simd.add(self.shifted(simd, scores, i * LANES), shift));
            sum = simd.add(sum, power);
            simd.store(power, &mut self.scores.as_chunks_mut::<LANES>().0[i]);
        }
        simd.store(exp(simd, simd.add(last, shift)), &mut last_lanes);
        last_lanes[rest_length..].fill(0.0);
        self.scores[count * LANES..].copy_from_slice(&last_lanes[..rest_length]);
        add_lanes(simd, simd.add(sum, simd.load(&last_lanes)))
    }
}

#[cfg(test)]
mod tests {
    use int8_core::corpus::Random;
    use ndarray::Array2;

    use super::*;

    /// What a case adds to its scores.
    enum Added {
        Nothing,
        Slopes(Vec<f32>),
        Distances(Array2<f32>),
    }

    struct Case {
        heads: usize,
        kv_heads: usize,
        size: usize,
        softcap: Option<f32>,
        added: Added,
        rows: Vec<Query>,
    }

    impl Case {
        fn new((heads, kv_heads, size): (usize, usize, usize), added: Added, rows: Vec<Query>) -> Self {
            Self { heads, kv_heads, size, softcap: None, added, rows }
        }

        fn bias(&self) -> Bias<'_> {
            match &self.added {
                Added::Nothing => Bias::None,
                Added::Slopes(slopes) => Bias::Slopes(slopes),
                Added::Distances(table) => Bias::Distances(table.view()),
            }
        }

        /// By the formula, in f64.
        fn expected(&self, scale: f32, q: &Array2<f32>, k: &Array2<f32>, v: &Array2<f32>) -> Array2<f64> {
            let size = self.size;
            let mut out = Array2::zeros(q.raw_dim());
            for (m, Query { position, span }) in self.rows.iter().enumerate() {
                for head in 0..self.heads {
                    let kv = head / (self.heads / self.kv_heads) * size;
                    let score = |p: usize| {
                        let dot: f64 = (0..size)
                            .map(|d| f64::from(q[[m, head * size + d]]) * f64::from(k[[p, kv + d]]))
                            .sum();
                        let scaled = f64::from(scale) * dot;
                        let capped = self
                            .softcap
                            .map_or(scaled, |cap| f64::from(cap) * (scaled / f64::from(cap)).tanh());
                        capped
                            + match &self.added {
                                Added::Nothing => 0.0,
                                Added::Slopes(slopes) => {
                                    -f64::from(slopes[head]) * convert::count(position - p)
                                }
                                Added::Distances(table) => {
                                    let reach = table.ncols() / 2;
                                    let index = (p + reach).max(*position) - position;
                                    f64::from(table[[head, index.min(2 * reach)]])
                                }
                            }
                    };
                    let weights: Vec<f64> = span.clone().map(|p| score(p).exp()).collect();
                    let sum: f64 = weights.iter().sum();
                    for d in 0..size {
                        let products =
                            span.clone().zip(&weights).map(|(p, weight)| weight * f64::from(v[[p, kv + d]]));
                        out[[m, head * size + d]] = products.sum::<f64>() / sum;
                    }
                }
            }
            out
        }
    }

    #[test]
    fn attention_is_its_formula() {
        let mut random = Random::new(21);
        let causal = |first: usize, rows: usize, window: usize| -> Vec<Query> {
            let span = |last: usize| (last + 1).saturating_sub(window)..last + 1;
            (first..first + rows).map(|position| Query { position, span: span(position) }).collect()
        };
        let full = |rows: usize, length: usize| -> Vec<Query> {
            (0..rows).map(|position| Query { position, span: 0..length }).collect()
        };
        let all = usize::MAX;
        let slopes = || Added::Slopes(vec![0.5, 0.25, 0.125, 0.0625]);
        let cases = [
            Case::new((4, 4, 8), Added::Nothing, causal(0, 70, all)),
            Case::new((4, 2, 33), Added::Nothing, causal(5, 50, 7)),
            Case::new((4, 1, 64), slopes(), causal(40, 49, all)),
            Case::new((4, 2, 80), slopes(), causal(90, 1, all)),
            Case::new((6, 2, 5), Added::Nothing, causal(0, 1, all)),
            Case::new((2, 2, 16), Added::Nothing, full(60, 60)),
            Case::new((6, 2, 16), Added::Nothing, causal(63, 1, 40)),
            Case::new((2, 2, 16), Added::Distances(random.matrix(2, 21, 1.0)), full(50, 50)),
            Case::new((2, 1, 16), Added::Distances(random.matrix(2, 21, 1.0)), causal(33, 1, all)),
            Case { softcap: Some(0.7), ..Case::new((2, 2, 16), Added::Nothing, causal(0, 30, all)) },
            Case { softcap: Some(0.7), ..Case::new((4, 2, 16), slopes(), causal(9, 30, all)) },
        ];
        for case in &cases {
            let length = case.rows.iter().map(|row| row.span.end).max().expect("rows");
            let q = random.matrix(case.rows.len(), case.heads * case.size, 1.0);
            let k = random.matrix(length, case.kv_heads * case.size, 1.0);
            let v = random.matrix(length, case.kv_heads * case.size, 1.0);
            let scale = 1.0 / convert::real(case.size).sqrt();
            let mut cache = KeyValues::new(case.kv_heads, case.size, length + 3);
            // In two parts, at a place that is no panel's edge.
            let cut = length / 3;
            for part in [0..cut, cut..length] {
                let (k, v) = (k.slice(s![part.clone(), ..]), v.slice(s![part.clone(), ..]));
                cache.write(part.start, k, v).expect("it fits");
            }
            let expected = case.expected(scale, &q, &k, &v);
            for kernel in Kernel::available() {
                let attention =
                    Attention { kernel, heads: case.heads, scale, softcap: case.softcap, bias: case.bias() };
                let mut out = Array2::from_elem(q.raw_dim(), f32::NAN);
                attention.attend(q.view(), &cache, &case.rows, out.view_mut()).expect("valid operands");
                for (found, expected) in out.iter().zip(&expected) {
                    let error = (f64::from(*found) - expected).abs();
                    assert!(error < 2e-6, "{kernel} size {}: {found}, {expected}", case.size);
                }
            }
        }
    }

    #[test]
    fn a_nan_is_not_lost() {
        let ones = Array2::<f32>::ones((20, 4));
        for at in [0, 10, 19] {
            for kernel in Kernel::available() {
                let mut keys = ones.clone();
                keys[[at, 1]] = f32::NAN;
                let mut cache = KeyValues::new(1, 4, 20);
                cache.write(0, keys.view(), ones.view()).expect("it fits");
                for softcap in [None, Some(3.0)] {
                    let attention = Attention { kernel, heads: 1, scale: 0.5, softcap, bias: Bias::None };
                    let mut out = Array2::zeros((1, 4));
                    let row = Query { position: 19, span: 0..20 };
                    let queries = ones.slice(s![..1, ..]);
                    attention.attend(queries, &cache, &[row], out.view_mut()).expect("valid operands");
                    assert!(out.iter().all(|value| value.is_nan()), "{kernel} {at}: {out}");
                }
            }
        }
    }

    #[test]
    fn operands_that_do_not_fit_are_refused() {
        let mut cache = KeyValues::new(2, 4, 10);
        assert_eq!(cache.capacity(), PANEL);
        let zeros = |rows: usize, columns: usize| Array2::<f32>::zeros((rows, columns));
        let mut write = |position, keys: (usize, usize), values: (usize, usize)| {
            cache.write(position, zeros(keys.0, keys.1).view(), zeros(values.0, values.1).view())
        };
        assert!(write(PANEL - 3, (3, 8), (3, 8)).is_ok());
        assert!(write(PANEL - 2, (3, 8), (3, 8)).is_err());
        assert!(write(usize::MAX, (1, 8), (1, 8)).is_err());
        assert!(write(0, (3, 8), (2, 8)).is_err());
        assert!(write(0, (3, 7), (3, 8)).is_err());
        let attend =
            |heads: usize, bias: Bias<'_>, columns: usize, span: Range<usize>, out: (usize, usize)| {
                let attention = Attention { kernel: Kernel::best(), heads, scale: 1.0, softcap: None, bias };
                let row = Query { position: 0, span };
                attention.attend(zeros(1, columns).view(), &cache, &[row], zeros(out.0, out.1).view_mut())
            };
        let table = zeros(4, 0);
        assert!(attend(4, Bias::None, 16, 0..1, (1, 16)).is_ok());
        assert!(attend(3, Bias::None, 12, 0..1, (1, 12)).is_err());
        assert!(attend(4, Bias::Slopes(&[0.0; 3]), 16, 0..1, (1, 16)).is_err());
        assert!(attend(4, Bias::Distances(table.view()), 16, 0..1, (1, 16)).is_err());
        assert!(attend(4, Bias::None, 15, 0..1, (1, 16)).is_err());
        assert!(attend(4, Bias::None, 16, 0..1, (2, 16)).is_err());
        assert!(attend(4, Bias::None, 16, 3..3, (1, 16)).is_err());
        assert!(attend(4, Bias::None, 16, 0..PANEL + 1, (1, 16)).is_err());
    }
}
