"""
Corpora, from text files to the token files that training reads.

    python data.py toy                                 a small made-up English (toyland.py) for the default job
    python data.py text NAME FILES... [--val=FILES]    your own text, plain or .gz, of any size
    python data.py shakespeare [FILE]                  tiny Shakespeare in single characters, fetched unless given
    python data.py copying [NAME] [--length=64 ...]    selective copying: tokens to find in noise and say in order
    python data.py babylm-10m                          BabyLM's corpus of 10 million words, 112 MB in all
    python data.py babylm-100m                         the same of 100 million words, 607 MB
    python data.py pile-10m [FILES...] [--seed=0]      10 million words of the Pile in the shares of BabyHGRN's
    python data.py pile-100m [FILES...] [--seed=0]     the same of 100 million words; see pile.py

and what models are tested on, for evaluate.py; an archive fetched by hand can be named:

    python data.py blimp [FILE]                        BLiMP; and as the BabyLM challenge filters it
    python data.py supplement                          BLiMP-Supplement
    python data.py ewok                                EWoK's fast set, and how to come by the rest
    python data.py ewok_vocabulary [FILE]              the words by which BabyLM chooses from it, for ewok_filtered
    python data.py bear [FILE]                         BEAR and BEAR-big
    python data.py glue [FILE]                         the tasks of GLUE and SuperGLUE in BabyLM's format

A prepared corpus is a folder data/NAME: train.bin and val.bin (token ids, 16-bit little-endian), tokenizer.json
(byte-level BPE) and meta.json (counts, hashes of the sources). In the text an empty line ends a document; each
becomes <s> line, newline, line, ... </s>. Where something else than the next token is to be said, it stands in
train_targets.bin and val_targets.bin; see Blocks. Prepared corpora are also looked for in the folder NANORNN_DATA.
"""

from start import begin

begin(__name__)  # before torch is loaded

import glob
import gzip
import hashlib
import io
import json
import os
import re
import zlib
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

import download
import pile
import toyland
from checkpoint import not_written, replacing
from config import at_least, configure, fail, one_of, progress, reason, run_script

PAD, BOS, EOS = "<pad>", "<s>", "</s>"  # ids 0, 1, 2
NO_TARGET = 65_535  # in a file of targets: nothing is to be said here
LONGEST = 1 << 16  # characters; a longer line is encoded in parts
ENDLESS = re.compile(r"(\S{1000})\S+")  # no word: little to learn from, and much to remember
BATCH = 1 << 20  # characters encoded at once


@dataclass
class Settings:
    vocab_size: int = 16_000  # entries of the tokenizer, bytes and <pad> <s> </s> included
    val: str = ""  # files to validate on, names or patterns with commas; none: a share of the documents
    val_share: float = 0.01  # that share
    longest: int = 0  # lines after which a document ends in any case; 0: only an empty line ends it
    seed: int = 0  # of the Pile's sample, of selective copying
    length: int = 64  # of copying's noise, with the tokens in it
    tokens: int = 8  # to copy
    sequences: int = 100_000  # of these, to train on

    def check(self):
        at_least(260, self, "vocab_size")
        at_least(0, self, "val_share", "longest", "seed")
        at_least(1, self, "length", "tokens", "sequences")
        if self.tokens > self.length:
            fail(f"tokens = {self.tokens}: no more than length = {self.length} can lie in the noise")
        if self.vocab_size > 65_536:
            fail(f"vocab_size = {self.vocab_size}: token files hold 16-bit numbers, so at most 65536")
        if self.val_share >= 1 or not (self.val or self.val_share):
            fail(f"val_share = {self.val_share}: the share of documents to validate on, above 0 and below 1")


# ----------------------------------------------------------------------------------------------------
# Using a corpus


def find(name, needed=True):
    """A corpus's folder. Toyland's is made on the spot; another is fetched or must be there, if it is needed."""
    for folder in data_folders():
        if (folder / name / "meta.json").exists():
            return folder / name
    if name == "toy" or (needed and name in RECIPES):
        return RECIPES[name]()
    if needed:
        fail(f"corpus = {name!r}: there is no data/{name}; make it with: python data.py text {name} FILES...")


