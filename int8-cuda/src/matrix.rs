//! Device memory: buffers of numbers and row-major matrices.

use std::marker::PhantomData;

use cust::error::CudaError;
use cust::memory::DeviceBuffer;
use cust::sys as cuda;

use crate::convert;
use crate::device::{Device, Stream};
use crate::error::{Error, done, driver};
use crate::scalar::{Scalar, as_bytes, as_bytes_mut};

/// `len` numbers in device memory, 256-byte aligned.
#[derive(Debug)]
pub struct Buffer<T> {
    // Dropped before the device; freeing waits for the device, so work in flight keeps its memory.
    memory: Memory,
    len: usize,
    device: Device,
    element: PhantomData<T>,
}

/// Where a buffer's bytes are.
#[derive(Debug)]
enum Memory {
    Device(DeviceBuffer<u8>),
    /// Page-locked, at this address for the host and for every device.
    Host(u64),
}

impl Memory {
    fn address(&self) -> u64 {
        match self {
            Self::Device(bytes) => bytes.as_device_ptr().as_raw(),
            Self::Host(address) => *address,
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if let Self::Host(address) = *self {
            // SAFETY: allocated by `Buffer::zeros_on_host`, freed once. A failure leaves nothing to do.
            unsafe { cuda::cuMemFreeHost(address as *mut std::ffi::c_void) };
        }
    }
}

impl<T> Drop for Buffer<T> {
    fn drop(&mut self) {
        // The memory is freed in the context that is current. Without one it goes with the device's last clone.
        let _ = self.device.activate();
    }
}

impl<T: Scalar> Buffer<T> {
    /// `len` zeros.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::Device`].
    pub fn zeros(device: &Device, len: usize) -> Result<Self, Error> {
        device.activate()?;
        let size = len * size_of::<T>();
        // SAFETY: any bytes are valid numbers; they are zeroed before anyone reads them.
        let bytes = unsafe { DeviceBuffer::uninitialized(size) }.map_err(|error| match error {
            CudaError::OutOfMemory => {
                let (free, total) = cust::memory::mem_get_info().unwrap_or_default();
                Error::OutOfMemory { what: "a buffer", bytes: size, free, total }
            }
            other => driver("allocate")(other),
        })?;
        if size > 0 {
            let start = bytes.as_device_ptr().as_raw();
            // SAFETY: the buffer has these bytes, and lives until they are zero.
            device.wait_for("allocate", |stream| unsafe { cuda::cuMemsetD8Async(start, 0, size, stream) })?;
        }
        Ok(Self { memory: Memory::Device(bytes), len, device: device.clone(), element: PhantomData })
    }

    /// `len` zeros in host memory, which every device reads and writes over its link to the host.
    pub(crate) fn zeros_on_host(device: &Device, len: usize) -> Result<Self, Error> {
        device.activate()?;
        let size = (len * size_of::<T>()).max(1);
        let mut pointer = std::ptr::null_mut();
        let flags = cuda::CU_MEMHOSTALLOC_PORTABLE | cuda::CU_MEMHOSTALLOC_DEVICEMAP;
        // SAFETY: writes the pointer of a new allocation.
        let status = unsafe { cuda::cuMemHostAlloc(&raw mut pointer, size, flags) };
        if status != cuda::cudaError_enum::CUDA_SUCCESS {
            return Err(Error::OutOfHostMemory { bytes: size });
        }
        // SAFETY: the allocation has this length.
        unsafe { std::ptr::write_bytes(pointer.cast::<u8>(), 0, size) };
        let memory = Memory::Host(pointer as u64);
        Ok(Self { memory, len, device: device.clone(), element: PhantomData })
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

    /// Overwrites the buffer, and waits until that is done. Work that uses it must have ended: streams are not waited for.
    ///
    /// # Errors
    /// [`Error::Shape`] when the lengths differ, [`Error::Device`].
    pub fn copy_from_host(&mut self, values: &[T]) -> Result<(), Error> {
        if values.len() != self.len {
            return Err(self.length_error("copy to the device", values.len()));
        }
        if self.len == 0 {
            return Ok(());
        }
        let (to, bytes) = (self.memory.address(), as_bytes(values));
        // SAFETY: both sides have these bytes, and live until the copy is made.
        self.device.wait_for("copy to the device", |stream| unsafe {
            cuda::cuMemcpyHtoDAsync_v2(to, bytes.as_ptr().cast(), bytes.len(), stream)
        })
    }

    /// The numbers. Waits for the stream first.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn to_host(&self, stream: &Stream) -> Result<Vec<T>, Error> {
        self.read_at(stream, 0, self.len)
    }

    /// Enqueues a copy of `values` to the numbers from `offset` on. `values` may change as soon as this returns.
    ///
    /// # Errors
    /// [`Error::Shape`] when there is no room for them, [`Error::Device`].
    pub fn write(&mut self, stream: &Stream, offset: usize, values: &[T]) -> Result<(), Error> {
        // SAFETY: the driver has taken a copy of pageable memory when the call returns.
        unsafe { self.enqueue_copy(stream, offset, values) }
    }

    /// The same, but `values` may be page-locked.
    ///
    /// # Safety
    /// Page-locked values must not change before the stream has passed the copy.
    pub(crate) unsafe fn enqueue_copy(
        &mut self,
        stream: &Stream,
        offset: usize,
        values: &[T],
    ) -> Result<(), Error> {
        if offset + values.len() > self.len {
            return Err(self.length_error("copy to the device", offset + values.len()));
        }
        if values.is_empty() {
            return Ok(());
        }
        stream.device().activate()?;
        let to = self.memory.address() + convert::address(offset * size_of::<T>());
        let bytes = as_bytes(values);
        // SAFETY: both sides have room for these bytes; the caller vouches for their life.
        let status = unsafe {
            cuda::cuMemcpyHtoDAsync_v2(to, bytes.as_ptr().cast(), bytes.len(), stream.inner().as_inner())
        };
        done("copy to the device", status)
    }

