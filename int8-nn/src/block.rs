//! One transformer block: attention and MLP with their normalisations, for decoders and encoders alike.

mod beside;
mod disentangled;
mod forward;
mod layer_input;
mod mlp;
mod norms;
mod streams;
mod value_heads;

use std::ops::Range;
use std::sync::Arc;

use beside::Beside;
pub(crate) use disentangled::Distances;
pub(crate) use forward::expanded;
use layer_input::LayerInput;
use streams::Mixing;
pub(crate) use streams::StreamEnds;
use value_heads::Copied;

use crate::Error;
use crate::backend::{
    Backend, DistanceBias, DistanceVectors, Experts, Input, LayerAttention, Mask, NormSpec, Output,
};
use crate::checkpoint::Checkpoint;
use crate::config::{Branch, BranchFactors, DecoderConfig, NormKind, Positions, Xielu};
use crate::families::{CrossNames, LayerNames, MlpNames};
use crate::latent::{self, Latent};
use crate::precision::{LinearRole, Precision, Site, Stack};
use crate::recurrent::Recurrent;
use crate::scratch::{Further, Scratch, Widths};
use crate::shared::{Shared, SharedCores};
use crate::weights::{LinearSource, Part, read_matrix};

/// Norms of runs of columns.
type ColumnNorms<B> = Vec<(Range<usize>, <B as Backend>::Norm)>;

/// The weights of a block.
#[derive(Debug)]
pub(crate) struct Block<B: Backend> {
    /// Before attention; in a post-norm block, after it.
    attention_norm: Option<B::Norm>,
    /// Before a recurrent mixer, where it is not the norm before attention.
    recurrent_norm: Option<B::Norm>,
    /// Before the MLP; in a post-norm block, after it. A parallel block without it has one for both.
    mlp_norm: Option<B::Norm>,
    /// At the end of the branches of attention and MLP, before the residual addition.
    branch_norms: [Option<B::Norm>; 2],
    projection: Projection<B>,
    /// Of queries and of keys: columns of the projection, and the norm of each run of its width among them.
    query_key_norms: Vec<(Range<usize>, B::Norm)>,
    /// Of each head of queries and of keys, after the rotation.
    rotated_norms: Option<[NormSpec; 2]>,
    /// `[heads]`
    sinks: Option<Vec<f32>>,
    /// The gate of attention's output.
    gate: Option<B::Linear>,
    /// Width of a head.
    gate_run: usize,
    /// The relative position bias of its own.
    distance_bias: Option<DistanceBias>,
    /// The embedded distances as keys and queries of the block.
    distance_vectors: Option<Arc<DistanceVectors>>,
    /// None in a block without attention.
    attention_output: Option<B::Linear>,
    /// A mixer with a recurrent state, beside attention or instead of it.
    recurrent: Option<Recurrent<B>>,
    /// A transformer that several blocks share, before the recurrent mixer.
    shared: Option<Shared<B>>,
    mlp: Mlp<B>,
    /// Of the input of `attention_output`, and of the MLP's contraction.
    inner_norms: Option<[B::Norm; 2]>,
    /// The MLP's activation.
    activation: Option<Xielu>,
    /// Of the MLP's gates, before the activation: their number, and the multiple of their deviation below which they are dropped.
    sparse_gates: Option<(usize, f32)>,
    beside: Option<Beside<B>>,
    layer_input: Option<LayerInput<B>>,
    mixing: Option<Mixing<B>>,
    scalar: Option<f32>,
    /// Experts that see the input of the MLP, and whose output a later block adds.
    shortcut: Option<Experts<B>>,
    adds_shortcut: bool,
    widths: Widths,
    /// Cross-attention, after self-attention.
    cross: Option<Cross<B>>,
    /// Number of weights in the linear layers.
    weights: usize,
}

/// Queries, keys and values.
#[derive(Debug)]
enum Projection<B: Backend> {
    /// One linear layer.
    Direct(B::Linear),
    Latent(Latent<B>),
    Copied(Copied<B>),
    /// The block has no attention.
    None,
}

