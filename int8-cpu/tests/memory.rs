//! Every path with unsafe code, on shapes so small that a memory checker gets through them: edges of panels and tiles,
//! strided operands whose surroundings must stay as they were, all element types, all kernels.

use half::{bf16, f16};
use int8_core::bound::{Arithmetic, compare};
use int8_core::corpus::Random;
use int8_core::{Config, Element, Encoding, Granularity, KvType, OutlierGranularity, Scheme, Weight};
use int8_cpu::attention::{Attention, Bias, KvPages, Query};
use int8_cpu::float::{self, Function};
use int8_cpu::{
    ExactColumn, ExactColumns, Kernel, OutlierWeights, PackedWeight, Store, int8_product, linear,
};
use ndarray::{Array2, ArrayView2, s};

/// M, N, K: one of each; one row; more rows than a portable tile, N and K just beyond a panel and a cache line.
#[cfg(not(miri))]
const SHAPES: [(usize, usize, usize); 3] = [(1, 1, 1), (1, 33, 65), (5, 34, 66)];

/// One edge at a time, where a multiplication takes a microsecond.
#[cfg(miri)]
const SHAPES: [(usize, usize, usize); 3] = [(1, 1, 1), (1, 33, 2), (5, 2, 65)];

struct Columns<'a>(ArrayView2<'a, f32>);

impl ExactColumns for Columns<'_> {
    fn columns(
        &self,
        columns: &[usize],
    ) -> Result<Vec<ExactColumn>, Box<dyn std::error::Error + Send + Sync>> {
        Ok(columns.iter().map(|k| ExactColumn::F32(self.0.column(*k).iter().copied().collect())).collect())
    }
}

fn layer<T: Element>(config: &Config) {
    let mut random = Random::new(31);
    for (m, n, k) in SHAPES {
        let mut wide = random.matrix(m, k + 3, 1.0);
        wide.column_mut(1 + k / 2).fill(-9.0);
        let (wide, w) = (wide.mapv(T::from_f32), random.matrix(n, k, 0.1).mapv(T::from_f32));
        let w_f32 = w.mapv(T::to_f32);
        let x = wide.slice(s![.., 1..=k]);
        let reference = Weight::quantize(w.view(), config);
        let all = reference.clone().with_all_columns_exact(w.view()).expect("W");
        for kernel in Kernel::available() {
            let (encoding, granularity) = (config.weight_encoding, config.weight_granularity);
            let packed = PackedWeight::quantize(kernel, w.view(), encoding, granularity).expect("W");
            for (reference, exact) in [(&reference, false), (&all, true)] {
                let source = Columns(w_f32.view());
                let outliers =
                    if exact { OutlierWeights::Exact(&source) } else { OutlierWeights::Dequantized };
                let mut wide_y = Array2::from_elem((m, n + 2), T::from_f32(0.0));
                let y = wide_y.slice_mut(s![.., 1..=n]);
                linear(x, &packed, outliers, None, config, Store::Accumulate, y).expect("a valid call");
                let expected = int8_core::linear(x, reference, None, config).expect("y");
                let y = wide_y.slice(s![.., 1..=n]);
                assert!(compare(y, &expected, None, Arithmetic::F32).within_bound(), "{kernel} {m}×{n}×{k}");
                let edges = [wide_y.column(0), wide_y.column(n + 1)];
                assert!(edges.iter().all(|edge| edge.iter().all(|v| v.to_f32() == 0.0)), "{kernel}");
            }
        }
    }
}

#[test]
fn layers_stay_inside_their_operands() {
    let columns = Scheme::LlmInt8Absmax.config();
    layer::<f32>(&columns);
    layer::<bf16>(&columns);
    layer::<f16>(&Config { outlier_granularity: OutlierGranularity::Value, ..columns });
    layer::<f32>(&Config { input_encoding: Encoding::Zeropoint, ..columns });
    layer::<f32>(&Config {
        weight_encoding: Encoding::Zeropoint,
        input_granularity: Granularity::Group,
        weight_granularity: Granularity::Group,
        ..columns
    });
}

#[test]
fn packing_and_the_product_are_exact() {
    let mut random = Random::new(32);
    for (m, n, k) in SHAPES {
        let (a, w) = (random.matrix(m, k, 1.0), random.matrix(n, k, 1.0));
        let codes = |matrix: &Array2<f32>| {
            let quantized =
                int8_core::QuantizedMatrix::quantize(matrix.view(), Encoding::Absmax, Granularity::Row);
            quantized.codes().to_owned()
        };
        let (a, w) = (codes(&a), codes(&w));
        let expected = a.mapv(i32::from).dot(&w.mapv(i32::from).t());
        for kernel in Kernel::available() {
            let scales = ndarray::Array1::ones(n);
            let packed = PackedWeight::from_codes(kernel, w.view(), scales.view(), None).expect("W");
            assert_eq!(packed.codes(), w, "{kernel}");
            assert_eq!(int8_product(a.view(), &packed).expect("a product"), expected, "{kernel}");
        }
    }
}

#[test]
fn what_surrounds_the_layers_stays_inside_its_operands() {
    let mut random = Random::new(33);
    for kernel in Kernel::available() {
        let (x, w) = (random.matrix(6, 19, 1.0), random.matrix(5, 19, 1.0).mapv(bf16::from_f32));
        let mut y = Array2::zeros((6, 7));
        let target = y.slice_mut(s![.., 1..6]);
        float::product(kernel, x.view(), w.view(), None, Store::Overwrite, target).expect("a product");
        assert!(y.column(0).iter().chain(y.column(6)).all(|v| *v == 0.0));

        for element in KvType::ALL {
            let mut cache = KvPages::new(element, 1, 1, 3, 2).expect("memory");
            let (kv, table) = (random.matrix(40, 6, 1.0), [1]);
            cache.write(kernel, 0, &table, 0, kv.slice(s![.., ..3]), kv.slice(s![.., 3..])).expect("it fits");
            let cache = cache.sequence(0, &table);
            let rows: Vec<Query> =
                (30..36).map(|position| Query { position, span: 2..position + 1 }).collect();
            let q = random.matrix(6, 8, 1.0);
            let attention =
                Attention { kernel, heads: 2, scale: 0.5, softcap: None, bias: Bias::None, sinks: None };
            let mut out = Array2::zeros((6, 6));
            attention.attend(q.slice(s![.., 1..7]), &cache, &rows, out.view_mut()).expect("attention");
            assert!(out.iter().all(|v| v.is_finite()));
        }

        let (mut row, mut gelu) = (x.row(0).to_vec(), vec![0.0; 19]);
        float::layer_norm(kernel, &mut row, &[1.0; 19], None, 1e-5);
        float::activate(kernel, Function::Gelu, &row, &mut gelu);
        assert!(float::exp_sum(kernel, &gelu, 1.0) > 0.0);
    }
}
