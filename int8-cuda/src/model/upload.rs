//! Weights on their way to the device: pinned host buffers, filled while the copy of the one before is under way.

use cust::event::{Event, EventFlags};
use cust::sys as cuda;

use crate::device::{Device, Stream};
use crate::error::{Error, driver};
use crate::matrix::Buffer;

/// Two pinned host buffers with a device buffer each, used in turns.
#[derive(Debug)]
pub struct Upload {
    slots: [Slot; 2],
    next: usize,
    device: Device,
}

#[derive(Debug)]
struct Slot {
    host: Pinned,
    device: Buffer<u8>,
    /// After the last work that reads this slot.
    free: Event,
}

/// Rows that lie in a device buffer until the next but one [`Upload::stage`].
#[derive(Debug)]
pub struct Staged<'a> {
    slot: &'a Slot,
    len: usize,
}

impl Upload {
    /// With two buffers of `bytes` each; they grow where more is staged at once.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::Device`].
    pub fn new(device: &Device, bytes: usize) -> Result<Self, Error> {
        device.activate()?;
        let slot = || -> Result<Slot, Error> {
            Ok(Slot {
                host: Pinned::new(device, bytes)?,
                device: Buffer::zeros(device, bytes)?,
                free: Event::new(EventFlags::DISABLE_TIMING).map_err(driver("event"))?,
            })
        };
        Ok(Self { slots: [slot()?, slot()?], next: 0, device: device.clone() })
    }

    /// Bytes of a buffer.
    pub fn capacity(&self) -> usize {
        self.slots[0].device.len()
    }

    /// Lets `fill` write `bytes` bytes, enqueues their copy to the device, and `then` the work that reads them there. Waits,
    /// before `fill`, for the work of the stage before the last one.
    ///
    /// # Errors
    /// Those of `fill` and `then`, [`Error::OutOfMemory`], [`Error::Device`].
    pub fn stage<E: From<Error>>(
        &mut self,
        stream: &Stream,
        bytes: usize,
        fill: impl FnOnce(&mut [u8]) -> Result<(), E>,
        then: impl FnOnce(&Staged<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        self.device.activate()?;
        let index = self.next;
        self.next = 1 - index;
        let slot = &mut self.slots[index];
        slot.free.synchronize().map_err(driver("upload")).map_err(E::from)?;
        if slot.device.len() < bytes {
            slot.host = Pinned::new(&self.device, bytes)?;
            slot.device = Buffer::zeros(&self.device, bytes)?;
        }
        let target = slot.host.bytes(bytes);
        fill(target)?;
        // SAFETY: the pinned memory is written again only after `free`, which is recorded behind this copy, has passed.
        unsafe { slot.device.enqueue_copy(stream, 0, target) }?;
        let outcome = then(&Staged { slot, len: bytes });
        slot.free.record(stream.inner()).map_err(driver("upload")).map_err(E::from)?;
        outcome
    }
}

impl Staged<'_> {
    pub(crate) fn pointer(&self) -> *mut u8 {
        self.slot.device.pointer()
    }

    pub(crate) fn expect(&self, bytes: usize) -> Result<(), Error> {
        if self.len >= bytes {
            return Ok(());
        }
        let (expected, found) = ((1, bytes), (1, self.len));
        Err(Error::Shape { operation: "upload", what: "staged bytes", expected, found })
    }

    /// Enqueues a copy of the first `bytes` bytes.
    pub(crate) fn copy_to(
        &self,
        stream: &Stream,
        to: &mut Buffer<u8>,
        offset: usize,
        bytes: usize,
    ) -> Result<(), Error> {
        to.enqueue_device_copy(stream, offset, &self.slot.device, 0, bytes)
    }
}

/// Page-locked host memory.
#[derive(Debug)]
pub(super) struct Pinned {
    pointer: *mut u8,
    len: usize,
    device: Device,
}

// SAFETY: owns plain memory that any thread may use.
unsafe impl Send for Pinned {}
// SAFETY: it is written through `&mut` alone.
unsafe impl Sync for Pinned {}

impl Pinned {
    pub(super) fn new(device: &Device, len: usize) -> Result<Self, Error> {
        device.activate()?;
        let mut pointer = std::ptr::null_mut();
        if len > 0 {
            // SAFETY: writes the pointer of a new allocation.
            let status = unsafe { cuda::cuMemAllocHost_v2(&raw mut pointer, len) };
            if status != cuda::cudaError_enum::CUDA_SUCCESS {
                return Err(Error::OutOfHostMemory { bytes: len });
            }
            // SAFETY: the allocation has this length. Zeroed, so that every byte of the slice is initialised.
            unsafe { std::ptr::write_bytes(pointer.cast::<u8>(), 0, len) };
        }
        Ok(Self { pointer: pointer.cast(), len, device: device.clone() })
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn pointer(&self) -> *const u8 {
        self.pointer
    }

    /// The first `len` bytes, at most all.
    pub(super) fn bytes(&mut self, len: usize) -> &mut [u8] {
        if self.len == 0 {
            return &mut [];
        }
        // SAFETY: initialised when it was allocated, and borrowed as long as `self` is.
        unsafe { std::slice::from_raw_parts_mut(self.pointer, len.min(self.len)) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if self.len > 0 && self.device.activate().is_ok() {
            // SAFETY: allocated by `new`, freed once. A failure leaves nothing to do.
            unsafe { cuda::cuMemFreeHost(self.pointer.cast()) };
        }
    }
}
