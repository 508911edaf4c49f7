//! All three stages for one weight: a plan fixes algorithm and workspace for a shape and a configuration; running it only
//! enqueues.

use std::marker::PhantomData;

use int8_core::{Config, OutlierRule};
use int8_cuda_sys as sys;

use crate::activations::Intermediates;
use crate::algorithm::{Algorithm, Shape};
use crate::convert;
use crate::device::{Device, Stream};
use crate::error::{Error, check};
use crate::gemm::expect_bias;
use crate::matrix::{Buffer, Matrix};
use crate::params;
use crate::scalar::Float;
use crate::weight::Weight;

/// Shape, configuration, algorithm and workspace of a linear layer.
#[derive(Debug)]
pub struct LinearPlan<T> {
    shape: Shape,
    config: Config,
    layout: sys::int8_cuda_linear_layout,
    workspace: Buffer<u8>,
    element: PhantomData<T>,
}

impl<T: Float> LinearPlan<T> {
    /// Chooses the algorithm and allocates the workspace.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when the algorithm cannot do it here, [`Error::Invalid`] for K above 133,144 or an invalid
    /// threshold, [`Error::OutOfMemory`], [`Error::Device`].
    pub fn new(device: &Device, shape: Shape, config: &Config, algorithm: Algorithm) -> Result<Self, Error> {
        device.activate()?;
        let params = params::linear(T::ELEMENT, shape, config, algorithm);
        let layout = params::linear_layout(&params, "linear plan", || {
            format!("{shape:?}, {} by {algorithm:?}", T::NAME)
        })?;
        let workspace = Buffer::zeros(device, convert::from_offset(layout.total))?;
        Ok(Self { shape, config: *config, layout, workspace, element: PhantomData })
    }

    /// Enqueues `y = x·Wᵀ + bias`.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::Device`].
    pub fn run(
        &mut self,
        stream: &Stream,
        x: &Matrix<T>,
        weight: &Weight<T>,
        bias: Option<&Buffer<f32>>,
        y: &mut Matrix<T>,
    ) -> Result<(), Error> {
        self.enqueue(stream, x, weight, bias, y, sys::INT8_CUDA_OVERWRITE)
    }

    /// Enqueues `y += x·Wᵀ + bias`: the sum in f32, rounded once.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::Device`].
    pub fn accumulate(
        &mut self,
        stream: &Stream,
        x: &Matrix<T>,
        weight: &Weight<T>,
        bias: Option<&Buffer<f32>>,
        y: &mut Matrix<T>,
    ) -> Result<(), Error> {
        self.enqueue(stream, x, weight, bias, y, sys::INT8_CUDA_ACCUMULATE)
    }

    fn enqueue(
        &mut self,
        stream: &Stream,
        x: &Matrix<T>,
        weight: &Weight<T>,
        bias: Option<&Buffer<f32>>,
        y: &mut Matrix<T>,
        store: i32,
    ) -> Result<(), Error> {
        let Shape { m, n, k } = self.shape;
        x.expect("linear", "x", (m, k))?;
        y.expect("linear", "y", (m, n))?;
        weight.expect("linear", (n, k))?;
        expect_bias("linear", bias, n)?;
        let algorithm = Algorithm::from_raw(self.layout.algorithm);
        let mut params = sys::int8_cuda_linear_params {
            x: x.pointer().cast_const().cast(),
            y: y.pointer().cast(),
            workspace: self.workspace.pointer().cast(),
            stream: stream.raw()?,
            workspace_bytes: self.workspace.len(),
            ldx: convert::size(x.ld()),
            ldy: convert::size(y.ld()),
            store,
            ..params::linear(T::ELEMENT, self.shape, &self.config, algorithm)
        };
        params::set_linear_weight(&mut params, &weight.raw(), bias);
        // SAFETY: every matrix and buffer has the size named in params, the workspace what the layout says; freeing any of
        // them waits for the device.
        let status = unsafe { sys::int8_cuda_linear(&raw const params) };
        check("linear", status, || format!("{:?}, {} by {:?}", self.shape, T::NAME, self.algorithm()))
    }

    /// The algorithm that runs.
    pub fn algorithm(&self) -> Algorithm {
        Algorithm::from_raw(self.layout.algorithm)
    }

    /// The shape planned for.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Bytes of the workspace.
    pub fn workspace_bytes(&self) -> usize {
        self.workspace.len()
    }

    /// The last run's x as codes; `None` where the algorithm is fused ([`Algorithm::is_fused`]). Waits for the stream.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn intermediates(&self, stream: &Stream) -> Result<Option<Intermediates>, Error> {
        let Shape { m, k, .. } = self.shape;
        if self.algorithm().is_fused() {
            return Ok(None);
        }
        let ld = convert::from_size(self.layout.ldq);
        let offset = convert::from_offset;
        let padded: Vec<i8> = self.workspace.read_at(stream, offset(self.layout.codes), m * ld)?;
        let codes = padded.chunks(ld.max(1)).flat_map(|row| row[..k].iter().copied()).collect();
        let outlier_columns = if self.config.rule == OutlierRule::None {
            Vec::new()
        } else {
            let count: Vec<u32> = self.workspace.read_at(stream, offset(self.layout.outlier_count), 1)?;
            let columns: Vec<i32> = self.workspace.read_at(
                stream,
                offset(self.layout.outlier_columns),
                convert::from_u32(count[0]),
            )?;
            columns.into_iter().map(convert::from_count).collect()
        };
        Ok(Some(Intermediates {
            codes,
            scales: self.workspace.read_at(stream, offset(self.layout.scales), m)?,
            zero_points: self.workspace.read_at(stream, offset(self.layout.zero_points), m)?,
            outlier_columns,
        }))
    }
}
