//! A block of a model with several residual streams: it predicts all of them, computes the first, with a learned residual layer of
//! low rank (LAuReL) beside attention, and corrects all.

use ndarray::Array2;

use super::{Block, Context, Loader};
use crate::Error;
use crate::backend::{Backend, ColumnCopy, Input, Output};
use crate::convert;
use crate::families::StreamLayerNames;
use crate::precision::{LinearRole, Precision, Site};
use crate::scratch::{Carried, Scratch};
use crate::weights::{LinearSource, Part};

/// The weights of a block that belong to the streams.
#[derive(Debug)]
pub(super) struct Mixing<B: Backend> {
    router: B::Linear,
    /// Its gains divided by the width of the stream.
    router_norm: B::Norm,
    /// `[S·S, S]`
    prediction: Array2<f32>,
    /// `[S, S]`
    correction: Array2<f32>,
    output_scale: Option<Vec<f32>>,
    /// Down and up.
    pub(super) low: [B::Linear; 2],
    low_norm: B::Norm,
}

impl<B: Backend> Mixing<B> {
    /// `None` in a model with one stream; and the number of weights.
    pub(super) fn load(
        loader: &Loader<'_, B>,
        layer: usize,
        names: Option<StreamLayerNames>,
        precision: &Precision,
    ) -> Result<(Option<Self>, usize), Error> {
        let (Some(names), Some(streams)) = (names, loader.config.streams) else { return Ok((None, 0)) };
        let (hidden, count, rank) = (loader.config.hidden_size, streams.count, streams.rank);
        let linear = |part, role, outputs: usize, inputs: usize| {
            let site = Site::block(loader.stack, layer, role);
            loader.linear(site, vec![part], &[outputs], inputs, &precision.of(role))
        };
        let matrix = |name: &str, shape: [usize; 2]| -> Result<Array2<f32>, Error> {
            let part = Part::new(name).biased(false);
            let source =
                LinearSource::find(loader.checkpoint, loader.root, vec![part], &[shape[0]], shape[1])?;
            Ok(source.float()?.to_f32())
        };
        let mut norm = loader.norm_spec(&names.router_norm, hidden)?;
        norm.gain.iter_mut().for_each(|gain| *gain /= convert::f32_from(convert::f64_from(hidden)));
        let site = Site::block(loader.stack, layer, LinearRole::Router);
        let scale = names.output_scale.filter(|_| streams.scales_output);
        let loaded = Self {
            router: loader.linear(
                site,
                vec![names.router.biased(false)],
                &[count],
                hidden,
                &Precision::Float,
            )?,
            router_norm: loader.backend.norm(&norm)?,
            prediction: matrix(&names.prediction, [count * count, count])?,
            correction: matrix(&names.correction, [count, count])?,
            output_scale: scale.map(|name| loader.vector(&name, hidden)).transpose()?,
            low: {
                let [down, up] = names.low;
                [
                    linear(down.biased(false), LinearRole::Up, rank, hidden)?,
                    linear(up.biased(false), LinearRole::Down, hidden, rank)?,
                ]
            },
            low_norm: loader.norm(&names.low_norm)?,
        };
        Ok((Some(loaded), 2 * hidden * rank))
    }

    /// `modes = router(norm(x)/width)`
    fn route(&self, backend: &B, x: &B::Activations, modes: &mut B::Activations) -> Result<(), Error> {
        backend.project(Input::Normed(x, &self.router_norm), &mut [(&self.router, Output::Store(modes))])
    }
}

impl<B: Backend> Block<B> {
    /// `x` is the first stream.
    pub(super) fn with_streams(
        &self,
        mixing: &Mixing<B>,
        at: &Context<'_, B>,
        (layer, cache): (usize, &mut B::Cache),
        x: &mut B::Activations,
        scratch: &mut Scratch<B>,
    ) -> Result<(), Error> {
        let Some(mut computed) = scratch.carried.computed.take() else { return Err(unprepared()) };
        let result = self.mix(mixing, at, (layer, cache), x, &mut computed, scratch);
        scratch.carried.computed = Some(computed);
        result
    }

