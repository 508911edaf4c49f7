//! Compares every kernel of this machine's GPU with `int8-core`: codes, scales, zero points and integer products must be
//! equal, outputs within the bound that `int8_core::bound` derives, repeated runs bit-identical.
//!
//! `int8-cuda-verify --help` lists the options. Exits with 1 when anything fails.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program of the command line")]
#![allow(unsafe_code, reason = "captures graphs")]

mod arguments;
mod stages;

use std::collections::BTreeMap;
use std::error::Error as StdError;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use half::{bf16, f16};
use int8_core::bound::{self, Arithmetic};
use int8_core::corpus::{self, Case, Random};
use int8_core::{Config, Element, OutlierGranularity, Scheme};
use int8_cuda::{
    Algorithm, Buffer, Device, Float, Graph, KeepExact, LinearPlan, Matrix, Shape, Stream, Weight,
};
use ndarray::{Array1, Array2, ArrayView2};

use crate::arguments::{Arguments, Request};

type Outcome = Result<(), Box<dyn StdError + Send + Sync>>;

/// By kernel and type: checks passed and failed, messages of failures, the largest share of a bound.
#[derive(Default)]
struct Tally {
    counts: Mutex<BTreeMap<String, (usize, usize)>>,
    messages: Mutex<Vec<String>>,
    worst: Mutex<BTreeMap<String, f64>>,
}

impl Tally {
    fn add(&self, what: &str, case: &str, outcome: Outcome) {
        let mut counts = self.counts.lock().expect("no holder panics");
        let entry = counts.entry(what.to_owned()).or_default();
        match outcome {
            Ok(()) => entry.0 += 1,
            Err(error) => {
                entry.1 += 1;
                self.messages.lock().expect("no holder panics").push(format!("{what}: {case}: {error}"));
            }
        }
    }

    fn share(&self, what: &str, share: f64) {
        let mut worst = self.worst.lock().expect("no holder panics");
        let entry = worst.entry(what.to_owned()).or_default();
        *entry = entry.max(share);
    }
}

fn main() -> ExitCode {
    let arguments = match arguments::parse(std::env::args().skip(1)) {
        Ok(Request::Check(arguments)) => arguments,
        Ok(Request::Help) => {
            println!("{}", arguments::help());
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("int8-cuda-verify: {error}");
            return ExitCode::from(2);
        }
    };
    match run(&arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("int8-cuda-verify: {error}");
            ExitCode::from(2)
        }
    }
}

fn run(arguments: &Arguments) -> Result<bool, Box<dyn StdError + Send + Sync>> {
    let device = Device::new(0)?;
    let info = device.info().clone();
    println!(
        "{} (compute capability {}.{}), driver {}",
        info.name, info.compute.0, info.compute.1, info.driver
    );
    let tally = Tally::default();
    let named: Vec<Case> = corpus::cases().into_iter().chain(edge_cases(arguments.quick)).collect();
    let named: Vec<Case> = if arguments.quick { named.into_iter().step_by(61).collect() } else { named };
    let (next, total) = (AtomicUsize::new(0), named.len() + arguments.cases);
    let work = |stream: &Stream| loop {
        let at = next.fetch_add(1, Ordering::Relaxed);
        if at >= total {
            break;
        }
        match at.checked_sub(named.len()) {
            // Every named case with every type; a random one with the type its number says.
            None => {
                (0..3).for_each(|kind| check(stream, &tally, arguments, &named[at], kind, Variant::named(at)))
            }
            Some(seed) => {
                let case = corpus::random(u64::try_from(seed).unwrap_or_default());
                check(stream, &tally, arguments, &case, seed % 3, Variant::random(seed / 3));
            }
        }
    };
    let stream = Stream::new(&device)?;
    // Several threads with a stream each: that is checked on the way.
    std::thread::scope(|scope| {
        for _ in 1..arguments.streams {
            scope.spawn(|| match Stream::new(&device) {
                Ok(stream) => work(&stream),
                Err(_) => tally.add("stream", "", Err("cannot make a stream".into())),
            });
        }
        work(&stream);
    });
    tally.add("captured in a graph", "", captured(&stream));
    tally.add("two stages captured in a graph", "", stages::captured(&stream));
    if !arguments.quick {
        // A memory checker would count the refused allocation as an error.
        tally.add("out of memory is an error", "", out_of_memory(&device));
    }
    report(&tally, arguments, &info, named.len())
}

