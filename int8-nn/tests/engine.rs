//! The engine: answers do not depend on what else runs, pages come back, and one request's end is not another's.

#[allow(dead_code, reason = "another test breaks its rules")]
mod mock;

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use int8_core::corpus::Random;
use int8_core::{OutlierGranularity, Scheme};
use int8_nn::backend::{Backend, LinearRole, Observer, OutlierWeights, Precision, Quantization, Site};
use int8_nn::engine::{
    self, EmbedOptions, Engine, EngineOptions, Event, FinishReason, Finished, Rejection, Request,
    SamplingParams, Token, is_batch_invariant,
};
use int8_nn::{GenerateOptions, Loader, LogitRules, Model, Sampling, SpecialTokens, TokenConstraint};
use mock::Mock;
use ndarray::ArrayViewMut2;

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../int8-cli/assets/demo-opt")
}

fn values() -> Precision {
    let mut config = Scheme::LlmInt8Absmax.config();
    config.outlier_granularity = OutlierGranularity::Value;
    Precision::Int8(Quantization::new(config, OutlierWeights::Exact))
}

fn load(folder: PathBuf) -> Model {
    Model::load(folder).expect("a checkpoint").precision(values()).build().expect("a model")
}

/// What a request got.
#[derive(Debug, Default, Clone)]
struct Answer {
    tokens: Vec<Token>,
    finished: Option<Finished>,
}

impl Answer {
    fn ids(&self) -> Vec<u32> {
        self.tokens.iter().map(|token| token.id).collect()
    }

    fn text(&self) -> String {
        let rest = self.finished.iter().map(|finished| finished.text.as_str());
        self.tokens.iter().map(|token| token.text.as_str()).chain(rest).collect()
    }

    fn reason(&self) -> FinishReason {
        self.finished.clone().expect("an end").reason
    }
}

type Answers = Arc<Mutex<HashMap<usize, Answer>>>;

/// A sink that writes down answer `number`.
fn note(answers: &Answers, number: usize) -> engine::Sink {
    let answers = Arc::clone(answers);
    Box::new(move |event| {
        let mut answers = answers.lock().expect("not poisoned");
        let answer = answers.entry(number).or_default();
        assert!(answer.finished.is_none(), "an event after the end");
        match event {
            Event::Token(token) => answer.tokens.push(token),
            Event::Finished(finished) => answer.finished = Some(finished),
        }
        ControlFlow::Continue(())
    })
}

fn of(answers: &Answers, number: usize) -> Answer {
    answers.lock().expect("not poisoned").get(&number).cloned().unwrap_or_default()
}

fn run<B: Backend>(engine: &mut Engine<'_, B>) {
    while !engine.is_idle() {
        engine.step().expect("a step");
    }
}

fn alone<B: Backend>(model: &Model<B>, request: &Request) -> Answer {
    alone_in(model, request, None)
}

fn alone_in<B: Backend>(model: &Model<B>, request: &Request, context: Option<usize>) -> Answer {
    let options = EngineOptions {
        max_batch: 1,
        context,
        kept_prefixes: 0,
        prefill_rows: 1024,
        ..EngineOptions::default()
    };
    let mut engine = Engine::new(model, options).expect("an engine");
    let answers = Answers::default();
    engine.submit(request.clone(), note(&answers, 0)).expect("room");
    run(&mut engine);
    of(&answers, 0)
}

