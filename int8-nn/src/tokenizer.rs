//! Text to token ids and back, by a checkpoint's `tokenizer.json`.

use tokenizers::{PostProcessor, Tokenizer as Inner, TruncationParams};

use crate::Error;
use crate::checkpoint::{Checkpoint, Source};

/// A checkpoint's tokenizer.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: Inner,
}

impl Tokenizer {
    /// Reads `tokenizer.json`; `None` when the checkpoint has none.
    ///
    /// # Errors
    /// When the file exists but cannot be read or parsed.
    pub fn read(source: &Source) -> Result<Option<Self>, Error> {
        const FILE: &str = "tokenizer.json";
        if !source.contains(FILE) {
            return Ok(None);
        }
        let label = source.label(FILE);
        let failed = |problem: String| Error::Tokenizer(format!("{label}: {problem}"));
        let mut inner = Inner::from_bytes(source.bytes(FILE)?).map_err(|error| failed(error.to_string()))?;
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
        let encoding =
            self.inner.encode_fast(text, true).map_err(|error| Error::Tokenizer(error.to_string()))?;
        Ok((encoding.get_ids().to_vec(), encoding.get_overflowing().is_empty()))
    }

    /// Token ids of a text; if `special`, with the tokenizer's special tokens (such as a leading `<s>`).
    ///
    /// # Errors
    /// When the tokenizer cannot encode the text.
    pub fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>, Error> {
        let encoding =
            self.inner.encode_fast(text, special).map_err(|error| Error::Tokenizer(error.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of token ids, without special tokens.
    ///
    /// # Errors
    /// When the tokenizer's decoder fails.
    pub fn decode(&self, ids: &[u32]) -> Result<String, Error> {
        self.inner.decode(ids, true).map_err(|error| Error::Tokenizer(error.to_string()))
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
