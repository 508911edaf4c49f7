//! A strict backend: the CPU's operations under a GPU's rules. Operations are recorded under their [`GraphKey`] and replayed
//! without calling the model's code again, buffers keep the capacity they were made with, and released pages are poisoned.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};

use int8_nn::Error;
use int8_nn::backend::cpu::{CpuActivations, CpuBackend, CpuBatch, CpuCache, CpuLinear};
use int8_nn::backend::{
    ActivationRole, AttentionSpec, Backend, BatchCapacity, CacheCapacity, Capabilities, ColumnCopy, Experts,
    GraphKey, Input, LinearStatistics, NormSpec, Observer, Output, PageTables, Phase, Precision, Segment,
    Site,
};
use int8_nn::config::{Activation, GateFunction};
use int8_nn::sampler::Sampler;
use int8_nn::weights::{LinearSource, RowTable};
use ndarray::{Array2, ArrayView2};

/// A rule of the trait that the model's code is imagined to break, to see that the mock would notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Broken {
    /// The graph's key has the rows and segments of the batch and does not name the phase.
    Phase,
    /// The selected rows are an argument of the operation, not data of the batch.
    Selection,
}

/// The operations of one phase; each returns the rows of its result.
type Record = Vec<Box<dyn Fn(&CpuBackend) -> Result<usize, Error> + Send + Sync>>;

/// A recorded phase and the rows of each operation's result.
#[derive(Default)]
struct Graph {
    record: Record,
    rows: Vec<usize>,
}

pub(crate) struct Mock {
    cpu: CpuBackend,
    recording: Mutex<Option<Record>>,
    broken: Option<Broken>,
    replays: Mutex<usize>,
    calibrated: Mutex<Vec<String>>,
}

pub(crate) struct Shared<T>(Arc<Mutex<T>>);

impl<T> Shared<T> {
    fn new(value: T) -> Self {
        Self(Arc::new(Mutex::new(value)))
    }
    fn handle(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
    fn lock(&self) -> MutexGuard<'_, T> {
        self.0.try_lock().expect("one operation at a time, and no operand twice")
    }
}

impl<T> std::fmt::Debug for Shared<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Shared<{}>", std::any::type_name::<T>())
    }
}

#[derive(Debug)]
pub(crate) struct MockBatch {
    inner: Shared<CpuBatch>,
    capacity: BatchCapacity,
    selected: Vec<usize>,
    /// Rows and segments of the forward at hand.
    held: (usize, usize),
    graphs: Shared<HashMap<GraphKey, Graph>>,
}

impl std::fmt::Debug for Mock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Mock, broken: {:?}", self.broken)
    }
}

impl Mock {
    pub(crate) fn new(broken: Option<Broken>) -> Self {
        let cpu = CpuBackend::new().expect("a kernel");
        Self {
            cpu,
            recording: Mutex::default(),
            broken,
            replays: Mutex::default(),
            calibrated: Mutex::default(),
        }
    }

    /// How often a record was replayed.
    pub(crate) fn replays(&self) -> usize {
        *self.replays.lock().expect("not poisoned")
    }

    /// The int8 layers that have seen an input of the calibration.
    pub(crate) fn calibrated(&self) -> Vec<String> {
        self.calibrated.lock().expect("not poisoned").clone()
    }

    fn record(
        &self,
        operation: impl Fn(&CpuBackend) -> Result<usize, Error> + Send + Sync + 'static,
    ) -> Result<(), Error> {
        let mut recording = self.recording.lock().expect("not poisoned");
        recording.as_mut().expect("operations are called inside of run").push(Box::new(operation));
        Ok(())
    }
}

/// An [`Input`] with handles.
enum Source {
    Plain(Shared<CpuActivations>),
    Normed(Shared<CpuActivations>, Arc<NormSpec>),
    Activated(Shared<CpuActivations>, int8_nn::config::Activation),
    Gated(Shared<CpuActivations>, int8_nn::config::Activation),
}

impl Source {
    fn of(input: &Input<'_, Mock>) -> Self {
        match input {
            Input::Plain(x) => Self::Plain(x.handle()),
            Input::Normed(x, norm) => Self::Normed(x.handle(), Arc::clone(norm)),
            Input::Activated(x, activation) => Self::Activated(x.handle(), *activation),
            Input::Gated(x, activation) => Self::Gated(x.handle(), *activation),
        }
    }

