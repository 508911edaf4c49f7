//! State-space mixers: Mamba and Mamba-2.

use std::ops::Range;
use std::sync::Arc;

use ndarray::Array2;

use super::RecurrentScratch;
use crate::Error;
use crate::backend::{
    Backend, ColumnCopy, Convolution, HeadScan, Input, NormSpec, Operand, Output, Recurrence, RecurrentLayer,
    SelectiveScan,
};
use crate::block::{Context, Loader};
use crate::config::{Activation, Scan, StateSpace};
use crate::families::StateSpaceNames;
use crate::precision::{LinearRole, Precision, Site};
use crate::weights::{LinearSource, Part};

/// The linear layers, each with output channels and input features: those of the input and of the output projection first.
pub(crate) fn linear_layers(
    names: StateSpaceNames,
    space: &StateSpace,
    hidden: usize,
) -> Vec<(Part, [usize; 2])> {
    let input = names.input.biased(space.input_bias);
    let output = names.output.biased(space.output_bias);
    let parameters = names.parameters.map(|part| part.biased(false));
    let selection: Vec<Part> = match (&space.scan, parameters, names.steps) {
        (Scan::Selective { heads: Some(heads), .. }, Some(parameters), Some(steps)) => {
            (0..*heads).flat_map(|head| [parameters.clone().slab(head), steps.clone().slab(head)]).collect()
        }
        (_, parameters, steps) => parameters.into_iter().chain(steps).collect(),
    };
    [input, output].into_iter().chain(selection).zip(space.layers(hidden)).collect()
}

/// The mixer of one block.
#[derive(Debug)]
pub(crate) struct StateSpaceMixer<B: Backend> {
    input: B::Linear,
    output: B::Linear,
    /// Mamba: to Δ at its low rank, B and C; and from that rank to Δ.
    selection: Option<Selection<B>>,
    /// Columns of the input projection.
    gate: Range<usize>,
    /// Of groups of columns of the recurrence's output, and whether they go before the gate.
    norms: Vec<(Range<usize>, B::Norm)>,
    norms_before_gate: bool,
    /// Of columns of the input projection.
    multipliers: Vec<(Range<usize>, f32)>,
    layer: Arc<RecurrentLayer>,
}

/// Mamba's projections of the convolved columns: of all, or of each head for itself.
#[derive(Debug)]
struct Selection<B: Backend> {
    heads: Vec<HeadSelection<B>>,
    /// Of columns of the parameters of a head.
    norms: Vec<(Range<usize>, B::Norm)>,
    /// Several heads: B and C of all, and Δ of all, side by side.
    join: [Vec<ColumnCopy>; 2],
}

#[derive(Debug)]
struct HeadSelection<B: Backend> {
    /// To Δ at its low rank, B and C.
    parameters: B::Linear,
    /// From that rank to Δ.
    steps: B::Linear,
    /// The convolved columns of the head; and Δ at its low rank.
    convolved: ColumnCopy,
    low: ColumnCopy,
}

/// The activations of a [`Selection`].
#[derive(Debug)]
pub(crate) struct SelectionScratch<B: Backend> {
    /// The convolved columns of a head, and Δ at its low rank.
    convolved: B::Activations,
    low: B::Activations,
    /// Of each head Δ at its low rank, B and C; and Δ.
    parameters: Vec<B::Activations>,
    steps: Vec<B::Activations>,
    /// Of several heads B and C; and Δ.
    joined: Option<[B::Activations; 2]>,
}

impl<B: Backend> SelectionScratch<B> {
    /// `rows` allocates activations of a width.
    pub(super) fn new(
        rows: &impl Fn(usize) -> Result<B::Activations, Error>,
        space: &StateSpace,
    ) -> Result<Option<Self>, Error> {
        let Scan::Selective { rank, heads, .. } = space.scan else { return Ok(None) };
        let count = heads.unwrap_or(1);
        let channels = space.channels / count;
        let of_each = |width| (0..count).map(|_| rows(width)).collect::<Result<Vec<_>, _>>();
        let joined =
            if count > 1 { Some([rows(2 * count * space.dimensions)?, rows(space.channels)?]) } else { None };
        Ok(Some(Self {
            convolved: rows(channels)?,
            low: rows(rank)?,
            parameters: of_each(rank + 2 * space.dimensions)?,
            steps: of_each(channels)?,
            joined,
        }))
    }
}

