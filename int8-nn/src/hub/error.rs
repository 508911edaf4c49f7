//! Errors of the hub, with the way out.

/// An error of the hub or its cache.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    /// Not a model's name.
    #[error(
        "`{}`: expected a model of the hub as org/name or org/name@revision, such as facebook/opt-125m",
        found.escape_debug()
    )]
    Id {
        /// What was given.
        found: String,
    },
    /// An invalid setting.
    #[error("{name}: {problem}")]
    Settings {
        /// The environment variable.
        name: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// The repository does not exist, or is private.
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
    /// The branch, tag or commit does not exist.
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
    /// The model's terms must be accepted first.
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
    /// Offline, and the model is not in the cache.
    #[error(
        "model `{id}` is not complete in {cache}, and HF_HUB_OFFLINE forbids requests. Unset \
         HF_HUB_OFFLINE for one run, or point HF_HUB_CACHE to a cache that has the model"
    )]
    Offline {
        /// The model.
        id: String,
        /// The cache.
        cache: String,
    },
    /// The hub cannot be reached, or the connection breaks repeatedly.
    #[error(
        "{url}: {reason}. Check the connection, HF_ENDPOINT and HTTPS_PROXY, and try again: the download \
         resumes where it stopped"
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
    /// The hub's answer is invalid.
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
        "{file}: expected {expected} bytes, found {found}. It was discarded; try again, and if that repeats, look for \
         a proxy or mirror that changes files"
    )]
    Size {
        /// The file.
        file: String,
        /// The size stated, in bytes.
        expected: u64,
        /// The size sent, in bytes.
        found: u64,
    },
    /// A file's contents differ from the stated checksum.
    #[error(
        "{file}: expected contents with checksum {expected}, found {found}. It was discarded; try again, and if that \
         repeats, look for a proxy or mirror that changes files"
    )]
    Checksum {
        /// The file.
        file: String,
        /// The checksum stated.
        expected: String,
        /// The checksum found.
        found: String,
    },
    /// A model cannot be removed while it is being downloaded.
    #[error("{id}: another process is downloading this model; wait until it has ended")]
    Busy {
        /// The model.
        id: String,
    },
    /// The cache cannot be read or written.
    #[error(
        "{path}: cannot {operation}: {source}. Check that the disk has room and the folder may be written, or set HF_HUB_CACHE"
    )]
    Io {
        /// The file or folder.
        path: String,
        /// The operation.
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
