//! One stored weight of a layer: where it lies in a checkpoint, and its rows in the order in which the layer has them.

use int8_core::Element;
use int8_cpu::WeightRows;
use ndarray::{ArrayView1, ArrayView2};

use crate::Error;
use crate::checkpoint::{Checkpoint, DType, FloatRows, Mxfp4, ReadAs, TensorView, dequantize_row};

/// One stored weight that makes up a linear layer, alone or with others.
#[derive(Debug, Clone)]
pub(crate) struct Part {
    pub(super) name: String,
    pub(super) transposed: bool,
    /// The weight is this one of those that are stored as one tensor `[experts, out, in]`, under the name itself.
    pub(super) slab: Option<usize>,
    /// Shape of a slab of a matrix, which holds them one below the other; where it is `None` they are the first dimension.
    pub(super) slab_shape: Option<[usize; 2]>,
    pub(super) rows: Rows,
    /// The tensor of the bias; `None` if the model has none, whatever the checkpoint holds.
    pub(super) bias: Option<String>,
}

/// Which output rows of a stored weight are used, in which order.
#[derive(Debug, Clone)]
pub(crate) enum Rows {
    /// All, as stored.
    All,
    /// These; the stored weight must have `of` rows.
    Gather { rows: Vec<usize>, of: usize },
}

