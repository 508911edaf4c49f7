//! Criterion benches of every kernel: the integer product and the complete layer.
//!
//! ```text
//! cargo bench -p int8-cpu --bench kernels -- layer/avx512-vnni --profile-time 5
//! ```
//!
//! Shares of the machine's peak and comparisons with other libraries are in the bench `layer`.
#![allow(missing_docs, reason = "criterion's macros generate undocumented functions")]

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use half::{bf16, f16};
use int8_core::corpus::Random;
use int8_core::{Config, Element, Encoding, Granularity, OutlierGranularity, Scheme};
use int8_cpu::{Kernel, OutlierWeights, PackedWeight, Store, int8_product_into, linear};
use ndarray::Array2;

/// M, N, K: one token, a short prompt, a window.
const SHAPES: [(usize, usize, usize); 3] = [(1, 2048, 2048), (64, 2048, 2048), (512, 768, 768)];

fn work((m, n, k): (usize, usize, usize)) -> Throughput {
    Throughput::Elements(u64::try_from(m * n * k).unwrap_or(u64::MAX))
}

fn name((m, n, k): (usize, usize, usize)) -> String {
    format!("{m}x{n}x{k}")
}

fn weight(kernel: Kernel, n: usize, k: usize) -> PackedWeight {
    let w = Random::new(1).matrix(n, k, 0.02);
    PackedWeight::quantize(kernel, w.view(), Encoding::Absmax, Granularity::Row).expect("a valid weight")
}

fn product(criterion: &mut Criterion) {
    for kernel in Kernel::available() {
        let mut group = criterion.benchmark_group(format!("product/{kernel}"));
        for (m, n, k) in SHAPES {
            let weight = weight(kernel, n, k);
            let a = int8_core::QuantizedMatrix::quantize(
                Random::new(2).matrix(m, k, 1.0).view(),
                Encoding::Absmax,
                Granularity::Row,
            );
            let mut out = Array2::zeros((m, n));
            group.throughput(work((m, n, k)));
            group.bench_function(name((m, n, k)), |bencher| {
                bencher.iter(|| int8_product_into(a.codes(), &weight, out.view_mut()).expect("valid shapes"));
            });
        }
    }
}

fn layer_of<T: Element>(criterion: &mut Criterion, kernel: Kernel, label: &str, config: &Config) {
    let mut group = criterion.benchmark_group(format!("layer/{kernel}/{label}/{}", T::NAME));
    for (m, n, k) in SHAPES {
        let weight = weight(kernel, n, k);
        let mut x = Random::new(3).matrix(m, k, 1.0);
        x.column_mut(k / 3).fill(-9.5);
        x.column_mut(k / 2).fill(8.0);
        let x = x.mapv(T::from_f32);
        let mut y = Array2::from_elem((m, n), T::from_f32(0.0));
        group.throughput(work((m, n, k)));
        group.bench_with_input(BenchmarkId::from_parameter(name((m, n, k))), &x, |bencher, x| {
            bencher.iter(|| {
                let (outliers, store) = (OutlierWeights::Dequantized, Store::Overwrite);
                linear(x.view(), &weight, outliers, None, config, store, y.view_mut()).expect("valid shapes")
            });
        });
    }
}

fn layer(criterion: &mut Criterion) {
    let llm = Scheme::LlmInt8Absmax.config();
    let values = Config { outlier_granularity: OutlierGranularity::Value, ..llm };
    for kernel in Kernel::available() {
        layer_of::<bf16>(criterion, kernel, "columns", &llm);
        layer_of::<bf16>(criterion, kernel, "values", &values);
        layer_of::<f16>(criterion, kernel, "columns", &llm);
        layer_of::<f32>(criterion, kernel, "columns", &llm);
        layer_of::<f32>(criterion, kernel, "zeropoint", &Scheme::LlmInt8Zeropoint.config());
    }
}

criterion_group!(benches, product, layer);
criterion_main!(benches);
