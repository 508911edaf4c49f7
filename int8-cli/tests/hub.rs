//! Models by their name on the hub, as far as a command line without a network can show it; the downloads themselves are
//! tested in `int8-nn/tests/hub.rs`.

mod page;

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

/// What a command printed with `--json`.
fn json(arguments: &[&str], cache: &Path) -> serde_json::Value {
    let output = int8(&[arguments, &["--json"]].concat(), cache, &OFFLINE);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("one JSON object")
}

#[test]
fn the_cache_is_listed_and_emptied() {
    let cache = cache();
    // A download that did not end, and a folder that is none of ours.
    fs::create_dir_all(cache.path().join("models--org--half/blobs")).expect("a folder");
    fs::write(cache.path().join("models--org--half/blobs/abc.incomplete"), [0; 1000]).expect("a file");
    fs::create_dir_all(cache.path().join("datasets--org--tiny")).expect("a folder");
    let list = json(&["list"], cache.path());
    page::check("list", &list);
    let [half, whole] = &list["models"].as_array().expect("models")[..] else { panic!("{list}") };
    assert_eq!((&half["model"], &half["bytes"]), (&"org/half".into(), &1000.into()));
    assert!(half["path"].is_null() && half["model_type"].is_null(), "{half}");
    assert_eq!((&whole["model"], &whole["model_type"]), (&"org/tiny".into(), &"llama".into()));
    assert_eq!(whole["revisions"]["main"], COMMIT);
    let pulled = json(&["pull", "org/tiny"], cache.path());
    page::check("pull", &pulled);
    assert_eq!(pulled["path"], whole["path"]);

    // All or nothing: a name that is not there leaves the others.
    let output = int8(&["rm", "org/tiny", "org/other"], cache.path(), &OFFLINE);
    assert_eq!(output.status.code(), Some(1));
    assert!(cache.path().join("models--org--tiny").is_dir());
    // A download in progress is not taken away.
    let locks = cache.path().join(".locks/models--org--half");
    fs::create_dir_all(&locks).expect("a folder");
    let lock = fs::File::create(locks.join("abc.lock")).expect("a file");
    lock.lock().expect("a lock");
    let output = int8(&["rm", "org/half"], cache.path(), &OFFLINE);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("download"));
    drop(lock);
    let removed = json(&["rm", "org/tiny", "org/half"], cache.path());
    page::check("rm", &removed);
    assert_eq!(removed["removed"]["org/half"], 1000);
    assert_eq!(json(&["list"], cache.path())["models"], serde_json::json!([]));
    assert!(cache.path().join("datasets--org--tiny").is_dir());
}
