//! The decoder: one implementation for every family, over any backend.

use std::sync::Arc;

use crate::Error;
use ndarray::{Array2, ArrayView2};

use crate::attention_spec::attention_spec;
use crate::backend::{
    AttentionSpec, Backend, CacheCapacity, DistanceBias, Feature, Input, KvType, LinearStatistics, Mask,
    Observer, Output,
};
use crate::block::{self, Block, Loader, StreamEnds};
use crate::calibration;
use crate::checkpoint::Checkpoint;
use crate::checks;
use crate::config::{DecoderConfig, Positions, RawConfig, RotaryPrecision, Seq2SeqConfig, Sinusoids};
use crate::families::{self, CrossNamesOf, Seq2SeqNames, TensorNames};
use crate::latent;
use crate::layer_inputs::InputTable;
use crate::placement::{self, Devices, Sizes};
use crate::plan;
use crate::position_table;
pub use crate::precision::LinearRole;
use crate::precision::{Precision, Site, Stack};
use crate::recurrent;
use crate::scratch::Carried;
use crate::seq2seq::SourceEncoder;
pub use crate::session::{Session, SessionOptions};
use crate::shared::{self, SharedCores};
use crate::weights::{LinearSource, Part, RowTable};

/// A decoder-only transformer whose weights are on a backend, or shared out among several.
#[derive(Debug)]
pub struct Decoder<B: Backend> {
    config: DecoderConfig,
    embedding: B::Embedding,
    positions: Option<(B::Embedding, usize)>,
    embedding_norm: Option<B::Norm>,
    project_in: Option<B::Linear>,
    inputs: Option<InputTable<B>>,
    streams: Option<StreamEnds<B>>,
    /// In order; the first also has the embedding.
    stages: Vec<Stage<B>>,
    /// Index of the stage on whose backend the head is.
    head_stage: usize,
    final_norm: Option<B::Norm>,
    project_out: Option<B::Linear>,
    /// Before the head: a linear layer and the norm after its activation.
    head_transform: Option<(B::Linear, B::Norm)>,
    head: B::Linear,
    /// Whether the head's weights are the embedding's and take no memory of their own.
    head_is_shared: bool,
    bias: Option<DistanceBias>,
    kv_cache_type: KvType,
    /// Weights of the blocks' linear layers, without biases.
    linear_weights: usize,
}

/// Consecutive blocks on one backend.
#[derive(Debug)]
pub(crate) struct Stage<B: Backend> {
    pub(crate) backend: Arc<B>,
    /// Index of its first block in the model.
    pub(crate) first: usize,
    pub(crate) blocks: Vec<Block<B>>,
}

/// Where a model's bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Footprint {
    /// Linear layers of the blocks as they are held now.
    pub linear: usize,
    /// Their number of weights (without biases).
    pub linear_weights: usize,
    /// Embeddings and head (once, if tied), in their stored type; a head in int8 beside the table it is tied to.
    pub embedding: usize,
    /// Number of weights in them.
    pub embedding_weights: usize,
}

impl Footprint {
    /// Bytes of all weights as they are held now.
    pub fn total(&self) -> usize {
        self.linear + self.embedding
    }

    /// Bytes of all weights with `bytes` for each.
    pub fn at(&self, bytes: usize) -> usize {
        (self.linear_weights + self.embedding_weights) * bytes
    }
}

