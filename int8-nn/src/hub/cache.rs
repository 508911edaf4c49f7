//! The cache on disk, in the layout of Python's `huggingface_hub`:
//!
//! ```text
//! models--org--name/blobs/CHECKSUM              the contents
//! models--org--name/snapshots/COMMIT/FILE       links to them
//! models--org--name/refs/REVISION               the commit of a branch or tag at its last request
//! .locks/models--org--name/CHECKSUM.lock        held while a blob is being written
//! ```

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use super::{HubError, ModelId};

#[derive(Debug)]
pub(super) struct Cache {
    root: PathBuf,
}

/// Held while a blob is written; released when dropped.
#[derive(Debug)]
pub(super) struct Lock(#[allow(dead_code, reason = "the open file is the lock")] File);

/// Whether this is a commit, not a branch or tag.
pub(super) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.chars().all(|digit| digit.is_ascii_hexdigit())
}

impl Cache {
    pub(super) fn new(root: PathBuf) -> Self {
        Self { root }
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    fn folder_name(id: &ModelId) -> String {
        format!("models--{}", id.repository().replace('/', "--"))
    }

    pub(super) fn repository(&self, id: &ModelId) -> PathBuf {
        self.root.join(Self::folder_name(id))
    }

    pub(super) fn blob(&self, id: &ModelId, checksum: &str) -> PathBuf {
        self.repository(id).join("blobs").join(checksum)
    }

    pub(super) fn snapshot(&self, id: &ModelId, commit: &str) -> PathBuf {
        self.repository(id).join("snapshots").join(commit)
    }

    fn reference(&self, id: &ModelId) -> PathBuf {
        self.repository(id).join("refs").join(id.revision())
    }

    /// The folder of the model's locks.
    pub(super) fn locks(&self, id: &ModelId) -> PathBuf {
        self.root.join(".locks").join(Self::folder_name(id))
    }

    /// The cached commit of the id's revision.
    pub(super) fn commit(&self, id: &ModelId) -> Result<Option<String>, HubError> {
        if is_commit(id.revision()) {
            return Ok(Some(id.revision().to_owned()));
        }
        let path = self.reference(id);
        if !path.is_file() {
            return Ok(None);
        }
        let commit = fs::read_to_string(&path).map_err(|error| io(&path, "read this file", error))?;
        Ok(Some(commit.trim().to_owned()).filter(|commit| is_commit(commit)))
    }

    /// Stores the commit of the id's revision.
    pub(super) fn set_commit(&self, id: &ModelId, commit: &str) -> Result<(), HubError> {
        if is_commit(id.revision()) {
            return Ok(());
        }
        let path = self.reference(id);
        create_parent(&path)?;
        crate::files::replace(&path, &mut commit.as_bytes())
            .map_err(|error| io(&path, "write this file", error))
    }

    /// Waits until no other process writes this blob, Python's included.
    pub(super) fn lock(&self, id: &ModelId, checksum: &str) -> Result<Lock, HubError> {
        let path = self.locks(id).join(format!("{checksum}.lock"));
        create_parent(&path)?;
        let file = File::options().create(true).append(true).open(&path);
        let file = file.map_err(|error| io(&path, "open this file", error))?;
        match file.lock() {
            // Without file locks, checksums still hold.
            Err(error) if error.kind() != std::io::ErrorKind::Unsupported => {
                Err(io(&path, "lock this file", error))
            }
            _ => Ok(Lock(file)),
        }
    }

    /// Links `name` in a snapshot to a blob.
    pub(super) fn link(&self, snapshot: &Path, name: &str, blob: &Path) -> Result<(), HubError> {
        let link = snapshot.join(name);
        if link.exists() {
            return Ok(());
        }
        create_parent(&link)?;
        // A dangling link of a removed blob.
        if link.is_symlink() {
            fs::remove_file(&link).map_err(|error| io(&link, "replace this link", error))?;
        }
        let file_name = blob.file_name().unwrap_or_default();
        // From the link's folder: up to the repository, and down to its blobs.
        let depth = Path::new(name).components().count() + 1;
        let mut target: PathBuf = std::iter::repeat_n("..", depth).collect();
        target.extend([Path::new("blobs"), Path::new(file_name)]);
        match symlink(&target, &link) {
            // Another process linked it first.
            Err(_) if link.exists() => Ok(()),
            // Links need rights that the user lacks.
            Err(_) => fs::copy(blob, &link).map(drop).map_err(|error| io(&link, "write this file", error)),
            Ok(()) => Ok(()),
        }
    }
}

#[cfg(unix)]
fn symlink(target: &Path, link: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

#[cfg(not(unix))]
fn symlink(_: &Path, _: &Path) -> std::io::Result<()> {
    Err(std::io::ErrorKind::Unsupported.into())
}

/// The name of an incomplete file.
pub(super) fn incomplete(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".incomplete");
    name.into()
}

pub(super) fn create_parent(path: &Path) -> Result<(), HubError> {
    let Some(parent) = path.parent() else { return Ok(()) };
    fs::create_dir_all(parent).map_err(|error| io(parent, "make this folder", error))
}

pub(super) fn io(path: &Path, operation: &'static str, source: std::io::Error) -> HubError {
    HubError::Io { path: path.display().to_string(), operation, source }
}
