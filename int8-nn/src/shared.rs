//! A transformer that several blocks share, before the recurrent mixer of each: see [`SharedTransformer`].

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;

use crate::Error;
use crate::backend::{ActivationRole, Backend, ColumnCopy, Input, Output};
use crate::block::{Context, Loader, expanded};
use crate::config::{DecoderConfig, SharedTransformer};
use crate::families::SharedNames;
use crate::precision::{LinearRole, Precision, Site};
use crate::scratch::Scratch;
use crate::weights::Part;

/// The shared transformers that were loaded, by the name of their first norm.
pub(crate) type SharedCores<B> = RefCell<BTreeMap<String, Arc<Core<B>>>>;

/// What a block has of it.
#[derive(Debug)]
pub(crate) struct Shared<B: Backend> {
    core: Arc<Core<B>>,
    /// The first block with this core counts its linear layers as its own.
    is_first: bool,
    /// Of queries, keys and values.
    attention_adapters: Vec<Adapter<B>>,
    up_adapter: Option<Adapter<B>>,
    output: B::Linear,
    /// `[x, embedding]`, and the outputs of three adapters side by side.
    join: [ColumnCopy; 2],
    join_adapters: Vec<ColumnCopy>,
    /// Number of weights in the linear layers that it counts.
    weights: usize,
}

/// The weights that blocks share.
#[derive(Debug)]
pub(crate) struct Core<B: Backend> {
    attention_norm: B::Norm,
    qkv: B::Linear,
    attention_output: B::Linear,
    mlp_norm: B::Norm,
    up: B::Linear,
    down: B::Linear,
}

/// `B·(A·x)`
#[derive(Debug)]
struct Adapter<B: Backend> {
    down: B::Linear,
    up: B::Linear,
}

/// The activations that such blocks have besides those of attention and MLP.
#[derive(Debug)]
pub(crate) struct SharedScratch<B: Backend> {
    /// The token embedding `[rows, hidden_size]`.
    pub(crate) embedded: B::Activations,
    /// `[x, embedding]`
    joined: B::Activations,
    /// An adapter at its rank.
    low: B::Activations,
    /// Outputs of the adapters of queries, keys and values; and side by side.
    adapted: Vec<B::Activations>,
    adapted_qkv: B::Activations,
    hidden: B::Activations,
    /// The input of the recurrent mixer.
    sum: B::Activations,
}

impl<B: Backend> SharedScratch<B> {
    pub(crate) fn new(backend: &B, config: &DecoderConfig, max_rows: usize) -> Result<Option<Self>, Error> {
        let Some(shared) = config.shared else { return Ok(None) };
        let rows = |width| backend.activations(max_rows, width, ActivationRole::Intermediate);
        let residual = || backend.activations(max_rows, config.hidden_size, ActivationRole::Residual);
        let [queries, keys] = [config.heads, config.kv_heads].map(|heads| heads * config.head_size);
        let adapted =
            if shared.attention_adapters { [queries, keys, keys].map(rows).into() } else { Vec::new() };
        Ok(Some(Self {
            embedded: residual()?,
            joined: rows(2 * config.hidden_size)?,
            low: rows(shared.adapter_rank.unwrap_or_default())?,
            adapted: adapted.into_iter().collect::<Result<_, _>>()?,
            adapted_qkv: rows(if shared.attention_adapters { queries + 2 * keys } else { 0 })?,
            hidden: rows(config.hidden_size)?,
            sum: residual()?,
        }))
    }

    /// Keeps the token embedding.
    pub(crate) fn embed(&mut self, backend: &B, x: &B::Activations, hidden: usize) -> Result<(), Error> {
        backend.copy_columns(
            &[x],
            &[ColumnCopy { source: 0, from: 0, to: 0, count: hidden }],
            &mut self.embedded,
        )
    }
}

/// A linear layer.
pub(crate) struct Layer {
    role: LinearRole,
    pub(crate) parts: Vec<Part>,
    /// Output channels of each part, or of all that one part holds.
    pub(crate) outputs: Vec<usize>,
    /// Input features.
    pub(crate) inputs: usize,
}

