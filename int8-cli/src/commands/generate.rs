//! Generation with a loaded model, for `int8 run` and for each question of `int8 run --chat`.

use std::ops::ControlFlow;

use int8_nn::backend::Backend;
use int8_nn::{
    GenerateOptions, Generation, GenerationConfig, LogitRules, Model, Sampling, StopReason, Tokenizer,
};
use serde_json::{Value, json};

use super::schema::Schemas;
use super::settings;
use super::stop_flag::StopFlag;
use crate::args::RunArgs;
use crate::convert::{count, real};
use crate::failure::Failure;
use crate::output::{Output, bytes};
use crate::resolve;

/// The text that the new tokens continue: the prompt, or nothing with an encoder-decoder model, which writes another text.
pub(super) fn continued<'a, B: Backend>(model: &Model<B>, prompt: &'a [u32]) -> &'a [u32] {
    if model.answers() { &[] } else { prompt }
}

/// Whether the prompt is printed before the new text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Echo {
    Prompt,
    Nothing,
}

/// A loaded model with the arguments of the command.
pub(super) struct Run<'a, B: Backend> {
    pub(super) arguments: &'a RunArgs,
    pub(super) output: &'a Output,
    pub(super) model: &'a Model<B>,
    pub(super) load_seconds: f64,
    /// Ends the text that is being generated when it is set.
    pub(super) stop: StopFlag,
}

impl<B: Backend> Run<'_, B> {
    /// Generates, and prints each token at once, but with `--json`.
    pub(super) fn generate(
        &self,
        prompt: &[u32],
        tokenizer: Option<&Tokenizer>,
        echo: Echo,
        stop_ids: Vec<u32>,
    ) -> Result<Generation, Failure> {
        let arguments = self.arguments;
        let constraint = Schemas::new(arguments, self.model)?.constraint(None, &stop_ids);
        let options = GenerateOptions {
            max_new_tokens: arguments.max_tokens,
            sampling: sampling(self.arguments, self.model.generation_config())?,
            rules: Some(rules(self.arguments, self.model.generation_config())?),
            constraint: constraint.map_err(Failure::new)?,
            stop_at_eos: !arguments.ignore_eos,
            stop_ids,
            kv_cache: arguments.kv_cache.given(),
        };
        // Before the prompt is printed.
        let most = self.model.config().max_positions;
        if prompt.len() > most {
            return Err(Failure::new(format!(
                "the prompt has {} tokens and this model {most} positions; shorten it",
                prompt.len()
            )));
        }
        let output = self.output;
        let print = |text: &str| if output.json { Ok(()) } else { output.text(text) };
        let mut stream = tokenizer.map(|tokenizer| tokenizer.stream());
        let mut piece = |id: u32| match &mut stream {
            Some(stream) => stream.push(id).map_err(Failure::from),
            None => Ok(format!("{id} ")),
        };
        // The decoder needs the prompt even if it is not shown: it decodes a first token differently.
        for id in continued(self.model, prompt) {
            let text = piece(*id)?;
            if echo == Echo::Prompt {
                print(&text)?;
            }
        }
        let mut failed = None;
        let on_token = |id| match piece(id).and_then(|text| print(&text)) {
            Ok(()) if self.stop.is_set() => ControlFlow::Break(()),
            Ok(()) => ControlFlow::Continue(()),
            Err(failure) => {
                failed = Some(failure);
                ControlFlow::Break(())
            }
        };
        // A thread outside the pool would hand each forward over to one inside, and sleep.
        let generation = rayon::scope(|_| self.model.generate_ids(prompt, &options, on_token))?;
        if let Some(failure) = failed {
            return Err(failure);
        }
        if let Some(stream) = stream {
            print(&stream.finish()?)?;
        }
        Ok(generation)
    }

    /// The object that `--json` prints, with the keys of `more` added.
    pub(super) fn report(&self, prompt: &[u32], generation: &Generation, more: Value) -> Value {
        let precision = &self.arguments.model.precision;
        let mut report = json!({
            "model": self.arguments.model.model,
            "device": self.model.decoder().describe(),
            "scheme": resolve::precision_name(precision),
            "settings": settings(self.model.precision()),
            "prompt_ids": prompt,
            "new_ids": generation.ids,
            "stop": match generation.stop {
                StopReason::Length => "length",
                StopReason::EndOfText => "end_of_text",
                StopReason::ContextFull => "context_full",
                StopReason::Caller => "caller",
            },
            "load_seconds": self.load_seconds,
            "prefill_tokens_per_second": prefill_rate(prompt, generation),
            "decode_tokens_per_second": decode_rate(generation),
            "weight_bytes": self.model.footprint().total(),
            "kv_cache": generation.kv_cache.name(),
            "kv_cache_bytes": generation.kv_cache_bytes,
        });
        if let (Value::Object(report), Value::Object(more)) = (&mut report, more) {
            report.extend(more);
        }
        report
    }

    /// Speed and memory, on standard error.
    pub(super) fn remark(&self, prompt: &[u32], generation: &Generation) {
        let footprint = self.model.footprint();
        self.output.remark(&self.output.dim(&format!(
            "{}; loaded in {:.2} s, prompt {} tokens at {:.1}/s, then {:.1} tokens/s; weights {} ({} in 16-bit), KV cache {} ({})",
            resolve::precision_name(&self.arguments.model.precision),
            self.load_seconds,
            prompt.len(),
            prefill_rate(prompt, generation),
            decode_rate(generation),
            bytes(count(footprint.total())),
            bytes(count(footprint.at(2))),
            bytes(count(generation.kv_cache_bytes)),
            generation.kv_cache.name(),
        )));
        if generation.stop == StopReason::ContextFull {
            let positions = self.model.config().max_positions;
            self.output.remark(&format!("stopped: the model has only {positions} positions"));
        }
    }
}

