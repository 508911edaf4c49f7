//! Known models, sums by hand, and the paper's table.

use super::*;
use crate::checkpoint::Checkpoint;
use crate::config::RawConfig;
use crate::families;

fn model(name: &str) -> Shape {
    Shape::built_in(name).unwrap_or_else(|| panic!("no {name}"))
}

/// Numbers of parameters as their authors count them.
#[test]
fn built_in_models_have_the_weights_they_are_known_for() {
    for (name, weights) in [
        // Counted by transformers on the published configurations.
        ("BLOOM-176B", 176_247_271_424_u64),
        ("BLOOM-560M", 559_214_592),
        ("BLOOM-7.1B", 7_069_016_064),
        ("OPT-125M", 125_239_296),
        ("OPT-1.3B", 1_315_758_080),
        ("OPT-6.7B", 6_658_473_984),
        ("GPT-2-124M", 124_439_808),
        ("GPT-2-1.5B", 1_557_611_200),
        ("GPT-J-6B", 6_050_882_784),
        ("GPT-NeoX-20B", 20_554_567_680),
        ("T5-3B", 2_851_598_336),
        ("T5-11B", 11_307_321_344),
    ] {
        let found = model(name).weights();
        // The formula omits what differs between relatives: a norm after the embedding, single biases.
        let off = found.abs_diff(weights);
        assert!(off * 2000 < weights, "{name}: {found} weights, known for {weights}");
    }
    for (name, billions) in [("OPT-13B", 13), ("OPT-30B", 30), ("OPT-66B", 66), ("OPT-175B", 175)] {
        let found = model(name).weights();
        assert!(
            found.abs_diff(billions * 1_000_000_000) * 100 < 3 * billions * 1_000_000_000,
            "{name}: {found}"
        );
    }
}

#[test]
fn bloom_shrinks_as_the_paper_says() {
    let bloom = model("bloom-176b");
    let at = |precision| bloom.estimate(precision, Load::NONE);
    let giga = |bytes: u64| bytes / 1_000_000_000;
    assert_eq!(giga(at(Precision::F32).weights()), 704);
    assert_eq!(giga(at(Precision::F16).weights()), 352);
    let int8 = at(Precision::Int8);
    // 176 GB at a byte a weight, a second byte for 16-bit weights, and the scales.
    assert_eq!(giga(bloom.weights()), 176);
    assert_eq!(int8.weights(), bloom.weights() + bloom.embeddings + bloom.other + int8.scales);
    assert_eq!(giga(int8.linear), 172);
    assert_eq!((giga(int8.embeddings), int8.head), (7, 0));
    assert!(int8.scales < 200_000_000);
    assert_eq!(giga(int8.weights()), 179);
}

