//! Stage 1: activations as codes and outliers, made once for every weight that reads them.

use int8_core::{Config, Encoding, OutlierRule};
use int8_cuda_sys as sys;

use crate::convert;
use crate::device::{Device, Stream};
use crate::error::{Error, check};
use crate::matrix::{Buffer, Matrix};
use crate::params;
use crate::scalar::Float;
use crate::settings::Settings;

/// `x [m, k]` on the device as int8 codes with their quantization parameters, and the outliers in `T`: the value between
/// prologue and GEMM. Owns its buffers, for up to a largest m; one value serves any number of weights.
///
/// ```text
/// x[m,k] ≈ (q[m,k] − z[m])·s[m]/127   where (m,k) is no outlier
/// x[m,k]                              where it is
/// ```
#[derive(Debug)]
pub struct QuantizedActivations<T> {
    config: Config,
    m: usize,
    /// i8 `[largest m, k]`, ld = k rounded up to 16.
    codes: Matrix<i8>,
    scales: Buffer<f32>,
    zero_points: Buffer<i32>,
    /// For weights with zero points.
    code_sums: Option<Buffer<i32>>,
    /// `None` for [`OutlierRule::None`].
    outliers: Option<Outliers<T>>,
    workspace: Buffer<u8>,
}

#[derive(Debug)]
struct Outliers<T> {
    count: Buffer<u32>,
    /// i32 `[k]`.
    columns: Buffer<i32>,
    /// `T [m, k rounded up to 64]` in panels of 64 columns.
    values: Buffer<T>,
}

/// A quantised x on the host.
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

impl<T: Float> QuantizedActivations<T> {
    /// Buffers for `x` of up to `largest_m` rows of `k` values, quantised as `config` says; `m = 0` until the first
    /// [`Self::quantize`]. About `largest_m · k · (1 + size of T)` bytes with an outlier rule, `largest_m · k` without.
    ///
    /// Weights with zero points need code sums, which are made where `config.weight_encoding` is
    /// [`Encoding::Zeropoint`].
    ///
    /// # Errors
    /// [`Error::Invalid`] for k above 133,144 or an invalid threshold, [`Error::OutOfMemory`], [`Error::Device`].
    pub fn new(device: &Device, largest_m: usize, k: usize, config: &Config) -> Result<Self, Error> {
        let outliers = if config.rule == OutlierRule::None {
            None
        } else {
            Some(Outliers {
                count: Buffer::zeros(device, 1)?,
                columns: Buffer::zeros(device, k)?,
                values: Buffer::zeros(device, largest_m * k.next_multiple_of(64))?,
            })
        };
        let mut activations = Self {
            config: *config,
            m: largest_m,
            codes: Matrix::padded(device, largest_m, k, k.next_multiple_of(16))?,
            scales: Buffer::zeros(device, largest_m)?,
            zero_points: Buffer::zeros(device, largest_m)?,
            code_sums: match config.weight_encoding {
                Encoding::Zeropoint => Some(Buffer::zeros(device, largest_m)?),
                Encoding::Absmax => None,
            },
            outliers,
            workspace: Buffer::zeros(device, 0)?,
        };
        let bytes = params::prologue_bytes(&activations.params(), "quantized activations", || {
            activations.described(largest_m)
        })?;
        activations.workspace = Buffer::zeros(device, bytes)?;
        activations.m = 0;
        Ok(activations)
    }

    /// Enqueues the prologue of the first `m` rows of `x [≥ m, k]`. Later runs of a GEMM read this value; `x` is not read
    /// again.
    ///
    /// # Errors
    /// [`Error::Shape`] where `m` exceeds the rows of `x` or the largest m, or `x` has not k columns; [`Error::Device`].
    pub fn quantize(&mut self, stream: &Stream, x: &Matrix<T>, m: usize) -> Result<(), Error> {
        let (largest_m, k) = self.codes.dim();
        x.expect_rows("prologue", "x", (m, k))?;
        if m > largest_m {
            return Err(Error::Shape {
                operation: "prologue",
                what: "x",
                expected: (largest_m, k),
                found: (m, k),
            });
        }
        self.m = m;
        let mut params = self.params();
        params.x = x.pointer().cast();
        params.ldx = convert::size(x.ld());
        params.workspace = self.workspace.pointer().cast();
        params.workspace_bytes = self.workspace.len();
        params.stream = stream.raw()?;
        // SAFETY: every buffer has the size named in params for up to the largest m; freeing one waits for the device.
        let status = unsafe { sys::int8_cuda_prologue(&raw const params) };
        check("prologue", status, || self.described(m))
    }

