//! Rotary position embeddings: settings and frequencies.

use half::{bf16, f16};
use int8_core::FloatType;
use serde_json::Value;

use super::RawConfig;
use crate::{Error, convert};

/// Rotary position embedding. Dimension pairs are `(i, i + dims/2)` ("rotate half").
#[derive(Debug, Clone, PartialEq)]
pub struct Rotary {
    /// Leading dimensions of each head that are rotated; even.
    pub dims: usize,
    /// Base θ: pair `i` turns by `position·θ^(−2i/dims)` radians.
    pub theta: f64,
    /// Scaling for contexts longer than trained.
    pub scaling: RotaryScaling,
    /// The type that the frequencies are rounded to: f32, as `from_pretrained` has them whatever the weights are; 16-bit as in
    /// a module that was cast as a whole (`model.half()`).
    pub precision: FloatType,
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
    /// Llama 3.1: low frequencies divided by `factor`, high ones kept, between them interpolated.
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
    /// YaRN (Peng et al., 2023): pairs `i ≤ low` kept, `i ≥ high` divided by `factor`, a linear ramp between.
    Yarn {
        /// Divisor of the low frequencies.
        factor: f64,
        /// First pair of the ramp.
        low: f64,
        /// Last pair of the ramp.
        high: f64,
        /// Cosines and sines are multiplied by this.
        magnitude: f64,
    },
    /// NTK-aware scaling by the length of the text: up to `positions` tokens as without scaling, beyond with the base
    /// `θ·(factor·length/positions − (factor − 1))^(dims/(dims − 2))`.
    Dynamic {
        /// The factor.
        factor: f64,
        /// Context length the model was trained with.
        positions: usize,
    },
    /// The first pairs turn by `position·θ^(−2i/dims)/factor` and the others not at all.
    Proportional {
        /// Pairs that turn.
        pairs: usize,
        /// Divisor of their frequencies.
        factor: f64,
    },
    /// LongRoPE (Ding et al., 2024): one divisor a pair, other ones for long contexts.
    LongRope {
        /// Divisors for at most `original_positions` positions.
        short: Vec<f64>,
        /// Divisors for more.
        long: Vec<f64>,
        /// Context length the model was trained with.
        original_positions: usize,
        /// Cosines and sines are multiplied by this.
        magnitude: f64,
    },
}

/// A family's defaults for keys that are absent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RotaryDefaults {
    /// Base.
    pub(crate) theta: f64,
    /// Share of a head's dimensions that is rotated.
    pub(crate) share: f64,
    /// Whether the family obeys `partial_rotary_factor`; others ignore it.
    pub(crate) partial: bool,
}

impl Default for RotaryDefaults {
    /// Base 10000, all dimensions.
    fn default() -> Self {
        Self { theta: 10_000.0, share: 1.0, partial: false }
    }
}

impl Rotary {
    /// Reads the settings: transformers 5 keeps them under `rope_parameters`, earlier ones in `rope_theta`,
    /// `partial_rotary_factor` and `rope_scaling`, GPT-NeoX in `rotary_emb_base` and `rotary_pct`.
    pub(crate) fn read(raw: &RawConfig, head_size: usize, defaults: RotaryDefaults) -> Result<Self, Error> {
        match raw.get("rope_parameters") {
            Some(parameters) => {
                Self::read_from(raw, "rope_parameters", Some(parameters), head_size, defaults)
            }
            None => Self::read_from(raw, "rope_scaling", raw.get("rope_scaling"), head_size, defaults),
        }
    }