#[test]
fn the_papers_table_is_reproduced() {
    let mut wrong = Vec::new();
    for setup in PAPER_SETUPS {
        for (precision, stated) in [(Precision::Int8, setup.int8), (Precision::F16, setup.fp16)] {
            let expected = match stated {
                "OPT-175B / BLOOM" => "BLOOM-176B",
                "T0/T5-11B" => "T5-11B",
                "GPT-2 1.3B" => "GPT-2-1.3B",
                name => name,
            };
            let found = setup.largest(precision);
            if found.as_deref() != Some(expected) {
                let (hardware, precision) = (setup.hardware, precision.name());
                wrong.push(format!(
                    "{hardware} {} GB, {precision}: {found:?}, not {expected}",
                    setup.gigabytes
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // One that fits nothing.
    let tiny = PaperSetup { gpus: 1, gigabytes: 1, ..PAPER_SETUPS[0] };
    assert_eq!(tiny.largest(Precision::F16), None);
}

#[test]
fn cache_and_activations_by_hand() {
    // OPT-125M: 12 blocks, 768 wide, keys and values of 768 each.
    let opt = model("OPT-125M");
    let load = Load { context: 100, batch: 3, kv_cache: None };
    let [full, half, int8] = Precision::ALL.map(|precision| opt.estimate(precision, load));
    assert_eq!(half.cache, 12 * 2 * 768 * 100 * 3 * 2);
    assert_eq!((full.cache, int8.cache), (2 * half.cache, half.cache));
    // The residual stream, the MLP's input and hidden layer of 3072, logits; in int8 the hidden layer's codes, too.
    assert_eq!(half.activations, 300 * (4 * 768 + 2 * (768 + 3072)) + 3 * 50272 * 4);
    assert_eq!(int8.activations, half.activations + 300 * 3072);
    assert_eq!(opt.estimate(Precision::F16, Load::NONE).total(), half.weights());

    // A window bounds the cache of the blocks that have one.
    let mut windowed = opt.clone();
    windowed.cache = vec![
        CachedBlocks { blocks: 6, width: 10, vectors: 2, window: Some(40) },
        CachedBlocks { blocks: 6, width: 10, vectors: 2, window: None },
    ];
    assert_eq!(windowed.estimate(Precision::F16, load).cache, 6 * 10 * 3 * 2 * (40 + 100));
}

/// Weights, cache and states of hybrids, counted by hand and in the tensors of checkpoints.
#[test]
fn recurrent_states_are_counted() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/goldens");
    let shapes = |name: &str| {
        let checkpoint = Checkpoint::open(folder.join(name)).expect("a checkpoint");
        let raw = RawConfig::read(checkpoint.source()).expect("a configuration");
        let config = (families::of(&raw).expect("a family").config)(&raw).expect("a decoder");
        let of_tensors = Shape::of_checkpoint(name, &checkpoint).expect("a shape");
        (Shape::of_decoder(name, &config, false), of_tensors)
    };
    let load = Load { context: 10, batch: 3, kv_cache: None };
    // Two blocks of 64 channels with 6 dimensions; the convolution keeps three inputs of 64 + 2·2·6 columns.
    let (mamba2, of_tensors) = shapes("mamba2");
    assert_eq!(mamba2.state, 2 * (64 * 6 + 3 * 88));
    assert_eq!(mamba2.linear, 2 * 32 * ((64 + 88 + 4) + 64));
    assert_eq!(mamba2.estimate(Precision::F16, load).cache, 2 * 4 * 3 * mamba2.state);
    assert_eq!(
        (mamba2.max_positions, of_tensors.linear, of_tensors.state),
        (None, mamba2.linear, mamba2.state)
    );
    // One block of either kind; keys and values of two heads of 8.
    let (bamba, of_tensors) = shapes("bamba");
    assert_eq!(bamba.state, 64 * 6 + 3 * 88);
    let keys_and_values = 2 * 2 * 8 * 10 * 3 * 2;
    assert_eq!(bamba.estimate(Precision::F16, load).cache, keys_and_values + 2 * 4 * 3 * bamba.state);
    assert_eq!(of_tensors.linear, bamba.linear);
    for name in ["mamba", "falcon_mamba", "jamba", "granitemoehybrid", "falcon_h1", "nemotron_h", "zamba2"] {
        let (shape, of_tensors) = shapes(name);
        assert_eq!(of_tensors.linear, shape.linear, "{name}");
    }
}

#[test]
fn blocks_are_spread_over_gpus() {
    let bloom = model("BLOOM-176B");
    let needed = |precision, capacity| {
        bloom.gpus_needed(precision, Load { context: 2048, batch: 1, ..Load::NONE }, capacity)
    };
    let a100 = 81_251 << 20;
    assert_eq!(needed(Precision::F16, a100), Some(5));
    assert_eq!(needed(Precision::Int8, a100), Some(3));
    // The weights alone fit on eight cards of 24 GB, as the paper says; a full context takes a ninth.
    assert_eq!(bloom.gpus_needed(Precision::Int8, Load::NONE, 24_268 << 20), Some(8));
    assert_eq!(needed(Precision::Int8, 24_268 << 20), Some(9));
    // One GPU that holds it all, one that holds no block, one that holds nothing.
    assert_eq!(needed(Precision::F32, 1 << 40), Some(1));
    assert_eq!(needed(Precision::Int8, 5 << 30), None);
    assert_eq!(needed(Precision::Int8, 1000), None);
    // Larger GPUs are never needed in larger number.
    let counts: Vec<_> = (10..200).filter_map(|gigabytes| needed(Precision::Int8, gigabytes << 30)).collect();
    assert!(counts.is_sorted_by(|left, right| left >= right), "{counts:?}");
}

/// By its tensors, its header and its configuration: the same model.
#[test]
fn tiny_checkpoints_are_measured_alike() {
    let data = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/models");
    for entry in std::fs::read_dir(data).expect("the test data") {
        let folder = entry.expect("an entry").path();
        let name = folder.file_name().expect("a name").to_string_lossy().into_owned();
        let checkpoint = Checkpoint::open(&folder).expect("a checkpoint");
        let by_tensors = Shape::of_checkpoint(&name, &checkpoint).expect("a shape");
        let stored: u64 = checkpoint.tensors().map(|tensor| wide(tensor.len())).sum();
        assert!(by_tensors.weights() <= stored, "{name}: {by_tensors:?}");
        assert!(by_tensors.weights() * 10 > stored * 8, "{name}: {by_tensors:?}, {stored} values stored");
        assert!(by_tensors.linear * 3 > by_tensors.weights(), "{name}: {by_tensors:?}");
        assert!(by_tensors.blocks > 0, "{name}: {by_tensors:?}");

        let config = std::fs::read(folder.join("config.json")).expect("a file");
        let files = vec![("config.json".to_owned(), config)];
        if let Ok(by_config) = Shape::of_headers(&name, &files) {
            assert_eq!(by_config.blocks, by_tensors.blocks, "{name}");
            assert_eq!(by_config.cache, by_tensors.cache, "{name}");
            let off = by_config.linear.abs_diff(by_tensors.linear);
            assert!(off * 50 <= by_tensors.linear, "{name}: {by_config:?}, {by_tensors:?}");
        }
    }
}

#[test]
fn sizes_that_no_number_holds_are_the_largest() {
    let config = DecoderConfig {
        layers: 3,
        hidden_size: 0x7FFF_FFFF,
        intermediate_size: 0x7FFF_FFFF,
        heads: 0x7FFF_FFFF,
        kv_heads: 0x7FFF_FFFF,
        head_size: 0x7FFF_FFFF,
        vocab_size: 0x7FFF_FFFF,
        ..DecoderConfig::default()
    };
    let shape = Shape::of_decoder("hostile", &config, true);
    let estimate =
        shape.estimate(Precision::F32, Load { context: u64::MAX, batch: u64::MAX, kv_cache: None });
    assert_eq!(estimate.total(), u64::MAX);
    assert_eq!(shape.gpus_needed(Precision::F32, Load::NONE, 1 << 36), None);
}

#[test]
fn ranks_share_layers_and_keys_but_not_embeddings() {
    let estimate =
        Estimate { linear: 100, scales: 3, embeddings: 20, head: 10, other: 1, cache: 40, activations: 6 };
    assert_eq!(estimate.of_rank(1), estimate.total());
    assert_eq!(estimate.of_rank(2), 75 + 30);
    // BLOOM-176B on two H200s, as measured: 94 GB of weights each.
    let bloom = Shape::built_in("bloom-176b").expect("built in").estimate(Precision::Int8, Load::NONE);
    let gigabytes = bloom.of_rank(2) / 1_000_000_000;
    assert!((93..97).contains(&gigabytes), "{gigabytes} GB");
}

#[test]
fn blocks_that_do_not_fit_stay_on_the_host() {
    let opt = model("OPT-13B");
    let load = Load { context: 2048, batch: 1, kv_cache: None };
    let total = opt.estimate(Precision::Int8, load).total() + RESERVED;
    assert_eq!(opt.blocks_to_offload(load, total), 0);
    // One block too many is three: two places are on the device.
    assert_eq!(opt.blocks_to_offload(load, total - 1), 3);
    let half = opt.blocks_to_offload(load, total - opt.estimate(Precision::Int8, load).linear / 2);
    assert_eq!(half, opt.blocks / 2 + 2);
    assert_eq!(opt.blocks_to_offload(load, 0), opt.blocks);
}
