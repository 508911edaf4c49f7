//! Models with random weights, of any shape that `config.json` describes: for measurements, which do not depend on what a model
//! has learned.
//!
//! ```
//! use int8_core::FloatType;
//! use int8_nn::{Loader, synthetic};
//!
//! let config = r#"{"model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
//!     "num_attention_heads": 4, "vocab_size": 100}"#;
//! let checkpoint = synthetic::checkpoint(config, FloatType::Bf16, false)?;
//! let model = Loader::new(checkpoint).int8().build()?;
//! assert_eq!(model.logits(&[5, 17, 42])?.dim(), (3, 100));
//! # Ok::<(), int8_nn::Error>(())
//! ```

use std::borrow::Cow;
use std::collections::BTreeSet;

use int8_core::FloatType;

use crate::Error;
use crate::checkpoint::{Checkpoint, Source, Synthetic, Values};
use crate::config::{BlockKind, DecoderConfig, NormKind, Positions, QueryKeyNorms, RawConfig};
use crate::convert;
use crate::families::{self, LayerNames, MlpNames, TensorNames};
use crate::weights::Part;

/// A checkpoint of the model that `config`, the text of a `config.json`, describes, with random weights of type `float`. `biases`:
/// its linear layers have them. Its weights take some megabytes, whatever the model's size: see the rows of
/// [`FloatMatrix`](crate::weights::FloatMatrix), which overlap here. The norms' gains make 0.1 % of the hidden features outliers
/// of the paper's rule, but where norms follow the residual addition.
///
/// The same arguments give the same weights.
///
/// # Errors
/// When `config` is of no supported decoder family or contradicts itself, or the model has experts.
pub fn checkpoint(config: &str, float: FloatType, biases: bool) -> Result<Checkpoint, Error> {
    let source = Source::embedded([("config.json".to_owned(), Cow::Owned(config.as_bytes().to_vec()))]);
    let raw = RawConfig::read(&source)?;
    let family = families::of(&raw)?;
    let config = (family.config)(&raw)?;
    let tensors = Tensors::of((family.names)(&config), &config, biases)?;
    Ok(Checkpoint::synthetic(source, float, deviation(config.hidden_size, config.gated_mlp), tensors.list)?)
}

/// Standard deviation of the weights: 0.02, what OPT and LLaMA are initialised with, and for more than 4,096 hidden features (1,024 with gates) so
/// much less that the inputs of the contraction do not grow with the width. (OPT-175B's would have a deviation of 2.8, and of 512
/// rows each column would hold an outlier, which no trained model has.) A gate multiplies two of them: a product reaches 6 much
/// sooner.
fn deviation(hidden: usize, gated: bool) -> f32 {
    let width = if gated { 1024 } else { 4096 };
    let share = convert::f64_from(width) / convert::f64_from(hidden.max(width));
    convert::f32_from(0.02 * share.sqrt())
}

/// The tensors of a model, each once.
struct Tensors<'a> {
    config: &'a DecoderConfig,
    root: &'static str,
    biases: bool,
    list: Vec<Synthetic>,
    seen: BTreeSet<String>,
}

impl<'a> Tensors<'a> {
    fn of(names: TensorNames, config: &'a DecoderConfig, biases: bool) -> Result<Self, Error> {
        let root = names.roots.first().copied().unwrap_or_default();
        let mut tensors = Self { config, root, biases, list: Vec::new(), seen: BTreeSet::new() };
        let (hidden, width) = (config.hidden_size, config.embedding_size);
        let below_root = |name: &str| format!("{root}{name}.weight");
        tensors.push(below_root(names.token_embedding), &[config.vocab_size, width], Values::Normal);
        if let (Positions::Learned { offset }, Some(name)) = (&config.positions, names.position_embedding) {
            tensors.push(below_root(name), &[config.max_positions + offset, hidden], Values::Normal);
        }
        for (name, shape) in [(names.project_in, [hidden, width]), (names.project_out, [width, hidden])] {
            if let Some(name) = name {
                tensors.push(below_root(name), &shape, Values::Normal);
            }
        }
        if !config.tied_embeddings {
            tensors.push(format!("{}.weight", names.head), &[config.vocab_size, width], Values::Normal);
        }
        for name in [names.embedding_norm, names.final_norm].into_iter().flatten() {
            tensors.norm(name, hidden);
        }
        for layer in 0..config.layers {
            tensors.block((names.layer)(layer))?;
        }
        Ok(tensors)
    }

