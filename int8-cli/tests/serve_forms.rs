//! `int8 serve` and `int8 run`: answers of a given form, and the rules of `generation_config.json`.
#![cfg(feature = "serve")]

mod server;

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use server::{Server, chat_model, demo_folder, int8};

fn person() -> Value {
    json!({"type": "object", "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["tall", "old", "é"]}, "minItems": 1, "maxItems": 3},
    }, "required": ["name", "age", "tags"], "additionalProperties": false})
}

/// Whether a text is JSON of [`person`], in the order of the schema's keys.
fn is_person(text: &str) -> bool {
    let Ok(Value::Object(found)) = serde_json::from_str(text) else { return false };
    let (Some(name), Some(age)) = (found["name"].as_str(), found["age"].as_u64()) else { return false };
    let Some(tags) = found["tags"].as_array() else { return false };
    found.keys().eq(["name", "age", "tags"])
        && name.chars().count() <= 12
        && age <= 150
        && (1..=3).contains(&tags.len())
        && tags.iter().all(|tag| [json!("tall"), json!("old"), json!("é")].contains(tag))
}

#[test]
fn answers_are_json_of_their_schema_and_do_not_depend_on_others() {
    let model = chat_model();
    let server = Server::start(model.path(), &[]);
    let body = |seed: u64| {
        let form = json!({"type": "json_schema", "json_schema": {"name": "person", "strict": true, "schema": person()}});
        let mut body = json!({"messages": [{"role": "user", "content": "Who was it?"}], "max_tokens": 250, "seed": seed,
            "temperature": if seed == 0 { 0.0 } else { 1.0 }});
        if seed < 8 {
            body["response_format"] = form;
        }
        body
    };
    let content = |seed: u64| {
        let answer = server.post("/v1/chat/completions", &body(seed)).json();
        let choice = &answer["choices"][0];
        let text = choice["message"]["content"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned();
        (text, choice["finish_reason"].clone())
    };
    let alone: Vec<_> = (0..12).map(content).collect();
    for (text, reason) in &alone[..8] {
        assert!(is_person(text) && reason == "stop", "{reason} {text:?}");
    }
    assert!(!is_person(&alone[8].0) && alone[1] != alone[2], "{alone:?}");
    std::thread::scope(|scope| {
        for (seed, expected) in (0..).zip(&alone) {
            let content = &content;
            scope.spawn(move || assert_eq!(content(seed), *expected, "{seed}"));
        }
    });
    // Choices and streams.
    let mut stream = body(3);
    (stream["stream"], stream["n"]) = (json!(true), json!(2));
    let events = server.post("/v1/chat/completions", &stream).events();
    for index in 0..2 {
        let own = events.iter().map(|event| &event["choices"][0]).filter(|choice| choice["index"] == index);
        let text: String = own.filter_map(|choice| choice["delta"]["content"].as_str()).collect();
        assert!(is_person(&text), "{text:?}");
    }
    // JSON of any kind is an object; cut short, it says so.
    let mut any = body(5);
    (any["response_format"], any["max_tokens"]) = (json!({"type": "json_object"}), json!(3));
    let choice = server.post("/v1/chat/completions", &any).json()["choices"][0].clone();
    assert_eq!(choice["finish_reason"], "length");
    assert!(choice["message"]["content"].as_str().expect("a text").starts_with('{'), "{choice}");
    assert_eq!(server.metric("int8_requests_failed_total"), 0.0);
}

#[test]
fn a_call_can_be_forced() {
    let model = chat_model();
    let server = Server::start(model.path(), &[]);
    let tool = |name: &str, key: &str| {
        let parameters = json!({"type": "object", "properties": {key: {"type": "integer", "maximum": 99, "minimum": -99}},
            "required": [key], "additionalProperties": false});
        json!({"type": "function", "function": {"name": name, "parameters": parameters}})
    };
    let body = |choice: Value, seed: u64| {
        json!({"messages": [{"role": "user", "content": "Add."}], "tools": [tool("add", "a"), tool("subtract", "b")],
            "tool_choice": choice, "max_tokens": 200, "seed": seed})
    };
    let named = json!({"type": "function", "function": {"name": "subtract"}});
    for (choice, seed) in [(json!("required"), 1), (json!("required"), 2), (named.clone(), 3), (named, 4)] {
        let answer = server.post("/v1/chat/completions", &body(choice.clone(), seed)).json();
        let (found, call) =
            (&answer["choices"][0], &answer["choices"][0]["message"]["tool_calls"][0]["function"]);
        assert_eq!(
            (&found["finish_reason"], &found["message"]["content"]),
            (&json!("tool_calls"), &Value::Null),
            "{answer}"
        );
        let arguments = call["arguments"].as_str().unwrap_or_else(|| panic!("{answer}"));
        let arguments: Value = serde_json::from_str(arguments).expect("JSON");
        let key = if call["name"] == "add" && choice == "required" { "a" } else { "b" };
        assert!(call["name"] == if key == "a" { "add" } else { "subtract" }, "{answer}");
        assert!(arguments[key].as_i64().is_some_and(|number| number.abs() <= 99), "{answer}");
    }
}

#[test]
fn schemas_that_are_not_supported_are_named() {
    let model = chat_model();
    let server = Server::start(model.path(), &[]);
    for (schema, words) in [
        (json!({"type": "object", "not": {"required": ["a"]}}), "not"),
        (json!({"type": "array", "items": {"type": "object", "if": {}, "then": {}}}), "if"),
        (json!({"type": "array", "uniqueItems": true}), "uniqueItems"),
        (json!({"type": "objekt"}), "objekt"),
        (json!({"type": "string", "pattern": "(["}), "(["),
        (json!({"type": "string", "format": "colour"}), "colour"),
        (json!({"properties": [1]}), "properties"),
        (json!({"type": "integer", "minimum": 3, "maximum": 2}), "minimum"),
        (json!({"$ref": "#/$defs/none"}), "none"),
        (json!({"$ref": "http://example.com/x"}), "example.com"),
    ] {
        let body = json!({"messages": [{"role": "user", "content": "Hi"}],
            "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}});
        let response = server.post("/v1/chat/completions", &body);
        let error = &response.json()["error"];
        let message = error["message"].as_str().unwrap_or_default();
        assert!(response.status == 400 && error["param"] == "response_format", "{schema}: {error}");
        assert!(message.contains(words) && message.len() < 400, "{schema}: {message}");
    }
}

#[test]
fn the_command_line_has_schemas_too() {
    let model = demo_folder();
    let model = model.to_str().expect("UTF-8");
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).to_str().expect("UTF-8").to_owned();
    fs::write(path("schema.json"), person().to_string()).expect("written");
    let run = |arguments: &[&str]| {
        let output =
            int8().args(["run", model, "--device", "cpu"]).args(arguments).output().expect("the program");
        (output.status.success(), output.stdout, String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let schema = path("schema.json");
    let (_, stdout, stderr) =
        run(&["-p", "The man:", "-n", "250", "--seed", "4", "--json-schema", &schema, "--json"]);
    let report: Value = serde_json::from_slice(&stdout).unwrap_or_else(|_| panic!("{stderr}"));
    let text = report["text"].as_str().expect("a text").strip_prefix("The man:").expect("the prompt");
    assert!(is_person(text) && report["stop"] == "end_of_text", "{report}");
    // A schema of a line goes before that of the option.
    let lines = [
        json!({"prompt": "The man:", "seed": 7}),
        json!({"prompt": "The man:", "json_schema": {"enum": [3, 4]}}),
        json!({"prompt": "The man:", "json_schema": {"not": {}}}),
    ];
    let lines: Vec<String> = lines.iter().map(Value::to_string).collect();
    fs::write(path("prompts.jsonl"), lines.join("\n")).expect("written");
    let (prompts, out) = (path("prompts.jsonl"), path("out.jsonl"));
    let (good, _, stderr) = run(&["--batch", &prompts, "--out", &out, "-n", "250", "--json-schema", &schema]);
    assert!(!good && stderr.contains("1 of 3 prompts failed"), "{stderr}");
    let mut answers: Vec<Value> = fs::read_to_string(&out)
        .expect("answers")
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    answers.sort_by_key(|answer| answer["line"].as_u64());
    assert!(is_person(answers[0]["text"].as_str().expect("a text")), "{}", answers[0]);
    assert!([json!("3"), json!("4")].contains(&answers[1]["text"]), "{}", answers[1]);
    assert!(answers[2]["error"].as_str().is_some_and(|error| error.contains("not")), "{}", answers[2]);
    fs::write(path("bad.json"), "{").expect("written");
    for (file, words) in [("none.json", "none.json"), ("bad.json", "no JSON")] {
        let (good, _, stderr) = run(&["-p", "x", "--json-schema", &path(file)]);
        assert!(!good && stderr.contains(words), "{stderr}");
    }
}

#[test]
fn generation_config_counts_as_on_the_command_line() {
    let model = chat_model();
    let set = |json: Value| {
        fs::write(model.path().join("generation_config.json"), json.to_string()).expect("written");
    };
    let run = |model: &Path| -> Value {
        let arguments = [
            "-p",
            "Once upon a time",
            "-n",
            "40",
            "--greedy",
            "--granularity",
            "value",
            "--json",
            "--device",
            "cpu",
        ];
        let output = int8().arg("run").arg(model).args(arguments).output().expect("the program");
        let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        report["text"].clone()
    };
    let serve = |options: &[&str]| {
        let server = Server::start(model.path(), options);
        let body = json!({"prompt": "Once upon a time", "max_tokens": 40, "temperature": 0, "echo": true});
        server.post("/v1/completions", &body).json()["choices"][0]["text"].clone()
    };
    set(json!({"eos_token_id": 0}));
    let plain = run(model.path());
    set(
        json!({"eos_token_id": 0, "no_repeat_ngram_size": 2, "repetition_penalty": 1.2, "suppress_tokens": [13, 14],
        "min_new_tokens": 40, "forced_eos_token_id": 0, "bad_words_ids": [[17], [18, 19]]}),
    );
    let ruled = run(model.path());
    assert_ne!(ruled, plain);
    assert_eq!(serve(&[]), ruled);
    assert_eq!(serve(&["--no-generation-config"]), plain);
    // Sampling that the model asks for, where a request does not say.
    set(json!({"eos_token_id": 0, "do_sample": true, "temperature": 1e-4, "top_k": 0}));
    let server = Server::start(model.path(), &[]);
    let body = json!({"prompt": "Once upon a time", "max_tokens": 40, "seed": 1, "echo": true});
    assert_eq!(server.post("/v1/completions", &body).json()["choices"][0]["text"], plain);
    set(json!({"num_beams": 4}));
    let refused = int8().arg("serve").arg(model.path()).args(["--port", "0", "--device", "cpu"]).output();
    let refused = refused.expect("the program");
    assert!(!refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("num_beams"));
}
