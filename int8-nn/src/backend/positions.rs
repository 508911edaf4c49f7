//! Tables that positions enter attention by: cosines and sines of rotations, slopes of ALiBi.

use std::ops::Range;

use ndarray::parallel::prelude::*;
use ndarray::{ArrayViewMut2, Axis};

use crate::backend::AttentionSpec;
use crate::config::{Positions, Rotary};
use crate::convert;

/// Cosines and sines `[positions, half]` of the angles by which pairs of a head's dimensions are rotated.
#[derive(Debug)]
pub(super) struct Rotation {
    pub(super) half: usize,
    pub(super) cos: Vec<f32>,
    pub(super) sin: Vec<f32>,
}

impl Rotation {
    /// Of these positions in a text of `length` tokens.
    pub(super) fn new(rotary: &Rotary, positions: Range<usize>, length: usize) -> Self {
        let (frequencies, magnitude) = (&rotary.frequencies(length), rotary.magnitude());
        let angles = || {
            positions
                .clone()
                .flat_map(|position| frequencies.iter().map(move |f| convert::f64_from(position) * f))
        };
        Self {
            half: frequencies.len(),
            cos: angles().map(|angle| convert::f32_from(magnitude * angle.cos())).collect(),
            sin: angles().map(|angle| convert::f32_from(magnitude * angle.sin())).collect(),
        }
    }
}

impl Rotation {
    /// Rotates the leading dimensions of each run of `size` columns, rows being those of consecutive positions of which `position`
    /// is the place of the first in the table; pairs are `(i, i + dims/2)`.
    pub(super) fn turn(&self, position: usize, size: usize, x: &mut ArrayViewMut2<'_, f32>) {
        let half = self.half;
        x.axis_iter_mut(Axis(0)).into_par_iter().enumerate().for_each(|(row, mut values)| {
            let angles = (position + row) * half..(position + row + 1) * half;
            let (cos, sin) = (&self.cos[angles.clone()], &self.sin[angles]);
            let values = values.as_slice_mut().expect("rows are contiguous");
            for head in values.chunks_exact_mut(size) {
                let (first, second) = head[..2 * half].split_at_mut(half);
                for (((a, b), cos), sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
                    (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
                }
            }
        });
    }
}

/// The rotations of a model's layers, each different one once.
#[derive(Debug, Default)]
pub(super) struct Rotations<'a> {
    known: Vec<&'a Rotary>,
}

impl<'a> Rotations<'a> {
    /// The place of a layer's rotation in [`tables`](Self::tables), if its positions are rotary.
    pub(super) fn place(&mut self, positions: &'a Positions) -> Option<usize> {
        match positions {
            Positions::Rotary(rotary) => {
                Some(self.known.iter().position(|known| *known == rotary).unwrap_or_else(|| {
                    self.known.push(rotary);
                    self.known.len() - 1
                }))
            }
            Positions::Learned { .. }
            | Positions::Sinusoidal(_)
            | Positions::Alibi
            | Positions::Relative(_)
            | Positions::Disentangled(_)
            | Positions::None => None,
        }
    }

    /// The tables of all positions, for frequencies that depend on no length.
    #[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "the CPU has further tables"))]
    pub(super) fn tables(self, max_positions: usize) -> impl Iterator<Item = Rotation> {
        self.known.into_iter().map(move |rotary| Rotation::new(rotary, 0..max_positions, max_positions))
    }

    /// The settings, in the order of the places.
    pub(super) fn settings(self) -> impl Iterator<Item = &'a Rotary> {
        self.known.into_iter()
    }
}

/// The slopes of Press, Smith and Lewis (2022): a geometric sequence for a power of two; for other head counts the
/// sequence of the next lower power, then every second slope of the next higher.
fn alibi_slopes(heads: usize) -> Vec<f32> {
    let power = |heads: usize| heads.next_power_of_two() >> usize::from(!heads.is_power_of_two());
    let slopes = |count: usize| {
        let base = 2.0_f64.powf(-8.0 / convert::f64_from(count));
        (1..=count).map(move |head| convert::f32_from(base.powf(convert::f64_from(head))))
    };
    let lower = power(heads);
    slopes(lower).chain(slopes(2 * lower).step_by(2)).take(heads).collect()
}

impl AttentionSpec {
    /// The slopes of its query heads.
    pub(super) fn alibi_slopes(&self) -> Vec<f32> {
        let (first, all) = self.part.unwrap_or((0, self.heads));
        alibi_slopes(all).into_iter().skip(first).take(self.heads).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slopes_of_powers_of_two_and_others() {
        assert_eq!(alibi_slopes(8), (1..=8).map(|head| 0.5_f32.powi(head)).collect::<Vec<_>>());
        let twelve = alibi_slopes(12);
        assert_eq!(twelve.len(), 12);
        assert_eq!(twelve[..8], alibi_slopes(8));
        assert!((twelve[8] - 0.5_f32.powf(0.5)).abs() < 1e-7, "{twelve:?}");
        assert!((twelve[11] - 0.5_f32.powf(3.5)).abs() < 1e-7, "{twelve:?}");
    }
}
