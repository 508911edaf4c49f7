//! Tensor names: the structures that [`crate::block`] loads from, and builders, so that a family states only what it has.

use super::{RecurrentNames, SharedNames};
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

/// The names of a model with an encoder and a decoder, all but the head below one of the decoder's roots.
pub(crate) struct Seq2SeqNames {
    pub(crate) decoder: TensorNames,
    /// Modules that hold the embedding of one stack, where a checkpoint has them.
    pub(crate) stack_embeddings: &'static [&'static str],
    /// The relative position bias that all blocks of the decoder share.
    pub(crate) decoder_bias: Option<&'static str>,
    /// What a decoder block has besides [`LayerNames`].
    pub(crate) cross: CrossNamesOf,
    pub(crate) encoder: SourceNames,
}

/// The names of the encoder of such a model.
pub(crate) struct SourceNames {
    pub(crate) position_embedding: Option<&'static str>,
    pub(crate) embedding_norm: Option<&'static str>,
    /// After the last block.
    pub(crate) norm: Option<&'static str>,
    /// The relative position bias that all blocks share.
    pub(crate) bias: Option<&'static str>,
    /// The convolutions that spectra go through, in this order.
    pub(crate) convolutions: &'static [&'static str],
    pub(crate) layer: Box<dyn Fn(usize) -> LayerNames>,
}

impl SourceNames {
    /// Blocks named by `layer`, and nothing else.
    pub(super) fn new(layer: impl Fn(usize) -> LayerNames + 'static) -> Self {
        Self {
            position_embedding: None,
            embedding_norm: None,
            norm: None,
            bias: None,
            convolutions: &[],
            layer: Box::new(layer),
        }
    }
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
    pub(crate) embedding_norm: Option<&'static str>,
    /// From the normalised embedding to a residual stream of another width.
    pub(crate) project_in: Option<&'static str>,
    /// After the last block.
    pub(crate) final_norm: Option<&'static str>,
    /// The relative position bias that all blocks share.
    pub(crate) distance_bias: Option<&'static str>,
    pub(crate) distances: Option<DistanceNames>,
    pub(crate) layer: Box<dyn Fn(usize) -> LayerNames>,
}

/// The names of [`crate::config::Disentangled`] attention.
pub(crate) struct DistanceNames {
    /// The table of embedded distances.
    pub(crate) table: &'static str,
    /// Its norm.
    pub(crate) norm: &'static str,
    /// Of keys and of queries, where a block has its own: by its index.
    pub(crate) projections: fn(usize) -> [Part; 2],
}

