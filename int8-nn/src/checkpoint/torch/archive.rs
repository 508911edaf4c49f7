//! The zip archive of `torch.save`: one pickle, and one stored (uncompressed) file a storage.

use std::collections::HashMap;
use std::ops::Range;

use rawzip::{CompressionMethod, ZipArchive};

use super::super::CheckpointError;
use super::super::error::Quoted;

/// Pickle and storages of an archive.
#[derive(Debug)]
pub(super) struct Archive<'a> {
    pub(super) pickle: &'a [u8],
    /// Byte range of each storage in the file, by key.
    pub(super) storages: HashMap<String, Range<usize>>,
}

/// Why an archive is refused.
enum Refusal {
    Malformed(String),
    Unsupported(&'static str, &'static str),
}

impl From<rawzip::Error> for Refusal {
    fn from(error: rawzip::Error) -> Self {
        Self::Malformed(error.to_string())
    }
}

/// Opens the archive in these bytes; `file` names it in errors.
pub(super) fn read<'a>(file: &str, bytes: &'a [u8]) -> Result<Archive<'a>, CheckpointError> {
    parse(bytes).map_err(|refusal| match refusal {
        Refusal::Malformed(reason) => CheckpointError::Archive { file: file.to_owned(), reason },
        Refusal::Unsupported(format, help) => {
            CheckpointError::UnsupportedFormat { file: file.to_owned(), format, help }
        }
    })
}

fn parse(bytes: &[u8]) -> Result<Archive<'_>, Refusal> {
    let archive = ZipArchive::from_slice(bytes)?;
    let mut pickle: Option<Range<usize>> = None;
    let mut folder: Option<String> = None;
    let mut storages = HashMap::new();
    for entry in archive.entries() {
        let entry = entry?;
        let path = entry.file_path();
        let Ok(path) = std::str::from_utf8(path.as_ref()) else {
            return Err(Refusal::Malformed("a file whose name is not UTF-8".to_owned()));
        };
        let malformed = |reason: &str| Refusal::Malformed(format!("{}: {reason}", Quoted(path)));
        // All files are in one folder, named after the saved file.
        let Some((root, name)) = path.split_once('/') else { continue };
        let key = name.strip_prefix("data/");
        if name == "constants.pkl" || name.starts_with("code/") {
            return Err(Refusal::Unsupported(
                "a TorchScript archive (a program with its weights)",
                "Save the model's state_dict() instead: torch.save(model.state_dict(), FILE)",
            ));
        }
        if name != "data.pkl" && name != "byteorder" && key.is_none() {
            continue;
        }
        match &folder {
            Some(folder) if folder != root => return Err(malformed("a second folder of weights")),
            _ => folder = Some(root.to_owned()),
        }
        if entry.flags().is_encrypted() {
            return Err(malformed("an encrypted file"));
        }
        if entry.compression_method() != CompressionMethod::STORE
            || entry.compressed_size_hint() != entry.uncompressed_size_hint()
        {
            return Err(malformed("a compressed file; torch.save compresses nothing"));
        }
        let (begin, end) = archive
            .get_entry(entry.wayfinder())
            .map_err(|error| malformed(&error.to_string()))?
            .compressed_data_range();
        // Inside the mapped file, so both fit.
        let (Ok(begin), Ok(end)) = (usize::try_from(begin), usize::try_from(end)) else {
            return Err(malformed("its place is outside the file"));
        };
        let Some(content) = bytes.get(begin..end) else {
            return Err(malformed("its place is outside the file"));
        };
        match key {
            Some(key) => {
                if storages.insert(key.to_owned(), begin..end).is_some() {
                    return Err(malformed("a second file of this name"));
                }
            }
            None if name == "byteorder" => {
                if content.trim_ascii() != b"little" {
                    return Err(Refusal::Unsupported(
                        "a PyTorch checkpoint of a big-endian machine",
                        "Save it again on a little-endian machine (x86-64, Arm): torch.save(torch.load(FILE), OUT)",
                    ));
                }
            }
            None => {
                if pickle.replace(begin..end).is_some() {
                    return Err(malformed("a second file of this name"));
                }
            }
        }
    }
    match pickle {
        Some(range) => Ok(Archive { pickle: &bytes[range], storages }),
        None => {
            Err(Refusal::Malformed("there is no FOLDER/data.pkl, which describes the tensors".to_owned()))
        }
    }
}
