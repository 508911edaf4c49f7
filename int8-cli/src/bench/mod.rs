//! Measurements of `int8 bench` and of the bench `layer`, which adds peers from other libraries.

mod layer;
mod model;
mod race;
mod shapes;

pub(crate) use layer::{Machine, Problem, Shape, Times, outlier_costs};
pub(crate) use model::{Measured, Measurement, read_prompts, typical};
pub(crate) use race::Effort;
pub(crate) use shapes::ModelShape;

/// For the bench `layer`.
#[allow(unused_imports, reason = "the program times no contestants of its own")]
pub(crate) use {
    layer::{activations, codes},
    race::{Contestant, race},
};
