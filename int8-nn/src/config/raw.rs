//! `config.json`, read key by key with checks.

use serde_json::Value;

use super::{Activation, BlockSet};
use crate::Error;
use crate::checkpoint::Source;

/// A parsed `config.json` with its name, so that errors name file and key.
#[derive(Debug, Clone)]
pub struct RawConfig {
    file: String,
    json: Value,
}

impl RawConfig {
    /// Reads `config.json` of a checkpoint.
    ///
    /// # Errors
    /// When the file is missing or is not a JSON object.
    pub fn read(source: &Source) -> Result<Self, Error> {
        Self::from_json(source.label("config.json"), source.read_config()?)
    }

    /// Takes a JSON value; error messages call it `file`.
    ///
    /// # Errors
    /// When the value is not an object.
    pub fn from_json(file: String, json: Value) -> Result<Self, Error> {
        let config = Self { file, json };
        if config.json.is_object() {
            Ok(config)
        } else {
            Err(config.problem("(top level)", "is not a JSON object"))
        }
    }

    /// Name of the file, for messages.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// Whether the key is present, `null` included.
    pub(crate) fn mentions(&self, key: &str) -> bool {
        self.json.get(key).is_some()
    }

    /// The value of a key; `null` is absent.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.json.get(key).filter(|value| !value.is_null())
    }

    /// An error about a key of this file; `problem` completes the sentence "`key` …".
    pub fn problem(&self, key: &str, problem: impl Into<String>) -> Error {
        Error::Config { file: self.file.clone(), key: key.to_owned(), problem: problem.into() }
    }

    /// A size: an integer from 1 to 2³¹ − 1.
    ///
    /// # Errors
    /// When the key is absent or no such integer.
    pub fn size(&self, key: &str) -> Result<usize, Error> {
        let value = self.get(key).ok_or_else(|| self.problem(key, "is missing"))?;
        value
            .as_u64()
            .and_then(|size| usize::try_from(size).ok())
            .filter(|size| (1..=0x7FFF_FFFF).contains(size))
            .ok_or_else(|| self.problem(key, format!("is {value}; expected an integer from 1 to 2^31 - 1")))
    }

    /// Like [`size`](Self::size), with a value for an absent key.
    ///
    /// # Errors
    /// When the key is present and no such integer.
    pub fn size_or(&self, key: &str, default: usize) -> Result<usize, Error> {
        if self.get(key).is_none() { Ok(default) } else { self.size(key) }
    }

    /// An index: an integer from 0 to 2³¹ − 1; `default` if the key is absent.
    ///
    /// # Errors
    /// When the key is present and no such integer.
    pub(crate) fn index_or(&self, key: &str, default: usize) -> Result<usize, Error> {
        if self.get(key).and_then(Value::as_u64) == Some(0) { Ok(0) } else { self.size_or(key, default) }
    }

    /// Whether the key is there and null.
    pub(crate) fn is_null(&self, key: &str) -> bool {
        self.json.get(key).is_some_and(Value::is_null)
    }

    /// With these values for keys that are absent: the defaults of transformers' configuration class, which files omit.
    pub(crate) fn with_defaults(&self, defaults: &[(&str, Value)]) -> Self {
        let mut json = self.json.clone();
        if let Some(object) = json.as_object_mut() {
            for (key, value) in defaults {
                object.entry(*key).or_insert_with(|| value.clone());
            }
        }
        Self { file: self.file.clone(), json }
    }

    /// With the value of `old` under `new` as well, unless that key is there: a name that transformers also reads.
    pub(crate) fn renamed(&self, old: &str, new: &str) -> Self {
        match self.json.get(old) {
            Some(value) => self.with_defaults(&[(new, value.clone())]),
            None => self.clone(),
        }
    }

    /// Without this key.
    pub(crate) fn without(&self, key: &str) -> Self {
        let mut json = self.json.clone();
        if let Some(object) = json.as_object_mut() {
            object.remove(key);
        }
        Self { file: self.file.clone(), json }
    }

    /// A finite positive number, or `default` if the key is absent.
    ///
    /// # Errors
    /// When the key is present and no such number.
    pub fn positive_or(&self, key: &str, default: f64) -> Result<f64, Error> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => self.positive(key, value),
        }
    }

    /// `value`, found under `key`, as a finite positive number.
    ///
    /// # Errors
    /// When it is not.
    pub fn positive(&self, key: &str, value: &Value) -> Result<f64, Error> {
        value
            .as_f64()
            .filter(|number| number.is_finite() && *number > 0.0)
            .ok_or_else(|| self.problem(key, format!("is {value}; expected a positive number")))
    }

    /// [`positive_or`](Self::positive_or), rounded to f32.
    pub(crate) fn float_or(&self, key: &str, default: f64) -> Result<f32, Error> {
        self.positive_or(key, default).map(crate::convert::f32_from)
    }

    /// A boolean, or `default` if the key is absent.
    ///
    /// # Errors
    /// When the key is present and no boolean.
    pub fn flag_or(&self, key: &str, default: bool) -> Result<bool, Error> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => value
                .as_bool()
                .ok_or_else(|| self.problem(key, format!("is {value}; expected true or false"))),
        }
    }

    /// A string, or `default` if the key is absent.
    ///
    /// # Errors
    /// When the key is present and no string.
    pub fn text_or<'a>(&'a self, key: &str, default: &'a str) -> Result<&'a str, Error> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => {
                value.as_str().ok_or_else(|| self.problem(key, format!("is {value}; expected a string")))
            }
        }
    }

    /// Token ids: one integer or a list of them; empty if the key is absent. A negative one is no token.
    ///
    /// # Errors
    /// When the key is present and neither.
    pub fn token_ids(&self, key: &str) -> Result<Vec<u32>, Error> {
        let id = |value: &Value| {
            value
                .as_u64()
                .and_then(|id| u32::try_from(id).ok())
                .ok_or_else(|| self.problem(key, format!("holds {value}; expected a token id")))
        };
        let values = match self.get(key) {
            None => &[][..],
            Some(Value::Array(ids)) => ids,
            Some(value) => std::slice::from_ref(value),
        };
        values.iter().filter(|value| value.as_i64().is_none_or(|id| id >= 0)).map(id).collect()
    }

    /// Of `layers` blocks those with sliding-window attention: `layer_types`, or `default` without that key.
    pub(crate) fn sliding_blocks(&self, layers: usize, default: BlockSet) -> Result<BlockSet, Error> {
        const KEY: &str = "layer_types";
        let marks = self.marks(KEY, layers, "sliding_attention", "full_attention")?;
        Ok(marks.map_or(default, BlockSet::Marked))
    }

    /// For each of `layers` blocks whether its kind under `key` is `yes` and not `no`; `None` without that key.
    pub(crate) fn marks(
        &self,
        key: &str,
        layers: usize,
        yes: &str,
        no: &str,
    ) -> Result<Option<Vec<bool>>, Error> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let types = value.as_array().filter(|types| types.len() == layers);
        let types = types.ok_or_else(|| {
            self.problem(key, format!("is no list of the types of {layers} layers, as many as the model has"))
        })?;
        let mark = |kind: &Value| match kind.as_str() {
            Some(kind) if kind == yes => Ok(true),
            Some(kind) if kind == no => Ok(false),
            _ => Err(self.problem(key, format!("has {kind}; implemented: {no}, {yes}"))),
        };
        types.iter().map(mark).collect::<Result<_, _>>().map(Some)
    }

    /// The object under `key` as a configuration of its own; without that key, all of this one.
    pub(crate) fn section(&self, key: &str) -> Result<Self, Error> {
        match self.get(key) {
            None => Ok(self.clone()),
            Some(json) => Self::from_json(format!("{}: {key}", self.file), json.clone()),
        }
    }

    /// The activation function under `key`.
    ///
    /// # Errors
    /// When it is not implemented.
    pub fn activation(&self, key: &str, default: &str) -> Result<Activation, Error> {
        let name = self.text_or(key, default)?;
        Activation::from_name(name).ok_or_else(|| {
            self.problem(
                key,
                format!("is {name:?}; implemented: relu, gelu, gelu_new, gelu_pytorch_tanh, gelu_fast, gelu_10, quick_gelu, silu, mish, relu2, tanh, sigmoid"),
            )
        })
    }
}
