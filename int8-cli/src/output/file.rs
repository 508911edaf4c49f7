//! Files that options name: checked before the work, written after it, all in one way.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use int8_nn::files;

use crate::failure::Failure;

/// Most symbolic links from a name to a file, as Linux has it.
const MOST_LINKS: usize = 40;

/// Whether `-` gives standard output to a file's contents.
static OUTPUT_TAKEN: AtomicBool = AtomicBool::new(false);

/// Whether a file's contents go to standard output, so that texts for the reader do not.
pub(super) fn output_is_taken() -> bool {
    OUTPUT_TAKEN.load(Ordering::Relaxed)
}

/// A file to write, which is known to be writable.
#[derive(Debug, Clone)]
pub(crate) struct OutputFile {
    /// As given.
    path: PathBuf,
    /// The option that names it, for errors.
    option: &'static str,
    place: Place,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    /// `-`, or a path that is standard output already.
    StandardOutput,
    /// A path that is standard error already.
    StandardError,
    /// A device, FIFO or other special file: written into.
    Node,
    /// A regular file, or a name that is free: replaced as a whole. Links are followed to it.
    File(PathBuf),
}

impl OutputFile {
    /// The file that an option names.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn new(option: &'static str, path: &Path) -> Result<Self, Failure> {
        let place = Place::of(path).map_err(|error| failure(option, path, &error))?;
        if place == Place::StandardOutput && OUTPUT_TAKEN.swap(true, Ordering::Relaxed) {
            let problem = format!("{option} {}: standard output is in use already", path.display());
            return Err(Failure::usage(problem));
        }
        Ok(Self { path: path.to_owned(), option, place })
    }

    /// [`new`](Self::new) for an option that may be absent.
    pub(crate) fn given(option: &'static str, path: Option<&Path>) -> Result<Option<Self>, Failure> {
        path.map(|path| Self::new(option, path)).transpose()
    }

    /// Its path as given.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Writes the contents: a file as a whole, so that an earlier one stays until the new one is complete.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn write(&self, mut contents: &[u8]) -> Result<(), Failure> {
        let all = |writer: &mut dyn Write| writer.write_all(contents).and_then(|()| writer.flush());
        let written = match &self.place {
            // The reader may have stopped early, as `head` does.
            Place::StandardOutput => return Ok(all(&mut io::stdout().lock())?),
            Place::StandardError => all(&mut io::stderr().lock()),
            Place::Node => {
                fs::File::options().write(true).open(&self.path).and_then(|mut file| all(&mut file))
            }
            Place::File(path) => files::replace(path, &mut contents),
        };
        written.map_err(|error| failure(self.option, &self.path, &error))
    }
}

impl Place {
    fn of(path: &Path) -> io::Result<Self> {
        if path.as_os_str() == "-" || is_stream(path, "/dev/stdout") {
            return Ok(Self::StandardOutput);
        }
        if is_stream(path, "/dev/stderr") {
            return Ok(Self::StandardError);
        }
        match fs::metadata(path) {
            Ok(metadata) if metadata.is_dir() => Err(io::ErrorKind::IsADirectory.into()),
            Ok(metadata) if metadata.is_file() && !is_descriptor(path) => {
                let target = fs::canonicalize(path)?;
                files::check_replaceable(&target)?;
                Ok(Self::File(target))
            }
            Ok(_) => Ok(Self::Node),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let target = end_of_links(path)?;
                files::check_replaceable(&target)?;
                Ok(Self::File(target))
            }
            Err(error) => Err(error),
        }
    }
}

/// Whether `path` is the file of a standard stream: replacing it would take the stream from under the program.
fn is_stream(path: &Path, stream: &str) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let identity = |path: &Path| fs::metadata(path).ok().map(|found| (found.dev(), found.ino()));
        identity(path).is_some_and(|found| identity(Path::new(stream)) == Some(found))
    }
    #[cfg(not(unix))]
    {
        let _ = (path, stream);
        false
    }
}

/// Whether `path` is an open file of a process, such as `/dev/fd/3`: it is that file, not its name, that is meant.
fn is_descriptor(path: &Path) -> bool {
    let parent = path.parent().and_then(|parent| fs::canonicalize(parent).ok());
    parent.is_some_and(|parent| parent.starts_with("/proc") || parent.starts_with("/dev"))
}

