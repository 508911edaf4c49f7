//! Sentence embeddings: the hidden states of a text's tokens, pooled into one vector.
//!
//! ```no_run
//! use int8_nn::Model;
//!
//! let embedder = Model::load("path/to/all-MiniLM-L6-v2")?.int8().embedder()?;
//! let vectors = embedder.embed(&["A man is eating food.", "A man is eating bread."], |_, _| ())?;
//! println!("{:.4}", int8_nn::embedder::cosine(vectors.row(0), vectors.row(1)));
//! # Ok::<(), int8_nn::Error>(())
//! ```

use ndarray::{Array2, ArrayView1, ArrayView2, ArrayViewMut1, Axis};
use serde_json::Value;

use crate::backend::Backend;
use crate::backend::cpu::CpuBackend;
use crate::checkpoint::{Checkpoint, Source};
use crate::config::RawConfig;
use crate::encoder::Encoder;
use crate::precision::Precision;
use crate::tokenizer::Tokenizer;
use crate::{Error, convert};

/// Most tokens of one batch: enough for compute-bound products, few enough for small activations (hidden size 1024: 100 MB).
pub const BATCH_TOKENS: usize = 2048;

/// Tokens that a shorter text counts as.
const SHORTEST_ROOM: usize = 16;

/// An encoder with tokenizer and pooling.
#[derive(Debug)]
pub struct Embedder<B: Backend = CpuBackend> {
    encoder: Encoder<B>,
    tokenizer: Option<Tokenizer>,
    settings: EmbedSettings,
    text: TextSettings,
    precision: Precision,
    checkpoint: Checkpoint,
}

/// What sentence-transformers does to a text before it is tokenised.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct TextSettings {
    /// Put before each text: the prompt that `default_prompt_name` names.
    prompt: String,
    /// `do_lower_case` of `sentence_bert_config.json`.
    lower_case: bool,
}

impl TextSettings {
    fn read(source: &Source) -> Result<Self, Error> {
        const PROMPTS: &str = "config_sentence_transformers.json";
        const MODEL: &str = "sentence_bert_config.json";
        let mut settings = Self::default();
        if source.contains(PROMPTS) {
            let raw = config(source, PROMPTS)?;
            let name = raw.text_or("default_prompt_name", "")?;
            if !name.is_empty() {
                let prompt = raw.get("prompts").and_then(|prompts| prompts.get(name)).and_then(Value::as_str);
                let missing =
                    || raw.problem("default_prompt_name", format!("is {name:?}, which is none of `prompts`"));
                settings.prompt = prompt.ok_or_else(missing)?.to_owned();
            }
        }
        if source.contains(MODEL) {
            settings.lower_case = config(source, MODEL)?.flag_or("do_lower_case", false)?;
        }
        Ok(settings)
    }

    fn apply<'a>(&self, text: &'a str) -> std::borrow::Cow<'a, str> {
        if self.prompt.is_empty() && !self.lower_case {
            return text.into();
        }
        let text = format!("{}{}", self.prompt, text.trim());
        if self.lower_case { text.to_lowercase().into() } else { text.into() }
    }
}

/// How a text becomes one vector, as sentence-transformers has it in `modules.json`, `1_Pooling/config.json` and
/// `sentence_bert_config.json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EmbedSettings {
    /// Pooling of the hidden states.
    pub pooling: Pooling,
    /// Divide each vector by its Euclidean norm.
    pub normalize: bool,
    /// Tokens that a text is truncated to, special tokens included.
    pub max_tokens: usize,
}

/// Pooling of the hidden states of a text's tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooling {
    /// Their mean.
    Mean,
    /// That of the first token, `[CLS]` or `<s>`.
    Cls,
    /// The largest value in each dimension.
    Max,
}

