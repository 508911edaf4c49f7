//! Log-mel spectra as Whisper reads them: Hann windows of the recording, their power spectra, triangular bands on the mel scale of
//! Slaney's Auditory Toolbox, and `max(log₁₀ p, largest − 8)/4 + 1`.

use std::f64::consts::PI;

use ndarray::{Array2, ArrayViewMut2, Axis, s};
use rayon::prelude::*;

use crate::checkpoint::Source;
use crate::config::RawConfig;
use crate::convert::{f32_from, f64_from};
use crate::{Error, convert};

/// From recordings to spectra.
#[derive(Debug, Clone, PartialEq)]
pub struct LogMel {
    rate: u32,
    /// Samples of a window of the model.
    window: usize,
    /// Samples from one frame to the next.
    hop: usize,
    /// Samples of a frame.
    fft: usize,
    /// `[fft, 2·(fft/2 + 1)]`: real parts, then imaginary parts, times the Hann window.
    transform: Array2<f64>,
    /// `[fft/2 + 1, bins]`
    bands: Array2<f64>,
}

/// The highest frequency of a band, whatever the sampling rate.
const HIGHEST: f64 = 8000.0;
/// Frames of a task.
const TASK: usize = 128;
/// Least power.
const FLOOR: f64 = 1e-10;

impl LogMel {
    /// Reads `preprocessor_config.json`, or the part `feature_extractor` of `processor_config.json`; without these files they are
    /// as for all Whisper models. The spectra are to have `bins` bands and `frames` frames.
    ///
    /// # Errors
    /// When settings are not implemented or contradict the model.
    pub fn read(source: &Source, bins: usize, frames: usize) -> Result<Self, Error> {
        const FILE: &str = "preprocessor_config.json";
        const PROCESSOR: &str = "processor_config.json";
        const PART: &str = "feature_extractor";
        let read = |file: &str| RawConfig::from_json(source.label(file), source.read_json(file)?);
        let raw = if source.contains(FILE) {
            read(FILE)?
        } else if source.contains(PROCESSOR) && read(PROCESSOR)?.get(PART).is_some() {
            read(PROCESSOR)?.section(PART)?
        } else {
            RawConfig::from_json(source.label(FILE), serde_json::json!({}))?
        };
        Self::of(&raw, bins, frames)
    }

    fn of(raw: &RawConfig, bins: usize, frames: usize) -> Result<Self, Error> {
        let expect = |key: &str, size: usize, range: std::ops::RangeInclusive<usize>| {
            if range.contains(&size) {
                return Ok(size);
            }
            Err(raw.problem(key, format!("is {size}; implemented: {} to {}", range.start(), range.end())))
        };
        let number = |key: &str, default, range| expect(key, raw.size_or(key, default)?, range);
        let rate = number("sampling_rate", 16_000, 4_000..=192_000)?;
        let fft = number("n_fft", 400, 16..=4096)?;
        let hop = number("hop_length", 160, 1..=fft)?;
        let seconds = number("chunk_length", 30, 1..=120)?;
        let found = raw.size_or("feature_size", bins)?;
        if found != bins {
            return Err(raw.problem("feature_size", format!("is {found}, and the model reads {bins} bands")));
        }
        if seconds * rate / hop != frames {
            return Err(raw.problem(
                "chunk_length",
                format!(
                    "is {seconds}: {} frames of {hop} samples, and the model reads {frames}",
                    seconds * rate / hop
                ),
            ));
        }
        for (key, implemented) in [("dither", 0.0), ("padding_value", 0.0)] {
            if let Some(value) = raw.get(key).filter(|value| value.as_f64() != Some(implemented)) {
                return Err(raw.problem(key, format!("is {value}; implemented: {implemented}")));
            }
        }
        if raw.flag_or("do_normalize", false)? {
            return Err(raw.problem("do_normalize", "is true, which is not implemented"));
        }
        let rate = u32::try_from(rate).unwrap_or(u32::MAX);
        let window = seconds * usize::try_from(rate).unwrap_or(usize::MAX);
        Ok(Self {
            rate,
            window,
            hop,
            fft,
            transform: transform(fft),
            bands: bands(fft, bins, f64::from(rate)),
        })
    }

    /// Samples a second of the recordings that are read.
    pub fn rate(&self) -> u32 {
        self.rate
    }

    /// Bands of a spectrum.
    pub fn bins(&self) -> usize {
        self.bands.ncols()
    }

    /// Samples of a recording that one spectrum takes in.
    pub fn window(&self) -> usize {
        self.window
    }

    /// The spectrum `f32 [frames, bins]` of at most [`window`](Self::window) samples, with silence behind them; samples beyond do
    /// not count.
    pub fn spectrum(&self, samples: &[f32]) -> Array2<f32> {
        let samples = &samples[..samples.len().min(self.window)];
        let frames = self.window / self.hop;
        let mut powers = Array2::zeros((frames, self.bands.ncols()));
        let tasks: Vec<_> = powers.axis_chunks_iter_mut(Axis(0), TASK).enumerate().collect();
        tasks.into_par_iter().for_each(|(task, out)| self.powers(samples, task * TASK, out));
        powers.mapv_inplace(|power| power.max(FLOOR).log10());
        let largest = powers.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        powers.mapv(|value| f32_from((value.max(largest - 8.0) + 4.0) / 4.0))
    }

