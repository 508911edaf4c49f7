//! Outlier features of a model: the statistics of §4 of the paper, over any length of text in bounded memory.
//!
//! A hidden dimension is an *outlier feature* when `|x| ≥ 6` in at least 25 % of the layers and 6 % of the sequence positions,
//! in the inputs of attention projections and of MLP expansions: the normalised hidden states. Both kinds of inputs must meet
//! the criterion, since both come from the residual stream; dimensions that meet it in one kind alone are listed apart. The
//! inputs of attention output and MLP contraction have dimensions of their own: measured, but not searched for features.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use int8_core::corpus::Random;
use ndarray::{ArrayView2, ArrayViewMut2, Axis};
use serde::Serialize;

use crate::backend::{Backend, Observer};
use crate::model::Model;
use crate::perplexity::PerplexityOptions;
use crate::precision::{LinearRole, Site};
use crate::session::SessionOptions;
use crate::{Error, convert};

/// When a dimension is an outlier feature.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Criterion {
    /// Least magnitude.
    pub magnitude: f32,
    /// Least share of the layers.
    pub layers: f64,
    /// Least share of the sequence positions, over all hidden states searched.
    pub positions: f64,
}

impl Default for Criterion {
    /// The paper's.
    fn default() -> Self {
        Self { magnitude: 6.0, layers: 0.25, positions: 0.06 }
    }
}

/// Magnitudes for which shares are reported.
pub const SWEEP: [f32; 12] = [2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 10.0, 14.0, 20.0, 30.0, 50.0];

/// The orders of [`SiteReport::quantiles`].
pub const QUANTILES: [f64; 5] = [0.5, 0.9, 0.99, 0.999, 0.9999];

/// Outlier statistics of a model.
#[derive(Debug, Clone, Serialize)]
pub struct OutlierReport {
    /// The criterion used.
    pub criterion: Criterion,
    /// Tokens measured.
    pub tokens: usize,
    /// Blocks of the model.
    pub layers: usize,
    /// Width of the hidden states.
    pub hidden_size: usize,
    /// The outlier features, ascending by dimension.
    pub features: Vec<Feature>,
    /// Dimensions that meet the criterion in one kind of inputs alone.
    pub partial: Vec<Feature>,
    /// The inputs of every projection, in the order of the model.
    pub sites: Vec<SiteReport>,
    /// For each magnitude of [`SWEEP`]: shares of outliers, and the most widespread dimension.
    pub sweep: Vec<SweepPoint>,
}

/// An outlier feature.
#[derive(Debug, Clone, Serialize)]
pub struct Feature {
    /// Hidden dimension, from 0.
    pub dimension: usize,
    /// The projections in whose inputs it meets the criterion; its other figures are of these.
    pub roles: Vec<LinearRole>,
    /// Share of layers where it reaches the magnitude.
    pub layers: f64,
    /// Share of sequence positions where it does, over all hidden states searched.
    pub positions: f64,
    /// Whether all its outliers have the same sign.
    pub one_sided: bool,
    /// Quartiles of its outliers, to a part in 44.
    pub quartiles: [f32; 3],
    /// Largest magnitude.
    pub largest: f32,
}

/// The input of one projection.
#[derive(Debug, Clone, Serialize)]
pub struct SiteReport {
    /// Name of the layer in the checkpoint.
    pub name: String,
    /// Number of its block.
    pub block: usize,
    /// Its role.
    pub role: LinearRole,
    /// Whether features are searched here: the input is a hidden state, not the output of heads or the MLP's inner layer.
    pub counted: bool,
    /// Width K.
    pub inputs: usize,
    /// Largest magnitude.
    pub largest: f32,
    /// Quantiles of the magnitudes, of the orders [`QUANTILES`], to a part in 44.
    pub quantiles: [f32; 5],
    /// Dimensions that reach the criterion's magnitude anywhere.
    pub dimensions: usize,
    /// Share of outlier columns, mean over the windows, for each magnitude of [`SWEEP`].
    pub columns: [f64; SWEEP.len()],
    /// Share of values that are outliers, for each magnitude of [`SWEEP`].
    pub values: [f64; SWEEP.len()],
    /// The dimensions that most often reach the criterion's magnitude: dimension, share of positions, largest magnitude.
    pub strongest: Vec<(usize, f64, f32)>,
    /// Largest magnitude of each dimension; for plots, not in JSON.
    #[serde(skip)]
    pub dimension_largest: Vec<f32>,
}

