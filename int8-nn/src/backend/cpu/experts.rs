//! A mixture of experts: who computes what is decided row by row, so that a token's result depends on no other token.

use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis, Zip};

use int8_cpu::{Kernel, Prologue, Store};

use super::CpuBackend;
use super::projection::{Target, activated, project};
use crate::Error;
use crate::backend::Experts;
use crate::backend::routing::route;

/// `out += experts(x)`, chosen by `routed`; all `[rows, K]`; experts in ascending order, so that the sums are too.
pub(super) fn add(
    kernel: Kernel,
    (x, routed): (ArrayView2<'_, f32>, ArrayView2<'_, f32>),
    experts: &Experts<CpuBackend>,
    mut out: ArrayViewMut2<'_, f32>,
) -> Result<(), Error> {
    let mut logits = Array2::zeros((x.nrows(), experts.routing.logits()));
    experts.router.apply_by_rows(routed, Store::Overwrite, logits.view_mut())?;
    let count = experts.up.len().max(experts.routing.count);
    let mut chosen: Vec<Vec<(usize, f32)>> = vec![Vec::new(); count];
    for (row, logits) in logits.rows().into_iter().enumerate() {
        for (expert, weight) in route(&logits.to_vec(), &experts.routing) {
            chosen[expert].push((row, weight));
        }
    }
    for (row, weight) in chosen[experts.up.len()..].iter().flatten() {
        out.row_mut(*row).scaled_add(*weight, &x.row(*row));
    }
    for ((up, down), rows) in experts.up.iter().zip(&experts.down).zip(&chosen) {
        if rows.is_empty() {
            continue;
        }
        let indices: Vec<usize> = rows.iter().map(|(row, _)| *row).collect();
        let mut input = x.select(Axis(0), &indices);
        if experts.routing.weighs_inputs {
            for (mut input, (_, weight)) in input.rows_mut().into_iter().zip(rows) {
                input *= *weight;
            }
        }
        let mut wide = Array2::zeros((rows.len(), up.outputs()));
        let store = Store::Overwrite;
        let target = Target { linear: up, store, out: wide.view_mut() };
        project(kernel, input.view(), Prologue::None, [target])?;
        let mut result = Array2::zeros((rows.len(), out.ncols()));
        let target = Target { linear: down, store, out: result.view_mut() };
        match experts.clamped_gate {
            None => project(kernel, wide.view(), activated(experts.activation, experts.gated), [target])?,
            Some(gate) => {
                let (gates, ups) = wide.view().split_at(Axis(1), wide.ncols() / 2);
                let inner = Zip::from(gates).and(ups).map_collect(|g, u| gate.apply(*g, *u));
                project(kernel, inner.view(), Prologue::None, [target])?;
            }
        }
        for ((row, weight), result) in rows.iter().zip(result.rows()) {
            let weight = if experts.routing.weighs_inputs { 1.0 } else { *weight };
            out.row_mut(*row).scaled_add(weight, &result);
        }
    }
    Ok(())
}
