//! Attention to a cache of bf16 on tiles: queries and softmax weights are rounded to bf16, sums and softmax are f32.
//!
//! ```text
//! for each block of KEYS positions:
//!     s = q·kᵀ                               on tiles
//!     m' = max(m, max s);  p = bf16(exp(s − m'))
//!     l = l·exp(m − m') + Σ p;  o = o·exp(m − m') + p·v     the product on tiles
//! out = o/l
//! ```
//!
//! Blocks begin at multiples of KEYS, whatever a row sees of them. What a row does not see has weight 0, and adding 0 changes no
//! sum: a row's bits depend neither on the rows beside it nor on where a task begins. The few rows of a decode step are multiplied
//! without tiles, which would want keys and values interleaved first, by the same operations in the same order (but for numbers
//! below 1.2·10⁻³⁸, which tiles take for 0).

use std::cell::RefCell;
use std::f32::consts::LOG2_E;
use std::ops::Range;

use half::bf16;
use ndarray::{ArrayView2, ArrayViewMut2, Axis, s};

use super::kv_pages::{PAGE_POSITIONS, Panels, low_and_high};
use super::query::{Attention, Query, Terms};
use crate::gemm::bf16::{Bf16Product, Fragment, STEP};
use crate::gemm::float::widen;
use crate::gemm::operands::Tile;
use crate::layout::{MAX_MR, NR};
use crate::pool;
use crate::prefetch;
use crate::simd::functions::{add_lanes, exp2_coarse, largest_lane};
use crate::simd::{Instructions, LANES, Vectorize, Vectorized};

/// Positions of a block: packed keys and values of a head of 64 take 64 KiB, the scores of a tile 32 KiB.
const KEYS: usize = 4 * PAGE_POSITIONS;

/// Most rows that are multiplied without tiles.
const FEW: usize = 4;

/// Rows of a task, query heads times queries: so many rows share packed keys and values.
const TASK_ROWS: usize = 4 * MAX_MR;

/// [`Attention::attend`] with operands that fit.
pub(super) fn attend<T: Bf16Product>(
    tiles: T,
    attention: &Attention<'_>,
    queries: ArrayView2<'_, f32>,
    (cached_heads, size): (usize, usize),
    cache: &Panels<'_, bf16>,
    rows: &[Query],
    mut out: ArrayViewMut2<'_, f32>,
) {
    let group = attention.heads / cached_heads;
    let together = (TASK_ROWS / group).max(1);
    let mut tasks = Vec::new();
    for (chunk, mut rest) in out.axis_chunks_iter_mut(Axis(0), together).enumerate() {
        let span = chunk * together..chunk * together + rest.nrows();
        for head in 0..cached_heads {
            let (out, others) = rest.split_at(Axis(1), group * size);
            rest = others;
            let columns = head * group * size..(head + 1) * group * size;
            let queries = queries.slice(s![span.clone(), columns]);
            tasks.push(Task { attention, cache, head, group, size, queries, rows: &rows[span.clone()], out });
        }
    }
    // A task does not wait for others: a thread has one at a time.
    let run =
        |task: Task<'_, '_>| SCRATCH.with_borrow_mut(|scratch| tiles.scoped(|| task.run(tiles, scratch)));
    if attention.is_parallel(size, rows) {
        pool::for_each(tasks, || (), |(), task| run(task));
    } else {
        tasks.into_iter().for_each(run);
    }
}

