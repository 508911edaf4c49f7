//! Device memory: buffers of numbers and row-major matrices.

use std::marker::PhantomData;

use cust::error::CudaError;
use cust::memory::{CopyDestination, DeviceBuffer};

use crate::device::{Device, Stream};
use crate::error::{Error, driver};
use crate::scalar::{Scalar, as_bytes, as_bytes_mut};

/// `len` numbers in device memory, 256-byte aligned.
#[derive(Debug)]
pub struct Buffer<T> {
    // Dropped before the device; freeing waits for the device, so work in flight keeps its memory.
    bytes: DeviceBuffer<u8>,
    len: usize,
    device: Device,
    element: PhantomData<T>,
}

impl<T: Scalar> Buffer<T> {
    /// `len` zeros.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::Device`].
    pub fn zeros(device: &Device, len: usize) -> Result<Self, Error> {
        device.activate()?;
        let size = len * size_of::<T>();
        let bytes = DeviceBuffer::zeroed(size).map_err(|error| match error {
            CudaError::OutOfMemory => Error::OutOfMemory { what: "a buffer", bytes: size },
            other => driver("allocate")(other),
        })?;
        Ok(Self { bytes, len, device: device.clone(), element: PhantomData })
    }

    /// A copy of `values`. Waits until it is made.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::Device`].
    pub fn from_host(device: &Device, values: &[T]) -> Result<Self, Error> {
        let mut buffer = Self::zeros(device, values.len())?;
        buffer.copy_from_host(values)?;
        Ok(buffer)
    }

    /// Overwrites the buffer. Waits for the device first.
    ///
    /// # Errors
    /// [`Error::Shape`] when the lengths differ, [`Error::Device`].
    pub fn copy_from_host(&mut self, values: &[T]) -> Result<(), Error> {
        if values.len() != self.len {
            return Err(self.length_error("copy to the device", values.len()));
        }
        self.device.synchronize()?;
        if self.len > 0 {
            self.bytes.copy_from(as_bytes(values)).map_err(driver("copy to the device"))?;
        }
        Ok(())
    }

    /// The numbers. Waits for the stream first.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn to_host(&self, stream: &Stream) -> Result<Vec<T>, Error> {
        stream.synchronize()?;
        let mut values = vec![T::default(); self.len];
        if self.len > 0 {
            self.bytes.copy_to(as_bytes_mut(&mut values)).map_err(driver("copy to the host"))?;
        }
        Ok(values)
    }

    /// How many numbers.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The device the memory is on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    pub(crate) fn pointer(&self) -> *mut T {
        if self.len == 0 { std::ptr::null_mut() } else { self.bytes.as_device_ptr().as_raw() as *mut T }
    }

    /// Numbers of another type that lie at byte `offset`. Waits for the stream first.
    pub(crate) fn read_at<V: Scalar>(
        &self,
        stream: &Stream,
        offset: usize,
        len: usize,
    ) -> Result<Vec<V>, Error> {
        stream.synchronize()?;
        let mut values = vec![V::default(); len];
        let end = offset + len * size_of::<V>();
        if end > self.len * size_of::<T>() {
            return Err(self.length_error("read from a workspace", end));
        }
        if len > 0 {
            let slice = self.bytes.index(offset..end);
            slice.copy_to(as_bytes_mut(&mut values)).map_err(driver("copy to the host"))?;
        }
        Ok(values)
    }

    fn length_error(&self, operation: &'static str, found: usize) -> Error {
        Error::Shape { operation, what: "the buffer", expected: (1, self.len), found: (1, found) }
    }
}

/// `[rows, columns]` row-major in device memory, `ld` elements from one row to the next.
#[derive(Debug)]
pub struct Matrix<T> {
    buffer: Buffer<T>,
    rows: usize,
    columns: usize,
    ld: usize,
}

impl<T: Scalar> Matrix<T> {
    /// Zeros, `ld = columns`.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::Device`].
    pub fn zeros(device: &Device, rows: usize, columns: usize) -> Result<Self, Error> {
        Self::padded(device, rows, columns, columns)
    }

    /// Zeros with `ld ≥ columns`.
    pub(crate) fn padded(device: &Device, rows: usize, columns: usize, ld: usize) -> Result<Self, Error> {
        Ok(Self { buffer: Buffer::zeros(device, rows * ld)?, rows, columns, ld })
    }

    /// A copy of `values`, row-major.
    ///
    /// # Errors
    /// [`Error::Shape`] when there are not `rows·columns` values, [`Error::OutOfMemory`], [`Error::Device`].
    pub fn from_host(device: &Device, rows: usize, columns: usize, values: &[T]) -> Result<Self, Error> {
        if values.len() != rows * columns {
            let (expected, found) = ((rows, columns), (1, values.len()));
            return Err(Error::Shape {
                operation: "copy to the device",
                what: "the values",
                expected,
                found,
            });
        }
        Ok(Self { buffer: Buffer::from_host(device, values)?, rows, columns, ld: columns })
    }

    /// The values, row-major without padding. Waits for the stream first.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn to_host(&self, stream: &Stream) -> Result<Vec<T>, Error> {
        let all = self.buffer.to_host(stream)?;
        if self.ld == self.columns {
            return Ok(all);
        }
        Ok(all.chunks(self.ld).flat_map(|row| row[..self.columns].iter().copied()).collect())
    }

    /// Overwrites all values of a matrix without padding. Waits for the device first.
    ///
    /// # Errors
    /// [`Error::Shape`] when the sizes differ, [`Error::Device`].
    pub fn copy_from_host(&mut self, values: &[T]) -> Result<(), Error> {
        self.buffer.copy_from_host(values)
    }

    /// Rows and columns.
    pub fn dim(&self) -> (usize, usize) {
        (self.rows, self.columns)
    }

    /// Elements from one row to the next.
    pub fn ld(&self) -> usize {
        self.ld
    }

    /// The device the matrix is on.
    pub fn device(&self) -> &Device {
        self.buffer.device()
    }

    pub(crate) fn pointer(&self) -> *mut T {
        self.buffer.pointer()
    }

    pub(crate) fn expect(
        &self,
        operation: &'static str,
        what: &'static str,
        expected: (usize, usize),
    ) -> Result<(), Error> {
        if self.dim() == expected {
            return Ok(());
        }
        Err(Error::Shape { operation, what, expected, found: self.dim() })
    }

    /// At least so many rows, exactly so many columns.
    pub(crate) fn expect_rows(
        &self,
        operation: &'static str,
        what: &'static str,
        expected: (usize, usize),
    ) -> Result<(), Error> {
        if self.rows >= expected.0 && self.columns == expected.1 {
            return Ok(());
        }
        Err(Error::Shape { operation, what, expected, found: self.dim() })
    }
}
