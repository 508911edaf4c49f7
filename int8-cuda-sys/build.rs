//! Compiles `cmake/` into the static library `int8_cuda`. Downloads nothing; README.md lists the places searched.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a build script talks to cargo by printing")]
#![allow(unsafe_code, reason = "sets a variable before any thread starts")]

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    for variable in [
        "DOCS_RS",
        "INT8_CUDA_WITHOUT_KERNELS",
        "CUDA_PATH",
        "CUDA_LIBRARY_PATH",
        "CMAKE",
        "CUTLASS_DIR",
        "INT8_CUDA_ARCHITECTURES",
        "CMAKE_BUILD_PARALLEL_LEVEL",
    ] {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    println!("cargo:rerun-if-changed=cmake");
    if let Err(message) = write_algorithms() {
        eprintln!("{message}");
        std::process::exit(1);
    }
    if ["DOCS_RS", "INT8_CUDA_WITHOUT_KERNELS"].into_iter().any(|name| env::var_os(name).is_some()) {
        return;
    }
    if let Err(message) = build() {
        eprintln!("{message}");
        std::process::exit(1);
    }
}

fn build() -> Result<(), String> {
    let toolkit = find_toolkit();
    let cmake = find_tool("cmake", env::var_os("CMAKE").map(PathBuf::from), toolkit.as_deref());
    let mut missing = Vec::new();
    if toolkit.is_none() {
        missing.push("a CUDA 13.0 toolkit (set CUDA_PATH, or run `cargo xtask cuda-toolkit`)");
    }
    if cmake.is_none() {
        missing.push("CMake 3.24 or later (install it, or run `cargo xtask cuda-toolkit`)");
    }
    let (Some(toolkit), Some(cmake)) = (toolkit, cmake) else {
        return Err(format!(
            "int8-cuda-sys needs {}. DOCS_RS=1 checks the code without.",
            missing.join(" and ")
        ));
    };
    let architectures = env::var("INT8_CUDA_ARCHITECTURES").unwrap_or_else(|_| "80;90a".into());
    // SAFETY: a build script has one thread here, and the `cmake` crate reads this variable alone.
    unsafe { env::set_var("CMAKE", cmake) };
    let mut config = cmake::Config::new("cmake");
    // The kernels are always optimised, in debug builds of Rust, too.
    config.profile("Release").define("INT8_CUDA_ARCHITECTURES", architectures).env("CUDA_PATH", &toolkit);
    config.define("CMAKE_CUDA_COMPILER", toolkit.join("bin/nvcc")).define("CUDAToolkit_ROOT", &toolkit);
    if let Some(ninja) = find_tool("ninja", None, Some(&toolkit)) {
        config.generator("Ninja").define("CMAKE_MAKE_PROGRAM", ninja);
    }
    let installed = config.build();
    println!("cargo:rustc-link-search=native={}", installed.join("lib").display());
    println!("cargo:rustc-link-search=native={}", toolkit.join("lib64").display());
    println!("cargo:rustc-link-lib=static=int8_cuda");
    // Static: only the driver has to be present at run time.
    println!("cargo:rustc-link-lib=static=cudart_static");
    for library in ["stdc++", "dl", "rt", "pthread"] {
        println!("cargo:rustc-link-lib=dylib={library}");
    }
    println!("cargo:include={}", Path::new("cmake/include").display());
    Ok(())
}

/// Writes `algorithms.rs` from the table in `int8_cuda_algorithms.h`: a constant for each row, and a macro that gives the rows to
/// another one, those of the layer apart from those of the product.
fn write_algorithms() -> Result<(), String> {
    const TABLE: &str = "cmake/include/int8_cuda_algorithms.h";
    let table = fs::read_to_string(TABLE).map_err(|error| format!("{TABLE}: {error}"))?;
    let (mut constants, mut layer, mut product) = (String::new(), String::new(), String::new());
    for row in table.lines().filter_map(|line| line.strip_prefix("  X(")) {
        let columns: Vec<&str> = row.splitn(5, ", ").collect();
        let [name, number, variant, kind, text] = columns[..] else {
            return Err(format!(
                "{TABLE}: expected X(name, number, name in Rust, kind, \"limits\" …): {row}"
            ));
        };
        let text = text.split('"').nth(1).ok_or_else(|| format!("{TABLE}: no limits: {row}"))?;
        constants += &format!("#[doc = {text:?}]\npub const INT8_CUDA_{name}: i32 = {number};\n");
        let rows = if kind == "PRODUCT" { &mut product } else { &mut layer };
        *rows += &format!("        {variant} {kind} $crate::INT8_CUDA_{name}, {text:?};\n");
    }
    let text = format!(
        "{constants}
/// Calls a macro with the rows of `int8_cuda_algorithms.h`: `layer {{ … }} product {{ … }}`, each row `name in Rust, kind,
/// constant, \"limits\";`.
#[macro_export]
macro_rules! int8_cuda_algorithms {{
    ($callback:ident) => {{ $callback! {{
        layer {{\n{layer}        }}
        product {{\n{product}        }}
    }} }};
}}\n"
    );
    let file = PathBuf::from(env::var_os("OUT_DIR").ok_or("no OUT_DIR")?).join("algorithms.rs");
    fs::write(&file, text).map_err(|error| format!("{}: {error}", file.display()))
}

/// The first folder with `bin/nvcc`.
fn find_toolkit() -> Option<PathBuf> {
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR")?);
    let named = ["CUDA_PATH", "CUDA_LIBRARY_PATH"].into_iter().filter_map(env::var_os).map(PathBuf::from);
    let known = [manifest.join("../target/cuda-toolkit"), "/usr/local/cuda".into(), "/opt/cuda".into()];
    named.chain(known).find(|root| root.join("bin/nvcc").is_file())
}

fn find_tool(name: &str, named: Option<PathBuf>, toolkit: Option<&Path>) -> Option<PathBuf> {
    let candidates =
        named.into_iter().chain(toolkit.map(|root| root.join("bin").join(name))).chain([name.into()]);
    candidates
        .into_iter()
        .find(|tool| Command::new(tool).arg("--version").output().is_ok_and(|output| output.status.success()))
}
