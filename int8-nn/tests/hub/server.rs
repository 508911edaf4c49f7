//! A hub on this machine: one thread for each connection, one request each.

use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sha1::Sha1;
use sha2::{Digest, Sha256};

/// The commit of every revision.
pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// Files of more bytes are large: their contents come from another host.
const LARGE: usize = 1000;

type Give = Box<dyn Fn(&str) -> Option<Answer> + Send + Sync>;

/// What is served, and how.
#[derive(Default)]
pub(crate) struct Repository {
    pub(crate) files: BTreeMap<String, Vec<u8>>,
    /// Contents that are sent instead of the ones described.
    pub(crate) sent: HashMap<String, Vec<u8>>,
    /// Bytes of a large file after which the connection breaks.
    pub(crate) cut: Option<usize>,
    /// Breaks the first answer only.
    pub(crate) cut_once: bool,
    /// Sends whole files whatever the range.
    pub(crate) no_ranges: bool,
    /// An answer to the path instead of the usual one.
    pub(crate) answer: Option<Give>,
    /// Sends bodies byte by byte, with this pause after each; if so, those of large files alone.
    pub(crate) trickle: Option<(Duration, bool)>,
}

/// An answer of the server.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    /// Length stated, if not that of the body.
    length: Option<usize>,
}

impl Answer {
    pub(crate) fn status(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: Vec::new(), length: None }
    }

    pub(crate) fn error(status: u16, code: &str) -> Self {
        Self::status(status).header("X-Error-Code", code)
    }

    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn body(self, body: &[u8]) -> Self {
        Self { body: body.to_vec(), ..self }
    }
}

/// A request as it came.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    method: String,
    pub(crate) path: String,
    range: String,
    pub(crate) authorization: Option<String>,
    /// It came to the host of large files' contents.
    pub(crate) to_contents: bool,
}

struct State {
    repository: Repository,
    contents_address: String,
    requests: Mutex<Vec<Request>>,
    sent: Mutex<usize>,
    cuts: Mutex<usize>,
}

/// The server, until the test ends.
pub(crate) struct Server {
    pub(crate) address: String,
    state: Arc<State>,
}

impl Server {
    pub(crate) fn start(repository: Repository) -> Self {
        let [hub, contents] = [0, 1].map(|_| TcpListener::bind("127.0.0.1:0").unwrap());
        let [address, contents_address] =
            [&hub, &contents].map(|listener| format!("http://{}", listener.local_addr().unwrap()));
        let state = Arc::new(State {
            repository,
            contents_address,
            requests: Mutex::default(),
            sent: Mutex::default(),
            cuts: Mutex::default(),
        });
        for (listener, to_contents) in [(hub, false), (contents, true)] {
            let state = Arc::clone(&state);
            std::thread::spawn(move || {
                for stream in listener.incoming().map_while(Result::ok) {
                    let state = Arc::clone(&state);
                    std::thread::spawn(move || serve(&state, stream, to_contents));
                }
            });
        }
        Self { address, state }
    }

    pub(crate) fn contents(&self, name: &str) -> Vec<u8> {
        self.state.repository.files[name].clone()
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        self.state.requests.lock().unwrap().clone()
    }

    /// The ranges of the requests for this file.
    pub(crate) fn ranges(&self, name: &str) -> Vec<String> {
        let requests = self.requests().into_iter();
        requests
            .filter(|request| request.to_contents && request.path.ends_with(name))
            .map(|request| request.range)
            .collect()
    }

    /// Bytes of bodies sent.
    pub(crate) fn sent(&self) -> usize {
        *self.state.sent.lock().unwrap()
    }

    pub(crate) fn forget(&self) {
        self.state.requests.lock().unwrap().clear();
    }
}

/// A client that goes away is the client's business.
fn serve(state: &State, mut stream: TcpStream, to_contents: bool) {
    let Some(request) = read_request(&stream, to_contents) else { return };
    state.requests.lock().unwrap().push(request.clone());
    let answer = answer(state, &request);
    let length = answer.length.unwrap_or(answer.body.len());
    let mut head = format!("HTTP/1.1 {} Status\r\nConnection: close\r\n", answer.status);
    if !answer.headers.iter().any(|(name, _)| name == "Content-Length") {
        head.push_str(&format!("Content-Length: {length}\r\n"));
    }
    for (name, value) in &answer.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    let _ = stream.write_all(format!("{head}\r\n").as_bytes());
    if request.method != "HEAD" {
        *state.sent.lock().unwrap() += answer.body.len();
        match state.repository.trickle {
            Some((pause, large_alone)) if to_contents || !large_alone => {
                for byte in &answer.body {
                    if stream.write_all(&[*byte]).is_err() {
                        break;
                    }
                    std::thread::sleep(pause);
                }
            }
            _ => {
                let _ = stream.write_all(&answer.body);
            }
        }
    }
}

