//! `cargo xtask dist`: stand-alone programs for a machine that has no toolchain.
//!
//! On a GPU machine only the NVIDIA driver is needed: the CUDA run time is linked statically and libcuda is looked up at run
//! time. cuBLASLt, which the benchmark compares with, is used if the machine has `libcublasLt.so.13`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Shown by `cargo xtask help dist`.
pub(crate) const HELP: &str = "\
cargo xtask dist [--cuda]

Builds `int8` in release mode, stripped, and collects it under target/dist, to be copied to a machine without a toolchain.

  --cuda   `int8` with the feature cuda, and int8-cuda-verify and int8-cuda-bench, which check and time the GPU layer there; needs a CUDA toolkit here
           (`cargo xtask cuda-toolkit` makes one)";

/// Package, program, whether it is part of `--cuda` only.
const PROGRAMS: [(&str, &str, bool); 3] = [
    ("int8-cli", "int8", false),
    ("int8-cuda", "int8-cuda-verify", true),
    ("int8-cuda", "int8-cuda-bench", true),
];

/// Files that go along with the GPU programs.
const FILES: [&str; 1] = ["tools/bench_bitsandbytes.py"];

/// Builds the programs and copies them.
pub(crate) fn run(args: &[String]) -> Result<(), String> {
    if let Some(unknown) = args.iter().find(|arg| *arg != "--cuda") {
        return Err(format!("dist does not know `{unknown}`\n\n{HELP}"));
    }
    let cuda = !args.is_empty();
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().ok_or("xtask lies outside a workspace")?;
    let built = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace.join("target"), PathBuf::from);
    let folder = workspace.join("target/dist");
    fs::create_dir_all(&folder).map_err(|e| format!("cannot make {}: {e}", folder.display()))?;
    for (package, program, cuda_only) in PROGRAMS {
        if cuda_only && !cuda {
            continue;
        }
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.current_dir(workspace).args(["build", "--release", "--package", package, "--bin", program]);
        if cuda && !cuda_only {
            cargo.args(["--features", "cuda"]);
        }
        let status = cargo.status().map_err(|e| format!("cannot run cargo: {e}"))?;
        if !status.success() {
            return Err(format!("{program} does not build ({status})"));
        }
        copy(&built.join("release").join(program), &folder)?;
    }
    for file in FILES.iter().filter(|_| cuda) {
        copy(&workspace.join(file), &folder)?;
    }
    println!("{}", folder.display());
    Ok(())
}

fn copy(file: &Path, folder: &Path) -> Result<(), String> {
    let name = file.file_name().ok_or_else(|| format!("{} is no file", file.display()))?;
    fs::copy(file, folder.join(name)).map(|_| ()).map_err(|e| format!("cannot copy {}: {e}", file.display()))
}
