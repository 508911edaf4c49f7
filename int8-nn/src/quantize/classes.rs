//! The weights that transformers' `load_in_8bit` converts, for each of its model classes.
//!
//! `classes.tsv` is written by `tools/quantize_classes.py`, which builds each class in transformers. Names stand without
//! `.weight`; `*` is a number. A weight follows the entry of its class if there is one, or else the longest known ending of
//! its name.

use std::collections::HashMap;
use std::sync::LazyLock;

const TABLE: &str = include_str!("classes.tsv");

/// Components of the longest endings in the table.
const ENDING: usize = 3;

/// What transformers does with a two-dimensional weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Code {
    /// Converts it.
    Int8,
    /// Converts it; it is stored `[in, out]`.
    Transposed,
    /// Keeps it: it belongs to no linear layer.
    NotLinear,
    /// Keeps it: the output head, or the last parameter of the model.
    Head,
    /// Keeps it if the model ties its weights.
    Tied,
    /// Keeps it in 32-bit.
    In32Bit,
    /// Keeps it in the last layer: the last parameter of the model.
    LastLayer,
    /// Splits, fuses or renames it on loading in a way that int8 scales do not follow.
    Changed,
}

impl Code {
    fn new(letter: &str) -> Option<Self> {
        Some(match letter {
            "I" => Self::Int8,
            "T" => Self::Transposed,
            "N" => Self::NotLinear,
            "H" => Self::Head,
            "D" => Self::Tied,
            "F" => Self::In32Bit,
            "Z" => Self::LastLayer,
            "X" => Self::Changed,
            _ => return None,
        })
    }
}

/// The table.
struct Table {
    endings: HashMap<&'static str, Code>,
    /// The rest of each class's line.
    classes: HashMap<&'static str, &'static str>,
}

static PARSED: LazyLock<Table> = LazyLock::new(|| {
    let mut table = Table { endings: HashMap::new(), classes: HashMap::new() };
    for line in TABLE.lines().filter(|line| !line.starts_with('#')) {
        let Some((names, rest)) = line.split_once('\t') else { continue };
        match Code::new(names) {
            Some(code) => table.endings.extend(rest.split(' ').map(|ending| (ending, code))),
            None => table.classes.extend(names.split(' ').map(|class| (class, rest))),
        }
    }
    table
});

/// By the ending of a module's name alone; `None` for a name that no class has.
pub(super) fn by_ending(module: &str) -> Option<Code> {
    let module = general(module);
    let starts = module.rmatch_indices('.').map(|(at, _)| at + 1).chain([0]).take(ENDING);
    let endings = starts.filter_map(|at| PARSED.endings.get(module.get(at..)?));
    endings.last().copied()
}

/// A class of transformers.
#[derive(Debug)]
pub(super) struct Class {
    /// `tie_word_embeddings` where the configuration does not say.
    pub(super) tied: bool,
    /// By the stored name: what happens, and the module's name in transformers.
    entries: HashMap<&'static str, (Code, &'static str)>,
    /// Modules that are filled from weights that change on loading.
    changed: Vec<&'static str>,
    /// Names of modules kept in 32-bit, as in a skip list.
    pub(super) in_32_bit: Vec<String>,
}

impl Class {
    /// The class with the configuration of a model type, on which renaming depends; `None` for one that the table lacks.
    pub(super) fn find(name: &str, model_type: &str) -> Option<Self> {
        let line = PARSED.classes.get(format!("{name}:{model_type}").as_str());
        let mut fields = line.or_else(|| PARSED.classes.get(name))?.split('\t');
        let mut class = Self {
            tied: fields.next() == Some("+"),
            entries: HashMap::new(),
            changed: Vec::new(),
            in_32_bit: Vec::new(),
        };
        for (letter, entry) in fields.filter_map(|field| field.split_once(':')) {
            let Some(code) = Code::new(letter) else { continue };
            match entry.split_once('=') {
                Some(("", module)) => class.changed.push(module),
                Some((name, "")) => class.in_32_bit.push(name.to_owned()),
                Some((name, module)) => drop(class.entries.insert(name, (code, module))),
                None => drop(class.entries.insert(entry, (code, entry))),
            }
        }
        Some(class)
    }

    /// `None` for a name that no class has.
    pub(super) fn code(&self, module: &str) -> Option<Code> {
        let entry = self.entries.get(module).or_else(|| self.entries.get(general(module).as_str()));
        entry.map(|(code, _)| *code).or_else(|| by_ending(module))
    }

    /// The modules with one of these codes, as names of a skip list (regular expressions).
    pub(super) fn modules(&self, codes: &[Code]) -> Vec<String> {
        let mut modules: Vec<String> = self
            .entries
            .values()
            .filter(|(code, _)| codes.contains(code))
            .map(|(_, module)| expression(module))
            .collect();
        if codes.contains(&Code::Changed) {
            modules.extend(self.changed.iter().map(|module| expression(module)));
        }
        modules
    }
}

fn expression(pattern: &str) -> String {
    pattern.replace('*', "[0-9]+")
}

/// `layers.11.fc1` becomes `layers.*.fc*`.
pub(super) fn general(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    for character in name.chars() {
        match character {
            '0'..='9' if out.ends_with('*') => {}
            '0'..='9' => out.push('*'),
            _ => out.push(character),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_looked_up_by_class_and_by_ending() {
        assert_eq!(general("layers.11.fc1"), "layers.*.fc*");
        let bert = Class::find("BertForMaskedLM", "any").expect("a class");
        assert!(bert.tied);
        assert_eq!(bert.code("cls.predictions.decoder"), Some(Code::Head));
        assert_eq!(bert.code("cls.predictions.transform.dense"), Some(Code::Int8));
        assert_eq!(bert.code("bert.encoder.layer.11.attention.self.query"), Some(Code::Int8));
        assert_eq!(bert.code("bert.embeddings.word_embeddings"), Some(Code::NotLinear));
        assert_eq!(bert.modules(&[Code::Head]), ["cls.predictions.decoder"]);
        // A head that is no output embedding is converted.
        let classifier = Class::find("BertForSequenceClassification", "any").expect("a class");
        assert_eq!(classifier.code("classifier"), Some(Code::Int8));
        assert_eq!(by_ending("h.0.attn.c_attn"), Some(Code::Transposed));
        assert_eq!(by_ending("a_name_of_no_class"), None);
        assert!(Class::find("NoSuchModel", "any").is_none());
    }
}
