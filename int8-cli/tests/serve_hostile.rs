//! `int8 serve` against clients that are killed and clients that mean harm.
#![cfg(feature = "serve")]

mod server;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use server::{Server, chat_model, demo_folder, request};

const ADDRESS: &str = "INT8_TEST_CLIENT_OF";

/// The process that the next test kills: begins a stream, says so, and reads no further.
#[test]
fn a_client_of_its_own() {
    let Ok(address) = std::env::var(ADDRESS) else { return };
    let mut stream = TcpStream::connect(address).expect("a connection");
    let body = json!({"prompt": "Once", "max_tokens": 490, "ignore_eos": true, "stream": true});
    stream.write_all(&request("/v1/completions", body.to_string().as_bytes())).expect("sent");
    let mut seen: Vec<u8> = Vec::new();
    while !seen.windows(6).any(|window| window == b"data: ") {
        let mut bytes = [0; 256];
        let count = stream.read(&mut bytes).expect("a stream");
        seen.extend(&bytes[..count]);
    }
    println!("begun");
    std::thread::sleep(Duration::from_secs(60));
}

#[cfg(unix)]
#[test]
fn a_client_that_is_killed_frees_its_pages_at_once() {
    let server = Server::start(&demo_folder(), &["--prefixes", "0"]);
    let free = server.metric("int8_kv_pages_free");
    let mut client = Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "a_client_of_its_own", "--nocapture"])
        .env(ADDRESS, &server.address)
        .stdout(Stdio::piped())
        .spawn()
        .expect("a client");
    let mut said: Vec<u8> = Vec::new();
    let mut stdout = client.stdout.take().expect("piped");
    while !said.windows(5).any(|window| window == b"begun") {
        let mut bytes = [0; 64];
        let count = stdout.read(&mut bytes).expect("a line");
        assert!(count > 0, "{}", String::from_utf8_lossy(&said));
        said.extend(&bytes[..count]);
    }
    server.wait_for("int8_requests_running", 1.0);
    // SIGKILL.
    client.kill().expect("killed");
    client.wait().expect("an end");
    server.wait_for("int8_requests_running", 0.0);
    // It ended by the client's end, not by its own.
    assert_eq!(server.metric("int8_requests_cancelled_total"), 1.0);
    assert_eq!(server.metric("int8_kv_pages_free"), free);
}

/// Values of every type, and of every size.
fn values() -> Vec<Value> {
    let mut nested = json!(1);
    for _ in 0..60 {
        nested = json!([{"a": nested}]);
    }
    vec![
        json!(-1),
        json!(1e300),
        json!(u64::MAX),
        json!("x"),
        json!(["x", 1, null]),
        json!({"type": "x", "a": [{}]}),
        json!(true),
        nested,
    ]
}

