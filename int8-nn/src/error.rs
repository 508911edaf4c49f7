//! What can go wrong between a checkpoint and its tokens.

use crate::checkpoint::CheckpointError;

/// An error of this crate. Messages name the file, what was expected, what was found and the way out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A checkpoint file is missing, damaged or of a kind that is not read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// `config.json` lacks a key or holds a value that makes no sense.
    #[error("{file}: `{key}` {problem}")]
    Config {
        /// The file.
        file: String,
        /// The key.
        key: String,
        /// What is wrong with it, as the rest of a sentence.
        problem: String,
    },
    /// The checkpoint's `model_type` is none of the families this crate runs.
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
    /// A chat template cannot be understood, refuses the conversation, or there is none.
    #[error("{file}: chat template: {problem}")]
    ChatTemplate {
        /// The file.
        file: String,
        /// What is wrong.
        problem: String,
    },
    /// Token ids, positions or lengths that this model cannot take.
    #[error("{0}")]
    Input(String),
    /// Something that this backend or kind of model does not do.
    #[error("{0}")]
    Unsupported(String),
    /// The CPU kernels refused an operand.
    #[error(transparent)]
    Cpu(#[from] int8_cpu::Error),
    /// The mathematics refused a setting.
    #[error(transparent)]
    Core(#[from] int8_core::Error),
    /// A model of the hub cannot be had.
    #[cfg(feature = "hub")]
    #[error(transparent)]
    Hub(#[from] crate::hub::HubError),
}
