//! `int8 completions`: completions for a shell.

use clap::CommandFactory;

use crate::args::Cli;
use crate::failure::Failure;
use crate::output::Output;

/// Prints the completions.
pub(crate) fn run(shell: clap_complete::Shell, output: &Output) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "int8", &mut script);
    output.text(&String::from_utf8_lossy(&script))
}
