//! Which tensors of a checkpoint are weights of linear layers, for any Hugging Face model.
//!
//! transformers replaces modules that are exactly `nn.Linear` or `Conv1D`; a checkpoint has names and shapes only. The class
//! that `config.json` names decides, by the table in `classes`; next, the names of supported families. For other models
//! the rules below go by name and shape, and in doubt keep a tensor: an unconverted linear layer costs bytes, a converted
//! embedding breaks the model.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde_json::Value;

use super::classes::{self, Class, Code};
use super::patterns::{Globs, ModuleNames};
use crate::checkpoint::{Checkpoint, TensorView};
use crate::config::RawConfig;
use crate::families;

/// Why a tensor stays as stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Kept {
    /// Integers, masks, 8-bit floats.
    NotFloat,
    /// One dimension or none: biases, norms.
    Vector,
    /// Two dimensions, but not a module's `weight`.
    Parameter,
    /// The weight of a module that is no linear layer.
    NotLinear,
    /// A lookup table.
    Embedding,
    /// More than two dimensions.
    Convolution,
    /// More than two dimensions, all experts of a layer at once.
    FusedExperts,
    /// One expert's projection.
    Expert,
    /// A subclass of `nn.Linear`, which transformers does not convert.
    OtherClass,
    /// A router of a mixture of experts.
    Router,
    /// A head: scores tokens or classes.
    Head,
    /// A head tied to the embedding.
    Tied,
    /// transformers always keeps this layer in 32-bit.
    KeptIn32Bit,
    /// The parent module reads the weight directly.
    ReadDirectly,
    /// transformers splits, fuses or renames it on loading.
    Changed,
    /// One row or one column.
    Narrow,
    /// Named by [`Options::skip_modules`](super::Options).
    SkipModules,
    /// Named by [`Options::exclude`](super::Options).
    Excluded,
}

impl fmt::Display for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotFloat => "not floating-point",
            Self::Vector => "bias, norm or other vector",
            Self::Parameter => "parameter that is no layer's `weight`",
            Self::NotLinear => "weight of a module that is no linear layer",
            Self::Embedding => "embedding",
            Self::Convolution => "convolution",
            Self::FusedExperts => "experts fused into one tensor, for which there is no int8 format",
            Self::Expert => "expert of a mixture, 16-bit in transformers",
            Self::OtherClass => "linear layer of a class that transformers does not convert",
            Self::Router => "router of a mixture of experts",
            Self::Head => "output head",
            Self::Tied => "output head tied to the embedding",
            Self::KeptIn32Bit => "kept in 32-bit by transformers",
            Self::ReadDirectly => "weight that its layer does not multiply with itself",
            Self::Changed => "weight that transformers splits, fuses or renames on loading",
            Self::Narrow => "a single row or column",
            Self::SkipModules => "named as a module to skip",
            Self::Excluded => "named by an exclude pattern",
        })
    }
}

/// What happens to a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Decision {
    /// It becomes int8 `[out, in]`.
    Int8 {
        /// It is stored `[in, out]` (Conv1D).
        transposed: bool,
    },
    /// It stays.
    Keep(Kept),
    /// It is tied to a tensor that stays, and is not written again.
    Omit,
}

/// The decisions for a whole checkpoint.
#[derive(Debug)]
pub(super) struct Selection {
    /// In reading order.
    pub(super) decisions: Vec<(String, Decision)>,
    /// `llm_int8_skip_modules` with which transformers decides the same; `None` if its default does.
    pub(super) skip_modules: Option<Vec<String>>,
    /// The class that `config.json` names, if it decided.
    pub(super) class: Option<String>,
}

/// The caller's exceptions from the rules.
pub(super) struct Overrides {
    pub(super) include: Globs,
    pub(super) exclude: Globs,
    /// Replaces the rule for heads.
    pub(super) skip_modules: Option<ModuleNames>,
    pub(super) beyond_transformers: bool,
}

