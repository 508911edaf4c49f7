//! Constants for groups of K: what the product needs of rows, of columns and of one group of a tile.
//!
//! ```text
//! int8 part of y[m,n] = Σ_g s_x[m,g]/127 · s_w[n,g]/127 · (Σ_{k ∈ g} q_x·q_w − z_x[m,g]·Σ_{k ∈ g} q_w − z_w[n,g]·Σ_{k ∈ g} (q_x − z_x))
//! ```
//!
//! A group has 32 values, so the parenthesis and each of its terms are integers below 2²⁴: exact in f32. The sums of a
//! weight's codes are not stored but added up, once for each block, or by the product itself where it has
//! few rows: they would be a sixteenth more memory to read where memory decides, and are lost in the product where it does
//! not.

use half::bf16;
use int8_core::GROUP;

use crate::buffer::Buffer;
use crate::epilogue::Product;
use crate::kernel::Layout;
use crate::panel::PanelProduct;
use crate::resident::Resident;
use crate::tile::{
    GroupColumns, GroupKernel, GroupOperands, Instructions, K_STEP, LANES, MAX_ROWS, Operands, PANEL,
    StoredColumns, Tile, Vectorized,
};
use crate::weight::{PackedWeight, padded};

/// Groups in padded K. Those of the padding have steps of 0.
pub(crate) fn padded_groups(inner: usize) -> usize {
    padded(inner) / GROUP
}

/// What the product needs of one group of a row of `x`. Integers, as f32.
#[derive(Clone, Copy, Default, Debug)]
#[repr(C)]
pub(crate) struct GroupTerms {
    /// `s/127`.
    pub(crate) step: f32,
    /// Zero point, with the kernel's offset added.
    pub(crate) zero: f32,
    /// `Σ_{k ∈ g} (q − z)`; only where the weight has zero points.
    pub(crate) rest: f32,
}

/// The constants of a weight with groups: `[N/PANEL, padded groups, PANEL]`, zero in the padding.
#[derive(Clone, Default)]
pub(crate) struct WeightGroups {
    pub(crate) scales: Resident<bf16>,
    /// Empty where all are 0.
    pub(crate) zero_points: Resident<i8>,
}

/// Group by group, with the terms of the panel in f32.
pub(crate) struct Grouped<'a, K> {
    kernel: K,
    weight: &'a PackedWeight,
    groups: usize,
    /// Where the tiles of the present panel read the constants as they are stored.
    stored: Option<StoredColumns>,
    /// `f32 [groups, PANEL]` each, else.
    steps: Buffer,
    sums: Buffer,
    zero_points: Buffer,
    product: Tile<f32>,
}

impl<'a, K: GroupKernel> Grouped<'a, K> {
    pub(crate) fn new(kernel: K, weight: &'a PackedWeight) -> Self {
        Self {
            kernel,
            weight,
            groups: padded_groups(weight.dim().1),
            stored: None,
            steps: Buffer::default(),
            sums: Buffer::default(),
            zero_points: Buffer::default(),
            product: Tile([[0.0; PANEL]; MAX_ROWS]),
        }
    }
}

