//! Multi-head latent attention in a block: the projections of [`LatentAttention`] and how their outputs become heads. The KV
//! cache holds whole heads of keys and values, not the latents.

use crate::Error;
use crate::backend::{ActivationRole, Backend, ColumnCopy, Input, NormSpec, Output};
use crate::block::Loader;
use crate::config::{DecoderConfig, IndexShape, LatentAttention, NormKind};
use crate::families::{IndexNames, LatentNames};
use crate::precision::{LinearRole, Precision, Site};
use crate::weights::Part;

/// The norms of latents have this ε whatever the configuration says.
const EPS: f32 = 1e-6;

/// The projections before attention.
#[derive(Debug)]
pub(crate) struct Latent<B: Backend> {
    /// To the latent of queries, and its norm.
    query_down: Option<(B::Linear, B::Norm)>,
    query: B::Linear,
    kv_down: B::Linear,
    kv_norm: B::Norm,
    /// The rotated dimensions of all keys.
    key: B::Linear,
    kv_up: B::Linear,
    /// From queries, rotated dimensions and `kv_up` to heads of queries, keys and values.
    join: Vec<ColumnCopy>,
    /// From heads of the context to heads of the width of values.
    values: Vec<ColumnCopy>,
    index: Option<Index<B>>,
}

/// A linear layer: its weight, output channels and input features.
pub(crate) type Layer = (Part, usize, usize);

/// The linear layers in the order of [`LatentNames`].
pub(crate) fn layers(names: LatentNames, config: &DecoderConfig, latent: LatentAttention) -> Vec<Layer> {
    let (hidden, heads) = (config.hidden_size, config.heads);
    let LatentNames { query_down, query, kv_down, key, kv_up, .. } = names;
    let rank = latent.query_rank.unwrap_or(hidden);
    let query_down = query_down.map(|part| (part.biased(config.biases.qkv), rank, hidden));
    query_down
        .into_iter()
        .chain([
            (query.biased(false), heads * latent.key(), rank),
            (kv_down.biased(config.biases.qkv), latent.kv_rank, hidden),
            (key.biased(config.biases.qkv), latent.rotated, hidden),
            (kv_up.biased(false), heads * (latent.plain + latent.value), latent.kv_rank),
        ])
        .collect()
}

/// Number of weights in these layers.
pub(crate) fn weights(config: &DecoderConfig, latent: LatentAttention) -> [usize; 2] {
    let (hidden, heads) = (config.hidden_size, config.heads);
    let queries = heads * latent.key();
    let (query_outputs, query) = match latent.query_rank {
        Some(rank) => (rank + queries, rank * (hidden + queries)),
        None => (queries, hidden * queries),
    };
    let values = heads * (latent.plain + latent.value);
    let (rank, rotated) = (latent.kv_rank, latent.rotated);
    [query + (rank + rotated) * hidden + values * rank, query_outputs + rank + rotated + values]
}

impl<B: Backend> Latent<B> {
    pub(crate) fn load(
        loader: &Loader<'_, B>,
        site: Site,
        mut names: LatentNames,
        latent: LatentAttention,
        precision: &Precision,
    ) -> Result<Self, Error> {
        let config = loader.config;
        let names_of_index = names.index.take();
        let norm = |name: &str, width| loader.norm_with_eps(name, width, EPS);
        let query_norm = match (&names.query_norm, latent.query_rank) {
            (Some(name), Some(rank)) => Some(norm(name, rank)?),
            _ => None,
        };
        let mut kv_norm = NormSpec { eps: EPS, ..loader.norm_spec(&names.kv_norm, latent.kv_rank)? };
        if let Some(factor) = config.latent_scale {
            kv_norm.gain.iter_mut().for_each(|gain| *gain *= factor);
        }
        let kv_norm = loader.backend.norm(&kv_norm)?;
        let precision = precision.of(LinearRole::Qkv);
        let mut linears = Vec::new();
        for (part, outputs, inputs) in layers(names, config, latent) {
            linears.push(loader.linear(site, vec![part], &[outputs], inputs, &precision)?);
        }
        let mut linears = linears.into_iter();
        let mut next =
            || linears.next().ok_or_else(|| Error::Unsupported("latent attention without layers".to_owned()));
        let query_down = match query_norm {
            Some(norm) => Some((next()?, norm)),
            None => None,
        };
        let (query, kv_down, key, kv_up) = (next()?, next()?, next()?, next()?);
        let (join, values) = copies(config, latent);
        let index =
            names_of_index.map(|names| Index::load(loader, site, names, latent, &precision)).transpose()?;
        Ok(Self { query_down, query, kv_down, kv_norm, key, kv_up, join, values, index })
    }