/// One magnitude of the sweep.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct SweepPoint {
    /// The magnitude.
    pub magnitude: f32,
    /// Share of outlier columns, over all projections and windows.
    pub columns: f64,
    /// Share of values that are outliers, over all projections.
    pub values: f64,
    /// Dimensions that meet the criterion with this magnitude.
    pub features: usize,
    /// Largest share of layers in which one dimension reaches it.
    pub layers: f64,
    /// Largest share of positions in which one dimension reaches it.
    pub positions: f64,
}

/// A model with some dimensions zeroed in all hidden states that are searched for features.
#[derive(Debug, Clone, Serialize)]
pub struct Ablation {
    /// The dimensions.
    pub dimensions: Vec<usize>,
    /// Perplexity.
    pub perplexity: f64,
    /// Mean probability of the most probable token.
    pub top1_probability: f64,
}

/// Collects statistics of `model` over `ids`, window by window; `progress(done, windows)` is called after each.
///
/// # Errors
/// As [`Model::perplexity`].
pub fn analyse<B: Backend>(
    model: &Model<B>,
    ids: &[u32],
    options: &PerplexityOptions,
    criterion: Criterion,
    mut progress: impl FnMut(usize, usize),
) -> Result<OutlierReport, Error> {
    let (window, count) = options.cut(ids.len())?;
    let decoder = model.decoder();
    let backend = decoder.backend();
    let linears = decoder.linears();
    let linears: Vec<(String, usize, LinearRole)> =
        linears.map(|(block, role, linear)| (backend.linear_name(linear).to_owned(), block, role)).collect();
    let hidden = model.config().hidden_size;
    let layers = model.config().layers;
    let sites = linears.iter().map(|(name, block, role)| {
        (name.clone(), Collected { block: *block, role: *role, statistics: Mutex::default() })
    });
    let collector =
        Arc::new(Collector { sites: sites.collect(), magnitudes: thresholds(criterion.magnitude) });
    let mut session = decoder.session(&SessionOptions { max_logits: 0, ..SessionOptions::text(window) })?;
    let observer: Arc<dyn Observer> = collector.clone();
    decoder.observe(Some(&observer));
    let mut done = Ok(());
    for (index, ids) in ids.chunks_exact(window).take(count).enumerate() {
        done = session.clear(0).and_then(|()| session.forward(&[(0, ids)]));
        if done.is_err() {
            break;
        }
        progress(index + 1, count);
    }
    decoder.observe(None);
    done?;
    let order: Vec<&str> = linears.iter().map(|(name, _, _)| name.as_str()).collect();
    Ok(collector.report(&order, criterion, (window * count, layers, hidden)))
}

/// Scores `ids` with these dimensions zeroed.
///
/// # Errors
/// As [`Model::perplexity`].
pub fn ablate<B: Backend>(
    model: &Model<B>,
    dimensions: &[usize],
    ids: &[u32],
    options: &PerplexityOptions,
    progress: impl FnMut(usize, usize),
) -> Result<Ablation, Error> {
    let backend = model.decoder().backend();
    let names = model.decoder().linears().filter(|(_, role, _)| counted(*role));
    let names = names.map(|(_, _, linear)| backend.linear_name(linear).to_owned()).collect();
    let observer: Arc<dyn Observer> = Arc::new(Zeroed { names, dimensions: dimensions.to_vec() });
    model.decoder().observe(Some(&observer));
    let baseline = model.baseline(ids, options, 0, progress);
    model.decoder().observe(None);
    let baseline = baseline?;
    Ok(Ablation {
        dimensions: dimensions.to_vec(),
        perplexity: baseline.perplexity.perplexity(),
        top1_probability: baseline.top1_probability,
    })
}

/// `count` dimensions below `hidden_size`, none of `except`, drawn from `seed`; fewer if there are no more.
pub fn random_dimensions(count: usize, hidden_size: usize, except: &[usize], seed: u64) -> Vec<usize> {
    let mut random = Random::new(seed);
    let mut pool: Vec<usize> = (0..hidden_size).filter(|dimension| !except.contains(dimension)).collect();
    let mut drawn = BTreeSet::new();
    while drawn.len() < count && !pool.is_empty() {
        let dimension = random.choose(&pool);
        pool.retain(|other| *other != dimension);
        drawn.insert(dimension);
    }
    drawn.into_iter().collect()
}

