//! Calls of tools in a model's answer: `<tool_call>{"name", "arguments"}</tool_call>`, as Qwen's and Hermes' templates have
//! it, or an answer that is one such object, as Llama's have it.

use serde_json::{Value, json};

const BEGIN: &str = "<tool_call>";
const END: &str = "</tool_call>";

/// A call in OpenAI's form but its index: `{"id", "type", "function": {"name", "arguments"}}`.
pub(super) type Call = Value;

/// Separates an answer's text from its calls, as it streams.
#[derive(Debug)]
pub(super) struct ToolParser {
    /// Names of the tools; a call of another is text.
    names: Vec<String>,
    /// What begins the calls' identifiers.
    prefix: String,
    held: String,
    /// Whether text was passed on.
    begun: bool,
}

impl ToolParser {
    pub(super) fn new(names: Vec<String>, prefix: String) -> Self {
        Self { names, prefix, held: String::new(), begun: false }
    }

    /// Adds text; returns what is certainly no part of a call.
    pub(super) fn push(&mut self, text: &str) -> String {
        if self.names.is_empty() {
            return text.to_owned();
        }
        self.held.push_str(text);
        if !self.begun && (self.held.trim_start().is_empty() || self.held.trim_start().starts_with('{')) {
            return String::new();
        }
        let keep = self.held.find(BEGIN).unwrap_or_else(|| {
            let may_begin = |at: &usize| BEGIN.starts_with(&self.held[*at..]);
            let mut ends = self.held.char_indices().map(|(at, _)| at);
            ends.find(may_begin).unwrap_or(self.held.len())
        });
        let rest = self.held.split_off(keep);
        let shown = std::mem::replace(&mut self.held, rest);
        self.begun |= !shown.trim().is_empty();
        shown
    }

    /// The calls at the end, or the text that turned out to be none.
    pub(super) fn finish(&mut self) -> (String, Vec<Call>) {
        let held = std::mem::take(&mut self.held);
        let calls = if held.contains(BEGIN) {
            let blocks = held.split(BEGIN).skip(1);
            blocks.map(|block| self.call(block.split(END).next().unwrap_or_default())).collect()
        } else {
            Some(self.call(&held)).into_iter().collect::<Option<Vec<_>>>()
        };
        let Some(mut calls) = calls else { return (held, Vec::new()) };
        for (index, call) in calls.iter_mut().enumerate() {
            call["id"] = json!(format!("{}-{index}", self.prefix));
        }
        (String::new(), calls)
    }

    fn call(&self, text: &str) -> Option<Call> {
        let object: Value = serde_json::from_str(text.trim()).ok()?;
        let name =
            object.get("name")?.as_str().filter(|name| self.names.iter().any(|known| known == name))?;
        let arguments = match object.get("arguments").or_else(|| object.get("parameters")) {
            None => "{}".to_owned(),
            Some(Value::String(text)) => text.clone(),
            Some(arguments) => arguments.to_string(),
        };
        Some(json!({"type": "function", "function": {"name": name, "arguments": arguments}}))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Text and names of the calls of an answer that comes in these pieces.
    fn parsed(pieces: &[&str]) -> (String, Vec<(String, String)>) {
        let mut parser = ToolParser::new(vec!["add".to_owned()], "call".to_owned());
        let mut text: String = pieces.iter().map(|piece| parser.push(piece)).collect();
        let (rest, calls) = parser.finish();
        text.push_str(&rest);
        let calls = calls.iter().map(|call| {
            let of = |key: &str| call["function"][key].as_str().expect("a text").to_owned();
            (of("name"), of("arguments"))
        });
        (text, calls.collect())
    }

    #[test]
    fn calls_are_found_across_pieces_and_other_text_stays() {
        let call = |arguments: &str| ("add".to_owned(), arguments.to_owned());
        let block = r#"ol_call>{"name": "add", "arguments": {"a": 1}}</tool_call>"#;
        assert_eq!(parsed(&["So: <to", block]), ("So: ".into(), vec![call(r#"{"a":1}"#)]));
        let two = r#"<tool_call>{"name": "add"}</tool_call>
            <tool_call>{"name": "add", "arguments": "{}"}</tool_call>"#;
        assert_eq!(parsed(&[two]), (String::new(), vec![call("{}"), call("{}")]));
        assert_eq!(
            parsed(&[" {\"name\": \"add\", ", "\"parameters\": [2]}"]),
            (String::new(), vec![call("[2]")])
        );
        for text in [
            "plain",
            "a < b <tool",
            "{\"name\": \"other\"}",
            "{no json",
            "<tool_call>{}</tool_call>",
            "",
            " ",
        ] {
            assert_eq!(parsed(&[text]), (text.to_owned(), vec![]), "{text}");
        }
    }
}