/// Requests with prompts of many lengths, some with common beginnings, and all kinds of settings.
fn requests(vocabulary: u32, positions: usize, count: u64) -> Vec<Request> {
    let mut random = Random::new(3);
    let mut below = |end: u64| usize::try_from(random.bits() % end).expect("small");
    let id = |at: usize| u32::try_from(at).expect("small") % vocabulary;
    let common: Vec<u32> = (0..positions / 2).map(|at| id(at * 7 + 3)).collect();
    (0..count)
        .map(|seed| {
            let shared = if below(2) == 0 { below(common.len() as u64) } else { 0 };
            let own = 1 + below(positions as u64 / 4);
            let begin = below(50);
            let mut prompt = common[..shared].to_vec();
            prompt.extend((0..own).map(|at| id(begin + at * 11)));
            let default = SamplingParams { seed, ..SamplingParams::default() };
            let sampling = match seed % 5 {
                0 => default,
                1 => SamplingParams { temperature: 0.9, top_k: Some(20), ..default },
                2 => SamplingParams { temperature: 1.2, top_p: Some(0.9), min_p: Some(0.02), ..default },
                3 => SamplingParams {
                    temperature: 1.0,
                    rules: LogitRules {
                        repetition_penalty: 1.3,
                        no_repeat_ngram_size: 3,
                        suppress_tokens: vec![7, 9],
                        bad_words_ids: vec![vec![11], vec![12, 13]],
                        ..LogitRules::default()
                    },
                    presence_penalty: 0.2,
                    frequency_penalty: 0.1,
                    logit_bias: vec![(5, 2.0)],
                    ..default
                },
                _ => SamplingParams { logprobs: Some(3), temperature: 0.7, ..default },
            };
            Request { max_tokens: 1 + below(24), sampling, ignore_eos: true, ..Request::new(prompt) }
        })
        .collect()
}

/// Submits the requests in a shuffled order between steps, and compares with what each gets alone.
fn a_mix<B: Backend>(name: &str, model: &Model<B>, options: EngineOptions) -> engine::EngineStats {
    assert!(is_batch_invariant(model), "{name}");
    let vocabulary = u32::try_from(model.config().vocab_size).expect("small");
    let requests = requests(vocabulary, options.context.expect("given"), 40);
    let mut engine = Engine::new(model, options).expect("an engine");
    let answers = Answers::default();
    let mut random = Random::new(9);
    let mut order: Vec<usize> = (0..requests.len()).collect();
    order.sort_by_cached_key(|_| random.bits());
    for number in order {
        engine.submit(requests[number].clone(), note(&answers, number)).expect("room");
        for _ in 0..random.bits() % 3 {
            engine.step().expect("a step");
        }
    }
    run(&mut engine);
    for (number, request) in requests.iter().enumerate() {
        let (found, expected) = (of(&answers, number), alone_in(model, request, options.context));
        assert_eq!(found.reason(), FinishReason::Length, "{name}: {number}");
        assert_eq!(found.tokens, expected.tokens, "{name}: request {number}, {:?}", request.sampling);
        assert_eq!(found.finished.expect("an end").prompt_tokens, request.prompt.len());
    }
    let stats = engine.stats().clone();
    assert_eq!((stats.active, stats.waiting, stats.finished), (0, 0, 40), "{name}");
    stats
}

#[test]
fn answers_do_not_depend_on_what_else_runs() {
    for name in ["models/llama", "models/gpt2", "models/bloom", "goldens/qwen2_windows", "goldens/gemma2"] {
        let model = load(folder(name));
        let context = model.config().max_positions.min(96);
        // More rows of logits than one chunk has, chunks in the middle of prompts.
        let options = EngineOptions {
            max_batch: 20,
            context: Some(context),
            prefill_rows: 40,
            kept_prefixes: 4,
            ..EngineOptions::default()
        };
        let stats = a_mix(name, &model, options);
        assert!(stats.cached_tokens > 0 && stats.decode_rows > stats.decode_forwards, "{name}: {stats:?}");
        // Pages for two full sequences: requests are computed anew.
        let tight = EngineOptions { total_positions: Some(2 * context), ..options };
        let stats = a_mix(name, &model, tight);
        // A sequence within its first page of 64 positions needs no other.
        assert!(stats.preempted > 0 || context <= 64, "{name}: {stats:?}");
    }
}

