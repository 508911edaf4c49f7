//! The CPU backend: int8 layers from `int8-cpu`, everything else in f32 on rayon's threads.

mod attention;
mod elementwise;
mod experts;
mod float;
mod linear;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use ndarray::{ArrayView2, ArrayViewMut2};

use crate::Error;
use crate::backend::{
    AttentionSpec, Backend, Experts, Input, LinearStatistics, NormSpec, Output, Precision, RowSelection,
    Segment,
};
use crate::convert;
use crate::weights::{FloatMatrix, LinearSource};

/// The kernels of this machine, their check against the reference, and their timing.
pub use int8_cpu::{Kernel, bench, verify};

pub use attention::CpuCache;
pub use float::SharedMatrix;
pub use linear::CpuLinear;

/// Runs models on this machine's processor. Results do not depend on the number of threads.
#[derive(Debug)]
pub struct CpuBackend {
    kernel: Kernel,
    /// Input rows after their normalisation or activation, reused from call to call.
    scratch: Mutex<Vec<f32>>,
    observer: Mutex<Option<Arc<dyn Observer>>>,
    /// Whether there is an observer: each projection asks.
    observed: AtomicBool,
}

/// Sees the input of every projection before it is computed, and may change it: what the analysis of a model is built on.
pub trait Observer: Send + Sync + std::fmt::Debug {
    /// `input [rows, K]`, after its normalisation or activation; `linear` can be told by its name.
    fn input(&self, linear: &CpuLinear, input: ArrayViewMut2<'_, f32>);
}

/// Activations `f32 [rows, width]`.
#[derive(Debug, Default)]
pub struct CpuActivations {
    data: Vec<f32>,
    rows: usize,
    width: usize,
}

/// The tokens of a step: row by row their id and position, and the segments they come from.
#[derive(Debug, Default)]
pub struct CpuStep {
    ids: Vec<u32>,
    positions: Vec<usize>,
    segments: Vec<StepSegment>,
}

#[derive(Debug, Clone, Copy)]
struct StepSegment {
    sequence: usize,
    first_row: usize,
    rows: usize,
    position: usize,
}

impl CpuBackend {
    /// With the kernel that the environment variable `INT8_KERNEL` names, or the best this processor has.
    ///
    /// # Errors
    /// When the variable names no kernel that runs here.
    pub fn new() -> Result<Self, Error> {
        Ok(Self::with_kernel(Kernel::select()?))
    }

    /// With this kernel.
    pub fn with_kernel(kernel: Kernel) -> Self {
        Self {
            kernel,
            scratch: Mutex::default(),
            observer: Mutex::default(),
            observed: AtomicBool::new(false),
        }
    }

    /// From now on `observer` sees the input of every projection; `None` ends that.
    pub fn observe(&self, observer: Option<Arc<dyn Observer>>) {
        let mut current = self.observer.lock().expect("no panic holds this lock");
        self.observed.store(observer.is_some(), Ordering::Release);
        *current = observer;
    }

    /// Computes the rows that a projection takes as its input, and shows them to the observer.
    fn with_rows<R>(
        &self,
        input: Input<'_, Self>,
        linear: Option<&CpuLinear>,
        body: impl FnOnce(ArrayView2<'_, f32>) -> R,
    ) -> R {
        let mut scratch = std::mem::take(&mut *self.scratch.lock().expect("no panic holds this lock"));
        let x = match input {
            Input::Plain(x) => x.view(),
            Input::Normed(x, norm) => {
                scratch.clear();
                scratch.extend_from_slice(&x.data);
                let mut rows =
                    ArrayViewMut2::from_shape((x.rows, x.width), &mut scratch[..]).expect("a copy of x");
                elementwise::normalize(self.kernel, rows.view_mut(), norm);
                view(&scratch, x.rows, x.width)
            }
            Input::Activated(x, activation) => {
                scratch.resize(x.data.len(), 0.0);
                elementwise::activate(self.kernel, x.view(), activation, &mut scratch);
                view(&scratch, x.rows, x.width)
            }
            Input::Gated(x, activation) => {
                let width = x.width / 2;
                scratch.resize(x.rows * width, 0.0);
                elementwise::gate(self.kernel, x.view(), activation, &mut scratch);
                view(&scratch, x.rows, width)
            }
        };
        let observer = if self.observed.load(Ordering::Acquire) {
            self.observer.lock().expect("no panic holds this lock").clone()
        } else {
            None
        };
        let done = match (observer, linear) {
            (Some(observer), Some(linear)) => {
                let mut x = x.to_owned();
                observer.input(linear, x.view_mut());
                body(x.view())
            }
            _ => body(x),
        };
        *self.scratch.lock().expect("no panic holds this lock") = scratch;
        done
    }

    /// The kernel of the int8 layers.
    pub fn kernel(&self) -> Kernel {
        self.kernel
    }
}

impl CpuActivations {
    /// All rows.
    fn view(&self) -> ArrayView2<'_, f32> {
        view(&self.data, self.rows, self.width)
    }

