//! The output head in int8.

mod common;

use std::path::Path;

use int8_core::metrics::relative_l2;
use int8_core::{OutlierRule, Scheme};
use int8_nn::Model;
use int8_nn::backend::{OutlierWeights, Precision, Quantization};

use common::{IDS, families};

fn model(folder: &Path, precision: Precision) -> Model {
    Model::load(folder).and_then(|loader| loader.precision(precision).build()).expect("a model")
}

/// An int8 head changes the logits, by no more than one int8 layer.
#[test]
fn it_costs_what_one_layer_costs() {
    for folder in families() {
        let name = folder.display();
        for (quantization, most) in [
            (Quantization::new(Scheme::LlmInt8Absmax.config(), OutlierWeights::Exact), 0.02),
            (Quantization::best(), 0.02),
        ] {
            let with =
                |int8_head| model(&folder, Precision::Int8(Quantization { int8_head, ..quantization }));
            let logits =
                |model: &Model| model.logits(&IDS).expect("logits").iter().copied().collect::<Vec<_>>();
            let (plain, int8) = (with(false), with(true));
            let moved = relative_l2(&logits(&int8), &logits(&plain));
            eprintln!("{name}: {moved:.1e}");
            assert!(0.0 < moved && moved < most, "{name}: {moved:e}");
        }
    }
}

/// An untied int8 head is smaller; a tied one takes its bytes beside the embedding, which stays.
#[test]
fn its_bytes_are_counted() {
    let config = int8_core::Config { rule: OutlierRule::None, ..Scheme::LlmInt8Absmax.config() };
    let (mut tied, mut own) = (0, 0);
    for folder in families() {
        let quantization = Quantization::new(config, OutlierWeights::Dequantized);
        let with = |int8_head| model(&folder, Precision::Int8(Quantization { int8_head, ..quantization }));
        let [plain, int8] = [false, true].map(|int8_head| with(int8_head).decoder().footprint());
        assert_eq!((plain.linear, plain.embedding_weights), (int8.linear, int8.embedding_weights));
        if with(false).config().tied_embeddings {
            tied += 1;
            assert!(int8.embedding > plain.embedding, "{}", folder.display());
        } else {
            own += 1;
            assert!(int8.embedding < plain.embedding, "{}", folder.display());
        }
    }
    assert!(tied > 0 && own > 0, "a folder of each kind: {tied} and {own}");
}
