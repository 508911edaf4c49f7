//! Tensor names: the structures that [`crate::block`] loads from, and builders, so that a family states only what it has.

use super::RecurrentNames;
use crate::weights::Part;

/// A module of a checkpoint: the prefix `{path}.` of the names of its tensors.
pub(super) struct Module(String);

impl Module {
    pub(super) fn new(path: impl Into<String>) -> Self {
        Self(path.into())
    }

    /// The full name of `name` in this module.
    pub(super) fn name(&self, name: &str) -> String {
        format!("{}.{name}", self.0)
    }

    /// The weight `[out, in]` of a linear layer in this module.
    pub(super) fn part(&self, name: &str) -> Part {
        Part::new(&self.name(name))
    }

    /// The weights of several, in this order.
    pub(super) fn parts<const N: usize>(&self, names: [&str; N]) -> Vec<Part> {
        names.map(|name| self.part(name)).into()
    }

    /// An MLP of one expansion, or of gate and expansion.
    pub(super) fn mlp<const N: usize>(&self, up: [&str; N], down: &str) -> MlpNames {
        MlpNames::Dense { up: self.parts(up), down: self.part(down) }
    }
}

/// The names of a model with an encoder and a decoder.
pub(crate) struct Seq2SeqNames {
    pub(crate) decoder: TensorNames,
    /// Modules that hold the embedding of one stack, where a checkpoint has them.
    pub(crate) stack_embeddings: [&'static str; 2],
    /// The relative position biases of encoder and decoder.
    pub(crate) encoder_bias: &'static str,
    pub(crate) decoder_bias: &'static str,
    /// What a decoder block has besides [`LayerNames`].
    pub(crate) cross: CrossNamesOf,
    pub(crate) encoder_norm: &'static str,
    pub(crate) encoder_layer: Box<dyn Fn(usize) -> LayerNames>,
}

/// The names of a block's cross-attention, by the block's index.
pub(crate) type CrossNamesOf = Box<dyn Fn(usize) -> CrossNames>;

/// The names of a block's cross-attention.
pub(crate) struct CrossNames {
    pub(crate) norm: String,
    pub(crate) query: Part,
    /// Keys, values.
    pub(crate) key_value: Vec<Part>,
    pub(crate) output: Part,
}

/// The names of an encoder's tensors, all below one of `roots`.
pub(crate) struct EncoderNames {
    pub(crate) roots: &'static [&'static str],
    pub(crate) token_embedding: &'static str,
    pub(crate) position_embedding: &'static str,
    pub(crate) token_type_embedding: Option<&'static str>,
    pub(crate) embedding_norm: &'static str,
    /// The relative position bias that all blocks share.
    pub(crate) distance_bias: Option<&'static str>,
    pub(crate) layer: Box<dyn Fn(usize) -> LayerNames>,
}

impl EncoderNames {
    /// BERT's embeddings around blocks named by `layer`; no token types, no relative position bias.
    pub(super) fn new(roots: &'static [&'static str], layer: impl Fn(usize) -> LayerNames + 'static) -> Self {
        Self {
            roots,
            token_embedding: "embeddings.word_embeddings",
            position_embedding: "embeddings.position_embeddings",
            token_type_embedding: None,
            embedding_norm: "embeddings.LayerNorm",
            distance_bias: None,
            layer: Box::new(layer),
        }
    }
}

/// The names of a decoder's tensors. All but `head` are below one of `roots`, whichever the checkpoint has: the same model
/// is saved with and without the name of its outer module.
pub(crate) struct TensorNames {
    pub(crate) roots: &'static [&'static str],
    pub(crate) token_embedding: &'static str,
    pub(crate) position_embedding: Option<&'static str>,
    pub(crate) embedding_norm: Option<&'static str>,
    pub(crate) project_in: Option<&'static str>,
    pub(crate) project_out: Option<&'static str>,
    pub(crate) final_norm: Option<&'static str>,
    pub(crate) head: &'static str,
    /// See [`Checkpoint::with_other_names`](crate::checkpoint::Checkpoint::with_other_names).
    pub(crate) other_names: &'static [(&'static str, &'static str)],
    pub(crate) layer: Box<dyn Fn(usize) -> LayerNames>,
}

impl TensorNames {
    /// A token embedding, blocks named by `layer`, a final norm, and the head `lm_head`.
    pub(super) fn new(
        roots: &'static [&'static str],
        token_embedding: &'static str,
        final_norm: &'static str,
        layer: impl Fn(usize) -> LayerNames + 'static,
    ) -> Self {
        Self {
            roots,
            token_embedding,
            position_embedding: None,
            embedding_norm: None,
            project_in: None,
            project_out: None,
            final_norm: Some(final_norm),
            head: "lm_head",
            other_names: &[],
            layer: Box::new(layer),
        }
    }
}

