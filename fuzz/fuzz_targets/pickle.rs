//! Any bytes as the pickle of a PyTorch checkpoint with two storages, `0` of 64 bytes and `1` of 7: nothing panics, no
//! memory is taken beyond what the pickle's length allows, and a checkpoint that opens is read within its bounds.
#![no_main]

mod reading;

use std::borrow::Cow;

use int8_nn::checkpoint::Checkpoint;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|pickle: &[u8]| {
    let storage: Vec<u8> = (0..64).collect();
    let archive = reading::zip(&[("m/data.pkl", pickle), ("m/data/0", &storage), ("m/data/1", &[0; 7])]);
    match Checkpoint::from_bytes([("pytorch_model.bin".to_owned(), Cow::Owned(archive))]) {
        Ok(checkpoint) => reading::all(&checkpoint),
        // Building the message must not panic either.
        Err(error) => assert!(error.to_string().contains("embedded/"), "{error}"),
    }
});
