//! From the events of the engine to OpenAI's responses, whole or in chunks.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use hyper::StatusCode;
use int8_nn::Tokenizer;
use int8_nn::engine::{Event, FinishReason, Finished, Token, TokenLogprobs};
use serde_json::{Value, json};

use super::error::ApiError;
use super::tools::{Call, ToolParser};

/// Which endpoint answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Chat,
    Completion,
}

/// A response in the making: one answer a choice.
#[derive(Debug)]
pub(super) struct Answers {
    form: Form,
    id: String,
    created: u64,
    model: String,
    tokenizer: Option<Arc<Tokenizer>>,
    include_usage: bool,
    /// Choices of one prompt.
    of_prompt: usize,
    choices: Vec<Choice>,
    pub(super) usage: Usage,
}

/// What a response begins with.
#[derive(Debug)]
pub(super) struct Start<'a> {
    pub(super) form: Form,
    pub(super) id: &'a str,
    pub(super) model: &'a str,
    pub(super) tokenizer: Option<Arc<Tokenizer>>,
    pub(super) include_usage: bool,
    /// Choices of one prompt.
    pub(super) of_prompt: usize,
    /// The text that each choice begins with.
    pub(super) echoes: Vec<String>,
    /// Names of the tools that may be called.
    pub(super) tool_names: &'a [String],
}

/// Tokens of a response.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Usage {
    pub(super) prompt: usize,
    pub(super) cached: usize,
    pub(super) new: usize,
}

#[derive(Debug)]
struct Choice {
    text: String,
    logprobs: Vec<(u32, TokenLogprobs)>,
    /// Bytes of the text before each token.
    offsets: Vec<usize>,
    tools: ToolParser,
    calls: Vec<Call>,
    /// Whether a chunk was sent.
    begun: bool,
    finish: Option<&'static str>,
}

/// Seconds since 1970.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

impl Answers {
    pub(super) fn new(start: Start<'_>) -> Self {
        let Start { form, id, model, tokenizer, include_usage, of_prompt, echoes, tool_names } = start;
        let prefix = if form == Form::Chat { "chatcmpl" } else { "cmpl" };
        let choices = echoes.into_iter().enumerate().map(|(index, text)| Choice {
            text,
            logprobs: Vec::new(),
            offsets: Vec::new(),
            tools: ToolParser::new(tool_names.to_vec(), format!("call-{id}-{index}")),
            calls: Vec::new(),
            begun: false,
            finish: None,
        });
        Self {
            form,
            id: format!("{prefix}-{id}"),
            created: now(),
            model: model.to_owned(),
            tokenizer,
            include_usage,
            of_prompt,
            choices: choices.collect(),
            usage: Usage::default(),
        }
    }

    /// Whether all choices have ended.
    pub(super) fn is_done(&self) -> bool {
        self.choices.iter().all(|choice| choice.finish.is_some())
    }

    /// Takes an event; returns the chunks for a stream.
    ///
    /// # Errors
    /// When the answer failed, ran out of time or was cancelled.
    pub(super) fn event(&mut self, index: usize, event: Event) -> Result<Vec<Value>, ApiError> {
        match event {
            Event::Token(token) => Ok(self.token(index, token)),
            Event::Finished(finished) => self.finished(index, finished),
        }
    }

    fn token(&mut self, index: usize, token: Token) -> Vec<Value> {
        let mut chunks = self.first_chunk(index);
        let choice = &mut self.choices[index];
        let shown = choice.tools.push(&token.text);
        choice.offsets.push(choice.text.len());
        choice.text.push_str(&shown);
        let logprobs = token.logprobs.map(|logprobs| (token.id, logprobs));
        if !shown.is_empty() || logprobs.is_some() {
            let report =
                logprobs.as_ref().map_or(Value::Null, |one| self.logprobs(index, std::slice::from_ref(one)));
            chunks.push(self.chunk(index, self.delta(&shown), report, None));
        }
        self.choices[index].logprobs.extend(logprobs);
        chunks
    }

