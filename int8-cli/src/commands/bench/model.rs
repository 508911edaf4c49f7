//! `int8 bench MODEL`: tokens per second of a model in int8 and as stored, in turns.

use std::path::Path;
use std::time::Instant;

use int8_nn::Model;
use int8_nn::backend::{Backend, FloatType, Precision, RowSelection};
use int8_nn::checkpoint::Checkpoint;
use int8_nn::{Session, SessionOptions};
use serde_json::json;

use crate::args::{BenchArgs, PrecisionArgs};
use crate::bench::typical;
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
    kv_cache: FloatType,
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
        Ok(Self { name, model, kv_cache, cache_bytes: 0, prefill: Vec::new(), decode: Vec::new() })
    }

    /// One prompt and one continuation of fixed tokens, so that both models do the same work.
    fn round(&mut self, prompt: &[u32], new: &[u32]) -> Result<(), Failure> {
        let positions = prompt.len() + new.len();
        let decoder = self.model.decoder();
        let options = SessionOptions {
            kv_cache: self.kv_cache,
            max_rows: prompt.len(),
            max_logits: 1,
            ..SessionOptions::text(positions)
        };
        let mut session = decoder.session(&options)?;
        let last =
            |session: &mut Session<'_, _>| session.logits(&RowSelection::LastOfSegments).map(<[f32]>::len);
        let begin = Instant::now();
        session.forward(&[(0, prompt)])?;
        last(&mut session)?;
        self.prefill.push(begin.elapsed().as_secs_f64());
        let begin = Instant::now();
        for id in new {
            session.forward(&[(0, &[*id])])?;
            last(&mut session)?;
        }
        self.decode.push(begin.elapsed().as_secs_f64());
        self.cache_bytes = session.cache_bytes();
        Ok(())
    }
}

/// Prints the table.
pub(super) fn run(
    path: &Path,
    arguments: &BenchArgs,
    device: &Device,
    output: &Output,
) -> Result<(), Failure> {
    if arguments.prompt_tokens == 0 || arguments.new_tokens == 0 {
        return Err(Failure::usage("--prompt-tokens and --new-tokens must be at least 1"));
    }
    let checkpoint = Checkpoint::open(hub::folder(path, None, output)?)?;
    device.run(checkpoint, Bench { path, arguments, device, output }, output)
}

struct Bench<'a> {
    path: &'a Path,
    arguments: &'a BenchArgs,
    device: &'a Device,
    output: &'a Output,
}

impl Task for Bench<'_> {
    type Output = ();

    fn precision(&self) -> Result<Precision, Failure> {
        let precision = PrecisionArgs { int8_head: self.arguments.int8_head, ..PrecisionArgs::default() };
        resolve::precision(&precision)
    }

    fn run<B: Backend + 'static>(self, place: &Place<B>) -> Result<(), Failure> {
        let Self { path, arguments, device, output } = self;
        let (prompt, new) = (arguments.prompt_tokens, arguments.new_tokens);
        let kernel = match place.processor {
            Processor::Cpu => Some(device.kernel()?.name()),
            Processor::Gpu => None,
        };
        let mut runners = [
            Runner::load(place.precision, arguments, place, output)?,
            Runner::load(Precision::Float, arguments, place, output)?,
        ];
        let vocabulary = runners[0].model.config().vocab_size;
        let id = |i: usize| u32::try_from(i * 7919 % vocabulary).unwrap_or(0);
        let ids: Vec<u32> = (0..prompt + new).map(id).collect();
        let rounds = if arguments.quick { QUICK_ROUNDS } else { ROUNDS };
        let bar = output.bar("timing", "rounds");
        for round in 0..=rounds {
            for runner in &mut runners {
                // Inside the pool, as `int8 run` generates.
                rayon::scope(|_| runner.round(&ids[..prompt], &ids[prompt..]))?;
                if round == 0 {
                    // A warm-up of pages and clocks, which also read the exact columns.
                    runner.prefill.clear();
                    runner.decode.clear();
                }
            }
            bar.set(round, rounds);
        }
        bar.clear();

        let rate = |tokens: usize, times: &[f64]| real(tokens) / typical(times, arguments.best);
        let rates: Vec<[f64; 2]> =
            runners.iter().map(|runner| [rate(prompt, &runner.prefill), rate(new, &runner.decode)]).collect();
        let ratio = [0, 1].map(|i| rates[0][i] / rates[1][i]);
        if output.json {
            let row = |runner: &Runner<B>, rates: &[f64; 2]| {
                json!({
                    "weights": runner.name,
                    "prefill_tokens_per_second": rates[0],
                    "decode_tokens_per_second": rates[1],
                    "weight_bytes": runner.model.decoder().footprint().total(),
                    "int8_head": matches!(runner.model.precision(), Precision::Int8(q) if q.int8_head),
                    "kv_cache": runner.kv_cache.name(),
                    "kv_cache_bytes": runner.cache_bytes,
                })
            };
            return output.object(&json!({
                "model": path,
                "device": place.devices.describe(),
                "kernel": kernel,
                "threads": rayon::current_num_threads(),
                "statistic": if arguments.best { "best" } else { "median" },
                "rounds": rounds,
                "prompt_tokens": prompt,
                "new_tokens": new,
                "runs": runners.iter().zip(&rates).map(|(runner, rates)| row(runner, rates)).collect::<Vec<_>>(),
                "prefill_speed_up": ratio[0],
                "decode_speed_up": ratio[1],
            }));
        }
        output.line(&output.bold("weights       bytes   prompt tokens/s   new tokens/s"))?;
        for (runner, [prefill, decode]) in runners.iter().zip(&rates) {
            let size = bytes(count(runner.model.decoder().footprint().total()));
            output.line(&format!("{:10} {size:>8} {prefill:>17.1} {decode:>14.1}", runner.name))?;
        }
        output.line(&format!("{:10} {:>8} {:>16.2}x {:>13.2}x", "speed-up", "", ratio[0], ratio[1]))
    }
}
