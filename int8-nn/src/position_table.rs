//! Tables of positions that are added to token embeddings: read from a checkpoint, or computed.

use crate::Error;
use crate::backend::Backend;
use crate::block::Loader;
use crate::config::Positions;
use crate::weights::RowTable;

/// A table and the number of its rows before position 0.
pub(crate) type PositionTable<B> = (<B as Backend>::Embedding, usize);

/// The position table of a stack, if positions enter that way; `name` is its module.
///
/// # Errors
/// When the checkpoint's table is missing or of another shape.
pub(crate) fn load<B: Backend>(
    loader: &Loader<'_, B>,
    name: Option<&str>,
) -> Result<Option<PositionTable<B>>, Error> {
    let config = loader.config;
    let offset = match &config.positions {
        Positions::Learned { offset } => *offset,
        Positions::Sinusoidal(sinusoids) => {
            let rows = config.max_positions + sinusoids.offset;
            let table = sinusoids.table(rows, config.hidden_size);
            return Ok(Some((loader.backend.embedding(&table.into())?, sinusoids.offset)));
        }
        _ => return Ok(None),
    };
    let shape = [config.max_positions + offset, config.hidden_size];
    let name = name.map(|name| loader.name(name) + ".weight");
    let table = match (config.computed_positions, &name) {
        (None, None) => return Ok(None),
        (Some(computed), Some(name)) if computed.may_be_stored() && loader.checkpoint.contains(name) => {
            RowTable::stored(loader.checkpoint, name, shape)?
        }
        (Some(computed), _) => RowTable::from(computed.table(shape[0], shape[1])),
        (None, Some(name)) => RowTable::stored(loader.checkpoint, name, shape)?,
    };
    Ok(Some((loader.backend.embedding(&table)?, offset)))
}
