//! The conversion itself: tensor after tensor, block of rows after block of rows, computed on all threads while one more
//! writes. What is in memory at a time is a few blocks, whatever the size of the model.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::thread;

use int8_cpu::Kernel;
use rayon::prelude::*;

use super::rows::{self, NotFinite};
use super::{Progress, Stage};
use crate::Error;
use crate::checkpoint::{
    Checkpoint, CheckpointError, CheckpointWriter, DType, FloatRows, TensorSpec, TensorView,
};

/// Bytes of source that make one block: enough to occupy all threads for some milliseconds, so that handing it over costs
/// nothing, and few enough for the handful in flight to be small beside any model.
const BLOCK_BYTES: usize = 16 << 20;

/// Blocks computed and not yet written.
const QUEUE: usize = 3;

/// Bytes of source that one task works on: with what it becomes, they fit a core's second-level cache.
const TASK_BYTES: usize = 128 << 10;

/// What becomes of one tensor.
#[derive(Debug)]
pub(super) enum Work {
    /// Written as it is.
    Copy,
    /// Written in another floating-point type.
    Cast(DType),
    /// Written as codes `[out, in]`, absmax `[out]` and the layout's number.
    Quantize {
        /// It is stored `[in, out]`.
        transposed: bool,
    },
    /// Codes back to floating point.
    Dequantize {
        /// Absmax of each row of codes.
        scales: Vec<f32>,
        to: DType,
        /// It is to be stored `[in, out]`.
        transposed: bool,
        /// Columns that are known exactly.
        exact: Option<Exact>,
    },
}

/// Columns of a weight, exactly.
#[derive(Debug)]
pub(super) struct Exact {
    pub(super) columns: Vec<usize>,
    /// `[columns, outputs]`.
    pub(super) values: Vec<f32>,
}

/// One tensor of the source and its work.
#[derive(Debug)]
pub(super) struct Job<'a> {
    pub(super) tensor: TensorView<'a>,
    pub(super) work: Work,
}

impl Job<'_> {
    /// The tensors it writes.
    pub(super) fn outputs(&self) -> Vec<TensorSpec> {
        let (name, shape) = (self.tensor.name(), self.tensor.shape());
        let reversed = || shape.iter().rev().copied().collect();
        let spec = |name: &str, dtype, shape| TensorSpec { name: name.to_owned(), dtype, shape };
        match self.work {
            Work::Copy => vec![spec(name, self.tensor.dtype(), shape.to_vec())],
            Work::Cast(dtype) => vec![spec(name, dtype, shape.to_vec())],
            Work::Dequantize { to, transposed, .. } => {
                vec![spec(name, to, if transposed { reversed() } else { shape.to_vec() })]
            }
            Work::Quantize { transposed } => {
                let shape: Vec<usize> = if transposed { reversed() } else { shape.to_vec() };
                let rows = shape.first().copied().unwrap_or_default();
                let [scales, format] = beside(name);
                vec![
                    spec(name, DType::I8, shape),
                    spec(&scales, DType::F32, vec![rows]),
                    spec(&format, DType::U8, Vec::new()),
                ]
            }
        }
    }
}

/// The names of absmax and layout beside a weight.
fn beside(weight: &str) -> [String; 2] {
    let module = weight.strip_suffix(".weight").unwrap_or(weight);
    [format!("{module}.SCB"), format!("{module}.weight_format")]
}

/// Where the results go, piece by piece and in order for each tensor.
pub(super) trait Sink: Send {
    fn put(&mut self, name: &str, bytes: &[u8]) -> Result<(), Error>;
}

impl Sink for CheckpointWriter {
    fn put(&mut self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        Ok(self.write(name, bytes)?)
    }
}

/// Compares with what has been written.
pub(super) struct Compare<'a> {
    checkpoint: &'a Checkpoint,
    /// Bytes compared of each tensor begun.
    compared: BTreeMap<String, usize>,
}

impl<'a> Compare<'a> {
    pub(super) fn new(checkpoint: &'a Checkpoint) -> Self {
        Self { checkpoint, compared: BTreeMap::new() }
    }