def read_meta(folder):
    """A corpus's meta.json, if its token files are as long as that says and hold only the tokenizer's tokens."""
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        meta["sources"].values(), meta["train"]["words"], meta["val"]["words"]  # are read elsewhere
        Tokenizer.from_file(str(folder / "tokenizer.json"))
        for split in ("train", "val"):
            tokens = np.memmap(folder / f"{split}.bin", dtype="<u2", mode="r")
            if len(tokens) != meta[split]["tokens"] or tokens.max() >= meta["vocab_size"]:
                raise ValueError(f"{split}.bin is not the text that was counted")
            if len(targets_of(folder / f"{split}.bin", tokens)) != len(tokens):
                raise ValueError(f"{split}_targets.bin is not as long as {split}.bin")
    except Exception as error:  # a broken tokenizer raises no other
        fail(f"{folder}: this corpus is damaged ({reason(error)}); prepare it again")
    return meta


BENCHMARKS = {  # what evaluate.py scores -> where it lies in a data folder
    "toyland": "toyland/blimp",
    "toyland_ewok": "toyland/ewok",
    "toyland_bear": "toyland/bear",
    "blimp": "blimp/blimp.zip",
    "blimp_filtered": "babylm_eval/blimp_filtered.zip",
    "blimp_fast": "babylm_eval/blimp_fast.zip",
    "supplement": "babylm_eval/supplement_filtered",
    "supplement_fast": "babylm_eval/supplement_fast",
    "ewok": "ewok/ewok-core-1.0.zip",
    "ewok_filtered": "ewok/ewok-core-1.0.zip",  # the items whose words BabyLM's list has
    "ewok_fast": "ewok/ewok_fast.zip",
    "bear": "bear/BEAR.zip",
    "bear_big": "bear/BEAR-big.zip",
}


def check_name(corpus):
    """Refuse what cannot name a folder under data/."""
    if not re.fullmatch(r"[\w-]+", corpus):
        fail(f"corpus = {corpus!r} cannot name a folder under data/: use letters, digits, - and _")


def start_of(tokenizer):
    """The token that a text begins after: <s>, or a line break among single characters, which have no <s>."""
    ids = tokenizer.get_vocab()
    start = ids.get(BOS, ids.get("\n"))
    return (
        fail(f"this tokenizer has no {BOS}, the token that a text begins after") if start is None else start
    )


def find_benchmark(task):
    """The file or folder of a benchmark, named or given itself. Toyland's are made on the spot."""
    if task not in BENCHMARKS and Path(task).exists():
        return Path(task)
    toy = task.startswith("toyland")
    for folder in data_folders():
        if (folder / BENCHMARKS[task]).exists() and (not toy or (folder / "toyland/train.txt").exists()):
            return folder / BENCHMARKS[task]
    if toy:
        toyland.write("data/toyland")
        return Path("data") / BENCHMARKS[task]
    name = re.match("blimp|supplement|ewok|bear", task)[0]
    by_hand = f"put it at data/{BENCHMARKS[task]}, or set NANORNN_DATA to the folder that holds it"
    fail(f"{task}: {by_hand}, or fetch it: python data.py {name}")


def check_tasks(name, tasks):
    """Refuse names, with commas between, that are neither benchmarks nor files."""
    for task in tasks.split(",") if tasks else []:
        if not task or not os.path.exists(task):
            one_of(name, task, [*BENCHMARKS, "a file that is there"])


def data_folders():
    """Where data is looked for: NANORNN_DATA, which is only read, then data/."""
    extra = os.environ.get("NANORNN_DATA")
    return [Path(extra), Path("data")] if extra else [Path("data")]


def look_for(place):
    """The path of a file or folder in the first data folder that has it; None if none has."""
    return next((folder / place for folder in data_folders() if (folder / place).exists()), None)


