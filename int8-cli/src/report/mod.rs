//! Reports: one self-contained HTML file without scripts, and CSV.

mod bitmap;
pub(crate) mod charts;
pub(crate) mod plots;

use std::fmt::Write as _;

use self::plots::Plot;
use crate::failure::Failure;
use crate::output::OutputFile;

/// A page under construction.
pub(crate) struct Page {
    body: String,
    title: String,
}

/// A table: a heading for each column, whether the column holds numbers, and rows of cells.
pub(crate) struct Table {
    pub(crate) columns: Vec<(&'static str, bool)>,
    pub(crate) rows: Vec<Vec<String>>,
}

/// Tables and plots that are wider than the screen scroll by themselves. In the dark, plots are drawn with their lightness turned round and their hues kept.
const STYLE: &str = "\
:root{color-scheme:light dark;--text:#1b1b1b;--soft:#444;--ground:#fff;--line:#ddd;--rule:#888;--hover:#f3f6fa;--code:#f2f2f2}\
@media(prefers-color-scheme:dark){:root{--text:#e6e6e6;--soft:#b5b5b5;--ground:#161616;--line:#383838;--rule:#777;--hover:#22272e;--code:#2a2a2a}\
.wide svg{filter:invert(.92) hue-rotate(180deg)}}\
body{font:16px/1.5 system-ui,sans-serif;color:var(--text);background:var(--ground);max-width:78rem;margin:0 auto;padding:1.5rem 1rem 4rem}\
h1{font-size:1.6rem;overflow-wrap:anywhere;line-height:1.25;margin:.2em 0}h2{font-size:1.2rem;margin:2.2em 0 .4em}\
p{max-width:44rem;margin:.5em 0}.lead{color:var(--soft)}\
.wide{overflow-x:auto;margin:.8em 0}.wide svg{display:block;min-width:640px;width:100%;max-width:60rem;height:auto}\
table{border-collapse:collapse;font-size:.85rem;font-variant-numeric:tabular-nums}\
th,td{padding:.3em .5em;border-bottom:1px solid var(--line);text-align:left;white-space:nowrap}\
th{border-bottom:2px solid var(--rule);vertical-align:bottom}.n{text-align:right}tbody tr:hover{background:var(--hover)}\
dl{display:grid;grid-template-columns:max-content 1fr;gap:.2em 1em;font-size:.9rem}dt{color:var(--soft)}dd{margin:0;overflow-wrap:anywhere}\
code{background:var(--code);padding:.1em .3em;border-radius:3px;overflow-wrap:anywhere}";

impl Page {
    /// A page with its title and a sentence below it.
    pub(crate) fn new(title: &str, lead: &str) -> Self {
        let body = format!("<h1>{}</h1>\n<p class=\"lead\">{}</p>\n", escape(title), escape(lead));
        Self { body, title: title.to_owned() }
    }

    /// A heading and a paragraph.
    pub(crate) fn section(&mut self, heading: &str, text: &str) {
        // Writing to a string cannot fail.
        let _ = write!(self.body, "<h2>{}</h2>\n<p>{}</p>\n", escape(heading), escape(text));
    }

    /// A plot, below a heading that describes it.
    ///
    /// # Errors
    /// When it cannot be drawn.
    pub(crate) fn plot(&mut self, plot: &Plot) -> Result<(), Failure> {
        let svg = plot.chart.svg(None)?;
        // Without the XML declaration of a file.
        let svg = svg.find("<svg").map_or(&svg[..], |start| &svg[start..]);
        let labelled =
            svg.replacen("<svg", &format!("<svg role=\"img\" aria-label=\"{}\"", escape(&plot.title)), 1);
        let _ = writeln!(self.body, "<div class=\"wide\">{labelled}</div>");
        Ok(())
    }

    /// A table.
    pub(crate) fn table(&mut self, table: &Table) {
        self.body.push_str("<div class=\"wide\"><table><thead><tr>");
        let class = |number: bool| if number { " class=\"n\"" } else { "" };
        for (heading, number) in &table.columns {
            let _ = write!(self.body, "<th{}>{}</th>", class(*number), escape(heading));
        }
        self.body.push_str("</tr></thead><tbody>\n");
        for row in &table.rows {
            self.body.push_str("<tr>");
            for (cell, (_, number)) in row.iter().zip(&table.columns) {
                let _ = write!(self.body, "<td{}>{}</td>", class(*number), escape(cell));
            }
            self.body.push_str("</tr>\n");
        }
        self.body.push_str("</tbody></table></div>\n");
    }

