//! Conversion of checkpoints on disk: 16/32-bit to bitsandbytes int8 and back, in memory that does not depend on the model's
//! size.
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
//! The result loads in transformers with bitsandbytes (`from_pretrained`) and in this crate. `select` decides which tensors
//! become int8, `rows` has the arithmetic, `stream` moves the blocks, and [`CheckpointWriter`] ensures that an interrupted run
//! never looks finished.

mod classes;
mod config;
mod files;
mod outliers;
mod patterns;
mod report;
mod rows;
mod select;
mod stream;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use int8_core::scheme::PAPER_THRESHOLD;
use int8_cpu::Kernel;
use serde_json::Value;

pub use outliers::outlier_columns;
pub use report::{DequantizeReport, Int8Layer, KeptTensor, Progress, Report, Stage};
pub use select::Kept;

use crate::Error;
use crate::checkpoint::{Checkpoint, CheckpointWriter, DType, Existing, OUTLIERS, TensorSpec, WriteOptions};
use outliers::OutlierFile;
use patterns::{Globs, ModuleNames};
use report::total_bytes;
use select::{Decision, Overrides};
use stream::{Compare, Exact, Job, Work};

/// How a checkpoint is converted to int8.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Matrices (patterns of names) that become int8 against the rules.
    pub include: Vec<String>,
    /// Tensors (patterns of names) that stay as stored.
    pub exclude: Vec<String>,
    /// Modules that stay as stored: transformers' `llm_int8_skip_modules`, which replaces its default, the output head.
    pub skip_modules: Option<Vec<String>>,
    /// Converts also layers that transformers does not load as int8: experts stored one by one, and subclasses of `nn.Linear`
    /// (Falcon).
    pub beyond_transformers: bool,
    /// Columns kept exactly beside the int8 weights, by the weight's name, as [`outlier_columns`] finds them.
    pub outlier_columns: BTreeMap<String, Vec<usize>>,
    /// How the result is written.
    pub write: WriteSettings,
}

/// How a conversion is written.
#[derive(Debug, Clone)]
pub struct WriteSettings {
    /// Bytes of tensors after which a new shard begins.
    pub max_shard_bytes: u64,
    /// What to do with an earlier checkpoint in the folder.
    pub existing: Existing,
    /// Read the result again and compare.
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

/// Converts a 16- or 32-bit checkpoint to bitsandbytes int8 in `out`: safetensors shards, index, `config.json` with
/// `quantization_config`, and copies of all other small files.
///
/// # Errors
/// - [`Error::Input`] when the checkpoint is quantised already or of a type that transformers does not load as int8, a pattern matches nothing, or `out` is its own folder;
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
    if !options.beyond_transformers {
        config::check_loadable(checkpoint, &source_config)?;
    }
    let names: Vec<&str> = checkpoint.names().collect();
    let overrides = Overrides {
        include: Globs::new("include", &options.include, &names)?,
        exclude: Globs::new("exclude", &options.exclude, &names)?,
        skip_modules: options.skip_modules.as_deref().map(ModuleNames::new).transpose()?,
        beyond_transformers: options.beyond_transformers,
    };
    let selection = select::select(checkpoint, &source_config, &overrides);

    let (mut int8, mut kept, mut tied, mut jobs) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (name, decision) in &selection.decisions {
        let tensor = checkpoint.tensor(name)?;
        let source_bytes = crate::convert::bytes(tensor.byte_len());
        let work = match *decision {
            Decision::Int8 { transposed } => Work::Quantize { transposed },
            // As transformers saves it: what it widens on loading F16 is stored wide.
            Decision::Keep(Kept::KeptIn32Bit) if tensor.dtype() == DType::F16 => Work::Cast(DType::F32),
            Decision::Keep(_) => Work::Copy,
            Decision::Omit => {
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
            Decision::Omit => {}
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
        class: selection.class,
        source_bytes: checkpoint.total_bytes(),
        written_bytes: written.bytes,
        resumed_bytes: written.resumed,
        shards: written.shards,
        files: written.files,
        verified: options.write.verify,
    })
}

/// Converts a bitsandbytes int8 checkpoint back. Every floating-point tensor becomes `dtype`, by default the type that
/// `config.json` names, or else F16.
///
/// # Errors
/// [`Error::Input`] when nothing is int8 or `dtype` is none of F16, BF16, F32; as [`quantize_checkpoint`].
pub fn dequantize_checkpoint(
    checkpoint: &Checkpoint,
    out: impl AsRef<Path>,
    dtype: Option<DType>,
    settings: &WriteSettings,
    progress: &mut (dyn FnMut(Progress) + Send),
) -> Result<DequantizeReport, Error> {
    let source_config = checkpoint.source().read_config()?;
    let to = dtype.or_else(|| config::dtype(&source_config)).unwrap_or(DType::F16);
    if to.float_type().is_none() {
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

/// Runs the jobs and completes the folder.
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
