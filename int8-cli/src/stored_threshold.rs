//! The outlier threshold that an int8 checkpoint was saved with.

use int8_core::{Config, OutlierRule, scheme};
use int8_nn::backend::{Precision, Quantization};
use int8_nn::checkpoint::Checkpoint;

use crate::args::PrecisionArgs;
use crate::convert::single;
use crate::failure::Failure;

/// `precision` with the threshold that an int8 checkpoint was saved with, unless the options name one or another rule.
pub(crate) fn with_stored_threshold(
    precision: Precision,
    arguments: &PrecisionArgs,
    checkpoint: &Checkpoint,
) -> Result<Precision, Failure> {
    let Precision::Int8(quantization) = precision else { return Ok(precision) };
    let default = quantization.config.rule == OutlierRule::Absolute(scheme::PAPER_THRESHOLD);
    if arguments.threshold.is_some() || arguments.preset.is_some() || !default {
        return Ok(precision);
    }
    if !checkpoint.source().contains("config.json") {
        return Ok(precision);
    }
    let config = checkpoint.source().read_config()?;
    let stored = config.get("quantization_config").and_then(|stored| stored.get("llm_int8_threshold"));
    let Some(threshold) = stored.and_then(serde_json::Value::as_f64) else { return Ok(precision) };
    let rule = match single(threshold) {
        0.0 => OutlierRule::None,
        threshold => OutlierRule::Absolute(threshold),
    };
    rule.validate().map_err(|error| {
        Failure::new(format!("config.json: `quantization_config.llm_int8_threshold`: {error}"))
    })?;
    let config = Config { rule, ..quantization.config };
    Ok(Precision::Int8(Quantization { config, ..quantization }))
}
