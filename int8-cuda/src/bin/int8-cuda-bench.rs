//! Measures the complete LLM.int8() layer against cuBLASLt fp16 in the same process. Weights rotate through more memory than
//! the L2 cache holds; both sides are recorded in CUDA graphs and replayed in turn, in blocks; medians.
//!
//! `int8-cuda-bench [--json FILE] [--quick] [--rows M] [--all-algorithms]`

use std::error::Error as StdError;
use std::process::ExitCode;

use half::f16;
use int8_core::corpus::Random;
use int8_core::{Config, OutlierRule, Scheme};
use int8_cuda::{
    Algorithm, Buffer, DenseProduct, Device, Graph, KeepExact, LinearPlan, Matrix, Shape, Stream, Timer,
    Weight,
};
use serde_json::{Value, json};

type Anything<T> = Result<T, Box<dyn StdError>>;

/// M, N, K of the table in docs/benchmarks.
const SHAPES: [(usize, usize, usize); 14] = [
    (1, 4096, 4096),
    (16, 16384, 4096),
    (1, 12288, 12288),
    (1, 49152, 12288),
    (64, 16384, 4096),
    (256, 16384, 4096),
    (1024, 4096, 4096),
    (1024, 16384, 4096),
    (4096, 4096, 4096),
    (4096, 16384, 4096),
    (4096, 4096, 16384),
    (8192, 12288, 12288),
    (8192, 49152, 12288),
    (16, 4096, 4096),
];
/// Shares of outlier columns, measured at M = 4096.
const SHARES: [f32; 5] = [0.0, 0.001, 0.01, 0.05, 0.2];
/// Bytes of fp16 weights to rotate through: several dozen times the L2 cache.
const ROTATED: usize = 2 << 30;
const REPEATS: usize = 21;
/// Blocks of replays of one side before the other's turn.
const BLOCKS: usize = 3;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("int8-cuda-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Anything<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let flag = |name: &str| arguments.iter().any(|argument| argument == name);
    let json_path =
        arguments.iter().position(|argument| argument == "--json").and_then(|at| arguments.get(at + 1));
    let device = Device::new(0)?;
    let stream = Stream::new(&device)?;
    let info = device.info();
    println!("{}, driver {}, built with CUDA {}", info.name, info.driver, info.runtime);
    println!(
        "{:>5} {:>12} {:>9} {:>9} {:>9} {:>8} {:>9}  algorithm",
        "M", "NxK", "outliers", "fp16 us", "int8 us", "speed-up", "raw us"
    );
    let rows = arguments.iter().position(|argument| argument == "--rows");
    let rows: Option<usize> = match rows.map(|at| arguments.get(at + 1)) {
        Some(value) => Some(value.and_then(|value| value.parse().ok()).ok_or("--rows needs a number")?),
        None => None,
    };
    let shapes = if flag("--quick") { &SHAPES[..1] } else { &SHAPES[..] };
    let mut records = Vec::new();
    for &(m, n, k) in shapes.iter().filter(|shape| rows.is_none_or(|rows| shape.0 == rows)) {
        let shares: &[f32] = if m == 4096 { &SHARES } else { &SHARES[1..2] };
        let bench = Bench::new(&device, &stream, Shape { m, n, k })?;
        for &share in shares {
            let algorithms: Vec<Algorithm> = if flag("--all-algorithms") && share == SHARES[1] {
                [Algorithm::Auto].into_iter().chain(Algorithm::LAYER).collect()
            } else {
                vec![Algorithm::Auto]
            };
            for algorithm in algorithms {
                match bench.compare(share, algorithm) {
                    Ok(record) => records.push(record),
                    Err(error) if algorithm != Algorithm::Auto => {
                        println!("{m:>5} {n}x{k} {algorithm:?}: {error}")
                    }
                    Err(error) => return Err(error),
                }
            }
        }
    }
    summary(&records);
    if let Some(path) = json_path {
        let document = json!({
            "device": info.name, "driver": info.driver, "runtime": info.runtime,
            "method": "CUDA graphs over rotated weights, blocks of 7 replays of each side in turn (2 more to settle), medians", "repeats": REPEATS,
            "records": records,
        });
        std::fs::write(path, serde_json::to_string_pretty(&document)?)?;
    }
    Ok(())
}

struct Bench<'a> {
    device: &'a Device,
    stream: &'a Stream,
    shape: Shape,
    dense: Vec<Matrix<f16>>,
    weights: Vec<Weight<f16>>,
    bias: Buffer<f32>,
}

/// The graph goes first, before what it reads and writes.
struct RawProduct {
    graph: Graph,
    _codes: Weight<f16>,
    _out: Matrix<i32>,
}

