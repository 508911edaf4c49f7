//! Checkpoints as others wrote them: odd, but right for transformers, whose answers they come with. Each folder has `model`,
//! `case.json` (token ids, texts and the ids expected of them) and, where logits matter, `golden.safetensors`.
#![allow(clippy::print_stderr, reason = "says what it measured and what it skips")]

mod common;

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use int8_core::metrics::relative_l2;
use int8_nn::checkpoint::Source;
use int8_nn::{ChatTemplate, Message, Model, SpecialTokens, Tokenizer};
use serde_json::Value;

use common::{GoldenFile, data, exactly, read_json, shared};

/// Largest relative L2 distance of logits from transformers'.
const BOUND: f64 = 1e-5;

fn ids(value: &Value) -> Vec<u32> {
    let ids = value.as_array().expect("a list of ids");
    ids.iter().map(|id| u32::try_from(id.as_u64().expect("an id")).expect("an id")).collect()
}

/// What does not hold for the case in `folder`.
fn failures(folder: &Path) -> Vec<String> {
    let name = folder.file_name().expect("a name").to_string_lossy().into_owned();
    let case = read_json(&folder.join("case.json"));
    let mut failures = Vec::new();
    if case["ids"].is_array() {
        failures.extend(network_failures(folder, &case));
    }
    if case["texts"].is_array() {
        failures.extend(text_failures(folder, &case));
    }
    failures.into_iter().map(|failure| format!("{name}: {failure}")).collect()
}

/// Logits and greedy continuation.
fn network_failures(folder: &Path, case: &Value) -> Vec<String> {
    let model = match Model::load(folder.join("model")).and_then(int8_nn::Loader::build) {
        Ok(model) => model,
        Err(error) => return vec![error.to_string()],
    };
    let mut failures = Vec::new();
    let prompt = ids(&case["ids"]);
    if folder.join("golden.safetensors").exists() {
        let golden = GoldenFile::open(folder).floats("logits").expect("logits");
        let logits = model.logits(&prompt).expect("logits");
        let error = relative_l2(logits.as_slice().expect("rows"), &golden);
        eprintln!("{}: {error:.1e}", folder.display());
        if error.is_nan() || error > BOUND {
            failures.push(format!("logits are off by {error:.2e} (relative L2)"));
        }
    }
    // Of a model that answers, the start token and the new ones; else prompt and new ones.
    let expected = ids(&case["greedy_ids"]);
    let given = if model.answers() { 1 } else { prompt.len() };
    let count = expected.len() - given;
    let new = model.generate_ids(&prompt, &exactly(count), |_| ControlFlow::Continue(())).expect("tokens");
    if new.ids != expected[given..] {
        failures.push(format!("greedy ids {:?}, expected {:?}", new.ids, &expected[given..]));
    }
    failures
}

/// Ids of texts, and the text of a conversation.
fn text_failures(folder: &Path, case: &Value) -> Vec<String> {
    let source = Source::folder(&folder.join("model")).expect("a folder");
    let tokenizer = match Tokenizer::read(&source) {
        Ok(Some(tokenizer)) => tokenizer,
        Ok(None) => return vec!["no tokenizer".to_owned()],
        Err(error) => return vec![error.to_string()],
    };
    let mut failures = Vec::new();
    for text in case["texts"].as_array().expect("texts") {
        let (text, expected) = (text["text"].as_str().expect("a text"), ids(&text["ids"]));
        let found = tokenizer.encode(text, SpecialTokens::Add).expect("ids");
        if found != expected {
            failures.push(format!("{text:?} is {found:?}, expected {expected:?}"));
        }
        // Id by id it is the same text, spaces after special tokens included. BERT's decoder takes back spaces that it wrote.
        if !folder.ends_with("bert_vocab") && !folder.ends_with("bert_cased_vocab") {
            let mut stream = tokenizer.stream();
            let mut streamed: String = expected.iter().map(|id| stream.push(*id).expect("a piece")).collect();
            streamed.push_str(&stream.finish().expect("the rest"));
            let whole = tokenizer.decode(&expected).expect("a text");
            if streamed != whole {
                failures.push(format!("{text:?} is streamed as {streamed:?}, expected {whole:?}"));
            }
        }
    }
    if let Some(messages) = case["chat"]["messages"].as_array() {
        let field = |message: &Value, key: &str| message[key].as_str().expect("a text").to_owned();
        let messages: Vec<Message> =
            messages.iter().map(|m| Message::new(field(m, "role"), field(m, "content"))).collect();
        let template = ChatTemplate::read(&source).expect("a template").expect("a template");
        let found = template.render(&messages, false).expect("a text");
        if found != case["chat"]["text"] {
            failures.push(format!("the conversation is {found:?}, expected {}", case["chat"]["text"]));
        }
    }
    failures
}

fn cases(folder: &Path) -> Vec<PathBuf> {
    let mut cases: Vec<_> =
        fs::read_dir(folder).expect("cases").map(|entry| entry.expect("an entry").path()).collect();
    cases.sort();
    cases
}

fn check(cases: &[PathBuf]) {
    let failures: Vec<String> = cases.iter().flat_map(|folder| failures(folder)).collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// The project's own copies of the small cases.
#[test]
fn odd_checkpoints_are_right() {
    let cases = cases(&data("faults"));
    assert!(cases.len() >= 12, "{} cases", cases.len());
    check(&cases);
}

/// All cases, where they lie beside the project.
#[test]
fn all_odd_checkpoints_are_right() {
    if let Some(folder) = shared("faults") {
        check(&cases(&folder));
    }
}
