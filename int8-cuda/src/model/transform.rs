//! Functions of rows (norms, activations, gates, scaling) and rows looked up by index.

use std::ops::Range;

use int8_core::FloatType;
use int8_cuda_sys as sys;

use super::linear::FloatWeight;
use super::tensor::{Store, Tensor, element};
use crate::convert;
use crate::device::Stream;
use crate::error::{Error, check};
use crate::matrix::Buffer;
use crate::params::identity;

/// A function of a row `x [k]`.
#[derive(Debug, Clone, Copy)]
pub enum Function<'a> {
    /// `x`
    Identity,
    /// `x/√(mean(x²) + eps)·gain`
    RmsNorm {
        /// `[k]`
        gain: &'a Buffer<f32>,
        /// ε
        eps: f32,
    },
    /// `(x − mean)/√(var + eps)·gain + bias`
    LayerNorm {
        /// `[k]`
        gain: &'a Buffer<f32>,
        /// `[k]`
        bias: Option<&'a Buffer<f32>>,
        /// ε
        eps: f32,
    },
    /// `act(x)`
    Activation(Activation),
    /// `act(x[..k])·x[k..]`, `x [2k]`
    Gated(Activation),
    /// `factor·x`, then `cap·tanh(·/cap)`
    Scale {
        /// The factor.
        factor: f32,
        /// The cap.
        cap: Option<f32>,
    },
}

/// An activation function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `max(x, 0)`
    Relu,
    /// `x·Φ(x)`, by the error function
    Gelu,
    /// `x/2·(1 + tanh(√(2/π)(x + 0.044715x³)))`
    GeluTanh,
    /// `x/(1 + e⁻ˣ)`
    Silu,
}

impl Activation {
    fn raw(self) -> i32 {
        match self {
            Self::Relu => sys::INT8_CUDA_RELU,
            Self::Gelu => sys::INT8_CUDA_GELU,
            Self::GeluTanh => sys::INT8_CUDA_GELU_TANH,
            Self::Silu => sys::INT8_CUDA_SILU,
        }
    }
}

impl Function<'_> {
    /// Whether it is [`Self::Identity`].
    pub fn is_identity(&self) -> bool {
        matches!(self, Self::Identity)
    }

    /// Columns of the input for k of the output.
    pub fn input_width(&self, k: usize) -> usize {
        if matches!(self, Self::Gated(_)) { 2 * k } else { k }
    }

    /// The function as the kernels take it, for rows of k columns.
    pub(super) fn raw(&self, k: usize) -> Result<sys::int8_cuda_transform, Error> {
        let none = identity();
        let vector = |values: &Buffer<f32>| {
            if values.len() == k {
                return Ok(values.pointer().cast_const());
            }
            let (expected, found) = ((1, k), (1, values.len()));
            Err(Error::Shape { operation: "norm", what: "gain or bias", expected, found })
        };
        Ok(match *self {
            Self::Identity => none,
            Self::RmsNorm { gain, eps } => sys::int8_cuda_transform {
                function: sys::INT8_CUDA_RMS_NORM,
                gain: vector(gain)?,
                eps,
                ..none
            },
            Self::LayerNorm { gain, bias, eps } => sys::int8_cuda_transform {
                function: sys::INT8_CUDA_LAYER_NORM,
                gain: vector(gain)?,
                bias: bias.map_or(Ok(std::ptr::null()), vector)?,
                eps,
                ..none
            },
            Self::Activation(activation) => sys::int8_cuda_transform {
                function: sys::INT8_CUDA_ACTIVATION,
                activation: activation.raw(),
                ..none
            },
            Self::Gated(activation) => sys::int8_cuda_transform {
                function: sys::INT8_CUDA_GATED,
                activation: activation.raw(),
                ..none
            },
            Self::Scale { factor, cap } => sys::int8_cuda_transform {
                function: sys::INT8_CUDA_SCALE,
                factor,
                cap: cap.unwrap_or(0.0),
                ..none
            },
        })
    }
}

