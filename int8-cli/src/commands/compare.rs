//! `int8 eval --compare`: the loss of every scheme on this model and text.

use std::sync::Arc;

use int8_core::{OutlierGranularity, OutlierRule, RowStatistic, Scheme};
use int8_nn::backend::{Backend, OutlierWeights, Precision, Quantization};
use int8_nn::decoder::LinearRole;
use int8_nn::quality::{Baseline, Comparison, LastWords, LayerError, layer_errors};
use int8_nn::{Model, PerplexityOptions};
use serde_json::{Value, json};

use super::passages::read_passages;
use super::{OutlierShare, counted, made, outlier_share, settings, text};
use crate::args::EvalArgs;
use crate::convert::{count, real};
use crate::device::{Device, Place, Task};
use crate::failure::Failure;
use crate::output::{Output, OutputFile, bytes};
use crate::report::charts::{Axis, Chart, Series};
use crate::report::plots::{Plot, PlotFolder, short_name};
use crate::report::{Page, Table};
use crate::resolve::{self, Compared};

/// Bytes for the predictions of the float model, the baseline: 1 GiB holds some 10,000 positions of a vocabulary of 50,000.
const BASELINE_BYTES: usize = 1 << 30;
/// Tokens over which the errors of single layers are measured.
const LAYER_TOKENS: usize = 256;
/// Windows over which thresholds are swept for the report.
const SWEEP_WINDOWS: usize = 4;
/// Thresholds of the absolute rule.
const THRESHOLDS: [f32; 6] = [2.0, 3.0, 4.5, 6.0, 10.0, 20.0];
/// τ of the relative rule.
const TAUS: [f32; 6] = [8.0, 12.0, 20.0, 30.0, 60.0, 120.0];

/// Table 1 of the paper: C4 perplexity of models with 125M, 1.3B, 2.7B, 6.7B and 13B parameters.
fn paper(scheme: Option<Scheme>) -> [f64; 5] {
    match scheme {
        None => [25.65, 15.91, 14.43, 13.30, 12.45],
        Some(Scheme::Absmax) => [87.76, 16.55, 15.11, 14.59, 19.08],
        Some(Scheme::Zeropoint) => [56.66, 16.24, 14.76, 13.49, 13.94],
        Some(Scheme::AbsmaxRowWise) => [30.93, 17.08, 15.24, 14.13, 16.49],
        Some(Scheme::AbsmaxVectorWise) => [35.84, 16.82, 14.98, 14.13, 16.48],
        Some(Scheme::ZeropointVectorWise) => [25.72, 15.94, 14.36, 13.38, 13.47],
        Some(Scheme::AbsmaxRowWiseDecomposition) => [30.76, 16.19, 14.65, 13.25, 12.46],
        Some(Scheme::LlmInt8Absmax) => [25.83, 15.93, 14.44, 13.24, 12.45],
        Some(Scheme::LlmInt8Zeropoint) => [25.69, 15.92, 14.43, 13.24, 12.45],
    }
}

/// The end of the names of rows with dequantised outlier weights.
const DEQUANTIZED: &str = ", dequantized";

/// One row of the comparison, with the same row in the paper.
type Entry = Compared<Option<[f64; 5]>>;

/// The result of an entry.
struct Found {
    entry: Entry,
    comparison: Comparison,
    share: OutlierShare,
    bytes: usize,
    layers: Vec<LayerError>,
    last_words: Option<LastWords>,
}

