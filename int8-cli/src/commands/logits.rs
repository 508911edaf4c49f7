//! `int8 logits`: logits of a sequence of tokens, for checks by other programs.

use int8_nn::backend::{Backend, Precision};
use safetensors::Dtype;
use safetensors::tensor::{TensorView, serialize};
use serde_json::json;

use super::{input_ids, no_input, write_whole};
use crate::args::{LogitsArgs, PrecisionArgs};
use crate::device::{Device, Place, Processor, Task};
use crate::failure::Failure;
use crate::output::Output;
use crate::resolve;

/// Writes the logits.
pub(crate) fn run(arguments: &LogitsArgs, device: &Device, output: &Output) -> Result<(), Failure> {
    if arguments.input.prompt.is_none() && arguments.input.ids.is_none() {
        return Err(no_input());
    }
    let checkpoint = resolve::checkpoint(&arguments.model, output)?;
    device.run(checkpoint, Logits { arguments, output }, output)
}

struct Logits<'a> {
    arguments: &'a LogitsArgs,
    output: &'a Output,
}

impl Task for Logits<'_> {
    type Output = ();

    fn precision(&self, processor: Processor) -> Result<Precision, Failure> {
        resolve::precision(&self.arguments.model.precision, processor)
    }

    fn options(&self) -> Option<&PrecisionArgs> {
        Some(&self.arguments.model.precision)
    }

    fn run<B: Backend + 'static>(self, place: &Place<B>) -> Result<(), Failure> {
        let Self { arguments, output } = self;
        let model = resolve::load(&arguments.model.precision, place, output)?;
        let ids = input_ids(&model, &arguments.input)?;
        let logits = model.logits(&ids)?;
        let (tokens, vocabulary) = logits.dim();
        let bytes: Vec<u8> = logits.iter().flat_map(|value| value.to_le_bytes()).collect();
        let failed = |error: String| Failure::new(format!("--out {}: {error}", arguments.out.display()));
        let view = TensorView::new(Dtype::F32, vec![tokens, vocabulary], &bytes)
            .map_err(|e| failed(e.to_string()))?;
        let file = serialize([("logits", view)], None).map_err(|error| failed(error.to_string()))?;
        write_whole(&arguments.out, &file).map_err(|error| failed(error.to_string()))?;
        if output.json {
            output.object(
                &json!({"out": arguments.out, "tokens": tokens, "vocabulary": vocabulary, "ids": ids}),
            )
        } else {
            output.remark(&format!("{}: logits f32 [{tokens}, {vocabulary}]", arguments.out.display()));
            Ok(())
        }
    }
}
