//! Many requests at once: a queue, continuous batching over the pages of a KV cache, and a stream of tokens for each request.
//!
//! The engine knows nothing of HTTP and starts no thread. [`Engine::step`] does one round:
//! 1. *Admission*, first come first served, while a sequence and enough pages are free. A request begins with the pages of the
//!    sequence, running or finished, that shares the longest prefix with it ([`Session::fork`](crate::Session::fork)).
//! 2. *Prefill*: one forward of at most [`EngineOptions::prefill_rows`] tokens of prompts, the oldest request first.
//! 3. *Decode*: one forward with one token of each sequence whose prompt is done. It has nothing but decode steps in it, so
//!    that a backend that records graphs replays one for each number of sequences.
//!
//! When pages run short, finished sequences that are kept for their prefix go first, the least recently used before the
//! others; then the youngest request gives its pages back and is computed anew later, from the tokens it had.
//!
//! **A request's tokens depend on itself alone**, not on what else runs, on chunks of its prompt, on shared prefixes or on being
//! computed anew: int8 layers of `Value` granularity are batch-invariant, each request has a random state of its own, and the
//! head is computed for at most [`EngineOptions::logits_rows`] rows at once (products in floating point sum in another order
//! from 17 rows on). [`is_batch_invariant`] says for which models this holds.
//!
//! ```no_run
//! use std::ops::ControlFlow;
//!
//! use int8_nn::engine::{Engine, EngineOptions, Event, Request};
//! use int8_nn::Model;
//!
//! let model = Model::load("path/to/checkpoint")?.int8().build()?;
//! let mut engine = Engine::new(&model, EngineOptions::default())?;
//! for prompt in ["Once upon a time", "The sky is"] {
//!     let request = Request::new(model.tokenizer()?.encode(prompt, int8_nn::SpecialTokens::Add)?);
//!     let print = |event| {
//!         if let Event::Token(token) = event {
//!             print!("{}", token.text);
//!         }
//!         ControlFlow::Continue(())
//!     };
//!     engine.submit(request, Box::new(print)).expect("room in the queue");
//! }
//! while !engine.is_idle() {
//!     engine.step()?;
//! }
//! # Ok::<(), int8_nn::Error>(())
//! ```

mod driver;
mod embedding;
mod sampling;
mod scheduler;
mod task;
mod text;

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use int8_core::{Granularity, KvType, OutlierGranularity, OutlierRule};

use crate::backend::Backend;
use crate::constraint::TokenConstraint;
use crate::model::Model;
use crate::precision::Precision;

pub use driver::{Commands, Handle, drive, handle};
pub use embedding::{EmbedHandle, EmbedOptions, EmbedQueue, EmbedSink, embed_handle, serve_embeddings};
pub use sampling::{SamplingParams, TokenLogprobs};
pub use scheduler::Engine;

/// The size of an [`Engine`] and its limits.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EngineOptions {
    /// Requests that are computed at once.
    pub max_batch: usize,
    /// Most tokens of a request, prompt and answer; `None`: all positions of the model.
    pub context: Option<usize>,
    /// Tokens that all sequences share out among them, in whole pages; `None`: enough for `max_batch` full ones.
    pub total_positions: Option<usize>,
    /// KV cache type; `None` for [the type of the checkpoint](crate::decoder::Decoder::kv_cache_type).
    pub kv_cache: Option<KvType>,
    /// Most tokens of prompts in one forward: others wait that long for their next token.
    pub prefill_rows: usize,
    /// Most rows of logits at once. Up to 16, a row does not depend on their number.
    pub logits_rows: usize,
    /// Requests that may wait; more are refused.
    pub max_waiting: usize,
    /// Finished sequences that are kept for requests with the same prefix. Of a model with recurrent states a request continues
    /// all that a sequence holds, or nothing: a state cannot be taken back.
    pub kept_prefixes: usize,
}

impl Default for EngineOptions {
    /// 32 requests of the model's context, 256 tokens of prompts a forward, 128 waiting, 16 kept prefixes.
    fn default() -> Self {
        Self {
            max_batch: 32,
            context: None,
            total_positions: None,
            kv_cache: None,
            prefill_rows: 256,
            logits_rows: 16,
            max_waiting: 128,
            kept_prefixes: 16,
        }
    }
}

/// What to generate.
#[derive(Debug, Clone)]
pub struct Request {
    /// Tokens to continue, at least one.
    pub prompt: Vec<u32>,
    /// How each token is chosen.
    pub sampling: SamplingParams,
    /// Most tokens to add; cut to what the context has room for.
    pub max_tokens: usize,
    /// Tokens that end the answer besides the model's end-of-text tokens.
    pub stop_ids: Vec<u32>,
    /// Texts that end the answer; they are no part of it.
    pub stop: Vec<String>,
    /// Go on after end-of-text tokens and `stop_ids`.
    pub ignore_eos: bool,
    /// The form of the answer; it ends as soon as it is complete. Not with `ignore_eos`.
    pub constraint: Option<Box<dyn TokenConstraint>>,
    /// The answer ends here, finished or not; a request that still waits then fails.
    pub deadline: Option<Instant>,
}