    /// Takes `rows` rows. What they hold is not defined: the caller overwrites them.
    fn resize(&mut self, rows: usize) -> ArrayViewMut2<'_, f32> {
        self.rows = rows;
        self.data.resize(rows * self.width, 0.0);
        self.view_mut()
    }

    fn view_mut(&mut self) -> ArrayViewMut2<'_, f32> {
        ArrayViewMut2::from_shape((self.rows, self.width), &mut self.data).expect("sized by resize")
    }
}

fn view(data: &[f32], rows: usize, width: usize) -> ArrayView2<'_, f32> {
    ArrayView2::from_shape((rows, width), data).expect("rows and width were set together with the data")
}

impl Backend for CpuBackend {
    type Activations = CpuActivations;
    type Linear = CpuLinear;
    type Norm = NormSpec;
    type Embedding = SharedMatrix;
    type Cache = CpuCache;
    type Step = CpuStep;

    fn describe(&self) -> String {
        format!("CPU, int8 kernel {}, {} threads", self.kernel.name(), rayon::current_num_threads())
    }

    fn linear(&self, source: &LinearSource, precision: &Precision) -> Result<CpuLinear, Error> {
        CpuLinear::load(self.kernel, source, precision)
    }

    fn tied(&self, embedding: &SharedMatrix) -> Result<CpuLinear, Error> {
        Ok(CpuLinear::from_matrix(self.kernel, "tied head", embedding.clone()))
    }

    fn norm(&self, spec: &NormSpec) -> Result<NormSpec, Error> {
        Ok(spec.clone())
    }

    fn embedding(&self, table: FloatMatrix) -> Result<SharedMatrix, Error> {
        Ok(SharedMatrix::new(table))
    }

    fn activations(&self, max_rows: usize, width: usize) -> Result<CpuActivations, Error> {
        let mut data = Vec::new();
        data.try_reserve_exact(max_rows.saturating_mul(width)).map_err(|_| {
            Error::Input(format!("not enough memory for activations of {max_rows} tokens × {width} f32"))
        })?;
        Ok(CpuActivations { data, rows: 0, width })
    }

    fn cache(&self, spec: &AttentionSpec, sequences: usize, max_positions: usize) -> Result<CpuCache, Error> {
        CpuCache::new(self.kernel, spec, sequences, max_positions)
    }

    fn cache_bytes(&self, cache: &CpuCache) -> usize {
        cache.bytes()
    }

    fn step(&self, _max_rows: usize) -> Result<CpuStep, Error> {
        Ok(CpuStep::default())
    }

