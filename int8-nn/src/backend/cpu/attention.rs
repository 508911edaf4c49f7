//! Attention over a paged KV cache: causal, over a whole sequence, or cross-attention; grouped queries, rotary positions, ALiBi,
//! learned biases, sliding windows and soft caps.

use std::ops::Range;

use int8_cpu::Kernel;
use int8_cpu::attention::{Attention, Bias, KvPages, PAGE_POSITIONS, Query};
use ndarray::parallel::prelude::*;
use ndarray::{ArrayView2, ArrayViewMut2, Axis, s};

use super::Rows;
use super::elementwise::normalize_columns;
use crate::Error;
use crate::backend::positions::{Rotation, Rotations, alibi_slopes};
use crate::backend::{AttentionSpec, CacheCapacity, DistanceBias, Mask, NormSpec, PageTables};
use crate::config::{Positions, QueryGrowth, Rotary};

/// Keys and values of all blocks and sequences, in pages.
#[derive(Debug)]
pub struct CpuCache {
    kernel: Kernel,
    spec: AttentionSpec,
    tables: PageTables,
    pages: KvPages,
    /// Positions written, by sequence.
    lengths: Vec<usize>,
    /// Each different kind of rotary positions once.
    rotations: Vec<Turns>,
    layers: Vec<Layer>,
}

/// The rotations of one kind of rotary positions.
#[derive(Debug)]
struct Turns {
    rotary: Rotary,
    /// Longest text that `table` is for.
    fixed: usize,
    /// All positions, with the frequencies of texts of at most `fixed` tokens.
    table: Rotation,
    /// Of the last segment of a longer text: first position, rows and length. Its layers share it.
    last: Option<([usize; 3], Rotation)>,
}

impl Turns {
    fn new(rotary: &Rotary, max_positions: usize) -> Self {
        let fixed = rotary.fixed_positions().unwrap_or(usize::MAX);
        let positions = max_positions.min(fixed);
        let table = Rotation::new(rotary, 0..positions, positions);
        Self { rotary: rotary.clone(), fixed, table, last: None }
    }

    /// The rotation of a segment, and the first of its rows in it.
    fn of(&mut self, segment: &Rows) -> (&Rotation, usize) {
        let Rows { position, rows, length, .. } = *segment;
        if length <= self.fixed {
            return (&self.table, position);
        }
        let key = [position, rows, length];
        if self.last.as_ref().is_none_or(|(known, _)| *known != key) {
            self.last = None;
        }
        let rotary = &self.rotary;
        let compute = || (key, Rotation::new(rotary, position..position + rows, length));
        (&self.last.get_or_insert_with(compute).1, 0)
    }
}

/// Positions and window of a block.
#[derive(Debug)]
struct Layer {
    /// Index into the rotary tables.
    rotation: Option<usize>,
    /// Factor of the scores.
    factor: f32,
    /// ALiBi: one slope for each head.
    slopes: Option<Vec<f32>>,
    window: usize,
    chunk: Option<usize>,
    /// Of each head of queries and of keys, after the rotation.
    norms: Option<[NormSpec; 2]>,
    query_growth: Option<QueryGrowth>,
    sinks: Option<Vec<f32>>,
    bias: Option<DistanceBias>,
}

impl CpuCache {
    pub(super) fn new(kernel: Kernel, spec: &AttentionSpec, capacity: CacheCapacity) -> Result<Self, Error> {
        let mut rotations = Rotations::default();
        let mut layers = Vec::new();
        for layer in &spec.layers {
            let rotation = rotations.place(&layer.positions);
            let slopes = matches!(layer.positions, Positions::Alibi).then(|| alibi_slopes(spec.heads));
            let window = layer.sliding_window.unwrap_or(usize::MAX);
            layers.push(Layer {
                rotation,
                slopes,
                window,
                factor: layer.factor,
                chunk: layer.chunk,
                norms: layer.norms.clone(),
                query_growth: layer.query_growth,
                sinks: layer.sinks.clone(),
                bias: layer.bias.clone(),
            });
        }
        let pages = KvPages::new(
            spec.kv_cache,
            spec.layers.len(),
            spec.kv_heads,
            spec.head_size,
            PageTables::pages_for(capacity, PAGE_POSITIONS),
        )?;
        Ok(Self {
            kernel,
            spec: spec.clone(),
            tables: PageTables::new(capacity, PAGE_POSITIONS),
            pages,
            lengths: vec![0; capacity.sequences],
            rotations: rotations
                .settings()
                .map(|rotary| Turns::new(rotary, capacity.max_positions))
                .collect(),
            layers,
        })
    }

    pub(super) fn tables(&self) -> &PageTables {
        &self.tables
    }

    /// Bytes of the pages that a sequence holds.
    pub(super) fn bytes(&self) -> usize {
        self.tables.used() * self.pages.page_bytes()
    }

    pub(super) fn reserve(&mut self, ranges: &[(usize, Range<usize>)]) -> Result<(), Error> {
        for copy in self.tables.reserve(ranges)? {
            self.pages.copy(copy.from, copy.to);
        }
        Ok(())
    }

    pub(super) fn release(&mut self, sequence: usize) {
        self.tables.release(sequence);
        self.lengths[sequence] = 0;
    }

    pub(super) fn fork(&mut self, from: usize, to: usize, positions: usize) -> Result<(), Error> {
        self.tables.fork(from, to, positions)?;
        self.lengths[to] = positions;
        Ok(())
    }

    /// Fills the pages that no sequence holds with NaN, so that a test sees who reads them.
    pub fn poison_free_pages(&mut self) {
        for page in self.tables.free_pages() {
            self.pages.poison(*page);
        }
    }

