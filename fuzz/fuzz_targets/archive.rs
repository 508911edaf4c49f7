//! Any bytes as a PyTorch checkpoint, archive and all: nothing panics, and a checkpoint that opens is read within its bounds.
//!
//! Give it a corpus to begin with: `int8-nn/tests/data/torch/*/*.bin`.
#![no_main]

mod reading;

use std::borrow::Cow;

use int8_nn::checkpoint::Checkpoint;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    match Checkpoint::from_bytes([("pytorch_model.bin".to_owned(), Cow::Owned(bytes.to_vec()))]) {
        Ok(checkpoint) => reading::all(&checkpoint),
        Err(error) => assert!(error.to_string().contains("embedded/"), "{error}"),
    }
});
