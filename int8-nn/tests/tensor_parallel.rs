//! Tensor parallelism on the processor: two and four ranks against one, for every decoder family of the repository.
#![allow(clippy::print_stdout, reason = "says what it measured")]

mod common;

use std::net::TcpListener;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use int8_core::metrics::relative_l2;
use int8_core::{Config, OutlierGranularity, Scheme};
use int8_nn::backend::cpu::CpuBackend;
use int8_nn::backend::parallel::TensorParallel;
use int8_nn::group::{Group, GroupOptions, follow};
use int8_nn::precision::{OutlierWeights, Precision, Quantization};
use int8_nn::{Error, GenerateOptions, Model, Sampler, Sampling, SessionOptions};

use common::{GoldenFile, IDS, exactly, folders};

type Ranks = TensorParallel<CpuBackend>;

fn ranks(count: usize) -> Arc<Ranks> {
    let ranks = (0..count).map(|_| Arc::new(CpuBackend::new().expect("a backend"))).collect();
    Arc::new(TensorParallel::new(ranks).expect("ranks"))
}

fn parallel(folder: &Path, precision: Precision, count: usize) -> Result<Model<Ranks>, Error> {
    Model::load(folder)?.precision(precision).build_on(ranks(count))
}

fn settings() -> Vec<(&'static str, Precision)> {
    let int8 = |scheme: Scheme, outlier_granularity, weights| {
        let config = Config { outlier_granularity, ..scheme.config() };
        Precision::Int8(Quantization::new(config, weights))
    };
    let (column, value) = (OutlierGranularity::Column, OutlierGranularity::Value);
    vec![
        ("float", Precision::Float),
        ("columns", int8(Scheme::LlmInt8Absmax, column, OutlierWeights::Dequantized)),
        ("values", int8(Scheme::LlmInt8Absmax, value, OutlierWeights::Exact)),
        ("zero points", int8(Scheme::LlmInt8Zeropoint, column, OutlierWeights::Exact)),
    ]
}

/// In floating point but for rounding; in int8 but for codes that another rounding of the values before them changes: as the tests of
/// one layer show, codes and scales of equal values are equal.
#[test]
fn ranks_compute_what_one_device_computes() {
    let (mut run, mut refused) = (0, Vec::new());
    for folder in folders("models").into_iter().chain(folders("goldens")) {
        let name = folder.file_name().expect("a name").to_string_lossy().into_owned();
        let texts = GoldenFile::open(&folder).rows("input_ids");
        let logits = |model: &dyn Fn(&[u32]) -> Vec<f32>| {
            texts.iter().flat_map(|ids| model(ids)).collect::<Vec<f32>>()
        };
        let mut float = Vec::new();
        for (setting, precision) in settings() {
            let Ok(one) = Model::load(&folder).and_then(|loader| loader.precision(precision).build()) else {
                continue;
            };
            let expected = logits(&|ids| one.logits(ids).expect("logits").into_iter().collect());
            if precision == Precision::Float {
                float.clone_from(&expected);
            }
            for count in [2, 4] {
                let model = match parallel(&folder, precision, count) {
                    Ok(model) => model,
                    Err(Error::Unsupported(why)) => {
                        refused.push(format!("{name}, {count} ranks: {why}"));
                        continue;
                    }
                    Err(error) => panic!("{name}, {setting}, {count} ranks: {error}"),
                };
                let found = logits(&|ids| model.logits(ids).expect("logits").into_iter().collect());
                let distance = relative_l2(&found, &expected);
                let bound = match precision {
                    Precision::Float => 2e-6,
                    Precision::Int8(_) => 0.2 * relative_l2(&expected, &float),
                };
                assert!(distance < bound, "{name}, {setting}, {count} ranks: {distance}, {bound} allowed");
                run += 1;
            }
        }
    }
    println!("{run} comparisons; refused: {}", refused.join("; "));
    assert!(run > 300, "{run} comparisons");
}

/// Batches of several lengths, forks and sampling go through the same operations on every rank.
#[test]
fn ranks_generate_the_same_ids() {
    for family in ["llama", "qwen2", "bloom", "opt"] {
        let folder = common::data("models").join(family);
        let one = Model::load(&folder).and_then(|loader| loader.build()).expect("a model");
        let two = parallel(&folder, Precision::Float, 2).expect("a model");
        let options = GenerateOptions { sampling: Sampling::Greedy, ..exactly(20) };
        let prompts = [&IDS[..3], &IDS[..9], &IDS[4..6]];
        for prompt in prompts {
            let go = |_: &_| ControlFlow::Continue(());
            let expected = one.generate_ids(prompt, &options, |token| go(&token)).expect("ids").ids;
            let found = two.generate_ids(prompt, &options, |token| go(&token)).expect("ids").ids;
            assert_eq!(found, expected, "{family}");
        }
    }
}

