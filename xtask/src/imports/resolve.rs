//! From the paths in a crate's files to the files that define what they name.
//!
//! A path is followed segment by segment through modules and through `use` declarations, public or not, to the file that
//! defines its item; a name that a facade (`lib.rs`, `mod.rs`) re-exports is an import of the file behind it. So a facade that
//! only declares and re-exports imports nothing, and nobody imports it. A module that is imported by name alone is no
//! import yet: each path through it is.

use std::collections::BTreeMap;

use super::graph::{Edge, Graph};
use super::paths::{self, Import, Path, Paths};
use crate::scan;

/// A module's path from the crate's root.
type ModulePath = Vec<String>;

/// What a path leads to.
enum Target {
    Module(ModulePath),
    /// An item, by the file that defines it.
    Item(String),
}

struct Module {
    file: String,
    imports: Vec<Import>,
    items: Vec<String>,
}

struct Crate {
    modules: BTreeMap<ModulePath, Module>,
}

/// `use` declarations that may lead to each other.
const MAX_DEPTH: usize = 16;

/// The graph of a crate out of its files: paths relative to `src`, and texts.
pub(crate) fn graph(files: &[(String, String)]) -> Graph {
    let read: Vec<(&String, ModulePath, Paths)> = files
        .iter()
        .map(|(file, text)| {
            (file, module_of(file), paths::read(&scan::without_tests(&scan::code_only(text))))
        })
        .collect();
    let mut modules = BTreeMap::new();
    for (file, module, paths) in &read {
        for inline in std::iter::once(&Vec::new()).chain(&paths.inline_modules) {
            let here = |inside: &[String]| inside == inline.as_slice();
            let imports = paths.imports.iter().filter(|import| here(&import.path.inside)).cloned().collect();
            let items = paths.items.iter().filter(|(inside, _)| here(inside)).map(|(_, name)| name.clone());
            let entry = Module { file: (*file).clone(), imports, items: items.collect() };
            modules.insert([&module[..], inline].concat(), entry);
        }
    }
    let tree = Crate { modules };
    let mut edges = Vec::new();
    for (file, module, paths) in &read {
        // A re-export makes a path for others, who import what is behind it; it is an import if the file uses the name, too.
        let used = paths.imports.iter().filter(|import| {
            !import.is_public || import.name.as_ref().is_some_and(|name| paths.names.contains(name))
        });
        let leaves = used.map(|import| (&import.path, import.name.is_none()));
        for (path, is_glob) in leaves.chain(paths.expressions.iter().map(|path| (path, false))) {
            let from = [&module[..], &path.inside].concat();
            let to = match tree.resolve(&from, &path.segments, MAX_DEPTH) {
                Some(Target::Item(file)) => Some(file),
                // Every name of the module.
                Some(Target::Module(target)) if is_glob => tree.modules.get(&target).map(|m| m.file.clone()),
                _ => None,
            };
            if let Some(to) = to.filter(|to| to != *file) {
                let path_text = path.segments.join("::") + if is_glob { "::*" } else { "" };
                edges.push(Edge { from: (*file).clone(), to, line: path.line, path: path_text });
            }
        }
    }
    Graph::new(files.iter().map(|(file, _)| file.clone()), edges)
}

/// `a/b.rs` and `a/b/mod.rs` are `[a, b]`; `lib.rs` and `main.rs` are the root.
fn module_of(file: &str) -> ModulePath {
    let path = file.trim_end_matches(".rs");
    let mut module: ModulePath = path.split('/').map(str::to_owned).collect();
    if module.last().is_some_and(|last| last == "mod") || matches!(path, "lib" | "main") {
        module.pop();
    }
    module
}

impl Crate {
    /// What `segments` mean in module `from`; `None` for what is not of this crate.
    fn resolve(&self, from: &[String], segments: &[String], depth: usize) -> Option<Target> {
        let mut at = from.to_vec();
        let mut rest = segments;
        let mut absolute = false;
        while let Some((first, tail)) = rest.split_first() {
            match first.as_str() {
                "crate" => at.clear(),
                "self" => {}
                "super" => {
                    at.pop()?;
                }
                _ => break,
            }
            absolute = true;
            rest = tail;
        }
        let Some((first, _)) = rest.split_first() else { return Some(Target::Module(at)) };
        // A name alone may be anything; it is of this crate if the module declares or imports it.
        if !absolute && !self.declares(&at, first) {
            return None;
        }
        self.walk(at, rest, depth)
    }

    fn declares(&self, module: &[String], name: &str) -> bool {
        self.child(module, name).is_some()
            || self.modules.get(module).is_some_and(|module| {
                module.imports.iter().any(|import| import.name.as_deref() == Some(name))
            })
    }

    fn child(&self, module: &[String], name: &str) -> Option<ModulePath> {
        let child = [module, &[name.to_owned()]].concat();
        self.modules.contains_key(&child).then_some(child)
    }

