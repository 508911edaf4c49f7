//! What can go wrong: the caller's mistake, something this device cannot do, or the device itself.

use std::ffi::CStr;

use int8_cuda_sys as sys;

/// An error of this crate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Two operands do not fit together.
    #[error("{operation}: {what} must be {expected:?}, found {found:?}")]
    Shape {
        /// The operation that was asked for.
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
        /// The operation that was asked for.
        operation: &'static str,
        /// The operands' shapes in words.
        shape: String,
    },
    /// Correct, but not on this device or not by the algorithm asked for.
    #[error(
        "{operation}: not supported on this device or by this algorithm for {shape}; Algorithm::Auto picks one that is"
    )]
    Unsupported {
        /// The operation that was asked for.
        operation: &'static str,
        /// The operands' shapes in words.
        shape: String,
    },
    /// No usable GPU or driver.
    #[error(
        "no CUDA device {ordinal}: {reason}; an NVIDIA GPU of compute capability 8.0 or later and a driver for CUDA 13.0 are needed"
    )]
    NoDevice {
        /// The device that was asked for.
        ordinal: u32,
        /// What the driver says.
        reason: String,
    },
    /// The device's memory does not suffice.
    #[error("out of device memory: {bytes} bytes for {what}")]
    OutOfMemory {
        /// What the memory was for.
        what: &'static str,
        /// How much was asked for.
        bytes: usize,
    },
    /// A library that is loaded at run time is not there.
    #[error("{operation}: {library} was not found; put its folder on LD_LIBRARY_PATH")]
    Missing {
        /// The operation that was asked for.
        operation: &'static str,
        /// The library's file name.
        library: &'static str,
    },
    /// What was to be measured computes something else than what it would be measured against.
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
        /// What the driver says.
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

/// An error of the driver in `operation`.
pub(crate) fn driver(operation: &'static str) -> impl FnOnce(cust::error::CudaError) -> Error {
    // Not `Display`: that asks the driver for the text, and panics where there is no driver.
    move |error| Error::Device { operation, reason: format!("{error:?}") }
}
