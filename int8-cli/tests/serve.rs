//! `int8 serve` over raw HTTP: answers and streams, errors, hostile requests, a full queue, clients that leave, and its end.
#![cfg(feature = "serve")]
#![allow(clippy::print_stderr, reason = "says what it skips")]

mod server;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use server::{Server, chat_model, demo_folder, int8, request};

fn completion(prompt: &str, seed: u64) -> Value {
    json!({"prompt": prompt, "max_tokens": 24, "seed": seed, "temperature": 0.8, "ignore_eos": true})
}

#[test]
fn completions_are_those_of_the_command_line_and_do_not_depend_on_others() {
    let model = demo_folder();
    let server = Server::start(&model, &[]);
    let prompts = ["Once upon a time", "It was the best of times", "He", "In the beginning there was"];
    for prompt in prompts {
        let run = int8()
            .args([
                "run",
                model.to_str().expect("UTF-8"),
                "-p",
                prompt,
                "-n",
                "24",
                "--granularity",
                "value",
                "--greedy",
            ])
            .args(["--ignore-eos", "--json", "--device", "cpu"])
            .output()
            .expect("the program");
        let expected: Value = serde_json::from_slice(&run.stdout).expect("JSON");
        let mut body = completion(prompt, 0);
        body["temperature"] = json!(0);
        body["echo"] = json!(true);
        let found = server.post("/v1/completions", &body).json();
        assert_eq!(found["choices"][0]["text"], expected["text"], "{prompt}");
        assert_eq!(found["choices"][0]["finish_reason"], "length");
        assert_eq!(found["usage"]["completion_tokens"], 24);
    }
    // Sixteen at once, streamed and whole, against each alone.
    let body = |at: u32| completion(prompts[usize::try_from(at % 4).expect("small")], u64::from(at));
    let alone: Vec<Value> = (0..16)
        .map(|at| server.post("/v1/completions", &body(at)).json()["choices"][0]["text"].clone())
        .collect();
    std::thread::scope(|scope| {
        for (at, expected) in (0..).zip(&alone) {
            let (server, body) = (&server, &body);
            scope.spawn(move || {
                let mut body = body(at);
                let stream = at % 2 == 0;
                body["stream"] = json!(stream);
                let response = server.post("/v1/completions", &body);
                let text = if stream {
                    let pieces = response.events();
                    let text =
                        pieces.iter().map(|event| event["choices"][0]["text"].as_str().expect("a text"));
                    json!(text.collect::<String>())
                } else {
                    response.json()["choices"][0]["text"].clone()
                };
                assert_eq!(text, *expected, "request {at}");
            });
        }
    });
    assert!(server.metric("int8_cached_tokens_total") >= 0.0);
    assert_eq!(server.metric("int8_requests_failed_total"), 0.0);
}

