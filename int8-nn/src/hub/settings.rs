//! Settings of the hub and its cache, from the environment variables of Python's `huggingface_hub`.

use std::path::PathBuf;
use std::time::Duration;

/// Settings of the hub; [`Settings::from_environment`] gives those of Python.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Settings {
    /// Address of the hub, without a slash at its end (`HF_ENDPOINT`).
    pub endpoint: String,
    /// Folder of the cache (`HF_HUB_CACHE`, or `hub` in `HF_HOME`).
    pub cache: PathBuf,
    /// Access token (`HF_TOKEN`, or the file that `hf auth login` writes).
    pub token: Option<String>,
    /// Make no requests (`HF_HUB_OFFLINE`).
    pub offline: bool,
    /// PEM file of certificates to trust instead of the default ones (`REQUESTS_CA_BUNDLE`, `SSL_CERT_FILE`).
    pub certificates: Option<PathBuf>,
    /// Whether proxies named in the environment (`HTTPS_PROXY`, `NO_PROXY`, …) are used.
    pub proxy: bool,
    /// Attempts without progress before a download fails.
    pub attempts: u32,
    /// Pause after the first failed attempt; each further one is twice as long.
    pub pause: Duration,
    /// Fewest bytes a second, over each [`window`](Self::window): a slower answer is broken off.
    pub least_rate: u64,
    /// The time over which the rate is measured.
    pub window: Duration,
    /// Longest time of an answer that is no file: a list, a header.
    pub deadline: Duration,
}

/// With pauses of 1, 2, 4 and 8 s a router has time to restart.
const ATTEMPTS: u32 = 5;

/// Bytes a second: a twentieth of a GPRS modem's.
const LEAST_RATE: u64 = 256;

/// Routers and caches stall for seconds.
const WINDOW: Duration = Duration::from_secs(30);

/// A list of 10,000 files (1 MB) takes 2 minutes at 8 kB/s.
const DEADLINE: Duration = Duration::from_secs(120);

impl Settings {
    /// The public hub and this cache, without a token.
    pub fn new(cache: PathBuf) -> Self {
        Self {
            endpoint: "https://huggingface.co".to_owned(),
            cache,
            token: None,
            offline: false,
            certificates: None,
            proxy: true,
            attempts: ATTEMPTS,
            pause: Duration::from_secs(1),
            least_rate: LEAST_RATE,
            window: WINDOW,
            deadline: DEADLINE,
        }
    }

    /// The environment's settings, as Python's `huggingface_hub` reads them.
    pub fn from_environment() -> Self {
        Self::from_lookup(&|name| std::env::var(name).ok(), std::env::home_dir())
    }

    /// [`Self::from_environment`] with the given variables and home folder.
    fn from_lookup(variable: &dyn Fn(&str) -> Option<String>, home: Option<PathBuf>) -> Self {
        let first = |names: &[&str]| {
            names.iter().filter_map(|name| variable(name)).find(|value| !value.trim().is_empty())
        };
        let home = home.unwrap_or_default();
        let expand = |path: String| match path.strip_prefix("~/") {
            Some(rest) => home.join(rest),
            None => PathBuf::from(path),
        };
        let caches = first(&["XDG_CACHE_HOME"]).map_or_else(|| home.join(".cache"), expand);
        let base = first(&["HF_HOME"]).map_or_else(|| caches.join("huggingface"), expand);
        let cache =
            first(&["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"]).map_or_else(|| base.join("hub"), expand);
        let truth = |name: &str| {
            variable(name).is_some_and(|value| {
                ["1", "on", "yes", "true"].contains(&value.trim().to_ascii_lowercase().as_str())
            })
        };
        let token_file = first(&["HF_TOKEN_PATH"]).map_or_else(|| base.join("token"), expand);
        let stored = || std::fs::read_to_string(token_file).ok();
        let token = first(&["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"])
            .or_else(|| if truth("HF_HUB_DISABLE_IMPLICIT_TOKEN") { None } else { stored() })
            .map(|token| token.trim().to_owned())
            .filter(|token| !token.is_empty());
        let mut settings = Self::new(cache);
        if let Some(endpoint) = first(&["HF_ENDPOINT"]) {
            endpoint.trim().trim_end_matches('/').clone_into(&mut settings.endpoint);
        }
        settings.token = token;
        settings.offline = truth("HF_HUB_OFFLINE") || truth("TRANSFORMERS_OFFLINE");
        settings.certificates = first(&["REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"]).map(expand);
        settings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)], home: &std::path::Path) -> Settings {
        let find = |name: &str| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        };
        Settings::from_lookup(&find, Some(home.to_path_buf()))
    }

    #[test]
    fn variables_mean_what_python_means_by_them() {
        let home = tempfile::tempdir().unwrap();
        let home = home.path();
        let plain = read(&[], home);
        assert_eq!(plain.cache, home.join(".cache/huggingface/hub"));
        assert_eq!(plain.endpoint, "https://huggingface.co");
        assert!(plain.token.is_none() && !plain.offline);

        let moved =
            read(&[("HF_HOME", "~/hf"), ("HF_HUB_OFFLINE", "YES"), ("HF_ENDPOINT", "http://x/")], home);
        assert_eq!(moved.cache, home.join("hf/hub"));
        assert_eq!(moved.endpoint, "http://x");
        assert!(moved.offline);
        assert_eq!(read(&[("HF_HOME", "/a"), ("HF_HUB_CACHE", "/b")], home).cache, PathBuf::from("/b"));
        assert_eq!(read(&[("XDG_CACHE_HOME", "/c")], home).cache, PathBuf::from("/c/huggingface/hub"));
        assert!(!read(&[("HF_HUB_OFFLINE", "0")], home).offline);

        std::fs::create_dir_all(home.join("hf")).unwrap();
        std::fs::write(home.join("hf/token"), "from-file\n").unwrap();
        let token = |variables: &[(&str, &str)]| read(variables, home).token;
        assert_eq!(token(&[("HF_HOME", "~/hf")]).as_deref(), Some("from-file"));
        assert_eq!(token(&[("HF_HOME", "~/hf"), ("HF_TOKEN", " given ")]).as_deref(), Some("given"));
        assert_eq!(token(&[("HF_HOME", "~/hf"), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]), None);
    }
}
