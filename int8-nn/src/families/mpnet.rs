//! MPNet (Song et al., 2020): a RoBERTa whose blocks share a relative position bias like T5's, without token types. The sentence
//! models all-mpnet-base and multi-qa-mpnet are of this family.

use super::{EncoderFamily, EncoderNames, LayerNames, Module, bert};
use crate::Error;
use crate::config::{Buckets, DecoderConfig, EncoderConfig, Positions, RawConfig};

pub(crate) const FAMILY: EncoderFamily = EncoderFamily { model_types: &["mpnet"], config, names };

fn config(raw: &RawConfig) -> Result<EncoderConfig, Error> {
    let roberta = bert::config(raw)?;
    let positions = Positions::Relative(Buckets::read(raw)?);
    let network = DecoderConfig { family: "mpnet", positions, ..roberta.network };
    Ok(EncoderConfig { network, token_types: 0, ..roberta })
}

fn names(_: &EncoderConfig) -> EncoderNames {
    let layer = |layer| {
        let block = Module::new(format!("encoder.layer.{layer}"));
        LayerNames::new(
            block.parts(["attention.attn.q", "attention.attn.k", "attention.attn.v"]),
            block.part("attention.attn.o"),
            block.mlp(["intermediate.dense"], "output.dense"),
        )
        .norms(block.name("attention.LayerNorm"), block.name("output.LayerNorm"))
    };
    EncoderNames {
        distance_bias: Some("encoder.relative_attention_bias"),
        ..EncoderNames::new(&["", "mpnet."], layer)
    }
}
