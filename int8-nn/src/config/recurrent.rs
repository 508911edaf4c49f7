//! Mixers: what exchanges information between the tokens of a block, attention or a recurrent state.

use super::{Activation, GatedConvolution, GatedDelta, Lightning, NormKind, RawConfig, Widths};
use crate::Error;

/// What exchanges information between the tokens of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mixer {
    /// Attention.
    Attention,
    /// [`DecoderConfig::recurrent`](super::DecoderConfig::recurrent).
    Recurrent,
    /// Both, side by side on one input; their outputs are added.
    AttentionAndRecurrent,
    /// A [`SharedTransformer`](super::SharedTransformer), whose output is added to the input of the recurrent one.
    SharedThenRecurrent,
    /// Nothing: the block has an MLP alone.
    None,
}

impl Mixer {
    /// Whether there is attention, and so keys and values.
    pub fn attends(self) -> bool {
        matches!(self, Self::Attention | Self::AttentionAndRecurrent | Self::SharedThenRecurrent)
    }

    /// Whether there is a recurrent state.
    pub fn recurs(self) -> bool {
        matches!(self, Self::Recurrent | Self::AttentionAndRecurrent | Self::SharedThenRecurrent)
    }
}

/// A mixer with a recurrent state, which all blocks that have one share.
#[derive(Debug, Clone, PartialEq)]
pub enum RecurrentMixer {
    /// Mamba and Mamba-2.
    StateSpace(StateSpace),
    /// Gated DeltaNet and Kimi Delta Attention.
    GatedDelta(GatedDelta),
    /// Lightning attention.
    Lightning(Lightning),
    /// A short convolution between two gates.
    ShortConvolution(GatedConvolution),
}

impl RecurrentMixer {
    /// f32 values that a sequence keeps in each block.
    pub fn state(&self) -> usize {
        match self {
            Self::StateSpace(space) => space.state_size(),
            other => other.widths().map_or(0, |widths| widths.state),
        }
    }

    /// The widths of all but state-space mixers.
    pub(crate) fn widths(&self) -> Option<Widths> {
        match self {
            Self::StateSpace(_) => None,
            Self::GatedDelta(delta) => Some(delta.widths()),
            Self::Lightning(lightning) => Some(lightning.widths()),
            Self::ShortConvolution(convolution) => Some(convolution.widths()),
        }
    }

    /// Weights and output channels of its linear layers, for a residual stream of this width. Saturating: sizes come out of
    /// untrusted files.
    pub(crate) fn weights(&self, hidden: usize) -> [usize; 2] {
        let layers = match self {
            Self::StateSpace(space) => space.layers(hidden),
            other => other.widths().map_or(Vec::new(), |widths| widths.layers(hidden)),
        };
        layers.iter().fold([0, 0], |[weights, all], [outputs, inputs]: &[usize; 2]| {
            [weights.saturating_add(outputs.saturating_mul(*inputs)), all.saturating_add(*outputs)]
        })
    }

    /// Checks that the sizes fit each other.
    pub(super) fn validate(&self, raw: &RawConfig) -> Result<(), Error> {
        match self {
            Self::StateSpace(space) => space.validate(raw),
            Self::GatedDelta(delta) => delta.validate(raw),
            Self::Lightning(_) | Self::ShortConvolution(_) => Ok(()),
        }
    }
}

/// A state-space mixer: `in_proj → causal convolution → recurrence → gate → out_proj`.
#[derive(Debug, Clone, PartialEq)]
pub struct StateSpace {
    /// Channels.
    pub channels: usize,
    /// Dimensions of the state of a channel.
    pub dimensions: usize,
    /// Tokens that the convolution sees.
    pub kernel: usize,
    /// The convolution has a bias.
    pub convolution_bias: bool,
    /// After the convolution.
    pub activation: Activation,
    /// The input projection has a bias where the checkpoint has one.
    pub input_bias: bool,
    /// The output projection has a bias where the checkpoint has one.
    pub output_bias: bool,
    /// The recurrence.
    pub scan: Scan,
    /// Factors of the columns of the input projection of Mamba-2: gate, x, B, C, Δ.
    pub multipliers: Option<[f32; 5]>,
}