impl EmbedSettings {
    /// Reads the settings of a checkpoint of `positions` positions. Without sentence-transformers' files: mean pooling, no
    /// normalisation, and as many tokens as model and tokenizer allow.
    ///
    /// # Errors
    /// For settings that are not implemented, such as a dense layer after the pooling.
    pub fn read(source: &Source, positions: usize) -> Result<Self, Error> {
        let mut settings = Self { pooling: Pooling::Mean, normalize: false, max_tokens: positions };
        let mut pooling = "1_Pooling".to_owned();
        const MODULES: &str = "modules.json";
        if source.contains(MODULES) {
            let problem = |problem: String| Error::Config {
                file: source.label(MODULES),
                key: "type".to_owned(),
                problem,
            };
            let modules = source.read_json(MODULES)?;
            let modules = modules.as_array().ok_or_else(|| problem("is in no list of modules".to_owned()))?;
            for module in modules {
                let text = |key: &str| module.get(key).and_then(Value::as_str).unwrap_or_default();
                match text("type").rsplit('.').next().unwrap_or_default() {
                    "Transformer" => {}
                    "Pooling" => pooling = text("path").to_owned(),
                    "Normalize" => settings.normalize = true,
                    _ => {
                        return Err(problem(format!(
                            "is {:?}; implemented: Transformer, Pooling, Normalize",
                            text("type")
                        )));
                    }
                }
            }
        }
        let pooling = format!("{pooling}/config.json");
        if source.contains(&pooling) {
            let raw = config(source, &pooling)?;
            settings.pooling = read_pooling(&raw)?;
            const PROMPT: &str = "include_prompt";
            if !raw.flag_or(PROMPT, true)? && !TextSettings::read(source)?.prompt.is_empty() {
                return Err(
                    raw.problem(PROMPT, "is false; a prompt that the pooling leaves out is not implemented")
                );
            }
        }
        // The first of these that has a limit counts.
        for (file, key) in
            [("sentence_bert_config.json", "max_seq_length"), ("tokenizer_config.json", "model_max_length")]
        {
            if !source.contains(file) {
                continue;
            }
            // Tokenizers without a limit write a number near 10³⁰.
            let limit = config(source, file)?.get(key).and_then(Value::as_u64);
            if let Some(limit) = limit.and_then(|limit| usize::try_from(limit).ok()) {
                settings.max_tokens = limit.min(positions);
                break;
            }
        }
        Ok(settings)
    }
}

fn config(source: &Source, file: &str) -> Result<RawConfig, Error> {
    RawConfig::from_json(source.label(file), source.read_json(file)?)
}

fn read_pooling(raw: &RawConfig) -> Result<Pooling, Error> {
    // Since sentence-transformers 5.4.
    const MODE: &str = "pooling_mode";
    match raw.get(MODE) {
        None => {}
        Some(Value::Array(modes)) if modes.len() != 1 => {
            return Err(raw.problem(MODE, format!("selects {} poolings; expected one", modes.len())));
        }
        Some(value) => {
            let name = value.get(0).unwrap_or(value).as_str();
            return match name {
                Some("mean") => Ok(Pooling::Mean),
                Some("cls") => Ok(Pooling::Cls),
                Some("max") => Ok(Pooling::Max),
                _ => Err(raw.problem(MODE, format!("is {value}; implemented: mean, cls, max"))),
            };
        }
    }
    const PREFIX: &str = "pooling_mode_";
    let modes = [
        ("mean_tokens", Some(Pooling::Mean)),
        ("cls_token", Some(Pooling::Cls)),
        ("max_tokens", Some(Pooling::Max)),
        ("mean_sqrt_len_tokens", None),
        ("weightedmean_tokens", None),
        ("lasttoken", None),
    ];
    let mut chosen = Vec::new();
    for (mode, pooling) in modes {
        if raw.flag_or(&format!("{PREFIX}{mode}"), false)? {
            chosen.push((mode, pooling));
        }
    }
    match chosen[..] {
        [(_, Some(pooling))] => Ok(pooling),
        [(mode, None)] => {
            let key = format!("{PREFIX}{mode}");
            Err(raw.problem(&key, "is not implemented; mean_tokens, cls_token and max_tokens are"))
        }
        // sentence-transformers concatenates several.
        _ => Err(raw.problem(PREFIX, format!("selects {} poolings; expected one", chosen.len()))),
    }
}

impl<B: Backend> Embedder<B> {
    pub(crate) fn new(
        encoder: Encoder<B>,
        checkpoint: Checkpoint,
        precision: Precision,
    ) -> Result<Self, Error> {
        let source = checkpoint.source();
        let settings = EmbedSettings::read(source, encoder.config().network.max_positions)?;
        let (tokenizer, text) = (Tokenizer::read(source)?, TextSettings::read(source)?);
        let mut embedder = Self { encoder, tokenizer, settings, text, precision, checkpoint };
        embedder.set_settings(settings)?;
        Ok(embedder)
    }

    /// The network.
    pub fn encoder(&self) -> &Encoder<B> {
        &self.encoder
    }

    /// How a text becomes one vector.
    pub fn settings(&self) -> EmbedSettings {
        self.settings
    }

