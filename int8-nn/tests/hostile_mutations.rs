//! Chat templates and `tokenizer.json` put together at random from pieces that have caused trouble: none panics, takes long or much
//! memory. A few hundred cases in every run of the tests; `INT8_FUZZ_SECONDS=600` runs as long as that, and
//! `INT8_FUZZ_SEED` from another place. The targets `template` and `tokenizer` of `fuzz/` do the same by coverage.

use std::time::{Duration, Instant};

use int8_core::corpus::Random;
use int8_nn::checkpoint::Source;
use int8_nn::{ChatTemplate, Message, SpecialTokens, Tokenizer};
use serde_json::{Value, json};

/// Longest time of one case in an unoptimised build on a busy machine.
const LONGEST: Duration = Duration::from_secs(10);

/// Cases without `INT8_FUZZ_SECONDS`.
const CASES: usize = 250;

fn below(random: &mut Random, count: usize) -> usize {
    usize::try_from(random.bits() % u64::try_from(count).expect("small")).expect("small")
}

fn pick<'a, T>(random: &mut Random, list: &'a [T]) -> &'a T {
    &list[below(random, list.len())]
}

fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default();
    line.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap_or(0) << 10
}

/// Runs cases until they or the time are over; a case returns what it was for the message.
#[allow(clippy::print_stdout, reason = "how many cases ran is the point of a long run")]
fn run(name: &str, case: impl Fn(&mut Random) -> String) {
    let variable = |name: &str| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    let seconds = variable("INT8_FUZZ_SECONDS");
    let mut random = Random::new(variable("INT8_FUZZ_SEED").unwrap_or(1));
    let begin = Instant::now();
    let mut cases = 0;
    while seconds.map_or(cases < CASES, |seconds| begin.elapsed().as_secs() < seconds) {
        let start = Instant::now();
        let what = case(&mut random);
        let (time, memory) = (start.elapsed(), peak());
        assert!(time < LONGEST, "{name} {cases} took {time:?}: {what}");
        assert!(memory < 1 << 30, "{name} {cases} took {memory} bytes: {what}");
        cases += 1;
    }
    println!("{name}: {cases} cases in {:?}, at most {} MB", begin.elapsed(), peak() >> 20);
}

/// An expression of some depth.
fn expression(random: &mut Random, depth: usize) -> String {
    const ATOMS: [&str; 22] = [
        "x",
        "y",
        "ns.a",
        "ns",
        "messages",
        "messages[0]",
        "messages[0].content",
        "'a'",
        "'%s%9999d'",
        "'{:>{}}{}'",
        "9999",
        "4000000000",
        "1.5",
        "none",
        "true",
        "range(1000)",
        "[]",
        "{}",
        "loop",
        "eos_token",
        "[x, x]",
        "'a'*9999",
    ];
    const FILTERS: [&str; 34] = [
        "length",
        "list",
        "join",
        "join(x)",
        "replace('a', x)",
        "tojson",
        "tojson(indent=9999)",
        "indent(9999)",
        "batch(9999)",
        "slice(99)",
        "format(x, x)",
        "map('upper')",
        "map('join', x)",
        "map('replace', 'a', x)",
        "select('in', x)",
        "unique",
        "sort",
        "reverse",
        "items",
        "dictsort",
        "string",
        "pprint",
        "e",
        "sum(start=x)",
        "first",
        "trim",
        "title",
        "default(x)",
        "min",
        "groupby(0)",
        "zip(x, x)",
        "chain(x, x)",
        "int",
        "attr(x)",
    ];
    const METHODS: [&str; 12] = [
        "replace('a', x)",
        "join(x)",
        "join([x, x])",
        "split()",
        "split(x)",
        "splitlines()",
        "format(x, x)",
        "items()",
        "upper()",
        "strip(x)",
        "get(x, x)",
        "count(x)",
    ];
    const OPERATORS: [&str; 14] =
        ["~", "+", "*", "-", "//", "%", "**", "==", "<", "in", "and", "or", "is sameas", "not in"];
    if depth == 0 {
        return (*pick(random, &ATOMS)).to_owned();
    }
    let inner = |random: &mut Random| expression(random, depth - 1);
    match below(random, 10) {
        0..4 => format!("({} {} {})", inner(random), pick(random, &OPERATORS), inner(random)),
        4 => format!("({})|{}", inner(random), pick(random, &FILTERS)),
        5 => format!("({}).{}", inner(random), pick(random, &METHODS)),
        6 => format!("[{}, {}]", inner(random), inner(random)),
        7 => format!("{{'a': {}, {}: 1}}", inner(random), inner(random)),
        8 => format!("({} if {} else {})", inner(random), inner(random), inner(random)),
        _ => format!(
            "m({}, {})[{}:{}]",
            inner(random),
            inner(random),
            pick(random, &["", "1"]),
            pick(random, &["", "-1"])
        ),
    }
}

