//! Prologue and GEMM as two calls, and sums into y: the bits must be those of [`LinearPlan`] by the same algorithm.

use half::f16;
use int8_core::corpus::{Case, Random};
use int8_core::{LinearOutput, Scheme};
use int8_cuda::{
    Algorithm, Buffer, Float, GemmPlan, Graph, KeepExact, LinearPlan, Matrix, QuantizedActivations, Shape,
    Stream, Weight,
};
use ndarray::ArrayView2;

use crate::{Outcome, same, same_codes, upload};

/// The operands of a case on the device.
pub(crate) struct Operands<'a, T> {
    pub case: &'a Case,
    pub x: &'a Matrix<T>,
    pub weight: &'a Weight<T>,
    pub bias: Option<&'a Buffer<f32>>,
}

impl<T: Float> Operands<'_, T> {
    fn shape(&self) -> Shape {
        let ((m, k), (n, _)) = (self.x.dim(), self.weight.dim());
        Shape { m, n, k }
    }

    /// `x` as activations whose buffers have room for more rows.
    fn quantized(&self, stream: &Stream) -> Result<QuantizedActivations<T>, int8_cuda::Error> {
        let Shape { m, k, .. } = self.shape();
        let mut activations = QuantizedActivations::new(stream.device(), m + 3, k, &self.case.config)?;
        activations.quantize(stream, self.x, m)?;
        Ok(activations)
    }
}

/// Codes, quantization parameters, outlier columns and outliers of the prologue alone.
pub(crate) fn prologue<T: Float>(
    stream: &Stream,
    operands: &Operands<T>,
    x: ArrayView2<T>,
    reference: &LinearOutput<T>,
) -> Outcome {
    let Shape { m, n, .. } = operands.shape();
    if m == 0 || n == 0 {
        return Ok(());
    }
    let mut activations = operands.quantized(stream)?;
    // Again at once: the kernels have left their workspace as they need it.
    activations.quantize(stream, operands.x, m)?;
    same_codes(reference, &activations.intermediates(stream)?)?;
    let columns = reference.outliers.columns();
    let bits = |value: T| value.to_f32().to_bits();
    let expected: Vec<u32> = (0..m)
        .flat_map(|row| columns.iter().map(move |column| (row, *column)))
        .map(
            |(row, column)| {
                if reference.outliers.is_outlier(row, column) { bits(x[[row, column]]) } else { 0 }
            },
        )
        .collect();
    let found: Vec<u32> = activations.outlier_values(stream)?.into_iter().map(bits).collect();
    same("outlier values", &expected, &found)
}

/// One value for `operands.weight`, another weight, and the first again; `expected` is [`LinearPlan`]'s result for the first.
pub(crate) fn several_weights<T: Float>(
    stream: &Stream,
    operands: &Operands<T>,
    algorithm: Algorithm,
    expected: &[T],
) -> Outcome {
    let device = stream.device();
    let (shape, config) = (operands.shape(), &operands.case.config);
    let Shape { m, n, k } = shape;
    let negated = operands.case.w.mapv(|w| T::from_f32(-w));
    let other = Weight::quantize(stream, upload(device, negated.view())?, config, KeepExact::None)?;
    let poison = vec![T::from_f32(f32::NAN); (m + 1) * n];
    let mut y = Matrix::from_host(device, m, n, &poison[..m * n])?;
    let mut linear = LinearPlan::<T>::new(device, shape, config, algorithm)?;
    linear.run(stream, operands.x, &other, None, &mut y)?;
    let expected_of_other = y.to_host(stream)?;

    let activations = operands.quantized(stream)?;
    let mut plan = GemmPlan::<T>::new(device, Shape { m, n, k }, config, algorithm)?;
    let first = (operands.weight, operands.bias, expected);
    let runs = [first, (&other, None, expected_of_other.as_slice()), first];
    for (weight, bias, expected) in runs {
        // A row more than there is to write: it stays as it was.
        let mut y = Matrix::from_host(device, m + 1, n, &poison)?;
        plan.run(stream, &activations, weight, bias, &mut y)?;
        let found = y.to_host(stream)?;
        same_values("y of two stages", expected, &found[..m * n])?;
        same_values("the row behind y", &poison[m * n..], &found[m * n..])?;
    }

    let start = residual(m * n);
    let mut by_linear = Matrix::from_host(device, m, n, &start)?;
    linear.accumulate(stream, operands.x, operands.weight, operands.bias, &mut by_linear)?;
    let mut by_gemm = Matrix::from_host(device, m, n, &start)?;
    plan.accumulate(stream, &activations, operands.weight, operands.bias, &mut by_gemm)?;
    same_values("y += of two stages", &by_linear.to_host(stream)?, &by_gemm.to_host(stream)?)
}

