//! Turns of threads on the stream: a forward's operations are enqueued, and recorded, without those of another thread in
//! between.

use std::sync::{Condvar, Mutex, PoisonError};
use std::thread::{self, ThreadId};

/// A lock that the thread which holds it may take again.
#[derive(Debug, Default)]
pub(super) struct Turn {
    holder: Mutex<Option<(ThreadId, usize)>>,
    ended: Condvar,
}

/// Ends the turn, or the innermost of several, when dropped.
#[derive(Debug)]
pub(super) struct TurnGuard<'a>(&'a Turn);

impl Turn {
    /// Waits until no other thread has a turn.
    pub(super) fn enter(&self) -> TurnGuard<'_> {
        let own = thread::current().id();
        let mut holder = self.holder.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match &mut *holder {
                Some((thread, depth)) if *thread == own => {
                    *depth += 1;
                    return TurnGuard(self);
                }
                None => {
                    *holder = Some((own, 1));
                    return TurnGuard(self);
                }
                Some(_) => holder = self.ended.wait(holder).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }
}

impl Drop for TurnGuard<'_> {
    fn drop(&mut self) {
        let mut holder = self.0.holder.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *holder {
            Some((_, depth)) if *depth > 1 => *depth -= 1,
            _ => {
                *holder = None;
                self.0.ended.notify_one();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_enters_again_and_others_wait() {
        let turn = Turn::default();
        let count = Mutex::new((0, 0));
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        let _outer = turn.enter();
                        count.lock().expect("no panic").0 += 1;
                        let _inner = turn.enter();
                        let mut count = count.lock().expect("no panic");
                        count.1 += 1;
                        assert_eq!(count.0, count.1, "another thread came in between");
                    }
                });
            }
        });
        assert_eq!(*count.lock().expect("no panic"), (800, 800));
    }
}
