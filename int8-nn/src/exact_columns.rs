//! The exact columns of an int8 weight, for the outliers that they meet: read when they are first needed, and kept.
//!
//! In the models of the paper these are a handful; a model with outliers everywhere ends up with its 16-bit weight beside
//! the int8 one.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use half::slice::HalfFloatSliceExt;
use int8_cpu::{ExactColumn, PackedWeight};

use crate::weights::LinearSource;
use crate::{Error, convert};

/// The exact columns of one weight.
#[derive(Debug)]
pub(crate) struct ExactColumnCache {
    origin: Origin,
    kept: Mutex<Table>,
}

/// Where a column comes from that is not kept yet.
#[derive(Debug)]
pub(crate) enum Origin {
    /// The weight's own codes.
    Codes,
    /// The checkpoint: as stored, or rounded to int8 with these scales, one for each output row.
    Checkpoint { source: LinearSource, row_scales: Option<Vec<f32>> },
}

/// The columns that are kept. Each line of it is a cache miss when a token comes by once in some milliseconds: one for the
/// place of a column, one for the column.
#[derive(Debug, Default)]
struct Table {
    /// For each of the K columns its place in `columns`, counted from 1; 0 for those that are not kept. Empty until one is.
    places: Vec<u32>,
    columns: Vec<Kept>,
}

#[derive(Debug)]
struct Kept {
    index: usize,
    column: ExactColumn,
    /// Calls of the layer in which it held an outlier.
    calls: u64,
}

impl Table {
    fn get(&mut self, index: usize) -> Option<&mut Kept> {
        let place = convert::index(*self.places.get(index)?).checked_sub(1)?;
        self.columns.get_mut(place)
    }

    /// Keeps column `index` of `inner`, in place of what was kept of it.
    fn insert(&mut self, index: usize, inner: usize, column: ExactColumn) {
        self.places.resize(inner, 0);
        let kept = Kept { index, column, calls: 0 };
        match self.get(index) {
            Some(known) => *known = kept,
            None => {
                self.columns.push(kept);
                self.places[index] = convert::place(self.columns.len());
            }
        }
    }
}

impl ExactColumnCache {
    pub(crate) fn new(origin: Origin) -> Self {
        Self { origin, kept: Mutex::default() }
    }

    /// Keeps column `index` of `inner`.
    pub(crate) fn insert(&self, index: usize, inner: usize, column: ExactColumn) {
        self.lock().insert(index, inner, column);
    }

    /// The columns `columns` of `weight`, which the cache belongs to; each counts as one more call.
    ///
    /// # Errors
    /// When the checkpoint cannot give them.
    pub(crate) fn columns(
        &self,
        weight: &PackedWeight,
        columns: &[usize],
    ) -> Result<Vec<ExactColumn>, Error> {
        let mut table = self.lock();
        let mut found = Vec::with_capacity(columns.len());
        let mut look_up = |table: &mut Table, column: &usize| {
            let kept = table.get(*column)?;
            kept.calls += 1;
            found.push(kept.column.clone());
            Some(())
        };
        // Usually all are there; the rest is read from the first gap on.
        let known = columns.iter().take_while(|column| look_up(&mut table, column).is_some()).count();
        let rest = &columns[known..];
        if !rest.is_empty() {
            let missing: Vec<usize> =
                rest.iter().copied().filter(|column| table.get(*column).is_none()).collect();
            for (index, column) in missing.iter().zip(self.read(weight, &missing)?) {
                table.insert(*index, weight.dim().1, column);
            }
            // If too few were read, a gap is left, which the kernel reports by its count.
            rest.iter().for_each(|column| _ = look_up(&mut table, column));
        }
        Ok(found)
    }

    fn read(&self, weight: &PackedWeight, columns: &[usize]) -> Result<Vec<ExactColumn>, Error> {
        match &self.origin {
            Origin::Checkpoint { source, row_scales } => {
                let stored = source.exact_columns(columns)?.unwrap_or_default();
                // A column has an element in nearly every page of the weight.
                source.release();
                Ok(match row_scales {
                    None => stored,
                    Some(scales) => stored.iter().map(|column| rounded(column, scales)).collect(),
                })
            }
            Origin::Codes => {
                let quantized = weight.to_quantized()?;
                let value = |row, column| int8_core::Element::from_f64(quantized.value(row, column));
                let column = |column| (0..weight.dim().0).map(|row| value(row, column)).collect();
                Ok(columns.iter().map(|index| ExactColumn::F32(column(*index))).collect())
            }
        }
    }

    /// Number of columns that are kept.
    pub(crate) fn len(&self) -> usize {
        self.lock().columns.len()
    }

    /// Bytes of the columns that are kept.
    pub(crate) fn bytes(&self) -> usize {
        let bytes = |kept: &Kept| match &kept.column {
            ExactColumn::F32(values) => size_of_val(&**values),
            ExactColumn::F16(values) => size_of_val(&**values),
            ExactColumn::Bf16(values) => size_of_val(&**values),
        };
        self.lock().columns.iter().map(bytes).sum()
    }

    /// Writes for each kept column in how many calls it held an outlier to `calls [K]`.
    pub(crate) fn count_calls(&self, calls: &mut [u64]) {
        for kept in &self.lock().columns {
            calls[kept.index] = kept.calls;
        }
    }

    pub(crate) fn reset_calls(&self) {
        self.lock().columns.iter_mut().for_each(|kept| kept.calls = 0);
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A column of the codes that its values have with these scales.
fn rounded(column: &ExactColumn, scales: &[f32]) -> ExactColumn {
    let mut values = vec![0.0; column.len()];
    match column {
        ExactColumn::F32(column) => values.copy_from_slice(column),
        ExactColumn::F16(column) => column.convert_to_f32_slice(&mut values),
        ExactColumn::Bf16(column) => column.convert_to_f32_slice(&mut values),
    }
    values.iter_mut().zip(scales).for_each(|(value, scale)| *value = through_int8(*value, *scale));
    ExactColumn::F32(Arc::from(values))
}

/// `round(w·127/s)·s/127`: what an absmax code of `w` stands for.
fn through_int8(value: f32, scale: f32) -> f32 {
    if scale == 0.0 { 0.0 } else { (value * (127.0 / scale)).round_ties_even() * (scale / 127.0) }
}