/// A recurrent state cannot be taken back: a request continues all that a sequence holds, or begins anew.
#[test]
fn recurrent_states_are_continued_whole() {
    for name in ["goldens/mamba2", "goldens/bamba"] {
        let model = load(folder(name));
        let options = EngineOptions {
            max_batch: 6,
            context: Some(64),
            prefill_rows: 16,
            kept_prefixes: 3,
            ..EngineOptions::default()
        };
        a_mix(name, &model, options);
        let tight = EngineOptions { total_positions: Some(128), ..options };
        a_mix(name, &model, tight);
        let request =
            |prompt: &[u32]| Request { max_tokens: 4, ignore_eos: true, ..Request::new(prompt.to_vec()) };
        let begin: Vec<u32> = (3..27).collect();
        let mut engine = Engine::new(&model, options).expect("an engine");
        let mut ask = |prompt: &[u32]| {
            let answers = Answers::default();
            engine.submit(request(prompt), note(&answers, 0)).expect("room");
            run(&mut engine);
            let (found, expected) = (of(&answers, 0), alone_in(&model, &request(prompt), options.context));
            assert_eq!(found.tokens, expected.tokens, "{name}");
            (found.ids(), found.finished.expect("an end").cached_tokens)
        };
        let (first, cached) = ask(&begin);
        assert_eq!(cached, 0, "{name}");
        // The last token that was chosen has not been computed.
        let held = [&begin[..], &first[..3]].concat();
        assert_eq!(ask(&[&held[..20], &[5, 6]].concat()).1, 0, "{name}: a part");
        assert_eq!(ask(&[&held[..], &[5, 6]].concat()).1, held.len(), "{name}: all");
    }
}

#[test]
fn a_backend_that_records_graphs_gives_the_same() {
    let loader = |name| -> Loader { Model::load(folder(name)).expect("a checkpoint").precision(values()) };
    let backend = Arc::new(Mock::new(None));
    let model = loader("models/llama").build_on(Arc::clone(&backend)).expect("a model");
    let options = EngineOptions {
        max_batch: 6,
        context: Some(64),
        total_positions: Some(160),
        prefill_rows: 16,
        kept_prefixes: 2,
        ..EngineOptions::default()
    };
    a_mix("llama on the mock", &model, options);
    assert!(backend.replays() > 50, "{} replays", backend.replays());
}

#[test]
fn the_engine_gives_what_generate_gives() {
    let model = load(folder("models/llama"));
    for (seed, sampling) in [
        (0, Sampling::Greedy),
        (5, Sampling::Random { temperature: 0.9, top_k: Some(30), top_p: Some(0.95), seed: 5 }),
    ] {
        let prompt: Vec<u32> = (0..20).map(|at| at * 3 % 60).collect();
        let none = LogitRules::default();
        // Greedy texts repeat themselves: each rule changes one of these.
        let all = LogitRules {
            repetition_penalty: 1.1,
            no_repeat_ngram_size: 2,
            bad_words_ids: vec![vec![3], vec![5, 6]],
            min_new_tokens: 12,
            forced_eos_token_ids: vec![2],
            suppress_tokens: vec![1, 4],
            begin_suppress_tokens: vec![8],
            eos_token_ids: model.eos_token_ids().to_vec(),
            ..LogitRules::default()
        };
        let random = SamplingParams {
            temperature: 0.9,
            top_k: Some(30),
            top_p: Some(0.95),
            seed,
            ..SamplingParams::default()
        };
        let of_engine = if seed == 0 { SamplingParams::default() } else { random };
        let mut texts = Vec::new();
        for rules in [none, all] {
            let options = GenerateOptions {
                max_new_tokens: 30,
                sampling,
                stop_at_eos: false,
                rules: Some(rules.clone()),
                ..GenerateOptions::default()
            };
            let expected =
                model.generate_ids(&prompt, &options, |_| ControlFlow::Continue(())).expect("a text");
            let sampling = SamplingParams { rules, ..of_engine.clone() };
            let request =
                Request { max_tokens: 30, sampling, ignore_eos: true, ..Request::new(prompt.clone()) };
            assert_eq!(alone(&model, &request).ids(), expected.ids, "{options:?}");
            texts.push(expected.ids);
        }
        assert!(texts[0] != texts[1] && texts[1].last() == Some(&2), "{texts:?}");
    }
}