    pub(crate) fn linears(&self) -> impl Iterator<Item = &B::Linear> {
        let down = self.query_down.iter().map(|(down, _)| down);
        let index = self.index.iter().flat_map(|index| [&index.query, &index.key]);
        down.chain([&self.query, &self.kv_down, &self.key, &self.kv_up]).chain(index)
    }

    /// `qkv [rows, 3·heads·head_size]`, as attention takes it, from the input of the block.
    pub(crate) fn project(
        &self,
        backend: &B,
        input: Input<'_, B>,
        scratch: &mut LatentScratch<B>,
        qkv: &mut B::Activations,
    ) -> Result<(), Error> {
        let LatentScratch { query_latent, query, kv_latent, key, kv, index, .. } = scratch;
        let [index_query, index_key, index_weights] = index;
        let mut targets =
            vec![(&self.kv_down, Output::Store(&mut *kv_latent)), (&self.key, Output::Store(&mut *key))];
        if let Some(index) = &self.index {
            targets.push((&index.key, Output::Store(index_key)));
            targets.push((&index.weights, Output::Store(index_weights)));
        }
        match &self.query_down {
            Some((down, norm)) => {
                targets.push((down, Output::Store(&mut *query_latent)));
                backend.project(input, &mut targets)?;
                let mut targets = vec![(&self.query, Output::Store(&mut *query))];
                targets.extend(self.index.as_ref().map(|index| (&index.query, Output::Store(index_query))));
                backend.project(Input::Normed(query_latent, norm), &mut targets)?;
            }
            None => {
                targets.push((&self.query, Output::Store(&mut *query)));
                backend.project(input, &mut targets)?;
            }
        }
        let target = (&self.kv_up, Output::Store(&mut *kv));
        backend.project(Input::Normed(kv_latent, &self.kv_norm), &mut [target])?;
        backend.copy_columns(&[query, key, kv], &self.join, qkv)
    }

    /// Selects the keys that attention sees, where this block has an indexer.
    pub(crate) fn select_keys(
        &self,
        backend: &B,
        batch: &B::Batch,
        (layer, cache): (usize, &mut B::Cache),
        scratch: &mut LatentScratch<B>,
    ) -> Result<(), Error> {
        let Some(index) = &self.index else { return Ok(()) };
        let [queries, keys, weights] = &mut scratch.index;
        backend.normalize(keys, &index.key_norm)?;
        backend.select_keys(batch, layer, queries, keys, weights, cache)
    }

    /// The heads of `context [rows, heads·head_size]` without what lies beyond the width of values.
    pub(crate) fn values<'a>(
        &self,
        backend: &B,
        context: &B::Activations,
        scratch: &'a mut LatentScratch<B>,
    ) -> Result<&'a B::Activations, Error> {
        backend.copy_columns(&[context], &self.values, &mut scratch.values)?;
        Ok(&scratch.values)
    }
}

/// The projections of an indexer.
#[derive(Debug)]
struct Index<B: Backend> {
    /// From the latent of queries.
    query: B::Linear,
    key: B::Linear,
    key_norm: B::Norm,
    /// Of the queries, in floating point.
    weights: B::Linear,
}

