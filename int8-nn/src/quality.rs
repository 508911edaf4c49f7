//! The cost of quantisation against the float model: loss of likelihood with its standard error, KL divergence, top-1
//! agreement, accuracy on last words, and the error of each layer alone.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use half::f16;
use int8_cpu::Kernel;
use ndarray::{ArrayView2, ArrayViewMut2};
use rayon::prelude::*;
use serde::Serialize;

use crate::backend::{Backend, Observer, RowSelection};
use crate::model::Model;
use crate::perplexity::{LogitRows, Perplexity, PerplexityOptions, negative_log_likelihood};
use crate::precision::{LinearRole, Site};
use crate::sampler::argmax;
use crate::session::SessionOptions;
use crate::{Error, SpecialTokens, convert};

/// The float model's predictions of a text.
#[derive(Debug)]
pub struct Baseline {
    /// Its perplexity.
    pub perplexity: Perplexity,
    /// Mean probability of the most probable token.
    pub top1_probability: f64,
    /// `ln p` `[positions, vocabulary]`, of the first positions, as many as the byte limit allows.
    log_probabilities: Vec<f16>,
    vocabulary: usize,
}

/// A model compared to a [`Baseline`] over the same text.
#[derive(Debug, Clone, Serialize)]
pub struct Comparison {
    /// Its perplexity.
    pub perplexity: f64,
    /// `perplexity / baseline − 1`.
    pub loss: f64,
    /// Standard error of `loss`, from the paired differences of the windows; `None` for a single window.
    pub loss_error: Option<f64>,
    /// Mean `Σ p·ln(p/q)`, in nats a token: p of the baseline, q of this model.
    pub kl_divergence: f64,
    /// Share of positions whose most probable token is the same.
    pub top1_agreement: f64,
    /// Mean probability of the most probable token.
    pub top1_probability: f64,
    /// Positions of `kl_divergence` and `top1_agreement`.
    pub positions_compared: usize,
    /// Mean negative log-likelihood in each window, in nats.
    pub window_nll: Vec<f64>,
}

impl<B: Backend> Model<B> {
    /// Scores `ids` and keeps the predicted distributions of the first positions, 2 bytes an entry, `max_bytes` at most.
    /// `progress(done, windows)` is called after each window.
    ///
    /// # Errors
    /// As [`Model::perplexity`].
    pub fn baseline(
        &self,
        ids: &[u32],
        options: &PerplexityOptions,
        max_bytes: usize,
        progress: impl FnMut(usize, usize),
    ) -> Result<Baseline, Error> {
        let vocabulary = self.config().vocab_size;
        let most = max_bytes / (vocabulary * size_of::<f16>()) * vocabulary;
        let mut kept: Vec<f16> = Vec::new();
        let mut tally = Tally::new(options, ids.len())?;
        tally.run(self, ids, options, progress, |rows, sums| {
            let room = (most - kept.len()).min(rows.logits.len());
            let first = kept.len();
            kept.resize(first + room, f16::ZERO);
            kept[first..]
                .par_chunks_exact_mut(vocabulary)
                .zip(rows.logits.par_chunks_exact(vocabulary))
                .zip(sums)
                .for_each(|((kept, logits), sum)| {
                    for (kept, logit) in kept.iter_mut().zip(logits) {
                        *kept = f16::from_f32(logit - sum.log_total);
                    }
                });
        })?;
        Ok(Baseline {
            top1_probability: tally.top1_probability(),
            perplexity: tally.perplexity(),
            log_probabilities: kept,
            vocabulary,
        })
    }

