//! How the output is partitioned into blocks, which threads take one by one, and the plain integer product.

use std::ops::Range;

use super::microkernel::Microkernel;
use super::operands::{Ahead, Operands};
use crate::layout::{NR, padded};
use crate::pack::weight::PackedWeight;
use crate::pool::{self, WorkItems};
use crate::prefetch::Destination;

/// Multiply-adds below which a problem stays on the calling thread: 64 of them take a cycle, so this is some 10 µs,
/// about what waking a sleeping thread costs.
const SERIAL_WORK: usize = 1 << 20;

/// Below M = 8 the product is memory-bound; cost it as M = 8.
const READING_ROWS: usize = 8;

/// The fewest blocks for each thread, enough to even out threads that run at different speeds.
const BLOCKS_PER_THREAD: usize = 4;

/// Rows for each thread from which on each multiplies rows of its own, by all weights: mostly rows that it has quantised, which are
/// still in its cache, and its results share no cache line with another's.
const OWN_ROWS: usize = 256;

/// Bytes of input codes that a block goes through, or up to a quarter more, in whole tiles: half of the 2 MiB of L2 that cores
/// with AMX have. From L3, AMX tiles were measured to load half as fast.
const INPUT_BYTES: usize = 1 << 20;

/// The output, in tiles.
#[derive(Clone, Copy)]
pub(crate) struct Grid {
    /// M.
    pub(crate) rows: usize,
    /// N in panels.
    pub(crate) panels: usize,
    /// Padded K.
    pub(crate) inner: usize,
}

impl Grid {
    pub(crate) fn new(rows: usize, weight: &PackedWeight) -> Self {
        Self { rows, panels: weight.panel_count(), inner: padded(weight.dim().1) }
    }

    /// Whether there is enough work for more than one thread, and more than one thread.
    pub(crate) fn is_parallel(self) -> bool {
        // Inside the pool other threads spin. From outside, one must be woken, which takes longer than a short product of few
        // rows.
        let inside = rayon::current_thread_index().is_some();
        let rows = if inside { self.rows.max(READING_ROWS) } else { self.rows };
        rows * self.panels * NR * self.inner >= SERIAL_WORK && rayon::current_num_threads() > 1
    }
}

/// Some rows of the output.
#[derive(Clone, Copy)]
pub(crate) struct Rows {
    first: usize,
    count: usize,
    tile_rows: usize,
    step: usize,
}

impl Rows {
    /// Tiles whose heights differ by one step at most: 64 rows in tiles of 12 are 4·11 + 2·10, not 5·12 + 4.
    pub(crate) fn tiles(self) -> impl ExactSizeIterator<Item = Range<usize>> + Clone {
        let tiles = (self.count.div_ceil(self.step) * self.step).div_ceil(self.tile_rows);
        (0..tiles).map(move |i| self.tile_edge(i, tiles)..self.tile_edge(i + 1, tiles))
    }

    /// Where tile `index` of `tiles` begins.
    fn tile_edge(self, index: usize, tiles: usize) -> usize {
        let steps = self.count.div_ceil(self.step);
        self.first + self.count.min(self.step * (steps * index / tiles))
    }
}

/// How the output is partitioned into blocks: rows, in whole tiles, by one panel.
struct Cut {
    row_chunks: Vec<Rows>,
    panels: usize,
}

impl Cut {
    fn new<K: Microkernel>(grid: Grid, threads: usize) -> Self {
        let Grid { rows, panels, inner } = grid;
        let rows = Rows { first: 0, count: rows, tile_rows: K::MR, step: K::MR_STEP };
        let tiles = rows.tiles().len();
        // Rows are cut when the panels alone give too few blocks, or when the codes of all rows exceed the cache.
        let for_threads = if threads == 1 { 1 } else { (threads * BLOCKS_PER_THREAD).div_ceil(panels) };
        let in_cache = (INPUT_BYTES + INPUT_BYTES / 4) / (K::MR * inner).max(1);
        let for_cache = tiles.div_ceil(in_cache.max(1));
        let own = if grid.rows >= OWN_ROWS * threads { threads } else { 1 };
        let count = for_threads.max(for_cache).next_multiple_of(own).min(tiles);
        // A cut inside of a tile would make two of it.
        let edge = |chunk| rows.tile_edge(tiles * chunk / count, tiles);
        let chunk = |index| Rows { first: edge(index), count: edge(index + 1) - edge(index), ..rows };
        Self { row_chunks: (0..count).map(chunk).collect(), panels }
    }

    fn blocks(&self) -> usize {
        self.row_chunks.len() * self.panels
    }
}

/// The blocks that one thread computes: all panels with the first rows, then with the next, so that rows stay in the cache and
/// panels are prefetched.
pub(crate) struct Blocks<'a> {
    cut: &'a Cut,
    taken: WorkItems<'a>,
}

/// Some rows of a panel.
pub(crate) struct Block {
    pub(crate) rows: Rows,
    pub(crate) panel: usize,
    /// The panel that the same thread will probably multiply next.
    pub(crate) next: Option<usize>,
}

impl Iterator for Blocks<'_> {
    type Item = Block;

    #[inline]
    fn next(&mut self) -> Option<Block> {
        let (block, next) = self.taken.next()?;
        let Cut { row_chunks, panels } = self.cut;
        Some(Block {
            rows: row_chunks[block / panels],
            panel: block % panels,
            next: next.map(|next| next % panels),
        })
    }
}

/// Calls `run` once for each thread at work, with blocks that together cover the output exactly once.
pub(crate) fn for_each_thread<K: Microkernel>(grid: Grid, tile: K, run: impl Fn(Blocks<'_>) + Sync) {
    if grid.rows == 0 || grid.panels == 0 {
        return;
    }
    let threads = if grid.is_parallel() { rayon::current_num_threads() } else { 1 };
    let cut = Cut::new::<K>(grid, threads);
    pool::partition(cut.blocks(), threads, |taken| tile.scoped(|| run(Blocks { cut: &cut, taken })));
}

/// The codes of x and the weight that tiles multiply.
#[derive(Clone, Copy)]
pub(crate) struct Factors<'a> {
    /// `i8 [M, stride]` with the kernel's offset added, and `MR_STEP` rows more.
    pub(crate) codes: &'a [i8],
    /// Bytes between two rows of the codes: [`row_stride`].
    pub(crate) stride: usize,
    pub(crate) weight: &'a PackedWeight,
}

impl<'a> Factors<'a> {
    /// The operands of the tiles of a panel, of which there are `count`: of the tile of this number, with these rows. `next`
    /// is the panel after it, `to` says where the result of rows from one on is stored.
    ///
    /// They fulfil lines 1 to 3 of [`Microkernel`] for tiles of [`Rows::tiles`] within M.
    #[inline(always)]
    pub(crate) fn operands<K: Microkernel>(
        self,
        panel: usize,
        next: Option<usize>,
        count: usize,
        to: impl Fn(usize) -> Destination + Copy,
    ) -> impl Fn((usize, Range<usize>)) -> Operands + Copy {
        let Self { codes, stride, weight } = self;
        let (panel, next) = (weight.panel(panel), next.map(|next| weight.panel(next)));
        let k = padded(weight.dim().1);
        move |(tile, rows)| Operands {
            a: codes[rows.start * stride..].as_ptr(),
            lda: stride,
            rows: rows.len(),
            panel: panel.as_ptr(),
            k,
            ldw: weight.row_bytes(),
            continued: false,
            to: Some(to(rows.start)),
            ahead: Ahead::new(K::alone(rows.len()), panel, next, (tile, count)),
        }
    }
}
