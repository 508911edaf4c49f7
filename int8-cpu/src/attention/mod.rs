//! Attention over a KV cache in pages, in f32 arithmetic or, to a cache of bf16 on AMX tiles, in bf16 with sums in f32: causal or over
//! whole sequences, with grouped queries, position biases, windows and soft caps.

mod attend;
mod kv_pages;
mod kv_write;
mod query;
#[cfg(any(target_arch = "x86_64", test))]
mod tiles;

pub use kv_pages::{KvPages, KvSequence, PAGE_POSITIONS};
pub use kv_write::KvRows;
pub use query::{Attention, Bias, Query};
