//! How queries attend: what is added to their scores, and which positions they see.

use std::ops::Range;

use ndarray::{ArrayView1, ArrayView2};

use crate::convert;
use crate::kernel::Kernel;
use crate::simd::functions::{padded, tanh};
use crate::simd::{Instructions, LANES};

/// Multiply-adds below which attention stays on the calling thread: 32 of them take a cycle or two, so this is some
/// 10 µs, about what waking a sleeping thread costs.
const SERIAL_WORK: usize = 1 << 19;

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
    /// One score for each query head that takes its share of the softmax and has no value: `exp(sink)` is added to the sum that
    /// the weights are divided by.
    pub sinks: Option<&'a [f32]>,
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
    /// The sink of a query head: −∞ for none.
    pub(super) fn sink(&self, head: usize) -> f32 {
        self.sinks.map_or(f32::NEG_INFINITY, |sinks| sinks[head])
    }

    /// Whether threads take part in attention of these rows.
    pub(super) fn is_parallel(&self, size: usize, rows: &[Query]) -> bool {
        let work = 2 * self.heads * size * rows.iter().map(|row| row.span.len()).sum::<usize>();
        // One row reads the cache for itself alone, from memory.
        let serial = if rows.len() == 1 { SERIAL_WORK / 4 } else { SERIAL_WORK };
        work >= serial && rayon::current_num_threads() > 1
    }
}

/// The biases of a query at `position` and some keys.
fn by_position(table: ArrayView1<'_, f32>, position: usize, keys: Range<usize>) -> Vec<f32> {
    // The middle of the table is distance 0.
    let (middle, last) = (table.len() / 2, table.len() - 1);
    keys.map(|key| table[(middle + key).saturating_sub(position).min(last)]).collect()
}

/// `t = cap(scale·score) + slope·(position of the key − that of the query) + distances` of consecutive positions.
pub(super) struct Terms {
    scale: f32,
    softcap: Option<f32>,
    slope: f32,
    first_distance: f32,
    /// One for each score, or nothing.
    distances: Vec<f32>,
}

impl Terms {
    /// Of a query head and the scores of these positions.
    pub(super) fn new(attention: &Attention<'_>, head: usize, position: usize, keys: Range<usize>) -> Self {
        let Attention { scale, softcap, bias, .. } = *attention;
        let first_distance = convert::real(keys.start) - convert::real(position);
        let (slope, distances) = match bias {
            Bias::None => (0.0, Vec::new()),
            Bias::Slopes(slopes) => (slopes[head], Vec::new()),
            Bias::Distances(table) => (0.0, by_position(table.row(head), position, keys)),
        };
        Self { scale, softcap, slope, first_distance, distances }
    }

    /// Of the vector that begins at `index`.
    #[inline(always)]
    pub(super) fn of<I: Instructions>(&self, simd: I, scores: &[f32; LANES], index: usize) -> I::Floats {
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
