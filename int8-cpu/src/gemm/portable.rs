//! Plain Rust, vectorised by the compiler for the baseline of the target (SSE2, NEON).

use super::microkernel::{GroupMicrokernel, Microkernel};
use super::operands::{Operands, OuterOperands, Tile};
use crate::layout::NR;
use crate::simd::{LANES, Lane};
use crate::tokens::Portable;

// SAFETY: line 7: no instruction beyond the target's baseline is used. Line 8: MR = 4 and rows 0..rows are written.
unsafe impl Microkernel for Portable {
    /// A row of the panel is read once for all rows of the tile; four keep it short of spilling.
    const MR: usize = 4;

    unsafe fn product(self, operands: Operands, acc: &mut Tile<i32>) {
        let Operands { a, lda, rows, panel, k, ldw, .. } = operands;
        for n in 0..NR {
            // SAFETY: line 2: the panel holds NR rows of k bytes, ldw apart.
            let w = unsafe { std::slice::from_raw_parts(panel.add(n * ldw), k) };
            for (r, row) in acc.0.iter_mut().take(rows).enumerate() {
                // SAFETY: line 1: r < rows.
                let x = unsafe { std::slice::from_raw_parts(a.add(r * lda), k) };
                // At most 127², so the products fit i16: eight lanes of SSE2 or NEON instead of four.
                row[n] = x.iter().zip(w).map(|(x, w)| i32::from(i16::from(*x) * i16::from(*w))).sum();
            }
        }
    }

    unsafe fn outer<W: Lane>(self, operands: OuterOperands<W>, acc: &mut Tile<f32>) {
        let OuterOperands { x, ldx, rows, w, count, .. } = operands;
        for (r, row) in acc.0.iter_mut().take(rows).enumerate() {
            let mut sum = [0.0; NR];
            for o in 0..count {
                // SAFETY: lines 5 and 6: r < rows and o < count.
                let (x, w) = unsafe { (*x.add(r * ldx + o), &*w.add(o * NR).cast::<[[W; LANES]; 2]>()) };
                for (sums, w) in sum.as_chunks_mut::<LANES>().0.iter_mut().zip(w) {
                    for (sum, w) in sums.iter_mut().zip(W::load(self, w)) {
                        *sum += x * w;
                    }
                }
            }
            *row = sum;
        }
    }
}

// SAFETY: line 10: any k.
unsafe impl GroupMicrokernel for Portable {}
