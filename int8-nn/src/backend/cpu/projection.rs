//! One input for several weights: with its prologue it is quantised once for all int8 weights of equal settings, and computed in
//! f32 once for all weights in floating point.

use std::cell::Cell;

use int8_core::Config;
use int8_cpu::{Kernel, PackedWeight, Prologue, QuantizedActivations, Store, apply_prologue};
use ndarray::{ArrayView2, ArrayViewMut2};

use super::CpuLinear;
use super::elementwise::function;
use crate::Error;
use crate::backend::NormSpec;
use crate::config::{Activation, NormKind};
use crate::precision::LinearRole;

/// A weight and its output `f32 [M, N]`.
pub(super) struct Target<'a> {
    pub(super) linear: &'a CpuLinear,
    pub(super) store: Store,
    pub(super) out: ArrayViewMut2<'a, f32>,
}

/// int8 weights for which an input is quantised in the same way.
struct Shared<'a> {
    config: Config,
    /// Whether the weights have one scale a group of K.
    groups: bool,
    targets: Vec<Target<'a>>,
}

/// `outᵢ (+)= prologue(x) · Wᵢᵀ + bᵢ` for each target.
pub(super) fn project<'a>(
    kernel: Kernel,
    x: ArrayView2<'_, f32>,
    prologue: Prologue<'_>,
    targets: impl IntoIterator<Item = Target<'a>>,
) -> Result<(), Error> {
    let (mut floats, mut int8): (Vec<Target<'_>>, Vec<Shared<'_>>) = (Vec::new(), Vec::new());
    for target in targets {
        let Some((weight, config)) = target.linear.packed().zip(target.linear.config()) else {
            floats.push(target);
            continue;
        };
        let groups = weight.groups_per_row() > 1;
        match int8.iter_mut().find(|shared| shared.groups == groups && shared.config == *config) {
            Some(shared) => shared.targets.push(target),
            None => int8.push(Shared { config: *config, groups, targets: vec![target] }),
        }
    }
    for Shared { config, targets, .. } in int8 {
        let weights: Vec<&PackedWeight> =
            targets.iter().filter_map(|target| target.linear.packed()).collect();
        let x = QuantizedActivations::new(x, prologue, &config, &weights)?;
        for Target { linear, store, out } in targets {
            linear.apply_quantized(&x, store, out)?;
        }
    }
    if !floats.is_empty() {
        let computed = match prologue {
            Prologue::None => None,
            prologue => Some(materialize(kernel, x, prologue)?),
        };
        let x = computed.as_ref().map_or(x, |rows| rows.view());
        for Target { linear, store, out } in floats {
            if linear.site().role == LinearRole::StateSpace {
                linear.apply_by_rows(x, store, out)?;
            } else {
                linear.apply(x, store, out)?;
            }
        }
    }
    Ok(())
}

thread_local! {
    /// The buffer of the rows that this thread computed last: without it, each call would pay for fresh pages.
    static SPARE: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// Rows `f32 [M, K]` after their prologue.
pub(super) struct Computed {
    values: Vec<f32>,
    dim: (usize, usize),
}

impl Computed {
    pub(super) fn view(&self) -> ArrayView2<'_, f32> {
        ArrayView2::from_shape(self.dim, &self.values).expect("M·K values")
    }

    pub(super) fn view_mut(&mut self) -> ArrayViewMut2<'_, f32> {
        ArrayViewMut2::from_shape(self.dim, &mut self.values).expect("M·K values")
    }
}

impl Drop for Computed {
    fn drop(&mut self) {
        // Where the thread is being torn down, it is freed.
        let _ = SPARE.try_with(|spare| spare.set(std::mem::take(&mut self.values)));
    }
}

/// `prologue(x)`, f32 `[M, K]`.
pub(super) fn materialize(
    kernel: Kernel,
    x: ArrayView2<'_, f32>,
    prologue: Prologue<'_>,
) -> Result<Computed, Error> {
    let width = if matches!(prologue, Prologue::Gate(_)) { x.ncols() / 2 } else { x.ncols() };
    let mut computed = Computed { values: SPARE.take(), dim: (x.nrows(), width) };
    computed.values.resize(x.nrows() * width, 0.0);
    apply_prologue(kernel, x, prologue, computed.view_mut())?;
    Ok(computed)
}

/// A normalisation as the prologue of a layer.
pub(super) fn normed(norm: &NormSpec) -> Prologue<'_> {
    let NormSpec { kind, eps, ref gain, ref bias } = *norm;
    match kind {
        NormKind::LayerNorm => Prologue::LayerNorm { gain, bias: bias.as_deref(), eps },
        NormKind::RmsNorm => Prologue::RmsNorm { gain, eps },
    }
}

/// The prologue of an MLP's contraction.
pub(super) fn activated(activation: Activation, gated: bool) -> Prologue<'static> {
    let function = function(activation);
    if gated { Prologue::Gate(function) } else { Prologue::Activation(function) }
}
