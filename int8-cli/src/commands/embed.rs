//! `int8 embed`: sentence embeddings, and how int8 changes their cosines.

use std::io::Read;
use std::path::Path;
use std::time::Instant;

use int8_core::{Named, OutlierGranularity, OutlierRule, RowStatistic, Scheme, scheme};
use int8_nn::Embedder;
use int8_nn::backend::{Backend, OutlierWeights, Precision, Quantization};
use int8_nn::checkpoint::Checkpoint;
use int8_nn::embedder::cosine;
use ndarray::Array2;
use safetensors::Dtype;
use safetensors::tensor::{TensorView, serialize};
use serde_json::{Value, json};

use super::{read_text, settings};
use crate::args::{EmbedArgs, PrecisionArgs};
use crate::convert::{count, real};
use crate::device::{Device, Place, Task};
use crate::failure::Failure;
use crate::output::{Output, OutputFile, bytes};
use crate::resolve::{self, Compared};

/// Texts up to which the matrix of their cosines is printed: more columns do not fit a screen.
const MATRIX_TEXTS: usize = 12;

/// Embeds texts, or compares precisions over pairs of them.
pub(crate) fn run(arguments: &EmbedArgs, device: &Device, output: &Output) -> Result<(), Failure> {
    if arguments.compare { compare(arguments, device, output) } else { embed(arguments, device, output) }
}

fn embed(arguments: &EmbedArgs, device: &Device, output: &Output) -> Result<(), Failure> {
    let format = arguments.out.as_deref().map(Format::of).transpose()?;
    let texts = texts(arguments)?;
    if texts.len() > MATRIX_TEXTS && format.is_none() && !output.json {
        return Err(Failure::usage(format!(
            "{} texts: the cosines of at most {MATRIX_TEXTS} are printed",
            texts.len()
        ))
        .hint("write the vectors with --out vectors.safetensors (or .npy), or print them with --json"));
    }
    let file = OutputFile::given("--out", arguments.out.as_deref())?;
    let checkpoint = checkpoint(arguments, output)?;
    device.run(checkpoint, Embed { arguments, format, file, texts, output }, output)
}

struct Embed<'a> {
    arguments: &'a EmbedArgs,
    format: Option<Format>,
    file: Option<OutputFile>,
    texts: Vec<String>,
    output: &'a Output,
}

impl Task for Embed<'_> {
    type Output = ();

    fn precision(&self) -> Result<Precision, Failure> {
        resolve::precision(&self.arguments.model.precision)
    }

    fn options(&self) -> Option<&PrecisionArgs> {
        Some(&self.arguments.model.precision)
    }

    fn run<B: Backend + 'static>(self, place: &Place<B>) -> Result<(), Failure> {
        let Self { arguments, format, file, texts, output } = self;
        let embedder = load(arguments, place.precision, place, output)?;
        let (ids, cut) = embedder.tokenize(&texts)?;
        warn_of_cut_texts(&embedder, cut, texts.len(), output);

        let begin = Instant::now();
        let vectors = vectors(&embedder, &ids, output)?;
        let seconds = begin.elapsed().as_secs_f64();
        let write = || match (&file, format) {
            (Some(file), Some(format)) => format.write(file, &vectors),
            _ => Ok(()),
        };
        let cosines = (texts.len() <= MATRIX_TEXTS).then(|| cosines(&vectors));
        let tokens: usize = ids.iter().map(Vec::len).sum();
        let footprint = embedder.encoder().footprint();
        if output.json {
            let rows = |matrix: &Array2<f64>| -> Vec<Vec<f64>> {
                matrix.rows().into_iter().map(|row| row.to_vec()).collect()
            };
            let embeddings: Option<Vec<Vec<f32>>> =
                arguments.out.is_none().then(|| vectors.rows().into_iter().map(|row| row.to_vec()).collect());
            output.object(&json!({
                "model": arguments.model.model,
                "device": place.devices.describe(),
                "scheme": resolve::precision_name(&arguments.model.precision),
                "settings": settings(embedder.precision()),
                "pooling": embedder.settings().pooling.key(),
                "normalized": embedder.settings().normalize,
                "max_tokens": embedder.settings().max_tokens,
                "texts": texts.len(),
                "texts_cut": cut,
                "tokens": tokens,
                "dimensions": vectors.ncols(),
                "out": arguments.out,
                "embeddings": embeddings,
                "cosines": cosines.as_ref().map(rows),
                "seconds": seconds,
                "weight_bytes": footprint.total(),
                "weight_bytes_16_bit": footprint.at(2),
            }))?;
            return write();
        }
        if let Some(cosines) = &cosines {
            print_cosines(&texts, cosines, output)?;
        }
        write()?;
        if let Some(path) = &arguments.out {
            let (rows, columns) = vectors.dim();
            output.remark(&format!("{}: embeddings f32 [{rows}, {columns}]", path.display()));
        }
        output.remark(&output.dim(&format!(
            "{}, {} pooling; {} texts, {tokens} tokens at {:.0}/s; weights {} ({} in 16-bit)",
            resolve::precision_name(&arguments.model.precision),
            embedder.settings().pooling.key(),
            texts.len(),
            real(tokens) / seconds,
            bytes(count(footprint.total())),
            bytes(count(footprint.at(2))),
        )));
        Ok(())
    }
}

