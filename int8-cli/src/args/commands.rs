//! Arguments of each command.

use std::path::PathBuf;

use clap::builder::PossibleValuesParser;
use clap::{Args, ValueEnum};
use int8_core::{FloatType, KvType};
use int8_nn::embedder::Pooling;
use int8_nn::transcriber::SpeechTask;

use super::shared::{
    AUTO_KV_CACHE, InputArgs, ModelArgs, PRECISION_OPTIONS, PrecisionArgs, Preset, TextArgs, WriteArgs,
};
use crate::bench::ModelShape;
use crate::values::{OrAuto, named, or_auto, size};

/// `int8 run`
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) input: InputArgs,
    /// The prompt is a question: write it in the model's chat template and print only the answer. Without a prompt, one is
    /// read from standard input, or a conversation is held on a terminal
    #[arg(help_heading = "Input", long, conflicts_with = "ids")]
    pub(crate) chat: bool,
    /// JSONL file of prompts, an object with "prompt" or "messages" a line, and with "max_tokens", "temperature", "top_k",
    /// "top_p", "seed", "stop" or "json_schema" where they differ from the options: they are answered many at once. An answer does not depend on
    /// the others: without --granularity, outliers are single values
    #[arg(help_heading = "Input", long, value_name = "FILE", requires = "out", conflicts_with_all = ["prompt", "ids"])]
    pub(crate) batch: Option<PathBuf>,
    /// JSONL file of the answers of --batch, one object a line in the order in which they end. If it exists, the prompts that it
    /// has answers to are left out: an interrupted run goes on
    #[arg(help_heading = "Input", long, value_name = "FILE", requires = "batch")]
    pub(crate) out: Option<PathBuf>,
    /// Prompts of --batch that are computed at once
    #[arg(help_heading = "Input", long, value_name = "N", default_value_t = 16, requires = "batch", value_parser = clap::value_parser!(u16).range(1..=512))]
    pub(crate) at_once: u16,
    /// System message: instructions before the conversation
    #[arg(help_heading = "Input", long, value_name = "TEXT")]
    pub(crate) system: Option<String>,
    /// Most tokens to add
    #[arg(help_heading = "Generation", long, short = 'n', value_name = "N", default_value_t = 128)]
    pub(crate) max_tokens: usize,
    /// Always the most probable token
    #[arg(help_heading = "Generation", long, conflicts_with_all = ["temperature", "top_k", "top_p", "seed"])]
    pub(crate) greedy: bool,
    /// Divides the logits: below 1 more predictable, above 1 more varied; 0 as --greedy [default: the model's own, or 0.7]
    #[arg(help_heading = "Generation", long, value_name = "T")]
    pub(crate) temperature: Option<f32>,
    /// Sample from the K most probable tokens; 0 for all [default: the model's own, or 50]
    #[arg(help_heading = "Generation", long, value_name = "K")]
    pub(crate) top_k: Option<usize>,
    /// Sample from the most probable tokens that together have probability P [default: the model's own, or 0.95]
    #[arg(help_heading = "Generation", long, value_name = "P")]
    pub(crate) top_p: Option<f32>,
    /// The same seed gives the same text [default: 0]
    #[arg(help_heading = "Generation", long, value_name = "N")]
    pub(crate) seed: Option<u64>,
    /// Divide the logits of tokens that the text holds by P; 1 changes nothing [default: the model's own, or 1]
    #[arg(help_heading = "Generation", long, value_name = "P")]
    pub(crate) repetition_penalty: Option<f32>,
    /// Never the same N tokens twice; 0 switches the rule off [default: the model's own, or 0]
    #[arg(help_heading = "Generation", long, value_name = "N")]
    pub(crate) no_repeat_ngram: Option<usize>,
    /// No end of the text before N new tokens [default: the model's own, or 0]
    #[arg(help_heading = "Generation", long, value_name = "N")]
    pub(crate) min_new_tokens: Option<usize>,
    /// Ignore the model's generation_config.json, but for the tokens that begin and end a text
    #[arg(help_heading = "Generation", long)]
    pub(crate) no_generation_config: bool,
    /// Go on after the model's end-of-text token
    #[arg(help_heading = "Generation", long)]
    pub(crate) ignore_eos: bool,
    /// The new text is JSON of this schema, unless --max-tokens or the model's positions cut it short
    #[cfg(feature = "json-schema")]
    #[arg(help_heading = "Generation", long, value_name = "FILE", conflicts_with = "ignore_eos")]
    pub(crate) json_schema: Option<PathBuf>,
    /// Type of the KV cache, which keeps the keys and values of past tokens: 16 bits take half the memory, and are faster after
    /// long prompts. auto: the type of the checkpoint
    #[arg(help_heading = "Generation", long, value_name = "TYPE", default_value = "auto", value_parser = or_auto::<KvType>(AUTO_KV_CACHE))]
    pub(crate) kv_cache: OrAuto<KvType>,
}

