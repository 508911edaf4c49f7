//! Multi-head latent attention: its sizes.

use super::RawConfig;
use crate::{Error, convert};

/// Multi-head latent attention (DeepSeek-AI, 2024): queries, and keys with values, are projected to latents, normalised, and
/// projected to the heads; a part of each key is rotated, which all heads share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LatentAttention {
    /// Width of the latent of queries; without it queries are projected directly.
    pub query_rank: Option<usize>,
    /// Width of the latent of keys and values.
    pub kv_rank: usize,
    /// Rotated dimensions of a head of queries or keys.
    pub rotated: usize,
    /// Its other dimensions.
    pub plain: usize,
    /// Width of a head of values.
    pub value: usize,
    /// The rotated dimensions are stored as pairs `(2i, 2i + 1)` and not `(i, i + rotated/2)`.
    pub interleaved: bool,
}

impl LatentAttention {
    /// Reads DeepSeek's keys.
    ///
    /// # Errors
    /// When a key is missing or no size.
    pub(crate) fn read(raw: &RawConfig, interleaved: bool) -> Result<Self, Error> {
        const QUERY_RANK: &str = "q_lora_rank";
        let query_rank = raw.get(QUERY_RANK).map(|_| raw.size(QUERY_RANK)).transpose()?;
        Ok(Self {
            query_rank,
            kv_rank: raw.size("kv_lora_rank")?,
            rotated: raw.size("qk_rope_head_dim")?,
            plain: raw.size("qk_nope_head_dim")?,
            value: raw.size("v_head_dim")?,
            interleaved,
        })
    }

    /// Width of a head of queries or keys.
    pub fn key(&self) -> usize {
        self.rotated + self.plain
    }

    /// Width of a head in the KV cache: the wider of key and value; the other is filled up with zeros.
    pub fn head_size(&self) -> usize {
        self.key().max(self.value)
    }

    /// The attention divisor: `key/m⁴` with `m = 0.1·mscale_all_dim·ln(factor) + 1` where positions are scaled and have that key.
    pub(crate) fn divisor(&self, raw: &RawConfig) -> Result<f64, Error> {
        let size = convert::f64_from(self.key());
        let key = if raw.get("rope_parameters").is_some() { "rope_parameters" } else { "rope_scaling" };
        let Some(parameters) = raw.get(key) else { return Ok(size) };
        let kind = parameters.get("rope_type").or_else(|| parameters.get("type"));
        let scaled = kind.and_then(serde_json::Value::as_str).is_some_and(|kind| kind != "default");
        let all = parameters.get("mscale_all_dim").filter(|all| !all.is_null() && all.as_f64() != Some(0.0));
        let Some(all) = all.filter(|_| scaled) else { return Ok(size) };
        let all = raw.positive(&format!("{key}.mscale_all_dim"), all)?;
        let factor = parameters.get("factor").unwrap_or(&serde_json::Value::Null);
        let factor = raw.positive(&format!("{key}.factor"), factor)?;
        let magnitude = if factor <= 1.0 { 1.0 } else { 0.1 * all * factor.ln() + 1.0 };
        Ok(size / magnitude.powi(4))
    }
}
