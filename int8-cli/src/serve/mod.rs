//! `int8 serve`: many users at once, with OpenAI's API. docs/serve.md is its manual.
//!
//! Three parts: [`int8_nn::engine`] computes, on the main thread; [`http`] has the connections, on a thread of its own; [`app`]
//! stands between them: `request` and `fields` read a body, `answer`, `tools` and `reply` write the response.

mod answer;
mod app;
mod error;
mod fields;
mod http;
mod journal;
mod metrics;
mod reply;
mod request;
mod tools;

use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use int8_nn::backend::{Backend, Precision};
use int8_nn::engine::{self, EmbedOptions, Engine, EngineOptions, SamplingParams, is_batch_invariant};
use int8_nn::{Embedder, GenerationConfig, Kind, Model, Sampling, families};
use serde_json::{Value, json};

use crate::args::{PrecisionArgs, ServeArgs};
use crate::convert::count;
use crate::device::{Device, Place, Processor, Task};
use crate::failure::Failure;
use crate::launch;
use crate::output::{Output, bytes};
use crate::resolve;
use app::{App, Service};
use error::ApiError;
use request::Prompt;

/// Tokens of a request when none are given, if the model has as many.
const DEFAULT_CONTEXT: usize = 8192;

/// Tokens of the KV cache when none are given, if the batch can use as many: for a model of 8 billion parameters, 8 GiB in 16 bits.
const DEFAULT_KV_TOKENS: usize = 65536;

/// Texts that may wait for their embeddings.
const WAITING_TEXTS: usize = 8192;

/// Serves a model until SIGINT or SIGTERM.
pub(crate) fn run(arguments: &ServeArgs, device: &Device, output: &Output) -> Result<(), Failure> {
    let address = SocketAddr::new(arguments.host, arguments.port);
    // Before the model is loaded: a port that is taken is noticed at once.
    let listen = || {
        TcpListener::bind(address).map_err(|error| {
            Failure::new(format!("--host {} --port {}: {error}", arguments.host, arguments.port))
                .hint("another --port, or --port 0 for any free one")
        })
    };
    // The first of several processes answers alone.
    let listener = if launch::follows() { None } else { Some(listen()?) };
    if !arguments.host.is_loopback() && arguments.api_key.is_none() {
        output
            .remark("warning: other machines can reach this server, and it needs no key; --api-key sets one");
    }
    let checkpoint = resolve::checkpoint(&arguments.model, output)?;
    device.run(checkpoint, Serve { arguments, listener, output }, output)
}

struct Serve<'a> {
    arguments: &'a ServeArgs,
    /// None where another process answers.
    listener: Option<TcpListener>,
    output: &'a Output,
}

impl Task for Serve<'_> {
    type Output = ();

    fn precision(&self) -> Result<Precision, Failure> {
        resolve::batch_invariant_precision(&self.arguments.model.precision)
    }

    fn options(&self) -> Option<&PrecisionArgs> {
        Some(&self.arguments.model.precision)
    }

    fn run<B: Backend + 'static>(self, place: &Place<B>) -> Result<(), Failure> {
        let config = place.checkpoint.source().read_config().map_err(int8_nn::Error::from)?;
        let kind = config.get("model_type").and_then(Value::as_str).and_then(families::kind);
        if kind == Some(Kind::Encoder) { self.embed(place) } else { self.generate(place) }
    }
}

