//! Tiny random checkpoints of encoders against the hidden states of Hugging Face transformers, in a batch of texts of
//! different lengths (`tools/make_encoder_goldens.py`); those of `../shared` where it lies beside the project, with
//! bitsandbytes' LLM.int8() and the int8 checkpoint it wrote; and a trained sentence model where it is in the cache.

mod common;

use std::path::{Path, PathBuf};

use int8_core::metrics::relative_l2;
use int8_core::{Config, OutlierGranularity, Scheme};
use int8_nn::backend::{OutlierWeights, Precision};
use int8_nn::embedder::cosine;
use int8_nn::{Embedder, Error, Model};
use serde_json::{Value, json};

use common::{GoldenFile, data, read_json, shared, with_config};

fn embedder(folder: &Path, precision: Precision) -> Embedder {
    Model::load(folder).expect("a checkpoint").precision(precision).embedder().expect("an encoder")
}

fn int8() -> Precision {
    let config = Scheme::LlmInt8Absmax.config();
    Precision::Int8(int8_nn::backend::Quantization::new(config, OutlierWeights::Exact))
}

/// Token ids of each text, and what is expected for its tokens, one after the other.
struct Golden {
    file: GoldenFile,
    texts: Vec<Vec<u32>>,
}

impl Golden {
    fn read(folder: &Path) -> Self {
        let file = GoldenFile::open(folder);
        let texts = file.texts();
        Self { file, texts }
    }

    /// The rows of `name`, `[texts, longest, hidden]`, that belong to tokens.
    fn states(&self, name: &str) -> Vec<f32> {
        let (longest, hidden) = (self.file.shape(name)[1], self.file.shape(name)[2]);
        let values = self.file.floats(name).expect("states");
        let texts = values.chunks(longest * hidden).zip(&self.texts);
        texts.flat_map(|(states, ids)| states[..ids.len() * hidden].to_vec()).collect()
    }

    fn error(&self, embedder: &Embedder, expected: &[f32]) -> f64 {
        let texts: Vec<&[u32]> = self.texts.iter().map(Vec::as_slice).collect();
        let states = embedder.encoder().hidden_states(&texts).expect("states");
        relative_l2(&states.into_iter().flatten().collect::<Vec<f32>>(), expected)
    }
}

const ENCODERS: [&str; 12] = [
    "bert",
    "roberta",
    "xlm_roberta",
    "distilbert",
    "mpnet",
    "modernbert",
    "nomic_bert",
    "electra",
    "albert",
    "eurobert",
    "deberta_v2",
    "deberta_v2_own",
];

#[test]
fn encoders_agree_with_transformers() {
    let mut wrong = Vec::new();
    for name in ENCODERS {
        let folder = data("encoders").join(name);
        let golden = Golden::read(&folder);
        assert_eq!(golden.texts.iter().map(Vec::len).collect::<Vec<_>>(), [20, 13]);
        let expected = golden.states("last_hidden_state");
        let float = golden.error(&embedder(&folder, Precision::Float), &expected);
        let ours = golden.error(&embedder(&folder, int8()), &expected);
        let theirs = golden.file.floats("int8_error").expect("an error")[0];
        eprintln!(
            "{name}: float {float:.1e}, LLM.int8() {ours:.2e}, with bitsandbytes' outlier weights {theirs:.2e}"
        );
        // Not `>`: a NaN is wrong. Theirs saw the padding, too, so that other columns are outliers.
        if !(float <= 1e-5 && ours <= 1.25 * f64::from(theirs)) {
            wrong.push(name);
        }
    }
    assert!(wrong.is_empty(), "{wrong:?}");
}

/// A text's vector does not depend on its batch; in int8 with `Value` granularity.
#[test]
fn texts_do_not_see_each_other() {
    let folder = data("encoders/bert");
    let golden = Golden::read(&folder);
    let config = Config { outlier_granularity: OutlierGranularity::Value, ..Scheme::LlmInt8Absmax.config() };
    let values = int8_nn::backend::Quantization::new(config, OutlierWeights::Exact);
    for precision in [Precision::Float, Precision::Int8(values)] {
        let embedder = embedder(&folder, precision);
        let together = embedder.embed_ids(&golden.texts, |_, _| ()).expect("vectors");
        for (ids, vector) in golden.texts.iter().zip(together.rows()) {
            let alone = embedder.embed_ids(std::slice::from_ref(ids), |_, _| ()).expect("a vector");
            let off = relative_l2(&alone.row(0).to_vec(), &vector.to_vec());
            assert!(off <= 1e-6, "{precision:?}: off by {off:.1e}");
        }
    }
}

