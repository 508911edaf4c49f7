//! The command line as typed. What it means is decided in [`crate::resolve`].

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// `int8`: the whole command line.
#[derive(Debug, Parser)]
#[command(
    name = "int8",
    version,
    about = "Run, evaluate and inspect transformer checkpoints in 8-bit (LLM.int8())",
    after_help = "Start with `int8 demo`; it needs no files.\n\n\
        MODEL is a folder with config.json, tokenizer.json and model.safetensors or pytorch_model.bin (or their shards), as \
        Hugging Face writes them, 16- or 32-bit, or int8 by bitsandbytes. A folder that is not there is looked up on the \
        Hugging Face hub: facebook/opt-125m, or facebook/opt-125m@REVISION. What is downloaded is shared with Python; HF_HOME, \
        HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE mean what they mean there.\n\n\
        Exit codes: 0 success; 1 the command failed, the message says why; 2 the command line makes no sense."
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Options of every command.
#[derive(Debug, Args)]
pub(crate) struct Global {
    /// Threads to compute with [default: one for each core]
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) threads: Option<u16>,
    /// Where to compute: auto, cpu, or cuda:N (bench of single layers, in a build with the feature `cuda`)
    #[arg(long, global = true, value_name = "DEVICE", default_value = "auto")]
    pub(crate) device: String,
    /// int8 kernel of the CPU; `int8 verify` lists them [default: the best this processor has]
    #[arg(long, global = true, value_name = "NAME", env = "INT8_KERNEL")]
    pub(crate) kernel: Option<String>,
    /// One JSON object on standard output instead of text
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// When to use colour; NO_COLOR is honoured
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto")]
    pub(crate) color: Color,
    /// No progress on standard error
    #[arg(long, short, global = true)]
    pub(crate) quiet: bool,
}

