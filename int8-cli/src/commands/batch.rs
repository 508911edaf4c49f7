//! `int8 run --batch`: many prompts at once, from one JSONL file to another.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::mpsc::channel;

use int8_nn::backend::{Backend, Precision};
use int8_nn::engine::{Engine, EngineOptions, Event, FinishReason, Finished, Request, SamplingParams};
use int8_nn::{ChatTemplate, GenerationConfig, Model, Sampling, SpecialTokens, Tokenizer};
use serde_json::{Map, Value, json};

use super::read_text;
use super::schema::Schemas;
use crate::args::{PrecisionArgs, RunArgs};
use crate::convert::single;
use crate::device::{Device, Place, Task};
use crate::failure::Failure;
use crate::output::Output;
use crate::resolve;

/// Tokens of the KV cache: enough for prompts of some thousand tokens at once.
const KV_TOKENS: usize = 65536;

/// A prompt and its number, from 1.
struct Line {
    number: usize,
    text: String,
}

impl Line {
    /// FNV-1a of the line: tells whether an answer belongs to it.
    fn digest(&self) -> String {
        let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        format!("{:016x}", self.text.bytes().fold(0xcbf2_9ce4_8422_2325, step))
    }
}

/// Answers what has no answer yet.
pub(super) fn run(
    arguments: &RunArgs,
    batch: &Path,
    out: &Path,
    device: &Device,
    output: &Output,
) -> Result<(), Failure> {
    let text = read_text("--batch", batch)?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let all: Vec<Line> = lines.map(|(at, text)| Line { number: at + 1, text: text.to_owned() }).collect();
    let (file, done) = open(out, &all)?;
    let left: Vec<Line> = all.into_iter().filter(|line| !done.contains(&line.number)).collect();
    if !done.is_empty() {
        output.remark(&format!(
            "{}: {} answers are there, {} are left",
            out.display(),
            done.len(),
            left.len()
        ));
    }
    if left.is_empty() {
        return Ok(());
    }
    let checkpoint = resolve::checkpoint(&arguments.model, output)?;
    device.run(checkpoint, Batch { arguments, left, file, output }, output)
}

/// Opens the file of answers, and reads for which prompts it has some. What an interruption left of a line is removed.
fn open(out: &Path, all: &[Line]) -> Result<(File, HashSet<usize>), Failure> {
    let fail = |problem: String| Failure::new(format!("--out {}: {problem}", out.display()));
    if fs::metadata(out).is_ok_and(|metadata| !metadata.is_file()) {
        return Err(fail("this is no file".to_owned()));
    }
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(out)
        .map_err(|error| fail(error.to_string()))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    let text =
        std::str::from_utf8(&bytes[..whole]).map_err(|_| fail("this is no file of answers".to_owned()))?;
    let digests: HashMap<usize, String> = all.iter().map(|line| (line.number, line.digest())).collect();
    let mut done = HashSet::new();
    for (at, line) in text.lines().enumerate() {
        let answer: Option<Value> = serde_json::from_str(line).ok();
        let number = answer.as_ref().and_then(|answer| usize::try_from(answer.get("line")?.as_u64()?).ok());
        let digest = answer.as_ref().and_then(|answer| answer.get("prompt_digest")?.as_str());
        match number {
            Some(number) if digest.is_some() && digests.get(&number).map(String::as_str) == digest => {
                done.insert(number);
            }
            _ => {
                let problem =
                    format!("line {} is no answer to a prompt of --batch; give another file", at + 1);
                return Err(fail(problem));
            }
        }
    }
    // A last line without an end may be of any file, unless a whole line has shown what this file is.
    if whole == 0 && !bytes.is_empty() && !bytes.starts_with(b"{\"") {
        return Err(fail("this is no file of answers; give another file".to_owned()));
    }
    let end = u64::try_from(whole).unwrap_or_default();
    file.set_len(end)?;
    file.seek(SeekFrom::Start(end))?;
    Ok((file, done))
}

struct Batch<'a> {
    arguments: &'a RunArgs,
    left: Vec<Line>,
    file: File,
    output: &'a Output,
}

impl Task for Batch<'_> {
    type Output = ();

    fn precision(&self) -> Result<Precision, Failure> {
        resolve::batch_invariant_precision(&self.arguments.model.precision)
    }

    fn options(&self) -> Option<&PrecisionArgs> {
        Some(&self.arguments.model.precision)
    }

    fn run<B: Backend + 'static>(self, place: &Place<B>) -> Result<(), Failure> {
        let model = resolve::load(&self.arguments.model.precision, place, self.output)?;
        // A thread outside rayon's pool would hand each forward over to one inside, and sleep.
        rayon::scope(|_| self.answer(&model))
    }
}

