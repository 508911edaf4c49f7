//! `cargo xtask dist`: stand-alone programs for a machine that has no toolchain.
//!
//! On a GPU machine only the NVIDIA driver is needed: the CUDA run time is linked statically and libcuda is looked up at run
//! time. cuBLASLt, which the benchmark compares with, is used if the machine has `libcublasLt.so.13`.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;
use sha2::{Digest, Sha256};

use crate::shell;

/// Shown by `cargo xtask help dist`.
pub(crate) const HELP: &str = "\
cargo xtask dist [--cuda]

Builds `int8` in release mode, stripped, and collects it under target/dist, to be copied to a machine without a toolchain, with

  man/           pages of the manual
  completions/   for bash, zsh and fish
  sbom.cdx.json  the crates it is built from, with versions and licences (CycloneDX)
  SHA256SUMS     of all files; `sha256sum -c SHA256SUMS` checks them

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
    pages(&folder)?;
    let features: &[&str] = if cuda { &["--features", "cuda"] } else { &[] };
    write(&folder.join("sbom.cdx.json"), bill(features)?.as_bytes())?;
    let mut sums = String::new();
    checksums(&folder, "", &mut sums)?;
    write(&folder.join(SUMS), sums.as_bytes())?;
    println!("{}", folder.display());
    Ok(())
}

const SUMS: &str = "SHA256SUMS";

/// Pages of the manual and completions, written by the program itself.
fn pages(folder: &Path) -> Result<(), String> {
    let program = |arguments: &[&str]| {
        let mut command = Command::new(folder.join("int8"));
        command.args(arguments);
        shell::output(command)
    };
    let help = program(&["--help"])?;
    let help = String::from_utf8_lossy(&help);
    let commands =
        help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    // A line that begins deeper continues a description.
    let names = commands.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    let names = names.filter_map(|line| line.split_whitespace().next()).filter(|name| *name != "help");
    for name in names {
        write(&folder.join(format!("man/int8-{name}.1")), &program(&["man", name])?)?;
    }
    write(&folder.join("man/int8.1"), &program(&["man"])?)?;
    for (shell, file) in [("bash", "int8.bash"), ("zsh", "_int8"), ("fish", "int8.fish")] {
        write(&folder.join("completions").join(file), &program(&["completions", shell])?)?;
    }
    Ok(())
}

/// The crates that `int8` is built from, as a CycloneDX document.
fn bill(features: &[&str]) -> Result<String, String> {
    let tree = [
        "tree",
        "--package",
        "int8-cli",
        "--edges",
        "normal",
        "--prefix",
        "none",
        "--format",
        "{p}|{l}",
        "--locked",
    ];
    let tree = shell::output(shell::cargo(&[&tree[..], features].concat())?)?;
    let tree = String::from_utf8_lossy(&tree);
    let lines: BTreeSet<&str> = tree.lines().map(|line| line.trim_end_matches(" (*)")).collect();
    let components = lines.iter().filter_map(|line| {
        let (package, licence) = line.split_once('|')?;
        let mut words = package.split(' ');
        let (name, version) = (words.next()?, words.next()?.strip_prefix('v')?);
        Some(json!({
            "type": "library",
            "name": name,
            "version": version,
            "purl": format!("pkg:cargo/{name}@{version}"),
            "licenses": [{"expression": licence.trim_end_matches(" (*)").replace('/', " OR ")}],
        }))
    });
    let version = env!("CARGO_PKG_VERSION");
    let document = json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": {"type": "application", "name": "int8", "version": version}},
        "components": components.collect::<Vec<_>>(),
    });
    Ok(format!("{document:#}\n"))
}

/// SHA-256 of every file below `folder`, in the form of `sha256sum`, sorted by name.
fn checksums(root: &Path, folder: &str, sums: &mut String) -> Result<(), String> {
    let at = root.join(folder);
    let entries = fs::read_dir(&at).map_err(|e| format!("{}: {e}", at.display()))?;
    let mut names: Vec<String> =
        entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    names.sort();
    for name in names {
        let path = if folder.is_empty() { name } else { format!("{folder}/{name}") };
        let file = root.join(&path);
        if file.is_dir() {
            checksums(root, &path, sums)?;
        } else if path != SUMS {
            let bytes = fs::read(&file).map_err(|e| format!("{}: {e}", file.display()))?;
            let digest: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
            sums.push_str(&format!("{digest}  {path}\n"));
        }
    }
    Ok(())
}

fn write(file: &Path, contents: &[u8]) -> Result<(), String> {
    let folder = file.parent().ok_or("a file without a folder")?;
    fs::create_dir_all(folder).map_err(|e| format!("cannot make {}: {e}", folder.display()))?;
    fs::write(file, contents).map_err(|e| format!("cannot write {}: {e}", file.display()))
}

fn copy(file: &Path, folder: &Path) -> Result<(), String> {
    let name = file.file_name().ok_or_else(|| format!("{} is no file", file.display()))?;
    fs::copy(file, folder.join(name)).map(|_| ()).map_err(|e| format!("cannot copy {}: {e}", file.display()))
}
