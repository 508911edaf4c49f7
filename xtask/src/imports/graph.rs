//! The directed graph of a crate's files: cycles, levels and a declared order of folders.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// One import: `from` names an item that `to` defines.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Edge {
    pub(crate) from: String,
    pub(crate) to: String,
    /// Line of `from`, from 1.
    pub(crate) line: usize,
    /// The path as written.
    pub(crate) path: String,
}

/// The files of one crate, relative to its `src`, and the imports between them.
#[derive(Debug, Default)]
pub(crate) struct Graph {
    pub(crate) files: BTreeSet<String>,
    /// The first import of each pair of files.
    edges: BTreeMap<(String, String), Edge>,
}

/// Names at the top level of a crate's `src` (a file without `.rs`, or a folder), lowest rank first. A file may import from
/// its own rank and from lower ones; `lib.rs` and `main.rs` stand above all.
pub(crate) type Order = [&'static [&'static str]];

impl Graph {
    pub(crate) fn new(
        files: impl IntoIterator<Item = String>,
        edges: impl IntoIterator<Item = Edge>,
    ) -> Self {
        let mut graph = Self { files: files.into_iter().collect(), edges: BTreeMap::new() };
        for edge in edges {
            let pair = (edge.from.clone(), edge.to.clone());
            graph
                .edges
                .entry(pair)
                .and_modify(|first| {
                    if edge.line < first.line {
                        *first = edge.clone();
                    }
                })
                .or_insert(edge);
        }
        graph
    }

    pub(crate) fn edges(&self) -> impl Iterator<Item = &Edge> {
        self.edges.values()
    }

    fn imports_of<'a>(&'a self, file: &'a str) -> impl Iterator<Item = &'a Edge> {
        self.edges
            .range((file.to_owned(), String::new())..)
            .map(|(_, edge)| edge)
            .take_while(move |edge| edge.from == file)
    }

    /// For each file on a cycle a shortest one through it, each cycle once, beginning with its first file by name.
    pub(crate) fn cycles(&self) -> Vec<Vec<&Edge>> {
        let mut found: BTreeMap<Vec<&str>, Vec<&Edge>> = BTreeMap::new();
        for file in &self.files {
            let Some(mut cycle) = self.shortest_cycle(file) else { continue };
            let first = (0..cycle.len()).min_by_key(|&at| &cycle[at].from).unwrap_or(0);
            cycle.rotate_left(first);
            found.entry(cycle.iter().map(|edge| edge.from.as_str()).collect()).or_insert(cycle);
        }
        found.into_values().collect()
    }

    /// Breadth-first search from `start` back to it.
    fn shortest_cycle<'a>(&'a self, start: &'a str) -> Option<Vec<&'a Edge>> {
        let mut reached_by: BTreeMap<&str, &Edge> = BTreeMap::new();
        let mut queue = VecDeque::from([start]);
        while let Some(file) = queue.pop_front() {
            for edge in self.imports_of(file) {
                if edge.to == start {
                    let mut cycle = vec![edge];
                    let mut at = edge.from.as_str();
                    while at != start {
                        let edge = reached_by[at];
                        cycle.push(edge);
                        at = &edge.from;
                    }
                    cycle.reverse();
                    return Some(cycle);
                }
                if !reached_by.contains_key(edge.to.as_str()) {
                    reached_by.insert(&edge.to, edge);
                    queue.push_back(&edge.to);
                }
            }
        }
        None
    }

    /// The files by level: those of level 0 import nothing of the crate, those of level n something of level n − 1 and
    /// nothing higher. Files on a cycle, and those that import them, have no level and stand last, together.
    pub(crate) fn levels(&self) -> (Vec<Vec<&str>>, Vec<&str>) {
        let mut left: BTreeSet<&str> = self.files.iter().map(String::as_str).collect();
        let mut levels = Vec::new();
        loop {
            let level: Vec<&str> = left
                .iter()
                .copied()
                .filter(|file| self.imports_of(file).all(|edge| !left.contains(edge.to.as_str())))
                .collect();
            if level.is_empty() {
                return (levels, left.into_iter().collect());
            }
            left.retain(|file| !level.contains(file));
            levels.push(level);
        }
    }

    /// Imports that point upward in `order`, and files that it does not name.
    pub(crate) fn order_violations(&self, order: &Order) -> Vec<String> {
        let rank = |file: &str| {
            let name = file.split('/').next().unwrap_or(file);
            match name {
                "lib.rs" | "main.rs" => Some(order.len()),
                _ => {
                    let name = name.trim_end_matches(".rs");
                    order.iter().position(|names| names.contains(&name))
                }
            }
        };
        let unknown = self.files.iter().filter(|file| rank(file).is_none());
        let mut violations: Vec<String> =
            unknown.map(|file| format!("{file}: its folder has no place in the declared order")).collect();
        for edge in self.edges() {
            if let (Some(from), Some(to)) = (rank(&edge.from), rank(&edge.to))
                && from < to
            {
                violations.push(format!(
                    "{}:{}: upward import `{}` of {}; the declared order puts the importer below",
                    edge.from, edge.line, edge.path, edge.to
                ));
            }
        }
        violations
    }

