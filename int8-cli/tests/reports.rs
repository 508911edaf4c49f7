//! `eval --compare` and `outliers` on the embedded model, and their pages in a browser.
#![allow(clippy::print_stdout, reason = "says what it skips")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

fn asset(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("assets").join(name).to_str().expect("UTF-8").to_owned()
}

fn json(arguments: &[&str]) -> Value {
    let output = Command::new(env!("CARGO_BIN_EXE_int8"))
        .args(arguments)
        .arg("--json")
        .env_remove("INT8_KERNEL")
        .output()
        .expect("the program");
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("one JSON object and nothing else")
}

/// Both reports, made once for the tests of this file.
struct Reports {
    folder: TempDir,
    compare: Value,
    outliers: Value,
}

impl Reports {
    fn make() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name).to_str().expect("UTF-8").to_owned();
        let (model, text) = (asset("demo-opt"), asset("demo.txt"));
        let words = at("words.jsonl");
        fs::write(
            &words,
            "{\"text\": \"The old man went down to the sea\"}\n\n{\"text\": \"He said nothing\"}\n",
        )
        .expect("written");
        let compare = json(&[
            "eval",
            &model,
            "--text",
            &text,
            "--window",
            "256",
            "--windows",
            "3",
            "--compare",
            "--csv",
            &at("compare.csv"),
            "--report",
            &at("compare.html"),
            "--plots",
            &at("compare-plots"),
            "--last-words",
            &words,
        ]);
        let outliers = json(&[
            "outliers",
            &model,
            "--text",
            &text,
            "--window",
            "256",
            "--windows",
            "3",
            "--report",
            &at("outliers.html"),
            "--plots",
            &at("plots"),
        ]);
        Self { folder, compare, outliers }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

#[test]
fn reports() {
    let reports = Reports::make();
    comparison(&reports);
    outlier_features(&reports);
    for page in ["compare.html", "outliers.html"] {
        in_a_browser(&reports, page);
    }
}

fn comparison(reports: &Reports) {
    let schemes = reports.compare["schemes"].as_array().expect("schemes");
    let of = |name: &str, what: &str| {
        let scheme = schemes.iter().find(|scheme| scheme["name"] == name).expect("the scheme");
        scheme["comparison"][what].as_f64().expect("a number")
    };
    // The order of the paper: outlier decomposition loses least, one scale a tensor most.
    for measure in ["loss", "kl_divergence"] {
        let [llm, vector, dequantized, tensor] =
            ["llm-int8", "absmax-vector-wise", "llm-int8, dequantized", "absmax"]
                .map(|name| of(name, measure));
        assert!(llm < dequantized && dequantized < vector && vector < tensor, "{measure}");
        assert!(of("best", measure) < dequantized, "{measure}");
    }
    // Perplexity of two windows is too noisy to tell them apart; the divergence is a quarter.
    assert!(of("best", "kl_divergence") < 0.5 * of("llm-int8", "kl_divergence"));
    assert!(of("llm-int8", "top1_agreement") > 0.9 && of("absmax", "top1_agreement") < 0.9);
    assert!(of("llm-int8", "loss_error") < of("absmax", "loss_error"));
    for scheme in schemes {
        assert_eq!(scheme["layers"].as_array().map(Vec::len), Some(24), "{}", scheme["name"]);
        assert_eq!(scheme["last_words"]["passages"], 2);
    }
    let csv = fs::read_to_string(reports.path("compare.csv")).expect("the CSV");
    assert_eq!(csv.lines().count(), schemes.len() + 2, "a heading, float, and a line a scheme");
    plots(
        &reports.path("compare-plots"),
        &["perplexity", "loss-absolute", "loss-relative", "errors-llm-int8", "errors-best"],
    );
    let sweep = &reports.compare["sweep"];
    assert!(sweep["absolute"].as_array().is_some_and(|points| points.len() == 6));
}

fn outlier_features(reports: &Reports) {
    let report = &reports.outliers["report"];
    let features = report["features"].as_array().expect("features");
    let dimensions: Vec<u64> = features.iter().filter_map(|feature| feature["dimension"].as_u64()).collect();
    assert_eq!(dimensions, [17, 45, 71, 102, 138, 169], "the planted dimensions and no other");
    assert!(features.iter().all(|feature| feature["one_sided"] == true && feature["layers"] == 1.0));
    let perplexity = |what: &str| reports.outliers["effect"][what]["perplexity"].as_f64().expect("a number");
    let float = perplexity("float");
    assert!(perplexity("without_features") > 3.0 * float, "{}", reports.outliers["effect"]);
    assert!(perplexity("without_random_dimensions") < 1.5 * float, "{}", reports.outliers["effect"]);
    plots(&reports.path("plots"), &["hidden-states", "inner-states", "magnitudes", "thresholds"]);
}