    /// Scores `ids` and compares with `baseline`, made of the same `ids` and `options`.
    ///
    /// # Errors
    /// As [`Model::perplexity`], and [`Error::Input`] when the baseline has another vocabulary or number of windows.
    pub fn compare(
        &self,
        ids: &[u32],
        options: &PerplexityOptions,
        baseline: &Baseline,
        progress: impl FnMut(usize, usize),
    ) -> Result<Comparison, Error> {
        let vocabulary = self.config().vocab_size;
        let mut tally = Tally::new(options, ids.len())?;
        if vocabulary != baseline.vocabulary || tally.windows.len() != baseline.perplexity.windows.len() {
            return Err(Error::Input(format!(
                "a comparison of {} windows with a vocabulary of {vocabulary} to {} windows with {}",
                tally.windows.len(),
                baseline.perplexity.windows.len(),
                baseline.vocabulary
            )));
        }
        let (mut seen, mut divergence, mut agreeing) = (0, 0.0, 0_usize);
        tally.run(self, ids, options, progress, |rows, sums| {
            let kept = &baseline.log_probabilities[seen * vocabulary..];
            let compared: Vec<(f64, bool)> = kept
                .par_chunks_exact(vocabulary)
                .zip(rows.logits.par_chunks_exact(vocabulary))
                .zip(sums)
                .map(|((kept, logits), sum)| {
                    let (mut divergence, mut best, mut most) = (0.0_f64, 0, f16::NEG_INFINITY);
                    for (token, (p, logit)) in kept.iter().zip(logits).enumerate() {
                        let log_p = p.to_f32();
                        divergence += f64::from(log_p.exp() * (log_p - (logit - sum.log_total)));
                        if *p > most {
                            (best, most) = (token, *p);
                        }
                    }
                    // Ties of rounded probabilities agree.
                    (divergence, best == sum.best || kept[sum.best] == most)
                })
                .collect();
            seen += compared.len();
            for (nats, agrees) in compared {
                divergence += nats;
                agreeing += usize::from(agrees);
            }
        })?;
        let perplexity = tally.perplexity();
        let (difference, error) = paired(&perplexity.windows, &baseline.perplexity.windows);
        let compared = convert::f64_from(seen.max(1));
        Ok(Comparison {
            perplexity: perplexity.perplexity(),
            loss: difference.exp_m1(),
            loss_error: error.map(|error| error * difference.exp()),
            kl_divergence: divergence / compared,
            top1_agreement: convert::f64_from(agreeing) / compared,
            top1_probability: tally.top1_probability(),
            positions_compared: seen,
            window_nll: perplexity.windows,
        })
    }
}

/// Mean of the differences `a − b`, and its standard error where there are at least two.
fn paired(a: &[f64], b: &[f64]) -> (f64, Option<f64>) {
    let count = convert::f64_from(a.len());
    let differences = || a.iter().zip(b).map(|(a, b)| a - b);
    let mean = differences().sum::<f64>() / count;
    let squares: f64 = differences().map(|d| (d - mean).powi(2)).sum();
    (mean, (a.len() > 1).then(|| (squares / (count - 1.0) / count).sqrt()))
}

/// The predicted distribution of one position, and its target's likelihood.
struct RowSum {
    /// `ln Σ exp(logit)`.
    log_total: f32,
    /// The most probable token.
    best: usize,
    /// Its probability.
    probability: f64,
    nll: f64,
}

impl RowSum {
    fn new(kernel: Kernel, logits: &[f32], target: u32) -> Self {
        let best = argmax(logits);
        let target = convert::index(target);
        let nll = negative_log_likelihood(kernel, logits, target);
        let log_total = nll + f64::from(logits[target]);
        let probability = (f64::from(logits[best]) - log_total).exp();
        Self { log_total: convert::f32_from(log_total), best, probability, nll }
    }
}

/// Sums over the windows of a text.
struct Tally {
    window: usize,
    windows: Vec<f64>,
    probability: f64,
}

impl Tally {
    fn new(options: &PerplexityOptions, tokens: usize) -> Result<Self, Error> {
        let (window, count) = options.cut(tokens)?;
        Ok(Self { window, windows: vec![0.0; count], probability: 0.0 })
    }

