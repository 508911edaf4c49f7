//! `int8 inspect`: the contents of a checkpoint.

use int8_nn::Loader;
use int8_nn::checkpoint::{Checkpoint, Quantization};
use int8_nn::families::{self, Kind};
use serde_json::{Value, json};

use crate::args::InspectArgs;
use crate::convert::count;
use crate::failure::Failure;
use crate::hub;
use crate::output::{Output, bytes, short};

/// Longest name of a tensor in a table, in characters.
const MOST_NAME: usize = 120;

/// Prints the summary, and with `--tensors` every tensor.
pub(crate) fn run(arguments: &InspectArgs, output: &Output) -> Result<(), Failure> {
    let folder = hub::folder(&arguments.model, arguments.revision.as_deref(), output)?;
    let checkpoint = Checkpoint::open(folder)?;
    let format = checkpoint.format();
    let config =
        checkpoint.source().contains("config.json").then(|| checkpoint.source().read_config()).transpose()?;
    let elements: u64 = format.dtypes.iter().map(|total| total.elements).sum();
    let size = checkpoint.total_bytes();
    let key =
        |name: &str| config.as_ref().and_then(|config| config.get(name)).cloned().unwrap_or(Value::Null);

    // Where the tensors show nothing, the configuration may.
    let method =
        key("quantization_config")["quant_method"].as_str().map(|name| name.escape_debug().to_string());
    let quantization = match (format.quantization, method) {
        (Quantization::None, Some(method)) => format!("{method}, by config.json"),
        (by_tensors, _) => by_tensors.to_string(),
    };

    let runs = key("model_type").as_str().map(|name| runs(name, &checkpoint));

    if output.json {
        let tensors: Vec<Value> = checkpoint
            .tensors()
            .map(|tensor| {
                json!({
                    "name": tensor.name(),
                    "dtype": tensor.dtype().name(),
                    "shape": tensor.shape(),
                    "bytes": tensor.byte_len(),
                    "file": tensor.file(),
                })
            })
            .collect();
        return output.object(&json!({
            "model": arguments.model,
            "model_type": key("model_type"),
            "runs": runs,
            "quantization": quantization,
            "files": format.files,
            "metadata": format.metadata,
            "elements": elements,
            "bytes": size,
            "dtypes": format.dtypes.iter().map(|total| {
                let numbers =
                    json!({"tensors": total.tensors, "elements": total.elements, "bytes": total.bytes});
                (total.dtype.name().to_owned(), numbers)
            }).collect::<serde_json::Map<_, _>>(),
            "tensors": tensors,
        }));
    }
    if arguments.tensors {
        let width = checkpoint.names().map(str::len).max().unwrap_or(0).min(MOST_NAME);
        for tensor in checkpoint.tensors() {
            output.line(&format!(
                "{:width$}  {:5} {:>9}  {:?}",
                short(tensor.name(), MOST_NAME),
                tensor.dtype().name(),
                bytes(count(tensor.byte_len())),
                tensor.shape()
            ))?;
        }
        output.line("")?;
    }
    let model_type = key("model_type");
    output.line(&format!(
        "family        {}",
        model_type.as_str().unwrap_or("unknown (no config.json or model_type)")
    ))?;
    if let Some(runs) = &runs {
        output.line(&format!("runs          {runs}"))?;
    }
    for (label, names) in [
        ("layers", ["num_hidden_layers", "n_layer"]),
        ("hidden size", ["hidden_size", "n_embd"]),
        ("heads", ["num_attention_heads", "n_head"]),
        ("vocabulary", ["vocab_size", "vocab_size"]),
        ("positions", ["max_position_embeddings", "n_positions"]),
    ] {
        if let Some(value) = names.iter().map(|name| key(name)).find(|value| !value.is_null()) {
            output.line(&format!("{label:13} {value}"))?;
        }
    }
    output.line(&format!("files         {}", format.files.join(", ")))?;
    output.line(&format!("quantisation  {quantization}"))?;
    for total in &format.dtypes {
        let name = total.dtype.name();
        let size = bytes(total.bytes);
        output.line(&format!("{name:13} {} tensors, {} elements, {size}", total.tensors, total.elements))?;
    }
    output.line(&format!("total         {}", output.bold(&format!("{} elements, {}", elements, bytes(size)))))
}

/// Whether this program runs the model, in words.
fn runs(model_type: &str, checkpoint: &Checkpoint) -> String {
    let runs = match families::kind(model_type) {
        Some(Kind::Decoder) if families::is_text_part(model_type) => {
            "yes, text alone: its images or audio are not read"
        }
        Some(Kind::Decoder) => "yes",
        Some(Kind::Seq2Seq) => "yes, reads one text and writes another: int8 run",
        Some(Kind::Encoder) => "yes, an encoder: int8 embed",
        Some(Kind::Speech) => "yes, writes down speech: int8 transcribe",
        None => return "not yet: this family is not implemented".to_owned(),
    };
    let refused = Loader::new(checkpoint.clone()).check().err();
    refused.map_or(runs.to_owned(), |error| format!("no: {error}"))
}
