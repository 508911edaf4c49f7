//! Device, stream, timer.

use std::ffi::CStr;
use std::sync::Arc;

use cust::context::{Context, ContextHandle, CurrentContext};
use cust::event::{Event, EventFlags};
use cust::stream::{StreamFlags, StreamWaitEventFlags};
use cust::sys as cuda;
use int8_cuda_sys as sys;

use crate::convert;
use crate::error::{Error, check, done, driver};

/// One GPU. Cheap to clone; the context lives as long as the last clone, buffer or stream.
#[derive(Clone, Debug)]
pub struct Device(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    // Dropped before the context: fields go in order.
    copies: cust::stream::Stream,
    context: Context,
    info: DeviceInfo,
}

/// Properties of a device.
#[derive(Clone, Debug)]
pub struct DeviceInfo {
    /// The vendor's name.
    pub name: String,
    /// Compute capability, major and minor.
    pub compute: (i32, i32),
    /// Multiprocessors.
    pub multiprocessors: usize,
    /// Bytes of device memory.
    pub memory_bytes: usize,
    /// Bytes of L2 cache.
    pub l2_bytes: usize,
    /// The CUDA version the driver offers, 13000 for 13.0.
    pub driver: i32,
    /// The CUDA version this library was built with.
    pub runtime: i32,
    /// Whether cuBLASLt was found. Only [`crate::DenseProduct`] and [`crate::Algorithm::CublasLt`] need it.
    pub has_cublaslt: bool,
}

impl Device {
    /// Opens device `ordinal` (0 is the first) and makes it current on this thread.
    ///
    /// # Errors
    /// [`Error::NoDevice`] without a driver or with fewer devices.
    pub fn new(ordinal: u32) -> Result<Self, Error> {
        let absent =
            |error: cust::error::CudaError| Error::NoDevice { ordinal, reason: format!("{error:?}") };
        cust::init(cust::CudaFlags::empty()).map_err(absent)?;
        let device = cust::device::Device::get_device(ordinal).map_err(absent)?;
        // The primary context, which the runtime API and cuBLASLt use too.
        let context = Context::new(device).map_err(absent)?;
        CurrentContext::set_current(&context).map_err(absent)?;
        let mut raw = std::mem::MaybeUninit::<sys::int8_cuda_device_info>::zeroed();
        // SAFETY: the function fills the struct it is given; a context is current.
        let status = unsafe { sys::int8_cuda_get_device_info(raw.as_mut_ptr()) };
        check("device information", status, String::new)?;
        // SAFETY: zeroed and then filled; all bit patterns of its fields are valid.
        let raw = unsafe { raw.assume_init() };
        // SAFETY: the name ends with a 0 within its array.
        let name = unsafe { CStr::from_ptr(raw.name.as_ptr()) }.to_string_lossy().into_owned();
        let info = DeviceInfo {
            name,
            compute: (raw.compute_major, raw.compute_minor),
            multiprocessors: convert::from_count(raw.multiprocessors),
            memory_bytes: convert::from_offset(raw.memory_bytes),
            l2_bytes: convert::from_offset(raw.l2_bytes),
            driver: raw.driver_version,
            runtime: raw.runtime_version,
            has_cublaslt: raw.has_cublaslt != 0,
        };
        let copies = cust::stream::Stream::new(StreamFlags::DEFAULT, None).map_err(driver("stream"))?;
        Ok(Self(Arc::new(Shared { copies, context, info })))
    }

    /// Enqueues work on a stream of the device's own, with the device made current, and waits for it. Copies and fills that a
    /// caller waits for go there: the driver's default stream cannot be used while a graph is captured on another thread.
    pub(crate) fn wait_for(
        &self,
        operation: &'static str,
        work: impl FnOnce(cuda::CUstream) -> cuda::CUresult,
    ) -> Result<(), Error> {
        self.activate()?;
        done(operation, work(self.0.copies.as_inner()))?;
        self.0.copies.synchronize().map_err(driver(operation))
    }

