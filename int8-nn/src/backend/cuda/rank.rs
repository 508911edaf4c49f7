//! GPUs as ranks: exchanges over the memory of each other.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use int8_cuda::model::{Exchange, ExchangeSizes, FloatWeight, Function, Store};

use super::linear::Weight;
use super::{CudaActivations, CudaBackend, CudaBatch, CudaLinear, graphs, lock};
use crate::Error;
use crate::backend::parallel::{ExchangeCapacity, Rank, share};
use crate::backend::{Backend, GraphKey, Input, Output};
use crate::group::Group;
use crate::precision::Site;

/// The buffers for exchanges, and those before, which recorded graphs may use.
#[derive(Debug)]
pub struct Exchanges {
    current: Exchange,
    /// Of the logits of each rank, in all processes.
    widths: Vec<usize>,
    former: Vec<Exchange>,
}

impl Rank for CudaBackend {
    const EXACT_OUTLIER_WEIGHTS: bool = false;

    type Exchange = Exchanges;

    fn exchange(
        ranks: &[Arc<Self>],
        group: &Arc<Group>,
        capacity: ExchangeCapacity,
        former: Option<Exchanges>,
    ) -> Result<Exchanges, Error> {
        let devices: Vec<_> = ranks.iter().map(|rank| &rank.device).collect();
        let ExchangeCapacity { rows, hidden, inputs, selected, vocabulary } = capacity;
        let count = devices.len() * group.processes();
        let columns = selected * vocabulary.div_ceil(count);
        let sizes = ExchangeSizes { rows, hidden, inputs, columns };
        let current = if group.processes() == 1 {
            let on_host = ranks.iter().any(|rank| rank.exchanges_on_host.load(Ordering::Acquire));
            let new = if on_host { Exchange::through_host } else { Exchange::new };
            new(&devices, sizes)?
        } else {
            let machines = group.gather(machine().as_bytes())?;
            if machines.windows(2).any(|pair| pair[0] != pair[1]) {
                return Err(Error::Unsupported("GPUs of several machines in one group".to_owned()));
            }
            Exchange::of_processes(&devices, sizes, group.process(), |own| group.gather(own))?
        };
        let widths = (0..count).map(|rank| share(vocabulary, count, rank).len()).collect();
        for (index, rank) in ranks.iter().enumerate() {
            *lock(&rank.arrival) = Some(current.arrival(index));
        }
        let former = former.into_iter().flat_map(|former| {
            let Exchanges { current, former, .. } = former;
            former.into_iter().chain([current])
        });
        Ok(Exchanges { current, widths, former: former.collect() })
    }

    fn tied_rows(
        &self,
        site: Site,
        embedding: &Arc<FloatWeight>,
        rows: Range<usize>,
    ) -> Result<CudaLinear, Error> {
        self.tied(site, &Arc::new(embedding.part(rows)))
    }

    fn run_together(
        ranks: &[Arc<Self>],
        key: GraphKey,
        batches: &[CudaBatch],
        body: &mut (dyn FnMut() -> Result<(), Error> + Send),
    ) -> Result<(), Error> {
        let _turns: Vec<_> = ranks.iter().map(|rank| rank.turn.enter()).collect();
        if !graphs::is_recorded(&key) {
            return body();
        }
        let backends: Vec<_> = ranks.iter().map(|rank| &**rank).collect();
        let graphs: Vec<_> = batches.iter().map(|batch| &batch.graphs).collect();
        graphs::run(&backends, key, &graphs, body)
    }

    fn contract(
        ranks: &[Arc<Self>],
        exchange: &mut Exchanges,
        inputs: &[Input<'_, Self>],
        linears: &[&CudaLinear],
        outs: &mut [Output<'_, Self>],
    ) -> Result<(), Error> {
        let exchange = &mut exchange.current;
        let _turns: Vec<_> = ranks.iter().map(|rank| rank.turn.enter()).collect();
        let streams: Vec<_> = ranks.iter().map(|rank| &rank.stream).collect();
        let inputs: Vec<_> = inputs.iter().map(Input::parts).collect();
        let (outputs, _) = linears[0].dim();
        exchange.set_width(outputs, inputs[0].0.rows())?;
        let quantized = match linears[0].weight() {
            Weight::Int8 { config, .. } => {
                exchange.quantizable(&streams, &inputs, ranks[0].compute, config)?;
                true
            }
            Weight::Float(_) => false,
        };
        for (index, (rank, linear)) in ranks.iter().zip(linears).enumerate() {
            let (input, part) = exchange.input_and_part(index);
            let (x, function) = if quantized { (input, Function::Identity) } else { inputs[index] };
            rank.project_rows(x, &function, &mut [(linear, part, Store::Overwrite)])?;
        }
        let mut outs: Vec<_> = outs
            .iter_mut()
            .map(|out| {
                let (out, store) = out.parts_mut();
                (&mut out.tensor, store)
            })
            .collect();
        // The next exchange of int8 layers is that of ranges, which no rank passes before all have added up.
        exchange.sum(&streams, &mut outs, !quantized)?;
        for (rank, (out, _)) in ranks.iter().zip(&outs) {
            lock(&rank.recording).produced(out);
        }
        Ok(())
    }

    fn join(
        ranks: &[Arc<Self>],
        exchange: &mut Exchanges,
        parts: &[CudaActivations],
        out: Option<&mut CudaActivations>,
    ) -> Result<(), Error> {
        let _turns: Vec<_> = ranks.iter().map(|rank| rank.turn.enter()).collect();
        let streams: Vec<_> = ranks.iter().map(|rank| &rank.stream).collect();
        let parts: Vec<_> = parts.iter().map(|part| &part.tensor).collect();
        let Exchanges { current, widths, .. } = exchange;
        match out {
            Some(out) => {
                current.columns(&streams, &parts, widths, Some(&mut out.tensor))?;
                ranks[0].produced(out);
            }
            None => current.columns(&streams, &parts, widths, None)?,
        }
        Ok(())
    }
}

/// What tells one run of one machine from others.
fn machine() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default()
}
