//! Speech to text: log-mel spectra of a recording through an encoder, and a decoder that writes it down (Whisper).
//!
//! ```no_run
//! use int8_nn::audio::Recording;
//! use int8_nn::transcriber::TranscribeOptions;
//! use int8_nn::{Error, Model};
//!
//! let transcriber = Model::load("path/to/whisper-tiny.en")?.int8().transcriber()?;
//! let file = std::fs::read("speech.wav").map_err(|error| Error::Input(error.to_string()))?;
//! let transcript =
//!     transcriber.transcribe(Recording::from_wav(&file)?, &TranscribeOptions::default(), |_| ())?;
//! println!("{}", transcript.text);
//! # Ok::<(), int8_nn::Error>(())
//! ```

mod prompt;

use std::ops::ControlFlow;
use std::time::Instant;

use ndarray::{Array2, ArrayView2};

use crate::audio::{LogMel, Recording};
use crate::backend::cpu::CpuBackend;
use crate::backend::{Backend, KvType, RowSelection};
use crate::generate::GenerateOptions;
use crate::model::Model;
use crate::seq2seq::{Source, SourceEncoder};
use crate::session::{Session, SessionOptions};
use crate::{Error, convert};

use prompt::PromptSettings;

/// A model of speech, ready to use.
#[derive(Debug)]
pub struct Transcriber<B: Backend = CpuBackend> {
    model: Model<B>,
    log_mel: LogMel,
    settings: PromptSettings,
}

/// What is written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpeechTask {
    /// The speech, in its language.
    Transcribe,
    /// Its translation to English.
    Translate,
}

/// How a recording is written down.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TranscribeOptions {
    /// The language of the speech, as `de`; `None`: that of the model's files, or else the model finds it out.
    pub language: Option<String>,
    /// `None`: the task of the model's files, or else [`SpeechTask::Transcribe`].
    pub task: Option<SpeechTask>,
    /// KV cache type; `None` for [the type of the checkpoint](crate::decoder::Decoder::kv_cache_type).
    pub kv_cache: Option<KvType>,
}

/// A recording written down.
#[derive(Debug, Clone, PartialEq)]
pub struct Transcript {
    /// All of it.
    pub text: String,
    /// The code of the language, of a model that knows several.
    pub language: Option<String>,
    /// Window by window.
    pub windows: Vec<TranscriptWindow>,
}

/// A window of a recording written down.
#[derive(Debug, Clone, PartialEq)]
pub struct TranscriptWindow {
    /// Its beginning and end, in seconds.
    pub seconds: [f64; 2],
    /// The text; most begin with a space.
    pub text: String,
    /// Its tokens, without those that it begins with and the end-of-text token.
    pub ids: Vec<u32>,
}

impl<B: Backend> Transcriber<B> {
    /// `bins`: bands of the spectra that the model reads.
    pub(crate) fn new(model: Model<B>, bins: usize) -> Result<Self, Error> {
        let files = model.checkpoint().source();
        let positions = model.source().map_or(0, |source| source.config().max_positions);
        // The second convolution halves the number of frames.
        let log_mel = LogMel::read(files, bins, 2 * positions)?;
        let settings = PromptSettings::read(files)?;
        Ok(Self { model, log_mel, settings })
    }

    /// The network with its tokenizer.
    pub fn model(&self) -> &Model<B> {
        &self.model
    }

    /// From recordings to the spectra that the model reads.
    pub fn log_mel(&self) -> &LogMel {
        &self.log_mel
    }

    /// Writes a recording down, of any sampling rate. One that is longer than the model's window (30 seconds) is cut into windows
    /// that follow each other, each written down for itself: a word at a cut may be lost. `on_window` sees each when it is done.
    ///
    /// # Errors
    /// [`Error::Input`] for a language or a task that the model does not know; [`Error::Tokenizer`] when the checkpoint has no
    /// tokenizer; [`Error::Config`] for the model's own settings of generation that are not implemented.
    pub fn transcribe(
        &self,
        recording: Recording,
        options: &TranscribeOptions,
        mut on_window: impl FnMut(&TranscriptWindow),
    ) -> Result<Transcript, Error> {
        let tokenizer = self.model.tokenizer()?;
        let recording = recording.at_rate(self.log_mel.rate());
        let mut prompt = None;
        let mut transcript = Transcript { text: String::new(), language: None, windows: Vec::new() };
        let size = self.log_mel.window();
        for (index, samples) in recording.samples.chunks(size).enumerate() {
            let spectrum = self.log_mel.spectrum(samples);
            // All windows have the language of the first.
            let (begun, ids) = self.generate(spectrum.view(), options, prompt.take())?;
            transcript.language = self.settings.language_of(&begun);
            prompt = Some(begun);
            let second = |sample: usize| convert::f64_from(sample) / f64::from(recording.rate);
            let seconds = [second(index * size), second(index * size + samples.len())];
            let window = TranscriptWindow { seconds, text: tokenizer.decode(&ids)?, ids };
            on_window(&window);
            transcript.text.push_str(&window.text);
            transcript.windows.push(window);
        }
        transcript.text = transcript.text.trim().to_owned();
        Ok(transcript)
    }

