//! Attention over a paged KV cache: causal, over a whole sequence, or cross-attention; grouped queries, rotary positions, ALiBi,
//! learned biases, sliding windows and soft caps.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use int8_cpu::attention::{Attention, Bias, KvPages, KvRows, PAGE_POSITIONS, Query};
use int8_cpu::{Kernel, pool};
use ndarray::parallel::prelude::*;
use ndarray::{ArrayView2, ArrayViewMut2, Axis, s};

use super::Rows;
use super::disentangled;
use super::elementwise::normalize_columns;
use super::recurrent::States;
use super::selection::{IndexPages, bias, scores};
use crate::Error;
use crate::backend::positions::{Rotation, Rotations};
use crate::backend::{
    AttentionSpec, CacheCapacity, DistanceBias, DistanceVectors, Mask, NormSpec, PageTables,
};
use crate::config::{HeadShape, IndexShape, Positions, QueryGrowth, Rotary};

/// Products of a query and a key, by width of the query, below which one thread attends: some 10 µs, where each sequence has one
/// query and reads its keys and values from memory.
const SERIAL_WORK: usize = 1 << 15;

/// Keys and values of all blocks and sequences, in pages, and the recurrent states beside them.
#[derive(Debug)]
pub struct CpuCache {
    kernel: Kernel,
    spec: AttentionSpec,
    tables: PageTables,
    /// One pool for each different width of keys; a page number is one page in each.
    pages: Vec<KvPages>,
    /// Positions written, by sequence.
    lengths: Vec<usize>,
    /// Each different kind of rotary positions once.
    rotations: Vec<Turns>,
    layers: Vec<Layer>,
    /// The keys of indexers.
    index: IndexPages,
    /// What the last selection adds to the scores of each row of the forward; empty where a row sees all.
    selection: Vec<Vec<f32>>,
    pub(super) states: States,
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
    shape: HeadShape,
    /// The layer sees selected keys alone; its own selection, and the place of its keys.
    selects: bool,
    index: Option<(IndexShape, usize)>,
    /// The layer writes keys and values of its own.
    writes: bool,
    /// Where its keys and values are: the pool, and the layer there.
    place: (usize, usize),
    bias: Option<DistanceBias>,
    disentangled: Option<Arc<DistanceVectors>>,
}

