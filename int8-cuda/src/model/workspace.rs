//! Intermediate results of projections and attention: one workspace serves all layers of all models on a stream.

use int8_core::{Config, FloatType};
use int8_cuda_sys as sys;

use super::linear::{FloatWeight, Int8Linear};
use super::tensor::{Store, Tensor, element};
use super::transform::{Function, transform};
use crate::algorithm::{Algorithm, Shape};
use crate::convert;
use crate::device::{Device, Stream};
use crate::error::{Error, check};
use crate::gemm::expect_bias;
use crate::matrix::Buffer;
use crate::params;
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
    projections: Vec<Projection>,
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
        let mut most = [0; 3];
        // Each number of rows has its algorithm, and each of them a workspace that grows with the rows.
        let mut steps: Vec<usize> = (0..).map(|step| 1 << step).take_while(|step| *step < rows).collect();
        steps.push(rows);
        for Projection { n, k, config } in projections {
            let Some(config) = config else { continue };
            for m in &steps {
                let bytes = workspace_bytes(compute, Shape { m: *m, n: *n, k: *k }, config)?;
                most = std::array::from_fn(|stage| most[stage].max(bytes[stage]));
            }
        }
        let [linear, prologue, gemm] = most;
        let has_float = projections.iter().any(|projection| projection.config.is_none());
        Ok(Self {
            compute,
            largest_rows: rows,
            projections: projections.to_vec(),
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

    /// The projections it was made for.
    pub fn projections(&self) -> &[Projection] {
        &self.projections
    }

    /// Bytes for attention.
    pub fn attention_bytes(&self) -> usize {
        self.attention.len()
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
            if !target.weight.fits(self.compute) {
                let shape = format!(
                    "exact columns of W {:?}, computed in {}",
                    target.weight.dim(),
                    self.compute.name()
                );
                return Err(Error::Unsupported { operation: "projection", shape });
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
            ..params::prologue(&settings, activations)
        };
        let shape = || format!("x [{m}, {k}] {}", self.compute.name());
        // SAFETY: the input and the workspace's buffers have room for m rows of k, which were checked.
        check("prologue", unsafe { sys::int8_cuda_prologue(&raw const params) }, shape)?;
        for target in targets {
            let shape_of_gemm = Shape { m, n: target.weight.dim().0, k };
            let mut params = sys::int8_cuda_gemm_params {
                y: target.out.pointer(),
                workspace: self.gemm.pointer().cast(),
                stream: raw_stream,
                workspace_bytes: self.gemm.len(),
                store: target.store.raw(),
                y_element: element(target.out.element()),
                activations,
                ..params::gemm(element(self.compute), shape_of_gemm, config, Algorithm::Auto)
            };
            params::set_gemm_weight(&mut params, &target.weight.raw(), target.bias);
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
            bias: Buffer::pointer_or_null(bias),
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
        let ((n, k), m) = (target.weight.dim(), x.rows());
        // Of another type than f32 or the compute type there are no activations.
        if x.element() != self.compute && x.element() != FloatType::F32 {
            let shape = format!("x [{m}, {k}] {}, computed in {}", x.element().name(), self.compute.name());
            return Err(Error::Unsupported { operation: "linear", shape });
        }
        let mut params = sys::int8_cuda_linear_params {
            x: x.pointer(),
            y: target.out.pointer(),
            workspace: self.linear.pointer().cast(),
            stream: stream.raw()?,
            workspace_bytes: self.linear.len(),
            ldx: convert::size(x.width()),
            store: target.store.raw(),
            y_element: element(target.out.element()),
            x_element: element(x.element()),
            transform: function.raw(k)?,
            ..params::linear(element(self.compute), Shape { m, n, k }, config, Algorithm::Auto)
        };
        params::set_linear_weight(&mut params, &target.weight.raw(), target.bias);
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
            ..params::activations(element(self.compute), m, k, settings)
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

/// Bytes of the workspaces of `int8_cuda_linear`, `int8_cuda_prologue` and `int8_cuda_gemm`.
fn workspace_bytes(compute: FloatType, shape: Shape, config: &Config) -> Result<[usize; 3], Error> {
    let (element, settings) = (element(compute), Settings::of(config));
    let described = || format!("{shape:?}, {}", compute.name());
    let mut linear = params::linear(element, shape, config, Algorithm::Auto);
    // With room for the function's result.
    linear.transform.function = sys::INT8_CUDA_ACTIVATION;
    let linear = params::linear_layout(&linear, "linear workspace", described)?.total;
    let prologue = params::prologue(&settings, params::activations(element, shape.m, shape.k, &settings));
    let prologue = params::prologue_bytes(&prologue, "prologue workspace", described)?;
    let gemm = params::gemm(element, shape, config, Algorithm::Auto);
    let gemm = params::gemm_layout(&gemm, "gemm workspace", described)?.total;
    Ok([convert::from_offset(linear), prologue, convert::from_offset(gemm)])
}
