//! From the body of a request to what the engine computes. docs/serve.md has the table of the fields.

use std::hash::{BuildHasher, Hasher, RandomState};

use int8_nn::LogitRules;
use int8_nn::engine::{Request, SamplingParams};
use serde_json::{Map, Value, json};

use super::error::ApiError;
use super::fields::Fields;
use crate::json_form::any_object;

/// Most answers to one prompt.
const MOST_CHOICES: usize = 16;
/// Most of the probable tokens that are reported.
const MOST_LOGPROBS: usize = 20;
/// Most stop texts; OpenAI has 4.
const MOST_STOPS: usize = 16;

/// The form of an answer.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct JsonAnswer {
    pub(super) schema: Value,
    /// The field that says so.
    pub(super) field: &'static str,
}

/// What chats and completions have in common.
#[derive(Debug)]
pub(super) struct Generate {
    /// One prompt a choice; text is turned into tokens later.
    pub(super) sampling: SamplingParams,
    pub(super) max_tokens: Option<usize>,
    pub(super) stop: Vec<String>,
    pub(super) ignore_eos: bool,
    pub(super) json: Option<JsonAnswer>,
    pub(super) choices: usize,
    pub(super) stream: bool,
    pub(super) include_usage: bool,
}

impl Generate {
    /// `default`: what the model's own settings say.
    fn read(fields: &Fields<'_>, default: &SamplingParams) -> Result<Self, ApiError> {
        let stream = fields.flag("stream")?;
        let include_usage = match fields.get("stream_options") {
            None => false,
            Some(_) if !stream => {
                return Err(ApiError::field("stream_options", "`stream_options` needs `stream`: true"));
            }
            Some(options) => Fields::new(options)
                .map_err(|_| ApiError::field("stream_options", "`stream_options` must be an object"))?
                .flag("include_usage")?,
        };
        let seed = fields.seed()?;
        let top_k = match fields.get("top_k") {
            // vLLM's and transformers' values for none.
            Some(value) if value.as_i64() == Some(-1) || value.as_i64() == Some(0) => None,
            _ => fields.count("top_k", 1, usize::MAX)?.or(default.top_k),
        };
        let sampling = SamplingParams {
            temperature: fields.number("temperature", 0.0, 2.0)?.unwrap_or(default.temperature),
            top_k,
            // 0 leaves the most probable token, as the smallest number does.
            top_p: fields
                .number("top_p", 0.0, 1.0)?
                .or(default.top_p)
                .filter(|p| *p < 1.0)
                .map(|p| p.max(f32::MIN_POSITIVE)),
            min_p: fields.number("min_p", 0.0, 1.0)?.filter(|p| *p > 0.0),
            seed: seed.unwrap_or_else(random),
            rules: LogitRules {
                repetition_penalty: fields
                    .number("repetition_penalty", 0.01, 100.0)?
                    .unwrap_or(default.rules.repetition_penalty),
                ..default.rules.clone()
            },
            presence_penalty: fields.number("presence_penalty", -2.0, 2.0)?.unwrap_or(0.0),
            frequency_penalty: fields.number("frequency_penalty", -2.0, 2.0)?.unwrap_or(0.0),
            logit_bias: logit_bias(fields.get("logit_bias"))?,
            logprobs: None,
        };
        let ignore_eos = fields.flag("ignore_eos")?;
        let json = response_format(fields.get("response_format"))?;
        if ignore_eos && json.is_some() {
            let message = "`ignore_eos`: an answer of a given form ends where it is complete";
            return Err(ApiError::field("ignore_eos", message));
        }
        Ok(Self {
            sampling,
            max_tokens: None,
            stop: texts("stop", fields.get("stop"), MOST_STOPS)?,
            ignore_eos,
            json,
            choices: fields.count("n", 1, MOST_CHOICES)?.unwrap_or(1),
            stream,
            include_usage,
        })
    }

    /// The request for a prompt and one of its choices.
    pub(super) fn request(&self, prompt: Vec<u32>, choice: usize) -> Request {
        let mut sampling = self.sampling.clone();
        sampling.seed = sampling.seed.wrapping_add(u64::try_from(choice).unwrap_or_default());
        Request {
            sampling,
            max_tokens: self.max_tokens.unwrap_or(usize::MAX),
            stop: self.stop.clone(),
            ignore_eos: self.ignore_eos,
            ..Request::new(prompt)
        }
    }
}

