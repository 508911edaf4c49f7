//! What the server answers: routes, and from a body to requests of the engine.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::body::{Body, Incoming};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request as HttpRequest, Response, StatusCode};
use int8_nn::engine::{EmbedHandle, Event, Handle, Request, SamplingParams};
use int8_nn::{ChatTemplate, SpecialTokens, Tokenizer};
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};

use super::answer::{Answers, Form, Start, now};
use super::error::ApiError;
use super::fields::Fields;
use super::journal::Journal;
use super::reply::{Reply, Running, Stream};
use super::request::{Chat, Completion, Prompt, prompts, random};
use crate::json_form::JsonForms;

/// The page at `/`.
const PAGE: &str = include_str!("page.html");

/// Time for a body to arrive.
const BODY_TIME: Duration = Duration::from_secs(30);

/// Most texts of a request for embeddings, as OpenAI has it.
const MOST_TEXTS: usize = 2048;

/// Turns texts into tokens for an encoder.
pub(super) type Tokenize = Box<dyn Fn(&[Prompt]) -> Result<Vec<Vec<u32>>, ApiError> + Send + Sync>;

/// The model behind the server.
pub(super) enum Service {
    Generate {
        handle: Handle,
        tokenizer: Option<Arc<Tokenizer>>,
        template: Result<Box<ChatTemplate>, String>,
        /// What the model's own settings say of requests that do not.
        default: Box<SamplingParams>,
        /// Tokens that end a text.
        eos: Vec<u32>,
        /// Made for the first request that needs it: it takes a moment for a large vocabulary.
        forms: OnceLock<Result<JsonForms, String>>,
    },
    Embed {
        handle: EmbedHandle,
        tokenize: Tokenize,
    },
}

/// What all connections share.
pub(super) struct App {
    pub(super) name: String,
    pub(super) service: Service,
    pub(super) api_key: Option<String>,
    pub(super) timeout: Duration,
    pub(super) max_body: usize,
    /// Facts about the model, for the page.
    pub(super) info: Value,
    /// Shares of outlier columns by layer.
    pub(super) outliers: Box<dyn Fn() -> Value + Send + Sync>,
    pub(super) journal: Arc<Journal>,
    pub(super) created: u64,
}

impl std::fmt::Debug for App {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("App").field("name", &self.name).finish_non_exhaustive()
    }
}

/// What a route answers.
enum Outcome {
    Json(Value),
    Text(&'static str, String),
    Stream(Box<Running>),
}

impl App {
    /// Ends the queue: of requests that run, or at once.
    pub(super) fn stop(&self, at_once: bool) {
        if let Service::Generate { handle, .. } = &self.service {
            if at_once { handle.stop() } else { handle.drain() }
        }
    }

