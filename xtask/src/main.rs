//! `cargo xtask …`: the workspace's own automation. Plain Rust, so that a contributor needs nothing but a toolchain.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program of the command line")]

mod checks;
mod cuda_toolkit;
mod dist;
mod imports;
mod interruptions;
mod miri;
mod scan;
mod shell;
mod synthetic;
mod tidy;
mod verify;

use std::process::ExitCode;

/// One subcommand.
struct Task {
    name: &'static str,
    summary: &'static str,
    help: &'static str,
    run: fn(&[String]) -> Result<(), String>,
}

const TASKS: [Task; 8] = [
    Task { name: "test", summary: "everything a change must pass", help: checks::HELP, run: checks::run },
    Task {
        name: "tidy",
        summary: "the invariants of ARCHITECTURE.md that a compiler does not see",
        help: tidy::HELP,
        run: tidy::run,
    },
    Task {
        name: "verify",
        summary: "every backend on this machine against the reference",
        help: verify::HELP,
        run: verify::run,
    },
    Task {
        name: "miri",
        summary: "the unsafe code that Miri can run, under Miri",
        help: miri::HELP,
        run: miri::run,
    },
    Task {
        name: "cuda-toolkit",
        summary: "a private CUDA toolkit under target/, for a machine without one",
        help: CUDA_TOOLKIT_HELP,
        run: cuda_toolkit::run,
    },
    Task {
        name: "dist",
        summary: "stand-alone programs for a machine without a toolchain",
        help: dist::HELP,
        run: dist::run,
    },
    Task {
        name: "synthetic-checkpoint",
        summary: "a checkpoint of any size with pseudo-random weights",
        help: synthetic::HELP,
        run: synthetic::run,
    },
    Task {
        name: "interruptions",
        summary: "memory and rate of a conversion, and its state after ten kills",
        help: interruptions::HELP,
        run: interruptions::run,
    },
];

const CUDA_TOOLKIT_HELP: &str = "\
cargo xtask cuda-toolkit [--print-env]

Fetches the compiler, headers and libraries of CUDA 13.0, CUTLASS, CMake and ninja as Python wheels and lays them out
under target/cuda-toolkit like an installed toolkit, with a stub of libcuda to link against. Needs Python with pip and a C
compiler, and about 560 MB of downloads. The build finds the folder by itself; CUDA_PATH and CUTLASS_DIR win if set.

  --print-env   print the variables for other programs, as lines for a shell";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match dispatch(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(arguments: &[String]) -> Result<(), String> {
    let is_help = |argument: &String| matches!(argument.as_str(), "help" | "--help" | "-h");
    let Some((name, rest)) = arguments.split_first() else {
        return Err(format!("which task?\n\n{}", overview()));
    };
    if is_help(name) {
        match rest.first() {
            Some(name) => println!("{}", find(name)?.help),
            None => println!("{}", overview()),
        }
        return Ok(());
    }
    let task = find(name)?;
    if rest.iter().any(is_help) {
        println!("{}", task.help);
        return Ok(());
    }
    (task.run)(rest)
}

fn find(name: &str) -> Result<&'static Task, String> {
    TASKS
        .iter()
        .find(|task| task.name == name)
        .ok_or_else(|| format!("there is no task `{name}`\n\n{}", overview()))
}

fn overview() -> String {
    let mut text = String::from("cargo xtask TASK [arguments]; `cargo xtask help TASK` says more\n");
    for task in &TASKS {
        text.push_str(&format!("\n  {:<22}{}", task.name, task.summary));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn every_task_explains_itself() {
        for task in &TASKS {
            assert!(task.help.starts_with(&format!("cargo xtask {}", task.name)), "{}", task.name);
            assert!(dispatch(&arguments(&format!("help {}", task.name))).is_ok());
            assert!(dispatch(&arguments(&format!("{} --help", task.name))).is_ok());
            assert!(overview().contains(task.summary));
        }
    }

    #[test]
    fn mistakes_list_the_tasks() {
        for line in ["", "tset", "help tset"] {
            let message = dispatch(&arguments(line)).expect_err("no such task");
            assert!(message.contains("cargo xtask TASK"), "{message}");
        }
    }
}
