//! The int8 linear layer as a thing of its own: weights, exact columns, bias and settings together.

use std::error::Error as StdError;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use int8_core::{Config, Element, Granularity, OutlierRule, Scheme};
use int8_cpu::{ExactColumn, ExactColumns, Kernel, LinearStats, PackedWeight, Store};
use ndarray::{Array1, Array2, ArrayView1, ArrayView2, ArrayViewMut2, Axis, concatenate};

use crate::Error;
use crate::convert;
use crate::precision::{OutlierWeights, Quantization};
use crate::weights::{FloatMatrix, LinearSource, StoredWeight};

/// `y [M, N] = x [M, K] · Wᵀ + bias [N]` with an int8 weight on the CPU.
///
/// ```
/// use int8_core::Scheme;
/// use int8_nn::Linear8bit;
/// use ndarray::array;
///
/// let w = array![[0.1_f32, 0.2, 0.3], [-0.3, 0.1, 0.2]];
/// let config = Scheme::LlmInt8Absmax.config();
/// // Input dimension 1 is known to carry outliers: its weights stay as they are.
/// let layer = Linear8bit::quantize(w.view(), Some(&[0.5, -0.5]), config)?.keep_exact(w.view(), &[1])?;
/// let y = layer.forward(array![[0.5_f32, 40.0, -0.25]].view())?;
/// assert!((y[[0, 0]] - 8.475).abs() < 0.01);
/// # Ok::<(), int8_nn::Error>(())
/// ```
#[derive(Debug)]
pub struct Linear8bit {
    packed: PackedWeight,
    bias: Option<Vec<f32>>,
    config: Config,
    /// Columns for the outliers; without them the codes are dequantised where they are needed.
    columns: Option<Columns>,
}

impl Linear8bit {
    /// Quantises `w [N, K]`, row-major, for the kernel that `INT8_KERNEL` names or the best this processor has.
    ///
    /// # Errors
    /// When the rows of `w` are not contiguous, `bias` has not N elements, or K is too large for an i32 accumulator.
    pub fn quantize<T: Element>(
        w: ArrayView2<T>,
        bias: Option<&[f32]>,
        config: Config,
    ) -> Result<Self, Error> {
        let kernel = Kernel::select()?;
        let packed = PackedWeight::quantize(kernel, w, config.weight_encoding, config.weight_granularity)?;
        Self::from_packed(packed, bias, config)
    }

    /// Takes a weight that is int8 already.
    ///
    /// # Errors
    /// When `bias` has not N elements.
    pub fn from_packed(packed: PackedWeight, bias: Option<&[f32]>, config: Config) -> Result<Self, Error> {
        let outputs = packed.dim().0;
        if let Some(found) = bias.map(<[f32]>::len).filter(|found| *found != outputs) {
            return Err(int8_core::Error::Length { what: "bias", expected: outputs, found }.into());
        }
        Ok(Self { packed, bias: bias.map(<[f32]>::to_vec), config, columns: None })
    }

    /// Keeps these columns of `w [N, K]` exactly, for the outliers they meet. An outlier column that is not kept is
    /// dequantised.
    ///
    /// # Errors
    /// When `w` has another shape than the weight, or there is no such column.
    pub fn keep_exact<T: Element>(mut self, w: ArrayView2<T>, columns: &[usize]) -> Result<Self, Error> {
        if w.dim() != self.packed.dim() {
            let shape = int8_core::Error::Shape { what: "W", expected: self.packed.dim(), found: w.dim() };
            return Err(shape.into());
        }
        let cache = self.columns.get_or_insert_with(|| Columns::new(Origin::Codes));
        for &column in columns {
            if column >= w.ncols() {
                return Err(int8_core::Error::Column { column, columns: w.ncols() }.into());
            }
            let values = w.column(column).iter().map(|value| value.to_f32()).collect();
            cache.lock().insert(column, w.ncols(), ExactColumn::F32(values));
        }
        Ok(self)
    }

    /// `x [M, K]` → `y [M, N]`.
    ///
    /// # Errors
    /// When `x` has not K columns or its rows are not contiguous.
    pub fn forward<T: Element>(&self, x: ArrayView2<T>) -> Result<Array2<T>, Error> {
        let mut y = Array2::from_elem((x.nrows(), self.packed.dim().0), T::from_f32(0.0));
        self.forward_into(x, Store::Overwrite, y.view_mut())?;
        Ok(y)
    }