/// Decides for every tensor.
pub(super) fn select(checkpoint: &Checkpoint, config: &Value, overrides: &Overrides) -> Selection {
    let facts = Facts::new(checkpoint, config);
    let mut decisions = Vec::with_capacity(checkpoint.len());
    // Linear layers that stay, as far as is known, with the reason.
    let mut skipped: Vec<(String, Kept)> = Vec::new();
    for tensor in checkpoint.tensors() {
        let decision = facts.decide(&tensor, overrides);
        if let (Decision::Keep(reason), [_, _], Some(module)) =
            (decision, tensor.shape(), tensor.name().strip_suffix(".weight"))
            && !matches!(reason, Kept::Embedding | Kept::NotFloat)
            && !(facts.class.is_some() && facts.code(module) == Some(Code::NotLinear))
        {
            skipped.push((module.to_owned(), reason));
        }
        decisions.push((tensor.name().to_owned(), decision));
    }
    omit_tied(checkpoint, config, &mut decisions);
    let is_default =
        overrides.skip_modules.is_none() && skipped.iter().all(|(_, reason)| *reason == Kept::Head);
    let skip_modules = (!(facts.default_is_known && is_default))
        .then(|| facts.skip_list(checkpoint, &decisions, skipped, overrides));
    Selection { decisions, skip_modules, class: facts.class.map(|(name, _)| name) }
}

/// Omits tied tensors, which PyTorch files hold and safetensors files do not: a head tied to the embedding, and embeddings of
/// encoder and decoder tied to the shared one.
fn omit_tied(checkpoint: &Checkpoint, config: &Value, decisions: &mut [(String, Decision)]) {
    const SHARED: &str = "shared.weight";
    if config.get("tie_word_embeddings").and_then(Value::as_bool) == Some(false) {
        return;
    }
    let root = |name: &str| checkpoint.tied_to(name).unwrap_or(name).to_owned();
    let embedding = |(_, decision): &&(String, Decision)| *decision == Decision::Keep(Kept::Embedding);
    let embeddings: BTreeSet<String> =
        decisions.iter().filter(embedding).map(|(name, _)| root(name)).collect();
    let shared = root(SHARED);
    for (name, decision) in decisions {
        let is_head = matches!(decision, Decision::Keep(Kept::Head | Kept::Tied));
        let is_copy = *decision == Decision::Keep(Kept::Embedding)
            && name != SHARED
            && checkpoint.contains(SHARED)
            && root(name) == shared;
        if is_copy || (is_head && embeddings.contains(&root(name))) {
            *decision = Decision::Omit;
        }
    }
}

/// The weights that the model stores `[in, out]` in floating point, judged by name.
pub(super) fn conv1d_weights(checkpoint: &Checkpoint, config: &Value) -> BTreeSet<String> {
    let facts = Facts::new(checkpoint, config);
    checkpoint.tensors().filter(|tensor| facts.is_transposed(tensor)).map(|t| t.name().to_owned()).collect()
}

/// Heads that may be modules without a tensor.
const HEADS_WITHOUT_TENSOR: [&str; 1] = ["lm_head"];

/// `layers.3.mlp.experts.17.w1` → `layers.3.mlp.experts`: a prefix covers all modules below it.
fn experts_root(module: String) -> String {
    match module.find(".experts.") {
        Some(at) => module[..at + ".experts".len()].to_owned(),
        None => module,
    }
}

/// Facts of the whole checkpoint.
struct Facts {
    /// Weights of linear layers by the family's names, and whether they are stored `[in, out]`.
    family: BTreeMap<String, bool>,
    /// The class that `config.json` names, if the table has it.
    class: Option<(String, Class)>,
    /// Weights of the last layer that transformers keeps.
    last: BTreeSet<String>,
    /// transformers' default skip list is known to be the heads.
    default_is_known: bool,
    /// Vocabulary sizes: the rows of embeddings and heads.
    vocabularies: BTreeSet<u64>,
    tied: bool,
    kept_in_32_bit: Option<ModuleNames>,
    /// Last name components of Conv1D modules.
    conv1d: BTreeSet<String>,
    /// Modules with a fused `in_proj_weight`: nn.MultiheadAttention.
    attentions: BTreeSet<String>,
    /// Layers are a subclass of nn.Linear.
    other_class: bool,
    /// Fused kernels read the weights of [`STATE_SPACE`] directly.
    state_space: bool,
}

