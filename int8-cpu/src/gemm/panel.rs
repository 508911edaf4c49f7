//! The tiles of one panel: integers over all of K in blocks of KC here, group by group in [`super::groups`].

use std::cell::Cell;

use super::microkernel::Microkernel;
use super::operands::{Operands, Tile};
use crate::layout::{K_STEP, MAX_MR, NR};
use crate::prologue::terms::GroupTerms;

/// The int8 part of a tile.
#[derive(Clone, Copy)]
pub(crate) enum TileProduct<'a> {
    /// Accumulators over all of K, still to be corrected and scaled.
    Integers(&'a Tile<i32>),
    /// Scaled group by group of K.
    Floats(&'a Tile<f32>),
}

/// The product of the tiles of one panel after the other.
pub(crate) trait PanelProduct {
    /// Called before the tiles of a panel, with the operands of all of them, in order.
    ///
    /// # Safety
    /// Lines 1 to 4 of [`Microkernel`] for each of them.
    unsafe fn start(&mut self, panel: usize, tiles: impl ExactSizeIterator<Item = Operands> + Clone);

    /// The product of tile `index` of the panel; `terms` are those of its rows, `[rows, groups]`.
    ///
    /// # Safety
    /// Lines 1 to 4 of [`Microkernel`] for `operands`, which `start` was given as number `index`, and `terms` has that many
    /// rows.
    unsafe fn tile(&mut self, index: usize, operands: Operands, terms: &[GroupTerms]) -> TileProduct<'_>;
}

thread_local! {
    /// The accumulators of the last product of this thread with K in pieces: without them, each would pay for fresh pages.
    static ACCUMULATORS: Cell<Vec<Tile<i32>>> = const { Cell::new(Vec::new()) };
}

/// Over all of K, in pieces where the kernel wants them: every tile goes through one before the next one begins.
pub(crate) struct Whole<K> {
    kernel: K,
    /// For the tiles in turn, if K is one piece.
    single: Tile<i32>,
    /// One for each tile of the panel, else.
    several: Vec<Tile<i32>>,
    /// Pieces of K of the present panel.
    pieces: usize,
}

impl<K: Microkernel> Whole<K> {
    pub(crate) fn new(kernel: K) -> Self {
        let several = if K::KC.is_some() { ACCUMULATORS.take() } else { Vec::new() };
        Self { kernel, single: Tile([[0; NR]; MAX_MR]), several, pieces: 1 }
    }

    /// As [`PanelProduct::tile`].
    ///
    /// # Safety
    /// As there.
    #[inline]
    pub(crate) unsafe fn integers(&mut self, index: usize, operands: Operands) -> &Tile<i32> {
        let last = self.pieces - 1;
        let (acc, part) = if last == 0 {
            (&mut self.single, operands)
        } else {
            let part = piece(operands, last, self.pieces);
            (&mut self.several[index], Operands { continued: true, ..part })
        };
        // SAFETY: lines 1 to 4 for all of K or a part of it; line 11: `start` has computed all pieces but this one.
        unsafe { self.kernel.product(part, acc) };
        acc
    }
}

impl<K> Drop for Whole<K> {
    fn drop(&mut self) {
        if self.several.capacity() > 0 {
            ACCUMULATORS.set(std::mem::take(&mut self.several));
        }
    }
}

/// The operands of piece `index` of `pieces`.
///
/// Prefetched is the piece that is multiplied next, of this panel or of the next one: with whole panels, two of
/// them would share L2 with the rows of x.
#[inline(always)]
fn piece(operands: Operands, index: usize, pieces: usize) -> Operands {
    // In whole steps of K.
    let edge = |index| operands.k / K_STEP * index / pieces * K_STEP;
    let (first, end) = (edge(index), edge(index + 1));
    let is_last = index + 1 == pieces;
    let ahead = if is_last { operands.ahead.panel } else { operands.panel.wrapping_add(end * NR) };
    operands.part(first..end, ahead)
}

impl<K: Microkernel> PanelProduct for Whole<K> {
    #[inline]
    unsafe fn start(&mut self, _: usize, tiles: impl ExactSizeIterator<Item = Operands> + Clone) {
        let k = tiles.clone().next().map_or(0, |tile| tile.k);
        // One tile has nothing to come back for.
        self.pieces = match K::KC {
            Some(inner) if tiles.len() > 1 => k.div_ceil(inner).max(1),
            _ => 1,
        };
        if self.pieces > 1 && self.several.len() < tiles.len() {
            self.several.resize_with(tiles.len(), || Tile([[0; NR]; MAX_MR]));
        }
        for index in 0..self.pieces - 1 {
            for (operands, acc) in tiles.clone().zip(&mut self.several) {
                let part = Operands { to: None, ..piece(operands, index, self.pieces) };
                // SAFETY: a part of what lines 1 to 4 say; line 11: pieces in their order, into the accumulators of this
                // tile, for a kernel with `INNER`.
                unsafe { self.kernel.product(Operands { continued: index > 0, ..part }, acc) };
            }
        }
    }

    #[inline]
    unsafe fn tile(&mut self, index: usize, operands: Operands, _: &[GroupTerms]) -> TileProduct<'_> {
        // SAFETY: passed on.
        TileProduct::Integers(unsafe { self.integers(index, operands) })
    }
}

