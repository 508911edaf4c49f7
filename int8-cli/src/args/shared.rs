//! Arguments that several commands share: the model, its precision, prompts, texts, and how a checkpoint is written.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use int8_core::{OutlierGranularity, OutlierRule, RowMaximum, RowStatistic, Scheme};
use int8_nn::backend::OutlierWeights;

use crate::values::{Ids, ids, named, size};

/// The meaning of `--kv-cache auto`.
pub(super) const AUTO_KV_CACHE: &str = "As the checkpoint stores its embeddings; with int8 weights on a processor with AMX tiles of bf16, bf16 instead of f16: attention is twice as fast";

/// The model and its precision.
#[derive(Debug, Args)]
pub(crate) struct ModelArgs {
    /// Folder of a checkpoint; one .safetensors or .bin file with config.json beside it; or a model of the Hugging Face hub,
    /// org/name@revision
    pub(crate) model: PathBuf,
    /// Branch, tag or commit of a model of the hub [default: main]
    #[arg(long, value_name = "NAME")]
    pub(crate) revision: Option<String>,
    #[command(flatten)]
    pub(crate) precision: PrecisionArgs,
}

/// The precision of the linear layers.
#[derive(Debug, Args, Default, PartialEq)]
#[command(next_help_heading = "Precision")]
pub(crate) struct PrecisionArgs {
    /// Weights as stored, 16- or 32-bit, computed in 32-bit: the baseline
    #[arg(long, conflicts_with_all = PRECISION_OPTIONS[1..].iter().copied())]
    pub(crate) fp: bool,
    /// Settings by name: the paper's, or the ones that lose least (docs/quality.md) [default: paper]
    #[arg(long, value_name = "NAME", conflicts_with_all = PRECISION_OPTIONS[5..].iter().copied())]
    pub(crate) preset: Option<Preset>,
    /// The output head in int8 as well, less to read for every generated token: the default on a processor, but with the presets
    /// best and best-rows
    #[arg(long, conflicts_with = "float_head")]
    pub(crate) int8_head: bool,
    /// The output head as stored, as bitsandbytes keeps it: the default on a GPU
    #[arg(long)]
    pub(crate) float_head: bool,
    /// The routed experts of a mixture in floating point, as transformers' load_in_8bit leaves them where it holds them
    /// stacked: more memory, and the routing of floating point
    #[arg(long)]
    pub(crate) float_experts: bool,
    /// Quantisation, one of the eight of the paper's Table 1 [default: llm-int8]
    #[arg(long, value_name = "NAME", value_parser = named::<Scheme>())]
    pub(crate) scheme: Option<Scheme>,
    /// Criterion for an outlier: its magnitude (the paper), or its magnitude relative to its row [default: absolute]
    #[arg(long, value_name = "RULE", value_parser = named::<OutlierRule>())]
    pub(crate) rule: Option<OutlierRule>,
    /// Magnitude from which on a value is an outlier; 0 for no outliers (rule absolute) [default: 6]
    #[arg(long, value_name = "T")]
    pub(crate) threshold: Option<f32>,
    /// Multiple of the row's statistic from which on a value is an outlier (rule relative) [default: 30]
    #[arg(long, value_name = "TAU")]
    pub(crate) tau: Option<f32>,
    /// Statistic of the row that its values are compared to (rule relative) [default: median]
    #[arg(long, value_name = "NAME", value_parser = named::<RowStatistic>())]
    pub(crate) statistic: Option<RowStatistic>,
    /// Part of the input that is multiplied in 16-bit for an outlier: its whole column (the paper), or the value alone [default: column]
    #[arg(long, value_name = "WHAT", value_parser = named::<OutlierGranularity>())]
    pub(crate) granularity: Option<OutlierGranularity>,
    /// Weights of the outliers: the checkpoint's own values, read when needed (on a GPU those of the columns that most often hold
    /// outliers, found when the model is loaded), or dequantised int8 [default: exact, on a GPU dequantized, which is faster there]
    #[arg(long, value_name = "HOW", value_parser = named::<OutlierWeights>())]
    pub(crate) outlier_weights: Option<OutlierWeights>,
    /// Values that determine the scale of a row with outliers [default: paper]
    #[arg(long, value_name = "WHOSE", value_parser = named::<RowMaximum>())]
    pub(crate) row_maximum: Option<RowMaximum>,
    /// Rotary frequencies: in 32-bit, as `from_pretrained` has them, or rounded to the type of the weights, as in a
    /// module that was cast as a whole [default: f32]
    #[arg(long, value_name = "PRECISION")]
    pub(crate) rotary: Option<RotaryPrecision>,
}

