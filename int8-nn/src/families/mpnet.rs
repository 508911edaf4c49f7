//! MPNet (Song et al., 2020): a RoBERTa whose blocks share a bias by distance like T5's, without token types. The sentence
//! models all-mpnet-base and multi-qa-mpnet are of this family.

use super::{EncoderFamily, EncoderNames, LayerNames, MlpNames, bert};
use crate::Error;
use crate::config::{Buckets, DecoderConfig, EncoderConfig, Positions, RawConfig};
use crate::weights::Part;

pub(crate) const FAMILY: EncoderFamily = EncoderFamily { model_types: &["mpnet"], config, names };

fn config(raw: &RawConfig) -> Result<EncoderConfig, Error> {
    let roberta = bert::config(raw)?;
    let positions = Positions::Relative(Buckets::read(raw)?);
    let network = DecoderConfig { family: "mpnet", positions, ..roberta.network };
    Ok(EncoderConfig { network, token_types: 0, ..roberta })
}

fn names(config: &EncoderConfig) -> EncoderNames {
    EncoderNames {
        roots: &["", "mpnet."],
        token_type_embedding: None,
        distance_bias: Some("encoder.relative_attention_bias"),
        layer: Box::new(|layer| {
            let name = |part: &str| format!("encoder.layer.{layer}.{part}");
            LayerNames {
                attention_norm: Some(name("attention.LayerNorm")),
                mlp_norm: Some(name("output.LayerNorm")),
                branch_norms: None,
                query_key_norms: None,
                qkv: ["q", "k", "v"].map(|part| Part::new(&name(&format!("attention.attn.{part}")))).into(),
                attention_output: Part::new(&name("attention.attn.o")),
                mlp: MlpNames::Dense {
                    up: vec![Part::new(&name("intermediate.dense"))],
                    down: Part::new(&name("output.dense")),
                },
            }
        }),
        ..bert::names(config)
    }
}
