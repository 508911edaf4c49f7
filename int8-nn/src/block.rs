//! One transformer block: attention and MLP with their normalisations, for decoders and encoders alike.

use crate::Error;
use crate::backend::{AttentionSpec, Backend, Input, Mask, NormSpec, Output, Precision};
use crate::checkpoint::Checkpoint;
use crate::config::{BlockKind, DecoderConfig, NormKind};
use crate::families::LayerNames;
use crate::weights::{LinearSource, Part};

/// The weights of a block.
#[derive(Debug)]
pub(crate) struct Block<B: Backend> {
    attention_norm: B::Norm,
    mlp_norm: B::Norm,
    qkv: B::Linear,
    attention_output: B::Linear,
    up: B::Linear,
    down: B::Linear,
}

/// What a linear layer is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LinearRole {
    /// Queries, keys and values.
    Qkv,
    /// Output of the attention.
    AttentionOutput,
    /// The MLP's expansion (and gate).
    Up,
    /// The MLP's contraction.
    Down,
}

/// Reads the tensors of a model below one root of names.
pub(crate) struct Loader<'a, B> {
    pub(crate) checkpoint: &'a Checkpoint,
    pub(crate) backend: &'a B,
    pub(crate) config: &'a DecoderConfig,
    pub(crate) root: &'static str,
}

impl<B: Backend> Loader<'_, B> {
    /// A name below the root.
    pub(crate) fn name(&self, name: &str) -> String {
        format!("{}{name}", self.root)
    }

    /// The normalisation `name`, as wide as the residual stream.
    pub(crate) fn norm(&self, name: &str) -> Result<B::Norm, Error> {
        let name = self.name(name);
        let width = [self.config.hidden_size];
        // Before 2020 gain and bias were called gamma and beta, and some checkpoints still have them so.
        let vector = |suffix: &str, old: &str| {
            let (name, old) = (format!("{name}.{suffix}"), format!("{name}.{old}"));
            if !self.checkpoint.contains(&name) && self.checkpoint.contains(&old) { old } else { name }
        };
        let gain = self.checkpoint.tensor(&vector("weight", "gamma"))?.expect_shape(&width)?.to_f32()?;
        let bias = match self.config.norm {
            NormKind::RmsNorm => None,
            NormKind::LayerNorm => {
                let bias = self.checkpoint.get(&vector("bias", "beta"));
                bias.map(|bias| bias.expect_shape(&width)?.to_f32()).transpose()?
            }
        };
        self.backend.norm(&NormSpec { kind: self.config.norm, eps: self.config.norm_eps, gain, bias })
    }

    /// The linear layer stacked from `parts`, which have `outputs`.
    pub(crate) fn linear(
        &self,
        parts: Vec<Part>,
        outputs: &[usize],
        inputs: usize,
        precision: &Precision,
    ) -> Result<B::Linear, Error> {
        let source = LinearSource::find(self.checkpoint, self.root, parts, outputs, inputs)?;
        self.backend.linear(&source, precision)
    }

    /// A block.
    pub(crate) fn block(&self, names: LayerNames, precision: &Precision) -> Result<Block<B>, Error> {
        let config = self.config;
        let (hidden, wide) = (config.hidden_size, config.intermediate_size);
        let (queries, keys) = (config.heads * config.head_size, config.kv_heads * config.head_size);
        let up: &[usize] = if config.gated_mlp { &[wide, wide] } else { &[wide] };
        Ok(Block {
            attention_norm: self.norm(&names.attention_norm)?,
            mlp_norm: self.norm(&names.mlp_norm)?,
            qkv: self.linear(names.qkv, &[queries, keys, keys], hidden, precision)?,
            attention_output: self.linear(vec![names.attention_output], &[hidden], queries, precision)?,
            up: self.linear(names.up, up, hidden, precision)?,
            down: self.linear(vec![names.down], &[hidden], wide, precision)?,
        })
    }
}