class Blocks:
    """
    A token file cut every `context` tokens into blocks of `context` + 1, so that every token is a target once: the
    one after it. Where another is to be said, or none, it stands at its place in a second file, as long.
    Training reads an endless row of permutations of them, each seeded by (seed, epoch): what a step reads
    depends on nothing but its number.
    """

    def __init__(self, path, context, seed=0):
        if os.path.getsize(path) < 4:
            fail(f"{path}: no text in it; prepare the corpus again, with more text or --val=FILES")
        self.tokens = np.memmap(path, dtype="<u2", mode="r")
        self.targets = targets_of(path, self.tokens)
        self.context, self.seed = context, seed
        self.n = (len(self.tokens) - 1) // context
        self.epoch, self.order = None, None

    def rows(self, start, count):
        """`count` blocks of the endless row, from number `start` on -> tokens, targets, each (count, context)."""
        return self.read([self.at(position) for position in range(start, start + count)])

    def at(self, position):
        """Which block stands at a position of the endless row."""
        epoch, place = divmod(position, self.n)
        if epoch != self.epoch:
            self.epoch, self.order = epoch, np.random.default_rng([self.seed, epoch]).permutation(self.n)
        return int(self.order[place])

    def read(self, blocks):
        """Blocks by number, all of one length -> tokens, targets (B, context); -100 where there is no target."""
        tokens, targets = self.cut(self.tokens[:-1], blocks), self.cut(self.targets[1:], blocks)
        return tokens, targets if self.targets is self.tokens else targets.where(targets != NO_TARGET, -100)

    def cut(self, ids, blocks):
        """These blocks of a row of ids, (B, context)."""
        starts = [block * self.context for block in blocks]
        return torch.from_numpy(np.stack([ids[x : x + self.context] for x in starts]).astype(np.int64))

    def in_order(self, count):
        """Every token once: batches of `count` blocks in order, then the shorter rest of the text."""
        for start in range(0, self.n, count):
            yield self.read(range(start, min(start + count, self.n)))
        if len(self.tokens) - 1 > self.n * self.context:
            yield self.read([self.n])


def targets_of(path, tokens):
    """What is to be said in place of each token of a file: train_targets.bin beside it; none: the token itself."""
    path = Path(path).with_stem(f"{Path(path).stem}_targets")
    return np.memmap(path, dtype="<u2", mode="r") if path.exists() else tokens


# ----------------------------------------------------------------------------------------------------
# Making a corpus


def prepare(name, files, s):
    """Text files -> data/NAME, its folder. Memory stays flat whatever their size."""
    folder = Path("data") / name
    files, val_files = expand(files), expand(s.val.split(",")) if s.val else {}
    files = [path for place, path in files.items() if place not in val_files]
    val_files = list(val_files.values())
    if not files:
        fail(f"val = {s.val!r}: these are all the files there are; leave some to train on")
    tokenizer = train_tokenizer(Text(files, "learning the tokenizer", s.longest), s.vocab_size)
    with replacing(folder / "train.bin", "w+b") as train, replacing(folder / "val.bin", "wb") as val:
        train, val = Split(train), Split(val)
        held_out = 0 if val_files else s.val_share
        text = Text(files, "encoding", s.longest)
        val_text = Text(val_files, "encoding for validation", s.longest)
        encode(text, tokenizer, lambda document: val if chosen(document, held_out) else train)
        encode(val_text, tokenizer, lambda document: val)
        if train.words and held_out and not val.documents:
            move_the_end(train, val, tokenizer, held_out)
        if not train.words:
            fail(f"{folder}: no text to train on; are the files empty?")
        if not val.words:
            fail(f"{folder}: too little text to keep some for validation; name more with --val=FILES")
        begin_anew(folder)
    replaced = text.replaced + val_text.replaced
    describe(folder, tokenizer, train, val, {str(path): sha256(path) for path in files + val_files}, replaced)
    if replaced:
        print(f"{replaced:,} bytes were not UTF-8 and became U+FFFD")
    return folder


def begin_anew(folder):
    """Remove meta.json, written last: a folder without it is not finished. And the targets of what was there."""
    for name in ("meta.json", "train_targets.bin", "val_targets.bin"):
        (folder / name).unlink(missing_ok=True)


def describe(folder, tokenizer, train, val, sources, replaced=0, **more):
    """Finish a corpus: write tokenizer.json, then meta.json, with the SHA-256 of each source."""
    with replacing(folder / "tokenizer.json") as file:
        file.write(tokenizer.to_str(pretty=True))
    meta = {"vocab_size": tokenizer.get_vocab_size(), "train": train.counts(), "val": val.counts()}
    meta |= {"invalid_bytes_replaced": replaced, "sources": sources} | more
    with replacing(folder / "meta.json") as file:
        file.write(json.dumps(meta, indent=1) + "\n")
    print(f"{folder}: {train.words:,} words ({train.tokens:,} tokens) to train on, {val.words:,} to validate")


