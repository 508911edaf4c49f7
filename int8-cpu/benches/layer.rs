//! Raw int8 product and complete layer against `rten-gemm` (int8) and `gemm` (f32), in one run, A B A B….
//!
//! ```text
//! cargo bench -p int8-cpu --bench layer -- [--quick] [--best] [--json FILE] [--only raw|ours|outliers|kernels|pack] [--shape MxNxK]
//! ```
//!
//! Prints shares of what the machine can do (probed first) and ratios; medians of at least 20 rounds after a warm-up
//! (`--best`: the best round, for a machine with other work on it).
//! Weights are rotated through at least 256 MiB, so that no cache keeps them from one call to the next.
#![allow(clippy::cast_precision_loss, missing_docs, reason = "a bench: counts below 2⁵³")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use half::{bf16, f16};
use int8_core::corpus::Random;
use int8_core::{Config, Element, Encoding, Granularity, OutlierGranularity, Scheme};
use int8_cpu::{Kernel, OutlierWeights, PackedWeight, Store, int8_product_into, linear, probe};
use ndarray::{Array2, ArrayView2};
use rten_gemm::{GemmExecutor, GemmInputA, GemmInputB, GemmOptions};
use rten_tensor::NdTensorView;
use serde_json::{Value, json};

/// Bytes of weights that rounds go through before one is read again.
const ROTATE_BYTES: usize = 256 << 20;

struct Options {
    quick: bool,
    best: bool,
    json: Option<String>,
    only: Option<String>,
    /// M, N, K of a single shape.
    shape: Option<(usize, usize, usize)>,
}

