//! Keys and values of past tokens, as the tiles of attention read them.

use std::ops::Range;

use half::{bf16, f16};
use int8_core::{Encoding, Error as CoreError, FloatSlice, KvType};
use memmap2::MmapMut;
use ndarray::{Array2, ArrayView2, s};

use crate::buffer::{Buffer, LINE, Plain};
use crate::error::Error;
use crate::kernel::Kernel;
use crate::layout::NR;
use crate::matrix::rows_of;
use crate::prefetch;
use crate::prologue::encode::{EncodeRow, scratch_length};
use crate::simd::functions::padded;
use crate::simd::{FloatLane, Instructions, LANES, Lane, Vectorized, run};

/// Positions of a page: two key panels of a head. One head's keys, f32 and 64 wide, fill 16 KiB of it, so that the prefetch
/// that each page begins anew, 4 KiB, is a quarter of what follows; a sequence leaves half a page unused on average.
pub const PAGE_POSITIONS: usize = 2 * NR;

/// A huge page of x86-64, and of AArch64 with pages of 4 KiB.
const HUGE_PAGE: usize = 2 << 20;

/// The keys and values of a model's sequences (a paged KV cache). A page holds [`PAGE_POSITIONS`] consecutive positions
/// of one sequence, for every layer and KV head.
///
/// A sequence is a table of page numbers: position p lies in page `table[p / PAGE_POSITIONS]`. Who owns which page
/// is the caller's business: sequences may share pages, tables may list them in any order, and entries for positions that
/// are neither written nor read may be any number. Results do not depend on which pages a table lists, nor on what a page
/// holds outside the positions read.
///
/// ```text
/// pages  [pages, layers·kv_heads (made odd), PAGE_POSITIONS·(head_size + ⌈head_size/32⌉·32)]
/// keys   [PAGE_POSITIONS/32, head_size, 32]        first
/// values [⌈head_size/32⌉, PAGE_POSITIONS, 32]      behind them
/// steps  f32 [pages, layers·kv_heads (made odd), 2, PAGE_POSITIONS]   of int8: s/127 of keys, and of values
/// ```
pub struct KvPages {
    element: KvType,
    layout: Layout,
    storage: Storage,
    /// Empty unless the type is int8.
    steps: Storage,
}

/// One sequence's keys and values of one layer.
#[derive(Clone, Copy)]
pub struct KvSequence<'a> {
    pages: &'a KvPages,
    layer: usize,
    table: &'a [u32],
}

impl std::fmt::Debug for KvPages {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Layout { layers, heads, size, pages } = self.layout;
        let element = self.element.name();
        write!(f, "KvPages({element}, layers {layers}, KV heads {heads}, head size {size}, pages {pages})")
    }
}

impl std::fmt::Debug for KvSequence<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "KvSequence({:?}, layer {}, pages {:?})", self.pages, self.layer, self.table)
    }
}

impl KvPages {
    /// Reserves `pages` pages of [`PAGE_POSITIONS`] positions for `layers` layers of `kv_heads` KV heads; all zero. The
    /// system provides memory when a page is first written, 2 MiB at a time where it has huge pages.
    ///
    /// # Errors
    /// [`Error::KvPages`] when the size overflows or the system refuses it.
    pub fn new(
        element: KvType,
        layers: usize,
        kv_heads: usize,
        head_size: usize,
        pages: usize,
    ) -> Result<Self, Error> {
        let layout = Layout { layers, heads: kv_heads, size: head_size, pages };
        let (bytes, steps) = match element.float() {
            Some(float) => (float.bytes(), Some(0)),
            None => (size_of::<i8>(), layout.checked_steps()),
        };
        let reserve = |count: Option<usize>, bytes: usize| match count.and_then(|n| n.checked_mul(bytes)) {
            Some(bytes) => Storage::reserve(bytes),
            None => Err(std::io::Error::other("more bytes than there are addresses")),
        };
        let storage = reserve(layout.checked_elements(), bytes)
            .and_then(|storage| Ok((storage, reserve(steps, size_of::<f32>())?)));
        match storage {
            Ok((storage, steps)) => Ok(Self { element, layout, storage, steps }),
            Err(source) => Err(Error::KvPages { pages, layers, kv_heads, head_size, source }),
        }
    }

