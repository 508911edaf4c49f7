//! `config.json`, read with checks, and the normalised description of a decoder that every family is mapped onto.

use half::{bf16, f16};
use serde_json::Value;

use crate::Error;
use crate::checkpoint::Source;

/// A parsed `config.json` that knows its name, so that each complaint can name file and key.
#[derive(Debug, Clone)]
pub struct RawConfig {
    file: String,
    json: Value,
}

impl RawConfig {
    /// Reads `config.json` of a checkpoint.
    ///
    /// # Errors
    /// When the file is missing or is not a JSON object.
    pub fn read(source: &Source) -> Result<Self, Error> {
        Self::from_json(source.label("config.json"), source.read_config()?)
    }

    /// Takes a JSON value; `file` is the name used in error messages.
    ///
    /// # Errors
    /// When the value is not an object.
    pub fn from_json(file: String, json: Value) -> Result<Self, Error> {
        let config = Self { file, json };
        if config.json.is_object() {
            Ok(config)
        } else {
            Err(config.problem("(top level)", "is not a JSON object"))
        }
    }

    /// Name of the file, for messages.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// The value of a key; `null` counts as absent.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.json.get(key).filter(|value| !value.is_null())
    }

    /// An error about a key of this file; `problem` completes the sentence "`key` …".
    pub fn problem(&self, key: &str, problem: impl Into<String>) -> Error {
        Error::Config { file: self.file.clone(), key: key.to_owned(), problem: problem.into() }
    }

    /// A size: an integer from 1 to 2³¹ − 1.
    ///
    /// # Errors
    /// When the key is absent or no such integer.
    pub fn size(&self, key: &str) -> Result<usize, Error> {
        let value = self.get(key).ok_or_else(|| self.problem(key, "is missing"))?;
        value
            .as_u64()
            .and_then(|size| usize::try_from(size).ok())
            .filter(|size| (1..=0x7FFF_FFFF).contains(size))
            .ok_or_else(|| self.problem(key, format!("is {value}; expected an integer from 1 to 2^31 - 1")))
    }

    /// Like [`size`](Self::size), with a value for an absent key.
    ///
    /// # Errors
    /// When the key is present and no such integer.
    pub fn size_or(&self, key: &str, default: usize) -> Result<usize, Error> {
        if self.get(key).is_none() { Ok(default) } else { self.size(key) }
    }

    /// A finite positive number, or `default` if the key is absent.
    ///
    /// # Errors
    /// When the key is present and no such number.
    pub fn positive_or(&self, key: &str, default: f64) -> Result<f64, Error> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => self.positive(key, value),
        }
    }

    /// Checks that `value`, found under `key`, is a finite positive number.
    ///
    /// # Errors
    /// When it is not.
    pub fn positive(&self, key: &str, value: &Value) -> Result<f64, Error> {
        value
            .as_f64()
            .filter(|number| number.is_finite() && *number > 0.0)
            .ok_or_else(|| self.problem(key, format!("is {value}; expected a positive number")))
    }

    /// A boolean, or `default` if the key is absent.
    ///
    /// # Errors
    /// When the key is present and no boolean.
    pub fn flag_or(&self, key: &str, default: bool) -> Result<bool, Error> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => value
                .as_bool()
                .ok_or_else(|| self.problem(key, format!("is {value}; expected true or false"))),
        }
    }

    /// A string, or `default` if the key is absent.
    ///
    /// # Errors
    /// When the key is present and no string.
    pub fn text_or<'a>(&'a self, key: &str, default: &'a str) -> Result<&'a str, Error> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => {
                value.as_str().ok_or_else(|| self.problem(key, format!("is {value}; expected a string")))
            }
        }
    }

    /// Token ids: one integer or a list of them; empty if the key is absent.
    ///
    /// # Errors
    /// When the key is present and neither.
    pub fn token_ids(&self, key: &str) -> Result<Vec<u32>, Error> {
        let id = |value: &Value| {
            value
                .as_u64()
                .and_then(|id| u32::try_from(id).ok())
                .ok_or_else(|| self.problem(key, format!("holds {value}; expected a token id")))
        };
        match self.get(key) {
            None => Ok(Vec::new()),
            Some(Value::Array(ids)) => ids.iter().map(id).collect(),
            Some(value) => Ok(vec![id(value)?]),
        }
    }

    /// The activation function under `key`.
    ///
    /// # Errors
    /// When it is none of those that are implemented.
    pub fn activation(&self, key: &str, default: &str) -> Result<Activation, Error> {
        let name = self.text_or(key, default)?;
        Activation::from_name(name).ok_or_else(|| {
            self.problem(
                key,
                format!("is {name:?}; implemented: relu, gelu, gelu_new, gelu_pytorch_tanh, gelu_fast, silu"),
            )
        })
    }
}

