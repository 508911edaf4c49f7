//! Sessions of several sequences: on the CPU, where a sequence's logits depend on it alone (`Value` granularity), and on the
//! strict mock backend, which holds the model's code to the rules of a device that records graphs.

mod mock;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use int8_core::{OutlierGranularity, Scheme};
use int8_nn::backend::cpu::CpuBackend;
use int8_nn::backend::{Backend, OutlierWeights, Precision, Quantization, RowSelection};
use int8_nn::placement::Devices;
use int8_nn::{GenerateOptions, Loader, Model, Session, SessionOptions};
use mock::{Broken, Mock};

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

fn values() -> Precision {
    let mut config = Scheme::LlmInt8Absmax.config();
    config.outlier_granularity = OutlierGranularity::Value;
    Precision::Int8(Quantization::new(config, OutlierWeights::Exact))
}

fn loader(name: &str, precision: Precision) -> Loader {
    Model::load(folder(name)).expect("a checkpoint").precision(precision)
}

/// A text of `length` ids below 60.
fn text(length: usize, seed: u32) -> Vec<u32> {
    (0..length).map(|at| (u32::try_from(at).expect("short") * 7 + seed * 13) % 60).collect()
}

fn room(sequences: usize, max_positions: usize) -> SessionOptions {
    let rows = 2 * max_positions;
    SessionOptions { sequences, max_rows: rows, max_logits: rows, ..SessionOptions::text(max_positions) }
}

/// The logits of a text's tokens from `from` on, alone in a session of its own.
fn alone<B: Backend>(model: &Model<B>, ids: &[u32], from: usize) -> Vec<f32> {
    let mut session = model.decoder().session(&room(1, ids.len())).expect("a session");
    session.forward(&[(0, ids)]).expect("a forward");
    logits(&mut session, from..ids.len())
}

/// The head is in floating point, and its products sum in another order from 17 rows on: few rows at a time.
fn logits<B: Backend>(session: &mut Session<'_, B>, rows: std::ops::Range<usize>) -> Vec<f32> {
    let mut all = Vec::new();
    for first in rows.clone().step_by(4) {
        let rows = RowSelection::Range(first..rows.end.min(first + 4));
        all.extend_from_slice(session.logits(&rows).expect("logits"));
    }
    all
}

const MODELS: [&str; 13] = [
    "models/gpt2",
    "models/llama",
    "models/bloom",
    "models/opt",
    "models/gpt_neox",
    "goldens/qwen2_windows",
    "goldens/gemma2",
    "goldens/qwen3_moe",
    "goldens/falcon_mamba",
    "goldens/mamba2",
    "goldens/bamba",
    "goldens/falcon_h1",
    "goldens/zamba",
];

/// Whose mixers have recurrent states.
const RECURRENT: [&str; 5] =
    ["goldens/qwen3_5_text", "goldens/qwen3_next", "goldens/kimi_linear", "goldens/minimax", "goldens/lfm3"];

#[test]
fn a_sequence_does_not_see_its_neighbours() {
    for name in MODELS.into_iter().chain(RECURRENT) {
        for precision in [values(), Precision::Int8(Quantization::best())] {
            let model = loader(name, precision).build().expect("a model");
            let (long, short) = (text(40, 1), text(9, 2));
            let mut session = model.decoder().session(&room(2, 42)).expect("a session");
            // The prompts in one forward, then token by token together.
            session.forward(&[(1, &long[..38]), (0, &short[..7])]).expect("a forward");
            let found = logits(&mut session, 0..45);
            let vocabulary = model.config().vocab_size;
            assert!(found[..38 * vocabulary] == alone(&model, &long[..38], 0), "{name}: the long prompt");
            assert!(found[38 * vocabulary..] == alone(&model, &short[..7], 0), "{name}: the short prompt");
            for step in 0..2 {
                session
                    .forward(&[(0, &short[7 + step..8 + step]), (1, &long[38 + step..39 + step])])
                    .expect("a forward");
                let found = logits(&mut session, 0..2);
                assert!(found[..vocabulary] == alone(&model, &short[..8 + step], 7 + step), "{name}: short");
                assert!(found[vocabulary..] == alone(&model, &long[..39 + step], 38 + step), "{name}: long");
            }
        }
    }
}