/// When to colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Color {
    /// On a terminal.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// The whole story on a 3M-parameter model inside this program: memory, outliers, quality, text
    Demo,
    /// Load a checkpoint, convert it to int8 and continue a text, or answer it (T5)
    #[command(after_help = "Examples:\n  int8 run ./opt-125m -p \"Once upon a time\"\n  \
        int8 run ./opt-125m -p \"Once upon a time\" --greedy --fp      (16/32-bit, for comparison)\n  \
        int8 run ./opt-125m --ids 5,17,42 --greedy --json           (token ids in and out)\n  \
        int8 run ./smollm2 --chat -p \"Why is the sky blue?\"        (a question to a chat model)\n  \
        int8 run ./smollm2 --chat                                   (a conversation; an empty line ends it)\n  \
        int8 run ./flan-t5-small -p \"translate English to German: How old are you?\"")]
    Run(RunArgs),
    /// Perplexity of a text
    #[command(
        after_help = "The text is cut into windows that do not overlap; the first token of each is not scored.\n\n\
        Examples:\n  int8 eval ./opt-125m --text wiki.txt --window 1024\n  \
        int8 eval ./opt-125m --text wiki.txt --scheme absmax-vector-wise\n  \
        int8 eval ./opt-125m --text wiki.txt --preset best\n  \
        int8 eval ./opt-125m --text wiki.txt --kv-cache f16         (what a 16-bit KV cache costs)\n  \
        int8 eval ./opt-125m --text wiki.txt --compare --windows 16 --report quality.html --plots ./plots\n  \
        int8 eval ./opt-125m --last-words lambada.jsonl"
    )]
    Eval(EvalArgs),
    /// Sentence embeddings: texts become vectors, and their cosines say how alike they are
    #[command(
        after_help = "For encoders of the BERT family (MiniLM, E5, …). Pooling, normalisation and length come from \
        sentence-transformers' files beside the model, if there are any.\n\n\
        Examples:\n  int8 embed ./all-MiniLM-L6-v2 --text \"A man is eating food.\" --text \"A man is eating bread.\"\n  \
        int8 embed ./all-MiniLM-L6-v2 --file lines.txt --out vectors.npy\n  \
        int8 embed ./all-MiniLM-L6-v2 --compare --file pairs.tsv    (how far int8 is from floating point)"
    )]
    Embed(EmbedArgs),
    /// Which features of a model are outliers, where, and what happens without them (section 4 of the paper)
    #[command(
        after_help = "An outlier feature is a hidden dimension that reaches magnitude 6 in at least 25 % of the layers and 6 % of \
        the positions, in the inputs of the attention projections and of the MLPs' expansions. The text may be of any length: \
        memory depends on the model alone.\n\n\
        Examples:\n  int8 outliers ./opt-125m --text wiki.txt\n  \
        int8 outliers ./opt-125m --text wiki.txt --windows 8 --report outliers.html --plots ./plots"
    )]
    Outliers(OutliersArgs),
    /// Logits of a sequence of tokens, as a safetensors file
    Logits(LogitsArgs),
    /// What a checkpoint consists of: tensors, types, sizes, quantisation
    Inspect(InspectArgs),
    /// How much memory a model takes in fp32, fp16 and int8, and which GPUs hold it
    #[command(
        after_help = "Nothing is loaded: a folder's headers are read, of a model of the hub only its configuration and headers \
        are downloaded, and the paper's models are known by name. Linear layers become int8; embeddings, output head and \
        norms stay in 16 bits, and so do the keys and values of past tokens (the KV cache; --kv-cache), which grow with \
        context and batch.\n\n\
        Examples:\n  int8 plan                                   the paper's table: what fits on which machine\n  \
        int8 plan BLOOM-176B                        704 GB, 352 GB, 180 GB, and the GPUs that takes\n  \
        int8 plan ./opt-6.7b --context 2048 --batch 8\n  \
        int8 plan org/name --gpus 2 --gpu-memory 24GB"
    )]
    Plan(PlanArgs),
    /// Convert a checkpoint on disk to bitsandbytes int8, whatever its size
    #[command(
        after_help = "Reads tensor by tensor, so that memory stays bounded; what is written loads here and with one line of \
        from_pretrained (transformers with bitsandbytes). An interrupted run leaves a folder that does not load, and \
        --resume completes it.\n\n\
        Works for every Hugging Face model: linear weights become int8; embeddings, norms, heads, convolutions, routers and \
        experts stay, and the report says why.\n\n\
        Examples:\n  int8 quantize ./opt-6.7b ./opt-6.7b-int8\n  \
        int8 quantize ./opt-6.7b ./opt-6.7b-int8 --resume          (after an interruption)\n  \
        int8 quantize ./vit ./vit-int8 --exclude '*.pooler.*' --verify\n  \
        int8 quantize ./opt-6.7b ./opt-6.7b-int8 --keep-outliers wiki.txt"
    )]
    Quantize(QuantizeArgs),
    /// Convert a bitsandbytes int8 checkpoint back to 16 or 32 bit
    #[command(after_help = "Examples:\n  int8 dequantize ./opt-6.7b-int8 ./opt-6.7b-f16 --dtype f16")]
    Dequantize(DequantizeArgs),
    /// Every kernel of this machine against the reference mathematics
    Verify(VerifyArgs),
    /// How fast int8 is here: the layer against the same in 16 and 32 bit, or a whole model against itself in 16 bit
    #[command(
        after_help = "Contestants take turns in one run, so ratios hold on a machine that changes its speed; shares are of what \
        the machine was found to do at best in the same run. Close other programs first.\n\n\
        Examples:\n  int8 bench --quick\n  int8 bench --plot bench.svg            (some ten minutes)\n  \
        int8 bench ./opt-125m                  (tokens per second, int8 and as stored)\n  \
        int8 bench --threads 1 --json > bench.json"
    )]
    Bench(BenchArgs),
    /// Completions for a shell, to be sourced
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// Where the model is and how it is held.
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

