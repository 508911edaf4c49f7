//! PyTorch checkpoints that are damaged, lie, or ask for more than tensors. Archives and pickles are written here byte by
//! byte, so that each case differs from a valid file in one thing.

use std::borrow::Cow;

use int8_nn::checkpoint::{Checkpoint, CheckpointError as Error};
use proptest::prelude::*;

use crate::files::{index, one};
use crate::table::{Case, Variant, case, variant};

/// A file of an archive, and what its headers say.
#[derive(Clone)]
struct Stored {
    name: String,
    data: Vec<u8>,
    method: u16,
    flags: u16,
    /// Size in the central directory, if it lies.
    size: Option<u32>,
    /// Place of the local header in the central directory, if it lies.
    place: Option<u32>,
}

fn stored(name: &str, data: &[u8]) -> Stored {
    Stored { name: name.to_owned(), data: data.to_vec(), method: 0, flags: 0, size: None, place: None }
}

/// A zip archive, as PKWARE's note describes it.
fn zip(files: &[Stored]) -> Vec<u8> {
    let short = |value: usize| u16::try_from(value).unwrap().to_le_bytes();
    let long = |value: usize| u32::try_from(value).unwrap().to_le_bytes();
    let (mut out, mut directory) = (Vec::new(), Vec::new());
    for file in files {
        let place = file.place.map_or(long(out.len()), u32::to_le_bytes);
        let size = file.size.map_or(long(file.data.len()), u32::to_le_bytes);
        // Version, flags, method, time, date, checksum, both sizes, lengths of name and extra field.
        let common = [
            &short(20)[..],
            &file.flags.to_le_bytes(),
            &file.method.to_le_bytes(),
            &[0; 8],
            &size,
            &size,
            &short(file.name.len()),
            &short(0),
        ]
        .concat();
        out.extend([b"PK\x03\x04", &common[..], file.name.as_bytes(), &file.data].concat());
        let tail = [&[0; 10][..], &place, file.name.as_bytes()].concat();
        directory.extend([b"PK\x01\x02", &short(20)[..], &common, &tail].concat());
    }
    let (count, begin, length) = (short(files.len()), long(out.len()), long(directory.len()));
    let end = [b"PK\x05\x06", &[0; 4][..], &count, &count, &length, &begin, &[0; 2]].concat();
    [out, directory, end].concat()
}

/// The same as a large archive has it: sizes and places in 64-bit fields, behind 32-bit ones that are full.
fn zip64(files: &[Stored]) -> Vec<u8> {
    let wide = |value: usize| u64::try_from(value).unwrap().to_le_bytes();
    let (mut out, mut directory) = (Vec::new(), Vec::new());
    for file in files {
        let (full, size, place) = ([0xff; 4], wide(file.data.len()), wide(out.len()));
        let name = u16::try_from(file.name.len()).unwrap().to_le_bytes();
        let common =
            |extra: u8| [&[45, 0, 0, 0, 0, 0][..], &[0; 8], &full, &full, &name, &[extra, 0]].concat();
        let local = [&[1, 0, 16, 0][..], &size, &size].concat();
        let central = [&[1, 0, 24, 0][..], &size, &size, &place].concat();
        out.extend([b"PK\x03\x04", &common(20)[..], file.name.as_bytes(), &local, &file.data].concat());
        let tail = [&[0; 10][..], &full, file.name.as_bytes(), &central].concat();
        directory.extend([b"PK\x01\x02\x2d\x00", &common(28)[..], &tail].concat());
    }
    let (begin, end) = (wide(out.len()), wide(out.len() + directory.len()));
    let (count, length) = (wide(files.len()), wide(directory.len()));
    let record =
        [b"PK\x06\x06", &wide(44)[..], &[45, 0, 45, 0], &[0; 8], &count, &count, &length, &begin].concat();
    let locator = [b"PK\x06\x07", &[0; 4][..], &end, &[1, 0, 0, 0]].concat();
    let old = [b"PK\x05\x06", &[0; 4][..], &[0xff; 12], &[0; 2]].concat();
    [out, directory, record, locator, old].concat()
}

