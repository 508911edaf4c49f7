//! Weights of linear layers: int8, built from rows as they arrive, or in floating point.

use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, Ordering};

use int8_core::{Encoding, FloatType, Granularity};
use int8_cuda_sys as sys;

use super::exact::ExactColumns;
use super::tensor::{Tensor, element};
use super::upload::Staged;
use crate::convert;
use crate::device::{Device, Stream};
use crate::error::{Error, check};
use crate::matrix::Buffer;
use crate::settings;
use crate::weight::RawWeight;

/// `W [n, k]` in int8 with its quantization parameters.
#[derive(Debug)]
pub struct Int8Linear {
    n: usize,
    k: usize,
    /// i8 `[n, ld]`; none of a weight that is offloaded
    codes: Buffer<i8>,
    /// Where the codes of such a weight are at the moment.
    offloaded: AtomicPtr<i8>,
    scales: Buffer<f32>,
    zero_points: Option<Buffer<i32>>,
    code_sums: Buffer<i32>,
    exact: ExactColumns,
}

impl Int8Linear {
    /// Output channels and input features, `(n, k)`.
    pub fn dim(&self) -> (usize, usize) {
        (self.n, self.k)
    }

    /// Device memory in bytes, with that of exact columns.
    pub fn bytes(&self) -> usize {
        let zero_points = self.zero_points.as_ref().map_or(0, |zeros| 4 * zeros.len());
        self.codes.len() + 8 * self.n + zero_points + self.exact.bytes()
    }

    /// Keeps columns of the weight beside its codes: `values [columns, n]`, of the type that activations are computed in. From
    /// now on outliers in these columns are multiplied with them; those in other columns with dequantised codes, as all are
    /// before. The columns of a weight are chosen once, before an operation with it is captured in a graph.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a column that is absent or stands twice, or when columns were chosen before; [`Error::Shape`],
    /// [`Error::OutOfMemory`], [`Error::Device`].
    pub fn keep_exact(&self, device: &Device, columns: &[usize], values: Tensor) -> Result<(), Error> {
        self.exact.set(device, self.dim(), columns, values)
    }

    /// Number of columns that are kept.
    pub fn exact_columns(&self) -> usize {
        self.exact.len()
    }

    /// Whether its exact columns, if there are any, can be multiplied with activations of this type.
    pub(super) fn fits(&self, compute: FloatType) -> bool {
        self.exact.element().is_none_or(|element| element == compute)
    }

    /// Enqueues: `count` of its input features from `first` on, and behind them `zeros` features with weights of 0. Codes and scales
    /// stay as they are; columns that are kept exactly are not taken along.
    ///
    /// # Errors
    /// [`Error::Shape`] where it has no such features; [`Error::OutOfMemory`], [`Error::Device`].
    pub fn features(self, stream: &Stream, first: usize, count: usize, zeros: usize) -> Result<Self, Error> {
        let Self { n, .. } = self;
        if first + count > self.k {
            let (expected, found) = (self.dim(), (n, first + count));
            return Err(Error::Shape { operation: "part of a weight", what: "features", expected, found });
        }
        let k = count + zeros;
        let codes = Buffer::zeros(stream.device(), n * leading(k))?;
        let params = sys::int8_cuda_slice_params {
            codes: self.codes.pointer(),
            zero_points: Buffer::pointer_or_null(self.zero_points.as_ref()),
            out: codes.pointer(),
            code_sums: self.code_sums.pointer(),
            stream: stream.raw()?,
            n: convert::size(n),
            first: convert::size(first),
            count: convert::size(count),
            zeros: convert::size(zeros),
            ldq: convert::size(leading(self.k)),
            ldo: convert::size(leading(k)),
        };
        // SAFETY: the sizes are those of the buffers; freeing the former codes waits for the device.
        let status = unsafe { sys::int8_cuda_slice(&raw const params) };
        check("part of a weight", status, || format!("W [{n}, {k}]"))?;
        let exact = ExactColumns::default();
        Ok(Self { k, codes, exact, ..self })
    }

    /// Takes the codes, which are elsewhere from now on. Waits for the stream.
    pub(super) fn take_codes(&mut self, stream: &Stream) -> Result<Buffer<i8>, Error> {
        stream.synchronize()?;
        let none = Buffer::zeros(stream.device(), 0)?;
        Ok(std::mem::replace(&mut self.codes, none))
    }

    /// Where the codes are at the moment.
    pub(super) fn use_codes(&self, codes: *mut i8) {
        self.offloaded.store(codes, Ordering::Relaxed);
    }

