//! The paths in a source file: `use` trees and path expressions, with the inline module that each stands in.

use std::collections::BTreeSet;

/// A path as written, `crate::a::B` or a name alone that a `use` brings into scope.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Path {
    pub(crate) segments: Vec<String>,
    /// Line, from 1.
    pub(crate) line: usize,
    /// Inline modules around it, outermost first.
    pub(crate) inside: Vec<String>,
}

/// One leaf of a `use` declaration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Import {
    pub(crate) path: Path,
    /// The name that it binds; `None` for `*`.
    pub(crate) name: Option<String>,
    /// `pub use`, with any visibility: others may mean the item by this path.
    pub(crate) is_public: bool,
}

/// What a file says of other files.
#[derive(Debug, Default)]
pub(crate) struct Paths {
    pub(crate) imports: Vec<Import>,
    /// Paths of two segments or more outside `use`.
    pub(crate) expressions: Vec<Path>,
    /// Names that stand alone outside `use`, of types, or called: the file uses what it re-exports under them.
    pub(crate) names: BTreeSet<String>,
    /// Items defined, each with the inline modules around it and its name.
    pub(crate) items: Vec<(Vec<String>, String)>,
    /// Inline modules, each with its own name last.
    pub(crate) inline_modules: Vec<Vec<String>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token<'a> {
    Word(&'a str),
    PathSeparator,
    Sign(char),
}

/// Keywords in front of the name of an item.
const ITEMS: [&str; 9] = ["fn", "struct", "enum", "trait", "type", "const", "static", "union", "macro_rules"];

/// Reads `code`, which has its comments, literals and tests blanked (`scan`).
pub(crate) fn read(code: &str) -> Paths {
    let mut reader =
        Reader { tokens: tokens(code), at: 0, inside: Vec::new(), depth: 0, paths: Paths::default() };
    reader.read();
    reader.paths
}

fn tokens(code: &str) -> Vec<(Token<'_>, usize)> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut tokens = Vec::new();
    let (mut rest, mut line) = (code, 1);
    while let Some(first) = rest.chars().next() {
        let (token, length) = if is_word(first) {
            let length = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
            (Some(Token::Word(&rest[..length])), length)
        } else if rest.starts_with("::") {
            (Some(Token::PathSeparator), 2)
        } else {
            line += usize::from(first == '\n');
            ((!first.is_whitespace()).then_some(Token::Sign(first)), first.len_utf8())
        };
        tokens.extend(token.map(|token| (token, line)));
        rest = &rest[length..];
    }
    tokens
}

struct Reader<'a> {
    tokens: Vec<(Token<'a>, usize)>,
    at: usize,
    /// Open inline modules with the depth of their braces.
    inside: Vec<(String, usize)>,
    depth: usize,
    paths: Paths,
}

impl<'a> Reader<'a> {
    fn peek(&self, ahead: usize) -> Option<Token<'a>> {
        self.tokens.get(self.at + ahead).map(|(token, _)| *token)
    }

    fn line(&self) -> usize {
        self.tokens.get(self.at).map_or(0, |(_, line)| *line)
    }

    fn modules(&self) -> Vec<String> {
        self.inside.iter().map(|(name, _)| name.clone()).collect()
    }

    fn read(&mut self) {
        let mut is_public = false;
        while let Some(token) = self.peek(0) {
            match token {
                Token::Sign('{') => self.depth += 1,
                Token::Sign('}') => {
                    if self.inside.last().is_some_and(|(_, depth)| *depth == self.depth) {
                        self.inside.pop();
                    }
                    self.depth = self.depth.saturating_sub(1);
                }
                Token::Word("use") => {
                    self.at += 1;
                    self.use_tree(&[], is_public);
                    is_public = false;
                    continue;
                }
                Token::Word("pub") => {
                    is_public = true;
                    // `pub(crate)`, `pub(in …)`: the path in the brackets is no import.
                    if self.peek(1) == Some(Token::Sign('(')) {
                        while self.peek(0).is_some_and(|token| token != Token::Sign(')')) {
                            self.at += 1;
                        }
                    }
                    self.at += 1;
                    continue;
                }
                Token::Word("mod") => {
                    if let (Some(Token::Word(name)), Some(Token::Sign('{'))) = (self.peek(1), self.peek(2)) {
                        self.depth += 1;
                        self.inside.push((name.to_owned(), self.depth));
                        self.paths.inline_modules.push(self.modules());
                        self.at += 2;
                    }
                }
                Token::Word(keyword) if ITEMS.contains(&keyword) => {
                    let bang = usize::from(self.peek(1) == Some(Token::Sign('!')));
                    if let Some(Token::Word(name)) = self.peek(1 + bang) {
                        self.paths.items.push((self.modules(), name.to_owned()));
                    }
                }
                Token::Word(_) if self.peek(1) == Some(Token::PathSeparator) => self.expression(),
                Token::Word(name) => self.name(name),
                _ => {}
            }
            is_public = false;
            self.at += 1;
        }
    }

