//! The weight of a linear layer on the device.

use int8_core::{Config, Encoding, Granularity, QuantizedMatrix};
use int8_cuda_sys as sys;

use crate::convert;
use crate::device::{Device, Stream};
use crate::error::{Error, check};
use crate::matrix::{Buffer, Matrix};
use crate::scalar::Float;
use crate::settings;

/// Which columns of the weight stay in 16 (or 32) bits beside their codes, for the outlier product.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeepExact<'a> {
    /// None: outliers are multiplied with dequantised codes.
    None,
    /// All: the matrix given to [`Weight::quantize`] is kept.
    All,
    /// These, in any order, each at most once.
    Columns(&'a [usize]),
}

/// `W [N, K]` as int8 codes with its quantization parameters.
#[derive(Debug)]
pub struct Weight<T> {
    pub(crate) codes: Matrix<i8>,
    pub(crate) scales: Buffer<f32>,
    /// `None` for absmax.
    pub(crate) zero_points: Option<Buffer<i32>>,
    pub(crate) code_sums: Buffer<i32>,
    pub(crate) exact: Option<Exact<T>>,
}

#[derive(Debug)]
pub(crate) struct Exact<T> {
    pub(crate) values: Matrix<T>,
    /// For each column its place among the kept ones, or −1. `None`: all are kept.
    pub(crate) index: Option<Buffer<i32>>,
    /// Elements from one output channel to the next, and from one kept column to the next.
    pub(crate) strides: (usize, usize),
}

/// Pointers and strides of a [`Weight`], for C.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RawWeight {
    pub(crate) codes: *const i8,
    pub(crate) scales: *const f32,
    pub(crate) zero_points: *const i32,
    pub(crate) code_sums: *const i32,
    pub(crate) exact: *const std::ffi::c_void,
    pub(crate) exact_index: *const i32,
    pub(crate) exact_strides: (i64, i64),
    pub(crate) ld: i64,
}

impl<T: Float> Weight<T> {
    /// Quantises `w [N, K]` on the device as `config` says for weights.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a column to keep that is not there, [`Error::OutOfMemory`], [`Error::Device`].
    pub fn quantize(stream: &Stream, w: Matrix<T>, config: &Config, keep: KeepExact) -> Result<Self, Error> {
        let rows = quantize(stream, &w, config.weight_encoding, config.weight_granularity)?;
        let exact = match keep {
            KeepExact::None => None,
            KeepExact::All => {
                let strides = (w.ld(), 1);
                Some(Exact { values: w, index: None, strides })
            }
            KeepExact::Columns(columns) => Some(keep_columns(stream, &w, columns)?),
        };
        Ok(Self { exact, ..rows })
    }

    /// Uploads codes that exist already, for instance from a checkpoint.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for scales of groups of K, [`Error::OutOfMemory`], [`Error::Device`].
    pub fn from_host(device: &Device, quantized: &QuantizedMatrix) -> Result<Self, Error> {
        let (rows, inner) = quantized.dim();
        if quantized.groups() != 1 {
            let shape = format!("W [{rows}, {inner}] with scales for groups of K");
            return Err(Error::Unsupported { operation: "Weight::from_host", shape });
        }
        let ld = inner.next_multiple_of(16);
        let mut padded = vec![0_i8; rows * ld];
        for ((row, column), code) in quantized.codes().indexed_iter() {
            padded[row * ld + column] = *code;
        }
        let sums: Vec<i32> = quantized
            .codes()
            .rows()
            .into_iter()
            .map(|row| row.iter().map(|code| i32::from(*code)).sum())
            .collect();
        let mut codes = Matrix::padded(device, rows, inner, ld)?;
        codes.copy_from_host(&padded)?;
        let zeros: Vec<i32> = quantized.zero_points().to_vec();
        let zero_points =
            if zeros.iter().all(|z| *z == 0) { None } else { Some(Buffer::from_host(device, &zeros)?) };
        Ok(Self {
            codes,
            scales: Buffer::from_host(device, &quantized.scales().to_vec())?,
            zero_points,
            code_sums: Buffer::from_host(device, &sums)?,
            exact: None,
        })
    }

    /// Output channels and input features, `(N, K)`.
    pub fn dim(&self) -> (usize, usize) {
        self.codes.dim()
    }

    /// Codes `[N, K]`.
    pub fn codes(&self) -> &Matrix<i8> {
        &self.codes
    }

    /// Scales `[N]`.
    pub fn scales(&self) -> &Buffer<f32> {
        &self.scales
    }

    /// Zero points `[N]`; `None`: all 0.
    pub fn zero_points(&self) -> Option<&Buffer<i32>> {
        self.zero_points.as_ref()
    }

    /// A weight `[n, k]`.
    pub(crate) fn expect(&self, operation: &'static str, expected: (usize, usize)) -> Result<(), Error> {
        self.codes.expect(operation, "W", expected)
    }

