//! `int8 quantize`: a checkpoint on disk becomes int8.

use int8_nn::SpecialTokens;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use int8_nn::Loader;
use int8_nn::backend::{Backend, Precision};
use int8_nn::checkpoint::{Checkpoint, CheckpointError};
use int8_nn::families::Kind;
use int8_nn::quantize::{Kept, Options, Progress, Report, Stage, outlier_columns, quantize_checkpoint};
use serde_json::{Value, json};

use crate::args::{PrecisionArgs, QuantizeArgs};
use crate::convert::real_u64;
use crate::device::{Device, Place, Task};
use crate::failure::Failure;
use crate::output::{Bar, Output, bytes, peak_memory};
use crate::{hub, resolve};

/// Converts, and reports what became int8 and what did not.
pub(crate) fn run(arguments: &QuantizeArgs, device: &Device, output: &Output) -> Result<(), Failure> {
    let begin = Instant::now();
    let checkpoint = Checkpoint::open(hub::folder(&arguments.model, arguments.revision.as_deref(), output)?)?;
    let options = Options {
        outlier_columns: match &arguments.keep_outliers {
            Some(text) => calibrate(&checkpoint, text, arguments.calibration_tokens, device, output)?,
            None => BTreeMap::new(),
        },
        include: arguments.include.clone(),
        exclude: arguments.exclude.clone(),
        skip_modules: arguments.skip_modules.clone(),
        beyond_transformers: arguments.beyond_transformers,
        write: resolve::write_settings(&arguments.write, device)?,
    };
    let bar = output.byte_bar(verb(Stage::Convert));
    let report = quantize_checkpoint(&checkpoint, &arguments.write.out, &options, &mut |progress| {
        show(&bar, progress);
    });
    bar.clear();
    let report = report.map_err(advised)?;
    let seconds = begin.elapsed().as_secs_f64();
    if output.json {
        output.object(&as_json(arguments, &report, seconds))
    } else {
        print(arguments, &report, seconds, output)
    }
}

/// The error of a conversion, with the options that may help.
fn advised(error: int8_nn::Error) -> Failure {
    let hint = match &error {
        int8_nn::Error::Input(_) => "`int8 inspect --tensors` lists the tensors' names",
        int8_nn::Error::Checkpoint(CheckpointError::Value { .. }) => {
            "--exclude NAME leaves a tensor as it is, --force converts again"
        }
        _ => return error.into(),
    };
    Failure::from(error).hint(hint)
}

/// Tokens of a forward of the calibration.
const WINDOW: usize = 512;

/// The input features with outliers in this text.
fn calibrate(
    checkpoint: &Checkpoint,
    text: &Path,
    tokens: usize,
    device: &Device,
    output: &Output,
) -> Result<BTreeMap<String, Vec<usize>>, Failure> {
    let text = super::read_text("--keep-outliers", text)?;
    device.run(checkpoint.clone(), Calibrate { text, tokens, output }, output)
}

struct Calibrate<'a> {
    text: String,
    tokens: usize,
    output: &'a Output,
}

impl Task for Calibrate<'_> {
    type Output = BTreeMap<String, Vec<usize>>;

    fn precision(&self) -> Result<Precision, Failure> {
        resolve::precision(&PrecisionArgs::default())
    }

    fn run<B: Backend + 'static>(self, place: &Place<B>) -> Result<Self::Output, Failure> {
        let loader = Loader::new(place.checkpoint.clone()).precision(place.precision);
        let model = loader.build_on(place.devices.clone())?;
        let mut ids = model.tokenizer()?.encode(&self.text, SpecialTokens::Omit)?;
        ids.truncate(self.tokens);
        let bar = self.output.bar("calibrating", "windows");
        let window = WINDOW.min(model.config().max_positions);
        let columns = outlier_columns(&model, &ids, window, |done, all| bar.set(done, all))?;
        bar.clear();
        Ok(columns)
    }
}

/// Draws the progress of a conversion.
pub(super) fn show(bar: &Bar, progress: Progress) {
    bar.set_bytes(verb(progress.stage), progress.done, progress.total);
}

fn verb(stage: Stage) -> &'static str {
    match stage {
        Stage::Verify => "verifying",
        _ => "converting",
    }
}

/// Tensors that were kept for the same reason.
struct Group<'a> {
    tensors: usize,
    bytes: u64,
    first: &'a str,
}

fn groups(report: &Report) -> BTreeMap<String, Group<'_>> {
    let mut groups = BTreeMap::new();
    for tensor in &report.kept {
        let option = match tensor.reason {
            Kept::Expert | Kept::OtherClass => " (--beyond-transformers converts it)",
            _ => "",
        };
        let group = groups.entry(format!("{}{option}", tensor.reason)).or_insert(Group {
            tensors: 0,
            bytes: 0,
            first: &tensor.name,
        });
        group.tensors += 1;
        group.bytes += tensor.bytes;
    }
    groups
}

