//! The innermost functions: one tile of output, all of K or a piece of it, one instruction set each.
//!
//! A tile is up to [`Microkernel::MR`] rows of `x` by [`NR`] outputs. Its integer product stays in registers over
//! all of K and is then written to a buffer in L1, where code that is the same for every instruction set turns it into
//! the result. A kernel with [`Microkernel::KC`] gets longer K in pieces, and its tiles wait for the next one in L2.

use int8_core::GROUP;

use super::group_terms::{AddGroup, GroupSums};
use super::operands::{Alone, GroupOperands, Operands, OuterOperands, StoredChannels, Tile};
use crate::layout::{Layout, MAX_MR, NR};
use crate::simd::{Lane, Vectorize};

/// The instruction-set specific part of a kernel.
///
/// # Safety
/// Contract of [`product`](Self::product):
/// 1. `a` is readable for `rows` rows, rounded up to a multiple of `MR_STEP`, of `k` bytes, `lda` bytes apart;
/// 2. `panel` is 64-byte aligned and readable for `NR·k` bytes in `VnniK4` layout; else it is readable for
///    NR rows of `k` bytes, `ldw` apart;
/// 3. `1 ≤ rows ≤ MR` and `k` is a multiple of [`K_STEP`], or [`GROUP`](int8_core::GROUP) in a [`GroupMicrokernel`] that
///    leaves `group_product` as it is;
/// 4. the call is made inside [`scoped`](Self::scoped), on the same thread.
///
/// Contract of [`outer`](Self::outer):
/// 5. `x` is readable for `rows` rows of `count` floats, `ldx` floats apart;
/// 6. `w` is readable for `count·NR` elements and 64-byte aligned, and `1 ≤ rows ≤ MR`.
///
/// Contract of the implementor:
/// 7. it can only be made from a capability token, so that its instructions exist on this processor;
/// 8. `MR ≤ MAX_MR`, and both functions write at least the first `rows` rows of their tile and nothing outside it.
///
/// Contract of [`product`](Self::product) for K in parts:
/// 11. `continued` only if there is an [`KC`](Self::KC), and then `acc` holds what this function wrote for the parts of
///     K before.
pub(crate) unsafe trait Microkernel: Vectorize {
    /// Most rows of a tile: what the accumulator registers hold.
    const MR: usize;
    /// Most of K that a tile goes through before the next tile of the panel does the same: so much of a panel stays in L1 for
    /// all tiles. `None`: all of K, and no tile is ever continued.
    const KC: Option<usize> = None;

    /// What a tile of so many rows prefetches that reads its panel alone.
    fn alone(_rows: usize) -> Alone {
        Alone::NextPanel
    }

    /// Runs `job` with the state that [`product`](Self::product) needs set up on this thread.
    fn scoped<R>(self, job: impl FnOnce() -> R) -> R {
        job()
    }

    /// `acc[r][n] = Σ_k a[r, k]·w[n, k]`, or `acc[r][n] +=` the same if it is continued, modulo 2³².
    ///
    /// # Safety
    /// Lines 1 to 4 and 11 of the trait's contract.
    unsafe fn product(self, operands: Operands, acc: &mut Tile<i32>);

    /// `sums[r][n] = Σ_o x[r, o]·w[o, n]` in f32, added in the order of `o`, starting from 0. Elements of 16 bits are widened
    /// in registers: the same bits as from the same numbers in f32.
    ///
    /// # Safety
    /// Lines 5 and 6 of the trait's contract.
    unsafe fn outer<W: Lane>(self, operands: OuterOperands<W>, sums: &mut Tile<f32>);
}

/// A kernel that multiplies group by group of K.
///
/// # Safety
/// Contract of [`group_product`](Self::group_product), besides lines 1 to 4 of [`Microkernel`] for `codes`:
/// 9. `x` is readable for `rows` rows of `k/GROUP` terms, `ldx` apart, and each of `columns` for `k/GROUP·NR` values,
///    64-byte aligned where they are floats.
///
/// Contract of the implementor, besides lines 7 and 8:
/// 10. `product` can do with `k = GROUP` (line 3), or `group_product` does not call it.
pub(crate) unsafe trait GroupMicrokernel: Microkernel {
    /// `Σ_g x.step·columns.step·(Σ_{k ∈ g} a·w − x.zero·columns.sum − x.rest·columns.zero_point)`: what is in parentheses is
    /// exact, the rest is f32, added in the order of g.
    ///
    /// # Safety
    /// Line 9, and lines 1 to 4 of [`Microkernel`].
    unsafe fn group_product(self, operands: GroupOperands, product: &mut Tile<f32>) {
        let GroupOperands { codes, x, ldx, columns } = operands;
        let mut acc = Tile([[0; NR]; MAX_MR]);
        for group in 0..codes.k / GROUP {
            let first = group * GROUP;
            // SAFETY: line 9: the terms from this group on, of the last row too; line 10 for k = GROUP, and lines 1 and 2
            // for GROUP codes from `first` on in either layout.
            unsafe {
                let panel = if codes.ldw == 0 { first * NR } else { first };
                let to = if group == 0 { codes.to } else { None };
                let (a, panel) = (codes.a.add(first), codes.panel.add(panel));
                let part = Operands { a, panel, k: GROUP, to, ..codes };
                self.product(part, &mut acc);
                let terms = (codes.rows - 1) * ldx + 1;
                self.vectorize(AddGroup {
                    acc: &acc,
                    rows: codes.rows,
                    x: std::slice::from_raw_parts(x.add(group), terms),
                    ldx,
                    steps: &*columns.steps.cast::<[f32; NR]>().add(group),
                    sums: &*columns.sums.cast::<[f32; NR]>().add(group),
                    zero_points: columns.zero_points.map(|z| &*z.cast::<[f32; NR]>().add(group)),
                    first: group == 0,
                    product,
                });
            }
        }
    }

    /// Rows up to which [`group_product_stored`](Self::group_product_stored) may be called.
    const FEW_ROWS: usize = 0;

    /// As [`group_product`](Self::group_product), from the stored quantization parameters: widening them first, and adding up the codes,
    /// takes as long as the product of a few rows. The same bits.
    ///
    /// # Safety
    /// Line 9, lines 1 to 4 of [`Microkernel`], and `rows ≤ FEW_ROWS`.
    unsafe fn group_product_stored(self, _: GroupOperands<StoredChannels>, _: &mut Tile<f32>) {
        unreachable!("FEW_ROWS is 0");
    }

    /// `Σ_{k ∈ g} q_w` of one panel, `[k/GROUP, NR]`.
    fn group_sums(self, layout: Layout, panel: &[i8], sums: &mut [[f32; NR]]) {
        self.vectorize(GroupSums { layout, panel, sums });
    }
}
