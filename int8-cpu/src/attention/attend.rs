//! Attention over a paged KV cache that is laid out as the tiles read it.
//!
//! ```text
//! out[m] = Σ_p softmax_p(cap(scale·q[m]·k[p]) + bias(m, p))·v[p],   p in the span of row m
//! ```
//!
//! Keys and values are written in panels once, so that nothing is packed per call: scores come from the tile that multiplies
//! outliers (`f32 [rows, size] × [size, 32]`), and the product with the values is its like over positions in several pages. With
//! a cache of bf16 and AMX tiles, `tiles` does both.

use std::ops::Range;

use half::{bf16, f16};
use int8_core::{Error as CoreError, KvType};
use ndarray::{ArrayView2, ArrayViewMut2, Axis, s};

use super::kv_pages::{KvSequence, PAGE_POSITIONS, Panels, low_and_high};
use super::query::{Attention, Bias, Query, Terms};
#[cfg(target_arch = "x86_64")]
use super::tiles;
use crate::error::Error;
use crate::gemm::dispatch::DispatchGemm;
use crate::gemm::microkernel::Microkernel;
use crate::gemm::operands::{OuterOperands, Tile};
use crate::layout::{MAX_MR, NR};
use crate::matrix::rows_of;
use crate::pool;
use crate::prefetch;
use crate::simd::functions::{add_lanes, exp, largest_lane, padded};
use crate::simd::{Instructions, LANES, Lane, Vectorized};

/// Query rows of a task: four tiles of twelve. Their scores against 1024 positions take 192 KiB.
const TASK_ROWS: usize = 48;

