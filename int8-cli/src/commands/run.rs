//! `int8 run`: load, convert, generate.

use std::ops::ControlFlow;
use std::time::Instant;

use int8_nn::{GenerateOptions, Sampling, StopReason};
use serde_json::json;

use super::{input_ids, settings};
use crate::Failure;
use crate::args::RunArgs;
use crate::convert::{count, real};
use crate::output::{Output, bytes};
use crate::plan;

/// Continues a prompt.
pub(crate) fn run(arguments: &RunArgs, output: &Output) -> Result<(), Failure> {
    let begin = Instant::now();
    let model = plan::load(&arguments.model, output)?;
    let load = begin.elapsed();
    let prompt = input_ids(&model, &arguments.input)?;
    let options = GenerateOptions {
        max_new_tokens: arguments.max_tokens,
        sampling: if arguments.greedy {
            Sampling::Greedy
        } else {
            Sampling::Random {
                temperature: arguments.temperature,
                top_k: Some(arguments.top_k),
                top_p: Some(arguments.top_p),
                seed: arguments.seed,
            }
        },
        stop_at_eos: !arguments.ignore_eos,
    };

    // Ids in, ids out: without a tokenizer the tokens stream as numbers.
    let tokenizer = match &arguments.input.prompt {
        Some(_) => Some(model.tokenizer()?),
        None => None,
    };
    let mut stream = tokenizer.map(|tokenizer| tokenizer.stream());
    let mut failed = None;
    let mut emit = |id: u32| -> Result<(), Failure> {
        let text = match &mut stream {
            Some(stream) => stream.push(id)?,
            None => format!("{id} "),
        };
        if output.json { Ok(()) } else { output.text(&text) }
    };
    for id in &prompt {
        emit(*id)?;
    }
    let generation = model.generate_ids(&prompt, &options, |id| match emit(id) {
        Ok(()) => ControlFlow::Continue(()),
        Err(failure) => {
            failed = Some(failure);
            ControlFlow::Break(())
        }
    })?;
    if let Some(failure) = failed {
        return Err(failure);
    }
    if let Some(stream) = stream {
        let rest = stream.finish()?;
        if !output.json {
            output.text(&rest)?;
        }
    }

    // The first new token comes out of the prompt's step.
    let steps = generation.ids.len().saturating_sub(1);
    let (prefill, decode) = (generation.prefill.as_secs_f64(), generation.decode.as_secs_f64());
    let rate = |tokens: usize, seconds: f64| if seconds > 0.0 { real(tokens) / seconds } else { 0.0 };
    let footprint = model.decoder().footprint();
    let all = [&prompt[..], &generation.ids].concat();
    if output.json {
        let text = tokenizer.map(|tokenizer| tokenizer.decode(&all)).transpose()?;
        return output.object(&json!({
            "model": arguments.model.model,
            "scheme": plan::precision_name(&arguments.model.precision),
            "settings": settings(model.precision()),
            "text": text,
            "prompt_ids": prompt,
            "new_ids": generation.ids,
            "ids": all,
            "stop": match generation.stop {
                StopReason::Length => "length",
                StopReason::EndOfText => "end_of_text",
                StopReason::ContextFull => "context_full",
                StopReason::Caller => "caller",
            },
            "load_seconds": load.as_secs_f64(),
            "prefill_tokens_per_second": rate(prompt.len(), prefill),
            "decode_tokens_per_second": rate(steps, decode),
            "weight_bytes": footprint.total(),
        }));
    }
    output.line("")?;
    output.remark(&output.dim(&format!(
        "{}; loaded in {:.2} s, prompt {} tokens at {:.1}/s, then {:.1} tokens/s; weights {} ({} in 16-bit)",
        plan::precision_name(&arguments.model.precision),
        load.as_secs_f64(),
        prompt.len(),
        rate(prompt.len(), prefill),
        rate(steps, decode),
        bytes(count(footprint.total())),
        bytes(count(footprint.at(2))),
    )));
    if generation.stop == StopReason::ContextFull {
        output.remark(&format!("stopped: the model has only {} positions", model.config().max_positions));
    }
    Ok(())
}
