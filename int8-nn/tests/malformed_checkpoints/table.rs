//! The malformed checkpoints: what is in the folder, what is done with it, which error must come of it.

use int8_nn::checkpoint::{Checkpoint, CheckpointError as Error};

use crate::files::{Files, entry, file, floats, header, index, one, tensors, with_length};

/// One malformed input.
#[derive(Clone)]
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) files: Files,
    /// What is opened: a name inside the folder, or the folder itself if empty.
    pub(crate) open: &'static str,
    /// What is done once it is open; opening alone must fail where this does nothing.
    pub(crate) then: fn(&Checkpoint) -> Result<(), Error>,
    pub(crate) variant: &'static str,
    pub(crate) is_variant: fn(&Error) -> bool,
    /// What the message must name: file, tensor, expected, found.
    pub(crate) names: Vec<&'static str>,
}

/// The name of a variant, and the test for it.
macro_rules! variant {
    ($variant:ident) => {
        (
            stringify!($variant),
            (|error: &Error| matches!(error, Error::$variant { .. })) as fn(&Error) -> bool,
        )
    };
}

pub(crate) use variant;

pub(crate) type Variant = (&'static str, fn(&Error) -> bool);

pub(crate) fn case(
    name: &'static str,
    files: Files,
    (variant, is_variant): Variant,
    names: &[&'static str],
) -> Case {
    Case { name, files, open: "", then: |_| Ok(()), variant, is_variant, names: names.to_vec() }
}

/// A folder with one `model.safetensors` of these bytes; the message must name that file.
fn single(name: &'static str, bytes: Vec<u8>, variant: Variant, names: &[&'static str]) -> Case {
    let mut case = case(name, vec![("model.safetensors", bytes)], variant, names);
    case.names.push("model.safetensors");
    case
}

/// As [`single`], for a file that opens; `then` must fail.
fn opened(
    name: &'static str,
    bytes: Vec<u8>,
    then: fn(&Checkpoint) -> Result<(), Error>,
    variant: Variant,
    names: &[&'static str],
) -> Case {
    Case { then, ..single(name, bytes, variant, names) }
}

/// A folder with an index of this `weight_map` and further files; the message must name the index or a shard.
fn sharded(
    name: &'static str,
    weight_map: &str,
    files: Files,
    variant: Variant,
    names: &[&'static str],
) -> Case {
    let index = ("model.safetensors.index.json", index(weight_map));
    case(name, [vec![index], files].concat(), variant, names)
}

/// All cases.
pub(crate) fn cases() -> Vec<Case> {
    [whole_files(), entries(), layouts(), indices(), folders(), int8_layers(), lookups()]
        .into_iter()
        .flatten()
        .collect()
}

/// Length field, header as a whole, size of the file.
fn whole_files() -> Vec<Case> {
    let one_tensor = header(&[entry("w", "F32", "[2]", "[0,8]")]);
    vec![
        single("empty file", vec![], variant!(Truncated), &["expected at least 8", "found 0"]),
        single("three bytes", vec![1, 2, 3], variant!(Truncated), &["length of the header", "found 3"]),
        single("nothing but a length", with_length(100, b"", b""), variant!(Truncated), &["108", "found 8"]),
        single("header of no bytes", file("", b""), variant!(Header), &["EOF"]),
        single("header cut off", with_length(500, b"{\"w\":", b""), variant!(Truncated), &["508", "13"]),
        single(
            "header length u64::MAX",
            with_length(u64::MAX, b"{}", b""),
            variant!(HeaderLength),
            &["100000000", "18446744073709551615"],
        ),
        single(
            "header length of 2^63",
            with_length(1 << 63, b"{}", b""),
            variant!(HeaderLength),
            &["9223372036854775808"],
        ),
        single(
            "header over the limit",
            with_length(100_000_001, b"{}", b""),
            variant!(HeaderLength),
            &["100000001"],
        ),
        single(
            "header within the limit, beyond the file",
            with_length(100_000_000, b"{}", b""),
            variant!(Truncated),
            &["100000008", "found 10"],
        ),
        single(
            "header not UTF-8",
            with_length(4, b"{\xff\xfe}", b""),
            variant!(Header),
            &["UTF-8", "byte 1"],
        ),
        single("header not JSON", file("weights!", b""), variant!(Header), &["at its start"]),
        single("header a JSON array", file("[1,2]", b""), variant!(Header), &["invalid type"]),
        single("header not closed", file("{\"w\":{}", b""), variant!(Header), &["`w`"]),
        single("text after the header's object", file("{}x", b""), variant!(Header), &["trailing"]),
        single("two objects", file("{}{}", b""), variant!(Header), &["trailing"]),
        single(
            "deep nesting",
            file(
                &format!(
                    r#"{{"w":{{"dtype":"F32","shape":[0],"data_offsets":[0,0],"x":{}"#,
                    "[".repeat(100_000)
                ),
                b"",
            ),
            variant!(Header),
            &["`w`", "EOF"],
        ),
        single(
            "data shorter than stated",
            file(&one_tensor, &[0; 7]),
            variant!(Truncated),
            &["`w`", "cut off"],
        ),
        single("no data at all", file(&one_tensor, b""), variant!(Truncated), &["`w`", "not all there"]),
        single(
            "bytes after the last tensor",
            file(&one_tensor, &[0; 9]),
            variant!(TrailingBytes),
            &["follow"],
        ),
        single(
            "bytes but no tensors",
            file("{}", &[0; 4]),
            variant!(TrailingBytes),
            &["expected 10", "found 14"],
        ),
        single(
            "a zip archive",
            b"PK\x03\x04\x00\x00\x08\x08data.pkl".to_vec(),
            variant!(UnsupportedFormat),
            &["PyTorch", "rename"],
        ),
        single(
            "a Git LFS pointer",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n".to_vec(),
            variant!(UnsupportedFormat),
            &["git lfs pull"],
        ),
        single(
            "a web page",
            b"<!DOCTYPE html><html>Sign in</html>".to_vec(),
            variant!(UnsupportedFormat),
            &["web page"],
        ),
        single(
            "GGUF by another name",
            b"GGUF\x03\x00\x00\x00....".to_vec(),
            variant!(UnsupportedFormat),
            &["GGUF"],
        ),
    ]
}

/// Single entries of the header.
fn entries() -> Vec<Case> {
    let damaged = |name, entry: &str, names| {
        single(name, file(&format!("{{{entry}}}"), &[0; 8]), variant!(Header), names)
    };
    vec![
        damaged("unknown dtype", &entry("w", "F33", "[2]", "[0,8]"), &["`w`", "F33"]),
        damaged("dtype a number", r#""w":{"dtype":32,"shape":[2],"data_offsets":[0,8]}"#, &["`w`"]),
        damaged("no dtype", r#""w":{"shape":[2],"data_offsets":[0,8]}"#, &["`w`", "dtype"]),
        damaged("no shape", r#""w":{"dtype":"F32","data_offsets":[0,8]}"#, &["`w`", "shape"]),
        damaged("no offsets", r#""w":{"dtype":"F32","shape":[2]}"#, &["`w`", "data_offsets"]),
        damaged("entry not an object", r#""w":7"#, &["`w`"]),
        damaged("entry null", r#""w":null"#, &["`w`"]),
        damaged("negative dimension", &entry("w", "F32", "[-2]", "[0,8]"), &["`w`", "-2"]),
        damaged("fractional dimension", &entry("w", "F32", "[2.5]", "[0,8]"), &["`w`", "2.5"]),
        damaged("dimension beyond u64", &entry("w", "F32", "[99999999999999999999999]", "[0,8]"), &["`w`"]),
        damaged("shape a number", &entry("w", "F32", "2", "[0,8]"), &["`w`"]),
        damaged("one offset", &entry("w", "F32", "[2]", "[8]"), &["`w`"]),
        damaged("three offsets", &entry("w", "F32", "[2]", "[0,4,8]"), &["`w`"]),
        damaged("negative offset", &entry("w", "F32", "[2]", "[-8,0]"), &["`w`", "-8"]),
        damaged("fractional offset", &entry("w", "F32", "[2]", "[0,8.0]"), &["`w`"]),
        damaged("offset as text", &entry("w", "F32", "[2]", r#"["0","8"]"#), &["`w`"]),
        damaged(
            "a field twice",
            r#""w":{"dtype":"F32","dtype":"F16","shape":[2],"data_offsets":[0,8]}"#,
            &["`w`", "duplicate"],
        ),
        damaged("metadata that is no map", r#""__metadata__":["pt"]"#, &["__metadata__"]),
        damaged("metadata with numbers", r#""__metadata__":{"format":7}"#, &["__metadata__"]),
        single(
            "one name, two tensors",
            file(&header(&[entry("w", "F32", "[1]", "[0,4]"), entry("w", "F32", "[1]", "[4,8]")]), &[0; 8]),
            variant!(DuplicateTensor),
            &["`w`", "same header"],
        ),
        single(
            "one name, the same tensor twice",
            file(&header(&[entry("w", "F32", "[2]", "[0,8]"), entry("w", "F32", "[2]", "[0,8]")]), &[0; 8]),
            variant!(DuplicateTensor),
            &["`w`"],
        ),
        single(
            "one name, once escaped",
            file(
                &header(&[entry("w", "F32", "[1]", "[0,4]"), entry("\\u0077", "F32", "[1]", "[4,8]")]),
                &[0; 8],
            ),
            variant!(DuplicateTensor),
            &["`w`"],
        ),
        single(
            "metadata twice",
            file(r#"{"__metadata__":{},"__metadata__":{}}"#, b""),
            variant!(DuplicateTensor),
            &["__metadata__"],
        ),
    ]
}

/// Offsets, shapes and sizes against each other.
fn layouts() -> Vec<Case> {
    let layout = |name, entries: &[String], variant, names| {
        single(name, file(&header(entries), &[0; 16]), variant, names)
    };
    let max = u64::MAX;
    vec![
        layout(
            "offsets reversed",
            &[entry("w", "F32", "[2]", "[8,0]")],
            variant!(Offsets),
            &["`w`", "[8, 0]"],
        ),
        layout(
            "tensors overlap",
            &[entry("a", "F32", "[3]", "[0,12]"), entry("w", "F32", "[2]", "[8,16]")],
            variant!(Offsets),
            &["`w`", "`a`", "byte 12", "[8, 16]", "overlap"],
        ),
        layout(
            "tensors share all bytes",
            &[entry("a", "F32", "[4]", "[0,16]"), entry("w", "F32", "[4]", "[0,16]")],
            variant!(Offsets),
            &["`w`", "overlap"],
        ),
        layout(
            "a tensor inside another",
            &[entry("a", "U8", "[16]", "[0,16]"), entry("w", "F32", "[2]", "[4,12]")],
            variant!(Offsets),
            &["`w`", "overlap"],
        ),
        layout(
            "a hole between tensors",
            &[entry("a", "F32", "[1]", "[0,4]"), entry("w", "F32", "[2]", "[8,16]")],
            variant!(Offsets),
            &["`w`", "byte 4", "hole"],
        ),
        layout(
            "a hole at the start",
            &[entry("w", "F32", "[2]", "[8,16]")],
            variant!(Offsets),
            &["`w`", "byte 0"],
        ),
        layout(
            "an empty tensor in no place",
            &[entry("a", "F32", "[4]", "[0,16]"), entry("w", "F32", "[0]", "[7,7]")],
            variant!(Offsets),
            &["`w`", "[7, 7]"],
        ),
        layout(
            "offsets beyond the file",
            &[entry("w", "F32", "[5]", "[0,20]")],
            variant!(Truncated),
            &["cut off"],
        ),
        layout(
            "offsets at the end of memory",
            &[entry("w", "U8", "[0]", &format!("[{max},{max}]"))],
            variant!(Offsets),
            &["`w`", "18446744073709551615"],
        ),
        layout(
            "a tensor as large as memory",
            &[entry("w", "U8", "[1152921504606846975]", "[0,1152921504606846975]")],
            variant!(Truncated),
            &["cut off"],
        ),
        layout(
            "size in bytes overflows",
            &[entry("w", "F64", &format!("[{max}]"), "[0,16]")],
            variant!(ShapeOverflow),
            &["`w`", "18446744073709551615"],
        ),
        layout(
            "shape overflows",
            &[entry("w", "U8", "[4294967296,4294967296]", "[0,16]")],
            variant!(ShapeOverflow),
            &["`w`", "[4294967296, 4294967296]"],
        ),
        layout(
            "shape overflows to the right size",
            &[entry("w", "U8", "[9223372036854775816,2]", "[0,16]")],
            variant!(ShapeOverflow),
            &["`w`"],
        ),
        layout(
            "dimensions that overflow beside a zero",
            &[entry("w", "F32", "[0,4294967296,4294967296]", "[0,0]")],
            variant!(ShapeOverflow),
            &["`w`"],
        ),
        layout(
            "shape too small",
            &[entry("w", "F32", "[3]", "[0,16]")],
            variant!(ByteLength),
            &["`w`", "12 bytes", "F32 [3]", "16 bytes"],
        ),
        layout(
            "shape too large",
            &[entry("w", "F32", "[5]", "[0,16]")],
            variant!(ByteLength),
            &["`w`", "20 bytes"],
        ),
        layout(
            "dtype of another size",
            &[entry("w", "F16", "[4]", "[0,16]")],
            variant!(ByteLength),
            &["`w`", "F16 [4]"],
        ),
        layout(
            "no elements, but bytes",
            &[entry("w", "F32", "[0,4]", "[0,16]")],
            variant!(ByteLength),
            &["`w`"],
        ),
        layout(
            "half a byte",
            &[entry("w", "F4", "[31]", "[0,16]")],
            variant!(ByteLength),
            &["`w`", "124 bits"],
        ),
        layout(
            "hostile name in a message",
            &[entry("\\u001b[2Jw\\n", "F32", "[3]", "[0,16]")],
            variant!(ByteLength),
            &["`\\u{1b}[2Jw\\n`"],
        ),
    ]
}

/// Shard indices and their shards.
fn indices() -> Vec<Case> {
    const INDEX: &str = "model.safetensors.index.json";
    let raw = |name, text: &[u8], variant, names| case(name, vec![(INDEX, text.to_vec())], variant, names);
    let escaping = |name, file: &'static str, shown: &'static str| {
        let outside = vec![("a.safetensors", one("w"))];
        let weight_map = format!(r#"{{"w":"{file}"}}"#);
        sharded(name, &weight_map, outside, variant!(UnsafeName), &[INDEX, "`w`", shown])
    };
    vec![
        raw("index not JSON", b"weights", variant!(Index), &[INDEX]),
        raw("index empty", b"", variant!(Index), &[INDEX, "EOF"]),
        raw("index not UTF-8", b"{\"weight_map\":\"\xff\"}", variant!(NotText), &[INDEX, "offset 15"]),
        raw("index an array", b"[]", variant!(Index), &[INDEX]),
        raw("index without weight_map", br#"{"metadata":{}}"#, variant!(Index), &[INDEX, "weight_map"]),
        raw("index with an empty weight_map", br#"{"weight_map":{}}"#, variant!(Index), &[INDEX, "empty"]),
        raw("weight_map an array", br#"{"weight_map":["a"]}"#, variant!(Index), &[INDEX]),
        raw("weight_map twice", br#"{"weight_map":{},"weight_map":{}}"#, variant!(Index), &[INDEX, "second"]),
        raw("file name a number", br#"{"weight_map":{"w":1}}"#, variant!(Index), &[INDEX, "`w`"]),
        raw(
            "text after the index",
            br#"{"weight_map":{"w":"a.safetensors"}} and more"#,
            variant!(Index),
            &[INDEX],
        ),
        sharded(
            "a name twice in the index",
            r#"{"w":"a.safetensors","w":"a.safetensors"}"#,
            vec![("a.safetensors", one("w"))],
            variant!(DuplicateTensor),
            &[INDEX, "`w`"],
        ),
        sharded(
            "an absent shard",
            r#"{"v":"b.safetensors","w":"a.safetensors"}"#,
            vec![("a.safetensors", one("w"))],
            variant!(MissingFile),
            &["b.safetensors", "`v`", INDEX],
        ),
        sharded(
            "a shard that is a folder",
            r#"{"w":"a.safetensors"}"#,
            vec![("a.safetensors/", vec![])],
            variant!(NotRegular),
            &["a.safetensors", "a folder"],
        ),
        sharded(
            "a shard cut off",
            r#"{"v":"b.safetensors","w":"a.safetensors"}"#,
            vec![("a.safetensors", one("w")), ("b.safetensors", one("v")[..40].to_vec())],
            variant!(Truncated),
            &["b.safetensors"],
        ),
        sharded(
            "an empty shard",
            r#"{"w":"a.safetensors"}"#,
            vec![("a.safetensors", vec![])],
            variant!(Truncated),
            &["a.safetensors"],
        ),
        escaping("an absolute shard name", "/etc/hostname", "/etc/hostname"),
        escaping("a shard name in the parent folder", "../a.safetensors", "../a.safetensors"),
        escaping("a shard name that leaves and returns", "x/../../x/a.safetensors", "x/../../x"),
        escaping("a shard name with a backslash", "..\\\\a.safetensors", "a.safetensors"),
        escaping("an empty shard name", "", "``"),
        escaping("a shard name of dots", "..", "`..`"),
        escaping("a shard name with a zero byte", "a.safetensors\\u0000", "\\0"),
    ]
}

/// What a folder holds instead of weights.
fn folders() -> Vec<Case> {
    let other = |name, file: &'static str, names: &[&'static str]| {
        let mut case = case(name, vec![(file, b"anything".to_vec())], variant!(UnsupportedFormat), names);
        case.names.push(file);
        case
    };
    let mut by_name = other("a format named directly", "model.gguf", &["GGUF"]);
    by_name.open = "model.gguf";
    let mut absent = case("nothing at the path", vec![], variant!(NotFound), &["not-here"]);
    absent.open = "not-here";
    let config = |name, files, variant, names: &[&'static str]| {
        let mut case = case(name, [vec![("model.safetensors", one("w"))], files].concat(), variant, names);
        case.then = |checkpoint| checkpoint.source().read_config().map(drop);
        case.names.push("config.json");
        case
    };
    let mut escape = config("a file name that leaves the folder", vec![], variant!(UnsafeName), &[]);
    escape.then = |checkpoint| checkpoint.source().read_text("../config.json").map(drop);
    vec![
        absent,
        case("an empty folder", vec![], variant!(NoWeights), &["no files"]),
        case(
            "only a configuration",
            vec![("config.json", b"{}".to_vec())],
            variant!(NoWeights),
            &["config.json"],
        ),
        case(
            "model.safetensors is a folder",
            vec![("model.safetensors/", vec![])],
            variant!(NotRegular),
            &["model.safetensors", "a folder"],
        ),
        case(
            "two files and no index",
            vec![("a.safetensors", one("a")), ("b.safetensors", one("b"))],
            variant!(AmbiguousWeights),
            &["a.safetensors, b.safetensors"],
        ),
        case(
            "one shard of several, without its index",
            vec![("model-00001-of-00002.safetensors", one("w"))],
            variant!(MissingFile),
            &["model.safetensors.index.json", "model-00001-of-00002.safetensors"],
        ),
        other("TensorFlow weights", "tf_model.h5", &["TensorFlow"]),
        other("GGUF", "model-q4_0.gguf", &["GGUF"]),
        other("a LoRA adapter", "adapter_model.safetensors", &["LoRA"]),
        by_name,
        config("no configuration", vec![], variant!(MissingFile), &[]),
        config(
            "configuration not JSON",
            vec![("config.json", b"{\"a\":".to_vec())],
            variant!(Json),
            &["EOF"],
        ),
        config(
            "configuration nested too deep",
            vec![("config.json", vec![b'['; 100_000])],
            variant!(Json),
            &["recursion limit"],
        ),
        config(
            "configuration not UTF-8",
            vec![("config.json", b"\xff\xfe{}".to_vec())],
            variant!(NotText),
            &["offset 0"],
        ),
        config("configuration a folder", vec![("config.json/", vec![])], variant!(NotRegular), &["a folder"]),
        escape,
    ]
}

/// bitsandbytes int8 layers and what resembles them.
fn int8_layers() -> Vec<Case> {
    type Part = (&'static str, &'static str, &'static [usize], Vec<u8>);
    let read: fn(&Checkpoint) -> Result<(), Error> = |checkpoint| checkpoint.int8_linear("l").map(drop);
    let layer = |name, parts: &[Part], variant, names: &[&'static str]| {
        let parts: Vec<_> = parts
            .iter()
            .map(|(name, dtype, shape, bytes)| (*name, *dtype, *shape, bytes.as_slice()))
            .collect();
        opened(name, tensors(&parts), read, variant, names)
    };
    let weight: Part = ("l.weight", "I8", &[2, 3], vec![1, 2, 3, 127, 0x81, 0]);
    let scales: Part = ("l.SCB", "F32", &[2], floats(&[1.0, 0.5]));
    let scaled = |name, values: [f32; 2], names| {
        let scales = ("l.SCB", "F32", &[2usize][..], floats(&values));
        layer(name, &[weight.clone(), scales], variant!(Value), names)
    };
    let tiled = |name, layout: u8, variant, names| {
        let format = ("l.weight_format", "U8", &[][..], vec![layout]);
        layer(name, &[weight.clone(), scales.clone(), format], variant, names)
    };
    let marked = |name, marker: &'static str, names: &[&'static str]| {
        let packed = ("l.weight", "U8", &[3usize, 1][..], vec![1, 2, 3]);
        layer(name, &[packed, (marker, "U8", &[1], vec![0])], variant!(Quantization), names)
    };
    vec![
        layer("codes without scales", std::slice::from_ref(&weight), variant!(MissingTensor), &["`l.SCB`"]),
        layer(
            "scales without codes",
            std::slice::from_ref(&scales),
            variant!(MissingTensor),
            &["`l.weight`"],
        ),
        layer(
            "scales beside 16-bit weights",
            &[("l.weight", "F16", &[2, 3], vec![0; 12]), scales.clone()],
            variant!(Dtype),
            &["`l.weight`", "I8", "F16"],
        ),
        layer(
            "too few scales",
            &[weight.clone(), ("l.SCB", "F32", &[1], floats(&[1.0]))],
            variant!(Shape),
            &["`l.SCB`", "[2]", "[1]"],
        ),
        layer(
            "a scale for each column",
            &[weight.clone(), ("l.SCB", "F32", &[3], floats(&[1.0; 3]))],
            variant!(Shape),
            &["`l.SCB`", "[2]", "[3]"],
        ),
        layer(
            "scales in two dimensions",
            &[weight.clone(), ("l.SCB", "F32", &[2, 1], floats(&[1.0; 2]))],
            variant!(Shape),
            &["`l.SCB`", "[2, 1]"],
        ),
        layer(
            "16-bit scales",
            &[weight.clone(), ("l.SCB", "F16", &[2], vec![0; 4])],
            variant!(Dtype),
            &["`l.SCB`", "F32", "F16"],
        ),
        scaled("a scale of NaN", [1.0, f32::NAN], &["`l.SCB`", "NaN", "row 1"]),
        scaled("an infinite scale", [f32::INFINITY, 1.0], &["`l.SCB`", "inf", "row 0"]),
        scaled("a negative scale", [1.0, -0.5], &["`l.SCB`", "-0.5", "row 1"]),
        layer(
            "a code of -128",
            &[("l.weight", "I8", &[2, 3], vec![1, 2, 3, 127, 0x80, 0]), scales.clone()],
            variant!(Value),
            &["`l.weight`", "-128", "row 1, column 1"],
        ),
        layer(
            "codes in three dimensions",
            &[("l.weight", "I8", &[2, 3, 1], vec![1; 6]), scales.clone()],
            variant!(Shape),
            &["`l.weight`", "[2, 3, 1]"],
        ),
        tiled("layout col32", 1, variant!(Quantization), &["`l.weight_format`", "col32"]),
        tiled("layout col_turing", 2, variant!(Quantization), &["`l.weight_format`", "col_turing"]),
        tiled("layout col_ampere", 3, variant!(Quantization), &["`l.weight_format`", "col_ampere"]),
        tiled("an unknown layout", 9, variant!(Value), &["`l.weight_format`", "9"]),
        layer(
            "a layout of two numbers",
            &[weight.clone(), scales.clone(), ("l.weight_format", "U8", &[2], vec![0, 0])],
            variant!(Shape),
            &["`l.weight_format`", "[2]"],
        ),
        layer(
            "a layout as text",
            &[weight.clone(), scales.clone(), ("l.weight_format", "F32", &[], floats(&[0.0]))],
            variant!(Dtype),
            &["`l.weight_format`", "U8", "F32"],
        ),
        marked("4-bit NF4", "l.weight.quant_state.bitsandbytes__nf4", &["4-bit (NF4)"]),
        marked("4-bit FP4", "l.weight.quant_state.bitsandbytes__fp4", &["4-bit (FP4)"]),
        marked("4-bit absmax", "l.weight.absmax", &["4-bit"]),
        marked("GPTQ", "l.qweight", &["GPTQ", "`l.qweight`"]),
        marked("compressed tensors", "l.weight_scale", &["compressed-tensors"]),
    ]
}

/// Missing tensors and wrong shapes in well-formed files.
fn lookups() -> Vec<Case> {
    let model = || {
        tensors(&[
            ("model.w", "F32", &[2, 3], &floats(&[1.0; 6])),
            ("model.ids", "I64", &[2], &[0; 16]),
            ("model.e4m3", "F8_E4M3", &[2], &[0; 2]),
            ("model.scalar", "F32", &[], &floats(&[1.0])),
        ])
    };
    let lookup = |name, then, variant, names| opened(name, model(), then, variant, names);
    vec![
        lookup("no such tensor", |c| c.tensor("absent").map(drop), variant!(MissingTensor), &["`absent`"]),
        lookup(
            "another prefix",
            |c| c.tensor("w").map(drop),
            variant!(MissingTensor),
            &["`w`", "similar: `model.w`"],
        ),
        lookup(
            "another shape",
            |c| c.tensor("model.w")?.expect_shape(&[3, 2]).map(drop),
            variant!(Shape),
            &["`model.w`", "[3, 2]", "[2, 3]"],
        ),
        lookup(
            "not a matrix",
            |c| c.tensor("model.ids")?.to_matrix_f32().map(drop),
            variant!(Shape),
            &["`model.ids`"],
        ),
        lookup(
            "64-bit integers as f32",
            |c| c.tensor("model.ids")?.to_f32().map(drop),
            variant!(Dtype),
            &["I64"],
        ),
        lookup(
            "8-bit floats",
            |c| c.tensor("model.e4m3")?.to_f32().map(drop),
            variant!(Dtype),
            &["`model.e4m3`", "F8_E4M3", "16-bit version"],
        ),
        lookup(
            "F32 as I8",
            |c| c.tensor("model.w")?.as_i8().map(drop),
            variant!(Dtype),
            &["`model.w`", "I8", "F32"],
        ),
        lookup(
            "F32 as F16",
            |c| c.tensor("model.w")?.to_f16().map(drop),
            variant!(Dtype),
            &["`model.w`", "F16"],
        ),
        lookup(
            "rows outside",
            |c| c.tensor("model.w")?.read_rows_f32(1..3, &mut [0.0; 6]),
            variant!(Selection),
            &["`model.w`", "0..2", "1..3"],
        ),
        lookup(
            "rows reversed",
            #[allow(clippy::reversed_empty_ranges, reason = "the mistake under test")]
            |c| c.tensor("model.w")?.read_rows_f32(2..1, &mut []),
            variant!(Selection),
            &["`model.w`", "2..1"],
        ),
        lookup(
            "a buffer too short",
            |c| c.tensor("model.w")?.read_rows_f32(0..2, &mut [0.0; 5]),
            variant!(Selection),
            &["`model.w`", "6", "5"],
        ),
        lookup(
            "rows of a scalar",
            |c| c.tensor("model.scalar")?.read_rows_f32(0..1, &mut [0.0]),
            variant!(Shape),
            &["`model.scalar`"],
        ),
        lookup(
            "a column outside",
            |c| c.tensor("model.w")?.column_f32(3).map(drop),
            variant!(Selection),
            &["`model.w`", "below 3", "column 3"],
        ),
        lookup(
            "columns of a vector",
            |c| c.tensor("model.ids")?.columns::<f32>(&[0]).map(drop),
            variant!(Dtype),
            &["`model.ids`"],
        ),
    ]
}
