//! CodeGen (Nijkamp et al., 2022): GPT-J with queries, values and keys fused in four groups.

use super::{Family, LayerNames, TensorNames, deinterleaved_order, gpt2, gptj};
use crate::Error;
use crate::config::{DecoderConfig, RawConfig};
use crate::weights::{Part, Rows};

pub(crate) const FAMILY: Family = Family { model_types: &["codegen"], config, names };

/// Groups of the fused projection, each of queries, values and keys.
const GROUPS: usize = 4;

fn config(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    let config = DecoderConfig { family: "codegen", ..gptj::base(raw)? };
    if !config.heads.is_multiple_of(GROUPS) {
        let problem = format!("is {}; this family's must be a multiple of {GROUPS}", config.heads);
        return Err(raw.problem("n_head", problem));
    }
    config.validate(raw)
}

fn names(config: &DecoderConfig) -> TensorNames {
    let config = config.clone();
    let layer = gpt2::tensors(move |block| {
        let fused = block.name("attn.qkv_proj");
        let part = |place, ordered| Part::new(&fused).rows(rows(&config, place, ordered));
        LayerNames::new(
            vec![part(0, true), part(2, true), part(1, false)],
            block.part("attn.out_proj"),
            block.mlp(["mlp.fc_in"], "mlp.fc_out"),
        )
        .shared_norm(block.name("ln_1"))
    });
    TensorNames { position_embedding: None, ..layer }
}

/// The rows of all heads at this place of each group; with the rotary pairs reordered where they are rotated.
fn rows(config: &DecoderConfig, place: usize, rotated: bool) -> Rows {
    let (heads, size) = (config.heads, config.head_size);
    let group = heads / GROUPS;
    let order = if rotated { deinterleaved_order(config) } else { (0..size).collect() };
    let first = |head: usize| (head / group * 3 * group + place * group + head % group) * size;
    let rows = (0..heads).flat_map(|head| order.iter().map(move |dim| first(head) + dim)).collect();
    Rows::Gather { rows, of: 3 * heads * size }
}
