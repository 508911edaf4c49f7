//! Plots as files of their own.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use super::charts::{Caption, Chart};
use crate::failure::Failure;
use crate::output::OutputFile;

/// A plot with the name of its files, title and description.
pub(crate) struct Plot {
    pub(crate) name: String,
    pub(crate) title: String,
    pub(crate) text: &'static str,
    /// Source of the data: the subtitle where the plot is a file.
    pub(crate) source: String,
    pub(crate) chart: Chart,
}

/// The folder of `--plots`.
pub(crate) struct PlotFolder(PathBuf);

impl PlotFolder {
    /// Makes the folder, and sees that files can be written there: before the work that the plots show, which may be long.
    ///
    /// # Errors
    /// When it cannot be made or written to.
    pub(crate) fn open(path: &Path) -> Result<Self, Failure> {
        let named = |error: std::io::Error| {
            Failure::new(format!("--plots {}: {error}", path.display()))
                .hint("give a folder that can be made and written to")
        };
        fs::create_dir_all(path).map_err(named)?;
        int8_nn::files::check_replaceable(&path.join("plots")).map_err(named)?;
        Ok(Self(path.to_owned()))
    }

    /// Writes every plot as NAME.svg and NAME.png.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub(crate) fn write(&self, plots: &[Plot]) -> Result<(), Failure> {
        for plot in plots {
            let caption = Caption { title: &plot.title, source: &plot.source };
            for format in ["svg", "png"] {
                let file = OutputFile::new("--plots", &self.0.join(format!("{}.{format}", plot.name)))?;
                write_chart(&file, &plot.chart, caption)?;
            }
        }
        Ok(())
    }
}

/// Writes a plot as PNG where the name of the file ends in .png, and as SVG otherwise.
///
/// # Errors
/// When the file cannot be written.
pub(crate) fn write_chart(file: &OutputFile, chart: &Chart, caption: Caption<'_>) -> Result<(), Failure> {
    let picture =
        file.path().extension().and_then(OsStr::to_str).is_some_and(|end| end.eq_ignore_ascii_case("png"));
    if picture {
        file.write(&chart.png(Some(caption))?)
    } else {
        file.write(chart.svg(Some(caption))?.as_bytes())
    }
}

