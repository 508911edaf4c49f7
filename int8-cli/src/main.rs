//! The command `int8`: run, evaluate and inspect transformer checkpoints in 8-bit.

mod args;
mod bench;
mod commands;
mod convert;
mod device;
mod failure;
mod hub;
#[cfg(feature = "json-schema")]
mod json_form;
mod output;
mod report;
mod resolve;
#[cfg(feature = "serve")]
mod serve;
mod signals;
mod stored_threshold;
mod values;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;

use args::{Cli, Command};
use device::Device;
use failure::Failure;
use output::Output;

fn main() -> ExitCode {
    signals::install();
    let cli = Cli::parse();
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        // The reader of standard output has stopped early, as `head` does.
        Err(Failure { broken_pipe: true, .. }) => ExitCode::SUCCESS,
        Err(failure) => {
            let _ = writeln!(io::stderr(), "error: {}", output::message(&failure.to_string()));
            ExitCode::from(failure.code)
        }
    }
}

fn run(cli: Cli) -> Result<(), Failure> {
    let output = Output::new(&cli.global);
    let device = Device::new(&cli.global)?;
    if !cli.command.uses_device() {
        device.require_cpu()?;
    }
    match cli.command {
        Command::Demo => commands::demo::run(&device, &output),
        Command::Run(arguments) => commands::run::run(&arguments, &device, &output),
        #[cfg(feature = "serve")]
        Command::Serve(arguments) => serve::run(&arguments, &device, &output),
        Command::Eval(arguments) => commands::eval::run(&arguments, &device, &output),
        Command::Embed(arguments) => commands::embed::run(&arguments, &device, &output),
        Command::Outliers(arguments) => commands::outliers::run(&arguments, &device, &output),
        Command::Logits(arguments) => commands::logits::run(&arguments, &device, &output),
        Command::Inspect(arguments) => commands::inspect::run(&arguments, &output),
        Command::Plan(arguments) => commands::plan::run(&arguments, &output),
        Command::Quantize(arguments) => commands::quantize::run(&arguments, &device, &output),
        Command::Dequantize(arguments) => commands::dequantize::run(&arguments, &device, &output),
        Command::Bench(arguments) => commands::bench::run(&arguments, &device, &output),
        Command::Pull { model, revision } => commands::models::pull(&model, revision.as_deref(), &output),
        Command::List => commands::models::list(&output),
        Command::Rm { models } => commands::models::remove(&models, &output),
        Command::Verify(arguments) => commands::verify::run(&arguments, &output),
        Command::Completions { shell } => commands::completions::run(shell, &output),
    }
}
