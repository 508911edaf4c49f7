//! Text and JSON on standard output, remarks on standard error.

mod clean;
mod file;
mod memory;
mod progress;
mod size;

use std::io::{self, IsTerminal, Write};

use serde_json::{Value, json};

use crate::args::{Color, Global};
use crate::failure::Failure;
use crate::launch;

pub(crate) use clean::{message, short};
pub(crate) use file::OutputFile;
pub(crate) use memory::peak_memory;
pub(crate) use progress::Bar;
pub(crate) use size::bytes;

/// How this run of the program writes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    pub(crate) json: bool,
    color: bool,
    color_errors: bool,
    quiet: bool,
}

/// Writes why the program ends to standard error, as one line of JSON.
pub(crate) fn json_failure(failure: &Failure) {
    let error =
        json!({"message": failure.message(), "hint": failure.given_hint(), "exit_code": failure.code});
    // Nothing is lost if standard error is gone.
    let _ = writeln!(io::stderr(), "{}", clean::json(&json!({"error": error}).to_string()));
}

impl Output {
    /// As the options say.
    pub(crate) fn new(global: &Global) -> Self {
        let color = |terminal: bool| match global.color {
            Color::Auto => terminal && std::env::var_os("NO_COLOR").is_none(),
            Color::Always => true,
            Color::Never => false,
        };
        Self {
            json: global.json,
            color: color(io::stdout().is_terminal()),
            color_errors: color(io::stderr().is_terminal()),
            quiet: global.quiet || launch::follows(),
        }
    }

    /// Writes text to standard output at once, its control characters escaped (`--json` has the exact text), or to standard error where a file's contents have standard output.
    ///
    /// # Errors
    /// When standard output is gone.
    pub(crate) fn text(&self, text: &str) -> Result<(), Failure> {
        let text = clean::text(text, self.color);
        if file::output_is_taken() {
            // Nothing is lost if standard error is gone.
            let _ = io::stderr().write_all(text.as_bytes());
            return Ok(());
        }
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes())?;
        Ok(out.flush()?)
    }

    /// Writes a line to standard output.
    ///
    /// # Errors
    /// When standard output is gone.
    pub(crate) fn line(&self, line: &str) -> Result<(), Failure> {
        self.text(&format!("{}\n", clean::line(line, self.color)))
    }

    /// Writes one JSON object to standard output.
    ///
    /// # Errors
    /// When standard output is gone.
    pub(crate) fn object(&self, value: &Value) -> Result<(), Failure> {
        self.text(&format!("{}\n", clean::json(&format!("{value:#}"))))
    }

    /// Whether remarks are to be left out.
    #[cfg(feature = "serve")]
    pub(crate) fn quiet(&self) -> bool {
        self.quiet
    }

    /// Writes why the program ends to standard error: a message in red on a terminal, with `--json` an object.
    pub(crate) fn failure(&self, failure: &Failure) {
        if self.json {
            return json_failure(failure);
        }
        let (red, plain) = if self.color_errors { (clean::RED, clean::PLAIN) } else { ("", "") };
        // Nothing is lost if standard error is gone.
        let _ = writeln!(io::stderr(), "{red}error:{plain} {}", message(&failure.to_string()));
    }

    /// Writes a remark to standard error, but with `--quiet` or `--json`.
    pub(crate) fn remark(&self, line: &str) {
        if !self.quiet && !self.json {
            // Nothing is lost if standard error is gone.
            let _ = writeln!(io::stderr(), "{}", clean::line(line, self.color));
        }
    }

    /// Text set in bold on a terminal.
    pub(crate) fn bold(&self, text: &str) -> String {
        if self.color { format!("{}{text}{}", clean::BOLD, clean::PLAIN) } else { text.to_owned() }
    }

    /// Text set dim on a terminal.
    pub(crate) fn dim(&self, text: &str) -> String {
        if self.color { format!("{}{text}{}", clean::DIM, clean::PLAIN) } else { text.to_owned() }
    }
}
