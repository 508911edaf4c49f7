//! The measurements of `int8-cuda-bench` and `int8 bench --device cuda`: the complete LLM.int8() layer against cuBLASLt fp16 in
//! the same process. Weights rotate through more memory than the L2 cache holds; both sides are recorded in CUDA graphs and
//! replayed alternately, in blocks; medians.

use std::time::{Duration, Instant};

use half::f16;
use int8_core::corpus::Random;
use int8_core::{Config, OutlierRule, Scheme};
use serde_json::{Value, json};

use crate::activations::QuantizedActivations;
use crate::algorithm::{Algorithm, Shape};
use crate::convert::{columns, real};
use crate::device::{Device, DeviceInfo, Stream, Timer};
use crate::error::Error;
use crate::gemm::GemmPlan;
use crate::graph::Graph;
use crate::linear::LinearPlan;
use crate::matrix::{Buffer, Matrix};
use crate::operations::{DenseProduct, int8_product};
use crate::weight::{KeepExact, Weight};

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
/// Blocks of replays of each side, alternating.
const BLOCKS: usize = 3;
/// Timed replays of a block.
const TIMED: usize = 7;
/// For how long a side is replayed before its times count. The GPU's clock follows the power drawn in the last tenths of a second:
/// with two replays, some milliseconds, one side was measured at the clock that the other's power draw had left.
const SETTLING: Duration = Duration::from_millis(200);

/// Which shapes and algorithms are measured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Options {
    /// The first shape alone.
    pub quick: bool,
    /// Shapes with so many rows of x alone.
    pub rows: Option<usize>,
    /// Every algorithm that supports a shape, beside the choice of [`Algorithm::Auto`].
    pub all_algorithms: bool,
}

/// One shape at one share of outlier columns.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// The layer.
    pub shape: Shape,
    /// Share of x's columns whose values are all outliers.
    pub outlier_share: f32,
    /// Whether the algorithm was left to the plan.
    pub auto: bool,
    /// The algorithm of the layer.
    pub algorithm: Algorithm,
    /// Median time of cuBLASLt's fp16 product, in µs.
    pub fp16_us: f64,
    /// Median time of the layer, in µs.
    pub int8_us: f64,
    /// Median time of cuBLASLt's bare i8·i8→i32, in µs, where it was measured.
    pub raw_us: Option<f64>,
    /// Which candidate of cuBLASLt's heuristic was the fastest in fp16.
    pub candidate: i32,
    /// ‖int8 − fp16‖ / ‖fp16‖ of one run.
    pub relative_error: f64,
    /// Weights rotated through.
    pub weights_rotated: usize,
    /// Timed replays of each side.
    pub replays: usize,
}

impl Record {
    /// Time of fp16 over time of int8.
    pub fn speed_up(&self) -> f64 {
        self.fp16_us / self.int8_us
    }

    /// The record as JSON.
    pub fn json(&self) -> Value {
        let Shape { m, n, k } = self.shape;
        json!({
            "m": m, "n": n, "k": k, "outlier_share": self.outlier_share, "auto": self.auto,
            "algorithm": format!("{:?}", self.algorithm),
            "fp16_us": self.fp16_us, "int8_us": self.int8_us, "speed_up": self.speed_up(),
            "cublaslt_int8_product_us": self.raw_us,
            "share_of_int8_product": self.raw_us.map(|raw| raw / self.int8_us),
            "cublaslt_candidate": self.candidate,
            "relative_error": self.relative_error, "weights_rotated": self.weights_rotated, "replays": self.replays,
            "tera_operations_per_second": 2.0 * real(m) * real(n) * real(k) / self.int8_us / 1e6,
            "weight_terabytes_per_second": real(n) * real(k) / self.int8_us / 1e6,
        })
    }

    /// Its line in the table under [`HEADER`].
    pub fn line(&self) -> String {
        let Shape { m, n, k } = self.shape;
        format!(
            "{m:>5} {:>12} {:>8}% {:>9.1} {:>9.1} {:>8.2} {:>9}  {:?}",
            format!("{n}x{k}"),
            self.outlier_share * 100.0,
            self.fp16_us,
            self.int8_us,
            self.speed_up(),
            self.raw_us.map_or(String::new(), |raw| format!("{raw:.1}")),
            self.algorithm,
        )
    }
}

