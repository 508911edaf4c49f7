//! Several processes of the program that compute a model together, as torchrun starts them.

use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

fn demo() -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/demo-opt").to_str().expect("UTF-8").to_owned()
}

/// A port such that the next one is free.
fn port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address").port() - 1
}

fn start(process: usize, processes: usize, port: u16, arguments: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_int8"))
        .args(arguments)
        .args(["--device", "cpu", "--threads", "1"])
        .env("RANK", process.to_string())
        .env("WORLD_SIZE", processes.to_string())
        .env("LOCAL_RANK", process.to_string())
        .env("MASTER_ADDR", "127.0.0.1")
        .env("MASTER_PORT", port.to_string())
        .env("HF_HUB_OFFLINE", "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program")
}

/// The output of all of them.
fn together(processes: usize, arguments: &[&str]) -> Vec<Output> {
    let port = port();
    let children: Vec<_> = (0..processes).map(|process| start(process, processes, port, arguments)).collect();
    children.into_iter().map(|child| child.wait_with_output().expect("an end")).collect()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The first one alone prints, and what it prints is what one process prints with as many ranks.
#[test]
fn processes_answer_as_one() {
    let demo = demo();
    let run =
        ["run", &demo, "-p", "The old man sat", "-n", "12", "--greedy", "--json", "--tensor-parallel", "2"];
    let text = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/demo.txt");
    let text = text.to_str().expect("UTF-8");
    let eval = [
        "eval",
        &demo,
        "--text",
        text,
        "--window",
        "64",
        "--windows",
        "2",
        "--json",
        "--tensor-parallel",
        "2",
    ];
    for (arguments, key) in [(&run[..], "ids"), (&eval[..], "perplexity")] {
        let alone = Command::new(env!("CARGO_BIN_EXE_int8"))
            .args(arguments)
            .args(["--device", "cpu"])
            .output()
            .expect("the program");
        let alone: Value = serde_json::from_slice(&alone.stdout).expect("JSON");
        let outputs = together(2, arguments);
        for output in &outputs {
            assert!(output.status.success(), "{}", said(output));
        }
        let first: Value = serde_json::from_slice(&outputs[0].stdout).expect("JSON");
        assert!(!first[key].is_null(), "{first}");
        assert_eq!(first[key], alone[key]);
        assert!(outputs[1].stdout.is_empty() && outputs[1].stderr.is_empty(), "{}", said(&outputs[1]));
    }
}

/// A process that dies ends the others within 10 s, whichever it is.
#[test]
fn a_process_that_dies_ends_the_others() {
    let demo = demo();
    // One port, which one of them alone can have.
    let http = port().to_string();
    let serve = ["serve", &demo, "--port", &http, "--tensor-parallel", "2"];
    for victim in [0, 1] {
        let port = port();
        let mut children: Vec<_> = (0..2).map(|process| start(process, 2, port, &serve)).collect();
        // Both have the model, and nothing to do.
        let mut words = BufReader::new(children[0].stdout.take().expect("piped"));
        let mut line = String::new();
        while !line.contains("http://") {
            line.clear();
            assert_ne!(words.read_line(&mut line).expect("a line"), 0, "the server has ended");
        }
        children[victim].kill().expect("killed");
        let begin = Instant::now();
        let mut other = children.remove(1 - victim);
        let status = other.wait().expect("an end");
        assert!(begin.elapsed() < Duration::from_secs(10), "{status}");
        assert_eq!(status.code(), Some(1));
        let mut said = String::new();
        other.stderr.take().expect("piped").read_to_string(&mut said).expect("words");
        assert!(said.contains(&format!("process {victim} of 2")), "{said}");
        children.remove(0).wait().expect("an end");
    }
}

/// Commands that differ are refused by all.
#[test]
fn processes_with_other_settings_are_refused() {
    let demo = demo();
    let port = port();
    let first = start(0, 2, port, &["run", &demo, "-p", "The", "--tensor-parallel", "2"]);
    let second = start(1, 2, port, &["run", &demo, "-p", "The", "--fp", "--tensor-parallel", "2"]);
    for child in [first, second] {
        let output = child.wait_with_output().expect("an end");
        assert_eq!(output.status.code(), Some(1), "{}", said(&output));
        assert!(said(&output).contains("same command"), "{}", said(&output));
    }
    // What is not a part of several processes, and ranks that cannot be shared out among them.
    let output = &together(2, &["run", &demo, "-p", "The", "--tensor-parallel", "3"])[1];
    assert_eq!(output.status.code(), Some(2), "{}", said(output));
    assert!(said(output).contains("3 in 2 processes"), "{}", said(output));
    for output in together(2, &["demo", "--tensor-parallel", "2"]) {
        assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    }
}
