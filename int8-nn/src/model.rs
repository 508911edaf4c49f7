//! From a checkpoint to a model that can be used, in one line.

use std::path::Path;
use std::sync::Arc;

use int8_core::{Config, Scheme};

use crate::Error;
use crate::backend::cpu::CpuBackend;
use crate::backend::{Backend, Capabilities, Feature};
use crate::chat::ChatTemplate;
use crate::checkpoint::Checkpoint;
use crate::checks;
use crate::config::{DecoderConfig, RawConfig, RotaryPrecision};
use crate::decoder::{Decoder, Footprint};
use crate::embedder::Embedder;
use crate::encoder::Encoder;
use crate::families::{self, Kind};
use crate::generation::GenerationConfig;
use crate::placement::Devices;
use crate::precision::{OutlierWeights, Precision, Quantization};
use crate::seq2seq::SourceEncoder;
use crate::tokenizer::Tokenizer;
use crate::transcriber::Transcriber;

/// A causal language model, ready to use.
///
/// ```no_run
/// use int8_nn::{GenerateOptions, Model};
///
/// let model = Model::load("path/to/checkpoint")?.int8().build()?;
/// println!("{}", model.generate("Once upon a time", &GenerateOptions::default())?);
/// # Ok::<(), int8_nn::Error>(())
/// ```
#[derive(Debug)]
pub struct Model<B: Backend = CpuBackend> {
    decoder: Decoder<B>,
    /// Reads the text that the decoder writes about.
    source: Option<SourceEncoder<B>>,
    /// The reason why there is none, if its files cannot be read: token ids need none.
    tokenizer: Result<Option<Tokenizer>, String>,
    eos_token_ids: Vec<u32>,
    generation: GenerationConfig,
    precision: Precision,
    checkpoint: Checkpoint,
}

/// Called with the number of blocks loaded so far and of all.
type Progress = Box<dyn FnMut(usize, usize)>;

/// A checkpoint on its way to a model. [`Model::load`] starts one.
pub struct Loader {
    checkpoint: Checkpoint,
    precision: Precision,
    rotary: RotaryPrecision,
    progress: Progress,
}

impl Model {
    /// Opens a checkpoint: a folder or a `.safetensors` file. Weights stay as stored unless [`Loader::int8`] or
    /// [`Loader::quantize`] follows.
    ///
    /// # Errors
    /// When there is no checkpoint or it is damaged.
    pub fn load(path: impl AsRef<Path>) -> Result<Loader, Error> {
        Ok(Loader::new(Checkpoint::open(path)?))
    }
}

impl Loader {
    /// Loads from an opened checkpoint.
    pub fn new(checkpoint: Checkpoint) -> Self {
        Self {
            checkpoint,
            precision: Precision::Float,
            rotary: RotaryPrecision::F32,
            progress: Box::new(|_, _| {}),
        }
    }

    /// The opened checkpoint.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// Converts to int8 with the paper's setting: LLM.int8(), threshold 6, and exact outlier columns.
    pub fn int8(self) -> Self {
        self.quantize(Scheme::LlmInt8Absmax.config(), OutlierWeights::Exact)
    }

    /// Converts to int8 with these settings.
    pub fn quantize(self, config: Config, outlier_weights: OutlierWeights) -> Self {
        self.precision(Precision::Int8(Quantization::new(config, outlier_weights)))
    }

    /// Holds the linear layers as said.
    pub fn precision(mut self, precision: Precision) -> Self {
        self.precision = precision;
        self
    }

    /// Holds rotary frequencies in this precision; f32 unless this is called, as `from_pretrained` does.
    pub fn rotary_precision(mut self, rotary: RotaryPrecision) -> Self {
        self.rotary = rotary;
        self
    }

    /// Called with the number of blocks loaded so far and of all.
    pub fn on_progress(mut self, progress: impl FnMut(usize, usize) + 'static) -> Self {
        self.progress = Box::new(progress);
        self
    }

    /// Whether a backend runs this model with these settings, before anything is loaded.
    ///
    /// # Errors
    /// As [`build_on`](Self::build_on) refuses the model: [`Error::Unsupported`] names all that the backend lacks.
    pub fn accept(&self, capabilities: &Capabilities) -> Result<(), Error> {
        let raw = RawConfig::read(self.checkpoint.source())?;
        let bounded = |layers: usize| checks::layers(&raw, layers, &self.checkpoint);
        let accept = |config: &DecoderConfig, further: &[Feature]| {
            bounded(config.layers)?;
            capabilities.accept(config, &self.precision, further)
        };
        let kind = families::kind(raw.text_or("model_type", "")?);
        checks::refuse(&raw, &self.checkpoint, kind.unwrap_or(Kind::Decoder))?;
        match kind {
            Some(Kind::Encoder) => {
                let config = (families::encoder(&raw)?.config)(&raw)?;
                accept(&config.network, &[Feature::FullAttention])
            }
            Some(Kind::Seq2Seq | Kind::Speech) => {
                let config = (families::seq2seq(&raw)?.config)(&raw)?;
                bounded(config.encoder.layers.max(config.decoder.layers))?;
                config.accept(capabilities, &self.precision)
            }
            _ => accept(&(families::of(&raw)?.config)(&raw)?, &[]),
        }
    }