thread_local! {
    /// Kept, since of a decode step each sequence attends by itself: clearing it new took longer than its few rows.
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Consecutive queries of the heads that share a cached head. Row `i` is query `i / group`, head `i % group`: the rows of a tile see
/// about the same positions.
struct Task<'a, 'b> {
    attention: &'a Attention<'b>,
    cache: &'a Panels<'a, bf16>,
    /// The cached head.
    head: usize,
    group: usize,
    size: usize,
    /// f32 `[queries, group·size]`, as `out`.
    queries: ArrayView2<'a, f32>,
    rows: &'a [Query],
    out: ArrayViewMut2<'a, f32>,
}

#[derive(Default)]
struct Scratch {
    /// `[tiles, steps of the head]`.
    queries: Vec<Fragment>,
    /// `[panels, steps of the head]` of a block.
    keys: Vec<Fragment>,
    /// `[panels of columns, panels]` of a block.
    values: Vec<Fragment>,
    /// `[panels]` of a tile and a block.
    scores: Vec<Tile<f32>>,
    weights: Vec<Fragment>,
    /// `o`, `[tiles, panels of columns]`.
    sums: Vec<Tile<f32>>,
    states: Vec<State>,
}

/// Of a row after some blocks.
#[derive(Clone, Copy)]
struct State {
    /// `m`.
    largest: f32,
    /// `l`.
    sum: f32,
}

impl State {
    /// Before the first block: the sink alone, which has no value.
    fn new(sink: f32) -> Self {
        let largest = f32::NEG_INFINITY.max(sink);
        // 1, or NaN for a sink that is NaN or ∞.
        let sum = if sink == f32::NEG_INFINITY { 0.0 } else { (sink - largest).exp() };
        Self { largest, sum }
    }

    /// `1/l`; NaN where all scores are −∞.
    fn inverse(self) -> f32 {
        if self.largest == f32::NEG_INFINITY { f32::NAN } else { 1.0 / self.sum }
    }
}

/// From the first to the last position that a row sees.
fn union(rows: &[Query]) -> Range<usize> {
    let begin = rows.iter().map(|row| row.span.start).min().unwrap_or(0);
    begin..rows.iter().map(|row| row.span.end).max().unwrap_or(0)
}

impl Task<'_, '_> {
    fn run<T: Bf16Product>(mut self, tiles: T, scratch: &mut Scratch) {
        if self.rows.len() > 1 && !self.can_share(tiles) {
            // 0·NaN is NaN: each query reads its own span alone.
            let parts =
                self.queries.axis_chunks_iter(Axis(0), 1).zip(self.out.axis_chunks_iter_mut(Axis(0), 1));
            for ((queries, out), rows) in parts.zip(self.rows.chunks(1)) {
                Task { queries, rows, out, ..self }.run(tiles, scratch);
            }
            return;
        }
        let count = self.rows.len() * self.group;
        let tile_count = count.div_ceil(MAX_MR);
        let (steps, columns) = (self.size.div_ceil(STEP), self.size.div_ceil(NR));
        scratch.queries.resize(tile_count * steps, Fragment::ZERO);
        tiles.vectorize(PackQueries { task: &self, steps, fragments: &mut scratch.queries });
        scratch.sums.resize_with(tile_count * columns, || Tile([[0.0; NR]; MAX_MR]));
        scratch.sums.iter_mut().for_each(|sums| sums.0[..count.min(MAX_MR)].fill([0.0; NR]));
        let sink = |row: usize| self.attention.sink(self.head * self.group + row % self.group);
        scratch.states.clear();
        scratch.states.extend((0..count).map(|row| State::new(sink(row))));

        let seen = union(self.rows);
        for block in seen.start / KEYS..seen.end.div_ceil(KEYS) {
            let keys = seen.start.max(block * KEYS)..seen.end.min((block + 1) * KEYS);
            let panels = keys.start / NR..keys.end.div_ceil(NR);
            if tile_count == 1 {
                self.stream(tiles, scratch, &seen, panels);
                continue;
            }
            scratch.keys.resize(panels.len() * steps, Fragment::ZERO);
            scratch.values.resize(columns * panels.len(), Fragment::ZERO);
            let (cache, head, size) = (self.cache, self.head, self.size);
            let fragments = &mut scratch.keys[..];
            tiles.vectorize(PackKeys {
                cache,
                head,
                size,
                panels: panels.clone(),
                streamed: false,
                fragments,
            });
            let (seen, fragments) = (&seen, &mut scratch.values[..]);
            tiles.vectorize(PackValues { cache, head, panels: panels.clone(), seen, fragments });
            for tile in 0..tile_count {
                self.tile(tiles, scratch, tile, &panels);
            }
        }
        for (row, state) in scratch.states.iter().enumerate() {
            let inverse = state.inverse();
            let sums = &scratch.sums[row / MAX_MR * columns..][..columns];
            let mut out = self.out.slice_mut(s![row / self.group, row % self.group * self.size..]);
            for (out, sum) in
                out.iter_mut().zip(sums.iter().flat_map(|sums| &sums.0[row % MAX_MR])).take(self.size)
            {
                // +0 also for −0, which a sum flushed to 0 is or is not by the number of products after it.
                *out = sum * inverse + 0.0;
            }
        }
    }

    /// The only tile, and a block: each panel is packed where it is multiplied, so that it stays in L1. The same bits as
    /// [`tile`](Self::tile) gives.
    fn stream<T: Bf16Product>(
        &self,
        tiles: T,
        scratch: &mut Scratch,
        seen: &Range<usize>,
        panels: Range<usize>,
    ) {
        let (cache, head, size) = (self.cache, self.head, self.size);
        let count = self.rows.len() * self.group;
        let (steps, columns) = (size.div_ceil(STEP), size.div_ceil(NR));
        scratch.keys.resize(steps, Fragment::ZERO);
        scratch.values.resize(columns, Fragment::ZERO);
        scratch.scores.resize_with(KEYS / NR, || Tile([[0.0; NR]; MAX_MR]));
        scratch.weights.resize(KEYS / NR, Fragment::ZERO);
        let Scratch { queries, keys, values, scores, weights, sums, states } = scratch;
        let (scores, weights) = (&mut scores[..panels.len()], &mut weights[..panels.len()]);
        // Where keys and values begin in memory that is not read in one piece; what follows is prefetched while it is read.
        let first_key = panels.start * NR;
        cache.prefetch_keys(head, first_key);
        cache.prefetch_values(head, first_key..seen.end);
        let few = count <= FEW;
        for (panel, scores) in panels.clone().zip(scores.iter_mut()) {
            let next = (panel + 1) * NR;
            if next.is_multiple_of(PAGE_POSITIONS) && panel + 1 < panels.end {
                cache.prefetch_keys(head, next);
                cache.prefetch_values(head, next..seen.end);
            }
            if few {
                let keys = cache.key_panel(head, panel).as_chunks().0;
                let job = FewScores { queries: &queries[..steps], keys, scores };
                tiles.vectorize(Few { count, job });
                continue;
            }
            let fragments = &mut keys[..];
            tiles.vectorize(PackKeys {
                cache,
                head,
                size,
                panels: panel..panel + 1,
                streamed: true,
                fragments,
            });
            // SAFETY: `attend` runs tasks inside `scoped`.
            unsafe { tiles.product(count, &queries[..steps], keys, false, scores) };
        }
        // The next head is probably this thread's next task.
        if head + 1 < cache.heads() {
            cache.prefetch_keys(head + 1, first_key);
            cache.prefetch_values(head + 1, first_key..seen.end);
        }
        tiles.vectorize(Softmax {
            task: self,
            first_row: 0,
            first_key,
            scores,
            weights: &mut *weights,
            sums: &mut *sums,
            states,
        });
        for (panel, weights) in panels.zip(weights.chunks(1)) {
            if few {
                let own = seen.start.max(panel * NR)..seen.end.min((panel + 1) * NR);
                let weights = &weights[0];
                let job = FewValues { cache, head, panel, seen: own, weights, sums: &mut *sums };
                tiles.vectorize(Few { count, job });
                continue;
            }
            let (panels, fragments) = (panel..panel + 1, &mut values[..]);
            tiles.vectorize(PackValues { cache, head, panels, seen, fragments });
            for (sums, values) in sums.iter_mut().zip(values.chunks(1)) {
                // SAFETY: as above.
                unsafe { tiles.product(count, weights, values, true, sums) };
            }
        }
    }

    /// A tile and the panels of a block.
    fn tile<T: Bf16Product>(&self, tiles: T, scratch: &mut Scratch, tile: usize, panels: &Range<usize>) {
        let rows = tile * MAX_MR..(self.rows.len() * self.group).min((tile + 1) * MAX_MR);
        let seen = union(&self.rows[rows.start / self.group..rows.end.div_ceil(self.group)]);
        let own = panels.start.max(seen.start / NR)..panels.end.min(seen.end.div_ceil(NR));
        if own.is_empty() {
            return;
        }
        let (steps, columns) = (self.size.div_ceil(STEP), self.size.div_ceil(NR));
        scratch.scores.resize_with(KEYS / NR, || Tile([[0.0; NR]; MAX_MR]));
        scratch.weights.resize(KEYS / NR, Fragment::ZERO);
        let (scores, weights) = (&mut scratch.scores[..own.len()], &mut scratch.weights[..own.len()]);
        let queries = &scratch.queries[tile * steps..][..steps];
        let keys = scratch.keys.chunks_exact(steps).skip(own.start - panels.start);
        for (scores, keys) in scores.iter_mut().zip(keys) {
            // SAFETY: `attend` runs tasks inside `scoped`.
            unsafe { tiles.product(rows.len(), queries, keys, false, scores) };
        }
        let sums = &mut scratch.sums[tile * columns..][..columns];
        let states = &mut scratch.states[rows.clone()];
        let first_row = rows.start;
        let first_key = own.start * NR;
        tiles.vectorize(Softmax { task: self, first_row, first_key, scores, weights, sums, states });
        for (sums, values) in sums.iter_mut().zip(scratch.values.chunks_exact(panels.len())) {
            let values = &values[own.start - panels.start..][..own.len()];
            // SAFETY: as above.
            unsafe { tiles.product(rows.len(), weights, values, true, sums) };
        }
    }

    /// Whether all values are finite at positions that some of the rows see and others do not.
    fn can_share<T: Vectorize>(&self, tiles: T) -> bool {
        let seen = union(self.rows);
        let last_begin = self.rows.iter().map(|row| row.span.start).max().unwrap_or(0);
        let first_end = self.rows.iter().map(|row| row.span.end).min().unwrap_or(0).max(last_begin);
        let Self { cache, head, size, .. } = *self;
        [seen.start..last_begin, first_end..seen.end]
            .into_iter()
            .all(|positions| tiles.vectorize(AreFinite { cache, head, size, positions }))
    }
}

/// Rounds the queries of a task to bf16.
struct PackQueries<'a, 'b, 'c> {
    task: &'a Task<'b, 'c>,
    steps: usize,
    fragments: &'a mut [Fragment],
}