fn checkpoint(arguments: &EmbedArgs, output: &Output) -> Result<Checkpoint, Failure> {
    if arguments.model.precision.int8_head {
        return Err(Failure::usage("--int8-head: a model of sentence vectors has no output head"));
    }
    resolve::checkpoint(&arguments.model, output)
}

fn load<B: Backend>(
    arguments: &EmbedArgs,
    precision: Precision,
    place: &Place<B>,
    output: &Output,
) -> Result<Embedder<B>, Failure> {
    let precision = match precision {
        // The default of a processor, for models that have one.
        Precision::Int8(quantization) => Precision::Int8(Quantization { int8_head: false, ..quantization }),
        Precision::Float => precision,
    };
    let (loader, bar) = resolve::loader(precision, &arguments.model.precision, &place.checkpoint, output);
    let mut embedder = loader.embedder_on(place.devices.clone())?;
    bar.clear();
    let mut settings = embedder.settings();
    settings.pooling = arguments.pooling.unwrap_or(settings.pooling);
    settings.normalize |= arguments.normalize;
    settings.max_tokens = arguments.max_tokens.unwrap_or(settings.max_tokens);
    embedder.set_settings(settings)?;
    Ok(embedder)
}

fn vectors<B: Backend>(
    embedder: &Embedder<B>,
    ids: &[Vec<u32>],
    output: &Output,
) -> Result<Array2<f32>, Failure> {
    let bar = output.bar("embedding", "texts");
    let vectors = embedder.embed_ids(ids, |done, all| bar.set(done, all))?;
    bar.clear();
    Ok(vectors)
}

fn warn_of_cut_texts<B: Backend>(embedder: &Embedder<B>, cut: usize, texts: usize, output: &Output) {
    if cut > 0 {
        let most = embedder.settings().max_tokens;
        output.remark(&format!("{cut} of {texts} texts are longer than {most} tokens and were cut"));
    }
}

/// The texts: those given, the lines of a file, or the lines of standard input. Lines without a character do not count.
fn texts(arguments: &EmbedArgs) -> Result<Vec<String>, Failure> {
    if !arguments.text.is_empty() {
        return Ok(arguments.text.clone());
    }
    let text = match &arguments.file {
        Some(file) => read_text("--file", file)?,
        None => {
            let mut bytes = Vec::new();
            std::io::stdin().read_to_end(&mut bytes)?;
            String::from_utf8(bytes)
                .map_err(|_| Failure::new("standard input: not UTF-8; convert it (iconv -t UTF-8) first"))?
        }
    };
    let texts: Vec<String> = text.lines().filter(|line| !line.trim().is_empty()).map(str::to_owned).collect();
    if texts.is_empty() {
        return Err(Failure::usage(
            "no texts; give --text \"…\" (more than once), --file, or lines on standard input",
        ));
    }
    Ok(texts)
}

fn cosines(vectors: &Array2<f32>) -> Array2<f64> {
    let texts = vectors.nrows();
    Array2::from_shape_fn((texts, texts), |(a, b)| cosine(vectors.row(a), vectors.row(b)))
}

fn print_cosines(texts: &[String], cosines: &Array2<f64>, output: &Output) -> Result<(), Failure> {
    /// Characters of a text that name its row.
    const SHOWN: usize = 40;
    for (index, (text, row)) in texts.iter().zip(cosines.rows()).enumerate() {
        let mut name: String = text.chars().take(SHOWN).collect();
        if name.len() < text.len() {
            name.pop();
            name.push('…');
        }
        let row: String = row.iter().map(|cosine| format!(" {cosine:7.4}")).collect();
        output.line(&format!("{:2}{row}  {}", index + 1, output.dim(&name)))?;
    }
    Ok(())
}

/// A file for vectors.
#[derive(Debug, Clone, Copy)]
enum Format {
    Safetensors,
    Npy,
}

