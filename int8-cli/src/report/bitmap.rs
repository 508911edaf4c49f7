//! Plots as PNG files: a bitmap of several times the plot's size, averaged, so that lines and letters have smooth edges.
//! The font, DejaVu Sans, is part of this program: nothing of the system is used.

use std::sync::LazyLock;

use plotters::prelude::*;
use plotters::style::register_font;
use plotters_backend::{
    BackendColor, BackendCoord, BackendStyle, BackendTextStyle, DrawingErrorKind, FontFamily, FontTransform,
    text_anchor,
};

use crate::convert::{average, pixels};
use crate::failure::Failure;

/// The family of all text. In a picture it is DejaVu Sans; in SVG whatever the reader has, and as DejaVu is the widest of
/// the usual ones, what was laid out for it has room for the others.
pub(super) const FAMILY: &str = "sans-serif";
/// Pixels of a picture for one of the plot, each way: sharp on screens of high density and when printed.
pub(super) const DENSITY: u32 = 2;
/// Pixels that are drawn for one of the picture, each way.
const SAMPLES: u32 = 2;
/// Side of one pixel of the plot while drawing, in drawn pixels.
const ZOOM: u32 = DENSITY * SAMPLES;
/// Where a line of text lies below where plotters' bitmaps have it, as a part of its size: its baseline is then where SVG has
/// it.
const BASELINE: f64 = 0.115;

/// The font for measuring and drawing, made known to plotters once.
static FONT: LazyLock<bool> =
    LazyLock::new(|| register_font(FAMILY, FontStyle::Normal, dejavu::sans::regular()).is_ok());

/// Makes the font known.
///
/// # Errors
/// When it cannot be read, which would be a fault of this program.
pub(super) fn register() -> Result<(), Failure> {
    if *FONT { Ok(()) } else { Err(Failure::new("the font of plots cannot be read")) }
}

/// A PNG file, of a plot of this size in pixels.
///
/// # Errors
/// Those of `draw`.
pub(super) fn png(
    size: (u32, u32),
    draw: impl FnOnce(Enlarged<'_>) -> Result<(), Failure>,
) -> Result<Vec<u8>, Failure> {
    let drawn = (size.0 * ZOOM, size.1 * ZOOM);
    let shown = (size.0 * DENSITY, size.1 * DENSITY);
    let mut pixels = vec![255; 3 * index(drawn.0) * index(drawn.1)];
    draw(Enlarged(BitMapBackend::with_buffer(&mut pixels, drawn)))?;
    let pixels = averaged(&pixels, index(shown.0));
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, shown.0, shown.1);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    let failed = |error| Failure::new(format!("a plot could not be written as PNG: {error}"));
    let mut writer = encoder.write_header().map_err(failed)?;
    writer.write_image_data(&pixels).map_err(failed)?;
    writer.finish().map_err(failed)?;
    Ok(file)
}

/// Each pixel of a picture this wide: the mean of the `SAMPLES` × `SAMPLES` that were drawn for it. RGB, 8 bits each.
fn averaged(drawn: &[u8], width: usize) -> Vec<u8> {
    let samples = index(SAMPLES);
    let row = 3 * width * samples;
    let mut pixels = Vec::with_capacity(drawn.len() / (samples * samples));
    for rows in drawn.chunks_exact(row * samples) {
        for left in (0..row).step_by(3 * samples) {
            for channel in 0..3 {
                let places = (0..samples * samples)
                    .map(|at| (at / samples) * row + left + 3 * (at % samples) + channel);
                pixels.push(average(places.map(|place| rows[place])));
            }
        }
    }
    pixels
}

/// A size as an index: no target's are shorter than 32 bits.
fn index(size: u32) -> usize {
    size as usize
}

/// A bitmap that multiplies all lengths by `ZOOM`: the code that draws SVG draws it, too.
pub(super) struct Enlarged<'a>(BitMapBackend<'a>);

type Drawn<'a> = Result<(), DrawingErrorKind<<BitMapBackend<'a> as DrawingBackend>::ErrorType>>;

const fn times(length: i32) -> i32 {
    length * ZOOM.cast_signed()
}

fn place(at: BackendCoord) -> BackendCoord {
    (times(at.0), times(at.1))
}