    /// The weight as the kernels take it.
    pub(crate) fn raw(&self) -> RawWeight {
        let index = |exact: &Exact<T>| exact.index.as_ref().map(|index| index.pointer().cast_const());
        let exact = self.exact.as_ref();
        let strides = exact.map_or((0, 0), |exact| exact.strides);
        RawWeight {
            codes: self.codes.pointer(),
            scales: self.scales.pointer(),
            zero_points: self.zero_points.as_ref().map_or(std::ptr::null(), |z| z.pointer().cast_const()),
            code_sums: self.code_sums.pointer(),
            exact: exact.map_or(std::ptr::null(), |exact| exact.values.pointer().cast_const().cast()),
            exact_index: exact.and_then(index).unwrap_or(std::ptr::null()),
            exact_strides: (convert::size(strides.0), convert::size(strides.1)),
            ld: convert::size(self.codes.ld()),
        }
    }

    /// Device memory in bytes.
    pub fn bytes(&self) -> usize {
        let (n, k) = self.dim();
        let exact = self
            .exact
            .as_ref()
            .map_or(0, |exact| exact.values.dim().0 * exact.values.dim().1 * size_of::<T>());
        n * self.codes.ld()
            + n * 8
            + self.zero_points.as_ref().map_or(0, |_| n * 4)
            + exact
            + if exact > 0 { k * 4 } else { 0 }
    }
}

/// Copies columns of `w`, one after the other, so that each is contiguous.
fn keep_columns<T: Float>(stream: &Stream, w: &Matrix<T>, columns: &[usize]) -> Result<Exact<T>, Error> {
    let (rows, inner) = w.dim();
    let mut index = vec![-1_i32; inner];
    for (place, &column) in columns.iter().enumerate() {
        match index.get_mut(column) {
            Some(slot) if *slot < 0 => *slot = convert::index(place),
            _ => {
                let shape = format!("column {column} of W [{rows}, {inner}]: absent or named twice");
                return Err(Error::Invalid { operation: "keep exact columns", shape });
            }
        }
    }
    let host = w.to_host(stream)?;
    let kept: Vec<T> = columns
        .iter()
        .flat_map(|&column| host.iter().skip(column).step_by(inner).take(rows).copied())
        .collect();
    let values = Matrix::from_host(stream.device(), columns.len(), rows, &kept)?;
    Ok(Exact { values, index: Some(Buffer::from_host(stream.device(), &index)?), strides: (1, rows) })
}

/// Quantises rows without outliers; the exact columns are left to the caller.
pub(crate) fn quantize<T: Float>(
    stream: &Stream,
    x: &Matrix<T>,
    encoding: Encoding,
    granularity: Granularity,
) -> Result<Weight<T>, Error> {
    let (rows, inner) = x.dim();
    let device = stream.device();
    let codes = Matrix::padded(device, rows, inner, inner.next_multiple_of(16))?;
    let (scales, sums) = (Buffer::zeros(device, rows)?, Buffer::zeros(device, rows)?);
    let zero_points = match encoding {
        Encoding::Absmax => None,
        Encoding::Zeropoint => Some(Buffer::zeros(device, rows)?),
    };
    let mut params = sys::int8_cuda_quantize_params {
        x: x.pointer().cast(),
        codes: codes.pointer(),
        scales: scales.pointer(),
        zero_points: zero_points.as_ref().map_or(std::ptr::null_mut(), Buffer::pointer),
        code_sums: sums.pointer(),
        workspace: std::ptr::null_mut(),
        stream: stream.raw()?,
        workspace_bytes: 0,
        rows: convert::size(rows),
        inner: convert::size(inner),
        ldx: convert::size(x.ld()),
        ldq: convert::size(codes.ld()),
        element: T::ELEMENT,
        encoding: settings::encoding(encoding),
        granularity: settings::granularity(granularity),
        rule: sys::INT8_CUDA_RULE_NONE,
        outlier_granularity: sys::INT8_CUDA_COLUMN,
        row_maximum: sys::INT8_CUDA_MAXIMUM_PAPER,
        threshold: 0.0,
        reserved: 0,
    };
    let shape = || format!("x [{rows}, {inner}] {}", T::NAME);
    let mut bytes = 0;
    // SAFETY: the function reads sizes and settings only.
    let status = unsafe { sys::int8_cuda_quantize_workspace(&raw const params, &raw mut bytes) };
    check("quantize", status, shape)?;
    params.workspace_bytes = bytes;
    let workspace = Buffer::<u8>::zeros(device, params.workspace_bytes)?;
    params.workspace = workspace.pointer().cast();
    // SAFETY: all buffers have the sizes named in params; freeing one waits for the device.
    check("quantize", unsafe { sys::int8_cuda_quantize(&raw const params) }, shape)?;
    Ok(Weight { codes, scales, zero_points, code_sums: sums, exact: None })
}