impl Part {
    /// All rows of the layer `name`, whose weight is stored `[out, in]`.
    pub(crate) fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            transposed: false,
            slab: None,
            slab_shape: None,
            rows: Rows::All,
            bias: Some(format!("{name}.bias")),
        }
    }

    /// Its name in the checkpoint.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Without bias unless `biased`.
    pub(crate) fn biased(self, biased: bool) -> Self {
        Self { bias: self.bias.filter(|_| biased), ..self }
    }

    /// With `root` before the names.
    pub(super) fn below(self, root: &str) -> Self {
        Self {
            name: format!("{root}{}", self.name),
            bias: self.bias.map(|bias| format!("{root}{bias}")),
            ..self
        }
    }

    /// With the bias of the layer `name` instead of its own.
    pub(crate) fn bias_of(self, name: &str) -> Self {
        Self { bias: Some(format!("{name}.bias")), ..self }
    }

    /// With the bias in the tensor `name`; for a [slab](Self::slab) `[experts, out]`.
    pub(crate) fn bias_in(self, name: String) -> Self {
        Self { bias: Some(name), ..self }
    }

    /// The weight is stored `[in, out]` unless it is int8 or MXFP4.
    pub(crate) fn conv1d(self) -> Self {
        Self { transposed: true, ..self }
    }

    /// One of the weights `[experts, out, in]` that the tensor `name` itself holds.
    pub(crate) fn slab(self, index: usize) -> Self {
        Self { slab: Some(index), ..self }
    }

    /// One of the weights of this shape that the matrix `name` itself holds one below the other.
    pub(crate) fn stacked(self, index: usize, shape: [usize; 2]) -> Self {
        Self { slab: Some(index), slab_shape: Some(shape), ..self }
    }

    /// The name of its weight below the checkpoint's root, and whether a 16-bit one is stored `[in, out]`.
    pub(crate) fn stored(&self) -> (String, bool) {
        (format!("{}.weight", self.name), self.transposed)
    }

    /// Only these rows.
    pub(crate) fn rows(self, rows: Rows) -> Self {
        Self { rows, ..self }
    }

    /// Only `rows` of the `outputs` that the layer has of it.
    pub(super) fn of_rows(self, rows: &[usize], outputs: usize) -> Self {
        let of = self.stored_rows(outputs);
        let stored = |row: &usize| self.order().map_or(*row, |order| order[*row]);
        let rows = Rows::Gather { rows: rows.iter().map(stored).collect(), of };
        Self { rows, ..self }
    }

    /// Output rows of the stored weight of which the layer has `outputs`.
    pub(crate) fn stored_rows(&self, outputs: usize) -> usize {
        match &self.rows {
            Rows::All => outputs,
            Rows::Gather { of, .. } => *of,
        }
    }

    fn order(&self) -> Option<&[usize]> {
        match &self.rows {
            Rows::All => None,
            Rows::Gather { rows, .. } => Some(rows),
        }
    }

    /// Values of the stored rows as those of the layer.
    pub(super) fn select<T: Copy>(&self, values: Vec<T>) -> Vec<T> {
        match self.order() {
            None => values,
            Some(order) => order.iter().map(|row| values[*row]).collect(),
        }
    }

    /// The tensor that holds the weight.
    pub(super) fn tensor<'a>(&'a self, checkpoint: &'a Checkpoint) -> Result<TensorView<'a>, Error> {
        Ok(match self.slab {
            None => checkpoint.tensor(&format!("{}.weight", self.name))?,
            Some(index) => {
                let all = checkpoint.tensor(&self.name)?;
                match &self.slab_shape {
                    None => all.slab(index)?,
                    Some(shape) => all.stacked(index, shape)?,
                }
            }
        })
    }

    /// The matrix, where it is stored in MXFP4.
    fn mxfp4<'a>(&self, checkpoint: &'a Checkpoint) -> Result<Option<Mxfp4<'a>>, Error> {
        let Some(index) = self.slab else { return Ok(None) };
        Ok(Mxfp4::find(checkpoint, &self.name, index)?)
    }

    /// The type of the weight's elements; of those in MXFP4 the type in which they are read.
    pub(super) fn dtype(&self, checkpoint: &Checkpoint) -> Result<DType, Error> {
        if self.mxfp4(checkpoint)?.is_some() {
            return Ok(DType::BF16);
        }
        Ok(self.tensor(checkpoint)?.dtype())
    }

    /// Checks that the weight is `[rows, inputs]` as stored rows.
    pub(super) fn expect_shape(
        &self,
        checkpoint: &Checkpoint,
        rows: usize,
        inputs: usize,
    ) -> Result<(), Error> {
        if let Some(matrix) = self.mxfp4(checkpoint)? {
            if matrix.dim() == (rows, inputs) {
                return Ok(());
            }
            let blocks = checkpoint.tensor(&Mxfp4::tensors(&self.name)[0])?;
            return Err(blocks.shape_error(format!("[experts, {rows}, {inputs}/32, 16]")).into());
        }
        let weight = self.tensor(checkpoint)?;
        let transposed = self.transposed && weight.dtype() != DType::I8;
        weight.expect_shape(&if transposed { [inputs, rows] } else { [rows, inputs] })?;
        Ok(())
    }

    /// The weight's rows.
    pub(super) fn open<'a>(&'a self, checkpoint: &'a Checkpoint) -> Result<StoredWeight<'a>, Error> {
        if self.slab.is_none()
            && let Some(int8) = checkpoint.int8_linear(&self.name)?
        {
            let scales = self.select(int8.scales);
            return Ok(StoredWeight::Int8(CodeRows { codes: int8.codes, order: self.order(), scales }));
        }
        let rows = match self.mxfp4(checkpoint)? {
            Some(matrix) => FloatRows::of_mxfp4(matrix),
            None => FloatRows::new(&self.tensor(checkpoint)?, self.transposed)?,
        };
        Ok(StoredWeight::Float(rows.select(self.order())))
    }

    /// Lets the system take back the memory that holds the mapped weight.
    pub(super) fn release(&self, checkpoint: &Checkpoint) {
        match self.slab {
            None => checkpoint.release(&format!("{}.weight", self.name)),
            Some(_) => {
                let [blocks, scales] = Mxfp4::tensors(&self.name);
                [&self.name, &blocks, &scales].into_iter().for_each(|name| checkpoint.release(name));
            }
        }
    }

    /// Appends to each of `to` the N elements of one of `columns` of the weight: exactly, where the checkpoint has them, else
    /// what the codes stand for.
    pub(super) fn columns<T: Element + ReadAs>(
        &self,
        checkpoint: &Checkpoint,
        columns: &[usize],
        to: &mut [Vec<T>],
    ) -> Result<(), Error> {
        if let Some(matrix) = self.mxfp4(checkpoint)? {
            for (column, to) in columns.iter().zip(to) {
                self.extend(to, matrix.dim().0, |row| T::from_f32(matrix.at(row, *column)));
            }
            return Ok(());
        }
        let tensor = self.tensor(checkpoint)?;
        if tensor.dtype() == DType::I8 {
            return self.int8_columns(checkpoint, &tensor, columns, to);
        }
        if self.transposed {
            let mut values = vec![T::default(); tensor.matrix_shape()?.1];
            for (column, to) in columns.iter().zip(to) {
                tensor.read_rows(*column..column + 1, &mut values)?;
                self.extend(to, values.len(), |row| values[row]);
            }
            return Ok(());
        }
        let name = format!("{}.weight", self.name);
        let values: Vec<T> = tensor.columns_releasing(columns, |bytes| {
            if self.slab.is_none() {
                checkpoint.release_part(&name, bytes);
            }
        })?;
        for (index, to) in to.iter_mut().enumerate() {
            self.extend(to, tensor.matrix_shape()?.0, |row| values[row * columns.len() + index]);
        }
        Ok(())
    }

    fn int8_columns<T: Element>(
        &self,
        checkpoint: &Checkpoint,
        codes: &TensorView<'_>,
        columns: &[usize],
        to: &mut [Vec<T>],
    ) -> Result<(), Error> {
        let shape = codes.matrix_shape()?;
        let scales = checkpoint.tensor(&format!("{}.SCB", self.name))?.expect_shape(&[shape.0])?.to_f32()?;
        let codes: Vec<i8> = codes.columns(columns)?;
        let kept = checkpoint.outlier_columns(&self.name, shape)?;
        let mut exact = vec![0.0; shape.0];
        for (index, (column, to)) in columns.iter().zip(to).enumerate() {
            let place = kept.as_ref().and_then(|kept| kept.columns.binary_search(column).ok());
            if let (Some(kept), Some(place)) = (&kept, place) {
                kept.weights.read_rows_f32(place..place + 1, &mut exact)?;
                self.extend(to, shape.0, |row| T::from_f32(exact[row]));
                continue;
            }
            self.extend(to, shape.0, |row| {
                T::from_f32(f32::from(codes[row * columns.len() + index]) * (scales[row] / 127.0))
            });
        }
        Ok(())
    }

    /// Appends the values of the layer's rows, by the stored row.
    fn extend<T>(&self, to: &mut Vec<T>, stored_rows: usize, value: impl Fn(usize) -> T) {
        match self.order() {
            None => to.extend((0..stored_rows).map(value)),
            Some(order) => to.extend(order.iter().map(|row| value(*row))),
        }
    }
}

