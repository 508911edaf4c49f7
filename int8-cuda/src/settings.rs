//! `int8_core`'s configuration in the kernels' numbers. A variant that the kernels do not know becomes −1, which they refuse as
//! invalid.

use int8_core::{Config, Encoding, Granularity, OutlierGranularity, OutlierRule, RowMaximum, RowStatistic};
use int8_cuda_sys as sys;

/// How x is quantised.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Settings {
    pub(crate) encoding: i32,
    pub(crate) granularity: i32,
    pub(crate) rule: i32,
    pub(crate) threshold: f32,
    pub(crate) outlier_granularity: i32,
    pub(crate) row_maximum: i32,
}

impl Settings {
    pub(crate) fn of(config: &Config) -> Self {
        let (rule, threshold) = match config.rule {
            OutlierRule::Absolute(threshold) => (sys::INT8_CUDA_RULE_ABSOLUTE, threshold),
            OutlierRule::RelativeToRow { tau, statistic: RowStatistic::MedianAbs } => {
                (sys::INT8_CUDA_RULE_MEDIAN, tau)
            }
            OutlierRule::RelativeToRow { tau, statistic: RowStatistic::MeanAbs } => {
                (sys::INT8_CUDA_RULE_MEAN, tau)
            }
            OutlierRule::None => (sys::INT8_CUDA_RULE_NONE, 0.0),
            _ => (-1, 0.0),
        };
        Self {
            encoding: encoding(config.input_encoding),
            granularity: granularity(config.input_granularity),
            rule,
            threshold,
            outlier_granularity: match config.outlier_granularity {
                OutlierGranularity::Column => sys::INT8_CUDA_COLUMN,
                OutlierGranularity::Value => sys::INT8_CUDA_VALUE,
            },
            row_maximum: match config.row_maximum {
                RowMaximum::Paper => sys::INT8_CUDA_MAXIMUM_PAPER,
                RowMaximum::Bitsandbytes => sys::INT8_CUDA_MAXIMUM_BITSANDBYTES,
            },
        }
    }
}

pub(crate) fn encoding(encoding: Encoding) -> i32 {
    match encoding {
        Encoding::Absmax => sys::INT8_CUDA_ABSMAX,
        Encoding::Zeropoint => sys::INT8_CUDA_ZEROPOINT,
    }
}

pub(crate) fn granularity(granularity: Granularity) -> i32 {
    match granularity {
        Granularity::Tensor => sys::INT8_CUDA_PER_TENSOR,
        Granularity::Row => sys::INT8_CUDA_PER_ROW,
        Granularity::Group => -1,
    }
}
