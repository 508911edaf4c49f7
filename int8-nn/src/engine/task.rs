//! A request on its way through the engine, and what threads share about them.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::sampling::{Place, TokenLogprobs, TokenSampler};
use super::text::AnswerText;
use super::{EngineStats, Event, FinishReason, Finished, Rejection, Request, RequestId, Sink};
use crate::{Error, convert};

/// A request with its state.
pub(super) struct Task<'m> {
    pub(super) id: RequestId,
    pub(super) request: Request,
    /// Prompt and answer.
    pub(super) tokens: Vec<u32>,
    pub(super) sampler: TokenSampler,
    pub(super) text: Option<AnswerText<'m>>,
    pub(super) sink: Sink,
    pub(super) submitted: Instant,
    pub(super) first_token: Option<Duration>,
    /// Tokens of the prompt found in other pages.
    pub(super) cached: usize,
    /// Whether it was admitted before.
    pub(super) admitted: bool,
}

impl Task<'_> {
    pub(super) fn new_tokens(&self) -> usize {
        self.tokens.len() - self.request.prompt.len()
    }

    /// Chooses the token behind those that there are.
    pub(super) fn choose(&mut self, logits: &[f32]) -> Result<(u32, Option<TokenLogprobs>), Error> {
        let Self { request, tokens, sampler, .. } = self;
        let prompt = request.prompt.len();
        let place = Place { text: tokens, prompt, most: prompt.saturating_add(request.max_tokens) };
        sampler.next(logits, place)
    }

    /// Tells the sink about the end.
    pub(super) fn finish(&mut self, reason: FinishReason) {
        self.finish_with(reason, self.tokens.len());
    }

    /// As [`finish`](Self::finish), of prompt and answer of `length` tokens.
    pub(super) fn finish_with(&mut self, mut reason: FinishReason, length: usize) {
        let mut text = String::new();
        // What is held back before a stop text is part of it.
        if let Some(answer) = &mut self.text
            && !matches!(reason, FinishReason::StopText(_))
        {
            match answer.finish() {
                Ok((rest, stop)) => {
                    text = rest;
                    if let Some(stop) = stop
                        && matches!(reason, FinishReason::EndOfText | FinishReason::Length)
                    {
                        reason = FinishReason::StopText(stop);
                    }
                }
                Err(error) => reason = FinishReason::Failed(error.to_string()),
            }
        }
        let finished = Finished {
            reason,
            text,
            prompt_tokens: self.request.prompt.len(),
            cached_tokens: self.cached,
            new_tokens: length - self.request.prompt.len(),
            first_token: self.first_token,
            total: self.submitted.elapsed(),
        };
        // Whether anybody listens makes no difference now.
        let _ = (self.sink)(Event::Finished(finished));
    }
}

/// What an engine shares with its handles.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) context: usize,
    pub(super) vocabulary: usize,
    pub(super) has_tokenizer: bool,
    pub(super) max_waiting: usize,
    /// Requests that were accepted and not admitted yet.
    pub(super) waiting: AtomicUsize,
    pub(super) stopped: AtomicBool,
    pub(super) next: AtomicU64,
    pub(super) stats: Mutex<EngineStats>,
}

impl Shared {
    /// Checks a request and takes a place in the queue for it.
    pub(super) fn accept(&self, request: &Request) -> Result<RequestId, Rejection> {
        if self.stopped.load(Ordering::Acquire) {
            return Err(Rejection::Stopped);
        }
        let invalid = |problem: String| Err(Rejection::Invalid(problem));
        let prompt = &request.prompt;
        if prompt.is_empty() {
            return invalid("the prompt is empty: give at least one token to continue".to_owned());
        }
        if prompt.len() > self.context {
            return Err(Rejection::TooLong { prompt: prompt.len(), context: self.context });
        }
        let vocabulary = self.vocabulary;
        if let Some(id) = prompt.iter().find(|id| convert::index(**id) >= vocabulary) {
            return invalid(format!("token id {id} is not in the vocabulary of {vocabulary}"));
        }
        if request.max_tokens == 0 {
            return invalid("max_tokens 0: expected at least 1".to_owned());
        }
        if !request.stop.is_empty() && !self.has_tokenizer {
            return invalid("stop texts need a tokenizer, which this checkpoint lacks".to_owned());
        }
        if request.ignore_eos && request.constraint.is_some() {
            return invalid(
                "an answer of a given form ends where it is complete: leave ignore_eos out".to_owned(),
            );
        }
        if let Err(error) = TokenSampler::new(&request.sampling, vocabulary) {
            return invalid(error.to_string());
        }
        let place = self.waiting.fetch_update(Ordering::AcqRel, Ordering::Acquire, |waiting| {
            (waiting < self.max_waiting).then_some(waiting + 1)
        });
        place.map_err(|waiting| Rejection::Full { waiting })?;
        Ok(self.next.fetch_add(1, Ordering::Relaxed))
    }

    pub(super) fn stats(&self) -> MutexGuard<'_, EngineStats> {
        // Counts stay counts when a thread has panicked.
        self.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