    /// Answers a request; never fails.
    pub(super) async fn respond(
        self: Arc<Self>,
        request: HttpRequest<Incoming>,
        client: SocketAddr,
    ) -> Response<Reply> {
        let begin = Instant::now();
        let given = request.headers().get("x-request-id").and_then(|id| id.to_str().ok());
        let given = given
            .filter(|id| (1..=128).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic()));
        let id = given.map_or_else(|| format!("{:016x}", random()), str::to_owned);
        let method = request.method().clone();
        let path = request.uri().path().to_owned();
        let mut ignored = Vec::new();
        let outcome = Arc::clone(&self).route(request, &id, &mut ignored).await;
        let status = outcome.as_ref().map_or_else(|error| error.status, |_| StatusCode::OK);
        self.journal.metrics.response(known(&path), status.as_u16());
        let mut line = json!({"event": "response", "request_id": id, "client": client.to_string(), "method": method.as_str(),
            "path": path, "status": status.as_u16(), "seconds": begin.elapsed().as_secs_f64()});
        if let Err(error) = &outcome {
            line["error"] = json!(error.message);
        }
        if !ignored.is_empty() {
            line["ignored_fields"] = json!(ignored);
        }
        self.journal.log(&line);
        let retry_after = outcome.as_ref().err().and_then(|error| error.retry_after);
        let (kind, reply) = match outcome {
            Ok(Outcome::Json(value)) => ("application/json", Reply::Whole(Some(value.to_string().into()))),
            Ok(Outcome::Text(kind, text)) => (kind, Reply::Whole(Some(text.into()))),
            Ok(Outcome::Stream(running)) => {
                ("text/event-stream", Reply::Stream(Box::new(Stream::new(*running))))
            }
            Err(error) => ("application/json", Reply::Whole(Some(error.body().to_string().into()))),
        };
        let mut response = Response::new(reply);
        *response.status_mut() = status;
        let headers = response.headers_mut();
        let mut set = |name: &'static str, value: &str| {
            if let Ok(value) = HeaderValue::from_str(value) {
                headers.insert(name, value);
            }
        };
        set("content-type", kind);
        set("cache-control", "no-store");
        set("x-content-type-options", "nosniff");
        set("x-request-id", &id);
        if kind.starts_with("text/html") {
            let policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; \
                          img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
            set("content-security-policy", policy);
        }
        if !ignored.is_empty() {
            set("x-ignored-fields", &ignored.join(","));
        }
        if let Some(seconds) = retry_after {
            set("retry-after", &seconds.to_string());
        }
        response
    }

    async fn route(
        self: Arc<Self>,
        request: HttpRequest<Incoming>,
        id: &str,
        ignored: &mut Vec<String>,
    ) -> Result<Outcome, ApiError> {
        let path = request.uri().path().to_owned();
        let allowed = match known(&path) {
            "other" => {
                return Err(ApiError::new(
                    StatusCode::NOT_FOUND,
                    "unknown_url",
                    format!("there is no {path} here"),
                ));
            }
            "/v1/chat/completions" | "/v1/completions" | "/v1/embeddings" => Method::POST,
            _ => Method::GET,
        };
        let head = allowed == Method::GET && request.method() == Method::HEAD;
        if request.method() != allowed && !head {
            let message = format!("{path} takes {allowed}, not {}", request.method());
            return Err(ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message));
        }
        if !matches!(&path[..], "/" | "/health") {
            self.authorize(&request)?;
        }
        match known(&path) {
            "/" => Ok(Outcome::Text("text/html; charset=utf-8", PAGE.to_owned())),
            "/health" => Ok(Outcome::Json(json!({"status": "ok", "model": self.name}))),
            "/metrics" => {
                let stats = self.stats();
                Ok(Outcome::Text("text/plain; version=0.0.4", self.journal.metrics.text(stats.as_ref())))
            }
            "/api/status" => Ok(Outcome::Json(self.status())),
            "/v1/models" => Ok(Outcome::Json(json!({"object": "list", "data": [self.model()]}))),
            "/v1/models/*" => {
                self.check_model(path.strip_prefix("/v1/models/"))?;
                Ok(Outcome::Json(self.model()))
            }
            "/v1/embeddings" => {
                let body = self.body(request).await?;
                self.embed(&body, ignored).await.map(Outcome::Json)
            }
            path => {
                let form = if path == "/v1/chat/completions" { Form::Chat } else { Form::Completion };
                let body = self.body(request).await?;
                Self::generate(self, form, body, id, ignored).await
            }
        }
    }

    fn authorize(&self, request: &HttpRequest<Incoming>) -> Result<(), ApiError> {
        let Some(key) = &self.api_key else { return Ok(()) };
        let given = request.headers().get(AUTHORIZATION).map(HeaderValue::as_bytes).unwrap_or_default();
        let given = given.strip_prefix(b"Bearer ").unwrap_or_default();
        // As long for a wrong key as for the right one.
        let differing = given.iter().zip(key.as_bytes().iter().cycle()).fold(0, |all, (a, b)| all | (a ^ b));
        if given.len() == key.len() && differing == 0 {
            return Ok(());
        }
        let message = "a valid API key is needed: Authorization: Bearer KEY";
        Err(ApiError::new(StatusCode::UNAUTHORIZED, "invalid_api_key", message))
    }

    async fn body(&self, request: HttpRequest<Incoming>) -> Result<Bytes, ApiError> {
        let kind =
            request.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        // A page of another origin can send any other type without being asked first.
        if kind.split(';').next().unwrap_or_default().trim() != "application/json" {
            let message = "the body must be JSON: send Content-Type: application/json";
            return Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", message));
        }
        let body = request.into_body();
        let too_large = || {
            let message = format!("the body has more than {} bytes", self.max_body);
            ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", message)
        };
        if body.size_hint().lower() > crate::convert::count(self.max_body) {
            return Err(too_large());
        }
        match tokio::time::timeout(BODY_TIME, Limited::new(body, self.max_body).collect()).await {
            Ok(Ok(body)) => Ok(body.to_bytes()),
            Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => Err(too_large()),
            Ok(Err(error)) => Err(ApiError::new(
                StatusCode::BAD_REQUEST,
                "incomplete_body",
                format!("the body broke off: {error}"),
            )),
            Err(_) => {
                Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, "timeout", "the body took too long to arrive"))
            }
        }
    }

    fn model(&self) -> Value {
        json!({"id": self.name, "object": "model", "created": self.created, "owned_by": "local"})
    }

    fn check_model(&self, name: Option<&str>) -> Result<(), ApiError> {
        match name {
            Some(name) if name != self.name => {
                let message = format!("the model `{name}` does not exist; this server has `{}`", self.name);
                Err(ApiError::new(StatusCode::NOT_FOUND, "model_not_found", message))
            }
            _ => Ok(()),
        }
    }

    fn stats(&self) -> Option<int8_nn::engine::EngineStats> {
        match &self.service {
            Service::Generate { handle, .. } => Some(handle.stats()),
            Service::Embed { .. } => None,
        }
    }

    fn status(&self) -> Value {
        let mut status = json!({"model": self.name, "info": self.info, "outliers": (self.outliers)()});
        if let Some(stats) = self.stats() {
            status["engine"] = json!({"running": stats.active, "waiting": stats.waiting, "pages": stats.pages,
                "free_pages": stats.free_pages, "prompt_tokens": stats.prompt_tokens, "cached_tokens": stats.cached_tokens,
                "new_tokens": stats.new_tokens});
        }
        status
    }

    /// Parses the body, off the thread that serves connections: a body may be large.
    async fn generate(
        app: Arc<Self>,
        form: Form,
        body: Bytes,
        id: &str,
        ignored: &mut Vec<String>,
    ) -> Result<Outcome, ApiError> {
        let begin = Instant::now();
        let (prepared, request_id) = (Arc::clone(&app), id.to_owned());
        let prepare = move || prepared.prepare(form, &body, &request_id);
        let prepared = tokio::task::spawn_blocking(prepare).await;
        let prepared = prepared.map_err(|_| ApiError::server("the request could not be read"))??;
        *ignored = prepared.ignored;
        let Service::Generate { handle, .. } = &app.service else {
            return Err(ApiError::server("the model generates no text"));
        };
        let (sender, events) = mpsc::unbounded_channel();
        let mut running = Running {
            handle: handle.clone(),
            journal: Arc::clone(&app.journal),
            request_id: id.to_owned(),
            begin,
            ids: Vec::new(),
            events,
            answers: prepared.answers,
            outcome: "disconnected",
        };
        for (index, mut request) in prepared.requests.into_iter().enumerate() {
            request.deadline = Some(begin + app.timeout);
            let sender = sender.clone();
            let sink = move |event: Event| match sender.send((index, event)) {
                Ok(()) => std::ops::ControlFlow::Continue(()),
                Err(_) => std::ops::ControlFlow::Break(()),
            };
            match handle.submit(request, Box::new(sink)) {
                Ok(id) => running.ids.push(id),
                Err(rejection) => {
                    running.outcome = "refused";
                    return Err(rejection.into());
                }
            }
        }
        drop(sender);
        if prepared.stream {
            Ok(Outcome::Stream(Box::new(running)))
        } else {
            running.whole().await.map(Outcome::Json)
        }
    }

    fn prepare(&self, form: Form, body: &[u8], id: &str) -> Result<Prepared, ApiError> {
        let body = parse(body)?;
        let fields = Fields::new(&body)?;
        self.check_model(fields.text("model")?)?;
        let Service::Generate { tokenizer, template, default, eos, forms, .. } = &self.service else {
            let message = format!("`{}` is an encoder: it has embeddings and generates no text", self.name);
            return Err(ApiError::new(StatusCode::BAD_REQUEST, "unsupported_model", message));
        };
        let no_tokenizer =
            || ApiError::server("the checkpoint has no tokenizer: give token ids to /v1/completions");
        let (generate, ignored, mut requests, echoes, names);
        match form {
            Form::Chat => {
                let chat = Chat::read(&fields, default)?;
                let template = template.as_ref().map_err(|message| {
                    ApiError::new(
                        StatusCode::BAD_REQUEST,
                        "unsupported_model",
                        format!("{message} (/v1/completions)"),
                    )
                })?;
                let tokenizer = tokenizer.as_ref().ok_or_else(no_tokenizer)?;
                let text =
                    template.render_json(&chat.messages, &chat.tools, &chat.template_arguments, true)?;
                // The template writes the special tokens itself.
                let ids = tokenizer.encode(&text, SpecialTokens::Omit)?;
                let end = template.eos_token().and_then(|token| tokenizer.token_id(token));
                requests = Vec::new();
                for choice in 0..chat.generate.choices {
                    let stop_ids = end.into_iter().collect();
                    requests.push(Request { stop_ids, ..chat.generate.request(ids.clone(), choice) });
                }
                echoes = vec![String::new(); requests.len()];
                (generate, ignored, names) = (chat.generate, chat.ignored, chat.tool_names);
            }
            Form::Completion => {
                let completion = Completion::read(&fields, default)?;
                let choices = completion.generate.choices;
                requests = Vec::new();
                let mut texts = Vec::new();
                for prompt in completion.prompts {
                    let (ids, text) = match prompt {
                        Prompt::Text(text) => (
                            tokenizer.as_ref().ok_or_else(no_tokenizer)?.encode(&text, SpecialTokens::Add)?,
                            text,
                        ),
                        Prompt::Ids(ids) => {
                            let text = match tokenizer {
                                Some(tokenizer) if completion.echo => tokenizer.decode(&ids)?,
                                _ => String::new(),
                            };
                            (ids, text)
                        }
                    };
                    for choice in 0..choices {
                        requests.push(completion.generate.request(ids.clone(), choice));
                        texts.push(if completion.echo { text.clone() } else { String::new() });
                    }
                }
                echoes = texts;
                (generate, ignored, names) = (completion.generate, completion.ignored, Vec::new());
            }
        }
        if let Some(json) = &generate.json {
            let tokenizer = tokenizer.as_ref().ok_or_else(no_tokenizer)?;
            let forms = forms.get_or_init(|| JsonForms::new(tokenizer)).as_ref().map_err(|problem| {
                ApiError::unsupported(json.field, format!("`{}`: {problem}", json.field))
            })?;
            let mut ends = eos.clone();
            ends.extend(requests.first().into_iter().flat_map(|request| &request.stop_ids));
            let constraint = forms.constraint(&json.schema, ends).map_err(|problem| {
                ApiError::field(
                    json.field,
                    format!("`{}`: the schema is not supported: {problem}", json.field),
                )
            })?;
            for request in &mut requests {
                request.constraint = Some(constraint.clone());
            }
        }
        let answers = Answers::new(Start {
            form,
            id,
            model: &self.name,
            tokenizer: tokenizer.clone(),
            include_usage: generate.include_usage,
            of_prompt: generate.choices,
            echoes,
            tool_names: &names,
        });
        Ok(Prepared { answers, requests, stream: generate.stream, ignored })
    }

    async fn embed(&self, body: &[u8], ignored: &mut Vec<String>) -> Result<Value, ApiError> {
        let body = parse(body)?;
        let fields = Fields::new(&body)?;
        self.check_model(fields.text("model")?)?;
        let Service::Embed { handle, tokenize } = &self.service else {
            let message = format!(
                "`{}` generates text and has no embeddings; start the server with an encoder",
                self.name
            );
            return Err(ApiError::new(StatusCode::BAD_REQUEST, "unsupported_model", message));
        };
        let base64 = match fields.text("encoding_format")? {
            None | Some("float") => false,
            Some("base64") => true,
            Some(_) => {
                return Err(ApiError::field("encoding_format", "`encoding_format` must be float or base64"));
            }
        };
        fields.refuse("dimensions", &[], "vectors have the model's length")?;
        let texts = prompts("input", fields.get("input"), MOST_TEXTS)?;
        *ignored = fields.ignored();
        let ids = tokenize(&texts)?;
        let tokens: usize = ids.iter().map(Vec::len).sum();
        let (sender, vectors) = oneshot::channel();
        // A client that has gone hears nothing.
        handle.submit(ids, Box::new(move |vectors| drop(sender.send(vectors))))?;
        let gone = |_| ApiError::from(int8_nn::engine::Rejection::Stopped);
        let timeout =
            |_| ApiError::new(StatusCode::REQUEST_TIMEOUT, "timeout", "the request ran out of time");
        let vectors = tokio::time::timeout(self.timeout, vectors).await.map_err(timeout)?.map_err(gone)?;
        let vectors =
            vectors.map_err(|message| ApiError::new(StatusCode::BAD_REQUEST, "invalid_value", message))?;
        let data = vectors.iter().enumerate().map(|(index, vector)| {
            let embedding = if base64 { json!(encode_base64(vector)) } else { json!(vector) };
            json!({"object": "embedding", "index": index, "embedding": embedding})
        });
        Ok(json!({"object": "list", "model": self.name, "data": data.collect::<Vec<_>>(),
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens}}))
    }
}

