//! From arguments to settings of the libraries: options that depend on each other are resolved and checked here, before any
//! work is done.

use std::hash::{DefaultHasher, Hash, Hasher};

use int8_core::{Config, OutlierGranularity, OutlierRule, Scheme, scheme};
use int8_nn::backend::{Backend, Precision, Quantization};
use int8_nn::checkpoint::{Checkpoint, DType, Existing};
use int8_nn::config::RotaryPrecision;
use int8_nn::quantize::WriteSettings;
use int8_nn::{Loader, Model};

use crate::args::{self, ModelArgs, PrecisionArgs, WriteArgs};
use crate::device::{Device, Place};
use crate::failure::Failure;
use crate::output::{Bar, Output};
use crate::{hub, memory};

/// The precision of the linear layers.
///
/// # Errors
/// When two options contradict each other.
pub(crate) fn precision(arguments: &PrecisionArgs) -> Result<Precision, Failure> {
    if arguments.fp {
        return Ok(Precision::Float);
    }
    let quantization = match arguments.preset {
        Some(args::Preset::Best) => Quantization::best(),
        Some(args::Preset::BestRows) => Quantization::best_rows(),
        Some(args::Preset::Paper) | None => quantization(arguments)?,
    };
    let PrecisionArgs { int8_head, float_experts, .. } = *arguments;
    Ok(Precision::Int8(Quantization { int8_head, float_experts, ..quantization }))
}

/// As [`precision`], for work in which one text must not change what another gets: outliers are single values unless a
/// granularity is given.
///
/// # Errors
/// As [`precision`].
pub(crate) fn batch_invariant_precision(arguments: &PrecisionArgs) -> Result<Precision, Failure> {
    let mut precision = precision(arguments)?;
    if let Precision::Int8(quantization) = &mut precision
        && arguments.granularity.is_none()
        && quantization.config.rule != OutlierRule::None
    {
        quantization.config.outlier_granularity = OutlierGranularity::Value;
    }
    Ok(precision)
}

/// From the single options.
fn quantization(arguments: &PrecisionArgs) -> Result<Quantization, Failure> {
    let scheme = arguments.scheme.unwrap_or(Scheme::LlmInt8Absmax);
    let about_outliers = [
        ("--rule", arguments.rule.is_some()),
        ("--threshold", arguments.threshold.is_some()),
        ("--tau", arguments.tau.is_some()),
        ("--statistic", arguments.statistic.is_some()),
        ("--granularity", arguments.granularity.is_some()),
        ("--outlier-weights", arguments.outlier_weights.is_some()),
        ("--row-maximum", arguments.row_maximum.is_some()),
    ];
    if !scheme.decomposes()
        && let Some((option, _)) = about_outliers.iter().find(|(_, given)| *given)
    {
        return Err(Failure::usage(format!(
            "{option} is about outliers, and --scheme {scheme} has no outlier decomposition; use one of {}",
            Scheme::ALL
                .iter()
                .filter(|scheme| scheme.decomposes())
                .map(|s| s.name())
                .collect::<Vec<_>>()
                .join(", ")
        )));
    }
    let config = Config {
        rule: if scheme.decomposes() { rule(arguments)? } else { OutlierRule::None },
        outlier_granularity: arguments.granularity.unwrap_or_default(),
        row_maximum: arguments.row_maximum.unwrap_or_default(),
        ..scheme.config()
    };
    config.rule.validate().map_err(|error| Failure::usage(error.to_string()))?;
    Ok(Quantization::new(config, arguments.outlier_weights.unwrap_or_default()))
}

/// A setting in a comparison, with what else belongs to its row.
pub(crate) struct Compared<T> {
    pub(crate) name: String,
    pub(crate) precision: Precision,
    pub(crate) detail: T,
}

/// The rows of a comparison that the backend runs. A remark names the others.
pub(crate) fn comparison<T, B: Backend>(
    rows: impl IntoIterator<Item = Compared<T>>,
    place: &Place<B>,
    output: &Output,
) -> Vec<Compared<T>> {
    let capabilities = place.devices.first().capabilities();
    let (mut kept, mut refused) = (Vec::new(), Vec::new());
    for row in rows {
        match Loader::new(place.checkpoint.clone()).precision(row.precision).accept(&capabilities) {
            Ok(()) => kept.push(row),
            Err(_) => refused.push(row.name),
        }
    }
    if !refused.is_empty() {
        output.remark(&format!("{} does not run: {}", capabilities.device, refused.join("; ")));
    }
    kept
}

fn rule(arguments: &PrecisionArgs) -> Result<OutlierRule, Failure> {
    // τ or a statistic alone can only mean the relative rule.
    let relative = match arguments.rule {
        Some(rule) => matches!(rule, OutlierRule::RelativeToRow { .. }),
        None => arguments.tau.is_some() || arguments.statistic.is_some(),
    };
    if relative {
        if arguments.threshold.is_some() {
            return Err(Failure::usage(
                "--threshold belongs to --rule absolute; the relative rule has --tau",
            ));
        }
        let statistic = arguments.statistic.unwrap_or_default();
        return Ok(OutlierRule::RelativeToRow {
            tau: arguments.tau.unwrap_or(scheme::DEFAULT_TAU),
            statistic,
        });
    }
    if arguments.tau.is_some() || arguments.statistic.is_some() {
        return Err(Failure::usage("--tau and --statistic belong to --rule relative"));
    }
    Ok(match arguments.threshold.unwrap_or(scheme::PAPER_THRESHOLD) {
        0.0 => OutlierRule::None,
        threshold => OutlierRule::Absolute(threshold),
    })
}

