//! The complete layer: a plan fixes algorithm and workspace for a shape and a configuration; running it only enqueues.

use std::marker::PhantomData;

use int8_core::{Config, OutlierGranularity, OutlierRule, RowMaximum, RowStatistic};
use int8_cuda_sys as sys;

use crate::convert;
use crate::device::{Device, Stream};
use crate::error::{Error, check};
use crate::matrix::{Buffer, Float, Matrix};
use crate::weight::{self, Weight};

/// `y [m, n] = x [m, k] · Wᵀ`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Rows of x.
    pub m: usize,
    /// Outputs.
    pub n: usize,
    /// Inputs.
    pub k: usize,
}

/// How the int8 product is computed. `int8_cuda.h` says what each needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Algorithm {
    /// What measurement found best for the shape.
    Auto,
    /// Weights streamed once through registers, `m ≤ 32`.
    Skinny,
    /// The same for one row of f16 or bf16, which every block quantises for itself.
    SkinnyOne,
    /// The same with weights that the copy engine brings to shared memory (sm_90), `k ≤ 16384` a multiple of 128.
    Stream,
    /// 128×128 tiles, `mma.sync`: any size, type and device.
    Mma,
    /// 128×256 tiles in clusters of two, `wgmma` (sm_90a), f16 and bf16.
    Wgmma128x256,
    /// 128×128 tiles, one a warpgroup, so that epilogues run beside products, `wgmma` (sm_90a), f16 and bf16.
    Wgmma128x128,
    /// 64×128 tiles for few rows, `wgmma` (sm_90a), f16 and bf16.
    Wgmma64x128,
    /// 64×64 tiles for few rows and smaller `n`, `wgmma` (sm_90a), f16 and bf16.
    Wgmma64x64,
    /// 64×32 tiles for few rows and smaller `n` still, `wgmma` (sm_90a), f16 and bf16.
    Wgmma64x32,
    /// cuBLASLt's i8·i8→i32, for [`crate::int8_product`] alone.
    CublasLt,
}

impl Algorithm {
    /// All that compute the layer.
    pub const LAYER: [Self; 9] = [
        Self::Skinny,
        Self::SkinnyOne,
        Self::Stream,
        Self::Mma,
        Self::Wgmma128x256,
        Self::Wgmma128x128,
        Self::Wgmma64x128,
        Self::Wgmma64x64,
        Self::Wgmma64x32,
    ];

    /// What `name` calls, in upper or lower case: one of [`Self::LAYER`], or [`Self::Auto`].
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        let mut known = Self::LAYER.into_iter().chain([Self::Auto]);
        known.find(|algorithm| format!("{algorithm:?}").eq_ignore_ascii_case(name))
    }

    /// The names that [`Self::named`] knows, separated by commas.
    #[must_use]
    pub fn names() -> String {
        let known = Self::LAYER.into_iter().chain([Self::Auto]);
        known.map(|algorithm| format!("{algorithm:?}")).collect::<Vec<_>>().join(", ")
    }

    pub(crate) const fn raw(self) -> i32 {
        match self {
            Self::Auto => sys::INT8_CUDA_AUTO,
            Self::Skinny => sys::INT8_CUDA_SKINNY,
            Self::SkinnyOne => sys::INT8_CUDA_SKINNY_ONE,
            Self::Mma => sys::INT8_CUDA_MMA,
            Self::Wgmma128x256 => sys::INT8_CUDA_WGMMA_128X256,
            Self::Wgmma128x128 => sys::INT8_CUDA_WGMMA_128X128,
            Self::Wgmma64x128 => sys::INT8_CUDA_WGMMA_64X128,
            Self::Wgmma64x64 => sys::INT8_CUDA_WGMMA_64X64,
            Self::Wgmma64x32 => sys::INT8_CUDA_WGMMA_64X32,
            Self::Stream => sys::INT8_CUDA_STREAM,
            Self::CublasLt => sys::INT8_CUDA_CUBLASLT,
        }
    }

    fn from_raw(raw: i32) -> Self {
        Self::LAYER.into_iter().find(|algorithm| algorithm.raw() == raw).unwrap_or(Self::Auto)
    }
}