/// Multiples of `step`, from 0 on, `left` of them; after each of them the text may end.
#[derive(Debug, Clone)]
struct Multiples {
    step: u32,
    left: usize,
    eos: Vec<u32>,
}

impl TokenConstraint for Multiples {
    fn restrict(&mut self, logits: &mut [f32]) -> Result<(), String> {
        if self.step == 13 {
            return Err("thirteen".to_owned());
        }
        for (id, logit) in (0_u32..).zip(logits) {
            if !id.is_multiple_of(self.step) || self.eos.contains(&id) {
                *logit = f32::NEG_INFINITY;
            }
        }
        Ok(())
    }

    fn advance(&mut self, token: u32) -> Result<bool, String> {
        assert!(token.is_multiple_of(self.step));
        self.left -= 1;
        Ok(self.left == 0)
    }

    fn copy(&self) -> Box<dyn TokenConstraint> {
        Box::new(self.clone())
    }
}

#[test]
fn constraints_hold_whatever_else_runs() {
    let model = load(folder("models/llama"));
    let eos = model.eos_token_ids().to_vec();
    let options = EngineOptions {
        max_batch: 8,
        context: Some(96),
        // Three pages of 64 positions: requests are computed anew.
        total_positions: Some(192),
        prefill_rows: 16,
        kept_prefixes: 0,
        ..EngineOptions::default()
    };
    let mut engine = Engine::new(&model, options).expect("an engine");
    let answers = Answers::default();
    let request = |number: usize| {
        let seed = u64::try_from(number).expect("small");
        let temperature = if number.is_multiple_of(2) { 0.0 } else { 1.5 };
        let step = [2, 3, 7, 1000, 13][number % 5];
        let constraint = (number < 10)
            .then(|| -> Box<dyn TokenConstraint> { Box::new(Multiples { step, left: 9, eos: eos.clone() }) });
        Request {
            max_tokens: if number == 5 { 4 } else { 20 },
            sampling: SamplingParams { temperature, seed, ..SamplingParams::default() },
            ignore_eos: number >= 10,
            constraint,
            ..Request::new((1..61).collect())
        }
    };
    for number in 0..14 {
        engine.submit(request(number), note(&answers, number)).expect("room");
    }
    run(&mut engine);
    for number in 0..14 {
        let (found, expected) = (of(&answers, number), alone_in(&model, &request(number), Some(96)));
        assert_eq!(found.tokens, expected.tokens, "{number}");
        let (count, reason) = match number {
            4 | 9 => (0, FinishReason::Constraint("thirteen".to_owned())),
            5 => (4, FinishReason::Length),
            0..10 => (9, FinishReason::EndOfText),
            _ => (20, FinishReason::Length),
        };
        assert_eq!((found.tokens.len(), found.reason()), (count, reason), "{number}");
        let step = [2, 3, 7, 1000, 13][number % 5];
        assert!(number >= 10 || found.ids().iter().all(|id| id.is_multiple_of(step)), "{:?}", found.ids());
    }
    assert!(engine.stats().preempted > 0);
    let both = Request { ignore_eos: true, ..request(0) };
    let error = engine.submit(both, note(&answers, 20)).expect_err("refused").to_string();
    assert!(error.contains("ignore_eos"), "{error}");
    // A rule and a constraint that leave nothing.
    let mut nothing = request(3);
    nothing.sampling.rules.suppress_tokens = vec![0];
    let reason = alone(&model, &nothing).reason();
    assert!(
        matches!(&reason, FinishReason::Constraint(why) if why.contains("exclude every token")),
        "{reason:?}"
    );
}

