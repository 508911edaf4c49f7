//! How the tokens of a request are chosen.

use std::collections::HashMap;

use crate::constraint::TokenConstraint;
use crate::generation::LogitRules;
use crate::sampler::{Cuts, Sampler, Sampling, argmax, draw, largest};
use crate::{Error, convert};

/// How the tokens of a request are chosen from logits `l`. In this order:
/// 1. `rules`, as [`LogitRules::apply`] has them;
/// 2. `presence_penalty` p and `frequency_penalty` f, of tokens that stand c times in the answer: `l − p − f·c`;
/// 3. `logit_bias` b: `l + b`;
/// 4. the [constraint](super::Request::constraint) of the request;
/// 5. temperature, then the cuts `top_k`, `top_p`, `min_p`, and a draw.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingParams {
    /// Divides the logits; 0: always the most probable token, the first one of equals.
    pub temperature: f32,
    /// Only the `k` most probable tokens.
    pub top_k: Option<usize>,
    /// Only the most probable tokens whose probabilities first add up to `p`.
    pub top_p: Option<f32>,
    /// Only tokens with at least this multiple of the largest probability.
    pub min_p: Option<f32>,
    /// The same seed gives the same tokens.
    pub seed: u64,
    /// Penalties and exclusions as transformers has them; a model's own are those of its
    /// [`GenerationConfig`](crate::GenerationConfig).
    pub rules: LogitRules,
    /// 0 for none.
    pub presence_penalty: f32,
    /// 0 for none.
    pub frequency_penalty: f32,
    /// Added to the logits of these tokens.
    pub logit_bias: Vec<(u32, f32)>,
    /// Report the logarithm of each token's probability, and those of this many of the most probable tokens: of the model's
    /// own distribution, before penalties, bias, temperature and cuts.
    pub logprobs: Option<usize>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: None,
            top_p: None,
            min_p: None,
            seed: 0,
            rules: LogitRules::default(),
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            logprobs: None,
        }
    }
}

/// Logarithms of probabilities at the place of one token.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprobs {
    /// That of the token.
    pub logprob: f32,
    /// The most probable tokens, falling.
    pub top: Vec<(u32, f32)>,
}

/// [`SamplingParams`] with the state of a request.
#[derive(Debug)]
pub(super) struct TokenSampler {
    params: SamplingParams,
    sampler: Sampler,
    /// How often a token stands in the answer.
    counts: HashMap<u32, u16>,
    constraint: Option<Box<dyn TokenConstraint>>,
    complete: bool,
}

/// The text that a token is chosen for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place<'a> {
    /// Prompt and answer.
    pub(super) text: &'a [u32],
    /// Tokens of the prompt.
    pub(super) prompt: usize,
    /// Most tokens of prompt and answer.
    pub(super) most: usize,
}

impl TokenSampler {
    /// Checks the settings for a model of `vocabulary` tokens.
    ///
    /// # Errors
    /// [`Error::Input`] with the setting and its range.
    pub(super) fn new(params: &SamplingParams, vocabulary: usize) -> Result<Self, Error> {
        let problem = |problem: String| Err(Error::Input(problem));
        let SamplingParams { temperature, top_k, top_p, seed, .. } = *params;
        let sampling = if temperature == 0.0 {
            Sampling::Greedy
        } else {
            Sampling::Random { temperature, top_k, top_p, seed }
        };
        let sampler = Sampler::new(sampling)?;
        if let Some(min_p) = params.min_p
            && !(0.0..=1.0).contains(&min_p)
        {
            return problem(format!("min-p {min_p}: expected a number from 0 to 1"));
        }
        let penalty = params.rules.repetition_penalty;
        if !(penalty > 0.0 && penalty.is_finite()) {
            return problem(format!("repetition penalty {penalty}: expected a number above 0"));
        }
        for (name, penalty) in
            [("presence", params.presence_penalty), ("frequency", params.frequency_penalty)]
        {
            if !penalty.is_finite() {
                return problem(format!("{name} penalty {penalty}: expected a number"));
            }
        }
        for (id, bias) in &params.logit_bias {
            if convert::index(*id) >= vocabulary || !bias.is_finite() {
                return problem(format!(
                    "logit bias {bias} of token {id}: expected numbers for tokens of the vocabulary of {vocabulary}"
                ));
            }
        }
        Ok(Self {
            params: params.clone(),
            sampler,
            counts: HashMap::new(),
            constraint: None,
            complete: false,
        })
    }