/// Shapes at tile edges, with every share of outlier columns; long and wide ones.
fn edge_cases(quick: bool) -> Vec<Case> {
    let shapes: &[(usize, usize, usize)] = &[
        (1, 4096, 4096),
        (63, 127, 127),
        (64, 128, 128),
        (65, 129, 129),
        (127, 255, 256),
        (128, 256, 384),
        (129, 257, 96),
        (255, 64, 192),
        (257, 520, 200),
        (300, 72, 1000),
        (5, 17, 33_100),
        (40, 24, 33_100),
        (2, 5, 70_000),
        (65_536, 8, 32),
        (4, 65_536, 16),
        (40, 65_536, 16),
        // More tiles than multiprocessors have one of each, and few steps: stores of one tile beside the next one's.
        (2048, 2048, 64),
        (64, 32_768, 16),
        // The single-pass prologue with rows that stay in shared memory and rows loaded again; GEMV_TMA.
        (1100, 40, 4096),
        (4500, 8, 4096),
        (1030, 8, 16_384),
        (1, 100, 16_384),
        (1, 24, 16_512),
        (1, 2200, 18_560),
        (1, 17, 32_768),
        (1, 33, 1152),
    ];
    // More outlier columns than the compact operands hold (256 MB): the prologue in several kernels, and in one.
    let beyond_capacity = [(65_536, 8, 2112), (8, 65_536, 2112)];
    let shares: &[f32] = &[0.0, 0.001, 0.05, 0.5, 1.0];
    let all =
        shapes.iter().map(|shape| (*shape, shares)).chain(beyond_capacity.map(|shape| (shape, &shares[4..])));
    let mut random = Random::new(0xED6E);
    let mut cases = Vec::new();
    for (i, ((m, n, k), shares)) in all.enumerate() {
        for &share in shares {
            if quick && m * n * k > 1 << 20 {
                continue;
            }
            let mut x = random.matrix(m, k, 1.0);
            for mut column in x.columns_mut() {
                if random.uniform() < share {
                    column.mapv_inplace(|v| v * 3.0 - 30.0);
                }
            }
            let scheme = [Scheme::LlmInt8Absmax, Scheme::LlmInt8Zeropoint][i % 2];
            let outlier_granularity = random.choose(&[OutlierGranularity::Column, OutlierGranularity::Value]);
            let config = Config { outlier_granularity, ..scheme.config() };
            let w = random.matrix(n, k, 0.02);
            let bias = Some(Array1::from_shape_simple_fn(n, || random.normal()));
            cases.push(Case { name: format!("{m}x{n}x{k}, {share} outlier columns"), x, w, bias, config });
        }
    }
    cases
}

/// How a case is checked.
#[derive(Clone, Copy)]
struct Variant {
    /// Modulo 3: no, all or every second weight column exact.
    number: usize,
    /// Whether prologue and GEMM are checked as two calls, too.
    stages: bool,
}

impl Variant {
    fn named(number: usize) -> Self {
        Self { number, stages: true }
    }

    /// Two calls for half of the cases.
    fn random(number: usize) -> Self {
        Self { number, stages: number.is_multiple_of(2) }
    }
}

fn check(stream: &Stream, tally: &Tally, arguments: &Arguments, case: &Case, kind: usize, variant: Variant) {
    match kind {
        0 => check_typed::<f16>(stream, tally, arguments, case, variant),
        1 => check_typed::<bf16>(stream, tally, arguments, case, variant),
        _ => check_typed::<f32>(stream, tally, arguments, case, variant),
    }
}