/// An archive of this pickle and one storage, `data/0`, of the floats 0, 1, 2, 3.
fn archive(pickle: &[u8]) -> Vec<u8> {
    zip(&[stored("m/data.pkl", pickle), storage()])
}

fn storage() -> Stored {
    stored("m/data/0", &crate::files::floats(&[0.0, 1.0, 2.0, 3.0]))
}

// ---- pickles, operation by operation ---------------------------------------------------------------------------------

fn text(value: &str) -> Vec<u8> {
    [b"X", &u32::try_from(value.len()).unwrap().to_le_bytes()[..], value.as_bytes()].concat()
}

fn int(value: i32) -> Vec<u8> {
    [b"J", &value.to_le_bytes()[..]].concat()
}

fn tuple(items: &[Vec<u8>]) -> Vec<u8> {
    [b"(".to_vec(), items.concat(), b"t".to_vec()].concat()
}

fn ints(values: &[i32]) -> Vec<u8> {
    tuple(&values.iter().map(|&value| int(value)).collect::<Vec<_>>())
}

/// A reference to `storage` (module, space, class), entry `key`, of `length` elements.
fn storage_of(class: &str, key: &str, length: i32) -> Vec<u8> {
    let class = format!("c{}\n", class.replace(' ', "\n")).into_bytes();
    [tuple(&[text("storage"), class, text(key), text("cpu"), int(length)]), b"Q".to_vec()].concat()
}

fn floats_storage() -> Vec<u8> {
    storage_of("torch FloatStorage", "0", 4)
}

/// `_rebuild_tensor_v2(storage, offset, shape, strides, False, OrderedDict())`
fn tensor(storage: Vec<u8>, offset: i32, shape: &[i32], strides: &[i32]) -> Vec<u8> {
    let hooks = b"ccollections\nOrderedDict\n)R".to_vec();
    let arguments = [storage, int(offset), ints(shape), ints(strides), b"\x89".to_vec(), hooks];
    [b"ctorch._utils\n_rebuild_tensor_v2\n".to_vec(), tuple(&arguments), b"R".to_vec()].concat()
}

/// A whole pickle: a dict of these.
fn dict(items: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let items: Vec<_> = items.iter().map(|(name, value)| [text(name), value.clone()].concat()).collect();
    [b"\x80\x02}(".to_vec(), items.concat(), b"u.".to_vec()].concat()
}

/// A whole pickle: one tensor, `w`.
fn w(tensor: Vec<u8>) -> Vec<u8> {
    dict(&[("w", tensor)])
}

fn valid() -> Vec<u8> {
    w(tensor(floats_storage(), 0, &[2, 2], &[2, 1]))
}

/// A whole pickle of a single operation sequence.
fn just(operations: &[u8]) -> Vec<u8> {
    [b"\x80\x02", operations, b"."].concat()
}

// ---- the table -------------------------------------------------------------------------------------------------------

fn file(name: &'static str, bytes: Vec<u8>, variant: Variant, names: &[&'static str]) -> Case {
    let mut case = case(name, vec![("pytorch_model.bin", bytes)], variant, names);
    case.names.push("pytorch_model.bin");
    case
}

pub(crate) fn cases() -> Vec<Case> {
    [archives(), pickles(), globals(), tensors(), shards()].concat()
}

