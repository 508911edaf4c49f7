#!/usr/bin/env python3
"""Tiny tokenizers without tokenizer.json, with token ids of Hugging Face transformers.

usage: make_tokenizer_goldens.py [NAME…]        all without an argument; writes int8-nn/tests/data/faults/NAME

Each folder holds model/ (the files of a slow tokenizer and the config.json that names its family) and case.json: texts with
white space, accents, scripts without spaces, emoji and special tokens, and their ids from AutoTokenizer. Makes its own
environment in ~/.cache/int8-tools (transformers, torch, sentencepiece).
"""
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import venv

HOME = pathlib.Path(os.environ.get("INT8_TOOLS", pathlib.Path.home() / ".cache/int8-tools")) / "tokenizers"
NEEDS = ["torch==2.15.0", "transformers==5.24.0", "sentencepiece", "protobuf"]
OUT = pathlib.Path(__file__).resolve().parent.parent / "int8-nn/tests/data/faults"

CORPUS = """The harbour was quiet before the boats came home, and the gulls slept on the wall.
Nobody counted the nets twice; the old man counted them once, and slowly.
Über den Dächern lag der Schnee, und die Straße führte bis zum Fluss hinab.
Où est passé l'été, demandait-elle, en regardant la fenêtre gelée du café.
El niño compró una piñata y un paraguas amarillo en la plaza de Córdoba.
春の海は静かで、朝の船はまだ帰らない。猫は窓の下で眠っている。
北方的冬天很长,河水慢慢地结冰,孩子们在桥上看雪。
Зимой река замерзает, и дети идут по льду в школу.
눈이 내리는 아침에 우리는 조용히 걸었다.
0 1 2 3 4 5 6 7 8 9 10 11 12 100 1999 2026 3.14 (a) [b] {c} <d> & e! f? g: h; "i" 'j' - k_l/m + n = o * p
"""

# Full-width letters and digits, ligatures and the ideographic space become ASCII: a small map of characters.
RULES = [(chr(0xFF01 + place), chr(0x21 + place)) for place in range(94)]
RULES += [("\u3000", " "), ("\ufb01", "fi"), ("\ufb02", "fl"), ("\u00a0", " "), ("e\u0301", "\u00e9")]

TEXTS = [
    "The old man counted the boats.",
    "  two  spaces,\ta tab\nand lines\n\n of text  ",
    "café cafe\u0301 Über Straße piñata ÉTÉ",
    "春の海は静かで、北方的冬天很长。조용히",
    "snow ❄️ and boats 🚣🏽‍♀️ 😀😀!",
    "ＦＵＬＬ　ｗｉｄｔｈ ﬁve ﬂags\u00a0here",
    "",
    " ",
    "3.14 + 1999 = 2002.14; {c} <d> [b]",
    "x" * 120 + " end",
    "\u200bzero\u200dwidth \u202eright",
    "don't -- l'été_k/m",
]
T5 = ["Translate <extra_id_0> the <extra_id_99>boats</s> home <pad>", "<extra_id_100> <unk>x"]
ROBERTA = ["The <mask> came home</s> and <s>slept", "a<mask>b <pad><unk>"]
GEMMA = ["<bos>The boats<eos> came <pad> home", "a <unk> <mask>b"]
BERT = ["The [MASK] came home [SEP] and [CLS] slept", "UPPER lower[MASK]x [unused1] [UNK]"]

# name: (kind of model, pieces, file, config, tokenizer_config, further texts)
TOKENIZERS = {
    "t5_spm": ("t5", "unigram", "spiece.model", {"model_type": "t5"}, None, T5),
    "xlm_roberta_spm": ("fairseq", "unigram", "sentencepiece.bpe.model", {"model_type": "xlm-roberta"}, None, ROBERTA),
    "gemma_spm": ("gemma", "bpe", "tokenizer.model", {"model_type": "gemma"}, {"tokenizer_class": "GemmaTokenizer"}, GEMMA),
    "bert_vocab": (None, None, "vocab.txt", {"model_type": "bert"}, None, BERT),
    "bert_cased_vocab": (None, None, "vocab.txt", {"model_type": "bert"}, {"do_lower_case": False}, BERT),
}


def in_environment():
    python = HOME / "bin/python"
    if not python.exists():
        venv.create(HOME, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *NEEDS], check=True)
    os.execv(python, [str(python), __file__, *sys.argv[1:]])


def sentencepiece_model(special, kind, path):
    """A model of some hundred pieces, with its special tokens in the places that the family expects."""
    import sentencepiece

    places = {
        "t5": {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1},
        "fairseq": {"unk_id": 0, "bos_id": 1, "eos_id": 2, "pad_id": -1},
        "gemma": {"pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3, "bos_piece": "<bos>", "eos_piece": "<eos>",
                  "user_defined_symbols": ["<mask>", "\n", "▁▁", "▁▁▁"], "byte_fallback": True,
                  "remove_extra_whitespaces": False, "add_dummy_prefix": False, "split_digits": True},
    }[special]
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        (folder / "text").write_text(CORPUS)
        settings = {}
        if special != "gemma":
            line = lambda text: " ".join(f"{ord(character):X}" for character in text)
            (folder / "rules").write_text("".join(f"{line(a)}\t{line(b)}\n" for a, b in RULES))
            settings["normalization_rule_tsv"] = str(folder / "rules")
        else:
            settings["normalization_rule_name"] = "identity"
        sentencepiece.SentencePieceTrainer.train(
            input=str(folder / "text"), model_prefix=str(folder / "m"), model_type=kind, character_coverage=1.0,
            vocab_size=600 if special == "gemma" else 320, hard_vocab_limit=False, minloglevel=2, **places, **settings)
        path.write_bytes((folder / "m.model").read_bytes())


def word_pieces(path, lower):
    """Characters, and words of the corpus with some of their ends."""
    text = CORPUS.lower() if lower else CORPUS
    words = sorted({word.strip(".,;:?!'\"、。") for word in text.split() if len(word) < 9})
    characters = sorted({character for character in text if not character.isspace()})
    pieces = ["[PAD]", "[unused1]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters,
              *(f"##{character}" for character in characters if character.isalnum()),
              *(word for word in words if len(word) > 1), "##ted", "##s", "##ing", "##ed"]
    path.write_text("".join(f"{piece}\n" for piece in dict.fromkeys(pieces)))


def make(name):
    from transformers import AutoTokenizer

    special, kind, file, config, settings, texts = TOKENIZERS[name]
    folder = OUT / name
    model = folder / "model"
    model.mkdir(parents=True, exist_ok=True)
    (model / "config.json").write_text(json.dumps(config) + "\n")
    if settings is not None:
        (model / "tokenizer_config.json").write_text(json.dumps(settings) + "\n")
    if special is None:
        word_pieces(model / file, settings is None)
    else:
        sentencepiece_model(special, kind, model / file)
    tokenizer = AutoTokenizer.from_pretrained(model)
    cases = [{"text": text, "ids": tokenizer(text).input_ids} for text in TEXTS + texts]
    lines = ",\n".join(json.dumps(case, ensure_ascii=False) for case in cases)
    (folder / "case.json").write_text(f"{{\"texts\": [\n{lines}\n]}}\n")
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    print(f"{name}: {type(tokenizer).__name__}, {len(tokenizer)} tokens, {size / 1e3:.0f} kB")


if __name__ == "__main__":
    if pathlib.Path(sys.prefix).resolve() != HOME.resolve():
        in_environment()
    for name in sys.argv[1:] or TOKENIZERS:
        make(name)
