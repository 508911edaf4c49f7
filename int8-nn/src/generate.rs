//! Generating text, token by token.

use crate::SpecialTokens;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use crate::Error;
use crate::backend::{Backend, KvType, RowSelection};
use crate::constraint::TokenConstraint;
use crate::generation::LogitRules;
use crate::model::Model;
use crate::sampler::{Sampler, Sampling};
use crate::seq2seq::Source;
use crate::session::{Session, SessionOptions};

/// What to generate.
#[derive(Debug, Clone)]
pub struct GenerateOptions {
    /// Most tokens to add.
    pub max_new_tokens: usize,
    /// How each is chosen.
    pub sampling: Sampling,
    /// Stop at the model's end-of-text tokens, and at `stop_ids`.
    pub stop_at_eos: bool,
    /// Further tokens that end the text: what ends a message of a chat, say.
    pub stop_ids: Vec<u32>,
    /// Changes of the logits; `None` for the [model's own](Model::generation_config).
    pub rules: Option<LogitRules>,
    /// The form of the text; it ends as soon as it is complete.
    pub constraint: Option<Box<dyn TokenConstraint>>,
    /// KV cache type; `None` for [the type of the checkpoint](crate::decoder::Decoder::kv_cache_type).
    pub kv_cache: Option<KvType>,
}

impl Default for GenerateOptions {
    /// 64 tokens, greedy, stopping at the end of the text; keys and values in the type of the checkpoint.
    fn default() -> Self {
        Self {
            max_new_tokens: 64,
            sampling: Sampling::Greedy,
            stop_at_eos: true,
            stop_ids: Vec::new(),
            rules: None,
            constraint: None,
            kv_cache: None,
        }
    }
}

/// Why a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopReason {
    /// `max_new_tokens` were generated.
    Length,
    /// The model ended the text.
    EndOfText,
    /// The model has no more positions.
    ContextFull,
    /// The caller's closure asked for it.
    Caller,
}

/// The result of a generation.
#[derive(Debug, Clone)]
pub struct Generation {
    /// The new tokens, without the prompt and without an end-of-text token.
    pub ids: Vec<u32>,
    /// Why it ended.
    pub stop: StopReason,
    /// Time for the prompt.
    pub prefill: Duration,
    /// Time for all tokens after the first.
    pub decode: Duration,
    /// KV cache type.
    pub kv_cache: KvType,
    /// Bytes of the pages that held keys and values at the end, cross-attention included.
    pub kv_cache_bytes: usize,
}

/// Appends a text to the only sequence of an empty session, in forwards of its size.
fn prefill<B: Backend>(session: &mut Session<'_, B>, text: &[u32]) -> Result<(), Error> {
    session.expect(0, text.len());
    let rows = session.options().max_rows;
    text.chunks(rows).try_for_each(|chunk| session.forward(&[(0, chunk)]))
}

impl<B: Backend> Model<B> {
    /// Continues `prompt`, or writes what a model says that has read it; `on_token` sees each new token as it is chosen and may end the generation.
    ///
    /// On a CPU, a caller outside rayon's pool pays for waking a thread in it twice a token; `rayon::scope(|_| …)` around the
    /// call saves it.
    ///
    /// # Errors
    /// [`Error::Config`] for the model's own settings of generation that are not implemented; [`Error::Input`] for an empty prompt, ids outside the vocabulary, a prompt longer than the model's positions, or
    /// bad sampling settings.
    pub fn generate_ids(
        &self,
        prompt: &[u32],
        options: &GenerateOptions,
        on_token: impl FnMut(u32) -> ControlFlow<()>,
    ) -> Result<Generation, Error> {
        let most = self.config().max_positions;
        if prompt.is_empty() {
            return Err(Error::Input("the prompt is empty: give at least one token to continue".to_owned()));
        }
        if prompt.len() > most {
            return Err(Error::Input(format!(
                "the prompt has {} tokens and this model {most} positions; shorten it",
                prompt.len()
            )));
        }
        let rules = match &options.rules {
            Some(rules) => rules,
            None => {
                self.generation_config().require_supported(false)?;
                &self.generation_config().rules
            }
        };
        let begin = Instant::now();
        let start = self.source().map(|source| [source.start_token()]);
        let written = start.as_ref().map_or(prompt, |start| &start[..]);
        let options_of_session = self.writing(written.len(), options);
        let mut session = self.reading(prompt, &options_of_session)?;
        self.write(&mut session, (written, rules, begin), options, on_token)
    }

    /// The session for a text that begins with `written` tokens.
    pub(crate) fn writing(&self, written: usize, options: &GenerateOptions) -> SessionOptions {
        SessionOptions {
            kv_cache: options.kv_cache.unwrap_or(self.decoder().kv_cache_type()),
            max_rows: self.decoder().backend().capabilities().prefill_rows.min(written),
            max_logits: 1,
            ..SessionOptions::text(self.config().max_positions.min(written + options.max_new_tokens))
        }
    }