/// What a block computes between its projections; allocated once for all blocks.
#[derive(Debug)]
pub(crate) struct Scratch<B: Backend> {
    qkv: B::Activations,
    context: B::Activations,
    up: B::Activations,
}

impl<B: Backend> Scratch<B> {
    /// For steps of at most `max_rows` tokens.
    pub(crate) fn new(backend: &B, config: &DecoderConfig, max_rows: usize) -> Result<Self, Error> {
        let rows = |width| backend.activations(max_rows, width);
        let gates = if config.gated_mlp { 2 } else { 1 };
        Ok(Self {
            qkv: rows((config.heads + 2 * config.kv_heads) * config.head_size)?,
            context: rows(config.heads * config.head_size)?,
            up: rows(gates * config.intermediate_size)?,
        })
    }
}

/// What attention needs to know about blocks that see what `mask` says and keep keys and values in `layers` layers of a
/// cache.
pub(crate) fn attention_spec(config: &DecoderConfig, layers: usize, mask: Mask) -> AttentionSpec {
    AttentionSpec {
        layers,
        heads: config.heads,
        kv_heads: config.kv_heads,
        head_size: config.head_size,
        positions: config.positions.clone(),
        sliding_window: config.sliding_window,
        mask,
        scale: 1.0 / crate::convert::f32_from_count(config.head_size).sqrt(),
        bias: None,
    }
}

impl<B: Backend> Block<B> {
    /// The linear layers, in the order of [`LinearRole`].
    pub(crate) fn linears(&self) -> [(LinearRole, &B::Linear); 4] {
        [
            (LinearRole::Qkv, &self.qkv),
            (LinearRole::AttentionOutput, &self.attention_output),
            (LinearRole::Up, &self.up),
            (LinearRole::Down, &self.down),
        ]
    }

    /// Takes the residual stream `x [rows, hidden_size]` through the block, with `layer` of the cache.
    pub(crate) fn forward(
        &self,
        (backend, config): (&B, &DecoderConfig),
        step: &B::Step,
        (layer, cache): (usize, &mut B::Cache),
        x: &mut B::Activations,
        scratch: &mut Scratch<B>,
    ) -> Result<(), Error> {
        let Scratch { qkv, context, up } = scratch;
        let activation = config.activation;
        let gated = config.gated_mlp;
        let expanded =
            |up| if gated { Input::Gated(up, activation) } else { Input::Activated(up, activation) };
        match config.block {
            BlockKind::PreNorm => {
                backend.project(Input::Normed(x, &self.attention_norm), &self.qkv, Output::Store(qkv))?;
                backend.attention(step, layer, qkv, cache, context)?;
                backend.project(Input::Plain(context), &self.attention_output, Output::Add(x))?;
                backend.project(Input::Normed(x, &self.mlp_norm), &self.up, Output::Store(up))?;
                backend.project(expanded(up), &self.down, Output::Add(x))
            }
            BlockKind::Parallel => {
                backend.project(Input::Normed(x, &self.attention_norm), &self.qkv, Output::Store(qkv))?;
                backend.project(Input::Normed(x, &self.mlp_norm), &self.up, Output::Store(up))?;
                backend.attention(step, layer, qkv, cache, context)?;
                backend.project(Input::Plain(context), &self.attention_output, Output::Add(x))?;
                backend.project(expanded(up), &self.down, Output::Add(x))
            }
            BlockKind::PostNorm => {
                backend.project(Input::Plain(x), &self.qkv, Output::Store(qkv))?;
                backend.attention(step, layer, qkv, cache, context)?;
                backend.project(Input::Plain(context), &self.attention_output, Output::Add(x))?;
                backend.normalize(x, &self.attention_norm)?;
                backend.project(Input::Plain(x), &self.up, Output::Store(up))?;
                backend.project(expanded(up), &self.down, Output::Add(x))?;
                backend.normalize(x, &self.mlp_norm)
            }
        }
    }
}