    /// A name alone. A lower-case one may be a field or variable unless it is called.
    fn name(&mut self, name: &str) {
        let before = self.at.checked_sub(1).map(|at| self.tokens[at].0);
        let is_called = self.peek(1) == Some(Token::Sign('(')) && before != Some(Token::Sign('.'));
        let is_path_end = before == Some(Token::PathSeparator);
        if !is_path_end && (is_called || name.starts_with(char::is_uppercase)) {
            self.paths.names.insert(name.to_owned());
        }
    }

    /// `a::b::c`, at its first segment; ends at its last token.
    fn expression(&mut self) {
        let line = self.line();
        let mut segments = Vec::new();
        // `<T>::a` and `::a` are no paths from a name in scope.
        let rooted = self.at > 0 && self.tokens[self.at - 1].0 == Token::PathSeparator;
        while let Some(Token::Word(word)) = self.peek(0) {
            segments.push(word.to_owned());
            if self.peek(1) != Some(Token::PathSeparator) {
                break;
            }
            if !matches!(self.peek(2), Some(Token::Word(_))) {
                self.at += 1;
                break;
            }
            self.at += 2;
        }
        if !rooted && segments.len() > 1 {
            self.paths.expressions.push(Path { segments, line, inside: self.modules() });
        }
    }

    /// One tree of a `use`, behind `prefix`; ends behind it, and behind the semicolon if it is the whole.
    fn use_tree(&mut self, prefix: &[String], is_public: bool) {
        let line = self.line();
        let mut segments = prefix.to_vec();
        let mut name: Option<Option<String>> = None;
        while let Some(token) = self.peek(0) {
            self.at += 1;
            match token {
                Token::Word("as") => {
                    if let Some(Token::Word(alias)) = self.peek(0) {
                        name = Some(Some(alias.to_owned()));
                        self.at += 1;
                    }
                }
                Token::Word("self") if !segments.is_empty() => {}
                Token::Word(word) => segments.push(word.to_owned()),
                Token::Sign('*') => name = Some(None),
                Token::Sign('{') => {
                    loop {
                        match self.peek(0) {
                            Some(Token::Sign('}')) | None => break self.at += 1,
                            Some(Token::Sign(',')) => self.at += 1,
                            _ => self.use_tree(&segments, is_public),
                        }
                    }
                    if self.peek(0) == Some(Token::Sign(';')) {
                        self.at += 1;
                    }
                    return;
                }
                Token::PathSeparator => {}
                // The end of the tree; what closes a group stays for the group.
                Token::Sign(sign) => {
                    self.at -= usize::from(sign == '}');
                    break;
                }
            }
        }
        let name = name.unwrap_or_else(|| segments.last().cloned());
        let path = Path { segments, line, inside: self.modules() };
        self.paths.imports.push(Import { path, name, is_public });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn imports(code: &str) -> Vec<String> {
        let shown = |import: &Import| {
            let name = import.name.as_deref().unwrap_or("*");
            let public = if import.is_public { "pub " } else { "" };
            format!("{} {public}{} as {name}", import.path.line, import.path.segments.join("::"))
        };
        read(code).imports.iter().map(shown).collect()
    }

    #[test]
    fn use_trees_are_taken_apart() {
        let code = "use std::fs;\npub(crate) use crate::{a::{self, B as C}, d,\n  e::*};\npub use super::f::G;\nuse self::h;";
        assert_eq!(
            imports(code),
            [
                "1 std::fs as fs",
                "2 pub crate::a as a",
                "2 pub crate::a::B as C",
                "2 pub crate::d as d",
                "3 pub crate::e as *",
                "4 pub super::f::G as G",
                "5 self::h as h",
            ]
        );
    }

    #[test]
    fn expressions_items_and_inline_modules_are_found() {
        let code = "fn f() { crate::a::b(x); let y: super::C<d::E> = Vec::<u8>::new(); }\nmod inner {\n  use super::Z;\n  struct S;\n  fn g() -> crate::q::R { z }\n}\nconst T: u8 = k::l;";
        let paths = read(code);
        let found: Vec<String> = paths
            .expressions
            .iter()
            .map(|path| format!("{} {} {}", path.line, path.inside.join("/"), path.segments.join("::")))
            .collect();
        assert_eq!(found, ["1  crate::a::b", "1  super::C", "1  d::E", "5 inner crate::q::R", "7  k::l"]);
        assert_eq!(paths.inline_modules, [["inner"]]);
        assert_eq!(paths.imports[0].path.inside, ["inner"]);
        let items: Vec<String> =
            paths.items.iter().map(|(inside, name)| format!("{}{name}", inside.join("/"))).collect();
        assert_eq!(items, ["f", "innerS", "innerg", "T"]);
    }
}
