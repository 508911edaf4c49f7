//! `int8 eval`: perplexity of a text.

use std::time::Instant;

use int8_nn::PerplexityOptions;
use serde_json::json;

use super::{outlier_share, read_text, settings};
use crate::Failure;
use crate::args::EvalArgs;
use crate::convert::{count, real};
use crate::output::{Output, bytes};
use crate::plan;

/// Window when none is given and the model has room for it.
const DEFAULT_WINDOW: usize = 1024;

/// Scores a text.
pub(crate) fn run(arguments: &EvalArgs, output: &Output) -> Result<(), Failure> {
    let text = read_text("--text", &arguments.text)?;
    let model = plan::load(&arguments.model, output)?;
    let most = model.config().max_positions;
    let window = arguments.window.unwrap_or(DEFAULT_WINDOW.min(most));
    // Special tokens belong to a prompt; a text is scored as it is.
    let ids = model.tokenizer()?.encode(&text, false)?;

    let begin = Instant::now();
    let bar = output.bar("scoring", "windows");
    let options = PerplexityOptions { window, windows: arguments.windows };
    let result = model.perplexity(&ids, &options, |done, all| bar.set(done, all))?;
    bar.clear();
    let seconds = begin.elapsed().as_secs_f64();

    let scheme = plan::precision_name(&arguments.model.precision);
    let share = outlier_share(&model);
    let footprint = model.decoder().footprint();
    let computed = result.windows.len() * result.window;
    if output.json {
        return output.object(&json!({
            "model": arguments.model.model,
            "text": arguments.text,
            "scheme": scheme,
            "settings": settings(model.precision()),
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
        "            {scheme}, {} windows of {} tokens, {} tokens scored, {:.1} s ({:.0} tokens/s)",
        result.windows.len(),
        result.window,
        result.tokens,
        seconds,
        real(computed) / seconds
    ))?;
    if !arguments.model.precision.fp {
        output.line(&format!(
            "outliers    {:.2} % of columns; {:.2} % of values left the int8 product",
            100.0 * share.columns,
            100.0 * share.values
        ))?;
    }
    output.line(&format!(
        "weights     {} ({} in 16-bit)",
        bytes(count(footprint.total())),
        bytes(count(footprint.at(2)))
    ))
}