fn options() -> Options {
    let mut options = Options { quick: false, best: false, json: None, only: None, shape: None };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            // What `cargo test --benches` and CI run.
            "--quick" | "--test" => options.quick = true,
            "--best" => options.best = true,
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

/// Codes in [−127, 127], all bit patterns but −128.
fn codes(random: &mut Random, rows: usize, columns: usize) -> Array2<i8> {
    Array2::from_shape_simple_fn((rows, columns), || random.bits().to_le_bytes()[0].cast_signed().max(-127))
}

/// Roughly normal activations with some one-sided outlier columns. A table is repeated: values, not quality, matter here.
fn activations<T: Element>(random: &mut Random, rows: usize, columns: usize, outliers: usize) -> Array2<T> {
    let table: Vec<f32> = (0..4093).map(|_| random.normal()).collect();
    let mut at = 0;
    let mut x = Array2::from_shape_simple_fn((rows, columns), || {
        at = (at + 1) % table.len();
        T::from_f32(table[at])
    });
    for o in 0..outliers {
        x.column_mut(o * columns / outliers + columns / outliers / 2).fill(T::from_f32(-9.5));
    }
    x
}

/// A name, and what is timed; it is handed the number of the round, to rotate its operands.
type Contestant<'a> = (&'a str, Box<dyn FnMut(usize) + 'a>);

/// Median seconds of each contestant, called in turn.
fn race(contestants: &mut [Contestant<'_>], options: &Options) -> Vec<f64> {
    let mut times: Vec<Vec<f64>> = vec![Vec::new(); contestants.len()];
    let quick = options.quick;
    let budget = Duration::from_millis(if quick { 1 } else { 2500 });
    let (least, most) = if quick { (1, 1) } else { (20, 400) };
    let start = Instant::now();
    for round in 0..least + most {
        if round >= 2 + least && start.elapsed() > budget {
            break;
        }
        for (times, (_, run)) in times.iter_mut().zip(contestants.iter_mut()) {
            let start = Instant::now();
            run(round);
            let elapsed = start.elapsed().as_secs_f64();
            // The first two rounds warm up threads, pages and clocks.
            if round >= 2 || quick {
                times.push(elapsed);
            }
        }
    }
    times
        .iter_mut()
        .map(|times| {
            times.sort_by(f64::total_cmp);
            if options.best { times[0] } else { times[times.len() / 2] }
        })
        .collect()
}

struct Machine {
    threads: usize,
    /// Multiply-adds per second of all threads.
    peak: f64,
    /// Bytes per second of all threads.
    bandwidth: f64,
}

fn copies(bytes: usize, quick: bool) -> usize {
    if quick { 1 } else { ROTATE_BYTES.div_ceil(bytes).clamp(2, 64) }
}

fn scales(n: usize) -> ndarray::Array1<f32> {
    ndarray::Array1::from_elem(n, 0.5)
}

/// One shape: raw product, rten's, the layer with 0.1 % outlier columns, and f32 `gemm`.
fn shape(machine: &Machine, kernel: Kernel, (m, n, k): (usize, usize, usize), options: &Options) -> Value {
    let mut random = Random::new(1);
    let copies = copies(n * k, options.quick);
    let w = codes(&mut random, n, k);
    let weights: Vec<PackedWeight> = (0..copies)
        .map(|_| PackedWeight::from_codes(kernel, w.view(), scales(n).view(), None).expect("valid weight"))
        .collect();
    let a = codes(&mut random, m, k);
    let x: Array2<bf16> = activations(&mut random, m, k, (k / 1000).max(1));
    let mut raw = Array2::<i32>::zeros((m, n));
    let mut y = Array2::<bf16>::zeros((m, n));

    let executor: GemmExecutor<u8, i8, i32> = GemmExecutor::new();
    let a_unsigned: Vec<u8> = a.iter().map(|code| code.cast_unsigned() ^ 0x80).collect();
    let w_transposed: Vec<i8> = w.t().iter().copied().collect();
    let rten_weights: Vec<_> = (0..copies)
        .map(|_| executor.prepack_b(NdTensorView::from_data([k, n], w_transposed.as_slice())))
        .collect();
    let mut rten_out = vec![0_i32; m * n];
    let float_copies = copies.div_ceil(4).max(1);
    let float_weights: Vec<Vec<f32>> =
        (0..float_copies).map(|_| w.iter().map(|c| f32::from(*c)).collect()).collect();
    let x_float = x.mapv(|v| v.to_f32());
    let mut y_float = vec![0.0_f32; m * n];
    let config = Scheme::LlmInt8Absmax.config();

    let peers = options.only.as_deref() != Some("ours");
    let times = race(
        &mut [
            (
                "raw",
                Box::new(|i| {
                    int8_product_into(a.view(), &weights[i % copies], raw.view_mut()).expect("valid shapes");
                }),
            ),
            (
                "rten",
                Box::new(|i| {
                    if !peers {
                        return;
                    }
                    let view = NdTensorView::from_data([m, k], a_unsigned.as_slice());
                    let (a, b) = (GemmInputA::Unpacked(view), GemmInputB::Packed(&rten_weights[i % copies]));
                    executor.gemm(&mut rten_out, a, b, GemmOptions::default()).expect("valid shapes");
                }),
            ),
            (
                "layer",
                Box::new(|i| {
                    let dequantized = OutlierWeights::Dequantized;
                    linear(
                        x.view(),
                        &weights[i % copies],
                        dequantized,
                        None,
                        &config,
                        Store::Overwrite,
                        y.view_mut(),
                    )
                    .expect("valid shapes");
                }),
            ),
            (
                "f32",
                Box::new(|i| {
                    if peers {
                        float_gemm(&x_float, &float_weights[i % float_copies], n, &mut y_float);
                    }
                }),
            ),
        ],
        options,
    );
    black_box((&raw, &rten_out, &y, &y_float));
    let reference = a.row(0).iter().zip(w.row(0)).map(|(a, w)| i32::from(*a) * i32::from(*w)).sum::<i32>();
    assert_eq!(raw[[0, 0]], reference, "the timed product is wrong");

    let (work, bytes) = ((m * n * k) as f64, (n * k) as f64);
    let record = json!({
        "m": m, "n": n, "k": k,
        "share_of_peak": work / times[0] / machine.peak,
        "share_of_bandwidth": bytes / times[0] / machine.bandwidth,
        "layer_share_of_bandwidth": bytes / times[2] / machine.bandwidth,
        "raw_vs_rten": times[1] / times[0],
        "layer_over_raw": times[2] / times[0],
        "layer_vs_f32_gemm": times[3] / times[2],
        "raw_us": times[0] * 1e6,
        "layer_us": times[2] * 1e6,
    });
    println!(
        "{m:5} {n:6} {k:6} | {:9.1} us | peak {:5.1} %  read {:5.1} % (layer {:5.1} %) | {:5.2}x rten | layer/raw {:5.2} | layer {:5.2}x f32 gemm",
        times[0] * 1e6,
        100.0 * record["share_of_peak"].as_f64().unwrap_or(0.0),
        100.0 * record["share_of_bandwidth"].as_f64().unwrap_or(0.0),
        100.0 * record["layer_share_of_bandwidth"].as_f64().unwrap_or(0.0),
        times[1] / times[0],
        times[2] / times[0],
        times[3] / times[2],
    );
    record
}

fn float_gemm(x: &Array2<f32>, w: &[f32], n: usize, y: &mut [f32]) {
    let (m, k) = x.dim();
    assert!(w.len() == n * k && y.len() == m * n);
    let stride = |value: usize| isize::try_from(value).expect("a length fits isize");
    // SAFETY: x is [m, k] row-major, w [n, k] row-major read as its transpose, y [m, n] row-major; sizes asserted.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            y.as_mut_ptr(),
            1,
            stride(n),
            false,
            x.as_ptr(),
            1,
            stride(k),
            w.as_ptr(),
            stride(k),
            1,
            0.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::Rayon(0),
        );
    }
}

