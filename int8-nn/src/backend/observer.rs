//! Seeing (and changing) the inputs of projections: what the analysis of a model is built on, on any backend.

use ndarray::ArrayViewMut2;

use crate::precision::Site;

/// Sees the input of every projection before it is computed, and may change it.
pub trait Observer: Send + Sync + std::fmt::Debug {
    /// `input f32 [rows, K]` row-major, after its prologue, of the layer called `name` in the checkpoint. It is called for
    /// each layer, also where several share an input; experts of one mixture count as the first of them.
    fn input(&self, site: &Site, name: &str, input: ArrayViewMut2<'_, f32>);
}
