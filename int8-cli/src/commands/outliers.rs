//! `int8 outliers`: which features are outliers, and how the model performs without them.

use std::path::Path;

use int8_nn::backend::{Backend, Precision};
use int8_nn::checkpoint::Checkpoint;
use int8_nn::decoder::LinearRole;
use int8_nn::outliers::{
    Ablation, Criterion, Feature, OutlierReport, QUANTILES, SWEEP, SiteReport, ablate, analyse,
    random_dimensions,
};
use serde_json::json;

use super::{made, text};
use crate::args::{OutliersArgs, PrecisionArgs};
use crate::device::{Device, Place, Task};
use crate::failure::Failure;
use crate::output::{Output, OutputFile};
use crate::report::charts::{Axis, Chart, Series};
use crate::report::plots::{Plot, PlotFolder, short_name};
use crate::report::{Page, Table};
use crate::{hub, resolve};

/// Seed of the random dimensions that are zeroed for comparison.
const SEED: u64 = 0;
/// Magnitude from which on a cell of the heat map is coloured.
const HEAT_FLOOR: f32 = 2.0;

/// The effect of zeroing: nothing, the features, as many random dimensions.
struct Effect {
    float: Ablation,
    features: Ablation,
    random: Ablation,
}

/// Analyses a model.
pub(crate) fn run(arguments: &OutliersArgs, device: &Device, output: &Output) -> Result<(), Failure> {
    let criterion = Criterion {
        magnitude: arguments.magnitude,
        layers: arguments.layers,
        positions: arguments.positions,
    };
    if criterion.magnitude.is_nan() || criterion.magnitude <= 0.0 {
        return Err(Failure::usage(format!(
            "--magnitude {}: expected a number above 0",
            criterion.magnitude
        )));
    }
    let shares = [("--layers", criterion.layers), ("--positions", criterion.positions)];
    if let Some((option, value)) = shares.iter().find(|(_, value)| !(0.0..=1.0).contains(value)) {
        return Err(Failure::usage(format!("{option} {value}: expected a share from 0 to 1")));
    }
    let folder = arguments.plots.as_deref().map(PlotFolder::open).transpose()?;
    let page = OutputFile::given("--report", arguments.report.as_deref())?;
    let checkpoint = Checkpoint::open(hub::folder(&arguments.model, arguments.revision.as_deref(), output)?)?;
    device.run(checkpoint, Outliers { arguments, criterion, folder, page, output }, output)
}

struct Outliers<'a> {
    arguments: &'a OutliersArgs,
    criterion: Criterion,
    folder: Option<PlotFolder>,
    page: Option<OutputFile>,
    output: &'a Output,
}

impl Task for Outliers<'_> {
    type Output = ();

    fn precision(&self) -> Result<Precision, Failure> {
        Ok(Precision::Float)
    }

    fn run<B: Backend + 'static>(self, place: &Place<B>) -> Result<(), Failure> {
        let Self { arguments, criterion, folder, page: file, output } = self;
        let model = resolve::load(&PrecisionArgs::default(), place, output)?;
        let (ids, options) = text(&model, &arguments.text)?;
        let bar = output.bar("finding outliers", "windows");
        let report = analyse(&model, &ids, &options, criterion, |done, all| bar.set(done, all))?;
        bar.clear();
        if let Some(site) = report.sites.iter().find(|site| !site.largest.is_finite()) {
            return Err(Failure::not_finite(&format!("an input of {}", site.name)));
        }

        let effect = if arguments.no_ablation {
            None
        } else {
            let zeroed = |what: &str, dimensions: &[usize]| -> Result<Ablation, Failure> {
                let bar = output.bar(what, "windows");
                let found = ablate(&model, dimensions, &ids, &options, |done, all| bar.set(done, all))?;
                bar.clear();
                Ok(found)
            };
            let features: Vec<usize> = report.features.iter().map(|feature| feature.dimension).collect();
            let random = random_dimensions(features.len(), report.hidden_size, &features, SEED);
            Some(Effect {
                float: zeroed("scoring", &[])?,
                features: zeroed("scoring without the features", &features)?,
                random: zeroed("scoring without random dimensions", &random)?,
            })
        };

        let text = arguments.text.text.as_deref().map_or(String::new(), short_name);
        let source = format!("{}, {} tokens of {text}", short_name(&arguments.model), report.tokens);
        if let Some(effect) = &effect
            && !effect.float.perplexity.is_finite()
        {
            return Err(Failure::not_finite("the perplexity"));
        }
        if output.json {
            let effect = effect.as_ref().map(|effect| {
                json!({"float": effect.float, "without_features": effect.features, "without_random_dimensions": effect.random})
            });
            output.object(&json!({
                "model": arguments.model,
                "text_file": arguments.text.text,
                "window": options.window,
                "report": report,
                "sweep_magnitudes": SWEEP,
                "quantiles": QUANTILES,
                "effect": effect,
            }))?;
        } else {
            print(&report, effect.as_ref(), output)?;
        }
        let plots = plots(&report, &source);
        if let Some(folder) = folder {
            folder.write(&plots)?;
        }
        if let Some(file) = &file {
            let mut page = page(arguments, &report, effect.as_ref(), &plots)?;
            page.made(&made(&arguments.model, &arguments.text, &options, &place.devices.describe()));
            page.write(file)?;
        }
        for path in arguments.report.iter().chain(&arguments.plots) {
            output.remark(&format!("written: {}", path.display()));
        }
        Ok(())
    }
}

