//! Attention against its formula.

use half::{bf16, f16};
use int8_core::corpus::Random;
use int8_core::{Element, FloatType};
use ndarray::Array2;

use super::*;
use crate::attention::KvPages;
use crate::convert;
use crate::kernel::Kernel;

/// One sequence in a cache of one layer, the positions in order in its pages.
struct Sequence {
    pages: KvPages,
    table: Vec<u32>,
}

impl Sequence {
    fn new(element: KvType, kv_heads: usize, size: usize, positions: usize) -> Self {
        let count = positions.div_ceil(PAGE_POSITIONS);
        let table: Vec<u32> = (0..).take(count).collect();
        Self { pages: KvPages::new(element, 1, kv_heads, size, count).expect("memory"), table }
    }

    fn write(&mut self, position: usize, keys: ArrayView2<'_, f32>, values: ArrayView2<'_, f32>) {
        self.pages.write(Kernel::best(), 0, &self.table, position, keys, values).expect("it fits");
    }

    fn view(&self) -> KvSequence<'_> {
        self.pages.sequence(0, &self.table)
    }
}

/// What a case adds to its scores.
enum Added {
    Nothing,
    Slopes(Vec<f32>),
    Distances(Array2<f32>),
}

struct Case {
    heads: usize,
    kv_heads: usize,
    size: usize,
    softcap: Option<f32>,
    added: Added,
    rows: Vec<Query>,
}

impl Case {
    fn new((heads, kv_heads, size): (usize, usize, usize), added: Added, rows: Vec<Query>) -> Self {
        Self { heads, kv_heads, size, softcap: None, added, rows }
    }

    fn bias(&self) -> Bias<'_> {
        match &self.added {
            Added::Nothing => Bias::None,
            Added::Slopes(slopes) => Bias::Slopes(slopes),
            Added::Distances(table) => Bias::Distances(table.view()),
        }
    }

    /// By the formula, in f64.
    fn expected(&self, scale: f32, q: &Array2<f32>, k: &Array2<f32>, v: &Array2<f32>) -> Array2<f64> {
        let size = self.size;
        let mut out = Array2::zeros(q.raw_dim());
        for (m, Query { position, span }) in self.rows.iter().enumerate() {
            for head in 0..self.heads {
                let kv = head / (self.heads / self.kv_heads) * size;
                let score = |p: usize| {
                    let dot: f64 = (0..size)
                        .map(|d| f64::from(q[[m, head * size + d]]) * f64::from(k[[p, kv + d]]))
                        .sum();
                    let scaled = f64::from(scale) * dot;
                    let capped =
                        self.softcap.map_or(scaled, |cap| f64::from(cap) * (scaled / f64::from(cap)).tanh());
                    capped
                        + match &self.added {
                            Added::Nothing => 0.0,
                            Added::Slopes(slopes) => -f64::from(slopes[head]) * convert::count(position - p),
                            Added::Distances(table) => {
                                let reach = table.ncols() / 2;
                                let index = (p + reach).max(*position) - position;
                                f64::from(table[[head, index.min(2 * reach)]])
                            }
                        }
                };
                let weights: Vec<f64> = span.clone().map(|p| score(p).exp()).collect();
                let sum: f64 = weights.iter().sum();
                for d in 0..size {
                    let products =
                        span.clone().zip(&weights).map(|(p, weight)| weight * f64::from(v[[p, kv + d]]));
                    out[[m, head * size + d]] = products.sum::<f64>() / sum;
                }
            }
        }
        out
    }
}

