//! Reading what is well formed: values, selections, int8 layers, order. Malformed input has a table of its own in
//! `tests/malformed_checkpoints.rs`.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::TensorView as Written;

use super::{Checkpoint, CheckpointError, DType, Quantization};

/// A tensor to write: name, dtype, shape, bytes.
type Tensor = (&'static str, Dtype, Vec<usize>, Vec<u8>);

/// An embedded checkpoint of one file; written with our own header so that data may begin at any alignment.
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
