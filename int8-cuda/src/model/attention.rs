//! Attention over a KV cache in pages, and the rows of a forward.

use int8_core::FloatType;
use int8_cuda_sys as sys;

use super::tensor::{Store, Tensor, element};
use super::transform::{Lookup, gather};
use super::workspace::Workspace;
use crate::convert;
use crate::device::{Device, Stream};
use crate::error::{Error, check};
use crate::matrix::Buffer;

/// Positions of a page.
pub const PAGE_POSITIONS: usize = sys::INT8_CUDA_PAGE_POSITIONS;

/// The size of a [`KvCache`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheShape {
    /// Layers.
    pub layers: usize,
    /// Pages of a layer.
    pub pages: usize,
    /// Sequences.
    pub sequences: usize,
    /// Most pages of a sequence.
    pub sequence_pages: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_size: usize,
    /// Type of keys and values.
    pub element: FloatType,
}

/// Keys and values of all layers, in pages of [`PAGE_POSITIONS`] positions. Which pages a sequence has is the caller's to say.
#[derive(Debug)]
pub struct KvCache {
    shape: CacheShape,
    data: Buffer<u8>,
    page_table: Buffer<i32>,
    lengths: Buffer<i32>,
}

impl KvCache {
    /// An empty cache: no sequence has pages.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::Device`].
    pub fn new(device: &Device, shape: CacheShape) -> Result<Self, Error> {
        let bytes = shape.layers * shape.pages * page_bytes(&shape);
        Ok(Self {
            data: Buffer::zeros(device, bytes)?,
            page_table: Buffer::zeros(device, shape.sequences * shape.sequence_pages)?,
            lengths: Buffer::zeros(device, shape.sequences)?,
            shape,
        })
    }

    /// Bytes of one page of all layers.
    pub fn page_bytes(&self) -> usize {
        self.shape.layers * page_bytes(&self.shape)
    }

    /// Enqueues: `sequence` has these pages, in the order of their positions.
    ///
    /// # Errors
    /// [`Error::Shape`] for too many pages, or one that does not exist; [`Error::Device`].
    pub fn set_pages(&mut self, stream: &Stream, sequence: usize, pages: &[u32]) -> Result<(), Error> {
        let CacheShape { sequence_pages, sequences, pages: all, .. } = self.shape;
        if pages.len() > sequence_pages
            || sequence >= sequences
            || pages.iter().any(|page| convert::from_u32(*page) >= all)
        {
            let (expected, found) = ((sequences, sequence_pages), (sequence, pages.len()));
            return Err(Error::Shape { operation: "KV cache", what: "pages of a sequence", expected, found });
        }
        let pages: Vec<i32> = pages.iter().map(|page| convert::index(convert::from_u32(*page))).collect();
        self.page_table.write(stream, sequence * sequence_pages, &pages)
    }

    /// Enqueues the copy of a page, in every layer.
    ///
    /// # Errors
    /// [`Error::Shape`] for a page that does not exist, [`Error::Device`].
    pub fn copy_page(&mut self, stream: &Stream, from: u32, to: u32) -> Result<(), Error> {
        let (bytes, pages) = (page_bytes(&self.shape), self.shape.pages);
        let (from, to) = (convert::from_u32(from), convert::from_u32(to));
        if from >= pages || to >= pages {
            let (expected, found) = ((1, pages), (from, to));
            return Err(Error::Shape { operation: "KV cache", what: "a page", expected, found });
        }
        for layer in 0..self.shape.layers {
            let at = |page: usize| (layer * pages + page) * bytes;
            self.data.enqueue_copy_within(stream, at(from), at(to), bytes)?;
        }
        Ok(())
    }

    fn raw(&self, workspace: &Workspace) -> sys::int8_cuda_kv_cache {
        sys::int8_cuda_kv_cache {
            data: self.data.pointer().cast(),
            page_table: self.page_table.pointer(),
            lengths: self.lengths.pointer(),
            overflow: workspace.overflow(),
            ..sizes(&self.shape)
        }
    }
}

