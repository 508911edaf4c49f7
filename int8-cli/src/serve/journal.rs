//! What a server tells of itself: counters, and lines of a log.

use serde_json::{Value, json};

use super::metrics::Metrics;

/// Counters, and the log on standard error.
#[derive(Debug, Default)]
pub(super) struct Journal {
    pub(super) metrics: Metrics,
    /// No log.
    pub(super) quiet: bool,
}

impl Journal {
    /// Writes a line of JSON to standard error, but with `--quiet`.
    pub(super) fn log(&self, line: &Value) {
        if !self.quiet {
            use std::io::Write;
            let mut line = line.clone();
            line["time"] = json!(jiff::Timestamp::now().to_string());
            // Nothing is lost if standard error is gone.
            let _ = writeln!(std::io::stderr(), "{line}");
        }
    }
}