    /// # Errors
    /// When a tensor was compared in part only, or not at all.
    pub(super) fn finish(self) -> Result<(), Error> {
        for tensor in self.checkpoint.tensors() {
            let compared = self.compared.get(tensor.name()).copied().unwrap_or_default();
            if compared != tensor.byte_len() {
                return Err(differs(&tensor, compared));
            }
        }
        Ok(())
    }
}

impl Sink for Compare<'_> {
    fn put(&mut self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        let tensor = self.checkpoint.tensor(name)?;
        let begin = self.compared.entry(name.to_owned()).or_default();
        let written = tensor.bytes();
        let written = written.get(*begin..).unwrap_or_default();
        if written.get(..bytes.len()) != Some(bytes) {
            let same =
                written.iter().zip(bytes).take_while(|(written, expected)| written == expected).count();
            return Err(differs(&tensor, *begin + same));
        }
        self.checkpoint.release_part(name, *begin..*begin + bytes.len());
        *begin += bytes.len();
        Ok(())
    }
}

fn differs(tensor: &TensorView<'_>, at: usize) -> Error {
    CheckpointError::Value {
        file: tensor.file().to_owned(),
        tensor: tensor.name().to_owned(),
        expected: "the bytes that were written",
        found: format!("others from byte {at} on"),
        help: "The disk or the memory of this machine is faulty; check both, and convert again with --force",
    }
    .into()
}

/// A result on its way to the sink.
struct Piece {
    name: String,
    bytes: Vec<u8>,
    /// Bytes of source that are done with it.
    source: usize,
}

