//! Writing checkpoint files byte by byte, honest and otherwise.

use std::fs;
use std::path::Path;

/// Files of one folder, by name; a name ending in `/` is a folder.
pub(crate) type Files = Vec<(&'static str, Vec<u8>)>;

/// A safetensors file: `u64 length | header | data`, the header exactly as given.
pub(crate) fn file(header: &str, data: &[u8]) -> Vec<u8> {
    with_length(u64::try_from(header.len()).unwrap(), header.as_bytes(), data)
}

/// A safetensors file whose length field says `length`, whatever the header's length is.
pub(crate) fn with_length(length: u64, header: &[u8], data: &[u8]) -> Vec<u8> {
    [&length.to_le_bytes(), header, data].concat()
}

/// A header of the given entries, which are in JSON: `"name": {…}`.
pub(crate) fn header(entries: &[String]) -> String {
    format!("{{{}}}", entries.join(","))
}

/// One tensor's entry; shape and offsets in JSON.
pub(crate) fn entry(name: &str, dtype: &str, shape: &str, offsets: &str) -> String {
    format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}"#)
}

/// A well-formed file of the given tensors: name, dtype, shape, bytes.
pub(crate) fn tensors(tensors: &[(&str, &str, &[usize], &[u8])]) -> Vec<u8> {
    let mut entries = Vec::new();
    let mut data = Vec::new();
    for (name, dtype, shape, bytes) in tensors {
        let end = data.len() + bytes.len();
        entries.push(entry(name, dtype, &format!("{shape:?}"), &format!("[{}, {end}]", data.len())));
        data.extend_from_slice(bytes);
    }
    file(&header(&entries), &data)
}

/// A well-formed file with one F32 tensor of `[2, 2]`.
pub(crate) fn one(name: &str) -> Vec<u8> {
    tensors(&[(name, "F32", &[2, 2], &floats(&[1.0, -2.0, 3.5, 0.0]))])
}

/// F32 as it is stored.
pub(crate) fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// A shard index with this `weight_map`, in JSON.
pub(crate) fn index(weight_map: &str) -> Vec<u8> {
    format!(r#"{{"metadata":{{"total_size":32}},"weight_map":{weight_map}}}"#).into_bytes()
}

/// Writes the files into `folder`.
pub(crate) fn write(folder: &Path, files: &Files) {
    for (name, bytes) in files {
        let path = folder.join(name);
        if name.ends_with('/') {
            fs::create_dir_all(path).unwrap();
        } else {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
    }
}