#[test]
fn two_hundred_hostile_requests_do_no_harm() {
    let model = chat_model();
    let server = Server::start(model.path(), &["--context", "64", "--max-body", "100kB"]);
    let good = json!({"prompt": "Once upon", "max_tokens": 8, "temperature": 0});
    let expected = server.post("/v1/completions", &good).json()["choices"].clone();
    let begun = Instant::now();
    let mut bodies: Vec<(&str, Vec<u8>)> = Vec::new();
    // Each field with values of other types; some values are right for some fields.
    let fields = [
        "prompt",
        "messages",
        "max_tokens",
        "max_completion_tokens",
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "seed",
        "n",
        "stop",
        "logit_bias",
        "logprobs",
        "top_logprobs",
        "stream_options",
        "response_format",
        "tools",
        "tool_choice",
        "chat_template_kwargs",
        "repetition_penalty",
    ];
    for field in fields {
        for value in values() {
            let chat =
                json!({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2, field: value});
            let text = json!({"prompt": "hi", "max_tokens": 2, field: value});
            bodies.push(("/v1/chat/completions", chat.to_string().into_bytes()));
            bodies.push(("/v1/completions", text.to_string().into_bytes()));
        }
    }
    // Broken JSON, deep JSON, large JSON, bytes that are no UTF-8.
    for count in [1, 126, 130, 40_000] {
        bodies.push(("/v1/completions", "[".repeat(count).into_bytes()));
        bodies.push(("/v1/completions", "{\"a\":".repeat(count).into_bytes()));
    }
    bodies.push(("/v1/completions", vec![0xFF; 500]));
    bodies.push(("/v1/completions", b"{\"prompt\": \"\xC3\x28\"}".to_vec()));
    bodies.push(("/v1/completions", b"{\"prompt\": \"\\ud800\"}".to_vec()));
    bodies.push(("/v1/completions", vec![b' '; 200_000]));
    bodies.push(("/v1/embeddings", json!({"input": "x"}).to_string().into_bytes()));
    bodies.push((
        "/v1/completions",
        json!({"prompt": vec!["hi"; 128], "n": 16, "max_tokens": 1}).to_string().into_bytes(),
    ));
    // Schemas that are deep, large, endless, or costly.
    let nest = |key: &str, list: bool| {
        (0..55).fold(
            json!({"type": "integer"}),
            |inner, _| json!({key: if list { json!([inner]) } else { inner }}),
        )
    };
    let many: serde_json::Map<String, Value> =
        (0..1500).map(|at| (format!("key{at}"), json!({"type": "string"}))).collect();
    for schema in [
        nest("items", false),
        nest("anyOf", true),
        nest("allOf", true),
        nest("oneOf", true),
        nest("additionalProperties", false),
        json!({"$ref": "#"}),
        json!({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}),
        json!({"$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}, {"type": "object"}]}}, "$ref": "#/$defs/a"}),
        json!({"type": "string", "pattern": "^((a{1,999}){1,999}){1,999}$"}),
        json!({"type": "string", "pattern": "(.*a){60}b"}),
        json!({"type": "string", "minLength": 4_000_000_000_u64}),
        json!({"type": "string", "maxLength": u64::MAX}),
        json!({"type": "array", "minItems": 1_000_000_000, "items": {"type": "object"}}),
        json!({"type": "number", "multipleOf": 1e-300}),
        json!({"type": "integer", "multipleOf": 999_983, "minimum": 1}),
        json!({"enum": (0..4000).map(|at| format!("value {at}")).collect::<Vec<_>>()}),
        json!({"type": "object", "properties": many}),
        json!({"type": "object", "x-guidance": {"whitespace_pattern": "(x+x+)+y"}}),
        json!({"enum": ["é".repeat(120)], "type": 3, "pattern": "ü".repeat(300)}),
        json!({"const": "é".repeat(120), "$ref": ["é".repeat(99)]}),
    ] {
        let format = json!({"type": "json_schema", "json_schema": {"name": "x", "schema": schema}});
        let body = json!({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3, "response_format": format});
        bodies.push(("/v1/chat/completions", body.to_string().into_bytes()));
    }
    assert!(bodies.len() >= 200, "{}", bodies.len());
    // Slow ones hold their connections all the while: heads and bodies that never end.
    let slow: Vec<TcpStream> = (0..60)
        .map(|at| {
            let mut stream = server.connect();
            let head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 90\r\n\r\n{";
            stream.write_all(&head[..if at % 2 == 0 { 40 } else { head.len() }]).expect("sent");
            stream
        })
        .collect();
    let wrong: Vec<String> = std::thread::scope(|scope| {
        let threads: Vec<_> = bodies
            .chunks(bodies.len().div_ceil(4))
            .map(|bodies| {
                let server = &server;
                scope.spawn(move || {
                    let mut wrong = Vec::new();
                    for (path, body) in bodies {
                        let begin = Instant::now();
                        let response = server.send(&request(path, body));
                        let refused = matches!(response.status, 400 | 413 | 429)
                            && response.json()["error"]["message"].is_string();
                        if !(response.status == 200 || refused) || begin.elapsed() > Duration::from_secs(20) {
                            let shown: String = String::from_utf8_lossy(body).chars().take(150).collect();
                            wrong.push(format!(
                                "{} after {:?}: {} to {shown}",
                                response.status,
                                begin.elapsed(),
                                response.text()
                            ));
                        }
                    }
                    wrong
                })
            })
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("no panic")).collect()
    });
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(server.post("/v1/completions", &good).json()["choices"], expected);
    drop(slow);
    server.wait_for("int8_requests_running", 0.0);
    server.wait_for("int8_requests_waiting", 0.0);
    assert!(begun.elapsed() < Duration::from_secs(240), "{:?}", begun.elapsed());
}
