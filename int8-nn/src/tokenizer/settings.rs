//! What a checkpoint says about its tokenizer beside `tokenizer.json`: the class in transformers, special and added tokens, in
//! `tokenizer_config.json`, `special_tokens_map.json` and `added_tokens.json`.

use std::collections::BTreeMap;

use serde_json::Value;
use tokenizers::AddedToken;

use crate::Error;
use crate::checkpoint::Source;

/// The settings of a tokenizer.
#[derive(Debug)]
pub(crate) struct Settings {
    /// `tokenizer_config.json`, or null.
    pub(super) config: Value,
    /// The class of transformers that reads the tokenizer, without `Fast`; empty for the general one.
    pub(super) class: String,
    /// Special tokens by their names, such as `bos_token`.
    special: Vec<(String, AddedToken)>,
    /// Added tokens by their ids.
    added: BTreeMap<u64, AddedToken>,
    /// Further special tokens.
    further: Vec<AddedToken>,
}

const CONFIG: &str = "tokenizer_config.json";
const SPECIAL: &str = "special_tokens_map.json";
const ADDED: &str = "added_tokens.json";

/// Special tokens that transformers' classes name when no file does.
const CLASS_TOKENS: [(&str, &[(&str, &str)]); 14] = [
    ("GPT2Tokenizer", END_OF_TEXT),
    ("GPTNeoXTokenizer", END_OF_TEXT),
    (
        "Qwen2Tokenizer",
        &[("eos_token", "<|endoftext|>"), ("unk_token", "<|endoftext|>"), ("pad_token", "<|endoftext|>")],
    ),
    ("LlamaTokenizer", &[("bos_token", "<s>"), ("eos_token", "</s>"), ("unk_token", "<unk>")]),
    (
        "GemmaTokenizer",
        &[
            ("bos_token", "<bos>"),
            ("eos_token", "<eos>"),
            ("unk_token", "<unk>"),
            ("pad_token", "<pad>"),
            ("mask_token", "<mask>"),
        ],
    ),
    ("T5Tokenizer", &[("eos_token", "</s>"), ("unk_token", "<unk>"), ("pad_token", "<pad>")]),
    ("BertTokenizer", BERT),
    ("DistilBertTokenizer", BERT),
    ("RobertaTokenizer", ROBERTA),
    ("XLMRobertaTokenizer", ROBERTA),
    ("CamembertTokenizer", ROBERTA),
    (
        "AlbertTokenizer",
        &[
            ("bos_token", "[CLS]"),
            ("eos_token", "[SEP]"),
            ("unk_token", "<unk>"),
            ("sep_token", "[SEP]"),
            ("pad_token", "<pad>"),
            ("cls_token", "[CLS]"),
            ("mask_token", "[MASK]"),
        ],
    ),
    (
        "DebertaV2Tokenizer",
        &[
            ("bos_token", "[CLS]"),
            ("eos_token", "[SEP]"),
            ("unk_token", "[UNK]"),
            ("sep_token", "[SEP]"),
            ("pad_token", "[PAD]"),
            ("cls_token", "[CLS]"),
            ("mask_token", "[MASK]"),
        ],
    ),
    (
        "MPNetTokenizer",
        &[
            ("bos_token", "<s>"),
            ("eos_token", "</s>"),
            ("unk_token", "[UNK]"),
            ("sep_token", "</s>"),
            ("pad_token", "<pad>"),
            ("cls_token", "<s>"),
            ("mask_token", "<mask>"),
        ],
    ),
];

const END_OF_TEXT: &[(&str, &str)] =
    &[("bos_token", "<|endoftext|>"), ("eos_token", "<|endoftext|>"), ("unk_token", "<|endoftext|>")];
