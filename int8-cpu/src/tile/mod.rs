//! The innermost functions: one tile of output, all of K or a piece of it, one instruction set each.
//!
//! A tile is up to [`TileKernel::ROWS`] rows of `x` by [`PANEL`] outputs. Its integer product stays in registers over
//! all of K and is then written to a buffer in L1, where code that is the same for every instruction set turns it into
//! the result. A kernel with [`TileKernel::INNER`] gets longer K in pieces, and its tiles wait for the next one in L2.

#[cfg(target_arch = "x86_64")]
pub(crate) mod amx;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
#[cfg(target_arch = "aarch64")]
pub(crate) mod i8mm;
pub(crate) mod lanes;
#[cfg(target_arch = "x86_64")]
mod lanes_x86;
#[cfg(target_arch = "aarch64")]
pub(crate) mod neon;
pub(crate) mod portable;

pub(crate) use lanes::{Instructions, LANES, Lane};

use std::ops::Range;

use half::bf16;
use int8_core::GROUP;

use crate::groups::{AddGroup, GroupSums, GroupTerms};
use crate::kernel::Layout;

/// Output rows of a weight that are packed together: two zmm registers of i32 accumulators, so that one broadcast of
/// `x` serves two dot-product instructions; two AMX tiles side by side.
pub(crate) const PANEL: usize = 32;

/// K is padded with zero codes to a multiple of this: one cache line of a row of `x`, one AMX tile row.
pub(crate) const K_STEP: usize = 64;

/// The most rows that any kernel's tile has.
pub(crate) const MAX_ROWS: usize = 32;

/// One tile of accumulators, row-major: 4 KiB, in L1 between the last of the product and the epilogue.
#[repr(C, align(64))]
pub(crate) struct Tile<T>(pub(crate) [[T; PANEL]; MAX_ROWS]);

/// The integer operands of a tile.
#[derive(Clone, Copy)]
pub(crate) struct Operands {
    /// First row of codes: `i8 [rows, k]` (as u8 with 128 added where the kernel's offset is 128), row-major.
    pub(crate) a: *const i8,
    /// Bytes between two rows of `a`.
    pub(crate) lda: usize,
    /// Rows, at least 1 and at most the kernel's `ROWS`.
    pub(crate) rows: usize,
    /// The panel: `PANEL * k` bytes in the kernel's layout, 64-byte aligned.
    pub(crate) panel: *const i8,
    /// Padded K: a multiple of `K_STEP`.
    pub(crate) k: usize,
    /// Bytes between two rows of the panel; 0 where it is laid out in quads.
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
    /// The same tile over a part of K, in whole steps, on which it fetches what begins at `ahead`.
    #[inline(always)]
    pub(crate) fn part(self, of: Range<usize>, ahead: *const i8) -> Self {
        // Panels laid out in quads hold all outputs of a step together.
        let at = if self.ldw == 0 { of.start * PANEL } else { of.start };
        Self {
            a: self.a.wrapping_add(of.start),
            panel: self.panel.wrapping_add(at),
            k: of.len(),
            ahead: Ahead { panel: ahead, ..self.ahead },
            ..self
        }
    }

    /// Asks for the lines of the result before the tile is computed, so that its stores need not wait for them: 4 to 10 % of
    /// an i32 product of 512 rows on Zen 4 with AVX-512, 1 to 9 % on a Xeon; of results in 16 bits, half as much on the first and
    /// nothing on the second.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    pub(crate) fn fetch_result(self) {
        if let Some(mut to) = self.to {
            for _ in 0..self.rows {
                to.fetch();
                to = to.below();
            }
        }
    }
}

/// The part of a matrix that a tile will be stored to. Never read or written through this.
#[derive(Clone, Copy)]
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "kernels without prefetching"))]
pub(crate) struct Destination {
    pub(crate) first: *const u8,
    /// Bytes between two rows.
    pub(crate) stride: isize,
    /// Bytes of a row, at most `4·PANEL`.
    pub(crate) width: usize,
}

