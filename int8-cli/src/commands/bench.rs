//! `int8 bench`: the layer and whole models, int8 against 16 and 32 bit.

#[cfg(feature = "cuda")]
mod cuda;
mod model;
mod shape;

use int8_core::Scheme;
use int8_cpu::Kernel;
use serde_json::{Value, json};

use crate::args::BenchArgs;
use crate::bench::{Effort, Machine, Problem, Shape, Times, outlier_costs};
use crate::convert::real;
use crate::device::Device;
use crate::failure::Failure;
use crate::output::{Output, OutputFile};
use crate::report::charts::{Axis, Caption, Chart, Series};
use crate::report::plots::write_chart;

/// Outputs and inputs of the layers: square ones of BERT to Llama size, and the MLP of Llama-7B.
const LAYERS: [(usize, usize); 6] =
    [(768, 768), (1024, 1024), (2048, 2048), (4096, 4096), (11008, 4096), (4096, 11008)];
/// One token, a small batch, a prompt, a window.
const ROWS: [usize; 4] = [1, 8, 64, 512];
/// Outlier columns of the main table: one in a thousand.
const OUTLIER_SHARE: usize = 1000;
/// What the ratios are about: our 16- and 32-bit layers are no yardstick for other libraries'.
const OPPONENTS: &str = "The bf16 and f32 layers are this program's own. PyTorch's bf16 linear layer (oneDNN) was measured beside the int8 layer \
on two processors: int8 was 1.8 to 3.9 times as fast (docs/benchmarks/cpu.md).";
/// Outlier columns of the second table, in a thousand.
const PER_MILLE: [usize; 5] = [0, 1, 10, 50, 200];

/// One shape with its times.
struct Line {
    shape: Shape,
    times: Times,
}

impl Line {
    /// Of the peak measured in the same rounds.
    fn share_of_peak(&self) -> Option<f64> {
        self.times.peak.map(|peak| self.shape.work() / self.times.raw / peak)
    }

    fn share_of_bandwidth(&self, machine: &Machine) -> f64 {
        self.shape.weight_bytes() / self.times.layer / machine.bandwidth
    }

    fn over_raw(&self) -> f64 {
        self.times.layer / self.times.raw
    }

    fn against_bf16(&self) -> f64 {
        self.times.bf16 / self.times.layer
    }

    fn against_f32(&self) -> f64 {
        self.times.f32 / self.times.layer
    }

    fn json(&self, machine: &Machine) -> Value {
        let Shape { rows, outputs, inner } = self.shape;
        json!({
            "m": rows, "n": outputs, "k": inner,
            "raw_seconds": self.times.raw,
            "layer_seconds": self.times.layer,
            "bf16_seconds": self.times.bf16,
            "f32_seconds": self.times.f32,
            "raw_share_of_peak": self.share_of_peak(),
            "peak_tops": self.times.peak.map(|peak| 2.0 * peak / 1e12),
            "layer_share_of_bandwidth": self.share_of_bandwidth(machine),
            "layer_over_raw": self.over_raw(),
            "layer_vs_bf16": self.against_bf16(),
            "layer_vs_f32": self.against_f32(),
        })
    }
}

