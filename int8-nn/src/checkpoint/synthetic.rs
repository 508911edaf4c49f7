//! Checkpoints without files: tensors of given names and shapes over one small pool of random numbers.
//!
//! The rows of a matrix are overlapping windows of the pool, [`ROW_STRIDE`] elements apart. A model of any size so takes some
//! megabytes before it is loaded, and a row is borrowed from the pool like one of a mapped file. Tensors share bytes, which those
//! of a file never do.

use std::collections::BTreeMap;

use half::{bf16, f16};
use int8_core::FloatType;
use int8_core::corpus::Random;

use super::contents::{Contents, Entry};
use super::source::{Embedded, Source, Storage};
use super::{Checkpoint, CheckpointError, DType, FileFormat, WeightFile};

/// Elements between the beginnings of two rows: 250,000 rows of 16 bits take 32 MB.
const ROW_STRIDE: usize = 64;

/// Elements among which tensors begin.
const PLACES: usize = 1024 * ROW_STRIDE;

/// Elements from the beginning of one tensor to that of the next, modulo [`PLACES`]. Odd: no row of a tensor is a row of one of
/// the next 63, so that a token's embedding is no row of a weight of the first block.
const PLACE_STEP: usize = 2411;

/// Among so many gains of a norm one is [`OUTLIER_GAIN`]: a feature of the hidden states that reaches magnitude 6 in most rows.
/// The share of outlier columns is that of the benchmark of single layers, 0.1 %.
const OUTLIER_EVERY: usize = 1000;
const OUTLIER_AT: usize = 7;
const OUTLIER_GAIN: f32 = 20.0;

/// A tensor to be made up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Synthetic {
    /// Its name.
    pub(crate) name: String,
    /// Its shape: a vector or a matrix.
    pub(crate) shape: Vec<usize>,
    /// Its values.
    pub(crate) values: Values,
}

/// The values of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Values {
    /// Normal, with a small deviation.
    Normal,
    /// Gains of a norm: ones.
    Ones,
    /// Gains of a norm: ones, and [`OUTLIER_GAIN`] for one in [`OUTLIER_EVERY`].
    Outliers,
}

impl Synthetic {
    /// Elements of the pool from its first to behind its last.
    fn span(&self) -> usize {
        match self.shape[..] {
            [rows, columns] if rows > 0 => (rows - 1) * ROW_STRIDE + columns,
            _ => self.shape.iter().product(),
        }
    }
}

impl Checkpoint {
    /// The tensors `tensors`, with values that depend on nothing but their order and `deviation`, the standard deviation of
    /// [`Values::Normal`], beside the files of `source`.
    pub(crate) fn synthetic(
        source: Source,
        float: FloatType,
        deviation: f32,
        tensors: Vec<Synthetic>,
    ) -> Result<Self, CheckpointError> {
        let longest = |values: Values| {
            tensors.iter().filter(|tensor| tensor.values == values).map(Synthetic::span).max().unwrap_or(0)
        };
        let [outliers, ones] = [Values::Outliers, Values::Ones].map(longest);
        let normal = longest(Values::Normal) + PLACES;
        let mut random = Random::new(0);
        let is_outlier = |index: usize| index % OUTLIER_EVERY == OUTLIER_AT;
        let values = (0..outliers)
            .map(|index| if is_outlier(index) { OUTLIER_GAIN } else { 1.0 })
            .chain(std::iter::repeat_n(1.0, ones))
            .chain(std::iter::repeat_with(|| deviation * random.normal()).take(normal));
        let pool: Vec<u8> = match float {
            FloatType::F32 => values.flat_map(f32::to_le_bytes).collect(),
            FloatType::F16 => values.flat_map(|value| f16::from_f32(value).to_le_bytes()).collect(),
            FloatType::Bf16 => values.flat_map(|value| bf16::from_f32(value).to_le_bytes()).collect(),
        };
        let entries = tensors
            .into_iter()
            .enumerate()
            .map(|(index, tensor)| {
                let first = match tensor.values {
                    Values::Outliers => 0,
                    Values::Ones => outliers,
                    Values::Normal => outliers + ones + index * PLACE_STEP % PLACES,
                };
                let range = first * float.bytes()..(first + tensor.span()) * float.bytes();
                let strides = (tensor.shape.len() == 2).then(|| vec![ROW_STRIDE, 1]);
                Entry { name: tensor.name, dtype: DType::from(float), shape: tensor.shape, range, strides }
            })
            .collect();
        let label = "random weights".to_owned();
        let file = WeightFile {
            label: label.clone(),
            storage: Storage::Embedded(Embedded::owned(pool)),
            format: FileFormat::Safetensors,
            contents: Contents { entries, tied: BTreeMap::new(), metadata: BTreeMap::new() },
        };
        Self::assemble(label, source, vec![file])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_have_their_shapes_and_differ() {
        let tensor = |name: &str, shape: &[usize], values| Synthetic {
            name: name.into(),
            shape: shape.into(),
            values,
        };
        let tensors = [
            tensor("w1", &[300, 70], Values::Normal),
            tensor("w2", &[300, 70], Values::Normal),
            tensor("b", &[300], Values::Normal),
            tensor("g", &[1500], Values::Outliers),
            tensor("one", &[1200], Values::Ones),
            tensor("none", &[0, 70], Values::Normal),
        ];
        for float in [FloatType::F32, FloatType::F16, FloatType::Bf16] {
            let open = || {
                Checkpoint::synthetic(Source::embedded([]), float, 0.02, tensors.to_vec())
                    .expect("a checkpoint")
            };
            let (checkpoint, again) = (open(), open());
            let values = |checkpoint: &Checkpoint, name| {
                checkpoint.tensor(name).and_then(|tensor| tensor.to_f32()).expect("numbers")
            };
            assert_eq!(checkpoint.float_type(), Some(float));
            let [w1, w2] = ["w1", "w2"].map(|name| values(&checkpoint, name));
            assert_eq!((w1.len(), values(&checkpoint, "b").len()), (300 * 70, 300));
            assert!(w1 != w2 && w1 == values(&again, "w1") && values(&checkpoint, "none").is_empty());
            assert_eq!(w1[70..76], w1[64..70], "rows overlap");
            let mean_square = w1.iter().map(|value| value * value).sum::<f32>() / 21_000.0;
            assert!((mean_square.sqrt() / 0.02 - 1.0).abs() < 0.05, "{mean_square}");
            let gains = values(&checkpoint, "g");
            assert_eq!(values(&checkpoint, "one"), [1.0; 1200]);
            assert!(gains.len() == 1500 && gains[7] == OUTLIER_GAIN && gains[1007] == OUTLIER_GAIN);
            assert!(gains.iter().enumerate().all(|(index, gain)| index % 1000 == 7 || *gain == 1.0));
        }
    }
}