impl Vectorized for PackQueries<'_, '_, '_> {
    type Output = ();

    #[inline(always)]
    fn call<I: Instructions>(self, simd: I) {
        let Self { task: Task { group, size, queries, rows, .. }, steps, fragments } = self;
        for row in 0..rows.len() * group {
            let query = queries.row(row / group);
            let query = &query.to_slice().unwrap_or_default()[row % group * size..][..*size];
            for (step, numbers) in query.chunks(STEP).enumerate() {
                let mut lanes = [[0.0; LANES]; STEP / LANES];
                lanes.as_flattened_mut()[..numbers.len()].copy_from_slice(numbers);
                let fragment = &mut fragments[row / MAX_MR * steps + step].0;
                let target = &mut fragment.as_chunks_mut::<STEP>().0[row % MAX_MR];
                simd.store_bf16_pair([simd.load(&lanes[0]), simd.load(&lanes[1])], target);
            }
        }
    }
}

const ZEROS: [bf16; NR] = [bf16::ZERO; NR];

/// Keys as the right operand of `q·kᵀ`: pairs of columns of the head, 0 beyond its size.
struct PackKeys<'a> {
    cache: &'a Panels<'a, bf16>,
    head: usize,
    size: usize,
    panels: Range<usize>,
    /// No other task reads the keys: they come from memory.
    streamed: bool,
    /// `[panels, steps]`.
    fragments: &'a mut [Fragment],
}

