//! Checkpoints of the Hugging Face hub: `org/name` becomes a folder on disk.
//!
//! ```no_run
//! use int8_nn::hub::{Hub, Settings};
//!
//! let hub = Hub::new(Settings::from_environment())?;
//! let folder = hub.fetch(&"facebook/opt-125m".parse()?, &mut |_| {})?;
//! let model = int8_nn::Model::load(folder)?.int8().build()?;
//! # Ok::<(), int8_nn::Error>(())
//! ```
//!
//! The cache is shared with Python's `huggingface_hub`. Only needed files are downloaded: configuration, tokenizer, chat
//! template, and the weights in one format.
//!
//! Invariants:
//! - a file gets its name in the cache only after size and checksum were verified;
//! - a snapshot's links and its revision are written after all its files, so an interrupted download never looks complete;
//! - names from the hub stay inside the cache;
//! - the token is sent to the endpoint's own host only.

mod cache;
mod client;
mod download;
mod error;
mod files;
mod id;
mod settings;
mod stored;

use std::path::{Path, PathBuf};

use cache::Cache;
use client::{Client, Range};
use files::Weights;

pub use error::HubError;
pub use id::ModelId;
pub use settings::Settings;
pub use stored::CachedModel;

/// Progress of a download.
#[derive(Debug, Clone, Copy)]
pub struct Progress<'a> {
    /// The file in progress.
    pub file: &'a str,
    /// Files done before this one.
    pub files_done: usize,
    /// Files needed, as far as is known.
    pub files: usize,
    /// Bytes of this file on disk, earlier attempts included.
    pub bytes_done: u64,
    /// Bytes of this file.
    pub bytes: u64,
}

/// A repository at a revision.
#[derive(Debug)]
struct Snapshot {
    commit: String,
    names: Vec<String>,
}

/// Largest listing of a repository, in bytes: names of 100,000 files.
const LARGEST_LISTING: u64 = 32 << 20;

/// Largest header of a safetensors file, in bytes: the format's limit.
const LARGEST_HEADER: u64 = 100_000_000;

/// The Hugging Face hub, or a server with its API.
#[derive(Debug)]
pub struct Hub {
    client: Client,
    cache: Cache,
    offline: bool,
}

impl Hub {
    /// A client; makes no request.
    ///
    /// # Errors
    /// [`HubError::Settings`] for an endpoint that is no `http` or `https` address, or a bundle of certificates that
    /// cannot be read.
    pub fn new(settings: Settings) -> Result<Self, HubError> {
        let (cache, offline) = (Cache::new(settings.cache.clone()), settings.offline);
        Ok(Self { client: Client::new(settings)?, cache, offline })
    }