impl Attention<'_> {
    /// `out [rows, heads·size]` from `queries [rows, heads·size]`, both f32 row-major, whose positions are `rows`.
    ///
    /// Products and sums are f32; on AMX tiles and a cache of bf16, queries and softmax weights are rounded to bf16 as its keys and
    /// values were, and sums are f32.
    ///
    /// A row's result depends on the keys and values of its span alone, whatever the pages hold beside them, and neither on other
    /// rows nor on the number of threads.
    ///
    /// # Errors
    /// The reference's `Length` (slopes, distances, sinks) and `Shape` (queries, out; also for a span that is empty or exceeds
    /// the table's pages); [`Error::NotRowMajor`].
    ///
    /// # Panics
    /// When the table lists a page that does not exist for a position between the first and the last that a row sees.
    pub fn attend(
        &self,
        queries: ArrayView2<'_, f32>,
        cache: &KvSequence<'_>,
        rows: &[Query],
        out: ArrayViewMut2<'_, f32>,
    ) -> Result<(), Error> {
        let ((cached_heads, size), capacity) = (cache.dim(), cache.capacity());
        let heads = self.heads;
        let expected = (rows.len(), heads * size);
        for (what, found) in [("queries", queries.dim()), ("attention output", out.dim())] {
            if found != expected || cached_heads == 0 || !heads.is_multiple_of(cached_heads) {
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
        if let Some(found) = self.sinks.map(<[f32]>::len).filter(|found| *found != heads) {
            return Err(CoreError::Length { what: "sinks", expected: heads, found }.into());
        }
        if let Some(Query { span, .. }) =
            rows.iter().find(|row| row.span.is_empty() || row.span.end > capacity)
        {
            let (expected, found) = ((0, capacity), (span.start, span.end));
            return Err(CoreError::Shape { what: "span of positions", expected, found }.into());
        }
        rows_of(queries, "queries")?;
        rows_of(out.view(), "attention output")?;
        if rows.is_empty() || size == 0 {
            return Ok(());
        }
        let first = rows.iter().map(|row| row.span.start).min().unwrap_or(0);
        let last = rows.iter().map(|row| row.span.end).max().unwrap_or(0);
        let positions = first..last;
        match cache.element() {
            KvType::F32 => self.attend_to(queries, cache.dim(), &cache.panels::<f32>(&positions), rows, out),
            KvType::F16 => self.attend_to(queries, cache.dim(), &cache.panels::<f16>(&positions), rows, out),
            KvType::Int8 => self.attend_to(queries, cache.dim(), &cache.panels::<i8>(&positions), rows, out),
            KvType::Bf16 => {
                #[cfg(target_arch = "x86_64")]
                if let Some(tiles) = self.kernel.bf16_tiles() {
                    tiles::attend(tiles, self, queries, cache.dim(), &cache.panels(&positions), rows, out);
                    return Ok(());
                }
                self.attend_to(queries, cache.dim(), &cache.panels::<bf16>(&positions), rows, out)
            }
        }
        Ok(())
    }

    /// [`attend`](Self::attend) with operands that fit.
    fn attend_to<W: Lane>(
        &self,
        queries: ArrayView2<'_, f32>,
        (cached_heads, size): (usize, usize),
        cache: &Panels<'_, W>,
        rows: &[Query],
        mut out: ArrayViewMut2<'_, f32>,
    ) {
        let heads = self.heads;
        let parallel = self.is_parallel(size, rows);
        let group = heads / cached_heads;
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
                Block { attention: self, cache, head, size, queries, rows, out }
            });
            return self.run(blocks.collect(), parallel);
        }
        let mut blocks = Vec::new();
        for (chunk, mut rest) in out.axis_chunks_iter_mut(Axis(0), TASK_ROWS).enumerate() {
            let span = chunk * TASK_ROWS..chunk * TASK_ROWS + rest.nrows();
            for head in 0..heads {
                let (out, others) = rest.split_at(Axis(1), size);
                rest = others;
                let rows = rows[span.clone()].iter().map(|row| (head, row)).collect();
                let queries = queries.slice(s![span.clone(), head * size..(head + 1) * size]);
                blocks.push(Block { attention: self, cache, head: head / group, size, queries, rows, out });
            }
        }
        self.run(blocks, parallel);
    }

    fn run<W: Lane>(&self, blocks: Vec<Block<'_, '_, W>>, parallel: bool) {
        let task =
            |scores: &mut Vec<f32>, block: Block<'_, '_, W>| self.kernel.dispatch_gemm(Job { block, scores });
        if parallel {
            pool::for_each(blocks, Vec::new, task);
        } else {
            let mut scores = Vec::new();
            blocks.into_iter().for_each(|block| task(&mut scores, block));
        }
    }
}