#[test]
fn attention_is_its_formula() {
    let mut random = Random::new(21);
    let causal = |first: usize, rows: usize, window: usize| -> Vec<Query> {
        let span = |last: usize| (last + 1).saturating_sub(window)..last + 1;
        (first..first + rows).map(|position| Query { position, span: span(position) }).collect()
    };
    let full = |rows: usize, length: usize| -> Vec<Query> {
        (0..rows).map(|position| Query { position, span: 0..length }).collect()
    };
    let all = usize::MAX;
    let slopes = || Added::Slopes(vec![0.5, 0.25, 0.125, 0.0625]);
    let cases = [
        Case::new((4, 4, 8), Added::Nothing, causal(0, 70, all)),
        Case::new((4, 2, 33), Added::Nothing, causal(5, 50, 7)),
        Case::new((4, 1, 64), slopes(), causal(40, 49, all)),
        Case::new((4, 2, 80), slopes(), causal(90, 1, all)),
        Case::new((6, 2, 5), Added::Nothing, causal(0, 1, all)),
        Case::new((2, 2, 16), Added::Nothing, full(60, 60)),
        Case::new((6, 2, 16), Added::Nothing, causal(63, 1, 40)),
        Case::new((2, 2, 16), Added::Distances(random.matrix(2, 21, 1.0)), full(50, 50)),
        Case::new((2, 1, 16), Added::Distances(random.matrix(2, 21, 1.0)), causal(33, 1, all)),
        Case { softcap: Some(0.7), ..Case::new((2, 2, 16), Added::Nothing, causal(0, 30, all)) },
        Case { softcap: Some(0.7), ..Case::new((4, 2, 16), slopes(), causal(9, 30, all)) },
    ];
    for case in &cases {
        let length = case.rows.iter().map(|row| row.span.end).max().expect("rows");
        let q = random.matrix(case.rows.len(), case.heads * case.size, 1.0);
        let k = random.matrix(length, case.kv_heads * case.size, 1.0);
        let v = random.matrix(length, case.kv_heads * case.size, 1.0);
        let scale = 1.0 / convert::real(case.size).sqrt();
        let mut cache = Sequence::new(KvType::F32, case.kv_heads, case.size, length + 3);
        // In two parts, at a place that is no panel's edge.
        let cut = length / 3;
        for part in [0..cut, cut..length] {
            let (k, v) = (k.slice(s![part.clone(), ..]), v.slice(s![part.clone(), ..]));
            cache.write(part.start, k, v);
        }
        let expected = case.expected(scale, &q, &k, &v);
        for kernel in Kernel::available() {
            let attention = Attention {
                kernel,
                heads: case.heads,
                scale,
                softcap: case.softcap,
                bias: case.bias(),
                sinks: None,
            };
            let mut out = Array2::from_elem(q.raw_dim(), f32::NAN);
            attention.attend(q.view(), &cache.view(), &case.rows, out.view_mut()).expect("valid operands");
            for (found, expected) in out.iter().zip(&expected) {
                let error = (f64::from(*found) - expected).abs();
                assert!(error < 2e-6, "{kernel} size {}: {found}, {expected}", case.size);
            }
        }
    }
}

#[test]
fn a_nan_is_not_lost() {
    let ones = Array2::<f32>::ones((20, 4));
    for at in [0, 10, 19] {
        for kernel in Kernel::available() {
            let mut keys = ones.clone();
            keys[[at, 1]] = f32::NAN;
            let mut cache = Sequence::new(KvType::F32, 1, 4, 20);
            cache.write(0, keys.view(), ones.view());
            for softcap in [None, Some(3.0)] {
                let attention =
                    Attention { kernel, heads: 1, scale: 0.5, softcap, bias: Bias::None, sinks: None };
                let mut out = Array2::zeros((1, 4));
                let row = Query { position: 19, span: 0..20 };
                let queries = ones.slice(s![..1, ..]);
                attention.attend(queries, &cache.view(), &[row], out.view_mut()).expect("valid operands");
                assert!(out.iter().all(|value| value.is_nan()), "{kernel} {at}: {out}");
            }
        }
    }
}