    /// Whether the model can be built on a CPU: its configuration is implemented, and the linear layers of a decoder are there in
    /// the shapes that it says. Reads no weights.
    ///
    /// # Errors
    /// As [`build`](Self::build).
    pub fn check(&self) -> Result<(), Error> {
        self.accept(&Capabilities::all("a CPU".to_owned()))?;
        let raw = RawConfig::read(self.checkpoint.source())?;
        match families::kind(raw.text_or("model_type", "")?) {
            Some(Kind::Decoder) => Decoder::<CpuBackend>::check(&self.checkpoint, &raw),
            _ => Ok(()),
        }
    }

    /// Builds the model on the CPU.
    ///
    /// # Errors
    /// When the family is not supported or `config.json` contradicts the tensors.
    pub fn build(self) -> Result<Model, Error> {
        let backend = CpuBackend::new()?;
        self.build_on(Arc::new(backend))
    }

    /// Builds an encoder for sentence embeddings on the CPU.
    ///
    /// # Errors
    /// As [`build`](Self::build).
    pub fn embedder(self) -> Result<Embedder, Error> {
        self.embedder_on(Arc::new(CpuBackend::new()?))
    }

    /// Builds an encoder for sentence embeddings on any backend.
    ///
    /// # Errors
    /// As [`build_on`](Self::build_on).
    pub fn embedder_on<B: Backend>(self, device: impl Into<Devices<B>>) -> Result<Embedder<B>, Error> {
        let backend = device.into().single("an encoder")?;
        let Self { checkpoint, precision, progress, .. } = self;
        checks::refuse(&RawConfig::read(checkpoint.source())?, &checkpoint, Kind::Encoder)?;
        let encoder = Encoder::load(&checkpoint, backend, &precision, progress)?;
        Embedder::new(encoder, checkpoint, precision)
    }

    /// Builds a model of speech on the CPU.
    ///
    /// # Errors
    /// As [`build`](Self::build).
    pub fn transcriber(self) -> Result<Transcriber, Error> {
        self.transcriber_on(Arc::new(CpuBackend::new()?))
    }

    /// Builds a model of speech on any backend.
    ///
    /// # Errors
    /// As [`build_on`](Self::build_on).
    pub fn transcriber_on<B: Backend>(self, device: impl Into<Devices<B>>) -> Result<Transcriber<B>, Error> {
        let backend = device.into().single("a model of speech")?;
        let Self { checkpoint, precision, progress, .. } = self;
        let raw = RawConfig::read(checkpoint.source())?;
        families::require_speech(&raw)?;
        checks::refuse(&raw, &checkpoint, Kind::Speech)?;
        let load = || Decoder::load_with_source(&checkpoint, backend, &precision, progress);
        let (network, tokenizer) = beside_tokenizer(&checkpoint, load);
        let (decoder, source) = network?;
        let bins = (families::seq2seq(&raw)?.config)(&raw)?.mel_bins.unwrap_or_default();
        Transcriber::new(Model::new(checkpoint, decoder, Some(source), precision, tokenizer)?, bins)
    }

    /// Builds the model on any backend, or the blocks of a decoder on several ([`Devices`]).
    ///
    /// # Errors
    /// As [`build`](Self::build), and when the backend's memory is too small.
    pub fn build_on<B: Backend>(self, devices: impl Into<Devices<B>>) -> Result<Model<B>, Error> {
        let devices = devices.into();
        let Self { checkpoint, precision, rotary, progress } = self;
        let raw = RawConfig::read(checkpoint.source())?;
        checks::refuse(&raw, &checkpoint, Kind::Decoder)?;
        let load = || -> Result<_, Error> {
            Ok(match families::kind(raw.text_or("model_type", "")?) {
                Some(Kind::Seq2Seq) => {
                    let (decoder, source) = Decoder::load_with_source(
                        &checkpoint,
                        devices.single("an encoder and its decoder")?,
                        &precision,
                        progress,
                    )?;
                    (decoder, Some(source))
                }
                _ => (Decoder::load(&checkpoint, devices, &precision, rotary, progress)?, None),
            })
        };
        let (network, tokenizer) = beside_tokenizer(&checkpoint, load);
        let (decoder, source) = network?;
        Model::new(checkpoint, decoder, source, precision, tokenizer)
    }
}

