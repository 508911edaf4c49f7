//! The CUDA backend: all state on one GPU, int8 layers from `int8-cuda`. The residual stream is f32; what lies between two
//! operations of a block has the type that the backend computes in. Decode steps are recorded as CUDA graphs and replayed.

mod attention;
mod experts;
mod graphs;
mod linear;
mod offload;
mod operands;
mod rank;
mod turn;

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use int8_core::{Config, FloatType};
use int8_cuda::model::{
    Arrival, Batch, BatchRow, Draw, FloatWeight, Function, Lookup, Projection, Samples, Store, Target,
    Tensor, Upload, Workspace, gather, transform, transform_columns, transform_in_place,
};
use int8_cuda::{Buffer, Device, Stream};
use ndarray::{Array2, ArrayView2, ArrayViewMut2};

use attention::CacheKind;
pub use attention::CudaCache;
use graphs::{Graphs, Recording};
pub use linear::CudaLinear;
use linear::Weight;
use offload::Offloading;
use turn::Turn;

use crate::Error;
use crate::backend::{
    ActivationRole, AttentionSpec, Backend, BatchCapacity, CacheCapacity, Capabilities, Experts, Feature,
    GraphKey, Input, LinearStatistics, NormSpec, Observer, Output, PageTables, Segment,
};
use crate::config::{DecoderConfig, NormKind};
use crate::precision::{Precision, Site};
use crate::sampler::{Sampler, Sampling};
use crate::weights::{LinearSource, RowTable};

/// Runs models on one GPU. Forwards of several sessions take turns on one stream.
#[derive(Debug)]
pub struct CudaBackend {
    ordinal: u32,
    device: Device,
    stream: Stream,
    compute: FloatType,
    upload: Mutex<Upload>,
    /// What a workspace has to serve: the layers loaded, and the caches made.
    projections: Mutex<Vec<Projection>>,
    caches: Mutex<Vec<CacheKind>>,
    workspace: Mutex<Arc<Mutex<Workspace>>>,
    samples: Mutex<Option<Samples>>,
    turn: Turn,
    /// The forward that is being recorded or could be.
    recording: Mutex<Recording>,
    observer: Mutex<Option<Arc<dyn Observer>>>,
    observed: AtomicBool,
    /// Weights that stay in host memory.
    offloading: Mutex<Offloading>,
    /// Where it is one of several ranks.
    arrival: Mutex<Option<Arrival>>,
    exchanges_on_host: AtomicBool,
    /// The layers see their inputs, and nothing is recorded.
    calibrating: AtomicBool,
}

/// Activations on the device.
#[derive(Debug)]
pub struct CudaActivations {
    tensor: Tensor,
}

/// A normalisation on the device.
#[derive(Debug)]
pub struct CudaNorm {
    kind: NormKind,
    eps: f32,
    gain: Buffer<f32>,
    bias: Option<Buffer<f32>>,
}

/// The rows of a forward, and the graphs that were recorded for such rows.
#[derive(Debug)]
pub struct CudaBatch {
    rows: Batch,
    graphs: Mutex<Graphs>,
}

/// Bytes of one of the two buffers through which weights reach the device.
const UPLOAD_BYTES: usize = 64 << 20;

impl CudaBackend {
    /// What any GPU computes, named `device` in messages.
    pub fn capabilities_of(device: String) -> Capabilities {
        let mut capabilities = Capabilities::all(device);
        for missing in [
            Feature::GroupGranularity,
            Feature::FurtherActivations,
            Feature::ScoresByLayer,
            Feature::ClampedProjections,
            Feature::FrequenciesByLength,
            Feature::NormsAfterRotation,
            Feature::QueryGrowth,
            Feature::AttentionSinks,
            Feature::WeighedExpertInputs,
            Feature::LatentAttention,
            Feature::ChunkedAttention,
            Feature::ClampedGates,
            Feature::StateSpace,
            Feature::AttentionGate,
            Feature::InnerNorms,
            Feature::LearnedActivation,
            Feature::ParallelExperts,
            Feature::VaryingHeads,
            Feature::SharedKeyValues,
            Feature::LayerInputs,
            Feature::SparseGates,
            Feature::Streams,
            Feature::ExpertsBeside,
            Feature::KeySelection,
            Feature::ExpertsAhead,
            Feature::IdentityExperts,
            Feature::ValueHeads,
            Feature::HeadActivation,
            Feature::DistanceBiasByLayer,
            Feature::WindowsToBothSides,
            Feature::DisentangledAttention,
            Feature::Speech,
            Feature::LinearAttention,
            Feature::ShortConvolution,
        ] {
            capabilities.features.remove(&missing);
        }
        capabilities.max_head_size = Some(256);
        // One row has kernels of its own, whose sums have another order.
        capabilities.batch_invariant = false;
        capabilities.prefill_rows = 4096;
        capabilities
    }