/// A folder holds these plots, each as SVG and PNG of one form, and no other file.
fn plots(folder: &Path, names: &[&str]) {
    for name in names {
        let svg = fs::read_to_string(folder.join(format!("{name}.svg"))).expect("the drawing");
        assert!(svg.contains("<svg") && svg.trim_end().ends_with("</svg>"), "{name}");
        assert!(svg.contains("demo-opt") && svg.contains("demo.txt"), "{name} says of what it is");
        let file = fs::File::open(folder.join(format!("{name}.png"))).expect("the picture");
        let mut reader = png::Decoder::new(std::io::BufReader::new(file)).read_info().expect("PNG");
        let mut pixels = vec![0; reader.output_buffer_size().expect("a size")];
        reader.next_frame(&mut pixels).expect("whole");
        let (width, height) = (reader.info().width, reader.info().height);
        let size = format!("width=\"{}\" height=\"{}\"", width / 2, height / 2);
        assert!(svg.contains(&size), "{name}: {width} x {height} against {svg}");
        assert!(pixels.iter().filter(|channel| **channel < 128).count() > 1000, "{name} is blank");
    }
    assert_eq!(fs::read_dir(folder).expect("the folder").count(), 2 * names.len(), "{}", folder.display());
}

/// Opens a page as a phone and as a desktop would: no message on the console, no request, nothing cut off.
fn in_a_browser(reports: &Reports, name: &str) {
    let page = fs::read_to_string(reports.path(name)).expect("the page");
    for outside in ["src=", "<script", "@import", "url(", "href=\"http"] {
        assert!(!page.contains(outside), "{name} holds {outside}");
    }
    let browsers = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];
    let version =
        |name: &&&str| Command::new(name).arg("--version").output().is_ok_and(|out| out.status.success());
    let Some(browser) = browsers.iter().find(version) else {
        println!("skipped: {name} in a browser; install chromium to run it");
        return;
    };
    // The page itself runs nothing; a copy of it tells its own measures.
    let measured = reports.path("measured.html");
    let script =
        "<script>document.title=`${document.documentElement.scrollWidth} ${innerWidth}`</script></body>";
    fs::write(&measured, page.replace("</body>", script)).expect("written");
    for width in [1280, 390] {
        let log = reports.path("net.json");
        let picture = match std::env::var_os("INT8_SCREENSHOTS") {
            Some(folder) => Path::new(&folder).join(format!("{name}-{width}.png")),
            None => reports.path("page.png"),
        };
        let run = |file: &Path, more: &[String]| {
            let output = Command::new(browser)
                .args([
                    "--headless=new",
                    "--no-sandbox",
                    "--disable-gpu",
                    "--hide-scrollbars",
                    "--enable-logging=stderr",
                ])
                .args([
                    "--no-first-run",
                    "--disable-background-networking",
                    "--disable-component-update",
                    "--disable-sync",
                ])
                .arg(format!("--user-data-dir={}", reports.path("profile").display()))
                .arg(format!("--window-size={width},2400"))
                .args(more)
                .arg(format!("file://{}", file.display()))
                .output()
                .expect("the browser");
            (
                String::from_utf8_lossy(&output.stdout).into_owned(),
                String::from_utf8_lossy(&output.stderr).into_owned(),
            )
        };
        let shot =
            [format!("--screenshot={}", picture.display()), format!("--log-net-log={}", log.display())];
        let (_, messages) = run(&reports.path(name), &shot);
        assert!(!messages.contains("CONSOLE"), "{name} at {width}: {messages}");
        assert!(
            fs::metadata(&picture).is_ok_and(|picture| picture.len() > 10_000),
            "{name} at {width}: no picture"
        );
        let requests = fs::read_to_string(&log).unwrap_or_default();
        let fetched = requests.split("\"url\":\"").skip(1).filter_map(|rest| rest.split('"').next());
        let outside: Vec<&str> =
            fetched.filter(|url| url.starts_with("http") && !url.contains("google")).collect();
        assert!(outside.is_empty(), "{name} fetches {outside:?}");
        let (dom, _) = run(&measured, &["--dump-dom".to_owned()]);
        let title =
            dom.split("<title>").nth(1).and_then(|rest| rest.split("</title>").next()).unwrap_or_default();
        let measures: Vec<u32> = title.split(' ').filter_map(|number| number.parse().ok()).collect();
        assert!(
            matches!(measures[..], [content, window] if content <= window),
            "{name} at {width}: content and window are {title:?} wide"
        );
    }
}