/// Colour and width of a line, enlarged.
struct Stroke(BackendColor, u32);

impl Stroke {
    fn of(style: &impl BackendStyle) -> Self {
        Self(style.color(), style.stroke_width() * ZOOM)
    }
}

impl BackendStyle for Stroke {
    fn color(&self) -> BackendColor {
        self.0
    }

    fn stroke_width(&self) -> u32 {
        self.1
    }
}

impl<'a> DrawingBackend for Enlarged<'a> {
    type ErrorType = <BitMapBackend<'a> as DrawingBackend>::ErrorType;

    fn get_size(&self) -> (u32, u32) {
        let (width, height) = self.0.get_size();
        (width / ZOOM, height / ZOOM)
    }

    fn ensure_prepared(&mut self) -> Drawn<'a> {
        self.0.ensure_prepared()
    }

    fn present(&mut self) -> Drawn<'a> {
        self.0.present()
    }

    fn draw_pixel(&mut self, at: BackendCoord, color: BackendColor) -> Drawn<'a> {
        self.draw_rect(at, (at.0 + 1, at.1 + 1), &color, true)
    }

    fn draw_line<S: BackendStyle>(&mut self, from: BackendCoord, to: BackendCoord, style: &S) -> Drawn<'a> {
        self.draw_path([from, to], style)
    }

    fn draw_rect<S: BackendStyle>(
        &mut self,
        from: BackendCoord,
        to: BackendCoord,
        style: &S,
        fill: bool,
    ) -> Drawn<'a> {
        if fill {
            return self.0.draw_rect(place(from), place(to), &style.color(), true);
        }
        self.draw_path([from, (to.0, from.1), to, (from.0, to.1), from], style)
    }

    fn draw_path<S: BackendStyle, I: IntoIterator<Item = BackendCoord>>(
        &mut self,
        path: I,
        style: &S,
    ) -> Drawn<'a> {
        self.0.draw_path(path.into_iter().map(place), &Stroke::of(style))
    }

    fn draw_circle<S: BackendStyle>(
        &mut self,
        center: BackendCoord,
        radius: u32,
        style: &S,
        fill: bool,
    ) -> Drawn<'a> {
        self.0.draw_circle(place(center), radius * ZOOM, &Stroke::of(style), fill)
    }

    fn fill_polygon<S: BackendStyle, I: IntoIterator<Item = BackendCoord>>(
        &mut self,
        corners: I,
        style: &S,
    ) -> Drawn<'a> {
        self.0.fill_polygon(corners.into_iter().map(place), &style.color())
    }

    fn draw_text<S: BackendTextStyle>(&mut self, words: &str, style: &S, at: BackendCoord) -> Drawn<'a> {
        let size = style.size() * f64::from(ZOOM);
        let font = FontDesc::new(style.family(), size, style.style()).transform(style.transform());
        let text = TextStyle { font, color: style.color(), pos: style.anchor() };
        self.0.draw_text(words, &Lowered(text), place(at))
    }
}

/// Text with its baseline where SVG has it.
struct Lowered<'a>(TextStyle<'a>);

impl BackendTextStyle for Lowered<'_> {
    type FontError = <TextStyle<'static> as BackendTextStyle>::FontError;

    fn color(&self) -> BackendColor {
        self.0.color
    }

    fn size(&self) -> f64 {
        self.0.size()
    }

    fn transform(&self) -> FontTransform {
        self.0.font.get_transform()
    }

    fn style(&self) -> FontStyle {
        self.0.style()
    }

    fn anchor(&self) -> text_anchor::Pos {
        self.0.pos
    }

    fn family(&self) -> FontFamily<'_> {
        self.0.family()
    }

    fn layout_box(&self, words: &str) -> Result<(BackendCoord, BackendCoord), Self::FontError> {
        self.0.layout_box(words)
    }

    fn draw<E, D: FnMut(i32, i32, BackendColor) -> Result<(), E>>(
        &self,
        words: &str,
        at: BackendCoord,
        draw: D,
    ) -> Result<Result<(), E>, Self::FontError> {
        self.0.draw(words, (at.0, at.1 + pixels(BASELINE * self.size())), draw)
    }
}
