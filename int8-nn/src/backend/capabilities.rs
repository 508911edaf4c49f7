//! What a backend implements, asked once before weights are read, so that a model is refused by name and never in the middle.

use std::collections::BTreeSet;

use int8_core::{Encoding, Granularity, OutlierGranularity, OutlierRule};

use crate::Error;
use crate::config::{BlockKind, DecoderConfig, Positions, RecurrentMixer};
use crate::precision::{OutlierWeights, Precision};

/// Something that not every model needs and not every backend implements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Feature {
    /// Attention to the output of an encoder.
    CrossAttention,
    /// Attention to all tokens of a sequence.
    FullAttention,
    /// Mixtures of experts.
    Experts,
    /// Normalised queries and keys.
    QueryKeyNorms,
    /// Normalised attention and MLP branches.
    BranchNorms,
    /// Normalisations after the residual addition.
    PostNorm,
    /// Attention and MLP side by side.
    ParallelBlocks,
    /// Scaled token embeddings.
    EmbeddingScale,
    /// Rotary positions.
    Rotary,
    /// Position biases by head slopes.
    Alibi,
    /// Learned position biases by distance.
    DistanceBias,
    /// Attention to a window of latest positions.
    SlidingWindow,
    /// Capped attention scores.
    AttentionSoftcap,
    /// Activations besides ReLU, GELU (and its tanh form) and SiLU.
    FurtherActivations,
    /// Attention scores divided by the number of their block.
    ScoresByLayer,
    /// Queries, keys and values within limits.
    ClampedProjections,
    /// Rotary frequencies that depend on the length of the text. A model is not refused without it, but limited to the lengths
    /// at which they do not.
    FrequenciesByLength,
    /// Queries and keys normalised after the rotation.
    NormsAfterRotation,
    /// Queries multiplied by a factor that grows with their position.
    QueryGrowth,
    /// Attention sinks: scores without values.
    AttentionSinks,
    /// Multi-head latent attention.
    LatentAttention,
    /// Inputs of experts multiplied by their weights.
    WeighedExpertInputs,
    /// Attention to the tokens of a chunk of positions.
    ChunkedAttention,
    /// Gates with limits.
    ClampedGates,
    /// State-space mixers: convolutions and recurrent states.
    StateSpace,
    /// Gates of attention's output.
    AttentionGate,
    /// Normalised inputs of the output projection and of the MLP's contraction.
    InnerNorms,
    /// An activation with learned numbers.
    LearnedActivation,
    /// Mixtures of experts beside attention.
    ParallelExperts,
    /// Heads that differ between blocks.
    VaryingHeads,
    /// Blocks that attend to the keys and values of others.
    SharedKeyValues,
    /// Embeddings for each block.
    LayerInputs,
    /// MLPs that drop most of their gates.
    SparseGates,
    /// Several residual streams.
    Streams,
    /// Mixtures of experts beside an MLP.
    ExpertsBeside,
    /// Attention to keys that an indexer selects.
    KeySelection,
    /// Experts whose output a later block adds.
    ExpertsAhead,
    /// Experts that return their input.
    IdentityExperts,
    /// Heads of values that are not as wide as those of keys.
    ValueHeads,
    /// An activation and a norm before the head.
    HeadActivation,
    /// Learned position biases of each block's own.
    DistanceBiasByLayer,
    /// Sliding windows to both sides.
    WindowsToBothSides,
    /// Scores of contents and distances.
    DisentangledAttention,
    /// Speech as input.
    Speech,
    /// Linear attention: convolutions and recurrent states.
    LinearAttention,
    /// Short convolutions between gates.
    ShortConvolution,
    /// int8 layers with one scale a group of input features.
    GroupGranularity,
    /// int8 layers with single outlier values.
    ValueOutliers,
    /// int8 layers with one scale a tensor.
    TensorGranularity,
    /// int8 layers with zero points.
    ZeroPoints,
    /// Outliers relative to their row.
    RelativeOutliers,
    /// Outliers multiplied with the checkpoint's own weights instead of dequantised ones.
    ExactOutlierWeights,
}