#[test]
fn forked_sequences_and_pages_that_come_back() {
    for name in MODELS {
        let model = loader(name, values()).build().expect("a model");
        forks_and_releases(&model, name);
    }
}

/// A recurrent state is copied where a forward ended, the last one or the one before, and goes its own way.
#[test]
fn a_state_is_forked_at_the_end_of_a_forward() {
    for name in RECURRENT {
        let model = loader(name, values()).build().expect("a model");
        recurrent_forks(&model, name);
        // The mock has no experts.
        if model.config().experts.is_none() {
            let mock = Arc::new(Mock::new(None));
            recurrent_forks(&loader(name, values()).build_on(mock).expect("a model"), name);
        }
    }
}

fn recurrent_forks<B: Backend>(model: &Model<B>, name: &str) {
    let (base, first, second) = (text(30, 3), text(5, 4), text(6, 5));
    let mut session = model.decoder().session(&room(3, 48)).expect("a session");
    session.forward(&[(0, &base[..21])]).expect("a forward");
    session.forward(&[(0, &base[21..])]).expect("a forward");
    let error = session.fork(0, 1, 25).expect_err("in the middle of a forward").to_string();
    assert!(error.contains("cannot be taken back"), "{error}");
    session.fork(0, 1, 21).expect("a fork");
    session.fork(0, 2, 30).expect("a fork");
    session.forward(&[(1, &first), (2, &second)]).expect("a forward");
    let found = logits(&mut session, 0..11);
    let (to_first, to_second) = ([&base[..21], &first].concat(), [&base[..], &second].concat());
    let vocabulary = model.config().vocab_size;
    assert!(found[..5 * vocabulary] == alone(model, &to_first, 21), "{name}: a fork of a part");
    assert!(found[5 * vocabulary..] == alone(model, &to_second, 30), "{name}: a fork of all");
    session.forward(&[(0, &first)]).expect("a forward");
    let grown = [&base[..], &first].concat();
    assert!(logits(&mut session, 0..5) == alone(model, &grown, 30), "{name}: the origin of the forks");
    session.clear(0).expect("released");
    session.forward(&[(0, &second), (1, &second)]).expect("a forward");
    let found = logits(&mut session, 0..12);
    assert!(found[..6 * vocabulary] == alone(model, &second, 0), "{name}: a sequence begun again");
    let grown = [&to_first[..], &second].concat();
    assert!(found[6 * vocabulary..] == alone(model, &grown, 26), "{name}: a fork whose origin was cleared");
}

/// Forks in the middle of a page and of a text, writes to both sides, and gives pages back to be used again.
fn forks_and_releases<B: Backend>(model: &Model<B>, name: &str) {
    let most = model.config().max_positions.min(96);
    let (base, first, second) = (text(most - 16, 3), text(5, 4), text(6, 5));
    let (held, shared) = (base.len(), base.len() - 10);
    let options = SessionOptions { total_positions: Some(260), ..room(3, most) };
    let mut session = model.decoder().session(&options).expect("a session");
    if model.config().has_recurrent_state() {
        // A state is that of the end of a forward: the last one, or the one before.
        for part in [&base[..1], &base[1..shared], &base[shared..]] {
            session.forward(&[(0, part)]).expect("a forward");
        }
        for middle in [1, shared - 1, shared + 1] {
            let error = session.fork(0, 1, middle).expect_err("in the middle").to_string();
            assert!(error.contains("cannot be taken back"), "{error}");
        }
        assert_eq!(session.len(1), 0);
    } else {
        session.forward(&[(0, &base)]).expect("a forward");
    }
    session.fork(0, 1, shared).expect("a fork");
    session.fork(0, 2, held).expect("a fork");
    assert_eq!([0, 1, 2].map(|sequence| session.len(sequence)), [held, shared, held]);
    session.forward(&[(1, &first), (2, &second)]).expect("a forward");
    let found = logits(&mut session, 0..11);
    let (to_first, to_second) = ([&base[..shared], &first].concat(), [&base[..], &second].concat());
    let vocabulary = model.config().vocab_size;
    assert!(found[..5 * vocabulary] == alone(model, &to_first, shared), "{name}: a fork of a part");
    assert!(found[5 * vocabulary..] == alone(model, &to_second, held), "{name}: a fork of all");
    // The origin did not notice.
    session.forward(&[(0, &second)]).expect("a forward");
    assert!(logits(&mut session, 0..6) == alone(model, &to_second, held), "{name}: the origin of the forks");
    // Released pages serve another text, and what was forked from them stays.
    session.clear(0).expect("released");
    let other = text(held, 6);
    session.forward(&[(0, &other), (1, &second)]).expect("a forward");
    let found = logits(&mut session, 0..held + 6);
    assert!(found[..held * vocabulary] == alone(model, &other, 0), "{name}: pages used again");
    let grown = [&to_first[..], &second].concat();
    assert!(
        found[held * vocabulary..] == alone(model, &grown, shared + 5),
        "{name}: a fork whose origin was cleared"
    );
    assert!(
        session.fork(1, 1, 3).is_err()
            && session.fork(1, 0, held + 2).is_err()
            && session.fork(0, 3, 1).is_err()
    );
}

