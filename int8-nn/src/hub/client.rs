//! Requests to the hub: addresses, errors by status, the token's scope.

use std::io::Read;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ureq::http::{HeaderMap, Response, Uri};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body};

use super::{HubError, ModelId, Settings};

/// Timeout of a connection, and of the next bytes of an answer.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Most redirections followed; the hub uses two.
const MOST_REDIRECTS: usize = 10;

/// Bytes `begin..end` of a file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Range {
    pub(super) begin: u64,
    pub(super) end: Option<u64>,
}

/// A file's checksum and size, as stated by the hub.
#[derive(Debug)]
pub(super) struct Stated {
    /// SHA-256 of large files, git's SHA-1 of small ones.
    pub(super) checksum: String,
    /// In bytes.
    pub(super) size: u64,
}

#[derive(Debug)]
pub(super) struct Client {
    agent: Agent,
    endpoint: String,
    token: Option<String>,
    pub(super) attempts: u32,
    pub(super) pause: Duration,
    pub(super) pace: Pace,
    deadline: Duration,
}

/// The fewest bytes of an answer over a time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    window: Duration,
    rate: u64,
}

impl Pace {
    /// Bytes over the window.
    pub(super) fn least(self) -> u64 {
        u64::try_from(self.window.as_millis()).unwrap_or(u64::MAX).saturating_mul(self.rate) / 1000
    }
}

/// An answer's body that must arrive at a pace, and before a deadline if there is one.
pub(super) struct Paced<R> {
    body: R,
    pace: Pace,
    deadline: Option<Instant>,
    /// Begin of the window, and the bytes in it.
    window: (Instant, u64),
}

impl<R: Read> Paced<R> {
    pub(super) fn new(body: R, pace: Pace, deadline: Option<Duration>) -> Self {
        let now = Instant::now();
        Self {
            body,
            pace,
            deadline: deadline.and_then(|deadline| now.checked_add(deadline)),
            window: (now, 0),
        }
    }
}

impl<R: Read> Read for Paced<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let length = self.body.read(buffer)?;
        let now = Instant::now();
        let slow = |problem: String| Err(std::io::Error::new(std::io::ErrorKind::TimedOut, problem));
        if self.deadline.is_some_and(|deadline| now > deadline) && length > 0 {
            return slow("the answer takes too long".to_owned());
        }
        self.window.1 = self.window.1.saturating_add(u64::try_from(length).unwrap_or(u64::MAX));
        if now.duration_since(self.window.0) >= self.pace.window {
            if self.window.1 < self.pace.least() && length > 0 {
                return slow(format!("the answer comes at less than {} bytes a second", self.pace.rate));
            }
            self.window = (now, 0);
        }
        Ok(length)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Method {
    Get,
    Head,
}

impl Client {
    pub(super) fn new(settings: Settings) -> Result<Self, HubError> {
        let wrong = |name, problem: String| HubError::Settings { name, problem };
        let address: Result<Uri, _> = settings.endpoint.parse();
        let usable = address.is_ok_and(|address| {
            matches!(address.scheme_str(), Some("http" | "https")) && address.host().is_some()
        });
        if !usable {
            let problem =
                format!("is {:?}; expected an address such as https://huggingface.co", settings.endpoint);
            return Err(wrong("HF_ENDPOINT", problem));
        }
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_connect(Some(TIMEOUT))
            .timeout_recv_response(Some(TIMEOUT))
            .timeout_per_read(Some(TIMEOUT))
            .user_agent(concat!("int8/", env!("CARGO_PKG_VERSION")));
        if !settings.proxy {
            config = config.proxy(None);
        }
        if let Some(path) = &settings.certificates {
            const NAME: &str = "SSL_CERT_FILE";
            let bundle = std::fs::read(path)
                .map_err(|error| wrong(NAME, format!("{} cannot be read: {error}", path.display())))?;
            let certificates: Vec<Certificate<'static>> = parse_pem(&bundle)
                .filter_map(|item| match item {
                    Ok(PemItem::Certificate(certificate)) => Some(certificate),
                    _ => None,
                })
                .collect();
            if certificates.is_empty() {
                return Err(wrong(NAME, format!("{} holds no certificates in PEM form", path.display())));
            }
            let roots = RootCerts::Specific(Arc::new(certificates));
            config = config.tls_config(TlsConfig::builder().root_certs(roots).build());
        }
        Ok(Self {
            agent: config.build().new_agent(),
            endpoint: settings.endpoint,
            token: settings.token,
            attempts: settings.attempts.max(1),
            pause: settings.pause,
            pace: Pace { window: settings.window, rate: settings.least_rate },
            deadline: settings.deadline,
        })
    }