/// Cross-attention: to the output of an encoder.
#[derive(Debug)]
struct Cross<B: Backend> {
    norm: B::Norm,
    query: B::Linear,
    key_value: B::Linear,
    output: B::Linear,
}

#[derive(Debug)]
enum Mlp<B: Backend> {
    Dense { up: B::Linear, down: B::Linear },
    Experts(Experts<B>),
    None,
}

/// Reads the tensors of a model below one root of names.
pub(crate) struct Loader<'a, B: Backend> {
    pub(crate) checkpoint: &'a Checkpoint,
    pub(crate) backend: &'a B,
    pub(crate) config: &'a DecoderConfig,
    pub(crate) root: &'static str,
    pub(crate) stack: Stack,
    /// Transformers that several blocks share, once loaded.
    pub(crate) shared: SharedCores<B>,
}

impl<B: Backend> Loader<'_, B> {
    /// A name below the root.
    pub(crate) fn name(&self, name: &str) -> String {
        format!("{}{name}", self.root)
    }

    /// The normalisation `name`, as wide as the residual stream.
    pub(crate) fn norm(&self, name: &str) -> Result<B::Norm, Error> {
        self.norm_of(name, self.config.hidden_size)
    }

    pub(crate) fn norm_of(&self, name: &str, width: usize) -> Result<B::Norm, Error> {
        self.backend.norm(&self.norm_spec(name, width)?)
    }

    /// The normalisation `name` with this ε.
    pub(crate) fn norm_with_eps(&self, name: &str, width: usize, eps: f32) -> Result<B::Norm, Error> {
        self.backend.norm(&NormSpec { eps, ..self.norm_spec(name, width)? })
    }

    pub(crate) fn norm_spec(&self, name: &str, width: usize) -> Result<NormSpec, Error> {
        let name = self.name(name);
        if !self.config.norm_gains {
            return Ok(self.spec(vec![1.0; width], None));
        }
        let width = [width];
        // Before 2020 gain and bias were called gamma and beta, and some checkpoints still have them so.
        let vector = |suffix: &str, old: &str| {
            let (name, old) = (format!("{name}.{suffix}"), format!("{name}.{old}"));
            if !self.checkpoint.contains(&name) && self.checkpoint.contains(&old) { old } else { name }
        };
        let mut gain = self.checkpoint.tensor(&vector("weight", "gamma"))?.expect_shape(&width)?.to_f32()?;
        if self.config.norm_gain_less_one {
            gain.iter_mut().for_each(|gain| *gain += 1.0);
        }
        let bias = match self.config.norm {
            NormKind::RmsNorm => None,
            NormKind::LayerNorm if !self.config.norm_bias => None,
            NormKind::LayerNorm => {
                let bias = self.checkpoint.get(&vector("bias", "beta"));
                bias.map(|bias| bias.expect_shape(&width)?.to_f32()).transpose()?
            }
        };
        Ok(self.spec(gain, bias))
    }

    fn spec(&self, gain: Vec<f32>, bias: Option<Vec<f32>>) -> NormSpec {
        NormSpec { kind: self.config.norm, eps: self.config.norm_eps, gain, bias }
    }

    /// The norm `name` at the end of a branch, and the factor of the branch in its gains.
    fn branch_norm(&self, name: &str) -> Result<B::Norm, Error> {
        let mut spec = self.norm_spec(name, self.config.hidden_size)?;
        if let Some(factor) = self.config.residual_multiplier {
            spec.gain.iter_mut().chain(spec.bias.iter_mut().flatten()).for_each(|value| *value *= factor);
        }
        self.backend.norm(&spec)
    }

    /// The linear layer stacked from `parts`, which have `outputs`.
    pub(crate) fn linear(
        &self,
        site: Site,
        parts: Vec<Part>,
        outputs: &[usize],
        inputs: usize,
        precision: &Precision,
    ) -> Result<B::Linear, Error> {
        let source = LinearSource::find(self.checkpoint, self.root, parts, outputs, inputs)?;
        self.backend.linear(site, &source, precision)
    }

    /// The `count` numbers of a tensor, whatever its shape.
    pub(crate) fn vector(&self, name: &str, count: usize) -> Result<Vec<f32>, Error> {
        let tensor = self.checkpoint.tensor(&self.name(name))?;
        if tensor.shape().iter().product::<usize>() != count {
            return Err(tensor.shape_error(format!("{count} numbers")).into());
        }
        Ok(tensor.to_f32()?)
    }

    /// Block `layer`.
    pub(crate) fn block(
        &self,
        layer: usize,
        names: LayerNames,
        precision: &Precision,
    ) -> Result<Block<B>, Error> {
        let site = |role| Site::block(self.stack, layer, role);
        let config = self.config;
        let hidden = config.hidden_size;
        let shape = config.shape(layer);
        let own_keys = config.source(layer) == layer;
        let queries = shape.queries();
        let norm = |name: &Option<String>| name.as_ref().map(|name| self.norm(name)).transpose();
        let branch_norms = match names.branch_norms {
            Some([first, second]) => [Some(self.branch_norm(&first)?), Some(self.branch_norm(&second)?)],
            None => [None, names.mlp_branch_norm.map(|name| self.branch_norm(&name)).transpose()?],
        };
        let (mut query_key_norms, mut rotated_norms) = (Vec::new(), None);
        match &names.query_key_norms {
            Some([queries, keys]) if config.norms_after_rotation => {
                let size = config.head_size;
                rotated_norms = Some([self.norm_spec(queries, size)?, self.norm_spec(keys, size)?]);
            }
            Some(norms) => {
                let order = names.query_key_order.as_deref();
                query_key_norms = self.query_key_norms(norms, order, (shape, own_keys))?;
            }
            None => {}
        }
        let sinks = names.sinks.map(|name| self.vector(&name, shape.heads)).transpose()?;
        let mask = if self.stack == Stack::Encoder { Mask::Full } else { Mask::Causal };
        let distance_bias = match names.distance_bias {
            Some(name) => self.distance_bias(&name, mask)?,
            None => None,
        };
        let biases = config.biases;
        let recurrent = names.recurrent.map(|names| Recurrent::load(self, layer, names, precision));
        let recurrent = recurrent.transpose()?;
        let shared = match (config.shared, names.shared) {
            (Some(shared), Some(names)) => Some(Shared::load(self, layer, shared, names, precision)?),
            _ => None,
        };
        let shared_weights = shared.as_ref().map_or(0, Shared::weights);
        let of_recurrent = recurrent.as_ref().and(config.recurrent.as_ref());
        let recurrent_weights = of_recurrent.map_or(0, |recurrent| recurrent.weights(hidden)[0]);
        let (projection, attention_weights, context) = match (config.latent, names.latent) {
            _ if names.attention_output.is_none() => (Projection::None, 0, 0),
            (Some(latent), Some(names)) => {
                let context = config.heads * latent.value;
                let [weights, _] = latent::weights(config, latent);
                let loaded = Latent::load(self, site(LinearRole::Qkv), names, latent, precision)?;
                (Projection::Latent(loaded), weights, context)
            }
            _ => {
                let qkv = names.qkv.into_iter().map(|part| part.biased(biases.qkv)).collect();
                let (outputs, context) = projected(config, layer);
                let precision = precision.of(LinearRole::Qkv);
                let linear = self.linear(site(LinearRole::Qkv), qkv, &outputs, hidden, &precision)?;
                let weights = hidden * outputs.iter().sum::<usize>();
                match config.values {
                    None => (Projection::Direct(linear), weights, context),
                    Some(values) => {
                        let copied = Copied::load(self, linear, layer, values, names.lambdas.as_ref())?;
                        (Projection::Copied(copied), weights, context)
                    }
                }
            }
        };
        let (mlp, mlp_weights) = self.mlp(layer, names.mlp, precision)?;
        let output = |part: Part| {
            let part = vec![part.biased(biases.attention_output)];
            let precision = precision.of(LinearRole::AttentionOutput);
            self.linear(site(LinearRole::AttentionOutput), part, &[hidden], context, &precision)
        };
        let scaled = |factor: fn(&BranchFactors) -> f32| -> Result<_, Error> {
            let (Some(factors), Some(name)) = (&config.branch_factors, &names.attention_norm) else {
                return Ok(None);
            };
            let mut spec = self.norm_spec(name, hidden)?;
            let factor = factor(factors);
            spec.gain.iter_mut().chain(spec.bias.iter_mut().flatten()).for_each(|value| *value *= factor);
            self.backend.norm(&spec).map(Some)
        };
        let attention_norm = match scaled(|factors| factors.attention_input)? {
            None => norm(&names.attention_norm)?,
            scaled => scaled,
        };
        let gate_width = match config.attention_gate {
            Some(gate) => {
                if gate.by_head {
                    shape.heads
                } else {
                    context
                }
            }
            None => 0,
        };
        let gate = names.gate.map(|part| {
            let role = LinearRole::Qkv;
            self.linear(site(role), vec![part.biased(biases.qkv)], &[gate_width], hidden, &precision.of(role))
        });
        let inner_norms = match &names.inner_norms {
            Some([of_context, of_mlp]) => {
                Some([self.norm_of(of_context, context)?, self.norm_of(of_mlp, config.intermediate_size)?])
            }
            None => None,
        };
        let (beside, beside_weights) = match names.beside {
            Some(names) => {
                let (beside, weights) = Beside::load(self, layer, names, precision)?;
                (Some(beside), weights)
            }
            None => (None, 0),
        };
        let (shortcut, shortcut_weights) = match names.shortcut {
            Some(names) => match self.mlp(layer, MlpNames::Experts(vec![names]), precision)? {
                (Mlp::Experts(experts), weights) => (Some(experts), weights),
                (Mlp::Dense { .. } | Mlp::None, _) => (None, 0),
            },
            None => (None, 0),
        };
        let (layer_input, input_weights) = LayerInput::load(self, layer, names.layer_input, precision)?;
        let (mixing, mixing_weights) = Mixing::load(self, layer, names.streams, precision)?;
        let wide = config.intermediate(layer);
        let sparse = config.sparse_gates.as_ref().filter(|(blocks, _)| blocks.contains(layer));
        let scalar = names.scalar.map(|name| self.vector(&name, 1)).transpose()?;
        let further_weights = shortcut_weights + beside_weights + input_weights + mixing_weights;
        let mixer_weights = recurrent_weights + shared_weights;
        Ok(Block {
            shortcut,
            adds_shortcut: names.adds_shortcut,
            sparse_gates: sparse.map(|(_, multiplier)| (wide, *multiplier)),
            beside,
            layer_input,
            mixing,
            scalar: scalar.map(|numbers| numbers[0]),
            widths: Widths {
                qkv: match config.latent {
                    Some(_) => (config.heads + 2 * config.kv_heads) * config.head_size,
                    None => queries + 2 * if own_keys { shape.keys() } else { 0 },
                },
                context: shape.queries(),
                raw: config.values.map_or(0, |values| value_heads::columns(values, shape).iter().sum()),
                output: config.values.map_or(0, |values| value_heads::context(values, shape)),
                gate: gate_width,
                up: wide * if config.gated_mlp { 2 } else { 1 },
                inner: if config.inner_norms || config.clamped_gate.is_some() { wide } else { 0 },
            },
            gate: gate.transpose()?,
            gate_run: shape.head_size,
            inner_norms,
            activation: names.activation.map(|name| self.xielu(&name)).transpose()?,
            attention_norm,
            recurrent_norm: scaled(|factors| factors.recurrent_input)?,
            mlp_norm: norm(&names.mlp_norm)?,
            branch_norms,
            projection,
            query_key_norms,
            rotated_norms,
            sinks,
            distance_bias,
            distance_vectors: None,
            attention_output: names.attention_output.map(output).transpose()?,
            recurrent,
            mlp,
            cross: None,
            weights: attention_weights
                + hidden * (context + gate_width)
                + mixer_weights
                + mlp_weights
                + further_weights,
            shared,
        })
    }

    /// Block `layer` with cross-attention.
    pub(crate) fn cross_block(
        &self,
        layer: usize,
        names: LayerNames,
        cross: CrossNames,
        precision: &Precision,
    ) -> Result<Block<B>, Error> {
        let config = self.config;
        let hidden = config.hidden_size;
        let (queries, keys) = (config.heads * config.head_size, config.kv_heads * config.head_size);
        let site = |role| Site::block(self.stack, layer, role).of_cross_attention();
        let (input, output) = (site(LinearRole::Qkv), site(LinearRole::AttentionOutput));
        let mut block = self.block(layer, names, precision)?;
        block.weights += hidden * (2 * queries + 2 * keys);
        let (of_input, of_output) =
            (precision.of(LinearRole::Qkv), precision.of(LinearRole::AttentionOutput));
        block.cross = Some(Cross {
            norm: self.norm(&cross.norm)?,
            query: self.linear(input, vec![cross.query], &[queries], hidden, &of_input)?,
            key_value: self.linear(input, cross.key_value, &[keys, keys], hidden, &of_input)?,
            output: self.linear(output, vec![cross.output], &[hidden], queries, &of_output)?,
        });
        Ok(block)
    }

    /// The bias by distance `name`, if positions enter that way.
    pub(crate) fn distance_bias(&self, name: &str, mask: Mask) -> Result<Option<DistanceBias>, Error> {
        let Positions::Relative(buckets) = self.config.positions else { return Ok(None) };
        let tensor = self.checkpoint.tensor(&(self.name(name) + ".weight"))?;
        let table = read_matrix(&tensor.expect_shape(&[buckets.count, self.config.heads])?)?.to_f32();
        Ok(Some(buckets.biases(table.view(), mask)))
    }
}

