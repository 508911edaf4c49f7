//! The devices that a decoder is built on, and which of its blocks lie on which: consecutive ones on each, in order. The first
//! device holds the embedding, too, and the last the head (a head tied to the embedding lies beside it, on the first). Between
//! two devices the residual stream is copied.

use std::ops::Range;
use std::sync::Arc;

use crate::Error;
use crate::backend::Backend;
use crate::convert::{f64_from, f64_from_u64};

/// One or several backends of a kind, and how the blocks of a decoder are shared out among them.
#[derive(Debug)]
pub struct Devices<B> {
    backends: Vec<Arc<B>>,
    shares: Shares,
}

#[derive(Debug, Clone)]
enum Shares {
    /// The most heavily loaded device has as small a part of its memory in use as possible; bytes of each.
    OfMemory(Vec<u64>),
    /// The number of blocks on each.
    Blocks(Vec<usize>),
}

impl<B> Clone for Devices<B> {
    fn clone(&self) -> Self {
        Self { backends: self.backends.clone(), shares: self.shares.clone() }
    }
}

impl<B> From<Arc<B>> for Devices<B> {
    fn from(backend: Arc<B>) -> Self {
        Self { backends: vec![backend], shares: Shares::OfMemory(vec![1]) }
    }
}

/// Sizes of a decoder's weights, in any unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sizes {
    /// A block.
    pub(crate) block: u64,
    /// What lies beside the first block.
    pub(crate) first: u64,
    /// What lies beside the last block.
    pub(crate) last: u64,
}

impl<B: Backend> Devices<B> {
    /// These backends, the blocks shared out by their memory: bytes that are free on each.
    ///
    /// # Errors
    /// [`Error::Input`] without a backend, or when the numbers differ.
    pub fn with_memory(backends: Vec<Arc<B>>, memory: Vec<u64>) -> Result<Self, Error> {
        Self::new(backends, memory.len(), Shares::OfMemory(memory))
    }

    /// These backends with so many blocks on each. The model is refused unless they are all of its blocks.
    ///
    /// # Errors
    /// [`Error::Input`] without a backend, or when the numbers differ.
    pub fn with_blocks(backends: Vec<Arc<B>>, blocks: Vec<usize>) -> Result<Self, Error> {
        Self::new(backends, blocks.len(), Shares::Blocks(blocks))
    }

    fn new(backends: Vec<Arc<B>>, shares: usize, of: Shares) -> Result<Self, Error> {
        if backends.is_empty() || backends.len() != shares {
            return Err(Error::Input(format!("shares of {shares} devices given for {}", backends.len())));
        }
        Ok(Self { backends, shares: of })
    }

    /// The backends, in order.
    pub fn backends(&self) -> &[Arc<B>] {
        &self.backends
    }

    /// The first backend.
    pub fn first(&self) -> &Arc<B> {
        &self.backends[0]
    }

    /// The only backend, for models that run on one device.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when there are several.
    pub(crate) fn single(self, what: &str) -> Result<Arc<B>, Error> {
        match self.backends.len() {
            1 => Ok(self.backends[0].clone()),
            several => Err(Error::Unsupported(format!("{what} on {several} devices: name one device"))),
        }
    }

    /// The devices in words.
    pub fn describe(&self) -> String {
        describe(self.backends.iter().map(|backend| &**backend))
    }

