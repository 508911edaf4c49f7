//! Rust source with its comments, strings and tests blanked, so that a search finds code alone.

/// `source` with everything in comments, string literals and character literals replaced by spaces. Line breaks stay, so
/// that line numbers do.
pub(crate) fn code_only(source: &str) -> String {
    let mut rest = source;
    let mut code = String::with_capacity(source.len());
    while let Some(first) = rest.chars().next() {
        let skipped = comment(rest).or_else(|| raw_string(rest, &code)).or_else(|| literal(rest));
        match skipped {
            Some(length) => {
                let (skipped, tail) = rest.split_at(length);
                code.extend(skipped.chars().map(|c| if c == '\n' { c } else { ' ' }));
                rest = tail;
            }
            None => {
                code.push(first);
                rest = &rest[first.len_utf8()..];
            }
        }
    }
    code
}

/// `code` (from [`code_only`]) with every `#[cfg(test)] mod … { … }` blanked.
pub(crate) fn without_tests(code: &str) -> String {
    let mut result = code.to_owned();
    while let Some(start) = result.find("#[cfg(test)]") {
        let end = end_of_item(&result[start..]).map_or(result.len(), |length| start + length);
        let blank: String = result[start..end].chars().map(|c| if c == '\n' { c } else { ' ' }).collect();
        result.replace_range(start..end, &blank);
    }
    result
}

/// Length of the comment that starts here; block comments nest.
fn comment(text: &str) -> Option<usize> {
    if text.starts_with("//") {
        return Some(text.find('\n').unwrap_or(text.len()));
    }
    if !text.starts_with("/*") {
        return None;
    }
    let (mut depth, mut at) = (0_usize, 0);
    while at < text.len() {
        if text[at..].starts_with("/*") {
            depth += 1;
            at += 2;
        } else if text[at..].starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return Some(at);
            }
        } else {
            at += text[at..].chars().next().map_or(1, char::len_utf8);
        }
    }
    Some(text.len())
}

/// Length of the raw string `r"…"`, `r#"…"#`, `br"…"` that starts here, unless an identifier ends in that `r`.
fn raw_string(text: &str, before: &str) -> Option<usize> {
    if before.ends_with(|c: char| c.is_alphanumeric() || c == '_') {
        return None;
    }
    let body = text.strip_prefix("br").or_else(|| text.strip_prefix('r'))?;
    let hashes = body.len() - body.trim_start_matches('#').len();
    let body = body[hashes..].strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(hashes));
    let opening = text.len() - body.len();
    Some(body.find(&end).map_or(text.len(), |at| opening + at + end.len()))
}

/// Length of the string or character literal that starts here; `None` for a lifetime.
fn literal(text: &str) -> Option<usize> {
    let quote = text.chars().next().filter(|c| matches!(c, '"' | '\''))?;
    let mut characters = text.char_indices().skip(1);
    let mut inside = 0;
    while let Some((at, c)) = characters.next() {
        if c == quote && (quote == '"' || inside > 0) {
            return Some(at + 1);
        }
        inside += 1;
        if c == '\\' {
            characters.next();
            // An escape is the whole of a character literal, however long (`'\u{1F600}'`).
            continue;
        }
        let is_lifetime = quote == '\'' && inside == 1 && !text[at + c.len_utf8()..].starts_with('\'');
        if is_lifetime {
            return None;
        }
    }
    Some(text.len())
}

/// Length up to the end of the item that starts here: its closing brace, or its semicolon if that comes first.
fn end_of_item(code: &str) -> Option<usize> {
    let open = code.find('{')?;
    if let Some(semicolon) = code.find(';').filter(|semicolon| *semicolon < open) {
        return Some(semicolon + 1);
    }
    let mut depth = 0_usize;
    for (at, c) in code[open..].char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 1 => return Some(open + at + 1),
            '}' => depth -= 1,
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_literals_are_blanked() {
        for (source, words) in [
            ("a // unsafe\nb", "a b"),
            ("a /* x /* y */ z */ b", "a b"),
            ("a /* open", "a"),
            ("f(\"unsafe \\\" x\") g", "f( ) g"),
            ("r#\"a\"b\"# c", "c"),
            ("br\"a\" c", "c"),
            ("for\"a\"", "for"),
            ("'\"' x '\\'' y", "x y"),
            ("'\\u{1F600}' y", "y"),
            ("fn f<'a>(x: &'a str) {}", "fn f<'a>(x: &'a str) {}"),
            ("'é' ü", "ü"),
            ("\"a\nb\" c", "c"),
            ("\"//\" d", "d"),
        ] {
            let code = code_only(source);
            assert_eq!(code.split_whitespace().collect::<Vec<_>>().join(" "), words, "{source}");
            assert_eq!(code.chars().count(), source.chars().count(), "{source}");
            assert_eq!(code.lines().count(), source.lines().count(), "{source}");
        }
    }

    #[test]
    fn tests_are_blanked() {
        let code = "fn a() {}\n#[cfg(test)]\nmod tests { fn b() { x!() } }\nfn c() {}\n#[cfg(test)]\nmod more;\nfn d() {}";
        let rest = without_tests(code);
        assert!(["fn a", "fn c", "fn d"].iter().all(|kept| rest.contains(kept)), "{rest}");
        assert!(!rest.contains("x!") && !rest.contains("more"), "{rest}");
        assert_eq!(rest.lines().count(), code.lines().count());
    }
}
