//! `generation_config.json`: how a model's texts are to be generated, obeyed as transformers' `generate()` obeys it.

use serde_json::Value;

use crate::checkpoint::Source;
use crate::config::RawConfig;
use crate::sampler::Sampling;
use crate::{Error, convert};

/// A model's own settings of generation: `generation_config.json`, or where there is none the same keys of `config.json`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct GenerationConfig {
    /// Tokens that end a text; `None` where the file does not say.
    pub eos_token_ids: Option<Vec<u32>>,
    /// First token of the text that an encoder-decoder writes.
    pub decoder_start_token_id: Option<u32>,
    /// Whether the next token is drawn at random instead of the most probable one; `None` where the file does not say.
    pub do_sample: Option<bool>,
    /// Divisor of the logits.
    pub temperature: Option<f32>,
    /// Tokens that are drawn from; 0 for all.
    pub top_k: Option<usize>,
    /// Probability of the tokens that are drawn from.
    pub top_p: Option<f32>,
    /// Changes of the logits.
    pub rules: LogitRules,
    /// The first setting that is not implemented and changes the text: key and value.
    pub unsupported: Option<(String, String)>,
    /// The first such setting that only changes what is drawn at random.
    pub unsupported_sampling: Option<(String, String)>,
    file: String,
}

/// Changes of the logits before a token is chosen, in the order of transformers' processors.
#[derive(Debug, Clone, PartialEq)]
pub struct LogitRules {
    /// Logits of tokens that the text holds are divided by this, or multiplied where negative. 1 changes nothing.
    pub repetition_penalty: f32,
    /// No sequence of so many tokens occurs twice; 0 for no such rule.
    pub no_repeat_ngram_size: usize,
    /// Sequences of tokens that are never completed.
    pub bad_words_ids: Vec<Vec<u32>>,
    /// Tokens of prompt and continuation before which no token of `eos_token_ids` is chosen.
    pub min_length: usize,
    /// New tokens before which none of `eos_token_ids` is chosen.
    pub min_new_tokens: usize,
    /// The token behind a prompt of one token.
    pub forced_bos_token_id: Option<u32>,
    /// The last token when the most tokens are reached: one of these.
    pub forced_eos_token_ids: Vec<u32>,
    /// Tokens that are never chosen.
    pub suppress_tokens: Vec<u32>,
    /// Tokens that are not chosen first.
    pub begin_suppress_tokens: Vec<u32>,
    /// Tokens that end a text, for the rules about lengths.
    pub eos_token_ids: Vec<u32>,
}

impl Default for LogitRules {
    /// No changes.
    fn default() -> Self {
        Self {
            repetition_penalty: 1.0,
            no_repeat_ngram_size: 0,
            bad_words_ids: Vec::new(),
            min_length: 0,
            min_new_tokens: 0,
            forced_bos_token_id: None,
            forced_eos_token_ids: Vec::new(),
            suppress_tokens: Vec::new(),
            begin_suppress_tokens: Vec::new(),
            eos_token_ids: Vec::new(),
        }
    }
}

const FILE: &str = "generation_config.json";

/// Keys of other strategies or processors, with the value that switches them off.
const OTHER: [(&str, f64); 8] = [
    ("num_beams", 1.0),
    ("num_beam_groups", 1.0),
    ("penalty_alpha", 0.0),
    ("guidance_scale", 1.0),
    ("encoder_repetition_penalty", 1.0),
    ("encoder_no_repeat_ngram_size", 0.0),
    ("diversity_penalty", 0.0),
    ("prompt_lookup_num_tokens", 0.0),
];

/// Keys that change the text whatever their value.
const OTHER_IF_SET: [&str; 7] = [
    "sequence_bias",
    "exponential_decay_length_penalty",
    "watermarking_config",
    "force_words_ids",
    "constraints",
    "dola_layers",
    "stop_strings",
];

