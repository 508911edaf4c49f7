//! An engine on a thread of its own, and handles by which other threads reach it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};

use super::scheduler::Engine;
use super::task::Shared;
use super::{EngineStats, Rejection, Request, RequestId, Sink};
use crate::Error;
use crate::backend::Backend;

/// What a handle tells its engine.
enum Command {
    Submit(RequestId, Box<Request>, Sink),
    Cancel(RequestId),
    /// Take nothing more, and end when all requests have ended.
    Drain,
    /// End all requests.
    Stop,
}

/// The other end of a [`Handle`], for [`drive`].
pub struct Commands(Receiver<Command>);

impl std::fmt::Debug for Commands {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Commands").finish_non_exhaustive()
    }
}

/// Reaches an engine that [`drive`] runs on another thread.
#[derive(Clone)]
pub struct Handle {
    commands: Sender<Command>,
    shared: Arc<Shared>,
}

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handle").field("shared", &self.shared).finish_non_exhaustive()
    }
}

impl Handle {
    /// Appends a request to the queue. `sink` takes its events on the engine's thread and should return at once.
    ///
    /// # Errors
    /// [`Rejection`], before anything happens.
    pub fn submit(&self, request: Request, sink: Sink) -> Result<RequestId, Rejection> {
        let id = self.shared.accept(&request)?;
        let command = Command::Submit(id, Box::new(request), sink);
        self.commands.send(command).map_err(|_| Rejection::Stopped)?;
        Ok(id)
    }

    /// Ends a request before the next forward.
    pub fn cancel(&self, id: RequestId) {
        // An engine that has ended has no requests.
        let _ = self.commands.send(Command::Cancel(id));
    }

    /// From now on requests are refused; [`drive`] returns when those that were accepted have ended.
    pub fn drain(&self) {
        self.shared.stopped.store(true, Ordering::Release);
        let _ = self.commands.send(Command::Drain);
    }

    /// Ends all requests as cancelled; [`drive`] returns.
    pub fn stop(&self) {
        self.shared.stopped.store(true, Ordering::Release);
        let _ = self.commands.send(Command::Stop);
    }

    /// Counts and state after the last round.
    pub fn stats(&self) -> EngineStats {
        let mut stats = self.shared.stats().clone();
        stats.waiting = self.shared.waiting.load(Ordering::Acquire);
        stats
    }

    /// Most tokens of a request, prompt and answer.
    pub fn context(&self) -> usize {
        self.shared.context
    }
}

/// A handle of an engine, and its end for [`drive`].
pub fn handle<B: Backend>(engine: &Engine<'_, B>) -> (Handle, Commands) {
    let (commands, receiver) = channel();
    (Handle { commands, shared: Arc::clone(engine.shared()) }, Commands(receiver))
}

/// Runs an engine on this thread until a handle says so or none is left; sleeps while there is nothing to do.
///
/// On a CPU, call it inside of `rayon::scope(|_| …)`: a thread outside rayon's pool pays for waking one in it with each forward.
///
/// # Errors
/// As [`Engine::step`]; all requests have ended as cancelled then.
pub fn drive<B: Backend>(engine: &mut Engine<'_, B>, end: Commands) -> Result<(), Error> {
    let mut draining = false;
    loop {
        let command = if engine.is_idle() && !draining {
            match end.0.recv() {
                Ok(command) => command,
                Err(_) => return Ok(()),
            }
        } else {
            match end.0.try_recv() {
                Ok(command) => command,
                Err(TryRecvError::Empty) if engine.is_idle() => return Ok(()),
                Err(TryRecvError::Disconnected) if engine.is_idle() => return Ok(()),
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => {
                    if let Err(error) = engine.step() {
                        engine.shared().stopped.store(true, Ordering::Release);
                        end_all(engine, &end);
                        return Err(error);
                    }
                    continue;
                }
            }
        };
        match command {
            Command::Submit(id, request, sink) => engine.enqueue(id, *request, sink),
            Command::Cancel(id) => engine.cancel(id)?,
            Command::Drain => draining = true,
            Command::Stop => {
                end_all(engine, &end);
                return Ok(());
            }
        }
    }
}

/// Ends what runs, waits, or is on its way.
fn end_all<B: Backend>(engine: &mut Engine<'_, B>, end: &Commands) {
    while let Ok(command) = end.0.try_recv() {
        if let Command::Submit(id, request, sink) = command {
            engine.enqueue(id, *request, sink);
        }
    }
    engine.cancel_all();
}