fn print(arguments: &QuantizeArgs, report: &Report, seconds: f64, output: &Output) -> Result<(), Failure> {
    let before: u64 = report.int8.iter().map(|layer| layer.source_bytes).sum();
    let after: u64 = report.int8.iter().map(|layer| layer.written_bytes).sum();
    output.line(&format!(
        "int8    {} linear layers, {} → {}",
        report.int8.len(),
        bytes(before),
        bytes(after)
    ))?;
    let transposed = report.int8.iter().filter(|layer| layer.transposed).count();
    if transposed > 0 {
        output.line(&format!("        {transposed} of them transposed (Conv1D)"))?;
    }
    let mut groups: Vec<_> = groups(report).into_iter().collect();
    groups.sort_by_key(|(_, group)| std::cmp::Reverse(group.bytes));
    for (index, (reason, group)) in groups.iter().enumerate() {
        let label = if index == 0 { "kept" } else { "" };
        let more = if group.tensors > 1 { format!(" and {} more", group.tensors - 1) } else { String::new() };
        output.line(&format!(
            "{label:8}{:>8}  {reason}: {}{more}",
            bytes(group.bytes),
            group.first.escape_debug()
        ))?;
    }
    if !report.tied.is_empty() {
        output.line(&format!(
            "tied    {}: not written, the model has them from its embedding",
            report.tied.join(", ")
        ))?;
    }
    if arguments.keep_outliers.is_some() {
        let (columns, size) = (report.outlier_columns, bytes(report.outlier_bytes));
        output.line(&format!(
            "exact   {columns} input features with outliers, {size} in a file beside the weights"
        ))?;
    }
    let share = 100.0 * real_u64(report.written_bytes) / real_u64(report.source_bytes.max(1));
    output.line(&format!(
        "size    {} → {} ({share:.0} %), {} file{}{}",
        bytes(report.source_bytes),
        output.bold(&bytes(report.written_bytes)),
        report.shards,
        if report.shards == 1 { "" } else { "s" },
        if report.verified { ", read again and compared" } else { "" },
    ))?;
    if report.int8.is_empty() {
        output.remark(
            "no linear layer was found; --include names tensors that should be converted all the same",
        );
    }
    if report.class.is_none() {
        output.remark(
            "config.json names no known class of transformers: the layers were selected by their names and shapes; load the \
             result and compare before relying on it",
        );
    }
    let peak = peak_memory().map_or_else(String::new, |peak| format!(", at most {} of memory", bytes(peak)));
    let resumed = match report.resumed_bytes {
        0 => String::new(),
        resumed => format!(", {} of the result were there already", bytes(resumed)),
    };
    output.remark(
        &output
            .dim(&format!("{seconds:.1} s, {}/s{peak}{resumed}", bytes(rate(report.source_bytes, seconds)))),
    );
    let out = arguments.write.out.display();
    let (kind, architecture) = kind_of(&arguments.write.out);
    let command = match kind {
        Some(Kind::Decoder | Kind::Seq2Seq) => Some(format!("int8 run {out} -p \"…\"")),
        Some(Kind::Encoder) => Some(format!("int8 embed {out} --text \"…\"")),
        Some(Kind::Speech) => Some(format!("int8 transcribe {out} FILE.wav")),
        None => None,
    };
    let class = architecture.as_deref().unwrap_or("AutoModel");
    output.remark(&output.dim(&format!(
        "{}in Python: {class}.from_pretrained(\"{out}\")",
        command.map_or(String::new(), |command| format!("try it: {command}, or "))
    )));
    Ok(())
}

/// Ends of the names of classes that answer as their kind does; others have a head of their own.
const PLAIN: [&str; 6] =
    ["Model", "ForCausalLM", "LMHeadModel", "ForConditionalGeneration", "ForMaskedLM", "ForPreTraining"];

/// The kind of the model in a folder, if it is one that runs, and its class in transformers.
fn kind_of(folder: &Path) -> (Option<Kind>, Option<String>) {
    let Ok(checkpoint) = Checkpoint::open(folder) else { return (None, None) };
    let Ok(config) = checkpoint.source().read_config() else { return (None, None) };
    let text =
        |value: Option<&Value>| value.and_then(Value::as_str).map(|text| text.escape_debug().to_string());
    let kind = text(config.get("model_type")).and_then(|name| int8_nn::families::kind(&name));
    let class = text(config.get("architectures").and_then(|list| list.get(0)));
    let is_plain = class.as_ref().is_none_or(|class| PLAIN.iter().any(|end| class.ends_with(end)));
    let loader = Loader::new(checkpoint);
    let runs = is_plain && loader.check().is_ok();
    (kind.filter(|_| runs), class)
}

/// Bytes a second, whole.
pub(super) fn rate(bytes: u64, seconds: f64) -> u64 {
    crate::convert::whole(real_u64(bytes) / seconds.max(1e-9))
}

fn as_json(arguments: &QuantizeArgs, report: &Report, seconds: f64) -> Value {
    let int8: Vec<Value> = report
        .int8
        .iter()
        .map(|layer| {
            json!({
                "name": layer.name,
                "outputs": layer.outputs,
                "inputs": layer.inputs,
                "transposed": layer.transposed,
                "source_bytes": layer.source_bytes,
                "written_bytes": layer.written_bytes,
            })
        })
        .collect();
    let kept: Vec<Value> = report
        .kept
        .iter()
        .map(|tensor| {
            json!({
                "name": tensor.name,
                "dtype": tensor.dtype.name(),
                "shape": tensor.shape,
                "bytes": tensor.bytes,
                "reason": tensor.reason.to_string(),
            })
        })
        .collect();
    json!({
        "model": arguments.model,
        "out": arguments.write.out,
        "int8": int8,
        "kept": kept,
        "tied": report.tied,
        "skip_modules": report.skip_modules,
        "class": report.class,
        "outlier_columns": report.outlier_columns,
        "outlier_bytes": report.outlier_bytes,
        "source_bytes": report.source_bytes,
        "written_bytes": report.written_bytes,
        "resumed_bytes": report.resumed_bytes,
        "files": report.files,
        "shards": report.shards,
        "verified": report.verified,
        "seconds": seconds,
        "source_bytes_per_second": rate(report.source_bytes, seconds),
        "peak_memory_bytes": peak_memory(),
    })
}