#[test]
fn operands_that_do_not_fit_are_refused() {
    let mut cache = Sequence::new(KvType::F32, 2, 4, 10);
    assert_eq!(cache.view().capacity(), PAGE_POSITIONS);
    let zeros = |rows: usize, columns: usize| Array2::<f32>::zeros((rows, columns));
    let mut write = |position, keys: (usize, usize), values: (usize, usize)| {
        let (keys, values) = (zeros(keys.0, keys.1), zeros(values.0, values.1));
        cache.pages.write(Kernel::best(), 0, &cache.table, position, keys.view(), values.view())
    };
    assert!(write(PAGE_POSITIONS - 3, (3, 8), (3, 8)).is_ok());
    assert!(write(PAGE_POSITIONS - 2, (3, 8), (3, 8)).is_err());
    assert!(write(usize::MAX, (1, 8), (1, 8)).is_err());
    assert!(write(0, (3, 8), (2, 8)).is_err());
    assert!(write(0, (3, 7), (3, 8)).is_err());
    let attend = |heads: usize, bias: Bias<'_>, columns: usize, span: Range<usize>, out: (usize, usize)| {
        let attention =
            Attention { kernel: Kernel::best(), heads, scale: 1.0, softcap: None, bias, sinks: None };
        let row = Query { position: 0, span };
        attention.attend(zeros(1, columns).view(), &cache.view(), &[row], zeros(out.0, out.1).view_mut())
    };
    let table = zeros(4, 0);
    assert!(attend(4, Bias::None, 16, 0..1, (1, 16)).is_ok());
    assert!(attend(3, Bias::None, 12, 0..1, (1, 12)).is_err());
    assert!(attend(4, Bias::Slopes(&[0.0; 3]), 16, 0..1, (1, 16)).is_err());
    assert!(attend(4, Bias::Distances(table.view()), 16, 0..1, (1, 16)).is_err());
    assert!(attend(4, Bias::None, 15, 0..1, (1, 16)).is_err());
    assert!(attend(4, Bias::None, 16, 0..1, (2, 16)).is_err());
    assert!(attend(4, Bias::None, 16, 3..3, (1, 16)).is_err());
    assert!(attend(4, Bias::None, 16, 0..PAGE_POSITIONS + 1, (1, 16)).is_err());
}

fn cache_of(
    element: KvType,
    kv_heads: usize,
    size: usize,
    keys: ArrayView2<'_, f32>,
    values: ArrayView2<'_, f32>,
) -> Sequence {
    let mut cache = Sequence::new(element, kv_heads, size, keys.nrows());
    cache.write(0, keys, values);
    cache
}

/// What a cache of this type keeps of a matrix.
fn kept(element: FloatType, matrix: &Array2<f32>) -> Array2<f32> {
    matrix.mapv(|value| match element {
        FloatType::F32 => value,
        FloatType::F16 => f16::from_f32(value).to_f32(),
        FloatType::Bf16 => bf16::from_f32(value).to_f32(),
    })
}

/// Whether the kernel rounds queries and weights to bf16 there, which `tiles::tests` bounds.
fn rounds(kernel: Kernel, element: FloatType) -> bool {
    #[cfg(target_arch = "x86_64")]
    let tiles = kernel.bf16_tiles().is_some();
    #[cfg(not(target_arch = "x86_64"))]
    let tiles = false;
    tiles && element == FloatType::Bf16
}

