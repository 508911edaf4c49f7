//! Hugging Face checkpoints, safetensors or PyTorch: a folder is opened and its tensors are read by name;
//! [`CheckpointWriter`] writes one in one pass.
//!
//! ```no_run
//! use int8_nn::checkpoint::Checkpoint;
//!
//! let checkpoint = Checkpoint::open("path/to/opt-125m")?;
//! let config = checkpoint.source().read_config()?;
//! let embedding = checkpoint.tensor("model.decoder.embed_tokens.weight")?.expect_shape(&[50272, 768])?;
//! let mut row = vec![0.0; 768];
//! embedding.read_rows_f32(2..3, &mut row)?;
//! # Ok::<(), int8_nn::checkpoint::CheckpointError>(())
//! ```
//!
//! Invariants:
//! - a checkpoint that opens is valid as a whole: every tensor's bytes lie inside its file and match its dtype and shape,
//!   no two tensors of a file share a name or (tied ones in PyTorch files apart) a byte, and every file of the index exists.
//!   Reading then fails only for a tensor that is missing or of another dtype or shape than its user needs;
//! - no allocation has a length that was not checked against the file's size;
//! - weights are mapped, not read: opening costs the headers only;
//! - every error names the file, the tensor, what was expected, what was found, and the way out.

mod contents;
mod convert;
mod discover;
mod dtype;
mod element;
mod error;
mod foreign;
mod format;
mod index;
mod int8;
mod mmap;
mod mxfp4;
mod outliers;
mod rows;
mod safetensors;
mod source;
mod strided;
mod summary;
mod synthetic;
mod tensor;
#[cfg(test)]
mod tests;
mod torch;
mod write;
#[cfg(test)]
mod write_tests;

use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

pub use dtype::DType;
pub use element::ReadAs;
pub use error::CheckpointError;
pub use format::FileFormat;
pub use int8::Int8Tensor;
pub(crate) use int8::{dequantize_row, foreign_format};
pub use mmap::mapped_file_at;
pub(crate) use mxfp4::Mxfp4;
pub(crate) use outliers::OUTLIERS;
pub use outliers::OutlierColumns;
pub use rows::FloatRows;
pub use source::Source;
#[cfg(feature = "hub")]
pub(crate) use source::is_safe_name;
pub use summary::{DTypeTotal, Format, Quantization};
pub(crate) use synthetic::{Synthetic, Values};
pub use tensor::TensorView;
pub(crate) use write::file_header;
pub use write::{CheckpointWriter, Existing, TensorSpec, WriteOptions};

use contents::Contents;
use discover::Weights;
use source::Storage;

/// An opened checkpoint. Cloning is cheap and shares the mapped files.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    inner: Arc<Inner>,
    /// See [`Checkpoint::with_other_names`].
    other_names: &'static [(&'static str, &'static str)],
}

#[derive(Debug)]
struct Inner {
    source: Source,
    /// The only file, or the index: where a missing tensor should be.
    label: String,
    files: Vec<WeightFile>,
    /// Where each tensor is: file, entry. Sorted by name.
    places: BTreeMap<String, (usize, usize)>,
    /// The names in reading order: numbers in names compare as numbers.
    order: Vec<String>,
    /// Exact columns beside int8 weights.
    outliers: Option<Checkpoint>,
    /// Tensors that were asked for by name.
    asked: Mutex<HashSet<(usize, usize)>>,
}

#[derive(Debug)]
struct WeightFile {
    label: String,
    storage: Storage,
    format: FileFormat,
    contents: Contents,
}

