//! `cargo xtask interruptions`: peak memory and rate of a conversion, and its state after kills.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

pub(crate) const HELP: &str = "\
cargo xtask interruptions PROGRAM MODEL SCRATCH [--kills N] [--max-shard-size SIZE] [--threads N] [--record FILE.json]

Converts the checkpoint MODEL with `PROGRAM quantize` into SCRATCH/whole and records rate and peak memory. Then converts it
again into SCRATCH/killed and kills the process (SIGKILL) at N random moments (10): after each, `PROGRAM inspect` must refuse
the folder; then --resume goes on. At the end every file of the two folders must be equal. SCRATCH needs room for the result
twice and is emptied.";

struct Plan {
    program: String,
    model: String,
    scratch: PathBuf,
    kills: usize,
    /// Passed on to every conversion.
    options: Vec<String>,
    record: Option<PathBuf>,
}

pub(crate) fn run(arguments: &[String]) -> Result<(), String> {
    let plan = parse(arguments)?;
    let (whole, killed) = (plan.scratch.join("whole"), plan.scratch.join("killed"));
    for folder in [&whole, &killed] {
        remove(folder)?;
    }
    let begin = Instant::now();
    let report = finish(start(&plan, &whole, false, Stdio::piped())?)?;
    let duration = begin.elapsed();
    let number = |key: &str| report[key].as_u64().unwrap_or_default();
    println!(
        "uninterrupted: {:.1} s, {:.2} GB/s of source, peak memory {:.0} MB",
        duration.as_secs_f64(),
        giga(number("source_bytes")) / duration.as_secs_f64(),
        1000.0 * giga(number("peak_memory_bytes")),
    );
    // The limit of the peak: two of the largest tensor and 256 MiB.
    let limit = 2 * largest(&report) + (256 << 20);
    if number("peak_memory_bytes") > limit {
        return Err(format!("peak memory: at most {limit} bytes are allowed"));
    }

    let mut random = 0x2545_F491_4F6C_DD1D_u64;
    let mut events = Vec::new();
    let mut most_memory = 0;
    while events.len() < plan.kills {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        // Up to 40 % of a whole run, so that ten of them do not finish it too often.
        let moment =
            duration.mul_f64(0.4 * f64::from(u16::try_from(random % 10_000).unwrap_or(0)) / 10_000.0);
        let resume = killed.is_dir();
        let child = start(&plan, &killed, resume, Stdio::null())?;
        let memory = kill_after(child, moment)?;
        // Removing its note is the last action of a conversion.
        let complete = killed.join("config.json").is_file() && !killed.join("int8-write.partial").exists();
        let Some(memory) = memory.filter(|_| !complete) else {
            // It ended before the kill: its folder must be complete, and the next conversion starts anew.
            compare(&whole, &killed)?;
            println!("finished before it was killed, equal; starting anew");
            remove(&killed)?;
            continue;
        };
        most_memory = most_memory.max(memory);
        let shards = shards(&killed);
        let message = refused(&plan, &killed)?;
        println!("killed after {:.2} s, {shards} shards complete: {message}", moment.as_secs_f64());
        events.push(
            json!({"seconds": moment.as_secs_f64(), "shards_complete": shards, "refused_with": message}),
        );
    }
    let last = finish(start(&plan, &killed, killed.is_dir(), Stdio::piped())?)?;
    let files = compare(&whole, &killed)?;
    println!("resumed and finished: {files} files are equal");

    if let Some(record) = &plan.record {
        let text = json!({
            "source_bytes": number("source_bytes"),
            "written_bytes": number("written_bytes"),
            "int8_layers": report["int8"].as_array().map(Vec::len),
            "options": plan.options,
            "seconds": duration.as_secs_f64(),
            "source_gigabytes_per_second": giga(number("source_bytes")) / duration.as_secs_f64(),
            "peak_memory_bytes": number("peak_memory_bytes"),
            "peak_memory_bytes_of_killed_runs": most_memory,
            "largest_tensor_bytes": largest(&report),
            "peak_memory_limit_bytes": limit,
            "kills": events,
            "resumed_bytes_of_last_run": last["resumed_bytes"],
            "files_compared": files,
            "equal": true,
        });
        fs::write(record, format!("{text:#}\n")).map_err(|error| format!("{}: {error}", record.display()))?;
    }
    for folder in [&whole, &killed] {
        remove(folder)?;
    }
    Ok(())
}

fn parse(arguments: &[String]) -> Result<Plan, String> {
    let [program, model, scratch, rest @ ..] = arguments else {
        return Err(format!("which program, model and folder?\n\n{HELP}"));
    };
    let mut plan = Plan {
        program: program.clone(),
        model: model.clone(),
        scratch: PathBuf::from(scratch),
        kills: 10,
        options: Vec::new(),
        record: None,
    };
    for option in rest.chunks(2) {
        let [name, value] = option else { return Err(format!("{}: needs a value", option[0])) };
        match name.as_str() {
            "--kills" => {
                plan.kills = value.parse().map_err(|_| format!("{name} {value}: expected a number"))?
            }
            "--record" => plan.record = Some(PathBuf::from(value)),
            "--max-shard-size" | "--threads" => plan.options.extend([name.clone(), value.clone()]),
            _ => return Err(format!("{name}: no such option\n\n{HELP}")),
        }
    }
    Ok(plan)
}