/// Some query rows that read the same head of the cache.
struct Block<'a, 'b, W> {
    attention: &'a Attention<'b>,
    cache: &'a Panels<'a, W>,
    /// The KV head, and its size.
    head: usize,
    size: usize,
    queries: ArrayView2<'a, f32>,
    /// For each row its query head.
    rows: Vec<(usize, &'a Query)>,
    out: ArrayViewMut2<'a, f32>,
}

impl<W: Lane> Block<'_, '_, W> {
    /// The rows of one tile. `scores` is scratch.
    fn tile<K: Microkernel>(&mut self, tile: K, tile_rows: Range<usize>, scores: &mut Vec<f32>) {
        let (cache, head, size) = (self.cache, self.head, self.size);
        let rows = &self.rows[tile_rows.clone()];
        let begin = rows.iter().map(|(_, row)| row.span.start).min().unwrap_or(0);
        let end = rows.iter().map(|(_, row)| row.span.end).max().unwrap_or(0);
        // Scores begin at a panel of keys. The rows lie one cache line more apart than they are long: with a power of
        // two they would share sets of the cache.
        let origin = begin / NR * NR;
        let stride = (end - origin).next_multiple_of(NR) + LANES;
        scores.resize(rows.len() * stride, 0.0);
        let mut sums = Tile([[0.0; NR]; MAX_MR]);
        // A single tile is the only reader: keys and values come from memory. Their beginnings are prefetched here, those
        // of later pages below, and the rest while what lies before it is read.
        let streamed = self.rows.len() <= K::MR;
        if streamed {
            cache.prefetch_keys(head, begin);
            cache.prefetch_values(head, begin..end);
        }

        let queries = self.queries.slice(s![tile_rows.clone(), ..]);
        for panel in origin / NR..end.div_ceil(NR) {
            let next = (panel + 1) * NR;
            if streamed && next < end && next.is_multiple_of(PAGE_POSITIONS) {
                cache.prefetch_keys(head, next);
            }
            let operands = OuterOperands {
                x: queries.as_ptr(),
                ldx: queries.strides()[0].unsigned_abs(),
                rows: rows.len(),
                w: cache.key_panel(head, panel).as_ptr(),
                count: size,
                streamed,
            };
            // SAFETY: line 5: `size` contiguous values in each row of the view, whose strides are not negative; line
            // 6: a panel of `size` vectors in a line-aligned buffer, and tiles have 1 to ROWS rows.
            unsafe { tile.outer(operands, &mut sums) };
            for (row, sums) in scores.chunks_exact_mut(stride).zip(&sums.0).take(rows.len()) {
                row[panel * NR - origin..][..NR].copy_from_slice(sums);
            }
        }
        let mut inverse = [0.0; MAX_MR];
        for (((head, row), scores), inverse) in
            rows.iter().zip(scores.chunks_exact_mut(stride)).zip(&mut inverse)
        {
            let (first, last) = (row.span.start - origin, row.span.end - origin);
            scores[begin - origin..first].fill(0.0);
            scores[last..end - origin].fill(0.0);
            cache.scale_by_keys(self.head, row.span.start, &mut scores[first..last]);
            let exponentials = Exponentials {
                scores: &mut scores[first..last],
                terms: Terms::new(self.attention, *head, row.position, row.span.clone()),
                sink: self.attention.sink(*head),
            };
            *inverse = 1.0 / tile.vectorize(exponentials);
            cache.scale_by_values(self.head, row.span.start, &mut scores[first..last]);
        }
        for panel in 0..size.div_ceil(NR) {
            let product = WeightedValues {
                cache,
                head,
                panel,
                rows,
                weights: scores,
                stride,
                origin,
                streamed,
                sums: &mut sums.0,
            };
            if K::MR < ROWS_IN_REGISTERS {
                tile.vectorize(ByRows::<_, 2>(product));
            } else {
                tile.vectorize(ByRows::<_, ROWS_IN_REGISTERS>(product));
            }
            let columns = panel * NR..size.min((panel + 1) * NR);
            let mut out = self.out.slice_mut(s![tile_rows.clone(), columns]);
            for ((mut out, sums), inverse) in out.rows_mut().into_iter().zip(&sums.0).zip(inverse) {
                out.iter_mut().zip(sums).for_each(|(out, sum)| *out = sum * inverse);
            }
        }
    }
}

/// Rows of a product with values whose sums stay in registers: 12 × 2 of the 32 registers of 512 bits, as in the tile of
/// `avx512-vnni`. Kernels with smaller tiles have 16 registers of 256 bits, which hold two rows.
const ROWS_IN_REGISTERS: usize = 12;

/// `sums[r][d] = Σ_p weights[r][p]·v[p, d]` of one panel of values, p over the span of row r, added in the order of p, starting from 0.
///
/// Weights are 0 at other positions, whose values may be NaN.
struct WeightedValues<'a, W> {
    cache: &'a Panels<'a, W>,
    head: usize,
    /// Of the values.
    panel: usize,
    rows: &'a [(usize, &'a Query)],
    /// f32 `[rows, stride]`; column 0 is position `origin`.
    weights: &'a [f32],
    stride: usize,
    origin: usize,
    /// No other tile reads the values: they come from memory.
    streamed: bool,
    sums: &'a mut [[f32; NR]],
}

/// A product, up to MOST rows at once.
struct ByRows<T, const MOST: usize>(T);

