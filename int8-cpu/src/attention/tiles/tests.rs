//! Attention on tiles: the instruction against its definition, the path against the formula, and rows against themselves.

use half::bf16;
use int8_core::corpus::Random;
use int8_core::{Element, KvType};
use ndarray::Array2;

use super::*;
use crate::attention::{Bias, KvPages};
use crate::convert;
use crate::gemm::bf16::definition::{Definition, processor};
use crate::kernel::Kernel;

/// Runs a check with the definition, and with the processor's tiles.
macro_rules! with_tiles {
    ($check:ident) => {
        $check(Definition);
        if let Some(tiles) = processor() {
            $check(tiles);
        }
    };
}

#[test]
fn the_instruction_is_its_definition() {
    let Some(tiles) = processor() else { return };
    let mut random = Random::new(51);
    let mut state = 1_u32;
    let mut fragments = |count: usize, any_bits: bool| -> Vec<Fragment> {
        let mut fragment = || {
            Fragment(std::array::from_fn(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let bits = convert::low_half(state >> 16);
                // Subnormal numbers, infinities and NaN among them; else sums that must be rounded.
                if any_bits { bf16::from_bits(bits) } else { bf16::from_f32(random.normal()) }
            }))
        };
        (0..count).map(|_| fragment()).collect()
    };
    for any_bits in [false, true] {
        for steps in 0..6 {
            for rows in [1, 3, 15, 16, 17, 32] {
                let (x, w) = (fragments(steps, any_bits), fragments(steps, any_bits));
                for add in [false, true] {
                    let [mut found, mut expected] = [(); 2].map(|()| Tile([[0.75_f32; NR]; MAX_MR]));
                    // SAFETY: inside `scoped`.
                    tiles.scoped(|| unsafe { tiles.product(rows, &x, &w, add, &mut found) });
                    // SAFETY: as above.
                    Definition.scoped(|| unsafe { Definition.product(rows, &x, &w, add, &mut expected) });
                    let pairs = found.0.iter().zip(&expected.0).take(rows);
                    for (found, expected) in pairs.flat_map(|(found, expected)| found.iter().zip(expected)) {
                        assert!(
                            found.to_bits() == expected.to_bits() || (found.is_nan() && expected.is_nan()),
                            "rows {rows}, steps {steps}, add {add}: {found:e}, {expected:e}"
                        );
                    }
                }
            }
        }
    }
}

/// A sequence in a cache of bf16, and the queries to it.
struct Case {
    heads: usize,
    kv_heads: usize,
    size: usize,
    softcap: Option<f32>,
    slopes: Option<Vec<f32>>,
    distances: Option<Array2<f32>>,
    sinks: Option<Vec<f32>>,
    queries: Array2<f32>,
    keys: Array2<f32>,
    values: Array2<f32>,
    rows: Vec<Query>,
}

const SCALE: f32 = 0.2;

impl Case {
    fn new(random: &mut Random, [heads, kv_heads, size]: [usize; 3], rows: Vec<Query>) -> Self {
        let length = union(&rows).end;
        let queries = random.matrix(rows.len(), heads * size, 1.0);
        let [keys, values] = [(); 2].map(|()| random.matrix(length, kv_heads * size, 1.0));
        let (softcap, slopes, distances, sinks) = (None, None, None, None);
        Self { heads, kv_heads, size, softcap, slopes, distances, sinks, queries, keys, values, rows }
    }