fn giga(bytes: u64) -> f64 {
    // Sizes of files are far below 2⁵³; its upper and lower 32 bits are exact.
    let parts =
        [bytes >> 32, bytes & 0xFFFF_FFFF].map(|half| f64::from(u32::try_from(half).unwrap_or(u32::MAX)));
    (parts[0] * 4_294_967_296.0 + parts[1]) / 1e9
}

fn largest(report: &Value) -> u64 {
    let lists = [("int8", "source_bytes"), ("kept", "bytes")];
    let sizes = lists.iter().flat_map(|(list, key)| {
        report[list].as_array().into_iter().flatten().filter_map(move |tensor| tensor[key].as_u64())
    });
    sizes.max().unwrap_or_default()
}

/// `output` receives its report: for a process that will be killed not a pipe, which would block when full.
fn start(plan: &Plan, out: &Path, resume: bool, output: Stdio) -> Result<Child, String> {
    let mut command = Command::new(&plan.program);
    command.arg("quantize").arg(&plan.model).arg(out).arg("--json").args(&plan.options);
    if resume {
        command.arg("--resume");
    }
    let child = command.stdout(output).stderr(Stdio::piped()).spawn();
    child.map_err(|error| format!("{}: {error}", plan.program))
}

/// Waits for the end of a conversion and returns its report.
fn finish(child: Child) -> Result<Value, String> {
    let output = child.wait_with_output().map_err(|error| error.to_string())?;
    if !output.status.success() {
        return Err(format!("the conversion failed: {}", String::from_utf8_lossy(&output.stderr)));
    }
    serde_json::from_slice(&output.stdout).map_err(|error| format!("the report: {error}"))
}

/// Kills it at this moment and returns its peak memory; `None` if it had ended by itself.
fn kill_after(mut child: Child, moment: Duration) -> Result<Option<u64>, String> {
    thread::sleep(moment);
    let failed = |error: std::io::Error| error.to_string();
    if let Some(status) = child.try_wait().map_err(failed)? {
        return if status.success() { Ok(None) } else { finish(child).map(|_| None) };
    }
    let memory = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
    // SIGKILL on Unix.
    child.kill().map_err(failed)?;
    let status = child.wait().map_err(failed)?;
    if status.success() {
        return Ok(None);
    }
    let peak = memory.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let peak = peak.and_then(|peak| peak.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    Ok(Some(peak.unwrap_or(0) * 1024))
}

/// The message with which the folder is refused.
fn refused(plan: &Plan, folder: &Path) -> Result<String, String> {
    let output =
        Command::new(&plan.program).arg("inspect").arg(folder).output().map_err(|e| e.to_string())?;
    if output.status.success() {
        return Err(format!("{}: the folder of a killed conversion loads", folder.display()));
    }
    let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Ok(message.replace(&folder.display().to_string(), "FOLDER"))
}

fn shards(folder: &Path) -> usize {
    let names = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.file_name());
    names.filter(|name| name.to_string_lossy().ends_with(".safetensors")).count()
}

fn remove(folder: &Path) -> Result<(), String> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(format!("{}: {error}", folder.display()))
        }
        _ => Ok(()),
    }
}

/// Compares two folders byte by byte and returns the number of files.
fn compare(left: &Path, right: &Path) -> Result<usize, String> {
    let names = |folder: &Path| -> Result<Vec<_>, String> {
        let entries = fs::read_dir(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        let mut names: Vec<_> = entries.flatten().map(|entry| entry.file_name()).collect();
        names.sort();
        Ok(names)
    };
    let (expected, found) = (names(left)?, names(right)?);
    if expected != found {
        return Err(format!("other files: {expected:?} and {found:?}"));
    }
    for name in &expected {
        let open = |folder: &Path| File::open(folder.join(name)).map_err(|error| error.to_string());
        let (mut left, mut right) = (open(left)?, open(right)?);
        let (mut a, mut b) = (vec![0; 8 << 20], vec![0; 8 << 20]);
        loop {
            let read = read_full(&mut left, &mut a)?;
            if read != read_full(&mut right, &mut b)? || a[..read] != b[..read] {
                return Err(format!("{} differs", name.to_string_lossy()));
            }
            if read == 0 {
                break;
            }
        }
    }
    Ok(expected.len())
}

fn read_full(file: &mut File, buffer: &mut [u8]) -> Result<usize, String> {
    let mut filled = 0;
    loop {
        match file.read(&mut buffer[filled..]).map_err(|error| error.to_string())? {
            0 => return Ok(filled),
            read => filled += read,
        }
    }
}