    /// The type in which keys and values are stored.
    pub fn element(&self) -> KvType {
        self.element
    }

    /// Number of pages.
    pub fn pages(&self) -> usize {
        self.layout.pages
    }

    /// Bytes of a page.
    pub fn page_bytes(&self) -> usize {
        match self.element.float() {
            Some(float) => self.layout.page_length() * float.bytes(),
            None => self.layout.page_length() + self.layout.steps(1) * size_of::<f32>(),
        }
    }

    /// Writes `keys` and `values`, each f32 `[rows, kv_heads·head_size]` row-major, to the positions from `position` on of the
    /// sequence with this table, rounded half to even to the cache's type. NaN and infinities stay what they are; in int8 a key or
    /// value of a head with one of them is NaN as a whole.
    ///
    /// # Errors
    /// The reference's `Shape` when the widths or numbers of rows differ from what they should be or the rows do not
    /// fit behind `position` in the table's pages; [`Error::NotRowMajor`]; [`Error::CacheRange`] for a number that the
    /// cache's type would round to infinity. Nothing has been written then.
    ///
    /// # Panics
    /// When there is no such layer, or no such page as the table has for one of these positions.
    pub fn write(
        &mut self,
        kernel: Kernel,
        layer: usize,
        table: &[u32],
        position: usize,
        keys: ArrayView2<'_, f32>,
        values: ArrayView2<'_, f32>,
    ) -> Result<(), Error> {
        let Layout { heads, size, .. } = self.layout;
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
            return Ok(());
        }
        self.layout.check(layer, table, &(position..position + keys.nrows()));
        match self.element {
            KvType::F32 => self.write_elements(layer, table, position, keys, values),
            KvType::F16 => self.write_rounded::<f16>(kernel, layer, table, position, [keys, values])?,
            KvType::Bf16 => self.write_rounded::<bf16>(kernel, layer, table, position, [keys, values])?,
            KvType::Int8 => self.write_codes(kernel, layer, table, position, [keys, values]),
        }
        Ok(())
    }

    fn write_codes(
        &mut self,
        kernel: Kernel,
        layer: usize,
        table: &[u32],
        position: usize,
        rows: [ArrayView2<'_, f32>; 2],
    ) {
        let Layout { heads, size, .. } = self.layout;
        let [(keys, key_steps), (values, value_steps)] =
            rows.map(|rows| quantized(kernel, rows, heads, size));
        self.write_elements(layer, table, position, keys.view(), values.view());
        let layout = self.layout;
        let steps = self.steps.elements_mut::<f32>();
        for (row, of_row) in key_steps.chunks_exact(heads).zip(value_steps.chunks_exact(heads)).enumerate() {
            let (page, at) = ((position + row) / PAGE_POSITIONS, (position + row) % PAGE_POSITIONS);
            for head in 0..heads {
                let first = layout.first_step(table[page], layer, head);
                steps[first + at] = of_row.0[head];
                steps[first + PAGE_POSITIONS + at] = of_row.1[head];
            }
        }
    }

    fn write_rounded<W: FloatLane>(
        &mut self,
        kernel: Kernel,
        layer: usize,
        table: &[u32],
        position: usize,
        [keys, values]: [ArrayView2<'_, f32>; 2],
    ) -> Result<(), Error> {
        let (keys, values) = (rounded::<W>(kernel, "keys", keys)?, rounded(kernel, "values", values)?);
        self.write_elements(layer, table, position, keys.view(), values.view());
        Ok(())
    }

    /// [`write`](Self::write) of rows that fit.
    fn write_elements<W: Lane>(
        &mut self,
        layer: usize,
        table: &[u32],
        position: usize,
        keys: ArrayView2<'_, W>,
        values: ArrayView2<'_, W>,
    ) {
        let (rows, layout) = (keys.nrows(), self.layout);
        let Layout { heads, size, .. } = layout;
        if rows == 1 {
            Panels::<W> { elements: self.storage.elements(), steps: &[], layout, layer, table }
                .prefetch_position(position);
        }
        let elements = self.storage.elements_mut::<W>();
        for head in 0..heads {
            let columns = head * size..(head + 1) * size;
            let mut row = 0;
            while row < rows {
                let position = position + row;
                let (page, at) = (table[position / PAGE_POSITIONS], position % PAGE_POSITIONS);
                let target = &mut elements[layout.block(page, layer, head)..][..layout.block_length()];
                let (target_keys, target_values) = target.split_at_mut(layout.keys_length());
                let lane = at % NR;
                let count = (NR - lane).min(rows - row);
                let part = s![row..row + count, columns.clone()];
                // Column by column of a key panel: consecutive writes to its 32 positions.
                let panel = &mut target_keys[at / NR * size * NR..][..size * NR];
                for (column, target) in keys.slice(part).columns().into_iter().zip(panel.chunks_exact_mut(NR))
                {
                    target[lane..].iter_mut().zip(column).for_each(|(target, key)| *target = *key);
                }
                for (row, values) in values.slice(part).rows().into_iter().enumerate() {
                    for (panel, values) in values.to_slice().unwrap_or_default().chunks(NR).enumerate() {
                        let at = (panel * PAGE_POSITIONS + at + row) * NR;
                        target_values[at..at + values.len()].copy_from_slice(values);
                    }
                }
                row += count;
            }
        }
    }

    /// The keys and values of a layer of the sequence with this table, for [`Attention::attend`](super::Attention::attend).
    ///
    /// # Panics
    /// When there is no such layer.
    pub fn sequence<'a>(&'a self, layer: usize, table: &'a [u32]) -> KvSequence<'a> {
        assert!(layer < self.layout.layers, "layer {layer} of a KV cache of {} layers", self.layout.layers);
        KvSequence { pages: self, layer, table }
    }

    /// Copies page `from` to page `to` in all layers: what a sequence needs before it writes to a page that others share.
    ///
    /// # Panics
    /// When there is no such page.
    pub fn copy(&mut self, from: u32, to: u32) {
        fn copy<W: Plain>(elements: &mut [W], from: Range<usize>, to: Range<usize>) {
            elements.copy_within(from, to.start);
        }
        let elements = (self.layout.page(from), self.layout.page(to));
        match self.element {
            KvType::F32 => copy::<f32>(self.storage.elements_mut(), elements.0, elements.1),
            KvType::F16 => copy::<f16>(self.storage.elements_mut(), elements.0, elements.1),
            KvType::Bf16 => copy::<bf16>(self.storage.elements_mut(), elements.0, elements.1),
            KvType::Int8 => {
                copy::<i8>(self.storage.elements_mut(), elements.0, elements.1);
                let [from, to] = [from, to].map(|page| self.layout.steps_of(page));
                copy::<f32>(self.steps.elements_mut(), from, to);
            }
        }
    }

    /// Fills a page with NaN in all layers: tests do so with released pages, so that a read of one shows.
    ///
    /// # Panics
    /// When there is no such page.
    pub fn poison(&mut self, page: u32) {
        let elements = self.layout.page(page);
        match self.element {
            KvType::F32 => self.storage.elements_mut()[elements].fill(f32::NAN),
            KvType::F16 => self.storage.elements_mut()[elements].fill(f16::NAN),
            KvType::Bf16 => self.storage.elements_mut()[elements].fill(bf16::NAN),
            KvType::Int8 => {
                self.storage.elements_mut()[elements].fill(i8::MIN);
                self.steps.elements_mut()[self.layout.steps_of(page)].fill(f32::NAN);
            }
        }
    }
}

impl<'a> KvSequence<'a> {
    /// Positions that the table has pages for.
    pub fn capacity(&self) -> usize {
        self.table.len().saturating_mul(PAGE_POSITIONS)
    }

    /// The type in which keys and values are stored.
    pub(super) fn element(&self) -> KvType {
        self.pages.element
    }

    /// KV heads and their size.
    pub(super) fn dim(&self) -> (usize, usize) {
        (self.pages.layout.heads, self.pages.layout.size)
    }

    /// What attention to some positions reads, of W, the type of the cache.
    ///
    /// # Panics
    /// When the table has a page for one of the positions that does not exist.
    pub(super) fn panels<W: Lane>(&self, positions: &Range<usize>) -> Panels<'a, W> {
        let Self { pages: KvPages { layout, storage, steps, .. }, layer, table } = *self;
        layout.check(layer, table, positions);
        Panels { elements: storage.elements(), steps: steps.elements(), layout: *layout, layer, table }
    }
}