/// The cache's size without its memory.
pub(super) fn sizes(shape: &CacheShape) -> sys::int8_cuda_kv_cache {
    sys::int8_cuda_kv_cache {
        data: std::ptr::null_mut(),
        page_table: std::ptr::null(),
        lengths: std::ptr::null_mut(),
        overflow: std::ptr::null_mut(),
        layers: convert::size(shape.layers),
        pages: convert::size(shape.pages),
        sequence_pages: convert::size(shape.sequence_pages),
        kv_heads: convert::index(shape.kv_heads),
        head_size: convert::index(shape.head_size),
        element: element(shape.element),
        reserved: 0,
    }
}

fn page_bytes(shape: &CacheShape) -> usize {
    2 * shape.kv_heads * PAGE_POSITIONS * shape.head_size * shape.element.bytes()
}

/// A token of a forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchRow {
    /// Its id.
    pub id: u32,
    /// Its position in its sequence.
    pub position: usize,
    /// Its sequence.
    pub sequence: usize,
}

/// The rows of a forward on the device.
///
/// Where the arrays lie depends on the numbers of rows and segments alone, so that a graph finds those of a later forward of
/// the same size.
#[derive(Debug)]
pub struct Batch {
    device: Buffer<i32>,
    host: Vec<i32>,
    selected: Buffer<i32>,
    selected_rows: usize,
    largest_rows: usize,
    largest_segments: usize,
    rows: usize,
    segments: usize,
}

impl Batch {
    /// Room for so many rows, segments and selected rows.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::Device`].
    pub fn new(device: &Device, rows: usize, segments: usize, selected: usize) -> Result<Self, Error> {
        Ok(Self {
            device: Buffer::zeros(device, 3 * rows + 2 * segments + 1)?,
            host: Vec::with_capacity(3 * rows + 2 * segments + 1),
            selected: Buffer::zeros(device, selected)?,
            selected_rows: 0,
            largest_rows: rows,
            largest_segments: segments,
            rows: 0,
            segments: 0,
        })
    }

    /// Enqueues the rows of the next forward: `segments` are the numbers of consecutive rows of one sequence.
    ///
    /// # Errors
    /// [`Error::Shape`] for more rows or segments than there is room for, or segments that are not the rows; [`Error::Device`].
    pub fn set(&mut self, stream: &Stream, rows: &[BatchRow], segments: &[usize]) -> Result<(), Error> {
        if rows.len() > self.largest_rows
            || segments.len() > self.largest_segments
            || segments.contains(&0)
            || segments.iter().sum::<usize>() != rows.len()
        {
            let (expected, found) =
                ((self.largest_rows, self.largest_segments), (rows.len(), segments.len()));
            return Err(Error::Shape { operation: "batch", what: "rows and segments", expected, found });
        }
        (self.rows, self.segments) = (rows.len(), segments.len());
        self.host.clear();
        self.host.extend(rows.iter().map(|row| convert::index(row.position)));
        self.host.extend(rows.iter().map(|row| convert::index(row.sequence)));
        self.host.extend(rows.iter().map(|row| convert::index(convert::from_u32(row.id))));
        let mut start = 0;
        self.host.push(0);
        for rows in segments {
            start += rows;
            self.host.push(convert::index(start));
        }
        let mut first = 0;
        for count in segments {
            self.host.push(rows.get(first).map_or(0, |row| convert::index(row.sequence)));
            first += count;
        }
        self.device.write(stream, 0, &self.host)
    }