impl Request {
    /// The most probable tokens after `prompt`, until the model ends the text or the context is full.
    pub fn new(prompt: Vec<u32>) -> Self {
        Self {
            prompt,
            sampling: SamplingParams::default(),
            max_tokens: usize::MAX,
            stop_ids: Vec::new(),
            stop: Vec::new(),
            ignore_eos: false,
            constraint: None,
            deadline: None,
        }
    }

    /// Whether a token ends the text; `eos`: the model's end-of-text tokens.
    fn ends(&self, id: u32, eos: &[u32]) -> bool {
        !self.ignore_eos && (eos.contains(&id) || self.stop_ids.contains(&id))
    }
}

/// The number of a request, unique for its engine.
pub type RequestId = u64;

/// Takes the events of a request. `Break` cancels it: nobody listens any more.
pub type Sink = Box<dyn FnMut(Event) -> ControlFlow<()> + Send>;

/// What happens to a request: any number of tokens, then one end.
#[derive(Debug, Clone)]
pub enum Event {
    /// A token was chosen.
    Token(Token),
    /// The answer has ended; nothing follows.
    Finished(Finished),
}

/// A token of an answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Token {
    /// Its id.
    pub id: u32,
    /// Text that is complete with this token: whole characters, and nothing that may become part of a stop text. Empty without a
    /// tokenizer.
    pub text: String,
    /// Logarithms of probabilities, if they were asked for.
    pub logprobs: Option<TokenLogprobs>,
}

/// How an answer ended.
#[derive(Debug, Clone)]
pub struct Finished {
    /// Why.
    pub reason: FinishReason,
    /// The rest of the text, held back until now.
    pub text: String,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Those of them that were found in the pages of another sequence.
    pub cached_tokens: usize,
    /// Tokens of the answer.
    pub new_tokens: usize,
    /// From the submission to the first token, if there was one.
    pub first_token: Option<Duration>,
    /// From the submission to the end.
    pub total: Duration,
}

/// Why an answer ended.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum FinishReason {
    /// The model ended the text.
    EndOfText,
    /// This one of the stop texts was complete.
    StopText(String),
    /// `max_tokens` tokens were generated, or the context is full.
    Length,
    /// [`Engine::cancel`], a sink that breaks, or the end of the engine.
    Cancelled,
    /// The deadline passed.
    Deadline,
    /// The request's [constraint](Request::constraint) cannot be followed further: a mistake of the request.
    Constraint(String),
    /// It cannot be computed.
    Failed(String),
}

impl FinishReason {
    fn of(error: &crate::Error) -> Self {
        match error {
            crate::Error::Constraint(problem) => Self::Constraint(problem.clone()),
            error => Self::Failed(error.to_string()),
        }
    }
}

/// Why a request was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Rejection {
    /// The request contradicts itself or the model.
    #[error("{0}")]
    Invalid(String),
    /// Prompt and answer have no room.
    #[error("the prompt has {prompt} tokens and the context {context}; shorten the prompt")]
    TooLong {
        /// Tokens of the prompt.
        prompt: usize,
        /// Most tokens of prompt and answer.
        context: usize,
    },
    /// Too many requests wait.
    #[error("{waiting} requests are waiting already; try again later")]
    Full {
        /// Their number.
        waiting: usize,
    },
    /// The engine takes no more requests.
    #[error("the engine is shutting down and takes no more requests")]
    Stopped,
}

/// Counts of an engine, since it was made, and its state.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EngineStats {
    /// Requests that are being computed.
    pub active: usize,
    /// Requests that wait.
    pub waiting: usize,
    /// Finished sequences kept for their prefix.
    pub kept_prefixes: usize,
    /// Pages of the KV cache.
    pub pages: usize,
    /// Pages that no sequence holds.
    pub free_pages: usize,
    /// Tokens of prompts of admitted requests.
    pub prompt_tokens: u64,
    /// Those found in the pages of another sequence.
    pub cached_tokens: u64,
    /// Generated tokens.
    pub new_tokens: u64,
    /// Forwards with tokens of prompts.
    pub prefill_forwards: u64,
    /// Forwards with one token a sequence.
    pub decode_forwards: u64,
    /// Rows of the latter.
    pub decode_rows: u64,
    /// Requests that gave their pages back to be computed anew.
    pub preempted: u64,
    /// Requests that ended with the end of the text, a stop text, or their length.
    pub finished: u64,
    /// Requests that were cancelled.
    pub cancelled: u64,
    /// Requests whose deadline passed.
    pub expired: u64,
    /// Requests that failed.
    pub failed: u64,
}

/// Whether this model's tokens for a request do not depend on other requests: its int8 layers share no outlier columns between
/// the rows of a forward, and nothing but its head is a product in floating point, whose sums have another order from 17 rows on.
pub fn is_batch_invariant<B: Backend>(model: &Model<B>) -> bool {
    let Precision::Int8(quantization) = model.precision() else { return false };
    let config = &quantization.config;
    let single = config.rule == OutlierRule::None || config.outlier_granularity == OutlierGranularity::Value;
    single
        && model.decoder().backend().capabilities().batch_invariant
        && config.input_granularity != Granularity::Tensor
        && model.config().experts.is_none()
        && !model.decoder().is_projected()
}