/// At the edges of vectors, panels and tiles, each type gives the bits that a cache of f32 with the rounded numbers gives.
#[test]
fn numbers_of_16_bits_are_widened_exactly() {
    let mut random = Random::new(31);
    for (size, kv_heads, group) in
        [(1, 1, 1), (15, 2, 2), (16, 1, 3), (17, 1, 13), (31, 2, 1), (33, 1, 2), (64, 3, 3), (80, 1, 1)]
    {
        let heads = kv_heads * group;
        for length in [1, 31, 32, 33, 70] {
            let [k, v] = [(); 2].map(|()| random.matrix(length, kv_heads * size, 2.0));
            for rows in [1, length.min(14)] {
                let q = random.matrix(rows, heads * size, 1.0);
                let row = |position| Query { position, span: position / 3..position + 1 };
                let queries: Vec<Query> = (length - rows..length).map(row).collect();
                for element in FloatType::ALL {
                    let narrow = cache_of(element.into(), kv_heads, size, k.view(), v.view());
                    let (k, v) = (kept(element, &k), kept(element, &v));
                    let wide = cache_of(KvType::F32, kv_heads, size, k.view(), v.view());
                    for kernel in Kernel::available() {
                        if rounds(kernel, element) {
                            continue;
                        }
                        let attention = Attention {
                            kernel,
                            heads,
                            scale: 0.3,
                            softcap: None,
                            bias: Bias::None,
                            sinks: None,
                        };
                        let [found, expected] = [&narrow, &wide].map(|cache| {
                            let mut out = Array2::from_elem(q.raw_dim(), f32::NAN);
                            attention
                                .attend(q.view(), &cache.view(), &queries, out.view_mut())
                                .expect("valid operands");
                            out
                        });
                        assert_eq!(
                            found, expected,
                            "{kernel} {element:?} size {size} length {length} rows {rows}"
                        );
                    }
                }
            }
        }
    }
}

/// How far the formula moves when keys and values are rounded to `T`.
///
/// A rounded number is `x(1 + δ)`, `|δ| ≤ u`, or off by half of the smallest subnormal η: scores move by at most
/// `ε = scale·Σ_d |q_d|·(|k_d|·u + η)`, the largest over the positions, and softmax weights by a factor within `e^{±2ε}`.
/// The result moves by at most `Σ_p w_p·|v_p|·(e^{2ε}(1 + u) − 1) + e^{2ε}·η`.
fn rounding_bound<T: Element>(scale: f32, q: &[f32], k: &Array2<f32>, v: &Array2<f32>) -> Vec<f64> {
    let scores: Vec<(f64, f64)> = k
        .rows()
        .into_iter()
        .map(|k| {
            let terms = q.iter().zip(k).map(|(q, k)| (f64::from(*q), f64::from(*k)));
            let (dot, moved) = terms.fold((0.0, 0.0), |(dot, moved), (q, k)| {
                (dot + q * k, moved + q.abs() * (k.abs() * T::UNIT_ROUNDOFF + T::MIN_SUBNORMAL))
            });
            (f64::from(scale) * dot, f64::from(scale) * moved)
        })
        .collect();
    let epsilon = scores.iter().map(|(_, moved)| *moved).fold(0.0, f64::max);
    let growth = (2.0 * epsilon).exp();
    let sum: f64 = scores.iter().map(|(score, _)| score.exp()).sum();
    let column = |d: usize| {
        let values = v.column(d);
        let weighted =
            scores.iter().zip(values).map(|((score, _), v)| score.exp() / sum * f64::from(v.abs()));
        weighted.sum::<f64>() * (growth * (1.0 + T::UNIT_ROUNDOFF) - 1.0) + growth * T::MIN_SUBNORMAL
    };
    (0..v.ncols()).map(column).collect()
}

