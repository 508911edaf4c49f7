//! Where a checkpoint's files come from: a folder, or bytes compiled into the program.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use super::CheckpointError;
use super::mmap::Mapping;

/// The largest file that [`Source::bytes`] reads: ten times the largest tokenizer in use (Gemma's, 34 MB). Weights are mapped.
const WHOLE_FILE_LIMIT: u64 = 320 << 20;

/// The largest file that [`Source::read_json`] parses: a parsed value takes up to 16 times the text's bytes. The largest
/// configurations (with label tables) have 2 MB.
const JSON_LIMIT: u64 = 32 << 20;

/// Why a file named by the program is needed.
const NEEDED_BY_PROGRAM: &str = "the model cannot be read without it";

/// The files of one checkpoint, by name: a folder on disk, or files embedded in the program.
///
/// Names are relative and may not leave the folder. Symbolic links are followed: the Hub's cache consists of links into a blob
/// store outside the folder.
#[derive(Debug, Clone)]
pub struct Source(Kind);

#[derive(Debug, Clone)]
enum Kind {
    Folder(PathBuf),
    Embedded(Arc<BTreeMap<String, Embedded>>),
}

/// The bytes of an embedded file, cheap to clone.
#[derive(Debug, Clone)]
pub(super) enum Embedded {
    Static(&'static [u8]),
    Owned(Arc<Vec<u8>>),
}

impl Embedded {
    pub(super) fn owned(bytes: Vec<u8>) -> Self {
        Self::Owned(Arc::new(bytes))
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Self::Static(bytes) => bytes,
            Self::Owned(bytes) => bytes,
        }
    }
}

impl Source {
    /// The files of a folder.
    ///
    /// # Errors
    /// [`CheckpointError::NotFound`] if nothing is there, [`CheckpointError::NotAFolder`] if it is something else.
    pub fn folder(path: &Path) -> Result<Self, CheckpointError> {
        match fs::metadata(path) {
            Ok(metadata) if metadata.is_dir() => Ok(Self(Kind::Folder(path.to_path_buf()))),
            Ok(_) => Err(CheckpointError::NotAFolder { file: path.display().to_string() }),
            Err(error) => Err(path_error(path, "open this folder", error)),
        }
    }

