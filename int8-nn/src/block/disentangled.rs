//! The embedded distances of disentangled attention, projected once for each block.

use std::sync::Arc;

use ndarray::{Array2, s};

use super::{Block, Loader, Projection};
use crate::backend::{ActivationRole, Backend, BatchCapacity, DistanceVectors, Input, Output, Segment};
use crate::config::{Disentangled, Positions};
use crate::families::DistanceNames;
use crate::precision::{LinearRole, Precision, Site};
use crate::weights::RowTable;
use crate::{Error, convert};

/// The table of embedded distances, normalised if the model does so.
#[derive(Debug)]
pub(crate) struct Distances<B: Backend> {
    settings: Disentangled,
    /// `[2·span, hidden_size]`
    embedded: B::Activations,
}

impl<B: Backend> Distances<B> {
    /// Reads the table, if positions enter that way.
    pub(crate) fn load(loader: &Loader<'_, B>, names: &DistanceNames) -> Result<Option<Self>, Error> {
        let Positions::Disentangled(settings) = loader.config.positions else { return Ok(None) };
        let (backend, hidden) = (loader.backend, loader.config.hidden_size);
        let rows = 2 * settings.span;
        let name = loader.name(names.table) + ".weight";
        let table = backend.embedding(&RowTable::stored(loader.checkpoint, &name, [rows, hidden])?)?;
        let ids: Vec<u32> = (0..convert::token_id(rows)).collect();
        let mut batch = backend.batch(BatchCapacity { rows, segments: 1, selected: 0 })?;
        backend.set_batch(&mut batch, &[Segment { sequence: 0, position: 0, ids: &ids, length: rows }])?;
        let mut embedded = backend.activations(rows, hidden, ActivationRole::Residual)?;
        backend.embed(&batch, Some(&table), None, Output::Store(&mut embedded))?;
        if settings.normed {
            backend.normalize(&mut embedded, &loader.norm(names.norm)?)?;
        }
        Ok(Some(Self { settings, embedded }))
    }

    /// What block `layer` makes of the distances: their keys and queries.
    pub(crate) fn project(
        &self,
        loader: &Loader<'_, B>,
        (layer, block): (usize, &mut Block<B>),
        names: &DistanceNames,
        precision: &Precision,
    ) -> Result<(), Error> {
        let Disentangled { of_queries, of_keys, shared, .. } = self.settings;
        let hidden = loader.config.hidden_size;
        let width = loader.config.shape(layer).queries();
        let [keys, queries] = if shared {
            let Projection::Direct(linear) = &block.projection else {
                return Err(Error::Unsupported("distances of latent attention".to_owned()));
            };
            let all = self.output(loader.backend, linear, 3 * width)?;
            let columns = |first: usize| all.slice(s![.., first..first + width]).to_owned();
            [of_queries.then(|| columns(width)), of_keys.then(|| columns(0))]
        } else {
            let precision = precision.of(LinearRole::Qkv);
            let site = Site::block(loader.stack, layer, LinearRole::Qkv);
            let output = |part, wanted: bool| {
                let load = || {
                    let linear = loader.linear(site, vec![part], &[width], hidden, &precision)?;
                    self.output(loader.backend, &linear, width)
                };
                wanted.then(load).transpose()
            };
            let [key, query] = (names.projections)(layer);
            [output(key, of_queries)?, output(query, of_keys)?]
        };
        block.distance_vectors = Some(Arc::new(DistanceVectors { distances: self.settings, keys, queries }));
        Ok(())
    }

    /// `linear(embedded) [2·span, width]`
    fn output(&self, backend: &B, linear: &B::Linear, width: usize) -> Result<Array2<f32>, Error> {
        let rows = 2 * self.settings.span;
        let mut out = backend.activations(rows, width, ActivationRole::Intermediate)?;
        backend.project(Input::Plain(&self.embedded), &mut [(linear, Output::Store(&mut out))])?;
        let mut host = Vec::new();
        let values = backend.read(&out, &mut host)?;
        Array2::from_shape_vec((rows, width), values.to_vec())
            .map_err(|error| Error::Input(format!("embedded distances: {error}")))
    }
}
