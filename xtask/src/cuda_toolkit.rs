//! `cargo xtask cuda-toolkit`: a private CUDA 13.0 toolkit under `target/cuda-toolkit`, for a machine that has none.
//!
//! The compiler, the run-time headers and cuBLAS come from the vendor's wheels on the Python package index, CMake and
//! ninja from theirs; nothing outside `target/` is touched. The folder has the layout of an installed toolkit
//! (`bin`, `include`, `lib64`, `lib64/stubs`, `nvvm`), so that `cust`, CMake and nvcc find it.
//!
//! `libcuda` belongs to the driver and no wheel has it. A stub takes its place at link time: see [`LIBCUDA_HEAD`].

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Every wheel with its exact version: an update is one reviewed line here.
const WHEELS: [&str; 9] = [
    "nvidia-cuda-nvcc==13.0.88",
    "nvidia-cuda-crt==13.0.88",
    "nvidia-nvvm==13.0.88",
    "nvidia-cuda-runtime==13.0.96",
    "nvidia-cuda-cccl==13.0.85",
    "nvidia-cublas==13.0.2.14",
    "nvidia-cutlass==4.2.0.0",
    "cmake==4.1.2",
    "ninja==1.13.0",
];

/// Bumped when the layout below changes, so that an old folder is rebuilt.
const LAYOUT: &str = "layout 2";

/// Runs the command. `args`: nothing, or `--print-env` for lines that a shell can evaluate.
///
/// # Errors
/// With advice: no Python or no `pip`, no C compiler, a wheel that cannot be fetched.
pub(crate) fn run(args: &[String]) -> Result<(), String> {
    let root = target_folder()?.join("cuda-toolkit");
    match args {
        [] => {
            let made = ensure(&root)?;
            println!("CUDA toolkit {} in {}", if made { "made" } else { "already" }, root.display());
            println!("The build finds it by itself; for other programs:");
            print!("{}", environment(&root));
            Ok(())
        }
        [flag] if flag == "--print-env" => {
            ensure(&root)?;
            print!("{}", environment(&root));
            Ok(())
        }
        _ => Err(format!("cuda-toolkit takes no argument but --print-env, got {args:?}")),
    }
}

/// The toolkit that a build should use: the one that `CUDA_PATH` names, or the private one, made if need be.
pub(crate) fn provide() -> Result<PathBuf, String> {
    if let Some(named) = std::env::var_os("CUDA_PATH").map(PathBuf::from) {
        return if named.join("bin/nvcc").is_file() {
            Ok(named)
        } else {
            Err(format!(
                "CUDA_PATH is {}, which has no bin/nvcc; unset it, or name a toolkit",
                named.display()
            ))
        };
    }
    let root = target_folder()?.join("cuda-toolkit");
    ensure(&root)?;
    Ok(root)
}

/// The toolkit that `CUDA_PATH` names or that was made before; makes none.
pub(crate) fn existing() -> Option<PathBuf> {
    let named = std::env::var_os("CUDA_PATH").map(PathBuf::from);
    let private = target_folder().ok().map(|target| target.join("cuda-toolkit"));
    named.into_iter().chain(private).find(|root| root.join("bin/nvcc").is_file())
}

/// `target/` of this workspace, whatever folder the command runs in. `CARGO_TARGET_DIR` does not move the toolkit:
/// `.cargo/config.toml` names it by a path relative to the workspace.
fn target_folder() -> Result<PathBuf, String> {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    let workspace = manifest.parent().ok_or("xtask lies outside a workspace")?;
    Ok(workspace.join("target"))
}

fn environment(root: &Path) -> String {
    let root = root.display();
    format!(
        "export CUDA_PATH={root}\nexport CUDA_LIBRARY_PATH={root}\nexport CUTLASS_DIR={root}/cutlass\n\
         export PATH={root}/bin:$PATH\n"
    )
}

