//! Speech as a model reads it: recordings, their sampling rate, and log-mel spectra.

mod convolution;
mod log_mel;
mod resample;
mod wav;

pub(crate) use convolution::Convolution;
pub use log_mel::LogMel;
pub use resample::resample;
pub use wav::Recording;
