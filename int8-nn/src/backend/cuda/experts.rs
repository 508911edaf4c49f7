//! A mixture of experts: the router's logits come to the host, which gives each expert its rows.

use int8_core::FloatType;
use int8_cuda::Buffer;
use int8_cuda::model::{Function, Lookup, Store, Tensor, gather, scatter_add, transform};

use super::{CudaActivations, CudaBackend};
use crate::Error;
use crate::backend::routing::route;
use crate::backend::{Experts, Observer};

/// `out = experts(function(x))`; experts in ascending order, so that the sums are too.
pub(super) fn compute(
    backend: &CudaBackend,
    x: &Tensor,
    function: &Function<'_>,
    experts: &Experts<CudaBackend>,
    out: &mut CudaActivations,
) -> Result<(), Error> {
    let (device, stream) = (&backend.device, &backend.stream);
    let width = out.tensor.width();
    let mut input = Tensor::new(device, FloatType::F32, x.rows(), width)?;
    transform(stream, x, function, &mut input, Store::Overwrite)?;
    if let (Some(observer), Some(first)) = (backend.observer(), experts.up.first()) {
        // Experts share their input: an observer sees it once, as that of the first one.
        let observer: &dyn Observer = &*observer;
        input = backend.observed_input(observer, first, &input, &Function::Identity)?;
    }
    let count = experts.routing.logits();
    let mut logits = Tensor::new(device, FloatType::F32, x.rows(), count)?;
    let router = &mut [(&experts.router, &mut logits, Store::Overwrite)];
    backend.project_rows(&input, &Function::Identity, router)?;
    let mut host = Vec::new();
    logits.read(stream, &mut host)?;
    let mut chosen: Vec<Vec<(usize, f32)>> = vec![Vec::new(); experts.up.len()];
    for (row, logits) in host.chunks_exact(count.max(1)).enumerate() {
        for (expert, weight) in route(logits, &experts.routing) {
            chosen[expert].push((row, weight));
        }
    }
    out.tensor.set_rows(x.rows())?;
    out.tensor.fill_zero(stream)?;
    let activation = super::operands::function(experts.activation);
    let activated =
        if experts.gated { Function::Gated(activation) } else { Function::Activation(activation) };
    for ((up, down), rows) in experts.up.iter().zip(&experts.down).zip(&chosen) {
        if rows.is_empty() {
            continue;
        }
        let indices: Vec<i32> = rows.iter().map(|(row, _)| crate::convert::row(*row)).collect();
        let weights: Vec<f32> = rows.iter().map(|(_, weight)| *weight).collect();
        let (indices, weights) = (Buffer::from_host(device, &indices)?, Buffer::from_host(device, &weights)?);
        let mut routed = Tensor::new(device, FloatType::F32, rows.len(), width)?;
        gather(stream, &[Lookup::rows(&input, (&indices, 0))], rows.len(), &mut routed, Store::Overwrite)?;
        let mut wide = Tensor::new(device, backend.compute, rows.len(), up.dim().0)?;
        backend.project_rows(&routed, &Function::Identity, &mut [(up, &mut wide, Store::Overwrite)])?;
        let mut result = Tensor::new(device, FloatType::F32, rows.len(), width)?;
        backend.project_rows(&wide, &activated, &mut [(down, &mut result, Store::Overwrite)])?;
        scatter_add(stream, &result, &indices, &weights, &mut out.tensor)?;
    }
    Ok(())
}