/// How the linear layers are held.
#[derive(Debug, Args, Default, PartialEq)]
#[command(next_help_heading = "Precision")]
pub(crate) struct PrecisionArgs {
    /// Weights as stored, 16- or 32-bit, computed in 32-bit: the baseline
    #[arg(long, conflicts_with_all = PRECISION_OPTIONS[1..].iter().copied())]
    pub(crate) fp: bool,
    /// A setting by name: the paper's, or the one that loses least (docs/quality.md) [default: paper]
    #[arg(long, value_name = "NAME", conflicts_with_all = PRECISION_OPTIONS[3..].iter().copied())]
    pub(crate) preset: Option<Preset>,
    /// The output head in int8, too, which bitsandbytes leaves in 16 bits: less to read for every token that is generated
    #[arg(long)]
    pub(crate) int8_head: bool,
    /// Quantisation, one of the eight of the paper's Table 1 [default: llm-int8]
    #[arg(long, value_name = "NAME", value_parser = crate::resolve::scheme_parser())]
    pub(crate) scheme: Option<int8_core::Scheme>,
    /// What makes a value an outlier: its magnitude (the paper), or its size relative to its row [default: absolute]
    #[arg(long, value_name = "RULE")]
    pub(crate) rule: Option<Rule>,
    /// Magnitude from which on a value is an outlier; 0 for no outliers (rule absolute) [default: 6]
    #[arg(long, value_name = "T")]
    pub(crate) threshold: Option<f32>,
    /// Multiple of the row's statistic from which on a value is an outlier (rule relative) [default: 30]
    #[arg(long, value_name = "TAU")]
    pub(crate) tau: Option<f32>,
    /// What a row's values are compared to (rule relative) [default: median]
    #[arg(long, value_name = "NAME")]
    pub(crate) statistic: Option<Statistic>,
    /// What leaves the int8 product with an outlier: its column (the paper), or the value alone [default: column]
    #[arg(long, value_name = "WHAT")]
    pub(crate) granularity: Option<OutlierGranularity>,
    /// What outliers are multiplied with: the checkpoint's own values, fetched when needed, or dequantised int8
    /// [default: exact]
    #[arg(long, value_name = "HOW")]
    pub(crate) outlier_weights: Option<OutlierWeights>,
    /// Values that count for the scale of a row with outliers [default: paper]
    #[arg(long, value_name = "WHOSE")]
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
    /// LLM.int8() with columns from magnitude 6 on, and exact weights for them.
    Paper,
    /// Constants and zero points for groups of 32 values, single values out by the relative rule, exact weights for them.
    Best,
}

/// `--rule`
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Rule {
    /// |x| ≥ threshold.
    Absolute,
    /// |x| ≥ tau · statistic of the row.
    Relative,
}

/// `--statistic`
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Statistic {
    /// Median magnitude of the values that are not zero.
    Median,
    /// Mean magnitude.
    Mean,
}

/// `--granularity`
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum OutlierGranularity {
    /// The column, for the whole batch.
    Column,
    /// The value.
    Value,
}

/// `--outlier-weights`
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum OutlierWeights {
    /// As the checkpoint stores them.
    Exact,
    /// From the int8 codes.
    Dequantized,
}

/// `--row-maximum`
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum RowMaximum {
    /// Values that stay in the int8 product.
    Paper,
    /// All values that are no outliers themselves.
    Bitsandbytes,
}

/// `--rotary`
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum RotaryPrecision {
    /// 32-bit.
    F32,
    /// The type of the weights.
    Stored,
}

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
    /// What the model is told before the conversation
    #[arg(help_heading = "Input", long, value_name = "TEXT", requires = "chat")]
    pub(crate) system: Option<String>,
    /// Most tokens to add
    #[arg(help_heading = "Generation", long, short = 'n', value_name = "N", default_value_t = 128)]
    pub(crate) max_tokens: usize,
    /// Always the most probable token
    #[arg(help_heading = "Generation", long, conflicts_with_all = ["temperature", "top_k", "top_p", "seed"])]
    pub(crate) greedy: bool,
    /// Below 1 safer, above 1 bolder
    #[arg(help_heading = "Generation", long, value_name = "T", default_value_t = 0.7)]
    pub(crate) temperature: f32,
    /// Only the K most probable tokens
    #[arg(help_heading = "Generation", long, value_name = "K", default_value_t = 50)]
    pub(crate) top_k: usize,
    /// Only the most probable tokens that together have probability P
    #[arg(help_heading = "Generation", long, value_name = "P", default_value_t = 0.95)]
    pub(crate) top_p: f32,
    /// The same seed gives the same text
    #[arg(help_heading = "Generation", long, value_name = "N", default_value_t = 0)]
    pub(crate) seed: u64,
    /// Go on after the model's end-of-text token
    #[arg(help_heading = "Generation", long)]
    pub(crate) ignore_eos: bool,
    /// In what the keys and values of past tokens are kept (the KV cache): 16 bits are half the memory, and faster after long
    /// prompts. auto: the type of the checkpoint
    #[arg(help_heading = "Generation", long, value_name = "TYPE", default_value = "auto")]
    pub(crate) kv_cache: KvCache,
}