/// Where keys and values lie in the pages, in elements. A block is one head's part of a page in one layer.
#[derive(Clone, Copy)]
struct Layout {
    layers: usize,
    heads: usize,
    size: usize,
    pages: usize,
}

impl Layout {
    fn keys_length(self) -> usize {
        self.size * PAGE_POSITIONS
    }

    fn block_length(self) -> usize {
        (self.size + self.size.next_multiple_of(NR)) * PAGE_POSITIONS
    }

    /// Blocks of a page, an odd number: were it a power of two, a head's blocks in all pages would share the same few sets of L2.
    fn blocks(self) -> usize {
        (self.layers * self.heads) | 1
    }

    fn page_length(self) -> usize {
        self.blocks() * self.block_length()
    }

    /// Steps of keys and values in so many pages.
    fn steps(self, pages: usize) -> usize {
        pages * self.blocks() * 2 * PAGE_POSITIONS
    }

    /// Those of a page.
    fn steps_of(self, page: u32) -> Range<usize> {
        self.steps(page as usize)..self.steps(page as usize + 1)
    }

    /// Where the steps of a block's keys begin; those of its values are behind them.
    fn first_step(self, page: u32, layer: usize, head: usize) -> usize {
        self.steps(page as usize) + (layer * self.heads + head) * 2 * PAGE_POSITIONS
    }

