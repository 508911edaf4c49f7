//! Keys and values of past tokens, as the tiles of attention read them.

use std::marker::PhantomData;
use std::ops::Range;

use half::{bf16, f16};
use int8_core::Error as CoreError;
use ndarray::{Array2, ArrayView2, s};

use crate::buffer::{Buffer, LINE};
use crate::error::Error;
use crate::kernel::Kernel;
use crate::layout::NR;
use crate::matrix::rows_of;
use crate::prefetch;
use crate::simd::functions::padded;
use crate::simd::{Instructions, LANES, Lane, Vectorized, run};

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
    /// Positions, a multiple of `NR`.
    capacity: usize,
    /// `[heads, capacity/NR, size, NR]`
    keys: Buffer,
    /// `[heads, ⌈size/NR⌉, capacity, NR]`, zero beyond `size`.
    values: Buffer,
    element: PhantomData<W>,
}

impl<W: Lane> Panels<W> {
    fn new(heads: usize, size: usize, capacity: usize) -> Self {
        let capacity = capacity.next_multiple_of(NR);
        Self {
            heads,
            size,
            capacity,
            keys: Buffer::zeroed(heads * capacity * size * size_of::<W>()),
            values: Buffer::zeroed(heads * size.next_multiple_of(NR) * capacity * size_of::<W>()),
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
            self.prefetch_position(position);
        }
        let value_panels = size.div_ceil(NR);
        let (key_heads, value_heads) = (self.keys.elements_mut::<W>(), self.values.elements_mut::<W>());
        for head in 0..self.heads {
            let columns = head * size..(head + 1) * size;
            let target = &mut key_heads[head * capacity * size..(head + 1) * capacity * size];
            // Column by column of a panel: consecutive writes to its 32 positions.
            let mut row = 0;
            while row < rows {
                let (panel, lane) = ((position + row) / NR, (position + row) % NR);
                let count = (NR - lane).min(rows - row);
                let part = keys.slice(s![row..row + count, columns.clone()]);
                let panel = &mut target[panel * size * NR..(panel + 1) * size * NR];
                for (column, target) in part.columns().into_iter().zip(panel.chunks_exact_mut(NR)) {
                    target[lane..].iter_mut().zip(column).for_each(|(target, key)| *target = *key);
                }
                row += count;
            }
            let length = value_panels * capacity * NR;
            let target = &mut value_heads[head * length..(head + 1) * length];
            for (row, values) in values.slice(s![.., columns]).rows().into_iter().enumerate() {
                for (panel, values) in values.to_slice().unwrap_or_default().chunks(NR).enumerate() {
                    let at = (panel * capacity + position + row) * NR;
                    target[at..at + values.len()].copy_from_slice(values);
                }
            }
        }
    }

    /// Prefetches what a key and a value at `position` are written to: a line for each column, each far from the last.
    fn prefetch_position(&self, position: usize) {
        for head in 0..self.heads {
            let keys = &self.key_panel(head, position / NR)[position % NR..];
            keys.iter().step_by(NR).for_each(|key| prefetch::prefetch(key));
            for panel in 0..self.size.div_ceil(NR) {
                prefetch_all(self.value_panel(head, panel, position..position + 1));
            }
        }
    }

    /// Panel of the keys of a head: `W [size, NR]`.
    pub(super) fn key_panel(&self, head: usize, panel: usize) -> &[W] {
        let length = self.size * NR;
        let at = (head * (self.capacity / NR) + panel) * length;
        &self.keys.elements()[at..at + length]
    }

    /// Panel of the values of a head at some positions: `W [positions, NR]`.
    pub(super) fn value_panel(&self, head: usize, panel: usize, positions: Range<usize>) -> &[W] {
        let first = (head * self.size.div_ceil(NR) + panel) * self.capacity;
        &self.values.elements()[(first + positions.start) * NR..(first + positions.end) * NR]
    }

    /// Prefetches the beginning of the keys of a head, and of each panel of its values: what follows is fetched when what lies
    /// the [`prefetch::stream_distance`] before it is read.
    pub(super) fn prefetch_beginnings(&self, head: usize, positions: Range<usize>) {
        let ahead = prefetch::stream_distance() / size_of::<W>();
        let keys = self.key_panel(head, positions.start / NR);
        prefetch_all(&keys[..keys.len().min(ahead)]);
        for panel in 0..self.size.div_ceil(NR) {
            let values = self.value_panel(head, panel, positions.clone());
            prefetch_all(&values[..values.len().min(ahead)]);
        }
    }
}

