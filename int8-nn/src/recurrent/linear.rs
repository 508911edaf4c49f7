//! Linear attention and short convolutions: input projection, convolution, recurrence, norm, gate, output projection.

use std::ops::Range;
use std::sync::Arc;

use ndarray::Array2;

use super::RecurrentScratch;
use crate::Error;
use crate::backend::{
    Backend, ColumnCopy, Convolution, GatedDeltaRule, Input, LightningAttention, NormSpec, Operand, Output,
    Recurrence, RecurrentLayer, ShortConvolution,
};
use crate::block::{Context, Loader};
use crate::config::{Activation, GatedConvolution, GatedDelta, Lightning, NormKind, RecurrentMixer, Widths};
use crate::families::LinearNames;
use crate::precision::{LinearRole, Precision, Site};
use crate::weights::{LinearSource, Part};

/// Widths of the input projection and of the input of the output projection.
pub(super) fn widths(mixer: &RecurrentMixer) -> [usize; 2] {
    mixer.widths().map_or([0; 2], |widths| [widths.projected(), widths.mixed])
}

/// The activations of decay and gate that come from a low rank.
#[derive(Debug)]
pub(crate) struct LowRankScratch<B: Backend> {
    low: B::Activations,
    decay: B::Activations,
    gate: B::Activations,
}

impl<B: Backend> LowRankScratch<B> {
    /// `rows` allocates activations of a width.
    pub(super) fn new(
        rows: &impl Fn(usize) -> Result<B::Activations, Error>,
        mixer: &RecurrentMixer,
    ) -> Result<Option<Self>, Error> {
        let widths = mixer.widths();
        let Some([[decay, rank], [gate, _]]) = widths.as_ref().and_then(|widths| widths.low.first_chunk())
        else {
            return Ok(None);
        };
        Ok(Some(Self { low: rows(*rank)?, decay: rows(*decay)?, gate: rows(*gate)? }))
    }
}

/// The linear layers: parts, their output channels, input features.
pub(super) fn linear_layers(
    mixer: &RecurrentMixer,
    names: LinearNames,
    hidden: usize,
) -> Vec<(Vec<Part>, Vec<usize>, usize)> {
    let Some(widths) = mixer.widths() else { return Vec::new() };
    let biased = matches!(mixer, RecurrentMixer::ShortConvolution(convolution) if convolution.biases);
    let input = names.input.into_iter().map(|part| part.biased(biased)).collect();
    let output = (vec![names.output.biased(biased)], vec![hidden], widths.mixed);
    let low = names.low.into_iter().zip(&widths.low);
    let low = low.map(|(part, [outputs, inputs])| (vec![part.biased(false)], vec![*outputs], *inputs));
    [(input, widths.parts.clone(), hidden), output].into_iter().chain(low).collect()
}

/// The mixer of one block.
#[derive(Debug)]
pub(crate) struct LinearMixer<B: Backend> {
    input: B::Linear,
    output: B::Linear,
    low: Option<LowRank<B>>,
    convolves: bool,
    /// Of each run of its width of the recurrence's output.
    norm: Option<B::Norm>,
    /// Columns of the input projection, or of the layer from a low rank.
    gate: Option<(Range<usize>, Activation)>,
    mixed: usize,
    layer: Arc<RecurrentLayer>,
}

/// Decay and gate, each from its columns of the input projection.
#[derive(Debug)]
struct LowRank<B: Backend> {
    decay: B::Linear,
    gate: B::Linear,
    columns: [ColumnCopy; 2],
}