    fn with<R>(&self, body: impl FnOnce(Input<'_, CpuBackend>) -> R) -> R {
        match self {
            Self::Plain(x) => body(Input::Plain(&*x.lock())),
            Self::Normed(x, norm) => body(Input::Normed(&*x.lock(), &**norm)),
            Self::Activated(x, activation) => body(Input::Activated(&*x.lock(), *activation)),
            Self::Gated(x, activation) => body(Input::Gated(&*x.lock(), *activation)),
        }
    }
}

/// An [`Output`] with a handle.
struct Target {
    out: Shared<CpuActivations>,
    add: bool,
}

impl Target {
    fn of(output: &Output<'_, Mock>) -> Self {
        match output {
            Output::Store(out) => Self { out: out.handle(), add: false },
            Output::Add(out) => Self { out: out.handle(), add: true },
        }
    }

    fn output<'a>(&self, out: &'a mut CpuActivations) -> Output<'a, CpuBackend> {
        if self.add { Output::Add(out) } else { Output::Store(out) }
    }
}

impl Backend for Mock {
    type Activations = Shared<CpuActivations>;
    type Linear = Arc<CpuLinear>;
    type Norm = Arc<NormSpec>;
    type Embedding = Arc<RowTable>;
    type Cache = Shared<CpuCache>;
    type Batch = MockBatch;

