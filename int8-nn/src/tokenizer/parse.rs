//! `tokenizer.json` to the library's tokenizer, with its model read in place.
//!
//! The library copies a vocabulary and its merges twice before it reads them: half of the time of loading a tokenizer of 49,152
//! tokens.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::value::RawValue;
use tokenizers::models::bpe::BPE;
use tokenizers::models::unigram::Unigram;
use tokenizers::{AddedToken, ModelWrapper, Tokenizer as Inner};

/// What takes the place of the model until it is read.
const NO_MODEL: &str = r#"{"type":"BPE","vocab":{},"merges":[]}"#;

#[derive(Deserialize)]
struct Type<'a> {
    #[serde(borrow, rename = "type")]
    name: Cow<'a, str>,
}

/// As the library reads it: an id, which it goes by the order for, and a token.
#[derive(Deserialize)]
struct Added {
    #[serde(rename = "id")]
    _id: u32,
    #[serde(flatten)]
    token: AddedToken,
}

/// The tokenizer of a file.
///
/// # Errors
/// The library's, of the file as a whole.
pub(super) fn parse(file: &[u8]) -> Result<Inner, tokenizers::Error> {
    match in_place(file) {
        Some(tokenizer) => Ok(tokenizer),
        None => Inner::from_bytes(file),
    }
}

/// `None` where the library may see it differently, or finds a mistake that it words better.
fn in_place(file: &[u8]) -> Option<Inner> {
    let mut sections: BTreeMap<String, &RawValue> = serde_json::from_slice(file).ok()?;
    let model = sections.remove("model")?.get();
    let model: ModelWrapper = match &*serde_json::from_str::<Type<'_>>(model).ok()?.name {
        "BPE" => serde_json::from_str::<BPE>(model).ok()?.into(),
        "Unigram" => serde_json::from_str::<Unigram>(model).ok()?.into(),
        _ => return None,
    };
    let added: Vec<Added> = match sections.remove("added_tokens") {
        Some(tokens) => serde_json::from_str(tokens.get()).ok()?,
        None => Vec::new(),
    };
    let none: Box<RawValue> = serde_json::from_str(NO_MODEL).ok()?;
    sections.insert("model".to_owned(), &none);
    let mut tokenizer = Inner::from_bytes(serde_json::to_vec(&sections).ok()?).ok()?;
    tokenizer.with_model(model);
    // Tokens of the model keep its ids, others follow: the model comes first.
    tokenizer.add_tokens(added.into_iter().map(|added| added.token)).ok()?;
    Some(tokenizer)
}

#[cfg(test)]
mod tests {
    use super::*;

    const REST: &str = r#""version":"1.0","truncation":null,"padding":null,"normalizer":{"type":"Lowercase"},
        "added_tokens":[{"id":7,"content":"<x>","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true},
            {"id":1,"content":"b","single_word":false,"lstrip":true,"rstrip":false,"normalized":true,"special":false}],
        "pre_tokenizer":{"type":"Metaspace","replacement":"▁","prepend_scheme":"always","split":true},"post_processor":null,
        "decoder":{"type":"Fuse"}"#;

    fn file(model: &str) -> String {
        format!("{{{REST},\"model\":{model}}}")
    }

    fn same(model: &str) {
        let file = file(model);
        let expected = Inner::from_bytes(&file).expect("the library reads it");
        let found = in_place(file.as_bytes()).expect("read in place");
        let json = |tokenizer: &Inner| tokenizer.to_string(false).expect("JSON");
        assert_eq!(json(&found), json(&expected));
        for text in ["AB b<x>ab", "", "ü a<x>"] {
            let ids =
                |tokenizer: &Inner| tokenizer.encode(text, true).map(|encoding| encoding.get_ids().to_vec());
            assert_eq!(ids(&found).expect("ids"), ids(&expected).expect("ids"), "{text}");
        }
    }

    #[test]
    fn models_are_read_as_by_the_library() {
        same(
            r#"{"type":"BPE","unk_token":"a","fuse_unk":true,"vocab":{"a":0,"b":1,"ab":2},"merges":["a b"]}"#,
        );
        same(r#"{"merges":[["a","b"]],"vocab":{"a":0,"b":1,"ab":4},"type":"BPE","byte_fallback":true}"#);
        same(
            r#"{"type":"Unigram","unk_id":0,"vocab":[["<unk>",0.0],["▁a",-1.5],["b",-2.25]],"byte_fallback":false}"#,
        );
    }

    #[test]
    fn what_differs_is_left_to_the_library() {
        let wordpiece = r#"{"type":"WordPiece","unk_token":"a","continuing_subword_prefix":"","max_input_chars_per_word":9,"vocab":{"a":0}}"#;
        let untyped = r#"{"vocab":{"a":0,"b":1,"ab":2},"merges":["a b"]}"#;
        for model in [wordpiece, untyped] {
            let file = file(model);
            assert!(in_place(file.as_bytes()).is_none());
            assert!(parse(file.as_bytes()).is_ok());
        }
        let broken = file(r#"{"type":"BPE","vocab":{"a":0},"merges":["a b"]}"#);
        let message = |result: Result<Inner, tokenizers::Error>| result.err().map(|error| error.to_string());
        assert_eq!(message(parse(broken.as_bytes())), message(Inner::from_bytes(&broken)));
        assert!(parse(b"{").is_err());
    }
}
