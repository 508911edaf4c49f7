//! PyTorch checkpoints as `torch.save` writes them since 1.6: a zip archive of one pickle, which describes the tensors,
//! and of the storages, which are mapped like a safetensors file.
//!
//! A pickle is a program. This reader follows only what builds dicts of tensors and refuses everything else by name; it can
//! call nothing. Its entries have the invariants of a safetensors header's, but tensors may share bytes (tied weights) and
//! have strides (transposes).

mod archive;
mod globals;
mod machine;

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use self::archive::Archive;
use self::machine::{Node, Refusal, Tensor, Value};
use super::contents::{self, Contents, Entry};
use super::error::Quoted;
use super::{CheckpointError, DType, foreign};

/// The largest pickle that is followed, in bytes: a tensor takes about 150, so this describes 400,000 of them.
const MAX_PICKLE: usize = 64 << 20;

/// How a zip archive begins, with files and without.
const ZIP: [&[u8]; 2] = [b"PK\x03\x04", b"PK\x05\x06"];

/// How `torch.save` began before 1.6: a number of 10 bytes, pickled with protocol 2.
const BEFORE_1_6: &[u8] = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.";

/// Offset and bytes of a tar archive's signature.
const TAR: (usize, &[u8]) = (257, b"ustar");

const SAVE_AGAIN: &str =
    "Save it again in Python: torch.save(torch.load(FILE, map_location=\"cpu\", weights_only=True), OUT)";

/// Whether these bytes are a PyTorch checkpoint that [`read`] reads.
pub(super) fn is_zip(bytes: &[u8]) -> bool {
    ZIP.iter().any(|magic| bytes.starts_with(magic))
}

/// Refuses the formats that `torch.save` wrote before 1.6, by name.
fn check_legacy(file: &str, bytes: &[u8]) -> Result<(), CheckpointError> {
    let (place, magic) = TAR;
    let format = if bytes.starts_with(BEFORE_1_6) {
        "a PyTorch checkpoint of the format before PyTorch 1.6 (a bare pickle)"
    } else if bytes.get(place..).is_some_and(|rest| rest.starts_with(magic)) {
        "a PyTorch checkpoint of the format before PyTorch 0.1.10 (a tar archive)"
    } else {
        return Ok(());
    };
    Err(CheckpointError::UnsupportedFormat { file: file.to_owned(), format, help: SAVE_AGAIN })
}

/// Reads where all tensors of the file of these bytes are; `file` names it in errors.
pub(super) fn read(file: &str, bytes: &[u8]) -> Result<Contents, CheckpointError> {
    if !is_zip(bytes) {
        check_legacy(file, bytes)?;
        foreign::check_content(file, bytes)?;
    }
    let entries = entries(file, bytes)?;
    let tied = contents::tied(&entries);
    Ok(Contents { entries, tied, metadata: BTreeMap::new() })
}

fn entries(file: &str, bytes: &[u8]) -> Result<Vec<Entry>, CheckpointError> {
    let archive = archive::read(file, bytes)?;
    if archive.pickle.len() > MAX_PICKLE {
        let reason = format!("{} bytes, more than {MAX_PICKLE}", archive.pickle.len());
        return Err(CheckpointError::Pickle { file: file.to_owned(), offset: 0, reason });
    }
    let (nodes, result) = machine::run(archive.pickle).map_err(|refusal| match refusal {
        Refusal::Malformed(offset, reason) => {
            CheckpointError::Pickle { file: file.to_owned(), offset, reason }
        }
        Refusal::Global(name) => CheckpointError::PickleGlobal { file: file.to_owned(), name },
    })?;
    let tensors = state_dict(&nodes, result).map_err(|reason| CheckpointError::Pickle {
        file: file.to_owned(),
        offset: archive.pickle.len(),
        reason,
    })?;
    let mut entries = Vec::with_capacity(tensors.len());
    let mut seen = HashMap::new();
    for (name, tensor) in tensors {
        if seen.insert(name, ()).is_some() {
            return Err(CheckpointError::DuplicateTensor {
                file: file.to_owned(),
                tensor: name.to_owned(),
                other: "the same pickle".to_owned(),
            });
        }
        entries.push(Place { file, name, tensor, archive: &archive }.entry()?);
    }
    entries.sort_by(|left, right| {
        let key = |entry: &Entry| (entry.range.start, entry.range.end);
        key(left).cmp(&key(right)).then_with(|| left.name.cmp(&right.name))
    });
    Ok(entries)
}

