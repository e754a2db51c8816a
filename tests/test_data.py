"""From text to token files: the format to the letter, every word counted, and no text that breaks it."""

import gzip
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import data
from model import read_tokenizer

BOS, EOS = 1, 2
AWKWARD = {
    "plain": "one two\nthree\n\nfour five six\n",
    "other scripts": "naïve café — “quoted” 日本語\nعربي 🙂👩‍👩‍👧 e\u0301\n",
    "special tokens as text": "a </s> b <s> c<pad>\n<s>\n</s>\n",
    "tabs and indentation": "\tone  two\n    three \n",
    "NUL and other control characters": "a\0b \x1f \x7f \x85 \u2028 \u00a0 c\nd\n",
}
LONG = {
    "with spaces": " ".join(f"word{i % 1000}" for i in range(350_000)),  # 3 MB
    "without any space": "x" * 300_000,
    "of the length where lines are cut": "x" * data.LONGEST,
    "cut at its last space": "a " * (data.LONGEST // 2),
}


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


@pytest.mark.parametrize("name", AWKWARD)
def test_decoding_gives_the_text_back(prepare, name):
    meta, tokenizer, train, _ = prepare(AWKWARD[name])
    assert documents(train, tokenizer) == spaced(AWKWARD[name]).strip("\n").split("\n\n")
    assert meta["train"]["words"] == len(AWKWARD[name].split())
    assert meta["invalid_bytes_replaced"] == 0


@pytest.mark.parametrize("name", LONG)
def test_a_long_line_keeps_its_words_and_its_end(prepare, name):
    text = LONG[name] + "\nsecond line\n\nnext document\n"
    meta, tokenizer, train, _ = prepare(text)
    unchanged = documents(train, tokenizer) == spaced(text).strip("\n").split("\n\n")
    assert unchanged and meta["train"]["words"] == len(text.split())


@pytest.mark.parametrize(
    "raw, replaced",
    [(b"caf\xe9 ok\xff\n", 2), (b"\xed\xa0\x80 a lone surrogate\n", 3), (b"cut short \xf0\x9f\x99\n", 3)],
)
def test_invalid_utf8_is_replaced_and_counted(prepare, raw, replaced):
    meta, tokenizer, train, _ = prepare(raw)
    assert meta["invalid_bytes_replaced"] == replaced
    assert documents(train, tokenizer)[0].count("\ufffd") == replaced


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


def test_files_that_cannot_be_used_are_named_in_one_clear_line(prepare, refusal):
    packed = gzip.compress("some words of text\n".encode() * 1000)
    Path("cut.gz").write_bytes(packed[:-20])
    Path("altered.gz").write_bytes(packed[:30] + bytes(20) + packed[50:])
    Path("not.gz").write_bytes(b"plain text")
    for file in ("cut.gz", "altered.gz", "not.gz", "missing.txt"):
        said = refusal(prepare, [file])
        assert sum(line.startswith(f"{file}: ") for line in said.splitlines()) == 1
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


def test_of_a_single_document_the_end_is_held_out(prepare):
    text = "".join(f"line {i} of it\n" for i in range(300))
    meta, tokenizer, train, val = prepare(text, val="", val_share=0.1)
    (start,), (end,) = documents(train, tokenizer), documents(val, tokenizer)
    assert start + end == spaced(text).strip("\n")
    assert meta["train"]["words"] + meta["val"]["words"] == len(text.split())
    assert 0.09 < len(val) / (len(train) + len(val)) < 0.11


@pytest.fixture
def tokens(workplace):
    return np.fromfile("data/tiny/train.bin", dtype="<u2").astype(np.int64)


def test_an_epoch_is_every_block_once_and_every_token_a_target_once(tokens):
    blocks = data.Blocks("data/tiny/train.bin", context=16)
    for epoch in range(3):
        order = [blocks.at(epoch * blocks.n + place) for place in range(blocks.n)]
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


def test_nanornn_data_is_looked_into_first_and_never_written_to(workplace, monkeypatch, tmp_path):
    other = tmp_path / "other"
    (workplace / "data").rename(other)
    monkeypatch.setenv("NANORNN_DATA", str(other))
    before = sorted(other.rglob("*"))
    assert data.find("tiny") == other / "tiny"
    data.prepare("tiny", ["text.txt"], data.Settings(vocab_size=300))
    assert sorted(other.rglob("*")) == before and Path("data/tiny/meta.json").exists()


@pytest.mark.parametrize(
    "name, documents, words",
    [("childes", 12, 45_224), ("gutenberg", 32, 50_735), ("simple_wiki", 188, 22_036)],
)
def test_real_text_has_the_counts_of_its_readme(prepare, real_data, name, documents, words):
    meta, *_ = prepare([str(real_data(f"corpus/{name}.dev.txt.gz"))])
    assert meta["train"]["documents"] == documents and meta["train"]["words"] == words
