//! Tensor parallelism: several backends of one kind, the ranks, compute each layer together.
//!
//! Each rank has some heads of attention, some features of the MLPs and a part of the vocabulary. Queries, keys and values, and the
//! MLP's expansion, are shared out by output channels: their input, the residual stream, is on every rank. The output projection
//! of attention and the MLP's contraction are shared out by input features: each rank computes a summand, and the ranks add them
//! up. Norms and embeddings are on every rank; the logits are joined on the first.
//!
//! int8 results are those of one backend but for the order of sums in f32: a row of an input that is shared out is quantised with
//! the scale of the whole row, and a weight's row with that of its whole row, so that all codes and outliers are the same.

mod plan;
mod rank;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use ndarray::{Array2, ArrayView2};

use plan::{Plan, Split};
pub use rank::{ExchangeCapacity, Rank, share};

use crate::Error;
use crate::backend::{
    ActivationRole, AttentionSpec, Backend, BatchCapacity, CacheCapacity, Capabilities, Experts, Feature,
    GraphKey, Input, LinearStatistics, NormSpec, Observer, Output, PageTables, Segment,
};
use crate::config::DecoderConfig;
use crate::group::Group;
use crate::precision::{LinearRole, Precision, Site};
use crate::sampler::Sampler;
use crate::weights::{LinearSource, RowTable};

/// Several ranks as one backend, for one model.
#[derive(Debug)]
pub struct TensorParallel<R: Rank> {
    /// The ranks of this process.
    ranks: Vec<Arc<R>>,
    group: Arc<Group>,
    plan: OnceLock<Plan>,
    exchange: Mutex<Exchange<R>>,
    observed: AtomicBool,
}

/// The buffers of exchanges, and what they are made for.
#[derive(Debug)]
struct Exchange<R: Rank> {
    capacity: ExchangeCapacity,
    buffers: Option<R::Exchange>,
}

/// Activations of every rank.
#[derive(Debug)]
pub struct Activations<R: Rank> {
    ranks: Vec<R::Activations>,
    /// Whether each rank has some of the columns, and the first one needs all of them.
    is_joined: bool,
    /// All of them, there.
    joined: Option<R::Activations>,
}

/// A linear layer, shared out.
#[derive(Debug)]
pub struct Linear<R: Rank> {
    split: Split,
    ranks: Vec<R::Linear>,
}

/// Something that every rank has.
#[derive(Debug)]
pub struct Each<T>(Vec<T>);

impl<R: Rank> TensorParallel<R> {
    /// These ranks.
    ///
    /// # Errors
    /// [`Error::Input`] without one.
    pub fn new(ranks: Vec<Arc<R>>) -> Result<Self, Error> {
        Self::of_group(ranks, Arc::new(Group::alone()))
    }

    /// These ranks, and as many in each other process of the group. The model of the first process is used as any other; the
    /// others [`follow`](crate::group::follow).
    ///
    /// # Errors
    /// [`Error::Input`] without one; [`Error::Process`] when another process has another number.
    pub fn of_group(ranks: Vec<Arc<R>>, group: Arc<Group>) -> Result<Self, Error> {
        if ranks.is_empty() {
            return Err(Error::Input("tensor parallelism without a device".to_owned()));
        }
        group.agree("number of ranks", &ranks.len().to_string())?;
        Ok(Self {
            ranks,
            group,
            plan: OnceLock::new(),
            exchange: Mutex::new(Exchange { capacity: ExchangeCapacity::default(), buffers: None }),
            observed: AtomicBool::new(false),
        })
    }

    /// The ranks of this process.
    pub fn ranks(&self) -> &[Arc<R>] {
        &self.ranks
    }

    /// The ranks of all processes.
    fn count(&self) -> usize {
        self.ranks.len() * self.group.processes()
    }

    /// The number, among those of all processes, of a rank of this one.
    fn number(&self, index: usize) -> usize {
        self.ranks.len() * self.group.process() + index
    }