/// Loads a network on this thread, and reads the checkpoint's tokenizer on another: it takes a tenth of a second and, for a while,
/// some ten times the size of its file, which is least while few weights are in memory.
fn beside_tokenizer<T>(
    checkpoint: &Checkpoint,
    load: impl FnOnce() -> Result<T, Error>,
) -> (Result<T, Error>, Result<Option<Tokenizer>, Error>) {
    std::thread::scope(|scope| {
        let tokenizer = scope.spawn(|| Tokenizer::read(checkpoint.source()));
        let network = load();
        (network, tokenizer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}

impl<B: Backend> Model<B> {
    /// Puts a loaded network and the other files of its checkpoint together.
    fn new(
        checkpoint: Checkpoint,
        decoder: Decoder<B>,
        mut source: Option<SourceEncoder<B>>,
        precision: Precision,
        tokenizer: Result<Option<Tokenizer>, Error>,
    ) -> Result<Self, Error> {
        let files = checkpoint.source();
        let tokenizer = tokenizer.map_err(|error| match error {
            Error::Tokenizer(problem) => problem,
            other => other.to_string(),
        });
        let mut generation = GenerationConfig::read(files)?;
        // Its end tokens alone count where it has some.
        let of_model = || decoder.config().eos_token_ids.clone();
        let eos_token_ids = generation.eos_token_ids.clone().unwrap_or_else(of_model);
        generation.rules.eos_token_ids.clone_from(&eos_token_ids);
        if let (Some(source), Some(start)) = (&mut source, generation.decoder_start_token_id) {
            source.set_start_token(start);
            decoder.check_ids(&[start])?;
        }
        Ok(Self { decoder, source, tokenizer, eos_token_ids, generation, precision, checkpoint })
    }

    /// Names of the checkpoint's tensors that are no part of the model.
    pub fn unread_tensors(&self) -> Vec<String> {
        checks::unread(&self.checkpoint)
    }

    /// The network.
    pub fn decoder(&self) -> &Decoder<B> {
        &self.decoder
    }

    /// The encoder of a model that reads one text and writes another.
    pub(crate) fn source(&self) -> Option<&SourceEncoder<B>> {
        self.source.as_ref()
    }

    /// Whether the model reads the prompt and writes another text, instead of continuing it.
    pub fn answers(&self) -> bool {
        self.source.is_some()
    }

    /// Where the weights' bytes are, those of an encoder included.
    pub fn footprint(&self) -> Footprint {
        let mut footprint = self.decoder.footprint();
        if let Some((bytes, weights)) = self.source.as_ref().map(SourceEncoder::convolution_weights) {
            footprint.embedding += bytes;
            footprint.embedding_weights += weights;
        }
        for block in self.source.iter().flat_map(SourceEncoder::blocks) {
            footprint.linear_weights += block.weights();
            footprint.linear +=
                block.linears().map(|(_, linear)| self.decoder.backend().linear_bytes(linear)).sum::<usize>();
        }
        footprint
    }

    /// The normalised configuration.
    pub fn config(&self) -> &DecoderConfig {
        self.decoder.config()
    }

    /// The tokenizer.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] when the checkpoint has no `tokenizer.json`.
    pub fn tokenizer(&self) -> Result<&Tokenizer, Error> {
        match &self.tokenizer {
            Ok(tokenizer) => Tokenizer::require(tokenizer.as_ref(), &self.checkpoint),
            Err(problem) => Err(Error::Tokenizer(problem.clone())),
        }
    }

    /// The chat template.
    ///
    /// # Errors
    /// [`Error::ChatTemplate`] when the checkpoint has none, or one that cannot be understood.
    pub fn chat_template(&self) -> Result<ChatTemplate, Error> {
        self.find_chat_template()?.ok_or_else(|| Error::ChatTemplate {
            file: self.checkpoint.source().label("tokenizer_config.json"),
            problem: "there is none, so this is no chat model; continue a text instead".to_owned(),
        })
    }

    /// The chat template, if the checkpoint has one.
    ///
    /// # Errors
    /// [`Error::ChatTemplate`] for one that cannot be understood.
    pub fn find_chat_template(&self) -> Result<Option<ChatTemplate>, Error> {
        ChatTemplate::read(self.checkpoint.source())
    }

    /// Tokens that end a text.
    pub fn eos_token_ids(&self) -> &[u32] {
        &self.eos_token_ids
    }

    /// The model's own settings of generation.
    pub fn generation_config(&self) -> &GenerationConfig {
        &self.generation
    }

    /// How the linear layers are held.
    pub fn precision(&self) -> &Precision {
        &self.precision
    }

    /// The checkpoint the model came from.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }
}