    /// On GPU `ordinal`, with intermediate results in `compute`: the type of the checkpoint's weights, as a rule. f32 computes
    /// without 16-bit tensor cores.
    ///
    /// # Errors
    /// [`Error::Cuda`] without such a GPU or a driver for it.
    pub fn new(ordinal: u32, compute: FloatType) -> Result<Self, Error> {
        let device = Device::new(ordinal)?;
        let workspace = Workspace::new(&device, compute, 0, &[], 0)?;
        Ok(Self {
            ordinal,
            stream: Stream::new(&device)?,
            compute,
            upload: Mutex::new(Upload::new(&device, UPLOAD_BYTES)?),
            projections: Mutex::default(),
            caches: Mutex::default(),
            workspace: Mutex::new(Arc::new(Mutex::new(workspace))),
            samples: Mutex::default(),
            turn: Turn::default(),
            recording: Mutex::default(),
            observer: Mutex::default(),
            observed: AtomicBool::new(false),
            offloading: Mutex::default(),
            arrival: Mutex::default(),
            exchanges_on_host: AtomicBool::new(false),
            calibrating: AtomicBool::new(false),
            device,
        })
    }

    /// The int8 weights of `blocks` of a model's blocks, which is loaded next, stay in page-locked host memory. They are copied to the
    /// GPU in every forward, ahead of their use.
    ///
    /// # Errors
    /// [`Error::Cuda`].
    pub fn offload(&self, blocks: usize) -> Result<(), Error> {
        *lock(&self.offloading) = Offloading::new(&self.device, blocks)?;
        Ok(())
    }

    /// As one of several ranks of this process, it exchanges with the others through host memory from the next session on, as GPUs do
    /// that are not linked.
    pub fn exchange_through_host(&self) {
        self.exchanges_on_host.store(true, Ordering::Release);
    }

    /// Bytes of weights in host memory, and bytes a second at which they are copied to the GPU.
    ///
    /// # Errors
    /// [`Error::Cuda`].
    pub fn offloaded(&self) -> Result<Option<(usize, f64)>, Error> {
        lock(&self.offloading).rate()
    }

    /// The GPU.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The type of intermediate results.
    pub fn compute(&self) -> FloatType {
        self.compute
    }

    /// Bytes of device memory that nobody has.
    ///
    /// # Errors
    /// [`Error::Cuda`].
    pub fn free_memory(&self) -> Result<u64, Error> {
        Ok(crate::convert::bytes(self.device.free_memory()?))
    }

    /// Waits until all work has been done, for measurements.
    ///
    /// # Errors
    /// [`Error::Cuda`], also for a failure of earlier work.
    pub fn synchronize(&self) -> Result<(), Error> {
        Ok(self.stream.synchronize()?)
    }

    /// Whether the other ranks, if it is one of several, have done their part. Waits for the stream then.
    fn check_arrival(&self) -> Result<(), Error> {
        match &*lock(&self.arrival) {
            Some(arrival) => Ok(arrival.check(&self.stream)?),
            None => Ok(()),
        }
    }

    fn observer(&self) -> Option<Arc<dyn Observer>> {
        if !self.observed.load(Ordering::Acquire) {
            return None;
        }
        lock(&self.observer).clone()
    }