fn check_typed<T: Float>(
    stream: &Stream,
    tally: &Tally,
    arguments: &Arguments,
    case: &Case,
    variant: Variant,
) {
    if let Err(error) = try_case::<T>(stream, tally, arguments, case, variant) {
        tally.add(&format!("setting up {}", T::NAME), &case.name, Err(error));
    }
}

/// All kernels on one case.
fn try_case<T: Float>(
    stream: &Stream,
    tally: &Tally,
    arguments: &Arguments,
    case: &Case,
    variant: Variant,
) -> Outcome {
    let device = stream.device();
    let (x, w) = (case.x.mapv(T::from_f32), case.w.mapv(T::from_f32));
    let ((m, k), n) = (x.dim(), w.nrows());
    let some: Vec<usize> = (0..k).step_by(2).collect();
    let core = int8_core::Weight::quantize(w.view(), &case.config);
    let (core, keep) = match variant.number % 3 {
        0 => (core, KeepExact::None),
        1 => (core.with_all_columns_exact(w.view())?, KeepExact::All),
        _ => (core.with_exact_columns(w.view(), &some)?, KeepExact::Columns(&some)),
    };
    let reference =
        int8_core::linear(x.view(), &core, case.bias.as_ref().map(|bias| bias.view()), &case.config)?;

    let device_x = upload(device, x.view())?;
    let weight = Weight::quantize(stream, upload(device, w.view())?, &case.config, keep)?;
    let name = T::NAME;
    tally.add(
        &format!("weight codes {name}"),
        &case.name,
        weight_is_equal(stream, &weight, core.quantized()),
    );
    if arguments.only.is_none() && variant.number.is_multiple_of(8) && m * n * k < 1 << 22 {
        tally.add(&format!("dequantise {name}"), &case.name, dequantised(stream, &weight, &core));
        tally.add(&format!("input gradient {name}"), &case.name, gradient(stream, &weight, &core, m));
        let algorithms: &[Algorithm] = if device.info().has_cublaslt {
            &[Algorithm::Mma, Algorithm::CublasLt]
        } else {
            &[Algorithm::Mma]
        };
        for &algorithm in algorithms {
            let outcome = product(stream, &weight, &core, &reference, algorithm);
            if let Some(outcome) = outcome.transpose() {
                tally.add(&format!("i32 product {algorithm:?}"), &case.name, outcome);
            }
        }
    }

    let bias = case.bias.as_ref().map(|bias| Buffer::from_host(device, &bias.to_vec())).transpose()?;
    let shape = Shape { m, n, k };
    let operands = stages::Operands { case, x: &device_x, weight: &weight, bias: bias.as_ref() };
    if variant.stages {
        let outcome = stages::prologue(stream, &operands, x.view(), &reference);
        tally.add(&format!("prologue {name}"), &case.name, outcome);
    }
    let all = || Algorithm::LAYER.into_iter().chain([Algorithm::Auto]).collect();
    for algorithm in arguments.only.clone().unwrap_or_else(all) {
        let mut plan = match LinearPlan::<T>::new(device, shape, &case.config, algorithm) {
            Ok(plan) => plan,
            Err(int8_cuda::Error::Unsupported { .. }) if algorithm != Algorithm::Auto => continue,
            Err(error) => return Err(error.into()),
        };
        let what = format!("layer {algorithm:?} {name}");
        let outcome = (|| -> Outcome {
            // NaN, so that an element left unwritten is found.
            let poison = vec![T::from_f32(f32::NAN); m * n];
            let mut y = Matrix::from_host(device, m, n, &poison)?;
            plan.run(stream, &device_x, &weight, bias.as_ref(), &mut y)?;
            let first = y.to_host(stream)?;
            if let Some(found) = plan.intermediates(stream)?
                && m > 0
                && n > 0
            {
                same_codes(&reference, &found)?;
            }
            let arithmetic = match plan.algorithm() {
                Algorithm::SmallM | Algorithm::Gemv | Algorithm::GemvTma => Arithmetic::F32,
                _ if T::ELEMENT == f32::ELEMENT => Arithmetic::F32,
                _ => Arithmetic::tensor_core::<T>(),
            };
            let actual = Array2::from_shape_vec((m, n), first.clone())?;
            let comparison = bound::compare(
                actual.view(),
                &reference,
                case.bias.as_ref().map(|bias| bias.view()),
                arithmetic,
            );
            tally.share(&what, comparison.worst_share);
            if !comparison.within_bound() {
                let at = comparison.at;
                let (is, exact) = (actual[at].to_f32(), reference.exact[at]);
                return Err(format!(
                    "{comparison:?}: {is} instead of {exact}, exact columns {}",
                    variant.number % 3
                )
                .into());
            }
            y.copy_from_host(&poison)?;
            plan.run(stream, &device_x, &weight, bias.as_ref(), &mut y)?;
            let again = y.to_host(stream)?;
            if first.iter().zip(&again).any(|(a, b)| a.to_f32().to_bits() != b.to_f32().to_bits()) {
                return Err("a second run gave other bits".into());
            }
            if variant.stages {
                stages::accumulated(stream, &operands, &mut plan, &first)?;
                let by = plan.algorithm();
                if !by.is_fused() {
                    stages::several_weights(stream, &operands, by, &first)?;
                }
            }
            Ok(())
        })();
        tally.add(&what, &case.name, outcome);
    }
    Ok(())
}