    /// Writes to `out [M, N]`, or adds to it; says what left the int8 product.
    ///
    /// # Errors
    /// As [`forward`](Self::forward), and when `out` is not `[M, N]`.
    pub fn forward_into<X: Element, Y: Element>(
        &self,
        x: ArrayView2<X>,
        store: Store,
        out: ArrayViewMut2<Y>,
    ) -> Result<LinearStats, Error> {
        let source = self.columns.as_ref().map(|columns| Source { columns, packed: &self.packed });
        let weights = match &source {
            Some(source) => int8_cpu::OutlierWeights::Exact(source),
            None => int8_cpu::OutlierWeights::Dequantized,
        };
        Ok(int8_cpu::linear(x, &self.packed, weights, self.bias.as_deref(), &self.config, store, out)?)
    }

    /// `dX [M, K] = dY [M, N] · dequantise(W)`: see [`int8_core::input_gradient`].
    ///
    /// # Errors
    /// When `dY` has not N columns.
    pub fn input_gradient<T: Element>(&self, dy: ArrayView2<T>) -> Result<Array2<T>, Error> {
        Ok(int8_core::input_gradient(dy, &self.packed.to_quantized()?)?)
    }

    /// Codes, scales and zero points in the layout of the kernel.
    pub fn weight(&self) -> &PackedWeight {
        &self.packed
    }

    /// Bytes of codes, constants, bias and exact columns.
    pub fn bytes(&self) -> usize {
        let bias = self.bias.as_ref().map_or(0, |bias| size_of_val(bias.as_slice()));
        self.packed.bytes() + bias + self.columns.as_ref().map_or(0, Columns::bytes)
    }

    /// Number of columns that are kept.
    pub fn exact_columns(&self) -> usize {
        self.columns.as_ref().map_or(0, |columns| columns.lock().columns.len())
    }

    /// For each of the K columns, in how many calls a kept column was asked for.
    pub(crate) fn column_calls(&self) -> Vec<u64> {
        let mut calls = vec![0; self.packed.dim().1];
        if let Some(columns) = &self.columns {
            for kept in &columns.lock().columns {
                calls[kept.index] = kept.calls;
            }
        }
        calls
    }

    pub(crate) fn reset_calls(&self) {
        if let Some(columns) = &self.columns {
            columns.lock().columns.iter_mut().for_each(|kept| kept.calls = 0);
        }
    }

    /// Reads and quantises a layer of a checkpoint.
    pub(crate) fn load(
        kernel: Kernel,
        source: &LinearSource,
        quantization: Quantization,
    ) -> Result<Self, Error> {
        let mut parts = (0..source.parts()).map(|part| source.part(part)).collect::<Result<Vec<_>, _>>()?;
        let packed = match (parts.len(), parts.pop()) {
            (1, Some(StoredWeight::Float(matrix))) => quantize(kernel, &matrix, &quantization)?,
            (_, Some(last)) => {
                // Each part is quantised by itself: a scheme with one constant a tensor has one for each of them.
                parts.push(last);
                let mut quantization = quantization;
                if parts.iter().any(|part| matches!(part, StoredWeight::Int8 { .. }))
                    && quantization.config.weight_granularity == Granularity::Group
                {
                    // What is int8 already has one constant a row, and the parts become one weight.
                    quantization.config.weight_granularity = Granularity::Row;
                }
                let parts = parts
                    .into_iter()
                    .map(|part| match part {
                        StoredWeight::Int8 { codes, scales } => {
                            let zero_points = Array1::zeros(scales.len());
                            Ok((codes, Array1::from_vec(scales), zero_points))
                        }
                        StoredWeight::Float(matrix) => {
                            let part = quantize(kernel, &matrix, &quantization)?;
                            Ok((part.codes(), part.scales(), part.zero_points()))
                        }
                    })
                    .collect::<Result<Vec<_>, Error>>()?;
                stack(kernel, &parts)?
            }
            (_, None) => return Err(Error::Input(format!("{}: a layer without weights", source.name()))),
        };
        // A checkpoint that is int8 itself has no other columns to fetch.
        let is_float = source.exact_columns(&[])?.is_some();
        let config = quantization.config;
        let fetched =
            |row_scales| Some(Columns::new(Origin::Checkpoint { source: source.clone(), row_scales }));
        let columns = match quantization.outlier_weights {
            _ if !is_float || config.rule == OutlierRule::None => None,
            OutlierWeights::Exact => fetched(None),
            // The codes of the product are at least row-wise: nothing else is needed.
            OutlierWeights::Dequantized if config.weight_granularity != Granularity::Tensor => None,
            OutlierWeights::Dequantized => fetched(Some(row_scales(kernel, source)?)),
        };
        Ok(Self { columns, ..Self::from_packed(packed, source.bias(), config)? })
    }
}

