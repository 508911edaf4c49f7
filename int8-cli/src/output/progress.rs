//! Progress bars on standard error.

use std::time::Duration;

use console::Term;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{Output, message, short};
use crate::convert::count;

impl Output {
    /// A progress bar on standard error; drawn only on a terminal.
    pub(crate) fn bar(&self, verb: &str, unit: &str) -> Bar {
        self.bar_with(verb, &format!("{{pos}}/{{len}} {unit}"))
    }

    /// A progress bar of bytes, with their rate.
    pub(crate) fn byte_bar(&self, verb: &str) -> Bar {
        self.bar_with(verb, "{decimal_bytes}/{decimal_total_bytes}, {decimal_bytes_per_sec}")
    }

    fn bar_with(&self, verb: &str, numbers: &str) -> Bar {
        let target = if self.quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        let bar = ProgressBar::with_draw_target(None, target).with_message(shown(verb));
        // The bar itself is the first to go: a line that wraps is drawn anew below itself.
        let template = match Term::stderr().size_checked() {
            Some((_, columns)) if columns < NARROW => format!("{{msg}} {numbers}"),
            _ => format!("{{msg}} [{{wide_bar}}] {numbers}, {{eta}} left"),
        };
        if let Ok(style) = ProgressStyle::with_template(&template) {
            bar.set_style(style.progress_chars("=> "));
        }
        Bar(bar)
    }
}

/// Columns of a terminal below which no bar is drawn between name and numbers.
const NARROW: u16 = 72;

/// Most characters before a bar: half of a narrow terminal.
const MOST_MESSAGE: usize = 40;

/// A name, which may be a stranger's, as it may stand before a bar.
fn shown(verb: &str) -> String {
    short(&message(verb), MOST_MESSAGE).into_owned()
}

/// A progress bar.
#[derive(Debug, Clone)]
pub(crate) struct Bar(ProgressBar);

impl Bar {
    /// Sets progress and length.
    pub(crate) fn set(&self, done: usize, all: usize) {
        self.draw(count(done), count(all));
    }

    /// Sets progress and length in bytes, in the stage `verb`.
    pub(crate) fn set_bytes(&self, verb: &str, done: u64, all: u64) {
        if self.0.message() != shown(verb) {
            // Rate and time left are those of the new stage.
            self.0.reset();
            self.0.set_message(shown(verb));
        }
        self.draw(done, all);
    }

    /// Draws it from now on: before, there is nothing to count. The thread that redraws it finds a length at once.
    fn draw(&self, done: u64, all: u64) {
        let first = self.0.length().is_none();
        self.0.set_length(all);
        self.0.set_position(done);
        if first {
            self.0.enable_steady_tick(Duration::from_millis(200));
        }
    }

    /// Removes the bar.
    pub(crate) fn clear(&self) {
        self.0.finish_and_clear();
    }
}