/// The error of a cache of 16 bits against attention in exact arithmetic is that of its rounding, and no more; and bf16
/// moves results further than f16 could.
#[test]
fn the_error_of_a_cache_is_its_rounding() {
    let mut random = Random::new(32);
    let scale = 0.125;
    // What f32 adds: the tolerance of `attention_is_its_formula`.
    let arithmetic = 2e-6;
    let mut beyond_f16 = false;
    // Of a single position the result is its rounded value; of many, roundings cancel out.
    for (size, length) in [(4, 1), (7, 2), (64, 100), (33, 40)] {
        let q = random.matrix(1, size, 1.0);
        let [k, v] = [(); 2].map(|()| random.matrix(length, size, 1.0));
        let query = || vec![Query { position: length - 1, span: 0..length }];
        let case = Case::new((1, 1, size), Added::Nothing, query());
        let exact = case.expected(scale, &q, &k, &v);
        let bound = |element| match element {
            FloatType::F32 => vec![0.0; size],
            FloatType::F16 => rounding_bound::<f16>(scale, q.as_slice().expect("a row"), &k, &v),
            FloatType::Bf16 => rounding_bound::<bf16>(scale, q.as_slice().expect("a row"), &k, &v),
        };
        for element in FloatType::ALL {
            let cache = cache_of(element.into(), 1, size, k.view(), v.view());
            for kernel in Kernel::available() {
                if rounds(kernel, element) {
                    continue;
                }
                let attention =
                    Attention { kernel, heads: 1, scale, softcap: None, bias: Bias::None, sinks: None };
                let mut out = Array2::zeros((1, size));
                attention.attend(q.view(), &cache.view(), &query(), out.view_mut()).expect("valid operands");
                let errors = out.iter().zip(&exact).map(|(found, exact)| (f64::from(*found) - exact).abs());
                for ((error, bound), f16_bound) in errors.zip(bound(element)).zip(bound(FloatType::F16)) {
                    assert!(error <= bound + arithmetic, "{kernel} {element:?}: {error:e}, bound {bound:e}");
                    beyond_f16 |= element == FloatType::Bf16 && error > f16_bound + arithmetic;
                }
            }
        }
    }
    assert!(beyond_f16, "the bound of f16 would also do for bf16: it can tell nothing");
}

/// What a cache of int8 keeps of rows of vectors of `size`.
fn kept_in_int8(size: usize, matrix: &Array2<f32>) -> Array2<f32> {
    let mut kept = matrix.clone();
    for mut vector in kept.exact_chunks_mut((1, size)) {
        let scale = vector.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
        if scale > 0.0 {
            vector.mapv_inplace(|value| (value * (127.0 / scale)).round_ties_even() * (scale / 127.0));
        }
    }
    kept
}

/// A cache of int8 gives what one of f32 gives that holds the dequantised numbers, up to what sums in f32 differ by: scores by
/// `ε = scale·Σ|q·k|·(size + 3)·2⁻²³`, results by `max |v|·(2ε + (length + 3)·2⁻²³)`.
#[test]
fn codes_are_multiplied_with_their_scales() {
    let mut random = Random::new(38);
    for (size, kv_heads, group) in [(1, 1, 1), (15, 2, 2), (17, 1, 13), (33, 1, 2), (64, 3, 3), (80, 1, 1)] {
        let heads = kv_heads * group;
        for length in [1, 31, 33, 70, 3 * PAGE_POSITIONS + 5] {
            let [mut k, v] = [(); 2].map(|()| random.matrix(length, kv_heads * size, 2.0));
            // A vector of zeros has the scale 0.
            k.slice_mut(s![length / 2, ..size]).fill(0.0);
            let codes = cache_of(KvType::Int8, kv_heads, size, k.view(), v.view());
            let [k, v] = [&k, &v].map(|matrix| kept_in_int8(size, matrix));
            let floats = cache_of(KvType::F32, kv_heads, size, k.view(), v.view());
            for rows in [1, length.min(14)] {
                let q = random.matrix(rows, heads * size, 1.0);
                let row = |position| Query { position, span: position / 3..position + 1 };
                let queries: Vec<Query> = (length - rows..length).map(row).collect();
                let largest = |matrix: &Array2<f32>| matrix.iter().fold(0.0_f32, |a, b| a.max(b.abs()));
                let unit = 2.0_f32.powi(-23);
                let real = |count: usize| convert::real(count);
                let scores = 0.3 * real(size) * largest(&q) * largest(&k) * (real(size) + 3.0) * unit;
                let bound = largest(&v) * (2.0 * scores + (real(length) + 3.0) * unit);
                for kernel in Kernel::available() {
                    let attention =
                        Attention { kernel, heads, scale: 0.3, softcap: None, bias: Bias::None, sinks: None };
                    let [found, expected] = [&codes, &floats].map(|cache| {
                        let mut out = Array2::from_elem(q.raw_dim(), f32::NAN);
                        attention
                            .attend(q.view(), &cache.view(), &queries, out.view_mut())
                            .expect("valid operands");
                        out
                    });
                    for (found, expected) in found.iter().zip(&expected) {
                        let error = (found - expected).abs();
                        assert!(
                            error <= bound,
                            "{kernel} size {size} length {length}: {error:e} > {bound:e}"
                        );
                    }
                }
            }
        }
    }
}