#[test]
fn shared_goldens_and_the_int8_checkpoint_of_bitsandbytes() {
    let Some(shared) = shared("goldens/models") else { return };
    let folder = shared.join("bert");
    let golden = Golden::read(&folder);
    let expected = golden.states("last_hidden_state");
    let float = golden.error(&embedder(&folder, Precision::Float), &expected);
    let ours = golden.error(&embedder(&folder, int8()), &expected);
    let bitsandbytes = golden.states("bnb_int8_last_hidden_state");
    let theirs = relative_l2(&bitsandbytes, &expected);
    let stored = embedder(&shared.join("bert-bnb-int8"), int8());
    let from_theirs = golden.error(&stored, &expected);
    eprintln!(
        "bert: float {float:.1e}, LLM.int8() {ours:.2e}, bitsandbytes {theirs:.2e}, their checkpoint {from_theirs:.2e}"
    );
    assert!(float <= 1e-5, "{float:e}");
    assert!(ours <= theirs, "{ours:e} against {theirs:e}");
    assert!(from_theirs <= 1.1 * theirs, "{from_theirs:e} against {theirs:e}");
}

#[test]
fn sentences_of_a_trained_model() {
    let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    let folder = home.join(".cache/int8-models/minilm");
    if !folder.is_dir() {
        eprintln!("skipped: {} is not there", folder.display());
        return;
    }
    for (precision, tolerance) in [(Precision::Float, 0.002), (int8(), 0.01)] {
        let embedder = embedder(&folder, precision);
        let sentences = ["A man is eating food.", "A man is eating a piece of bread."];
        let vectors = embedder.embed(&sentences, |_, _| ()).expect("vectors");
        let cosine = cosine(vectors.row(0), vectors.row(1));
        eprintln!("{precision:?}: {cosine:.4}");
        assert!((cosine - 0.7553).abs() <= tolerance, "{precision:?}: {cosine}");
        assert_eq!(embedder.settings().max_tokens, 512);
    }
}

#[test]
fn what_an_encoder_cannot_take_is_refused() {
    let embedder = embedder(&data("encoders/bert"), Precision::Float);
    let error =
        |ids: Vec<u32>| embedder.embed_ids(&[vec![5], ids], |_, _| ()).expect_err("refused").to_string();
    assert!(error(vec![]).contains("0 tokens"), "{}", error(vec![]));
    assert!(error(vec![7; 41]).contains("41 tokens; this model takes 1 to 40"), "{}", error(vec![7; 41]));
    assert!(error(vec![96]).contains("96 is not in the vocabulary of 96"), "{}", error(vec![96]));
    assert!(matches!(embedder.embed(&["no tokenizer"], |_, _| ()), Err(Error::Tokenizer(_))));
    assert_eq!(embedder.embed_ids(&[], |_, _| ()).expect("no vectors").dim(), (0, 32));
}

