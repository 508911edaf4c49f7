//! `int8 bench --shape NAME`: tokens per second of a whole model with random weights, in int8 and in 16 bit.

use std::time::Instant;

use int8_cpu::probe;
use int8_nn::backend::{Backend, FloatType, KvType, Precision};
use int8_nn::config::RawConfig;
use int8_nn::synthetic;
use serde_json::{Value, json};

use super::super::outlier_share;
use crate::args::{BenchArgs, PrecisionArgs, Runs};
use crate::bench::{Measured, Measurement, ModelShape};
use crate::convert::{count, real, real_u64};
use crate::device::{Device, Place, Processor, Task};
use crate::failure::Failure;
use crate::output::{Output, bytes};
use crate::resolve;

/// Prompts: the median of these.
const PROMPTS: usize = 5;
const QUICK_PROMPTS: usize = 2;

/// Bytes a second of GPUs, by a part of the driver's name for them, as their data sheets have it. A more particular name comes
/// first.
const BANDWIDTHS: [(&str, f64); 12] = [
    ("B200", 8.0e12),
    ("H200", 4.8e12),
    ("H100 NVL", 3.9e12),
    ("H100 PCIe", 2.0e12),
    ("H100 80GB HBM3", 3.35e12),
    ("A100-SXM4-80GB", 2.039e12),
    ("A100 80GB PCIe", 1.935e12),
    ("A100-SXM4-40GB", 1.555e12),
    ("A100-PCIE-40GB", 1.555e12),
    ("L40S", 0.864e12),
    ("RTX 4090", 1.008e12),
    ("RTX 3090", 0.936e12),
];

/// Measures the shape `name`.
pub(super) fn run(
    name: &str,
    arguments: &BenchArgs,
    device: &Device,
    output: &Output,
) -> Result<(), Failure> {
    let Some(shape) = ModelShape::named(name) else {
        let names: Vec<&str> = ModelShape::names().collect();
        return Err(Failure::usage(format!("--shape {name}: known are {}", names.join(", "))));
    };
    let sizes = [arguments.prompts, arguments.prompt_tokens, arguments.new_tokens];
    if sizes.iter().chain(arguments.batches()).chain(&arguments.context).any(|size| *size == 0) {
        return Err(Failure::usage(
            "--prompts, --prompt-tokens, --new-tokens, --batch and --context must be at least 1",
        ));
    }
    let checkpoint = synthetic::checkpoint(&shape.config, shape.float, shape.biases)?;
    let config = RawConfig::read(checkpoint.source())?;
    let positions = config.size("max_position_embeddings").or_else(|_| config.size("seq_length"))?;
    let task = Bench { name, arguments, precision: arguments.precision(), output };
    let measurement = task.measurement(shape.float.into());
    let contexts = arguments.context.iter().map(|context| measurement.positions(*context));
    if let Some(needed) = contexts.chain([arguments.prompt_tokens]).find(|needed| *needed > positions) {
        return Err(Failure::usage(format!(
            "{needed} positions are needed, and {name} has {positions}; lower --prompt-tokens, --context or --new-tokens"
        )));
    }
    device.run(checkpoint, task, output)
}

struct Bench<'a> {
    name: &'a str,
    arguments: &'a BenchArgs,
    precision: PrecisionArgs,
    output: &'a Output,
}

/// A model in one precision, measured.
struct Run {
    load_seconds: f64,
    weight_bytes: usize,
    kv_cache: KvType,
    /// Share of the columns with outliers.
    outliers: f64,
    prefill: Measured,
    decode: Vec<Step>,
}

/// Decode steps of one batch.
struct Step {
    batch: usize,
    context: usize,
    measured: Measured,
    /// Bytes that a step must read: the weights, and keys and values halfway through the timed steps.
    bytes: f64,
}

impl Run {
    fn json(&self, bandwidth: Option<f64>) -> Value {
        let measured = |measured: &Measured| {
            json!({
                "seconds": measured.seconds,
                "tokens_per_second": measured.rate(),
                "kv_cache_bytes": measured.cache_bytes,
            })
        };
        let mut prefill = measured(&self.prefill);
        prefill["tokens"] = json!(self.prefill.tokens);
        let step = |step: &Step| {
            let mut object = measured(&step.measured);
            object["batch"] = json!(step.batch);
            object["context"] = json!(step.context);
            object["bytes_to_read"] = json!(step.bytes);
            object["share_of_floor"] = json!(bandwidth.map(|bandwidth| step.share_of_floor(bandwidth)));
            object
        };
        json!({
            "load_seconds": self.load_seconds,
            "weight_bytes": self.weight_bytes,
            "kv_cache": self.kv_cache.name(),
            "outlier_columns_fraction": self.outliers,
            "prefill": prefill,
            "decode": self.decode.iter().map(step).collect::<Vec<_>>(),
        })
    }
}