fn upload<T: Float>(device: &Device, values: ArrayView2<T>) -> Result<Matrix<T>, int8_cuda::Error> {
    let host: Vec<T> = values.iter().copied().collect();
    Matrix::from_host(device, values.nrows(), values.ncols(), &host)
}

fn same_bits(what: &str, expected: &[f32], found: &[f32]) -> Outcome {
    let same = |a: f32, b: f32| a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan());
    match expected.iter().zip(found).position(|(a, b)| !same(*a, *b)) {
        None if expected.len() == found.len() => Ok(()),
        None => Err(format!("{what}: {} instead of {}", found.len(), expected.len()).into()),
        Some(at) => Err(format!("{what}[{at}]: {} instead of {}", found[at], expected[at]).into()),
    }
}

fn same<V: PartialEq + std::fmt::Debug>(what: &str, expected: &[V], found: &[V]) -> Outcome {
    match expected.iter().zip(found).position(|(a, b)| a != b) {
        None if expected.len() == found.len() => Ok(()),
        None => Err(format!("{what}: {} instead of {}", found.len(), expected.len()).into()),
        Some(at) => Err(format!("{what}[{at}]: {:?} instead of {:?}", found[at], expected[at]).into()),
    }
}

fn no_minus_128(codes: &[i8]) -> Outcome {
    if codes.contains(&i8::MIN) { Err("a code of -128".into()) } else { Ok(()) }
}

fn same_codes<T>(reference: &int8_core::LinearOutput<T>, found: &int8_cuda::Intermediates) -> Outcome {
    same("outlier columns", reference.outliers.columns(), &found.outlier_columns)?;
    same_bits("scales of x", &reference.input.scales().to_vec(), &found.scales)?;
    same("zero points of x", &reference.input.zero_points().to_vec(), &found.zero_points)?;
    no_minus_128(&found.codes)?;
    same("codes of x", &reference.input.codes().iter().copied().collect::<Vec<i8>>(), &found.codes)
}

fn weight_is_equal<T: Float>(
    stream: &Stream,
    weight: &Weight<T>,
    core: &int8_core::QuantizedMatrix,
) -> Outcome {
    let codes = weight.codes().to_host(stream)?;
    no_minus_128(&codes)?;
    same_bits("scales of W", &core.scales().to_vec(), &weight.scales().to_host(stream)?)?;
    if let Some(zero_points) = weight.zero_points() {
        same("zero points of W", &core.zero_points().to_vec(), &zero_points.to_host(stream)?)?;
    }
    same("codes of W", &core.codes().iter().copied().collect::<Vec<i8>>(), &codes)
}

