//! Patterns of tensor and module names.

use fancy_regex::Regex;
use globset::{Glob, GlobMatcher};

use crate::Error;

/// Shell patterns: `*` (dots included), `?`, `[a-z]`, `{a,b}`. A pattern matches a tensor's name or its module's (the name
/// without `.weight`).
#[derive(Debug)]
pub(super) struct Globs(Vec<(String, GlobMatcher)>);

impl Globs {
    /// Errors begin with `option`, the field of [`Options`](super::Options) that the patterns come from.
    ///
    /// # Errors
    /// [`Error::Input`] for something that is no pattern, and for one that matches none of `names`.
    pub(super) fn new(list: &str, patterns: &[String], names: &[&str]) -> Result<Self, Error> {
        let globs = patterns
            .iter()
            .map(|pattern| match Glob::new(pattern) {
                Ok(glob) => Ok((pattern.clone(), glob.compile_matcher())),
                Err(error) => Err(Error::Input(format!("{list} pattern {pattern}: {error}"))),
            })
            .collect::<Result<Vec<_>, _>>()?;
        for (pattern, matcher) in &globs {
            if !names.iter().any(|name| matches(matcher, name)) {
                return Err(Error::Input(format!(
                    "{list} pattern {pattern}: no tensor of the checkpoint has such a name"
                )));
            }
        }
        Ok(Self(globs))
    }

    pub(super) fn matches(&self, name: &str) -> bool {
        self.0.iter().any(|(_, matcher)| matches(matcher, name))
    }
}

fn matches(matcher: &GlobMatcher, name: &str) -> bool {
    matcher.is_match(name) || name.strip_suffix(".weight").is_some_and(|module| matcher.is_match(module))
}

/// Module names as in `llm_int8_skip_modules`. As in transformers, one matches a module
/// 1. from the start to the end of a component: `layer.1` matches `layer.1.attn`, not `layer.11`;
/// 2. the same as a regular expression;
/// 3. as a suffix: `fc1` matches `model.decoder.layers.23.fc1`.
#[derive(Debug)]
pub(super) struct ModuleNames(Vec<(String, Regex)>);

impl ModuleNames {
    /// # Errors
    /// [`Error::Input`] for a name that is no regular expression.
    pub(super) fn new(names: &[String]) -> Result<Self, Error> {
        let names = names.iter().map(|name| {
            let regex = Regex::new(&format!(r"^(?:{name})(?:(?<=\.)|(?=\.|$))"));
            let failed = |error| Error::Input(format!("module to skip {name}: {error}"));
            Ok((name.clone(), regex.map_err(failed)?))
        });
        names.collect::<Result<_, _>>().map(Self)
    }

    pub(super) fn match_module(&self, module: &str) -> bool {
        // A match that gives up (too much backtracking) is no match.
        self.0
            .iter()
            .any(|(name, regex)| module.ends_with(name.as_str()) || regex.is_match(module).unwrap_or(false))
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(name, _)| name.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn module_names_mean_what_they_mean_in_transformers() {
        let matches = |name: &str, module: &str| {
            ModuleNames::new(&[name.to_owned()]).expect("a name").match_module(module)
        };
        for (name, module) in [
            ("lm_head", "lm_head"),
            ("layer.1", "layer.1.attn"),
            ("layer.*", "layer.11.attn"),
            ("mlp.gate", "mlp.gate"),
            ("fc1", "model.decoder.layers.23.fc1"),
            ("a|b", "b.c"),
            ("a.", "a.b"),
        ] {
            assert!(matches(name, module), "{name} should match {module}");
        }
        for (name, module) in [
            ("layer.1", "layer.11.attn"),
            ("mlp.gate", "mlp.gate_proj"),
            ("fc1", "fc1x"),
            ("attn", "attn2.q"),
        ] {
            assert!(!matches(name, module), "{name} should not match {module}");
        }
        assert!(ModuleNames::new(&["(".to_owned()]).is_err());
    }

    #[test]
    fn globs_match_tensors_and_modules_and_must_match_something() {
        let names = ["model.layers.0.mlp.up.weight", "model.norm.weight"];
        let globs = |pattern: &str| Globs::new("exclude", &[pattern.to_owned()], &names);
        assert!(globs("*.mlp.*").expect("a pattern").matches(names[0]));
        assert!(globs("*.up").expect("a pattern").matches(names[0]));
        assert!(!globs("*.up").expect("a pattern").matches(names[1]));
        for pattern in ["[", "nothing*"] {
            let error = globs(pattern).expect_err("refused").to_string();
            assert!(error.contains(pattern), "{error}");
        }
    }
}
