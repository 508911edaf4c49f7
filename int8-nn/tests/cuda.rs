//! Models on the GPU against the CPU: every family's logits in floating point and int8, greedy ids with their margins, batches,
//! forks, encoders and seq2seq models. Needs a GPU; without one the tests say so and are skipped, unless INT8_REQUIRE_GPU=1.
#![cfg(feature = "cuda")]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "says what it skips and measured")]

mod common;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use int8_core::metrics::relative_l2;
use int8_core::{Config, FloatType, KvType, OutlierGranularity, Scheme};
use int8_nn::backend::cpu::CpuBackend;
use int8_nn::backend::cuda::CudaBackend;
use int8_nn::backend::{Backend, RowSelection};
use int8_nn::checkpoint::Checkpoint;
use int8_nn::placement::Devices;
use int8_nn::precision::{LinearRole, OutlierWeights, Precision, Quantization};
use int8_nn::{Error, GenerateOptions, Model, Sampler, Sampling, Session, SessionOptions};
use ndarray::{Array1, Array2, Axis};

use common::{GoldenFile, data, exactly, folders, shared};

/// A backend on the first GPU; `None`, with a note, where there is none.
fn backend(compute: FloatType) -> Option<Arc<CudaBackend>> {
    match CudaBackend::new(0, compute) {
        Ok(backend) => Some(Arc::new(backend)),
        Err(error) => {
            let required = std::env::var_os("INT8_REQUIRE_GPU").is_some_and(|value| value == "1");
            assert!(!required, "INT8_REQUIRE_GPU=1, but {error}");
            eprintln!("skipped: {error}");
            None
        }
    }
}

fn int8(granularity: OutlierGranularity) -> Precision {
    int8_with(granularity, OutlierWeights::Dequantized)
}

fn int8_with(granularity: OutlierGranularity, outlier_weights: OutlierWeights) -> Precision {
    let config = Config { outlier_granularity: granularity, ..Scheme::LlmInt8Absmax.config() };
    Precision::Int8(Quantization::new(config, outlier_weights))
}

/// The checkpoint's own type.
fn compute(folder: &Path) -> FloatType {
    let checkpoint = Checkpoint::open(folder).expect("a checkpoint");
    let dtype = checkpoint.tensors().next().expect("a tensor").dtype();
    dtype.float_type().unwrap_or(FloatType::F32)
}

fn cpu(folder: &Path, precision: Precision) -> Result<Model, Error> {
    Model::load(folder)?.precision(precision).build()
}

fn gpu(backend: &Arc<CudaBackend>, folder: &Path, precision: Precision) -> Result<Model<CudaBackend>, Error> {
    Model::load(folder)?.precision(precision).build_on(backend.clone())
}

fn logits<B: Backend>(model: &Model<B>, texts: &[Vec<u32>]) -> Result<Vec<f32>, Error> {
    let mut all = Vec::new();
    for ids in texts {
        all.extend(model.logits(ids)?);
    }
    Ok(all)
}

fn greedy<B: Backend>(model: &Model<B>, prompt: &[u32], count: usize) -> Result<Vec<u32>, Error> {
    let options = GenerateOptions { kv_cache: Some(KvType::F32), ..exactly(count) };
    Ok(model.generate_ids(prompt, &options, |_| ControlFlow::Continue(()))?.ids)
}

/// Whether two continuations differ first where the largest two logits of the CPU are nearer than `margin`.
fn differ_by_margin(
    model: &Model,
    prompt: &[u32],
    one: &[u32],
    other: &[u32],
    margin: f64,
) -> Result<(), String> {
    let Some(at) = one.iter().zip(other).position(|(a, b)| a != b) else { return Ok(()) };
    let ids = [prompt, &one[..at]].concat();
    let logits = model.logits(&ids).map_err(|error| error.to_string())?;
    let last = logits.row(ids.len() - 1);
    let logit = |id: u32| last[usize::try_from(id).expect("an id")];
    let found = logit(one[at]) - logit(other[at]);
    let scale = last.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
    if f64::from(found.abs()) <= margin * f64::from(scale) {
        return Ok(());
    }
    Err(format!(
        "token {at}: {} instead of {}, whose logits are {found} apart of {scale}",
        other[at], one[at]
    ))
}