/// The projections whose inputs are searched for features.
const COUNTED: [LinearRole; 2] = [LinearRole::Qkv, LinearRole::Up];

/// Whether the inputs of such projections are searched for features.
fn counted(role: LinearRole) -> bool {
    COUNTED.contains(&role)
}

/// The magnitudes counted: those of the sweep, and the criterion's.
fn thresholds(magnitude: f32) -> Vec<f32> {
    let mut all = SWEEP.to_vec();
    all.push(magnitude);
    all.sort_by(f32::total_cmp);
    all.dedup();
    all
}

#[derive(Debug)]
struct Zeroed {
    names: BTreeSet<String>,
    dimensions: Vec<usize>,
}

impl Observer for Zeroed {
    fn input(&self, _: &Site, name: &str, mut input: ArrayViewMut2<'_, f32>) {
        if self.names.contains(name) {
            for dimension in &self.dimensions {
                if *dimension < input.ncols() {
                    input.column_mut(*dimension).fill(0.0);
                }
            }
        }
    }
}

#[derive(Debug)]
struct Collector {
    sites: HashMap<String, Collected>,
    /// Ascending.
    magnitudes: Vec<f32>,
}

#[derive(Debug)]
struct Collected {
    block: usize,
    role: LinearRole,
    statistics: Mutex<Statistics>,
}

/// Statistics of one input: counts by magnitude and dimension, so that their size depends on the model alone.
#[derive(Debug, Default)]
struct Statistics {
    positions: u64,
    windows: u64,
    /// `[magnitude][dimension]`: positions at which it is reached.
    hits: Vec<Vec<u32>>,
    /// For each magnitude: outlier columns, summed over the windows.
    columns: Vec<u64>,
    /// Largest magnitude of each dimension.
    largest: Vec<f32>,
    histogram: Histogram,
    /// Positive and negative outliers by dimension, where features are searched.
    outlying: BTreeMap<usize, [Histogram; 2]>,
}

impl Observer for Collector {
    fn input(&self, _: &Site, name: &str, input: ArrayViewMut2<'_, f32>) {
        let Some(site) = self.sites.get(name) else { return };
        let mut statistics = site.statistics.lock().unwrap_or_else(PoisonError::into_inner);
        statistics.add(input.view(), &self.magnitudes, counted(site.role));
    }
}

/// The larger one; NaN, which `f32::max` drops, stays.
fn larger(left: f32, right: f32) -> f32 {
    if left.is_nan() || left >= right { left } else { right }
}

impl Statistics {
    fn add(&mut self, x: ArrayView2<'_, f32>, magnitudes: &[f32], counted: bool) {
        let (rows, width) = x.dim();
        self.hits.resize_with(magnitudes.len(), || vec![0; width]);
        self.columns.resize(magnitudes.len(), 0);
        self.largest.resize(width, 0.0);
        self.positions += convert::bytes(rows);
        self.windows += 1;
        let mut window = vec![0.0_f32; width];
        for row in x.axis_iter(Axis(0)) {
            for (dimension, value) in row.iter().enumerate() {
                let magnitude = value.abs();
                self.histogram.add(magnitude);
                window[dimension] = larger(window[dimension], magnitude);
                if magnitude < magnitudes[0] {
                    continue;
                }
                for (hits, _) in self.hits.iter_mut().zip(magnitudes).take_while(|(_, m)| magnitude >= **m) {
                    hits[dimension] += 1;
                }
                if counted {
                    let signs = self.outlying.entry(dimension).or_default();
                    signs[usize::from(*value < 0.0)].add(magnitude);
                }
            }
        }
        for (largest, window) in self.largest.iter_mut().zip(&window) {
            *largest = larger(*largest, *window);
        }
        for (columns, magnitude) in self.columns.iter_mut().zip(magnitudes) {
            *columns += convert::bytes(window.iter().filter(|largest| *largest >= magnitude).count());
        }
    }

