//! Keys and values of past tokens, as the tiles of attention read them.

use std::marker::PhantomData;
use std::ops::Range;

use half::{bf16, f16};
use int8_core::Error as CoreError;
use ndarray::{Array2, ArrayView2, s};

use super::functions::padded;
use super::run;
use crate::buffer::{Buffer, LINE};
use crate::kernel::Kernel;
use crate::tile::{self, Instructions, LANES, Lane, PANEL, Vectorized};
use crate::{Error, rows_of};

/// The type in which a cache keeps keys and values (vLLM's `kv_cache_dtype`, llama.cpp's `--cache-type-k` and `-v`). Queries,
/// scores, sums and results of attention are f32 with each of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum KvCacheType {
    /// As they were computed: 4 bytes a value.
    #[default]
    F32,
    /// Rounded to IEEE half precision: 2 bytes, 11 bits, magnitudes up to 65504.
    F16,
    /// Rounded to bfloat16: 2 bytes, 8 bits, the range of f32.
    Bf16,
}

impl KvCacheType {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::F32, Self::F16, Self::Bf16];

    /// `f32`, `f16`, `bf16`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        }
    }

    /// Bytes of a value.
    pub const fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }
}

/// Keys and values of one sequence in one block of a model.
#[derive(Clone)]
pub struct KeyValues(Stored);

/// The panels, by their type.
#[derive(Clone)]
pub(super) enum Stored {
    F32(Panels<f32>),
    F16(Panels<f16>),
    Bf16(Panels<bf16>),
}

impl std::fmt::Debug for KeyValues {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ((heads, size), capacity) = (self.dim(), self.capacity());
        write!(f, "KeyValues({}, heads {heads}, size {size}, capacity {capacity})", self.element().name())
    }
}

/// Evaluates `$body` with `$panels` bound to the panels, whatever their type.
macro_rules! with_panels {
    ($stored:expr, $panels:ident => $body:expr) => {
        match $stored {
            Stored::F32($panels) => $body,
            Stored::F16($panels) => $body,
            Stored::Bf16($panels) => $body,
        }
    };
}

impl KeyValues {
    /// Room for `capacity` positions of `heads` heads of width `size`; all zero.
    pub fn new(element: KvCacheType, heads: usize, size: usize, capacity: usize) -> Self {
        Self(match element {
            KvCacheType::F32 => Stored::F32(Panels::new(heads, size, capacity)),
            KvCacheType::F16 => Stored::F16(Panels::new(heads, size, capacity)),
            KvCacheType::Bf16 => Stored::Bf16(Panels::new(heads, size, capacity)),
        })
    }

    /// The type of what is kept.
    pub fn element(&self) -> KvCacheType {
        match self.0 {
            Stored::F32(_) => KvCacheType::F32,
            Stored::F16(_) => KvCacheType::F16,
            Stored::Bf16(_) => KvCacheType::Bf16,
        }
    }

    /// Positions there is room for.
    pub fn capacity(&self) -> usize {
        with_panels!(&self.0, panels => panels.capacity)
    }

    /// Bytes of memory.
    pub fn bytes(&self) -> usize {
        with_panels!(&self.0, panels => panels.keys.codes().len() + panels.values.codes().len())
    }

    /// Heads and their width.
    pub(super) fn dim(&self) -> (usize, usize) {
        with_panels!(&self.0, panels => (panels.heads, panels.size))
    }

    pub(super) fn stored(&self) -> &Stored {
        &self.0
    }

    /// Writes keys and values, each f32 `[rows, heads·size]`, to the positions from `position` on, rounded half to even to
    /// the type of the cache with the instructions of `kernel`. NaN and infinities stay what they are.
    ///
    /// # Errors
    /// The reference's `Shape` when the widths or numbers of rows differ from what they should be or the rows do not
    /// fit behind `position`; [`Error::NotRowMajor`]; [`Error::CacheRange`] for a number that the type of the cache would
    /// round to infinity. Nothing has been written then.
    pub fn write(
        &mut self,
        kernel: Kernel,
        position: usize,
        keys: ArrayView2<'_, f32>,
        values: ArrayView2<'_, f32>,
    ) -> Result<(), Error> {
        let ((heads, size), capacity) = (self.dim(), self.capacity());
        for (what, found) in [("keys", keys.dim()), ("values", values.dim())] {
            let expected = (keys.nrows().min(capacity.saturating_sub(position)), heads * size);
            if found != expected {
                return Err(CoreError::Shape { what, expected, found }.into());
            }
        }
        rows_of(keys, "keys")?;
        rows_of(values, "values")?;
        if size == 0 {
            return Ok(());
        }
        match &mut self.0 {
            Stored::F32(panels) => panels.write(position, keys, values),
            Stored::F16(panels) => panels.write_rounded(kernel, position, keys, values)?,
            Stored::Bf16(panels) => panels.write_rounded(kernel, position, keys, values)?,
        }
        Ok(())
    }
}

/// The panels of [`KeyValues`], of W.
#[derive(Clone)]
pub(super) struct Panels<W> {
    pub(super) heads: usize,
    pub(super) size: usize,
    /// Positions, a multiple of `PANEL`.
    capacity: usize,
    /// `[heads, capacity/PANEL, size, PANEL]`
    keys: Buffer,
    /// `[heads, ⌈size/PANEL⌉, capacity, PANEL]`, zero beyond `size`.
    values: Buffer,
    element: PhantomData<W>,
}