fn entries() -> Vec<Entry> {
    let int8 = |name: String, config, weights, paper| Entry {
        name,
        precision: Precision::Int8(Quantization::new(config, weights)),
        detail: paper,
    };
    let mut entries: Vec<Entry> = Scheme::ALL
        .into_iter()
        .map(|scheme| {
            let paper = Some(paper(Some(scheme)));
            int8(scheme.name().to_owned(), scheme.config(), OutlierWeights::Exact, paper)
        })
        .collect();
    for scheme in Scheme::ALL.into_iter().filter(|scheme| scheme.decomposes()) {
        let name = format!("{}{DEQUANTIZED}", scheme.name());
        entries.push(int8(name, scheme.config(), OutlierWeights::Dequantized, None));
    }
    let mut values = Scheme::LlmInt8Absmax.config();
    values.outlier_granularity = OutlierGranularity::Value;
    entries.push(int8("llm-int8, values".to_owned(), values, OutlierWeights::Exact, None));
    for (name, quantization) in [("best", Quantization::best()), ("best-rows", Quantization::best_rows())] {
        entries.push(Entry { name: name.to_owned(), precision: Precision::Int8(quantization), detail: None });
    }
    entries
}

/// Compares all schemes.
pub(crate) fn run(arguments: &EvalArgs, device: &Device, output: &Output) -> Result<(), Failure> {
    let passages = arguments.last_words.as_deref().map(read_passages).transpose()?;
    let folder = arguments.plots.as_deref().map(PlotFolder::open).transpose()?;
    let csv = OutputFile::given("--csv", arguments.csv.as_deref())?;
    let page = OutputFile::given("--report", arguments.report.as_deref())?;
    let checkpoint = resolve::checkpoint(&arguments.model, output)?;
    device.run(checkpoint, Compare { arguments, passages, folder, csv, page, output }, output)
}

struct Compare<'a> {
    arguments: &'a EvalArgs,
    passages: Option<Vec<String>>,
    folder: Option<PlotFolder>,
    csv: Option<OutputFile>,
    page: Option<OutputFile>,
    output: &'a Output,
}

impl Task for Compare<'_> {
    type Output = ();

    fn precision(&self) -> Result<Precision, Failure> {
        Ok(Precision::Float)
    }

    fn run<B: Backend + 'static>(self, place: &Place<B>) -> Result<(), Failure> {
        let Self { arguments, passages, folder, csv, page: file, output } = self;
        let precision = &arguments.model.precision;
        let float = Arc::new(resolve::load(precision, place, output)?);
        let (ids, options) = text(&float, &arguments.text)?;
        let bar = output.bar("scoring float", "windows");
        let baseline = float.baseline(&ids, &options, BASELINE_BYTES, |done, all| bar.set(done, all))?;
        bar.clear();
        if !baseline.perplexity.perplexity().is_finite() {
            return Err(Failure::not_finite("the perplexity of the model in floating point"));
        }
        let last_words = |model: &Model<B>| -> Result<Option<LastWords>, Failure> {
            Ok(passages.as_ref().map(|passages| model.last_words(passages, |_, _| {})).transpose()?)
        };
        let float_words = last_words(&float)?;

        let context =
            Context { arguments, place, output, float: &float, ids: &ids, options, baseline: &baseline };
        let entries = resolve::comparison(entries(), place, output);
        let all = entries.len();
        let mut found = Vec::new();
        for (index, entry) in entries.into_iter().enumerate() {
            let label = format!("{} of {all}, {}", index + 1, entry.name);
            let model = Arc::new(resolve::load_as(entry.precision, precision, place, output)?);
            let comparison = context.score(&label, &model, &baseline, &options)?;
            let layer_ids = &ids[..LAYER_TOKENS.min(options.window).min(ids.len())];
            found.push(Found {
                share: outlier_share(&model),
                bytes: model.decoder().footprint().total(),
                layers: layer_errors(&float, &model, layer_ids)?,
                last_words: last_words(&model)?,
                entry,
                comparison,
            });
        }

        let table = table(&baseline, float.decoder().footprint().total(), float_words.as_ref(), &found);
        // The table first: a plot or page that fails must not lose it.
        let summary = || -> Result<(), Failure> {
            output.text(&table.to_text())?;
            output.line(&format!(
                "\n{} of {} tokens. Loss is over float, ± its standard error from the paired differences of the windows; KL in nats a \
                 token and agreement of the most probable token over {} positions. Paper: C4, 125M to 13B parameters.",
                counted(baseline.perplexity.windows.len(), "window"),
                baseline.perplexity.window,
                found.first().map_or(0, |found| found.comparison.positions_compared)
            ))?;
            output.text(&worst_layers(&found))
        };
        if !output.json {
            summary()?;
        }
        let sweep = if file.is_some() || folder.is_some() { Some(context.sweep()?) } else { None };
        if output.json {
            let float_bytes = float.decoder().footprint().total();
            output.object(&to_json(&context, float_bytes, float_words.as_ref(), &found, sweep.as_ref()))?;
        }
        if let Some(csv) = &csv {
            table.write_csv(csv)?;
        }
        if let Some(sweep) = &sweep {
            let plots = plots(&context, &found, sweep);
            if let Some(folder) = folder {
                folder.write(&plots)?;
            }
            if let Some(file) = &file {
                let mut page = page(&context, &table, sweep, &plots)?;
                page.made(&made(
                    &arguments.model.model,
                    &arguments.text,
                    &options,
                    &place.devices.describe(),
                ));
                page.write(file)?;
            }
        }
        for path in arguments.csv.iter().chain(&arguments.report).chain(&arguments.plots) {
            output.remark(&format!("written: {}", path.display()));
        }
        let broken = found.iter().filter(|found| !found.comparison.perplexity.is_finite());
        let broken: Vec<&str> = broken.map(|found| found.entry.name.as_str()).collect();
        if !broken.is_empty() {
            return Err(Failure::not_finite(&format!("the perplexity with {}", broken.join("; "))));
        }
        Ok(())
    }
}