impl Batch<'_> {
    fn answer<B: Backend>(mut self, model: &Model<B>) -> Result<(), Failure> {
        let arguments = self.arguments;
        let (context, at_once) = (model.config().fixed_positions(), usize::from(arguments.at_once));
        let mut engine = Engine::new(
            model,
            EngineOptions {
                max_batch: at_once,
                total_positions: Some(context.saturating_mul(at_once).min(KV_TOKENS.max(context))),
                kv_cache: arguments.kv_cache.given(),
                max_waiting: 2 * at_once,
                ..EngineOptions::default()
            },
        )?;
        let defaults = defaults(arguments, model.generation_config())?;
        let tokenizer = model.tokenizer()?;
        let schemas = Schemas::new(arguments, model)?;
        let template = if arguments.chat { Some(model.chat_template()?) } else { model.chat_template().ok() };
        let bar = self.output.bar("answering", "prompts");
        let (all, mut ended, mut failed) = (self.left.len(), 0, 0);
        let (sender, events) = channel();
        let mut answers: HashMap<usize, (Line, Option<Value>, String)> = HashMap::new();
        let mut left = std::mem::take(&mut self.left).into_iter().peekable();
        loop {
            // As many wait as run, so that the batch stays full; the queue has room for all of them.
            while left.peek().is_some() && answers.len() < 2 * at_once {
                let Some(line) = left.next() else { break };
                let read = read_prompt(&line.text, arguments, &defaults, tokenizer, template.as_ref());
                let submitted = read.and_then(|(id, schema, mut request)| {
                    request.constraint = schemas.constraint(schema.as_ref(), &request.stop_ids)?;
                    let (sender, number) = (sender.clone(), line.number);
                    let sink = move |event| match sender.send((number, event)) {
                        Ok(()) => ControlFlow::Continue(()),
                        Err(_) => ControlFlow::Break(()),
                    };
                    engine.submit(request, Box::new(sink)).map_err(|rejection| rejection.to_string())?;
                    Ok(id)
                });
                match submitted {
                    Ok(id) => drop(answers.insert(line.number, (line, id, String::new()))),
                    Err(problem) => {
                        (ended, failed) = (ended + 1, failed + 1);
                        self.write(&line, None, &json!({"error": problem}))?;
                    }
                }
            }
            if engine.is_idle() && left.peek().is_none() {
                break;
            }
            engine.step()?;
            while let Ok((number, event)) = events.try_recv() {
                match event {
                    Event::Token(token) => {
                        if let Some((_, _, text)) = answers.get_mut(&number) {
                            text.push_str(&token.text);
                        }
                    }
                    Event::Finished(finished) => {
                        let Some((line, id, text)) = answers.remove(&number) else { continue };
                        ended += 1;
                        failed += usize::from(matches!(
                            finished.reason,
                            FinishReason::Constraint(_) | FinishReason::Failed(_)
                        ));
                        self.write(&line, id, &answer(text, &finished))?;
                    }
                }
            }
            bar.set(ended, all);
        }
        bar.clear();
        self.file.sync_all()?;
        self.output.remark(&format!("{ended} prompts, {} new tokens", engine.stats().new_tokens));
        match failed {
            0 => Ok(()),
            failed => Err(Failure::new(format!(
                "{failed} of {ended} prompts failed; their lines have an \"error\""
            ))),
        }
    }

    fn write(&mut self, line: &Line, id: Option<Value>, more: &Value) -> Result<(), Failure> {
        let mut answer = Map::new();
        answer.insert("line".to_owned(), json!(line.number));
        answer.insert("prompt_digest".to_owned(), json!(line.digest()));
        answer.extend(id.map(|id| ("id".to_owned(), id)));
        answer.extend(more.as_object().cloned().unwrap_or_default());
        // In one piece: an interruption leaves at most one broken line, the last.
        Ok(self.file.write_all(format!("{}\n", Value::Object(answer)).as_bytes())?)
    }
}

fn answer(mut text: String, finished: &Finished) -> Value {
    text.push_str(&finished.text);
    let reason = match &finished.reason {
        FinishReason::Length => "length",
        FinishReason::Constraint(problem) | FinishReason::Failed(problem) => {
            return json!({"error": problem});
        }
        _ => "stop",
    };
    json!({"text": text, "finish_reason": reason, "prompt_tokens": finished.prompt_tokens, "new_tokens": finished.new_tokens})
}

