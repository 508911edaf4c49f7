//! Attention over a KV cache in pages, in f32 arithmetic: causal or over whole sequences, with grouped queries, position biases,
//! windows and soft caps.

mod attend;
mod kv_pages;

pub use attend::{Attention, Bias, Query};
pub use kv_pages::{KvPages, KvSequence, PAGE_POSITIONS};
