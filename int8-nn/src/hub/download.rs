//! Downloads one file into the cache: resumed, verified, then named.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::PathBuf;

use sha1::Sha1;
use sha2::{Digest, Sha256};

use super::cache::{self, Cache};
use super::client::{self, Client, Range, Stated};
use super::{HubError, ModelId};
use crate::files;

/// Bytes read at a time: many packets, a small part of L2.
const BLOCK: usize = 256 << 10;

/// Why a download stopped.
enum Stop {
    /// A retry may help.
    Broken(HubError),
    /// A retry will not help.
    Final(HubError),
}

/// Downloads a file unless its blob exists; returns the blob. `report` is called with the bytes on disk.
pub(super) fn file(
    client: &Client,
    cache: &Cache,
    id: &ModelId,
    name: &str,
    url: &str,
    stated: &Stated,
    report: &mut dyn FnMut(u64),
) -> Result<PathBuf, HubError> {
    let blob = cache.blob(id, &stated.checksum);
    let _lock = cache.lock(id, &stated.checksum)?;
    if blob.is_file() {
        report(stated.size);
        return Ok(blob);
    }
    cache::create_parent(&blob)?;
    let part = cache::incomplete(&blob);
    let mut download = Download::resume(client, id, name, url, stated, part, report)?;
    let mut failures = 0;
    let least = client.pace.least();
    while download.done < stated.size {
        let before = download.done;
        match download.stream() {
            Ok(()) => {}
            Err(Stop::Final(error)) => return Err(error),
            Err(Stop::Broken(error)) => {
                // A few bytes for each attempt are no progress.
                failures = if download.done - before.min(download.done) > least { 1 } else { failures + 1 };
                if failures >= client.attempts {
                    return Err(error);
                }
                std::thread::sleep(client.pause * 2_u32.saturating_pow(failures - 1));
            }
        }
    }
    download.finish(&blob)?;
    Ok(blob)
}

struct Download<'a> {
    client: &'a Client,
    id: &'a ModelId,
    name: &'a str,
    url: &'a str,
    stated: &'a Stated,
    part: PathBuf,
    file: File,
    hash: Hash,
    /// Bytes on disk, all of them hashed.
    done: u64,
    report: &'a mut dyn FnMut(u64),
}

impl<'a> Download<'a> {
    /// Starts from an earlier attempt's bytes.
    fn resume(
        client: &'a Client,
        id: &'a ModelId,
        name: &'a str,
        url: &'a str,
        stated: &'a Stated,
        part: PathBuf,
        report: &'a mut dyn FnMut(u64),
    ) -> Result<Self, HubError> {
        let file = match files::reopen(&part) {
            Ok(None) => files::create_anew(&part),
            Ok(Some(file)) => Ok(file),
            Err(error) => Err(error),
        };
        let file = file.map_err(|error| cache::io(&part, "write this file", error))?;
        let hash = Hash::new(stated);
        let mut download = Self { client, id, name, url, stated, part, file, hash, done: 0, report };
        let mut block = vec![0; BLOCK];
        loop {
            let read = download.file.read(&mut block);
            let length = read.map_err(|error| cache::io(&download.part, "read this file", error))?;
            if length == 0 {
                break;
            }
            download.hash.update(&block[..length]);
            download.done += bytes(length);
        }
        if download.done > stated.size {
            download.restart()?;
        }
        (download.report)(download.done);
        Ok(download)
    }

    /// Starts over.
    fn restart(&mut self) -> Result<(), HubError> {
        let failed = |error| cache::io(&self.part, "write this file", error);
        self.file.set_len(0).map_err(failed)?;
        self.file.seek(SeekFrom::Start(0)).map_err(failed)?;
        self.hash = Hash::new(self.stated);
        self.done = 0;
        Ok(())
    }