impl<K: GroupKernel> PanelProduct for Grouped<'_, K> {
    unsafe fn start(&mut self, panel: usize, tiles: impl ExactSizeIterator<Item = Operands> + Clone) {
        let rows: usize = tiles.map(|tile| tile.rows).sum();
        let groups = self.weight.groups().filter(|_| rows <= K::FEW_ROWS);
        self.stored = groups.map(|groups| {
            let at = panel * self.groups * PANEL..(panel + 1) * self.groups * PANEL;
            StoredColumns {
                scales: groups.scales[at.clone()].as_ptr(),
                zero_points: groups.zero_points.get(at).map(<[i8]>::as_ptr),
            }
        });
        if self.stored.is_some() {
            return;
        }
        let bytes = self.groups * PANEL * size_of::<f32>();
        self.steps.reserve(bytes);
        self.sums.reserve(bytes);
        self.zero_points.reserve(if self.weight.has_zero_points() { bytes } else { 0 });
        let sums = &mut self.sums.floats_mut().as_chunks_mut::<PANEL>().0[..self.groups];
        self.kernel.group_sums(self.weight.layout(), self.weight.panel(panel), sums);
        self.kernel.vectorize(FillTerms {
            weight: self.weight,
            panel,
            steps: &mut self.steps.floats_mut().as_chunks_mut::<PANEL>().0[..self.groups],
            zero_points: self.zero_points.floats_mut().as_chunks_mut::<PANEL>().0,
        });
    }

    #[inline]
    unsafe fn tile(&mut self, _: usize, operands: Operands, terms: &[GroupTerms]) -> Product<'_> {
        if let Some(columns) = self.stored {
            let operands = GroupOperands { codes: operands, x: terms.as_ptr(), ldx: self.groups, columns };
            // SAFETY: lines 1 to 4 are passed on; line 9: the terms, and `groups` constants for each column of the panel.
            // `start` was told the rows of all tiles.
            unsafe { self.kernel.group_product_stored(operands, &mut self.product) };
            return Product::Floats(&self.product);
        }
        let has_zero_points = self.weight.has_zero_points();
        let columns = GroupColumns {
            steps: self.steps.floats().as_ptr(),
            sums: self.sums.floats().as_ptr(),
            zero_points: has_zero_points.then(|| self.zero_points.floats().as_ptr()),
        };
        let operands = GroupOperands { codes: operands, x: terms.as_ptr(), ldx: self.groups, columns };
        // SAFETY: lines 1 to 4 are passed on; line 9: the terms, and three buffers made for this number of groups.
        unsafe { self.kernel.group_product(operands, &mut self.product) };
        Product::Floats(&self.product)
    }
}

/// Widens the constants of one panel: `s/127` and, where there are any, zero points.
struct FillTerms<'a> {
    weight: &'a PackedWeight,
    panel: usize,
    steps: &'a mut [[f32; PANEL]],
    /// Empty where the weight has none.
    zero_points: &'a mut [[f32; PANEL]],
}

impl Vectorized for FillTerms<'_> {
    type Output = ();

    #[inline(always)]
    fn call<I: Instructions>(self, simd: I) {
        let Self { weight, panel, steps, zero_points } = self;
        let columns = weight.columns();
        let Some(groups) = weight.groups() else {
            // One constant a row, the same for all groups.
            let span = panel * PANEL..(panel + 1) * PANEL;
            for steps in steps {
                steps.copy_from_slice(&columns.steps[span.clone()]);
            }
            for zeros in zero_points {
                for (zero, value) in zeros.iter_mut().zip(&columns.zero_points[span.clone()]) {
                    *zero = crate::convert::accumulator(*value);
                }
            }
            return;
        };
        let count = steps.len();
        let scales = groups.scales.as_chunks::<PANEL>().0[panel * count..].iter();
        let divisor = simd.splat(127.0);
        for (steps, scales) in steps.iter_mut().zip(scales) {
            let scales = scales.as_chunks::<LANES>().0;
            for (to, scales) in steps.as_chunks_mut::<LANES>().0.iter_mut().zip(scales) {
                simd.store(simd.divide(simd.load_bf16(scales), divisor), to);
            }
        }
        if !groups.zero_points.is_empty() {
            let values = groups.zero_points.as_chunks::<PANEL>().0[panel * count..].iter();
            for (zeros, values) in zero_points.iter_mut().zip(values) {
                for (zero, value) in zeros.iter_mut().zip(values) {
                    *zero = f32::from(*value);
                }
            }
        }
    }
}

/// Adds one group's accumulators, scaled, to the sums of a tile: for kernels that do not do it in registers.
pub(crate) struct AddGroup<'a> {
    pub(crate) acc: &'a Tile<i32>,
    pub(crate) rows: usize,
    /// The terms of this group for each row, `ldx` apart.
    pub(crate) x: &'a [GroupTerms],
    pub(crate) ldx: usize,
    pub(crate) steps: &'a [f32; PANEL],
    pub(crate) sums: &'a [f32; PANEL],
    pub(crate) zero_points: Option<&'a [f32; PANEL]>,
    /// Whether it is the first group: then the tile is written, not added to.
    pub(crate) first: bool,
    pub(crate) product: &'a mut Tile<f32>,
}