    /// The blocks of each device, for a decoder with `layers` blocks.
    ///
    /// # Errors
    /// [`Error::Input`] when given numbers of blocks are not those of the model, or there are more devices than blocks.
    pub(crate) fn place(&self, layers: usize, sizes: Sizes) -> Result<Vec<Range<usize>>, Error> {
        let counts = match &self.shares {
            Shares::Blocks(counts) => {
                if counts.iter().sum::<usize>() != layers || counts.contains(&0) {
                    let list: Vec<String> = counts.iter().map(usize::to_string).collect();
                    return Err(Error::Input(format!(
                        "blocks {} given for the devices; expected at least 1 on each, and {layers} together, as the model has",
                        list.join(",")
                    )));
                }
                counts.clone()
            }
            Shares::OfMemory(memory) => shared_out(layers, sizes, memory).ok_or_else(|| {
                Error::Input(format!(
                    "{layers} blocks for {} devices: name at most as many devices as the model has blocks",
                    memory.len()
                ))
            })?,
        };
        let mut end = 0;
        let range = |count: &usize| {
            let start = end;
            end += count;
            start..end
        };
        Ok(counts.iter().map(range).collect())
    }
}

/// Several backends in words.
pub(crate) fn describe<'a, B: Backend + 'a>(backends: impl Iterator<Item = &'a B>) -> String {
    backends.map(Backend::describe).collect::<Vec<_>>().join(" + ")
}

/// Numbers of blocks, at least one a device, for which `max bytesᵢ / memoryᵢ` is smallest; `None` for more devices than blocks.
fn shared_out(layers: usize, sizes: Sizes, memory: &[u64]) -> Option<Vec<usize>> {
    let devices = memory.len();
    if devices > layers.max(1) {
        return None;
    }
    if devices == 1 {
        return Some(vec![layers]);
    }
    let load = |device: usize, blocks: usize| {
        let beside =
            if device == 0 { sizes.first } else { 0 } + if device + 1 == devices { sizes.last } else { 0 };
        let bytes = f64_from(blocks) * f64_from_u64(sizes.block) + f64_from_u64(beside);
        bytes / f64_from_u64(memory[device].max(1))
    };
    let mut counts = vec![1; devices];
    // One block after the other goes where the load is smallest with it: for blocks of one size that is the best.
    for _ in devices..layers {
        let (device, _) = counts
            .iter()
            .enumerate()
            .map(|(device, blocks)| (device, load(device, blocks + 1)))
            .min_by(|a, b| a.1.total_cmp(&b.1))?;
        counts[device] += 1;
    }
    Some(counts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_shared_out_by_memory() {
        let equal = Sizes { block: 10, first: 0, last: 0 };
        assert_eq!(shared_out(70, equal, &[1, 1]), Some(vec![35, 35]));
        assert_eq!(shared_out(7, equal, &[1, 1, 1]), Some(vec![3, 2, 2]));
        assert_eq!(shared_out(12, equal, &[24, 48]), Some(vec![4, 8]));
        // An embedding as large as four blocks, and a head as large as two.
        let sizes = Sizes { block: 10, first: 40, last: 20 };
        assert_eq!(shared_out(30, sizes, &[1, 1]), Some(vec![14, 16]));
        assert_eq!(shared_out(3, sizes, &[1, 1, 1]), Some(vec![1, 1, 1]));
        assert_eq!(shared_out(2, sizes, &[1, 1, 1]), None);
        assert_eq!(shared_out(0, sizes, &[5]), Some(vec![0]));
    }

    #[test]
    fn no_other_numbers_have_a_smaller_largest_load() {
        let sizes = Sizes { block: 7, first: 30, last: 11 };
        let memory = [100, 60, 80];
        let largest = |counts: &[usize]| {
            let load = |(device, blocks): (usize, &usize)| {
                let beside = [sizes.first, 0, sizes.last][device];
                (f64_from(*blocks) * 7.0 + f64_from_u64(beside)) / f64_from_u64(memory[device])
            };
            counts.iter().enumerate().map(load).fold(0.0, f64::max)
        };
        for layers in 3..20 {
            let found = largest(&shared_out(layers, sizes, &memory).expect("counts"));
            for first in 1..layers - 1 {
                for second in 1..layers - first {
                    let other = largest(&[first, second, layers - first - second]);
                    assert!(found <= other + 1e-12, "{layers}: {found} > {other}");
                }
            }
        }
    }
}
