//! The tokens that a transcript begins with: `<|startoftranscript|> [language task] <|notimestamps|>`, as transformers' `generate` puts
//! them together from `generation_config.json`.

use std::collections::BTreeMap;

use int8_core::Named;
use serde_json::Value;

use super::{SpeechTask, TranscribeOptions};
use crate::Error;
use crate::checkpoint::Source;
use crate::config::RawConfig;

/// The settings of a model's transcripts.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct PromptSettings {
    /// Tokens of languages, by `<|code|>`; a model of English alone has none.
    languages: BTreeMap<String, u32>,
    /// Tokens of tasks.
    tasks: BTreeMap<String, u32>,
    is_multilingual: bool,
    no_timestamps: Option<u32>,
    /// Tokens behind the first; `None` stands for a language that is to be detected.
    forced: Vec<Option<u32>>,
    language: Option<String>,
    task: Option<String>,
    /// Most tokens of a transcript, without those that it begins with.
    pub(super) max_length: Option<usize>,
}

const LANGUAGES: &str = "lang_to_id";
const TASKS: &str = "task_to_id";
const FORCED: &str = "forced_decoder_ids";

impl PromptSettings {
    /// Reads `generation_config.json`, and `config.json` for what only that has.
    ///
    /// # Errors
    /// When a key has no value of its kind.
    pub(super) fn read(source: &Source) -> Result<Self, Error> {
        const FILE: &str = "generation_config.json";
        let model = RawConfig::read(source)?;
        if !source.contains(FILE) {
            return Self::of(&model, &model);
        }
        Self::of(&RawConfig::from_json(source.label(FILE), source.read_json(FILE)?)?, &model)
    }

    fn of(raw: &RawConfig, model: &RawConfig) -> Result<Self, Error> {
        let text = |key: &str| raw.get(key).map(|_| raw.text_or(key, "").map(str::to_owned)).transpose();
        let size = |key: &str| raw.get(key).map(|_| raw.size(key)).transpose();
        let languages = tokens(raw, LANGUAGES)?;
        Ok(Self {
            // Without the key, a model with languages has several.
            is_multilingual: raw.flag_or("is_multilingual", !languages.is_empty())?,
            languages,
            tasks: tokens(raw, TASKS)?,
            no_timestamps: raw.token_ids("no_timestamps_token_id")?.first().copied(),
            forced: forced(if raw.get(FORCED).is_some() { raw } else { model })?,
            language: text("language")?,
            task: text("task")?,
            max_length: size("max_length")?,
        })
    }

    /// The tokens, `start` first. `detect` finds the token of the language among these.
    ///
    /// # Errors
    /// [`Error::Input`] when the model does not know the language or the task.
    pub(super) fn tokens(
        &self,
        start: u32,
        options: &TranscribeOptions,
        detect: impl FnOnce(&[u32]) -> Result<u32, Error>,
    ) -> Result<Vec<u32>, Error> {
        if !self.is_multilingual && (options.language.is_some() || options.task.is_some()) {
            return Err(Error::Input(
                "this model writes down English alone: it takes no language and no task".to_owned(),
            ));
        }
        let language = options.language.as_ref().or(self.language.as_ref());
        let task = options.task.map(SpeechTask::key).or(self.task.as_deref());
        let mut tokens = vec![Some(start)];
        if language.is_none() && task.is_none() {
            tokens.extend(&self.forced);
        }
        let language_token = match language {
            Some(language) => Some(self.language_token(language)?),
            None if !self.languages.is_empty() && tokens.get(1).copied().flatten().is_none() => {
                Some(detect(&self.languages.values().copied().collect::<Vec<_>>())?)
            }
            None => None,
        };
        match (tokens.get_mut(1), language_token) {
            (Some(place), Some(token)) => *place = Some(token),
            (None, Some(token)) => tokens.push(Some(token)),
            (_, None) => {}
        }
        let known = |token: &Option<u32>| self.tasks.values().any(|task| Some(*task) == *token);
        match task {
            Some(task) => tokens.push(Some(self.task_token(task)?)),
            None if language.is_some() && !self.tasks.is_empty() && !tokens.iter().any(known) => {
                tokens.push(Some(self.task_token(SpeechTask::Transcribe.key())?));
            }
            None => {}
        }
        if self.no_timestamps.is_some() && tokens.last() != Some(&self.no_timestamps) {
            tokens.push(self.no_timestamps);
        }
        Ok(tokens.into_iter().flatten().collect())
    }

    /// The code of the language whose token is among `tokens`.
    pub(super) fn language_of(&self, tokens: &[u32]) -> Option<String> {
        let found = self.languages.iter().find(|(_, token)| tokens.contains(token));
        found.map(|(name, _)| code(name).to_owned())
    }

    fn language_token(&self, language: &str) -> Result<u32, Error> {
        let name = format!("<|{}|>", code(&language.to_lowercase()));
        self.languages.get(&name).copied().ok_or_else(|| {
            let codes: Vec<&str> = self.languages.keys().map(|name| code(name)).collect();
            Error::Input(format!(
                "this model knows no language {:?}; its languages: {}",
                language.escape_debug().to_string(),
                codes.join(", ")
            ))
        })
    }

    fn task_token(&self, task: &str) -> Result<u32, Error> {
        self.tasks.get(task).copied().ok_or_else(|| {
            let known: Vec<&str> = self.tasks.keys().map(String::as_str).collect();
            Error::Input(format!("this model knows no task {task:?}; its tasks: {}", known.join(", ")))
        })
    }
}