/// The container.
fn archives() -> Vec<Case> {
    let damaged = |name, bytes, names: &[&'static str]| file(name, bytes, variant!(Archive), names);
    let whole = archive(&valid());
    let directory = whole.windows(4).position(|bytes| bytes == b"PK\x01\x02").unwrap();
    let with = |change: fn(&mut Stored)| {
        let mut files = [stored("m/data.pkl", &valid()), storage()];
        change(&mut files[1]);
        zip(&files)
    };
    let mut bad_directory = whole.clone();
    bad_directory[directory] = b'X';
    let mut bad_local = whole.clone();
    bad_local[2] = 9;
    let legacy = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.".to_vec();
    let tar = [vec![0; 257], b"ustar\x0000".to_vec(), vec![0; 248]].concat();
    vec![
        file("torch: an empty file", vec![], variant!(Archive), &["download it again"]),
        damaged("torch: a local header and nothing else", b"PK\x03\x04".to_vec(), &["download it again"]),
        damaged("torch: the end cut off", whole[..whole.len() - 30].to_vec(), &["download it again"]),
        damaged("torch: the directory cut off", whole[..directory].to_vec(), &["download it again"]),
        damaged("torch: no directory entry where one should be", bad_directory, &["download it again"]),
        damaged("torch: no local header where one should be", bad_local, &["m/data.pkl"]),
        damaged("torch: anything", b"anything".to_vec(), &["download it again"]),
        file(
            "torch: a Git LFS pointer",
            b"version https://git-lfs.github.com/spec/v1\n".to_vec(),
            variant!(UnsupportedFormat),
            &["git lfs pull"],
        ),
        damaged("torch: an archive without files", zip(&[]), &["data.pkl"]),
        damaged("torch: an archive of something else", zip(&[stored("a/b.txt", b"text")]), &["data.pkl"]),
        damaged("torch: files outside a folder", zip(&[stored("data.pkl", &valid())]), &["data.pkl"]),
        damaged(
            "torch: a compressed storage",
            with(|file| file.method = 8),
            &["m/data/0", "compresses nothing"],
        ),
        damaged("torch: an encrypted storage", with(|file| file.flags = 1), &["m/data/0", "encrypted"]),
        damaged("torch: a storage beyond the file", with(|file| file.size = Some(1 << 30)), &["m/data/0"]),
        damaged(
            "torch: a storage placed beyond the file",
            with(|file| file.place = Some(1 << 30)),
            &["m/data/0"],
        ),
        damaged(
            "torch: two pickles",
            zip(&[stored("m/data.pkl", &valid()), stored("m/data.pkl", &valid()), storage()]),
            &["m/data.pkl", "second"],
        ),
        damaged(
            "torch: two storages of one name",
            zip(&[stored("m/data.pkl", &valid()), storage(), storage()]),
            &["m/data/0", "second"],
        ),
        damaged(
            "torch: two folders",
            zip(&[stored("m/data.pkl", &valid()), stored("n/data/0", &[0; 16])]),
            &["n/data/0", "second folder"],
        ),
        file(
            "torch: a big-endian machine's file",
            zip(&[stored("m/byteorder", b"big"), stored("m/data.pkl", &valid()), storage()]),
            variant!(UnsupportedFormat),
            &["big-endian"],
        ),
        file(
            "torch: TorchScript",
            zip(&[stored("m/code/a.py", b""), stored("m/data.pkl", &valid()), storage()]),
            variant!(UnsupportedFormat),
            &["TorchScript", "state_dict"],
        ),
        file("torch: before 1.6", legacy, variant!(UnsupportedFormat), &["before PyTorch 1.6", "torch.save"]),
        file("torch: a tar archive", tar, variant!(UnsupportedFormat), &["tar", "torch.save"]),
    ]
}

/// The pickle as a program.
fn pickles() -> Vec<Case> {
    let malformed = |name, pickle: Vec<u8>, names: &[&'static str]| {
        let mut case = file(name, archive(&pickle), variant!(Pickle), names);
        case.names.push("data.pkl");
        case
    };
    let nested = [b"\x80\x02)".to_vec(), b"\x85".repeat(1 << 20), b".".to_vec()].concat();
    let endless = [b"\x80\x02]q\x00(".to_vec(), b"K\x01".repeat(1 << 16), b"e".to_vec()].concat();
    let copying = [endless, b"0ccollections\nOrderedDict\nh\x00\x85R0".repeat(400), b"N.".to_vec()].concat();
    let long_name = [b"\x80\x02X".as_slice(), &u32::MAX.to_le_bytes(), b"a."].concat();
    let long_name_8 = [b"\x80\x04\x8d".as_slice(), &u64::MAX.to_le_bytes(), b"a."].concat();
    vec![
        malformed("pickle: no bytes", vec![], &["byte 0", "STOP"]),
        malformed("pickle: no end", valid()[..valid().len() - 1].to_vec(), &["STOP"]),
        malformed("pickle: cut inside an operation", b"\x80\x02J\x01".to_vec(), &["byte 2", "inside"]),
        malformed("pickle: protocol 9", b"\x80\x09}.".to_vec(), &["protocol 9"]),
        malformed("pickle: an operation that is none", just(b"\xff"), &["0xff", "unknown"]),
        malformed("pickle: OBJ", just(b"(ctorch\nSize\no"), &["OBJ"]),
        malformed("pickle: an extension", just(b"\x82\x01"), &["EXT"]),
        malformed("pickle: protocol 0", b"(dp0\nS'a'\nI1\ns.".to_vec(), &["protocol 0"]),
        malformed("pickle: the stack runs empty", just(b"0"), &["stack is empty"]),
        malformed("pickle: a tuple from below its mark", just(b"N(N\x86"), &["stack is empty"]),
        malformed("pickle: no mark", just(b"Nt"), &["no mark"]),
        malformed("pickle: values left over", just(b"NN"), &["left at its end"]),
        malformed("pickle: a memo entry that was never written", just(b"h\x07"), &["memo entry 7"]),
        malformed("pickle: a memo entry of 2^32 - 1", just(b"j\xff\xff\xff\xff"), &["4294967295"]),
        malformed("pickle: a string longer than the file", long_name, &["4294967295 bytes"]),
        malformed("pickle: a string of 2^64 - 1 bytes", long_name_8, &["18446744073709551615"]),
        malformed("pickle: a string that is not UTF-8", just(b"X\x01\x00\x00\x00\xff"), &["UTF-8"]),
        malformed(
            "pickle: an integer of 200 bytes",
            just(&[&b"\x8a\xc8"[..], &[1; 200]].concat()),
            &["200 bytes"],
        ),
        malformed("pickle: an item for a number", just(b"K\x01K\x02a"), &["no list"]),
        malformed("pickle: a pair for a list", just(b"]K\x01K\x02s"), &["no dict"]),
        malformed("pickle: a key without its value", just(b"}(K\x01u"), &["without its value"]),
        malformed(
            "pickle: a call of a string",
            just(&[text("eval"), b")R".to_vec()].concat()),
            &["call of a string"],
        ),
        malformed("pickle: a state for a class", just(b"ctorch\nSize\n}b"), &["state"]),
        malformed("pickle: a number", just(b"K\x01"), &["an integer"]),
        malformed("pickle: a list", just(b"]"), &["a list"]),
        malformed("pickle: a million tuples in each other", nested, &["a tuple"]),
        malformed("pickle: a short one that copies for ever", copying, &["pairs"]),
        malformed(
            "pickle: a training's checkpoint",
            dict(&[("model", b"}".to_vec()), ("epoch", int(3))]),
            &["`model`", "`epoch`"],
        ),
        malformed(
            "pickle: a tensor named by a number",
            [b"\x80\x02}K\x01".to_vec(), tensor(floats_storage(), 0, &[4], &[1]), b"s.".to_vec()].concat(),
            &["named by an integer"],
        ),
    ]
}

/// What a pickle refers to and calls.
fn globals() -> Vec<Case> {
    let refused = |name, global: &str, shown: &'static str| {
        let call =
            [format!("c{}\n", global.replace(' ', "\n")).into_bytes(), tuple(&[text("id")]), b"R".to_vec()];
        file(name, archive(&just(&call.concat())), variant!(PickleGlobal), &[shown, "not called"])
    };
    let by_stack = just(
        &[text("posix"), text("system"), b"\x93".to_vec(), tuple(&[text("id")]), b"R".to_vec()].concat(),
    );
    let reduce = |name, operations: &[u8], names: &[&'static str]| {
        file(name, archive(&just(operations)), variant!(Pickle), names)
    };
    vec![
        refused("global: os.system", "os system", "`os.system`"),
        refused("global: builtins.eval", "builtins eval", "`builtins.eval`"),
        refused("global: __builtin__.getattr", "__builtin__ getattr", "`__builtin__.getattr`"),
        refused(
            "global: numpy's arrays",
            "numpy.core.multiarray _reconstruct",
            "`numpy.core.multiarray._reconstruct`",
        ),
        refused("global: another function of torch", "torch.hub load", "`torch.hub.load`"),
        refused("global: torch.load", "torch load", "`torch.load`"),
        refused(
            "global: a quantised tensor",
            "torch._utils _rebuild_qtensor",
            "`torch._utils._rebuild_qtensor`",
        ),
        refused("global: a storage of an unknown type", "torch QInt8Storage", "`torch.QInt8Storage`"),
        refused("global: a name with control characters", "os \x1b[31msystem", "\\u{1b}"),
        file("global: by the stack", archive(&by_stack), variant!(PickleGlobal), &["`posix.system`"]),
        reduce("call: a storage class", b"ctorch\nFloatStorage\n)R", &["arguments"]),
        reduce("call: a class", b"ctorch.nn.parameter\nParameter\n)R", &["arguments"]),
        reduce("call: no tuple", b"ctorch\nSize\nK\x01R", &["instead of a tuple"]),
        reduce("call: a tensor of nothing", b"ctorch._utils\n_rebuild_tensor_v2\n)R", &["arguments"]),
        reduce(
            "call: a tensor of a number",
            &{
                let arguments = tuple(&[int(1), int(0), ints(&[4]), ints(&[1])]);
                [b"ctorch._utils\n_rebuild_tensor_v2\n".to_vec(), arguments, b"R".to_vec()].concat()
            },
            &["storage"],
        ),
        reduce(
            "call: a parameter of a number",
            b"ctorch._utils\n_rebuild_parameter\nK\x01\x85R",
            &["arguments"],
        ),
        reduce(
            "call: an OrderedDict of numbers",
            b"ccollections\nOrderedDict\n](K\x01K\x02e\x85R",
            &["pairs"],
        ),
        reduce("storage: a string", &[text("storage"), b"Q".to_vec()].concat(), &["storage"]),
        reduce(
            "storage: another kind of reference",
            &{
                [
                    tuple(&[
                        text("module"),
                        b"ctorch\nFloatStorage\n".to_vec(),
                        text("0"),
                        text("cpu"),
                        int(4),
                    ]),
                    b"Q".to_vec(),
                ]
                .concat()
            },
            &["storage"],
        ),
    ]
}