struct Context<'a, B: Backend> {
    arguments: &'a EvalArgs,
    place: &'a Place<B>,
    output: &'a Output,
    float: &'a Model<B>,
    ids: &'a [u32],
    options: PerplexityOptions,
    baseline: &'a Baseline,
}

/// Loss (in percent) against threshold, for the absolute and the relative rule.
struct Sweep {
    windows: usize,
    absolute: Vec<Point>,
    relative: Vec<Point>,
}

struct Point {
    parameter: f32,
    loss: f64,
    columns: f64,
    values: f64,
}

impl<B: Backend> Context<'_, B> {
    fn score(
        &self,
        label: &str,
        model: &Model<B>,
        baseline: &Baseline,
        options: &PerplexityOptions,
    ) -> Result<Comparison, Failure> {
        let bar = self.output.bar(label, "windows");
        let comparison = model.compare(self.ids, options, baseline, |done, all| bar.set(done, all))?;
        bar.clear();
        Ok(comparison)
    }

    fn sweep(&self) -> Result<Sweep, Failure> {
        let windows = SWEEP_WINDOWS.min(self.baseline.perplexity.windows.len());
        let options = PerplexityOptions { windows: Some(windows), ..self.options };
        let baseline = self.float.baseline(self.ids, &options, 0, |_, _| {})?;
        let points = |name: &str, base: Scheme, granularity, rules: &[(f32, OutlierRule)]| {
            let rows = rules.iter().map(|&(parameter, rule)| {
                let config = int8_core::Config { rule, outlier_granularity: granularity, ..base.config() };
                let precision = Precision::Int8(Quantization::new(config, OutlierWeights::Exact));
                Compared { name: format!("{name} {parameter}"), precision, detail: parameter }
            });
            let rows = resolve::comparison(rows, self.place, self.output);
            rows.into_iter()
                .map(|Compared { name, precision, detail: parameter }| {
                    let arguments = &self.arguments.model.precision;
                    let model = resolve::load_as(precision, arguments, self.place, self.output)?;
                    let found = self.score(&name, &model, &baseline, &options)?;
                    let share = outlier_share(&model);
                    let loss = 100.0 * found.loss;
                    Ok(Point { parameter, loss, columns: share.columns, values: share.values })
                })
                .collect::<Result<Vec<_>, Failure>>()
        };
        let statistic = RowStatistic::MedianAbs;
        let absolute = THRESHOLDS.map(|threshold| (threshold, OutlierRule::Absolute(threshold)));
        let relative = TAUS.map(|tau| (tau, OutlierRule::RelativeToRow { tau, statistic }));
        Ok(Sweep {
            windows,
            absolute: points("threshold", Scheme::LlmInt8Absmax, OutlierGranularity::Column, &absolute)?,
            relative: points("tau", Scheme::LlmInt8Zeropoint, OutlierGranularity::Value, &relative)?,
        })
    }
}