impl Vectorized for PackKeys<'_> {
    type Output = ();

    #[inline(always)]
    fn call<I: Instructions>(self, simd: I) {
        let Self { cache, head, size, panels, streamed, fragments } = self;
        for (panel, fragments) in panels.zip(fragments.chunks_exact_mut(size.div_ceil(STEP))) {
            let rows = cache.key_panel(head, panel).as_chunks::<NR>().0;
            let targets =
                fragments.iter_mut().flat_map(|fragment| fragment.0.as_chunks_mut::<{ 2 * NR }>().0);
            for (pair, target) in targets.enumerate() {
                let row = |index: usize| rows.get(index).unwrap_or(&ZEROS);
                let (first, second) = (row(2 * pair), row(2 * pair + 1));
                if streamed {
                    prefetch::prefetch_behind(first.as_ptr(), NR);
                    prefetch::prefetch_behind(second.as_ptr(), NR);
                }
                simd.interleave_bf16([first, second], target);
            }
        }
    }
}

/// Values as the right operand of `p·v`: pairs of positions, 0 at those that no row sees, which may hold NaN.
struct PackValues<'a> {
    cache: &'a Panels<'a, bf16>,
    head: usize,
    panels: Range<usize>,
    seen: &'a Range<usize>,
    /// `[panels of columns, panels]`.
    fragments: &'a mut [Fragment],
}