impl<B: Backend> Decoder<B> {
    /// Loads a decoder: `progress(done, blocks)` is called after each block.
    ///
    /// The embedding, the head and the projections around them stay in floating point, as `bitsandbytes` leaves them by
    /// default, unless `precision` has an int8 head; all linear layers of the blocks become what `precision` says.
    /// `rotary` changes nothing in a model without rotary positions.
    ///
    /// # Errors
    /// When `config.json` is of no supported family or contradicts the tensors.
    pub fn load(
        checkpoint: &Checkpoint,
        devices: impl Into<Devices<B>>,
        precision: &Precision,
        rotary: RotaryPrecision,
        mut progress: impl FnMut(usize, usize),
    ) -> Result<Self, Error> {
        let devices = devices.into();
        let raw = RawConfig::read(checkpoint.source())?;
        let family = families::of(&raw)?;
        let mut config = (family.config)(&raw)?;
        checks::layers(&raw, config.layers, checkpoint)?;
        config.set_rotary_precision(rotary);
        if !devices.first().capabilities().features.contains(&Feature::FrequenciesByLength) {
            config.limit_to_fixed_frequencies();
        }
        let names = (family.names)(&config);
        let layers = config.layers;
        let mut loaded = 0;
        let decoder = Self::assemble(checkpoint, devices, config, names, None, precision, || {
            loaded += 1;
            progress(loaded, layers);
        })?;
        calibration::decoder(&decoder, None)?;
        Ok(decoder)
    }

    /// Loads a decoder with cross-attention and the encoder whose output it attends to.
    pub(crate) fn load_with_source(
        checkpoint: &Checkpoint,
        backend: Arc<B>,
        precision: &Precision,
        mut progress: impl FnMut(usize, usize),
    ) -> Result<(Self, SourceEncoder<B>), Error> {
        let raw = RawConfig::read(checkpoint.source())?;
        let family = families::seq2seq(&raw)?;
        let config = (family.config)(&raw)?;
        let Seq2SeqConfig { encoder, decoder, .. } = config.clone();
        checks::layers(&raw, encoder.layers.max(decoder.layers), checkpoint)?;
        let mut names = (family.names)(&decoder);
        names.decoder.token_embedding = shared_embedding(checkpoint, &names)?;
        let all = encoder.layers + decoder.layers;
        let mut loaded = 0;
        let mut loaded = || {
            loaded += 1;
            progress(loaded, all);
        };
        let capabilities = backend.capabilities();
        config.accept(&capabilities, precision)?;
        let root = root_of(checkpoint, &names.decoder);
        let shared = SharedCores::default();
        let stack = Stack::Encoder;
        let loader = Loader { checkpoint, backend: &*backend, config: &encoder, root, stack, shared };
        let source = SourceEncoder::load(&loader, &config, names.encoder, precision, &mut loaded)?;
        let cross = Some((names.decoder_bias, names.cross));
        let decoder = Self::assemble(
            checkpoint,
            backend.into(),
            decoder,
            names.decoder,
            cross,
            precision,
            &mut loaded,
        )?;
        // Random ids are no speech.
        if config.mel_bins.is_none() {
            calibration::decoder(&decoder, Some(&source))?;
        }
        Ok((decoder, source))
    }

    /// Whether the tensors of embedding, head and linear layers are there in the shapes that `raw` says.
    pub(crate) fn check(checkpoint: &Checkpoint, raw: &RawConfig) -> Result<(), Error> {
        let family = families::of(raw)?;
        let config = (family.config)(raw)?;
        let names = (family.names)(&config);
        let checkpoint = &checkpoint.with_other_names(names.other_names);
        let (root, embedding, tied) = tables(checkpoint, &config, &names)?;
        let head = if tied { embedding.clone() } else { head_name(checkpoint, &names) };
        for module in [embedding, head] {
            let table = checkpoint.tensor(&format!("{module}.weight"))?;
            table.expect_shape(&[config.vocab_size, config.embedding_size])?;
        }
        let hidden = config.hidden_size;
        for layer in 0..config.layers {
            let names = (names.layer)(layer);
            let find = |parts, outputs: &[usize], inputs| {
                LinearSource::find(checkpoint, root, parts, outputs, inputs).map(|_| ())
            };
            if let (Some(mixer), Some(names)) = (&config.recurrent, names.recurrent) {
                for (parts, outputs, inputs) in recurrent::linear_layers(mixer, names, hidden) {
                    find(parts, &outputs, inputs)?;
                }
            }
            let of_shared = names.shared.map(|names| shared::linear_layers(names, &config));
            for layer in of_shared.into_iter().flatten().flatten() {
                find(layer.parts, &layer.outputs, layer.inputs)?;
            }
            let context = match (config.latent, names.latent) {
                _ if names.attention_output.is_none() => 0,
                (Some(latent), Some(names)) => {
                    for (part, outputs, inputs) in latent::layers(names, &config, latent) {
                        find(vec![part], &[outputs], inputs)?;
                    }
                    config.heads * latent.value
                }
                _ => {
                    let (outputs, context) = block::projected(&config, layer);
                    find(names.qkv, &outputs, hidden)?;
                    context
                }
            };
            if let Some(output) = names.attention_output {
                find(vec![output], &[hidden], context)?;
            }
            if let families::MlpNames::Dense { up, down } = names.mlp {
                let wide = config.intermediate(layer);
                let outputs = vec![wide; if config.gated_mlp { 2 } else { 1 }];
                find(up, &outputs, hidden)?;
                find(vec![down], &[hidden], wide)?;
            }
        }
        Ok(())
    }

