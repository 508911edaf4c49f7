//! CUDA graphs: work recorded once and replayed without its launch costs on the host.

use cust::sys as cuda;

use crate::device::{Device, Stream};
use crate::error::{Error, done};

/// Recorded work. Its buffers and plans must outlive it; a replay uses their contents at that time.
#[derive(Debug)]
pub struct Graph {
    executable: cuda::CUgraphExec,
    device: Device,
}

// SAFETY: the driver's calls on an executable graph may come from any thread; `launch` makes its context current.
unsafe impl Send for Graph {}
// SAFETY: as above, and the driver orders launches of one graph.
unsafe impl Sync for Graph {}

impl Graph {
    /// Records the work that `work` enqueues on `stream`, without running it.
    ///
    /// # Safety
    /// All memory that `work` uses must stay allocated until the graph's last replay has ended.
    ///
    /// # Errors
    /// The error of `work`, or [`Error::Device`].
    pub unsafe fn capture(stream: &Stream, work: impl FnOnce() -> Result<(), Error>) -> Result<Self, Error> {
        // SAFETY: the caller's promise.
        let mut graphs = unsafe { Self::capture_all(&[stream], work)? };
        graphs.pop().ok_or(Error::Invalid { operation: "graph", shape: "no stream".to_owned() })
    }

    /// The same for several streams: a graph of each, in their order.
    ///
    /// # Safety
    /// As [`capture`](Self::capture).
    ///
    /// # Errors
    /// The error of `work`, or [`Error::Device`].
    pub unsafe fn capture_all(
        streams: &[&Stream],
        work: impl FnOnce() -> Result<(), Error>,
    ) -> Result<Vec<Self>, Error> {
        let mode = cuda::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        let begin = |stream: &Stream| {
            stream.device().activate()?;
            // SAFETY: a live stream of the current context.
            done("begin capture", unsafe { cuda::cuStreamBeginCapture_v2(stream.inner().as_inner(), mode) })
        };
        let mut begun = 0;
        let mut outcome = Ok(());
        for stream in streams {
            outcome = begin(stream);
            if outcome.is_err() {
                break;
            }
            begun += 1;
        }
        let outcome = outcome.and_then(|()| work());
        // All end before the first is made executable, which may allocate.
        let mut captured = Vec::new();
        for stream in &streams[..begun] {
            let mut graph = std::ptr::null_mut();
            let ended = stream.device().activate().and_then(|()| {
                // SAFETY: ends the capture begun above, also when the work failed.
                done("end capture", unsafe {
                    cuda::cuStreamEndCapture(stream.inner().as_inner(), &raw mut graph)
                })
            });
            captured.push((graph, ended));
        }
        let mut graphs = Vec::new();
        let mut failed = outcome.err();
        for (stream, (graph, ended)) in streams.iter().zip(captured) {
            if let (None, Err(error)) = (&failed, ended) {
                failed = Some(error);
            }
            if !graph.is_null() {
                match Self::executable(stream.device(), graph) {
                    Ok(graph) => graphs.push(graph),
                    Err(error) => failed = failed.or(Some(error)),
                }
            }
        }
        match failed {
            None => Ok(graphs),
            Some(error) => Err(error),
        }
    }

    /// Takes a captured graph.
    fn executable(device: &Device, graph: cuda::CUgraph) -> Result<Self, Error> {
        device.activate()?;
        let mut executable = std::ptr::null_mut();
        // SAFETY: a graph that was just captured; no log is requested.
        let status = unsafe {
            cuda::cuGraphInstantiate_v2(
                &raw mut executable,
                graph,
                std::ptr::null_mut(),
                std::ptr::null_mut(),
                0,
            )
        };
        // SAFETY: the executable graph does not refer to the one it was made of.
        unsafe { cuda::cuGraphDestroy(graph) };
        done("instantiate graph", status)?;
        Ok(Self { executable, device: device.clone() })
    }

    /// Enqueues one replay on `stream`.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn launch(&self, stream: &Stream) -> Result<(), Error> {
        self.device.activate()?;
        // SAFETY: both live; `capture`'s contract covers the memory.
        done("launch graph", unsafe { cuda::cuGraphLaunch(self.executable, stream.inner().as_inner()) })
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if self.device.activate().is_ok() {
            // SAFETY: made by `capture`, destroyed once. A failure leaves nothing to do.
            unsafe { cuda::cuGraphExecDestroy(self.executable) };
        }
    }
}