/// A seed for a request that has none.
pub(super) fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

fn texts(name: &str, value: Option<&Value>, most: usize) -> Result<Vec<String>, ApiError> {
    let problem = || {
        ApiError::field(name, format!("`{name}` must be a string or a list of at most {most}, none empty"))
    };
    let found: Vec<String> = match value {
        None => return Ok(Vec::new()),
        Some(Value::String(text)) => vec![text.clone()],
        Some(Value::Array(list)) => list
            .iter()
            .map(|text| text.as_str().map(str::to_owned))
            .collect::<Option<_>>()
            .ok_or_else(problem)?,
        Some(_) => return Err(problem()),
    };
    if found.len() > most || found.iter().any(String::is_empty) { Err(problem()) } else { Ok(found) }
}

fn response_format(value: Option<&Value>) -> Result<Option<JsonAnswer>, ApiError> {
    let field = "response_format";
    let problem = |message: &str| Err(ApiError::field(field, message));
    let Some(value) = value else { return Ok(None) };
    let schema = match value.get("type").and_then(Value::as_str) {
        Some("text") => return Ok(None),
        Some("json_object") => any_object(),
        Some("json_schema") => match value.get("json_schema").and_then(|named| named.get("schema")) {
            Some(schema @ Value::Object(_)) => schema.clone(),
            _ => return problem("`response_format.json_schema.schema` must be a JSON schema, an object"),
        },
        _ => return problem("`response_format.type` must be text, json_object or json_schema"),
    };
    Ok(Some(JsonAnswer { schema, field }))
}

fn logit_bias(value: Option<&Value>) -> Result<Vec<(u32, f32)>, ApiError> {
    let problem = || {
        ApiError::field(
            "logit_bias",
            "`logit_bias` must be an object of token ids with numbers from -100 to 100",
        )
    };
    let entries = match value {
        None => return Ok(Vec::new()),
        Some(Value::Object(entries)) => entries,
        Some(_) => return Err(problem()),
    };
    let entry = |(id, bias): (&String, &Value)| {
        let bias = bias.as_f64().filter(|bias| (-100.0..=100.0).contains(bias))?;
        Some((id.parse().ok()?, crate::convert::single(bias)))
    };
    entries.iter().map(entry).collect::<Option<_>>().ok_or_else(problem)
}

/// `POST /v1/chat/completions`
#[derive(Debug)]
pub(super) struct Chat {
    pub(super) generate: Generate,
    /// For the template.
    pub(super) messages: Value,
    pub(super) tools: Value,
    pub(super) tool_names: Vec<String>,
    pub(super) template_arguments: Value,
    pub(super) ignored: Vec<String>,
}

impl Chat {
    pub(super) fn read(fields: &Fields<'_>, default: &SamplingParams) -> Result<Self, ApiError> {
        let mut generate = Generate::read(fields, default)?;
        let old = fields.count("max_tokens", 1, usize::MAX)?;
        generate.max_tokens = fields.count("max_completion_tokens", 1, usize::MAX)?.or(old);
        let top = fields.count("top_logprobs", 0, MOST_LOGPROBS)?;
        if fields.flag("logprobs")? {
            generate.sampling.logprobs = Some(top.unwrap_or(0));
        } else if top.is_some_and(|top| top > 0) {
            return Err(ApiError::field("top_logprobs", "`top_logprobs` needs `logprobs`: true"));
        }
        fields.refuse("functions", &[json!([])], "use `tools`")?;
        fields.refuse("function_call", &[json!("none"), json!("auto")], "use `tool_choice`")?;
        fields.refuse("modalities", &[json!(["text"])], "the model writes text")?;
        fields.refuse("audio", &[], "the model writes text")?;
        fields.refuse("prediction", &[], "it is not implemented")?;
        fields.refuse("web_search_options", &[], "the server reaches no other")?;
        let choice = fields.get("tool_choice");
        let named = choice.and_then(|choice| choice.get("function")?.get("name")?.as_str());
        let (with_tools, forced) = match (choice.and_then(Value::as_str), named) {
            (None, None) if choice.is_none() => (true, false),
            (Some("auto"), _) => (true, false),
            (Some("none"), _) => (false, false),
            (Some("required"), _) | (None, Some(_)) => (true, true),
            _ => {
                let message = "`tool_choice` must be auto, none, required or a function";
                return Err(ApiError::unsupported("tool_choice", message));
            }
        };
        let (tools, tool_names) = tools(fields.get("tools").filter(|_| with_tools))?;
        if forced {
            if generate.ignore_eos {
                let message = "`ignore_eos`: the call of a tool ends where it is complete";
                return Err(ApiError::field("ignore_eos", message));
            }
            generate.json = Some(forced_call(&tools, named)?);
        }
        let template_arguments = fields.get("chat_template_kwargs").cloned().unwrap_or(Value::Null);
        if !matches!(template_arguments, Value::Null | Value::Object(_)) {
            return Err(ApiError::field("chat_template_kwargs", "`chat_template_kwargs` must be an object"));
        }
        let messages = messages(fields.get("messages"))?;
        fields.get("model");
        let ignored = fields.ignored();
        Ok(Self { generate, messages, tools, tool_names, template_arguments, ignored })
    }
}

