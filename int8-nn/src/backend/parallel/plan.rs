//! Which outputs and which input features of a layer a rank has.

use std::ops::Range;

use super::share;
use crate::Error;
use crate::backend::AttentionSpec;
use crate::config::{DecoderConfig, QueryKeyNorms};
use crate::precision::{LinearRole, Site};

/// How the linear layers of a model are shared out among `ranks` ranks: heads of attention, features of the MLP, and the
/// vocabulary. Key and value heads go with their query heads, to one rank more than to another where they cannot be shared out
/// evenly; one that several ranks need, because there are fewer of them than ranks, each of these has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Plan {
    ranks: usize,
    heads: usize,
    kv_heads: usize,
    head_size: usize,
    /// Width of the residual stream.
    pub(super) hidden: usize,
    /// Rows of the head.
    pub(super) vocabulary: usize,
    /// Most input features that a rank has of a layer.
    pub(super) widest: usize,
}

/// The heads of a rank.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Heads {
    queries: Range<usize>,
    keys: Range<usize>,
}

/// How one layer is shared out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Split {
    /// Every rank has all of it.
    None,
    /// By output channels: `yᵣ = x·Wᵣᵀ`.
    Outputs,
    /// By input features: `y = Σ xᵣ·Wᵣᵀ`.
    Inputs,
}

impl Split {
    pub(super) fn of(site: &Site) -> Result<Self, Error> {
        Ok(match site.role {
            LinearRole::Qkv | LinearRole::Up | LinearRole::Head => Self::Outputs,
            LinearRole::AttentionOutput | LinearRole::Down => Self::Inputs,
            LinearRole::Embedding => Self::None,
            LinearRole::StateSpace | LinearRole::Router => {
                return Err(Error::Unsupported(format!("{:?} layers with tensor parallelism", site.role)));
            }
        })
    }
}

impl Plan {
    /// # Errors
    /// [`Error::Unsupported`] for a model that cannot be shared out.
    pub(super) fn new(config: &DecoderConfig, ranks: usize) -> Result<Self, Error> {
        let DecoderConfig { heads, kv_heads, head_size, family, .. } = *config;
        let refused = |why: String| {
            Err(Error::Unsupported(format!(
                "this {family} model on {ranks} ranks: {why}; name another number of devices"
            )))
        };
        if kv_heads < ranks && !(ranks.is_multiple_of(kv_heads) && heads.is_multiple_of(ranks)) {
            return refused(format!(
                "its {heads} heads and {kv_heads} key and value heads are not divisible"
            ));
        }
        let widest = (0..config.layers).map(|layer| config.intermediate(layer)).max().unwrap_or(0);
        if (0..config.layers).any(|layer| !config.intermediate(layer).is_multiple_of(ranks)) {
            return refused(format!("its MLPs have {widest} features, which are not divisible"));
        }
        match config.query_key_norms {
            None | Some(QueryKeyNorms::PerHead | QueryKeyNorms::WithoutGains) => {}
            Some(QueryKeyNorms::Whole | QueryKeyNorms::EachHead) => {
                return Err(Error::Unsupported(format!(
                    "tensor parallelism for {family} models, whose queries and keys are normalised over all heads or by a norm for each; place their blocks with --device alone"
                )));
            }
        }
        let (hidden, vocabulary) = (config.hidden_size, config.vocab_size);
        let mut plan = Self { ranks, heads, kv_heads, head_size, hidden, vocabulary, widest: widest / ranks };
        let most = (0..ranks).map(|rank| plan.heads(rank).queries.len()).max().unwrap_or(heads);
        plan.widest = plan.widest.max(most * head_size);
        Ok(plan)
    }

    /// For tests of one layer that is shared out by its input features.
    #[cfg(test)]
    pub(super) fn of_inputs(ranks: usize, inputs: usize, outputs: usize) -> Self {
        let widest = inputs / ranks;
        Self { ranks, heads: ranks, kv_heads: ranks, head_size: 1, hidden: outputs, vocabulary: 1, widest }
    }

    fn heads(&self, rank: usize) -> Heads {
        if self.kv_heads < self.ranks {
            let first = rank * self.kv_heads / self.ranks;
            return Heads { queries: self.share(self.heads, rank), keys: first..first + 1 };
        }
        let (keys, group) = (self.share(self.kv_heads, rank), self.heads / self.kv_heads);
        Heads { queries: keys.start * group..keys.end * group, keys }
    }

    /// The outputs of a rank in each of the sections of a layer: queries, keys and values, or gates and values, or all.
    pub(super) fn outputs(&self, role: LinearRole, sections: &[usize], rank: usize) -> Vec<Range<usize>> {
        let Heads { queries, keys } = self.heads(rank);
        let share = |(index, outputs): (usize, &usize)| match (role, index) {
            (LinearRole::Qkv, 0) => columns_of(&queries, outputs / self.heads),
            (LinearRole::Qkv, _) => columns_of(&keys, self.head_size),
            _ => self.share(*outputs, rank),
        };
        sections.iter().enumerate().map(share).collect()
    }

