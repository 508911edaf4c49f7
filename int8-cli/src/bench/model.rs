//! A whole model: tokens per second of prompts, and of decode steps with several sequences at once.

use std::time::Instant;

use int8_nn::backend::{Backend, KvType};
use int8_nn::{Error, Model, Sampler, Sampling, Session, SessionOptions};

use crate::convert::real;

/// Decode steps before the timed ones: a device that records its operations does so in the first.
pub(crate) const WARM_UP_STEPS: usize = 4;

/// How a model is measured.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Measurement {
    /// Type of the KV cache.
    pub(crate) kv_cache: KvType,
    /// Prompts to time, after one that is not.
    pub(crate) prompts: usize,
    /// Decode steps to time, after [`WARM_UP_STEPS`].
    pub(crate) steps: usize,
    /// The best time instead of the median.
    pub(crate) best: bool,
}

/// The time of one operation, and the memory of its KV cache.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Measured {
    /// Seconds of one prompt or decode step.
    pub(crate) seconds: f64,
    /// Tokens that it computed.
    pub(crate) tokens: usize,
    /// Bytes of the pages that held keys and values at the end.
    pub(crate) cache_bytes: usize,
}

impl Measured {
    /// Tokens a second.
    pub(crate) fn rate(&self) -> f64 {
        real(self.tokens) / self.seconds
    }
}

impl Measurement {
    /// `batch` prompts of `tokens` tokens each, up to the choice of the first new ones.
    ///
    /// # Errors
    /// When the model has not so many positions, or the device fails.
    pub(crate) fn prefill<B: Backend>(
        &self,
        model: &Model<B>,
        batch: usize,
        tokens: usize,
    ) -> Result<Measured, Error> {
        in_pool(|| {
            let most = model.decoder().backend().capabilities().prefill_rows;
            let options = SessionOptions {
                kv_cache: self.kv_cache,
                sequences: batch,
                max_rows: most.min(batch * tokens),
                max_logits: batch,
                ..SessionOptions::text(tokens)
            };
            let mut session = model.decoder().session(&options)?;
            let prompts: Vec<_> = (0..batch).map(|sequence| prompt(model, sequence, tokens)).collect();
            let segments: Vec<(usize, &[u32])> = prompts.iter().map(Vec::as_slice).enumerate().collect();
            let mut times = Vec::new();
            for round in 0..=self.prompts {
                for sequence in 0..batch {
                    session.clear(sequence)?;
                }
                let begin = Instant::now();
                read_prompts(&mut session, &segments, |session, count| {
                    session.sample(&mut samplers(count)?).map(drop)
                })?;
                if round > 0 {
                    times.push(begin.elapsed().as_secs_f64());
                }
            }
            let cache_bytes = session.cache_bytes();
            Ok(Measured { seconds: typical(&times, self.best), tokens: batch * tokens, cache_bytes })
        })
    }

    /// A decode step of `batch` sequences that hold `context` tokens and then grow, greedily.
    ///
    /// # Errors
    /// As [`prefill`](Self::prefill).
    pub(crate) fn decode<B: Backend>(
        &self,
        model: &Model<B>,
        batch: usize,
        context: usize,
    ) -> Result<Measured, Error> {
        in_pool(|| {
            let options = SessionOptions {
                kv_cache: self.kv_cache,
                sequences: batch,
                max_positions: self.positions(context),
                max_rows: model.decoder().backend().capabilities().prefill_rows.min(context).max(batch),
                max_logits: batch,
                total_positions: None,
            };
            let mut session = model.decoder().session(&options)?;
            for sequence in 0..batch {
                read(&mut session, sequence, &prompt(model, sequence, context))?;
            }
            let mut samplers = samplers(batch)?;
            let mut ids = prompt(model, batch, batch);
            let mut times = Vec::new();
            for step in 0..WARM_UP_STEPS + self.steps {
                let begin = Instant::now();
                let segments: Vec<(usize, &[u32])> = ids.chunks(1).enumerate().collect();
                session.forward(&segments)?;
                ids = session.sample(&mut samplers)?;
                if step >= WARM_UP_STEPS {
                    times.push(begin.elapsed().as_secs_f64());
                }
            }
            let cache_bytes = session.cache_bytes();
            Ok(Measured { seconds: typical(&times, self.best), tokens: batch, cache_bytes })
        })
    }

    /// Positions of a sequence that decodes after `context` tokens.
    pub(crate) fn positions(&self, context: usize) -> usize {
        context.saturating_add(WARM_UP_STEPS).saturating_add(self.steps)
    }
}

/// The median, or the best; NaN of nothing.
pub(crate) fn typical(times: &[f64], best: bool) -> f64 {
    let mut times = times.to_vec();
    times.sort_by(f64::total_cmp);
    times.get(if best { 0 } else { times.len() / 2 }).copied().unwrap_or(f64::NAN)
}

/// Fixed tokens, spread over the vocabulary; others for each sequence.
fn prompt<B: Backend>(model: &Model<B>, sequence: usize, tokens: usize) -> Vec<u32> {
    let vocabulary = model.config().vocab_size;
    let id = |index: usize| u32::try_from((index + 31 * sequence + 1) * 7919 % vocabulary).unwrap_or(0);
    (0..tokens).map(id).collect()
}

/// Reads prompts of equal length, as many whole ones at once as the session computes rows, or the parts of one. `choose` follows
/// each forward that ends some; it is told their number.
pub(crate) fn read_prompts<B: Backend>(
    session: &mut Session<'_, B>,
    prompts: &[(usize, &[u32])],
    mut choose: impl FnMut(&mut Session<'_, B>, usize) -> Result<(), Error>,
) -> Result<(), Error> {
    let length = prompts.first().map_or(1, |(_, prompt)| prompt.len().max(1));
    for prompts in prompts.chunks((session.options().max_rows / length).max(1)) {
        match prompts {
            [(sequence, prompt)] => read(session, *sequence, prompt)?,
            prompts => session.forward(prompts)?,
        }
        choose(session, prompts.len())?;
    }
    Ok(())
}

/// Appends tokens to a sequence as generation does, some rows at a time.
fn read<B: Backend>(session: &mut Session<'_, B>, sequence: usize, ids: &[u32]) -> Result<(), Error> {
    let rows = session.options().max_rows;
    ids.chunks(rows).try_for_each(|ids| session.forward(&[(sequence, ids)]))
}

fn samplers(count: usize) -> Result<Vec<Sampler>, Error> {
    (0..count).map(|_| Sampler::new(Sampling::Greedy)).collect()
}

/// On a thread of the pool, as `int8 run` generates: one outside would hand each forward over to one inside, and sleep.
fn in_pool<R: Send>(operation: impl FnOnce() -> R + Send) -> R {
    rayon::scope(|_| operation())
}