/// `int8 eval`
#[derive(Debug, Args)]
pub(crate) struct EvalArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) text: TextArgs,
    /// JSONL file of passages, one object with "text" a line: how often the model finds a passage's last word (the form of
    /// LAMBADA)
    #[arg(help_heading = "Input", long, value_name = "FILE")]
    pub(crate) last_words: Option<PathBuf>,
    /// Type of the KV cache: rounds keys and values as generation does, to measure what that costs [default: f32]
    #[arg(help_heading = "Precision", long, value_name = "TYPE", conflicts_with = "compare", value_parser = or_auto::<KvType>(AUTO_KV_CACHE))]
    pub(crate) kv_cache: Option<OrAuto<KvType>>,
    /// Table 1 of the paper for this model: float, the eight schemes, the outlier weights of bitsandbytes, and the preset `best`
    #[arg(help_heading = "Comparison", long, requires = "text", conflicts_with_all = PRECISION_OPTIONS)]
    pub(crate) compare: bool,
    /// The comparison as CSV
    #[arg(help_heading = "Comparison", long, value_name = "FILE", requires = "compare")]
    pub(crate) csv: Option<PathBuf>,
    /// The comparison as a page with plots, which also shows loss against threshold and the error of each layer
    #[arg(help_heading = "Comparison", long, value_name = "FILE.html", requires = "compare")]
    pub(crate) report: Option<PathBuf>,
    /// The plots of the page as files: perplexity of every scheme, loss against threshold, error of each layer. Each is
    /// written into this folder as SVG and as PNG; the folder is made if it is not there
    #[arg(help_heading = "Comparison", long, value_name = "FOLDER", requires = "compare")]
    pub(crate) plots: Option<PathBuf>,
}

/// `int8 embed`
#[derive(Debug, Args)]
pub(crate) struct EmbedArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// A text; may be given more than once
    #[arg(help_heading = "Input", long, short, value_name = "TEXT")]
    pub(crate) text: Vec<String>,
    /// UTF-8 file with one text a line [default: standard input]
    #[arg(help_heading = "Input", long, short, value_name = "FILE", conflicts_with = "text")]
    pub(crate) file: Option<PathBuf>,
    /// Cut texts to N tokens [default: the length the model was trained with]
    #[arg(help_heading = "Input", long, value_name = "N")]
    pub(crate) max_tokens: Option<usize>,
    /// How the tokens' vectors become one [default: that of the model's files, or mean]
    #[arg(help_heading = "Output", long, value_name = "HOW", value_parser = named::<Pooling>())]
    pub(crate) pooling: Option<Pooling>,
    /// Divide each vector by its length
    #[arg(help_heading = "Output", long)]
    pub(crate) normalize: bool,
    /// File to write: embeddings f32 [texts, dimensions], .safetensors or .npy
    #[arg(help_heading = "Output", long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
    /// Texts are pairs separated by a tab: how far their cosines in int8 are from those in floating point, for every scheme
    /// or for the given one
    #[arg(help_heading = "Output", long, conflicts_with = "out")]
    pub(crate) compare: bool,
}