    /// Continues `written` in an empty session of this size. `begin`: when the work began.
    pub(crate) fn write(
        &self,
        session: &mut Session<'_, B>,
        (written, rules, begin): (&[u32], &LogitRules, Instant),
        options: &GenerateOptions,
        mut on_token: impl FnMut(u32) -> ControlFlow<()>,
    ) -> Result<Generation, Error> {
        let mut sampler = Sampler::new(options.sampling)?
            .with_rules(rules, written, written.len() + options.max_new_tokens)
            .with_constraint(options.constraint.clone());
        let SessionOptions { kv_cache, max_positions: positions, .. } = *session.options();
        prefill(session, written)?;
        let mut generation = Generation {
            ids: Vec::new(),
            stop: StopReason::Length,
            prefill: Duration::ZERO,
            decode: Duration::ZERO,
            kv_cache,
            kv_cache_bytes: 0,
        };
        let mut decoding = None;
        while generation.ids.len() < options.max_new_tokens {
            let id = session.sample(std::slice::from_mut(&mut sampler))?[0];
            // A device may compute the prompt's forward as late as its first token is needed.
            decoding.get_or_insert_with(|| {
                generation.prefill = begin.elapsed();
                Instant::now()
            });
            let ends = self.eos_token_ids().contains(&id) || options.stop_ids.contains(&id);
            if options.stop_at_eos && ends {
                generation.stop = StopReason::EndOfText;
                break;
            }
            generation.ids.push(id);
            if on_token(id).is_break() {
                generation.stop = StopReason::Caller;
                break;
            }
            if sampler.is_complete() {
                generation.stop = StopReason::EndOfText;
                break;
            }
            if generation.ids.len() == options.max_new_tokens {
                break;
            }
            if session.len(0) == positions {
                generation.stop = StopReason::ContextFull;
                break;
            }
            // Phi-3 at the length where its rotary frequencies change.
            if self.config().recomputed_beyond == Some(session.len(0)) {
                session.clear(0)?;
                prefill(session, &[written, &generation.ids].concat())?;
                continue;
            }
            session.forward(&[(0, &[id])])?;
        }
        generation.decode = decoding.map_or(Duration::ZERO, |begin| begin.elapsed());
        generation.kv_cache_bytes = session.cache_bytes();
        Ok(generation)
    }

    /// A session for a text that continues `prompt`; or one whose model has read `prompt` and begins another text.
    fn reading(&self, prompt: &[u32], options: &SessionOptions) -> Result<Session<'_, B>, Error> {
        match self.source() {
            None => self.decoder().session(options),
            Some(source) => source.session(self.decoder(), Source::Text(prompt), options),
        }
    }

    /// Continues a text and returns prompt and continuation; of a model that reads one text and writes another, what it
    /// writes.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] when the checkpoint has no tokenizer; as [`generate_ids`](Self::generate_ids).
    pub fn generate(&self, prompt: &str, options: &GenerateOptions) -> Result<String, Error> {
        let tokenizer = self.tokenizer()?;
        let mut ids = tokenizer.encode(prompt, SpecialTokens::Add)?;
        let new = self.generate_ids(&ids, options, |_| ControlFlow::Continue(()))?;
        if self.answers() {
            return tokenizer.decode(&new.ids);
        }
        ids.extend(new.ids);
        tokenizer.decode(&ids)
    }

    /// As [`generate`](Self::generate), but `on_text` sees the continuation piece by piece as it is written: whole characters, in
    /// pieces that together are the continuation.
    ///
    /// # Errors
    /// As [`generate`](Self::generate).
    pub fn generate_streaming(
        &self,
        prompt: &str,
        options: &GenerateOptions,
        mut on_text: impl FnMut(&str),
    ) -> Result<Generation, Error> {
        let tokenizer = self.tokenizer()?;
        let ids = tokenizer.encode(prompt, SpecialTokens::Add)?;
        let mut stream = tokenizer.stream();
        if !self.answers() {
            // What a first token is decoded to depends on what stands before it.
            for id in &ids {
                stream.push(*id)?;
            }
        }
        let mut failed = None;
        let generation = self.generate_ids(&ids, options, |id| match stream.push(id) {
            Ok(text) => {
                on_text(&text);
                ControlFlow::Continue(())
            }
            Err(error) => {
                failed = Some(error);
                ControlFlow::Break(())
            }
        })?;
        if let Some(error) = failed {
            return Err(error);
        }
        on_text(&stream.finish()?);
        Ok(generation)
    }

    /// Logits `f32 [targets.len(), vocab_size]` of a text `targets` that a model writes about `source`. What it writes
    /// begins with its start token, which is the first of `targets`.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when the model continues texts; [`Error::Input`] as [`logits`](Self::logits).
    pub fn target_logits(&self, source: &[u32], targets: &[u32]) -> Result<ndarray::Array2<f32>, Error> {
        if !self.answers() {
            return Err(Error::Unsupported(format!(
                "a {} model continues texts and reads none besides; take the logits of its own text",
                self.config().family
            )));
        }
        let mut session = self.reading(source, &SessionOptions::text(targets.len()))?;
        session.forward(&[(0, targets)])?;
        let logits = session.logits(&RowSelection::Range(0..targets.len()))?.to_vec();
        self.logit_rows(targets.len(), logits)
    }

    pub(crate) fn logit_rows(&self, rows: usize, logits: Vec<f32>) -> Result<ndarray::Array2<f32>, Error> {
        ndarray::Array2::from_shape_vec((rows, self.config().vocab_size), logits)
            .map_err(|error| Error::Input(format!("logits: {error}")))
    }

    /// Logits `f32 [ids.len(), vocab_size]` of one sequence, computed in one forward.
    ///
    /// # Errors
    /// [`Error::Input`] for no ids, ids outside the vocabulary, or more of them than the model has positions.
    pub fn logits(&self, ids: &[u32]) -> Result<ndarray::Array2<f32>, Error> {
        let mut session = self.decoder().session(&SessionOptions::text(ids.len()))?;
        session.forward(&[(0, ids)])?;
        let logits = session.logits(&RowSelection::Range(0..ids.len()))?.to_vec();
        self.logit_rows(ids.len(), logits)
    }
}