#[test]
fn chats_stream_with_usage_choices_and_logprobs() {
    let model = chat_model();
    let server = Server::start(model.path(), &["--name", "demo"]);
    let messages =
        json!([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Tell a tale."}]);
    let body = json!({"model": "demo", "messages": messages, "max_tokens": 12, "seed": 3, "n": 2, "logprobs": true,
        "top_logprobs": 3, "store": false});
    let response = server.post("/v1/chat/completions", &body);
    let whole = response.json();
    assert_eq!((response.status, &whole["object"]), (200, &json!("chat.completion")));
    assert!(response.head.contains("x-ignored-fields: store"), "{}", response.head);
    let choices = whole["choices"].as_array().expect("choices");
    assert_ne!(choices[0]["message"]["content"], choices[1]["message"]["content"]);
    for choice in choices {
        let tokens = choice["logprobs"]["content"].as_array().expect("tokens");
        assert!((1..=12).contains(&tokens.len()));
        for token in tokens {
            let logprob = token["logprob"].as_f64().expect("a number");
            let top = token["top_logprobs"].as_array().expect("tokens");
            let first = top[0]["logprob"].as_f64().expect("a number");
            assert!(top.len() == 3 && logprob <= first && first <= 0.0, "{token}");
        }
    }
    let mut stream = body.clone();
    stream["stream"] = json!(true);
    stream["stream_options"] = json!({"include_usage": true});
    let events = server.post("/v1/chat/completions", &stream).events();
    let last = events.last().expect("events");
    assert_eq!(last["choices"], json!([]));
    // The second time the prompt is found in the pages of the first.
    for count in ["prompt_tokens", "completion_tokens", "total_tokens"] {
        assert_eq!(last["usage"][count], whole["usage"][count], "{count}");
    }
    assert!(last["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64() > Some(0), "{last}");
    for (index, choice) in choices.iter().enumerate() {
        let own: Vec<&Value> = events
            .iter()
            .map(|event| &event["choices"][0])
            .filter(|choice| choice["index"] == index)
            .collect();
        assert_eq!(own[0]["delta"]["role"], "assistant");
        let text: String = own.iter().filter_map(|choice| choice["delta"]["content"].as_str()).collect();
        assert_eq!(json!(text), choice["message"]["content"]);
        assert_eq!(own.last().expect("an end")["finish_reason"], choice["finish_reason"]);
    }
    // A stop text ends the answer before it.
    let text = choices[0]["message"]["content"].as_str().expect("a text");
    let stop: String = text.chars().skip(8).take(3).collect();
    let mut body = json!({"messages": messages, "max_tokens": 12, "seed": 3, "stop": stop});
    let stopped = server.post("/v1/chat/completions", &body).json();
    assert_eq!(stopped["choices"][0]["finish_reason"], "stop");
    assert_eq!(stopped["choices"][0]["message"]["content"], text[..text.find(&stop).expect("there")]);
    // Tools are in the prompt, and no call is found in plain text.
    let plain = server.post("/v1/chat/completions", &body).json()["usage"]["prompt_tokens"].as_u64();
    body["tools"] =
        json!([{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]);
    let with_tools = server.post("/v1/chat/completions", &body).json();
    assert!(with_tools["usage"]["prompt_tokens"].as_u64() > plain);
    assert_eq!(with_tools["choices"][0]["message"]["tool_calls"], Value::Null);
    let models = server.get("/v1/models").json();
    assert_eq!(models["data"][0]["id"], "demo");
    assert_eq!(server.get("/v1/models/demo").status, 200);
    assert_eq!(server.get("/v1/models/other").json()["error"]["code"], "model_not_found");
}

#[test]
fn bad_requests_get_an_error_and_do_no_harm() {
    let server = Server::start(&demo_folder(), &["--context", "64", "--max-body", "20kB", "--name", "demo"]);
    let good = json!({"prompt": "Once", "max_tokens": 4, "temperature": 0});
    let expected = server.post("/v1/completions", &good).json()["choices"].clone();
    let nested = "[".repeat(9_000);
    let with = |key: &str, value: Value| {
        let mut body = good.clone();
        body[key] = value;
        body.to_string().into_bytes()
    };
    let cases: Vec<(&str, Vec<u8>, u16, &str)> = vec![
        ("/v1/completions", b"{\"prompt\": ".to_vec(), 400, "no JSON"),
        ("/v1/completions", b"{\"prompt\": \"\xff\xfe\"}".to_vec(), 400, "no JSON"),
        ("/v1/completions", Vec::new(), 400, "no JSON"),
        ("/v1/completions", b"[]".to_vec(), 400, "JSON object"),
        ("/v1/completions", nested.clone().into_bytes(), 400, "no JSON"),
        ("/v1/completions", format!("{{\"prompt\": {nested}").into_bytes(), 400, "no JSON"),
        ("/v1/completions", b"{}".to_vec(), 400, "`prompt`"),
        ("/v1/completions", with("prompt", json!([])), 400, "`prompt`"),
        ("/v1/completions", with("prompt", json!([99_999])), 400, "vocabulary"),
        ("/v1/completions", with("prompt", json!("word ".repeat(100))), 400, "context 64"),
        ("/v1/completions", with("max_tokens", json!(-1)), 400, "`max_tokens`"),
        ("/v1/completions", with("temperature", json!("hot")), 400, "`temperature`"),
        ("/v1/completions", with("suffix", json!("end")), 400, "`suffix`"),
        ("/v1/completions", with("model", json!("gpt-4")), 404, "does not exist"),
        ("/v1/completions", with("prompt", json!("x".repeat(30_000))), 413, "bytes"),
        (
            "/v1/chat/completions",
            b"{\"messages\": [{\"role\": \"user\", \"content\": \"hi\"}]}".to_vec(),
            400,
            "no chat model",
        ),
        ("/v1/embeddings", b"{\"input\": \"hi\"}".to_vec(), 400, "no embeddings"),
        ("/v1/images", b"{}".to_vec(), 404, "there is no"),
        ("/health", b"{}".to_vec(), 405, "takes GET"),
    ];
    let mut wrong = Vec::new();
    for (path, body, status, words) in cases {
        let response = server.send(&request(path, &body));
        let message = response.json()["error"]["message"].as_str().unwrap_or_default().to_owned();
        if response.status != status || !message.contains(words) {
            wrong.push(format!("{path}: {} {message:?} instead of {status} {words:?}", response.status));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let no_type =
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}";
    assert_eq!(server.send(no_type).status, 415);
    // What is no HTTP at all, heads without end, and clients that stop in the middle.
    for bytes in
        [&b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..], b"GET / HTTP/9.9\r\n\r\n", b"\r\n\r\n\r\n"]
    {
        let mut stream = server.connect();
        stream.set_read_timeout(Some(Duration::from_secs(2))).expect("a time-out");
        let _ = stream.write_all(bytes);
        let _ = stream.read(&mut [0; 64]);
    }
    let mut long = server.connect();
    let _ = long.write_all(&[b"GET / HTTP/1.1\r\nX: ", &vec![b'a'; 200_000][..]].concat());
    let slow: Vec<TcpStream> = (0..50)
        .map(|_| {
            let mut stream = server.connect();
            stream.write_all(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Le").expect("sent");
            stream
        })
        .collect();
    assert_eq!(server.post("/v1/completions", &good).json()["choices"], expected);
    drop(slow);
    assert_eq!(server.metric("int8_requests_running"), 0.0);
    assert_eq!(server.get("/health").json()["status"], "ok");
}

#[test]
fn a_key_protects_all_but_the_page_and_health() {
    let server = Server::start(&demo_folder(), &["--api-key", "secret"]);
    for path in ["/v1/models", "/metrics", "/api/status"] {
        assert_eq!(server.get(path).json()["error"]["code"], "invalid_api_key", "{path}");
    }
    assert_eq!(server.post("/v1/completions", &json!({"prompt": "Once"})).status, 401);
    let with = |key: &str| {
        server.send(format!("GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {key}\r\n\r\n").as_bytes())
    };
    assert_eq!(
        (with("secret").status, with("secre").status, with("secretx").status, with("").status),
        (200, 401, 401, 401)
    );
    assert_eq!(server.get("/health").status, 200);
    let page = server.get("/");
    assert!(
        page.head.contains("content-security-policy: default-src 'none'") && page.text().contains("<html")
    );
    // Nothing on the page comes from elsewhere.
    assert!(!page.text().contains("http://") && !page.text().contains("https://"));
}

#[test]
fn a_full_queue_is_429_and_clients_that_leave_free_their_pages() {
    let server = Server::start(&demo_folder(), &["--max-batch", "1", "--queue", "1", "--prefixes", "0"]);
    let free = server.metric("int8_kv_pages_free");
    let long = json!({"prompt": "Once", "max_tokens": 490, "ignore_eos": true, "stream": true});
    let first = server.begin(&long);
    let mut second = server.connect();
    second.write_all(&request("/v1/completions", long.to_string().as_bytes())).expect("sent");
    let begin = Instant::now();
    while server.metric("int8_requests_waiting") != 1.0 && server.metric("int8_requests_running") == 1.0 {
        assert!(begin.elapsed() < Duration::from_secs(20));
    }
    let refused = server.post("/v1/completions", &long);
    if refused.status == 200 {
        // The first answer had ended already; nothing to see on such a machine.
        eprintln!("skipped: answers end faster than requests arrive");
        return;
    }
    assert_eq!((refused.status, &refused.json()["error"]["code"]), (429, &json!("rate_limit_exceeded")));
    assert!(refused.head.contains("retry-after: 1"), "{}", refused.head);
    drop((first, second));
    server.wait_for("int8_requests_running", 0.0);
    server.wait_for("int8_requests_waiting", 0.0);
    assert_eq!(server.metric("int8_kv_pages_free"), free);
    assert!(server.metric("int8_requests_cancelled_total") >= 1.0);
    assert_eq!(server.post("/v1/completions", &json!({"prompt": "Once", "max_tokens": 2})).status, 200);
}

#[cfg(unix)]
#[test]
fn a_signal_lets_running_answers_end() {
    let mut server = Server::start(&demo_folder(), &[]);
    let body = json!({"prompt": "Once", "max_tokens": 300, "ignore_eos": true, "stream": true});
    let mut stream = server.begin(&body);
    let kill = Command::new("kill").args(["-TERM", &server.process.id().to_string()]).status().expect("kill");
    assert!(kill.success());
    let mut rest = String::new();
    stream.read_to_string(&mut rest).expect("the rest");
    assert!(rest.contains("\"finish_reason\":\"length\"") && rest.contains("data: [DONE]"), "{rest}");
    assert!(server.process.wait().expect("an end").success());
    assert!(TcpStream::connect(&server.address).is_err());
}

#[test]
fn embeddings_of_an_encoder() {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../int8-nn/tests/data/encoders/bert");
    let server = Server::start(&model, &[]);
    let input = json!([[2, 5, 9, 3], [2, 7, 3]]);
    let whole = server.post("/v1/embeddings", &json!({"input": input})).json();
    assert_eq!(
        (&whole["usage"]["prompt_tokens"], whole["data"].as_array().map(Vec::len)),
        (&json!(7), Some(2))
    );
    let vector = &whole["data"][1]["embedding"];
    let alone = server.post("/v1/embeddings", &json!({"input": [2, 7, 3]})).json();
    assert_eq!(alone["data"][0]["embedding"], *vector);
    let base64 = server.post("/v1/embeddings", &json!({"input": input, "encoding_format": "base64"})).json();
    let digits = base64["data"][1]["embedding"].as_str().expect("a text").len();
    assert_eq!(digits, (4 * vector.as_array().expect("numbers").len()).div_ceil(3) * 4);
    for (body, words) in [
        (json!({"input": [[999_999]]}), "vocabulary"),
        (json!({"input": []}), "`input`"),
        (json!({"input": [1], "dimensions": 4}), "`dimensions`"),
        (json!({"input": [1], "encoding_format": "hex"}), "`encoding_format`"),
    ] {
        let response = server.post("/v1/embeddings", &body);
        assert_eq!(response.status, 400, "{body}");
        assert!(response.text().contains(words), "{}", response.text());
    }
    let refused = server.post("/v1/completions", &json!({"prompt": [1]}));
    assert!(refused.status == 400 && refused.text().contains("encoder"), "{}", refused.text());
}
