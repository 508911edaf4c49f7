//! Keys and values are written to pages: rounded or quantised to the cache's type, each page by one thread.

use half::{bf16, f16};
use int8_core::{Encoding, Error as CoreError, FloatSlice, KvType};
use ndarray::{Array2, ArrayView2, CowArray, Ix2, s};
use rayon::prelude::*;

use super::kv_pages::{KvPages, Layout, PAGE_POSITIONS};
use crate::error::Error;
use crate::kernel::Kernel;
use crate::layout::NR;
use crate::matrix::rows_of;
use crate::prologue::encode::{EncodeRow, scratch_length};
use crate::simd::functions::padded;
use crate::simd::{FloatLane, Instructions, LANES, Lane, Vectorized, run};

/// Numbers below which the calling thread writes them all: some 20 µs, a few times what it takes to wake another.
const SERIAL_NUMBERS: usize = 1 << 14;

/// Keys and values of consecutive positions of a sequence.
#[derive(Debug, Clone, Copy)]
pub struct KvRows<'a> {
    /// The sequence's page numbers.
    pub table: &'a [u32],
    /// The first position.
    pub position: usize,
    /// f32 `[rows, kv_heads·head_size]`, row-major.
    pub keys: ArrayView2<'a, f32>,
    /// As `keys`.
    pub values: ArrayView2<'a, f32>,
}

/// The rows that lie in one page, from position `at` of it on.
struct Piece<'a> {
    page: u32,
    at: usize,
    keys: ArrayView2<'a, f32>,
    values: ArrayView2<'a, f32>,
}

/// Rows of one page, and what becomes of them.
type OfPage<'b, 'a, W> = &'b [(&'b Piece<'a>, &'b Converted<'a, W>)];

/// Such rows in the type of the cache.
struct Converted<'a, W> {
    keys: CowArray<'a, W, Ix2>,
    values: CowArray<'a, W, Ix2>,
    /// `[rows, heads]` of keys and of values, or nothing.
    steps: [Vec<f32>; 2],
}

impl KvPages {
    /// [`write_all`](Self::write_all) of one sequence.
    ///
    /// # Errors
    /// As there.
    ///
    /// # Panics
    /// As there.
    pub fn write(
        &mut self,
        kernel: Kernel,
        layer: usize,
        table: &[u32],
        position: usize,
        keys: ArrayView2<'_, f32>,
        values: ArrayView2<'_, f32>,
    ) -> Result<(), Error> {
        self.write_all(kernel, layer, &[KvRows { table, position, keys, values }])
    }

