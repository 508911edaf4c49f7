//! Where the weights of a layer lie in a checkpoint, and how a backend gets at them: stacked from parts, transposed,
//! reordered, 16-bit or already int8.

use half::{bf16, f16};
use int8_core::FloatType;
use ndarray::{Array2, ArrayView2, Axis, concatenate};

use crate::Error;
use crate::checkpoint::{Checkpoint, CheckpointError, DType, ReadAs, TensorView};

/// One stored weight that makes up a linear layer, alone or with others.
#[derive(Debug, Clone)]
pub(crate) struct Part {
    name: String,
    transposed: bool,
    /// The weight is this one of those that are stored as one tensor `[experts, out, in]`, under the name itself.
    slab: Option<usize>,
    rows: Rows,
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
        Self { name: name.to_owned(), transposed: false, slab: None, rows: Rows::All }
    }

    /// The weight is stored `[in, out]` unless it is int8.
    pub(crate) fn conv1d(self) -> Self {
        Self { transposed: true, ..self }
    }

    /// One of the weights `[experts, out, in]` that the tensor `name` itself holds.
    pub(crate) fn slab(self, index: usize) -> Self {
        Self { slab: Some(index), ..self }
    }

    /// The name of its weight below the checkpoint's root, and whether a 16-bit one is stored `[in, out]`.
    pub(crate) fn stored(&self) -> (String, bool) {
        (format!("{}.weight", self.name), self.transposed)
    }

    /// Only these rows.
    pub(crate) fn rows(self, rows: Rows) -> Self {
        Self { rows, ..self }
    }

    fn select<T: Copy>(&self, matrix: Array2<T>) -> Array2<T> {
        match &self.rows {
            Rows::All => matrix,
            Rows::Gather { rows, .. } => matrix.select(Axis(0), rows),
        }
    }

    fn select_vector<T: Copy>(&self, vector: Vec<T>) -> Vec<T> {
        match &self.rows {
            Rows::All => vector,
            Rows::Gather { rows, .. } => rows.iter().map(|row| vector[*row]).collect(),
        }
    }
}

/// A floating-point matrix, row-major, in the type it is stored in.
#[derive(Debug, Clone)]
pub enum FloatMatrix {
    /// 32-bit (also what F64 is rounded to).
    F32(Array2<f32>),
    /// IEEE half precision.
    F16(Array2<f16>),
    /// bfloat16.
    Bf16(Array2<bf16>),
}

impl FloatMatrix {
    /// Type of the elements.
    pub fn float_type(&self) -> FloatType {
        match self {
            Self::F32(_) => FloatType::F32,
            Self::F16(_) => FloatType::F16,
            Self::Bf16(_) => FloatType::Bf16,
        }
    }
}

/// The weight of one part as a checkpoint holds it.
#[derive(Debug, Clone)]
pub enum StoredWeight {
    /// 16- or 32-bit, `[out, in]`.
    Float(FloatMatrix),
    /// bitsandbytes int8: codes `[out, in]` and the absmax of each output row.
    Int8 {
        /// Codes `[out, in]`, in [−127, 127].
        codes: Array2<i8>,
        /// `SCB`.
        scales: Vec<f32>,
    },
}

/// A linear layer in a checkpoint: `y = x·Wᵀ + b`, `W [outputs, inputs]` stacked from its parts.
#[derive(Debug, Clone)]
pub struct LinearSource {
    checkpoint: Checkpoint,
    name: String,
    parts: Vec<Part>,
    part_outputs: Vec<usize>,
    inputs: usize,
    bias: Option<Vec<f32>>,
}