    /// Rows and columns of the x that was quantised last, `(m, k)`.
    pub fn dim(&self) -> (usize, usize) {
        (self.m, self.codes.dim().1)
    }

    /// Rows the buffers have room for.
    pub fn largest_m(&self) -> usize {
        self.codes.dim().0
    }

    /// How x is quantised.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Whether weights with zero points can be multiplied.
    pub fn has_code_sums(&self) -> bool {
        self.code_sums.is_some()
    }

    /// Device memory in bytes.
    pub fn bytes(&self) -> usize {
        let (largest_m, k) = self.codes.dim();
        let sums = self.code_sums.as_ref().map_or(0, Buffer::len);
        let outliers =
            self.outliers.as_ref().map_or(0, |outliers| 4 + 4 * k + outliers.values.len() * size_of::<T>());
        largest_m * (self.codes.ld() + 8) + 4 * sums + outliers + self.workspace.len()
    }

    /// Codes, quantization parameters and outlier columns. Waits for the stream.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn intermediates(&self, stream: &Stream) -> Result<Intermediates, Error> {
        let (m, k) = self.dim();
        let mut codes = self.codes.to_host(stream)?;
        codes.truncate(m * k);
        let (mut scales, mut zero_points) = (self.scales.to_host(stream)?, self.zero_points.to_host(stream)?);
        scales.truncate(m);
        zero_points.truncate(m);
        Ok(Intermediates { codes, scales, zero_points, outlier_columns: self.outlier_columns(stream)? })
    }

    /// `T [m, |O|]` row-major: the outlier columns of x, 0 where a value of them is no outlier. Waits for the stream.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn outlier_values(&self, stream: &Stream) -> Result<Vec<T>, Error> {
        let Some(outliers) = &self.outliers else { return Ok(Vec::new()) };
        let count = self.outlier_columns(stream)?.len();
        let panels = outliers.values.to_host(stream)?;
        let at = |row: usize, j: usize| panels[(j / 64 * self.m + row) * 64 + j % 64];
        Ok((0..self.m).flat_map(|row| (0..count).map(move |j| (row, j))).map(|(row, j)| at(row, j)).collect())
    }

    fn outlier_columns(&self, stream: &Stream) -> Result<Vec<usize>, Error> {
        let Some(outliers) = &self.outliers else { return Ok(Vec::new()) };
        if self.m == 0 {
            return Ok(Vec::new());
        }
        let count = convert::from_u32(outliers.count.to_host(stream)?[0]);
        let columns = outliers.columns.to_host(stream)?;
        Ok(columns.into_iter().take(count).map(convert::from_count).collect())
    }

    /// The value as the kernels take it.
    pub(crate) fn raw(&self) -> sys::int8_cuda_activations {
        let outliers = self.outliers.as_ref();
        sys::int8_cuda_activations {
            codes: self.codes.pointer(),
            scales: self.scales.pointer(),
            zero_points: self.zero_points.pointer(),
            code_sums: self.code_sums.as_ref().map_or(std::ptr::null_mut(), Buffer::pointer),
            outlier_count: outliers.map_or(std::ptr::null_mut(), |outliers| outliers.count.pointer()),
            outlier_columns: outliers.map_or(std::ptr::null_mut(), |outliers| outliers.columns.pointer()),
            outlier_values: outliers
                .map_or(std::ptr::null_mut(), |outliers| outliers.values.pointer().cast()),
            ..params::activations(T::ELEMENT, self.m, self.codes.dim().1, &Settings::of(&self.config))
        }
    }

    /// Sizes, settings and the value's pointers; x, workspace and stream are null.
    fn params(&self) -> sys::int8_cuda_prologue_params {
        params::prologue(&Settings::of(&self.config), self.raw())
    }

    fn described(&self, m: usize) -> String {
        format!("x [{m}, {}] {}", self.codes.dim().1, T::NAME)
    }
}