    fn bias(&self) -> Bias<'_> {
        match (&self.slopes, &self.distances) {
            (Some(slopes), _) => Bias::Slopes(slopes),
            (_, Some(table)) => Bias::Distances(table.view()),
            _ => Bias::None,
        }
    }

    fn attention(&self) -> Attention<'_> {
        Attention {
            kernel: Kernel::best(),
            heads: self.heads,
            scale: SCALE,
            softcap: self.softcap,
            bias: self.bias(),
            sinks: self.sinks.as_deref(),
        }
    }

    /// The keys and values in pages that held NaN before, in any order.
    fn pages(&self) -> (KvPages, Vec<u32>) {
        let length = self.keys.nrows();
        let count = length.div_ceil(PAGE_POSITIONS);
        let mut pages = KvPages::new(KvType::Bf16, 1, self.kv_heads, self.size, count + 1).expect("memory");
        let table: Vec<u32> = (0..)
            .take(count)
            .map(|page: u32| page ^ 1)
            .map(|page| page.min(u32::try_from(count).expect("few")))
            .collect();
        (0..).take(count + 1).for_each(|page| pages.poison(page));
        pages.write(Kernel::best(), 0, &table, 0, self.keys.view(), self.values.view()).expect("it fits");
        (pages, table)
    }

    /// Attention of some of the queries.
    fn attend<T: Bf16Product>(&self, tiles: T, rows: Range<usize>) -> Array2<f32> {
        let (pages, table) = self.pages();
        self.attend_to(tiles, &pages, &table, rows)
    }

    fn attend_to<T: Bf16Product>(
        &self,
        tiles: T,
        pages: &KvPages,
        table: &[u32],
        rows: Range<usize>,
    ) -> Array2<f32> {
        let queries = self.queries.slice(s![rows.clone(), ..]);
        let mut out = Array2::from_elem(queries.raw_dim(), f32::NAN);
        let cache = pages.sequence(0, table);
        let panels = cache.panels(&union(&self.rows[rows.clone()]));
        attend(tiles, &self.attention(), queries, cache.dim(), &panels, &self.rows[rows], out.view_mut());
        out
    }

    /// By the formula in f64, with the keys and values that the cache holds; and how far the rounding of queries and weights may
    /// move it.
    ///
    /// With queries `q(1 + δ)`, `|δ| ≤ u = 2⁻⁸`, scores move by at most `ε = scale·Σ_d |q_d·k_d|·u`, the largest over the positions;
    /// a softcap moves them no further. Weights move by factors within `e^{±ε}·(1 ± u)`, of which their sum is made, too: the
    /// result moves by at most `Σ_p w_p·|v_p|·(e^{2ε}·(1 + u)/(1 − u) − 1)`. f32 adds at most (size + positions)·2⁻²⁴ in the same
    /// places, and to u powers of two add 2⁻¹⁸, as much as the rounding of their exponents, of at most 126.
    fn expected(&self) -> (Array2<f64>, Array2<f64>) {
        let kept = |value: f32| f64::from(bf16::from_f32(value).to_f32());
        let (u, size) = (bf16::UNIT_ROUNDOFF, self.size);
        let mut out = Array2::zeros(self.queries.raw_dim());
        let mut bounds = out.clone();
        for (m, Query { position, span }) in self.rows.iter().enumerate() {
            let f32_part = convert::count(size + span.len()) * f64::from(f32::EPSILON);
            for head in 0..self.heads {
                let kv = head / (self.heads / self.kv_heads) * size;
                let terms = |p: usize| {
                    (0..size).map(move |d| {
                        f64::from(SCALE)
                            * f64::from(self.queries[[m, head * size + d]])
                            * kept(self.keys[[p, kv + d]])
                    })
                };
                let score = |p: usize| {
                    let dot: f64 = terms(p).sum();
                    let capped =
                        self.softcap.map_or(dot, |cap| f64::from(cap) * (dot / f64::from(cap)).tanh());
                    let slope = self.slopes.as_ref().map_or(0.0, |slopes| f64::from(slopes[head]));
                    let distance = convert::count(p) - convert::count(*position);
                    let table = self.distances.as_ref().map_or(0.0, |table| {
                        let index = (p + table.ncols() / 2).saturating_sub(*position).min(table.ncols() - 1);
                        f64::from(table[[head, index]])
                    });
                    capped + slope * distance + table
                };
                let magnitude = |p: usize| terms(p).map(f64::abs).sum::<f64>();
                let epsilon = span.clone().map(magnitude).fold(0.0, f64::max) * (u + f32_part);
                let of_weights = u + 2.0_f64.powi(-17);
                let growth = (2.0 * epsilon).exp() * (1.0 + of_weights) / (1.0 - of_weights) - 1.0 + f32_part;
                let weights: Vec<f64> = span.clone().map(|p| score(p).exp()).collect();
                let sink = self.sinks.as_ref().map_or(0.0, |sinks| f64::from(sinks[head]).exp());
                let sum = weights.iter().sum::<f64>() + sink;
                for d in 0..size {
                    let of = |part: fn(f64) -> f64| {
                        let values = span.clone().map(|p| part(kept(self.values[[p, kv + d]])));
                        values.zip(&weights).map(|(value, weight)| value * weight).sum::<f64>() / sum
                    };
                    out[[m, head * size + d]] = of(|value| value);
                    bounds[[m, head * size + d]] = of(f64::abs) * growth;
                }
            }
        }
        (out, bounds)
    }
}

