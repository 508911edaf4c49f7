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
use crate::model::identity;
use crate::scalar::Float;
use crate::settings::Settings;
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
        let mut layout = std::mem::MaybeUninit::<sys::int8_cuda_linear_layout>::zeroed();
        let params = sizes::<T>(shape, config, algorithm);
        // SAFETY: the function reads sizes and settings and fills the layout.
        let status = unsafe { sys::int8_cuda_linear_workspace(&raw const params, layout.as_mut_ptr()) };
        check("linear plan", status, || format!("{shape:?}, {} by {algorithm:?}", T::NAME))?;
        // SAFETY: zeroed, then filled; all bit patterns are valid.
        let layout = unsafe { layout.assume_init() };
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
        let raw = weight.raw();
        let params = sys::int8_cuda_linear_params {
            x: x.pointer().cast_const().cast(),
            weight: raw.codes,
            weight_scales: raw.scales,
            weight_zero_points: raw.zero_points,
            weight_code_sums: raw.code_sums,
            exact: raw.exact,
            exact_index: raw.exact_index,
            bias: bias.map_or(std::ptr::null(), |bias| bias.pointer().cast_const()),
            y: y.pointer().cast(),
            workspace: self.workspace.pointer().cast(),
            stream: stream.raw()?,
            workspace_bytes: self.workspace.len(),
            ldx: convert::size(x.ld()),
            ldw: raw.ld,
            ldy: convert::size(y.ld()),
            exact_stride_n: raw.exact_strides.0,
            exact_stride_c: raw.exact_strides.1,
            store,
            ..sizes::<T>(self.shape, &self.config, Algorithm::from_raw(self.layout.algorithm))
        };
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

/// Sizes and settings without pointers.
fn sizes<T: Float>(shape: Shape, config: &Config, algorithm: Algorithm) -> sys::int8_cuda_linear_params {
    let settings = Settings::of(config);
    sys::int8_cuda_linear_params {
        x: std::ptr::null(),
        weight: std::ptr::null(),
        weight_scales: std::ptr::null(),
        weight_zero_points: std::ptr::null(),
        weight_code_sums: std::ptr::null(),
        exact: std::ptr::null(),
        exact_index: std::ptr::null(),
        bias: std::ptr::null(),
        y: std::ptr::null_mut(),
        workspace: std::ptr::null_mut(),
        stream: std::ptr::null_mut(),
        workspace_bytes: 0,
        m: convert::size(shape.m),
        n: convert::size(shape.n),
        k: convert::size(shape.k),
        ldx: convert::size(shape.k),
        ldw: convert::size(shape.k.next_multiple_of(16)),
        ldy: convert::size(shape.n),
        exact_stride_n: 0,
        exact_stride_c: 0,
        element: T::ELEMENT,
        encoding: settings.encoding,
        granularity: settings.granularity,
        rule: settings.rule,
        outlier_granularity: settings.outlier_granularity,
        row_maximum: settings.row_maximum,
        threshold: settings.threshold,
        algorithm: algorithm.raw(),
        store: sys::INT8_CUDA_OVERWRITE,
        y_element: T::ELEMENT,
        x_element: T::ELEMENT,
        reserved: 0,
        transform: identity(),
    }
}