/// Model types whose linear layers are Conv1D.
const CONV1D_TYPES: [&str; 5] = ["gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp"];

/// Model types whose linear layers are a subclass of nn.Linear; transformers 5 converts nn.Linear alone.
const OTHER_CLASS_TYPES: [&str; 1] = ["falcon"];

/// Their Conv1D modules.
const CONV1D_LEAVES: [&str; 4] = ["c_attn", "c_proj", "c_fc", "q_attn"];

/// Modules that transformers keeps in 32-bit (`_keep_in_fp32_modules` of 5.23), by model type, whatever the skip list.
const KEPT_IN_32_BIT: [(&str, &[&str]); 14] = [
    ("t5", &["wo"]),
    ("mt5", &["wo"]),
    ("umt5", &["wo"]),
    ("udop", &["wo"]),
    ("pop2piano", &["wo"]),
    ("longt5", &["wo"]),
    ("switch_transformers", &["wo"]),
    ("pix2struct", &["wo"]),
    ("blip-2", &["query_tokens", "qformer"]),
    ("deepseek_v32", &["indexer.weights_proj"]),
    ("glm_moe_dsa", &["indexer.weights_proj"]),
    ("mistral_large4", &["indexer.weights_proj"]),
    ("axk2", &["indexer.weights_proj"]),
    ("rwkv", &["time_decay", "time_first"]),
];

impl Facts {
    fn new(checkpoint: &Checkpoint, config: &Value) -> Self {
        let (mut types, mut vocabularies) = (BTreeSet::new(), BTreeSet::new());
        walk(config, &mut |key, value| {
            if key == "model_type"
                && let Some(name) = value.as_str()
            {
                types.insert(name.to_owned());
            }
            if key.ends_with("vocab_size")
                && let Some(rows) = value.as_u64()
            {
                vocabularies.insert(rows);
            }
        });
        let label = checkpoint.source().label("config.json");
        let family = RawConfig::from_json(label, config.clone())
            .ok()
            .and_then(|raw| families::linear_weights(&raw, checkpoint))
            .unwrap_or_default();
        let class = config.get("architectures").and_then(|names| names.get(0)).and_then(Value::as_str);
        let model_type = config.get("model_type").and_then(Value::as_str).unwrap_or_default();
        let class = class.and_then(|name| Some((name.to_owned(), Class::find(name, model_type)?)));
        let kept: Vec<String> = match &class {
            Some((_, class)) => class.in_32_bit.clone(),
            None => KEPT_IN_32_BIT
                .iter()
                .filter(|(model_type, _)| types.contains(*model_type))
                .flat_map(|(_, modules)| modules.iter().map(|module| (*module).to_owned()))
                .collect(),
        };
        let default_is_known = if family.is_empty() { is_plain_bert(config) } else { is_causal(config) };
        let mut conv1d = conv1d_by_bias(checkpoint);
        if CONV1D_TYPES.iter().any(|name| types.contains(*name)) {
            conv1d.extend(CONV1D_LEAVES.map(str::to_owned));
        }
        let attentions = checkpoint.names().filter_map(|name| name.strip_suffix("in_proj_weight"));
        let tied = tied(config).unwrap_or_else(|| class.as_ref().is_some_and(|(_, class)| class.tied));
        Self {
            last: class.as_ref().map_or_else(BTreeSet::new, |(_, class)| last_layers(checkpoint, class)),
            class,
            default_is_known,
            vocabularies,
            tied,
            kept_in_32_bit: ModuleNames::new(&kept).ok().filter(|_| !kept.is_empty()),
            conv1d,
            attentions: attentions.map(str::to_owned).collect(),
            other_class: OTHER_CLASS_TYPES.iter().any(|name| types.contains(*name)),
            state_space: types.iter().any(|name| name.contains("mamba") || name.contains("jamba")),
            family,
        }
    }