    /// The input features of a rank, of `count` that all have.
    pub(super) fn inputs(&self, role: LinearRole, count: usize, rank: usize) -> Range<usize> {
        match role {
            LinearRole::AttentionOutput => columns_of(&self.heads(rank).queries, count / self.heads),
            _ => self.share(count, rank),
        }
    }

    /// The share of a rank in `count` things.
    pub(super) fn share(&self, count: usize, rank: usize) -> Range<usize> {
        share(count, self.ranks, rank)
    }

    /// Columns of a rank's queries, keys and values.
    pub(super) fn projected(&self, rank: usize) -> usize {
        let Heads { queries, keys } = self.heads(rank);
        (queries.len() + 2 * keys.len()) * self.head_size
    }

    /// A rank's part of these columns of all queries, keys and values: of all queries, of all keys or of all values.
    pub(super) fn columns(&self, columns: &Range<usize>, rank: usize) -> Range<usize> {
        let (queries, keys) = (self.heads * self.head_size, self.kv_heads * self.head_size);
        let own = self.heads(rank);
        let own_queries = own.queries.len() * self.head_size;
        let own_keys = own.keys.len() * self.head_size;
        if columns.start < queries {
            0..own_queries
        } else if columns.start < queries + keys {
            own_queries..own_queries + own_keys
        } else {
            own_queries + own_keys..own_queries + 2 * own_keys
        }
    }

    /// The attention of a rank.
    pub(super) fn attention(&self, spec: &AttentionSpec, rank: usize) -> AttentionSpec {
        let Heads { queries: heads, keys } = self.heads(rank);
        let mut own = spec.clone();
        (own.heads, own.kv_heads) = (heads.len(), keys.len());
        own.part = Some((heads.start, spec.heads));
        for layer in &mut own.layers {
            (layer.shape.heads, layer.shape.kv_heads) = (own.heads, own.kv_heads);
            layer.sinks = layer.sinks.as_ref().map(|sinks| sinks[heads.clone()].to_vec());
        }
        own
    }
}

/// Columns of heads of this size side by side.
fn columns_of(heads: &Range<usize>, size: usize) -> Range<usize> {
    heads.start * size..heads.end * size
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(heads: usize, kv_heads: usize) -> DecoderConfig {
        DecoderConfig {
            family: "test",
            layers: 1,
            heads,
            kv_heads,
            head_size: 4,
            hidden_size: 32,
            intermediate_size: 48,
            vocab_size: 101,
            ..DecoderConfig::default()
        }
    }

    /// The ranks together have every output once; but key and value heads that several need.
    #[test]
    fn ranks_together_have_the_layer() {
        let plan = Plan::new(&config(8, 4), 4).expect("divisible");
        let rank = |rank| plan.outputs(LinearRole::Qkv, &[32, 16, 16], rank);
        assert_eq!(rank(0), [0..8, 0..4, 0..4]);
        assert_eq!(rank(3), [24..32, 12..16, 12..16]);
        assert_eq!((plan.projected(0), plan.widest), (16, 12));
        assert_eq!(plan.columns(&(32..48), 0), 8..12);
        assert_eq!(plan.outputs(LinearRole::Up, &[48, 48], 1), [12..24, 12..24]);
        let vocabulary: Vec<_> = (0..4).map(|rank| plan.share(101, rank)).collect();
        assert_eq!(vocabulary, [0..25, 25..50, 50..75, 75..101]);

        let shared = Plan::new(&config(8, 2), 4).expect("two ranks share a head");
        let keys: Vec<_> =
            (0..4).map(|rank| shared.outputs(LinearRole::Qkv, &[32, 8, 8], rank)[1].clone()).collect();
        assert_eq!(keys, [0..4, 0..4, 4..8, 4..8]);
        assert_eq!(shared.projected(3), 16);

        // SmolLM2: one rank has one group of three heads, the other two.
        let uneven = Plan::new(&config(9, 3), 2).expect("three groups");
        let rank = |rank| uneven.outputs(LinearRole::Qkv, &[36, 12, 12], rank);
        assert_eq!((rank(0), rank(1)), (vec![0..12, 0..4, 0..4], vec![12..36, 4..12, 4..12]));
        assert_eq!((uneven.projected(0), uneven.projected(1), uneven.widest), (20, 40, 24));
        assert_eq!(uneven.inputs(LinearRole::AttentionOutput, 36, 1), 12..36);
        assert_eq!((uneven.columns(&(36..48), 0), uneven.columns(&(36..48), 1)), (12..16, 24..32));
    }

    #[test]
    fn what_cannot_be_divided_is_refused_by_name() {
        for (heads, kv_heads, ranks) in [(6, 2, 4), (12, 3, 4)] {
            let error = Plan::new(&config(heads, kv_heads), ranks).expect_err("refused").to_string();
            assert!(error.contains("heads") && error.contains("not divisible"), "{error}");
        }
        let odd = DecoderConfig { intermediate_size: 45, ..config(8, 8) };
        assert!(Plan::new(&odd, 2).expect_err("refused").to_string().contains("45 features"));
        let whole = DecoderConfig { query_key_norms: Some(QueryKeyNorms::Whole), ..config(8, 8) };
        assert!(Plan::new(&whole, 2).expect_err("refused").to_string().contains("normalised over all heads"));
    }
}
