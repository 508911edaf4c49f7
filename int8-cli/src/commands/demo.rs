//! `int8 demo`: memory, outliers and quality of a small model inside the program.

use std::borrow::Cow;
use std::time::Instant;

use int8_core::Scheme;
use int8_nn::backend::{Backend, KvType, OutlierWeights, Precision, Quantization};
use int8_nn::checkpoint::Checkpoint;
use int8_nn::decoder::{Footprint, LinearRole};
use int8_nn::{GenerateOptions, Loader, Model, Perplexity, PerplexityOptions, SpecialTokens};
use serde_json::{Value, json};

use super::outlier_share;
use crate::convert::{count, real};
use crate::device::{Device, Place, Task};
use crate::failure::Failure;
use crate::output::{Output, bytes};
use crate::resolve::{self, Compared};

/// demo-opt, trained for this project: OPT architecture, 3.16M parameters, with six outlier features as large models
/// have them.
const FILES: [(&str, &[u8]); 4] = [
    ("config.json", include_bytes!("../../assets/demo-opt/config.json")),
    ("generation_config.json", include_bytes!("../../assets/demo-opt/generation_config.json")),
    ("model.safetensors", include_bytes!("../../assets/demo-opt/model.safetensors")),
    ("tokenizer.json", include_bytes!("../../assets/demo-opt/tokenizer.json")),
];

/// A page of text that the model was not trained on.
const TEXT: &str = include_str!("../../assets/demo.txt");

/// Tokens a window: all positions the model has.
const WINDOW: usize = 512;

/// The rows of the table.
const SCHEMES: [Scheme; 4] =
    [Scheme::Absmax, Scheme::Zeropoint, Scheme::AbsmaxVectorWise, Scheme::LlmInt8Absmax];

const PROMPT: &str = "The old man sat by the fire and";

struct Row {
    label: &'static str,
    name: &'static str,
    result: Perplexity,
    /// Share of columns outside the int8 product.
    columns: f64,
}

/// Runs the demonstration.
pub(crate) fn run(device: &Device, output: &Output) -> Result<(), Failure> {
    let begin = Instant::now();
    let checkpoint =
        Checkpoint::from_bytes(FILES.map(|(name, bytes)| (name.to_owned(), Cow::Borrowed(bytes))))?;
    device.run(checkpoint, Demo { begin, output }, output)
}

struct Demo<'a> {
    begin: Instant,
    output: &'a Output,
}

impl Task for Demo<'_> {
    type Output = ();

    /// The scheme that the fewest devices have.
    fn precision(&self) -> Result<Precision, Failure> {
        Ok(Precision::Int8(Quantization::new(Scheme::Zeropoint.config(), OutlierWeights::Dequantized)))
    }

    fn run<B: Backend + 'static>(self, place: &Place<B>) -> Result<(), Failure> {
        let Self { begin, output } = self;
        let load = |precision: Precision| -> Result<Model<B>, Failure> {
            Ok(Loader::new(place.checkpoint.clone()).precision(precision).build_on(place.devices.clone())?)
        };
        let schemes = SCHEMES.map(|scheme| Compared {
            name: scheme.name().to_owned(),
            precision: Precision::Int8(Quantization::new(scheme.config(), OutlierWeights::Exact)),
            detail: scheme,
        });
        let schemes = resolve::comparison(schemes, place, output);

        let float = load(Precision::Float)?;
        let ids = float.tokenizer()?.encode(TEXT, SpecialTokens::Omit)?;
        let bar = output.bar("scoring", "schemes");
        let options = PerplexityOptions { window: WINDOW, windows: None, kv_cache: KvType::F32 };
        let measure = |model: &Model<B>, label, name| -> Result<Row, Failure> {
            let result = model.perplexity(&ids, &options, |_, _| {})?;
            Ok(Row { label, name, result, columns: outlier_share(model).columns })
        };
        let mut rows = vec![measure(&float, "float (32-bit)", "float")?];
        let mut quantized = None;
        let all = schemes.len() + 1;
        for Compared { precision, detail: scheme, .. } in schemes {
            bar.set(rows.len(), all);
            let model = load(precision)?;
            rows.push(measure(&model, scheme.label(), scheme.name())?);
            quantized = Some(model);
        }
        bar.clear();
        let Some(quantized) = quantized else { return Err(Failure::new("no scheme to show")) };
        let outliers = outlier_dimensions(&quantized);
        let footprint = quantized.decoder().footprint();
        let generate = GenerateOptions { max_new_tokens: 56, ..GenerateOptions::default() };
        let texts = [float.generate(PROMPT, &generate)?, quantized.generate(PROMPT, &generate)?];
        let seconds = begin.elapsed().as_secs_f64();
        if output.json {
            return output.object(&as_json(&rows, &outliers, footprint, &texts, seconds));
        }
        print(output, &rows, &outliers, footprint, &texts, seconds)
    }
}