    fn finished(&mut self, index: usize, finished: Finished) -> Result<Vec<Value>, ApiError> {
        self.usage.new += finished.new_tokens;
        if index.is_multiple_of(self.of_prompt) {
            self.usage.prompt += finished.prompt_tokens;
            self.usage.cached += finished.cached_tokens;
        }
        let mut reason = match finished.reason {
            FinishReason::EndOfText | FinishReason::StopText(_) => "stop",
            FinishReason::Length => "length",
            FinishReason::Deadline => {
                let message = "the request ran out of time; ask for fewer tokens, or start the server with a longer --timeout";
                return Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, "timeout", message));
            }
            FinishReason::Cancelled => {
                let message = "the server shuts down and ended the request";
                return Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "shutting_down", message));
            }
            FinishReason::Constraint(message) => {
                return Err(ApiError::new(StatusCode::BAD_REQUEST, "invalid_value", message));
            }
            FinishReason::Failed(message) => return Err(ApiError::server(message)),
            _ => "stop",
        };
        let mut chunks = self.first_chunk(index);
        let choice = &mut self.choices[index];
        let mut shown = choice.tools.push(&finished.text);
        let (rest, calls) = choice.tools.finish();
        shown.push_str(&rest);
        choice.text.push_str(&shown);
        if !shown.is_empty() {
            chunks.push(self.chunk(index, self.delta(&shown), Value::Null, None));
        }
        if !calls.is_empty() {
            reason = "tool_calls";
            let indexed = |(at, call): (usize, &Call)| {
                let mut call = call.clone();
                call["index"] = json!(at);
                call
            };
            let calls: Vec<Value> = calls.iter().enumerate().map(indexed).collect();
            chunks.push(self.chunk(index, json!({"tool_calls": calls}), Value::Null, None));
        }
        let choice = &mut self.choices[index];
        choice.calls = calls;
        choice.finish = Some(reason);
        let delta = if self.form == Form::Chat { json!({}) } else { json!("") };
        chunks.push(self.chunk(index, delta, Value::Null, Some(reason)));
        if self.include_usage && self.is_done() {
            let mut last = self.envelope(&[], true);
            last["usage"] = self.usage();
            chunks.push(last);
        }
        Ok(chunks)
    }

    /// The chunk that begins a choice, once.
    fn first_chunk(&mut self, index: usize) -> Vec<Value> {
        if std::mem::replace(&mut self.choices[index].begun, true) {
            return Vec::new();
        }
        match self.form {
            Form::Chat => {
                vec![self.chunk(index, json!({"role": "assistant", "content": ""}), Value::Null, None)]
            }
            // The echo, if there is one.
            Form::Completion if self.choices[index].text.is_empty() => Vec::new(),
            Form::Completion => {
                vec![self.chunk(index, json!(self.choices[index].text), Value::Null, None)]
            }
        }
    }

    fn delta(&self, text: &str) -> Value {
        match self.form {
            Form::Chat => json!({"content": text}),
            Form::Completion => json!(text),
        }
    }

    fn chunk(&self, index: usize, content: Value, logprobs: Value, finish: Option<&str>) -> Value {
        let key = if self.form == Form::Chat { "delta" } else { "text" };
        let mut choice = json!({"index": index, "logprobs": logprobs, "finish_reason": finish});
        choice[key] = content;
        let mut chunk = self.envelope(&[choice], true);
        if self.include_usage {
            chunk["usage"] = Value::Null;
        }
        chunk
    }

    fn envelope(&self, choices: &[Value], chunk: bool) -> Value {
        let object = match (self.form, chunk) {
            (Form::Chat, true) => "chat.completion.chunk",
            (Form::Chat, false) => "chat.completion",
            (Form::Completion, _) => "text_completion",
        };
        json!({"id": self.id, "object": object, "created": self.created, "model": self.model, "choices": choices})
    }

    fn usage(&self) -> Value {
        let Usage { prompt, cached, new } = self.usage;
        json!({"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new,
            "prompt_tokens_details": {"cached_tokens": cached}})
    }

    /// The whole response.
    pub(super) fn whole(&self) -> Value {
        let choices: Vec<Value> = self
            .choices
            .iter()
            .enumerate()
            .map(|(index, choice)| {
                let logprobs = match &choice.logprobs[..] {
                    [] => Value::Null,
                    logprobs => self.logprobs(index, logprobs),
                };
                let mut value = json!({"index": index, "logprobs": logprobs, "finish_reason": choice.finish});
                match self.form {
                    Form::Completion => value["text"] = json!(choice.text),
                    Form::Chat => {
                        let mut message =
                            json!({"role": "assistant", "content": choice.text, "refusal": null});
                        if !choice.calls.is_empty() {
                            message["tool_calls"] = json!(choice.calls);
                            if choice.text.is_empty() {
                                message["content"] = Value::Null;
                            }
                        }
                        value["message"] = message;
                    }
                }
                value
            })
            .collect();
        let mut whole = self.envelope(&choices, false);
        whole["usage"] = self.usage();
        whole
    }

    /// The text of one token; of a part of a character, a replacement character.
    fn token_text(&self, id: u32) -> String {
        let tokenizer = self.tokenizer.as_ref();
        tokenizer.and_then(|tokenizer| tokenizer.decode(&[id]).ok()).unwrap_or_default()
    }

    fn logprobs(&self, index: usize, tokens: &[(u32, TokenLogprobs)]) -> Value {
        match self.form {
            Form::Chat => {
                let entry = |id: u32, logprob: f32| {
                    let text = self.token_text(id);
                    // The bytes of a part of a character are not known here.
                    let bytes = (!text.contains('\u{FFFD}')).then(|| text.as_bytes().to_vec());
                    json!({"token": text, "logprob": finite(logprob), "bytes": bytes})
                };
                let content = tokens.iter().map(|(id, logprobs)| {
                    let mut value = entry(*id, logprobs.logprob);
                    let top = logprobs.top.iter().map(|(id, logprob)| entry(*id, *logprob));
                    value["top_logprobs"] = top.collect();
                    value
                });
                json!({"content": content.collect::<Vec<_>>(), "refusal": null})
            }
            Form::Completion => {
                let texts: Vec<String> = tokens.iter().map(|(id, _)| self.token_text(*id)).collect();
                let values: Vec<f32> = tokens.iter().map(|(_, logprobs)| finite(logprobs.logprob)).collect();
                let top = tokens.iter().map(|(_, logprobs)| {
                    let pairs = logprobs.top.iter();
                    pairs
                        .map(|(id, logprob)| (self.token_text(*id), finite(*logprob)))
                        .collect::<BTreeMap<_, _>>()
                });
                let offsets = &self.choices[index].offsets;
                let offsets = &offsets[offsets.len().saturating_sub(tokens.len())..];
                json!({"tokens": texts, "token_logprobs": values, "top_logprobs": top.collect::<Vec<_>>(),
                    "text_offset": offsets})
            }
        }
    }
}

/// JSON has no infinity; OpenAI's API has −9999 for tokens that cannot come.
fn finite(logprob: f32) -> f32 {
    logprob.max(-9999.0)
}