/// The recurrence of a state-space mixer.
#[derive(Debug, Clone, PartialEq)]
pub enum Scan {
    /// Mamba: Δ, B and C come from a projection of the convolved channels, Δ by way of a low rank.
    Selective {
        /// That rank.
        rank: usize,
        /// Δ at its low rank, B and C are normalised.
        norms: Option<ParameterNorms>,
        /// So many heads of channels, each with projections of its own in floating point; without it one projection of all.
        heads: Option<usize>,
    },
    /// Mamba-2: heads of channels; Δ, B and C come from the input projection.
    Heads {
        /// Number of heads.
        heads: usize,
        /// Groups of heads that share B and C.
        groups: usize,
        /// The least and the largest Δ.
        step_limits: [f32; 2],
        /// Of the output.
        norm: Option<GatedNorm>,
    },
}

/// Norms of Δ, B and C: [`NormKind::RmsNorm`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ParameterNorms {
    /// ε
    pub eps: f32,
    /// They have gains.
    pub gains: bool,
}

/// The norm of a recurrence's output: [`NormKind::RmsNorm`] in each of several groups of channels.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GatedNorm {
    /// Number of groups.
    pub groups: usize,
    /// ε
    pub eps: f32,
    /// It goes before the gate, not after it.
    pub before_gate: bool,
}

impl StateSpace {
    /// The kind of all norms of the mixer.
    pub const NORM: NormKind = NormKind::RmsNorm;

    /// Columns that are convolved.
    pub fn convolved(&self) -> usize {
        match self.scan {
            Scan::Selective { .. } => self.channels,
            Scan::Heads { groups, .. } => self.channels + 2 * groups * self.dimensions,
        }
    }

    /// Columns of the input projection: in Mamba the convolved ones and the gate, in Mamba-2 the gate, the convolved ones and Δ.
    pub fn projected(&self) -> usize {
        match self.scan {
            Scan::Selective { .. } => 2 * self.channels,
            Scan::Heads { heads, .. } => self.channels + self.convolved() + heads,
        }
    }

    /// Output channels and input features of the linear layers, those of the input and of the output projection first.
    pub(crate) fn layers(&self, hidden: usize) -> Vec<[usize; 2]> {
        let mut layers = vec![[self.projected(), hidden], [hidden, self.channels]];
        if let Scan::Selective { rank, heads, .. } = self.scan {
            let heads = heads.unwrap_or(1);
            let channels = self.channels / heads;
            let of_head = [[rank + 2 * self.dimensions, channels], [channels, rank]];
            layers.extend(std::iter::repeat_n(of_head, heads).flatten());
        }
        layers
    }

    fn state_size(&self) -> usize {
        let window = self.convolved().saturating_mul(self.kernel - 1);
        self.channels.saturating_mul(self.dimensions).saturating_add(window)
    }

    fn validate(&self, raw: &RawConfig) -> Result<(), Error> {
        /// Far above the widest mixer; sums of such sizes do not overflow.
        const WIDEST: usize = 1 << 31;
        /// Heads with projections of their own, each of which is a linear layer.
        const MOST_HEADS: usize = 1024;
        let grouped = match self.scan {
            Scan::Selective { .. } => self.dimensions,
            Scan::Heads { groups, .. } => groups.saturating_mul(self.dimensions),
        };
        if self.channels.max(grouped) > WIDEST {
            let problem =
                format!("has a state-space mixer of {} channels and {grouped} columns", self.channels);
            return Err(raw.problem("model_type", format!("{problem}; at most {WIDEST} of each")));
        }
        if let Scan::Selective { heads: Some(heads), .. } = self.scan
            && (!self.channels.is_multiple_of(heads) || heads > MOST_HEADS)
        {
            let problem = format!("is {heads}; it must divide the {} channels of the mixer", self.channels);
            return Err(raw.problem("n_mamba_heads", format!("{problem}, and be {MOST_HEADS} at most")));
        }
        if let Scan::Heads { heads, groups, norm, step_limits: [least, most] } = self.scan {
            let of_norm = norm.map_or(1, |norm| norm.groups);
            if !self.channels.is_multiple_of(heads)
                || !heads.is_multiple_of(groups)
                || !self.channels.is_multiple_of(of_norm)
            {
                return Err(raw.problem(
                    "n_groups",
                    format!(
                        "is {groups}: the {} channels of the mixer must be whole heads ({heads}) in whole groups, and those of \
                         its norm ({of_norm}), too",
                        self.channels
                    ),
                ));
            }
            if least.is_nan() || most.is_nan() || least > most {
                return Err(raw
                    .problem("time_step_limit", format!("is [{least}, {most}]; expected ascending limits")));
            }
        }
        Ok(())
    }
}
