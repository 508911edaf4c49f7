//! `int8 dequantize`: an int8 checkpoint on disk becomes 16- or 32-bit again.

use std::time::Instant;

use int8_core::FloatType;
use int8_nn::checkpoint::{Checkpoint, CheckpointError, DType};
use int8_nn::quantize::dequantize_checkpoint;
use serde_json::json;

use super::quantize::{rate, show};
use crate::args::DequantizeArgs;
use crate::device::Device;
use crate::failure::Failure;
use crate::output::{Output, bytes, peak_memory};
use crate::{hub, resolve};

/// Converts back.
pub(crate) fn run(arguments: &DequantizeArgs, device: &Device, output: &Output) -> Result<(), Failure> {
    let dtype = arguments.dtype.map(|dtype| match dtype {
        FloatType::F16 => DType::F16,
        FloatType::Bf16 => DType::BF16,
        FloatType::F32 => DType::F32,
    });
    let settings = resolve::write_settings(&arguments.write, device)?;
    let begin = Instant::now();
    let checkpoint = Checkpoint::open(hub::folder(&arguments.model, arguments.revision.as_deref(), output)?)?;
    let bar = output.byte_bar("converting");
    let report =
        dequantize_checkpoint(&checkpoint, &arguments.write.out, dtype, &settings, &mut |progress| {
            show(&bar, progress);
        });
    bar.clear();
    let report = report.map_err(|error| match &error {
        int8_nn::Error::Checkpoint(CheckpointError::Value { .. }) => {
            Failure::from(error).hint("--dtype bf16 and --dtype f32 have a larger range than f16")
        }
        _ => error.into(),
    })?;
    let seconds = begin.elapsed().as_secs_f64();
    if output.json {
        return output.object(&json!({
            "model": arguments.model,
            "out": arguments.write.out,
            "layers": report.layers,
            "dtype": report.dtype.name(),
            "source_bytes": report.source_bytes,
            "written_bytes": report.written_bytes,
            "shards": report.shards,
            "seconds": seconds,
            "source_bytes_per_second": rate(report.source_bytes, seconds),
            "peak_memory_bytes": peak_memory(),
        }));
    }
    output.line(&format!(
        "{} int8 layers converted to {}, {} → {}",
        report.layers,
        report.dtype,
        bytes(report.source_bytes),
        output.bold(&bytes(report.written_bytes))
    ))
}