    /// `cross`: the name of the distance bias, and those of each block's cross-attention.
    fn assemble(
        checkpoint: &Checkpoint,
        devices: Devices<B>,
        mut config: DecoderConfig,
        names: TensorNames,
        cross: Option<(Option<&str>, CrossNamesOf)>,
        precision: &Precision,
        mut loaded: impl FnMut(),
    ) -> Result<Self, Error> {
        let further = cross.as_ref().map(|_| Feature::CrossAttention);
        for backend in devices.backends() {
            backend.capabilities().accept(&config, precision, further.as_slice())?;
            backend.prepare(&config)?;
        }
        if let Some(what) = config.on_one_device().filter(|_| devices.backends().len() > 1) {
            return Err(Error::Unsupported(format!(
                "{what}, as this {} model has, on several devices; name one device",
                config.family
            )));
        }
        let checkpoint = &checkpoint.with_other_names(names.other_names);
        let (root, token_embedding, tied) = tables(checkpoint, &config, &names)?;
        config.tied_embeddings = tied;
        let float = Precision::Float;
        let head_precision = precision.of_head();
        let own_head = head_name(checkpoint, &names);
        let has_bias = config.biases.head && checkpoint.contains(&format!("{own_head}.bias"));
        let logit_bias = logit_bias(checkpoint, names.logit_bias)?;
        let biased = has_bias || logit_bias.is_some();
        let head_is_shared = config.tied_embeddings && head_precision == float && !biased;
        let placed = devices.place(config.layers, sizes(&config, precision, head_is_shared))?;
        let backends = devices.backends();
        let head_stage = if head_is_shared { 0 } else { backends.len() - 1 };
        let on = |backend| {
            let shared = SharedCores::default();
            Loader { stack: Stack::Decoder, checkpoint, backend, config: &config, root, shared }
        };
        let (backend, head_backend) = (&*backends[0], &*backends[head_stage]);
        let (loader, at_head) = (on(backend), on(head_backend));

        let name = format!("{token_embedding}.weight");
        let tokens = RowTable::stored(checkpoint, &name, [config.vocab_size, config.embedding_size])?;
        let kv_cache_type = match tokens.matrix()?.float_type().into() {
            // int8 weights cost more than what bf16 is coarser by.
            KvType::F16 if *precision != float && backend.capabilities().prefers_bf16_cache => KvType::Bf16,
            stored => stored,
        };
        let embedding = backend.embedding(&tokens)?;
        let positions = position_table::load(&loader, names.position_embedding)?;
        let head_site = Site::outside(LinearRole::Head);
        let head = if head_is_shared {
            backend.tied(head_site, &embedding)?
        } else {
            let name = if config.tied_embeddings { &token_embedding } else { &own_head };
            let part = Part::new(name).bias_of(&own_head).biased(has_bias);
            let parts = vec![match logit_bias {
                Some(name) => part.bias_in(name.to_owned()),
                None => part,
            }];
            let source =
                LinearSource::find(checkpoint, "", parts, &[config.vocab_size], config.embedding_size)?;
            head_backend.linear(head_site, &source, &head_precision)?
        };
        tokens.release();
        let project = |loader: &Loader<'_, B>, name: Option<&str>, outputs: usize, inputs: usize| {
            let site = Site::outside(LinearRole::Embedding);
            name.map(|name| loader.linear(site, vec![Part::new(name)], &[outputs], inputs, &float))
                .transpose()
        };
        let project_in = project(&loader, names.project_in, config.hidden_size, config.embedding_size)?;
        let project_out = project(&at_head, names.project_out, config.embedding_size, config.hidden_size)?;
        let inputs = match (names.layer_inputs, config.layer_inputs) {
            (Some(names), Some(inputs)) => Some(InputTable::load(&loader, names, inputs)?),
            _ => None,
        };
        let ends = |end: &str| -> Result<Vec<B::Linear>, Error> {
            let count = config.streams.map_or(0, |streams| streams.count);
            let name = |index: usize| format!("{end}.{index}");
            (1..count)
                .map(|stream| {
                    let project =
                        |name: &str| project(&loader, Some(name), config.hidden_size, config.hidden_size);
                    Ok(project(&name(stream - 1))?.into_iter().next())
                })
                .filter_map(Result::transpose)
                .collect()
        };
        let streams = match names.streams {
            Some([split, join]) => Some(StreamEnds { split: ends(split)?, join: ends(join)? }),
            None => None,
        };
        let embedding_norm = names.embedding_norm.map(|name| loader.norm(name)).transpose()?;
        let head_transform = match names.head_transform {
            Some([dense, norm]) => Some(head_transform(&at_head, dense, norm)?),
            None => None,
        };
        let final_norm = names.final_norm.map(|name| at_head.norm(name)).transpose()?;

