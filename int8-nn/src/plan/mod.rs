//! Bytes that a transformer takes and the GPUs that hold it: arithmetic on shapes, before anything is loaded.
//!
//! ```
//! use int8_nn::plan::{Load, Precision, Shape};
//!
//! let bloom = Shape::built_in("bloom-176b").unwrap();
//! let weights = |precision| bloom.estimate(precision, Load::NONE).weights();
//! assert_eq!(weights(Precision::F32) / 1_000_000_000, 704);
//! assert_eq!(weights(Precision::F16) / 1_000_000_000, 352);
//! // 176 GB at a byte a weight, and 3.6 more: the embedding stays 16-bit.
//! assert_eq!(weights(Precision::Int8) / 1_000_000_000, 179);
//! ```
//!
//! What is counted:
//! - **weights**: linear layers of the blocks at 4, 2 or 1 byte a weight, the latter with a 4-byte scale an output channel;
//!   embeddings, output head, norms and biases at 4 or 2 bytes (under LLM.int8() as the checkpoint has them: an F32 checkpoint
//!   keeps them in 32 bits, which a small model with a large vocabulary feels). Exact outlier columns of int8 layers are not
//!   counted: on a GPU at most 1/16 of the int8 weights, usually far less;
//! - **cache**: keys and values of every token at 4 or 2 bytes: the type of the KV cache, by default that of embeddings; and the
//!   recurrent states of every sequence, twice in f32: a forward writes the new one beside the old one;
//! - **activations**: residual stream (f32) and widest intermediate of a whole prompt in one block, and the logits of the
//!   last token. Attention scores are not counted: kernels that materialise them take `batch · heads · context²` more values.

mod gpus;
mod models;
mod tensors;

use crate::config::{DecoderConfig, HeadShape, Mixer, NormKind, Positions, Sinusoids};
use crate::convert::bytes as wide;
use int8_core::KvType;

pub use gpus::{Gpu, PAPER_SETUPS, PaperSetup, RESERVED};

/// The type of the weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// 32-bit floating point.
    F32,
    /// f16 or bf16.
    F16,
    /// LLM.int8(): linear layers of the blocks in int8, everything else as stored, in 16 or 32 bits.
    Int8,
}

impl Precision {
    /// All of them, largest first.
    pub const ALL: [Self; 3] = [Self::F32, Self::F16, Self::Int8];

    /// `fp32`, `fp16`, `int8`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "fp32",
            Self::F16 => "fp16",
            Self::Int8 => "int8",
        }
    }

    /// Bytes of a weight of a linear layer.
    const fn linear_bytes(self) -> u64 {
        match self {
            Self::F32 => 4,
            Self::F16 => 2,
            Self::Int8 => 1,
        }
    }

    /// Bytes of all other values, of a model whose embeddings are F32 or not.
    const fn other_bytes(self, embeddings_are_f32: bool) -> u64 {
        match self {
            Self::F32 => 4,
            Self::Int8 if embeddings_are_f32 => 4,
            Self::F16 | Self::Int8 => 2,
        }
    }
}

/// The sequences that run at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    /// Tokens of a sequence, prompt and continuation together.
    pub context: u64,
    /// Number of sequences.
    pub batch: u64,
    /// Type of the KV cache; `None` for f32 beside 32-bit embeddings and 16-bit otherwise.
    pub kv_cache: Option<KvType>,
}

impl Load {
    /// Nothing: the weights alone.
    pub const NONE: Self = Self { context: 0, batch: 0, kv_cache: None };
}

/// Blocks whose KV cache has one width and window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CachedBlocks {
    /// Number of blocks.
    pub blocks: u64,
    /// Values a token in each: its keys and values.
    pub width: u64,
    /// Keys and values of a token, one of each for a KV head.
    pub vectors: u64,
    /// Sliding window, in tokens.
    pub window: Option<u64>,
}

/// A transformer by the sizes of its parts. Counts are of values, not bytes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Shape {
    /// The model's name.
    pub name: String,
    /// Number of blocks, of encoder and decoder together.
    pub blocks: u64,
    /// Weights of the linear layers of all blocks.
    pub linear: u64,
    /// Output channels of these layers.
    pub linear_outputs: u64,
    /// Weights of token and position embeddings.
    pub embeddings: u64,
    /// Weights of the output head; 0 where it is the embedding.
    pub head: u64,
    /// Norms, biases, routers.
    pub other: u64,
    /// Embeddings and head are stored in F32, and stay so under LLM.int8().
    pub embeddings_are_f32: bool,
    /// KV cache.
    pub cache: Vec<CachedBlocks>,
    /// Values of the recurrent states of one sequence, in all blocks.
    pub state: u64,
    /// Width of the residual stream.
    pub hidden: u64,
    /// Most intermediate values of one token that a block holds at once, beside the residual stream.
    pub widest: u64,
    /// Widest input of a linear layer; its codes are held, too.
    pub widest_input: u64,
    /// Logits of a token.
    pub vocabulary: u64,
    /// Most tokens of a sequence, where the model has a limit.
    pub max_positions: Option<u64>,
}

