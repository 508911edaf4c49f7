//! What a backend needs beyond [`Backend`] to be one of several ranks.

use std::ops::Range;
use std::sync::Arc;

use crate::Error;
use crate::backend::{Backend, GraphKey, Input, Output};
use crate::group::Group;
use crate::precision::Site;

/// The largest operations that ranks have to do together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ExchangeCapacity {
    /// Rows of a forward.
    pub rows: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Input features that a rank has of a layer.
    pub inputs: usize,
    /// Rows of logits.
    pub selected: usize,
    /// Columns of logits.
    pub vocabulary: usize,
}

/// The share of a rank in `count` things.
pub fn share(count: usize, ranks: usize, rank: usize) -> Range<usize> {
    rank * count / ranks..(rank + 1) * count / ranks
}

/// A backend that can be one of several ranks, which compute a model together. One thread enqueues the work of all.
pub trait Rank: Backend + std::fmt::Debug {
    /// Whether a layer that is shared out by input features can have exact outlier weights.
    const EXACT_OUTLIER_WEIGHTS: bool;

    /// What the ranks have for their exchanges.
    type Exchange: Send + Sync + std::fmt::Debug;

    /// Makes buffers for exchanges of this capacity; `former`, which recorded operations may still use, is kept. Every process of
    /// the group has as many ranks as this one, those of the first process first.
    ///
    /// # Errors
    /// When a device has no room, the ranks cannot reach each other's memory, or a process has ended.
    fn exchange(
        ranks: &[Arc<Self>],
        group: &Arc<Group>,
        capacity: ExchangeCapacity,
        former: Option<Self::Exchange>,
    ) -> Result<Self::Exchange, Error>;

    /// The head whose weight is these rows of an embedding table.
    ///
    /// # Errors
    /// As [`Backend::tied`].
    fn tied_rows(
        &self,
        site: Site,
        embedding: &Self::Embedding,
        rows: Range<usize>,
    ) -> Result<Self::Linear, Error>;

    /// [`Backend::run`] of all ranks: `body` enqueues the operations of each.
    ///
    /// # Errors
    /// Those of `body`, and when a device fails.
    fn run_together(
        ranks: &[Arc<Self>],
        key: GraphKey,
        batches: &[Self::Batch],
        body: &mut (dyn FnMut() -> Result<(), Error> + Send),
    ) -> Result<(), Error>;

    /// `outᵣ (+)= Σᵢ inputᵢ·Wᵢᵀ` for every rank r of this process, the sum, over the ranks of all processes, the same on all. Of int8 layers, each of which has the codes of some
    /// input features, the scale of a row is that of the whole row.
    ///
    /// # Errors
    /// When a device fails.
    fn contract(
        ranks: &[Arc<Self>],
        exchange: &mut Self::Exchange,
        inputs: &[Input<'_, Self>],
        linears: &[&Self::Linear],
        outs: &mut [Output<'_, Self>],
    ) -> Result<(), Error>;

    /// On the first rank of the first process, which alone has `out`: `out [rows, Σ widths] = [parts₀ | parts₁ | …]` of all processes.
    ///
    /// # Errors
    /// When a device fails.
    fn join(
        ranks: &[Arc<Self>],
        exchange: &mut Self::Exchange,
        parts: &[Self::Activations],
        out: Option<&mut Self::Activations>,
    ) -> Result<(), Error>;
}