    fn share(&self, count: u64) -> f64 {
        convert::f64_from_u64(count) / convert::f64_from_u64(self.positions.max(1))
    }
}

/// Magnitudes in bins of 1/32 octave: exact in count, to a part in 44 in magnitude.
#[derive(Debug, Default, Clone)]
struct Histogram {
    bins: BTreeMap<i32, u64>,
    /// The bins from 2⁻³² to 2³², of nearly all values, as an array.
    common: Vec<u64>,
    count: u64,
}

const BINS_PER_OCTAVE: f32 = 32.0;
/// Length of [`Histogram::common`].
const COMMON: usize = 64 * 32;

impl Histogram {
    fn add(&mut self, magnitude: f32) {
        self.count += 1;
        // Zero is the smallest magnitude, NaN and infinity the largest.
        let bin = if magnitude == 0.0 { i32::MIN } else { convert::step(magnitude.log2() * BINS_PER_OCTAVE) };
        match usize::try_from(bin.saturating_add(32 * 32)) {
            Ok(bin) if bin < COMMON => {
                self.common.resize(COMMON, 0);
                self.common[bin] += 1;
            }
            _ => *self.bins.entry(bin).or_default() += 1,
        }
    }

    /// The bins that are not empty, ascending: magnitude of the middle, count.
    fn ascending(&self) -> impl DoubleEndedIterator<Item = (f32, u64)> {
        let middle = |bin: i32| match bin {
            i32::MIN => 0.0,
            bin => ((convert::f32_from_step(bin) + 0.5) / BINS_PER_OCTAVE).exp2(),
        };
        let low = self.bins.range(..0).map(move |(bin, count)| (middle(*bin), *count));
        let common = self
            .common
            .iter()
            .enumerate()
            .filter(|(_, count)| **count > 0)
            .map(move |(bin, count)| (middle(i32::try_from(bin).unwrap_or(i32::MAX) - 32 * 32), *count));
        let high = self.bins.range(0..).map(move |(bin, count)| (middle(*bin), *count));
        low.chain(common).chain(high)
    }
}

/// The quantile of order `share` of `count` values, in ascending bins.
fn quantile(bins: impl Iterator<Item = (f32, u64)>, count: u64, share: f64) -> f32 {
    let rank = convert::f64_from_u64(count) * share;
    let (mut below, mut last) = (0, 0.0);
    for (value, count) in bins {
        below += count;
        last = value;
        if convert::f64_from_u64(below) >= rank {
            break;
        }
    }
    last
}