/// An answer that is a call of one of the tools, or of the one that is named: `{"name", "arguments"}`.
fn forced_call(tools: &Value, named: Option<&str>) -> Result<JsonAnswer, ApiError> {
    let functions = tools.as_array().into_iter().flatten().filter_map(|tool| tool.get("function"));
    let calls = functions.filter_map(|function| {
        let name = function.get("name").filter(|name| named.is_none_or(|named| *name == named))?;
        let arguments = function.get("parameters").cloned().unwrap_or_else(any_object);
        Some(json!({"type": "object", "properties": {"name": {"const": name}, "arguments": arguments},
            "required": ["name", "arguments"], "additionalProperties": false}))
    });
    let calls: Vec<Value> = calls.collect();
    let field = "tool_choice";
    match (calls.len(), named) {
        (0, Some(named)) => Err(ApiError::field(field, format!("`tool_choice`: `tools` has no `{named}`"))),
        (0, None) => Err(ApiError::field(field, "`tool_choice` needs `tools`")),
        _ => Ok(JsonAnswer { schema: json!({"anyOf": calls}), field }),
    }
}

fn tools(value: Option<&Value>) -> Result<(Value, Vec<String>), ApiError> {
    let list = match value {
        None => return Ok((Value::Null, Vec::new())),
        Some(Value::Array(list)) if list.is_empty() => return Ok((Value::Null, Vec::new())),
        Some(Value::Array(list)) => list,
        Some(_) => return Err(ApiError::field("tools", "`tools` must be a list")),
    };
    let name = |tool: &Value| {
        let function = tool.get("type").and_then(Value::as_str) == Some("function");
        Some(tool.get("function")?.get("name")?.as_str()?.to_owned()).filter(|_| function)
    };
    let names = list.iter().map(name).collect::<Option<Vec<_>>>().ok_or_else(|| {
        ApiError::field(
            "tools",
            "`tools`: expected objects {\"type\": \"function\", \"function\": {\"name\": …}}",
        )
    })?;
    Ok((Value::Array(list.clone()), names))
}

