"""From text to token files: the format to the letter, every word counted, and no text that breaks it."""

import base64
import bz2
import errno
import gzip
import io
import json
import lzma
import os
import pickle
import random
import re
import subprocess
import sys
import tarfile
import time
from functools import partial
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace

import data
import evaluate
import train
from corpora import benchmarks, copying, toyland
from corpora import text as text_files
from data import read_tokenizer
from support.run import find_marks
from support.settings import configure

import numpy as np
import pytest
import torch
from processes import fork, needs_fork, wait_until

ROOT = Path(data.__file__).parent

BOS, EOS = 1, 2


@pytest.fixture
def prepare(tmp_path, monkeypatch):
    """prepare("text" or b"bytes" or [files], val_share=0.5) -> (meta.json, tokenizer, tokens of both splits)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NANORNN_DATA", raising=False)
    Path("val.txt").write_text("held out\n")

    def call(text, vocab_size=300, val="val.txt", **settings):
        if not isinstance(text, list):
            Path("a.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
            text = ["a.txt"]
        folder = data.prepare("mine", text, data.Settings(vocab_size, val, **settings))
        meta = json.loads((folder / "meta.json").read_text())
        splits = [np.fromfile(folder / f"{split}.bin", dtype="<u2").tolist() for split in ("train", "val")]
        assert [meta["train"]["tokens"], meta["val"]["tokens"]] == [len(split) for split in splits]
        return meta, read_tokenizer(folder), *splits

    return call


def documents(tokens, tokenizer):
    """Token ids -> the texts between <s> and </s>."""
    starts, ends = ([i for i, token in enumerate(tokens) if token == mark] for mark in (BOS, EOS))
    assert starts == [0] + [end + 1 for end in ends[:-1]] and ends[-1] == len(tokens) - 1
    return [tokenizer.decode(tokens[start + 1 : end]) for start, end in zip(starts, ends)]


def spaced(text):
    """A text with the space that begins each line, as tokens have it."""
    return re.sub(r"(?m)^(?=[^ \n])", " ", text)


def test_the_tokenizer_of_another_corpus(prepare, refusal):
    """... is kept to the letter, so a run of that corpus can go on with this one."""
    _, first, _, _ = prepare("the cat sees the other cat and the hat\n" * 20)
    Path("data/mine").rename("data/other")
    meta, tokenizer, train, _ = prepare("a hat on the mat", tokenizer="other")
    assert tokenizer.to_str() == first.to_str() and meta["vocab_size"] == first.get_vocab_size()
    assert documents(train, tokenizer) == [" a hat on the mat"]
    for name, what in (
        ("mine", "is the corpus that is being made"),
        ("none", "there is no data/none"),
        ("a/b", "tokenizer = 'a/b': name a corpus"),
    ):
        assert what in refusal(data.prepare, "mine", ["a.txt"], data.Settings(300, "val.txt", tokenizer=name))
    path = Path("data/other/tokenizer.json")
    path.write_text(path.read_text().replace('"<s>"', '"<start>"'))
    said = refusal(data.prepare, "mine", ["a.txt"], data.Settings(300, "val.txt", tokenizer="other"))
    assert said.startswith("tokenizer = 'other': has no <s>, with which a document begins")


def test_the_format_to_the_letter(prepare):
    """<s> line, newline, line </s>, in 16-bit little-endian numbers; <pad> <s> </s> are 0, 1, 2."""
    meta, tokenizer, train, val = prepare("one two\nthree\n\n\nfour\n")
    ids = [tokenizer.encode(line, add_special_tokens=False).ids for line in ("one two\n", "three", "four")]
    assert train == [BOS, *ids[0], *ids[1], EOS, BOS, *ids[2], EOS]
    assert meta["train"] == {"words": 4, "documents": 2, "tokens": len(train)}
    assert [tokenizer.token_to_id(token) for token in ("<pad>", "<s>", "</s>")] == [0, 1, 2]
    raw = Path("data/mine/train.bin").read_bytes()
    assert raw[:2] == b"\1\0" and len(raw) == 2 * len(train)


@pytest.mark.parametrize("line", ["The cat sat.", "It's 1,000!", "  indented", "\ttab", "</s> ok", "日本"])
def test_a_line_in_a_document_begins_like_the_sentence_alone(prepare, line):
    _, tokenizer, train, _ = prepare(f"before it\n{line}\nafter it\n")
    alone = tokenizer.encode(line, add_special_tokens=False).ids
    start = len(tokenizer.encode("before it\n").ids)  # with <s>
    assert train[start : start + len(alone)] == alone
    if not line[0].isspace():
        assert tokenizer.encode(" " + line, add_special_tokens=False).ids == alone


@pytest.mark.parametrize(
    "raw",
    [b"a b\r\nc\r\n\r\nd\r\n", b"\xef\xbb\xbfa b\nc\n\nd\n", b"a b\nc\n\nd", b"\n\na b\nc\n \t\n\nd\n\n\n"],
)
def test_line_ends_marks_and_empty_lines_make_no_difference(prepare, raw):
    """CRLF, a byte order mark, no line break at the end, more empty lines: the same tokens."""
    assert prepare(raw)[2] == prepare("a b\nc\n\nd\n")[2]


def test_gz_files_of_one_name_and_files_given_twice(prepare):
    """Two files of one name in two folders both count; the same file given twice counts once."""
    for folder, text in (("x", b"one two\n"), ("y", b"three\n")):
        Path(folder).mkdir()
        Path(folder, "a.txt.gz").write_bytes(gzip.compress(text))
    meta, tokenizer, train, _ = prepare(["x/a.txt.gz", "*/a.txt.gz", "./x/a.txt.gz"])
    assert documents(train, tokenizer) == [" one two", " three"]
    assert set(meta["sources"]) == {"x/a.txt.gz", "y/a.txt.gz", "val.txt"}


def test_an_altered_file_is_named_in_one_clear_line(prepare, refusal):
    """Others that cannot be used are in the battery of test_settings.py."""
    packed = gzip.compress("some words of text\n".encode() * 1000)
    Path("altered.gz").write_bytes(packed[:30] + bytes(20) + packed[50:])
    said = refusal(prepare, ["altered.gz"])
    assert sum(line.startswith("altered.gz: ") for line in said.splitlines()) == 1
    assert not Path("data/mine/meta.json").exists()


@pytest.mark.parametrize("text", ["", "\n \n"])
def test_an_empty_file_is_said_to_be_empty(prepare, refusal, text):
    assert "no text to train on; are the files empty?" in refusal(prepare, text)
    assert "no text to train on; are the files empty?" in refusal(lambda: prepare(text, val=""))
    assert not [file for file in Path("data").rglob("*") if file.is_file()]


def test_validation_files_may_be_patterns(prepare):
    Path("a.txt").write_text("some words\n")
    Path("dev1.txt").write_text("one two\n"), Path("dev2.txt").write_text("three\n")
    data.main(["text", "mine", "a.txt", "--val=val.txt,dev*.txt", "--vocab_size=300"])
    meta = json.loads(Path("data/mine/meta.json").read_text())
    assert meta["train"]["words"] == 2 and meta["val"] == meta["val"] | {"words": 5, "documents": 3}


def test_a_share_of_the_documents_is_held_out(prepare):
    """Without validation files each document goes to one of the splits, always to the same one."""
    text = [f"document {i}" for i in range(400)]
    _, tokenizer, train, val = prepare("\n\n".join(text), val="", val_share=0.25)
    train, val = documents(train, tokenizer), documents(val, tokenizer)
    assert sorted(train + val) == sorted(" " + document for document in text)
    assert 60 < len(val) < 140


def test_a_document_may_end_after_so_many_lines(prepare):
    """At an empty line in any case; a line that is read in parts counts once."""
    long = "word " * (text_files.MAX_LINE // 2)
    _, tokenizer, train, _ = prepare(f"a\nb\n{long}\nc\nd\n\ne\nf\ng\n\nh", longest=3)
    assert documents(train, tokenizer) == [f" a\n b\n {long}", " c\n d", " e\n f\n g", " h"]


def test_a_damaged_corpus_is_named_with_its_file(prepare, refusal):
    prepare("one two three four\n\nfive\n")
    Path("data/mine/val.bin").write_bytes(b"\1\0\2\0")
    assert "damaged (val.bin is not the text" in refusal(data.read_meta, Path("data/mine"))
    Path("data/mine/train.bin").unlink()
    said = refusal(data.read_meta, Path("data/mine"))
    assert said.startswith("data/mine: this corpus is damaged (train.bin is missing); prepare it again: ")
    assert said.endswith("python data.py text mine FILES...\n")


def test_of_a_single_document_the_end_is_held_out(prepare):
    text = "".join(f"line {i} of it\n" for i in range(300))
    meta, tokenizer, train, val = prepare(text, val="", val_share=0.1)
    (start,), (end,) = documents(train, tokenizer), documents(val, tokenizer)
    assert start + end == spaced(text).strip("\n")
    assert meta["train"]["words"] + meta["val"]["words"] == len(text.split())
    assert 0.09 < len(val) / (len(train) + len(val)) < 0.11


@pytest.mark.parametrize("letters", ["ACGT", "日本語文字"])
def test_one_long_line_without_spaces_is_a_text(prepare, refusal, letters):
    """DNA, say, or Chinese: the end is held out, as of any single document."""
    text = "".join(random.Random(0).choices(letters, k=200_000))
    _, tokenizer, train, val = prepare(text + "\n", val="", val_share=0.1)
    (start,), (end,) = documents(train, tokenizer), documents(val, tokenizer)
    assert start + end == " " + text
    marking = SimpleNamespace(checkpoints="babylm", batch_size=16)
    assert "counts words, and data/mine has none" in refusal(find_marks, marking, Path("data/mine"), 9)


def test_the_vocabulary_of_one_long_line_is_learned_from_all_of_it(prepare):
    """A text of words without spaces, in one line, needs as few tokens as in many lines: Chinese, say."""
    r = random.Random(0)
    words = ["".join(chr(0x4E00 + r.randrange(500)) for _ in range(2)) for _ in range(600)]
    lines = ["".join(r.choices(words[i // 2 : i // 2 + 60], k=30)) for i in range(1000)]  # ever other words
    by_lines, one_line = (prepare(end.join(lines) + "\n", vocab_size=2000)[2] for end in ("\n", ""))
    assert len(one_line) < 1.05 * len(by_lines)


# ----------------------------------------------------------------------------------------------------
# Text torture: whatever bytes come, the counts are right or a line says why not

TORTURE = {
    "plain": b"one two\nthree\n\nfour five six\n",
    "other scripts": "naïve café — “quoted” 日本語\nعربي 🙂👩‍👩‍👧 e\u0301\n".encode(),
    "tabs and indentation": b"\tone  two\n    three \n",
    "bytes of no alphabet": b"caf\xe9 ok\xff \xc0\xaf \xed\xa0\x80 \xf5\x80\x80\x80 cut \xf0\x9f\x99\n",
    "a byte order mark, CRLF": b"\xef\xbb\xbfone two\r\nthree\r\n\r\nfour\r\n",
    "lone carriage returns": b"one two\rthree\r\rfour\r",
    "NUL and control characters": b"a\0b \x1a\x1b[31m c\x7f\x0b\x0c\n \x1c\x1d\n\nd\n",
    "marks of the tokenizer as words": b"a </s> b<s> c <pad>\n</s>\n<s>\n\n<s></s>\n",
    "joined, combining, invisible": "e\u0301 a\u200bb \ufeff 🙂👩‍👩‍👧 \u202e שלום \u2028 \x85 \u00a0\n".encode(),
    "spaces of other scripts in a long line": (("語" * 999 + "\u3000") * 100 + "\n").encode(),
    "no line break at the end": b"one two\nthree",
    "empty lines by the ten thousand": b"one\n" + b"\n" * 50_000 + b" \t\n" * 50_000 + b"two\n",
    "a long line of words": b"word word12 " * 60_000 + b"\nsecond line\n\nnext\n",
    "a long line of spaces": b"one\n" + b" " * 200_000 + b"\ntwo\n",
    "a document of many lines": b"some words of it\n" * 30_000,
    "a line cut at its last space": b"a " * (text_files.MAX_LINE // 2) + b"\nsecond line\n\nnext\n",
    "a word as long as a piece": b"x" * text_files.MAX_LINE + b"\nsecond line\n\nnext\n",
    "a word longer than a piece": b"one\n" + b"y" * (2 * text_files.MAX_LINE + 1) + b" z\n",
    "a word that ends with its piece": b"a " + b"x" * (text_files.MAX_LINE - 2) + b" b\n",
}
FRAGMENTS = ["one", "two words", "\n\n", "\r\n", "</s>", "<s>", "e\u0301", "日本"]
FRAGMENTS += " \t\n\r\0é\ufeff\u200b\u2028\x85\u00a0\x1c🙂"
FRAGMENTS += [b"\xff", b"\xe2\x82", b"\xf0\x9f", b"\xed\xa0\x80", b"\xc3"]


def at_random(seed):
    r = random.Random(seed)
    chosen = [r.choice(FRAGMENTS) for _ in range(r.randint(1, 80))]
    return b"start " + b"".join(x if isinstance(x, bytes) else x.encode() for x in chosen) + b"\nend\n"


def counted(raw):
    """Bytes -> documents, number of bytes that are not UTF-8: the rules of data.py, the slow way."""
    raw, text, replaced = raw.removeprefix(b"\xef\xbb\xbf"), "", 0
    while raw:
        try:
            text, raw = text + raw.decode(), b""
        except UnicodeDecodeError as error:
            wrong = error.end - error.start
            text, raw = text + raw[: error.start].decode() + "\ufffd" * wrong, raw[error.end :]
            replaced += wrong
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    groups = groupby(lines, lambda line: bool(line.strip()))
    return ["\n".join(group) for full, group in groups if full], replaced


def test_text_torture_is_counted_and_comes_back(prepare, figure, times):
    """Documents, words and replaced bytes are those of the rules, and decoding gives back every letter."""
    texts = TORTURE | {f"random, {seed}": at_random(seed) for seed in range(times(10, 300))}
    failed = []
    for name, raw in texts.items():
        meta, tokenizer, train, _ = prepare(raw)
        expected, replaced = counted(raw)
        words = sum(len(document.split()) for document in expected)
        unchanged = documents(train, tokenizer) == [spaced(document) for document in expected]
        counts = {"words": words, "documents": len(expected), "tokens": len(train)}
        if not unchanged or meta["train"] != counts or meta["invalid_bytes_replaced"] != replaced:
            failed.append(name)
    assert not failed
    figure("text torture", len(texts) - len(failed), len(texts), "counts and every letter as they should be")


# The peak of the process alone; getrusage would count the one that started it.
MEASURED = "import sys, data; data.main(sys.argv[1:]); print(*open('/proc/self/status', encoding='utf-8'))"


def test_a_line_of_100_MB_fits_into_memory(prepare, figure, times):
    """A line without a space, of noise or of letters, or one of words, takes below 1.5 GB; a sample has 1 MB."""
    if not Path("/proc/self/status").exists():
        pytest.skip("no /proc to measure by")
    size, peaks = times(1, 100) * 10**6, []
    Path("data").mkdir()
    noise = base64.b64encode(random.Random(0).randbytes(size * 3 // 4))
    letters = noise.translate(bytes.maketrans(b"+/=0123456789", b"abcdefghijklm"))
    words = " ".join(f"word{i}" for i in range(5000)).encode() + b" "
    lines = {"noise": noise, "letters": letters, "words": words * (size // len(words))}
    for name in times(["letters"], lines):
        Path("long.txt").write_bytes(lines[name] + b"\n")
        command = [sys.executable, "-c", MEASURED, "text", name, "long.txt", "--val=val.txt"]
        command.append("--vocab_size=1000")
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        ended = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr
        peaks.append(int(re.search(r"VmHWM:\s*(\d+) kB", ended.stdout)[1]) / 1000)
        meta = json.loads(Path("data", name, "meta.json").read_text())
        assert meta["train"]["words"] == len(lines[name].split()) and meta["train"]["documents"] == 1
    small = sum(peak < 1500 for peak in peaks)
    figure("a line of 100 MB", small, len(peaks), "memory below 1.5 GB", peak_megabytes=round(max(peaks)))


def test_gzip_is_known_by_its_first_bytes(prepare):
    Path("a.txt").write_bytes(gzip.compress(b"one two three\n"))
    assert prepare(["a.txt"])[0]["train"]["words"] == 3


def saved(write, *args):
    """The bytes that write(file, ...) writes."""
    with io.BytesIO() as file:
        write(file, *args)
        return file.getvalue()


BINARY = {  # name -> what the refusal calls it, the bytes
    "zip": ("zip", saved(lambda file: np.savez(file, a=np.arange(9)))),
    "tar": ("tar", saved(lambda file: tarfile.open(fileobj=file, mode="w").add(__file__))),
    "old tar": ("binary data", b"a.txt".ljust(500, b"\0") + b" some words\n"),
    "xz": ("xz", lzma.compress(b"some words\n")),
    "bzip2": ("bzip2", bz2.compress(b"some words\n")),
    "Parquet": ("Parquet", b"PAR1\x15\4\x15 and so on\n"),
    "Arrow file": ("Arrow file", b"ARROW1\0\0 and so on\n"),
    "Arrow stream": ("Arrow stream", b"\xff\xff\xff\xff\x10\1\0\0 and so on\n"),
    "NumPy": ("NumPy", saved(np.save, np.arange(9))),
    "torch": ("zip", saved(lambda file: torch.save({"a": torch.zeros(9)}, file))),
    "safetensors": ("safetensors", b"\x58\0\0\0\0\0\0\0" + b'{"embed.weight": {"dtype": "F32"}}'),
    "database": ("SQLite", b"SQLite format 3\0\x10\0"),
    "UTF-16": ("UTF-16", "some words\n".encode("utf-16")),
    "UTF-16, big-endian": ("UTF-16", "\ufeffsome words\n".encode("utf-16-be")),
    "UTF-16 without a mark": ("binary data or another encoding", "some words\n".encode("utf-16-le")),
    "Russian in another encoding": ("another encoding", "Мама мыла раму.\n".encode("cp1251")),
    "Chinese in another encoding": ("another encoding", "天地玄黄，宇宙洪荒。\n".encode("gbk")),
    "noise": ("binary data", random.Random(0).randbytes(3000)),
    "tokens": ("binary data", np.arange(300, 900, dtype="<u2").tobytes()),
    "packed NumPy": ("NumPy", gzip.compress(saved(np.save, np.arange(9)))),
}
for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
    BINARY[f"pickle {protocol}"] = ("pickle", pickle.dumps(["some", "words"], protocol))


@pytest.mark.parametrize("name", BINARY)
def test_a_file_of_another_format_is_refused_by_what_it_is(prepare, refusal, name):
    kind, raw = BINARY[name]
    said = refusal(prepare, raw)
    assert re.fullmatch(rf"a\.txt: cannot be read \(this is .*{kind}.*\)\n", said)
    assert not Path("data/mine").exists()


@pytest.mark.parametrize("kind", ["folder", "pipe", "device", "unreadable"])
def test_what_is_no_text_file_is_one_clear_line(prepare, refusal, kind):
    path = Path("a.txt")
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        pytest.importorskip("posix").mkfifo(path)
    elif kind == "device":
        path.symlink_to(os.devnull)
    else:
        path.write_text("some words\n")
        path.chmod(0)
        if os.access(path, os.R_OK):
            pytest.skip("this user may read everything")
    said = refusal(prepare, ["a.txt"])
    known = {"folder": "a folder", "pipe": "a pipe", "device": "a pipe or device", "unreadable": "cannot be"}
    assert said.startswith(f"a.txt: {known[kind]}") and said.count("\n") == 1
    assert not Path("data/mine").exists()


def test_a_validation_file_is_not_trained_on_by_whatever_name(prepare):
    """Given by another path or a link, a file is the same file."""
    Path("a.txt").write_text("one two\n"), Path("link.txt").symlink_to("a.txt")
    meta, *_ = prepare(["a.txt", "link.txt", str(Path("val.txt").resolve())])
    assert meta["train"]["words"] == 2 and set(meta["sources"]) == {"a.txt", "val.txt"}


def test_a_file_may_have_the_name_of_a_pattern(prepare):
    Path("[1].txt").write_text("one two\n"), Path("1.txt").write_text("other\n")
    assert set(prepare(["[1].txt"])[0]["sources"]) == {"[1].txt", "val.txt"}


def test_a_corpus_is_kept_when_its_successor_cannot_be_made(prepare, refusal):
    meta, *_ = prepare("one two\n\nthree\n")
    before = {path.name: path.read_bytes() for path in Path("data/mine").iterdir()}
    Path("cut.gz").write_bytes(gzip.compress(b"some words\n" * 1000)[:-20])
    refusal(prepare, ["a.txt", "cut.gz"])
    assert {path.name: path.read_bytes() for path in Path("data/mine").iterdir()} == before


SENTENCES = ["\ud800 alone", "a\0b", "</s>", "<s> <pad>", "", " ", "\n", "\\", "\ufeff", "ﷺ", "x" * 3000]
SENTENCES += ["e\u0301\u200b🙂👩‍👩‍👧"]


@pytest.mark.parametrize("protocol", ["2024", "2025"])
def test_torture_of_minimal_pairs(workplace, figure, capsys, protocol):
    """Each odd sentence has a score, whatever file brings it: with a byte order mark, CRLF, no last line break."""
    pairs = [{"sentence_good": x, "sentence_bad": "The cat sees."} for x in SENTENCES]
    text = "\r\n".join(json.dumps(pair) for pair in pairs)
    Path("odd.jsonl").write_bytes(b"\xef\xbb\xbf" + text.encode())
    evaluate.main(evaluate.Settings(run="out/tiny", tasks="odd.jsonl", protocol=protocol, device="cpu"))
    scores = [json.loads(line) for line in Path("out/tiny/pairs_odd.jsonl").read_text().splitlines()]
    good = sum(-1e6 < score["good"] <= 0 for score in scores)
    figure(f"torture of minimal pairs, protocol {protocol}", good, len(SENTENCES), "a finite score")


# ----------------------------------------------------------------------------------------------------
# Blocks


@pytest.fixture
def tokens(workplace):
    return np.fromfile("data/tiny/train.bin", dtype="<u2").astype(np.int64)


def test_an_epoch_is_every_block_once_and_every_token_a_target_once(tokens):
    blocks = data.Blocks("data/tiny/train.bin", context=16)
    for epoch in range(3):
        order = [blocks.block_at(epoch * blocks.n + place) for place in range(blocks.n)]
        assert sorted(order) == list(range(blocks.n)) != order
    inputs, targets = blocks.read(range(blocks.n))
    whole = torch.from_numpy(tokens[: blocks.n * 16 + 1])
    assert torch.equal(inputs.flatten(), whole[:-1]) and torch.equal(targets.flatten(), whole[1:])


def test_the_order_depends_on_nothing_but_seed_and_epoch(workplace):
    """A batch may span two epochs; what was read before makes no difference."""
    one, other = (data.Blocks("data/tiny/train.bin", context=16, seed=1) for _ in range(2))
    whole = torch.cat([one.rows(start, 7)[0] for start in range(0, 3 * one.n, 7)])
    for start in (2 * one.n - 3, 5, one.n - 1):
        assert torch.equal(other.rows(start, 7)[0], whole[start : start + 7])
    changed = data.Blocks("data/tiny/train.bin", context=16, seed=2)
    assert not torch.equal(changed.rows(0, one.n)[0], whole[: one.n])
    assert not torch.equal(whole[: one.n], whole[one.n : 2 * one.n])


@pytest.mark.parametrize("context, count", [(16, 1), (16, 7), (31, 1000)])
def test_validation_reads_every_token_in_order(tokens, context, count):
    batches = list(data.Blocks("data/tiny/train.bin", context).in_order(count))
    assert torch.equal(torch.cat([targets.flatten() for _, targets in batches]), torch.from_numpy(tokens[1:]))
    assert torch.equal(torch.cat([inputs.flatten() for inputs, _ in batches]), torch.from_numpy(tokens[:-1]))


@pytest.mark.parametrize(
    "name, documents, words",
    [("childes", 12, 45_224), ("gutenberg", 32, 50_735), ("simple_wiki", 188, 22_036)],
)
def test_real_text_has_the_counts_of_its_readme(prepare, real_data, name, documents, words):
    meta, *_ = prepare([str(real_data(f"corpus/{name}.dev.txt.gz"))])
    assert meta["train"]["documents"] == documents and meta["train"]["words"] == words


# ----------------------------------------------------------------------------------------------------
# Where data is, and who makes it


def test_nanornn_data_is_looked_into_first_and_never_written_to(workplace, monkeypatch, tmp_path):
    other = tmp_path / "other"
    (workplace / "data").rename(other)
    monkeypatch.setenv("NANORNN_DATA", str(other))
    before = sorted(other.rglob("*"))
    assert data.find("tiny") == other / "tiny"
    data.prepare("tiny", ["text.txt"], data.Settings(vocab_size=300))
    assert sorted(other.rglob("*")) == before and Path("data/tiny/meta.json").exists()


@pytest.fixture
def places(tmp_path, monkeypatch):
    """Three empty folders: the repository, which is not the current one, and two to work in."""
    monkeypatch.delenv("NANORNN_DATA", raising=False)
    folders = [tmp_path / name for name in ("repository", "one", "two")]
    for folder in folders:
        folder.mkdir()
    monkeypatch.setattr(data, "ROOT", folders[0])
    return folders


SMALL = ["--length=4", "--tokens=1", "--sequences=50"]


def test_what_was_made_in_one_folder_is_found_from_any_other(places, monkeypatch, capsys):
    """It is in the repository's data/, unless the working directory has a data/ of its own, which comes first."""
    repository, one, two = places
    monkeypatch.chdir(one)
    data.main(["copying", "small", *SMALL])
    assert f"{repository}/data/small: " in capsys.readouterr().out and not list(one.iterdir())
    monkeypatch.chdir(two)
    assert data.find("small") == repository / "data/small"
    Path("data").mkdir()
    data.main(["copying", "own", *SMALL])
    assert data.find("own") == Path("data/own") and data.find("small") == repository / "data/small"
    data.main(["copying", "small", *SMALL])
    assert data.find("small") == Path("data/small")
    Path("data").rename("other")
    monkeypatch.setattr(os, "access", lambda path, mode: path != repository)
    assert data.data_folder() == Path("data")  # of a read-only repository, as in a computer room
    monkeypatch.chdir(repository)
    assert data.find("small") == Path("data/small") and not data.find("own", needed=False)


