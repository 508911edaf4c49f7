//! Odd but valid checkpoints: these must open and read as they are.

use std::borrow::Cow;
use std::path::Path;

use int8_nn::checkpoint::{Checkpoint, CheckpointError, DType};

use crate::files::{self, Files, entry, file, floats, header, index, one, tensors};

/// A valid input: what is in the folder, what is opened, and a check that says what is wrong.
struct Case {
    name: &'static str,
    files: Files,
    open: &'static str,
    check: fn(&Checkpoint) -> Result<bool, CheckpointError>,
}

/// What [`one`] holds.
const ONE: [f32; 4] = [1.0, -2.0, 3.5, 0.0];

fn single(
    name: &'static str,
    bytes: Vec<u8>,
    check: fn(&Checkpoint) -> Result<bool, CheckpointError>,
) -> Case {
    Case { name, files: vec![("model.safetensors", bytes)], open: "", check }
}

fn cases() -> Vec<Case> {
    let reads_one: fn(&Checkpoint) -> Result<bool, CheckpointError> = |c| Ok(c.tensor("w")?.to_f32()? == ONE);
    let w = || entry("w", "F32", "[2,2]", "[0,16]");
    let sharded = |name, map, a: Vec<u8>, b: Vec<u8>, check| Case {
        name,
        files: vec![("model.safetensors.index.json", index(map)), ("a.safetensors", a), ("b.safetensors", b)],
        open: "",
        check,
    };
    vec![
        sharded(
            "an index entry that no shard holds",
            r#"{"v":"a.safetensors","w":"a.safetensors","x":"b.safetensors"}"#,
            one("w"),
            one("x"),
            |c| Ok(c.tensor("w")?.to_f32()? == ONE && c.get("v").is_none() && c.len() == 2),
        ),
        sharded(
            "a tensor in another shard than stated",
            r#"{"v":"a.safetensors","w":"b.safetensors"}"#,
            one("w"),
            one("v"),
            reads_one,
        ),
        sharded(
            "a tensor in two shards: the later one's",
            r#"{"v":"b.safetensors","w":"a.safetensors"}"#,
            one("w"),
            tensors(&[("v", "U8", &[1], &[0]), ("w", "U8", &[1], &[7])]),
            |c| Ok(c.tensor("w")?.to_vec::<u8>()? == [7] && c.unread() == ["v"]),
        ),
        single("no tensors", file("{}", b""), |c| Ok(c.is_empty() && c.total_bytes() == 0)),
        single(
            "empty metadata",
            file(&format!(r#"{{"__metadata__":{{}},{}}}"#, w()), &floats(&ONE)),
            reads_one,
        ),
        single(
            "metadata null",
            file(&format!(r#"{{"__metadata__":null,{}}}"#, w()), &floats(&ONE)),
            reads_one,
        ),
        single(
            "metadata last",
            file(&format!(r#"{{{},"__metadata__":{{"format":"pt"}}}}"#, w()), &floats(&ONE)),
            |c| Ok(c.tensor("w")?.to_f32()? == ONE && c.format().metadata["format"] == "pt" && c.len() == 1),
        ),
        single("padded header", file(&format!("{{{}}}     \n", w()), &floats(&ONE)), reads_one),
        single("a scalar", tensors(&[("w", "F32", &[], &floats(&[7.0]))]), |c| {
            let w = c.tensor("w")?;
            Ok(w.to_f32()? == [7.0] && w.len() == 1 && w.shape().is_empty())
        }),
        single(
            "a dimension of zero",
            tensors(&[("w", "F32", &[0, 5], &[]), ("v", "F16", &[3, 0], &[])]),
            |c| {
                let (w, v) = (c.tensor("w")?, c.tensor("v")?);
                let columns: Vec<f32> = w.columns(&[4, 0])?;
                v.read_rows_f32(0..3, &mut [])?;
                Ok(w.is_empty()
                    && w.to_f32()?.is_empty()
                    && columns.is_empty()
                    && v.to_matrix_f32()?.dim() == (3, 0))
            },
        ),
        single(
            "empty tensors between others",
            tensors(&[
                ("a", "U8", &[0], &[]),
                ("b", "U8", &[2], &[8, 9]),
                ("c", "I64", &[0], &[]),
                ("d", "U8", &[1], &[7]),
            ]),
            |c| Ok(c.tensor("b")?.to_vec::<u8>()? == [8, 9] && c.tensor("d")?.to_vec::<u8>()? == [7]),
        ),
        single(
            "header order unlike data order",
            file(
                &header(&[entry("b", "F32", "[1]", "[4,8]"), entry("a", "F32", "[1]", "[0,4]")]),
                &floats(&[1.0, 2.0]),
            ),
            |c| Ok(c.tensor("a")?.to_f32()? == [1.0] && c.tensor("b")?.to_f32()? == [2.0]),
        ),
        single(
            "fields in another order, unknown ones beside",
            {
                let header =
                    r#"{"w":{"extra":[1,{"x":2}],"data_offsets":[0,16],"shape":[2,2],"dtype":"F32"}}"#;
                file(header, &floats(&ONE))
            },
            reads_one,
        ),
        single("names beyond ASCII", tensors(&[("größe/層.0", "U8", &[1], &[5])]), |c| {
            Ok(c.tensor("größe/層.0")?.to_vec::<u8>()? == [5])
        }),
        single("an empty name", tensors(&[("", "U8", &[1], &[5])]), |c| {
            Ok(c.tensor("")?.to_vec::<u8>()? == [5])
        }),
        single(
            "sub-byte and 8-bit floats are listed",
            {
                tensors(&[
                    ("a", "F4", &[4], &[0; 2]),
                    ("b", "F8_E5M2", &[3], &[0; 3]),
                    ("c", "F6_E2M3", &[4], &[0; 3]),
                ])
            },
            |c| {
                let dtypes: Vec<_> = c.tensors().map(|tensor| tensor.dtype()).collect();
                Ok(dtypes == [DType::F4, DType::F8E5M2, DType::F6E2M3] && c.total_bytes() == 8)
            },
        ),
        Case {
            name: "extra files beside the weights",
            files: vec![
                ("model.safetensors", one("w")),
                ("golden.safetensors", b"not read".to_vec()),
                ("pytorch_model.bin", b"not read".to_vec()),
                ("config.json", b"\xef\xbb\xbf{\"model_type\":\"opt\"}".to_vec()),
                ("onnx/model.onnx", vec![]),
            ],
            open: "",
            check: |c| Ok(c.tensor("w")?.to_f32()? == ONE && c.source().read_config()?["model_type"] == "opt"),
        },
        Case {
            name: "a file by its name",
            files: vec![("any.safetensors", one("w"))],
            open: "any.safetensors",
            check: reads_one,
        },
        Case {
            name: "the only safetensors file",
            files: vec![("any.safetensors", one("w"))],
            open: "",
            check: reads_one,
        },
        Case {
            name: "the only shard, without an index",
            files: vec![("model-00001-of-00001.safetensors", one("w"))],
            open: "",
            check: reads_one,
        },
        Case {
            name: "an index of one shard",
            files: vec![
                ("model.safetensors.index.json", index(r#"{"w":"model-00001-of-00001.safetensors"}"#)),
                ("model-00001-of-00001.safetensors", one("w")),
            ],
            open: "",
            check: reads_one,
        },
        Case {
            name: "an index by its name",
            files: vec![
                ("model.fp16.safetensors.index.json", index(r#"{"w":"a.safetensors"}"#)),
                ("a.safetensors", one("w")),
                ("model.safetensors", one("v")),
            ],
            open: "model.fp16.safetensors.index.json",
            check: reads_one,
        },
        Case {
            name: "shards in a folder below, tensors the index does not list",
            files: vec![
                (
                    "model.safetensors.index.json",
                    index(r#"{"w":"parts/a.safetensors","v":"parts/b.safetensors"}"#),
                ),
                ("parts/a.safetensors", one("w")),
                ("parts/b.safetensors", tensors(&[("v", "U8", &[1], &[1]), ("unlisted", "U8", &[1], &[2])])),
            ],
            open: "",
            check: |c| {
                Ok(c.len() == 3 && c.files().len() == 2 && c.tensor("unlisted")?.to_vec::<u8>()? == [2])
            },
        },
    ]
}

#[test]
fn odd_but_valid_checkpoints_open_and_read() {
    let mut failures = Vec::new();
    for case in cases() {
        let folder = tempfile::tempdir().unwrap();
        files::write(folder.path(), &case.files);
        match Checkpoint::open(folder.path().join(case.open)).and_then(|checkpoint| (case.check)(&checkpoint))
        {
            Ok(true) => {}
            Ok(false) => failures.push(format!("{}: opened, but reads differently", case.name)),
            Err(error) => failures.push(format!("{}: {error}", case.name)),
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// Headers of every length modulo 16 put the data at every alignment; all conversions must give the same numbers.
#[test]
fn data_reads_at_every_alignment() {
    let halves: Vec<u8> = [0x3c00u16, 0xc000, 0x4300, 0].iter().flat_map(|bits| bits.to_le_bytes()).collect();
    for padding in 0..16 {
        let entries = [entry("w", "F32", "[2,2]", "[0,16]"), entry("h", "F16", "[4]", "[16,24]")];
        let header = format!("{}{}", header(&entries), " ".repeat(padding));
        let bytes = file(&header, &[floats(&ONE), halves.clone()].concat());
        let folder = tempfile::tempdir().unwrap();
        files::write(folder.path(), &vec![("model.safetensors", bytes.clone())]);
        let mapped = Checkpoint::open(folder.path()).unwrap();
        let embedded = Checkpoint::from_bytes([("model.safetensors".to_owned(), Cow::Owned(bytes))]).unwrap();
        for checkpoint in [mapped, embedded] {
            let (w, h) = (checkpoint.tensor("w").unwrap(), checkpoint.tensor("h").unwrap());
            assert_eq!(w.to_f32().unwrap(), ONE);
            assert_eq!(*w.stored::<f32>().unwrap(), ONE);
            assert_eq!(w.column_f32(1).unwrap(), [-2.0, 0.0]);
            assert_eq!(h.to_f32().unwrap(), ONE);
            assert_eq!(h.stored::<half::f16>().unwrap().len(), 4);
            let mut row = [0.0; 2];
            w.read_rows_f32(1..2, &mut row).unwrap();
            assert_eq!(row, [3.5, 0.0]);
        }
    }
}

/// A Hub cache's snapshot consists of links into a blob store beside it.
#[cfg(unix)]
#[test]
fn links_out_of_the_folder_are_followed() {
    use std::os::unix::fs::symlink;

    let cache = tempfile::tempdir().unwrap();
    files::write(
        cache.path(),
        &vec![
            ("blobs/0a1b", one("w")),
            ("blobs/2c3d", index(r#"{"w":"model-00001-of-00001.safetensors"}"#)),
            ("snapshots/main/", vec![]),
        ],
    );
    let snapshot = cache.path().join("snapshots/main");
    symlink("../../blobs/0a1b", snapshot.join("model-00001-of-00001.safetensors")).unwrap();
    symlink("../../blobs/2c3d", snapshot.join("model.safetensors.index.json")).unwrap();
    let checkpoint = Checkpoint::open(&snapshot).unwrap();
    assert_eq!(checkpoint.tensor("w").unwrap().to_f32().unwrap(), ONE);

    // A download that was cleaned away leaves links that lead nowhere.
    std::fs::remove_file(cache.path().join("blobs/0a1b")).unwrap();
    let error = Checkpoint::open(&snapshot).unwrap_err();
    assert!(matches!(error, CheckpointError::MissingFile { .. }), "{error:?}");
    assert!(error.to_string().contains("points to is gone"), "{error}");
}

/// A named pipe without a writer: opening it would wait for ever.
#[cfg(unix)]
#[test]
fn a_device_in_place_of_a_file_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink("/dev/zero", folder.path().join("model.safetensors")).unwrap();
    std::os::unix::fs::symlink("/dev/zero", folder.path().join("config.json")).unwrap();
    let error = Checkpoint::open(folder.path()).unwrap_err();
    assert!(matches!(error, CheckpointError::NotRegular { .. }), "{error:?}");
    files::write(folder.path(), &vec![("other.safetensors", one("w"))]);
    let checkpoint = Checkpoint::open(folder.path().join("other.safetensors")).unwrap();
    let error = checkpoint.source().read_config().unwrap_err();
    assert!(matches!(error, CheckpointError::NotRegular { .. }), "{error:?}");
}

/// A configuration far beyond any honest size (sparse, so it costs no disk) is refused by its size, unread.
#[test]
fn a_huge_configuration_is_refused_unread() {
    let folder = tempfile::tempdir().unwrap();
    files::write(folder.path(), &vec![("model.safetensors", one("w")), ("config.json", vec![])]);
    let config = std::fs::OpenOptions::new().write(true).open(folder.path().join("config.json")).unwrap();
    config.set_len(1 << 40).unwrap();
    let error = Checkpoint::open(folder.path()).unwrap().source().read_config().unwrap_err();
    assert!(matches!(error, CheckpointError::TooLarge { .. }), "{error:?}");
    assert!(
        error.to_string().contains("config.json") && error.to_string().contains("1099511627776"),
        "{error}"
    );
}

#[test]
fn embedded_files_read_like_a_folder() {
    let files: [(String, Cow<'static, [u8]>); 3] = [
        ("model.safetensors".to_owned(), Cow::Owned(one("w"))),
        ("config.json".to_owned(), Cow::Borrowed(br#"{"model_type":"opt"}"#)),
        ("tokenizer.json".to_owned(), Cow::Borrowed(b"{}")),
    ];
    let checkpoint = Checkpoint::from_bytes(files).unwrap();
    assert_eq!(checkpoint.tensor("w").unwrap().to_f32().unwrap(), ONE);
    assert_eq!(checkpoint.tensor("w").unwrap().file(), "embedded/model.safetensors");
    assert_eq!(checkpoint.source().read_config().unwrap()["model_type"], "opt");
    assert_eq!(checkpoint.source().names().unwrap(), ["config.json", "model.safetensors", "tokenizer.json"]);
    assert!(checkpoint.source().path().is_none());
    let error = checkpoint.source().read_text("merges.txt").unwrap_err();
    assert!(error.to_string().contains("embedded/merges.txt"), "{error}");
    let nothing: [(String, Cow<'static, [u8]>); 0] = [];
    assert!(matches!(Checkpoint::from_bytes(nothing).unwrap_err(), CheckpointError::NoWeights { .. }));
}

/// A bare file name has an empty parent path, which must mean the current folder.
#[test]
fn a_path_without_a_folder_is_relative_to_the_current_one() {
    let error = Checkpoint::open(Path::new("no-such-file.safetensors")).unwrap_err();
    assert!(matches!(error, CheckpointError::NotFound { .. }), "{error:?}");
}