/// Everything about a linear layer that does not change from run to run.
#[derive(Debug)]
pub struct LinearPlan<T> {
    shape: Shape,
    config: Config,
    layout: sys::int8_cuda_linear_layout,
    workspace: Buffer<u8>,
    element: PhantomData<T>,
}

/// What a run left in its plan's workspace.
#[derive(Debug, Clone, PartialEq)]
pub struct Intermediates {
    /// Codes of x `[m, k]`, row-major.
    pub codes: Vec<i8>,
    /// Scales of x `[m]`.
    pub scales: Vec<f32>,
    /// Zero points of x `[m]`.
    pub zero_points: Vec<i32>,
    /// Columns with an outlier, ascending.
    pub outlier_columns: Vec<usize>,
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
        let params = settings::<T>(shape, config, algorithm);
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
        let Shape { m, n, k } = self.shape;
        x.expect("linear", "x", (m, k))?;
        y.expect("linear", "y", (m, n))?;
        weight.codes.expect("linear", "W", (n, k))?;
        if let Some(bias) = bias
            && bias.len() != n
        {
            return Err(Error::Shape {
                operation: "linear",
                what: "bias",
                expected: (1, n),
                found: (1, bias.len()),
            });
        }
        let mut params = settings::<T>(self.shape, &self.config, Algorithm::from_raw(self.layout.algorithm));
        params.x = x.pointer().cast();
        params.weight = weight.codes.pointer();
        params.weight_scales = weight.scales.pointer();
        params.weight_zero_points =
            weight.zero_points.as_ref().map_or(std::ptr::null(), |z| z.pointer().cast_const());
        params.weight_code_sums = weight.code_sums.pointer();
        if let Some(exact) = &weight.exact {
            params.exact = exact.values.pointer().cast();
            params.exact_index =
                exact.index.as_ref().map_or(std::ptr::null(), |index| index.pointer().cast_const());
            params.exact_stride_n = convert::size(exact.strides.0);
            params.exact_stride_c = convert::size(exact.strides.1);
        }
        params.bias = bias.map_or(std::ptr::null(), |bias| bias.pointer().cast_const());
        params.y = y.pointer().cast();
        params.workspace = self.workspace.pointer().cast();
        params.workspace_bytes = self.workspace.len();
        params.stream = stream.raw()?;
        params.ldx = convert::size(x.ld());
        params.ldw = convert::size(weight.codes.ld());
        params.ldy = convert::size(y.ld());
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

    /// What the last run left behind; `None` for [`Algorithm::SkinnyOne`] and
    /// [`Algorithm::Stream`], which leave nothing. Waits for the stream.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn intermediates(&self, stream: &Stream) -> Result<Option<Intermediates>, Error> {
        let Shape { m, k, .. } = self.shape;
        if matches!(self.algorithm(), Algorithm::SkinnyOne | Algorithm::Stream) {
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
fn settings<T: Float>(shape: Shape, config: &Config, algorithm: Algorithm) -> sys::int8_cuda_linear_params {
    let (rule, threshold) = match config.rule {
        OutlierRule::Absolute(threshold) => (sys::INT8_CUDA_RULE_ABSOLUTE, threshold),
        OutlierRule::RelativeToRow { tau, statistic: RowStatistic::MedianAbs } => {
            (sys::INT8_CUDA_RULE_MEDIAN, tau)
        }
        OutlierRule::RelativeToRow { tau, statistic: RowStatistic::MeanAbs } => {
            (sys::INT8_CUDA_RULE_MEAN, tau)
        }
        OutlierRule::None => (sys::INT8_CUDA_RULE_NONE, 0.0),
        // A rule that int8-core has and the kernels do not know: −1 is refused by them as invalid.
        _ => (-1, 0.0),
    };
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
        encoding: weight::encoding(config.input_encoding),
        granularity: weight::granularity(config.input_granularity),
        rule,
        outlier_granularity: match config.outlier_granularity {
            OutlierGranularity::Column => sys::INT8_CUDA_COLUMN,
            OutlierGranularity::Value => sys::INT8_CUDA_VALUE,
        },
        row_maximum: match config.row_maximum {
            RowMaximum::Paper => sys::INT8_CUDA_MAXIMUM_PAPER,
            RowMaximum::Bitsandbytes => sys::INT8_CUDA_MAXIMUM_BITSANDBYTES,
        },
        threshold,
        algorithm: algorithm.raw(),
    }
}