/// The linear layers of a core, then those of a block.
pub(crate) fn linear_layers(names: SharedNames, config: &DecoderConfig) -> [Vec<Layer>; 2] {
    let (hidden, joined, wide) = (config.hidden_size, 2 * config.hidden_size, config.intermediate_size);
    let (queries, keys) = (config.heads * config.head_size, config.kv_heads * config.head_size);
    let up = if config.gated_mlp { vec![wide, wide] } else { vec![wide] };
    let rank = config.shared.and_then(|shared| shared.adapter_rank).unwrap_or_default();
    let layer = |role, parts: Vec<Part>, biased, outputs, inputs| {
        let parts = parts.into_iter().map(|part| part.biased(biased)).collect();
        Layer { role, parts, outputs, inputs }
    };
    let core = vec![
        layer(LinearRole::Qkv, names.qkv, false, vec![queries, keys, keys], joined),
        layer(LinearRole::AttentionOutput, vec![names.attention_output], false, vec![hidden], queries),
        layer(LinearRole::Up, names.up, config.biases.up, up.clone(), hidden),
        layer(LinearRole::Down, vec![names.down], config.biases.down, vec![hidden], wide),
    ];
    let adapter = |[down, to]: [Part; 2], roles: [LinearRole; 2], outputs, inputs| {
        [
            layer(roles[0], vec![down], false, vec![rank], inputs),
            layer(roles[1], vec![to], false, vec![outputs], rank),
        ]
    };
    let mut own = vec![layer(LinearRole::Down, vec![names.output], false, vec![hidden], hidden)];
    let of_up = names.up_adapter.map(|parts| adapter(parts, OF_UP, up.iter().sum(), hidden));
    own.extend(of_up.into_iter().flatten());
    for (parts, outputs) in names.attention_adapters.into_iter().zip([queries, keys, keys]) {
        own.extend(adapter(parts, OF_QKV, outputs, joined));
    }
    [core, own]
}

/// The roles of an adapter's layers, beside the MLP's expansion and beside queries, keys and values.
const OF_UP: [LinearRole; 2] = [LinearRole::Up, LinearRole::Down];
const OF_QKV: [LinearRole; 2] = [LinearRole::Qkv, LinearRole::AttentionOutput];

impl<B: Backend> Shared<B> {
    pub(crate) fn load(
        loader: &Loader<'_, B>,
        layer: usize,
        shared: SharedTransformer,
        names: SharedNames,
        precision: &Precision,
    ) -> Result<Self, Error> {
        let config = loader.config;
        let (attention_norm, mlp_norm) = (names.attention_norm.clone(), names.mlp_norm.clone());
        let [of_core, own] = linear_layers(names, config);
        let linear = |Layer { role, parts, outputs, inputs }| {
            let site = Site::block(loader.stack, layer, role);
            loader.linear(site, parts, &outputs, inputs, &precision.of(role))
        };
        let missing = || Error::Unsupported("a shared transformer without its layers".to_owned());
        let known = loader.shared.borrow().get(&attention_norm).cloned();
        let is_first = known.is_none();
        let core = match known {
            Some(core) => core,
            None => {
                let mut linears = of_core.into_iter().map(linear);
                let mut next = || linears.next().unwrap_or_else(|| Err(missing()));
                let core = Arc::new(Core {
                    attention_norm: loader.norm_of(&attention_norm, 2 * config.hidden_size)?,
                    mlp_norm: loader.norm(&mlp_norm)?,
                    qkv: next()?,
                    attention_output: next()?,
                    up: next()?,
                    down: next()?,
                });
                loader.shared.borrow_mut().insert(attention_norm, core.clone());
                core
            }
        };
        let mut linears = own.into_iter().map(linear);
        let output = linears.next().unwrap_or_else(|| Err(missing()))?;
        let mut adapters = Vec::new();
        while let Some(down) = linears.next() {
            adapters.push(Adapter { down: down?, up: linears.next().unwrap_or_else(|| Err(missing()))? });
        }
        let mut adapters = adapters.into_iter();
        let up_adapter = adapters.next();
        let hidden = config.hidden_size;
        let copy = |source, to, count| ColumnCopy { source, from: 0, to, count };
        let (queries, keys) = (config.heads * config.head_size, config.kv_heads * config.head_size);
        let [core_weights, own_weights] = shared.weights(config).map(|[weights, _]| weights);
        Ok(Self {
            core,
            is_first,
            attention_adapters: adapters.collect(),
            up_adapter,
            output,
            join: [copy(0, 0, hidden), copy(1, hidden, hidden)],
            join_adapters: vec![copy(0, 0, queries), copy(1, queries, keys), copy(2, queries + keys, keys)],
            weights: own_weights + if is_first { core_weights } else { 0 },
        })
    }

