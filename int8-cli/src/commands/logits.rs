//! `int8 logits`: logits of a sequence of tokens, for checks by other programs.

use int8_nn::backend::{Backend, Precision};
use safetensors::Dtype;
use safetensors::tensor::{TensorView, serialize};
use serde_json::json;

use super::{input_ids, no_input, with_text};
use crate::args::{InputArgs, LogitsArgs, PrecisionArgs};
use crate::device::{Device, Place, Task};
use crate::failure::Failure;
use crate::output::{Output, OutputFile};
use crate::resolve;

/// Writes the logits.
pub(crate) fn run(arguments: &LogitsArgs, device: &Device, output: &Output) -> Result<(), Failure> {
    let input = with_text(&arguments.input, true)?;
    if input.prompt.is_none() && input.ids.is_none() {
        return Err(no_input());
    }
    let file = OutputFile::new("--out", &arguments.out)?;
    let checkpoint = resolve::checkpoint(&arguments.model, output)?;
    device.run(checkpoint, Logits { arguments, input, file, output }, output)
}

struct Logits<'a> {
    arguments: &'a LogitsArgs,
    input: InputArgs,
    file: OutputFile,
    output: &'a Output,
}

impl Task for Logits<'_> {
    type Output = ();

    fn precision(&self) -> Result<Precision, Failure> {
        resolve::precision(&self.arguments.model.precision)
    }

    fn options(&self) -> Option<&PrecisionArgs> {
        Some(&self.arguments.model.precision)
    }

    fn run<B: Backend + 'static>(self, place: &Place<B>) -> Result<(), Failure> {
        let Self { arguments, input, file, output } = self;
        let model = resolve::load(&arguments.model.precision, place, output)?;
        let ids = input_ids(&model, &input)?;
        let logits = model.logits(&ids)?;
        let (tokens, vocabulary) = logits.dim();
        let bytes: Vec<u8> = logits.iter().flat_map(|value| value.to_le_bytes()).collect();
        let failed = |error: String| Failure::new(format!("--out {}: {error}", arguments.out.display()));
        let view = TensorView::new(Dtype::F32, vec![tokens, vocabulary], &bytes)
            .map_err(|e| failed(e.to_string()))?;
        let contents = serialize([("logits", view)], None).map_err(|error| failed(error.to_string()))?;
        if output.json {
            output.object(
                &json!({"out": arguments.out, "tokens": tokens, "vocabulary": vocabulary, "ids": ids}),
            )?;
        }
        file.write(&contents)?;
        output.remark(&format!("{}: logits f32 [{tokens}, {vocabulary}]", arguments.out.display()));
        Ok(())
    }
}
