//! `int8 transcribe`: a recording becomes text.

use std::fs;
use std::time::Instant;

use int8_core::Named;
use int8_nn::audio::Recording;
use int8_nn::backend::{Backend, Precision};
use int8_nn::transcriber::TranscribeOptions;
use serde_json::{Value, json};

use super::{read_input, settings};
use crate::args::{PrecisionArgs, TranscribeArgs};
use crate::convert::count;
use crate::device::{Device, Place, Task};
use crate::failure::Failure;
use crate::output::{Output, bytes};
use crate::resolve;

/// Writes a recording down.
pub(crate) fn run(arguments: &TranscribeArgs, device: &Device, output: &Output) -> Result<(), Failure> {
    // A recording that cannot be read need not wait for the model.
    let recording = recording(arguments)?;
    let begin = Instant::now();
    let checkpoint = resolve::checkpoint(&arguments.model, output)?;
    device.run(checkpoint, Transcribe { arguments, recording, begin, output }, output)
}

fn recording(arguments: &TranscribeArgs) -> Result<Recording, Failure> {
    let name = arguments.file.display();
    let contents = if arguments.file.as_os_str() == "-" { read_input() } else { fs::read(&arguments.file) };
    let contents = contents.map_err(|error| Failure::new(format!("{name}: {error}")))?;
    Recording::from_wav(&contents).map_err(|error| Failure::new(format!("{name}: {error}")))
}

struct Transcribe<'a> {
    arguments: &'a TranscribeArgs,
    recording: Recording,
    /// When loading began.
    begin: Instant,
    output: &'a Output,
}

impl Task for Transcribe<'_> {
    type Output = ();

    fn precision(&self) -> Result<Precision, Failure> {
        resolve::precision(&self.arguments.model.precision)
    }

    fn options(&self) -> Option<&PrecisionArgs> {
        Some(&self.arguments.model.precision)
    }

    fn run<B: Backend + 'static>(self, place: &Place<B>) -> Result<(), Failure> {
        let Self { arguments, recording, begin, output } = self;
        let precision = &arguments.model.precision;
        let (loader, bar) = resolve::loader(place.precision, precision, &place.checkpoint, output);
        let transcriber = loader.transcriber_on(place.devices.clone())?;
        bar.clear();
        let load_seconds = begin.elapsed().as_secs_f64();
        let options = TranscribeOptions {
            language: arguments.language.clone(),
            task: arguments.task,
            kv_cache: arguments.kv_cache.given(),
        };
        let (begin, speech_seconds) = (Instant::now(), recording.seconds());
        let (mut printed, mut failed) = (false, None);
        let transcript = transcriber.transcribe(recording, &options, |window| {
            if !output.json && failed.is_none() {
                let text = if printed { &window.text[..] } else { window.text.trim_start() };
                printed |= !text.is_empty();
                failed = output.text(text).err();
            }
        })?;
        if let Some(failure) = failed {
            return Err(failure);
        }
        let seconds = begin.elapsed().as_secs_f64();
        let footprint = transcriber.model().footprint();
        if !output.json {
            output.line("")?;
            output.remark(&output.dim(&format!(
                "{}{}; loaded in {load_seconds:.2} s, {speech_seconds:.1} s of speech in {seconds:.2} s; weights {} ({} in 16-bit)",
                resolve::precision_name(precision),
                transcript.language.map(|code| format!(", language {code}")).unwrap_or_default(),
                bytes(count(footprint.total())),
                bytes(count(footprint.at(2))),
            )));
            return Ok(());
        }
        let windows: Vec<Value> = transcript
            .windows
            .iter()
            .map(|window| {
                let [from, to] = window.seconds;
                json!({"from": from, "to": to, "text": window.text, "ids": window.ids})
            })
            .collect();
        output.object(&json!({
            "model": arguments.model.model,
            "file": arguments.file,
            "device": place.devices.describe(),
            "scheme": resolve::precision_name(precision),
            "settings": settings(transcriber.model().precision()),
            "language": transcript.language,
            "task": arguments.task.map(Named::key),
            "text": transcript.text,
            "windows": windows,
            "speech_seconds": speech_seconds,
            "load_seconds": load_seconds,
            "seconds": seconds,
            "weight_bytes": footprint.total(),
            "weight_bytes_16_bit": footprint.at(2),
        }))
    }
}
