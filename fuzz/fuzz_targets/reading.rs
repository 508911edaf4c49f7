//! Shared by the targets: reading everything of a checkpoint in every way, and writing archives.
#![allow(dead_code, reason = "each target is a crate of its own and uses a part")]

use int8_nn::checkpoint::Checkpoint;

/// Reads everything and checks sizes.
pub(crate) fn all(checkpoint: &Checkpoint) {
    for tensor in checkpoint.tensors() {
        assert_eq!(tensor.byte_len() * 8, tensor.len() * tensor.dtype().bits());
        assert_eq!(tensor.bytes().len(), tensor.byte_len());
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

/// A zip archive of files that are stored as they are.
pub(crate) fn zip(files: &[(&str, &[u8])]) -> Vec<u8> {
    let (mut out, mut directory) = (Vec::new(), Vec::new());
    for (name, data) in files {
        let (place, size) = ((out.len() as u32).to_le_bytes(), (data.len() as u32).to_le_bytes());
        // Version, flags, method, time, date, checksum; both sizes; lengths of name and extra field.
        let length = (name.len() as u16).to_le_bytes();
        let common = [&[20, 0][..], &[0; 12], &size, &size, &length, &[0; 2]].concat();
        out.extend([b"PK\x03\x04", &common[..], name.as_bytes(), data].concat());
        directory.extend([b"PK\x01\x02\x14\x00", &common[..], &[0; 10], &place, name.as_bytes()].concat());
    }
    let count = (files.len() as u16).to_le_bytes();
    let (begin, length) = ((out.len() as u32).to_le_bytes(), (directory.len() as u32).to_le_bytes());
    let end = [b"PK\x05\x06", &[0; 4][..], &count, &count, &length, &begin, &[0; 2]].concat();
    [out, directory, end].concat()
}
