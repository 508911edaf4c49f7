//! What a stranger's `tokenizer.json` could do to the tokenizers library, found before it is loaded, and its panics contained.
//!
//! The library runs the file's chain of steps without bounds: sixteen replacements of one letter by two make of a letter 65,536.
//! Each check bounds the growth of a text, the work of a word, or an allocation that the file alone decides.

use std::panic::{AssertUnwindSafe, catch_unwind};

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

/// Largest file: twice the largest in use (Gemma's, 34 MB). The library takes up to ten times its size.
const MOST_BYTES: usize = 72 << 20;

/// Largest section beside vocabulary and added tokens: ten times the largest character map in use (0.5 MB in base 64).
const MOST_SECTION: usize = 5 << 20;

/// Most times that a chain of steps may make a text longer. Those in use: 3 (a space becomes `▁`).
const MOST_GROWTH: f64 = 256.0;

/// Most bytes that a character map or a step may put in the place of a character: Unicode's longest is 33.
const MOST_REPLACEMENT: usize = 128;

/// Most tokens that a post-processor adds to a text, and most places in its template.
const MOST_ADDED: usize = 1_000;

/// Most characters of a word that WordPiece searches: its work grows with their third power. In use: 100.
const MOST_WORD: u64 = 1_000;

/// Most repetitions that a pattern may count, nested ones multiplied: each is compiled on its own.
const MOST_REPEATS: u64 = 10_000;

/// Longest pattern: the longest in use (GPT-4o's) has 600 bytes.
const MOST_PATTERN: usize = 20_000;

/// Most steps of a chain, nested ones included.
const MOST_STEPS: usize = 200;

/// The parts of the file that are checked; the vocabulary is skipped.
#[derive(Deserialize)]
struct File<'a> {
    #[serde(borrow, default)]
    normalizer: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pre_tokenizer: Option<&'a RawValue>,
    #[serde(borrow, default)]
    post_processor: Option<&'a RawValue>,
    #[serde(borrow, default)]
    decoder: Option<&'a RawValue>,
    #[serde(default)]
    model: Option<Model>,
}

#[derive(Deserialize)]
struct Model {
    #[serde(default)]
    max_input_chars_per_word: Option<Value>,
    #[serde(default)]
    continuing_subword_prefix: Option<Value>,
    #[serde(default)]
    end_of_word_suffix: Option<Value>,
}

/// Refuses a file that would exhaust memory or time.
///
/// # Errors
/// What it is, continuing "FILE: …".
pub(crate) fn check(file: &[u8]) -> Result<(), String> {
    if file.len() > MOST_BYTES {
        return Err(format!("it has {} bytes; at most {MOST_BYTES} are read", file.len()));
    }
    let file: File<'_> = serde_json::from_slice(file).map_err(|error| error.to_string())?;
    let section = |name: &str, raw: Option<&RawValue>| match raw.map(RawValue::get) {
        None | Some("null") => Ok(Value::Null),
        Some(text) if text.len() > MOST_SECTION => {
            Err(format!("its {name} has {} bytes; at most {MOST_SECTION} are read", text.len()))
        }
        Some(text) => serde_json::from_str(text).map_err(|error| error.to_string()),
    };
    for (name, raw) in
        [("normalizer", file.normalizer), ("pre_tokenizer", file.pre_tokenizer), ("decoder", file.decoder)]
    {
        let mut chain = Chain { growth: 1.0, steps: 0 };
        chain.add(&section(name, raw)?).map_err(|problem| format!("its {name} {problem}"))?;
    }
    let mut added = Added { places: 1, tokens: 0 };
    let processor = section("post_processor", file.post_processor)?;
    added.add(&processor, 0).map_err(|problem| format!("its post_processor {problem}"))?;
    let Some(model) = file.model else { return Ok(()) };
    // They are added to each character of a text.
    for affix in [&model.continuing_subword_prefix, &model.end_of_word_suffix].into_iter().flatten() {
        if affix.as_str().is_some_and(|affix| affix.len() > MOST_REPLACEMENT) {
            return Err(format!(
                "its model adds a text of more than {MOST_REPLACEMENT} bytes to a character"
            ));
        }
    }
    let word = model.max_input_chars_per_word;
    match word {
        Some(word) if word.as_u64().is_none_or(|word| word > MOST_WORD) => {
            Err(format!("its max_input_chars_per_word is {word}; at most {MOST_WORD} are supported"))
        }
        _ => Ok(()),
    }
}

