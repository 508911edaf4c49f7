//! Tokenizers of checkpoints without `tokenizer.json`, as transformers makes them from the files of its slow tokenizers:
//! `vocab.json` and `merges.txt`, `vocab.txt`, `tokenizer.model`, `spiece.model`, `sentencepiece.bpe.model`. They are written
//! as the `tokenizer.json` that they stand for.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde_json::{Value, json};

use super::sentencepiece::{Kind, Model};
use super::settings::Settings;
use crate::Error;
use crate::checkpoint::Source;

/// The `tokenizer.json` of a tokenizer of this class, and the template around a text, whose tokens may be added ones; `None`
/// when the checkpoint has no files of one.
///
/// # Errors
/// When a file cannot be read, or belongs to a class that is not implemented.
pub(super) fn tokenizer_json(
    source: &Source,
    settings: &Settings,
) -> Result<Option<(Value, Template)>, Error> {
    const MODELS: [&str; 3] = ["tokenizer.model", "spiece.model", "sentencepiece.bpe.model"];
    let class = &*settings.class;
    let model = MODELS.into_iter().find(|name| source.contains(name));
    let held = |names: &[&str]| names.iter().all(|name| source.contains(name));
    let other = |file: &str| {
        Error::Tokenizer(format!(
            "{}: a tokenizer of class {class:?} is not made from this file; save it as tokenizer.json with transformers \
             (AutoTokenizer.from_pretrained(…).save_pretrained(…))",
            source.label(file)
        ))
    };
    let general = Template::of_flags(settings);
    Ok(Some(match class {
        "BertTokenizer" | "DistilBertTokenizer" | "MPNetTokenizer" if held(&["vocab.txt"]) => {
            (word_piece(source, settings)?, Template::around(settings, ["cls_token", "sep_token"]))
        }
        "GPT2Tokenizer" | "GPTNeoXTokenizer" | "Qwen2Tokenizer" | "RobertaTokenizer"
            if held(&["vocab.json", "merges.txt"]) =>
        {
            let template = match class {
                "RobertaTokenizer" => Template::around(settings, ["cls_token", "sep_token"]),
                _ => general,
            };
            (byte_level(source, settings)?, template)
        }
        _ => match model {
            None if held(&["vocab.json", "merges.txt"]) => return Err(other("vocab.json")),
            None if held(&["vocab.txt"]) => return Err(other("vocab.txt")),
            None => return Ok(None),
            Some(file) => {
                let failed = |problem: String| Error::Tokenizer(format!("{} {problem}", source.label(file)));
                let model = Model::read(&source.bytes(file)?).map_err(failed)?;
                match class {
                    "LlamaTokenizer" => (llama(&model, settings).map_err(failed)?, general),
                    "GemmaTokenizer" => (gemma(&model, settings).map_err(failed)?, general),
                    "T5Tokenizer" => (t5(&model), Template::after(settings, "eos_token")),
                    "XLMRobertaTokenizer" | "CamembertTokenizer" => {
                        (roberta(&model, settings), Template::around(settings, ["bos_token", "eos_token"]))
                    }
                    "" => (general_model(&model, settings).map_err(failed)?, general),
                    _ => return Err(other(file)),
                }
            }
        },
    }))
}

/// The tokens before and after a text.
#[derive(Debug, Default)]
pub(super) struct Template {
    pub(super) before: Option<String>,
    pub(super) after: Option<String>,
}

impl Template {
    /// `add_bos_token` and `add_eos_token`.
    fn of_flags(settings: &Settings) -> Self {
        let token = |flag: &str, name: &str| {
            settings.special(name).filter(|_| settings.flag(flag, false)).map(str::to_owned)
        };
        Self { before: token("add_bos_token", "bos_token"), after: token("add_eos_token", "eos_token") }
    }

    fn around(settings: &Settings, [before, after]: [&str; 2]) -> Self {
        let token = |name: &str| settings.special(name).map(str::to_owned);
        Self { before: token(before), after: token(after) }
    }

    fn after(settings: &Settings, name: &str) -> Self {
        Self { before: None, after: settings.special(name).map(str::to_owned) }
    }
}