/// What a decoder-only transformer is, in the terms of the one implementation that runs them all.
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderConfig {
    /// The family's `model_type`.
    pub family: &'static str,
    /// Rows of the token embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Number of blocks.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads (grouped-query attention when fewer than `heads`; `heads` must be a multiple).
    pub kv_heads: usize,
    /// Width of one head.
    pub head_size: usize,
    /// Width of the MLP's hidden layer.
    pub intermediate_size: usize,
    /// Most positions a sequence can have.
    pub max_positions: usize,
    /// Kind of normalisation.
    pub norm: NormKind,
    /// Added to the variance (or mean square) before the root.
    pub norm_eps: f32,
    /// Where the normalisations stand.
    pub block: BlockKind,
    /// How positions enter.
    pub positions: Positions,
    /// The MLP's activation.
    pub activation: Activation,
    /// `down(act(gate(x)) · up(x))` instead of `down(act(up(x)))`.
    pub gated_mlp: bool,
    /// Attention sees only this many latest positions, itself included.
    pub sliding_window: Option<usize>,
    /// The head is the token embedding.
    pub tied_embeddings: bool,
    /// Width of the token embedding where it differs from `hidden_size` (OPT-350m projects in and out).
    pub embedding_size: usize,
    /// Tokens that end a text, from `config.json`.
    pub eos_token_ids: Vec<u32>,
}

/// Kind of normalisation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormKind {
    /// `(x − mean)/√(var + ε)·g + b`
    LayerNorm,
    /// `x/√(mean(x²) + ε)·g`
    RmsNorm,
}

/// How a block joins attention and MLP to the residual stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockKind {
    /// `x += attn(norm₁(x)); x += mlp(norm₂(x))`
    PreNorm,
    /// `x = norm₁(x + attn(x)); x = norm₂(x + mlp(x))`
    PostNorm,
    /// `x += attn(norm₁(x)) + mlp(norm₂(x))`
    Parallel,
}

/// How positions enter.
#[derive(Debug, Clone, PartialEq)]
pub enum Positions {
    /// A table with `offset` rows before position 0 is added to the token embedding.
    Learned {
        /// Rows of the table before position 0 (2 for OPT).
        offset: usize,
    },
    /// A bias `−slope(head)·distance` on the attention scores (Press, Smith, Lewis, 2022).
    Alibi,
    /// Pairs of a head's dimensions are rotated by an angle proportional to the position (Su et al., 2021).
    Rotary(Rotary),
    /// A learned bias on the attention scores for each head and bucket of distances (Raffel et al., 2020).
    Relative(Buckets),
}

/// How distances between positions are sorted into buckets that share a bias: small distances have one each, larger ones
/// share with a range that grows like a logarithm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buckets {
    /// Number of buckets.
    pub count: usize,
    /// From this distance on, all share the last one.
    pub max_distance: usize,
}

/// Rotary position embedding. Dimension pairs are `(i, i + dims/2)` ("rotate half").
#[derive(Debug, Clone, PartialEq)]
pub struct Rotary {
    /// Leading dimensions of each head that are rotated (all, or a part); even.
    pub dims: usize,
    /// Base θ: pair `i` turns by `position·θ^(−2i/dims)`.
    pub theta: f64,
    /// Change of the frequencies for contexts longer than trained.
    pub scaling: RotaryScaling,
    /// Precision of the frequencies.
    pub precision: RotaryPrecision,
}

/// The precision in which rotary frequencies are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RotaryPrecision {
    /// f32: what `from_pretrained` gives, whatever the type of the weights.
    #[default]
    F32,
    /// Rounded to f16, as in a module that was cast as a whole (`model.half()`).
    F16,
    /// Rounded to bf16, as in a module that was cast as a whole (`model.bfloat16()`).
    Bf16,
}

