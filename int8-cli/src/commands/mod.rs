//! The commands, one file each.

mod batch;
pub(crate) mod bench;
mod chat;
pub(crate) mod compare;
pub(crate) mod completions;
pub(crate) mod demo;
pub(crate) mod dequantize;
pub(crate) mod embed;
pub(crate) mod eval;
mod generate;
pub(crate) mod inspect;
pub(crate) mod logits;
pub(crate) mod models;
pub(crate) mod outliers;
mod passages;
pub(crate) mod plan;
pub(crate) mod quantize;
pub(crate) mod run;
mod schema;
mod stop_flag;
pub(crate) mod transcribe;
pub(crate) mod verify;

use std::fs;
use std::io::{IsTerminal, Read};
use std::path::Path;

use int8_core::{Named, OutlierRule};
use int8_nn::backend::{Backend, KvType, Precision};
use int8_nn::{Model, PerplexityOptions, SpecialTokens};
use serde_json::{Value, json};

use crate::args::{InputArgs, TextArgs};
use crate::convert::{count, real_u64};
use crate::failure::Failure;
use crate::launch;

/// Token ids of the input, and whether they came from text.
fn input_ids<B: Backend>(model: &Model<B>, input: &InputArgs) -> Result<Vec<u32>, Failure> {
    match (&input.prompt, &input.ids) {
        (Some(prompt), _) => Ok(model.tokenizer()?.encode(prompt, SpecialTokens::Add)?),
        (None, Some(ids)) => Ok(ids.0.clone()),
        (None, None) => Err(no_input()),
    }
}

/// The error of a command without a prompt, checked before a model is loaded.
fn no_input() -> Failure {
    Failure::usage(
        "no prompt: give --prompt TEXT, --prompt-file FILE or --ids IDS, or a text on standard input",
    )
}

/// Window when none is given and the model has room for it.
const DEFAULT_WINDOW: usize = 1024;

/// The tokens of a text, and its windows.
///
/// # Errors
/// When there is no file, or it is no UTF-8.
fn text<B: Backend>(
    model: &Model<B>,
    arguments: &TextArgs,
) -> Result<(Vec<u32>, PerplexityOptions), Failure> {
    let Some(path) = &arguments.text else {
        return Err(Failure::usage("--text FILE is needed: the text to read"));
    };
    let window = arguments.window.unwrap_or(DEFAULT_WINDOW.min(model.config().max_positions));
    // Special tokens belong to a prompt; a text is scored as it is.
    let text = read_text("--text", path)?;
    let ids = model.tokenizer()?.encode(&text, SpecialTokens::Omit)?;
    Ok((ids, PerplexityOptions { window, windows: arguments.windows, kv_cache: KvType::F32 }))
}

