//! Recording the operations of a decode step as a CUDA graph, and replaying it.
#![allow(unsafe_code, reason = "vouches that the memory of a graph outlives it")]

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use int8_cuda::Graph;
use int8_cuda::model::{SharedRows, Tensor, Workspace};

use super::{CudaBackend, lock};
use crate::Error;
use crate::backend::{GraphKey, Phase};

/// The graphs of a session's forwards.
#[derive(Debug, Default)]
pub(super) struct Graphs(HashMap<GraphKey, State>);

/// What is known of a key.
#[derive(Debug)]
enum State {
    /// It has run once: the next time it is recorded.
    Seen,
    Recorded(Recorded),
    /// It cannot be recorded.
    Refused,
}

/// A graph, and what its replay has to restore and keep.
#[derive(Debug)]
struct Recorded {
    graph: Graph,
    /// The rows that the operations gave their outputs.
    rows: Vec<(SharedRows, usize)>,
    /// The workspace whose memory the graph uses.
    _workspace: Arc<Mutex<Workspace>>,
}

/// The state of the forward that runs.
#[derive(Debug, Default)]
pub(super) struct Recording {
    /// A graph is being captured: the rows given to outputs.
    capturing: Option<Vec<(SharedRows, usize)>>,
    /// An operation decided on the host what to enqueue.
    host_decides: bool,
}

impl Recording {
    pub(super) fn produced(&mut self, out: &Tensor) {
        if let Some(rows) = &mut self.capturing {
            rows.push((out.shared_rows(), out.rows()));
        }
    }

    pub(super) fn host_decides(&mut self) {
        self.host_decides = true;
    }
}

/// Most rows of a forward that is recorded. Larger ones take longer than their launches do.
const LARGEST: usize = 256;

/// Whether forwards of this key are recorded: steps that come again, and whose work on the host counts.
pub(super) fn is_recorded(key: &GraphKey) -> bool {
    match key.phase {
        Phase::Forward => key.rows == key.segments && key.rows <= LARGEST,
        Phase::Logits => key.selected <= LARGEST,
        Phase::Encode => false,
    }
}

/// Replays the graphs of this key, one on each backend; or runs `body`, which enqueues work on all of them, the second time to
/// record it.
pub(super) fn run(
    backends: &[&CudaBackend],
    key: GraphKey,
    graphs: &[&Mutex<Graphs>],
    body: &mut (dyn FnMut() -> Result<(), Error> + Send),
) -> Result<(), Error> {
    let mut graphs: Vec<_> = graphs.iter().map(|graphs| lock(graphs)).collect();
    let Some(known) = graphs.first().map(|graphs| graphs.0.get(&key)) else { return body() };
    // What runs on one runs on all: they know the same keys.
    match known {
        Some(State::Recorded(_)) => {
            for (backend, graphs) in backends.iter().zip(&graphs) {
                if let Some(State::Recorded(recorded)) = graphs.0.get(&key) {
                    recorded.graph.launch(&backend.stream)?;
                    recorded.rows.iter().for_each(|(rows, count)| rows.set(*count));
                }
            }
            return Ok(());
        }
        Some(State::Refused) => return body(),
        Some(State::Seen) => {}
        None => {
            graphs.iter_mut().for_each(|graphs| _ = graphs.0.insert(key, State::Seen));
            backends.iter().for_each(|backend| lock(&backend.recording).host_decides = false);
            body()?;
            if backends.iter().any(|backend| lock(&backend.recording).host_decides) {
                graphs.iter_mut().for_each(|graphs| _ = graphs.0.insert(key, State::Refused));
            }
            return Ok(());
        }
    }
    let workspaces: Vec<_> = backends.iter().map(|backend| backend.workspace()).collect();
    backends.iter().for_each(|backend| lock(&backend.recording).capturing = Some(Vec::new()));
    let streams: Vec<_> = backends.iter().map(|backend| &backend.stream).collect();
    let mut failed = None;
    // SAFETY: weights and the session's buffers outlive the session, whose batch holds the graph; the workspace is kept with it, and
    // the buffers of exchanges by the backend of all ranks.
    let captured = unsafe {
        Graph::capture_all(&streams, || {
            body().or_else(|error| {
                failed = Some(error);
                Ok(())
            })
        })
    };
    let take = |backend: &&CudaBackend| lock(&backend.recording).capturing.take().unwrap_or_default();
    let rows: Vec<_> = backends.iter().map(take).collect();
    match captured {
        Ok(captured) if failed.is_none() => {
            let parts = captured.into_iter().zip(rows).zip(workspaces);
            for ((graphs, backend), ((graph, rows), workspace)) in graphs.iter_mut().zip(backends).zip(parts)
            {
                graph.launch(&backend.stream)?;
                graphs.0.insert(key, State::Recorded(Recorded { graph, rows, _workspace: workspace }));
            }
            Ok(())
        }
        // What cannot be recorded still runs; a mistake of the caller fails again.
        _ => {
            graphs.iter_mut().for_each(|graphs| _ = graphs.0.insert(key, State::Refused));
            body()
        }
    }
}