    /// Writes keys and values to their positions, rounded half to even to the cache's type. NaN and infinities stay what they are; in
    /// int8 a key or value of a head with one of them is NaN as a whole. Of rows for the same position, the last ones stay.
    ///
    /// # Errors
    /// The reference's `Shape` when the widths or numbers of rows differ from what they should be or the rows do not
    /// fit behind their position in the table's pages; [`Error::NotRowMajor`]; [`Error::CacheRange`] for a number that the
    /// cache's type would round to infinity. Nothing has been written then.
    ///
    /// # Panics
    /// When there is no such layer, or no such page as a table has for one of these positions.
    pub fn write_all(&mut self, kernel: Kernel, layer: usize, parts: &[KvRows<'_>]) -> Result<(), Error> {
        let Layout { heads, size, .. } = self.layout;
        let mut pieces = Vec::new();
        for part in parts {
            let KvRows { table, position, keys, values } = *part;
            let capacity = table.len().saturating_mul(PAGE_POSITIONS);
            for (what, found) in [("keys", keys.dim()), ("values", values.dim())] {
                let expected = (keys.nrows().min(capacity.saturating_sub(position)), heads * size);
                if found != expected {
                    return Err(CoreError::Shape { what, expected, found }.into());
                }
            }
            rows_of(keys, "keys")?;
            rows_of(values, "values")?;
            if size == 0 || keys.nrows() == 0 {
                continue;
            }
            self.layout.check(layer, table, &(position..position + keys.nrows()));
            pieces.extend(Piece::of(part));
        }
        match self.element {
            KvType::F32 => self.write_pieces(layer, &pieces, |piece| {
                let (keys, values) = (piece.keys.into(), piece.values.into());
                Ok(Converted { keys, values, steps: [Vec::new(), Vec::new()] })
            }),
            KvType::F16 => self.write_pieces(layer, &pieces, |piece| piece.rounded::<f16>(kernel)),
            KvType::Bf16 => self.write_pieces(layer, &pieces, |piece| piece.rounded::<bf16>(kernel)),
            KvType::Int8 => {
                self.write_pieces(layer, &pieces, |piece| Ok(piece.quantized(kernel, heads, size)))
            }
        }
    }

    fn write_pieces<'a, W: Lane>(
        &mut self,
        layer: usize,
        pieces: &[Piece<'a>],
        convert: impl Fn(&Piece<'a>) -> Result<Converted<'a, W>, Error> + Sync + Send,
    ) -> Result<(), Error> {
        let numbers: usize = pieces.iter().map(|piece| 2 * piece.keys.len()).sum();
        let parallel = pieces.len() > 1 && numbers >= SERIAL_NUMBERS && rayon::current_num_threads() > 1;
        for piece in pieces.iter().filter(|piece| piece.keys.nrows() == 1) {
            let table = &[piece.page];
            self.panels_of::<W>(layer, table).prefetch_position(piece.at);
        }
        let converted: Vec<Result<_, Error>> = if parallel {
            pieces.par_iter().map(convert).collect()
        } else {
            pieces.iter().map(convert).collect()
        };
        let converted = converted.into_iter().collect::<Result<Vec<_>, _>>()?;
        let mut by_page: Vec<_> = pieces.iter().zip(&converted).collect();
        // Stable: rows for the same position stay in order.
        by_page.sort_by_key(|(piece, _)| piece.page);
        let by_page: Vec<_> = by_page.chunk_by(|(a, _), (b, _)| a.page == b.page).collect();
        let layout = self.layout;
        let length = self.steps_length();
        let numbers = by_page.iter().map(|pieces| pieces[0].0.page as usize);
        let pages = pages_mut(self.storage.elements_mut::<W>(), layout.page_length(), numbers.clone());
        let steps = pages_mut(self.steps.elements_mut::<f32>(), length, numbers);
        let write = |((pieces, page), steps): ((OfPage<'_, '_, W>, &mut [W]), &mut [f32])| {
            for (piece, converted) in pieces {
                converted.write(layout, layer, piece.at, page, steps);
            }
        };
        let tasks: Vec<_> = by_page.into_iter().zip(pages).zip(steps).collect();
        if parallel {
            tasks.into_par_iter().for_each(write);
        } else {
            tasks.into_iter().for_each(write);
        }
        Ok(())
    }
}

/// Pages of `length` elements with these numbers, which ascend.
fn pages_mut<T>(mut rest: &mut [T], length: usize, numbers: impl Iterator<Item = usize>) -> Vec<&mut [T]> {
    let mut first = 0;
    let page = |number: usize| {
        let (_, after) = std::mem::take(&mut rest).split_at_mut((number - first) * length);
        let (page, after) = after.split_at_mut(length);
        (rest, first) = (after, number + 1);
        page
    };
    numbers.map(page).collect()
}

impl<'a> Piece<'a> {
    /// Rows that fit, page by page.
    fn of(part: &KvRows<'a>) -> impl Iterator<Item = Self> {
        let KvRows { table, position, keys, values } = *part;
        let end = position + keys.nrows();
        (position / PAGE_POSITIONS..end.div_ceil(PAGE_POSITIONS)).map(move |page| {
            let first = position.max(page * PAGE_POSITIONS);
            let rows = first - position..end.min((page + 1) * PAGE_POSITIONS) - position;
            let part = s![rows, ..];
            Self {
                page: table[page],
                at: first % PAGE_POSITIONS,
                keys: keys.slice_move(part),
                values: values.slice_move(part),
            }
        })
    }

    fn rounded<W: FloatLane>(&self, kernel: Kernel) -> Result<Converted<'a, W>, Error> {
        let [keys, values] =
            [("keys", self.keys), ("values", self.values)].map(|(what, rows)| rounded(kernel, what, rows));
        Ok(Converted { keys: keys?.into(), values: values?.into(), steps: [Vec::new(), Vec::new()] })
    }

    fn quantized(&self, kernel: Kernel, heads: usize, size: usize) -> Converted<'a, i8> {
        let [(keys, of_keys), (values, of_values)] =
            [self.keys, self.values].map(|rows| quantized(kernel, rows, heads, size));
        Converted { keys: keys.into(), values: values.into(), steps: [of_keys, of_values] }
    }
}

