//! Memory that loading has used and freed.
#![allow(unsafe_code, reason = "the C library has no other way; the call cites its contract")]

/// Gives freed memory back to the system, which the allocator would keep: some ten times the size of `tokenizer.json`. No effect where the C
/// library is not glibc.
pub(crate) fn trim() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: it takes the allocator's locks, and frees nothing that is in use.
    unsafe {
        libc::malloc_trim(0);
    }
}
