//! Writes a checkpoint of safetensors shards in one pass, in memory that does not depend on the model's size.
//!
//! Names, dtypes and shapes come first and determine shards, headers and every tensor's place. Contents can then be written in
//! any order and in pieces, and the same tensors always give the same bytes.
//!
//! An interrupted run never looks finished:
//! 1. a shard is written as `NAME.partial`, synced, and renamed when complete;
//! 2. then the index, then the other files, `config.json` last, each in the same way;
//! 3. a run note, `int8-write.partial`, exists from before the first shard until after `config.json`. It holds the caller's
//!    fingerprint: a later run resumes only if that is unchanged, and keeps the shards that have their final name.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use safetensors::tensor::TensorInfo;
use serde::ser::{Serialize, SerializeMap, Serializer};

use super::outliers::OUTLIERS;
use super::safetensors::METADATA_KEY;
use super::source::path_error;
use super::{CheckpointError, DType};
use crate::files;

/// A tensor to be written: its header entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// Its name, used once in a checkpoint.
    pub name: String,
    /// Its element type.
    pub dtype: DType,
    /// Its shape; empty for a scalar.
    pub shape: Vec<usize>,
}

impl TensorSpec {
    /// Its size in bytes, `None` if that overflows or is not whole bytes.
    pub fn byte_len(&self) -> Option<usize> {
        let elements = self.shape.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim))?;
        let bits = elements.checked_mul(self.dtype.bits())?;
        bits.is_multiple_of(8).then_some(bits / 8)
    }
}

/// What to do with a folder that already holds a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Existing {
    /// Refuse, finished or not.
    #[default]
    Refuse,
    /// Remove it first: configuration and index, then `model*.safetensors`. Other files stay. The folder must not be the source
    /// of the conversion.
    Replace,
    /// Continue an interrupted run with the same fingerprint; start if there is none.
    Resume,
}

/// How a checkpoint is written.
#[derive(Debug, Clone)]
pub struct WriteOptions {
    /// Bytes of tensors after which a new shard begins. A larger tensor gets a shard of its own.
    pub max_shard_bytes: u64,
    /// What to do with an earlier checkpoint in the folder.
    pub existing: Existing,
    /// Everything that the contents depend on: source and its state, settings, version. Resuming needs the same text.
    pub fingerprint: String,
}

impl Default for WriteOptions {
    /// Shards of 5 GB, as Hugging Face writes them; refuse to overwrite.
    fn default() -> Self {
        Self { max_shard_bytes: 5_000_000_000, existing: Existing::Refuse, fingerprint: String::new() }
    }
}

/// Writes the shards of one checkpoint. Dropping it before [`Self::finish`] leaves an unfinished folder, which a run
/// with [`Existing::Resume`] completes.
#[derive(Debug)]
pub struct CheckpointWriter {
    folder: PathBuf,
    shards: Vec<Shard>,
    places: HashMap<String, Place>,
    /// The shard written last, kept open: tensors come mostly in order.
    open: Option<(usize, File)>,
}

#[derive(Debug)]
struct Shard {
    name: String,
    header: Vec<u8>,
    /// Bytes of header and data.
    length: u64,
    /// Bytes of data not written yet.
    missing: u64,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// No file yet.
    Planned,
    /// Some of it is in `NAME.partial`.
    Partial,
    /// It has its final name.
    Done,
}

#[derive(Debug)]
struct Place {
    shard: usize,
    /// Bytes from the start of the file.
    begin: u64,
    length: u64,
    written: u64,
}

const PARTIAL: &str = ".partial";
/// In a folder that a writer has not finished.
pub(super) const RUN_NOTE: &str = "int8-write.partial";
const CONFIG: &str = "config.json";
pub(super) const INDEX: &str = "model.safetensors.index.json";