/// Messages as templates take them: texts in one piece, arguments of calls as objects.
fn messages(value: Option<&Value>) -> Result<Value, ApiError> {
    let Some(Value::Array(list)) = value else {
        return Err(ApiError::field("messages", "`messages` must be a list of messages"));
    };
    if list.is_empty() {
        return Err(ApiError::field("messages", "`messages` is empty: give at least one"));
    }
    let messages = list.iter().enumerate().map(|(index, message)| {
        let at = |rest: &str| format!("messages[{index}]{rest}");
        let Value::Object(message) = message else {
            return Err(ApiError::field(&at(""), format!("`{}` must be an object", at(""))));
        };
        let role = match message.get("role").and_then(Value::as_str) {
            Some("developer") => "system",
            Some(role @ ("system" | "user" | "assistant" | "tool")) => role,
            _ => {
                let expected = "must be system, developer, user, assistant or tool";
                return Err(ApiError::field(&at(".role"), format!("`{}` {expected}", at(".role"))));
            }
        };
        let calls = message.get("tool_calls").filter(|calls| !calls.is_null());
        let mut found = Map::new();
        found.insert("role".to_owned(), json!(role));
        let content = match message.get("content") {
            None | Some(Value::Null) if calls.is_some() => String::new(),
            Some(Value::String(text)) => text.clone(),
            Some(Value::Array(parts)) => {
                let text = |part: &Value| match part.get("type").and_then(Value::as_str) {
                    Some("text") => part.get("text").and_then(Value::as_str).map(str::to_owned),
                    _ => None,
                };
                parts.iter().map(text).collect::<Option<Vec<_>>>().map(|parts| parts.concat()).ok_or_else(
                    || {
                        let expected = "has a part that is no text; this model reads text alone";
                        ApiError::unsupported(&at(".content"), format!("`{}` {expected}", at(".content")))
                    },
                )?
            }
            _ => {
                let expected = "must be a string or a list of text parts";
                return Err(ApiError::field(&at(".content"), format!("`{}` {expected}", at(".content"))));
            }
        };
        found.insert("content".to_owned(), json!(content));
        for key in ["name", "tool_call_id"] {
            if let Some(value) = message.get(key).filter(|value| value.is_string()) {
                found.insert(key.to_owned(), value.clone());
            }
        }
        if let Some(calls) = calls {
            let mut calls = calls.clone();
            for call in calls.as_array_mut().into_iter().flatten() {
                if let Some(arguments) = call.get_mut("function").and_then(|call| call.get_mut("arguments"))
                    && let Some(parsed) = arguments.as_str().and_then(|text| serde_json::from_str(text).ok())
                {
                    *arguments = parsed;
                }
            }
            found.insert("tool_calls".to_owned(), calls);
        }
        Ok(Value::Object(found))
    });
    messages.collect::<Result<Vec<_>, _>>().map(Value::Array)
}

/// A prompt of a completion, or a text to embed.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Prompt {
    Text(String),
    Ids(Vec<u32>),
}

/// `POST /v1/completions`
#[derive(Debug)]
pub(super) struct Completion {
    pub(super) generate: Generate,
    pub(super) prompts: Vec<Prompt>,
    pub(super) echo: bool,
    pub(super) ignored: Vec<String>,
}

impl Completion {
    pub(super) fn read(fields: &Fields<'_>, default: &SamplingParams) -> Result<Self, ApiError> {
        let mut generate = Generate::read(fields, default)?;
        generate.max_tokens = Some(fields.count("max_tokens", 1, usize::MAX)?.unwrap_or(16));
        generate.sampling.logprobs = fields.count("logprobs", 0, MOST_LOGPROBS)?;
        let echo = fields.flag("echo")?;
        if echo && generate.sampling.logprobs.is_some() {
            return Err(ApiError::unsupported(
                "echo",
                "`echo` with `logprobs` is not supported: drop one of them",
            ));
        }
        fields.refuse("suffix", &[json!("")], "text is continued, not filled in")?;
        fields.refuse("best_of", &[json!(1)], "use `n`")?;
        let prompts = prompts("prompt", fields.get("prompt"), 128)?;
        fields.get("model");
        let ignored = fields.ignored();
        Ok(Self { generate, prompts, echo, ignored })
    }
}