/// How tokens are chosen where a line does not say: as `int8 run` does.
///
/// # Errors
/// For settings that are not implemented.
fn defaults(arguments: &RunArgs, own: &GenerationConfig) -> Result<SamplingParams, Failure> {
    let rules = super::generate::rules(arguments, own)?;
    let chosen = SamplingParams { rules, ..SamplingParams::default() };
    Ok(match super::generate::sampling(arguments, own)? {
        Sampling::Greedy => SamplingParams { temperature: 0.0, ..chosen },
        Sampling::Random { temperature, top_k, top_p, seed } => {
            SamplingParams { temperature, top_k, top_p, seed, ..chosen }
        }
    })
}

/// The request of a line, with its `id` and the schema of its answer.
fn read_prompt(
    line: &str,
    arguments: &RunArgs,
    defaults: &SamplingParams,
    tokenizer: &Tokenizer,
    template: Option<&ChatTemplate>,
) -> Result<(Option<Value>, Option<Value>, Request), String> {
    let value: Value = serde_json::from_str(line).map_err(|error| format!("no JSON: {error}"))?;
    let object = value.as_object().ok_or("no JSON object")?;
    const KNOWN: [&str; 10] = [
        "id",
        "prompt",
        "messages",
        "max_tokens",
        "temperature",
        "top_k",
        "top_p",
        "seed",
        "stop",
        "json_schema",
    ];
    if let Some(unknown) = object.keys().find(|key| !KNOWN.contains(&key.as_str())) {
        return Err(format!("`{unknown}` is not known; there are {}", KNOWN.join(", ")));
    }
    let chat = |messages: &Value| -> Result<Vec<u32>, String> {
        let template = template.ok_or("this model has no chat template: give \"prompt\"")?;
        let text = template
            .render_json(messages, &Value::Null, &Value::Null, true)
            .map_err(|error| error.to_string())?;
        tokenizer.encode(&text, SpecialTokens::Omit).map_err(|error| error.to_string())
    };
    let is_chat = arguments.chat || object.contains_key("messages");
    let ids = match (object.get("prompt"), object.get("messages")) {
        (Some(Value::String(prompt)), None) if arguments.chat => {
            let system = arguments.system.iter().map(|system| json!({"role": "system", "content": system}));
            chat(&system.chain([json!({"role": "user", "content": prompt})]).collect())?
        }
        (Some(Value::String(prompt)), None) => {
            tokenizer.encode(prompt, SpecialTokens::Add).map_err(|error| error.to_string())?
        }
        (None, Some(messages @ Value::Array(_))) => chat(messages)?,
        _ => return Err("expected either \"prompt\", a text, or \"messages\", a list".to_owned()),
    };
    let number = |key: &str| match object.get(key) {
        None => Ok(None),
        Some(value) => {
            value.as_f64().map(|value| Some(single(value))).ok_or_else(|| format!("`{key}` is no number"))
        }
    };
    let count = |key: &str| match object.get(key) {
        None => Ok(None),
        Some(value) => value.as_u64().map(Some).ok_or_else(|| format!("`{key}` is no whole number")),
    };
    let size = |key: &str, default: usize| match count(key) {
        Ok(value) => Ok(value.map_or(default, |value| usize::try_from(value).unwrap_or(usize::MAX))),
        Err(problem) => Err(problem),
    };
    let sampling = SamplingParams {
        temperature: number("temperature")?.unwrap_or(defaults.temperature),
        top_k: match count("top_k")? {
            None => defaults.top_k,
            Some(k) => Some(usize::try_from(k).unwrap_or(usize::MAX)),
        },
        top_p: number("top_p")?.or(defaults.top_p),
        seed: count("seed")?.unwrap_or(defaults.seed),
        ..defaults.clone()
    };
    let stop = match object.get("stop") {
        None => Vec::new(),
        Some(Value::String(text)) => vec![text.clone()],
        Some(Value::Array(list)) => {
            let texts = list.iter().map(|text| text.as_str().map(str::to_owned));
            texts.collect::<Option<_>>().ok_or("`stop` is no text and no list of texts")?
        }
        Some(_) => return Err("`stop` is no text and no list of texts".to_owned()),
    };
    let end = template.filter(|_| is_chat).and_then(ChatTemplate::eos_token);
    let request = Request {
        sampling,
        max_tokens: size("max_tokens", arguments.max_tokens)?,
        stop_ids: end.and_then(|token| tokenizer.token_id(token)).into_iter().collect(),
        stop,
        ignore_eos: arguments.ignore_eos,
        ..Request::new(ids)
    };
    Ok((object.get("id").cloned(), object.get("json_schema").cloned(), request))
}