/// `--kv-cache`
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum KvCache {
    /// As the checkpoint stores its embeddings.
    Auto,
    /// As computed, 4 bytes a value.
    F32,
    /// IEEE half precision; a magnitude beyond 65504 is an error.
    F16,
    /// bfloat16.
    Bf16,
}

/// A prompt, as text or as token ids.
#[derive(Debug, Args)]
#[command(next_help_heading = "Input")]
#[group(multiple = false)]
pub(crate) struct InputArgs {
    /// Text to continue
    #[arg(long, short, value_name = "TEXT")]
    pub(crate) prompt: Option<String>,
    /// Token ids, separated by commas; no tokenizer is needed
    #[arg(long, value_name = "IDS", value_delimiter = ',', num_args = 1..)]
    pub(crate) ids: Option<Vec<u32>>,
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
    /// Round keys and values to this type before they are attended to, as a generated text's are: what a KV cache costs
    /// [default: f32]
    #[arg(help_heading = "Precision", long, value_name = "TYPE", conflicts_with = "compare")]
    pub(crate) kv_cache: Option<KvCache>,
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

/// Options that say how linear layers are held: one that leaves none of the others, one that leaves the next, and the rest. A
/// comparison sets them itself.
const PRECISION_OPTIONS: [&str; 11] = [
    "fp",
    "preset",
    "int8_head",
    "scheme",
    "threshold",
    "rule",
    "tau",
    "statistic",
    "granularity",
    "outlier_weights",
    "row_maximum",
];

/// A text and how it is cut.
#[derive(Debug, Args)]
#[command(next_help_heading = "Input")]
pub(crate) struct TextArgs {
    /// UTF-8 text; ends of line count as \n, whatever the file has
    #[arg(long, value_name = "FILE")]
    pub(crate) text: Option<PathBuf>,
    /// Tokens a window [default: 1024, or all positions the model has]
    #[arg(long, value_name = "N")]
    pub(crate) window: Option<usize>,
    /// Most windows [default: the whole text]
    #[arg(long, value_name = "N")]
    pub(crate) windows: Option<usize>,
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
    /// Cut texts to N tokens [default: what the model was trained with]
    #[arg(help_heading = "Input", long, value_name = "N")]
    pub(crate) max_tokens: Option<usize>,
    /// How the tokens' vectors become one [default: as the model says, or mean]
    #[arg(help_heading = "Output", long, value_name = "HOW")]
    pub(crate) pooling: Option<Pooling>,
    /// Divide each vector by its length
    #[arg(help_heading = "Output", long)]
    pub(crate) normalize: bool,
    /// File to write: embeddings f32 [texts, dimensions], .safetensors or .npy
    #[arg(help_heading = "Output", long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
    /// Texts are pairs with a tab between them: how far their cosines in int8 are from those in floating point, for every
    /// scheme or for the one given
    #[arg(help_heading = "Output", long, conflicts_with = "out")]
    pub(crate) compare: bool,
}

/// `--pooling`
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Pooling {
    /// The mean over the tokens.
    Mean,
    /// The first token.
    Cls,
    /// The largest value in each dimension.
    Max,
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
    /// Leave out what the model does with the features set to zero
    #[arg(help_heading = "Output", long)]
    pub(crate) no_ablation: bool,
    /// Write a page with plots
    #[arg(help_heading = "Output", long, value_name = "FILE.html")]
    pub(crate) report: Option<PathBuf>,
    /// Write the plots as files: heat maps of layers and dimensions, magnitudes by layer, what a threshold takes out. Each is
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
    /// In what keys and values are kept [default: 32 bits beside 32-bit weights, 16 bits otherwise]
    #[arg(help_heading = "Load", long, value_name = "TYPE", requires = "model")]
    pub(crate) kv_cache: Option<KvCache>,
    /// Number of GPUs there are: say for each kind whether they hold the model
    #[arg(help_heading = "Hardware", long, value_name = "N", requires = "model", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) gpus: Option<u64>,
    /// Memory of one GPU, instead of the table of common ones: 24GB, 80GiB
    #[arg(help_heading = "Hardware", long, value_name = "SIZE", requires = "model", value_parser = crate::resolve::size)]
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
    /// Convert tensors of this name although a rule would leave them alone (pattern; repeat for more)
    #[arg(help_heading = "What becomes int8", long, value_name = "PATTERN")]
    pub(crate) include: Vec<String>,
    /// Leave tensors of this name alone (pattern; repeat for more)
    #[arg(help_heading = "What becomes int8", long, value_name = "PATTERN")]
    pub(crate) exclude: Vec<String>,
    /// Leave these modules alone, as transformers' llm_int8_skip_modules means it: replaces the default, the output head
    #[arg(help_heading = "What becomes int8", long, value_name = "NAMES", value_delimiter = ',')]
    pub(crate) skip_modules: Option<Vec<String>>,
    /// Convert also what this program runs in int8 and transformers does not load: experts of a mixture, Falcon's layers
    #[arg(help_heading = "What becomes int8", long)]
    pub(crate) beyond_transformers: bool,
    /// Run the model over this text and keep the weights of the columns that meet outliers exactly, in a file beside the
    /// int8 weights; other programs ignore it
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
    /// Type of the weights afterwards [default: what config.json says, or f16]
    #[arg(long, value_name = "TYPE")]
    pub(crate) dtype: Option<FloatType>,
}

/// How a checkpoint is written.
#[derive(Debug, Args)]
#[command(next_help_heading = "Writing")]
pub(crate) struct WriteArgs {
    /// Folder to write
    pub(crate) out: PathBuf,
    /// Size from which on a new file begins: bytes, or with kB, MB, GB, MiB, GiB
    #[arg(long, value_name = "SIZE", default_value = "5GB", value_parser = crate::resolve::size)]
    pub(crate) max_shard_size: u64,
    /// Go on where an interrupted run of the same command stopped
    #[arg(long, conflicts_with = "force")]
    pub(crate) resume: bool,
    /// Replace a checkpoint that is in the folder
    #[arg(long)]
    pub(crate) force: bool,
    /// Read everything again afterwards and compare
    #[arg(long)]
    pub(crate) verify: bool,
}

/// `--dtype`
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum FloatType {
    /// IEEE half precision.
    F16,
    /// bfloat16.
    Bf16,
    /// 32-bit.
    F32,
}

/// `int8 bench`
#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    /// Folder of a checkpoint, or a model of the hub: times the model instead of single layers
    pub(crate) model: Option<PathBuf>,
    /// Fewer shapes and rounds: an impression in less than a minute
    #[arg(long)]
    pub(crate) quick: bool,
    /// The best round instead of the median: for a machine that has other work
    #[arg(long)]
    pub(crate) best: bool,
    /// Draws the layer's speed-ups: as PNG if the name ends in .png, or else as SVG
    #[arg(long, value_name = "FILE", conflicts_with = "model")]
    pub(crate) plot: Option<PathBuf>,
    /// Tokens of the prompt (with MODEL)
    #[arg(long, value_name = "N", default_value_t = 512)]
    pub(crate) prompt_tokens: usize,
    /// Tokens to generate (with MODEL)
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub(crate) new_tokens: usize,
    /// In what both keep keys and values (with MODEL); auto: the type of the checkpoint
    #[arg(long, value_name = "TYPE", default_value = "auto")]
    pub(crate) kv_cache: KvCache,
    /// The int8 model's output head in int8, too (with MODEL)
    #[arg(long)]
    pub(crate) int8_head: bool,
}

/// `int8 verify`
#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    /// Random cases besides the corpus
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub(crate) cases: u64,
    /// Fail if this backend is not there
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