/// Bytes by use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Estimate {
    /// Linear layers of the blocks.
    pub linear: u64,
    /// Their scales.
    pub scales: u64,
    /// Embeddings.
    pub embeddings: u64,
    /// Output head of its own.
    pub head: u64,
    /// Norms, biases, routers.
    pub other: u64,
    /// Keys, values and recurrent states.
    pub cache: u64,
    /// Activations.
    pub activations: u64,
}

impl Estimate {
    /// All weights, in bytes.
    pub fn weights(&self) -> u64 {
        sum(&[self.linear, self.scales, self.embeddings, self.head, self.other])
    }

    /// Everything, in bytes.
    pub fn total(&self) -> u64 {
        sum(&[self.weights(), self.cache, self.activations])
    }

    /// Bytes on each of `ranks` devices that compute each layer together: of linear layers, head, keys and values its share, of
    /// embeddings, norms and activations (the residual stream among them) all.
    pub fn of_rank(&self, ranks: u64) -> u64 {
        let shared = sum(&[self.linear, self.head, self.cache]);
        let whole = sum(&[self.scales, self.embeddings, self.other, self.activations]);
        shared.div_ceil(ranks.max(1)).saturating_add(whole)
    }
}

impl Shape {
    /// The shape of a decoder. `biases`: its linear layers have them.
    pub fn of_decoder(name: impl Into<String>, config: &DecoderConfig, biases: bool) -> Self {
        let hidden = wide(config.hidden_size);
        let (queries, keys_values) = widest_heads(config);
        let gates = if config.gated_mlp { 2 } else { 1 };
        // Weights and output channels of `hidden → width → hidden`.
        let mlp = |width: u64| {
            let outputs = sum(&[product(&[gates, width]), hidden]);
            (product(&[gates + 1, width, hidden]), outputs)
        };
        let mut shape = Self {
            name: name.into(),
            blocks: wide(config.layers),
            hidden,
            vocabulary: wide(config.vocab_size),
            max_positions: match config.positions {
                Positions::Alibi => None,
                Positions::None if config.has_recurrent_state() => None,
                _ => Some(wide(config.max_positions)),
            },
            ..Self::default()
        };
        let (mut widest_mlp, mut index_of_shared) = (0, 0);
        let recurrent = config.recurrent.as_ref();
        let [recurrent_weights, recurrent_outputs] =
            recurrent.map_or([0; 2], |recurrent| recurrent.weights(config.hidden_size).map(wide));
        let equal = config.shapes.is_none() && config.sources.is_empty();
        let usual_attention = attention(config, 0);
        for index in 0..config.layers {
            let mixer = config.mixer(index);
            if mixer.recurs() {
                shape.linear = sum(&[shape.linear, recurrent_weights]);
                shape.linear_outputs = sum(&[shape.linear_outputs, recurrent_outputs]);
                shape.state = sum(&[shape.state, recurrent.map_or(0, |recurrent| wide(recurrent.state()))]);
            }
            let (attention_weights, attention_outputs) = match (mixer, config.shared) {
                (Mixer::SharedThenRecurrent, Some(shared)) => {
                    let [core, own] = shared.weights(config).map(|sizes| sizes.map(wide));
                    let loads = index_of_shared < shared.count;
                    widest_mlp = widest_mlp.max(wide(config.intermediate_size));
                    index_of_shared += 1;
                    let core = if loads { core } else { [0; 2] };
                    (sum(&[core[0], own[0]]), sum(&[core[1], own[1]]))
                }
                _ if mixer.attends() && equal => usual_attention,
                _ if mixer.attends() => attention(config, index),
                _ => (0, 0),
            };
            let experts = config.experts.as_ref().filter(|experts| experts.in_block(index));
            let (weights, outputs) = match experts {
                _ if !config.has_mlp(index) => (0, 0),
                None => {
                    widest_mlp = widest_mlp.max(wide(config.intermediate(index)));
                    mlp(wide(config.intermediate(index)))
                }
                Some(experts) => {
                    let (weights, outputs) = mlp(wide(experts.intermediate_size));
                    let shared = experts.shared_intermediate_size.map_or((0, 0), |width| mlp(wide(width)));
                    let count = wide(experts.count);
                    shape.other = sum(&[shape.other, product(&[count, hidden])]);
                    widest_mlp = widest_mlp.max(wide(experts.intermediate_size));
                    (
                        sum(&[product(&[count, weights]), shared.0]),
                        sum(&[product(&[count, outputs]), shared.1]),
                    )
                }
            };
            let (weights, outputs) = if config.experts_beside {
                let (dense, dense_outputs) = mlp(wide(config.intermediate(index)));
                (sum(&[weights, dense]), sum(&[outputs, dense_outputs]))
            } else {
                (weights, outputs)
            };
            let outputs = sum(&[attention_outputs, outputs]);
            shape.linear = sum(&[shape.linear, attention_weights, weights]);
            shape.linear_outputs = sum(&[shape.linear_outputs, outputs]);
            let per_norm = if config.norm == NormKind::LayerNorm { 2 } else { 1 };
            let norms = if config.shared_norm { 1 } else { 2 };
            shape.other = sum(&[shape.other, product(&[norms, per_norm, hidden])]);
            if biases {
                shape.other = sum(&[shape.other, outputs]);
            }
        }
        shape.cache = cache(config);
        shape.widest_input = hidden.max(queries).max(widest_mlp);
        shape.widest =
            sum(&[hidden, sum(&[product(&[2, queries]), keys_values]).max(product(&[gates, widest_mlp]))]);
        let table = product(&[wide(config.vocab_size), wide(config.embedding_size)]);
        let positions = match config.positions {
            Positions::Learned { offset } | Positions::Sinusoidal(Sinusoids { offset, .. }) => {
                product(&[wide(config.max_positions + offset), hidden])
            }
            _ => 0,
        };
        let projections = match config.embedding_size == config.hidden_size {
            true => 0,
            false => product(&[2, wide(config.embedding_size), hidden]),
        };
        let inputs = config.layer_inputs.map_or(0, |inputs| {
            product(&[sum(&[wide(inputs.vocabulary), hidden]), wide(inputs.width), wide(config.layers)])
        });
        shape.embeddings = sum(&[table, positions, projections, inputs]);
        shape.head = if config.tied_embeddings { 0 } else { table };
        shape
    }