    /// Downloads the model's files unless they are in the cache, and returns their folder. `progress` is called as bytes arrive.
    ///
    /// Interrupted downloads resume, within this call and in a later one. If the hub cannot be reached, a complete copy in the
    /// cache is used.
    ///
    /// # Errors
    /// [`HubError`].
    pub fn fetch(&self, id: &ModelId, progress: &mut dyn FnMut(Progress<'_>)) -> Result<PathBuf, HubError> {
        if self.offline {
            return self.cached(id)?.ok_or_else(|| self.offline_error(id));
        }
        let snapshot = match self.snapshot(id) {
            Err(error @ HubError::Network { .. }) => return self.cached(id)?.ok_or(error),
            snapshot => snapshot?,
        };
        let (mut names, weights) = files::needed(id, &snapshot.names)?;
        let folder = self.cache.snapshot(id, &snapshot.commit);
        let mut links = Vec::new();
        let mut done = 0;
        if let Weights::Index(index) = &weights {
            // The index names the shards.
            let blob = self.file(id, &snapshot, index, (done, names.len() + 1), progress)?;
            names.extend(files::shards(&blob, index)?);
            links.push((index.clone(), blob));
            done += 1;
        }
        if let Weights::Single(name) = weights {
            names.push(name);
        }
        let count = done + names.len();
        for name in names {
            let blob = self.file(id, &snapshot, &name, (done, count), progress)?;
            links.push((name, blob));
            done += 1;
        }
        for (name, blob) in &links {
            self.cache.link(&folder, name, blob)?;
        }
        self.cache.set_commit(id, &snapshot.commit)?;
        Ok(folder)
    }

    /// The folder of a model that is complete in the cache; makes no request.
    ///
    /// # Errors
    /// [`HubError::Io`] if the cache cannot be read.
    pub fn cached(&self, id: &ModelId) -> Result<Option<PathBuf>, HubError> {
        let Some(commit) = self.cache.commit(id)? else { return Ok(None) };
        let folder = self.cache.snapshot(id, &commit);
        Ok(files::is_complete(id, &folder).then_some(folder))
    }

    /// The folder of the cache.
    pub fn cache(&self) -> &Path {
        self.cache.root()
    }

    /// The models in the cache, by name; makes no request. Models without an organisation (`gpt2`) are left out.
    ///
    /// # Errors
    /// [`HubError::Io`] if the cache cannot be read.
    pub fn models(&self) -> Result<Vec<CachedModel>, HubError> {
        stored::models(&self.cache)
    }

    /// Removes a model from the cache, with all its revisions; Python loses it, too. Returns the bytes freed, `None` if the cache
    /// does not have it.
    ///
    /// # Errors
    /// [`HubError::Busy`] while a process downloads it, [`HubError::Io`] if it cannot be removed.
    pub fn remove(&self, id: &ModelId) -> Result<Option<u64>, HubError> {
        stored::remove(&self.cache, id)
    }

    /// `config.json` and the safetensors headers of a model, without its weights, by file name; the configuration only, if it has
    /// no safetensors files. Nothing is written to the cache.
    ///
    /// # Errors
    /// As [`Self::fetch`].
    pub fn headers(&self, id: &ModelId) -> Result<Vec<(String, Vec<u8>)>, HubError> {
        if self.offline {
            return Err(self.offline_error(id));
        }
        let snapshot = self.snapshot(id)?;
        let read = |name: &str, range, limit| {
            self.client.bytes(id, &self.client.file(id, &snapshot.commit, name), range, limit)
        };
        let mut found = Vec::new();
        const CONFIG: &str = "config.json";
        if snapshot.names.iter().any(|name| name == CONFIG) {
            found.push((CONFIG.to_owned(), read(CONFIG, None, LARGEST_LISTING)?));
        }
        let (_, weights) = files::needed(id, &snapshot.names)?;
        let names = match weights {
            Weights::Index(index) if index.contains(".safetensors") => {
                files::shards_of(&read(&index, None, LARGEST_LISTING)?, &index)?
            }
            Weights::Single(name) if name.ends_with(".safetensors") => vec![name],
            _ => Vec::new(),
        };
        for name in names {
            let length = read(&name, Some(Range { begin: 0, end: Some(8) }), 8)?;
            let length = length.first_chunk().map_or(0, |length| u64::from_le_bytes(*length));
            if length > LARGEST_HEADER {
                let (expected, found) = (LARGEST_HEADER, length);
                return Err(HubError::Size { file: name, expected, found });
            }
            let range = Range { begin: 8, end: Some(8 + length) };
            let header = read(&name, Some(range), length)?;
            found.push((name, header));
        }
        Ok(found)
    }

    fn offline_error(&self, id: &ModelId) -> HubError {
        HubError::Offline { id: id.to_string(), cache: self.cache.root().display().to_string() }
    }

    /// Commit and file names of the model's revision.
    fn snapshot(&self, id: &ModelId) -> Result<Snapshot, HubError> {
        let url = self.client.listing(id);
        let text = self.client.bytes(id, &url, None, LARGEST_LISTING)?;
        let wrong = |reason: &str| HubError::Answer { url: url.clone(), reason: reason.to_owned() };
        let json: serde_json::Value =
            serde_json::from_slice(&text).map_err(|error| wrong(&format!("no JSON: {error}")))?;
        let commit = json["sha"].as_str().filter(|commit| cache::is_commit(commit));
        let commit = commit.ok_or_else(|| wrong("no commit (`sha`)"))?.to_owned();
        let files = json["siblings"].as_array().ok_or_else(|| wrong("no list of files (`siblings`)"))?;
        let names = files.iter().filter_map(|file| file["rfilename"].as_str());
        // Unsafe names belong to no model.
        let names = names.filter(|name| crate::checkpoint::is_safe_name(name)).map(str::to_owned).collect();
        Ok(Snapshot { commit, names })
    }

    /// The verified blob of a file, downloaded unless cached.
    fn file(
        &self,
        id: &ModelId,
        snapshot: &Snapshot,
        name: &str,
        (files_done, files): (usize, usize),
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<PathBuf, HubError> {
        // Linked in this snapshot means verified.
        let link = self.cache.snapshot(id, &snapshot.commit).join(name);
        if let Ok(blob) = link.canonicalize() {
            return Ok(blob);
        }
        let url = self.client.file(id, &snapshot.commit, name);
        let stated = self.client.describe(id, &url)?;
        let mut report =
            |bytes_done| progress(Progress { file: name, files_done, files, bytes_done, bytes: stated.size });
        download::file(&self.client, &self.cache, id, name, &url, &stated, &mut report)
    }
}
