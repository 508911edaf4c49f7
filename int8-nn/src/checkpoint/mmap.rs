//! Memory-mapped files: the only unsafe code of checkpoint reading.
#![allow(unsafe_code, reason = "a file mapping cannot be made without it; the contract is stated below")]

use std::fs::File;
use std::io;
use std::ops::Range;

/// A whole file mapped read-only.
///
/// # Contract
/// **The file must not be truncated or rewritten in place while it is mapped.** Nothing on this side can enforce
/// that: a truncated page raises SIGBUS when it is read, a rewritten one changes under a shared reference. Replacing a
/// checkpoint by renaming a new file over it is fine, since the mapping keeps the old file. This is what every tool
/// of the field (Hugging Face's downloads and `save_pretrained` included) does, and the documentation of
/// [`Checkpoint::open`](super::Checkpoint::open) repeats it.
#[derive(Debug)]
pub(super) struct Mapping(memmap2::Mmap);

impl Mapping {
    /// Maps `file` from its first to its last byte as they are now.
    pub(super) fn new(file: &File) -> io::Result<Self> {
        // SAFETY: the mapping is read-only and private to this type, and the type's contract forbids changing the
        // file underneath; `memmap2` keeps the descriptor's file alive for as long as the mapping lives.
        let map = unsafe { memmap2::Mmap::map(file)? };
        Ok(Self(map))
    }

    /// The file's bytes.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Lets the system take back the memory that holds `range` (bytes from the start of the file); reading it again
    /// reads the file again. Does nothing where the system has no such call.
    pub(super) fn release(&self, range: Range<usize>) {
        #[cfg(unix)]
        if range.end <= self.0.len() && range.start < range.end {
            // SAFETY: DONTNEED on a shared, read-only file mapping drops clean pages only; the next read faults the
            // same bytes in from the file, which the type's contract keeps unchanged.
            let advised = unsafe {
                self.0.unchecked_advise_range(
                    memmap2::UncheckedAdvice::DontNeed,
                    range.start,
                    range.end - range.start,
                )
            };
            // Advice that is refused costs memory, not correctness.
            drop(advised);
        }
        #[cfg(not(unix))]
        let _ = range;
    }
}