/// `en` of `<|en|>`.
fn code(name: &str) -> &str {
    name.strip_prefix("<|").and_then(|name| name.strip_suffix("|>")).unwrap_or(name)
}

/// An object of token ids.
fn tokens(raw: &RawConfig, key: &str) -> Result<BTreeMap<String, u32>, Error> {
    let Some(value) = raw.get(key) else { return Ok(BTreeMap::new()) };
    let wrong = || raw.problem(key, "is no object of token ids");
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(wrong);
    value.as_object().ok_or_else(wrong)?.iter().map(|(name, value)| Ok((name.clone(), id(value)?))).collect()
}

/// The tokens of `forced_decoder_ids`, `[place, token]` each, from place 1 on.
fn forced(raw: &RawConfig) -> Result<Vec<Option<u32>>, Error> {
    let Some(value) = raw.get(FORCED) else { return Ok(Vec::new()) };
    let wrong = || raw.problem(FORCED, format!("is {value}; expected [[1, id], [2, id], …]"));
    let pairs = value.as_array().ok_or_else(wrong)?;
    let mut tokens = Vec::new();
    for (index, pair) in pairs.iter().enumerate() {
        let (Some(place), Some(token)) = (pair.get(0).and_then(Value::as_u64), pair.get(1)) else {
            return Err(wrong());
        };
        if place != crate::convert::bytes(index + 1) {
            // A list that begins later forces nothing behind the first token.
            return if index == 0 { Ok(Vec::new()) } else { Err(wrong()) };
        }
        tokens.push(match token {
            Value::Null => None,
            token => Some(token.as_u64().and_then(|token| u32::try_from(token).ok()).ok_or_else(wrong)?),
        });
    }
    Ok(tokens)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn settings(json: Value) -> Result<PromptSettings, Error> {
        let raw = RawConfig::from_json("generation_config.json".to_owned(), json)?;
        PromptSettings::of(&raw, &raw)
    }

    fn options(language: Option<&str>, task: Option<SpeechTask>) -> TranscribeOptions {
        TranscribeOptions { language: language.map(str::to_owned), task, ..TranscribeOptions::default() }
    }

    fn tokens(json: Value, options: &TranscribeOptions) -> Result<Vec<u32>, String> {
        let detect = |among: &[u32]| Ok(*among.last().expect("languages"));
        let settings = settings(json).map_err(|error| error.to_string())?;
        settings.tokens(50, options, detect).map_err(|error| error.to_string())
    }

    /// What transformers' `_retrieve_init_tokens` returns for the same settings.
    #[test]
    fn prompts_of_all_kinds_of_models() {
        let english =
            json!({"is_multilingual": false, "forced_decoder_ids": [[1, 90]], "no_timestamps_token_id": 90});
        assert_eq!(tokens(english.clone(), &options(None, None)), Ok(vec![50, 90]));
        for refused in [options(Some("en"), None), options(None, Some(SpeechTask::Transcribe))] {
            assert!(tokens(english.clone(), &refused).expect_err("refused").contains("English alone"));
        }
        let many = json!({
            "lang_to_id": {"<|de|>": 51, "<|en|>": 52}, "task_to_id": {"transcribe": 60, "translate": 61},
            "forced_decoder_ids": [[1, null], [2, 60]], "no_timestamps_token_id": 90
        });
        assert_eq!(tokens(many.clone(), &options(None, None)), Ok(vec![50, 52, 60, 90]));
        assert_eq!(tokens(many.clone(), &options(Some("DE"), None)), Ok(vec![50, 51, 60, 90]));
        assert_eq!(tokens(many.clone(), &options(Some("<|de|>"), None)), Ok(vec![50, 51, 60, 90]));
        let translate = Some(SpeechTask::Translate);
        assert_eq!(tokens(many.clone(), &options(Some("de"), translate)), Ok(vec![50, 51, 61, 90]));
        assert_eq!(tokens(many.clone(), &options(None, translate)), Ok(vec![50, 52, 61, 90]));
        let error = tokens(many.clone(), &options(Some("klingon"), None)).expect_err("refused");
        assert!(error.contains("klingon") && error.contains("de, en"), "{error}");
        assert_eq!(settings(many).expect("settings").language_of(&[50, 51, 60]), Some("de".to_owned()));
        // Newer files force nothing: a detected language stands without a task.
        let newer = json!({"lang_to_id": {"<|de|>": 51}, "task_to_id": {"transcribe": 60}});
        assert_eq!(tokens(newer, &options(None, None)), Ok(vec![50, 51]));
        let own = json!({"lang_to_id": {"<|de|>": 51}, "task_to_id": {"transcribe": 60}, "language": "de"});
        assert_eq!(tokens(own, &options(None, None)), Ok(vec![50, 51, 60]));
        assert_eq!(tokens(json!({"forced_decoder_ids": [[2, 7]]}), &options(None, None)), Ok(vec![50]));
        assert_eq!(tokens(json!({}), &options(None, None)), Ok(vec![50]));
        for wrong in [
            json!({"forced_decoder_ids": [[1, 7], [3, 8]]}),
            json!({"forced_decoder_ids": 7}),
            json!({"forced_decoder_ids": [[1, "a"]]}),
            json!({"lang_to_id": [1]}),
            json!({"lang_to_id": {"<|de|>": -1}}),
            json!({"task_to_id": {"transcribe": "x"}}),
            json!({"max_length": 0}),
        ] {
            assert!(settings(wrong.clone()).is_err(), "{wrong}");
        }
    }
}
