//! Keys of this crate's settings, as command lines and reports write them.

use int8_core::Named;

use crate::backend::OutlierWeights;
use crate::embedder::Pooling;
use crate::transcriber::SpeechTask;

impl Named for OutlierWeights {
    const VALUES: &'static [Self] = &[Self::Exact, Self::Dequantized];

    fn key(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Dequantized => "dequantized",
        }
    }

    fn meaning(self) -> &'static str {
        match self {
            Self::Exact => "As the checkpoint stores them",
            Self::Dequantized => "From the int8 codes",
        }
    }
}

impl Named for SpeechTask {
    const VALUES: &'static [Self] = &[Self::Transcribe, Self::Translate];

    fn key(self) -> &'static str {
        match self {
            Self::Transcribe => "transcribe",
            Self::Translate => "translate",
        }
    }

    fn meaning(self) -> &'static str {
        match self {
            Self::Transcribe => "The speech in its own language",
            Self::Translate => "Its translation to English",
        }
    }
}

impl Named for Pooling {
    const VALUES: &'static [Self] = &[Self::Mean, Self::Cls, Self::Max];

    fn key(self) -> &'static str {
        match self {
            Self::Mean => "mean",
            Self::Cls => "cls",
            Self::Max => "max",
        }
    }

    fn meaning(self) -> &'static str {
        match self {
            Self::Mean => "The mean over the tokens",
            Self::Cls => "The first token",
            Self::Max => "The largest value in each dimension",
        }
    }
}
