//! The correction and scaling of one group of K, and the code sums of a panel's groups, for microkernels that do not compute
//! them in registers.

use int8_core::GROUP;

use super::operands::Tile;
use crate::convert;
use crate::layout::{Layout, NR};
use crate::prologue::terms::GroupTerms;
use crate::simd::{Instructions, LANES, Vectorized};

/// Adds one group's accumulators, scaled, to the sums of a tile: for kernels that do not do it in registers.
pub(crate) struct AddGroup<'a> {
    pub(crate) acc: &'a Tile<i32>,
    pub(crate) rows: usize,
    /// The terms of this group for each row, `ldx` apart.
    pub(crate) x: &'a [GroupTerms],
    pub(crate) ldx: usize,
    pub(crate) steps: &'a [f32; NR],
    pub(crate) sums: &'a [f32; NR],
    pub(crate) zero_points: Option<&'a [f32; NR]>,
    /// Whether it is the first group: then the tile is written, not added to.
    pub(crate) first: bool,
    pub(crate) product: &'a mut Tile<f32>,
}

impl Vectorized for AddGroup<'_> {
    type Output = ();

    #[inline(always)]
    fn call<I: Instructions>(self, simd: I) {
        for half in 0..NR / LANES {
            let steps = simd.load(&self.steps.as_chunks().0[half]);
            let code_sums = simd.load(&self.sums.as_chunks().0[half]);
            for (r, terms) in self.x.iter().step_by(self.ldx).take(self.rows).enumerate() {
                let acc = simd.to_floats(simd.load_int(&self.acc.0[r].as_chunks().0[half]));
                let mut corrected = simd.multiply_add(simd.splat(-terms.zero), code_sums, acc);
                if let Some(zero_points) = self.zero_points {
                    let zero_points = simd.load(&zero_points.as_chunks().0[half]);
                    corrected = simd.multiply_add(simd.splat(-terms.rest), zero_points, corrected);
                }
                let scaled = simd.multiply(corrected, steps);
                let to = &mut self.product.0[r].as_chunks_mut().0[half];
                let before = if self.first { simd.splat(0.0) } else { simd.load(to) };
                simd.store(simd.multiply_add(simd.splat(terms.step), scaled, before), to);
            }
        }
    }
}

/// `Σ_{k ∈ g} q_w` of one panel, in any layout.
pub(crate) struct GroupSums<'a> {
    pub(crate) layout: Layout,
    /// `NR · padded K` codes.
    pub(crate) panel: &'a [i8],
    /// `[padded groups, NR]`.
    pub(crate) sums: &'a mut [[f32; NR]],
}

impl Vectorized for GroupSums<'_> {
    type Output = ();

    #[inline(always)]
    fn call<I: Instructions>(self, simd: I) {
        let k = self.sums.len() * GROUP;
        for (group, sums) in self.sums.iter_mut().enumerate() {
            let mut totals = [0_i32; NR];
            match self.layout {
                Layout::VnniK4 => {
                    let mut totals16 = [simd.splat_int(0); 2];
                    let k4 = &self.panel[group * GROUP * NR..(group + 1) * GROUP * NR];
                    for (i, k4) in k4.as_chunks::<4>().0.as_chunks::<LANES>().0.iter().enumerate() {
                        for lane in 0..4 {
                            totals16[i % 2] = simd.add_int(totals16[i % 2], simd.byte_of_k4(k4, lane));
                        }
                    }
                    for (half, to) in totals16.into_iter().zip(totals.as_chunks_mut().0) {
                        simd.store_int(half, to);
                    }
                }
                Layout::Rows => {
                    for (n, total) in totals.iter_mut().enumerate() {
                        let codes = &self.panel[n * k + group * GROUP..][..GROUP];
                        *total = codes.iter().map(|code| i32::from(*code)).sum();
                    }
                }
            }
            *sums = totals.map(convert::accumulator);
        }
    }
}

const _: () = assert!(NR == 2 * LANES, "a row of a panel is two vectors");
