//! Timing the integer product and the complete layer: contestants take turns in one run, A B C A B C…, so that a machine
//! that changes its speed changes it for all of them. `int8 bench` and `cargo bench` are made of this.

use std::hint::black_box;
use std::time::{Duration, Instant};

use half::bf16;
use int8_core::corpus::Random;
use int8_core::quantize::group_count;
use int8_core::{Config, Element, Encoding, Granularity, Scheme};
use ndarray::{Array1, Array2, ArrayViewMut2};

use crate::kernel::Kernel;
use crate::{
    ArenaSlice, Error, OutlierWeights, PackedWeight, Store, convert, float, int8_product_into, linear, pool,
    probe,
};

/// How long and how carefully is timed.
#[derive(Debug, Clone, Copy)]
pub struct Effort {
    /// Rounds before the timed ones: threads, pages and clocks warm up.
    pub warm_up: usize,
    /// Timed rounds: at least so many, and not more than `most` or after `budget`.
    pub least: usize,
    /// Most timed rounds.
    pub most: usize,
    /// Time after which no round begins once there are enough.
    pub budget: Duration,
    /// Bytes of weights that rounds go through before one is read again, so that caches do not keep them.
    pub rotate_bytes: usize,
    /// The best round instead of the median: for a machine that has other work.
    pub best: bool,
    /// Only rounds in which every thread [has a core to itself](probe::has_core) before and after, where that can be told; for
    /// virtual machines whose cores do other work, too. There are more rounds then, for up to six times the budget, until enough count.
    pub whole_cores: bool,
}

/// How many budgets of time rounds on whole cores are waited for.
const PATIENCE: u32 = 6;

impl Effort {
    /// For a record.
    pub const FULL: Self = Self {
        warm_up: 2,
        least: 20,
        most: 400,
        budget: Duration::from_millis(2500),
        rotate_bytes: 256 << 20,
        best: false,
        whole_cores: false,
    };
    /// For an impression.
    pub const QUICK: Self = Self {
        warm_up: 1,
        least: 5,
        most: 50,
        budget: Duration::from_millis(250),
        rotate_bytes: 64 << 20,
        best: false,
        whole_cores: false,
    };
    /// One round, to see that it runs.
    pub const ONCE: Self = Self {
        warm_up: 0,
        least: 1,
        most: 1,
        budget: Duration::ZERO,
        rotate_bytes: 0,
        best: false,
        whole_cores: false,
    };

    /// How many copies of a weight make up `rotate_bytes`: at most 64.
    pub fn copies(&self, bytes: usize) -> usize {
        self.rotate_bytes.div_ceil(bytes.max(1)).clamp(1, 64)
    }
}

/// What is timed; it is handed the number of the round, to rotate its operands.
pub type Contestant<'a> = Box<dyn FnMut(usize) + Send + 'a>;

/// What a contestant took.
#[derive(Debug, Clone, Copy)]
pub struct Timed {
    /// Seconds of the median round, or of the best; NaN if no round counts.
    pub seconds: f64,
    /// Rounds that count.
    pub rounds: usize,
    /// The share of the timed rounds that do: less than 1 only with [`Effort::whole_cores`].
    pub counted: f64,
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
            counted: convert::count(seconds.len()) / convert::count(rounds.len().max(1)),
        }
    }
}

struct Round {
    seconds: f64,
    counts: bool,
}