/// Does all jobs but those whose tensors are all in `done`.
pub(super) fn run(
    checkpoint: &Checkpoint,
    jobs: &[Job<'_>],
    kernel: Kernel,
    stage: Stage,
    done: &BTreeSet<String>,
    sink: &mut dyn Sink,
    progress: &mut (dyn FnMut(Progress) + Send),
) -> Result<(), Error> {
    let is_done = |job: &Job<'_>| job.outputs().iter().all(|output| done.contains(&output.name));
    let total = jobs.iter().map(|job| crate::convert::bytes(job.tensor.byte_len())).sum();
    let skipped = jobs.iter().filter(|job| is_done(job));
    let mut finished = skipped.map(|job| crate::convert::bytes(job.tensor.byte_len())).sum();
    thread::scope(|scope| {
        let (sender, pieces) = mpsc::sync_channel::<Piece>(QUEUE);
        let (give_back, used) = mpsc::channel();
        let writer = scope.spawn(move || -> Result<(), Error> {
            progress(Progress { stage, done: finished, total });
            for Piece { name, bytes, source } in pieces {
                sink.put(&name, &bytes)?;
                finished += crate::convert::bytes(source);
                progress(Progress { stage, done: finished, total });
                // Only blocks: every small buffer that went around would come back as a large one. The producer may have
                // ended.
                if source > 0 {
                    let _ = give_back.send(bytes);
                }
            }
            Ok(())
        });
        let mut producer = Producer { checkpoint, kernel, sender, used };
        let produced = jobs.iter().filter(|job| !is_done(job)).try_for_each(|job| producer.job(job));
        drop(producer);
        let written = match writer.join() {
            Ok(written) => written,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        // What the writer says comes first: that it hung up is all the producer knows.
        written.and(match produced {
            Err(Stop::Error(error)) => Err(error),
            Ok(()) | Err(Stop::HungUp) => Ok(()),
        })
    })
}

/// Why no more is produced.
enum Stop {
    Error(Error),
    /// The writer has failed, and says why itself.
    HungUp,
}

impl<E: Into<Error>> From<E> for Stop {
    fn from(error: E) -> Self {
        Self::Error(error.into())
    }
}

struct Producer<'a> {
    checkpoint: &'a Checkpoint,
    kernel: Kernel,
    sender: SyncSender<Piece>,
    /// Buffers that have been written: memory that is mapped and warm.
    used: Receiver<Vec<u8>>,
}

impl Producer<'_> {
    fn buffer(&self, length: usize) -> Vec<u8> {
        let mut buffer = self.used.try_recv().unwrap_or_default();
        buffer.resize(length, 0);
        buffer
    }

    fn send(&self, name: &str, bytes: Vec<u8>, source: usize) -> Result<(), Stop> {
        self.sender.send(Piece { name: name.to_owned(), bytes, source }).map_err(|_| Stop::HungUp)
    }

    fn job(&mut self, job: &Job<'_>) -> Result<(), Stop> {
        // What lies in another order in its file is brought into this one, once; quantisation reads rows in any order.
        let bytes = match job.work {
            Work::Quantize { .. } => Cow::default(),
            _ => job.tensor.bytes(),
        };
        let tensor = &job.tensor.with_bytes(&bytes);
        match &job.work {
            Work::Copy => self.copy(tensor)?,
            Work::Cast(to) => self.cast(tensor, *to)?,
            Work::Quantize { transposed } => self.quantize(&job.tensor, *transposed)?,
            Work::Dequantize { scales, to, transposed, exact } => {
                self.dequantize(tensor, scales, *to, *transposed, exact.as_ref())?;
            }
        }
        self.checkpoint.release(tensor.name());
        Ok(())
    }

    fn copy(&self, tensor: &TensorView<'_>) -> Result<(), Stop> {
        let mut begin = 0;
        for block in tensor.bytes().chunks(BLOCK_BYTES) {
            let mut buffer = self.buffer(block.len());
            buffer.par_chunks_mut(TASK_BYTES).zip(block.par_chunks(TASK_BYTES)).for_each(|(to, from)| {
                to.copy_from_slice(from);
            });
            self.checkpoint.release_part(tensor.name(), begin..begin + block.len());
            begin += block.len();
            self.send(tensor.name(), buffer, block.len())?;
        }
        Ok(())
    }

    fn cast(&self, tensor: &TensorView<'_>, to: DType) -> Result<(), Stop> {
        let (from, size) = (tensor.dtype().bits() / 8, to.bits() / 8);
        for block in blocks(tensor.len(), from, BLOCK_BYTES) {
            let mut buffer = self.buffer(block.len() * size);
            let task = TASK_BYTES / from;
            buffer.par_chunks_mut(task * size).enumerate().try_for_each(|(index, out)| {
                let begin = block.start + index * task;
                let mut values = vec![0.0; out.len() / size];
                tensor.read_elements(begin..begin + values.len(), &mut values)?;
                rows::store(&values, to, out).map_err(|(at, value)| too_large(tensor, begin + at, value, to))
            })?;
            let source = block.len() * from;
            self.checkpoint.release_part(tensor.name(), block.start * from..block.end * from);
            self.send(tensor.name(), buffer, source)?;
        }
        Ok(())
    }

    fn quantize(&self, tensor: &TensorView<'_>, transposed: bool) -> Result<(), Stop> {
        let weight = FloatRows::new(tensor, transposed)?;
        let (outputs, inner) = weight.dim();
        let row_bytes = inner * tensor.dtype().bits() / 8;
        let mut scales = vec![0.0; outputs];
        let kernel = self.kernel;
        for block in blocks(outputs, row_bytes, BLOCK_BYTES) {
            let mut codes = self.buffer(block.len() * inner);
            let scales = &mut scales[block.clone()];
            let task = (TASK_BYTES / row_bytes.max(1)).clamp(1, block.len());
            // Columns of the source lie in cache lines of 64 bytes: fewer than that many would be read over and over.
            let task = if transposed { task.max(64).min(block.len()) } else { task };
            bytemuck::cast_slice_mut::<u8, i8>(&mut codes)
                .par_chunks_mut((task * inner).max(1))
                .zip(scales.par_chunks_mut(task))
                .enumerate()
                .try_for_each(|(index, (codes, scales))| {
                    let first = block.start + index * task;
                    rows::quantize(kernel, &weight, first..first + scales.len(), codes, scales)
                })
                .map_err(|NotFinite { row, column }| not_finite(tensor, row, column, transposed))?;
            let source = block.len() * row_bytes;
            if !transposed && tensor.is_row_major() {
                self.checkpoint.release_part(tensor.name(), block.start * row_bytes..block.end * row_bytes);
            }
            self.send(tensor.name(), codes, source)?;
        }
        let [scales_name, format_name] = beside(tensor.name());
        self.send(&scales_name, scales.iter().flat_map(|scale| scale.to_le_bytes()).collect(), 0)?;
        self.send(&format_name, vec![ROW_MAJOR], 0)
    }

    fn dequantize(
        &self,
        tensor: &TensorView<'_>,
        scales: &[f32],
        to: DType,
        transposed: bool,
        exact: Option<&Exact>,
    ) -> Result<(), Stop> {
        let (height, width) = tensor.matrix_shape()?;
        let (lines, length) = if transposed { (width, height) } else { (height, width) };
        let codes = tensor.as_i8()?;
        let line_bytes = length * to.bits() / 8;
        for block in blocks(lines, line_bytes, BLOCK_BYTES) {
            let mut buffer = self.buffer(block.len() * line_bytes);
            let task = (TASK_BYTES / line_bytes.max(1)).max(if transposed { 64 } else { 1 });
            buffer.par_chunks_mut((task * line_bytes).max(1)).enumerate().try_for_each(|(index, out)| {
                let first = block.start + index * task;
                let lines = first..first + out.len() / line_bytes.max(1);
                let mut values = rows::dequantize(codes, (height, width), scales, lines.clone(), transposed);
                if let Some(exact) = exact {
                    let exact_values = exact.values.chunks_exact(height.max(1));
                    for (column, exact) in exact.columns.iter().zip(exact_values) {
                        match (transposed, column.checked_sub(lines.start)) {
                            (false, _) => {
                                let line = |(row, value)| (row * width + column, value);
                                let rows = exact[lines.clone()].iter().enumerate().map(line);
                                rows.for_each(|(place, value)| values[place] = *value);
                            }
                            (true, Some(line)) if line < lines.len() => {
                                values[line * height..][..height].copy_from_slice(exact);
                            }
                            _ => {}
                        }
                    }
                }
                rows::store(&values, to, out)
                    .map_err(|(at, value)| too_large(tensor, first * length + at, value, to))
            })?;
            if !transposed {
                self.checkpoint.release_part(tensor.name(), block.start * width..block.end * width);
            }
            self.send(tensor.name(), buffer, block.len() * length)?;
        }
        Ok(())
    }
}

