//! Blocks whose int8 weights stay in host memory: which they are, and where in a forward each layer is used.

use int8_cuda::model::Offload;
use int8_cuda::{Device, Stream};

use super::CudaLinear;
use super::linear::Weight;
use crate::Error;
use crate::config::DecoderConfig;
use crate::convert;
use crate::precision::LinearRole;

/// The offloaded blocks of a model.
#[derive(Debug, Default)]
pub(super) struct Offloading {
    weights: Option<Offload>,
    /// Their number, and that of all.
    blocks: usize,
    layers: usize,
    /// Models that were loaded: the places of an earlier one are no longer known.
    models: usize,
}

/// Places of a model.
const PLACES: usize = 1 << 32;

impl Offloading {
    pub(super) fn new(device: &Device, blocks: usize) -> Result<Self, Error> {
        let weights = if blocks > 0 { Some(Offload::new(device)?) } else { None };
        Ok(Self { weights, blocks, layers: 0, models: 0 })
    }

    /// # Errors
    /// [`Error::Unsupported`] for a model with experts, of which a forward uses some alone.
    pub(super) fn prepare(&mut self, config: &DecoderConfig) -> Result<(), Error> {
        if self.blocks > config.layers {
            return Err(Error::Input(format!(
                "{} blocks in host memory, of a model with {}",
                self.blocks, config.layers
            )));
        }
        if self.blocks > 0 && config.experts.is_some() {
            return Err(Error::Unsupported("experts in host memory".to_owned()));
        }
        self.layers = config.layers;
        self.models += 1;
        if let Some(weights) = &mut self.weights {
            weights.clear()?;
        }
        Ok(())
    }

    /// Whether block `layer` is one of them: they are spread evenly, so that others are computed while they are copied.
    fn has(&self, layer: usize) -> bool {
        self.layers > 0 && (layer + 1) * self.blocks / self.layers > layer * self.blocks / self.layers
    }

    /// Moves the weight of a layer to host memory, if it belongs there.
    pub(super) fn take(&mut self, stream: &Stream, linear: &mut CudaLinear) -> Result<(), Error> {
        let site = *linear.site();
        if self.blocks > 0 && self.layers == 0 && site.layer.is_some() {
            return Err(Error::Unsupported("an encoder with blocks in host memory".to_owned()));
        }
        if site.cross {
            return Ok(());
        }
        let Some(layer) = site.layer.filter(|layer| self.has(*layer)) else { return Ok(()) };
        let Some(offload) = &mut self.weights else { return Ok(()) };
        // In the order in which a block uses them.
        let role = match site.role {
            LinearRole::Qkv => 0,
            LinearRole::AttentionOutput => 1,
            LinearRole::Up => 2,
            LinearRole::Down => 3,
            _ => return Ok(()),
        };
        let place = self.models * PLACES + layer * 4 + role;
        match linear.weight_mut() {
            Weight::Int8 { weight, .. } => offload.add(stream, place, weight)?,
            Weight::Float(_) => {
                return Err(Error::Unsupported(
                    "16-bit weights in host memory; offload an int8 model".to_owned(),
                ));
            }
        }
        linear.set_offloaded(place);
        Ok(())
    }

    /// Makes the weights of these layers available to `stream`. Whether any is in host memory.
    pub(super) fn fetch(&mut self, stream: &Stream, linears: &[&CudaLinear]) -> Result<bool, Error> {
        let Some(offload) = &mut self.weights else { return Ok(false) };
        let mut any = false;
        for linear in linears {
            if let (Some(place), Some(weight)) = (linear.offloaded(), linear.int8()) {
                offload.fetch(stream, place, weight)?;
                any = true;
            }
        }
        Ok(any)
    }

    /// The work with these layers has been enqueued.
    pub(super) fn release(&mut self, stream: &Stream, linears: &[&CudaLinear]) -> Result<(), Error> {
        let Some(offload) = &mut self.weights else { return Ok(()) };
        linears
            .iter()
            .filter_map(|linear| linear.offloaded())
            .try_for_each(|place| Ok(offload.release(stream, place)?))
    }

    /// Bytes in host memory, and bytes a second of their way to the device.
    pub(super) fn rate(&mut self) -> Result<Option<(usize, f64)>, Error> {
        let Some(offload) = &mut self.weights else { return Ok(None) };
        let bytes = offload.host_bytes();
        Ok(offload.time_copy()?.map(|(seconds, copied)| (bytes, convert::f64_from(copied) / seconds)))
    }
}
