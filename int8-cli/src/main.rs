//! The command `int8`: run, evaluate and inspect transformer checkpoints in 8-bit.

mod args;
mod commands;
mod convert;
mod hub;
mod output;
mod report;
mod resolve;

use std::fmt;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;

use args::{Cli, Command};
use output::Output;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read our output has seen enough, as `head` does.
        Err(Failure { broken_pipe: true, .. }) => ExitCode::SUCCESS,
        Err(failure) => {
            let _ = writeln!(io::stderr(), "error: {failure}");
            ExitCode::from(failure.code)
        }
    }
}

fn run(cli: Cli) -> Result<(), Failure> {
    let output = Output::new(&cli.global)?;
    if !matches!(cli.command, Command::Bench(_)) {
        output.without_cuda()?;
    }
    match cli.command {
        Command::Demo => commands::demo::run(&output),
        Command::Run(arguments) => commands::run::run(&arguments, &output),
        Command::Eval(arguments) => commands::eval::run(&arguments, &output),
        Command::Embed(arguments) => commands::embed::run(&arguments, &output),
        Command::Outliers(arguments) => commands::outliers::run(&arguments, &output),
        Command::Logits(arguments) => commands::logits::run(&arguments, &output),
        Command::Inspect(arguments) => commands::inspect::run(&arguments, &output),
        Command::Plan(arguments) => commands::plan::run(&arguments, &output),
        Command::Quantize(arguments) => commands::quantize::run(&arguments, &output),
        Command::Dequantize(arguments) => commands::dequantize::run(&arguments, &output),
        Command::Bench(arguments) => commands::bench::run(&arguments, &output),
        Command::Verify(arguments) => commands::verify::run(&arguments, &output),
        Command::Completions { shell } => commands::completions::run(shell, &output),
    }
}

/// Why the program ends without success.
#[derive(Debug)]
struct Failure {
    message: String,
    hint: Option<String>,
    code: u8,
    broken_pipe: bool,
}

impl Failure {
    /// The command failed: exit code 1.
    fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), hint: None, code: 1, broken_pipe: false }
    }

    /// The command line makes no sense: exit code 2.
    fn usage(message: impl Into<String>) -> Self {
        Self { code: 2, ..Self::new(message) }
    }

    /// Adds a way out.
    fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.hint {
            Some(hint) => write!(f, "\nhint: {hint}"),
            None => Ok(()),
        }
    }
}

impl From<int8_nn::Error> for Failure {
    fn from(error: int8_nn::Error) -> Self {
        Self::new(error.to_string())
    }
}

impl From<int8_nn::hub::HubError> for Failure {
    fn from(error: int8_nn::hub::HubError) -> Self {
        Self::new(error.to_string())
    }
}

impl From<int8_nn::checkpoint::CheckpointError> for Failure {
    fn from(error: int8_nn::checkpoint::CheckpointError) -> Self {
        Self::new(error.to_string())
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self { broken_pipe: error.kind() == io::ErrorKind::BrokenPipe, ..Self::new(error.to_string()) }
    }
}