impl CheckpointWriter {
    /// Plans the shards in the order the tensors are given and prepares `folder`, creating it if need be.
    ///
    /// # Errors
    /// - [`CheckpointError::DuplicateTensor`], [`CheckpointError::ShapeOverflow`] for impossible tensors;
    /// - [`CheckpointError::Exists`] if the folder holds a checkpoint, or an unfinished one made from something else;
    /// - [`CheckpointError::Io`].
    pub fn create(
        folder: impl AsRef<Path>,
        tensors: &[TensorSpec],
        options: &WriteOptions,
    ) -> Result<Self, CheckpointError> {
        let folder = folder.as_ref().to_path_buf();
        let (shards, places) = plan(&folder, tensors, options.max_shard_bytes)?;
        let mut writer = Self { folder, shards, places, open: None };
        writer.prepare(options)?;
        Ok(writer)
    }

    /// Whether the tensor is complete, perhaps since an earlier run. `false` for a name that was not planned.
    pub fn is_written(&self, name: &str) -> bool {
        self.places.get(name).is_some_and(|place| place.written == place.length)
    }

    /// Bytes of all tensors together, and how many of them are written.
    pub fn progress(&self) -> (u64, u64) {
        let total = self.places.values().map(|place| place.length).sum();
        (total, self.places.values().map(|place| place.written).sum())
    }

    /// Writes the next bytes of a tensor, little-endian, row-major. Tensors may come in any order and in pieces. Bytes of a shard
    /// that an earlier run completed are skipped.
    ///
    /// # Errors
    /// [`CheckpointError::MissingTensor`] for a name that was not planned, [`CheckpointError::Selection`] for more bytes
    /// than planned, [`CheckpointError::Io`].
    pub fn write(&mut self, name: &str, bytes: &[u8]) -> Result<(), CheckpointError> {
        let Some(place) = self.places.get_mut(name) else {
            return Err(CheckpointError::MissingTensor {
                file: self.folder.display().to_string(),
                tensor: name.to_owned(),
                hint: " among the tensors planned for writing".to_owned(),
            });
        };
        let (number, shard) = (place.shard, &mut self.shards[place.shard]);
        if shard.state == State::Done {
            return Ok(());
        }
        let added = to_u64(bytes.len());
        if added > place.length - place.written {
            return Err(CheckpointError::Selection {
                file: self.folder.join(&shard.name).display().to_string(),
                tensor: name.to_owned(),
                expected: format!("{} bytes in all", place.length),
                found: format!("{added} after {}", place.written),
            });
        }
        let position = place.begin + place.written;
        let path = partial(&self.folder, &shard.name);
        if self.open.as_ref().is_none_or(|(open, _)| *open != number) {
            self.open = Some((number, open_shard(&path, shard)?));
        }
        if let Some((_, file)) = &mut self.open {
            let written = file.seek(SeekFrom::Start(position)).and_then(|_| file.write_all(bytes));
            written.map_err(|error| path_error(&path, "write to this file", error))?;
        }
        place.written += added;
        shard.missing -= added;
        if shard.missing == 0 { self.complete(number) } else { Ok(()) }
    }

    /// Copies another file of the checkpoint (tokenizer, licence, …) in pieces, under a temporary name until complete.
    ///
    /// # Errors
    /// [`CheckpointError::UnsafeName`] for a name outside the folder or one that the writer uses,
    /// [`CheckpointError::Io`].
    pub fn write_other(&self, name: &str, mut contents: impl Read) -> Result<(), CheckpointError> {
        let is_ours = [CONFIG, INDEX, RUN_NOTE].contains(&name) || name.ends_with(PARTIAL);
        if is_ours || self.shards.iter().any(|shard| shard.name == name) {
            return Err(self.unsafe_name(name));
        }
        self.check_name(name)?;
        write_from(&self.folder, name, &mut contents)
    }

    fn check_name(&self, name: &str) -> Result<(), CheckpointError> {
        if super::source::is_safe_name(name) { Ok(()) } else { Err(self.unsafe_name(name)) }
    }

    fn unsafe_name(&self, name: &str) -> CheckpointError {
        let file = self.folder.display().to_string();
        CheckpointError::UnsafeName { file, tensor: None, found: name.to_owned() }
    }

    /// Number of shards.
    pub fn shards(&self) -> usize {
        self.shards.len()
    }

