//! The engine: which request is computed when, on which pages.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use rayon::prelude::*;

use super::sampling::{TokenLogprobs, TokenSampler};
use super::task::{Shared, Task};
use super::text::AnswerText;
use super::{EngineOptions, EngineStats, Event, FinishReason, Rejection, Request, RequestId, Sink, Token};
use crate::backend::{Backend, RowSelection};
use crate::model::Model;
use crate::sampler::{Sampler, Sampling};
use crate::session::{Session, SessionOptions};
use crate::{Error, convert};

/// Tokens from which on a prefix is shared: copying the page that it ends in costs less than computing them.
const LEAST_PREFIX: usize = 16;

/// Many requests on one model; see the [module](super).
pub struct Engine<'m, B: Backend> {
    model: &'m Model<B>,
    session: Session<'m, B>,
    options: EngineOptions,
    /// What each sequence of the session holds.
    slots: Vec<Slot<'m>>,
    waiting: VecDeque<Task<'m>>,
    shared: Arc<Shared>,
    /// Counts uses of kept prefixes.
    clock: u64,
    stats: EngineStats,
}

enum Slot<'m> {
    Free,
    Running(Box<Task<'m>>),
    /// A finished sequence, whose pages serve as a prefix.
    Kept {
        tokens: Vec<u32>,
        used: u64,
    },
}

impl<'m> Slot<'m> {
    fn task(&self) -> Option<&Task<'m>> {
        match self {
            Self::Running(task) => Some(task),
            _ => None,
        }
    }

    fn task_mut(&mut self) -> Option<&mut Task<'m>> {
        match self {
            Self::Running(task) => Some(task),
            _ => None,
        }
    }
}

impl<B: Backend> std::fmt::Debug for Engine<'_, B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine")
            .field("options", &self.options)
            .field("stats", &self.stats)
            .finish_non_exhaustive()
    }
}

impl<'m, B: Backend> Engine<'m, B> {
    /// Allocates KV cache and activations.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for an encoder-decoder; [`Error::Input`] for options that leave no room for one request; when memory
    /// is short.
    pub fn new(model: &'m Model<B>, options: EngineOptions) -> Result<Self, Error> {
        if model.answers() {
            return Err(Error::Unsupported(format!(
                "a {} model reads one text and writes another; requests are served for models that continue a text",
                model.config().family
            )));
        }
        // Requests share prefixes and are computed in pieces: no rotary frequency may depend on a text's length.
        let positions = model.config().fixed_positions();
        let context = options.context.unwrap_or(positions);
        if context == 0 || context > positions {
            let why = if positions < model.config().max_positions {
                ", beyond which its rotary frequencies depend on the length of the text"
            } else {
                ""
            };
            return Err(Error::Input(format!(
                "a context of {context} tokens: this model has 1 to {positions} positions{why}"
            )));
        }
        if options.max_batch == 0 || options.prefill_rows == 0 || options.logits_rows == 0 {
            return Err(Error::Input(
                "a batch of no requests, or no rows of prompts or logits: expected at least 1 of each"
                    .to_owned(),
            ));
        }
        let total = options.total_positions.unwrap_or(options.max_batch.saturating_mul(context));
        if total < context {
            return Err(Error::Input(format!(
                "a KV cache of {total} tokens has no room for one request of {context}; enlarge it or shorten the context"
            )));
        }
        let sequences = options.max_batch + options.kept_prefixes;
        let session = model.decoder().session(&SessionOptions {
            kv_cache: options.kv_cache.unwrap_or(model.decoder().kv_cache_type()),
            sequences,
            max_positions: context,
            max_rows: options.prefill_rows.max(options.max_batch),
            max_logits: options.logits_rows.min(options.max_batch),
            total_positions: Some(total),
        })?;
        let options = EngineOptions { context: Some(context), total_positions: Some(total), ..options };
        let shared = Arc::new(Shared {
            context,
            vocabulary: model.config().vocab_size,
            has_tokenizer: model.tokenizer().is_ok(),
            max_waiting: options.max_waiting,
            waiting: AtomicUsize::new(0),
            stopped: AtomicBool::new(false),
            next: AtomicU64::new(0),
            stats: std::sync::Mutex::default(),
        });
        let stats = EngineStats {
            pages: session.pages(),
            free_pages: session.free_pages(),
            ..EngineStats::default()
        };
        *shared.stats() = stats.clone();
        let slots = (0..sequences).map(|_| Slot::Free).collect();
        Ok(Self { model, session, options, slots, waiting: VecDeque::new(), shared, clock: 0, stats })
    }

