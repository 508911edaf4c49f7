//! Converting whole checkpoints on disk: 16/32-bit to bitsandbytes int8 and back, with memory that does not depend on
//! the size of the model.
//!
//! ```no_run
//! use int8_nn::checkpoint::Checkpoint;
//! use int8_nn::quantize::{Options, quantize_checkpoint};
//!
//! let checkpoint = Checkpoint::open("path/to/opt-6.7b")?;
//! let report = quantize_checkpoint(&checkpoint, "path/to/opt-6.7b-int8", &Options::default(), &mut |_| {})?;
//! println!("{} layers, {} → {} bytes", report.int8.len(), report.source_bytes, report.written_bytes);
//! # Ok::<(), int8_nn::Error>(())
//! ```
//!
//! What is written loads with one line of `from_pretrained` (transformers with bitsandbytes) and with this crate. Which
//! tensors become int8 is decided in `select`; the arithmetic is in `rows`; `stream` moves the blocks;
//! [`CheckpointWriter`] makes sure that an interrupted run never looks finished.

mod config;
mod files;
mod outliers;
mod patterns;
mod rows;
mod select;
mod stream;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use int8_core::scheme::PAPER_THRESHOLD;
use int8_cpu::Kernel;
use serde_json::Value;

pub use outliers::outlier_columns;
pub use select::Kept;

use crate::Error;
use crate::checkpoint::{Checkpoint, CheckpointWriter, DType, Existing, OUTLIERS, TensorSpec, WriteOptions};
use outliers::OutlierFile;
use patterns::{Globs, ModuleNames};
use select::{Decision, Wishes};
use stream::{Compare, Exact, Job, Work};

/// How a checkpoint is converted to int8.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Tensors (patterns of names) that become int8 although a rule would leave them alone; they must be matrices.
    pub include: Vec<String>,
    /// Tensors (patterns of names) that stay as they are.
    pub exclude: Vec<String>,
    /// Modules that stay as they are, with the meaning of transformers' `llm_int8_skip_modules`: a list that is given
    /// replaces the default one, the output head.
    pub skip_modules: Option<Vec<String>>,
    /// Convert also what transformers does not load as int8: the experts of a mixture, where they are stored one by one, and
    /// layers of a class of their own (Falcon).
    pub beyond_transformers: bool,
    /// Columns to be kept exactly beside the int8 weights, by the weight's name: what [`outlier_columns`] found.
    pub outlier_columns: BTreeMap<String, Vec<usize>>,
    /// How it is written.
    pub write: WriteSettings,
}

/// How a conversion is written.
#[derive(Debug, Clone)]
pub struct WriteSettings {
    /// Bytes of tensors after which a new shard begins.
    pub max_shard_bytes: u64,
    /// What to do with an earlier checkpoint in the folder.
    pub existing: Existing,
    /// Read everything again when it is written, and compare.
    pub verify: bool,
    /// The CPU kernel; results do not depend on it.
    pub kernel: Kernel,
}

impl Default for WriteSettings {
    fn default() -> Self {
        Self {
            max_shard_bytes: WriteOptions::default().max_shard_bytes,
            existing: Existing::Refuse,
            verify: false,
            kernel: Kernel::best(),
        }
    }
}

/// What a conversion is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Stage {
    /// Reading, computing and writing.
    Convert,
    /// Reading again and comparing.
    Verify,
}

/// How far a conversion is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// What it is doing.
    pub stage: Stage,
    /// Bytes of the source's tensors that are done.
    pub done: u64,
    /// Bytes of all tensors of the source.
    pub total: u64,
}

/// A linear layer that became int8.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Int8Layer {
    /// Its weight's name.
    pub name: String,
    /// Outputs N.
    pub outputs: usize,
    /// Inputs K.
    pub inputs: usize,
    /// It was stored `[in, out]` (Conv1D).
    pub transposed: bool,
    /// Bytes it had.
    pub source_bytes: u64,
    /// Bytes of codes, absmax and layout.
    pub written_bytes: u64,
}

/// A tensor that stayed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptTensor {
    /// Its name.
    pub name: String,
    /// Its type.
    pub dtype: DType,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its bytes.
    pub bytes: u64,
    /// Why.
    pub reason: Kept,
}

/// What a conversion to int8 did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// What became int8, in reading order.
    pub int8: Vec<Int8Layer>,
    /// What stayed, in reading order.
    pub kept: Vec<KeptTensor>,
    /// What was not written, because it is the same memory as an embedding (PyTorch files only).
    pub tied: Vec<String>,
    /// `llm_int8_skip_modules` as written; `None` where transformers' default says the same.
    pub skip_modules: Option<Vec<String>>,
    /// Columns kept exactly beside the int8 weights.
    pub outlier_columns: usize,
    /// Bytes of the file that holds them.
    pub outlier_bytes: u64,
    /// Bytes of all tensors before.
    pub source_bytes: u64,
    /// Bytes of all tensors after, without exact columns.
    pub written_bytes: u64,
    /// Bytes that an interrupted run had left complete.
    pub resumed_bytes: u64,
    /// Number of weight files.
    pub shards: usize,
    /// The other files that were copied.
    pub files: Vec<String>,
    /// All was read again and compared.
    pub verified: bool,
}

