//! The activations between the projections of a block.

use crate::Error;
use crate::backend::{ActivationRole, Backend};
use crate::config::DecoderConfig;
use crate::latent::LatentScratch;
use crate::recurrent::RecurrentScratch;
use crate::shared::SharedScratch;

/// The activations between a block's projections, allocated once for all blocks.
#[derive(Debug)]
pub(crate) struct Scratch<B: Backend> {
    /// Those whose widths differ between blocks, for the block at hand.
    widths: Widths,
    pub(crate) qkv: B::Activations,
    pub(crate) context: B::Activations,
    /// The gate of `context`.
    pub(crate) gate: B::Activations,
    pub(crate) up: B::Activations,
    /// The activated `up`, where a norm follows.
    pub(crate) inner: B::Activations,
    /// Queries, keys and values before they are copied to heads of equal width, and the heads' output after.
    pub(crate) raw: B::Activations,
    pub(crate) output: B::Activations,
    /// The same for blocks of other widths.
    others: Vec<(Widths, [B::Activations; 7])>,
    /// Queries of cross-attention.
    pub(crate) query: B::Activations,
    /// A branch that no projection adds to the residual stream.
    pub(crate) branch: B::Activations,
    /// The output of experts beside an MLP, or of those that a later block adds.
    pub(crate) beside: B::Activations,
    pub(crate) latent: Option<LatentScratch<B>>,
    pub(crate) recurrent: Option<RecurrentScratch<B>>,
    pub(crate) shared: Option<SharedScratch<B>>,
    pub(crate) carried: Carried<B>,
}

/// Widths of a block's activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Widths {
    pub(crate) qkv: usize,
    pub(crate) context: usize,
    pub(crate) gate: usize,
    pub(crate) up: usize,
    pub(crate) inner: usize,
    pub(crate) raw: usize,
    pub(crate) output: usize,
}

/// Activations that not every model has.
#[derive(Debug, Clone, Default)]
pub(crate) struct Further {
    /// Of all blocks, each different one once.
    pub(crate) widths: Vec<Widths>,
    pub(crate) query: bool,
    pub(crate) branch: bool,
}

/// What a forward carries from block to block beside the residual stream.
#[derive(Debug)]
pub(crate) struct Carried<B: Backend> {
    /// The embeddings of all blocks, `[rows, blocks·width]`, and their part from the table.
    pub(crate) inputs: B::Activations,
    pub(crate) embedded: B::Activations,
    /// The gate of a block's embedding.
    pub(crate) gate: B::Activations,
    /// The residual streams but the first.
    pub(crate) streams: Vec<B::Activations>,
    /// The first stream as a block computes it; `None` while a block has it.
    pub(crate) computed: Option<B::Activations>,
    /// Between the two layers of LAuReL.
    pub(crate) low: B::Activations,
    /// The router of the streams.
    pub(crate) modes: B::Activations,
}

impl<B: Backend> Carried<B> {
    fn new(backend: &B, config: &DecoderConfig, max_rows: usize) -> Result<Self, Error> {
        let residual = ActivationRole::Residual;
        let rows = |condition: bool, width: usize| {
            let (rows, width) = if condition { (max_rows, width) } else { (0, 1) };
            backend.activations(rows, width, residual)
        };
        let inputs = config.layer_inputs.map_or(0, |inputs| inputs.width);
        let (count, rank) = config.streams.map_or((0, 0), |streams| (streams.count, streams.rank));
        let streams = (1..count).map(|_| rows(true, config.hidden_size)).collect::<Result<_, _>>()?;
        Ok(Self {
            inputs: rows(inputs > 0, inputs * config.layers)?,
            embedded: rows(inputs > 0, inputs * config.layers)?,
            gate: rows(inputs > 0, inputs)?,
            streams,
            computed: (count > 0).then(|| rows(true, config.hidden_size)).transpose()?,
            low: rows(count > 0, rank)?,
            modes: rows(count > 0, count)?,
        })
    }
}

impl<B: Backend> Scratch<B> {
    /// For forwards of at most `max_rows` tokens.
    pub(crate) fn new(
        backend: &B,
        config: &DecoderConfig,
        further: Further,
        max_rows: usize,
    ) -> Result<Self, Error> {
        let role = ActivationRole::Intermediate;
        let rows_if =
            |condition, width| backend.activations(if condition { max_rows } else { 0 }, width, role);
        let projected = |width| backend.activations(max_rows, width, ActivationRole::QueriesKeysValues);
        let attended = |width| backend.activations(max_rows, width, ActivationRole::Context);
        let of = |widths: Widths| -> Result<[B::Activations; 7], Error> {
            let Widths { qkv, context, gate, up, inner, raw, output } = widths;
            Ok([
                projected(qkv)?,
                attended(context)?,
                rows_if(gate > 0, gate)?,
                rows_if(true, up)?,
                rows_if(inner > 0, inner)?,
                rows_if(raw > 0, raw)?,
                rows_if(output > 0, output)?,
            ])
        };
        let mut all = further.widths.into_iter();
        let widths = all.next().unwrap_or_default();
        let [qkv, context, gate, up, inner, raw, output] = of(widths)?;
        let others = all.map(|widths| Ok((widths, of(widths)?))).collect::<Result<_, Error>>()?;
        let residual = |condition| {
            let rows = if condition { max_rows } else { 0 };
            backend.activations(rows, config.hidden_size, ActivationRole::Residual)
        };
        Ok(Self {
            widths,
            qkv,
            context,
            gate,
            up,
            inner,
            raw,
            output,
            others,
            query: rows_if(further.query, config.heads * config.head_size)?,
            branch: residual(further.branch)?,
            beside: residual(config.experts_beside || config.experts_ahead)?,
            latent: config
                .latent
                .map(|latent| LatentScratch::new(backend, config, latent, max_rows))
                .transpose()?,
            recurrent: RecurrentScratch::new(backend, config, max_rows)?,
            shared: SharedScratch::new(backend, config, max_rows)?,
            carried: Carried::new(backend, config, max_rows)?,
        })
    }

    /// Makes the activations of these widths those at hand.
    pub(crate) fn select(&mut self, widths: Widths) {
        if widths == self.widths {
            return;
        }
        let Some((others, set)) = self.others.iter_mut().find(|(others, _)| *others == widths) else {
            return;
        };
        let [qkv, context, gate, up, inner, raw, output] = set;
        std::mem::swap(&mut self.widths, others);
        std::mem::swap(&mut self.qkv, qkv);
        std::mem::swap(&mut self.context, context);
        std::mem::swap(&mut self.gate, gate);
        std::mem::swap(&mut self.up, up);
        std::mem::swap(&mut self.inner, inner);
        std::mem::swap(&mut self.raw, raw);
        std::mem::swap(&mut self.output, output);
    }
}
