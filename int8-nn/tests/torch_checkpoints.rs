//! PyTorch checkpoints that torch.save wrote (`tools/torch_checkpoints.py`), against the same numbers as safetensors and
//! against the logits that transformers computes from them.

mod common;

use std::path::PathBuf;

use int8_core::metrics::relative_l2;
use int8_nn::Model;
use int8_nn::checkpoint::{Checkpoint, DType, FileFormat, TensorView};

fn data(name: &str) -> PathBuf {
    common::data("torch").join(name)
}

/// What differs between two checkpoints, in every way of reading.
fn differences(left: &Checkpoint, right: &Checkpoint) -> Vec<String> {
    let mut found = Vec::new();
    let names = |checkpoint: &Checkpoint| checkpoint.names().map(str::to_owned).collect::<Vec<_>>();
    if names(left) != names(right) {
        found.push(format!("names {:?} and {:?}", names(left), names(right)));
    }
    for (left, right) in left.tensors().zip(right.tensors()) {
        let name = left.name();
        if (left.dtype(), left.shape()) != (right.dtype(), right.shape()) {
            found.push(format!(
                "{name}: {} {:?}, {} {:?}",
                left.dtype(),
                left.shape(),
                right.dtype(),
                right.shape()
            ));
            continue;
        }
        if left.bytes() != right.bytes() {
            found.push(format!("{name}: other bytes"));
        }
        let same = match left.dtype() {
            DType::I64 => left.to_vec::<i64>().unwrap() == right.to_vec::<i64>().unwrap(),
            _ => left.to_f32().unwrap() == right.to_f32().unwrap(),
        };
        if !same {
            found.push(format!("{name}: other values"));
        }
        if left.dtype() == DType::F16
            && left.stored::<half::f16>().unwrap() != right.stored::<half::f16>().unwrap()
        {
            found.push(format!("{name}: other values as stored"));
        }
        if let (Ok((rows, columns)), true) =
            (left.matrix_shape(), left.dtype().is_float() && !left.is_empty())
        {
            let mut ends = [vec![0.0; (rows - 1) * columns], vec![0.0; (rows - 1) * columns]];
            for (out, tensor) in ends.iter_mut().zip([left, right]) {
                tensor.read_rows_f32(1..rows, out).unwrap();
            }
            if ends[0] != ends[1] {
                found.push(format!("{name}: other rows"));
            }
            let wanted = [columns - 1, 0, columns / 2];
            let last = |tensor: &TensorView<'_>| tensor.slab(rows - 1).unwrap().to_f32().unwrap();
            if last(&left) != last(&right) {
                found.push(format!("{name}: another last slab"));
            }
            if left.columns::<f32>(&wanted).unwrap() != right.columns::<f32>(&wanted).unwrap() {
                found.push(format!("{name}: other columns"));
            }
        }
    }
    found
}

#[test]
fn torch_checkpoints_equal_their_safetensors_twin() {
    let twin = Checkpoint::open(data("safetensors")).unwrap();
    for folder in ["single", "sharded"] {
        let checkpoint = Checkpoint::open(data(folder)).unwrap();
        let differences = differences(&checkpoint, &twin);
        assert!(differences.is_empty(), "{folder}:\n{}", differences.join("\n"));
        assert_eq!(checkpoint.format().container, FileFormat::Torch);
        assert_eq!(checkpoint.files().len(), if folder == "single" { 1 } else { 2 });
    }
    // One file of several, and an index, by their names.
    let shard = Checkpoint::open(data("sharded/pytorch_model-00001-of-00002.bin")).unwrap();
    let index = Checkpoint::open(data("sharded/pytorch_model.bin.index.json")).unwrap();
    assert!(shard.len() < twin.len() && index.len() == twin.len());
}

#[test]
fn the_comparison_sees_a_difference() {
    let twin = Checkpoint::open(data("safetensors")).unwrap();
    let other = Checkpoint::open(data("sharded/pytorch_model-00001-of-00002.bin")).unwrap();
    assert!(!differences(&other, &twin).is_empty());
}

#[test]
fn layouts_and_ties_are_seen_as_such() {
    let checkpoint = Checkpoint::open(data("single")).unwrap();
    let layer = |name: &str| checkpoint.tensor(&format!("model.decoder.layers.0.{name}")).unwrap();
    for (name, row_major) in [
        ("self_attn.k_proj.weight", true),
        ("fc1.weight", false),
        ("fc2.weight", false),
        ("fc1.bias", true),
        ("fc2.bias", false),
    ] {
        assert_eq!(layer(name).is_row_major(), row_major, "{name}");
        assert_eq!(layer(name).byte_len(), layer(name).bytes().len(), "{name}");
    }
    // Tied: the second name by the alphabet is tied to the first, and its bytes count once.
    assert_eq!(checkpoint.tied_to("model.decoder.embed_tokens.weight"), Some("lm_head.weight"));
    assert_eq!(checkpoint.tied_to("lm_head.weight"), None);
    // Slices of one storage are no ties.
    assert_eq!(checkpoint.tied_to("model.decoder.layers.0.self_attn.q_proj.weight"), None);
    let twin = Checkpoint::open(data("safetensors")).unwrap();
    let embedding = twin.tensor("lm_head.weight").unwrap().byte_len();
    assert_eq!(checkpoint.total_bytes() + u64::try_from(embedding).unwrap(), twin.total_bytes());
    assert!(!checkpoint.contains("extra.no_tensor"));
    assert_eq!(checkpoint.tensor("extra.position_ids").unwrap().shape(), [1, 7]);
}

#[test]
fn models_run_from_torch_checkpoints() {
    let golden = Checkpoint::open(data("golden.safetensors")).unwrap();
    let ids = golden.tensor("input_ids").unwrap().to_vec::<i32>().unwrap();
    let ids: Vec<u32> = ids.into_iter().map(|id| id.try_into().unwrap()).collect();
    let expected = golden.tensor("logits").unwrap().to_f32().unwrap();
    let logits = |folder: &str, int8: bool| -> Vec<f32> {
        let loader = Model::load(data(folder)).unwrap();
        let model = if int8 { loader.int8().build() } else { loader.build() }.unwrap();
        model.logits(&ids).unwrap().into_iter().collect()
    };
    let error = relative_l2(&logits("single", false), &expected);
    assert!(error < 1e-5, "off by {error:.2e} (relative L2)");
    for int8 in [false, true] {
        let twin = logits("safetensors", int8);
        for folder in ["single", "sharded"] {
            assert!(logits(folder, int8) == twin, "{folder}, int8: {int8}");
        }
    }
}

#[test]
fn safetensors_win_where_both_are_there() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(data("single/pytorch_model.bin"), folder.path().join("pytorch_model.bin")).unwrap();
    assert_eq!(Checkpoint::open(folder.path()).unwrap().format().container, FileFormat::Torch);
    std::fs::copy(data("safetensors/model.safetensors"), folder.path().join("model.safetensors")).unwrap();
    assert_eq!(Checkpoint::open(folder.path()).unwrap().format().container, FileFormat::Safetensors);
}