    fn checked_steps(self) -> Option<usize> {
        let blocks = self.layers.checked_mul(self.heads)? | 1;
        blocks.checked_mul(2 * PAGE_POSITIONS)?.checked_mul(self.pages)
    }

    fn checked_elements(self) -> Option<usize> {
        let width = self.size.checked_next_multiple_of(NR)?.checked_add(self.size)?;
        let blocks = self.layers.checked_mul(self.heads)? | 1;
        width.checked_mul(PAGE_POSITIONS)?.checked_mul(blocks)?.checked_mul(self.pages)
    }

    /// Where a block begins.
    fn block(self, page: u32, layer: usize, head: usize) -> usize {
        page as usize * self.page_length() + (layer * self.heads + head) * self.block_length()
    }

    /// A page.
    fn page(self, page: u32) -> Range<usize> {
        assert!((page as usize) < self.pages, "page {page} of a KV cache of {} pages", self.pages);
        self.block(page, 0, 0)..self.block(page, 0, 0) + self.page_length()
    }

    /// Panics unless the layer and the pages of these positions, which the table has, exist.
    fn check(self, layer: usize, table: &[u32], positions: &Range<usize>) {
        assert!(layer < self.layers, "layer {layer} of a KV cache of {} layers", self.layers);
        let entries = positions.start / PAGE_POSITIONS..positions.end.div_ceil(PAGE_POSITIONS);
        for page in &table[entries] {
            assert!((*page as usize) < self.pages, "page {page} of a KV cache of {} pages", self.pages);
        }
    }
}