/// Prints the tables.
pub(crate) fn run(arguments: &BenchArgs, device: &Device, output: &Output) -> Result<(), Failure> {
    let effort =
        Effort { best: arguments.best, ..if arguments.quick { Effort::QUICK } else { Effort::FULL } };
    let of_models = arguments.only.is_some() || arguments.preset.is_some() || !arguments.batch.is_empty();
    if of_models && arguments.model.is_none() && arguments.shape.is_none() {
        return Err(Failure::usage("--only, --preset and --batch go with MODEL or --shape"));
    }
    if let Some(path) = &arguments.model {
        return model::run(path, arguments, device, output);
    }
    if let Some(name) = &arguments.shape {
        return shape::run(name, arguments, device, output);
    }
    #[cfg(feature = "cuda")]
    if let Some(ordinal) = device.cuda()? {
        return cuda::run(ordinal, arguments, output);
    }
    let kernel = device.kernel()?;
    let plot = OutputFile::given("--plot", arguments.plot.as_deref())?;
    output.remark(&output.dim("probing the machine"));
    let machine = Machine::probe(kernel);
    let peak = machine.peak.map_or(String::new(), |peak| format!(", peak {:.2} TOPS", 2.0 * peak / 1e12));
    if !output.json {
        output.line(&output.bold(&format!(
            "{kernel}, {} threads{peak}, read bandwidth {:.1} GB/s",
            machine.threads,
            machine.bandwidth / 1e9
        )))?;
        output.line("")?;
        output.line(&output.bold(
            "   M       N      K      layer   raw: share   layer: share  layer /    times our     times our",
        ))?;
        output.line(&output.bold(
            "                       seconds      of peak   of bandwidth      raw    bf16 layer    f32 layer",
        ))?;
    }
    let layers = if arguments.quick { &LAYERS[..3] } else { &LAYERS[..] };
    let mut lines = Vec::new();
    for rows in ROWS {
        for &(outputs, inner) in layers {
            let shape = Shape { rows, outputs, inner };
            let problem = Problem::new(shape, (inner / OUTLIER_SHARE).max(1));
            let times = problem.measure(kernel, &effort, Vec::new()).map_err(int8_nn::Error::from)?;
            let line = Line { shape, times };
            if !output.json {
                output.line(&format!(
                    "{rows:4} {outputs:7} {inner:6} {:>10} {:>12} {:>13.0}% {:>8.2} {:>12.2}x {:>11.2}x",
                    seconds(line.times.layer),
                    line.share_of_peak().map_or("-".to_owned(), |share| format!("{:.0}%", 100.0 * share)),
                    100.0 * line.share_of_bandwidth(&machine),
                    line.over_raw(),
                    line.against_bf16(),
                    line.against_f32(),
                ))?;
            }
            lines.push(line);
        }
    }
    if !output.json {
        output.line("")?;
        output.line(OPPONENTS)?;
    }
    let outliers = outlier_table(arguments, kernel, &effort, output)?;
    if output.json {
        output.object(&json!({
            "kernel": machine.kernel.name(),
            "threads": machine.threads,
            "peak_tops": machine.peak.map(|peak| 2.0 * peak / 1e12),
            "read_gb_per_second": machine.bandwidth / 1e9,
            "statistic": if effort.best { "best" } else { "median" },
            "outlier_columns": "0.1 %, at least one",
            "shapes": lines.iter().map(|line| line.json(&machine)).collect::<Vec<_>>(),
            "outliers": outliers,
        }))?;
    }
    if let Some(file) = &plot {
        let source = format!("against our own bf16 layer; {kernel}, {} threads", machine.threads);
        let caption = Caption { title: "Speed-up of an LLM.int8() layer", source: &source };
        write_chart(file, &speed_ups(&lines), caption)?;
        output.remark(&format!("drawn in {}", file.path().display()));
    }
    Ok(())
}

/// A drawing of the layer's speed-up over bf16 weights: a line for each number of rows.
fn speed_ups(lines: &[Line]) -> Chart {
    let of_rows = |rows: usize| {
        let mut points: Vec<(f64, f64)> = lines
            .iter()
            .filter(|line| line.shape.rows == rows)
            .map(|line| (line.shape.weight_bytes() / 1e6, line.against_bf16()))
            .collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        Series { name: format!("M = {rows}"), points }
    };
    let x = Axis { label: "weights of the layer, millions", log: true };
    let y = Axis { label: "times as fast as our bf16 layer", log: false };
    Chart::Lines { x, y, series: ROWS.map(of_rows).into() }
}

/// The cost of outlier columns.
fn outlier_table(
    arguments: &BenchArgs,
    kernel: Kernel,
    effort: &Effort,
    output: &Output,
) -> Result<Value, Failure> {
    let size = if arguments.quick { 1024 } else { 4096 };
    if !output.json {
        output.line("")?;
        output.line(&output.bold(&format!("layer / raw at shares of outlier columns, N = K = {size}")))?;
        let shares = PER_MILLE.map(|share| format!("{:>8}%", real(share) / 10.0)).concat();
        output.line(&output.bold(&format!("   M {shares}")))?;
    }
    let mut table = Vec::new();
    for rows in ROWS {
        let shape = Shape { rows, outputs: size, inner: size };
        let config = Scheme::LlmInt8Absmax.config();
        let costs =
            outlier_costs(kernel, shape, &config, &PER_MILLE, effort).map_err(int8_nn::Error::from)?;
        if !output.json {
            let cells: String = costs.iter().map(|cost| format!("{cost:>9.2}")).collect();
            output.line(&format!("{rows:4} {cells}"))?;
        }
        table.push(json!({
            "m": rows, "n": size, "k": size, "outliers_per_mille": PER_MILLE, "layer_over_raw": costs,
        }));
    }
    Ok(Value::Array(table))
}

/// A short time, three digits.
fn seconds(seconds: f64) -> String {
    let (value, unit) = if seconds < 1e-3 { (seconds * 1e6, "µs") } else { (seconds * 1e3, "ms") };
    let digits = if value >= 100.0 {
        0
    } else if value >= 10.0 {
        1
    } else {
        2
    };
    format!("{value:.digits$} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_number_of_rows_is_a_line() {
        let measured = |rows: usize, outputs: usize, ratio: f64| Line {
            shape: Shape { rows, outputs, inner: 64 },
            times: Times {
                rounds: 1,
                counted: 1.0,
                peak: None,
                raw: 1.0,
                layer: 1.0,
                bf16: ratio,
                f32: 1.0,
                others: Vec::new(),
            },
        };
        let lines = [measured(1, 8, 2.0), measured(1, 16, 3.0), measured(64, 8, 0.5), measured(64, 16, 11.0)];
        let svg = speed_ups(&lines).svg(None).expect("a drawing");
        assert_eq!(svg.matches("<circle").count(), 4);
        assert!(svg.contains("M = 64") && !svg.contains("NaN"));
    }
}