def expand(patterns):
    """["a.txt", "dev/*.gz"] -> {the place of a file: its name}, each once, in order; all must be there."""
    files = {}
    for pattern in patterns:
        found = [] if os.path.isfile(pattern) else sorted(glob.glob(pattern))  # "[1].txt" may be a name
        for path in found or [pattern]:
            if not os.path.isfile(path):
                fail(f"{path or repr(path)}: there is no such text file")
            files.setdefault(os.path.realpath(path), Path(path))
    return files


class Text:
    """
    The text of files, plain or .gz, in pieces (text, first, last): a line with its line break, or a part of a very
    long one, and whether it begins and ends a document. Bytes that are not UTF-8 become U+FFFD; `replaced` counts.
    """

    def __init__(self, files, purpose, longest=0):
        self.files, self.purpose, self.longest, self.replaced = files, purpose, longest, 0

    def __iter__(self):
        self.replaced, done = 0, 0
        total = sum(path.stat().st_size for path in self.files)
        with progress(total=total, desc=self.purpose, unit="B") as bar:
            for path in self.files:
                try:
                    with open(path, "rb") as raw:
                        packed = path.suffix == ".gz" or raw.peek(2)[:2] == b"\x1f\x8b"
                        file = gzip.open(raw) if packed else raw
                        begin = file.peek(1 << 10)[: 1 << 10]
                        if begin[:2] in (b"\xff\xfe", b"\xfe\xff") or begin.count(0) > len(begin) // 4:
                            raise UnicodeError("this is UTF-16; save it as UTF-8")
                        if begin.startswith((b"PK\3\4", b"%PDF", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"BZh")):
                            raise UnicodeError(
                                "an archive or document, not text; unpack it, or save it as text"
                            )
                        text = io.TextIOWrapper(file, "utf-8-sig", errors="surrogateescape")
                        for piece in documents((self.clean(line) for line in lines(text)), self.longest):
                            bar.update(done + raw.tell() - bar.n)
                            yield piece
                except (OSError, EOFError, zlib.error, UnicodeError) as error:
                    bar.close()
                    fail(f"{path}: cannot be read ({reason(error)})")
                done += path.stat().st_size

    def clean(self, piece):
        if not piece.isascii():
            piece, replaced = re.subn("[\ud800-\udfff]", "\ufffd", piece)
            self.replaced += replaced
        return piece


def lines(file):
    """The lines of an open file with their line breaks; one above LONGEST comes in parts, cut before a space."""
    rest = ""
    while part := file.readline(LONGEST):
        part, rest = rest + part, ""
        cut = max(part.rfind(" "), part.rfind("\t"))
        if not part.endswith("\n") and cut > 0:
            part, rest = part[:cut], part[cut:]
        yield part
    if rest:
        yield rest


def documents(lines, longest=0):
    """
    Lines -> (text, first, last). An empty line ends a document and is left out with the line break before it; any
    `longest` lines end one too. Each line begins with a space, as it does where the tokenizer meets it alone.
    """
    text, first, line_begins, count = None, True, True, 0
    for line in chain(lines, [None]):
        empty = line is None or (line_begins and not line.strip())
        ends = empty or (line_begins and count == longest > 0)
        if text is not None:  # held back until it was known whether the document ends after it
            yield text.removesuffix("\n") if ends else text, first, ends
            text, first = None, ends
        if ends:
            count = 0
        if not empty:
            count += line_begins
            text = " " + line if line_begins and line[0] != " " else line
        line_begins = empty or line.endswith(
            "\n"
        )  # of a long line, all that is empty is before its beginning


def train_tokenizer(pieces, vocab_size):
    """Byte-level BPE (Sennrich et al. 2016, arXiv:1508.07909): any bytes can be encoded, none is changed."""
    tokenizer = Tokenizer(models.BPE())
    lines = pre_tokenizers.Split("\n", "merged_with_previous")  # each begins with a space, as in documents()
    words = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([lines, words])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    words = (ENDLESS.sub(r"\1", text) for text, first, last in pieces)
    tokenizer.train_from_iterator(words, trainer)
    bos = (BOS, tokenizer.token_to_id(BOS))
    template = processors.TemplateProcessing(f"{BOS} $A", f"{BOS} $A {BOS} $B", special_tokens=[bos])
    tokenizer.post_processor = template
    return tokenizer