impl LinearSource {
    /// Finds the parts below `root` and checks that together they are `[outputs, inputs]`.
    pub(crate) fn find(
        checkpoint: &Checkpoint,
        root: &str,
        parts: Vec<Part>,
        outputs: &[usize],
        inputs: usize,
    ) -> Result<Self, Error> {
        let parts: Vec<Part> =
            parts.into_iter().map(|part| Part { name: format!("{root}{}", part.name), ..part }).collect();
        // A fused projection is one part that holds all outputs.
        let part_outputs =
            if parts.len() == outputs.len() { outputs.to_vec() } else { vec![outputs.iter().sum()] };
        let mut bias: Option<Vec<f32>> = None;
        let mut biases = 0;
        for (part, outputs) in parts.iter().zip(&part_outputs) {
            let stored = match &part.rows {
                Rows::All => *outputs,
                Rows::Gather { of, .. } => *of,
            };
            let weight = part.tensor(checkpoint)?;
            let transposed = part.transposed && weight.dtype() != DType::I8;
            weight.expect_shape(&if transposed { [inputs, stored] } else { [stored, inputs] })?;
            if let Some(tensor) = checkpoint.get(&format!("{}.bias", part.name)) {
                let values = part.select_vector(tensor.expect_shape(&[stored])?.to_f32()?);
                bias.get_or_insert_default().extend(values);
                biases += 1;
            }
        }
        if biases != 0 && biases != parts.len() {
            return Err(Error::Input(format!(
                "{}: some of the {} weights that form this layer have a bias and some have none",
                parts[0].name,
                parts.len()
            )));
        }
        let name = parts.iter().map(|part| part.name.as_str()).collect::<Vec<_>>().join("+");
        Ok(Self { checkpoint: checkpoint.clone(), name, parts, part_outputs, inputs, bias })
    }

    /// The layer's name in the checkpoint; stacked parts are joined by `+`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Outputs N.
    pub fn outputs(&self) -> usize {
        self.part_outputs.iter().sum()
    }

    /// Inputs K.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Bias `[N]`.
    pub fn bias(&self) -> Option<&[f32]> {
        self.bias.as_deref()
    }

    /// Number of parts; each is a weight of its own to a scheme with one constant a tensor.
    pub fn parts(&self) -> usize {
        self.parts.len()
    }