    /// Restricts the tokens.
    pub(super) fn constrain(&mut self, constraint: Option<Box<dyn TokenConstraint>>) {
        self.constraint = constraint;
    }

    /// Whether the constraint lets nothing follow.
    pub(super) fn is_complete(&self) -> bool {
        self.complete
    }

    /// The sampler that chooses the next token without this module, if the settings have nothing that a backend lacks.
    pub(super) fn of_backend(&mut self) -> Option<&mut Sampler> {
        let params = &self.params;
        let plain = params.min_p.is_none() && params.logprobs.is_none() && !self.adjusts();
        plain.then_some(&mut self.sampler)
    }

    fn adjusts(&self) -> bool {
        let params = &self.params;
        self.constraint.is_some()
            || !params.rules.is_empty()
            || params.presence_penalty != 0.0
            || params.frequency_penalty != 0.0
            || !params.logit_bias.is_empty()
    }

    /// The next token of logits `[vocabulary]`.
    ///
    /// # Errors
    /// [`Error::Input`] when the logits hold NaN or infinity, or no token is left.
    pub(super) fn next(
        &mut self,
        logits: &[f32],
        place: Place<'_>,
    ) -> Result<(u32, Option<TokenLogprobs>), Error> {
        if logits.iter().fold(false, |bad, logit| bad | logit.is_nan())
            || logits[argmax(logits)].is_infinite()
        {
            return Err(Sampler::not_a_number());
        }
        let adjusted;
        let chosen_from = if self.adjusts() {
            adjusted = self.adjusted(logits, place)?;
            &adjusted
        } else {
            logits
        };
        let id = match *self.sampler.sampling() {
            Sampling::Greedy => argmax(chosen_from),
            Sampling::Random { temperature, top_k, top_p, .. } => {
                let cuts = Cuts { temperature, top_k, top_p, min_p: self.params.min_p };
                draw(chosen_from, cuts, self.sampler.uniform())
            }
        };
        let logprobs = self.params.logprobs.map(|top| logprobs(logits, id, top));
        let id = convert::token_id(id);
        let count = self.counts.entry(id).or_default();
        *count = count.saturating_add(1);
        if let Some(constraint) = &mut self.constraint {
            self.complete = constraint.advance(id).map_err(Error::Constraint)?;
        }
        Ok((id, logprobs))
    }

    fn adjusted(&mut self, logits: &[f32], place: Place<'_>) -> Result<Vec<f32>, Error> {
        let params = &self.params;
        let mut adjusted = logits.to_vec();
        params.rules.apply(&mut adjusted, place.text, place.prompt, place.most);
        for (id, count) in &self.counts {
            adjusted[convert::index(*id)] -=
                params.presence_penalty + params.frequency_penalty * f32::from(*count);
        }
        for (id, bias) in &params.logit_bias {
            adjusted[convert::index(*id)] += bias;
        }
        if let Some(constraint) = &mut self.constraint {
            constraint.restrict(&mut adjusted).map_err(Error::Constraint)?;
        }
        if adjusted[argmax(&adjusted)] == f32::NEG_INFINITY {
            return Err(Sampler::nothing_left(self.constraint.is_some()));
        }
        Ok(adjusted)
    }
}