/// Makes the toolkit unless a finished one of the same pins lies there. `Ok(true)`: made now.
fn ensure(root: &Path) -> Result<bool, String> {
    let stamp = format!("{LAYOUT}\n{}\n", WHEELS.join("\n"));
    let stamp_path = root.join("complete");
    if fs::read_to_string(&stamp_path).is_ok_and(|found| found == stamp) {
        return Ok(false);
    }
    missing_tools()?;
    if root.exists() {
        fs::remove_dir_all(root).map_err(|e| format!("cannot clear {}: {e}", root.display()))?;
    }
    let site = root.join("wheels");
    fs::create_dir_all(&site).map_err(|e| format!("cannot make {}: {e}", site.display()))?;
    println!("fetching {} wheels (about 560 MB)", WHEELS.len());
    let mut pip = Command::new("python3");
    pip.env("PIP_ROOT_USER_ACTION", "ignore").args([
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-compile",
        "--disable-pip-version-check",
    ]);
    pip.args(["--only-binary=:all:", "--target"]).arg(&site).args(WHEELS);
    call(&mut pip, "pip could not install the CUDA wheels")?;
    lay_out(root, &site)?;
    // The stamp comes last: an interrupted run leaves nothing that looks finished.
    fs::write(&stamp_path, stamp).map_err(|e| format!("cannot write {}: {e}", stamp_path.display()))?;
    Ok(true)
}

/// All missing tools in one message.
fn missing_tools() -> Result<(), String> {
    let answers = |program: &str, args: &[&str]| {
        Command::new(program).args(args).output().is_ok_and(|output| output.status.success())
    };
    let mut missing = Vec::new();
    if !answers("python3", &["-m", "pip", "--version"]) {
        missing.push("python3 with pip (Debian: python3-pip)");
    }
    if !answers("cc", &["--version"]) || !answers("c++", &["--version"]) {
        missing.push("a C and C++ compiler, cc and c++ (Debian: build-essential)");
    }
    if !answers("ar", &["--version"]) {
        missing.push("ar (Debian: binutils)");
    }
    if missing.is_empty() { Ok(()) } else { Err(format!("cuda-toolkit needs {}", missing.join("; "))) }
}

fn lay_out(root: &Path, site: &Path) -> Result<(), String> {
    let cuda = site.join("nvidia/cu13");
    for folder in ["bin", "include", "nvvm"] {
        link(&cuda.join(folder), &root.join(folder))?;
    }
    // nvcc looks for `lib64` beside its own `bin`, and its real path is the one inside `wheels/`.
    link(&cuda.join("lib"), &cuda.join("lib64"))?;
    link(&cuda.join("lib"), &root.join("lib"))?;
    link(&cuda.join("lib"), &root.join("lib64"))?;
    for library in ["cudart", "cublas", "cublasLt"] {
        link(&cuda.join(format!("lib/lib{library}.so.13")), &cuda.join(format!("lib/lib{library}.so")))?;
    }
    link(&site.join("cutlass_library/source"), &root.join("cutlass"))?;
    link(&site.join("cmake/data/bin/cmake"), &cuda.join("bin/cmake"))?;
    link(&site.join("bin/ninja"), &cuda.join("bin/ninja"))?;
    libcuda_stub(&cuda)
}

#[cfg(unix)]
fn link(to: &Path, at: &Path) -> Result<(), String> {
    if !to.exists() {
        return Err(format!("a wheel has no {}: its layout changed", to.display()));
    }
    std::os::unix::fs::symlink(to, at).map_err(|e| format!("cannot link {}: {e}", at.display()))
}

#[cfg(not(unix))]
fn link(_to: &Path, at: &Path) -> Result<(), String> {
    Err(format!(
        "cannot lay out {}: the wheels are used on Linux only; install CUDA 13.0 and set CUDA_PATH",
        at.display()
    ))
}

/// The stub of `libcuda`: a static archive whose functions look the real ones up in `libcuda.so.1` on first use.
///
/// A shared stub would be enough to link, but a program linked to it cannot start where there is no driver: the loader
/// stops it before it can say what is missing. With this archive it starts anywhere, and `cuInit` answers
/// `CUDA_ERROR_NO_DEVICE` (100) where the driver is absent.
const LIBCUDA_HEAD: &str = r#"
#include <dlfcn.h>
#include <stddef.h>
static int no_driver(void) { return 100; }
extern void *int8_libcuda_slots[];
extern const char *const int8_libcuda_names[];
__attribute__((visibility("hidden"), used)) void int8_libcuda_resolve(void) {
  void *driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_GLOBAL);
  for (size_t i = 0; int8_libcuda_names[i]; ++i) {
    void *found = driver ? dlsym(driver, int8_libcuda_names[i]) : NULL;
    __atomic_store_n(&int8_libcuda_slots[i], found ? found : (void *)no_driver, __ATOMIC_RELEASE);
  }
}
"#;

/// Every slot starts at its own entry of the lazy table; that entry saves the argument registers, fills all slots and
/// jumps again. Two threads that come first together fill the slots with the same values.
const LIBCUDA_LAZY: &str = r"
  .text
