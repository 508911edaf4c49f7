//! Which outputs and which input features of a layer a rank has.

use std::ops::Range;

use crate::Error;
use crate::backend::AttentionSpec;
use crate::config::{DecoderConfig, QueryKeyNorms};
use crate::precision::{LinearRole, Site};

/// How the linear layers of a model are shared out among `ranks` ranks: heads of attention, features of the MLP, and the
/// vocabulary. A key and value head that several ranks need, because there are fewer of them than ranks, each of these has.
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
    /// [`Error::Unsupported`] for a model that cannot be shared out evenly.
    pub(super) fn new(config: &DecoderConfig, ranks: usize) -> Result<Self, Error> {
        let DecoderConfig { heads, kv_heads, head_size, family, .. } = *config;
        let refused = |why: String| {
            Err(Error::Unsupported(format!(
                "this {family} model on {ranks} ranks: {why}; name another number of devices"
            )))
        };
        if !heads.is_multiple_of(ranks)
            || (!kv_heads.is_multiple_of(ranks) && !ranks.is_multiple_of(kv_heads))
        {
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
        let widest = widest.max(heads * head_size) / ranks;
        let (hidden, vocabulary) = (config.hidden_size, config.vocab_size);
        Ok(Self { ranks, heads, kv_heads, head_size, hidden, vocabulary, widest })
    }

    /// For tests of one layer that is shared out by its input features.
    #[cfg(test)]
    pub(super) fn of_inputs(ranks: usize, inputs: usize, outputs: usize) -> Self {
        let widest = inputs / ranks;
        Self { ranks, heads: ranks, kv_heads: ranks, head_size: 1, hidden: outputs, vocabulary: 1, widest }
    }

    /// Key and value heads of a rank.
    fn local_kv_heads(&self) -> usize {
        (self.kv_heads / self.ranks).max(1)
    }

    /// The outputs of a rank in each of the sections of a layer: queries, keys and values, or gates and values, or all.
    pub(super) fn outputs(&self, role: LinearRole, sections: &[usize], rank: usize) -> Vec<Range<usize>> {
        let share = |(index, outputs): (usize, &usize)| {
            if role == LinearRole::Qkv && index > 0 {
                let heads = self.local_kv_heads();
                let first = rank * self.kv_heads / self.ranks;
                first * self.head_size..(first + heads) * self.head_size
            } else {
                self.share(*outputs, rank)
            }
        };
        sections.iter().enumerate().map(share).collect()
    }

    /// The share of a rank in `count` things.
    pub(super) fn share(&self, count: usize, rank: usize) -> Range<usize> {
        rank * count / self.ranks..(rank + 1) * count / self.ranks
    }

    /// Columns of a rank's queries, keys and values.
    pub(super) fn projected(&self) -> usize {
        (self.heads / self.ranks + 2 * self.local_kv_heads()) * self.head_size
    }

    /// A rank's part of these columns of all queries, keys and values: of all queries, of all keys or of all values.
    pub(super) fn columns(&self, columns: &Range<usize>) -> Range<usize> {
        let (queries, keys) = (self.heads * self.head_size, self.kv_heads * self.head_size);
        let own_queries = self.heads / self.ranks * self.head_size;
        let own_keys = self.local_kv_heads() * self.head_size;
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
        let heads = self.share(spec.heads, rank);
        let mut own = spec.clone();
        (own.heads, own.kv_heads) = (heads.len(), self.local_kv_heads());
        own.part = Some((heads.start, spec.heads));
        for layer in &mut own.layers {
            (layer.shape.heads, layer.shape.kv_heads) = (own.heads, own.kv_heads);
            layer.sinks = layer.sinks.as_ref().map(|sinks| sinks[heads.clone()].to_vec());
        }
        own
    }
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
        assert_eq!((plan.projected(), plan.widest), (16, 12));
        assert_eq!(plan.columns(&(32..48)), 8..12);
        assert_eq!(plan.outputs(LinearRole::Up, &[48, 48], 1), [12..24, 12..24]);
        let vocabulary: Vec<_> = (0..4).map(|rank| plan.share(101, rank)).collect();
        assert_eq!(vocabulary, [0..25, 25..50, 50..75, 75..101]);

        let shared = Plan::new(&config(8, 2), 4).expect("two ranks share a head");
        let keys: Vec<_> =
            (0..4).map(|rank| shared.outputs(LinearRole::Qkv, &[32, 8, 8], rank)[1].clone()).collect();
        assert_eq!(keys, [0..4, 0..4, 4..8, 4..8]);
        assert_eq!(shared.projected(), 16);
    }

    #[test]
    fn what_cannot_be_divided_is_refused_by_name() {
        for (heads, kv_heads, ranks) in [(6, 6, 4), (12, 3, 2)] {
            let error = Plan::new(&config(heads, kv_heads), ranks).expect_err("refused").to_string();
            assert!(error.contains("heads") && error.contains("not divisible"), "{error}");
        }
        let odd = DecoderConfig { intermediate_size: 45, ..config(8, 8) };
        assert!(Plan::new(&odd, 2).expect_err("refused").to_string().contains("45 features"));
        let whole = DecoderConfig { query_key_norms: Some(QueryKeyNorms::Whole), ..config(8, 8) };
        assert!(Plan::new(&whole, 2).expect_err("refused").to_string().contains("normalised over all heads"));
    }
}