    fn run<B: Backend>(
        &mut self,
        model: &Model<B>,
        ids: &[u32],
        options: &PerplexityOptions,
        mut progress: impl FnMut(usize, usize),
        mut visit: impl FnMut(&LogitRows<'_>, &[RowSum]),
    ) -> Result<(), Error> {
        let all = self.windows.len();
        let kernel = Kernel::select()?;
        model.visit_logits(ids, options, |rows| {
            let sums: Vec<RowSum> = rows
                .logits
                .par_chunks_exact(rows.vocabulary)
                .zip(rows.targets)
                .map(|(logits, target)| RowSum::new(kernel, logits, *target))
                .collect();
            for sum in &sums {
                self.windows[rows.window] += sum.nll / convert::f64_from(self.window - 1);
                self.probability += sum.probability;
            }
            visit(&rows, &sums);
            if rows.last {
                progress(rows.window + 1, all);
            }
            Ok(())
        })
    }

    fn perplexity(&self) -> Perplexity {
        let mean_nll = self.windows.iter().sum::<f64>() / convert::f64_from(self.windows.len());
        let tokens = self.windows.len() * (self.window - 1);
        Perplexity { mean_nll, tokens, window: self.window, windows: self.windows.clone() }
    }

    fn top1_probability(&self) -> f64 {
        self.probability / convert::f64_from(self.windows.len() * (self.window - 1))
    }
}

/// Accuracy on last words.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct LastWords {
    /// Passages whose last word was predicted: each of its tokens was the most probable.
    pub correct: usize,
    /// Passages.
    pub passages: usize,
    /// `exp` of the mean negative log-likelihood of a last word.
    pub perplexity: f64,
}

impl<B: Backend> Model<B> {
    /// Predicts the last word of each passage from all before it (LAMBADA; Paperno et al., 2016). A passage longer than the
    /// model's positions is cut at its beginning. `progress(done, passages)` is called after each.
    ///
    /// # Errors
    /// [`Error::Input`] without passages, or for one of fewer than two words.
    pub fn last_words(
        &self,
        passages: &[String],
        mut progress: impl FnMut(usize, usize),
    ) -> Result<LastWords, Error> {
        let tokenizer = self.tokenizer()?;
        let vocabulary = self.config().vocab_size;
        let kernel = Kernel::select()?;
        let (mut correct, mut nll) = (0, 0.0);
        for (index, passage) in passages.iter().enumerate() {
            let passage = passage.trim_end();
            let Some((context, _)) = passage.rsplit_once(char::is_whitespace) else {
                return Err(Error::Input(format!("passage {}: fewer than two words", index + 1)));
            };
            let ids = tokenizer.encode(passage, SpecialTokens::Omit)?;
            let context =
                tokenizer.encode(context.trim_end(), SpecialTokens::Omit)?.len().clamp(1, ids.len() - 1);
            let cut = ids.len().saturating_sub(self.config().max_positions);
            let (ids, context) = (&ids[cut..], context.saturating_sub(cut).max(1));
            let mut session = self.decoder().session(&SessionOptions::text(ids.len()))?;
            session.forward(&[(0, ids)])?;
            let logits = session.logits(&RowSelection::Range(context - 1..ids.len() - 1))?;
            let mut all = true;
            for (logits, target) in logits.chunks_exact(vocabulary).zip(&ids[context..]) {
                let sum = RowSum::new(kernel, logits, *target);
                all &= sum.best == convert::index(*target);
                nll += sum.nll;
            }
            correct += usize::from(all);
            progress(index + 1, passages.len());
        }
        if passages.is_empty() {
            return Err(Error::Input("no passages".to_owned()));
        }
        let perplexity = (nll / convert::f64_from(passages.len())).exp();
        Ok(LastWords { correct, passages: passages.len(), perplexity })
    }
}

/// The error of one int8 layer on the float model's input.
#[derive(Debug, Clone, Serialize)]
pub struct LayerError {
    /// Name of the layer in the checkpoint.
    pub name: String,
    /// Number of its block.
    pub block: usize,
    /// Its role.
    pub role: LinearRole,
    /// `‖y − ŷ‖ / ‖y‖` over all tokens.
    pub relative_error: f64,
    /// `20·log₁₀(‖y‖ / ‖y − ŷ‖)`, in dB.
    pub sqnr_db: f64,
}

