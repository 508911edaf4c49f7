//! Where the buffers of every rank are: in this process, or in another one of the same host, whose memory is opened here.

use std::ffi::c_void;

use cust::sys as cuda;
use int8_cuda_sys as sys;

use crate::device::Device;
use crate::error::{Error, done};

/// The buffers of one rank that the others read and write, as this process reaches them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Addresses {
    pub(super) signals: *mut c_void,
    pub(super) receive: *mut c_void,
    pub(super) part: *mut c_void,
    pub(super) ranges: *mut c_void,
    pub(super) columns: *mut c_void,
}

// SAFETY: plain addresses of device memory, which kernels alone read and write.
unsafe impl Send for Addresses {}
// SAFETY: likewise.
unsafe impl Sync for Addresses {}

/// Bytes that tell another process of one buffer: a handle of its allocation, and where it begins there.
const TOLD: usize = 64 + 8;
/// The buffers of a rank.
const COUNT: usize = 5;

impl Addresses {
    fn from_array([signals, receive, part, ranges, columns]: [*mut c_void; COUNT]) -> Self {
        Self { signals, receive, part, ranges, columns }
    }

    fn all(&self) -> [*mut c_void; COUNT] {
        [self.signals, self.receive, self.part, self.ranges, self.columns]
    }

    /// What another process needs to open them.
    pub(super) fn tell(&self, device: &Device) -> Result<Vec<u8>, Error> {
        device.activate()?;
        let mut message = Vec::with_capacity(COUNT * TOLD);
        for pointer in self.all() {
            let (mut base, mut size, address) = (0, 0, pointer as u64);
            let mut handle = cuda::CUipcMemHandle_st::default();
            // SAFETY: writes base and size of the live allocation that the address is in.
            let status = unsafe { cuda::cuMemGetAddressRange_v2(&raw mut base, &raw mut size, address) };
            done("share memory", status)?;
            // SAFETY: writes a handle of this allocation.
            done("share memory", unsafe { cuda::cuIpcGetMemHandle(&raw mut handle, base) })?;
            message.extend(handle.reserved.iter().flat_map(|byte| byte.to_ne_bytes()));
            message.extend((address - base).to_ne_bytes());
        }
        Ok(message)
    }
}

/// Memory of another process, open in this one until it is dropped.
#[derive(Debug)]
pub(super) struct Opened {
    bases: Vec<u64>,
    device: Device,
}

impl Opened {
    /// Opens what [`Addresses::tell`] said of a rank of another process, for the kernels of `device`.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where the device cannot reach it; [`Error::Device`].
    pub(super) fn new(device: &Device, message: &[u8]) -> Result<(Self, Addresses), Error> {
        device.activate()?;
        let mut opened = Self { bases: Vec::new(), device: device.clone() };
        let mut pointers = [std::ptr::null_mut(); COUNT];
        let unsupported = |what: &str| Error::Unsupported { operation: "exchange", shape: what.to_owned() };
        if message.len() != COUNT * TOLD {
            return Err(unsupported("a process with other buffers"));
        }
        for (pointer, told) in pointers.iter_mut().zip(message.chunks_exact(TOLD)) {
            let mut handle = cuda::CUipcMemHandle_st::default();
            for (to, from) in handle.reserved.iter_mut().zip(told) {
                *to = i8::from_ne_bytes([*from]);
            }
            let mut offset = [0; 8];
            offset.copy_from_slice(&told[TOLD - 8..]);
            let mut base = 0;
            let flags = cuda::CUipcMem_flags_enum::CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS as u32;
            // SAFETY: writes the address at which the other process's allocation is mapped here.
            let status = unsafe { cuda::cuIpcOpenMemHandle_v2(&raw mut base, handle, flags) };
            if status != cuda::cudaError_enum::CUDA_SUCCESS {
                return Err(unsupported(&format!("memory of a GPU of another process ({status:?})")));
            }
            opened.bases.push(base);
            *pointer = (base + u64::from_ne_bytes(offset)) as *mut c_void;
        }
        Ok((opened, Addresses::from_array(pointers)))
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        if self.device.activate().is_ok() {
            for base in &self.bases {
                // SAFETY: opened once each. A failure leaves nothing to do.
                unsafe { cuda::cuIpcCloseMemHandle(*base) };
            }
        }
    }
}

/// The pointers of all ranks as the kernels take them.
pub(super) fn of_ranks<P: Copy>(
    all: &[Addresses],
    none: P,
    pointer: impl Fn(&Addresses) -> P,
) -> [P; sys::INT8_CUDA_MAX_RANKS] {
    std::array::from_fn(|index| all.get(index).map_or(none, &pointer))
}
