//! Intermediate results of projections and attention: one workspace serves all layers of all models on a stream.

use int8_core::{Config, FloatType};
use int8_cuda_sys as sys;

use super::linear::{FloatWeight, Int8Linear};
use super::tensor::{Store, Tensor, element};
use super::transform::{Function, identity, transform};
use crate::convert;
use crate::device::{Device, Stream};
use crate::error::{Error, check};
use crate::gemm::expect_bias;
use crate::matrix::Buffer;
use crate::settings::Settings;

/// A linear layer that a workspace has to serve.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Projection {
    /// Output channels.
    pub n: usize,
    /// Input features.
    pub k: usize,
    /// How its input is quantised; `None`: in floating point.
    pub config: Option<Config>,
}

/// An int8 weight with its bias, output and store.
#[derive(Debug)]
pub struct Target<'a> {
    /// W.
    pub weight: &'a Int8Linear,
    /// `[n]`
    pub bias: Option<&'a Buffer<f32>>,
    /// y, of the compute type or f32.
    pub out: &'a mut Tensor,
    /// How y is stored.
    pub store: Store,
}

/// Buffers for up to a largest number of rows.
#[derive(Debug)]
pub struct Workspace {
    compute: FloatType,
    largest_rows: usize,
    /// The transformed input of a projection, 4 bytes an element.
    input: Tensor,
    activations: Activations,
    /// Of `int8_cuda_linear`, `int8_cuda_prologue` (both zeroed when made), `int8_cuda_gemm`, `int8_cuda_float_linear`.
    linear: Buffer<u8>,
    prologue: Buffer<u8>,
    gemm: Buffer<u8>,
    float: Buffer<u8>,
    attention: Buffer<u8>,
    /// Set by [`super::Attention::append`] where a key or value overflowed.
    overflow: Buffer<u32>,
}

/// The value between prologue and GEMM.
#[derive(Debug)]
struct Activations {
    codes: Buffer<i8>,
    scales: Buffer<f32>,
    zero_points: Buffer<i32>,
    code_sums: Buffer<i32>,
    outlier_count: Buffer<u32>,
    outlier_columns: Buffer<i32>,
    outlier_values: Buffer<u8>,
}

/// Bytes for cuBLASLt.
const FLOAT_BYTES: usize = 32 << 20;

impl Workspace {
    /// For forwards of up to `rows` rows through these projections, with intermediate results in `compute`, and for attention
    /// that needs `attention_bytes`.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::Device`], [`Error::Invalid`] for a projection that the kernels do not compute.
    pub fn new(
        device: &Device,
        compute: FloatType,
        rows: usize,
        projections: &[Projection],
        attention_bytes: usize,
    ) -> Result<Self, Error> {
        device.activate()?;
        let k = projections.iter().map(|projection| projection.k).max().unwrap_or(0);
        let int8_k = projections.iter().filter(|p| p.config.is_some()).map(|p| p.k).max().unwrap_or(0);
        let int8_rows = if int8_k > 0 { rows } else { 0 };
        let (mut linear, mut prologue, mut gemm) = (0, 0, 0);
        // Each number of rows has its algorithm, and each of them a workspace that grows with the rows.
        let mut steps: Vec<usize> = (0..).map(|step| 1 << step).take_while(|step| *step < rows).collect();
        steps.push(rows);
        for Projection { n, k, config } in projections {
            let Some(config) = config else { continue };
            for m in &steps {
                linear = linear.max(linear_bytes(compute, (*m, *n, *k), config)?);
                prologue = prologue.max(prologue_bytes(compute, *m, *k, config)?);
                gemm = gemm.max(gemm_bytes(compute, (*m, *n, *k), config)?);
            }
        }
        let has_float = projections.iter().any(|projection| projection.config.is_none());
        Ok(Self {
            compute,
            largest_rows: rows,
            input: Tensor::new(device, FloatType::F32, rows, k)?,
            activations: Activations {
                codes: Buffer::zeros(device, int8_rows * int8_k.next_multiple_of(16))?,
                scales: Buffer::zeros(device, int8_rows)?,
                zero_points: Buffer::zeros(device, int8_rows)?,
                code_sums: Buffer::zeros(device, int8_rows)?,
                outlier_count: Buffer::zeros(device, 1)?,
                outlier_columns: Buffer::zeros(device, int8_k)?,
                outlier_values: Buffer::zeros(
                    device,
                    int8_rows * int8_k.next_multiple_of(64) * compute.bytes(),
                )?,
            },
            linear: Buffer::zeros(device, linear)?,
            prologue: Buffer::zeros(device, prologue)?,
            gemm: Buffer::zeros(device, gemm)?,
            float: Buffer::zeros(device, if has_float { FLOAT_BYTES } else { 0 })?,
            attention: Buffer::zeros(device, attention_bytes)?,
            overflow: Buffer::zeros(device, 1)?,
        })
    }

