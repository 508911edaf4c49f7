//! WAV files: uncompressed samples in RIFF chunks.

use super::resample;
use crate::convert::f32_from;
use crate::{Error, convert};

/// A recording of one channel.
#[derive(Debug, Clone, PartialEq)]
pub struct Recording {
    /// Samples a second.
    pub rate: u32,
    /// In [−1, 1], but for files of floating-point samples, which may go beyond.
    pub samples: Vec<f32>,
}

/// How samples are stored, as the chunk `fmt ` has it.
#[derive(Debug, Clone, Copy)]
struct Format {
    encoding: Encoding,
    channels: usize,
    rate: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Encoding {
    /// Unsigned, zero at 128.
    Pcm8,
    Pcm16,
    Pcm24,
    Pcm32,
    Float32,
    Float64,
}

/// Tags of a format.
const PCM: u16 = 1;
const FLOAT: u16 = 3;
/// The tag stands behind.
const EXTENSIBLE: u16 = 0xFFFE;

/// Names of formats that are not read.
const COMPRESSED: [(u16, &str); 6] =
    [(2, "ADPCM"), (6, "A-law"), (7, "µ-law"), (0x11, "IMA ADPCM"), (0x50, "MPEG"), (0x55, "MP3")];

/// Channels that are averaged at most.
const MOST_CHANNELS: usize = 64;

/// Sampling rates that are read, in hertz.
const RATES: std::ops::RangeInclusive<u32> = 4_000..=192_000;

impl Recording {
    /// Reads the contents of a WAV file: PCM of 8, 16, 24 or 32 bits, or floating point of 32 or 64. Several channels are averaged. A
    /// file that ends too early counts as far as it goes, for programs that write to a pipe cannot state the length.
    ///
    /// # Errors
    /// [`Error::Input`] for other files, and one without samples or with samples that are not finite.
    pub fn from_wav(bytes: &[u8]) -> Result<Self, Error> {
        let container = match (bytes.get(..4), bytes.get(8..12)) {
            (Some(b"RIFF"), Some(b"WAVE")) => &bytes[12..],
            _ => return Err(Error::Input(format!("{}; {CONVERT}", foreign(bytes)))),
        };
        let (mut rest, mut format) = (container, None);
        loop {
            let (Some(name), Some(length)) = (rest.get(..4), word(rest, 4)) else {
                let missing =
                    if format.is_none() { "format (chunk `fmt `)" } else { "samples (chunk `data`)" };
                return Err(Error::Input(format!("a WAV file without {missing}; it may have been cut off")));
            };
            let body = &rest[8..];
            let held = body.len().min(usize::try_from(length).unwrap_or(usize::MAX));
            match (name, format) {
                (b"fmt ", _) => format = Some(Format::read(&body[..held])?),
                (b"data", Some(format)) => return format.recording(&body[..held]),
                (b"data", None) => {
                    return Err(Error::Input("a WAV file whose samples precede their format".to_owned()));
                }
                _ => {}
            }
            // Chunks begin at even places.
            rest = body.get(held + held % 2..).unwrap_or_default();
        }
    }

    /// Seconds.
    pub fn seconds(&self) -> f64 {
        convert::f64_from(self.samples.len()) / f64::from(self.rate)
    }

    /// With `rate` samples a second.
    pub fn at_rate(self, rate: u32) -> Self {
        if rate == self.rate {
            return self;
        }
        Self { samples: resample(&self.samples, self.rate, rate), rate }
    }
}

/// How to get a file that is read.
const CONVERT: &str = "convert it, for instance with `ffmpeg -i FILE -ar 16000 -ac 1 out.wav`";

/// What a file is that is no WAV file.
fn foreign(bytes: &[u8]) -> &'static str {
    match bytes {
        [] => "the file is empty",
        [b'R', b'I', b'F', b'X', ..] => "a big-endian WAV file (RIFX), which is not read",
        [b'R', b'F', b'6', b'4', ..] => "a 64-bit WAV file (RF64), which is not read",
        [b'f', b'L', b'a', b'C', ..] => "a FLAC file, no WAV file",
        [b'O', b'g', b'g', b'S', ..] => "an Ogg file, no WAV file",
        [b'I', b'D', b'3', ..] | [0xFF, 0xE0..=0xFF, ..] => "an MP3 file, no WAV file",
        [_, _, _, _, b'f', b't', b'y', b'p', ..] => "an MP4 file, no WAV file",
        _ => "not a WAV file",
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4).map(|bytes| u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
}

fn half_word(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2).map(|bytes| u16::from_le_bytes([bytes[0], bytes[1]]))
}