/// What does not hold for one family, and a line of its distances.
fn compare(
    folder: &Path,
    exact: &Arc<CudaBackend>,
    narrow: &Arc<CudaBackend>,
) -> Result<(String, Vec<String>), Error> {
    let name = folder.file_name().expect("a name").to_string_lossy().into_owned();
    let golden = GoldenFile::open(folder);
    let texts = golden.rows("input_ids");
    let mut wrong = Vec::new();
    let float = cpu(folder, Precision::Float)?;
    let expected = logits(&float, &texts)?;
    let mut line = format!("{name:<20}");

    let wide = relative_l2(&logits(&gpu(exact, folder, Precision::Float)?, &texts)?, &expected);
    line += &format!(" float {wide:.1e}");
    if wide.is_nan() || wide > 2e-4 {
        wrong.push(format!("{name}: float logits in f32 are off by {wide:.1e}"));
    }
    let model = gpu(narrow, folder, Precision::Float)?;
    let rounded = relative_l2(&logits(&model, &texts)?, &expected);
    let bound = if narrow.compute() == FloatType::Bf16 { 6e-2 } else { 6e-3 };
    line += &format!(", {} {rounded:.1e}", narrow.compute().name());
    if rounded.is_nan() || rounded > bound {
        wrong.push(format!("{name}: float logits in {} are off by {rounded:.1e}", narrow.compute().name()));
    }
    let prompt = &texts[0][..8.min(texts[0].len())];
    let count = 16;
    let (on_cpu, on_gpu) = (greedy(&float, prompt, count)?, greedy(&model, prompt, count)?);
    if let Err(problem) = differ_by_margin(&float, prompt, &on_cpu, &on_gpu, 2.0 * bound) {
        wrong.push(format!("{name}: float, greedy: {problem}"));
    }
    for granularity in [OutlierGranularity::Column, OutlierGranularity::Value] {
        let reference = cpu(folder, int8(granularity))?;
        let near = relative_l2(&logits(&reference, &texts)?, &expected);
        let model = gpu(narrow, folder, int8(granularity))?;
        let found = logits(&model, &texts)?;
        let far = relative_l2(&found, &expected);
        line += &format!(", {granularity:?} {far:.1e} (CPU {near:.1e})");
        if far.is_nan() || far > 1.3 * near + bound {
            wrong.push(format!(
                "{name}: int8 {granularity:?} logits are off by {far:.1e}, the CPU's by {near:.1e}"
            ));
        }
        let (on_cpu, on_gpu) = (greedy(&reference, prompt, count)?, greedy(&model, prompt, count)?);
        if on_cpu != on_gpu {
            line += " ids differ";
        }
        if let Err(problem) = differ_by_margin(&reference, prompt, &on_cpu, &on_gpu, 2.0 * (near + bound)) {
            wrong.push(format!("{name}: int8 {granularity:?}, greedy: {problem}"));
        }
    }
    Ok((line, wrong))
}

fn decoders() -> Vec<PathBuf> {
    let mut all = folders("models");
    all.extend(folders("goldens"));
    all
}

#[test]
fn every_family_computes_what_the_cpu_computes() {
    let Some(exact) = backend(FloatType::F32) else { return };
    let (mut wrong, mut compared) = (Vec::new(), 0);
    for folder in decoders() {
        // What is stored in 32 bits is computed in 16 here, too.
        let narrow = match compute(&folder) {
            FloatType::Bf16 => FloatType::Bf16,
            _ => FloatType::F16,
        };
        let Some(narrow) = backend(narrow) else { return };
        match compare(&folder, &exact, &narrow) {
            Ok((line, problems)) => {
                println!("{line}");
                wrong.extend(problems);
                compared += 1;
            }
            Err(Error::Unsupported(why)) => println!("{}: refused: {why}", folder.display()),
            // Frequencies that follow the length of a text: up to where they change.
            Err(Error::Input(why)) if why.contains("but this model has only") => {
                println!("{}: limited: {why}", folder.display());
            }
            Err(error) => wrong.push(format!("{}: {error}", folder.display())),
        }
    }
    assert!(wrong.is_empty(), "{} failures:\n{}", wrong.len(), wrong.join("\n"));
    assert!(compared >= 38, "{compared} models");
}