    /// Rows there is room for.
    pub fn largest_rows(&self) -> usize {
        self.largest_rows
    }

    /// Bytes for attention.
    pub fn attention_bytes(&self) -> usize {
        self.attention.len()
    }

    /// Device memory in bytes.
    pub fn bytes(&self) -> usize {
        let a = &self.activations;
        self.input.bytes()
            + a.codes.len()
            + 12 * a.scales.len()
            + 4 * a.outlier_columns.len()
            + a.outlier_values.len()
            + self.linear.len()
            + self.prologue.len()
            + self.gemm.len()
            + self.float.len()
            + self.attention.len()
    }

    /// Enqueues `outᵢ (+)= function(x)·Wᵢᵀ + bᵢ`: x is quantised once, as `config` says.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::Unsupported`], [`Error::Device`].
    pub fn project(
        &mut self,
        stream: &Stream,
        x: &Tensor,
        function: &Function<'_>,
        config: &Config,
        targets: &mut [Target<'_>],
    ) -> Result<(), Error> {
        let Some(k) = targets.first().map(|target| target.weight.dim().1) else { return Ok(()) };
        let m = x.rows();
        self.expect_room(x, function, k)?;
        for target in targets.iter_mut() {
            prepare(target.out, target.store, m, target.weight.dim().0, self.compute)?;
            expect_bias("projection", target.bias, target.weight.dim().0)?;
            if target.weight.dim().1 != k {
                let (expected, found) = ((target.weight.dim().0, k), target.weight.dim());
                return Err(Error::Shape { operation: "projection", what: "W", expected, found });
            }
        }
        if m == 0 || k == 0 {
            return Ok(());
        }
        if targets.len() == 1 || m == 1 {
            // The function is computed inside, where possible in the same kernel.
            return targets
                .iter_mut()
                .try_for_each(|target| self.linear(stream, x, function, config, target));
        }
        let input = self.input(stream, x, function, self.compute, k)?;
        let raw_stream = stream.raw()?;
        let settings = Settings::of(config);
        let activations = self.activations(m, k, &settings);
        let params = sys::int8_cuda_prologue_params {
            x: input.pointer,
            workspace: self.prologue.pointer().cast(),
            stream: raw_stream,
            workspace_bytes: self.prologue.len(),
            ldx: convert::size(input.ld),
            granularity: settings.granularity,
            outlier_granularity: settings.outlier_granularity,
            row_maximum: settings.row_maximum,
            threshold: settings.threshold,
            activations,
        };
        let shape = || format!("x [{m}, {k}] {}", self.compute.name());
        // SAFETY: the input and the workspace's buffers have room for m rows of k, which were checked.
        check("prologue", unsafe { sys::int8_cuda_prologue(&raw const params) }, shape)?;
        for target in targets {
            let (n, raw) = (target.weight.dim().0, target.weight.raw());
            let params = sys::int8_cuda_gemm_params {
                weight: raw.codes,
                weight_scales: raw.scales,
                weight_zero_points: raw.zero_points,
                weight_code_sums: raw.code_sums,
                exact: raw.exact,
                exact_index: raw.exact_index,
                bias: target.bias.map_or(std::ptr::null(), |bias| bias.pointer().cast_const()),
                y: target.out.pointer(),
                workspace: self.gemm.pointer().cast(),
                stream: raw_stream,
                workspace_bytes: self.gemm.len(),
                n: convert::size(n),
                ldw: raw.ld,
                ldy: convert::size(n),
                exact_stride_n: raw.exact_strides.0,
                exact_stride_c: raw.exact_strides.1,
                algorithm: sys::INT8_CUDA_AUTO,
                store: target.store.raw(),
                y_element: element(target.out.element()),
                reserved: 0,
                activations,
            };
            // SAFETY: as above, and weight, bias and output were checked.
            check("gemm", unsafe { sys::int8_cuda_gemm(&raw const params) }, shape)?;
        }
        Ok(())
    }

    /// Enqueues `out (+)= function(x)·Wᵀ + b` in floating point, `function(x)` rounded to W's type.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::Unsupported`], [`Error::Device`].
    pub fn project_float(
        &mut self,
        stream: &Stream,
        x: &Tensor,
        function: &Function<'_>,
        (weight, bias): (&FloatWeight, Option<&Buffer<f32>>),
        (out, store): (&mut Tensor, Store),
    ) -> Result<(), Error> {
        let ((n, k), m) = (weight.dim(), x.rows());
        let input = self.input(stream, x, function, weight.element(), k)?;
        prepare(out, store, m, n, weight.element())?;
        expect_bias("projection", bias, n)?;
        if m == 0 || n == 0 {
            return Ok(());
        }
        let params = sys::int8_cuda_float_linear_params {
            x: input.pointer,
            w: weight.pointer(),
            bias: bias.map_or(std::ptr::null(), |bias| bias.pointer().cast_const()),
            y: out.pointer(),
            workspace: self.float.pointer().cast(),
            stream: stream.raw()?,
            workspace_bytes: self.float.len(),
            m: convert::size(m),
            n: convert::size(n),
            k: convert::size(k),
            ldx: convert::size(input.ld),
            ldy: convert::size(n),
            element: element(weight.element()),
            y_element: element(out.element()),
            store: store.raw(),
            reserved: 0,
        };
        // SAFETY: input, weight, bias and output were checked to have these sizes.
        let status = unsafe { sys::int8_cuda_float_linear(&raw const params) };
        check("projection", status, || format!("x [{m}, {k}], W [{n}, {k}] {}", weight.element().name()))
    }

    /// `function(x)` in `to`, for a projection of k input features: `x` itself where there is nothing to do.
    fn input(
        &mut self,
        stream: &Stream,
        x: &Tensor,
        function: &Function<'_>,
        to: FloatType,
        k: usize,
    ) -> Result<RawInput, Error> {
        self.expect_room(x, function, k)?;
        if function.is_identity() && x.element() == to {
            return Ok(RawInput { pointer: x.pointer(), ld: k });
        }
        self.input.reshape(to, k);
        transform(stream, x, function, &mut self.input, Store::Overwrite)?;
        Ok(RawInput { pointer: self.input.pointer(), ld: k })
    }

    fn expect_room(&self, x: &Tensor, function: &Function<'_>, k: usize) -> Result<(), Error> {
        x.expect_width("projection", function.input_width(k))?;
        if x.rows() <= self.largest_rows && k * 4 * x.rows() <= self.input.bytes() {
            return Ok(());
        }
        let (expected, found) = ((self.largest_rows, k), (x.rows(), x.width()));
        Err(Error::Shape { operation: "projection", what: "x", expected, found })
    }

    /// `function(x)` and all three stages for one weight.
    fn linear(
        &self,
        stream: &Stream,
        x: &Tensor,
        function: &Function<'_>,
        config: &Config,
        target: &mut Target<'_>,
    ) -> Result<(), Error> {
        let ((n, k), m, raw) = (target.weight.dim(), x.rows(), target.weight.raw());
        // Of another type than f32 or the compute type there are no activations.
        if x.element() != self.compute && x.element() != FloatType::F32 {
            let shape = format!("x [{m}, {k}] {}, computed in {}", x.element().name(), self.compute.name());
            return Err(Error::Unsupported { operation: "linear", shape });
        }
        let params = sys::int8_cuda_linear_params {
            x: x.pointer(),
            weight: raw.codes,
            weight_scales: raw.scales,
            weight_zero_points: raw.zero_points,
            weight_code_sums: raw.code_sums,
            bias: target.bias.map_or(std::ptr::null(), |bias| bias.pointer().cast_const()),
            y: target.out.pointer(),
            workspace: self.linear.pointer().cast(),
            stream: stream.raw()?,
            workspace_bytes: self.linear.len(),
            ldx: convert::size(x.width()),
            ldw: raw.ld,
            store: target.store.raw(),
            y_element: element(target.out.element()),
            x_element: element(x.element()),
            transform: function.raw(k)?,
            ..linear_params(self.compute, (m, n, k), config)
        };
        // SAFETY: input, weight, bias and output were checked to have these sizes.
        let status = unsafe { sys::int8_cuda_linear(&raw const params) };
        check("linear", status, || format!("x [{m}, {k}], W [{n}, {k}] {}", self.compute.name()))
    }

    fn activations(&self, m: usize, k: usize, settings: &Settings) -> sys::int8_cuda_activations {
        let a = &self.activations;
        sys::int8_cuda_activations {
            codes: a.codes.pointer(),
            scales: a.scales.pointer(),
            zero_points: a.zero_points.pointer(),
            code_sums: a.code_sums.pointer(),
            outlier_count: a.outlier_count.pointer(),
            outlier_columns: a.outlier_columns.pointer(),
            outlier_values: a.outlier_values.pointer().cast(),
            ..activations_sizes(self.compute, m, k, settings)
        }
    }

    pub(crate) fn overflow(&self) -> *mut u32 {
        self.overflow.pointer()
    }

    pub(crate) fn attention(&self) -> (*mut std::ffi::c_void, usize) {
        (self.attention.pointer().cast(), self.attention.len())
    }

    /// Reports, once, that keys or values overflowed since the last check. Waits for the stream.
    ///
    /// # Errors
    /// [`Error::Overflow`] where they did; [`Error::Device`].
    pub fn check_overflow(&mut self, stream: &Stream) -> Result<(), Error> {
        if self.overflow.read_range(stream, 0..1)? == [0] {
            return Ok(());
        }
        self.overflow.write(stream, 0, &[0])?;
        Err(Error::Overflow)
    }
}

/// Where the input of a projection lies.
struct RawInput {
    pointer: *const std::ffi::c_void,
    ld: usize,
}

/// The output of a projection `[m, n]`: of type `compute` or f32.
fn prepare(out: &mut Tensor, store: Store, m: usize, n: usize, compute: FloatType) -> Result<(), Error> {
    out.expect_width("projection", n)?;
    let fits = out.element() == compute || out.element() == FloatType::F32;
    if !fits || (store == Store::Accumulate && out.rows() != m) {
        let (expected, found) = ((m, n), (out.rows(), out.width()));
        return Err(Error::Shape { operation: "projection", what: "output", expected, found });
    }
    out.set_rows(m)
}

fn activations_sizes(
    compute: FloatType,
    m: usize,
    k: usize,
    settings: &Settings,
) -> sys::int8_cuda_activations {
    sys::int8_cuda_activations {
        codes: std::ptr::null_mut(),
        scales: std::ptr::null_mut(),
        zero_points: std::ptr::null_mut(),
        code_sums: std::ptr::null_mut(),
        outlier_count: std::ptr::null_mut(),
        outlier_columns: std::ptr::null_mut(),
        outlier_values: std::ptr::null_mut(),
        m: convert::size(m),
        k: convert::size(k),
        ldq: convert::size(k.next_multiple_of(16)),
        element: element(compute),
        encoding: settings.encoding,
        rule: settings.rule,
        reserved: 0,
    }
}

/// Sizes and settings without pointers.
fn linear_params(
    compute: FloatType,
    (m, n, k): (usize, usize, usize),
    config: &Config,
) -> sys::int8_cuda_linear_params {
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
        m: convert::size(m),
        n: convert::size(n),
        k: convert::size(k),
        ldx: convert::size(k),
        ldw: convert::size(k.next_multiple_of(16)),
        ldy: convert::size(n),
        exact_stride_n: 0,
        exact_stride_c: 0,
        element: element(compute),
        encoding: settings.encoding,
        granularity: settings.granularity,
        rule: settings.rule,
        outlier_granularity: settings.outlier_granularity,
        row_maximum: settings.row_maximum,
        threshold: settings.threshold,
        algorithm: sys::INT8_CUDA_AUTO,
        store: sys::INT8_CUDA_OVERWRITE,
        y_element: element(compute),
        x_element: element(compute),
        reserved: 0,
        transform: identity(),
    }
}