impl Vectorized for PackValues<'_> {
    type Output = ();

    #[inline(always)]
    fn call<I: Instructions>(self, simd: I) {
        let Self { cache, head, panels, seen, fragments } = self;
        for (column, fragments) in fragments.chunks_exact_mut(panels.len()).enumerate() {
            for (panel, fragment) in panels.clone().zip(fragments) {
                let first = panel * NR;
                let rows = cache.value_panel(head, column, first..first + NR).as_chunks::<NR>().0;
                let pairs = rows.as_chunks::<2>().0.iter().zip(fragment.0.as_chunks_mut::<{ 2 * NR }>().0);
                for (pair, ([upper, lower], target)) in pairs.enumerate() {
                    let kept = |row, at| if seen.contains(&(first + at)) { row } else { &ZEROS };
                    simd.interleave_bf16([kept(upper, 2 * pair), kept(lower, 2 * pair + 1)], target);
                }
            }
        }
    }
}

/// Work on up to [`FEW`] rows whose sums stay in registers.
trait FewRows {
    fn rows<I: Instructions, const R: usize>(self, simd: I);
}

/// Such work on `count` rows.
struct Few<J> {
    count: usize,
    job: J,
}

impl<J: FewRows> Vectorized for Few<J> {
    type Output = ();

    #[inline(always)]
    fn call<I: Instructions>(self, simd: I) {
        match self.count {
            1 => self.job.rows::<I, 1>(simd),
            2 => self.job.rows::<I, 2>(simd),
            3 => self.job.rows::<I, 3>(simd),
            _ => self.job.rows::<I, FEW>(simd),
        }
    }
}

/// `scores[r] = q[r]·k` of a panel of keys, as [`Bf16Product::product`] adds.
struct FewScores<'a> {
    /// `[steps]`.
    queries: &'a [Fragment],
    /// `[size, 32]`.
    keys: &'a [[bf16; NR]],
    scores: &'a mut Tile<f32>,
}

impl FewRows for FewScores<'_> {
    #[inline(always)]
    fn rows<I: Instructions, const R: usize>(self, simd: I) {
        let zero = simd.splat(0.0);
        let mut sums = [[zero; 2]; R];
        for (queries, keys) in self.queries.iter().zip(self.keys.chunks(STEP)) {
            let mut wide = [[0.0; STEP]; R];
            for (wide, row) in wide.iter_mut().zip(queries.0.as_chunks::<STEP>().0) {
                widen(simd, row, wide);
            }
            let [mut even, mut odd] = [[[zero; 2]; R]; 2];
            for (pair, keys) in keys.chunks(2).enumerate() {
                prefetch::prefetch_behind(keys[0].as_ptr(), NR);
                add_products(simd, &wide, 2 * pair, &keys[0], &mut even);
                if let Some(keys) = keys.get(1) {
                    prefetch::prefetch_behind(keys.as_ptr(), NR);
                    add_products(simd, &wide, 2 * pair + 1, keys, &mut odd);
                }
            }
            add_parts(simd, [even, odd], &mut sums);
        }
        for (sums, row) in sums.into_iter().zip(&mut self.scores.0) {
            for (sum, to) in sums.into_iter().zip(row.as_chunks_mut().0) {
                simd.store(sum, to);
            }
        }
    }
}

/// `sums[r] += p[r]·v` of a panel of positions, as [`Bf16Product::product`] adds.
struct FewValues<'a> {
    cache: &'a Panels<'a, bf16>,
    head: usize,
    panel: usize,
    /// Positions of the panel that are seen.
    seen: Range<usize>,
    weights: &'a Fragment,
    /// `[panels of columns]`.
    sums: &'a mut [Tile<f32>],
}