/// The memory of all pages: zero, aligned to a cache line.
enum Storage {
    Mapped {
        map: MmapMut,
        /// Where the first huge page begins.
        first: usize,
        bytes: usize,
    },
    /// For Miri, which has no mappings with advice.
    Allocated(Buffer),
}

impl Storage {
    fn reserve(bytes: usize) -> std::io::Result<Self> {
        if cfg!(miri) {
            return Ok(Self::Allocated(Buffer::zeroed(bytes)));
        }
        let overflow = || std::io::Error::other("more bytes than there are addresses");
        let map = MmapMut::map_anon(bytes.checked_add(HUGE_PAGE).ok_or_else(overflow)?)?;
        let first = map.as_ptr().align_offset(HUGE_PAGE).min(HUGE_PAGE);
        #[cfg(target_os = "linux")]
        {
            // Decoding reads the cache once per token: with pages of 4 KiB it would wait for an address translation at each.
            // A system without huge pages refuses the advice and serves small ones.
            let _ = map.advise_range(memmap2::Advice::HugePage, first, bytes);
        }
        Ok(Self::Mapped { map, first, bytes })
    }

    fn elements<W: Plain>(&self) -> &[W] {
        match self {
            Self::Mapped { map, first, bytes } => {
                let bytes = &map[*first..first + bytes];
                // SAFETY: initialised bytes, aligned to a cache line as the first huge page and, where there is none, as any
                // mapping, and `Plain` has no invalid pattern.
                unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast(), bytes.len() / size_of::<W>()) }
            }
            Self::Allocated(buffer) => buffer.elements(),
        }
    }

    fn elements_mut<W: Plain>(&mut self) -> &mut [W] {
        match self {
            Self::Mapped { map, first, bytes } => {
                let bytes = &mut map[*first..*first + *bytes];
                // SAFETY: as in `elements`; the borrow of `self` is exclusive.
                unsafe {
                    std::slice::from_raw_parts_mut(bytes.as_mut_ptr().cast(), bytes.len() / size_of::<W>())
                }
            }
            Self::Allocated(buffer) => buffer.elements_mut(),
        }
    }
}

/// What attention reads of a [`KvSequence`].
#[derive(Clone, Copy)]
pub(super) struct Panels<'a, W> {
    elements: &'a [W],
    /// Nothing for a floating-point type.
    steps: &'a [f32],
    layout: Layout,
    layer: usize,
    table: &'a [u32],
}

impl<'a, W: Lane> Panels<'a, W> {
    /// Keys and values of a head in the page of `position`, and the position's index there.
    fn block(&self, head: usize, position: usize) -> (&'a [W], usize) {
        let page = self.table[position / PAGE_POSITIONS];
        let first = self.layout.block(page, self.layer, head);
        (&self.elements[first..first + self.layout.block_length()], position % PAGE_POSITIONS)
    }

