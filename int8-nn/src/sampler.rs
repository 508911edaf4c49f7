//! Choosing the next token from its logits.

use int8_core::corpus::Random;

use crate::Error;
use crate::convert;
use crate::generation::LogitRules;

/// How the next token is chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Sampling {
    /// The largest logit; the first one of equals.
    Greedy,
    /// At random, by the softmax of `logits/temperature` after the cuts.
    Random {
        /// Above 0; 1 leaves the model's distribution, less sharpens it.
        temperature: f32,
        /// Only the `k` most probable tokens.
        top_k: Option<usize>,
        /// Only the most probable tokens whose probabilities first add up to `p`.
        top_p: Option<f32>,
        /// The same seed gives the same text.
        seed: u64,
    },
}

/// A [`Sampling`] with its random state.
#[derive(Debug, Clone)]
pub struct Sampler {
    sampling: Sampling,
    random: Random,
    ruled: Option<Ruled>,
}

/// Rules about the logits, with the text they depend on.
#[derive(Debug, Clone)]
struct Ruled {
    rules: LogitRules,
    text: Vec<u32>,
    prompt: usize,
    most: usize,
}

impl Sampler {
    /// Checks the settings.
    ///
    /// # Errors
    /// [`Error::Input`] for a temperature that is not positive, a `top_k` of 0, or a `top_p` outside (0, 1].
    pub fn new(sampling: Sampling) -> Result<Self, Error> {
        let mut seed = 0;
        if let Sampling::Random { temperature, top_k, top_p, seed: given } = sampling {
            seed = given;
            if !(temperature > 0.0 && temperature.is_finite()) {
                return Err(Error::Input(format!(
                    "temperature {temperature}: expected a number above 0 (or greedy)"
                )));
            }
            if top_k == Some(0) {
                return Err(Error::Input("top-k 0: expected at least 1".to_owned()));
            }
            if let Some(top_p) = top_p
                && !(top_p > 0.0 && top_p <= 1.0)
            {
                return Err(Error::Input(format!("top-p {top_p}: expected a number above 0, at most 1")));
            }
        }
        Ok(Self { sampling, random: Random::new(seed), ruled: None })
    }

    /// Applies `rules` to the logits of every token behind `prompt`; prompt and continuation have `most` tokens at most.
    pub fn with_rules(self, rules: &LogitRules, prompt: &[u32], most: usize) -> Self {
        let ruled = Ruled { rules: rules.clone(), text: prompt.to_vec(), prompt: prompt.len(), most };
        Self { ruled: (!rules.is_empty()).then_some(ruled), ..self }
    }

    /// Whether rules change the logits: then tokens are chosen by [`next`](Self::next) alone, from logits on the host.
    pub fn has_rules(&self) -> bool {
        self.ruled.is_some()
    }

    /// The settings, for a backend that samples on its device.
    pub fn sampling(&self) -> &Sampling {
        &self.sampling
    }

    /// Draws the next number in [0, 1) that decides a token: one for each token that is not greedy, in this order on every
    /// backend.
    pub fn uniform(&mut self) -> f64 {
        convert::unit_interval(self.random.bits())
    }

    /// The next token.
    ///
    /// # Errors
    /// [`Error::Input`] when the logits hold NaN or are empty: the model's output is not to be trusted then.
    pub fn next(&mut self, logits: &[f32]) -> Result<u32, Error> {
        // Not `any`: what never ends early is vectorised.
        if logits.is_empty() || logits.iter().fold(false, |nan, logit| nan | logit.is_nan()) {
            return Err(Self::not_a_number());
        }
        if let Some(mut ruled) = self.ruled.take() {
            let mut changed = logits.to_vec();
            ruled.rules.apply(&mut changed, &ruled.text, ruled.prompt, ruled.most);
            let id = match changed.iter().all(|logit| *logit == f32::NEG_INFINITY) {
                true => Err(Error::Input("the rules of generation exclude every token".to_owned())),
                false => self.next(&changed),
            };
            ruled.text.extend(id.as_ref().ok());
            self.ruled = Some(ruled);
            return id;
        }
        match self.sampling {
            Sampling::Greedy => Ok(convert::token_id(argmax(logits))),
            Sampling::Random { temperature, top_k, top_p, .. } => {
                Ok(convert::token_id(self.draw(logits, temperature, top_k, top_p)))
            }
        }
    }

    /// The error for logits with NaN.
    pub(crate) fn not_a_number() -> Error {
        Error::Input(
            "the model's logits are not numbers (NaN); its weights or activations overflow".to_owned(),
        )
    }

