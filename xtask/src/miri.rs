//! `cargo xtask miri`: the unsafe code that Miri can run, under Miri.

use std::process::Command;

use crate::shell;

/// Shown by `cargo xtask help miri`.
pub(crate) const HELP: &str = "\
cargo xtask miri

Runs int8-cpu's memory tests under Miri, which finds reads and writes out of bounds or of uninitialised memory,
and violations of the aliasing rules. It has no vector instructions, so it is the portable kernel that runs; the code that all kernels share
(packing, typed views of matrices, the GEMM schedule, the thread pool, the epilogue, attention) runs with it. int8-core
has no unsafe code; checkpoints are read through a memory map, which Miri does not have.

It takes a quarter of an hour and more, so `cargo xtask test` and CI skip it: run it after a change to unsafe code.

Needs rustup and a nightly toolchain with Miri: rustup toolchain install nightly --component miri --component rust-src";

/// Runs the task; it takes no arguments.
pub(crate) fn run(arguments: &[String]) -> Result<(), String> {
    if !arguments.is_empty() {
        return Err(format!("miri takes no arguments, got {arguments:?}\n\n{HELP}"));
    }
    if let Err(error) = shell::output(nightly(&["miri", "--version"])) {
        return Err(format!(
            "Miri does not run here; this installs it:\n\
             rustup toolchain install nightly --component miri --component rust-src\n\n{error}"
        ));
    }
    let root = shell::workspace_root()?;
    // With one thread, all runs on the calling one; with two, work is partitioned and stolen.
    let checks: [(&str, &[&str]); 3] = [
        ("2", &["--lib", "--", "pool::tests::numbers_are_shared"]),
        ("1", &["--lib", "--", "panel::tests::pieces_of_k_add_up"]),
        ("1", &["--test", "memory"]),
    ];
    for (threads, what) in checks {
        let mut miri = nightly(&[&["miri", "test", "--package", "int8-cpu"], what].concat());
        // The clock and the random seeds of hash maps are the host's. The thread pool is never taken down; its queues
        // (crossbeam) break the rules of stacked borrows, but not those of tree borrows, and make pointers of integers.
        miri.env(
            "MIRIFLAGS",
            "-Zmiri-disable-isolation -Zmiri-ignore-leaks -Zmiri-tree-borrows -Zmiri-permissive-provenance",
        );
        miri.env("RAYON_NUM_THREADS", threads).current_dir(&root);
        shell::run(miri)?;
    }
    Ok(())
}

/// The nightly cargo, whichever one runs this program.
fn nightly(arguments: &[&str]) -> Command {
    let mut command = Command::new("rustup");
    command.args(["run", "nightly", "cargo"]).args(arguments);
    // Variables of the cargo that runs this program would direct the nightly one to the wrong compiler.
    for variable in ["CARGO", "RUSTC", "RUSTDOC", "RUSTUP_TOOLCHAIN"] {
        command.env_remove(variable);
    }
    command
}
