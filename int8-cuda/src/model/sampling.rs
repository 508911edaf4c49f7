//! Choosing the next tokens on the device.

use int8_cuda_sys as sys;

use super::tensor::Tensor;
use super::workspace::Workspace;
use crate::convert;
use crate::device::{Device, Stream};
use crate::error::{Error, check};
use crate::matrix::Buffer;

/// How the next token of a row is chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Draw {
    /// The largest logit; the first one of equals.
    Greedy,
    /// By the softmax of `logits/temperature` after the cuts.
    Random {
        /// In [0, 1): decides the token.
        uniform: f64,
        /// Above 0.
        temperature: f32,
        /// Only the most probable tokens.
        top_k: Option<usize>,
        /// Only the most probable tokens whose probabilities first add up to it.
        top_p: Option<f32>,
    },
}

/// Buffers to sample up to a largest number of rows.
#[derive(Debug)]
pub struct Samples {
    samplers: Buffer<u8>,
    /// i32 `[rows]`
    tokens: Buffer<i32>,
    workspace: Buffer<u8>,
    vocabulary: usize,
}

impl Samples {
    /// For up to `rows` rows of `vocabulary` logits.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::Device`].
    pub fn new(device: &Device, rows: usize, vocabulary: usize) -> Result<Self, Error> {
        let params = sys::int8_cuda_sample_params {
            logits: std::ptr::null(),
            samplers: std::ptr::null(),
            tokens: std::ptr::null_mut(),
            workspace: std::ptr::null_mut(),
            stream: std::ptr::null_mut(),
            workspace_bytes: 0,
            rows: convert::size(rows),
            vocabulary: convert::size(vocabulary),
            ld: convert::size(vocabulary),
        };
        device.activate()?;
        let mut bytes = 0;
        // SAFETY: the function reads sizes only.
        let status = unsafe { sys::int8_cuda_sample_workspace(&raw const params, &raw mut bytes) };
        check("sampling", status, || format!("{rows} rows of {vocabulary} logits"))?;
        Ok(Self {
            samplers: Buffer::zeros(device, rows * size_of::<sys::int8_cuda_sampler>())?,
            tokens: Buffer::zeros(device, rows)?,
            workspace: Buffer::zeros(device, bytes)?,
            vocabulary,
        })
    }

    /// Whether there is room for `rows` rows of `vocabulary` logits.
    pub fn fits(&self, rows: usize, vocabulary: usize) -> bool {
        rows <= self.tokens.len() && vocabulary == self.vocabulary
    }

    /// Chooses a token from each row of `logits` (f32), one draw a row; `None` where a row holds NaN. Waits for the stream.
    ///
    /// # Errors
    /// [`Error::Shape`] where draws and rows differ or there is no room, [`Error::Invalid`] after keys or values overflowed their
    /// type, [`Error::Device`].
    pub fn choose(
        &mut self,
        stream: &Stream,
        workspace: &mut Workspace,
        logits: &Tensor,
        draws: &[Draw],
    ) -> Result<Vec<Option<u32>>, Error> {
        let rows = logits.rows();
        if draws.len() != rows || rows > self.tokens.len() || logits.element() != int8_core::FloatType::F32 {
            let (expected, found) = ((rows, self.tokens.len()), (draws.len(), rows));
            return Err(Error::Shape { operation: "sampling", what: "draws", expected, found });
        }
        let samplers: Vec<sys::int8_cuda_sampler> = draws.iter().map(raw).collect();
        // SAFETY: a plain struct of numbers without padding: 8 + 4 + 4 + 4 + 4 bytes.
        let bytes = unsafe {
            std::slice::from_raw_parts(samplers.as_ptr().cast::<u8>(), size_of_val(samplers.as_slice()))
        };
        self.samplers.write(stream, 0, bytes)?;
        let params = sys::int8_cuda_sample_params {
            logits: logits.pointer().cast_const().cast(),
            samplers: self.samplers.pointer().cast_const().cast(),
            tokens: self.tokens.pointer(),
            workspace: self.workspace.pointer().cast(),
            stream: stream.raw()?,
            workspace_bytes: self.workspace.len(),
            rows: convert::size(rows),
            vocabulary: convert::size(logits.width()),
            ld: convert::size(logits.width()),
        };
        // SAFETY: all buffers have room for these rows.
        let status = unsafe { sys::int8_cuda_sample(&raw const params) };
        check("sampling", status, || format!("{rows} rows of {} logits", logits.width()))?;
        let tokens = self.tokens.read_range(stream, 0..rows)?;
        workspace.check_overflow(stream)?;
        Ok(tokens.into_iter().map(|token| u32::try_from(token).ok()).collect())
    }
}

fn raw(draw: &Draw) -> sys::int8_cuda_sampler {
    match *draw {
        Draw::Greedy => sys::int8_cuda_sampler { top_p: 1.0, ..sys::int8_cuda_sampler::default() },
        Draw::Random { uniform, temperature, top_k, top_p } => sys::int8_cuda_sampler {
            uniform,
            temperature,
            top_p: top_p.unwrap_or(1.0),
            top_k: top_k.map_or(0, convert::index_at_most),
            reserved: 0,
        },
    }
}
