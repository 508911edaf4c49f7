//! Every check fails on a bad input and passes on a good one.

use serde_json::json;

use super::*;

/// `cargo metadata` of packages that depend on these crates.
fn metadata(packages: &[(&str, &[Value])]) -> Value {
    let packages: Vec<Value> = packages
        .iter()
        .map(|(name, dependencies)| json!({"name": name, "dependencies": dependencies}))
        .collect();
    json!({ "packages": packages })
}

fn on(name: &str) -> Value {
    json!({"name": name, "kind": null, "optional": false})
}

fn violations_of(path: &str, text: &str) -> Vec<String> {
    file_violations(path, &format!("//! A file.\n{text}\n"))
}

#[test]
fn allowed_edges_pass() {
    let packages = metadata(&[
        (
            "int8-core",
            &[on("half"), on("ndarray"), on("thiserror"), json!({"name": "proptest", "kind": "dev"})],
        ),
        ("int8-cpu", &[on("int8-core"), on("rayon")]),
        ("int8-cuda", &[on("int8-core"), on("cust")]),
        ("int8-nn", &[on("int8-cpu"), json!({"name": "int8-cuda", "kind": null, "optional": true})]),
        ("xtask", &[on("serde_json")]),
    ]);
    assert_eq!(crate_edges(&packages), Vec::<String>::new());
}

#[test]
fn edges_that_point_the_wrong_way_fail() {
    for (from, to) in [
        ("int8-core", "int8-cpu"),
        ("int8-cpu", "int8-nn"),
        ("int8-cuda-sys", "int8-core"),
        ("int8-cli", "int8-cuda-sys"),
        ("xtask", "int8-nn"),
    ] {
        for kind in [Value::Null, json!("dev"), json!("build")] {
            let dependency = json!({"name": to, "kind": kind, "optional": true});
            let found = crate_edges(&metadata(&[(from, &[dependency]), (to, &[])]));
            assert_eq!(found.len(), 1, "{from} → {to} ({kind}): {found:?}");
            assert!(found[0].starts_with(&format!("{from}: may not depend on {to}")), "{found:?}");
        }
    }
}

#[test]
fn cuda_by_default_fails() {
    let found = crate_edges(&metadata(&[("int8-nn", &[on("int8-cuda")]), ("int8-cuda", &[])]));
    assert!(found.len() == 1 && found[0].contains("must be optional"), "{found:?}");
}

#[test]
fn another_dependency_of_core_fails() {
    let found = crate_edges(&metadata(&[("int8-core", &[on("rayon")])]));
    assert!(found.len() == 1 && found[0].contains("depends on rayon"), "{found:?}");
}

#[test]
fn an_unknown_crate_fails() {
    let found = crate_edges(&metadata(&[("int8-helpers", &[])]));
    assert!(found.len() == 1 && found[0].starts_with("int8-helpers"), "{found:?}");
}

#[test]
fn members_without_comments_fail() {
    let good = "members = [\n  \"a\", # what a is\n  \"b\", # what b is\n]\n# not built by default\ndefault-members = [\"a\"]\n";
    assert_eq!(member_comments(good), Vec::<String>::new());
    let bare = "members = [\n  \"a\", # what a is\n  \"b\", #\n]\ndefault-members = [\"a\"]\n\nexclude = [\"fuzz\"]\n";
    let found = member_comments(bare);
    let entries: Vec<&str> = found.iter().filter_map(|violation| violation.split('`').nth(1)).collect();
    assert_eq!(entries, ["b", "a", "fuzz"], "{found:?}");
}

#[test]
fn another_test_command_fails() {
    let readme = "# x\n```\nother\n```\n## Test\n\n```\ncargo xtask test\n```\n";
    assert_eq!(ci_differs(readme, "#!/bin/sh\ncargo xtask test\n\n"), None);
    for (readme, ci) in
        [(readme, "cargo test\n"), (readme, ""), ("# x\n", "cargo xtask test\n"), ("## Test\n```\n", "")]
    {
        assert!(ci_differs(readme, ci).is_some(), "{readme} {ci}");
    }
}

#[test]
fn a_file_without_module_doc_fails() {
    for text in
        ["", "use std::fs;\n", "// A comment.\n//! Too late.\n", "//!\n", "#![deny(x)]\n//! Too late.\n"]
    {
        let found = file_violations("int8-nn/src/a.rs", text);
        assert!(found.len() == 1 && found[0].contains("module doc"), "{text:?}: {found:?}");
    }
    for text in ["\n//! A file.\n", "#![doc = include_str!(\"../README.md\")]\n"] {
        assert_eq!(file_violations("int8-nn/src/a.rs", text), Vec::<String>::new());
    }
}

#[test]
fn ignored_tests_fail() {
    for code in ["#[ignore]\nfn f() {}", "#[ignore = \"x\"]"] {
        for path in ["int8-nn/src/a.rs", "int8-nn/tests/a.rs", "int8-cli/src/a.rs"] {
            let found = violations_of(path, code);
            assert!(found.len() == 1 && found[0].starts_with(&format!("{path}:2")), "{code}: {found:?}");
        }
    }
}

#[test]
fn only_imports_is_an_argument() {
    let arguments = ["--imports".to_owned(), "int8-gpu".to_owned()];
    for arguments in [&arguments[..1], &arguments[..]] {
        assert!(run(arguments).is_err());
    }
}

#[test]
fn long_files_fail() {
    let lines = |count: usize| "// a line\n".repeat(count);
    for path in ["int8-nn/src/a.rs", "cmake/src/a.cu", "cmake/include/a.h"] {
        assert_eq!(
            file_violations(path, &format!("//! A file.\n{}", lines(MAX_LINES - 1))),
            Vec::<String>::new()
        );
        let found = file_violations(path, &format!("//! A file.\n{}", lines(MAX_LINES)));
        assert!(found.len() == 1 && found[0].contains("801 lines"), "{found:?}");
    }
}

#[test]
fn files_are_found_and_build_output_is_not() {
    let mut files = Vec::new();
    source_files(&shell::workspace_root().expect("a workspace"), "", &mut files).expect("readable folders");
    let has = |wanted: &str| files.iter().any(|(path, _)| path == wanted);
    assert!(has("xtask/src/tidy.rs") && has("int8-core/src/lib.rs") && has("int8-core/tests/laws.rs"));
    assert!(!files.iter().any(|(path, _)| path.starts_with("target/") || path.starts_with('.')));
}
