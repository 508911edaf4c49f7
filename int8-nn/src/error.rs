//! The error of this crate.

use crate::checkpoint::CheckpointError;
use crate::kind::Kind;

/// An error of this crate. Messages name the file, what was expected, what was found and the way out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A checkpoint file is missing, damaged or in a format that is not read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A key of `config.json` is missing or has an invalid value.
    #[error("{file}: `{key}` {problem}")]
    Config {
        /// The file.
        file: String,
        /// The key.
        key: String,
        /// What is wrong with it, continuing "`key` …".
        problem: String,
    },
    /// The checkpoint's `model_type` is not supported.
    #[error("{file}: model_type `{model_type}` is not supported; supported: {supported}")]
    UnknownFamily {
        /// The file.
        file: String,
        /// `model_type` of the file.
        model_type: String,
        /// All supported ones, separated by commas.
        supported: String,
    },
    /// `tokenizer.json` is missing or damaged, or a text cannot be encoded.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// A chat template is invalid, refuses the conversation, or is missing.
    #[error("{file}: chat template: {problem}")]
    ChatTemplate {
        /// The file.
        file: String,
        /// What is wrong.
        problem: String,
    },
    /// Token ids, positions or lengths outside the model's range.
    #[error("{0}")]
    Input(String),
    /// The model is of another kind than the one asked for.
    #[error("{file}: model_type `{model_type}` is {}; `{}` runs it", kind.description(), kind.runner())]
    WrongKind {
        /// The file.
        file: String,
        /// `model_type` of the file.
        model_type: String,
        /// What it is.
        kind: Kind,
    },
    /// A model with an encoder was to continue or score a text without a source text.
    #[error("a {family} model writes a text about another one, and cannot continue or score a text alone")]
    NeedsSource {
        /// The family.
        family: &'static str,
    },
    /// The constraint of an answer cannot be followed further, or the rules leave no token.
    #[error("{0}")]
    Constraint(String),
    /// Another process of a [`crate::group::Group`] has ended, does not answer, or does something else.
    #[error("{0}")]
    Process(String),
    /// Something that this backend or kind of model does not do.
    #[error("{0}")]
    Unsupported(String),
    /// The CPU kernels refused an operand.
    #[error(transparent)]
    Cpu(#[from] int8_cpu::Error),
    /// The GPU or its kernels failed or refused an operand.
    #[cfg(feature = "cuda")]
    #[error(transparent)]
    Cuda(#[from] int8_cuda::Error),
    /// The reference refused a setting.
    #[error(transparent)]
    Core(#[from] int8_core::Error),
    /// A model of the hub cannot be downloaded.
    #[cfg(feature = "hub")]
    #[error(transparent)]
    Hub(#[from] crate::hub::HubError),
}