/// Processes, here threads with backends and models of their own, compute what one process computes with as many ranks, bit by
/// bit: two with two ranks each, and four with one.
#[test]
fn processes_compute_what_one_process_computes() {
    for family in ["llama", "opt"] {
        let folder = common::data("models").join(family);
        for (setting, precision) in settings() {
            let one = parallel(&folder, precision, 4).expect("a model");
            let expected = work(&one);
            for processes in [2, 4] {
                let address = free_address();
                let start = |process| {
                    let (folder, address) = (&folder, address.clone());
                    // With threads of its own, as a process has: one that waits for the others must not hold theirs.
                    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("threads");
                    let compute = move || {
                        let timeout = Duration::from_secs(60);
                        let options = GroupOptions { process, processes, address, timeout };
                        let group = Arc::new(Group::connect(&options).expect("a group"));
                        let ranks =
                            (0..4 / processes).map(|_| Arc::new(CpuBackend::new().expect("a backend")));
                        let ranks = TensorParallel::of_group(ranks.collect(), group.clone()).expect("ranks");
                        let loader = Model::load(folder).expect("a checkpoint").precision(precision);
                        let model = loader.build_on(Arc::new(ranks)).expect("a model");
                        if process > 0 {
                            let alone = model.logits(&IDS[..2]).expect_err("it follows").to_string();
                            assert!(alone.contains("several processes"), "{alone}");
                            follow(model.decoder(), &group).expect("steps");
                            return None;
                        }
                        Some(work(&model))
                    };
                    move || pool.install(compute)
                };
                let found = std::thread::scope(|scope| {
                    let threads: Vec<_> = (0..processes).map(|process| scope.spawn(start(process))).collect();
                    let results: Vec<_> =
                        threads.into_iter().filter_map(|thread| thread.join().expect("no panic")).collect();
                    results
                });
                assert_eq!(
                    found,
                    std::slice::from_ref(&expected),
                    "{family}, {setting}, {processes} processes"
                );
            }
        }
    }
}

fn greedy() -> Sampler {
    Sampler::new(Sampling::Greedy).expect("a sampler")
}

fn free_address() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address").to_string()
}

/// Logits of a text, and ids of two sequences of which the second begins as a fork of the first.
fn work(model: &Model<Ranks>) -> (Vec<f32>, Vec<u32>) {
    let logits = model.logits(&IDS[..9]).expect("logits").into_iter().collect();
    // A third one has the page that both copy what they share to.
    let options = SessionOptions { sequences: 3, max_logits: 2, ..SessionOptions::text(40) };
    let mut session = model.decoder().session(&options).expect("a session");
    session.expect(0, 5);
    session.forward(&[(0, &IDS[..5])]).expect("a forward");
    session.fork(0, 1, 3).expect("a fork");
    let mut ids = vec![IDS[5], IDS[6]];
    for _ in 0..6 {
        let last = &ids[ids.len() - 2..];
        session.forward(&[(0, &last[..1]), (1, &last[1..])]).expect("a forward");
        let mut samplers = vec![greedy(), greedy()];
        ids.extend(session.sample(&mut samplers).expect("ids"));
    }
    // A mistake is refused on the first process, and none of the others stops.
    session.forward(&[(0, &[u32::MAX])]).expect_err("no such id");
    session.clear(1).expect("cleared");
    session.forward(&[(1, &IDS[..1])]).expect("a forward");
    ids.extend(session.sample(&mut [greedy()]).expect("an id"));
    (logits, ids)
}

/// What a rank cannot have a part of is refused before weights are read.
#[test]
fn models_that_are_not_divisible_are_refused_by_name() {
    let folder = common::data("models").join("llama");
    let error = parallel(&folder, Precision::Float, 3).expect_err("three ranks").to_string();
    assert!(error.contains("on 3 ranks") && error.contains("not divisible"), "{error}");
    let best = Precision::Int8(Quantization::best());
    let error = parallel(&folder, best, 2).expect_err("groups").to_string();
    assert!(error.contains("group granularity"), "{error}");
}