fn print(
    output: &Output,
    rows: &[Row],
    outliers: &[Outlier],
    footprint: Footprint,
    texts: &[String; 2],
    seconds: f64,
) -> Result<(), Failure> {
    let float = rows[0].result.perplexity();
    output.line(&output.bold("LLM.int8() on demo-opt, a 3.16M-parameter OPT model inside this program"))?;
    output.line("")?;
    output.line(&format!(
        "Memory     fp32 {}   fp16 {}   int8 {} (linear layers 1 byte a weight; embedding {} stays 16-bit)",
        bytes(count(footprint.at(4))),
        bytes(count(footprint.at(2))),
        output.bold(&bytes(count(footprint.total()))),
        bytes(count(footprint.embedding)),
    ))?;
    output.line("")?;
    output.line("Outliers   A few hidden dimensions reach |x| ≥ 6 in every layer. One scale for a row must cover them,")?;
    output
        .line("           and few codes remain for the rest. LLM.int8() multiplies only these in 16-bit:")?;
    if rows.iter().any(|row| row.columns.is_nan()) {
        output.line("           (not counted on a GPU; --device cpu shows which)")?;
    }
    for outlier in outliers {
        output.line(&format!(
            "           dimension {:3}: input of {} of {} attention and MLP layers",
            outlier.dimension, outlier.layers, outlier.of
        ))?;
    }
    output.line("")?;
    output
        .line(&format!("Quality    perplexity on a page of text, {} tokens scored", rows[0].result.tokens))?;
    for row in rows {
        let perplexity = row.result.perplexity();
        let loss = format!("{:+.2} %", 100.0 * (perplexity / float - 1.0));
        let bar = "█".repeat(rounded_units(perplexity, float));
        let outside = if row.columns > 0.0 {
            format!("{:.1} % of columns in 16-bit", 100.0 * row.columns)
        } else {
            String::new()
        };
        output.line(&format!("           {:24} {perplexity:7.2} {loss:>10}  {bar} {outside}", row.label))?;
    }
    output.line("")?;
    for (name, text) in ["float", "int8"].iter().zip(texts) {
        output.line(&format!("{:10} {}", format!("Text {name}"), text.replace('\n', " ")))?;
    }
    output.line("")?;
    output.line(&output.dim(&format!("{seconds:.1} s. Now your own: int8 run MODEL -p \"Once upon a time\"")))
}

/// Length of a bar: one block for each tenth of the float perplexity.
fn rounded_units(perplexity: f64, float: f64) -> usize {
    (1..40).take_while(|unit| real(*unit) * 0.1 * float <= perplexity).count()
}

/// A hidden dimension that holds outliers.
struct Outlier {
    dimension: usize,
    /// Number of layers into which it carries one.
    layers: usize,
    /// Number of layers.
    of: usize,
}

/// The dimensions of the residual stream that were outliers in at least half of the layers that read it.
fn outlier_dimensions<B: Backend>(model: &Model<B>) -> Vec<Outlier> {
    let statistics = model.decoder().statistics();
    let readers: Vec<_> = statistics
        .iter()
        .filter(|(role, _)| matches!(role, LinearRole::Qkv | LinearRole::Up))
        .map(|(_, statistics)| statistics)
        .collect();
    (0..model.config().hidden_size)
        .map(|dimension| Outlier {
            dimension,
            layers: readers.iter().filter(|layer| layer.column_calls.get(dimension) > Some(&0)).count(),
            of: readers.len(),
        })
        .filter(|outlier| 2 * outlier.layers >= outlier.of)
        .collect()
}

fn as_json(
    rows: &[Row],
    outliers: &[Outlier],
    footprint: Footprint,
    texts: &[String; 2],
    seconds: f64,
) -> Value {
    let float = rows[0].result.perplexity();
    json!({
        "bytes": {
            "fp32": footprint.at(4),
            "fp16": footprint.at(2),
            "int8": footprint.total(),
        },
        "outliers": outliers.iter().map(|outlier| json!({
            "dimension": outlier.dimension,
            "layers": outlier.layers,
            "of": outlier.of,
        })).collect::<Vec<_>>(),
        "schemes": rows.iter().map(|row| json!({
            "scheme": row.name,
            "perplexity": row.result.perplexity(),
            "loss": row.result.perplexity() / float - 1.0,
            "outlier_columns_fraction": row.columns,
            "tokens": row.result.tokens,
        })).collect::<Vec<_>>(),
        "texts": {"float": texts[0], "int8": texts[1]},
        "seconds": seconds,
    })
}
