//! Models of the hub, against a local server with the needed part of its API: lists of files, checksums in HEAD, redirections to
//! another host, ranges, and faults of every kind.
#![cfg(feature = "hub")]

mod common;
#[path = "hub/server.rs"]
mod server;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use int8_nn::hub::{Hub, HubError, ModelId, Settings};
use int8_nn::{GenerateOptions, Model};

use common::data;
use server::{Answer, COMMIT, Repository, Server};
use tempfile::TempDir;

/// A hub and its cache.
struct Setup {
    server: Server,
    cache: TempDir,
}

impl Setup {
    fn new(repository: Repository) -> Self {
        Self { server: Server::start(repository), cache: tempfile::tempdir().unwrap() }
    }

    fn settings(&self) -> Settings {
        let mut settings = Settings::new(self.cache.path().to_path_buf());
        settings.endpoint.clone_from(&self.server.address);
        settings.proxy = false;
        settings.pause = Duration::ZERO;
        settings
    }

    fn fetch_with(&self, id: &str, change: impl FnOnce(&mut Settings)) -> Result<PathBuf, HubError> {
        let mut settings = self.settings();
        change(&mut settings);
        Hub::new(settings)?.fetch(&id.parse()?, &mut |_| {})
    }

    fn fetch(&self, id: &str) -> Result<PathBuf, HubError> {
        self.fetch_with(id, |_| {})
    }

    /// Files of the cache that have contents, by name, without locks.
    fn files(&self) -> Vec<String> {
        fn walk(folder: &Path, root: &Path, found: &mut Vec<String>) {
            for entry in std::fs::read_dir(folder).into_iter().flatten() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    walk(&path, root, found);
                } else {
                    found.push(path.strip_prefix(root).unwrap().display().to_string());
                }
            }
        }
        let mut found = Vec::new();
        walk(self.cache.path(), self.cache.path(), &mut found);
        found.retain(|name| !name.starts_with(".locks"));
        found.sort();
        found
    }
}

/// A repository that consists of the files of a folder.
fn repository(folder: &str) -> Repository {
    let mut repository = Repository::default();
    for entry in std::fs::read_dir(data(folder)).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        repository.files.insert(name, std::fs::read(path).unwrap());
    }
    repository
}

/// A small repository: a configuration and 100,000 bytes of weights that nobody parses.
fn small() -> Repository {
    let weights = (0..100_000_u32).map(|index| index.to_le_bytes()[index as usize % 3]).collect();
    let files = [("config.json", b"{}".to_vec()), ("model.safetensors", weights)];
    Repository { files: files.map(|(name, bytes)| (name.to_owned(), bytes)).into(), ..Repository::default() }
}

const WEIGHTS: &str = "model.safetensors";

#[test]
fn a_model_is_downloaded_once_and_then_used_offline() {
    let mut repository = repository("models/llama");
    for (name, bytes) in [("README.md", "text"), ("1_Pooling/config.json", "{}"), ("pytorch_model.bin", "no")]
    {
        repository.files.insert(name.to_owned(), bytes.into());
    }
    let setup = Setup::new(repository);
    let folder = setup.fetch_with("org/tiny", |settings| settings.token = Some("secret".to_owned())).unwrap();

    // What a model needs, and nothing else; laid out as Python does it.
    let root = setup.cache.path().join("models--org--tiny");
    assert_eq!(folder, root.join("snapshots").join(COMMIT));
    assert_eq!(std::fs::read_to_string(root.join("refs/main")).unwrap(), COMMIT);
    for name in ["config.json", WEIGHTS, "1_Pooling/config.json"] {
        assert!(folder.join(name).is_file(), "{name}");
        assert_eq!(std::fs::read(folder.join(name)).unwrap(), setup.server.contents(name), "{name}");
    }
    for name in ["README.md", "pytorch_model.bin", "golden.safetensors"] {
        assert!(!folder.join(name).exists(), "{name}");
    }
    assert!(!setup.files().iter().any(|name| name.ends_with("incomplete")));
    #[cfg(unix)]
    assert!(std::fs::read_link(folder.join(WEIGHTS)).unwrap().starts_with("../../blobs"));

    // The token went to the hub in each request, and to no other host.
    let requests = setup.server.requests();
    assert!(requests.iter().any(|request| request.to_contents), "large files come from another host");
    for request in requests {
        assert_eq!(
            request.authorization.as_deref() == Some("Bearer secret"),
            !request.to_contents,
            "{request:?}"
        );
    }

    let greedy = GenerateOptions { max_new_tokens: 4, ..GenerateOptions::default() };
    let run = |folder: &Path| {
        let model = Model::load(folder).unwrap().int8().build().unwrap();
        model.generate_ids(&[5, 6, 7], &greedy, |_| std::ops::ControlFlow::Continue(())).unwrap().ids
    };
    assert_eq!(run(&folder), run(&data("models/llama")));

    // Again: only the list of files is requested. Offline: nothing.
    setup.server.forget();
    assert_eq!(setup.fetch("org/tiny").unwrap(), folder);
    assert_eq!(setup.server.requests().len(), 1);
    setup.server.forget();
    assert_eq!(setup.fetch_with("org/tiny", |settings| settings.offline = true).unwrap(), folder);
    let pinned = format!("org/tiny@{COMMIT}");
    assert_eq!(setup.fetch_with(&pinned, |settings| settings.offline = true).unwrap(), folder);
    assert!(setup.server.requests().is_empty());

    // A hub that cannot be reached is no obstacle either.
    let nowhere = |settings: &mut Settings| settings.endpoint = "http://127.0.0.1:9".to_owned();
    assert_eq!(setup.fetch_with("org/tiny", nowhere).unwrap(), folder);
    let error = setup.fetch_with("org/other", nowhere).unwrap_err();
    assert!(matches!(error, HubError::Network { .. }), "{error:?}");
}

