//! What is written reads back, equals what the official writer makes, and is never mistaken for finished too early.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;

use safetensors::tensor::TensorView as Written;

use super::{Checkpoint, CheckpointError, CheckpointWriter, DType, Existing, TensorSpec, WriteOptions};

/// Tensors of many kinds, with contents that tell them apart.
fn tensors() -> Vec<(TensorSpec, Vec<u8>)> {
    let spec = |name: &str, dtype, shape: &[usize]| TensorSpec {
        name: name.to_owned(),
        dtype,
        shape: shape.to_vec(),
    };
    let mut tensors = vec![
        spec("embed.weight", DType::F16, &[37, 8]),
        spec("norm.weight", DType::BF16, &[8]),
        spec("empty", DType::F32, &[0, 4]),
        spec("scalar", DType::F64, &[]),
        spec("ids", DType::I64, &[3]),
        spec("mask", DType::Bool, &[5]),
    ];
    for layer in 0..6 {
        tensors.push(spec(&format!("h.{layer}.weight"), DType::I8, &[17, 8]));
        tensors.push(spec(&format!("h.{layer}.SCB"), DType::F32, &[17]));
        tensors.push(spec(&format!("h.{layer}.weight_format"), DType::U8, &[]));
    }
    let mut seed = 1u8;
    let mut contents = |length| {
        seed = seed.wrapping_add(17);
        (0..length).map(|k: usize| seed.wrapping_mul(u8::try_from(k % 120).unwrap())).collect()
    };
    tensors.into_iter().map(|spec| (spec.clone(), contents(spec.byte_len().unwrap()))).collect()
}

fn specs() -> Vec<TensorSpec> {
    tensors().into_iter().map(|(spec, _)| spec).collect()
}

fn options(max_shard_bytes: u64, existing: Existing) -> WriteOptions {
    WriteOptions { max_shard_bytes, existing, fingerprint: "source A".to_owned() }
}

const FILES: [(&str, &[u8]); 2] = [("config.json", b"{\"model_type\":\"opt\"}"), ("tokenizer.json", b"{}")];

/// Writes everything that is still missing, except that it stops, as if killed, after `steps` pieces. Returns whether
/// it got to the end.
fn write_all(mut writer: CheckpointWriter, steps: usize) -> bool {
    let mut step = 0;
    for (spec, bytes) in tensors() {
        if writer.is_written(&spec.name) {
            continue;
        }
        for piece in bytes.chunks(100) {
            if step == steps {
                return false;
            }
            step += 1;
            writer.write(&spec.name, piece).unwrap();
        }
    }
    let (total, written) = writer.progress();
    assert_eq!(total, written);
    writer.finish(&FILES).unwrap();
    true
}

/// All files of a folder with their contents.
fn contents(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let name = |entry: &fs::DirEntry| entry.file_name().into_string().unwrap();
    fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (name(&entry), fs::read(entry.path()).unwrap()))
        .collect()
}

/// The same files with the same bytes; names only those that differ.
fn assert_same(left: &BTreeMap<String, Vec<u8>>, right: &BTreeMap<String, Vec<u8>>) {
    assert!(left.keys().eq(right.keys()), "{:?} and {:?}", left.keys(), right.keys());
    let different: Vec<_> =
        left.iter().filter(|(name, bytes)| right[*name] != **bytes).map(|(name, _)| name).collect();
    assert!(different.is_empty(), "different contents: {different:?}");
}

fn assert_reads_back(folder: &Path) {
    let checkpoint = Checkpoint::open(folder).unwrap();
    assert_eq!(checkpoint.len(), tensors().len());
    for (spec, bytes) in tensors() {
        let tensor = checkpoint.tensor(&spec.name).unwrap();
        assert_eq!(
            (tensor.dtype(), tensor.shape(), &*tensor.bytes()),
            (spec.dtype, &spec.shape[..], &bytes[..]),
            "{}",
            spec.name
        );
    }
    assert_eq!(checkpoint.format().metadata["format"], "pt");
    assert_eq!(checkpoint.source().read_config().unwrap()["model_type"], "opt");
}

#[test]
fn one_shard_equals_the_official_writers_file() {
    let folder = tempfile::tempdir().unwrap();
    let writer =
        CheckpointWriter::create(folder.path(), &specs(), &options(u64::MAX, Existing::Refuse)).unwrap();
    assert!(write_all(writer, usize::MAX));
    let tensors = tensors();
    let views = tensors.iter().map(|(spec, bytes)| {
        (spec.name.as_str(), Written::new(spec.dtype.to_stored(), spec.shape.clone(), bytes).unwrap())
    });
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let official = safetensors::serialize(views, Some(metadata)).unwrap();
    assert_eq!(contents(folder.path())["model.safetensors"], official);
    assert_reads_back(folder.path());
    let names: Vec<_> = contents(folder.path()).into_keys().collect();
    assert_eq!(names, ["config.json", "model.safetensors", "tokenizer.json"]);
}