/// `int8 transcribe`
#[derive(Debug, Args)]
pub(crate) struct TranscribeArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// WAV file, `-` for standard input
    pub(crate) file: PathBuf,
    /// Language of the speech by its code, as de [default: the model finds it out; models of English alone take none]
    #[arg(help_heading = "Speech", long, value_name = "CODE")]
    pub(crate) language: Option<String>,
    /// Text to write, of a model that knows several languages [default: transcribe]
    #[arg(help_heading = "Speech", long, value_name = "TASK", value_parser = named::<SpeechTask>())]
    pub(crate) task: Option<SpeechTask>,
    /// Type of the KV cache
    #[arg(help_heading = "Speech", long, value_name = "TYPE", default_value = "auto", value_parser = or_auto::<KvType>(AUTO_KV_CACHE))]
    pub(crate) kv_cache: OrAuto<KvType>,
}

/// `int8 outliers`
#[derive(Debug, Args)]
pub(crate) struct OutliersArgs {
    /// Folder of a checkpoint, or one .safetensors file with config.json beside it
    pub(crate) model: PathBuf,
    /// Branch, tag or commit of a model of the hub [default: main]
    #[arg(long, value_name = "NAME")]
    pub(crate) revision: Option<String>,
    #[command(flatten)]
    pub(crate) text: TextArgs,
    /// Magnitude from which on a value is an outlier
    #[arg(help_heading = "Criterion", long, value_name = "T", default_value_t = 6.0)]
    pub(crate) magnitude: f32,
    /// Share of the layers in which a feature must reach it
    #[arg(help_heading = "Criterion", long, value_name = "SHARE", default_value_t = 0.25)]
    pub(crate) layers: f64,
    /// Share of the positions in which it must
    #[arg(help_heading = "Criterion", long, value_name = "SHARE", default_value_t = 0.06)]
    pub(crate) positions: f64,
    /// Skip the ablation: the model with the features set to zero
    #[arg(help_heading = "Output", long)]
    pub(crate) no_ablation: bool,
    /// Write a page with plots
    #[arg(help_heading = "Output", long, value_name = "FILE.html")]
    pub(crate) report: Option<PathBuf>,
    /// Write the plots as files: heat maps of layers and dimensions, magnitudes by layer, outliers by threshold. Each is
    /// written into this folder as SVG and as PNG; the folder is made if it is not there
    #[arg(help_heading = "Output", long, value_name = "FOLDER")]
    pub(crate) plots: Option<PathBuf>,
}

/// `int8 logits`
#[derive(Debug, Args)]
pub(crate) struct LogitsArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) input: InputArgs,
    /// File to write: `logits`, f32 [tokens, vocabulary]
    #[arg(help_heading = "Output", long, value_name = "FILE")]
    pub(crate) out: PathBuf,
}

/// `int8 inspect`
#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    /// Folder of a checkpoint; one .safetensors or .bin file; or a model of the hub, org/name@revision
    pub(crate) model: PathBuf,
    /// Branch, tag or commit of a model of the hub [default: main]
    #[arg(long, value_name = "NAME")]
    pub(crate) revision: Option<String>,
    /// Every tensor, not only the summary
    #[arg(long, short)]
    pub(crate) tensors: bool,
}

/// `int8 plan`
#[derive(Debug, Args)]
pub(crate) struct PlanArgs {
    /// Folder of a checkpoint, model of the hub (org/name@revision), or a name such as OPT-66B; without it, the paper's
    /// table
    pub(crate) model: Option<String>,
    /// Branch, tag or commit of a model of the hub [default: main]
    #[arg(long, value_name = "NAME", requires = "model")]
    pub(crate) revision: Option<String>,
    /// Tokens of a sequence, prompt and continuation [default: 2048, or all the model has]
    #[arg(help_heading = "Load", long, value_name = "N", requires = "model")]
    pub(crate) context: Option<u64>,
    /// Sequences at a time
    #[arg(help_heading = "Load", long, value_name = "N", default_value_t = 1)]
    pub(crate) batch: u64,
    /// Type of the KV cache [default: 32 bits beside 32-bit weights, 16 bits otherwise]
    #[arg(help_heading = "Load", long, value_name = "TYPE", requires = "model", value_parser = or_auto::<KvType>(AUTO_KV_CACHE))]
    pub(crate) kv_cache: Option<OrAuto<KvType>>,
    /// Number of GPUs available: reports for each kind whether they hold the model
    #[arg(help_heading = "Hardware", long, value_name = "N", requires = "model", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) gpus: Option<u64>,
    /// Memory of one GPU, instead of the table of common ones: 24GB, 80GiB
    #[arg(help_heading = "Hardware", long, value_name = "SIZE", requires = "model", value_parser = size)]
    pub(crate) gpu_memory: Option<u64>,
}

