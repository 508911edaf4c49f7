//! Imports inside a crate: no cycles between its files, and none that points upward in the declared order of folders.

mod graph;
mod paths;
mod resolve;

use graph::{Graph, Order};

/// Crates without cycles. A facade's re-exports are no imports: see `resolve`.
pub(crate) const CHECKED: [&str; 4] = ["int8-core", "int8-cpu", "int8-cuda", "int8-cli"];

/// The declared orders, lowest first; a file imports from its own rank and below.
const ORDERS: [(&str, &Order); 1] = [(
    "int8-cpu",
    &[
        &["error", "convert", "buffer", "arena", "matrix", "pool", "tokens", "kernel", "layout", "prefetch"],
        &["simd"],
        &["prologue"],
        &["pack"],
        &["gemm"],
        &["epilogue"],
        &["attention", "activations"],
        &["linear"],
        &["float", "probe", "verify"],
    ],
)];

/// Every cycle and upward import of the crates in [`CHECKED`]. `files`: paths relative to the workspace, and texts.
pub(crate) fn violations(files: &[(String, String)]) -> Vec<String> {
    let mut violations = Vec::new();
    for name in CHECKED {
        let graph = of_crate(name, files);
        let cycles = graph.cycles();
        violations
            .extend(cycles.iter().map(|cycle| format!("{name}/src: import cycle: {}", graph::shown(cycle))));
        for (_, order) in ORDERS.iter().filter(|(ordered, _)| *ordered == name) {
            let upward = graph.order_violations(order);
            violations.extend(upward.iter().map(|violation| format!("{name}/src/{violation}")));
        }
    }
    violations
}

/// The picture of one crate's imports, by levels.
pub(crate) fn picture(name: &str, files: &[(String, String)]) -> Result<String, String> {
    let graph = of_crate(name, files);
    if graph.files.is_empty() {
        return Err(format!("{name}: no crate of this workspace has this name"));
    }
    let (levels, _) = graph.levels();
    let cycles = graph.cycles();
    let mut text = format!(
        "{name}/src: {} files, {} imports, {} levels, {} cycles\n\n{}",
        graph.files.len(),
        graph.edges().count(),
        levels.len(),
        cycles.len(),
        graph.picture()
    );
    for cycle in cycles {
        text.push_str(&format!("\ncycle: {}", graph::shown(&cycle)));
    }
    Ok(text)
}

/// The graph of a crate's library or main program, tests and further programs (`src/bin`) excluded.
fn of_crate(name: &str, files: &[(String, String)]) -> Graph {
    let source = format!("{name}/src/");
    let own: Vec<(String, String)> = files
        .iter()
        .filter_map(|(path, text)| {
            let path = path.strip_prefix(&source)?;
            let is_test = path.ends_with("tests.rs") || path.contains("tests/");
            (path.ends_with(".rs") && !path.starts_with("bin/") && !is_test)
                .then(|| (path.to_owned(), text.clone()))
        })
        .collect();
    resolve::graph(&own)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(list: &[(&str, &str)]) -> Vec<(String, String)> {
        list.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect()
    }

    const FINE: [(&str, &str); 4] = [
        ("int8-cpu/src/lib.rs", "mod error;\nmod gemm;\nmod linear;\npub use error::Error;"),
        ("int8-cpu/src/error.rs", "pub enum Error {}"),
        ("int8-cpu/src/gemm.rs", "use crate::Error;\npub fn gemm() {}"),
        ("int8-cpu/src/linear.rs", "use crate::{Error, gemm};\nfn linear() { gemm::gemm() }"),
    ];

    #[test]
    fn a_layered_crate_passes() {
        assert_eq!(violations(&files(&FINE)), Vec::<String>::new());
        let picture = picture("int8-cpu", &files(&FINE)).expect("a crate");
        assert!(picture.starts_with("int8-cpu/src: 4 files, 3 imports, 3 levels, 0 cycles"), "{picture}");
        assert!(picture.contains("level 2\n  linear.rs  →  error.rs, gemm.rs\n"), "{picture}");
    }

    #[test]
    fn a_planted_upward_import_fails() {
        let mut planted = files(&FINE);
        planted[1].1.push_str("\nuse crate::gemm::gemm;");
        let found = violations(&planted);
        assert_eq!(found.len(), 2, "{found:?}");
        assert_eq!(
            found[0],
            "int8-cpu/src: import cycle: error.rs:2 (crate::gemm::gemm) → gemm.rs:1 (crate::Error) → error.rs"
        );
        assert!(
            found[1].starts_with("int8-cpu/src/error.rs:2: upward import `crate::gemm::gemm`"),
            "{found:?}"
        );
    }

    #[test]
    fn tests_and_programs_may_import_anything() {
        let mut with_tests = files(&FINE);
        with_tests.extend(files(&[
            ("int8-cpu/src/error/tests.rs", "use crate::gemm::gemm;"),
            ("int8-cpu/src/gemm_tests.rs", "use crate::linear;"),
            ("int8-cpu/src/bin/a.rs", "use crate::gemm;"),
        ]));
        assert_eq!(violations(&with_tests), Vec::<String>::new());
    }

    #[test]
    fn an_unknown_crate_has_no_picture() {
        assert!(picture("int8-gpu", &files(&FINE)).is_err());
    }
}