    /// The workspace, for forwards of at least `rows` rows through every layer and cache known by now.
    fn reserve_workspace(&self, rows: usize) -> Result<(), Error> {
        let projections = lock(&self.projections).clone();
        let caches = lock(&self.caches).clone();
        let mut current = lock(&self.workspace);
        let (have, attention, known) = {
            let workspace = lock(&current);
            let known = workspace.projections() == projections;
            (workspace.largest_rows(), workspace.attention_bytes(), known)
        };
        let rows = rows.max(have);
        let mut needed = 0;
        for cache in &caches {
            needed = needed.max(cache.workspace_bytes(rows)?);
        }
        if rows == have && needed <= attention && known {
            return Ok(());
        }
        let workspace = Workspace::new(&self.device, self.compute, rows, &projections, needed)?;
        // Graphs that were recorded with the one before keep it.
        *current = Arc::new(Mutex::new(workspace));
        Ok(())
    }

    fn workspace(&self) -> Arc<Mutex<Workspace>> {
        lock(&self.workspace).clone()
    }

    /// A layer that forwards will go through.
    fn serve(&self, n: usize, k: usize, config: Option<Config>) {
        let mut projections = lock(&self.projections);
        let projection = Projection { n, k, config };
        if !projections.contains(&projection) {
            projections.push(projection);
        }
    }

    /// Notes that an operation has set the rows of `out`: a replay of its graph has to, too.
    fn produced(&self, out: &CudaActivations) {
        lock(&self.recording).produced(&out.tensor);
    }

    /// One input for several weights, in floating point or int8.
    fn project_rows(
        &self,
        x: &Tensor,
        function: &Function<'_>,
        targets: &mut [(&CudaLinear, &mut Tensor, Store)],
    ) -> Result<(), Error> {
        if self.calibrating.load(Ordering::Acquire) {
            self.show_input(x, function, targets.iter().map(|(linear, ..)| *linear))?;
        }
        let workspace = self.workspace();
        let mut workspace = lock(&workspace);
        let mut int8: Vec<(Config, Vec<Target<'_>>)> = Vec::new();
        let linears: Vec<&CudaLinear> = targets.iter().map(|(linear, ..)| *linear).collect();
        for (linear, out, store) in targets.iter_mut() {
            match linear.weight() {
                Weight::Float(weight) => {
                    let weight = (&**weight, linear.bias());
                    workspace.project_float(&self.stream, x, function, weight, (&mut **out, *store))?;
                }
                Weight::Int8 { weight, config } => {
                    let target = Target { weight, bias: linear.bias(), out, store: *store };
                    match int8.iter_mut().find(|(known, _)| known == config) {
                        Some((_, targets)) => targets.push(target),
                        None => int8.push((*config, vec![target])),
                    }
                }
            }
        }
        let mut offloading = lock(&self.offloading);
        if offloading.fetch(&self.stream, &linears)? {
            lock(&self.recording).host_decides();
        }
        for (config, mut targets) in int8 {
            workspace.project(&self.stream, x, function, &config, &mut targets)?;
        }
        offloading.release(&self.stream, &linears)
    }

    /// Shows the layers whose exact columns are still to be chosen their input, `function(x)`.
    fn show_input<'a>(
        &self,
        x: &Tensor,
        function: &Function<'_>,
        linears: impl Iterator<Item = &'a CudaLinear>,
    ) -> Result<(), Error> {
        let mut input: Option<Array2<f32>> = None;
        for linear in linears.filter(|linear| linear.is_uncalibrated()) {
            let input = match &mut input {
                Some(input) => input,
                None => {
                    let k = linear.dim().1;
                    let host = self.materialize(x, function, k)?;
                    let shaped = Array2::from_shape_vec((x.rows(), k), host);
                    let shaped =
                        shaped.map_err(|error| Error::Input(format!("{}: {error}", linear.name())))?;
                    input.insert(shaped)
                }
            };
            linear.see(input.view());
        }
        Ok(())
    }

    /// `function(x)` on the host.
    fn materialize(&self, x: &Tensor, function: &Function<'_>, k: usize) -> Result<Vec<f32>, Error> {
        let mut computed = Tensor::new(&self.device, FloatType::F32, x.rows(), k)?;
        transform(&self.stream, x, function, &mut computed, Store::Overwrite)?;
        let mut host = Vec::new();
        computed.read(&self.stream, &mut host)?;
        Ok(host)
    }