impl Step {
    /// The time in which the memory delivers the bytes, over the measured time.
    fn share_of_floor(&self, bandwidth: f64) -> f64 {
        self.bytes / bandwidth / self.measured.seconds
    }
}

impl Task for Bench<'_> {
    type Output = ();

    fn precision(&self) -> Result<Precision, Failure> {
        resolve::precision(&self.precision)
    }

    fn options(&self) -> Option<&PrecisionArgs> {
        Some(&self.precision)
    }

    fn run<B: Backend + 'static>(self, place: &Place<B>) -> Result<(), Failure> {
        let device = place.devices.describe();
        let bandwidth = self.bandwidth(place.processor, &device).map(|one| one * real(place.ranks));
        self.output.remark(&self.output.dim(&format!("{}, random weights; {device}", self.name)));
        // One after the other: large models do not fit beside each other.
        let runs = self.arguments.only;
        let int8 = (runs != Some(Runs::Fp)).then(|| self.measure(place.precision, place));
        let float = (runs != Some(Runs::Int8)).then(|| self.measure(Precision::Float, place));
        // One of both may be too large.
        let (int8, float) = match (int8, float) {
            (Some(Err(failure)), None | Some(Err(_))) | (None, Some(Err(failure))) => return Err(failure),
            both => both,
        };
        if self.output.json {
            self.output.object(&self.json(&device, place.precision, bandwidth, int8.as_ref(), float.as_ref()))
        } else {
            self.print(bandwidth, int8, float)
        }
    }
}