impl<'a> Bench<'a> {
    fn new(device: &'a Device, stream: &'a Stream, shape: Shape) -> Anything<Self> {
        let Shape { n, k, .. } = shape;
        let count = (ROTATED / (n * k * 2)).clamp(2, 64);
        let config = Scheme::LlmInt8Absmax.config();
        let mut random = Random::new(1);
        // Random data, never zeros; a block of it repeated with an odd period makes up large weights.
        let block: Vec<f16> = (0..1_000_003).map(|_| f16::from_f32(random.normal() * 0.02)).collect();
        let (mut dense, mut weights) = (Vec::new(), Vec::new());
        for turn in 0..count {
            let host: Vec<f16> = block.iter().copied().cycle().skip(turn * 7919).take(n * k).collect();
            dense.push(Matrix::from_host(device, n, k, &host)?);
            weights.push(Weight::quantize(
                stream,
                Matrix::from_host(device, n, k, &host)?,
                &config,
                KeepExact::None,
            )?);
        }
        let bias: Vec<f32> = (0..n).map(|_| random.normal()).collect();
        Ok(Self { device, stream, shape, dense, weights, bias: Buffer::from_host(device, &bias)? })
    }

    fn input(&self, share: f32) -> Anything<Matrix<f16>> {
        let Shape { m, k, .. } = self.shape;
        let mut random = Random::new(2);
        // Exactly ceil(share * K) columns, spread evenly, with every value an outlier.
        let outliers = if share > 0.0 { columns(share, k) } else { 0 };
        let is_outlier: Vec<bool> = (0..k).map(|c| outliers > 0 && (c * outliers) % k < outliers).collect();
        let block: Vec<f32> = (0..1_000_003).map(|_| random.normal().clamp(-5.5, 5.5)).collect();
        let host: Vec<f16> = (0..m * k)
            .map(|i| {
                let v = block[i % block.len()];
                f16::from_f32(if is_outlier[i % k] { 20.0 + v } else { v })
            })
            .collect();
        Ok(Matrix::from_host(self.device, m, k, &host)?)
    }

    fn compare(&self, share: f32, algorithm: Algorithm) -> Anything<Value> {
        let Shape { m, n, k } = self.shape;
        let config = Config { rule: OutlierRule::Absolute(6.0), ..Scheme::LlmInt8Absmax.config() };
        let x = self.input(share)?;
        let mut y = Matrix::<f16>::zeros(self.device, m, n)?;
        let mut y_dense = Matrix::<f16>::zeros(self.device, m, n)?;
        let mut plan = LinearPlan::<f16>::new(self.device, self.shape, &config, algorithm)?;
        // Small layers: several rounds in one graph, so that the graph's own launch does not count.
        let rounds = (256 / self.weights.len()).clamp(1, if m <= 256 { 4 } else { 1 });
        let order: Vec<usize> = (0..self.weights.len() * rounds).map(|i| i % self.weights.len()).collect();

        // SAFETY: everything the graph uses outlives it in this function.
        let int8 = unsafe {
            Graph::capture(self.stream, || {
                order
                    .iter()
                    .try_for_each(|i| plan.run(self.stream, &x, &self.weights[*i], Some(&self.bias), &mut y))
            })
        }?;
        let timer = Timer::new(self.device)?;
        let mut baseline: Option<(f64, Graph, i32)> = None;
        let mut dense = DenseProduct::new(self.device)?;
        let candidates = dense.candidates(self.stream, &x, &self.dense[0], &mut y_dense)?;
        for candidate in 0..candidates {
            dense.candidate = candidate;
            // SAFETY: as above.
            let graph = unsafe {
                Graph::capture(self.stream, || {
                    order.iter().try_for_each(|i| dense.run(self.stream, &x, &self.dense[*i], &mut y_dense))
                })
            };
            let Ok(graph) = graph else { continue };
            graph.launch(self.stream)?;
            let time = timer.measure(self.stream, || graph.launch(self.stream))?;
            if baseline.as_ref().is_none_or(|best| time < best.0) {
                baseline = Some((time, graph, candidate));
            }
        }
        let (_, fp16, candidate) =
            baseline.ok_or("cuBLASLt was not found; put libcublasLt.so.13 on LD_LIBRARY_PATH")?;
        dense.candidate = candidate;
        let error = self.relative_error(&mut plan, &x, &dense, &mut y, &mut y_dense)?;

        // The bare int8 product, i32 out, once for each shape: what the layer may at best come near to.
        let raw = if (share - SHARES[1]).abs() < f32::EPSILON && algorithm == Algorithm::Auto {
            self.raw_product(&order)?
        } else {
            None
        };
        let (mut fp16_times, mut int8_times, mut raw_times) = (Vec::new(), Vec::new(), Vec::new());
        // In turn by blocks: each side settles at the clock its own power draw allows, as in a program that runs it alone.
        for _ in 0..BLOCKS {
            for (graph, times) in [(&fp16, &mut fp16_times), (&int8, &mut int8_times)] {
                for turn in 0..REPEATS / BLOCKS + 2 {
                    let time = timer.measure(self.stream, || graph.launch(self.stream))?;
                    if turn >= 2 {
                        times.push(time);
                    }
                }
            }
        }
        // Not in turn with the others: it would change what those two are compared under.
        if let Some(raw) = &raw {
            for _ in 0..REPEATS / BLOCKS {
                raw_times.push(timer.measure(self.stream, || raw.graph.launch(self.stream))?);
            }
        }
        let layers = convert(order.len());
        let (fp16_us, int8_us) = (median(&mut fp16_times) / layers, median(&mut int8_times) / layers);
        let raw_us = raw.is_some().then(|| median(&mut raw_times) / layers);
        let name = format!("{:?}", plan.algorithm());
        let speed_up = fp16_us / int8_us;
        println!(
            "{m:>5} {:>12} {:>8}% {fp16_us:>9.1} {int8_us:>9.1} {speed_up:>8.2} {:>9}  {name}",
            format!("{n}x{k}"),
            share * 100.0,
            raw_us.map_or(String::new(), |raw| format!("{raw:.1}")),
        );
        Ok(json!({
            "m": m, "n": n, "k": k, "outlier_share": share, "auto": algorithm == Algorithm::Auto, "algorithm": name,
            "fp16_us": fp16_us, "int8_us": int8_us, "speed_up": speed_up,
            "cublaslt_int8_product_us": raw_us, "share_of_int8_product": raw_us.map(|raw| raw / int8_us), "cublaslt_candidate": candidate,
            "relative_error": error, "weights_rotated": self.weights.len(),
            "tera_operations_per_second": 2.0 * convert(m) * convert(n) * convert(k) / int8_us / 1e6,
            "weight_terabytes_per_second": convert(n) * convert(k) / int8_us / 1e6,
        }))
    }

