//! The kinds of models, by what they read and write.

/// What the models of a family do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Continues a text: [`Model`](crate::Model).
    Decoder,
    /// Turns a text into vectors: [`Embedder`](crate::Embedder).
    Encoder,
    /// Reads a text and writes another: [`Model`](crate::Model).
    Seq2Seq,
    /// Writes down speech: [`Transcriber`](crate::Transcriber).
    Speech,
}

impl Kind {
    /// Continues "this model is …" in an error.
    pub(crate) const fn description(self) -> &'static str {
        match self {
            Self::Decoder => "a decoder: it continues a text and has no sentence embeddings",
            Self::Encoder => "an encoder: it turns a text into vectors and does not continue it",
            Self::Seq2Seq => {
                "an encoder-decoder: it reads a text and writes another, but neither continues a text nor has sentence \
                 embeddings"
            }
            Self::Speech => "a model of speech: it writes down a recording, and reads no text",
        }
    }

    /// The type of this crate that runs such models.
    pub(crate) const fn runner(self) -> &'static str {
        match self {
            Self::Decoder | Self::Seq2Seq => "Model",
            Self::Encoder => "Embedder",
            Self::Speech => "Transcriber",
        }
    }
}