int8_libcuda_lazy:
  pushq %rdi; pushq %rsi; pushq %rdx; pushq %rcx; pushq %r8; pushq %r9
  call int8_libcuda_resolve
  popq %r9; popq %r8; popq %rcx; popq %rdx; popq %rsi; popq %rdi
  popq %r11
  leaq int8_libcuda_slots(%rip), %r10
  jmp *(%r10,%r11,8)
";

/// Makes `lib/stubs/libcuda.a` out of the function names that `cuda.h` declares or renames to.
fn libcuda_stub(cuda: &Path) -> Result<(), String> {
    let header =
        fs::read_to_string(cuda.join("include/cuda.h")).map_err(|e| format!("cannot read cuda.h: {e}"))?;
    let names = driver_functions(&header);
    if names.len() < 400 {
        return Err(format!("cuda.h names {} functions only: its layout changed", names.len()));
    }
    let stubs = cuda.join("lib/stubs");
    fs::create_dir_all(&stubs).map_err(|e| format!("cannot make {}: {e}", stubs.display()))?;
    let write = |name: &str, text: &str| {
        let path = stubs.join(name);
        fs::write(&path, text).map_err(|e| format!("cannot write {}: {e}", path.display())).map(|()| path)
    };
    let mut c = String::from(LIBCUDA_HEAD);
    if !cfg!(target_arch = "x86_64") {
        return Err("the libcuda stub knows x86-64 only; install CUDA 13.0 and set CUDA_PATH".into());
    }
    c.push_str("__attribute__((visibility(\"hidden\"))) const char *const int8_libcuda_names[] = {\n");
    let mut asm = String::from(LIBCUDA_LAZY);
    let mut slots = String::from(
        "  .data\n  .balign 8\n  .globl int8_libcuda_slots\n  .hidden int8_libcuda_slots\nint8_libcuda_slots:\n",
    );
    for (i, name) in names.iter().enumerate() {
        let _ = writeln!(c, "  \"{name}\",");
        let _ = writeln!(
            asm,
            "  .globl {name}\n  .type {name}, @function\n{name}: jmp *int8_libcuda_slots+{}(%rip)",
            8 * i
        );
        let _ = writeln!(asm, ".Llazy{i}: pushq ${i}; jmp int8_libcuda_lazy");
        let _ = writeln!(slots, "  .quad .Llazy{i}");
    }
    c.push_str("  NULL };\n");
    asm.push_str(&slots);
    asm.push_str("  .section .note.GNU-stack,\"\",@progbits\n");
    let (c, asm) = (write("libcuda.c", &c)?, write("libcuda_table.s", &asm)?);
    let mut objects = Vec::new();
    for source in [&c, &asm] {
        let object = source.with_extension("o");
        let mut cc = Command::new("cc");
        cc.args(["-O2", "-fPIC", "-c"]).arg(source).arg("-o").arg(&object);
        call(&mut cc, "the C compiler could not build the libcuda stub")?;
        objects.push(object);
    }
    let mut ar = Command::new("ar");
    ar.arg("crs").arg(stubs.join("libcuda.a")).args(&objects);
    call(&mut ar, "ar could not pack the libcuda stub")
}

/// All identifiers of the form `cuName` or `cuName_vN` in the header. That is more than the functions (a stub for a
/// name that is no function does no harm) and never fewer.
fn driver_functions(header: &str) -> BTreeSet<&str> {
    header
        .split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
        .filter(|word| word.len() > 3 && word.starts_with("cu"))
        .filter(|word| word.as_bytes()[2].is_ascii_uppercase() && !word.ends_with("_st"))
        .collect()
}

fn call(command: &mut Command, failure: &str) -> Result<(), String> {
    let status = command.status().map_err(|e| format!("{failure}: {e}"))?;
    if status.success() { Ok(()) } else { Err(format!("{failure}: {command:?} ended with {status}")) }
}

#[cfg(test)]
mod tests {
    use super::driver_functions;

    #[test]
    fn the_stub_takes_functions_with_their_versions() {
        let header = "#define cuMemAlloc cuMemAlloc_v2\nCUresult CUDAAPI cuInit(unsigned int Flags);\ntypedef struct CUctx_st *cud;";
        let names: Vec<&str> = driver_functions(header).into_iter().collect();
        assert_eq!(names, ["cuInit", "cuMemAlloc", "cuMemAlloc_v2"]);
    }
}