/// A number that is not finite makes its vector NaN, and with it the rows that see it, and no others.
#[test]
fn what_is_not_finite_shows_in_int8() {
    let (size, length) = (20, 40);
    let mut random = Random::new(39);
    let q = random.matrix(1, 2 * size, 1.0);
    for of_keys in [true, false] {
        let [mut k, mut v] = [(); 2].map(|()| random.matrix(length, 2 * size, 1.0));
        let matrix = if of_keys { &mut k } else { &mut v };
        matrix[[33, 3]] = f32::INFINITY;
        let cache = cache_of(KvType::Int8, 2, size, k.view(), v.view());
        for kernel in Kernel::available() {
            let attention =
                Attention { kernel, heads: 2, scale: 0.3, softcap: None, bias: Bias::None, sinks: None };
            let attend = |span: Range<usize>| {
                let mut out = Array2::zeros((1, 2 * size));
                let rows = [Query { position: length, span }];
                attention.attend(q.view(), &cache.view(), &rows, out.view_mut()).expect("valid operands");
                out.into_raw_vec_and_offset().0
            };
            assert!(attend(0..33).iter().all(|value| value.is_finite()), "{kernel}");
            let seen = attend(0..length);
            assert!(seen[..size].iter().all(|value| value.is_nan()), "{kernel}");
            assert!(seen[size..].iter().all(|value| value.is_finite()), "{kernel}");
        }
    }
}

/// A row gives the same bits alone, among others and on any number of threads.
#[test]
fn rows_do_not_depend_on_others_or_on_threads() {
    let mut random = Random::new(33);
    let (heads, kv_heads, size, length) = (6, 3, 40, 300);
    let q = random.matrix(length, heads * size, 1.0);
    let [k, v] = [(); 2].map(|()| random.matrix(length, kv_heads * size, 1.0));
    let rows: Vec<Query> = (0..length).map(|position| Query { position, span: 0..position + 1 }).collect();
    for element in KvType::ALL {
        let cache = cache_of(element, kv_heads, size, k.view(), v.view());
        for kernel in Kernel::available() {
            let attend = |threads: usize, rows: &[Query]| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
                let queries = q.slice(s![rows[0].position..rows[0].position + rows.len(), ..]);
                let mut out = Array2::zeros((rows.len(), heads * size));
                let attention =
                    Attention { kernel, heads, scale: 0.2, softcap: None, bias: Bias::None, sinks: None };
                pool.install(|| attention.attend(queries, &cache.view(), rows, out.view_mut()))
                    .expect("valid operands");
                out
            };
            let all = attend(1, &rows);
            assert_eq!(attend(3, &rows), all, "{kernel} {element:?}");
            for position in [0, 31, 32, length - 1] {
                for threads in [1, 2] {
                    let alone = attend(threads, &rows[position..=position]);
                    assert_eq!(alone.row(0), all.row(position), "{kernel} {element:?} position {position}");
                }
            }
        }
    }
}

/// Causal queries at the last `rows` positions of `length`, with a window.
fn last_rows(length: usize, rows: usize, window: usize) -> Vec<Query> {
    let span = |position: usize| (position + 1).saturating_sub(window)..position + 1;
    (length - rows.min(length)..length).map(|position| Query { position, span: span(position) }).collect()
}