    /// Enqueues a copy of `count` numbers of `from`, from `from_offset` on, to `offset`.
    pub(crate) fn enqueue_device_copy(
        &mut self,
        stream: &Stream,
        offset: usize,
        from: &Self,
        from_offset: usize,
        count: usize,
    ) -> Result<(), Error> {
        if offset + count > self.len || from_offset + count > from.len {
            return Err(self.length_error("copy on the device", offset + count));
        }
        self.device_copy(stream, from.memory.address(), (from_offset, offset), count)
    }

    /// Enqueues a copy of the first `count` numbers of `from`, which may be on another device.
    pub(crate) fn enqueue_peer_copy(
        &mut self,
        stream: &Stream,
        from: &Self,
        count: usize,
    ) -> Result<(), Error> {
        if count > self.len.min(from.len) {
            return Err(self.length_error("copy between devices", count));
        }
        if count == 0 {
            return Ok(());
        }
        self.device.reaches(&from.device)?;
        stream.device().activate()?;
        let (to, source) = (self.memory.address(), from.memory.address());
        // SAFETY: both have these bytes, in one address space; freeing either waits for its device, which has waited for the copy.
        let status =
            unsafe { cuda::cuMemcpyAsync(to, source, count * size_of::<T>(), stream.inner().as_inner()) };
        done("copy between devices", status)
    }

    /// Enqueues a copy of `count` numbers from `from` to `to`, without overlap.
    pub(crate) fn enqueue_copy_within(
        &mut self,
        stream: &Stream,
        from: usize,
        to: usize,
        count: usize,
    ) -> Result<(), Error> {
        if from.max(to) + count > self.len || from.abs_diff(to) < count {
            return Err(self.length_error("copy on the device", from.max(to) + count));
        }
        self.device_copy(stream, self.memory.address(), (from, to), count)
    }

    /// The ranges were checked.
    fn device_copy(
        &self,
        stream: &Stream,
        source: u64,
        (from, to): (usize, usize),
        count: usize,
    ) -> Result<(), Error> {
        if count == 0 {
            return Ok(());
        }
        stream.device().activate()?;
        let bytes = |count: usize| count * size_of::<T>();
        let target = self.memory.address() + convert::address(bytes(to));
        let source = source + convert::address(bytes(from));
        // SAFETY: the caller has checked both ranges; freeing either buffer waits for the device.
        let status =
            unsafe { cuda::cuMemcpyDtoDAsync_v2(target, source, bytes(count), stream.inner().as_inner()) };
        done("copy on the device", status)
    }

    /// Enqueues: the first `count` numbers become 0.
    ///
    /// # Errors
    /// [`Error::Shape`] when there are fewer, [`Error::Device`].
    pub fn fill_zero(&mut self, stream: &Stream, count: usize) -> Result<(), Error> {
        if count > self.len {
            return Err(self.length_error("fill", count));
        }
        if count == 0 {
            return Ok(());
        }
        stream.device().activate()?;
        let start = self.memory.address();
        // SAFETY: the buffer has these bytes; freeing it waits for the device.
        let status =
            unsafe { cuda::cuMemsetD8Async(start, 0, count * size_of::<T>(), stream.inner().as_inner()) };
        done("fill", status)
    }

    /// The numbers of a range. Waits for the stream.
    ///
    /// # Errors
    /// [`Error::Shape`] when the range is not inside, [`Error::Device`].
    pub fn read_range(&self, stream: &Stream, range: std::ops::Range<usize>) -> Result<Vec<T>, Error> {
        self.read_at(stream, range.start * size_of::<T>(), range.len())
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
        if self.len == 0 { std::ptr::null_mut() } else { self.memory.address() as *mut T }
    }

    /// The pointer of a buffer that may be absent.
    pub(crate) fn pointer_or_null(buffer: Option<&Self>) -> *const T {
        buffer.map_or(std::ptr::null(), |buffer| buffer.pointer().cast_const())
    }

    /// Numbers of another type that lie at byte `offset`. Waits for the stream first.
    pub(crate) fn read_at<V: Scalar>(
        &self,
        stream: &Stream,
        offset: usize,
        len: usize,
    ) -> Result<Vec<V>, Error> {
        let mut values = vec![V::default(); len];
        self.read_into(stream, offset, as_bytes_mut(&mut values))?;
        Ok(values)
    }

    /// Copies the bytes from byte `offset` on to `to`. Waits for the stream.
    pub(crate) fn read_into(&self, stream: &Stream, offset: usize, to: &mut [u8]) -> Result<(), Error> {
        let end = offset + to.len();
        if end > self.len * size_of::<T>() {
            return Err(self.length_error("read from a workspace", end));
        }
        if !to.is_empty() {
            stream.device().activate()?;
            let source = self.memory.address() + convert::address(offset);
            // SAFETY: both sides have these bytes; the copy has ended when the stream has been waited for.
            let status = unsafe {
                cuda::cuMemcpyDtoHAsync_v2(
                    to.as_mut_ptr().cast(),
                    source,
                    to.len(),
                    stream.inner().as_inner(),
                )
            };
            done("copy to the host", status)?;
        }
        stream.synchronize()
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