impl Serve<'_> {
    fn generate<B: Backend + 'static>(self, place: &Place<B>) -> Result<(), Failure> {
        let arguments = self.arguments;
        let model = Arc::new(resolve::load(&arguments.model.precision, place, self.output)?);
        let context = arguments.context.unwrap_or(DEFAULT_CONTEXT.min(model.config().fixed_positions()));
        let all = arguments.max_batch.saturating_mul(context);
        let kv_tokens = arguments.kv_tokens.unwrap_or(all.min(DEFAULT_KV_TOKENS.max(context)));
        let options = EngineOptions {
            max_batch: arguments.max_batch,
            context: Some(context),
            total_positions: Some(kv_tokens),
            kv_cache: arguments.kv_cache.given(),
            prefill_rows: arguments.prefill,
            // A GPU reads the head once for all rows.
            logits_rows: if place.processor == Processor::Gpu { arguments.max_batch } else { 16 },
            max_waiting: arguments.queue,
            kept_prefixes: arguments.prefixes,
        };
        let default = default(model.generation_config(), arguments.no_generation_config)?;
        let mut engine = Engine::new(&model, options)?;
        let (handle, commands) = engine::handle(&engine);
        let tokenizer = model.tokenizer().ok().cloned().map(Arc::new);
        let template = model.chat_template().map(|template| {
            let clock =
                |format: &str| jiff::fmt::strtime::format(format, &jiff::Zoned::now()).unwrap_or_default();
            Box::new(template.with_clock(clock))
        });
        let footprint = model.footprint();
        let invariant = is_batch_invariant(&model);
        if !invariant {
            self.output.remark(
                "answers may depend on requests that run at the same time (in their last digits, and so in their words); \
                 docs/serve.md says when they do not",
            );
        }
        let info = json!({
            "device": place.devices.describe(), "scheme": resolve::precision_name(&arguments.model.precision),
            "family": model.config().family, "layers": model.config().layers, "context": context,
            "weight_bytes": footprint.total(), "weight_bytes_16bit": footprint.at(2), "chat": template.is_ok(),
            "batch_invariant": invariant,
        });
        let observed = Arc::clone(&model);
        let app = App {
            outliers: Box::new(move || outliers(&observed)),
            service: Service::Generate {
                handle,
                tokenizer,
                template: template.map_err(|error| error.to_string()),
                default: Box::new(default),
                eos: model.eos_token_ids().to_vec(),
                forms: OnceLock::new(),
            },
            ..self.app(info)
        };
        let remark = format!(
            "weights {} ({} in 16-bit), KV cache for {kv_tokens} tokens, {} requests of {context} at once",
            bytes(count(footprint.total())),
            bytes(count(footprint.at(2))),
            arguments.max_batch,
        );
        // A thread outside rayon's pool would hand each forward over to one inside, and sleep.
        self.serve(app, &remark, || Ok(rayon::scope(|_| engine::drive(&mut engine, commands))?))
    }

    fn embed<B: Backend + 'static>(self, place: &Place<B>) -> Result<(), Failure> {
        let arguments = &self.arguments.model.precision;
        let (loader, bar) = resolve::loader(place.precision, arguments, &place.checkpoint, self.output);
        let embedder = Arc::new(loader.embedder_on(place.devices.clone())?);
        bar.clear();
        let (handle, queue) = engine::embed_handle(EmbedOptions { max_waiting: WAITING_TEXTS });
        let footprint = embedder.encoder().footprint();
        let info = json!({
            "device": place.devices.describe(), "scheme": resolve::precision_name(arguments), "chat": false,
            "weight_bytes": footprint.total(), "weight_bytes_16bit": footprint.at(2),
        });
        let tokenizing = Arc::clone(&embedder);
        let app = App {
            service: Service::Embed { handle, tokenize: Box::new(move |texts| tokenize(&tokenizing, texts)) },
            ..self.app(info)
        };
        let remark = format!("embeddings; weights {}", bytes(count(footprint.total())));
        self.serve(app, &remark, || {
            rayon::scope(|_| engine::serve_embeddings(&embedder, queue));
            Ok(())
        })
    }

    /// All but the service.
    fn app(&self, info: Value) -> App {
        let arguments = self.arguments;
        let typed = &arguments.model.model;
        // The last part of a folder; the name of a model of the hub as it is.
        let folder = if typed.exists() { typed.canonicalize().ok() } else { None };
        let folder = folder.as_deref().and_then(|folder| folder.file_name()).unwrap_or(typed.as_os_str());
        let (handle, _) = engine::embed_handle(EmbedOptions { max_waiting: 0 });
        App {
            name: arguments.name.clone().unwrap_or_else(|| folder.to_string_lossy().into_owned()),
            service: Service::Embed { handle, tokenize: Box::new(|_| Ok(Vec::new())) },
            api_key: arguments.api_key.clone().filter(|key| !key.is_empty()),
            timeout: Duration::from_secs(arguments.timeout),
            max_body: usize::try_from(arguments.max_body).unwrap_or(usize::MAX),
            info,
            outliers: Box::new(|| json!([])),
            journal: Arc::new(journal::Journal { quiet: self.output.quiet(), ..journal::Journal::default() }),
            created: app::created(),
        }
    }

    /// Runs the connections on a thread of their own and `compute` on this one, until both have ended.
    fn serve(
        self,
        app: App,
        remark: &str,
        compute: impl FnOnce() -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let Some(listener) = self.listener else { return Err(Failure::followed()) };
        let (address, grace) = (listener.local_addr()?, Duration::from_secs(self.arguments.grace));
        self.output.remark(&self.output.dim(remark));
        self.output
            .line(&format!("{} at http://{address} (page, and API at http://{address}/v1)", app.name))?;
        let app = Arc::new(app);
        std::thread::scope(|scope| {
            let connections = scope.spawn(move || http::serve(listener, app, grace));
            let computed = compute();
            let served = connections.join().map_err(|_| Failure::new("the server's thread has failed"))?;
            computed?;
            Ok(served?)
        })
    }
}

/// How tokens are chosen where a request does not say: by the model's own settings, and if it has none, as OpenAI's API has it.
///
/// # Errors
/// For settings that are not implemented.
fn default(own: &GenerationConfig, ignored: bool) -> Result<SamplingParams, Failure> {
    let default = SamplingParams { temperature: 1.0, ..SamplingParams::default() };
    if ignored {
        return Ok(default);
    }
    let default = SamplingParams { rules: own.rules.clone(), ..default };
    Ok(match own.sampling(0)? {
        Sampling::Random { temperature, top_k, top_p, .. } => {
            SamplingParams { temperature, top_k, top_p, ..default }
        }
        Sampling::Greedy => default,
    })
}

/// Token ids of texts for an encoder. A text that would be cut is refused, as in OpenAI's API.
fn tokenize<B: Backend>(embedder: &Embedder<B>, texts: &[Prompt]) -> Result<Vec<Vec<u32>>, ApiError> {
    let most = embedder.settings().max_tokens;
    texts
        .iter()
        .enumerate()
        .map(|(index, text)| {
            let (ids, whole) = match text {
                Prompt::Ids(ids) => (ids.clone(), ids.len() <= most),
                Prompt::Text(text) => {
                    let (mut ids, cut) = embedder.tokenize(&[text])?;
                    (ids.pop().unwrap_or_default(), cut == 0)
                }
            };
            if whole {
                return Ok(ids);
            }
            let message =
                format!("text {index} of `input` has more than the model's {most} tokens; shorten it");
            Err(ApiError::field("input", message))
        })
        .collect()
}

/// For each block and role, since the start: calls, columns of the inputs, and those that held an outlier. A device that counts
/// none has no calls.
fn outliers<B: Backend>(model: &Model<B>) -> Value {
    let backend = model.decoder().backend();
    let layers = model.decoder().linears().map(|(block, role, linear)| {
        let counts = backend.statistics(linear);
        json!({"block": block, "role": format!("{role:?}").to_lowercase(), "calls": counts.calls, "inputs": counts.inputs,
            "outlier_columns": counts.outlier_columns})
    });
    layers.collect()
}