const BERT: &[(&str, &str)] = &[
    ("unk_token", "[UNK]"),
    ("sep_token", "[SEP]"),
    ("pad_token", "[PAD]"),
    ("cls_token", "[CLS]"),
    ("mask_token", "[MASK]"),
];
const ROBERTA: &[(&str, &str)] = &[
    ("bos_token", "<s>"),
    ("eos_token", "</s>"),
    ("unk_token", "<unk>"),
    ("sep_token", "</s>"),
    ("pad_token", "<pad>"),
    ("cls_token", "<s>"),
    ("mask_token", "<mask>"),
];

/// The class by `model_type`; for the others the general one.
const CLASSES: [(&str, &str); 25] = [
    ("gpt2", "GPT2Tokenizer"),
    ("gptj", "GPT2Tokenizer"),
    ("gpt_neo", "GPT2Tokenizer"),
    ("opt", "GPT2Tokenizer"),
    ("phi", "GPT2Tokenizer"),
    ("starcoder2", "GPT2Tokenizer"),
    ("gpt_neox", "GPTNeoXTokenizer"),
    ("mpt", "GPTNeoXTokenizer"),
    ("olmoe", "GPTNeoXTokenizer"),
    ("qwen2", "Qwen2Tokenizer"),
    ("qwen2_moe", "Qwen2Tokenizer"),
    ("qwen3", "Qwen2Tokenizer"),
    ("qwen3_moe", "Qwen2Tokenizer"),
    ("gemma", "GemmaTokenizer"),
    ("t5", "T5Tokenizer"),
    ("mt5", "T5Tokenizer"),
    ("bert", "BertTokenizer"),
    ("distilbert", "BertTokenizer"),
    ("roberta", "RobertaTokenizer"),
    ("mpnet", "MPNetTokenizer"),
    ("xlm-roberta", "XLMRobertaTokenizer"),
    ("nomic_bert", "BertTokenizer"),
    ("electra", "BertTokenizer"),
    ("albert", "AlbertTokenizer"),
    ("deberta-v2", "DebertaV2Tokenizer"),
];

/// Classes that are another one under a second name.
const SECOND_NAMES: [(&str, &str); 1] = [("ElectraTokenizer", "BertTokenizer")];

/// Types whose files name a class that transformers overrules.
const GENERAL: [&str; 5] = ["gpt_bigcode", "stablelm", "olmo2", "mistral", "phi3"];

impl Settings {
    /// Reads the files, as far as there are any.
    ///
    /// # Errors
    /// When one is no JSON.
    pub(crate) fn read(source: &Source) -> Result<Self, Error> {
        let json = |name: &str| -> Result<Value, Error> {
            Ok(if source.contains(name) { source.read_json(name)? } else { Value::Null })
        };
        let config = json(CONFIG)?;
        let class = class(&config, &json("config.json")?);
        let mut named: Vec<(String, Value)> = match config.as_object() {
            Some(entries) => {
                let tokens = entries.iter().filter(|(name, _)| name.ends_with("_token"));
                tokens.map(|(name, value)| (name.clone(), value.clone())).collect()
            }
            None => Vec::new(),
        };
        let mut further: Vec<AddedToken> = Vec::new();
        let mut more = |list: Option<&Value>| {
            let list = list.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
            further.extend(list.iter().filter_map(|token| self::token(token, true)));
        };
        more(config.get("additional_special_tokens"));
        more(config.get("extra_special_tokens"));
        let mut added = BTreeMap::new();
        match config.get("added_tokens_decoder").and_then(Value::as_object) {
            Some(entries) => {
                for (id, value) in entries {
                    if let (Ok(id), Some(token)) = (id.parse(), token(value, false)) {
                        added.insert(id, token);
                    }
                }
            }
            // The two files count only without that key.
            None => {
                if let Some(entries) = json(SPECIAL)?.as_object() {
                    for (name, value) in entries {
                        match name.ends_with("_token") {
                            true => set(&mut named, name, value.clone()),
                            false => more(Some(value)),
                        }
                    }
                }
                if let Some(entries) = json(ADDED)?.as_object() {
                    for (content, id) in entries {
                        let is_special = named.iter().any(|(_, value)| content_of(value) == Some(content))
                            || further.iter().any(|token| token.content == *content);
                        if let Some(id) = id.as_u64() {
                            added.insert(id, AddedToken::from(content.clone(), is_special));
                        }
                    }
                }
            }
        }
        let defaults =
            CLASS_TOKENS.iter().find(|(name, _)| *name == class).map_or(&[][..], |(_, tokens)| tokens);
        for (name, content) in defaults {
            // A null is no token, whatever the class names.
            if !named.iter().any(|(known, _)| known == name) {
                named.push(((*name).to_owned(), Value::String((*content).to_owned())));
            }
        }
        let special = named.iter().filter_map(|(name, value)| Some((name.clone(), token(value, true)?)));
        Ok(Self { special: special.collect(), class, added, further, config })
    }

