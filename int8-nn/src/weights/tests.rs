//! Layers stacked from weights of every kind, against the same matrices in memory.

use half::{bf16, f16};
use int8_core::corpus::Random;
use int8_core::{Config, Encoding, Granularity, QuantizedMatrix, Scheme};
use int8_cpu::{ExactColumn, Kernel};
use ndarray::{Array1, Array2, Axis, concatenate};

use super::*;
use crate::backend::{OutlierWeights, Quantization};
use crate::int8_weight::{Int8Weight, row_scales};

const INNER: usize = 70;

/// A checkpoint in memory of these tensors: name, dtype, shape, bytes.
fn checkpoint(tensors: Vec<(&str, &str, Vec<usize>, Vec<u8>)>) -> Checkpoint {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, dtype, shape, bytes) in tensors {
        let begin = data.len();
        data.extend(bytes);
        let entry = serde_json::json!({"dtype": dtype, "shape": shape, "data_offsets": [begin, data.len()]});
        header.insert(name.to_owned(), entry);
    }
    let header = serde_json::Value::from(header).to_string().into_bytes();
    let length = u64::try_from(header.len()).expect("small").to_le_bytes();
    let file = [length.to_vec(), header, data].concat();
    Checkpoint::from_bytes([("model.safetensors".to_owned(), file.into())]).expect("a checkpoint")
}

fn bytes<T: Copy, const SIZE: usize>(values: &Array2<T>, encode: impl Fn(T) -> [u8; SIZE]) -> Vec<u8> {
    values.iter().flat_map(|value| encode(*value)).collect()
}

/// One stored weight of each kind, and what the layer has of it.
struct Weights {
    checkpoint: Checkpoint,
    float: [Array2<f32>; 4],
    int8: QuantizedMatrix,
}

fn weights() -> Weights {
    let mut random = Random::new(31);
    let plain = random.matrix(37, INNER, 1.0).mapv(f16::from_f32);
    let conv1d = random.matrix(INNER, 33, 2.0).mapv(f16::from_f32);
    let gathered = random.matrix(40, INNER, 3.0).mapv(bf16::from_f32);
    let double = random.matrix(6, INNER, 4.0).mapv(|value| f64::from(value) / 3.0);
    let int8 = random.matrix(11, INNER, 5.0);
    let int8 = QuantizedMatrix::quantize(int8.view(), Encoding::Absmax, Granularity::Row);
    let scales: Vec<u8> = int8.scales().iter().flat_map(|scale| scale.to_le_bytes()).collect();
    let checkpoint = checkpoint(vec![
        // An odd number of bytes first: nothing behind it is aligned.
        ("codes.weight", "I8", vec![11, INNER], bytes(&int8.codes().to_owned(), i8::to_le_bytes)),
        ("codes.SCB", "F32", vec![11], scales),
        ("odd", "U8", vec![1], vec![0]),
        ("plain.weight", "F16", vec![37, INNER], bytes(&plain, f16::to_le_bytes)),
        ("conv1d.weight", "F16", vec![INNER, 33], bytes(&conv1d, f16::to_le_bytes)),
        ("gathered.weight", "BF16", vec![40, INNER], bytes(&gathered, bf16::to_le_bytes)),
        ("double.weight", "F64", vec![6, INNER], bytes(&double, f64::to_le_bytes)),
    ]);
    let float = [
        plain.mapv(f16::to_f32),
        conv1d.mapv(f16::to_f32).reversed_axes().as_standard_layout().into_owned(),
        gathered.mapv(bf16::to_f32).select(Axis(0), &order()),
        double.mapv(int8_core::Element::from_f64),
    ];
    Weights { checkpoint, float, int8 }
}

/// Rows of the gathered weight.
fn order() -> Vec<usize> {
    (0..40).rev().step_by(3).collect()
}

/// The layer of the first `count` weights, with the codes in the middle or not at all.
fn source(weights: &Weights, count: usize, with_codes: bool) -> (LinearSource, Vec<Option<usize>>) {
    let rows = Rows::Gather { rows: order(), of: 40 };
    let parts = [
        Part::new("plain"),
        Part::new("conv1d").conv1d(),
        Part::new("gathered").rows(rows),
        Part::new("double"),
    ];
    let mut parts: Vec<_> = parts.into_iter().take(count).collect();
    let mut outputs: Vec<_> = weights.float[..count].iter().map(Array2::nrows).collect();
    let mut indices: Vec<_> = (0..count).map(Some).collect();
    if with_codes {
        parts.insert(1, Part::new("codes"));
        outputs.insert(1, 11);
        indices.insert(1, None);
    }
    (LinearSource::find(&weights.checkpoint, "", parts, &outputs, INNER).expect("a layer"), indices)
}