/// Above the lines of records.
pub const HEADER: &str = "    M          NxK  outliers   fp16 us   int8 us speed-up    raw us  algorithm";

/// Measures; each line of the table goes to `line` as soon as it is known.
///
/// # Errors
/// [`Error::Missing`] without cuBLASLt, [`Error::Inexact`] where the layer differs from fp16 by more than 5 %, and those of
/// the operations. A named algorithm that does not support a shape is a line, and no error.
pub fn run(device: &Device, options: Options, line: &mut dyn FnMut(&str)) -> Result<Vec<Record>, Error> {
    let stream = Stream::new(device)?;
    let shapes = if options.quick { &SHAPES[..1] } else { &SHAPES[..] };
    let mut records = Vec::new();
    for &(m, n, k) in shapes.iter().filter(|shape| options.rows.is_none_or(|rows| shape.0 == rows)) {
        let shares: &[f32] = if m == 4096 { &SHARES } else { &SHARES[1..2] };
        let bench = Bench::new(device, &stream, Shape { m, n, k })?;
        for &share in shares {
            let others: &[Algorithm] =
                if options.all_algorithms && is_usual(share) { &Algorithm::LAYER } else { &[] };
            for algorithm in [Algorithm::Auto].iter().chain(others) {
                match bench.compare(share, *algorithm) {
                    Ok(measured) => {
                        measured.iter().for_each(|record| line(&record.line()));
                        records.extend(measured);
                    }
                    Err(error) if *algorithm != Algorithm::Auto => {
                        line(&format!("{m:>5} {n}x{k} {algorithm:?}: {error}"));
                    }
                    Err(error) => return Err(error),
                }
            }
        }
    }
    Ok(records)
}

/// Measures `algorithms` on one shape alternately with each other and with fp16, so that the machine is in the same state for all;
/// the order is reversed from round to round.
///
/// # Errors
/// As [`run`]; an algorithm that does not support the shape is a line, and no error.
pub fn versus(
    device: &Device,
    shape: Shape,
    share: f32,
    algorithms: &[Algorithm],
    rounds: usize,
    line: &mut dyn FnMut(&str),
) -> Result<Vec<Record>, Error> {
    let stream = Stream::new(device)?;
    let records = Bench::new(device, &stream, shape)?.versus(share, algorithms, rounds, line)?;
    let first = records.first().map_or(f64::NAN, |record| record.int8_us);
    for record in &records {
        line(&format!("{}, {:.3} of the first", record.line(), record.int8_us / first));
    }
    Ok(records)
}

/// Measures, on one shape, `count` layers that read the same x: each with its own prologue, and all with one. A line with both
/// times of a layer, in µs.
///
/// # Errors
/// Those of the operations.
pub fn shared_prologue(
    device: &Device,
    shape: Shape,
    share: f32,
    count: usize,
    rounds: usize,
    line: &mut dyn FnMut(&str),
) -> Result<(), Error> {
    let stream = Stream::new(device)?;
    line(&Bench::new(device, &stream, shape)?.shared_prologue(share, count, rounds)?);
    Ok(())
}

/// The records with the machine and the method, as they are kept.
pub fn document(info: &DeviceInfo, records: &[Record]) -> Value {
    json!({
        "device": info.name, "driver": info.driver, "runtime": info.runtime,
        "method": format!(
            "CUDA graphs over rotated weights, blocks of {TIMED} replays of each side in turn after {} s of replays to settle, medians",
            SETTLING.as_secs_f64()
        ),
        "records": records.iter().map(Record::json).collect::<Vec<_>>(),
    })
}