    /// The content of a special token by its name.
    pub(super) fn special(&self, name: &str) -> Option<&str> {
        self.special.iter().find(|(known, _)| known == name).map(|(_, token)| &*token.content)
    }

    /// Names and contents of the special tokens, for a chat template.
    pub(crate) fn special_tokens(self) -> Vec<(String, String)> {
        self.special.into_iter().map(|(name, token)| (name, token.content)).collect()
    }

    /// The tokens that the tokenizer is to have besides its own: those with ids in the order of these, then special ones. An id
    /// that is new is the next one, whatever the file says.
    pub(super) fn tokens(&self) -> impl Iterator<Item = AddedToken> {
        let special = self.special.iter().map(|(_, token)| token).chain(&self.further);
        self.added.values().chain(special).cloned()
    }

    /// A flag of `tokenizer_config.json`.
    pub(super) fn flag(&self, name: &str, default: bool) -> bool {
        self.config.get(name).and_then(Value::as_bool).unwrap_or(default)
    }
}

/// The class that transformers chooses, without `Fast`; empty for the general one.
fn class(config: &Value, model: &Value) -> String {
    let text = |json: &Value, key: &str| json.get(key).and_then(Value::as_str).map(str::to_owned);
    let model_type = text(model, "model_type").unwrap_or_default();
    if GENERAL.contains(&&*model_type) {
        return String::new();
    }
    let family = if model_type.starts_with("gemma") { "gemma" } else { &*model_type };
    let registered = CLASSES.iter().find(|(name, _)| *name == family).map(|(_, class)| *class);
    let declared = text(config, "tokenizer_class").or_else(|| text(model, "tokenizer_class"));
    let declared = declared.map(|class| class.trim_end_matches("Fast").to_owned());
    match (declared, registered) {
        (Some(_), Some(registered)) if model_type == "qwen2" => registered.to_owned(),
        (Some(class), _) if ["TokenizersBackend", "PreTrainedTokenizer"].contains(&&*class) => String::new(),
        (Some(class), _) => match SECOND_NAMES.iter().find(|(second, _)| *second == class) {
            Some((_, first)) => (*first).to_owned(),
            None => class,
        },
        (None, registered) => registered.unwrap_or_default().to_owned(),
    }
}

fn set(named: &mut Vec<(String, Value)>, name: &str, value: Value) {
    match named.iter_mut().find(|(known, _)| known == name) {
        Some((_, known)) => *known = value,
        None => named.push((name.to_owned(), value)),
    }
}

fn content_of(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value.get("content")?.as_str())
}

/// A token: a text, or an object with `content` and properties.
fn token(value: &Value, special: bool) -> Option<AddedToken> {
    let flag = |name: &str| value.get(name).and_then(Value::as_bool);
    let special = special || flag("special").unwrap_or(false);
    let mut token = AddedToken::from(content_of(value)?.to_owned(), special);
    token.single_word = flag("single_word").unwrap_or(false);
    token.lstrip = flag("lstrip").unwrap_or(false);
    token.rstrip = flag("rstrip").unwrap_or(false);
    token.normalized = flag("normalized").unwrap_or(!special);
    (!token.content.is_empty()).then_some(token)
}
