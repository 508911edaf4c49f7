//! Models by their name on the hub, as far as a command line without a network can show it; the downloads themselves are
//! tested in `int8-nn/tests/hub.rs`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

fn tiny() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../int8-nn/tests/data/models/llama")
}

/// A cache as Python writes it, with the tiny model as `org/tiny` at `main`.
fn cache() -> tempfile::TempDir {
    let cache = tempfile::tempdir().expect("a folder");
    let root = cache.path().join("models--org--tiny");
    let snapshot = root.join("snapshots").join(COMMIT);
    fs::create_dir_all(&snapshot).expect("a folder");
    fs::create_dir_all(root.join("refs")).expect("a folder");
    fs::write(root.join("refs/main"), COMMIT).expect("a file");
    for name in ["config.json", "model.safetensors"] {
        fs::copy(tiny().join(name), snapshot.join(name)).expect("a copy");
    }
    cache
}

fn int8(arguments: &[&str], cache: &Path, variables: &[(&str, &str)]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_int8"))
        .args(arguments)
        .current_dir(cache)
        .env("HF_HUB_CACHE", cache)
        .env("HF_HOME", cache)
        .env("HF_ENDPOINT", "http://127.0.0.1:9")
        .env("NO_PROXY", "127.0.0.1")
        .env_remove("HF_TOKEN")
        .envs(variables.iter().copied())
        .output()
        .expect("the program")
}

const OFFLINE: [(&str, &str); 1] = [("HF_HUB_OFFLINE", "1")];

#[test]
fn a_cached_model_runs_offline_by_its_name() {
    let cache = cache();
    let ids = |model: &str, variables: &[(&str, &str)]| {
        let output =
            int8(&["run", model, "--ids", "5,6,7", "-n", "4", "--greedy", "--json"], cache.path(), variables);
        assert!(output.status.success(), "{model}: {}", String::from_utf8_lossy(&output.stderr));
        let json: serde_json::Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
        json["ids"].clone()
    };
    let folder = tiny();
    let expected = ids(folder.to_str().expect("UTF-8"), &[]);
    assert_eq!(ids("org/tiny", &OFFLINE), expected);
    assert_eq!(ids(&format!("org/tiny@{COMMIT}"), &OFFLINE), expected);
    // A folder of that name wins, whatever the hub has.
    fs::create_dir_all(cache.path().join("org")).expect("a folder");
    fs::create_dir(cache.path().join("org/tiny")).expect("a folder");
    let output = int8(&["inspect", "org/tiny"], cache.path(), &OFFLINE);
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(message.contains("org/tiny: no weights found"), "{message}");
}

#[test]
fn what_is_neither_here_nor_there_gets_a_way_out() {
    let cache = cache();
    for (arguments, variables, code, names) in [
        (
            &["inspect", "org/other"][..],
            &OFFLINE[..],
            1,
            &["HF_HUB_OFFLINE", "no folder `org/other` here"][..],
        ),
        (&["inspect", "org/other"], &[], 1, &["127.0.0.1:9", "HF_ENDPOINT", "no folder `org/other` here"]),
        (&["inspect", "./org/other"], &[], 1, &["no such file or folder"]),
        (&["inspect", "other"], &[], 1, &["no such file or folder", "org/name"]),
        (&["inspect", "org/tiny", "--revision", "a b"], &OFFLINE, 2, &["--revision", "a b"]),
        (&["inspect", ".", "--revision", "v1"], &OFFLINE, 2, &["--revision"]),
        (&["inspect", "org/tiny"], &[("HF_ENDPOINT", "nonsense")], 1, &["HF_ENDPOINT"]),
        (&["quantize", "org/other", "out"], &OFFLINE, 1, &["HF_HUB_OFFLINE"]),
    ] {
        let output = int8(arguments, cache.path(), variables);
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {message}");
        for name in names {
            assert!(message.contains(name), "{arguments:?}: no {name:?} in: {message}");
        }
    }
}