impl<W: Lane> Converted<'_, W> {
    /// Writes the rows from position `at` of a page on.
    fn write(&self, layout: Layout, layer: usize, at: usize, page: &mut [W], steps: &mut [f32]) {
        let Layout { heads, size, .. } = layout;
        for head in 0..heads {
            let columns = head * size..(head + 1) * size;
            let target = &mut page[layout.block(0, layer, head)..][..layout.block_length()];
            let (target_keys, target_values) = target.split_at_mut(layout.keys_length());
            let mut row = 0;
            while row < self.keys.nrows() {
                let at = at + row;
                let lane = at % NR;
                let count = (NR - lane).min(self.keys.nrows() - row);
                let part = s![row..row + count, columns.clone()];
                // Column by column of a key panel: consecutive writes to its 32 positions.
                let panel = &mut target_keys[at / NR * size * NR..][..size * NR];
                let keys = self.keys.slice(part);
                for (column, target) in keys.columns().into_iter().zip(panel.chunks_exact_mut(NR)) {
                    target[lane..].iter_mut().zip(column).for_each(|(target, key)| *target = *key);
                }
                for (row, values) in self.values.slice(part).rows().into_iter().enumerate() {
                    for (panel, values) in values.to_slice().unwrap_or_default().chunks(NR).enumerate() {
                        let at = (panel * PAGE_POSITIONS + at + row) * NR;
                        target_values[at..at + values.len()].copy_from_slice(values);
                    }
                }
                row += count;
            }
            let first = layout.first_step(0, layer, head);
            for (offset, of_rows) in [0, PAGE_POSITIONS].into_iter().zip(&self.steps) {
                let targets = steps.iter_mut().skip(first + offset + at);
                targets
                    .zip(of_rows.iter().skip(head).step_by(heads))
                    .for_each(|(step, of_row)| *step = *of_row);
            }
        }
    }
}

/// int8 codes of rows of `heads` vectors of `size`, and the step `s/127` of each vector.
fn quantized(kernel: Kernel, rows: ArrayView2<'_, f32>, heads: usize, size: usize) -> (Array2<i8>, Vec<f32>) {
    let mut codes = Array2::zeros(rows.raw_dim());
    let mut steps = Vec::with_capacity(rows.nrows() * heads);
    let (mut scratch, mut padded) = (Vec::new(), vec![0; scratch_length(size)]);
    for (row, mut target) in rows.rows().into_iter().zip(codes.rows_mut()) {
        let (Some(row), Some(target)) = (row.to_slice(), target.as_slice_mut()) else { continue };
        for (vector, target) in row.chunks_exact(size).zip(target.chunks_exact_mut(size)) {
            let job = EncodeRow {
                row: FloatSlice::F32(vector),
                scratch: &mut scratch,
                parameters: None,
                encoding: Encoding::Absmax,
                codes: &mut padded,
            };
            let (parameters, _) = run(kernel, job);
            target.copy_from_slice(&padded[..size]);
            steps.push(parameters.scale / 127.0);
        }
    }
    (codes, steps)
}

