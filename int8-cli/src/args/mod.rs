//! The command line as typed; [`crate::resolve`] turns it into settings.

mod commands;
#[cfg(feature = "serve")]
mod serve;
mod shared;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use int8_core::FloatType;

pub(crate) use commands::{
    BenchArgs, DequantizeArgs, EmbedArgs, EvalArgs, InspectArgs, LogitsArgs, OutliersArgs, PlanArgs,
    QuantizeArgs, Required, RunArgs, Runs, TranscribeArgs, VerifyArgs,
};
#[cfg(feature = "serve")]
pub(crate) use serve::ServeArgs;
pub(crate) use shared::{InputArgs, ModelArgs, PrecisionArgs, Preset, RotaryPrecision, TextArgs, WriteArgs};

use crate::values::{OrAuto, count_or_auto, named};

/// `int8`: the whole command line.
#[derive(Debug, Parser)]
#[command(
    name = "int8",
    version,
    about = "Run, evaluate and inspect transformer checkpoints in 8-bit (LLM.int8())",
    after_help = "Start with `int8 demo`; it needs no files.\n\n\
        MODEL is a folder with config.json, tokenizer.json and model.safetensors or pytorch_model.bin (or their shards), as \
        Hugging Face writes them, 16- or 32-bit, or int8 by bitsandbytes. A folder that is not there is looked up on the \
        Hugging Face hub: facebook/opt-125m, or facebook/opt-125m@REVISION. Downloads are shared with Python; HF_HOME, \
        HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE are honoured.\n\n\
        Exit codes: 0 success; 1 the command failed, the message says why; 2 the command line is wrong."
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
    /// Number of threads [default: one for each core]
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) threads: Option<u16>,
    /// Where to compute: cpu; cuda or cuda:N, an NVIDIA GPU (in a build with the feature `cuda`); several, as cuda:0,cuda:1, whose
    /// memory together holds the model, some of its blocks on each; or auto, the first GPU if there is one that runs the model, and
    /// else the processor
    #[arg(long, global = true, value_name = "DEVICE", default_value = "auto")]
    pub(crate) device: String,
    /// Blocks of the model on each of several GPUs, as 40,30 [default: by their free memory]
    #[arg(long, global = true, value_name = "N,N", value_delimiter = ',')]
    pub(crate) device_map: Option<Vec<usize>>,
    /// Number of GPUs that compute each layer together, each with a part of it (tensor parallelism): the first ones, or those that
    /// --device names; in several processes, as torchrun, mpirun or srun starts them, of all together (docs/parallel.md)
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=8))]
    pub(crate) tensor_parallel: Option<u16>,
    /// Number of blocks whose int8 weights stay in host memory and are copied to the GPU in every forward, for a model that the GPU
    /// does not hold; auto: as many as the GPU's free memory makes necessary
    #[arg(long, global = true, value_name = "N|auto", value_parser = count_or_auto)]
    pub(crate) offload: Option<OrAuto<usize>>,
    /// On a GPU, the type of activations and of weights that are not int8 (sums are 32-bit): 16-bit types are faster, f16 is
    /// finer and bf16 reaches further [default: the type of the checkpoint]
    #[arg(long, global = true, value_name = "TYPE", value_parser = named::<FloatType>())]
    pub(crate) compute: Option<FloatType>,
    /// int8 kernel of the CPU; `int8 verify` lists them [default: the best this processor has]
    #[arg(long, global = true, value_name = "NAME", env = "INT8_KERNEL")]
    pub(crate) kernel: Option<String>,
    /// One JSON object on standard output instead of text, and an error as one on standard error (docs/json.md)
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
    /// LLM.int8() on a 3M-parameter model inside this program: memory, outliers, quality, text
    Demo,
    /// Load a checkpoint, convert it to int8 and continue a text, or answer it (T5)
    #[command(after_help = "Examples:\n  int8 run ./opt-125m -p \"Once upon a time\"\n  \
        int8 run ./opt-125m -p \"Once upon a time\" --greedy --fp      (16/32-bit, for comparison)\n  \
        int8 run ./opt-125m --ids 5,17,42 --greedy --json           (token ids in and out)\n  \
        int8 run ./smollm2 --chat -p \"Why is the sky blue?\"        (a question to a chat model)\n  \
        int8 run ./smollm2                                          (a conversation on the terminal; /help lists commands)\n  \
        int8 run ./smollm2 --batch prompts.jsonl --out answers.jsonl (many prompts at once; the same command resumes)\n  \
        int8 run ./opt-6.7b -p \"Once upon a time\" --device cuda:1  (the second GPU; --device cpu for none)\n  \
        int8 run ./flan-t5-small -p \"translate English to German: How old are you?\"")]
    Run(RunArgs),
    /// Answer many users at once, with OpenAI's API: chat, completions, embeddings, and a page to chat at /
    #[cfg(feature = "serve")]
    #[command(
        after_help = "A request's answer does not depend on the others that run with it: without --granularity, outliers are single \
        values. docs/serve.md has the fields of the API.\n\n\
        Examples:\n  int8 serve ./smollm2                                (http://127.0.0.1:8080)\n  \
        int8 serve ./smollm2 --host 0.0.0.0 --api-key SECRET\n  \
        int8 serve ./all-MiniLM-L6-v2                       (embeddings)"
    )]
    Serve(ServeArgs),
    /// Perplexity of a text
    #[command(
        after_help = "The text is cut into windows that do not overlap; the first token of each is not scored.\n\n\
        Examples:\n  int8 eval ./opt-125m --text wiki.txt --window 1024\n  \
        int8 eval ./opt-125m --text wiki.txt --scheme absmax-vector-wise\n  \
        int8 eval ./opt-125m --text wiki.txt --preset best\n  \
        int8 eval ./opt-125m --text wiki.txt --kv-cache f16         (the cost of a 16-bit KV cache)\n  \
        int8 eval ./opt-125m --text wiki.txt --compare --windows 16 --report quality.html --plots ./plots\n  \
        int8 eval ./opt-125m --last-words lambada.jsonl"
    )]
    Eval(EvalArgs),
    /// Sentence embeddings: texts become vectors, and their cosines say how alike they are
    #[command(
        after_help = "For encoders (MiniLM, E5, ModernBERT, Nomic, DeBERTa, …). Pooling, normalisation and length come from \
        sentence-transformers' files beside the model, if there are any.\n\n\
        Examples:\n  int8 embed ./all-MiniLM-L6-v2 --text \"A man is eating food.\" --text \"A man is eating bread.\"\n  \
        int8 embed ./all-MiniLM-L6-v2 --file lines.txt --out vectors.npy\n  \
        int8 embed ./all-MiniLM-L6-v2 --compare --file pairs.tsv    (how far int8 is from floating point)"
    )]
    Embed(EmbedArgs),
    /// Write down speech: a recording becomes text (Whisper)
    #[command(
        after_help = "FILE is a WAV file: PCM of 8 to 32 bits or floating point, any number of channels (they are averaged) and any \
        sampling rate (converted to the model's 16 kHz). A recording longer than 30 seconds is cut into windows of 30 seconds, each \
        written down for itself, without time stamps: a word at a cut may be lost.\n\n\
        Other formats: ffmpeg -i talk.mp3 -ar 16000 -ac 1 talk.wav\n\n\
        Examples:\n  int8 transcribe ./whisper-tiny.en talk.wav\n  \
        int8 transcribe ./whisper-small talk.wav --language de\n  \
        int8 transcribe ./whisper-small talk.wav --task translate   (to English)\n  \
        int8 transcribe ./whisper-tiny.en talk.wav --fp --json      (16/32-bit, for comparison)"
    )]
    Transcribe(TranscribeArgs),
    /// Which features of a model are outliers, where, and how the model performs without them (section 4 of the paper)
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
    /// Contents of a checkpoint: tensors, types, sizes, quantisation
    Inspect(InspectArgs),
    /// How much memory a model takes in fp32, fp16 and int8, and which GPUs hold it
    #[command(
        after_help = "Nothing is loaded: a folder's headers are read, of a model of the hub only its configuration and headers \
        are downloaded, and the paper's models are known by name. Linear layers become int8; embeddings, output head and \
        norms stay in 16 bits, and so do the keys and values of past tokens (the KV cache; --kv-cache), which grow with \
        context and batch.\n\n\
        Examples:\n  int8 plan                                   the paper's table: which models fit on which machine\n  \
        int8 plan BLOOM-176B                        704 GB, 352 GB, 180 GB, and the GPUs that takes\n  \
        int8 plan ./opt-6.7b --context 2048 --batch 8\n  \
        int8 plan org/name --gpus 2 --gpu-memory 24GB"
    )]
    Plan(PlanArgs),
    /// Convert a checkpoint on disk to bitsandbytes int8, whatever its size
    #[command(
        after_help = "Reads tensor by tensor, so that memory stays bounded; the result loads here and with one line of \
        from_pretrained (transformers with bitsandbytes). An interrupted run leaves a folder that does not load, and \
        --resume completes it.\n\n\
        Works for every Hugging Face model: linear weights become int8; embeddings, norms, heads, convolutions, routers and \
        experts stay as they are, and the report gives the reason.\n\n\
        Examples:\n  int8 quantize ./opt-6.7b ./opt-6.7b-int8\n  \
        int8 quantize ./opt-6.7b ./opt-6.7b-int8 --resume          (after an interruption)\n  \
        int8 quantize ./vit ./vit-int8 --exclude '*.pooler.*' --verify\n  \
        int8 quantize ./opt-6.7b ./opt-6.7b-int8 --keep-outliers wiki.txt"
    )]
    Quantize(QuantizeArgs),
    /// Convert a bitsandbytes int8 checkpoint back to 16 or 32 bit
    #[command(after_help = "Examples:\n  int8 dequantize ./opt-6.7b-int8 ./opt-6.7b-f16 --dtype f16")]
    Dequantize(DequantizeArgs),
    /// Download a model of the Hugging Face hub and print its folder
    #[command(
        after_help = "Downloads resume where they stopped, files are checked by their checksums, and Python finds them, too. The other \
        commands download by themselves what they need.\n\n\
        Examples:\n  int8 pull HuggingFaceTB/SmolLM2-135M-Instruct\n  int8 pull facebook/opt-125m@main"
    )]
    Pull {
        /// The model, org/name or org/name@revision
        model: PathBuf,
        /// Branch, tag or commit [default: main]
        #[arg(long, value_name = "NAME")]
        revision: Option<String>,
    },
    /// The downloaded models and their sizes
    List,
    /// Remove downloaded models
    #[command(after_help = "The cache is Python's, too: what is removed here is gone there.")]
    Rm {
        /// Models, org/name
        #[arg(required = true, value_name = "MODEL")]
        models: Vec<String>,
    },
    /// Every kernel of this machine against the reference mathematics
    Verify(VerifyArgs),
    /// Speed of int8 on this machine: the layer against the same in 16 and 32 bit, or a whole model against itself in 16 bit
    #[command(
        after_help = "Contestants take turns in one run, so that ratios hold on a machine whose speed changes; shares are of the peak \
        measured in the same run. Close other programs first.\n\n\
        Examples:\n  int8 bench --quick\n  int8 bench --plot bench.svg            (some ten minutes)\n  \
        int8 bench ./opt-125m                  (tokens per second, int8 and as stored)\n  \
        int8 bench --shape opt-6.7b --batch 1,32 (the same with random weights: no checkpoint is needed)\n  \
        int8 bench --threads 1 --json > bench.json"
    )]
    Bench(BenchArgs),
    /// A page of the manual, for `man -l -`: of the program, or of one command
    Man {
        /// The command
        command: Option<String>,
    },
    /// Completions for a shell, to be sourced
    #[command(after_help = "Examples:\n  source <(int8 completions bash)\n  \
        int8 completions zsh > ~/.zfunc/_int8          (a folder of $fpath)\n  \
        int8 completions fish > ~/.config/fish/completions/int8.fish")]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

impl Command {
    /// Whether it computes on the device that `--device` names.
    pub(crate) fn uses_device(&self) -> bool {
        match self {
            Self::Quantize(arguments) => arguments.keep_outliers.is_some(),
            Self::Inspect(_)
            | Self::Plan(_)
            | Self::Pull { .. }
            | Self::List
            | Self::Rm { .. }
            | Self::Man { .. }
            | Self::Dequantize(_)
            | Self::Verify(_)
            | Self::Completions { .. } => false,
            _ => true,
        }
    }
}