/// `y += x·Wᵀ + bias` by a plan, against `overwritten`, its result for `y = x·Wᵀ + bias`.
pub(crate) fn accumulated<T: Float>(
    stream: &Stream,
    operands: &Operands<T>,
    plan: &mut LinearPlan<T>,
    overwritten: &[T],
) -> Outcome {
    let Shape { m, n, .. } = operands.shape();
    let start = residual::<T>(m * n);
    let mut y = Matrix::from_host(stream.device(), m, n, &start)?;
    plan.accumulate(stream, operands.x, operands.weight, operands.bias, &mut y)?;
    for (at, found) in y.to_host(stream)?.into_iter().enumerate() {
        let (start, value, found) =
            (f64::from(start[at].to_f32()), f64::from(overwritten[at].to_f32()), f64::from(found.to_f32()));
        if !value.is_finite() || !found.is_finite() {
            // Beyond the type's range on one side or the other; NaN stays NaN.
            if value.is_nan() != found.is_nan() {
                return Err(format!("y += [{at}]: {found} for {start} + {value}").into());
            }
            continue;
        }
        // `value` is the f32 sum rounded once, `found` the sum with `start` rounded in f32 and in T.
        let bound = 1.01 * T::UNIT_ROUNDOFF * (value.abs() + found.abs())
            + f64::from(f32::EPSILON) * found.abs()
            + 2.0 * T::MIN_SUBNORMAL;
        if (found - (start + value)).abs() > bound {
            return Err(format!("y += [{at}]: {found} for {start} + {value}").into());
        }
    }
    Ok(())
}

/// Prologue and GEMMs recorded in a graph give the bits they give directly, also after the input has changed.
pub(crate) fn captured(stream: &Stream) -> Outcome {
    let device = stream.device();
    let config = Scheme::LlmInt8Absmax.config();
    let mut random = Random::new(8);
    for (m, n, k) in [(1, 512, 1024), (8, 512, 1024), (48, 512, 1024), (300, 512, 1024), (1500, 512, 1024)] {
        let mut weight = || {
            let w = random.matrix(n, k, 0.02).mapv(f16::from_f32);
            Weight::quantize(stream, upload(device, w.view())?, &config, KeepExact::None)
        };
        let (first, second) = (weight()?, weight()?);
        let mut x = Matrix::<f16>::zeros(device, m, k)?;
        let mut y = Matrix::<f16>::zeros(device, m, n)?;
        let mut activations = QuantizedActivations::<f16>::new(device, m, k, &config)?;
        let mut plan = GemmPlan::<f16>::new(device, Shape { m, n, k }, &config, Algorithm::Auto)?;
        let mut work = |x: &Matrix<f16>, y: &mut Matrix<f16>| {
            activations.quantize(stream, x, m)?;
            plan.run(stream, &activations, &first, None, y)?;
            activations.quantize(stream, x, m)?;
            activations.quantize(stream, x, m)?;
            plan.accumulate(stream, &activations, &second, None, y)
        };
        // SAFETY: x, y, activations, weights and plan outlive the graph, which is dropped at the end of this turn.
        let graph = unsafe { Graph::capture(stream, || work(&x, &mut y)) }?;
        for _ in 0..3 {
            let mut values = random.matrix(m, k, 1.0);
            values.column_mut(k / 3).fill(20.0);
            x.copy_from_host(&values.iter().map(|v| f16::from_f32(*v)).collect::<Vec<_>>())?;
            graph.launch(stream)?;
            graph.launch(stream)?;
            let replayed = y.to_host(stream)?;
            work(&x, &mut y)?;
            same_values("a replay", &y.to_host(stream)?, &replayed)
                .map_err(|e| format!("{m}x{n}x{k}: {e}"))?;
        }
    }
    Ok(())
}

/// Values that y holds before a sum.
fn residual<T: Float>(len: usize) -> Vec<T> {
    [-1.5_f32, 0.0, 0.25, 3.0, -0.125, 7.0, 40.0].into_iter().cycle().map(T::from_f32).take(len).collect()
}

/// Equal bits; any NaN equals any other.
fn same_values<T: Float>(what: &str, expected: &[T], found: &[T]) -> Outcome {
    let bits = |values: &[T]| -> Vec<u32> {
        let canonical = |value: f32| if value.is_nan() { f32::NAN } else { value };
        values.iter().map(|value| canonical(value.to_f32()).to_bits()).collect()
    };
    same(what, &bits(expected), &bits(found))
}