/// A request that is ready for the engine.
struct Prepared {
    answers: Answers,
    requests: Vec<Request>,
    stream: bool,
    ignored: Vec<String>,
}

fn parse(body: &[u8]) -> Result<Value, ApiError> {
    serde_json::from_slice(body).map_err(|error| {
        ApiError::new(StatusCode::BAD_REQUEST, "invalid_json", format!("the body is no JSON: {error}"))
    })
}

/// The route of a path, for counts.
fn known(path: &str) -> &'static str {
    match path {
        "/" => "/",
        "/health" => "/health",
        "/metrics" => "/metrics",
        "/api/status" => "/api/status",
        "/v1/models" => "/v1/models",
        "/v1/chat/completions" => "/v1/chat/completions",
        "/v1/completions" => "/v1/completions",
        "/v1/embeddings" => "/v1/embeddings",
        _ if path.starts_with("/v1/models/") => "/v1/models/*",
        _ => "other",
    }
}

/// The little-endian bytes of a vector in base 64 (RFC 4648), as OpenAI's clients ask for it.
fn encode_base64(vector: &[f32]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let bytes: Vec<u8> = vector.iter().flat_map(|value| value.to_le_bytes()).collect();
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for three in bytes.chunks(3) {
        let word = (0..3).fold(0_u32, |word, at| word << 8 | u32::from(three.get(at).copied().unwrap_or(0)));
        for digit in 0..4 {
            let at = usize::try_from(word >> (18 - 6 * digit) & 63).unwrap_or_default();
            out.push(if digit <= three.len() { char::from(DIGITS[at]) } else { '=' });
        }
    }
    out
}

/// The time at which the server began.
pub(super) fn created() -> u64 {
    now()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_of_one_two_and_three_numbers() {
        // Python: base64.b64encode(struct.pack("<3f", 1, -2, 0.5))
        assert_eq!(encode_base64(&[1.0]), "AACAPw==");
        assert_eq!(encode_base64(&[1.0, -2.0]), "AACAPwAAAMA=");
        assert_eq!(encode_base64(&[1.0, -2.0, 0.5]), "AACAPwAAAMAAAAA/");
        assert_eq!(encode_base64(&[]), "");
    }
}