    /// The tokens that the text of `spectrum f32 [frames, bins]` begins with, and those that follow, without the end-of-text token.
    ///
    /// # Errors
    /// As [`transcribe`](Self::transcribe), and for a spectrum of another shape than the model's.
    pub fn generate_ids(
        &self,
        spectrum: ArrayView2<'_, f32>,
        options: &TranscribeOptions,
    ) -> Result<(Vec<u32>, Vec<u32>), Error> {
        self.generate(spectrum, options, None)
    }

    /// As [`generate_ids`](Self::generate_ids), with the tokens that the text begins with, if they are known.
    fn generate(
        &self,
        spectrum: ArrayView2<'_, f32>,
        options: &TranscribeOptions,
        prompt: Option<Vec<u32>>,
    ) -> Result<(Vec<u32>, Vec<u32>), Error> {
        let begin = Instant::now();
        let generation = self.model.generation_config();
        let sampling = generation.sampling(0)?;
        let most = self.model.config().max_positions;
        let options_of_session = SessionOptions {
            kv_cache: options.kv_cache.unwrap_or(self.model.decoder().kv_cache_type()),
            max_logits: 1,
            ..SessionOptions::text(most)
        };
        let (source, mut session) = self.reading(spectrum, &options_of_session)?;
        let start = source.start_token();
        let mut detect = |languages: &[u32]| {
            session.forward(&[(0, &[start])])?;
            let logits = session.logits(&RowSelection::LastOfSegments)?;
            let logit = |id: u32| logits.get(convert::index(id)).copied().unwrap_or(f32::NEG_INFINITY);
            let best = languages.iter().copied().max_by(|a, b| logit(*a).total_cmp(&logit(*b)));
            session.clear(0)?;
            Ok(best.unwrap_or(start))
        };
        let prompt = match prompt {
            Some(prompt) => prompt,
            None => self.settings.tokens(start, options, &mut detect)?,
        };
        let room = most.saturating_sub(prompt.len());
        let longest = self.settings.max_length.unwrap_or(room);
        // transformers counts the tokens that a text begins with beside `max_length`.
        let options = GenerateOptions {
            max_new_tokens: longest.min(room),
            sampling,
            kv_cache: options.kv_cache,
            ..GenerateOptions::default()
        };
        let all = |_| ControlFlow::Continue(());
        let written = (&prompt[..], &generation.rules, begin);
        let ids = self.model.write(&mut session, written, &options, all)?.ids;
        Ok((prompt, ids))
    }

    /// Logits `f32 [targets.len(), vocab_size]` of a text `targets` about `spectrum f32 [frames, bins]`, computed in one forward.
    ///
    /// # Errors
    /// [`Error::Input`] for no ids, ids outside the vocabulary, or more of them than the model has positions; and for a spectrum of
    /// another shape than the model's.
    pub fn target_logits(
        &self,
        spectrum: ArrayView2<'_, f32>,
        targets: &[u32],
    ) -> Result<Array2<f32>, Error> {
        let (_, mut session) = self.reading(spectrum, &SessionOptions::text(targets.len()))?;
        session.forward(&[(0, targets)])?;
        let logits = session.logits(&RowSelection::Range(0..targets.len()))?.to_vec();
        self.model.logit_rows(targets.len(), logits)
    }

    /// The encoder, and a session whose model has read `spectrum`.
    fn reading(
        &self,
        spectrum: ArrayView2<'_, f32>,
        options: &SessionOptions,
    ) -> Result<(&SourceEncoder<B>, Session<'_, B>), Error> {
        let source = self.model.source().ok_or(Error::NeedsSource { family: self.model.config().family })?;
        if spectrum.ncols() != self.log_mel.bins() {
            return Err(Error::Input(format!(
                "a spectrum of {} bands; this model reads {}",
                spectrum.ncols(),
                self.log_mel.bins()
            )));
        }
        Ok((source, source.session(self.model.decoder(), Source::Spectrum(spectrum), options)?))
    }
}
