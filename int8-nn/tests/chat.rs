//! Chat templates against what transformers' `apply_chat_template` gives (`tools/make_chat_goldens.py`), and bad templates.

mod common;

use std::fs;

use int8_nn::checkpoint::Source;
use int8_nn::{ChatTemplate, Message};
use serde_json::{Value, json};

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().expect("a text")
}

fn messages(value: &Value) -> Vec<Message> {
    let list = value.as_array().expect("messages");
    list.iter().map(|message| Message::new(text(message, "role"), text(message, "content"))).collect()
}

#[test]
fn conversations_are_written_as_transformers_writes_them() {
    let data = common::read_json(&common::data("chat.json"));
    let special: Vec<(String, String)> = data["special_tokens"]
        .as_object()
        .expect("tokens")
        .iter()
        .map(|(name, token)| (name.clone(), token.as_str().expect("a token").to_owned()))
        .collect();
    let cases = data["cases"].as_array().expect("cases");
    assert!(cases.len() >= 70, "{} cases", cases.len());
    let mut wrong = Vec::new();
    for case in cases {
        let template = text(&data["templates"], text(case, "template"));
        let template = ChatTemplate::new("test", template, special.clone()).expect("a template");
        let prompt = case["add_generation_prompt"].as_bool().expect("a flag");
        let found = template.render(&messages(&case["messages"]), prompt);
        let right = match (&found, &case["expected"], &case["error"]) {
            (Ok(found), Value::String(expected), _) => found == expected,
            (Err(error), _, Value::String(expected)) => error.to_string().contains(expected.as_str()),
            _ => false,
        };
        if !right {
            let name = text(case, "name");
            let expected = if case["error"].is_null() { &case["expected"] } else { &case["error"] };
            wrong.push(format!("{name}, prompt {prompt}:\n  found    {found:?}\n  expected {expected}"));
        }
    }
    assert!(wrong.is_empty(), "{} wrong\n{}", wrong.len(), wrong.join("\n"));
}

/// The template of `tokenizer_config.json` with these contents, and `chat_template.jinja` if given.
fn read(config: &Value, jinja: Option<&str>) -> Result<Option<ChatTemplate>, String> {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("config.json"), "{}").expect("a file");
    fs::write(folder.path().join("tokenizer_config.json"), config.to_string()).expect("a file");
    if let Some(jinja) = jinja {
        fs::write(folder.path().join("chat_template.jinja"), jinja).expect("a file");
    }
    let source = Source::folder(folder.path()).expect("a folder");
    ChatTemplate::read(&source).map_err(|error| error.to_string())
}

#[test]
fn a_template_is_found_in_all_its_places() {
    let hello = [Message::new("user", "hello")];
    let render =
        |template: Option<ChatTemplate>| template.expect("a template").render(&hello, true).expect("a text");
    assert!(read(&json!({}), None).expect("no error").is_none());
    assert!(read(&json!({"chat_template": null}), None).expect("no error").is_none());

    let config = json!({
        "chat_template": "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}",
        "bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": false},
    });
    let template = read(&config, None).expect("a template");
    assert_eq!(template.as_ref().and_then(ChatTemplate::eos_token), Some("</s>"));
    assert_eq!(render(template), "<s>hello</s>");
    // The file counts more than the key.
    assert_eq!(render(read(&config, Some("from the file")).expect("a template")), "from the file");

    let named = |name: &str, template: &str| json!({"name": name, "template": template});
    let list = json!({"chat_template": [named("tool_use", "tools"), named("default", "plain")]});
    assert_eq!(render(read(&list, None).expect("a template")), "plain");
    let list = json!({"chat_template": [named("tool_use", "tools")]});
    assert_eq!(render(read(&list, None).expect("a template")), "tools");
}

#[test]
fn a_clock_is_seen_only_when_there_is_one() {
    let text = "{% if strftime_now is defined %}{{ strftime_now('%d %b') }}{% else %}undated{% endif %}";
    let template = || ChatTemplate::new("test", text, Vec::new()).expect("a template");
    assert_eq!(template().render(&[], false).expect("a text"), "undated");
    let dated = template().with_clock(|format| format!("now as {format}"));
    assert_eq!(dated.render(&[], false).expect("a text"), "now as %d %b");
}

#[test]
fn bad_templates_are_named() {
    let cases = [
        (json!({"chat_template": "line\n{% if %}"}), vec!["tokenizer_config.json", "line 2"]),
        (json!({"chat_template": "{% for x in messages %}"}), vec!["tokenizer_config.json", "chat template"]),
        (json!({"chat_template": 7}), vec!["neither a text nor a list"]),
        (json!({"chat_template": []}), vec!["default"]),
        (
            json!({"chat_template": [{"name": "a", "template": ""}, {"name": "b", "template": ""}]}),
            vec!["default", "a, b"],
        ),
    ];
    for (config, words) in cases {
        let error = read(&config, None).expect_err("an error");
        assert!(words.iter().all(|word| error.contains(word)), "{words:?} not in: {error}");
    }
    let cases = [
        ("{{ messages[0].content.nothing() }}", "nothing"),
        ("{{ raise_exception('not like \u{1b}[2J this') }}", "u{1b}"),
        ("{% include 'other' %}", "other"),
        // No template runs for ever, and none makes a text of any size out of nothing.
        (
            "{% for a in range(90000) %}{% for b in range(90000) %}{% for c in range(90000) %}{% endfor %}{% endfor %}{% endfor %}",
            "fuel",
        ),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
    ];
    for (text, word) in cases {
        let template = ChatTemplate::new("test", text, Vec::new()).expect("a template");
        let error = template.render(&[Message::new("user", "x")], true).expect_err("an error").to_string();
        assert!(error.contains(word) && !error.contains('\u{1b}'), "{word:?} not in: {error}");
    }
}