/// `int8 quantize`
#[derive(Debug, Args)]
pub(crate) struct QuantizeArgs {
    /// Folder of a 16- or 32-bit checkpoint; one .safetensors or .bin file with config.json beside it; or a model of the
    /// hub, org/name@revision
    pub(crate) model: PathBuf,
    /// Branch, tag or commit of a model of the hub [default: main]
    #[arg(long, value_name = "NAME")]
    pub(crate) revision: Option<String>,
    #[command(flatten)]
    pub(crate) write: WriteArgs,
    /// Convert tensors of this name although a rule excludes them (pattern; repeat for more)
    #[arg(help_heading = "Selection of tensors", long, value_name = "PATTERN")]
    pub(crate) include: Vec<String>,
    /// Do not convert tensors of this name (pattern; repeat for more)
    #[arg(help_heading = "Selection of tensors", long, value_name = "PATTERN")]
    pub(crate) exclude: Vec<String>,
    /// Do not convert these modules, as transformers' llm_int8_skip_modules: replaces the default, the output head
    #[arg(help_heading = "Selection of tensors", long, value_name = "NAMES", value_delimiter = ',')]
    pub(crate) skip_modules: Option<Vec<String>>,
    /// Convert layers as well that this program runs in int8 and transformers does not load: experts of a mixture, Falcon's
    /// layers
    #[arg(help_heading = "Selection of tensors", long)]
    pub(crate) beyond_transformers: bool,
    /// Run the model over this text and keep exact weights for the input features with outliers, in a file beside the int8
    /// weights; other programs ignore it
    #[arg(help_heading = "Outliers", long, value_name = "FILE")]
    pub(crate) keep_outliers: Option<PathBuf>,
    /// Most tokens of that text
    #[arg(
        help_heading = "Outliers",
        long,
        value_name = "N",
        default_value_t = 2048,
        requires = "keep_outliers"
    )]
    pub(crate) calibration_tokens: usize,
}

/// `int8 dequantize`
#[derive(Debug, Args)]
pub(crate) struct DequantizeArgs {
    /// Folder of a bitsandbytes int8 checkpoint, or a model of the hub, org/name@revision
    pub(crate) model: PathBuf,
    /// Branch, tag or commit of a model of the hub [default: main]
    #[arg(long, value_name = "NAME")]
    pub(crate) revision: Option<String>,
    #[command(flatten)]
    pub(crate) write: WriteArgs,
    /// Type of the written weights [default: that of config.json, or f16]
    #[arg(long, value_name = "TYPE", value_parser = named::<FloatType>())]
    pub(crate) dtype: Option<FloatType>,
}