fn quantize(
    kernel: Kernel,
    matrix: &FloatMatrix,
    quantization: &Quantization,
) -> Result<PackedWeight, Error> {
    let (encoding, granularity) =
        (quantization.config.weight_encoding, quantization.config.weight_granularity);
    Ok(match matrix {
        FloatMatrix::F32(matrix) => PackedWeight::quantize(kernel, matrix.view(), encoding, granularity)?,
        FloatMatrix::F16(matrix) => PackedWeight::quantize(kernel, matrix.view(), encoding, granularity)?,
        FloatMatrix::Bf16(matrix) => PackedWeight::quantize(kernel, matrix.view(), encoding, granularity)?,
    })
}

/// The largest magnitude of each output row.
fn row_scales(kernel: Kernel, source: &LinearSource) -> Result<Vec<f32>, Error> {
    let vector_wise = Scheme::AbsmaxVectorWise.config();
    let quantization = Quantization::new(vector_wise, OutlierWeights::Dequantized);
    Ok(quantize(kernel, &source.float()?, &quantization)?.scales().to_vec())
}

fn stack(kernel: Kernel, parts: &[(Array2<i8>, Array1<f32>, Array1<i32>)]) -> Result<PackedWeight, Error> {
    const WIDTHS: &str = "the widths were checked when the layer was found";
    let codes: Vec<_> = parts.iter().map(|(codes, _, _)| codes.view()).collect();
    let scales: Vec<_> = parts.iter().map(|(_, scales, _)| scales.view()).collect();
    let zero_points: Vec<_> = parts.iter().map(|(_, _, zero_points)| zero_points.view()).collect();
    Ok(PackedWeight::from_codes(
        kernel,
        concatenate(Axis(0), &codes).expect(WIDTHS).view(),
        concatenate(Axis(0), &scales).expect(WIDTHS).view(),
        Some(concatenate(Axis(0), &zero_points).expect(WIDTHS).view()),
    )?)
}

/// Columns of a weight for the outliers they meet, fetched when they are first needed and kept. In the models of the paper
/// these are a handful; a model with outliers everywhere ends up with its 16-bit weight beside the int8 one.
#[derive(Debug)]
struct Columns {
    origin: Origin,
    kept: Mutex<Table>,
}

/// The columns that are kept. Each line of it is a cache miss when a token comes by once in some milliseconds: one for the
/// place of a column, one for the column.
#[derive(Debug, Default)]
struct Table {
    /// For each of the K columns its place in `columns`, counted from 1; 0 for those that are not kept. Empty until one is.
    places: Vec<u32>,
    columns: Vec<Kept>,
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

/// Where a column comes from that is not kept yet.
#[derive(Debug)]
enum Origin {
    /// The weight's own codes.
    Codes,
    /// The checkpoint: as stored, or rounded to int8 with these scales, one for each output row.
    Checkpoint { source: LinearSource, row_scales: Option<Vec<f32>> },
}

#[derive(Debug)]
struct Kept {
    index: usize,
    column: ExactColumn,
    calls: u64,
}

impl Columns {
    fn new(origin: Origin) -> Self {
        Self { origin, kept: Mutex::default() }
    }

