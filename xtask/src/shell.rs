//! Running cargo, and where the workspace is.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// The folder of the workspace's `Cargo.toml`.
pub(crate) fn workspace_root() -> Result<PathBuf, String> {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().map(Path::to_path_buf).ok_or_else(|| String::from("xtask lies outside a workspace"))
}

/// The cargo that runs this program, in the workspace's root.
pub(crate) fn cargo(arguments: &[&str]) -> Result<Command, String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let mut command = Command::new(cargo);
    command.args(arguments).current_dir(workspace_root()?);
    Ok(command)
}

/// Runs to the end with this program's own output; an exit code other than 0 is an error.
pub(crate) fn run(mut command: Command) -> Result<(), String> {
    let line = shown(&command);
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("`{line}` failed: {status}")),
        Err(error) => Err(format!("`{line}` could not be started: {error}")),
    }
}

/// Runs to the end and returns its standard output.
pub(crate) fn output(mut command: Command) -> Result<Vec<u8>, String> {
    let line = shown(&command);
    let output = command.output().map_err(|error| format!("`{line}` could not be started: {error}"))?;
    if output.status.success() {
        Ok(output.stdout)
    } else {
        Err(format!("`{line}` failed: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr)))
    }
}

/// `cargo metadata` of the workspace's own packages.
pub(crate) fn metadata() -> Result<Value, String> {
    let text = output(cargo(&["metadata", "--no-deps", "--format-version", "1"])?)?;
    serde_json::from_slice(&text).map_err(|error| format!("cargo metadata: {error}"))
}

/// `cargo metadata` of all packages that are built here, with all features.
pub(crate) fn metadata_of_all() -> Result<Value, String> {
    let version = output({
        let mut rustc = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| OsString::from("rustc")));
        rustc.arg("-vV");
        rustc
    })?;
    let version = String::from_utf8_lossy(&version);
    let host =
        version.lines().find_map(|line| line.strip_prefix("host: ")).ok_or("rustc -vV names no host")?;
    let arguments =
        ["metadata", "--format-version", "1", "--locked", "--all-features", "--filter-platform", host];
    let text = output(cargo(&arguments)?)?;
    serde_json::from_slice(&text).map_err(|error| format!("cargo metadata: {error}"))
}

/// The command line as text.
pub(crate) fn shown(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_stem().unwrap_or_default();
    let words = std::iter::once(program).chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_command_is_an_error_that_names_it() {
        let command = cargo(&["no-such-subcommand"]).expect("a command");
        assert_eq!(shown(&command), "cargo no-such-subcommand");
        let message = output(command).expect_err("there is no such subcommand");
        assert!(message.starts_with("`cargo no-such-subcommand` failed"), "{message}");
    }

    #[test]
    fn the_root_holds_the_workspace() {
        let manifest = workspace_root().expect("a workspace").join("Cargo.toml");
        assert!(std::fs::read_to_string(manifest).expect("a manifest").contains("[workspace]"));
    }
}
