//! A conversion that is killed at random moments: the unfinished folder never loads, and resuming it ends at the same bytes.
//! `cargo xtask interruptions` does the same with checkpoints of any size.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use safetensors::tensor::{Dtype, TensorView, serialize};

/// A LLaMA-like checkpoint of 12 MB.
fn make(folder: &Path) {
    const HIDDEN: usize = 512;
    let mut state = 1_u64;
    let mut tensors: Vec<(String, Vec<usize>, Vec<u8>)> = Vec::new();
    let mut add = |name: String, shape: Vec<usize>| {
        let mut bytes = Vec::new();
        for _ in 0..shape.iter().product() {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            // An F16 of either sign and magnitude 0.0004…0.008.
            bytes.extend([state.to_le_bytes()[5], (state.to_le_bytes()[6] & 0x8F) | 0x10]);
        }
        tensors.push((name, shape, bytes));
    };
    add("model.embed_tokens.weight".to_owned(), vec![600, HIDDEN]);
    for layer in 0..5 {
        for name in ["self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj"] {
            add(format!("model.layers.{layer}.{name}.weight"), vec![HIDDEN, HIDDEN]);
        }
    }
    let views = tensors.iter().map(|(name, shape, bytes)| {
        (name.as_str(), TensorView::new(Dtype::F16, shape.clone(), bytes).expect("a tensor"))
    });
    fs::create_dir_all(folder).expect("a folder");
    fs::write(folder.join("model.safetensors"), serialize(views, None).expect("a file")).expect("written");
    fs::write(folder.join("config.json"), r#"{"model_type": "none of ours", "vocab_size": 600}"#)
        .expect("written");
}

fn start(source: &Path, out: &Path) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_int8"));
    command.arg("quantize").args([source, out]).args(["--max-shard-size", "1MB", "--resume"]);
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the program")
}

fn contents(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path());
    entries
        .map(|path| {
            let name = path.file_name().expect("a name").to_string_lossy().into_owned();
            (name, fs::read(path).expect("a file"))
        })
        .collect()
}

#[test]
fn killed_ten_times_it_never_looks_finished_and_ends_the_same() {
    let scratch = tempfile::tempdir().expect("a folder");
    let [source, whole, killed] = ["source", "whole", "killed"].map(|name| scratch.path().join(name));
    make(&source);
    let begin = Instant::now();
    assert!(start(&source, &whole).wait().expect("an end").success());
    let duration = begin.elapsed();

    let (mut kills, mut unfinished) = (0_u32, 0);
    while kills < 10 {
        let mut child = start(&source, &killed);
        // From the very beginning to nearly the end of an uninterrupted run.
        std::thread::sleep(duration.mul_f64(f64::from(kills) / 10.0) + Duration::from_millis(2));
        child.kill().expect("a kill");
        child.wait().expect("an end");
        kills += 1;
        let complete = killed.join("config.json").exists() && !killed.join("int8-write.partial").exists();
        let inspect = Command::new(env!("CARGO_BIN_EXE_int8"))
            .arg("inspect")
            .arg(&killed)
            .output()
            .expect("the program");
        assert_eq!(inspect.status.success(), complete, "kill {kills}");
        if complete {
            // It was faster than the kill.
            assert!(contents(&killed) == contents(&whole), "a finished folder differs");
            fs::remove_dir_all(&killed).expect("removed");
            continue;
        }
        unfinished += 1;
        let message = String::from_utf8_lossy(&inspect.stderr).into_owned();
        let is_clear = message.contains("--resume") || message.contains("no such file or folder");
        assert!(is_clear || message.contains("no weights found"), "{message}");
    }
    assert!(unfinished > 0, "no kill came in time");
    assert!(start(&source, &killed).wait().expect("an end").success());
    let (whole, killed) = (contents(&whole), contents(&killed));
    assert_eq!(whole.keys().collect::<Vec<_>>(), killed.keys().collect::<Vec<_>>());
    assert!(whole.len() > 5 && whole == killed, "the resumed folder differs");
}
