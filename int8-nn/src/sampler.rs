//! Choosing the next token from its logits.

use int8_core::corpus::Random;

use crate::Error;
use crate::constraint::TokenConstraint;
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
    constraint: Option<Box<dyn TokenConstraint>>,
    complete: bool,
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
        Ok(Self { sampling, random: Random::new(seed), ruled: None, constraint: None, complete: false })
    }

    /// Applies `rules` to the logits of every token behind `prompt`; prompt and continuation have `most` tokens at most.
    pub fn with_rules(self, rules: &LogitRules, prompt: &[u32], most: usize) -> Self {
        let ruled = Ruled { rules: rules.clone(), text: prompt.to_vec(), prompt: prompt.len(), most };
        Self { ruled: (!rules.is_empty()).then_some(ruled), ..self }
    }

    /// Restricts the tokens, after the rules.
    pub fn with_constraint(self, constraint: Option<Box<dyn TokenConstraint>>) -> Self {
        Self { constraint, ..self }
    }

    /// Whether the constraint says that the text is complete.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// Whether rules or a constraint change the logits: then tokens are chosen by [`next`](Self::next) alone, from logits on the host.
    pub fn has_rules(&self) -> bool {
        self.ruled.is_some() || self.constraint.is_some()
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
        if !self.has_rules() {
            return Ok(self.choose(logits));
        }
        let mut changed = logits.to_vec();
        if let Some(ruled) = &self.ruled {
            ruled.rules.apply(&mut changed, &ruled.text, ruled.prompt, ruled.most);
        }
        if let Some(constraint) = &mut self.constraint {
            constraint.restrict(&mut changed).map_err(Error::Constraint)?;
        }
        if changed[argmax(&changed)] == f32::NEG_INFINITY {
            return Err(Self::nothing_left(self.constraint.is_some()));
        }
        let id = self.choose(&changed);
        if let Some(ruled) = &mut self.ruled {
            ruled.text.push(id);
        }
        if let Some(constraint) = &mut self.constraint {
            self.complete = constraint.advance(id).map_err(Error::Constraint)?;
        }
        Ok(id)
    }

    /// A token of logits that hold no NaN.
    fn choose(&mut self, logits: &[f32]) -> u32 {
        match self.sampling {
            Sampling::Greedy => convert::token_id(argmax(logits)),
            Sampling::Random { temperature, top_k, top_p, .. } => {
                let cuts = Cuts { temperature, top_k, top_p, min_p: None };
                convert::token_id(draw(logits, cuts, self.uniform()))
            }
        }
    }

    /// The error for logits of which rules, and perhaps a constraint, have left none.
    pub(crate) fn nothing_left(constrained: bool) -> Error {
        let by = if constrained { "the form of the answer and the rules" } else { "the rules" };
        Error::Constraint(format!("{by} of generation exclude every token"))
    }

    /// The error for logits with NaN.
    pub(crate) fn not_a_number() -> Error {
        Error::Input(
            "the model's logits are not numbers (NaN); its weights or activations overflow".to_owned(),
        )
    }
}

/// What is left of a distribution before a token is drawn from it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cuts {
    /// Divides the logits.
    pub(crate) temperature: f32,
    /// Only the `k` most probable tokens.
    pub(crate) top_k: Option<usize>,
    /// Then only the most probable whose probabilities first add up to `p`.
    pub(crate) top_p: Option<f32>,
    /// Then only those with at least this multiple of the largest probability.
    pub(crate) min_p: Option<f32>,
}

/// Draws an index by `uniform` in [0, 1): the tokens are laid out by falling probability, equal ones by their ids. No logit is
/// NaN, and one is finite.
pub(crate) fn draw(logits: &[f32], cuts: Cuts, uniform: f64) -> usize {
    let mut order = Order::new(logits, cuts.top_k);
    let largest = f64::from(logits[argmax(logits)]);
    let weight = |id: usize| ((f64::from(logits[id]) - largest) / f64::from(cuts.temperature)).exp();
    let mut total: f64 = order.ids.iter().map(|id| weight(*id)).sum();
    let mut kept = order.ids.len();
    if cuts.top_p.is_some() || cuts.min_p.is_some() {
        let enough = cuts.top_p.map_or(f64::INFINITY, |top_p| f64::from(top_p) * total);
        let least = cuts.min_p.map_or(0.0, f64::from);
        let mut sum = 0.0;
        for at in 0..kept {
            let weight = weight(order.get(at));
            // The most probable one has weight 1 and stays.
            if weight < least {
                kept = at;
                break;
            }
            sum += weight;
            if sum >= enough {
                kept = at + 1;
                break;
            }
        }
        total = sum;
    }
    let mut target = uniform * total;
    let mut last = order.get(0);
    for at in 0..kept {
        let id = order.get(at);
        let weight = weight(id);
        // Excluded tokens are at the end.
        if weight == 0.0 {
            break;
        }
        target -= weight;
        last = id;
        if target < 0.0 {
            break;
        }
    }
    // Rounding can leave a target of almost 0 at the end.
    last
}

