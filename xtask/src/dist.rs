//! `cargo xtask dist --cuda`: stand-alone programs for a GPU machine that has no toolchain.
//!
//! Only the NVIDIA driver is needed there: the CUDA run time is linked statically and libcuda is looked up at run time.
//! cuBLASLt, which the benchmark compares with, is used if the machine has `libcublasLt.so.13`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Package, program, whether it needs the feature `cuda`.
const PROGRAMS: [(&str, &str, bool); 3] = [
    ("int8-cuda", "int8-cuda-verify", false),
    ("int8-cuda", "int8-cuda-bench", false),
    ("int8-cli", "int8", true),
];

/// Files that go along.
const FILES: [&str; 1] = ["tools/bench_bitsandbytes.py"];

/// Runs the command. `args`: `--cuda`, optionally `--programs-only` to leave the command-line program out.
///
/// # Errors
/// A message: an unknown argument, a build that fails, a folder that cannot be written.
pub fn run(args: &[String]) -> Result<(), String> {
    let known = ["--cuda", "--programs-only"];
    if let Some(unknown) = args.iter().find(|arg| !known.contains(&arg.as_str())) {
        return Err(format!("dist takes --cuda and --programs-only, got {unknown}"));
    }
    if !args.iter().any(|arg| arg == "--cuda") {
        return Err("dist: say --cuda; without a GPU `cargo build --release` is all there is".into());
    }
    let without_cli = args.iter().any(|arg| arg == "--programs-only");
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().ok_or("xtask lies outside a workspace")?;
    let built = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace.join("target"), PathBuf::from);
    let folder = workspace.join("target/dist");
    fs::create_dir_all(&folder).map_err(|e| format!("cannot make {}: {e}", folder.display()))?;
    for (package, program, feature) in PROGRAMS {
        if feature && without_cli {
            continue;
        }
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.current_dir(workspace).args(["build", "--release", "--package", package, "--bin", program]);
        if feature {
            cargo.args(["--features", "cuda"]);
        }
        let status = cargo.status().map_err(|e| format!("cannot run cargo: {e}"))?;
        if !status.success() {
            return Err(format!("{program} does not build ({status})"));
        }
        copy(&built.join("release").join(program), &folder)?;
    }
    for file in FILES {
        copy(&workspace.join(file), &folder)?;
    }
    println!("{}", folder.display());
    Ok(())
}

fn copy(file: &Path, folder: &Path) -> Result<(), String> {
    let name = file.file_name().ok_or_else(|| format!("{} is no file", file.display()))?;
    fs::copy(file, folder.join(name)).map(|_| ()).map_err(|e| format!("cannot copy {}: {e}", file.display()))
}
