//! The passages of `int8 eval --last-words`.

use std::path::Path;

use serde_json::Value;

use super::read_text;
use crate::failure::Failure;

/// The passages of a JSONL file.
pub(super) fn read_passages(path: &Path) -> Result<Vec<String>, Failure> {
    let text = read_text("--last-words", path)?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let passages: Vec<String> = lines
        .map(|(number, line)| {
            let object: Value = serde_json::from_str(line).map_err(|error| {
                Failure::new(format!("--last-words {}: line {}: {error}", path.display(), number + 1))
            })?;
            object["text"].as_str().map(str::to_owned).ok_or_else(|| {
                Failure::new(format!(
                    "--last-words {}: line {}: expected an object with a string \"text\", as {{\"text\": \"… word\"}}",
                    path.display(),
                    number + 1
                ))
            })
        })
        .collect::<Result<_, _>>()?;
    if passages.is_empty() {
        return Err(Failure::new(format!("--last-words {}: no passages", path.display())));
    }
    Ok(passages)
}
