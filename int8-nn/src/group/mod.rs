//! Processes that compute a model together, each with some of its ranks ([`crate::backend::parallel`]): on one machine or on
//! several, connected by TCP.
//!
//! The first process runs the command. What its sessions do it tells the others as steps, which they do with sessions of
//! their own ([`follow`]); what ranks exchange during a step goes between all of them. Connections are neither encrypted nor
//! authenticated: they belong on a network that one trusts.

mod connect;
mod follow;
mod step;
#[cfg(test)]
mod tests;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

pub use connect::GroupOptions;
pub use follow::follow;
pub(crate) use step::Step;

use crate::Error;

/// Bytes that connections take from a sender although no one reads them: a small message to all is sent before any is read.
const SMALL: usize = 16 << 10;
/// Most bytes of a message, so that a damaged length is no huge allocation.
const LARGEST: usize = 1 << 31;

/// The processes that compute a model together, as one of them sees them.
#[derive(Debug)]
pub struct Group {
    process: usize,
    /// By process; none to itself.
    links: Vec<Option<Link>>,
    /// Steps and exchanges of two threads do not mix.
    turn: Mutex<()>,
    sessions: AtomicU32,
    /// This process does what the first one tells.
    follows: AtomicBool,
    /// The others have been told that there is no more to do.
    ended: Arc<AtomicBool>,
}

/// Tells when another process ends although there is more to do, whatever this one does meanwhile.
#[derive(Debug)]
pub struct Watch {
    stream: TcpStream,
    process: usize,
    processes: usize,
    ended: Arc<AtomicBool>,
}

impl Watch {
    /// Waits until the process ends; `None` where the work had ended before.
    pub fn wait(self) -> Option<Error> {
        loop {
            let lost = match self.stream.peek(&mut [0]) {
                Ok(0) => "has ended".to_owned(),
                Err(error) if error.kind() != std::io::ErrorKind::Interrupted => ended_or(&error),
                // What this process has not read yet.
                _ => {
                    thread::sleep(Duration::from_millis(200));
                    continue;
                }
            };
            let of_all = format!("process {} of {}", self.process, self.processes);
            return (!self.ended.load(Ordering::Acquire)).then(|| Error::Process(format!("{of_all} {lost}")));
        }
    }
}

fn ended_or(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::UnexpectedEof
        | std::io::ErrorKind::BrokenPipe
        | std::io::ErrorKind::ConnectionReset => "has ended".to_owned(),
        _ => format!("does not answer ({error})"),
    }
}

#[derive(Debug)]
struct Link(TcpStream);

impl Group {
    /// One process that computes everything itself.
    pub fn alone() -> Self {
        Self::of(0, vec![None])
    }

    fn of(process: usize, links: Vec<Option<Link>>) -> Self {
        let (turn, sessions, follows, ended) = Default::default();
        Self { process, links, turn, sessions, follows, ended }
    }

    /// Number of this process: 0 is the one that runs the command.
    pub fn process(&self) -> usize {
        self.process
    }

    /// Their number.
    pub fn processes(&self) -> usize {
        self.links.len()
    }

    /// One for each other process.
    ///
    /// # Errors
    /// [`Error::Process`] when this one has no more file descriptors.
    pub fn watch(&self) -> Result<Vec<Watch>, Error> {
        let links =
            self.links.iter().enumerate().filter_map(|(process, link)| Some((process, link.as_ref()?)));
        let watch = |(process, link): (usize, &Link)| {
            let stream = link.0.try_clone().map_err(|error| self.lost(process, &error))?;
            Ok(Watch { stream, process, processes: self.processes(), ended: self.ended.clone() })
        };
        links.map(watch).collect()
    }

    /// Whether other processes do what this one tells them.
    pub(crate) fn leads(&self) -> bool {
        self.process == 0 && self.processes() > 1
    }

