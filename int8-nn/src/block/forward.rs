//! A block's forward pass.

use super::{Block, Context, Mlp, Projection};
use crate::Error;
use crate::backend::{Backend, Input, Output};
use crate::config::{AttentionGate, BlockKind, Branch, DecoderConfig};
use crate::scratch::Scratch;

impl<B: Backend> Block<B> {
    /// Takes the residual stream `x [rows, hidden_size]` through the block, with `layer` of both caches.
    pub(crate) fn forward(
        &self,
        at: &Context<'_, B>,
        (layer, cache): (usize, &mut B::Cache),
        x: &mut B::Activations,
        scratch: &mut Scratch<B>,
    ) -> Result<(), Error> {
        scratch.select(self.widths);
        if let Some(mixing) = &self.mixing {
            return self.with_streams(mixing, at, (layer, cache), x, scratch);
        }
        match at.config.block {
            BlockKind::PreNorm => self.pre_norm(at, (layer, cache), x, scratch),
            BlockKind::Parallel => self.parallel(at, (layer, cache), x, scratch),
            BlockKind::PostNorm => self.post_norm(at, (layer, cache), x, scratch),
            BlockKind::NormedResidual => self.normed_residual(at, (layer, cache), x, scratch),
        }?;
        self.finish(at, x, scratch)
    }

    fn pre_norm(
        &self,
        at: &Context<'_, B>,
        (layer, cache): (usize, &mut B::Cache),
        x: &mut B::Activations,
        scratch: &mut Scratch<B>,
    ) -> Result<(), Error> {
        let norm = self.attention_norm.as_ref();
        let norms = [norm, self.recurrent_norm.as_ref().or(norm)];
        self.mixers(at, (layer, cache), norms, x, scratch)?;
        if let Some(cross) = &self.cross {
            self.cross_attention(at, layer, Some(&cross.norm), x, scratch)?;
        }
        self.mlp(at, self.mlp_norm.as_ref(), x, scratch)
    }

    /// Adds attention and what the recurrent mixer makes of `x`, each behind its norm, to `x`.
    fn mixers(
        &self,
        at: &Context<'_, B>,
        (layer, cache): (usize, &mut B::Cache),
        [norm, recurrent_norm]: [Option<&B::Norm>; 2],
        x: &mut B::Activations,
        scratch: &mut Scratch<B>,
    ) -> Result<(), Error> {
        let backend = at.backend;
        // Both projections read the residual stream before either mixer adds to it.
        if let Some(recurrent) = &self.recurrent {
            let mut of_recurrent = scratch.recurrent.take();
            let projected = match &self.shared {
                None => recurrent.project(backend, input(x, recurrent_norm), of_recurrent.as_mut()),
                Some(shared) => shared.forward(at, (layer, cache), x, scratch).and_then(|sum| {
                    recurrent.project(backend, input(sum, recurrent_norm), of_recurrent.as_mut())
                }),
            };
            scratch.recurrent = of_recurrent;
            projected?;
        }
        if let Some(linear) = &self.attention_output {
            self.project(backend, input(x, norm), scratch)?;
            self.attention(at, (layer, cache), scratch)?;
            let Scratch { context, branch, latent, output, .. } = &mut *scratch;
            let attended = match (&self.projection, latent) {
                (Projection::Copied(copied), _) => copied.output(backend, context, output)?,
                (Projection::Latent(projection), Some(scratch)) => {
                    projection.values(backend, context, scratch)?
                }
                _ => &*context,
            };
            let attended = input(attended, self.inner_norms.as_ref().map(|[norm, _]| norm));
            self.mixed(at, Branch::Attention, (attended, linear), x, branch)?;
        }
        let Scratch { branch, recurrent: of_recurrent, .. } = &mut *scratch;
        if let (Some(recurrent), Some(scratch)) = (&self.recurrent, of_recurrent) {
            recurrent.mix(at, (layer, cache), scratch)?;
            let mixed = Input::Plain(&scratch.mixed);
            self.mixed(at, Branch::Recurrent, (mixed, recurrent.output()), x, branch)?;
        }
        Ok(())
    }

