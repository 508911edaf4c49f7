//! Any bytes as `tokenizer.json`: an error or a tokenizer whose encoding and decoding do not panic.
//!
//! Give it a corpus to begin with: `tokenizer.json` of a small model. Panics of the tokenizers library are contained, and end
//! a fuzzer all the same, since libFuzzer aborts in the panic hook: the hook is removed here.
#![no_main]

use int8_nn::SpecialTokens;
use std::sync::Once;

use int8_nn::Tokenizer;
use int8_nn::checkpoint::Source;
use libfuzzer_sys::fuzz_target;

static HOOK: Once = Once::new();

fuzz_target!(|bytes: &[u8]| {
    HOOK.call_once(|| {
        let abort = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            // Of a dependency; ours abort.
            if !info.location().is_some_and(|location| location.file().contains("/registry/")) {
                abort(info);
            }
        }));
    });
    let source = Source::embedded([("tokenizer.json".to_owned(), bytes.to_vec().into())]);
    match Tokenizer::read(&source) {
        Err(error) => assert!(!error.to_string().is_empty()),
        Ok(None) => panic!("the file is there"),
        Ok(Some(tokenizer)) => {
            for text in ["", "ab a\u{301}b", "日本 \u{10FFFF}", &"a ".repeat(100)] {
                if let Ok(ids) = tokenizer.encode(text, SpecialTokens::Add) {
                    let _ = tokenizer.decode(&ids);
                }
            }
        }
    }
});