fn causal(first: usize, rows: usize, window: usize) -> Vec<Query> {
    let span = |last: usize| (last + 1).saturating_sub(window)..last + 1;
    (first..first + rows).map(|position| Query { position, span: span(position) }).collect()
}

fn full(rows: usize, length: usize) -> Vec<Query> {
    (0..rows).map(|position| Query { position, span: 0..length }).collect()
}

const ALL: usize = usize::MAX;

#[test]
fn attention_is_its_formula_up_to_the_rounding() {
    fn check<T: Bf16Product>(tiles: T) {
        let random = &mut Random::new(52);
        let mut cases = Vec::new();
        // Sizes beside multiples of a step, numbers of rows beside those of a tile and a task, partial pages, blocks of keys.
        for (shape, rows) in [
            ([2, 2, 32], causal(0, 40, ALL)),
            ([3, 1, 64], causal(0, 44, ALL)),
            ([2, 1, 80], causal(250, 15, ALL)),
            ([4, 2, 96], causal(60, 9, 33)),
            ([1, 1, 128], causal(0, 17, ALL)),
            ([4, 4, 5], causal(3, 33, 7)),
            ([13, 1, 1], causal(70, 3, ALL)),
            ([6, 2, 33], causal(600, 1, ALL)),
            ([6, 2, 20], causal(600, 1, 300)),
            ([2, 2, 16], full(140, 140)),
            ([1, 1, 8], causal(0, 300, 40)),
        ] {
            cases.push(Case::new(random, shape, rows));
        }
        let shape = [4, 2, 24];
        cases.push(Case { softcap: Some(0.7), ..Case::new(random, shape, causal(0, 30, ALL)) });
        let slopes = || Some(vec![0.5, 0.25, 0.125, 0.0625]);
        cases.push(Case { slopes: slopes(), ..Case::new(random, shape, causal(250, 30, ALL)) });
        cases.push(Case {
            slopes: slopes(),
            softcap: Some(2.0),
            ..Case::new(random, shape, causal(40, 1, 20))
        });
        let distances = Some(random.matrix(4, 21, 1.0));
        cases.push(Case { distances, ..Case::new(random, shape, full(50, 50)) });
        let sinks = Some(vec![0.5, -3.0, 9.0, f32::NEG_INFINITY]);
        cases.push(Case { sinks, ..Case::new(random, shape, causal(0, 35, 9)) });
        let mut largest = 0.0_f64;
        for case in &cases {
            let ((expected, bounds), found) = (case.expected(), case.attend(tiles, 0..case.rows.len()));
            for ((found, expected), bound) in found.iter().zip(&expected).zip(&bounds) {
                let error = (f64::from(*found) - expected).abs();
                assert!(error <= *bound, "{:?}: {found}, {expected}, bound {bound:e}", case.queries.dim());
                largest = largest.max(error / bound);
            }
        }
        // Roundings cancel out in part; a bound that is never near says nothing.
        assert!(largest > 0.1, "all errors are below {largest} of their bounds");
    }
    with_tiles!(check);
}

