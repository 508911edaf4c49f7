//! Built-in shapes: the paper's models and their smaller relatives.

use int8_core::FloatType;

use super::{CachedBlocks, Shape, product, sum};
use crate::config::{BlockKind, DecoderConfig, NormKind, Positions, Rotary, RotaryScaling};

/// Blocks, width of the residual stream, heads.
type Sizes = (&'static str, usize, usize, usize);

/// Zhang et al., 2022.
const OPT: [Sizes; 9] = [
    ("OPT-125M", 12, 768, 12),
    ("OPT-350M", 24, 1024, 16),
    ("OPT-1.3B", 24, 2048, 32),
    ("OPT-2.7B", 32, 2560, 32),
    ("OPT-6.7B", 32, 4096, 32),
    ("OPT-13B", 40, 5120, 40),
    ("OPT-30B", 48, 7168, 56),
    ("OPT-66B", 64, 9216, 72),
    ("OPT-175B", 96, 12288, 96),
];

/// Le Scao et al., 2022.
const BLOOM: [Sizes; 6] = [
    ("BLOOM-560M", 24, 1024, 16),
    ("BLOOM-1.1B", 24, 1536, 16),
    ("BLOOM-1.7B", 24, 2048, 16),
    ("BLOOM-3B", 30, 2560, 32),
    ("BLOOM-7.1B", 30, 4096, 32),
    ("BLOOM-176B", 70, 14336, 112),
];

/// Radford et al., 2019; the last is the paper's own 1.3B model.
const GPT2: [Sizes; 5] = [
    ("GPT-2-124M", 12, 768, 12),
    ("GPT-2-355M", 24, 1024, 16),
    ("GPT-2-774M", 36, 1280, 20),
    ("GPT-2-1.5B", 48, 1600, 25),
    ("GPT-2-1.3B", 24, 2048, 32),
];

/// Raffel et al., 2020: width of the MLP, heads of 128; 24 blocks of encoder and decoder each, 1024 wide.
const T5: [(&str, u64, u64); 2] = [("T5-3B", 16384, 32), ("T5-11B", 65536, 128)];

impl Shape {
    /// A model by its name, in either case: `BLOOM-176B`, `OPT-66B`, `T5-11B`, …
    pub fn built_in(name: &str) -> Option<Self> {
        built_in().into_iter().find(|shape| shape.name.eq_ignore_ascii_case(name))
    }

    /// The names that [`Self::built_in`] knows.
    pub fn built_in_names() -> Vec<String> {
        built_in().into_iter().map(|shape| shape.name).collect()
    }
}

fn built_in() -> Vec<Shape> {
    let base = |(_, layers, hidden_size, heads): Sizes| DecoderConfig {
        layers,
        hidden_size,
        embedding_size: hidden_size,
        heads,
        kv_heads: heads,
        head_size: hidden_size / heads,
        intermediate_size: 4 * hidden_size,
        max_positions: 2048,
        norm: NormKind::LayerNorm,
        block: BlockKind::PreNorm,
        tied_embeddings: true,
        ..DecoderConfig::default()
    };
    let opt = OPT.iter().map(|&sizes| {
        let embedding_size = if sizes.0 == "OPT-350M" { 512 } else { sizes.2 };
        let positions = Positions::Learned { offset: 2 };
        (sizes.0, DecoderConfig { vocab_size: 50272, embedding_size, positions, ..base(sizes) })
    });
    let bloom = BLOOM.iter().map(|&sizes| {
        (sizes.0, DecoderConfig { vocab_size: 250_880, positions: Positions::Alibi, ..base(sizes) })
    });
    let gpt2 = GPT2.iter().map(|&sizes| {
        let positions = Positions::Learned { offset: 0 };
        (sizes.0, DecoderConfig { vocab_size: 50257, max_positions: 1024, positions, ..base(sizes) })
    });
    let rotary = |dims| {
        Positions::Rotary(Rotary {
            dims,
            theta: 10_000.0,
            scaling: RotaryScaling::None,
            precision: FloatType::F32,
        })
    };
    let parallel = |sizes: Sizes, vocab_size, dims| {
        let config = DecoderConfig {
            vocab_size,
            block: BlockKind::Parallel,
            positions: rotary(dims),
            tied_embeddings: false,
            ..base(sizes)
        };
        (sizes.0, config)
    };
    let others = [
        parallel(("GPT-J-6B", 28, 4096, 16), 50400, 64),
        parallel(("GPT-NeoX-20B", 44, 6144, 64), 50432, 24),
    ];
    opt.chain(bloom)
        .chain(gpt2)
        .chain(others)
        .map(|(name, config)| Shape::of_decoder(name, &config, true))
        .chain(T5.iter().map(|&(name, mlp, heads)| t5(name, mlp, heads)))
        .collect()
}

/// Encoder and decoder; each decoder block caches its own keys and values and the cross-attention's.
fn t5(name: &str, mlp: u64, heads: u64) -> Shape {
    const HIDDEN: u64 = 1024;
    const BLOCKS: u64 = 24;
    const VOCABULARY: u64 = 32128;
    /// Buckets of the relative position bias, in the first block of encoder and decoder.
    const BUCKETS: u64 = 32;
    let queries = 128 * heads;
    // Attention once in a block of the encoder, twice in one of the decoder.
    let attentions = 3 * BLOCKS;
    let mlps = 2 * BLOCKS;
    let keys_values = 2 * queries;
    Shape {
        embeddings_are_f32: false,
        name: name.to_owned(),
        blocks: 2 * BLOCKS,
        linear: sum(&[product(&[attentions, 4, queries, HIDDEN]), product(&[mlps, 2, mlp, HIDDEN])]),
        linear_outputs: sum(&[product(&[attentions, 3 * queries + HIDDEN]), product(&[mlps, mlp + HIDDEN])]),
        embeddings: sum(&[product(&[VOCABULARY, HIDDEN]), product(&[2, BUCKETS, heads])]),
        head: 0,
        other: product(&[2 * BLOCKS + 3 * BLOCKS + 2, HIDDEN]),
        cache: vec![CachedBlocks {
            blocks: 2 * BLOCKS,
            width: keys_values,
            vectors: 2 * heads,
            window: None,
        }],
        hidden: HIDDEN,
        widest: HIDDEN + mlp.max(4 * queries),
        widest_input: mlp.max(queries),
        vocabulary: VOCABULARY,
        max_positions: None,
        state: 0,
    }
}
