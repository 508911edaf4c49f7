//! Answers that are JSON of a schema: a grammar over the tokens of a model, as a constraint for the engine.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use int8_nn::{TokenConstraint, Tokenizer};
use llguidance::api::{ParserLimits, TopLevelGrammar};
use llguidance::toktrie::{ApproximateTokEnv, InferenceCapabilities, TokEnv, TokRxInfo, TokTrie};
use llguidance::{JsonCompileOptions, Matcher, ParserFactory, token_bytes_from_tokenizer_json};
use serde_json::{Map, Value};

/// White space between two parts of an answer: a space, or a line break and an indentation. Without a bound, a model may write
/// nothing else.
const WHITESPACE: &str = r"\x20|\x0A[\x20\x09]{0,20}";

/// What a schema of a stranger may cost: about 20 ms to compile, 10 ms a token at worst, some 20 MB.
const LIMITS: ParserLimits = ParserLimits {
    max_items_in_row: 10_000,
    initial_lexer_fuel: 1_000_000,
    step_lexer_fuel: 100_000,
    step_max_items: 50_000,
    max_lexer_states: 10_000,
    max_grammar_size: 100_000,
    precompute_large_lexemes: true,
    verbose_errors: false,
};

/// Makes constraints for the tokens of one tokenizer.
pub(crate) struct JsonForms {
    factory: ParserFactory,
    /// Behind all tokens of the tokenizer: stands for any end of the text.
    end: u32,
}

impl fmt::Debug for JsonForms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JsonForms").field("end", &self.end).finish_non_exhaustive()
    }
}

impl JsonForms {
    /// Reads the bytes of each token.
    ///
    /// # Errors
    /// For a tokenizer whose tokens are no pieces of text: neither byte-level BPE nor BPE with byte fallback.
    pub(crate) fn new(tokenizer: &Tokenizer) -> Result<Self, String> {
        let json = tokenizer.to_json().map_err(|error| error.to_string())?;
        let made = contained(|| {
            let mut words = token_bytes_from_tokenizer_json(&json).map_err(|error| error.to_string())?;
            let end = u32::try_from(words.len()).map_err(|error| error.to_string())?;
            words.push(b"\xFFend".to_vec());
            let trie = TokTrie::from(&TokRxInfo::new(end + 1, end), &words);
            let tokens: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
            let slices = llguidance::earley::SlicedBiasComputer::json_slices();
            let mut factory = ParserFactory::new(&tokens, InferenceCapabilities::default(), &slices)
                .map_err(|error| error.to_string())?;
            factory.quiet();
            *factory.limits_mut() = LIMITS;
            Ok(Self { factory, end })
        });
        made.map_err(|problem| {
            format!("answers of a given form need another tokenizer than this model's: {problem}")
        })
    }

    /// The constraint to JSON of a schema. `ends`: tokens that end a text.
    ///
    /// # Errors
    /// For a schema that is malformed, too large, or has a keyword that is not supported: a message that names it.
    pub(crate) fn constraint(
        &self,
        schema: &Value,
        ends: Vec<u32>,
    ) -> Result<Box<dyn TokenConstraint>, String> {
        let mut schema = match schema {
            Value::Object(_) => schema.clone(),
            Value::Bool(true) => Value::Object(Map::new()),
            Value::Bool(false) => return Err("nothing is JSON of the schema `false`".to_owned()),
            _ => return Err("a schema must be an object".to_owned()),
        };
        let options = JsonCompileOptions {
            whitespace_pattern: Some(WHITESPACE.to_owned()),
            ..JsonCompileOptions::default()
        };
        options.apply_to(&mut schema);
        let matcher = contained(|| {
            let parser = self.factory.create_parser(TopLevelGrammar::from_json_schema(schema));
            let mut matcher = Matcher::new(parser);
            match matcher.get_error() {
                Some(problem) => Err(problem),
                // What a first token may be shows whether anything is JSON of the schema.
                None => matcher.compute_mask().map(|_| matcher).map_err(|error| error.to_string()),
            }
        })?;
        let tokens = self.factory.tok_env().clone();
        Ok(Box::new(JsonForm { matcher, tokens, end: self.end, ends }))
    }
}

/// The schema of any object.
pub(crate) fn any_object() -> Value {
    serde_json::json!({"type": "object"})
}

/// A panic of the library is an error.
fn contained<T>(call: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    // What it was working on is dropped.
    catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|_| Err("it cannot be read".to_owned()))
}

/// JSON as far as it is written.
struct JsonForm {
    matcher: Matcher,
    tokens: TokEnv,
    /// The library's only end of the text.
    end: u32,
    /// The model's.
    ends: Vec<u32>,
}

impl fmt::Debug for JsonForm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JsonForm").field("ends", &self.ends).finish_non_exhaustive()
    }
}

fn index(id: u32) -> usize {
    usize::try_from(id).unwrap_or(usize::MAX)
}

impl TokenConstraint for JsonForm {
    fn restrict(&mut self, logits: &mut [f32]) -> Result<(), String> {
        let mask = self.matcher.compute_mask().map_err(|error| problem(&error.to_string()))?;
        let ends: Vec<(usize, f32)> = if mask.is_allowed(self.end) {
            self.ends.iter().filter_map(|id| Some((index(*id), *logits.get(index(*id))?))).collect()
        } else {
            Vec::new()
        };
        let words = mask.as_slice();
        for (word, logits) in logits.chunks_mut(32).enumerate() {
            let allowed = words.get(word).copied().unwrap_or(0);
            for (bit, logit) in logits.iter_mut().enumerate() {
                if allowed >> bit & 1 == 0 {
                    *logit = f32::NEG_INFINITY;
                }
            }
        }
        // The library's end may have the number of a token that the tokenizer lacks and the model has.
        for id in self.ends.iter().chain([&self.end]) {
            if let Some(logit) = logits.get_mut(index(*id)) {
                *logit = f32::NEG_INFINITY;
            }
        }
        for (id, logit) in ends {
            logits[id] = logit;
        }
        Ok(())
    }

    fn advance(&mut self, token: u32) -> Result<bool, String> {
        if self.ends.contains(&token) {
            return Ok(true);
        }
        self.matcher.consume_token(token).map_err(|error| problem(&error.to_string()))?;
        if self.matcher.is_stopped() {
            return Ok(true);
        }
        // White space may follow an object, a list or a string, but nothing that matters.
        let closes = self.tokens.tok_trie().token(token).last().is_some_and(|byte| b"}]\"".contains(byte));
        if !closes {
            return Ok(false);
        }
        self.matcher.is_accepting().map_err(|error| problem(&error.to_string()))
    }

    fn copy(&self) -> Box<dyn TokenConstraint> {
        Box::new(Self {
            matcher: self.matcher.deep_clone(),
            tokens: self.tokens.clone(),
            end: self.end,
            ends: self.ends.clone(),
        })
    }
}

fn problem(error: &str) -> String {
    let first: String = error.lines().next().unwrap_or_default().chars().take(200).collect();
    format!("the form of the answer: {first}; give a simpler schema")
}
