//! Chat templates: Jinja programs that render a conversation as the text that a chat model was trained to continue.
//!
//! [`ChatTemplate::render`] equals transformers' `apply_chat_template`; special tokens are part of the text. A template is
//! untrusted code: it sees the conversation only, and runs a bounded number of instructions.

use std::fmt;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Value as Jinja};
use minijinja::{Environment, ErrorKind, context};
use serde::Serialize as _;
use serde_json::Value;

use crate::Error;
use crate::checkpoint::Source;

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
    /// Its file, for error messages.
    file: String,
    eos_token: Option<String>,
}

/// The template's name in the environment.
const NAME: &str = "chat_template";

/// Most instructions of a rendering; honest templates take some hundred a message.
const FUEL: u64 = 5_000_000;

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
        Self::new(&file, &text, special_tokens(&config)).map(Some)
    }

    /// Compiles a template. Error messages call it `file`; `special_tokens` are pairs such as `("bos_token", "<s>")`.
    ///
    /// # Errors
    /// [`Error::ChatTemplate`] with the line at fault.
    pub fn new(file: &str, text: &str, special_tokens: Vec<(String, String)>) -> Result<Self, Error> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|error| failure(file, error))?);
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_filter("tojson", to_json);
        environment.add_function("raise_exception", |message: String| -> Result<Jinja, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
        });
        environment
            .add_template_owned(NAME, without_generation_tags(text))
            .map_err(|error| template_failure(file, &error))?;
        let eos_token = special_tokens.iter().find(|(name, _)| name == "eos_token");
        let eos_token = eos_token.map(|(_, token)| token.clone());
        for (name, token) in special_tokens {
            environment.add_global(name, token);
        }
        Ok(Self { environment, file: file.to_owned(), eos_token })
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
        let messages: Vec<Jinja> = messages
            .iter()
            .map(|message| Jinja::from_pairs([("role", &*message.role), ("content", &*message.content)]))
            .collect();
        self.render_values(messages.into(), Jinja::from(()), Jinja::from(()), add_generation_prompt)
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
        let [messages, tools, more] = [messages, tools, more].map(|value| match value {
            // Templates ask whether a variable is none, not whether it is undefined.
            Value::Null => Jinja::from(()),
            value => Jinja::from(minijinja::value::Serde(value)),
        });
        self.render_values(messages, tools, more, add_generation_prompt)
    }

    fn render_values(
        &self,
        messages: Jinja,
        tools: Jinja,
        more: Jinja,
        add_generation_prompt: bool,
    ) -> Result<String, Error> {
        let fail = |error: minijinja::Error| template_failure(&self.file, &error);
        let template = self.environment.get_template(NAME).map_err(fail)?;
        let conversation = context! {
            messages => messages,
            add_generation_prompt => add_generation_prompt,
            tools => tools,
            documents => (),
        };
        if more.is_none() {
            return template.render(conversation).map_err(fail);
        }
        template.render(context! { ..conversation, ..more }).map_err(fail)
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

/// The keys `*_token`, each a text or an object with `content`.
fn special_tokens(config: &Value) -> Vec<(String, String)> {
    let Some(entries) = config.as_object() else { return Vec::new() };
    entries
        .iter()
        .filter(|(name, _)| name.ends_with("_token"))
        .filter_map(|(name, value)| {
            let token = value.as_str().or_else(|| value.get("content")?.as_str())?;
            Some((name.clone(), token.to_owned()))
        })
        .collect()
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

/// Python's `json.dumps(value, ensure_ascii=False)`: separators `, ` and `: `, or a line an element with `indent`.
fn to_json(value: &Jinja, options: Kwargs) -> Result<String, minijinja::Error> {
    let indent: Option<usize> = options.get("indent")?;
    // Accepted; both are the behaviour anyway.
    let _: Option<bool> = options.get("ensure_ascii")?;
    let _: Option<bool> = options.get("sort_keys")?;
    options.assert_all_used()?;
    let mut out = Vec::new();
    let done = match indent {
        None => value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, Spaced)),
        Some(width) => {
            let indent = " ".repeat(width.min(16));
            let formatter = serde_json::ser::PrettyFormatter::with_indent(indent.as_bytes());
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, formatter))
        }
    };
    let failed = |error: String| minijinja::Error::new(ErrorKind::InvalidOperation, error);
    done.map_err(|error| failed(error.to_string()))?;
    String::from_utf8(out).map_err(|error| failed(error.to_string()))
}

/// JSON on one line, with a space after each comma and colon.
struct Spaced;

impl serde_json::ser::Formatter for Spaced {
    fn begin_array_value<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        writer.write_all(b": ")
    }
}

fn failure(file: &str, problem: impl fmt::Display) -> Error {
    Error::ChatTemplate { file: file.to_owned(), problem: problem.to_string() }
}

/// Escaped, since messages may hold text of the template.
fn template_failure(file: &str, error: &minijinja::Error) -> Error {
    let detail = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    let line = error.line().map_or_else(String::new, |line| format!(" (line {line} of the template)"));
    failure(
        file,
        format!("{}{line}", detail.escape_debug().to_string().replace("\\'", "'").replace("\\\"", "\"")),
    )
}