impl CpuCache {
    pub(super) fn new(kernel: Kernel, spec: &AttentionSpec, capacity: CacheCapacity) -> Result<Self, Error> {
        let mut rotations = Rotations::default();
        let mut layers: Vec<Layer> = Vec::new();
        let (mut indexers, mut index_size) = (0, 0);
        // Shape and number of layers of each pool.
        let mut pools: Vec<(HeadShape, usize)> = Vec::new();
        for (index, layer) in spec.layers.iter().enumerate() {
            let same = |(shape, _): &(HeadShape, usize)| {
                (shape.kv_heads, shape.head_size) == (layer.shape.kv_heads, layer.shape.head_size)
            };
            let writes = layer.source == index;
            let place = if !layer.attends {
                (0, 0)
            } else if writes {
                let pool = pools.iter().position(same).unwrap_or_else(|| {
                    pools.push((layer.shape, 0));
                    pools.len() - 1
                });
                let places = &mut pools[pool].1;
                *places = if spec.transient { 1 } else { *places + 1 };
                (pool, *places - 1)
            } else {
                let source = layers.get(layer.source).filter(|source| {
                    (source.shape.kv_heads, source.shape.head_size)
                        == (layer.shape.kv_heads, layer.shape.head_size)
                });
                let unfit =
                    || Error::Unsupported(format!("layer {index} with the keys of layer {}", layer.source));
                source.ok_or_else(unfit)?.place
            };
            let rotation = if layer.attends { rotations.place(&layer.positions) } else { None };
            let slopes = matches!(layer.positions, Positions::Alibi).then(|| spec.alibi_slopes());
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
                shape: layer.shape,
                selects: layer.selects,
                index: layer.index.map(|index| {
                    indexers += 1;
                    index_size = index.size;
                    (index, indexers - 1)
                }),
                writes,
                place,
                bias: layer.bias.clone(),
                disentangled: layer.disentangled.clone(),
            });
        }
        let count = PageTables::pages_for(capacity, PAGE_POSITIONS);
        let pool = |(shape, layers): &(HeadShape, usize)| {
            KvPages::new(spec.kv_cache, *layers, shape.kv_heads, shape.head_size, count)
        };
        let pages = pools.iter().map(pool).collect::<Result<_, _>>()?;
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
            index: IndexPages::new(indexers, index_size, PAGE_POSITIONS),
            selection: Vec::new(),
            states: States::new(spec.layers.iter().map(|layer| layer.recurrent.clone()), capacity.sequences),
        })
    }

    pub(super) fn tables(&self) -> &PageTables {
        &self.tables
    }

    /// Bytes of the pages and states that sequences hold.
    pub(super) fn bytes(&self) -> usize {
        self.tables.used() * self.pages.iter().map(KvPages::page_bytes).sum::<usize>() + self.states.bytes()
    }

    pub(super) fn reserve(&mut self, ranges: &[(usize, Range<usize>)]) -> Result<(), Error> {
        for copy in self.tables.reserve(ranges)? {
            self.pages.iter_mut().for_each(|pool| pool.copy(copy.from, copy.to));
            self.index.copy(copy);
        }
        Ok(())
    }

    pub(super) fn release(&mut self, sequence: usize) {
        self.tables.release(sequence);
        self.states.release(sequence);
        self.lengths[sequence] = 0;
    }

    pub(super) fn fork(&mut self, from: usize, to: usize, positions: usize) -> Result<(), Error> {
        self.states.fork(from, to, positions)?;
        self.tables.fork(from, to, positions)?;
        self.lengths[to] = positions;
        Ok(())
    }

    /// Fills the pages that no sequence holds with NaN, so that a test sees who reads them.
    pub fn poison_free_pages(&mut self) {
        for page in self.tables.free_pages() {
            self.pages.iter_mut().for_each(|pool| pool.poison(*page));
            self.index.poison(*page);
        }
    }

    /// `qkv [rows, (heads + 2·kv_heads)·head_size]`, or of queries alone where the layer reads another's keys →
    /// `out [rows, heads·head_size]`.
    pub(super) fn attend(
        &mut self,
        segments: &[Rows],
        layer: usize,
        mut qkv: ArrayViewMut2<'_, f32>,
        out: ArrayViewMut2<'_, f32>,
    ) -> Result<(), Error> {
        let queries = self.layers[layer].shape.queries();
        for segment in segments {
            let mut qkv = qkv.slice_mut(s![segment.range(), ..]);
            self.rotate(layer, segment, &mut qkv);
            self.after_rotation(layer, segment, &mut qkv);
        }
        let qkv = qkv.view();
        if self.layers[layer].writes {
            self.write(segments, layer, qkv.slice(s![.., queries..]))?;
        }
        let disentangled = self.layers[layer].disentangled.is_some();
        self.each_segment(segments, queries, out, |segment, out| {
            let qkv = qkv.slice(s![segment.range(), ..]);
            if disentangled {
                self.attend_disentangled(segment, layer, qkv, out)
            } else {
                self.attend_segment(segment, layer, qkv.slice(s![.., ..queries]), out)
            }
        })
    }

    /// Writes `kv [rows, 2·kv_heads·head_size]` for [`cross_attention`](Self::cross_attention).
    pub(super) fn write_cross_kv(
        &mut self,
        segments: &[Rows],
        layer: usize,
        kv: ArrayView2<'_, f32>,
    ) -> Result<(), Error> {
        self.write(segments, layer, kv)
    }

    /// `q [rows, heads·head_size]` → `out [rows, heads·head_size]`, over all that was written.
    pub(super) fn cross_attention(
        &self,
        segments: &[Rows],
        layer: usize,
        q: ArrayView2<'_, f32>,
        out: ArrayViewMut2<'_, f32>,
    ) -> Result<(), Error> {
        self.each_segment(segments, q.ncols(), out, |segment, out| {
            self.attend_segment(segment, layer, q.slice(s![segment.range(), ..]), out)
        })
    }

    /// Attends from the rows of each segment, which have so many `queries`, to their part of `out`: several at once if that is much work.
    fn each_segment(
        &self,
        segments: &[Rows],
        queries: usize,
        mut rest: ArrayViewMut2<'_, f32>,
        attend: impl Fn(&Rows, ArrayViewMut2<'_, f32>) -> Result<(), Error> + Sync,
    ) -> Result<(), Error> {
        let mut parts = Vec::with_capacity(segments.len());
        let mut work = 0;
        for segment in segments {
            let (out, others) = rest.split_at(Axis(0), segment.rows);
            (rest, work) = (others, work + segment.rows * self.lengths[segment.sequence] * queries);
            parts.push((segment, out));
        }
        if segments.len() > 1 && work >= SERIAL_WORK {
            let failed = Mutex::new(None);
            pool::for_each(
                parts,
                || (),
                |(), (segment, out)| {
                    if let Err(error) = attend(segment, out) {
                        failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                    }
                },
            );
            failed.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
        } else {
            parts.into_iter().try_for_each(|(segment, out)| attend(segment, out))
        }
    }

    /// As [`crate::backend::Backend::select_keys`].
    pub(super) fn select_keys(
        &mut self,
        segments: &[Rows],
        layer: usize,
        mut queries: ArrayViewMut2<'_, f32>,
        mut keys: ArrayViewMut2<'_, f32>,
        weights: ArrayView2<'_, f32>,
    ) {
        let Some((IndexShape { heads, size, chosen }, place)) = self.layers[layer].index else { return };
        self.selection.clear();
        for segment in segments {
            if let Some(rotation) = self.layers[layer].rotation {
                let (rotation, position) = self.rotations[rotation].of(segment);
                rotation.turn(position, size, &mut queries.slice_mut(s![segment.range(), ..]));
                rotation.turn(position, size, &mut keys.slice_mut(s![segment.range(), ..]));
            }
            let table = self.tables.table(segment.sequence);
            for row in 0..segment.rows {
                let key = keys.row(segment.first_row + row);
                self.index.write(place, table, segment.position + row, key);
            }
            let all = self.index.keys(place, table, segment.position + segment.rows);
            let rows: Vec<Vec<f32>> = (0..segment.rows)
                .into_par_iter()
                .map(|row| {
                    let length = segment.position + row + 1;
                    if length <= chosen {
                        return Vec::new();
                    }
                    let row = segment.first_row + row;
                    let queries = queries.row(row);
                    let queries = queries.to_shape((heads, size)).expect("heads·size columns");
                    let scores = scores(queries.view(), weights.row(row), all.slice(s![..length, ..]));
                    bias(&scores, chosen)
                })
                .collect();
            self.selection.extend(rows);
        }
    }

    /// Rotates queries and keys in place; pairs are `(i, i + dims/2)`.
    fn rotate(&mut self, layer: usize, segment: &Rows, qkv: &mut ArrayViewMut2<'_, f32>) {
        let Layer { shape, writes, .. } = &self.layers[layer];
        let size = shape.head_size;
        let rotated = shape.queries() + if *writes { shape.keys() } else { 0 };
        let Some(place) = self.layers[layer].rotation else { return };
        let (rotation, position) = self.rotations[place].of(segment);
        let mut turned = qkv.slice_mut(s![.., ..rotated]);
        rotation.turn(position, size, &mut turned);
    }

    /// Normalises the heads of queries and keys, and multiplies queries by the factor of their position.
    fn after_rotation(&self, layer: usize, segment: &Rows, qkv: &mut ArrayViewMut2<'_, f32>) {
        let Layer { norms, query_growth, shape, .. } = &self.layers[layer];
        let queries = 0..shape.queries();
        if let Some([of_queries, of_keys]) = norms {
            let keys = queries.end..queries.end + shape.keys();
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

    /// Writes keys and values `kv [rows, 2·kv_heads·head_size]` to the pages of the segments' sequences.
    fn write(&mut self, segments: &[Rows], layer: usize, kv: ArrayView2<'_, f32>) -> Result<(), Error> {
        let Layer { shape, place: (pool, place), .. } = self.layers[layer];
        let rows = |segment: &Rows| {
            let (keys, values) = kv.slice_move(s![segment.range(), ..]).split_at(Axis(1), shape.keys());
            KvRows { table: self.tables.table(segment.sequence), position: segment.position, keys, values }
        };
        let rows: Vec<KvRows<'_>> = segments.iter().map(rows).collect();
        self.pages[pool].write_all(self.kernel, place, &rows)?;
        for segment in segments {
            self.lengths[segment.sequence] = segment.position + segment.rows;
        }
        Ok(())
    }

    /// Disentangled attention of a whole sequence, `qkv [rows, 3·heads·head_size]`: each row has a bias of its own.
    fn attend_disentangled(
        &self,
        segment: &Rows,
        layer: usize,
        qkv: ArrayView2<'_, f32>,
        mut out: ArrayViewMut2<'_, f32>,
    ) -> Result<(), Error> {
        let Layer { disentangled, shape, factor, place: (pool, place), .. } = &self.layers[layer];
        let length = self.lengths[segment.sequence];
        let (Some(vectors), true) = (disentangled, segment.position == 0 && length == segment.rows) else {
            return Err(Error::Unsupported("disentangled attention to parts of a text".to_owned()));
        };
        let columns = shape.queries();
        let queries = qkv.slice(s![.., ..columns]);
        let AttentionSpec { scale, softcap, .. } = self.spec;
        let (heads, scale) = (shape.heads, scale * factor);
        let terms =
            disentangled::Terms::new(vectors, queries, qkv.slice(s![.., columns..2 * columns]), heads, scale);
        let attention =
            Attention { kernel: self.kernel, heads, scale, softcap, bias: Bias::None, sinks: None };
        let sequence = self.pages[*pool].sequence(*place, self.tables.table(segment.sequence));
        let rows = out.axis_chunks_iter_mut(Axis(0), 1).into_par_iter().enumerate();
        rows.try_for_each(|(position, out)| {
            let biases = terms.of_row(position);
            let attention = Attention { bias: Bias::Distances(biases.view()), ..attention };
            let query = [Query { position, span: 0..length }];
            Ok(attention.attend(queries.slice(s![position..=position, ..]), &sequence, &query, out)?)
        })
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
        let Layer {
            slopes, window, chunk, factor, sinks, bias, shape, selects, place: (pool, place), ..
        } = &self.layers[layer];
        let span = |position: usize| match self.spec.mask {
            Mask::Causal => {
                let chunk = chunk.map_or(0, |size| position / size * size);
                (position + 1).saturating_sub(*window).max(chunk)..position + 1
            }
            Mask::Full => {
                (position + 1).saturating_sub(*window)..position.saturating_add(*window).min(length)
            }
        };
        let positions = segment.position..segment.position + segment.rows;
        let rows: Vec<Query> = positions.map(|position| Query { position, span: span(position) }).collect();
        let bias = match (slopes, bias.as_ref().or(self.spec.bias.as_ref())) {
            (Some(slopes), _) => Bias::Slopes(slopes),
            (None, Some(bias)) => Bias::Distances(bias.table.view()),
            (None, None) => Bias::None,
        };
        let AttentionSpec { scale, softcap, .. } = self.spec;
        let (heads, scale) = (shape.heads, scale * factor);
        let sinks = sinks.as_deref();
        let attention = Attention { kernel: self.kernel, heads, scale, softcap, bias, sinks };
        let sequence = self.pages[*pool].sequence(*place, self.tables.table(segment.sequence));
        if !selects {
            return Ok(attention.attend(queries, &sequence, &rows, out)?);
        }
        let Some(selection) = self.selection.get(segment.range()) else {
            return Err(Error::Unsupported("attention to keys that no block before selected".to_owned()));
        };
        // The first rows see all that there is; each of the others has a bias of its own.
        let dense = selection.iter().take_while(|bias| bias.is_empty()).count();
        let (first, mut others) = out.split_at(Axis(0), dense);
        attention.attend(queries.slice(s![..dense, ..]), &sequence, &rows[..dense], first)?;
        for (row, hidden) in selection.iter().enumerate().skip(dense) {
            // By distance: the key of position t stands t places from the left, the row's own in the middle.
            let mut distances = vec![0.0; 2 * rows[row].position + 1];
            distances[..hidden.len()].copy_from_slice(hidden);
            let table = ArrayView2::from_shape((1, distances.len()), &distances).expect("one row");
            let table = table.broadcast((heads, distances.len())).expect("rows repeated");
            let attention = Attention { bias: Bias::Distances(table), ..attention };
            let out = others.slice_mut(s![row - dense..=row - dense, ..]);
            attention.attend(queries.slice(s![row..=row, ..]), &sequence, &rows[row..=row], out)?;
        }
        Ok(())
    }
}
