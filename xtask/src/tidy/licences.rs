//! Every crate that ours are built from has a licence of deny.toml's list and comes from crates.io. `cargo deny check` looks deeper
//! (advisories, licence texts); this needs no tool to be installed.

use std::collections::BTreeSet;

use serde_json::Value;

/// The registry as `cargo metadata` names it.
const REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// `metadata`: of all packages. `deny`: the text of deny.toml.
pub(super) fn violations(metadata: &Value, deny: &str) -> Vec<String> {
    let allowed = allowed(deny);
    let mut violations = Vec::new();
    for package in metadata["packages"].as_array().map(Vec::as_slice).unwrap_or_default() {
        let name = format!("{} {}", text(package, "name"), text(package, "version"));
        if !package["source"].is_null() && text(package, "source") != REGISTRY {
            violations.push(format!("{name}: comes from {}, not from crates.io", text(package, "source")));
        }
        let licence = text(package, "license");
        if !permits(licence, &allowed) {
            violations.push(format!("{name}: licence `{licence}` is not on the list of deny.toml"));
        }
    }
    violations
}

fn text<'a>(package: &'a Value, key: &str) -> &'a str {
    package[key].as_str().unwrap_or_default()
}

/// The quoted names in the list `allow` of the section `[licenses]`.
fn allowed(deny: &str) -> BTreeSet<&str> {
    let section = deny.lines().skip_while(|line| *line != "[licenses]").skip(1);
    let list = section.skip_while(|line| !line.starts_with("allow")).skip(1).take_while(|line| *line != "]");
    list.filter_map(|line| line.split('"').nth(1)).collect()
}

/// Whether an SPDX expression can be met: one of the alternatives, all of whose parts are allowed. Alternatives inside
/// parentheses belong to one part.
fn permits(expression: &str, allowed: &BTreeSet<&str>) -> bool {
    let expression = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let words: Vec<&str> = expression.split_whitespace().collect();
    let mut at = 0;
    !words.is_empty() && alternatives(&words, &mut at, allowed) && at == words.len()
}

fn alternatives(words: &[&str], at: &mut usize, allowed: &BTreeSet<&str>) -> bool {
    let mut met = parts(words, at, allowed);
    while words.get(*at) == Some(&"OR") {
        *at += 1;
        met |= parts(words, at, allowed);
    }
    met
}

fn parts(words: &[&str], at: &mut usize, allowed: &BTreeSet<&str>) -> bool {
    let mut met = part(words, at, allowed);
    while words.get(*at) == Some(&"AND") {
        *at += 1;
        met &= part(words, at, allowed);
    }
    met
}

fn part(words: &[&str], at: &mut usize, allowed: &BTreeSet<&str>) -> bool {
    let Some(word) = words.get(*at) else { return false };
    *at += 1;
    if *word == "(" {
        let met = alternatives(words, at, allowed);
        *at += 1;
        return met && words.get(*at - 1) == Some(&")");
    }
    // An exception only permits more.
    if words.get(*at) == Some(&"WITH") {
        *at += 2;
    }
    allowed.contains(word)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const DENY: &str = "[licenses]\nallow = [\n    \"MIT\", # why\n    \"Apache-2.0\",\n]\n[bans]\nallow = [\n    \"GPL-3.0\"\n]\n";

    #[test]
    fn expressions_are_met_or_not() {
        let allowed = allowed(DENY);
        assert_eq!(allowed, BTreeSet::from(["Apache-2.0", "MIT"]));
        for (expression, met) in [
            ("MIT", true),
            ("MIT OR GPL-3.0", true),
            ("GPL-3.0/MIT", true),
            ("MIT AND GPL-3.0", false),
            ("(GPL-3.0 OR MIT) AND Apache-2.0", true),
            ("GPL-3.0 AND (MIT OR Apache-2.0)", false),
            ("Apache-2.0 WITH LLVM-exception", true),
            ("GPL-3.0", false),
            ("", false),
            ("MIT )", false),
        ] {
            assert_eq!(permits(expression, &allowed), met, "{expression}");
        }
    }

    #[test]
    fn origins_and_licences_are_checked() {
        let package = |source: Value, license: &str| {
            violations(
                &json!({"packages": [{"name": "a", "version": "1", "source": source, "license": license}]}),
                DENY,
            )
        };
        assert!(package(Value::Null, "MIT").is_empty() && package(json!(REGISTRY), "MIT").is_empty());
        assert_eq!(package(json!("git+https://example.org/a"), "MIT").len(), 1);
        assert_eq!(package(json!(REGISTRY), "Proprietary").len(), 1);
    }
}
