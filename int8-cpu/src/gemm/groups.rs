//! The product with quantization parameters for groups of K.
//!
//! ```text
//! int8 part of y[m,n] = Σ_g s_x[m,g]/127 · s_w[n,g]/127 · (Σ_{k ∈ g} q_x·q_w − z_x[m,g]·Σ_{k ∈ g} q_w − z_w[n,g]·Σ_{k ∈ g} (q_x − z_x))
//! ```
//!
//! A group has 32 values, so the parenthesis and each of its terms are integers below 2²⁴: exact in f32. The sums of a
//! weight's codes are not stored but added up, once for each block, or by the product itself where it has
//! few rows: they would be a sixteenth more memory to read where memory decides, and hidden by the product where it does
//! not.

use super::microkernel::GroupMicrokernel;
use super::operands::{GroupChannels, GroupOperands, Operands, StoredChannels, Tile};
use super::panel::{PanelProduct, TileProduct};
use crate::buffer::Buffer;
use crate::convert;
use crate::layout::{MAX_MR, NR, padded_groups};
use crate::pack::weight::PackedWeight;
use crate::prologue::terms::GroupTerms;
use crate::simd::{Instructions, LANES, Vectorized};

/// Group by group, with the terms of the panel in f32.
pub(crate) struct Grouped<'a, K> {
    kernel: K,
    weight: &'a PackedWeight,
    groups: usize,
    /// Where the tiles of the present panel read the quantization parameters as they are stored.
    stored: Option<StoredChannels>,
    /// `f32 [groups, NR]` each, else.
    steps: Buffer,
    sums: Buffer,
    zero_points: Buffer,
    product: Tile<f32>,
}

impl<'a, K: GroupMicrokernel> Grouped<'a, K> {
    pub(crate) fn new(kernel: K, weight: &'a PackedWeight) -> Self {
        Self {
            kernel,
            weight,
            groups: padded_groups(weight.dim().1),
            stored: None,
            steps: Buffer::default(),
            sums: Buffer::default(),
            zero_points: Buffer::default(),
            product: Tile([[0.0; NR]; MAX_MR]),
        }
    }
}

impl<K: GroupMicrokernel> PanelProduct for Grouped<'_, K> {
    unsafe fn start(&mut self, panel: usize, tiles: impl ExactSizeIterator<Item = Operands> + Clone) {
        let rows: usize = tiles.map(|tile| tile.rows).sum();
        let groups = self.weight.groups().filter(|_| rows <= K::FEW_ROWS);
        self.stored = groups.map(|groups| {
            let at = panel * self.groups * NR..(panel + 1) * self.groups * NR;
            StoredChannels {
                scales: groups.scales[at.clone()].as_ptr(),
                zero_points: groups.zero_points.get(at).map(<[i8]>::as_ptr),
            }
        });
        if self.stored.is_some() {
            return;
        }
        let bytes = self.groups * NR * size_of::<f32>();
        self.steps.reserve(bytes);
        self.sums.reserve(bytes);
        self.zero_points.reserve(if self.weight.has_zero_points() { bytes } else { 0 });
        let sums = &mut self.sums.floats_mut().as_chunks_mut::<NR>().0[..self.groups];
        self.kernel.group_sums(self.weight.layout(), self.weight.panel(panel), sums);
        self.kernel.vectorize(FillTerms {
            weight: self.weight,
            panel,
            steps: &mut self.steps.floats_mut().as_chunks_mut::<NR>().0[..self.groups],
            zero_points: self.zero_points.floats_mut().as_chunks_mut::<NR>().0,
        });
    }

    #[inline]
    unsafe fn tile(&mut self, _: usize, operands: Operands, terms: &[GroupTerms]) -> TileProduct<'_> {
        if let Some(columns) = self.stored {
            let operands = GroupOperands { codes: operands, x: terms.as_ptr(), ldx: self.groups, columns };
            // SAFETY: lines 1 to 4 are passed on; line 9: the terms, and `groups` parameters for each output channel of the panel.
            // `start` was told the rows of all tiles.
            unsafe { self.kernel.group_product_stored(operands, &mut self.product) };
            return TileProduct::Floats(&self.product);
        }
        let has_zero_points = self.weight.has_zero_points();
        let columns = GroupChannels {
            steps: self.steps.floats().as_ptr(),
            sums: self.sums.floats().as_ptr(),
            zero_points: has_zero_points.then(|| self.zero_points.floats().as_ptr()),
        };
        let operands = GroupOperands { codes: operands, x: terms.as_ptr(), ldx: self.groups, columns };
        // SAFETY: lines 1 to 4 are passed on; line 9: the terms, and three buffers made for this number of groups.
        unsafe { self.kernel.group_product(operands, &mut self.product) };
        TileProduct::Floats(&self.product)
    }
}

