//! What several devices of one host that compute each layer together exchange: kernels on each of them read the others' memory and
//! wait for each other, without the host.

use std::sync::Arc;

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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExchangeSizes {
    /// Rows.
    pub rows: usize,
    /// Width of what is added up.
    pub hidden: usize,
    /// Features of an input that each rank has.
    pub inputs: usize,
}

/// The buffers of all ranks. Every exchange is one operation of all of them, enqueued on a stream of each.
#[derive(Debug)]
pub struct Exchange {
    ranks: Vec<Buffers>,
}

#[derive(Debug)]
struct Buffers {
    signals: Buffer<u8>,
    receive: Buffer<u8>,
    failed: Arc<Buffer<u32>>,
    /// f32 `[rows, hidden]`: what the others add up.
    part: Tensor,
    /// f32 `[rows, 2]`
    ranges: Buffer<f32>,
    /// The input of a layer, 4 bytes an element.
    input: Tensor,
    workspace: Buffer<u8>,
}

impl Exchange {
    /// Buffers on each of these devices, which reach each other's memory from now on.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for more than 8 devices, or where two of them cannot reach each other; [`Error::OutOfMemory`],
    /// [`Error::Device`].
    pub fn new(devices: &[&Device], sizes: ExchangeSizes) -> Result<Self, Error> {
        let count = devices.len();
        if count > sys::INT8_CUDA_MAX_RANKS {
            let shape = format!("{count} devices; {} at most", sys::INT8_CUDA_MAX_RANKS);
            return Err(Error::Unsupported { operation: "exchange", shape });
        }
        for (index, device) in devices.iter().enumerate() {
            for (other, peer) in devices.iter().enumerate() {
                if index != other && !device.reaches(peer)? {
                    let shape = format!("devices {index} and {other} of {count}, whose memory is not linked");
                    return Err(Error::Unsupported { operation: "exchange", shape });
                }
            }
        }
        let ExchangeSizes { rows, hidden, inputs } = sizes;
        let buffers = |device: &&Device| -> Result<Buffers, Error> {
            Ok(Buffers {
                signals: Buffer::zeros(device, sys::INT8_CUDA_SIGNAL_BYTES)?,
                receive: Buffer::zeros(device, sys::int8_cuda_receive_bytes(count))?,
                failed: Arc::new(Buffer::zeros(device, 1)?),
                part: Tensor::new(device, FloatType::F32, rows, hidden)?,
                ranges: Buffer::zeros(device, 2 * rows)?,
                input: Tensor::new(device, FloatType::F32, rows, inputs + RANGE_COLUMNS)?,
                workspace: Buffer::zeros(device, inputs.div_ceil(32) * 4 + 256)?,
            })
        };
        Ok(Self { ranks: devices.iter().map(buffers).collect::<Result<_, _>>()? })
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
            if 2 * rows > rank.ranges.len() {
                let (expected, found) = ((rank.ranges.len() / 2, k), (rows, k));
                return Err(Error::Shape { operation: "exchange", what: "rows", expected, found });
            }
            let params = sys::int8_cuda_exchange_ranges_params {
                signals: self.signals(index),
                ranges: self.of_ranks(std::ptr::null_mut(), |rank| rank.ranges.pointer()),
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
                parts: self.of_ranks(std::ptr::null(), |rank| rank.part.pointer().cast_const().cast()),
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

    /// Enqueues, on the first rank, `out [rows, Σ widths] = [parts₀ | parts₁ | …]`, all f32.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::Device`].
    pub fn columns(&mut self, streams: &[&Stream], parts: &[&Tensor], out: &mut Tensor) -> Result<(), Error> {
        let rows = parts.first().map_or(0, |part| part.rows());
        let width = parts.iter().map(|part| part.width()).sum();
        out.expect_width("exchange", width)?;
        if let Some(part) = parts.iter().find(|part| part.rows() != rows || part.element() != FloatType::F32)
        {
            let (expected, found) = ((rows, part.width()), (part.rows(), part.width()));
            return Err(Error::Shape { operation: "exchange", what: "parts", expected, found });
        }
        out.set_rows(rows)?;
        for (index, stream) in streams.iter().enumerate() {
            let mut params = sys::int8_cuda_exchange_columns_params {
                signals: self.signals(index),
                parts: [std::ptr::null(); sys::INT8_CUDA_MAX_RANKS],
                out: out.pointer().cast(),
                stream: stream.raw()?,
                rows: convert::size(rows),
                widths: [0; sys::INT8_CUDA_MAX_RANKS],
            };
            for (place, part) in parts.iter().enumerate() {
                params.parts[place] = part.pointer().cast_const().cast();
                params.widths[place] = convert::size(part.width());
            }
            // SAFETY: parts and output have these rows, which was checked; all ranks reach the parts.
            let status = unsafe { sys::int8_cuda_exchange_columns(&raw const params) };
            check("exchange", status, || format!("[{rows}, {width}] f32"))?;
        }
        Ok(())
    }

    /// What tells whether a rank waited for the others in vain.
    pub fn arrival(&self, rank: usize) -> Arrival {
        Arrival { rank, failed: self.ranks[rank].failed.clone() }
    }

    fn signals(&self, rank: usize) -> sys::int8_cuda_signals {
        sys::int8_cuda_signals {
            of_rank: self.of_ranks(std::ptr::null_mut(), |rank| rank.signals.pointer().cast()),
            receive: self.of_ranks(std::ptr::null_mut(), |rank| rank.receive.pointer().cast()),
            failed: self.ranks[rank].failed.pointer(),
            ranks: convert::index(self.ranks.len()),
            rank: convert::index(rank),
        }
    }

    fn of_ranks<P: Copy>(&self, none: P, pointer: impl Fn(&Buffers) -> P) -> [P; sys::INT8_CUDA_MAX_RANKS] {
        std::array::from_fn(|index| self.ranks.get(index).map_or(none, &pointer))
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