    /// Changes how a text becomes one vector.
    ///
    /// # Errors
    /// When `max_tokens` exceeds the model's positions, or leaves none beside the special tokens.
    pub fn set_settings(&mut self, settings: EmbedSettings) -> Result<(), Error> {
        let positions = self.encoder.config().network.max_positions;
        if !(1..=positions).contains(&settings.max_tokens) {
            return Err(Error::Input(format!(
                "texts of at most {} tokens: this model takes 1 to {positions}",
                settings.max_tokens
            )));
        }
        if let Some(tokenizer) = &mut self.tokenizer {
            tokenizer.truncate(settings.max_tokens)?;
        }
        self.settings = settings;
        Ok(())
    }

    /// Precision of the linear layers.
    pub fn precision(&self) -> &Precision {
        &self.precision
    }

    /// The checkpoint the model came from.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// Token ids of each text, truncated to [`EmbedSettings::max_tokens`], and the number of truncated texts.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] when the checkpoint has no tokenizer or it cannot encode a text.
    pub fn tokenize<T: AsRef<str>>(&self, texts: &[T]) -> Result<(Vec<Vec<u32>>, usize), Error> {
        let tokenizer = Tokenizer::require(self.tokenizer.as_ref(), &self.checkpoint)?;
        let mut cut = 0;
        let ids = texts
            .iter()
            .map(|text| {
                let (ids, whole) = tokenizer.encode_truncated(&self.text.apply(text.as_ref()))?;
                cut += usize::from(!whole);
                Ok(ids)
            })
            .collect::<Result<_, Error>>()?;
        Ok((ids, cut))
    }

    /// One vector a text: `f32 [texts, hidden_size]`. `progress(done, texts)` is called after each batch.
    ///
    /// # Errors
    /// As [`tokenize`](Self::tokenize) and [`embed_ids`](Self::embed_ids).
    pub fn embed<T: AsRef<str>>(
        &self,
        texts: &[T],
        progress: impl FnMut(usize, usize),
    ) -> Result<Array2<f32>, Error> {
        self.embed_ids(&self.tokenize(texts)?.0, progress)
    }

    /// One vector a sequence of token ids: `f32 [sequences, hidden_size]`. Sequences of similar length form batches of up to
    /// [`BATCH_TOKENS`]. With outliers of `Column` granularity, a vector of an int8 model depends slightly on the other texts of
    /// its batch; with `Value` it does not.
    ///
    /// # Errors
    /// As [`Encoder::hidden_states`].
    pub fn embed_ids(
        &self,
        sequences: &[Vec<u32>],
        mut progress: impl FnMut(usize, usize),
    ) -> Result<Array2<f32>, Error> {
        let mut vectors = Array2::zeros((sequences.len(), self.encoder.config().network.hidden_size));
        let mut order: Vec<usize> = (0..sequences.len()).collect();
        order.sort_by_key(|index| sequences[*index].len());
        let mut rest = &order[..];
        while let Some((first, _)) = rest.split_first() {
            // A sequence holds whole pages of the KV cache, however short it is.
            let room = |index: usize| sequences[index].len().next_multiple_of(SHORTEST_ROOM);
            let mut tokens = room(*first);
            let more = rest[1..].iter().take_while(|index| {
                tokens += room(**index);
                tokens <= BATCH_TOKENS
            });
            let (members, tail) = rest.split_at(1 + more.count());
            rest = tail;
            let batch: Vec<&[u32]> = members.iter().map(|index| &sequences[*index][..]).collect();
            for (index, states) in members.iter().zip(self.encoder.hidden_states(&batch)?) {
                pool(states.view(), self.settings, vectors.row_mut(*index));
            }
            progress(sequences.len() - rest.len(), sequences.len());
        }
        Ok(vectors)
    }
}

fn pool(states: ArrayView2<'_, f32>, settings: EmbedSettings, mut out: ArrayViewMut1<'_, f32>) {
    match settings.pooling {
        Pooling::Mean => {
            out.assign(&(states.sum_axis(Axis(0)) / convert::f32_from(convert::f64_from(states.nrows()))))
        }
        Pooling::Cls => out.assign(&states.row(0)),
        // A NaN stays one.
        Pooling::Max => out.assign(&states.fold_axis(Axis(0), f32::NEG_INFINITY, |largest, value| {
            if *value <= *largest { *largest } else { *value }
        })),
    }
    if settings.normalize {
        let norm = convert::f32_from(length(out.view()));
        if norm > 0.0 {
            out /= norm;
        }
    }
}