impl<B: Backend> Selection<B> {
    fn new(
        linears: impl Iterator<Item = B::Linear>,
        norms: Vec<(Range<usize>, B::Norm)>,
        space: &StateSpace,
    ) -> Option<Self> {
        let Scan::Selective { rank, heads, .. } = space.scan else { return None };
        let (count, dimensions) = (heads.unwrap_or(1), space.dimensions);
        let channels = space.channels / count;
        let mut linears = linears;
        let mut found = Vec::new();
        let mut join = [Vec::new(), Vec::new()];
        for head in 0..count {
            found.push(HeadSelection {
                parameters: linears.next()?,
                steps: linears.next()?,
                convolved: ColumnCopy { source: 0, from: head * channels, to: 0, count: channels },
                low: ColumnCopy { source: 0, from: 0, to: 0, count: rank },
            });
            for (index, first) in [(0, 0), (1, count * dimensions)] {
                join[0].push(ColumnCopy {
                    source: head,
                    from: rank + index * dimensions,
                    to: first + head * dimensions,
                    count: dimensions,
                });
            }
            join[1].push(ColumnCopy { source: head, from: 0, to: head * channels, count: channels });
        }
        Some(Self { heads: found, norms, join })
    }

    /// Of the convolved columns of `projected` the matrix with B and C, and Δ.
    fn run<'a>(
        &self,
        backend: &B,
        projected: &B::Activations,
        scratch: &'a mut SelectionScratch<B>,
    ) -> Result<[&'a B::Activations; 2], Error> {
        let SelectionScratch { convolved, low, parameters, steps, joined } = scratch;
        for (head, (parameters, steps)) in self.heads.iter().zip(parameters.iter_mut().zip(&mut *steps)) {
            backend.copy_columns(&[projected], &[head.convolved], convolved)?;
            let target = (&head.parameters, Output::Store(&mut *parameters));
            backend.project(Input::Plain(convolved), &mut [target])?;
            for (columns, norm) in &self.norms {
                backend.normalize_columns(parameters, columns.clone(), norm)?;
            }
            backend.copy_columns(&[parameters], &[head.low], low)?;
            backend.project(Input::Plain(low), &mut [(&head.steps, Output::Store(&mut *steps))])?;
        }
        let Some([of_parameters, of_steps]) = joined else { return Ok([&parameters[0], &steps[0]]) };
        let [join_parameters, join_steps] = &self.join;
        backend.copy_columns(&parameters.iter().collect::<Vec<_>>(), join_parameters, of_parameters)?;
        backend.copy_columns(&steps.iter().collect::<Vec<_>>(), join_steps, of_steps)?;
        Ok([of_parameters, of_steps])
    }
}

impl<B: Backend> StateSpaceMixer<B> {
    pub(super) fn load(
        loader: &Loader<'_, B>,
        layer: usize,
        names: StateSpaceNames,
        space: &StateSpace,
        precision: &Precision,
    ) -> Result<Self, Error> {
        let hidden = loader.config.hidden_size;
        let parameters = Parameters::read(loader, &names, space)?;
        let norms = output_norms(loader, &names, space)?;
        let parameter_norms = parameter_norms(loader, &names, space)?;
        let roles = [LinearRole::Qkv, LinearRole::AttentionOutput];
        let roles = roles.into_iter().chain(std::iter::repeat(LinearRole::StateSpace));
        // transformers holds the projections of heads as plain tensors: they are no linear layers.
        let by_head = matches!(space.scan, Scan::Selective { heads: Some(_), .. });
        let mut linears = Vec::new();
        let mut of_input = None;
        for (role, (part, [outputs, inputs])) in roles.zip(linear_layers(names, space, hidden)) {
            let site = Site::block(loader.stack, layer, role);
            let source = LinearSource::find(loader.checkpoint, loader.root, vec![part], &[outputs], inputs)?;
            let is_int8 = source.is_int8()?;
            // A checkpoint whose input projection is int8 left the others in floating point on purpose: transformers reads their
            // weights without the layer.
            let kept =
                *of_input.get_or_insert(is_int8) && !is_int8 || by_head && role == LinearRole::StateSpace;
            let precision = if kept { Precision::Float } else { precision.of(role) };
            linears.push(loader.backend.linear(site, &source, &precision)?);
        }
        let mut linears = linears.into_iter();
        let (Some(input), Some(output)) = (linears.next(), linears.next()) else {
            return Err(Error::Unsupported("a state-space mixer without projections".to_owned()));
        };
        let channels = space.channels;
        let selection = Selection::new(linears, parameter_norms, space);
        let gate = match space.scan {
            Scan::Selective { .. } => channels..2 * channels,
            Scan::Heads { .. } => 0..channels,
        };
        let norms_before_gate =
            matches!(&space.scan, Scan::Heads { norm: Some(norm), .. } if norm.before_gate);
        let layer = Arc::new(parameters.layer(space));
        let multipliers = multipliers(space);
        Ok(Self { input, output, selection, gate, norms, norms_before_gate, multipliers, layer })
    }