    fn decide(&self, tensor: &TensorView<'_>, overrides: &Overrides) -> Decision {
        let name = tensor.name();
        let module = name.strip_suffix(".weight");
        let is_matrix = tensor.dtype().is_float() && tensor.shape().len() == 2;
        let int8 = || Decision::Int8 { transposed: self.is_transposed(tensor) };
        if let Some(reason) = by_shape(tensor) {
            return Decision::Keep(reason);
        }
        if overrides.exclude.matches(name) {
            return Decision::Keep(Kept::Excluded);
        }
        let Some(module) = module else { return Decision::Keep(Kept::Parameter) };
        if is_matrix && overrides.include.matches(name) {
            return int8();
        }
        if self.kept_in_32_bit.as_ref().is_some_and(|kept| kept.match_module(module)) {
            return Decision::Keep(Kept::KeptIn32Bit);
        }
        if overrides.skip_modules.as_ref().is_some_and(|skip| skip.match_module(module)) {
            return Decision::Keep(Kept::SkipModules);
        }
        let reason = match self.code(module) {
            Some(code) if self.class.is_some() => self.by_code(code, module, tensor.shape(), overrides),
            _ => self.by_name(module, tensor.shape(), overrides),
        };
        reason.map_or_else(int8, Decision::Keep)
    }

    /// What transformers does with a module's weight, if its class or the ending of its name says.
    fn code(&self, module: &str) -> Option<Code> {
        match &self.class {
            Some((_, class)) => class.code(module),
            None => classes::by_ending(module),
        }
    }

    /// Why a weight of a known class does not become int8.
    fn by_code(&self, code: Code, module: &str, shape: &[usize], overrides: &Overrides) -> Option<Kept> {
        match code {
            Code::Int8 | Code::Transposed => None,
            Code::Tied => self.tied.then_some(Kept::Tied),
            Code::LastLayer if !self.last.contains(module) => None,
            // A given list replaces the default one.
            Code::Head | Code::LastLayer => match (&overrides.skip_modules, self.tied) {
                (_, true) if code == Code::Head => Some(Kept::Tied),
                (None, _) => Some(Kept::Head),
                (Some(_), _) => None,
            },
            Code::In32Bit => Some(Kept::KeptIn32Bit),
            Code::Changed => Some(Kept::Changed),
            Code::NotLinear => {
                let expert = module.split('.').any(|part| part == "experts");
                if overrides.beyond_transformers
                    && (expert || (self.other_class && self.family.contains_key(&format!("{module}.weight"))))
                {
                    return None;
                }
                let reason = self.by_name(module, shape, overrides);
                let named =
                    [Kept::Embedding, Kept::Expert, Kept::OtherClass, Kept::Router, Kept::ReadDirectly];
                reason.filter(|reason| named.contains(reason)).or(Some(Kept::NotLinear))
            }
        }
    }

    /// `llm_int8_skip_modules` that covers what stays and nothing that became int8.
    fn skip_list(
        &self,
        checkpoint: &Checkpoint,
        decisions: &[(String, Decision)],
        skipped: Vec<(String, Kept)>,
        overrides: &Overrides,
    ) -> Vec<String> {
        let mut names: BTreeSet<String> =
            skipped.into_iter().map(|(module, _)| experts_root(module)).collect();
        // A tied head has no tensor, but its module must not be replaced.
        match &self.class {
            Some((_, class)) => {
                let mut codes = Vec::new();
                if overrides.skip_modules.is_none() || self.tied {
                    codes.push(Code::Head);
                }
                if self.tied {
                    codes.push(Code::Tied);
                }
                let stored = checkpoint.names().filter_map(|name| name.strip_suffix(".weight"));
                if stored.into_iter().any(|module| self.code(module) == Some(Code::Changed)) {
                    codes.push(Code::Changed);
                }
                names.extend(class.modules(&codes));
            }
            None => names.extend(HEADS_WITHOUT_TENSOR.iter().map(|name| (*name).to_owned())),
        }
        if let Some(given) = &overrides.skip_modules {
            names.extend(given.names().map(str::to_owned));
            if !self.tied && checkpoint.contains("lm_head.weight") && !given.match_module("lm_head") {
                names.remove("lm_head");
            }
        }
        let int8: Vec<&str> = decisions
            .iter()
            .filter(|(_, decision)| matches!(decision, Decision::Int8 { .. }))
            .filter_map(|(name, _)| name.strip_suffix(".weight"))
            .collect();
        let spares = |name: &String| {
            ModuleNames::new(std::slice::from_ref(name))
                .is_ok_and(|names| !int8.iter().any(|module| names.match_module(module)))
        };
        // `lm_head` covers `lm_head.dense` and `my_lm_head`; `lm_head$` neither.
        names
            .into_iter()
            .filter_map(|name| [format!("{name}$"), name].into_iter().rev().find(spares))
            .collect()
    }

