//! `int8 verify`: every kernel of this machine against the reference mathematics.

use int8_nn::backend::cpu::{Kernel, verify};
use serde_json::json;

use crate::args::{Required, VerifyArgs};
use crate::failure::Failure;
use crate::output::Output;

/// Failures that are printed for each kernel; the rest is counted.
const SHOWN: usize = 5;

/// Prints the table.
pub(crate) fn run(arguments: &VerifyArgs, output: &Output) -> Result<(), Failure> {
    let reports = verify::run(arguments.cases);
    let present: Vec<&str> = reports.iter().map(|report| report.kernel.name()).collect();
    let absent: Vec<&str> = Kernel::known().filter(|name| !present.contains(name)).collect();
    let failed: usize = reports.iter().map(|report| report.failures.len()).sum();
    // The GPU layer has a verification program of its own; this binary does not contain it.
    let missing = arguments.require.contains(&Required::Cuda);

    if output.json {
        output.object(&json!({
            "kernels": reports.iter().map(|report| json!({
                "backend": "cpu",
                "kernel": report.kernel.name(),
                "cases": report.cases,
                "worst_share_of_bound": report.worst_share,
                "failures": report.failures,
            })).collect::<Vec<_>>(),
            "absent": absent.iter().copied().chain(["cuda"]).collect::<Vec<_>>(),
            "passed": failed == 0 && !missing,
        }))?;
    } else {
        output.line(&output.bold("backend  kernel        cases     worst error / bound  integers"))?;
        for report in &reports {
            output.line(&format!(
                "cpu      {:12} {:>6}  {:>22.3}  {}",
                report.kernel.name(),
                report.cases,
                report.worst_share,
                if report.failures.is_empty() { "equal" } else { "SEE BELOW" }
            ))?;
        }
        for name in &absent {
            output.line(&format!("cpu      {name:12} absent: this processor lacks its instructions"))?;
        }
        output.line("cuda     -            absent: not part of this program")?;
        for report in &reports {
            for failure in report.failures.iter().take(SHOWN) {
                output.line(&format!("FAILED {}: {failure}", report.kernel.name()))?;
            }
            if report.failures.len() > SHOWN {
                output.line(&format!(
                    "FAILED {}: {} more",
                    report.kernel.name(),
                    report.failures.len() - SHOWN
                ))?;
            }
        }
    }
    if failed > 0 {
        return Err(Failure::new(format!("{failed} cases do not agree with the reference")));
    }
    if missing {
        return Err(Failure::new("--require cuda: this program was built without the GPU layer"));
    }
    Ok(())
}
