//! Memory-mapped files: the only unsafe code of checkpoint reading.
#![allow(unsafe_code, reason = "a file mapping cannot be made without it; the contract is stated below")]

use std::fs::File;
use std::io;
use std::ops::Range;

/// A whole file mapped read-only.
///
/// # Contract
/// **The file must not be truncated or rewritten in place while it is mapped**: reading a truncated page raises SIGBUS, a
/// rewritten one changes under a shared reference. Renaming a new file over it is fine, since the mapping keeps the old one;
/// Hugging Face's tools do that. [`Checkpoint::open`](super::Checkpoint::open) passes this on to its callers.
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

    /// Drops the pages of `range` (bytes from the start of the file); reading it again reads the file again. No effect where the
    /// system has no such call.
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
            // Refused advice costs memory, not correctness.
            drop(advised);
        }
        #[cfg(not(unix))]
        let _ = range;
    }
}