#[test]
fn shards_of_torch_checkpoints_are_found_by_their_index() {
    let setup = Setup::new(repository("torch/sharded"));
    let folder = setup.fetch("org/sharded").unwrap();
    let checkpoint = int8_nn::checkpoint::Checkpoint::open(&folder).unwrap();
    assert_eq!(checkpoint.files().len(), 2);

    // A copy that lacks a shard is not complete.
    std::fs::remove_file(folder.join("pytorch_model-00002-of-00002.bin")).unwrap();
    let error = setup.fetch_with("org/sharded", |settings| settings.offline = true).unwrap_err();
    assert!(matches!(error, HubError::Offline { .. }), "{error:?}");
    assert!(error.to_string().contains("HF_HUB_OFFLINE"));
    setup.fetch("org/sharded").unwrap();
    setup.fetch_with("org/sharded", |settings| settings.offline = true).unwrap();
}

#[test]
fn revisions_are_kept_apart() {
    let setup = Setup::new(small());
    setup.fetch("org/small@v1.0").unwrap();
    setup.fetch("org/small@refs/pr/1").unwrap();
    assert!(setup.server.requests().iter().any(|request| request.path.ends_with("/revision/refs%2Fpr%2F1")));
    assert!(setup.cache.path().join("models--org--small/refs/refs/pr/1").is_file());
    let offline = |id| setup.fetch_with(id, |settings| settings.offline = true);
    assert!(offline("org/small@v1.0").is_ok());
    assert!(matches!(offline("org/small").unwrap_err(), HubError::Offline { .. }));
}

#[test]
fn a_broken_download_goes_on_where_it_stopped() {
    // Within one call: each answer breaks off after 30,000 bytes.
    let setup = Setup::new(Repository { cut: Some(30_000), ..small() });
    let mut seen = Vec::new();
    let hub = Hub::new(setup.settings()).unwrap();
    hub.fetch(&"org/small".parse().unwrap(), &mut |progress| {
        if progress.file == WEIGHTS {
            seen.push(progress.bytes_done);
            assert_eq!(progress.bytes, 100_000);
        }
    })
    .unwrap();
    assert!(seen.is_sorted() && seen.last() == Some(&100_000), "{seen:?}");
    let ranges = setup.server.ranges(WEIGHTS);
    assert_eq!(ranges, ["", "bytes=30000-", "bytes=60000-", "bytes=90000-"]);

    // Over several calls, as when the program is stopped between them.
    let setup = Setup::new(Repository { cut: Some(30_000), ..small() });
    for round in 1..=3 {
        let error = setup.fetch_with("org/small", |settings| settings.attempts = 1).unwrap_err();
        assert!(matches!(error, HubError::Network { .. }), "{error:?}");
        assert!(error.to_string().contains("resumes where it stopped"), "{error}");
        // What is there does not look whole: neither a snapshot nor a revision.
        assert!(setup.files().iter().all(|name| name.contains("/blobs/")), "{:?}", setup.files());
        let offline = setup.fetch_with("org/small", |settings| settings.offline = true);
        assert!(matches!(offline, Err(HubError::Offline { .. })));
        assert_eq!(setup.server.ranges(WEIGHTS).len(), round);
    }
    let folder = setup.fetch_with("org/small", |settings| settings.attempts = 1).unwrap();
    assert_eq!(std::fs::read(folder.join(WEIGHTS)).unwrap(), setup.server.contents(WEIGHTS));

    // A server that knows no parts of files: from the start, and right.
    let setup = Setup::new(Repository { cut: Some(30_000), cut_once: true, no_ranges: true, ..small() });
    let folder = setup.fetch("org/small").unwrap();
    assert_eq!(std::fs::read(folder.join(WEIGHTS)).unwrap(), setup.server.contents(WEIGHTS));
}

