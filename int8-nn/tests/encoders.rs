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

use common::{GoldenFile, data, shared};

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