    /// Adds the output projection of a mixer to the residual stream.
    fn mixed(
        &self,
        at: &Context<'_, B>,
        kind: Branch,
        (mixed, output): (Input<'_, B>, &B::Linear),
        x: &mut B::Activations,
        branch: &mut B::Activations,
    ) -> Result<(), Error> {
        if !self.adds_branch(at.config, kind) {
            return at.backend.project(mixed, &mut [(output, Output::Add(x))]);
        }
        at.backend.project(mixed, &mut [(output, Output::Store(&mut *branch))])?;
        add_branch(at, kind, x, branch, self.norm_of_branch(kind))
    }

    fn parallel(
        &self,
        at: &Context<'_, B>,
        (layer, cache): (usize, &mut B::Cache),
        x: &mut B::Activations,
        scratch: &mut Scratch<B>,
    ) -> Result<(), Error> {
        let backend = at.backend;
        let Projection::Direct(qkv) = &self.projection else {
            return Err(Error::Unsupported("latent attention in parallel blocks".to_owned()));
        };
        let attention_input = input(x, self.attention_norm.as_ref());
        let Scratch { qkv: projected, up, branch, .. } = &mut *scratch;
        let target = (qkv, Output::Store(projected));
        match &self.mlp {
            Mlp::Dense { up: expansion, .. } if self.mlp_norm.is_none() => {
                backend.project(attention_input, &mut [target, (expansion, Output::Store(up))])?;
            }
            mlp => {
                backend.project(attention_input, &mut [target])?;
                let mlp_input = input(x, self.mlp_norm.as_ref().or(self.attention_norm.as_ref()));
                match mlp {
                    Mlp::Experts(experts) => backend.experts(mlp_input, experts, branch)?,
                    Mlp::Dense { up: expansion, .. } => {
                        backend.project(mlp_input, &mut [(expansion, Output::Store(up))])?;
                    }
                    Mlp::None => {}
                }
            }
        }
        self.attention(at, (layer, cache), scratch)?;
        self.attended(backend, &scratch.context, Output::Add(x))?;
        match &self.mlp {
            Mlp::Experts(_) => backend.add(x, &scratch.branch, None),
            Mlp::Dense { down, .. } => {
                backend.project(expanded(at.config, &scratch.up), &mut [(down, Output::Add(x))])
            }
            Mlp::None => Ok(()),
        }
    }

    fn post_norm(
        &self,
        at: &Context<'_, B>,
        (layer, cache): (usize, &mut B::Cache),
        x: &mut B::Activations,
        scratch: &mut Scratch<B>,
    ) -> Result<(), Error> {
        let backend = at.backend;
        let normalize = |x: &mut B::Activations, norm: &Option<B::Norm>| match norm {
            Some(norm) => backend.normalize(x, norm),
            None => Ok(()),
        };
        self.project(backend, Input::Plain(x), scratch)?;
        self.attention(at, (layer, cache), scratch)?;
        self.attended(backend, &scratch.context, Output::Add(x))?;
        normalize(x, &self.attention_norm)?;
        if let Some(cross) = &self.cross {
            self.cross_attention(at, layer, None, x, scratch)?;
            backend.normalize(x, &cross.norm)?;
        }
        self.mlp(at, None, x, scratch)?;
        normalize(x, &self.mlp_norm)
    }

    /// `x += cross_attention(norm(x))`; nothing without an encoder's output.
    fn cross_attention(
        &self,
        at: &Context<'_, B>,
        layer: usize,
        norm: Option<&B::Norm>,
        x: &mut B::Activations,
        scratch: &mut Scratch<B>,
    ) -> Result<(), Error> {
        let (backend, Scratch { context, query, .. }) = (at.backend, scratch);
        let (Some(cross), Some(cross_kv)) = (&self.cross, at.cross_kv) else { return Ok(()) };
        backend.project(input(x, norm), &mut [(&cross.query, Output::Store(&mut *query))])?;
        backend.cross_attention(at.batch, layer, query, cross_kv, context)?;
        backend.project(Input::Plain(context), &mut [(&cross.output, Output::Add(x))])
    }

    fn normed_residual(
        &self,
        at: &Context<'_, B>,
        (layer, cache): (usize, &mut B::Cache),
        x: &mut B::Activations,
        scratch: &mut Scratch<B>,
    ) -> Result<(), Error> {
        let backend = at.backend;
        if let Some(norm) = &self.attention_norm {
            backend.normalize(x, norm)?;
        }
        // `x` is normalised already.
        self.mixers(at, (layer, cache), [None; 2], x, scratch)?;
        if let Some(norm) = &self.mlp_norm {
            backend.normalize(x, norm)?;
        }
        self.mlp(at, None, x, scratch)
    }

    /// `out (+)= output(context)`
    pub(super) fn attended(
        &self,
        backend: &B,
        context: &B::Activations,
        out: Output<'_, B>,
    ) -> Result<(), Error> {
        let Some(output) = &self.attention_output else {
            return Err(Error::Unsupported("blocks without attention that are not pre-norm".to_owned()));
        };
        backend.project(Input::Plain(context), &mut [(output, out)])
    }

    /// `scratch.qkv`, from the input of attention.
    pub(super) fn project(
        &self,
        backend: &B,
        input: Input<'_, B>,
        scratch: &mut Scratch<B>,
    ) -> Result<(), Error> {
        if let Projection::Copied(copied) = &self.projection {
            return copied.project(backend, input, scratch);
        }
        let Scratch { qkv, latent, gate, .. } = scratch;
        match (&self.projection, latent) {
            (Projection::Direct(linear), _) => {
                let target = (linear, Output::Store(qkv));
                match &self.gate {
                    None => backend.project(input, &mut [target]),
                    Some(linear) => backend.project(input, &mut [target, (linear, Output::Store(gate))]),
                }
            }
            (Projection::Latent(projection), Some(scratch)) => {
                projection.project(backend, input, scratch, qkv)
            }
            (Projection::Latent(_) | Projection::Copied(_) | Projection::None, _) => {
                Err(Error::Unsupported("attention without sizes".to_owned()))
            }
        }
    }

    /// `scratch.context = attention(scratch.qkv)`, without the output projection.
    pub(super) fn attention(
        &self,
        at: &Context<'_, B>,
        (layer, cache): (usize, &mut B::Cache),
        scratch: &mut Scratch<B>,
    ) -> Result<(), Error> {
        let Scratch { qkv, context, gate, latent, .. } = scratch;
        for (columns, norm) in &self.query_key_norms {
            at.backend.normalize_columns(qkv, columns.clone(), norm)?;
        }
        if let Some(limit) = at.config.qkv_limit {
            at.backend.clamp(qkv, limit)?;
        }
        if let (Projection::Latent(projection), Some(scratch)) = (&self.projection, latent) {
            projection.select_keys(at.backend, at.batch, (layer, cache), scratch)?;
        }
        at.backend.attention(at.batch, layer, qkv, cache, context)?;
        if let Some(factor) = at.config.value_scale {
            at.backend.scale(context, Some(factor), None)?;
        }
        match at.config.attention_gate {
            Some(AttentionGate { function, by_head }) => {
                at.backend.gate_heads(context, gate, function, if by_head { self.gate_run } else { 1 })
            }
            None => Ok(()),
        }
    }

    /// `x += mlp(norm(x))`, or of experts.
    pub(super) fn mlp(
        &self,
        at: &Context<'_, B>,
        norm: Option<&B::Norm>,
        x: &mut B::Activations,
        scratch: &mut Scratch<B>,
    ) -> Result<(), Error> {
        let Scratch { up, inner, branch, beside, .. } = scratch;
        let backend = at.backend;
        let branch_norm = self.branch_norms[1].as_ref();
        match &self.mlp {
            Mlp::None => return Ok(()),
            Mlp::Experts(experts) => backend.experts(input(x, norm), experts, branch)?,
            Mlp::Dense { up: expansion, down } => {
                if let Some(experts) = &self.shortcut {
                    backend.experts(input(x, norm), experts, beside)?;
                }
                backend.project(input(x, norm), &mut [(expansion, Output::Store(&mut *up))])?;
                if let Some(factors) = at.config.branch_factors {
                    backend.scale_columns(up, 0..at.config.intermediate_size, factors.gate)?;
                }
                if let Some((width, multiplier)) = self.sparse_gates {
                    backend.sparsify(up, width, multiplier)?;
                }
                let adds = self.adds_branch(at.config, Branch::Mlp);
                let out = if adds { Output::Store(&mut *branch) } else { Output::Add(&mut *x) };
                let expanded = match (&self.inner_norms, self.activation) {
                    _ if at.config.clamped_gate.is_some() => {
                        if let Some(gate) = at.config.clamped_gate {
                            backend.clamp_gate(up, gate, inner)?;
                        }
                        Input::Plain(inner)
                    }
                    (Some([_, norm]), _) => {
                        backend.activate(up, at.config.activation, at.config.gated_mlp, inner)?;
                        Input::Normed(inner, norm)
                    }
                    (None, Some(function)) => {
                        backend.xielu(up, function)?;
                        Input::Plain(up)
                    }
                    (None, None) => expanded(at.config, up),
                };
                backend.project(expanded, &mut [(down, out)])?;
                if !adds {
                    return Ok(());
                }
            }
        }
        if let Some(experts) = &self.beside {
            experts.add(backend, x, branch, beside)?;
        }
        add_branch(at, Branch::Mlp, x, branch, branch_norm)
    }

    /// The norm at the end of a branch.
    fn norm_of_branch(&self, kind: Branch) -> Option<&B::Norm> {
        let [of_mixers, of_mlp] = &self.branch_norms;
        match kind {
            Branch::Attention | Branch::Recurrent => of_mixers.as_ref(),
            Branch::Mlp => of_mlp.as_ref(),
        }
    }

    /// Whether something lies between the last projection of a branch and the residual addition.
    pub(super) fn adds_branch(&self, config: &DecoderConfig, kind: Branch) -> bool {
        self.norm_of_branch(kind).is_some()
            || config.branch_factor(kind).is_some()
            || config.residual_factor(kind).is_some()
    }
}

/// `x += norm(branch)`, or `x += branch`, with the factor of branches, which the gains of `norm` hold, and that of `x`.
fn add_branch<B: Backend>(
    at: &Context<'_, B>,
    kind: Branch,
    x: &mut B::Activations,
    branch: &mut B::Activations,
    norm: Option<&B::Norm>,
) -> Result<(), Error> {
    let factor = at.config.branch_factor(kind).filter(|_| norm.is_none());
    if factor.is_some() {
        at.backend.scale(branch, factor, None)?;
    }
    if let Some(factor) = at.config.residual_factor(kind) {
        at.backend.scale(x, Some(factor), None)?;
    }
    at.backend.add(x, branch, norm)
}

fn input<'a, B: Backend>(x: &'a B::Activations, norm: Option<&'a B::Norm>) -> Input<'a, B> {
    match norm {
        Some(norm) => Input::Normed(x, norm),
        None => Input::Plain(x),
    }
}

pub(crate) fn expanded<'a, B: Backend>(config: &DecoderConfig, up: &'a B::Activations) -> Input<'a, B> {
    if config.gated_mlp {
        Input::Gated(up, config.activation)
    } else {
        Input::Activated(up, config.activation)
    }
}
