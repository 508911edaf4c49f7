//! docs/json.md against what a command printed.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde_json::Value;

/// Paths and types of the page's section `## int8 NAME`.
fn section(name: &str) -> Vec<(String, String)> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/json.md");
    let page = fs::read_to_string(page).expect("the page");
    let title = format!("## int8 {name}");
    let lines =
        page.lines().skip_while(|line| **line != title).skip(1).take_while(|line| !line.starts_with("## "));
    let cells = lines.filter_map(|line| line.strip_prefix("| `")?.split_once("` | "));
    let rows = cells.map(|(path, rest)| (path.to_owned(), rest.split(' ').next().unwrap_or("").to_owned()));
    let rows: Vec<_> = rows.collect();
    assert!(!rows.is_empty(), "docs/json.md has no section {title}");
    rows
}

/// Paths of the values in `value`, with their types; a documented `object` or `array` is not entered.
fn walk(value: &Value, path: &str, rows: &[(String, String)], found: &mut BTreeSet<(String, &'static str)>) {
    let closed = rows.iter().any(|(row, kind)| row == path && (kind == "object" || kind == "array"));
    let has_parts = rows
        .iter()
        .any(|(row, _)| row.starts_with(&format!("{path}.")) || row.starts_with(&format!("{path}[")));
    match value {
        Value::Object(object) if path.is_empty() || has_parts || !closed => {
            for (key, value) in object {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                walk(value, &path, rows, found);
            }
        }
        Value::Array(array) if !closed || has_parts => {
            for value in array {
                walk(value, &format!("{path}[]"), rows, found);
            }
        }
        Value::Null => {}
        value => {
            let kind = match value {
                Value::Bool(_) => "boolean",
                Value::Number(number) if number.is_f64() => "number",
                Value::Number(_) => "integer",
                Value::String(_) => "text",
                Value::Array(_) => "array",
                _ => "object",
            };
            found.insert((path.to_owned(), kind));
        }
    }
}

/// The faults: keys and types that the page does not have, and first keys of the page that were not printed.
fn faults(name: &str, printed: &Value) -> Vec<String> {
    let rows = section(name);
    let mut found = BTreeSet::new();
    walk(printed, "", &rows, &mut found);
    let fits = |path: &str, kind: &str| {
        rows.iter().any(|(row, documented)| {
            row == path && (documented == kind || documented == "number" && kind == "integer")
        })
    };
    let unknown = found.iter().filter(|(path, kind)| !fits(path, kind));
    let mut faults: Vec<_> = unknown.map(|(path, kind)| format!("{name} prints {path} ({kind})")).collect();
    for (row, _) in &rows {
        let first = row.split(['.', '[']).next().unwrap_or(row);
        if printed.get(first).is_none() {
            faults.push(format!("{name} does not print {first}"));
        }
    }
    faults
}

/// Checks that the page describes what `int8 NAME --json` printed.
pub(crate) fn check(name: &str, printed: &Value) {
    let faults = faults(name, printed);
    assert!(faults.is_empty(), "docs/json.md: {faults:#?}");
    // The comparison itself fails where it must.
    let mut other = printed.clone();
    other["unheard_of"] = Value::Bool(true);
    assert!(!self::faults(name, &other).is_empty());
}