/// A chain of steps, run one after the other over a text.
struct Chain {
    growth: f64,
    steps: usize,
}

impl Chain {
    /// Adds a step, or those of a sequence.
    fn add(&mut self, step: &Value) -> Result<(), String> {
        self.steps += 1;
        if self.steps > MOST_STEPS {
            return Err(format!("has more than {MOST_STEPS} steps"));
        }
        for key in ["normalizers", "pretokenizers", "decoders"] {
            for inner in step.get(key).and_then(Value::as_array).into_iter().flatten() {
                self.add(inner)?;
            }
        }
        let text = |key: &str| step.get(key).and_then(Value::as_str).unwrap_or_default();
        let pattern = step.get("pattern");
        if let Some(pattern) = pattern.and_then(|pattern| pattern.get("Regex")).and_then(Value::as_str) {
            check_pattern(pattern)?;
        }
        match step.get("type").and_then(Value::as_str) {
            Some("Replace") => {
                // A pattern may match the empty text, before each character.
                let replaced = pattern.and_then(|pattern| pattern.get("String")).and_then(Value::as_str);
                let growth = match replaced.map(str::len) {
                    None | Some(0) => count(text("content").len() + 1),
                    Some(length) => count(text("content").len()) / count(length),
                };
                if text("content").len() > MOST_REPLACEMENT {
                    return Err(format!("replaces by a text of more than {MOST_REPLACEMENT} bytes"));
                }
                self.growth *= growth.max(1.0);
            }
            // It stands before each piece of a text.
            Some("Prepend") if text("prepend").len() > MOST_REPLACEMENT => {
                return Err(format!("puts a text of more than {MOST_REPLACEMENT} bytes before another"));
            }
            Some("Precompiled") => check_charsmap(text("precompiled_charsmap"))?,
            Some("FixedLength") if step.get("length").and_then(Value::as_u64) == Some(0) => {
                return Err("cuts a text into pieces of 0 characters".to_owned());
            }
            _ => {}
        }
        if self.growth > MOST_GROWTH {
            return Err(format!("makes a text more than {MOST_GROWTH} times as long"));
        }
        Ok(())
    }
}

/// Below 2⁵³: exact.
fn count(length: usize) -> f64 {
    crate::convert::f64_from(length)
}

/// Counted repetitions are compiled one by one.
fn check_pattern(pattern: &str) -> Result<(), String> {
    if pattern.len() > MOST_PATTERN {
        return Err(format!("has a pattern of more than {MOST_PATTERN} bytes"));
    }
    let counts = pattern.split('{').skip(1).filter_map(|rest| rest.split_once('}')).map(|(counts, _)| {
        let counts = counts.split(',').map(|count| count.trim().parse::<u64>());
        counts.map(|count| count.unwrap_or(1)).max().unwrap_or(1)
    });
    let repeats = counts.fold(1_u64, |product, count| product.saturating_mul(count.max(1)));
    if repeats > MOST_REPEATS {
        Err(format!("has a pattern that repeats more than {MOST_REPEATS} times"))
    } else {
        Ok(())
    }
}