    fn bytes(&self) -> usize {
        let bytes = |kept: &Kept| match &kept.column {
            ExactColumn::F32(values) => size_of_val(&**values),
            ExactColumn::F16(values) => size_of_val(&**values),
            ExactColumn::Bf16(values) => size_of_val(&**values),
        };
        self.lock().columns.iter().map(bytes).sum()
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Columns with the weight they belong to: what a kernel asks.
struct Source<'a> {
    columns: &'a Columns,
    packed: &'a PackedWeight,
}

impl Source<'_> {
    fn fetch(&self, columns: &[usize]) -> Result<Vec<ExactColumn>, Error> {
        fn rows<T: Copy>(matrix: &Array2<T>, wrap: impl Fn(Arc<[T]>) -> ExactColumn) -> Vec<ExactColumn> {
            matrix.rows().into_iter().map(|row| wrap(row.iter().copied().collect())).collect()
        }
        let (source, row_scales) = match &self.columns.origin {
            Origin::Checkpoint { source, row_scales } => (source, row_scales),
            Origin::Codes => {
                let values: Array2<f32> = self.packed.to_quantized()?.dequantize();
                return Ok(rows(&values.select(Axis(1), columns).reversed_axes(), ExactColumn::F32));
            }
        };
        let stored = source.exact_columns(columns)?;
        if let (Some(scales), Some(stored)) = (row_scales, &stored) {
            let mut columns = stored.to_f32();
            for mut column in columns.rows_mut() {
                column.zip_mut_with(&ArrayView1::from(scales), |value, scale| {
                    *value = through_int8(*value, *scale);
                });
            }
            return Ok(rows(&columns, ExactColumn::F32));
        }
        Ok(match stored {
            Some(FloatMatrix::F32(matrix)) => rows(&matrix, ExactColumn::F32),
            Some(FloatMatrix::F16(matrix)) => rows(&matrix, ExactColumn::F16),
            Some(FloatMatrix::Bf16(matrix)) => rows(&matrix, ExactColumn::Bf16),
            None => Vec::new(),
        })
    }
}

/// `round(w·127/s)·s/127`: what an absmax code of `w` stands for.
fn through_int8(value: f32, scale: f32) -> f32 {
    if scale == 0.0 { 0.0 } else { (value * (127.0 / scale)).round_ties_even() * (scale / 127.0) }
}

impl ExactColumns for Source<'_> {
    fn columns(&self, columns: &[usize]) -> Result<Vec<ExactColumn>, Box<dyn StdError + Send + Sync>> {
        let mut table = self.columns.lock();
        let mut found = Vec::with_capacity(columns.len());
        let mut look_up = |table: &mut Table, column: &usize| {
            let kept = table.get(*column)?;
            kept.calls += 1;
            found.push(kept.column.clone());
            Some(())
        };
        // Usually all are there; the rest is fetched from the first gap on.
        let known = columns.iter().take_while(|column| look_up(&mut table, column).is_some()).count();
        let rest = &columns[known..];
        if !rest.is_empty() {
            let missing: Vec<usize> =
                rest.iter().copied().filter(|column| table.get(*column).is_none()).collect();
            for (index, column) in missing.iter().zip(self.fetch(&missing)?) {
                table.insert(*index, self.packed.dim().1, column);
            }
            // A fetch that returns too few leaves a gap, which the kernel reports by its count.
            rest.iter().for_each(|column| _ = look_up(&mut table, column));
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use int8_core::corpus::Random;
    use int8_core::{Weight, linear};

    use super::*;

    /// Against the reference, with all, some and no outlier columns kept.
    #[test]
    fn the_layer_is_the_references() {
        let mut random = Random::new(8);
        let (mut x, w) = (random.matrix(7, 90, 1.0), random.matrix(33, 90, 0.05));
        for column in [4, 41, 89] {
            x.column_mut(column).fill(-30.0);
        }
        let bias: Vec<f32> = (0..33).map(|_| random.normal()).collect();
        let configs = [Scheme::LlmInt8Absmax.config(), Quantization::best().config];
        let kept = [&[][..], &[41], &[4, 41, 89]];
        for (config, kept) in configs.into_iter().flat_map(|config| kept.map(|kept| (config, kept))) {
            let layer = Linear8bit::quantize(w.view(), Some(&bias), config)
                .and_then(|l| l.keep_exact(w.view(), kept));
            let layer = layer.expect("a layer");
            assert_eq!(layer.exact_columns(), kept.len());
            let reference =
                Weight::quantize(w.view(), &config).with_exact_columns(w.view(), kept).expect("W");
            let expected = linear(x.view(), &reference, Some(ArrayView1::from(&bias)), &config).expect("y");
            let y = layer.forward(x.view()).expect("y");
            let arithmetic = int8_core::bound::Arithmetic::F32;
            let found =
                int8_core::bound::compare(y.view(), &expected, Some(ArrayView1::from(&bias)), arithmetic);
            assert!(found.within_bound(), "{kept:?}: {found:?}");
            let gradient = layer.input_gradient(y.view()).expect("dX");
            assert_eq!(gradient, int8_core::input_gradient(y.view(), reference.quantized()).expect("dX"));
        }
    }

    #[test]
    fn operands_that_do_not_fit_are_refused() {
        let mut random = Random::new(9);
        let w = random.matrix(4, 8, 1.0);
        let config = Scheme::LlmInt8Absmax.config();
        assert!(Linear8bit::quantize(w.view(), Some(&[0.0; 3]), config).is_err());
        let layer = || Linear8bit::quantize(w.view(), None, config).expect("a layer");
        assert!(layer().keep_exact(w.t(), &[0]).is_err());
        assert!(layer().keep_exact(w.view(), &[8]).is_err());
        assert!(layer().forward(random.matrix(2, 7, 1.0).view()).is_err());
    }
}
