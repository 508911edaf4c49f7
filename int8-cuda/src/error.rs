//! Errors: the caller's mistake, an operation unsupported on this device, or a failure of the device.

use std::ffi::CStr;

use int8_cuda_sys as sys;

/// An error of this crate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Two operands do not fit together.
    #[error("{operation}: {what} must be {expected:?}, found {found:?}")]
    Shape {
        /// The operation.
        operation: &'static str,
        /// Which operand.
        what: &'static str,
        /// Rows and columns it must have.
        expected: (usize, usize),
        /// Rows and columns it has.
        found: (usize, usize),
    },
    /// The kernels refused an argument.
    #[error("{operation}: invalid argument for {shape}")]
    Invalid {
        /// The operation.
        operation: &'static str,
        /// The operands' shapes in words.
        shape: String,
    },
    /// Valid, but not on this device or not by the requested algorithm.
    #[error(
        "{operation}: not supported on this device or by this algorithm for {shape}; Algorithm::Auto picks one that is"
    )]
    Unsupported {
        /// The operation.
        operation: &'static str,
        /// The operands' shapes in words.
        shape: String,
    },
    /// No usable GPU or driver.
    #[error(
        "no CUDA device {ordinal}: {reason}; an NVIDIA GPU of compute capability 8.0 or later and a driver for CUDA 13.0 are needed"
    )]
    NoDevice {
        /// The requested device.
        ordinal: u32,
        /// The driver's error.
        reason: String,
    },
    /// The device's memory does not suffice.
    #[error("out of device memory: {bytes} bytes needed for {what}, {free} of {total} are free")]
    OutOfMemory {
        /// The purpose of the memory.
        what: &'static str,
        /// The size requested.
        bytes: usize,
        /// Bytes that were free.
        free: usize,
        /// Bytes of the device.
        total: usize,
    },
    /// The host's memory that is locked for transfers does not suffice.
    #[error("out of page-locked host memory: {bytes} bytes needed")]
    OutOfHostMemory {
        /// The size requested.
        bytes: usize,
    },
    /// A device did not come to an exchange with the others.
    #[error("device {rank} waited for 10 s for the others in vain: one of them has failed; start again")]
    Peer {
        /// Its number among them.
        rank: usize,
    },
    /// A library that is loaded at run time was not found.
    #[error("{operation}: {library} was not found; put its folder on LD_LIBRARY_PATH")]
    Missing {
        /// The operation.
        operation: &'static str,
        /// The library's file name.
        library: &'static str,
    },
    /// A key or value is too large for the KV cache's type.
    #[error("a key or value is too large for the type of the KV cache; use a wider one, bf16 or f32")]
    Overflow,
    /// The layer to be measured differs too much from its baseline.
    #[error("benchmark: the int8 layer differs from fp16 by {error} of its norm for {shape}")]
    Inexact {
        /// The operands' shapes in words.
        shape: String,
        /// ‖int8 − fp16‖ / ‖fp16‖.
        error: String,
    },
    /// The device or its driver failed. After such an error the device's context is usually lost.
    #[error("{operation}: the device failed: {reason}")]
    Device {
        /// The operation that failed or in which an earlier failure surfaced.
        operation: &'static str,
        /// The driver's error.
        reason: String,
    },
}

/// Turns a status of the kernels into a result. `shape` is only called on failure.
pub(crate) fn check(
    operation: &'static str,
    status: i32,
    shape: impl FnOnce() -> String,
) -> Result<(), Error> {
    match status {
        sys::INT8_CUDA_OK => Ok(()),
        sys::INT8_CUDA_UNSUPPORTED => Err(Error::Unsupported { operation, shape: shape() }),
        sys::INT8_CUDA_DEVICE => {
            // SAFETY: the function returns a static or thread-local string that ends with 0.
            let reason = unsafe { CStr::from_ptr(sys::int8_cuda_last_device_error()) };
            Err(Error::Device { operation, reason: reason.to_string_lossy().into_owned() })
        }
        _ => Err(Error::Invalid { operation, shape: shape() }),
    }
}

/// Turns a status of the driver into a result.
pub(crate) fn done(operation: &'static str, status: cust::sys::cudaError_enum) -> Result<(), Error> {
    if status == cust::sys::cudaError_enum::CUDA_SUCCESS {
        return Ok(());
    }
    Err(Error::Device { operation, reason: format!("{status:?}") })
}

/// An error of the driver in `operation`.
pub(crate) fn driver(operation: &'static str) -> impl FnOnce(cust::error::CudaError) -> Error {
    // Not `Display`: that asks the driver for the text, and panics where there is no driver.
    move |error| Error::Device { operation, reason: format!("{error:?}") }
}
