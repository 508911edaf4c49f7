//! The quantised rows of the paper's Table 1, and their settings.

use std::fmt;
use std::str::FromStr;

use crate::{Encoding, Error, Granularity, OutlierGranularity, OutlierRule, RowMaximum};

/// The paper's outlier threshold (§3.2): "we find that α = 6.0 is sufficient".
pub const PAPER_THRESHOLD: f32 = 6.0;

/// τ of the relative rule where none is given.
pub const DEFAULT_TAU: f32 = 30.0;

/// All settings of a quantised linear layer.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Config {
    /// Codes of `x`.
    pub input_encoding: Encoding,
    /// Codes of `W`.
    pub weight_encoding: Encoding,
    /// Granularity of the quantization parameters of `x`.
    pub input_granularity: Granularity,
    /// Granularity of the quantization parameters of `W`.
    pub weight_granularity: Granularity,
    /// Which values are outliers.
    pub rule: OutlierRule,
    /// Whether an outlier is a whole column or a single value.
    pub outlier_granularity: OutlierGranularity,
    /// Which values count for the scale of a row of `x`.
    pub row_maximum: RowMaximum,
}

impl Config {
    /// Whether either side has group granularity, so that the integer product is summed group by group.
    pub fn has_groups(&self) -> bool {
        [self.input_granularity, self.weight_granularity].contains(&Granularity::Group)
    }
}

/// The eight quantised rows of Table 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// "Int8 absmax": one scale for `x`, one for `W`.
    Absmax,
    /// "Int8 zeropoint": one scale and zero point for `x`, one for `W`.
    Zeropoint,
    /// "Int8 absmax row-wise": one scale a row of `x`, one for `W`.
    AbsmaxRowWise,
    /// "Int8 absmax vector-wise": one scale a row of `x` and a row (output channel) of `W`.
    AbsmaxVectorWise,
    /// "Int8 zeropoint vector-wise": zero-point rows of `x`; `W` is absmax as in [`LlmInt8Absmax`](Self::LlmInt8Absmax).
    ZeropointVectorWise,
    /// "Int8 absmax row-wise + decomposition".
    AbsmaxRowWiseDecomposition,
    /// "Absmax LLM.int8() (vector-wise + decomp)": the method.
    LlmInt8Absmax,
    /// "Zeropoint LLM.int8() (vector-wise + decomp)": zero-point rows of `x`, absmax `W`.
    LlmInt8Zeropoint,
}

impl Scheme {
    /// All eight, in the order of Table 1.
    pub const ALL: [Self; 8] = [
        Self::Absmax,
        Self::Zeropoint,
        Self::AbsmaxRowWise,
        Self::AbsmaxVectorWise,
        Self::ZeropointVectorWise,
        Self::AbsmaxRowWiseDecomposition,
        Self::LlmInt8Absmax,
        Self::LlmInt8Zeropoint,
    ];

    /// The name that [`FromStr`] parses.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Absmax => "absmax",
            Self::Zeropoint => "zeropoint",
            Self::AbsmaxRowWise => "absmax-row-wise",
            Self::AbsmaxVectorWise => "absmax-vector-wise",
            Self::ZeropointVectorWise => "zeropoint-vector-wise",
            Self::AbsmaxRowWiseDecomposition => "absmax-row-wise-decomposition",
            Self::LlmInt8Absmax => "llm-int8",
            Self::LlmInt8Zeropoint => "zeropoint-llm-int8",
        }
    }

    /// The label of its row in Table 1.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Absmax => "absmax",
            Self::Zeropoint => "zeropoint",
            Self::AbsmaxRowWise => "absmax row-wise",
            Self::AbsmaxVectorWise => "absmax vector-wise",
            Self::ZeropointVectorWise => "zeropoint vector-wise",
            Self::AbsmaxRowWiseDecomposition => "absmax row-wise + decomposition",
            Self::LlmInt8Absmax => "absmax LLM.int8()",
            Self::LlmInt8Zeropoint => "zeropoint LLM.int8()",
        }
    }

    /// Its settings, with the paper's threshold and granularity where it decomposes.
    ///
    /// The paper does not specify `W` in the vector-wise zero-point schemes. Here it is absmax: each output channel of a trained
    /// `W` is nearly symmetric, so a zero point gains nothing (demo model: perplexity 25.54 instead of 25.58), and all
    /// vector-wise schemes share bitsandbytes' stored weight.
    pub const fn config(self) -> Config {
        use Encoding::{Absmax, Zeropoint};
        use Granularity::{Row, Tensor};
        let (input, weight, decomposed) = match self {
            Self::Absmax => ((Absmax, Tensor), (Absmax, Tensor), false),
            Self::Zeropoint => ((Zeropoint, Tensor), (Zeropoint, Tensor), false),
            Self::AbsmaxRowWise => ((Absmax, Row), (Absmax, Tensor), false),
            Self::AbsmaxVectorWise => ((Absmax, Row), (Absmax, Row), false),
            Self::ZeropointVectorWise => ((Zeropoint, Row), (Absmax, Row), false),
            Self::AbsmaxRowWiseDecomposition => ((Absmax, Row), (Absmax, Tensor), true),
            Self::LlmInt8Absmax => ((Absmax, Row), (Absmax, Row), true),
            Self::LlmInt8Zeropoint => ((Zeropoint, Row), (Absmax, Row), true),
        };
        Config {
            input_encoding: input.0,
            weight_encoding: weight.0,
            input_granularity: input.1,
            weight_granularity: weight.1,
            rule: if decomposed { OutlierRule::Absolute(PAPER_THRESHOLD) } else { OutlierRule::None },
            outlier_granularity: OutlierGranularity::Column,
            row_maximum: RowMaximum::Paper,
        }
    }

    /// Whether the scheme has an outlier rule.
    pub const fn decomposes(self) -> bool {
        !matches!(self.config().rule, OutlierRule::None)
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Scheme {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        Self::ALL.into_iter().find(|scheme| scheme.name() == name).ok_or_else(|| Error::UnknownScheme {
            name: name.to_owned(),
            known: Self::ALL.map(Self::name).join(", "),
        })
    }
}
