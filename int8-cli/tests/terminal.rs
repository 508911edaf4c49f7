//! The program on a terminal, 80 and 40 columns wide: what a person sees.
#![cfg(unix)]

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

/// Longest wait for a word on the screen; a debug build on a busy machine is slow.
const PATIENCE: Duration = Duration::from_secs(120);

/// The program with a terminal for input, output and errors.
struct Terminal {
    child: Child,
    keyboard: File,
    screen: Arc<Mutex<String>>,
    reader: JoinHandle<()>,
}

impl Terminal {
    fn start(arguments: &[&str], columns: u16) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a pseudo-terminal");
        grantpt(&master).expect("its rights");
        unlockpt(&master).expect("its lock");
        let size = Winsize { ws_row: 24, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        let name = ptsname(&master, Vec::new()).expect("its name").into_string().expect("UTF-8");
        let open = || File::options().read(true).write(true).open(&name).expect("the terminal");
        let terminal = open();
        tcsetwinsize(&terminal, size).expect("a size");
        let child = Command::new(env!("CARGO_BIN_EXE_int8"))
            .args(arguments)
            .env("HF_HUB_OFFLINE", "1")
            .env("TERM", "xterm")
            .env_remove("NO_COLOR")
            .env_remove("COLUMNS")
            .stdin(Stdio::from(open()))
            .stdout(Stdio::from(open()))
            .stderr(Stdio::from(terminal))
            .spawn()
            .expect("the program");
        let keyboard = File::from(master);
        let mut output = keyboard.try_clone().expect("a handle");
        let screen = Arc::new(Mutex::new(String::new()));
        let writer = Arc::clone(&screen);
        let reader = std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            // The last end of the terminal closes with an error.
            while let Ok(read @ 1..) = output.read(&mut bytes) {
                writer.lock().expect("no panic").push_str(&String::from_utf8_lossy(&bytes[..read]));
            }
        });
        Self { child, keyboard, screen, reader }
    }

    /// What has been written, with escape sequences.
    fn written(&self) -> String {
        self.screen.lock().expect("no panic").clone()
    }

    /// Waits until `word` has been written after the first `from` bytes; returns where it ends.
    fn wait_for(&self, word: &str, from: usize) -> usize {
        let begin = Instant::now();
        loop {
            let written = self.written();
            if let Some(at) = written[from..].find(word) {
                return from + at + word.len();
            }
            assert!(begin.elapsed() < PATIENCE, "no {word:?} in {written:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn type_line(&mut self, line: &str) {
        self.keyboard.write_all(format!("{line}\r").as_bytes()).expect("a line");
    }

    fn interrupt(&self) {
        kill_process(Pid::from_child(&self.child), Signal::INT).expect("a signal");
    }

    fn end(mut self) -> (ExitStatus, String) {
        let status = self.child.wait().expect("an end");
        self.reader.join().expect("no panic");
        let written = self.screen.lock().expect("no panic").clone();
        (status, written)
    }
}

/// Without escape sequences.
fn plain(text: &str) -> String {
    let mut plain = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\u{1b}') {
        plain.push_str(before);
        let end = after.find(|character: char| character.is_ascii_alphabetic());
        rest = end.map_or("", |end| &after[end + 1..]);
    }
    plain + rest
}

fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/demo-opt")
}

#[test]
fn a_first_run_fits_the_screen() {
    let folder = demo();
    for columns in [80, 40] {
        for arguments in [&["demo"][..], &["run", folder.to_str().expect("UTF-8"), "-p", "The", "-n", "8"]] {
            let (status, written) = Terminal::start(arguments, columns).end();
            assert!(status.success(), "{written}");
            // Redrawn lines: none may wrap, or each redraw leaves one behind.
            let text = plain(&written);
            let bars: Vec<_> =
                text.split(['\r', '\n']).filter(|line| line.starts_with("converting to int8")).collect();
            assert!(bars.iter().all(|bar| bar.chars().count() <= usize::from(columns)), "{bars:?}");
            assert!(!written.contains("0/0"), "{written}");
        }
    }
}

#[test]
fn a_conversation_is_held_interrupted_and_ended() {
    let folder = demo();
    let folder = folder.to_str().expect("UTF-8");
    // This model has no chat template: it continues lines.
    let mut terminal =
        Terminal::start(&["run", folder, "-n", "400", "--temperature", "1.5", "--ignore-eos"], 80);
    let at = terminal.wait_for("no chat template", 0);
    let at = terminal.wait_for("> ", at);
    terminal.type_line("/help");
    let at = terminal.wait_for("Ctrl-C", at);
    let at = terminal.wait_for("> ", at);
    terminal.type_line("The old man");
    // As it is typed, and as the beginning of the text.
    let at = terminal.wait_for("The old man", at);
    let begin = terminal.wait_for("The old man", at);
    // In the middle of the text: it ends, the program does not.
    terminal.interrupt();
    let at = terminal.wait_for("\u{1b}[K> ", begin);
    // 400 tokens are some 1,400 characters.
    assert!(at - begin < 1000, "{}", &terminal.written()[begin..]);
    terminal.type_line("/bye");
    terminal.wait_for("tokens/s", at);
    let (status, written) = terminal.end();
    assert!(status.success(), "{written}");
}

#[test]
fn mistakes_are_named_in_red() {
    let (status, written) = Terminal::start(&["run", "/nowhere/model", "-p", "a"], 40).end();
    assert_eq!(status.code(), Some(1));
    assert!(written.contains("\u{1b}[1;31merror:\u{1b}[0m /nowhere/model"), "{written:?}");
    let (status, written) =
        Terminal::start(&["run", "/nowhere/model", "-p", "a", "--color", "never"], 40).end();
    assert_eq!(status.code(), Some(1));
    assert!(written.contains("error: /nowhere/model") && !written.contains('\u{1b}'), "{written:?}");
}

/// `/dev/full` is a disk without room.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_an_error() {
    let folder = demo();
    let arguments = ["logits", folder.to_str().expect("UTF-8"), "--ids", "1,2", "--out", "/dev/full"];
    let (status, written) = Terminal::start(&arguments, 80).end();
    assert_eq!(status.code(), Some(1), "{written}");
    assert!(written.contains("/dev/full") && written.contains("o space left"), "{written}");
}

/// As `int8 run … | head -c 20`.
#[test]
fn a_reader_that_leaves_is_no_error() {
    let folder = demo();
    let mut child = Command::new(env!("CARGO_BIN_EXE_int8"))
        .args(["run", folder.to_str().expect("UTF-8"), "-p", "The", "-n", "400", "--ignore-eos"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program");
    let mut first = [0; 20];
    child.stdout.take().expect("a pipe").read_exact(&mut first).expect("text");
    let output = child.wait_with_output().expect("an end");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !errors.contains("error"), "{errors}");
}