    /// Reads the settings in `parameters`, found under `key`; those missing there, from the file's top level.
    pub(crate) fn read_from(
        raw: &RawConfig,
        key: &str,
        parameters: Option<&Value>,
        head_size: usize,
        defaults: RotaryDefaults,
    ) -> Result<Self, Error> {
        if let Some(other) = parameters.filter(|parameters| !parameters.is_object()) {
            return Err(raw.problem(key, format!("is {other}; expected an object")));
        }
        let number = |name: &str, old: &str, default: f64| {
            let value =
                parameters.and_then(|parameters| parameters.get(name)).filter(|value| !value.is_null());
            match value {
                Some(value) => raw.positive(&format!("{key}.{name}"), value),
                None => raw.positive_or(name, raw.positive_or(old, default)?),
            }
        };
        let theta = number("rope_theta", "rotary_emb_base", defaults.theta)?;
        let share = number("partial_rotary_factor", "rotary_pct", defaults.share)?;
        let kind = |name: &str| parameters.and_then(|parameters| parameters.get(name));
        let kind = kind("rope_type").or_else(|| kind("type")).and_then(Value::as_str);
        if kind == Some("proportional") {
            // The share is one of turning pairs, in every family.
            let share = number("partial_rotary_factor", "rotary_pct", 1.0)?;
            let pairs = convert::fraction_of(head_size, share) / 2;
            let scaling = RotaryScaling::Proportional { pairs, factor: number("factor", "factor", 1.0)? };
            return Ok(Self { dims: head_size, theta, scaling, precision: FloatType::F32 });
        }
        let dims = convert::fraction_of(head_size, if defaults.partial { share } else { defaults.share });
        let scaling = match parameters {
            Some(parameters) => Reader { raw, key, parameters }.scaling(theta, dims)?,
            None => RotaryScaling::None,
        };
        // Frequencies of a scaled kind follow the key in every family, and a family that rotates whole heads cannot use fewer.
        if !defaults.partial && share != defaults.share && scaling != RotaryScaling::None {
            return Err(raw.problem(
                "partial_rotary_factor",
                format!("is {share}; with scaled rotary positions this family rotates whole heads"),
            ));
        }
        Ok(Self { dims, theta, scaling, precision: FloatType::F32 })
    }

    /// With the `alpha` of `rope_parameters` or `rope_scaling`, if they are of the dynamic kind and have it: the base becomes
    /// `θ·α^(dims/(dims − 2))`, whatever the length of the text.
    pub(crate) fn with_alpha(self, raw: &RawConfig) -> Result<Self, Error> {
        let key = if raw.get("rope_parameters").is_some() { "rope_parameters" } else { "rope_scaling" };
        let alpha = raw.get(key).and_then(|parameters| parameters.get("alpha"));
        match alpha.filter(|alpha| !alpha.is_null() && alpha.as_f64() != Some(0.0)) {
            Some(alpha) if matches!(self.scaling, RotaryScaling::Dynamic { .. }) => {
                let alpha = raw.positive(&format!("{key}.alpha"), alpha)?;
                let dims = convert::f64_from(self.dims);
                let theta = self.theta * alpha.powf(dims / (dims - 2.0));
                Ok(Self { theta, scaling: RotaryScaling::None, ..self })
            }
            _ => Ok(self),
        }
    }

    /// Checks that the rotated dimensions fit a head.
    pub(super) fn validate(&self, raw: &RawConfig, head_size: usize) -> Result<(), Error> {
        if !self.dims.is_multiple_of(2) || self.dims > head_size || self.dims == 0 {
            return Err(raw.problem(
                "partial_rotary_factor",
                format!(
                    "gives {} rotated dimensions; expected an even number from 2 to the head size {head_size}",
                    self.dims
                ),
            ));
        }
        if let RotaryScaling::LongRope { short, long, .. } = &self.scaling
            && let Some(found) = [short, long].into_iter().find(|factors| factors.len() != self.dims / 2)
        {
            return Err(raw.problem(
                "long_factor",
                format!(
                    "or `short_factor` has {} numbers; expected {}, one a pair",
                    found.len(),
                    self.dims / 2
                ),
            ));
        }
        Ok(())
    }

