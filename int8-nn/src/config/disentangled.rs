//! Distances of disentangled attention (He et al., 2021): DeBERTa.

use super::RawConfig;
use crate::{Error, convert};

/// Attention whose scores have, beside contents, terms of a content and an embedded distance: the score of query `i` and key `j` is
/// `(q_i·k_j + q_i·K[b] + k_j·Q[b])/√(terms·head_size)`, where `b` is the row of `i − j` in the table of embedded distances, and K
/// and Q are its projections as keys and as queries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Disentangled {
    /// Half of the rows of the table.
    pub span: usize,
    /// Distances share rows: up to `span/2` each has its own, and rows of logarithmically growing width follow up to this one. With
    /// `None` each distance below `span` has its own.
    pub max_distance: Option<usize>,
    /// The term of a query's content: `q_i·K[b]`.
    pub of_queries: bool,
    /// The term of a key's content: `k_j·Q[b]`.
    pub of_keys: bool,
    /// The distances are projected by the tokens' own projections.
    pub shared: bool,
    /// The table is normalised.
    pub normed: bool,
}

/// Most rows of a table accepted: two for each distance.
const LARGEST_SPAN: usize = 1 << 15;

impl Disentangled {
    /// Reads DeBERTa's keys. `terms`: of queries, of keys.
    ///
    /// # Errors
    /// For sizes that give no buckets.
    pub(crate) fn read(raw: &RawConfig, [of_queries, of_keys]: [bool; 2]) -> Result<Self, Error> {
        const BUCKETS: &str = "position_buckets";
        const DISTANCE: &str = "max_relative_positions";
        let positive = |key: &str| {
            let unset = raw.get(key).is_none_or(|value| value.as_i64().is_some_and(|value| value < 1));
            if unset { Ok(None) } else { raw.size(key).map(Some) }
        };
        let distance = match positive(DISTANCE)? {
            Some(distance) => distance,
            None => raw.size("max_position_embeddings")?,
        };
        let (span, max_distance) = match positive(BUCKETS)? {
            Some(buckets) if buckets < 2 || distance <= buckets / 2 + 1 => {
                return Err(raw.problem(
                    BUCKETS,
                    format!(
                        "is {buckets}; with distances up to {distance} expected 2 to {}",
                        2 * (distance - 1)
                    ),
                ));
            }
            Some(buckets) => (buckets, Some(distance)),
            None => (distance, None),
        };
        if span > LARGEST_SPAN {
            let key = if max_distance.is_some() { BUCKETS } else { DISTANCE };
            return Err(
                raw.problem(key, format!("gives {span} distances; at most {LARGEST_SPAN} are implemented"))
            );
        }
        let norms = raw.text_or("norm_rel_ebd", "none")?.to_lowercase();
        let normed = norms.split('|').any(|norm| norm.trim() == "layer_norm");
        Ok(Self {
            span,
            max_distance,
            of_queries,
            of_keys,
            shared: raw.flag_or("share_att_key", false)?,
            normed,
        })
    }

    /// The row of the table for `distance`, a query's position less a key's: `span + bucket(distance)`, within the table.
    pub fn row(&self, distance: isize) -> usize {
        let away = match self.max_distance {
            Some(max_distance) => self.bucket(distance.unsigned_abs(), max_distance),
            None => distance.unsigned_abs(),
        };
        if distance < 0 { self.span.saturating_sub(away) } else { (self.span + away).min(2 * self.span - 1) }
    }

    /// `a` up to the middle `m = span/2`, then `m + ⌈ln(a/m)/ln((max − 1)/m)·(m − 1)⌉`.
    fn bucket(&self, away: usize, max_distance: usize) -> usize {
        let middle = self.span / 2;
        if away <= middle {
            return away;
        }
        // In f32, as transformers: a bucket's border may depend on the rounding.
        let of = |distance: usize| {
            (convert::f32_from(convert::f64_from(distance)) / convert::f32_from(convert::f64_from(middle)))
                .ln()
        };
        let share = of(away) / of(max_distance - 1) * convert::f32_from(convert::f64_from(middle - 1));
        middle + convert::floor(share.ceil())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows that transformers' `build_relative_position` and its clamp give.
    #[test]
    fn rows_of_known_distances() {
        let of = |span, max_distance, distances: &[isize]| -> Vec<usize> {
            let settings = Disentangled {
                span,
                max_distance,
                of_queries: true,
                of_keys: true,
                shared: true,
                normed: true,
            };
            distances.iter().map(|distance| settings.row(*distance)).collect()
        };
        assert_eq!(of(256, Some(512), &DISTANCES), BUCKETED);
        assert_eq!(of(8, Some(40), &SHORT), SHORT_BUCKETED);
        assert_eq!(of(4, None, &[0, 1, 3, 4, 90, -1, -4, -5, -90]), [4, 5, 7, 7, 7, 3, 0, 0, 0]);
    }

    const DISTANCES: [isize; 22] = [
        0, 1, 127, 128, 129, 130, 200, 255, 256, 300, 400, 500, 511, -1, -127, -128, -129, -200, -400, -511,
        900, -900,
    ];
    const BUCKETED: [usize; 22] = [
        256, 257, 383, 384, 385, 386, 425, 448, 448, 463, 489, 510, 511, 255, 129, 128, 127, 87, 23, 1, 511,
        0,
    ];
    const SHORT: [isize; 19] = [0, 1, 3, 4, 5, 6, 7, 9, 12, 20, 39, 40, 60, -4, -5, -9, -20, -39, -60];
    const SHORT_BUCKETED: [usize; 19] = [8, 9, 11, 12, 13, 13, 13, 14, 14, 15, 15, 15, 15, 4, 3, 2, 1, 1, 0];
}
