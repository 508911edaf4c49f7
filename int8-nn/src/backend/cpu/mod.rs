//! The CPU backend: int8 layers from `int8-cpu`, everything else in f32 on rayon's threads.

mod attention;
mod disentangled;
mod elementwise;
mod experts;
mod float;
mod linear;
mod projection;
mod rank;
mod recurrent;
mod selection;
mod streams;

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use int8_cpu::{Prologue, Store};
use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis, Zip, s};
use projection::Target;
use rayon::prelude::*;

use crate::Error;
use crate::backend::{
    ActivationRole, AttentionSpec, Backend, BatchCapacity, CacheCapacity, Capabilities, ColumnCopy, Experts,
    GraphKey, Input, LinearStatistics, NormSpec, Observer, Output, PageTables, Segment,
};
use crate::config::{Activation, ClampedGate, GateFunction, Xielu};
use crate::convert;
use crate::precision::{Precision, Site};
use crate::sampler::Sampler;
use crate::weights::{LinearSource, RowTable};

/// The kernels of this machine, and their check against the reference.
pub use int8_cpu::{Kernel, verify};

pub use attention::CpuCache;
use float::add_rows;
pub use linear::CpuLinear;

/// Runs models on this machine's processor. Results do not depend on the number of threads.
#[derive(Debug)]
pub struct CpuBackend {
    kernel: Kernel,
    observer: Mutex<Option<Arc<dyn Observer>>>,
    /// Whether there is an observer: each projection asks.
    observed: AtomicBool,
}

/// Activations `f32 [rows, width]`.
#[derive(Debug, Default)]
pub struct CpuActivations {
    data: Vec<f32>,
    rows: usize,
    max_rows: usize,
    width: usize,
}

/// The tokens of a forward: row by row their id and position, the segments they come from, and the selected rows.
#[derive(Debug, Default)]
pub struct CpuBatch {
    ids: Vec<u32>,
    positions: Vec<usize>,
    segments: Vec<Rows>,
    selected: Vec<usize>,
}

/// The rows of one segment.
#[derive(Debug, Clone, Copy)]
struct Rows {
    sequence: usize,
    first_row: usize,
    rows: usize,
    position: usize,
    /// Tokens of the text.
    length: usize,
}

impl Rows {
    /// As a range.
    fn range(&self) -> Range<usize> {
        self.first_row..self.first_row + self.rows
    }
}

impl CpuBackend {
    /// With the kernel that the environment variable `INT8_KERNEL` names, or the best this processor has.
    ///
    /// # Errors
    /// When the variable names no kernel that runs here.
    pub fn new() -> Result<Self, Error> {
        Ok(Self::with_kernel(Kernel::select()?))
    }

    /// With this kernel.
    pub fn with_kernel(kernel: Kernel) -> Self {
        Self { kernel, observer: Mutex::default(), observed: AtomicBool::new(false) }
    }

    /// The observer, if there is one.
    fn observer(&self) -> Option<Arc<dyn Observer>> {
        if !self.observed.load(Ordering::Acquire) {
            return None;
        }
        self.observer.lock().expect("no panic holds this lock").clone()
    }

    /// The kernel of the int8 layers.
    pub fn kernel(&self) -> Kernel {
        self.kernel
    }
}

impl<'a> Input<'a, CpuBackend> {
    /// The activations and their prologue.
    fn parts(&self) -> (ArrayView2<'a, f32>, Prologue<'a>) {
        match *self {
            Input::Plain(x) => (x.view(), Prologue::None),
            Input::Normed(x, norm) => (x.view(), projection::normed(norm)),
            Input::Activated(x, activation) => (x.view(), projection::activated(activation, false)),
            Input::Gated(x, activation) => (x.view(), projection::activated(activation, true)),
        }
    }
}

impl CpuActivations {
    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// These rows.
    #[cfg(test)]
    pub(crate) fn of(rows: &Array2<f32>) -> Self {
        let mut activations = Self::room(rows.nrows(), rows.ncols());
        activations.resize(rows.nrows()).assign(rows);
        activations
    }