    /// The power in each band, of consecutive frames from `first` on.
    fn powers(&self, samples: &[f32], first: usize, mut out: ArrayViewMut2<'_, f64>) {
        let cut = Array2::from_shape_fn((out.nrows(), self.fft), |(frame, place)| {
            // A frame's middle is its place; the recording is mirrored at its ends.
            let place = ((first + frame) * self.hop + place).cast_signed() - (self.fft / 2).cast_signed();
            let last = (self.window - 1).cast_signed();
            let place = if place > last { 2 * last - place } else { place };
            f64::from(samples.get(place.unsigned_abs()).copied().unwrap_or(0.0))
        });
        let spectrum = cut.dot(&self.transform);
        let half = self.fft / 2 + 1;
        let (real, imaginary) = (spectrum.slice(s![.., ..half]), spectrum.slice(s![.., half..]));
        let power = &real * &real + &imaginary * &imaginary;
        out.assign(&power.dot(&self.bands));
    }
}

/// The discrete Fourier transform of a frame, times `(1 − cos(2πn/fft))/2`.
fn transform(fft: usize) -> Array2<f64> {
    let half = fft / 2 + 1;
    Array2::from_shape_fn((fft, 2 * half), |(n, column)| {
        let window = 0.5 - 0.5 * (2.0 * PI * f64_from(n) / f64_from(fft)).cos();
        // Reduced, so that the angle is exact.
        let angle = |frequency: usize| 2.0 * PI * f64_from(n * frequency % fft) / f64_from(fft);
        window * if column < half { angle(column).cos() } else { -angle(column - half).sin() }
    })
}

/// Triangular bands `[fft/2 + 1, bins]` between frequencies equally far apart on the mel scale, of equal area.
fn bands(fft: usize, bins: usize, rate: f64) -> Array2<f64> {
    let half = fft / 2 + 1;
    let step = mel(HIGHEST) / f64_from(bins + 1);
    let edges: Vec<f64> = (0..bins + 2).map(|edge| hertz(step * f64_from(edge))).collect();
    let highest = f64_from(convert::whole((rate / 2.0).floor()).unwrap_or_default());
    Array2::from_shape_fn((half, bins), |(place, bin)| {
        let frequency = highest * f64_from(place) / f64_from(half - 1);
        let [left, middle, right] = [edges[bin], edges[bin + 1], edges[bin + 2]];
        let (rising, falling) =
            ((frequency - left) / (middle - left), (right - frequency) / (right - middle));
        rising.min(falling).max(0.0) * 2.0 / (right - left)
    })
}

/// Mels up to 1000 Hz: 15 linear ones. Above, 27 a factor of 6.4.
const LINEAR_HERTZ: f64 = 1000.0;
const LINEAR_MELS: f64 = 15.0;

fn mel(hertz: f64) -> f64 {
    if hertz < LINEAR_HERTZ {
        return 3.0 * hertz / 200.0;
    }
    LINEAR_MELS + (hertz / LINEAR_HERTZ).ln() * (27.0 / 6.4_f64.ln())
}

fn hertz(mel: f64) -> f64 {
    if mel < LINEAR_MELS {
        return 200.0 * mel / 3.0;
    }
    LINEAR_HERTZ * ((6.4_f64.ln() / 27.0) * (mel - LINEAR_MELS)).exp()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read(json: Value, bins: usize, frames: usize) -> Result<LogMel, Error> {
        LogMel::of(
            &RawConfig::from_json("preprocessor_config.json".to_owned(), json).expect("an object"),
            bins,
            frames,
        )
    }

    #[test]
    fn settings_are_checked() {
        let whisper = read(json!({}), 80, 3000).expect("settings");
        assert_eq!((whisper.rate(), whisper.window()), (16_000, 480_000));
        let error = |json| read(json, 80, 3000).expect_err("refused").to_string();
        for (json, part) in [
            (json!({"feature_size": 128}), "128, and the model reads 80"),
            (json!({"chunk_length": 15}), "1500 frames"),
            (json!({"hop_length": 0}), "hop_length"),
            (json!({"hop_length": 401}), "hop_length"),
            (json!({"n_fft": 100_000}), "n_fft"),
            (json!({"dither": 0.1}), "dither"),
            (json!({"padding_value": 1.0}), "padding_value"),
            (json!({"do_normalize": true}), "do_normalize"),
            (json!({"sampling_rate": "fast"}), "sampling_rate"),
        ] {
            let found = error(json.clone());
            assert!(found.contains(part), "{json}: {found}");
        }
    }

    /// A tone's power lies in the bands around it, and silence is even.
    #[test]
    fn spectra_of_a_tone_and_of_silence() {
        let mel = read(json!({"chunk_length": 1}), 80, 100).expect("settings");
        let tone: Vec<f32> =
            (0..16_000).map(|n| f32_from((2.0 * PI * 1000.0 * f64_from(n) / 16_000.0).sin())).collect();
        let spectrum = mel.spectrum(&tone);
        assert_eq!(spectrum.dim(), (100, 80));
        for frame in spectrum.rows().into_iter().skip(2).take(96) {
            let largest = (0..80).max_by(|a, b| frame[*a].total_cmp(&frame[*b])).expect("bands");
            // 15 of 45.2 mels: band 15/45.2·81 − 1.
            assert!((24..=27).contains(&largest), "{largest}");
            assert!(frame[largest] - frame[60] > 1.0);
        }
        let silence = mel.spectrum(&[]);
        assert!(silence.iter().all(|value| (value + 1.5).abs() < 1e-6));
    }
}
