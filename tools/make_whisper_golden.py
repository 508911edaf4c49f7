#!/usr/bin/env python3
"""A tiny random Whisper of several languages, with spectra, logits and transcripts of Hugging Face transformers.

usage: make_whisper_golden.py        writes int8-nn/tests/data/speech/whisper

The folder holds config.json, generation_config.json, preprocessor_config.json, tokenizer.json (a token an id), model.safetensors (as
transformers saves it, float16) and golden.safetensors, computed after from_pretrained(…, dtype=float32):

    samples         f32 [14400]: 0.9 s of chirps and noise at 16 kHz; the model's window is 1 s
    spectrum        f32 [100, 24]: WhisperFeatureExtractor's features of it
    spectrum80      f32 [100, 80]: with 80 bands, as trained models have
    decoder_input_ids  i32 [12]
    logits          f32 [12, vocabulary] of these for the first spectrum
    prompt_ids      i32: with which `generate` begins without a language
    greedy_ids      i32: what follows, without the end-of-text token
    prompt_de_ids, greedy_de_ids    with language="de", task="translate"
    int8_error      f32 [1]: relative L2 distance from `logits` of LLM.int8() (threshold 6) as bitsandbytes computes it, simulated for
                    every linear layer but the head

Uses the environment of make_encoder_goldens.py.
"""
import json
import pathlib
import sys

import make_encoder_goldens as goldens

OUT = goldens.OUT.parent / "speech/whisper"
VOCAB, BANDS, FRAMES = 96, 24, 100
CONFIG = {"vocab_size": VOCAB, "num_mel_bins": BANDS, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2,
          "encoder_attention_heads": 4, "decoder_attention_heads": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 48,
          "max_source_positions": FRAMES // 2, "max_target_positions": 24, "bos_token_id": 80, "eos_token_id": 80,
          "pad_token_id": 80, "decoder_start_token_id": 81}
GENERATION = {"bos_token_id": 80, "eos_token_id": 80, "pad_token_id": 80, "decoder_start_token_id": 81, "is_multilingual": True,
              "lang_to_id": {"<|en|>": 82, "<|de|>": 83, "<|fr|>": 84}, "task_to_id": {"transcribe": 85, "translate": 86},
              "no_timestamps_token_id": 87, "forced_decoder_ids": [[1, None], [2, 85]], "max_length": 16,
              # Those from 88 on would be time stamps.
              "suppress_tokens": [3, 7, 82, 83, *range(88, VOCAB)], "begin_suppress_tokens": [11, 80], "return_timestamps": False}
FEATURES = {"feature_extractor_type": "WhisperFeatureExtractor", "feature_size": BANDS, "sampling_rate": 16000, "hop_length": 160,
            "chunk_length": 1, "n_fft": 400, "padding_value": 0.0, "return_attention_mask": False}


def samples(generator):
    import torch

    time = torch.arange(14400, dtype=torch.float64) / 16000
    sound = 0.5 * torch.sin(2 * torch.pi * (200 * time + 1500 * time**2)) * (time % 0.3 < 0.2)
    return (sound + 0.02 * torch.randn(time.shape, generator=generator, dtype=torch.float64)).float()


def main():
    import torch
    import transformers
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, models
    from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

    transformers.logging.set_verbosity_error()
    generator = torch.Generator().manual_seed(3000)
    model = WhisperForConditionalGeneration(WhisperConfig(**CONFIG))
    goldens.randomize(model, generator)
    OUT.mkdir(parents=True, exist_ok=True)
    model.half().save_pretrained(OUT)
    (OUT / "generation_config.json").write_text(json.dumps(GENERATION, indent=2) + "\n")
    (OUT / "preprocessor_config.json").write_text(json.dumps(FEATURES, indent=2) + "\n")
    vocabulary = {f"w{index}": index for index in range(VOCAB)}
    Tokenizer(models.WordLevel(vocabulary, unk_token="w0")).save(str(OUT / "tokenizer.json"))
    model = WhisperForConditionalGeneration.from_pretrained(OUT, dtype=torch.float32, attn_implementation="eager").eval()

    sound = samples(generator)
    golden = {"samples": sound}
    spectrum = WhisperFeatureExtractor.from_pretrained(OUT)(sound.numpy(), sampling_rate=16000, return_tensors="pt").input_features
    golden["spectrum"] = spectrum[0].T
    wide = WhisperFeatureExtractor(**{**FEATURES, "feature_size": 80})(sound.numpy(), sampling_rate=16000, return_tensors="pt")
    golden["spectrum80"] = wide.input_features[0].T
    targets = torch.randint(12, 80, (1, 12), generator=generator)
    targets[:, 0] = CONFIG["decoder_start_token_id"]
    with torch.no_grad():
        compute = lambda: model(spectrum, decoder_input_ids=targets).logits
        golden["logits"] = exact = compute()
        error = (goldens.in_int8(model, compute) - exact).norm() / exact.norm()
        begun = {}
        inner = transformers.generation.GenerationMixin.generate

        def watched(self, *arguments, **options):
            begun["ids"] = options["decoder_input_ids"][0]
            return inner(self, *arguments, **options)

        transformers.generation.GenerationMixin.generate = watched
        for name, options in (("", {}), ("_de", {"language": "de", "task": "translate"})):
            ids = model.generate(spectrum, **options)[0]
            ids = ids[len(begun["ids"]):] if ids[: len(begun["ids"])].tolist() == begun["ids"].tolist() else ids
            golden[f"prompt{name}_ids"] = begun["ids"].int()
            golden[f"greedy{name}_ids"] = ids[ids != CONFIG["eos_token_id"]].int()
    golden["logits"], golden["decoder_input_ids"] = exact[0], targets[0].int()
    golden["int8_error"] = error.reshape(1)
    save_file({name: tensor.contiguous() for name, tensor in golden.items()}, OUT / "golden.safetensors")
    size = sum(file.stat().st_size for file in OUT.iterdir())
    print(f"whisper: {size / 1e3:.0f} kB, int8 error {error:.2e}")
    for name, tensor in golden.items():
        if name.endswith("ids"):
            print(name, tensor.tolist())


if __name__ == "__main__":
    if pathlib.Path(sys.prefix).resolve() != goldens.HOME.resolve():
        import os
        os.execv(goldens.HOME / "bin/python", [str(goldens.HOME / "bin/python"), __file__])
    main()