    /// Room for `max_rows` rows.
    #[cfg(test)]
    pub(crate) fn room(max_rows: usize, width: usize) -> Self {
        Self { data: Vec::new(), rows: 0, max_rows, width }
    }

    /// All rows.
    fn view(&self) -> ArrayView2<'_, f32> {
        view(&self.data, self.rows, self.width)
    }

    /// Takes `rows` rows, at most as many as there is room for. Their content is not defined: the caller overwrites them.
    fn resize(&mut self, rows: usize) -> ArrayViewMut2<'_, f32> {
        assert!(rows <= self.max_rows, "{rows} rows of activations that were made for {}", self.max_rows);
        self.rows = rows;
        self.data.resize(rows * self.width, 0.0);
        self.view_mut()
    }

    fn view_mut(&mut self) -> ArrayViewMut2<'_, f32> {
        ArrayViewMut2::from_shape((self.rows, self.width), &mut self.data).expect("sized by resize")
    }
}

fn view(data: &[f32], rows: usize, width: usize) -> ArrayView2<'_, f32> {
    ArrayView2::from_shape((rows, width), data).expect("rows and width were set together with the data")
}

impl Backend for CpuBackend {
    type Activations = CpuActivations;
    type Linear = CpuLinear;
    type Norm = NormSpec;
    type Embedding = RowTable;
    type Cache = CpuCache;
    type Batch = CpuBatch;

    fn describe(&self) -> String {
        format!("CPU, int8 kernel {}, {} threads", self.kernel.name(), rayon::current_num_threads())
    }

    fn capabilities(&self) -> Capabilities {
        let all = Capabilities::all("the CPU".to_owned());
        Capabilities { prefers_bf16_cache: self.kernel.attends_on_bf16_tiles(), ..all }
    }

    fn linear(&self, site: Site, source: &LinearSource, precision: &Precision) -> Result<CpuLinear, Error> {
        CpuLinear::load(self.kernel, site, source, precision)
    }

    fn tied(&self, site: Site, embedding: &RowTable) -> Result<CpuLinear, Error> {
        CpuLinear::tied(self.kernel, site, embedding, 0..embedding.dim().0)
    }

    fn norm(&self, spec: &NormSpec) -> Result<NormSpec, Error> {
        Ok(spec.clone())
    }

    /// Rows are read where they lie: of a table of a gigabyte a text needs a few.
    fn embedding(&self, table: &RowTable) -> Result<RowTable, Error> {
        Ok(table.clone())
    }

    fn activations(&self, max_rows: usize, width: usize, _: ActivationRole) -> Result<CpuActivations, Error> {
        let mut data = Vec::new();
        data.try_reserve_exact(max_rows.saturating_mul(width)).map_err(|_| {
            Error::Input(format!("not enough memory for activations of {max_rows} tokens × {width} f32"))
        })?;
        Ok(CpuActivations { data, rows: 0, max_rows, width })
    }

    fn cache(&self, spec: &AttentionSpec, capacity: CacheCapacity) -> Result<CpuCache, Error> {
        CpuCache::new(self.kernel, spec, capacity)
    }

    fn cache_bytes(&self, cache: &CpuCache) -> usize {
        cache.bytes()
    }

    fn page_tables(&self, cache: &CpuCache, read: &mut dyn FnMut(&PageTables)) {
        read(cache.tables());
    }

    fn batch(&self, capacity: BatchCapacity) -> Result<CpuBatch, Error> {
        Ok(CpuBatch {
            ids: Vec::with_capacity(capacity.rows),
            positions: Vec::with_capacity(capacity.rows),
            segments: Vec::with_capacity(capacity.segments),
            selected: Vec::with_capacity(capacity.selected),
        })
    }

    fn reserve(&self, cache: &mut CpuCache, ranges: &[(usize, Range<usize>)]) -> Result<(), Error> {
        cache.reserve(ranges)
    }