        let mut stages = Vec::new();
        let mut linear_weights = 0;
        for (backend, layers) in backends.iter().zip(placed) {
            let loader = on(&**backend);
            let (first, mut blocks) = (layers.start, Vec::new());
            for layer in layers {
                let names = (names.layer)(layer);
                let block = match &cross {
                    None => loader.block(layer, names, precision)?,
                    Some((_, cross)) => loader.cross_block(layer, names, cross(layer), precision)?,
                };
                linear_weights += block.weights();
                blocks.push(block);
                loaded();
            }
            stages.push(Stage { backend: backend.clone(), first, blocks });
        }
        let bias = match cross {
            None => None,
            Some((Some(name), _)) => loader.distance_bias(name, Mask::Causal)?,
            Some((None, _)) => None,
        };
        Ok(Self {
            bias,
            kv_cache_type,
            linear_weights,
            embedding,
            positions,
            embedding_norm,
            project_in,
            inputs,
            streams,
            stages,
            head_stage,
            final_norm,
            project_out,
            head_transform,
            head,
            head_is_shared,
            config,
        })
    }

    /// The normalised configuration.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// The backend the weights are on; of several, the first.
    pub fn backend(&self) -> &B {
        &self.stages[0].backend
    }

    /// The backend of the head.
    pub(crate) fn head_backend(&self) -> &B {
        &self.stages[self.head_stage].backend
    }

    /// All devices, in words.
    pub fn describe(&self) -> String {
        placement::describe(self.stages.iter().map(|stage| &*stage.backend))
    }

    /// Blocks on each backend.
    pub fn blocks_by_device(&self) -> Vec<usize> {
        self.stages.iter().map(|stage| stage.blocks.len()).collect()
    }

    /// As [`Backend::observe`], on all of them.
    pub fn observe(&self, observer: Option<&Arc<dyn Observer>>) {
        self.stages.iter().for_each(|stage| stage.backend.observe(observer.cloned()));
    }

    /// As [`Backend::multiply`], with a linear layer of block `block`.
    ///
    /// # Errors
    /// As there.
    ///
    /// # Panics
    /// If there is no such block.
    pub(crate) fn multiply(
        &self,
        block: usize,
        linear: &B::Linear,
        x: ArrayView2<'_, f32>,
    ) -> Result<Array2<f32>, Error> {
        let stage = self.stages.iter().rfind(|stage| stage.first <= block);
        stage.expect("the first stage begins with block 0").backend.multiply(linear, x)
    }

    /// The KV cache type of generated texts unless another is given: the type of the checkpoint's embedding, which no
    /// quantisation touches (transformers uses the same where it computes in the checkpoint's type), or, with int8 weights, bf16 instead of
    /// f16 where the backend [prefers](crate::backend::Capabilities::prefers_bf16_cache) it.
    pub fn kv_cache_type(&self) -> KvType {
        self.kv_cache_type
    }

    /// Prepares to run forwards of this size.
    ///
    /// # Errors
    /// When `max_positions` is more than the model has, or memory is short.
    pub fn session(&self, options: &SessionOptions) -> Result<Session<'_, B>, Error> {
        if self.blocks().any(Block::has_cross_attention) {
            return Err(Error::NeedsSource { family: self.config.family });
        }
        Session::new(self, None, options)
    }

    /// A KV cache for the self-attention of a stage's blocks.
    pub(crate) fn cache(
        &self,
        stage: &Stage<B>,
        kv_cache: KvType,
        capacity: CacheCapacity,
    ) -> Result<B::Cache, Error> {
        let mut spec = attention_spec(&self.config, self.config.layers, Mask::Causal);
        spec.layers = spec.layers.drain(stage.first..stage.first + stage.blocks.len()).collect();
        for (block, layer) in stage.blocks.iter().zip(&mut spec.layers) {
            block.complete(layer);
            layer.source = layer.source.checked_sub(stage.first).ok_or_else(|| {
                Error::Unsupported("keys and values shared between blocks on several devices".to_owned())
            })?;
        }
        stage.backend.cache(&AttentionSpec { bias: self.bias.clone(), kv_cache, ..spec }, capacity)
    }

    /// A KV cache for the blocks' cross-attention to one source text of `positions` tokens.
    pub(crate) fn cross_cache(&self, kv_cache: KvType, positions: usize) -> Result<B::Cache, Error> {
        let spec = attention_spec(&self.config, self.config.layers, Mask::Full);
        let capacity = CacheCapacity { sequences: 1, max_positions: positions, total_positions: None };
        let mut cache = self.backend().cache(&AttentionSpec { kv_cache, ..spec }, capacity)?;
        self.backend().reserve(&mut cache, &[(0, 0..positions)])?;
        Ok(cache)
    }

    /// Writes the keys and values of an encoder's output, `source [rows, hidden_size]`, for each block.
    pub(crate) fn write_cross_kv(
        &self,
        batch: &B::Batch,
        source: &B::Activations,
        kv: &mut B::Activations,
        cross_kv: &mut B::Cache,
    ) -> Result<(), Error> {
        for (layer, block) in self.blocks().enumerate() {
            block.write_cross_kv(self.backend(), batch, source, kv, (layer, cross_kv))?;
        }
        Ok(())
    }

    /// Whether embedding or head are narrower than the residual stream.
    pub(crate) fn is_projected(&self) -> bool {
        self.project_in.is_some() || self.project_out.is_some() || self.head_transform.is_some()
    }

    /// The blocks.
    pub(crate) fn blocks(&self) -> impl Iterator<Item = &Block<B>> {
        self.stages.iter().flat_map(|stage| &stage.blocks)
    }

    /// The same by backend.
    pub(crate) fn stages(&self) -> &[Stage<B>] {
        &self.stages
    }

    /// Index of the stage on whose backend the head is.
    pub(crate) fn head_stage(&self) -> usize {
        self.head_stage
    }

    /// The token embedding.
    pub(crate) fn embedding(&self) -> &B::Embedding {
        &self.embedding
    }

    /// Checks that all ids are in the vocabulary.
    pub(crate) fn check_ids(&self, ids: &[u32]) -> Result<(), Error> {
        let vocabulary = self.config.vocab_size;
        if let Some(padding) = self.config.unplaced_token.filter(|padding| ids.contains(padding)) {
            return Err(Error::Input(format!(
                "token id {padding} is padding, which has no position in a {} model; leave it out",
                self.config.family
            )));
        }
        match ids.iter().find(|id| crate::convert::index(**id) >= vocabulary) {
            Some(id) => Err(Error::Input(format!("token id {id} is not in the vocabulary of {vocabulary}"))),
            None => Ok(()),
        }
    }

    /// Where the weights' bytes are.
    pub fn footprint(&self) -> Footprint {
        let (backend, config) = (self.backend(), &self.config);
        let mut footprint = Footprint { linear_weights: self.linear_weights, ..Footprint::default() };
        for (_, _, linear) in self.linears() {
            footprint.linear += backend.linear_bytes(linear);
        }
        footprint.embedding = backend.embedding_bytes(&self.embedding)
            + self.positions.as_ref().map_or(0, |(table, _)| backend.embedding_bytes(table))
            + self.inputs.as_ref().map_or(0, |inputs| inputs.bytes(backend))
            + if self.head_is_shared { 0 } else { backend.linear_bytes(&self.head) };
        let tables = if config.tied_embeddings { 1 } else { 2 };
        let positions = match config.positions {
            Positions::Learned { offset } | Positions::Sinusoidal(Sinusoids { offset, .. }) => {
                (config.max_positions + offset) * config.hidden_size
            }
            Positions::Alibi
            | Positions::Rotary(_)
            | Positions::Relative(_)
            | Positions::Disentangled(_)
            | Positions::None => 0,
        };
        let inputs = config.layer_inputs.map_or(0, |inputs| inputs.vocabulary * inputs.width * config.layers);
        footprint.embedding_weights = tables * config.vocab_size * config.embedding_size + positions + inputs;
        footprint
    }

    /// The counts of every linear layer of the blocks, in the order of the model: two a block, and two for each of its MLPs
    /// (one, or one an expert).
    pub fn statistics(&self) -> Vec<(LinearRole, LinearStatistics)> {
        self.linears().map(|(_, role, linear)| (role, self.backend().statistics(linear))).collect()
    }

    /// Sets the counts of the linear layers to zero.
    pub fn reset_statistics(&self) {
        self.linears().for_each(|(_, _, linear)| self.backend().reset_statistics(linear));
    }

    /// The linear layers of the blocks with the index of their block and their role, in the order of the model.
    pub fn linears(&self) -> impl Iterator<Item = (usize, LinearRole, &B::Linear)> {
        let blocks = self.blocks().enumerate();
        blocks.flat_map(|(number, block)| block.linears().map(move |(role, linear)| (number, role, linear)))
    }

    /// The linear layers of a stage: those of its blocks, the projections around the embedding, and the head.
    pub(crate) fn linears_of_stage(&self, stage: usize) -> impl Iterator<Item = &B::Linear> {
        let of_blocks = self.stages[stage].blocks.iter().flat_map(Block::linears).map(|(_, linear)| linear);
        let first = self.project_in.iter().filter(move |_| stage == 0);
        let last = self.project_out.iter().chain([&self.head]).filter(move |_| stage == self.head_stage);
        of_blocks.chain(first).chain(last)
    }
}