/// Pages in any order, of a pool whose other pages, and whose positions beyond the written ones and before the windows, hold NaN,
/// give the bits of pages in order, in any layer, written position by position or at once.
#[test]
fn results_do_not_depend_on_pages() {
    let mut random = Random::new(34);
    let (kv_heads, heads) = (2, 4);
    let lengths =
        [1, 31, 32, 33, PAGE_POSITIONS - 1, PAGE_POSITIONS, PAGE_POSITIONS + 1, 3 * PAGE_POSITIONS + 5];
    for size in [20, 64, 80] {
        for length in lengths {
            let [k, v] = [(); 2].map(|()| random.matrix(length, kv_heads * size, 1.0));
            let q = random.matrix(length, heads * size, 1.0);
            for element in KvType::ALL {
                let ordered = cache_of(element, kv_heads, size, k.view(), v.view());
                let mut pages = KvPages::new(element, 3, kv_heads, size, 7).expect("memory");
                (0..7).for_each(|page| pages.poison(page));
                let table = &[5, 0, 3, 6][..length.div_ceil(PAGE_POSITIONS)];
                let cut = length / 2;
                pages
                    .write(Kernel::best(), 1, table, 0, k.slice(s![..cut, ..]), v.slice(s![..cut, ..]))
                    .expect("it fits");
                for at in cut..length {
                    let row = s![at..=at, ..];
                    pages.write(Kernel::best(), 1, table, at, k.slice(row), v.slice(row)).expect("it fits");
                }
                for (rows, window) in [(1, usize::MAX), (1, 40), (14, usize::MAX), (45, 40), (3, 1)] {
                    let rows = last_rows(length, rows, window);
                    let queries = q.slice(s![length - rows.len().., ..]);
                    // Pages before the windows may have gone to others: no such number is looked at.
                    let mut table = table.to_vec();
                    let begin = rows[0].span.start / PAGE_POSITIONS;
                    table[..begin].fill(u32::MAX);
                    for kernel in Kernel::available() {
                        let attention = Attention {
                            kernel,
                            heads,
                            scale: 0.3,
                            softcap: None,
                            bias: Bias::None,
                            sinks: None,
                        };
                        let [found, expected] = [pages.sequence(1, &table), ordered.view()].map(|cache| {
                            let mut out = Array2::from_elem(queries.raw_dim(), f32::NAN);
                            attention.attend(queries, &cache, &rows, out.view_mut()).expect("valid operands");
                            out
                        });
                        assert!(found.iter().all(|value| value.is_finite()));
                        assert_eq!(
                            found,
                            expected,
                            "{kernel} {element:?} size {size} length {length} rows {} window {window}",
                            rows.len()
                        );
                    }
                }
            }
        }
    }
}

/// A row's result comes from its span alone: NaN keys and values that other rows of the call see do not reach it.
#[test]
fn positions_outside_a_span_never_show() {
    let mut random = Random::new(35);
    let (size, length) = (24, 2 * PAGE_POSITIONS + 20);
    let q = random.matrix(40, size, 1.0);
    let [k, v] = [(); 2].map(|()| random.matrix(length, size, 1.0));
    let rows: Vec<Query> = (0..40)
        .map(|row| {
            // Causal, windows, and spans apart from each other.
            let first = [0, row, 37 * (row % 5)][row % 3];
            Query { position: length, span: first..first + 1 + 11 * (row % 4) }
        })
        .collect();
    for element in KvType::ALL {
        let whole = cache_of(element, 1, size, k.view(), v.view());
        for kernel in Kernel::available() {
            let attention =
                Attention { kernel, heads: 1, scale: 0.3, softcap: None, bias: Bias::None, sinks: None };
            let mut out = Array2::zeros(q.raw_dim());
            attention.attend(q.view(), &whole.view(), &rows, out.view_mut()).expect("valid operands");
            for only in [0, 7, 20, 39] {
                let span = rows[only].span.clone();
                let mut poisoned = Sequence::new(element, 1, size, length);
                poisoned.table.iter().for_each(|page| poisoned.pages.poison(*page));
                poisoned.write(span.start, k.slice(s![span.clone(), ..]), v.slice(s![span, ..]));
                let mut found = Array2::zeros(q.raw_dim());
                attention
                    .attend(q.view(), &poisoned.view(), &rows, found.view_mut())
                    .expect("valid operands");
                assert_eq!(found.row(only), out.row(only), "{kernel} {element:?} row {only}");
            }
        }
    }
}

