//! Files that mean harm, and places that must not be harmed: outputs into devices, FIFOs and links, checkpoints that are cut short or
//! name a billion layers, control characters in names, NaN results.
#![cfg(unix)]

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{FileTypeExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// Longest time of a command, in an unoptimised build on a busy machine.
const LONGEST: Duration = Duration::from_secs(30);

/// Most resident memory of a command.
const MOST_MEMORY: u64 = 1 << 30;

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_int8"));
    command.args(arguments).env_remove("INT8_KERNEL").env("HF_HUB_OFFLINE", "1").env("RUST_BACKTRACE", "0");
    command
}

/// Runs the program, within [`LONGEST`] and [`MOST_MEMORY`].
fn int8(arguments: &[&str]) -> Output {
    let begin = Instant::now();
    let (stdout, stderr) = (Stdio::piped(), Stdio::piped());
    let child = command(arguments).stdout(stdout).stderr(stderr).spawn().expect("the program");
    let status = format!("/proc/{}/status", child.id());
    let watch = std::thread::spawn(move || peak_until_the_end(&status));
    let output = child.wait_with_output().expect("the program");
    let peak = watch.join().expect("no panic");
    assert!(begin.elapsed() < LONGEST, "{arguments:?} took {:?}", begin.elapsed());
    assert!(peak < MOST_MEMORY, "{arguments:?} took {peak} bytes");
    output
}

/// The last peak of a process's resident memory that was seen, in bytes; 0 where the system does not tell.
fn peak_until_the_end(status: &str) -> u64 {
    let mut peak = 0;
    while let Ok(text) = fs::read_to_string(status) {
        // A process that has ended and is not yet waited for has no memory.
        let Some(line) = text.lines().find_map(|line| line.strip_prefix("VmHWM:")) else { break };
        let kilobytes = line.trim().strip_suffix("kB").and_then(|text| text.trim().parse::<u64>().ok());
        peak = kilobytes.map_or(peak, |kilobytes| kilobytes << 10);
        std::thread::sleep(Duration::from_millis(2));
    }
    peak
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn demo_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/demo-opt")
}

fn demo() -> String {
    demo_folder().to_str().expect("UTF-8").to_owned()
}

fn sample() -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/demo.txt").to_str().expect("UTF-8").to_owned()
}

/// A copy of demo-opt that a test may change.
fn copy() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for file in fs::read_dir(demo_folder()).expect("the demo") {
        let file = file.expect("a file");
        fs::copy(file.path(), folder.path().join(file.file_name())).expect("a copy");
    }
    folder
}

fn path(folder: &Path) -> &str {
    folder.to_str().expect("UTF-8")
}

fn change_config(folder: &Path, change: impl FnOnce(&mut Value)) {
    let file = folder.join("config.json");
    let mut config = serde_json::from_slice(&fs::read(&file).expect("a file")).expect("JSON");
    change(&mut config);
    fs::write(file, config.to_string()).expect("written");
}

/// The header of `model.safetensors`, and where the data begin.
fn header(file: &[u8]) -> (Value, usize) {
    let length =
        usize::try_from(u64::from_le_bytes(file[..8].try_into().expect("8 bytes"))).expect("a length");
    (serde_json::from_slice(&file[8..8 + length]).expect("JSON"), 8 + length)
}

fn mkfifo(path: &Path) {
    assert!(Command::new("mkfifo").arg(path).status().expect("mkfifo").success());
}

