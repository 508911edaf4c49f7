//! Text of files and models as a terminal may get it: control characters, which could move the cursor, set the title or hide
//! text, are escaped.

use std::borrow::Cow;
use std::fmt::Write as _;

/// The colours that [`super::Output`] sets itself.
const OWN: [&str; 3] = [BOLD, DIM, PLAIN];
pub(super) const BOLD: &str = "\x1b[1m";
pub(super) const DIM: &str = "\x1b[2m";
pub(super) const RED: &str = "\x1b[1;31m";
pub(super) const PLAIN: &str = "\x1b[0m";

/// Longest word of a line, in characters: a tensor's name may have megabytes.
const MOST_WORD: usize = 200;

/// Longest message, in characters.
const MOST_MESSAGE: usize = 4_000;

/// The text with control characters escaped as `\u{1b}`, other than ends of line and tabs; with `own`, the program's colours stay.
pub(super) fn text(text: &str, own: bool) -> Cow<'_, str> {
    let is_plain = |character: char| !character.is_control() || matches!(character, '\n' | '\t');
    if text.chars().all(is_plain) {
        return Cow::Borrowed(text);
    }
    let mut clean = String::with_capacity(text.len() + 16);
    let mut rest = text;
    while let Some(character) = rest.chars().next() {
        if let Some(colour) = OWN.iter().find(|colour| own && rest.starts_with(**colour)) {
            clean.push_str(colour);
            rest = &rest[colour.len()..];
            continue;
        }
        if is_plain(character) {
            clean.push(character);
        } else {
            let _ = write!(clean, "{}", character.escape_unicode());
        }
        rest = &rest[character.len_utf8()..];
    }
    Cow::Owned(clean)
}

/// A line: as [`text`], with words that no screen holds shortened in their middle.
pub(super) fn line(line: &str, own: bool) -> Cow<'_, str> {
    let line = match line.split(' ').any(|word| word.len() > MOST_WORD) {
        false => Cow::Borrowed(line),
        true => Cow::Owned(line.split(' ').map(|word| short(word, MOST_WORD)).collect::<Vec<_>>().join(" ")),
    };
    match text(&line, own) {
        Cow::Borrowed(_) => line,
        Cow::Owned(clean) => Cow::Owned(clean),
    }
}

/// An error's message: as [`line()`], and short as a whole.
pub(crate) fn message(message: &str) -> String {
    let short = short(message, MOST_MESSAGE);
    line(&short, false).into_owned()
}

/// At most `most` characters of a text: its begin and its end.
pub(crate) fn short(text: &str, most: usize) -> Cow<'_, str> {
    let length = text.chars().count();
    if length <= most {
        return Cow::Borrowed(text);
    }
    let begin: String = text.chars().take(most / 2).collect();
    let end: String = text.chars().skip(length - (most - most / 2 - 1)).collect();
    Cow::Owned(format!("{begin}…{end}"))
}

/// JSON escapes the controls below U+0020; the others are escaped here. They stand in strings alone.
pub(super) fn json(text: &str) -> Cow<'_, str> {
    let is_plain = |character: char| !character.is_control() || character == '\n';
    if text.chars().all(is_plain) {
        return Cow::Borrowed(text);
    }
    let mut clean = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        if is_plain(character) {
            clean.push(character);
        } else {
            let _ = write!(clean, "\\u{:04x}", u32::from(character));
        }
    }
    Cow::Owned(clean)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_moves_the_cursor() {
        assert_eq!(text("a\tb\nc é 漢", false), "a\tb\nc é 漢");
        assert_eq!(text("a\x1b[2J\u{9b}1m\u{7f}\rb", false), "a\\u{1b}[2J\\u{9b}1m\\u{7f}\\u{d}b");
        assert_eq!(text("\x1b[1mbold\x1b[0m\x1b[31m", true), "\x1b[1mbold\x1b[0m\\u{1b}[31m");
        assert_eq!(text("\x1b[1m", false), "\\u{1b}[1m");
        assert_eq!(json("{\"a\": \"\u{9b}\u{7f}\"}\n"), "{\"a\": \"\\u009b\\u007f\"}\n");
    }

    #[test]
    fn a_name_of_megabytes_is_shortened() {
        let name = "n".repeat(5 << 20);
        let shown = line(&format!("tensor {name} is\tgone"), false).into_owned();
        assert!(shown.chars().count() < 300 && shown.contains('…') && shown.ends_with("is\tgone"), "{shown}");
        let spaces = "n ".repeat(1 << 20);
        assert!(message(&spaces).chars().count() <= MOST_MESSAGE);
        assert_eq!(short("abcdef", 5), "ab…ef");
    }
}
