//! The convolutions before an encoder's blocks: in floating point, as transformers' int8 leaves them.

use int8_cpu::{Function, Kernel, Prologue, apply_prologue};
use ndarray::{Array2, ArrayView2, Axis};
use rayon::prelude::*;

use crate::Error;
use crate::checkpoint::Checkpoint;

/// `y[t] = GELU(Σ_k W_k·x[stride·t + k − 1] + b)`, k from 0 to 2, over frames with zeros around them.
#[derive(Debug)]
pub(crate) struct Convolution {
    /// `[3·inputs, outputs]`, frame by frame.
    weight: Array2<f32>,
    bias: Vec<f32>,
    stride: usize,
}

/// Frames that an output sees.
const WIDTH: usize = 3;
/// Outputs of a task.
const TASK: usize = 64;

impl Convolution {
    /// Reads `{name}.weight [outputs, inputs, 3]` and `{name}.bias`.
    pub(crate) fn load(
        checkpoint: &Checkpoint,
        name: &str,
        (outputs, inputs): (usize, usize),
        stride: usize,
    ) -> Result<Self, Error> {
        let stored = checkpoint.tensor(&format!("{name}.weight"))?;
        let stored = stored.expect_shape(&[outputs, inputs, WIDTH])?.to_f32()?;
        let bias = checkpoint.tensor(&format!("{name}.bias"))?.expect_shape(&[outputs])?.to_f32()?;
        let weight = Array2::from_shape_fn((WIDTH * inputs, outputs), |(column, output)| {
            stored[(output * inputs + column % inputs) * WIDTH + column / inputs]
        });
        Ok(Self { weight, bias, stride })
    }

    /// Bytes of the weights.
    pub(crate) fn bytes(&self) -> usize {
        size_of::<f32>() * (self.weight.len() + self.bias.len())
    }

    /// Number of weights, without biases.
    pub(crate) fn weights(&self) -> usize {
        self.weight.len()
    }

    /// `x [frames, inputs]` → `[⌈frames/stride⌉, outputs]`
    pub(crate) fn apply(&self, x: ArrayView2<'_, f32>) -> Result<Array2<f32>, Error> {
        let (frames, inputs) = x.dim();
        let outputs = self.weight.ncols();
        let mut y = Array2::zeros((frames.div_ceil(self.stride), outputs));
        let tasks: Vec<_> = y.axis_chunks_iter_mut(Axis(0), TASK).enumerate().collect();
        tasks.into_par_iter().for_each(|(task, mut y)| {
            let seen = Array2::from_shape_fn((y.nrows(), WIDTH * inputs), |(row, column)| {
                let frame = (task * TASK + row) * self.stride + column / inputs;
                // Frame 0 of the sum is the one before the first.
                match frame.checked_sub(1) {
                    Some(frame) if frame < frames => x[[frame, column % inputs]],
                    _ => 0.0,
                }
            });
            y.assign(&(seen.dot(&self.weight) + ndarray::aview1(&self.bias)));
        });
        let mut out = Array2::zeros(y.dim());
        let gelu = Prologue::Activation(Function::Gelu);
        apply_prologue(Kernel::best(), y.view(), gelu, out.view_mut())?;
        Ok(out)
    }
}