    /// The input of one layer as an observer has changed it.
    fn observed_input(
        &self,
        observer: &dyn Observer,
        linear: &CudaLinear,
        x: &Tensor,
        function: &Function<'_>,
    ) -> Result<Tensor, Error> {
        let k = linear.dim().1;
        let mut host = self.materialize(x, function, k)?;
        let view = ArrayViewMut2::from_shape((x.rows(), k), &mut host)
            .map_err(|error| Error::Input(format!("{}: {error}", linear.name())))?;
        observer.input(linear.site(), linear.name(), view);
        Ok(Tensor::from_f32(&self.device, FloatType::F32, k, &host)?)
    }
}

impl Backend for CudaBackend {
    type Activations = CudaActivations;
    type Linear = CudaLinear;
    type Norm = CudaNorm;
    type Embedding = Arc<FloatWeight>;
    type Cache = CudaCache;
    type Batch = CudaBatch;

    fn describe(&self) -> String {
        format!("cuda:{}, {}, {}", self.ordinal, self.device.info().name, self.compute.name())
    }

    fn capabilities(&self) -> Capabilities {
        Self::capabilities_of(format!("cuda:{}", self.ordinal))
    }

    fn prepare(&self, config: &DecoderConfig) -> Result<(), Error> {
        lock(&self.offloading).prepare(config)
    }

    fn linear(&self, site: Site, source: &LinearSource, precision: &Precision) -> Result<CudaLinear, Error> {
        let _turn = self.turn.enter();
        let mut linear =
            CudaLinear::load(&self.stream, &mut lock(&self.upload), site, source, precision, self.compute)?;
        lock(&self.offloading).take(&self.stream, &mut linear)?;
        let (n, k) = linear.dim();
        self.serve(n, k, linear.config().copied());
        Ok(linear)
    }

    fn tied(&self, site: Site, embedding: &Arc<FloatWeight>) -> Result<CudaLinear, Error> {
        let (n, k) = embedding.dim();
        self.serve(n, k, None);
        Ok(CudaLinear::from_weight(site, "tied head", embedding.clone()))
    }

    /// Chooses the columns of the weights that are kept exactly: those with the largest outliers in `forwards`.
    fn calibrate(
        &self,
        linears: &[&CudaLinear],
        forwards: &mut dyn FnMut() -> Result<(), Error>,
    ) -> Result<(), Error> {
        if !linears.iter().any(|linear| linear.is_uncalibrated()) {
            return Ok(());
        }
        // Another model's forwards on this backend wait.
        let _turn = self.turn.enter();
        self.calibrating.store(true, Ordering::Release);
        let done = forwards();
        self.calibrating.store(false, Ordering::Release);
        done?;
        linears.iter().try_for_each(|linear| linear.choose_exact(&self.stream, self.compute))
    }

    fn note(&self) -> Result<Option<String>, Error> {
        let Some((bytes, rate)) = self.offloaded()? else { return Ok(None) };
        let (bytes, rate) = (crate::convert::f64_from(bytes) / 1e9, rate / 1e9);
        let steps = rate / bytes;
        Ok(Some(format!(
            "cuda:{}: {bytes:.1} GB of weights in host memory, copied in every forward: at most {steps:.1} forwards a second at {rate:.0} GB/s",
            self.ordinal
        )))
    }

    fn norm(&self, spec: &NormSpec) -> Result<CudaNorm, Error> {
        let _turn = self.turn.enter();
        let bias = spec.bias.as_ref().map(|bias| Buffer::from_host(&self.device, bias)).transpose()?;
        let gain = Buffer::from_host(&self.device, &spec.gain)?;
        Ok(CudaNorm { kind: spec.kind, eps: spec.eps, gain, bias })
    }

    fn embedding(&self, table: &RowTable) -> Result<Arc<FloatWeight>, Error> {
        let _turn = self.turn.enter();
        let table = table.matrix()?;
        // A table may be a tied head, whose products are computed in its type.
        let element = if self.compute == FloatType::F32 { FloatType::F32 } else { table.float_type() };
        Ok(Arc::new(linear::upload(&self.stream, &mut lock(&self.upload), &table, element)?))
    }

