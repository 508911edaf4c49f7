//! Single operations: quantisation, the integer product, dequantisation, the input gradient, and cuBLASLt's 16-bit product.

use int8_core::{Encoding, Granularity};
use int8_cuda_sys as sys;

use crate::algorithm::Algorithm;
use crate::convert;
use crate::device::{Device, Stream};
use crate::error::{Error, check};
use crate::matrix::{Buffer, Matrix};
use crate::scalar::Float;
use crate::weight::{self, Weight};

/// Rows of `x [R, K]` as codes, without outliers; the result can serve as a weight.
///
/// # Errors
/// [`Error::OutOfMemory`], [`Error::Device`].
pub fn quantize_rows<T: Float>(
    stream: &Stream,
    x: &Matrix<T>,
    encoding: Encoding,
    granularity: Granularity,
) -> Result<Weight<T>, Error> {
    weight::quantize(stream, x, encoding, granularity)
}

/// `a [M, K] · wᵀ [K, N] → i32 [M, N]`, exact. Both must be padded codes, as [`quantize_rows`] makes them.
///
/// # Errors
/// [`Error::Shape`], [`Error::Unsupported`] for an algorithm that has no integer output, [`Error::Device`].
pub fn int8_product(
    stream: &Stream,
    a: &Matrix<i8>,
    w: &Matrix<i8>,
    out: &mut Matrix<i32>,
    algorithm: Algorithm,
) -> Result<(), Error> {
    let ((m, k), (n, _)) = (a.dim(), w.dim());
    w.expect("int8 product", "w", (n, k))?;
    out.expect("int8 product", "out", (m, n))?;
    let params = sys::int8_cuda_product_params {
        a: a.pointer(),
        w: w.pointer(),
        out: out.pointer(),
        workspace: std::ptr::null_mut(),
        stream: stream.raw()?,
        workspace_bytes: 0,
        m: convert::size(m),
        n: convert::size(n),
        k: convert::size(k),
        lda: convert::size(a.ld()),
        ldw: convert::size(w.ld()),
        ldo: convert::size(out.ld()),
        algorithm: algorithm.raw(),
        reserved: 0,
    };
    // SAFETY: the matrices have the sizes named in params; freeing one waits for the device.
    let status = unsafe { sys::int8_cuda_product(&raw const params) };
    check("int8 product", status, || format!("[{m}, {k}] x [{n}, {k}] by {algorithm:?}"))
}

/// The values of codes, `(q − z)·s/127` `[R, K]`.
///
/// # Errors
/// [`Error::OutOfMemory`], [`Error::Device`].
pub fn dequantize<T: Float>(stream: &Stream, codes: &Weight<T>) -> Result<Matrix<T>, Error> {
    let (rows, inner) = codes.dim();
    let values = Matrix::<T>::zeros(stream.device(), rows, inner)?;
    let params = sys::int8_cuda_dequantize_params {
        codes: codes.codes.pointer(),
        scales: codes.scales.pointer(),
        zero_points: codes.zero_points.as_ref().map_or(std::ptr::null(), |z| z.pointer().cast_const()),
        values: values.pointer().cast(),
        stream: stream.raw()?,
        rows: convert::size(rows),
        inner: convert::size(inner),
        ldq: convert::size(codes.codes.ld()),
        ldv: convert::size(values.ld()),
        element: T::ELEMENT,
        reserved: 0,
    };
    // SAFETY: as above.
    check("dequantize", unsafe { sys::int8_cuda_dequantize(&raw const params) }, || {
        format!("[{rows}, {inner}]")
    })?;
    Ok(values)
}