    /// Address of the list of a repository's files.
    pub(super) fn listing(&self, id: &ModelId) -> String {
        format!("{}/api/models/{}/revision/{}", self.endpoint, id.repository(), escaped(id.revision(), false))
    }

    /// Address of a file.
    pub(super) fn file(&self, id: &ModelId, commit: &str, name: &str) -> String {
        format!("{}/{}/resolve/{commit}/{}", self.endpoint, id.repository(), escaped(name, true))
    }

    /// The contents at an address, at most `limit` bytes.
    pub(super) fn bytes(
        &self,
        id: &ModelId,
        url: &str,
        range: Option<Range>,
        limit: u64,
    ) -> Result<Vec<u8>, HubError> {
        let answer = self.get(id, url, range)?;
        let mut bytes = Vec::new();
        let body = Paced::new(answer.into_body().into_reader(), self.pace, Some(self.deadline));
        let read = body.take(limit + 1).read_to_end(&mut bytes);
        read.map_err(|error| network(url, &error))?;
        match u64::try_from(bytes.len()) {
            Ok(length) if length <= limit => Ok(bytes),
            _ => Err(HubError::Answer { url: url.to_owned(), reason: format!("more than {limit} bytes") }),
        }
    }

    /// The answer of an address, of a range if given.
    pub(super) fn get(
        &self,
        id: &ModelId,
        url: &str,
        range: Option<Range>,
    ) -> Result<Response<Body>, HubError> {
        let answer = self.follow(Method::Get, url, range)?;
        match (answer.status().as_u16(), range) {
            (200, None) | (206, Some(_)) => Ok(answer),
            // A server without ranges sends the file from its start.
            (200, Some(Range { begin: 0, end: None })) => Ok(answer),
            (200, Some(Range { end: Some(_), .. })) => {
                Err(HubError::Answer { url: url.to_owned(), reason: "it sends no parts of files".to_owned() })
            }
            (200, Some(_)) => Ok(answer),
            _ => Err(self.refusal(id, url, &answer)),
        }
    }

    /// Checksum and size of a file.
    pub(super) fn describe(&self, id: &ModelId, url: &str) -> Result<Stated, HubError> {
        // Of a redirection to another host, the hub's own answer has the checksum.
        let answer = self.follow(Method::Head, url, None)?;
        let status = answer.status();
        if !status.is_success() && !status.is_redirection() {
            return Err(self.refusal(id, url, &answer));
        }
        let wrong = |reason: &str| HubError::Answer { url: url.to_owned(), reason: reason.to_owned() };
        let header = |names: [&str; 2]| names.iter().find_map(|name| text(answer.headers(), name));
        let checksum = header(["x-linked-etag", "etag"]).ok_or_else(|| wrong("no checksum (ETag)"))?;
        let checksum = checksum.trim_start_matches("W/").trim_matches('"').to_owned();
        // It becomes the name of a file.
        let plain =
            |character: char| character.is_ascii_alphanumeric() || character == '-' || character == '_';
        if checksum.is_empty() || checksum.len() > 128 || !checksum.chars().all(plain) {
            return Err(wrong("a checksum (ETag) that cannot be the name of a file"));
        }
        let size = header(["x-linked-size", "content-length"]).and_then(|size| size.parse().ok());
        Ok(Stated { checksum, size: size.ok_or_else(|| wrong("no size (Content-Length)"))? })
    }

    /// Makes a request and follows redirections: all of them to get something, those inside the host to describe it.
    fn follow(&self, method: Method, url: &str, range: Option<Range>) -> Result<Response<Body>, HubError> {
        let mut url = url.to_owned();
        // As Python's `requests`: once a redirection has left the host, the token is not sent again, not even to the host itself,
        // since its address is then another's choice.
        let mut with_token = true;
        for _ in 0..=MOST_REDIRECTS {
            with_token &= same_host(&url, &self.endpoint);
            let answer = self.request(method, &url, range, with_token)?;
            let target = match text(answer.headers(), "location") {
                Some(target) if answer.status().is_redirection() => target,
                _ => return Ok(answer),
            };
            let next = join(&url, target).ok_or_else(|| HubError::Answer {
                url: url.clone(),
                reason: format!("a redirection to `{}`", target.escape_debug()),
            })?;
            if method == Method::Head && !same_host(&next, &url) {
                return Ok(answer);
            }
            if url.starts_with("https:") && !next.starts_with("https:") {
                let reason = "a redirection to an address without encryption".to_owned();
                return Err(HubError::Answer { url, reason });
            }
            url = next;
        }
        Err(HubError::Answer { url, reason: "too many redirections".to_owned() })
    }