#[test]
fn shards_keep_to_their_size_and_any_order_of_pieces_gives_the_same_bytes() {
    let [forward, backward] = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let create =
        |folder: &Path| CheckpointWriter::create(folder, &specs(), &options(300, Existing::Refuse)).unwrap();
    assert!(write_all(create(forward.path()), usize::MAX));
    let mut writer = create(backward.path());
    for (spec, bytes) in tensors().iter().rev() {
        for piece in bytes.chunks(7) {
            writer.write(&spec.name, piece).unwrap();
        }
    }
    writer.finish(&FILES).unwrap();
    assert_same(&contents(forward.path()), &contents(backward.path()));
    assert_reads_back(forward.path());
    let checkpoint = Checkpoint::open(forward.path()).unwrap();
    assert!(checkpoint.files().len() >= 5, "{} files", checkpoint.files().len());
    for file in checkpoint.files() {
        let bytes: usize = checkpoint.tensors().filter(|t| t.file() == file).map(|t| t.byte_len()).sum();
        let alone = checkpoint.tensors().filter(|t| t.file() == file).count() == 1;
        assert!(bytes <= 300 || alone, "{file} holds {bytes} bytes");
    }
}

/// Stopped after every possible number of pieces: never a folder that could be taken for finished, always one that
/// resumes, and to the same bytes as a run that was never stopped.
#[test]
fn an_interrupted_run_never_looks_finished_and_resumes_to_the_same_bytes() {
    for max_shard_bytes in [300, u64::MAX] {
        let whole = tempfile::tempdir().unwrap();
        let create = |folder: &Path, existing| {
            CheckpointWriter::create(folder, &specs(), &options(max_shard_bytes, existing)).unwrap()
        };
        assert!(write_all(create(whole.path(), Existing::Refuse), usize::MAX));
        let expected = contents(whole.path());
        for steps in 0.. {
            let folder = tempfile::tempdir().unwrap();
            let finished = write_all(create(folder.path(), Existing::Resume), steps);
            if finished {
                assert!(steps > 15, "{steps}");
                break;
            }
            let left = contents(folder.path());
            assert!(!left.contains_key("config.json") && left.contains_key("int8-write.partial"));
            assert!(!left.contains_key("model.safetensors.index.json"));
            assert!(Checkpoint::open(folder.path()).is_err(), "after {steps} pieces");
            // Stopped once more on the way.
            write_all(create(folder.path(), Existing::Resume), 3);
            assert!(write_all(create(folder.path(), Existing::Resume), usize::MAX));
            assert_same(&contents(folder.path()), &expected);
        }
    }
}

/// Where the child process of the next test writes.
const CHILD_FOLDER: &str = "INT8_TEST_WRITE_FOLDER";

/// Killed without warning at ten points of its life: the same promises as when it stops by itself.
#[test]
fn a_killed_run_never_looks_finished_and_resumes_to_the_same_bytes() {
    let whole = tempfile::tempdir().unwrap();
    let create =
        |folder: &Path| CheckpointWriter::create(folder, &specs(), &options(300, Existing::Resume)).unwrap();
    assert!(write_all(create(whole.path()), usize::MAX));
    let expected = contents(whole.path());
    let mut killed = 0;
    for point in 0..10 {
        let folder = tempfile::tempdir().unwrap();
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "checkpoint::write_tests::child_that_writes_until_killed"])
            .env(CHILD_FOLDER, folder.path())
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        // By what it has done, not by the clock: the points are then the same on a slow machine.
        while contents_len(folder.path()) <= point && child.try_wait().unwrap().is_none() {
            std::thread::yield_now();
        }
        child.kill().unwrap();
        killed += usize::from(!child.wait().unwrap().success());
        if !folder.path().join("config.json").exists() {
            assert!(
                Checkpoint::open(folder.path()).is_err() || folder.path().join(super::write::INDEX).exists()
            );
        }
        let finished = folder.path().join("config.json").exists();
        if !finished || folder.path().join("int8-write.partial").exists() {
            assert!(write_all(create(folder.path()), usize::MAX));
        }
        assert_same(&contents(folder.path()), &expected);
    }
    assert!(killed >= 5, "only {killed} of 10 were killed in time");
}