    fn describe(&self) -> String {
        "the strict mock".to_owned()
    }
    fn capabilities(&self) -> Capabilities {
        // The experts of the CPU are those of its own backend's type.
        let mut capabilities = self.cpu.capabilities();
        capabilities.features.remove(&int8_nn::backend::Feature::Experts);
        capabilities
    }
    fn linear(
        &self,
        site: Site,
        source: &LinearSource,
        precision: &Precision,
    ) -> Result<Self::Linear, Error> {
        self.cpu.linear(site, source, precision).map(Arc::new)
    }
    fn tied(&self, site: Site, embedding: &Self::Embedding) -> Result<Self::Linear, Error> {
        self.cpu.tied(site, embedding).map(Arc::new)
    }
    fn calibrate(
        &self,
        linears: &[&Self::Linear],
        forwards: &mut dyn FnMut() -> Result<(), Error>,
    ) -> Result<(), Error> {
        forwards()?;
        let seen = linears.iter().filter(|linear| self.cpu.statistics(linear).calls > 0);
        self.calibrated.lock().expect("not poisoned").extend(seen.map(|linear| linear.name().to_owned()));
        linears.iter().for_each(|linear| self.cpu.reset_statistics(linear));
        Ok(())
    }
    fn norm(&self, spec: &NormSpec) -> Result<Self::Norm, Error> {
        self.cpu.norm(spec).map(Arc::new)
    }
    fn embedding(&self, table: &RowTable) -> Result<Self::Embedding, Error> {
        self.cpu.embedding(table).map(Arc::new)
    }
    fn activations(
        &self,
        max_rows: usize,
        width: usize,
        role: ActivationRole,
    ) -> Result<Self::Activations, Error> {
        self.cpu.activations(max_rows, width, role).map(Shared::new)
    }
    fn cache(&self, spec: &AttentionSpec, capacity: CacheCapacity) -> Result<Self::Cache, Error> {
        self.cpu.cache(spec, capacity).map(Shared::new)
    }
    fn cache_bytes(&self, cache: &Self::Cache) -> usize {
        self.cpu.cache_bytes(&cache.lock())
    }
    fn page_tables(&self, cache: &Self::Cache, read: &mut dyn FnMut(&PageTables)) {
        self.cpu.page_tables(&cache.lock(), read);
    }
    fn batch(&self, capacity: BatchCapacity) -> Result<Self::Batch, Error> {
        let inner = Shared::new(self.cpu.batch(capacity)?);
        Ok(MockBatch {
            inner,
            capacity,
            selected: Vec::new(),
            held: (0, 0),
            graphs: Shared::new(HashMap::new()),
        })
    }
    fn reserve(&self, cache: &mut Self::Cache, ranges: &[(usize, Range<usize>)]) -> Result<(), Error> {
        self.cpu.reserve(&mut cache.lock(), ranges)
    }
    fn release(&self, cache: &mut Self::Cache, sequence: usize) -> Result<(), Error> {
        self.cpu.release(&mut cache.lock(), sequence)?;
        cache.lock().poison_free_pages();
        Ok(())
    }
    fn fork(&self, cache: &mut Self::Cache, from: usize, to: usize, positions: usize) -> Result<(), Error> {
        self.cpu.fork(&mut cache.lock(), from, to, positions)?;
        cache.lock().poison_free_pages();
        Ok(())
    }
    fn set_batch(&self, batch: &mut Self::Batch, segments: &[Segment<'_>]) -> Result<(), Error> {
        let rows: usize = segments.iter().map(|segment| segment.ids.len()).sum();
        assert!(rows <= batch.capacity.rows, "{rows} rows in a batch for {:?}", batch.capacity);
        assert!(segments.len() <= batch.capacity.segments, "{} segments", segments.len());
        batch.held = (rows, segments.len());
        self.cpu.set_batch(&mut batch.inner.lock(), segments)
    }
    fn set_selection(&self, batch: &mut Self::Batch, rows: &[usize]) -> Result<(), Error> {
        assert!(rows.len() <= batch.capacity.selected, "{} selected rows", rows.len());
        batch.selected = rows.to_vec();
        self.cpu.set_selection(&mut batch.inner.lock(), rows)
    }
    fn run(
        &self,
        key: GraphKey,
        batch: &Self::Batch,
        body: &mut (dyn FnMut() -> Result<(), Error> + Send),
    ) -> Result<(), Error> {
        let key = match self.broken {
            Some(Broken::Phase) => {
                let (rows, segments) = batch.held;
                GraphKey { phase: Phase::Forward, rows, segments, selected: 0 }
            }
            _ => key,
        };
        let mut graphs = batch.graphs.lock();
        let first = !graphs.contains_key(&key);
        if first {
            *self.recording.lock().expect("not poisoned") = Some(Record::new());
            body()?;
            let record = self.recording.lock().expect("not poisoned").take().expect("set above");
            graphs.insert(key, Graph { record, rows: Vec::new() });
        } else {
            *self.replays.lock().expect("not poisoned") += 1;
        }
        let Graph { record, rows } = graphs.get_mut(&key).expect("inserted above");
        for (index, operation) in record.iter().enumerate() {
            let found = operation(&self.cpu)?;
            match rows.get(index) {
                None => rows.push(found),
                Some(expected) => assert_eq!(found, *expected, "rows of operation {index} of {key:?}"),
            }
        }
        Ok(())
    }
    fn embed(
        &self,
        batch: &Self::Batch,
        tokens: Option<&Self::Embedding>,
        positions: Option<(&Self::Embedding, usize)>,
        out: Output<'_, Self>,
    ) -> Result<(), Error> {
        let (batch, target) = (batch.inner.handle(), Target::of(&out));
        let tokens = tokens.map(Arc::clone);
        let positions = positions.map(|(table, offset)| (Arc::clone(table), offset));
        self.record(move |cpu| {
            let positions = positions.as_ref().map(|(table, offset)| (&**table, *offset));
            let mut out = target.out.lock();
            cpu.embed(&batch.lock(), tokens.as_deref(), positions, target.output(&mut out))?;
            Ok(out.rows())
        })
    }
    fn normalize(&self, x: &mut Self::Activations, norm: &Self::Norm) -> Result<(), Error> {
        let (x, norm) = (x.handle(), Arc::clone(norm));
        self.record(move |cpu| {
            let mut x = x.lock();
            cpu.normalize(&mut x, &norm)?;
            Ok(x.rows())
        })
    }
    fn normalize_columns(
        &self,
        x: &mut Self::Activations,
        columns: Range<usize>,
        norm: &Self::Norm,
    ) -> Result<(), Error> {
        let (x, norm) = (x.handle(), Arc::clone(norm));
        self.record(move |cpu| {
            let mut x = x.lock();
            cpu.normalize_columns(&mut x, columns.clone(), &norm)?;
            Ok(x.rows())
        })
    }
    fn add(
        &self,
        x: &mut Self::Activations,
        y: &Self::Activations,
        norm: Option<&Self::Norm>,
    ) -> Result<(), Error> {
        let (x, y, norm) = (x.handle(), y.handle(), norm.map(Arc::clone));
        self.record(move |cpu| {
            let mut x = x.lock();
            cpu.add(&mut x, &y.lock(), norm.as_deref())?;
            Ok(x.rows())
        })
    }
    fn scale(&self, x: &mut Self::Activations, factor: Option<f32>, cap: Option<f32>) -> Result<(), Error> {
        let x = x.handle();
        self.record(move |cpu| {
            let mut x = x.lock();
            cpu.scale(&mut x, factor, cap)?;
            Ok(x.rows())
        })
    }
    fn experts(&self, _: Input<'_, Self>, _: &Experts<Self>, _: &mut Self::Activations) -> Result<(), Error> {
        unreachable!("not among the capabilities")
    }
    fn project(
        &self,
        input: Input<'_, Self>,
        targets: &mut [(&Self::Linear, Output<'_, Self>)],
    ) -> Result<(), Error> {
        let source = Source::of(&input);
        let targets: Vec<(Arc<CpuLinear>, Target)> =
            targets.iter().map(|(linear, output)| (Arc::clone(linear), Target::of(output))).collect();
        self.record(move |cpu| {
            let mut outs: Vec<_> = targets.iter().map(|(_, target)| target.out.lock()).collect();
            let mut all: Vec<(&CpuLinear, Output<'_, CpuBackend>)> = targets
                .iter()
                .zip(&mut outs)
                .map(|((linear, target), out)| (&**linear, target.output(out)))
                .collect();
            source.with(|input| cpu.project(input, &mut all))?;
            Ok(outs[0].rows())
        })
    }
    fn attention(
        &self,
        batch: &Self::Batch,
        layer: usize,
        qkv: &mut Self::Activations,
        cache: &mut Self::Cache,
        out: &mut Self::Activations,
    ) -> Result<(), Error> {
        let (batch, qkv, cache, out) = (batch.inner.handle(), qkv.handle(), cache.handle(), out.handle());
        self.record(move |cpu| {
            let mut out = out.lock();
            cpu.attention(&batch.lock(), layer, &mut qkv.lock(), &mut cache.lock(), &mut out)?;
            Ok(out.rows())
        })
    }
    fn convolve(
        &self,
        batch: &Self::Batch,
        layer: usize,
        x: &mut Self::Activations,
        cache: &mut Self::Cache,
    ) -> Result<(), Error> {
        let (batch, x, cache) = (batch.inner.handle(), x.handle(), cache.handle());
        self.record(move |cpu| {
            let mut x = x.lock();
            cpu.convolve(&batch.lock(), layer, &mut x, &mut cache.lock())?;
            Ok(x.rows())
        })
    }
    fn recur(
        &self,
        batch: &Self::Batch,
        layer: usize,
        inputs: &[&Self::Activations],
        cache: &mut Self::Cache,
        out: &mut Self::Activations,
    ) -> Result<(), Error> {
        let inputs: Vec<_> = inputs.iter().map(|input| input.handle()).collect();
        let (batch, cache, out) = (batch.inner.handle(), cache.handle(), out.handle());
        self.record(move |cpu| {
            let inputs: Vec<_> = inputs.iter().map(Shared::lock).collect();
            let inputs: Vec<&CpuActivations> = inputs.iter().map(|input| &**input).collect();
            let mut out = out.lock();
            cpu.recur(&batch.lock(), layer, &inputs, &mut cache.lock(), &mut out)?;
            Ok(out.rows())
        })
    }
    fn gate(
        &self,
        x: &mut Self::Activations,
        gate: &Self::Activations,
        columns: Range<usize>,
        activation: Activation,
    ) -> Result<(), Error> {
        let (x, gate) = (x.handle(), gate.handle());
        self.record(move |cpu| {
            let mut x = x.lock();
            cpu.gate(&mut x, &gate.lock(), columns.clone(), activation)?;
            Ok(x.rows())
        })
    }
    fn gate_heads(
        &self,
        x: &mut Self::Activations,
        gate: &Self::Activations,
        function: GateFunction,
        run: usize,
    ) -> Result<(), Error> {
        let (x, gate) = (x.handle(), gate.handle());
        self.record(move |cpu| {
            let mut x = x.lock();
            cpu.gate_heads(&mut x, &gate.lock(), function, run)?;
            Ok(x.rows())
        })
    }
    fn scale_columns(
        &self,
        x: &mut Self::Activations,
        columns: Range<usize>,
        factor: f32,
    ) -> Result<(), Error> {
        let x = x.handle();
        self.record(move |cpu| {
            let mut x = x.lock();
            cpu.scale_columns(&mut x, columns.clone(), factor)?;
            Ok(x.rows())
        })
    }
    fn copy_columns(
        &self,
        from: &[&Self::Activations],
        copies: &[ColumnCopy],
        out: &mut Self::Activations,
    ) -> Result<(), Error> {
        let from: Vec<_> = from.iter().map(|from| from.handle()).collect();
        let (copies, out) = (copies.to_vec(), out.handle());
        self.record(move |cpu| {
            let from: Vec<_> = from.iter().map(Shared::lock).collect();
            let from: Vec<&CpuActivations> = from.iter().map(|from| &**from).collect();
            let mut out = out.lock();
            cpu.copy_columns(&from, &copies, &mut out)?;
            Ok(out.rows())
        })
    }
    fn write_cross_kv(
        &self,
        batch: &Self::Batch,
        layer: usize,
        kv: &Self::Activations,
        cache: &mut Self::Cache,
    ) -> Result<(), Error> {
        let (batch, kv, cache) = (batch.inner.handle(), kv.handle(), cache.handle());
        self.record(move |cpu| {
            let kv = kv.lock();
            cpu.write_cross_kv(&batch.lock(), layer, &kv, &mut cache.lock())?;
            Ok(kv.rows())
        })
    }
    fn cross_attention(
        &self,
        batch: &Self::Batch,
        layer: usize,
        q: &Self::Activations,
        cache: &Self::Cache,
        out: &mut Self::Activations,
    ) -> Result<(), Error> {
        let (batch, q, cache, out) = (batch.inner.handle(), q.handle(), cache.handle(), out.handle());
        self.record(move |cpu| {
            let mut out = out.lock();
            cpu.cross_attention(&batch.lock(), layer, &q.lock(), &cache.lock(), &mut out)?;
            Ok(out.rows())
        })
    }
    fn gather(
        &self,
        batch: &Self::Batch,
        x: &Self::Activations,
        out: &mut Self::Activations,
    ) -> Result<(), Error> {
        let argument = (self.broken == Some(Broken::Selection)).then(|| batch.selected.clone());
        let (batch, x, out) = (batch.inner.handle(), x.handle(), out.handle());
        self.record(move |cpu| {
            if let Some(rows) = &argument {
                cpu.set_selection(&mut batch.lock(), rows)?;
            }
            let mut out = out.lock();
            cpu.gather(&batch.lock(), &x.lock(), &mut out)?;
            Ok(out.rows())
        })
    }
    fn receive(&self, from: &Self, x: &Self::Activations, out: &mut Self::Activations) -> Result<(), Error> {
        self.cpu.receive(&from.cpu, &x.lock(), &mut out.lock())
    }
    fn sample(&self, logits: &Self::Activations, samplers: &mut [Sampler]) -> Result<Vec<u32>, Error> {
        self.cpu.sample(&logits.lock(), samplers)
    }
    fn read<'a>(&self, x: &'a Self::Activations, host: &'a mut Vec<f32>) -> Result<&'a [f32], Error> {
        *host = self.cpu.read(&x.lock(), &mut Vec::new())?.to_vec();
        Ok(host)
    }
    fn linear_name<'a>(&self, linear: &'a Self::Linear) -> &'a str {
        linear.name()
    }
    fn multiply(&self, linear: &Self::Linear, x: ArrayView2<'_, f32>) -> Result<Array2<f32>, Error> {
        self.cpu.multiply(linear, x)
    }
    fn observe(&self, observer: Option<Arc<dyn Observer>>) {
        self.cpu.observe(observer);
    }
    fn statistics(&self, linear: &Self::Linear) -> LinearStatistics {
        self.cpu.statistics(linear)
    }
    fn reset_statistics(&self, linear: &Self::Linear) {
        self.cpu.reset_statistics(linear);
    }
    fn linear_bytes(&self, linear: &Self::Linear) -> usize {
        self.cpu.linear_bytes(linear)
    }
    fn embedding_bytes(&self, embedding: &Self::Embedding) -> usize {
        self.cpu.embedding_bytes(embedding)
    }
}