impl Format {
    fn of(path: &Path) -> Result<Self, Failure> {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("safetensors") => Ok(Self::Safetensors),
            Some("npy") => Ok(Self::Npy),
            // A pipe or device has no name to go by.
            _ if path.as_os_str() == "-"
                || path.metadata().is_ok_and(|found| !found.is_file() && !found.is_dir()) =>
            {
                Ok(Self::Safetensors)
            }
            _ => Err(Failure::usage(format!(
                "--out {}: the name must end with .safetensors or .npy, which decides the format",
                path.display()
            ))),
        }
    }

    fn write(self, file: &OutputFile, vectors: &Array2<f32>) -> Result<(), Failure> {
        let failed = |error: String| Failure::new(format!("--out {}: {error}", file.path().display()));
        let (rows, columns) = vectors.dim();
        let values: Vec<u8> = vectors.iter().flat_map(|value| value.to_le_bytes()).collect();
        let contents = match self {
            Self::Safetensors => {
                let view = TensorView::new(Dtype::F32, vec![rows, columns], &values)
                    .map_err(|error| failed(error.to_string()))?;
                serialize([("embeddings", view)], None).map_err(|error| failed(error.to_string()))?
            }
            Self::Npy => [npy_header(rows, columns), values].concat(),
        };
        file.write(&contents)
    }
}

/// The header of a NumPy file, version 1.0: its length is a multiple of 64.
fn npy_header(rows: usize, columns: usize) -> Vec<u8> {
    /// Magic number, version, and the two bytes of the length.
    const BEFORE: usize = 10;
    let mut text = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {columns}), }}");
    let whole = (BEFORE + text.len() + 1).next_multiple_of(64);
    text.push_str(&" ".repeat(whole - BEFORE - text.len() - 1));
    text.push('\n');
    // Two sizes in decimal: far below 2¹⁶.
    let length = u16::try_from(text.len()).unwrap_or(u16::MAX);
    [b"\x93NUMPY\x01\x00", &length.to_le_bytes()[..], text.as_bytes()].concat()
}

/// Cosines of pairs in floating point and in int8.
fn compare(arguments: &EmbedArgs, device: &Device, output: &Output) -> Result<(), Failure> {
    let lines = texts(arguments)?;
    let pairs: Vec<[&str; 2]> = lines
        .iter()
        .enumerate()
        .map(|(index, line)| match line.split_once('\t') {
            Some((a, b)) if !b.contains('\t') => Ok([a, b]),
            _ => Err(Failure::usage(format!(
                "text {}: --compare takes pairs, two texts with one tab between them",
                index + 1
            ))),
        })
        .collect::<Result<_, _>>()?;
    if arguments.model.precision.fp {
        return Err(Failure::usage("--compare compares int8 with --fp; drop --fp"));
    }
    let both = pairs.iter().flatten().map(|text| (*text).to_owned()).collect();
    let checkpoint = checkpoint(arguments, output)?;
    device.run(checkpoint, Compare { arguments, both, output }, output)
}

/// The end of the names of settings with dequantised outlier weights.
const DEQUANTIZED: &str = ", dequantised outlier weights";

struct Compare<'a> {
    arguments: &'a EmbedArgs,
    /// The texts of all pairs, one after the other.
    both: Vec<String>,
    output: &'a Output,
}

impl Task for Compare<'_> {
    type Output = ();

    fn precision(&self) -> Result<Precision, Failure> {
        // The model in floating point comes first, but a place is to run the given settings, too.
        resolve::precision(&self.arguments.model.precision)
    }

    fn run<B: Backend + 'static>(self, place: &Place<B>) -> Result<(), Failure> {
        let Self { arguments, both, output } = self;
        let float = load(arguments, Precision::Float, place, output)?;
        let (ids, cut) = float.tokenize(&both)?;
        warn_of_cut_texts(&float, cut, both.len(), output);
        let exact = vectors(&float, &ids, output)?;
        drop(float);
        let settings = if arguments.model.precision.any() {
            let precision = resolve::precision(&arguments.model.precision)?;
            let name = resolve::precision_name(&arguments.model.precision).to_owned();
            vec![Compared { name, precision, detail: () }]
        } else {
            resolve::comparison(all_settings(), place, output)
        };
        let width = settings.iter().map(|setting| setting.name.chars().count()).max().unwrap_or(0);
        if !output.json {
            output.line(&format!("{:width$}   cosine of a pair      vector against float", ""))?;
            output.line(&format!("{:width$}   mean |Δ|  max |Δ|     mean cos   min cos", ""))?;
        }
        let mut results = Vec::new();
        for Compared { name, precision, .. } in settings {
            let embedder = load(arguments, precision, place, output)?;
            let drift = Drift::between(&exact, &vectors(&embedder, &ids, output)?);
            if !output.json {
                output.line(&format!(
                    "{name:width$}   {:.5}   {:.5}     {:.5}    {:.5}",
                    drift.mean, drift.max, drift.own_mean, drift.own_min
                ))?;
            }
            results.push(drift.json(&name, embedder.precision()));
        }
        if output.json {
            output.object(&json!({
                "model": arguments.model.model,
                "pairs": both.len() / 2,
                "file": arguments.file,
                "mean_cosine": Drift::between(&exact, &exact).cosine,
                "schemes": results,
            }))?;
        }
        Ok(())
    }
}