def test_a_tilde_is_the_home_folder(prepare, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    Path("home/texts").mkdir(parents=True)
    Path("home/texts/a.txt").write_text("one two\n"), Path("home/v.txt").write_text("three\n")
    data.main(["text", "mine", "~/texts/*.txt", "--val=~/v.txt", "--vocab_size=300"])
    counts = json.loads(Path("data/mine/meta.json").read_text())
    assert counts["train"]["words"] == 2 and counts["val"]["words"] == 1
    monkeypatch.setenv("NANORNN_DATA", "~/texts")
    assert data.look_for("a.txt") == tmp_path / "home/texts/a.txt"


def test_the_command_that_is_printed_trains_on_the_corpus(workplace, capsys):
    data.main(["copying", "letters", *SMALL])
    assert (
        "--corpus=letters --run=letters --vocab_size=16 --eval_pairs= --context=5" in capsys.readouterr().out
    )
    data.main(["text", "mine", "text.txt", "--vocab_size=300"])
    python, script, *flags = capsys.readouterr().out.splitlines()[-1].removeprefix("train on it: ").split()
    assert python == "python" and Path(script).name == "train.py"
    small = ["--n_layer=1", "--d_model=16", "--d_mlp=16", "--max_steps=1", "--batch_size=4", "--device=cpu"]
    s = configure(train.Settings(), flags + small, default="config/toy.py")
    train.main(s)
    assert (s.corpus, s.vocab_size) == ("mine", 300) and Path("out/mine/checkpoint.pt").exists()


def test_a_corpus_that_another_one_hides_is_not_trained_on_in_silence(workplace, monkeypatch, refusal):
    data.main(["copying", "letters", *SMALL])
    Path("data/letters").rename(workplace / "letters")
    monkeypatch.setenv("NANORNN_DATA", str(workplace))
    said = refusal(data.main, ["copying", "letters", *SMALL])
    assert f"data/letters is made, but training would read {workplace / 'letters'}" in said


def ended(processes):
    """The exit codes of processes, once all have ended."""
    for process in processes:
        process.join(timeout=120)
    return [process.exitcode for process in processes]


@pytest.fixture
def slow(workplace, monkeypatch):
    """Making a corpus, or toyland's tests, adds a line to the file `made`, and goes on once two others wait."""

    def make(name="copying"):
        with open("made", "a") as file:
            file.write(f"{name}\n")
        deadline = time.monotonic() + 60  # on a busy machine too
        while said().count("waiting for another process that makes it") < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        return copying.make(name, copying.Settings(length=4, tokens=1, sequences=50))

    def write(folder):
        make("toyland")
        (folder / "train.txt").write_text("all is here\n")

    monkeypatch.setattr(data, "recipe", lambda name: SimpleNamespace(make=make))
    monkeypatch.setattr(toyland, "write", write)
    return make


def said():
    return "".join(path.read_text() for path in Path().glob("said *"))


@needs_fork
@pytest.mark.parametrize("use", [lambda: data.read_meta(data.find("copying")), benchmarks.find_toyland])
def test_one_process_makes_what_several_need_at_once(slow, use):
    """The others wait, then use it, and no lock is left."""
    assert ended([fork(use, f"said {i}") for i in range(3)]) == [0, 0, 0]
    assert len(Path("made").read_text().splitlines()) == 1
    assert said().count("waiting for another process that makes it") == 2
    assert not list(Path("data").glob("*.lock"))


@needs_fork
def test_two_commands_on_one_corpus_take_turns(slow, monkeypatch):
    """data.py twice, and train.py that needs what the first has not finished: a whole corpus in the end."""
    monkeypatch.setattr(data, "prepare", lambda name, *args: slow(name))
    command = partial(data.main, ["text", "mine", "text.txt"])
    processes = [fork(command, "said 0")]
    assert wait_until(Path("made").exists, processes[0])
    processes += [fork(command, "said 1"), fork(lambda: data.find("mine"), "said 2")]
    assert ended(processes) == [0, 0, 0] and Path("made").read_text() == "mine\nmine\n"
    data.read_meta(Path("data/mine"))


@needs_fork
def test_the_lock_of_a_killed_process_does_not_block(slow, monkeypatch):
    first = fork(lambda: data.find("copying"))
    assert wait_until(Path("made").exists, first)
    first.kill()
    first.join()
    assert Path("data/copying.lock").exists()
    monkeypatch.setattr(data, "recipe", lambda name: SimpleNamespace(make=lambda name: Path("data/made")))
    assert data.find("copying") == Path("data/made") and not Path("data/copying.lock").exists()


def test_where_files_have_no_locks_nobody_waits(workplace, monkeypatch):
    def no_locks(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(pytest.importorskip("fcntl"), "flock", no_locks)
    data.main(["copying", *SMALL])
    assert data.find("copying") == Path("data/copying") and not Path("data/copying.lock").exists()


def test_a_corpus_made_again_does_not_change_what_is_being_read(workplace):
    blocks = data.Blocks("data/tiny/train.bin", context=16)
    before = blocks.rows(0, 9)[0].clone()
    Path("text.txt").write_text("other words, many of them\n" * 900)
    data.prepare("tiny", ["text.txt"], data.Settings(vocab_size=300))
    assert torch.equal(blocks.rows(0, 9)[0], before)