#[cfg(test)]
mod tests {
    use int8_core::corpus::Random;

    use super::*;
    use crate::gemm::operands::{Ahead, Alone, OuterOperands};
    use crate::simd::{Lane, Vectorize, Vectorized};
    use crate::tokens::Portable;

    /// The portable kernel, with pieces of two steps.
    #[derive(Clone, Copy)]
    struct Pieces(Portable);

    impl Vectorize for Pieces {
        const CODE_OFFSET: u8 = 0;

        fn vectorize<V: Vectorized>(self, job: V) -> V::Output {
            self.0.vectorize(job)
        }
    }

    // SAFETY: line 7: from a token; line 8: as the portable tile.
    unsafe impl Microkernel for Pieces {
        const MR: usize = Portable::MR;
        const KC: Option<usize> = Some(2 * K_STEP);

        unsafe fn product(self, operands: Operands, acc: &mut Tile<i32>) {
            let mut part = Tile([[0; NR]; MAX_MR]);
            // SAFETY: passed on; the portable kernel gets what is not continued.
            unsafe { self.0.product(Operands { continued: false, ..operands }, &mut part) };
            for (acc, part) in acc.0.iter_mut().zip(&part.0).take(operands.rows) {
                for (acc, part) in acc.iter_mut().zip(part) {
                    *acc = if operands.continued { *acc + part } else { *part };
                }
            }
        }

        unsafe fn outer<W: Lane>(self, operands: OuterOperands<W>, sums: &mut Tile<f32>) {
            // SAFETY: passed on.
            unsafe { self.0.outer(operands, sums) }
        }
    }

    #[test]
    fn pieces_of_k_add_up() {
        let plain = Portable::ALWAYS;
        let mut random = Random::new(11);
        // Larger, then smaller: what an earlier product left in the accumulators must not come through.
        let shapes =
            [(11, 448, 4), (9, 448, 4), (8, 192, 2), (12, 128, 1), (5, 64, 1), (3, 448, 1), (11, 0, 1)];
        // Miri takes a minute for a million multiply-adds.
        let shapes = if cfg!(miri) { &[(9, 192, 2), (5, 64, 1)][..] } else { &shapes };
        for &(rows, k, parts) in shapes {
            let mut codes = |count| -> Vec<i8> {
                (0..count).map(|_| random.choose(&[-127, -3, 0, 1, 64, 127])).collect()
            };
            let (a, panel) = (codes(rows * k), codes(NR * k));
            let tiles = (0..rows).step_by(4).map(|first| Operands {
                a: a[first * k..].as_ptr(),
                lda: k,
                rows: (rows - first).min(4),
                panel: panel.as_ptr(),
                k,
                ldw: k,
                continued: false,
                to: None,
                ahead: Ahead::new(Alone::NextPanel, &panel, None, (0, 1)),
            });
            let tiles: Vec<Operands> = tiles.collect();
            let (mut pieces, mut whole) = (Whole::new(Pieces(plain)), Whole::new(plain));
            for _ in 0..2 {
                // SAFETY: line 1 and 2: rows and panel of k codes each; line 3: 1 to 4 rows, K in whole steps; line 4: nothing to
                // set up.
                unsafe {
                    pieces.start(0, tiles.iter().copied());
                    whole.start(0, tiles.iter().copied());
                    assert_eq!((pieces.pieces, whole.pieces), (parts, 1));
                    for (index, tile) in tiles.iter().enumerate() {
                        let (found, expected) = (pieces.integers(index, *tile), whole.integers(index, *tile));
                        assert_eq!(found.0[..tile.rows], expected.0[..tile.rows], "{rows} rows, {k} of K");
                    }
                }
            }
        }
    }
}
