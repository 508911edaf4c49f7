//! Ctrl-C in a conversation: it ends the answer, and between answers the program.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Set by Ctrl-C while an answer is written.
#[derive(Debug, Default)]
pub(super) struct StopFlag {
    set: Arc<AtomicBool>,
    /// Whether nothing is being written: Ctrl-C ends the program then.
    idle: Arc<AtomicBool>,
}

impl StopFlag {
    pub(super) fn is_set(&self) -> bool {
        self.set.load(Ordering::Relaxed)
    }

    /// Takes Ctrl-C over.
    pub(super) fn install(&self) -> io::Result<()> {
        use signal_hook::consts::SIGINT;
        self.idle.store(true, Ordering::Relaxed);
        // As a shell reports a program that SIGINT ended.
        signal_hook::flag::register_conditional_shutdown(SIGINT, 130, Arc::clone(&self.idle))?;
        signal_hook::flag::register(SIGINT, Arc::clone(&self.set))?;
        Ok(())
    }

    pub(super) fn begin_answer(&self) {
        self.set.store(false, Ordering::Relaxed);
        self.idle.store(false, Ordering::Relaxed);
    }

    pub(super) fn end_answer(&self) {
        self.idle.store(true, Ordering::Relaxed);
    }
}