    /// Frequencies of the `dims/2` pairs, in radians a position, for a text of `length` tokens.
    pub fn frequencies(&self, length: usize) -> Vec<f64> {
        let dims = convert::f64_from(self.dims);
        let theta = match self.scaling {
            RotaryScaling::Dynamic { factor, positions } if length > positions => {
                let ratio = convert::f64_from(length) / convert::f64_from(positions);
                self.theta * (factor * ratio - (factor - 1.0)).powf(dims / (dims - 2.0))
            }
            _ => self.theta,
        };
        let base = (0..self.dims / 2).map(|pair| theta.powf(-2.0 * convert::f64_from(pair) / dims));
        let frequencies: Vec<f64> = match &self.scaling {
            RotaryScaling::None | RotaryScaling::Dynamic { .. } => base.collect(),
            RotaryScaling::Linear { factor } => base.map(|frequency| frequency / factor).collect(),
            RotaryScaling::Proportional { pairs, factor } => base
                .enumerate()
                .map(|(pair, frequency)| if pair < *pairs { frequency / factor } else { 0.0 })
                .collect(),
            RotaryScaling::Llama3 { factor, low_factor, high_factor, original_positions } => base
                .map(|frequency| {
                    let wavelength = std::f64::consts::TAU / frequency;
                    let smooth = (original_positions / wavelength - low_factor) / (high_factor - low_factor);
                    let smooth = smooth.clamp(0.0, 1.0);
                    (1.0 - smooth) * frequency / factor + smooth * frequency
                })
                .collect(),
            RotaryScaling::Yarn { factor, low, high, .. } => base
                .enumerate()
                .map(|(pair, frequency)| {
                    let ramp = ((convert::f64_from(pair) - low) / (high - low)).clamp(0.0, 1.0);
                    ramp * frequency / factor + (1.0 - ramp) * frequency
                })
                .collect(),
            RotaryScaling::LongRope { short, long, original_positions, .. } => {
                let divisors = if length > *original_positions { long } else { short };
                base.zip(divisors).map(|(frequency, divisor)| frequency / divisor).collect()
            }
        };
        let round = |frequency: f64| match self.precision {
            FloatType::F32 => frequency,
            FloatType::F16 => f16::from_f64(frequency).to_f64(),
            FloatType::Bf16 => bf16::from_f64(frequency).to_f64(),
        };
        frequencies.into_iter().map(round).collect()
    }

    /// The longest text whose frequencies are those of every shorter one; `None` where they depend on no length.
    pub fn fixed_positions(&self) -> Option<usize> {
        match &self.scaling {
            RotaryScaling::LongRope { short, long, original_positions, .. } => {
                (short != long).then_some(*original_positions)
            }
            RotaryScaling::Dynamic { positions, .. } => Some(*positions),
            RotaryScaling::None
            | RotaryScaling::Linear { .. }
            | RotaryScaling::Proportional { .. }
            | RotaryScaling::Llama3 { .. }
            | RotaryScaling::Yarn { .. } => None,
        }
    }

    /// The most positions of a model whose own number is `trained`: dynamic scaling goes beyond by its factor.
    pub(crate) fn max_positions(&self, trained: usize) -> usize {
        match self.scaling {
            RotaryScaling::Dynamic { factor, .. } => convert::fraction_of(trained, factor),
            _ => trained,
        }
    }

    /// Factor of cosines and sines: 1 except for YaRN and LongRoPE.
    pub fn magnitude(&self) -> f64 {
        match self.scaling {
            RotaryScaling::Yarn { magnitude, .. } | RotaryScaling::LongRope { magnitude, .. } => magnitude,
            RotaryScaling::None
            | RotaryScaling::Linear { .. }
            | RotaryScaling::Llama3 { .. }
            | RotaryScaling::Proportional { .. }
            | RotaryScaling::Dynamic { .. } => 1.0,
        }
    }
}

/// The key of the most positions.
const POSITIONS: &str = "max_position_embeddings";

/// Reads the settings of one kind of scaling.
struct Reader<'a> {
    raw: &'a RawConfig,
    key: &'a str,
    parameters: &'a Value,
}

