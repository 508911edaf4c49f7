//! What several devices of one host that compute each layer together exchange: kernels on each of them read the others' memory and
//! wait for each other, without the host. The devices may belong to several processes.

mod addresses;

use std::sync::Arc;

use addresses::{Addresses, Opened, of_ranks};

use int8_core::{Config, FloatType};
use int8_cuda_sys as sys;

use super::tensor::{Store, Tensor, element};
use super::transform::Function;
use crate::convert;
use crate::device::{Device, Stream};
use crate::error::{Error, check};
use crate::matrix::Buffer;
use crate::settings::Settings;

/// Features that [`Exchange::quantizable`] adds to an input.
pub const RANGE_COLUMNS: usize = sys::INT8_CUDA_RANGE_COLUMNS;

/// The largest exchanges.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ExchangeSizes {
    /// Rows.
    pub rows: usize,
    /// Width of what is added up.
    pub hidden: usize,
    /// Features of an input that each rank has.
    pub inputs: usize,
    /// Numbers that each rank has of what is put side by side.
    pub columns: usize,
}

/// The buffers of all ranks. Every exchange is one operation of all of them, enqueued on a stream of each.
#[derive(Debug)]
pub struct Exchange {
    /// The ranks of this process.
    ranks: Vec<Buffers>,
    devices: Vec<Device>,
    /// Number of the first of them.
    first: usize,
    /// Whether the ranks read any memory of each other, and not these buffers alone.
    linked: bool,
    /// Of all ranks.
    addresses: Vec<Addresses>,
    /// What the addresses of other processes' ranks need.
    opened: Vec<Opened>,
}

#[derive(Debug)]
struct Buffers {
    signals: Buffer<u8>,
    receive: Buffer<u8>,
    failed: Arc<Buffer<u32>>,
    /// f32 `[rows, hidden]`: what the others add up.
    part: Tensor,
    /// f32 `[rows, 2]`
    ranges: Buffer<u8>,
    /// f32: what rank 0 puts side by side, where it reaches no other memory of this rank.
    columns: Buffer<u8>,
    /// The input of a layer, 4 bytes an element.
    input: Tensor,
    workspace: Buffer<u8>,
}

impl Buffers {
    fn addresses(&self) -> Addresses {
        Addresses {
            signals: self.signals.pointer().cast(),
            receive: self.receive.pointer().cast(),
            part: self.part.pointer(),
            ranges: self.ranges.pointer().cast(),
            columns: self.columns.pointer().cast(),
        }
    }
}

impl Exchange {
    /// Buffers on each of these devices. Where two of them cannot reach each other's memory, what they read of each other lies in
    /// host memory.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for more than 8 devices; [`Error::OutOfMemory`], [`Error::OutOfHostMemory`], [`Error::Device`].
    pub fn new(devices: &[&Device], sizes: ExchangeSizes) -> Result<Self, Error> {
        if !link(devices)? {
            return Self::through_host(devices, sizes);
        }
        Self::of_one_process(devices, ExchangeSizes { columns: 0, ..sizes }, true)
    }