    /// Enqueues the selection of rows.
    ///
    /// # Errors
    /// [`Error::Shape`] for more than there is room for, [`Error::Device`].
    pub fn select(&mut self, stream: &Stream, rows: &[usize]) -> Result<(), Error> {
        self.selected_rows = rows.len();
        let rows: Vec<i32> = rows.iter().map(|row| convert::index(*row)).collect();
        self.selected.write(stream, 0, &rows)
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Indices for a [`Lookup`]: the ids, and where they begin.
    pub fn ids(&self) -> (&Buffer<i32>, usize) {
        (&self.device, 2 * self.rows)
    }

    /// The positions, likewise.
    pub fn positions(&self) -> (&Buffer<i32>, usize) {
        (&self.device, 0)
    }

    /// Enqueues `out = x[selected]`, f32.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::Device`].
    pub fn gather_selected(&self, stream: &Stream, x: &Tensor, out: &mut Tensor) -> Result<(), Error> {
        gather(stream, &[Lookup::rows(x, (&self.selected, 0))], self.selected_rows, out, Store::Overwrite)
    }

    fn raw(&self) -> sys::int8_cuda_batch {
        let device = |offset: usize| self.device.pointer().cast_const().wrapping_add(offset);
        let starts = 3 * self.rows;
        sys::int8_cuda_batch {
            positions: device(0),
            sequences: device(self.rows),
            segment_starts: device(starts),
            segment_sequences: device(starts + self.segments + 1),
            rows: convert::size(self.rows),
            segments: convert::size(self.segments),
        }
    }
}

/// Cosines and sines `f32 [positions, half]`: pairs `(i, i + half)` of a head are rotated by their position's angles.
#[derive(Debug)]
pub struct Rotation {
    half: usize,
    positions: usize,
    cos: Buffer<f32>,
    sin: Buffer<f32>,
}

impl Rotation {
    /// Copies the tables. Waits until that is done.
    ///
    /// # Errors
    /// [`Error::Shape`] where they are no whole rows of equal number, [`Error::OutOfMemory`], [`Error::Device`].
    pub fn new(device: &Device, half: usize, cos: &[f32], sin: &[f32]) -> Result<Self, Error> {
        let positions = cos.len().checked_div(half).unwrap_or(0);
        if positions * half != cos.len() || cos.len() != sin.len() {
            let (expected, found) = ((positions, half), (cos.len(), sin.len()));
            return Err(Error::Shape { operation: "rotary positions", what: "cos and sin", expected, found });
        }
        Ok(Self {
            half,
            positions,
            cos: Buffer::from_host(device, cos)?,
            sin: Buffer::from_host(device, sin)?,
        })
    }
}

/// Which positions of its sequence a row sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mask {
    /// Its own and those before it; of these the last `window`, where that is not 0.
    Causal {
        /// Latest positions seen, or 0.
        window: usize,
    },
    /// All that were written.
    Full,
}

/// What attention computes. `int8_cuda_model.h` has the formula.
#[derive(Debug, Clone, Copy)]
pub struct Attention<'a> {
    /// Query heads, a multiple of the cache's heads.
    pub heads: usize,
    /// Which positions are seen.
    pub mask: Mask,
    /// Factor of the scores.
    pub scale: f32,
    /// `c·tanh(score/c)`
    pub softcap: Option<f32>,
    /// ALiBi: `f32 [heads]`.
    pub slopes: Option<&'a Buffer<f32>>,
    /// A bias by distance: `f32 [heads, 2·reach + 1]`.
    pub distance_bias: Option<&'a Buffer<f32>>,
}