    /// Panel of the keys of a head, which holds positions from `32·panel` on: `W [size, 32]`.
    pub(super) fn key_panel(&self, head: usize, panel: usize) -> &'a [W] {
        let (block, at) = self.block(head, panel * NR);
        let length = self.layout.size * NR;
        &block[at / NR * length..][..length]
    }

    /// Panel of the values of a head at some positions, all in one page: `W [positions, 32]`.
    #[inline(always)]
    pub(super) fn value_panel(&self, head: usize, panel: usize, positions: Range<usize>) -> &'a [W] {
        let (block, at) = self.block(head, positions.start);
        let first = self.layout.keys_length() + (panel * PAGE_POSITIONS + at) * NR;
        &block[first..][..positions.len() * NR]
    }

    /// Multiplies what was computed of the codes of consecutive keys, from position `first` on, with their steps, if they have such.
    pub(super) fn scale_by_keys(&self, head: usize, first: usize, numbers: &mut [f32]) {
        self.scale(head, 0, first, numbers);
    }

    /// The same of values.
    pub(super) fn scale_by_values(&self, head: usize, first: usize, numbers: &mut [f32]) {
        self.scale(head, PAGE_POSITIONS, first, numbers);
    }

    fn scale(&self, head: usize, offset: usize, mut first: usize, mut numbers: &mut [f32]) {
        if self.steps.is_empty() {
            return;
        }
        while !numbers.is_empty() {
            let at = first % PAGE_POSITIONS;
            let (now, rest) = numbers.split_at_mut(numbers.len().min(PAGE_POSITIONS - at));
            let begin = self.layout.first_step(self.table[first / PAGE_POSITIONS], self.layer, head) + offset;
            let steps = &self.steps[begin + at..][..now.len()];
            now.iter_mut().zip(steps).for_each(|(number, step)| *number *= step);
            (first, numbers) = (first + steps.len(), rest);
        }
    }

    /// Prefetches what a key and a value at `position` are written to: a cache line for each column, each far from the last.
    fn prefetch_position(&self, position: usize) {
        for head in 0..self.layout.heads {
            let keys = &self.key_panel(head, position / NR)[position % NR..];
            keys.iter().step_by(NR).for_each(|key| prefetch::prefetch(key));
            for panel in 0..self.layout.size.div_ceil(NR) {
                prefetch_all(self.value_panel(head, panel, position..position + 1));
            }
        }
    }

    /// Prefetches the beginning of the keys of a head in the page of `position`: what follows is prefetched when what lies
    /// the [`prefetch::stream_distance`] before it is read.
    pub(super) fn prefetch_keys(&self, head: usize, position: usize) {
        let (block, at) = self.block(head, position);
        let keys = &block[at / NR * self.layout.size * NR..self.layout.keys_length()];
        prefetch_all(&keys[..keys.len().min(prefetch::stream_distance() / size_of::<W>())]);
    }

    /// Prefetches the beginning of each panel of the values of a head in the page of `position`.
    pub(super) fn prefetch_values(&self, head: usize, position: usize) {
        let rows = prefetch::stream_distance() / (NR * size_of::<W>());
        let end = (position / PAGE_POSITIONS + 1) * PAGE_POSITIONS;
        for panel in 0..self.layout.size.div_ceil(NR) {
            prefetch_all(self.value_panel(head, panel, position..end.min(position + rows)));
        }
    }
}

/// A row of a panel as two vectors.
#[inline(always)]
pub(super) fn low_and_high<T>(row: &[T; NR]) -> [&[T; LANES]; 2] {
    let (vectors, _) = row.as_chunks::<LANES>();
    [&vectors[0], &vectors[1]]
}

