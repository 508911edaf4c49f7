//! `int8 logits`: logits of a sequence of tokens, for checks by other programs.

use std::fs;
use std::io::Write;
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::{TensorView, serialize};
use serde_json::json;

use super::input_ids;
use crate::Failure;
use crate::args::LogitsArgs;
use crate::output::Output;
use crate::plan;

/// Writes the logits.
pub(crate) fn run(arguments: &LogitsArgs, output: &Output) -> Result<(), Failure> {
    let model = plan::load(&arguments.model, output)?;
    let ids = input_ids(&model, &arguments.input)?;
    let logits = model.logits(&ids)?;
    let (tokens, vocabulary) = logits.dim();
    let bytes: Vec<u8> = logits.iter().flat_map(|value| value.to_le_bytes()).collect();
    let failed = |error: String| Failure::new(format!("--out {}: {error}", arguments.out.display()));
    let view =
        TensorView::new(Dtype::F32, vec![tokens, vocabulary], &bytes).map_err(|e| failed(e.to_string()))?;
    let file = serialize([("logits", view)], None).map_err(|error| failed(error.to_string()))?;
    write_whole(&arguments.out, &file).map_err(|error| failed(error.to_string()))?;
    if output.json {
        output.object(&json!({"out": arguments.out, "tokens": tokens, "vocabulary": vocabulary, "ids": ids}))
    } else {
        output.remark(&format!("{}: logits f32 [{tokens}, {vocabulary}]", arguments.out.display()));
        Ok(())
    }
}

/// Writes a file under another name first, so that no half of it is ever seen under its own.
fn write_whole(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.tmp", std::process::id()));
    let temporary = path.with_file_name(name);
    let written = (|| {
        let mut file = fs::File::create_new(&temporary)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    })();
    if written.is_err() {
        // The first error is the one to report.
        let _ = fs::remove_file(&temporary);
    }
    written
}
