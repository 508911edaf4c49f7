//! `int8 eval`: perplexity of a text.

use std::time::Instant;

use int8_nn::backend::{Backend, KvType, Precision};
use int8_nn::{Model, PerplexityOptions};
use serde_json::{Value, json};

use super::passages::read_passages;
use super::{counted, outlier_share, settings, text};
use crate::args::{EvalArgs, PrecisionArgs};
use crate::convert::{count, real};
use crate::device::{Device, Place, Task};
use crate::failure::Failure;
use crate::output::{Output, bytes};
use crate::resolve;
use crate::values::OrAuto;

/// Scores a text, passages, or both.
pub(crate) fn run(arguments: &EvalArgs, device: &Device, output: &Output) -> Result<(), Failure> {
    if arguments.compare {
        return super::compare::run(arguments, device, output);
    }
    if arguments.text.text.is_none() && arguments.last_words.is_none() {
        return Err(Failure::usage("nothing to score: give --text FILE, --last-words FILE.jsonl, or both"));
    }
    let checkpoint = resolve::checkpoint(&arguments.model, output)?;
    device.run(checkpoint, Eval { arguments, output }, output)
}

struct Eval<'a> {
    arguments: &'a EvalArgs,
    output: &'a Output,
}

impl Task for Eval<'_> {
    type Output = ();

    fn precision(&self) -> Result<Precision, Failure> {
        resolve::precision(&self.arguments.model.precision)
    }

    fn options(&self) -> Option<&PrecisionArgs> {
        Some(&self.arguments.model.precision)
    }

    fn run<B: Backend + 'static>(self, place: &Place<B>) -> Result<(), Failure> {
        let Self { arguments, output } = self;
        let model = resolve::load(&arguments.model.precision, place, output)?;
        let mut object = match arguments.text.text {
            Some(_) => perplexity(arguments, &model, output)?,
            None => json!({"model": arguments.model.model}),
        };
        if let Some(file) = &arguments.last_words {
            let passages = read_passages(file)?;
            let bar = output.bar("last words", "passages");
            let found = model.last_words(&passages, |done, all| bar.set(done, all))?;
            bar.clear();
            if !found.perplexity.is_finite() {
                return Err(Failure::not_finite(&format!(
                    "the perplexity of the last words ({})",
                    found.perplexity
                )));
            }
            let accuracy = real(found.correct) / real(found.passages);
            if output.json {
                object["last_words"] = json!({
                    "file": file,
                    "accuracy": accuracy,
                    "correct": found.correct,
                    "passages": found.passages,
                    "perplexity": found.perplexity,
                });
            } else {
                output.line(&format!(
                    "last words  {} ({} of {}; perplexity of a last word {:.3})",
                    output.bold(&format!("{:.2} %", 100.0 * accuracy)),
                    found.correct,
                    found.passages,
                    found.perplexity
                ))?;
            }
        }
        if output.json { output.object(&object) } else { Ok(()) }
    }
}

/// Scores a text; returns it as JSON and prints it otherwise.
fn perplexity<B: Backend>(arguments: &EvalArgs, model: &Model<B>, output: &Output) -> Result<Value, Failure> {
    let (ids, options) = text(model, &arguments.text)?;
    let kv_cache = match arguments.kv_cache.map(OrAuto::given) {
        None => KvType::F32,
        Some(kv_cache) => kv_cache.unwrap_or(model.decoder().kv_cache_type()),
    };
    let options = PerplexityOptions { kv_cache, ..options };
    let begin = Instant::now();
    let bar = output.bar("scoring", "windows");
    let result = model.perplexity(&ids, &options, |done, all| bar.set(done, all))?;
    bar.clear();
    let seconds = begin.elapsed().as_secs_f64();
    if !result.perplexity().is_finite() {
        return Err(Failure::not_finite(&format!("the perplexity ({})", result.perplexity())));
    }

    let scheme = resolve::precision_name(&arguments.model.precision);
    let share = outlier_share(model);
    let footprint = model.decoder().footprint();
    let computed = result.windows.len() * result.window;
    if output.json {
        return Ok(json!({
            "model": arguments.model.model,
            "text_file": arguments.text.text,
            "device": model.decoder().describe(),
            "scheme": scheme,
            "settings": settings(model.precision()),
            "kv_cache": kv_cache.name(),
            "perplexity": result.perplexity(),
            "mean_nll": result.mean_nll,
            "windows": result.windows.len(),
            "window": result.window,
            "tokens": result.tokens,
            "window_nll": result.windows,
            "outlier_columns_fraction": share.columns,
            "outlier_values_fraction": share.values,
            "weight_bytes": footprint.total(),
            "weight_bytes_16_bit": footprint.at(2),
            "seconds": seconds,
            "tokens_per_second": real(computed) / seconds,
        }));
    }
    output.line(&format!("perplexity  {}", output.bold(&format!("{:.3}", result.perplexity()))))?;
    output.line(&format!(
        "            {scheme}, {} of {} tokens, {} tokens scored, {:.1} s ({:.0} tokens/s)",
        counted(result.windows.len(), "window"),
        result.window,
        result.tokens,
        seconds,
        real(computed) / seconds
    ))?;
    if !arguments.model.precision.fp && share.columns.is_nan() {
        output.line("outliers    not counted on a GPU; `int8 outliers` finds them there, too")?;
    } else if !arguments.model.precision.fp {
        output.line(&format!(
            "outliers    {:.2} % of columns; {:.2} % of values outside the int8 product",
            100.0 * share.columns,
            100.0 * share.values
        ))?;
    }
    output.line(&format!(
        "weights     {} ({} in 16-bit)",
        bytes(count(footprint.total())),
        bytes(count(footprint.at(2)))
    ))?;
    Ok(Value::Null)
}