    /// Why a module whose weight is a matrix does not become int8.
    fn by_name(&self, module: &str, shape: &[usize], overrides: &Overrides) -> Option<Kept> {
        let parts: Vec<&str> = module.split('.').collect();
        let leaf = parts.last().copied().unwrap_or_default();
        let has = |names: &[&str]| parts.iter().any(|part| names.contains(part));
        if has(&["experts"]) && !overrides.beyond_transformers {
            return Some(Kept::Expert);
        }
        if self.family.contains_key(&format!("{module}.weight")) {
            return (self.other_class && !overrides.beyond_transformers).then_some(Kept::OtherClass);
        }
        // Layers are in numbered lists; heads and embeddings are not.
        let in_list = parts.iter().any(|part| part.bytes().all(|byte| byte.is_ascii_digit()));
        let rows = shape.first().map_or(0, |rows| crate::convert::bytes(*rows));
        let is_head = HEADS.contains(&leaf)
            || leaf.ends_with("_head")
            || has(&CLASSIFIERS)
            || module.ends_with("predictions.decoder")
            || (!in_list && (OUTER_HEADS.contains(&leaf) || self.vocabularies.contains(&rows)));
        let is_embedding = leaf != "embed_out"
            && (parts.iter().any(|part| part.contains("embed") || part.ends_with("_emb")) || has(&TABLES));
        let is_embedding =
            is_embedding && classes::by_ending(module).is_none_or(|code| code == Code::NotLinear);
        if is_embedding {
            return Some(Kept::Embedding);
        }
        if is_head {
            return match (&overrides.skip_modules, self.tied) {
                (_, true) => Some(Kept::Tied),
                (None, false) => Some(Kept::Head),
                // A given list replaces the default one.
                (Some(_), false) => None,
            };
        }
        if ROUTERS.contains(&leaf) || has(&["router"]) {
            return Some(Kept::Router);
        }
        if has(&["norm", "layer_norm", "layernorm", "conv", "conv1d"]) {
            return Some(Kept::Parameter);
        }
        let parent = module.strip_suffix(leaf).unwrap_or_default();
        let in_attention = leaf == "out_proj" && self.attentions.contains(parent);
        if in_attention || (self.state_space && STATE_SPACE.contains(&leaf)) {
            return Some(Kept::ReadDirectly);
        }
        shape.iter().any(|dim| *dim < 2).then_some(Kept::Narrow)
    }

    fn is_transposed(&self, tensor: &TensorView<'_>) -> bool {
        if let Some(transposed) = self.family.get(tensor.name()) {
            return *transposed;
        }
        let module = tensor.name().strip_suffix(".weight").unwrap_or_default();
        if let (Some(_), Some(code)) = (&self.class, self.code(module)) {
            return code == Code::Transposed;
        }
        self.conv1d.contains(module.rsplit('.').next().unwrap_or_default())
    }
}

/// Modules that score tokens.
const HEADS: [&str; 6] =
    ["lm_head", "embed_out", "qa_outputs", "output_projection", "seq_relationship", "score"];

/// Modules that score classes, and all below them.
const CLASSIFIERS: [&str; 4] = ["classifier", "classification_head", "classifiers", "heads"];

/// Names of heads outside the numbered layers.
const OUTER_HEADS: [&str; 5] = ["head", "output", "logits_proj", "proj_out", "decoder"];