/// `y (+)= function(x)`, row by row; `y` takes as many rows as `x` has, or, to be added to, must have them.
///
/// # Errors
/// [`Error::Shape`] where widths or rows do not fit, [`Error::Device`].
pub fn transform(
    stream: &Stream,
    x: &Tensor,
    function: &Function<'_>,
    y: &mut Tensor,
    store: Store,
) -> Result<(), Error> {
    x.expect_width("transform", function.input_width(y.width()))?;
    match store {
        Store::Overwrite => y.set_rows(x.rows())?,
        Store::Accumulate if y.rows() != x.rows() => {
            let (expected, found) = ((x.rows(), y.width()), (y.rows(), y.width()));
            return Err(Error::Shape { operation: "transform", what: "y", expected, found });
        }
        Store::Accumulate => {}
    }
    let k = y.width();
    enqueue(stream, Operand::of(x), Operand::of(y), (x.rows(), k, 1), function, store)
}

/// `x = function(x)`, row by row.
///
/// # Errors
/// [`Error::Shape`] where the function does not fit, [`Error::Device`].
pub fn transform_in_place(stream: &Stream, x: &mut Tensor, function: &Function<'_>) -> Result<(), Error> {
    let width = x.width();
    transform_columns(stream, x, 0..width, width, function)
}

/// `x[:, run] = function(x[:, run])` for each run of `k` columns among `columns`.
///
/// # Errors
/// [`Error::Shape`] where `columns` are not whole runs inside `x` or the function does not fit, [`Error::Device`].
pub fn transform_columns(
    stream: &Stream,
    x: &mut Tensor,
    columns: Range<usize>,
    k: usize,
    function: &Function<'_>,
) -> Result<(), Error> {
    let groups = columns.len().checked_div(k).unwrap_or(0);
    if columns.end > x.width() || groups * k != columns.len() || function.input_width(k) != k {
        let (expected, found) = ((groups, k), (columns.start, columns.end));
        return Err(Error::Shape { operation: "transform", what: "columns", expected, found });
    }
    let x = Operand { first: columns.start, ..Operand::of(x) };
    enqueue(stream, x, x, (x.rows, k, groups), function, Store::Overwrite)
}

#[derive(Clone, Copy)]
struct Operand {
    pointer: *mut u8,
    rows: usize,
    ld: usize,
    first: usize,
    bytes: usize,
    element: i32,
}

impl Operand {
    fn of(x: &Tensor) -> Self {
        Self {
            pointer: x.pointer().cast(),
            rows: x.rows(),
            ld: x.width(),
            first: 0,
            bytes: x.element().bytes(),
            element: element(x.element()),
        }
    }

    fn start(&self) -> *mut std::ffi::c_void {
        self.pointer.wrapping_add(self.first * self.bytes).cast()
    }
}

fn enqueue(
    stream: &Stream,
    x: Operand,
    y: Operand,
    (rows, k, groups): (usize, usize, usize),
    function: &Function<'_>,
    store: Store,
) -> Result<(), Error> {
    if rows == 0 || k == 0 || groups == 0 {
        return Ok(());
    }
    let params = sys::int8_cuda_transform_params {
        x: x.start(),
        y: y.start(),
        stream: stream.raw()?,
        rows: convert::size(rows),
        k: convert::size(k),
        groups: convert::size(groups),
        ldx: convert::size(x.ld),
        ldy: convert::size(y.ld),
        x_element: x.element,
        y_element: y.element,
        store: store.raw(),
        reserved: 0,
        transform: function.raw(k)?,
    };
    // SAFETY: the operands were checked to have these rows and columns; freeing their memory waits for the device.
    let status = unsafe { sys::int8_cuda_apply_transform(&raw const params) };
    check("transform", status, || format!("{rows} rows of {groups}×{k}, {function:?}"))
}

/// Rows of a table, by index.
#[derive(Debug, Clone, Copy)]
pub struct Lookup<'a> {
    table: *const std::ffi::c_void,
    element: FloatType,
    width: usize,
    index: &'a Buffer<i32>,
    first: usize,
    offset: usize,
}

