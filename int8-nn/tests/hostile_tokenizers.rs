//! `tokenizer.json` written to make the tokenizers library panic, abort or exhaust memory: each is an error, or encodes in time.

use int8_nn::SpecialTokens;
use std::time::{Duration, Instant};

use int8_nn::Tokenizer;
use int8_nn::checkpoint::Source;
use serde_json::{Value, json};

/// A small tokenizer with some keys replaced.
fn file(changes: Value) -> Value {
    let mut file = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": null, "pre_tokenizer": null, "post_processor": null, "decoder": null,
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "<unk>": 3}, "merges": ["a b"], "unk_token": "<unk>"},
    });
    for (key, value) in changes.as_object().expect("changes") {
        file[key] = value.clone();
    }
    file
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let group = |chunk: &[u8]| {
        let mut three = [0_u8; 4];
        three[1..=chunk.len()].copy_from_slice(chunk);
        let bits = usize::try_from(u32::from_be_bytes(three)).expect("32 bits");
        let digit = |place: usize| char::from(DIGITS[bits >> (18 - 6 * place) & 63]);
        (0..4).map(|place| if place <= chunk.len() { digit(place) } else { '=' }).collect::<String>()
    };
    bytes.chunks(3).map(group).collect()
}

/// A character map of these trie cells and replacements.
fn charsmap(length: u32, trie: &[u32], replacements: &[u8]) -> Value {
    let mut bytes = length.to_le_bytes().to_vec();
    bytes.extend(trie.iter().flat_map(|cell| cell.to_le_bytes()));
    bytes.extend(replacements);
    json!({"normalizer": {"type": "Precompiled", "precompiled_charsmap": base64(&bytes)}})
}

