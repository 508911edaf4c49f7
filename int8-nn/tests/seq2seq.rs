//! Tiny random encoder-decoders against logits and greedy texts of Hugging Face transformers
//! (`tools/make_encoder_goldens.py`): T5 1.0 (ReLU, tied and scaled head) and 1.1 (gated, a head of its own), UMT5, LongT5, and BART with its
//! relatives.

mod common;

use std::ops::ControlFlow;
use std::path::PathBuf;

use int8_core::metrics::relative_l2;
use int8_nn::backend::KvType;
use int8_nn::{GenerateOptions, LogitRules, Model, PerplexityOptions, Sampling};
use serde_json::{Value, json};

use common::{Case, GoldenFile, LATE, changed, check, data, exactly};

const MODELS: [&str; 9] =
    ["t5", "t5_gated", "umt5", "longt5", "bart", "mbart", "pegasus", "marian", "m2m_100"];

fn folder(name: &str) -> PathBuf {
    data("encoders").join(name)
}

struct Golden {
    sources: Vec<Vec<u32>>,
    targets: Vec<Vec<u32>>,
    /// One text after the other, `[tokens, vocabulary]`.
    logits: Vec<f32>,
    greedy: Vec<u32>,
    int8_error: f64,
}

impl Golden {
    fn read(name: &str) -> Self {
        let file = GoldenFile::open(&folder(name));
        Self {
            sources: file.texts(),
            targets: file.rows("decoder_input_ids"),
            logits: file.floats("logits").expect("logits"),
            greedy: file.ids("greedy_ids").expect("ids"),
            int8_error: f64::from(file.floats("int8_error").expect("an error")[0]),
        }
    }

    fn error(&self, model: &Model) -> f64 {
        let texts = self.sources.iter().zip(&self.targets);
        let logits: Vec<f32> = texts
            .flat_map(|(source, target)| model.target_logits(source, target).expect("logits").into_iter())
            .collect();
        relative_l2(&logits, &self.logits)
    }
}

fn generate(model: &Model, source: &[u32], count: usize, sampling: Sampling) -> Vec<u32> {
    // The goldens have no forced tokens.
    let options = GenerateOptions { sampling, rules: Some(LogitRules::default()), ..exactly(count) };
    model.generate_ids(source, &options, |_| ControlFlow::Continue(())).expect("a text").ids
}