/// Of block `layer`, the outputs of the layer of queries, keys and values, one by one, and the inputs of the output projection.
pub(crate) fn projected(config: &DecoderConfig, layer: usize) -> (Vec<usize>, usize) {
    let shape = config.shape(layer);
    let (mut outputs, context) = match config.values {
        Some(values) => (value_heads::columns(values, shape).to_vec(), value_heads::context(values, shape)),
        None => (vec![shape.queries(), shape.keys(), shape.keys()], shape.queries()),
    };
    if config.source(layer) != layer {
        outputs.truncate(1);
    }
    (outputs, context)
}

/// The activations for these blocks, in forwards of at most `max_rows` tokens.
pub(crate) fn scratch<B: Backend>(
    backend: &B,
    config: &DecoderConfig,
    blocks: &[Block<B>],
    max_rows: usize,
) -> Result<Scratch<B>, Error> {
    let branch = |block: &Block<B>| {
        [Branch::Attention, Branch::Recurrent, Branch::Mlp]
            .iter()
            .any(|kind| block.adds_branch(config, *kind))
            || matches!(block.mlp, Mlp::Experts(_))
            || block.layer_input.is_some()
    };
    let mut widths: Vec<Widths> = Vec::new();
    for block in blocks {
        if !widths.contains(&block.widths) {
            widths.push(block.widths);
        }
    }
    let further = Further {
        widths,
        query: blocks.iter().any(Block::has_cross_attention),
        branch: blocks.iter().any(branch),
    };
    Scratch::new(backend, config, further, max_rows)
}