#[test]
fn busy_servers_are_asked_again() {
    let count = AtomicUsize::new(0);
    let busy = move |path: &str| {
        let is_first = path.contains("/contents/") && count.fetch_add(1, Ordering::SeqCst) < 2;
        is_first.then(|| Answer::status(503))
    };
    let setup = Setup::new(Repository { answer: Some(Box::new(busy)), ..small() });
    setup.fetch("org/small").unwrap();
    assert_eq!(setup.server.ranges(WEIGHTS).len(), 3);
}

#[test]
fn contents_that_are_not_the_stated_ones_leave_nothing() {
    type Damage = fn(&mut Vec<u8>);
    let damage: [(&str, Damage); 4] = [
        ("a changed byte", |bytes| {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
        }),
        ("a byte too many", |bytes| bytes.push(0)),
        ("a byte too few", |bytes| bytes.truncate(bytes.len() - 1)),
        ("nothing", Vec::clear),
    ];
    for (what, change) in damage {
        for name in [WEIGHTS, "config.json"] {
            let mut repository = small();
            let mut bytes = repository.files[name].clone();
            change(&mut bytes);
            repository.sent.insert(name.to_owned(), bytes);
            let setup = Setup::new(repository);
            let error = setup.fetch("org/small").unwrap_err();
            let expected = matches!(error, HubError::Checksum { .. } | HubError::Size { .. });
            assert!(expected && error.to_string().contains(name), "{name}, {what}: {error:?}");
            let kept: Vec<_> = setup.files().into_iter().filter(|name| !name.contains("/blobs/")).collect();
            assert!(kept.is_empty(), "{name}, {what}: {kept:?}");
            assert!(!setup.files().iter().any(|name| name.ends_with("incomplete")), "{name}, {what}");
            let offline = setup.fetch_with("org/small", |settings| settings.offline = true);
            assert!(matches!(offline, Err(HubError::Offline { .. })), "{name}, {what}");
        }
    }
}

/// What a former attempt left may be damaged: found at the end, removed, and the next attempt starts over.
#[test]
fn a_damaged_remainder_is_found() {
    let setup = Setup::new(Repository { cut: Some(30_000), cut_once: true, ..small() });
    setup.fetch_with("org/small", |settings| settings.attempts = 1).unwrap_err();
    let part = setup.files().into_iter().find(|name| name.ends_with("incomplete")).unwrap();
    let part = setup.cache.path().join(part);
    let mut bytes = std::fs::read(&part).unwrap();
    bytes[5] ^= 1;
    std::fs::write(&part, bytes).unwrap();
    let error = setup.fetch("org/small").unwrap_err();
    assert!(matches!(error, HubError::Checksum { .. }), "{error:?}");
    assert!(!part.exists());
    setup.fetch("org/small").unwrap();

    // One that is longer than the file starts over at once.
    let setup = Setup::new(Repository { cut: Some(30_000), cut_once: true, ..small() });
    setup.fetch_with("org/small", |settings| settings.attempts = 1).unwrap_err();
    let part = setup.files().into_iter().find(|name| name.ends_with("incomplete")).unwrap();
    std::fs::write(setup.cache.path().join(part), vec![0; 200_000]).unwrap();
    setup.fetch("org/small").unwrap();
}