/// The tensors of a dict by name; other values (numbers that a training saved) are skipped.
fn state_dict<'n, 'a>(
    nodes: &'n [Node<'a>],
    value: Value<'a>,
) -> Result<Vec<(&'a str, &'n Tensor<'a>)>, String> {
    let dict = match value {
        Value::Node(index) => match &nodes[index] {
            Node::Dict(dict) => dict,
            _ => return Err(format!("it holds {}, no dict of tensors", machine::kind(nodes, value))),
        },
        _ => return Err(format!("it holds {}, no dict of tensors", machine::kind(nodes, value))),
    };
    let mut tensors = Vec::new();
    let mut others = Vec::new();
    for &(key, value) in dict {
        // bitsandbytes 0.37 to 0.42 wrote the layout as a text; others than row-major are not read.
        if let (Value::Text(name), Value::Text(layout)) = (key, value)
            && name.ends_with(".weight_format")
            && layout != "row"
        {
            return Err(format!(
                "{} says that the layer has bitsandbytes' int8 layout {}, which is not read; use the model's 16-bit version, \
                 or save it again with a current bitsandbytes",
                Quoted(name),
                Quoted(layout)
            ));
        }
        let tensor = match value {
            Value::Node(index) => match &nodes[index] {
                Node::Tensor(tensor) => Some(tensor),
                _ => None,
            },
            _ => None,
        };
        match (key, tensor) {
            (Value::Text(name), Some(tensor)) => tensors.push((name, tensor)),
            (_, Some(_)) => return Err(format!("a tensor is named by {}", machine::kind(nodes, key))),
            (Value::Text(name), None) => others.push(name),
            (_, None) => {}
        }
    }
    if tensors.is_empty() && !others.is_empty() {
        /// Enough to recognise a training's own checkpoint by.
        const SHOWN: usize = 4;
        let shown: Vec<_> = others.iter().take(SHOWN).map(|name| Quoted(name).to_string()).collect();
        return Err(format!(
            "its dict holds no tensors but {}, as a training saves; save the dict of tensors inside it alone",
            shown.join(", ")
        ));
    }
    Ok(tensors)
}

/// One tensor of the pickle, to be located in the file.
struct Place<'p, 'a> {
    file: &'p str,
    name: &'p str,
    tensor: &'p Tensor<'a>,
    archive: &'p Archive<'a>,
}

impl Place<'_, '_> {
    fn wrong(&self, expected: impl Into<String>, found: impl Into<String>) -> CheckpointError {
        CheckpointError::Storage {
            file: self.file.to_owned(),
            tensor: self.name.to_owned(),
            expected: expected.into(),
            found: found.into(),
        }
    }

    /// The tensor's entry, checked against the archive.
    fn entry(&self) -> Result<Entry, CheckpointError> {
        let Tensor { dtype, offset, shape, strides, .. } = self.tensor;
        let size = dtype.bits() / 8;
        let (bytes, elements) = self.storage(size)?;
        if shape.len() != strides.len() {
            let found = format!("{} strides for {} dimensions", strides.len(), shape.len());
            return Err(self.wrong("a stride for each dimension", found));
        }
        let natural = |what: &str, values: &[i64]| -> Result<Vec<usize>, CheckpointError> {
            let converted = values.iter().map(|&value| usize::try_from(value)).collect::<Result<_, _>>();
            converted
                .map_err(|_| self.wrong(format!("no negative numbers in its {what}"), format!("{values:?}")))
        };
        let offset = natural("offset", &[*offset])?[0];
        let (shape, strides) = (natural("shape", shape)?, natural("stride", strides)?);
        // Zeros count as ones, as in a safetensors header: a dimension beside a zero is bounded, too.
        let bounded = shape.iter().try_fold(size, |product, &dim| product.checked_mul(dim.max(1)));
        if bounded.is_none_or(|bytes| bytes > isize::MAX.unsigned_abs()) {
            return Err(CheckpointError::ShapeOverflow {
                file: self.file.to_owned(),
                tensor: self.name.to_owned(),
                found: shape,
            });
        }
        let entry = |range, strides| Entry {
            name: self.name.to_owned(),
            dtype: *dtype,
            shape: shape.clone(),
            range,
            strides,
        };
        let count: usize = shape.iter().product();
        if count == 0 {
            return Ok(entry(bytes.start..bytes.start, None));
        }
        let last = shape
            .iter()
            .zip(&strides)
            .try_fold(offset, |last, (&dim, &stride)| last.checked_add((dim - 1).checked_mul(stride)?));
        let Some(last) = last.filter(|&last| last < elements) else {
            let found = format!("shape {shape:?} with strides {strides:?} from element {offset} on");
            return Err(self.wrong(format!("a view inside its storage of {elements} elements"), found));
        };
        if count > elements {
            let found = format!("{count} elements by strides {strides:?}");
            return Err(self.wrong(
                format!("at most the {elements} elements of its storage (save expanded tensors after .contiguous())"),
                found,
            ));
        }
        // Inside the storage, which is inside the file.
        let range = bytes.start + offset * size..bytes.start + (last + 1) * size;
        let strides = if is_row_major(&shape, &strides) { None } else { Some(strides) };
        Ok(entry(range, strides))
    }

    /// The storage's bytes in the file and the number of its elements of `size` bytes.
    fn storage(&self, size: usize) -> Result<(Range<usize>, usize), CheckpointError> {
        let storage = self.tensor.storage;
        let Some(range) = self.archive.storages.get(storage.key) else {
            let expected =
                format!("its storage, the file data/{} of the archive", storage.key.escape_debug());
            return Err(self.wrong(expected, "no such file"));
        };
        let unit = storage.dtype.map_or(1, |dtype: DType| dtype.bits() / 8);
        let stated = usize::try_from(storage.length).ok().and_then(|length| length.checked_mul(unit));
        let Some(stated) = stated.filter(|&stated| stated <= range.len()) else {
            let expected = format!("a storage of {} × {unit} bytes", storage.length);
            return Err(self.wrong(expected, format!("{} bytes", range.len())));
        };
        Ok((range.clone(), stated / size))
    }
}

/// Whether the elements are contiguous; the stride of a dimension of one element does not matter.
fn is_row_major(shape: &[usize], strides: &[usize]) -> bool {
    let mut expected = 1;
    shape.iter().zip(strides).rev().all(|(&dim, &stride)| {
        let fits = dim == 1 || stride == expected;
        expected *= dim;
        fits
    })
}