impl Feature {
    /// All.
    pub const ALL: [Self; 52] = [
        Self::CrossAttention,
        Self::FullAttention,
        Self::Experts,
        Self::QueryKeyNorms,
        Self::BranchNorms,
        Self::PostNorm,
        Self::ParallelBlocks,
        Self::EmbeddingScale,
        Self::Rotary,
        Self::Alibi,
        Self::DistanceBias,
        Self::SlidingWindow,
        Self::AttentionSoftcap,
        Self::FurtherActivations,
        Self::ScoresByLayer,
        Self::ClampedProjections,
        Self::FrequenciesByLength,
        Self::NormsAfterRotation,
        Self::QueryGrowth,
        Self::AttentionSinks,
        Self::LatentAttention,
        Self::WeighedExpertInputs,
        Self::ChunkedAttention,
        Self::ClampedGates,
        Self::StateSpace,
        Self::AttentionGate,
        Self::InnerNorms,
        Self::LearnedActivation,
        Self::ParallelExperts,
        Self::VaryingHeads,
        Self::SharedKeyValues,
        Self::LayerInputs,
        Self::SparseGates,
        Self::Streams,
        Self::ExpertsBeside,
        Self::KeySelection,
        Self::ExpertsAhead,
        Self::IdentityExperts,
        Self::ValueHeads,
        Self::HeadActivation,
        Self::DistanceBiasByLayer,
        Self::WindowsToBothSides,
        Self::DisentangledAttention,
        Self::Speech,
        Self::LinearAttention,
        Self::ShortConvolution,
        Self::GroupGranularity,
        Self::ValueOutliers,
        Self::TensorGranularity,
        Self::ZeroPoints,
        Self::RelativeOutliers,
        Self::ExactOutlierWeights,
    ];