fn prefetch_all<W>(values: &[W]) {
    values.iter().step_by(LINE / size_of::<W>()).for_each(|line| prefetch::prefetch(line));
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

#[cfg(test)]
mod tests {
    use int8_core::Element;
    use proptest::prelude::*;

    use super::*;

    /// Numbers of every kind: ordinary ones, ties, subnormal ones, at the ends of the types' ranges, infinities, NaN.
    fn number() -> impl Strategy<Value = f32> {
        prop_oneof![
            6 => -8.0_f32..8.0,
            2 => any::<f32>(),
            1 => prop::sample::select(vec![
                0.0, -0.0, 65_504.0, -65_519.99, 1.000_488_3, 1.003_906_2, 6e-8, -3e-8, f32::INFINITY, f32::NAN, 3.38e38,
            ]),
        ]
    }

    /// Whether a matrix has a finite number that `W` lacks.
    fn has_more<W: Element>(matrix: &Array2<f32>) -> bool {
        matrix.iter().any(|value| value.is_finite() && W::from_f32(*value).to_f32().is_infinite())
    }

    fn check<W: Lane>(
        panels: impl Fn(&KeyValues) -> &Panels<W>,
        element: KvCacheType,
        (size, position): (usize, usize),
        rows: &[&Array2<f32>; 2],
    ) {
        let (heads, count) = (rows[0].ncols() / size, rows[0].nrows());
        for kernel in Kernel::available() {
            let mut cache = KeyValues::new(element, heads, size, position + count);
            let written = cache.write(kernel, position, rows[0].view(), rows[1].view());
            if rows.iter().any(|rows| has_more::<W>(rows)) {
                assert!(matches!(written, Err(Error::CacheRange { element, .. }) if element == W::NAME));
                assert!(cache.key_and_value_bytes().all(|byte| byte == 0), "written all the same");
                continue;
            }
            written.expect("it fits");
            let panels = panels(&cache);
            for row in 0..count {
                let (panel, lane) = ((position + row) / NR, (position + row) % NR);
                for head in 0..heads {
                    for d in 0..size {
                        let key = panels.key_panel(head, panel)[d * NR + lane].to_f32();
                        let at = position + row..position + row + 1;
                        let value = panels.value_panel(head, d / NR, at)[d % NR].to_f32();
                        for (found, rows) in [(key, rows[0]), (value, rows[1])] {
                            let written = rows[[row, head * size + d]];
                            let expected = W::from_f32(written).to_f32();
                            assert!(
                                found.to_bits() == expected.to_bits() || (found.is_nan() && written.is_nan()),
                                "{kernel} {element:?}: {written:e} became {found:e}"
                            );
                        }
                    }
                }
            }
        }
    }

    impl KeyValues {
        fn key_and_value_bytes(&self) -> impl Iterator<Item = i8> {
            with_panels!(&self.0, panels => [panels.keys.codes(), panels.values.codes()].concat()).into_iter()
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// What is written is kept where it belongs, rounded half to even; what does not fit is refused, and then nothing is
        /// written.
        #[test]
        fn what_is_written_is_kept(
            (size, position, keys, values) in (1..40_usize, 1..3_usize, 1..5_usize, 0..70_usize).prop_flat_map(
                |(size, heads, rows, position)| {
                    let matrix = move || {
                        prop::collection::vec(number(), rows * heads * size).prop_map(move |values| {
                            Array2::from_shape_vec((rows, heads * size), values).expect("rows × columns")
                        })
                    };
                    (Just(size), Just(position), matrix(), matrix())
                }
            )
        ) {
            let rows = [&keys, &values];
            check(|cache| match &cache.0 { Stored::F32(p) => p, _ => unreachable!() }, KvCacheType::F32, (size, position), &rows);
            check(|cache| match &cache.0 { Stored::F16(p) => p, _ => unreachable!() }, KvCacheType::F16, (size, position), &rows);
            check(|cache| match &cache.0 { Stored::Bf16(p) => p, _ => unreachable!() }, KvCacheType::Bf16, (size, position), &rows);
        }
    }

    #[test]
    fn what_does_not_fit_is_refused_with_its_name() {
        let rows = |value: f32| Array2::from_elem((1, 20), value);
        let mut cache = KeyValues::new(KvCacheType::F16, 1, 20, 4);
        let kernel = Kernel::best();
        cache
            .write(kernel, 0, rows(65_519.0).view(), rows(f32::INFINITY).view())
            .expect("it rounds to 65504");
        let error = cache
            .write(kernel, 1, rows(1.0).view(), rows(-65_520.0).view())
            .expect_err("it would be infinite");
        let message = error.to_string();
        for words in ["values", "-65520", "65504", "F16", "f32"] {
            assert!(message.contains(words), "{words}: {message}");
        }
        let mut cache = KeyValues::new(KvCacheType::Bf16, 1, 20, 4);
        cache.write(kernel, 0, rows(-65_520.0).view(), rows(1e38).view()).expect("the range of f32");
        assert!(cache.write(kernel, 0, rows(f32::MAX).view(), rows(0.0).view()).is_err());
    }

    #[test]
    fn sixteen_bits_are_half_the_bytes() {
        let bytes = |element| KeyValues::new(element, 3, 64, 100).bytes();
        // 100 positions are four panels of 32.
        assert_eq!(bytes(KvCacheType::F32), 2 * 3 * 64 * 128 * 4);
        for element in [KvCacheType::F16, KvCacheType::Bf16] {
            assert_eq!(bytes(element), 2 * 3 * 64 * 128 * element.bytes());
            assert_eq!(KeyValues::new(element, 1, 8, 1).element(), element);
        }
    }
}