impl Collector {
    fn report(
        &self,
        order: &[&str],
        criterion: Criterion,
        (tokens, layers, hidden_size): (usize, usize, usize),
    ) -> OutlierReport {
        let statistics: Vec<(&str, &Collected, std::sync::MutexGuard<'_, Statistics>)> = order
            .iter()
            .map(|name| {
                let site = &self.sites[*name];
                (*name, site, site.statistics.lock().unwrap_or_else(PoisonError::into_inner))
            })
            // Of experts only the first one's input is seen: it is that of all.
            .filter(|(_, _, statistics)| statistics.positions > 0)
            .collect();
        let place = |magnitude: f32| self.magnitudes.iter().position(|m| *m == magnitude).unwrap_or(0);
        let sites: Vec<SiteReport> = statistics
            .iter()
            .map(|(name, site, statistics)| site_report(name, site, statistics, place, criterion))
            .collect();

        // Of each dimension: layers and positions in which it reaches a magnitude, over the hidden states looked at.
        let hidden: Vec<_> = statistics.iter().filter(|(_, site, _)| counted(site.role)).collect();
        let reach = |magnitude: f32, roles: &[LinearRole]| -> Vec<(f64, f64)> {
            let place = place(magnitude);
            let mut reached = vec![(BTreeSet::new(), 0_u64); hidden_size];
            let mut positions = 0;
            for (_, site, statistics) in hidden.iter().filter(|(_, site, _)| roles.contains(&site.role)) {
                positions += statistics.positions;
                let hits = statistics.hits.get(place).map_or(&[][..], Vec::as_slice);
                for ((layers, count), hits) in reached.iter_mut().zip(hits) {
                    if *hits > 0 {
                        layers.insert(site.block);
                        *count += u64::from(*hits);
                    }
                }
            }
            let share = |part: f64, whole: f64| if whole == 0.0 { 0.0 } else { part / whole };
            reached
                .into_iter()
                .map(|(in_layers, count)| {
                    (
                        share(convert::f64_from(in_layers.len()), convert::f64_from(layers)),
                        share(convert::f64_from_u64(count), convert::f64_from_u64(positions)),
                    )
                })
                .collect()
        };
        let meets =
            |(layers, positions): (f64, f64)| layers >= criterion.layers && positions >= criterion.positions;
        // For each dimension: the roles in whose inputs it meets the criterion with this magnitude.
        let roles_met = |magnitude: f32| -> Vec<Vec<LinearRole>> {
            let mut met = vec![Vec::new(); hidden_size];
            for role in COUNTED {
                for (met, reached) in met.iter_mut().zip(reach(magnitude, &[role])) {
                    if meets(reached) {
                        met.push(role);
                    }
                }
            }
            met
        };
        let found = roles_met(criterion.magnitude).into_iter().enumerate();
        let (features, partial) = found
            .filter(|(_, roles)| !roles.is_empty())
            .map(|(dimension, roles)| {
                let reached = reach(criterion.magnitude, &roles)[dimension];
                let sites = hidden.iter().filter(|(_, site, _)| roles.contains(&site.role));
                let statistics: Vec<&Statistics> = sites.map(|(_, _, statistics)| &**statistics).collect();
                feature(dimension, roles, reached, &statistics, criterion.magnitude)
            })
            .partition(|feature| feature.roles.len() == COUNTED.len());
        let sweep = SWEEP.map(|magnitude| {
            let reached = reach(magnitude, &COUNTED);
            let met = roles_met(magnitude);
            let place = place(magnitude);
            let all = |what: &dyn Fn(&Statistics) -> (u64, u64)| {
                let (part, whole) = statistics.iter().fold((0, 0), |(part, whole), (_, _, statistics)| {
                    let (p, w) = what(statistics);
                    (part + p, whole + w)
                });
                convert::f64_from_u64(part) / convert::f64_from_u64(whole.max(1))
            };
            SweepPoint {
                magnitude,
                columns: all(&|s| {
                    (s.columns.get(place).copied().unwrap_or(0), s.windows * convert::bytes(s.largest.len()))
                }),
                values: all(&|s| (s.values(place), s.positions * convert::bytes(s.largest.len()))),
                features: met.iter().filter(|roles| roles.len() == COUNTED.len()).count(),
                layers: reached.iter().map(|(layers, _)| *layers).fold(0.0, f64::max),
                positions: reached.iter().map(|(_, positions)| *positions).fold(0.0, f64::max),
            }
        });
        OutlierReport {
            criterion,
            tokens,
            layers,
            hidden_size,
            features,
            partial,
            sites,
            sweep: sweep.to_vec(),
        }
    }
}

impl Statistics {
    /// Values that reach the magnitude at this place.
    fn values(&self, place: usize) -> u64 {
        self.hits.get(place).map_or(0, |hits| hits.iter().map(|hits| u64::from(*hits)).sum())
    }
}

fn site_report(
    name: &str,
    site: &Collected,
    statistics: &Statistics,
    place: impl Fn(f32) -> usize,
    criterion: Criterion,
) -> SiteReport {
    let width = statistics.largest.len();
    let at = place(criterion.magnitude);
    let none = Vec::new();
    let hits = statistics.hits.get(at).unwrap_or(&none);
    let mut strongest: Vec<(usize, f64, f32)> = hits
        .iter()
        .enumerate()
        .filter(|(_, hits)| **hits > 0)
        .map(|(dimension, hits)| {
            (dimension, statistics.share(u64::from(*hits)), statistics.largest[dimension])
        })
        .collect();
    let dimensions = strongest.len();
    strongest.sort_by(|a, b| b.1.total_cmp(&a.1).then(b.2.total_cmp(&a.2)));
    strongest.truncate(STRONGEST);
    let of = |part: u64, whole: u64| convert::f64_from_u64(part) / convert::f64_from_u64(whole.max(1));
    let wide = convert::bytes(width);
    SiteReport {
        name: name.to_owned(),
        block: site.block,
        role: site.role,
        counted: counted(site.role),
        inputs: width,
        largest: statistics.largest.iter().copied().fold(0.0, larger),
        quantiles: QUANTILES
            .map(|share| quantile(statistics.histogram.ascending(), statistics.histogram.count, share)),
        dimensions,
        columns: SWEEP
            .map(|m| of(statistics.columns.get(place(m)).copied().unwrap_or(0), statistics.windows * wide)),
        values: SWEEP.map(|m| of(statistics.values(place(m)), statistics.positions * wide)),
        strongest,
        dimension_largest: statistics.largest.clone(),
    }
}

/// Dimensions listed for each input.
const STRONGEST: usize = 16;

fn feature(
    dimension: usize,
    roles: Vec<LinearRole>,
    (layers, positions): (f64, f64),
    hidden: &[&Statistics],
    magnitude: f32,
) -> Feature {
    // Bins of signed values, ascending.
    let mut signed: BTreeMap<i64, (f32, u64)> = BTreeMap::new();
    let mut largest = 0.0_f32;
    for statistics in hidden {
        largest = largest.max(statistics.largest.get(dimension).copied().unwrap_or(0.0));
        let Some(signs) = statistics.outlying.get(&dimension) else { continue };
        for (sign, histogram) in [1.0, -1.0].into_iter().zip(signs) {
            // The sweep begins below the criterion's magnitude.
            for (value, count) in histogram.ascending().filter(|(value, _)| *value >= magnitude) {
                let value = sign * value;
                let entry = signed.entry(convert::ordered(value)).or_insert((value, 0));
                entry.1 += count;
            }
        }
    }
    let count = signed.values().map(|(_, count)| count).sum();
    let at = |share| quantile(signed.values().copied(), count, share);
    let signs: BTreeSet<bool> = signed.values().map(|(value, _)| *value < 0.0).collect();
    Feature {
        dimension,
        roles,
        layers,
        positions,
        one_sided: signs.len() < 2,
        quartiles: [0.25, 0.5, 0.75].map(at),
        largest,
    }
}

#[cfg(test)]
mod tests {
    use ndarray::array;

