//! Files are written whole: under another name first, which nobody can have prepared, then renamed.

use std::ffi::OsString;
use std::fs::{self, File};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// Attempts to find a name that is free; 64 random bits need one.
const ATTEMPTS: u32 = 8;

/// Gives the file `path` these contents, or leaves it as it is: they are written beside it into a file of a random name that did
/// not exist, synced to disk, and renamed. A link at `path` is replaced, not followed.
///
/// The permissions of an earlier file stay.
///
/// # Errors
/// When the folder does not exist or cannot be written to, or the disk is full; nothing is left behind.
pub fn replace(path: &Path, contents: &mut dyn Read) -> io::Result<()> {
    let (temporary, file) = create_beside(path)?;
    finish(path, &temporary, file, contents)
}

/// [`replace`] by way of the file `temporary`, for a caller that must find it again after an interruption.
pub(crate) fn replace_by(path: &Path, temporary: &Path, contents: &mut dyn Read) -> io::Result<()> {
    let file = create_anew(temporary)?;
    finish(path, temporary, file, contents)
}

/// Sees that [`replace`] can write `path`: makes a file beside it, and removes it.
///
/// # Errors
/// As [`replace`]; and when a file is there that may not be written.
pub fn check_replaceable(path: &Path) -> io::Result<()> {
    if fs::metadata(path).is_ok_and(|metadata| metadata.is_file()) {
        // A rename would ignore that the file is read-only.
        File::options().write(true).open(path)?;
    }
    let (temporary, file) = create_beside(path)?;
    drop(file);
    fs::remove_file(temporary)
}

/// A new, empty file of this name. What has it is removed first, so that a link is not followed.
pub(crate) fn create_anew(path: &Path) -> io::Result<File> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    File::options().read(true).write(true).create_new(true).open(path)
}

/// Opens the regular file `path` to continue it; `None` where there is none. A link of this name is removed, not followed.
pub(crate) fn reopen(path: &Path) -> io::Result<Option<File>> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_file() => File::options().read(true).write(true).open(path).map(Some),
        Ok(metadata) if metadata.is_dir() => Err(io::ErrorKind::IsADirectory.into()),
        Ok(_) => fs::remove_file(path).map(|()| None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// A new file of a random name in the folder of `path`.
fn create_beside(path: &Path) -> io::Result<(PathBuf, File)> {
    let Some(name) = path.file_name() else { return Err(io::ErrorKind::InvalidFilename.into()) };
    let mut failed = io::ErrorKind::AlreadyExists.into();
    for _ in 0..ATTEMPTS {
        // The standard library's hasher has random keys.
        let mut random = OsString::from(format!(".{:016x}.", RandomState::new().hash_one(ATTEMPTS)));
        // A long name plus a suffix may be too long for the file system.
        random.push(if name.len() < 200 { name } else { "whole".as_ref() });
        let temporary = path.with_file_name(random);
        match File::options().write(true).create_new(true).open(&temporary) {
            Ok(file) => return Ok((temporary, file)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => failed = error,
            Err(error) => return Err(error),
        }
    }
    Err(failed)
}

fn finish(path: &Path, temporary: &Path, mut file: File, contents: &mut dyn Read) -> io::Result<()> {
    let written = (|| {
        if let Ok(earlier) = fs::symlink_metadata(path)
            && earlier.is_file()
        {
            file.set_permissions(earlier.permissions())?;
        }
        io::copy(contents, &mut file)?;
        file.sync_all()?;
        fs::rename(temporary, path)
    })();
    if written.is_err() {
        // The first error is the one to report.
        let _ = fs::remove_file(temporary);
    }
    written?;
    sync_folder(path.parent().unwrap_or(path))
}

/// Syncs a folder, where the system can, so that names in it are durable.
pub(crate) fn sync_folder(folder: &Path) -> io::Result<()> {
    if cfg!(unix) {
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        match File::open(folder).and_then(|folder| folder.sync_all()) {
            // Some file systems (FUSE, network) cannot.
            Err(error)
                if matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported) =>
            {
                Ok(())
            }
            synced => synced,
        }
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
        let mut names: Vec<String> = entries.map(|name| name.into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_is_replaced_or_untouched() {
        struct Broken;
        impl Read for Broken {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::ErrorKind::ConnectionReset.into())
            }
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        replace(&path, &mut &b"one"[..]).unwrap();
        assert!(replace(&path, &mut (&b"two"[..]).chain(Broken)).is_err());
        assert_eq!(fs::read(&path).unwrap(), b"one");
        replace(&path, &mut &b"three"[..]).unwrap();
        check_replaceable(&path).unwrap();
        check_replaceable(&folder.path().join("new")).unwrap();
        assert!(check_replaceable(&folder.path().join("no/new")).is_err());
        assert_eq!(
            (fs::read(&path).unwrap(), names(folder.path())),
            (b"three".to_vec(), vec!["f".to_owned()])
        );
        let long = folder.path().join("l".repeat(250));
        replace(&long, &mut &b"long"[..]).unwrap();
        assert_eq!(fs::read(&long).unwrap(), b"long");
    }

    #[cfg(unix)]
    #[test]
    fn no_prepared_link_is_followed() {
        let folder = tempfile::tempdir().unwrap();
        let [victim, part, path] = ["victim", "f.part", "f"].map(|name| folder.path().join(name));
        fs::write(&victim, "kept").unwrap();
        let link = || std::os::unix::fs::symlink(&victim, &part).unwrap();
        link();
        replace_by(&path, &part, &mut &b"new"[..]).unwrap();
        link();
        assert!(reopen(&part).unwrap().is_none());
        assert!(reopen(&path).unwrap().is_some());
        link();
        create_anew(&part).unwrap();
        assert_eq!(
            (fs::read(&victim).unwrap(), fs::read(&path).unwrap()),
            (b"kept".to_vec(), b"new".to_vec())
        );
        assert!(fs::symlink_metadata(&path).unwrap().is_file() && fs::read(&part).unwrap().is_empty());
    }

    #[cfg(unix)]
    #[test]
    fn permissions_stay() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        fs::write(&path, "one").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        replace(&path, &mut &b"two"[..]).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
    }
}
