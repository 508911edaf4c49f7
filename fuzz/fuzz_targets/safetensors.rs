//! Any bytes as weight file or as shard index: nothing panics, and a checkpoint that opens is read within its bounds.
//!
//! The first byte chooses: even, the rest is `model.safetensors`; odd, the rest is `model.safetensors.index.json` up to
//! the first zero byte and one shard after it. Length fields are repaired half of the time, so that the parser behind
//! them is reached.
#![no_main]

mod reading;

use std::borrow::Cow;

use int8_nn::checkpoint::Checkpoint;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some((&mode, rest)) = input.split_first() else { return };
    let files: Vec<(&str, Vec<u8>)> = if mode & 1 == 0 {
        vec![("model.safetensors", with_length(mode, rest))]
    } else {
        let end = rest.iter().position(|&byte| byte == 0).unwrap_or(rest.len());
        let (index, shard) = rest.split_at(end);
        let shard = shard.get(1..).unwrap_or_default();
        vec![("model.safetensors.index.json", index.to_vec()), ("a.safetensors", with_length(mode, shard))]
    };
    let files = files.into_iter().map(|(name, bytes)| (name.to_owned(), Cow::Owned(bytes)));
    match Checkpoint::from_bytes(files) {
        Ok(checkpoint) => reading::all(&checkpoint),
        // Building the message must not panic either.
        Err(error) => assert!(error.to_string().contains("embedded/"), "{error}"),
    }
});

/// Puts the right header length in front: the header ends at the last closing brace.
fn with_length(mode: u8, rest: &[u8]) -> Vec<u8> {
    let header = rest.iter().rposition(|&byte| byte == b'}').map_or(0, |end| end + 1);
    match mode & 2 {
        0 => rest.to_vec(),
        _ => [&(header as u64).to_le_bytes()[..], rest].concat(),
    }
}