/// Geometric means of the speed-ups by group, a line each.
pub fn summary(records: &[Record]) -> Vec<String> {
    let mean = |name: &str, pick: &dyn Fn(&Record) -> bool| {
        let logs: Vec<f64> =
            records.iter().filter(|r| r.auto && pick(r)).map(|r| r.speed_up().ln()).collect();
        let mean = (logs.iter().sum::<f64>() / real(logs.len())).exp();
        (!logs.is_empty()).then(|| format!("{name}: geometric mean {mean:.3} over {}", logs.len()))
    };
    let mut lines = vec![
        mean("M >= 1024, 0.1 %", &|r| r.shape.m >= 1024 && is_usual(r.outlier_share)),
        mean("M <= 16, 0.1 %", &|r| r.shape.m <= 16 && is_usual(r.outlier_share)),
    ];
    lines.extend(SHARES.map(|share| {
        mean(&format!("M = 4096, {} %", share * 100.0), &|r| {
            r.shape.m == 4096 && (r.outlier_share - share).abs() < 1e-6
        })
    }));
    lines.into_iter().flatten().collect()
}

/// The share at which all shapes are measured.
fn is_usual(share: f32) -> bool {
    (share - SHARES[1]).abs() < 1e-6
}

/// The layer's configuration.
fn config() -> Config {
    Config { rule: OutlierRule::Absolute(6.0), ..Scheme::LlmInt8Absmax.config() }
}

struct Bench<'a> {
    device: &'a Device,
    stream: &'a Stream,
    shape: Shape,
    dense: Vec<Matrix<f16>>,
    weights: Vec<Weight<f16>>,
    bias: Buffer<f32>,
}

/// The graph is dropped first, before its buffers.
struct RawProduct {
    graph: Graph,
    _codes: Weight<f16>,
    _out: Matrix<i32>,
}

impl<'a> Bench<'a> {
    fn new(device: &'a Device, stream: &'a Stream, shape: Shape) -> Result<Self, Error> {
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

    fn input(&self, share: f32) -> Result<Matrix<f16>, Error> {
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
        Matrix::from_host(self.device, m, k, &host)
    }

    /// Which weight each layer of a graph has.
    fn order(&self) -> Vec<usize> {
        // Small layers: several rounds in one graph, so that the graph's own launch does not count.
        let rounds = (256 / self.weights.len()).clamp(1, if self.shape.m <= 256 { 4 } else { 1 });
        (0..self.weights.len() * rounds).map(|i| i % self.weights.len()).collect()
    }

    /// One block of timed replays of a graph, once it has settled.
    fn replay(&self, timer: &Timer, graph: &Graph, times: &mut Vec<f64>) -> Result<(), Error> {
        let begin = Instant::now();
        for turn in 0.. {
            timer.measure(self.stream, || graph.launch(self.stream))?;
            if turn > 0 && begin.elapsed() >= SETTLING {
                break;
            }
        }
        for _ in 0..TIMED {
            times.push(timer.measure(self.stream, || graph.launch(self.stream))?);
        }
        Ok(())
    }

    /// The fastest of cuBLASLt's candidates, set in `dense`, and recorded.
    ///
    /// # Safety
    /// As [`Graph::capture`], of `dense`, `x` and `y`.
    unsafe fn fastest_dense(
        &self,
        dense: &mut DenseProduct,
        x: &Matrix<f16>,
        y: &mut Matrix<f16>,
    ) -> Result<Graph, Error> {
        let (order, timer) = (self.order(), Timer::new(self.device)?);
        let mut best: Option<(f64, Graph, i32)> = None;
        for candidate in 0..dense.candidates(self.stream, x, &self.dense[0], y)? {
            dense.candidate = candidate;
            // SAFETY: the caller's promise; the weights outlive the graph in `self`.
            let graph = unsafe {
                Graph::capture(self.stream, || {
                    order.iter().try_for_each(|i| dense.run(self.stream, x, &self.dense[*i], y))
                })
            };
            let Ok(graph) = graph else { continue };
            let mut times = Vec::new();
            self.replay(&timer, &graph, &mut times)?;
            let time = median(&mut times);
            if best.as_ref().is_none_or(|best| time < best.0) {
                best = Some((time, graph, candidate));
            }
        }
        let (_, graph, candidate) =
            best.ok_or(Error::Missing { operation: "benchmark", library: "libcublasLt.so.13" })?;
        dense.candidate = candidate;
        Ok(graph)
    }

    fn versus(
        &self,
        share: f32,
        algorithms: &[Algorithm],
        rounds: usize,
        line: &mut dyn FnMut(&str),
    ) -> Result<Vec<Record>, Error> {
        let x = self.input(share)?;
        let mut plans = Vec::new();
        for &algorithm in algorithms {
            match self.plan(algorithm) {
                Ok(plan) => plans.push((algorithm, plan)),
                Err(error) => line(&format!("{algorithm:?}: {error}")),
            }
        }
        self.differences(&mut plans, &x, line)?;
        self.race(plans, &x, share, rounds)
    }

    /// As the function of this name.
    fn shared_prologue(&self, share: f32, count: usize, rounds: usize) -> Result<String, Error> {
        let Shape { m, n, k } = self.shape;
        let x = self.input(share)?;
        let mut y = Matrix::<f16>::zeros(self.device, m, n)?;
        let mut linear = self.plan(Algorithm::Auto)?;
        let mut activations = QuantizedActivations::<f16>::new(self.device, m, k, &config())?;
        let mut gemm = GemmPlan::<f16>::new(self.device, self.shape, &config(), Algorithm::Auto)?;
        let order = self.order();
        let bias = Some(&self.bias);
        // SAFETY: x, y, plans and activations are declared before the graphs, and so dropped after them; the weights outlive
        // them in `self`.
        let apart = unsafe {
            Graph::capture(self.stream, || {
                order.iter().try_for_each(|i| linear.run(self.stream, &x, &self.weights[*i], bias, &mut y))
            })
        }?;
        // SAFETY: as above.
        let together = unsafe {
            Graph::capture(self.stream, || {
                order.chunks(count.max(1)).try_for_each(|layers| {
                    activations.quantize(self.stream, &x, m)?;
                    layers.iter().try_for_each(|i| {
                        gemm.run(self.stream, &activations, &self.weights[*i], bias, &mut y)
                    })
                })
            })
        }?;
        let timer = Timer::new(self.device)?;
        let (mut apart_us, mut together_us) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            self.replay(&timer, &apart, &mut apart_us)?;
            self.replay(&timer, &together, &mut together_us)?;
        }
        let layers = real(order.len());
        let (apart_us, together_us) = (median(&mut apart_us) / layers, median(&mut together_us) / layers);
        Ok(format!(
            "{m}x{n}x{k}, {}% outliers: {apart_us:.2} us a layer with its own prologue ({:?}), {together_us:.2} us with one for {count} ({:?})",
            share * 100.0,
            linear.algorithm(),
            gemm.algorithm()
        ))
    }