/// A `tokenizer.json` of these parts.
fn whole(model: Value, normalizer: Value, pre_tokenizer: Value, decoder: Value) -> Value {
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "post_processor": null,
        "model": model, "normalizer": normalizer, "pre_tokenizer": pre_tokenizer, "decoder": decoder,
    })
}

/// Byte-level BPE: GPT-2 and its relatives.
fn byte_level(source: &Source, settings: &Settings) -> Result<Value, Error> {
    let vocab = source.read_json("vocab.json")?;
    let merges = merges(source)?;
    let model = bpe(vocab, &merges, Value::Null, false, false);
    let prefix = settings.flag("add_prefix_space", false);
    let bytes = |regex: bool| json!({"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": true, "use_regex": regex});
    let decoder =
        json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true});
    if settings.class == "Qwen2Tokenizer" {
        const WORDS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
        let split =
            json!({"type": "Split", "pattern": {"Regex": WORDS}, "behavior": "Isolated", "invert": false});
        let pre = json!({"type": "Sequence", "pretokenizers": [split, bytes(false)]});
        return Ok(whole(model, json!({"type": "NFC"}), pre, decoder));
    }
    Ok(whole(model, Value::Null, bytes(true), decoder))
}

/// The pairs of `merges.txt`, one a line.
fn merges(source: &Source) -> Result<Vec<[String; 2]>, Error> {
    const FILE: &str = "merges.txt";
    let text = source.read_text(FILE)?;
    let lines =
        text.lines().enumerate().filter(|(_, line)| !line.starts_with("#version") && !line.is_empty());
    lines
        .map(|(number, line)| match line.split(' ').collect::<Vec<_>>()[..] {
            [left, right] => Ok([left.to_owned(), right.to_owned()]),
            _ => Err(Error::Tokenizer(format!(
                "{}: line {}: expected two tokens with a space between them",
                source.label(FILE),
                number + 1
            ))),
        })
        .collect()
}

/// WordPiece: BERT and its relatives. The id of a token is the number of its line.
fn word_piece(source: &Source, settings: &Settings) -> Result<Value, Error> {
    let text = source.read_text("vocab.txt")?;
    let vocab: serde_json::Map<String, Value> =
        text.lines().enumerate().map(|(id, token)| (token.trim_end().to_owned(), id.into())).collect();
    let model = json!({
        "type": "WordPiece", "unk_token": settings.special("unk_token").unwrap_or("[UNK]"),
        "continuing_subword_prefix": "##", "max_input_chars_per_word": 100, "vocab": vocab,
    });
    let decoder = json!({"type": "WordPiece", "prefix": "##", "cleanup": true});
    Ok(whole(model, bert_normalizer(settings), json!({"type": "BertPreTokenizer"}), decoder))
}

/// The normalisation of BERT's tokenizers by their settings.
pub(super) fn bert_normalizer(settings: &Settings) -> Value {
    json!({
        "type": "BertNormalizer", "clean_text": true,
        "handle_chinese_chars": settings.flag("tokenize_chinese_chars", true),
        "strip_accents": settings.config.get("strip_accents").cloned().unwrap_or(Value::Null),
        "lowercase": settings.flag("do_lower_case", true),
    })
}

/// Normalisation and pre-tokenisation of ALBERT's tokenizers by their settings; `own`: the normalisation in the file, whose table of
/// characters is kept.
pub(super) fn albert_parts(settings: &Settings, own: &Value) -> (Value, Value) {
    let quotes = |pattern: &str| json!({"type": "Replace", "pattern": {"String": pattern}, "content": "\""});
    let mut all = vec![quotes("``"), quotes("''")];
    if !settings.flag("keep_accents", false) {
        all.extend([json!({"type": "NFKD"}), json!({"type": "StripAccents"})]);
    }
    if settings.flag("do_lower_case", true) {
        all.push(json!({"type": "Lowercase"}));
    }
    let parts =
        own.get("normalizers").and_then(Value::as_array).map_or(std::slice::from_ref(own), Vec::as_slice);
    all.extend(parts.iter().find(|part| part["type"] == "Precompiled").cloned());
    let scheme = if settings.flag("add_prefix_space", true) { "always" } else { "never" };
    (sequence_of_normalizers(&all), marked_words(vec![json!({"type": "WhitespaceSplit"})], scheme))
}

