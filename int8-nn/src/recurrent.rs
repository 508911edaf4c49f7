//! Mixers with a recurrent state in a block: their projections, and what lies between them. A kind of mixer is a variant here, its
//! sizes in [`crate::config::RecurrentMixer`], its names in [`RecurrentNames`] and its recurrence in
//! [`crate::backend::Recurrence`].

mod linear;
mod state_space;

use std::sync::Arc;

use crate::Error;
use crate::backend::{ActivationRole, Backend, Input, RecurrentLayer};
use crate::block::{Context, Loader};
use crate::config::{DecoderConfig, RecurrentMixer};
use crate::families::RecurrentNames;
use crate::precision::{LinearRole, Precision};
use crate::weights::Part;
use linear::{LinearMixer, LowRankScratch};
use state_space::{SelectionScratch, StateSpaceMixer};

/// The linear layers of a mixer: parts, their output channels, input features.
pub(crate) fn linear_layers(
    mixer: &RecurrentMixer,
    names: RecurrentNames,
    hidden: usize,
) -> Vec<(Vec<Part>, Vec<usize>, usize)> {
    match (mixer, names) {
        (RecurrentMixer::StateSpace(space), RecurrentNames::StateSpace(names)) => {
            let layers = state_space::linear_layers(*names, space, hidden).into_iter();
            layers.map(|(part, [outputs, inputs])| (vec![part], vec![outputs], inputs)).collect()
        }
        (mixer, RecurrentNames::Linear(names)) => linear::linear_layers(mixer, *names, hidden),
        (_, RecurrentNames::StateSpace(_)) => Vec::new(),
    }
}

/// A block's mixer.
#[derive(Debug)]
pub(crate) enum Recurrent<B: Backend> {
    StateSpace(StateSpaceMixer<B>),
    /// All others.
    Linear(LinearMixer<B>),
}

impl<B: Backend> Recurrent<B> {
    /// The mixer of block `layer`.
    pub(crate) fn load(
        loader: &Loader<'_, B>,
        layer: usize,
        names: RecurrentNames,
        precision: &Precision,
    ) -> Result<Self, Error> {
        match (&loader.config.recurrent, names) {
            (Some(RecurrentMixer::StateSpace(space)), RecurrentNames::StateSpace(names)) => {
                StateSpaceMixer::load(loader, layer, *names, space, precision).map(Self::StateSpace)
            }
            (Some(mixer), RecurrentNames::Linear(names)) => {
                LinearMixer::load(loader, layer, *names, mixer, precision).map(Self::Linear)
            }
            _ => Err(Error::Unsupported("a recurrent mixer without its sizes".to_owned())),
        }
    }

    /// The linear layers with their roles.
    pub(crate) fn linears(&self) -> impl Iterator<Item = (LinearRole, &B::Linear)> {
        let (space, linear) = match self {
            Self::StateSpace(mixer) => (Some(mixer.linears()), None),
            Self::Linear(mixer) => (None, Some(mixer.linears())),
        };
        space.into_iter().flatten().chain(linear.into_iter().flatten())
    }

    /// What the cache keeps for each sequence.
    pub(crate) fn layer(&self) -> &Arc<RecurrentLayer> {
        match self {
            Self::StateSpace(mixer) => mixer.layer(),
            Self::Linear(mixer) => mixer.layer(),
        }
    }

    /// The input projection.
    pub(crate) fn project(
        &self,
        backend: &B,
        input: Input<'_, B>,
        scratch: Option<&mut RecurrentScratch<B>>,
    ) -> Result<(), Error> {
        let Some(scratch) = scratch else {
            return Err(Error::Unsupported("a recurrent mixer without sizes".to_owned()));
        };
        match self {
            Self::StateSpace(mixer) => mixer.project(backend, input, scratch),
            Self::Linear(mixer) => mixer.project(backend, input, scratch),
        }
    }

    /// `scratch.mixed`, the input of [`output`](Self::output), from what [`project`](Self::project) computed.
    pub(crate) fn mix(
        &self,
        at: &Context<'_, B>,
        (layer, cache): (usize, &mut B::Cache),
        scratch: &mut RecurrentScratch<B>,
    ) -> Result<(), Error> {
        match self {
            Self::StateSpace(mixer) => mixer.mix(at, (layer, cache), scratch),
            Self::Linear(mixer) => mixer.mix(at, (layer, cache), scratch),
        }
    }

    /// The output projection.
    pub(crate) fn output(&self) -> &B::Linear {
        match self {
            Self::StateSpace(mixer) => mixer.output(),
            Self::Linear(mixer) => mixer.output(),
        }
    }
}

/// The activations between the projections of such mixers, allocated once for all blocks.
#[derive(Debug)]
pub(crate) struct RecurrentScratch<B: Backend> {
    /// Of the input projection.
    pub(crate) projected: B::Activations,
    /// The input of the output projection.
    pub(crate) mixed: B::Activations,
    /// Mamba: see [`SelectionScratch`].
    pub(crate) selection: Option<SelectionScratch<B>>,
    /// Linear attention: see [`LowRankScratch`].
    pub(crate) low: Option<LowRankScratch<B>>,
}

impl<B: Backend> RecurrentScratch<B> {
    /// For forwards of at most `max_rows` tokens; `None` for a model without recurrent states.
    pub(crate) fn new(backend: &B, config: &DecoderConfig, max_rows: usize) -> Result<Option<Self>, Error> {
        let Some(recurrent) = &config.recurrent else { return Ok(None) };
        let rows = |width| backend.activations(max_rows, width, ActivationRole::Intermediate);
        let (projected, mixed, selection, low) = match recurrent {
            RecurrentMixer::StateSpace(space) => {
                (space.projected(), space.channels, SelectionScratch::new(&rows, space)?, None)
            }
            other => {
                let [projected, mixed] = linear::widths(other);
                (projected, mixed, None, LowRankScratch::new(&rows, other)?)
            }
        };
        Ok(Some(Self { projected: rows(projected)?, mixed: rows(mixed)?, selection, low }))
    }
}