    pub(super) fn linears(&self) -> impl Iterator<Item = (LinearRole, &B::Linear)> {
        let heads = self.selection.iter().flat_map(|selection| &selection.heads);
        let selection = heads.flat_map(|head| [&head.parameters, &head.steps]);
        std::iter::once((LinearRole::Qkv, &self.input))
            .chain(selection.map(|linear| (LinearRole::StateSpace, linear)))
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
        let projected = &mut scratch.projected;
        backend.project(input, &mut [(&self.input, Output::Store(&mut *projected))])?;
        let scale = |(columns, factor): &(Range<usize>, f32)| {
            backend.scale_columns(projected, columns.clone(), *factor)
        };
        self.multipliers.iter().try_for_each(scale)
    }

    pub(super) fn mix(
        &self,
        at: &Context<'_, B>,
        (layer, cache): (usize, &mut B::Cache),
        scratch: &mut RecurrentScratch<B>,
    ) -> Result<(), Error> {
        let backend = at.backend;
        let RecurrentScratch { projected, mixed, selection: scratch, .. } = scratch;
        backend.convolve(at.batch, layer, projected, cache)?;
        match (&self.selection, scratch) {
            (Some(selection), Some(scratch)) => {
                let [parameters, steps] = selection.run(backend, projected, scratch)?;
                backend.recur(at.batch, layer, &[projected, parameters, steps], cache, mixed)?;
            }
            _ => backend.recur(at.batch, layer, &[projected], cache, mixed)?,
        }
        if !self.norms_before_gate {
            backend.gate(mixed, projected, self.gate.clone(), Activation::Silu)?;
        }
        for (columns, norm) in &self.norms {
            backend.normalize_columns(mixed, columns.clone(), norm)?;
        }
        if self.norms_before_gate {
            backend.gate(mixed, projected, self.gate.clone(), Activation::Silu)?;
        }
        Ok(())
    }
}

/// The parameters that are no linear layer's.
struct Parameters {
    /// `[convolved, kernel]`
    convolution: Array2<f32>,
    convolution_bias: Option<Vec<f32>>,
    /// `−exp(A_log)`
    transition: Vec<f32>,
    skip: Vec<f32>,
    step_bias: Option<Vec<f32>>,
}

impl Parameters {
    fn read<B: Backend>(
        loader: &Loader<'_, B>,
        names: &StateSpaceNames,
        space: &StateSpace,
    ) -> Result<Self, Error> {
        let tensor = |name: &str, shape: &[usize]| -> Result<Vec<f32>, Error> {
            Ok(loader.checkpoint.tensor(&loader.name(name))?.expect_shape(shape)?.to_f32()?)
        };
        let convolved = space.convolved();
        let weight = tensor(&format!("{}.weight", names.convolution), &[convolved, 1, space.kernel])?;
        let weight =
            Array2::from_shape_vec((convolved, space.kernel), weight).expect("the shape was checked");
        let bias = format!("{}.bias", names.convolution);
        let bias = space.convolution_bias.then(|| tensor(&bias, &[convolved])).transpose()?;
        let of_transition;
        let wide = match space.scan {
            Scan::Selective { heads: Some(heads), .. } => {
                of_transition = vec![heads, space.channels / heads, space.dimensions];
                vec![heads, space.channels / heads]
            }
            Scan::Selective { heads: None, .. } => {
                of_transition = vec![space.channels, space.dimensions];
                vec![space.channels]
            }
            Scan::Heads { heads, .. } => {
                of_transition = vec![heads];
                vec![heads]
            }
        };
        let transition = tensor(&names.transition, &of_transition)?;
        Ok(Self {
            convolution: weight,
            convolution_bias: bias,
            transition: transition.iter().map(|log| -log.exp()).collect(),
            skip: tensor(&names.skip, &wide)?,
            step_bias: names.step_bias.as_ref().map(|name| tensor(name, &wide)).transpose()?,
        })
    }