impl Format {
    fn read(chunk: &[u8]) -> Result<Self, Error> {
        let cut = || Error::Input("a WAV file whose format (chunk `fmt `) is cut off".to_owned());
        let half = |at| half_word(chunk, at).ok_or_else(cut);
        let (tag, channels, bits) = (half(0)?, usize::from(half(2)?), half(14)?);
        let (rate, frame) = (word(chunk, 4).ok_or_else(cut)?, usize::from(half(12)?));
        let tag = if tag == EXTENSIBLE { half(24)? } else { tag };
        let encoding = match (tag, bits) {
            (PCM, 8) => Encoding::Pcm8,
            (PCM, 16) => Encoding::Pcm16,
            (PCM, 24) => Encoding::Pcm24,
            (PCM, 32) => Encoding::Pcm32,
            (FLOAT, 32) => Encoding::Float32,
            (FLOAT, 64) => Encoding::Float64,
            _ => {
                let name = COMPRESSED.iter().find(|(known, _)| *known == tag);
                let what = match (tag, name) {
                    (_, Some((_, name))) => format!("compressed as {name}"),
                    (PCM | FLOAT, None) => format!("{bits} bits each"),
                    _ => format!("of format {tag:#06x}"),
                };
                return Err(Error::Input(format!(
                    "a WAV file with samples {what}; PCM of 8, 16, 24 or 32 bits and floating point of 32 or 64 are read: {CONVERT}"
                )));
            }
        };
        if !(1..=MOST_CHANNELS).contains(&channels) {
            return Err(Error::Input(format!(
                "a WAV file with {channels} channels; expected 1 to {MOST_CHANNELS}"
            )));
        }
        if !RATES.contains(&rate) {
            let (least, most) = RATES.into_inner();
            return Err(Error::Input(format!(
                "a WAV file with {rate} samples a second; expected {least} to {most}: {CONVERT}"
            )));
        }
        if frame != channels * encoding.bytes() {
            return Err(Error::Input(format!(
                "a WAV file that contradicts itself: {channels} channels of {bits} bits in {frame} bytes"
            )));
        }
        Ok(Self { encoding, channels, rate })
    }

    fn recording(self, data: &[u8]) -> Result<Recording, Error> {
        let Self { encoding, channels, rate } = self;
        let size = encoding.bytes();
        let share = 1.0 / convert::f64_from(channels);
        let samples: Vec<f32> = data
            .chunks_exact(size * channels)
            .map(|frame| {
                let sum: f64 = frame.chunks_exact(size).map(|sample| encoding.sample(sample)).sum();
                f32_from(sum * share)
            })
            .collect();
        if samples.is_empty() {
            return Err(Error::Input("a WAV file without a single sample".to_owned()));
        }
        match samples.iter().position(|sample| !sample.is_finite()) {
            Some(place) => Err(Error::Input(format!("a WAV file whose sample {place} is no finite number"))),
            None => Ok(Recording { rate, samples }),
        }
    }
}

impl Encoding {
    /// Of one sample of one channel.
    const fn bytes(self) -> usize {
        match self {
            Self::Pcm8 => 1,
            Self::Pcm16 => 2,
            Self::Pcm24 => 3,
            Self::Pcm32 | Self::Float32 => 4,
            Self::Float64 => 8,
        }
    }

