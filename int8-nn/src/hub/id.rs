//! Names of models on the hub.

use std::fmt;
use std::str::FromStr;

use super::HubError;

/// A model on the hub: `org/name`, or `org/name@revision` for a branch, tag or commit other than `main`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelId {
    organization: String,
    name: String,
    revision: Option<String>,
}

/// Most characters of each part of a name.
const LONGEST: usize = 96;

/// Suffixes of files: `models/llama.safetensors` is a path, whether it exists or not.
const FILES: [&str; 7] = [".safetensors", ".bin", ".json", ".pt", ".pth", ".ckpt", ".gguf"];

impl ModelId {
    /// `org/name`.
    pub fn repository(&self) -> String {
        format!("{}/{}", self.organization, self.name)
    }

    /// The branch, tag or commit; `main` unless another was named.
    pub fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or("main")
    }

    /// The same model at another revision.
    ///
    /// # Errors
    /// [`HubError::Id`] for an invalid name.
    pub fn at(self, revision: &str) -> Result<Self, HubError> {
        let allowed = |character: char| character.is_ascii_alphanumeric() || "._-/".contains(character);
        let parts_fit = revision.split('/').all(|part| !part.is_empty() && part != "." && part != "..");
        if revision.len() > 2 * LONGEST || !parts_fit || !revision.chars().all(allowed) {
            return Err(HubError::Id { found: format!("{self}@{revision}") });
        }
        Ok(Self { revision: Some(revision.to_owned()), ..self })
    }

    /// Whether `text` has the form of an id: two plain parts, perhaps a revision. A path may have that form, too.
    pub fn is_one(text: &str) -> bool {
        text.parse::<Self>().is_ok()
    }
}

fn is_part(part: &str) -> bool {
    let allowed = |character: char| character.is_ascii_alphanumeric() || "._-".contains(character);
    (1..=LONGEST).contains(&part.len())
        && part.chars().all(allowed)
        && !part.starts_with(['.', '-'])
        && !part.ends_with(['.', '-'])
        && !part.contains("..")
        && !part.contains("--")
}

impl FromStr for ModelId {
    type Err = HubError;

    fn from_str(text: &str) -> Result<Self, HubError> {
        let wrong = || HubError::Id { found: text.to_owned() };
        let (repository, revision) = match text.split_once('@') {
            Some((repository, revision)) => (repository, Some(revision)),
            None => (text, None),
        };
        let (organization, name) = repository.split_once('/').ok_or_else(wrong)?;
        if !is_part(organization) || !is_part(name) || FILES.iter().any(|ending| name.ends_with(ending)) {
            return Err(wrong());
        }
        let id = Self { organization: organization.to_owned(), name: name.to_owned(), revision: None };
        match revision {
            Some(revision) => id.at(revision),
            None => Ok(id),
        }
    }
}

impl fmt::Display for ModelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.organization, self.name)?;
        match &self.revision {
            Some(revision) => write!(f, "@{revision}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_paths_are_told_apart() {
        for id in
            ["facebook/opt-125m", "a/b", "EleutherAI/gpt-neox-20b@main", "a/b@refs/pr/7", "a_b/c.d-e@v1.0"]
        {
            assert!(ModelId::is_one(id), "{id}");
            assert_eq!(id.parse::<ModelId>().unwrap().to_string(), id);
        }
        for path in [
            "",
            "opt",
            "./a",
            "a/",
            "/a",
            "a/b/c",
            "../b",
            "a/..",
            "a/b.safetensors",
            "a/pytorch_model.bin",
            "~/b",
            "a\\b",
            "a/b c",
            "a/b@",
            "a/b@x y",
            "a/b@../c",
            "a/b@/c",
            "-a/b",
            "a--b/c",
            "a/\u{e9}",
        ] {
            assert!(!ModelId::is_one(path), "{path}");
        }
        let long = format!("a/{}", "b".repeat(97));
        assert!(!ModelId::is_one(&long));
        let id: ModelId = "a/b".parse().unwrap();
        assert_eq!((id.revision(), id.repository().as_str()), ("main", "a/b"));
        assert_eq!(id.at("v2").unwrap().revision(), "v2");
    }
}
