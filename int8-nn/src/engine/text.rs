//! The text of an answer, token by token: whole characters, up to a stop text.

use crate::Error;
use crate::tokenizer::{TextStream, Tokenizer};

/// Tokens of the prompt that the decoder sees first: it decodes a first token differently.
const CONTEXT: usize = 8;

/// The text of an answer.
#[derive(Debug)]
pub(super) struct AnswerText<'m> {
    tokenizer: &'m Tokenizer,
    stream: TextStream<'m>,
    stops: StopFilter,
}

impl<'m> AnswerText<'m> {
    pub(super) fn new(tokenizer: &'m Tokenizer, prompt: &[u32], stops: Vec<String>) -> Result<Self, Error> {
        let mut stream = tokenizer.stream();
        for id in &prompt[prompt.len().saturating_sub(CONTEXT)..] {
            stream.push(*id)?;
        }
        Ok(Self { tokenizer, stream, stops: StopFilter::new(stops) })
    }

    /// Adds a token. Returns the text that is complete with it, and the stop text that has been found.
    pub(super) fn push(&mut self, id: u32) -> Result<(String, Option<String>), Error> {
        let piece = self.stream.push(id)?;
        Ok(self.stops.push(&piece))
    }

    /// The text that was held back, and a stop text in it.
    pub(super) fn finish(&mut self) -> Result<(String, Option<String>), Error> {
        let rest = std::mem::replace(&mut self.stream, self.tokenizer.stream()).finish()?;
        let (mut text, stop) = self.stops.push(&rest);
        if stop.is_none() {
            text.push_str(&std::mem::take(&mut self.stops.held));
        }
        Ok((text, stop))
    }
}

/// Finds stop texts, and holds back what may become one.
#[derive(Debug)]
struct StopFilter {
    stops: Vec<String>,
    held: String,
}

impl StopFilter {
    fn new(mut stops: Vec<String>) -> Self {
        stops.retain(|stop| !stop.is_empty());
        Self { stops, held: String::new() }
    }

    /// Text that can be shown, and the stop text behind it. Of several, the one that begins first.
    fn push(&mut self, piece: &str) -> (String, Option<String>) {
        self.held.push_str(piece);
        let found = self.stops.iter().filter_map(|stop| Some((self.held.find(stop.as_str())?, stop)));
        if let Some((at, stop)) = found.min_by_key(|(at, stop)| (*at, stop.len())) {
            let stop = stop.clone();
            self.held.truncate(at);
            return (std::mem::take(&mut self.held), Some(stop));
        }
        // The longest end that begins a stop text.
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        let first = self.held.len().saturating_sub(longest);
        let keep = (first..self.held.len())
            .filter(|at| self.held.is_char_boundary(*at))
            .find(|at| self.stops.iter().any(|stop| stop.starts_with(&self.held[*at..])));
        let kept = self.held.split_off(keep.unwrap_or(self.held.len()));
        (std::mem::replace(&mut self.held, kept), None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is shown after each piece, and the stop text.
    fn shown(stops: &[&str], pieces: &[&str]) -> (Vec<String>, Option<String>) {
        let mut filter = StopFilter::new(stops.iter().map(|stop| (*stop).to_owned()).collect());
        let mut all = Vec::new();
        for piece in pieces {
            let (text, stop) = filter.push(piece);
            all.push(text);
            if stop.is_some() {
                return (all, stop);
            }
        }
        all.push(filter.held);
        (all, None)
    }

    #[test]
    fn stop_texts_are_found_across_pieces_and_never_shown() {
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(shown(&[], &["ab", "c"]), (vec!["ab".into(), "c".into(), String::new()], None));
        assert_eq!(shown(&["\n\n"], &["a\n", "\nb"]), (vec!["a".into(), String::new()], some("\n\n")));
        assert_eq!(shown(&["\n\n"], &["a\n", "b"]), (vec!["a".into(), "\nb".into(), String::new()], None));
        assert_eq!(shown(&["END"], &["xEN", "x"]), (vec!["x".into(), "ENx".into(), String::new()], None));
        assert_eq!(shown(&["END"], &["xE"]), (vec!["x".into(), "E".into()], None));
        assert_eq!(shown(&["bc", "ab"], &["zabc"]), (vec!["z".into()], some("ab")));
        // An end that begins the stop text twice.
        assert_eq!(shown(&["aab"], &["aa", "ab"]), (vec![String::new(), "a".into()], some("aab")));
        assert_eq!(shown(&["é!"], &["é", "?"]), (vec![String::new(), "é?".into(), String::new()], None));
        assert_eq!(shown(&[""], &["a"]), (vec!["a".into(), String::new()], None));
    }
}