impl<W: Lane, const MOST: usize> Vectorized for ByRows<WeightedValues<'_, W>, MOST> {
    type Output = ();

    #[inline(always)]
    fn call<I: Instructions>(self, simd: I) {
        let Self(mut product) = self;
        let count = product.rows.len();
        product.sums[..count].fill([0.0; NR]);
        for first in (0..count).step_by(MOST) {
            let rows = first..count.min(first + MOST);
            let spans = product.rows[rows.clone()].iter().map(|(_, row)| &row.span);
            let begin = spans.clone().map(|span| span.start).min().unwrap_or(0);
            let end = spans.clone().map(|span| span.end).max().unwrap_or(0);
            // From the last begin to the first end, all of these rows see all positions.
            let last_begin = spans.clone().map(|span| span.start).max().unwrap_or(0);
            let first_end = spans.map(|span| span.end).min().unwrap_or(0).max(last_begin);
            if product.are_finite(simd, begin..last_begin) && product.are_finite(simd, first_end..end) {
                // Together: weights are 0 outside a row's span. A kernel with fewer registers is compiled with the first
                // branch alone.
                if MOST == 2 {
                    match rows.len() {
                        1 => product.add::<I, 1>(simd, first, begin..end),
                        _ => product.add::<I, 2>(simd, first, begin..end),
                    }
                } else {
                    match rows.len() {
                        1 => product.add::<I, 1>(simd, first, begin..end),
                        2 => product.add::<I, 2>(simd, first, begin..end),
                        3 => product.add::<I, 3>(simd, first, begin..end),
                        4 => product.add::<I, 4>(simd, first, begin..end),
                        5 => product.add::<I, 5>(simd, first, begin..end),
                        6 => product.add::<I, 6>(simd, first, begin..end),
                        7 => product.add::<I, 7>(simd, first, begin..end),
                        8 => product.add::<I, 8>(simd, first, begin..end),
                        9 => product.add::<I, 9>(simd, first, begin..end),
                        10 => product.add::<I, 10>(simd, first, begin..end),
                        11 => product.add::<I, 11>(simd, first, begin..end),
                        _ => product.add::<I, ROWS_IN_REGISTERS>(simd, first, begin..end),
                    }
                }
            } else {
                // 0·NaN is NaN: each row reads its own span alone.
                for row in rows {
                    let span = product.rows[row].1.span.clone();
                    product.add::<I, 1>(simd, row, span);
                }
            }
        }
    }
}

