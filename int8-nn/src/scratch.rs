//! The activations of a block.

use crate::Error;
use crate::backend::{ActivationRole, Backend};
use crate::block::Block;
use crate::config::DecoderConfig;
use crate::latent::LatentScratch;
use crate::recurrent::RecurrentScratch;

/// The activations between a block's projections, allocated once for all blocks.
#[derive(Debug)]
pub(crate) struct Scratch<B: Backend> {
    pub(crate) qkv: B::Activations,
    pub(crate) context: B::Activations,
    /// The gate on the output of attention.
    pub(crate) gates: B::Activations,
    /// Queries of cross-attention.
    pub(crate) query: B::Activations,
    pub(crate) up: B::Activations,
    /// A branch that no projection adds to the residual stream.
    pub(crate) branch: B::Activations,
    pub(crate) latent: Option<LatentScratch<B>>,
    pub(crate) recurrent: Option<RecurrentScratch<B>>,
}

impl<B: Backend> Scratch<B> {
    /// For these blocks and forwards of at most `max_rows` tokens.
    pub(crate) fn new(
        backend: &B,
        config: &DecoderConfig,
        blocks: &[Block<B>],
        max_rows: usize,
    ) -> Result<Self, Error> {
        let role = ActivationRole::Intermediate;
        let rows = |width| backend.activations(max_rows, width, role);
        let gates = if config.gated_mlp { 2 } else { 1 };
        let crossed = blocks.iter().any(Block::has_cross_attention);
        let branches = blocks.iter().any(|block| block.stores_branches(config));
        Ok(Self {
            qkv: rows((config.heads + 2 * config.kv_heads) * config.head_size)?,
            context: rows(config.heads * config.head_size)?,
            gates: rows(config.attention_gates())?,
            query: backend.activations(
                if crossed { max_rows } else { 0 },
                config.heads * config.head_size,
                role,
            )?,
            up: rows(gates * config.intermediate_size)?,
            branch: backend.activations(
                if branches { max_rows } else { 0 },
                config.hidden_size,
                ActivationRole::Residual,
            )?,
            latent: config
                .latent
                .map(|latent| LatentScratch::new(backend, config, latent, max_rows))
                .transpose()?,
            recurrent: RecurrentScratch::new(backend, config, max_rows)?,
        })
    }
}