/// The first GPU and the second, or the first once more where there is no other.
fn two(compute: FloatType) -> Option<[Arc<CudaBackend>; 2]> {
    let one = backend(compute)?;
    let other = CudaBackend::new(1, compute).or_else(|_| CudaBackend::new(0, compute)).ok()?;
    Some([one, Arc::new(other)])
}

/// Blocks on two devices give the bits of one: prompts, and decode steps that are replayed.
#[test]
fn placement_on_two_devices_changes_no_bit() {
    let (mut wrong, mut compared) = (Vec::new(), 0);
    for folder in decoders() {
        let narrow = match compute(&folder) {
            FloatType::Bf16 => FloatType::Bf16,
            _ => FloatType::F16,
        };
        let Some([one, other]) = two(narrow) else { return };
        for precision in [Precision::Float, int8_with(OutlierGranularity::Column, OutlierWeights::Exact)] {
            let Ok(alone) = gpu(&one, &folder, precision) else { continue };
            let most = alone.config().max_positions.min(40);
            let texts: Vec<Vec<u32>> = GoldenFile::open(&folder)
                .rows("input_ids")
                .into_iter()
                .filter(|ids| ids.len() <= most)
                .collect();
            let Some(prompt) = texts.first().map(|ids| ids[..4.min(ids.len())].to_vec()) else { continue };
            let layers = alone.config().layers;
            let devices = Devices::with_blocks(vec![one.clone(), other.clone()], vec![layers - 1, 1]);
            let placed = Model::load(&folder).expect("a checkpoint").precision(precision);
            let placed = placed.build_on(devices.expect("devices")).expect("a model");
            let count = most - prompt.len();
            let found = [&alone, &placed].map(|model| {
                let ids = greedy(model, &prompt, count.min(16)).expect("ids");
                (logits(model, &texts).expect("logits"), ids)
            });
            if found[0] != found[1] {
                wrong.push(format!("{}: {precision:?}", folder.display()));
            }
            compared += 1;
        }
    }
    println!("{compared} models placed");
    assert!(wrong.is_empty() && compared >= 70, "{compared} models, these differ:\n{}", wrong.join("\n"));
}

/// The encoder-decoders among the folders of encoders.
const SEQ2SEQ: [&str; 9] =
    ["t5", "t5_gated", "umt5", "longt5", "bart", "mbart", "pegasus", "marian", "m2m_100"];

fn reads_and_writes(folder: &Path) -> bool {
    SEQ2SEQ.iter().any(|name| folder.ends_with(name))
}

