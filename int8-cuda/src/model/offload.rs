//! Weights whose codes stay in page-locked host memory. They are copied to the device ahead of their use, in the order in which a
//! forward uses them, while other layers are computed; scales stay on the device.

use std::collections::VecDeque;

use cust::sys as cuda;

use super::linear::Int8Linear;
use super::upload::Pinned;
use crate::device::{Device, Mark, Stream};
use crate::error::{Error, done};
use crate::matrix::Buffer;

/// Places on the device for codes: one that is read, and those that are being filled.
const SLOTS: usize = 3;

/// The weights of a device whose codes are in host memory, each with a place in the order of a forward.
#[derive(Debug)]
pub struct Offload {
    device: Device,
    copies: Stream,
    /// By place, ascending.
    weights: Vec<(usize, Pinned)>,
    slots: Vec<Slot>,
    /// Copies that were enqueued, and whose weights have not been used yet.
    pending: VecDeque<Copy>,
    /// Index of the weight whose copy is next.
    next: usize,
}

#[derive(Debug)]
struct Slot {
    codes: Buffer<i8>,
    /// The end of the last work that reads them.
    read: Option<Mark>,
    busy: bool,
}

#[derive(Debug)]
struct Copy {
    weight: usize,
    slot: usize,
    /// Its end, until a stream waits for it.
    ready: Option<Mark>,
}

impl Offload {
    /// No weights yet.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn new(device: &Device) -> Result<Self, Error> {
        let copies = Stream::new(device)?;
        let (weights, slots) = (Vec::new(), Vec::new());
        Ok(Self { device: device.clone(), copies, weights, slots, pending: VecDeque::new(), next: 0 })
    }

    /// Forgets all weights, which are of no use from now on.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn clear(&mut self) -> Result<(), Error> {
        self.copies.synchronize()?;
        self.pending.clear();
        self.weights.clear();
        self.slots.iter_mut().for_each(|slot| slot.busy = false);
        self.next = 0;
        Ok(())
    }

    /// Moves the codes of a weight to host memory. `place`: where in a forward it is used, before or behind the others. Waits for the
    /// stream.
    ///
    /// # Errors
    /// [`Error::Invalid`] where another weight has this place; [`Error::OutOfHostMemory`], [`Error::OutOfMemory`],
    /// [`Error::Device`].
    pub fn add(&mut self, stream: &Stream, place: usize, weight: &mut Int8Linear) -> Result<(), Error> {
        let Err(index) = self.weights.binary_search_by_key(&place, |(place, _)| *place) else {
            let shape = format!("place {place}, which another weight has");
            return Err(Error::Invalid { operation: "offload", shape });
        };
        let codes = weight.take_codes(stream)?;
        let bytes = codes.len();
        if self.slots.first().is_none_or(|slot| slot.codes.len() < bytes) {
            // Nothing is copied while a model is loaded.
            self.copies.synchronize()?;
            stream.synchronize()?;
            self.pending.clear();
            self.slots.clear();
            for _ in 0..SLOTS {
                let codes = Buffer::zeros(&self.device, bytes)?;
                self.slots.push(Slot { codes, read: None, busy: false });
            }
        }
        let mut pinned = Pinned::new(&self.device, bytes)?;
        codes.read_into(stream, 0, pinned.bytes(bytes))?;
        self.weights.insert(index, (place, pinned));
        Ok(())
    }

    /// Bytes in host memory.
    pub fn host_bytes(&self) -> usize {
        self.weights.iter().map(|(_, codes)| codes.len()).sum()
    }

    /// Seconds in which the largest weight comes to the device, and its bytes.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn time_copy(&mut self) -> Result<Option<(f64, usize)>, Error> {
        let Some(largest) = (0..self.weights.len()).max_by_key(|index| self.weights[*index].1.len()) else {
            return Ok(None);
        };
        let mut best = f64::INFINITY;
        for _ in 0..3 {
            let begin = std::time::Instant::now();
            self.enqueue(largest, 0)?;
            self.copies.synchronize()?;
            best = best.min(begin.elapsed().as_secs_f64());
        }
        Ok(Some((best, self.weights[largest].1.len())))
    }

    /// What `stream` does from now on sees the codes of `weight`, which has this place, until [`release`](Self::release).
    ///
    /// # Errors
    /// [`Error::Invalid`] where no weight has this place; [`Error::Device`].
    pub fn fetch(&mut self, stream: &Stream, place: usize, weight: &Int8Linear) -> Result<(), Error> {
        let index = self.index(place)?;
        if !self.pending.iter().any(|copy| copy.weight == index) {
            // Out of order, or the first: what was copied ahead is of no use, but for codes that a layer uses now.
            let (used, ahead): (Vec<_>, Vec<_>) =
                self.pending.drain(..).partition(|copy| copy.ready.is_none());
            for copy in ahead {
                self.slots[copy.slot].busy = false;
            }
            self.pending.extend(used);
            self.next = index;
            self.fill()?;
        }
        let copy = self.pending.iter_mut().find(|copy| copy.weight == index);
        let Some(copy) = copy else {
            let shape = format!("more than {SLOTS} weights at once");
            return Err(Error::Invalid { operation: "offload", shape });
        };
        if let Some(ready) = copy.ready.take() {
            stream.wait_for(ready)?;
        }
        weight.use_codes(self.slots[copy.slot].codes.pointer());
        Ok(())
    }

    /// The work that reads the codes has been enqueued on `stream`: the next weight may take their place.
    ///
    /// # Errors
    /// As [`fetch`](Self::fetch).
    pub fn release(&mut self, stream: &Stream, place: usize) -> Result<(), Error> {
        let index = self.index(place)?;
        if let Some(at) = self.pending.iter().position(|copy| copy.weight == index)
            && let Some(copy) = self.pending.remove(at)
        {
            let slot = &mut self.slots[copy.slot];
            (slot.read, slot.busy) = (Some(stream.mark()?), false);
        }
        self.fill()
    }

    fn index(&self, place: usize) -> Result<usize, Error> {
        self.weights.binary_search_by_key(&place, |(place, _)| *place).map_err(|_| Error::Invalid {
            operation: "offload",
            shape: format!("place {place}, which no weight has"),
        })
    }

    /// Enqueues copies until every slot has one.
    fn fill(&mut self) -> Result<(), Error> {
        while let Some(slot) = self.slots.iter().position(|slot| !slot.busy) {
            if self.pending.iter().any(|copy| copy.weight == self.next) {
                return Ok(());
            }
            let weight = self.next;
            self.enqueue(weight, slot)?;
            self.slots[slot].busy = true;
            self.pending.push_back(Copy { weight, slot, ready: Some(self.copies.mark()?) });
            self.next = (self.next + 1) % self.weights.len();
        }
        Ok(())
    }

    fn enqueue(&mut self, weight: usize, slot: usize) -> Result<(), Error> {
        let codes = &self.weights[weight].1;
        let slot = &mut self.slots[slot];
        if let Some(read) = slot.read.take() {
            self.copies.wait_for(read)?;
        }
        self.device.activate()?;
        let (to, from, stream) = (slot.codes.pointer(), codes.pointer(), self.copies.inner().as_inner());
        // SAFETY: the slot is at least as large as every weight, page-locked memory lives as long as `self`, whose drop waits.
        let status = unsafe { cuda::cuMemcpyHtoDAsync_v2(to as u64, from.cast(), codes.len(), stream) };
        done("copy to the device", status)
    }
}

impl Drop for Offload {
    fn drop(&mut self) {
        // No copy reads memory that is freed.
        let _ = self.copies.synchronize();
    }
}
