//! Chat templates: Jinja programs that render a conversation as the text that a chat model was trained to continue.
//!
//! [`ChatTemplate::render`] equals transformers' `apply_chat_template`; special tokens are part of the text. A template is
//! untrusted code: it sees the conversation only, and runs a bounded number of instructions.

use std::fmt;

use minijinja::value::Value as Jinja;
use minijinja::{Environment, ErrorKind, context};
use serde_json::Value;

use crate::Error;
use crate::checkpoint::Source;
use crate::template;
use crate::tokenizer::Settings;

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Who speaks: `system`, `user` or `assistant`; a template may know others.
    pub role: String,
    /// What is said.
    pub content: String,
}

impl Message {
    /// `content` said by `role`.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into() }
    }
}

/// A compiled chat template.
pub struct ChatTemplate {
    environment: Environment<'static>,
    /// The template.
    text: String,
    /// Its file, for error messages.
    file: String,
    eos_token: Option<String>,
}

const CONFIG: &str = "tokenizer_config.json";
const TEMPLATE: &str = "chat_template.jinja";

impl ChatTemplate {
    /// Reads a checkpoint's template: `chat_template.jinja`, else `chat_template` of `tokenizer_config.json`, a text or a list
    /// of named texts of which `default` is taken. `None` without either.
    ///
    /// # Errors
    /// [`Error::ChatTemplate`] for an invalid template; when a file cannot be read.
    pub fn read(source: &Source) -> Result<Option<Self>, Error> {
        let config = if source.contains(CONFIG) { source.read_json(CONFIG)? } else { Value::Null };
        let (file, text) = if source.contains(TEMPLATE) {
            (source.label(TEMPLATE), source.read_text(TEMPLATE)?)
        } else {
            let file = source.label(CONFIG);
            match config.get("chat_template") {
                None | Some(Value::Null) => return Ok(None),
                Some(Value::String(text)) => (file, text.clone()),
                Some(Value::Array(list)) => {
                    let text = default_of(list).map_err(|problem| failure(&file, problem))?;
                    (file, text.to_owned())
                }
                Some(_) => {
                    return Err(failure(&file, "`chat_template` is neither a text nor a list of texts"));
                }
            }
        };
        Self::new(&file, &text, Settings::read(source)?.special_tokens()).map(Some)
    }

    /// Compiles a template. Error messages call it `file`; `special_tokens` are pairs such as `("bos_token", "<s>")`.
    ///
    /// # Errors
    /// [`Error::ChatTemplate`] with the line at fault.
    pub fn new(file: &str, text: &str, special_tokens: Vec<(String, String)>) -> Result<Self, Error> {
        let mut environment = template::environment().map_err(|error| failure(file, error))?;
        environment.add_function("raise_exception", |message: String| -> Result<Jinja, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
        });
        let text = without_generation_tags(text);
        template::check(&environment, &text).map_err(|error| template_failure(file, &error))?;
        let eos_token = special_tokens.iter().find(|(name, _)| name == "eos_token");
        let eos_token = eos_token.map(|(_, token)| token.clone());
        for (name, token) in special_tokens {
            environment.add_global(name, token);
        }
        Ok(Self { environment, text, file: file.to_owned(), eos_token })
    }

    /// Provides `strftime_now(format)`. Most templates check for it and otherwise omit the date or use a fixed one.
    pub fn with_clock(mut self, clock: impl Fn(&str) -> String + Send + Sync + 'static) -> Self {
        self.environment.add_function("strftime_now", move |format: String| clock(&format));
        self
    }

    /// `eos_token`, which ends a message, if the tokenizer names one.
    pub fn eos_token(&self) -> Option<&str> {
        self.eos_token.as_deref()
    }

    /// The text of a conversation with its special tokens; with `add_generation_prompt`, up to the assistant's answer.
    ///
    /// # Errors
    /// [`Error::ChatTemplate`] when the template refuses the conversation or fails.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String, Error> {
        let messages = || {
            messages
                .iter()
                .map(|message| Jinja::from_pairs([("role", &*message.role), ("content", &*message.content)]))
                .collect()
        };
        self.render_values(messages, || Jinja::from(()), || Jinja::from(()), add_generation_prompt)
    }

    /// As [`render`](Self::render), with messages of any keys (`tool_calls`, say), the `tools` that the model may call, and
    /// `more` variables, an object; both may be null. Objects have their keys in the order of `serde_json`, which sorts them.
    ///
    /// # Errors
    /// As [`render`](Self::render).
    pub fn render_json(
        &self,
        messages: &Value,
        tools: &Value,
        more: &Value,
        add_generation_prompt: bool,
    ) -> Result<String, Error> {
        // Templates ask whether a variable is none, not whether it is undefined.
        let jinja = |value: &Value| match value {
            Value::Null => Jinja::from(()),
            value => Jinja::from(minijinja::value::Serde(value)),
        };
        self.render_values(|| jinja(messages), || jinja(tools), || jinja(more), add_generation_prompt)
    }

    /// The variables are made where the template is rendered, which bounds its memory and stack.
    fn render_values(
        &self,
        messages: impl FnOnce() -> Jinja + Send,
        tools: impl FnOnce() -> Jinja + Send,
        more: impl FnOnce() -> Jinja + Send,
        add_generation_prompt: bool,
    ) -> Result<String, Error> {
        let conversation = || {
            let conversation = context! {
                messages => messages(),
                add_generation_prompt => add_generation_prompt,
                tools => tools(),
                documents => (),
            };
            let more = more();
            if more.is_none() {
                conversation
            } else {
                context! { ..conversation, ..more }
            }
        };
        template::render(&self.environment, &self.text, conversation)
            .map_err(|error| template_failure(&self.file, &error))
    }
}

