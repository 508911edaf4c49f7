//! A mixture of experts beside the MLP of a block, with a norm of its own on each side.

use super::{Loader, Mlp};
use crate::Error;
use crate::backend::{Backend, Experts, Input, NormSpec};
use crate::config::NormKind;
use crate::families::{BesideNames, MlpNames};
use crate::precision::Precision;

/// The experts with their norms: of the MLP's output, of their input, and of their output.
#[derive(Debug)]
pub(super) struct Beside<B: Backend> {
    pub(super) experts: Experts<B>,
    norms: [B::Norm; 3],
}

impl<B: Backend> Beside<B> {
    /// And the number of weights.
    pub(super) fn load(
        loader: &Loader<'_, B>,
        layer: usize,
        names: BesideNames,
        precision: &Precision,
    ) -> Result<(Self, usize), Error> {
        let config = loader.config;
        let hidden = config.hidden_size;
        let (mlp, weights) = loader.mlp(layer, MlpNames::Experts(vec![names.experts]), precision)?;
        let Mlp::Experts(mut experts) = mlp else {
            return Err(Error::Unsupported("an MLP beside an MLP".to_owned()));
        };
        let root = crate::convert::f32_from(crate::convert::f64_from(hidden).sqrt());
        let mut gain = loader.vector(&names.router_gain, hidden)?;
        gain.iter_mut().for_each(|gain| *gain /= root);
        let norm = NormSpec { kind: NormKind::RmsNorm, eps: config.norm_eps, gain, bias: None };
        experts.router_norm = Some(loader.backend.norm(&norm)?);
        experts.routing.expert_scales = Some(loader.vector(&names.scales, experts.routing.count)?);
        let [of_mlp, input, output] = &names.norms;
        let norms = [loader.norm(of_mlp)?, loader.norm(input)?, loader.norm(output)?];
        Ok((Self { experts, norms }, weights))
    }

    /// `branch = norm(branch) + norm(experts(norm(x)))`; `out` is for the experts' output.
    pub(super) fn add(
        &self,
        backend: &B,
        x: &B::Activations,
        branch: &mut B::Activations,
        out: &mut B::Activations,
    ) -> Result<(), Error> {
        let [of_mlp, input, output] = &self.norms;
        backend.normalize(branch, of_mlp)?;
        backend.experts(Input::Normed(x, input), &self.experts, out)?;
        backend.add(branch, out, Some(output))
    }
}