    /// `qkv [rows, (heads + 2·kv_heads)·head_size]` → `out [rows, heads·head_size]`.
    pub(super) fn attend(
        &mut self,
        segments: &[Rows],
        layer: usize,
        mut qkv: ArrayViewMut2<'_, f32>,
        mut out: ArrayViewMut2<'_, f32>,
    ) -> Result<(), Error> {
        let queries = self.spec.heads * self.spec.head_size;
        for segment in segments {
            let mut qkv = qkv.slice_mut(s![segment.range(), ..]);
            self.rotate(layer, segment, &mut qkv);
            self.after_rotation(layer, segment, &mut qkv);
            self.write(segment, layer, qkv.slice(s![.., queries..]))?;
            let out = out.slice_mut(s![segment.range(), ..]);
            self.attend_segment(segment, layer, qkv.slice(s![.., ..queries]), out)?;
        }
        Ok(())
    }

    /// Writes `kv [rows, 2·kv_heads·head_size]` for [`cross_attention`](Self::cross_attention).
    pub(super) fn write_cross_kv(
        &mut self,
        segments: &[Rows],
        layer: usize,
        kv: ArrayView2<'_, f32>,
    ) -> Result<(), Error> {
        segments.iter().try_for_each(|segment| self.write(segment, layer, kv.slice(s![segment.range(), ..])))
    }

    /// `q [rows, heads·head_size]` → `out [rows, heads·head_size]`, over all that was written.
    pub(super) fn cross_attention(
        &self,
        segments: &[Rows],
        layer: usize,
        q: ArrayView2<'_, f32>,
        mut out: ArrayViewMut2<'_, f32>,
    ) -> Result<(), Error> {
        segments.iter().try_for_each(|segment| {
            let out = out.slice_mut(s![segment.range(), ..]);
            self.attend_segment(segment, layer, q.slice(s![segment.range(), ..]), out)
        })
    }

    /// Rotates queries and keys in place; pairs are `(i, i + dims/2)`.
    fn rotate(&mut self, layer: usize, segment: &Rows, qkv: &mut ArrayViewMut2<'_, f32>) {
        let size = self.spec.head_size;
        let rotated = (self.spec.heads + self.spec.kv_heads) * size;
        let Some(place) = self.layers[layer].rotation else { return };
        let (rotation, position) = self.rotations[place].of(segment);
        let half = rotation.half;
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

    /// Normalises the heads of queries and keys, and multiplies queries by the factor of their position.
    fn after_rotation(&self, layer: usize, segment: &Rows, qkv: &mut ArrayViewMut2<'_, f32>) {
        let AttentionSpec { heads, kv_heads, head_size, .. } = self.spec;
        let Layer { norms, query_growth, .. } = &self.layers[layer];
        let queries = 0..heads * head_size;
        if let Some([of_queries, of_keys]) = norms {
            let keys = queries.end..queries.end + kv_heads * head_size;
            normalize_columns(self.kernel, qkv.view_mut(), queries.clone(), of_queries);
            normalize_columns(self.kernel, qkv.view_mut(), keys, of_keys);
        }
        if let Some(growth) = query_growth {
            for (row, mut values) in qkv.rows_mut().into_iter().enumerate() {
                let factor = growth.factor(segment.position + row);
                values.slice_mut(s![queries.clone()]).mapv_inplace(|value| factor * value);
            }
        }
    }

    /// Writes keys and values `kv [rows, 2·kv_heads·head_size]` to the pages of the segment's sequence.
    fn write(&mut self, segment: &Rows, layer: usize, kv: ArrayView2<'_, f32>) -> Result<(), Error> {
        let (keys, values) = kv.split_at(Axis(1), self.spec.kv_heads * self.spec.head_size);
        let table = self.tables.table(segment.sequence);
        self.pages.write(self.kernel, layer, table, segment.position, keys, values)?;
        self.lengths[segment.sequence] = segment.position + segment.rows;
        Ok(())
    }

    fn attend_segment(
        &self,
        segment: &Rows,
        layer: usize,
        queries: ArrayView2<'_, f32>,
        out: ArrayViewMut2<'_, f32>,
    ) -> Result<(), Error> {
        let length = self.lengths[segment.sequence];
        if length == 0 {
            return Err(Error::Input(format!("sequence {} holds nothing to attend to", segment.sequence)));
        }
        let Layer { slopes, window, chunk, factor, sinks, bias, .. } = &self.layers[layer];
        let span = |position: usize| match self.spec.mask {
            Mask::Causal => {
                let chunk = chunk.map_or(0, |size| position / size * size);
                (position + 1).saturating_sub(*window).max(chunk)..position + 1
            }
            Mask::Full => 0..length,
        };
        let positions = segment.position..segment.position + segment.rows;
        let rows: Vec<Query> = positions.map(|position| Query { position, span: span(position) }).collect();
        let bias = match (slopes, bias.as_ref().or(self.spec.bias.as_ref())) {
            (Some(slopes), _) => Bias::Slopes(slopes),
            (None, Some(bias)) => Bias::Distances(bias.table.view()),
            (None, None) => Bias::None,
        };
        let AttentionSpec { heads, scale, softcap, .. } = self.spec;
        let scale = scale * factor;
        let sinks = sinks.as_deref();
        let attention = Attention { kernel: self.kernel, heads, scale, softcap, bias, sinks };
        let sequence = self.pages.sequence(layer, self.tables.table(segment.sequence));
        Ok(attention.attend(queries, &sequence, &rows, out)?)
    }
}