fn statements(random: &mut Random, depth: usize) -> String {
    let count = 1 + below(random, 4);
    (0..count).map(|_| statement(random, depth)).collect()
}

fn statement(random: &mut Random, depth: usize) -> String {
    let levels = below(random, 4);
    let value = expression(random, levels);
    let body =
        |random: &mut Random| if depth == 0 { "text".to_owned() } else { statements(random, depth - 1) };
    match below(random, 12) {
        0..3 => format!("{{{{ {value} }}}}"),
        3..6 => format!("{{% set {} = {value} %}}", pick(random, &["x", "y", "ns.a", "ns.b"])),
        6 => format!("{{% for x in {value} %}}{}{{% endfor %}}", body(random)),
        7 => {
            format!("{{% for i in range({}) %}}{}{{% endfor %}}", pick(random, &[3, 60, 9999]), body(random))
        }
        8 => format!("{{% if {value} %}}{}{{% else %}}{}{{% endif %}}", body(random), body(random)),
        9 => format!("{{% set x %}}{}{{% endset %}}", body(random)),
        10 => format!("{{% macro m(x, y={value}) %}}{}{{% endmacro %}}", body(random)),
        _ => format!(
            "{{% filter {} %}}{}{{% endfilter %}}",
            pick(random, &["upper", "indent(99)", "replace('a', 'bb')"]),
            body(random)
        ),
    }
}

#[test]
fn templates() {
    run("template", |random| {
        let mut text = "{% macro m(x, y) %}{{ x ~ y }}{% endmacro %}{% set ns = namespace(a='a') %}{% set x = 'ab' %}{% set y = [1] %}"
            .to_owned();
        text.push_str(&statements(random, 3));
        // Some are not Jinja.
        if below(random, 4) == 0 {
            let place = below(random, text.len());
            let place = (0..=place).rev().find(|place| text.is_char_boundary(*place)).unwrap_or(0);
            text.insert_str(
                place,
                pick::<&str>(random, &["{{", "%}", "{%", "(", "'", "\\", "\u{0}", "{#", "recursive", "*"]),
            );
        }
        let template = ChatTemplate::new("fuzz", &text, vec![("eos_token".to_owned(), "</s>".to_owned())]);
        match template.and_then(|template| {
            template.render(&[Message::new("user", "Hello,\nwörld"), Message::new("a", "")], true)
        }) {
            Ok(rendered) => assert!(rendered.len() < 512 << 20, "{text}"),
            Err(error) => assert!(error.to_string().len() < 1_500, "{text}: {error}"),
        }
        text
    });
}

/// A part of a tokenizer, or a value that none has.
fn part(random: &mut Random, parts: &[Value]) -> Value {
    let mut value = pick(random, parts).clone();
    // Change one of its values.
    if below(random, 3) == 0
        && let Some(map) = value.as_object_mut()
    {
        let keys: Vec<String> = map.keys().filter(|key| *key != "type").cloned().collect();
        if !keys.is_empty() {
            let odd = [
                json!(null),
                json!(0),
                json!(-1),
                json!(4_000_000_000_u32),
                json!(""),
                json!("aa"),
                json!([]),
                json!({}),
                json!(true),
            ];
            map.insert(pick(random, &keys).clone(), pick(random, &odd).clone());
        }
    }
    value
}

fn sequence(random: &mut Random, key: &str, parts: &[Value]) -> Value {
    let list: Vec<Value> = (0..below(random, 6)).map(|_| part(random, parts)).collect();
    match below(random, 4) {
        0 => Value::Null,
        1 => part(random, parts),
        _ => json!({"type": "Sequence", key: list}),
    }
}

