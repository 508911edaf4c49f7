//! What every file format gives: the tensors of one file and their places.

use std::collections::{BTreeMap, HashMap, hash_map};
use std::ops::Range;

use super::dtype::DType;

/// The tensors of one file.
#[derive(Debug)]
pub(super) struct Contents {
    /// Sorted by place in the file.
    pub(super) entries: Vec<Entry>,
    /// Entries that are another one under a second name, and which.
    pub(super) tied: BTreeMap<usize, usize>,
    /// The format's own key-value pairs, where it has them.
    pub(super) metadata: BTreeMap<String, String>,
}

/// One tensor's place in its file.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) dtype: DType,
    pub(super) shape: Vec<usize>,
    /// Bytes from the start of the file, from the first element to the last.
    pub(super) range: Range<usize>,
    /// Strides of the dimensions, in elements; `None` if row-major, as in every safetensors file.
    pub(super) strides: Option<Vec<usize>>,
}

/// The entry that a JSON parser had reached when it failed.
#[derive(Default)]
pub(super) struct Progress {
    pub(super) entry: Option<String>,
    pub(super) duplicate: bool,
}

/// The entries that equal an earlier one by name in place, dtype, shape and strides, and which.
pub(super) fn tied(entries: &[Entry]) -> BTreeMap<usize, usize> {
    let mut order: Vec<_> = (0..entries.len()).collect();
    order.sort_by_key(|&entry| &entries[entry].name);
    let mut first = HashMap::new();
    let mut tied = BTreeMap::new();
    for entry in order {
        let Entry { dtype, shape, range, strides, .. } = &entries[entry];
        if range.is_empty() {
            continue;
        }
        match first.entry((dtype, shape, (range.start, range.end), strides)) {
            hash_map::Entry::Vacant(slot) => {
                slot.insert(entry);
            }
            hash_map::Entry::Occupied(slot) => {
                tied.insert(entry, *slot.get());
            }
        }
    }
    tied
}
