//! One safetensors file: `u64 length | JSON of that length | data`.
//!
//! The official `safetensors` crate parses and sizes the entries. Checked here besides, since the crate keeps the last of two
//! entries of one name, does not name the tensor in errors, and accepts dimensions that overflow beside a zero. Its `Metadata`
//! must then accept the same entries: a file opens only if both agree.
//!
//! Invariants of what [`read`] returns: every tensor's byte range lies inside the file, has exactly the size of its dtype
//! and shape, and shares no byte with another.

use std::collections::BTreeMap;
use std::collections::hash_map::{Entry as Slot, HashMap};
use std::fmt;

use safetensors::tensor::{Metadata, TensorInfo};
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};

use super::contents::{Contents, Entry, Progress};
use super::dtype::DType;
use super::error::{Dims, Quoted};
use super::{CheckpointError, foreign};

/// Bytes of the length field.
const LENGTH_FIELD: usize = 8;

/// The format's limit for the header, in bytes.
const HEADER_LIMIT: u64 = 100_000_000;

/// The header entry that is no tensor.
pub(super) const METADATA_KEY: &str = "__metadata__";

/// Parses and validates the header of the file whose whole contents are `bytes`; `file` names it in errors.
pub(super) fn read(file: &str, bytes: &[u8]) -> Result<Contents, CheckpointError> {
    // A file of another format fails as a damaged one; its first bytes tell what it really is.
    header(file, bytes).map_err(|error| foreign::check_content(file, bytes).err().unwrap_or(error))
}

fn header(file: &str, bytes: &[u8]) -> Result<Contents, CheckpointError> {
    let json = header_bytes(file, bytes)?;
    let data_begin = LENGTH_FIELD + json.len();
    let raw = parse(file, json)?;
    let mut tensors = raw.tensors;
    tensors.sort_by(|(left_name, left), (right_name, right)| {
        left.data_offsets.cmp(&right.data_offsets).then_with(|| left_name.cmp(right_name))
    });
    let data_length = check_layout(file, &tensors)?;

    let stated = to_u64(data_begin).saturating_add(to_u64(data_length));
    let found = to_u64(bytes.len());
    if found < stated {
        let available = bytes.len() - data_begin;
        let cut = tensors.iter().find(|(_, info)| info.data_offsets.1 > available);
        let part = match cut {
            Some((name, _)) => format!("tensor {} and what follows are not all there", Quoted(name)),
            None => "header and tensor data".to_owned(),
        };
        return Err(CheckpointError::Truncated { file: file.to_owned(), part, expected: stated, found });
    }
    if found > stated {
        return Err(CheckpointError::TrailingBytes { file: file.to_owned(), expected: stated, found });
    }

    // What the official reader refuses is refused.
    if let Err(error) = Metadata::new(None, tensors.clone()) {
        return Err(CheckpointError::Header {
            file: file.to_owned(),
            entry: None,
            reason: error.to_string(),
        });
    }

    let mut entries = Vec::with_capacity(tensors.len());
    for (name, info) in tensors {
        let Some(dtype) = DType::from_stored(info.dtype) else {
            let reason = format!("dtype {} is unknown", info.dtype);
            return Err(CheckpointError::Header { file: file.to_owned(), entry: Some(name), reason });
        };
        // Within the file, so neither sum can overflow.
        let range = data_begin + info.data_offsets.0..data_begin + info.data_offsets.1;
        entries.push(Entry { name, dtype, shape: info.shape, range, strides: None });
    }
    Ok(Contents { entries, tied: BTreeMap::new(), metadata: raw.metadata })
}

/// The JSON part, after checking its stated length against the format's limit and the file's size.
fn header_bytes<'a>(file: &str, bytes: &'a [u8]) -> Result<&'a [u8], CheckpointError> {
    let truncated = |part: &str, expected| CheckpointError::Truncated {
        file: file.to_owned(),
        part: part.to_owned(),
        expected,
        found: to_u64(bytes.len()),
    };
    let Some((length, rest)) = bytes.split_first_chunk::<LENGTH_FIELD>() else {
        return Err(truncated("the length of the header", to_u64(LENGTH_FIELD)));
    };
    let length = u64::from_le_bytes(*length);
    if length > HEADER_LIMIT {
        return Err(CheckpointError::HeaderLength {
            file: file.to_owned(),
            limit: HEADER_LIMIT,
            found: length,
        });
    }
    let json = usize::try_from(length).ok().and_then(|length| rest.get(..length));
    json.ok_or_else(|| truncated("the header", to_u64(LENGTH_FIELD) + length))
}

