//! Converts a checkpoint on disk to int8, as `from_pretrained(…, load_in_8bit=True)` of transformers would, in little memory.
//!
//!     cargo run --release -p int8-nn --example convert -- path/to/opt-6.7b path/to/opt-6.7b-int8
#![allow(clippy::print_stdout, reason = "an example prints")]

use std::error::Error;

use int8_nn::checkpoint::Checkpoint;
use int8_nn::quantize::{Options, quantize_checkpoint};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(from), Some(to)) = (arguments.next(), arguments.next()) else {
        return Err("usage: convert CHECKPOINT TARGET".into());
    };
    let report = quantize_checkpoint(&Checkpoint::open(from)?, &to, &Options::default(), &mut |_| {})?;
    println!(
        "{} layers became int8, {} MB became {}",
        report.int8.len(),
        report.source_bytes >> 20,
        report.written_bytes >> 20
    );
    println!("{to} loads here, and in transformers with bitsandbytes");
    Ok(())
}