    /// Writes the index if there is more than one shard, then `files` (name, contents), `config.json` among them last.
    /// The checkpoint is then complete and synced.
    ///
    /// # Errors
    /// [`CheckpointError::Unfinished`] for an incomplete tensor, [`CheckpointError::UnsafeName`] for a file name outside the
    /// folder, [`CheckpointError::Io`].
    pub fn finish(mut self, files: &[(&str, &[u8])]) -> Result<(), CheckpointError> {
        for number in 0..self.shards.len() {
            // A shard of empty tensors was never written to.
            if self.shards[number].missing == 0 && self.shards[number].state != State::Done {
                let path = partial(&self.folder, &self.shards[number].name);
                self.open = Some((number, open_shard(&path, &mut self.shards[number])?));
                self.complete(number)?;
            }
        }
        let mut unfinished: Vec<_> =
            self.places.iter().filter(|(_, place)| place.written < place.length).collect();
        unfinished.sort_by_key(|(name, _)| name.as_str());
        if let Some((name, place)) = unfinished.first() {
            return Err(CheckpointError::Unfinished {
                file: self.folder.join(&self.shards[place.shard].name).display().to_string(),
                tensor: (*name).clone(),
                expected: place.length,
                found: place.written,
            });
        }
        if self.shards.len() > 1 {
            write_file(&self.folder, INDEX, self.index().as_bytes())?;
        }
        for (name, contents) in files.iter().filter(|(name, _)| *name != CONFIG) {
            self.check_name(name)?;
            write_file(&self.folder, name, contents)?;
        }
        for (name, contents) in files.iter().filter(|(name, _)| *name == CONFIG) {
            write_file(&self.folder, name, contents)?;
        }
        remove(&self.folder.join(RUN_NOTE))
    }

    /// Syncs a complete shard and gives it its final name.
    fn complete(&mut self, number: usize) -> Result<(), CheckpointError> {
        let shard = &mut self.shards[number];
        let path = partial(&self.folder, &shard.name);
        if let Some((_, file)) = self.open.take() {
            file.sync_all().map_err(|error| path_error(&path, "sync this file to disk", error))?;
        }
        rename(&self.folder, &path, &shard.name)?;
        shard.state = State::Done;
        Ok(())
    }

    /// Treats what is in the folder by `options.existing`, and writes the run note.
    fn prepare(&mut self, options: &WriteOptions) -> Result<(), CheckpointError> {
        let folder = self.folder.clone();
        fs::create_dir_all(&folder).map_err(|error| path_error(&folder, "create this folder", error))?;
        let note = self.note(&options.fingerprint);
        let note_path = folder.join(RUN_NOTE);
        let earlier = match fs::read(&note_path) {
            Ok(earlier) => Some(earlier),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(path_error(&note_path, "read this file", error)),
        };
        let exists = |found: &str, help| CheckpointError::Exists {
            folder: folder.display().to_string(),
            found: found.to_owned(),
            help,
        };
        let present = weights_in(&folder)?;
        match (options.existing, earlier) {
            (Existing::Replace, _) => {
                // Configuration and index first, so that new weights never appear under an old configuration.
                for name in [CONFIG, INDEX, OUTLIERS] {
                    remove(&folder.join(name))?;
                }
                for name in present.iter().map(String::as_str).chain([RUN_NOTE]) {
                    remove(&folder.join(name))?;
                }
            }
            (Existing::Resume, Some(earlier)) if earlier == note.as_bytes() => self.adopt()?,
            (Existing::Resume, Some(_)) => {
                let help = "Resume with the settings and source it was started with, or replace it";
                return Err(exists("an unfinished checkpoint of another source or other settings", help));
            }
            (Existing::Refuse, Some(_)) => {
                return Err(exists(
                    "an unfinished checkpoint",
                    "Resume it, replace it, or name another folder",
                ));
            }
            (_, None) => {
                let config = folder.join(CONFIG).exists().then(|| CONFIG.to_owned());
                if let Some(found) = present.into_iter().chain(config).next() {
                    return Err(exists(&found, "Replace it, or name another folder"));
                }
            }
        }
        write_file(&folder, RUN_NOTE, note.as_bytes())
    }