    use super::*;

    #[test]
    fn statistics_of_a_known_input() {
        let mut statistics = Statistics::default();
        let magnitudes = thresholds(6.0);
        statistics.add(array![[7.0, 0.0, -3.0], [-8.0, 1.0, 0.5]].view(), &magnitudes, true);
        statistics.add(array![[1.0, 0.0, 60.0]].view(), &magnitudes, true);
        let at = magnitudes.iter().position(|m| *m == 6.0).unwrap_or_default();
        assert_eq!(statistics.hits[at], [2, 0, 1]);
        assert_eq!(statistics.largest, [8.0, 1.0, 60.0]);
        assert_eq!(statistics.columns[at], 2);
        assert_eq!((statistics.positions, statistics.windows, statistics.values(at)), (3, 2, 3));
        let of = |dimension| feature(dimension, COUNTED.to_vec(), (1.0, 0.5), &[&statistics], 6.0);
        let found = of(0);
        assert!(!found.one_sided && found.quartiles[0] < -7.0 && found.quartiles[2] > 6.5, "{found:?}");
        assert!(of(2).one_sided);
    }

    #[test]
    fn quantiles_to_their_resolution() {
        let mut histogram = Histogram::default();
        for value in 1..=1000_u16 {
            histogram.add(f32::from(value));
        }
        histogram.add(0.0);
        for (share, expected) in [(0.5, 500.0), (0.9, 900.0), (0.99, 990.0)] {
            let found = quantile(histogram.ascending(), histogram.count, share);
            assert!((found / expected - 1.0_f32).abs() < 1.0 / 40.0, "{share}: {found}, not {expected}");
        }
        assert_eq!(quantile(histogram.ascending(), histogram.count, 0.0), 0.0);
    }

    #[test]
    fn random_dimensions_are_distinct_and_others() {
        let drawn = random_dimensions(6, 20, &[3, 4], 1);
        assert_eq!(drawn.iter().collect::<BTreeSet<_>>().len(), 6);
        assert!(drawn.iter().all(|dimension| *dimension < 20 && ![3, 4].contains(dimension)));
        assert_eq!(random_dimensions(9, 4, &[1], 1), [0, 2, 3]);
    }
}
