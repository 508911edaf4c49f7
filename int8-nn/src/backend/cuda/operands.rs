//! Inputs, outputs and norms of operations as `int8-cuda` takes them.

use int8_cuda::model::{Function, Store, Tensor};

use super::{CudaActivations, CudaBackend, CudaNorm};
use crate::backend::{Input, Output};
use crate::config::{Activation, NormKind};

impl<'a> Input<'a, CudaBackend> {
    pub(super) fn parts(&self) -> (&'a Tensor, Function<'a>) {
        match *self {
            Input::Plain(x) => (&x.tensor, Function::Identity),
            Input::Normed(x, norm) => (&x.tensor, norm.function()),
            Input::Activated(x, activation) => (&x.tensor, Function::Activation(function(activation))),
            Input::Gated(x, activation) => (&x.tensor, Function::Gated(function(activation))),
        }
    }
}

impl CudaNorm {
    pub(super) fn function(&self) -> Function<'_> {
        match self.kind {
            NormKind::RmsNorm => Function::RmsNorm { gain: &self.gain, eps: self.eps },
            NormKind::LayerNorm => {
                Function::LayerNorm { gain: &self.gain, bias: self.bias.as_ref(), eps: self.eps }
            }
        }
    }
}

pub(super) fn function(activation: Activation) -> int8_cuda::model::Activation {
    match activation {
        Activation::Relu => int8_cuda::model::Activation::Relu,
        Activation::Gelu => int8_cuda::model::Activation::Gelu,
        Activation::GeluTanh => int8_cuda::model::Activation::GeluTanh,
        Activation::Silu => int8_cuda::model::Activation::Silu,
        other => unreachable!("{other:?} is refused by `capabilities`"),
    }
}

impl<'a> Output<'a, CudaBackend> {
    pub(super) fn parts(self) -> (&'a mut CudaActivations, Store) {
        match self {
            Output::Store(out) => (out, Store::Overwrite),
            Output::Add(out) => (out, Store::Accumulate),
        }
    }

    pub(super) fn parts_mut(&mut self) -> (&mut CudaActivations, Store) {
        match self {
            Output::Store(out) => (out, Store::Overwrite),
            Output::Add(out) => (out, Store::Accumulate),
        }
    }
}