#[test]
fn the_context_ends_an_answer() {
    let model = load(folder("models/llama"));
    let options = EngineOptions { max_batch: 2, context: Some(32), ..EngineOptions::default() };
    let mut engine = Engine::new(&model, options).expect("an engine");
    let answers = Answers::default();
    let request = Request { ignore_eos: true, ..Request::new(vec![1; 30]) };
    engine.submit(request.clone(), note(&answers, 0)).expect("room");
    let full = Request { prompt: vec![2; 32], ..request.clone() };
    engine.submit(full, note(&answers, 1)).expect("room");
    let error = engine.submit(Request { prompt: vec![1; 33], ..request }, note(&answers, 2));
    assert_eq!(error.expect_err("too long"), Rejection::TooLong { prompt: 33, context: 32 });
    run(&mut engine);
    for (number, expected) in [(0, 3), (1, 1)] {
        let answer = of(&answers, number);
        assert_eq!((answer.tokens.len(), answer.reason()), (expected, FinishReason::Length));
    }
}

#[test]
fn bad_requests_and_options_are_refused_before_anything_happens() {
    let model = load(folder("models/llama"));
    let mut engine = Engine::new(&model, EngineOptions::default()).expect("an engine");
    let good = Request::new(vec![1, 2]);
    for (request, words) in [
        (Request::new(Vec::new()), "prompt is empty"),
        (Request::new(vec![1_000_000]), "vocabulary"),
        (Request { max_tokens: 0, ..good.clone() }, "at least 1"),
        (Request { stop: vec!["x".to_owned()], ..good.clone() }, "tokenizer"),
        (
            Request {
                sampling: SamplingParams { top_p: Some(2.0), temperature: 1.0, ..SamplingParams::default() },
                ..good
            },
            "top-p",
        ),
    ] {
        let error = engine.submit(request, Box::new(|_| ControlFlow::Continue(()))).expect_err("refused");
        assert!(error.to_string().contains(words), "{error}");
    }
    assert!(engine.is_idle() && engine.stats().waiting == 0);
    let default = EngineOptions::default();
    for options in [
        EngineOptions { context: Some(1 << 20), ..default },
        EngineOptions { context: Some(64), total_positions: Some(63), ..default },
        EngineOptions { max_batch: 0, ..default },
        EngineOptions { prefill_rows: 0, ..default },
    ] {
        assert!(Engine::new(&model, options).is_err(), "{options:?}");
    }
    let t5 = load(folder("encoders/t5"));
    let error = Engine::new(&t5, default).expect_err("no engine").to_string();
    assert!(error.contains("reads one text and writes another"), "{error}");
}

#[test]
fn a_full_queue_cancellation_and_deadlines() {
    let model = load(folder("models/llama"));
    let options =
        EngineOptions { max_batch: 2, max_waiting: 3, kept_prefixes: 0, ..EngineOptions::default() };
    let mut engine = Engine::new(&model, options).expect("an engine");
    let answers = Answers::default();
    let request = Request { max_tokens: 50, ignore_eos: true, ..Request::new((0..40).collect()) };
    let mut ids = Vec::new();
    for number in 0..3 {
        ids.push(engine.submit(request.clone(), note(&answers, number)).expect("room"));
    }
    let error = engine.submit(request.clone(), note(&answers, 9)).expect_err("full");
    assert_eq!(error, Rejection::Full { waiting: 3 });
    engine.step().expect("a step");
    assert_eq!((engine.stats().active, engine.stats().waiting), (2, 1));
    let free = engine.stats().free_pages;
    // A running one gives its pages back at once, a waiting one its place.
    engine.cancel(ids[0]).expect("cancelled");
    assert!(engine.stats().free_pages > free);
    engine.cancel(ids[2]).expect("cancelled");
    engine.cancel(ids[2]).expect("nothing happens");
    assert_eq!((engine.stats().active, engine.stats().waiting, engine.stats().cancelled), (1, 0, 2));
    for number in [0, 2] {
        assert_eq!(of(&answers, number).reason(), FinishReason::Cancelled);
    }
    // A listener that has gone, and deadlines: of one that runs and one that cannot begin.
    let gone = Request { max_tokens: 5, ..request.clone() };
    engine.submit(gone, Box::new(|_| ControlFlow::Break(()))).expect("room");
    engine.step().expect("a step");
    assert_eq!((engine.stats().active, engine.stats().cancelled), (1, 3));
    let soon = Request { deadline: Some(Instant::now() + Duration::from_millis(30)), ..request.clone() };
    engine.submit(Request { max_tokens: usize::MAX, ..soon }, note(&answers, 3)).expect("room");
    let past = Request { deadline: Some(Instant::now()), ..request };
    engine.submit(past, note(&answers, 4)).expect("room");
    engine.step().expect("a step");
    std::thread::sleep(Duration::from_millis(40));
    run(&mut engine);
    assert_eq!(of(&answers, 3).reason(), FinishReason::Deadline);
    assert!(!of(&answers, 3).tokens.is_empty() && of(&answers, 4).tokens.is_empty());
    assert_eq!(of(&answers, 4).reason(), FinishReason::Deadline);
    assert_eq!(of(&answers, 1).tokens.len(), 50);
    let stats = engine.stats();
    assert_eq!((stats.expired, stats.finished, stats.free_pages), (2, 1, stats.pages));
}

