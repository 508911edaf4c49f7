//! The shard index: which file holds which tensor.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};

use super::CheckpointError;
use super::contents::Progress;
use super::source::is_safe_name;

/// The map from tensor to file name; every file name is inside the folder.
///
/// `metadata.total_size` is ignored, as by Hugging Face: writers disagree on what it counts.
pub(super) fn read(file: &str, text: &str) -> Result<BTreeMap<String, String>, CheckpointError> {
    let mut progress = Progress::default();
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let parsed = deserializer.deserialize_map(IndexVisitor(&mut progress)).and_then(|index| {
        deserializer.end()?;
        Ok(index)
    });
    let failed = |entry, reason: &str| CheckpointError::Index {
        file: file.to_owned(),
        entry,
        reason: reason.to_owned(),
    };
    let map = match parsed {
        Ok(Some(map)) => map,
        Ok(None) => return Err(failed(None, "there is no `weight_map`")),
        Err(_) if progress.duplicate => {
            return Err(CheckpointError::DuplicateTensor {
                file: file.to_owned(),
                tensor: progress.entry.unwrap_or_default(),
                other: "the same index".to_owned(),
            });
        }
        Err(error) => return Err(failed(progress.entry, &error.to_string())),
    };
    if map.is_empty() {
        return Err(failed(None, "`weight_map` is empty"));
    }
    for (tensor, name) in &map {
        if !is_safe_name(name) {
            return Err(CheckpointError::UnsafeName {
                file: file.to_owned(),
                tensor: Some(tensor.clone()),
                found: name.clone(),
            });
        }
    }
    Ok(map)
}

struct IndexVisitor<'a>(&'a mut Progress);

impl<'de> Visitor<'de> for IndexVisitor<'_> {
    type Value = Option<BTreeMap<String, String>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with `weight_map`")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut weight_map = None;
        while let Some(key) = map.next_key::<String>()? {
            if key != "weight_map" {
                map.next_value::<IgnoredAny>()?;
            } else if weight_map.is_some() {
                return Err(A::Error::custom("a second `weight_map`"));
            } else {
                weight_map = Some(map.next_value_seed(WeightMap(self.0))?);
            }
        }
        Ok(weight_map)
    }
}

struct WeightMap<'a>(&'a mut Progress);

impl<'de> DeserializeSeed<'de> for WeightMap<'_> {
    type Value = BTreeMap<String, String>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for WeightMap<'_> {
    type Value = BTreeMap<String, String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map from tensor names to file names")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut files = BTreeMap::new();
        while let Some(tensor) = map.next_key::<String>()? {
            self.0.entry = Some(tensor.clone());
            let file = map.next_value()?;
            if files.insert(tensor, file).is_some() {
                self.0.duplicate = true;
                return Err(A::Error::custom("duplicate name"));
            }
        }
        self.0.entry = None;
        Ok(files)
    }
}
