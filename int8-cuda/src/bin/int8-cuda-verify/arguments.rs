//! The command line of `int8-cuda-verify`.

use int8_cuda::Algorithm;

/// Printed for `--help`.
pub(crate) const HELP: &str = "\
int8-cuda-verify: compares every kernel of this machine's GPU with int8-core

  --cases N        random cases beside the named ones (12000; with --quick 20)
  --streams N      streams, each with a thread of its own, that share the cases (8). With 1, one kernel runs at a time, which
                   compute-sanitizer's racecheck needs
  --only NAMES     these algorithms of the layer alone, by name and separated by commas (see below), as one call and as
                   prologue and GEMM
  --quick          a sixtieth of the named cases, no large ones, and no refused allocation: for memory checkers
  --json FILE      the table also as JSON
  --help           this text

Exits with 0 when all checks passed, with 1 when any failed, and with 2 when it could not run.";

/// A check and its settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Arguments {
    /// Random cases.
    pub cases: usize,
    /// Streams, each with a thread.
    pub streams: usize,
    /// Algorithms of the layer alone; `None`: all checks.
    pub only: Option<Vec<Algorithm>>,
    /// Few and small named cases.
    pub quick: bool,
    /// Where the table goes as JSON.
    pub json: Option<String>,
}

/// The help text or a check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Request {
    /// The help text.
    Help,
    /// A check.
    Check(Arguments),
}

/// The help text with the names that `--only` knows.
pub(crate) fn help() -> String {
    format!("{HELP}\n\nAlgorithms: {}", Algorithm::names())
}

/// The arguments without the program's name. The order of options does not matter.
pub(crate) fn parse(arguments: impl IntoIterator<Item = String>) -> Result<Request, String> {
    let mut parsed = Arguments { cases: 0, streams: 8, only: None, quick: false, json: None };
    let mut cases = None;
    let mut rest = arguments.into_iter();
    while let Some(flag) = rest.next() {
        let mut value = || rest.next().ok_or(format!("{flag} needs a value; --help says which"));
        match flag.as_str() {
            "--cases" => cases = Some(number(&flag, &value()?)?),
            // `--threads` is the name in the records of 2026.
            "--streams" | "--threads" => parsed.streams = number(&flag, &value()?)?,
            "--only" => parsed.only = Some(value()?.split(',').map(algorithm).collect::<Result<_, _>>()?),
            "--json" => parsed.json = Some(value()?),
            "--quick" => parsed.quick = true,
            "--help" | "-h" => return Ok(Request::Help),
            _ => return Err(format!("unknown argument {flag}; --help lists the known ones")),
        }
    }
    if parsed.streams == 0 {
        return Err("--streams 0: 1 is the least".into());
    }
    parsed.cases = cases.unwrap_or(if parsed.quick { 20 } else { 12_000 });
    Ok(Request::Check(parsed))
}

fn number(flag: &str, text: &str) -> Result<usize, String> {
    text.parse().map_err(|_| format!("{flag} {text}: not a whole number"))
}

fn algorithm(name: &str) -> Result<Algorithm, String> {
    Algorithm::named(name)
        .ok_or_else(|| format!("--only {name}: no algorithm of the layer; there are {}", Algorithm::names()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Request, String> {
        parse(line.split_whitespace().map(str::to_owned))
    }

    fn check(line: &str) -> Arguments {
        match parsed(line) {
            Ok(Request::Check(arguments)) => arguments,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn without_arguments_everything_is_checked() {
        let expected = Arguments { cases: 12_000, streams: 8, only: None, quick: false, json: None };
        assert_eq!(check(""), expected);
    }

    #[test]
    fn one_stream_has_two_names() {
        assert_eq!(check("--streams 1").streams, 1);
        assert_eq!(check("--threads 1").streams, 1);
        assert_eq!(check("--streams 15 --quick").streams, 15);
    }

    #[test]
    fn quick_leaves_a_number_of_cases_alone_wherever_it_stands() {
        assert_eq!(check("--quick").cases, 20);
        assert_eq!(check("--quick --cases 300"), check("--cases 300 --quick"));
        assert_eq!(check("--cases 300 --quick").cases, 300);
    }

    #[test]
    fn algorithms_go_by_the_names_of_the_table() {
        let expected = Some(vec![Algorithm::Wgmma128x128, Algorithm::Auto]);
        assert_eq!(check("--only Wgmma128x128,auto").only, expected);
        for algorithm in Algorithm::LAYER.into_iter().chain([Algorithm::Auto]) {
            assert_eq!(check(&format!("--only {algorithm:?}")).only, Some(vec![algorithm]));
        }
    }

    #[test]
    fn mistakes_are_named() {
        for (line, said) in [
            ("--streams 0", "1 is the least"),
            ("--streams", "--streams needs a value"),
            ("--streams one", "--streams one: not a whole number"),
            ("--cases -1", "--cases -1: not a whole number"),
            ("--only Wgmma", "--only Wgmma: no algorithm of the layer; there are SmallM, "),
            ("--only CublasLt", "no algorithm of the layer"),
            ("--fast", "unknown argument --fast"),
        ] {
            let error = parsed(line).expect_err(line);
            assert!(error.contains(said), "{line}: {error}");
        }
    }

    #[test]
    fn help_names_every_option_and_algorithm() {
        assert_eq!(parsed("--cases 3 --help"), Ok(Request::Help));
        let text = help();
        for word in ["--cases", "--streams", "--only", "--quick", "--json", "Wgmma64x128", "Auto"] {
            assert!(text.contains(word), "{word}");
        }
    }
}