fn dequantised<T: Float>(stream: &Stream, weight: &Weight<T>, core: &int8_core::Weight<T>) -> Outcome {
    let values = int8_cuda::dequantize(stream, weight)?.to_host(stream)?;
    for (((row, column), exact), found) in core.quantized().codes().indexed_iter().zip(&values) {
        let exact = (*exact, core.quantized().value(row, column)).1;
        // Two roundings of the scale and one of the product in f32, one to the type.
        let bound = exact.abs() * (T::UNIT_ROUNDOFF + 3.0 * f32::UNIT_ROUNDOFF)
            + T::MIN_SUBNORMAL
            + f64::from(f32::MIN_POSITIVE);
        let found = f64::from(found.to_f32());
        if !((found - exact).abs() <= bound || (found.is_nan() && exact.is_nan())) {
            return Err(format!("({row}, {column}): {found} instead of {exact}").into());
        }
    }
    Ok(())
}

fn gradient<T: Float>(stream: &Stream, weight: &Weight<T>, core: &int8_core::Weight<T>, m: usize) -> Outcome {
    let (n, k) = weight.dim();
    let mut random = Random::new(0x64AD);
    let dy = random.matrix(m, n, 1.0).mapv(T::from_f32);
    let expected = int8_core::input_gradient(dy.view(), core.quantized())?;
    let mut dx = Matrix::<T>::zeros(stream.device(), m, k)?;
    int8_cuda::input_gradient(stream, &upload(stream.device(), dy.view())?, weight, &mut dx)?;
    let found = dx.to_host(stream)?;
    for (((row, column), expected), found) in expected.indexed_iter().zip(&found) {
        let magnitude: f64 = (0..n)
            .map(|n| (f64::from(dy[[row, n]].to_f32()) * core.quantized().value(n, column)).abs())
            .sum();
        let (expected, found) = (f64::from(expected.to_f32()), f64::from(found.to_f32()));
        // Weights rounded to T after three f32 roundings, n + 1 truncating additions, the result rounded to T on both sides.
        let terms = f64::from(u32::try_from(n).unwrap_or(u32::MAX)) + 1.0;
        let relative = T::UNIT_ROUNDOFF + 3.0 * f32::UNIT_ROUNDOFF + 2.0 * terms * f32::UNIT_ROUNDOFF;
        let bound =
            magnitude * relative * 1.001 + 2.0 * T::UNIT_ROUNDOFF * expected.abs() + terms * T::MIN_SUBNORMAL;
        if !((found - expected).abs() <= bound || (found.is_nan() && expected.is_nan())) {
            return Err(format!("({row}, {column}): {found} instead of {expected}, bound {bound}").into());
        }
    }
    Ok(())
}

/// The integer product of the reference's codes; `None` where the algorithm does not support the shape.
fn product<T: Float>(
    stream: &Stream,
    weight: &Weight<T>,
    core: &int8_core::Weight<T>,
    reference: &int8_core::LinearOutput<T>,
    algorithm: Algorithm,
) -> Result<Option<()>, Box<dyn StdError + Send + Sync>> {
    let (n, _) = core.quantized().dim();
    let a = Weight::<T>::from_host(stream.device(), &reference.input)?;
    let m = reference.input.dim().0;
    let mut out = Matrix::<i32>::zeros(stream.device(), m, n)?;
    match int8_cuda::int8_product(stream, a.codes(), weight.codes(), &mut out, algorithm) {
        Err(int8_cuda::Error::Unsupported { .. } | int8_cuda::Error::Invalid { .. })
            if algorithm != Algorithm::Mma =>
        {
            return Ok(None);
        }
        other => other?,
    }
    let expected: Vec<i32> = reference.accumulator.iter().copied().collect();
    same("accumulators", &expected, &out.to_host(stream)?)?;
    Ok(Some(()))
}

