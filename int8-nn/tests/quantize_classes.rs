//! `quantize` selects the layers that transformers' `load_in_8bit` selects for the class that `config.json` names.

use std::collections::BTreeSet;
use std::path::Path;

use int8_nn::checkpoint::{Checkpoint, CheckpointWriter, DType, TensorSpec, WriteOptions};
use int8_nn::quantize::{Kept, Options, Report, quantize_checkpoint};
use serde_json::{Value, json};

/// One checkpoint: its class, more of `config.json`, its weights (without `.weight`) and why they stay, and the skip list.
struct Case {
    class: &'static str,
    config: Value,
    weights: &'static [(&'static str, [usize; 2], Option<Kept>)],
    skip: &'static [&'static str],
}

const WIDE: [usize; 2] = [16, 8];

fn report(folder: &Path, case: &Case) -> Report {
    let specs: Vec<TensorSpec> = case
        .weights
        .iter()
        .map(|(name, shape, _)| TensorSpec {
            name: format!("{name}.weight"),
            dtype: DType::F32,
            shape: shape.to_vec(),
        })
        .collect();
    let source = folder.join("source");
    let mut writer = CheckpointWriter::create(&source, &specs, &WriteOptions::default()).expect("a writer");
    for spec in &specs {
        let values =
            (0..spec.shape.iter().product::<usize>()).map(|at| if at % 3 == 0 { 1.0_f32 } else { -0.25 });
        writer.write(&spec.name, &values.flat_map(f32::to_le_bytes).collect::<Vec<u8>>()).expect("written");
    }
    let mut config = case.config.clone();
    config["architectures"] = json!([case.class]);
    writer.finish(&[("config.json", config.to_string().as_bytes())]).expect("finished");
    let source = Checkpoint::open(&source).expect("a checkpoint");
    quantize_checkpoint(&source, folder.join("int8"), &Options::default(), &mut |_| {}).expect("a result")
}