/// Bytes of the weights, as placement counts them.
fn sizes(config: &DecoderConfig, precision: &Precision, head_is_shared: bool) -> Sizes {
    let shape = plan::Shape::of_decoder("", config, config.biases.qkv);
    let precision = match precision {
        Precision::Float => plan::Precision::F16,
        Precision::Int8(_) => plan::Precision::Int8,
    };
    let estimate = shape.estimate(precision, plan::Load::NONE);
    let blocks = estimate.linear.saturating_add(estimate.scales).saturating_add(estimate.other);
    let head = if head_is_shared { 0 } else { estimate.head };
    Sizes { block: blocks / shape.blocks.max(1), first: estimate.embeddings, last: head }
}

/// What the names of the decoder's tensors begin with in this checkpoint; the embedding's module; whether it is the head, too.
fn tables(
    checkpoint: &Checkpoint,
    config: &DecoderConfig,
    names: &TensorNames,
) -> Result<(&'static str, String, bool), Error> {
    let root = root_of(checkpoint, names);
    let embedding = format!("{root}{}", names.token_embedding);
    let head = head_name(checkpoint, names);
    let (embedding, tied) = embedding_and_head(checkpoint, &embedding, &head, config.tied_embeddings)?;
    Ok((root, embedding, tied))
}