    fn plan(&self) -> Result<&Plan, Error> {
        self.plan.get().ok_or_else(|| Error::Input("a backend without a model".to_owned()))
    }

    fn each<T>(&self, mut make: impl FnMut(&R) -> Result<T, Error>) -> Result<Each<T>, Error> {
        Ok(Each(self.ranks.iter().map(|rank| make(rank)).collect::<Result<_, _>>()?))
    }

    fn exchange(&self) -> MutexGuard<'_, Exchange<R>> {
        self.exchange.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pairs<'a, T>(&'a self, things: &'a [T]) -> impl Iterator<Item = (&'a R, &'a T)> {
        self.ranks.iter().map(|rank| &**rank).zip(things)
    }

    fn pairs_mut<'a, T>(&'a self, things: &'a mut [T]) -> impl Iterator<Item = (&'a R, &'a mut T)> {
        self.ranks.iter().map(|rank| &**rank).zip(things)
    }

    /// The logits on the first rank, where `out` are those of all.
    fn join(&self, out: &mut Activations<R>) -> Result<(), Error> {
        if !out.is_joined {
            return Ok(());
        }
        let mut exchange = self.exchange();
        R::join(&self.ranks, buffers(&mut exchange)?, &out.ranks, out.joined.as_mut())
    }
}

fn buffers<R: Rank>(exchange: &mut Exchange<R>) -> Result<&mut R::Exchange, Error> {
    exchange.buffers.as_mut().ok_or_else(|| Error::Input("ranks without a batch".to_owned()))
}

/// What a model that is shared out may have.
const FEATURES: [Feature; 19] = [
    Feature::QueryKeyNorms,
    Feature::BranchNorms,
    Feature::PostNorm,
    Feature::ParallelBlocks,
    Feature::EmbeddingScale,
    Feature::Rotary,
    Feature::Alibi,
    Feature::SlidingWindow,
    Feature::AttentionSoftcap,
    Feature::FurtherActivations,
    Feature::ScoresByLayer,
    Feature::ClampedProjections,
    Feature::FrequenciesByLength,
    Feature::NormsAfterRotation,
    Feature::QueryGrowth,
    Feature::AttentionSinks,
    Feature::ChunkedAttention,
    Feature::ValueOutliers,
    Feature::ZeroPoints,
];

impl<'a, R: Rank> Input<'a, TensorParallel<R>> {
    fn of(&self, rank: usize) -> Input<'a, R> {
        match *self {
            Input::Plain(x) => Input::Plain(&x.ranks[rank]),
            Input::Normed(x, norm) => Input::Normed(&x.ranks[rank], &norm.0[rank]),
            Input::Activated(x, activation) => Input::Activated(&x.ranks[rank], activation),
            Input::Gated(x, activation) => Input::Gated(&x.ranks[rank], activation),
        }
    }
}

impl<R: Rank> Output<'_, TensorParallel<R>> {
    fn activations(&mut self) -> &mut Activations<R> {
        match self {
            Output::Store(out) | Output::Add(out) => out,
        }
    }

    fn of(&mut self, rank: usize) -> Output<'_, R> {
        match self {
            Output::Store(out) => Output::Store(&mut out.ranks[rank]),
            Output::Add(out) => Output::Add(&mut out.ranks[rank]),
        }
    }

    fn all(&mut self) -> Vec<Output<'_, R>> {
        match self {
            Output::Store(out) => out.ranks.iter_mut().map(Output::Store).collect(),
            Output::Add(out) => out.ranks.iter_mut().map(Output::Add).collect(),
        }
    }
}

impl<R: Rank> Backend for TensorParallel<R> {
    type Activations = Activations<R>;
    type Linear = Linear<R>;
    type Norm = Each<R::Norm>;
    type Embedding = Each<R::Embedding>;
    type Cache = Each<R::Cache>;
    type Batch = Each<R::Batch>;

