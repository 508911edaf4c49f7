//! `cargo xtask verify`: every backend on this machine against the reference.
//!
//! The work is done by `int8 verify`, so that a machine without a toolchain can do it too; this builds and runs it.

use std::path::Path;

use serde_json::Value;

use crate::{cuda_toolkit, shell};

/// Shown by `cargo xtask help verify`.
pub(crate) const HELP: &str = "\
cargo xtask verify [--cases N] [--require cpu|cuda] [--json]

Builds `int8` and runs `int8 verify`: every kernel of every backend that this machine has computes the corpus of int8-core
and N random cases; integers must be equal, floats within the derived bound. Prints backend, kernel, cases and the worst
error as a share of its bound, and lists absent backends. With a CUDA toolkit and an NVIDIA driver it then builds
and runs `int8-cuda-verify`, the same for the GPU's kernels; without, it reports which of them is missing.

  --cases N        random cases besides the corpus
  --require NAME   an absent backend is a failure; `cuda` also builds it in
  --json           one JSON object instead of the table";

/// Builds and runs `int8 verify` with these arguments.
pub(crate) fn run(arguments: &[String]) -> Result<(), String> {
    shell::run(shell::cargo(&command_line(arguments, &shell::metadata()?)?)?)?;
    if arguments.iter().any(|argument| argument == "--json") {
        return Ok(());
    }
    match missing_for_gpu() {
        Some(missing) => println!("GPU kernels: not checked, {missing}"),
        None => shell::run(shell::cargo(&gpu_command_line(arguments))?)?,
    }
    Ok(())
}

/// What the GPU check lacks on this machine.
fn missing_for_gpu() -> Option<&'static str> {
    if cuda_toolkit::existing().is_none() {
        Some("there is no CUDA toolkit (set CUDA_PATH, or run `cargo xtask cuda-toolkit`)")
    } else if !["/proc/driver/nvidia", "/dev/nvidiactl", "/dev/dxg"]
        .iter()
        .any(|path| Path::new(path).exists())
    {
        Some(
            "there is no NVIDIA driver; `cargo xtask dist --cuda` collects the check for a machine that has one",
        )
    } else {
        None
    }
}

/// It takes `--cases` alone.
fn gpu_command_line(arguments: &[String]) -> Vec<&str> {
    let mut line =
        vec!["run", "--quiet", "--release", "--package", "int8-cuda", "--bin", "int8-cuda-verify", "--"];
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        match argument.split_once('=') {
            Some(("--cases", number)) => line.extend(["--cases", number]),
            None if argument == "--cases" => {
                line.push("--cases");
                line.extend(rest.next().map(String::as_str));
            }
            _ => {}
        }
    }
    line
}

/// `metadata` shows whether `int8` has the feature `cuda`; without it, `int8 verify` reports that.
fn command_line<'a>(arguments: &'a [String], metadata: &Value) -> Result<Vec<&'a str>, String> {
    let mut line = vec!["run", "--quiet", "--release", "--package", "int8-cli"];
    let packages = metadata["packages"].as_array().map(Vec::as_slice).unwrap_or_default();
    let has_feature = packages
        .iter()
        .any(|package| package["name"] == "int8-cli" && !package["features"]["cuda"].is_null());
    if requires_cuda(arguments)? && has_feature {
        line.extend(["--features", "cuda"]);
    }
    line.extend(["--", "verify"]);
    line.extend(arguments.iter().map(String::as_str));
    Ok(line)
}

/// Checked here too, so that a misspelt name is found before the build.
fn requires_cuda(arguments: &[String]) -> Result<bool, String> {
    let mut cuda = false;
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        let (name, mut value) = match argument.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (argument.as_str(), None),
        };
        if matches!(name, "--cases" | "--require") && value.is_none() {
            value = arguments.next().map(String::as_str);
        }
        match (name, value) {
            ("--json", None) | ("--require", Some("cpu")) => {}
            ("--require", Some("cuda")) => cuda = true,
            ("--cases", Some(number)) if number.parse::<u64>().is_ok() => {}
            ("--cases" | "--require", value) => {
                return Err(format!(
                    "{name} {} makes no sense\n\n{HELP}",
                    value.unwrap_or("without a value")
                ));
            }
            _ => return Err(format!("verify does not know `{argument}`\n\n{HELP}")),
        }
    }
    Ok(cuda)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn line_with(arguments: &str, features: &Value) -> Result<String, String> {
        let arguments: Vec<String> = arguments.split_whitespace().map(str::to_owned).collect();
        let metadata = json!({"packages": [{"name": "int8-cli", "features": features}]});
        command_line(&arguments, &metadata).map(|line| line.join(" "))
    }

    fn line(arguments: &str) -> Result<String, String> {
        line_with(arguments, &json!({"cuda": ["int8-nn/cuda"]}))
    }

    #[test]
    fn arguments_are_passed_on() {
        let expected = "run --quiet --release --package int8-cli -- verify --cases 50 --require cpu --json";
        assert_eq!(line("--cases 50 --require cpu --json").as_deref(), Ok(expected));
    }

    #[test]
    fn cuda_is_built_when_required() {
        for arguments in ["--require cuda", "--require=cuda", "--require cpu --require cuda"] {
            let line = line(arguments).expect("valid arguments");
            assert!(line.contains("--features cuda -- verify"), "{line}");
        }
        assert!(!line("--cases 3").expect("valid arguments").contains("--features"));
        let without = line_with("--require cuda", &json!({})).expect("valid arguments");
        assert!(!without.contains("--features") && without.ends_with("--require cuda"), "{without}");
    }

    #[test]
    fn the_gpu_check_gets_the_number_of_cases() {
        for text in ["--cases 50 --require cuda", "--require cuda --cases=50"] {
            let arguments: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
            let line = gpu_command_line(&arguments).join(" ");
            assert!(line.ends_with("--bin int8-cuda-verify -- --cases 50"), "{line}");
        }
        assert_eq!(gpu_command_line(&[]).last(), Some(&"--"));
    }

    #[test]
    fn mistakes_are_found_before_the_build() {
        for arguments in ["--require tpu", "--require", "--cases", "--cases many", "--case 3", "--json=1"] {
            assert!(line(arguments).is_err_and(|message| message.contains(HELP)), "{arguments}");
        }
    }
}