/// The error names the type that runs the model.
#[test]
fn models_of_another_kind_are_refused_with_the_way_out() {
    let encoder = Model::load(data("encoders/bert"))
        .expect("a checkpoint")
        .build()
        .expect_err("no decoder")
        .to_string();
    assert!(encoder.contains("`bert`") && encoder.contains("`Embedder`"), "{encoder}");
    let opt = data("models/opt");
    let decoder = Model::load(opt).expect("a checkpoint").embedder().expect_err("no encoder").to_string();
    assert!(decoder.contains("`opt`") && decoder.contains("`Model`"), "{decoder}");
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Effect {
    /// The states change (that they are right is for the goldens).
    Obeyed,
    /// They stay bit for bit, as in transformers.
    Ignored,
    /// Loading fails, and the error names the key.
    Refused,
}
use Effect::{Ignored, Obeyed, Refused};

fn states(folder: &Path, texts: &[&[u32]]) -> Result<Vec<f32>, Error> {
    let states = Model::load(folder)?.embedder()?.encoder().hidden_states(texts)?;
    Ok(states.into_iter().flatten().collect())
}

/// Keys of `config.json` that transformers' encoders read, and some that they do not.
#[test]
fn keys_are_obeyed_refused_or_ignored() {
    let full = json!(["full_attention", "full_attention", "full_attention", "full_attention"]);
    let turning = |theta: f64| json!({"rope_type": "default", "rope_theta": theta});
    let rows = [
        ("modernbert", "local_attention", json!(4), Obeyed),
        ("modernbert", "layer_types", full, Obeyed),
        ("modernbert", "global_attn_every_n_layers", json!(2), Ignored),
        ("modernbert", "rope_parameters", json!({"sliding_attention": turning(7.0)}), Obeyed),
        ("modernbert", "rope_scaling", json!({"rope_type": "linear", "factor": 2.0}), Refused),
        ("modernbert", "hidden_activation", json!("relu"), Obeyed),
        ("modernbert", "norm_eps", json!(0.5), Obeyed),
        ("modernbert", "classifier_pooling", json!("mean"), Ignored),
        ("nomic_bert", "hidden_act", json!("gelu"), Obeyed),
        ("nomic_bert", "rope_parameters", turning(7.0), Obeyed),
        ("nomic_bert", "layer_norm_eps", json!(0.5), Obeyed),
        ("nomic_bert", "num_experts", json!(8), Refused),
        ("electra", "hidden_act", json!("relu"), Obeyed),
        ("electra", "is_decoder", json!(true), Refused),
        ("electra", "summary_type", json!("last"), Ignored),
        ("albert", "num_hidden_layers", json!(4), Obeyed),
        ("albert", "num_hidden_groups", json!(1), Obeyed),
        ("albert", "inner_group_num", json!(2), Refused),
        ("albert", "hidden_act", json!("gelu"), Obeyed),
        ("eurobert", "rms_norm_eps", json!(0.5), Obeyed),
        ("eurobert", "rope_parameters", turning(7.0), Obeyed),
        ("eurobert", "classifier_pooling", json!("mean"), Ignored),
        ("deberta_v2", "max_relative_positions", json!(12), Obeyed),
        ("deberta_v2", "norm_rel_ebd", json!("none"), Obeyed),
        ("deberta_v2", "pos_att_type", json!("c2p"), Obeyed),
        ("deberta_v2", "relative_attention", json!(false), Obeyed),
        ("deberta_v2", "conv_kernel_size", json!(3), Refused),
        ("deberta_v2", "legacy", json!(false), Ignored),
    ];
    let texts: [&[u32]; 2] = [&[5, 17, 42, 9, 61, 3, 70, 8, 8, 31, 4, 90], &[7]];
    let mut wrong = Vec::new();
    for (name, key, value, effect) in rows {
        let source = data("encoders").join(name);
        let plain = states(&source, &texts).expect("the unchanged checkpoint");
        let mut config = read_json(&source.join("config.json"));
        config[key] = value.clone();
        let found = match states(with_config(&source, &config).path(), &texts) {
            Ok(states) => Ok(if states == plain { Ignored } else { Obeyed }),
            Err(error) if error.to_string().contains(key) => Ok(Refused),
            Err(error) => Err(error.to_string()),
        };
        if found != Ok(effect) {
            wrong.push(format!("{name} {key} = {value}: {found:?}, expected {effect:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Keys that the files of the goldens hold with the default of transformers' configuration class.
#[test]
fn an_absent_key_has_the_default_of_transformers() {
    let rows: [(&str, &[&str]); 6] = [
        (
            "modernbert",
            &["hidden_activation", "norm_eps", "norm_bias", "layer_types", "rope_parameters", "mlp_bias"],
        ),
        ("nomic_bert", &["hidden_act", "layer_norm_eps", "rope_parameters", "type_vocab_size", "head_dim"]),
        ("electra", &["hidden_act", "layer_norm_eps", "type_vocab_size", "is_decoder"]),
        ("albert", &["hidden_act", "layer_norm_eps", "inner_group_num", "type_vocab_size"]),
        ("eurobert", &["hidden_act", "rms_norm_eps", "rope_parameters", "attention_bias", "head_dim"]),
        ("deberta_v2", &["hidden_act", "layer_norm_eps", "type_vocab_size"]),
    ];
    let texts: [&[u32]; 1] = [&[5, 17, 42, 9, 61, 3, 70, 8, 8, 31, 4, 90]];
    let mut wrong = Vec::new();
    for (name, keys) in rows {
        let source = data("encoders").join(name);
        let plain = states(&source, &texts).expect("the unchanged checkpoint");
        let config: Value = read_json(&source.join("config.json"));
        for key in keys {
            let mut config = config.clone();
            if config.as_object_mut().expect("an object").remove(*key).is_none() {
                wrong.push(format!("{name} has no {key}"));
            }
            match states(with_config(&source, &config).path(), &texts) {
                Ok(found) if found == plain => {}
                Ok(_) => wrong.push(format!("{name} without {key}: other states")),
                Err(error) => wrong.push(format!("{name} without {key}: {error}")),
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