#[test]
fn a_full_cache_is_an_error_and_nothing_is_lost() {
    let model = loader("models/llama", values()).build().expect("a model");
    let options = SessionOptions { total_positions: Some(128), ..room(2, 96) };
    let mut session = model.decoder().session(&options).expect("a session");
    let (long, more) = (text(90, 1), text(40, 2));
    let error = session.logits(&RowSelection::LastOfSegments).expect_err("nothing was computed");
    assert!(error.to_string().contains("run a forward first"), "{error}");
    session.forward(&[(0, &long)]).expect("a forward");
    let error = session.forward(&[(1, &more)]).expect_err("no pages");
    assert!(error.to_string().contains("KV cache is full"), "{error}");
    assert_eq!((session.len(0), session.len(1)), (90, 0));
    // Sequence 0 alone would have room: it must not keep pages of a forward that did not happen.
    assert!(session.forward(&[(0, &more[..3]), (1, &more)]).is_err());
    session.forward(&[(0, &more[..3])]).expect("room in its own pages");
    let whole = [&long[..], &more[..3]].concat();
    assert!(logits(&mut session, 0..3) == alone(&model, &whole, 90));
    session.clear(0).expect("released");
    session.forward(&[(1, &more)]).expect("room again");
    assert!(logits(&mut session, 0..40) == alone(&model, &more, 0));
}

/// The tokens that a session of two texts generates, and logits of ranges of equal size.
fn transcript<B: Backend>(model: &Model<B>) -> (Vec<u32>, Vec<f32>) {
    let mut session = model.decoder().session(&room(2, 40)).expect("a session");
    let (a, b) = (text(12, 1), text(12, 2));
    let mut seen = Vec::new();
    session.forward(&[(0, &a), (1, &b)]).expect("a forward");
    for rows in [0..4, 4..8, 20..24] {
        seen.extend(logits(&mut session, rows));
    }
    // Another prompt of the same size, and ranges again: the same graphs with other data.
    session.clear(0).expect("released");
    session.clear(1).expect("released");
    session.forward(&[(1, &a), (0, &b)]).expect("a forward");
    for rows in [1..5, 13..17] {
        seen.extend(logits(&mut session, rows));
    }
    let options = GenerateOptions { max_new_tokens: 10, stop_at_eos: false, ..GenerateOptions::default() };
    let text = model.generate_ids(&a, &options, |_| ControlFlow::Continue(())).expect("a text");
    (text.ids, seen)
}

