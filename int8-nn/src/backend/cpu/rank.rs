//! The processor as several ranks: the arithmetic of tensor parallelism, for tests and as the reference of other backends.

use std::ops::Range;
use std::sync::Arc;

use int8_core::{OutlierGranularity, OutlierRule, RowMaximum};
use int8_cpu::Store;
use ndarray::{Array2, Axis, s};

use super::{CpuActivations, CpuBackend, CpuBatch, CpuLinear, projection};
use crate::Error;
use crate::backend::parallel::{ExchangeCapacity, Rank};
use crate::backend::{Backend, GraphKey, Input, Output};
use crate::group::Group;
use crate::int8_weight::RANGE_FEATURES;
use crate::precision::Site;
use crate::weights::RowTable;

impl Rank for CpuBackend {
    const EXACT_OUTLIER_WEIGHTS: bool = true;

    /// Messages of the processes.
    type Exchange = Arc<Group>;

    fn exchange(
        _: &[Arc<Self>],
        group: &Arc<Group>,
        _: ExchangeCapacity,
        _: Option<Arc<Group>>,
    ) -> Result<Arc<Group>, Error> {
        Ok(group.clone())
    }

    fn tied_rows(&self, site: Site, embedding: &RowTable, rows: Range<usize>) -> Result<CpuLinear, Error> {
        CpuLinear::tied(self.kernel, site, embedding, rows)
    }

    fn run_together(
        ranks: &[Arc<Self>],
        key: GraphKey,
        batches: &[CpuBatch],
        body: &mut (dyn FnMut() -> Result<(), Error> + Send),
    ) -> Result<(), Error> {
        ranks[0].run(key, &batches[0], body)
    }

    fn contract(
        ranks: &[Arc<Self>],
        group: &mut Arc<Group>,
        inputs: &[Input<'_, Self>],
        linears: &[&CpuLinear],
        outs: &mut [Output<'_, Self>],
    ) -> Result<(), Error> {
        let mut shards = Vec::new();
        for (rank, input) in ranks.iter().zip(inputs) {
            let (x, prologue) = input.parts();
            shards.push(projection::materialize(rank.kernel, x, prologue)?.view().to_owned());
        }
        if linears[0].config().is_some() {
            let ranges = ranges(&shards, linears[0])?;
            append(&mut shards, &ranges_of_all(group, ranges)?);
        }
        let mut sum = Array2::zeros((shards[0].nrows(), linears[0].outputs()));
        let mut part = sum.clone();
        let mut message = Vec::new();
        for (x, linear) in shards.iter().zip(linears) {
            linear.apply(x.view(), Store::Overwrite, part.view_mut())?;
            match group.processes() {
                1 => sum += &part,
                _ => message.extend_from_slice(bytemuck::cast_slice(values(&part))),
            }
        }
        // In the order of the ranks, so that all have the same bits, in one process or in several.
        for message in group.gather_of_several(&message)? {
            for values in message.chunks_exact(size_of_val(values(&part))) {
                sum.iter_mut().zip(floats(values)).for_each(|(sum, value)| *sum += value);
            }
        }
        for out in outs {
            match out {
                Output::Store(out) => out.resize(sum.nrows()).assign(&sum),
                Output::Add(out) => out.view_mut().zip_mut_with(&sum, |x, y| *x += y),
            }
        }
        Ok(())
    }

    fn join(
        _: &[Arc<Self>],
        group: &mut Arc<Group>,
        parts: &[CpuActivations],
        out: Option<&mut CpuActivations>,
    ) -> Result<(), Error> {
        let failed = |error| Error::Input(format!("parts of the logits: {error}"));
        let parts: Vec<_> = parts.iter().map(CpuActivations::view).collect();
        let mut joined = ndarray::concatenate(Axis(1), &parts).map_err(failed)?;
        let rows = joined.nrows();
        let own = joined.as_standard_layout();
        let messages = group.gather_of_several(bytemuck::cast_slice(own.as_slice().unwrap_or_default()))?;
        let Some(out) = out else { return Ok(()) };
        if !messages.is_empty() {
            let part = |message: Vec<u8>| {
                let values: Vec<f32> = floats(&message).collect();
                Array2::from_shape_vec((rows, values.len() / rows.max(1)), values)
            };
            let parts: Vec<_> = messages.into_iter().map(part).collect::<Result<_, _>>().map_err(failed)?;
            let parts: Vec<_> = parts.iter().map(|part| part.view()).collect();
            joined = ndarray::concatenate(Axis(1), &parts).map_err(failed)?;
        }
        out.resize(rows).assign(&joined);
        Ok(())
    }
}

/// A matrix that was made here, row-major.
fn values(matrix: &Array2<f32>) -> &[f32] {
    matrix.as_slice().unwrap_or_default()
}

/// The values of a message.
fn floats(message: &[u8]) -> impl Iterator<Item = f32> {
    message.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes))
}

/// `[rows, 2]`: the least and the greatest value of each row, on all ranks of this process, that counts for its scale: none of them
/// is an outlier. NaN where one is not finite.
fn ranges(shards: &[Array2<f32>], linear: &CpuLinear) -> Result<Array2<f32>, Error> {
    let config = linear.config().copied().unwrap_or_default();
    let threshold = match config.rule {
        OutlierRule::None => f32::INFINITY,
        OutlierRule::Absolute(threshold) => threshold,
        _ => {
            return Err(Error::Unsupported("relative outliers with tensor parallelism".to_owned()));
        }
    };
    let by_column =
        config.outlier_granularity == OutlierGranularity::Column && config.row_maximum == RowMaximum::Paper;
    let mut ranges = Array2::zeros((shards[0].nrows(), RANGE_FEATURES));
    for column in shards.iter().flat_map(|shard| shard.columns()) {
        if by_column && column.iter().any(|value| value.abs() >= threshold) {
            continue;
        }
        for (value, mut range) in column.iter().zip(ranges.rows_mut()) {
            // With an infinite threshold nothing is an outlier, infinity included.
            if value.abs() >= threshold && threshold.is_finite() {
                continue;
            }
            if value.is_finite() {
                range[0] = value.min(range[0]);
                range[1] = value.max(range[1]);
            } else {
                range.fill(f32::NAN);
            }
        }
    }
    Ok(ranges)
}

/// The ranges of the whole rows from those of each process.
fn ranges_of_all(group: &Group, mut ranges: Array2<f32>) -> Result<Array2<f32>, Error> {
    for message in group.gather_of_several(bytemuck::cast_slice(values(&ranges)))? {
        for (index, (own, other)) in ranges.iter_mut().zip(floats(&message)).enumerate() {
            let further = if index % RANGE_FEATURES == 0 { other < *own } else { other > *own };
            if further || other.is_nan() {
                *own = other;
            }
        }
    }
    Ok(ranges)
}

/// Appends the range of each whole row, on every rank.
fn append(shards: &mut [Array2<f32>], ranges: &Array2<f32>) {
    for shard in shards {
        let features = shard.ncols();
        let mut longer = Array2::zeros((shard.nrows(), features + RANGE_FEATURES));
        longer.slice_mut(s![.., ..features]).assign(shard);
        longer.slice_mut(s![.., features..]).assign(ranges);
        *shard = longer;
    }
}