    /// The messages of all processes, in their order. All of them call this at the same point.
    ///
    /// # Errors
    /// [`Error::Process`] when another one has ended or does not answer.
    pub fn gather(&self, own: &[u8]) -> Result<Vec<Vec<u8>>, Error> {
        let receive = || -> Result<Vec<Vec<u8>>, Error> {
            let message = |(process, link): (usize, &Option<Link>)| match link {
                Some(link) => link.receive().map_err(|error| self.lost(process, &error)),
                None => Ok(own.to_vec()),
            };
            self.links.iter().enumerate().map(message).collect()
        };
        if own.len() <= SMALL {
            self.send_to_all(own)?;
            return receive();
        }
        thread::scope(|scope| {
            let sent = scope.spawn(|| self.send_to_all(own));
            let received = receive();
            match sent.join() {
                Ok(sent) => sent.and(received),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// The messages of all processes where there are several, those of this one included; none where it is alone.
    pub(crate) fn gather_of_several(&self, own: &[u8]) -> Result<Vec<Vec<u8>>, Error> {
        if self.processes() == 1 { Ok(Vec::new()) } else { self.gather(own) }
    }

    /// Makes sure that all processes were given the same: `value` is what this one was, `what` says what it is.
    ///
    /// # Errors
    /// [`Error::Process`] when they differ; as [`gather`](Self::gather).
    pub fn agree(&self, what: &str, value: &str) -> Result<(), Error> {
        let values = self.gather(value.as_bytes())?;
        match values.iter().position(|other| other != value.as_bytes()) {
            Some(process) => Err(Error::Process(format!(
                "process {process} of {} has another {what} than process {}; start all with the same command",
                self.processes(),
                self.process
            ))),
            None => Ok(()),
        }
    }

    /// Whether this process may open a session of its own.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for one that should [`follow`] the first.
    pub(crate) fn check_opens(&self) -> Result<(), Error> {
        if self.process == 0 || self.follows.load(Ordering::Acquire) {
            return Ok(());
        }
        Err(Error::Unsupported("this work in several processes; start it alone".to_owned()))
    }

    /// Tells the other processes to do a step, where this is the first one. While the result lives, no other step begins.
    pub(crate) fn begin(&self, step: &Step<'_>) -> Result<MutexGuard<'_, ()>, Error> {
        let turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        self.send_to_all(&step.encode())?;
        Ok(turn)
    }

    /// A number for a session of this process.
    pub(crate) fn new_session(&self) -> u32 {
        self.sessions.fetch_add(1, Ordering::Relaxed)
    }

    /// The next step that the first process tells this one to do.
    fn next(&self) -> Result<Vec<u8>, Error> {
        match self.links.first() {
            Some(Some(leader)) => leader.receive().map_err(|error| self.lost(0, &error)),
            _ => Err(Error::Process("the first process follows no other".to_owned())),
        }
    }

    fn send_to_all(&self, message: &[u8]) -> Result<(), Error> {
        for (process, link) in self.links.iter().enumerate() {
            if let Some(link) = link {
                link.send(message).map_err(|error| self.lost(process, &error))?;
            }
        }
        Ok(())
    }

    fn lost(&self, process: usize, error: &std::io::Error) -> Error {
        Error::Process(format!("process {process} of {} {}", self.processes(), ended_or(error)))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if self.leads() {
            self.ended.store(true, Ordering::Release);
            // Who does not hear it sees the connection end.
            let _ = self.send_to_all(&Step::End.encode());
        }
    }
}

impl Link {
    fn send(&self, message: &[u8]) -> std::io::Result<()> {
        let mut stream = &self.0;
        let length = message.len().to_le_bytes();
        // In one packet where it is small.
        if message.len() <= SMALL {
            return stream.write_all(&[&length[..], message].concat());
        }
        stream.write_all(&length)?;
        stream.write_all(message)
    }

    fn receive(&self) -> std::io::Result<Vec<u8>> {
        let mut stream = &self.0;
        let mut length = [0; size_of::<usize>()];
        stream.read_exact(&mut length)?;
        let length = usize::from_le_bytes(length);
        if length > LARGEST {
            return Err(std::io::Error::other(format!("a message of {length} bytes")));
        }
        let mut message = vec![0; length];
        stream.read_exact(&mut message)?;
        Ok(message)
    }
}
