//! The operations of a transformer on the device, around its int8 layers: rows through norms and activations, projections,
//! attention over a paged KV cache, sampling. Element types are known at run time here: a residual stream is f32, what lies
//! between two projections has the compute type.
//!
//! Every operation enqueues on a stream and neither allocates nor synchronises, unless its documentation says so: sequences of
//! them can be captured in a [`crate::Graph`].

mod attention;
mod exact;
mod exchange;
mod linear;
mod offload;
mod sampling;
mod tensor;
mod transform;
mod upload;
mod workspace;

pub use attention::{Attention, Batch, BatchRow, CacheShape, KvCache, Mask, PAGE_POSITIONS, Rotation};
pub use exchange::{Arrival, Exchange, ExchangeSizes, RANGE_COLUMNS};
pub use linear::{FloatWeight, Int8Linear, Int8LinearBuilder};
pub use offload::Offload;
pub use sampling::{Draw, Samples};
pub use tensor::{SharedRows, Store, Tensor};
pub use transform::{
    Activation, Function, Lookup, gather, scatter_add, transform, transform_columns, transform_in_place,
};
pub use upload::Upload;
pub use workspace::{Projection, Target, Workspace};
