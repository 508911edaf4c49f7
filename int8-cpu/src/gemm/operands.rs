//! Operands of one tile of output.

use std::ops::Range;

use half::bf16;

use crate::layout::{K_STEP, MAX_MR, NR};
use crate::prefetch::Destination;
#[cfg(target_arch = "x86_64")]
use crate::prefetch::{prefetch, prefetch_behind};
use crate::prologue::terms::GroupTerms;

/// One tile of accumulators, row-major: 4 KiB, in L1 between the last of the product and the epilogue.
#[repr(C, align(64))]
pub(crate) struct Tile<T>(pub(crate) [[T; NR]; MAX_MR]);

/// The integer operands of a tile.
#[derive(Clone, Copy)]
pub(crate) struct Operands {
    /// First row of codes: `i8 [rows, k]` (as u8 with 128 added where the kernel's offset is 128), row-major.
    pub(crate) a: *const i8,
    /// Bytes between two rows of `a`.
    pub(crate) lda: usize,
    /// Rows, at least 1 and at most the kernel's `MR`.
    pub(crate) rows: usize,
    /// The panel: `NR * k` bytes in the kernel's layout, 64-byte aligned.
    pub(crate) panel: *const i8,
    /// Padded K: a multiple of `K_STEP`.
    pub(crate) k: usize,
    /// Bytes between two rows of the panel; 0 in `VnniK4` layout.
    pub(crate) ldw: usize,
    /// Whether the accumulators hold the sums of what of K comes before, to be added to.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "no kernel with pieces of K"))]
    pub(crate) continued: bool,
    /// Where the result will be stored, for kernels that make ready for it.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "kernels without prefetching"))]
    pub(crate) to: Option<Destination>,
    /// What to bring into L2 on the way.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "kernels without prefetching"))]
    pub(crate) ahead: Ahead,
}

impl Operands {
    /// The same tile over a part of K, in whole steps, which prefetches from `ahead` on.
    #[inline(always)]
    pub(crate) fn part(self, of: Range<usize>, ahead: *const i8) -> Self {
        // Panels in `VnniK4` layout hold all outputs of a step together.
        let at = if self.ldw == 0 { of.start * NR } else { of.start };
        Self {
            a: self.a.wrapping_add(of.start),
            panel: self.panel.wrapping_add(at),
            k: of.len(),
            ahead: Ahead { panel: ahead, ..self.ahead },
            ..self
        }
    }

    /// Prefetches the lines of the result before the tile is computed, so that its stores do not miss: 4 to 10 % of
    /// an i32 product of 512 rows on Zen 4 with AVX-512, 1 to 9 % on a Xeon; of results in 16 bits, half as much on the first and
    /// nothing on the second.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    pub(crate) fn prefetch_result(self) {
        if let Some(mut to) = self.to {
            for _ in 0..self.rows {
                to.prefetch();
                to = to.below();
            }
        }
    }
}

/// The part of the weights needed next that one tile prefetches while it computes. Without it, the first tile of each
/// panel would run at the speed of memory and the others not touch memory at all.
#[derive(Clone, Copy)]
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "kernels without prefetching"))]
pub(crate) struct Ahead {
    /// A panel, or any address: it is only ever prefetched.
    pub(crate) panel: *const i8,
    /// The cache lines to prefetch of each [`AHEAD_LINES`] that hold `K_STEP` of K.
    pub(crate) from: usize,
    pub(crate) to: usize,
}

/// Cache lines of a panel for `K_STEP` of K.
pub(crate) const AHEAD_LINES: usize = NR * K_STEP / 64;

impl Ahead {
    /// Tile `index` of `count` that read `panel` prefetches its part of the `next` one; of `panel` itself, which is
    /// in the cache, if there is none. A tile of so many rows that reads `panel` alone does as its kernel says.
    pub(crate) fn new(
        alone: Alone,
        panel: &[i8],
        next: Option<&[i8]>,
        (index, count): (usize, usize),
    ) -> Self {
        let share = Self {
            panel: next.unwrap_or(panel).as_ptr(),
            from: AHEAD_LINES * index / count,
            to: AHEAD_LINES * (index + 1) / count,
        };
        match alone {
            Alone::Behind(distance) if count == 1 => {
                Self { panel: panel.as_ptr().wrapping_add(distance), ..share }
            }
            Alone::Nothing if count == 1 => Self { to: share.from, ..share },
            _ => share,
        }
    }

    /// Prefetches the share of the `K_STEP` that begins at `k`.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    pub(crate) fn prefetch(self, k: usize) {
        let start = self.panel.wrapping_add(k * NR);
        for line in self.from..self.to {
            prefetch(start.wrapping_add(line * 64));
        }
    }
}

/// What a tile prefetches that reads its panel from its beginning to its end and is the only one to do so.
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "kernels without prefetching"))]
pub(crate) enum Alone {
    /// The next panel, as tiles do that share one.
    NextPanel,
    /// What lies so many bytes behind what it reads.
    Behind(usize),
    /// Nothing: the processor is better at it.
    Nothing,
}

/// The floating-point operands of a tile's outlier part, or of attention.
#[derive(Clone, Copy)]
pub(crate) struct OuterOperands<W = f32> {
    /// `f32 [rows, count]`, row-major.
    pub(crate) x: *const f32,
    /// Elements between two rows of `x`.
    pub(crate) ldx: usize,
    /// Rows, at least 1 and at most the kernel's `MR`.
    pub(crate) rows: usize,
    /// `W [count, NR]`, row-major, 64-byte aligned; W is f32, f16 or bf16.
    pub(crate) w: *const W,
    /// Outlier columns; width of a head, or positions.
    pub(crate) count: usize,
    /// No other tile reads `w`: it comes from memory, and kernels with prefetching load what lies the [`stream_distance`] behind
    /// what they read.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "kernels without prefetching"))]
    pub(crate) streamed: bool,
}

impl<W> OuterOperands<W> {
    /// Prefetches the row of `w` that lies the distance behind row `o`.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    pub(crate) fn prefetch(&self, o: usize) {
        prefetch_behind(self.w.wrapping_add(o * NR), NR);
    }
}

/// Quantization parameters of one panel's output channels: `f32 [groups, NR]` each, 64-byte aligned.
#[derive(Clone, Copy)]
pub(crate) struct GroupChannels {
    /// `s/127`.
    pub(crate) steps: *const f32,
    /// `Σ_{k ∈ g} q`.
    pub(crate) sums: *const f32,
    /// Nothing where all are 0.
    pub(crate) zero_points: Option<*const f32>,
}

/// Quantization parameters of one panel's output channels as they are stored, `[groups, NR]` each.
#[derive(Clone, Copy)]
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "no kernel with `FEW_ROWS`"))]
pub(crate) struct StoredChannels {
    /// `s`.
    pub(crate) scales: *const bf16,
    /// Nothing where all are 0.
    pub(crate) zero_points: Option<*const i8>,
}

/// The operands of a tile with quantization parameters for groups of K.
#[derive(Clone, Copy)]
pub(crate) struct GroupOperands<C = GroupChannels> {
    pub(crate) codes: Operands,
    /// `[rows, groups]`, row-major, with `k/GROUP` groups.
    pub(crate) x: *const GroupTerms,
    /// Elements between two rows of `x`.
    pub(crate) ldx: usize,
    pub(crate) columns: C,
}
