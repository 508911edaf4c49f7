//! The file formats that weights are read from. A new one is a variant here and a module of its name that reads a file's
//! bytes into [`Contents`].

use std::fmt;

use super::CheckpointError;
use super::contents::Contents;
use super::{safetensors, torch};

/// The format of a weight file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum FileFormat {
    /// `u64 length | JSON header | data`.
    Safetensors,
    /// The zip archive that `torch.save` writes since PyTorch 1.6.
    Torch,
}

impl FileFormat {
    /// All formats, best first: where a folder holds several, the first is read.
    pub(crate) const ALL: [Self; 2] = [Self::Safetensors, Self::Torch];

    /// Its name: `safetensors` or `pytorch`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Safetensors => "safetensors",
            Self::Torch => "pytorch",
        }
    }

    /// Hugging Face's name for all weights in one file.
    pub(crate) const fn single(self) -> &'static str {
        match self {
            Self::Safetensors => "model.safetensors",
            Self::Torch => "pytorch_model.bin",
        }
    }

    /// Hugging Face's name for the index of shards.
    pub(crate) const fn index(self) -> &'static str {
        match self {
            Self::Safetensors => "model.safetensors.index.json",
            Self::Torch => "pytorch_model.bin.index.json",
        }
    }

    /// The ends of its files' names. The contents may still differ: [`read`](Self::read) tells.
    const fn suffixes(self) -> &'static [&'static str] {
        match self {
            Self::Safetensors => &[".safetensors"],
            Self::Torch => &[".bin", ".pt", ".pth", ".ckpt"],
        }
    }

    /// Whether a file of this name has this format.
    pub(super) fn is_name(self, name: &str) -> bool {
        self.suffixes().iter().any(|suffix| name.ends_with(suffix))
    }

    /// Whether a file of this name is an index of shards, of any format.
    pub(super) fn is_index(name: &str) -> bool {
        [".safetensors.index.json", ".bin.index.json"].iter().any(|suffix| name.ends_with(suffix))
    }

    /// The format of a file: by its name, and without a known suffix (as in the Hub's blob store) by its bytes. A file named
    /// `.safetensors` is never read as a pickle.
    pub(super) fn of(name: &str, bytes: &[u8]) -> Self {
        let named = Self::ALL.into_iter().find(|format| format.is_name(name));
        let by_bytes = || if torch::is_zip(bytes) { Self::Torch } else { Self::Safetensors };
        named.unwrap_or_else(by_bytes)
    }

    /// Parses and validates the file whose whole contents are `bytes`; `file` names it in errors.
    pub(super) fn read(self, file: &str, bytes: &[u8]) -> Result<Contents, CheckpointError> {
        match self {
            Self::Safetensors => safetensors::read(file, bytes),
            Self::Torch => torch::read(file, bytes),
        }
    }
}

impl fmt::Display for FileFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