    fn describe(&self) -> String {
        let ranks: Vec<String> = self.ranks.iter().map(|rank| rank.describe()).collect();
        let others = match self.group.processes() {
            1 => String::new(),
            2 => " and one more process".to_owned(),
            all => format!(" and {} more processes", all - 1),
        };
        format!("tensor parallel on {}{others}", ranks.join(" + "))
    }

    fn capabilities(&self) -> Capabilities {
        let mut capabilities = self.ranks[0].capabilities();
        capabilities.device = format!("tensor parallelism on {} devices", self.count());
        capabilities.features.retain(|feature| match feature {
            Feature::ExactOutlierWeights => R::EXACT_OUTLIER_WEIGHTS,
            feature => FEATURES.contains(feature),
        });
        capabilities
    }

    fn prepare(&self, config: &DecoderConfig) -> Result<(), Error> {
        self.ranks.iter().try_for_each(|rank| rank.prepare(config))?;
        let plan = Plan::new(config, self.count())?;
        let is_first = self.plan.set(plan).is_ok();
        if is_first || (self.plan.get() == Some(&plan) && self.group.processes() == 1) {
            return Ok(());
        }
        Err(Error::Unsupported("a second model on the same ranks".to_owned()))
    }

    fn linear(&self, site: Site, source: &LinearSource, precision: &Precision) -> Result<Linear<R>, Error> {
        let (split, plan) = (Split::of(&site)?, self.plan()?);
        let load = |(index, rank): (usize, &Arc<R>)| match split {
            Split::None => rank.linear(site, source, precision),
            Split::Outputs => {
                let outputs = plan.outputs(site.role, source.sections(), self.number(index));
                rank.linear(site, &source.with_outputs(&outputs), precision)
            }
            Split::Inputs => {
                let number = self.number(index);
                let features = plan.inputs(site.role, source.inputs(), number);
                rank.linear(site, &source.with_inputs(features, number == 0), precision)
            }
        };
        let ranks = self.ranks.iter().enumerate().map(load).collect::<Result<_, _>>()?;
        Ok(Linear { split, ranks })
    }

    fn tied(&self, site: Site, embedding: &Each<R::Embedding>) -> Result<Linear<R>, Error> {
        let plan = self.plan()?;
        let tied = |(index, (rank, table)): (usize, (&R, &R::Embedding))| {
            rank.tied_rows(site, table, plan.share(plan.vocabulary, self.number(index)))
        };
        let ranks = self.pairs(&embedding.0).enumerate().map(tied).collect::<Result<_, _>>()?;
        Ok(Linear { split: Split::Outputs, ranks })
    }

    fn note(&self) -> Result<Option<String>, Error> {
        self.ranks[0].note()
    }

    fn norm(&self, spec: &NormSpec) -> Result<Each<R::Norm>, Error> {
        self.each(|rank| rank.norm(spec))
    }

    fn embedding(&self, table: &RowTable) -> Result<Each<R::Embedding>, Error> {
        self.each(|rank| rank.embedding(table))
    }

    fn activations(
        &self,
        max_rows: usize,
        width: usize,
        role: ActivationRole,
    ) -> Result<Activations<R>, Error> {
        let plan = self.plan()?;
        let width_of = |index| match role {
            ActivationRole::Residual => width,
            ActivationRole::Logits => plan.share(width, self.number(index)).len(),
            ActivationRole::QueriesKeysValues => plan.projected(self.number(index)),
            ActivationRole::Context => {
                plan.inputs(LinearRole::AttentionOutput, width, self.number(index)).len()
            }
            ActivationRole::Intermediate => width.div_ceil(self.count()),
        };
        let ranks = self.ranks.iter().enumerate();
        let ranks = ranks.map(|(index, rank)| rank.activations(max_rows, width_of(index), role));
        let is_joined = role == ActivationRole::Logits;
        let joined = (is_joined && self.group.process() == 0)
            .then(|| self.ranks[0].activations(max_rows, width, role));
        Ok(Activations { ranks: ranks.collect::<Result<_, _>>()?, is_joined, joined: joined.transpose()? })
    }