#[test]
fn encoders_compute_what_the_cpu_computes() {
    let Some(exact) = backend(FloatType::F32) else { return };
    let mut wrong = Vec::new();
    for folder in folders("encoders").into_iter().filter(|folder| !reads_and_writes(folder)) {
        let run = || -> Result<f64, Error> {
            let texts = GoldenFile::open(&folder).texts();
            let texts: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
            let on_cpu = Model::load(&folder)?.embedder()?.encoder().hidden_states(&texts)?;
            let on_gpu = Model::load(&folder)?.embedder_on(exact.clone())?.encoder().hidden_states(&texts)?;
            let flat = |all: Vec<ndarray::Array2<f32>>| all.into_iter().flatten().collect::<Vec<f32>>();
            Ok(relative_l2(&flat(on_gpu), &flat(on_cpu)))
        };
        match run() {
            Ok(error) => {
                println!("{}: {error:.1e}", folder.display());
                if error.is_nan() || error > 2e-4 {
                    wrong.push(format!("{}: off by {error:.1e}", folder.display()));
                }
            }
            Err(Error::Unsupported(why))
                if ["modernbert", "deberta_v2", "deberta_v2_own"]
                    .iter()
                    .any(|name| folder.ends_with(name)) =>
            {
                println!("{}: refused: {why}", folder.display());
            }
            Err(error) => wrong.push(format!("{}: {error}", folder.display())),
        }
    }
    for name in SEQ2SEQ {
        let folder = data("encoders").join(name);
        let run = || -> Result<(f64, bool), Error> {
            let (source, targets) = ([5, 17, 3, 42, 8, 29], [0, 11, 7, 19, 2]);
            let (on_cpu, on_gpu) = (cpu(&folder, Precision::Float)?, gpu(&exact, &folder, Precision::Float)?);
            let flat = |logits: ndarray::Array2<f32>| logits.into_iter().collect::<Vec<f32>>();
            let error = relative_l2(
                &flat(on_gpu.target_logits(&source, &targets)?),
                &flat(on_cpu.target_logits(&source, &targets)?),
            );
            Ok((error, greedy(&on_cpu, &source, 12)? == greedy(&on_gpu, &source, 12)?))
        };
        match run() {
            Ok((error, equal)) => {
                println!("{name}: {error:.1e}, ids equal: {equal}");
                if error.is_nan() || error > 2e-4 || !equal {
                    wrong.push(format!("{name}: off by {error:.1e}, ids equal: {equal}"));
                }
            }
            Err(Error::Unsupported(why)) if ["umt5", "longt5"].contains(&name) => {
                println!("{name}: refused: {why}")
            }
            Err(error) => wrong.push(format!("{name}: {error}")),
        }
    }
    assert!(wrong.is_empty(), "{} failures:\n{}", wrong.len(), wrong.join("\n"));
}

fn room(sequences: usize, positions: usize) -> SessionOptions {
    SessionOptions { sequences, ..SessionOptions::text(positions) }
}

/// The ids of each text alone, and of all in one session whose forwards hold one token of each.
#[test]
fn a_batch_gives_each_text_the_ids_it_has_alone() {
    for name in ["llama", "opt", "bloom"] {
        let folder = data("models").join(name);
        let Some(backend) = backend(compute(&folder)) else { return };
        let model = gpu(&backend, &folder, int8(OutlierGranularity::Value)).expect("a model");
        let texts: Vec<Vec<u32>> =
            (1..=5_u32).map(|n| (0..3 * n).map(|i| (i * 7 + n * 13) % 60).collect()).collect();
        let alone: Vec<Vec<u32>> =
            texts.iter().map(|text| greedy(&model, text, 12).expect("a continuation")).collect();
        let mut session = model.decoder().session(&room(texts.len(), 64)).expect("a session");
        let batch: Vec<(usize, &[u32])> = texts.iter().map(Vec::as_slice).enumerate().collect();
        session.forward(&batch).expect("a forward");
        let mut together = vec![Vec::new(); texts.len()];
        let vocabulary = model.config().vocab_size;
        for step in 0..12 {
            let rows = session.logits(&RowSelection::LastOfSegments).expect("logits").to_vec();
            let next: Vec<u32> = rows.chunks(vocabulary).map(largest).collect();
            next.iter().zip(&mut together).for_each(|(id, ids)| ids.push(*id));
            if step < 11 {
                let batch: Vec<(usize, &[u32])> = next.iter().map(std::slice::from_ref).enumerate().collect();
                session.forward(&batch).expect("a forward");
            }
        }
        assert_eq!(alone, together, "{name}");
    }
}

fn largest(logits: &[f32]) -> u32 {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    u32::try_from(logits.iter().position(|logit| *logit == most).expect("a logit")).expect("an id")
}