fn table(baseline: &Baseline, float_bytes: usize, words: Option<&LastWords>, found: &[Found]) -> Table {
    let mut columns = vec![
        ("scheme", false),
        ("perplexity", true),
        ("loss %", true),
        ("±", true),
        ("KL", true),
        ("top-1 %", true),
        ("columns %", true),
        ("values %", true),
        ("weights", true),
        ("125M", true),
        ("1.3B", true),
        ("2.7B", true),
        ("6.7B", true),
        ("13B", true),
    ];
    if words.is_some() {
        columns.push(("last words %", true));
    }
    let paper_cells = |paper: Option<[f64; 5]>| match paper {
        Some(values) => values.map(|value| format!("{value:.2}")).to_vec(),
        None => vec![String::new(); 5],
    };
    let word_cell = |words: Option<&LastWords>| {
        words.map(|w| format!("{:.2}", 100.0 * real(w.correct) / real(w.passages)))
    };
    let mut first = vec!["float".to_owned(), format!("{:.3}", baseline.perplexity.perplexity())];
    first.extend(vec![String::new(); 6]);
    first.push(bytes(count(float_bytes)));
    first.extend(paper_cells(Some(paper(None))));
    first.extend(word_cell(words));
    let mut rows = vec![first];
    for found in found {
        let comparison = &found.comparison;
        let percent = |value: f64, digits: usize| match value.is_nan() {
            true => "–".to_owned(),
            false => format!("{:.digits$}", 100.0 * value),
        };
        let mut row = vec![
            found.entry.name.clone(),
            format!("{:.3}", comparison.perplexity),
            format!("{:+.2}", 100.0 * comparison.loss),
            comparison.loss_error.map_or(String::new(), |error| percent(error, 2)),
            format!("{:.5}", comparison.kl_divergence),
            percent(comparison.top1_agreement, 2),
            percent(found.share.columns, 2),
            percent(found.share.values, 3),
            bytes(count(found.bytes)),
        ];
        row.extend(paper_cells(found.entry.detail));
        row.extend(word_cell(found.last_words.as_ref()));
        rows.push(row);
    }
    Table { columns, rows }
}

/// Mean relative error of each kind of projection, in percent, and the worst layer, for the settings that lose little.
fn worst_layers(found: &[Found]) -> String {
    let rows = found
        .iter()
        .map(|found| {
            let mut row = vec![found.entry.name.clone()];
            row.extend(ROLES.map(|(role, _)| format!("{:.2}", 100.0 * mean_error(&found.layers, role))));
            let worst = found.layers.iter().max_by(|a, b| a.relative_error.total_cmp(&b.relative_error));
            row.push(worst.map_or(String::new(), |worst| {
                format!("{} ({:.2} %, {:.1} dB)", worst.name, 100.0 * worst.relative_error, worst.sqnr_db)
            }));
            row
        })
        .collect();
    let mut columns = vec![("error of a layer, mean %", false)];
    columns.extend(ROLES.map(|(_, name)| (name, true)));
    columns.push(("worst layer", false));
    format!("\n{}", Table { columns, rows }.to_text())
}