/// Keys that change what is drawn at random.
const OTHER_SAMPLING: [(&str, f64); 5] =
    [("min_p", 0.0), ("typical_p", 1.0), ("epsilon_cutoff", 0.0), ("eta_cutoff", 0.0), ("top_h", 1.0)];

impl GenerationConfig {
    /// Reads the settings of a checkpoint.
    ///
    /// # Errors
    /// When a key has no value of its kind.
    pub fn read(source: &Source) -> Result<Self, Error> {
        let file = if source.contains(FILE) { FILE } else { "config.json" };
        Self::of(&RawConfig::from_json(source.label(file), source.read_json(file)?)?)
    }

    fn of(raw: &RawConfig) -> Result<Self, Error> {
        let ids = |key: &str| raw.token_ids(key);
        let first = |key: &str| Ok::<_, Error>(raw.token_ids(key)?.first().copied());
        let number = |key: &str| match raw.get(key) {
            None => Ok(None),
            Some(value) => raw.positive(key, value).map(|number| Some(convert::f32_from(number))),
        };
        let differs = |(key, off): &(&str, f64)| match raw.get(key) {
            Some(value) if value.as_f64() != Some(*off) => Some(((*key).to_owned(), value.to_string())),
            _ => None,
        };
        let is_set = |key: &&str| match raw.get(key) {
            Some(Value::Bool(false)) | None => None,
            Some(value) => Some(((*key).to_owned(), value.to_string())),
        };
        let rules = LogitRules {
            repetition_penalty: number("repetition_penalty")?.unwrap_or(1.0),
            no_repeat_ngram_size: raw.index_or("no_repeat_ngram_size", 0)?,
            bad_words_ids: sequences(raw, "bad_words_ids")?,
            min_length: raw.index_or("min_length", 0)?,
            min_new_tokens: raw.index_or("min_new_tokens", 0)?,
            forced_bos_token_id: first("forced_bos_token_id")?,
            forced_eos_token_ids: ids("forced_eos_token_id")?,
            suppress_tokens: ids("suppress_tokens")?,
            begin_suppress_tokens: ids("begin_suppress_tokens")?,
            eos_token_ids: ids("eos_token_id")?,
        };
        Ok(Self {
            eos_token_ids: raw.get("eos_token_id").map(|_| rules.eos_token_ids.clone()),
            decoder_start_token_id: first("decoder_start_token_id")?,
            do_sample: raw.get("do_sample").and_then(Value::as_bool),
            temperature: number("temperature")?,
            top_k: match raw.get("top_k") {
                None => None,
                Some(_) => Some(raw.index_or("top_k", 0)?),
            },
            top_p: number("top_p")?,
            unsupported: OTHER.iter().find_map(differs).or_else(|| OTHER_IF_SET.iter().find_map(is_set)),
            unsupported_sampling: OTHER_SAMPLING.iter().find_map(differs),
            file: raw.file().to_owned(),
            rules,
        })
    }

    /// Refuses settings that are not implemented; `sampling`: those of random choice as well.
    ///
    /// # Errors
    /// [`Error::Config`] that names the key.
    pub fn require_supported(&self, sampling: bool) -> Result<(), Error> {
        let found = self.unsupported.as_ref().or(self.unsupported_sampling.as_ref().filter(|_| sampling));
        match found {
            None => Ok(()),
            Some((key, value)) => Err(Error::Config {
                file: self.file.clone(),
                key: key.clone(),
                problem: format!(
                    "is {value}, which is not implemented and would change the text; generate without the model's own \
                     settings, or remove the key"
                ),
            }),
        }
    }

    /// The way of choosing tokens that `generate()` takes: the most probable one unless `do_sample` is set.
    ///
    /// # Errors
    /// As [`require_supported`](Self::require_supported).
    pub fn sampling(&self, seed: u64) -> Result<Sampling, Error> {
        let random = self.do_sample == Some(true);
        self.require_supported(random)?;
        if !random {
            return Ok(Sampling::Greedy);
        }
        Ok(Sampling::Random {
            temperature: self.temperature.unwrap_or(1.0),
            top_k: Some(self.top_k.unwrap_or(50)).filter(|k| *k > 0),
            top_p: self.top_p,
            seed,
        })
    }
}