fn print(report: &OutlierReport, effect: Option<&Effect>, output: &Output) -> Result<(), Failure> {
    output.line(&summary(report))?;
    if !report.features.is_empty() {
        output.text(&format!("\n{}", features(&report.features).to_text()))?;
    }
    if !report.partial.is_empty() {
        output.text(&format!(
            "\nIn the inputs of one kind of projection alone:\n{}",
            features(&report.partial).to_text()
        ))?;
    }
    if let Some(effect) = effect {
        output.text(&format!("\n{}", effects(effect).to_text()))?;
    }
    output.text(&format!("\n{}", sweep(report).to_text()))?;
    output.text(&format!("\n{}", sites(report).to_text()))
}

fn summary(report: &OutlierReport) -> String {
    let Criterion { magnitude, layers, positions } = report.criterion;
    format!(
        "{} outlier {} of {} hidden dimensions: magnitude {magnitude} reached in at least {:.0} % of {} layers and {:.0} % of positions, \
         over {} tokens",
        report.features.len(),
        if report.features.len() == 1 { "feature" } else { "features" },
        report.hidden_size,
        100.0 * layers,
        report.layers,
        100.0 * positions,
        report.tokens
    )
}

/// A row of the paper's Table 4 for each feature.
fn features(features: &[Feature]) -> Table {
    let row = |feature: &Feature| {
        let [q1, q2, q3] = feature.quartiles;
        vec![
            feature.dimension.to_string(),
            feature.roles.iter().map(|role| role_name(*role)).collect::<Vec<_>>().join(" and "),
            percent(feature.layers),
            percent(feature.positions),
            if feature.one_sided { "yes" } else { "no" }.to_owned(),
            format!("{q1:.1}, {q2:.1}, {q3:.1}"),
            format!("{:.1}", feature.largest),
        ]
    };
    Table {
        columns: vec![
            ("dimension", true),
            ("inputs of", false),
            ("layers %", true),
            ("positions %", true),
            ("one-sided", false),
            ("quartiles", true),
            ("largest", true),
        ],
        rows: features.iter().map(row).collect(),
    }
}

fn effects(effect: &Effect) -> Table {
    let row = |name: &str, found: &Ablation| {
        vec![
            name.to_owned(),
            format!("{:.3}", found.perplexity),
            format!("{:+.1}", 100.0 * (found.perplexity / effect.float.perplexity - 1.0)),
            format!("{:.1}", 100.0 * found.top1_probability),
        ]
    };
    Table {
        columns: vec![
            ("set to zero", false),
            ("perplexity", true),
            ("change %", true),
            ("top-1 probability %", true),
        ],
        rows: vec![
            row("nothing", &effect.float),
            row("the outlier features", &effect.features),
            row("as many random dimensions", &effect.random),
        ],
    }
}

fn sweep(report: &OutlierReport) -> Table {
    let row = |point: &int8_nn::outliers::SweepPoint| {
        vec![
            point.magnitude.to_string(),
            percent(point.columns),
            format!("{:.4}", 100.0 * point.values),
            point.features.to_string(),
            percent(point.layers),
            percent(point.positions),
        ]
    };
    Table {
        columns: vec![
            ("magnitude", true),
            ("columns %", true),
            ("values %", true),
            ("features", true),
            ("most layers %", true),
            ("most positions %", true),
        ],
        rows: report.sweep.iter().map(row).collect(),
    }
}

fn sites(report: &OutlierReport) -> Table {
    let magnitude = report.criterion.magnitude;
    let at = SWEEP.iter().position(|m| *m >= magnitude).unwrap_or(SWEEP.len() - 1);
    let row = |site: &SiteReport| {
        let [_, p90, p99, p999, _] = site.quantiles;
        let strongest = site
            .strongest
            .iter()
            .take(4)
            .map(|(dimension, positions, _)| format!("{dimension} ({} %)", percent(*positions)));
        vec![
            site.name.clone(),
            format!("{p90:.2}"),
            format!("{p99:.2}"),
            format!("{p999:.2}"),
            format!("{:.1}", site.largest),
            site.dimensions.to_string(),
            percent(site.columns[at]),
            format!("{:.4}", 100.0 * site.values[at]),
            strongest.collect::<Vec<_>>().join(", "),
        ]
    };
    Table {
        columns: vec![
            ("input of", false),
            ("90 %", true),
            ("99 %", true),
            ("99.9 %", true),
            ("largest", true),
            ("dims", true),
            ("columns %", true),
            ("values %", true),
            ("most often (positions)", false),
        ],
        rows: report.sites.iter().map(row).collect(),
    }
}