impl Vectorized for AddGroup<'_> {
    type Output = ();

    #[inline(always)]
    fn call<I: Instructions>(self, simd: I) {
        for half in 0..PANEL / LANES {
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
    /// `PANEL · padded K` codes.
    pub(crate) panel: &'a [i8],
    /// `[padded groups, PANEL]`.
    pub(crate) sums: &'a mut [[f32; PANEL]],
}

impl Vectorized for GroupSums<'_> {
    type Output = ();

    #[inline(always)]
    fn call<I: Instructions>(self, simd: I) {
        let k = self.sums.len() * GROUP;
        for (group, sums) in self.sums.iter_mut().enumerate() {
            let mut totals = [0_i32; PANEL];
            match self.layout {
                Layout::Quads => {
                    let mut halves = [simd.splat_int(0); 2];
                    let quads = &self.panel[group * GROUP * PANEL..(group + 1) * GROUP * PANEL];
                    for (i, quads) in quads.as_chunks::<4>().0.as_chunks::<LANES>().0.iter().enumerate() {
                        for lane in 0..4 {
                            halves[i % 2] = simd.add_int(halves[i % 2], simd.byte_of_quads(quads, lane));
                        }
                    }
                    for (half, to) in halves.into_iter().zip(totals.as_chunks_mut().0) {
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
            *sums = totals.map(crate::convert::accumulator);
        }
    }
}

const _: () = assert!(K_STEP.is_multiple_of(GROUP), "padded K is whole groups");
const _: () = assert!(PANEL == 2 * LANES, "a row of a panel is two vectors");

#[cfg(test)]
mod tests {
    use int8_core::corpus::Random;
    use int8_core::{Encoding, Granularity};

    use super::*;
    use crate::kernel::{DispatchGroups, Kernel};
    use crate::tile::Ahead;

    /// Blocks of few rows and of more, of different panels, by the same product.
    struct Reused<'a>(&'a PackedWeight);

    impl DispatchGroups for Reused<'_> {
        type Output = ();

        fn run<K: GroupKernel>(self, tile: K) {
            const ROWS: usize = 6;
            let weight = self.0;
            let (k, groups) = (padded(weight.dim().1), padded_groups(weight.dim().1));
            let mut random = Random::new(5);
            let codes: Vec<i8> = (0..(ROWS + K::ROW_STEP) * k).map(|_| random.choose(&[1, 3, 90])).collect();
            let terms: Vec<GroupTerms> = (0..ROWS * groups)
                .map(|_| GroupTerms { step: random.normal(), zero: 2.0, rest: 3.0 })
                .collect();
            let product = |grouped: &mut Grouped<'_, K>, panel, rows| {
                let panel_codes = weight.panel(panel);
                let operands = Operands {
                    a: codes.as_ptr(),
                    lda: k,
                    rows,
                    panel: panel_codes.as_ptr(),
                    k,
                    ldw: weight.row_bytes(),
                    continued: false,
                    to: None,
                    ahead: Ahead::new::<K>(panel_codes, None, (0, 1), rows),
                };
                // SAFETY: lines 1 to 3: rows of codes, more than enough, and a panel of the weight; line 4: inside `scoped`.
                let product = unsafe {
                    grouped.start(panel, std::iter::once(operands));
                    grouped.tile(0, operands, &terms[..rows * groups])
                };
                match product {
                    Product::Floats(product) => product.0[..rows].as_flattened().to_vec(),
                    Product::Integers(_) => panic!("groups give floats"),
                }
            };
            tile.scoped(|| {
                let mut reused = Grouped::new(tile, weight);
                for (panel, rows) in [(1, 1), (0, ROWS), (1, 4), (1, ROWS), (0, 2)] {
                    let alone = product(&mut Grouped::new(tile, weight), panel, rows);
                    assert_eq!(product(&mut reused, panel, rows), alone, "{rows} rows of panel {panel}");
                }
            });
        }
    }

    #[test]
    fn nothing_is_left_of_the_panel_before() {
        let w = Random::new(4).matrix(2 * PANEL, 100, 1.0);
        for kernel in Kernel::available() {
            for encoding in [Encoding::Absmax, Encoding::Zeropoint] {
                let weight = PackedWeight::quantize(kernel, w.view(), encoding, Granularity::Group);
                kernel.dispatch_groups(Reused(&weight.expect("a valid weight")));
            }
        }
    }
}
