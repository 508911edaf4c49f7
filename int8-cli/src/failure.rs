//! Why the program ends without success: a message, advice, and the exit code.

use std::{fmt, io};

use int8_nn::checkpoint::CheckpointError;

/// Why the program ends without success.
#[derive(Debug)]
pub(crate) struct Failure {
    message: String,
    hint: Option<String>,
    /// The exit code.
    pub(crate) code: u8,
    /// Whether the reader of standard output has gone.
    pub(crate) broken_pipe: bool,
}

impl Failure {
    /// The command failed: exit code 1.
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), hint: None, code: 1, broken_pipe: false }
    }

    /// The command line is wrong: exit code 2.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self { code: 2, ..Self::new(message) }
    }

    /// No failure: another process runs the command, and this one has done its part.
    pub(crate) fn followed() -> Self {
        Self { code: 0, ..Self::new("done for another process") }
    }

    /// A result that is no number, so that no figure may pass for one.
    pub(crate) fn not_finite(what: &str) -> Self {
        Self::new(format!("{what} is not a finite number: the model's outputs hold NaN or infinity"))
            .hint("a weight may be damaged, or the settings overflow; `int8 eval MODEL --fp` tells which")
    }

    /// The message without the advice.
    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    /// The advice.
    pub(crate) fn given_hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// Adds advice.
    pub(crate) fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.hint {
            Some(hint) => write!(f, "\nhint: {hint}"),
            None => Ok(()),
        }
    }
}

impl From<int8_nn::Error> for Failure {
    fn from(error: int8_nn::Error) -> Self {
        match error {
            int8_nn::Error::Checkpoint(error) => error.into(),
            int8_nn::Error::WrongKind { kind, .. } => {
                let command = match kind {
                    int8_nn::Kind::Encoder => "int8 embed",
                    int8_nn::Kind::Speech => "int8 transcribe MODEL FILE.wav",
                    int8_nn::Kind::Decoder | int8_nn::Kind::Seq2Seq => "int8 run",
                };
                // The library ends with the name of its type, which is of no use here.
                let message = error.to_string();
                let message = message.rsplit_once("; `").map_or(&*message, |(message, _)| message);
                Self::new(message).hint(format!("`{command}` runs such a model"))
            }
            int8_nn::Error::NeedsSource { .. } => {
                Self::new(error.to_string()).hint("`int8 run` gives it a text to read")
            }
            #[cfg(feature = "cuda")]
            int8_nn::Error::Cuda(error @ int8_cuda::Error::OutOfMemory { .. }) => Self::new(error.to_string())
                .hint(
                    "`int8 plan MODEL` says what it takes; fewer tokens or sequences and --kv-cache f16 take less; \
                     --device cpu uses the computer's memory",
                ),
            error => Self::new(error.to_string()),
        }
    }
}

impl From<int8_nn::hub::HubError> for Failure {
    fn from(error: int8_nn::hub::HubError) -> Self {
        Self::new(error.to_string())
    }
}

/// Library errors name no options; the hint does.
impl From<CheckpointError> for Failure {
    fn from(error: CheckpointError) -> Self {
        let failure = Self::new(error.to_string());
        match error {
            CheckpointError::Incomplete { .. } => failure.hint("the same command with --resume completes it"),
            CheckpointError::Exists { .. } => {
                failure.hint("--resume continues an interrupted conversion, --force replaces the checkpoint")
            }
            _ => failure,
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self { broken_pipe: error.kind() == io::ErrorKind::BrokenPipe, ..Self::new(error.to_string()) }
    }
}
