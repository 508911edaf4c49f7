//! Attention with a cache of keys and values: causal, over a whole sequence, or over another sequence; grouped queries,
//! rotary positions, ALiBi, learned biases, sliding
//! windows and soft caps.

use ndarray::linalg::general_mat_mul;
use ndarray::parallel::prelude::*;
use ndarray::{Array2, ArrayView1, ArrayView2, ArrayViewMut2, Axis, s};

use super::StepSegment;
use super::elementwise::{dot, sum};
use crate::Error;
use crate::backend::{AttentionSpec, Mask};
use crate::config::{Positions, Rotary};
use crate::convert;

/// Query rows of a task: their scores against 1024 positions take 256 KiB, within the L2 cache of a core.
const BLOCK: usize = 64;

/// Multiply-adds below which a step stays on one thread.
const PARALLEL_WORK: usize = 1 << 17;

/// Keys and values, `f32 [kv_heads, max_positions, head_size]` for each block and sequence.
#[derive(Debug)]
pub struct CpuCache {
    spec: AttentionSpec,
    max_positions: usize,
    sequences: usize,
    /// By `layer·sequences + sequence`; grown when a sequence first reaches a block.
    entries: Vec<Entry>,
    /// Each different rotary table once.
    rotations: Vec<Rotation>,
    layers: Vec<Layer>,
}

/// How positions enter a block, and what it sees.
#[derive(Debug)]
struct Layer {
    /// Index into the rotary tables.
    rotation: Option<usize>,
    /// ALiBi: one slope for each head.
    slopes: Option<Vec<f32>>,
    window: usize,
}

#[derive(Debug, Default)]
struct Entry {
    keys: Vec<f32>,
    values: Vec<f32>,
    /// Positions that hold a token.
    length: usize,
}