#[test]
fn results_go_into_fifos_links_and_streams() {
    let folder = tempfile::tempdir().expect("a folder");
    let [fifo, link, target] = ["fifo", "link", "target"].map(|name| folder.path().join(name));
    let logits =
        |out: &str| command(&["logits", &demo(), "--ids", "5,17,42", "--fp", "--quiet", "--out", out]);

    fs::write(&target, "old").expect("a file");
    symlink("target", &link).expect("a link");
    assert!(logits(path(&link)).status().expect("the program").success());
    assert!(fs::symlink_metadata(&link).expect("the link").is_symlink());
    let expected = fs::read(&target).expect("the file");
    assert!(safetensors::SafeTensors::deserialize(&expected).is_ok());

    mkfifo(&fifo);
    let mut child = logits(path(&fifo)).spawn().expect("the program");
    assert!(fs::read(&fifo).expect("read") == expected, "through the FIFO");
    assert!(child.wait().expect("an end").success());
    assert!(fs::symlink_metadata(&fifo).expect("the FIFO").file_type().is_fifo());

    for stream in ["-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"] {
        let output = logits(stream).output().expect("the program");
        assert!(output.status.success() && output.stdout == expected, "{stream}: {}", text(&output.stderr));
    }
    // Standard output that is a file stays that file.
    let redirected = folder.path().join("redirected");
    let file = fs::File::create(&redirected).expect("a file");
    assert!(logits("/dev/stdout").stdout(file).status().expect("the program").success());
    assert!(fs::read(&redirected).expect("the file") == expected);

    assert!(logits("/dev/null").status().expect("the program").success());
    assert!(fs::symlink_metadata("/dev/null").expect("the device").file_type().is_char_device());
    let full = logits("/dev/full").output().expect("the program");
    assert!(
        full.status.code() == Some(1) && text(&full.stderr).contains("/dev/full"),
        "{}",
        text(&full.stderr)
    );
    let left = fs::read_dir(folder.path()).expect("the folder").count();
    assert_eq!(left, 4, "a temporary file is left");
}

#[test]
fn tables_and_pages_keep_to_the_rule() {
    let folder = tempfile::tempdir().expect("a folder");
    let [csv, csv_link, page] = ["t.csv", "csv-link", "p.html"].map(|name| folder.path().join(name));
    symlink("t.csv", &csv_link).expect("a link");
    // A link that the next run's temporary file of an earlier version would have followed.
    let victim = folder.path().join("victim");
    fs::write(&victim, "kept").expect("a file");
    for name in ["t.csv.part", "p.html.part"] {
        symlink("victim", folder.path().join(name)).expect("a link");
    }
    let (demo, sample) = (demo(), sample());
    let run =
        ["outliers", &demo, "--text", &sample, "--window", "32", "--windows", "1", "--report", path(&page)];
    let output = int8(&run);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&fs::read(&page).expect("the page")).starts_with("<!doctype html>"));
    let compare =
        ["eval", &demo, "--text", &sample, "--window", "32", "--windows", "1", "--compare", "--csv"];
    let output = int8(&[&compare[..], &[path(&csv_link)]].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&fs::read(&csv).expect("the table")).starts_with("scheme,"));
    assert!(text(&output.stdout).contains("1 window of 32 tokens"), "{}", text(&output.stdout));
    assert!(fs::symlink_metadata(&csv_link).expect("the link").is_symlink());
    assert_eq!(fs::read(&victim).expect("the file"), b"kept");
}

/// The model is not opened, let alone run: there is none.
#[test]
fn outputs_are_checked_before_the_work() {
    let folder = tempfile::tempdir().expect("a folder");
    let kept = folder.path().join("kept");
    fs::write(&kept, "kept").expect("a file");
    let sample = sample();
    for bad in [
        path(&kept.join("x")).to_owned(),
        path(folder.path()).to_owned(),
        format!("{}/no/x", path(folder.path())),
    ] {
        for (option, arguments) in [
            ("--out", vec!["logits", "no-model", "--ids", "5"]),
            ("--csv", vec!["eval", "no-model", "--text", &sample, "--compare"]),
            ("--report", vec!["eval", "no-model", "--text", &sample, "--compare"]),
            ("--report", vec!["outliers", "no-model", "--text", &sample]),
            ("--plot", vec!["bench", "--quick"]),
        ] {
            let output = int8(&[&arguments[..], &[option, &bad]].concat());
            let message = text(&output.stderr);
            let named = format!("error: {option} {bad}");
            assert!(output.status.code() == Some(1) && message.contains(&named), "{option} {bad}: {message}");
            assert!(output.stdout.is_empty());
        }
    }
    assert_eq!(fs::read(&kept).expect("the file"), b"kept");
}

