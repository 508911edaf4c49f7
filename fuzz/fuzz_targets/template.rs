//! A chat template of any text: an error or a text of bounded size, without a panic, in bounded time and memory.
//!
//! Give it a corpus to begin with, and the words of Jinja: `-dict=fuzz/jinja.dict -rss_limit_mb=1024 -timeout=10`.
#![no_main]

use int8_nn::{ChatTemplate, Message};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let tokens = vec![("eos_token".to_owned(), "</s>".to_owned())];
    let messages = [Message::new("system", "Be brief."), Message::new("user", "Hello,\nwörld")];
    match ChatTemplate::new("fuzz", text, tokens).and_then(|template| template.render(&messages, true)) {
        Ok(rendered) => assert!(rendered.len() < 512 << 20),
        // An error is short whatever it quotes.
        Err(error) => assert!(error.to_string().len() < 1_500),
    }
});