/// Converts a 16- or 32-bit checkpoint to bitsandbytes int8 in `out`: safetensors shards, index, `config.json` with
/// `quantization_config`, tokenizer and all other small files.
///
/// # Errors
/// - [`Error::Input`] when the checkpoint is quantised already, a pattern matches nothing, or `out` is its own folder;
/// - [`CheckpointError`](crate::checkpoint::CheckpointError) `Exists`, `DiskSpace`, `Value` (NaN or infinity in a weight), `Io`.
pub fn quantize_checkpoint(
    checkpoint: &Checkpoint,
    out: impl AsRef<Path>,
    options: &Options,
    progress: &mut (dyn FnMut(Progress) + Send),
) -> Result<Report, Error> {
    let out = out.as_ref();
    let source_config = checkpoint.source().read_config()?;
    config::check_unquantized(checkpoint, &source_config)?;
    let names: Vec<&str> = checkpoint.names().collect();
    let wishes = Wishes {
        include: Globs::new("include", &options.include, &names)?,
        exclude: Globs::new("exclude", &options.exclude, &names)?,
        skip_modules: options.skip_modules.as_deref().map(ModuleNames::new).transpose()?,
        beyond_transformers: options.beyond_transformers,
    };
    let selection = select::select(checkpoint, &source_config, &wishes);

    let (mut int8, mut kept, mut tied, mut jobs) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (name, decision) in &selection.decisions {
        let tensor = checkpoint.tensor(name)?;
        let source_bytes = crate::convert::bytes(tensor.byte_len());
        let work = match *decision {
            Decision::Int8 { transposed } => Work::Quantize { transposed },
            // As transformers saves it: what it would widen when it loads F16 is wide in the file.
            Decision::Keep(Kept::KeptIn32Bit) if tensor.dtype() == DType::F16 => Work::Cast(DType::F32),
            Decision::Keep(_) => Work::Copy,
            Decision::LeaveOut => {
                tied.push(name.clone());
                continue;
            }
        };
        let job = Job { tensor, work };
        match *decision {
            Decision::Int8 { transposed } => {
                let (rows, columns) = tensor.matrix_shape()?;
                let (outputs, inputs) = if transposed { (columns, rows) } else { (rows, columns) };
                let written_bytes = total_bytes(&job.outputs());
                let name = name.clone();
                int8.push(Int8Layer { name, outputs, inputs, transposed, source_bytes, written_bytes });
            }
            Decision::Keep(reason) => kept.push(KeptTensor {
                name: name.clone(),
                dtype: tensor.dtype(),
                shape: tensor.shape().to_vec(),
                bytes: source_bytes,
                reason,
            }),
            Decision::LeaveOut => {}
        }
        jobs.push(job);
    }
    let new_config = config::with_int8(source_config, selection.skip_modules.as_deref(), PAPER_THRESHOLD);
    let columns = OutlierFile::new(checkpoint, &options.outlier_columns, &int8)?;
    let written = convert(checkpoint, out, &jobs, &new_config, columns.as_ref(), &options.write, progress)?;
    let (outlier_columns, outlier_bytes) = columns.map_or((0, 0), |file| (file.columns(), file.bytes()));
    Ok(Report {
        outlier_columns,
        outlier_bytes,
        int8,
        kept,
        tied,
        skip_modules: selection.skip_modules,
        source_bytes: checkpoint.total_bytes(),
        written_bytes: written.bytes,
        resumed_bytes: written.resumed,
        shards: written.shards,
        files: written.files,
        verified: options.write.verify,
    })
}

/// What a conversion back to floating point did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DequantizeReport {
    /// Number of int8 layers that are floating-point now.
    pub layers: usize,
    /// The type they have.
    pub dtype: DType,
    /// Bytes of all tensors before.
    pub source_bytes: u64,
    /// Bytes of all tensors after.
    pub written_bytes: u64,
    /// Number of weight files.
    pub shards: usize,
}

