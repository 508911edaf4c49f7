//! `int8 run --json-schema`, and the schemas of lines of `--batch`.

use int8_nn::backend::Backend;
use int8_nn::{Model, TokenConstraint};
use serde_json::Value;

use crate::args::RunArgs;
use crate::failure::Failure;

/// Makes the constraints of answers.
#[cfg(feature = "json-schema")]
pub(super) struct Schemas<'a, B: Backend> {
    model: &'a Model<B>,
    /// The schema of answers that have none of their own.
    default: Option<Value>,
    forms: std::cell::OnceCell<Result<crate::json_form::JsonForms, String>>,
}

#[cfg(feature = "json-schema")]
impl<'a, B: Backend> Schemas<'a, B> {
    /// Reads the schema of the option.
    ///
    /// # Errors
    /// For a file that cannot be read or is no JSON.
    pub(super) fn new(arguments: &RunArgs, model: &'a Model<B>) -> Result<Self, Failure> {
        let read = |file: &std::path::PathBuf| -> Result<Value, Failure> {
            let text = super::read_text("--json-schema", file)?;
            serde_json::from_str(&text)
                .map_err(|error| Failure::new(format!("--json-schema {}: no JSON: {error}", file.display())))
        };
        let default = arguments.json_schema.as_ref().map(read).transpose()?;
        Ok(Self { model, default, forms: std::cell::OnceCell::new() })
    }

    /// The constraint to JSON of the schema `own`, or else of the option. `stop_ids`: tokens that end the answer besides the model's
    /// end-of-text tokens.
    ///
    /// # Errors
    /// For a schema or a tokenizer that is not supported.
    pub(super) fn constraint(
        &self,
        own: Option<&Value>,
        stop_ids: &[u32],
    ) -> Result<Option<Box<dyn TokenConstraint>>, String> {
        let Some(schema) = own.or(self.default.as_ref()) else { return Ok(None) };
        let tokenizer = self.model.tokenizer().map_err(|error| error.to_string())?;
        let forms = self.forms.get_or_init(|| crate::json_form::JsonForms::new(tokenizer));
        let ends = [self.model.eos_token_ids(), stop_ids].concat();
        let constraint = forms.as_ref().map_err(String::clone)?.constraint(schema, ends);
        constraint.map(Some).map_err(|problem| format!("the JSON schema is not supported: {problem}"))
    }
}

/// None: this program was built without them.
#[cfg(not(feature = "json-schema"))]
pub(super) struct Schemas;

#[cfg(not(feature = "json-schema"))]
impl Schemas {
    /// Nothing to read.
    #[expect(clippy::unnecessary_wraps, reason = "reading a schema can fail")]
    pub(super) fn new<B: Backend>(_: &RunArgs, _: &Model<B>) -> Result<Self, Failure> {
        Ok(Self)
    }

    /// No constraint.
    ///
    /// # Errors
    /// For a schema.
    pub(super) fn constraint(
        &self,
        own: Option<&Value>,
        _: &[u32],
    ) -> Result<Option<Box<dyn TokenConstraint>>, String> {
        match own {
            None => Ok(None),
            Some(_) => {
                Err("this program was built without JSON schemas (cargo feature json-schema)".to_owned())
            }
        }
    }
}
