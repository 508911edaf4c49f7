//! Keys of settings, as command lines and reports write them.

use crate::{FloatType, KvType, OutlierGranularity, OutlierRule, RowMaximum, RowStatistic, Scheme, scheme};

/// A setting that is one of a few values, each with a key.
///
/// ```
/// use int8_core::{Named, RowMaximum};
///
/// let keys: Vec<&str> = RowMaximum::VALUES.iter().map(|value| value.key()).collect();
/// assert_eq!(keys, ["paper", "bitsandbytes"]);
/// ```
pub trait Named: Copy + 'static {
    /// The values that a user may choose.
    const VALUES: &'static [Self];

    /// The key of a value, lower case: equal for no two of [`VALUES`](Self::VALUES).
    fn key(self) -> &'static str;

    /// What the value means, as one line of a help text; empty where the key says it.
    fn meaning(self) -> &'static str {
        ""
    }
}

impl Named for Scheme {
    const VALUES: &'static [Self] = &Self::ALL;

    fn key(self) -> &'static str {
        self.name()
    }
}

/// Each rule with its default parameters. [`OutlierRule::None`] has a key, but is chosen by a scheme.
impl Named for OutlierRule {
    const VALUES: &'static [Self] = &[
        Self::Absolute(scheme::PAPER_THRESHOLD),
        Self::RelativeToRow { tau: scheme::DEFAULT_TAU, statistic: RowStatistic::MedianAbs },
    ];

    fn key(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Absolute(_) => "absolute",
            Self::RelativeToRow { .. } => "relative",
        }
    }

    fn meaning(self) -> &'static str {
        match self {
            Self::None => "no decomposition",
            Self::Absolute(_) => "|x| ≥ threshold",
            Self::RelativeToRow { .. } => "|x| ≥ tau · statistic of the row",
        }
    }
}

impl Named for RowStatistic {
    const VALUES: &'static [Self] = &[Self::MedianAbs, Self::MeanAbs];

    fn key(self) -> &'static str {
        match self {
            Self::MedianAbs => "median",
            Self::MeanAbs => "mean",
        }
    }

    fn meaning(self) -> &'static str {
        match self {
            Self::MedianAbs => "Median magnitude of the values that are not zero",
            Self::MeanAbs => "Mean magnitude",
        }
    }
}

impl Named for OutlierGranularity {
    const VALUES: &'static [Self] = &[Self::Column, Self::Value];

    fn key(self) -> &'static str {
        match self {
            Self::Column => "column",
            Self::Value => "value",
        }
    }

    fn meaning(self) -> &'static str {
        match self {
            Self::Column => "The column, for the whole batch",
            Self::Value => "The value",
        }
    }
}

impl Named for RowMaximum {
    const VALUES: &'static [Self] = &[Self::Paper, Self::Bitsandbytes];

    fn key(self) -> &'static str {
        match self {
            Self::Paper => "paper",
            Self::Bitsandbytes => "bitsandbytes",
        }
    }

    fn meaning(self) -> &'static str {
        match self {
            Self::Paper => "Values of the int8 product",
            Self::Bitsandbytes => "All values that are no outliers themselves",
        }
    }
}

impl Named for FloatType {
    const VALUES: &'static [Self] = &[Self::F32, Self::F16, Self::Bf16];

    /// Lower case, unlike [`FloatType::name`], which is that of safetensors.
    fn key(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        }
    }

    fn meaning(self) -> &'static str {
        match self {
            Self::F32 => "32-bit",
            Self::F16 => "IEEE half precision, magnitudes up to 65504",
            Self::Bf16 => "bfloat16",
        }
    }
}

impl Named for KvType {
    const VALUES: &'static [Self] = &Self::ALL;

    fn key(self) -> &'static str {
        self.name()
    }

    fn meaning(self) -> &'static str {
        match self {
            Self::F32 => FloatType::F32.meaning(),
            Self::F16 => FloatType::F16.meaning(),
            Self::Bf16 => FloatType::Bf16.meaning(),
            Self::Int8 => "Codes with a scale for each key and value: half the memory of 16 bits; on a CPU",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys_differ<T: Named>() {
        let mut keys: Vec<&str> = T::VALUES.iter().map(|value| value.key()).collect();
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), T::VALUES.len(), "{keys:?}");
    }

    #[test]
    fn no_two_values_share_a_key() {
        keys_differ::<Scheme>();
        keys_differ::<OutlierRule>();
        keys_differ::<RowStatistic>();
        keys_differ::<OutlierGranularity>();
        keys_differ::<RowMaximum>();
        keys_differ::<FloatType>();
    }
}