fn cases() -> Vec<Case> {
    let tied = json!({"model_type": "any", "tie_word_embeddings": true});
    let plain = json!({"model_type": "any", "tie_word_embeddings": false});
    vec![
        // A tied head of another name than lm_head, which has no tensor; the layer before it is converted.
        Case {
            class: "BertForMaskedLM",
            config: tied.clone(),
            weights: &[
                ("bert.embeddings.word_embeddings", WIDE, Some(Kept::Embedding)),
                ("bert.encoder.layer.0.attention.self.query", WIDE, None),
                ("cls.predictions.transform.dense", WIDE, None),
            ],
            skip: &["cls.predictions.decoder"],
        },
        // The name of the head must not cover the layer `lm_head.dense`.
        Case {
            class: "RobertaForMaskedLM",
            config: tied.clone(),
            weights: &[("lm_head.dense", WIDE, None), ("roberta.encoder.layer.0.output.dense", WIDE, None)],
            skip: &["lm_head.decoder"],
        },
        // Heads that are neither output embeddings nor the last parameter are converted.
        Case {
            class: "DistilBertForSequenceClassification",
            config: plain.clone(),
            weights: &[("pre_classifier", WIDE, None), ("classifier", WIDE, None)],
            skip: &[],
        },
        // The last parameter of the model is no bias but a weight.
        Case {
            class: "CLIPModel",
            config: plain.clone(),
            weights: &[("visual_projection", WIDE, None), ("text_projection", WIDE, Some(Kept::Head))],
            skip: &["text_projection"],
        },
        Case {
            class: "DoryModel",
            config: plain.clone(),
            weights: &[
                ("layers.2.mlp.down_proj", WIDE, None),
                ("layers.10.mlp.down_proj", WIDE, Some(Kept::Head)),
                ("layers.9.mlp.down_proj", WIDE, None),
            ],
            skip: &["layers.10.mlp.down_proj"],
        },
        // "embed" in the name of a linear layer.
        Case {
            class: "AlbertModel",
            config: tied.clone(),
            weights: &[
                ("embeddings.word_embeddings", WIDE, Some(Kept::Embedding)),
                ("encoder.embedding_hidden_mapping_in", WIDE, None),
            ],
            skip: &[],
        },
        // Blocks that several layers share: also copies without tensors must stay.
        Case {
            class: "ZambaForCausalLM",
            config: tied,
            weights: &[
                ("model.layers.2.shared_transf.self_attn.q_proj", WIDE, Some(Kept::Tied)),
                ("model.layers.0.mamba.in_proj", WIDE, None),
            ],
            skip: &[
                "lm_head",
                "model.layers.[0-9]+.shared_transf.feed_forward.down_proj",
                "model.layers.[0-9]+.shared_transf.feed_forward.gate_proj",
                "model.layers.[0-9]+.shared_transf.feed_forward.up_proj",
                "model.layers.[0-9]+.shared_transf.self_attn.k_proj",
                "model.layers.[0-9]+.shared_transf.self_attn.o_proj",
                "model.layers.[0-9]+.shared_transf.self_attn.q_proj",
                "model.layers.[0-9]+.shared_transf.self_attn.v_proj",
                "model.layers.2.shared_transf.self_attn.q_proj",
            ],
        },
        // Split on loading: scales would not follow.
        Case {
            class: "HrmTextModel",
            config: plain.clone(),
            weights: &[
                ("H_module.layers.0.mlp.gate_up_proj", WIDE, Some(Kept::Changed)),
                ("L_module.layers.0.mlp.down_proj", WIDE, None),
            ],
            skip: &[
                "H_module.layers.0.mlp.gate_up_proj",
                "H_module.layers.[0-9]+.mlp.gate_proj",
                "H_module.layers.[0-9]+.mlp.up_proj",
                "H_module.layers.[0-9]+.self_attn.gate_proj",
                "H_module.layers.[0-9]+.self_attn.k_proj",
                "H_module.layers.[0-9]+.self_attn.q_proj",
                "H_module.layers.[0-9]+.self_attn.v_proj",
                "L_module.layers.[0-9]+.mlp.gate_proj",
                "L_module.layers.[0-9]+.mlp.up_proj",
                "L_module.layers.[0-9]+.self_attn.gate_proj",
                "L_module.layers.[0-9]+.self_attn.k_proj",
                "L_module.layers.[0-9]+.self_attn.q_proj",
                "L_module.layers.[0-9]+.self_attn.v_proj",
            ],
        },
        // A router that is a parameter beside a gate that is a linear layer, of one row.
        Case {
            class: "Qwen3NextModel",
            config: plain,
            weights: &[
                ("layers.0.mlp.gate", WIDE, Some(Kept::Router)),
                ("layers.0.mlp.shared_expert_gate", [1, 8], None),
                ("layers.0.mlp.experts.0.up_proj", WIDE, Some(Kept::Expert)),
            ],
            skip: &[],
        },
    ]
}

#[test]
fn layers_and_skip_list_are_those_of_the_class() {
    let mut failures = Vec::new();
    for case in cases() {
        let folder = tempfile::tempdir().expect("a folder");
        let report = report(folder.path(), &case);
        assert_eq!(report.class.as_deref(), Some(case.class));
        for (name, _, expected) in case.weights {
            let found = report.kept.iter().find(|kept| kept.name == format!("{name}.weight"));
            let found = found.map(|kept| kept.reason);
            if found != *expected {
                failures.push(format!("{} {name}: {found:?} instead of {expected:?}", case.class));
            }
        }
        let found: BTreeSet<&str> = report.skip_modules.iter().flatten().map(String::as_str).collect();
        let expected: BTreeSet<&str> = case.skip.iter().copied().collect();
        if found != expected {
            failures.push(format!("{}: {found:?} instead of {expected:?}", case.class));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// A class that the table lacks: names and shapes decide, and the report says so.
#[test]
fn an_unknown_class_is_reported() {
    let folder = tempfile::tempdir().expect("a folder");
    let weights = &[("layers.0.q_proj", WIDE, None), ("layers.0.table_embeds", WIDE, Some(Kept::Embedding))];
    let case = Case { class: "SomeNewModel", config: json!({"model_type": "any"}), weights, skip: &[] };
    let report = report(folder.path(), &case);
    assert_eq!(report.class, None);
    assert_eq!(report.int8.len(), 1);
    assert_eq!(report.skip_modules, Some(vec!["lm_head".to_owned()]));
}