    fn set_step(&self, step: &mut CpuStep, segments: &[Segment<'_>]) -> Result<(), Error> {
        *step = CpuStep::default();
        for segment in segments {
            step.segments.push(StepSegment {
                sequence: segment.sequence,
                first_row: step.ids.len(),
                rows: segment.ids.len(),
                position: segment.position,
            });
            step.ids.extend_from_slice(segment.ids);
            step.positions.extend(segment.position..segment.position + segment.ids.len());
        }
        Ok(())
    }

    fn run(
        &self,
        _step: &CpuStep,
        body: &mut (dyn FnMut() -> Result<(), Error> + Send),
    ) -> Result<(), Error> {
        int8_cpu::pool::spin_during(body)
    }

    fn embed(
        &self,
        step: &CpuStep,
        tokens: Option<&SharedMatrix>,
        positions: Option<(&SharedMatrix, usize)>,
        out: Output<'_, Self>,
    ) -> Result<(), Error> {
        let mut out = match out {
            Output::Add(out) => out.view_mut(),
            Output::Store(out) => {
                let mut out = out.resize(step.ids.len());
                out.fill(0.0);
                out
            }
        };
        for (row, mut values) in out.rows_mut().into_iter().enumerate() {
            if let Some(tokens) = tokens {
                tokens.add_row(convert::index(step.ids[row]), values.view_mut());
            }
            if let Some((table, offset)) = positions {
                table.add_row(step.positions[row] + offset, values.view_mut());
            }
        }
        Ok(())
    }

    fn normalize(&self, x: &mut CpuActivations, norm: &NormSpec) -> Result<(), Error> {
        elementwise::normalize(self.kernel, x.view_mut(), norm);
        Ok(())
    }

    fn normalize_columns(
        &self,
        x: &mut CpuActivations,
        columns: std::ops::Range<usize>,
        norm: &NormSpec,
    ) -> Result<(), Error> {
        elementwise::normalize_columns(self.kernel, x.view_mut(), columns, norm);
        Ok(())
    }

    fn add(&self, x: &mut CpuActivations, y: &CpuActivations, norm: Option<&NormSpec>) -> Result<(), Error> {
        let y = norm.map_or(Input::Plain(y), |norm| Input::Normed(y, norm));
        self.with_rows(y, None, |y| x.view_mut().zip_mut_with(&y, |x, y| *x += y));
        Ok(())
    }

    fn scale(&self, x: &mut CpuActivations, factor: f32) -> Result<(), Error> {
        x.data.iter_mut().for_each(|value| *value *= factor);
        Ok(())
    }

    fn experts(
        &self,
        input: Input<'_, Self>,
        experts: &Experts<Self>,
        out: &mut CpuActivations,
    ) -> Result<(), Error> {
        // Experts share their input: an observer sees it once, as that of the first one.
        self.with_rows(input, experts.up.first(), |x| {
            let mut out = out.resize(x.nrows());
            out.fill(0.0);
            experts::add(self.kernel, x, experts, out)
        })
    }

    fn project(
        &self,
        input: Input<'_, Self>,
        linear: &CpuLinear,
        output: Output<'_, Self>,
    ) -> Result<(), Error> {
        self.with_rows(input, Some(linear), |x| match output {
            Output::Store(out) => linear.apply(x, out.resize(x.nrows()), false),
            Output::Add(out) => linear.apply(x, out.view_mut(), true),
        })
    }

    fn attention(
        &self,
        step: &CpuStep,
        layer: usize,
        qkv: &mut CpuActivations,
        cache: &mut CpuCache,
        out: &mut CpuActivations,
    ) -> Result<(), Error> {
        let out = out.resize(qkv.rows);
        cache.attend(&step.segments, layer, qkv.view_mut(), out)
    }

    fn remember(
        &self,
        step: &CpuStep,
        layer: usize,
        kv: &CpuActivations,
        cache: &mut CpuCache,
    ) -> Result<(), Error> {
        cache.remember_only(&step.segments, layer, kv.view())
    }

    fn recall(
        &self,
        step: &CpuStep,
        layer: usize,
        q: &CpuActivations,
        cache: &CpuCache,
        out: &mut CpuActivations,
    ) -> Result<(), Error> {
        cache.recall(&step.segments, layer, q.view(), out.resize(q.rows))
    }

    fn select(
        &self,
        step: &CpuStep,
        x: &CpuActivations,
        rows: &RowSelection,
        out: &mut CpuActivations,
    ) -> Result<(), Error> {
        let rows: Vec<usize> = match rows {
            RowSelection::LastOfSegments => step.segments.iter().map(|s| s.first_row + s.rows - 1).collect(),
            RowSelection::Range(range) => range.clone().collect(),
        };
        let source = x.view();
        for (mut target, row) in out.resize(rows.len()).rows_mut().into_iter().zip(rows) {
            target.assign(&source.row(row));
        }
        Ok(())
    }

    fn read(&self, x: &CpuActivations, out: &mut Vec<f32>) -> Result<(), Error> {
        out.clear();
        out.extend_from_slice(&x.data);
        Ok(())
    }

    fn statistics(&self, linear: &CpuLinear) -> LinearStatistics {
        linear.statistics()
    }

    fn reset_statistics(&self, linear: &CpuLinear) {
        linear.reset_statistics();
    }

    fn linear_bytes(&self, linear: &CpuLinear) -> usize {
        linear.bytes()
    }

    fn embedding_bytes(&self, embedding: &SharedMatrix) -> usize {
        embedding.bytes()
    }
}

/// Rows from which on work is spread over threads: below, starting the threads costs more than it saves.
const PARALLEL_ROWS: usize = 8;