impl Checkpoint {
    /// Opens a checkpoint: a folder with `model.safetensors` or `pytorch_model.bin`, or an index of shards
    /// (`model.safetensors.index.json`, `pytorch_model.bin.index.json`); or a weight file or index by its own path. Of both
    /// formats, safetensors is read. Symbolic links are followed.
    ///
    /// PyTorch files are those of `torch.save` since 1.6; no code in them runs.
    ///
    /// The files are memory-mapped: **they must not be truncated or rewritten in place while the checkpoint is in use**
    /// (replacing them by rename is fine).
    ///
    /// # Errors
    /// The first fault found, see [`CheckpointError`]. Formats that are not read (GGUF, TensorFlow, PyTorch before 1.6, …) give
    /// [`CheckpointError::UnsupportedFormat`] with the way out.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, CheckpointError> {
        let path = path.as_ref();
        let metadata =
            std::fs::metadata(path).map_err(|error| source::path_error(path, "open this path", error))?;
        if metadata.is_dir() {
            return Self::from_source(Source::folder(path)?);
        }
        // The parent of a bare file name is an empty path, not the current folder.
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
            let found = "a name that is not Unicode";
            return Err(CheckpointError::NotRegular { file: path.display().to_string(), found });
        };
        foreign::check_name(path)?;
        let weights = match FileFormat::is_index(name) {
            true => Weights::Sharded(name.to_owned()),
            false => Weights::Single(name.to_owned()),
        };
        Self::read(Source::folder(parent)?, &weights)
    }

    /// Opens a checkpoint from bytes, for a model compiled into a program; see [`Source::embedded`].
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn from_bytes(
        files: impl IntoIterator<Item = (String, Cow<'static, [u8]>)>,
    ) -> Result<Self, CheckpointError> {
        Self::from_source(Source::embedded(files))
    }

    /// Opens the checkpoint in `source`.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn from_source(source: Source) -> Result<Self, CheckpointError> {
        let weights = discover::weights(&source)?;
        let outliers = match source.is_present(OUTLIERS) {
            true => Some(Self::read(source.clone(), &Weights::Single(OUTLIERS.to_owned()))?),
            false => None,
        };
        let mut checkpoint = Self::read(source, &weights)?;
        if let Some(inner) = Arc::get_mut(&mut checkpoint.inner) {
            inner.outliers = outliers;
        }
        Ok(checkpoint)
    }

    fn read(source: Source, weights: &Weights) -> Result<Self, CheckpointError> {
        match weights {
            Weights::Single(name) => {
                let file = WeightFile::read(&source, name, "the weights")?;
                Self::assemble(source.label(name), source, vec![file])
            }
            Weights::Sharded(name) => {
                let label = source.label(name);
                let index = index::read(&label, &source.read_text(name)?)?;
                // Each file once, sorted, with the first tensor that needs it.
                let mut shards: BTreeMap<&str, &str> = BTreeMap::new();
                for (tensor, file) in &index {
                    shards.entry(file).or_insert(tensor);
                }
                let needed_for = |tensor| format!("{label} says it holds {}", error::Quoted(tensor));
                let files = shards
                    .into_iter()
                    .map(|(file, tensor)| WeightFile::read(&source, file, &needed_for(tensor)))
                    .collect::<Result<_, _>>()?;
                Self::assemble(label, source, files)
            }
        }
    }

    /// Joins the files. A tensor counts where it is, whatever the index says, and of one that two files hold, the later file's
    /// counts: as transformers reads them. What the index names and no file holds is missed when it is needed.
    fn assemble(label: String, source: Source, files: Vec<WeightFile>) -> Result<Self, CheckpointError> {
        let mut places = BTreeMap::new();
        for (number, file) in files.iter().enumerate() {
            for (entry, tensor) in file.contents.entries.iter().enumerate() {
                places.insert(tensor.name.clone(), (number, entry));
            }
        }
        let mut order: Vec<_> = places.keys().cloned().collect();
        order.sort_by(|left, right| natural(left).cmp(natural(right)).then_with(|| left.cmp(right)));
        Ok(Self {
            inner: Arc::new(Inner {
                source,
                label,
                files,
                places,
                order,
                outliers: None,
                asked: Mutex::default(),
            }),
            other_names: &[],
        })
    }

    /// The other files of the checkpoint: configuration, tokenizer.
    pub fn source(&self) -> &Source {
        &self.inner.source
    }

    /// The tensor of this name.
    ///
    /// # Errors
    /// [`CheckpointError::MissingTensor`], with similar names that exist.
    pub fn tensor(&self, name: &str) -> Result<TensorView<'_>, CheckpointError> {
        self.get(name).ok_or_else(|| self.missing(name))
    }

    /// The tensor of this name, if it exists.
    pub fn get(&self, name: &str) -> Option<TensorView<'_>> {
        let place = self.place(name)?;
        self.inner.asked.lock().unwrap_or_else(PoisonError::into_inner).insert(place);
        Some(self.view(place))
    }

    /// With other names for some tensors: for each pair, a name that contains the first and that no tensor has is also looked up
    /// with the second in its place. transformers renames tensors so while it loads or saves some families.
    pub(crate) fn with_other_names(&self, pairs: &'static [(&'static str, &'static str)]) -> Self {
        Self { inner: self.inner.clone(), other_names: pairs }
    }

    fn place(&self, name: &str) -> Option<(usize, usize)> {
        let other = |(first, second): &(&str, &str)| {
            let other = name.contains(first).then(|| name.replace(first, second))?;
            self.inner.places.get(&other)
        };
        self.inner.places.get(name).or_else(|| self.other_names.iter().find_map(other)).copied()
    }

    fn view(&self, (file, entry): (usize, usize)) -> TensorView<'_> {
        let file = &self.inner.files[file];
        let entry = &file.contents.entries[entry];
        TensorView {
            file: &file.label,
            name: &entry.name,
            dtype: entry.dtype,
            shape: &entry.shape,
            bytes: &file.storage.bytes()[entry.range.clone()],
            strides: entry.strides.as_deref(),
        }
    }

    /// Names of tensors that nobody has asked for by name so far, but for those that are another one's under a second name.
    pub fn unread(&self) -> Vec<&str> {
        let asked = self.inner.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let unread = |name: &&str| {
            let place = &self.inner.places[*name];
            !asked.contains(place) && self.tied_to(name).is_none() && !self.is_tied_by_one_of(place, &asked)
        };
        self.names().filter(unread).collect()
    }

    /// Whether one of `asked` is this tensor under a second name.
    fn is_tied_by_one_of(&self, (file, entry): &(usize, usize), asked: &HashSet<(usize, usize)>) -> bool {
        let tied = &self.inner.files[*file].contents.tied;
        tied.iter().any(|(second, first)| first == entry && asked.contains(&(*file, *second)))
    }

    /// Whether there is a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.place(name).is_some()
    }

    /// All names in a stable order, layer 2 before layer 10.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.inner.order.iter().map(String::as_str)
    }

    /// All tensors, in the order of [`Self::names`].
    pub fn tensors(&self) -> impl Iterator<Item = TensorView<'_>> {
        self.names().filter_map(|name| self.inner.places.get(name).map(|place| self.view(*place)))
    }

    /// The weight files, as in error messages.
    pub fn files(&self) -> impl ExactSizeIterator<Item = &str> {
        self.inner.files.iter().map(|file| file.label.as_str())
    }

    /// Number of tensors.
    pub fn len(&self) -> usize {
        self.inner.places.len()
    }

    /// Whether there are no tensors.
    pub fn is_empty(&self) -> bool {
        self.inner.places.is_empty()
    }

    /// Bytes of all tensors together, tied ones once.
    pub fn total_bytes(&self) -> u64 {
        let own = self.tensors().filter(|tensor| self.tied_to(tensor.name).is_none());
        own.map(|tensor| u64::try_from(tensor.byte_len()).unwrap_or(u64::MAX)).sum()
    }

    /// The tensor that this one is tied to: the first other one, by name, of the same bytes, dtype, shape and strides. Only
    /// PyTorch files hold tied tensors; safetensors files omit or repeat them.
    pub fn tied_to(&self, name: &str) -> Option<&str> {
        let &(number, entry) = self.inner.places.get(name)?;
        let file = &self.inner.files[number];
        let first = file.contents.tied.get(&entry)?;
        Some(&file.contents.entries[*first].name)
    }

    /// Drops a tensor's pages from memory, so that streaming through a large checkpoint needs little of it. Reading the tensor
    /// again reads the file again. Unknown names are ignored.
    pub fn release(&self, name: &str) {
        if let Some((file, entry)) = self.place(name) {
            let file = &self.inner.files[file];
            file.storage.release(file.contents.entries[entry].range.clone());
        }
    }

    /// [`Self::release`] for the bytes `part` of a tensor.
    pub fn release_part(&self, name: &str, part: std::ops::Range<usize>) {
        if let Some((file, entry)) = self.place(name) {
            let file = &self.inner.files[file];
            let range = &file.contents.entries[entry].range;
            let end = range.end.min(range.start.saturating_add(part.end));
            file.storage.release(range.start.saturating_add(part.start)..end);
        }
    }

    fn missing(&self, name: &str) -> CheckpointError {
        self.missing_because(name, self.similar(name))
    }

    /// `hint` continues "found nothing of that name".
    fn missing_because(&self, name: &str, hint: String) -> CheckpointError {
        CheckpointError::MissingTensor { file: self.inner.label.clone(), tensor: name.to_owned(), hint }
    }

    /// Names that differ from `name` by a prefix, the usual reason for a missing tensor, as text for an error.
    fn similar(&self, name: &str) -> String {
        /// Enough to see the pattern.
        const SHOWN: usize = 3;
        let is_suffix =
            |long: &str, short: &str| long.strip_suffix(short).is_some_and(|rest| rest.ends_with('.'));
        let similar: Vec<_> = self
            .names()
            .filter(|other| is_suffix(other, name) || is_suffix(name, other))
            .take(SHOWN)
            .map(|name| error::Quoted(name).to_string())
            .collect();
        if similar.is_empty() { String::new() } else { format!(" (similar: {})", similar.join(", ")) }
    }
}

impl WeightFile {
    fn read(source: &Source, name: &str, needed_for: &str) -> Result<Self, CheckpointError> {
        let label = source.label(name);
        let storage = source.map(name, needed_for)?;
        let format = FileFormat::of(name, storage.bytes());
        let contents = format.read(&label, storage.bytes())?;
        Ok(Self { label, storage, format, contents })
    }
}

/// A name as runs of digits and of other characters; numbers compare by length first, so 2 precedes 10.
fn natural(name: &str) -> impl Iterator<Item = (usize, &str)> {
    let is_digit = |character: char| character.is_ascii_digit();
    let mut rest = name;
    std::iter::from_fn(move || {
        let first = rest.chars().next()?;
        let digits = is_digit(first);
        let end = rest.find(|character| is_digit(character) != digits).unwrap_or(rest.len());
        let (run, tail) = rest.split_at(end);
        rest = tail;
        // Leading zeros would make a longer number look larger.
        let weight = if digits { run.trim_start_matches('0').len() } else { 0 };
        Some((weight, if digits { run.trim_start_matches('0') } else { run }))
    })
}