    fn release(&self, cache: &mut CpuCache, sequence: usize) -> Result<(), Error> {
        cache.release(sequence);
        Ok(())
    }

    fn fork(&self, cache: &mut CpuCache, from: usize, to: usize, positions: usize) -> Result<(), Error> {
        cache.fork(from, to, positions)
    }

    fn set_batch(&self, batch: &mut CpuBatch, segments: &[Segment<'_>]) -> Result<(), Error> {
        batch.ids.clear();
        batch.positions.clear();
        batch.segments.clear();
        for segment in segments {
            batch.segments.push(Rows {
                sequence: segment.sequence,
                first_row: batch.ids.len(),
                rows: segment.ids.len(),
                position: segment.position,
                length: segment.length,
            });
            batch.ids.extend_from_slice(segment.ids);
            batch.positions.extend(segment.position..segment.position + segment.ids.len());
        }
        Ok(())
    }

    fn set_selection(&self, batch: &mut CpuBatch, rows: &[usize]) -> Result<(), Error> {
        batch.selected.clear();
        batch.selected.extend_from_slice(rows);
        Ok(())
    }

    fn run(
        &self,
        _: GraphKey,
        _: &CpuBatch,
        body: &mut (dyn FnMut() -> Result<(), Error> + Send),
    ) -> Result<(), Error> {
        int8_cpu::pool::spin_during(body)
    }

    fn embed(
        &self,
        batch: &CpuBatch,
        tokens: Option<&RowTable>,
        positions: Option<(&RowTable, usize)>,
        out: Output<'_, Self>,
    ) -> Result<(), Error> {
        let mut out = match out {
            Output::Add(out) => out.view_mut(),
            Output::Store(out) => {
                let mut out = out.resize(batch.ids.len());
                out.fill(0.0);
                out
            }
        };
        if let Some(tokens) = tokens {
            add_rows(tokens, batch.ids.iter().map(|id| convert::index(*id)), &mut out)?;
        }
        if let Some((table, offset)) = positions {
            add_rows(table, batch.positions.iter().map(|position| position + offset), &mut out)?;
        }
        Ok(())
    }

    fn normalize(&self, x: &mut CpuActivations, norm: &NormSpec) -> Result<(), Error> {
        elementwise::normalize(self.kernel, x.view_mut(), norm);
        Ok(())
    }

    fn normalize_columns(
        &self,
        x: &mut CpuActivations,
        columns: Range<usize>,
        norm: &NormSpec,
    ) -> Result<(), Error> {
        elementwise::normalize_columns(self.kernel, x.view_mut(), columns, norm);
        Ok(())
    }

    fn add(&self, x: &mut CpuActivations, y: &CpuActivations, norm: Option<&NormSpec>) -> Result<(), Error> {
        match norm {
            None => x.view_mut().zip_mut_with(&y.view(), |x, y| *x += y),
            Some(norm) => {
                let y = projection::materialize(self.kernel, y.view(), projection::normed(norm))?;
                x.view_mut().zip_mut_with(&y.view(), |x, y| *x += y);
            }
        }
        Ok(())
    }

    fn scale(&self, x: &mut CpuActivations, factor: Option<f32>, cap: Option<f32>) -> Result<(), Error> {
        if let Some(factor) = factor {
            x.data.iter_mut().for_each(|value| *value *= factor);
        }
        if let Some(cap) = cap {
            x.data.iter_mut().for_each(|value| *value = cap * (*value / cap).tanh());
        }
        Ok(())
    }

    fn scale_columns(&self, x: &mut CpuActivations, columns: Range<usize>, factor: f32) -> Result<(), Error> {
        x.view_mut().slice_mut(s![.., columns]).mapv_inplace(|value| factor * value);
        Ok(())
    }

    fn clamp(&self, x: &mut CpuActivations, limit: f32) -> Result<(), Error> {
        x.data.iter_mut().for_each(|value| *value = value.clamp(-limit, limit));
        Ok(())
    }

    fn gate_heads(
        &self,
        x: &mut CpuActivations,
        gate: &CpuActivations,
        function: GateFunction,
        run: usize,
    ) -> Result<(), Error> {
        let gates = gate.view();
        for (mut values, gates) in x.view_mut().rows_mut().into_iter().zip(gates.rows()) {
            for (column, value) in values.iter_mut().enumerate() {
                *value *= function.at(gates[column / run]);
            }
        }
        Ok(())
    }

    fn activate(
        &self,
        x: &CpuActivations,
        activation: Activation,
        gated: bool,
        out: &mut CpuActivations,
    ) -> Result<(), Error> {
        let computed =
            projection::materialize(self.kernel, x.view(), projection::activated(activation, gated))?;
        out.resize(x.rows).assign(&computed.view());
        Ok(())
    }

    fn clamp_gate(
        &self,
        x: &CpuActivations,
        gate: ClampedGate,
        out: &mut CpuActivations,
    ) -> Result<(), Error> {
        let (gates, ups) = x.view().split_at(Axis(1), x.width / 2);
        Zip::from(out.resize(x.rows)).and(gates).and(ups).for_each(|out, g, u| *out = gate.apply(*g, *u));
        Ok(())
    }

    fn subtract_half(&self, x: &CpuActivations, factor: f32, out: &mut CpuActivations) -> Result<(), Error> {
        let (left, right) = x.view().split_at(Axis(1), x.width / 2);
        Zip::from(out.resize(x.rows)).and(left).and(right).for_each(|out, l, r| *out = l - factor * r);
        Ok(())
    }

    fn xielu(&self, x: &mut CpuActivations, function: Xielu) -> Result<(), Error> {
        x.data.iter_mut().for_each(|value| *value = function.at(*value));
        Ok(())
    }

    fn embed_known(
        &self,
        batch: &CpuBatch,
        table: &RowTable,
        factor: f32,
        out: &mut CpuActivations,
    ) -> Result<(), Error> {
        let known = table.dim().0;
        let mut out = out.resize(batch.ids.len());
        out.fill(0.0);
        let row = |id: &u32| Some(convert::index(*id)).filter(|row| *row < known).unwrap_or_default();
        add_rows(table, batch.ids.iter().map(row), &mut out)?;
        out *= factor;
        Ok(())
    }

    fn activate_by(
        &self,
        x: &mut CpuActivations,
        activation: Activation,
        factors: &CpuActivations,
        first: usize,
    ) -> Result<(), Error> {
        let width = x.width;
        let activated =
            projection::materialize(self.kernel, x.view(), projection::activated(activation, false))?;
        let factors = factors.view();
        let factors = factors.slice(s![.., first..first + width]);
        Zip::from(x.view_mut()).and(activated.view()).and(factors).for_each(|x, a, f| *x = a * f);
        Ok(())
    }

    fn sparsify(&self, x: &mut CpuActivations, width: usize, multiplier: f32) -> Result<(), Error> {
        streams::sparsify(x.view_mut(), width, multiplier);
        Ok(())
    }

    fn predict_streams(
        &self,
        streams: &mut [&mut CpuActivations],
        modes: &CpuActivations,
        prediction: ArrayView2<'_, f32>,
    ) -> Result<(), Error> {
        streams::predict(
            streams.iter_mut().map(|stream| stream.view_mut()).collect(),
            modes.view(),
            prediction,
        );
        Ok(())
    }

    fn correct_streams(
        &self,
        streams: &mut [&mut CpuActivations],
        computed: &CpuActivations,
        modes: &CpuActivations,
        correction: ArrayView2<'_, f32>,
    ) -> Result<(), Error> {
        let streams = streams.iter_mut().map(|stream| stream.view_mut()).collect();
        streams::correct(streams, computed.view(), modes.view(), correction);
        Ok(())
    }

    fn match_magnitude(&self, x: &mut CpuActivations, y: &CpuActivations) -> Result<(), Error> {
        streams::match_magnitude(x.view_mut(), y.view());
        Ok(())
    }

    fn scale_by(&self, x: &mut CpuActivations, factors: &[f32]) -> Result<(), Error> {
        for mut row in x.view_mut().rows_mut() {
            row.iter_mut().zip(factors).for_each(|(value, factor)| *value *= factor);
        }
        Ok(())
    }

    fn copy_columns(
        &self,
        from: &[&CpuActivations],
        copies: &[ColumnCopy],
        out: &mut CpuActivations,
    ) -> Result<(), Error> {
        let mut out = out.resize(from.first().map_or(0, |first| first.rows));
        out.fill(0.0);
        for ColumnCopy { source, from: first, to, count } in copies {
            let columns = from[*source].view();
            let columns = columns.slice(s![.., *first..first + count]);
            out.slice_mut(s![.., *to..to + count]).assign(&columns);
        }
        Ok(())
    }

    fn experts(
        &self,
        input: Input<'_, Self>,
        experts: &Experts<Self>,
        out: &mut CpuActivations,
    ) -> Result<(), Error> {
        let (x, prologue) = input.parts();
        let raw = x;
        let mut computed;
        let x = match (self.observer(), experts.up.first(), prologue) {
            // Experts share their input: an observer sees it once, as that of the first one.
            (Some(observer), Some(linear), _) => {
                computed = projection::materialize(self.kernel, x, prologue)?;
                observer.input(linear.site(), linear.name(), computed.view_mut());
                computed.view()
            }
            (_, _, Prologue::None) => x,
            _ => {
                computed = projection::materialize(self.kernel, x, prologue)?;
                computed.view()
            }
        };
        let mut out = out.resize(x.nrows());
        out.fill(0.0);
        let routed = match &experts.router_norm {
            Some(norm) => Some(projection::materialize(self.kernel, raw, projection::normed(norm))?),
            None => None,
        };
        let routed = routed.as_ref().map_or(x, |routed| routed.view());
        experts::add(self.kernel, (x, routed), experts, out)
    }

    fn project(
        &self,
        input: Input<'_, Self>,
        targets: &mut [(&CpuLinear, Output<'_, Self>)],
    ) -> Result<(), Error> {
        let (x, prologue) = input.parts();
        let rows = x.nrows();
        let targets = targets.iter_mut().map(|(linear, output)| match output {
            Output::Store(out) => Target { linear, store: Store::Overwrite, out: out.resize(rows) },
            Output::Add(out) => Target { linear, store: Store::Accumulate, out: out.view_mut() },
        });
        let Some(observer) = self.observer() else {
            return projection::project(self.kernel, x, prologue, targets);
        };
        // An observer may change the input of each layer for itself.
        for target in targets {
            let mut x = projection::materialize(self.kernel, x, prologue)?;
            observer.input(target.linear.site(), target.linear.name(), x.view_mut());
            projection::project(self.kernel, x.view(), Prologue::None, [target])?;
        }
        Ok(())
    }

    fn select_keys(
        &self,
        batch: &CpuBatch,
        layer: usize,
        queries: &mut CpuActivations,
        keys: &mut CpuActivations,
        weights: &CpuActivations,
        cache: &mut CpuCache,
    ) -> Result<(), Error> {
        cache.select_keys(&batch.segments, layer, queries.view_mut(), keys.view_mut(), weights.view());
        Ok(())
    }

    fn attention(
        &self,
        batch: &CpuBatch,
        layer: usize,
        qkv: &mut CpuActivations,
        cache: &mut CpuCache,
        out: &mut CpuActivations,
    ) -> Result<(), Error> {
        let out = out.resize(qkv.rows);
        cache.attend(&batch.segments, layer, qkv.view_mut(), out)
    }

    fn convolve(
        &self,
        batch: &CpuBatch,
        layer: usize,
        x: &mut CpuActivations,
        cache: &mut CpuCache,
    ) -> Result<(), Error> {
        recurrent::convolve(self.kernel, &batch.segments, &mut cache.states, layer, x.view_mut())
    }

    fn recur(
        &self,
        batch: &CpuBatch,
        layer: usize,
        inputs: &[&CpuActivations],
        cache: &mut CpuCache,
        out: &mut CpuActivations,
    ) -> Result<(), Error> {
        recurrent::recur(self.kernel, &batch.segments, &mut cache.states, layer, inputs, out)
    }

    fn gate(
        &self,
        x: &mut CpuActivations,
        gate: &CpuActivations,
        columns: Range<usize>,
        activation: Activation,
    ) -> Result<(), Error> {
        let gates = gate.view();
        elementwise::gate(self.kernel, x.view_mut(), gates.slice(s![.., columns]), activation);
        Ok(())
    }

    fn write_cross_kv(
        &self,
        batch: &CpuBatch,
        layer: usize,
        kv: &CpuActivations,
        cache: &mut CpuCache,
    ) -> Result<(), Error> {
        cache.write_cross_kv(&batch.segments, layer, kv.view())
    }

    fn cross_attention(
        &self,
        batch: &CpuBatch,
        layer: usize,
        q: &CpuActivations,
        cache: &CpuCache,
        out: &mut CpuActivations,
    ) -> Result<(), Error> {
        cache.cross_attention(&batch.segments, layer, q.view(), out.resize(q.rows))
    }

    fn gather(&self, batch: &CpuBatch, x: &CpuActivations, out: &mut CpuActivations) -> Result<(), Error> {
        let source = x.view();
        let mut out = out.resize(batch.selected.len());
        for (mut target, row) in out.rows_mut().into_iter().zip(&batch.selected) {
            target.assign(&source.row(*row));
        }
        Ok(())
    }

    fn receive(&self, _: &Self, x: &CpuActivations, out: &mut CpuActivations) -> Result<(), Error> {
        out.resize(x.rows()).assign(&x.view());
        Ok(())
    }

    fn sample(&self, logits: &CpuActivations, samplers: &mut [Sampler]) -> Result<Vec<u32>, Error> {
        if samplers.len() != logits.rows {
            let (samplers, rows) = (samplers.len(), logits.rows);
            return Err(Error::Input(format!("{samplers} samplers for {rows} rows of logits")));
        }
        let rows = logits.data.chunks_exact(logits.width);
        // A draw from a whole vocabulary takes longer than handing it to another thread.
        let drawn: Vec<_> = match samplers {
            [sampler] => rows.map(|logits| sampler.next(logits)).collect(),
            samplers => {
                let rows: Vec<&[f32]> = rows.collect();
                let both = samplers.par_iter_mut().zip(rows);
                both.map(|(sampler, logits)| sampler.next(logits)).collect()
            }
        };
        drawn.into_iter().collect()
    }

    fn read<'a>(&self, x: &'a CpuActivations, _: &'a mut Vec<f32>) -> Result<&'a [f32], Error> {
        Ok(&x.data)
    }

    fn linear_name<'a>(&self, linear: &'a CpuLinear) -> &'a str {
        linear.name()
    }

    fn multiply(&self, linear: &CpuLinear, x: ArrayView2<'_, f32>) -> Result<Array2<f32>, Error> {
        linear.multiply(x)
    }

    fn observe(&self, observer: Option<Arc<dyn Observer>>) {
        let mut current = self.observer.lock().expect("no panic holds this lock");
        self.observed.store(observer.is_some(), Ordering::Release);
        *current = observer;
    }

    fn statistics(&self, linear: &CpuLinear) -> LinearStatistics {
        linear.statistics()
    }

    fn reset_statistics(&self, linear: &CpuLinear) {
        linear.reset_statistics();
    }

    fn linear_bytes(&self, linear: &CpuLinear) -> usize {
        linear.bytes()
    }

    fn embedding_bytes(&self, embedding: &RowTable) -> usize {
        embedding.matrix().map_or(0, |matrix| matrix.bytes())
    }
}

/// Rows from which on work is spread over threads: below, starting the threads costs more than it saves.
const PARALLEL_ROWS: usize = 8;
