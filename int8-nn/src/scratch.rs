//! The activations between the projections of a block.

use crate::Error;
use crate::backend::{ActivationRole, Backend};
use crate::config::DecoderConfig;
use crate::latent::LatentScratch;

/// The activations between a block's projections, allocated once for all blocks.
#[derive(Debug)]
pub(crate) struct Scratch<B: Backend> {
    pub(crate) qkv: B::Activations,
    pub(crate) context: B::Activations,
    /// The gate of `context`.
    pub(crate) gate: B::Activations,
    /// Queries of cross-attention.
    pub(crate) query: B::Activations,
    pub(crate) up: B::Activations,
    /// The activated `up`, where a norm follows.
    pub(crate) inner: B::Activations,
    /// A branch that no projection adds to the residual stream.
    pub(crate) branch: B::Activations,
    pub(crate) latent: Option<LatentScratch<B>>,
}

/// Activations that not every model has.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Further {
    pub(crate) query: bool,
    pub(crate) branch: bool,
}

impl<B: Backend> Scratch<B> {
    /// For forwards of at most `max_rows` tokens.
    pub(crate) fn new(
        backend: &B,
        config: &DecoderConfig,
        further: Further,
        max_rows: usize,
    ) -> Result<Self, Error> {
        let role = ActivationRole::Intermediate;
        let rows = |width| backend.activations(max_rows, width, role);
        let rows_if =
            |condition, width| backend.activations(if condition { max_rows } else { 0 }, width, role);
        let gates = if config.gated_mlp { 2 } else { 1 };
        let context = config.heads * config.head_size;
        let by_head = config.attention_gate.is_some_and(|gate| gate.by_head);
        Ok(Self {
            qkv: rows((config.heads + 2 * config.kv_heads) * config.head_size)?,
            context: rows(context)?,
            gate: rows_if(config.attention_gate.is_some(), if by_head { config.heads } else { context })?,
            query: rows_if(further.query, context)?,
            up: rows(gates * config.intermediate_size)?,
            inner: rows_if(config.inner_norms, config.intermediate_size)?,
            branch: backend.activations(
                if further.branch { max_rows } else { 0 },
                config.hidden_size,
                ActivationRole::Residual,
            )?,
            latent: config
                .latent
                .map(|latent| LatentScratch::new(backend, config, latent, max_rows))
                .transpose()?,
        })
    }
}