#[test]
fn stacked_weights_are_those_of_their_parts() {
    let weights = weights();
    let granularities = [Granularity::Tensor, Granularity::Row, Granularity::Group];
    let schemes = [Encoding::Absmax, Encoding::Zeropoint].map(|e| granularities.map(|g| (e, g)));
    for (weight_encoding, weight_granularity) in schemes.into_iter().flatten() {
        for (count, with_codes) in [(1, false), (2, false), (4, false), (1, true), (4, true)] {
            let (source, indices) = source(&weights, count, with_codes);
            let config = Config { weight_encoding, weight_granularity, ..Scheme::LlmInt8Absmax.config() };
            // What is int8 has one scale a row, and then all have.
            let granularity = match weight_granularity {
                Granularity::Group if with_codes => Granularity::Row,
                other => other,
            };
            let parts: Vec<_> = indices
                .iter()
                .map(|index| match index {
                    Some(index) => {
                        QuantizedMatrix::quantize(weights.float[*index].view(), weight_encoding, granularity)
                    }
                    None => weights.int8.clone(),
                })
                .collect();
            let codes: Vec<_> = parts.iter().map(QuantizedMatrix::codes).collect();
            let expected = QuantizedMatrix::from_parts(
                concatenate(Axis(0), &codes).expect("equal widths"),
                Array1::from_iter(parts.iter().flat_map(|part| part.scales().to_owned())),
                Some(Array1::from_iter(parts.iter().flat_map(|part| part.zero_points().to_owned()))),
            );
            for kernel in Kernel::available() {
                let quantization = Quantization::new(config, OutlierWeights::Exact);
                let weight = Int8Weight::load(kernel, &source, &quantization).expect("a weight");
                let found = weight.packed.to_quantized().expect("as packed");
                let case = (kernel, weight_encoding, weight_granularity, count, with_codes);
                assert!(Some(&found) == expected.as_ref().ok(), "{case:?}");
                // A checkpoint that has codes alone of a weight has no exact columns of the layer.
                assert_eq!(weight.exact.is_some(), !with_codes, "{case:?}");
            }
        }
    }
}

#[test]
fn rows_and_columns_are_read_where_they_lie() {
    let weights = weights();
    for (count, with_codes, float_type) in [
        (1, false, FloatType::F16),
        (2, false, FloatType::F16),
        (3, false, FloatType::F32),
        (4, false, FloatType::F32),
        (4, true, FloatType::F32),
    ] {
        let (source, indices) = source(&weights, count, with_codes);
        let int8: Array2<f32> = {
            let steps = weights.int8.scales().mapv(|scale| scale / 127.0).insert_axis(Axis(1));
            weights.int8.codes().mapv(f32::from) * steps
        };
        let parts: Vec<_> = indices
            .iter()
            .map(|index| index.map_or(int8.view(), |index| weights.float[index].view()))
            .collect();
        let expected = concatenate(Axis(0), &parts).expect("equal widths");
        let matrix = source.float().expect("a matrix");
        assert_eq!((matrix.dim(), matrix.float_type()), (expected.dim(), float_type));
        assert_eq!(matrix.to_f32(), expected);
        let largest = expected.map_axis(Axis(1), |row| row.iter().fold(0.0_f32, |most, x| most.max(x.abs())));
        assert_eq!(row_scales(&matrix), largest.to_vec());
        // Across the border of two parts, too.
        for rows in [0..0, 3..5, 30..expected.nrows().min(90)] {
            let mut next = rows.start;
            matrix.read(rows.clone(), &mut |row| {
                assert_eq!(widened(row, &mut Vec::new()), expected.row(next).to_vec(), "row {next}");
                next += 1;
            });
            assert_eq!(next, rows.end);
        }
        let columns = [69, 0, 13];
        let one_by_one = columns.iter().flat_map(|column| expected.column(*column).to_vec());
        let as_f32 = source.exact_columns_f32(&columns).expect("columns");
        assert_eq!(as_f32, (!with_codes).then(|| one_by_one.collect()));
        assert_eq!(source.stored_outlier_columns().expect("columns"), None, "a part is in floating point");
        let found = source.exact_columns(&columns).expect("columns");
        assert_eq!(found.is_some(), !with_codes);
        for (column, found) in columns.iter().zip(found.into_iter().flatten()) {
            let (found, of_type): (Vec<f32>, _) = match &found {
                ExactColumn::F32(values) => (values.to_vec(), FloatType::F32),
                ExactColumn::F16(values) => (values.iter().map(|x| x.to_f32()).collect(), FloatType::F16),
                ExactColumn::Bf16(values) => (values.iter().map(|x| x.to_f32()).collect(), FloatType::Bf16),
            };
            assert_eq!((found, of_type), (expected.column(*column).to_vec(), float_type), "column {column}");
        }
    }
}