    /// As [`new`](Self::new), with everything in host memory: the way of devices that are not linked.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn through_host(devices: &[&Device], sizes: ExchangeSizes) -> Result<Self, Error> {
        Self::of_one_process(devices, sizes, false)
    }

    fn of_one_process(devices: &[&Device], sizes: ExchangeSizes, linked: bool) -> Result<Self, Error> {
        let mut exchange = Self::of_process(devices, sizes, linked)?;
        exchange.addresses = exchange.ranks.iter().map(Buffers::addresses).collect();
        exchange.check_count()?;
        Ok(exchange)
    }

    /// Buffers on the devices of process `process` of several on one host, each of which has as many; its ranks follow those of
    /// the processes before it. `gather` returns the messages of all processes, in their order, and is called once.
    ///
    /// # Errors
    /// Those of `gather`; as [`new`](Self::new), and [`Error::Unsupported`] where a device cannot reach another process's.
    pub fn of_processes<E: From<Error>>(
        devices: &[&Device],
        sizes: ExchangeSizes,
        process: usize,
        gather: impl FnOnce(&[u8]) -> Result<Vec<Vec<u8>>, E>,
    ) -> Result<Self, E> {
        link(devices)?;
        let mut exchange = Self::of_process(devices, sizes, true)?;
        (exchange.first, exchange.linked) = (process * devices.len(), false);
        let own: Vec<Addresses> = exchange.ranks.iter().map(Buffers::addresses).collect();
        let mut message = Vec::new();
        for (addresses, device) in own.iter().zip(devices) {
            message.extend(addresses.tell(device)?);
        }
        for (other, message) in gather(&message)?.iter().enumerate() {
            if other == process {
                exchange.addresses.extend(&own);
                continue;
            }
            for told in message.chunks(message.len().div_ceil(devices.len().max(1)).max(1)) {
                let (opened, addresses) = Opened::new(devices[0], told)?;
                exchange.opened.push(opened);
                exchange.addresses.push(addresses);
            }
        }
        exchange.check_count()?;
        Ok(exchange)
    }

    fn check_count(&self) -> Result<(), Error> {
        let count = self.addresses.len();
        if count <= sys::INT8_CUDA_MAX_RANKS {
            return Ok(());
        }
        let shape = format!("{count} devices; {} at most", sys::INT8_CUDA_MAX_RANKS);
        Err(Error::Unsupported { operation: "exchange", shape })
    }

    /// Without the addresses.
    fn of_process(devices: &[&Device], sizes: ExchangeSizes, linked: bool) -> Result<Self, Error> {
        let ExchangeSizes { rows, hidden, inputs, columns } = sizes;
        let shared = |device: &Device, bytes: usize| match linked {
            true => Buffer::zeros(device, bytes),
            false => Buffer::zeros_on_host(device, bytes),
        };
        // Every rank has room for packets of as many ranks as there can be.
        let receive = sys::int8_cuda_receive_bytes(sys::INT8_CUDA_MAX_RANKS);
        let float = size_of::<f32>();
        let buffers = |device: &&Device| -> Result<Buffers, Error> {
            Ok(Buffers {
                signals: shared(device, sys::INT8_CUDA_SIGNAL_BYTES)?,
                receive: shared(device, receive)?,
                failed: Arc::new(Buffer::zeros(device, 1)?),
                part: Tensor::of(shared(device, rows * hidden * float)?, FloatType::F32, hidden),
                ranges: shared(device, 2 * rows * float)?,
                columns: shared(device, (columns * float).max(1))?,
                input: Tensor::new(device, FloatType::F32, rows, inputs + RANGE_COLUMNS)?,
                workspace: Buffer::zeros(device, inputs.div_ceil(32) * 4 + 256)?,
            })
        };
        Ok(Self {
            ranks: devices.iter().map(buffers).collect::<Result<_, _>>()?,
            devices: devices.iter().map(|device| (*device).clone()).collect(),
            first: 0,
            linked,
            addresses: Vec::new(),
            opened: Vec::new(),
        })
    }

    /// Enqueues `function(xᵣ)` in `compute`, and behind its k features [`RANGE_COLUMNS`] with the range of each row over all ranks, as
    /// far as it counts for the row's scale: quantised by [`super::Workspace::project`], rank r's codes are those of its features
    /// in the whole row.
    ///
    /// # Errors
    /// [`Error::Shape`] without room, [`Error::Unsupported`] for relative outliers; [`Error::Device`].
    pub fn quantizable(
        &mut self,
        streams: &[&Stream],
        inputs: &[(&Tensor, Function<'_>)],
        compute: FloatType,
        config: &Config,
    ) -> Result<(), Error> {
        let settings = Settings::of(config);
        if !matches!(settings.rule, sys::INT8_CUDA_RULE_NONE | sys::INT8_CUDA_RULE_ABSOLUTE) {
            return Err(Error::Unsupported { operation: "exchange", shape: "relative outliers".to_owned() });
        }
        for ((x, function), rank) in inputs.iter().zip(&mut self.ranks) {
            rank.input.reshape(compute, x.width() / function.input_width(1) + RANGE_COLUMNS);
            rank.input.set_rows(x.rows())?;
        }
        for (index, (stream, (x, function))) in streams.iter().zip(inputs).enumerate() {
            let (rank, k) = (&self.ranks[index], x.width() / function.input_width(1));
            let rows = rank.input.rows();
            let room = rank.ranges.len() / (2 * size_of::<f32>());
            if rows > room {
                let (expected, found) = ((room, k), (rows, k));
                return Err(Error::Shape { operation: "exchange", what: "rows", expected, found });
            }
            let params = sys::int8_cuda_exchange_ranges_params {
                signals: self.signals(index),
                ranges: of_ranks(&self.addresses, std::ptr::null_mut(), |rank| rank.ranges.cast()),
                input: x.pointer(),
                x: rank.input.pointer(),
                workspace: rank.workspace.pointer().cast(),
                stream: stream.raw()?,
                workspace_bytes: rank.workspace.len(),
                rows: convert::size(rows),
                k: convert::size(k),
                ldi: convert::size(x.width()),
                ldx: convert::size(k + RANGE_COLUMNS),
                input_element: element(x.element()),
                element: element(compute),
                rule: settings.rule,
                outlier_granularity: settings.outlier_granularity,
                row_maximum: settings.row_maximum,
                threshold: settings.threshold,
                transform: function.raw(k)?,
            };
            // SAFETY: the buffers have room for these rows, which was checked; all ranks reach them.
            let status = unsafe { sys::int8_cuda_exchange_ranges(&raw const params) };
            check("exchange", status, || format!("x [{rows}, {k}] {}", compute.name()))?;
        }
        Ok(())
    }

    /// The input that [`quantizable`](Self::quantizable) made on a rank, and the part of the sum that is to be written there.
    pub fn input_and_part(&mut self, rank: usize) -> (&Tensor, &mut Tensor) {
        let Buffers { input, part, .. } = &mut self.ranks[rank];
        (input, part)
    }

    /// Takes parts of this width.
    ///
    /// # Errors
    /// [`Error::Shape`] where there is no room.
    pub fn set_width(&mut self, width: usize, rows: usize) -> Result<(), Error> {
        for rank in &mut self.ranks {
            rank.part.reshape(FloatType::F32, width);
            rank.part.set_rows(rows)?;
        }
        Ok(())
    }

    /// Enqueues `outᵣ (+)= Σ partᵢ`, the same on all ranks. `waits`: the parts may be written again at once; without, after the
    /// next exchange.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::Device`].
    pub fn sum(
        &mut self,
        streams: &[&Stream],
        outs: &mut [(&mut Tensor, Store)],
        waits: bool,
    ) -> Result<(), Error> {
        for (index, (stream, (out, store))) in streams.iter().zip(outs).enumerate() {
            let (rows, width) = (self.ranks[index].part.rows(), self.ranks[index].part.width());
            out.expect_width("exchange", width)?;
            if out.element() != FloatType::F32 || (*store == Store::Accumulate && out.rows() != rows) {
                let (expected, found) = ((rows, width), (out.rows(), out.width()));
                return Err(Error::Shape { operation: "exchange", what: "output", expected, found });
            }
            out.set_rows(rows)?;
            let params = sys::int8_cuda_exchange_sum_params {
                signals: self.signals(index),
                parts: of_ranks(&self.addresses, std::ptr::null(), |rank| rank.part.cast_const().cast()),
                out: out.pointer().cast(),
                stream: stream.raw()?,
                rows: convert::size(rows),
                width: convert::size(width),
                store: store.raw(),
                waits: i32::from(waits),
            };
            // SAFETY: parts and output have these rows, which was checked; all ranks reach the parts.
            let status = unsafe { sys::int8_cuda_exchange_sum(&raw const params) };
            check("exchange", status, || format!("[{rows}, {width}] f32"))?;
        }
        Ok(())
    }

    /// Enqueues, on the first rank of the first process, which alone has `out`: `out [rows, Σ widths] = [parts₀ | parts₁ | …]`, all
    /// f32. `widths`: of the parts of all ranks.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::Device`].
    pub fn columns(
        &mut self,
        streams: &[&Stream],
        parts: &[&Tensor],
        widths: &[usize],
        mut out: Option<&mut Tensor>,
    ) -> Result<(), Error> {
        let rows = parts.first().map_or(0, |part| part.rows());
        let own = widths.iter().skip(self.first);
        let fits = widths.len() == self.addresses.len()
            && parts.iter().zip(own).all(|(part, width)| {
                part.rows() == rows && part.width() == *width && part.element() == FloatType::F32
            });
        if !fits {
            let (expected, found) = ((rows, widths.len()), (rows, self.addresses.len()));
            return Err(Error::Shape { operation: "exchange", what: "parts", expected, found });
        }
        if let Some(out) = &mut out {
            out.expect_width("exchange", widths.iter().sum())?;
            out.set_rows(rows)?;
        }
        for (index, (stream, part)) in streams.iter().zip(parts).enumerate() {
            let mut params = sys::int8_cuda_exchange_columns_params {
                signals: self.signals(index),
                parts: of_ranks(&self.addresses, std::ptr::null(), |rank| rank.columns.cast_const().cast()),
                out: out.as_ref().map_or(std::ptr::null_mut(), |out| out.pointer().cast()),
                stream: stream.raw()?,
                rows: convert::size(rows),
                widths: [0; sys::INT8_CUDA_MAX_RANKS],
            };
            if !self.linked {
                part.copy_to(stream, &mut self.ranks[index].columns)?;
            } else {
                for (to, part) in params.parts.iter_mut().zip(parts) {
                    *to = part.pointer().cast_const().cast();
                }
            }
            for (to, width) in params.widths.iter_mut().zip(widths) {
                *to = convert::size(*width);
            }
            // SAFETY: parts and output have these rows, which was checked; all ranks reach the parts.
            let status = unsafe { sys::int8_cuda_exchange_columns(&raw const params) };
            check("exchange", status, || format!("{rows} rows of {widths:?} f32"))?;
        }
        Ok(())
    }

    /// What tells whether a rank waited for the others in vain.
    pub fn arrival(&self, rank: usize) -> Arrival {
        Arrival { rank: self.first + rank, failed: self.ranks[rank].failed.clone() }
    }

    fn signals(&self, rank: usize) -> sys::int8_cuda_signals {
        sys::int8_cuda_signals {
            of_rank: of_ranks(&self.addresses, std::ptr::null_mut(), |rank| rank.signals),
            receive: of_ranks(&self.addresses, std::ptr::null_mut(), |rank| rank.receive),
            failed: self.ranks[rank].failed.pointer(),
            ranks: convert::index(self.addresses.len()),
            rank: convert::index(self.first + rank),
        }
    }
}

/// Lets devices read each other's memory, and tells whether all of them can.
fn link(devices: &[&Device]) -> Result<bool, Error> {
    let mut linked = true;
    for device in devices {
        for peer in devices {
            linked = device.reaches(peer)? && linked;
        }
    }
    Ok(linked)
}

impl Drop for Exchange {
    fn drop(&mut self) {
        // A kernel of another rank may still read what this one has: those of this process have ended before anything is freed.
        for device in &self.devices {
            let _ = device.synchronize();
        }
        self.opened.clear();
    }
}

/// Whether the other ranks have come to the exchanges of a rank.
#[derive(Debug, Clone)]
pub struct Arrival {
    rank: usize,
    failed: Arc<Buffer<u32>>,
}

impl Arrival {
    /// Waits for the stream.
    ///
    /// # Errors
    /// [`Error::Peer`] where one did not come; [`Error::Device`].
    pub fn check(&self, stream: &Stream) -> Result<(), Error> {
        if self.failed.read_range(stream, 0..1)? == [0] {
            return Ok(());
        }
        Err(Error::Peer { rank: self.rank })
    }
}