/// How the rotary frequencies `f_i = θ^(−2i/dims)` are changed.
#[derive(Debug, Clone, PartialEq)]
pub enum RotaryScaling {
    /// Not at all.
    None,
    /// All divided by the factor.
    Linear {
        /// The factor.
        factor: f64,
    },
    /// Llama 3.1: low frequencies divided by `factor`, high ones kept, those between interpolated.
    Llama3 {
        /// Divisor of the low frequencies.
        factor: f64,
        /// Wavelengths above `original_positions/low_factor` are low frequencies.
        low_factor: f64,
        /// Wavelengths below `original_positions/high_factor` are high frequencies.
        high_factor: f64,
        /// Context length the model was trained with.
        original_positions: f64,
    },
}

impl Rotary {
    /// Angle a position step turns each of the `dims/2` pairs by, in radians.
    pub fn frequencies(&self) -> Vec<f64> {
        let dims = crate::convert::f64_from(self.dims);
        let base =
            (0..self.dims / 2).map(|pair| self.theta.powf(-2.0 * crate::convert::f64_from(pair) / dims));
        let frequencies: Vec<f64> = match self.scaling {
            RotaryScaling::None => base.collect(),
            RotaryScaling::Linear { factor } => base.map(|frequency| frequency / factor).collect(),
            RotaryScaling::Llama3 { factor, low_factor, high_factor, original_positions } => base
                .map(|frequency| {
                    let wavelength = std::f64::consts::TAU / frequency;
                    let smooth = (original_positions / wavelength - low_factor) / (high_factor - low_factor);
                    let smooth = smooth.clamp(0.0, 1.0);
                    (1.0 - smooth) * frequency / factor + smooth * frequency
                })
                .collect(),
        };
        let round = |frequency: f64| match self.precision {
            RotaryPrecision::F32 => frequency,
            RotaryPrecision::F16 => f16::from_f64(frequency).to_f64(),
            RotaryPrecision::Bf16 => bf16::from_f64(frequency).to_f64(),
        };
        frequencies.into_iter().map(round).collect()
    }
}

/// Activation functions of the MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `max(x, 0)`
    Relu,
    /// `x·Φ(x)` with the error function.
    Gelu,
    /// `x/2·(1 + tanh(√(2/π)(x + 0.044715x³)))`
    GeluTanh,
    /// `x·σ(x)`
    Silu,
}

impl Activation {
    /// By the name Hugging Face's `config.json` uses.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "relu" => Some(Self::Relu),
            "gelu" => Some(Self::Gelu),
            "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Some(Self::GeluTanh),
            "silu" | "swish" => Some(Self::Silu),
            _ => None,
        }
    }
}

impl DecoderConfig {
    /// Checks what every family needs: sizes that fit each other.
    ///
    /// # Errors
    /// [`Error::Config`] naming the key of `raw` that is at fault.
    pub fn validate(self, raw: &RawConfig) -> Result<Self, Error> {
        if !self.heads.is_multiple_of(self.kv_heads) {
            return Err(raw.problem(
                "num_key_value_heads",
                format!("is {}; it must divide the {} attention heads", self.kv_heads, self.heads),
            ));
        }
        if let Positions::Rotary(rotary) = &self.positions
            && (!rotary.dims.is_multiple_of(2) || rotary.dims > self.head_size || rotary.dims == 0)
        {
            return Err(raw.problem(
                "partial_rotary_factor",
                format!(
                    "gives {} rotated dimensions; expected an even number from 2 to the head size {}",
                    rotary.dims, self.head_size
                ),
            ));
        }
        Ok(self)
    }
}

/// `hidden_size / heads`, checked.
///
/// # Errors
/// [`Error::Config`] when it is no integer.
pub(crate) fn head_size(
    raw: &RawConfig,
    key: &str,
    hidden_size: usize,
    heads: usize,
) -> Result<usize, Error> {
    if hidden_size.is_multiple_of(heads) {
        Ok(hidden_size / heads)
    } else {
        Err(raw.problem(key, format!("is {heads}; it must divide the hidden size {hidden_size}")))
    }
}