/// A plan recorded in a graph gives the bits it gives directly, also after its input has changed.
fn captured(stream: &Stream) -> Outcome {
    let device = stream.device();
    let config = Scheme::LlmInt8Absmax.config();
    let mut random = Random::new(7);
    for (m, n, k) in [(1, 512, 1024), (8, 512, 1024), (48, 512, 1024), (300, 512, 1024)] {
        let w = random.matrix(n, k, 0.02).mapv(f16::from_f32);
        let weight = Weight::quantize(stream, upload(device, w.view())?, &config, KeepExact::None)?;
        let mut x = Matrix::<f16>::zeros(device, m, k)?;
        let mut y = Matrix::<f16>::zeros(device, m, n)?;
        let mut plan = LinearPlan::<f16>::new(device, Shape { m, n, k }, &config, Algorithm::Auto)?;
        // SAFETY: x, y, weight and plan outlive the graph, which is dropped at the end of this turn.
        let graph = unsafe { Graph::capture(stream, || plan.run(stream, &x, &weight, None, &mut y)) }?;
        for _ in 0..3 {
            let mut values = random.matrix(m, k, 1.0);
            values.column_mut(k / 3).fill(20.0);
            x.copy_from_host(&values.iter().map(|v| f16::from_f32(*v)).collect::<Vec<_>>())?;
            graph.launch(stream)?;
            let replayed = y.to_host(stream)?;
            plan.run(stream, &x, &weight, None, &mut y)?;
            if replayed != y.to_host(stream)? {
                return Err(format!("{m}x{n}x{k}: a replay differs").into());
            }
        }
    }
    Ok(())
}

fn out_of_memory(device: &Device) -> Outcome {
    match Buffer::<u8>::zeros(device, 1 << 46) {
        Err(int8_cuda::Error::OutOfMemory { .. }) => {}
        other => return Err(format!("64 TiB: {:?}", other.map(|buffer| buffer.len())).into()),
    }
    // And the device still works.
    device.synchronize()?;
    Ok(())
}

fn report(
    tally: &Tally,
    arguments: &Arguments,
    info: &int8_cuda::DeviceInfo,
    named: usize,
) -> Result<bool, Box<dyn StdError + Send + Sync>> {
    let counts = tally.counts.lock().expect("no holder panics");
    let worst = tally.worst.lock().expect("no holder panics");
    let mut messages = tally.messages.lock().expect("no holder panics").clone();
    messages.sort();
    for message in messages.iter().take(40) {
        println!("FAILED {message}");
    }
    println!("{:<34} {:>8} {:>7} {:>15}", "check", "passed", "failed", "worst/bound");
    for (what, (passed, failed)) in counts.iter() {
        let share = worst.get(what).map_or(String::new(), |share| format!("{share:.3}"));
        println!("{what:<34} {passed:>8} {failed:>7} {share:>15}");
    }
    let (passed, failed) = counts.values().fold((0, 0), |sum, count| (sum.0 + count.0, sum.1 + count.1));
    println!("{named} named cases with three types each, {} random cases", arguments.cases);
    println!("{passed} passed, {failed} failed");
    if let Some(path) = &arguments.json {
        let rows: Vec<_> = counts
            .iter()
            .map(|(what, (passed, failed))| {
                serde_json::json!({"check": what, "passed": passed, "failed": failed, "worst_share_of_bound": worst.get(what)})
            })
            .collect();
        let document = serde_json::json!({
            "device": info.name, "driver": info.driver, "runtime": info.runtime,
            "named_cases": named, "random_cases": arguments.cases, "checks": rows,
        });
        std::fs::write(path, serde_json::to_string_pretty(&document)?)?;
    }
    Ok(failed == 0)
}