    /// In words, for messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::CrossAttention => "cross-attention",
            Self::FullAttention => "attention to all tokens",
            Self::Experts => "mixtures of experts",
            Self::QueryKeyNorms => "normalised queries and keys",
            Self::BranchNorms => "normalised attention and MLP branches",
            Self::PostNorm => "post-norm blocks",
            Self::ParallelBlocks => "parallel attention and MLP",
            Self::EmbeddingScale => "scaled embeddings",
            Self::Rotary => "rotary positions",
            Self::Alibi => "ALiBi positions",
            Self::DistanceBias => "relative position biases",
            Self::SlidingWindow => "sliding-window attention",
            Self::AttentionSoftcap => "soft-capped attention scores",
            Self::FurtherActivations => "activations other than ReLU, GELU and SiLU",
            Self::ScoresByLayer => "attention scores divided by the block's number",
            Self::ClampedProjections => "clamped queries, keys and values",
            Self::FrequenciesByLength => "rotary frequencies that follow the length of the text",
            Self::NormsAfterRotation => "queries and keys normalised after the rotation",
            Self::QueryGrowth => "queries that grow with their position",
            Self::AttentionSinks => "attention sinks",
            Self::LatentAttention => "multi-head latent attention",
            Self::WeighedExpertInputs => "inputs of experts multiplied by their weights",
            Self::ChunkedAttention => "chunked attention",
            Self::ClampedGates => "gates with limits",
            Self::StateSpace => "state-space mixers",
            Self::AttentionGate => "gates of attention",
            Self::InnerNorms => "norms inside attention and MLP",
            Self::LearnedActivation => "activations with learned numbers",
            Self::ParallelExperts => "experts beside attention",
            Self::VaryingHeads => "heads that differ between blocks",
            Self::SharedKeyValues => "keys and values shared between blocks",
            Self::LayerInputs => "embeddings for each block",
            Self::SparseGates => "sparse gates",
            Self::Streams => "several residual streams",
            Self::ExpertsBeside => "experts beside an MLP",
            Self::KeySelection => "attention to selected keys",
            Self::ExpertsAhead => "experts whose output a later block adds",
            Self::IdentityExperts => "experts that return their input",
            Self::ValueHeads => "heads of values of another width than those of keys",
            Self::HeadActivation => "activations before the head",
            Self::DistanceBiasByLayer => "relative position biases of each block's own",
            Self::WindowsToBothSides => "sliding windows to both sides",
            Self::DisentangledAttention => "disentangled attention",
            Self::Speech => "speech",
            Self::LinearAttention => "linear attention",
            Self::ShortConvolution => "short convolutions",
            Self::GroupGranularity => "group granularity",
            Self::ValueOutliers => "single outlier values",
            Self::TensorGranularity => "one scale a tensor",
            Self::ZeroPoints => "zero points",
            Self::RelativeOutliers => "outliers relative to their row",
            Self::ExactOutlierWeights => "exact outlier weights",
        }
    }

    /// What a model with this description needs, but for [`CrossAttention`](Self::CrossAttention) and
    /// [`FullAttention`](Self::FullAttention), which depend on its kind.
    pub fn needed(config: &DecoderConfig, precision: &Precision) -> BTreeSet<Self> {
        let mut needed = BTreeSet::new();
        let mut need = |feature, condition: bool| {
            if condition {
                needed.insert(feature);
            }
        };
        need(Self::Experts, config.experts.is_some());
        need(Self::QueryKeyNorms, config.query_key_norms.is_some());
        need(Self::BranchNorms, config.branch_norms);
        need(Self::PostNorm, config.block == BlockKind::PostNorm);
        need(Self::ParallelBlocks, config.block == BlockKind::Parallel);
        need(Self::EmbeddingScale, config.embedding_scale.is_some());
        need(Self::AttentionSoftcap, config.attention_softcap.is_some());
        need(Self::FurtherActivations, !config.activation.is_common());
        need(Self::ScoresByLayer, config.scores_by_layer);
        need(Self::ClampedProjections, config.qkv_limit.is_some());
        need(Self::NormsAfterRotation, config.norms_after_rotation);
        need(Self::QueryGrowth, config.query_growth.is_some());
        need(Self::AttentionSinks, config.attention_sinks);
        need(Self::LatentAttention, config.latent.is_some());
        need(Self::ChunkedAttention, config.chunks.is_some());
        need(Self::ClampedGates, config.clamped_gate.is_some());
        need(Self::AttentionGate, config.attention_gate.is_some());
        need(Self::InnerNorms, config.inner_norms);
        need(Self::LearnedActivation, config.learned_activation);
        need(Self::VaryingHeads, config.shapes.is_some());
        need(Self::SharedKeyValues, !config.sources.is_empty());
        need(Self::LayerInputs, config.layer_inputs.is_some());
        need(Self::SparseGates, config.sparse_gates.is_some());
        need(Self::Streams, config.streams.is_some());
        need(Self::ExpertsAhead, config.experts_ahead);
        need(Self::IdentityExperts, config.experts.as_ref().is_some_and(|experts| experts.identities > 0));
        need(Self::ValueHeads, config.values.is_some());
        need(Self::HeadActivation, config.head_activation.is_some());
        need(Self::KeySelection, config.indexer.is_some());
        need(Self::ExpertsBeside, config.experts_beside);
        need(Self::ParallelExperts, config.block == BlockKind::Parallel && config.experts.is_some());
        need(Self::DistanceBiasByLayer, config.bias_by_layer);
        match config.recurrent {
            None => {}
            Some(RecurrentMixer::StateSpace(_)) => need(Self::StateSpace, true),
            Some(RecurrentMixer::GatedDelta(_) | RecurrentMixer::Lightning(_)) => {
                need(Self::LinearAttention, true);
            }
            Some(RecurrentMixer::ShortConvolution(_)) => need(Self::ShortConvolution, true),
        }
        need(Self::WeighedExpertInputs, config.experts.as_ref().is_some_and(|experts| experts.weighs_inputs));
        for layer in 0..config.layers {
            let (positions, window) = config.attention(layer);
            need(Self::SlidingWindow, window.is_some());
            need(Self::Rotary, matches!(positions, Positions::Rotary(_)));
            need(Self::Alibi, matches!(positions, Positions::Alibi));
            need(Self::DistanceBias, matches!(positions, Positions::Relative(_)));
            need(Self::DisentangledAttention, matches!(positions, Positions::Disentangled(_)));
        }
        if let Precision::Int8(quantization) = precision {
            let config = &quantization.config;
            let granularities = [config.input_granularity, config.weight_granularity];
            need(Self::GroupGranularity, granularities.contains(&Granularity::Group));
            need(Self::TensorGranularity, granularities.contains(&Granularity::Tensor));
            need(Self::ValueOutliers, config.outlier_granularity == OutlierGranularity::Value);
            let encodings = [config.input_encoding, config.weight_encoding];
            need(Self::ZeroPoints, encodings.contains(&Encoding::Zeropoint));
            let rules = [Some(config.rule), quantization.normed_rule];
            let relative = |rule: &OutlierRule| matches!(rule, OutlierRule::RelativeToRow { .. });
            need(Self::RelativeOutliers, rules.iter().flatten().any(relative));
            let decomposes = config.rule != OutlierRule::None;
            need(
                Self::ExactOutlierWeights,
                decomposes && quantization.outlier_weights == OutlierWeights::Exact,
            );
        }
        needed
    }
}