    /// The picture: levels from the lowest up, each file with the files that it imports.
    pub(crate) fn picture(&self) -> String {
        let (levels, cyclic) = self.levels();
        let mut text = String::new();
        let names = levels.iter().enumerate().map(|(level, files)| (format!("level {level}"), files));
        let cyclic =
            Some((String::from("on a cycle, or above one"), &cyclic)).filter(|(_, files)| !files.is_empty());
        for (title, files) in names.chain(cyclic) {
            text.push_str(&format!("{title}\n"));
            for file in files {
                let imports: Vec<&str> = self.imports_of(file).map(|edge| edge.to.as_str()).collect();
                let arrow = if imports.is_empty() { "" } else { "  →  " };
                text.push_str(&format!("  {file}{arrow}{}\n", imports.join(", ")));
            }
        }
        text
    }
}

/// `a.rs:3 (crate::b::X) → b.rs:7 (super::a) → a.rs`
pub(crate) fn shown(cycle: &[&Edge]) -> String {
    let mut text: String =
        cycle.iter().map(|edge| format!("{}:{} ({}) → ", edge.from, edge.line, edge.path)).collect();
    text.push_str(cycle.first().map_or("", |edge| &edge.from));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `"a b"`: file a imports file b.
    fn graph(edges: &[&str]) -> Graph {
        let edges: Vec<Edge> = (1..)
            .zip(edges)
            .filter_map(|(line, pair)| {
                let (from, to) = pair.split_once(' ')?;
                Some(Edge { from: from.into(), to: to.into(), line, path: format!("crate::{to}") })
            })
            .collect();
        let files: Vec<String> = edges.iter().flat_map(|edge| [edge.from.clone(), edge.to.clone()]).collect();
        Graph::new(files, edges)
    }

    #[test]
    fn a_cycle_is_found_with_its_lines() {
        let graph = graph(&["a.rs b.rs", "b.rs c.rs", "c.rs a.rs", "c.rs d.rs", "e.rs a.rs"]);
        let cycles = graph.cycles();
        assert_eq!(cycles.len(), 1);
        assert_eq!(
            shown(&cycles[0]),
            "a.rs:1 (crate::b.rs) → b.rs:2 (crate::c.rs) → c.rs:3 (crate::a.rs) → a.rs"
        );
        let (levels, cyclic) = graph.levels();
        assert_eq!(levels, [["d.rs"]]);
        assert_eq!(cyclic, ["a.rs", "b.rs", "c.rs", "e.rs"]);
    }

    #[test]
    fn every_cycle_of_a_file_pair_is_found() {
        let graph = graph(&["a.rs b.rs", "b.rs a.rs", "b.rs c.rs", "c.rs b.rs"]);
        assert_eq!(graph.cycles().len(), 2);
    }

    #[test]
    fn levels_follow_the_imports() {
        let graph = graph(&["main.rs b.rs", "main.rs a.rs", "b.rs a.rs"]);
        assert!(graph.cycles().is_empty());
        assert_eq!(graph.levels().0, [["a.rs"], ["b.rs"], ["main.rs"]]);
        let picture = graph.picture();
        assert!(picture.contains("level 2\n  main.rs  →  a.rs, b.rs\n"), "{picture}");
    }

    #[test]
    fn upward_imports_are_named_without_a_cycle() {
        let order: &Order = &[&["error", "pool"], &["gemm"], &["linear"]];
        let fine =
            graph(&["gemm/a.rs gemm/b.rs", "gemm/a.rs pool.rs", "pool.rs error.rs", "lib.rs linear.rs"]);
        assert_eq!(fine.order_violations(order), Vec::<String>::new());
        let upward = graph(&["pool.rs gemm/a.rs", "linear.rs pool.rs", "error.rs lib.rs"]);
        assert!(upward.cycles().is_empty());
        let found = upward.order_violations(order);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].starts_with("error.rs:3: upward import `crate::lib.rs` of lib.rs"), "{found:?}");
        assert!(found[1].starts_with("pool.rs:1: upward import `crate::gemm/a.rs`"), "{found:?}");
        let unknown = graph(&["extra/a.rs pool.rs"]).order_violations(order);
        assert!(unknown.len() == 1 && unknown[0].starts_with("extra/a.rs: its folder"), "{unknown:?}");
    }
}