/// What a tensor says of itself.
fn tensors() -> Vec<Case> {
    let wrong = |name, tensor: Vec<u8>, variant: Variant, names: &[&'static str]| {
        let mut case = file(name, archive(&w(tensor)), variant, names);
        case.names.push("`w`");
        case
    };
    let view = |name, offset, shape: &[i32], strides: &[i32], names: &[&'static str]| {
        wrong(name, tensor(floats_storage(), offset, shape, strides), variant!(Storage), names)
    };
    let of = |name, class: &str, key: &str, length, names: &[&'static str]| {
        wrong(name, tensor(storage_of(class, key, length), 0, &[1], &[1]), variant!(Storage), names)
    };
    let untyped = [
        b"ctorch._utils\n_rebuild_tensor_v2\n".to_vec(),
        tuple(&[storage_of("torch.storage UntypedStorage", "0", 16), int(0), ints(&[4]), ints(&[1])]),
        b"R".to_vec(),
    ];
    let dims = vec![1; 65];
    let duplicate =
        [("w", tensor(floats_storage(), 0, &[1], &[1])), ("w", tensor(floats_storage(), 1, &[1], &[1]))];
    vec![
        of("tensor: its storage is missing", "torch FloatStorage", "7", 4, &["data/7", "no such file"]),
        of("tensor: a storage outside the archive", "torch FloatStorage", "../x", 4, &["no such file"]),
        of("tensor: a storage longer than its file", "torch FloatStorage", "0", 5, &["5 × 4", "16 bytes"]),
        of("tensor: a storage of wider elements", "torch DoubleStorage", "0", 4, &["4 × 8", "16 bytes"]),
        of("tensor: a storage of a negative length", "torch FloatStorage", "0", -1, &["-1"]),
        view("tensor: one element too many", 0, &[5], &[1], &["4 elements", "[5]"]),
        view("tensor: an offset behind the storage", 4, &[1], &[1], &["from element 4"]),
        view("tensor: an offset too far", 1, &[2, 2], &[2, 1], &["from element 1"]),
        view("tensor: a negative offset", -1, &[1], &[1], &["no negative", "-1"]),
        view("tensor: a negative dimension", 0, &[-4], &[1], &["no negative", "-4"]),
        view("tensor: a negative stride", 3, &[4], &[-1], &["no negative", "-1"]),
        view("tensor: a stride too far", 0, &[2, 2], &[3, 1], &["[3, 1]"]),
        view(
            "tensor: strides that overflow",
            0,
            &[2147483647, 2],
            &[2147483647, 2147483647],
            &["4 elements"],
        ),
        view("tensor: more dimensions than strides", 0, &[2, 2], &[1], &["1 strides for 2"]),
        view("tensor: an expanded one", 0, &[1000, 4], &[0, 1], &["4000 elements", "contiguous"]),
        wrong(
            "tensor: a shape that overflows",
            tensor(floats_storage(), 0, &[2147483647, 2147483647, 2147483647], &[0, 0, 0]),
            variant!(ShapeOverflow),
            &["2147483647"],
        ),
        wrong(
            "tensor: a shape that overflows beside a zero",
            tensor(floats_storage(), 0, &[0, 2147483647, 2147483647, 2147483647], &[1, 1, 1, 1]),
            variant!(ShapeOverflow),
            &["[0, 2147483647"],
        ),
        file(
            "tensor: 65 dimensions",
            archive(&w(tensor(floats_storage(), 0, &dims, &dims))),
            variant!(Pickle),
            &["65 dimensions"],
        ),
        file(
            "tensor: a shape of strings",
            archive(&w([
                b"ctorch._utils\n_rebuild_tensor_v2\n".to_vec(),
                tuple(&[floats_storage(), int(0), tuple(&[text("4")]), ints(&[1])]),
                b"R".to_vec(),
            ]
            .concat())),
            variant!(Pickle),
            &["no integer"],
        ),
        file("tensor: bytes of no type", archive(&w(untyped.concat())), variant!(Pickle), &["element type"]),
        file("tensor: two of one name", archive(&dict(&duplicate)), variant!(DuplicateTensor), &["`w`"]),
    ]
}