    /// The options, with the sizes that were left open.
    pub fn options(&self) -> &EngineOptions {
        &self.options
    }

    /// Counts and state.
    pub fn stats(&self) -> &EngineStats {
        &self.stats
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Appends a request to the queue. `sink` takes its events during [`step`](Self::step).
    ///
    /// # Errors
    /// [`Rejection`], before anything happens.
    pub fn submit(&mut self, request: Request, sink: Sink) -> Result<RequestId, Rejection> {
        let id = self.shared.accept(&request)?;
        self.enqueue(id, request, sink);
        Ok(id)
    }

    /// Appends a request that was accepted.
    pub(super) fn enqueue(&mut self, id: RequestId, request: Request, sink: Sink) {
        let mut request = request;
        let constraint = request.constraint.take();
        let sampler = TokenSampler::new(&request.sampling, self.shared.vocabulary).map(|mut sampler| {
            sampler.constrain(constraint);
            sampler
        });
        let text = match self.model.tokenizer() {
            Ok(tokenizer) => AnswerText::new(tokenizer, &request.prompt, request.stop.clone()).map(Some),
            Err(_) => Ok(None),
        };
        let failure;
        let (sampler, text) = match (sampler, text) {
            (Ok(sampler), Ok(text)) => (sampler, text),
            (Err(error), _) | (_, Err(error)) => {
                failure = error.to_string();
                let mut sink = sink;
                self.shared.waiting.fetch_sub(1, Ordering::AcqRel);
                self.stats.failed += 1;
                let finished = super::Finished {
                    reason: FinishReason::Failed(failure),
                    text: String::new(),
                    prompt_tokens: request.prompt.len(),
                    cached_tokens: 0,
                    new_tokens: 0,
                    first_token: None,
                    total: std::time::Duration::ZERO,
                };
                let _ = sink(Event::Finished(finished));
                return;
            }
        };
        self.waiting.push_back(Task {
            id,
            tokens: request.prompt.clone(),
            request,
            sampler,
            text,
            sink,
            submitted: Instant::now(),
            first_token: None,
            cached: 0,
            admitted: false,
        });
    }

    /// Ends a request, whose pages are free then. Nothing happens if it has ended.
    ///
    /// # Errors
    /// When the device fails.
    pub fn cancel(&mut self, id: RequestId) -> Result<(), Error> {
        if let Some(at) = self.waiting.iter().position(|task| task.id == id) {
            self.drop_waiting(at, FinishReason::Cancelled);
        }
        let running = self.slots.iter().position(|slot| slot.task().is_some_and(|task| task.id == id));
        if let Some(slot) = running {
            self.finish(slot, FinishReason::Cancelled)?;
        }
        self.publish();
        Ok(())
    }

    /// Ends all requests.
    pub(super) fn cancel_all(&mut self) {
        while !self.waiting.is_empty() {
            self.drop_waiting(0, FinishReason::Cancelled);
        }
        for slot in 0..self.slots.len() {
            if self.slots[slot].task().is_some() {
                // A device that fails here is not used again.
                let _ = self.finish(slot, FinishReason::Cancelled);
            }
        }
        self.publish();
    }

    /// Whether there is nothing to do.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running().next().is_none()
    }