/// The surroundings of a block in a forward.
pub(crate) struct Context<'a, B: Backend> {
    pub(crate) backend: &'a B,
    pub(crate) config: &'a DecoderConfig,
    pub(crate) batch: &'a B::Batch,
    /// Keys and values of an encoder's output.
    pub(crate) cross_kv: Option<&'a B::Cache>,
}

impl<B: Backend> Block<B> {
    /// The linear layers, in the order of [`LinearRole`], expert by expert; without a router.
    pub(crate) fn linears(&self) -> impl Iterator<Item = (LinearRole, &B::Linear)> {
        let (ups, downs) = match &self.mlp {
            Mlp::Dense { up, down } => (std::slice::from_ref(up), std::slice::from_ref(down)),
            Mlp::Experts(experts) => (&experts.up[..], &experts.down[..]),
            Mlp::None => (&[][..], &[][..]),
        };
        let mlps = ups.iter().zip(downs);
        let further = self.beside.iter().map(|beside| &beside.experts).chain(&self.shortcut);
        let further = further.flat_map(|experts| experts.up.iter().zip(&experts.down));
        let cross = self.cross.iter().flat_map(|cross| {
            [
                (LinearRole::Qkv, &cross.query),
                (LinearRole::Qkv, &cross.key_value),
                (LinearRole::AttentionOutput, &cross.output),
            ]
        });
        let (direct, latent) = match &self.projection {
            Projection::Direct(linear) => (Some(linear), None),
            Projection::Copied(copied) => (Some(&copied.linear), None),
            Projection::Latent(latent) => (None, Some(latent.linears())),
            Projection::None => (None, None),
        };
        let output = self.attention_output.iter().map(|linear| (LinearRole::AttentionOutput, linear));
        direct
            .into_iter()
            .chain(latent.into_iter().flatten())
            .chain(&self.gate)
            .map(|linear| (LinearRole::Qkv, linear))
            .chain(output)
            .chain(self.shared.iter().flat_map(Shared::linears))
            .chain(self.recurrent.iter().flat_map(Recurrent::linears))
            .chain(cross)
            .chain(mlps.flat_map(pair))
            .chain(further.flat_map(pair))
            .chain(self.layer_input.iter().flat_map(|input| pair((&input.gate, &input.projection))))
            .chain(self.mixing.iter().flat_map(|Mixing { low: [down, up], .. }| pair((down, up))))
    }

