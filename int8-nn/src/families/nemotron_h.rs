//! Nemotron-H and Nemotron 3 (NVIDIA, 2025): each block is one of Mamba-2, attention without positions, an MLP, or experts.

use serde_json::{Value, json};

use super::mamba::step_limits;
use super::{
    ExpertNames, Family, LayerNames, MlpNames, Module, RecurrentNames, StateSpaceNames, TensorNames, moe,
};
use crate::Error;
use crate::config::{
    Biases, BlockSet, DecoderConfig, ExpertsConfig, GatedNorm, Mixer, NormKind, RawConfig, RecurrentMixer,
    Scan, StateSpace,
};

pub(crate) const FAMILY: Family = Family { model_types: &["nemotron_h"], config, names };

/// What a block is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Recurrent,
    Attention,
    Mlp,
    Experts,
}

fn config(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    let raw = &RENAMED.iter().fold(raw.clone(), |raw, (old, new)| raw.renamed(old, new));
    let kinds = kinds(raw)?;
    let latent = "moe_latent_size";
    if raw.get(latent).is_some() {
        return Err(raw.problem(latent, "is set; experts behind a latent projection are not implemented"));
    }
    let (hidden_size, layers) = (raw.size_or("hidden_size", 4096)?, kinds.len());
    let heads = raw.size_or("num_attention_heads", 32)?;
    let eps = raw.float_or("layer_norm_epsilon", 1e-5)?;
    let of_kind = |kind: Kind| (0..layers).filter(|index| kinds[*index] == kind).collect::<Vec<_>>();
    let [recurrent, attending, dense, sparse] =
        [Kind::Recurrent, Kind::Attention, Kind::Mlp, Kind::Experts].map(of_kind);
    let mixer = |index: usize| match (recurrent.contains(&index), attending.contains(&index)) {
        (true, _) => Mixer::Recurrent,
        (_, true) => Mixer::Attention,
        _ => Mixer::None,
    };
    let mlps = (0..layers).map(|index| dense.contains(&index) || sparse.contains(&index)).collect();
    let biased = raw.flag_or("mlp_bias", false)?;
    DecoderConfig {
        family: "nemotron_h",
        vocab_size: raw.size_or("vocab_size", 131_072)?,
        hidden_size,
        embedding_size: hidden_size,
        layers,
        heads,
        kv_heads: raw
            .size_or("num_key_value_heads", if raw.is_null("num_key_value_heads") { heads } else { 8 })?,
        head_size: raw.size_or("head_dim", 128)?,
        intermediate_size: raw.size_or("intermediate_size", 21504)?,
        max_positions: raw.size_or("max_position_embeddings", 4096)?,
        norm: NormKind::RmsNorm,
        norm_eps: eps,
        activation: raw.activation("mlp_hidden_act", "relu2")?,
        tied_embeddings: raw.flag_or("tie_word_embeddings", false)?,
        eos_token_ids: raw.with_defaults(&[("eos_token_id", json!(2))]).token_ids("eos_token_id")?,
        biases: Biases::of(false, biased),
        experts: if sparse.is_empty() { None } else { Some(experts(raw, layers, &sparse)?) },
        mixers: Some((0..layers).map(mixer).collect()),
        recurrent: if recurrent.is_empty() { None } else { Some(state_space(raw, eps)?) },
        mlps: Some(BlockSet::Marked(mlps)),
        ..DecoderConfig::default()
    }
    .validate(raw)
}

/// Names of keys in older files, and today's.
const RENAMED: [(&str, &str); 5] = [
    ("mamba_n_groups", "n_groups"),
    ("mamba_d_conv", "conv_kernel"),
    ("mamba_dt_min", "time_step_min"),
    ("mamba_conv_bias", "use_conv_bias"),
    ("layer_types", "layers_block_type"),
];

/// The kinds of the blocks: a list of names, or, in older files, a text of one letter each.
fn kinds(raw: &RawConfig) -> Result<Vec<Kind>, Error> {
    const LIST: &str = "layers_block_type";
    const LETTERS: &str = "hybrid_override_pattern";
    let named = |value: &Value| match value.as_str() {
        Some("linear_attention" | "mamba") => Ok(Kind::Recurrent),
        Some("full_attention" | "attention") => Ok(Kind::Attention),
        Some("mlp") => Ok(Kind::Mlp),
        Some("moe") => Ok(Kind::Experts),
        _ => {
            let known = "linear_attention, full_attention, mlp, moe";
            Err(raw.problem(LIST, format!("has {value}; implemented: {known}")))
        }
    };
    let lettered = |letter: char| match letter {
        'M' => Ok(Kind::Recurrent),
        '*' => Ok(Kind::Attention),
        '-' => Ok(Kind::Mlp),
        'E' => Ok(Kind::Experts),
        other => Err(raw.problem(LETTERS, format!("has {other:?}; implemented: M, *, -, E"))),
    };
    let kinds: Vec<Kind> = match (raw.get(LIST), raw.get(LETTERS)) {
        (Some(Value::Array(list)), _) => list.iter().map(named).collect::<Result<_, _>>()?,
        (Some(other), _) => return Err(raw.problem(LIST, format!("is {other}; expected a list"))),
        (None, Some(_)) => raw.text_or(LETTERS, "")?.chars().map(lettered).collect::<Result<_, _>>()?,
        (None, None) => vec![Kind::Recurrent, Kind::Experts, Kind::Attention, Kind::Mlp],
    };
    if kinds.is_empty() {
        return Err(raw.problem(LIST, "names no blocks"));
    }
    Ok(kinds)
}