/// A string, a list of strings, token ids, or a list of lists of them.
pub(super) fn prompts(name: &str, value: Option<&Value>, most: usize) -> Result<Vec<Prompt>, ApiError> {
    let problem = || {
        ApiError::field(
            name,
            format!(
                "`{name}` must be a string, a list of at most {most} strings, token ids, or a list of such lists"
            ),
        )
    };
    let ids = |list: &[Value]| -> Option<Prompt> {
        let ids = list.iter().map(|id| u32::try_from(id.as_u64()?).ok()).collect::<Option<Vec<_>>>()?;
        Some(Prompt::Ids(ids))
    };
    let found = match value {
        Some(Value::String(text)) => vec![Prompt::Text(text.clone())],
        Some(Value::Array(list)) if list.iter().any(Value::is_number) => vec![ids(list).ok_or_else(problem)?],
        Some(Value::Array(list)) => {
            let one = |value: &Value| match value {
                Value::String(text) => Some(Prompt::Text(text.clone())),
                Value::Array(list) => ids(list),
                _ => None,
            };
            list.iter().map(one).collect::<Option<Vec<_>>>().ok_or_else(problem)?
        }
        _ => return Err(problem()),
    };
    if found.is_empty() || found.len() > most { Err(problem()) } else { Ok(found) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chat(value: &Value) -> Result<Chat, ApiError> {
        let default = SamplingParams { temperature: 1.0, ..SamplingParams::default() };
        Fields::new(value).and_then(|fields| Chat::read(&fields, &default))
    }

    #[test]
    fn fields_have_types_ranges_and_defaults() {
        let hello = json!([{"role": "user", "content": "hello"}]);
        let found = chat(&json!({"messages": hello, "seed": -1, "top_p": 1, "user": "me", "metadata": null}))
            .expect("good");
        let sampling = &found.generate.sampling;
        assert_eq!((sampling.temperature, sampling.top_p, sampling.seed), (1.0, None, u64::MAX));
        assert_eq!(found.ignored, ["user"]);
        for (field, value) in [
            ("temperature", json!("hot")),
            ("temperature", json!(2.5)),
            ("top_p", json!(-0.1)),
            ("n", json!(0)),
            ("n", json!(17)),
            ("max_tokens", json!(0)),
            ("max_tokens", json!(1.5)),
            ("stop", json!([1])),
            ("stop", json!("")),
            ("logit_bias", json!({"x": 1})),
            ("logit_bias", json!({"1": 101})),
            ("top_logprobs", json!(5)),
            ("stream_options", json!({"include_usage": true})),
            ("response_format", json!({"type": "xml"})),
            ("response_format", json!("json_object")),
            ("response_format", json!({"type": "json_schema", "json_schema": {"name": "x"}})),
            ("tool_choice", json!("required")),
            ("tool_choice", json!("sometimes")),
            ("tool_choice", json!({"type": "function", "function": {"name": "none"}})),
            ("tools", json!([{"type": "function"}])),
            ("functions", json!([{}])),
            ("messages", json!([])),
            ("messages", json!("hello")),
        ] {
            let mut body = json!({"messages": hello});
            body[field] = value.clone();
            let error = chat(&body).expect_err(field);
            assert_eq!(error.status.as_u16(), 400, "{field}");
            assert!(error.body()["error"]["param"] == field, "{field}: {}", error.body());
        }
    }

    #[test]
    fn messages_become_what_templates_take() {
        let body = json!({"messages": [
            {"role": "developer", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": null,
                "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{\"x\": 1}"}}]},
            {"role": "tool", "tool_call_id": "1", "content": "2"},
        ]});
        let messages = chat(&body).expect("good").messages;
        assert_eq!(messages[0], json!({"role": "system", "content": "ab"}));
        assert_eq!(messages[1]["tool_calls"][0]["function"]["arguments"], json!({"x": 1}));
        assert_eq!(messages[2], json!({"role": "tool", "tool_call_id": "1", "content": "2"}));
        let image = json!([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]);
        let error = chat(&json!({"messages": image})).expect_err("an image");
        assert!(error.message.contains("no text"), "{}", error.message);
        assert!(chat(&json!({"messages": [{"role": "robot", "content": "x"}]})).is_err());
    }

    #[test]
    fn prompts_of_all_kinds() {
        let read = |value| prompts("prompt", Some(&value), 3).ok();
        assert_eq!(read(json!("a")), Some(vec![Prompt::Text("a".into())]));
        assert_eq!(read(json!([1, 2])), Some(vec![Prompt::Ids(vec![1, 2])]));
        assert_eq!(read(json!(["a", [3]])), Some(vec![Prompt::Text("a".into()), Prompt::Ids(vec![3])]));
        for bad in [
            json!([]),
            json!(1),
            json!([1, "a"]),
            json!([-1]),
            json!([1.5]),
            json!([[["a"]]]),
            json!(["a", "b", "c", "d"]),
        ] {
            assert_eq!(read(bad.clone()), None, "{bad}");
        }
    }
}