/// Rows of f32 in the type of a cache; `what` they are.
fn rounded<W: FloatLane>(
    kernel: Kernel,
    what: &'static str,
    rows: ArrayView2<'_, f32>,
) -> Result<Array2<W>, Error> {
    let mut target = Array2::from_elem(rows.raw_dim(), W::default());
    for (row, mut target) in rows.rows().into_iter().zip(target.rows_mut()) {
        let (Some(row), Some(target)) = (row.to_slice(), target.as_slice_mut()) else { continue };
        run(kernel, Round { row, target }).map_err(|value| Error::CacheRange {
            what,
            value,
            element: W::NAME,
            largest: W::MAX,
        })?;
    }
    Ok(target)
}

/// `target = row`, rounded half to even; or the first finite number that would become infinite.
struct Round<'a, W> {
    row: &'a [f32],
    target: &'a mut [W],
}

impl<W: FloatLane> Vectorized for Round<'_, W> {
    type Output = Result<(), f32>;

    #[inline(always)]
    fn call<I: Instructions>(self, simd: I) -> Result<(), f32> {
        let limit = simd.splat(W::LIMIT);
        let (vectors, rest) = self.row.as_chunks::<LANES>();
        let (targets, last) = self.target.as_chunks_mut::<LANES>();
        for (values, target) in vectors.iter().zip(targets) {
            let vector = simd.load(values);
            if simd.reaching(vector, limit) != 0 {
                fits::<W>(values)?;
            }
            W::store(simd, vector, target);
        }
        if !rest.is_empty() {
            fits::<W>(rest)?;
            let mut lanes = [W::default(); LANES];
            W::store(simd, simd.load(&padded(rest, 0.0)), &mut lanes);
            last.copy_from_slice(&lanes[..rest.len()]);
        }
        Ok(())
    }
}

/// The first finite number that W would round to infinity is the error.
fn fits<W: FloatLane>(values: &[f32]) -> Result<(), f32> {
    match values.iter().find(|value| value.is_finite() && value.abs() >= W::LIMIT) {
        Some(value) => Err(*value),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use int8_core::corpus::Random;

    use super::*;

    /// Parts of many sequences, two of which lie in one page, give what row after row gives.
    #[test]
    fn all_at_once_is_row_by_row() {
        let (layers, heads, size) = (2, 3, 40);
        let mut random = Random::new(71);
        let tables: [Vec<u32>; 3] = [vec![7, 0, 3], vec![6], vec![1, 8, 2]];
        // Sequence, first position and rows.
        let parts = [(0, 5, 150), (1, 0, 10), (2, 63, 66), (1, 10, 54)];
        let rows = parts.map(|(_, _, rows)| [(); 2].map(|()| random.matrix(rows, heads * size, 1.0)));
        let numbers: usize = rows.iter().map(|rows| 2 * rows[0].len()).sum();
        assert!(numbers > SERIAL_NUMBERS, "threads take part");
        let kernel = Kernel::best();
        for element in KvType::ALL {
            let [mut whole, mut single] =
                [(); 2].map(|()| KvPages::new(element, layers, heads, size, 9).expect("small"));
            let mut written = Vec::new();
            for ((sequence, position, _), [keys, values]) in parts.into_iter().zip(&rows) {
                let table = &tables[sequence];
                written.push(KvRows { table, position, keys: keys.view(), values: values.view() });
                for row in 0..keys.nrows() {
                    let part = s![row..=row, ..];
                    let (keys, values) = (keys.slice(part), values.slice(part));
                    single.write(kernel, 1, table, position + row, keys, values).expect("it fits");
                }
            }
            whole.write_all(kernel, 1, &written).expect("it fits");
            assert!(whole.storage.elements::<i8>() == single.storage.elements::<i8>(), "{element:?}");
            assert!(whole.steps.elements::<f32>() == single.steps.elements::<f32>(), "{element:?}");
            assert!(whole.storage.elements::<i8>().iter().any(|byte| *byte != 0), "something is written");
        }
    }
}
