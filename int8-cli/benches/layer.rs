//! Raw int8 product and complete layer against `rten-gemm` (int8) and products with bf16 and f32 weights, in one run,
//! A B A B….
//!
//! ```text
//! cargo bench -p int8-cli --bench layer -- [--quick] [--best] [--whole-cores] [--json FILE] [--only raw|ours|outliers|kernels|pack] [--shape MxNxK]
//! ```
//!
//! Prints shares of the machine's peak (bandwidth measured first, the peak of the instruction in turns with the rest) and
//! ratios; medians of at least 20 rounds after a warm-up (`--best`: the best round, for a machine with other work on it;
//! `--whole-cores`: only rounds in which no thread shares its core with another program, as happens on virtual machines; detected with AMX).
//! Weights are rotated through at least 256 MiB, more than a cache holds from one call to the next.
#![allow(
    clippy::cast_precision_loss,
    clippy::print_stdout,
    missing_docs,
    reason = "a bench prints; its counts are below 2⁵³"
)]

// The program is no library.
#[allow(dead_code, unused_imports, reason = "the rest is the program's")]
#[path = "../src/bench/mod.rs"]
mod bench;
#[allow(dead_code, reason = "the rest is the program's")]
#[path = "../src/convert.rs"]
mod convert;

use std::hint::black_box;

use bench::{Contestant, Effort, Machine, Problem, Shape, activations, codes, race};
use half::{bf16, f16};
use int8_core::corpus::Random;
use int8_core::{
    Config, Element, Encoding, Granularity, OutlierGranularity, OutlierRule, RowStatistic, Scheme,
};
use int8_cpu::{ArenaSlice, Kernel, PackedWeight, int8_product_into, probe};
use ndarray::{Array1, Array2, ArrayView2};
use rten_gemm::{GemmExecutor, GemmInputA, GemmInputB, GemmOptions};
use rten_tensor::NdTensorView;
use serde_json::{Value, json};

struct Options {
    quick: bool,
    best: bool,
    whole_cores: bool,
    json: Option<String>,
    only: Option<String>,
    /// M, N, K of a single shape.
    shape: Option<(usize, usize, usize)>,
}

fn options() -> Options {
    let mut options =
        Options { quick: false, best: false, whole_cores: false, json: None, only: None, shape: None };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            // `cargo test --benches`, and so CI.
            "--quick" | "--test" => options.quick = true,
            "--best" => options.best = true,
            "--whole-cores" => options.whole_cores = true,
            "--json" => options.json = arguments.next(),
            "--shape" => {
                let text = arguments.next().unwrap_or_default();
                let sizes: Vec<usize> = text.split('x').filter_map(|size| size.parse().ok()).collect();
                options.shape = (sizes.len() == 3).then(|| (sizes[0], sizes[1], sizes[2]));
            }
            "--only" => options.only = arguments.next(),
            _ => {}
        }
    }
    options
}

impl Options {
    fn effort(&self) -> Effort {
        let effort = if self.quick { Effort::ONCE } else { Effort::FULL };
        Effort { best: self.best, whole_cores: self.whole_cores, ..effort }
    }
}