    /// Adopts the shards that an earlier run of the same plan completed.
    fn adopt(&mut self) -> Result<(), CheckpointError> {
        for number in 0..self.shards.len() {
            let shard = &mut self.shards[number];
            let path = self.folder.join(&shard.name);
            match fs::metadata(&path) {
                Ok(metadata) if metadata.len() == shard.length => {}
                Ok(_) => {
                    remove(&path)?;
                    continue;
                }
                Err(_) => continue,
            }
            (shard.missing, shard.state) = (0, State::Done);
            for place in self.places.values_mut().filter(|place| place.shard == number) {
                place.written = place.length;
            }
        }
        Ok(())
    }

    /// The run note: the plan by its headers, and the caller's fingerprint.
    fn note(&self, fingerprint: &str) -> String {
        let mut note = String::new();
        for shard in &self.shards {
            note.push_str(&format!(
                "{} {} bytes {}\n",
                shard.name,
                shard.length,
                String::from_utf8_lossy(&shard.header)
            ));
        }
        note + fingerprint
    }

    fn index(&self) -> String {
        let weight_map: BTreeMap<&str, &str> = self
            .places
            .iter()
            .map(|(name, place)| (name.as_str(), self.shards[place.shard].name.as_str()))
            .collect();
        let index = serde_json::json!({
            "metadata": { "total_size": self.progress().0 },
            "weight_map": weight_map,
        });
        format!("{index:#}\n")
    }
}

/// Distributes the tensors over shards in the given order and determines every place.
fn plan(
    folder: &Path,
    tensors: &[TensorSpec],
    max_shard_bytes: u64,
) -> Result<(Vec<Shard>, HashMap<String, Place>), CheckpointError> {
    let mut groups: Vec<Vec<(&TensorSpec, usize)>> = vec![Vec::new()];
    let mut filled = 0u64;
    for tensor in tensors {
        let overflow = || CheckpointError::ShapeOverflow {
            file: folder.display().to_string(),
            tensor: tensor.name.clone(),
            found: tensor.shape.clone(),
        };
        let length = tensor.byte_len().ok_or_else(overflow)?;
        filled = filled.checked_add(to_u64(length)).ok_or_else(overflow)?;
        match groups.last_mut() {
            Some(group) if group.is_empty() || filled <= max_shard_bytes => group.push((tensor, length)),
            _ => {
                groups.push(vec![(tensor, length)]);
                filled = to_u64(length);
            }
        }
    }
    let count = groups.len();
    let mut shards = Vec::new();
    let mut places = HashMap::new();
    for (number, mut group) in groups.into_iter().enumerate() {
        let name = match count {
            1 => "model.safetensors".to_owned(),
            _ => format!("model-{:05}-of-{count:05}.safetensors", number + 1),
        };
        // As all writers of the format: wide types first, so that every tensor is aligned; then by name.
        group.sort_by(|(left, _), (right, _)| {
            right.dtype.to_stored().cmp(&left.dtype.to_stored()).then_with(|| left.name.cmp(&right.name))
        });
        let header = header(&group);
        let data_begin = 8 + to_u64(header.len());
        let mut begin = data_begin;
        for (tensor, length) in group {
            let length = to_u64(length);
            let place = Place { shard: number, begin, length, written: 0 };
            if places.insert(tensor.name.clone(), place).is_some() || tensor.name == METADATA_KEY {
                return Err(CheckpointError::DuplicateTensor {
                    file: folder.join(&name).display().to_string(),
                    tensor: tensor.name.clone(),
                    other: "the tensors to be written".to_owned(),
                });
            }
            begin += length;
        }
        shards.push(Shard {
            name,
            header,
            length: begin,
            missing: begin - data_begin,
            state: State::Planned,
        });
    }
    Ok((shards, places))
}

/// Header length and header of a file of these tensors, which are sorted into the order of their data. `None` if sizes
/// overflow.
pub(crate) fn file_header(tensors: &mut [TensorSpec]) -> Option<Vec<u8>> {
    tensors.sort_by(|left, right| {
        right.dtype.to_stored().cmp(&left.dtype.to_stored()).then_with(|| left.name.cmp(&right.name))
    });
    let sized: Option<Vec<_>> = tensors.iter().map(|tensor| Some((tensor, tensor.byte_len()?))).collect();
    let header = header(&sized?);
    Some([&to_u64(header.len()).to_le_bytes()[..], &header].concat())
}