#[test]
fn refusals_name_the_way_out() {
    /// Where the answer is given, the answer, a token, which error, what it says.
    type Case = (&'static str, Answer, Option<&'static str>, fn(&HubError) -> bool, &'static [&'static str]);
    let gated: fn(&HubError) -> bool = |error| matches!(error, HubError::Gated { .. });
    let absent: fn(&HubError) -> bool = |error| matches!(error, HubError::NoRepository { .. });
    let token: fn(&HubError) -> bool = |error| matches!(error, HubError::Token { .. });
    let cases: [Case; 12] = [
        ("/api/", Answer::error(401, "GatedRepo"), None, gated, &["org/small", "HF_TOKEN", "terms"]),
        ("/resolve/", Answer::error(401, "GatedRepo"), None, gated, &["HF_TOKEN"]),
        ("/resolve/", Answer::error(403, "GatedRepo"), Some("t"), gated, &["HF_TOKEN", "without access"]),
        ("/resolve/", Answer::status(403), None, gated, &["HF_TOKEN"]),
        ("/api/", Answer::error(401, "RepoNotFound"), None, absent, &["org/small", "spelling", "HF_TOKEN"]),
        ("/api/", Answer::error(404, "RepoNotFound"), Some("t"), absent, &["org/small", "without access"]),
        ("/api/", Answer::status(404), None, absent, &["org/small"]),
        (
            "/api/",
            Answer::error(404, "RevisionNotFound"),
            None,
            |error| matches!(error, HubError::NoRevision { .. }),
            &["org/small", "`v9`", "main"],
        ),
        (
            "/resolve/",
            Answer::error(404, "EntryNotFound"),
            None,
            |error| matches!(error, HubError::NoFile { .. }),
            &["`config.json`"],
        ),
        (
            "/api/",
            Answer::status(401).header("X-Error-Message", "Invalid credentials in Authorization header"),
            Some("bad"),
            token,
            &["HF_TOKEN", "401"],
        ),
        ("/api/", Answer::status(403), Some("t"), token, &["403"]),
        (
            "/api/",
            Answer::status(500).header("X-Error-Message", "Out of order"),
            None,
            |error| matches!(error, HubError::Status { .. }),
            &["500", "Out of order"],
        ),
    ];
    for (place, answer, token, is_right, names) in cases {
        let described = format!("{place} {answer:?} {token:?}");
        let given = move |path: &str| path.contains(place).then(|| answer.clone());
        let setup = Setup::new(Repository { answer: Some(Box::new(given)), ..small() });
        let error = setup
            .fetch_with("org/small@v9", |settings| settings.token = token.map(str::to_owned))
            .unwrap_err();
        assert!(is_right(&error), "{described}: {error:?}");
        for name in names {
            assert!(error.to_string().contains(name), "{described}: no {name:?} in: {error}");
        }
        assert!(setup.files().is_empty(), "{described}: {:?}", setup.files());
    }
}