impl<B: Backend> LinearMixer<B> {
    pub(super) fn load(
        loader: &Loader<'_, B>,
        layer: usize,
        names: LinearNames,
        mixer: &RecurrentMixer,
        precision: &Precision,
    ) -> Result<Self, Error> {
        let Some(widths) = mixer.widths() else {
            return Err(Error::Unsupported("a state-space mixer with names of linear attention".to_owned()));
        };
        let reader = Reader { loader, names: &names, widths: &widths };
        let spec = match mixer {
            RecurrentMixer::GatedDelta(delta) => reader.gated_delta(delta)?,
            RecurrentMixer::ShortConvolution(convolution) => reader.short_convolution(convolution)?,
            RecurrentMixer::Lightning(lightning) => reader.lightning(lightning, layer),
            RecurrentMixer::StateSpace(_) => RecurrentLayer { convolution: None, recurrence: None },
        };
        let (norm, gate) = match mixer {
            RecurrentMixer::GatedDelta(delta) => {
                let first = if delta.rank.is_some() { 0 } else { widths.convolved };
                let norm = reader.norm(delta.value_size, delta.norm_eps)?;
                (norm, Some((first..first + widths.mixed, delta.gate)))
            }
            RecurrentMixer::Lightning(lightning) => {
                let first = 3 * widths.mixed;
                let norm = reader.norm(widths.mixed, lightning.norm_eps)?;
                (norm, Some((first..first + widths.mixed, Activation::Sigmoid)))
            }
            RecurrentMixer::ShortConvolution(_) | RecurrentMixer::StateSpace(_) => (None, None),
        };
        let roles =
            [LinearRole::Qkv, LinearRole::AttentionOutput, LinearRole::StateSpace, LinearRole::StateSpace];
        let mut linears = Vec::new();
        let layers = linear_layers(mixer, names, loader.config.hidden_size);
        for (role, (parts, outputs, inputs)) in roles.into_iter().zip(layers) {
            let site = Site::block(loader.stack, layer, role);
            let source = LinearSource::find(loader.checkpoint, loader.root, parts, &outputs, inputs)?;
            linears.push(loader.backend.linear(site, &source, &precision.of(role))?);
        }
        let mut linears = linears.into_iter();
        let (Some(input), Some(output)) = (linears.next(), linears.next()) else {
            return Err(Error::Unsupported("linear attention without projections".to_owned()));
        };
        let low = linears.next().zip(linears.next()).map(|(decay, gate)| {
            let [.., first, second] = widths.parts[..] else { unreachable!("five parts or more") };
            let copy = |from, count| ColumnCopy { source: 0, from, to: 0, count };
            let end = widths.projected();
            LowRank { decay, gate, columns: [copy(end - second - first, first), copy(end - second, second)] }
        });
        let (convolves, mixed) = (spec.convolution.is_some(), widths.mixed);
        Ok(Self { input, output, low, convolves, norm, gate, mixed, layer: Arc::new(spec) })
    }

    pub(super) fn linears(&self) -> impl Iterator<Item = (LinearRole, &B::Linear)> {
        let low = self.low.iter().flat_map(|low| [&low.decay, &low.gate]);
        std::iter::once((LinearRole::Qkv, &self.input))
            .chain(low.map(|linear| (LinearRole::StateSpace, linear)))
            .chain([(LinearRole::AttentionOutput, &self.output)])
    }

    pub(super) fn layer(&self) -> &Arc<RecurrentLayer> {
        &self.layer
    }

    pub(super) fn output(&self) -> &B::Linear {
        &self.output
    }

    pub(super) fn project(
        &self,
        backend: &B,
        input: Input<'_, B>,
        scratch: &mut RecurrentScratch<B>,
    ) -> Result<(), Error> {
        backend.project(input, &mut [(&self.input, Output::Store(&mut scratch.projected))])
    }

    pub(super) fn mix(
        &self,
        at: &Context<'_, B>,
        (layer, cache): (usize, &mut B::Cache),
        scratch: &mut RecurrentScratch<B>,
    ) -> Result<(), Error> {
        let backend = at.backend;
        let RecurrentScratch { projected, mixed, low: of_low, .. } = scratch;
        if let (Some(layers), Some(LowRankScratch { low, decay, gate })) = (&self.low, &mut *of_low) {
            let [of_decay, of_gate] = layers.columns;
            backend.copy_columns(&[projected], &[of_decay], low)?;
            backend.project(Input::Plain(low), &mut [(&layers.decay, Output::Store(decay))])?;
            backend.copy_columns(&[projected], &[of_gate], low)?;
            backend.project(Input::Plain(low), &mut [(&layers.gate, Output::Store(gate))])?;
        }
        let low = of_low.as_ref();
        if self.convolves {
            backend.convolve(at.batch, layer, projected, cache)?;
        }
        match low {
            None => backend.recur(at.batch, layer, &[projected], cache, mixed)?,
            Some(low) => backend.recur(at.batch, layer, &[projected, &low.decay], cache, mixed)?,
        }
        if let Some(norm) = &self.norm {
            backend.normalize_columns(mixed, 0..self.mixed, norm)?;
        }
        match &self.gate {
            None => Ok(()),
            Some((columns, activation)) => {
                let gates = low.map_or(&*projected, |low| &low.gate);
                backend.gate(mixed, gates, columns.clone(), *activation)
            }
        }
    }
}

/// Reads the parameters that are no linear layer's.
struct Reader<'a, B: Backend> {
    loader: &'a Loader<'a, B>,
    names: &'a LinearNames,
    widths: &'a Widths,
}

