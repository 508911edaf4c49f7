//! Prompts, ids, sampling and sizes as people type them.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

/// The program with this standard input.
fn int8(arguments: &[&str], input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_int8"))
        .args(arguments)
        .env("HF_HUB_OFFLINE", "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program");
    // It may end without reading.
    let _ = child.stdin.take().expect("piped").write_all(input.as_bytes());
    child.wait_with_output().expect("an end")
}

fn json(arguments: &[&str], input: &str) -> Value {
    let output = int8(&[arguments, &["--json"]].concat(), input);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

fn asset(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("assets").join(name).to_str().expect("UTF-8").to_owned()
}

#[test]
fn a_prompt_comes_from_anywhere() {
    let demo = asset("demo-opt");
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("prompt.txt");
    fs::write(&file, "The old man sat\r\n").expect("a file");
    let file = file.to_str().expect("UTF-8");
    let run = |options: &[&str], input: &str| {
        json(&[&["run", &demo, "--greedy", "-n", "4"], options].concat(), input)["ids"].clone()
    };
    let expected = run(&["-p", "The old man sat"], "");
    assert_eq!(run(&["-p", "-"], "The old man sat\n"), expected, "-p -");
    assert_eq!(run(&[], "The old man sat\n"), expected, "a pipe");
    assert_eq!(run(&["--prompt-file", file], "not this"), expected, "a file");
    assert_ne!(run(&["-p", "-"], "The old man sat\n\n"), expected, "one end of line is dropped");
    let none = int8(&["run", &demo], "");
    assert_eq!(none.status.code(), Some(2));
    let two = int8(&["run", &demo, "--prompt-file", file, "-p", "x"], "");
    assert_eq!(two.status.code(), Some(2));
    let eval = |text: &str, input: &str| {
        json(&["eval", &demo, "--text", text, "--window", "32", "--windows", "1"], input)["perplexity"]
            .clone()
    };
    let text = asset("demo.txt");
    assert_eq!(eval("-", &fs::read_to_string(&text).expect("a text")), eval(&text, ""));
}

#[test]
fn ids_leave_the_model_alone() {
    let demo = asset("demo-opt");
    let ids =
        |arguments: &[&str]| json(&[arguments, &["--greedy", "-n", "1"]].concat(), "")["prompt_ids"].clone();
    let expected = serde_json::json!([1, 2]);
    assert_eq!(ids(&["run", "--ids", "1,2", &demo]), expected);
    assert_eq!(ids(&["run", &demo, "--ids", "1, 2"]), expected);
    assert_eq!(ids(&["run", &demo, "--ids", "1 2"]), expected);
}

#[test]
fn zero_means_greedy_and_off() {
    let demo = asset("demo-opt");
    let run = |options: &[&str]| {
        json(&[&["run", &demo, "-p", "The old", "-n", "8"], options].concat(), "")["ids"].clone()
    };
    let greedy = run(&["--greedy"]);
    assert_eq!(run(&["--temperature", "0"]), greedy);
    assert_eq!(run(&["--temperature", "0", "--seed", "9"]), greedy);
    // All tokens stay: as a cut that leaves all of the vocabulary.
    assert_eq!(run(&["--top-k", "0", "--seed", "3"]), run(&["--top-k", "2048", "--seed", "3"]));
}

#[test]
fn a_prompt_that_is_too_long_is_not_echoed() {
    let demo = asset("demo-opt");
    let output = int8(&["run", &demo, "-p", &"The old man sat by the fire. ".repeat(200), "-n", "4"], "");
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(message.contains("512 positions") && output.stdout.is_empty(), "{message}");
}

#[test]
fn a_size_without_a_unit_is_questioned() {
    let output = int8(&["plan", "opt-125m", "--gpu-memory", "24"], "");
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(2) && message.contains("24GB"), "{message}");
    let output = int8(
        &["eval", &asset("demo-opt"), "--text", &asset("demo.txt"), "--window", "16", "--windows", "1"],
        "",
    );
    assert!(String::from_utf8_lossy(&output.stdout).contains(" 1 window of 16 tokens"));
}

#[test]
fn the_processor_can_be_several_ranks() {
    let demo = asset("demo-opt");
    let run = |more: &[&str]| {
        let arguments =
            ["run", &demo, "-p", "Once upon a time", "--greedy", "-n", "12", "--fp", "--device", "cpu"];
        json(&[&arguments[..], more].concat(), "")["text"].clone()
    };
    assert_eq!(run(&["--tensor-parallel", "2"]), run(&[]));
    let output = int8(&["run", &demo, "-p", "Once", "--device", "cpu", "--tensor-parallel", "7"], "");
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && message.contains("not divisible"), "{message}");
    let plan = json(&["plan", "bloom-176b", "--tensor-parallel", "2", "--device", "cpu"], "");
    let (all, rank) = (&plan["precisions"][2]["total_bytes"], &plan["precisions"][2]["rank_bytes"]);
    assert!(
        rank.as_u64() < all.as_u64() && rank.as_u64() > all.as_u64().map(|all| all / 2),
        "{rank} of {all}"
    );
    for (option, word) in [("--device-map", "drop one"), ("--offload", "only a GPU")] {
        let output =
            int8(&["run", &demo, "-p", "Once", "--device", "cpu", "--tensor-parallel", "2", option, "1"], "");
        let message = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(2) && message.contains(word), "{message}");
    }
}
