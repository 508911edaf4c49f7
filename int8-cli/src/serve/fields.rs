//! Reading the fields of a request: each has a type and a range, and those that nobody read are reported.

use std::cell::RefCell;
use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::error::ApiError;
use crate::convert::single;

/// The fields of an object in a request. A field that is null counts as absent.
#[derive(Debug)]
pub(super) struct Fields<'a> {
    object: &'a Map<String, Value>,
    read: RefCell<BTreeSet<String>>,
}

impl<'a> Fields<'a> {
    pub(super) fn new(value: &'a Value) -> Result<Self, ApiError> {
        match value {
            Value::Object(object) => Ok(Self { object, read: RefCell::default() }),
            _ => Err(ApiError::field("body", "the body must be a JSON object")),
        }
    }

    pub(super) fn get(&self, name: &str) -> Option<&'a Value> {
        self.read.borrow_mut().insert(name.to_owned());
        self.object.get(name).filter(|value| !value.is_null())
    }

    /// Fields with a value that were never looked at.
    pub(super) fn ignored(&self) -> Vec<String> {
        let read = self.read.borrow();
        let given = self.object.iter().filter(|(_, value)| !value.is_null());
        given.map(|(name, _)| name.clone()).filter(|name| !read.contains(name)).collect()
    }

    fn typed<T>(
        &self,
        name: &str,
        expected: &str,
        of: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, ApiError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        of(value).map(Some).ok_or_else(|| {
            let shown: String = value.to_string().chars().take(40).collect();
            ApiError::field(name, format!("`{name}`: {shown} is not {expected}"))
        })
    }

    pub(super) fn text(&self, name: &str) -> Result<Option<&'a str>, ApiError> {
        self.typed(name, "a string", Value::as_str)
    }

    pub(super) fn flag(&self, name: &str) -> Result<bool, ApiError> {
        Ok(self.typed(name, "true or false", Value::as_bool)?.unwrap_or(false))
    }

    pub(super) fn count(&self, name: &str, least: usize, most: usize) -> Result<Option<usize>, ApiError> {
        let expected = format!("a whole number from {least} to {most}");
        self.typed(name, &expected, |value| {
            usize::try_from(value.as_u64()?).ok().filter(|count| (least..=most).contains(count))
        })
    }

    pub(super) fn number(&self, name: &str, least: f64, most: f64) -> Result<Option<f32>, ApiError> {
        let expected = format!("a number from {least} to {most}");
        self.typed(name, &expected, |value| {
            value.as_f64().filter(|number| (least..=most).contains(number)).map(single)
        })
    }

    pub(super) fn seed(&self) -> Result<Option<u64>, ApiError> {
        self.typed("seed", "a whole number", |value| {
            value.as_u64().or_else(|| value.as_i64().map(i64::cast_unsigned))
        })
    }

    /// A field that is refused unless its value changes nothing.
    pub(super) fn refuse(&self, name: &str, harmless: &[Value], why: &str) -> Result<(), ApiError> {
        match self.get(name) {
            Some(value) if !harmless.contains(value) => {
                Err(ApiError::unsupported(name, format!("`{name}` is not supported: {why}")))
            }
            _ => Ok(()),
        }
    }
}