/// The kinds of projections, with their names in tables.
const ROLES: [(LinearRole, &str); 4] = [
    (LinearRole::Qkv, "q, k, v"),
    (LinearRole::AttentionOutput, "attention output"),
    (LinearRole::Up, "MLP up"),
    (LinearRole::Down, "MLP down"),
];

fn mean_error(layers: &[LayerError], role: LinearRole) -> f64 {
    let errors: Vec<f64> =
        layers.iter().filter(|layer| layer.role == role).map(|layer| layer.relative_error).collect();
    errors.iter().sum::<f64>() / real(errors.len().max(1))
}

/// The plots, each with its own source: not all use the same tokens.
fn plots<B: Backend>(context: &Context<'_, B>, found: &[Found], sweep: &Sweep) -> Vec<Plot> {
    let baseline = &context.baseline.perplexity;
    let model = short_name(&context.arguments.model.model);
    let text = context.arguments.text.text.as_deref().map_or(String::new(), short_name);
    let windows = |windows: usize| {
        format!("{model}, {} of {} tokens of {text}", counted(windows, "window"), baseline.window)
    };
    let plot = |name: &str, title: &str, source: String, chart| Plot {
        name: name.to_owned(),
        title: title.to_owned(),
        text: "",
        source,
        chart,
    };
    let mut bars = vec![("float".to_owned(), baseline.perplexity())];
    bars.extend(found.iter().map(|found| (found.entry.name.clone(), found.comparison.perplexity)));
    let line = |name: &str, points: &[Point]| Series {
        name: name.to_owned(),
        points: points.iter().map(|point| (f64::from(point.parameter), point.loss)).collect(),
    };
    let losses = |label, series| Chart::Lines {
        x: Axis { label, log: true },
        y: Axis { label: "loss %", log: false },
        series: vec![series],
    };
    let mut plots = vec![
        plot(
            "perplexity",
            "Perplexity of every scheme",
            format!("{}; logarithmic from the smallest value", windows(baseline.windows.len())),
            Chart::Bars(bars),
        ),
        plot(
            "loss-absolute",
            "Loss against the absolute threshold",
            format!("{}; LLM.int8(), columns", windows(sweep.windows)),
            losses("threshold", line("absolute", &sweep.absolute)),
        ),
        plot(
            "loss-relative",
            "Loss against the relative threshold",
            format!("{}; zero-point rows, single values", windows(sweep.windows)),
            losses("τ, multiples of the row's median", line("relative", &sweep.relative)),
        ),
    ];
    if sweep.relative.is_empty() {
        plots.retain(|plot| plot.name != "loss-relative");
    }
    for name in ["llm-int8", "best"] {
        let is_named = |found: &&Found| {
            let own = &found.entry.name;
            own.strip_suffix(DEQUANTIZED).unwrap_or(own) == name
        };
        let Some(found) = found.iter().find(is_named) else { continue };
        let of = |(role, name): (LinearRole, &str)| Series {
            name: name.to_owned(),
            points: found
                .layers
                .iter()
                .filter(|layer| layer.role == role)
                .map(|layer| (real(layer.block), 100.0 * layer.relative_error))
                .collect(),
        };
        let chart = Chart::Lines {
            x: Axis { label: "block", log: false },
            y: Axis { label: "relative error %", log: true },
            series: ROLES.map(of).into(),
        };
        let tokens = LAYER_TOKENS.min(baseline.window);
        let source = format!("{model}, {tokens} tokens of {text}; each layer by itself");
        plots.push(plot(&format!("errors-{name}"), &format!("Error of each layer, {name}"), source, chart));
    }
    plots
}

