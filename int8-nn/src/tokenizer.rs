//! Text to token ids and back, by a checkpoint's `tokenizer.json`, or by the files it is made from.

#[cfg(test)]
mod class_tests;
mod files;
mod parse;
mod sentencepiece;
mod settings;

use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokenizers::{AddedToken, PostProcessor, PostProcessorWrapper, Tokenizer as Inner, TruncationParams};

use files::Template;
pub(crate) use settings::Settings;

use crate::Error;
use crate::checkpoint::{Checkpoint, Source};
use crate::tokenizer_checks::{self, contained};

/// Whether a text gets the tokenizer's special tokens, such as a leading `<s>` (`add_special_tokens` in Python).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpecialTokens {
    /// It does: a prompt.
    Add,
    /// It does not: a part of a text, or one whose template has written them.
    Omit,
}

/// A checkpoint's tokenizer.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: Inner,
}

impl Tokenizer {
    /// Reads `tokenizer.json`, or else makes one from `vocab.json` and `merges.txt`, `vocab.txt`, or a SentencePiece model;
    /// `None` when the checkpoint has none of them. Special and added tokens of `tokenizer_config.json`,
    /// `special_tokens_map.json` and `added_tokens.json` are added as transformers adds them.
    ///
    /// # Errors
    /// When a file exists but cannot be read or parsed, or belongs to a tokenizer that is not implemented.
    pub fn read(source: &Source) -> Result<Option<Self>, Error> {
        const FILE: &str = "tokenizer.json";
        let label = source.label(FILE);
        let failed = |problem: String| Error::Tokenizer(format!("{label}: {problem}"));
        let parsed = |bytes: &[u8]| {
            tokenizer_checks::check(bytes)?;
            contained(|| parse::parse(bytes))
        };
        let settings = Settings::read(source)?;
        let (mut inner, template) = if source.contains(FILE) {
            let mut inner = parsed(&source.bytes(FILE)?).map_err(failed)?;
            by_class(&mut inner, &settings)?;
            (inner, None)
        } else {
            let Some((json, template)) = files::tokenizer_json(source, &settings)? else { return Ok(None) };
            (parsed(json.to_string().as_bytes()).map_err(failed)?, Some(template))
        };
        add_tokens(&mut inner, &settings).map_err(failed)?;
        if let Some(template) = template {
            set_template(&mut inner, &template)?;
        }
        // Some files configure truncation and padding for training.
        inner.with_truncation(None).map_err(|error| failed(error.to_string()))?;
        inner.with_padding(None);
        Ok(Some(Self { inner }))
    }

    /// The tokenizer, or an error that names the missing file.
    pub(crate) fn require<'a>(
        tokenizer: Option<&'a Self>,
        checkpoint: &Checkpoint,
    ) -> Result<&'a Self, Error> {
        tokenizer.ok_or_else(|| {
            Error::Tokenizer(format!(
                "{} is missing, so text cannot be turned into tokens; give token ids instead",
                checkpoint.source().label("tokenizer.json")
            ))
        })
    }

    /// Sets the limit of [`encode_truncated`](Self::encode_truncated).
    ///
    /// # Errors
    /// When it leaves no token beside the special ones.
    pub(crate) fn truncate(&mut self, max_tokens: usize) -> Result<(), Error> {
        // The library's subtraction would underflow.
        let added = self.inner.get_post_processor().map_or(0, |post| post.added_tokens(false));
        if max_tokens <= added {
            return Err(Error::Tokenizer(format!(
                "texts of at most {max_tokens} tokens: the tokenizer adds {added}, so that no text would be left"
            )));
        }
        let truncation = TruncationParams { max_length: max_tokens, ..TruncationParams::default() };
        match self.inner.with_truncation(Some(truncation)) {
            Ok(_) => Ok(()),
            Err(error) => Err(Error::Tokenizer(format!("texts of at most {max_tokens} tokens: {error}"))),
        }
    }

    /// Token ids of a text with its special tokens, truncated as set by [`truncate`](Self::truncate), and whether the text is
    /// whole.
    pub(crate) fn encode_truncated(&self, text: &str) -> Result<(Vec<u32>, bool), Error> {
        let encoding = contained(|| self.inner.encode_fast(text, true)).map_err(Error::Tokenizer)?;
        Ok((encoding.get_ids().to_vec(), encoding.get_overflowing().is_empty()))
    }

    /// Token ids of a text.
    ///
    /// # Errors
    /// When the tokenizer cannot encode the text.
    pub fn encode(&self, text: &str, special: SpecialTokens) -> Result<Vec<u32>, Error> {
        let add = special == SpecialTokens::Add;
        let encoding = contained(|| self.inner.encode_fast(text, add)).map_err(Error::Tokenizer)?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of token ids, without special tokens.
    ///
    /// # Errors
    /// When the tokenizer's decoder fails.
    pub fn decode(&self, ids: &[u32]) -> Result<String, Error> {
        contained(|| self.inner.decode(ids, true)).map_err(Error::Tokenizer)
    }

    /// The tokenizer in the form of `tokenizer.json`.
    ///
    /// # Errors
    /// When the library cannot write it.
    pub fn to_json(&self) -> Result<Value, Error> {
        serde_json::to_value(&self.inner).map_err(|error| Error::Tokenizer(error.to_string()))
    }

    /// The id of a token, added ones included.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Number of tokens, added ones included.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// A decoder for ids that arrive one by one.
    pub fn stream(&self) -> TextStream<'_> {
        TextStream { tokenizer: self, ids: Vec::new(), done: 0, text: 0 }
    }
}

