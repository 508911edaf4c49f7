//! Timing in turns: contestants are called A B C A B C…, so that a machine that changes its speed changes it for all of them.

use std::time::{Duration, Instant};

use int8_cpu::{pool, probe};

use crate::convert::real;

/// How long and how carefully is timed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Effort {
    /// Rounds before the timed ones: threads, pages and clocks warm up.
    pub(crate) warm_up: usize,
    /// Timed rounds: at least so many, and not more than `most` or after `budget`.
    pub(crate) least: usize,
    /// Most timed rounds.
    pub(crate) most: usize,
    /// Time after which no round begins once there are enough.
    pub(crate) budget: Duration,
    /// Bytes of weights that rounds go through before one is read again, so that caches do not keep them.
    pub(crate) rotate_bytes: usize,
    /// The best round instead of the median: for a machine that has other work.
    pub(crate) best: bool,
    /// Count only rounds in which every thread [has a core to itself](probe::has_core) before and after, where that can be
    /// detected: for virtual machines that share cores. Rounds then go on for up to [`MAX_BUDGETS`] budgets until enough count.
    pub(crate) whole_cores: bool,
}

/// With [`Effort::whole_cores`], rounds go on for up to so many budgets until enough of them count.
const MAX_BUDGETS: u32 = 6;

impl Effort {
    /// For a record.
    pub(crate) const FULL: Self = Self {
        warm_up: 2,
        least: 20,
        most: 400,
        budget: Duration::from_millis(2500),
        rotate_bytes: 256 << 20,
        best: false,
        whole_cores: false,
    };
    /// For a first estimate.
    pub(crate) const QUICK: Self = Self {
        warm_up: 1,
        least: 5,
        most: 50,
        budget: Duration::from_millis(250),
        rotate_bytes: 64 << 20,
        best: false,
        whole_cores: false,
    };
    /// One round: a smoke test.
    #[allow(dead_code, reason = "the program has no smoke test; the tests and the bench `layer` do")]
    pub(crate) const ONCE: Self = Self {
        warm_up: 0,
        least: 1,
        most: 1,
        budget: Duration::ZERO,
        rotate_bytes: 0,
        best: false,
        whole_cores: false,
    };

    /// How many copies of a weight make up `rotate_bytes`: at most 64.
    pub(crate) fn copies(&self, bytes: usize) -> usize {
        self.rotate_bytes.div_ceil(bytes.max(1)).clamp(1, 64)
    }
}

/// The code to time; its argument is the number of the round, to rotate its operands.
pub(crate) type Contestant<'a> = Box<dyn FnMut(usize) + Send + 'a>;

/// The time of a contestant.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Timed {
    /// Seconds of the median round, or of the best; NaN if no round counts.
    pub(crate) seconds: f64,
    /// Rounds that count.
    pub(crate) rounds: usize,
    /// The share of the timed rounds that do: less than 1 only with [`Effort::whole_cores`].
    pub(crate) counted: f64,
}

impl Timed {
    fn new(rounds: &[Round], effort: &Effort) -> Self {
        let mut seconds: Vec<f64> =
            rounds.iter().filter(|round| round.counts).map(|round| round.seconds).collect();
        seconds.sort_by(f64::total_cmp);
        let place = if effort.best { 0 } else { seconds.len() / 2 };
        Self {
            seconds: seconds.get(place).copied().unwrap_or(f64::NAN),
            rounds: seconds.len(),
            counted: real(seconds.len()) / real(rounds.len().max(1)),
        }
    }
}

struct Round {
    seconds: f64,
    counts: bool,
}

/// The time of each contestant, called in turn on a thread of the current rayon pool.
///
/// Each begins with all threads of the pool [spinning](pool::spin_during), as a layer does within a forward of a model and as threads of
/// other libraries do, which spin between products: waking one takes up to 40 µs on a virtual machine, more than half of a
/// short product.
pub(crate) fn race(contestants: &mut [Contestant<'_>], effort: &Effort) -> Vec<Timed> {
    let mut rounds: Vec<Vec<Round>> = contestants.iter().map(|_| Vec::new()).collect();
    let start = Instant::now();
    in_pool(|| {
        for round in 0..effort.warm_up + effort.most {
            let elapsed = start.elapsed();
            let enough =
                |rounds: &Vec<Round>| rounds.iter().filter(|round| round.counts).count() >= effort.least;
            if round >= effort.warm_up + effort.least
                && elapsed > effort.budget
                && (rounds.iter().all(enough) || elapsed > effort.budget * MAX_BUDGETS)
            {
                break;
            }
            for (rounds, run) in rounds.iter_mut().zip(contestants.iter_mut()) {
                let timed = pool::spin_during(|| {
                    let whole_before = whole_cores(effort);
                    // Returns when every thread spins.
                    rayon::broadcast(|_| ());
                    let start = Instant::now();
                    run(round);
                    let seconds = start.elapsed().as_secs_f64();
                    Round { seconds, counts: whole_before && whole_cores(effort) }
                });
                if round >= effort.warm_up {
                    rounds.push(timed);
                }
            }
        }
    });
    rounds.iter().map(|rounds| Timed::new(rounds, effort)).collect()
}

/// Runs `operation` on a thread of the pool.
fn in_pool<R: Send>(operation: impl FnOnce() -> R + Send) -> R {
    if rayon::current_thread_index().is_some() { operation() } else { rayon::scope(|_| operation()) }
}

/// Whether every thread of the pool has a core to itself; true without [`Effort::whole_cores`].
fn whole_cores(effort: &Effort) -> bool {
    !effort.whole_cores
        || rayon::broadcast(|_| probe::has_core() != Some(false)).into_iter().all(|whole| whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn races_count_their_rounds() {
        let (mut first, mut second) = (0, 0);
        let effort = Effort { warm_up: 1, least: 3, most: 5, budget: Duration::ZERO, ..Effort::QUICK };
        let times = race(&mut [Box::new(|_| first += 1), Box::new(|_| second += 1)], &effort);
        assert_eq!((times.len(), first, second), (2, 4, 4));
        assert!(times.iter().all(|timed| timed.seconds >= 0.0 && timed.rounds == 3 && timed.counted >= 1.0));
        assert_eq!(Effort::FULL.copies(1), 64);
        assert_eq!(Effort::ONCE.copies(0), 1);
    }

    #[test]
    fn rounds_on_shared_cores_do_not_count() {
        let rounds = [(3.0, true), (1.0, false), (5.0, true), (2.0, false), (4.0, true)];
        let rounds = rounds.map(|(seconds, counts)| Round { seconds, counts });
        let (median, best) = (Effort::FULL, Effort { best: true, ..Effort::FULL });
        let of = |rounds: &[Round], effort: &Effort| {
            let timed = Timed::new(rounds, effort);
            (timed.seconds.to_string(), timed.rounds, timed.counted.to_string())
        };
        assert_eq!(of(&rounds, &median), ("4".into(), 3, "0.6".into()));
        assert_eq!(of(&rounds, &best), ("3".into(), 3, "0.6".into()));
        assert_eq!(of(&rounds[1..2], &median), ("NaN".into(), 0, "0".into()));
        // Whatever else this machine does, there are `least` rounds, and an end.
        let mut called = 0;
        let effort = Effort { whole_cores: true, budget: Duration::ZERO, ..Effort::QUICK };
        let timed = race(&mut [Box::new(|_| called += 1)], &effort)[0];
        assert!(called >= effort.warm_up + effort.least && timed.rounds <= called - effort.warm_up);
    }
}
