//! Measures the complete LLM.int8() layer against cuBLASLt fp16; `int8_cuda::bench` documents the method.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program of the command line")]

use std::error::Error as StdError;
use std::process::ExitCode;
use std::str::FromStr;

use int8_cuda::{Algorithm, Device, Shape, bench};

const HELP: &str = "\
int8-cuda-bench: times the complete LLM.int8() layer against cuBLASLt fp16 on this machine's first GPU

Without --versus: the shapes of docs/benchmarks/gpu.md, by the algorithm that is chosen for each.
  --quick           the first shape alone
  --rows M          only the shapes with so many rows
  --all-algorithms  every algorithm that supports a shape, not the chosen one alone

With --versus: these algorithms alternately with each other and with fp16, and how many elements of their results differ.
  --versus NAMES    separated by commas (see below)
  --shape SHAPES    MxNxK, separated by commas
  --share S         share of outlier columns (0.001)
  --rounds R        rounds of seven timed replays each (6)

With --shared-by: layers that read the same x, each with its own prologue and all with one; --shape, --share and --rounds as above.
  --shared-by N     layers an x

  --json FILE       the records also as JSON
  --help            this text";

/// The command line.
#[derive(Default)]
struct Arguments {
    options: bench::Options,
    versus: Vec<Algorithm>,
    shapes: Vec<Shape>,
    share: Option<f32>,
    rounds: Option<usize>,
    shared_by: Option<usize>,
    json: Option<String>,
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("int8-cuda-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn StdError>> {
    let Some(arguments) = parse(std::env::args().skip(1))? else {
        println!("{HELP}\n\nAlgorithms: {}", Algorithm::names());
        return Ok(());
    };
    let device = Device::new(0)?;
    let info = device.info();
    println!("{}, driver {}, built with CUDA {}", info.name, info.driver, info.runtime);
    println!("{}", bench::HEADER);
    let line = &mut |line: &str| println!("{line}");
    if let Some(count) = arguments.shared_by {
        let (share, rounds) = (arguments.share.unwrap_or(0.001), arguments.rounds.unwrap_or(6));
        return Ok(arguments
            .shapes
            .iter()
            .try_for_each(|shape| bench::shared_prologue(&device, *shape, share, count, rounds, line))?);
    }
    let records = if arguments.versus.is_empty() {
        let records = bench::run(&device, arguments.options, line)?;
        bench::summary(&records).iter().for_each(|text| line(text));
        records
    } else {
        let (share, rounds) = (arguments.share.unwrap_or(0.001), arguments.rounds.unwrap_or(6));
        let of_shape = |shape: &Shape| bench::versus(&device, *shape, share, &arguments.versus, rounds, line);
        arguments.shapes.iter().map(of_shape).collect::<Result<Vec<_>, _>>()?.concat()
    };
    if let Some(path) = arguments.json {
        std::fs::write(path, serde_json::to_string_pretty(&bench::document(info, &records))?)?;
    }
    Ok(())
}

/// `None`: the help text.
fn parse(arguments: impl IntoIterator<Item = String>) -> Result<Option<Arguments>, String> {
    let mut parsed = Arguments::default();
    let mut rest = arguments.into_iter();
    while let Some(flag) = rest.next() {
        let mut value = || rest.next().ok_or(format!("{flag} needs a value; --help says which"));
        match flag.as_str() {
            "--quick" => parsed.options.quick = true,
            "--rows" => parsed.options.rows = Some(number(&flag, &value()?)?),
            "--all-algorithms" => parsed.options.all_algorithms = true,
            "--versus" => parsed.versus = value()?.split(',').map(algorithm).collect::<Result<_, _>>()?,
            "--shape" => parsed.shapes = value()?.split(',').map(shape).collect::<Result<_, _>>()?,
            "--share" => parsed.share = Some(share(&value()?)?),
            "--rounds" => parsed.rounds = Some(at_least_one(&flag, &value()?)?),
            "--shared-by" => parsed.shared_by = Some(at_least_one(&flag, &value()?)?),
            "--json" => parsed.json = Some(value()?),
            "--help" | "-h" => return Ok(None),
            _ => return Err(format!("unknown argument {flag}; --help lists the known ones")),
        }
    }
    if parsed.shared_by.is_some() {
        return match parsed.shapes.is_empty() {
            true => Err("--shared-by needs --shape".into()),
            false
                if !parsed.versus.is_empty()
                    || parsed.json.is_some()
                    || parsed.options != bench::Options::default() =>
            {
                Err("--shared-by goes with --shape, --share and --rounds alone".into())
            }
            false => Ok(Some(parsed)),
        };
    }
    if parsed.versus.is_empty() != parsed.shapes.is_empty() {
        return Err("--versus and --shape go together".into());
    }
    let (table, forms) =
        (parsed.options != bench::Options::default(), parsed.share.is_some() || parsed.rounds.is_some());
    match parsed.versus.is_empty() {
        false if table => {
            Err("--quick, --rows and --all-algorithms choose from the table, which --versus does not measure"
                .into())
        }
        true if forms => Err("--share and --rounds are for --versus".into()),
        _ => Ok(Some(parsed)),
    }
}

fn number<N: FromStr>(flag: &str, text: &str) -> Result<N, String> {
    text.parse().map_err(|_| format!("{flag} {text}: not a number of that kind"))
}

fn share(text: &str) -> Result<f32, String> {
    let share = number("--share", text)?;
    if (0.0..=1.0).contains(&share) { Ok(share) } else { Err(format!("--share {text}: not between 0 and 1")) }
}

fn at_least_one(flag: &str, text: &str) -> Result<usize, String> {
    match number(flag, text)? {
        0 => Err(format!("{flag} 0: nothing would be measured; 1 is the least")),
        count => Ok(count),
    }
}

fn algorithm(name: &str) -> Result<Algorithm, String> {
    Algorithm::named(name).ok_or_else(|| {
        format!("--versus {name}: no algorithm of the layer; there are {}", Algorithm::names())
    })
}

fn shape(text: &str) -> Result<Shape, String> {
    let sizes: Option<Vec<usize>> = text.split('x').map(|size| size.parse().ok()).collect();
    match sizes.as_deref() {
        Some(&[m, n, k]) if m > 0 && n > 0 && k > 0 => Ok(Shape { m, n, k }),
        _ => Err(format!("--shape {text}: not MxNxK, each at least 1")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Option<Arguments>, String> {
        parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn forms_are_compared_on_the_shapes_named() {
        let line = "--versus wgmma64x32,Auto --shape 16x4096x4096,64x11008x4096 --share 0.01 --rounds 3";
        let Ok(Some(arguments)) = parsed(line) else { panic!("{line} is refused") };
        assert_eq!(arguments.versus, [Algorithm::Wgmma64x32, Algorithm::Auto]);
        assert_eq!(arguments.shapes[1], Shape { m: 64, n: 11008, k: 4096 });
        assert_eq!((arguments.share, arguments.rounds), (Some(0.01), Some(3)));
    }

    #[test]
    fn layers_share_a_prologue() {
        let Ok(Some(arguments)) = parsed("--shared-by 3 --shape 16x4096x4096 --rounds 2") else {
            panic!("refused")
        };
        assert_eq!((arguments.shared_by, arguments.rounds), (Some(3), Some(2)));
    }

    #[test]
    fn help_wins_over_what_stands_before_it() {
        assert!(matches!(parsed("--quick --help"), Ok(None)));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let wrong = [
            ("--fast", "--fast"),
            ("--rows many", "--rows many"),
            ("--json", "--json needs a value"),
            ("--versus Wgmma1x1 --shape 1x1x1", "Wgmma1x1"),
            ("--versus Auto --shape 1x2", "1x2"),
            ("--versus Auto --shape 1x2x3x4", "1x2x3x4"),
            ("--versus Auto --shape 1x0x8", "1x0x8"),
            ("--versus Auto --shape 1x2x3 --rounds 0", "--rounds 0"),
            ("--versus Auto --shape 1x2x3 --share 1.5", "--share 1.5"),
            ("--versus Auto --shape 1x2x3 --share NaN", "--share NaN"),
            ("--versus Auto --shape 1x2x3 --quick", "--quick"),
            ("--rounds 3", "--rounds"),
            ("--shared-by 3", "--shared-by needs --shape"),
            ("--shared-by 0 --shape 1x2x3", "--shared-by 0"),
            ("--shared-by 3 --shape 1x2x3 --quick", "alone"),
            ("--versus Auto", "go together"),
            ("--shape 1x2x3", "go together"),
        ];
        for (line, part) in wrong {
            let error = parsed(line).err().unwrap_or_else(|| panic!("{line} is taken"));
            assert!(error.contains(part), "{line}: {error}");
        }
    }
}