fn experts(raw: &RawConfig, layers: usize, sparse: &[usize]) -> Result<ExpertsConfig, Error> {
    Ok(ExpertsConfig {
        count: raw.size_or("n_routed_experts", 8)?,
        chosen: raw.size_or("num_experts_per_tok", 2)?,
        intermediate_size: raw.size_or("moe_intermediate_size", 7688)?,
        shared_intermediate_size: Some(raw.size_or("moe_shared_expert_intermediate_size", 7688)?),
        dense_blocks: (0..layers).filter(|index| !sparse.contains(index)).collect(),
        ..moe::sigmoid(raw)?
    })
}

fn state_space(raw: &RawConfig, eps: f32) -> Result<RecurrentMixer, Error> {
    let (heads, groups) = (raw.size_or("mamba_num_heads", 128)?, raw.size_or("n_groups", 8)?);
    let biased = raw.flag_or("use_bias", false)?;
    // Of the key `time_step_limit` nothing is read: Δ has the least value that it was initialised with.
    let [_, most] = step_limits(&raw.without("time_step_limit"))?;
    Ok(RecurrentMixer::StateSpace(StateSpace {
        channels: heads * raw.size_or("mamba_head_dim", 64)?,
        dimensions: raw.size_or("ssm_state_size", 128)?,
        kernel: raw.size_or("conv_kernel", 4)?,
        convolution_bias: raw.flag_or("use_conv_bias", true)?,
        activation: raw.activation("mamba_hidden_act", "silu")?,
        input_bias: biased,
        output_bias: biased,
        scan: Scan::Heads {
            heads,
            groups,
            step_limits: [raw.float_or("time_step_min", 0.001)?, most],
            norm: Some(GatedNorm { groups, eps, before_gate: false }),
        },
        multipliers: None,
    }))
}

fn names(config: &DecoderConfig) -> TensorNames {
    let config = config.clone();
    TensorNames::new(&["backbone.", "model.", ""], "embeddings", "norm_f", move |index| {
        let block = Module::new(format!("layers.{index}"));
        let mixer = Module::new(block.name("mixer"));
        let norm = block.name("norm");
        match config.mixer(index) {
            Mixer::Attention => LayerNames {
                attention_norm: Some(norm),
                ..LayerNames::new(
                    mixer.parts(["q_proj", "k_proj", "v_proj"]),
                    mixer.part("o_proj"),
                    MlpNames::None,
                )
            },
            Mixer::Recurrent | Mixer::AttentionAndRecurrent | Mixer::SharedThenRecurrent => {
                LayerNames::recurrent(
                    norm,
                    RecurrentNames::StateSpace(Box::new(StateSpaceNames::mamba2(&mixer))),
                )
            }
            Mixer::None => LayerNames::mlp_alone(norm, mlp(mixer, &config, index)),
        }
    })
}

fn mlp(mixer: Module, config: &DecoderConfig, index: usize) -> MlpNames {
    let Some(experts) = config.experts.as_ref().filter(|experts| experts.in_block(index)) else {
        return mixer.mlp(["up_proj"], "down_proj");
    };
    let count = experts.count;
    MlpNames::Experts(vec![ExpertNames {
        router: vec![mixer.name("gate")],
        correction: Some(mixer.name("gate.e_score_correction_bias")),
        fused: Some(["experts.up_proj", "experts.down_proj"].map(|name| mixer.name(name))),
        expert: Box::new(move |expert| {
            let path =
                if expert == count { "shared_experts".to_owned() } else { format!("experts.{expert}") };
            let expert = Module::new(mixer.name(&path));
            (expert.parts(["up_proj"]), expert.part("down_proj"))
        }),
    }])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A text of letters, as older files have it, and a list of names: the same model; what is neither is refused.
    #[test]
    fn blocks_are_named_by_letters_or_words() {
        let read = |key: &str, blocks: Value| {
            let mut file = json!({"model_type": "nemotron_h", "time_step_min": 0.25});
            file[key] = blocks;
            let raw = RawConfig::from_json("config.json".to_owned(), file).expect("an object");
            config(&raw).map_err(|error| error.to_string())
        };
        let words = json!(["mamba", "moe", "attention", "mlp", "linear_attention"]);
        let named = read("layers_block_type", words).expect("a configuration");
        assert_eq!(read("hybrid_override_pattern", json!("ME*-M")).expect("a configuration"), named);
        let of = |mixer: Mixer| (0..5).filter(|index| named.mixer(*index) == mixer).collect::<Vec<_>>();
        assert_eq!(of(Mixer::Recurrent), [0, 4]);
        assert_eq!((of(Mixer::Attention), of(Mixer::None)), (vec![2], vec![1, 3]));
        assert_eq!(
            (0..5).map(|index| named.has_mlp(index)).collect::<Vec<_>>(),
            [false, true, false, true, false]
        );
        let experts = named.experts.as_ref().expect("experts");
        assert_eq!((0..5).filter(|index| experts.in_block(*index)).collect::<Vec<_>>(), [1]);
        let Some(RecurrentMixer::StateSpace(StateSpace { scan: Scan::Heads { step_limits, .. }, .. })) =
            named.recurrent
        else {
            panic!("Mamba-2")
        };
        assert_eq!(step_limits, [0.25, f32::INFINITY]);
        for (key, blocks) in [
            ("hybrid_override_pattern", json!("MX")),
            ("hybrid_override_pattern", json!("")),
            ("layers_block_type", json!(["mamba", 3])),
            ("layers_block_type", json!([])),
            ("moe_latent_size", json!(8)),
        ] {
            let error = read(key, blocks).expect_err("refused");
            assert!(error.contains("config.json"), "{error}");
        }
    }
}