    /// From a module along `segments`.
    fn walk(&self, at: ModulePath, segments: &[String], depth: usize) -> Option<Target> {
        let Some((name, rest)) = segments.split_first() else { return Some(Target::Module(at)) };
        if let Some(child) = self.child(&at, name) {
            return self.walk(child, rest, depth);
        }
        let module = self.modules.get(&at)?;
        if module.items.contains(name) || depth == 0 {
            return Some(Target::Item(module.file.clone()));
        }
        let named = module.imports.iter().find(|import| import.name.as_deref() == Some(name));
        if let Some(Import { path: Path { segments, .. }, .. }) = named {
            // What another crate defines is an item of nobody here.
            return match self.resolve(&at, segments, depth - 1)? {
                Target::Module(module) => self.walk(module, rest, depth - 1),
                item @ Target::Item(_) => Some(item),
            };
        }
        let globs = module.imports.iter().filter(|import| import.name.is_none());
        for import in globs {
            if let Some(Target::Module(target)) = self.resolve(&at, &import.path.segments, depth - 1)
                && self.modules.get(&target).is_some_and(|module| module.items.contains(name))
            {
                return self.walk(target, segments, depth - 1);
            }
        }
        Some(Target::Item(module.file.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edges(files: &[(&str, &str)]) -> Vec<String> {
        let files: Vec<(String, String)> =
            files.iter().map(|(file, text)| ((*file).to_owned(), (*text).to_owned())).collect();
        graph(&files).edges().map(|edge| format!("{}:{} {}", edge.from, edge.line, edge.to)).collect()
    }

    #[test]
    fn re_exports_lead_to_the_file_behind_them() {
        let found = edges(&[
            ("lib.rs", "mod error;\nmod gemm;\npub use error::Error;\npub use gemm::run;"),
            ("error.rs", "pub enum Error { A }"),
            ("gemm/mod.rs", "mod amx;\nmod plan;\npub(crate) use plan::{Plan as Schedule};\npub use amx::*;"),
            ("gemm/plan.rs", "pub struct Plan;\n\nuse crate::Error;"),
            ("gemm/amx.rs", "use super::Schedule;\nfn tile() { crate::Error::A }"),
            ("linear.rs", "use crate::gemm;\nfn f() { gemm::Schedule::new(); gemm::tile() }"),
        ]);
        assert_eq!(
            found,
            [
                "gemm/amx.rs:2 error.rs",
                "gemm/amx.rs:1 gemm/plan.rs",
                "gemm/plan.rs:3 error.rs",
                "linear.rs:2 gemm/amx.rs",
                "linear.rs:2 gemm/plan.rs",
            ]
        );
    }

    #[test]
    fn a_re_export_that_the_file_uses_is_an_import() {
        let plan = ("plan.rs", "pub struct Plan;\npub fn plan() {}");
        let uses = "mod plan;\npub use plan::{Plan, plan};\n";
        for (code, imports) in [
            ("fn f(plan: u8) { x.plan(plan) }", false),
            ("struct Step { plan: Plan }", true),
            ("fn f() { plan() }", true),
        ] {
            let found = edges(&[("lib.rs", &format!("{uses}{code}")), plan]);
            assert_eq!(!found.is_empty(), imports, "{code}: {found:?}");
        }
    }

    #[test]
    fn items_of_a_parent_are_imports_of_its_file() {
        let found = edges(&[
            ("main.rs", "mod a;\nstruct Failure;\nfn main() { a::run() }"),
            ("a/mod.rs", "mod b;\nfn run() { b::go() }\nfn helper() {}"),
            ("a/b.rs", "fn go() { super::helper(); crate::Failure; }"),
        ]);
        assert_eq!(
            found,
            ["a/b.rs:1 a/mod.rs", "a/b.rs:1 main.rs", "a/mod.rs:2 a/b.rs", "main.rs:3 a/mod.rs"]
        );
    }

    #[test]
    fn comments_tests_and_other_crates_are_no_imports() {
        let found = edges(&[
            ("lib.rs", "mod a;\nmod b;"),
            (
                "a.rs",
                "//! [`crate::b::B`]\nuse std::fmt;\nuse b_crate::b::B;\nfn f() { fmt::Error; rayon::b::c() }\n#[cfg(test)]\nmod tests { use crate::b::B; }",
            ),
            ("b.rs", "pub struct B;"),
        ]);
        assert_eq!(found, Vec::<String>::new());
    }

    #[test]
    fn inline_modules_belong_to_their_file() {
        let found = edges(&[
            ("lib.rs", "mod a;\nmod b;"),
            (
                "a.rs",
                "fn x() { inner::y() }\nmod inner {\n  use super::x;\n  use crate::b::*;\n  pub fn y() {}\n}",
            ),
            ("b.rs", "fn f() { crate::a::inner::y() }"),
        ]);
        assert_eq!(found, ["a.rs:4 b.rs", "b.rs:1 a.rs"]);
    }
}