fn read_request(stream: &TcpStream, to_contents: bool) -> Option<Request> {
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    let first = lines.next()?;
    let mut parts = first.split(' ');
    let (method, path) = (parts.next()?.to_owned(), parts.next()?.to_owned());
    let headers: HashMap<String, String> = lines
        .take_while(|line| !line.is_empty())
        .filter_map(|line| {
            line.split_once(':').map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        })
        .collect();
    let range = headers.get("range").cloned().unwrap_or_default();
    let authorization = headers.get("authorization").cloned();
    Some(Request { method, path, range, authorization, to_contents })
}

fn answer(state: &State, request: &Request) -> Answer {
    let repository = &state.repository;
    if let Some(answer) = repository.answer.as_ref().and_then(|give| give(&request.path)) {
        return answer;
    }
    if request.path.starts_with("/api/models/") {
        let names: Vec<_> =
            repository.files.keys().map(|name| serde_json::json!({"rfilename": name})).collect();
        let listing = serde_json::json!({"sha": COMMIT, "siblings": names});
        return Answer::status(200).body(listing.to_string().as_bytes());
    }
    let after = |marker: &str| request.path.split_once(marker).map(|(_, rest)| rest.to_owned());
    if let Some(name) = after("/contents/") {
        return contents(state, request, &name);
    }
    let name = after("/resolve/").and_then(|rest| rest.split_once('/').map(|(_, name)| name.to_owned()));
    // Small files are redirected inside the host, as the hub does it.
    let (name, redirected) = match after("/resolved/") {
        Some(name) => (Some(name), true),
        None => (name, false),
    };
    let Some((name, bytes)) = name.and_then(|name| repository.files.get_key_value(&name)) else {
        return Answer::error(404, "EntryNotFound");
    };
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    if bytes.len() > LARGE {
        return Answer::status(302)
            .header("Location", &format!("{}/contents/{name}", state.contents_address))
            .header("ETag", "\"of-the-redirection\"")
            .header("X-Linked-Etag", &format!("\"{}\"", hex(&Sha256::digest(bytes))))
            .header("X-Linked-Size", &bytes.len().to_string());
    }
    if !redirected {
        return Answer::status(307).header("Location", &format!("/resolved/{name}"));
    }
    let mut git = Sha1::new();
    git.update(format!("blob {}\0", bytes.len()));
    git.update(bytes);
    let answer = Answer::status(200).header("ETag", &format!("\"{}\"", hex(&git.finalize())));
    match request.method.as_str() {
        "HEAD" => answer.body(bytes),
        _ => answer.body(repository.sent.get(name).unwrap_or(bytes)),
    }
}

/// A large file, or a part of it.
fn contents(state: &State, request: &Request, name: &str) -> Answer {
    let repository = &state.repository;
    let whole = repository.sent.get(name).unwrap_or(&repository.files[name]);
    let range = request.range.strip_prefix("bytes=").and_then(|range| range.split_once('-'));
    let mut answer = match range {
        Some((begin, end)) if !repository.no_ranges => {
            let begin: usize = begin.parse().unwrap();
            let end = end.parse().map_or(whole.len(), |last: usize| (last + 1).min(whole.len()));
            if begin >= whole.len() {
                return Answer::status(416);
            }
            Answer::status(206)
                .header("Content-Range", &format!("bytes {begin}-{}/{}", end - 1, whole.len()))
                .body(&whole[begin..end])
        }
        _ => Answer::status(200).body(whole),
    };
    let mut cuts = state.cuts.lock().unwrap();
    if let Some(cut) = repository.cut
        && (*cuts == 0 || !repository.cut_once)
        && answer.body.len() > cut
    {
        *cuts += 1;
        answer.length = Some(answer.body.len());
        answer.body.truncate(cut);
    }
    answer
}