/// What a report says of how it was made, besides the command and the date.
fn made(
    model: &Path,
    text: &TextArgs,
    options: &PerplexityOptions,
    device: &str,
) -> [(&'static str, String); 4] {
    let windows = match options.windows {
        Some(windows) => counted(windows, "window"),
        None => "all windows".to_owned(),
    };
    [
        ("model", model.display().to_string()),
        ("text", text.text.as_deref().map_or(String::new(), |text| text.display().to_string())),
        ("settings", format!("{windows} of {} tokens, KV cache {}", options.window, options.kv_cache.name())),
        ("device", device.to_owned()),
    ]
}

/// The settings of a precision, for JSON.
fn settings(precision: &Precision) -> Value {
    let Precision::Int8(quantization) = precision else { return Value::Null };
    let described = |rule: OutlierRule| match rule {
        OutlierRule::Absolute(threshold) => json!({"rule": rule.key(), "threshold": threshold}),
        OutlierRule::RelativeToRow { tau, statistic } => {
            json!({"rule": rule.key(), "tau": tau, "statistic": statistic.key()})
        }
        _ => json!({"rule": rule.key()}),
    };
    if quantization.config.rule == OutlierRule::None {
        return described(OutlierRule::None);
    }
    let rule = described(quantization.config.rule);
    let granularity = quantization.config.outlier_granularity.key();
    let weights = quantization.outlier_weights.key();
    let normed = quantization.normed_rule.map(described);
    let groups = quantization.config.has_groups();
    json!({"outliers": rule, "outliers_of_normalised": normed, "granularity": granularity, "outlier_weights": weights,
        "groups": groups, "int8_head": quantization.int8_head, "float_experts": quantization.float_experts})
}

/// The outliers in the inputs of all layers, as shares; NaN (`null` as JSON) where the device counts none.
struct OutlierShare {
    /// Columns that held an outlier, of all columns of all calls.
    columns: f64,
    /// Values multiplied in floating point, of all values.
    values: f64,
}

fn outlier_share<B: Backend>(model: &Model<B>) -> OutlierShare {
    let (mut columns, mut all_columns, mut values, mut all_values) = (0, 0, 0, 0);
    for (_, layer) in model.decoder().statistics() {
        columns += layer.outlier_columns;
        all_columns += layer.calls * count(layer.inputs);
        values += layer.outlier_values;
        all_values += layer.values;
    }
    let uncounted = if matches!(model.precision(), Precision::Int8(_)) { f64::NAN } else { 0.0 };
    let share = |part, whole| if whole == 0 { uncounted } else { real_u64(part) / real_u64(whole) };
    OutlierShare { columns: share(columns, all_columns), values: share(values, all_values) }
}

/// Standard input, to its end. A process that follows another one leaves it to that, and its own text is of no use.
fn read_input() -> std::io::Result<Vec<u8>> {
    if launch::follows() {
        return Ok(b"text".to_vec());
    }
    let mut bytes = Vec::new();
    std::io::stdin().lock().read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// `1 window`, `2 windows`.
fn counted(number: usize, what: &str) -> String {
    if number == 1 { format!("1 {what}") } else { format!("{number} {what}s") }
}

/// The input with its text, where that is a file or standard input: `-p -`, or a pipe without other input if `piped`.
///
/// # Errors
/// When it cannot be read or is no UTF-8.
fn with_text(input: &InputArgs, piped: bool) -> Result<InputArgs, Failure> {
    let prompt = match (&input.prompt, &input.prompt_file) {
        (Some(prompt), _) if prompt == "-" => Some(read_text("--prompt", Path::new("-"))?),
        (Some(prompt), _) => {
            return Ok(InputArgs { prompt: Some(prompt.clone()), prompt_file: None, ids: None });
        }
        (None, Some(file)) => Some(read_text("--prompt-file", file)?),
        (None, None) if piped && input.ids.is_none() && !std::io::stdin().is_terminal() => {
            Some(read_text("--prompt", Path::new("-"))?).filter(|text| !text.is_empty())
        }
        (None, None) => None,
    };
    // `echo` and editors end a text with an end of line that is no part of it.
    let prompt = prompt.map(|text| text.strip_suffix('\n').map(str::to_owned).unwrap_or(text));
    Ok(InputArgs { prompt, prompt_file: None, ids: input.ids.clone() })
}

/// Reads a text file that `option` names, `-` for standard input.
fn read_text(option: &str, file: &Path) -> Result<String, Failure> {
    let name = file.display();
    let bytes = if file.as_os_str() == "-" { read_input() } else { fs::read(file) };
    let bytes = bytes.map_err(|error| Failure::new(format!("{option} {name}: {error}")))?;
    let text = String::from_utf8(bytes).map_err(|error| {
        Failure::new(format!(
            "{option} {name}: not UTF-8 from byte {} on; convert it (iconv -t UTF-8) first",
            error.utf8_error().valid_up_to()
        ))
    })?;
    // A byte-order mark is no part of the text.
    let text = text.strip_prefix('\u{feff}').map_or(text.clone(), str::to_owned);
    // Every end of line becomes `\n`, as in Python's text mode: training texts hold hardly a carriage return.
    Ok(if text.contains('\r') { text.replace("\r\n", "\n").replace('\r', "\n") } else { text })
}