/// SentencePiece's map of characters, in base 64: `u32` bytes of the trie, the trie, and replacements that end in a zero byte.
fn check_charsmap(text: &str) -> Result<(), String> {
    if text.is_empty() {
        return Ok(());
    }
    let map = base64(text).ok_or("has a precompiled_charsmap that is not in base 64")?;
    let damaged = "has a precompiled_charsmap that is damaged";
    let (length, rest) = map.split_first_chunk().ok_or(damaged)?;
    let length = usize::try_from(u32::from_le_bytes(*length)).map_err(|_| damaged)?;
    if !length.is_multiple_of(4) || length == 0 {
        return Err(damaged.to_owned());
    }
    let replacements = rest.get(length..).ok_or(damaged)?;
    if std::str::from_utf8(replacements).is_err() {
        return Err(damaged.to_owned());
    }
    match replacements.split(|byte| *byte == 0).map(<[u8]>::len).max() {
        Some(longest) if longest > MOST_REPLACEMENT => {
            Err(format!("has a precompiled_charsmap that replaces by more than {MOST_REPLACEMENT} bytes"))
        }
        _ => Ok(()),
    }
}

/// Decodes base 64; `None` for other characters.
fn base64(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let (mut bits, mut held) = (0_u32, 0_u32);
    for character in text.trim_end_matches('=').bytes() {
        let value = match character {
            b'A'..=b'Z' => character - b'A',
            b'a'..=b'z' => character - b'a' + 26,
            b'0'..=b'9' => character - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        held += 6;
        if held >= 8 {
            held -= 8;
            bytes.push((bits >> held).to_le_bytes()[0]);
            bits &= (1 << held) - 1;
        }
    }
    Some(bytes)
}

/// Tokens that post-processors add to a text.
struct Added {
    /// How often the text itself stands in the result.
    places: usize,
    tokens: usize,
}

impl Added {
    fn add(&mut self, processor: &Value, depth: usize) -> Result<(), String> {
        if depth > MOST_STEPS {
            return Err(format!("has more than {MOST_STEPS} steps"));
        }
        for inner in processor.get("processors").and_then(Value::as_array).into_iter().flatten() {
            self.add(inner, depth + 1)?;
        }
        let Some(single) = processor.get("single").and_then(Value::as_array) else { return Ok(()) };
        let special = processor.get("special_tokens");
        let (mut places, mut tokens) = (0, 0_usize);
        for piece in single {
            if piece.get("Sequence").is_some() {
                places += 1;
            } else if let Some(name) = piece.get("SpecialToken").and_then(|token| token.get("id")?.as_str()) {
                let token = special.and_then(|special| special.get(name));
                let ids = token.and_then(|token| token.get("ids")?.as_array());
                let ids = ids.ok_or_else(|| {
                    format!("names a token `{}` that it does not define", name.escape_debug())
                })?;
                tokens += ids.len();
            }
        }
        self.places = self.places.saturating_mul(places);
        self.tokens = self.tokens.saturating_mul(places).saturating_add(tokens);
        if single.len() > MOST_ADDED || self.places > 16 || self.tokens > MOST_ADDED {
            return Err(format!("repeats a text or adds more than {MOST_ADDED} tokens to it"));
        }
        Ok(())
    }
}

/// Calls the tokenizers library; its panic is an error.
pub(crate) fn contained<T>(call: impl FnOnce() -> Result<T, tokenizers::Error>) -> Result<T, String> {
    // The library's values are read again only where they were not being written: its cache is behind a lock.
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(_) => Err("the tokenizers library fails on this file".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base_64_is_decoded() {
        assert_eq!(base64("aGVsbG8=").as_deref(), Some(&b"hello"[..]));
        assert_eq!(base64("aGVsbG8h").as_deref(), Some(&b"hello!"[..]));
        assert_eq!(base64("aGVs bG8h"), None);
    }

    #[test]
    fn a_panic_is_an_error() {
        assert!(contained(|| -> Result<(), tokenizers::Error> { panic!("as the library does") }).is_err());
        assert_eq!(contained(|| Ok(3)), Ok(3));
    }
}
