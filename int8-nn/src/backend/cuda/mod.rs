//! The GPU backend: a placeholder, so that programs over any backend compile with the feature `cuda` before it is written.

use std::ops::Range;
use std::sync::Arc;

use ndarray::{Array2, ArrayView2};

use super::{
    AttentionSpec, Backend, BatchCapacity, CacheCapacity, Capabilities, Experts, FloatType, Input,
    LinearStatistics, NormSpec, Observer, Output, Precision, Segment, Site,
};
use crate::Error;
use crate::sampler::Sampler;
use crate::weights::{FloatMatrix, LinearSource};

/// Runs models on a GPU. There is none yet.
#[derive(Debug)]
pub enum CudaBackend {}

impl CudaBackend {
    /// GPU `ordinal`, computing in `compute`.
    ///
    /// # Errors
    /// Always.
    pub fn new(ordinal: u32, compute: FloatType) -> Result<Self, Error> {
        let compute = compute.name();
        Err(Error::Unsupported(format!("models do not run on GPU {ordinal} in {compute} yet")))
    }
}

#[rustfmt::skip]
impl Backend for CudaBackend {
    type Activations = ();
    type Linear = ();
    type Norm = ();
    type Embedding = ();
    type Cache = ();
    type Batch = ();

    fn describe(&self) -> String { match *self {} }
    fn capabilities(&self) -> Capabilities { match *self {} }
    fn linear(&self, _: Site, _: &LinearSource, _: &Precision) -> Result<(), Error> { match *self {} }
    fn tied(&self, _: Site, _: &()) -> Result<(), Error> { match *self {} }
    fn norm(&self, _: &NormSpec) -> Result<(), Error> { match *self {} }
    fn embedding(&self, _: FloatMatrix) -> Result<(), Error> { match *self {} }
    fn activations(&self, _: usize, _: usize) -> Result<(), Error> { match *self {} }
    fn cache(&self, _: &AttentionSpec, _: CacheCapacity) -> Result<(), Error> { match *self {} }
    fn cache_bytes(&self, _: &()) -> usize { match *self {} }
    fn batch(&self, _: BatchCapacity) -> Result<(), Error> { match *self {} }
    fn reserve(&self, _: &mut (), _: &[(usize, Range<usize>)]) -> Result<(), Error> { match *self {} }
    fn release(&self, _: &mut (), _: usize) -> Result<(), Error> { match *self {} }
    fn fork(&self, _: &mut (), _: usize, _: usize, _: usize) -> Result<(), Error> { match *self {} }
    fn set_batch(&self, _: &mut (), _: &[Segment<'_>]) -> Result<(), Error> { match *self {} }
    fn set_selection(&self, _: &mut (), _: &[usize]) -> Result<(), Error> { match *self {} }
    fn embed(&self, _: &(), _: Option<&()>, _: Option<(&(), usize)>, _: Output<'_, Self>) -> Result<(), Error> { match *self {} }
    fn normalize(&self, _: &mut (), _: &()) -> Result<(), Error> { match *self {} }
    fn normalize_columns(&self, _: &mut (), _: Range<usize>, _: &()) -> Result<(), Error> { match *self {} }
    fn add(&self, _: &mut (), _: &(), _: Option<&()>) -> Result<(), Error> { match *self {} }
    fn scale(&self, _: &mut (), _: Option<f32>, _: Option<f32>) -> Result<(), Error> { match *self {} }
    fn experts(&self, _: Input<'_, Self>, _: &Experts<Self>, _: &mut ()) -> Result<(), Error> { match *self {} }
    fn project(&self, _: Input<'_, Self>, _: &mut [(&(), Output<'_, Self>)]) -> Result<(), Error> { match *self {} }
    fn attention(&self, _: &(), _: usize, _: &mut (), _: &mut (), _: &mut ()) -> Result<(), Error> { match *self {} }
    fn write_cross_kv(&self, _: &(), _: usize, _: &(), _: &mut ()) -> Result<(), Error> { match *self {} }
    fn cross_attention(&self, _: &(), _: usize, _: &(), _: &(), _: &mut ()) -> Result<(), Error> { match *self {} }
    fn gather(&self, _: &(), _: &(), _: &mut ()) -> Result<(), Error> { match *self {} }
    fn sample(&self, _: &(), _: &mut [Sampler]) -> Result<Vec<u32>, Error> { match *self {} }
    fn read(&self, _: &(), _: &mut Vec<f32>) -> Result<(), Error> { match *self {} }
    fn linear_name<'a>(&self, _: &'a ()) -> &'a str { match *self {} }
    fn multiply(&self, _: &(), _: ArrayView2<'_, f32>) -> Result<Array2<f32>, Error> { match *self {} }
    fn observe(&self, _: Option<Arc<dyn Observer>>) { match *self {} }
    fn statistics(&self, _: &()) -> LinearStatistics { match *self {} }
    fn reset_statistics(&self, _: &()) { match *self {} }
    fn linear_bytes(&self, _: &()) -> usize { match *self {} }
    fn embedding_bytes(&self, _: &()) -> usize { match *self {} }
}
