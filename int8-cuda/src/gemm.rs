//! Stages 2 and 3: one weight on [`QuantizedActivations`].

use std::marker::PhantomData;

use int8_core::Config;
use int8_cuda_sys as sys;

use crate::activations::QuantizedActivations;
use crate::algorithm::{Algorithm, Shape};
use crate::convert;
use crate::device::{Device, Stream};
use crate::error::{Error, check};
use crate::matrix::{Buffer, Matrix};
use crate::params;
use crate::scalar::Float;
use crate::weight::Weight;

/// GEMM and epilogue of weights `[n, k]` on activations of up to m rows: a workspace and the choice of the algorithm.
/// Several weights of one shape can share a plan, on one stream at a time.
#[derive(Debug)]
pub struct GemmPlan<T> {
    largest: Shape,
    requested: Algorithm,
    /// For the largest m.
    algorithm: Algorithm,
    workspace: Buffer<u8>,
    element: PhantomData<T>,
}

impl<T: Float> GemmPlan<T> {
    /// Checks that `algorithm` supports `largest` and allocates the workspace for it and every smaller m. `config` is the
    /// activations'. [`Algorithm::Auto`] chooses for each run's m.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for an algorithm that does not support the shape here or is fused with the prologue
    /// ([`Algorithm::is_fused`]), [`Error::Invalid`] for k above 133,144, [`Error::OutOfMemory`], [`Error::Device`].
    pub fn new(
        device: &Device,
        largest: Shape,
        config: &Config,
        algorithm: Algorithm,
    ) -> Result<Self, Error> {
        device.activate()?;
        let params = params::gemm(T::ELEMENT, largest, config, algorithm);
        let layout = params::gemm_layout(&params, "gemm plan", || {
            format!("{largest:?}, {} by {algorithm:?}", T::NAME)
        })?;
        let workspace = Buffer::zeros(device, convert::from_offset(layout.total))?;
        let resolved = Algorithm::from_raw(layout.algorithm);
        Ok(Self { largest, requested: algorithm, algorithm: resolved, workspace, element: PhantomData })
    }

    /// Enqueues `y = x·Wᵀ + bias` into the first m rows of `y [≥ m, n]`, m being the activations'.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::Invalid`] for a weight with zero points where the activations have no code sums
    /// ([`QuantizedActivations::new`]), [`Error::Device`].
    pub fn run(
        &mut self,
        stream: &Stream,
        activations: &QuantizedActivations<T>,
        weight: &Weight<T>,
        bias: Option<&Buffer<f32>>,
        y: &mut Matrix<T>,
    ) -> Result<(), Error> {
        self.enqueue(stream, activations, weight, bias, y, sys::INT8_CUDA_OVERWRITE)
    }

    /// Enqueues `y += x·Wᵀ + bias`: the sum in f32, rounded once.
    ///
    /// # Errors
    /// Those of [`Self::run`].
    pub fn accumulate(
        &mut self,
        stream: &Stream,
        activations: &QuantizedActivations<T>,
        weight: &Weight<T>,
        bias: Option<&Buffer<f32>>,
        y: &mut Matrix<T>,
    ) -> Result<(), Error> {
        self.enqueue(stream, activations, weight, bias, y, sys::INT8_CUDA_ACCUMULATE)
    }

    /// The shape planned for; m is the largest.
    pub fn largest(&self) -> Shape {
        self.largest
    }

    /// The algorithm for the largest m.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// Bytes of the workspace.
    pub fn workspace_bytes(&self) -> usize {
        self.workspace.len()
    }

    fn enqueue(
        &mut self,
        stream: &Stream,
        activations: &QuantizedActivations<T>,
        weight: &Weight<T>,
        bias: Option<&Buffer<f32>>,
        y: &mut Matrix<T>,
        store: i32,
    ) -> Result<(), Error> {
        const OPERATION: &str = "gemm";
        let Shape { m: largest_m, n, k } = self.largest;
        let (m, found_k) = activations.dim();
        if m > largest_m || found_k != k {
            let (expected, found) = ((largest_m, k), (m, found_k));
            return Err(Error::Shape { operation: OPERATION, what: "activations", expected, found });
        }
        y.expect_rows(OPERATION, "y", (m, n))?;
        weight.expect(OPERATION, (n, k))?;
        expect_bias(OPERATION, bias, n)?;
        let shape = || format!("x [{m}, {k}], W [{n}, {k}], {} by {:?}", T::NAME, self.requested);
        if weight.zero_points.is_some() && !activations.has_code_sums() {
            let shape = format!("{}: the weight has zero points, the activations have no code sums", shape());
            return Err(Error::Invalid { operation: OPERATION, shape });
        }
        let mut params = sys::int8_cuda_gemm_params {
            y: y.pointer().cast(),
            workspace: self.workspace.pointer().cast(),
            stream: stream.raw()?,
            workspace_bytes: self.workspace.len(),
            ldy: convert::size(y.ld()),
            store,
            activations: activations.raw(),
            ..params::gemm(T::ELEMENT, Shape { m, n, k }, activations.config(), self.requested)
        };
        params::set_gemm_weight(&mut params, &weight.raw(), bias);
        // SAFETY: every matrix and buffer has the size named in params; freeing any of them waits for the device.
        check(OPERATION, unsafe { sys::int8_cuda_gemm(&raw const params) }, shape)
    }
}

/// A bias of n values, or none.
pub(crate) fn expect_bias(
    operation: &'static str,
    bias: Option<&Buffer<f32>>,
    n: usize,
) -> Result<(), Error> {
    match bias.map(Buffer::len) {
        Some(len) if len != n => {
            Err(Error::Shape { operation, what: "bias", expected: (1, n), found: (1, len) })
        }
        _ => Ok(()),
    }
}