impl<'a> Lookup<'a> {
    /// `table[index[first + r] + offset]`. The caller has checked that the indices lie inside the table.
    pub fn weight(table: &'a FloatWeight, (index, first): (&'a Buffer<i32>, usize), offset: usize) -> Self {
        let (element, width) = (table.element(), table.dim().1);
        Self { table: table.pointer(), element, width, index, first, offset }
    }

    /// `x[index[first + r]]`, likewise.
    pub fn rows(x: &'a Tensor, (index, first): (&'a Buffer<i32>, usize)) -> Self {
        let (element, width) = (x.element(), x.width());
        Self { table: x.pointer(), element, width, index, first, offset: 0 }
    }
}

/// Enqueues `out[r] (+)= Σ lookups[r]` for `rows` rows, f32; at most two lookups.
///
/// # Errors
/// [`Error::Shape`], [`Error::Device`].
pub fn gather(
    stream: &Stream,
    lookups: &[Lookup<'_>],
    rows: usize,
    out: &mut Tensor,
    store: Store,
) -> Result<(), Error> {
    let width = out.width();
    if store == Store::Overwrite {
        out.set_rows(rows)?;
    }
    let fits = |lookup: &Lookup<'_>| lookup.width == width && lookup.first + rows <= lookup.index.len();
    let output = out.rows() == rows && out.element() == FloatType::F32;
    if lookups.len() > 2 || !lookups.iter().all(fits) || !output {
        let (expected, found) = ((rows, width), (out.rows(), lookups.len()));
        return Err(Error::Shape { operation: "gather", what: "tables or output", expected, found });
    }
    if rows == 0 || width == 0 {
        return Ok(());
    }
    let parts = |at: usize| {
        lookups.get(at).map_or((std::ptr::null(), std::ptr::null(), 0, 0), |lookup| {
            let index = lookup.index.pointer().cast_const().wrapping_add(lookup.first);
            (lookup.table, index, convert::size(lookup.offset), element(lookup.element))
        })
    };
    let ((table, index, offset, of_table), (second, second_index, second_offset, of_second)) =
        (parts(0), parts(1));
    let params = sys::int8_cuda_gather_params {
        table,
        index,
        second,
        second_index,
        out: out.pointer().cast(),
        stream: stream.raw()?,
        rows: convert::size(rows),
        width: convert::size(width),
        offset,
        second_offset,
        element: of_table,
        second_element: of_second,
        store: store.raw(),
        reserved: 0,
    };
    // SAFETY: indices and output were checked to have these sizes; the caller of `Lookup` vouches for the indices.
    let status = unsafe { sys::int8_cuda_gather(&raw const params) };
    check("gather", status, || format!("{rows} rows of {width}"))
}

/// Enqueues `out[index[r]] += weights[r]·x[r]`, f32. No index stands twice, and each is a row of `out`: the caller has checked.
///
/// # Errors
/// [`Error::Shape`], [`Error::Device`].
pub fn scatter_add(
    stream: &Stream,
    x: &Tensor,
    index: &Buffer<i32>,
    weights: &Buffer<f32>,
    out: &mut Tensor,
) -> Result<(), Error> {
    let (rows, width) = (x.rows(), x.width());
    out.expect_width("scatter", width)?;
    let types = x.element() == FloatType::F32 && out.element() == FloatType::F32;
    if index.len() < rows || weights.len() < rows || !types {
        let (expected, found) = ((rows, rows), (index.len(), weights.len()));
        return Err(Error::Shape { operation: "scatter", what: "indices and weights", expected, found });
    }
    if rows == 0 || width == 0 {
        return Ok(());
    }
    let params = sys::int8_cuda_scatter_add_params {
        x: x.pointer().cast_const().cast(),
        index: index.pointer(),
        weights: weights.pointer(),
        out: out.pointer().cast(),
        stream: stream.raw()?,
        rows: convert::size(rows),
        width: convert::size(width),
    };
    // SAFETY: the operands were checked to have these sizes; the caller vouches for the indices.
    let status = unsafe { sys::int8_cuda_scatter_add(&raw const params) };
    check("scatter", status, || format!("{rows} rows of {width}"))
}