/// Normalisation and pre-tokenisation of the tokenizers of DeBERTa v2 and v3 by their settings.
pub(super) fn deberta_parts(settings: &Settings) -> (Value, Value) {
    let mut all = Vec::new();
    if settings.flag("do_lower_case", false) {
        all.push(json!({"type": "Lowercase"}));
    }
    all.extend([
        json!({"type": "Replace", "pattern": {"Regex": r"\s{2,}|[\n\r\t]"}, "content": " "}),
        json!({"type": "NFC"}),
        json!({"type": "Strip", "strip_left": false, "strip_right": true}),
    ]);
    let split = settings.flag("split_by_punct", false);
    let first = split.then(|| json!({"type": "Punctuation", "behavior": "Isolated"}));
    let scheme = if settings.flag("add_prefix_space", true) { "always" } else { "first" };
    (sequence_of_normalizers(&all), marked_words(first.into_iter().collect(), scheme))
}

fn sequence_of_normalizers(all: &[Value]) -> Value {
    json!({"type": "Sequence", "normalizers": all})
}

/// `first`, then words that begin with `▁`.
fn marked_words(mut first: Vec<Value>, scheme: &str) -> Value {
    first.push(json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": true}));
    json!({"type": "Sequence", "pretokenizers": first})
}

fn bpe(vocab: Value, merges: &[[String; 2]], unk: Value, fallback: bool, whole_first: bool) -> Value {
    // Unknown tokens in a row are one where bytes stand for them.
    let sentencepiece = fallback || !unk.is_null();
    json!({
        "type": "BPE", "dropout": null, "unk_token": unk, "continuing_subword_prefix": if sentencepiece { Value::Null } else { "".into() },
        "end_of_word_suffix": if sentencepiece { Value::Null } else { "".into() }, "fuse_unk": sentencepiece, "byte_fallback": fallback,
        "ignore_merges": whole_first, "vocab": vocab, "merges": merges,
    })
}

/// Where a space is put before a text: `first` before the whole text, `always` before each part between special tokens.
fn prefix_scheme(settings: &Settings) -> &'static str {
    match (settings.flag("add_prefix_space", true), settings.flag("legacy", false)) {
        (false, _) => "never",
        (true, true) => "always",
        (true, false) => "first",
    }
}

