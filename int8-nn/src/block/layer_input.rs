//! The embedding that a block has of its own, and what follows the branches of a block.

use super::{Block, Context, Loader};
use crate::Error;
use crate::backend::{Backend, Input, Output};
use crate::families::LayerInputNames;
use crate::precision::{LinearRole, Precision, Site};
use crate::scratch::Scratch;

/// `x += norm(down(act(gate(x)) · input))`
#[derive(Debug)]
pub(super) struct LayerInput<B: Backend> {
    pub(super) gate: B::Linear,
    pub(super) projection: B::Linear,
    norm: B::Norm,
    /// First column of the block's input among those of all blocks.
    first: usize,
}

impl<B: Backend> LayerInput<B> {
    /// `None` in a model without such embeddings; and the number of weights.
    pub(super) fn load(
        loader: &Loader<'_, B>,
        layer: usize,
        names: Option<LayerInputNames>,
        precision: &Precision,
    ) -> Result<(Option<Self>, usize), Error> {
        let (Some(names), Some(inputs)) = (names, loader.config.layer_inputs) else { return Ok((None, 0)) };
        let (hidden, width) = (loader.config.hidden_size, inputs.width);
        let linear = |part, role, outputs: usize, inputs: usize| {
            let site = Site::block(loader.stack, layer, role);
            loader.linear(site, vec![part], &[outputs], inputs, &precision.of(role))
        };
        let loaded = Self {
            gate: linear(names.gate.biased(false), LinearRole::Up, width, hidden)?,
            projection: linear(names.projection.biased(false), LinearRole::Down, hidden, width)?,
            norm: loader.norm(&names.norm)?,
            first: layer * width,
        };
        Ok((Some(loaded), 2 * hidden * width))
    }

    /// `scratch.branch = down(act(gate(x)) · input)`, before the norm.
    pub(super) fn project(
        &self,
        at: &Context<'_, B>,
        x: &B::Activations,
        scratch: &mut Scratch<B>,
    ) -> Result<(), Error> {
        let Scratch { branch, carried, .. } = scratch;
        let target = (&self.gate, Output::Store(&mut carried.gate));
        at.backend.project(Input::Plain(x), &mut [target])?;
        at.backend.activate_by(&mut carried.gate, at.config.activation, &carried.inputs, self.first)?;
        let target = (&self.projection, Output::Store(branch));
        at.backend.project(Input::Plain(&carried.gate), &mut [target])
    }

    pub(super) fn norm(&self) -> &B::Norm {
        &self.norm
    }
}

impl<B: Backend> Block<B> {
    /// Adds the block's own embedding and the output of experts of an earlier block, and multiplies the stream by the block's number.
    pub(super) fn finish(
        &self,
        at: &Context<'_, B>,
        x: &mut B::Activations,
        scratch: &mut Scratch<B>,
    ) -> Result<(), Error> {
        if let Some(input) = &self.layer_input {
            input.project(at, x, scratch)?;
            at.backend.add(x, &scratch.branch, Some(input.norm()))?;
        }
        if self.adds_shortcut {
            at.backend.add(x, &scratch.beside, None)?;
        }
        match self.scalar {
            Some(scalar) => at.backend.scale(x, Some(scalar), None),
            None => Ok(()),
        }
    }
}
