//! Keys and values of past tokens, as the tiles of attention read them.

use std::ops::Range;

use half::{bf16, f16};
use int8_core::KvType;
use memmap2::MmapMut;

use crate::buffer::{Buffer, LINE, Plain};
use crate::error::Error;
use crate::layout::NR;
use crate::prefetch;
use crate::simd::{LANES, Lane};

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
    pub(super) element: KvType,
    pub(super) layout: Layout,
    pub(super) storage: Storage,
    /// Empty unless the type is int8.
    pub(super) steps: Storage,
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

    /// Steps of a page.
    pub(super) fn steps_length(&self) -> usize {
        if self.element == KvType::Int8 { self.layout.steps(1) } else { 0 }
    }

    /// What was written of a layer to the pages of a table.
    pub(super) fn panels_of<'a, W: Lane>(&'a self, layer: usize, table: &'a [u32]) -> Panels<'a, W> {
        let Self { layout, storage, steps, .. } = self;
        Panels { elements: storage.elements(), steps: steps.elements(), layout: *layout, layer, table }
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
        let Self { pages, layer, table } = *self;
        pages.layout.check(layer, table, positions);
        pages.panels_of(layer, table)
    }
}

/// Where keys and values lie in the pages, in elements. A block is one head's part of a page in one layer.
#[derive(Clone, Copy)]
pub(super) struct Layout {
    layers: usize,
    pub(super) heads: usize,
    pub(super) size: usize,
    pages: usize,
}

impl Layout {
    pub(super) fn keys_length(self) -> usize {
        self.size * PAGE_POSITIONS
    }

    pub(super) fn block_length(self) -> usize {
        (self.size + self.size.next_multiple_of(NR)) * PAGE_POSITIONS
    }

    /// Blocks of a page, an odd number: were it a power of two, a head's blocks in all pages would share the same few sets of L2.
    fn blocks(self) -> usize {
        (self.layers * self.heads) | 1
    }

    pub(super) fn page_length(self) -> usize {
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
    pub(super) fn first_step(self, page: u32, layer: usize, head: usize) -> usize {
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
    pub(super) fn block(self, page: u32, layer: usize, head: usize) -> usize {
        page as usize * self.page_length() + (layer * self.heads + head) * self.block_length()
    }

    /// A page.
    fn page(self, page: u32) -> Range<usize> {
        assert!((page as usize) < self.pages, "page {page} of a KV cache of {} pages", self.pages);
        self.block(page, 0, 0)..self.block(page, 0, 0) + self.page_length()
    }

    /// Panics unless the layer and the pages of these positions, which the table has, exist.
    pub(super) fn check(self, layer: usize, table: &[u32], positions: &Range<usize>) {
        assert!(layer < self.layers, "layer {layer} of a KV cache of {} layers", self.layers);
        let entries = positions.start / PAGE_POSITIONS..positions.end.div_ceil(PAGE_POSITIONS);
        for page in &table[entries] {
            assert!((*page as usize) < self.pages, "page {page} of a KV cache of {} pages", self.pages);
        }
    }
}

/// The memory of all pages: zero, aligned to a cache line.
pub(super) enum Storage {
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

    pub(super) fn elements<W: Plain>(&self) -> &[W] {
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

    pub(super) fn elements_mut<W: Plain>(&mut self) -> &mut [W] {
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
    pub(super) fn heads(&self) -> usize {
        self.layout.heads
    }

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
    pub(super) fn prefetch_position(&self, position: usize) {
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

    /// Prefetches the beginning of each panel of the values of a head at these positions, in the page of the first.
    pub(super) fn prefetch_values(&self, head: usize, positions: Range<usize>) {
        let rows = prefetch::stream_distance() / (NR * size_of::<W>());
        let first = positions.start;
        let end = (first / PAGE_POSITIONS + 1) * PAGE_POSITIONS;
        for panel in 0..self.layout.size.div_ceil(NR) {
            prefetch_all(self.value_panel(head, panel, first..end.min(first + rows).min(positions.end)));
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

#[cfg(test)]
mod tests {
    use int8_core::Element;
    use ndarray::Array2;
    use proptest::prelude::*;

    use super::*;
    use crate::kernel::Kernel;
    use crate::simd::FloatLane;

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
