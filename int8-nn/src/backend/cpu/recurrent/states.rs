//! The recurrent states of all blocks and sequences.

use std::sync::Arc;

use crate::Error;
use crate::backend::RecurrentLayer;
use crate::backend::cpu::Rows;

/// Convolution windows and states, by layer and sequence. They take memory while their sequence holds tokens.
#[derive(Debug, Default)]
pub(in crate::backend::cpu) struct States {
    layers: Vec<Option<LayerStates>>,
}

#[derive(Debug)]
struct LayerStates {
    spec: Arc<RecurrentLayer>,
    /// One for each sequence.
    windows: Vec<Buffers>,
    states: Vec<Buffers>,
}

/// The values of one sequence after its last forward and after the one before: a forward that fails in a later block can be
/// repeated.
#[derive(Debug, Default, Clone)]
struct Buffers {
    both: [Buffer; 2],
}

/// Values after so many tokens; empty after none.
#[derive(Debug, Default, Clone)]
struct Buffer {
    tokens: usize,
    values: Vec<f32>,
}

impl Buffers {
    /// The values before a segment (zeros before the first token), and those after it, to be written.
    fn advance(&mut self, segment: &Rows, size: usize) -> Result<(&[f32], &mut [f32]), Error> {
        let Rows { position, rows, sequence, .. } = *segment;
        let [first, second] = &mut self.both;
        // Both may lie at one position after a forward that was repeated: they are equal then.
        let (from, to) = if first.tokens == position { (first, second) } else { (second, first) };
        if position == 0 {
            from.tokens = 0;
            from.values.clear();
            from.values.resize(size, 0.0);
        } else if from.tokens != position {
            return Err(Error::Input(format!(
                "the recurrent state of sequence {sequence} is not that of its first {position} tokens; clear the sequence"
            )));
        }
        to.tokens = position + rows;
        to.values.resize(size, 0.0);
        Ok((&from.values, &mut to.values))
    }

    /// A copy of the values after `tokens` tokens, if they are there.
    fn at(&self, tokens: usize) -> Option<Self> {
        let held = self.both.iter().find(|buffer| buffer.tokens == tokens)?;
        Some(Self { both: [held.clone(), Buffer::default()] })
    }

    fn bytes(&self) -> usize {
        self.both.iter().map(|buffer| buffer.values.len() * size_of::<f32>()).sum()
    }
}

impl States {
    pub(in crate::backend::cpu) fn new(
        layers: impl Iterator<Item = Option<Arc<RecurrentLayer>>>,
        sequences: usize,
    ) -> Self {
        let layer = |spec: Option<Arc<RecurrentLayer>>| {
            let buffers = vec![Buffers::default(); sequences];
            spec.map(|spec| LayerStates { spec, windows: buffers.clone(), states: buffers })
        };
        Self { layers: layers.map(layer).collect() }
    }

    /// The mixer of a layer.
    pub(super) fn layer(&self, layer: usize) -> Result<Arc<RecurrentLayer>, Error> {
        let found = self.layers.get(layer).and_then(Option::as_ref);
        found
            .map(|layer| layer.spec.clone())
            .ok_or_else(|| Error::Unsupported(format!("layer {layer} of this cache has no recurrent state")))
    }

    /// The inputs of the convolution before a segment, and those to be kept after it.
    pub(super) fn window(&mut self, layer: usize, segment: &Rows) -> Result<(&[f32], &mut [f32]), Error> {
        let layer = self.held(layer)?;
        let size = layer.spec.convolution.as_ref().map_or(0, |convolution| convolution.window());
        layer.windows[segment.sequence].advance(segment, size)
    }

    /// The state before a segment, and that after it, to be written.
    pub(super) fn state(&mut self, layer: usize, segment: &Rows) -> Result<(&[f32], &mut [f32]), Error> {
        let layer = self.held(layer)?;
        let size = layer.spec.recurrence.as_ref().map_or(0, |recurrence| recurrence.state());
        layer.states[segment.sequence].advance(segment, size)
    }

    fn held(&mut self, layer: usize) -> Result<&mut LayerStates, Error> {
        let found = self.layers.get_mut(layer).and_then(Option::as_mut);
        found.ok_or_else(|| Error::Unsupported(format!("layer {layer} of this cache has no recurrent state")))
    }

    /// Forgets a sequence.
    pub(in crate::backend::cpu) fn release(&mut self, sequence: usize) {
        for layer in self.layers.iter_mut().flatten() {
            layer.windows[sequence] = Buffers::default();
            layer.states[sequence] = Buffers::default();
        }
    }

    /// Makes `to` what `from` was after `tokens` tokens.
    ///
    /// # Errors
    /// [`Error::Input`] when `from` has moved on: a state cannot be taken back. Nothing has changed then.
    pub(in crate::backend::cpu) fn fork(
        &mut self,
        from: usize,
        to: usize,
        tokens: usize,
    ) -> Result<(), Error> {
        let layers = || self.layers.iter().flatten();
        // Of a layer without a convolution, or without a recurrence, nothing is held.
        let copy = |buffers: &Buffers, held: bool| match held {
            true => buffers.at(tokens),
            false => Some(Buffers::default()),
        };
        let copies = layers().map(|layer| {
            let window = copy(&layer.windows[from], layer.spec.convolution.is_some())?;
            Some((window, copy(&layer.states[from], layer.spec.recurrence.is_some())?))
        });
        let Some(copies) = copies.collect::<Option<Vec<_>>>() else {
            return Err(Error::Input(format!(
                "sequence {to} cannot begin with {tokens} tokens of sequence {from}: a recurrent state cannot be taken back to \
                 them; fork at the end of a forward"
            )));
        };
        for (layer, (window, state)) in self.layers.iter_mut().flatten().zip(copies) {
            (layer.windows[to], layer.states[to]) = (window, state);
        }
        Ok(())
    }

    /// Bytes that are held now.
    pub(in crate::backend::cpu) fn bytes(&self) -> usize {
        let of = |layer: &LayerStates| {
            layer.windows.iter().chain(&layer.states).map(Buffers::bytes).sum::<usize>()
        };
        self.layers.iter().flatten().map(of).sum()
    }
}