/// How a checkpoint is to be written.
///
/// # Errors
/// When there is no such kernel.
pub(crate) fn write_settings(arguments: &WriteArgs, device: &Device) -> Result<WriteSettings, Failure> {
    Ok(WriteSettings {
        max_shard_bytes: arguments.max_shard_size,
        existing: match (arguments.resume, arguments.force) {
            (true, _) => Existing::Resume,
            (_, true) => Existing::Replace,
            _ => Existing::Refuse,
        },
        verify: arguments.verify,
        kernel: device.kernel()?,
    })
}

/// The name of a precision in output: `float` or a scheme's name.
pub(crate) fn precision_name(arguments: &PrecisionArgs) -> &'static str {
    match arguments.preset {
        _ if arguments.fp => "float",
        Some(args::Preset::Best) => "best",
        Some(args::Preset::BestRows) => "best-rows",
        Some(args::Preset::Paper) | None => arguments.scheme.unwrap_or(Scheme::LlmInt8Absmax).name(),
    }
}

/// Opens the checkpoint of a model, once its options have been checked.
///
/// # Errors
/// When the options contradict each other or the checkpoint cannot be opened.
pub(crate) fn checkpoint(arguments: &ModelArgs, output: &Output) -> Result<Checkpoint, Failure> {
    precision(&arguments.precision)?;
    Ok(Checkpoint::open(hub::folder(&arguments.model, arguments.revision.as_deref(), output)?)?)
}

/// Loads the model with the precision of the place, with a progress bar.
///
/// # Errors
/// When the checkpoint cannot be loaded.
pub(crate) fn load<B: Backend>(
    arguments: &PrecisionArgs,
    place: &Place<B>,
    output: &Output,
) -> Result<Model<B>, Failure> {
    load_as(place.precision, arguments, place, output)
}

/// Loads the model with `precision` instead of that of the place, with a progress bar.
///
/// # Errors
/// When the checkpoint cannot be loaded.
pub(crate) fn load_as<B: Backend>(
    precision: Precision,
    arguments: &PrecisionArgs,
    place: &Place<B>,
    output: &Output,
) -> Result<Model<B>, Failure> {
    let (loader, bar) = loader(precision, arguments, &place.checkpoint, output);
    let model = loader.build_on(place.devices.clone())?;
    memory::trim();
    bar.clear();
    if let Some(group) = place.devices.first().group().filter(|group| group.processes() > 1) {
        group.agree("model or other settings", &fingerprint(precision, arguments, place)?)?;
        if group.process() > 0 {
            // Inside the pool, as the first process generates.
            rayon::scope(|_| int8_nn::group::follow(model.decoder(), group))?;
            return Err(Failure::followed());
        }
    }
    for backend in place.devices.backends() {
        if let Some(note) = backend.note()? {
            output.remark(&note);
        }
    }
    let unread = model.unread_tensors();
    if !unread.is_empty() {
        /// Enough to see of what kind they are.
        const SHOWN: usize = 3;
        let shown: Vec<_> =
            unread.iter().take(SHOWN).map(|name| name.chars().take(100).collect::<String>()).collect();
        let layers = model.config().layers;
        let more = if unread.len() > SHOWN { ", …" } else { "" };
        let beyond = format!(".{layers}.");
        let why = match unread.iter().any(|name| name.contains(&beyond)) {
            true => format!(" (config.json has {layers} blocks, the files more)"),
            false => String::new(),
        };
        output.remark(&format!(
            "note: {} tensors of the checkpoint are no part of the model{why}: {}{more}",
            unread.len(),
            shown.join(", ").escape_debug()
        ));
    }
    Ok(model)
}

/// What processes that compute a model together must have in common.
fn fingerprint<B: Backend>(
    precision: Precision,
    arguments: &PrecisionArgs,
    place: &Place<B>,
) -> Result<String, Failure> {
    let mut hasher = DefaultHasher::new();
    place.checkpoint.source().read_config().map_err(int8_nn::Error::from)?.hash(&mut hasher);
    for tensor in place.checkpoint.tensors() {
        (tensor.name(), tensor.shape()).hash(&mut hasher);
    }
    let (version, model) = (env!("CARGO_PKG_VERSION"), hasher.finish());
    Ok(format!("{version} {model:x} {precision:?} {:?}", arguments.rotary))
}

/// Prepares to load a model with a progress bar; of the arguments, those that are no part of the precision count.
pub(crate) fn loader(
    precision: Precision,
    arguments: &PrecisionArgs,
    checkpoint: &Checkpoint,
    output: &Output,
) -> (Loader, Bar) {
    let loader = Loader::new(checkpoint.clone());
    let rotary = rotary(&loader, arguments.rotary);
    let verb = if precision == Precision::Float { "loading" } else { "converting to int8" };
    let bar = output.bar(verb, "blocks");
    let progress = bar.clone();
    let loader = loader.precision(precision).rotary_precision(rotary).on_progress(move |done, all| {
        progress.set(done, all);
    });
    (loader, bar)
}

fn rotary(loader: &Loader, wanted: Option<args::RotaryPrecision>) -> RotaryPrecision {
    let dtype = loader.checkpoint().tensors().next().map(|tensor| tensor.dtype());
    match (wanted, dtype) {
        (Some(args::RotaryPrecision::Stored), Some(DType::F16)) => RotaryPrecision::F16,
        (Some(args::RotaryPrecision::Stored), Some(DType::BF16)) => RotaryPrecision::Bf16,
        _ => RotaryPrecision::F32,
    }
}
