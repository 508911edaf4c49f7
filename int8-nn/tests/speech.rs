//! A tiny random Whisper of three languages against spectra, logits and transcripts of Hugging Face transformers
//! (`tools/make_whisper_golden.py`), and a trained one where `INT8_WHISPER` names its folder (`tools/whisper_reference.py`).
#![allow(clippy::print_stderr, reason = "says what it measures and skips")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use int8_core::metrics::relative_l2;
use int8_nn::audio::{LogMel, Recording};
use int8_nn::checkpoint::Source;
use int8_nn::transcriber::{SpeechTask, TranscribeOptions};
use int8_nn::{Model, Transcriber};
use ndarray::Array2;
use serde_json::{Value, json};

use common::{GoldenFile, data, read_json};

fn folder() -> PathBuf {
    data("speech/whisper")
}

fn load() -> int8_nn::Loader {
    Model::load(folder()).expect("a checkpoint")
}

fn matrix(golden: &GoldenFile, name: &str) -> Array2<f32> {
    let shape = golden.shape(name).to_vec();
    Array2::from_shape_vec((shape[0], shape[1]), golden.floats(name).expect("floats")).expect("a matrix")
}

/// The largest difference; NaN is one.
fn largest_difference(found: &Array2<f32>, exact: &Array2<f32>) -> f32 {
    assert_eq!(found.dim(), exact.dim());
    let differences = found.iter().zip(exact).map(|(found, exact)| (found - exact).abs());
    differences.fold(0.0, |largest, next| if largest.is_nan() || next <= largest { largest } else { next })
}

#[test]
fn spectra_agree_with_transformers() {
    let golden = GoldenFile::open(&folder());
    let samples = golden.floats("samples").expect("samples");
    let source = Source::folder(&folder()).expect("a folder");
    let narrow = LogMel::read(&source, 24, 100).expect("settings").spectrum(&samples);
    // Without a file the settings are those of all Whisper models, whose window is 30 seconds.
    let wide = tempfile::tempdir().expect("a folder");
    fs::write(wide.path().join("config.json"), "{}").expect("a file");
    let settings = json!({"feature_extractor": {"chunk_length": 1, "feature_size": 80}});
    fs::write(wide.path().join("processor_config.json"), settings.to_string()).expect("a file");
    let wide = Source::folder(wide.path()).expect("a folder");
    let wide = LogMel::read(&wide, 80, 100).expect("settings").spectrum(&samples);
    for (found, name) in [(narrow, "spectrum"), (wide, "spectrum80")] {
        let exact = matrix(&golden, name);
        let difference = largest_difference(&found, &exact);
        eprintln!("{name}: largest difference {difference:.1e}");
        // transformers computes the transform in f32.
        assert!(difference < 1e-4, "{name}: {difference}");
        let mut wrong = exact.clone();
        wrong[[50, 3]] += 1e-3;
        assert!(largest_difference(&found, &wrong) > 5e-4);
        wrong[[50, 3]] = f32::NAN;
        assert!(largest_difference(&found, &wrong).is_nan());
    }
}

#[test]
fn logits_and_transcripts_agree_with_transformers() {
    let golden = GoldenFile::open(&folder());
    let spectrum = matrix(&golden, "spectrum");
    let targets = golden.ids("decoder_input_ids").expect("ids");
    let (logits, int8_error) =
        (golden.floats("logits").expect("logits"), golden.floats("int8_error").expect("an error")[0]);
    let error = |model: &Transcriber| {
        let found = model.target_logits(spectrum.view(), &targets).expect("logits");
        relative_l2(found.as_slice().expect("contiguous"), &logits)
    };
    let float = load().transcriber().expect("a model");
    let int8 = error(&load().int8().transcriber().expect("a model"));
    let of_float = error(&float);
    eprintln!("whisper: float {of_float:.1e}, LLM.int8() {int8:.2e}, bitsandbytes' {int8_error:.2e}");
    // Not `>`: a NaN is wrong.
    assert!(of_float <= 1e-5 && int8 <= 1.25 * f64::from(int8_error), "{of_float} {int8}");

    let german = TranscribeOptions {
        language: Some("de".to_owned()),
        task: Some(SpeechTask::Translate),
        kv_cache: None,
    };
    for (options, prompt, written) in [
        (TranscribeOptions::default(), "prompt_ids", "greedy_ids"),
        (german, "prompt_de_ids", "greedy_de_ids"),
    ] {
        let found = float.generate_ids(spectrum.view(), &options).expect("a text");
        assert_eq!(
            found,
            (golden.ids(prompt).expect("ids"), golden.ids(written).expect("ids")),
            "{options:?}"
        );
    }
}

/// A recording of two windows and a half at another rate: each window has the language of the first.
#[test]
fn a_long_recording_is_cut_into_windows() {
    let golden = GoldenFile::open(&folder());
    let float = load().transcriber().expect("a model");
    let mut samples = vec![0.0; 20_000];
    samples[..7_200].copy_from_slice(&golden.floats("samples").expect("samples")[..7_200]);
    let recording = Recording { rate: 8_000, samples };
    let mut seen = Vec::new();
    let transcript = float
        .transcribe(recording, &TranscribeOptions::default(), |window| seen.push(window.clone()))
        .expect("a transcript");
    assert_eq!(transcript.windows, seen);
    let ends: Vec<_> = seen.iter().map(|window| window.seconds).collect();
    assert_eq!(ends, [[0.0, 1.0], [1.0, 2.0], [2.0, 2.5]]);
    assert!(["en", "de", "fr"].contains(&transcript.language.as_deref().expect("a language")));
    assert_eq!(transcript.text, seen.iter().map(|window| &*window.text).collect::<String>());
    assert!(seen.iter().all(|window| !window.ids.is_empty()));
}

