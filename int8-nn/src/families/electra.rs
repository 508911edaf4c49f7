//! ELECTRA (Clark et al., 2020): BERT behind an embedding that may be narrower, which a linear layer widens after its norm.

use super::{EncoderFamily, EncoderNames, bert};
use crate::Error;
use crate::config::{DecoderConfig, EncoderConfig, RawConfig};

pub(crate) const FAMILY: EncoderFamily = EncoderFamily { model_types: &["electra"], config, names };

fn config(raw: &RawConfig) -> Result<EncoderConfig, Error> {
    let bert = bert::config(&raw.with_defaults(&[
        ("vocab_size", 30522.into()),
        ("hidden_size", 256.into()),
        ("num_hidden_layers", 12.into()),
        ("num_attention_heads", 4.into()),
        ("intermediate_size", 1024.into()),
        ("max_position_embeddings", 512.into()),
    ]))?;
    let embedding_size = raw.size_or("embedding_size", 128)?;
    Ok(EncoderConfig { network: DecoderConfig { family: "electra", embedding_size, ..bert.network }, ..bert })
}

fn names(config: &EncoderConfig) -> EncoderNames {
    let narrow = config.network.embedding_size != config.network.hidden_size;
    EncoderNames {
        roots: &["", "electra."],
        project_in: narrow.then_some("embeddings_project"),
        ..bert::names(config)
    }
}