fn linear_bytes(compute: FloatType, shape: (usize, usize, usize), config: &Config) -> Result<usize, Error> {
    let mut params = linear_params(compute, shape, config);
    // With room for the function's result.
    params.transform.function = sys::INT8_CUDA_ACTIVATION;
    let mut layout = std::mem::MaybeUninit::<sys::int8_cuda_linear_layout>::zeroed();
    // SAFETY: the function reads sizes and settings and fills the layout.
    let status = unsafe { sys::int8_cuda_linear_workspace(&raw const params, layout.as_mut_ptr()) };
    check("linear workspace", status, || format!("(m, n, k) = {shape:?}, {}", compute.name()))?;
    // SAFETY: zeroed, then filled; all bit patterns are valid.
    Ok(convert::from_offset(unsafe { layout.assume_init() }.total))
}

fn prologue_bytes(compute: FloatType, m: usize, k: usize, config: &Config) -> Result<usize, Error> {
    let settings = Settings::of(config);
    let params = sys::int8_cuda_prologue_params {
        x: std::ptr::null(),
        workspace: std::ptr::null_mut(),
        stream: std::ptr::null_mut(),
        workspace_bytes: 0,
        ldx: convert::size(k),
        granularity: settings.granularity,
        outlier_granularity: settings.outlier_granularity,
        row_maximum: settings.row_maximum,
        threshold: settings.threshold,
        activations: activations_sizes(compute, m, k, &settings),
    };
    let mut bytes = 0;
    // SAFETY: the function reads sizes and settings only.
    let status = unsafe { sys::int8_cuda_prologue_workspace(&raw const params, &raw mut bytes) };
    check("prologue workspace", status, || format!("x [{m}, {k}] {}", compute.name()))?;
    Ok(bytes)
}

fn gemm_bytes(compute: FloatType, (m, n, k): (usize, usize, usize), config: &Config) -> Result<usize, Error> {
    let params = sys::int8_cuda_gemm_params {
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
        n: convert::size(n),
        ldw: convert::size(k.next_multiple_of(16)),
        ldy: convert::size(n),
        exact_stride_n: 0,
        exact_stride_c: 0,
        algorithm: sys::INT8_CUDA_AUTO,
        store: sys::INT8_CUDA_OVERWRITE,
        y_element: element(compute),
        reserved: 0,
        activations: activations_sizes(compute, m, k, &Settings::of(config)),
    };
    let mut layout = sys::int8_cuda_gemm_layout { total: 0, algorithm: 0, reserved: 0 };
    // SAFETY: the function reads sizes and settings and fills the layout.
    let status = unsafe { sys::int8_cuda_gemm_workspace(&raw const params, &raw mut layout) };
    check("gemm workspace", status, || format!("(m, n, k) = ({m}, {n}, {k}), {}", compute.name()))?;
    Ok(convert::from_offset(layout.total))
}