#[test]
fn conversions_follow_no_prepared_link() {
    let folder = tempfile::tempdir().expect("a folder");
    let victim = folder.path().join("victim");
    fs::write(&victim, "kept").expect("a file");
    let out = folder.path().join("out");
    fs::create_dir(&out).expect("a folder");
    for name in ["config.json.partial", "tokenizer.json.partial", "tokenizer.json", "generation_config.json"]
    {
        symlink(&victim, out.join(name)).expect("a link");
    }
    let output = int8(&["quantize", &demo(), path(&out)]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(fs::read(&victim).expect("the file"), b"kept");
    assert!(fs::symlink_metadata(out.join("tokenizer.json")).expect("the file").is_file());
    assert!(int8(&["inspect", path(&out)]).status.success());
}

#[test]
fn a_billion_layers_are_no_work() {
    let folder = copy();
    for layers in [1_000_000_000_u64, 4_000_000_000_000, u64::MAX, 16_000] {
        change_config(folder.path(), |config| config["num_hidden_layers"] = json!(layers));
        let out = folder.path().join("out");
        for arguments in [
            vec!["plan", path(folder.path())],
            vec!["quantize", path(folder.path()), path(&out), "--force"],
            vec!["run", path(folder.path()), "-p", "x", "-n", "1"],
            vec!["inspect", path(folder.path())],
        ] {
            let output = int8(&arguments);
            assert!(matches!(output.status.code(), Some(0 | 1)), "{arguments:?}: {}", text(&output.stderr));
            if arguments[0] == "run" || arguments[0] == "plan" && layers == 16_000 {
                assert_eq!(output.status.code(), Some(1), "{arguments:?}");
            }
        }
    }
}

#[test]
fn nan_is_no_result() {
    let folder = copy();
    let file = folder.path().join("model.safetensors");
    let mut bytes = fs::read(&file).expect("a file");
    let (header, begin) = header(&bytes);
    let tensors = header.as_object().expect("tensors");
    let (_, tensor) = tensors
        .iter()
        .find(|(name, _)| name.contains("layers.1.") && name.contains("layer_norm.weight"))
        .expect("a norm");
    let place =
        begin + usize::try_from(tensor["data_offsets"][0].as_u64().expect("an offset")).expect("an offset");
    assert_eq!(tensor["dtype"], "F16");
    bytes[place..place + 2].copy_from_slice(&0x7E00_u16.to_le_bytes());
    fs::write(&file, bytes).expect("written");
    let sample = sample();
    for command in [
        &["eval"][..],
        &["eval", "--fp"],
        &["eval", "--json"],
        &["eval", "--compare"],
        &["outliers"],
        &["outliers", "--no-ablation"],
    ] {
        let size = ["--text", &sample, "--window", "16", "--windows", "1"];
        let output = int8(&[&command[..1], &[path(folder.path())], &command[1..], &size].concat());
        let message = text(&output.stderr);
        assert!(
            output.status.code() == Some(1) && message.contains("NaN"),
            "{command:?}: {:?} {message}",
            output.status
        );
        assert!(!text(&output.stdout).contains("NaN"), "{command:?}: {}", text(&output.stdout));
    }
}

/// No file of a stranger writes to the terminal what the terminal would obey, nor fills it.
#[test]
fn control_characters_are_escaped_and_names_shortened() {
    let folder = copy();
    let file = folder.path().join("model.safetensors");
    let bytes = fs::read(&file).expect("a file");
    let (mut header, begin) = header(&bytes);
    let hostile = "\u{1b}[2J\u{1b}]0;title\u{7}\u{9b}31m\r\u{8}".to_owned();
    let end = bytes.len() - begin;
    for name in [format!("a{hostile}b"), "n".repeat(5 << 20), format!("layers.0.{hostile}.weight")] {
        header[name] = json!({"dtype": "F16", "shape": [0], "data_offsets": [end, end]});
    }
    let mut text_of_header = header.to_string();
    while !text_of_header.len().is_multiple_of(8) {
        text_of_header.push(' ');
    }
    let mut changed = u64::try_from(text_of_header.len()).expect("a length").to_le_bytes().to_vec();
    changed.extend(text_of_header.as_bytes());
    changed.extend(&bytes[begin..]);
    fs::write(&file, changed).expect("written");
    let out = folder.path().join("out");
    let check = |arguments: &[&str]| {
        let output = int8(arguments);
        for stream in [&output.stdout, &output.stderr] {
            let shown = text(stream);
            let obeyed = shown.chars().find(|c| c.is_control() && !matches!(c, '\n' | '\t'));
            assert_eq!(obeyed, None, "{arguments:?}: {}", shown.escape_debug());
            let most = if arguments.contains(&"--json") { usize::MAX } else { 100_000 };
            assert!(shown.len() < most, "{arguments:?}: {} bytes", shown.len());
        }
    };
    for _ in 0..2 {
        for arguments in [
            vec!["inspect", path(folder.path())],
            vec!["inspect", path(folder.path()), "--tensors"],
            vec!["inspect", path(folder.path()), "--json"],
            vec!["plan", path(folder.path())],
            vec!["run", path(folder.path()), "-p", "x", "-n", "1", "--greedy"],
            vec!["quantize", path(folder.path()), path(&out), "--force"],
            vec!["quantize", path(folder.path()), path(&out), "--force", "--json"],
        ] {
            check(&arguments);
        }
        // And with a `model_type` that is one.
        change_config(folder.path(), |config| config["model_type"] = json!(hostile));
    }
}

/// Generated text, too: the tokens are the file's.
#[test]
fn generated_text_is_escaped() {
    let folder = copy();
    let file = folder.path().join("tokenizer.json");
    let mut tokenizer: Value = serde_json::from_slice(&fs::read(&file).expect("a file")).expect("JSON");
    // Every token of the vocabulary decodes to an escape sequence.
    tokenizer["decoder"] = json!({"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"Regex": "(?s)^.*$"}, "content": "\u{1b}[2J\u{9b}"}, {"type": "Fuse"}]});
    fs::write(&file, tokenizer.to_string()).expect("written");
    let run = ["run", path(folder.path()), "-p", "The old man", "-n", "3", "--greedy"];
    let output = int8(&run);
    let shown = text(&output.stdout);
    assert!(
        output.status.success() && shown.contains("\\u{1b}[2J\\u{9b}"),
        "{shown}: {}",
        text(&output.stderr)
    );
    assert!(!shown.contains(['\u{1b}', '\u{9b}']));
    // Programs get the exact text.
    let json: Value = serde_json::from_slice(&int8(&[&run[..], &["--json"]].concat()).stdout).expect("JSON");
    assert!(json["text"].as_str().expect("a text").contains("\u{1b}[2J\u{9b}"));
}

/// The file is cut short between loading and the reading of exact outlier columns.
#[test]
fn a_mapped_file_that_is_cut_short_is_named() {
    let folder = copy();
    let [weights, fifo] = ["model.safetensors", "text"].map(|name| folder.path().join(name));
    mkfifo(&fifo);
    let mut child = command(&["eval", path(folder.path()), "--text", path(&fifo), "--window", "64"])
        .args(["--device", "cpu", "--quiet"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program");
    // Opening waits for the reader, which has loaded the model by then.
    let mut text_of_fifo = fs::File::options().write(true).open(&fifo).expect("a reader");
    fs::File::options().write(true).open(&weights).and_then(|file| file.set_len(0)).expect("cut");
    text_of_fifo.write_all(&fs::read(sample()).expect("a text")).expect("written");
    drop(text_of_fifo);
    let mut message = String::new();
    child.stderr.take().expect("piped").read_to_string(&mut message).expect("read");
    let status = child.wait().expect("an end");
    assert_eq!(status.code(), Some(1), "{status}: {message}");
    assert!(message.contains("model.safetensors") && message.contains("cut short"), "{message}");
}

#[test]
fn hostile_templates_and_tokenizers_are_errors() {
    let folder = copy();
    let chat = ["run", path(folder.path()), "--chat", "-p", "x", "-n", "1"];
    for template in [
        "{% set ns = namespace() %}{% set ns.x = ns %}{{ ns }}",
        "{% set ns = namespace(x='a') %}{% for i in range(64) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}",
        "{{ '%4000000000d'|format(1) }}",
        &format!("{{{{ {} 1 }}}}", "1 + ".repeat(200_000)),
    ] {
        fs::write(folder.path().join("chat_template.jinja"), template).expect("written");
        let output = int8(&chat);
        let message = text(&output.stderr);
        assert!(
            output.status.code() == Some(1) && message.contains("chat_template.jinja: chat template:"),
            "{message}"
        );
        assert!(message.len() < 1_000, "{message}");
    }
    let file = folder.path().join("tokenizer.json");
    let mut tokenizer: Value = serde_json::from_slice(&fs::read(&file).expect("a file")).expect("JSON");
    // It panics in the library: an error, without the panic's message.
    tokenizer["post_processor"] = json!({"type": "TemplateProcessing", "single": [{"Sequence": {"id": "B", "type_id": 0}}],
        "pair": [], "special_tokens": {}});
    fs::write(&file, tokenizer.to_string()).expect("written");
    let output = int8(&["run", path(folder.path()), "-p", "x", "-n", "1"]);
    let message = text(&output.stderr);
    assert!(output.status.code() == Some(1) && message.contains("tokenizer"), "{message}");
    assert!(!message.contains("panicked"), "{message}");
}