impl PrecisionArgs {
    /// Whether any of [`PRECISION_OPTIONS`] was given.
    pub(crate) fn any(&self) -> bool {
        *self != Self { rotary: self.rotary, ..Self::default() }
    }
}

/// `--preset`
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Preset {
    /// LLM.int8(): outlier columns from magnitude 6 on, and exact weights for them.
    Paper,
    /// Scales and zero points for groups of 32 values, single outliers by the relative rule, exact weights for them.
    Best,
    /// As best with one scale a row, at the speed of the paper's setting; what best is on a GPU.
    BestRows,
}

/// Options of the precision: `fp` excludes all others, `preset` all but those of head and experts. A comparison sets them itself.
pub(super) const PRECISION_OPTIONS: [&str; 13] = [
    "fp",
    "preset",
    "int8_head",
    "float_head",
    "float_experts",
    "scheme",
    "threshold",
    "rule",
    "tau",
    "statistic",
    "granularity",
    "outlier_weights",
    "row_maximum",
];

/// `--rotary`
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum RotaryPrecision {
    /// 32-bit.
    F32,
    /// The type of the weights.
    Stored,
}

/// A prompt, as text or as token ids.
#[derive(Debug, Args)]
#[command(next_help_heading = "Input")]
#[group(multiple = false)]
pub(crate) struct InputArgs {
    /// Text to continue; `-` reads it from standard input, as does a pipe without this option (without its last end of line)
    #[arg(long, short, value_name = "TEXT")]
    pub(crate) prompt: Option<String>,
    /// UTF-8 file with the text to continue (without its last end of line)
    #[arg(long, value_name = "FILE")]
    pub(crate) prompt_file: Option<PathBuf>,
    /// Token ids, separated by commas or spaces in one argument; no tokenizer is needed
    #[arg(long, value_name = "IDS", value_parser = ids)]
    pub(crate) ids: Option<Ids>,
}

/// A text and its windows.
#[derive(Debug, Args)]
#[command(next_help_heading = "Input")]
pub(crate) struct TextArgs {
    /// UTF-8 text, `-` for standard input; ends of line count as \n, whatever the file has
    #[arg(long, value_name = "FILE")]
    pub(crate) text: Option<PathBuf>,
    /// Tokens a window [default: 1024, or all positions the model has]
    #[arg(long, value_name = "N")]
    pub(crate) window: Option<usize>,
    /// Most windows [default: the whole text]
    #[arg(long, value_name = "N")]
    pub(crate) windows: Option<usize>,
}

/// How a checkpoint is written.
#[derive(Debug, Args)]
#[command(next_help_heading = "Writing")]
pub(crate) struct WriteArgs {
    /// Folder to write
    pub(crate) out: PathBuf,
    /// Largest size of a file: bytes, or with kB, MB, GB, MiB, GiB
    #[arg(long, value_name = "SIZE", default_value = "5GB", value_parser = size)]
    pub(crate) max_shard_size: u64,
    /// Continue an interrupted run of the same command
    #[arg(long, conflicts_with = "force")]
    pub(crate) resume: bool,
    /// Replace an existing checkpoint in the folder
    #[arg(long)]
    pub(crate) force: bool,
    /// Read the result again and compare it
    #[arg(long)]
    pub(crate) verify: bool,
}
