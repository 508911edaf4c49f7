//! Attention over a paged KV cache on the GPU.

use std::ops::Range;

use int8_cuda::model::{
    Attention, Batch, CacheShape, KvCache, Mask as Seen, PAGE_POSITIONS, Rotation, Tensor, Workspace,
};
use int8_cuda::{Buffer, Device, Stream};

use crate::Error;
use crate::backend::positions::Rotations;
use crate::backend::{AttentionSpec, CacheCapacity, FloatType, Mask, PageTables};
use crate::config::Positions;

/// Keys and values of all blocks and sequences, in pages on the GPU.
#[derive(Debug)]
pub struct CudaCache {
    kind: CacheKind,
    tables: PageTables,
    pages: KvCache,
    rotations: Vec<Rotation>,
    layers: Vec<Layer>,
    bias: Option<Buffer<f32>>,
    scale: f32,
    softcap: Option<f32>,
}

/// Positions and window of a block.
#[derive(Debug)]
struct Layer {
    /// Index into the rotations.
    rotation: Option<usize>,
    slopes: Option<Buffer<f32>>,
    window: usize,
}

/// What the workspace of attention depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct CacheKind {
    shape: CacheShape,
    heads: usize,
    mask: Mask,
}

impl CacheKind {
    /// Bytes for forwards of up to `rows` rows.
    pub(super) fn workspace_bytes(&self, rows: usize) -> Result<usize, Error> {
        let mask = match self.mask {
            Mask::Causal => Seen::Causal { window: 0 },
            Mask::Full => Seen::Full,
        };
        let attention = Attention {
            heads: self.heads,
            mask,
            scale: 1.0,
            softcap: None,
            slopes: None,
            distance_bias: None,
        };
        Ok(attention.workspace_bytes(&self.shape, rows)?)
    }
}

impl CudaCache {
    pub(super) fn new(device: &Device, spec: &AttentionSpec, capacity: CacheCapacity) -> Result<Self, Error> {
        let Some(element) = spec.kv_cache.float() else {
            return Err(Error::Unsupported(format!(
                "a KV cache of {} on a GPU; there are {}",
                spec.kv_cache,
                FloatType::ALL.map(FloatType::name).join(", ")
            )));
        };
        let shape = CacheShape {
            layers: spec.layers.len(),
            pages: PageTables::pages_for(capacity, PAGE_POSITIONS),
            sequences: capacity.sequences,
            sequence_pages: capacity.max_positions.div_ceil(PAGE_POSITIONS),
            kv_heads: spec.kv_heads,
            head_size: spec.head_size,
            element,
        };
        let mut rotations = Rotations::default();
        let mut layers = Vec::new();
        for layer in &spec.layers {
            let slopes = matches!(layer.positions, Positions::Alibi)
                .then(|| Buffer::from_host(device, &spec.alibi_slopes()))
                .transpose()?;
            let rotation = rotations.place(&layer.positions);
            layers.push(Layer { rotation, slopes, window: layer.sliding_window.unwrap_or(0) });
        }
        let rotations = rotations
            .tables(capacity.max_positions)
            .map(|table| Rotation::new(device, table.half, &table.cos, &table.sin))
            .collect::<Result<_, _>>()?;
        let bias = spec.bias.as_ref().map(|bias| {
            let table = bias.table.as_standard_layout();
            Buffer::from_host(device, table.as_slice().expect("standard layout"))
        });
        Ok(Self {
            kind: CacheKind { shape, heads: spec.heads, mask: spec.mask },
            tables: PageTables::new(capacity, PAGE_POSITIONS),
            pages: KvCache::new(device, shape)?,
            rotations,
            layers,
            bias: bias.transpose()?,
            scale: spec.scale,
            softcap: spec.softcap,
        })
    }

    pub(super) fn kind(&self) -> CacheKind {
        self.kind
    }

    pub(super) fn tables(&self) -> &PageTables {
        &self.tables
    }

    /// Bytes of the pages that a sequence holds.
    pub(super) fn bytes(&self) -> usize {
        self.tables.used() * self.pages.page_bytes()
    }

    pub(super) fn reserve(&mut self, stream: &Stream, ranges: &[(usize, Range<usize>)]) -> Result<(), Error> {
        let before: Vec<usize> =
            ranges.iter().map(|(sequence, _)| self.tables.table(*sequence).len()).collect();
        let copies = self.tables.reserve(ranges)?;
        for copy in &copies {
            self.pages.copy_page(stream, copy.from, copy.to)?;
        }
        for ((sequence, _), before) in ranges.iter().zip(before) {
            let table = self.tables.table(*sequence);
            if table.len() != before || !copies.is_empty() {
                self.pages.set_pages(stream, *sequence, table)?;
            }
        }
        Ok(())
    }

    pub(super) fn release(&mut self, sequence: usize) {
        self.tables.release(sequence);
    }

    pub(super) fn fork(
        &mut self,
        stream: &Stream,
        from: usize,
        to: usize,
        positions: usize,
    ) -> Result<(), Error> {
        self.tables.fork(from, to, positions)?;
        Ok(self.pages.set_pages(stream, to, self.tables.table(to))?)
    }

    pub(super) fn attend(
        &mut self,
        (stream, workspace): (&Stream, &Workspace),
        batch: &Batch,
        layer: usize,
        qkv: &mut Tensor,
        out: &mut Tensor,
    ) -> Result<(), Error> {
        let Layer { rotation, .. } = &self.layers[layer];
        let rotation = rotation.map(|place| &self.rotations[place]);
        let attention =
            attention(&self.kind, &self.layers[layer], self.bias.as_ref(), self.scale, self.softcap);
        Ok(attention.append_and_attend(
            stream,
            workspace,
            batch,
            (&mut self.pages, layer),
            qkv,
            rotation,
            out,
        )?)
    }

    pub(super) fn write_cross_kv(
        &mut self,
        (stream, workspace): (&Stream, &Workspace),
        batch: &Batch,
        layer: usize,
        kv: &Tensor,
    ) -> Result<(), Error> {
        let attention = attention(&self.kind, &self.layers[layer], None, self.scale, self.softcap);
        Ok(attention.append_keys_values(stream, workspace, batch, (&mut self.pages, layer), kv)?)
    }

    pub(super) fn cross_attention(
        &self,
        (stream, workspace): (&Stream, &Workspace),
        batch: &Batch,
        layer: usize,
        q: &Tensor,
        out: &mut Tensor,
    ) -> Result<(), Error> {
        let attention =
            attention(&self.kind, &self.layers[layer], self.bias.as_ref(), self.scale, self.softcap);
        Ok(attention.attend(stream, workspace, batch, (&self.pages, layer), q, out)?)
    }
}

fn attention<'a>(
    kind: &CacheKind,
    layer: &'a Layer,
    bias: Option<&'a Buffer<f32>>,
    scale: f32,
    softcap: Option<f32>,
) -> Attention<'a> {
    Attention {
        heads: kind.heads,
        mask: match kind.mask {
            Mask::Causal => Seen::Causal { window: layer.window },
            Mask::Full => Seen::Full,
        },
        scale,
        softcap,
        slopes: layer.slopes.as_ref(),
        distance_bias: if layer.slopes.is_some() { None } else { bias },
    }
}