impl<W: Lane> WeightedValues<'_, W> {
    /// Whether `Σ 0·v` is 0, and so all values at these positions finite.
    #[inline(always)]
    fn are_finite<I: Instructions>(&self, simd: I, positions: Range<usize>) -> bool {
        if positions.is_empty() {
            return true;
        }
        let zero = simd.splat(0.0);
        let mut sum = zero;
        let mut position = positions.start;
        while position < positions.end {
            let count = (PAGE_POSITIONS - position % PAGE_POSITIONS).min(positions.end - position);
            let values = self.cache.value_panel(self.head, self.panel, position..position + count);
            for values in values.as_chunks::<LANES>().0 {
                sum = simd.multiply_add(W::load(simd, values), zero, sum);
            }
            position += count;
        }
        let mut lanes = [0.0; LANES];
        simd.store(sum, &mut lanes);
        lanes.iter().all(|lane| *lane == 0.0)
    }

    /// Adds positions to the sums of R rows.
    #[inline(always)]
    fn add<I: Instructions, const R: usize>(&mut self, simd: I, first: usize, positions: Range<usize>) {
        if positions.is_empty() {
            return;
        }
        // Up to here, so that every load below lies in the slice.
        let weights = &self.weights[first * self.stride..(first + R) * self.stride];
        let rows = &mut self.sums[first..first + R];
        let mut sums: [[I::Floats; 2]; R] = std::array::from_fn(|r| {
            let [left, right] = low_and_high(&rows[r]);
            [simd.load(left), simd.load(right)]
        });
        // What is prefetched lies so many positions ahead: as a multiple of 32, on one page for 32 positions.
        let ahead = prefetch::stream_distance() / size_of::<[W; NR]>();
        let together = if self.streamed { NR } else { PAGE_POSITIONS };
        let mut position = positions.start;
        while position < positions.end {
            let count = (together - position % together).min(positions.end - position);
            let values = self.cache.value_panel(self.head, self.panel, position..position + count);
            let next = match position + ahead {
                next if next < positions.end => next,
                _ => position,
            };
            let next = self.cache.value_panel(self.head, self.panel, next..next).as_ptr();
            let at = position - self.origin;
            assert!(at + count <= self.stride, "scores have a column for each position");
            for (o, values) in values.as_chunks::<NR>().0.iter().enumerate() {
                if self.streamed {
                    let next = next.wrapping_add(o * NR);
                    prefetch::prefetch(next);
                    prefetch::prefetch(next.wrapping_add(NR - 1));
                }
                let [left, right] = low_and_high(values);
                let values = [W::load(simd, left), W::load(simd, right)];
                for (r, sums) in sums.iter_mut().enumerate() {
                    // SAFETY: r < R and at + o < at + count ≤ stride, in a slice of R·stride.
                    let weight = simd.splat(unsafe { *weights.get_unchecked(r * self.stride + at + o) });
                    sums[0] = simd.multiply_add(weight, values[0], sums[0]);
                    sums[1] = simd.multiply_add(weight, values[1], sums[1]);
                }
            }
            position += count;
        }
        for (row, sums) in rows.iter_mut().zip(sums) {
            let (vectors, _) = row.as_chunks_mut::<LANES>();
            vectors.iter_mut().zip(sums).for_each(|(vector, sum)| simd.store(sum, vector));
        }
    }
}

struct Job<'a, 'b, 's, W> {
    block: Block<'a, 'b, W>,
    scores: &'s mut Vec<f32>,
}

impl<W: Lane> DispatchGemm for Job<'_, '_, '_, W> {
    type Output = ();

    fn run<K: Microkernel>(self, tile: K) {
        let Self { mut block, scores } = self;
        let count = block.rows.len();
        for first in (0..count).step_by(K::MR) {
            block.tile(tile, first..count.min(first + K::MR), scores);
        }
    }
}

/// `score = exp(t − max t)`; returns the sum.
struct Exponentials<'a> {
    scores: &'a mut [f32],
    terms: Terms,
    /// A score without a value: its exponential is part of the sum. −∞ for none.
    sink: f32,
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
            largest = simd.maximum(largest, self.terms.of(simd, scores, i * LANES));
        }
        let last = self.terms.of(simd, &padded(rest, 0.0), count * LANES);
        let mut last_lanes = [0.0; LANES];
        simd.store(last, &mut last_lanes);
        last_lanes[rest_length..].fill(f32::NEG_INFINITY);
        let largest = largest_lane(simd, simd.maximum(largest, simd.load(&last_lanes))).max(self.sink);

        let shift = simd.splat(-largest);
        let mut sum = simd.splat(0.0);
        for i in 0..count {
            let scores = &self.scores.as_chunks::<LANES>().0[i];
            let power = exp(simd, simd.add(self.terms.of(simd, scores, i * LANES), shift));
            sum = simd.add(sum, power);
            simd.store(power, &mut self.scores.as_chunks_mut::<LANES>().0[i]);
        }
        simd.store(exp(simd, simd.add(last, shift)), &mut last_lanes);
        last_lanes[rest_length..].fill(0.0);
        self.scores[count * LANES..].copy_from_slice(&last_lanes[..rest_length]);
        let sum = add_lanes(simd, simd.add(sum, simd.load(&last_lanes)));
        if self.sink == f32::NEG_INFINITY { sum } else { sum + (self.sink - largest).exp() }
    }
}

#[cfg(test)]
mod tests;