/// `weight_format` of row-major codes.
const ROW_MAJOR: u8 = 0;

/// `count` things of `size` bytes each, cut into runs of at most `limit` bytes but at least one thing.
fn blocks(count: usize, size: usize, limit: usize) -> impl Iterator<Item = Range<usize>> {
    let step = (limit / size.max(1)).max(1);
    (0..count).step_by(step).map(move |begin| begin..count.min(begin + step))
}

fn not_finite(tensor: &TensorView<'_>, row: usize, column: usize, transposed: bool) -> Error {
    let (row, column) = if transposed { (column, row) } else { (row, column) };
    CheckpointError::Value {
        file: tensor.file().to_owned(),
        tensor: tensor.name().to_owned(),
        expected: "finite weights",
        found: format!("NaN or infinity at row {row}, column {column}"),
        help: "The checkpoint is damaged or its training diverged; get it again, or leave this tensor alone with --exclude",
    }
    .into()
}

fn too_large(tensor: &TensorView<'_>, at: usize, value: f32, to: DType) -> Error {
    CheckpointError::Value {
        file: tensor.file().to_owned(),
        tensor: tensor.name().to_owned(),
        expected: match to {
            DType::F16 => "values up to 65504, the largest of F16",
            _ => "values in the range of the type asked for",
        },
        found: format!("{value:e} at element {at}"),
        help: "Use --dtype bf16 or --dtype f32",
    }
    .into()
}