impl FewRows for FewValues<'_> {
    #[inline(always)]
    fn rows<I: Instructions, const R: usize>(self, simd: I) {
        let Self { cache, head, panel, seen, weights, sums } = self;
        let zero = simd.splat(0.0);
        let mut wide = [[0.0; STEP]; R];
        for (wide, row) in wide.iter_mut().zip(weights.0.as_chunks::<STEP>().0) {
            widen(simd, row, wide);
        }
        for (column, tile) in sums.iter_mut().enumerate() {
            let values = cache.value_panel(head, column, seen.clone()).as_chunks::<NR>().0;
            let [mut even, mut odd] = [[[zero; 2]; R]; 2];
            let mut k = seen.start - panel * NR;
            let mut rest = values;
            if k % 2 == 1
                && let Some((first, others)) = rest.split_first()
            {
                add_products(simd, &wide, k, first, &mut odd);
                (k, rest) = (k + 1, others);
            }
            for values in rest.chunks(2) {
                add_products(simd, &wide, k, &values[0], &mut even);
                if let Some(values) = values.get(1) {
                    add_products(simd, &wide, k + 1, values, &mut odd);
                }
                k += 2;
            }
            let mut sums = [[zero; 2]; R];
            for (sums, row) in sums.iter_mut().zip(&tile.0) {
                let [low, high] = low_and_high(row);
                *sums = [simd.load(low), simd.load(high)];
            }
            add_parts(simd, [even, odd], &mut sums);
            for (sums, row) in sums.into_iter().zip(&mut tile.0) {
                for (sum, to) in sums.into_iter().zip(row.as_chunks_mut().0) {
                    simd.store(sum, to);
                }
            }
        }
    }
}

/// `sums[r] += x[r][k]·row`.
#[inline(always)]
fn add_products<I: Instructions, const R: usize>(
    simd: I,
    x: &[[f32; STEP]; R],
    k: usize,
    row: &[bf16; NR],
    sums: &mut [[I::Floats; 2]; R],
) {
    let [low, high] = low_and_high(row);
    let row = [simd.load_bf16(low), simd.load_bf16(high)];
    for (x, sums) in x.iter().zip(sums) {
        let x = simd.splat(x[k]);
        sums[0] = simd.multiply_add(x, row[0], sums[0]);
        sums[1] = simd.multiply_add(x, row[1], sums[1]);
    }
}

/// `sums += even + odd`.
#[inline(always)]
fn add_parts<I: Instructions, const R: usize>(
    simd: I,
    [even, odd]: [[[I::Floats; 2]; R]; 2],
    sums: &mut [[I::Floats; 2]; R],
) {
    for ((even, odd), sums) in even.iter().zip(&odd).zip(sums) {
        for ((even, odd), sum) in even.iter().zip(odd).zip(sums) {
            *sum = simd.add(*sum, simd.add(*even, *odd));
        }
    }
}

/// Whether the values of a head at some positions are finite.
struct AreFinite<'a> {
    cache: &'a Panels<'a, bf16>,
    head: usize,
    size: usize,
    positions: Range<usize>,
}

impl Vectorized for AreFinite<'_> {
    type Output = bool;

    #[inline(always)]
    fn call<I: Instructions>(self, _: I) -> bool {
        const INFINITY: u16 = 0x7F80;
        let Self { cache, head, size, positions } = self;
        // The bits of magnitudes, lane by lane: they order as the numbers do, with NaN last.
        let mut largest = [0; NR];
        for column in 0..size.div_ceil(NR) {
            let mut position = positions.start;
            while position < positions.end {
                let end = positions.end.min((position / PAGE_POSITIONS + 1) * PAGE_POSITIONS);
                for row in cache.value_panel(head, column, position..end).as_chunks::<NR>().0 {
                    for (largest, value) in largest.iter_mut().zip(row) {
                        *largest = (*largest).max(value.to_bits() & 0x7FFF);
                    }
                }
                position = end;
            }
        }
        largest.iter().all(|bits| *bits < INFINITY)
    }
}

/// Scores of a block → weights, and the states and sums of the rows on that scale.
struct Softmax<'a, 'b, 'c> {
    task: &'a Task<'b, 'c>,
    first_row: usize,
    /// The position of the first score, a multiple of NR.
    first_key: usize,
    scores: &'a mut [Tile<f32>],
    weights: &'a mut [Fragment],
    sums: &'a mut [Tile<f32>],
    states: &'a mut [State],
}