    fn request(
        &self,
        method: Method,
        url: &str,
        range: Option<Range>,
        with_token: bool,
    ) -> Result<Response<Body>, HubError> {
        let mut request = match method {
            Method::Get => self.agent.get(url),
            Method::Head => self.agent.head(url),
        };
        if let Some(token) = &self.token
            && with_token
        {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        match range {
            Some(Range { begin, end: Some(end) }) => {
                request = request.header("Range", format!("bytes={begin}-{}", end.saturating_sub(1)));
            }
            Some(Range { begin, end: None }) if begin > 0 => {
                request = request.header("Range", format!("bytes={begin}-"));
            }
            _ => {}
        }
        request.call().map_err(|error| network(url, &error))
    }

    /// The error of an unsuccessful status.
    fn refusal(&self, id: &ModelId, url: &str, answer: &Response<Body>) -> HubError {
        let (endpoint, repository) = (self.endpoint.clone(), id.repository());
        let token = self.token.is_some();
        let status = answer.status().as_u16();
        let code = text(answer.headers(), "x-error-code").unwrap_or_default();
        let message = text(answer.headers(), "x-error-message").unwrap_or_default();
        match (status, code) {
            (_, "GatedRepo") => HubError::Gated { endpoint, repository, token },
            (_, "RevisionNotFound") => {
                HubError::NoRevision { repository, revision: id.revision().to_owned() }
            }
            (_, "EntryNotFound") => {
                let file = url.split_once("/resolve/").and_then(|(_, rest)| rest.split_once('/'));
                let file = file.map_or(url, |(_, file)| file).to_owned();
                HubError::NoFile { repository, revision: id.revision().to_owned(), file }
            }
            (401, _) if token && message.contains("Invalid credentials") => {
                HubError::Token { endpoint, repository, status }
            }
            (_, "RepoNotFound") | (401 | 404, _) => HubError::NoRepository { endpoint, repository, token },
            (403, _) if token => HubError::Token { endpoint, repository, status },
            (403, _) => HubError::Gated { endpoint, repository, token },
            _ => HubError::Status { url: url.to_owned(), status, message: message.to_owned() },
        }
    }
}

pub(super) fn network(url: &str, error: &dyn std::error::Error) -> HubError {
    HubError::Network { url: url.to_owned(), reason: error.to_string() }
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// Scheme and host with its port.
fn origin(url: &str) -> Option<(&str, &str)> {
    let (scheme, rest) = url.split_once("://")?;
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    Some((scheme, &rest[..end]))
}

fn same_host(left: &str, right: &str) -> bool {
    let origins = (origin(left), origin(right));
    matches!(origins, (Some(left), Some(right)) if left == right)
}

/// `target` resolved against `url`.
fn join(url: &str, target: &str) -> Option<String> {
    if target.starts_with("http://") || target.starts_with("https://") {
        return Some(target.to_owned());
    }
    let (scheme, host) = origin(url)?;
    match target.strip_prefix("//") {
        Some(rest) => Some(format!("{scheme}://{rest}")),
        None if target.starts_with('/') => Some(format!("{scheme}://{host}{target}")),
        None => None,
    }
}

/// Percent-encodes a name; slashes stay if `keep_slashes`.
fn escaped(name: &str, keep_slashes: bool) -> String {
    let mut out = String::with_capacity(name.len());
    for byte in name.bytes() {
        let kept = byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) || byte == b'/' && keep_slashes;
        if kept {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        assert_eq!(escaped("refs/pr/1", false), "refs%2Fpr%2F1");
        assert_eq!(escaped("1_Pooling/a b\u{e9}.json", true), "1_Pooling/a%20b%C3%A9.json");
        assert_eq!(join("http://a:1/b/c", "/d?e").as_deref(), Some("http://a:1/d?e"));
        assert_eq!(join("https://a/b", "//c/d").as_deref(), Some("https://c/d"));
        assert_eq!(join("https://a/b", "http://c/d").as_deref(), Some("http://c/d"));
        assert_eq!(join("https://a/b", "c"), None);
    }

    #[test]
    fn the_token_stays_with_its_host() {
        let endpoint = "https://huggingface.co";
        assert!(same_host("https://huggingface.co/a/resolve/main/b", endpoint));
        for other in [
            "http://huggingface.co/a",
            "https://huggingface.co.example.org/a",
            "https://cdn.huggingface.co/a",
            "https://huggingface.co:444/a",
            "https://example.org/huggingface.co",
            "https://user@example.org/a",
        ] {
            assert!(!same_host(other, endpoint), "{other}");
        }
    }
}