#[cfg(target_arch = "x86_64")]
impl Destination {
    /// What begins at the next row.
    #[inline(always)]
    pub(crate) fn below(self) -> Self {
        Self { first: self.first.wrapping_offset(self.stride), ..self }
    }

    /// Asks for the lines of the first row. They come to L2, and belong to this core unless another has them, too.
    #[inline(always)]
    pub(crate) fn fetch(self) {
        // A row is two lines long at most and need not begin on one, so that it may lie in three. A loop over those that it does
        // lie in takes a hundredth of a product more than asking for one of them twice.
        fetch(self.first);
        if self.width > 64 {
            fetch(self.first.wrapping_add(63));
        }
        fetch(self.first.wrapping_add(self.width.saturating_sub(1)));
    }
}

/// The share of the weights needed next that one tile fetches while it computes. Without it, the first tile of each
/// panel would run at the speed of memory and the others not touch memory at all.
#[derive(Clone, Copy)]
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "kernels without prefetching"))]
pub(crate) struct Ahead {
    /// A panel, or any address: it is only ever prefetched.
    pub(crate) panel: *const i8,
    /// The cache lines to fetch of each [`AHEAD_LINES`] that hold `K_STEP` of K.
    pub(crate) from: usize,
    pub(crate) to: usize,
}

/// Cache lines of a panel for `K_STEP` of K.
pub(crate) const AHEAD_LINES: usize = PANEL * K_STEP / 64;

impl Ahead {
    /// Tile `index` of `count` that read `panel` fetches its share of the one that is read `next`; of `panel` itself, which is
    /// in the cache, if there is none. A tile of so many rows that reads `panel` alone does as its kernel says.
    pub(crate) fn new<K: TileKernel>(
        panel: &[i8],
        next: Option<&[i8]>,
        (index, count): (usize, usize),
        rows: usize,
    ) -> Self {
        let share = Self {
            panel: next.unwrap_or(panel).as_ptr(),
            from: AHEAD_LINES * index / count,
            to: AHEAD_LINES * (index + 1) / count,
        };
        match K::alone(rows) {
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
    pub(crate) fn fetch(self, k: usize) {
        let start = self.panel.wrapping_add(k * PANEL);
        for line in self.from..self.to {
            fetch(start.wrapping_add(line * 64));
        }
    }
}

/// What a tile fetches that reads its panel from its beginning to its end and is the only one to do so.
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "kernels without prefetching"))]
pub(crate) enum Alone {
    /// The next panel, as tiles do that share one.
    NextPanel,
    /// What lies so many bytes behind what it reads.
    Behind(usize),
    /// Nothing: the processor is better at it.
    Nothing,
}