impl<B: Backend> Reader<'_, B> {
    /// Part `index` of the input projection.
    fn part(&self, index: usize) -> Operand {
        let first = self.widths.parts[..index].iter().sum();
        Operand { input: 0, columns: first..first + self.widths.parts[index] }
    }

    /// The numbers of a tensor, whatever its shape.
    fn vector(&self, name: &str, count: usize) -> Result<Vec<f32>, Error> {
        self.loader.vector(name, count)
    }

    fn norm(&self, width: usize, eps: f32) -> Result<Option<B::Norm>, Error> {
        let Some(name) = &self.names.norm else { return Ok(None) };
        let gain = self.vector(&format!("{name}.weight"), width)?;
        let spec = NormSpec { kind: NormKind::RmsNorm, eps, gain, bias: None };
        self.loader.backend.norm(&spec).map(Some)
    }

    /// Weight `[channels, kernel]` and bias of the convolution.
    fn convolution(
        &self,
        channels: usize,
        kernel: usize,
        biased: bool,
    ) -> Result<(Array2<f32>, Option<Vec<f32>>), Error> {
        let (mut weight, mut bias) = (Vec::new(), Vec::new());
        let mut found = 0;
        for module in &self.names.convolution {
            let tensor = self.loader.checkpoint.tensor(&self.loader.name(&format!("{module}.weight")))?;
            let [count, 1, width] = *tensor.shape() else {
                return Err(tensor
                    .shape_error("three dimensions, of which the second is 1".to_owned())
                    .into());
            };
            if width != kernel || found + count > channels {
                let expected = format!("at most {} channels of {kernel} tokens", channels - found);
                return Err(tensor.shape_error(expected).into());
            }
            found += count;
            weight.extend(tensor.to_f32()?);
            if biased {
                bias.extend(self.vector(&format!("{module}.bias"), count)?);
            }
        }
        if found != channels {
            return Err(Error::Input(format!(
                "{}: the convolution has {found} channels; expected {channels}",
                self.names.convolution.join("+")
            )));
        }
        let weight = Array2::from_shape_vec((channels, kernel), weight).expect("the shape was checked");
        Ok((weight, biased.then_some(bias)))
    }

    fn gated_delta(&self, delta: &GatedDelta) -> Result<RecurrentLayer, Error> {
        let GatedDelta { heads, key_heads, key_size, value_size, kernel, .. } = *delta;
        let Some([transition, step_bias]) = &self.names.decay else {
            return Err(Error::Unsupported("a gated delta rule without a decay".to_owned()));
        };
        let (weight, bias) = self.convolution(self.widths.convolved, kernel, false)?;
        let convolution = Convolution {
            columns: 0..self.widths.convolved,
            weight,
            bias,
            activation: Some(delta.activation),
        };
        let (betas, steps) = match delta.rank {
            None => (self.part(4), self.part(5)),
            Some(_) => (self.part(3), Operand { input: 1, columns: 0..heads * key_size }),
        };
        let transition = self.vector(transition, heads)?;
        let rule = GatedDeltaRule {
            heads,
            key_heads,
            key_size,
            value_size,
            queries: self.part(0),
            keys: self.part(1),
            values: self.part(2),
            betas,
            step_bias: self.vector(step_bias, steps.columns.len())?,
            steps,
            transition: transition.iter().map(|log| -log.exp()).collect(),
            beta_scale: delta.beta_scale,
        };
        Ok(RecurrentLayer { convolution: Some(convolution), recurrence: Some(Recurrence::GatedDelta(rule)) })
    }

    fn lightning(&self, lightning: &Lightning, layer: usize) -> RecurrentLayer {
        let spec = LightningAttention {
            head_size: lightning.head_size,
            queries: self.part(0),
            keys: self.part(1),
            values: self.part(2),
            activation: lightning.activation,
            slopes: (0..lightning.heads).map(|head| lightning.slope(layer, head)).collect(),
        };
        RecurrentLayer { convolution: None, recurrence: Some(Recurrence::Lightning(spec)) }
    }

    fn short_convolution(&self, spec: &GatedConvolution) -> Result<RecurrentLayer, Error> {
        let (weight, bias) = self.convolution(spec.channels, spec.kernel, spec.biases)?;
        let spec =
            ShortConvolution { before: self.part(0), after: self.part(1), x: self.part(2), weight, bias };
        Ok(RecurrentLayer { convolution: None, recurrence: Some(Recurrence::ShortConvolution(spec)) })
    }
}