    /// Whether the checkpoint holds any part of it as int8.
    ///
    /// # Errors
    /// When a tensor is missing.
    pub(crate) fn is_int8(&self) -> Result<bool, Error> {
        for part in &self.parts {
            if part.tensor(&self.checkpoint)?.dtype() == DType::I8 {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Reads part `index`, `[out, in]` in the order the layer stacks it.
    ///
    /// # Errors
    /// When the tensor is no floating-point matrix and no bitsandbytes int8 weight.
    ///
    /// # Panics
    /// If there is no such part.
    pub fn part(&self, index: usize) -> Result<StoredWeight, Error> {
        let part = &self.parts[index];
        if part.slab.is_none()
            && let Some(int8) = self.checkpoint.int8_linear(&part.name)?
        {
            let scales = part.select_vector(int8.scales);
            return Ok(StoredWeight::Int8 { codes: part.select(int8.codes.to_owned()), scales });
        }
        let tensor = part.tensor(&self.checkpoint)?;
        Ok(StoredWeight::Float(read_matrix(&tensor)?.map(
            |matrix| part.arrange(matrix),
            |matrix| part.arrange(matrix),
            |matrix| part.arrange(matrix),
        )))
    }

    /// The whole weight in floating point, in the stored type when all parts share one. int8 parts are dequantised to f32.
    ///
    /// # Errors
    /// As [`part`](Self::part).
    pub fn float(&self) -> Result<FloatMatrix, Error> {
        let parts = (0..self.parts.len())
            .map(|index| {
                Ok(match self.part(index)? {
                    StoredWeight::Float(matrix) => matrix,
                    StoredWeight::Int8 { codes, scales } => {
                        FloatMatrix::F32(dequantize(codes.view(), &scales))
                    }
                })
            })
            .collect::<Result<Vec<_>, Error>>()?;
        Ok(FloatMatrix::stack(parts))
    }

    /// The columns `columns` of the weight exactly as stored, each column contiguous: `[columns, N]`. `None` when the
    /// checkpoint holds int8 codes and nothing else. Where it holds exact columns beside them, these, in f32, and for the
    /// others what the codes stand for.
    ///
    /// # Errors
    /// As [`part`](Self::part), and for a column out of range.
    pub fn exact_columns(&self, columns: &[usize]) -> Result<Option<FloatMatrix>, Error> {
        let mut parts = Vec::new();
        for part in &self.parts {
            let tensor = part.tensor(&self.checkpoint)?;
            if tensor.dtype() == DType::I8 {
                if !self.checkpoint.has_outlier_columns() {
                    return Ok(None);
                }
                parts.push(FloatMatrix::F32(part.int8_columns(&self.checkpoint, &tensor, columns)?));
                continue;
            }
            // `[N, columns]`, so that the rows can be selected and stacked like those of a weight.
            let matrix = match tensor.dtype() {
                DType::F16 => FloatMatrix::F16(part.columns(&tensor, columns)?),
                DType::BF16 => FloatMatrix::Bf16(part.columns(&tensor, columns)?),
                _ => FloatMatrix::F32(part.columns(&tensor, columns)?),
            };
            parts.push(matrix);
        }
        Ok(Some(FloatMatrix::stack(parts).transposed()))
    }
}

impl Part {
    fn tensor<'a>(&self, checkpoint: &'a Checkpoint) -> Result<TensorView<'a>, Error> {
        Ok(match self.slab {
            None => checkpoint.tensor(&format!("{}.weight", self.name))?,
            Some(index) => checkpoint.tensor(&self.name)?.slab(index)?,
        })
    }

    fn arrange<T: Copy + Clone>(&self, matrix: Array2<T>) -> Array2<T> {
        let matrix =
            if self.transposed { matrix.reversed_axes().as_standard_layout().into_owned() } else { matrix };
        self.select(matrix)
    }

    /// Columns `[N, columns]` of an int8 weight: exact where they are stored beside it.
    fn int8_columns(
        &self,
        checkpoint: &Checkpoint,
        codes: &TensorView<'_>,
        columns: &[usize],
    ) -> Result<Array2<f32>, Error> {
        let shape = codes.matrix_shape()?;
        let scales = checkpoint.tensor(&format!("{}.SCB", self.name))?.expect_shape(&[shape.0])?.to_f32()?;
        let codes: Vec<i8> = codes.columns(columns)?;
        let codes = ArrayView2::from_shape((shape.0, columns.len()), &codes)
            .map_err(|error| Error::Input(format!("{}: {error}", self.name)))?;
        let mut values = dequantize(codes, &scales);
        if let Some(kept) = checkpoint.outlier_columns(&self.name, shape)? {
            for (index, column) in columns.iter().enumerate() {
                let Ok(place) = kept.columns.binary_search(column) else { continue };
                let mut exact = vec![0.0; shape.0];
                kept.weights.read_rows_f32(place..place + 1, &mut exact)?;
                values.column_mut(index).assign(&ndarray::ArrayView1::from(&exact));
            }
        }
        Ok(self.select(values))
    }

    fn columns<T: ReadAs>(&self, tensor: &TensorView<'_>, columns: &[usize]) -> Result<Array2<T>, Error> {
        let (rows, width) = tensor.matrix_shape()?;
        let outputs = if self.transposed { width } else { rows };
        let values = if self.transposed {
            let mut values = vec![T::default(); columns.len() * width];
            for (row, &column) in values.chunks_exact_mut(width.max(1)).zip(columns) {
                tensor.read_rows(column..column + 1, row)?;
            }
            shaped(tensor, (columns.len(), width), values)?.reversed_axes()
        } else {
            shaped(tensor, (outputs, columns.len()), tensor.columns(columns)?)?
        };
        Ok(self.select(values))
    }
}

impl FloatMatrix {
    /// Shape `(rows, columns)`.
    pub fn dim(&self) -> (usize, usize) {
        match self {
            Self::F32(matrix) => matrix.dim(),
            Self::F16(matrix) => matrix.dim(),
            Self::Bf16(matrix) => matrix.dim(),
        }
    }

    /// Bytes of one element.
    pub fn element_bytes(&self) -> usize {
        match self {
            Self::F32(_) => 4,
            Self::F16(_) | Self::Bf16(_) => 2,
        }
    }

    /// Bytes of all elements.
    pub fn bytes(&self) -> usize {
        let (rows, columns) = self.dim();
        rows * columns * self.element_bytes()
    }