    /// The value of a sample's [`bytes`](Self::bytes): integers are divided by the largest magnitude, 2^(bits − 1).
    fn sample(self, bytes: &[u8]) -> f64 {
        /// The bytes in the upper end of a word, so that all integers have its sign and its largest magnitude.
        fn upper(bytes: &[u8]) -> f64 {
            let mut word = [0; 4];
            word[4 - bytes.len()..].copy_from_slice(bytes);
            f64::from(i32::from_le_bytes(word)) / 2_147_483_648.0
        }
        match (self, bytes) {
            (Self::Pcm8, &[byte]) => (f64::from(byte) - 128.0) / 128.0,
            (Self::Float32, &[a, b, c, d]) => f64::from(f32::from_le_bytes([a, b, c, d])),
            (Self::Float64, &[a, b, c, d, e, f, g, h]) => f64::from_le_bytes([a, b, c, d, e, f, g, h]),
            _ => upper(bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of chunks: an unknown one of odd length, the format and the data.
    fn wav(tag: u16, channels: u16, rate: u32, bits: u16, data: &[u8]) -> Vec<u8> {
        let frame = channels * bits / 8;
        let mut file = b"RIFF\0\0\0\0WAVEjunk\x03\0\0\0abc\0fmt \x10\0\0\0".to_vec();
        file.extend(tag.to_le_bytes());
        file.extend(channels.to_le_bytes());
        file.extend(rate.to_le_bytes());
        file.extend((rate * u32::from(frame)).to_le_bytes());
        file.extend(frame.to_le_bytes());
        file.extend(bits.to_le_bytes());
        file.extend(b"data");
        file.extend(u32::try_from(data.len()).expect("small").to_le_bytes());
        file.extend(data);
        file
    }

    fn samples(tag: u16, channels: u16, bits: u16, data: &[u8]) -> Vec<f32> {
        Recording::from_wav(&wav(tag, channels, 16_000, bits, data)).expect("a recording").samples
    }

    #[test]
    fn every_encoding_has_the_same_range() {
        assert_eq!(samples(1, 1, 8, &[0, 128, 192]), [-1.0, 0.0, 0.5]);
        assert_eq!(samples(1, 1, 16, &[0, 0x80, 0, 0, 0, 0x40, 1, 0]), [-1.0, 0.0, 0.5, 1.0 / 32768.0]);
        assert_eq!(samples(1, 1, 24, &[0, 0, 0x80, 0, 0, 0x40]), [-1.0, 0.5]);
        assert_eq!(samples(1, 1, 32, &[0, 0, 0, 0x80, 0, 0, 0, 0x40]), [-1.0, 0.5]);
        assert_eq!(samples(3, 1, 32, &0.25_f32.to_le_bytes()), [0.25]);
        assert_eq!(samples(3, 1, 64, &(-0.25_f64).to_le_bytes()), [-0.25]);
        // The mean of two channels; a last frame that is cut off does not count.
        assert_eq!(samples(1, 2, 16, &[0, 0x40, 0, 0xC0, 0, 0x40, 0, 0, 0]), [0.0, 0.25]);
    }

    #[test]
    fn extensible_and_unfinished_files_are_read() {
        let plain = wav(1, 1, 8_000, 16, &[0, 0x40, 0, 0x20]);
        let mut file = plain.clone();
        // A length that a pipe could not go back to write.
        let length = file.len() - 8;
        file[length..length + 4].copy_from_slice(&[0xFF; 4]);
        let read = Recording::from_wav(&file).expect("a recording");
        assert_eq!((read.rate, read.samples), (8_000, vec![0.5, 0.25]));

        let mut file = b"RIFF\0\0\0\0WAVEfmt \x28\0\0\0".to_vec();
        file.extend(&plain[32..48]);
        file[20..22].copy_from_slice(&EXTENSIBLE.to_le_bytes());
        file.extend([22, 0, 16, 0, 4, 0, 0, 0, 1, 0]);
        file.extend([0; 14]);
        file.extend(b"data\x02\0\0\0\0\x40");
        assert_eq!(Recording::from_wav(&file).expect("a recording").samples, [0.5]);
    }

    #[test]
    fn other_files_are_named() {
        let error = |bytes: &[u8]| Recording::from_wav(bytes).expect_err("refused").to_string();
        for (bytes, message) in [
            (&b""[..], "empty"),
            (b"fLaC\0\0\0\x22", "FLAC"),
            (b"ID3\x03", "MP3"),
            (b"hello, world, this is a text", "not a WAV file"),
            (b"RIFF\x04\0\0\0WAVE", "without format"),
            (b"RIFF\x04\0\0\0WAVEfmt \x04\0\0\0\x01\0\x01\0", "cut off"),
            (b"RIFF\x04\0\0\0WAVEdata\0\0\0\0", "precede"),
        ] {
            assert!(error(bytes).contains(message), "{bytes:?}: {}", error(bytes));
        }
        for (file, message) in [
            (wav(7, 1, 16_000, 8, &[1]), "µ-law"),
            (wav(1, 1, 16_000, 12, &[1]), "12 bits"),
            (wav(0x1234, 1, 16_000, 16, &[1, 0]), "0x1234"),
            (wav(1, 0, 16_000, 16, &[1, 0]), "0 channels"),
            (wav(1, 1, 400, 16, &[1, 0]), "400 samples a second"),
            (wav(1, 1, 16_000, 16, &[1]), "without a single sample"),
            (wav(3, 1, 16_000, 32, &f32::NAN.to_le_bytes()), "sample 0 is no finite number"),
        ] {
            assert!(error(&file).contains(message), "{message}: {}", error(&file));
        }
        let mut file = wav(1, 1, 16_000, 16, &[1, 0]);
        file[44] = 3;
        assert!(error(&file).contains("contradicts itself"), "{}", error(&file));
        for length in 0..file.len() {
            drop(Recording::from_wav(&file[..length]));
        }
    }
}