/// The header's entries in file order.
#[derive(Default)]
struct Raw {
    tensors: Vec<(String, TensorInfo)>,
    metadata: BTreeMap<String, String>,
}

fn parse(file: &str, json: &[u8]) -> Result<Raw, CheckpointError> {
    let failed = |entry, reason| CheckpointError::Header { file: file.to_owned(), entry, reason };
    let text = std::str::from_utf8(json)
        .map_err(|error| failed(None, format!("not UTF-8 at byte {} of the header", error.valid_up_to())))?;

    let mut progress = Progress::default();
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let parsed = deserializer.deserialize_map(HeaderVisitor(&mut progress)).and_then(|raw| {
        deserializer.end()?;
        Ok(raw)
    });
    match parsed {
        Ok(raw) => Ok(raw),
        Err(_) if progress.duplicate => Err(CheckpointError::DuplicateTensor {
            file: file.to_owned(),
            tensor: progress.entry.unwrap_or_default(),
            other: "the same header".to_owned(),
        }),
        Err(error) => Err(failed(progress.entry, error.to_string())),
    }
}

struct HeaderVisitor<'a>(&'a mut Progress);

impl<'de> Visitor<'de> for HeaderVisitor<'_> {
    type Value = Raw;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map from tensor names to dtype, shape and data_offsets")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Raw, A::Error> {
        let mut raw = Raw::default();
        let mut seen: HashMap<String, ()> = HashMap::new();
        while let Some(name) = map.next_key::<String>()? {
            self.0.entry = Some(name.clone());
            match seen.entry(name) {
                Slot::Occupied(_) => {
                    self.0.duplicate = true;
                    return Err(A::Error::custom("duplicate name"));
                }
                Slot::Vacant(slot) if slot.key() == METADATA_KEY => {
                    raw.metadata = map.next_value::<Option<BTreeMap<String, String>>>()?.unwrap_or_default();
                    slot.insert(());
                }
                Slot::Vacant(slot) => {
                    raw.tensors.push((slot.key().clone(), map.next_value()?));
                    slot.insert(());
                }
            }
        }
        self.0.entry = None;
        Ok(raw)
    }
}

/// Checks each tensor's size and that they fill the data from its start without overlap or hole, in the given order
/// (sorted by offsets). Returns the length of the data in bytes.
fn check_layout(file: &str, tensors: &[(String, TensorInfo)]) -> Result<usize, CheckpointError> {
    let mut filled = 0;
    let mut before: Option<&str> = None;
    for (name, info) in tensors {
        let (begin, end) = info.data_offsets;
        let wrong = |expected: String| CheckpointError::Offsets {
            file: file.to_owned(),
            tensor: name.clone(),
            expected,
            begin,
            end,
        };
        if end < begin {
            return Err(wrong("an end that is not before the begin".to_owned()));
        }
        check_size(file, name, info, end - begin)?;
        if begin != filled {
            let neighbour = match before {
                None => "the first tensor".to_owned(),
                Some(before) => format!("the tensor after {}", Quoted(before)),
            };
            let problem = if begin < filled { "overlaps it" } else { "leaves a hole" };
            return Err(wrong(format!("{neighbour} to begin at byte {filled} of the data; this {problem}")));
        }
        filled = end;
        before = Some(name);
    }
    Ok(filled)
}

fn check_size(file: &str, name: &str, info: &TensorInfo, found: usize) -> Result<(), CheckpointError> {
    let overflow = || CheckpointError::ShapeOverflow {
        file: file.to_owned(),
        tensor: name.to_owned(),
        found: info.shape.clone(),
    };
    // Zeros count as ones: a [0, 2^62] tensor has no bytes, but a buffer sized by its columns would have 2^62.
    let bounded = |dims: &[usize]| {
        let elements = dims.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim.max(1)))?;
        elements.checked_mul(info.dtype.bitsize()).filter(|&bits| bits <= isize::MAX.unsigned_abs())
    };
    let bits = bounded(&info.shape).ok_or_else(overflow)?;
    let bits = if info.shape.contains(&0) { 0 } else { bits };
    if found.checked_mul(8) == Some(bits) {
        return Ok(());
    }
    let expected = if bits.is_multiple_of(8) {
        format!("{} bytes", bits / 8)
    } else {
        format!("{bits} bits, which must be whole bytes,")
    };
    Err(CheckpointError::ByteLength {
        file: file.to_owned(),
        tensor: name.to_owned(),
        description: format!("{} {}", info.dtype, Dims(&info.shape)),
        expected,
        found,
    })
}

/// Lossless.
fn to_u64(size: usize) -> u64 {
    u64::try_from(size).unwrap_or(u64::MAX)
}
