//! Attention whose heads of values are not as wide as those of keys.

use super::Loader;
use crate::Error;
use crate::backend::{Backend, ColumnCopy, Input, NormSpec, Output};
use crate::config::{DecoderConfig, HeadShape, NormKind, ValueHeads};
use crate::convert;
use crate::scratch::Scratch;

/// Queries, keys and values of one linear layer, copied to heads of equal width.
#[derive(Debug)]
pub(super) struct Copied<B: Backend> {
    pub(super) linear: B::Linear,
    join: Vec<ColumnCopy>,
    output: HeadOutput<B>,
}

/// From the heads' output to the input of the output projection.
#[derive(Debug)]
enum HeadOutput<B: Backend> {
    /// The columns of the values.
    Narrow(Vec<ColumnCopy>),
    /// The first half less so many times the second, and the norm of each head.
    Difference { factor: f32, norm: B::Norm, columns: usize },
}

/// Columns of the queries, of the keys and of the values that the linear layer gives.
pub(super) fn columns(values: ValueHeads, shape: HeadShape) -> [usize; 3] {
    let HeadShape { heads, kv_heads, head_size } = shape;
    match values {
        ValueHeads::Narrow(width) => [heads * head_size, kv_heads * head_size, kv_heads * width],
        ValueHeads::Differential => [heads, kv_heads, kv_heads].map(|heads| heads * head_size / 2),
    }
}

/// Columns of the input of the output projection.
pub(super) fn context(values: ValueHeads, shape: HeadShape) -> usize {
    match values {
        ValueHeads::Narrow(width) => shape.heads * width,
        ValueHeads::Differential => shape.heads * shape.head_size / 2,
    }
}

impl<B: Backend> Copied<B> {
    pub(super) fn load(
        loader: &Loader<'_, B>,
        linear: B::Linear,
        layer: usize,
        values: ValueHeads,
        lambdas: Option<&[[String; 2]; 2]>,
    ) -> Result<Self, Error> {
        let shape = loader.config.shape(layer);
        let output = match values {
            ValueHeads::Narrow(width) => {
                let copy = |head| ColumnCopy {
                    source: 0,
                    from: head * shape.head_size,
                    to: head * width,
                    count: width,
                };
                HeadOutput::Narrow((0..shape.heads).map(copy).collect())
            }
            ValueHeads::Differential => difference(loader, layer, shape, lambdas)?,
        };
        Ok(Self { linear, join: join(values, shape), output })
    }

    /// `scratch.qkv`
    pub(super) fn project(
        &self,
        backend: &B,
        input: Input<'_, B>,
        scratch: &mut Scratch<B>,
    ) -> Result<(), Error> {
        let Scratch { raw, qkv, .. } = scratch;
        backend.project(input, &mut [(&self.linear, Output::Store(&mut *raw))])?;
        backend.copy_columns(&[raw], &self.join, qkv)
    }

    /// The input of the output projection.
    pub(super) fn output<'a>(
        &self,
        backend: &B,
        context: &B::Activations,
        out: &'a mut B::Activations,
    ) -> Result<&'a B::Activations, Error> {
        match &self.output {
            HeadOutput::Narrow(copies) => backend.copy_columns(&[context], copies, out)?,
            HeadOutput::Difference { factor, norm, columns } => {
                backend.subtract_half(context, *factor, out)?;
                backend.normalize_columns(out, 0..*columns, norm)?;
            }
        }
        Ok(out)
    }
}

fn join(values: ValueHeads, shape: HeadShape) -> Vec<ColumnCopy> {
    let HeadShape { heads, kv_heads, head_size } = shape;
    let [queries, keys, _] = columns(values, shape);
    let (key, value) = match values {
        ValueHeads::Narrow(width) => (head_size, width),
        ValueHeads::Differential => (head_size / 2, head_size / 2),
    };
    let mut copies = Vec::new();
    // The keys' heads follow the queries'.
    for head in 0..heads + kv_heads {
        copies.push(ColumnCopy { source: 0, from: head * key, to: head * head_size, count: key });
    }
    for head in 0..kv_heads {
        let to = (heads + kv_heads + head) * head_size;
        let from = |head: usize| queries + keys + head * value;
        let mut copy = |head: usize, to: usize| {
            copies.push(ColumnCopy { source: 0, from: from(head), to, count: value })
        };
        match values {
            ValueHeads::Narrow(_) => copy(head, to),
            ValueHeads::Differential => {
                let half = kv_heads / 2;
                copy(head % half, to);
                copy(half + head % half, to + value);
            }
        }
    }
    copies
}

/// `λ = e^(q₁·k₁) − e^(q₂·k₂) + λ₀`, `λ₀ = 0.8 − 0.6·e^(−0.3·layer)`; the norm's results are multiplied by `1 − λ₀`.
fn difference<B: Backend>(
    loader: &Loader<'_, B>,
    layer: usize,
    shape: HeadShape,
    lambdas: Option<&[[String; 2]; 2]>,
) -> Result<HeadOutput<B>, Error> {
    let DecoderConfig { norm_eps, .. } = *loader.config;
    let Some([queries, keys]) = lambdas else {
        return Err(Error::Unsupported("differential attention without its factors".to_owned()));
    };
    let size = shape.head_size / 2;
    let mut powers = [0.0; 2];
    for ((power, query), key) in powers.iter_mut().zip(queries).zip(keys) {
        let (query, key) = (loader.vector(query, size)?, loader.vector(key, size)?);
        let sum: f64 = query.iter().zip(&key).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum();
        *power = sum.exp();
    }
    let initial = 0.8 - 0.6 * (-0.3 * convert::f64_from(layer)).exp();
    let gain = vec![convert::f32_from(1.0 - initial); shape.head_size];
    let norm = NormSpec { kind: NormKind::RmsNorm, eps: norm_eps, gain, bias: None };
    Ok(HeadOutput::Difference {
        factor: convert::f32_from(powers[0] - powers[1] + initial),
        norm: loader.backend.norm(&norm)?,
        columns: shape.heads * shape.head_size / 2,
    })
}