    /// All weights.
    pub fn weights(&self) -> u64 {
        sum(&[self.linear, self.embeddings, self.head, self.other])
    }

    /// Bytes that the model takes.
    pub fn estimate(&self, precision: Precision, load: Load) -> Estimate {
        let other = precision.other_bytes(self.embeddings_are_f32);
        let cached = |blocks: &CachedBlocks| {
            let tokens = blocks.window.map_or(load.context, |window| window.min(load.context));
            let size = blocks.width / blocks.vectors.max(1);
            let vector = load.kv_cache.map_or(product(&[size, other]), |kind| {
                wide(kind.bytes_of(usize::try_from(size).unwrap_or(usize::MAX)))
            });
            product(&[blocks.blocks, blocks.vectors, tokens, load.batch, vector])
        };
        let tokens = product(&[load.context, load.batch]);
        let codes = if precision == Precision::Int8 { self.widest_input } else { 0 };
        let a_token = sum(&[product(&[4, self.hidden]), product(&[other, self.widest]), codes]);
        Estimate {
            linear: product(&[self.linear, precision.linear_bytes()]),
            scales: if precision == Precision::Int8 { product(&[4, self.linear_outputs]) } else { 0 },
            embeddings: product(&[self.embeddings, other]),
            head: product(&[self.head, other]),
            other: product(&[self.other, other]),
            cache: sum(&[
                self.cache.iter().map(cached).fold(0, u64::saturating_add),
                product(&[2, 4, self.state, load.batch]),
            ]),
            activations: sum(&[product(&[tokens, a_token]), product(&[load.batch, self.vocabulary, 4])]),
        }
    }

