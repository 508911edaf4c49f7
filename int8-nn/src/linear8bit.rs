//! The int8 linear layer as a thing of its own: weight, exact columns, bias and settings together.

use int8_core::{Config, Element};
use int8_cpu::{ExactColumn, Kernel, LinearStats, PackedWeight, Store};
use ndarray::{Array2, ArrayView2, ArrayViewMut2};

use crate::Error;
use crate::exact_columns::{ExactColumnCache, Origin};
use crate::int8_weight::Int8Weight;

/// `y [M, N] = x [M, K] · Wᵀ + bias [N]` with an int8 weight on the CPU.
///
/// ```
/// use int8_core::Scheme;
/// use int8_nn::Linear8bit;
/// use ndarray::array;
///
/// let w = array![[0.1_f32, 0.2, 0.3], [-0.3, 0.1, 0.2]];
/// let config = Scheme::LlmInt8Absmax.config();
/// // Input dimension 1 is known to carry outliers: its weights stay as they are.
/// let layer = Linear8bit::quantize(w.view(), Some(&[0.5, -0.5]), config)?.keep_exact(w.view(), &[1])?;
/// let y = layer.forward(array![[0.5_f32, 40.0, -0.25]].view())?;
/// assert!((y[[0, 0]] - 8.475).abs() < 0.01);
/// # Ok::<(), int8_nn::Error>(())
/// ```
#[derive(Debug)]
pub struct Linear8bit {
    weight: Int8Weight,
    bias: Option<Vec<f32>>,
}

impl Linear8bit {
    /// Quantises `w [N, K]`, row-major, for the kernel that `INT8_KERNEL` names or the best this processor has.
    ///
    /// # Errors
    /// When the rows of `w` are not contiguous, `bias` has not N elements, or K is too large for an i32 accumulator.
    pub fn quantize<T: Element>(
        w: ArrayView2<T>,
        bias: Option<&[f32]>,
        config: Config,
    ) -> Result<Self, Error> {
        let kernel = Kernel::select()?;
        let packed = PackedWeight::quantize(kernel, w, config.weight_encoding, config.weight_granularity)?;
        Self::from_packed(packed, bias, config)
    }

    /// Takes a weight that is int8 already.
    ///
    /// # Errors
    /// When `bias` has not N elements.
    pub fn from_packed(packed: PackedWeight, bias: Option<&[f32]>, config: Config) -> Result<Self, Error> {
        let outputs = packed.dim().0;
        if let Some(found) = bias.map(<[f32]>::len).filter(|found| *found != outputs) {
            return Err(int8_core::Error::Length { what: "bias", expected: outputs, found }.into());
        }
        let weight = Int8Weight { packed, config, exact: None };
        Ok(Self { weight, bias: bias.map(<[f32]>::to_vec) })
    }

    /// Keeps these columns of `w [N, K]` exactly, for the outliers they meet. An outlier column that is not kept is
    /// dequantised.
    ///
    /// # Errors
    /// When `w` has another shape than the weight, or there is no such column.
    pub fn keep_exact<T: Element>(mut self, w: ArrayView2<T>, columns: &[usize]) -> Result<Self, Error> {
        let expected = self.weight.packed.dim();
        if w.dim() != expected {
            return Err(int8_core::Error::Shape { what: "W", expected, found: w.dim() }.into());
        }
        let exact = self.weight.exact.get_or_insert_with(|| ExactColumnCache::new(Origin::Codes));
        for &column in columns {
            if column >= w.ncols() {
                return Err(int8_core::Error::Column { column, columns: w.ncols() }.into());
            }
            let values = w.column(column).iter().map(|value| value.to_f32()).collect();
            exact.insert(column, w.ncols(), ExactColumn::F32(values));
        }
        Ok(self)
    }

    /// `x [M, K]` → `y [M, N]`.
    ///
    /// # Errors
    /// When `x` has not K columns or its rows are not contiguous.
    pub fn forward<T: Element>(&self, x: ArrayView2<T>) -> Result<Array2<T>, Error> {
        let mut y = Array2::from_elem((x.nrows(), self.weight().dim().0), T::from_f32(0.0));
        self.forward_into(x, Store::Overwrite, y.view_mut())?;
        Ok(y)
    }