    /// The convolution and the recurrence over columns of the projections.
    fn layer(self, space: &StateSpace) -> RecurrentLayer {
        let StateSpace { channels, dimensions, .. } = *space;
        let operand =
            |input: usize, first: usize, count: usize| Operand { input, columns: first..first + count };
        let (first, recurrence) = match space.scan {
            Scan::Selective { rank, heads, .. } => {
                let transition = Array2::from_shape_vec((channels, dimensions), self.transition);
                let groups = heads.unwrap_or(1);
                let first = if groups > 1 { 0 } else { rank };
                let scan = SelectiveScan {
                    x: operand(0, 0, channels),
                    steps: operand(2, 0, channels),
                    b: operand(1, first, groups * dimensions),
                    c: operand(1, first + groups * dimensions, groups * dimensions),
                    transition: transition.expect("the shape was checked"),
                    skip: self.skip,
                    step_bias: self.step_bias,
                };
                (0, Recurrence::SelectiveScan(scan))
            }
            Scan::Heads { heads, groups, step_limits, .. } => {
                let (x, grouped) = (channels, groups * dimensions);
                let scan = HeadScan {
                    heads,
                    head_size: channels / heads,
                    state: dimensions,
                    x: operand(0, x, channels),
                    steps: operand(0, x + space.convolved(), heads),
                    b: operand(0, x + channels, grouped),
                    c: operand(0, x + channels + grouped, grouped),
                    transition: self.transition,
                    step_bias: self.step_bias.unwrap_or_else(|| vec![0.0; heads]),
                    skip: self.skip,
                    step_limits,
                };
                (channels, Recurrence::HeadScan(scan))
            }
        };
        let convolution = Convolution {
            columns: first..first + space.convolved(),
            weight: self.convolution,
            bias: self.convolution_bias,
            activation: Some(space.activation),
        };
        RecurrentLayer { convolution: Some(convolution), recurrence: Some(recurrence) }
    }
}

/// The factors of the columns of the input projection.
fn multipliers(space: &StateSpace) -> Vec<(Range<usize>, f32)> {
    let (Some(factors), Scan::Heads { heads, groups, .. }) = (space.multipliers, &space.scan) else {
        return Vec::new();
    };
    let grouped = groups * space.dimensions;
    let widths = [space.channels, space.channels, grouped, grouped, *heads];
    let mut first = 0;
    let of_columns = widths.into_iter().zip(factors).map(|(width, factor)| {
        first += width;
        (first - width..first, factor)
    });
    of_columns.filter(|(_, factor)| *factor != 1.0).collect()
}

/// Norms of columns.
type ColumnNorms<B> = Vec<(Range<usize>, <B as Backend>::Norm)>;

/// Of the output of the recurrence, group by group.
fn output_norms<B: Backend>(
    loader: &Loader<'_, B>,
    names: &StateSpaceNames,
    space: &StateSpace,
) -> Result<ColumnNorms<B>, Error> {
    let (Scan::Heads { norm: Some(norm), .. }, Some(name)) = (&space.scan, &names.norm) else {
        return Ok(Vec::new());
    };
    let gains = loader.checkpoint.tensor(&loader.name(&format!("{name}.weight")))?;
    let gains = gains.expect_shape(&[space.channels])?.to_f32()?;
    let width = space.channels / norm.groups;
    let of_group = |(group, gain): (usize, &[f32])| {
        let spec = NormSpec { kind: StateSpace::NORM, eps: norm.eps, gain: gain.to_vec(), bias: None };
        Ok((group * width..(group + 1) * width, loader.backend.norm(&spec)?))
    };
    gains.chunks_exact(width).enumerate().map(of_group).collect()
}

/// Of Δ at its low rank, B and C.
fn parameter_norms<B: Backend>(
    loader: &Loader<'_, B>,
    names: &StateSpaceNames,
    space: &StateSpace,
) -> Result<ColumnNorms<B>, Error> {
    let Scan::Selective { rank, norms: Some(norms), .. } = space.scan else { return Ok(Vec::new()) };
    let states = space.dimensions;
    let columns = [0..rank, rank..rank + states, rank + states..rank + 2 * states];
    let mut found = Vec::new();
    for (index, columns) in columns.into_iter().enumerate() {
        let gain = match names.parameter_norms.as_ref().filter(|_| norms.gains) {
            None => vec![1.0; columns.len()],
            Some(names) => {
                let gain = loader.checkpoint.tensor(&loader.name(&format!("{}.weight", names[index])))?;
                gain.expect_shape(&[columns.len()])?.to_f32()?
            }
        };
        let spec = NormSpec { kind: StateSpace::NORM, eps: norms.eps, gain, bias: None };
        found.push((columns, loader.backend.norm(&spec)?));
    }
    Ok(found)
}
