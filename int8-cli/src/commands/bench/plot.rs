//! Speed-ups as an SVG drawing: one line for each number of rows.

use std::fmt::Write;

use super::Line;
use crate::convert::real;

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 420.0;
/// Left, top, right and bottom of the area of the lines.
const AREA: [f64; 4] = [60.0, 50.0, 640.0, 360.0];
/// Blue, orange, green, purple: told apart by those who see colours differently, too.
const COLORS: [&str; 4] = ["#0072b2", "#d55e00", "#009e73", "#8a4fa3"];

/// A drawing of the layer's speed-up over bf16 weights.
pub(super) fn speed_ups(title: &str, lines: &[Line]) -> String {
    let mut rows: Vec<usize> = lines.iter().map(|line| line.shape.rows).collect();
    rows.dedup();
    let layers: Vec<(usize, usize)> = lines
        .iter()
        .filter(|line| Some(&line.shape.rows) == rows.first())
        .map(|line| (line.shape.outputs, line.shape.inner))
        .collect();
    let highest = lines.iter().map(Line::against_bf16).fold(1.0, f64::max);
    let step = [0.5, 1.0, 2.0, 5.0].into_iter().find(|step| highest / step <= 8.0).unwrap_or(10.0);
    let top = (highest / step).ceil() * step;
    let [left, upper, right, lower] = AREA;
    let x = |index: usize| left + (right - left) * (real(index) + 0.5) / real(layers.len().max(1));
    let y = |value: f64| lower - (lower - upper) * value / top;

    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{HEIGHT}\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"{left}\" y=\"28\" font-size=\"15\">{}</text>\n",
        escaped(title)
    );
    let mut value = 0.0;
    while value <= top + 1e-9 {
        let at = y(value);
        let color = if (value - 1.0).abs() < 1e-9 { "#888" } else { "#ddd" };
        line(
            &mut svg,
            &format!("<line x1=\"{left}\" x2=\"{right}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"{color}\"/>"),
        );
        let label = left - 8.0;
        let text = at + 4.0;
        line(&mut svg, &format!("<text x=\"{label}\" y=\"{text:.1}\" text-anchor=\"end\">{value}×</text>"));
        value += step;
    }
    for (i, (outputs, inner)) in layers.iter().enumerate() {
        let (at, below) = (x(i), lower + 20.0);
        line(
            &mut svg,
            &format!("<text x=\"{at:.1}\" y=\"{below}\" text-anchor=\"middle\">{outputs}×{inner}</text>"),
        );
    }
    let (middle, below) = (0.5 * (left + right), lower + 42.0);
    line(
        &mut svg,
        &format!("<text x=\"{middle}\" y=\"{below}\" text-anchor=\"middle\">outputs N × inputs K</text>"),
    );
    for (i, rows) in rows.iter().enumerate() {
        let color = COLORS[i % COLORS.len()];
        let values: Vec<f64> =
            lines.iter().filter(|line| line.shape.rows == *rows).map(Line::against_bf16).collect();
        let points: Vec<String> =
            values.iter().enumerate().map(|(j, value)| format!("{:.1},{:.1}", x(j), y(*value))).collect();
        let path = points.join(" ");
        line(
            &mut svg,
            &format!("<polyline points=\"{path}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"2\"/>"),
        );
        for (j, value) in values.iter().enumerate() {
            line(
                &mut svg,
                &format!("<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3.5\" fill=\"{color}\"/>", x(j), y(*value)),
            );
        }
        let (at, height) = (right + 14.0, upper + 14.0 + 20.0 * real(i));
        line(&mut svg, &format!("<text x=\"{at}\" y=\"{height}\" fill=\"{color}\">M = {rows}</text>"));
    }
    svg.push_str("</svg>\n");
    svg
}

fn line(svg: &mut String, element: &str) {
    // Writing to a string cannot fail.
    let _ = writeln!(svg, "{element}");
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use int8_nn::backend::cpu::bench::{Shape, Times};

    use super::*;

    #[test]
    fn each_number_of_rows_is_a_line() {
        let measured = |rows: usize, outputs: usize, ratio: f64| Line {
            shape: Shape { rows, outputs, inner: 64 },
            times: Times { raw: 1.0, layer: 1.0, bf16: ratio, f32: 1.0, others: Vec::new() },
        };
        let lines = [measured(1, 8, 2.0), measured(1, 16, 3.0), measured(64, 8, 0.5), measured(64, 16, 11.0)];
        let svg = speed_ups("a < b", &lines);
        assert_eq!(svg.matches("<polyline").count(), 2);
        assert_eq!(svg.matches("<circle").count(), 4);
        assert!(svg.contains("a &lt; b") && svg.contains("M = 64") && svg.contains("16×64"));
        assert!(!svg.contains("NaN"));
    }
}
