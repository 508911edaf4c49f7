//! Measures the complete LLM.int8() layer against cuBLASLt fp16: `int8_cuda::bench` says how.
//!
//! `int8-cuda-bench [--json FILE] [--quick] [--rows M] [--all-algorithms]`

use std::error::Error as StdError;
use std::process::ExitCode;

use int8_cuda::{Device, bench};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("int8-cuda-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn StdError>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let flag = |name: &str| arguments.iter().any(|argument| argument == name);
    let json_path =
        arguments.iter().position(|argument| argument == "--json").and_then(|at| arguments.get(at + 1));
    let rows = arguments.iter().position(|argument| argument == "--rows");
    let rows: Option<usize> = match rows.map(|at| arguments.get(at + 1)) {
        Some(value) => Some(value.and_then(|value| value.parse().ok()).ok_or("--rows needs a number")?),
        None => None,
    };
    let options = bench::Options { quick: flag("--quick"), rows, all_algorithms: flag("--all-algorithms") };
    let device = Device::new(0)?;
    let info = device.info();
    println!("{}, driver {}, built with CUDA {}", info.name, info.driver, info.runtime);
    println!("{}", bench::HEADER);
    let records = bench::run(&device, options, &mut |line| println!("{line}"))?;
    for line in bench::summary(&records) {
        println!("{line}");
    }
    if let Some(path) = json_path {
        std::fs::write(path, serde_json::to_string_pretty(&bench::document(info, &records))?)?;
    }
    Ok(())
}