    /// Writes to `out [M, N]`, or adds to it; returns how many outliers `x` has.
    ///
    /// # Errors
    /// As [`forward`](Self::forward), and when `out` is not `[M, N]`.
    pub fn forward_into<X: Element, Y: Element>(
        &self,
        x: ArrayView2<X>,
        store: Store,
        out: ArrayViewMut2<Y>,
    ) -> Result<LinearStats, Error> {
        self.weight.multiply(x, self.bias.as_deref(), store, out)
    }

    /// `dX [M, K] = dY [M, N] · dequantise(W)`: see [`int8_core::input_gradient`].
    ///
    /// # Errors
    /// When `dY` has not N columns.
    pub fn input_gradient<T: Element>(&self, dy: ArrayView2<T>) -> Result<Array2<T>, Error> {
        Ok(int8_core::input_gradient(dy, &self.weight().to_quantized()?)?)
    }

    /// Codes, scales and zero points in the layout of the kernel.
    pub fn weight(&self) -> &PackedWeight {
        &self.weight.packed
    }

    /// Bytes of codes, quantization parameters, bias and exact columns.
    pub fn bytes(&self) -> usize {
        self.weight.bytes() + self.bias.as_ref().map_or(0, |bias| size_of_val(bias.as_slice()))
    }

    /// Number of columns that are kept.
    pub fn exact_columns(&self) -> usize {
        self.weight.exact.as_ref().map_or(0, ExactColumnCache::len)
    }
}

#[cfg(test)]
mod tests {
    use int8_core::corpus::Random;
    use int8_core::{Scheme, Weight, linear};
    use ndarray::ArrayView1;

    use super::*;
    use crate::backend::Quantization;

    /// Against the reference, with all, some and no outlier columns kept.
    #[test]
    fn the_layer_is_the_references() {
        let mut random = Random::new(8);
        let (mut x, w) = (random.matrix(7, 90, 1.0), random.matrix(33, 90, 0.05));
        for column in [4, 41, 89] {
            x.column_mut(column).fill(-30.0);
        }
        let bias: Vec<f32> = (0..33).map(|_| random.normal()).collect();
        let configs = [Scheme::LlmInt8Absmax.config(), Quantization::best().config];
        let kept = [&[][..], &[41], &[4, 41, 89]];
        for (config, kept) in configs.into_iter().flat_map(|config| kept.map(|kept| (config, kept))) {
            let layer = Linear8bit::quantize(w.view(), Some(&bias), config)
                .and_then(|l| l.keep_exact(w.view(), kept));
            let layer = layer.expect("a layer");
            assert_eq!(layer.exact_columns(), kept.len());
            let reference =
                Weight::quantize(w.view(), &config).with_exact_columns(w.view(), kept).expect("W");
            let expected = linear(x.view(), &reference, Some(ArrayView1::from(&bias)), &config).expect("y");
            let y = layer.forward(x.view()).expect("y");
            let arithmetic = int8_core::bound::Arithmetic::F32;
            let found =
                int8_core::bound::compare(y.view(), &expected, Some(ArrayView1::from(&bias)), arithmetic);
            assert!(found.within_bound(), "{kept:?}: {found:?}");
            let gradient = layer.input_gradient(y.view()).expect("dX");
            assert_eq!(gradient, int8_core::input_gradient(y.view(), reference.quantized()).expect("dX"));
        }
    }

    #[test]
    fn operands_that_do_not_fit_are_refused() {
        let mut random = Random::new(9);
        let w = random.matrix(4, 8, 1.0);
        let config = Scheme::LlmInt8Absmax.config();
        assert!(Linear8bit::quantize(w.view(), Some(&[0.0; 3]), config).is_err());
        let layer = || Linear8bit::quantize(w.view(), None, config).expect("a layer");
        assert!(layer().keep_exact(w.t(), &[0]).is_err());
        assert!(layer().keep_exact(w.view(), &[8]).is_err());
        assert!(layer().forward(random.matrix(2, 7, 1.0).view()).is_err());
    }
}
