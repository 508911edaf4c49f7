//! Generation and scoring with each type of KV cache.

mod common;

use std::ops::ControlFlow;

use int8_core::metrics::relative_l2;
use int8_cpu::Kernel;
use int8_nn::backend::{KvType, RowSelection};
use int8_nn::checkpoint::DType;
use int8_nn::{GenerateOptions, Generation, Model, PerplexityOptions, SessionOptions};

use common::{IDS, exactly, families, float};

/// Logits of all tokens, `rows` of them a forward.
fn logits(model: &Model, kv_cache: KvType, rows: usize) -> Vec<f32> {
    let options = SessionOptions { kv_cache, max_rows: rows, ..SessionOptions::text(IDS.len()) };
    let mut session = model.decoder().session(&options).expect("a session");
    let mut logits = Vec::new();
    for ids in IDS.chunks(rows) {
        session.forward(&[(0, ids)]).expect("a forward");
        logits.extend_from_slice(session.logits(&RowSelection::Range(0..ids.len())).expect("logits"));
    }
    logits
}

fn generate(model: &Model, kv_cache: Option<KvType>) -> Generation {
    let options = GenerateOptions { kv_cache, ..exactly(8) };
    model.generate_ids(&IDS, &options, |_| ControlFlow::Continue(())).expect("a text")
}

/// The KV cache has the checkpoint's type unless set, with int8 weights bf16 instead of f16 where tiles multiply it; 16 bits take half
/// the bytes.
#[test]
fn the_cache_has_the_chosen_type() {
    for folder in families() {
        let loader = Model::load(&folder).expect("a checkpoint");
        let stored = match loader.checkpoint().tensors().next().expect("a tensor").dtype() {
            DType::F16 => KvType::F16,
            DType::BF16 => KvType::Bf16,
            _ => KvType::F32,
        };
        let with_int8 = match stored {
            KvType::F16 if Kernel::best().attends_on_bf16_tiles() => KvType::Bf16,
            stored => stored,
        };
        let models = [(float(&folder), stored), (loader.int8().build().expect("a model"), with_int8)];
        for (model, stored) in models {
            let auto = generate(&model, None);
            assert_eq!(
                (auto.kv_cache, model.decoder().kv_cache_type()),
                (stored, stored),
                "{}",
                folder.display()
            );
            assert_eq!(generate(&model, Some(stored)).ids, auto.ids);
            let wide = generate(&model, Some(KvType::F32));
            for element in KvType::ALL {
                let text = generate(&model, Some(element));
                assert_eq!((text.kv_cache, text.ids.len()), (element, 8));
                let size = model.config().head_size;
                // Values lie in panels of 32 columns, whose padding has no scale.
                let (found, all) = (text.kv_cache_bytes, wide.kv_cache_bytes);
                match element.float() {
                    Some(float) => assert_eq!(found * 4, all * float.bytes()),
                    None => {
                        let scales = all / (size + size.next_multiple_of(32)) * 2;
                        assert_eq!(found, all / 4 + scales, "{}", folder.display());
                    }
                }
            }
            assert!(wide.kv_cache_bytes > 0);
        }
    }
}

/// Keys and values are rounded when written: a text at once equals the text token by token.
#[test]
fn steps_do_not_matter() {
    for folder in families() {
        let model = float(&folder);
        for element in KvType::ALL {
            let at_once = logits(&model, element, IDS.len());
            for step in [1, 5] {
                assert!(logits(&model, element, step) == at_once, "{} {element:?} {step}", folder.display());
            }
        }
    }
}

/// A plain session has f32; bf16, with an eighth of f16's precision, is further off, and int8 is about as far.
#[test]
fn fewer_bits_are_further_off() {
    for folder in families() {
        let model = float(&folder);
        let exact = logits(&model, KvType::F32, IDS.len());
        assert_eq!(model.logits(&IDS).expect("logits").as_slice(), Some(&exact[..]));
        let [f16, bf16, int8] = [KvType::F16, KvType::Bf16, KvType::Int8]
            .map(|element| relative_l2(&logits(&model, element, IDS.len()), &exact));
        eprintln!("{}: f16 {f16:.1e}, bf16 {bf16:.1e}, int8 {int8:.1e}", folder.display());
        assert!(0.0 < f16 && f16 < bf16, "{}: f16 {f16:e}, bf16 {bf16:e}", folder.display());
        // Half a step of 1/127 of the largest number of a vector, where bf16 has at most 1/256 of the number itself.
        assert!(f16 < int8 && int8 < 8.0 * bf16, "{}: int8 {int8:e}, bf16 {bf16:e}", folder.display());

        let score = |kv_cache| {
            let options = PerplexityOptions { window: IDS.len(), windows: None, kv_cache };
            model.perplexity(&IDS, &options, |_, _| {}).expect("a perplexity").mean_nll
        };
        let plain = score(KvType::F32);
        assert!(score(KvType::F16) != plain && (score(KvType::F16) - plain).abs() < 0.01 * plain);
    }
}