/// Widens the quantization parameters of one panel: `s/127` and, where there are any, zero points.
struct FillTerms<'a> {
    weight: &'a PackedWeight,
    panel: usize,
    steps: &'a mut [[f32; NR]],
    /// Empty where the weight has none.
    zero_points: &'a mut [[f32; NR]],
}

impl Vectorized for FillTerms<'_> {
    type Output = ();

    #[inline(always)]
    fn call<I: Instructions>(self, simd: I) {
        let Self { weight, panel, steps, zero_points } = self;
        let columns = weight.columns();
        let Some(groups) = weight.groups() else {
            // One scale and zero point a row, the same for all groups.
            let span = panel * NR..(panel + 1) * NR;
            for steps in steps {
                steps.copy_from_slice(&columns.steps[span.clone()]);
            }
            for zeros in zero_points {
                for (zero, value) in zeros.iter_mut().zip(&columns.zero_points[span.clone()]) {
                    *zero = convert::accumulator(*value);
                }
            }
            return;
        };
        let count = steps.len();
        let scales = groups.scales.as_chunks::<NR>().0[panel * count..].iter();
        let divisor = simd.splat(127.0);
        for (steps, scales) in steps.iter_mut().zip(scales) {
            let scales = scales.as_chunks::<LANES>().0;
            for (to, scales) in steps.as_chunks_mut::<LANES>().0.iter_mut().zip(scales) {
                simd.store(simd.divide(simd.load_bf16(scales), divisor), to);
            }
        }
        if !groups.zero_points.is_empty() {
            let values = groups.zero_points.as_chunks::<NR>().0[panel * count..].iter();
            for (zeros, values) in zero_points.iter_mut().zip(values) {
                for (zero, value) in zeros.iter_mut().zip(values) {
                    *zero = f32::from(*value);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use int8_core::corpus::Random;
    use int8_core::{Encoding, Granularity};

    use super::*;
    use crate::gemm::dispatch::DispatchGroups;
    use crate::gemm::operands::Ahead;
    use crate::kernel::Kernel;
    use crate::layout::padded;

    /// Blocks of few rows and of more, of different panels, by the same product.
    struct Reused<'a>(&'a PackedWeight);

    impl DispatchGroups for Reused<'_> {
        type Output = ();

        fn run<K: GroupMicrokernel>(self, tile: K) {
            const ROWS: usize = 6;
            let weight = self.0;
            let (k, groups) = (padded(weight.dim().1), padded_groups(weight.dim().1));
            let mut random = Random::new(5);
            let codes: Vec<i8> = (0..(ROWS + K::MR_STEP) * k).map(|_| random.choose(&[1, 3, 90])).collect();
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
                    ahead: Ahead::new(K::alone(rows), panel_codes, None, (0, 1)),
                };
                // SAFETY: lines 1 to 3: rows of codes, more than enough, and a panel of the weight; line 4: inside `scoped`.
                let product = unsafe {
                    grouped.start(panel, std::iter::once(operands));
                    grouped.tile(0, operands, &terms[..rows * groups])
                };
                match product {
                    TileProduct::Floats(product) => product.0[..rows].as_flattened().to_vec(),
                    TileProduct::Integers(_) => panic!("groups give floats"),
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
        let w = Random::new(4).matrix(2 * NR, 100, 1.0);
        for kernel in Kernel::available() {
            for encoding in [Encoding::Absmax, Encoding::Zeropoint] {
                let weight = PackedWeight::quantize(kernel, w.view(), encoding, Granularity::Group);
                kernel.dispatch_groups(Reused(&weight.expect("a valid weight")));
            }
        }
    }
}