class Split:
    """A token file being written, and its counts."""

    def __init__(self, file):
        self.file, self.words, self.documents, self.tokens = file, 0, 0, 0

    def add(self, ids):
        try:
            self.file.write(np.array(ids, dtype="<u2").tobytes())
        except OSError as error:  # said here, since two files are open
            not_written(Path(self.file.name).with_suffix(""), 2 * self.tokens, error)
        self.tokens += len(ids)

    def counts(self):
        return {"words": self.words, "documents": self.documents, "tokens": self.tokens}


def encode(pieces, tokenizer, split_of):
    """Write <s> text </s> for each document to split_of(its number)."""
    tokenizer = Tokenizer.from_str(tokenizer.to_str())
    tokenizer.encode_special_tokens = True  # a "</s>" in the text is text
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(
        add_prefix_space=False
    )  # documents() has put the space
    bos, eos = tokenizer.token_to_id(BOS), tokenizer.token_to_id(EOS)
    document, before = 0, " "
    for batch in batches(pieces):
        encodings = tokenizer.encode_batch_fast([text for text, _, _ in batch], add_special_tokens=False)
        for (text, first, last), encoding in zip(batch, encodings):
            split = split_of(document)
            split.add([bos] * first + encoding.ids + [eos] * last)
            goes_on = before.strip() and text[:1].strip()  # a word that is longer than a piece
            split.words += len(text.split()) - bool(goes_on)
            before = text[-1:]
            split.documents += last
            document += last


def batches(pieces):
    """Lists of pieces with about BATCH characters in all."""
    batch, size = [], 0
    for piece in pieces:
        batch.append(piece)
        size += len(piece[0])
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def chosen(document, share):
    """Whether a document is among those kept for validation: the same ones on every machine."""
    return zlib.crc32(b"%d" % document) < share * 2**32


def move_the_end(train, val, tokenizer, share):
    """Too few documents to keep any for validation: the last share of the tokens becomes a document of its own."""
    count = int(train.tokens * share) + 1
    train.file.seek(-2 * count, os.SEEK_END)
    end = np.frombuffer(train.file.read(), dtype="<u2").tolist()
    train.file.seek(-2 * count, os.SEEK_END)
    train.file.truncate()
    train.tokens -= count
    train.add([end[-1]])  # </s>
    val.add([tokenizer.token_to_id(BOS), *end])
    val.words, val.documents = len(tokenizer.decode(end).split()), 1
    train.words -= val.words


def sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ----------------------------------------------------------------------------------------------------
# Corpora with a name


def make_toy():
    """Toyland's text, tests and tokens: data/toyland and data/toy."""
    toyland.write("data/toyland")
    return prepare("toy", ["data/toyland/train.txt"], Settings(vocab_size=1024, val="data/toyland/val.txt"))


URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
BYTES, SHA256 = 1_115_394, "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"  # of that file


def make_shakespeare(file=None):
    """
    data/shakespeare: a token per character, 90 % to train on and the end to validate, as nanoGPT cuts it. The 65
    entries are its characters alone, and the text is one stream, so that losses compare with the papers': there is
    no <s>, a text begins as after a line break. A character that Shakespeare does not use is read as a space.
    """
    text = read_shakespeare(file).decode("ascii")
    characters = {character: i for i, character in enumerate(sorted(set(text)))}
    tokenizer = tokenizer_of_characters(characters, " ")
    folder, cut, splits = Path("data/shakespeare"), len(text) * 9 // 10, []
    begin_anew(folder)
    for name, part in ("train.bin", text[:cut]), ("val.bin", text[cut:]):
        with replacing(folder / name, "wb") as file:
            splits.append(Split(file))
            splits[-1].add([characters[character] for character in part])
            splits[-1].words, splits[-1].documents = len(part.split()), 1
    describe(folder, tokenizer, *splits, {"tinyshakespeare.txt": SHA256})
    return folder