fn prefetch_all<W>(values: &[W]) {
    values.iter().step_by(LINE / size_of::<W>()).for_each(|line| prefetch::prefetch(line));
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
fn fits<W: FloatLane>(values: &[f32]) -> Result<(), f32> {
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

    fn check<W: FloatLane>(element: KvType, (size, position): (usize, usize), rows: &[&Array2<f32>; 2]) {
        let (heads, count) = (rows[0].ncols() / size, rows[0].nrows());
        for kernel in Kernel::available() {
            let mut cache = KvPages::new(element, 2, heads, size, 4).expect("memory");
            let table = [3, 0, 2];
            let written = cache.write(kernel, 1, &table, position, rows[0].view(), rows[1].view());
            if rows.iter().any(|rows| has_more::<W>(rows)) {
                assert!(matches!(written, Err(Error::CacheRange { element, .. }) if element == W::NAME));
                let bits: &[W] = cache.storage.elements();
                assert!(bits.iter().all(|value| value.to_f32().to_bits() == 0), "written all the same");
                continue;
            }
            written.expect("it fits");
            let panels = cache.sequence(1, &table).panels::<W>(&(position..position + count));
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

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// What is written is kept where it belongs, rounded half to even; what does not fit is refused, and then nothing is
        /// written.
        #[test]
        fn what_is_written_is_kept(
            (size, position, keys, values) in (1..40_usize, 1..3_usize, 1..5_usize, 0..PAGE_POSITIONS * 3 - 4).prop_flat_map(
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
            check::<f32>(KvType::F32, (size, position), &rows);
            check::<f16>(KvType::F16, (size, position), &rows);
            check::<bf16>(KvType::Bf16, (size, position), &rows);
        }
    }

    #[test]
    fn what_does_not_fit_is_refused_with_its_name() {
        let rows = |value: f32| Array2::from_elem((1, 20), value);
        let kernel = Kernel::best();
        let pages = |element| KvPages::new(element, 1, 1, 20, 1).expect("memory");
        let mut cache = pages(KvType::F16);
        cache
            .write(kernel, 0, &[0], 0, rows(65_519.0).view(), rows(f32::INFINITY).view())
            .expect("it rounds to 65504");
        let error = cache
            .write(kernel, 0, &[0], 1, rows(1.0).view(), rows(-65_520.0).view())
            .expect_err("it would be infinite");
        let message = error.to_string();
        for words in ["values", "-65520", "65504", "F16", "f32"] {
            assert!(message.contains(words), "{words}: {message}");
        }
        let mut cache = pages(KvType::Bf16);
        cache.write(kernel, 0, &[0], 0, rows(-65_520.0).view(), rows(1e38).view()).expect("the range of f32");
        assert!(cache.write(kernel, 0, &[0], 0, rows(f32::MAX).view(), rows(0.0).view()).is_err());
    }

    #[test]
    fn sixteen_bits_are_half_the_bytes() {
        for element in int8_core::FloatType::ALL {
            let bytes = |layers, heads, size| {
                let cache = KvPages::new(element.into(), layers, heads, size, 2).expect("memory");
                assert_eq!((cache.element(), cache.pages()), (element.into(), 2));
                cache.page_bytes()
            };
            let block = PAGE_POSITIONS * element.bytes();
            assert_eq!(bytes(5, 3, 64), 5 * 3 * 2 * 64 * block);
            // Blocks in a page are an odd number, and values are padded to 32 columns.
            assert_eq!(bytes(4, 3, 20), 13 * (20 + 32) * block);
        }
    }

    /// A pool larger than the machine costs nothing until it is written, and one that cannot be is an error.
    #[test]
    fn memory_is_reserved_and_not_touched() {
        if cfg!(miri) {
            return;
        }
        let mut cache = KvPages::new(KvType::F16, 8, 4, 64, 4096).expect("memory");
        assert_eq!(cache.page_bytes() * cache.pages(), 33 * 2 * 64 * 2 * PAGE_POSITIONS * 4096);
        let row = Array2::ones((1, 256));
        cache.write(Kernel::best(), 7, &[4095], 63, row.view(), row.view()).expect("it fits");
        for pages in [usize::MAX, usize::MAX >> 14, 1 << 36] {
            let error = KvPages::new(KvType::F32, 8, 4, 64, pages).expect_err("more than there is");
            assert!(error.to_string().contains(&format!("{pages} pages")), "{error}");
        }
    }

    #[test]
    #[should_panic(expected = "page 4 of a KV cache of 4 pages")]
    fn a_write_to_a_page_that_does_not_exist_is_refused() {
        let mut cache = KvPages::new(KvType::F32, 1, 1, 4, 4).expect("memory");
        let rows = Array2::ones((2, 4));
        drop(cache.write(Kernel::best(), 0, &[1, 4], PAGE_POSITIONS - 1, rows.view(), rows.view()));
    }

    #[test]
    #[should_panic(expected = "layer 1 of a KV cache of 1 layers")]
    fn a_layer_that_does_not_exist_is_refused() {
        let cache = KvPages::new(KvType::F32, 1, 1, 4, 4).expect("memory");
        let _ = cache.sequence(1, &[0]);
    }
}