/// Several files, and names.
fn shards() -> Vec<Case> {
    let index_file = |map| ("pytorch_model.bin.index.json", index(map));
    vec![
        case(
            "torch: a shard that is missing",
            vec![index_file(r#"{"w":"pytorch_model-00001-of-00001.bin"}"#)],
            variant!(MissingFile),
            &["pytorch_model-00001-of-00001.bin", "`w`"],
        ),
        case(
            "torch: a shard outside the folder",
            vec![index_file(r#"{"w":"../a.bin"}"#)],
            variant!(UnsafeName),
            &["../a.bin"],
        ),
        case(
            "torch: one shard of several, without its index",
            vec![("pytorch_model-00001-of-00002.bin", archive(&valid()))],
            variant!(MissingFile),
            &["pytorch_model.bin.index.json"],
        ),
        case(
            "torch: an archive under a safetensors name",
            vec![("model.safetensors", archive(&valid()))],
            variant!(UnsupportedFormat),
            &["model.safetensors", "zip archive", "rename"],
        ),
        case(
            "torch: only an optimizer's state",
            vec![("optimizer.pt", one("w"))],
            variant!(NoWeights),
            &["optimizer.pt"],
        ),
    ]
}

// ---- what these builders build is valid but for the one thing --------------------------------------------------------

fn open(bytes: Vec<u8>) -> Result<Checkpoint, Error> {
    Checkpoint::from_bytes([("pytorch_model.bin".to_owned(), Cow::Owned(bytes))])
}

#[test]
fn the_archives_written_here_open() {
    let read = |tensor: Vec<u8>| open(archive(&w(tensor))).unwrap().tensor("w").unwrap().to_f32().unwrap();
    assert_eq!(read(tensor(floats_storage(), 0, &[2, 2], &[2, 1])), [0.0, 1.0, 2.0, 3.0]);
    assert_eq!(read(tensor(floats_storage(), 0, &[2, 2], &[1, 2])), [0.0, 2.0, 1.0, 3.0]);
    assert_eq!(read(tensor(floats_storage(), 1, &[2], &[2])), [1.0, 3.0]);
    assert_eq!(read(tensor(floats_storage(), 3, &[], &[])), [3.0]);
    assert_eq!(read(tensor(floats_storage(), 4, &[0, 3], &[3, 1])), [0.0; 0]);
    // The stride of a dimension of one element may be anything.
    assert_eq!(read(tensor(floats_storage(), 2, &[1, 2], &[99, 1])), [2.0, 3.0]);
    assert_eq!(open(archive(&just(b"}"))).unwrap().len(), 0);
    let large = open(zip64(&[stored("m/data.pkl", &valid()), storage()])).unwrap();
    assert_eq!(large.tensor("w").unwrap().to_f32().unwrap(), [0.0, 1.0, 2.0, 3.0]);
    // An OrderedDict as Python 2 wrote it, and what a training adds beside the tensors.
    let pair = [text("w"), tensor(floats_storage(), 0, &[4], &[1])].concat();
    let old = [b"ccollections\nOrderedDict\n](](".to_vec(), pair, b"ee\x85R".to_vec()].concat();
    assert_eq!(open(archive(&just(&old))).unwrap().tensor("w").unwrap().len(), 4);
    let more =
        dict(&[("epoch", int(1)), ("w", tensor(floats_storage(), 0, &[4], &[1])), ("none", b"N".to_vec())]);
    assert_eq!(open(archive(&more)).unwrap().names().collect::<Vec<_>>(), ["w"]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    /// Damage anywhere: no panic, and what opens reads within its bounds.
    #[test]
    fn damaged_archives_do_not_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let transposed = tensor(floats_storage(), 0, &[2, 2], &[1, 2]);
        let mut bytes = archive(&dict(&[("w", transposed), ("v", tensor(floats_storage(), 1, &[3], &[1]))]));
        for (place, value) in changes {
            let place = place.index(bytes.len());
            bytes[place] = value;
        }
        if let Some(cut) = cut {
            let cut = cut.index(bytes.len());
            bytes.truncate(cut);
        }
        match open(bytes) {
            Ok(checkpoint) => crate::mutations::read_all(&checkpoint, 1 << 12),
            Err(error) => prop_assert!(error.to_string().contains("embedded/")),
        }
    }
}
