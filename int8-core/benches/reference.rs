//! Time of the reference, which is written for clarity: tests that call it must stay affordable.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use half::f16;
use int8_core::corpus::Random;
use int8_core::product::int8_product;
use int8_core::{Encoding, Granularity, QuantizedMatrix, Scheme, Weight, linear};
use ndarray::Array2;
use std::hint::black_box;

/// `(M, N, K)`: one token and a small batch of a small model's layer, and a square one.
const SIZES: [(usize, usize, usize); 3] = [(1, 768, 192), (32, 768, 192), (64, 256, 256)];

fn name(m: usize, n: usize, k: usize) -> String {
    format!("M={m} N={n} K={k}")
}

fn elements(m: usize, n: usize, k: usize) -> Throughput {
    Throughput::Elements(u64::try_from(m * n * k).expect("a small size"))
}

/// Activations with two outlier columns, and weights.
fn operands(m: usize, n: usize, k: usize) -> (Array2<f16>, Array2<f16>) {
    let mut random = Random::new(1);
    let mut x = random.matrix(m, k, 1.0);
    for column in [3, k / 2] {
        x.column_mut(column).mapv_inplace(|value| value - 45.0);
    }
    (x.mapv(f16::from_f32), random.matrix(n, k, 0.02).mapv(f16::from_f32))
}

fn quantise(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("quantise");
    for (m, _, k) in SIZES {
        let (x, _) = operands(m, 1, k);
        for encoding in [Encoding::Absmax, Encoding::Zeropoint] {
            group.throughput(elements(m, 1, k));
            let id = BenchmarkId::new(format!("{encoding:?}"), format!("M={m} K={k}"));
            group.bench_function(id, |bencher| {
                bencher.iter(|| QuantizedMatrix::quantize(black_box(x.view()), encoding, Granularity::Row));
            });
        }
    }
}

fn product(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("int8 product");
    for (m, n, k) in SIZES {
        let (x, w) = operands(m, n, k);
        let [a, b] =
            [x, w].map(|matrix| QuantizedMatrix::quantize(matrix.view(), Encoding::Absmax, Granularity::Row));
        group.throughput(elements(m, n, k));
        group.bench_function(name(m, n, k), |bencher| {
            bencher.iter(|| int8_product(black_box(a.codes()), black_box(b.codes())).expect("equal K"));
        });
    }
}

fn layer(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("linear");
    for (m, n, k) in SIZES {
        let (x, w) = operands(m, n, k);
        for scheme in [Scheme::AbsmaxVectorWise, Scheme::LlmInt8Absmax, Scheme::LlmInt8Zeropoint] {
            let config = scheme.config();
            let weight = Weight::quantize(w.view(), &config);
            group.throughput(elements(m, n, k));
            group.bench_function(BenchmarkId::new(scheme.name(), name(m, n, k)), |bencher| {
                bencher.iter(|| linear(black_box(x.view()), &weight, None, &config).expect("a valid layer"));
            });
        }
    }
}

criterion_group!(benches, quantise, product, layer);
criterion_main!(benches);
