//! One input for several weights: with its prologue it is quantised once for all int8 weights of equal settings, and computed in
//! f32 once for all weights in floating point.

use int8_core::Config;
use int8_cpu::{Kernel, PackedWeight, Prologue, QuantizedActivations, Store, apply_prologue};
use ndarray::{Array2, ArrayView2, ArrayViewMut2};

use super::CpuLinear;
use super::elementwise::function;
use crate::Error;
use crate::backend::NormSpec;
use crate::config::{Activation, NormKind};

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
            linear.apply(x, store, out)?;
        }
    }
    Ok(())
}

/// `prologue(x)`, f32 `[M, K]`.
pub(super) fn materialize(
    kernel: Kernel,
    x: ArrayView2<'_, f32>,
    prologue: Prologue<'_>,
) -> Result<Array2<f32>, Error> {
    let width = if matches!(prologue, Prologue::Gate(_)) { x.ncols() / 2 } else { x.ncols() };
    let mut rows = Array2::zeros((x.nrows(), width));
    apply_prologue(kernel, x, prologue, rows.view_mut())?;
    Ok(rows)
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