/// `dX [M, K] = dY [M, N] · dequantise(W) [N, K]`.
///
/// # Errors
/// [`Error::Shape`], [`Error::Device`].
pub fn input_gradient<T: Float>(
    stream: &Stream,
    dy: &Matrix<T>,
    weight: &Weight<T>,
    dx: &mut Matrix<T>,
) -> Result<(), Error> {
    let (n, k) = weight.dim();
    let m = dy.dim().0;
    dy.expect("input gradient", "dY", (m, n))?;
    dx.expect("input gradient", "dX", (m, k))?;
    let params = sys::int8_cuda_gradient_params {
        dy: dy.pointer().cast(),
        weight: weight.codes.pointer(),
        weight_scales: weight.scales.pointer(),
        weight_zero_points: weight
            .zero_points
            .as_ref()
            .map_or(std::ptr::null(), |z| z.pointer().cast_const()),
        dx: dx.pointer().cast(),
        stream: stream.raw()?,
        m: convert::size(m),
        n: convert::size(n),
        k: convert::size(k),
        lddy: convert::size(dy.ld()),
        ldw: convert::size(weight.codes.ld()),
        lddx: convert::size(dx.ld()),
        element: T::ELEMENT,
        reserved: 0,
    };
    // SAFETY: as above.
    check("input gradient", unsafe { sys::int8_cuda_gradient(&raw const params) }, || {
        format!("dY [{m}, {n}], W [{n}, {k}]")
    })
}

/// `y = x·Wᵀ` in 16 bits by cuBLASLt.
#[derive(Debug)]
pub struct DenseProduct {
    workspace: Buffer<u8>,
    /// Index into cuBLASLt's list of candidates, best first.
    pub candidate: i32,
}

impl DenseProduct {
    /// Above the 32 MiB that cuBLASLt's documentation recommends on Hopper.
    const WORKSPACE: usize = 64 << 20;

    /// The first candidate, with a workspace of 64 MB.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::Device`].
    pub fn new(device: &Device) -> Result<Self, Error> {
        Ok(Self { workspace: Buffer::zeros(device, Self::WORKSPACE)?, candidate: 0 })
    }

    /// How many candidates cuBLASLt offers; 0 when the library was not found.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::Device`].
    pub fn candidates<T: Float>(
        &self,
        stream: &Stream,
        x: &Matrix<T>,
        w: &Matrix<T>,
        y: &mut Matrix<T>,
    ) -> Result<i32, Error> {
        let params = self.params(stream, x, w, y)?;
        let mut count = 0;
        // SAFETY: as in `run`; nothing is computed.
        let status = unsafe { sys::int8_cuda_dense_candidates(&raw const params, &raw mut count) };
        check("dense product", status, String::new)?;
        Ok(count)
    }

    /// Runs the candidate.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::Unsupported`] without cuBLASLt, [`Error::Device`].
    pub fn run<T: Float>(
        &self,
        stream: &Stream,
        x: &Matrix<T>,
        w: &Matrix<T>,
        y: &mut Matrix<T>,
    ) -> Result<(), Error> {
        let params = self.params(stream, x, w, y)?;
        // SAFETY: the matrices have the sizes named in params; freeing one waits for the device.
        check("dense product", unsafe { sys::int8_cuda_dense(&raw const params) }, || {
            format!("x {:?}, W {:?}", x.dim(), w.dim())
        })
    }

    fn params<T: Float>(
        &self,
        stream: &Stream,
        x: &Matrix<T>,
        w: &Matrix<T>,
        y: &mut Matrix<T>,
    ) -> Result<sys::int8_cuda_dense_params, Error> {
        let ((m, k), n) = (x.dim(), w.dim().0);
        w.expect("dense product", "W", (n, k))?;
        y.expect("dense product", "y", (m, n))?;
        Ok(sys::int8_cuda_dense_params {
            x: x.pointer().cast(),
            w: w.pointer().cast(),
            y: y.pointer().cast(),
            workspace: self.workspace.pointer().cast(),
            stream: stream.raw()?,
            workspace_bytes: Self::WORKSPACE,
            m: convert::size(m),
            n: convert::size(n),
            k: convert::size(k),
            element: T::ELEMENT,
            candidate: self.candidate,
        })
    }
}
