//! Shapes of published models as `config.json`, for measurements with random weights.

use int8_core::FloatType;

/// A model by its shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ModelShape {
    /// Its `config.json`.
    pub(crate) config: String,
    /// The type in which its weights were published.
    pub(crate) float: FloatType,
    /// Whether its linear layers have biases.
    pub(crate) biases: bool,
}

/// Zhang et al., 2022: name, blocks, width of the residual stream, heads.
const OPT: [(&str, usize, usize, usize); 8] = [
    ("opt-125m", 12, 768, 12),
    ("opt-350m", 24, 1024, 16),
    ("opt-1.3b", 24, 2048, 32),
    ("opt-2.7b", 32, 2560, 32),
    ("opt-6.7b", 32, 4096, 32),
    ("opt-13b", 40, 5120, 40),
    ("opt-30b", 48, 7168, 56),
    ("opt-66b", 64, 9216, 72),
];

/// Grattafiori et al., 2024: name, blocks, width of the residual stream, width of the MLP, heads.
const LLAMA_3: [(&str, usize, usize, usize, usize); 2] =
    [("llama-3-8b", 32, 4096, 14336, 32), ("llama-3-70b", 80, 8192, 28672, 64)];

/// Le Scao et al., 2022.
const BLOOM_176B: (&str, &str) = (
    "bloom-176b",
    r#"{
        "model_type": "bloom", "n_layer": 70, "hidden_size": 14336, "n_head": 112, "vocab_size": 250880,
        "seq_length": 2048, "layer_norm_epsilon": 1e-05
    }"#,
);

impl ModelShape {
    /// The names of all.
    pub(crate) fn names() -> impl Iterator<Item = &'static str> {
        let (opt, llama) = (OPT.iter().map(|(name, ..)| *name), LLAMA_3.iter().map(|(name, ..)| *name));
        opt.chain(llama).chain([BLOOM_176B.0])
    }

    /// The shape of this name.
    pub(crate) fn named(name: &str) -> Option<Self> {
        if name == BLOOM_176B.0 {
            return Some(Self { config: BLOOM_176B.1.to_owned(), float: FloatType::Bf16, biases: true });
        }
        if let Some((_, blocks, hidden, mlp, heads)) = LLAMA_3.iter().find(|(other, ..)| *other == name) {
            let config = format!(
                r#"{{
                    "model_type": "llama", "num_hidden_layers": {blocks}, "hidden_size": {hidden},
                    "intermediate_size": {mlp}, "num_attention_heads": {heads}, "num_key_value_heads": 8,
                    "vocab_size": 128256, "max_position_embeddings": 8192, "rope_theta": 500000.0,
                    "rms_norm_eps": 1e-05, "hidden_act": "silu", "tie_word_embeddings": false
                }}"#
            );
            return Some(Self { config, float: FloatType::Bf16, biases: false });
        }
        let (name, blocks, hidden, heads) = OPT.iter().find(|(other, ..)| *other == name)?;
        // This one normalises after the residual addition, and its embedding is narrower.
        let odd = *name == "opt-350m";
        let (pre_norm, embedding) = if odd { (false, 512) } else { (true, *hidden) };
        let config = format!(
            r#"{{
                "model_type": "opt", "num_hidden_layers": {blocks}, "hidden_size": {hidden}, "ffn_dim": {},
                "num_attention_heads": {heads}, "vocab_size": 50272, "max_position_embeddings": 2048,
                "word_embed_proj_dim": {embedding}, "do_layer_norm_before": {pre_norm}, "activation_function": "relu",
                "tie_word_embeddings": true
            }}"#,
            4 * hidden
        );
        Some(Self { config, float: FloatType::F16, biases: true })
    }
}

#[cfg(test)]
mod tests {
    use int8_nn::plan;

    use super::*;

    #[test]
    fn shapes_are_those_of_the_plan() {
        for name in ModelShape::names() {
            let shape = ModelShape::named(name).expect("a shape");
            let checkpoint =
                int8_nn::synthetic::checkpoint(&shape.config, shape.float, shape.biases).expect("weights");
            let found = plan::Shape::of_checkpoint(name, &checkpoint).expect("sizes");
            if let Some(expected) = plan::Shape::built_in(name) {
                assert_eq!((found.linear, found.blocks), (expected.linear, expected.blocks), "{name}");
                assert_eq!(found.hidden, expected.hidden, "{name}");
            }
            let billions = crate::convert::real_u64(found.weights()) / 1e9;
            let stated: f64 = name
                .rsplit_once('-')
                .and_then(|(_, size)| match size.strip_suffix('m') {
                    Some(millions) => millions.parse().ok().map(|millions: f64| millions / 1e3),
                    None => size.strip_suffix('b')?.parse().ok(),
                })
                .expect("a size in the name");
            assert!((billions / stated - 1.0).abs() < 0.06, "{name}: {billions} billion");
        }
        assert_eq!(ModelShape::named("opt-7b"), None);
    }
}