fn percent(share: f64) -> String {
    format!("{:.1}", 100.0 * share)
}

fn plots(report: &OutlierReport, source: &str) -> Vec<Plot> {
    let heat = |counted: bool| {
        let sites = report.sites.iter().filter(|site| site.counted == counted);
        let rows = sites
            .map(|site| (format!("{} {}", site.block, role_name(site.role)), site.dimension_largest.clone()))
            .collect();
        Chart::HeatMap { rows, floor: HEAT_FLOOR, columns: "dimension" }
    };
    let magnitudes = {
        let of = |pick: fn(&SiteReport) -> f32, name: &str| Series {
            name: name.to_owned(),
            points: report
                .sites
                .iter()
                .filter(|site| site.counted)
                .enumerate()
                .map(|(index, site)| (crate::convert::real(index) / 2.0, f64::from(pick(site))))
                .collect(),
        };
        let series = vec![
            of(|site| site.largest, "largest"),
            of(|site| site.quantiles[4], "99.99 %"),
            of(|site| site.quantiles[3], "99.9 %"),
            of(|site| site.quantiles[2], "99 %"),
            of(|site| site.quantiles[0], "median"),
        ];
        let (x, y) = (Axis { label: "layer", log: false }, Axis { label: "magnitude", log: true });
        Chart::Lines { x, y, series }
    };
    let reach = {
        let of = |pick: fn(&int8_nn::outliers::SweepPoint) -> f64, name: &str| Series {
            name: name.to_owned(),
            points: report
                .sweep
                .iter()
                .map(|point| (f64::from(point.magnitude), 100.0 * pick(point)))
                .collect(),
        };
        let series = vec![
            of(|point| point.layers, "layers, widest dimension"),
            of(|point| point.positions, "positions, widest dimension"),
            of(|point| point.columns, "outlier columns"),
        ];
        let (x, y) = (Axis { label: "magnitude", log: true }, Axis { label: "share %", log: false });
        Chart::Lines { x, y, series }
    };
    let plot = |name: &str, title: &str, text, chart| Plot {
        name: name.to_owned(),
        title: title.to_owned(),
        text,
        source: source.to_owned(),
        chart,
    };
    vec![
        plot(
            "hidden-states",
            "Largest magnitude of every hidden dimension",
            "Inputs of the attention projections and of the MLPs' expansions, by layer.",
            heat(true),
        ),
        plot(
            "inner-states",
            "Largest magnitude inside the blocks",
            "Inputs of the attention's output and of the MLPs' contraction.",
            heat(false),
        ),
        plot(
            "magnitudes",
            "Magnitudes by layer",
            "Quantiles of all values of the hidden states.",
            magnitudes,
        ),
        plot(
            "thresholds",
            "Outliers by threshold",
            "How far the most widespread dimension reaches, and the columns that hold an outlier in a window.",
            reach,
        ),
    ]
}

fn role_name(role: LinearRole) -> &'static str {
    match role {
        LinearRole::Qkv => "q, k, v",
        LinearRole::AttentionOutput => "attn out",
        LinearRole::Up => "MLP up",
        LinearRole::Down => "MLP down",
        LinearRole::StateSpace => "Δ, B, C",
        LinearRole::Router => "router",
        LinearRole::Embedding => "embedding",
        LinearRole::Head => "head",
    }
}

fn page(
    arguments: &OutliersArgs,
    report: &OutlierReport,
    effect: Option<&Effect>,
    plots: &[Plot],
) -> Result<Page, Failure> {
    let text = arguments.text.text.as_deref().unwrap_or_else(|| Path::new(""));
    let title = format!("Outlier features of {}", arguments.model.display());
    let mut page = Page::new(&title, &format!("{}, of {}.", summary(report), text.display()));
    page.section(
        "Features",
        "Shares of layers and positions in which the magnitude is reached, and quartiles of the values that reach it (Table 4 of the \
         paper).",
    );
    page.table(&features(&report.features));
    if !report.partial.is_empty() {
        page.section(
            "In one kind of input alone",
            "Dimensions that meet the criterion in the inputs of attention projections or of expansions, but not in both.",
        );
        page.table(&features(&report.partial));
    }
    if let Some(effect) = effect {
        page.section(
            "Without them",
            "Perplexity and mean probability of the most probable token with these dimensions of the hidden states set to zero.",
        );
        page.table(&effects(effect));
    }
    for plot in plots {
        page.section(&plot.title, plot.text);
        page.plot(plot)?;
    }
    page.section("Thresholds", "Shares of columns and values that would be outliers, over all projections.");
    page.table(&sweep(report));
    page.section(
        "Every projection",
        "Quantiles and largest magnitude of its input, dimensions that reach the criterion's magnitude anywhere, and shares that do.",
    );
    page.table(&sites(report));
    Ok(page)
}
