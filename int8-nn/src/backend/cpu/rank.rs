//! The processor as several ranks: the arithmetic of tensor parallelism, for tests and as the reference of other backends.

use std::ops::Range;
use std::sync::Arc;

use int8_core::{OutlierGranularity, OutlierRule, RowMaximum};
use int8_cpu::Store;
use ndarray::{Array2, Axis, s};

use super::{CpuActivations, CpuBackend, CpuBatch, CpuLinear, SharedMatrix, projection};
use crate::Error;
use crate::backend::parallel::{ExchangeCapacity, Rank};
use crate::backend::{Backend, GraphKey, Input, Output};
use crate::int8_weight::RANGE_FEATURES;
use crate::precision::Site;

impl Rank for CpuBackend {
    const EXACT_OUTLIER_WEIGHTS: bool = true;

    type Exchange = ();

    fn exchange(_: &[Arc<Self>], _: ExchangeCapacity, _: Option<()>) -> Result<(), Error> {
        Ok(())
    }

    fn tied_rows(
        &self,
        site: Site,
        embedding: &SharedMatrix,
        rows: Range<usize>,
    ) -> Result<CpuLinear, Error> {
        self.tied(site, &embedding.part(rows))
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
        (): &mut (),
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
            append_ranges(&mut shards, linears[0])?;
        }
        let mut sum = Array2::zeros((shards[0].nrows(), linears[0].outputs()));
        for (x, linear) in shards.iter().zip(linears) {
            linear.apply(x.view(), Store::Accumulate, sum.view_mut())?;
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
        (): &mut (),
        parts: &[CpuActivations],
        out: &mut CpuActivations,
    ) -> Result<(), Error> {
        let parts: Vec<_> = parts.iter().map(CpuActivations::view).collect();
        let joined = ndarray::concatenate(Axis(1), &parts)
            .map_err(|error| Error::Input(format!("parts of the logits: {error}")))?;
        out.resize(joined.nrows()).assign(&joined);
        Ok(())
    }
}

/// Appends to each row, on every rank, the least and the greatest value of the whole row that counts for its scale: none of them
/// is an outlier. NaN where one is not finite.
fn append_ranges(shards: &mut [Array2<f32>], linear: &CpuLinear) -> Result<(), Error> {
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
    for shard in shards {
        let features = shard.ncols();
        let mut longer = Array2::zeros((shard.nrows(), features + RANGE_FEATURES));
        longer.slice_mut(s![.., ..features]).assign(shard);
        longer.slice_mut(s![.., features..]).assign(&ranges);
        *shard = longer;
    }
    Ok(())
}
