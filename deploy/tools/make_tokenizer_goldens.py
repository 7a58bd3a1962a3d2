#!/usr/bin/env python3
"""Makes tests/data/tokenizers: goldens of the real SentencePiece library.

  make_tokenizer_goldens.py --out tests/data/tokenizers --text FILE [--text FILE ...] [--train]

needs `pip install sentencepiece==0.2.3 protobuf`. Every models/*.model in --out gets goldens;
--train first makes the trained ones anew from --text (public-domain UTF-8 texts, which also give
the slices of real text). Files:

  inputs.jsonl           one text per line: {"text": ...}, or {"hex": ...} where it is not UTF-8
  MODEL.encode.jsonl     per input: {"ids": [...], "decoded": ...}; "decoded" is left out where it
                         equals the input. Last line: {"repeat": n, "count", "ids_fnv", "text_fnv"}
                         of all inputs joined by newlines, n times over: a long text, by its hashes
                         (64-bit FNV-1a over little-endian int32 ids, or over bytes)
  MODEL.decode.jsonl     {"ids": [...], "decoded": ...} for id sequences that no text encodes to
"""

import argparse
import json
import pathlib
import random
import struct
import tempfile

import sentencepiece
from sentencepiece import sentencepiece_model_pb2 as model_pb2

# fmt: off
NASTY = [
    "", " ", "  ", "   ", "\t", "\n", "\r\n", "a", " a", "a ", " a ", "  a  b   c    ",
    "a\tb\nc\r\nd",
    "\n\n\n", " \n \n", "Hello world", "Hello  world", "hello", "HELLO WORLD",
    "The quick brown fox.",
    "▁", "▁▁▁", "a▁b", "▁a", "a▁", " ▁ ▁", "\u2581 \u2581x",
    "<s>", "</s>", "<unk>", "<pad>", "<s>hello</s>", " <s> ", "<0x41>", "<0x0A>", "<0xZZ>",
    "a<0x41>b",
    "[INST] hi [/INST]", "<|im_start|>user\nhi<|im_end|>", "<mask>", "<mask><mask>", "x<mask>y",
    "<ma", "<mask",
    "<sep>", "<sep><sep2><sep>", "a<sep2>b", " <sep> <mask> ", "[REFERENCE_DOC_1]",
    "[REFERENCE_DOC_19] x",
    "0", "1234567890", "3.14159", "1,000,000", "2024-01-31T12:34:56Z", "0x1F", "①②③", "１２３ＡＢＣ",
    "٣٤٥",
    "\x00", "a\x00b", "\x01\x02\x03", "\x7f", "a\x08b\x0cc", "\x1b[31mred\x1b[0m", "\x00 \x00",
    "😀", "😀😀", "a😀b", "👨‍👩‍👧‍👦", "👍🏽", "🏳️‍🌈", "🇩🇪🇫🇷", "☃️", "1️⃣",
    "日本語", "日本語のテキスト。", "中文文本，没有空格。", "한국어 텍스트", "ｶﾀｶﾅ", "カタカナ", "が", "か\u3099",
    "العربية", "مرحبا بالعالم", "עברית", "हिन्दी", "ภาษาไทย", "Ελληνικά", "Русский текст",
    "İstanbul ıiI",
    "é", "e\u0301", "ñ n\u0303", "Z\u0351\u036b\u0343a\u0321\u0340l\u0321\u0338g\u0322\u0315o",
    "ﬁ ﬂ ﬃ", "ﷺ", "™ ℃ ½",
    "\u00a0nbsp\u00a0", "\u2003em\u2003", "\u3000ideographic\u3000", "\u200bzero\u200bwidth\u200b",
    "\ufeffbom",
    "\u202ertl\u202c", "soft\u00adhyphen", "\u2028line\u2029para", "\u0085nel", "\ufffd",
    "\ufffe\uffff", "\U0010ffff",
    "\ud7ff\ue000", "ẞß", "ǅ", "Ǆ", "µ μ", "Å Å Å",
    "a" * 100, "a" * 1000, "ab" * 300, "x" * 7 + " " + "y" * 33, "ha" * 17 + "!" * 50, " " * 64,
    "a" + " " * 33 + "b",
    "supercalifragilisticexpialidocious" * 5, "z1" * 40, "-" * 80, "=" * 31, "\t" * 9 + "x",
    "😀" * 40, "日" * 50,
    "don't can't won't I'm you're", "C++ && || != <= >= -> :: ;;",
    "if (x < 0) {\n    return -1;\n}\n",
    "def f(x):\n\treturn x ** 2  # comment\n", "https://example.com/a?b=c&d=%20#e",
    "user@example.org",
    '{"key": "value", "n": [1, 2.5e-10, null]}', "$100 €50 £20 ¥30", "C:\\Windows\\System32",
    "~/.bashrc",
    "MixedCASEwordsAndnumbers123and_underscores", "naïve café résumé",
    "“quotes” ‘single’ — dash … dots",
    "Once upon a time, there was a little girl named Lily.", "of the of the of the",
    "to be or not to be",
    "A... B.... C..... ™ ™™ Straße \x01\x01 \x01", "™", "\u00a0\x01 ™ x ™\n",
    "か\u3099か\u3099\u3099 ß<mask>™<sep>",
    "¶ ¶¶ x¶ y ¶", "¶",
    "aaab baaa abab bbaa", "thethethethe", "in the end, in the beginning", "qzqzqzqz jjjj xxxx",
]