/// Lists of token ids.
fn sequences(raw: &RawConfig, key: &str) -> Result<Vec<Vec<u32>>, Error> {
    let Some(value) = raw.get(key) else { return Ok(Vec::new()) };
    let wrong = || raw.problem(key, format!("is {value}; expected a list of lists of token ids"));
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(wrong);
    let lists = value.as_array().ok_or_else(wrong)?;
    lists.iter().map(|list| list.as_array().ok_or_else(wrong)?.iter().map(id).collect()).collect()
}

impl LogitRules {
    /// Whether nothing is changed.
    pub fn is_empty(&self) -> bool {
        let Self { eos_token_ids, .. } = self;
        *self == Self { eos_token_ids: eos_token_ids.clone(), ..Self::default() }
    }

    /// Changes the logits of the token behind `text`, of which `prompt` tokens were given. `most`: tokens that prompt and
    /// continuation can have.
    pub fn apply(&self, logits: &mut [f32], text: &[u32], prompt: usize, most: usize) {
        const NEVER: f32 = f32::NEG_INFINITY;
        let banned_words = self.bad_words_ids.iter().filter_map(|word| {
            let (last, before) = word.split_last()?;
            let is_end = before.is_empty() && self.eos_token_ids.contains(last);
            // A word longer than the text cannot be completed.
            (!is_end && word.len() <= text.len().max(1) && text.ends_with(before)).then_some(*last)
        });
        let mut banned: Vec<u32> = repeated(text, self.no_repeat_ngram_size);
        banned.extend(banned_words);
        if text.len() < self.min_length || text.len() - prompt.min(text.len()) < self.min_new_tokens {
            banned.extend(&self.eos_token_ids);
        }
        banned.extend(&self.suppress_tokens);
        let begin = prompt + usize::from(prompt <= 1 && self.forced_bos_token_id.is_some());
        if text.len() == begin {
            banned.extend(&self.begin_suppress_tokens);
        }
        let forced = match self.forced_bos_token_id {
            Some(_) if text.len() == 1 => self.forced_bos_token_id.as_slice(),
            _ if text.len() + 1 == most => &self.forced_eos_token_ids[..],
            _ => &[],
        };
        if self.repetition_penalty != 1.0 {
            let mut done = vec![false; logits.len()];
            for id in text.iter().map(|id| convert::index(*id)) {
                if done.get(id) == Some(&false) {
                    done[id] = true;
                    logits[id] = penalised(logits[id], self.repetition_penalty);
                }
            }
        }
        for id in banned {
            if let Some(logit) = logits.get_mut(convert::index(id)) {
                *logit = NEVER;
            }
        }
        if !forced.is_empty() {
            logits.fill(NEVER);
            for id in forced {
                if let Some(logit) = logits.get_mut(convert::index(*id)) {
                    *logit = 0.0;
                }
            }
        }
    }
}

/// The logit of a token that the text holds: `l/r`, or `l·r` where l is negative.
fn penalised(logit: f32, repetition_penalty: f32) -> f32 {
    if logit < 0.0 { logit * repetition_penalty } else { logit / repetition_penalty }
}