/// The rows of one stored weight, `[out, in]` in the order in which the layer stacks them.
#[derive(Debug, Clone)]
pub enum StoredWeight<'a> {
    /// 16- or 32-bit.
    Float(FloatRows<'a>),
    /// bitsandbytes int8.
    Int8(CodeRows<'a>),
}

/// Rows of codes in [−127, 127], borrowed from the checkpoint, and their scales.
#[derive(Debug, Clone)]
pub struct CodeRows<'a> {
    codes: ArrayView2<'a, i8>,
    order: Option<&'a [usize]>,
    scales: Vec<f32>,
}

impl<'a> CodeRows<'a> {
    /// Shape `(N, K)`.
    pub fn dim(&self) -> (usize, usize) {
        (self.scales.len(), self.codes.ncols())
    }

    /// The K codes of row `index`.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn row(&self, index: usize) -> &'a [i8] {
        let stored = self.order.map_or(index, |order| order[index]);
        self.codes
            .index_axis_move(ndarray::Axis(0), stored)
            .to_slice()
            .expect("a checkpoint's codes are row-major")
    }

    /// The absmax of each row (`SCB`): row `n` is `row(n) · scales[n] / 127`.
    pub fn scales(&self) -> ArrayView1<'_, f32> {
        ArrayView1::from(&self.scales)
    }

    /// Row `index` as numbers.
    pub(super) fn dequantize(&self, index: usize, out: &mut [f32]) {
        dequantize_row(self.row(index), self.scales[index], out);
    }
}

impl WeightRows for FloatRows<'_> {
    fn count(&self) -> usize {
        self.dim().0
    }

    fn read(&self, rows: std::ops::Range<usize>, row: &mut dyn FnMut(int8_core::FloatSlice<'_>)) {
        FloatRows::read(self, rows, row);
    }
}