/// Makes the last row of the last contraction NaN while two sequences run.
#[derive(Debug)]
struct Poison;

impl Observer for Poison {
    fn input(&self, site: &Site, _: &str, mut input: ArrayViewMut2<'_, f32>) {
        if site.role == LinearRole::Down && input.nrows() == 2 {
            input.row_mut(1).fill(f32::NAN);
        }
    }
}

#[test]
fn one_failure_is_nobody_elses() {
    let model = load(folder("models/llama"));
    for logprobs in [None, Some(1)] {
        let sampling = SamplingParams { logprobs, ..SamplingParams::default() };
        let request = Request { max_tokens: 6, ignore_eos: true, sampling, ..Request::new(vec![3, 4, 5]) };
        let expected = alone(&model, &request).ids();
        let mut engine = Engine::new(&model, EngineOptions::default()).expect("an engine");
        let answers = Answers::default();
        engine.submit(request.clone(), note(&answers, 0)).expect("room");
        engine.submit(request, note(&answers, 1)).expect("room");
        model.decoder().backend().observe(Some(Arc::new(Poison)));
        run(&mut engine);
        model.decoder().backend().observe(None);
        assert_eq!((of(&answers, 0).ids(), of(&answers, 0).reason()), (expected, FinishReason::Length));
        let FinishReason::Failed(message) = of(&answers, 1).reason() else { panic!("{:?}", of(&answers, 1)) };
        assert!(message.contains("NaN"), "{message}");
        assert_eq!(engine.stats().failed, 1);
    }
}

#[test]
fn texts_end_at_stop_texts_and_stream_as_they_are() {
    let model = load(demo());
    let tokenizer = model.tokenizer().expect("a tokenizer");
    let prompt = tokenizer.encode("It was the best of times", SpecialTokens::Add).expect("ids");
    let request = Request { max_tokens: 60, ..Request::new(prompt) };
    let whole = alone(&model, &request);
    assert_eq!(whole.text(), tokenizer.decode(&whole.ids()).expect("a text"));
    // A stop text in the middle, across tokens.
    let text = whole.text();
    let characters: Vec<char> = text.chars().collect();
    let stop: String = characters[characters.len() / 2..][..5].iter().collect();
    let answer =
        alone(&model, &Request { stop: vec!["never there".to_owned(), stop.clone()], ..request.clone() });
    assert_eq!(answer.text(), text[..text.find(&stop).expect("a part")]);
    assert_eq!(answer.reason(), FinishReason::StopText(stop));
    assert!(answer.tokens.len() < whole.tokens.len());
    // Tokens that are parts of characters, or no UTF-8 at all: nothing but replacement characters.
    let byte =
        (0..2048).find(|id| tokenizer.decode(&[*id]).is_ok_and(|text| text == "\u{FFFD}")).expect("a byte");
    let sampling = SamplingParams { logit_bias: vec![(byte, 100.0)], ..SamplingParams::default() };
    let garbage = alone(&model, &Request { sampling, ..request });
    assert!(garbage.text().chars().all(|character| character == '\u{FFFD}'), "{:?}", garbage.text());
    assert!(garbage.tokens.iter().any(|token| !token.text.is_empty()), "held back for ever");
}