/// How tokens are chosen: as the options say, or else as the model's own settings do, if they say whether to sample.
pub(super) fn sampling(arguments: &RunArgs, own: &GenerationConfig) -> Result<Sampling, Failure> {
    let RunArgs { greedy, temperature, top_k, top_p, seed, no_generation_config, .. } = arguments;
    let asked = temperature.is_some() || top_k.is_some() || top_p.is_some() || seed.is_some();
    let own = (!no_generation_config).then_some(own);
    if *greedy || *temperature == Some(0.0) || (!asked && own.is_some_and(|own| own.do_sample == Some(false)))
    {
        return Ok(Sampling::Greedy);
    }
    let default = match own.filter(|own| own.do_sample == Some(true)) {
        Some(own) => own.sampling(0)?,
        None => Sampling::Random { temperature: 0.7, top_k: Some(50), top_p: Some(0.95), seed: 0 },
    };
    let Sampling::Random { temperature: of_temperature, top_k: of_top_k, top_p: of_top_p, .. } = default
    else {
        return Ok(default);
    };
    Ok(Sampling::Random {
        temperature: temperature.unwrap_or(of_temperature),
        // 0 stands for all tokens.
        top_k: top_k.or(of_top_k).filter(|k| *k > 0),
        top_p: top_p.or(of_top_p).or(Some(1.0)),
        seed: seed.unwrap_or(0),
    })
}

/// The model's own changes of the logits, with those of the options in their place.
pub(super) fn rules(arguments: &RunArgs, own: &GenerationConfig) -> Result<LogitRules, Failure> {
    let mut rules = if arguments.no_generation_config {
        LogitRules { eos_token_ids: own.rules.eos_token_ids.clone(), ..LogitRules::default() }
    } else {
        own.require_supported(false)?;
        own.rules.clone()
    };
    if let Some(penalty) = arguments.repetition_penalty {
        if !(penalty > 0.0 && penalty.is_finite()) {
            return Err(Failure::usage(format!("--repetition-penalty {penalty}: expected a number above 0")));
        }
        rules.repetition_penalty = penalty;
    }
    rules.no_repeat_ngram_size = arguments.no_repeat_ngram.unwrap_or(rules.no_repeat_ngram_size);
    if let Some(least) = arguments.min_new_tokens {
        (rules.min_new_tokens, rules.min_length) = (least, 0);
    }
    Ok(rules)
}

fn prefill_rate(prompt: &[u32], generation: &Generation) -> f64 {
    rate(prompt.len(), generation.prefill.as_secs_f64())
}

/// The first new token comes from the prompt's forward.
fn decode_rate(generation: &Generation) -> f64 {
    rate(generation.ids.len().saturating_sub(1), generation.decode.as_secs_f64())
}

fn rate(tokens: usize, seconds: f64) -> f64 {
    if seconds > 0.0 { real(tokens) / seconds } else { 0.0 }
}
