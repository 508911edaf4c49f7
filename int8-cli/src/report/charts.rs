//! Plots, each drawn by one code as SVG or PNG. Sizes are in pixels of SVG's view box, which scales with the page.

use std::fmt::Display;
use std::ops::Range;

use plotters::coord::Shift;
use plotters::coord::ranged1d::{DefaultFormatting, KeyPointHint};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::bitmap::{self, FAMILY};
use crate::convert::{pixels, real};
use crate::failure::Failure;

/// Width of every plot.
const WIDTH: i32 = 760;
/// Height of plots with two axes, without their legend.
const HEIGHT: i32 = 400;
/// Height of a caption: a title and a line below it.
const CAPTION: i32 = 48;
/// Text in plots, in pixels.
const TEXT: i32 = 13;
/// Margin.
const MARGIN: i32 = 12;
/// Secondary text.
const GRAY: RGBColor = RGBColor(90, 90, 90);
/// Secondary lines.
const FRAME: RGBColor = RGBColor(215, 215, 215);
/// Colours of series, distinguishable with any colour vision (Okabe and Ito, 2008).
const COLORS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(230, 159, 0),
    GRAY,
];

type Area<B> = DrawingArea<B, Shift>;

/// A plot, not yet drawn.
pub(crate) enum Chart {
    /// A horizontal bar for each entry, as long as its value on a logarithmic scale from the smallest one; the value stands
    /// at its end. The first entry is the baseline.
    Bars(Vec<(String, f64)>),
    /// Lines over two axes.
    Lines { x: Axis, y: Axis, series: Vec<Series> },
    /// One row of cells for each of `rows`, the darker the larger on a logarithmic scale; cells below `floor` stay white, and
    /// neighbours that would be narrower than a pixel share one, with the largest of them.
    HeatMap { rows: Vec<(String, Vec<f32>)>, floor: f32, columns: &'static str },
}

/// A named line.
pub(crate) struct Series {
    pub(crate) name: String,
    pub(crate) points: Vec<(f64, f64)>,
}

/// An axis: its label and scale.
#[derive(Clone, Copy)]
pub(crate) struct Axis {
    pub(crate) label: &'static str,
    /// Logarithmic, for values above 0.
    pub(crate) log: bool,
}

/// Title and subtitle of a plot that is a file of its own.
#[derive(Clone, Copy)]
pub(crate) struct Caption<'a> {
    pub(crate) title: &'a str,
    pub(crate) source: &'a str,
}

impl Chart {
    /// The plot as SVG.
    ///
    /// # Errors
    /// When it cannot be drawn, which would be a fault of this program.
    pub(crate) fn svg(&self, caption: Option<Caption<'_>>) -> Result<String, Failure> {
        bitmap::register()?;
        let mut svg = String::new();
        self.draw(SVGBackend::with_string(&mut svg, self.size(caption)), caption)?;
        Ok(svg)
    }

    /// The plot as PNG, [`bitmap::DENSITY`] times as large.
    ///
    /// # Errors
    /// As [`Self::svg`].
    pub(crate) fn png(&self, caption: Option<Caption<'_>>) -> Result<Vec<u8>, Failure> {
        bitmap::register()?;
        bitmap::png(self.size(caption), |bitmap| self.draw(bitmap, caption))
    }

    fn size(&self, caption: Option<Caption<'_>>) -> (u32, u32) {
        let body = match self {
            Self::Bars(entries) => BAR.saturating_mul(length(entries)) + 10,
            Self::Lines { series, .. } => HEIGHT + LEGEND * legend_rows(series),
            Self::HeatMap { rows, .. } => {
                length(rows).saturating_mul(row_height(rows.len())) + MAP_TOP + MAP_BELOW
            }
        };
        let height = body + if caption.is_some() { CAPTION } else { 0 };
        (WIDTH.unsigned_abs(), height.unsigned_abs())
    }

    fn draw<B: DrawingBackend>(&self, backend: B, caption: Option<Caption<'_>>) -> Result<(), Failure> {
        let page = backend.into_drawing_area();
        page.fill(&WHITE).map_err(failed)?;
        let body = match caption {
            None => page.clone(),
            Some(caption) => {
                let (top, body) = page.split_vertically(CAPTION);
                let room = WIDTH - 2 * MARGIN;
                let title = cut(caption.title, TEXT + 5, room)?;
                text(&top, &title, (MARGIN, 19), TEXT + 5, HPos::Left, &BLACK)?;
                let source = cut(caption.source, TEXT, room)?;
                text(&top, &source, (MARGIN, 38), TEXT, HPos::Left, &GRAY)?;
                body
            }
        };
        match self {
            Self::Bars(entries) => bars(&body, entries)?,
            Self::Lines { x, y, series } => lines(&body, *x, *y, series)?,
            Self::HeatMap { rows, floor, columns } => heat_map(&body, rows, *floor, columns)?,
        }
        page.present().map_err(failed)
    }
}