/// Converts a bitsandbytes int8 checkpoint back: every floating-point tensor is of type `dtype` afterwards, or of the type
/// that `config.json` names.
///
/// # Errors
/// [`Error::Input`] when there is nothing int8 in it or `dtype` is none of F16, BF16, F32; as [`quantize_checkpoint`].
pub fn dequantize_checkpoint(
    checkpoint: &Checkpoint,
    out: impl AsRef<Path>,
    dtype: Option<DType>,
    settings: &WriteSettings,
    progress: &mut (dyn FnMut(Progress) + Send),
) -> Result<DequantizeReport, Error> {
    let source_config = checkpoint.source().read_config()?;
    let to = dtype.or_else(|| config::dtype(&source_config)).unwrap_or(DType::F16);
    if !matches!(to, DType::F16 | DType::BF16 | DType::F32) {
        return Err(Error::Input(format!("dtype {to}: expected F16, BF16 or F32")));
    }
    let conv1d = select::conv1d_weights(checkpoint, &source_config);
    let (mut jobs, mut layers) = (Vec::new(), 0);
    for tensor in checkpoint.tensors() {
        let name = tensor.name();
        let module = name.strip_suffix(".weight").unwrap_or(name);
        let is_part = [".SCB", ".weight_format"].iter().any(|suffix| {
            let module = name.strip_suffix(suffix);
            module.is_some_and(|module| checkpoint.contains(&format!("{module}.weight")))
        });
        if is_part {
            continue;
        }
        let int8 = if name.ends_with(".weight") { checkpoint.int8_linear(module)? } else { None };
        let work = match int8 {
            Some(int8) => {
                layers += 1;
                let kept = checkpoint.outlier_columns(module, int8.codes.dim())?;
                let exact = match kept {
                    Some(kept) => Some(Exact { values: kept.weights.to_f32()?, columns: kept.columns }),
                    None => None,
                };
                Work::Dequantize { scales: int8.scales, to, transposed: conv1d.contains(name), exact }
            }
            None if tensor.dtype().is_float() && tensor.dtype() != to => Work::Cast(to),
            None => Work::Copy,
        };
        checkpoint.release(name);
        jobs.push(Job { tensor, work });
    }
    if layers == 0 {
        let label = checkpoint.source().label("");
        return Err(Error::Input(format!("{label}: expected bitsandbytes int8 weights, found none")));
    }
    let new_config = config::without_int8(source_config, to);
    let written = convert(checkpoint, out.as_ref(), &jobs, &new_config, None, settings, progress)?;
    Ok(DequantizeReport {
        layers,
        dtype: to,
        source_bytes: checkpoint.total_bytes(),
        written_bytes: written.bytes,
        shards: written.shards,
    })
}

/// What [`convert`] wrote.
struct Written {
    bytes: u64,
    resumed: u64,
    shards: usize,
    files: Vec<String>,
}

/// Does the jobs and finishes the folder.
fn convert(
    checkpoint: &Checkpoint,
    out: &Path,
    jobs: &[Job<'_>],
    new_config: &Value,
    columns: Option<&OutlierFile<'_>>,
    settings: &WriteSettings,
    progress: &mut (dyn FnMut(Progress) + Send),
) -> Result<Written, Error> {
    files::check_folders(checkpoint, out)?;
    let others = files::others(checkpoint.source())?;
    let specs: Vec<TensorSpec> = jobs.iter().flat_map(Job::outputs).collect();
    let bytes = total_bytes(&specs);
    let more = columns.map_or(0, OutlierFile::bytes);
    files::check_space(
        out,
        bytes + more + others.iter().map(|file| file.bytes).sum::<u64>(),
        settings.existing,
    )?;
    let options = WriteOptions {
        max_shard_bytes: settings.max_shard_bytes,
        existing: settings.existing,
        fingerprint: files::fingerprint(checkpoint, new_config)?
            + columns.map_or(String::new(), OutlierFile::fingerprint).as_str(),
    };
    let mut writer = CheckpointWriter::create(out, &specs, &options)?;
    let (_, resumed) = writer.progress();
    let done: BTreeSet<String> =
        specs.iter().filter(|spec| writer.is_written(&spec.name)).map(|spec| spec.name.clone()).collect();
    stream::run(checkpoint, jobs, settings.kernel, Stage::Convert, &done, &mut writer, progress)?;
    for file in &others {
        writer.write_other(&file.name, file.open(checkpoint.source())?)?;
    }
    if let Some(columns) = columns {
        writer.write_other(OUTLIERS, columns.read())?;
    }
    let shards = writer.shards();
    writer.finish(&[("config.json", format!("{new_config:#}\n").as_bytes())])?;
    if settings.verify {
        let written = Checkpoint::open(out)?;
        let mut compare = Compare::new(&written);
        stream::run(
            checkpoint,
            jobs,
            settings.kernel,
            Stage::Verify,
            &BTreeSet::new(),
            &mut compare,
            progress,
        )?;
        compare.finish()?;
    }
    Ok(Written { bytes, resumed, shards, files: others.into_iter().map(|file| file.name).collect() })
}

fn total_bytes(specs: &[TensorSpec]) -> u64 {
    specs.iter().filter_map(TensorSpec::byte_len).map(crate::convert::bytes).sum()
}