    /// Number of weights in these layers, without biases.
    pub(crate) fn weights(&self) -> usize {
        self.weights
    }

    /// Writes the keys and values of `source [rows, hidden_size]`, an encoder's output, to `layer` of `cross_kv`.
    pub(crate) fn write_cross_kv(
        &self,
        backend: &B,
        batch: &B::Batch,
        source: &B::Activations,
        kv: &mut B::Activations,
        (layer, cross_kv): (usize, &mut B::Cache),
    ) -> Result<(), Error> {
        let Some(cross) = &self.cross else { return Ok(()) };
        backend.project(Input::Plain(source), &mut [(&cross.key_value, Output::Store(kv))])?;
        backend.write_cross_kv(batch, layer, kv, cross_kv)
    }

    /// Adds the weights of attention and of a recurrent state that are no linear layer's.
    pub(crate) fn complete(&self, layer: &mut LayerAttention) {
        layer.norms.clone_from(&self.rotated_norms);
        layer.sinks.clone_from(&self.sinks);
        layer.recurrent = self.recurrent.as_ref().map(|recurrent| recurrent.layer().clone());
        layer.bias.clone_from(&self.distance_bias);
        layer.disentangled.clone_from(&self.distance_vectors);
    }

    /// Whether the block attends to the output of an encoder.
    pub(crate) fn has_cross_attention(&self) -> bool {
        self.cross.is_some()
    }
}

/// Expansion and contraction with their roles.
fn pair<L>((up, down): (L, L)) -> [(LinearRole, L); 2] {
    [(LinearRole::Up, up), (LinearRole::Down, down)]
}