/// Cosines and sines `[max_positions, dims/2]`.
#[derive(Debug)]
struct Rotation {
    half: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl CpuCache {
    pub(super) fn new(spec: &AttentionSpec, sequences: usize, max_positions: usize) -> Result<Self, Error> {
        let mut tables: Vec<&Rotary> = Vec::new();
        let mut layers = Vec::new();
        for layer in &spec.layers {
            let rotation = match &layer.positions {
                Positions::Rotary(rotary) => {
                    Some(tables.iter().position(|known| *known == rotary).unwrap_or_else(|| {
                        tables.push(rotary);
                        tables.len() - 1
                    }))
                }
                Positions::Learned { .. } | Positions::Alibi | Positions::Relative(_) | Positions::None => {
                    None
                }
            };
            let slopes = matches!(layer.positions, Positions::Alibi).then(|| alibi_slopes(spec.heads));
            layers.push(Layer { rotation, slopes, window: layer.sliding_window.unwrap_or(usize::MAX) });
        }
        let rotations = tables.into_iter().map(|rotary| Rotation::new(rotary, max_positions)).collect();
        let mut entries = Vec::new();
        entries.resize_with(spec.layers.len() * sequences, Entry::default);
        Ok(Self { spec: spec.clone(), max_positions, sequences, entries, rotations, layers })
    }

    /// `qkv [rows, (heads + 2·kv_heads)·head_size]` → `out [rows, heads·head_size]`.
    pub(super) fn attend(
        &mut self,
        segments: &[StepSegment],
        layer: usize,
        mut qkv: ArrayViewMut2<'_, f32>,
        mut out: ArrayViewMut2<'_, f32>,
    ) {
        for segment in segments {
            let rows = segment.first_row..segment.first_row + segment.rows;
            let mut qkv = qkv.slice_mut(s![rows.clone(), ..]);
            self.rotate(layer, segment.position, &mut qkv);
            let queries = self.spec.heads * self.spec.head_size;
            self.remember(segment, layer, qkv.slice(s![.., queries..]));
            let queries = qkv.slice(s![.., ..queries]);
            self.attend_segment(segment, layer, queries, out.slice_mut(s![rows, ..]));
        }
    }

    /// Keeps `kv [rows, 2·kv_heads·head_size]` for [`recall`](Self::recall).
    pub(super) fn remember_only(&mut self, segments: &[StepSegment], layer: usize, kv: ArrayView2<'_, f32>) {
        for segment in segments {
            let rows = segment.first_row..segment.first_row + segment.rows;
            self.remember(segment, layer, kv.slice(s![rows, ..]));
        }
    }

    /// `q [rows, heads·head_size]` → `out [rows, heads·head_size]`, over what was remembered.
    pub(super) fn recall(
        &self,
        segments: &[StepSegment],
        layer: usize,
        q: ArrayView2<'_, f32>,
        mut out: ArrayViewMut2<'_, f32>,
    ) {
        for segment in segments {
            let rows = segment.first_row..segment.first_row + segment.rows;
            let queries = q.slice(s![rows.clone(), ..]);
            self.attend_segment(segment, layer, queries, out.slice_mut(s![rows, ..]));
        }
    }

    /// Rotates queries and keys in place; pairs are `(i, i + dims/2)`.
    fn rotate(&self, layer: usize, position: usize, qkv: &mut ArrayViewMut2<'_, f32>) {
        let Some(rotation) = self.layers[layer].rotation.map(|table| &self.rotations[table]) else { return };
        let (half, size) = (rotation.half, self.spec.head_size);
        let rotated = (self.spec.heads + self.spec.kv_heads) * size;
        qkv.axis_iter_mut(Axis(0)).into_par_iter().enumerate().for_each(|(row, mut values)| {
            let angles = (position + row) * half..(position + row + 1) * half;
            let (cos, sin) = (&rotation.cos[angles.clone()], &rotation.sin[angles]);
            let values = values.as_slice_mut().expect("rows are contiguous");
            for head in values[..rotated].chunks_exact_mut(size) {
                let (first, second) = head[..2 * half].split_at_mut(half);
                for (((a, b), cos), sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
                    (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
                }
            }
        });
    }

    /// Writes keys and values `kv [rows, 2·kv_heads·head_size]` to the cache.
    fn remember(&mut self, segment: &StepSegment, layer: usize, kv: ArrayView2<'_, f32>) {
        let (size, kv_heads) = (self.spec.head_size, self.spec.kv_heads);
        let first_value = kv_heads * size;
        let length = kv_heads * self.max_positions * size;
        let entry = &mut self.entries[layer * self.sequences + segment.sequence];
        entry.keys.resize(length, 0.0);
        entry.values.resize(length, 0.0);
        entry.length = segment.position + segment.rows;
        for (row, values) in kv.rows().into_iter().enumerate() {
            let values = values.to_slice().expect("rows are contiguous");
            for head in 0..kv_heads {
                let at = (head * self.max_positions + segment.position + row) * size;
                entry.keys[at..at + size].copy_from_slice(&values[head * size..][..size]);
                entry.values[at..at + size].copy_from_slice(&values[first_value + head * size..][..size]);
            }
        }
    }

    fn attend_segment(
        &self,
        segment: &StepSegment,
        layer: usize,
        queries: ArrayView2<'_, f32>,
        mut out: ArrayViewMut2<'_, f32>,
    ) {
        let size = self.spec.head_size;
        let group = self.spec.heads / self.spec.kv_heads;
        let entry = &self.entries[layer * self.sequences + segment.sequence];
        let length = self.max_positions * size;
        let head_task = |(head, mut out): (usize, ArrayViewMut2<'_, f32>)| {
            let kv = head / group * length..(head / group + 1) * length;
            let attention = Head {
                keys: &entry.keys[kv.clone()],
                values: &entry.values[kv],
                size,
                position: segment.position,
                window: self.layers[layer].window,
                end: match self.spec.mask {
                    Mask::Causal => None,
                    Mask::Full => Some(entry.length),
                },
                slope: self.layers[layer].slopes.as_ref().map_or(0.0, |slopes| slopes[head]),
                bias: self.spec.bias.as_ref().map(|bias| bias.table.row(head)),
                scale: self.spec.scale,
                softcap: self.spec.softcap,
            };
            let queries = queries.slice(s![.., head * size..(head + 1) * size]);
            for (block, mut out) in out.axis_chunks_iter_mut(Axis(0), BLOCK).enumerate() {
                let rows = block * BLOCK..block * BLOCK + out.nrows();
                if rows.len() == 1 {
                    attention.row(rows.start, queries.slice(s![rows.start, ..]).to_slice(), out.row_mut(0));
                } else {
                    attention.block(rows.start, queries.slice(s![rows, ..]), out);
                }
            }
        };
        let heads: Vec<_> = out.axis_chunks_iter_mut(Axis(1), size).enumerate().collect();
        let work = segment.rows * entry.length * size * self.spec.heads;
        if work < PARALLEL_WORK {
            heads.into_iter().for_each(head_task);
        } else {
            heads.into_par_iter().for_each(head_task);
        }
    }
}

/// One head of one sequence.
struct Head<'a> {
    keys: &'a [f32],
    values: &'a [f32],
    size: usize,
    /// Position of the segment's first row.
    position: usize,
    window: usize,
    /// Every query sees the positions before this one; without it, those up to its own.
    end: Option<usize>,
    slope: f32,
    /// Bias by distance, from the most negative on.
    bias: Option<ArrayView1<'a, f32>>,
    scale: f32,
    softcap: Option<f32>,
}

impl Head<'_> {
    /// First position that the query at `position` sees.
    fn first_seen(&self, position: usize) -> usize {
        match self.end {
            None => (position + 1).saturating_sub(self.window),
            Some(_) => 0,
        }
    }

    /// One past the last position that the query at `position` sees.
    fn end_seen(&self, position: usize) -> usize {
        self.end.unwrap_or(position + 1)
    }

