//! `cargo xtask tidy`: the invariants of ARCHITECTURE.md that neither the compiler nor Clippy checks.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::Path;

use serde_json::Value;

use crate::{imports, scan, shell};

/// Shown by `cargo xtask help tidy`.
pub(crate) const HELP: &str = "\
cargo xtask tidy [--imports CRATE]

Checks, and lists every violation:

  edges     a crate depends on no crate of ours but those that ARCHITECTURE.md allows; int8-core on three others at most
  imports   no cycle between the files of a crate, and no import that points upward in the declared order of its folders
  members   every member, default and exclusion of the workspace has a comment
  docs      every source file begins with a module doc (//!)
  ignored   no #[ignore]
  ci        .ci/run ends with the test command of README.md
  length    source files of at most 800 lines
  licences  every crate that is built has a licence of deny.toml's list and comes from crates.io

The lints of Cargo.toml check the rest: unsafe code, printing, unfinished code, lints switched off without a reason.

  --imports CRATE   print which file imports which, by levels, and check nothing";

/// Dependencies of each crate among ours, of any kind. A crate that is not listed may not exist.
const ALLOWED_EDGES: [(&str, &[&str]); 7] = [
    ("int8-core", &[]),
    ("int8-cpu", &["int8-core"]),
    ("int8-cuda-sys", &[]),
    ("int8-cuda", &["int8-core", "int8-cuda-sys"]),
    ("int8-nn", &["int8-core", "int8-cpu", "int8-cuda"]),
    // core beside nn: the names of schemes, rules and granularities that a user types are core's types.
    // cpu, cuda: `int8 bench` times single layers, which a model has no API for.
    ("int8-cli", &["int8-core", "int8-cpu", "int8-cuda", "int8-nn"]),
    ("xtask", &[]),
];

/// Edges that only a feature may switch on: nothing pulls in CUDA by default.
const OPTIONAL_EDGES: [(&str, &str); 2] = [("int8-nn", "int8-cuda"), ("int8-cli", "int8-cuda")];

/// External crates that int8-core may use outside its tests.
const CORE_DEPENDENCIES: [&str; 3] = ["half", "ndarray", "thiserror"];

const MAX_LINES: usize = 800;

/// Folders of the workspace that hold no source of ours.
const SKIPPED_FOLDERS: [&str; 3] = ["target", "corpus", "artifacts"];
/// Hand-written source, by the end of its name.
const SOURCE_ENDINGS: [&str; 8] = ["rs", "cu", "cuh", "cpp", "hpp", "h", "cmake", "py"];

/// Runs the task.
pub(crate) fn run(arguments: &[String]) -> Result<(), String> {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        [] => check(),
        ["--imports", name] => {
            let mut files = Vec::new();
            source_files(&shell::workspace_root()?, name, &mut files)?;
            // A reader may stop early, as `head` does.
            let _ = writeln!(std::io::stdout(), "{}", imports::picture(name, &files)?);
            Ok(())
        }
        _ => Err(format!("tidy does not know {arguments:?}\n\n{HELP}")),
    }
}

fn check() -> Result<(), String> {
    let root = shell::workspace_root()?;
    let metadata = shell::metadata()?;
    let manifest = read(&root, "Cargo.toml")?;

    let mut violations = crate_edges(&metadata);
    violations.extend(member_comments(&manifest));
    let [readme, ci] = [read(&root, "README.md")?, read(&root, ".ci/run")?];
    violations.extend(ci_differs(&readme, &ci));
    let mut files = Vec::new();
    source_files(&root, "", &mut files)?;
    for (path, text) in &files {
        violations.extend(file_violations(path, text));
    }
    violations.extend(imports::violations(&files));
    violations.extend(licences::violations(&shell::metadata_of_all()?, &read(&root, "deny.toml")?));
    if violations.is_empty() {
        println!("tidy: {} source files", files.len());
        return Ok(());
    }
    violations.sort();
    Err(format!("tidy found {}:\n  {}", violations.len(), violations.join("\n  ")))
}

fn crate_edges(metadata: &Value) -> Vec<String> {
    let mut violations = Vec::new();
    let packages = metadata["packages"].as_array().map(Vec::as_slice).unwrap_or_default();
    let names: BTreeSet<&str> = packages.iter().filter_map(|package| package["name"].as_str()).collect();
    for package in packages {
        let name = package["name"].as_str().unwrap_or_default();
        let Some((_, allowed)) = ALLOWED_EDGES.iter().find(|(known, _)| *known == name) else {
            violations.push(format!("{name}: missing in ALLOWED_EDGES of xtask/src/tidy.rs"));
            continue;
        };
        for dependency in package["dependencies"].as_array().map(Vec::as_slice).unwrap_or_default() {
            let to = dependency["name"].as_str().unwrap_or_default();
            let ours = names.contains(to);
            if ours && !allowed.contains(&to) {
                violations.push(format!("{name}: may not depend on {to}; allowed: {allowed:?}"));
            }
            if OPTIONAL_EDGES.contains(&(name, to)) && dependency["optional"] != true {
                violations.push(format!("{name}: its dependency on {to} must be optional, behind a feature"));
            }
            let normal = dependency["kind"].is_null();
            if name == "int8-core" && normal && !ours && !CORE_DEPENDENCIES.contains(&to) {
                violations.push(format!("int8-core: depends on {to}; allowed: {CORE_DEPENDENCIES:?}"));
            }
        }
    }
    violations
}