/// Two sequences share the pages of a prefix; the one that writes to a shared page copies it first, and the other keeps its own.
#[test]
fn a_fork_copies_a_shared_page_before_it_writes() {
    let mut random = Random::new(36);
    let (size, prefix, length) = (20, PAGE_POSITIONS + 9, PAGE_POSITIONS + 30);
    let q = random.matrix(1, size, 1.0);
    let [k, v] = [(); 2].map(|()| random.matrix(length, size, 1.0));
    let [other_k, other_v] = [&k, &v].map(|first| {
        let mut other = random.matrix(length, size, 1.0);
        other.slice_mut(s![..prefix, ..]).assign(&first.slice(s![..prefix, ..]));
        other
    });
    let rows = last_rows(length, 1, usize::MAX);
    for element in KvType::ALL {
        let mut pages = KvPages::new(element, 2, 1, size, 4).expect("memory");
        pages.poison(3);
        let (table, forked) = ([2, 0], [2, 3]);
        let write =
            |pages: &mut KvPages, table: &[u32], part: Range<usize>, k: &Array2<f32>, v: &Array2<f32>| {
                for layer in 0..2 {
                    let (k, v) = (k.slice(s![part.clone(), ..]), v.slice(s![part.clone(), ..]));
                    pages.write(Kernel::best(), layer, table, part.start, k, v).expect("it fits");
                }
            };
        write(&mut pages, &table, 0..prefix, &k, &v);
        pages.copy(0, 3);
        // In turns, as two sequences of a batch.
        for at in prefix..length {
            write(&mut pages, &table, at..at + 1, &k, &v);
            write(&mut pages, &forked, at..at + 1, &other_k, &other_v);
        }
        for (table, k, v) in [(table, &k, &v), (forked, &other_k, &other_v)] {
            let alone = cache_of(element, 1, size, k.view(), v.view());
            for kernel in Kernel::available() {
                let attention =
                    Attention { kernel, heads: 1, scale: 0.3, softcap: None, bias: Bias::None, sinks: None };
                for cache in [pages.sequence(0, &table), pages.sequence(1, &table)] {
                    let [mut found, mut expected] = [(); 2].map(|()| Array2::zeros((1, size)));
                    attention.attend(q.view(), &cache, &rows, found.view_mut()).expect("valid operands");
                    attention
                        .attend(q.view(), &alone.view(), &rows, expected.view_mut())
                        .expect("valid operands");
                    assert_eq!(found, expected, "{kernel} {element:?} {table:?}");
                }
            }
        }
    }
}

#[test]
#[should_panic(expected = "page 2 of a KV cache of 2 pages")]
fn a_page_that_does_not_exist_is_refused() {
    let pages = KvPages::new(KvType::F32, 1, 1, 4, 2).expect("memory");
    let attention = Attention {
        kernel: Kernel::best(),
        heads: 1,
        scale: 1.0,
        softcap: None,
        bias: Bias::None,
        sinks: None,
    };
    let (q, mut out) = (Array2::zeros((1, 4)), Array2::zeros((1, 4)));
    let row = Query { position: 0, span: 0..PAGE_POSITIONS + 1 };
    drop(attention.attend(q.view(), &pages.sequence(0, &[1, 2]), &[row], out.view_mut()));
}