/// Pre-tokenizer and decoder of LLaMA's tokenizers.
pub(super) fn llama_parts(settings: &Settings) -> (Value, Value) {
    let scheme = prefix_scheme(settings);
    let pre = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": false});
    let mut decoders = spaces_and_bytes();
    if scheme != "never" {
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    (pre, json!({"type": "Sequence", "decoders": decoders}))
}

fn spaces_and_bytes() -> Vec<Value> {
    let spaces = json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "});
    vec![spaces, json!({"type": "ByteFallback"}), json!({"type": "Fuse"})]
}

fn llama(model: &Model, settings: &Settings) -> Result<Value, String> {
    let (pre, decoder) = llama_parts(settings);
    let vocab = ids(model);
    let merges = merges_by_id(&vocab)?;
    Ok(whole(bpe(json!(vocab), &merges, Value::Null, true, false), Value::Null, pre, decoder))
}

fn gemma(model: &Model, settings: &Settings) -> Result<Value, String> {
    let vocab = ids(model);
    let merges = merges_by_id(&vocab)?;
    let unk = settings.special("unk_token").unwrap_or("<unk>").into();
    let split = json!({"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": false});
    let normalizer = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
    let decoder = json!({"type": "Sequence", "decoders": spaces_and_bytes()});
    Ok(whole(bpe(json!(vocab), &merges, unk, true, false), normalizer, split, decoder))
}

/// The id of each piece; of equal pieces the last.
fn ids(model: &Model) -> BTreeMap<&str, usize> {
    model.pieces.iter().enumerate().map(|(id, piece)| (&*piece.text, id)).collect()
}

/// All pairs of pieces that form a piece, in the order of that piece's id, then of the lengths of both in characters, then of
/// their ids.
fn merges_by_id(vocab: &BTreeMap<&str, usize>) -> Result<Vec<[String; 2]>, String> {
    let known: HashSet<&str> = vocab.keys().copied().collect();
    let mut merges = Vec::new();
    for (piece, id) in vocab {
        for (left, right) in pairs(piece, |part| known.contains(part)) {
            let key = (*id, left.chars().count(), right.chars().count(), vocab[left], vocab[right]);
            merges.push((key, left, right));
            check_merges(merges.len())?;
        }
    }
    merges.sort_unstable_by_key(|(key, ..)| *key);
    Ok(merges.into_iter().map(|(_, left, right)| [left.to_owned(), right.to_owned()]).collect())
}

/// Pairs of pieces that form a piece: 580,000 in Gemma's 256,000 pieces. One takes some 300 bytes on its way into the tokenizer.
const MOST_MERGES: usize = 1_500_000;

fn check_merges(count: usize) -> Result<(), String> {
    match count > MOST_MERGES {
        true => Err(format!("has more than {MOST_MERGES} ways to make a piece of two others")),
        false => Ok(()),
    }
}

/// The ways to cut a piece in two parts that are `known`.
fn pairs(piece: &str, known: impl Fn(&str) -> bool) -> impl Iterator<Item = (&str, &str)> {
    let cuts = piece.char_indices().skip(1).map(|(at, _)| piece.split_at(at));
    cuts.filter(move |(left, right)| known(left) && known(right))
}

fn unigram(vocab: &[(String, f64)], unk: usize, byte_fallback: bool) -> Value {
    json!({"type": "Unigram", "unk_id": unk, "vocab": vocab, "byte_fallback": byte_fallback})
}

/// Pieces with their scores.
fn scored(model: &Model) -> impl Iterator<Item = (String, f64)> {
    model.pieces.iter().map(|piece| (piece.text.clone(), f64::from(piece.score)))
}

/// `Precompiled`, of a model that maps characters.
fn charsmap(model: &Model) -> Value {
    match &*model.charsmap {
        [] => Value::Null,
        map => json!({"type": "Precompiled", "precompiled_charsmap": base64(map)}),
    }
}

fn words(scheme: &str) -> (Value, Value) {
    let spaces = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": true});
    let pre = json!({"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, spaces]});
    (pre, spaces)
}

/// T5: 100 sentinels behind the pieces, the last one first.
fn t5(model: &Model) -> Value {
    const SENTINELS: usize = 100;
    let sentinels = (0..SENTINELS).rev().map(|number| (format!("<extra_id_{number}>"), 0.0));
    let vocab: Vec<_> = scored(model).chain(sentinels).collect();
    let (pre, decoder) = words("always");
    let mut json = whole(unigram(&vocab, 2, false), charsmap(model), pre, decoder);
    let first = model.pieces.len();
    json["added_tokens"] = (first..vocab.len())
        .map(|id| json!({"id": id, "content": vocab[id].0, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true}))
        .collect();
    json
}

/// XLM-RoBERTa and CamemBERT: fairseq's special tokens before the pieces, and the mask behind them.
fn roberta(model: &Model, settings: &Settings) -> Value {
    let special = |name: &str, default: &str| settings.special(name).unwrap_or(default).to_owned();
    let (pad, unk) = (special("pad_token", "<pad>"), special("unk_token", "<unk>"));
    let mut vocab = match &*settings.class {
        "CamembertTokenizer" => vec![
            ("<s>NOTUSED".to_owned(), 0.0),
            (pad, 0.0),
            ("</s>NOTUSED".to_owned(), 0.0),
            (unk, 0.0),
            ("<unk>NOTUSED".to_owned(), -100.0),
        ],
        _ => vec![
            (special("bos_token", "<s>"), 0.0),
            (pad, 0.0),
            (special("eos_token", "</s>"), 0.0),
            (unk, 0.0),
        ],
    };
    // fairseq's dictionary has the model's first pieces, its special tokens, at other places.
    let skipped = if settings.class == "CamembertTokenizer" { 1 } else { 3 };
    vocab.extend(scored(model).skip(skipped));
    vocab.push((special("mask_token", "<mask>"), 0.0));
    let (pre, decoder) = words(if settings.flag("add_prefix_space", true) { "always" } else { "never" });
    whole(unigram(&vocab, 3, false), charsmap(model), pre, decoder)
}

/// The general class: the model's own settings.
fn general_model(model: &Model, settings: &Settings) -> Result<Value, String> {
    let of = |kind: Kind| model.pieces.iter().filter(move |piece| piece.kind == kind);
    let own: Vec<&str> = of(Kind::UserDefined).map(|piece| &*piece.text).collect();
    let network = if model.is_unigram {
        let vocab: Vec<_> = scored(model).collect();
        unigram(&vocab, model.unk_id, model.byte_fallback)
    } else {
        let vocab = ids(model);
        let scores: HashMap<&str, f32> = of(Kind::Normal).map(|piece| (&*piece.text, piece.score)).collect();
        let mut merges = Vec::new();
        for (piece, score) in &scores {
            for (left, right) in pairs(piece, |part| scores.contains_key(part)) {
                merges.push((-score, vocab[piece], left, right));
                check_merges(merges.len())?;
            }
        }
        merges.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then((a.1, a.2, a.3).cmp(&(b.1, b.2, b.3))));
        let merges: Vec<_> =
            merges.into_iter().map(|(_, _, left, right)| [left.to_owned(), right.to_owned()]).collect();
        bpe(json!(vocab), &merges, model.unk_piece.clone().into(), model.byte_fallback, !own.is_empty())
    };
    // Without the key, as before `legacy` existed.
    let legacy = settings.flag("legacy", true);
    let mut normalizers = Vec::new();
    let replace =
        |pattern: Value, content: &str| json!({"type": "Replace", "pattern": pattern, "content": content});
    if !model.charsmap.is_empty() {
        normalizers.push(charsmap(model));
    }
    if model.removes_extra_spaces {
        normalizers.push(replace(json!({"Regex": r"\A +| +\z"}), ""));
        normalizers.push(replace(json!({"Regex": " {2,}"}), " "));
    }
    if model.escapes_spaces {
        normalizers.push(replace(json!({"String": " "}), "▁"));
    }
    if model.dummy_prefix && legacy {
        normalizers.push(replace(json!({"Regex": r"\A▁"}), "▁▁"));
    }
    let mut pre = Vec::new();
    if model.dummy_prefix {
        let scheme = if legacy { "always" } else { "first" };
        pre.push(json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": false}));
    }
    if !own.is_empty() {
        let mut own = own;
        own.sort_by_key(|piece| std::cmp::Reverse(piece.chars().count()));
        let escaped: Vec<_> = own.iter().map(|piece| fancy_regex::escape(piece)).collect();
        let pattern = json!({"Regex": escaped.join("|")});
        pre.push(json!({"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": false}));
    }
    let mut decoders = vec![json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "})];
    if model.byte_fallback {
        decoders.push(json!({"type": "ByteFallback"}));
    }
    if model.byte_fallback || model.dummy_prefix {
        decoders.push(json!({"type": "Fuse"}));
    }
    if model.dummy_prefix {
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    let pre = if pre.is_empty() { Value::Null } else { json!({"type": "Sequence", "pretokenizers": pre}) };
    let sequence = |key: &str, parts: Vec<Value>| json!({"type": "Sequence", key: parts});
    Ok(whole(network, sequence("normalizers", normalizers), pre, sequence("decoders", decoders)))
}

/// RFC 4648, with padding.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let bits =
            group.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - group.len()));
        for place in 0..4 {
            let digit = (bits >> (18 - 6 * place)) & 63;
            let index = usize::try_from(digit).unwrap_or_default();
            text.push(if place <= group.len() { char::from(DIGITS[index]) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_of_all_lengths() {
        for (bytes, text) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")]
        {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
        assert_eq!(base64(&[0xFF, 0xFE, 0xFD, 0]), "//79AA==");
    }
}
