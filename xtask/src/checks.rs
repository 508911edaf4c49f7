//! `cargo xtask test`: everything a change must pass, quick checks first.

use std::process::Command;
use std::time::{Duration, Instant};

use crate::{shell, tidy};

/// Shown by `cargo xtask help test`.
pub(crate) const HELP: &str = "\
cargo xtask test

Runs, and stops at the first failure:

  tidy    the invariants of ARCHITECTURE.md (cargo xtask tidy)
  format  cargo fmt --check
  lints   cargo clippy --all-targets, warnings denied
  tests   unit and integration tests, and the examples in the documentation and the READMEs
  benches every bench once in its test mode (--test), untimed, so that it cannot rot
  docs    cargo doc, warnings denied

Only the default members: the CUDA crates need a toolkit (cargo xtask cuda-toolkit). Ends with the time of each step.";

/// Runs the task; it takes no arguments.
pub(crate) fn run(arguments: &[String]) -> Result<(), String> {
    if !arguments.is_empty() {
        return Err(format!("test takes no arguments, got {arguments:?}\n\n{HELP}"));
    }
    let mut times = Vec::new();
    timed(&mut times, "tidy", || tidy::run(&[]))?;
    for (name, command) in steps()? {
        println!("\n── {name}: {}", shell::shown(&command));
        timed(&mut times, name, || shell::run(command))?;
    }
    println!("\nall passed");
    for (name, time) in times {
        println!("  {name:<8}{:>7.1} s", time.as_secs_f64());
    }
    Ok(())
}

fn timed(
    times: &mut Vec<(&'static str, Duration)>,
    name: &'static str,
    step: impl FnOnce() -> Result<(), String>,
) -> Result<(), String> {
    let start = Instant::now();
    step().map_err(|message| format!("\n{name}: {message}"))?;
    times.push((name, start.elapsed()));
    Ok(())
}

fn steps() -> Result<Vec<(&'static str, Command)>, String> {
    let mut docs = shell::cargo(&["doc", "--no-deps"])?;
    docs.env("RUSTDOCFLAGS", "-D warnings");
    Ok(vec![
        ("format", shell::cargo(&["fmt", "--all", "--check"])?),
        ("lints", shell::cargo(&["clippy", "--all-targets", "--", "-D", "warnings"])?),
        ("tests", shell::cargo(&["test"])?),
        // As tests, so that the crates are not compiled once more in release mode.
        ("benches", shell::cargo(&["test", "--bench", "*", "--", "--test"])?),
        ("docs", docs),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_step_stops_and_is_named() {
        let mut times = Vec::new();
        let message = timed(&mut times, "lints", || Err(String::from("a warning"))).expect_err("failed");
        assert!(message.contains("lints: a warning") && times.is_empty());
        assert!(timed(&mut times, "docs", || Ok(())).is_ok());
        assert_eq!(times.len(), 1);
    }

    #[test]
    fn arguments_are_refused() {
        let message = run(&[String::from("--fast")]).expect_err("no such argument");
        assert!(message.contains("--fast"), "{message}");
    }

    #[test]
    fn warnings_are_denied() {
        let steps = steps().expect("steps");
        let lints = steps.iter().find(|(name, _)| *name == "lints").map(|(_, command)| shell::shown(command));
        assert_eq!(lints.as_deref(), Some("cargo clippy --all-targets -- -D warnings"));
        let docs = steps.iter().find(|(name, _)| *name == "docs").expect("a docs step");
        assert!(docs.1.get_envs().any(|(key, value)| {
            key == "RUSTDOCFLAGS" && value.is_some_and(|value| value == "-D warnings")
        }));
    }
}