    fn plan(&self, algorithm: Algorithm) -> Result<LinearPlan<f16>, Error> {
        LinearPlan::new(self.device, self.shape, &config(), algorithm)
    }

    /// Times fp16 and the plans alternately in blocks, so that each side settles at the clock of its own power draw, as in a program
    /// that runs it alone; the order is reversed from round to round.
    fn race(
        &self,
        mut plans: Vec<(Algorithm, LinearPlan<f16>)>,
        x: &Matrix<f16>,
        share: f32,
        rounds: usize,
    ) -> Result<Vec<Record>, Error> {
        let Shape { m, n, .. } = self.shape;
        let mut y = Matrix::<f16>::zeros(self.device, m, n)?;
        let mut y_dense = Matrix::<f16>::zeros(self.device, m, n)?;
        let mut dense = DenseProduct::new(self.device)?;
        let order = self.order();
        // SAFETY: all that the graphs use is declared before them, and so dropped after them.
        let fp16 = unsafe { self.fastest_dense(&mut dense, x, &mut y_dense) }?;
        let (mut sides, mut errors) = (vec![(fp16, Vec::new())], Vec::new());
        for (_, plan) in &mut plans {
            errors.push(self.relative_error(plan, x, &dense, &mut y, &mut y_dense)?);
            // SAFETY: as above.
            let graph = unsafe {
                Graph::capture(self.stream, || {
                    let mut run =
                        |i: usize| plan.run(self.stream, x, &self.weights[i], Some(&self.bias), &mut y);
                    order.iter().try_for_each(|i| run(*i))
                })
            }?;
            sides.push((graph, Vec::new()));
        }
        let timer = Timer::new(self.device)?;
        for round in 0..rounds {
            for at in 0..sides.len() {
                let count = sides.len();
                let (graph, times) = &mut sides[if round % 2 == 0 { at } else { count - 1 - at }];
                self.replay(&timer, graph, times)?;
            }
        }
        let layers = real(order.len());
        let fp16_us = median(&mut sides[0].1) / layers;
        let records = plans.iter().zip(&errors).zip(&mut sides[1..]);
        Ok(records
            .map(|(((algorithm, plan), error), (_, times))| Record {
                shape: self.shape,
                outlier_share: share,
                auto: *algorithm == Algorithm::Auto,
                algorithm: plan.algorithm(),
                replays: times.len(),
                fp16_us,
                int8_us: median(times) / layers,
                raw_us: None,
                candidate: dense.candidate,
                relative_error: *error,
                weights_rotated: self.weights.len(),
            })
            .collect())
    }