    fn block(&mut self, names: LayerNames) -> Result<(), Error> {
        let config = self.config;
        let hidden = config.hidden_size;
        let (queries, keys) = (config.heads * config.head_size, config.kv_heads * config.head_size);
        for name in
            names.attention_norm.iter().chain(&names.mlp_norm).chain(names.branch_norms.iter().flatten())
        {
            self.norm(name, hidden);
        }
        if let Some([of_queries, of_keys]) = &names.query_key_norms {
            let size = config.head_size;
            match config.query_key_norms {
                Some(QueryKeyNorms::EachHead) => {
                    for (name, heads) in [(of_queries, config.heads), (of_keys, config.kv_heads)] {
                        self.push(format!("{}{name}.weight", self.root), &[heads, size], Values::Ones);
                    }
                }
                whole => {
                    let whole = whole == Some(QueryKeyNorms::Whole);
                    self.norm(of_queries, if whole { queries } else { size });
                    self.norm(of_keys, if whole { keys } else { size });
                }
            }
        }
        let further = [
            names.gate.is_some(),
            names.inner_norms.is_some(),
            names.activation.is_some(),
            names.layer_input.is_some(),
            names.streams.is_some(),
            names.scalar.is_some(),
            names.lambdas.is_some(),
            config.shapes.is_some(),
            !config.sources.is_empty(),
            config.values.is_some(),
            config.head_activation.is_some(),
        ];
        if further.contains(&true) {
            return Err(Error::Unsupported(format!("random weights of a {} model", config.family)));
        }
        if names.latent.is_some() {
            return Err(Error::Unsupported("random weights of a model with latent attention".to_owned()));
        }
        let (None, Some(output)) = (names.recurrent, names.attention_output) else {
            return Err(Error::Unsupported(
                "random weights of a model without attention in each block".to_owned(),
            ));
        };
        self.linear(&names.qkv, &[queries, keys, keys], hidden);
        self.linear(&[output], &[hidden], queries);
        let MlpNames::Dense { up, down } = names.mlp else {
            return Err(Error::Unsupported("random weights of a model with experts".to_owned()));
        };
        let wide = config.intermediate_size;
        let outputs: &[usize] = if config.gated_mlp { &[wide, wide] } else { &[wide] };
        self.linear(&up, outputs, hidden);
        self.linear(&[down], &[hidden], wide);
        Ok(())
    }

    /// As [`crate::weights::LinearSource`] finds the parts.
    fn linear(&mut self, parts: &[Part], outputs: &[usize], inputs: usize) {
        let all = [outputs.iter().sum()];
        let outputs = if parts.len() == outputs.len() { outputs } else { &all };
        for (part, outputs) in parts.iter().zip(outputs) {
            let stored = part.stored_rows(*outputs);
            let (name, transposed) = part.stored();
            let shape = if transposed { [inputs, stored] } else { [stored, inputs] };
            if self.biases {
                let module = name.strip_suffix("weight").unwrap_or(&name);
                self.push(format!("{}{module}bias", self.root), &[stored], Values::Normal);
            }
            self.push(format!("{}{name}", self.root), &shape, Values::Normal);
        }
    }

    fn norm(&mut self, name: &str, width: usize) {
        // After a residual addition, the gains of all norms multiply: the outliers would take over.
        let values = match self.config.block {
            BlockKind::PostNorm => Values::Ones,
            BlockKind::PreNorm | BlockKind::Parallel | BlockKind::NormedResidual => Values::Outliers,
        };
        self.push(format!("{}{name}.weight", self.root), &[width], values);
        if self.config.norm == NormKind::LayerNorm {
            self.push(format!("{}{name}.bias", self.root), &[width], Values::Normal);
        }
    }

    fn push(&mut self, name: String, shape: &[usize], values: Values) {
        if self.seen.insert(name.clone()) {
            self.list.push(Synthetic { name, shape: shape.to_vec(), values });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{Loader, Model};

    /// Each family's names and shapes are those of a checkpoint that transformers wrote.
    #[test]
    fn random_models_have_the_tensors_of_real_ones() {
        for (family, biases) in
            [("opt", true), ("llama", false), ("gpt2", true), ("bloom", true), ("gpt_neox", true)]
        {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/models").join(family);
            let real = Checkpoint::open(&folder).expect("a checkpoint");
            let config = std::fs::read_to_string(folder.join("config.json")).expect("config.json");
            let random = checkpoint(&config, FloatType::F16, biases).expect("random weights");
            for tensor in random.tensors() {
                let root = |name: &str| name.strip_prefix("model.").unwrap_or(name).to_owned();
                let same = real.tensors().find(|real| root(real.name()) == root(tensor.name()));
                let same = same.unwrap_or_else(|| panic!("{family} has no {}", tensor.name()));
                assert_eq!(tensor.shape(), same.shape(), "{family}: {}", tensor.name());
            }
            let logits = |loader: Loader| {
                let model: Model = loader.build().expect("a model");
                model.logits(&[1, 2, 3]).expect("logits")
            };
            let float = logits(Loader::new(random.clone()));
            let int8 = logits(Loader::new(random.clone()).int8());
            assert!(float.iter().all(|logit| logit.is_finite()) && float != int8, "{family}");
        }
    }

    #[test]
    fn what_cannot_be_made_up_is_refused() {
        let experts = r#"{"model_type": "mixtral", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 100, "num_local_experts": 4, "num_experts_per_tok": 2}"#;
        for (config, word) in [(experts, "experts"), ("{}", "model_type"), ("[", "config.json")] {
            let error = checkpoint(config, FloatType::F32, false).expect_err("refused").to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
