//! Formats that are not read: recognised by name or first bytes, so that the error names them and the way out.

use std::path::Path;

use super::CheckpointError;

const FIND_SAFETENSORS: &str = "Download the model's safetensors files, which nearly every repository on the Hub offers beside this format";

/// Formats known by a file's name: suffix, name of the format, way out.
pub(super) const BY_NAME: [(&str, &str, &str); 5] = [
    (".gguf", "GGUF (llama.cpp)", FIND_SAFETENSORS),
    (".h5", "a TensorFlow checkpoint (.h5)", FIND_SAFETENSORS),
    (".msgpack", "a Flax checkpoint (.msgpack)", FIND_SAFETENSORS),
    (".onnx", "ONNX", FIND_SAFETENSORS),
    (".npz", "a NumPy archive (.npz)", FIND_SAFETENSORS),
];

/// Formats known by a file's first bytes.
const BY_CONTENT: [(&[u8], &str, &str); 6] = [
    (
        b"version https://git-lfs",
        "a Git LFS pointer instead of the file",
        "Run `git lfs pull` in that folder, or download the file from the Hub",
    ),
    (
        b"PK\x03\x04",
        "a zip archive, as PyTorch checkpoints are",
        "If it is one, rename it so that it ends in .bin: a file of that name is opened as what it is",
    ),
    (b"GGUF", "GGUF (llama.cpp)", FIND_SAFETENSORS),
    (b"<!DOCTYPE", "a web page", "The download saved a page instead of the file; download it again"),
    (b"<html", "a web page", "The download saved a page instead of the file; download it again"),
    (b"\x89HDF\r\n\x1a\n", "a TensorFlow checkpoint (HDF5)", FIND_SAFETENSORS),
];

/// Refuses a file, named directly, whose name shows another format.
pub(super) fn check_name(path: &Path) -> Result<(), CheckpointError> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    match BY_NAME.into_iter().find(|(suffix, ..)| name.ends_with(suffix)) {
        Some((_, format, help)) => {
            Err(CheckpointError::UnsupportedFormat { file: path.display().to_string(), format, help })
        }
        None => Ok(()),
    }
}

/// Refuses a file whose first bytes show another format.
pub(super) fn check_content(file: &str, bytes: &[u8]) -> Result<(), CheckpointError> {
    match BY_CONTENT.into_iter().find(|(magic, ..)| bytes.starts_with(magic)) {
        Some((_, format, help)) => {
            Err(CheckpointError::UnsupportedFormat { file: file.to_owned(), format, help })
        }
        None => Ok(()),
    }
}