impl Bench<'_> {
    fn measurement(&self, stored: KvType) -> Measurement {
        Measurement {
            kv_cache: self.arguments.kv_cache.given().unwrap_or(stored),
            prompts: if self.arguments.quick { QUICK_PROMPTS } else { PROMPTS },
            steps: self.arguments.new_tokens,
            best: self.arguments.best,
        }
    }

    /// Bytes a second: given, measured on the processor, or of the data sheet of the GPU.
    fn bandwidth(&self, processor: Processor, device: &str) -> Option<f64> {
        match (self.arguments.bandwidth, processor) {
            (Some(given), _) => Some(real_u64(given)),
            (None, Processor::Cpu) => Some(probe::read_bandwidth()),
            (None, Processor::Gpu) => {
                BANDWIDTHS.iter().find(|(name, _)| device.contains(name)).map(|(_, bandwidth)| *bandwidth)
            }
        }
    }

    fn measure<B: Backend>(&self, precision: Precision, place: &Place<B>) -> Result<Run, Failure> {
        let begin = Instant::now();
        let model = resolve::load_as(precision, &PrecisionArgs::default(), place, self.output)?;
        let load_seconds = begin.elapsed().as_secs_f64();
        let stored = model.decoder().kv_cache_type();
        let measurement = self.measurement(stored);
        let arguments = self.arguments;
        let bar = self.output.bar("timing", "measurements");
        let all = 1 + arguments.batches().len() * arguments.context.len();
        bar.set(0, all);
        let prefill = measurement.prefill(&model, arguments.prompts, arguments.prompt_tokens)?;
        let outliers = outlier_share(&model).columns;
        let config = model.config();
        let footprint = model.decoder().footprint();
        let head = match precision {
            Precision::Int8(quantization) if quantization.int8_head => 1,
            _ => stored.float().map_or(0, FloatType::bytes),
        };
        let weights = real(footprint.linear) + real(config.vocab_size * config.embedding_size * head);
        let of_position =
            real(2 * config.layers * config.kv_heads * measurement.kv_cache.bytes_of(config.head_size));
        let mut decode = Vec::new();
        for &context in &arguments.context {
            for &batch in arguments.batches() {
                bar.set(1 + decode.len(), all);
                let measured = measurement.decode(&model, batch, context)?;
                let positions = real(measurement.positions(context)) - real(arguments.new_tokens) / 2.0;
                let bytes = weights + real(batch) * positions * of_position;
                decode.push(Step { batch, context, measured, bytes });
            }
        }
        bar.clear();
        Ok(Run {
            load_seconds,
            weight_bytes: footprint.total(),
            kv_cache: measurement.kv_cache,
            outliers,
            prefill,
            decode,
        })
    }

    fn json(
        &self,
        device: &str,
        precision: Precision,
        bandwidth: Option<f64>,
        int8: Option<&Result<Run, Failure>>,
        float: Option<&Result<Run, Failure>>,
    ) -> Value {
        let run = |run: Option<&Result<Run, Failure>>| match run {
            None => Value::Null,
            Some(Ok(run)) => run.json(bandwidth),
            Some(Err(failure)) => json!({"error": failure.to_string()}),
        };
        let ratio = match (int8, float) {
            (Some(Ok(int8)), Some(Ok(float))) => {
                let decode: Vec<Value> = int8
                    .decode
                    .iter()
                    .zip(&float.decode)
                    .map(|(int8, float)| {
                        let ratio = int8.measured.rate() / float.measured.rate();
                        json!({"batch": int8.batch, "context": int8.context, "ratio": ratio})
                    })
                    .collect();
                json!({"prefill": int8.prefill.rate() / float.prefill.rate(), "decode": decode})
            }
            _ => Value::Null,
        };
        json!({
            "shape": self.name,
            "weights": "random",
            "device": device,
            "threads": rayon::current_num_threads(),
            "statistic": if self.arguments.best { "best" } else { "median" },
            "prompts": self.arguments.prompts,
            "prompt_tokens": self.arguments.prompt_tokens,
            "new_tokens": self.arguments.new_tokens,
            "int8_head": matches!(precision, Precision::Int8(quantization) if quantization.int8_head),
            "bandwidth_bytes_per_second": bandwidth,
            "int8": run(int8),
            "fp": run(float),
            "int8_over_fp": ratio,
        })
    }

    fn print(
        &self,
        bandwidth: Option<f64>,
        int8: Option<Result<Run, Failure>>,
        float: Option<Result<Run, Failure>>,
    ) -> Result<(), Failure> {
        let output = self.output;
        let mut runs = Vec::new();
        for (name, run) in [("int8", int8), ("16 bit", float)] {
            match run {
                None => runs.push(None),
                Some(Ok(run)) => runs.push(Some(run)),
                Some(Err(failure)) => {
                    output.remark(&format!("{name}: {failure}"));
                    runs.push(None);
                }
            }
        }
        let shares = if bandwidth.is_some() { "   share of floor: int8   16 bit" } else { "" };
        output.line(
            &output.bold(&format!("{:32}{:>11} {:>11} {:>9}{shares}", "", "int8", "16 bit", "ratio")),
        )?;
        let cell = |value: Option<f64>, digits: usize| {
            value.map_or_else(|| "–".to_owned(), |value| format!("{value:.digits$}"))
        };
        let row = |label: &str, value: &dyn Fn(&Run) -> f64, size: bool, shares: String| {
            let values: Vec<Option<f64>> = runs.iter().map(|run| run.as_ref().map(value)).collect();
            let cells: Vec<String> = values
                .iter()
                .map(|value| match (value, size) {
                    (Some(value), true) => bytes(crate::convert::whole(*value)),
                    (value, _) => cell(*value, 1),
                })
                .collect();
            let ratio = match values[..] {
                [Some(int8), Some(float)] => Some(int8 / float),
                _ => None,
            };
            output.line(&format!("{label:32}{:>11} {:>11} {:>9}{shares}", cells[0], cells[1], cell(ratio, 2)))
        };
        row("weights", &|run| real(run.weight_bytes), true, String::new())?;
        let prompt = match self.arguments.prompts {
            1 => self.arguments.prompt_tokens.to_string(),
            prompts => format!("{prompts} x {}", self.arguments.prompt_tokens),
        };
        row(&format!("prompt {prompt}, tokens/s"), &|run| run.prefill.rate(), false, String::new())?;
        let sizes = self
            .arguments
            .context
            .iter()
            .flat_map(|context| self.arguments.batch.iter().map(move |batch| (*batch, *context)));
        for (index, (batch, context)) in sizes.enumerate() {
            let share = |run: &Option<Run>| {
                let step = run.as_ref().and_then(|run| run.decode.get(index));
                let share =
                    step.zip(bandwidth).map(|(step, bandwidth)| 100.0 * step.share_of_floor(bandwidth));
                format!("{}{}", cell(share, 0), if share.is_some() { "%" } else { "" })
            };
            let shares = match bandwidth {
                Some(_) => format!("{:>23} {:>8}", share(&runs[0]), share(&runs[1])),
                None => String::new(),
            };
            let label = format!("batch {batch} after {context}, tokens/s");
            row(
                &label,
                &|run| run.decode.get(index).map_or(f64::NAN, |step| step.measured.rate()),
                false,
                shares,
            )?;
        }
        for (run, name) in runs.iter().zip(["int8", "16 bit"]) {
            let Some(run) = run else { continue };
            let cache = run.decode.iter().map(|step| step.measured.cache_bytes).max().unwrap_or(0);
            let outliers = if run.outliers.is_nan() {
                String::new()
            } else {
                format!("; {:.2} % outlier columns", 100.0 * run.outliers)
            };
            output.remark(&output.dim(&format!(
                "{name}: loaded in {:.1} s; KV cache {} of the largest batch ({}){outliers}",
                run.load_seconds,
                bytes(count(cache)),
                run.kv_cache.name(),
            )));
        }
        if let Some(bandwidth) = bandwidth {
            output.remark(&output.dim(&format!(
                "floor: the time in which {:.1} GB/s deliver the weights, keys and values of a step",
                bandwidth / 1e9
            )));
        }
        Ok(())
    }
}