/// Every scheme of the paper, and our settings beside LLM.int8(), the preset `best` among them.
fn all_settings() -> Vec<Compared<()>> {
    let setting = |name, precision| Compared { name, precision, detail: () };
    let int8 = |name, config, weights| setting(name, Precision::Int8(Quantization::new(config, weights)));
    let mut settings = Vec::new();
    for scheme in Scheme::ALL {
        if scheme.decomposes() {
            let name = format!("{scheme}{DEQUANTIZED}");
            settings.push(int8(name, scheme.config(), OutlierWeights::Dequantized));
        }
        settings.push(int8(scheme.to_string(), scheme.config(), OutlierWeights::Exact));
    }
    let relative =
        OutlierRule::RelativeToRow { tau: scheme::DEFAULT_TAU, statistic: RowStatistic::MedianAbs };
    let scheme = Scheme::LlmInt8Absmax;
    let config = int8_core::Config {
        rule: relative,
        outlier_granularity: OutlierGranularity::Value,
        ..scheme.config()
    };
    settings.push(int8(format!("{scheme}, relative rule, values"), config, OutlierWeights::Exact));
    settings.push(setting("best".to_owned(), Precision::Int8(Quantization::best())));
    settings.push(setting("best-rows".to_owned(), Precision::Int8(Quantization::best_rows())));
    settings
}

/// How far cosines and vectors are from those in floating point.
struct Drift {
    /// Mean cosine of a pair.
    cosine: f64,
    /// Mean and largest change of a pair's cosine.
    mean: f64,
    max: f64,
    /// Mean and smallest cosine between a vector and the same in floating point.
    own_mean: f64,
    own_min: f64,
}

impl Drift {
    /// Rows 2i and 2i + 1 are a pair.
    fn between(exact: &Array2<f32>, found: &Array2<f32>) -> Self {
        let pairs = exact.nrows() / 2;
        let pair =
            |vectors: &Array2<f32>, index: usize| cosine(vectors.row(2 * index), vectors.row(2 * index + 1));
        let changes: Vec<f64> =
            (0..pairs).map(|index| (pair(found, index) - pair(exact, index)).abs()).collect();
        let own: Vec<f64> = (0..exact.nrows()).map(|row| cosine(exact.row(row), found.row(row))).collect();
        let mean = |values: &[f64]| values.iter().sum::<f64>() / real(values.len());
        // `f64::max` and `min` skip a NaN.
        let extreme = |values: &[f64], beyond: fn(&f64, &f64) -> bool| {
            let pick =
                |best: f64, value: &f64| if value.is_nan() || beyond(value, &best) { *value } else { best };
            values.iter().fold(values.first().copied().unwrap_or(f64::NAN), pick)
        };
        Self {
            cosine: mean(&(0..pairs).map(|index| pair(found, index)).collect::<Vec<_>>()),
            mean: mean(&changes),
            max: extreme(&changes, f64::gt),
            own_mean: mean(&own),
            own_min: extreme(&own, f64::lt),
        }
    }

    fn json(&self, name: &str, precision: &Precision) -> Value {
        json!({
            "scheme": name,
            "settings": settings(precision),
            "mean_cosine": self.cosine,
            "mean_drift": self.mean,
            "max_drift": self.max,
            "mean_cosine_to_float": self.own_mean,
            "min_cosine_to_float": self.own_min,
        })
    }
}

#[cfg(test)]
mod tests {
    use ndarray::array;

    use super::*;

    #[test]
    fn numpy_headers_are_aligned() {
        for (rows, columns) in [(1, 1), (3, 384), (1_000_000, 1024)] {
            let header = npy_header(rows, columns);
            assert!(header.len().is_multiple_of(64));
            let length = usize::from(u16::from_le_bytes([header[8], header[9]]));
            assert_eq!(header.len(), 10 + length);
            assert!(header.ends_with(b"\n"));
        }
    }

    #[test]
    fn drift_of_known_vectors() {
        let exact = array![[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0]];
        let none = Drift::between(&exact, &exact);
        assert_eq!((none.mean, none.max, none.own_min), (0.0, 0.0, 1.0));
        let turned = array![[1.0, 0.0], [1.0, 1.0], [1.0, 0.0], [1.0, 0.0]];
        let drift = Drift::between(&exact, &turned);
        assert!((drift.max - 0.5_f64.sqrt()).abs() < 1e-7 && (drift.mean - drift.max / 2.0).abs() < 1e-12);
        assert!((drift.own_min - 0.5_f64.sqrt()).abs() < 1e-7);
        let broken = array![[f32::NAN, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0]];
        let drift = Drift::between(&exact, &broken);
        assert!(drift.max.is_nan() && drift.own_min.is_nan());
    }
}
