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
        let raw = stream.inner().as_inner();
        stream.device().activate()?;
        let mode = cuda::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: a live stream of the current context.
        done("begin capture", unsafe { cuda::cuStreamBeginCapture_v2(raw, mode) })?;
        let outcome = work();
        let mut graph = std::ptr::null_mut();
        // SAFETY: ends the capture begun above, also when the work failed.
        let ended = done("end capture", unsafe { cuda::cuStreamEndCapture(raw, &raw mut graph) });
        outcome?;
        ended?;
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
        Ok(Self { executable, device: stream.device().clone() })
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