#[test]
fn forks_share_pages_until_they_write() {
    let folder = data("models").join("llama");
    let Some(backend) = backend(FloatType::F16) else { return };
    let model = gpu(&backend, &folder, int8(OutlierGranularity::Value)).expect("a model");
    let text: Vec<u32> = (0..70_u32).map(|i| (i * 11 + 5) % 60).collect();
    let (left, right) = ([7, 9, 11], [20, 22, 24]);
    let alone = |tail: &[u32]| {
        let mut session = model.decoder().session(&room(1, 90)).expect("a session");
        session.forward(&[(0, &text)]).expect("a forward");
        for id in tail {
            session.forward(&[(0, std::slice::from_ref(id))]).expect("a forward");
        }
        last(&mut session)
    };
    let mut session = model.decoder().session(&room(2, 90)).expect("a session");
    session.forward(&[(0, &text)]).expect("a forward");
    session.fork(0, 1, text.len()).expect("a fork");
    for (one, other) in left.iter().zip(&right) {
        session.forward(&[(0, std::slice::from_ref(one))]).expect("a forward");
        let found = last(&mut session);
        session.forward(&[(1, std::slice::from_ref(other))]).expect("a forward");
        assert_ne!(found, last(&mut session));
    }
    let found = last(&mut session);
    let error = relative_l2(&found, &alone(&right));
    assert!(error < 1e-3, "a forked sequence is off by {error:.1e}");
    let _ = alone(&left);
}

fn last<B: Backend>(session: &mut Session<'_, B>) -> Vec<f32> {
    session.logits(&RowSelection::LastOfSegments).expect("logits").to_vec()
}

#[test]
fn sampled_and_long_texts_repeat() {
    let Some(folder) = shared("models/demo-opt") else { return };
    let Some(backend) = backend(FloatType::F16) else { return };
    let model = gpu(&backend, &folder, int8(OutlierGranularity::Column)).expect("a model");
    let prompt = [2, 100, 200, 300];
    let mut runs = Vec::new();
    for _ in 0..2 {
        let sampling = Sampling::Random { temperature: 0.8, top_k: Some(40), top_p: Some(0.9), seed: 5 };
        let options = GenerateOptions { sampling, ..exactly(200) };
        let sampled = model.generate_ids(&prompt, &options, |_| ControlFlow::Continue(())).expect("a text");
        let long = model.generate_ids(&prompt, &exactly(400), |_| ControlFlow::Continue(())).expect("a text");
        runs.push((sampled.ids, long.ids));
    }
    assert_eq!(runs[0], runs[1]);
}

/// Logits that agree to 10⁻⁶ give the same draws.
#[test]
fn the_cpu_and_the_gpu_draw_the_same_tokens() {
    let Some(folder) = shared("models/demo-opt") else { return };
    let Some(backend) = backend(FloatType::F32) else { return };
    let sampling = Sampling::Random { temperature: 0.8, top_k: Some(40), top_p: Some(0.9), seed: 5 };
    let options = GenerateOptions { sampling, kv_cache: Some(KvType::F32), ..exactly(40) };
    let prompt = [2, 100, 200, 300];
    let on_cpu = cpu(&folder, Precision::Float).expect("a model");
    let on_cpu = on_cpu.generate_ids(&prompt, &options, |_| ControlFlow::Continue(())).expect("a text");
    let on_gpu = gpu(&backend, &folder, Precision::Float).expect("a model");
    let on_gpu = on_gpu.generate_ids(&prompt, &options, |_| ControlFlow::Continue(())).expect("a text");
    assert_eq!(on_cpu.ids, on_gpu.ids);
}