INVALID = [
    b"\xff", b"a\xffb", b"\xe2\x96", b"\xe2\x96b", b"\xe2", b"\x80\x80", b"\xc0\x80", b"\xc1\xbf",
    b"\xed\xa0\x80",
    b"\xf0\x80\x80\x80", b"\xf4\x90\x80\x80", b"\xf8\x88\x80\x80\x80", b"\xf0\x9f\x98",
    b"ok \xf0\x9f\x98 ok",
    b"\xe0\x9f\xbf", b"\xef\xbf\xbd\xef\xbf", b" \xff ", b"\xfe\xfe\xff\xff", b"caf\xe9",
    b"\x93quoted\x94", b"<ma\xffsk>",
]

# Lines that put more scripts into the trained vocabularies than the texts have.
EXTRA_LINES = [
    "Ελληνικά και Русский текст, naïve café résumé, ñandú, İstanbul",
    "日本語のテキストと中文文本，没有空格。한국어 텍스트",
    "العربية مرحبا بالعالم עברית हिन्दी ภาษาไทย",
    "def f(x): return x ** 2 # 1234567890 3.14159 2024-01-31",
    "😀 👍 ☃ € £ ¥ § ™ ½ \u0301 \u0308",
]
# fmt: on

# The plain words compete with pieces that are likely.
USER_SYMBOLS = ["<mask>", "<sep>", "<sep2>", "日本", "of the", "th", "thou", "in", "ing", "▁and"]

# fmt: off
# A normaliser small enough to fuzz: rules that delete, lengthen, overlap and make spaces.
RULES = [("\t", " "), ("\n", " "), ("\u00a0", " "), ("\x01", ""), ("Ａ", "A"), ("ﬁ", "fi"),
         ("か\u3099", "が"), ("™", " TM "), ("...", "…"), ("....", "‥‥"), ("ﷺ", "صلى الله عليه وسلم"),
         ("ß", "ss"), ("\ufffd", "?"), ("¶", "  P  ")]
# fmt: on


