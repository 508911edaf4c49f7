//! `int8 bench MODEL`: tokens per second of a model in int8 and as stored, in turns.

use std::path::Path;
use std::time::Instant;

use int8_nn::backend::{Backend, KvType, Precision, RowSelection};
use int8_nn::checkpoint::Checkpoint;
use int8_nn::{Model, SessionOptions, SpecialTokens};
use serde_json::{Value, json};

use super::super::read_text;
use crate::args::{BenchArgs, PrecisionArgs, Runs};
use crate::bench::{read_prompts, typical};
use crate::convert::{count, real};
use crate::device::{Device, Place, Processor, Task};
use crate::failure::Failure;
use crate::output::{Output, bytes};
use crate::{hub, resolve};

/// Rounds: the two take turns, and the median of each is reported.
const ROUNDS: usize = 5;
const QUICK_ROUNDS: usize = 2;

/// A model in one precision.
struct Runner<B: Backend> {
    name: &'static str,
    model: Model<B>,
    kv_cache: KvType,
    batches: Vec<Batch>,
}

/// Sequences that are read and continued together, with the seconds of each round.
struct Batch {
    sequences: usize,
    cache_bytes: usize,
    prefill: Vec<f64>,
    decode: Vec<f64>,
}

impl<B: Backend> Runner<B> {
    fn load(
        precision: Precision,
        arguments: &BenchArgs,
        place: &Place<B>,
        output: &Output,
    ) -> Result<Self, Failure> {
        let model = resolve::load_as(precision, &PrecisionArgs::default(), place, output)?;
        let name = if *model.precision() == Precision::Float { "as stored" } else { "int8" };
        let kv_cache = arguments.kv_cache.given().unwrap_or(model.decoder().kv_cache_type());
        let batches = arguments.batches().iter().map(|&sequences| Batch {
            sequences,
            cache_bytes: 0,
            prefill: Vec::new(),
            decode: Vec::new(),
        });
        Ok(Self { name, model, kv_cache, batches: batches.collect() })
    }

    /// The prompts, as many at once as the device computes rows, or the parts of one, and continuations of fixed tokens, so that
    /// both models do the same work.
    fn round(&mut self, batch: usize, ids: &[u32], prompt: usize, new: usize) -> Result<(), Failure> {
        let batch = &mut self.batches[batch];
        let sequences = batch.sequences;
        let rows = self.model.decoder().backend().capabilities().prefill_rows.max(sequences);
        let options = SessionOptions {
            kv_cache: self.kv_cache,
            sequences,
            max_rows: rows,
            max_logits: sequences,
            ..SessionOptions::text(prompt + new)
        };
        let mut session = self.model.decoder().session(&options)?;
        // Other tokens for each sequence, from the beginning again where there are too few.
        let text = |sequence: usize, range: std::ops::Range<usize>| -> Vec<u32> {
            let first = sequence * (prompt + new);
            range.map(|at| ids[(first + at) % ids.len()]).collect()
        };
        let prompts: Vec<_> = (0..sequences).map(|sequence| text(sequence, 0..prompt)).collect();
        let begin = Instant::now();
        let segments: Vec<(usize, &[u32])> = prompts.iter().map(Vec::as_slice).enumerate().collect();
        read_prompts(&mut session, &segments, |session, _| {
            session.logits(&RowSelection::LastOfSegments).map(drop)
        })?;
        batch.prefill.push(begin.elapsed().as_secs_f64());
        let begin = Instant::now();
        for step in prompt..prompt + new {
            let ids: Vec<_> = (0..sequences).map(|sequence| text(sequence, step..step + 1)).collect();
            let segments: Vec<(usize, &[u32])> = ids.iter().map(Vec::as_slice).enumerate().collect();
            session.forward(&segments)?;
            session.logits(&RowSelection::LastOfSegments)?;
        }
        batch.decode.push(begin.elapsed().as_secs_f64());
        batch.cache_bytes = session.cache_bytes();
        Ok(())
    }

    /// Tokens a second of prompts and of continuations, for each batch.
    fn rates(&self, prompt: usize, new: usize, best: bool) -> Vec<[f64; 2]> {
        let of = |tokens: usize, times: &[f64]| real(tokens) / typical(times, best);
        let rates = |batch: &Batch| {
            [of(batch.sequences * prompt, &batch.prefill), of(batch.sequences * new, &batch.decode)]
        };
        self.batches.iter().map(rates).collect()
    }

    fn json(&self, rates: &[[f64; 2]]) -> Value {
        let batch = |(batch, [prefill, decode]): (&Batch, &[f64; 2])| {
            json!({
                "batch": batch.sequences,
                "prefill_tokens_per_second": prefill,
                "decode_tokens_per_second": decode,
                "kv_cache_bytes": batch.cache_bytes,
            })
        };
        json!({
            "weights": self.name,
            "weight_bytes": self.model.decoder().footprint().total(),
            "int8_head": matches!(self.model.precision(), Precision::Int8(q) if q.int8_head),
            "kv_cache": self.kv_cache.name(),
            "batches": self.batches.iter().zip(rates).map(batch).collect::<Vec<_>>(),
        })
    }
}