/// `⟨a, b⟩ / (‖a‖·‖b‖)`, in f64; 0 if one of them is zero.
pub fn cosine(a: ArrayView1<'_, f32>, b: ArrayView1<'_, f32>) -> f64 {
    let lengths = length(a) * length(b);
    if lengths == 0.0 { 0.0 } else { dot(a, b) / lengths }
}

fn length(a: ArrayView1<'_, f32>) -> f64 {
    dot(a, a).sqrt()
}

fn dot(a: ArrayView1<'_, f32>, b: ArrayView1<'_, f32>) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

#[cfg(test)]
mod tests {
    use ndarray::array;

    use super::*;

    fn pooled(pooling: Pooling, normalize: bool) -> Vec<f32> {
        let states = array![[3.0, 0.0], [1.0, 8.0]];
        let mut out = ndarray::Array1::zeros(2);
        pool(states.view(), EmbedSettings { pooling, normalize, max_tokens: 2 }, out.view_mut());
        out.to_vec()
    }

    #[test]
    fn poolings_of_two_tokens() {
        assert_eq!(pooled(Pooling::Mean, false), [2.0, 4.0]);
        assert_eq!(pooled(Pooling::Cls, false), [3.0, 0.0]);
        assert_eq!(pooled(Pooling::Max, false), [3.0, 8.0]);
        assert_eq!(pooled(Pooling::Cls, true), [1.0, 0.0]);
    }

    #[test]
    fn cosines_of_known_angles() {
        let (x, y, both) = (array![2.0, 0.0], array![0.0, 3.0], array![1.0, 1.0]);
        assert_eq!(cosine(x.view(), y.view()), 0.0);
        assert!((cosine(x.view(), both.view()) - 0.5_f64.sqrt()).abs() < 1e-12);
        assert_eq!(cosine(x.view(), array![0.0, 0.0].view()), 0.0);
    }

    #[test]
    fn settings_of_sentence_transformers() {
        let read = |files: &[(&str, &str)]| {
            let files = files
                .iter()
                .map(|(name, text)| ((*name).to_owned(), std::borrow::Cow::Owned(text.as_bytes().to_vec())));
            EmbedSettings::read(&Source::embedded(files), 512)
        };
        let default = EmbedSettings { pooling: Pooling::Mean, normalize: false, max_tokens: 512 };
        assert_eq!(read(&[]).expect("defaults"), default);
        let modules = r#"[{"type": "sentence_transformers.models.Transformer", "path": ""},
            {"type": "sentence_transformers.models.Pooling", "path": "7_Pooling"},
            {"type": "sentence_transformers.models.Normalize", "path": "2_Normalize"}]"#;
        let cls = r#"{"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false}"#;
        let found = read(&[
            ("modules.json", modules),
            ("7_Pooling/config.json", cls),
            ("sentence_bert_config.json", r#"{"max_seq_length": 256}"#),
            ("tokenizer_config.json", r#"{"model_max_length": 384}"#),
        ]);
        let expected = EmbedSettings { pooling: Pooling::Cls, normalize: true, max_tokens: 256 };
        assert_eq!(found.expect("settings"), expected);
        let unlimited = read(&[("tokenizer_config.json", r#"{"model_max_length": 1e30}"#)]);
        assert_eq!(unlimited.expect("settings").max_tokens, 512);

        let dense = modules.replace("Normalize", "Dense");
        for (files, words) in [
            (vec![("modules.json", &dense[..])], ["modules.json", "Dense"]),
            (vec![("modules.json", "{}")], ["modules.json", "list"]),
            (
                vec![("1_Pooling/config.json", r#"{"pooling_mode_lasttoken": true}"#)],
                ["1_Pooling", "lasttoken"],
            ),
            (vec![("1_Pooling/config.json", "{}")], ["1_Pooling", "0 poolings"]),
            (
                vec![
                    ("1_Pooling/config.json", r#"{"pooling_mode": "mean", "include_prompt": false}"#),
                    (
                        "config_sentence_transformers.json",
                        r#"{"prompts": {"query": "find: "}, "default_prompt_name": "query"}"#,
                    ),
                ],
                ["1_Pooling", "include_prompt"],
            ),
        ] {
            let message = read(&files).expect_err("not implemented").to_string();
            assert!(words.iter().all(|word| message.contains(word)), "{words:?} not in: {message}");
        }
    }
}