/// Every quoted name in the lists `members`, `default-members` and `exclude` has a comment on its line, or its list has
/// one directly above.
fn member_comments(manifest: &str) -> Vec<String> {
    let mut violations = Vec::new();
    let mut list: Option<(&str, bool)> = None;
    let mut comment_above = false;
    for line in manifest.lines() {
        let (code, comment) =
            line.split_once('#').map_or((line, None), |(code, comment)| (code, Some(comment)));
        let commented = comment.is_some_and(|comment| !comment.trim().is_empty());
        let opening = ["members", "default-members", "exclude"]
            .into_iter()
            .find(|name| code.split('=').next().is_some_and(|key| key.trim() == *name));
        if let Some(name) = opening {
            list = Some((name, comment_above));
        }
        if let Some((name, list_commented)) = list {
            // Members are explained one by one; for the other lists one reason covers all.
            let explained = commented || (list_commented && name != "members");
            let names = code.split('"').skip(1).step_by(2);
            violations.extend(
                names
                    .filter(|_| !explained)
                    .map(|entry| format!("Cargo.toml: `{entry}` in `{name}` has no comment")),
            );
            if code.contains(']') {
                list = None;
            }
        }
        comment_above = code.trim().is_empty() && commented;
    }
    violations
}

/// The first command under the heading `## Test` of the README is the last line of `.ci/run`.
fn ci_differs(readme: &str, ci: &str) -> Option<String> {
    let section = readme.lines().skip_while(|line| *line != "## Test");
    let documented = section.skip_while(|line| !line.starts_with("```")).nth(1);
    let run = ci.lines().rfind(|line| !line.trim().is_empty());
    let differs = documented.is_none() || documented != run;
    differs.then(|| format!(".ci/run: runs {run:?}, the README's test command is {documented:?}"))
}

fn read(root: &Path, name: &str) -> Result<String, String> {
    fs::read_to_string(root.join(name)).map_err(|error| format!("{name}: {error}"))
}

/// Collects the source files below `folder` (relative to `root`, with `/`), without hidden folders and build output.
fn source_files(root: &Path, folder: &str, files: &mut Vec<(String, String)>) -> Result<(), String> {
    let at = root.join(folder);
    let entries = fs::read_dir(&at).map_err(|error| format!("{}: {error}", at.display()))?;
    for entry in entries {
        let entry = entry.map_err(|error| format!("{}: {error}", at.display()))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = if folder.is_empty() { name.clone() } else { format!("{folder}/{name}") };
        let kind = entry.file_type().map_err(|error| format!("{path}: {error}"))?;
        if kind.is_dir() && !name.starts_with('.') && !SKIPPED_FOLDERS.contains(&name.as_str()) {
            source_files(root, &path, files)?;
        }
        let is_source = name.rsplit_once('.').is_some_and(|(_, ending)| SOURCE_ENDINGS.contains(&ending));
        if kind.is_file() && is_source {
            let text = fs::read_to_string(entry.path()).map_err(|error| format!("{path}: {error}"))?;
            files.push((path, text));
        }
    }
    Ok(())
}

/// The violations of one file; `path` is relative to the workspace, with `/`.
fn file_violations(path: &str, text: &str) -> Vec<String> {
    let mut violations = Vec::new();
    let lines = text.lines().count();
    if lines > MAX_LINES {
        violations
            .push(format!("{path}: {lines} lines; at most {MAX_LINES}: split it where its subject changes"));
    }
    if !path.ends_with(".rs") {
        return violations;
    }
    let is_doc = |line: &str| line.starts_with("//! ") || line.starts_with("#![doc = include_str!");
    if !text.lines().find(|line| !line.trim().is_empty()).is_some_and(is_doc) {
        violations.push(format!("{path}:1: begins without a module doc (//!)"));
    }
    let code = scan::code_only(text);
    let ignored = code.lines().enumerate().filter(|(_, line)| line.contains("#[ignore"));
    violations.extend(ignored.map(|(index, _)| {
        format!("{path}:{}: `#[ignore]`: a test that cannot run skips with a message", index + 1)
    }));
    violations
}

mod licences;
#[cfg(test)]
mod tests;
