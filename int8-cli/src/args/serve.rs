//! Arguments of `int8 serve`.

use std::net::IpAddr;

use clap::Args;
use int8_core::KvType;

use super::shared::{AUTO_KV_CACHE, ModelArgs};
use crate::values::{OrAuto, or_auto, size};

/// `int8 serve`
#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// Address to listen at; 0.0.0.0 lets other machines in
    #[arg(help_heading = "Server", long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    pub(crate) host: IpAddr,
    /// Port to listen at; 0 for any free one
    #[arg(help_heading = "Server", long, value_name = "N", default_value_t = 8080)]
    pub(crate) port: u16,
    /// Key that clients must send (Authorization: Bearer KEY) [default: none is needed]
    #[arg(help_heading = "Server", long, value_name = "KEY", env = "INT8_API_KEY", hide_env_values = true)]
    pub(crate) api_key: Option<String>,
    /// Name of the model in the API [default: the name of its folder]
    #[arg(help_heading = "Server", long, value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// Seconds until a request ends, finished or not
    #[arg(help_heading = "Server", long, value_name = "SECONDS", default_value_t = 600)]
    pub(crate) timeout: u64,
    /// Seconds that running requests get after SIGTERM or Ctrl-C
    #[arg(help_heading = "Server", long, value_name = "SECONDS", default_value_t = 30)]
    pub(crate) grace: u64,
    /// Largest body of a request
    #[arg(help_heading = "Server", long, value_name = "SIZE", default_value = "4MB", value_parser = size)]
    pub(crate) max_body: u64,
    /// Requests that may wait; more get status 429
    #[arg(help_heading = "Batching", long, value_name = "N", default_value_t = 128)]
    pub(crate) queue: usize,
    /// Requests that are computed at once
    #[arg(help_heading = "Batching", long, value_name = "N", default_value_t = 32)]
    pub(crate) max_batch: usize,
    /// Most tokens of a request, prompt and answer [default: all the model has, at most 8192]
    #[arg(help_heading = "Batching", long, value_name = "N")]
    pub(crate) context: Option<usize>,
    /// Tokens of the KV cache, which all requests share out among them [default: as many as fill the batch, at most 65536]
    #[arg(help_heading = "Batching", long, value_name = "N")]
    pub(crate) kv_tokens: Option<usize>,
    /// Type of the KV cache. auto: the type of the checkpoint
    #[arg(help_heading = "Batching", long, value_name = "TYPE", default_value = "auto", value_parser = or_auto::<KvType>(AUTO_KV_CACHE))]
    pub(crate) kv_cache: OrAuto<KvType>,
    /// Ignore the model's generation_config.json, but for the tokens that begin and end a text
    #[arg(help_heading = "Generation", long)]
    pub(crate) no_generation_config: bool,
    /// Tokens of prompts in one forward: running requests wait that long for their next token
    #[arg(help_heading = "Batching", long, value_name = "N", default_value_t = 256)]
    pub(crate) prefill: usize,
    /// Finished sequences that are kept for requests with the same beginning
    #[arg(help_heading = "Batching", long, value_name = "N", default_value_t = 16)]
    pub(crate) prefixes: usize,
}
