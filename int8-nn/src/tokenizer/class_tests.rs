//! What transformers' classes put in the place of parts of a `tokenizer.json`.

use std::borrow::Cow;

use serde_json::{Value, json};

use super::*;

const PIECES: [&str; 17] =
    ["▁", "a", "b", "e", "A", "B", "é", "É", "\"", "`", ",", "▁a", "▁Ab", "ab", "1", "2", "⁄"];

/// A text with quotes and accents, one with other spaces, and a compatibility character.
const TEXTS: [&str; 3] = ["Ab``e\u{301}  Aé", "  aB,É\t\tba ", "½,a"];

/// The ids of [`TEXTS`], by a `tokenizer.json` whose own normalisation and words are others than the class's.
fn ids(class: &str, special: [&str; 5], flags: Value) -> Vec<Vec<u32>> {
    let pieces = special.iter().map(|piece| json!([piece, 0.0])).chain(
        PIECES.iter().map(|piece| json!([piece, if piece.chars().count() == 1 { -1.25 } else { -1.0 }])),
    );
    let token = |id: &str| json!({"SpecialToken": {"id": id, "type_id": 0}});
    let text = |id: &str| json!({"Sequence": {"id": id, "type_id": 0}});
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "decoder": null,
        "normalizer": {"type": "NFKC"},
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true},
        "post_processor": {
            "type": "TemplateProcessing", "single": [token("[CLS]"), text("A"), token("[SEP]")],
            "pair": [text("A"), text("B")],
            "special_tokens": {
                "[CLS]": {"id": "[CLS]", "ids": [2], "tokens": ["[CLS]"]},
                "[SEP]": {"id": "[SEP]", "ids": [3], "tokens": ["[SEP]"]},
            },
        },
        "model": {"type": "Unigram", "unk_id": 1, "vocab": pieces.collect::<Vec<_>>(), "byte_fallback": false},
    });
    let mut config = flags;
    config["tokenizer_class"] = class.into();
    let files =
        [("tokenizer.json", tokenizer), ("tokenizer_config.json", config), ("config.json", json!({}))];
    let files = files.map(|(name, json)| (name.to_owned(), Cow::Owned(json.to_string().into_bytes())));
    let tokenizer = Tokenizer::read(&Source::embedded(files)).expect("files").expect("a tokenizer");
    TEXTS.map(|text| tokenizer.encode(text, SpecialTokens::Add).expect("ids")).to_vec()
}

/// The ids are those of transformers 5.24 with the same files.
#[test]
fn normalisation_of_albert_and_deberta_is_that_of_their_classes() {
    let albert = |flags| ids("AlbertTokenizer", ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"], flags);
    let half = vec![2, 5, 19, 21, 20, 15, 6, 3];
    let lower = vec![2, 5, 18, 15, 8, 5, 7, 6, 3];
    assert_eq!(albert(json!({})), [vec![2, 5, 18, 13, 8, 16, 8, 3], lower, half.clone()]);
    assert_eq!(
        albert(json!({"do_lower_case": false})),
        [vec![2, 17, 13, 8, 5, 9, 8, 3], vec![2, 16, 10, 15, 1, 5, 7, 6, 3], half]
    );
    assert_eq!(
        albert(json!({"keep_accents": true})),
        [vec![2, 5, 18, 13, 8, 1, 16, 11, 3], vec![2, 5, 18, 15, 11, 5, 7, 6, 3], vec![2, 5, 1, 15, 6, 3]]
    );
    let deberta =
        |flags| ids("DebertaV2TokenizerFast", ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], flags);
    assert_eq!(
        deberta(json!({})),
        [vec![2, 17, 14, 14, 11, 5, 9, 11, 3], vec![2, 16, 10, 15, 12, 5, 7, 6, 3], vec![2, 5, 1, 15, 6, 3]]
    );
    assert_eq!(
        deberta(json!({"do_lower_case": true})),
        [vec![2, 5, 18, 14, 14, 11, 16, 11, 3], vec![2, 5, 18, 15, 11, 5, 7, 6, 3], vec![2, 5, 1, 15, 6, 3]]
    );
    assert_eq!(
        deberta(json!({"split_by_punct": true})),
        [
            vec![2, 17, 5, 14, 5, 14, 5, 11, 5, 9, 11, 3],
            vec![2, 16, 10, 5, 15, 5, 12, 5, 7, 6, 3],
            vec![2, 5, 1, 5, 15, 16, 3],
        ]
    );
}
