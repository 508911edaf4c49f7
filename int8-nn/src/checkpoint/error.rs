//! Errors of checkpoints: each names file, tensor, what was expected, what was found and the way out.
//!
//! Names come out of untrusted files, so messages escape and shorten them: a hostile tensor name can neither drive a terminal
//! nor flood a log.

use std::fmt;
use std::path::PathBuf;

/// A checkpoint, or one of its tensors, that cannot be used.
///
/// `file` is the path as it was opened; files compiled into a binary are shown as `embedded/NAME`.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    // ---- which files ------------------------------------------------------------------------------------------
    /// Nothing is at the given path.
    #[error("{}: no such file or folder; expected a Hugging Face checkpoint folder, or a .safetensors or .bin file. \
             Check the spelling, or download the checkpoint to this path first; models of the hub are named org/name", path.display())]
    NotFound {
        /// The path as given.
        path: PathBuf,
    },
    /// The folder holds no weights at all.
    #[error(
        "{folder}: no weights found; expected model.safetensors or pytorch_model.bin, or the index of their shards, \
             found {found}. \
             Point to the folder that holds the weights (in a Hub cache: snapshots/REVISION), or finish its download"
    )]
    NoWeights {
        /// The folder looked into.
        folder: String,
        /// Its files.
        found: String,
    },
    /// Several files could be the weights.
    #[error(
        "{folder}: several weight files and no index: expected model.safetensors or \
             model.safetensors.index.json, found {found}. Name one of the files instead of the folder"
    )]
    AmbiguousWeights {
        /// The folder looked into.
        folder: String,
        /// The candidates.
        found: String,
    },
    /// The weights are in a format that is not read.
    #[error(
        "{file}: expected safetensors or a PyTorch checkpoint (one file or shards with an index), \
             found {format}. {help}"
    )]
    UnsupportedFormat {
        /// The file in that format.
        file: String,
        /// The format's name.
        format: &'static str,
        /// The way out.
        help: &'static str,
    },
    /// A folder, pipe or device instead of a file.
    #[error("{file}: expected a regular file, found {found}. Replace it with the file itself")]
    NotRegular {
        /// The path.
        file: String,
        /// What it is.
        found: &'static str,
    },
    /// A file instead of a folder.
    #[error(
        "{file}: expected a folder, found a file. Name the folder that holds config.json and the weights"
    )]
    NotAFolder {
        /// The path.
        file: String,
    },
    /// The operating system refused.
    #[error("{file}: cannot {operation}: {source}{}", advice(source))]
    Io {
        /// The path.
        file: String,
        /// The operation.
        operation: &'static str,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// A file that belongs to the checkpoint is absent.
    #[error(
        "{file}: this file is missing ({needed_for}). Copy or download it again into the checkpoint's folder"
    )]
    MissingFile {
        /// The absent file.
        file: String,
        /// Why it is needed.
        needed_for: String,
    },
    /// A file that is read whole exceeds its limit.
    #[error(
        "{file}: expected at most {limit} bytes, found {found}. This is not the file its name says; \
             download it again"
    )]
    TooLarge {
        /// The file.
        file: String,
        /// The largest size accepted, in bytes.
        limit: u64,
        /// The size found, in bytes.
        found: u64,
    },
    /// A file name outside the checkpoint's folder.
    #[error(
        "{file}: {}: expected the name of a file inside this folder, found {}. \
             Nothing outside the folder is read; correct the name or get the checkpoint from a trusted place",
        Origin(tensor),
        Quoted(found)
    )]
    UnsafeName {
        /// The file that holds the name, or the folder if the name came from the caller.
        file: String,
        /// The tensor that it belongs to.
        tensor: Option<String>,
        /// The refused name.
        found: String,
    },
    /// A text file is not UTF-8.
    #[error("{file}: expected UTF-8 text, found another byte at offset {offset}. Download the file again")]
    NotText {
        /// The file.
        file: String,
        /// Where the text stops being UTF-8, in bytes.
        offset: usize,
    },
    /// A JSON file cannot be parsed.
    #[error("{file}: expected JSON, found an error: {reason}. Download the file again, or correct it there")]
    Json {
        /// The file.
        file: String,
        /// The parser's reason with line and column.
        reason: String,
    },

    // ---- one safetensors file as a whole ------------------------------------------------------------------------
    /// The file is truncated.
    #[error(
        "{file}: expected at least {expected} bytes ({part}), found {found}: the file is cut off. \
             Download or copy it again"
    )]
    Truncated {
        /// The file.
        file: String,
        /// The part that is incomplete.
        part: String,
        /// The size the file says it has, in bytes.
        expected: u64,
        /// The size it has, in bytes.
        found: u64,
    },
    /// Bytes after the last tensor.
    #[error(
        "{file}: expected {expected} bytes, found {found}: bytes follow the last tensor, which no writer of \
             safetensors leaves. Download or write the file again"
    )]
    TrailingBytes {
        /// The file.
        file: String,
        /// The size its header describes, in bytes.
        expected: u64,
        /// The size it has, in bytes.
        found: u64,
    },
    /// The stated header length exceeds the format's limit.
    #[error(
        "{file}: expected a safetensors header of at most {limit} bytes, found a stated length of {found}. \
             This is no safetensors file, or a damaged one; download it again"
    )]
    HeaderLength {
        /// The file.
        file: String,
        /// The format's limit, in bytes.
        limit: u64,
        /// The length its first 8 bytes state.
        found: u64,
    },
    /// The header is invalid.
    #[error(
        "{file}: {}: expected a safetensors header entry, found an error: {reason}. \
             The file is damaged or was written by a faulty tool; download or write it again",
        Entry(entry)
    )]
    Header {
        /// The file.
        file: String,
        /// The entry where parsing stopped: a tensor's name, `__metadata__`, or none.
        entry: Option<String>,
        /// The parser's reason with line and column.
        reason: String,
    },
    /// The shard index is invalid.
    #[error(
        "{file}: {}: expected an index {{\"weight_map\": {{TENSOR: FILE}}}}, found an error: {reason}. \
             Download the index again, or remove it if the folder holds one complete model.safetensors",
        Entry(entry)
    )]
    Index {
        /// The index file.
        file: String,
        /// The tensor where parsing stopped, if any.
        entry: Option<String>,
        /// The parser's reason with line and column.
        reason: String,
    },

    // ---- one PyTorch checkpoint as a whole ----------------------------------------------------------------------
    /// A PyTorch checkpoint is no zip archive as `torch.save` writes it.
    #[error(
        "{file}: expected a zip archive as torch.save writes it (PyTorch 1.6 or later), found an error: {reason}. \
             The file is damaged or incomplete; download it again"
    )]
    Archive {
        /// The file.
        file: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The pickle of a PyTorch checkpoint is damaged, or more than a dict of tensors.
    #[error(
        "{file}: data.pkl, byte {offset}: expected a pickled dict of tensors, found {reason}. If the file is whole, \
             save the model's state_dict() again in Python, with safetensors.torch.save_file or torch.save"
    )]
    Pickle {
        /// The file.
        file: String,
        /// Where reading stopped, in bytes from the start of the pickle.
        offset: usize,
        /// What is there.
        reason: String,
    },
    /// The pickle of a PyTorch checkpoint refers to a global that builds no tensors.
    #[error(
        "{file}: data.pkl: expected a dict of tensors, found a reference to {}, which was not called: a pickle may run \
             any program, and this reader builds tensors only. If you trust where the file comes from, load it in \
             Python and save its state_dict() with safetensors.torch.save_file",
        Quoted(name)
    )]
    PickleGlobal {
        /// The file.
        file: String,
        /// Module and name, joined by a dot.
        name: String,
    },

    // ---- one tensor's description -------------------------------------------------------------------------------
    /// Two tensors of one name.
    #[error(
        "{file}: tensor {}: expected one tensor of this name, found another in {other}. \
             The checkpoint is inconsistent; download it again or remove the file that does not belong to it",
        Quoted(tensor)
    )]
    DuplicateTensor {
        /// The file with the second occurrence.
        file: String,
        /// The name.
        tensor: String,
        /// The file with the first.
        other: String,
    },
    /// A tensor's offsets are reversed, overlap another's, or leave a hole.
    #[error(
        "{file}: tensor {}: expected {expected}, found data_offsets [{begin}, {end}]. \
             The file is damaged or was written by a faulty tool; download or write it again",
        Quoted(tensor)
    )]
    Offsets {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// The violated rule, with its numbers.
        expected: String,
        /// Begin as stated, in bytes from the start of the data.
        begin: usize,
        /// End as stated, in bytes from the start of the data.
        end: usize,
    },
    /// A shape whose size overflows.
    #[error(
        "{file}: tensor {}: expected a shape whose size fits into memory, found {}. \
             The file is damaged or hostile; download it again",
        Quoted(tensor),
        Dims(found)
    )]
    ShapeOverflow {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// The shape as stated.
        found: Vec<usize>,
    },
    /// Dtype and shape disagree with the offsets.
    #[error(
        "{file}: tensor {}: expected {expected} for {description}, found data_offsets of {found} bytes. \
             The file is damaged or was written by a faulty tool; download or write it again",
        Quoted(tensor)
    )]
    ByteLength {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// Dtype and shape, as text.
        description: String,
        /// Their size.
        expected: String,
        /// The size between the offsets, in bytes.
        found: usize,
    },

    /// A tensor of a PyTorch checkpoint exceeds its storage.
    #[error(
        "{file}: tensor {}: expected {expected}, found {found}. \
             The file is damaged or was written by a faulty tool; download or write it again",
        Quoted(tensor)
    )]
    Storage {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// The violated rule, with its numbers.
        expected: String,
        /// What the file states.
        found: String,
    },

    // ---- reading a tensor -----------------------------------------------------------------------------------------
    /// No tensor of that name.
    #[error(
        "{file}: tensor {}: expected in this checkpoint, found nothing of that name{hint}. \
             Check that the checkpoint is complete and that config.json belongs to it",
        Quoted(tensor)
    )]
    MissingTensor {
        /// The file, folder or index that should hold it.
        file: String,
        /// The name.
        tensor: String,
        /// Similar names, as text; may be empty.
        hint: String,
    },
    /// A tensor has another shape than needed.
    #[error(
        "{file}: tensor {}: expected shape {expected}, found {}. \
             Check that config.json belongs to these weights",
        Quoted(tensor),
        Dims(found)
    )]
    Shape {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// The shape needed, as text.
        expected: String,
        /// The shape it has.
        found: Vec<usize>,
    },
    /// A tensor has another element type than needed.
    #[error("{file}: tensor {}: expected dtype {expected}, found {found}. {help}", Quoted(tensor))]
    Dtype {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// The types accepted.
        expected: &'static str,
        /// The type it has.
        found: super::DType,
        /// The way out.
        help: &'static str,
    },
    /// An invalid value.
    #[error("{file}: tensor {}: expected {expected}, found {found}. {help}", Quoted(tensor))]
    Value {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// The rule.
        expected: &'static str,
        /// The value and its place.
        found: String,
        /// The way out.
        help: &'static str,
    },
    /// The weights are quantised in a format that is not read.
    #[error(
        "{file}: tensor {}: expected 16/32-bit or bitsandbytes int8 (row layout) weights, found {format}. {help}",
        Quoted(tensor)
    )]
    Quantization {
        /// The file.
        file: String,
        /// A tensor of that format.
        tensor: String,
        /// The quantisation's name.
        format: &'static str,
        /// The way out.
        help: &'static str,
    },

    // ---- writing ----------------------------------------------------------------------------------------------------
    /// The output folder holds a checkpoint.
    #[error("{folder}: expected a folder without a checkpoint, found {found}. {help}")]
    Exists {
        /// The folder.
        folder: String,
        /// What is there.
        found: String,
        /// The way out.
        help: &'static str,
    },
    /// The folder holds an interrupted conversion.
    #[error(
        "{folder}: expected a complete checkpoint, found an unfinished one (a conversion was interrupted: {note} is \
             there). Resume the conversion, or delete the folder"
    )]
    Incomplete {
        /// The folder.
        folder: String,
        /// The run note.
        note: &'static str,
    },
    /// The disk has too little room.
    #[error(
        "{folder}: {needed} bytes are needed on this disk, and {available} are free. Free some space, or name a folder \
             on another disk"
    )]
    DiskSpace {
        /// The folder to be written.
        folder: String,
        /// Bytes still to be written.
        needed: u64,
        /// Bytes free.
        available: u64,
    },
    /// [`CheckpointWriter::finish`](super::CheckpointWriter::finish) before all tensors were written.
    #[error(
        "{file}: tensor {}: expected {expected} bytes to be written, found {found}. \
             This is a mistake in the calling code; the folder can be completed by resuming",
        Quoted(tensor)
    )]
    Unfinished {
        /// The file.
        file: String,
        /// The first incomplete tensor by name.
        tensor: String,
        /// Its size, in bytes.
        expected: u64,
        /// Bytes written of it.
        found: u64,
    },

    // ---- the caller's mistakes ----------------------------------------------------------------------------------------
    /// Rows or columns outside the tensor, or a buffer of another size than the selection.
    #[error(
        "{file}: tensor {}: expected {expected}, found {found}. \
             This is a mistake in the calling code: take sizes from the tensor's shape",
        Quoted(tensor)
    )]
    Selection {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// The valid range.
        expected: String,
        /// The selection.
        found: String,
    },
}

