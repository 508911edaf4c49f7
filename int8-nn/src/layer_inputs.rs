//! What a model has for the embeddings of all its blocks ([`LayerInputs`]).

use crate::Error;
use crate::backend::{Backend, Input, Output};
use crate::block::Loader;
use crate::config::LayerInputs;
use crate::convert;
use crate::families::InputNames;
use crate::precision::{LinearRole, Precision, Site};
use crate::scratch::Carried;
use crate::weights::{Part, RowTable};

/// The table and the projection of the token embedding.
#[derive(Debug)]
pub(crate) struct InputTable<B: Backend> {
    table: B::Embedding,
    projection: B::Linear,
    norm: B::Norm,
    /// Columns of all blocks.
    columns: usize,
    /// √width, and 1/√hidden.
    factors: [f32; 2],
}

impl<B: Backend> InputTable<B> {
    pub(crate) fn load(
        loader: &Loader<'_, B>,
        names: InputNames,
        inputs: LayerInputs,
    ) -> Result<Self, Error> {
        let config = loader.config;
        let columns = config.layers * inputs.width;
        let name = loader.name(names.table) + ".weight";
        let table = RowTable::stored(loader.checkpoint, &name, [inputs.vocabulary, columns])?;
        let site = Site::outside(LinearRole::Embedding);
        let part = vec![Part::new(names.projection).biased(false)];
        let root = |size: usize| convert::f64_from(size).sqrt();
        let loaded = Self {
            table: loader.backend.embedding(&table)?,
            projection: loader.linear(site, part, &[columns], config.hidden_size, &Precision::Float)?,
            norm: loader.norm_of(names.norm, inputs.width)?,
            columns,
            factors: [root(inputs.width), 1.0 / root(config.hidden_size)].map(convert::f32_from),
        };
        table.release();
        Ok(loaded)
    }

    /// `carried.inputs`, from the embedded tokens `x`.
    pub(crate) fn compute(
        &self,
        backend: &B,
        batch: &B::Batch,
        x: &B::Activations,
        carried: &mut Carried<B>,
    ) -> Result<(), Error> {
        let Carried { inputs, embedded, .. } = carried;
        let [of_table, of_projection] = self.factors;
        backend.project(Input::Plain(x), &mut [(&self.projection, Output::Store(&mut *inputs))])?;
        backend.scale(inputs, Some(of_projection), None)?;
        backend.normalize_columns(inputs, 0..self.columns, &self.norm)?;
        backend.embed_known(batch, &self.table, of_table, embedded)?;
        backend.add(inputs, embedded, None)?;
        backend.scale(inputs, Some(std::f32::consts::FRAC_1_SQRT_2), None)
    }

    pub(crate) fn bytes(&self, backend: &B) -> usize {
        backend.embedding_bytes(&self.table)
    }
}