#[test]
fn graphs_that_are_recorded_once_give_what_the_cpu_gives() {
    for name in MODELS.into_iter().filter(|name| !name.contains("moe")) {
        for precision in [Precision::Float, values()] {
            let cpu = loader(name, precision).build().expect("a model");
            let backend = Arc::new(Mock::new(None));
            let model = loader(name, precision).build_on(Arc::clone(&backend)).expect("a model");
            let (expected, found) = (transcript(&cpu), transcript(&model));
            assert_eq!(found.0, expected.0, "{name}: tokens");
            assert!(found.1 == expected.1, "{name}: logits");
            assert!(backend.replays() > 10, "{name}: {} replays", backend.replays());
            if precision != Precision::Float {
                forks_and_releases(&model, name);
            }
        }
    }
}

#[test]
fn an_encoder_and_a_decoder_that_attends_to_it() {
    let (name, source) = ("encoders/t5", text(14, 1));
    let cpu = loader(name, values()).build().expect("a model");
    let model = loader(name, values()).build_on(Arc::new(Mock::new(None))).expect("a model");
    let options = GenerateOptions { max_new_tokens: 8, stop_at_eos: false, ..GenerateOptions::default() };
    let expected = cpu.generate_ids(&source, &options, |_| ControlFlow::Continue(())).expect("a text").ids;
    let found = model.generate_ids(&source, &options, |_| ControlFlow::Continue(())).expect("a text").ids;
    assert_eq!((found.len(), &found), (8, &expected));
}

/// A backend that chooses by their inputs what it keeps of weights sees the input of every int8 layer, once a model is loaded.
#[test]
fn a_calibration_reaches_every_layer() {
    let Precision::Int8(quantization) = values() else { unreachable!("int8") };
    let with_head = Precision::Int8(Quantization { int8_head: true, ..quantization });
    for (name, precision, heads) in
        [("models/llama", values(), 0), ("models/opt", with_head, 1), ("encoders/t5", values(), 0)]
    {
        let mock = Arc::new(Mock::new(None));
        let model = loader(name, precision).build_on(mock.clone()).expect("a model");
        let mut expected: Vec<String> = {
            let linears = model.decoder().linears();
            linears.map(|(_, _, linear)| linear.name().to_owned()).collect()
        };
        let found = mock.calibrated();
        let decoder = found.iter().filter(|name| !name.starts_with("encoder."));
        assert_eq!(decoder.count(), expected.len() + heads, "{name}: {found:?}");
        expected.retain(|name| !found.contains(name));
        assert!(expected.is_empty(), "{name}: {expected:?} saw nothing");
        // Nothing is left of it.
        let statistics = model.decoder().statistics();
        assert!(statistics.iter().all(|(_, layer)| layer.calls == 0), "{name}");
        if name.ends_with("t5") {
            assert!(found.iter().any(|name| name.starts_with("encoder.")), "{found:?}");
        }
    }
    let mock = Arc::new(Mock::new(None));
    let encoder = loader("encoders/bert", values()).embedder_on(mock.clone()).expect("an encoder");
    let all = encoder.encoder().statistics();
    assert_eq!(mock.calibrated().len(), all.len());
}

/// The two rules that an earlier trait broke: the mock would have told.
#[test]
fn broken_rules_are_noticed() {
    for broken in [Broken::Phase, Broken::Selection] {
        let expected = transcript(&loader("models/llama", values()).build().expect("a model"));
        let noticed = std::panic::catch_unwind(|| {
            let model = loader("models/llama", values()).build_on(Arc::new(Mock::new(Some(broken))));
            transcript(&model.expect("a model"))
        });
        assert!(
            noticed.is_err() || noticed.is_ok_and(|found| found != expected),
            "{broken:?} went unnoticed"
        );
    }
}

#[test]
fn a_model_that_needs_what_a_backend_lacks_is_refused_by_name() {
    let error = loader("goldens/qwen3_moe", values()).build_on(Arc::new(Mock::new(None)));
    let error = error.expect_err("no experts").to_string();
    assert!(error.contains("mixtures of experts"), "{error}");
}