/// A row gives the same bits alone, in parts of any size, among all others and on any number of threads.
#[test]
fn rows_do_not_depend_on_others_or_on_threads() {
    fn check<T: Bf16Product>(tiles: T) {
        let random = &mut Random::new(53);
        for (shape, window) in [([6, 2, 40], ALL), ([2, 2, 64], 200), ([3, 1, 32], 1)] {
            let case = Case::new(random, shape, causal(0, 420, window));
            let on = |threads: usize, rows: Range<usize>| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
                pool.install(|| case.attend(tiles, rows))
            };
            let all = on(1, 0..420);
            assert_eq!(on(3, 0..420), all);
            for rows in [
                0..1,
                31..32,
                32..33,
                255..256,
                256..257,
                330..331,
                350..351,
                383..384,
                5..45,
                100..133,
                370..420,
            ] {
                assert_eq!(on(2, rows.clone()), all.slice(s![rows.clone(), ..]), "{shape:?} rows {rows:?}");
            }
        }
    }
    with_tiles!(check);
}

/// A row's result comes from its span alone: NaN, infinite and large keys and values that other rows of the call see do not reach it,
/// and change none of its bits.
#[test]
fn positions_outside_a_span_never_show() {
    fn check<T: Bf16Product>(tiles: T) {
        let random = &mut Random::new(54);
        let rows: Vec<Query> = (0..40)
            .map(|row| {
                // Causal, windows, and spans apart from each other.
                let first = [0, row, 37 * (row % 5)][row % 3];
                Query { position: 400, span: first..first + 1 + 11 * (row % 4) }
            })
            .collect();
        for rows in [rows, causal(0, 70, ALL), causal(250, 20, 30)] {
            let case = Case::new(random, [4, 2, 24], rows);
            let whole = case.attend(tiles, 0..case.rows.len());
            assert!(whole.iter().all(|value| value.is_finite()));
            for only in [0, 7, case.rows.len() - 1] {
                let span = case.rows[only].span.clone();
                for bad in [f32::NAN, f32::INFINITY, 1e38] {
                    let (mut pages, table) = case.pages();
                    let [mut keys, mut values] = [case.keys.clone(), case.values.clone()];
                    for position in (0..keys.nrows()).filter(|position| !span.contains(position)) {
                        keys.row_mut(position).fill(bad);
                        values.row_mut(position).fill(bad);
                    }
                    pages.write(Kernel::best(), 0, &table, 0, keys.view(), values.view()).expect("it fits");
                    let found = case.attend_to(tiles, &pages, &table, 0..case.rows.len());
                    assert_eq!(found.row(only), whole.row(only), "row {only}, {bad}");
                }
            }
        }
    }
    with_tiles!(check);
}

/// NaN in a span is not lost, nor are scores of −∞ alone taken for numbers; one that is not is.
#[test]
fn what_is_no_number_shows() {
    fn check<T: Bf16Product>(tiles: T) {
        let random = &mut Random::new(55);
        for at in [0, 10, 257, 299] {
            let mut case = Case::new(random, [2, 1, 8], causal(299, 1, ALL));
            case.keys[[at, 3]] = f32::NAN;
            assert!(case.attend(tiles, 0..1).iter().all(|value| value.is_nan()), "key {at}");
            let mut case = Case::new(random, [2, 1, 8], causal(299, 1, ALL));
            case.values[[at, 3]] = f32::NAN;
            let found = case.attend(tiles, 0..1);
            for (column, value) in found.iter().enumerate() {
                assert_eq!(value.is_nan(), column % 8 == 3, "value {at}");
            }
        }
        let case = Case::new(random, [1, 1, 8], causal(299, 1, ALL));
        let mut table = Array2::from_elem((1, 601), f32::NEG_INFINITY);
        let distances = |table: &Array2<f32>| Some(table.clone());
        let none = Case { distances: distances(&table), ..case };
        assert!(none.attend(tiles, 0..1).iter().all(|value| value.is_nan()));
        // The key at position 280, after a block of none.
        table[[0, 300 - 19]] = 0.0;
        let one = Case { distances: distances(&table), ..none };
        let kept = one.values.row(280).mapv(|value| bf16::from_f32(value).to_f32());
        for (found, kept) in one.attend(tiles, 0..1).iter().zip(&kept) {
            assert!((found - kept).abs() <= 1e-6 * kept.abs(), "{found}, {kept}");
        }
    }
    with_tiles!(check);
}