    /// How the page was made: what is needed to repeat it. `facts`: names and values.
    pub(crate) fn made(&mut self, facts: &[(&str, String)]) {
        let program = format!("int8 {}", env!("CARGO_PKG_VERSION"));
        let date = jiff::Zoned::now().strftime("%Y-%m-%d %H:%M %Z").to_string();
        let own = [("command", command_line(std::env::args())), ("date", date), ("program", program)];
        let entries: String = facts
            .iter()
            .map(|(name, value)| (*name, value))
            .chain(own.iter().map(|(name, value)| (*name, value)))
            .map(|(name, value)| format!("<dt>{}</dt><dd>{}</dd>", escape(name), escape(value)))
            .collect();
        let _ = writeln!(self.body, "<h2>How this was made</h2>\n<dl>{entries}</dl>");
    }

    /// Writes the page.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(crate) fn write(&self, file: &OutputFile) -> Result<(), Failure> {
        let page = format!(
            "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
             <link rel=\"icon\" href=\"data:,\"><title>{}</title><style>{STYLE}</style></head>\n<body>\n{}</body></html>\n",
            escape(&self.title),
            self.body,
        );
        file.write(page.as_bytes())
    }
}

impl Table {
    /// Writes the table as CSV (RFC 4180).
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(crate) fn write_csv(&self, file: &OutputFile) -> Result<(), Failure> {
        let field = |text: &str| {
            if text.contains([',', '"', '\n']) {
                format!("\"{}\"", text.replace('"', "\"\""))
            } else {
                text.to_owned()
            }
        };
        let line =
            |cells: &mut dyn Iterator<Item = &str>| cells.map(field).collect::<Vec<_>>().join(",") + "\r\n";
        let mut csv = line(&mut self.columns.iter().map(|(heading, _)| *heading));
        for row in &self.rows {
            csv += &line(&mut row.iter().map(String::as_str));
        }
        file.write(csv.as_bytes())
    }

    /// The table as text, columns aligned.
    pub(crate) fn to_text(&self) -> String {
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
            cells.max().unwrap_or(0).max(self.columns[column].0.chars().count())
        };
        let widths: Vec<usize> = (0..self.columns.len()).map(width).collect();
        let mut text = String::new();
        let mut line = |cells: &[&str]| {
            let mut padded = String::new();
            for ((cell, width), (_, number)) in cells.iter().zip(&widths).zip(&self.columns) {
                let _ = if *number {
                    write!(padded, "{cell:>width$}  ")
                } else {
                    write!(padded, "{cell:<width$}  ")
                };
            }
            let _ = writeln!(text, "{}", padded.trim_end());
        };
        line(&self.columns.iter().map(|(heading, _)| *heading).collect::<Vec<_>>());
        for row in &self.rows {
            line(&row.iter().map(String::as_str).collect::<Vec<_>>());
        }
        text
    }
}

/// A command line that a shell reads as these arguments; the program by its name alone.
fn command_line(arguments: impl Iterator<Item = String>) -> String {
    let is_plain = |text: &str| {
        !text.is_empty() && text.chars().all(|c| c.is_alphanumeric() || "-_./:=,@%+".contains(c))
    };
    let quoted = arguments.enumerate().map(|(index, argument)| match argument {
        _ if index == 0 => "int8".to_owned(),
        argument if is_plain(&argument) => argument,
        argument => format!("'{}'", argument.replace('\'', "'\\''")),
    });
    quoted.collect::<Vec<_>>().join(" ")
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_text_whatever_they_hold() {
        let mut page = Page::new("a < b", "");
        page.table(&Table { columns: vec![("x", false)], rows: vec![vec!["<script>\"&".to_owned()]] });
        assert!(page.body.contains("&lt;script&gt;&quot;&amp;") && !page.body.contains("<script"));
    }

    #[test]
    fn command_lines_can_be_pasted() {
        let line = |arguments: &[&str]| command_line(arguments.iter().map(|text| (*text).to_owned()));
        assert_eq!(
            line(&["/usr/bin/int8", "eval", "./m", "--text", "it's.txt"]),
            r"int8 eval ./m --text 'it'\''s.txt'"
        );
        assert_eq!(line(&["x", "", "a b"]), "int8 '' 'a b'");
    }

    #[test]
    fn text_is_aligned_and_csv_quoted() {
        let table = Table {
            columns: vec![("name", false), ("n", true)],
            rows: vec![vec!["a, b".to_owned(), "1".to_owned()], vec!["c".to_owned(), "10".to_owned()]],
        };
        assert_eq!(table.to_text(), "name   n\na, b   1\nc     10\n");
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("t.csv");
        table.write_csv(&OutputFile::new("--csv", &path).expect("writable")).expect("written");
        assert_eq!(std::fs::read_to_string(path).expect("read"), "name,n\r\n\"a, b\",1\r\nc,10\r\n");
    }
}
