//! Plots as SVG text. Sizes are in pixels of a view box that scales with the page.

use std::fmt::Display;

use plotters::coord::Shift;
use plotters::prelude::*;

use crate::Failure;
use crate::convert::{pixels, real};

/// Width of every plot.
const WIDTH: u32 = 760;
/// Height of plots with two axes.
const HEIGHT: u32 = 400;
/// Text in plots, in pixels.
const TEXT: i32 = 13;
/// Colours of series that are told apart by people with any colour vision (Okabe and Ito, 2008).
const COLORS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(230, 159, 0),
    RGBColor(90, 90, 90),
];

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// A named line.
pub(crate) struct Series {
    pub(crate) name: String,
    pub(crate) points: Vec<(f64, f64)>,
}

/// What an axis shows.
#[derive(Clone, Copy)]
pub(crate) struct Axis {
    pub(crate) label: &'static str,
    /// Logarithmic, for values above 0.
    pub(crate) log: bool,
}

/// A failed drawing is a fault of this program.
fn failed(error: impl Display) -> Failure {
    Failure::new(format!("a plot could not be drawn: {error}"))
}

fn draw(height: u32, body: impl FnOnce(&Area<'_>) -> Result<(), Failure>) -> Result<String, Failure> {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (WIDTH, height)).into_drawing_area();
        area.fill(&WHITE).map_err(failed)?;
        body(&area)?;
        area.present().map_err(failed)?;
    }
    Ok(svg)
}

fn text(area: &Area<'_>, words: &str, at: (i32, i32), color: &RGBColor) -> Result<(), Failure> {
    let style = ("sans-serif", TEXT).into_font().color(color);
    area.draw_text(words, &style, at).map_err(failed)
}

/// A horizontal bar for each entry, as long as its value on a logarithmic scale from the smallest one; the value stands at
/// its end.
pub(crate) fn bars(entries: &[(String, f64)]) -> Result<String, Failure> {
    const ROW: i32 = 26;
    const LABELS: i32 = 330;
    const LONGEST: f64 = 320.0;
    let finite = || entries.iter().map(|(_, value)| *value).filter(|value| value.is_finite() && *value > 0.0);
    let least = finite().fold(f64::INFINITY, f64::min);
    let range = (finite().fold(least, f64::max) / least).ln().max(1e-9);
    let rows = u32::try_from(entries.len()).unwrap_or(u32::MAX);
    draw(rows * ROW.unsigned_abs() + 10, |area| {
        let mut top = 5;
        for (index, (name, value)) in entries.iter().enumerate() {
            let length = 4 + pixels((value / least).ln() / range * LONGEST);
            let color = if index == 0 { COLORS[6] } else { COLORS[0] };
            text(area, name, (5, top + 5), &BLACK)?;
            let bar = Rectangle::new([(LABELS, top + 2), (LABELS + length, top + ROW - 4)], color.filled());
            area.draw(&bar).map_err(failed)?;
            text(area, &format!("{value:.3}"), (LABELS + length + 6, top + 5), &BLACK)?;
            top += ROW;
        }
        Ok(())
    })
}