/// A failed drawing is a fault of this program.
fn failed(error: impl Display) -> Failure {
    Failure::new(format!("a plot could not be drawn: {error}"))
}

fn length<T>(items: &[T]) -> i32 {
    i32::try_from(items.len()).unwrap_or(i32::MAX)
}

/// Width of a text, in pixels.
fn width_of(words: &str, size: i32) -> Result<i32, Failure> {
    let box_of = (FAMILY, size).into_font().box_size(words).map_err(failed)?;
    Ok(i32::try_from(box_of.0).unwrap_or(i32::MAX))
}

/// A text that is no wider than `room`: its end gives way.
fn cut(words: &str, size: i32, room: i32) -> Result<String, Failure> {
    let mut kept = words.to_owned();
    while width_of(&kept, size)? > room && !kept.is_empty() {
        kept.truncate(kept.trim_end_matches('…').char_indices().next_back().map_or(0, |(at, _)| at));
        kept.push('…');
    }
    Ok(kept)
}

/// Writes a text; `at` is the middle of its height.
fn text<B: DrawingBackend>(
    area: &Area<B>,
    words: &str,
    at: (i32, i32),
    size: i32,
    anchor: HPos,
    color: &RGBColor,
) -> Result<(), Failure> {
    let style = TextStyle::from((FAMILY, size).into_font()).color(color);
    area.draw_text(words, &style.pos(Pos::new(anchor, VPos::Center)), at).map_err(failed)
}

fn fill<B: DrawingBackend>(
    area: &Area<B>,
    from: (i32, i32),
    to: (i32, i32),
    color: &impl Color,
) -> Result<(), Failure> {
    area.draw(&Rectangle::new([from, to], color.filled())).map_err(failed)
}

/// Height of a bar's row.
const BAR: i32 = 26;

fn bars<B: DrawingBackend>(area: &Area<B>, entries: &[(String, f64)]) -> Result<(), Failure> {
    let finite = || entries.iter().map(|(_, value)| *value).filter(|value| value.is_finite() && *value > 0.0);
    let least = finite().fold(f64::INFINITY, f64::min);
    let range = (finite().fold(least, f64::max) / least).ln().max(1e-9);
    let mut labels = Vec::new();
    let (mut names, mut values) = (0, 0);
    for (name, value) in entries {
        let (name, value) = (cut(name, TEXT, WIDTH / 2)?, format!("{value:.3}"));
        names = names.max(width_of(&name, TEXT)?);
        values = values.max(width_of(&value, TEXT)?);
        labels.push((name, value));
    }
    let left = MARGIN + names + 10;
    let longest = f64::from(WIDTH - left - 6 - values - MARGIN - 4);
    let mut top = 5;
    for (index, ((name, label), (_, value))) in labels.iter().zip(entries).enumerate() {
        let share = (value / least).ln() / range;
        let right = left + 4 + pixels(if share.is_nan() { 0.0 } else { share.clamp(0.0, 1.0) } * longest);
        let color = if index == 0 { COLORS[6] } else { COLORS[0] };
        let middle = top + BAR / 2 - 1;
        text(area, name, (MARGIN, middle), TEXT, HPos::Left, &BLACK)?;
        fill(area, (left, top + 2), (right, top + BAR - 4), &color)?;
        text(area, label, (right + 6, middle), TEXT, HPos::Left, &BLACK)?;
        top += BAR;
    }
    Ok(())
}

/// Height of a row of a legend.
const LEGEND: i32 = 22;
/// Length of the line before a name in it.
const SAMPLE: i32 = 22;

/// Where the entries of a legend are: they follow each other, and go on in a new row where the width ends.
fn legend_places(series: &[Series]) -> Vec<(i32, i32)> {
    let (mut left, mut row) = (MARGIN, 0);
    let mut places = Vec::new();
    for series in series {
        let width = SAMPLE + 6 + width_of(&series.name, TEXT).unwrap_or(0) + 20;
        if left > MARGIN && left + width > WIDTH {
            (left, row) = (MARGIN, row + 1);
        }
        places.push((left, row));
        left += width;
    }
    places
}

/// One line needs no legend.
fn legend_rows(series: &[Series]) -> i32 {
    if series.len() < 2 { 0 } else { legend_places(series).last().map_or(0, |(_, row)| row + 1) }
}

/// How an axis places values: a logarithmic one is a linear one of logarithms with other labels.
impl Axis {
    fn place(self, value: f64) -> f64 {
        if self.log { value.log10() } else { value }
    }