fn page<B: Backend>(
    context: &Context<'_, B>,
    table: &Table,
    sweep: &Sweep,
    plots: &[Plot],
) -> Result<Page, Failure> {
    let baseline = &context.baseline.perplexity;
    let mut page = Page::new(
        &format!("int8 quality of {}", context.arguments.model.model.display()),
        &format!(
            "{} of {} tokens of {}",
            counted(baseline.windows.len(), "window"),
            baseline.window,
            context.arguments.text.text.as_deref().unwrap_or_else(|| "".as_ref()).display()
        ),
    );
    page.section(
        "Perplexity",
        "Lower is better. The first row is the model in floating point; the scale is logarithmic from the smallest value.",
    );
    let named = |start: &'static str| plots.iter().filter(move |plot| plot.name.starts_with(start));
    for plot in named("perplexity") {
        page.plot(plot)?;
    }
    page.section(
        "All figures",
        "Loss is over float, with its standard error from paired differences of windows. KL divergence is in nats a token, top-1 is how \
         often the most probable token is the same. Columns and values are the shares outside int8. 125M to 13B: the paper's Table 1 on \
         C4.",
    );
    page.table(table);
    page.section(
        "Loss against threshold",
        &format!(
            "LLM.int8() with the paper's absolute rule on columns, and zero-point rows with the rule relative to the row's median on single \
             values; {} windows.",
            sweep.windows
        ),
    );
    for plot in named("loss-") {
        page.plot(plot)?;
    }
    let percent = |value: f64| match value.is_nan() {
        true => "–".to_owned(),
        false => format!("{:.3}", 100.0 * value),
    };
    let rows = |rule: &'static str, points: &[Point]| -> Vec<Vec<String>> {
        let cells = |point: &Point| {
            vec![
                rule.to_owned(),
                point.parameter.to_string(),
                format!("{:+.2}", point.loss),
                percent(point.columns),
                percent(point.values),
            ]
        };
        points.iter().map(cells).collect()
    };
    page.table(&Table {
        columns: vec![
            ("rule", false),
            ("threshold or τ", true),
            ("loss %", true),
            ("columns %", true),
            ("values %", true),
        ],
        rows: [rows("absolute, columns", &sweep.absolute), rows("relative, values", &sweep.relative)]
            .concat(),
    });
    page.section(
        "Error of each layer",
        &format!(
            "‖y − ŷ‖/‖y‖ of every projection by itself, its input being that of the float model, over {} tokens.",
            LAYER_TOKENS.min(baseline.window)
        ),
    );
    for plot in named("errors-") {
        page.section(&plot.title, plot.text);
        page.plot(plot)?;
    }
    Ok(page)
}

fn to_json<B: Backend>(
    context: &Context<'_, B>,
    float_bytes: usize,
    float_words: Option<&LastWords>,
    found: &[Found],
    sweep: Option<&Sweep>,
) -> Value {
    let baseline = context.baseline;
    let schemes: Vec<Value> = found
        .iter()
        .map(|found| {
            json!({
                "name": found.entry.name,
                "settings": settings(&found.entry.precision),
                "comparison": found.comparison,
                "outlier_columns_fraction": found.share.columns,
                "outlier_values_fraction": found.share.values,
                "weight_bytes": found.bytes,
                "last_words": found.last_words,
                "layers": found.layers,
                "paper": found.entry.detail,
            })
        })
        .collect();
    let points = |points: &[Point]| -> Vec<Value> {
        let object = |p: &Point| json!({"threshold": p.parameter, "loss": p.loss / 100.0, "columns": p.columns, "values": p.values});
        points.iter().map(object).collect()
    };
    json!({
        "model": context.arguments.model.model,
        "text_file": context.arguments.text.text,
        "window": baseline.perplexity.window,
        "windows": baseline.perplexity.windows.len(),
        "float": {
            "perplexity": baseline.perplexity.perplexity(),
            "window_nll": baseline.perplexity.windows,
            "top1_probability": baseline.top1_probability,
            "weight_bytes": float_bytes,
            "last_words": float_words,
            "paper": paper(None),
        },
        "schemes": schemes,
        "sweep": sweep.map(|sweep| json!({
            "windows": sweep.windows,
            "absolute": points(&sweep.absolute),
            "relative": points(&sweep.relative),
        })),
    })
}