#[test]
fn handles_submit_cancel_drain_and_stop() {
    let model = load(folder("models/llama"));
    let expected = alone(&model, &Request { max_tokens: 12, ..Request::new(vec![7, 8, 9]) }).ids();
    for drain in [true, false] {
        let mut engine = Engine::new(&model, EngineOptions::default()).expect("an engine");
        let (handle, commands) = engine::handle(&engine);
        let answers = Answers::default();
        std::thread::scope(|scope| {
            let engine = &mut engine;
            let driver = scope.spawn(move || rayon::scope(move |_| engine::drive(engine, commands)));
            let ended: Receiver<()> = {
                let (sender, receiver) = channel();
                let mut note = note(&answers, 0);
                let sink = Box::new(move |event: Event| {
                    if matches!(event, Event::Finished(_)) {
                        sender.send(()).expect("a listener");
                    }
                    note(event)
                });
                let request = Request { max_tokens: 12, ..Request::new(vec![7, 8, 9]) };
                handle.submit(request, sink).expect("room");
                receiver
            };
            ended.recv().expect("an end");
            let endless = Request { ignore_eos: true, ..Request::new(vec![1, 2, 3]) };
            let id = handle.submit(endless.clone(), note(&answers, 1)).expect("room");
            handle.submit(Request { max_tokens: 40, ..endless }, note(&answers, 2)).expect("room");
            handle.cancel(id);
            if drain {
                handle.drain()
            } else {
                handle.stop()
            }
            let refused = handle.submit(Request::new(vec![1]), note(&answers, 3));
            assert_eq!(refused.expect_err("shut down"), Rejection::Stopped);
            driver.join().expect("no panic").expect("a good end");
        });
        assert_eq!(of(&answers, 0).ids(), expected);
        assert_eq!(of(&answers, 1).reason(), FinishReason::Cancelled);
        let reason = if drain { FinishReason::Length } else { FinishReason::Cancelled };
        assert_eq!(of(&answers, 2).reason(), reason);
    }
}

#[test]
fn embeddings_of_many_requests() {
    let embedder = Model::load(folder("encoders/bert")).expect("a checkpoint").precision(values());
    let embedder = embedder.embedder().expect("an embedder");
    let texts: Vec<Vec<u32>> =
        (1..20).map(|length| (0..length).map(|at| (at * 5 + length) % 60).collect()).collect();
    let expected: Vec<Vec<f32>> = texts
        .iter()
        .map(|ids| {
            embedder.embed_ids(std::slice::from_ref(ids), |_, _| ()).expect("a vector").row(0).to_vec()
        })
        .collect();
    let (handle, queue) = engine::embed_handle(EmbedOptions { max_waiting: 30 });
    let (sender, vectors) = channel();
    for (number, pair) in texts.chunks(2).enumerate() {
        let sender = sender.clone();
        handle
            .submit(pair.to_vec(), Box::new(move |found| sender.send((number, found)).expect("a listener")))
            .expect("room");
    }
    // An id that is in no vocabulary fails its request alone.
    let (bad, refused) = channel();
    handle
        .submit(vec![vec![1_000_000]], Box::new(move |found| bad.send(found).expect("a listener")))
        .expect("room");
    let error = handle.submit(vec![vec![1]; 30], Box::new(|_| ())).expect_err("full");
    assert_eq!(error, Rejection::Full { waiting: 20 });
    drop(handle);
    engine::serve_embeddings(&embedder, queue);
    drop(sender);
    assert!(refused.recv().expect("an answer").expect_err("no such id").contains("vocabulary"));
    let mut found = 0;
    for (number, vectors) in vectors {
        let vectors = vectors.expect("vectors");
        assert!(vectors[..] == expected[2 * number..2 * number + vectors.len()], "request {number}");
        found += vectors.len();
    }
    assert_eq!(found, texts.len());
}