    fn draw(&mut self, logits: &[f32], temperature: f32, top_k: Option<usize>, top_p: Option<f32>) -> usize {
        let mut order: Vec<usize> = (0..logits.len()).collect();
        // Equal logits in the order of their ids, so that the choice depends on the seed alone.
        let by_logit = |a: &usize, b: &usize| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b));
        if let Some(k) = top_k.filter(|k| *k < order.len()) {
            order.select_nth_unstable_by(k - 1, by_logit);
            order.truncate(k);
        }
        order.sort_unstable_by(by_logit);
        let largest = f64::from(logits[order[0]]);
        let weight = |id: &usize| ((f64::from(logits[*id]) - largest) / f64::from(temperature)).exp();
        let mut weights: Vec<f64> = order.iter().map(weight).collect();
        let mut total: f64 = weights.iter().sum();
        if let Some(top_p) = top_p {
            let enough = f64::from(top_p) * total;
            let sums = weights.iter().scan(0.0, |sum, weight| {
                *sum += weight;
                Some(*sum)
            });
            let kept = sums.take_while(|sum| *sum < enough).count() + 1;
            weights.truncate(kept);
            total = weights.iter().sum();
        }
        let mut target = self.uniform() * total;
        let chosen = weights.iter().position(|weight| {
            target -= weight;
            target < 0.0
        });
        // Rounding can leave a target of almost 0 at the end.
        order[chosen.unwrap_or(weights.len() - 1)]
    }
}

/// Index of the largest value, the first one of equals. No value is NaN.
pub(crate) fn argmax(values: &[f32]) -> usize {
    // The largest of each of 16 lanes, which the compiler turns into vectors, and then where it is.
    let (vectors, rest) = values.as_chunks::<16>();
    let mut lanes = [f32::NEG_INFINITY; 16];
    for vector in vectors {
        for (largest, value) in lanes.iter_mut().zip(vector) {
            *largest = if *value > *largest { *value } else { *largest };
        }
    }
    let largest = lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |a, b| a.max(*b));
    values.iter().position(|value| *value == largest).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random(temperature: f32, top_k: Option<usize>, top_p: Option<f32>, seed: u64) -> Sampling {
        Sampling::Random { temperature, top_k, top_p, seed }
    }

    fn draws(sampling: Sampling, logits: &[f32], count: usize) -> Vec<u32> {
        let mut sampler = Sampler::new(sampling).expect("valid settings");
        (0..count).map(|_| sampler.next(logits).expect("finite logits")).collect()
    }

    #[test]
    fn greedy_takes_the_first_of_the_largest() {
        assert_eq!(draws(Sampling::Greedy, &[0.0, 3.0, 3.0, -1.0], 2), [1, 1]);
        for length in [1, 15, 16, 17, 40] {
            for largest in 0..length {
                let mut logits = vec![-f32::INFINITY; length];
                logits[largest..].fill(-2.0);
                assert_eq!(argmax(&logits), largest);
            }
        }
        assert_eq!(argmax(&[f32::NEG_INFINITY; 20]), 0);
    }

    #[test]
    fn frequencies_follow_the_softmax() {
        let logits = [0.0, 1.0, 2.0];
        let drawn = draws(random(1.0, None, None, 1), &logits, 20_000);
        let total: f64 = logits.iter().map(|logit| f64::from(*logit).exp()).sum();
        for (id, logit) in (0_u32..).zip(logits) {
            let share = convert::f64_from(drawn.iter().filter(|drawn| **drawn == id).count()) / 20_000.0;
            let expected = f64::from(logit).exp() / total;
            assert!((share - expected).abs() < 0.015, "token {id}: {share} instead of {expected}");
        }
    }

    #[test]
    fn cuts_leave_the_most_probable() {
        let logits = [0.0, 5.0, 4.0, -3.0, 5.0];
        assert!(draws(random(10.0, Some(2), None, 3), &logits, 200).iter().all(|id| [1, 4].contains(id)));
        assert!(draws(random(1.0, None, Some(0.01), 3), &logits, 50).iter().all(|id| *id == 1));
        assert!(draws(random(1.0, None, Some(0.8), 3), &logits, 200).iter().all(|id| [1, 4].contains(id)));
        assert_eq!(draws(random(1.0, Some(1), None, 9), &logits, 3), [1, 1, 1]);
    }

    #[test]
    fn the_seed_decides() {
        let logits: Vec<f32> = (0_u8..50).map(|id| f32::from(id) / 25.0).collect();
        let sampling = |seed| random(1.0, None, None, seed);
        assert_eq!(draws(sampling(5), &logits, 40), draws(sampling(5), &logits, 40));
        assert_ne!(draws(sampling(5), &logits, 40), draws(sampling(6), &logits, 40));
    }

    #[test]
    fn bad_settings_and_logits_are_refused() {
        for sampling in [
            random(0.0, None, None, 0),
            random(f32::NAN, None, None, 0),
            random(1.0, Some(0), None, 0),
            random(1.0, None, Some(0.0), 0),
            random(1.0, None, Some(1.5), 0),
        ] {
            assert!(Sampler::new(sampling).is_err(), "{sampling:?}");
        }
        let mut greedy = Sampler::new(Sampling::Greedy).expect("valid");
        assert!(greedy.next(&[1.0, f32::NAN]).is_err());
        assert!(greedy.next(&[]).is_err());
    }
}
