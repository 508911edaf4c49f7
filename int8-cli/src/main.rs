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
mod launch;
mod memory;
mod output;
mod report;
mod resolve;
#[cfg(feature = "serve")]
mod serve;
mod signals;
mod stored_threshold;
mod values;

use std::process::ExitCode;

use clap::Parser;

use args::{Cli, Command};
use device::Device;
use failure::Failure;
use output::Output;

fn main() -> ExitCode {
    signals::install();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    launch::detect(&cli.global);
    let output = Output::new(&cli.global);
    match run(cli, &output) {
        Ok(()) | Err(Failure { code: 0, .. }) => ExitCode::SUCCESS,
        // The reader of standard output has stopped early, as `head` does.
        Err(Failure { broken_pipe: true, .. }) => ExitCode::SUCCESS,
        Err(failure) => {
            output.failure(&failure);
            ExitCode::from(failure.code)
        }
    }
}

/// A command line that cannot be read: an error in the form that it asks for; and help and version, which are none.
fn usage(error: &clap::Error) -> ExitCode {
    let json = std::env::args_os().any(|argument| argument == "--json");
    if json && error.use_stderr() {
        let text = error.to_string();
        let message = text.split("\n\n").next().unwrap_or(&text).trim_start_matches("error: ");
        let failure = Failure::usage(message);
        output::json_failure(&failure);
        return ExitCode::from(failure.code);
    }
    error.exit()
}

fn run(cli: Cli, output: &Output) -> Result<(), Failure> {
    let device = Device::new(&cli.global)?;
    if !cli.command.uses_device() {
        device.require_cpu()?;
    }
    match cli.command {
        Command::Demo => commands::demo::run(&device, output),
        Command::Run(arguments) => commands::run::run(&arguments, &device, output),
        #[cfg(feature = "serve")]
        Command::Serve(arguments) => serve::run(&arguments, &device, output),
        Command::Eval(arguments) => commands::eval::run(&arguments, &device, output),
        Command::Embed(arguments) => commands::embed::run(&arguments, &device, output),
        Command::Transcribe(arguments) => commands::transcribe::run(&arguments, &device, output),
        Command::Outliers(arguments) => commands::outliers::run(&arguments, &device, output),
        Command::Logits(arguments) => commands::logits::run(&arguments, &device, output),
        Command::Inspect(arguments) => commands::inspect::run(&arguments, output),
        Command::Plan(arguments) => commands::plan::run(&arguments, cli.global.tensor_parallel, output),
        Command::Quantize(arguments) => commands::quantize::run(&arguments, &device, output),
        Command::Dequantize(arguments) => commands::dequantize::run(&arguments, &device, output),
        Command::Bench(arguments) => commands::bench::run(&arguments, &device, output),
        Command::Pull { model, revision } => commands::models::pull(&model, revision.as_deref(), output),
        Command::List => commands::models::list(output),
        Command::Rm { models } => commands::models::remove(&models, output),
        Command::Verify(arguments) => commands::verify::run(&arguments, output),
        Command::Man { command } => commands::completions::man(command.as_deref(), output),
        Command::Completions { shell } => commands::completions::run(shell, output),
    }
}