/// Number of files, of a folder that another process is changing.
fn contents_len(folder: &Path) -> usize {
    fs::read_dir(folder).map_or(0, Iterator::count)
}

/// Run as a child process by the test above, which kills it.
#[test]
fn child_that_writes_until_killed() {
    let Some(folder) = std::env::var_os(CHILD_FOLDER) else {
        eprintln!("SKIPPED: only its parent says where to write");
        return;
    };
    let create = CheckpointWriter::create(folder, &specs(), &options(300, Existing::Resume));
    write_all(create.unwrap(), usize::MAX);
}

#[test]
fn an_earlier_checkpoint_is_kept_unless_told_otherwise() {
    let folder = tempfile::tempdir().unwrap();
    let create = |specs: &[TensorSpec], fingerprint: &str, existing| {
        let options = WriteOptions { fingerprint: fingerprint.to_owned(), ..options(300, existing) };
        CheckpointWriter::create(folder.path(), specs, &options)
    };
    let exists = |result: Result<CheckpointWriter, CheckpointError>| {
        matches!(result, Err(CheckpointError::Exists { .. }))
    };

    assert!(!write_all(create(&specs(), "source A", Existing::Refuse).unwrap(), 12));
    let unfinished = contents(folder.path());
    assert!(exists(create(&specs(), "source A", Existing::Refuse)));
    assert!(exists(create(&specs(), "source B", Existing::Resume)));
    assert!(exists(create(&specs()[1..], "source A", Existing::Resume)));
    assert_same(&contents(folder.path()), &unfinished);
    assert!(write_all(create(&specs(), "source A", Existing::Resume).unwrap(), usize::MAX));

    let finished = contents(folder.path());
    assert!(exists(create(&specs(), "source A", Existing::Refuse)));
    assert!(exists(create(&specs(), "source A", Existing::Resume)));
    assert_same(&contents(folder.path()), &finished);

    fs::write(folder.path().join("notes.safetensors"), "kept").unwrap();
    let writer = create(&specs()[..2], "source B", Existing::Replace).unwrap();
    let names: Vec<_> = contents(folder.path()).into_keys().collect();
    assert_eq!(names, ["int8-write.partial", "notes.safetensors", "tokenizer.json"]);
    drop(writer);
}

#[test]
fn mistakes_of_the_caller_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let spec = |name: &str, dtype, shape: &[usize]| TensorSpec {
        name: name.to_owned(),
        dtype,
        shape: shape.to_vec(),
    };
    let create =
        |specs: &[TensorSpec]| CheckpointWriter::create(folder.path(), specs, &WriteOptions::default());
    let w = || spec("w", DType::F16, &[2]);
    assert!(matches!(create(&[w(), w()]), Err(CheckpointError::DuplicateTensor { .. })));
    assert!(matches!(
        create(&[spec("__metadata__", DType::U8, &[1])]),
        Err(CheckpointError::DuplicateTensor { .. })
    ));
    assert!(matches!(
        create(&[spec("w", DType::F16, &[usize::MAX])]),
        Err(CheckpointError::ShapeOverflow { .. })
    ));
    assert!(matches!(create(&[spec("w", DType::F4, &[1])]), Err(CheckpointError::ShapeOverflow { .. })));
    assert!(contents(folder.path()).is_empty(), "nothing is written for an impossible plan");

    let mut writer = create(&[w(), spec("v", DType::F16, &[2])]).unwrap();
    assert!(matches!(writer.write("x", &[0]), Err(CheckpointError::MissingTensor { .. })));
    writer.write("w", &[0; 3]).unwrap();
    assert!(matches!(writer.write("w", &[0; 2]), Err(CheckpointError::Selection { .. })));
    assert!(!writer.is_written("w"));
    writer.write("w", &[0]).unwrap();
    assert!(writer.is_written("w") && !writer.is_written("v") && !writer.is_written("x"));
    let error = writer.finish(&FILES).unwrap_err();
    assert!(
        matches!(&error, CheckpointError::Unfinished { tensor, expected: 4, found: 0, .. } if tensor == "v"),
        "{error}"
    );
    assert!(!contents(folder.path()).contains_key("config.json"));
}

#[test]
fn a_file_name_that_leaves_the_folder_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let writer = CheckpointWriter::create(folder.path().join("out"), &[], &WriteOptions::default()).unwrap();
    let error = writer.finish(&[("../tokenizer.json", b"{}")]).unwrap_err();
    assert!(matches!(error, CheckpointError::UnsafeName { .. }), "{error}");
    assert!(!folder.path().join("tokenizer.json").exists());
}