    /// Says for each plan how many elements of y are not, bit by bit, those of the first plan. Forms of one kernel add up the same
    /// numbers in the same order, so that any difference between them is a fault.
    fn differences(
        &self,
        plans: &mut [(Algorithm, LinearPlan<f16>)],
        x: &Matrix<f16>,
        line: &mut dyn FnMut(&str),
    ) -> Result<(), Error> {
        const LARGEST: usize = 1 << 26;
        const TURNS: usize = 3;
        let Shape { m, n, .. } = self.shape;
        if m * n > LARGEST {
            line(&format!("results are not compared: {m}x{n} is more than {LARGEST} elements"));
            return Ok(());
        }
        let poison = vec![f16::NAN; m * n];
        let mut y = Matrix::<f16>::zeros(self.device, m, n)?;
        let mut expected: Vec<Vec<f16>> = Vec::new();
        for (algorithm, plan) in plans {
            let mut different = 0;
            for (turn, weight) in self.weights.iter().take(TURNS).enumerate() {
                y.copy_from_host(&poison)?;
                plan.run(self.stream, x, weight, Some(&self.bias), &mut y)?;
                let found = y.to_host(self.stream)?;
                match expected.get(turn) {
                    Some(first) => {
                        let pairs = first.iter().zip(&found);
                        different += pairs.filter(|(a, b)| a.to_bits() != b.to_bits()).count();
                    }
                    None => expected.push(found),
                }
            }
            line(&format!("{algorithm:?}: {different} elements differ from the first's"));
        }
        Ok(())
    }

    /// One algorithm against fp16, and the time of the bare int8 product.
    fn compare(&self, share: f32, algorithm: Algorithm) -> Result<Vec<Record>, Error> {
        let plans = vec![(algorithm, self.plan(algorithm)?)];
        let mut records = self.race(plans, &self.input(share)?, share, BLOCKS)?;
        // The bare int8 product, i32 out, once for each shape: a lower bound of the layer's time. Measured apart, so that its power
        // draw does not change the conditions of the comparison.
        if is_usual(share) && algorithm == Algorithm::Auto {
            let order = self.order();
            if let Some(raw) = self.raw_product(&order)? {
                let mut times = Vec::new();
                self.replay(&Timer::new(self.device)?, &raw.graph, &mut times)?;
                let raw_us = median(&mut times) / real(order.len());
                records.iter_mut().for_each(|record| record.raw_us = Some(raw_us));
            }
        }
        Ok(records)
    }

    /// cuBLASLt's i8·i8→i32 on codes of x, recorded, with its buffers; `None` where it does not support the shape.
    fn raw_product(&self, order: &[usize]) -> Result<Option<RawProduct>, Error> {
        let Shape { m, n, .. } = self.shape;
        let x = self.input(0.0)?;
        let codes = Weight::quantize(self.stream, x, &Scheme::LlmInt8Absmax.config(), KeepExact::None)?;
        let mut out = Matrix::<i32>::zeros(self.device, m, n)?;
        let mut product = |i: usize| {
            int8_product(self.stream, codes.codes(), self.weights[i].codes(), &mut out, Algorithm::CublasLt)
        };
        match product(0) {
            Err(Error::Unsupported { .. } | Error::Invalid { .. }) => return Ok(None),
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
    ) -> Result<f64, Error> {
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
            return Err(Error::Inexact { shape: format!("{:?}", self.shape), error: format!("{error:.3}") });
        }
        Ok(error)
    }
}

fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}