    fn cache(&self, spec: &AttentionSpec, capacity: CacheCapacity) -> Result<Each<R::Cache>, Error> {
        let plan = self.plan()?;
        let ranks = self.ranks.iter().enumerate();
        let caches =
            ranks.map(|(index, rank)| rank.cache(&plan.attention(spec, self.number(index)), capacity));
        Ok(Each(caches.collect::<Result<_, _>>()?))
    }

    fn cache_bytes(&self, cache: &Each<R::Cache>) -> usize {
        self.pairs(&cache.0).map(|(rank, cache)| rank.cache_bytes(cache)).sum()
    }

    fn page_tables(&self, cache: &Each<R::Cache>, read: &mut dyn FnMut(&PageTables)) {
        self.ranks[0].page_tables(&cache.0[0], read);
    }

    fn batch(&self, capacity: BatchCapacity) -> Result<Each<R::Batch>, Error> {
        let plan = self.plan()?;
        let mut exchange = self.exchange();
        let needed = ExchangeCapacity {
            rows: capacity.rows.max(exchange.capacity.rows),
            hidden: plan.hidden,
            inputs: plan.widest,
            selected: capacity.selected.max(exchange.capacity.selected),
            vocabulary: plan.vocabulary,
        };
        if needed != exchange.capacity || exchange.buffers.is_none() {
            let former = exchange.buffers.take();
            exchange.buffers = Some(R::exchange(&self.ranks, &self.group, needed, former)?);
            exchange.capacity = needed;
        }
        self.each(|rank| rank.batch(capacity))
    }

    fn reserve(&self, cache: &mut Each<R::Cache>, ranges: &[(usize, Range<usize>)]) -> Result<(), Error> {
        self.pairs_mut(&mut cache.0).try_for_each(|(rank, cache)| rank.reserve(cache, ranges))
    }

    fn release(&self, cache: &mut Each<R::Cache>, sequence: usize) -> Result<(), Error> {
        self.pairs_mut(&mut cache.0).try_for_each(|(rank, cache)| rank.release(cache, sequence))
    }

    fn fork(
        &self,
        cache: &mut Each<R::Cache>,
        from: usize,
        to: usize,
        positions: usize,
    ) -> Result<(), Error> {
        self.pairs_mut(&mut cache.0).try_for_each(|(rank, cache)| rank.fork(cache, from, to, positions))
    }

