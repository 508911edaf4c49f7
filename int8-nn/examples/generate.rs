//! Loads a checkpoint as int8 and continues a text, which is shown as it is written.
//!
//!     cargo run --release -p int8-nn --example generate -- path/to/checkpoint "Once upon a time"
#![allow(clippy::print_stdout, reason = "an example prints")]

use std::error::Error;
use std::io::Write;

use int8_nn::{GenerateOptions, Model};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(folder), Some(prompt)) = (arguments.next(), arguments.next()) else {
        return Err("usage: generate CHECKPOINT PROMPT".into());
    };
    let model = Model::load(folder)?.int8().build()?;
    let footprint = model.footprint();
    println!("{} MB of weights, {} MB in 16 bits", footprint.total() >> 20, footprint.at(2) >> 20);

    print!("{prompt}");
    model.generate_streaming(&prompt, &GenerateOptions::default(), |text| {
        print!("{text}");
        let _ = std::io::stdout().flush();
    })?;
    println!();
    Ok(())
}
