//! Reading what is well formed: values, selections, int8 layers, order. Malformed input has a table of its own in
//! `tests/malformed_checkpoints.rs`.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::TensorView as Written;

use super::{Checkpoint, CheckpointError, DType, FileFormat, Quantization, TensorView};

/// A tensor to write: name, dtype, shape, bytes.
type Tensor = (&'static str, Dtype, Vec<usize>, Vec<u8>);

/// An embedded checkpoint of one file, written by the official crate.
fn checkpoint(tensors: &[Tensor]) -> Checkpoint {
    let views = tensors
        .iter()
        .map(|(name, dtype, shape, bytes)| (*name, Written::new(*dtype, shape.clone(), bytes).unwrap()));
    let file = safetensors::serialize(views, None).unwrap();
    Checkpoint::from_bytes([("model.safetensors".to_owned(), Cow::Owned(file))]).unwrap()
}

fn bytes<const N: usize, T: Copy>(values: &[T], to: impl Fn(T) -> [u8; N]) -> Vec<u8> {
    values.iter().flat_map(|&value| to(value)).collect()
}

/// `../shared` beside the project, with the goldens; `None` with a note where it is absent.
fn shared(folder: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared").join(folder);
    if !path.exists() {
        eprintln!("SKIPPED: ../shared/{folder} is absent");
        return None;
    }
    Some(path)
}

/// Every 16-bit pattern, converted in bulk and one by one, equals `half`'s own conversion bit for bit (but for the bits
/// of a NaN). The count is no multiple of any vector length, so that the ends of runs are covered.
#[test]
fn all_16_bit_patterns_widen_exactly() {
    let patterns: Vec<u16> = (0..=u16::MAX).chain(0..13).collect();
    let data = bytes(&patterns, u16::to_le_bytes);
    let count = patterns.len();
    let checkpoint = checkpoint(&[
        ("h", Dtype::F16, vec![count, 1], data.clone()),
        ("b", Dtype::BF16, vec![count, 1], data),
    ]);
    let same = |left: &[f32], right: &[f32]| {
        left.len() == right.len()
            && left.iter().zip(right).all(|(l, r)| l.to_bits() == r.to_bits() || (l.is_nan() && r.is_nan()))
    };
    let f16s: Vec<f32> = patterns.iter().map(|&bits| f16::from_bits(bits).to_f32()).collect();
    let bf16s: Vec<f32> = patterns.iter().map(|&bits| bf16::from_bits(bits).to_f32()).collect();
    let (h, b) = (checkpoint.tensor("h").unwrap(), checkpoint.tensor("b").unwrap());
    assert!(same(&h.to_f32().unwrap(), &f16s));
    assert!(same(&b.to_f32().unwrap(), &bf16s));
    assert!(same(&h.column_f32(0).unwrap(), &f16s));
    assert!(same(&b.column_f32(0).unwrap(), &bf16s));
    assert!(h.to_f16().unwrap().iter().zip(&patterns).all(|(value, &bits)| value.to_bits() == bits));
    assert!(b.to_bf16().unwrap().iter().zip(&patterns).all(|(value, &bits)| value.to_bits() == bits));
}

#[test]
fn every_readable_dtype_reads_its_values() {
    let checkpoint = checkpoint(&[
        ("f64", Dtype::F64, vec![4], bytes(&[1.5, -1e300, f64::NAN, 1.0 + f64::EPSILON], f64::to_le_bytes)),
        ("f32", Dtype::F32, vec![2], bytes(&[1.5f32, -0.0], f32::to_le_bytes)),
        ("i8", Dtype::I8, vec![3], bytes(&[-128i8, 0, 127], i8::to_le_bytes)),
        ("u8", Dtype::U8, vec![2], vec![0, 255]),
        ("i16", Dtype::I16, vec![2], bytes(&[i16::MIN, i16::MAX], i16::to_le_bytes)),
        ("u16", Dtype::U16, vec![1], bytes(&[u16::MAX], u16::to_le_bytes)),
        ("i32", Dtype::I32, vec![2], bytes(&[i32::MIN, 7], i32::to_le_bytes)),
        ("u32", Dtype::U32, vec![1], bytes(&[u32::MAX], u32::to_le_bytes)),
        ("i64", Dtype::I64, vec![2], bytes(&[i64::MIN, 50_256], i64::to_le_bytes)),
        ("bool", Dtype::BOOL, vec![3], vec![0, 1, 7]),
    ]);
    let read = |name| checkpoint.tensor(name).unwrap();
    let f64s = read("f64").to_f32().unwrap();
    assert_eq!(f64s[..2], [1.5, f32::NEG_INFINITY]);
    assert!(f64s[2].is_nan() && f64s[3] == 1.0);
    assert_eq!(read("f32").to_f32().unwrap().map_bits(), [1.5f32, -0.0].map(f32::to_bits));
    assert_eq!(read("i8").as_i8().unwrap(), [-128, 0, 127]);
    assert_eq!(read("i8").to_vec::<i8>().unwrap(), [-128, 0, 127]);
    assert_eq!(read("i8").to_f32().unwrap(), [-128.0, 0.0, 127.0]);
    assert_eq!(read("u8").to_vec::<u8>().unwrap(), [0, 255]);
    assert_eq!(read("i16").to_f32().unwrap(), [-32768.0, 32767.0]);
    assert_eq!(read("i16").to_vec::<i32>().unwrap(), [-32768, 32767]);
    assert_eq!(read("u16").to_f32().unwrap(), [65535.0]);
    assert_eq!(read("i32").to_vec::<i32>().unwrap(), [i32::MIN, 7]);
    assert_eq!(read("i32").to_vec::<i64>().unwrap(), [i64::from(i32::MIN), 7]);
    assert_eq!(read("u32").to_vec::<i64>().unwrap(), [4_294_967_295]);
    assert_eq!(read("i64").to_vec::<i64>().unwrap(), [i64::MIN, 50_256]);
    assert_eq!(read("bool").to_vec::<u8>().unwrap(), [0, 1, 1]);
    assert_eq!(read("bool").to_f32().unwrap(), [0.0, 1.0, 1.0]);
    // What would lose values is refused.
    assert!(matches!(read("i64").to_vec::<i32>(), Err(CheckpointError::Dtype { found: DType::I64, .. })));
    assert!(matches!(read("i32").to_f32(), Err(CheckpointError::Dtype { found: DType::I32, .. })));
    assert!(matches!(read("f32").to_vec::<i64>(), Err(CheckpointError::Dtype { .. })));
    assert!(matches!(read("f64").stored::<f32>(), Err(CheckpointError::Dtype { .. })));
}

/// Bits of floats, so that −0 differs from 0.
trait MapBits {
    fn map_bits(&self) -> Vec<u32>;
}

impl MapBits for Vec<f32> {
    fn map_bits(&self) -> Vec<u32> {
        self.iter().map(|value| value.to_bits()).collect()
    }
}

/// Rows and columns of matrices around the sizes at which work is split over threads, against the whole matrix.
#[test]
fn rows_and_columns_are_parts_of_the_whole() {
    for (rows, width) in [(1, 1), (3, 7), (5, 64), (257, 1000), (4097, 33), (70_001, 2), (4097, 2100)] {
        let values: Vec<i16> = (0..rows * width).map(|k| i16::try_from(k % 32_749).unwrap() - 9000).collect();
        let checkpoint =
            checkpoint(&[("w", Dtype::I16, vec![rows, width], bytes(&values, i16::to_le_bytes))]);
        let w = checkpoint.tensor("w").unwrap();
        let whole = w.to_matrix_f32().unwrap();
        assert!(whole.iter().zip(&values).all(|(&read, &stored)| read == f32::from(stored)));

        let (first, last) = (rows / 3, rows - rows / 4);
        let mut part = vec![0.0; (last - first) * width];
        w.read_rows_f32(first..last, &mut part).unwrap();
        assert!(part.iter().eq(whole.rows().into_iter().skip(first).take(last - first).flatten()));

        let columns = [width - 1, 0, width / 2, 0];
        let gathered: Vec<f32> = w.columns(&columns).unwrap();
        let expected = whole.rows().into_iter().flat_map(|row| columns.map(|column| row[column]));
        assert!(gathered.iter().copied().eq(expected), "{rows} x {width}");
        assert_eq!(w.column_f32(0).unwrap(), whole.column(0).to_vec());
        let mut released = 0;
        let again: Vec<f32> = w
            .columns_releasing(&columns, |bytes| {
                assert_eq!(bytes.start, released, "parts follow each other");
                released = bytes.end;
            })
            .unwrap();
        assert!(again == gathered && released == 2 * rows * width, "{rows} x {width}");
    }
    let checkpoint = checkpoint(&[("w", Dtype::F32, vec![2, 2, 2], bytes(&[1f32; 8], f32::to_le_bytes))]);
    let w = checkpoint.tensor("w").unwrap();
    let mut part = [0.0; 4];
    // A row of a tensor of three dimensions is a matrix.
    w.read_rows_f32(1..2, &mut part).unwrap();
    assert_eq!(part, [1.0; 4]);
    assert!(w.columns::<f32>(&[]).is_err());
}

#[test]
fn int8_layers_are_read_with_and_without_a_layout() {
    let codes = vec![1, 0x81, 3, 127, 0, 5];
    let scales = bytes(&[2.0f32, 0.0], f32::to_le_bytes);
    let checkpoint = checkpoint(&[
        ("a.weight", Dtype::I8, vec![2, 3], codes.clone()),
        ("a.SCB", Dtype::F32, vec![2], scales.clone()),
        ("b.weight", Dtype::I8, vec![2, 3], codes),
        ("b.SCB", Dtype::F32, vec![2], scales),
        ("b.weight_format", Dtype::U8, vec![], vec![0]),
        ("c.weight", Dtype::F16, vec![1, 1], vec![0, 0]),
    ]);
    for prefix in ["a", "b"] {
        let layer = checkpoint.int8_linear(prefix).unwrap().unwrap();
        assert_eq!(layer.codes, ndarray::arr2(&[[1, -127, 3], [127, 0, 5]]));
        assert_eq!(layer.scales, [2.0, 0.0]);
    }
    assert!(checkpoint.int8_linear("c").unwrap().is_none());
    assert!(checkpoint.int8_linear("absent").unwrap().is_none());
    assert_eq!(checkpoint.format().quantization, Quantization::Bitsandbytes8 { layers: 2 });
}

#[test]
fn names_come_in_reading_order() {
    let names = ["h.10.w", "h.2.w", "h.2.b", "h.02.b", "emb", "h.9"];
    let tensors: Vec<Tensor> = names.map(|name| (name, Dtype::U8, vec![1], vec![0])).into();
    let checkpoint = checkpoint(&tensors);
    let read: Vec<_> = checkpoint.names().collect();
    assert_eq!(read, ["emb", "h.02.b", "h.2.b", "h.2.w", "h.9", "h.10.w"]);
}

#[test]
fn the_summary_counts_everything_once() {
    let checkpoint = checkpoint(&[
        ("a", Dtype::F16, vec![3, 5], vec![0; 30]),
        ("b", Dtype::F16, vec![2], vec![0; 4]),
        ("c", Dtype::F32, vec![1], vec![0; 4]),
    ]);
    let format = checkpoint.format();
    assert_eq!(format.container, FileFormat::Safetensors);
    assert_eq!(format.quantization, Quantization::None);
    assert_eq!(format.files, ["embedded/model.safetensors"]);
    let totals: Vec<_> = format.dtypes.iter().map(|t| (t.dtype, t.tensors, t.elements, t.bytes)).collect();
    assert_eq!(totals, [(DType::F16, 2, 17, 34), (DType::F32, 1, 1, 4)]);
    assert_eq!(checkpoint.total_bytes(), 38);
}

/// A released tensor reads the same again.
#[test]
fn a_released_tensor_reads_the_same_again() {
    let folder = tempfile::tempdir().unwrap();
    let data = bytes(&(0u16..30_000).map(|k| f32::from(k) / 3.0).collect::<Vec<_>>(), f32::to_le_bytes);
    let view = Written::new(Dtype::F32, vec![30_000], &data).unwrap();
    safetensors::serialize_to_file([("w", view)], None, &folder.path().join("model.safetensors")).unwrap();
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let sum = |tensor: TensorView<'_>| tensor.to_f32().unwrap();
    let before = sum(checkpoint.tensor("w").unwrap());
    checkpoint.release("w");
    checkpoint.release("absent");
    assert_eq!(sum(checkpoint.tensor("w").unwrap()), before);
}

#[test]
fn golden_checkpoints_open_and_every_tensor_reads() {
    let Some(models) = shared("goldens/models") else { return };
    let mut opened = 0;
    for entry in std::fs::read_dir(models).unwrap() {
        let checkpoint = Checkpoint::open(entry.unwrap().path()).unwrap();
        let mut layers = 0;
        for tensor in checkpoint.tensors() {
            assert_eq!(tensor.to_f32().unwrap().len(), tensor.len(), "{}", tensor.name());
            if let Some(prefix) = tensor.name().strip_suffix(".SCB") {
                let layer = checkpoint.int8_linear(prefix).unwrap().unwrap();
                assert_eq!(layer.scales.len(), layer.codes.nrows());
                // The largest weight of a row is the row's scale itself: absmax quantisation's defining property.
                for (row, &scale) in layer.codes.rows().into_iter().zip(&layer.scales) {
                    let largest = row.iter().map(|code| code.unsigned_abs()).max().unwrap_or(0);
                    assert_eq!(largest, if scale > 0.0 { 127 } else { 0 }, "{prefix}");
                }
                layers += 1;
            }
        }
        let expected = if layers > 0 { Quantization::Bitsandbytes8 { layers } } else { Quantization::None };
        assert_eq!(checkpoint.format().quantization, expected);
        assert!(checkpoint.source().read_config().unwrap().is_object());
        opened += 1;
    }
    assert!(opened >= 14, "{opened} goldens");
}