def fnv(data):
    value = 0xCBF29CE484222325
    for byte in data:
        value = ((value ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return value


def random_code_point(rng):
    # fmt: off
    ranges = [(0, 0x7F), (0x80, 0x24F), (0x300, 0x36F), (0x370, 0x5FF), (0x600, 0x6FF),
              (0x900, 0xE7F), (0x1F00, 0x2BFF), (0x3000, 0x30FF), (0x4E00, 0x9FFF),
              (0xAC00, 0xD7A3), (0xE000, 0xFFFD), (0x1F300, 0x1FAFF), (0x10000, 0x10FFFF)]
    # fmt: on
    low, high = rng.choice(ranges)
    return chr(rng.randint(low, high))


def make_inputs(texts, rng):
    inputs = [text.encode("utf-8") for text in NASTY] + INVALID
    for length in [20] * 15 + [80] * 25 + [400] * 10 + [3000] * 2:
        text = rng.choice(texts)
        start = rng.randrange(len(text) - length)
        inputs.append(text[start : start + length].encode("utf-8"))
    for _ in range(60):
        inputs.append(
            "".join(random_code_point(rng) for _ in range(rng.randint(1, 20))).encode("utf-8")
        )
    # fmt: off
    fragments = [" ", "  ", "▁", "a", "b", "the", " of", "1", "\n", "é", "日本語", "😀", "<mask>",
                 "<s>", "\ufffd", "Ａ", "\u3000"]
    # fmt: on
    for _ in range(60):
        inputs.append(
            "".join(rng.choice(fragments) for _ in range(rng.randint(1, 12))).encode("utf-8")
        )
    for _ in range(30):
        inputs.append(
            bytes(
                rng.choice([rng.randrange(256), rng.randrange(128)])
                for _ in range(rng.randint(1, 24))
            )
        )
    return inputs


def train(out, texts):
    lines = [line for text in texts for line in text.splitlines() if line.strip()]
    rng = random.Random(7)
    rng.shuffle(lines)
    lines = lines[:20000] + EXTRA_LINES * 40
    common = dict(
        num_threads=1, max_sentence_length=100000, shuffle_input_sentence=False, minloglevel=2
    )
    specs = {
        "unigram-nfkc": dict(
            model_type="unigram",
            vocab_size=1000,
            normalization_rule_name="nmt_nfkc",
            character_coverage=0.9995,
        ),
        "unigram-bytes": dict(
            model_type="unigram",
            vocab_size=900,
            normalization_rule_name="identity",
            byte_fallback=True,
            split_digits=True,
            remove_extra_whitespaces=False,
            user_defined_symbols=USER_SYMBOLS,
            pad_id=3,
            unk_surface="<?>",
        ),
        "bpe-nfkc-cf": dict(
            model_type="bpe",
            vocab_size=700,
            normalization_rule_name="nmt_nfkc_cf",
            user_defined_symbols=USER_SYMBOLS,
            character_coverage=0.9995,
        ),
        "bpe-phrases": dict(
            model_type="bpe",
            vocab_size=900,
            normalization_rule_name="identity",
            byte_fallback=True,
            split_by_whitespace=False,
            split_by_unicode_script=False,
            split_digits=True,
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            allow_whitespace_only_pieces=True,
            bos_piece="[BOS]",
            eos_piece="[EOS]",
        ),
        "bpe-suffix": dict(
            model_type="bpe",
            vocab_size=500,
            normalization_rule_name="identity",
            treat_whitespace_as_suffix=True,
            bos_id=-1,
            character_coverage=0.999,
        ),
        "unigram-rules": dict(
            model_type="unigram",
            vocab_size=400,
            user_defined_symbols=USER_SYMBOLS,
            character_coverage=0.999,
        ),
    }
    with tempfile.TemporaryDirectory() as folder:
        corpus = pathlib.Path(folder) / "corpus.txt"
        corpus.write_text("\n".join(lines), encoding="utf-8")
        rules = pathlib.Path(folder) / "rules.tsv"
        rules.write_text(
            "".join(f"{hexed(left)}\t{hexed(right)}\n" for left, right in RULES), encoding="utf-8"
        )
        specs["unigram-rules"]["normalization_rule_tsv"] = str(rules)
        for name, spec in specs.items():
            sentencepiece.SentencePieceTrainer.Train(
                input=str(corpus), model_prefix=str(pathlib.Path(folder) / name), **common, **spec
            )
            model = load_proto(pathlib.Path(folder) / f"{name}.model")
            model.trainer_spec.ClearField("input")  # paths of the machine that trained it
            model.trainer_spec.ClearField("model_prefix")
            model.normalizer_spec.ClearField("normalization_rule_tsv")
            save_proto(model, out / "models" / f"{name}.model")

    # What no trainer writes and other tools do: pieces switched off, user-defined pieces that
    # others contain, spaces not escaped.
    for source, name in [("bpe-suffix", "bpe-unused"), ("unigram-bytes", "unigram-unused")]:
        model = load_proto(out / "models" / f"{source}.model")
        normal = [
            piece for piece in model.pieces if piece.type == piece.NORMAL and len(piece.piece) > 1
        ]
        for piece in normal[::3]:
            piece.type = piece.UNUSED
        for piece in normal[1::20]:
            piece.type = piece.USER_DEFINED
        if name == "unigram-unused":
            model.normalizer_spec.escape_whitespaces = False
            model.normalizer_spec.remove_extra_whitespaces = True
        else:
            model.trainer_spec.treat_whitespace_as_suffix = False
        save_proto(model, out / "models" / f"{name}.model")


def hexed(text):
    return " ".join(f"{ord(character):X}" for character in text)


def load_proto(path):
    model = model_pb2.ModelProto()
    model.ParseFromString(path.read_bytes())
    return model


def save_proto(model, path):
    path.write_bytes(model.SerializeToString())


def write_lines(path, rows):
    path.write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows),
        encoding="utf-8",
        newline="\n",
    )