    /// Downloads the bytes after those on disk.
    fn stream(&mut self) -> Result<(), Stop> {
        let range = Range { begin: self.done, end: None };
        let answer = self.client.get(self.id, self.url, Some(range)).map_err(|error| match error {
            HubError::Network { .. } => Stop::Broken(error),
            // The server's file ends before the missing part.
            HubError::Status { status: 416, .. } => Stop::Final(self.wrong_size(self.done)),
            HubError::Status { status: 408 | 429 | 500.., .. } => Stop::Broken(error),
            _ => Stop::Final(error),
        })?;
        if self.done > 0 && answer.status().as_u16() == 200 {
            self.restart().map_err(Stop::Final)?;
        }
        let header = |name| answer.headers().get(name)?.to_str().ok();
        let begin = header("content-range")
            .and_then(|range| range.trim().strip_prefix("bytes ")?.split_once('-')?.0.parse::<u64>().ok());
        if begin.is_some_and(|begin| begin != self.done) {
            let reason = format!("it sends another part than requested (from byte {})", self.done);
            return Err(Stop::Final(HubError::Answer { url: self.url.to_owned(), reason }));
        }
        if let Some(length) = header("content-length").and_then(|length| length.parse::<u64>().ok())
            && self.done.saturating_add(length) != self.stated.size
        {
            return Err(Stop::Final(self.wrong_size(self.done.saturating_add(length))));
        }
        let mut body = client::Paced::new(answer.into_body().into_reader(), self.client.pace, None);
        let mut block = vec![0; BLOCK];
        loop {
            let length = match body.read(&mut block) {
                Ok(0) if self.done < self.stated.size => {
                    let ended = std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
                    return Err(Stop::Broken(client::network(self.url, &ended)));
                }
                Ok(0) => return Ok(()),
                Ok(length) => length,
                Err(error) => return Err(Stop::Broken(client::network(self.url, &error))),
            };
            if self.done + bytes(length) > self.stated.size {
                return Err(Stop::Final(self.wrong_size(self.done + bytes(length))));
            }
            let written = self.file.write_all(&block[..length]);
            written.map_err(|error| Stop::Final(cache::io(&self.part, "write this file", error)))?;
            self.hash.update(&block[..length]);
            self.done += bytes(length);
            (self.report)(self.done);
        }
    }

    /// Removes the partial file, which cannot become the file.
    fn wrong_size(&self, found: u64) -> HubError {
        // If it cannot be removed, the next attempt finds it wrong again.
        let _ = fs::remove_file(&self.part);
        HubError::Size { file: self.name.to_owned(), expected: self.stated.size, found }
    }

    /// Verifies the contents and gives them their name.
    fn finish(self, blob: &std::path::Path) -> Result<(), HubError> {
        if let Some(found) = self.hash.finish()
            && !found.eq_ignore_ascii_case(&self.stated.checksum)
        {
            let _ = fs::remove_file(&self.part);
            let expected = self.stated.checksum.clone();
            return Err(HubError::Checksum { file: self.name.to_owned(), expected, found });
        }
        self.file.sync_all().map_err(|error| cache::io(&self.part, "write this file", error))?;
        fs::rename(&self.part, blob).map_err(|error| cache::io(blob, "rename a file to this", error))
    }
}

/// Lossless.
fn bytes(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}

/// A file's checksum, in the hub's two forms.
enum Hash {
    /// Of files in large-file storage.
    Sha256(Sha256),
    /// Of files in the repository: git's blob hash.
    Git(Sha1),
    /// Another form, as of a mirror; size alone is checked.
    None,
}

impl Hash {
    fn new(stated: &Stated) -> Self {
        let is_hex = stated.checksum.chars().all(|digit| digit.is_ascii_hexdigit());
        match stated.checksum.len() {
            64 if is_hex => Self::Sha256(Sha256::new()),
            40 if is_hex => {
                let mut hash = Sha1::new();
                hash.update(format!("blob {}\0", stated.size));
                Self::Git(hash)
            }
            _ => Self::None,
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hash) => hash.update(bytes),
            Self::Git(hash) => hash.update(bytes),
            Self::None => {}
        }
    }

    fn finish(self) -> Option<String> {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        match self {
            Self::Sha256(hash) => Some(hex(&hash.finalize())),
            Self::Git(hash) => Some(hex(&hash.finalize())),
            Self::None => None,
        }
    }
}