impl Attention<'_> {
    /// Rotates queries and keys where a rotation is given, writes keys and values of the batch's rows to `layer` of the cache, and
    /// enqueues `out [rows, heads·head_size]` = attention of the queries to it: `qkv [rows, (heads + 2·kv_heads)·head_size]`,
    /// whose queries and keys are undefined afterwards.
    ///
    /// The caller has given every row's position a page, and the rotation has a row for it. Between two forwards lies a copy to the
    /// device, as [`Batch::set`] makes one: the kernel of a decode step reads rows, pages and cached keys and values early.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::Device`].
    #[expect(clippy::too_many_arguments, reason = "operands of one operation")]
    pub fn append_and_attend(
        &self,
        stream: &Stream,
        workspace: &Workspace,
        batch: &Batch,
        (cache, layer): (&mut KvCache, usize),
        qkv: &mut Tensor,
        rotation: Option<&Rotation>,
        out: &mut Tensor,
    ) -> Result<(), Error> {
        let append =
            self.append_params(stream, workspace, batch, (cache, layer), (qkv, self.heads), rotation)?;
        let attend = self.attention_params(stream, workspace, batch, (cache, layer), qkv, out)?;
        // SAFETY: sizes were checked; the caller vouches for pages and positions. Freeing any of the memory waits for the device.
        let status = unsafe { sys::int8_cuda_append_and_attend(&raw const append, &raw const attend) };
        check("attention", status, || self.describe(batch, cache, qkv))
    }

    /// Writes keys and values `kv [rows, 2·kv_heads·head_size]` of the batch's rows to `layer` of the cache.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::Device`].
    pub fn append_keys_values(
        &self,
        stream: &Stream,
        workspace: &Workspace,
        batch: &Batch,
        cache: (&mut KvCache, usize),
        kv: &Tensor,
    ) -> Result<(), Error> {
        let params = self.append_params(stream, workspace, batch, (&*cache.0, cache.1), (kv, 0), None)?;
        // SAFETY: sizes were checked; the caller vouches for pages and positions. Freeing any of the memory waits for the device.
        let status = unsafe { sys::int8_cuda_append_kv(&raw const params) };
        check("KV cache", status, || self.describe(batch, cache.0, kv))
    }

    /// `heads`: the query heads in `qkv`.
    fn append_params(
        &self,
        stream: &Stream,
        workspace: &Workspace,
        batch: &Batch,
        (cache, layer): (&KvCache, usize),
        (qkv, heads): (&Tensor, usize),
        rotation: Option<&Rotation>,
    ) -> Result<sys::int8_cuda_append_kv_params, Error> {
        let CacheShape { kv_heads, head_size, layers, .. } = cache.shape;
        qkv.expect_width("KV cache", (heads + 2 * kv_heads) * head_size)?;
        if qkv.rows() != batch.rows || layer >= layers {
            let (expected, found) = ((batch.rows, layers), (qkv.rows(), layer));
            return Err(Error::Shape { operation: "KV cache", what: "rows and layer", expected, found });
        }
        if let Some(rotation) = rotation
            && (2 * rotation.half > head_size || rotation.positions == 0)
        {
            let (expected, found) = ((1, head_size / 2), (rotation.positions, rotation.half));
            return Err(Error::Shape { operation: "KV cache", what: "rotation", expected, found });
        }
        Ok(sys::int8_cuda_append_kv_params {
            qkv: qkv.pointer(),
            cos: Buffer::pointer_or_null(rotation.map(|rotation| &rotation.cos)),
            sin: Buffer::pointer_or_null(rotation.map(|rotation| &rotation.sin)),
            stream: stream.raw()?,
            ld: convert::size(qkv.width()),
            layer: convert::size(layer),
            heads: convert::index(heads),
            half: rotation.map_or(0, |rotation| convert::index(rotation.half)),
            element: element(qkv.element()),
            reserved: 0,
            cache: cache.raw(workspace),
            batch: batch.raw(),
        })
    }

    /// `out [rows, heads·head_size]` = attention of the queries, the first `heads·head_size` columns of `q`, to `layer`.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::Device`].
    pub fn attend(
        &self,
        stream: &Stream,
        workspace: &Workspace,
        batch: &Batch,
        (cache, layer): (&KvCache, usize),
        q: &Tensor,
        out: &mut Tensor,
    ) -> Result<(), Error> {
        let params = self.attention_params(stream, workspace, batch, (cache, layer), q, out)?;
        // SAFETY: sizes were checked; freeing any of the memory waits for the device.
        let status = unsafe { sys::int8_cuda_attention(&raw const params) };
        check("attention", status, || self.describe(batch, cache, q))
    }

    fn describe(&self, batch: &Batch, cache: &KvCache, q: &Tensor) -> String {
        format!("{} rows, {} heads, {:?}, {}", batch.rows, self.heads, cache.shape, q.element().name())
    }

    fn attention_params(
        &self,
        stream: &Stream,
        workspace: &Workspace,
        batch: &Batch,
        (cache, layer): (&KvCache, usize),
        q: &Tensor,
        out: &mut Tensor,
    ) -> Result<sys::int8_cuda_attention_params, Error> {
        let CacheShape { head_size, kv_heads, layers, .. } = cache.shape;
        out.expect_width("attention", self.heads * head_size)?;
        let divides = self.heads.checked_rem(kv_heads) == Some(0);
        if q.rows() != batch.rows || q.width() < out.width() || layer >= layers || !divides {
            let (expected, found) = ((batch.rows, out.width()), (q.rows(), q.width()));
            return Err(Error::Shape { operation: "attention", what: "queries", expected, found });
        }
        let reach = match self.distance_bias {
            None => 0,
            Some(table) => (table.len() / self.heads.max(1)).saturating_sub(1) / 2,
        };
        if self.slopes.is_some_and(|slopes| slopes.len() != self.heads)
            || self.distance_bias.is_some_and(|table| table.len() != self.heads * (2 * reach + 1))
        {
            let (expected, found) = ((self.heads, 1), (self.slopes.map_or(0, Buffer::len), reach));
            return Err(Error::Shape { operation: "attention", what: "bias", expected, found });
        }
        out.set_rows(batch.rows)?;
        let (attention_workspace, workspace_bytes) = workspace.attention();
        Ok(sys::int8_cuda_attention_params {
            q: q.pointer(),
            out: out.pointer(),
            slopes: Buffer::pointer_or_null(self.slopes),
            distance_bias: Buffer::pointer_or_null(self.distance_bias),
            workspace: attention_workspace,
            stream: stream.raw()?,
            workspace_bytes,
            ldq: convert::size(q.width()),
            ldo: convert::size(out.width()),
            layer: convert::size(layer),
            reach: convert::size(reach),
            q_element: element(q.element()),
            out_element: element(out.element()),
            cache: cache.raw(workspace),
            batch: batch.raw(),
            ..self.settings(&cache.shape)
        })
    }

    /// Bytes of workspace for up to `rows` rows and segments.
    ///
    /// # Errors
    /// [`Error::Invalid`] for sizes that the kernels do not take.
    pub fn workspace_bytes(&self, shape: &CacheShape, rows: usize) -> Result<usize, Error> {
        let mut params = self.settings(shape);
        params.batch.rows = convert::size(rows);
        params.batch.segments = convert::size(rows);
        let mut bytes = 0;
        // SAFETY: the function reads sizes and settings only.
        let status = unsafe { sys::int8_cuda_attention_workspace(&raw const params, &raw mut bytes) };
        check("attention", status, || format!("{rows} rows, {} heads, {shape:?}", self.heads))?;
        Ok(bytes)
    }

    /// Settings without operands.
    fn settings(&self, shape: &CacheShape) -> sys::int8_cuda_attention_params {
        let (mask, window) = match self.mask {
            Mask::Causal { window } => (sys::INT8_CUDA_CAUSAL, window),
            Mask::Full => (sys::INT8_CUDA_FULL, 0),
        };
        let width = convert::size(self.heads * shape.head_size);
        sys::int8_cuda_attention_params {
            q: std::ptr::null(),
            out: std::ptr::null_mut(),
            slopes: std::ptr::null(),
            distance_bias: std::ptr::null(),
            workspace: std::ptr::null_mut(),
            stream: std::ptr::null_mut(),
            workspace_bytes: 0,
            ldq: width,
            ldo: width,
            layer: 0,
            window: convert::size(window),
            reach: 0,
            heads: convert::index(self.heads),
            mask,
            q_element: element(shape.element),
            out_element: element(shape.element),
            scale: self.scale,
            softcap: self.softcap.unwrap_or(0.0),
            cache: sizes(shape),
            batch: sys::int8_cuda_batch {
                positions: std::ptr::null(),
                sequences: std::ptr::null(),
                segment_starts: std::ptr::null(),
                segment_sequences: std::ptr::null(),
                rows: 0,
                segments: 0,
            },
        }
    }
}
