//! Memory-mapped files: the only unsafe code of checkpoint reading.
#![allow(unsafe_code, reason = "a file mapping cannot be made without it; the contract is stated below")]

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

/// A whole file mapped read-only.
///
/// # Contract
/// **The file must not be truncated or rewritten in place while it is mapped**: reading a truncated page raises SIGBUS, a
/// rewritten one changes under a shared reference. A program that wants an error instead of the signal installs a handler, which
/// asks [`mapped_file_at`] for the file. Renaming a new file over it is fine, since the mapping keeps the old one;
/// Hugging Face's tools do that. [`Checkpoint::open`](super::Checkpoint::open) passes this on to its callers.
#[derive(Debug)]
pub(super) struct Mapping {
    map: memmap2::Mmap,
    /// Its place in [`MAPPED`], if there was one.
    _entry: Option<Entry>,
}

impl Mapping {
    /// Maps `file` from its first to its last byte as they are now.
    pub(super) fn new(file: &File, path: &Path) -> io::Result<Self> {
        // SAFETY: the mapping is read-only and private to this type, and the type's contract forbids changing the
        // file underneath; `memmap2` keeps the descriptor's file alive for as long as the mapping lives.
        let map = unsafe { memmap2::Mmap::map(file)? };
        let begin = map.as_ptr().addr();
        let entry = Entry::new(begin, begin + map.len(), path.display().to_string());
        Ok(Self { map, _entry: entry })
    }

    /// The file's bytes.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// Drops the pages of `range` (bytes from the start of the file); reading it again reads the file again. No effect where the
    /// system has no such call.
    pub(super) fn release(&self, range: Range<usize>) {
        #[cfg(unix)]
        if range.end <= self.map.len() && range.start < range.end {
            // SAFETY: DONTNEED on a shared, read-only file mapping drops clean pages only; the next read faults the
            // same bytes in from the file, which the type's contract keeps unchanged.
            let advised = unsafe {
                self.map.unchecked_advise_range(
                    memmap2::UncheckedAdvice::DontNeed,
                    range.start,
                    range.end - range.start,
                )
            };
            // Refused advice costs memory, not correctness.
            drop(advised);
        }
        #[cfg(not(unix))]
        let _ = range;
    }
}

/// Mapped files that [`mapped_file_at`] finds: most models have fewer shards.
const MOST_MAPPED: usize = 1024;

/// One mapped file: begin and end of its addresses (0 if the place is free), and its name.
struct Mapped {
    begin: AtomicUsize,
    end: AtomicUsize,
    name: AtomicPtr<String>,
}

static MAPPED: [Mapped; MOST_MAPPED] = [const {
    Mapped {
        begin: AtomicUsize::new(0),
        end: AtomicUsize::new(0),
        name: AtomicPtr::new(std::ptr::null_mut()),
    }
}; MOST_MAPPED];

/// A place in [`MAPPED`], held as long as the mapping; the name is not freed before it is taken out.
#[derive(Debug)]
struct Entry(usize);

impl Entry {
    fn new(begin: usize, end: usize, name: String) -> Option<Self> {
        let free =
            |place: &Mapped| place.end.compare_exchange(0, end, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        let place = MAPPED.iter().position(free)?;
        MAPPED[place].name.store(Box::into_raw(Box::new(name)), Ordering::Release);
        // From here on it is found.
        MAPPED[place].begin.store(begin, Ordering::Release);
        Some(Self(place))
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let place = &MAPPED[self.0];
        place.begin.store(0, Ordering::Release);
        let name = place.name.swap(std::ptr::null_mut(), Ordering::AcqRel);
        if !name.is_null() {
            // SAFETY: `name` came out of `Box::into_raw` in `new`, and the swap has taken it out of the table; a handler that
            // still reads it runs because of an access to the mapping, which is not dropped while it is accessed.
            drop(unsafe { Box::from_raw(name) });
        }
        place.end.store(0, Ordering::Release);
    }
}

/// Calls `tell` with the file that is mapped at this address, if one is. Allocates nothing and takes no lock: it may be called in a
/// signal handler that an access to the mapping raised.
pub fn mapped_file_at(address: usize, tell: &mut dyn FnMut(&str)) {
    for place in &MAPPED {
        let begin = place.begin.load(Ordering::Acquire);
        if begin == 0 || !(begin..place.end.load(Ordering::Acquire)).contains(&address) {
            continue;
        }
        let name = place.name.load(Ordering::Acquire);
        if !name.is_null() {
            // SAFETY: the name of a mapping lives as long as it does, and the caller's thread is reading the mapping.
            tell(unsafe { &*name });
            return;
        }
    }
}