/// The tokens that would complete a sequence of `size` tokens that the text holds already.
fn repeated(text: &[u32], size: usize) -> Vec<u32> {
    if size == 0 || text.len() + 1 < size {
        return Vec::new();
    }
    let end = &text[text.len() + 1 - size..];
    text.windows(size).filter(|window| window.starts_with(end)).map(|window| window[size - 1]).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn config(json: Value) -> GenerationConfig {
        let raw = RawConfig::from_json(FILE.to_owned(), json).expect("an object");
        GenerationConfig::of(&raw).expect("settings")
    }

    fn after(json: Value, text: &[u32], prompt: usize) -> Vec<f32> {
        let mut logits = vec![1.0, -1.0, 2.0, 0.5, 0.0];
        config(json).rules.apply(&mut logits, text, prompt, 6);
        logits
    }

    const N: f32 = f32::NEG_INFINITY;

    #[test]
    fn each_rule_changes_what_it_says() {
        assert_eq!(after(json!({"repetition_penalty": 2.0}), &[0, 1, 0], 1), [0.5, -2.0, 2.0, 0.5, 0.0]);
        assert_eq!(after(json!({"no_repeat_ngram_size": 2}), &[3, 0, 3], 1), [N, -1.0, 2.0, 0.5, 0.0]);
        assert_eq!(after(json!({"no_repeat_ngram_size": 1}), &[3, 0], 1), [N, -1.0, 2.0, N, 0.0]);
        assert_eq!(after(json!({"suppress_tokens": [2, 9]}), &[3], 1), [1.0, -1.0, N, 0.5, 0.0]);
        assert_eq!(after(json!({"begin_suppress_tokens": [2]}), &[3, 3], 2)[2], N);
        assert_eq!(after(json!({"begin_suppress_tokens": [2]}), &[3, 3], 1)[2], 2.0);
        assert_eq!(after(json!({"min_new_tokens": 2, "eos_token_id": [2]}), &[3, 3], 1)[2], N);
        assert_eq!(after(json!({"min_new_tokens": 1, "eos_token_id": [2]}), &[3, 3], 1)[2], 2.0);
        assert_eq!(after(json!({"min_length": 3, "eos_token_id": 2}), &[3, 3], 1)[2], N);
        assert_eq!(after(json!({"forced_eos_token_id": 4}), &[3; 5], 1), [N, N, N, N, 0.0]);
        assert_eq!(after(json!({"forced_eos_token_id": 4}), &[3; 4], 1)[0], 1.0);
        assert_eq!(after(json!({"forced_bos_token_id": 1}), &[0], 1), [N, 0.0, N, N, N]);
        let words = json!({"bad_words_ids": [[2], [3, 0], [4]], "eos_token_id": 4});
        assert_eq!(after(words.clone(), &[1, 3], 1), [N, -1.0, N, 0.5, 0.0]);
        assert_eq!(after(words, &[3, 1], 1), [1.0, -1.0, N, 0.5, 0.0]);
    }

    #[test]
    fn ends_and_sampling() {
        assert_eq!(config(json!({"eos_token_id": [-1]})).eos_token_ids, Some(Vec::new()));
        assert_eq!(config(json!({"eos_token_id": -1})).eos_token_ids, Some(Vec::new()));
        assert_eq!(config(json!({})).eos_token_ids, None);
        assert!(config(json!({"eos_token_id": 3})).rules.is_empty());
        assert_eq!(config(json!({"temperature": 0.5})).sampling(1).expect("greedy"), Sampling::Greedy);
        let random = config(json!({"do_sample": true, "temperature": 0.5, "top_k": 0, "top_p": 0.9}));
        let expected = Sampling::Random { temperature: 0.5, top_k: None, top_p: Some(0.9), seed: 1 };
        assert_eq!(random.sampling(1).expect("random"), expected);
        for (key, value) in
            [("num_beams", json!(4)), ("sequence_bias", json!([])), ("guidance_scale", json!(2))]
        {
            let error =
                config(json!({key: value})).require_supported(false).expect_err("refused").to_string();
            assert!(error.contains(key), "{error}");
        }
        assert!(
            config(json!({"num_beams": 1, "min_p": 0.1, "use_cache": true})).require_supported(false).is_ok()
        );
        assert!(config(json!({"min_p": 0.1})).require_supported(true).is_err());
    }
}
