//! The weights of a block's MLP or experts.

use super::{Loader, Mlp};
use crate::Error;
use crate::backend::{Backend, Experts, Routing};
use crate::families::{ExpertNames, MlpNames};
use crate::precision::{LinearRole, Precision, Quantization, Site};
use crate::weights::{LinearSource, Part};

impl<B: Backend> Loader<'_, B> {
    /// The MLP or the experts of a block, and their number of weights.
    pub(super) fn mlp(
        &self,
        layer: usize,
        names: MlpNames,
        precision: &Precision,
    ) -> Result<(Mlp<B>, usize), Error> {
        let config = self.config;
        let hidden = config.hidden_size;
        let pair = |up: Vec<Part>, down: Part, wide: usize, expert: Option<usize>| -> Result<_, Error> {
            let site = |role| Site { expert, ..Site::block(self.stack, layer, role) };
            let routed = config.experts.as_ref().map_or(0, |experts| experts.count);
            let precision = match precision {
                Precision::Int8(Quantization { float_experts: true, .. })
                    if expert.is_some_and(|expert| expert < routed) =>
                {
                    &Precision::Float
                }
                precision => precision,
            };
            let outputs: &[usize] = if config.gated_mlp { &[wide, wide] } else { &[wide] };
            let find = |parts, outputs, inputs| {
                LinearSource::find(self.checkpoint, self.root, parts, outputs, inputs)
            };
            let up = up.into_iter().map(|part| part.biased(config.biases.up)).collect();
            let down = vec![down.biased(config.biases.down)];
            let (up, down) = (find(up, outputs, hidden)?, find(down, &[hidden], wide)?);
            // A checkpoint whose expansion is int8 left the contraction in floating point on purpose: transformers does so
            // with T5's (`_keep_in_fp32_modules`).
            let kept = up.is_int8()? && !down.is_int8()?;
            let of_down = if kept { Precision::Float } else { precision.of(LinearRole::Down) };
            let down = self.backend.linear(site(LinearRole::Down), &down, &of_down)?;
            let up = self.backend.linear(site(LinearRole::Up), &up, &precision.of(LinearRole::Up))?;
            Ok((up, down, (outputs.len() + 1) * wide * hidden))
        };
        let names = match names {
            MlpNames::None => return Ok((Mlp::None, 0)),
            MlpNames::Dense { up, down } => {
                let (up, down, weights) = pair(up, down, config.intermediate(layer), None)?;
                return Ok((Mlp::Dense { up, down }, weights));
            }
            MlpNames::Experts(mut names) => {
                let has_router = |names: &ExpertNames| {
                    let router = names.router.first().map(|name| self.name(name) + ".weight");
                    router.is_some_and(|router| self.checkpoint.contains(&router))
                };
                // If the checkpoint has none, the error names the tensors of the first.
                let known = names.iter().position(has_router).unwrap_or_default();
                names.swap_remove(known)
            }
        };
        let Some(settings) = &config.experts else {
            return Err(Error::Unsupported("experts without their settings".to_owned()));
        };
        let fused = names.fused.as_ref().filter(|[up, _]| self.checkpoint.contains(&self.name(up)));
        let router = names.router.iter().map(|name| Part::new(name).biased(config.biases.router)).collect();
        let shared = settings.shared_intermediate_size;
        let gated = shared.is_some() && settings.shared_gate;
        let choices = settings.count + settings.identities;
        let logits: &[usize] = if gated { &[choices, 1] } else { &[choices] };
        let correction = names.correction.as_ref().filter(|_| settings.correction);
        let correction = correction.map(|name| self.vector(name, choices)).transpose()?;
        let site = Site::block(self.stack, layer, LinearRole::Router);
        let mut experts = Experts {
            router: self.linear(site, router, logits, hidden, &Precision::Float)?,
            routing: Routing::new(settings, correction),
            up: Vec::new(),
            down: Vec::new(),
            activation: config.activation,
            gated: config.gated_mlp,
            clamped_gate: config.clamped_gate,
            router_norm: None,
        };
        let mut all_weights = 0;
        let shared = shared.map(|wide| (settings.count, wide));
        for (index, wide) in
            (0..settings.count).map(|index| (index, settings.intermediate_size)).chain(shared)
        {
            let (up, down) = match fused {
                Some([up, down]) if index < settings.count => {
                    (vec![Part::new(up).slab(index)], Part::new(down).slab(index))
                }
                _ => (names.expert)(index),
            };
            let (up, down, weights) = pair(up, down, wide, Some(index))?;
            experts.up.push(up);
            experts.down.push(down);
            all_weights += weights;
        }
        Ok((Mlp::Experts(experts), all_weights))
    }
}