fn hostile() -> Vec<(&'static str, Value)> {
    let replace = |from: Value, to: String| json!({"type": "Replace", "pattern": from, "content": to});
    let sequence = |list: Vec<Value>| json!({"type": "Sequence", "normalizers": list});
    let double = || replace(json!({"String": "a"}), "aa".to_owned());
    let regex = |pattern: &str| json!({"pre_tokenizer": {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false}});
    let template = |single: Value, special: Value| json!({"post_processor": {"type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": special}});
    let text = || json!({"Sequence": {"id": "A", "type_id": 0}});
    let special = |name: &str| json!({"SpecialToken": {"id": name, "type_id": 0}});
    let doubled = template(json!([text(), text()]), json!({}))["post_processor"].clone();
    let token = |content: &str, id: u64| json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": true, "special": true});
    let mut nested = double();
    for _ in 0..120 {
        nested = sequence(vec![nested]);
    }
    let ids: Vec<u32> = vec![0; 100_000];
    vec![
        ("16 doublings", json!({"normalizer": sequence(vec![double(); 16])})),
        ("60 doublings", json!({"normalizer": sequence(vec![double(); 60])})),
        ("nested doublings", json!({"normalizer": sequence(vec![sequence(vec![double(); 8]), sequence(vec![double(); 8])])})),
        ("a deep sequence", json!({"normalizer": nested})),
        ("10,000 steps", json!({"normalizer": sequence(vec![json!({"type": "Lowercase"}); 10_000])})),
        ("a long replacement", json!({"normalizer": replace(json!({"String": "a"}), "a".repeat(1 << 20))})),
        ("replacing nothing", json!({"normalizer": sequence(vec![replace(json!({"Regex": ""}), "aa".to_owned()); 20])})),
        ("replacing the empty text", json!({"normalizer": replace(json!({"String": ""}), "aa".to_owned())})),
        ("replacing in the decoder", json!({"decoder": {"type": "Sequence", "decoders": vec![double(); 40]}})),
        ("a long prefix", json!({"normalizer": {"type": "Prepend", "prepend": "a".repeat(1 << 20)}})),
        ("an empty map", charsmap(0, &[], b"")),
        ("a map that is too short", json!({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAA="}})),
        ("a map of no base 64", json!({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "!!"}})),
        ("a map of 4 GB", charsmap(u32::MAX, &[1, 2], b"a\0")),
        ("a map that leads out", charsmap(8, &[u32::MAX, u32::MAX], b"a\0")),
        ("a map that leads far", charsmap(16, &[0x7FFF_FFFF, 0x0040_0000, 1 << 31, 0xFFFF_FE00], b"a\0")),
        ("a map into its end", charsmap(8, &[1 << 8, 1 << 31 | 99], b"a\0")),
        ("a map of long texts", charsmap(8, &[1, 2], &[b'a'; 100_000])),
        ("a map of broken text", charsmap(8, &[1, 2], &[0xFF, 0xFE, 0])),
        ("a template of an unknown token", template(json!([special("[X]"), text()]), json!({}))),
        ("a template of a broken token", template(json!([special("[X]"), text()]), json!({"[X]": {"id": "[X]"}}))),
        ("a token of no ids", template(json!([special("[X]"), text()]), json!({"[X]": {"id": "[X]", "ids": [0, 1], "tokens": []}}))),
        ("a token of many ids", template(json!([special("[X]"), text()]), json!({"[X]": {"id": "[X]", "ids": ids, "tokens": ["a"]}}))),
        ("the text 1,000 times", template(json!(vec![text(); 1_000]), json!({}))),
        ("the text doubled 40 times", json!({"post_processor": {"type": "Sequence", "processors": vec![doubled; 40]}})),
        ("a template of nothing", template(json!([]), json!({}))),
        ("a template of the second text", template(json!([{"Sequence": {"id": "B", "type_id": 0}}]), json!({}))),
        ("BERT without its tokens", json!({"post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 4_000_000_000_u32], "cls": ["", 0]}})),
        ("pieces of 0", json!({"pre_tokenizer": {"type": "FixedLength", "length": 0}})),
        ("a pattern repeated", regex("((((a{1000}){1000}){1000}){1000})")),
        ("a pattern with a look-ahead repeated", regex("(((?=a)a{99}){99}){99}")),
        ("a pattern that backtracks", regex("(?=(a+)+$)b|(a|aa)+c")),
        ("a pattern of brackets", regex(&"(".repeat(10_000))),
        ("a long pattern", regex(&"a|".repeat(500_000))),
        ("a pattern of nothing", regex("")),
        ("a pattern of references", regex(r"(a*)*\1\1\1\1b")),
        ("an empty token", json!({"added_tokens": [token("", 4)]})),
        ("tokens of one name", json!({"added_tokens": [token("x", 4), token("x", 5), token("x", 6)]})),
        ("a token of a large id", json!({"added_tokens": [token("x", 4_294_967_295)]})),
        ("a token of a larger id", json!({"added_tokens": [token("x", u64::MAX)]})),
        ("a token that the normaliser removes", json!({"normalizer": replace(json!({"String": "x"}), String::new()), "added_tokens": [token("x", 4)]})),
        ("a long word", json!({"model": {"type": "WordPiece", "vocab": {"a": 0}, "unk_token": "a", "continuing_subword_prefix": "##", "max_input_chars_per_word": 4_000_000_000_u32}})),
        ("WordPiece without its unknown token", json!({"model": {"type": "WordPiece", "vocab": {"a": 0}, "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100}})),
        ("WordLevel without its unknown token", json!({"model": {"type": "WordLevel", "vocab": {"z": 0}, "unk_token": "[UNK]"}})),
        ("Unigram of nothing", json!({"model": {"type": "Unigram", "unk_id": 0, "vocab": []}})),
        ("Unigram with another unknown token", json!({"model": {"type": "Unigram", "unk_id": 99, "vocab": [["a", -1.0]]}})),
        ("Unigram of an empty piece", json!({"model": {"type": "Unigram", "unk_id": 0, "vocab": [["", -1.0], ["a", -1e308]]}})),
        ("Unigram of large scores", json!({"model": {"type": "Unigram", "unk_id": 0, "vocab": [["a", 1e308], ["aa", 1e308], ["<unk>", -1e308]]}})),
        ("BPE with an unknown merge", json!({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a z"]}})),
        ("BPE with a merge of nothing", json!({"model": {"type": "BPE", "vocab": {"a": 0, "": 1}, "merges": [["", ""]]}})),
        ("BPE without its unknown token", json!({"model": {"type": "BPE", "vocab": {"z": 0}, "merges": [], "unk_token": "<unk>"}})),
        ("BPE with bytes and no byte", json!({"model": {"type": "BPE", "vocab": {"z": 0}, "merges": [], "byte_fallback": true, "unk_token": "<unk>"}})),
        ("BPE with a long prefix", json!({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [], "continuing_subword_prefix": "a".repeat(1 << 20)}})),
        ("BPE with a drop-out", json!({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [], "dropout": 2.0}})),
        ("a padding of 4 billion", json!({"padding": {"strategy": {"Fixed": 4_000_000_000_u32}, "direction": "Right", "pad_to_multiple_of": 0, "pad_id": 0, "pad_type_id": 0, "pad_token": "a"}})),
        ("a truncation of 0", json!({"truncation": {"direction": "Right", "max_length": 0, "strategy": "LongestFirst", "stride": 99}})),
        ("a decoder of bytes", json!({"decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": "a", "start": 4_000_000_000_u32, "stop": 4_000_000_000_u32}]}})),
        ("an unknown step", json!({"normalizer": {"type": "Nothing"}})),
        ("a number", json!(7)),
        ("no model", json!({"model": null})),
    ]
    .into_iter()
    .map(|(name, changes)| (name, if changes.is_object() { file(changes) } else { changes }))
    .collect()
}

/// Peak resident memory of this process, in bytes.
fn peak() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kilobytes| kilobytes << 10)
}

fn source(file: Vec<u8>) -> Source {
    Source::embedded([("tokenizer.json".to_owned(), file.into())])
}

#[test]
fn none_panics_or_exhausts() {
    let texts = [
        "",
        "a",
        "ab ab\u{301} \u{10FFFF}x",
        &"a".repeat(2_000),
        &"ab xy".repeat(500),
        &"aaaa aaaa".repeat(20),
    ];
    let mut wrong = Vec::new();
    for (name, file) in hostile() {
        let begin = Instant::now();
        let mut shown = String::new();
        match Tokenizer::read(&source(file.to_string().into_bytes())) {
            Err(error) => shown = error.to_string(),
            Ok(None) => wrong.push(format!("{name}: not found")),
            Ok(Some(tokenizer)) => {
                for text in texts {
                    match tokenizer.encode(text, SpecialTokens::Add) {
                        Ok(ids) => {
                            let _ = tokenizer.decode(&ids);
                            if ids.len() > 4_096 + 300 * text.len() {
                                wrong.push(format!("{name}: {} ids of {} bytes", ids.len(), text.len()));
                            }
                        }
                        Err(error) => shown = error.to_string(),
                    }
                    let _ = tokenizer.decode(&[0, 1, 2, 3, 99, u32::MAX]);
                }
                let _ = (tokenizer.vocab_size(), tokenizer.token_id("a"));
            }
        }
        let (time, memory) = (begin.elapsed(), peak().unwrap_or(0));
        if std::env::var_os("INT8_SHOW").is_some() {
            println!(
                "{name}: {time:?}, {} MB: {}",
                memory >> 20,
                shown.chars().take(120).collect::<String>()
            );
        }
        if time > Duration::from_secs(10) || memory > 1 << 30 || shown.len() > 2_000 {
            wrong.push(format!("{name}: {time:?}, {memory} bytes, a message of {} bytes", shown.len()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The checks refuse none that is in use: those of the tests, and the steps that models on the hub have.
#[test]
fn honest_files_are_read() {
    let honest = [
        json!({"normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "▁"}]}}),
        json!({"pre_tokenizer": {"type": "Split", "behavior": "Isolated", "invert": false, "pattern": {"Regex":
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"}}}),
        json!({"post_processor": {"type": "TemplateProcessing", "pair": [],
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [3], "tokens": ["<s>"]}}}}),
    ];
    for changes in honest {
        let tokenizer = Tokenizer::read(&source(file(changes).to_string().into_bytes()));
        let tokenizer = tokenizer.expect("honest").expect("a tokenizer");
        assert!(tokenizer.encode("ab", SpecialTokens::Add).expect("ids").contains(&2));
    }
}

/// A field of a protocol-buffer message: number and bytes.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut field = vec![number << 3 | 2];
    let mut length = bytes.len();
    while length > 0x7F {
        field.push(u8::try_from(length & 0x7F).expect("7 bits") | 0x80);
        length >>= 7;
    }
    field.push(u8::try_from(length).expect("7 bits"));
    [&field, bytes].concat()
}

/// A SentencePiece model of these pieces; the first three are special.
fn pieces(texts: impl Iterator<Item = String>, kind: u8) -> Vec<u8> {
    let special = ["<unk>", "<s>", "</s>"].map(str::to_owned);
    let piece = |(place, text): (usize, String)| {
        let score =
            [&[2 << 3 | 5][..], &(-f32::from(u8::try_from(place % 100).expect("small"))).to_le_bytes()]
                .concat();
        let kind = if place < 3 { 3 } else { 1 };
        field(1, &[field(1, text.as_bytes()), score, vec![3 << 3, kind]].concat())
    };
    let pieces: Vec<u8> = special.into_iter().chain(texts).enumerate().flat_map(piece).collect();
    [pieces, field(2, &[3 << 3, kind])].concat()
}

/// Files of tokenizers without `tokenizer.json`: in every class an error, or a tokenizer, in time and memory.
#[test]
fn no_slow_tokenizer_exhausts() {
    let repeated = |counts: std::ops::Range<usize>| counts.map(|count| "a".repeat(count));
    let hostile = [
        ("a piece of a megabyte", pieces(std::iter::once("a".repeat(1 << 20)), 2)),
        ("repetitions", pieces(repeated(1..510), 2)),
        (
            "many repetitions",
            pieces((0..3_000).flat_map(|n| (1..40).map(move |k| "ab".repeat(k) + &n.to_string())), 2),
        ),
        ("prefixes", pieces((0..20_000).map(|n| "a".repeat(500) + &n.to_string()), 2)),
        ("18 MB", pieces((0..40_000).map(|n| "a".repeat(450) + &n.to_string()), 2)),
        ("repetitions as Unigram", pieces(repeated(1..510), 1)),
        ("equal pieces", pieces((0..50_000).map(|_| "a".to_owned()), 2)),
        ("empty pieces", pieces((0..50_000).map(|_| String::new()), 1)),
        ("no further piece", pieces(std::iter::empty(), 1)),
        ("nothing", Vec::new()),
        ("one byte", vec![10]),
        ("a length beyond the end", vec![10, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x7F]),
    ];
    let mut wrong = Vec::new();
    for class in [
        "LlamaTokenizer",
        "GemmaTokenizer",
        "T5Tokenizer",
        "XLMRobertaTokenizer",
        "CamembertTokenizer",
        "TokenizersBackend",
    ] {
        for (name, model) in &hostile {
            let begin = Instant::now();
            let config = json!({"tokenizer_class": class}).to_string().into_bytes();
            let files = [("tokenizer.model", model.clone()), ("tokenizer_config.json", config)];
            let source = Source::embedded(files.map(|(name, bytes)| (name.to_owned(), bytes.into())));
            if let Ok(Some(tokenizer)) = Tokenizer::read(&source) {
                for text in ["", "a", &"a".repeat(2_000), "ab \u{10FFFF}"] {
                    if let Ok(ids) = tokenizer.encode(text, SpecialTokens::Add) {
                        let _ = tokenizer.decode(&ids);
                    }
                }
            }
            let (time, memory) = (begin.elapsed(), peak().unwrap_or(0));
            if time > Duration::from_secs(10) || memory > 1 << 30 {
                wrong.push(format!("{class} {name}: {time:?}, {memory} bytes"));
            }
        }
    }
    for (file, bytes) in [
        ("vocab.txt", "a".repeat(4 << 20).into_bytes()),
        ("vocab.txt", "\n".repeat(1 << 20).into_bytes()),
        ("vocab.txt", vec![0xFF; 100]),
    ] {
        let begin = Instant::now();
        let files = [(file, bytes), ("config.json", json!({"model_type": "bert"}).to_string().into_bytes())];
        let source = Source::embedded(files.map(|(name, bytes)| (name.to_owned(), bytes.into())));
        if let Ok(Some(tokenizer)) = Tokenizer::read(&source) {
            let _ = tokenizer.encode(&"a".repeat(2_000), SpecialTokens::Add);
        }
        let (time, memory) = (begin.elapsed(), peak().unwrap_or(0));
        if time > Duration::from_secs(10) || memory > 1 << 30 {
            wrong.push(format!("{file}: {time:?}, {memory} bytes"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