    /// Makes the device current on this thread. Needed once on every thread that uses it; every call of this crate that
    /// takes a stream or a device does it.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn activate(&self) -> Result<(), Error> {
        CurrentContext::set_current(&self.0.context).map_err(driver("activate"))
    }

    /// Lets this device read the memory of another directly, where the hardware can, and tells whether its kernels can. Copies
    /// between them work without, too.
    pub(crate) fn reaches(&self, other: &Self) -> Result<bool, Error> {
        if self.0.context.get_inner() == other.0.context.get_inner() {
            return Ok(true);
        }
        self.activate()?;
        // SAFETY: a live context. A refusal (no link between the two, or reached before) changes nothing.
        let status = unsafe { cuda::cuCtxEnablePeerAccess(other.0.context.get_inner(), 0) };
        Ok(matches!(
            status,
            cuda::cudaError_enum::CUDA_SUCCESS | cuda::cudaError_enum::CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED
        ))
    }

    /// The device's properties.
    pub fn info(&self) -> &DeviceInfo {
        &self.0.info
    }

    /// Bytes of memory that nobody has, of this device alone.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn free_memory(&self) -> Result<usize, Error> {
        self.activate()?;
        cust::memory::mem_get_info().map(|(free, _)| free).map_err(driver("query the memory"))
    }

    /// Waits until all work of the device is done.
    ///
    /// # Errors
    /// [`Error::Device`], also for a failure of earlier asynchronous work.
    pub fn synchronize(&self) -> Result<(), Error> {
        self.activate()?;
        CurrentContext::synchronize().map_err(driver("synchronize"))
    }
}

/// A queue of work, which runs in order.
#[derive(Debug)]
pub struct Stream {
    // Dropped before the device: fields go in order.
    inner: cust::stream::Stream,
    device: Device,
}

impl Stream {
    /// A stream of its own.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn new(device: &Device) -> Result<Self, Error> {
        device.activate()?;
        let inner = cust::stream::Stream::new(StreamFlags::DEFAULT, None).map_err(driver("stream"))?;
        Ok(Self { inner, device: device.clone() })
    }

    /// The stream's device.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Waits until all work of the stream is done.
    ///
    /// # Errors
    /// [`Error::Device`], also for a failure of that work.
    pub fn synchronize(&self) -> Result<(), Error> {
        self.device.activate()?;
        self.inner.synchronize().map_err(driver("synchronize"))
    }

    /// The handle for C, with the device made current.
    pub(crate) fn raw(&self) -> Result<sys::int8_cuda_stream, Error> {
        self.device.activate()?;
        Ok(self.inner.as_inner().cast())
    }

    /// The end of all work enqueued so far.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn mark(&self) -> Result<Mark, Error> {
        self.device.activate()?;
        let event = Event::new(EventFlags::DISABLE_TIMING).map_err(driver("event"))?;
        event.record(&self.inner).map_err(driver("event"))?;
        Ok(Mark { event, device: self.device.clone() })
    }

    /// Enqueues a wait: what is enqueued from now on begins after `mark`, which may be of another device.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn wait_for(&self, mark: Mark) -> Result<(), Error> {
        self.device.activate()?;
        let Mark { event, device } = mark;
        // The driver keeps the event until the wait is over; it is destroyed where it was made.
        let waited = self.inner.wait_event(event, StreamWaitEventFlags::DEFAULT);
        drop(device);
        waited.map_err(driver("wait for an event"))
    }

    pub(crate) fn inner(&self) -> &cust::stream::Stream {
        &self.inner
    }
}

/// A point in the work of a [`Stream`].
#[derive(Debug)]
pub struct Mark {
    event: Event,
    device: Device,
}

/// Two events that measure the time between them on a stream.
#[derive(Debug)]
pub struct Timer {
    begin: Event,
    end: Event,
    _device: Device,
}

impl Timer {
    /// An unused timer.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn new(device: &Device) -> Result<Self, Error> {
        device.activate()?;
        let event = || Event::new(EventFlags::DEFAULT).map_err(driver("event"));
        Ok(Self { begin: event()?, end: event()?, _device: device.clone() })
    }

    /// Runs `work`, waits for the stream, and returns the device time in microseconds.
    ///
    /// # Errors
    /// The error of `work`, or [`Error::Device`].
    pub fn measure(&self, stream: &Stream, work: impl FnOnce() -> Result<(), Error>) -> Result<f64, Error> {
        stream.device.activate()?;
        self.begin.record(&stream.inner).map_err(driver("event"))?;
        work()?;
        self.end.record(&stream.inner).map_err(driver("event"))?;
        self.end.synchronize().map_err(driver("event"))?;
        let milliseconds = self.end.elapsed_time_f32(&self.begin).map_err(driver("event"))?;
        Ok(f64::from(milliseconds) * 1000.0)
    }
}
