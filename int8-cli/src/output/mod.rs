//! Text and JSON on standard output, remarks on standard error.

mod memory;
mod progress;
mod size;

use std::io::{self, IsTerminal, Write};

use serde_json::Value;

use crate::args::{Color, Global};
use crate::failure::Failure;

pub(crate) use memory::peak_memory;
pub(crate) use progress::Bar;
pub(crate) use size::bytes;

/// How this run of the program writes.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) json: bool,
    color: bool,
    quiet: bool,
}

impl Output {
    /// As the options say.
    pub(crate) fn new(global: &Global) -> Self {
        let terminal = io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Self {
            json: global.json,
            color: match global.color {
                Color::Auto => terminal,
                Color::Always => true,
                Color::Never => false,
            },
            quiet: global.quiet,
        }
    }

    /// Writes text to standard output at once.
    ///
    /// # Errors
    /// When standard output is gone.
    pub(crate) fn text(&self, text: &str) -> Result<(), Failure> {
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes())?;
        Ok(out.flush()?)
    }

    /// Writes a line to standard output.
    ///
    /// # Errors
    /// When standard output is gone.
    pub(crate) fn line(&self, line: &str) -> Result<(), Failure> {
        self.text(&format!("{line}\n"))
    }

    /// Writes one JSON object to standard output.
    ///
    /// # Errors
    /// When standard output is gone.
    pub(crate) fn object(&self, value: &Value) -> Result<(), Failure> {
        self.line(&format!("{value:#}"))
    }

    /// Whether remarks are to be left out.
    #[cfg(feature = "serve")]
    pub(crate) fn quiet(&self) -> bool {
        self.quiet
    }

    /// Writes a remark to standard error, but with `--quiet` or `--json`.
    pub(crate) fn remark(&self, line: &str) {
        if !self.quiet && !self.json {
            // Nothing is lost if standard error is gone.
            let _ = writeln!(io::stderr(), "{line}");
        }
    }

    /// Text set in bold on a terminal.
    pub(crate) fn bold(&self, text: &str) -> String {
        if self.color { format!("\x1b[1m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// Text set dim on a terminal.
    pub(crate) fn dim(&self, text: &str) -> String {
        if self.color { format!("\x1b[2m{text}\x1b[0m") } else { text.to_owned() }
    }
}