    /// Files compiled into a program, as pairs of name and contents, `config.json` and `tokenizer.json` among them. A later pair
    /// replaces an earlier one of the same name.
    pub fn embedded(files: impl IntoIterator<Item = (String, Cow<'static, [u8]>)>) -> Self {
        let file = |bytes| match bytes {
            Cow::Borrowed(bytes) => Embedded::Static(bytes),
            Cow::Owned(bytes) => Embedded::owned(bytes),
        };
        let files = files.into_iter().map(|(name, bytes)| (name, file(bytes))).collect();
        Self(Kind::Embedded(Arc::new(files)))
    }

    /// The folder on disk, if this is one.
    pub fn path(&self) -> Option<&Path> {
        match &self.0 {
            Kind::Folder(folder) => Some(folder),
            Kind::Embedded(_) => None,
        }
    }

    /// The name of a file in error messages.
    pub fn label(&self, name: &str) -> String {
        match &self.0 {
            Kind::Folder(folder) if name.is_empty() => folder.display().to_string(),
            Kind::Folder(folder) => folder.join(name).display().to_string(),
            Kind::Embedded(_) => format!("embedded/{name}"),
        }
    }

    /// Whether a file of this name exists inside the folder.
    pub fn contains(&self, name: &str) -> bool {
        match &self.0 {
            Kind::Folder(folder) => is_safe_name(name) && folder.join(name).is_file(),
            Kind::Embedded(files) => files.contains_key(name),
        }
    }

    /// Whether anything has this name, a folder or a dangling link included; reading reports those as what they are.
    pub(super) fn is_present(&self, name: &str) -> bool {
        match &self.0 {
            Kind::Folder(folder) => folder.join(name).symlink_metadata().is_ok(),
            Kind::Embedded(files) => files.contains_key(name),
        }
    }

    /// The names of all files directly in the folder, sorted.
    ///
    /// # Errors
    /// [`CheckpointError::Io`] if the folder cannot be listed.
    pub fn names(&self) -> Result<Vec<String>, CheckpointError> {
        let folder = match &self.0 {
            Kind::Folder(folder) => folder,
            Kind::Embedded(files) => return Ok(files.keys().cloned().collect()),
        };
        let failed = |error| path_error(folder, "list this folder", error);
        let mut names = Vec::new();
        for entry in fs::read_dir(folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            // Checkpoints refer to Unicode names only.
            if let (Ok(name), true) = (entry.file_name().into_string(), entry.path().is_file()) {
                names.push(name);
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    /// The contents of a file that is small enough to be read whole (configuration, tokenizer, index).
    ///
    /// # Errors
    /// [`CheckpointError::MissingFile`], [`CheckpointError::UnsafeName`], [`CheckpointError::NotRegular`],
    /// [`CheckpointError::TooLarge`] or [`CheckpointError::Io`].
    pub fn bytes(&self, name: &str) -> Result<Cow<'_, [u8]>, CheckpointError> {
        self.bytes_up_to(WHOLE_FILE_LIMIT, name)
    }

    fn bytes_up_to(&self, limit: u64, name: &str) -> Result<Cow<'_, [u8]>, CheckpointError> {
        let folder = match &self.0 {
            Kind::Folder(folder) => folder,
            Kind::Embedded(files) => {
                let file = files.get(name).ok_or_else(|| self.missing(name, NEEDED_BY_PROGRAM))?;
                return Ok(Cow::Borrowed(file.bytes()));
            }
        };
        if !is_safe_name(name) {
            return Err(CheckpointError::UnsafeName {
                file: self.label(""),
                tensor: None,
                found: name.to_owned(),
            });
        }
        let path = folder.join(name);
        if !path.exists() {
            return Err(self.missing(name, NEEDED_BY_PROGRAM));
        }
        let (file, length) = open_regular(&path)?;
        let too_large = |found| CheckpointError::TooLarge { file: path.display().to_string(), limit, found };
        if length > limit {
            return Err(too_large(length));
        }
        let mut bytes = Vec::new();
        // One byte beyond the limit reveals a file that grows while it is read.
        let read = file.take(limit + 1).read_to_end(&mut bytes);
        read.map_err(|error| path_error(&path, "read this file", error))?;
        match u64::try_from(bytes.len()) {
            Ok(found) if found > limit => Err(too_large(found)),
            _ => Ok(Cow::Owned(bytes)),
        }
    }

    /// The contents of a text file, without a byte-order mark.
    ///
    /// # Errors
    /// As [`Source::bytes`], and [`CheckpointError::NotText`].
    pub fn read_text(&self, name: &str) -> Result<String, CheckpointError> {
        self.text_up_to(WHOLE_FILE_LIMIT, name)
    }

    fn text_up_to(&self, limit: u64, name: &str) -> Result<String, CheckpointError> {
        let bytes = self.bytes_up_to(limit, name)?.into_owned();
        match String::from_utf8(bytes) {
            Ok(text) => Ok(match text.strip_prefix('\u{feff}') {
                Some(rest) => rest.to_owned(),
                None => text,
            }),
            Err(error) => Err(CheckpointError::NotText {
                file: self.label(name),
                offset: error.utf8_error().valid_up_to(),
            }),
        }
    }

    /// The contents of a JSON file.
    ///
    /// # Errors
    /// As [`Source::read_text`], and [`CheckpointError::Json`].
    pub fn read_json(&self, name: &str) -> Result<serde_json::Value, CheckpointError> {
        let text = self.text_up_to(JSON_LIMIT, name)?;
        let failed = |error: serde_json::Error| CheckpointError::Json {
            file: self.label(name),
            reason: error.to_string(),
        };
        serde_json::from_str(&text).or_else(|error| match with_quoted_literals(&text) {
            Some(text) => serde_json::from_str(&text).map_err(failed),
            None => Err(failed(error)),
        })
    }

    /// The model's `config.json`.
    ///
    /// # Errors
    /// As [`Source::read_json`].
    pub fn read_config(&self) -> Result<serde_json::Value, CheckpointError> {
        self.read_json("config.json")
    }

    /// A weight file, mapped; `needed_for` is the reason in the error.
    pub(super) fn map(&self, name: &str, needed_for: &str) -> Result<Storage, CheckpointError> {
        match &self.0 {
            Kind::Embedded(files) => match files.get(name) {
                Some(file) => Ok(Storage::Embedded(file.clone())),
                None => Err(self.missing(name, needed_for)),
            },
            Kind::Folder(folder) => {
                let path = folder.join(name);
                if !path.exists() {
                    return Err(self.missing(name, needed_for));
                }
                Storage::map(&path)
            }
        }
    }

    fn missing(&self, name: &str, needed_for: &str) -> CheckpointError {
        let needed_for = match self.is_present(name) {
            true => "a link of this name is there, but what it points to is gone",
            false => needed_for,
        };
        CheckpointError::MissingFile { file: self.label(name), needed_for: needed_for.to_owned() }
    }
}

/// JSON in which `NaN`, `Infinity` and `-Infinity`, which Python writes and reads and JSON does not have, are texts of that name:
/// a key that is not read does not matter, and one that needs a number is refused with it. `None` without any.
fn with_quoted_literals(text: &str) -> Option<String> {
    const LITERALS: [&str; 3] = ["-Infinity", "Infinity", "NaN"];
    let mut out = String::with_capacity(text.len());
    let (mut rest, mut found) = (text, false);
    while let Some(at) = rest.find(['"', '-', 'I', 'N']) {
        let (before, tail) = rest.split_at(at);
        out.push_str(before);
        let length = if tail.starts_with('"') {
            string_length(tail)
        } else if let Some(literal) = LITERALS.iter().find(|literal| tail.starts_with(**literal)) {
            found = true;
            out.push('"');
            out.push_str(literal);
            out.push('"');
            rest = &tail[literal.len()..];
            continue;
        } else {
            1
        };
        out.push_str(&tail[..length]);
        rest = &tail[length..];
    }
    out.push_str(rest);
    found.then_some(out)
}

/// Bytes of the JSON string at the beginning of `text`, up to the end if it has none.
fn string_length(text: &str) -> usize {
    let bytes = text.as_bytes();
    let mut at = 1;
    while at < bytes.len() {
        match bytes[at] {
            b'"' => return at + 1,
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    bytes.len()
}

/// The bytes of one weight file.
#[derive(Debug)]
pub(super) enum Storage {
    /// An empty file, which some systems refuse to map; the reader's error is clearer.
    Empty,
    Mapped(Mapping),
    Embedded(Embedded),
}

impl Storage {
    fn map(path: &Path) -> Result<Self, CheckpointError> {
        let (file, length) = open_regular(path)?;
        if length == 0 {
            return Ok(Self::Empty);
        }
        let mapping = Mapping::new(&file, path)
            .map_err(|error| path_error(path, "map this file into memory", error))?;
        Ok(Self::Mapped(mapping))
    }

    pub(super) fn bytes(&self) -> &[u8] {
        match self {
            Self::Empty => &[],
            Self::Mapped(mapping) => mapping.bytes(),
            Self::Embedded(embedded) => embedded.bytes(),
        }
    }

    /// See [`Mapping::release`].
    pub(super) fn release(&self, range: std::ops::Range<usize>) {
        if let Self::Mapped(mapping) = self {
            mapping.release(range);
        }
    }
}

/// Whether an untrusted `name` stays inside the folder it is joined to: relative, plain components, no backslash (a separator on
/// some systems).
pub(crate) fn is_safe_name(name: &str) -> bool {
    !name.is_empty()
        && !name.contains(['\\', '\0'])
        && Path::new(name).components().all(|part| matches!(part, Component::Normal(_)))
}

/// Opens a regular file; opening a pipe would wait for a writer, reading a device might never end.
fn open_regular(path: &Path) -> Result<(File, u64), CheckpointError> {
    let metadata = fs::metadata(path).map_err(|error| path_error(path, "open this file", error))?;
    if !metadata.is_file() {
        let found = if metadata.is_dir() { "a folder" } else { "a pipe, socket or device" };
        return Err(CheckpointError::NotRegular { file: path.display().to_string(), found });
    }
    let file = File::open(path).map_err(|error| path_error(path, "open this file", error))?;
    Ok((file, metadata.len()))
}

pub(super) fn path_error(path: &Path, operation: &'static str, source: std::io::Error) -> CheckpointError {
    match source.kind() {
        std::io::ErrorKind::NotFound => CheckpointError::NotFound { path: path.to_path_buf() },
        _ => CheckpointError::Io { file: path.display().to_string(), operation, source },
    }
}

#[cfg(test)]
mod tests {
    use super::with_quoted_literals;

    #[test]
    fn literals_of_python_become_texts() {
        assert_eq!(with_quoted_literals(r#"{"a": -1, "N": "NaN"}"#), None);
        let text = r#"{"a": [NaN, -Infinity, -2], "In\"finity": Infinity, "b": "NaN"#;
        let expected = r#"{"a": ["NaN", "-Infinity", -2], "In\"finity": "Infinity", "b": "NaN"#;
        assert_eq!(with_quoted_literals(text).as_deref(), Some(expected));
    }
}