    /// cuBLASLt's i8·i8→i32 on codes of x, recorded, and what it reads and writes; `None` where it does not take the shape.
    fn raw_product(&self, order: &[usize]) -> Anything<Option<RawProduct>> {
        let Shape { m, n, .. } = self.shape;
        let x = self.input(0.0)?;
        let codes = Weight::quantize(self.stream, x, &Scheme::LlmInt8Absmax.config(), KeepExact::None)?;
        let mut out = Matrix::<i32>::zeros(self.device, m, n)?;
        let mut product = |i: usize| {
            int8_cuda::int8_product(
                self.stream,
                codes.codes(),
                self.weights[i].codes(),
                &mut out,
                Algorithm::CublasLt,
            )
        };
        match product(0) {
            Err(int8_cuda::Error::Unsupported { .. } | int8_cuda::Error::Invalid { .. }) => return Ok(None),
            other => other?,
        }
        // SAFETY: codes and out are returned beside the graph and dropped after it, the weights outlive it in `self`.
        let graph = unsafe { Graph::capture(self.stream, || order.iter().try_for_each(|i| product(*i))) }?;
        Ok(Some(RawProduct { graph, _codes: codes, _out: out }))
    }

    /// ‖int8 − fp16‖ / ‖fp16‖ on one weight, without bias: a timed variant that is wrong is not worth timing.
    fn relative_error(
        &self,
        plan: &mut LinearPlan<f16>,
        x: &Matrix<f16>,
        dense: &DenseProduct,
        y: &mut Matrix<f16>,
        y_dense: &mut Matrix<f16>,
    ) -> Anything<f64> {
        plan.run(self.stream, x, &self.weights[0], None, y)?;
        dense.run(self.stream, x, &self.dense[0], y_dense)?;
        let (a, b) = (y.to_host(self.stream)?, y_dense.to_host(self.stream)?);
        let (mut difference, mut norm) = (0.0, 0.0);
        for (a, b) in a.iter().zip(&b) {
            let (a, b) = (f64::from(a.to_f32()), f64::from(b.to_f32()));
            difference += (a - b) * (a - b);
            norm += b * b;
        }
        let error = (difference / norm).sqrt();
        if error.is_nan() || error > 0.05 {
            return Err(format!("the int8 layer differs from fp16 by {error} at {:?}", self.shape).into());
        }
        Ok(error)
    }
}

fn summary(records: &[Value]) {
    let mean = |name: &str, pick: &dyn Fn(&Value) -> bool| {
        let logs: Vec<f64> = records
            .iter()
            .filter(|r| r["auto"] == true && pick(r))
            .filter_map(|r| r["speed_up"].as_f64())
            .map(f64::ln)
            .collect();
        if !logs.is_empty() {
            println!(
                "{name}: geometric mean {:.3} over {}",
                (logs.iter().sum::<f64>() / convert(logs.len())).exp(),
                logs.len()
            );
        }
    };
    let m = |r: &Value| r["m"].as_u64().unwrap_or(0);
    let share = |r: &Value| r["outlier_share"].as_f64().unwrap_or(0.0);
    let usual = |r: &Value| (share(r) - 0.001).abs() < 1e-6;
    mean("M >= 1024, 0.1 %", &|r| m(r) >= 1024 && usual(r));
    mean("M <= 16, 0.1 %", &|r| m(r) <= 16 && usual(r));
    for s in SHARES {
        mean(&format!("M = 4096, {} %", s * 100.0), &|r| {
            m(r) == 4096 && (share(r) - f64::from(s)).abs() < 1e-6
        });
    }
}

fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

#[expect(clippy::cast_precision_loss, reason = "counts far below 2^53")]
fn convert(count: usize) -> f64 {
    count as f64
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "a column count"
)]
fn columns(share: f32, k: usize) -> usize {
    (share * k as f32).ceil() as usize
}