impl Vectorized for Softmax<'_, '_, '_> {
    type Output = ();

    #[inline(always)]
    fn call<I: Instructions>(self, simd: I) {
        let Self { task, first_row, first_key, scores, weights, sums, states } = self;
        let keys = first_key..first_key + scores.len() * NR;
        for (row, state) in states.iter_mut().enumerate() {
            let Query { position, span } = &task.rows[(first_row + row) / task.group];
            let head = task.head * task.group + (first_row + row) % task.group;
            // Positions of the block, from its first score on, that the row sees.
            let seen = span.start.clamp(keys.start, keys.end) - keys.start
                ..span.end.clamp(keys.start, keys.end) - keys.start;
            let panels = seen.start / NR..seen.end.div_ceil(NR);
            if seen.is_empty() {
                weights.iter_mut().for_each(|weights| *row_of(weights, row) = ZEROS);
                continue;
            }
            for (panel, weights) in weights.iter_mut().enumerate() {
                if !panels.contains(&panel) {
                    *row_of(weights, row) = ZEROS;
                }
            }

            let terms = Terms::new(task.attention, head, *position, keys.clone());
            let mut largest = simd.splat(f32::NEG_INFINITY);
            for panel in panels.clone() {
                let (vectors, _) = scores[panel].0[row].as_chunks_mut::<LANES>();
                for (half, scores) in vectors.iter_mut().enumerate() {
                    let index = panel * NR + half * LANES;
                    let mut term = terms.of(simd, scores, index);
                    if is_edge(&seen, index) {
                        let outside =
                            mask(&seen, index).map(|mask| if mask == 0 { f32::NEG_INFINITY } else { 0.0 });
                        term = simd.add(simd.masked(term, &mask(&seen, index)), simd.load(&outside));
                    }
                    largest = simd.maximum(largest, term);
                    simd.store(term, scores);
                }
            }
            // A NaN score may leave any maximum; the sum of the weights is NaN all the same.
            let largest = largest_lane(simd, largest).max(state.largest);
            // Exponents are of 2. Of −∞ scores alone, as long as there are no others: not −∞ − (−∞).
            let shift = largest.max(f32::MIN / 2.0) * LOG2_E;

            let mut sum = simd.splat(0.0);
            for panel in panels {
                let (vectors, _) = scores[panel].0[row].as_chunks::<LANES>();
                // No closure: it would be compiled without the instruction set.
                let mut powers = [simd.splat(0.0); NR / LANES];
                for (half, (power, scores)) in powers.iter_mut().zip(vectors).enumerate() {
                    let exponent =
                        simd.multiply_add(simd.load(scores), simd.splat(LOG2_E), simd.splat(-shift));
                    *power = exp2_coarse(simd, exponent);
                    let index = panel * NR + half * LANES;
                    if is_edge(&seen, index) {
                        *power = simd.masked(*power, &mask(&seen, index));
                    }
                }
                let weights = row_of(&mut weights[panel], row);
                simd.store_bf16_pair(powers, weights);
                for weights in weights.as_chunks().0 {
                    sum = simd.add(sum, simd.load_bf16(weights));
                }
            }
            let factor = simd.splat(state.largest.max(f32::MIN / 2.0) * LOG2_E - shift);
            let mut lanes = [0.0; LANES];
            simd.store(exp2_coarse(simd, factor), &mut lanes);
            let factor = lanes[0];
            *state = State { largest, sum: state.sum * factor + add_lanes(simd, sum) };
            if factor != 1.0 {
                for sums in &mut *sums {
                    for sums in sums.0[row].as_chunks_mut().0 {
                        simd.store(simd.multiply(simd.load(sums), simd.splat(factor)), sums);
                    }
                }
            }
        }
    }
}

/// A row of the left operand.
#[inline(always)]
fn row_of(fragment: &mut Fragment, row: usize) -> &mut [bf16; STEP] {
    &mut fragment.0.as_chunks_mut().0[row]
}

/// Whether a row does not see all of the vector that begins at `index`.
#[inline(always)]
fn is_edge(seen: &Range<usize>, index: usize) -> bool {
    index < seen.start || index + LANES > seen.end
}

/// All ones in the lanes that a row sees of the vector that begins at `index`.
#[inline(always)]
fn mask(seen: &Range<usize>, index: usize) -> [u32; LANES] {
    std::array::from_fn(|lane| if seen.contains(&(index + lane)) { u32::MAX } else { 0 })
}

#[cfg(test)]
mod tests;
