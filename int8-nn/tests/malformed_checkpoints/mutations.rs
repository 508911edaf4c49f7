//! Random damage to valid files: whatever comes of it, nothing panics, and what still opens reads within its bounds.

use std::borrow::Cow;
use std::sync::LazyLock;

use int8_nn::checkpoint::Checkpoint;
use proptest::prelude::*;

use crate::files::{floats, index, tensors};

/// A file with every readable dtype, an int8 layer, an empty tensor and a scalar.
static VALID: LazyLock<Vec<u8>> = LazyLock::new(|| {
    tensors(&[
        ("l.weight", "I8", &[2, 3], &[1, 2, 3, 127, 0x81, 0]),
        ("l.SCB", "F32", &[2], &floats(&[1.0, 0.5])),
        ("l.weight_format", "U8", &[], &[0]),
        ("a", "F16", &[2, 2], &[0; 8]),
        ("b", "BF16", &[4], &[0; 8]),
        ("c", "F64", &[1, 1], &[0; 8]),
        ("d", "I64", &[1], &[0; 8]),
        ("e", "I32", &[0, 3], &[]),
        ("f", "BOOL", &[3], &[0, 1, 2]),
    ])
});

/// Reads everything in every way; the results do not matter, the sizes do.
pub(crate) fn read_all(checkpoint: &Checkpoint, file_length: usize) {
    let mut bytes = 0;
    for tensor in checkpoint.tensors() {
        bytes += tensor.bytes().len();
        let bits = tensor.len() * tensor.dtype().bits();
        assert_eq!(tensor.bytes().len() * 8, bits, "{}", tensor.name());
        for length in [
            tensor.to_f32().map(|values| values.len()),
            tensor.to_f16().map(|values| values.len()),
            tensor.to_bf16().map(|values| values.len()),
            tensor.to_vec::<u8>().map(|values| values.len()),
            tensor.to_vec::<i32>().map(|values| values.len()),
            tensor.to_vec::<i64>().map(|values| values.len()),
            tensor.as_i8().map(<[i8]>::len),
            tensor.stored::<f32>().map(|values| values.len()),
        ]
        .into_iter()
        .flatten()
        {
            assert_eq!(length, tensor.len(), "{}", tensor.name());
        }
        if let Ok((rows, columns)) = tensor.matrix_shape() {
            // Rows of no bytes may be many: only what has bytes is worth reading.
            let rows = if columns == 0 { rows.min(4) } else { rows };
            let mut buffer = vec![0.0; rows * columns];
            let _ = tensor.read_rows_f32(0..rows, &mut buffer);
            let last = tensor.columns::<f32>(&[columns.saturating_sub(1)]);
            assert!(columns > 0 || last.is_err());
        }
        let layer = tensor.name().strip_suffix(".weight").map(|prefix| checkpoint.int8_linear(prefix));
        if let Some(Ok(Some(layer))) = layer {
            assert_eq!(layer.codes.nrows(), layer.scales.len());
            assert!(layer.codes.iter().all(|&code| code != i8::MIN));
        }
    }
    assert!(bytes <= file_length, "{bytes} bytes of tensors in a file of {file_length}");
    let _ = checkpoint.format();
}

fn open(bytes: Vec<u8>) {
    let length = bytes.len();
    let file = ("model.safetensors".to_owned(), Cow::Owned(bytes));
    match Checkpoint::from_bytes([file]) {
        Ok(checkpoint) => read_all(&checkpoint, length),
        Err(error) => assert!(error.to_string().contains("model.safetensors"), "{error}"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn overwritten_bytes_never_panic(damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let mut bytes = VALID.clone();
        for (place, byte) in damage {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        open(bytes);
    }

    /// Digits replaced by digits keep the JSON valid, so that sizes and offsets lie.
    #[test]
    fn changed_numbers_never_panic(damage in prop::collection::vec((any::<prop::sample::Index>(), b'0'..=b'9'), 1..5)) {
        let mut bytes = VALID.clone();
        let digits: Vec<_> = (8..bytes.len()).filter(|&place| bytes[place].is_ascii_digit()).collect();
        for (place, byte) in damage {
            bytes[*place.get(&digits)] = byte;
        }
        open(bytes);
    }

    #[test]
    fn cut_and_grown_files_never_panic(cut in any::<prop::sample::Index>(), tail in prop::collection::vec(any::<u8>(), 0..24)) {
        let mut bytes = VALID[..cut.index(VALID.len() + 1)].to_vec();
        bytes.extend(tail);
        open(bytes);
    }

    #[test]
    fn damaged_indices_never_panic(damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4)) {
        let mut index = index(r#"{"l.weight":"a.safetensors","l.SCB":"a.safetensors","a":"./b/../a.safetensors"}"#);
        for (place, byte) in damage {
            let place = place.index(index.len());
            index[place] = byte;
        }
        let files = [
            ("model.safetensors.index.json".to_owned(), Cow::Owned(index)),
            ("a.safetensors".to_owned(), Cow::Owned(VALID.clone())),
        ];
        if let Ok(checkpoint) = Checkpoint::from_bytes(files) {
            read_all(&checkpoint, VALID.len());
        }
    }
}