/// demo-opt's six outlier features are chosen at load in every layer that sees them: its logits come as near to those in floating
/// point as on the CPU, and several times nearer than with dequantised outlier weights; also where a decode step is replayed.
#[test]
fn exact_outlier_weights_are_nearer_to_float() {
    let Some(folder) = shared("models/demo-opt") else { return };
    let Some(backend) = backend(FloatType::F16) else { return };
    let texts = GoldenFile::open(&folder).rows("greedy_ids");
    let expected = logits(&cpu(&folder, Precision::Float).expect("a model"), &texts).expect("logits");
    let mut wrong = Vec::new();
    for granularity in [OutlierGranularity::Column, OutlierGranularity::Value] {
        let on_cpu = cpu(&folder, int8_with(granularity, OutlierWeights::Exact)).expect("a model");
        let reference = relative_l2(&logits(&on_cpu, &texts).expect("logits"), &expected);
        let [exact, dequantized] = [OutlierWeights::Exact, OutlierWeights::Dequantized].map(|weights| {
            let model = gpu(&backend, &folder, int8_with(granularity, weights)).expect("a model");
            let together = relative_l2(&logits(&model, &texts).expect("logits"), &expected);
            (together, relative_l2(&one_by_one(&model, &texts[0]), &expected))
        });
        for (name, exact, dequantized) in
            [("together", exact.0, dequantized.0), ("one by one", exact.1, dequantized.1)]
        {
            println!(
                "{granularity:?}, {name}: exact {exact:.2e} (CPU {reference:.2e}), dequantized {dequantized:.2e}"
            );
            if exact.is_nan() || exact > 1.3 * reference + 6e-3 || 2.0 * exact > dequantized {
                wrong.push(format!("{granularity:?}, {name}: {exact:.2e}, not {reference:.2e}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The logits of each token, forward by forward: decode steps, replayed from the third on.
fn one_by_one(model: &Model<CudaBackend>, ids: &[u32]) -> Vec<f32> {
    let mut session = model.decoder().session(&room(1, ids.len())).expect("a session");
    let mut all = Vec::new();
    for id in ids {
        session.forward(&[(0, std::slice::from_ref(id))]).expect("a forward");
        all.extend(last(&mut session));
    }
    all
}

/// At most one column in 32 of a weight is kept, and counted as memory; none where outliers have dequantised weights.
#[test]
fn exact_columns_are_bounded_and_counted() {
    let Some(folder) = shared("models/demo-opt") else { return };
    let Some(backend) = backend(FloatType::F16) else { return };
    let load = |weights| gpu(&backend, &folder, int8_with(OutlierGranularity::Column, weights));
    let (exact, dequantized) =
        (load(OutlierWeights::Exact).expect("a model"), load(OutlierWeights::Dequantized).expect("a model"));
    let mut bytes = 0;
    for (role, layer) in exact.decoder().statistics() {
        let kept = layer.exact_columns;
        println!("{}: {kept} of {}", layer.name, layer.inputs);
        assert!(kept <= layer.inputs.div_ceil(32), "{}: {kept} columns", layer.name);
        if matches!(role, LinearRole::Qkv | LinearRole::Up) {
            assert_eq!(kept, 6, "{}: the outlier features of the model", layer.name);
            let outputs = if role == LinearRole::Qkv { 3 * 192 } else { 768 };
            bytes += kept * outputs * 2 + 4 * layer.inputs;
        }
    }
    assert!(dequantized.decoder().statistics().iter().all(|(_, layer)| layer.exact_columns == 0));
    let found = exact.footprint().linear - dequantized.footprint().linear;
    assert!(
        found >= bytes && found < 2 * bytes,
        "{found} bytes, {bytes} of them in inputs of attention and MLP"
    );
}

/// As many columns as a layer says it keeps are the checkpoint's: an input of a single outlier gives the float layer's output to the
/// rounding of the compute type, where a dequantised column is off by up to 1/254 of the row's maximum.
#[test]
fn kept_columns_are_those_of_the_checkpoint() {
    let on_cpu = Arc::new(CpuBackend::new().expect("a backend"));
    let mut wrong = Vec::new();
    for folder in decoders() {
        let Some(on_gpu) = backend(FloatType::F16) else { return };
        let load = || Model::load(&folder).expect("a checkpoint");
        let exact = int8_with(OutlierGranularity::Column, OutlierWeights::Exact);
        let Ok(model) = load().precision(exact).build_on(on_gpu.clone()) else { continue };
        let Ok(float) = load().build_on(on_cpu.clone()) else { continue };
        let statistics = model.decoder().statistics();
        for (((_, _, layer), (_, _, exact)), (_, counts)) in
            model.decoder().linears().zip(float.decoder().linears()).zip(&statistics)
        {
            // One outlier a row, few columns at once.
            let all = Array2::from_diag(&Array1::from_elem(counts.inputs, 16.0_f32));
            let mut near = 0;
            for x in all.axis_chunks_iter(Axis(0), 8) {
                let found = on_gpu.multiply(layer, x).expect("a product");
                let expected = on_cpu.multiply(exact, x).expect("a product");
                let rows = found.rows().into_iter().zip(expected.rows());
                near += rows.filter(|(y, exact)| relative_l2(&y.to_vec(), &exact.to_vec()) < 6e-4).count();
            }
            if near < counts.exact_columns {
                wrong.push(format!("{}: {near} columns, not {}", counts.name, counts.exact_columns));
            }
        }
    }
    assert!(wrong.is_empty(), "{} failures:\n{}", wrong.len(), wrong.join("\n"));
}

/// Every family, mixtures of experts, encoders and T5 too, loads with exact outlier weights and is no farther from floating point
/// than the CPU is with either kind, and the GPU with dequantised ones.
#[test]
fn every_family_runs_with_exact_outlier_weights() {
    let on_cpu = Arc::new(CpuBackend::new().expect("a backend"));
    let mut wrong = Vec::new();
    let kinds = [OutlierWeights::Exact, OutlierWeights::Dequantized];
    let [exact, dequantized] = kinds.map(|weights| int8_with(OutlierGranularity::Column, weights));
    for folder in decoders().into_iter().chain(folders("encoders")) {
        let (narrow, bound) = match compute(&folder) {
            FloatType::Bf16 => (FloatType::Bf16, 6e-2),
            _ => (FloatType::F16, 6e-3),
        };
        let Some(on_gpu) = backend(narrow) else { return };
        let run = || -> Result<(f64, f64), Error> {
            let expected = outputs(&on_cpu, &folder, Precision::Float)?;
            let error = |found: Vec<f32>| relative_l2(&found, &expected);
            let near = error(outputs(&on_cpu, &folder, exact)?);
            let far = error(outputs(&on_cpu, &folder, dequantized)?);
            let same = error(outputs(&on_gpu, &folder, dequantized)?);
            println!("CPU exact {near:.1e}, dequantized {far:.1e}; GPU dequantized {same:.1e}");
            Ok((error(outputs(&on_gpu, &folder, exact)?), near.max(far).max(same)))
        };
        match run() {
            Ok((found, reference)) => {
                println!("{}: {found:.1e} (CPU {reference:.1e})", folder.display());
                if found.is_nan() || found > 1.3 * reference + bound {
                    wrong.push(format!("{}: {found:.1e}, not {reference:.1e}", folder.display()));
                }
            }
            Err(Error::Unsupported(why)) => println!("{}: refused: {why}", folder.display()),
            Err(Error::Input(why)) if why.contains("but this model has only") => {
                println!("{}: limited: {why}", folder.display());
            }
            Err(error) => wrong.push(format!("{}: {error}", folder.display())),
        }
    }
    assert!(wrong.is_empty(), "{} failures:\n{}", wrong.len(), wrong.join("\n"));
}

/// What a model makes of its golden texts: logits, or the hidden states of an encoder.
fn outputs<B: Backend>(backend: &Arc<B>, folder: &Path, precision: Precision) -> Result<Vec<f32>, Error> {
    let loader = Model::load(folder)?.precision(precision);
    if reads_and_writes(folder) {
        // Its token 1 is padding, which has no position.
        let least = if folder.ends_with("m2m_100") { 2 } else { 0 };
        let model = loader.build_on(backend.clone())?;
        // Several texts: the error of one is a sample of a wide distribution.
        let mut all = Vec::new();
        for text in 0..8_u32 {
            let source: Vec<u32> = (0..12).map(|at| (5 + 7 * at + 11 * text) % 48 + 2).collect();
            let targets: Vec<u32> = (0..8).map(|at| (11 * at + 5 * text) % 48 + least).collect();
            all.extend(model.target_logits(&source, &targets)?);
        }
        return Ok(all);
    }
    let golden = GoldenFile::open(folder);
    if folder.parent().is_some_and(|parent| parent.ends_with("encoders")) {
        let texts = golden.texts();
        let texts: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
        let states = loader.embedder_on(backend.clone())?.encoder().hidden_states(&texts)?;
        return Ok(states.into_iter().flatten().collect());
    }
    logits(&loader.build_on(backend.clone())?, &golden.rows("input_ids"))
}

/// Whether the long tests are wanted, which want a device for themselves.
fn long() -> bool {
    let wanted = std::env::var_os("INT8_LONG").is_some_and(|value| value == "1");
    if !wanted {
        eprintln!("skipped: set INT8_LONG=1, with --test-threads=1 and nothing else on the device");
    }
    wanted
}

/// 10,000 tokens of 25 texts at a time, sampled and greedy, twice the same; some minutes in a sanitizer, so not by default.
#[test]
fn ten_thousand_tokens_repeat() {
    if !long() {
        return;
    }
    let Some(folder) = shared("models/demo-opt") else { return };
    let Some(backend) = backend(FloatType::F16) else { return };
    for granularity in [OutlierGranularity::Column, OutlierGranularity::Value] {
        let model = gpu(&backend, &folder, int8(granularity)).expect("a model");
        let run = || {
            let (texts, steps) = (25_u32, 400);
            let mut session = model.decoder().session(&room(25, 408)).expect("a session");
            let mut samplers: Vec<Sampler> = (0..texts)
                .map(|text| match text % 2 {
                    0 => Sampling::Greedy,
                    _ => Sampling::Random {
                        temperature: 1.0,
                        top_k: Some(50),
                        top_p: Some(0.95),
                        seed: text.into(),
                    },
                })
                .map(|sampling| Sampler::new(sampling).expect("a sampler"))
                .collect();
            let prompts: Vec<Vec<u32>> =
                (0..texts).map(|text| (0..=text % 7).map(|i| 10 + text * 31 + i * 7).collect()).collect();
            let batch: Vec<(usize, &[u32])> = prompts.iter().map(Vec::as_slice).enumerate().collect();
            session.forward(&batch).expect("a forward");
            let mut all = Vec::new();
            for _ in 0..steps {
                let next = session.sample(&mut samplers).expect("tokens");
                let batch: Vec<(usize, &[u32])> = next.iter().map(std::slice::from_ref).enumerate().collect();
                session.forward(&batch).expect("a forward");
                all.extend(next);
            }
            all
        };
        let first = run();
        assert_eq!(first.len(), 10_000);
        assert_eq!(first, run(), "{granularity:?}");
    }
}

/// Models and sessions give back all memory of the device.
#[test]
fn a_hundred_loads_leak_nothing() {
    if !long() {
        return;
    }
    let Some(folder) = shared("models/demo-opt") else { return };
    let Some(backend) = backend(FloatType::F16) else { return };
    let mut free = Vec::new();
    for _ in 0..100 {
        let model = gpu(&backend, &folder, int8(OutlierGranularity::Column)).expect("a model");
        let text = model.generate_ids(&[2, 100], &exactly(4), |_| ControlFlow::Continue(())).expect("a text");
        assert_eq!(text.ids.len(), 4);
        drop(model);
        free.push(backend.device().free_memory().expect("a number"));
    }
    // The first loads allocate what the driver keeps for kernels and graphs.
    assert_eq!(free[9], free[99], "free memory after ten and after a hundred loads: {free:?}");
}