def as_row(data):
    try:
        text = data.decode("utf-8")
        return {"text": text}
    except UnicodeDecodeError:
        return {"hex": data.hex()}


def decode_cases(processor, rng):
    size = processor.GetPieceSize()
    reserved = [i for i in range(size) if processor.IsControl(i) or processor.IsUnknown(i)]
    spaces = [i for i in range(size) if processor.IdToPiece(i).startswith("▁")]
    byte_ids = [i for i in range(size) if processor.IsByte(i)]
    bytes_by_value = {int(processor.IdToPiece(i)[3:5], 16): i for i in byte_ids}
    utf8 = [bytes_by_value[b] for b in "é日😀".encode()] if byte_ids else []
    for _ in range(150):
        ids = []
        for _ in range(rng.randint(1, 16)):
            kind = rng.randrange(6)
            pool = [range(size), reserved, spaces, byte_ids, utf8, range(size)][kind] or range(size)
            ids.append(rng.choice(pool))
        yield ids
    if byte_ids:
        for _ in range(100):
            data = bytearray("aé日本😀\ufffd".encode())
            for _ in range(rng.randint(0, 4)):
                data[rng.randrange(len(data))] = rng.choice(
                    [0x80, 0xBF, 0xC2, 0xE0, 0xED, 0xF0, 0xF4, 0xFF, 0x20]
                )
            yield [bytes_by_value[b] for b in data[rng.randrange(4) :]]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--text", type=pathlib.Path, action="append", required=True)
    parser.add_argument("--train", action="store_true")
    args = parser.parse_args()
    texts = [path.read_text(encoding="utf-8") for path in args.text]
    (args.out / "models").mkdir(parents=True, exist_ok=True)
    if args.train:
        train(args.out, texts)

    inputs = make_inputs(texts, random.Random(1))
    write_lines(args.out / "inputs.jsonl", [as_row(data) for data in inputs])
    repeat = 20
    long_text = b"\n".join(inputs * repeat)
    for path in sorted((args.out / "models").glob("*.model")):
        name = path.name.removesuffix(".model")
        processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
        rows = []
        for data in inputs:
            ids = processor.Encode(data)
            row = {"ids": ids}
            decoded = processor.Decode(ids)
            if decoded.encode("utf-8") != data:
                row["decoded"] = decoded
            rows.append(row)
        ids = processor.Encode(long_text)
        rows.append(
            {
                "repeat": repeat,
                "count": len(ids),
                "ids_fnv": f"{fnv(struct.pack(f'<{len(ids)}i', *ids)):016x}",
                "text_fnv": f"{fnv(processor.Decode(ids).encode('utf-8')):016x}",
            }
        )
        write_lines(args.out / f"{name}.encode.jsonl", rows)
        cases = list(decode_cases(processor, random.Random(2)))
        write_lines(
            args.out / f"{name}.decode.jsonl",
            [{"ids": ids, "decoded": processor.Decode(ids)} for ids in cases],
        )
        print(name, processor.GetPieceSize(), len(rows), len(cases), len(ids))


if __name__ == "__main__":
    main()
