//! What the cache holds: models, their sizes, and their removal.

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use super::cache::{Cache, io};
use super::{HubError, ModelId, files};

/// A model in the cache, with all its revisions.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct CachedModel {
    /// Its name, without a revision.
    pub id: ModelId,
    /// The commit of each branch and tag that was asked for.
    pub revisions: BTreeMap<String, String>,
    /// The folder of its revision `main`, or else of the first complete one; `None` while no download is complete.
    pub folder: Option<PathBuf>,
    /// Bytes on disk, those of incomplete downloads included.
    pub bytes: u64,
}

/// The models of the cache, by name.
pub(super) fn models(cache: &Cache) -> Result<Vec<CachedModel>, HubError> {
    let root = cache.root();
    let entries = match fs::read_dir(root) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(|error| io(root, "list this folder", error))?,
    };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let ids = names.filter_map(|name| {
        let (organization, name) = name.strip_prefix("models--")?.split_once("--")?;
        format!("{organization}/{name}").parse().ok()
    });
    let mut models: Vec<_> = ids.map(|id| model(cache, id)).collect();
    models.sort_by_key(|model| model.id.to_string());
    Ok(models)
}

fn model(cache: &Cache, id: ModelId) -> CachedModel {
    let repository = cache.repository(&id);
    let mut revisions = BTreeMap::new();
    references(&repository.join("refs"), "", &mut revisions);
    let snapshots = fs::read_dir(repository.join("snapshots")).into_iter().flatten();
    let commits = snapshots.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut commits: Vec<_> = revisions.get("main").cloned().into_iter().chain(commits).collect();
    commits.dedup();
    let folders = commits.iter().map(|commit| cache.snapshot(&id, commit));
    let folder = folders.into_iter().find(|folder| files::is_complete(&id, folder));
    let bytes = size(&repository);
    CachedModel { id, revisions, folder, bytes }
}

/// Branches and tags with their commits; a name may have slashes.
fn references(folder: &Path, prefix: &str, found: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let Ok(name) = entry.file_name().into_string() else { continue };
        let (path, name) = (entry.path(), format!("{prefix}{name}"));
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            references(&path, &format!("{name}/"), found);
        } else if let Ok(commit) = fs::read_to_string(&path) {
            found.insert(name, commit.trim().to_owned());
        }
    }
}

/// Bytes of the files below `folder`; links are not followed.
fn size(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let sizes = entries.map(|entry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => size(&entry.path()),
        Ok(metadata) if metadata.is_file() => metadata.len(),
        _ => 0,
    });
    sizes.sum()
}

/// Removes a model with all its revisions; returns the bytes freed, `None` if it is not in the cache.
pub(super) fn remove(cache: &Cache, id: &ModelId) -> Result<Option<u64>, HubError> {
    let repository = cache.repository(id);
    if !repository.is_dir() {
        return Ok(None);
    }
    let locks = cache.locks(id);
    for entry in fs::read_dir(&locks).into_iter().flatten().flatten() {
        let held = File::open(entry.path()).map(|file| file.try_lock());
        if let Ok(Err(TryLockError::WouldBlock)) = held {
            return Err(HubError::Busy { id: id.to_string() });
        }
    }
    let bytes = size(&repository);
    for folder in [&repository, &locks] {
        match fs::remove_dir_all(folder) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(io(folder, "remove this folder", error));
            }
            _ => {}
        }
    }
    Ok(Some(bytes))
}
