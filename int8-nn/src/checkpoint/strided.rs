//! Tensors whose elements do not lie row-major: transposes and slices, as PyTorch files may hold them.

use rayon::prelude::*;

/// Elements of a square tile: its source rows and its target rows, 64 cache lines of 64 B each at most, stay in a
/// first-level cache while every line of both is used up.
const TILE: usize = 32;

/// Bytes one task writes: outweighs handing it to another thread, and leaves enough tasks for all cores.
const TASK_BYTES: usize = 1 << 20;

/// The elements of `element` bytes of a view, row-major. `bytes` begins at the view's first element and holds its last.
pub(super) fn gather(bytes: &[u8], element: usize, shape: &[usize], strides: &[usize]) -> Vec<u8> {
    let elements: usize = shape.iter().product();
    let mut out = vec![0; elements * element];
    if elements == 0 {
        return out;
    }
    // The last two dimensions are gathered tile by tile; the others count them.
    let (outer, rows, columns) = match *shape {
        [] => (0, 1, 1),
        [columns] => (0, 1, columns),
        [.., rows, columns] => (shape.len() - 2, rows, columns),
    };
    let row_stride = if strides.len() >= 2 { strides[strides.len() - 2] } else { 0 };
    let column_stride = strides.last().copied().unwrap_or(0);
    // Bands of rows, of whole tiles.
    let row_bytes = columns * element;
    let band = (TASK_BYTES / row_bytes).next_multiple_of(TILE).clamp(TILE, rows.next_multiple_of(TILE));
    let gather_matrix = |(index, out): (usize, &mut [u8])| {
        let begin = offset(index, &shape[..outer], strides);
        out.par_chunks_mut(band * row_bytes).enumerate().for_each(|(number, out)| {
            let begin = begin + number * band * row_stride;
            for (tile, out) in out.chunks_mut(TILE * row_bytes).enumerate() {
                let begin = begin + tile * TILE * row_stride;
                for left in (0..columns).step_by(TILE) {
                    let width = TILE.min(columns - left);
                    for (row, out) in out.chunks_exact_mut(row_bytes).enumerate() {
                        let out = &mut out[left * element..][..width * element];
                        let begin = begin + row * row_stride + left * column_stride;
                        match element {
                            1 => copy::<1>(bytes, begin, column_stride, out),
                            2 => copy::<2>(bytes, begin, column_stride, out),
                            4 => copy::<4>(bytes, begin, column_stride, out),
                            _ => copy::<8>(bytes, begin, column_stride, out),
                        }
                    }
                }
            }
        });
    };
    out.par_chunks_mut(rows * row_bytes).enumerate().for_each(gather_matrix);
    out
}

/// Where matrix `index` of those counted by the dimensions `shape` begins, in elements.
fn offset(mut index: usize, shape: &[usize], strides: &[usize]) -> usize {
    let mut offset = 0;
    for (&dim, &stride) in shape.iter().zip(strides).rev() {
        offset += index % dim * stride;
        index /= dim;
    }
    offset
}

/// Copies elements of N bytes that lie `stride` elements apart, from element `begin` on.
fn copy<const N: usize>(bytes: &[u8], begin: usize, stride: usize, out: &mut [u8]) {
    for (step, out) in out.as_chunks_mut::<N>().0.iter_mut().enumerate() {
        out.copy_from_slice(&bytes[(begin + step * stride) * N..][..N]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Element by element, as the definition says.
    fn naive(bytes: &[u8], element: usize, shape: &[usize], strides: &[usize]) -> Vec<u8> {
        let elements: usize = shape.iter().product();
        let at = |index| offset(index, shape, strides) * element;
        (0..elements).flat_map(|index| bytes[at(index)..][..element].iter().copied()).collect()
    }

    #[test]
    fn tiles_give_what_the_definition_gives() {
        for element in [1, 2, 4, 8] {
            for (shape, strides) in [
                (vec![], vec![]),
                (vec![1], vec![0]),
                (vec![7], vec![3]),
                (vec![5, 4], vec![1, 5]),
                (vec![33, 65], vec![1, 33]),
                (vec![64, 32], vec![40, 1]),
                (vec![31, 1], vec![2, 9]),
                (vec![3, 2, 37], vec![1, 111, 3]),
                (vec![2, 3, 4, 5], vec![60, 1, 15, 3]),
                (vec![2, 0, 3], vec![1, 1, 1]),
                (vec![700, 900], vec![1, 700]),
            ] {
                let last: usize =
                    shape.iter().zip(&strides).map(|(&d, &s): (&usize, _)| d.saturating_sub(1) * s).sum();
                let bytes: Vec<u8> = (0..=255).cycle().step_by(7).take((last + 1) * element).collect();
                let found = gather(&bytes, element, &shape, &strides);
                assert_eq!(found, naive(&bytes, element, &shape, &strides), "{shape:?} by {strides:?}");
            }
        }
    }
}