impl<W: Lane> Panels<W> {
    fn new(heads: usize, size: usize, capacity: usize) -> Self {
        let capacity = capacity.next_multiple_of(PANEL);
        Self {
            heads,
            size,
            capacity,
            keys: Buffer::zeroed(heads * capacity * size * size_of::<W>()),
            values: Buffer::zeroed(heads * size.next_multiple_of(PANEL) * capacity * size_of::<W>()),
            element: PhantomData,
        }
    }

    fn write_rounded(
        &mut self,
        kernel: Kernel,
        position: usize,
        keys: ArrayView2<'_, f32>,
        values: ArrayView2<'_, f32>,
    ) -> Result<(), Error> {
        let (keys, values) = (rounded(kernel, "keys", keys)?, rounded(kernel, "values", values)?);
        self.write(position, keys.view(), values.view());
        Ok(())
    }

    /// Rows that fit.
    fn write(&mut self, position: usize, keys: ArrayView2<'_, W>, values: ArrayView2<'_, W>) {
        let (rows, size, capacity) = (keys.nrows(), self.size, self.capacity);
        if rows == 1 {
            self.fetch_position(position);
        }
        let value_panels = size.div_ceil(PANEL);
        let (key_heads, value_heads) = (self.keys.elements_mut::<W>(), self.values.elements_mut::<W>());
        for head in 0..self.heads {
            let columns = head * size..(head + 1) * size;
            let target = &mut key_heads[head * capacity * size..(head + 1) * capacity * size];
            // Column by column of a panel: consecutive writes to its 32 positions.
            let mut row = 0;
            while row < rows {
                let (panel, lane) = ((position + row) / PANEL, (position + row) % PANEL);
                let count = (PANEL - lane).min(rows - row);
                let part = keys.slice(s![row..row + count, columns.clone()]);
                let panel = &mut target[panel * size * PANEL..(panel + 1) * size * PANEL];
                for (column, target) in part.columns().into_iter().zip(panel.chunks_exact_mut(PANEL)) {
                    target[lane..].iter_mut().zip(column).for_each(|(target, key)| *target = *key);
                }
                row += count;
            }
            let length = value_panels * capacity * PANEL;
            let target = &mut value_heads[head * length..(head + 1) * length];
            for (row, values) in values.slice(s![.., columns]).rows().into_iter().enumerate() {
                for (panel, values) in values.to_slice().unwrap_or_default().chunks(PANEL).enumerate() {
                    let at = (panel * capacity + position + row) * PANEL;
                    target[at..at + values.len()].copy_from_slice(values);
                }
            }
        }
    }

    /// Prefetches what a key and a value at `position` are written to: a line for each column, each far from the last.
    fn fetch_position(&self, position: usize) {
        for head in 0..self.heads {
            let keys = &self.key_panel(head, position / PANEL)[position % PANEL..];
            keys.iter().step_by(PANEL).for_each(|key| tile::fetch(key));
            for panel in 0..self.size.div_ceil(PANEL) {
                fetch_all(self.value_panel(head, panel, position..position + 1));
            }
        }
    }

    /// Panel of the keys of a head: `W [size, PANEL]`.
    pub(super) fn key_panel(&self, head: usize, panel: usize) -> &[W] {
        let length = self.size * PANEL;
        let at = (head * (self.capacity / PANEL) + panel) * length;
        &self.keys.elements()[at..at + length]
    }

    /// Panel of the values of a head at some positions: `W [positions, PANEL]`.
    pub(super) fn value_panel(&self, head: usize, panel: usize, positions: Range<usize>) -> &[W] {
        let first = (head * self.size.div_ceil(PANEL) + panel) * self.capacity;
        &self.values.elements()[(first + positions.start) * PANEL..(first + positions.end) * PANEL]
    }

    /// Prefetches what is read after the keys of a panel: the next panel, and the values at the positions of this one.
    pub(super) fn fetch_ahead(&self, head: usize, panel: usize, end: usize) {
        let first = panel * PANEL;
        if first + PANEL < end {
            fetch_all(self.key_panel(head, panel + 1));
        }
        for part in 0..self.size.div_ceil(PANEL) {
            fetch_all(self.value_panel(head, part, first..end.min(first + PANEL)));
        }
    }
}

fn fetch_all<W>(values: &[W]) {
    values.iter().step_by(LINE / size_of::<W>()).for_each(|line| tile::fetch(line));
}

/// Rows of f32 in the type of a cache; `what` they are.
fn rounded<W: Lane>(
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

impl<W: Lane> Vectorized for Round<'_, W> {
    type Output = Result<(), f32>;

    #[inline(always)]
    fn call<I: Instructions>(self, simd: I) -> Result<(), f32> {
        let limit = simd.splat(W::LIMIT);
        let (vectors, rest) = self.row.as_chunks::<LANES>();
        let (targets, last) = self.target.as_chunks_mut::<LANES>();
        for (values, target) in vectors.iter().zip(targets) {
            let vector = simd.load(values);
            if simd.any_reaches(vector, limit) {
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
fn fits<W: Lane>(values: &[f32]) -> Result<(), f32> {
    match values.iter().find(|value| value.is_finite() && value.abs() >= W::LIMIT) {
        Some(value) => Err(*value),
        None => Ok(()),
    }
}