impl EncoderNames {
    /// BERT's embeddings around blocks named by `layer`; no token types, no projection, no final norm, no relative position bias.
    pub(super) fn new(roots: &'static [&'static str], layer: impl Fn(usize) -> LayerNames + 'static) -> Self {
        Self {
            roots,
            token_embedding: "embeddings.word_embeddings",
            position_embedding: "embeddings.position_embeddings",
            token_type_embedding: None,
            embedding_norm: Some("embeddings.LayerNorm"),
            project_in: None,
            final_norm: None,
            distance_bias: None,
            distances: None,
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
    pub(crate) layer_inputs: Option<InputNames>,
    /// The linear layer and the norm before the head.
    pub(crate) head_transform: Option<[&'static str; 2]>,
    /// The projections to and from the streams but the first, without their number.
    pub(crate) streams: Option<[&'static str; 2]>,
    /// The full name of a tensor `[1, vocabulary]` that is added to the logits, where a checkpoint has it.
    pub(crate) logit_bias: Option<&'static str>,
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
            layer_inputs: None,
            head_transform: None,
            streams: None,
            logit_bias: None,
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
    /// The module of the block's own relative position bias.
    pub(crate) distance_bias: Option<String>,
    /// None in a block without attention.
    pub(crate) attention_output: Option<Part>,
    /// The mixer with a recurrent state.
    pub(crate) recurrent: Option<RecurrentNames>,
    /// A transformer that several blocks share, before that mixer.
    pub(crate) shared: Option<SharedNames>,
    pub(crate) mlp: MlpNames,
    /// Of the MLP's or the experts' output, before the residual addition, without one of attention's.
    pub(crate) mlp_branch_norm: Option<String>,
    /// The gate of attention's output.
    pub(crate) gate: Option<Part>,
    /// Of the input of `attention_output`, and of the MLP's contraction.
    pub(crate) inner_norms: Option<[String; 2]>,
    /// The module of the learned activation.
    pub(crate) activation: Option<String>,
    /// The block's own embedding.
    pub(crate) layer_input: Option<LayerInputNames>,
    /// What mixes several residual streams.
    pub(crate) streams: Option<StreamLayerNames>,
    /// The tensor of the number that the residual stream is multiplied by.
    pub(crate) scalar: Option<String>,
    /// Experts beside the MLP.
    pub(crate) beside: Option<BesideNames>,
    /// Experts whose output a later block adds.
    pub(crate) shortcut: Option<ExpertNames>,
    /// The block adds it.
    pub(crate) adds_shortcut: bool,
    /// The vectors whose products give the factor of differential attention: two of queries, two of keys.
    pub(crate) lambdas: Option<[[String; 2]; 2]>,
}

/// The names of a block's part of [`crate::config::LayerInputs`].
pub(crate) struct LayerInputNames {
    pub(crate) gate: Part,
    pub(crate) projection: Part,
    pub(crate) norm: String,
}

/// The names of a block's part of [`crate::config::Streams`].
pub(crate) struct StreamLayerNames {
    pub(crate) router: Part,
    pub(crate) router_norm: String,
    /// Modules of `[S·S, S]` and `[S, S]`.
    pub(crate) prediction: String,
    pub(crate) correction: String,
    /// The tensor of the first stream's factors.
    pub(crate) output_scale: Option<String>,
    /// Down and up.
    pub(crate) low: [Part; 2],
    pub(crate) low_norm: String,
}

/// The names of experts beside an MLP.
pub(crate) struct BesideNames {
    pub(crate) experts: ExpertNames,
    /// The tensor of the gains of the router's norm, which are divided by the root of the width.
    pub(crate) router_gain: String,
    /// The tensor of the experts' factors.
    pub(crate) scales: String,
    /// Of the MLP's output, the experts' input, and their output.
    pub(crate) norms: [String; 3],
}

/// The names of what a model has for all blocks' [`crate::config::LayerInputs`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct InputNames {
    pub(crate) table: &'static str,
    pub(crate) projection: &'static str,
    pub(crate) norm: &'static str,
}

impl LayerNames {
    /// A block without norms.
    pub(super) fn new(qkv: Vec<Part>, attention_output: Part, mlp: MlpNames) -> Self {
        Self { qkv, attention_output: Some(attention_output), ..Self::without_mixer(mlp) }
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
            distance_bias: None,
            attention_output: None,
            recurrent: None,
            shared: None,
            mlp,
            mlp_branch_norm: None,
            gate: None,
            inner_norms: None,
            activation: None,
            layer_input: None,
            streams: None,
            scalar: None,
            beside: None,
            shortcut: None,
            adds_shortcut: false,
            lambdas: None,
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
    pub(crate) index: Option<IndexNames>,
}

/// The names of an indexer.
pub(crate) struct IndexNames {
    pub(crate) query: Part,
    pub(crate) key: Part,
    pub(crate) key_norm: String,
    /// The stored place of each dimension of a key in its norm.
    pub(crate) order: Vec<usize>,
    pub(crate) weights: Part,
}

impl LatentNames {
    /// The linear layers.
    pub(crate) fn parts(self) -> impl Iterator<Item = Part> {
        let index = self.index.into_iter().flat_map(|index| [index.query, index.key, index.weights]);
        self.query_down.into_iter().chain([self.query, self.kv_down, self.key, self.kv_up]).chain(index)
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
