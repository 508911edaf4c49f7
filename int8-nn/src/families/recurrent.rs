//! The names of mixers with a recurrent state.

use super::Module;
use crate::weights::Part;

/// The names of a block's mixer with a recurrent state.
#[allow(clippy::large_enum_variant, reason = "one a block, while it is loaded")]
pub(crate) enum RecurrentNames {
    StateSpace(StateSpaceNames),
    /// All other mixers.
    Linear(LinearNames),
}

/// The names of linear attention or of a short convolution.
pub(crate) struct LinearNames {
    /// The input projection, in the order of its parts.
    pub(crate) input: Vec<Part>,
    /// Of decay and gate, from a low rank.
    pub(crate) low: Vec<Part>,
    /// The modules of weights `[channels, 1, kernel]` and biases that make up the convolution.
    pub(crate) convolution: Vec<String>,
    /// The tensors `ln(−A)` and the bias that is added to the decay before the softplus.
    pub(crate) decay: Option<[String; 2]>,
    /// Of the output.
    pub(crate) norm: Option<String>,
    pub(crate) output: Part,
}

impl RecurrentNames {
    /// The linear layers.
    pub(crate) fn parts(self) -> Vec<Part> {
        match self {
            Self::StateSpace(names) => [Some(names.input), names.parameters, names.steps, Some(names.output)]
                .into_iter()
                .flatten()
                .collect(),
            Self::Linear(names) => names.input.into_iter().chain(names.low).chain([names.output]).collect(),
        }
    }
}

/// The names of a state-space mixer.
pub(crate) struct StateSpaceNames {
    pub(crate) input: Part,
    /// The module of weight `[channels, 1, kernel]` and bias.
    pub(crate) convolution: String,
    /// The tensor `ln(−A)`.
    pub(crate) transition: String,
    /// The tensor D.
    pub(crate) skip: String,
    /// The tensor that is added to Δ before the softplus, where Δ has no projection with a bias.
    pub(crate) step_bias: Option<String>,
    /// Mamba: to Δ at its low rank, B and C.
    pub(crate) parameters: Option<Part>,
    /// Mamba: from that rank to Δ.
    pub(crate) steps: Option<Part>,
    /// Of Δ at its low rank, B and C.
    pub(crate) parameter_norms: Option<[String; 3]>,
    /// Mamba-2: of the output.
    pub(crate) norm: Option<String>,
    pub(crate) output: Part,
}

impl StateSpaceNames {
    /// Mamba's names, as most families have them.
    pub(super) fn mamba(mixer: &Module) -> Self {
        Self {
            parameters: Some(mixer.part("x_proj")),
            steps: Some(mixer.part("dt_proj")),
            parameter_norms: Some(
                ["dt_layernorm", "b_layernorm", "c_layernorm"].map(|norm| mixer.name(norm)),
            ),
            step_bias: None,
            norm: None,
            ..Self::mamba2(mixer)
        }
    }

    /// Mamba-2's names, as most families have them.
    pub(super) fn mamba2(mixer: &Module) -> Self {
        Self {
            input: mixer.part("in_proj"),
            convolution: mixer.name("conv1d"),
            transition: mixer.name("A_log"),
            skip: mixer.name("D"),
            step_bias: Some(mixer.name("dt_bias")),
            parameters: None,
            steps: None,
            parameter_norms: None,
            norm: Some(mixer.name("norm")),
            output: mixer.part("out_proj"),
        }
    }
}
