//! What a session does, as a message.

use crate::Error;
use crate::backend::KvType;
use crate::convert::{bytes, index};
use crate::session::SessionOptions;

/// A call of a [`crate::Session`]. Sessions are numbered by the process that tells.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Step<'a> {
    Open {
        session: u32,
        options: SessionOptions,
    },
    Close {
        session: u32,
    },
    Clear {
        session: u32,
        sequence: usize,
    },
    Expect {
        session: u32,
        sequence: usize,
        tokens: usize,
    },
    Fork {
        session: u32,
        from: usize,
        to: usize,
        tokens: usize,
    },
    Forward {
        session: u32,
        batch: Vec<(usize, std::borrow::Cow<'a, [u32]>)>,
    },
    Logits {
        session: u32,
        rows: Vec<usize>,
    },
    /// No more steps.
    End,
}

impl Step<'_> {
    /// Words of 64 bits, little-endian.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let words: Vec<usize> = match self {
            Self::Open { session, options } => {
                let SessionOptions {
                    kv_cache,
                    sequences,
                    max_positions,
                    max_rows,
                    max_logits,
                    total_positions,
                } = *options;
                let kv_cache = KvType::ALL.iter().position(|known| *known == kv_cache).unwrap_or(0);
                let total = total_positions.map_or(0, |total| total + 1);
                vec![0, index(*session), kv_cache, sequences, max_positions, max_rows, max_logits, total]
            }
            Self::Close { session } => vec![1, index(*session)],
            Self::Clear { session, sequence } => vec![2, index(*session), *sequence],
            Self::Expect { session, sequence, tokens } => vec![3, index(*session), *sequence, *tokens],
            Self::Fork { session, from, to, tokens } => vec![4, index(*session), *from, *to, *tokens],
            Self::Forward { session, batch } => {
                let mut words = vec![5, index(*session)];
                for (sequence, ids) in batch {
                    words.extend([*sequence, ids.len()]);
                    words.extend(ids.iter().map(|id| index(*id)));
                }
                words
            }
            Self::Logits { session, rows } => [&[6, index(*session)], &rows[..]].concat(),
            Self::End => vec![7],
        };
        words.iter().flat_map(|word| bytes(*word).to_le_bytes()).collect()
    }

    /// # Errors
    /// [`Error::Process`] for what no step is.
    pub(crate) fn decode(message: &[u8]) -> Result<Step<'static>, Error> {
        decode(message).ok_or_else(|| {
            Error::Process("the first process says what this one does not understand".to_owned())
        })
    }
}

fn decode(message: &[u8]) -> Option<Step<'static>> {
    let (chunks, rest) = message.as_chunks::<8>();
    let words: Option<Vec<usize>> =
        chunks.iter().map(|chunk| usize::try_from(u64::from_le_bytes(*chunk)).ok()).collect();
    let words = words.filter(|_| rest.is_empty())?;
    let session = |number: usize| u32::try_from(number).ok();
    Some(match words[..] {
        [0, id, kv_cache, sequences, max_positions, max_rows, max_logits, total] => {
            let kv_cache = *KvType::ALL.get(kv_cache)?;
            let total_positions = total.checked_sub(1);
            let options =
                SessionOptions { kv_cache, sequences, max_positions, max_rows, max_logits, total_positions };
            Step::Open { session: session(id)?, options }
        }
        [1, id] => Step::Close { session: session(id)? },
        [2, id, sequence] => Step::Clear { session: session(id)?, sequence },
        [3, id, sequence, tokens] => Step::Expect { session: session(id)?, sequence, tokens },
        [4, id, from, to, tokens] => Step::Fork { session: session(id)?, from, to, tokens },
        [5, id, ref rest @ ..] => {
            let (mut batch, mut rest) = (Vec::new(), rest);
            while let [sequence, count, behind @ ..] = rest {
                let (ids, further) = behind.split_at_checked(*count)?;
                let ids: Option<Vec<u32>> = ids.iter().map(|id| u32::try_from(*id).ok()).collect();
                batch.push((*sequence, ids?.into()));
                rest = further;
            }
            if !rest.is_empty() {
                return None;
            }
            Step::Forward { session: session(id)?, batch }
        }
        [6, id, ref rows @ ..] => Step::Logits { session: session(id)?, rows: rows.to_vec() },
        [7] => Step::End,
        _ => return None,
    })
}