/// The linear layer and the norm before the head, which no root is before.
fn head_transform<B: Backend>(
    loader: &Loader<'_, B>,
    dense: &str,
    norm: &str,
) -> Result<(B::Linear, B::Norm), Error> {
    let Loader { checkpoint, backend, config, stack, .. } = *loader;
    let loader = Loader { checkpoint, backend, config, root: "", stack, shared: SharedCores::default() };
    let hidden = loader.config.hidden_size;
    let part = vec![Part::new(dense).biased(loader.config.biases.head_transform)];
    let site = Site::outside(LinearRole::Head);
    Ok((loader.linear(site, part, &[hidden], hidden, &Precision::Float)?, loader.norm(norm)?))
}

/// What the names of the decoder's tensors begin with in this checkpoint.
fn root_of(checkpoint: &Checkpoint, names: &TensorNames) -> &'static str {
    let known = families::known_modules(names);
    let known: Vec<&str> = known.iter().map(String::as_str).collect();
    families::root(checkpoint, names.roots, &known)
}

/// The tensor `name` that is added to the logits, unless it is missing or all zeros: then a tied head needs no weights of its own.
fn logit_bias<'a>(checkpoint: &Checkpoint, name: Option<&'a str>) -> Result<Option<&'a str>, Error> {
    let Some((name, tensor)) = name.and_then(|name| Some((name, checkpoint.get(name)?))) else {
        return Ok(None);
    };
    Ok(tensor.to_f32()?.iter().any(|value| *value != 0.0).then_some(name))
}