#[test]
fn tokenizers() {
    let regex = |pattern: &str| json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
    let normalizers = [
        json!({"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}),
        json!({"type": "Replace", "pattern": {"Regex": "a*"}, "content": "b"}),
        json!({"type": "Replace", "pattern": {"String": "b"}, "content": ""}),
        json!({"type": "Prepend", "prepend": "▁"}),
        json!({"type": "Strip", "strip_left": true, "strip_right": true}),
        json!({"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null, "lowercase": true}),
        json!({"type": "NFKD"}),
        json!({"type": "StripAccents"}),
        json!({"type": "Lowercase"}),
        json!({"type": "ByteLevel"}),
        json!({"type": "Precompiled", "precompiled_charsmap": "CAAAAP////////8AYQA="}),
    ];
    let pre = [
        json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true}),
        json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true}),
        json!({"type": "Whitespace"}),
        json!({"type": "Punctuation", "behavior": "MergedWithNext"}),
        json!({"type": "Digits", "individual_digits": true}),
        json!({"type": "FixedLength", "length": 2}),
        json!({"type": "UnicodeScripts"}),
        json!({"type": "CharDelimiterSplit", "delimiter": "a"}),
        regex("(a|aa)+b"),
        regex(""),
        regex(r"\s+(?!\S)|(?=a)"),
    ];
    let post = [
        json!({"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [], "special_tokens": {"<s>": {"id": "<s>", "ids": [3], "tokens": ["<s>"]}}}),
        json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true}),
        json!({"type": "RobertaProcessing", "sep": ["a", 0], "cls": ["b", 1], "trim_offsets": true, "add_prefix_space": true}),
        json!({"type": "BertProcessing", "sep": ["a", 0], "cls": ["b", 1]}),
    ];
    let decoders = [
        json!({"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
        json!({"type": "Strip", "content": " ", "start": 1, "stop": 1}),
        json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true}),
        json!({"type": "WordPiece", "prefix": "##", "cleanup": true}),
        json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true}),
        json!({"type": "CTC", "pad_token": "a", "word_delimiter_token": "|", "cleanup": true}),
        json!({"type": "BPEDecoder", "suffix": "</w>"}),
    ];
    let models = [
        json!({"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "<unk>": 3, "<0x61>": 4}, "merges": ["a b"], "unk_token": "<unk>",
            "byte_fallback": true, "fuse_unk": true, "ignore_merges": false, "continuing_subword_prefix": null, "end_of_word_suffix": null}),
        json!({"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["a", -1.0], ["ab", -0.5], ["▁", -2.0]], "byte_fallback": false}),
        json!({"type": "WordPiece", "vocab": {"a": 0, "##b": 1, "[UNK]": 2}, "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100}),
        json!({"type": "WordLevel", "vocab": {"a": 0, "<unk>": 1}, "unk_token": "<unk>"}),
    ];
    let added = [
        json!({"id": 3, "content": "<s>", "single_word": false, "lstrip": true, "rstrip": true, "normalized": false, "special": true}),
        json!({"id": 9, "content": "a", "single_word": true, "lstrip": false, "rstrip": false, "normalized": true, "special": false}),
        json!({"id": 4_294_967_295_u32, "content": "", "single_word": false, "lstrip": false, "rstrip": false, "normalized": true, "special": true}),
    ];
    // The library's panics are contained, and many here: their messages are of no use.
    std::panic::set_hook(Box::new(|info| {
        let place = info.location().map_or("", |location| location.file());
        if !place.contains("/registry/") {
            eprintln!("{info}");
        }
    }));
    run("tokenizer", |random| {
        let tokens: Vec<Value> = (0..below(random, 4)).map(|_| part(random, &added)).collect();
        let file = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": tokens,
            "normalizer": sequence(random, "normalizers", &normalizers), "pre_tokenizer": sequence(random, "pretokenizers", &pre),
            "post_processor": sequence(random, "processors", &post), "decoder": sequence(random, "decoders", &decoders),
            "model": part(random, &models),
        });
        let text = file.to_string();
        let source = Source::embedded([("tokenizer.json".to_owned(), text.clone().into_bytes().into())]);
        if let Ok(Some(tokenizer)) = Tokenizer::read(&source) {
            for words in [
                "",
                "ab a\u{301}b <s>",
                "日本 \u{10FFFF}\u{0}",
                &"a".repeat(1 + below(random, 3_000)),
                &"ab ".repeat(300),
            ] {
                if let Ok(ids) =
                    tokenizer.encode(words, [SpecialTokens::Add, SpecialTokens::Omit][below(random, 2)])
                {
                    let _ = tokenizer.decode(&ids);
                }
            }
            let mut stream = tokenizer.stream();
            for id in [0, 1, 2, 3, 9, u32::MAX] {
                let _ = stream.push(id);
            }
            let _ = stream.finish();
        }
        text
    });
}
