//! `--json`: what the commands print is what docs/json.md says, errors included.

mod page;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

fn int8(arguments: &[&str], cache: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_int8"))
        .args(arguments)
        .arg("--json")
        .stdin(std::process::Stdio::null())
        .env_remove("INT8_KERNEL")
        .env("HF_HUB_CACHE", cache)
        .env("HF_HUB_OFFLINE", "1")
        .output()
        .expect("the program")
}

fn demo_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/demo-opt")
}

#[test]
fn commands_print_what_the_page_says() {
    let folder = tempfile::tempdir().expect("a folder");
    let text = folder.path().join("text.txt");
    std::fs::write(&text, "The old man sat by the sea. ".repeat(40)).expect("a file");
    let path = |name: &str| folder.path().join(name).to_str().expect("UTF-8").to_owned();
    let (demo, text) = (demo_folder(), text.to_str().expect("UTF-8").to_owned());
    let demo = demo.to_str().expect("UTF-8");
    let (logits, converted, back) = (path("logits"), path("int8"), path("f16"));
    let text = ["--text", &text, "--window", "64", "--windows", "2"];
    let with_text = |before: &[&'static str]| -> Vec<String> {
        [before, &[demo]].concat().into_iter().chain(text).map(str::to_owned).collect()
    };
    let owned =
        |arguments: &[&str]| -> Vec<String> { arguments.iter().map(|text| (*text).to_owned()).collect() };
    let sound = path("sound.wav");
    let header =
        b"RIFF\0\0\0\0WAVEfmt \x10\0\0\0\x01\0\x01\0\x80\x3E\0\0\0\x7D\0\0\x02\0\x10\0data\xFF\xFF\xFF\xFF";
    std::fs::write(&sound, [&header[..], &[1, 9, 0, 7].repeat(2000)].concat()).expect("a file");
    let whisper = Path::new(env!("CARGO_MANIFEST_DIR")).join("../int8-nn/tests/data/speech/whisper");
    let whisper = whisper.to_str().expect("UTF-8");
    for (section, arguments) in [
        ("transcribe", owned(&["transcribe", whisper, &sound, "--language", "en", "--task", "transcribe"])),
        ("run", owned(&["run", demo, "-p", "The", "-n", "2"])),
        ("eval", with_text(&["eval"])),
        ("eval --compare", [with_text(&["eval"]), owned(&["--compare"])].concat()),
        ("outliers", with_text(&["outliers"])),
        ("logits", owned(&["logits", demo, "--ids", "1,2", "--out", &logits])),
        ("inspect", owned(&["inspect", demo])),
        ("plan", owned(&["plan", demo])),
        ("quantize", owned(&["quantize", demo, &converted])),
        ("dequantize", owned(&["dequantize", &converted, &back])),
        ("demo", owned(&["demo"])),
        ("list", owned(&["list"])),
    ] {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let output = int8(&arguments, folder.path());
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {errors}");
        assert!(errors.is_empty(), "{arguments:?} remarks {errors}");
        let printed: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
        page::check(section, &printed);
    }
}

#[test]
fn errors_are_objects_on_standard_error() {
    let folder = tempfile::tempdir().expect("a folder");
    for (arguments, code, word) in [
        (&["run", "/nowhere"][..], 2, "no prompt"),
        (&["inspect", "/nowhere"], 1, "/nowhere"),
        (&["run", "/nowhere", "--temperature", "hot"], 2, "--temperature"),
        (&["rm", "org/other"], 1, "org/other"),
        (&["pull", "./folder"], 2, "org/name"),
    ] {
        let output = int8(arguments, folder.path());
        assert!(output.stdout.is_empty(), "{arguments:?}");
        assert_eq!(output.status.code(), Some(code), "{arguments:?}");
        let error: Value = serde_json::from_slice(&output.stderr).expect("one JSON object");
        assert_eq!(error["error"]["exit_code"], code, "{error}");
        assert!(error["error"]["message"].as_str().expect("a message").contains(word), "{error}");
    }
    // Help is no error.
    let help = int8(&["run", "--help"], folder.path());
    assert!(help.status.success() && String::from_utf8_lossy(&help.stdout).contains("Usage"));
}
