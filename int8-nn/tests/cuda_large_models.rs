//! Models that one GPU does not hold: tensor parallelism against one GPU (two ranks, on two GPUs where there are two, else both on
//! one), and blocks in host memory. Needs a GPU; without one the tests say so and are skipped, unless INT8_REQUIRE_GPU=1.
#![cfg(feature = "cuda")]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "says what it skips and measured")]

mod common;

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use int8_core::metrics::relative_l2;
use int8_core::{Config, FloatType, KvType, OutlierGranularity, Scheme};
use int8_nn::backend::Backend;
use int8_nn::backend::cuda::CudaBackend;
use int8_nn::backend::parallel::TensorParallel;
use int8_nn::precision::{OutlierWeights, Precision, Quantization};
use int8_nn::{Error, GenerateOptions, Model};

use common::{GoldenFile, exactly, folders};

type Ranks = TensorParallel<CudaBackend>;

/// One backend, and two ranks.
fn backends(compute: FloatType) -> Option<(Arc<CudaBackend>, Arc<Ranks>)> {
    let open = |ordinal| CudaBackend::new(ordinal, compute).map(Arc::new);
    match open(0) {
        Ok(first) => {
            let second = open(1).or_else(|_| open(0)).expect("the GPU once more");
            println!("{} and {}", first.describe(), second.describe());
            let ranks = TensorParallel::new(vec![open(0).expect("the GPU once more"), second]);
            Some((first, Arc::new(ranks.expect("ranks"))))
        }
        Err(error) => {
            let required = std::env::var_os("INT8_REQUIRE_GPU").is_some_and(|value| value == "1");
            assert!(!required, "INT8_REQUIRE_GPU=1, but {error}");
            eprintln!("skipped: {error}");
            None
        }
    }
}

/// New ranks on the same devices: each has one model.
fn again(ranks: &Arc<Ranks>) -> Arc<Ranks> {
    Arc::new(TensorParallel::new(ranks.ranks().to_vec()).expect("ranks"))
}

fn int8(granularity: OutlierGranularity, scheme: Scheme) -> Precision {
    let config = Config { outlier_granularity: granularity, ..scheme.config() };
    Precision::Int8(Quantization::new(config, OutlierWeights::Dequantized))
}

fn logits<B: Backend>(model: &Model<B>, texts: &[Vec<u32>]) -> Vec<f32> {
    texts.iter().flat_map(|ids| model.logits(ids).expect("logits")).collect()
}

fn greedy<B: Backend>(model: &Model<B>, prompt: &[u32], count: usize) -> Vec<u32> {
    let options = GenerateOptions { kv_cache: Some(KvType::F32), ..exactly(count) };
    model.generate_ids(prompt, &options, |_| ControlFlow::Continue(())).expect("a continuation").ids
}

/// Whether two continuations differ first where the model's largest two logits are nearer than `margin`.
fn differ_by_margin(
    model: &Model<CudaBackend>,
    prompt: &[u32],
    one: &[u32],
    other: &[u32],
    margin: f32,
) -> bool {
    let Some(first) = one.iter().zip(other).position(|(one, other)| one != other) else { return true };
    let logits = model.logits(&[prompt, &one[..first]].concat()).expect("logits");
    let mut last = logits.row(logits.nrows() - 1).to_vec();
    last.sort_by(f32::total_cmp);
    last[last.len() - 1] - last[last.len() - 2] < margin
}

fn compare(
    folder: &Path,
    (one, ranks): (&Arc<CudaBackend>, &Arc<Ranks>),
    settings: (Precision, f32, f32),
) -> bool {
    let (precision, bound, margin) = settings;
    let name = folder.file_name().expect("a name").to_string_lossy().into_owned();
    let load = || Model::load(folder).map(|loader| loader.precision(precision));
    let Ok(single) = load().and_then(|loader| loader.build_on(one.clone())) else { return false };
    let parallel = match load().and_then(|loader| loader.build_on(again(ranks))) {
        Ok(model) => model,
        Err(Error::Unsupported(_)) => return false,
        Err(error) => panic!("{name}: {error}"),
    };
    let texts = GoldenFile::open(folder).rows("input_ids");
    let limit = single.config().max_positions;
    // A GPU has fewer positions of a model whose frequencies follow the length of the text.
    if texts.iter().any(|ids| ids.len() > limit) || limit < 32 {
        return false;
    }
    let distance = relative_l2(&logits(&parallel, &texts), &logits(&single, &texts));
    let prompt = &texts[0][..8.min(texts[0].len())];
    let [of_one, of_ranks] = [greedy(&single, prompt, 24), greedy(&parallel, prompt, 24)];
    println!(
        "{name}: {distance:.1e}, {} of 24 ids",
        of_one.iter().zip(&of_ranks).take_while(|(a, b)| a == b).count()
    );
    assert!(distance < bound.into(), "{name}: {distance} from one GPU");
    assert!(
        differ_by_margin(&single, prompt, &of_one, &of_ranks, margin),
        "{name}: {of_one:?}, {of_ranks:?}"
    );
    assert_eq!(of_ranks, greedy(&parallel, prompt, 24), "{name}: not the same twice");
    true
}