    fn label(self, place: f64) -> String {
        let value = if self.log { 10.0_f64.powf(place) } else { place };
        if value != 0.0 && (value.abs() < 1e-4 || value.abs() >= 1e6) {
            return format!("{value:.0e}");
        }
        // Ticks are round numbers, but for the last bits.
        let text = format!("{value:.5}");
        match text.trim_end_matches('0').trim_end_matches('.') {
            "" | "-0" => "0".to_owned(),
            text => text.to_owned(),
        }
    }

    /// Round numbers in a range of places.
    fn ticks(self, range: &Range<f64>) -> Vec<f64> {
        let inside = |place: &f64| range.contains(place);
        let span = range.end - range.start;
        if self.log && span > 0.6 {
            let digits: &[f64] = if span < 2.5 { &[1.0, 2.0, 5.0] } else { &[1.0] };
            let step = if span > 10.0 { 2 } else { 1 };
            let decades = (pixels(range.start.floor())..=pixels(range.end.ceil())).step_by(step);
            let ticks = decades
                .flat_map(|decade| digits.iter().map(move |digit| f64::from(decade) + digit.log10()))
                .filter(inside);
            return ticks.collect();
        }
        // Less than a factor of four: round values, at their logarithms.
        let value = |place: f64| if self.log { 10.0_f64.powf(place) } else { place };
        let (low, high) = (value(range.start), value(range.end));
        let rough = (high - low) / 7.0;
        let power = 10.0_f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|digit| digit * power).into_iter().find(|step| *step >= rough);
        let step = step.unwrap_or(rough);
        let first = (low / step).ceil();
        (0..9).map(|tick| self.place((first + f64::from(tick)) * step)).filter(inside).collect()
    }
}

/// Places of an axis and its ticks, as plotters takes them.
struct Scale {
    range: Range<f64>,
    ticks: Vec<f64>,
}

impl Ranged for Scale {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, place: &f64, limits: (i32, i32)) -> i32 {
        let share = (place - self.range.start) / (self.range.end - self.range.start);
        limits.0 + pixels((share * f64::from(limits.1 - limits.0)).round())
    }

    fn key_points<H: KeyPointHint>(&self, _: H) -> Vec<f64> {
        self.ticks.clone()
    }

    fn range(&self) -> Range<f64> {
        self.range.clone()
    }
}

fn lines<B: DrawingBackend>(area: &Area<B>, x: Axis, y: Axis, series: &[Series]) -> Result<(), Failure> {
    // Points that an axis cannot show are dropped.
    let placed: Vec<Vec<(f64, f64)>> = series
        .iter()
        .map(|series| {
            let points = series.points.iter().map(|(a, b)| (x.place(*a), y.place(*b)));
            points.filter(|(a, b)| a.is_finite() && b.is_finite()).collect()
        })
        .collect();
    let range = |pick: fn(&(f64, f64)) -> f64| {
        let values = || placed.iter().flatten().map(pick);
        let (low, high) =
            (values().fold(f64::INFINITY, f64::min), values().fold(f64::NEG_INFINITY, f64::max));
        let space = (high - low) * 0.04;
        match (low.is_finite(), high > low) {
            (true, true) => low - space..high + space,
            (true, false) => low - 0.5..low + 0.5,
            (false, _) => 0.0..1.0,
        }
    };
    let (x_range, y_range) = (range(|point| point.0), range(|point| point.1));
    let (legend, body) = area.split_vertically(LEGEND * legend_rows(series));
    if series.len() > 1 {
        for ((index, series), (left, row)) in series.iter().enumerate().zip(legend_places(series)) {
            let color = COLORS[index % COLORS.len()];
            let middle = LEGEND * row + LEGEND / 2;
            fill(&legend, (left, middle - 1), (left + SAMPLE, middle + 1), &color)?;
            text(&legend, &series.name, (left + SAMPLE + 6, middle), TEXT, HPos::Left, &BLACK)?;
        }
    }
    let mut chart = ChartBuilder::on(&body)
        .margin(MARGIN)
        .x_label_area_size(42)
        .y_label_area_size(64)
        .build_cartesian_2d(
            Scale { ticks: x.ticks(&x_range), range: x_range },
            Scale { ticks: y.ticks(&y_range), range: y_range },
        )
        .map_err(failed)?;
    chart
        .configure_mesh()
        .bold_line_style(FRAME)
        .light_line_style(TRANSPARENT)
        .axis_style(GRAY)
        .x_desc(x.label)
        .y_desc(y.label)
        .x_label_formatter(&|place| x.label(*place))
        .y_label_formatter(&|place| y.label(*place))
        .label_style((FAMILY, TEXT))
        .axis_desc_style((FAMILY, TEXT + 1))
        .draw()
        .map_err(failed)?;
    for (index, points) in placed.into_iter().enumerate() {
        let color = COLORS[index % COLORS.len()];
        chart.draw_series(LineSeries::new(points.iter().copied(), color.stroke_width(2))).map_err(failed)?;
        let dots = points.into_iter().map(|point| Circle::new(point, 3, color.filled()));
        chart.draw_series(dots).map_err(failed)?;
    }
    Ok(())
}