/// Lookup tables without "embed" in their names.
const TABLES: [&str; 9] = [
    "wte",
    "wpe",
    "shared",
    "emb",
    "relative_attention_bias",
    "relative_position_bias_table",
    "rel_pos",
    "codebook",
    "token_type",
];

/// Modules that choose experts.
const ROUTERS: [&str; 4] = ["gate", "router", "shared_expert_gate", "wg"];

/// Projections of state-space layers whose weights a fused kernel reads.
const STATE_SPACE: [&str; 3] = ["dt_proj", "x_proj", "out_proj"];

/// The decision by dtype and number of dimensions alone.
fn by_shape(tensor: &TensorView<'_>) -> Option<Kept> {
    if !tensor.dtype().is_float() {
        return Some(Kept::NotFloat);
    }
    match tensor.shape() {
        [] | [_] => Some(Kept::Vector),
        [_, _] => None,
        _ if tensor.name().contains("experts") => Some(Kept::FusedExperts),
        _ if tensor.name().ends_with(".weight") => Some(Kept::Convolution),
        _ => Some(Kept::Parameter),
    }
}

/// Last name components of modules stored `[in, out]`, as the length of the bias shows. A square weight follows the others of
/// its name.
fn conv1d_by_bias(checkpoint: &Checkpoint) -> BTreeSet<String> {
    let mut votes: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for tensor in checkpoint.tensors() {
        let (Some(module), &[rows, columns]) = (tensor.name().strip_suffix(".weight"), tensor.shape()) else {
            continue;
        };
        let Some(bias) = checkpoint.get(&format!("{module}.bias")) else { continue };
        let leaf = module.rsplit('.').next().unwrap_or_default();
        let (straight, transposed) = votes.entry(leaf).or_default();
        match bias.shape() {
            _ if rows == columns => {}
            [length] if *length == columns => *transposed += 1,
            [length] if *length == rows => *straight += 1,
            _ => {}
        }
    }
    let transposed = votes.into_iter().filter(|(_, (straight, transposed))| transposed > straight);
    transposed.map(|(leaf, _)| leaf.to_owned()).collect()
}

/// `tie_word_embeddings` of the model or of its text part.
fn tied(config: &Value) -> Option<bool> {
    let parts = [Some(config), config.get("text_config"), config.get("decoder")];
    parts.into_iter().flatten().find_map(|part| part.get("tie_word_embeddings")?.as_bool())
}

/// Of all modules whose last copy transformers keeps, the copy with the greatest number.
fn last_layers(checkpoint: &Checkpoint, class: &Class) -> BTreeSet<String> {
    let mut last: BTreeMap<String, (Vec<u64>, &str)> = BTreeMap::new();
    for module in checkpoint.names().filter_map(|name| name.strip_suffix(".weight")) {
        if class.code(module) == Some(Code::LastLayer) {
            let numbers =
                module.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse().ok()).collect();
            let found = (numbers, module);
            let entry = last.entry(classes::general(module)).or_insert_with(|| found.clone());
            if *entry < found {
                *entry = found;
            }
        }
    }
    last.into_values().map(|(_, module)| module.to_owned()).collect()
}

/// A language model with or without its head: transformers skips the head alone.
fn is_causal(config: &Value) -> bool {
    let architecture = config.get("architectures").and_then(|names| names.get(0)).and_then(Value::as_str);
    architecture
        .is_some_and(|name| ["ForCausalLM", "LMHeadModel", "Model"].iter().any(|end| name.ends_with(end)))
}

/// `BertModel` without head: transformers skips nothing, since the last parameter is a bias.
fn is_plain_bert(config: &Value) -> bool {
    let is = |key: &str, value: &Value| config.get(key) == Some(value);
    is("model_type", &Value::from("bert")) && is("architectures", &Value::from(vec!["BertModel"]))
}

/// Calls `visit` for every key of every object.
fn walk(value: &Value, visit: &mut dyn FnMut(&str, &Value)) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                visit(key, value);
                walk(value, visit);
            }
        }
        Value::Array(values) => values.iter().for_each(|value| walk(value, visit)),
        _ => {}
    }
}