/// The layer at growing shares of outlier columns, relative to the raw product.
fn outliers(kernel: Kernel, (m, n, k): (usize, usize, usize), options: &Options) -> Value {
    let mut random = Random::new(2);
    let copies = copies(n * k, options.quick);
    let w = codes(&mut random, n, k);
    let weights: Vec<PackedWeight> = (0..copies)
        .map(|_| PackedWeight::from_codes(kernel, w.view(), scales(n).view(), None).expect("valid weight"))
        .collect();
    let a = codes(&mut random, m, k);
    let per_mille = [0, 1, 10, 50, 200];
    let xs = per_mille.map(|share| activations::<bf16>(&mut random, m, k, (share * k + 500) / 1000));
    let mut raw = Array2::<i32>::zeros((m, n));
    let column = Scheme::LlmInt8Absmax.config();
    let value = Config { outlier_granularity: OutlierGranularity::Value, ..column };
    let zeropoint = Config { input_encoding: Encoding::Zeropoint, ..column };
    let mut lists = Vec::new();
    for (name, config) in [("column", column), ("value", value), ("zeropoint column", zeropoint)] {
        let mut contestants: Vec<Contestant<'_>> = vec![(
            "raw",
            Box::new(|i| {
                int8_product_into(a.view(), &weights[i % copies], raw.view_mut()).expect("valid shapes")
            }),
        )];
        for x in &xs {
            let weights = &weights;
            let mut y = Array2::<bf16>::zeros((m, n));
            contestants.push((
                name,
                Box::new(move |i| {
                    let dequantized = OutlierWeights::Dequantized;
                    let weight = &weights[i % copies];
                    linear(x.view(), weight, dequantized, None, &config, Store::Overwrite, y.view_mut())
                        .expect("valid shapes");
                }),
            ));
        }
        let times = race(&mut contestants, options);
        let ratios: Vec<f64> = times[1..].iter().map(|time| time / times[0]).collect();
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
            PackedWeight::from_codes(*kernel, w.view(), scales(n).view(), None).expect("valid weight")
        })
        .collect();
    let a = a.view();
    let mut contestants: Vec<Contestant<'_>> = Vec::new();
    for weight in &weights {
        let mut raw = Array2::<i32>::zeros((m, n));
        let run = move |_| int8_product_into(a, weight, raw.view_mut()).expect("valid shapes");
        contestants.push((weight.kernel().name(), Box::new(run)));
    }
    let times = race(&mut contestants, options);
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
    let times = race(&mut [("pack", Box::new(|_| drop(black_box(pack(w.view())))))], options);
    let rate = (n * k * size_of::<T>()) as f64 / times[0];
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
    let threads = rayon::current_num_threads();
    let peak = probe::peak_per_thread(kernel).unwrap_or(f64::NAN) * threads as f64;
    let bandwidth = if options.quick { f64::NAN } else { probe::read_bandwidth() };
    let machine = Machine { threads, peak, bandwidth };
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
        let rows: Vec<Value> = chosen.iter().map(|sizes| shape(&machine, kernel, *sizes, &options)).collect();
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
