//! `cargo xtask test`: everything a change must pass, quick checks first.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::{cuda_toolkit, shell, tidy};

/// Shown by `cargo xtask help test`.
pub(crate) const HELP: &str = "\
cargo xtask test [--no-cuda]

Runs, and stops at the first failure:

  tidy         the invariants of ARCHITECTURE.md (cargo xtask tidy)
  format       cargo fmt --check
  lints        cargo clippy --all-targets, warnings denied
  tests        unit and integration tests, and the examples in the documentation and the READMEs
  benches      every bench once in its test mode (--test), untimed, so that it cannot rot
  docs         cargo doc, warnings denied
  cuda toolkit cargo xtask cuda-toolkit, unless CUDA_PATH names an installed toolkit
  cuda lints   the same three for the CUDA crates, whose kernels are compiled once, for the tests; lints also for `int8`
  cuda tests   with the feature cuda
  cuda docs
  cuda int8    `int8` with the feature cuda is built, and reports what is missing without a GPU

The property tests draw from one seed here, so that the outcome depends on the change alone. `cargo test` draws new
cases each time; PROPTEST_RNG_SEED, a number, chooses others here, too.

The CUDA steps compile and link everything without a GPU; the tests that need one say so and are skipped
(INT8_REQUIRE_GPU=1 makes that a failure). They run on x86-64 Linux, and need Python with pip, a C++ compiler and some
560 MB of downloads, once.

  --no-cuda    skip them

Ends with the time of each step.";

const NO_CUDA: &str = "--no-cuda";

/// Runs the task.
pub(crate) fn run(arguments: &[String]) -> Result<(), String> {
    if let Some(unknown) = arguments.iter().find(|argument| *argument != NO_CUDA) {
        return Err(format!("test does not know `{unknown}`\n\n{HELP}"));
    }
    let mut times = Vec::new();
    timed(&mut times, "tidy", || tidy::run(&[]))?;
    run_steps(&mut times, steps()?)?;
    let skipped = why_no_cuda(arguments);
    if skipped.is_none() {
        println!("\n── cuda toolkit");
        let toolkit = timed(&mut times, "cuda toolkit", || {
            cuda_toolkit::provide()
                .map_err(|message| format!("{message}\n`cargo xtask test {NO_CUDA}` skips the CUDA crates"))
        })?;
        run_steps(&mut times, cuda_steps(&toolkit)?)?;
    }
    println!("\nall passed");
    for (name, time) in times {
        println!("  {name:<13}{:>7.1} s", time.as_secs_f64());
    }
    if let Some(reason) = skipped {
        println!("  cuda: skipped, {reason}");
    }
    Ok(())
}

/// Why the CUDA steps do not run, if they do not.
fn why_no_cuda(arguments: &[String]) -> Option<&'static str> {
    if !arguments.is_empty() {
        return Some("because of --no-cuda");
    }
    let supported = cfg!(all(target_os = "linux", target_arch = "x86_64"));
    (!supported).then_some("the toolkit's wheels are used on x86-64 Linux only")
}

type Times = Vec<(&'static str, Duration)>;

fn run_steps(times: &mut Times, steps: Vec<(&'static str, Command)>) -> Result<(), String> {
    for (name, command) in steps {
        println!("\n── {name}: {}", shell::shown(&command));
        timed(times, name, || shell::run(command))?;
    }
    Ok(())
}

fn timed<R>(
    times: &mut Times,
    name: &'static str,
    step: impl FnOnce() -> Result<R, String>,
) -> Result<R, String> {
    let start = Instant::now();
    let result = step().map_err(|message| format!("\n{name}: {message}"))?;
    times.push((name, start.elapsed()));
    Ok(result)
}

fn steps() -> Result<Vec<(&'static str, Command)>, String> {
    let mut docs = shell::cargo(&["doc", "--no-deps"])?;
    docs.env("RUSTDOCFLAGS", "-D warnings");
    Ok(vec![
        ("format", shell::cargo(&["fmt", "--all", "--check"])?),
        ("lints", shell::cargo(&["clippy", "--all-targets", "--", "-D", "warnings"])?),
        ("tests", seeded(shell::cargo(&["test"])?)),
        // As tests, so that the crates are not compiled once more in release mode.
        ("benches", shell::cargo(&["test", "--bench", "*", "--", "--test"])?),
        ("docs", docs),
    ])
}

/// The variable that proptest reads its seed from.
const SEED: &str = "PROPTEST_RNG_SEED";

/// With a seed for the property tests, unless the caller has chosen one.
fn seeded(mut tests: Command) -> Command {
    if std::env::var_os(SEED).is_none() {
        tests.env(SEED, "8");
    }
    tests
}

/// The test of `int8` whose command lines must fail, and with which words.
const MISTAKES: &str = "mistakes_are_explained";

const CUDA_CRATES: [&str; 4] = ["-p", "int8-cuda-sys", "-p", "int8-cuda"];

fn cuda_steps(toolkit: &Path) -> Result<Vec<(&'static str, Command)>, String> {
    let cargo = |before: &[&str], after: &[&str]| {
        let mut command = shell::cargo(&[before, &CUDA_CRATES, after].concat())?;
        command.env("CUDA_PATH", toolkit).env("CUDA_LIBRARY_PATH", toolkit);
        Ok::<_, String>(command)
    };
    let mut lints = cargo(
        &["clippy", "-p", "int8-cli", "--features", "int8-cli/cuda"],
        &["--all-targets", "--", "-D", "warnings"],
    )?;
    // Clippy has a build-script run of its own, which would compile the kernels a second time.
    lints.env("INT8_CUDA_WITHOUT_KERNELS", "1");
    let mut docs = cargo(&["doc", "--no-deps"], &[])?;
    docs.env("RUSTDOCFLAGS", "-D warnings");
    // For all default members, as the step "tests": dependencies then have the same features and are not compiled again.
    let mut int8 =
        shell::cargo(&["test", "--features", "int8-cli/cuda", "--test", "command_line", MISTAKES])?;
    int8.env("CUDA_PATH", toolkit).env("CUDA_LIBRARY_PATH", toolkit);
    let tests = seeded(cargo(&["test"], &[])?);
    Ok(vec![("cuda lints", lints), ("cuda tests", tests), ("cuda docs", docs), ("cuda int8", int8)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_step_stops_and_is_named() {
        let mut times = Vec::new();
        let message =
            timed(&mut times, "lints", || Err::<(), _>(String::from("a warning"))).expect_err("failed");
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
    fn cuda_can_be_skipped() {
        assert!(why_no_cuda(&[String::from(NO_CUDA)]).is_some());
        assert_eq!(why_no_cuda(&[]).is_none(), cfg!(all(target_os = "linux", target_arch = "x86_64")));
    }

    #[test]
    fn clippy_does_not_compile_the_kernels() {
        for (name, command) in cuda_steps(Path::new("/a/toolkit")).expect("steps") {
            let line = shell::shown(&command);
            assert!(line.contains("-p int8-cuda-sys -p int8-cuda") || name == "cuda int8", "{line}");
            let without = command.get_envs().any(|(key, _)| key == "INT8_CUDA_WITHOUT_KERNELS");
            assert_eq!(without, name == "cuda lints", "{line}");
            assert!(command.get_envs().any(|(key, value)| {
                key == "CUDA_PATH" && value.is_some_and(|value| value == "/a/toolkit")
            }));
        }
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
