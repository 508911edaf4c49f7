//! Forwards over a fixed text when a model has been loaded, for a backend that chooses by the inputs of its linear layers what it
//! keeps of their weights ([`Backend::calibrate`]). The text is random ids of the vocabulary.

use int8_core::corpus::Random;

use crate::backend::{Backend, RowSelection};
use crate::block::Block;
use crate::decoder::Decoder;
use crate::encoder::Encoder;
use crate::seq2seq::{Source, SourceEncoder};
use crate::session::SessionOptions;
use crate::{Error, convert};

/// Sequences.
const SEQUENCES: usize = 8;

/// Tokens of a sequence.
const TOKENS: usize = 32;

/// Lets the backend of a decoder, and of the encoder whose output it attends to, see the inputs of their layers.
pub(crate) fn decoder<B: Backend>(
    decoder: &Decoder<B>,
    source: Option<&SourceEncoder<B>>,
) -> Result<(), Error> {
    let config = decoder.config();
    let of_source = source.iter().flat_map(|source| source.blocks()).flat_map(Block::linears);
    let mut stages: Vec<(&B, Vec<&B::Linear>)> = Vec::new();
    for (index, stage) in decoder.stages().iter().enumerate() {
        stages.push((&*stage.backend, decoder.linears_of_stage(index).collect()));
    }
    stages[0].1.extend(of_source.map(|(_, linear)| linear));
    together(&stages, false, &mut || {
        let mut texts = text(config.vocab_size, config.max_positions);
        let Some(tokens) = texts.first().map(Vec::len) else { return Ok(()) };
        if let Some(unplaced) = config.unplaced_token {
            let other = u32::from(unplaced == 0);
            texts.iter_mut().flatten().filter(|id| **id == unplaced).for_each(|id| *id = other);
        }
        let one = SessionOptions { max_logits: 1, ..SessionOptions::text(tokens) };
        // The logits: the head has an input, too.
        match source {
            None => {
                let sequences = texts.len();
                let options =
                    SessionOptions { sequences, max_rows: sequences * tokens, max_logits: sequences, ..one };
                let mut session = decoder.session(&options)?;
                session.forward(&texts.iter().map(Vec::as_slice).enumerate().collect::<Vec<_>>())?;
                session.logits(&RowSelection::LastOfSegments)?;
            }
            Some(source) => {
                for ids in &texts {
                    let mut session = source.session(decoder, Source::Text(ids), &one)?;
                    session.forward(&[(0, &[&[source.start_token()], &ids[1..]].concat())])?;
                    session.logits(&RowSelection::LastOfSegments)?;
                }
            }
        }
        Ok(())
    })
}

/// Lets all backends see the same forwards, so that what they keep does not depend on how blocks are placed. The forwards run only
/// if a backend asks for them: `asked`, if one did before these.
fn together<B: Backend>(
    stages: &[(&B, Vec<&B::Linear>)],
    asked: bool,
    forwards: &mut dyn FnMut() -> Result<(), Error>,
) -> Result<(), Error> {
    let Some(((backend, linears), rest)) = stages.split_first() else {
        return if asked { forwards() } else { Ok(()) };
    };
    let mut called = false;
    backend.calibrate(linears, &mut || {
        called = true;
        together(rest, true, forwards)
    })?;
    if called { Ok(()) } else { together(rest, asked, forwards) }
}

/// Lets the backend of an encoder see the inputs of its layers.
pub(crate) fn encoder<B: Backend>(encoder: &Encoder<B>) -> Result<(), Error> {
    let network = &encoder.config().network;
    encoder.backend().calibrate(&encoder.linears().collect::<Vec<_>>(), &mut || {
        let texts = text(network.vocab_size, network.max_positions);
        encoder.hidden_states(&texts.iter().map(Vec::as_slice).collect::<Vec<_>>())?;
        Ok(())
    })
}

/// [`SEQUENCES`] sequences of equally many ids, at most `longest`; none where there are no ids.
fn text(vocabulary: usize, longest: usize) -> Vec<Vec<u32>> {
    let all: Vec<u32> = (0..convert::token_id(vocabulary)).collect();
    let tokens = TOKENS.min(longest);
    if all.is_empty() || tokens == 0 {
        return Vec::new();
    }
    let mut random = Random::new(0);
    (0..SEQUENCES).map(|_| (0..tokens).map(|_| random.choose(&all)).collect()).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_text_is_always_the_same_and_of_the_vocabulary() {
        let ids = text(2000, 512);
        assert_eq!(ids, text(2000, 512));
        assert_eq!((ids.len(), ids[0].len()), (SEQUENCES, TOKENS));
        let distinct: BTreeSet<u32> = ids.iter().flatten().copied().collect();
        assert!(distinct.len() > 200 && distinct.iter().all(|id| *id < 2000), "{} ids", distinct.len());
        assert!(text(60, 7).iter().all(|ids| ids.len() == 7 && ids.iter().all(|id| *id < 60)));
        assert!(text(0, 7).is_empty() && text(7, 0).is_empty());
    }
}