    /// One round: admission, at most one forward of prompts and one decode step. A request that cannot be computed fails alone.
    ///
    /// # Errors
    /// When the device fails so that pages cannot be released: the engine is of no use then.
    pub fn step(&mut self) -> Result<(), Error> {
        self.expire()?;
        self.admit()?;
        let mut room = self.options.prefill_rows;
        let mut prompts = Vec::new();
        for (slot, pending) in self.pending() {
            if pending > 1 && room > 0 {
                let rows = pending.min(room);
                room -= rows;
                prompts.push((slot, rows));
            }
        }
        if !prompts.is_empty() {
            self.stats.prefill_forwards += 1;
            self.forward(prompts)?;
        }
        let decode: Vec<_> = self.pending().into_iter().filter(|(_, pending)| *pending == 1).collect();
        if !decode.is_empty() {
            self.stats.decode_forwards += 1;
            self.stats.decode_rows += convert::bytes(decode.len());
            self.forward(decode)?;
        }
        self.publish();
        Ok(())
    }

    /// Running requests, the oldest first, with the number of their tokens that are not computed.
    fn pending(&self) -> Vec<(usize, usize)> {
        let mut running: Vec<_> = self.running().collect();
        running.sort_by_key(|(_, task)| task.id);
        running.iter().map(|(slot, task)| (*slot, task.tokens.len() - self.session.len(*slot))).collect()
    }

    fn running(&self) -> impl Iterator<Item = (usize, &Task<'m>)> {
        self.slots.iter().enumerate().filter_map(|(slot, held)| Some((slot, held.task()?)))
    }

    fn expire(&mut self) -> Result<(), Error> {
        let now = Instant::now();
        let late = |task: &Task<'_>| task.request.deadline.is_some_and(|deadline| deadline <= now);
        while let Some(at) = self.waiting.iter().position(late) {
            self.drop_waiting(at, FinishReason::Deadline);
        }
        let late: Vec<usize> = self.running().filter(|(_, task)| late(task)).map(|(slot, _)| slot).collect();
        late.into_iter().try_for_each(|slot| self.finish(slot, FinishReason::Deadline))
    }

    fn drop_waiting(&mut self, at: usize, reason: FinishReason) {
        if let Some(mut task) = self.waiting.remove(at) {
            if !task.admitted {
                self.shared.waiting.fetch_sub(1, Ordering::AcqRel);
            }
            self.count(&reason);
            task.finish(reason);
        }
    }

    fn count(&mut self, reason: &FinishReason) {
        *match reason {
            FinishReason::EndOfText | FinishReason::StopText(_) | FinishReason::Length => {
                &mut self.stats.finished
            }
            FinishReason::Cancelled => &mut self.stats.cancelled,
            FinishReason::Deadline => &mut self.stats.expired,
            FinishReason::Constraint(_) | FinishReason::Failed(_) => &mut self.stats.failed,
        } += 1;
    }

    /// Gives waiting requests a sequence while there is room for their prompts, and a page more for each that runs.
    fn admit(&mut self) -> Result<(), Error> {
        while let Some(task) = self.waiting.front() {
            let running = self.running().count();
            if running >= self.options.max_batch {
                break;
            }
            let Some((slot, reused)) = self.place(&task.tokens.clone())? else { break };
            let Some(mut task) = self.waiting.pop_front() else { break };
            let rest = task.tokens.len() - reused;
            while self.session.pages_needed(&[(slot, rest)]) + running > self.session.free_pages() {
                if !self.evict(None)? {
                    break;
                }
            }
            if running > 0 && self.session.pages_needed(&[(slot, rest)]) + running > self.session.free_pages()
            {
                self.session.clear(slot)?;
                self.waiting.push_front(task);
                break;
            }
            if !task.admitted {
                self.shared.waiting.fetch_sub(1, Ordering::AcqRel);
                task.admitted = true;
                task.cached = reused;
                self.stats.prompt_tokens += convert::bytes(task.request.prompt.len());
                self.stats.cached_tokens += convert::bytes(reused);
            }
            self.slots[slot] = Slot::Running(Box::new(task));
        }
        Ok(())
    }