/// Whether AMD made the processor. Distances at which streams of weights are fetched were measured on Zen 4 and on a Xeon with AMX,
/// which do best with different ones.
pub(crate) fn is_amd() -> bool {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    {
        static IS_AMD: std::sync::LazyLock<bool> = std::sync::LazyLock::new(|| {
            let vendor = std::arch::x86_64::__cpuid(0);
            [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes).concat() == b"AuthenticAMD"
        });
        *IS_AMD
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    false
}

/// Prefetches a cache line into L2, on processors where the kernels do so.
#[inline(always)]
pub(crate) fn fetch<T>(address: *const T) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: a prefetch never faults, wherever it points.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(address.cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// The floating-point operands of a tile's outlier part, or of attention.
#[derive(Clone, Copy)]
pub(crate) struct OuterOperands<W = f32> {
    /// `f32 [rows, count]`, row-major.
    pub(crate) x: *const f32,
    /// Elements between two rows of `x`.
    pub(crate) ldx: usize,
    /// Rows, at least 1 and at most the kernel's `ROWS`.
    pub(crate) rows: usize,
    /// `W [count, PANEL]`, row-major, 64-byte aligned; W is f32, f16 or bf16.
    pub(crate) w: *const W,
    /// Outlier columns; width of a head, or positions.
    pub(crate) count: usize,
    /// No other tile reads `w`: it comes from memory, and kernels with prefetching fetch what lies the [`stream_distance`] behind
    /// what they read.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "kernels without prefetching"))]
    pub(crate) streamed: bool,
}

/// How many bytes behind what is read a stream of floats is fetched: a little more than what a core reads in the time that a
/// line takes to come from memory. Two pages on Zen 4 (one row by bf16 weights: 20 % less time than with one, on one thread).
#[inline(always)]
pub(crate) fn stream_distance() -> usize {
    if is_amd() { 8192 } else { 4096 }
}

/// Prefetches the lines that lie the [`stream_distance`] behind `count` elements at `address`.
#[inline(always)]
pub(crate) fn fetch_behind<T>(address: *const T, count: usize) {
    let distance = stream_distance();
    for line in (0..count * size_of::<T>()).step_by(64) {
        fetch(address.wrapping_byte_add(distance + line));
    }
}

impl<W> OuterOperands<W> {
    /// Prefetches the row of `w` that lies the distance behind row `o`.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    pub(crate) fn fetch(&self, o: usize) {
        fetch_behind(self.w.wrapping_add(o * PANEL), PANEL);
    }
}

/// The constants of one panel's columns: `f32 [groups, PANEL]` each, 64-byte aligned.
#[derive(Clone, Copy)]
pub(crate) struct GroupColumns {
    /// `s/127`.
    pub(crate) steps: *const f32,
    /// `Σ_{k ∈ g} q`.
    pub(crate) sums: *const f32,
    /// Nothing where all are 0.
    pub(crate) zero_points: Option<*const f32>,
}

/// The constants of one panel's columns as they are stored, `[groups, PANEL]` each.
#[derive(Clone, Copy)]
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "no kernel with `FEW_ROWS`"))]
pub(crate) struct StoredColumns {
    /// `s`.
    pub(crate) scales: *const bf16,
    /// Nothing where all are 0.
    pub(crate) zero_points: Option<*const i8>,
}

/// The operands of a tile with constants for groups of K.
#[derive(Clone, Copy)]
pub(crate) struct GroupOperands<C = GroupColumns> {
    pub(crate) codes: Operands,
    /// `[rows, groups]`, row-major, with `k/GROUP` groups.
    pub(crate) x: *const GroupTerms,
    /// Elements between two rows of `x`.
    pub(crate) ldx: usize,
    pub(crate) columns: C,
}

/// A computation compiled once for each instruction set. Implementations are `#[inline(always)]`, so that their loops
/// are vectorised with the features of the function they end up in.
pub(crate) trait Vectorized {
    type Output;
    fn call<I: Instructions>(self, instructions: I) -> Self::Output;
}

/// The instruction-set specific part of a kernel.
///
/// # Safety
/// Contract of [`product`](Self::product):
/// 1. `a` is readable for `rows` rows, rounded up to a multiple of `ROW_STEP`, of `k` bytes, `lda` bytes apart;
/// 2. `panel` is 64-byte aligned and readable for `PANEL·k` bytes where it is laid out in quads; else it is readable for
///    PANEL rows of `k` bytes, `ldw` apart;
/// 3. `1 ≤ rows ≤ ROWS` and `k` is a multiple of [`K_STEP`], or [`GROUP`](int8_core::GROUP) in a [`GroupKernel`] that
///    leaves `group_product` as it is;
/// 4. the call is made inside [`scoped`](Self::scoped), on the same thread.
///
/// Contract of [`outer`](Self::outer):
/// 5. `x` is readable for `rows` rows of `count` floats, `ldx` floats apart;
/// 6. `w` is readable for `count·PANEL` elements and 64-byte aligned, and `1 ≤ rows ≤ ROWS`.
///
/// Contract of the implementor:
/// 7. it can only be made from a capability token, so that its instructions exist on this processor;
/// 8. `ROWS ≤ MAX_ROWS`, and both functions write at least the first `rows` rows of their tile and nothing outside it.
///
/// Contract of [`product`](Self::product) for K in parts:
/// 11. `continued` only if there is an [`INNER`](Self::INNER), and then `acc` holds what this function wrote for the parts of
///     K before.
pub(crate) unsafe trait TileKernel: Copy + Send + Sync {
    /// Most rows of a tile: what the accumulator registers hold.
    const ROWS: usize;
    /// Rows that cost no more than one: tiles are cut at multiples of it.
    const ROW_STEP: usize = 1;
    /// Most of K that a tile goes through before the next tile of the panel does the same: so much of a panel stays in L1 for
    /// all tiles. `None`: all of K, and no tile is ever continued.
    const INNER: Option<usize> = None;
    /// Added to the codes of `x` in memory: 128 where the instruction multiplies unsigned by signed bytes.
    const OFFSET: u8;