    pub(crate) fn raw(&self) -> RawWeight {
        let offloaded = self.offloaded.load(Ordering::Relaxed);
        self.exact.beside(RawWeight {
            codes: if self.codes.is_empty() { offloaded } else { self.codes.pointer() },
            scales: self.scales.pointer(),
            zero_points: self
                .zero_points
                .as_ref()
                .map_or(std::ptr::null(), |zeros| zeros.pointer().cast_const()),
            code_sums: self.code_sums.pointer(),
            exact: std::ptr::null(),
            exact_index: std::ptr::null(),
            exact_strides: (0, 0),
            ld: convert::size(leading(self.k)),
        })
    }
}

fn leading(k: usize) -> usize {
    k.next_multiple_of(16)
}

/// Builds an [`Int8Linear`] row by row, in order.
#[derive(Debug)]
pub struct Int8LinearBuilder {
    linear: Int8Linear,
    filled: usize,
    encoding: Encoding,
    workspace: Buffer<u8>,
}

impl Int8LinearBuilder {
    /// For `W [n, k]`.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::Device`].
    pub fn new(device: &Device, n: usize, k: usize, encoding: Encoding) -> Result<Self, Error> {
        let zero_points = match encoding {
            Encoding::Absmax => None,
            Encoding::Zeropoint => Some(Buffer::zeros(device, n)?),
        };
        let linear = Int8Linear {
            n,
            k,
            codes: Buffer::zeros(device, n * leading(k))?,
            offloaded: AtomicPtr::default(),
            scales: Buffer::zeros(device, n)?,
            zero_points,
            code_sums: Buffer::zeros(device, n)?,
            exact: ExactColumns::default(),
        };
        let workspace = Buffer::zeros(device, 0)?;
        Ok(Self { linear, filled: 0, encoding, workspace })
    }

    /// Enqueues the quantisation of the next `rows` rows, which were staged. With [`Granularity::Tensor`] they get one scale.
    ///
    /// # Errors
    /// [`Error::Shape`] for more rows than are left or staged, [`Error::OutOfMemory`], [`Error::Device`].
    pub fn quantize(
        &mut self,
        stream: &Stream,
        staged: &Staged<'_>,
        float_type: FloatType,
        rows: usize,
        granularity: Granularity,
    ) -> Result<(), Error> {
        let k = self.linear.k;
        self.expect_room(rows)?;
        staged.expect(rows * k * float_type.bytes())?;
        if rows == 0 {
            return Ok(());
        }
        let (first, ld) = (self.filled, leading(k));
        let mut params = sys::int8_cuda_quantize_params {
            x: staged.pointer().cast(),
            codes: self.linear.codes.pointer().wrapping_add(first * ld),
            scales: self.linear.scales.pointer().wrapping_add(first),
            zero_points: match &self.linear.zero_points {
                Some(zeros) => zeros.pointer().wrapping_add(first),
                None => std::ptr::null_mut(),
            },
            code_sums: self.linear.code_sums.pointer().wrapping_add(first),
            workspace: std::ptr::null_mut(),
            stream: stream.raw()?,
            workspace_bytes: 0,
            rows: convert::size(rows),
            inner: convert::size(k),
            ldx: convert::size(k),
            ldq: convert::size(ld),
            element: element(float_type),
            encoding: settings::encoding(self.encoding),
            granularity: settings::granularity(granularity),
            rule: sys::INT8_CUDA_RULE_NONE,
            outlier_granularity: sys::INT8_CUDA_COLUMN,
            row_maximum: sys::INT8_CUDA_MAXIMUM_PAPER,
            threshold: 0.0,
            reserved: 0,
        };
        let shape = || format!("W rows [{rows}, {k}] {}", float_type.name());
        let mut bytes = 0;
        // SAFETY: the function reads sizes and settings only.
        let status = unsafe { sys::int8_cuda_quantize_workspace(&raw const params, &raw mut bytes) };
        check("quantize", status, shape)?;
        if bytes > self.workspace.len() {
            self.workspace = Buffer::zeros(stream.device(), bytes)?;
        }
        params.workspace = self.workspace.pointer().cast();
        params.workspace_bytes = self.workspace.len();
        // SAFETY: rows and staged bytes were checked; freeing any of the memory waits for the device.
        check("quantize", unsafe { sys::int8_cuda_quantize(&raw const params) }, shape)?;
        self.filled += rows;
        Ok(())
    }