    fn set_batch(&self, batch: &mut Each<R::Batch>, segments: &[Segment<'_>]) -> Result<(), Error> {
        self.pairs_mut(&mut batch.0).try_for_each(|(rank, batch)| rank.set_batch(batch, segments))
    }

    fn set_selection(&self, batch: &mut Each<R::Batch>, rows: &[usize]) -> Result<(), Error> {
        self.pairs_mut(&mut batch.0).try_for_each(|(rank, batch)| rank.set_selection(batch, rows))
    }

    fn run(
        &self,
        key: GraphKey,
        batch: &Each<R::Batch>,
        body: &mut (dyn FnMut() -> Result<(), Error> + Send),
    ) -> Result<(), Error> {
        R::run_together(&self.ranks, key, &batch.0, body)
    }

    fn embed(
        &self,
        batch: &Each<R::Batch>,
        tokens: Option<&Each<R::Embedding>>,
        positions: Option<(&Each<R::Embedding>, usize)>,
        mut out: Output<'_, Self>,
    ) -> Result<(), Error> {
        for (index, rank) in self.ranks.iter().enumerate() {
            let tokens = tokens.map(|table| &table.0[index]);
            let positions = positions.map(|(table, offset)| (&table.0[index], offset));
            rank.embed(&batch.0[index], tokens, positions, out.of(index))?;
        }
        Ok(())
    }

    fn normalize(&self, x: &mut Activations<R>, norm: &Each<R::Norm>) -> Result<(), Error> {
        let norms = &norm.0;
        self.pairs_mut(&mut x.ranks).zip(norms).try_for_each(|((rank, x), norm)| rank.normalize(x, norm))
    }

    fn normalize_columns(
        &self,
        x: &mut Activations<R>,
        columns: Range<usize>,
        norm: &Each<R::Norm>,
    ) -> Result<(), Error> {
        let plan = self.plan()?;
        let pairs = self.pairs_mut(&mut x.ranks).zip(&norm.0).enumerate();
        pairs.into_iter().try_for_each(|(index, ((rank, x), norm))| {
            rank.normalize_columns(x, plan.columns(&columns, self.number(index)), norm)
        })
    }

    fn add(
        &self,
        x: &mut Activations<R>,
        y: &Activations<R>,
        norm: Option<&Each<R::Norm>>,
    ) -> Result<(), Error> {
        for (index, (rank, x)) in self.pairs_mut(&mut x.ranks).enumerate() {
            rank.add(x, &y.ranks[index], norm.map(|norm| &norm.0[index]))?;
        }
        Ok(())
    }

    fn scale(&self, x: &mut Activations<R>, factor: Option<f32>, cap: Option<f32>) -> Result<(), Error> {
        match (x.is_joined, &mut x.joined) {
            (true, None) => Ok(()),
            (_, Some(joined)) => self.ranks[0].scale(joined, factor, cap),
            (false, None) => {
                self.pairs_mut(&mut x.ranks).try_for_each(|(rank, x)| rank.scale(x, factor, cap))
            }
        }
    }

    fn clamp(&self, x: &mut Activations<R>, limit: f32) -> Result<(), Error> {
        self.pairs_mut(&mut x.ranks).try_for_each(|(rank, x)| rank.clamp(x, limit))
    }

    fn experts(&self, _: Input<'_, Self>, _: &Experts<Self>, _: &mut Activations<R>) -> Result<(), Error> {
        Err(Error::Unsupported("experts with tensor parallelism".to_owned()))
    }

    fn project(
        &self,
        input: Input<'_, Self>,
        targets: &mut [(&Linear<R>, Output<'_, Self>)],
    ) -> Result<(), Error> {
        if self.observed.load(Ordering::Acquire) {
            return Err(Error::Unsupported(
                "looking at a model's activations with tensor parallelism; name one device".to_owned(),
            ));
        }
        for (index, rank) in self.ranks.iter().enumerate() {
            let mut own: Vec<(&R::Linear, Output<'_, R>)> = targets
                .iter_mut()
                .filter(|(linear, _)| linear.split != Split::Inputs)
                .map(|(linear, out)| (&linear.ranks[index], out.of(index)))
                .collect();
            if !own.is_empty() {
                rank.project(input.of(index), &mut own)?;
            }
        }
        for (linear, out) in targets {
            if linear.split == Split::Inputs {
                let inputs: Vec<_> = (0..self.ranks.len()).map(|index| input.of(index)).collect();
                let linears: Vec<_> = linear.ranks.iter().collect();
                let mut exchange = self.exchange();
                R::contract(&self.ranks, buffers(&mut exchange)?, &inputs, &linears, &mut out.all())?;
            } else {
                self.join(out.activations())?;
            }
        }
        Ok(())
    }

    fn attention(
        &self,
        batch: &Each<R::Batch>,
        layer: usize,
        qkv: &mut Activations<R>,
        cache: &mut Each<R::Cache>,
        out: &mut Activations<R>,
    ) -> Result<(), Error> {
        for (index, rank) in self.ranks.iter().enumerate() {
            let (qkv, out) = (&mut qkv.ranks[index], &mut out.ranks[index]);
            rank.attention(&batch.0[index], layer, qkv, &mut cache.0[index], out)?;
        }
        Ok(())
    }

    fn write_cross_kv(
        &self,
        _: &Each<R::Batch>,
        _: usize,
        _: &Activations<R>,
        _: &mut Each<R::Cache>,
    ) -> Result<(), Error> {
        Err(Error::Unsupported("cross-attention with tensor parallelism".to_owned()))
    }

    fn cross_attention(
        &self,
        _: &Each<R::Batch>,
        _: usize,
        _: &Activations<R>,
        _: &Each<R::Cache>,
        _: &mut Activations<R>,
    ) -> Result<(), Error> {
        Err(Error::Unsupported("cross-attention with tensor parallelism".to_owned()))
    }

    fn gather(
        &self,
        batch: &Each<R::Batch>,
        x: &Activations<R>,
        out: &mut Activations<R>,
    ) -> Result<(), Error> {
        for (index, (rank, out)) in self.pairs_mut(&mut out.ranks).enumerate() {
            rank.gather(&batch.0[index], &x.ranks[index], out)?;
        }
        Ok(())
    }

    fn receive(&self, from: &Self, x: &Activations<R>, out: &mut Activations<R>) -> Result<(), Error> {
        for (index, (rank, out)) in self.pairs_mut(&mut out.ranks).enumerate() {
            rank.receive(&from.ranks[index], &x.ranks[index], out)?;
        }
        Ok(())
    }

    fn sample(&self, logits: &Activations<R>, samplers: &mut [Sampler]) -> Result<Vec<u32>, Error> {
        self.ranks[0].sample(logits.first(), samplers)
    }

    fn read<'a>(&self, x: &'a Activations<R>, host: &'a mut Vec<f32>) -> Result<&'a [f32], Error> {
        self.ranks[0].read(x.first(), host)
    }

    fn group(&self) -> Option<&Arc<Group>> {
        Some(&self.group)
    }

    fn linear_name<'a>(&self, linear: &'a Linear<R>) -> &'a str {
        self.ranks[0].linear_name(&linear.ranks[0])
    }

    fn multiply(&self, _: &Linear<R>, _: ArrayView2<'_, f32>) -> Result<Array2<f32>, Error> {
        Err(Error::Unsupported(
            "products outside of a forward with tensor parallelism; name one device".to_owned(),
        ))
    }

    fn observe(&self, observer: Option<Arc<dyn Observer>>) {
        self.observed.store(observer.is_some(), Ordering::Release);
    }

    fn statistics(&self, linear: &Linear<R>) -> LinearStatistics {
        let mut all = self.pairs(&linear.ranks).map(|(rank, linear)| rank.statistics(linear));
        let mut first = all.next().unwrap_or_default();
        // Every rank sees the whole input, but where it is shared out: then those of this process are counted.
        if linear.split == Split::Inputs {
            for other in all {
                first.inputs += other.inputs;
                first.outlier_columns += other.outlier_columns;
                first.outlier_values += other.outlier_values;
                first.values += other.values;
                first.column_calls.extend(other.column_calls);
                first.exact_columns += other.exact_columns;
            }
        }
        first
    }

    fn reset_statistics(&self, linear: &Linear<R>) {
        self.pairs(&linear.ranks).for_each(|(rank, linear)| rank.reset_statistics(linear));
    }

    fn linear_bytes(&self, linear: &Linear<R>) -> usize {
        self.pairs(&linear.ranks).map(|(rank, linear)| rank.linear_bytes(linear)).sum()
    }

    fn embedding_bytes(&self, embedding: &Each<R::Embedding>) -> usize {
        self.pairs(&embedding.0).map(|(rank, table)| rank.embedding_bytes(table)).sum()
    }
}

impl<R: Rank> Activations<R> {
    /// What the first rank reads.
    fn first(&self) -> &R::Activations {
        self.joined.as_ref().unwrap_or(&self.ranks[0])
    }
}