/// The JSON header, padded with spaces to a multiple of 8 bytes. The tensors' data follow in the given order.
fn header(tensors: &[(&TensorSpec, usize)]) -> Vec<u8> {
    struct Entries<'a>(&'a [(&'a TensorSpec, usize)]);
    impl Serialize for Entries<'_> {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            let mut map = serializer.serialize_map(None)?;
            // Hugging Face refuses a file that does not name its framework.
            map.serialize_entry(METADATA_KEY, &BTreeMap::from([("format", "pt")]))?;
            let mut end = 0;
            for (tensor, length) in self.0 {
                let begin = end;
                end += length;
                let dtype = tensor.dtype.to_stored();
                let info = TensorInfo { dtype, shape: tensor.shape.clone(), data_offsets: (begin, end) };
                map.serialize_entry(&tensor.name, &info)?;
            }
            map.end()
        }
    }
    // Strings and numbers always serialise; an empty header would be refused on reading, not mistaken.
    let mut header = serde_json::to_vec(&Entries(tensors)).unwrap_or_default();
    header.resize(header.len().next_multiple_of(8), b' ');
    header
}

/// Opens `NAME.partial`, writing its header the first time.
fn open_shard(path: &Path, shard: &mut Shard) -> Result<File, CheckpointError> {
    let begun = shard.state == State::Partial;
    let opened = if begun { files::reopen(path) } else { Ok(None) };
    let opened = match opened {
        // It is this run's, or it has gone since.
        Ok(None) if begun => Err(std::io::ErrorKind::NotFound.into()),
        Ok(None) => files::create_anew(path),
        Ok(Some(file)) => Ok(file),
        Err(error) => Err(error),
    };
    let mut file = opened.map_err(|error| path_error(path, "create this file", error))?;
    if !begun {
        let length = to_u64(shard.header.len());
        let written = file
            .set_len(shard.length)
            .and_then(|()| file.write_all(&length.to_le_bytes()))
            .and_then(|()| file.write_all(&shard.header));
        written.map_err(|error| path_error(path, "write to this file", error))?;
        shard.state = State::Partial;
    }
    Ok(file)
}

/// The model's weight files and index in the folder, finished or not; other safetensors files do not count.
fn weights_in(folder: &Path) -> Result<Vec<String>, CheckpointError> {
    let failed = |error| path_error(folder, "list this folder", error);
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        let Some(name) = name.to_str() else { continue };
        let final_name = name.strip_suffix(PARTIAL).unwrap_or(name);
        if final_name.starts_with("model") && (final_name.ends_with(".safetensors") || final_name == INDEX) {
            names.push(name.to_owned());
        }
    }
    names.sort_unstable();
    Ok(names)
}

fn partial(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}{PARTIAL}"))
}

/// Writes a small file atomically: absent or complete under its name.
fn write_file(folder: &Path, name: &str, mut contents: &[u8]) -> Result<(), CheckpointError> {
    write_from(folder, name, &mut contents)
}

fn write_from(folder: &Path, name: &str, contents: &mut dyn Read) -> Result<(), CheckpointError> {
    let path = partial(folder, name);
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(|error| path_error(parent, "create this folder", error))?;
    }
    let target = folder.join(name);
    files::replace_by(&target, &path, contents).map_err(|error| path_error(&target, "write this file", error))
}

/// Gives a synced file its final name, and syncs the name.
fn rename(folder: &Path, from: &Path, name: &str) -> Result<(), CheckpointError> {
    let path = folder.join(name);
    fs::rename(from, &path).map_err(|error| path_error(&path, "give a file this name", error))?;
    sync_folder(path.parent().unwrap_or(folder))
}

fn remove(path: &Path) -> Result<(), CheckpointError> {
    match fs::remove_file(path) {
        Ok(()) => sync_folder(path.parent().unwrap_or(path)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(path_error(path, "remove this file", error)),
    }
}

fn sync_folder(folder: &Path) -> Result<(), CheckpointError> {
    files::sync_folder(folder).map_err(|error| path_error(folder, "sync this folder to disk", error))
}

/// Lossless.
fn to_u64(size: usize) -> u64 {
    u64::try_from(size).unwrap_or(u64::MAX)
}
