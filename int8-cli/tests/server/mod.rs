//! `int8 serve` as a process, and a client that sends bytes as they are.
#![allow(dead_code, reason = "no test program needs all of it")]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

pub(crate) fn demo_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/demo-opt")
}

pub(crate) fn int8() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_int8"));
    command.env_remove("INT8_KERNEL").env_remove("INT8_API_KEY").env("HF_HUB_OFFLINE", "1");
    command
}

/// A running server; killed when dropped.
pub(crate) struct Server {
    pub(crate) process: Child,
    pub(crate) address: String,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A response: its status, headers in lower case, and body.
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Response {
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("UTF-8")
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(self.text()).unwrap_or_else(|_| panic!("{}: {}", self.status, self.text()))
    }

    /// The data of a stream's events; the last must be the mark of the end.
    pub(crate) fn events(&self) -> Vec<Value> {
        let text = self.text();
        let mut events: Vec<&str> = text.split("\n\n").filter(|event| !event.is_empty()).collect();
        assert_eq!(events.pop(), Some("data: [DONE]"), "{text}");
        let data =
            |event: &&str| serde_json::from_str(event.strip_prefix("data: ").expect("data")).expect("JSON");
        events.iter().map(data).collect()
    }
}

impl Server {
    pub(crate) fn start(model: &Path, arguments: &[&str]) -> Self {
        let mut process = int8()
            .arg("serve")
            .arg(model)
            .args(["--port", "0", "--quiet", "--device", "cpu"])
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the program");
        let mut line = String::new();
        BufReader::new(process.stdout.take().expect("piped")).read_line(&mut line).expect("a line");
        let address = line.split("http://").nth(1).and_then(|rest| rest.split(' ').next());
        let address = address.unwrap_or_else(|| panic!("no address in {line:?}")).to_owned();
        Self { process, address }
    }

    pub(crate) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(&self.address).expect("a connection");
        stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a time-out");
        stream
    }

    pub(crate) fn send(&self, bytes: &[u8]) -> Response {
        let mut stream = self.connect();
        // A server that refuses a large body closes early.
        let _ = stream.write_all(bytes);
        read(&mut stream)
    }

    pub(crate) fn get(&self, path: &str) -> Response {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes())
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> Response {
        self.send(&request(path, body.to_string().as_bytes()))
    }

    /// Begins a stream and reads until its first token.
    pub(crate) fn begin(&self, body: &Value) -> TcpStream {
        let mut stream = self.connect();
        stream.write_all(&request("/v1/completions", body.to_string().as_bytes())).expect("sent");
        let mut seen = Vec::new();
        let mut byte = [0; 256];
        while !seen.windows(6).any(|window| window == b"data: ") {
            let count = stream.read(&mut byte).expect("a byte");
            assert!(count > 0, "{}", String::from_utf8_lossy(&seen));
            seen.extend(&byte[..count]);
        }
        stream
    }

    pub(crate) fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").text().to_owned();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().expect("a number")
    }

    /// Waits until a metric has a value.
    pub(crate) fn wait_for(&self, name: &str, value: f64) {
        let begin = Instant::now();
        while self.metric(name) != value {
            assert!(begin.elapsed() < Duration::from_secs(30), "{name} stays {}", self.metric(name));
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

pub(crate) fn request(path: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

pub(crate) fn read(stream: &mut TcpStream) -> Response {
    let mut bytes = Vec::new();
    let ended = stream.read_to_end(&mut bytes);
    let split = bytes.windows(4).position(|window| window == b"\r\n\r\n");
    let split = split.unwrap_or_else(|| panic!("no head: {ended:?}, {}", String::from_utf8_lossy(&bytes)));
    let head = String::from_utf8_lossy(&bytes[..split]).to_lowercase();
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    let mut body = bytes.split_off(split + 4);
    if head.contains("transfer-encoding: chunked") {
        body = unchunked(&body);
    }
    Response { status, head, body }
}

fn unchunked(mut rest: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    while let Some(end) = rest.windows(2).position(|window| window == b"\r\n") {
        let length = std::str::from_utf8(&rest[..end]).expect("a length");
        let length = usize::from_str_radix(length, 16).expect("a length");
        if length == 0 {
            return body;
        }
        body.extend_from_slice(&rest[end + 2..end + 2 + length]);
        rest = &rest[end + 4 + length..];
    }
    panic!("the stream broke off");
}

/// demo-opt as a chat model: with a template that knows tools.
pub(crate) fn chat_model() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for entry in fs::read_dir(demo_folder()).expect("the model") {
        let path = entry.expect("an entry").path();
        fs::copy(&path, folder.path().join(path.file_name().expect("a name"))).expect("copied");
    }
    let template = "{% if tools %}Tools: {{ tools | tojson }}\n{% endif %}{% for message in messages %}{{ message.role }}: \
                    {{ message.content }}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}";
    fs::write(folder.path().join("chat_template.jinja"), template).expect("written");
    folder
}
