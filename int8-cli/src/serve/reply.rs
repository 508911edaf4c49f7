//! Bodies of responses: whole, or an answer as server-sent events.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use int8_nn::engine::{Event, Handle, RequestId};
use serde_json::{Value, json};
use tokio::sync::mpsc::UnboundedReceiver;

use super::answer::Answers;
use super::error::ApiError;
use super::journal::Journal;

/// The body of a response.
#[derive(Debug)]
pub(super) enum Reply {
    Whole(Option<Bytes>),
    Stream(Box<Stream>),
}

/// The requests of a response. When it is dropped, because they have ended or the client has gone, they are cancelled.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) journal: Arc<Journal>,
    pub(super) handle: Handle,
    pub(super) request_id: String,
    pub(super) begin: Instant,
    pub(super) ids: Vec<RequestId>,
    pub(super) events: UnboundedReceiver<(usize, Event)>,
    pub(super) answers: Answers,
    /// How it ended, for the log.
    pub(super) outcome: &'static str,
}

impl Running {
    /// The chunks of an event; `None`: the engine is gone.
    fn take(&mut self, event: Option<(usize, Event)>) -> Result<Vec<Value>, ApiError> {
        let Some((index, event)) = event else {
            return Err(int8_nn::engine::Rejection::Stopped.into());
        };
        if let Event::Finished(finished) = &event {
            self.journal.metrics.finished(finished);
        }
        let chunks = self.answers.event(index, event);
        self.outcome = match &chunks {
            Err(_) => "failed",
            Ok(_) if self.answers.is_done() => "done",
            Ok(_) => "disconnected",
        };
        chunks
    }

    /// Waits for the end; the whole response.
    pub(super) async fn whole(mut self) -> Result<Value, ApiError> {
        while !self.answers.is_done() {
            let event = self.events.recv().await;
            self.take(event)?;
        }
        Ok(self.answers.whole())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.ids.iter().for_each(|id| self.handle.cancel(*id));
        let usage = self.answers.usage;
        self.journal.log(&json!({
            "event": "answer", "request_id": self.request_id, "outcome": self.outcome, "prompt_tokens": usage.prompt,
            "cached_tokens": usage.cached, "new_tokens": usage.new, "seconds": self.begin.elapsed().as_secs_f64(),
        }));
    }
}

/// An answer as server-sent events.
#[derive(Debug)]
pub(super) struct Stream {
    running: Running,
    ready: VecDeque<Bytes>,
    ended: bool,
}

impl Stream {
    pub(super) fn new(running: Running) -> Self {
        Self { running, ready: VecDeque::new(), ended: false }
    }

    fn push(&mut self, data: &str) {
        self.ready.push_back(Bytes::from(format!("data: {data}\n\n")));
    }
}

impl Body for Reply {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let stream = match self.get_mut() {
            Self::Whole(bytes) => return Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Stream(stream) => stream,
        };
        loop {
            if let Some(bytes) = stream.ready.pop_front() {
                return Poll::Ready(Some(Ok(Frame::data(bytes))));
            }
            if stream.ended {
                return Poll::Ready(None);
            }
            let event = match stream.running.events.poll_recv(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(event) => event,
            };
            match stream.running.take(event) {
                Ok(chunks) => {
                    chunks.iter().for_each(|chunk| stream.push(&chunk.to_string()));
                    stream.ended = stream.running.answers.is_done();
                }
                Err(error) => {
                    stream.push(&error.body().to_string());
                    stream.ended = true;
                }
            }
            if stream.ended {
                stream.push("[DONE]");
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(bytes) => bytes.is_none(),
            Self::Stream(stream) => stream.ended && stream.ready.is_empty(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| crate::convert::count(bytes.len())))
            }
            Self::Stream(_) => SizeHint::default(),
        }
    }
}
