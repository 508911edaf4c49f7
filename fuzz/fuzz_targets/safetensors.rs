//! Any bytes as weight file or as shard index: nothing panics, and whatever opens reads within its bounds.
//!
//! The first byte chooses: even, the rest is `model.safetensors`; odd, the rest is `model.safetensors.index.json` up to
//! the first zero byte and one shard after it. Length fields are repaired half of the time, so that the parser behind
//! them is reached.
#![no_main]

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
        Ok(checkpoint) => read_all(&checkpoint),
        // Building the message is part of what must not panic.
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

fn read_all(checkpoint: &Checkpoint) {
    for tensor in checkpoint.tensors() {
        assert_eq!(tensor.bytes().len() * 8, tensor.len() * tensor.dtype().bits());
        let lengths = [
            tensor.to_f32().map(|values| values.len()),
            tensor.to_f16().map(|values| values.len()),
            tensor.to_bf16().map(|values| values.len()),
            tensor.to_vec::<u8>().map(|values| values.len()),
            tensor.to_vec::<i32>().map(|values| values.len()),
            tensor.to_vec::<i64>().map(|values| values.len()),
            tensor.as_i8().map(<[i8]>::len),
            tensor.stored::<f32>().map(|values| values.len()),
        ];
        for length in lengths.into_iter().flatten() {
            assert_eq!(length, tensor.len());
        }
        if let Ok((rows, columns)) = tensor.matrix_shape() {
            let gathered = tensor.columns::<f32>(&[0]);
            assert!(columns > 0 || gathered.is_err());
            if rows > 0 && columns <= tensor.len() {
                let _ = tensor.read_rows_f32(rows - 1..rows, &mut vec![0.0; columns]);
            }
        }
        if let Some(prefix) = tensor.name().strip_suffix(".weight") {
            if let Ok(Some(layer)) = checkpoint.int8_linear(prefix) {
                assert_eq!(layer.codes.nrows(), layer.scales.len());
                assert!(!layer.codes.iter().any(|&code| code == i8::MIN));
                assert!(layer.scales.iter().all(|scale| scale.is_finite() && *scale >= 0.0));
            }
        }
    }
    let _ = (checkpoint.format(), checkpoint.total_bytes());
}