    fn activations(
        &self,
        max_rows: usize,
        width: usize,
        role: ActivationRole,
    ) -> Result<CudaActivations, Error> {
        let element = match role {
            ActivationRole::Residual | ActivationRole::Logits => FloatType::F32,
            ActivationRole::QueriesKeysValues | ActivationRole::Context | ActivationRole::Intermediate => {
                self.compute
            }
        };
        let _turn = self.turn.enter();
        Ok(CudaActivations { tensor: Tensor::new(&self.device, element, max_rows, width)? })
    }

    fn cache(&self, spec: &AttentionSpec, capacity: CacheCapacity) -> Result<CudaCache, Error> {
        let _turn = self.turn.enter();
        let cache = CudaCache::new(&self.device, spec, capacity)?;
        let mut caches = lock(&self.caches);
        let kind = cache.kind();
        if !caches.contains(&kind) {
            caches.push(kind);
        }
        Ok(cache)
    }

    fn cache_bytes(&self, cache: &CudaCache) -> usize {
        cache.bytes()
    }

    fn page_tables(&self, cache: &CudaCache, read: &mut dyn FnMut(&PageTables)) {
        read(cache.tables());
    }

    fn batch(&self, capacity: BatchCapacity) -> Result<CudaBatch, Error> {
        let _turn = self.turn.enter();
        self.reserve_workspace(capacity.rows.max(capacity.selected))?;
        let rows = Batch::new(&self.device, capacity.rows, capacity.segments, capacity.selected)?;
        Ok(CudaBatch { rows, graphs: Mutex::default() })
    }

    fn reserve(&self, cache: &mut CudaCache, ranges: &[(usize, Range<usize>)]) -> Result<(), Error> {
        let _turn = self.turn.enter();
        cache.reserve(&self.stream, ranges)
    }

    fn release(&self, cache: &mut CudaCache, sequence: usize) -> Result<(), Error> {
        cache.release(sequence);
        Ok(())
    }

    fn fork(&self, cache: &mut CudaCache, from: usize, to: usize, positions: usize) -> Result<(), Error> {
        let _turn = self.turn.enter();
        cache.fork(&self.stream, from, to, positions)
    }