/// Indices of the `count` largest values, falling, equal ones ascending. No value is NaN.
pub(crate) fn largest(values: &[f32], count: usize) -> Vec<usize> {
    if count == 0 {
        return Vec::new();
    }
    let mut order = Order::new(values, Some(count));
    (0..count.min(values.len())).map(|at| order.get(at)).collect()
}

/// Token ids by falling logit, sorted as far as they were looked at: a draw rarely goes beyond the first hundred of a
/// vocabulary of 10⁵.
struct Order<'a> {
    logits: &'a [f32],
    ids: Vec<usize>,
    /// Ids at the front that are in order.
    sorted: usize,
}

impl<'a> Order<'a> {
    fn new(logits: &'a [f32], top_k: Option<usize>) -> Self {
        let mut order = Self { logits, ids: (0..logits.len()).collect(), sorted: 0 };
        if let Some(k) = top_k.filter(|k| *k < logits.len()) {
            order.sort_to(k);
            order.ids.truncate(k);
        }
        order
    }

    fn get(&mut self, at: usize) -> usize {
        if at >= self.sorted {
            self.sort_to((4 * self.sorted).max(256).min(self.ids.len()));
        }
        self.ids[at]
    }

    fn sort_to(&mut self, end: usize) {
        let logits = self.logits;
        // Equal logits in the order of their ids, so that the choice depends on the seed alone.
        let by_logit = |a: &usize, b: &usize| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b));
        let rest = &mut self.ids[self.sorted..];
        let more = end - self.sorted;
        if more < rest.len() {
            rest.select_nth_unstable_by(more - 1, by_logit);
        }
        rest[..more].sort_unstable_by(by_logit);
        self.sorted = end;
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
    fn min_p_cuts_by_the_largest_probability() {
        // Probabilities relative to the largest: 1, 1/2, 1/4, 1/8.
        let logits: Vec<f32> = [1.0, 2.0, 4.0, 8.0].map(|share: f32| -share.ln()).to_vec();
        let drawn = |top_p, min_p| -> Vec<usize> {
            let cuts = Cuts { temperature: 1.0, top_k: None, top_p, min_p };
            let mut ids: Vec<usize> =
                (0_u8..100).map(|at| draw(&logits, cuts, f64::from(at) / 100.0)).collect();
            ids.dedup();
            ids
        };
        assert_eq!(drawn(None, None), [0, 1, 2, 3]);
        assert_eq!(drawn(None, Some(0.2)), [0, 1, 2]);
        assert_eq!(drawn(None, Some(1.0)), [0]);
        assert_eq!(drawn(Some(0.6), Some(0.2)), [0, 1]);
    }

    #[test]
    fn excluded_tokens_are_not_drawn_whatever_is_rounded() {
        let logits = [f32::NEG_INFINITY, 0.3, f32::NEG_INFINITY, 0.1, -0.7];
        let cuts = Cuts { temperature: 0.9, top_k: None, top_p: None, min_p: None };
        for (uniform, id) in [(0.0, 1), (1.0, 4), (1.0 + 1e-9, 4)] {
            assert_eq!(draw(&logits, cuts, uniform), id, "{uniform}");
        }
    }

    #[test]
    fn a_vocabulary_is_sorted_as_far_as_needed() {
        let logits: Vec<f32> = (0_u32..5000)
            .map(|id| f32::from(u16::try_from(id * 7919 % 4001).expect("small")) / 400.0)
            .collect();
        let mut all: Vec<usize> = (0..logits.len()).collect();
        all.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b)));
        for top_k in [None, Some(1), Some(300), Some(5000), Some(9000)] {
            let mut order = Order::new(&logits, top_k);
            let kept = top_k.unwrap_or(5000).min(5000);
            let found: Vec<usize> = (0..kept).map(|at| order.get(at)).collect();
            assert_eq!(found, all[..kept], "{top_k:?}");
        }
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