/// The time of each contestant, called in turn on a thread of the current rayon pool.
///
/// Each begins with all threads of the pool [awake](pool::spin_during), as a layer does within a step of a model, and as the threads of
/// other libraries wait for their next product: waking one up takes up to 40 µs on a virtual machine, more than half of a short
/// product.
pub fn race(contestants: &mut [Contestant<'_>], effort: &Effort) -> Vec<Timed> {
    let mut rounds: Vec<Vec<Round>> = contestants.iter().map(|_| Vec::new()).collect();
    let start = Instant::now();
    pool::enter(true, || {
        for round in 0..effort.warm_up + effort.most {
            let elapsed = start.elapsed();
            let enough =
                |rounds: &Vec<Round>| rounds.iter().filter(|round| round.counts).count() >= effort.least;
            if round >= effort.warm_up + effort.least
                && elapsed > effort.budget
                && (rounds.iter().all(enough) || elapsed > effort.budget * PATIENCE)
            {
                break;
            }
            for (rounds, run) in rounds.iter_mut().zip(contestants.iter_mut()) {
                let timed = pool::spin_during(|| {
                    let whole_before = whole_cores(effort);
                    // Over when every thread has begun to look for work.
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

/// Whether every thread of the pool has a core to itself; nobody is asked where that does not matter.
fn whole_cores(effort: &Effort) -> bool {
    !effort.whole_cores
        || rayon::broadcast(|_| probe::has_core() != Some(false)).into_iter().all(|whole| whole)
}

/// What the machine can do, probed.
#[derive(Debug, Clone, Copy)]
pub struct Machine {
    /// The kernel whose instruction was probed.
    pub kernel: Kernel,
    /// Threads of the pool.
    pub threads: usize,
    /// Multiply-adds per second of all threads at best, where the kernel has one instruction that can be probed. A machine with other
    /// work, or a virtual one, may not reach it later: see [`Times::peak`].
    pub peak: Option<f64>,
    /// Bytes per second that all threads read together.
    pub bandwidth: f64,
}

impl Machine {
    /// Takes a second or two.
    pub fn probe(kernel: Kernel) -> Self {
        let threads = rayon::current_num_threads();
        let peak = probe::peak_per_thread(kernel).map(|peak| peak * convert::count(threads));
        Self { kernel, threads, peak, bandwidth: probe::read_bandwidth() }
    }
}

/// `y [rows, outputs] = x [rows, inner] · Wᵀ`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// M.
    pub rows: usize,
    /// N.
    pub outputs: usize,
    /// K.
    pub inner: usize,
}

impl Shape {
    /// Multiply-adds.
    pub fn work(&self) -> f64 {
        convert::count(self.rows) * self.weight_bytes()
    }

    /// Bytes of the int8 weight.
    pub fn weight_bytes(&self) -> f64 {
        convert::count(self.outputs) * convert::count(self.inner)
    }
}

/// Seconds of one call each.
#[derive(Debug, Clone)]
pub struct Times {
    /// The rounds that count, of the contestant with the fewest, and the share of all that do: see [`Timed`].
    pub rounds: usize,
    /// See `rounds`.
    pub counted: f64,
    /// Multiply-adds per second of all threads with the kernel's instruction on registers alone ([`probe::dot_products`]), in turns
    /// with the others: what the processors could do in the same rounds.
    pub peak: Option<f64>,
    /// The integer product: i8 in, i32 out.
    pub raw: f64,
    /// The complete layer, bf16 in and out.
    pub layer: f64,
    /// f32 in and out, bf16 weights: [`float::product`].
    pub bf16: f64,
    /// f32 in and out, f32 weights.
    pub f32: f64,
    /// The contestants that were handed in.
    pub others: Vec<f64>,
}

/// The operands of one shape.
#[derive(Debug)]
pub struct Problem {
    /// The shape.
    pub shape: Shape,
    /// Codes of x, i8 `[rows, inner]`.
    pub a: Array2<i8>,
    /// Codes of W, i8 `[outputs, inner]`.
    pub w: Array2<i8>,
    /// x with outlier columns, bf16 `[rows, inner]`.
    pub x: Array2<bf16>,
}

impl Problem {
    /// Random operands, with so many outlier columns.
    pub fn new(shape: Shape, outlier_columns: usize) -> Self {
        let mut random = Random::new(1);
        let w = codes(&mut random, shape.outputs, shape.inner);
        let a = codes(&mut random, shape.rows, shape.inner);
        let x = activations(&mut random, shape.rows, shape.inner, outlier_columns);
        Self { shape, a, w, x }
    }

    /// Copies of the packed weight for rounds to go through, with the constants that `config` asks for.
    ///
    /// # Errors
    /// As [`PackedWeight::from_codes`].
    pub fn weights(
        &self,
        kernel: Kernel,
        config: &Config,
        effort: &Effort,
    ) -> Result<Vec<PackedWeight>, Error> {
        let in_groups = config.weight_granularity == Granularity::Group;
        let groups = if in_groups { group_count(self.shape.inner) } else { 1 };
        let scales = Array1::from_elem(self.shape.outputs * groups, 0.5);
        let zero_point = if config.weight_encoding == Encoding::Zeropoint { 3 } else { 0 };
        let zero_points = Array1::from_elem(scales.len(), zero_point);
        (0..effort.copies(self.w.len()))
            .map(|_| PackedWeight::from_codes(kernel, self.w.view(), scales.view(), Some(zero_points.view())))
            .collect()
    }

    /// Product and layer with the paper's settings, the same in 16 and 32 bit, and whoever else is to be timed in the
    /// same run.
    ///
    /// # Errors
    /// When the shape is one that no layer has.
    ///
    /// # Panics
    /// If the timed product is wrong.
    pub fn measure(
        &self,
        kernel: Kernel,
        effort: &Effort,
        others: Vec<Contestant<'_>>,
    ) -> Result<Times, Error> {
        // Multiply-adds: 40 µs of AMX, 400 µs of VNNI.
        const LEAST_WORK: usize = 1 << 27;
        let Shape { rows, outputs, inner } = self.shape;
        let config = Scheme::LlmInt8Absmax.config();
        let weights = self.weights(kernel, &config, effort)?;
        // As many bytes of each type.
        let share = |times: usize| weights.len().div_ceil(times);
        let halves: Vec<Array2<bf16>> =
            (0..share(2)).map(|_| self.w.mapv(|code| bf16::from_f32(f32::from(code)))).collect();
        let singles: Vec<Array2<f32>> = (0..share(4)).map(|_| self.w.mapv(f32::from)).collect();
        let x = self.x.mapv(bf16::to_f32);
        // All results begin on a cache line: where `malloc` puts a matrix makes a difference of a tenth, and is luck.
        let (mut raw, mut y) =
            (ArenaSlice::zeroed(rows * outputs), ArenaSlice::<bf16>::zeroed(rows * outputs));
        let (mut y_half, mut y_single) =
            (ArenaSlice::zeroed(rows * outputs), ArenaSlice::zeroed(rows * outputs));
        let mut raw = matrix(&mut raw, self.shape);
        let (mut y, mut y_half) = (matrix(&mut y, self.shape), matrix(&mut y_half, self.shape));
        let mut y_single = matrix(&mut y_single, self.shape);
        // Once outside the timing, for the errors.
        int8_product_into(self.a.view(), &weights[0], raw.view_mut())?;
        // Another copy than the product had just before, which is still in the cache if that is large.
        let mut layer = |i: usize| {
            let i = i + weights.len() / 2;
            let (weight, outliers) = (&weights[i % weights.len()], OutlierWeights::Dequantized);
            linear(self.x.view(), weight, outliers, None, &config, Store::Overwrite, y.view_mut())
        };
        layer(0)?;
        // As much as the product, but enough that handing it out is a small part.
        let share = (rows * outputs * inner / rayon::current_num_threads()).max(LEAST_WORK);
        let mut work = None;
        let mut contestants: Vec<Contestant<'_>> = vec![
            Box::new(|_| {
                work = rayon::broadcast(|_| probe::dot_products(kernel, share)).into_iter().sum();
            }),
            Box::new(|i| {
                let _ = int8_product_into(self.a.view(), &weights[i % weights.len()], raw.view_mut());
            }),
            Box::new(|i| {
                let _ = layer(i);
            }),
            Box::new(|i| {
                let w = halves[i % halves.len()].view();
                let _ = float::product(kernel, x.view(), w, None, Store::Overwrite, y_half.view_mut());
            }),
            Box::new(|i| {
                let w = singles[i % singles.len()].view();
                let _ = float::product(kernel, x.view(), w, None, Store::Overwrite, y_single.view_mut());
            }),
        ];
        contestants.extend(others);
        let times = race(&mut contestants, effort);
        drop(contestants);
        black_box((&y, &y_half, &y_single));
        if let (Some(found), Some(a), Some(w)) =
            (raw.first(), self.a.rows().into_iter().next(), self.w.rows().into_iter().next())
        {
            let expected: i32 = a.iter().zip(w).map(|(a, w)| i32::from(*a) * i32::from(*w)).sum();
            assert_eq!(*found, expected, "the timed product is wrong");
        }
        let rounds = times.iter().map(|timed| timed.rounds).min().unwrap_or(0);
        let counted = times.iter().map(|timed| timed.counted).sum::<f64>() / convert::count(times.len());
        let seconds: Vec<f64> = times.iter().map(|timed| timed.seconds).collect();
        let [peak, raw, layer, bf16, f32, ref others @ ..] = seconds[..] else {
            unreachable!("as many times as contestants")
        };
        let peak = work.map(|work: usize| convert::count(work) / peak);
        Ok(Times { rounds, counted, peak, raw, layer, bf16, f32, others: others.to_vec() })
    }
}

/// Time of the layer over time of the raw product, at each of these shares of outlier columns.
///
/// # Errors
/// When the shape is one that no layer has.
pub fn outlier_costs(
    kernel: Kernel,
    shape: Shape,
    config: &Config,
    per_mille: &[usize],
    effort: &Effort,
) -> Result<Vec<f64>, Error> {
    let problem = Problem::new(shape, 0);
    let weights = problem.weights(kernel, config, effort)?;
    let (weights, (rows, outputs)) = (&weights, (shape.rows, shape.outputs));
    let mut raw = ArenaSlice::zeroed(rows * outputs);
    let mut raw = matrix(&mut raw, shape);
    int8_product_into(problem.a.view(), &weights[0], raw.view_mut())?;
    let mut contestants: Vec<Contestant<'_>> = vec![Box::new(|i| {
        let _ = int8_product_into(problem.a.view(), &weights[i % weights.len()], raw.view_mut());
    })];
    let mut random = Random::new(2);
    for (place, share) in (1..).zip(per_mille) {
        // Each in its turn reads a copy that no other has read just before.
        let ahead = place * weights.len() / (per_mille.len() + 1);
        let columns = (share * shape.inner + 500) / 1000;
        let x = activations::<bf16>(&mut random, rows, shape.inner, columns);
        let mut y = ArenaSlice::<bf16>::zeroed(rows * outputs);
        contestants.push(Box::new(move |i| {
            let i = i + ahead;
            let (weight, outliers) = (&weights[i % weights.len()], OutlierWeights::Dequantized);
            let y = matrix(&mut y, shape);
            let _ = linear(x.view(), weight, outliers, None, config, Store::Overwrite, y);
        }));
    }
    let times = race(&mut contestants, effort);
    Ok(times[1..].iter().map(|timed| timed.seconds / times[0].seconds).collect())
}

/// The results of one shape.
fn matrix<T>(values: &mut [T], shape: Shape) -> ArrayViewMut2<'_, T> {
    ArrayViewMut2::from_shape((shape.rows, shape.outputs), values).expect("as many values as results")
}

/// Random codes in [−127, 127]: all bit patterns but −128.
pub fn codes(random: &mut Random, rows: usize, columns: usize) -> Array2<i8> {
    Array2::from_shape_simple_fn((rows, columns), || random.bits().to_le_bytes()[0].cast_signed().max(-127))
}

/// Roughly normal activations with so many one-sided outlier columns. A table is repeated: values, not quality, matter
/// here.
pub fn activations<T: Element>(
    random: &mut Random,
    rows: usize,
    columns: usize,
    outliers: usize,
) -> Array2<T> {
    let table: Vec<f32> = (0..4093).map(|_| random.normal()).collect();
    let mut at = 0;
    let mut x = Array2::from_shape_simple_fn((rows, columns), || {
        at = (at + 1) % table.len();
        T::from_f32(table[at])
    });
    for o in 0..outliers {
        x.column_mut(o * columns / outliers + columns / outliers / 2).fill(T::from_f32(-9.5));
    }
    x
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
        // Whatever else this machine does: as many rounds as are asked for, and an end.
        let mut called = 0;
        let effort = Effort { whole_cores: true, budget: Duration::ZERO, ..Effort::QUICK };
        let timed = race(&mut [Box::new(|_| called += 1)], &effort)[0];
        assert!(called >= effort.warm_up + effort.least && timed.rounds <= called - effort.warm_up);
    }

    #[test]
    fn every_kernel_can_be_measured() {
        let shape = Shape { rows: 3, outputs: 40, inner: 70 };
        for kernel in Kernel::available() {
            let mut called = 0;
            let others: Vec<Contestant<'_>> = vec![Box::new(|_| called += 1)];
            let times = Problem::new(shape, 2).measure(kernel, &Effort::ONCE, others).expect("a shape");
            assert!([times.raw, times.layer, times.bf16, times.f32].iter().all(|time| *time > 0.0));
            assert_eq!((times.others.len(), called), (1, 1));
            assert_eq!(times.peak.is_some(), probe::peak_per_thread(kernel).is_some());
            assert!(times.peak.is_none_or(|peak| peak > 1e6));
            let config = Scheme::LlmInt8Absmax.config();
            let costs = outlier_costs(kernel, shape, &config, &[0, 200], &Effort::ONCE).expect("a shape");
            assert_eq!(costs.len(), 2);
        }
    }
}