    /// One query, by dot products: no packing of keys for a single row.
    fn row(&self, row: usize, query: Option<&[f32]>, mut out: ndarray::ArrayViewMut1<'_, f32>) {
        let query = query.expect("a head of a row is contiguous");
        let position = self.position + row;
        let (first, end) = (self.first_seen(position), self.end_seen(position));
        let key = |at: usize| &self.keys[at * self.size..(at + 1) * self.size];
        let mut scores: Vec<f32> = (first..end).map(|at| dot(query, key(at)) * self.scale).collect();
        self.softmax(&mut scores, position, first);
        out.fill(0.0);
        let out = out.as_slice_mut().expect("a head of a row is contiguous");
        for (at, score) in (first..).zip(scores) {
            for (out, value) in out.iter_mut().zip(&self.values[at * self.size..(at + 1) * self.size]) {
                *out += score * value;
            }
        }
    }

    /// Several queries, by matrix products over the positions that any of them sees.
    fn block(&self, row: usize, queries: ArrayView2<'_, f32>, mut out: ArrayViewMut2<'_, f32>) {
        let end = self.end_seen(self.position + row + queries.nrows() - 1);
        let first = self.first_seen(self.position + row);
        let seen = end - first;
        let shape = (seen, self.size);
        let range = first * self.size..end * self.size;
        let keys = ArrayView2::from_shape(shape, &self.keys[range.clone()]).expect("whole rows");
        let values = ArrayView2::from_shape(shape, &self.values[range]).expect("whole rows");
        let mut scores = Array2::zeros((queries.nrows(), seen));
        general_mat_mul(self.scale, &queries, &keys.t(), 0.0, &mut scores);
        for (offset, mut scores) in scores.rows_mut().into_iter().enumerate() {
            let position = self.position + row + offset;
            let scores = scores.as_slice_mut().expect("just allocated");
            let (begin, end) = (self.first_seen(position) - first, self.end_seen(position) - first);
            scores[..begin].fill(0.0);
            scores[end..].fill(0.0);
            self.softmax(&mut scores[begin..end], position, first + begin);
        }
        general_mat_mul(1.0, &scores, &values, 0.0, &mut out);
    }

    /// Softmax of the scores that the query at `position` has with the positions from `first` on, soft cap and biases
    /// applied.
    fn softmax(&self, scores: &mut [f32], position: usize, first: usize) {
        if let Some(cap) = self.softcap {
            scores.iter_mut().for_each(|score| *score = cap * (*score / cap).tanh());
        }
        if self.slope != 0.0 {
            for (at, score) in (first..).zip(scores.iter_mut()) {
                *score -= self.slope * convert::f32_from_count(position - at);
            }
        }
        if let Some(bias) = self.bias {
            // The middle of the table is distance 0.
            let (middle, last) = (bias.len() / 2, bias.len() - 1);
            for (at, score) in (first..).zip(scores.iter_mut()) {
                *score += bias[(middle + at).saturating_sub(position).min(last)];
            }
        }
        // A NaN score must not disappear: `max` would skip it, the sum of exponentials below does not.
        let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        for score in scores.iter_mut() {
            *score = (*score - max).exp();
        }
        let inverse = 1.0 / sum(scores, |score| score);
        scores.iter_mut().for_each(|score| *score *= inverse);
    }
}

impl Rotation {
    fn new(rotary: &Rotary, max_positions: usize) -> Self {
        let (frequencies, magnitude) = (&rotary.frequencies(max_positions), rotary.magnitude());
        let angles = || {
            (0..max_positions)
                .flat_map(|position| frequencies.iter().map(move |f| convert::f64_from(position) * f))
        };
        Self {
            half: frequencies.len(),
            cos: angles().map(|angle| convert::f32_from(magnitude * angle.cos())).collect(),
            sin: angles().map(|angle| convert::f32_from(magnitude * angle.sin())).collect(),
        }
    }
}

/// The slopes of Press, Smith and Lewis (2022): a geometric sequence for a power of two; for other head counts the
/// sequence of the next lower power, then every second slope of the next higher.
fn alibi_slopes(heads: usize) -> Vec<f32> {
    let power = |heads: usize| heads.next_power_of_two() >> usize::from(!heads.is_power_of_two());
    let slopes = |count: usize| {
        let base = 2.0_f64.powf(-8.0 / convert::f64_from(count));
        (1..=count).map(move |head| convert::f32_from(base.powf(convert::f64_from(head))))
    };
    let lower = power(heads);
    slopes(lower).chain(slopes(2 * lower).step_by(2)).take(heads).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slopes_of_powers_of_two_and_others() {
        assert_eq!(alibi_slopes(8), (1..=8).map(|head| 0.5_f32.powi(head)).collect::<Vec<_>>());
        let twelve = alibi_slopes(12);
        assert_eq!(twelve.len(), 12);
        assert_eq!(twelve[..8], alibi_slopes(8));
        assert!((twelve[8] - 0.5_f32.powf(0.5)).abs() < 1e-7, "{twelve:?}");
        assert!((twelve[11] - 0.5_f32.powf(3.5)).abs() < 1e-7, "{twelve:?}");
    }
}
