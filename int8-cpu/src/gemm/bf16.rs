//! Products of bf16 matrices with sums in f32, in the order in which `tdpbf16ps` adds.

use half::bf16;

use super::operands::Tile;
use crate::layout::{MAX_MR, NR};
use crate::simd::Vectorize;

/// Numbers of K in a fragment: a row of a tile register.
pub(crate) const STEP: usize = 32;

/// One step of K of an operand, 2 KiB: two tile registers.
///
/// Of the left operand `[32, 32]`, K contiguous; of the right one `[16, 32, 2]`: pairs of K, and both numbers of a pair side by
/// side for each of the 32 columns.
#[repr(C, align(64))]
#[derive(Clone)]
pub(crate) struct Fragment(pub(crate) [bf16; STEP * NR]);

/// Numbers of one row for a step of K: a row of a tile register.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
pub(crate) struct Block(pub(crate) [bf16; STEP]);

impl Block {
    pub(crate) const ZERO: Self = Self([bf16::ZERO; STEP]);
}

impl Fragment {
    pub(crate) const ZERO: Self = Self([bf16::ZERO; STEP * NR]);
}

const _: () = assert!(MAX_MR == 32 && NR == 32, "fragments have the rows and columns of a tile");

/// Multiplies fragments.
///
/// # Safety
/// Contract of [`product`](Self::product): the call is made inside [`scoped`](Self::scoped), on the same thread.
///
/// Contract of the implementor: it can only be made from a capability token, so that its instructions exist on this processor.
pub(crate) unsafe trait Bf16Product: Vectorize {
    /// Runs `job` with the state that [`product`](Self::product) needs set up on this thread.
    fn scoped<R>(self, job: impl FnOnce() -> R) -> R;

    /// `sums[r][n] = Σ_k x[r, k]·w[k, n]` for r below `rows`, or `+=`; other rows get any numbers.
    ///
    /// For each step of K in its order: the sum over the even k and the sum over the odd k, each by fused multiply-adds from 0 on
    /// in the order of k; then these two are added, and the result is added to `sums`. Rounded half to even; subnormal numbers
    /// are taken, and returned, as 0.
    ///
    /// # Safety
    /// The trait's contract.
    ///
    /// # Panics
    /// Unless `1 ≤ rows ≤ 32` and there is a fragment of `w` for each of `x`.
    unsafe fn product(self, rows: usize, x: &[Fragment], w: &[Fragment], add: bool, sums: &mut Tile<f32>);

    /// `sums[r][n] = Σ_(i, j) Σ_k x[r][i][k]·w[j][k, n]` over `pairs`, in this order, each as a step of [`product`](Self::product): of
    /// rows that lie `blocks` blocks of 32 numbers apart, as many as a fragment has, of which the first `rows` count.
    ///
    /// # Safety
    /// The trait's contract.
    ///
    /// # Panics
    /// Unless `1 ≤ rows ≤ 32`, and for a block or fragment that is not there.
    unsafe fn product_of_blocks(
        self,
        rows: usize,
        x: &[Block],
        blocks: usize,
        w: &[Fragment],
        pairs: &[(usize, usize)],
        sums: &mut Tile<f32>,
    ) {
        let mut fragment = Fragment::ZERO;
        for (index, (block, step)) in pairs.iter().enumerate() {
            assert!(*block < blocks, "block {block} of {blocks}");
            for (row, target) in fragment.0.as_chunks_mut::<STEP>().0.iter_mut().enumerate() {
                *target = x[row * blocks + block].0;
            }
            let (x, w) = (std::slice::from_ref(&fragment), std::slice::from_ref(&w[*step]));
            // SAFETY: passed on.
            unsafe { self.product(rows, x, w, index > 0, sums) };
        }
    }
}

/// What tests compare instructions with.
#[cfg(test)]
pub(crate) mod definition {
    use super::*;
    use crate::simd::Vectorized;
    use crate::tokens::Portable;

    /// The definition of [`Bf16Product::product`], one operation at a time.
    #[derive(Clone, Copy)]
    pub(crate) struct Definition;

    impl Vectorize for Definition {
        const CODE_OFFSET: u8 = 0;

        fn vectorize<V: Vectorized>(self, job: V) -> V::Output {
            job.call(Portable::ALWAYS)
        }
    }

    fn normal(value: f32) -> f32 {
        if value.is_subnormal() { 0.0_f32.copysign(value) } else { value }
    }

    // SAFETY: no instruction beyond the target's baseline.
    unsafe impl Bf16Product for Definition {
        fn scoped<R>(self, job: impl FnOnce() -> R) -> R {
            job()
        }

        unsafe fn product(
            self,
            rows: usize,
            x: &[Fragment],
            w: &[Fragment],
            add: bool,
            sums: &mut Tile<f32>,
        ) {
            assert!((1..=MAX_MR).contains(&rows) && x.len() == w.len());
            if !add {
                sums.0 = [[0.0; NR]; MAX_MR];
            }
            let number = |value: bf16| normal(value.to_f32());
            for (x, w) in x.iter().zip(w) {
                for (row, sums) in sums.0.iter_mut().enumerate().take(rows) {
                    for (column, sum) in sums.iter_mut().enumerate() {
                        let mut parts = [0.0_f32; 2];
                        for k in 0..STEP {
                            let x = number(x.0[row * STEP + k]);
                            let w = number(w.0[k / 2 * 2 * NR + 2 * column + k % 2]);
                            parts[k % 2] = normal(x.mul_add(w, parts[k % 2]));
                        }
                        *sum = normal(normal(*sum) + normal(parts[0] + parts[1]));
                    }
                }
            }
        }
    }

    /// The tiles of this processor, if it has some.
    pub(crate) fn processor() -> Option<impl Bf16Product> {
        #[cfg(target_arch = "x86_64")]
        let tiles = crate::tokens::AmxBf16::new();
        #[cfg(not(target_arch = "x86_64"))]
        let tiles: Option<Definition> = None;
        if tiles.is_none() {
            println!("by definition alone: this processor has no AMX-BF16");
        }
        tiles
    }
}