    /// All elements as f32: exact.
    pub fn to_f32(&self) -> Array2<f32> {
        match self {
            Self::F32(matrix) => matrix.clone(),
            Self::F16(matrix) => matrix.mapv(f16::to_f32),
            Self::Bf16(matrix) => matrix.mapv(bf16::to_f32),
        }
    }

    fn map(
        self,
        f32: impl FnOnce(Array2<f32>) -> Array2<f32>,
        f16: impl FnOnce(Array2<f16>) -> Array2<f16>,
        bf16: impl FnOnce(Array2<bf16>) -> Array2<bf16>,
    ) -> Self {
        match self {
            Self::F32(matrix) => Self::F32(f32(matrix)),
            Self::F16(matrix) => Self::F16(f16(matrix)),
            Self::Bf16(matrix) => Self::Bf16(bf16(matrix)),
        }
    }

    fn transposed(self) -> Self {
        fn transpose<T: Copy>(matrix: Array2<T>) -> Array2<T> {
            matrix.reversed_axes().as_standard_layout().into_owned()
        }
        self.map(transpose, transpose, transpose)
    }

    /// Stacks matrices of equal width along their rows; of different types in f32, which holds them all exactly.
    fn stack(mut parts: Vec<Self>) -> Self {
        fn join<T: Copy>(parts: Vec<Array2<T>>) -> Array2<T> {
            let views: Vec<_> = parts.iter().map(|part| part.view()).collect();
            concatenate(Axis(0), &views).expect("the widths were checked when the layer was found")
        }
        if parts.len() == 1 {
            return parts.remove(0);
        }
        if parts.iter().all(|part| matches!(part, Self::F16(_))) {
            let parts = parts
                .into_iter()
                .filter_map(|part| if let Self::F16(part) = part { Some(part) } else { None });
            return Self::F16(join(parts.collect()));
        }
        if parts.iter().all(|part| matches!(part, Self::Bf16(_))) {
            let parts = parts
                .into_iter()
                .filter_map(|part| if let Self::Bf16(part) = part { Some(part) } else { None });
            return Self::Bf16(join(parts.collect()));
        }
        Self::F32(join(parts.iter().map(Self::to_f32).collect()))
    }
}

/// Reads a matrix in its stored type; F64 is rounded to f32.
///
/// # Errors
/// When the tensor is no matrix of floating-point numbers.
pub(crate) fn read_matrix(tensor: &TensorView<'_>) -> Result<FloatMatrix, Error> {
    let shape = tensor.matrix_shape()?;
    Ok(match tensor.dtype() {
        DType::F16 => FloatMatrix::F16(shaped(tensor, shape, tensor.to_f16()?)?),
        DType::BF16 => FloatMatrix::Bf16(shaped(tensor, shape, tensor.to_bf16()?)?),
        DType::F32 | DType::F64 => FloatMatrix::F32(shaped(tensor, shape, tensor.to_f32()?)?),
        // Integers could be read as numbers, but as a weight they are codes whose scales are not known.
        found => {
            return Err(CheckpointError::Dtype {
                file: tensor.file().to_owned(),
                tensor: tensor.name().to_owned(),
                expected: "F32, F16 or BF16",
                found,
                help: "Integer weights are read as int8 only with bitsandbytes' scales (SCB) beside them",
            }
            .into());
        }
    })
}

fn shaped<T>(tensor: &TensorView<'_>, shape: (usize, usize), values: Vec<T>) -> Result<Array2<T>, Error> {
    Array2::from_shape_vec(shape, values).map_err(|error| {
        CheckpointError::Shape {
            file: tensor.file().to_owned(),
            tensor: tensor.name().to_owned(),
            expected: format!("{shape:?} ({error})"),
            found: tensor.shape().to_vec(),
        }
        .into()
    })
}

/// `codes[n, k]·scales[n]/127`.
fn dequantize(codes: ArrayView2<i8>, scales: &[f32]) -> Array2<f32> {
    let mut values = codes.mapv(f32::from);
    for (mut row, scale) in values.rows_mut().into_iter().zip(scales) {
        row *= scale / 127.0;
    }
    values
}
