//! One transformer block: attention and MLP with their normalisations, for decoders and encoders alike.

use std::ops::Range;

use crate::Error;
use crate::backend::{
    Backend, DistanceBias, Experts, Input, LayerAttention, Mask, NormSpec, Output, Routing,
};
use crate::checkpoint::Checkpoint;
use crate::config::{
    Activation, BlockKind, Branch, BranchFactors, DecoderConfig, NormKind, Positions, QueryKeyNorms,
};
use crate::families::{CrossNames, ExpertNames, LayerNames, MlpNames};
use crate::latent::{self, Latent};
use crate::precision::{LinearRole, Precision, Site, Stack};
use crate::recurrent::Recurrent;
use crate::scratch::Scratch;
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
    branch_norms: Option<[B::Norm; 2]>,
    projection: Projection<B>,
    /// Of queries and of keys: columns of the projection, and the norm of each run of its width among them.
    query_key_norms: Vec<(Range<usize>, B::Norm)>,
    /// Of each head of queries and of keys, after the rotation.
    rotated_norms: Option<[NormSpec; 2]>,
    /// `[heads]`
    sinks: Option<Vec<f32>>,
    /// None in a block without attention.
    attention_output: Option<B::Linear>,
    /// Its sigmoid is the factor of the output of attention.
    attention_gate: Option<B::Linear>,
    /// A mixer with a recurrent state, beside attention or instead of it.
    recurrent: Option<Recurrent<B>>,
    mlp: Mlp<B>,
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
pub(crate) struct Loader<'a, B> {
    pub(crate) checkpoint: &'a Checkpoint,
    pub(crate) backend: &'a B,
    pub(crate) config: &'a DecoderConfig,
    pub(crate) root: &'static str,
    pub(crate) stack: Stack,
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

    fn norm_of(&self, name: &str, width: usize) -> Result<B::Norm, Error> {
        self.backend.norm(&self.norm_spec(name, width)?)
    }

    /// The normalisation `name` with this ε.
    pub(crate) fn norm_with_eps(&self, name: &str, width: usize, eps: f32) -> Result<B::Norm, Error> {
        self.backend.norm(&NormSpec { eps, ..self.norm_spec(name, width)? })
    }

    fn norm_spec(&self, name: &str, width: usize) -> Result<NormSpec, Error> {
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

    /// The norms `names` of queries and of keys, with the columns they apply to. `order`: the stored place of each dimension of a
    /// head, where it is not its own.
    fn query_key_norms(&self, names: &[String; 2], order: Option<&[usize]>) -> Result<ColumnNorms<B>, Error> {
        let config = self.config;
        let size = config.head_size;
        let (queries, keys) = (config.heads * size, config.kv_heads * size);
        let mut norms = Vec::new();
        for (name, columns) in names.iter().zip([0..queries, queries..queries + keys]) {
            match config.query_key_norms {
                None => {}
                Some(QueryKeyNorms::PerHead) => norms.push((columns, self.norm_of(name, size)?)),
                Some(QueryKeyNorms::WithoutGains) => {
                    norms.push((columns, self.backend.norm(&self.spec(vec![1.0; size], None))?));
                }
                Some(QueryKeyNorms::Whole) => {
                    let width = columns.len();
                    norms.push((columns, self.norm_of(name, width)?));
                }
                Some(QueryKeyNorms::EachHead) => {
                    for (head, first) in columns.step_by(size).enumerate() {
                        let gain = self.head_gain(name, head, order)?;
                        norms.push((first..first + size, self.backend.norm(&self.spec(gain, None))?));
                    }
                }
            }
        }
        Ok(norms)
    }

    /// The gain of one head: a row of `{name}.weight [heads, head_size]`, or `{name}.norms.{head}.weight`.
    fn head_gain(&self, name: &str, head: usize, order: Option<&[usize]>) -> Result<Vec<f32>, Error> {
        let size = self.config.head_size;
        let of_all = self.name(&format!("{name}.weight"));
        let stored = match self.checkpoint.get(&of_all) {
            Some(tensor) => {
                let mut row = vec![0.0; size];
                let (heads, width) = tensor.matrix_shape()?;
                if head >= heads || width != size {
                    let expected = format!("a row of {size} for each head");
                    return Err(tensor.shape_error(expected).into());
                }
                tensor.read_rows_f32(head..head + 1, &mut row)?;
                row
            }
            None => {
                let name = self.name(&format!("{name}.norms.{head}.weight"));
                self.checkpoint.tensor(&name)?.expect_shape(&[size])?.to_f32()?
            }
        };
        Ok(match order {
            None => stored,
            Some(order) => order.iter().map(|place| stored[*place]).collect(),
        })
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
        let (queries, keys) = (config.heads * config.head_size, config.kv_heads * config.head_size);
        let norm = |name: &Option<String>| name.as_ref().map(|name| self.norm(name)).transpose();
        let pair = |[first, second]: [String; 2]| -> Result<_, Error> {
            Ok([self.branch_norm(&first)?, self.branch_norm(&second)?])
        };
        let branch_norms = names.branch_norms.map(pair).transpose()?;
        let (mut query_key_norms, mut rotated_norms) = (Vec::new(), None);
        match &names.query_key_norms {
            Some([queries, keys]) if config.norms_after_rotation => {
                let size = config.head_size;
                rotated_norms = Some([self.norm_spec(queries, size)?, self.norm_spec(keys, size)?]);
            }
            Some(norms) => query_key_norms = self.query_key_norms(norms, names.query_key_order.as_deref())?,
            None => {}
        }
        let sinks = names.sinks.map(|name| self.vector(&name, config.heads)).transpose()?;
        let biases = config.biases;
        let recurrent = names.recurrent.map(|names| Recurrent::load(self, layer, names, precision));
        let recurrent = recurrent.transpose()?;
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
                let outputs = [queries, keys, keys];
                let precision = precision.of(LinearRole::Qkv);
                let linear = self.linear(site(LinearRole::Qkv), qkv, &outputs, hidden, &precision)?;
                (Projection::Direct(linear), hidden * (queries + 2 * keys), queries)
            }
        };
        let gate = |part: Part| {
            let (role, part) = (LinearRole::Qkv, vec![part.biased(biases.qkv)]);
            self.linear(site(role), part, &[config.attention_gates()], hidden, &precision.of(role))
        };
        let attention_gate = names.attention_gate.map(gate).transpose()?;
        let gate_weights = attention_gate.as_ref().map_or(0, |_| hidden * config.attention_gates());
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
        Ok(Block {
            attention_norm,
            recurrent_norm: scaled(|factors| factors.recurrent_input)?,
            mlp_norm: norm(&names.mlp_norm)?,
            branch_norms,
            projection,
            query_key_norms,
            rotated_norms,
            sinks,
            attention_output: names.attention_output.map(output).transpose()?,
            attention_gate,
            recurrent,
            mlp,
            cross: None,
            weights: attention_weights + gate_weights + hidden * context + recurrent_weights + mlp_weights,
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

    /// The MLP or the experts of a block, and their number of weights.
    fn mlp(&self, layer: usize, names: MlpNames, precision: &Precision) -> Result<(Mlp<B>, usize), Error> {
        let config = self.config;
        let hidden = config.hidden_size;
        let pair = |up: Vec<Part>, down: Part, wide: usize, expert: Option<usize>| -> Result<_, Error> {
            let site = |role| Site { expert, ..Site::block(self.stack, layer, role) };
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
                let (up, down, weights) = pair(up, down, config.intermediate_size, None)?;
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
        let logits: &[usize] = if gated { &[settings.count, 1] } else { &[settings.count] };
        let correction = names.correction.as_ref().filter(|_| settings.correction);
        let correction = correction.map(|name| self.vector(name, settings.count)).transpose()?;
        let site = Site::block(self.stack, layer, LinearRole::Router);
        let mut experts = Experts {
            router: self.linear(site, router, logits, hidden, &Precision::Float)?,
            routing: Routing::new(settings, correction),
            up: Vec::new(),
            down: Vec::new(),
            activation: config.activation,
            gated: config.gated_mlp,
            clamped_gate: config.clamped_gate,
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

/// The root under which this checkpoint keeps a model's tensors, by the names of some of its modules below it, of which a
/// checkpoint may lack one; the first root if it keeps them nowhere, so that the error names what was expected.
pub(crate) fn root(
    checkpoint: &Checkpoint,
    roots: &'static [&'static str],
    modules: &[&str],
) -> &'static str {
    let held =
        |root: &&&str| modules.iter().any(|module| checkpoint.contains(&format!("{root}{module}.weight")));
    roots.iter().find(held).or(roots.first()).copied().unwrap_or_default()
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
        let cross = self.cross.iter().flat_map(|cross| {
            [
                (LinearRole::Qkv, &cross.query),
                (LinearRole::Qkv, &cross.key_value),
                (LinearRole::AttentionOutput, &cross.output),
            ]
        });
        let (direct, latent) = match &self.projection {
            Projection::Direct(linear) => (Some(linear), None),
            Projection::Latent(latent) => (None, Some(latent.linears())),
            Projection::None => (None, None),
        };
        let gate = self.attention_gate.iter().map(|linear| (LinearRole::Qkv, linear));
        let output = self.attention_output.iter().map(|linear| (LinearRole::AttentionOutput, linear));
        direct
            .into_iter()
            .chain(latent.into_iter().flatten())
            .map(|linear| (LinearRole::Qkv, linear))
            .chain(gate)
            .chain(output)
            .chain(self.recurrent.iter().flat_map(Recurrent::linears))
            .chain(cross)
            .chain(mlps.flat_map(|(up, down)| [(LinearRole::Up, up), (LinearRole::Down, down)]))
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
    }

    /// Whether the block attends to the output of an encoder.
    pub(crate) fn has_cross_attention(&self) -> bool {
        self.cross.is_some()
    }

    /// Takes the residual stream `x [rows, hidden_size]` through the block, with `layer` of both caches.
    pub(crate) fn forward(
        &self,
        at: &Context<'_, B>,
        (layer, cache): (usize, &mut B::Cache),
        x: &mut B::Activations,
        scratch: &mut Scratch<B>,
    ) -> Result<(), Error> {
        match at.config.block {
            BlockKind::PreNorm => self.pre_norm(at, (layer, cache), x, scratch),
            BlockKind::Parallel => self.parallel(at, (layer, cache), x, scratch),
            BlockKind::PostNorm => self.post_norm(at, (layer, cache), x, scratch),
            BlockKind::NormedResidual => self.normed_residual(at, (layer, cache), x, scratch),
        }
    }

    fn pre_norm(
        &self,
        at: &Context<'_, B>,
        (layer, cache): (usize, &mut B::Cache),
        x: &mut B::Activations,
        scratch: &mut Scratch<B>,
    ) -> Result<(), Error> {
        let backend = at.backend;
        // Both projections read the residual stream before either mixer adds to it.
        if let (Some(recurrent), Some(scratch)) = (&self.recurrent, &mut scratch.recurrent) {
            let norm = self.recurrent_norm.as_ref().or(self.attention_norm.as_ref());
            recurrent.project(backend, input(x, norm), scratch)?;
        }
        if let Some(output) = &self.attention_output {
            self.project(backend, input(x, self.attention_norm.as_ref()), scratch)?;
            self.attention(at, (layer, cache), scratch)?;
            let Scratch { context, branch, latent, .. } = &mut *scratch;
            let attended = match (&self.projection, latent) {
                (Projection::Latent(projection), Some(scratch)) => {
                    projection.values(backend, context, scratch)?
                }
                _ => &*context,
            };
            self.mixed(at, Branch::Attention, (attended, output), x, branch)?;
        }
        let Scratch { context, branch, query, recurrent: of_recurrent, .. } = &mut *scratch;
        if let (Some(recurrent), Some(scratch)) = (&self.recurrent, of_recurrent) {
            recurrent.mix(at, (layer, cache), scratch)?;
            self.mixed(at, Branch::Recurrent, (&scratch.mixed, recurrent.output()), x, branch)?;
        }
        if let (Some(cross), Some(cross_kv)) = (&self.cross, at.cross_kv) {
            let target = (&cross.query, Output::Store(&mut *query));
            backend.project(Input::Normed(x, &cross.norm), &mut [target])?;
            backend.cross_attention(at.batch, layer, query, cross_kv, context)?;
            backend.project(Input::Plain(context), &mut [(&cross.output, Output::Add(x))])?;
        }
        self.mlp(at, self.mlp_norm.as_ref(), x, scratch)
    }

    /// Adds the output projection of a mixer to the residual stream.
    fn mixed(
        &self,
        at: &Context<'_, B>,
        kind: Branch,
        (mixed, output): (&B::Activations, &B::Linear),
        x: &mut B::Activations,
        branch: &mut B::Activations,
    ) -> Result<(), Error> {
        if !self.adds_branch(at.config, kind) {
            return at.backend.project(Input::Plain(mixed), &mut [(output, Output::Add(x))]);
        }
        at.backend.project(Input::Plain(mixed), &mut [(output, Output::Store(&mut *branch))])?;
        add_branch(at, kind, x, branch, self.branch_norms.as_ref().map(|[norm, _]| norm))
    }

    fn parallel(
        &self,
        at: &Context<'_, B>,
        (layer, cache): (usize, &mut B::Cache),
        x: &mut B::Activations,
        scratch: &mut Scratch<B>,
    ) -> Result<(), Error> {
        let backend = at.backend;
        let Mlp::Dense { up: expansion, down } = &self.mlp else {
            return Err(Error::Unsupported("experts beside attention".to_owned()));
        };
        let Projection::Direct(qkv) = &self.projection else {
            return Err(Error::Unsupported("latent attention in parallel blocks".to_owned()));
        };
        let mut targets =
            [(qkv, Output::Store(&mut scratch.qkv)), (expansion, Output::Store(&mut scratch.up))];
        let attention_input = input(x, self.attention_norm.as_ref());
        match &self.mlp_norm {
            None => backend.project(attention_input, &mut targets)?,
            Some(norm) => {
                let (attention, mlp) = targets.split_at_mut(1);
                backend.project(attention_input, attention)?;
                backend.project(Input::Normed(x, norm), mlp)?;
            }
        }
        self.attention(at, (layer, cache), scratch)?;
        self.attended(backend, &scratch.context, x)?;
        backend.project(expanded(at.config, &scratch.up), &mut [(down, Output::Add(x))])
    }

    fn post_norm(
        &self,
        at: &Context<'_, B>,
        (layer, cache): (usize, &mut B::Cache),
        x: &mut B::Activations,
        scratch: &mut Scratch<B>,
    ) -> Result<(), Error> {
        let backend = at.backend;
        let normalize = |x: &mut B::Activations, norm: &Option<B::Norm>| match norm {
            Some(norm) => backend.normalize(x, norm),
            None => Ok(()),
        };
        self.project(backend, Input::Plain(x), scratch)?;
        self.attention(at, (layer, cache), scratch)?;
        self.attended(backend, &scratch.context, x)?;
        normalize(x, &self.attention_norm)?;
        self.mlp(at, None, x, scratch)?;
        normalize(x, &self.mlp_norm)
    }

    fn normed_residual(
        &self,
        at: &Context<'_, B>,
        (layer, cache): (usize, &mut B::Cache),
        x: &mut B::Activations,
        scratch: &mut Scratch<B>,
    ) -> Result<(), Error> {
        let backend = at.backend;
        if let Some(norm) = &self.attention_norm {
            backend.normalize(x, norm)?;
        }
        if let Some(output) = &self.attention_output {
            self.project(backend, Input::Plain(x), scratch)?;
            self.attention(at, (layer, cache), scratch)?;
            let Scratch { context, branch, .. } = &mut *scratch;
            self.mixed(at, Branch::Attention, (context, output), x, branch)?;
        }
        let Scratch { branch, recurrent: of_recurrent, .. } = &mut *scratch;
        if let (Some(recurrent), Some(scratch)) = (&self.recurrent, of_recurrent) {
            recurrent.project(backend, Input::Plain(x), scratch)?;
            recurrent.mix(at, (layer, cache), scratch)?;
            self.mixed(at, Branch::Recurrent, (&scratch.mixed, recurrent.output()), x, branch)?;
        }
        if let Some(norm) = &self.mlp_norm {
            backend.normalize(x, norm)?;
        }
        self.mlp(at, None, x, scratch)
    }

    /// `x += output(context)`
    fn attended(&self, backend: &B, context: &B::Activations, x: &mut B::Activations) -> Result<(), Error> {
        let Some(output) = &self.attention_output else {
            return Err(Error::Unsupported("blocks without attention that are not pre-norm".to_owned()));
        };
        backend.project(Input::Plain(context), &mut [(output, Output::Add(x))])
    }

    /// `scratch.qkv`, from the input of attention.
    fn project(&self, backend: &B, input: Input<'_, B>, scratch: &mut Scratch<B>) -> Result<(), Error> {
        let Scratch { qkv, latent, gates, .. } = scratch;
        match (&self.projection, latent) {
            (Projection::Direct(linear), _) => match &self.attention_gate {
                None => backend.project(input, &mut [(linear, Output::Store(qkv))]),
                Some(gate) => {
                    backend.project(input, &mut [(linear, Output::Store(qkv)), (gate, Output::Store(gates))])
                }
            },
            (Projection::Latent(projection), Some(scratch)) => {
                projection.project(backend, input, scratch, qkv)
            }
            (Projection::Latent(_) | Projection::None, _) => {
                Err(Error::Unsupported("attention without sizes".to_owned()))
            }
        }
    }

    /// `scratch.context = attention(scratch.qkv)`, without the output projection.
    fn attention(
        &self,
        at: &Context<'_, B>,
        (layer, cache): (usize, &mut B::Cache),
        scratch: &mut Scratch<B>,
    ) -> Result<(), Error> {
        let Scratch { qkv, context, gates, .. } = scratch;
        for (columns, norm) in &self.query_key_norms {
            at.backend.normalize_columns(qkv, columns.clone(), norm)?;
        }
        if let Some(limit) = at.config.qkv_limit {
            at.backend.clamp(qkv, limit)?;
        }
        at.backend.attention(at.batch, layer, qkv, cache, context)?;
        match self.attention_gate {
            None => Ok(()),
            Some(_) => at.backend.gate(context, gates, 0..at.config.attention_gates(), Activation::Sigmoid),
        }
    }

    /// `x += mlp(norm(x))`, or of experts.
    fn mlp(
        &self,
        at: &Context<'_, B>,
        norm: Option<&B::Norm>,
        x: &mut B::Activations,
        scratch: &mut Scratch<B>,
    ) -> Result<(), Error> {
        let Scratch { up, branch, .. } = scratch;
        let backend = at.backend;
        let branch_norm = self.branch_norms.as_ref().map(|[_, norm]| norm);
        match &self.mlp {
            Mlp::None => return Ok(()),
            Mlp::Experts(experts) => backend.experts(input(x, norm), experts, branch)?,
            Mlp::Dense { up: expansion, down } => {
                backend.project(input(x, norm), &mut [(expansion, Output::Store(&mut *up))])?;
                if let Some(factors) = at.config.branch_factors {
                    backend.scale_columns(up, 0..at.config.intermediate_size, factors.gate)?;
                }
                let adds = self.adds_branch(at.config, Branch::Mlp);
                let out = if adds { Output::Store(&mut *branch) } else { Output::Add(&mut *x) };
                backend.project(expanded(at.config, up), &mut [(down, out)])?;
                if !adds {
                    return Ok(());
                }
            }
        }
        add_branch(at, Branch::Mlp, x, branch, branch_norm)
    }

    /// Whether something lies between the last projection of a branch and the residual addition.
    fn adds_branch(&self, config: &DecoderConfig, branch: Branch) -> bool {
        self.branch_norms.is_some()
            || config.branch_factor(branch).is_some()
            || config.residual_factor(branch).is_some()
    }

    /// Whether a branch of the block is stored before it is added to the residual stream.
    pub(crate) fn stores_branches(&self, config: &DecoderConfig) -> bool {
        matches!(self.mlp, Mlp::Experts(_))
            || [Branch::Attention, Branch::Recurrent, Branch::Mlp]
                .iter()
                .any(|branch| self.adds_branch(config, *branch))
    }
}

/// `x += norm(branch)`, or `x += branch`, with the factor of branches, which the gains of `norm` hold, and that of `x`.
fn add_branch<B: Backend>(
    at: &Context<'_, B>,
    kind: Branch,
    x: &mut B::Activations,
    branch: &mut B::Activations,
    norm: Option<&B::Norm>,
) -> Result<(), Error> {
    let factor = at.config.branch_factor(kind).filter(|_| norm.is_none());
    if factor.is_some() {
        at.backend.scale(branch, factor, None)?;
    }
    if let Some(factor) = at.config.residual_factor(kind) {
        at.backend.scale(x, Some(factor), None)?;
    }
    at.backend.add(x, branch, norm)
}

fn input<'a, B: Backend>(x: &'a B::Activations, norm: Option<&'a B::Norm>) -> Input<'a, B> {
    match norm {
        Some(norm) => Input::Normed(x, norm),
        None => Input::Plain(x),
    }
}

fn expanded<'a, B: Backend>(config: &DecoderConfig, up: &'a B::Activations) -> Input<'a, B> {
    if config.gated_mlp {
        Input::Gated(up, config.activation)
    } else {
        Input::Activated(up, config.activation)
    }
}
