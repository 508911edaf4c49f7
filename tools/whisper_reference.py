#!/usr/bin/env python3
"""A spoken sentence, and what transformers' Whisper makes of it.

usage: whisper_reference.py MODEL FOLDER [TEXT]

Speaks TEXT with eSpeak NG (PyPI: espeakng-loader) at 16 kHz, and writes FOLDER with links to the files of the checkpoint MODEL and

    speech.wav           the sentence
    golden.safetensors   spectrum f32 [frames, bands], decoder_input_ids i32 [n], logits f32 [n, vocabulary] of these

`INT8_WHISPER=FOLDER cargo test -p int8-nn --test speech trained -- --nocapture` compares. Needs torch, transformers, numpy and
espeakng-loader.
"""
import ctypes
import pathlib
import sys
import wave

TEXT = "We measured the memory of a large language model before and after conversion."


def speak(text):
    """Samples in [-1, 1] and their rate."""
    import espeakng_loader
    import numpy as np

    library = ctypes.CDLL(espeakng_loader.get_library_path())
    synchronous, characters = 2, 1
    rate = library.espeak_Initialize(synchronous, 0, espeakng_loader.get_data_path().encode(), 0)
    samples = bytearray()

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
    def take(data, count, _):
        if data and count > 0:
            samples.extend(ctypes.string_at(data, 2 * count))
        return 0

    library.espeak_SetSynthCallback(take)
    library.espeak_SetVoiceByName(b"en-us")
    encoded = text.encode() + b"\0"
    library.espeak_Synth(encoded, len(encoded), 0, 0, 0, characters, None, None)
    library.espeak_Synchronize()
    return np.frombuffer(bytes(samples), dtype="<i2") / 32768, rate


def write(path, samples, rate):
    """`samples` as 16-bit WAV."""
    import numpy as np

    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.clip(np.round(samples * 32768), -32768, 32767).astype("<i2").tobytes())


def main(model, folder, text):
    import numpy as np
    import torch
    from safetensors.torch import save_file
    from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration

    model, folder = pathlib.Path(model).resolve(), pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for file in model.iterdir():
        if not (folder / file.name).exists():
            (folder / file.name).symlink_to(file)
    sound, rate = speak(text)
    write(folder / f"speech-{rate}.wav", sound, rate)
    # Band-limited: the lower part of the spectrum of the whole recording.
    count = len(sound) * 16000 // rate
    sound = np.fft.irfft(np.fft.rfft(sound)[: count // 2 + 1], count) * count / len(sound)
    write(folder / "speech.wav", sound, 16000)
    sound = np.clip(np.round(sound * 32768), -32768, 32767).astype(np.float32) / 32768

    spectrum = WhisperFeatureExtractor.from_pretrained(folder)(sound, sampling_rate=16000, return_tensors="pt").input_features
    network = WhisperForConditionalGeneration.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    written = network.generate(spectrum)[0]
    start = network.generation_config.decoder_start_token_id
    begun = [start] + [token for _, token in network.generation_config.forced_decoder_ids or [] if token is not None]
    ids = torch.cat([torch.tensor(begun), written[written >= 0]])
    with torch.no_grad():
        logits = network(spectrum, decoder_input_ids=ids[None]).logits[0]
    save_file({"spectrum": spectrum[0].T.contiguous(), "decoder_input_ids": ids.int(), "logits": logits.contiguous()},
              folder / "golden.safetensors")
    from tokenizers import Tokenizer

    print(f"{len(sound) / 16000:.1f} s; transformers writes {Tokenizer.from_file(str(folder / 'tokenizer.json')).decode(written.tolist())!r}")


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    main(sys.argv[1], sys.argv[2], sys.argv[3] if len(sys.argv) == 4 else TEXT)
