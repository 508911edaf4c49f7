//! How near texts are to the first, by a sentence encoder in int8.
//!
//!     cargo run --release -p int8-nn --example embed -- path/to/all-MiniLM-L6-v2 "a cat sleeps" "a kitten naps" "stocks fell"
#![allow(clippy::print_stdout, reason = "an example prints")]

use std::error::Error;

use int8_nn::{Model, embedder};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, texts @ ..] = &arguments[..] else {
        return Err("usage: embed CHECKPOINT TEXT TEXT...".into());
    };
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let vectors = Model::load(folder)?.int8().embedder()?.embed(&texts, |_, _| ())?;
    for (text, vector) in texts.iter().zip(vectors.rows()).skip(1) {
        println!("{:.4}  {text}", embedder::cosine(vectors.row(0), vector));
    }
    Ok(())
}
