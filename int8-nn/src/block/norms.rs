//! Norms of queries, keys and values, and activations with learned numbers.

use super::{ColumnNorms, Loader};
use crate::Error;
use crate::backend::Backend;
use crate::config::{HeadShape, QueryKeyNorms, Xielu, softplus};

impl<B: Backend> Loader<'_, B> {
    /// The norms `names` of queries and of keys, with the columns they apply to. `order`: the stored place of each dimension of a
    /// head, where it is not its own.
    pub(super) fn query_key_norms(
        &self,
        names: &[String; 2],
        order: Option<&[usize]>,
        (shape, own_keys): (HeadShape, bool),
    ) -> Result<ColumnNorms<B>, Error> {
        let config = self.config;
        let size = shape.head_size;
        let (queries, keys) = (shape.queries(), if own_keys { shape.keys() } else { 0 });
        let mut norms = Vec::new();
        for (name, columns) in names.iter().zip([0..queries, queries..queries + keys]) {
            if columns.is_empty() {
                continue;
            }
            match config.query_key_norms {
                None => {}
                Some(QueryKeyNorms::PerHead) => norms.push((columns, self.norm_of(name, size)?)),
                Some(QueryKeyNorms::WithoutGains) => {
                    norms.push((columns, self.backend.norm(&self.spec(vec![1.0; size], None))?));
                }
                Some(QueryKeyNorms::Whole) => {
                    let width = columns.len();
                    norms.push((columns, self.norm_of(name, width)?));
                }
                Some(QueryKeyNorms::EachHead) => {
                    for (head, first) in columns.step_by(size).enumerate() {
                        let gain = self.head_gain(name, head, order)?;
                        norms.push((first..first + size, self.backend.norm(&self.spec(gain, None))?));
                    }
                }
            }
        }
        if config.value_norms && own_keys {
            let columns = queries + keys..queries + 2 * keys;
            norms.push((columns, self.backend.norm(&self.spec(vec![1.0; size], None))?));
        }
        Ok(norms)
    }

    /// The gain of one head: a row of `{name}.weight [heads, head_size]`, or `{name}.norms.{head}.weight`.
    fn head_gain(&self, name: &str, head: usize, order: Option<&[usize]>) -> Result<Vec<f32>, Error> {
        let size = self.config.head_size;
        let of_all = self.name(&format!("{name}.weight"));
        let stored = match self.checkpoint.get(&of_all) {
            Some(tensor) => {
                let mut row = vec![0.0; size];
                let (heads, width) = tensor.matrix_shape()?;
                if head >= heads || width != size {
                    let expected = format!("a row of {size} for each head");
                    return Err(tensor.shape_error(expected).into());
                }
                tensor.read_rows_f32(head..head + 1, &mut row)?;
                row
            }
            None => {
                let name = self.name(&format!("{name}.norms.{head}.weight"));
                self.checkpoint.tensor(&name)?.expect_shape(&[size])?.to_f32()?
            }
        };
        Ok(match order {
            None => stored,
            Some(order) => order.iter().map(|place| stored[*place]).collect(),
        })
    }

    /// The learned activation of the module `name`.
    pub(super) fn xielu(&self, name: &str) -> Result<Xielu, Error> {
        let number = |part: &str| Ok::<f32, Error>(self.vector(&format!("{name}.{part}"), 1)?[0]);
        let optional = |part: &str, default: f32| {
            let known = self.checkpoint.contains(&self.name(&format!("{name}.{part}")));
            if known { number(part) } else { Ok(default) }
        };
        // transformers creates the constants in bf16, and files of its later versions hold them.
        let (slope, limit) = (optional("beta", 0.5)?, optional("eps", half::bf16::from_f32(-1e-6).to_f32())?);
        let positive = softplus(number("alpha_p")?);
        Ok(Xielu { positive, negative: slope + softplus(number("alpha_n")?), slope, limit })
    }
}