/// Prints the table.
pub(super) fn run(
    path: &Path,
    arguments: &BenchArgs,
    device: &Device,
    output: &Output,
) -> Result<(), Failure> {
    let sizes = [arguments.prompt_tokens, arguments.new_tokens];
    if sizes.iter().chain(arguments.batches()).any(|size| *size == 0) {
        return Err(Failure::usage("--prompt-tokens, --new-tokens and --batch must be at least 1"));
    }
    let text = arguments.text.as_deref().map(|file| read_text("--text", file)).transpose()?;
    let checkpoint = Checkpoint::open(hub::folder(path, None, output)?)?;
    device.run(
        checkpoint,
        Bench { path, text, arguments, precision: arguments.precision(), device, output },
        output,
    )
}

struct Bench<'a> {
    path: &'a Path,
    text: Option<String>,
    arguments: &'a BenchArgs,
    precision: PrecisionArgs,
    device: &'a Device,
    output: &'a Output,
}

impl Bench<'_> {
    /// Tokens of the text, or ids spread over the vocabulary.
    fn ids<B: Backend>(&self, model: &Model<B>, count: usize) -> Result<Vec<u32>, Failure> {
        let Some(text) = &self.text else {
            let vocabulary = model.config().vocab_size;
            return Ok((0..count).map(|i| u32::try_from(i * 7919 % vocabulary).unwrap_or(0)).collect());
        };
        let ids = model.tokenizer()?.encode(text, SpecialTokens::Omit)?;
        if ids.is_empty() { Err(Failure::usage("--text: the text has no tokens")) } else { Ok(ids) }
    }
}

impl Task for Bench<'_> {
    type Output = ();

    fn precision(&self) -> Result<Precision, Failure> {
        resolve::precision(&self.precision)
    }

    fn options(&self) -> Option<&PrecisionArgs> {
        Some(&self.precision)
    }

    fn run<B: Backend + 'static>(self, place: &Place<B>) -> Result<(), Failure> {
        let Self { path, arguments, device, output, .. } = self;
        let (prompt, new) = (arguments.prompt_tokens, arguments.new_tokens);
        let kernel = match place.processor {
            Processor::Cpu => Some(device.kernel()?.name()),
            Processor::Gpu => None,
        };
        let mut runners = Vec::new();
        for (precision, other) in [(place.precision, Runs::Fp), (Precision::Float, Runs::Int8)] {
            if arguments.only != Some(other) {
                runners.push(Runner::load(precision, arguments, place, output)?);
            }
        }
        let most = arguments.batches().iter().max().copied().unwrap_or(1);
        let ids = self.ids(&runners[0].model, most * (prompt + new))?;
        let rounds = if arguments.quick { QUICK_ROUNDS } else { ROUNDS };
        let bar = output.bar("timing", "rounds");
        for round in 0..=rounds {
            for batch in 0..arguments.batches().len() {
                for runner in &mut runners {
                    // Inside the pool, as `int8 run` generates.
                    rayon::scope(|_| runner.round(batch, &ids, prompt, new))?;
                    if round == 0 {
                        // A warm-up of pages and clocks, which also read the exact columns.
                        runner.batches[batch].prefill.clear();
                        runner.batches[batch].decode.clear();
                    }
                }
            }
            bar.set(round, rounds);
        }
        bar.clear();

        let rates: Vec<_> = runners.iter().map(|runner| runner.rates(prompt, new, arguments.best)).collect();
        // Of int8 over as stored, where both ran.
        let ratios: Vec<[f64; 2]> = match &rates[..] {
            [int8, stored] => int8.iter().zip(stored).map(|(a, b)| [a[0] / b[0], a[1] / b[1]]).collect(),
            _ => Vec::new(),
        };
        if output.json {
            let ratio = |(batch, [prefill, decode]): (&usize, &[f64; 2])| json!({"batch": batch, "prefill": prefill, "decode": decode});
            return output.object(&json!({
                "model": path,
                "device": place.devices.describe(),
                "kernel": kernel,
                "threads": rayon::current_num_threads(),
                "settings": resolve::precision_name(&arguments.precision()),
                "text": arguments.text,
                "statistic": if arguments.best { "best" } else { "median" },
                "rounds": rounds,
                "prompt_tokens": prompt,
                "new_tokens": new,
                "runs": runners.iter().zip(&rates).map(|(runner, rates)| runner.json(rates)).collect::<Vec<_>>(),
                "speed_ups": arguments.batches().iter().zip(&ratios).map(ratio).collect::<Vec<_>>(),
            }));
        }
        output.line(&output.bold("weights       bytes   sequences   prompt tokens/s   new tokens/s"))?;
        for (runner, rates) in runners.iter().zip(&rates) {
            let size = bytes(count(runner.model.decoder().footprint().total()));
            for (batch, [prefill, decode]) in runner.batches.iter().zip(rates) {
                let sequences = batch.sequences;
                output.line(&format!(
                    "{:10} {size:>8} {sequences:>11} {prefill:>17.1} {decode:>14.1}",
                    runner.name
                ))?;
            }
        }
        for (sequences, [prefill, decode]) in arguments.batches().iter().zip(&ratios) {
            output.line(&format!(
                "{:10} {:>8} {sequences:>11} {prefill:>16.2}x {decode:>13.2}x",
                "speed-up", ""
            ))?;
        }
        Ok(())
    }
}