#[test]
fn encoder_decoders_agree_with_transformers() {
    let mut wrong = Vec::new();
    for name in MODELS {
        let golden = Golden::read(name);
        let load = || Model::load(folder(name)).expect("a checkpoint");
        let float = load().build().expect("a model");
        let error = golden.error(&float);
        let int8 = golden.error(&load().int8().build().expect("a model"));
        eprintln!(
            "{name}: float {error:.1e}, LLM.int8() {int8:.2e}, bitsandbytes' {:.2e}",
            golden.int8_error
        );
        // Not `>`: a NaN is wrong.
        if !(error <= 1e-5 && int8 <= 1.25 * golden.int8_error) {
            wrong.push(format!("{name}: logits"));
        }
        let written = generate(&float, &golden.sources[0], golden.greedy.len(), Sampling::Greedy);
        if written != golden.greedy {
            wrong.push(format!("{name}: wrote {written:?} instead of {:?}", golden.greedy));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A text generated token by token has the logits of the same text at once.
#[test]
fn sampled_texts_are_likely_and_repeatable() {
    let golden = Golden::read("t5");
    let model = Model::load(folder("t5")).expect("a checkpoint").int8().build().expect("a model");
    let sampling = |seed| Sampling::Random { temperature: 1.0, top_k: Some(3), top_p: None, seed };
    let source = &golden.sources[1];
    let written = generate(&model, source, 10, sampling(1));
    assert_eq!(written, generate(&model, source, 10, sampling(1)));
    assert_ne!(written, generate(&model, source, 10, sampling(2)));
    let targets = [&[0], &written[..9]].concat();
    let logits = model.target_logits(source, &targets).expect("logits");
    for (row, id) in logits.rows().into_iter().zip(&written) {
        let chosen = row[usize::try_from(*id).expect("small")];
        // int8 columns are chosen over the rows of a step, so that a step of one differs a little.
        let larger = row.iter().filter(|logit| **logit > chosen + 0.2).count();
        assert!(larger < 3, "token {id} was none of the three most probable");
    }
}

#[test]
fn what_reads_and_writes_cannot_continue() {
    let model = Model::load(folder("t5")).expect("a checkpoint").build().expect("a model");
    assert!(model.answers());
    let options = PerplexityOptions { window: 4, windows: None, kv_cache: KvType::F32 };
    let refused = [
        model.logits(&[5, 6]).map(drop),
        model.perplexity(&[5, 6, 7, 8], &options, |_, _| ()).map(drop),
        Model::load(folder("t5")).expect("a checkpoint").embedder().map(drop),
    ];
    for refused in refused {
        let message = refused.expect_err("refused").to_string();
        assert!(
            message.contains("t5") && (message.contains("`Model`") || message.contains("about another one")),
            "{message}"
        );
    }
    let error = |ids: &[u32]| {
        let options = GenerateOptions::default();
        model.generate_ids(ids, &options, |_| ControlFlow::Continue(())).expect_err("refused").to_string()
    };
    assert!(error(&[]).contains("empty"), "{}", error(&[]));
    assert!(error(&[96]).contains("96 is not in the vocabulary of 96"), "{}", error(&[96]));
    let decoder = Model::load(data("models/opt")).expect("a checkpoint").build().expect("a model");
    let message = decoder.target_logits(&[5], &[6]).expect_err("no source").to_string();
    assert!(message.contains("opt") && message.contains("continues"), "{message}");
}

/// M2M100 counts the tokens that are no padding: one that is has no position.
#[test]
fn padding_without_a_position_is_refused() {
    let model = Model::load(folder("m2m_100")).expect("a checkpoint").build().expect("a model");
    for (source, target) in [(&[5, 1, 6][..], &[2, 7][..]), (&[5, 6], &[2, 1])] {
        let message = model.target_logits(source, target).expect_err("refused").to_string();
        assert!(message.contains("1 is padding"), "{message}");
    }
}

/// The error of loading and running a checkpoint with these keys of its `config.json` changed (`null` removes).
fn error(name: &str, changes: &[(&str, Value)]) -> Result<(), String> {
    let folder = changed(&folder(name), changes);
    let loader = Model::load(folder.path()).map_err(|error| error.to_string())?.int8();
    if MODELS.contains(&name) {
        let model = loader.build().map_err(|error| error.to_string())?;
        model.target_logits(&[5, 17, 42], &[0, 7]).map(drop)
    } else {
        let embedder = loader.embedder().map_err(|error| error.to_string())?;
        embedder.embed_ids(&[vec![5, 17, 42]], |_, _| ()).map(drop)
    }
    .map_err(|error| format!("{LATE}: {error}"))
}

#[test]
fn every_contradiction_is_named() {
    let cases: Vec<Case> = vec![
        ("t5", vec![("d_model", json!(null))], vec!["config.json", "d_model", "missing"]),
        ("t5", vec![("d_model", json!(64))], vec!["model.safetensors", "64", "32"]),
        ("t5", vec![("d_kv", json!(8))], vec!["SelfAttention.q", "32", "48"]),
        ("t5", vec![("num_heads", json!(0))], vec!["config.json", "num_heads", "1 to"]),
        ("t5", vec![("num_layers", json!(3))], vec!["model.safetensors", "encoder.block.2"]),
        ("t5", vec![("num_decoder_layers", json!(4))], vec!["model.safetensors", "decoder.block.3"]),
        ("t5", vec![("vocab_size", json!(97))], vec!["shared.weight", "97", "96"]),
        ("t5", vec![("d_ff", json!(65))], vec!["DenseReluDense.wi", "65", "64"]),
        ("t5", vec![("feed_forward_proj", json!("gated-gelu"))], vec!["DenseReluDense.wi_0"]),
        ("t5", vec![("feed_forward_proj", json!("gated-maybe"))], vec!["feed_forward_proj", "gated-maybe"]),
        ("t5", vec![("feed_forward_proj", json!(3))], vec!["feed_forward_proj", "string"]),
        ("t5", vec![("relative_attention_num_buckets", json!(3))], vec!["num_buckets", "3", "4"]),
        (
            "t5",
            vec![("relative_attention_num_buckets", json!(10))],
            vec!["relative_attention_bias", "10", "8"],
        ),
        ("t5", vec![("relative_attention_max_distance", json!(4))], vec!["max_distance", "4", "5"]),
        ("t5", vec![("relative_attention_max_distance", json!(1_u64 << 30))], vec!["max_distance", "65536"]),
        ("t5", vec![("layer_norm_epsilon", json!(-1))], vec!["layer_norm_epsilon", "-1"]),
        ("t5", vec![("decoder_start_token_id", json!(96))], vec!["decoder_start_token_id", "96"]),
        ("t5", vec![("scale_decoder_outputs", json!("yes"))], vec!["scale_decoder_outputs", "true or false"]),
        ("t5", vec![("model_type", json!("t6"))], vec!["t6", "supported", "mt5"]),
        ("t5_gated", vec![("feed_forward_proj", json!("relu"))], vec!["DenseReluDense.wi"]),
        ("umt5", vec![("num_heads", json!(2))], vec!["relative_attention_bias", "[8, 2]"]),
        ("umt5", vec![("model_type", json!("t5")), ("num_layers", json!(3))], vec!["encoder.block.2"]),
        (
            "longt5",
            vec![("encoder_attention_type", json!("transient-global"))],
            vec!["encoder_attention_type", "transient-global", "local"],
        ),
        ("longt5", vec![("local_radius", json!(-1))], vec!["local_radius", "-1"]),
        ("bart", vec![("d_model", json!(null))], vec!["config.json", "d_model", "missing"]),
        ("bart", vec![("encoder_attention_heads", json!(5))], vec!["encoder_attention_heads", "5", "32"]),
        ("bart", vec![("encoder_ffn_dim", json!(48))], vec!["model.encoder.layers.0.fc1", "48", "64"]),
        ("bart", vec![("decoder_ffn_dim", json!(64))], vec!["model.decoder.layers.0.fc1", "64", "48"]),
        ("bart", vec![("max_position_embeddings", json!(41))], vec!["encoder.embed_positions", "43", "42"]),
        ("bart", vec![("vocab_size", json!(97))], vec!["model.shared.weight", "97", "96"]),
        ("bart", vec![("decoder_layers", json!(3))], vec!["model.decoder.layers.2"]),
        ("bart", vec![("activation_function", json!("snake"))], vec!["activation_function", "snake"]),
        ("bart", vec![("decoder_start_token_id", json!(96))], vec!["decoder_start_token_id", "96"]),
        ("bart", vec![("scale_embedding", json!(2))], vec!["scale_embedding", "true or false"]),
        ("bart", vec![("model_type", json!("mbart"))], vec!["encoder.layer_norm"]),
        ("pegasus", vec![("max_position_embeddings", json!(39))], vec!["embed_positions", "39", "40"]),
        (
            "marian",
            vec![("share_encoder_decoder_embeddings", json!(false))],
            vec!["share_encoder_decoder_embeddings", "different embeddings"],
        ),
        ("bert", vec![("hidden_size", json!(31))], vec!["num_attention_heads", "4", "31"]),
        ("bert", vec![("hidden_size", json!(64))], vec!["word_embeddings", "64", "32"]),
        ("bert", vec![("max_position_embeddings", json!(41))], vec!["position_embeddings", "41", "40"]),
        ("bert", vec![("type_vocab_size", json!(3))], vec!["token_type_embeddings", "3", "2"]),
        ("bert", vec![("num_hidden_layers", json!(3))], vec!["encoder.layer.2"]),
        ("bert", vec![("intermediate_size", json!(63))], vec!["intermediate.dense", "63", "64"]),
        ("bert", vec![("hidden_act", json!("gelu_maybe"))], vec!["hidden_act", "gelu_maybe"]),
        ("bert", vec![("layer_norm_eps", json!("small"))], vec!["layer_norm_eps", "small"]),
        ("bert", vec![("position_embedding_type", json!("relative_key"))], vec!["relative_key", "absolute"]),
        ("bert", vec![("is_decoder", json!(true))], vec!["is_decoder"]),
        ("roberta", vec![("pad_token_id", json!(39))], vec!["max_position_embeddings", "40"]),
        ("roberta", vec![("pad_token_id", json!(-1))], vec!["pad_token_id", "-1"]),
        ("distilbert", vec![("dim", json!(null))], vec!["config.json", "dim", "missing"]),
        ("distilbert", vec![("n_heads", json!(5))], vec!["n_heads", "5", "32"]),
        ("distilbert", vec![("hidden_dim", json!(65))], vec!["ffn.lin1", "65", "64"]),
        (
            "mpnet",
            vec![("relative_attention_num_buckets", json!(30))],
            vec!["relative_attention_bias", "30", "32"],
        ),
    ];
    check(cases, error);
}

/// The unchanged checkpoints load: a table of errors could otherwise pass because nothing does.
#[test]
fn the_unchanged_checkpoints_run() {
    for name in MODELS.into_iter().chain(["bert", "roberta", "distilbert", "mpnet"]) {
        assert_eq!(error(name, &[]), Ok(()), "{name}");
    }
    // The multilingual models are of the same architecture and never scale.
    let multilingual = [("model_type", json!("mt5")), ("scale_decoder_outputs", json!(null))];
    assert_eq!(error("t5_gated", &multilingual), Ok(()));
}