/// Most characters of an untrusted name in a message: longer than any tensor name in use.
const SHOWN_NAME: usize = 160;

/// A name from a file, escaped and shortened, in backquotes.
pub(super) struct Quoted<'a>(pub(super) &'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("`")?;
        let mut shown = self.0.chars();
        for character in shown.by_ref().take(SHOWN_NAME) {
            write!(f, "{}", character.escape_debug())?;
        }
        f.write_str(if shown.next().is_some() { "…`" } else { "`" })
    }
}

/// The entry of a header or index at which parsing stopped.
struct Entry<'a>(&'a Option<String>);

impl fmt::Display for Entry<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            None => f.write_str("at its start"),
            Some(name) if name == super::safetensors::METADATA_KEY => write!(f, "{}", Quoted(name)),
            Some(name) => write!(f, "tensor {}", Quoted(name)),
        }
    }
}

/// The origin of a file name: a tensor's index entry, or the caller.
struct Origin<'a>(&'a Option<String>);

impl fmt::Display for Origin<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            None => f.write_str("a file named by the program"),
            Some(tensor) => write!(f, "tensor {}", Quoted(tensor)),
        }
    }
}

/// Most dimensions of an untrusted shape in a message.
const SHOWN_DIMS: usize = 8;

/// A shape as `[2, 3]`, shortened.
pub(super) struct Dims<'a>(pub(super) &'a [usize]);

impl fmt::Display for Dims<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[")?;
        for (axis, dim) in self.0.iter().take(SHOWN_DIMS).enumerate() {
            write!(f, "{}{dim}", if axis == 0 { "" } else { ", " })?;
        }
        if self.0.len() > SHOWN_DIMS {
            write!(f, ", … {} dimensions", self.0.len())?;
        }
        f.write_str("]")
    }
}

/// What to do about a refusal of the operating system.
fn advice(error: &std::io::Error) -> &'static str {
    use std::io::ErrorKind as Kind;
    match error.kind() {
        Kind::StorageFull | Kind::QuotaExceeded | Kind::FileTooLarge => {
            ". Make room, or name a folder on another disk"
        }
        Kind::PermissionDenied | Kind::ReadOnlyFilesystem => {
            ". Check the permissions of the file and its folder"
        }
        Kind::IsADirectory | Kind::NotADirectory => ". Check the path",
        Kind::NotFound => ". Check that it exists",
        _ => "",
    }
}