impl fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChatTemplate").field("file", &self.file).finish_non_exhaustive()
    }
}

/// Of templates `{"name": …, "template": …}`, the only one or the one named `default`.
fn default_of(list: &[Value]) -> Result<&str, String> {
    let field = |entry: &'_ Value, key: &str| entry.get(key).and_then(Value::as_str).map(str::to_owned);
    let names: Vec<String> = list.iter().filter_map(|entry| field(entry, "name")).collect();
    let chosen = match list {
        [only] => Some(only),
        _ => list.iter().find(|entry| entry.get("name").and_then(Value::as_str) == Some("default")),
    };
    chosen.and_then(|entry| entry.get("template").and_then(Value::as_str)).ok_or_else(|| {
        format!(
            "`chat_template` is a list without a template named `default`; there are: {}",
            names.join(", ")
        )
    })
}

/// Replaces transformers' `{% generation %}` marks, which are for training and render nothing.
fn without_generation_tags(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(begin) = rest.find("{%") {
        let Some(length) = rest[begin..].find("%}") else { break };
        let (tag, after) = rest[begin..].split_at(length + 2);
        out.push_str(&rest[..begin]);
        let word = tag.trim_matches(['{', '%', '}', '-', '+']).trim();
        match word {
            "generation" => out.push_str(&tag.replace(word, "if true")),
            "endgeneration" => out.push_str(&tag.replace(word, "endif")),
            _ => out.push_str(tag),
        }
        rest = after;
    }
    out.push_str(rest);
    out
}

fn failure(file: &str, problem: impl fmt::Display) -> Error {
    Error::ChatTemplate { file: file.to_owned(), problem: problem.to_string() }
}

/// Most characters of an engine's message: it may quote a value of any length.
const MOST_DETAIL: usize = 300;

/// Escaped and shortened, since messages may hold text of the template.
fn template_failure(file: &str, error: &minijinja::Error) -> Error {
    let detail = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    let line = error.line().map_or_else(String::new, |line| format!(" (line {line} of the template)"));
    let mut short: String = detail.chars().take(MOST_DETAIL).collect();
    if short.len() < detail.len() {
        short.push('…');
    }
    failure(
        file,
        format!("{}{line}", short.escape_debug().to_string().replace("\\'", "'").replace("\\\"", "\"")),
    )
}
