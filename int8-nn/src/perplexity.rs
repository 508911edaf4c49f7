//! Perplexity: `exp` of the mean negative log-likelihood of a text's tokens, in non-overlapping windows.

use int8_cpu::{Kernel, float};
use rayon::prelude::*;

use crate::backend::{Backend, KvType, RowSelection};
use crate::model::Model;
use crate::sampler::Sampler;
use crate::session::SessionOptions;
use crate::{Error, convert};

/// Rows of logits computed at once: 51 MB for a vocabulary of 50,000. Each such batch reads and widens the whole head once.
const LOGIT_ROWS: usize = 256;

/// How a text is divided into windows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PerplexityOptions {
    /// Tokens a window. Each is a batch of one sequence; its first token is not scored.
    pub window: usize,
    /// Most windows to score; `None` for the whole text.
    pub windows: Option<usize>,
    /// Type that keys and values are rounded to before attention reads them; f32 unless the effect of the cache's type is to be
    /// measured. The same whether a text comes at once or token by token.
    pub kv_cache: KvType,
}

/// The perplexity of a text.
#[derive(Debug, Clone, PartialEq)]
pub struct Perplexity {
    /// Mean negative log-likelihood of a scored token, in nats.
    pub mean_nll: f64,
    /// Scored tokens.
    pub tokens: usize,
    /// Tokens a window.
    pub window: usize,
    /// Mean negative log-likelihood in each window.
    pub windows: Vec<f64>,
}

impl Perplexity {
    /// `exp(mean_nll)`.
    pub fn perplexity(&self) -> f64 {
        self.mean_nll.exp()
    }
}

impl PerplexityOptions {
    /// Tokens a window and number of windows in a text of `tokens` tokens.
    ///
    /// # Errors
    /// [`Error::Input`] when there would be nothing to score.
    pub fn cut(&self, tokens: usize) -> Result<(usize, usize), Error> {
        let window = self.window.min(tokens);
        if window < 2 {
            return Err(Error::Input(format!(
                "a text of {tokens} tokens in windows of {}: at least 2 tokens are needed, the first is not scored",
                self.window
            )));
        }
        match (tokens / window).min(self.windows.unwrap_or(usize::MAX)) {
            0 => Err(Error::Input("0 windows asked for: at least 1 is needed".to_owned())),
            count => Ok((window, count)),
        }
    }
}

/// Some rows of logits of a text, and their targets.
pub(crate) struct LogitRows<'a> {
    /// Number of the window.
    pub(crate) window: usize,
    /// Whether they are the window's last.
    pub(crate) last: bool,
    /// `f32 [rows, vocabulary]`, row-major.
    pub(crate) logits: &'a [f32],
    /// Entries of the vocabulary.
    pub(crate) vocabulary: usize,
    /// The token after each row.
    pub(crate) targets: &'a [u32],
}

impl<B: Backend> Model<B> {
    /// Calls `visit` with all logits that predict a token of their window, in order, some rows at a time.
    ///
    /// # Errors
    /// As [`perplexity`](Self::perplexity), and what `visit` returns.
    pub(crate) fn visit_logits(
        &self,
        ids: &[u32],
        options: &PerplexityOptions,
        mut visit: impl FnMut(LogitRows<'_>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let (window, count) = options.cut(ids.len())?;
        let size = SessionOptions {
            kv_cache: options.kv_cache,
            max_logits: LOGIT_ROWS.min(window),
            ..SessionOptions::text(window)
        };
        let mut session = self.decoder().session(&size)?;
        let vocabulary = self.config().vocab_size;
        for (index, ids) in ids.chunks_exact(window).take(count).enumerate() {
            session.clear(0)?;
            session.forward(&[(0, ids)])?;
            // Row r predicts token r + 1; the last row has no target.
            for first in (0..window - 1).step_by(LOGIT_ROWS) {
                let rows = first..(window - 1).min(first + LOGIT_ROWS);
                let targets = &ids[rows.start + 1..=rows.end];
                let last = rows.end == window - 1;
                let logits = session.logits(&RowSelection::Range(rows))?;
                visit(LogitRows { window: index, last, logits, vocabulary, targets })?;
            }
        }
        Ok(())
    }

    /// Scores `ids`. A remainder shorter than a window is not scored; a text shorter than one window is one window.
    /// `progress(done, windows)` is called after each.
    ///
    /// # Errors
    /// [`Error::Input`] when there are fewer than two tokens, or the window is longer than the model's positions, or logits are
    /// no numbers.
    pub fn perplexity(
        &self,
        ids: &[u32],
        options: &PerplexityOptions,
        mut progress: impl FnMut(usize, usize),
    ) -> Result<Perplexity, Error> {
        let (window, count) = options.cut(ids.len())?;
        // Likelihoods are computed on the host, whatever the backend.
        let kernel = Kernel::select()?;
        let mut windows = vec![0.0; count];
        self.visit_logits(ids, options, |rows| {
            let losses: Vec<f64> = rows
                .logits
                .par_chunks_exact(rows.vocabulary)
                .zip(rows.targets)
                .map(|(logits, target)| negative_log_likelihood(kernel, logits, convert::index(*target)))
                .collect();
            if losses.iter().any(|loss| loss.is_nan()) {
                return Err(Sampler::not_a_number());
            }
            windows[rows.window] += losses.iter().sum::<f64>() / convert::f64_from(window - 1);
            if rows.last {
                progress(rows.window + 1, count);
            }
            Ok(())
        })?;
        let mean_nll = windows.iter().sum::<f64>() / convert::f64_from(windows.len());
        Ok(Perplexity { mean_nll, tokens: windows.len() * (window - 1), window, windows })
    }
}

/// `−ln softmax(logits)[target]`, summed in f64.
pub(crate) fn negative_log_likelihood(kernel: Kernel, logits: &[f32], target: usize) -> f64 {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum = float::exp_sum(kernel, logits, largest);
    f64::from(largest) + sum.ln() - f64::from(logits[target])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn likelihood_of_known_distributions() {
        let likelihood = |logits: &[f32], target| negative_log_likelihood(Kernel::best(), logits, target);
        assert!((likelihood(&[0.0; 4], 2) - 4.0_f64.ln()).abs() < 1e-12);
        assert!((likelihood(&[1000.0, 1000.0], 0) - 2.0_f64.ln()).abs() < 1e-6);
        assert!(likelihood(&[0.0, f32::NAN], 0).is_nan());
    }
}