/// The name to which a dangling link leads; the path itself where it is free.
fn end_of_links(path: &Path) -> io::Result<PathBuf> {
    let mut path = path.to_owned();
    for _ in 0..MOST_LINKS {
        match fs::symlink_metadata(&path) {
            Ok(found) if found.is_symlink() => {
                let target = fs::read_link(&path)?;
                path = path.parent().unwrap_or(Path::new("")).join(target);
            }
            _ => return Ok(path),
        }
    }
    Err(io::Error::other("too many symbolic links"))
}

fn failure(option: &str, path: &Path, error: &io::Error) -> Failure {
    let failure = Failure::new(format!("{option} {}: {error}", path.display()));
    match error.kind() {
        io::ErrorKind::NotFound => failure.hint("its folder does not exist; make it, or give another"),
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            failure.hint("give a file that may be written")
        }
        io::ErrorKind::IsADirectory => failure.hint("give the name of a file in it"),
        io::ErrorKind::StorageFull => failure.hint("make room, or give a file on another disk"),
        _ => failure,
    }
}

#[cfg(all(test, unix))]
mod tests {
    use std::io::Read;
    use std::os::unix::fs::{FileTypeExt, symlink};
    use std::process::Command;

    use super::*;

    fn written(path: &Path, contents: &[u8]) -> Result<(), String> {
        OutputFile::new("--out", path)
            .and_then(|file| file.write(contents))
            .map_err(|failure| failure.to_string())
    }

    #[test]
    fn a_link_leads_to_its_target() {
        let folder = tempfile::tempdir().expect("a folder");
        let [target, link, second, dangling] =
            ["target", "link", "second", "dangling"].map(|name| folder.path().join(name));
        fs::write(&target, "old").expect("a file");
        symlink("target", &link).expect("a link");
        symlink(&link, &second).expect("a link");
        symlink("not-there", &dangling).expect("a link");
        written(&second, b"new").expect("written");
        written(&dangling, b"made").expect("written");
        assert_eq!(fs::read(&target).expect("the file"), b"new");
        assert_eq!(fs::read(folder.path().join("not-there")).expect("the file"), b"made");
        for link in [&link, &second, &dangling] {
            assert!(fs::symlink_metadata(link).expect("the link").is_symlink());
        }
        assert_eq!(fs::read_dir(folder.path()).expect("the folder").count(), 5, "nothing else is left");
        symlink("b", folder.path().join("a")).expect("a link");
        symlink("a", folder.path().join("b")).expect("a link");
        assert!(written(&folder.path().join("a"), b"x").is_err(), "a circle of links");
    }

    #[test]
    fn a_fifo_is_written_into() {
        let folder = tempfile::tempdir().expect("a folder");
        let [fifo, link] = ["fifo", "link"].map(|name| folder.path().join(name));
        assert!(Command::new("mkfifo").arg(&fifo).status().expect("mkfifo").success());
        symlink(&fifo, &link).expect("a link");
        for path in [&fifo, &link] {
            let reader = fifo.clone();
            let reader = std::thread::spawn(move || {
                let mut read = Vec::new();
                fs::File::open(reader).and_then(|mut file| file.read_to_end(&mut read)).map(|_| read)
            });
            written(path, b"through").expect("written");
            assert_eq!(reader.join().expect("a reader").expect("read"), b"through");
            assert!(fs::symlink_metadata(&fifo).expect("the FIFO").file_type().is_fifo());
        }
    }

    /// As root on a node of its own, otherwise on the system's, which only root could replace.
    #[test]
    fn a_device_is_written_into() {
        let folder = tempfile::tempdir().expect("a folder");
        let own = folder.path().join("null");
        let made = Command::new("mknod").arg(&own).args(["c", "1", "3"]).output();
        let own = match made {
            // Containers forbid opening what they let make.
            Ok(made) if made.status.success() && fs::File::options().write(true).open(&own).is_ok() => own,
            _ => {
                println!("/dev/null instead of a node made with mknod, which needs root");
                PathBuf::from("/dev/null")
            }
        };
        written(&own, b"gone").expect("written");
        assert!(fs::symlink_metadata(&own).expect("the node").file_type().is_char_device());
        assert_eq!(
            written(Path::new("/dev/full"), b"x").map_err(|error| error.contains("/dev/full")),
            Err(true)
        );
    }

    #[test]
    fn what_cannot_be_written_is_refused_before() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("file");
        fs::write(&file, "kept").expect("a file");
        for path in [folder.path().to_owned(), folder.path().join("no/file"), file.join("below")] {
            let refused = OutputFile::new("--csv", &path).expect_err("refused").to_string();
            assert!(refused.starts_with(&format!("--csv {}: ", path.display())), "{refused}");
        }
        assert_eq!(fs::read(&file).expect("the file"), b"kept");
    }
}