/// The head's module: that of `names`, or in an older checkpoint of several parts, below that of its language model.
fn head_name(checkpoint: &Checkpoint, names: &TensorNames) -> String {
    let below = format!("language_model.{}", names.head);
    let holds = |module: &str| checkpoint.contains(&format!("{module}.weight"));
    if !holds(names.head) && holds(&below) { below } else { names.head.to_owned() }
}

/// The module that holds the token embedding, and whether it is the head's weight as well.
///
/// A checkpoint of tied weights holds both, or either one for both. Both may differ even so: then each is used, as transformers
/// does it.
fn embedding_and_head(
    checkpoint: &Checkpoint,
    embedding: &str,
    head: &str,
    tied: bool,
) -> Result<(String, bool), Error> {
    let weight = |module: &str| checkpoint.get(&format!("{module}.weight"));
    Ok(match (weight(embedding), weight(head)) {
        (None, Some(_)) if tied => (head.to_owned(), true),
        (Some(table), Some(own)) if tied => {
            let same = table.dtype() == own.dtype() && table.shape() == own.shape();
            let same = same && table.bytes() == own.bytes();
            if same {
                // Read for the comparison alone.
                checkpoint.release(own.name());
            }
            (embedding.to_owned(), same)
        }
        _ => (embedding.to_owned(), tied),
    })
}

/// The module of an encoder-decoder that holds the token embedding of both: `shared`, or one stack's own.
///
/// # Errors
/// When the checkpoint has several that differ: the stacks then have different embeddings, which is not implemented.
fn shared_embedding(checkpoint: &Checkpoint, names: &Seq2SeqNames) -> Result<&'static str, Error> {
    let root = root_of(checkpoint, &names.decoder);
    let modules =
        || std::iter::once(names.decoder.token_embedding).chain(names.stack_embeddings.iter().copied());
    let tensor = |module: &str| checkpoint.get(&format!("{root}{module}.weight"));
    let mut held = modules().filter_map(|module| Some((module, tensor(module)?)));
    let Some((first, table)) = held.next() else { return Ok(names.decoder.token_embedding) };
    match held.find(|(_, other)| other.shape() != table.shape() || other.bytes() != table.bytes()) {
        None => Ok(first),
        Some((other, _)) => Err(Error::Unsupported(format!(
            "{first}.weight and {other}.weight differ; an encoder and a decoder with different embeddings are not implemented"
        ))),
    }
}