    fn mix(
        &self,
        mixing: &Mixing<B>,
        at: &Context<'_, B>,
        (layer, cache): (usize, &mut B::Cache),
        x: &mut B::Activations,
        computed: &mut B::Activations,
        scratch: &mut Scratch<B>,
    ) -> Result<(), Error> {
        let backend = at.backend;
        let whole = [whole(at.config.hidden_size)];
        let Scratch { branch, carried, .. } = &mut *scratch;
        let Carried { streams, modes, low, .. } = carried;
        mixing.route(backend, x, modes)?;
        let mut all: Vec<&mut B::Activations> = std::iter::once(&mut *x).chain(streams).collect();
        backend.predict_streams(&mut all, modes, mixing.prediction.view())?;
        backend.copy_columns(&[x], &whole, computed)?;
        if let Some(norm) = &self.attention_norm {
            backend.normalize(computed, norm)?;
        }
        let [down, up] = &mixing.low;
        backend.project(Input::Plain(computed), &mut [(down, Output::Store(&mut *low))])?;
        backend.project(Input::Plain(low), &mut [(up, Output::Store(&mut *branch))])?;
        self.compute_stream(mixing, at, (layer, cache), x, computed, scratch)?;
        let Carried { streams, modes, .. } = &mut scratch.carried;
        mixing.route(backend, computed, modes)?;
        let mut all: Vec<&mut B::Activations> = std::iter::once(&mut *x).chain(streams).collect();
        backend.correct_streams(&mut all, computed, modes, mixing.correction.view())?;
        let Some(input) = &self.layer_input else { return Ok(()) };
        backend.copy_columns(&[x], &whole, computed)?;
        if let Some(factors) = &mixing.output_scale {
            backend.scale_by(computed, factors)?;
        }
        input.project(at, computed, scratch)?;
        let Scratch { branch, carried, .. } = scratch;
        carried.streams.iter_mut().try_for_each(|stream| backend.add(stream, branch, Some(input.norm())))
    }

    /// `computed`, from the normalised prediction that it holds and LAuReL's update in `scratch.branch`:
    /// `h = (x + norm(attention) + computed + norm(branch))/√2`, then `h += norm(mlp(norm(h)))`.
    fn compute_stream(
        &self,
        mixing: &Mixing<B>,
        at: &Context<'_, B>,
        (layer, cache): (usize, &mut B::Cache),
        x: &B::Activations,
        computed: &mut B::Activations,
        scratch: &mut Scratch<B>,
    ) -> Result<(), Error> {
        let backend = at.backend;
        self.project(backend, Input::Plain(computed), scratch)?;
        backend.add(computed, &scratch.branch, Some(&mixing.low_norm))?;
        self.attention(at, (layer, cache), scratch)?;
        let Scratch { context, branch, .. } = &mut *scratch;
        self.attended(backend, context, Output::Store(&mut *branch))?;
        backend.add(computed, branch, self.branch_norms[0].as_ref())?;
        backend.add(computed, x, None)?;
        backend.scale(computed, Some(std::f32::consts::FRAC_1_SQRT_2), None)?;
        self.mlp(at, self.mlp_norm.as_ref(), computed, scratch)
    }
}

/// All columns.
fn whole(count: usize) -> ColumnCopy {
    ColumnCopy { source: 0, from: 0, to: 0, count }
}

fn unprepared() -> Error {
    Error::Unsupported("several residual streams without activations".to_owned())
}

/// The projections to and from the streams but the first.
#[derive(Debug)]
pub(crate) struct StreamEnds<B: Backend> {
    pub(crate) split: Vec<B::Linear>,
    pub(crate) join: Vec<B::Linear>,
}

impl<B: Backend> StreamEnds<B> {
    /// The streams from the first.
    pub(crate) fn split(
        &self,
        backend: &B,
        x: &B::Activations,
        carried: &mut Carried<B>,
    ) -> Result<(), Error> {
        for (linear, stream) in self.split.iter().zip(&mut carried.streams) {
            backend.project(Input::Plain(x), &mut [(linear, Output::Store(&mut *stream))])?;
            backend.match_magnitude(stream, x)?;
        }
        Ok(())
    }

    /// `x` = the mean of all streams, each brought to the magnitude of the first.
    pub(crate) fn join(
        &self,
        backend: &B,
        hidden: usize,
        x: &mut B::Activations,
        carried: &mut Carried<B>,
    ) -> Result<(), Error> {
        let Carried { streams, computed, .. } = carried;
        let Some(computed) = computed else { return Err(unprepared()) };
        let count = convert::f64_from(streams.len() + 1);
        for (linear, stream) in self.join.iter().zip(&mut *streams) {
            backend.project(Input::Plain(stream), &mut [(linear, Output::Store(&mut *computed))])?;
            backend.match_magnitude(computed, x)?;
            backend.copy_columns(&[computed], &[whole(hidden)], stream)?;
        }
        streams.iter().try_for_each(|stream| backend.add(x, stream, None))?;
        backend.scale(x, Some(convert::f32_from(1.0 / count)), None)
    }
}