/// One shape: raw product, rten's, the layer with 0.1 % outlier columns, and the products with bf16 and f32 weights.
fn shape(machine: &Machine, sizes: (usize, usize, usize), options: &Options) -> Value {
    let (m, n, k) = sizes;
    let effort = options.effort();
    let problem = Problem::new(Shape { rows: m, outputs: n, inner: k }, (k / 1000).max(1));
    let executor: GemmExecutor<u8, i8, i32> = GemmExecutor::new();
    let a_unsigned: Vec<u8> = problem.a.iter().map(|code| code.cast_unsigned() ^ 0x80).collect();
    let w_transposed: Vec<i8> = problem.w.t().iter().copied().collect();
    let peers = options.only.as_deref() != Some("ours");
    let rten_weights: Vec<_> = (0..if peers { effort.copies(n * k) } else { 0 })
        .map(|_| executor.prepack_b(NdTensorView::from_data([k, n], w_transposed.as_slice())))
        .collect();
    let mut rten_out = ArenaSlice::<i32>::zeroed(m * n);
    let mut others: Vec<Contestant<'_>> = Vec::new();
    if peers {
        others.push(Box::new(|i| {
            let view = NdTensorView::from_data([m, k], a_unsigned.as_slice());
            let b = GemmInputB::Packed(&rten_weights[i % rten_weights.len()]);
            executor
                .gemm(&mut rten_out, GemmInputA::Unpacked(view), b, GemmOptions::default())
                .expect("valid shapes");
        }));
    }
    let times = problem.measure(machine.kernel, &effort, others).expect("valid shapes");
    black_box(&rten_out);
    let rten = times.others.first().copied().unwrap_or(f64::NAN);
    let shape = problem.shape;
    let peak = times.peak.unwrap_or(f64::NAN);
    let share = shape.work() / times.raw / peak;
    let read = |seconds: f64| shape.weight_bytes() / seconds / machine.bandwidth;
    println!(
        "{m:5} {n:6} {k:6} | {:9.1} us | peak {:5.1} %  read {:5.1} % (layer {:5.1} %) | {:5.2}x rten | layer/raw {:5.2} | layer {:5.2}x bf16, {:5.2}x f32 weights",
        times.raw * 1e6,
        100.0 * share,
        100.0 * read(times.raw),
        100.0 * read(times.layer),
        rten / times.raw,
        times.layer / times.raw,
        times.bf16 / times.layer,
        times.f32 / times.layer,
    );
    if options.whole_cores {
        println!(
            "{:>20} | {} rounds or more, {:.0} % of all",
            "on whole cores",
            times.rounds,
            100.0 * times.counted
        );
    }
    json!({
        "m": m, "n": n, "k": k,
        "rounds": times.rounds,
        "share_of_rounds": times.counted,
        "share_of_peak": share,
        "peak_tops": 2.0 * peak / 1e12,
        "share_of_bandwidth": read(times.raw),
        "layer_share_of_bandwidth": read(times.layer),
        "raw_vs_rten": rten / times.raw,
        "rten_share_of_peak": share * times.raw / rten,
        "layer_over_raw": times.layer / times.raw,
        "layer_vs_bf16": times.bf16 / times.layer,
        "layer_vs_f32": times.f32 / times.layer,
        "raw_us": times.raw * 1e6,
        "layer_us": times.layer * 1e6,
    })
}

/// The layer at growing shares of outlier columns, relative to the raw product.
fn outliers(kernel: Kernel, (m, n, k): (usize, usize, usize), options: &Options) -> Value {
    let per_mille = [0, 1, 10, 50, 200];
    let column = Scheme::LlmInt8Absmax.config();
    let value = Config { outlier_granularity: OutlierGranularity::Value, ..column };
    let zeropoint = Config { input_encoding: Encoding::Zeropoint, ..column };
    // The preset `best` of int8-nn, for inputs that follow a normalisation.
    let groups = Config {
        input_granularity: Granularity::Group,
        weight_encoding: Encoding::Zeropoint,
        weight_granularity: Granularity::Group,
        rule: OutlierRule::RelativeToRow { tau: 14.0, statistic: RowStatistic::MedianAbs },
        outlier_granularity: OutlierGranularity::Value,
        ..zeropoint
    };
    let mut lists = Vec::new();
    for (name, config) in
        [("column", column), ("value", value), ("zeropoint column", zeropoint), ("best", groups)]
    {
        let shape = Shape { rows: m, outputs: n, inner: k };
        let ratios = bench::outlier_costs(kernel, shape, &config, &per_mille, &options.effort())
            .expect("valid shapes");
        println!("{m:5} {n:6} {k:6} | {name:17} layer/raw at 0, 0.1, 1, 5, 20 % outliers: {ratios:.2?}");
        lists.push(json!({"m": m, "n": n, "k": k, "granularity": name, "outliers_per_mille": per_mille, "layer_over_raw": ratios}));
    }
    Value::Array(lists)
}

/// The raw product of every kernel, relative to the best.
fn kernels((m, n, k): (usize, usize, usize), options: &Options) -> Value {
    let mut random = Random::new(3);
    let (w, a) = (codes(&mut random, n, k), codes(&mut random, m, k));
    let available = Kernel::available();
    let weights: Vec<PackedWeight> = available
        .iter()
        .map(|kernel| {
            PackedWeight::from_codes(*kernel, w.view(), Array1::from_elem(n, 0.5).view(), None)
                .expect("valid weight")
        })
        .collect();
    let a = a.view();
    let mut contestants: Vec<Contestant<'_>> = Vec::new();
    for weight in &weights {
        let mut raw = Array2::<i32>::zeros((m, n));
        let run = move |_| int8_product_into(a, weight, raw.view_mut()).expect("valid shapes");
        contestants.push(Box::new(run));
    }
    let times = race(&mut contestants, &options.effort());
    let times: Vec<f64> = times.iter().map(|timed| timed.seconds).collect();
    for (kernel, time) in available.iter().zip(&times) {
        println!(
            "{m:5} {n:6} {k:6} | {:12} {:9.1} us, {:.3} of the best",
            kernel.name(),
            time * 1e6,
            times[0] / time
        );
    }
    available.iter().zip(&times).map(|(kernel, time)| json!({"kernel": kernel.name(), "m": m, "n": n, "k": k, "speed": times[0] / time})).collect()
}