    /// The linear layers with their roles; those of the core of the first block that has it alone.
    pub(crate) fn linears(&self) -> impl Iterator<Item = (LinearRole, &B::Linear)> {
        let core = &*self.core;
        let shared = [
            (LinearRole::Qkv, &core.qkv),
            (LinearRole::AttentionOutput, &core.attention_output),
            (LinearRole::Up, &core.up),
            (LinearRole::Down, &core.down),
        ];
        let shared = shared.into_iter().filter(|_| self.is_first);
        let of_up = self.up_adapter.iter().flat_map(move |adapter| adapter.linears(OF_UP));
        let of_attention = self.attention_adapters.iter().flat_map(move |adapter| adapter.linears(OF_QKV));
        shared.chain([(LinearRole::Down, &self.output)]).chain(of_up).chain(of_attention)
    }

    /// Number of weights in these layers, without biases.
    pub(crate) fn weights(&self) -> usize {
        self.weights
    }

    /// The input of the block's recurrent mixer: the residual stream `x` and the output of the transformer.
    pub(crate) fn forward<'a>(
        &self,
        at: &Context<'_, B>,
        (layer, cache): (usize, &mut B::Cache),
        x: &B::Activations,
        scratch: &'a mut Scratch<B>,
    ) -> Result<&'a B::Activations, Error> {
        let backend = at.backend;
        let core = &*self.core;
        let Scratch { qkv, context, up, shared: Some(scratch), .. } = scratch else {
            return Err(Error::Unsupported("a shared transformer without sizes".to_owned()));
        };
        let SharedScratch { embedded, joined, low, adapted, adapted_qkv, hidden, sum } = scratch;
        backend.copy_columns(&[x, embedded], &self.join, joined)?;
        let target = (&core.qkv, Output::Store(&mut *qkv));
        backend.project(Input::Normed(joined, &core.attention_norm), &mut [target])?;
        if !self.attention_adapters.is_empty() {
            for (adapter, adapted) in self.attention_adapters.iter().zip(&mut *adapted) {
                let input = Input::Normed(joined, &core.attention_norm);
                adapter.project(backend, input, low, Output::Store(adapted))?;
            }
            let adapted: Vec<&B::Activations> = adapted.iter().collect();
            backend.copy_columns(&adapted, &self.join_adapters, adapted_qkv)?;
            backend.add(qkv, adapted_qkv, None)?;
        }
        backend.attention(at.batch, layer, qkv, cache, context)?;
        backend
            .project(Input::Plain(context), &mut [(&core.attention_output, Output::Store(&mut *hidden))])?;
        let target = (&core.up, Output::Store(&mut *up));
        backend.project(Input::Normed(hidden, &core.mlp_norm), &mut [target])?;
        if let Some(adapter) = &self.up_adapter {
            adapter.project(backend, Input::Normed(hidden, &core.mlp_norm), low, Output::Add(up))?;
        }
        backend.project(expanded(at.config, up), &mut [(&core.down, Output::Store(&mut *hidden))])?;
        backend.project(Input::Plain(hidden), &mut [(&self.output, Output::Store(&mut *sum))])?;
        backend.add(sum, x, None)?;
        Ok(sum)
    }
}

impl<B: Backend> Adapter<B> {
    fn linears(&self, [down, up]: [LinearRole; 2]) -> [(LinearRole, &B::Linear); 2] {
        [(down, &self.down), (up, &self.up)]
    }

    fn project(
        &self,
        backend: &B,
        input: Input<'_, B>,
        low: &mut B::Activations,
        out: Output<'_, B>,
    ) -> Result<(), Error> {
        backend.project(input, &mut [(&self.down, Output::Store(&mut *low))])?;
        backend.project(Input::Plain(low), &mut [(&self.up, out)])
    }
}
