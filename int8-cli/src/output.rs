//! Everything that reaches the user: text and JSON on standard output, progress on standard error.

use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use int8_nn::backend::cpu::{CpuBackend, Kernel};
use serde_json::Value;

use crate::Failure;
use crate::args::{Color, Global};

/// How this run of the program talks.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) json: bool,
    color: bool,
    quiet: bool,
    kernel: Option<String>,
    cuda: Option<u32>,
}

impl Output {
    /// Reads the options and sets up the threads.
    ///
    /// # Errors
    /// For a device this build does not have.
    pub(crate) fn new(global: &Global) -> Result<Self, Failure> {
        let cuda = cuda_ordinal(&global.device)?;
        if let Some(threads) = global.threads {
            rayon::ThreadPoolBuilder::new()
                .num_threads(usize::from(threads))
                .build_global()
                .map_err(|error| Failure::new(format!("--threads {threads}: {error}")))?;
        }
        let terminal = io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Ok(Self {
            json: global.json,
            color: match global.color {
                Color::Auto => terminal,
                Color::Always => true,
                Color::Never => false,
            },
            quiet: global.quiet,
            kernel: global.kernel.clone(),
            cuda,
        })
    }

    /// The number of the GPU asked for with `--device cuda` or `cuda:N`.
    pub(crate) fn cuda(&self) -> Option<u32> {
        self.cuda
    }

    /// Refuses `--device cuda`: for commands that run models.
    ///
    /// # Errors
    /// Where it was given.
    pub(crate) fn without_cuda(&self) -> Result<(), Failure> {
        match self.cuda {
            Some(ordinal) => Err(Failure::new(format!(
                "--device cuda:{ordinal}: models do not run on a GPU yet; use --device cpu"
            ))
            .hint("`int8 bench --device cuda` measures single layers there")),
            None => Ok(()),
        }
    }

    /// The CPU with the kernel asked for.
    ///
    /// # Errors
    /// When there is no such kernel.
    pub(crate) fn backend(&self) -> Result<Arc<CpuBackend>, Failure> {
        Ok(Arc::new(CpuBackend::with_kernel(self.kernel()?)))
    }

    /// The kernel asked for.
    ///
    /// # Errors
    /// When there is no such kernel.
    pub(crate) fn kernel(&self) -> Result<Kernel, Failure> {
        match &self.kernel {
            Some(name) if !name.is_empty() => {
                Kernel::by_name(name).map_err(|error| Failure::usage(error.to_string()))
            }
            _ => Ok(Kernel::best()),
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

    /// Writes a remark to standard error, unless it should be quiet.
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

    /// A progress bar on standard error; drawn only on a terminal.
    pub(crate) fn bar(&self, verb: &str, unit: &str) -> Bar {
        let template =
            format!("{{msg}} [{{bar:32}}] {{pos}}/{{len}} {unit}, {{elapsed}} (about {{eta}} left)");
        self.bar_with(verb, &template)
    }

    /// A progress bar of bytes, with their rate.
    pub(crate) fn byte_bar(&self, verb: &str) -> Bar {
        let numbers = "{decimal_bytes}/{decimal_total_bytes}, {decimal_bytes_per_sec}";
        self.bar_with(verb, &format!("{{msg}} [{{bar:32}}] {numbers}, {{elapsed}} (about {{eta}} left)"))
    }

    fn bar_with(&self, verb: &str, template: &str) -> Bar {
        let target = if self.quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        let bar = ProgressBar::with_draw_target(None, target).with_message(verb.to_owned());
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.enable_steady_tick(Duration::from_millis(200));
        Bar(bar)
    }
}

/// `None` for `auto` and `cpu`, the device's number for `cuda` and `cuda:N`.
fn cuda_ordinal(device: &str) -> Result<Option<u32>, Failure> {
    let unknown = || Failure::usage(format!("--device {device}: expected auto, cpu or cuda:N"));
    match (device, device.strip_prefix("cuda")) {
        ("auto" | "cpu", _) => Ok(None),
        (_, Some("")) => Ok(Some(0)),
        (_, Some(rest)) => {
            let number = rest.strip_prefix(':').and_then(|number| number.parse().ok());
            number.map(Some).ok_or_else(unknown)
        }
        _ => Err(unknown()),
    }
}

/// A progress bar.
#[derive(Debug, Clone)]
pub(crate) struct Bar(ProgressBar);

impl Bar {
    /// So much is done of so much.
    pub(crate) fn set(&self, done: usize, all: usize) {
        self.0.set_length(crate::convert::count(all));
        self.0.set_position(crate::convert::count(done));
    }

    /// So many bytes are done of so many, in this stage.
    pub(crate) fn set_bytes(&self, verb: &str, done: u64, all: u64) {
        if self.0.message() != verb {
            // Rate and time left are those of the new stage.
            self.0.reset();
            self.0.set_message(verb.to_owned());
        }
        self.0.set_length(all);
        self.0.set_position(done);
    }

    /// Removes the bar.
    pub(crate) fn clear(&self) {
        self.0.finish_and_clear();
    }
}

/// The most memory this process has had in use, in bytes, where the system tells (Linux).
pub(crate) fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// A size in bytes, in decimal units, three digits.
pub(crate) fn bytes(bytes: u64) -> String {
    let mut value = crate::convert::real_u64(bytes);
    for unit in ["B", "kB", "MB", "GB"] {
        if value < 1000.0 {
            let digits = if unit == "B" || value >= 100.0 {
                0
            } else if value >= 10.0 {
                1
            } else {
                2
            };
            return format!("{value:.digits$} {unit}");
        }
        value /= 1000.0;
    }
    format!("{value:.2} TB")
}