    /// GPUs of `capacity` bytes, [`RESERVED`] of them unavailable, that hold the model with its blocks spread over them in
    /// order; `None` if no number does.
    ///
    /// The first also holds the embeddings and the last the head; each holds the activations.
    pub fn gpus_needed(&self, precision: Precision, load: Load, capacity: u64) -> Option<u64> {
        let estimate = self.estimate(precision, load);
        let room = capacity.checked_sub(RESERVED)?;
        if estimate.total() <= room {
            return Some(1);
        }
        let blocks = self.blocks.max(1);
        let in_blocks = sum(&[estimate.linear, estimate.scales, estimate.other, estimate.cache]);
        let block = in_blocks.div_ceil(blocks).max(1);
        let room = room.checked_sub(estimate.activations)?;
        let middle = room / block;
        let first = room.checked_sub(estimate.embeddings)? / block;
        let last = room.checked_sub(estimate.head)? / block;
        let rest = blocks.saturating_sub(first + last);
        match (rest, middle) {
            (0, _) => Some(2),
            (_, 0) => None,
            _ => Some(2 + rest.div_ceil(middle)),
        }
    }

    /// Blocks whose int8 weights have to stay in host memory where a GPU has `memory` bytes free, [`RESERVED`] of them for its
    /// workspaces; all of them where even that does not suffice. Those in host memory take the room of two blocks on the device, by
    /// which their weights come.
    pub fn blocks_to_offload(&self, load: Load, memory: u64) -> u64 {
        let estimate = self.estimate(Precision::Int8, load);
        let needed = estimate.total().saturating_add(RESERVED);
        if needed <= memory || self.blocks == 0 {
            return 0;
        }
        let block = (estimate.linear / self.blocks).max(1);
        let beyond = (needed - memory).saturating_add(2 * block);
        beyond.div_ceil(block).min(self.blocks)
    }
}

/// The KV cache: blocks grouped by window.
fn cache(config: &DecoderConfig) -> Vec<CachedBlocks> {
    let mut groups: Vec<CachedBlocks> = Vec::new();
    let own = |index: &usize| config.mixer(*index).attends() && config.source(*index) == *index;
    for index in (0..config.layers).filter(own) {
        let window = config.attention(index).1.map(wide);
        let width = product(&[2, wide(config.shape(index).keys())]);
        let vectors = product(&[2, wide(config.shape(index).kv_heads)]);
        let alike = |group: &&mut CachedBlocks| {
            (group.window, group.width, group.vectors) == (window, width, vectors)
        };
        match groups.iter_mut().find(alike) {
            Some(group) => group.blocks += 1,
            None => groups.push(CachedBlocks { blocks: 1, width, vectors, window }),
        }
    }
    groups
}

/// Columns of the queries, and of keys and values, of the widest block.
fn widest_heads(config: &DecoderConfig) -> (u64, u64) {
    let usual = HeadShape { heads: config.heads, kv_heads: config.kv_heads, head_size: config.head_size };
    let others = config.shapes.iter().map(|(_, shape)| *shape);
    std::iter::once(usual).chain(others).fold((0, 0), |(queries, keys_values), shape| {
        let own = [
            product(&[wide(shape.heads), wide(shape.head_size)]),
            product(&[2, wide(shape.kv_heads), wide(shape.head_size)]),
        ];
        (queries.max(own[0]), keys_values.max(own[1]))
    })
}

/// Weights and output channels of the attention of block `index`.
fn attention(config: &DecoderConfig, index: usize) -> (u64, u64) {
    let hidden = wide(config.hidden_size);
    let shape = config.shape(index);
    let (heads, head_size) = (wide(shape.heads), wide(shape.head_size));
    let queries = product(&[heads, head_size]);
    let own = config.source(index) == index;
    let keys_values = if own { product(&[2, wide(shape.kv_heads), head_size]) } else { 0 };
    let (weights, outputs) = match config.latent {
        None => (
            sum(&[product(&[sum(&[queries, keys_values]), hidden]), product(&[queries, hidden])]),
            sum(&[queries, keys_values, hidden]),
        ),
        Some(latent) => {
            let [weights, outputs] = crate::latent::weights(config, latent).map(wide);
            let values = product(&[heads, wide(latent.value)]);
            (sum(&[weights, product(&[values, hidden])]), sum(&[outputs, hidden]))
        }
    };
    match config.attention_gate {
        None => (weights, outputs),
        Some(gate) => {
            let width = if gate.by_head { heads } else { queries };
            (sum(&[weights, product(&[width, hidden])]), sum(&[outputs, width]))
        }
    }
}

/// Saturating: sizes come out of untrusted files.
fn product(factors: &[u64]) -> u64 {
    factors.iter().fold(1, |product: u64, &factor| product.saturating_mul(factor))
}

fn sum(terms: &[u64]) -> u64 {
    terms.iter().fold(0, |sum: u64, &term| sum.saturating_add(term))
}

#[cfg(test)]
mod tests;
