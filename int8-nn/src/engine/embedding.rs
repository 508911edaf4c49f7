//! Sentence embeddings of many requests at once: texts that wait together form batches.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};

use super::Rejection;
use crate::backend::Backend;
use crate::embedder::Embedder;

/// Limits of a queue of embeddings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EmbedOptions {
    /// Texts of all requests that may wait; more are refused.
    pub max_waiting: usize,
}

/// Takes the vectors of a request, in the order of its texts, or the message of an error.
pub type EmbedSink = Box<dyn FnOnce(Result<Vec<Vec<f32>>, String>) + Send>;

/// Token ids of the texts of a request, and who waits for their vectors.
type Job = (Vec<Vec<u32>>, EmbedSink);

/// Reaches an embedder that [`serve_embeddings`] runs on another thread.
#[derive(Clone, Debug)]
pub struct EmbedHandle {
    jobs: Sender<JobBox>,
    waiting: Arc<AtomicUsize>,
    options: EmbedOptions,
}

/// A [`Job`] with a name to print.
struct JobBox(Job);

impl std::fmt::Debug for JobBox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} texts", self.0.0.len())
    }
}

impl EmbedHandle {
    /// Appends texts to the queue, as token ids.
    ///
    /// # Errors
    /// [`Rejection::Full`] and [`Rejection::Stopped`].
    pub fn submit(&self, texts: Vec<Vec<u32>>, sink: EmbedSink) -> Result<(), Rejection> {
        let count = texts.len();
        let waiting = self.waiting.fetch_add(count, Ordering::AcqRel);
        // One request may be larger than the queue.
        let refused = if waiting > 0 && waiting + count > self.options.max_waiting {
            Some(Rejection::Full { waiting })
        } else {
            self.jobs.send(JobBox((texts, sink))).err().map(|_| Rejection::Stopped)
        };
        match refused {
            None => Ok(()),
            Some(rejection) => {
                self.waiting.fetch_sub(count, Ordering::AcqRel);
                Err(rejection)
            }
        }
    }

    /// Texts that wait or are computed.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Acquire)
    }
}

/// The end of an [`EmbedHandle`] for [`serve_embeddings`].
#[derive(Debug)]
pub struct EmbedQueue {
    jobs: Receiver<JobBox>,
    waiting: Arc<AtomicUsize>,
}

/// A queue of embeddings.
pub fn embed_handle(options: EmbedOptions) -> (EmbedHandle, EmbedQueue) {
    let (sender, jobs) = channel();
    let waiting = Arc::new(AtomicUsize::new(0));
    (EmbedHandle { jobs: sender, waiting: Arc::clone(&waiting), options }, EmbedQueue { jobs, waiting })
}

/// Computes what comes in until no handle is left. All texts that wait at one moment are computed together, those of similar
/// length in a batch; with `Value` granularity a text's vector does not depend on the others.
pub fn serve_embeddings<B: Backend>(embedder: &Embedder<B>, queue: EmbedQueue) {
    while let Ok(first) = queue.jobs.recv() {
        let jobs: Vec<Job> = std::iter::once(first).chain(queue.jobs.try_iter()).map(|job| job.0).collect();
        let texts: Vec<Vec<u32>> = jobs.iter().flat_map(|(texts, _)| texts).cloned().collect();
        let together = embedder.embed_ids(&texts, |_, _| ());
        let mut first = 0;
        for (texts, sink) in jobs {
            let count = texts.len();
            let vectors = match &together {
                Ok(all) => Ok((first..first + count).map(|row| all.row(row).to_vec()).collect()),
                // One of the requests may be at fault alone.
                Err(_) => match embedder.embed_ids(&texts, |_, _| ()) {
                    Ok(all) => Ok(all.outer_iter().map(|row| row.to_vec()).collect()),
                    Err(error) => Err(error.to_string()),
                },
            };
            first += count;
            queue.waiting.fetch_sub(count, Ordering::AcqRel);
            sink(vectors);
        }
    }
}
