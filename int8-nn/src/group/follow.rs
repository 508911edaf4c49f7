//! What the processes behind the first one do: its steps.

use std::collections::HashMap;
use std::sync::atomic::Ordering;

use super::{Group, Step};
use crate::Error;
use crate::backend::{Backend, RowSelection};
use crate::decoder::Decoder;
use crate::session::Session;

/// Does what the first process tells, until it says that there is no more. The first process answers for all: what it refuses, it
/// refuses before it tells, and what fails on all is its error to report.
///
/// # Errors
/// [`Error::Process`] when another process has ended or does not answer, and errors of this process alone, as of its device.
pub fn follow<B: Backend>(decoder: &Decoder<B>, group: &Group) -> Result<(), Error> {
    group.follows.store(true, Ordering::Release);
    let mut sessions: HashMap<u32, Session<'_, B>> = HashMap::new();
    loop {
        let step = Step::decode(&group.next()?)?;
        let done = match step {
            Step::End => return Ok(()),
            Step::Open { session, options } => {
                decoder.session(&options).map(|opened| _ = sessions.insert(session, opened))
            }
            Step::Close { session } => {
                sessions.remove(&session);
                Ok(())
            }
            Step::Clear { session, sequence } => of(&mut sessions, session)?.clear(sequence),
            Step::Expect { session, sequence, tokens } => {
                of(&mut sessions, session)?.expect(sequence, tokens);
                Ok(())
            }
            Step::Fork { session, from, to, tokens } => of(&mut sessions, session)?.fork(from, to, tokens),
            Step::Forward { session, batch } => {
                let batch: Vec<(usize, &[u32])> =
                    batch.iter().map(|(sequence, ids)| (*sequence, &**ids)).collect();
                of(&mut sessions, session)?.forward(&batch)
            }
            Step::Logits { session, rows } => {
                of(&mut sessions, session)?.compute_logits(&RowSelection::Rows(rows))
            }
        };
        match done {
            // As on the first process: no pages are free, or the model has fewer positions.
            Ok(()) | Err(Error::Input(_)) => {}
            Err(error) => return Err(error),
        }
    }
}

fn of<'a, 'm, B: Backend>(
    sessions: &'a mut HashMap<u32, Session<'m, B>>,
    session: u32,
) -> Result<&'a mut Session<'m, B>, Error> {
    sessions
        .get_mut(&session)
        .ok_or_else(|| Error::Process(format!("session {session}, which this process could not open")))
}