/// Blocks on two and on three backends give the bits of one: prompts in several forwards, decode steps, a fork, logits of chosen
/// rows, statistics and the inputs that an observer sees.
#[test]
fn placement_changes_no_bit() {
    let folders = ["models", "goldens"].map(|kind| {
        let all = std::fs::read_dir(folder(kind)).expect("a folder");
        all.map(|entry| entry.expect("an entry").path()).collect::<Vec<_>>()
    });
    let mut placed = 0;
    for folder in folders.concat() {
        let load = |devices: Devices<CpuBackend>, precision| {
            Model::load(&folder).and_then(|loader| loader.precision(precision).build_on(devices))
        };
        let backend = || Arc::new(CpuBackend::new().expect("a backend"));
        for precision in [Precision::Float, values()] {
            // Some folders hold encoders.
            let Ok(one) = load(backend().into(), precision) else { continue };
            if one.decoder().session(&room(1, 1)).is_err() {
                let several = Devices::with_memory(vec![backend(), backend()], vec![1, 1]).expect("devices");
                let error = load(several, precision).expect_err("an encoder").to_string();
                assert!(error.contains("name one device"), "{error}");
                continue;
            }
            let layers = one.config().layers;
            if one.config().on_one_device().is_some() {
                let several = Devices::with_blocks(vec![backend(), backend()], vec![1, layers - 1]);
                let error = load(several.expect("devices"), precision).expect_err("one device").to_string();
                assert!(error.contains("name one device"), "{}: {error}", folder.display());
                continue;
            }
            let expected = placed_logits(&one);
            for count in 2..=3.min(layers) {
                let mut blocks = vec![1; count];
                blocks[0] = layers + 1 - count;
                let several = Devices::with_blocks((0..count).map(|_| backend()).collect(), blocks.clone());
                let several = load(several.expect("devices"), precision).expect("a model");
                assert_eq!(several.decoder().blocks_by_device(), blocks);
                assert!(placed_logits(&several) == expected, "{}: {blocks:?}", folder.display());
                // A transformer that blocks on several devices share lies on each.
                let shares = one.config().shared.is_some();
                assert!(several.footprint().total() >= one.footprint().total());
                assert!(shares || several.footprint() == one.footprint());
                placed += 1;
            }
        }
    }
    assert!(placed > 60, "{placed}");
}

/// Logits of two sequences: a prompt in two forwards, and one forked from its beginning.
fn placed_logits(model: &Model) -> Vec<f32> {
    let most = model.config().max_positions.min(20);
    let ids: Vec<u32> = text(most, 3).iter().map(|id| id % 50).collect();
    let mut session = model.decoder().session(&room(4, most)).expect("a session");
    let (first, rest) = ids[..most - 3].split_at((most - 3) / 2);
    session.forward(&[(0, first)]).expect("a forward");
    let shared = if model.config().has_recurrent_state() { first.len() } else { first.len() / 2 };
    session.fork(0, 1, shared).expect("a fork");
    session.forward(&[(0, rest), (1, &ids[..2])]).expect("a forward");
    let mut found = logits(&mut session, 0..rest.len() + 2);
    for step in 0..3 {
        session.forward(&[(0, &ids[most - 3 + step..][..1]), (1, &ids[step..=step])]).expect("a step");
        found.extend_from_slice(session.logits(&RowSelection::LastOfSegments).expect("logits"));
    }
    session.clear(1).expect("cleared");
    found
}

#[test]
fn placements_that_do_not_fit_are_refused() {
    let backend = || Arc::new(CpuBackend::new().expect("a backend"));
    let error = |devices: Result<Devices<CpuBackend>, int8_nn::Error>| match devices {
        Err(error) => error.to_string(),
        Ok(devices) => {
            let built = loader("models/llama", Precision::Float).build_on(devices);
            built.expect_err("refused").to_string()
        }
    };
    assert!(error(Devices::with_blocks(vec![], vec![])).contains('0'));
    assert!(error(Devices::with_blocks(vec![backend()], vec![1, 1])).contains("2 devices given for 1"));
    let found = error(Devices::with_blocks(vec![backend(), backend()], vec![7, 9]));
    assert!(found.contains("7,9") && found.contains("as the model has"), "{found}");
    let many = (0..99).map(|_| backend()).collect();
    assert!(error(Devices::with_memory(many, vec![1; 99])).contains("99 devices"));
}