#[test]
fn two_ranks_compute_what_one_gpu_computes() {
    use OutlierGranularity::{Column, Value};
    let cases = [
        (FloatType::F32, Precision::Float, 1e-5, 1e-3),
        (FloatType::F32, int8(Column, Scheme::LlmInt8Absmax), 5e-3, 0.1),
        (FloatType::F32, int8(Value, Scheme::LlmInt8Zeropoint), 5e-3, 0.1),
        (FloatType::F16, Precision::Float, 5e-3, 0.1),
        (FloatType::F16, int8(Column, Scheme::LlmInt8Absmax), 2e-2, 0.2),
        (FloatType::Bf16, int8(Value, Scheme::LlmInt8Absmax), 5e-2, 0.5),
    ];
    for (compute, precision, bound, margin) in cases {
        let Some((one, ranks)) = backends(compute) else { return };
        println!("{}, {precision:?}", compute.name());
        let all = folders("models").into_iter().chain(folders("goldens"));
        let run = all.filter(|folder| compare(folder, (&one, &ranks), (precision, bound, margin))).count();
        println!("{run} models");
        assert!(run >= 20, "{run} models");
    }
}

/// GPUs that are not linked exchange through host memory, with the same kernels.
#[test]
fn ranks_exchange_through_host_memory() {
    let column = int8(OutlierGranularity::Column, Scheme::LlmInt8Absmax);
    for (compute, precision, bound, margin) in
        [(FloatType::F32, Precision::Float, 1e-5, 1e-3), (FloatType::F16, column, 2e-2, 0.2)]
    {
        let Some((one, ranks)) = backends(compute) else { return };
        ranks.ranks().iter().for_each(|rank| rank.exchange_through_host());
        let all = folders("models").into_iter().chain(folders("goldens"));
        let run = all.filter(|folder| compare(folder, (&one, &ranks), (precision, bound, margin))).count();
        println!("{run} models");
        assert!(run >= 20, "{run} models");
    }
}

/// Where the codes lie changes no bit, whatever the order in which layers are used, and nothing of an earlier model is taken.
#[test]
fn blocks_in_host_memory_change_no_bit() {
    let Some((one, _)) = backends(FloatType::F16) else { return };
    let host = CudaBackend::new(0, FloatType::F16).map(Arc::new).expect("the GPU once more");
    let mut run = 0;
    for folder in folders("models").into_iter().chain(folders("goldens")) {
        for precision in [
            int8(OutlierGranularity::Column, Scheme::LlmInt8Absmax),
            int8(OutlierGranularity::Value, Scheme::LlmInt8Zeropoint),
        ] {
            let load = || Model::load(&folder).map(|loader| loader.precision(precision));
            let Ok(single) = load().and_then(|loader| loader.build_on(one.clone())) else { continue };
            let limit = single.config().max_positions;
            let texts = GoldenFile::open(&folder).rows("input_ids");
            if texts.iter().any(|ids| ids.len() > limit) || limit < 32 {
                continue;
            }
            for blocks in [1, single.config().layers] {
                host.offload(blocks).expect("offload");
                let offloaded = match load().and_then(|loader| loader.build_on(host.clone())) {
                    Ok(model) => model,
                    Err(Error::Unsupported(_)) => continue,
                    Err(error) => panic!("{}: {error}", folder.display()),
                };
                assert_eq!(logits(&offloaded, &texts), logits(&single, &texts), "{}", folder.display());
                let prompt = &texts[0][..8.min(texts[0].len())];
                assert_eq!(
                    greedy(&offloaded, prompt, 16),
                    greedy(&single, prompt, 16),
                    "{}",
                    folder.display()
                );
                run += 1;
            }
        }
    }
    host.offload(0).expect("no blocks");
    println!("{run} comparisons");
    assert!(run >= 40, "{run} comparisons");
}
