//! A checkpoint of any size with the names and shapes of LLaMA, filled with pseudo-random numbers, to measure conversions
//! without a download.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;

use serde_json::{Map, Value, json};

pub(crate) const HELP: &str = "\
cargo xtask synthetic-checkpoint FOLDER [--layers N] [--hidden N] [--intermediate N] [--vocab N] [--shard BYTES]

Writes a sharded F16 checkpoint of the LLaMA architecture with pseudo-random weights (none of them zero), an index and
config.json. Without options it has the shapes of LLaMA-7B: 6.74 billion parameters, 13.5 GB, three shards. The same
options give the same bytes.";

/// The sizes of a model.
#[derive(Clone, Copy)]
struct Shape {
    layers: usize,
    hidden: usize,
    intermediate: usize,
    vocab: usize,
    shard: usize,
}

/// LLaMA-7B, in shards of 5 GB.
const LLAMA_7B: Shape =
    Shape { layers: 32, hidden: 4096, intermediate: 11008, vocab: 32000, shard: 5_000_000_000 };

pub(crate) fn run(arguments: &[String]) -> Result<(), String> {
    let Some((folder, options)) = arguments.split_first().filter(|(folder, _)| !folder.starts_with('-'))
    else {
        return Err(format!("which folder?\n\n{HELP}"));
    };
    let mut shape = LLAMA_7B;
    for option in options.chunks(2) {
        let [name, value] = option else { return Err(format!("{}: needs a number", option[0])) };
        let number = value.parse().map_err(|_| format!("{name} {value}: expected a number"))?;
        match name.as_str() {
            "--layers" => shape.layers = number,
            "--hidden" => shape.hidden = number,
            "--intermediate" => shape.intermediate = number,
            "--vocab" => shape.vocab = number,
            "--shard" => shape.shard = number,
            _ => return Err(format!("{name}: no such option\n\n{HELP}")),
        }
    }
    let bytes = write(Path::new(folder), shape).map_err(|error| format!("{folder}: {error}"))?;
    println!("{folder}: {bytes} bytes of tensors");
    Ok(())
}

/// Names and shapes in the order of the model.
fn tensors(shape: Shape) -> Vec<(String, Vec<usize>)> {
    let Shape { layers, hidden, intermediate, vocab, .. } = shape;
    let mut tensors = vec![("model.embed_tokens.weight".to_owned(), vec![vocab, hidden])];
    for layer in 0..layers {
        let mut add =
            |name: &str, shape| tensors.push((format!("model.layers.{layer}.{name}.weight"), shape));
        add("input_layernorm", vec![hidden]);
        for projection in ["q_proj", "k_proj", "v_proj", "o_proj"] {
            add(&format!("self_attn.{projection}"), vec![hidden, hidden]);
        }
        add("post_attention_layernorm", vec![hidden]);
        add("mlp.gate_proj", vec![intermediate, hidden]);
        add("mlp.up_proj", vec![intermediate, hidden]);
        add("mlp.down_proj", vec![hidden, intermediate]);
    }
    tensors.push(("model.norm.weight".to_owned(), vec![hidden]));
    tensors.push(("lm_head.weight".to_owned(), vec![vocab, hidden]));
    tensors
}

/// A shard's tensors: name, shape, bytes.
type Shard = Vec<(String, Vec<usize>, usize)>;

fn write(folder: &Path, shape: Shape) -> std::io::Result<usize> {
    fs::create_dir_all(folder)?;
    let mut shards: Vec<Shard> = vec![Vec::new()];
    let (mut filled, mut total) = (0, 0);
    for (name, dims) in tensors(shape) {
        let bytes = 2 * dims.iter().product::<usize>();
        if filled + bytes > shape.shard && filled > 0 {
            shards.push(Vec::new());
            filled = 0;
        }
        filled += bytes;
        total += bytes;
        if let Some(shard) = shards.last_mut() {
            shard.push((name, dims, bytes));
        }
    }
    let mut weight_map = Map::new();
    let mut random = Random(0x9E37_79B9_7F4A_7C15);
    for (index, shard) in shards.iter().enumerate() {
        let name = format!("model-{:05}-of-{:05}.safetensors", index + 1, shards.len());
        weight_map.extend(shard.iter().map(|(tensor, ..)| (tensor.clone(), Value::from(name.clone()))));
        write_shard(&folder.join(&name), shard, &mut random)?;
    }
    let index = json!({"metadata": {"total_size": total}, "weight_map": weight_map});
    fs::write(folder.join("model.safetensors.index.json"), format!("{index:#}\n"))?;
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "float16", "hidden_act": "silu",
        "hidden_size": shape.hidden, "intermediate_size": shape.intermediate, "num_hidden_layers": shape.layers,
        "num_attention_heads": (shape.hidden / 128).max(1), "num_key_value_heads": (shape.hidden / 128).max(1),
        "max_position_embeddings": 2048, "vocab_size": shape.vocab, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
        "tie_word_embeddings": false, "bos_token_id": 1, "eos_token_id": 2,
    });
    fs::write(folder.join("config.json"), format!("{config:#}\n"))?;
    Ok(total)
}

fn write_shard(path: &Path, shard: &Shard, random: &mut Random) -> std::io::Result<()> {
    let mut header = Map::from_iter([("__metadata__".to_owned(), json!({"format": "pt"}))]);
    let mut begin = 0;
    for (name, shape, bytes) in shard {
        let end = begin + bytes;
        header.insert(name.clone(), json!({"dtype": "F16", "shape": shape, "data_offsets": [begin, end]}));
        begin = end;
    }
    let mut header = Value::from(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut file = BufWriter::with_capacity(8 << 20, File::create(path)?);
    file.write_all(&u64::try_from(header.len()).unwrap_or(u64::MAX).to_le_bytes())?;
    file.write_all(&header)?;
    let mut buffer = vec![0; 8 << 20];
    for (_, _, bytes) in shard {
        let mut left = *bytes;
        while left > 0 {
            let block = left.min(buffer.len());
            random.fill(&mut buffer[..block]);
            file.write_all(&buffer[..block])?;
            left -= block;
        }
    }
    file.into_inner()?.sync_all()
}

/// xorshift64* (Vigna, 2016).
struct Random(u64);

impl Random {
    /// Four F16 numbers a step: any sign and mantissa, exponents 2⁻¹¹ to 2⁻⁸, so that every magnitude is in 0.0004…0.008.
    fn fill(&mut self, bytes: &mut [u8]) {
        const KEPT: u64 = 0x8FFF_8FFF_8FFF_8FFF;
        const EXPONENT: u64 = 0x1000_1000_1000_1000;
        for word in bytes.chunks_mut(8) {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            let values = (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) & KEPT) | EXPONENT;
            word.copy_from_slice(&values.to_le_bytes()[..word.len()]);
        }
    }
}
