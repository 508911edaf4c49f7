//! `int8 run`: load, convert, generate.

use std::time::Instant;

use int8_nn::backend::{Backend, Precision};
use serde_json::json;

use super::generate::{Echo, Run, continued};
use super::stop_flag::StopFlag;
use super::{batch, chat, input_ids, no_input, with_text};
use crate::args::{InputArgs, PrecisionArgs, RunArgs};
use crate::device::{Device, Place, Task};
use crate::failure::Failure;
use crate::output::Output;
use crate::resolve;

/// Continues a prompt, or answers it.
pub(crate) fn run(arguments: &RunArgs, device: &Device, output: &Output) -> Result<(), Failure> {
    if let (Some(prompts), Some(out)) = (&arguments.batch, &arguments.out) {
        return batch::run(arguments, prompts, out, device, output);
    }
    let input = with_text(&arguments.input, !arguments.chat)?;
    let chat = chat::Input::of(arguments, &input, output)?;
    if arguments.system.is_some() && chat.is_none() {
        return Err(Failure::usage("--system belongs to a chat: add --chat"));
    }
    if chat.is_none() && input.prompt.is_none() && input.ids.is_none() {
        return Err(no_input());
    }
    let begin = Instant::now();
    let checkpoint = resolve::checkpoint(&arguments.model, output)?;
    device.run(checkpoint, Generate { arguments, input, chat, begin, output }, output)
}

struct Generate<'a> {
    arguments: &'a RunArgs,
    input: InputArgs,
    chat: Option<chat::Input>,
    /// When loading began.
    begin: Instant,
    output: &'a Output,
}

impl Task for Generate<'_> {
    type Output = ();

    fn precision(&self) -> Result<Precision, Failure> {
        resolve::precision(&self.arguments.model.precision)
    }

    fn options(&self) -> Option<&PrecisionArgs> {
        Some(&self.arguments.model.precision)
    }

    fn run<B: Backend + 'static>(self, place: &Place<B>) -> Result<(), Failure> {
        let Self { arguments, input, chat, begin, output } = self;
        let model = resolve::load(&arguments.model.precision, place, output)?;
        let load_seconds = begin.elapsed().as_secs_f64();
        let run = Run { arguments, output, model: &model, load_seconds, stop: StopFlag::default() };
        if let Some(question) = chat {
            return chat::run(&run, question);
        }
        let prompt = input_ids(&model, &input)?;
        // Ids in, ids out: without a tokenizer the tokens stream as numbers.
        let tokenizer = match &input.prompt {
            Some(_) => Some(model.tokenizer()?),
            None => None,
        };
        let generation = run.generate(&prompt, tokenizer, Echo::Prompt, Vec::new())?;
        if output.json {
            let all = [continued(&model, &prompt), &generation.ids].concat();
            let text = tokenizer.map(|tokenizer| tokenizer.decode(&all)).transpose()?;
            return output.object(&run.report(&prompt, &generation, json!({"text": text, "ids": all})));
        }
        output.line("")?;
        run.remark(&prompt, &generation);
        Ok(())
    }
}