/// `int8 bench`
#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    /// Folder of a checkpoint, or a model of the hub: times the model instead of single layers
    pub(crate) model: Option<PathBuf>,
    /// Fewer shapes and rounds: a first estimate in less than a minute
    #[arg(long)]
    pub(crate) quick: bool,
    /// The best round instead of the median: for a machine that has other work
    #[arg(long)]
    pub(crate) best: bool,
    /// Draws the layer's speed-ups: as PNG if the name ends in .png, or else as SVG
    #[arg(long, value_name = "FILE", conflicts_with_all = ["model", "shape"])]
    pub(crate) plot: Option<PathBuf>,
    /// Times a whole model of this shape with random weights, made without a checkpoint: prompts, and decode steps of several
    /// sequences, in int8 and in 16 bit
    #[arg(help_heading = "Whole models", long, value_name = "NAME", conflicts_with = "model", value_parser = PossibleValuesParser::new(ModelShape::names()))]
    pub(crate) shape: Option<String>,
    /// Only one of both, for a model that is too large in 16 bit
    #[arg(help_heading = "Whole models", long, value_name = "WHICH")]
    pub(crate) only: Option<Runs>,
    /// Settings of the int8 model, as of `int8 run` [default: paper]
    #[arg(help_heading = "Whole models", long, value_name = "NAME")]
    pub(crate) preset: Option<Preset>,
    /// Text of the prompts, repeated as needed; - reads standard input [default: ids spread over the vocabulary, which meet more
    /// outliers than text does] (with MODEL)
    #[arg(help_heading = "Whole models", long, value_name = "FILE", requires = "model")]
    pub(crate) text: Option<PathBuf>,
    /// Sequences that decode at once: measured for each of these [default: 1; with --shape 1,8,32]
    #[arg(help_heading = "Whole models", long, value_name = "N,N", value_delimiter = ',')]
    pub(crate) batch: Vec<usize>,
    /// Tokens that each sequence holds before it decodes: measured for each of these (with --shape)
    #[arg(
        help_heading = "Whole models",
        long,
        value_name = "N,N",
        value_delimiter = ',',
        default_value = "128"
    )]
    pub(crate) context: Vec<usize>,
    /// Bytes a second of the memory, such as 4800GB, for the share of the floor (with --shape) [default: measured on a CPU, of
    /// the data sheet of a known GPU]
    #[arg(help_heading = "Whole models", long, value_name = "SIZE", requires = "shape", value_parser = size)]
    pub(crate) bandwidth: Option<u64>,
    /// Tokens of the prompt
    #[arg(help_heading = "Whole models", long, value_name = "N", default_value_t = 512)]
    pub(crate) prompt_tokens: usize,
    /// Prompts that are read at once (with --shape)
    #[arg(help_heading = "Whole models", long, value_name = "N", default_value_t = 1, requires = "shape")]
    pub(crate) prompts: usize,
    /// Tokens to generate
    #[arg(help_heading = "Whole models", long, value_name = "N", default_value_t = 64)]
    pub(crate) new_tokens: usize,
    /// Type of the KV cache of both; auto: the type of the checkpoint
    #[arg(help_heading = "Whole models", long, value_name = "TYPE", default_value = "auto", value_parser = or_auto::<KvType>(AUTO_KV_CACHE))]
    pub(crate) kv_cache: OrAuto<KvType>,
    /// The int8 model's output head in int8 as well: the default on a processor
    #[arg(help_heading = "Whole models", long, conflicts_with = "float_head")]
    pub(crate) int8_head: bool,
    /// The int8 model's output head as stored: the default on a GPU
    #[arg(help_heading = "Whole models", long)]
    pub(crate) float_head: bool,
}

impl BenchArgs {
    /// Settings of a whole model in int8.
    pub(crate) fn precision(&self) -> PrecisionArgs {
        let Self { preset, int8_head, float_head, .. } = *self;
        PrecisionArgs { preset, int8_head, float_head, ..PrecisionArgs::default() }
    }

    /// `--batch`, or its default.
    pub(crate) fn batches(&self) -> &[usize] {
        match &self.batch[..] {
            [] if self.shape.is_some() => &[1, 8, 32],
            [] => &[1],
            given => given,
        }
    }
}

/// `--only`
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Runs {
    /// The int8 model.
    Int8,
    /// The model in 16 bit.
    Fp,
}

/// `int8 verify`
#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    /// Random cases besides the corpus
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub(crate) cases: u64,
    /// Fail if this backend is missing
    #[arg(long, value_name = "BACKEND")]
    pub(crate) require: Vec<Required>,
}

/// `--require`
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Required {
    /// The CPU kernels.
    Cpu,
    /// An NVIDIA GPU.
    Cuda,
}
