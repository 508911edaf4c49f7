//! `int8 bench --device cuda`: the measurements of `int8-cuda-bench`, the layer on a GPU against cuBLASLt fp16.

use int8_cuda::{Device, bench};

use crate::args::BenchArgs;
use crate::failure::Failure;
use crate::output::{Output, OutputFile};
use crate::report::charts::{Caption, Chart};
use crate::report::plots::write_chart;

/// Prints the table.
pub(super) fn run(ordinal: u32, arguments: &BenchArgs, output: &Output) -> Result<(), Failure> {
    let plot = OutputFile::given("--plot", arguments.plot.as_deref())?;
    let failed = |error: int8_cuda::Error| Failure::new(format!("--device cuda:{ordinal}: {error}"));
    let device = Device::new(ordinal).map_err(|error| {
        failed(error).hint("nvidia-smi lists the devices; `int8 bench` without --device measures the CPU")
    })?;
    let info = device.info();
    let title = format!("{}, driver {}, built with CUDA {}", info.name, info.driver, info.runtime);
    if !output.json {
        output.line(&output.bold(&title))?;
        output.line(&output.bold(bench::HEADER))?;
    }
    let options = bench::Options { quick: arguments.quick, ..bench::Options::default() };
    let mut written = Ok(());
    let records = bench::run(&device, options, &mut |line| {
        if !output.json && written.is_ok() {
            written = output.line(line);
        }
    })
    .map_err(failed)?;
    written?;
    if output.json {
        output.object(&bench::document(info, &records))?;
    } else {
        bench::summary(&records).iter().try_for_each(|line| output.line(line))?;
    }
    if let Some(file) = &plot {
        // The baseline comes first.
        let mut bars = vec![("cuBLASLt fp16".to_owned(), 1.0)];
        bars.extend(records.iter().filter(|record| (record.outlier_share - 0.001).abs() < 1e-6).map(
            |record| {
                let int8_cuda::Shape { m, n, k } = record.shape;
                (format!("M={m}, {n}×{k}"), record.speed_up())
            },
        ));
        let source = format!("against cuBLASLt fp16, 0.1 % outlier columns; {}", info.name);
        let caption = Caption { title: "Speed-up of an LLM.int8() layer", source: &source };
        write_chart(file, &Chart::Bars(bars), caption)?;
        output.remark(&format!("drawn in {}", file.path().display()));
    }
    Ok(())
}