impl<B: Backend> Decoder<B> {
    /// `x [rows, hidden_size]` = the embedded tokens of the batch; `narrow` is used where the embedding is narrower.
    pub(crate) fn embed(
        &self,
        batch: &B::Batch,
        narrow: &mut B::Activations,
        x: &mut B::Activations,
    ) -> Result<(), Error> {
        let backend = self.backend();
        let positions = self.positions.as_ref().map(|(table, offset)| (table, *offset));
        match &self.project_in {
            None if self.config.scales_tokens_alone => {
                backend.embed(batch, Some(&self.embedding), None, Output::Store(&mut *x))?;
                backend.scale(x, self.config.embedding_scale, None)?;
                backend.embed(batch, None, positions, Output::Add(&mut *x))?;
            }
            None => backend.embed(batch, Some(&self.embedding), positions, Output::Store(x))?,
            Some(project) => {
                backend.embed(batch, Some(&self.embedding), None, Output::Store(narrow))?;
                backend.project(Input::Plain(narrow), &mut [(project, Output::Store(&mut *x))])?;
                backend.embed(batch, None, positions, Output::Add(x))?;
            }
        }
        if let Some(factor) = self.config.embedding_scale.filter(|_| !self.config.scales_tokens_alone) {
            backend.scale(x, Some(factor), None)?;
        }
        match &self.embedding_norm {
            Some(norm) => backend.normalize(x, norm),
            None => Ok(()),
        }
    }

    /// What the blocks get beside the embedded tokens `x`, on the first device.
    pub(crate) fn begin(
        &self,
        batch: &B::Batch,
        x: &B::Activations,
        carried: &mut Carried<B>,
    ) -> Result<(), Error> {
        if let Some(inputs) = &self.inputs {
            inputs.compute(self.backend(), batch, x, carried)?;
        }
        match &self.streams {
            Some(streams) => streams.split(self.backend(), x, carried),
            None => Ok(()),
        }
    }

    /// The residual stream `x` after the last block.
    pub(crate) fn end(&self, x: &mut B::Activations, carried: &mut Carried<B>) -> Result<(), Error> {
        match &self.streams {
            Some(streams) => streams.join(self.backend(), self.config.hidden_size, x, carried),
            None => Ok(()),
        }
    }

    /// `logits [rows, vocabulary]` of hidden states `x [rows, hidden_size]`.
    pub(crate) fn head(
        &self,
        x: &mut B::Activations,
        narrow: &mut B::Activations,
        logits: &mut B::Activations,
    ) -> Result<(), Error> {
        let backend = self.head_backend();
        let normed = match &self.final_norm {
            Some(norm) => Input::Normed(x, norm),
            None => Input::Plain(x),
        };
        let x = match (&self.head_transform, self.config.head_activation) {
            (Some((dense, norm)), Some(activation)) => {
                backend.project(normed, &mut [(dense, Output::Store(&mut *narrow))])?;
                backend.activate(narrow, activation, false, x)?;
                Input::Normed(x, norm)
            }
            _ => normed,
        };
        match &self.project_out {
            None => backend.project(x, &mut [(&self.head, Output::Store(&mut *logits))])?,
            Some(project) => {
                backend.project(x, &mut [(project, Output::Store(&mut *narrow))])?;
                backend.project(Input::Plain(narrow), &mut [(&self.head, Output::Store(&mut *logits))])?;
            }
        }
        let DecoderConfig { logit_scale, logit_softcap, .. } = self.config;
        if logit_scale.is_some() || logit_softcap.is_some() {
            backend.scale(logits, logit_scale, logit_softcap)?;
        }
        Ok(())
    }
}
