//! One layer shared out by input features against the whole layer: the same codes, outliers and scales, so that only the order of
//! sums in f32 differs.

use std::path::Path;

use int8_core::corpus::Random;
use int8_core::metrics::relative_l2;
use int8_core::{Config, OutlierGranularity, RowMaximum, Scheme};
use ndarray::Array2;

use super::*;
use crate::backend::OutlierWeights;
use crate::backend::cpu::{CpuActivations, CpuBackend};
use crate::checkpoint::Checkpoint;
use crate::precision::{Quantization, Stack};
use crate::weights::Part;

fn configs() -> Vec<(Config, OutlierWeights)> {
    let mut configs = Vec::new();
    for scheme in [Scheme::LlmInt8Absmax, Scheme::LlmInt8Zeropoint, Scheme::AbsmaxVectorWise] {
        for outlier_granularity in [OutlierGranularity::Column, OutlierGranularity::Value] {
            for row_maximum in [RowMaximum::Paper, RowMaximum::Bitsandbytes] {
                let config = Config { outlier_granularity, row_maximum, ..scheme.config() };
                configs.push((config, OutlierWeights::Exact));
                configs.push((config, OutlierWeights::Dequantized));
            }
        }
    }
    configs
}

fn source() -> LinearSource {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/models/opt");
    let checkpoint = Checkpoint::open(&folder).expect("a checkpoint");
    let name = checkpoint.tensors().find(|tensor| tensor.name().ends_with("fc2.weight")).expect("fc2");
    let (outputs, inputs) = name.matrix_shape().expect("a matrix");
    let part = Part::new(name.name().strip_suffix(".weight").expect("a weight"));
    LinearSource::find(&checkpoint, "", vec![part], &[outputs], inputs).expect("a layer")
}

/// Rows of which some have outliers, in columns of several ranks, and small values beside them.
fn input(rows: usize, columns: usize) -> Array2<f32> {
    let mut random = Random::new(11);
    let mut x = random.matrix(rows, columns, 1.0);
    for (row, column) in [(0, 1), (1, columns / 2 + 3), (rows - 1, columns - 1)] {
        x[[row, column]] = -20.0;
    }
    // One rank's features are small: its own scale would be another.
    x.slice_mut(ndarray::s![.., ..columns / 4])
        .mapv_inplace(|value| value * if value.abs() < 6.0 { 0.01 } else { 1.0 });
    x
}

fn run<B: Backend>(
    backend: &B,
    linear: &B::Linear,
    x: &[B::Activations],
    make: impl Fn() -> B::Activations,
    pick: impl Fn(&[B::Activations]) -> &B::Activations,
) -> Vec<f32> {
    let mut out = make();
    backend.project(Input::Plain(pick(x)), &mut [(linear, Output::Store(&mut out))]).expect("a product");
    let mut host = Vec::new();
    backend.read(&out, &mut host).expect("values").to_vec()
}

#[test]
fn shards_are_quantised_as_the_whole_row() {
    let source = source();
    let site = Site::block(Stack::Decoder, 0, LinearRole::Down);
    let (rows, inputs, outputs) = (5, source.inputs(), source.outputs());
    let x = input(rows, inputs);
    let cpu = || Arc::new(CpuBackend::new().expect("a backend"));
    for (config, weights) in configs() {
        let precision = Precision::Int8(Quantization::new(config, weights));
        let one = cpu();
        let whole = one.linear(site, &source, &precision).expect("a layer");
        let expected =
            run(&*one, &whole, &[CpuActivations::of(&x)], || CpuActivations::room(rows, outputs), |x| &x[0]);
        for count in [2, 4] {
            let ranks = TensorParallel::new((0..count).map(|_| cpu()).collect()).expect("ranks");
            let plan = Plan::of_inputs(count, inputs, outputs);
            ranks.plan.set(plan).expect("no plan before");
            let linear = ranks.linear(site, &source, &precision).expect("a layer");
            let parts = (0..count).map(|rank| {
                CpuActivations::of(&x.slice(ndarray::s![.., plan.share(inputs, rank)]).to_owned())
            });
            let x = Activations { ranks: parts.collect(), is_joined: false, joined: None };
            let room = || Activations {
                ranks: (0..count).map(|_| CpuActivations::room(rows, outputs)).collect(),
                is_joined: false,
                joined: None,
            };
            ranks.batch(BatchCapacity { rows, segments: 1, selected: 1 }).expect("a batch");
            let found = run(&ranks, &linear, &[x], room, |x| &x[0]);
            let distance = relative_l2(&found, &expected);
            assert!(distance < 1e-6, "{count} ranks, {config:?}, {weights:?}: {distance}");
        }
    }
}

#[test]
fn a_value_that_is_not_finite_spoils_its_row_on_every_rank() {
    let source = source();
    let site = Site::block(Stack::Decoder, 0, LinearRole::Down);
    let (inputs, outputs) = (source.inputs(), source.outputs());
    let mut x = input(2, inputs);
    x[[1, 0]] = f32::NAN;
    let cpu = || Arc::new(CpuBackend::new().expect("a backend"));
    let ranks = TensorParallel::new(vec![cpu(), cpu()]).expect("ranks");
    let plan = Plan::of_inputs(2, inputs, outputs);
    ranks.plan.set(plan).expect("no plan before");
    let quantization = Quantization::new(Scheme::LlmInt8Absmax.config(), OutlierWeights::Dequantized);
    let linear = ranks.linear(site, &source, &Precision::Int8(quantization)).expect("a layer");
    let parts =
        (0..2).map(|rank| CpuActivations::of(&x.slice(ndarray::s![.., plan.share(inputs, rank)]).to_owned()));
    let x = Activations { ranks: parts.collect(), is_joined: false, joined: None };
    let room = || Activations {
        ranks: (0..2).map(|_| CpuActivations::room(2, outputs)).collect(),
        is_joined: false,
        joined: None,
    };
    ranks.batch(BatchCapacity { rows: 2, segments: 1, selected: 1 }).expect("a batch");
    let found = run(&ranks, &linear, &[x], room, |x| &x[0]);
    assert!(found[..outputs].iter().all(|value| value.is_finite()), "the other row");
    assert!(found[outputs..].iter().all(|value| value.is_nan()), "the whole row");
}
