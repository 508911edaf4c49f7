//! Exact outlier columns beside int8 weights: found by running the model over a text, and written to a file of their own.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read};

use super::report::{Int8Layer, total_bytes};
use crate::backend::Backend;
use crate::checkpoint::{Checkpoint, CheckpointError, DType, TensorSpec, file_header};
use crate::{Error, Model};

/// Runs an int8 model over `ids`, window by window, and returns by weight the input features that held an outlier of the
/// model's rule.
///
/// # Errors
/// [`Error::Input`] for fewer than 2 tokens, or a window longer than the model's positions; [`Error::Unsupported`] on a backend
/// that does not count outliers by column.
pub fn outlier_columns<B: Backend>(
    model: &Model<B>,
    ids: &[u32],
    window: usize,
    mut progress: impl FnMut(usize, usize),
) -> Result<BTreeMap<String, Vec<usize>>, Error> {
    if ids.len() < 2 {
        return Err(Error::Input(
            "the calibration text has less than two tokens; give a longer one".to_owned(),
        ));
    }
    model.decoder().reset_statistics();
    let windows: Vec<&[u32]> = ids.chunks(window.max(2)).collect();
    for (done, window) in windows.iter().enumerate() {
        progress(done, windows.len());
        model.logits(window)?;
    }
    progress(windows.len(), windows.len());
    let mut found: BTreeMap<String, BTreeSet<usize>> = BTreeMap::new();
    for (_, layer) in model.decoder().statistics() {
        if layer.column_calls.len() != layer.inputs {
            return Err(Error::Unsupported(format!(
                "{} does not count outliers by column; calibrate on the CPU",
                model.decoder().backend().capabilities().device
            )));
        }
        let met = layer.column_calls.iter().enumerate().filter(|(_, calls)| **calls > 0);
        let met: Vec<usize> = met.map(|(column, _)| column).collect();
        // Concatenated weights share the input; the layer's name joins theirs.
        for part in layer.name.split('+') {
            found.entry(format!("{part}.weight")).or_default().extend(&met);
        }
    }
    let found = found.into_iter().filter(|(_, columns)| !columns.is_empty());
    Ok(found.map(|(name, columns)| (name, columns.into_iter().collect())).collect())
}

/// The file of exact columns to be written.
pub(super) struct OutlierFile<'a> {
    checkpoint: &'a Checkpoint,
    header: Vec<u8>,
    /// In file order.
    tensors: Vec<TensorSpec>,
    /// By layer: columns, and whether the weight is stored `[in, out]`.
    layers: BTreeMap<String, (Vec<usize>, bool)>,
}

const COLUMNS: &str = ".outlier_columns";
const WEIGHT: &str = ".outlier_weight";

impl<'a> OutlierFile<'a> {
    /// The columns of weights that become int8; `None` without any.
    pub(super) fn new(
        checkpoint: &'a Checkpoint,
        wanted: &BTreeMap<String, Vec<usize>>,
        int8: &[Int8Layer],
    ) -> Result<Option<Self>, Error> {
        let (mut tensors, mut layers) = (Vec::new(), BTreeMap::new());
        for layer in int8 {
            let (Some(columns), Some(module)) = (wanted.get(&layer.name), layer.name.strip_suffix(".weight"))
            else {
                continue;
            };
            let mut columns = columns.clone();
            columns.sort_unstable();
            columns.dedup();
            if let Some(column) = columns.last().filter(|column| **column >= layer.inputs) {
                let (name, inputs) = (&layer.name, layer.inputs);
                return Err(Error::Input(format!("{name}: there is no column {column}, only {inputs}")));
            }
            let dtype = match checkpoint.tensor(&layer.name)?.dtype() {
                DType::F64 => DType::F32,
                dtype => dtype,
            };
            let spec =
                |suffix: &str, dtype, shape| TensorSpec { name: format!("{module}{suffix}"), dtype, shape };
            tensors.push(spec(COLUMNS, DType::I32, vec![columns.len()]));
            tensors.push(spec(WEIGHT, dtype, vec![columns.len(), layer.outputs]));
            layers.insert(module.to_owned(), (columns, layer.transposed));
        }
        if layers.is_empty() {
            return Ok(None);
        }
        let header = file_header(&mut tensors)
            .ok_or_else(|| Error::Input("the exact columns are too large for a file".to_owned()))?;
        Ok(Some(Self { checkpoint, header, tensors, layers }))
    }

    /// Number of columns of all layers.
    pub(super) fn columns(&self) -> usize {
        self.layers.values().map(|(columns, _)| columns.len()).sum()
    }

    pub(super) fn bytes(&self) -> u64 {
        crate::convert::bytes(self.header.len()) + total_bytes(&self.tensors)
    }

    /// What a resumed run must have in common with the interrupted one.
    pub(super) fn fingerprint(&self) -> String {
        let lines = self.layers.iter().map(|(name, (columns, _))| format!("{name} {columns:?}\n"));
        lines.collect()
    }

    /// The file, tensor by tensor.
    pub(super) fn read(&self) -> impl Read + '_ {
        Reader { file: self, next: 0, bytes: self.header.clone(), position: 0 }
    }

    fn contents(&self, tensor: &TensorSpec) -> Result<Vec<u8>, CheckpointError> {
        if let Some((columns, _)) = tensor.name.strip_suffix(COLUMNS).and_then(|name| self.layers.get(name)) {
            // The i32 accumulator limits K far below 2³¹.
            let index = |column: &usize| i32::try_from(*column).unwrap_or(i32::MAX).to_le_bytes();
            return Ok(columns.iter().flat_map(index).collect());
        }
        let module = tensor.name.strip_suffix(WEIGHT).unwrap_or_default();
        let Some((columns, transposed)) = self.layers.get(module) else { return Ok(Vec::new()) };
        let weight = self.checkpoint.tensor(&format!("{module}.weight"))?;
        let size = weight.dtype().bits() / 8;
        let (rows, width) = weight.matrix_shape()?;
        let bytes = weight.bytes();
        let (outputs, stride) = if *transposed { (width, size) } else { (rows, width * size) };
        let first = |column: usize| if *transposed { column * width * size } else { column * size };
        let mut out = Vec::with_capacity(columns.len() * outputs * size);
        for column in columns {
            let elements = (0..outputs).map(|n| &bytes[first(*column) + n * stride..][..size]);
            match weight.dtype() {
                DType::F64 => elements.for_each(|element| {
                    let value = element.first_chunk().map_or(0.0, |bytes| f64::from_le_bytes(*bytes));
                    out.extend(crate::convert::f32_from(value).to_le_bytes());
                }),
                _ => elements.for_each(|element| out.extend(element)),
            }
        }
        self.checkpoint.release(weight.name());
        Ok(out)
    }
}

struct Reader<'a> {
    file: &'a OutlierFile<'a>,
    /// The tensor after those in `bytes`.
    next: usize,
    bytes: Vec<u8>,
    position: usize,
}

impl Read for Reader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.position == self.bytes.len() {
            let Some(tensor) = self.file.tensors.get(self.next) else { return Ok(0) };
            self.bytes = self.file.contents(tensor).map_err(io::Error::other)?;
            (self.next, self.position) = (self.next + 1, 0);
        }
        let rest = &self.bytes[self.position..];
        let length = rest.len().min(buffer.len());
        buffer[..length].copy_from_slice(&rest[..length]);
        self.position += length;
        Ok(length)
    }
}