/// The parts that transformers' class replaces in a `tokenizer.json`.
fn by_class(inner: &mut Inner, settings: &Settings) -> Result<(), Error> {
    match &*settings.class {
        "LlamaTokenizer" if !is_byte_level(inner) => {
            let (pre_tokenizer, decoder) = files::llama_parts(settings);
            inner.with_pre_tokenizer(Some(part::<tokenizers::PreTokenizerWrapper>(pre_tokenizer)?));
            inner.with_decoder(Some(part::<tokenizers::DecoderWrapper>(decoder)?));
            without_normalizer(inner)
        }
        "BertTokenizer" | "DistilBertTokenizer" | "MPNetTokenizer" => {
            set_normalizer(inner, files::bert_normalizer(settings))
        }
        "AlbertTokenizer" | "DebertaV2Tokenizer" => {
            let own = serde_json::to_value(inner.get_normalizer());
            let own = own.map_err(|error| Error::Tokenizer(error.to_string()))?;
            let (normalizer, pre_tokenizer) = match &*settings.class {
                "AlbertTokenizer" => files::albert_parts(settings, &own),
                _ => files::deberta_parts(settings),
            };
            inner.with_pre_tokenizer(Some(part::<tokenizers::PreTokenizerWrapper>(pre_tokenizer)?));
            set_normalizer(inner, normalizer)
        }
        _ => Ok(()),
    }
}

fn set_normalizer(inner: &mut Inner, normalizer: Value) -> Result<(), Error> {
    let changed = inner.with_normalizer(Some(part::<tokenizers::NormalizerWrapper>(normalizer)?));
    changed.map(|_| ()).map_err(|error| Error::Tokenizer(error.to_string()))
}

fn without_normalizer(inner: &mut Inner) -> Result<(), Error> {
    let changed = inner.with_normalizer(None::<tokenizers::NormalizerWrapper>);
    changed.map(|_| ()).map_err(|error| Error::Tokenizer(error.to_string()))
}

/// Whether the text is cut into bytes: LLaMA 3's tokenizer, whatever class its files name.
fn is_byte_level(inner: &Inner) -> bool {
    let has =
        |part: serde_json::Result<Value>| part.is_ok_and(|part| part.to_string().contains("\"ByteLevel\""));
    has(serde_json::to_value(inner.get_pre_tokenizer())) || has(serde_json::to_value(inner.get_decoder()))
}

/// A part of a tokenizer from its form in `tokenizer.json`.
fn part<T: DeserializeOwned>(json: Value) -> Result<T, Error> {
    serde_json::from_value(json).map_err(|error| Error::Tokenizer(error.to_string()))
}

/// Adds the tokens that the settings name and the tokenizer does not have among its added ones.
fn add_tokens(inner: &mut Inner, settings: &Settings) -> Result<(), String> {
    let known: std::collections::HashSet<String> =
        inner.get_added_tokens_decoder().into_values().map(|token| token.content).collect();
    let tokens: Vec<AddedToken> = settings.tokens().filter(|token| !known.contains(&token.content)).collect();
    inner.add_tokens(tokens).map(|_| ()).map_err(|error| error.to_string())
}

/// Puts the template's tokens around every text.
fn set_template(inner: &mut Inner, template: &Template) -> Result<(), Error> {
    let mut special = serde_json::Map::new();
    let mut piece = |token: &Option<String>| -> Option<Value> {
        let token = token.as_ref()?;
        let id = inner.token_to_id(token)?;
        special.insert(token.clone(), json!({"id": token, "ids": [id], "tokens": [token]}));
        Some(json!({"SpecialToken": {"id": token, "type_id": 0}}))
    };
    let (before, after) = (piece(&template.before), piece(&template.after));
    let text = json!({"Sequence": {"id": "A", "type_id": 0}});
    let single: Vec<Value> = before.into_iter().chain([text.clone()]).chain(after).collect();
    let pair = json!([text, {"Sequence": {"id": "B", "type_id": 1}}]);
    let json =
        json!({"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": special});
    inner.with_post_processor(Some(part::<PostProcessorWrapper>(json)?));
    Ok(())
}

/// Tokens after which a replacement character at the end stands for bytes that are no UTF-8: a character has at most 4 bytes, one
/// token each.
const LONGEST_CHARACTER: usize = 8;

/// Decodes ids one by one into pieces of text that are whole characters.
#[derive(Debug)]
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    /// Ids of the last piece, as context, and those since.
    ids: Vec<u32>,
    /// Ids at the front of `ids` whose text was returned.
    done: usize,
    /// Bytes of that text.
    text: usize,
}

impl TextStream<'_> {
    /// Adds an id; returns the text that it completes, possibly empty.
    ///
    /// # Errors
    /// When the tokenizer's decoder fails.
    pub fn push(&mut self, id: u32) -> Result<String, Error> {
        self.ids.push(id);
        let text = self.tokenizer.decode(&self.ids)?;
        // A trailing replacement character is an incomplete one.
        let incomplete = text.ends_with('\u{FFFD}') && self.ids.len() - self.done < LONGEST_CHARACTER;
        if incomplete || !text.is_char_boundary(self.text) || text.len() < self.text {
            return Ok(String::new());
        }
        let piece = text[self.text..].to_owned();
        // Of a special token there is no text, and after it alone the next one would lose its leading space.
        if piece.is_empty() {
            return Ok(piece);
        }
        // Decoders treat a first token differently, so the last piece is the context of the next.
        self.ids.drain(..self.done);
        self.done = self.ids.len();
        self.text = self.tokenizer.decode(&self.ids)?.len();
        Ok(piece)
    }

    /// The text of the remaining ids.
    ///
    /// # Errors
    /// When the tokenizer's decoder fails.
    pub fn finish(self) -> Result<String, Error> {
        let text = self.tokenizer.decode(&self.ids)?;
        Ok(text.get(self.text..).unwrap_or_default().to_owned())
    }
}