/// What a backend implements.
#[derive(Debug, Clone, PartialEq)]
pub struct Capabilities {
    /// The device in words, for messages.
    pub device: String,
    /// Features of models and quantisation settings.
    pub features: BTreeSet<Feature>,
    /// Largest width of an attention head, if there is one.
    pub max_head_size: Option<usize>,
    /// Whether a row's int8 products, attention and norms have the same bits however many rows a forward has, where no outlier
    /// columns are shared.
    pub batch_invariant: bool,
    /// Tokens of a prompt in one forward: enough that products run at full speed, few enough that activations stay small. For a
    /// hidden size of 4096 1,024 take some 100 MB, in 16 bits 4,096 some 300 MB.
    pub prefill_rows: usize,
    /// Whether attention to a KV cache of bf16 is so much faster than to one of f16 that models with int8 weights have it by
    /// default for both.
    pub prefers_bf16_cache: bool,
}

impl Capabilities {
    /// Everything.
    pub fn all(device: String) -> Self {
        let features = Feature::ALL.into_iter().collect();
        Self {
            device,
            features,
            max_head_size: None,
            batch_invariant: true,
            prefill_rows: 1024,
            prefers_bf16_cache: false,
        }
    }

    /// Refuses a model that needs what this backend lacks.
    ///
    /// # Errors
    /// [`Error::Unsupported`], which names all that is lacking.
    pub fn accept(
        &self,
        config: &DecoderConfig,
        precision: &Precision,
        further: &[Feature],
    ) -> Result<(), Error> {
        let mut needed = Feature::needed(config, precision);
        needed.extend(further);
        if needed.contains(&Feature::FullAttention) && needed.contains(&Feature::SlidingWindow) {
            needed.insert(Feature::WindowsToBothSides);
        }
        let lacking: Vec<&str> = needed.difference(&self.features).map(|feature| feature.name()).collect();
        if !lacking.is_empty() {
            return Err(Error::Unsupported(format!(
                "{} does not compute {}, which this {} model needs; run it on the CPU",
                self.device,
                lacking.join(", "),
                config.family
            )));
        }
        let other = config.shapes.as_ref().map_or(0, |(_, shape)| shape.head_size);
        match self.max_head_size.filter(|most| config.head_size.max(other) > *most) {
            Some(most) => Err(Error::Unsupported(format!(
                "{} has attention heads of width {most} at most, and this {} model has {}; run it on the CPU",
                self.device, config.family, config.head_size
            ))),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Activation, Scan, StateSpace};
    use crate::precision::Quantization;

    #[test]
    fn what_is_lacking_is_named() {
        let mut capabilities = Capabilities::all("a device".to_owned());
        let config = DecoderConfig {
            family: "test",
            layers: 2,
            head_size: 128,
            positions: Positions::Alibi,
            attention_softcap: Some(30.0),
            ..DecoderConfig::default()
        };
        let best = Precision::Int8(Quantization::best());
        assert!(capabilities.accept(&config, &best, &Feature::ALL).is_ok());
        for feature in [Feature::Alibi, Feature::AttentionSoftcap, Feature::GroupGranularity] {
            capabilities.features.remove(&feature);
        }
        let error = |capabilities: &Capabilities, precision| {
            capabilities.accept(&config, precision, &[]).expect_err("refused").to_string()
        };
        let found = error(&capabilities, &best);
        assert!(
            found.contains("ALiBi positions, soft-capped attention scores, group granularity"),
            "{found}"
        );
        assert!(!error(&capabilities, &Precision::Float).contains("granularity"));
        capabilities.features.remove(&Feature::StateSpace);
        let space = StateSpace {
            channels: 8,
            dimensions: 2,
            kernel: 4,
            convolution_bias: true,
            activation: Activation::Silu,
            input_bias: false,
            output_bias: false,
            scan: Scan::Selective { rank: 1, norms: None, heads: None },
            multipliers: None,
        };
        let mixer = Some(RecurrentMixer::StateSpace(space));
        let mamba = DecoderConfig { family: "test", recurrent: mixer, ..DecoderConfig::default() };
        let found = capabilities.accept(&mamba, &Precision::Float, &[]).expect_err("refused").to_string();
        assert!(found.contains("does not compute state-space mixers"), "{found}");
        let windows =
            DecoderConfig { family: "test", layers: 1, sliding_window: Some(4), ..DecoderConfig::default() };
        capabilities.features.remove(&Feature::WindowsToBothSides);
        let accept = |further: &[Feature]| capabilities.accept(&windows, &Precision::Float, further);
        assert!(accept(&[]).is_ok());
        let found = accept(&[Feature::FullAttention]).expect_err("refused").to_string();
        assert!(found.contains("does not compute sliding windows to both sides"), "{found}");
        let mut narrow = Capabilities::all("a device".to_owned());
        narrow.max_head_size = Some(64);
        assert!(error(&narrow, &Precision::Float).contains("width 64 at most"));
    }
}