/// Quantising and packing, in bytes of input per second and thread.
fn pack<T: Element>(machine: &Machine, kernel: Kernel, options: &Options) -> Value {
    let mut random = Random::new(4);
    let (n, k) = if options.quick { (64, 64) } else { (8192, 4096) };
    let w: Array2<T> = activations(&mut random, n, k, 0);
    let pack = |w: ArrayView2<'_, T>| PackedWeight::quantize(kernel, w, Encoding::Absmax, Granularity::Row);
    let times = race(&mut [Box::new(|_| drop(black_box(pack(w.view()))))], &options.effort());
    let rate = (n * k * size_of::<T>()) as f64 / times[0].seconds;
    println!(
        "quantise and pack {}: {:.2} GB/s of input per thread, {:.0} % of read bandwidth",
        T::NAME,
        rate / machine.threads as f64 / 1e9,
        100.0 * rate / machine.bandwidth
    );
    json!({"type": T::NAME, "bytes_per_second_per_thread": rate / machine.threads as f64, "share_of_bandwidth": rate / machine.bandwidth})
}

fn main() {
    let options = options();
    let wanted = |name: &str| options.only.as_deref().is_none_or(|only| only == name);
    let kernel = Kernel::select().expect("INT8_KERNEL names a kernel of this machine");
    if options.whole_cores && probe::has_core().is_none() {
        println!("without AMX shared cores cannot be detected: all rounds count");
    }
    let mut machine =
        Machine { kernel, threads: rayon::current_num_threads(), peak: None, bandwidth: f64::NAN };
    if !options.quick {
        machine = Machine::probe(kernel);
    }
    let (threads, bandwidth, peak) = (machine.threads, machine.bandwidth, machine.peak.unwrap_or(f64::NAN));
    println!(
        "kernel {kernel}, {threads} threads, peak {:.3} TOPS, read bandwidth {:.1} GB/s",
        2.0 * peak / 1e12,
        bandwidth / 1e9
    );
    let mut record = json!({"kernel": kernel.name(), "threads": threads, "peak_tops": 2.0 * peak / 1e12, "read_gb_per_s": bandwidth / 1e9});

    if wanted("raw") || wanted("ours") {
        let sizes: &[(usize, usize)] = if options.quick {
            &[(96, 130)]
        } else {
            &[(768, 768), (1024, 1024), (2048, 2048), (4096, 4096), (11008, 4096), (4096, 11008)]
        };
        let all = [1, 8, 64, 512].into_iter().flat_map(|m| sizes.iter().map(move |&(n, k)| (m, n, k)));
        let chosen: Vec<_> = options.shape.map_or_else(|| all.collect(), |shape| vec![shape]);
        let rows: Vec<Value> = chosen.iter().map(|sizes| shape(&machine, *sizes, &options)).collect();
        record["shapes"] = rows.into();
    }
    let (n, k) = if options.quick { (96, 130) } else { (4096, 4096) };
    if wanted("outliers") {
        let shapes =
            options.shape.map_or_else(|| [1, 64, 512].map(|m| (m, n, k)).to_vec(), |shape| vec![shape]);
        let rows: Vec<Value> = shapes.iter().map(|sizes| outliers(kernel, *sizes, &options)).collect();
        record["outliers"] = rows.into();
    }
    if wanted("kernels") {
        record["kernels"] =
            [1, 512].iter().map(|m| kernels((*m, n.min(2048), k.min(2048)), &options)).collect();
    }
    if wanted("pack") {
        let types = [
            pack::<f32>(&machine, kernel, &options),
            pack::<f16>(&machine, kernel, &options),
            pack::<bf16>(&machine, kernel, &options),
        ];
        record["pack"] = types.into_iter().collect();
    }
    if let Some(path) = &options.json {
        let text = serde_json::to_string_pretty(&record).expect("plain numbers");
        std::fs::write(path, text + "\n").unwrap_or_else(|error| panic!("cannot write {path}: {error}"));
    }
}