/// The error of each layer of `quantized` over one window of text, in the order of the model.
///
/// # Errors
/// As a forward of `float` on `ids`.
pub fn layer_errors<B: Backend + 'static>(
    float: &Arc<Model<B>>,
    quantized: &Arc<Model<B>>,
    ids: &[u32],
) -> Result<Vec<LayerError>, Error> {
    let backend = float.decoder().backend();
    let linears = float.decoder().linears();
    let layers: Vec<(String, usize, LinearRole)> =
        linears.map(|(block, role, linear)| (backend.linear_name(linear).to_owned(), block, role)).collect();
    let observer = Arc::new(ErrorObserver {
        float: Arc::clone(float),
        quantized: Arc::clone(quantized),
        index: layers.iter().enumerate().map(|(index, (name, _, _))| (name.clone(), index)).collect(),
        norms: Mutex::new(Ok(vec![(0.0, 0.0); layers.len()])),
    });
    let mut session =
        float.decoder().session(&SessionOptions { max_logits: 0, ..SessionOptions::text(ids.len()) })?;
    let shared: Arc<dyn Observer> = observer.clone();
    float.decoder().observe(Some(&shared));
    let done = session.forward(&[(0, ids)]);
    float.decoder().observe(None);
    done?;
    let mut norms = observer.norms.lock().unwrap_or_else(PoisonError::into_inner);
    let norms = std::mem::replace(&mut *norms, Ok(Vec::new()))?;
    // Without a signal there is no error: an expert that was not chosen, or one that is not observed.
    let errors = layers.into_iter().zip(norms).filter(|(_, (_, signal))| *signal > 0.0);
    Ok(errors
        .map(|((name, block, role), (error, signal))| LayerError {
            name,
            block,
            role,
            relative_error: (error / signal).sqrt(),
            sqnr_db: 10.0 * (signal / error).log10(),
        })
        .collect())
}

struct ErrorObserver<B: Backend> {
    float: Arc<Model<B>>,
    quantized: Arc<Model<B>>,
    index: HashMap<String, usize>,
    /// `‖y − ŷ‖²` and `‖y‖²` of each layer, or the first error.
    norms: Mutex<Result<Vec<(f64, f64)>, Error>>,
}

impl<B: Backend> std::fmt::Debug for ErrorObserver<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ErrorObserver of {} layers", self.index.len())
    }
}

impl<B: Backend> ErrorObserver<B> {
    fn errors(&self, index: usize, name: &str, x: ArrayView2<'_, f32>) -> Result<(f64, f64), Error> {
        let product = |model: &Model<B>| {
            let Some((block, _, layer)) = model.decoder().linears().nth(index) else {
                return Err(Error::Input(format!("{name}: the quantised model has no such layer")));
            };
            model.decoder().multiply(block, layer, x)
        };
        let (exact, found) = (product(&self.float)?, product(&self.quantized)?);
        let squares = |value: f32| f64::from(value) * f64::from(value);
        Ok(exact.iter().zip(&found).fold((0.0, 0.0), |(error, signal), (exact, found)| {
            (error + squares(exact - found), signal + squares(*exact))
        }))
    }
}

impl<B: Backend> Observer for ErrorObserver<B> {
    fn input(&self, _: &Site, name: &str, input: ArrayViewMut2<'_, f32>) {
        let Some(&index) = self.index.get(name) else { return };
        let found = self.errors(index, name, input.view());
        let mut norms = self.norms.lock().unwrap_or_else(PoisonError::into_inner);
        match (&mut *norms, found) {
            (Ok(norms), Ok((error, signal))) => {
                norms[index].0 += error;
                norms[index].1 += signal;
            }
            (Ok(_), Err(error)) => *norms = Err(error),
            (Err(_), _) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paired_differences_cancel_what_windows_have_in_common() {
        let (mean, error) = paired(&[3.1, 1.1, 2.1], &[3.0, 1.0, 2.0]);
        assert!((mean - 0.1).abs() < 1e-12 && error.is_some_and(|error| error < 1e-9));
        let (mean, error) = paired(&[1.0, 3.0], &[1.0, 1.0]);
        assert!((mean - 1.0).abs() < 1e-12 && error.is_some_and(|error| (error - 1.0).abs() < 1e-12));
        assert_eq!(paired(&[1.0], &[0.5]), (0.5, None));
    }

    #[test]
    fn row_sum_of_a_known_distribution() {
        let sum = RowSum::new(Kernel::best(), &[0.0, 3.0_f32.ln()], 0);
        assert_eq!(sum.best, 1);
        assert!((sum.probability - 0.75).abs() < 1e-6 && (sum.nll - 4.0_f64.ln()).abs() < 1e-6);
    }
}
