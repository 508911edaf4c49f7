//! What can go wrong between a name and its files, with the way out.

/// A model of the hub that cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    /// This is no name of a model.
    #[error(
        "`{}`: expected a model of the hub as org/name or org/name@revision, such as facebook/opt-125m",
        found.escape_debug()
    )]
    Id {
        /// What was given.
        found: String,
    },
    /// A setting that cannot be used.
    #[error("{name}: {problem}")]
    Settings {
        /// The environment variable.
        name: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// There is no such repository, or it is private.
    #[error(
        "{endpoint} has no model `{repository}`, or it is private. Check the spelling; for a private model set HF_TOKEN \
         to a token that may read it{}",
        token_given(*token)
    )]
    NoRepository {
        /// Address of the hub.
        endpoint: String,
        /// `org/name`.
        repository: String,
        /// Whether a token was sent.
        token: bool,
    },
    /// There is no such branch, tag or commit.
    #[error(
        "model `{repository}` has no revision `{revision}`. Leave it out for `main`, or name a branch, tag or commit \
         that the model's page lists"
    )]
    NoRevision {
        /// `org/name`.
        repository: String,
        /// The revision.
        revision: String,
    },
    /// The repository has no such file.
    #[error("model `{repository}` has no file `{file}` at revision `{revision}`")]
    NoFile {
        /// `org/name`.
        repository: String,
        /// The revision.
        revision: String,
        /// The file.
        file: String,
    },
    /// The model's terms have to be accepted first.
    #[error(
        "model `{repository}` is gated: its terms must be accepted once. Do that on {endpoint}/{repository}, make a token \
         on {endpoint}/settings/tokens, and set HF_TOKEN to it (or run `hf auth login`){}",
        token_given(*token)
    )]
    Gated {
        /// Address of the hub.
        endpoint: String,
        /// `org/name`.
        repository: String,
        /// Whether a token was sent.
        token: bool,
    },
    /// The token is refused.
    #[error(
        "{endpoint} refused the token (status {status}) for `{repository}`. Set HF_TOKEN to a valid one that may read \
         this model, or unset it for a public model"
    )]
    Token {
        /// Address of the hub.
        endpoint: String,
        /// `org/name`.
        repository: String,
        /// The HTTP status.
        status: u16,
    },
    /// The repository holds no weights that are read.
    #[error(
        "model `{id}` has no weights that are read: expected model.safetensors, pytorch_model.bin or the index of \
         their shards, found {found}. Look for another repository of the model that has safetensors files"
    )]
    NoWeights {
        /// The model.
        id: String,
        /// What it has.
        found: String,
    },
    /// Requests are forbidden and the cache has not got the model.
    #[error(
        "model `{id}` is not complete in {cache}, and HF_HUB_OFFLINE forbids to ask the hub for it. Unset \
         HF_HUB_OFFLINE for one run, or point HF_HUB_CACHE to a cache that has the model"
    )]
    Offline {
        /// The model.
        id: String,
        /// The cache.
        cache: String,
    },
    /// The hub cannot be reached, or the connection breaks again and again.
    #[error(
        "{url}: {reason}. Check the connection, HF_ENDPOINT and HTTPS_PROXY, and run the command again: what has been \
         downloaded is kept, and the download goes on from there"
    )]
    Network {
        /// The address.
        url: String,
        /// What happened.
        reason: String,
    },
    /// The hub answers with an unexpected status.
    #[error("{url}: the server answered with status {status}{}. Try again later", said(message))]
    Status {
        /// The address.
        url: String,
        /// The HTTP status.
        status: u16,
        /// The server's own message; may be empty.
        message: String,
    },
    /// The hub's answer makes no sense.
    #[error(
        "{url}: the server's answer cannot be used: {reason}. Check that HF_ENDPOINT is a Hugging Face hub"
    )]
    Answer {
        /// The address.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A file has another size than the hub states.
    #[error(
        "{file}: expected {expected} bytes, found {found}. Nothing of it was kept; run the command again, and if that \
         repeats, look for what changes files on the way (a proxy, a mirror)"
    )]
    Size {
        /// The file.
        file: String,
        /// The size stated, in bytes.
        expected: u64,
        /// The size sent, in bytes.
        found: u64,
    },
    /// A file's contents are not those that the hub states.
    #[error(
        "{file}: expected contents with checksum {expected}, found {found}. Nothing of it was kept; run the command again, \
         and if that repeats, look for what changes files on the way (a proxy, a mirror)"
    )]
    Checksum {
        /// The file.
        file: String,
        /// The checksum stated.
        expected: String,
        /// The checksum found.
        found: String,
    },
    /// The cache cannot be read or written.
    #[error(
        "{path}: cannot {operation}: {source}. Check that the disk has room and the folder may be written, or set HF_HUB_CACHE"
    )]
    Io {
        /// The file or folder.
        path: String,
        /// What was tried.
        operation: &'static str,
        /// The operating system's reason.
        source: std::io::Error,
    },
}

fn token_given(token: bool) -> &'static str {
    if token { ". A token was sent, so it is the token of somebody without access" } else { "" }
}

fn said(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(" ({})", message.escape_debug()) }
}