def tokenizer_of_characters(characters, unknown):
    """{character: id} -> a tokenizer to which a text is its characters, those it does not know being `unknown`."""
    tokenizer = Tokenizer(models.WordLevel(characters, unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


def read_shakespeare(path=None):
    """The bytes of tiny Shakespeare, to the letter: of a file, plain or .gz, of a data folder, or of the web."""
    names = "tinyshakespeare.txt", "tinyshakespeare.txt.gz"
    found = [folder / name for folder in data_folders() for name in names if (folder / name).is_file()]
    path = Path(path) if path is not None else found[0] if found else Path("data") / names[0]
    by_hand = f"fetch {URL} by hand and put it at data/{names[0]}"
    if not found and path == Path("data") / names[0]:
        download.fetch(URL, path, by_hand, BYTES, SHA256)
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            text = file.read(BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        fail(f"{path}: cannot be read ({reason(error)}); {by_hand}")
    if hashlib.sha256(text).hexdigest() != SHA256:
        fail(f"{path}: not tiny Shakespeare, {BYTES:,} bytes of SHA-256 {SHA256[:12]}...; {by_hand}")
    return text


COPYING = "?abcdefghijklmn."  # how its 16 tokens are written: marker, tokens to copy, noise
MARKER, NOISE = 0, 15
HELD_OUT = 1000  # sequences to validate on


def make_copying(name="copying", s=Settings()):
    """
    data/NAME: selective copying (Gu & Dao 2023, arXiv:2312.00752), sampled as in minRNN's official code:

        reads    . . c . . a . . . c . ? ? ?
        says                           c a c

    Each sequence is s.length of noise with s.tokens letters at places drawn anew, then as many markers, at which
    these are to be said in order. A block of training is a sequence, and nothing is to be said before the markers.
    """
    tokenizer = tokenizer_of_characters({character: i for i, character in enumerate(COPYING)}, COPYING[NOISE])
    folder, splits, sources = Path("data") / name, [], {}
    begin_anew(folder)
    for number, (split, count) in enumerate({"train": s.sequences, "val": HELD_OUT}.items()):
        generator, path = np.random.default_rng([s.seed, number]), folder / f"{split}.bin"
        with replacing(path, "wb") as inputs, replacing(folder / f"{split}_targets.bin", "wb") as targets:
            inputs, targets = Split(inputs), Split(targets)
            targets.add([NO_TARGET])  # a target stands where the next token would
            for start in progress(range(0, count, 1000), desc=split):
                for file, rows in zip((inputs, targets), copying(generator, min(1000, count - start), s)):
                    file.add(rows.ravel())
            inputs.add([NOISE])
        inputs.words, inputs.documents = count * s.tokens, count
        splits.append(inputs)
        sources[path.name] = sha256(path)
    describe(folder, tokenizer, *splits, sources, context=s.length + s.tokens)
    return folder


def copying(generator, count, s):
    """-> inputs and targets of so many sequences, (count, length + tokens)."""
    places = np.sort(generator.random((count, s.length)).argsort(axis=1)[:, : s.tokens], axis=1)
    letters = 1 + (generator.random((count, s.tokens)) * (NOISE - 1)).astype(np.int64)
    inputs = np.full((count, s.length + s.tokens), NOISE)
    targets = np.full_like(inputs, NO_TARGET)
    np.put_along_axis(inputs, places, letters, axis=1)
    inputs[:, s.length :], targets[:, s.length :] = MARKER, letters
    return inputs, targets


DOMAINS = "bnc_spoken childes gutenberg open_subtitles simple_wiki switchboard".split()
BABYLM = {  # folder -> home, megabytes, ending of the files, words of each; the three are BabyLM's of 2026
    "babylm-10m": (
        "BabyLM-community/BabyLM-2026-Strict-Small@c92ab16b4f08858304b0815706065b3354d8fc0a",
        55,
        ".train.txt",
        (762_073, 2_841_101, 2_557_721, 2_282_877, 1_531_437, 24_791),
    ),
    "babylm-100m": (
        "BabyLM-community/BabyLM-2026-Strict@9e57baaaa91ac3c638746be14d1d5fa6c789f4cf",
        550,
        ".train.txt",
        (7_620_671, 28_410_878, 25_576_896, 22_828_747, 15_314_317, 248_491),
    ),
    "babylm-dev": (
        "BabyLM-community/BabyLM-dev@169f42e32d0aaf65ec6b91d55bafad27a3afc729",
        57,
        ".dev",
        (1_252_593, 2_716_591, 2_819_070, 2_077_019, 1_405_366, 148_340),
    ),
}


def make_babylm(name):
    """
    data/babylm-10m or -100m. A line of these files is an utterance, a paragraph or a title; where empty lines end
    documents is left to them, but speech has none for very long. So a document also ends after 20 lines, and <s>,
    which every score starts from, is read some 50,000 times in 10 million words.
    """
    files, val_files = babylm_files(name), babylm_files("babylm-dev")
    return prepare(name, files, Settings(val=",".join(val_files), longest=20))


def babylm_files(name):
    """The text files of data/NAME or of NANORNN_DATA, fetched if they are in neither, with their words counted."""
    home, size, ending, words = BABYLM[name]
    names, repo = [domain + ending for domain in DOMAINS], home.partition("@")[0]
    by_hand = f"fetch {', '.join(names)} of huggingface.co/datasets/{repo} by hand, into data/{name}"
    there = [x / name for x in data_folders() if all((x / name / file).is_file() for file in names)]
    folder = there[0] if there else Path("data") / name
    if there:
        print(f"{folder}: the text is already there")
    else:
        print(f"{folder}: fetching the text from huggingface.co/datasets/{repo}, {size} MB")
        download.hub(home, names, folder, by_hand)
    for file, count in zip(names, words):
        check_words(folder / file, count, by_hand)
    return [str(folder / file) for file in names]


def check_words(path, count, by_hand):
    """Refuse a text that has not so many words, by str.split or by bytes.split: who counted how is not said."""
    found = found_in_bytes = 0
    try:
        bar = progress(total=path.stat().st_size, desc="counting words", unit="B")
        with bar, open(path, "rb") as file:
            for line in file:
                found_in_bytes += len(line.split())
                found += len(line.decode("utf-8", "replace").split())
                bar.update(len(line))
    except OSError as error:
        fail(f"{path}: cannot be read ({reason(error)}); {by_hand}")
    if count not in (found, found_in_bytes):
        fail(f"{path}: {found:,} words in place of {count:,}; delete it and try again, or {by_hand}")


def make_pile(name, *files, seed=0):
    """data/pile-10m or -100m, of a copy of the Pile: the named files, or fetched ones."""
    return prepare(name, [str(pile.sample(name, list(expand(files).values()), seed))], Settings())


RECIPES = {  # corpora that can be made or fetched by name
    "toy": make_toy,
    "shakespeare": make_shakespeare,
    "copying": make_copying,
    "babylm-10m": partial(make_babylm, "babylm-10m"),
    "babylm-100m": partial(make_babylm, "babylm-100m"),
    "pile-10m": partial(make_pile, "pile-10m"),
    "pile-100m": partial(make_pile, "pile-100m"),
}


def main(args):
    words = [arg for arg in args if not arg.startswith("-")]
    flags = {arg for arg in args if arg.startswith("-")}
    s = configure(Settings(), [arg for arg in args if arg in flags])
    match words:
        case ["pile-10m" | "pile-100m" as name, *files] if flags <= {f"--seed={s.seed}"}:
            RECIPES[name](*files, seed=s.seed)
        case ["copying"] | ["copying", _]:
            known = {f"--{setting}" for setting in ("length", "tokens", "sequences", "seed")}
            others = {flag.split("=")[0] for flag in flags} - known
            if others:
                fail(f"copying has no {min(others)}, only --length, --tokens, --sequences and --seed")
            check_name(words[-1])
            make_copying(words[-1], s)
        case [name] | ["shakespeare" as name, _] if name in RECIPES:
            if flags:
                fail(f"{name} is always made the same way: no settings, please")
            RECIPES[name](*words[1:])
        case [name] | ["blimp" | "ewok_vocabulary" | "bear" | "glue" as name, _] if name in download.SETS:
            if flags:
                fail(f"{name} is fetched as it is: no settings, please")
            download.obtain(name, data_folders(), *words[1:])
        case ["text", name, _, *_]:
            check_name(name)
            prepare(name, words[2:], s)
        case _:
            recipes = "toy | shakespeare [FILE] | text NAME FILES..."
            others = " | ".join([*RECIPES, *download.SETS][2:])
            fail(f"what to prepare? python data.py {recipes} | {others} (see --help)")


if __name__ == "__main__":
    run_script(main)
