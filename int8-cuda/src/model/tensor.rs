//! Activations: matrices whose element type and number of rows are known at run time.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use half::{bf16, f16};
use int8_core::FloatType;
use int8_cuda_sys as sys;

use crate::device::{Device, Stream};
use crate::error::Error;
use crate::matrix::Buffer;
use crate::scalar::{as_bytes, from_bytes};

/// Activations `[rows, width]` row-major, ld = width, with room for a largest number of rows.
#[derive(Debug)]
pub struct Tensor {
    bytes: Buffer<u8>,
    element: FloatType,
    largest_rows: usize,
    rows: SharedRows,
    width: usize,
}

/// The number of rows of a [`Tensor`], shared with whoever replays the operations that set it.
#[derive(Debug, Clone, Default)]
pub struct SharedRows(Arc<AtomicUsize>);

impl SharedRows {
    /// Sets the number, to one that the tensor has had before.
    pub fn set(&self, rows: usize) {
        self.0.store(rows, Ordering::Relaxed);
    }

    fn get(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

/// How an operation stores its output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Store {
    /// `y = …`
    Overwrite,
    /// `y += …`, the sum in f32.
    Accumulate,
}

impl Store {
    pub(crate) fn raw(self) -> i32 {
        match self {
            Self::Overwrite => sys::INT8_CUDA_OVERWRITE,
            Self::Accumulate => sys::INT8_CUDA_ACCUMULATE,
        }
    }
}

/// The kernels' number of a type.
pub(crate) fn element(float_type: FloatType) -> i32 {
    match float_type {
        FloatType::F16 => sys::INT8_CUDA_F16,
        FloatType::Bf16 => sys::INT8_CUDA_BF16,
        FloatType::F32 => sys::INT8_CUDA_F32,
    }
}

impl Tensor {
    /// Room for `largest_rows` rows; none yet.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::Device`].
    pub fn new(
        device: &Device,
        element: FloatType,
        largest_rows: usize,
        width: usize,
    ) -> Result<Self, Error> {
        let bytes = Buffer::zeros(device, largest_rows * width * element.bytes())?;
        Ok(Self::of(bytes, element, width))
    }

    /// Room for as many rows as these bytes have; none yet.
    pub(crate) fn of(bytes: Buffer<u8>, element: FloatType, width: usize) -> Self {
        let largest_rows = bytes.len().checked_div(width * element.bytes()).unwrap_or(0);
        Self { bytes, element, largest_rows, rows: SharedRows::default(), width }
    }

    /// A copy of f32 values, row-major, rounded to `element`. Waits until it is made.
    ///
    /// # Errors
    /// [`Error::Shape`] where `values` is no whole number of rows, [`Error::OutOfMemory`], [`Error::Device`].
    pub fn from_f32(
        device: &Device,
        element: FloatType,
        width: usize,
        values: &[f32],
    ) -> Result<Self, Error> {
        let rows = values.len().checked_div(width).unwrap_or(0);
        let mut tensor = Self::new(device, element, rows, width)?;
        tensor.set_rows(rows)?;
        let shape = |found| Error::Shape {
            operation: "copy to the device",
            what: "the values",
            expected: (rows, width),
            found: (1, found),
        };
        if values.len() != rows * width {
            return Err(shape(values.len()));
        }
        match element {
            FloatType::F32 => tensor.bytes.copy_from_host(as_bytes(values))?,
            FloatType::F16 => {
                let rounded: Vec<f16> = values.iter().map(|value| f16::from_f32(*value)).collect();
                tensor.bytes.copy_from_host(as_bytes(&rounded))?;
            }
            FloatType::Bf16 => {
                let rounded: Vec<bf16> = values.iter().map(|value| bf16::from_f32(*value)).collect();
                tensor.bytes.copy_from_host(as_bytes(&rounded))?;
            }
        }
        Ok(tensor)
    }

    /// Takes `rows` rows, whose content is not defined.
    ///
    /// # Errors
    /// [`Error::Shape`] where there is no room for them.
    pub fn set_rows(&mut self, rows: usize) -> Result<(), Error> {
        if rows > self.largest_rows {
            return Err(Error::Shape {
                operation: "activations",
                what: "rows",
                expected: (self.largest_rows, self.width),
                found: (rows, self.width),
            });
        }
        self.rows.set(rows);
        Ok(())
    }

    /// Rows in use.
    pub fn rows(&self) -> usize {
        self.rows.get()
    }

    /// The same, shared.
    pub fn shared_rows(&self) -> SharedRows {
        self.rows.clone()
    }

    /// Enqueues: every value in use becomes 0.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn fill_zero(&mut self, stream: &Stream) -> Result<(), Error> {
        let bytes = self.rows() * self.width * self.element.bytes();
        self.bytes.fill_zero(stream, bytes)
    }

    /// Enqueues a copy of the rows in use of `x`, which may be on another device; whoever writes to `x` there waits for it, and it
    /// waits for them, by [`Stream::mark`].
    ///
    /// # Errors
    /// [`Error::Shape`] when width or type differ or there is no room, [`Error::Device`].
    pub fn copy_from(&mut self, stream: &Stream, x: &Self) -> Result<(), Error> {
        const OPERATION: &str = "copy between devices";
        x.expect_width(OPERATION, self.width)?;
        if x.element != self.element {
            let shape = format!("{} to {}", x.element.name(), self.element.name());
            return Err(Error::Unsupported { operation: OPERATION, shape });
        }
        self.set_rows(x.rows())?;
        self.bytes.enqueue_peer_copy(stream, &x.bytes, x.rows() * x.width * x.element.bytes())
    }

    /// Enqueues a copy of the rows in use to the begin of a buffer.
    pub(crate) fn copy_to(&self, stream: &Stream, to: &mut Buffer<u8>) -> Result<(), Error> {
        let bytes = self.rows() * self.width * self.element.bytes();
        to.enqueue_peer_copy(stream, &self.bytes, bytes)
    }

    /// Columns.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Type of the elements.
    pub fn element(&self) -> FloatType {
        self.element
    }

    /// Device memory in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// The rows in use as f32, row-major, in place of the content of `out`. Waits for the stream.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn read(&self, stream: &Stream, out: &mut Vec<f32>) -> Result<(), Error> {
        let raw = self.bytes.read_range(stream, 0..self.rows() * self.width * self.element.bytes())?;
        out.clear();
        match self.element {
            FloatType::F32 => out.extend(from_bytes::<f32>(&raw)),
            FloatType::F16 => out.extend(from_bytes::<f16>(&raw).map(f16::to_f32)),
            FloatType::Bf16 => out.extend(from_bytes::<bf16>(&raw).map(bf16::to_f32)),
        }
        Ok(())
    }

    /// The same memory for rows of another type and width.
    pub(crate) fn reshape(&mut self, element: FloatType, width: usize) {
        self.largest_rows = self.bytes.len().checked_div(width * element.bytes()).unwrap_or(0);
        (self.element, self.width) = (element, width);
        self.rows.set(0);
    }

    pub(crate) fn pointer(&self) -> *mut std::ffi::c_void {
        self.bytes.pointer().cast()
    }

    pub(crate) fn expect_width(&self, operation: &'static str, width: usize) -> Result<(), Error> {
        if self.width == width {
            return Ok(());
        }
        let (expected, found) = ((self.rows(), width), (self.rows(), self.width));
        Err(Error::Shape { operation, what: "activations", expected, found })
    }
}