/// Height of the cells of all rows together, if they are many.
const MAP: usize = 640;
/// Space above and below the cells; below are the axis and the scale.
const MAP_TOP: i32 = 6;
const MAP_BELOW: i32 = 84;

/// Height of a row of cells.
fn row_height(rows: usize) -> i32 {
    i32::try_from(MAP / rows.max(1)).unwrap_or(0).clamp(4, 17)
}

fn heat_map<B: DrawingBackend>(
    area: &Area<B>,
    rows: &[(String, Vec<f32>)],
    floor: f32,
    columns: &str,
) -> Result<(), Failure> {
    let mut names = 0;
    for (name, _) in rows {
        names = names.max(width_of(name, TEXT - 1)?);
    }
    let left = MARGIN + names.min(WIDTH / 3) + 8;
    let room = WIDTH - left - 2 * MARGIN;
    let width = rows.iter().map(|(_, values)| values.len()).max().unwrap_or(0).max(1);
    let together = width.div_ceil(usize::try_from(room).unwrap_or(1));
    let scale = f64::from(room) / real(width);
    let at = |column: usize| left + pixels(real(column) * scale);
    let largest = rows.iter().flat_map(|(_, values)| values.iter()).copied().fold(floor, f32::max);
    let range = f64::from(largest / floor).ln().max(1e-9);
    let color = |shade: f64| COLORS[1].mix(0.12 + 0.88 * shade);

    let tall = row_height(rows.len());
    let every = usize::try_from((TEXT + 3).div_euclid(tall)).unwrap_or(0).max(1);
    let below = MAP_TOP + length(rows).saturating_mul(tall);
    for (index, (name, values)) in rows.iter().enumerate() {
        let top = MAP_TOP + i32::try_from(index).unwrap_or(i32::MAX).saturating_mul(tall);
        if index % every == 0 {
            text(area, name, (left - 8, top + tall / 2), TEXT - 1, HPos::Right, &GRAY)?;
        }
        for (cell, values) in values.chunks(together).enumerate() {
            let value = values.iter().copied().fold(0.0, f32::max);
            if value < floor {
                continue;
            }
            let start = at(cell * together);
            let end = at((cell + 1) * together).min(left + room).max(start + 1);
            let shade = f64::from(value / floor).ln() / range;
            fill(area, (start, top), (end, top + tall), &color(shade))?;
        }
    }
    let frame =
        [(left, MAP_TOP), (left + room, MAP_TOP), (left + room, below), (left, below), (left, MAP_TOP)];
    area.draw(&PathElement::new(frame, FRAME)).map_err(failed)?;

    // The axis of columns.
    let axis = Axis { label: "", log: false };
    for place in axis.ticks(&(0.0..real(width))) {
        let x = left + pixels(place * scale);
        fill(area, (x, below), (x + 1, below + 5), &GRAY)?;
        text(area, &axis.label(place), (x, below + 13), TEXT - 1, HPos::Center, &BLACK)?;
    }
    text(area, columns, (left + room / 2, below + 32), TEXT + 1, HPos::Center, &BLACK)?;
    // The scale of colours.
    const SHADES: i32 = 40;
    let (start, middle) = (left + room / 2 - 3 * SHADES, below + 60);
    for shade in 0..SHADES {
        let from = start + 6 * shade;
        let share = f64::from(shade) / f64::from(SHADES - 1);
        fill(area, (from, middle - 6), (from + 6, middle + 6), &color(share))?;
    }
    let least = format!("white below {floor}");
    text(area, &least, (start - 8, middle), TEXT - 1, HPos::Right, &GRAY)?;
    let most = format!("{largest:.0}, logarithmic");
    text(area, &most, (start + 6 * SHADES + 8, middle), TEXT - 1, HPos::Left, &GRAY)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(low: f64, high: f64, log: bool) -> Vec<String> {
        let axis = Axis { label: "", log };
        axis.ticks(&(axis.place(low)..axis.place(high))).into_iter().map(|place| axis.label(place)).collect()
    }

    #[test]
    fn ticks_are_round_numbers() {
        assert_eq!(labels(0.0, 5.5, false), ["0", "1", "2", "3", "4", "5"]);
        assert_eq!(labels(-0.02, 0.11, false), ["-0.02", "0", "0.02", "0.04", "0.06", "0.08", "0.1"]);
        assert_eq!(labels(1.8, 130.0, true), ["2", "5", "10", "20", "50", "100"]);
        assert_eq!(labels(0.04, 5000.0, true), ["0.1", "1", "10", "100", "1000"]);
        assert_eq!(labels(11.0, 17.0, true), ["11", "12", "13", "14", "15", "16"]);
    }
}