impl<B: Backend> Index<B> {
    fn load(
        loader: &Loader<'_, B>,
        site: Site,
        names: IndexNames,
        latent: LatentAttention,
        precision: &Precision,
    ) -> Result<Self, Error> {
        let (Some(indexer), Some(rank)) = (&loader.config.indexer, latent.query_rank) else {
            return Err(Error::Unsupported("an indexer without a latent of queries".to_owned()));
        };
        let IndexShape { heads, size, .. } = indexer.shape;
        let hidden = loader.config.hidden_size;
        let linear = |part: Part, outputs, inputs, precision: &Precision| {
            loader.linear(site, vec![part.biased(false)], &[outputs], inputs, precision)
        };
        let vector = |suffix: &str| -> Result<Vec<f32>, Error> {
            let stored = loader.vector(&format!("{}.{suffix}", names.key_norm), size)?;
            Ok(names.order.iter().map(|place| stored[*place]).collect())
        };
        let norm = NormSpec {
            kind: NormKind::LayerNorm,
            eps: EPS,
            gain: vector("weight")?,
            bias: Some(vector("bias")?),
        };
        Ok(Self {
            key_norm: loader.backend.norm(&norm)?,
            query: linear(names.query, heads * size, rank, precision)?,
            key: linear(names.key, size, hidden, precision)?,
            weights: linear(names.weights, heads, hidden, &Precision::Float)?,
        })
    }
}

/// Each head of queries and keys: its rotated dimensions, the others, and zeros; each of values: the value and zeros.
fn copies(config: &DecoderConfig, latent: LatentAttention) -> (Vec<ColumnCopy>, Vec<ColumnCopy>) {
    let (heads, size) = (config.heads, config.head_size);
    let LatentAttention { rotated, plain, value, .. } = latent;
    let (mut join, mut values) = (Vec::new(), Vec::new());
    for head in 0..heads {
        let [query, key, of_value] = [0, heads, 2 * heads].map(|first| (first + head) * size);
        let stored = head * (plain + value);
        let copy = |source, from, to, count| ColumnCopy { source, from, to, count };
        join.push(copy(0, head * latent.key(), query, latent.key()));
        join.push(copy(1, 0, key, rotated));
        join.push(copy(2, stored, key + rotated, plain));
        join.push(copy(2, stored + plain, of_value, value));
        values.push(copy(0, head * size, head * value, value));
    }
    (join, values)
}

/// The activations of these projections, allocated once for all blocks.
#[derive(Debug)]
pub(crate) struct LatentScratch<B: Backend> {
    query_latent: B::Activations,
    query: B::Activations,
    kv_latent: B::Activations,
    key: B::Activations,
    kv: B::Activations,
    values: B::Activations,
    /// Queries, keys and weights of an indexer.
    index: [B::Activations; 3],
}

impl<B: Backend> LatentScratch<B> {
    pub(crate) fn new(
        backend: &B,
        config: &DecoderConfig,
        latent: LatentAttention,
        max_rows: usize,
    ) -> Result<Self, Error> {
        let rows = |width| backend.activations(max_rows, width, ActivationRole::Intermediate);
        let index = config.indexer.as_ref().map(|indexer| indexer.shape);
        let indexed = |width: usize| {
            backend.activations(
                if index.is_some() { max_rows } else { 0 },
                width,
                ActivationRole::Intermediate,
            )
        };
        let (heads, size) = index.map_or((1, 1), |index| (index.heads, index.size));
        Ok(Self {
            index: [indexed(heads * size)?, indexed(size)?, indexed(heads)?],
            query_latent: rows(latent.query_rank.unwrap_or(1))?,
            query: rows(config.heads * latent.key())?,
            kv_latent: rows(latent.kv_rank)?,
            key: rows(latent.rotated)?,
            kv: rows(config.heads * (latent.plain + latent.value))?,
            values: rows(config.heads * latent.value)?,
        })
    }
}
