//! `cargo xtask test`: everything a change must pass, quick checks first.

use std::env;
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
  lints        cargo clippy without CUDA, warnings denied (all targets with --no-cuda)
  cuda toolkit cargo xtask cuda-toolkit, unless CUDA_PATH names an installed toolkit
  cuda lints   cargo clippy --all-targets of every crate with the feature cuda; the kernels are not compiled for it
  tests        unit and integration tests of every crate with the feature cuda, and the examples in the documentation and the
               READMEs; compiles the kernels
  benches      every bench once in its test mode (--test), untimed, so that it cannot rot
  docs         cargo doc of every crate, warnings denied

The property tests draw from one seed here, so that the outcome depends on the change alone. `cargo test` draws new
cases each time; PROPTEST_RNG_SEED, a number, chooses others here, too.

Everything compiles and links without a GPU; the tests that need one say so and are skipped
(INT8_REQUIRE_GPU=1 makes that a failure). Without one the kernels are compiled for compute capability 9.0 alone, which halves
the time of it; INT8_CUDA_ARCHITECTURES chooses others. The toolkit serves x86-64 Linux, and needs Python with pip, a C++ compiler and some
560 MB of downloads, once.

  --no-cuda    without the CUDA crates and the feature cuda

Ends with the time of each step.";

const NO_CUDA: &str = "--no-cuda";

/// Runs the task.
pub(crate) fn run(arguments: &[String]) -> Result<(), String> {
    if let Some(unknown) = arguments.iter().find(|argument| *argument != NO_CUDA) {
        return Err(format!("test does not know `{unknown}`\n\n{HELP}"));
    }
    let mut times = Vec::new();
    timed(&mut times, "tidy", || tidy::run(&[]))?;
    let skipped = why_no_cuda(arguments);
    run_steps(&mut times, quick_steps(skipped.is_some())?)?;
    let toolkit = if skipped.is_none() {
        println!("\n── cuda toolkit");
        let provided = timed(&mut times, "cuda toolkit", || {
            cuda_toolkit::provide()
                .map_err(|message| format!("{message}\n`cargo xtask test {NO_CUDA}` skips the CUDA crates"))
        })?;
        Some(provided)
    } else {
        None
    };
    run_steps(&mut times, steps(toolkit.as_deref())?)?;
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

/// `all_targets`: tests and benches are linted here, as no later step does it.
fn quick_steps(all_targets: bool) -> Result<Vec<(&'static str, Command)>, String> {
    let targets: &[&str] = if all_targets { &["--all-targets"] } else { &[] };
    Ok(vec![
        ("format", shell::cargo(&["fmt", "--all", "--check"])?),
        ("lints", shell::cargo(&[&["clippy"], targets, &["--", "-D", "warnings"]].concat())?),
    ])
}

/// The variable that proptest reads its seed from.
const SEED: &str = "PROPTEST_RNG_SEED";

/// With a seed for the property tests, unless the caller has chosen one.
fn seeded(mut tests: Command) -> Command {
    if env::var_os(SEED).is_none() {
        tests.env(SEED, "8");
    }
    tests
}

/// The variable of int8-cuda-sys that chooses the devices to compile for.
const ARCHITECTURES: &str = "INT8_CUDA_ARCHITECTURES";

/// There where the driver has found a GPU.
const GPU: &str = "/dev/nvidiactl";

/// Every crate, and everything they have. One set of features for all steps: nothing is compiled a second time.
const WITH_CUDA: [&str; 3] = ["--workspace", "--features", "int8-nn/cuda,int8-cli/cuda"];

fn steps(toolkit: Option<&Path>) -> Result<Vec<(&'static str, Command)>, String> {
    let cargo = |before: &[&str], after: &[&str]| {
        let Some(toolkit) = toolkit else { return shell::cargo(&[before, after].concat()) };
        let mut command = shell::cargo(&[before, &WITH_CUDA, after].concat())?;
        command.env("CUDA_PATH", toolkit).env("CUDA_LIBRARY_PATH", toolkit);
        if env::var_os(ARCHITECTURES).is_none() && !Path::new(GPU).exists() {
            command.env(ARCHITECTURES, "90a");
        }
        Ok::<_, String>(command)
    };
    let mut steps = Vec::new();
    if toolkit.is_some() {
        let mut lints = cargo(&["clippy"], &["--all-targets", "--", "-D", "warnings"])?;
        // Clippy has a build-script run of its own, which would compile the kernels a second time.
        lints.env("INT8_CUDA_WITHOUT_KERNELS", "1");
        steps.push(("cuda lints", lints));
    }
    let mut docs = cargo(&["doc", "--no-deps"], &[])?;
    docs.env("RUSTDOCFLAGS", "-D warnings");
    steps.extend([
        ("tests", seeded(cargo(&["test"], &[])?)),
        // As tests, so that the crates are not compiled once more in release mode.
        ("benches", cargo(&["test"], &["--bench", "*", "--", "--test"])?),
        ("docs", docs),
    ]);
    Ok(steps)
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
        for (name, command) in steps(Some(Path::new("/a/toolkit"))).expect("steps") {
            let line = shell::shown(&command);
            assert!(line.contains("--workspace --features int8-nn/cuda,int8-cli/cuda"), "{line}");
            let without = command.get_envs().any(|(key, _)| key == "INT8_CUDA_WITHOUT_KERNELS");
            assert_eq!(without, name == "cuda lints", "{line}");
            assert!(command.get_envs().any(|(key, value)| {
                key == "CUDA_PATH" && value.is_some_and(|value| value == "/a/toolkit")
            }));
        }
    }

    #[test]
    fn warnings_are_denied_with_cuda_and_without() {
        for toolkit in [None, Some(Path::new("/a/toolkit"))] {
            let steps = steps(toolkit).expect("steps");
            let docs = steps.iter().find(|(name, _)| *name == "docs").expect("a docs step");
            assert!(docs.1.get_envs().any(|(key, value)| {
                key == "RUSTDOCFLAGS" && value.is_some_and(|value| value == "-D warnings")
            }));
            let all = quick_steps(true).expect("steps").into_iter().chain(steps);
            let lints: Vec<_> = all.filter(|(name, _)| name.ends_with("lints")).collect();
            assert_eq!(lints.len(), if toolkit.is_some() { 2 } else { 1 });
            assert!(
                lints.iter().all(|(_, lint)| shell::shown(lint).ends_with("--all-targets -- -D warnings"))
            );
        }
    }
}