#[test]
fn hostile_answers_change_nothing_outside_the_cache() {
    let listing = |text: &'static str| {
        move |path: &str| path.contains("/api/").then(|| Answer::status(200).body(text.as_bytes()))
    };
    let head = |name: &'static str, value: &'static str| {
        move |path: &str| path.contains("/resolve/").then(|| Answer::status(200).header(name, value))
    };
    type Give = Box<dyn Fn(&str) -> Option<Answer> + Send + Sync>;
    let cases: Vec<(&str, Give)> = vec![
        ("no JSON", Box::new(listing("<html>"))),
        ("no commit", Box::new(listing(r#"{"siblings":[]}"#))),
        ("a commit that is a path", Box::new(listing(r#"{"sha":"../../../x","siblings":[]}"#))),
        ("no list", Box::new(listing(r#"{"sha":"0123456789012345678901234567890123456789"}"#))),
        ("a checksum that is a path", Box::new(head("ETag", "\"../../x\""))),
        ("no checksum", Box::new(head("X-Other", "1"))),
        ("redirections for ever", Box::new(|path: &str| Some(Answer::status(302).header("Location", path)))),
        ("a redirection to nothing", Box::new(|_: &str| Some(Answer::status(302).header("Location", "x:y")))),
    ];
    for (what, give) in cases {
        let setup = Setup::new(Repository { answer: Some(give), ..small() });
        let error = setup.fetch("org/small").unwrap_err();
        assert!(matches!(error, HubError::Answer { .. }), "{what}: {error:?}");
        assert!(setup.files().is_empty(), "{what}: {:?}", setup.files());
    }
    // File names that lead elsewhere belong to no model.
    let names = r#"{"sha":"0123456789012345678901234567890123456789",
        "siblings":[{"rfilename":"../../config.json"},{"rfilename":"/etc/model.safetensors"}]}"#;
    let setup = Setup::new(Repository { answer: Some(Box::new(listing(names))), ..small() });
    assert!(matches!(setup.fetch("org/small").unwrap_err(), HubError::NoWeights { .. }));
}

/// A list that comes a byte every 20 ms.
#[test]
fn a_trickle_is_broken_off() {
    let setup = Setup::new(Repository { trickle: Some((Duration::from_millis(20), false)), ..small() });
    let begin = std::time::Instant::now();
    let error = setup
        .fetch_with("org/small", |settings| {
            settings.window = Duration::from_millis(300);
            settings.least_rate = 1_000;
            settings.attempts = 3;
        })
        .unwrap_err();
    assert!(
        matches!(error, HubError::Network { .. }) && error.to_string().contains("1000 bytes a second"),
        "{error}"
    );
    // A pace that is high enough, but not for as long as it would take.
    let error = setup
        .fetch_with("org/small", |settings| {
            settings.window = Duration::from_millis(300);
            settings.least_rate = 1;
            settings.deadline = Duration::from_millis(500);
        })
        .unwrap_err();
    assert!(matches!(error, HubError::Network { .. }) && error.to_string().contains("too long"), "{error}");
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
}

#[test]
fn a_file_that_trickles_is_broken_off_whatever_its_progress() {
    let slow = Setup::new(Repository { trickle: Some((Duration::from_millis(5), true)), ..small() });
    let begin = std::time::Instant::now();
    let error = slow
        .fetch_with("org/small", |settings| {
            settings.window = Duration::from_millis(400);
            settings.least_rate = 100_000;
            settings.deadline = Duration::from_secs(60);
            settings.attempts = 3;
        })
        .unwrap_err();
    assert!(matches!(error, HubError::Network { .. }), "{error}");
    assert!(begin.elapsed() < Duration::from_secs(20), "{:?}", begin.elapsed());
}

/// The contents' host redirects to the hub, to a path that it chose: the token does not go there.
#[test]
fn a_token_does_not_come_back() {
    let hub = std::sync::Arc::new(std::sync::Mutex::new(String::new()));
    let address = std::sync::Arc::clone(&hub);
    let give = move |path: &str| {
        let hub = address.lock().unwrap().clone();
        path.contains("/contents/")
            .then(|| Answer::status(302).header("Location", &format!("{hub}/chosen/by/another")))
    };
    let setup = Setup::new(Repository { answer: Some(Box::new(give)), ..small() });
    hub.lock().unwrap().clone_from(&setup.server.address);
    setup.fetch_with("org/small", |settings| settings.token = Some("secret".to_owned())).unwrap_err();
    let requests = setup.server.requests();
    let came: Vec<_> = requests.iter().filter(|request| request.path.contains("/chosen/")).collect();
    assert!(!came.is_empty() && came.iter().all(|request| request.authorization.is_none()), "{came:?}");
    // Where the hub itself is asked, the token is.
    assert!(requests.iter().any(|request| request.path.contains("/api/") && request.authorization.is_some()));
    assert!(
        requests.iter().filter(|request| request.to_contents).all(|request| request.authorization.is_none())
    );
}

#[test]
fn headers_come_without_the_weights() {
    let setup = Setup::new(repository("models/llama"));
    let hub = Hub::new(setup.settings()).unwrap();
    let found = hub.headers(&"org/tiny".parse().unwrap()).unwrap();
    let names: Vec<_> = found.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["config.json", WEIGHTS]);
    let header: serde_json::Value = serde_json::from_slice(&found[1].1).unwrap();
    assert!(header.as_object().unwrap().len() > 10);
    assert!(setup.files().is_empty());
    let weights = setup.server.contents(WEIGHTS).len();
    assert!(setup.server.sent() < weights / 4, "{} bytes sent", setup.server.sent());
}

#[test]
fn settings_are_checked() {
    for endpoint in ["huggingface.co", "ftp://x", "", "https://"] {
        let mut settings = Settings::new(PathBuf::from("unused"));
        settings.endpoint = endpoint.to_owned();
        let error = Hub::new(settings).unwrap_err();
        assert!(error.to_string().contains("HF_ENDPOINT"), "{error}");
    }
    let mut settings = Settings::new(PathBuf::from("unused"));
    settings.certificates = Some(data("models/llama/config.json"));
    assert!(Hub::new(settings).unwrap_err().to_string().contains("certificates"));
    assert!("no-slash".parse::<ModelId>().unwrap_err().to_string().contains("org/name"));
}