    fn set_batch(&self, batch: &mut CudaBatch, segments: &[Segment<'_>]) -> Result<(), Error> {
        let _turn = self.turn.enter();
        let rows: Vec<BatchRow> = segments
            .iter()
            .flat_map(|segment| {
                segment.ids.iter().enumerate().map(|(offset, id)| BatchRow {
                    id: *id,
                    position: segment.position + offset,
                    sequence: segment.sequence,
                })
            })
            .collect();
        let counts: Vec<usize> = segments.iter().map(|segment| segment.ids.len()).collect();
        Ok(batch.rows.set(&self.stream, &rows, &counts)?)
    }

    fn set_selection(&self, batch: &mut CudaBatch, rows: &[usize]) -> Result<(), Error> {
        let _turn = self.turn.enter();
        Ok(batch.rows.select(&self.stream, rows)?)
    }

    fn run(
        &self,
        key: GraphKey,
        batch: &CudaBatch,
        body: &mut (dyn FnMut() -> Result<(), Error> + Send),
    ) -> Result<(), Error> {
        let _turn = self.turn.enter();
        let observed = self.observed.load(Ordering::Acquire) || self.calibrating.load(Ordering::Acquire);
        if observed || !graphs::is_recorded(&key) {
            return body();
        }
        graphs::run(&[self], key, &[&batch.graphs], body)
    }

    fn embed(
        &self,
        batch: &CudaBatch,
        tokens: Option<&Arc<FloatWeight>>,
        positions: Option<(&Arc<FloatWeight>, usize)>,
        out: Output<'_, Self>,
    ) -> Result<(), Error> {
        let _turn = self.turn.enter();
        let tokens = tokens.map(|table| Lookup::weight(table, batch.rows.ids(), 0));
        let positions =
            positions.map(|(table, offset)| Lookup::weight(table, batch.rows.positions(), offset));
        let tables: Vec<_> = tokens.into_iter().chain(positions).collect();
        let (out, store) = out.parts();
        if tables.is_empty() && store == Store::Accumulate {
            return Ok(());
        }
        gather(&self.stream, &tables, batch.rows.rows(), &mut out.tensor, store)?;
        self.produced(out);
        Ok(())
    }

    fn normalize(&self, x: &mut CudaActivations, norm: &CudaNorm) -> Result<(), Error> {
        let _turn = self.turn.enter();
        Ok(transform_in_place(&self.stream, &mut x.tensor, &norm.function())?)
    }

    fn normalize_columns(
        &self,
        x: &mut CudaActivations,
        columns: Range<usize>,
        norm: &CudaNorm,
    ) -> Result<(), Error> {
        let _turn = self.turn.enter();
        let k = norm.gain.len();
        Ok(transform_columns(&self.stream, &mut x.tensor, columns, k, &norm.function())?)
    }

    fn add(
        &self,
        x: &mut CudaActivations,
        y: &CudaActivations,
        norm: Option<&CudaNorm>,
    ) -> Result<(), Error> {
        let _turn = self.turn.enter();
        let function = norm.map_or(Function::Identity, CudaNorm::function);
        Ok(transform(&self.stream, &y.tensor, &function, &mut x.tensor, Store::Accumulate)?)
    }

    fn scale(&self, x: &mut CudaActivations, factor: Option<f32>, cap: Option<f32>) -> Result<(), Error> {
        let _turn = self.turn.enter();
        let function = Function::Scale { factor: factor.unwrap_or(1.0), cap };
        Ok(transform_in_place(&self.stream, &mut x.tensor, &function)?)
    }

    fn experts(
        &self,
        input: Input<'_, Self>,
        experts: &Experts<Self>,
        out: &mut CudaActivations,
    ) -> Result<(), Error> {
        let _turn = self.turn.enter();
        lock(&self.recording).host_decides();
        let (x, function) = input.parts();
        experts::compute(self, x, &function, experts, out)?;
        self.produced(out);
        Ok(())
    }

    fn project(
        &self,
        input: Input<'_, Self>,
        targets: &mut [(&CudaLinear, Output<'_, Self>)],
    ) -> Result<(), Error> {
        let _turn = self.turn.enter();
        let (x, function) = input.parts();
        let mut targets: Vec<_> = targets
            .iter_mut()
            .map(|(linear, output)| {
                let (out, store) = output.parts_mut();
                (*linear, &mut out.tensor, store)
            })
            .collect();
        match self.observer() {
            None => self.project_rows(x, &function, &mut targets)?,
            // An observer may change the input of each layer for itself.
            Some(observer) => {
                for target in &mut targets {
                    let x = self.observed_input(&*observer, target.0, x, &function)?;
                    self.project_rows(&x, &Function::Identity, std::slice::from_mut(target))?;
                }
            }
        }
        let mut recording = lock(&self.recording);
        targets.iter().for_each(|(_, out, _)| recording.produced(out));
        Ok(())
    }

    fn attention(
        &self,
        batch: &CudaBatch,
        layer: usize,
        qkv: &mut CudaActivations,
        cache: &mut CudaCache,
        out: &mut CudaActivations,
    ) -> Result<(), Error> {
        let _turn = self.turn.enter();
        let workspace = self.workspace();
        let on = (&self.stream, &*lock(&workspace));
        cache.attend(on, &batch.rows, layer, &mut qkv.tensor, &mut out.tensor)?;
        self.produced(out);
        Ok(())
    }

    fn write_cross_kv(
        &self,
        batch: &CudaBatch,
        layer: usize,
        kv: &CudaActivations,
        cache: &mut CudaCache,
    ) -> Result<(), Error> {
        let _turn = self.turn.enter();
        let workspace = self.workspace();
        cache.write_cross_kv((&self.stream, &*lock(&workspace)), &batch.rows, layer, &kv.tensor)
    }

    fn cross_attention(
        &self,
        batch: &CudaBatch,
        layer: usize,
        q: &CudaActivations,
        cache: &CudaCache,
        out: &mut CudaActivations,
    ) -> Result<(), Error> {
        let _turn = self.turn.enter();
        let workspace = self.workspace();
        let on = (&self.stream, &*lock(&workspace));
        cache.cross_attention(on, &batch.rows, layer, &q.tensor, &mut out.tensor)?;
        self.produced(out);
        Ok(())
    }

    fn gather(&self, batch: &CudaBatch, x: &CudaActivations, out: &mut CudaActivations) -> Result<(), Error> {
        let _turn = self.turn.enter();
        batch.rows.gather_selected(&self.stream, &x.tensor, &mut out.tensor)?;
        self.produced(out);
        Ok(())
    }

    fn receive(&self, from: &Self, x: &CudaActivations, out: &mut CudaActivations) -> Result<(), Error> {
        // One turn at a time: two sessions may hand over in opposite directions.
        let computed = {
            let _turn = from.turn.enter();
            from.stream.mark()?
        };
        let copied = {
            let _turn = self.turn.enter();
            self.stream.wait_for(computed)?;
            out.tensor.copy_from(&self.stream, &x.tensor)?;
            self.stream.mark()?
        };
        let _turn = from.turn.enter();
        Ok(from.stream.wait_for(copied)?)
    }

    fn sample(&self, logits: &CudaActivations, samplers: &mut [Sampler]) -> Result<Vec<u32>, Error> {
        let _turn = self.turn.enter();
        let (rows, vocabulary) = (logits.tensor.rows(), logits.tensor.width());
        if samplers.len() != rows {
            let samplers = samplers.len();
            return Err(Error::Input(format!("{samplers} samplers for {rows} rows of logits")));
        }
        let draws: Vec<Draw> = samplers
            .iter_mut()
            .map(|sampler| match *sampler.sampling() {
                Sampling::Greedy => Draw::Greedy,
                Sampling::Random { temperature, top_k, top_p, .. } => {
                    Draw::Random { uniform: sampler.uniform(), temperature, top_k, top_p }
                }
            })
            .collect();
        let mut samples = lock(&self.samples);
        let samples = match &mut *samples {
            Some(samples) if samples.fits(rows, vocabulary) => samples,
            other => other.insert(Samples::new(&self.device, rows, vocabulary)?),
        };
        let workspace = self.workspace();
        let tokens = samples.choose(&self.stream, &mut lock(&workspace), &logits.tensor, &draws)?;
        self.check_arrival()?;
        let tokens: Option<Vec<u32>> = tokens.into_iter().collect();
        tokens.ok_or_else(Sampler::not_a_number)
    }

    fn read<'a>(&self, x: &'a CudaActivations, host: &'a mut Vec<f32>) -> Result<&'a [f32], Error> {
        let _turn = self.turn.enter();
        x.tensor.read(&self.stream, host)?;
        let workspace = self.workspace();
        lock(&workspace).check_overflow(&self.stream)?;
        self.check_arrival()?;
        Ok(host)
    }

    fn linear_name<'a>(&self, linear: &'a CudaLinear) -> &'a str {
        linear.name()
    }

    fn multiply(&self, linear: &CudaLinear, x: ArrayView2<'_, f32>) -> Result<Array2<f32>, Error> {
        let (n, k) = linear.dim();
        let (rows, found) = x.dim();
        if found != k {
            return Err(Error::Input(format!(
                "{}: an input of {found} columns for {k} features",
                linear.name()
            )));
        }
        let values = x.as_standard_layout();
        let values = values.as_slice().expect("standard layout");
        let _turn = self.turn.enter();
        self.reserve_workspace(rows)?;
        let x = Tensor::from_f32(&self.device, FloatType::F32, k, values)?;
        let mut y = Tensor::new(&self.device, FloatType::F32, rows, n)?;
        self.project_rows(&x, &Function::Identity, &mut [(linear, &mut y, Store::Overwrite)])?;
        let mut host = Vec::new();
        y.read(&self.stream, &mut host)?;
        Array2::from_shape_vec((rows, n), host)
            .map_err(|error| Error::Input(format!("{}: {error}", linear.name())))
    }

    fn observe(&self, observer: Option<Arc<dyn Observer>>) {
        let mut current = lock(&self.observer);
        self.observed.store(observer.is_some(), Ordering::Release);
        *current = observer;
    }

    fn statistics(&self, linear: &CudaLinear) -> LinearStatistics {
        linear.statistics()
    }

    fn reset_statistics(&self, _: &CudaLinear) {}

    fn linear_bytes(&self, linear: &CudaLinear) -> usize {
        linear.bytes()
    }

    fn embedding_bytes(&self, embedding: &Arc<FloatWeight>) -> usize {
        embedding.bytes()
    }
}

/// No lock of this backend guards anything that a panic leaves half done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
