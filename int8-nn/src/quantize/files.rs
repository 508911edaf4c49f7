//! The folders of a conversion: files copied beside the weights, free space, fingerprint.

use std::borrow::Cow;
use std::fs::{self, File};
use std::io::{Cursor, Read};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::Error;
use crate::checkpoint::{Checkpoint, CheckpointError, Existing, Source};

/// Suffixes of weights in any format; not copied.
const WEIGHTS: [&str; 14] = [
    ".safetensors",
    ".safetensors.index.json",
    ".bin",
    ".bin.index.json",
    ".pt",
    ".pth",
    ".ckpt",
    ".h5",
    ".msgpack",
    ".onnx",
    ".onnx_data",
    ".gguf",
    ".npz",
    ".partial",
];

/// Levels of folders searched: `1_Pooling/config.json` is at 2.
const DEPTH: usize = 2;

/// A file beside the weights.
#[derive(Debug)]
pub(super) struct OtherFile {
    /// Relative to the folder, with `/`.
    pub(super) name: String,
    pub(super) bytes: u64,
    path: Option<PathBuf>,
}

impl OtherFile {
    pub(super) fn open<'a>(&self, source: &'a Source) -> Result<Box<dyn Read + 'a>, CheckpointError> {
        match &self.path {
            Some(path) => match File::open(path) {
                Ok(file) => Ok(Box::new(file)),
                Err(error) => Err(io_error(path, "open this file", error)),
            },
            None => Ok(match source.bytes(&self.name)? {
                Cow::Borrowed(bytes) => Box::new(bytes),
                Cow::Owned(bytes) => Box::new(Cursor::new(bytes)),
            }),
        }
    }
}

/// Tokenizer, licence, code, chat template, …: all that is neither weights nor `config.json`.
pub(super) fn others(source: &Source) -> Result<Vec<OtherFile>, CheckpointError> {
    let mut files = Vec::new();
    match source.path() {
        Some(folder) => list(folder, "", DEPTH, &mut files)?,
        None => {
            for name in source.names()?.into_iter().filter(|name| is_other(name)) {
                let bytes = crate::convert::bytes(source.bytes(&name)?.len());
                files.push(OtherFile { name, bytes, path: None });
            }
        }
    }
    files.sort_by(|left, right| left.name.cmp(&right.name));
    Ok(files)
}

fn is_other(name: &str) -> bool {
    name != "config.json" && !name.starts_with('.') && !WEIGHTS.iter().any(|ending| name.ends_with(ending))
}

fn list(
    folder: &Path,
    prefix: &str,
    depth: usize,
    files: &mut Vec<OtherFile>,
) -> Result<(), CheckpointError> {
    let failed = |error| io_error(folder, "list this folder", error);
    for entry in fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        // A link whose target is gone is none of the conversion's business.
        let Ok(metadata) = fs::metadata(&path) else { continue };
        let full = format!("{prefix}{name}");
        if metadata.is_dir() && depth > 1 && !name.starts_with('.') {
            list(&path, &format!("{full}/"), depth - 1, files)?;
        } else if metadata.is_file()
            && (!prefix.is_empty() || name != "config.json")
            && is_copied(name, prefix)
        {
            files.push(OtherFile { name: full, bytes: metadata.len(), path: Some(path.clone()) });
        }
    }
    Ok(())
}

fn is_copied(name: &str, prefix: &str) -> bool {
    // In a subfolder, `config.json` belongs to a part of the model.
    is_other(name) || (name == "config.json" && !prefix.is_empty())
}

/// Refuses to write into the folder that is read.
pub(super) fn check_folders(checkpoint: &Checkpoint, out: &Path) -> Result<(), Error> {
    let Ok(target) = fs::canonicalize(out) else { return Ok(()) };
    let weights = checkpoint.files().filter_map(|file| fs::canonicalize(file).ok());
    let folders = weights.filter_map(|file| file.parent().map(Path::to_path_buf));
    let source = checkpoint.source().path().and_then(|folder| fs::canonicalize(folder).ok());
    if folders.chain(source).any(|folder| folder == target) {
        return Err(Error::Input(format!(
            "{}: this is the folder of the checkpoint that is read; name another one for the result",
            out.display()
        )));
    }
    Ok(())
}

/// Bytes for headers, index and folder entries.
const SPARE: u64 = 16 << 20;

/// Checks that the disk has room for `bytes`.
pub(super) fn check_space(out: &Path, bytes: u64, existing: Existing) -> Result<(), CheckpointError> {
    let mut folder = std::path::absolute(out).unwrap_or_else(|_| out.to_path_buf());
    // An earlier run's files are kept or removed first.
    let reused = if existing == Existing::Refuse { 0 } else { weights_in(&folder) };
    while !folder.is_dir() && folder.pop() {}
    // Unknown free space is no reason to refuse.
    let Ok(available) = fs4::available_space(&folder) else { return Ok(()) };
    let needed = bytes.saturating_sub(reused).saturating_add(SPARE);
    if needed > available {
        return Err(CheckpointError::DiskSpace { folder: out.display().to_string(), needed, available });
    }
    Ok(())
}

fn weights_in(folder: &Path) -> u64 {
    let is_weights = |path: &Path| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.starts_with("model") && name.trim_end_matches(".partial").ends_with(".safetensors")
    };
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter(|entry| is_weights(&entry.path()))
        .filter_map(|entry| entry.metadata().ok())
        // A partial file has its full length from the start, but occupies only what was written.
        .map(|metadata| occupied(&metadata))
        .sum()
}

#[cfg(unix)]
fn occupied(metadata: &fs::Metadata) -> u64 {
    /// The unit of `st_blocks` on every file system.
    const UNIT: u64 = 512;
    std::os::unix::fs::MetadataExt::blocks(metadata) * UNIT
}

#[cfg(not(unix))]
fn occupied(metadata: &fs::Metadata) -> u64 {
    metadata.len()
}

/// What the result depends on besides its tensors' names and shapes: version, source files with size and time, configuration.
pub(super) fn fingerprint(checkpoint: &Checkpoint, config: &Value) -> Result<String, CheckpointError> {
    let mut text = format!("int8 {}\n", env!("CARGO_PKG_VERSION"));
    for file in checkpoint.files() {
        let path = Path::new(file);
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        match fs::metadata(path) {
            Ok(metadata) => {
                text.push_str(&format!("{name} {} {:?}\n", metadata.len(), metadata.modified().ok()))
            }
            Err(_) => text.push_str(&format!("{name}\n")),
        }
    }
    text.push_str(&config.to_string());
    text.push('\n');
    Ok(text)
}

fn io_error(path: &Path, operation: &'static str, source: std::io::Error) -> CheckpointError {
    CheckpointError::Io { file: path.display().to_string(), operation, source }
}