impl Reader<'_> {
    fn scaling(&self, theta: f64, dims: usize) -> Result<RotaryScaling, Error> {
        let kind = self.get("rope_type").or_else(|| self.get("type")).and_then(Value::as_str);
        match kind.unwrap_or("default") {
            "default" => Ok(RotaryScaling::None),
            "linear" => Ok(RotaryScaling::Linear { factor: self.number("factor")? }),
            "llama3" => Ok(RotaryScaling::Llama3 {
                factor: self.number("factor")?,
                low_factor: self.number("low_freq_factor")?,
                high_factor: self.number("high_freq_factor")?,
                original_positions: convert::f64_from(self.original_positions()?),
            }),
            "dynamic" => {
                if dims < 4 {
                    return Err(self.raw.problem(
                        self.key,
                        format!(
                            "has rope type \"dynamic\", which needs 4 rotated dimensions; there are {dims}"
                        ),
                    ));
                }
                let factor = self.number("factor")?;
                if factor < 1.0 {
                    return Err(self.problem("factor", format!("is {factor}; expected at least 1")));
                }
                Ok(RotaryScaling::Dynamic { factor, positions: self.raw.size_or(POSITIONS, 2048)? })
            }
            "yarn" => self.yarn(theta, dims),
            "longrope" | "su" => self.longrope(),
            other => Err(self.raw.problem(
                self.key,
                format!(
                    "has rope type {other:?}; implemented: default, linear, dynamic, llama3, yarn, longrope, proportional"
                ),
            )),
        }
    }

    /// The trained context: on the top level (Phi-3 has it there), else among the parameters, else the model's own.
    fn original_positions(&self) -> Result<usize, Error> {
        const ORIGINAL: &str = "original_max_position_embeddings";
        // Parameters of one kind of layers have their own.
        let nested = self.key.contains('.');
        if !nested && self.raw.get(ORIGINAL).is_some() {
            return self.raw.size(ORIGINAL);
        }
        match self.get(ORIGINAL) {
            // Some files have 8192.0.
            Some(value) => convert::whole(self.raw.positive(&format!("{}.{ORIGINAL}", self.key), value)?)
                .filter(|value| *value > 1)
                .ok_or_else(|| self.problem(ORIGINAL, format!("is {value}; expected an integer above 1"))),
            None => self.raw.size_or(POSITIONS, 2048),
        }
    }

    /// The ramp is between the pairs that turn `beta_fast` and `beta_slow` times within the trained context.
    fn yarn(&self, theta: f64, dims: usize) -> Result<RotaryScaling, Error> {
        let original = convert::f64_from(self.original_positions()?);
        let factor = match self.get("factor") {
            Some(_) => self.number("factor")?,
            None => convert::f64_from(self.raw.size(POSITIONS)?) / original,
        };
        let dims = convert::f64_from(dims);
        let pair_of =
            |turns: f64| dims * (original / (turns * std::f64::consts::TAU)).ln() / (2.0 * theta.ln());
        let mut low = pair_of(self.number_or("beta_fast", 32.0)?);
        let mut high = pair_of(self.number_or("beta_slow", 1.0)?);
        if self.get("truncate").and_then(Value::as_bool).unwrap_or(true) {
            (low, high) = (low.floor(), high.ceil());
        }
        (low, high) = (low.max(0.0), high.min(dims - 1.0));
        if low == high {
            high += 0.001;
        }
        let magnitude = |scale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * scale * factor.ln() + 1.0 };
        let magnitude = match (self.get("attention_factor"), self.get("mscale"), self.get("mscale_all_dim")) {
            (Some(_), _, _) => self.number("attention_factor")?,
            (None, Some(_), Some(_)) => {
                magnitude(self.number("mscale")?) / magnitude(self.number("mscale_all_dim")?)
            }
            _ => magnitude(1.0),
        };
        Ok(RotaryScaling::Yarn { factor, low, high, magnitude })
    }

    /// Phi-3 has the two context lengths on the top level, and no factor.
    fn longrope(&self) -> Result<RotaryScaling, Error> {
        let original_positions = self.original_positions()?;
        let original = convert::f64_from(original_positions);
        let factor = match self.get("factor") {
            Some(_) => self.number("factor")?,
            None => convert::f64_from(self.raw.size(POSITIONS)?) / original,
        };
        let magnitude = match self.get("attention_factor") {
            Some(_) => self.number("attention_factor")?,
            None if factor <= 1.0 => 1.0,
            None => (1.0 + factor.ln() / original.ln()).sqrt(),
        };
        let (short, long) = (self.numbers("short_factor")?, self.numbers("long_factor")?);
        Ok(RotaryScaling::LongRope { short, long, original_positions, magnitude })
    }

    fn get(&self, name: &str) -> Option<&Value> {
        self.parameters.get(name).filter(|value| !value.is_null())
    }

    fn problem(&self, name: &str, problem: String) -> Error {
        self.raw.problem(&format!("{}.{name}", self.key), problem)
    }

    fn number(&self, name: &str) -> Result<f64, Error> {
        match self.get(name) {
            Some(value) => self.raw.positive(&format!("{}.{name}", self.key), value),
            None => Err(self.problem(name, "is missing; this rope type needs it".to_owned())),
        }
    }

    fn number_or(&self, name: &str, default: f64) -> Result<f64, Error> {
        if self.get(name).is_none() { Ok(default) } else { self.number(name) }
    }

    fn numbers(&self, name: &str) -> Result<Vec<f64>, Error> {
        let list = self.get(name).and_then(Value::as_array);
        let list = list.ok_or_else(|| self.problem(name, "is no list of numbers".to_owned()))?;
        list.iter().map(|value| self.raw.positive(&format!("{}.{name}", self.key), value)).collect()
    }
}