    /// Copies the next rows, `codes [rows, k]` row-major with one scale each.
    ///
    /// # Errors
    /// [`Error::Shape`] for more rows than are left, or codes that are no whole rows; [`Error::Device`].
    pub fn append_codes(&mut self, stream: &Stream, codes: &[i8], scales: &[f32]) -> Result<(), Error> {
        let (rows, k, ld) = (scales.len(), self.linear.k, leading(self.linear.k));
        self.expect_room(rows)?;
        if codes.len() != rows * k {
            let (expected, found) = ((rows, k), (1, codes.len()));
            return Err(Error::Shape { operation: "int8 weight", what: "codes", expected, found });
        }
        let mut padded = vec![0_i8; rows * ld];
        let mut sums = Vec::with_capacity(rows);
        for (row, padded) in codes.chunks_exact(k.max(1)).zip(padded.chunks_exact_mut(ld.max(1))) {
            padded[..k].copy_from_slice(row);
            sums.push(row.iter().map(|code| i32::from(*code)).sum::<i32>());
        }
        self.linear.codes.write(stream, self.filled * ld, &padded)?;
        self.linear.scales.write(stream, self.filled, scales)?;
        self.linear.code_sums.write(stream, self.filled, &sums)?;
        self.filled += rows;
        Ok(())
    }

    /// The weight.
    ///
    /// # Errors
    /// [`Error::Shape`] where rows are missing.
    pub fn finish(self) -> Result<Int8Linear, Error> {
        let (n, k) = self.linear.dim();
        if self.filled == n {
            return Ok(self.linear);
        }
        let (expected, found) = ((n, k), (self.filled, k));
        Err(Error::Shape { operation: "int8 weight", what: "rows", expected, found })
    }

    fn expect_room(&self, rows: usize) -> Result<(), Error> {
        let (n, k) = self.linear.dim();
        if self.filled + rows <= n {
            return Ok(());
        }
        let (expected, found) = ((n - self.filled, k), (rows, k));
        Err(Error::Shape { operation: "int8 weight", what: "rows", expected, found })
    }
}

/// `W [n, k]` in floating point, row-major, ld = k.
#[derive(Debug)]
pub struct FloatWeight {
    bytes: Arc<Buffer<u8>>,
    element: FloatType,
    /// Where it is a part of the rows in memory.
    first_row: usize,
    n: usize,
    k: usize,
}

impl FloatWeight {
    /// Zeros.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::Device`].
    pub fn zeros(device: &Device, element: FloatType, n: usize, k: usize) -> Result<Self, Error> {
        let bytes = Arc::new(Buffer::zeros(device, n * k * element.bytes())?);
        Ok(Self { bytes, element, first_row: 0, n, k })
    }

    /// These of its rows, which stay where they are.
    ///
    /// # Panics
    /// If there are no such rows.
    #[must_use]
    pub fn part(&self, rows: std::ops::Range<usize>) -> Self {
        assert!(rows.start <= rows.end && rows.end <= self.n, "rows {rows:?} of {}", self.n);
        let Self { ref bytes, element, first_row, k, .. } = *self;
        Self { bytes: bytes.clone(), element, first_row: first_row + rows.start, n: rows.len(), k }
    }

    /// Enqueues the copy of staged rows to row `first` and those behind it.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::Device`].
    pub fn copy_rows(
        &mut self,
        stream: &Stream,
        staged: &Staged<'_>,
        first: usize,
        rows: usize,
    ) -> Result<(), Error> {
        let row = self.k * self.element.bytes();
        if first + rows > self.n {
            let (expected, found) = ((self.n, self.k), (first + rows, self.k));
            return Err(Error::Shape { operation: "weight", what: "rows", expected, found });
        }
        staged.expect(rows * row)?;
        let shared =
            || Error::Invalid { operation: "weight", shape: "rows that are shared already".to_owned() };
        let bytes = Arc::get_mut(&mut self.bytes).ok_or_else(shared)?;
        staged.copy_to(stream, bytes, (self.first_row + first) * row, rows * row)
    }

    /// Output channels and input features, `(n, k)`.
    pub fn dim(&self) -> (usize, usize) {
        (self.n, self.k)
    }

    /// Type of the elements.
    pub fn element(&self) -> FloatType {
        self.element
    }

    /// Device memory in bytes.
    pub fn bytes(&self) -> usize {
        self.n * self.k * self.element.bytes()
    }

    pub(crate) fn pointer(&self) -> *mut std::ffi::c_void {
        self.bytes.pointer().wrapping_add(self.first_row * self.k * self.element.bytes()).cast()
    }
}