    /// A free sequence that begins with the longest prefix of `tokens` that another one holds, and its length.
    fn place(&mut self, tokens: &[u32]) -> Result<Option<(usize, usize)>, Error> {
        let (mut source, mut longest) = (None, 0);
        // A recurrent state cannot be taken back: only all that a sequence holds is a prefix.
        let whole = self.model.config().has_recurrent_state();
        for (slot, held) in self.slots.iter().enumerate() {
            let computed = match held {
                Slot::Free => continue,
                Slot::Running(task) => &task.tokens[..self.session.len(slot)],
                Slot::Kept { tokens, .. } => tokens,
            };
            // One token at least must be computed: the next one is chosen from its logits.
            let most = tokens.len() - 1;
            let common = computed.iter().zip(&tokens[..most]).take_while(|(a, b)| a == b).count();
            if common > longest && (!whole || common == computed.len()) {
                (source, longest) = (Some(slot), common);
            }
        }
        if longest < LEAST_PREFIX {
            (source, longest) = (None, 0);
        }
        if let Some(slot) = source
            && let Slot::Kept { tokens, .. } = &self.slots[slot]
            && tokens.len() == longest
        {
            // All of it is used: the request continues it.
            self.slots[slot] = Slot::Free;
            return Ok(Some((slot, longest)));
        }
        if let Some(slot) = source
            && let Slot::Kept { used, .. } = &mut self.slots[slot]
        {
            self.clock += 1;
            *used = self.clock;
        }
        let free = |slots: &[Slot<'_>]| slots.iter().position(|slot| matches!(slot, Slot::Free));
        if free(&self.slots).is_none() {
            self.evict(source)?;
        }
        let Some(slot) = free(&self.slots) else { return Ok(None) };
        match source {
            Some(source) => self.session.fork(source, slot, longest)?,
            None => self.session.clear(slot)?,
        }
        Ok(Some((slot, longest)))
    }

    /// Gives up the kept prefix that was used least recently, but not `except`. Returns whether there was one.
    fn evict(&mut self, except: Option<usize>) -> Result<bool, Error> {
        let kept = self.slots.iter().enumerate().filter_map(|(slot, held)| match held {
            Slot::Kept { used, .. } if Some(slot) != except => Some((*used, slot)),
            _ => None,
        });
        let Some((_, slot)) = kept.min() else { return Ok(false) };
        self.slots[slot] = Slot::Free;
        self.session.clear(slot)?;
        Ok(true)
    }

    /// Frees pages until this forward has enough: of kept prefixes, then of the youngest requests, which leave it.
    fn make_room(&mut self, batch: &mut Vec<(usize, usize)>) -> Result<(), Error> {
        while self.session.pages_needed(batch) > self.session.free_pages() {
            if self.evict(None)? {
                continue;
            }
            let Some((slot, _)) = self.running().max_by_key(|(_, task)| task.id) else { break };
            batch.retain(|(member, _)| *member != slot);
            self.session.clear(slot)?;
            if let Slot::Running(task) = std::mem::replace(&mut self.slots[slot], Slot::Free) {
                self.stats.preempted += 1;
                self.waiting.push_front(*task);
            }
        }
        Ok(())
    }

    /// Computes so many further tokens of each of these requests, and chooses a token for those that have no more.
    fn forward(&mut self, mut batch: Vec<(usize, usize)>) -> Result<(), Error> {
        self.make_room(&mut batch)?;
        if batch.is_empty() {
            return Ok(());
        }
        let (session, slots) = (&mut self.session, &self.slots);
        let mut segments = Vec::new();
        for (slot, rows) in &batch {
            let Some(task) = slots[*slot].task() else { continue };
            let computed = session.len(*slot);
            segments.push((*slot, &task.tokens[computed..computed + rows]));
        }
        match (session.forward(&segments), &batch[..]) {
            (Ok(()), _) => self.sample(&batch),
            (Err(error), [(slot, _)]) => self.finish(*slot, FinishReason::Failed(error.to_string())),
            // One of them is at fault, and the others have not grown.
            (Err(_), _) => batch.into_iter().try_for_each(|single| self.forward(vec![single])),
        }
    }

    fn sample(&mut self, batch: &[(usize, usize)]) -> Result<(), Error> {
        let (mut rows, mut end) = (Vec::new(), 0);
        for (slot, count) in batch {
            end += count;
            let complete = |task: &Task<'_>| task.tokens.len() == self.session.len(*slot);
            if self.slots[*slot].task().is_some_and(complete) {
                rows.push((*slot, end - 1));
            }
        }
        let limit = self.session.options().max_logits;
        rows.chunks(limit).try_for_each(|rows| self.sample_rows(rows))
    }

    /// Chooses a token from each of these rows of the last forward, `(sequence, row)`.
    fn sample_rows(&mut self, rows: &[(usize, usize)]) -> Result<(), Error> {
        let fail = |engine: &mut Self, error: &Error| {
            let all = rows.iter().map(|(slot, _)| *slot);
            all.into_iter().try_for_each(|slot| engine.finish(slot, FinishReason::Failed(error.to_string())))
        };
        let selected = rows.iter().map(|(_, row)| *row).collect();
        if let Err(error) = self.session.compute_logits(&RowSelection::Rows(selected)) {
            return fail(self, &error);
        }
        // The backend's own draws. A row that this module samples has a place in them, which costs nothing.
        let mut plain = Vec::new();
        let mut samplers = Vec::new();
        for (slot, _) in rows {
            let sampler = self.slots[*slot].task_mut().and_then(|task| task.sampler.of_backend()).cloned();
            plain.push(sampler.is_some());
            samplers.push(match sampler {
                Some(sampler) => sampler,
                None => Sampler::new(Sampling::Greedy)?,
            });
        }
        let mut chosen: Vec<Option<(u32, Option<TokenLogprobs>)>> = vec![None; rows.len()];
        if plain.contains(&true) {
            match self.session.choose(&mut samplers) {
                Ok(ids) => {
                    for (at, id) in ids.into_iter().enumerate().filter(|(at, _)| plain[*at]) {
                        chosen[at] = Some((id, None));
                        let task = self.slots[rows[at].0].task_mut();
                        if let (Some(sampler), Some(drawn)) =
                            (task.and_then(|task| task.sampler.of_backend()), samplers.get(at))
                        {
                            *sampler = drawn.clone();
                        }
                    }
                }
                Err(error) => return self.without_nan(rows, &error),
            }
        }
        if plain.contains(&false) {
            let width = self.shared.vocabulary;
            let logits = match self.session.read_logits() {
                Ok(logits) => logits,
                Err(error) => return fail(self, &error),
            };
            let mut work: Vec<(usize, &mut Task<'_>)> = Vec::new();
            for (slot, held) in self.slots.iter_mut().enumerate() {
                let place = rows.iter().position(|(of, _)| *of == slot);
                if let (Some(at), Some(task)) = (place.filter(|at| !plain[*at]), held.task_mut()) {
                    work.push((at, task));
                }
            }
            let drawn: Vec<_> = work
                .into_par_iter()
                .map(|(at, task)| (at, task.choose(&logits[at * width..(at + 1) * width])))
                .collect();
            for (at, drawn) in drawn {
                match drawn {
                    Ok(token) => chosen[at] = Some(token),
                    Err(error) => self.finish(rows[at].0, FinishReason::of(&error))?,
                }
            }
        }
        for ((slot, _), chosen) in rows.iter().zip(chosen) {
            if let Some((id, logprobs)) = chosen {
                self.deliver(*slot, id, logprobs)?;
            }
        }
        Ok(())
    }

    /// Fails the requests whose logits are NaN, and samples the others.
    fn without_nan(&mut self, rows: &[(usize, usize)], error: &Error) -> Result<(), Error> {
        let width = self.shared.vocabulary;
        let bad: Vec<bool> = match self.session.read_logits() {
            Ok(logits) => {
                logits.chunks_exact(width).map(|row| row.iter().any(|logit| logit.is_nan())).collect()
            }
            Err(_) => vec![true; rows.len()],
        };
        let all = !bad.contains(&true);
        let mut rest = Vec::new();
        for (row, bad) in rows.iter().zip(bad) {
            if bad || all {
                self.finish(row.0, FinishReason::Failed(error.to_string()))?;
            } else {
                rest.push(*row);
            }
        }
        if rest.is_empty() { Ok(()) } else { self.sample_rows(&rest) }
    }

    /// Appends a token to a request and tells its sink; ends it where it has to end.
    fn deliver(&mut self, slot: usize, id: u32, logprobs: Option<TokenLogprobs>) -> Result<(), Error> {
        let full = self.session.len(slot) == self.shared.context;
        let eos = self.model.eos_token_ids();
        let Some(task) = self.slots[slot].task_mut() else { return Ok(()) };
        if task.request.ends(id, eos) {
            return self.finish(slot, FinishReason::EndOfText);
        }
        task.tokens.push(id);
        task.first_token.get_or_insert_with(|| task.submitted.elapsed());
        self.stats.new_tokens += 1;
        let pushed = match &mut task.text {
            Some(text) => text.push(id),
            None => Ok((String::new(), None)),
        };
        let (text, stop) = match pushed {
            Ok(pushed) => pushed,
            Err(error) => return self.finish(slot, FinishReason::Failed(error.to_string())),
        };
        let token = Token { id, text, logprobs };
        let reason = match (task.sink)(Event::Token(token)) {
            ControlFlow::Break(()) => FinishReason::Cancelled,
            ControlFlow::Continue(()) => match stop {
                Some(stop) => FinishReason::StopText(stop),
                None if task.sampler.is_complete() => FinishReason::EndOfText,
                None if full || task.new_tokens() >= task.request.max_tokens => FinishReason::Length,
                None => return Ok(()),
            },
        };
        self.finish(slot, reason)
    }

    /// Ends a running request. Its sequence is kept as a prefix if it ended well and is worth a page.
    fn finish(&mut self, slot: usize, reason: FinishReason) -> Result<(), Error> {
        let Slot::Running(mut task) = std::mem::replace(&mut self.slots[slot], Slot::Free) else {
            return Ok(());
        };
        let computed = self.session.len(slot);
        let well =
            matches!(reason, FinishReason::EndOfText | FinishReason::StopText(_) | FinishReason::Length);
        self.count(&reason);
        if well && self.options.kept_prefixes > 0 && computed >= LEAST_PREFIX {
            let mut tokens = std::mem::take(&mut task.tokens);
            task.finish_with(reason, tokens.len());
            tokens.truncate(computed);
            self.clock += 1;
            self.slots[slot] = Slot::Kept { tokens, used: self.clock };
            if self.kept() > self.options.kept_prefixes {
                self.evict(Some(slot))?;
            }
            return Ok(());
        }
        self.session.clear(slot)?;
        let length = task.tokens.len();
        task.finish_with(reason, length);
        Ok(())
    }

    fn kept(&self) -> usize {
        self.slots.iter().filter(|slot| matches!(slot, Slot::Kept { .. })).count()
    }

    fn publish(&mut self) {
        self.stats.active = self.running().count();
        self.stats.waiting = self.shared.waiting.load(Ordering::Acquire);
        self.stats.kept_prefixes = self.kept();
        self.stats.free_pages = self.session.free_pages();
        self.shared.stats().clone_from(&self.stats);
    }
}
