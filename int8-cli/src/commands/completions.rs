//! `int8 completions` and `int8 man`: completions for a shell, pages of the manual.

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

/// Prints a page of the manual, in roff.
pub(crate) fn man(command: Option<&str>, output: &Output) -> Result<(), Failure> {
    let mut program = Cli::command();
    program.build();
    let page = match command {
        None => program,
        Some(name) => program
            .find_subcommand(name)
            .cloned()
            .ok_or_else(|| Failure::usage(format!("{name} is no command; `int8 help` lists them")))?,
    };
    let mut roff = Vec::new();
    clap_mangen::Man::new(page).render(&mut roff)?;
    output.text(&String::from_utf8_lossy(&roff))
}