/// The names of one block's tensors. Each linear layer may be several parts, concatenated along its output channels.
pub(crate) struct LayerNames {
    /// Before attention; in a post-norm block, after it.
    pub(crate) attention_norm: Option<String>,
    /// Before the MLP; in a post-norm block, after it. A parallel block without it has one norm for both.
    pub(crate) mlp_norm: Option<String>,
    /// Of the outputs of attention and MLP, before the residual addition.
    pub(crate) branch_norms: Option<[String; 2]>,
    /// Queries, keys, values, in this order.
    pub(crate) qkv: Vec<Part>,
    /// Of queries and of keys.
    pub(crate) query_key_norms: Option<[String; 2]>,
    /// The stored place of each dimension of a head in these norms, where it is not its own.
    pub(crate) query_key_order: Option<Vec<usize>>,
    /// Instead of `qkv`.
    pub(crate) latent: Option<LatentNames>,
    /// The tensor of the attention sinks, `[heads]`.
    pub(crate) sinks: Option<String>,
    /// None in a block without attention.
    pub(crate) attention_output: Option<Part>,
    /// The gate on the output of attention.
    pub(crate) attention_gate: Option<Part>,
    /// The mixer with a recurrent state.
    pub(crate) recurrent: Option<RecurrentNames>,
    pub(crate) mlp: MlpNames,
}

impl LayerNames {
    /// A block without norms.
    pub(super) fn new(qkv: Vec<Part>, attention_output: Part, mlp: MlpNames) -> Self {
        Self {
            attention_norm: None,
            mlp_norm: None,
            branch_norms: None,
            qkv,
            query_key_norms: None,
            query_key_order: None,
            latent: None,
            sinks: None,
            attention_output: Some(attention_output),
            attention_gate: None,
            recurrent: None,
            mlp,
        }
    }

    /// A block of one mixer with a recurrent state behind a norm.
    pub(super) fn recurrent(norm: String, names: RecurrentNames) -> Self {
        Self { attention_norm: Some(norm), recurrent: Some(names), ..Self::without_mixer(MlpNames::None) }
    }

    /// A block of one MLP behind a norm.
    pub(super) fn mlp_alone(norm: String, mlp: MlpNames) -> Self {
        Self { mlp_norm: Some(norm), ..Self::without_mixer(mlp) }
    }

    fn without_mixer(mlp: MlpNames) -> Self {
        Self {
            attention_norm: None,
            mlp_norm: None,
            branch_norms: None,
            qkv: Vec::new(),
            query_key_norms: None,
            query_key_order: None,
            latent: None,
            sinks: None,
            attention_output: None,
            attention_gate: None,
            recurrent: None,
            mlp,
        }
    }

    /// One norm for attention and one for the MLP.
    pub(super) fn norms(self, attention: String, mlp: String) -> Self {
        Self { attention_norm: Some(attention), mlp_norm: Some(mlp), ..self }
    }

    /// One norm that feeds attention and MLP of a parallel block.
    pub(super) fn shared_norm(self, norm: String) -> Self {
        Self { attention_norm: Some(norm), mlp_norm: None, ..self }
    }
}

/// The names of multi-head latent attention before the attention itself.
pub(crate) struct LatentNames {
    /// To the latent of queries, where there is one, and its norm.
    pub(crate) query_down: Option<Part>,
    pub(crate) query_norm: Option<String>,
    /// The heads of queries, rotated dimensions first.
    pub(crate) query: Part,
    /// To the latent of keys and values.
    pub(crate) kv_down: Part,
    /// The rotated dimensions of all keys.
    pub(crate) key: Part,
    pub(crate) kv_norm: String,
    /// Head by head the other dimensions of the key, and the value.
    pub(crate) kv_up: Part,
}

impl LatentNames {
    /// The linear layers.
    pub(crate) fn parts(self) -> impl Iterator<Item = Part> {
        self.query_down.into_iter().chain([self.query, self.kv_down, self.key, self.kv_up])
    }
}

/// The names of a block's MLP or experts.
pub(crate) enum MlpNames {
    Dense {
        /// The expansion, or gate and expansion.
        up: Vec<Part>,
        down: Part,
    },
    /// The first of these that the checkpoint has.
    Experts(Vec<ExpertNames>),
    None,
}

/// The names of a mixture of experts.
pub(crate) struct ExpertNames {
    /// The router, then the gate of the shared expert, if there is one.
    pub(crate) router: Vec<String>,
    /// The tensor that is added to the scores where experts are chosen: as many numbers as experts.
    pub(crate) correction: Option<String>,
    /// `up` and `down` of the expert with this index; the index after the last is the shared expert.
    pub(crate) expert: Box<dyn Fn(usize) -> (Vec<Part>, Part)>,
    /// Tensors that may hold all experts but the shared one: `up [experts, gate and expansion, in]` and
    /// `down [experts, out, in]`.
    pub(crate) fused: Option<[String; 2]>,
}