/// The last part of a path, to call a model or text by in a caption.
pub(crate) fn short_name(path: &Path) -> String {
    let name = path.file_name().or_else(|| path.parent().and_then(Path::file_name));
    name.unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::report::charts::{Axis, Series};

    const CAPTION: Caption<'_> =
        Caption { title: "Magnitudes by layer", source: "a model, 768 tokens of a text" };

    fn charts() -> Vec<(&'static str, Chart)> {
        let cells = |row: usize| (0..192).map(|at| if at % 29 == row { 70.0 } else { 2.5 }).collect();
        let rows = (0..12).map(|row| (format!("{row} MLP up"), cells(row))).collect();
        let line = |name: &str, points: Vec<(f64, f64)>| Series { name: name.to_owned(), points };
        let (x, y) = (Axis { label: "layer", log: false }, Axis { label: "magnitude", log: true });
        let series = vec![
            line("largest", vec![(0.0, 3.0), (1.0, 50.0)]),
            line("median", vec![(0.0, 0.5), (1.0, 0.7)]),
        ];
        vec![
            ("bars", Chart::Bars(vec![("float".to_owned(), 9.1), ("absmax".to_owned(), 31.0)])),
            ("lines", Chart::Lines { x, y, series }),
            ("heat-map", Chart::HeatMap { rows, floor: 2.0, columns: "dimension" }),
        ]
    }

    /// Width, height and pixels of a PNG file.
    fn decoded(file: &[u8]) -> (u32, u32, Vec<[u8; 3]>) {
        let mut reader = png::Decoder::new(std::io::Cursor::new(file)).read_info().expect("a PNG file");
        let mut bytes = vec![0; reader.output_buffer_size().expect("a size")];
        let info = reader.next_frame(&mut bytes).expect("whole");
        assert_eq!((info.color_type, info.bit_depth), (png::ColorType::Rgb, png::BitDepth::Eight));
        (info.width, info.height, bytes.as_chunks().0.to_vec())
    }

    /// How many of the first lines' pixels are dark.
    fn dark(file: &[u8], lines: usize) -> usize {
        let (width, _, pixels) = decoded(file);
        let strip = &pixels[..lines * usize::try_from(width).expect("small")];
        strip.iter().filter(|pixel| pixel.iter().all(|channel| *channel < 128)).count()
    }

    #[test]
    fn a_picture_is_the_plot_at_twice_its_size() {
        for (name, chart) in charts() {
            let svg = chart.svg(Some(CAPTION)).expect("drawn");
            let (width, height, pixels) = decoded(&chart.png(Some(CAPTION)).expect("drawn"));
            let size = format!("width=\"{}\" height=\"{}\"", width / 2, height / 2);
            assert!(
                width == 1520 && height > 100 && svg.contains(&size),
                "{name}: {width} x {height}, {svg}"
            );
            let colors: BTreeSet<_> = pixels.iter().collect();
            assert!(colors.len() > 20, "{name} has {} colours", colors.len());
            let white = pixels.iter().filter(|pixel| **pixel == [255; 3]).count();
            assert!(white > pixels.len() / 4 && white < pixels.len() * 99 / 100, "{name}: {white} white");
        }
    }

    #[test]
    fn letters_are_drawn() {
        for (name, chart) in charts() {
            let png = |title| chart.png(Some(Caption { title, source: "" })).expect("drawn");
            assert_eq!(dark(&png(""), 60), 0, "{name}: nothing above a plot but its caption");
            let (few, many) = (dark(&png("l"), 60), dark(&png("llllllllll"), 60));
            assert!(few > 10 && many == 10 * few, "{name}: {few} and {many} dark pixels");
            // Greek is in the font too, and is not drawn as a missing glyph.
            assert_ne!(png("τ"), png("\u{10ffff}"), "{name}");
        }
    }

    #[test]
    fn a_caption_ends_where_the_plot_does() {
        let long = "a very long name of a model and its text ".repeat(9);
        let (_, chart) = charts().remove(0);
        let svg = chart.svg(Some(Caption { title: &long, source: &long })).expect("drawn");
        assert!(svg.contains("a very long name") && svg.matches('…').count() == 2 && !svg.contains(&long));
    }

    #[test]
    fn what_cannot_be_placed_is_left_out() {
        let (x, y) = (Axis { label: "x", log: true }, Axis { label: "y", log: false });
        for points in
            [vec![], vec![(1.0, f64::NAN)], vec![(0.0, 1.0)], vec![(2.0, 50.0)], vec![(1.0, 7.0); 3]]
        {
            let inside = points.iter().filter(|(x, y): &&(f64, f64)| *x > 0.0 && y.is_finite()).count();
            let chart = Chart::Lines { x, y, series: vec![Series { name: "one".to_owned(), points }] };
            let svg = chart.svg(None).expect("drawn");
            assert_eq!(svg.matches("<circle").count(), inside);
            chart.png(None).expect("drawn");
        }
        for entries in [vec![], vec![("NaN".to_owned(), f64::NAN)], vec![("inf".to_owned(), f64::INFINITY)]] {
            Chart::Bars(entries).png(None).expect("drawn");
        }
        Chart::HeatMap { rows: Vec::new(), floor: 2.0, columns: "none" }.png(None).expect("drawn");
    }

    #[test]
    fn both_formats_are_written_and_nothing_else() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("new/plots");
        let plots: Vec<Plot> = charts()
            .into_iter()
            .map(|(name, chart)| Plot {
                name: name.to_owned(),
                title: name.to_owned(),
                text: "",
                source: String::new(),
                chart,
            })
            .collect();
        PlotFolder::open(&path).and_then(|folder| folder.write(&plots)).expect("written");
        let names: BTreeSet<String> = fs::read_dir(&path)
            .expect("the folder")
            .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
            .collect();
        let all = ["bars.png", "bars.svg", "heat-map.png", "heat-map.svg", "lines.png", "lines.svg"];
        assert_eq!(names.iter().map(String::as_str).collect::<Vec<_>>(), all);
    }

    #[test]
    fn a_folder_that_cannot_be_is_refused_before_the_work() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("file");
        fs::write(&file, "kept").expect("written");
        for path in [file.clone(), file.join("below")] {
            let refused = PlotFolder::open(&path).err().expect("refused").to_string();
            let name = format!("--plots {}: ", path.display());
            assert!(refused.starts_with(&name) && refused.contains("hint: "), "{refused}");
        }
        assert_eq!(fs::read_to_string(file).expect("read"), "kept");
    }

    #[test]
    fn a_model_is_called_by_the_last_part_of_its_path() {
        for (path, name) in [("models/opt-125m", "opt-125m"), ("org/name/", "name"), ("..", "..")] {
            assert_eq!(short_name(Path::new(path)), name);
        }
    }
}