#[test]
fn what_writes_down_speech_does_nothing_else() {
    let refused = [
        load().build().map(drop),
        load().embedder().map(drop),
        Model::load(data("encoders/t5")).expect("a checkpoint").transcriber().map(drop),
        Model::load(data("models/opt")).expect("a checkpoint").transcriber().map(drop),
    ];
    for (refused, runner) in refused.into_iter().zip(["Transcriber", "Transcriber", "Model", "Model"]) {
        let message = refused.expect_err("refused").to_string();
        assert!(message.contains(&format!("`{runner}` runs it")), "{message}");
    }
    let float = load().transcriber().expect("a model");
    let error = |frames, bands| {
        let spectrum = Array2::zeros((frames, bands));
        float.target_logits(spectrum.view(), &[81]).expect_err("refused").to_string()
    };
    assert!(error(100, 80).contains("80 bands; this model reads 24"), "{}", error(100, 80));
    assert!(error(102, 24).contains("51 positions; this model takes 50"), "{}", error(102, 24));
    let klingon = TranscribeOptions { language: Some("tlh".to_owned()), ..TranscribeOptions::default() };
    let message =
        float.generate_ids(Array2::zeros((100, 24)).view(), &klingon).expect_err("refused").to_string();
    assert!(message.contains("de, en, fr"), "{message}");
}

/// The error of loading the model with these keys of a file changed (`null` removes).
fn error(file: &str, changes: &[(&str, Value)]) -> String {
    let changed = tempfile::tempdir().expect("a folder");
    for entry in fs::read_dir(folder()).expect("a folder") {
        let path = entry.expect("an entry").path();
        fs::copy(&path, changed.path().join(path.file_name().expect("a name"))).expect("a copy");
    }
    let path = changed.path().join(file);
    let mut json = read_json(&path);
    for (key, value) in changes {
        json[*key] = value.clone();
    }
    fs::write(path, json.to_string()).expect("a file");
    let loaded = Model::load(changed.path()).and_then(int8_nn::Loader::transcriber);
    loaded.map(drop).expect_err("refused").to_string()
}

#[test]
fn every_contradiction_is_named() {
    let mut wrong = Vec::new();
    for (file, key, value, words) in [
        ("config.json", "num_mel_bins", json!(null), &["num_mel_bins", "missing"][..]),
        ("config.json", "num_mel_bins", json!(25), &["encoder.conv1.weight", "25"]),
        ("config.json", "d_model", json!(64), &["64", "32"]),
        ("config.json", "max_source_positions", json!(49), &["encoder.embed_positions", "49", "50"]),
        ("config.json", "max_target_positions", json!(25), &["decoder.embed_positions", "25", "24"]),
        ("config.json", "decoder_layers", json!(3), &["decoder.layers.2"]),
        ("config.json", "decoder_attention_heads", json!(3), &["decoder_attention_heads", "3"]),
        ("config.json", "activation_function", json!("snake"), &["activation_function", "snake"]),
        ("config.json", "vocab_size", json!(97), &["decoder.embed_tokens", "97"]),
        ("config.json", "architectures", json!(["WhisperForAudioClassification"]), &["architectures"]),
        ("preprocessor_config.json", "feature_size", json!(80), &["feature_size", "80", "24"]),
        ("preprocessor_config.json", "chunk_length", json!(30), &["chunk_length", "3000", "100"]),
        ("preprocessor_config.json", "dither", json!(0.5), &["dither", "0.5"]),
        ("generation_config.json", "lang_to_id", json!([1]), &["lang_to_id"]),
        ("generation_config.json", "forced_decoder_ids", json!([[1, 2], [4, 5]]), &["forced_decoder_ids"]),
    ] {
        let message = error(file, &[(key, value.clone())]);
        if !words.iter().all(|word| message.contains(word)) {
            wrong.push(format!("{key} {value}: {words:?} not in: {message}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A trained model with `speech.wav` and `golden.safetensors` (`spectrum`, `decoder_input_ids`, `logits`) in its folder.
#[test]
fn a_trained_model_agrees_with_transformers() {
    let Some(folder) = std::env::var_os("INT8_WHISPER") else {
        eprintln!("skipped: INT8_WHISPER names no folder of tools/whisper_reference.py");
        return;
    };
    let folder = Path::new(&folder);
    let golden = GoldenFile::open(folder);
    let recording = Recording::from_wav(&fs::read(folder.join("speech.wav")).expect("a recording"));
    let recording = recording.expect("a recording");
    let targets = golden.ids("decoder_input_ids").expect("ids");
    let (exact, logits) = (matrix(&golden, "spectrum"), golden.floats("logits").expect("logits"));
    let load = || Model::load(folder).expect("a checkpoint");
    for (name, model, bound) in [
        ("float", load().transcriber().expect("a model"), 1e-4),
        ("LLM.int8()", load().int8().transcriber().expect("a model"), 0.2),
    ] {
        assert_eq!(recording.rate, model.log_mel().rate(), "a recording that needs no other rate");
        let spectrum = model.log_mel().spectrum(&recording.samples);
        let difference = largest_difference(&spectrum, &exact);
        let found = model.target_logits(spectrum.view(), &targets).expect("logits");
        let error = relative_l2(found.as_slice().expect("contiguous"), &logits);
        let transcript =
            model.transcribe(recording.clone(), &TranscribeOptions::default(), |_| ()).expect("a text");
        eprintln!(
            "{name}: spectrum at most {difference:.1e} away, logits {error:.1e}; {:?}",
            transcript.text
        );
        assert!(difference < 1e-4 && error < bound);
    }
}