/// Lines over two axes.
pub(crate) fn lines(x: Axis, y: Axis, series: &[Series]) -> Result<String, Failure> {
    // A logarithmic axis is a linear one of logarithms with other labels; what it cannot show is left out.
    let place = |axis: Axis, value: f64| if axis.log { value.log10() } else { value };
    let placed: Vec<Vec<(f64, f64)>> = series
        .iter()
        .map(|series| {
            let points = series.points.iter().map(|(a, b)| (place(x, *a), place(y, *b)));
            points.filter(|(a, b)| a.is_finite() && b.is_finite()).collect()
        })
        .collect();
    let range = |pick: fn(&(f64, f64)) -> f64| {
        let values = || placed.iter().flatten().map(pick);
        let (low, high) =
            (values().fold(f64::INFINITY, f64::min), values().fold(f64::NEG_INFINITY, f64::max));
        if low.is_finite() && high > low { low..high + (high - low) * 0.04 } else { 0.0..1.0 }
    };
    let (x_range, y_range) = (range(|point| point.0), range(|point| point.1));
    draw(HEIGHT, |area| {
        let mut chart = ChartBuilder::on(area)
            .margin(12)
            .x_label_area_size(42)
            .y_label_area_size(64)
            .build_cartesian_2d(x_range.clone(), y_range.clone())
            .map_err(failed)?;
        let label = |axis: Axis| {
            move |value: &f64| {
                let value = if axis.log { 10.0_f64.powf(*value) } else { *value };
                if value != 0.0 && value.abs() < 0.01 {
                    format!("{value:.0e}")
                } else if value.abs() < 10.0 {
                    format!("{value:.2}")
                } else {
                    format!("{value:.0}")
                }
            }
        };
        chart
            .configure_mesh()
            .light_line_style(WHITE)
            .x_desc(x.label)
            .y_desc(y.label)
            .x_label_formatter(&label(x))
            .y_label_formatter(&label(y))
            .label_style(("sans-serif", TEXT))
            .axis_desc_style(("sans-serif", TEXT + 1))
            .draw()
            .map_err(failed)?;
        for (index, (series, points)) in series.iter().zip(placed).enumerate() {
            let color = COLORS[index % COLORS.len()];
            let line = LineSeries::new(points.iter().copied(), color.stroke_width(2));
            chart
                .draw_series(line)
                .map_err(failed)?
                .label(&series.name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], color.stroke_width(2)));
            let dots = points.into_iter().map(|point| Circle::new(point, 3, color.filled()));
            chart.draw_series(dots).map_err(failed)?;
        }
        if series.len() > 1 {
            chart
                .configure_series_labels()
                .background_style(WHITE.mix(0.85))
                .border_style(RGBColor(200, 200, 200))
                .label_font(("sans-serif", TEXT))
                .position(SeriesLabelPosition::UpperRight)
                .draw()
                .map_err(failed)?;
        }
        Ok(())
    })
}

/// One row of cells for each of `rows`, the darker the larger on a logarithmic scale; cells below `floor` stay white, and
/// neighbours that would be narrower than a pixel share one, with the largest of them.
pub(crate) fn heat_map(
    rows: &[(String, &[f32])],
    floor: f32,
    columns_label: &'static str,
) -> Result<String, Failure> {
    const LEFT: i32 = 110;
    const CELLS: usize = 620;
    const TALL: i32 = 11;
    let width = rows.iter().map(|(_, values)| values.len()).max().unwrap_or(0).max(1);
    let together = width.div_ceil(CELLS);
    let cells = width.div_ceil(together);
    let wide = real(CELLS) / real(cells);
    let largest = rows.iter().flat_map(|(_, values)| values.iter()).copied().fold(floor, f32::max);
    let range = f64::from(largest / floor).ln().max(1e-9);
    let below = i32::try_from(rows.len()).unwrap_or(i32::MAX).saturating_mul(TALL) + 8;
    draw(below.unsigned_abs() + 64, |area| {
        for (index, (name, values)) in rows.iter().enumerate() {
            let top = 6 + i32::try_from(index).unwrap_or(i32::MAX).saturating_mul(TALL);
            if index % 2 == 0 {
                text(area, name, (4, top - 1), &RGBColor(60, 60, 60))?;
            }
            for (cell, values) in values.chunks(together).enumerate() {
                let value = values.iter().copied().fold(0.0, f32::max);
                if value < floor {
                    continue;
                }
                let left = LEFT + pixels(real(cell) * wide);
                let right = (LEFT + pixels(real(cell + 1) * wide)).max(left + 1);
                let shade = f64::from(value / floor).ln() / range;
                let mark = Rectangle::new(
                    [(left, top), (right, top + TALL - 1)],
                    COLORS[1].mix(0.2 + 0.8 * shade).filled(),
                );
                area.draw(&mark).map_err(failed)?;
            }
        }
        let frame = Rectangle::new([(LEFT, 5), (LEFT + pixels(real(CELLS)), below)], RGBColor(170, 170, 170));
        area.draw(&frame).map_err(failed)?;
        text(area, "0", (LEFT, below + 6), &BLACK)?;
        text(area, &(width - 1).to_string(), (LEFT + pixels(real(CELLS)) - 36, below + 6), &BLACK)?;
        text(area, columns_label, (LEFT + 240, below + 6), &BLACK)?;
        text(
            area,
            &format!("{floor} (pale) to {largest:.0} (dark), logarithmic"),
            (LEFT + 180, below + 28),
            &BLACK,
        )
    })
}