    /// What a tile of so many rows fetches that reads its panel alone.
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

    /// Runs `job` compiled with the kernel's instruction set.
    fn vectorize<V: Vectorized>(self, job: V) -> V::Output;
}

/// A kernel that multiplies group by group of K.
///
/// # Safety
/// Contract of [`group_product`](Self::group_product), besides lines 1 to 4 of [`TileKernel`] for `codes`:
/// 9. `x` is readable for `rows` rows of `k/GROUP` terms, `ldx` apart, and each of `columns` for `k/GROUP·PANEL` values,
///    64-byte aligned where they are floats.
///
/// Contract of the implementor, besides lines 7 and 8:
/// 10. `product` can do with `k = GROUP` (line 3), or `group_product` does not call it.
pub(crate) unsafe trait GroupKernel: TileKernel {
    /// `Σ_g x.step·columns.step·(Σ_{k ∈ g} a·w − x.zero·columns.sum − x.rest·columns.zero_point)`: what is in parentheses is
    /// exact, the rest is f32, added in the order of g.
    ///
    /// # Safety
    /// Line 9, and lines 1 to 4 of [`TileKernel`].
    unsafe fn group_product(self, operands: GroupOperands, product: &mut Tile<f32>) {
        let GroupOperands { codes, x, ldx, columns } = operands;
        let mut acc = Tile([[0; PANEL]; MAX_ROWS]);
        for group in 0..codes.k / GROUP {
            let first = group * GROUP;
            // SAFETY: line 9: the terms from this group on, of the last row too; line 10 for k = GROUP, and lines 1 and 2
            // for GROUP codes from `first` on in either layout.
            unsafe {
                let panel = if codes.ldw == 0 { first * PANEL } else { first };
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
                    steps: &*columns.steps.cast::<[f32; PANEL]>().add(group),
                    sums: &*columns.sums.cast::<[f32; PANEL]>().add(group),
                    zero_points: columns.zero_points.map(|z| &*z.cast::<[f32; PANEL]>().add(group)),
                    first: group == 0,
                    product,
                });
            }
        }
    }

    /// Rows up to which [`group_product_stored`](Self::group_product_stored) may be asked.
    const FEW_ROWS: usize = 0;

    /// As [`group_product`](Self::group_product), from the stored constants: widening them first, and adding up the codes,
    /// takes as long as the product of a few rows. The same bits.
    ///
    /// # Safety
    /// Line 9, lines 1 to 4 of [`TileKernel`], and `rows ≤ FEW_ROWS`.
    unsafe fn group_product_stored(self, _: GroupOperands<StoredColumns>, _: &mut Tile<f32>) {
        unreachable!("FEW_ROWS is 0");
    }

    /// `Σ_{k ∈ g} q_w` of one panel, `[k/GROUP, PANEL]`.
    fn group_sums(self, layout: Layout, panel: &[i8], sums: &mut [[f32; PANEL]]) {
        self.vectorize(GroupSums { layout, panel, sums });
    }
}