/// `l − ln Σ exp(l)` of a token and of the `top` most probable ones. The logits are finite or −∞.
fn logprobs(logits: &[f32], id: usize, top: usize) -> TokenLogprobs {
    let most = f64::from(logits[argmax(logits)]);
    let sum: f64 = logits.iter().map(|logit| (f64::from(*logit) - most).exp()).sum();
    let of = |id: usize| convert::f32_from(f64::from(logits[id]) - most - sum.ln());
    let top = largest(logits, top).into_iter().map(|id| (convert::token_id(id), of(id))).collect();
    TokenLogprobs { logprob: of(id), top }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampler(params: SamplingParams) -> TokenSampler {
        TokenSampler::new(&params, 4).expect("valid settings")
    }

    fn place(text: &[u32]) -> Place<'_> {
        Place { text, prompt: 1, most: 100 }
    }

    fn next(sampler: &mut TokenSampler, logits: &[f32]) -> Result<(u32, Option<TokenLogprobs>), Error> {
        sampler.next(logits, place(&[0]))
    }

    #[test]
    fn penalties_and_bias_in_their_order() {
        let params = SamplingParams {
            rules: LogitRules { repetition_penalty: 2.0, ..LogitRules::default() },
            presence_penalty: 0.25,
            frequency_penalty: 0.5,
            logit_bias: vec![(3, 10.0)],
            ..SamplingParams::default()
        };
        let mut sampler = sampler(params);
        sampler.counts.insert(1, 2);
        sampler.counts.insert(2, 1);
        let adjusted =
            sampler.adjusted(&[3.0, -1.0, 4.0, 1.0], place(&[0, 1, 2, 1])).expect("a token is left");
        assert_eq!(adjusted, [1.5, -2.0 - 1.25, 2.0 - 0.75, 11.0]);
        assert!(sampler.of_backend().is_none());
        assert_eq!(next(&mut sampler, &[3.0, -1.0, 4.0, 1.0]).expect("a token").0, 3);
        assert_eq!(sampler.counts[&3], 1);
    }

    #[test]
    fn logprobs_are_those_of_the_softmax() {
        let params =
            SamplingParams { logprobs: Some(2), logit_bias: vec![(0, 50.0)], ..SamplingParams::default() };
        let logits = [0.0, 1.0, 3.0, 2.0_f32];
        let sum: f32 = logits.iter().map(|logit| logit.exp()).sum();
        let (id, found) = next(&mut sampler(params), &logits).expect("a token");
        let found = found.expect("asked for");
        assert_eq!((id, found.top.iter().map(|(id, _)| *id).collect::<Vec<_>>()), (0, vec![2, 3]));
        let close = |found: f32, logit: f32| (found - (logit - sum.ln())).abs() < 1e-6;
        assert!(
            close(found.logprob, 0.0) && close(found.top[0].1, 3.0) && close(found.top[1].1, 2.0),
            "{found:?}"
        );
    }

    #[test]
    fn a_plain_request_is_sampled_by_the_backend_and_gives_the_same_here() {
        let params =
            SamplingParams { temperature: 0.8, top_k: Some(3), seed: 7, ..SamplingParams::default() };
        let (mut here, mut there) = (sampler(params.clone()), sampler(params));
        let logits = [0.3, 0.1, 0.5, 0.4];
        for _ in 0..50 {
            let id = there.of_backend().expect("nothing special").next(&logits).expect("a token");
            assert_eq!(next(&mut here, &logits).expect("a token").0, id);
        }
    }

    #[test]
    fn bad_settings_and_logits_are_refused() {
        let default = SamplingParams::default();
        for params in [
            SamplingParams { temperature: -1.0, ..default.clone() },
            SamplingParams { min_p: Some(1.5), ..default.clone() },
            SamplingParams { min_p: Some(f32::NAN), ..default.clone() },
            SamplingParams {
                rules: LogitRules { repetition_penalty: 0.0, ..LogitRules::default() },
                ..default.clone()
            },
            SamplingParams { presence_penalty: f32::INFINITY, ..default.clone() },
            SamplingParams { logit_bias: vec![(4, 1.0)], ..default.clone() },
            SamplingParams { logit_bias: vec![(0, f32::NAN)], ..default.clone() },
        ] {
            assert!(TokenSampler::new(&params, 4).is_err(), "{params:?}");
        }
        let mut greedy = sampler(default);
        assert!(next(&mut greedy, &[0.0, f32::NAN, 0.0, 0.0]).is_err());
        assert!(next(&mut greedy, &[0.0, f32::INFINITY, 0.0, 0.0]).is_err());
    }
}
