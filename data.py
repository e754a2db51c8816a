"""
Corpora: text -> tokenizer -> token files, and the blocks that training reads.

    python data.py text NAME FILES... [--val=FILES]  your own text, plain or .gz, of any size
    python data.py toy                               toyland, a small made-up English
    python data.py shakespeare [FILE]                tiny Shakespeare in single characters
    python data.py copying [NAME] [--length=64 ...]  selective copying; see data.py copying --help
    python data.py babylm-10m                        BabyLM's 10 million words (112 MB)
    python data.py babylm-100m                       the same with 100 million words (607 MB)
    python data.py pile-10m [FILES...] [--seed=0]    10 million words of the Pile, as for BabyHGRN
    python data.py pile-100m [FILES...] [--seed=0]   the same with 100 million words

and the benchmarks for evaluate.py. FILE is an archive that you have downloaded yourself:

    python data.py blimp [FILE]            BLiMP, and BabyLM's filtered versions of it
    python data.py supplement              BLiMP-Supplement
    python data.py ewok                    EWoK's fast set, and how to get the rest
    python data.py ewok_vocabulary [FILE]  BabyLM's word list, which ewok_filtered needs
    python data.py bear [FILE]             BEAR and BEAR-big
    python data.py glue [FILE]             the GLUE and SuperGLUE tasks in BabyLM's format
    python data.py entity_tracking         which box holds what after some moves
    python data.py comps                   COMPS: properties of concepts, also inherited ones
    python data.py wug                     WUG: made-up adjectives and verbs, inflected
    python data.py reading                 words with the times that people took to read them
    python data.py global_piqa             GlobalPIQA: everyday physical common sense

A prepared corpus is a folder data/NAME: train.bin and val.bin (token ids, 16-bit little-endian),
tokenizer.json (byte-level BPE) and meta.json (counts, SHA-256 of the sources). An empty line in
the text ends a document. Each document becomes <s> line, newline, line, ... </s>.

Data is made in data/ in the working directory, if there is such a folder, and otherwise in the
repository's data/ (unless that is read-only). All scripts look for it in both, but first in the
folder NANORNN_DATA, which is only read.
"""

import hashlib
import json
import os
import platform
import re
import shlex
import sys
import zlib
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from support.console import run_script
from support.files import not_written, remove_unfinished, replacing
from support.processes import from_all, local_rank, rank, together
from support.settings import ROOT, UserError, at_least, configure, nearest, one_of, reason

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

PAD, BOS, EOS = "<pad>", "<s>", "</s>"  # ids 0, 1, 2
NO_TARGET = 65_535  # in a file of targets: nothing is predicted here
BATCH = 1 << 20  # characters encoded at once
LONG_WORD = re.compile(r"(\S{1000,})")  # in text without spaces, such as DNA, or Chinese in one line
LEARNED = 2_000_000  # characters of long words from which the tokenizer learns in full

RECIPES = {  # corpora that can be made or fetched -> the module of corpora/ that does it
    "toy": "toyland",
    "shakespeare": "shakespeare",
    "copying": "copying",
    "babylm-10m": "babylm",
    "babylm-100m": "babylm",
    "pile-10m": "pile",
    "pile-100m": "pile",
}


@dataclass
class Settings:
    vocab_size: int = 16_000  # entries of the tokenizer, including 256 bytes and <pad> <s> </s>
    val: str = ""  # validation files, comma-separated names or patterns; none: a share of the documents
    val_share: float = 0.01  # that share
    tokenizer: str = ""  # a prepared corpus whose tokenizer to use; none: learn one of vocab_size entries
    longest: int = 0  # lines after which a document ends in any case; 0: only an empty line ends it

    def check(self):
        at_least(260, self, "vocab_size")
        at_least(0, self, "val_share", "longest")
        if self.vocab_size > 65_536:
            what = "token files hold 16-bit numbers, so at most 65536"
            raise UserError(f"vocab_size = {self.vocab_size}: {what}")
        if self.val_share >= 1 or not (self.val or self.val_share):
            what = "the share of documents to validate on, above 0 and below 1"
            raise UserError(f"val_share = {self.val_share}: {what}")


# ----------------------------------------------------------------------------------------------------
# Making a corpus


def prepare(name, files, s, val_files=()):
    """
    Make the corpus data/NAME from text files -> its folder. The validation text is `val_files` or, without any,
    what s.val and s.val_share say. Memory use does not grow with the size of the files.
    """
    from corpora.text import Text, find_files

    folder = data_folder() / name
    files, val_files = find_files(files, val_files or (s.val.split(",") if s.val else []))
    tokenizer = tokenizer_of(s.tokenizer, name) if s.tokenizer else None
    share = 0 if val_files else s.val_share
    sources = {str(path): sha256(path) for path in files + val_files}
    if not tokenizer:
        text = Text(files, "learning the tokenizer")
        tokenizer = train_tokenizer(split_documents(text, s.longest), s.vocab_size)
    text, val_text = Text(files, "encoding"), Text(val_files, "encoding for validation")
    with replacing(folder / "train.bin", "w+b") as train, replacing(folder / "val.bin", "wb") as val:
        train, val = Split(train), Split(val)
        documents = split_documents(text, s.longest)
        encode(documents, tokenizer, lambda number: val if is_held_out(number, share) else train)
        encode(split_documents(val_text, s.longest), tokenizer, lambda number: val)
        if train.documents and share and not val.documents:
            hold_out_the_end(train, val, tokenizer, share)
        if not train.documents:
            raise UserError(f"{folder}: no text to train on; are the files empty?")
        if not val.words:
            remedy = "name more with --val=FILES"
            raise UserError(f"{folder}: too little text to keep some for validation; {remedy}")
        mark_unfinished(folder)
    replaced = text.replaced + val_text.replaced
    finish(folder, tokenizer, train, val, sources, replaced)
    if replaced:
        print(f"{replaced:,} bytes were not UTF-8 and became U+FFFD")
    return folder


def mark_unfinished(folder):
    """Remove the meta.json of an earlier corpus, and its targets: a folder without meta.json is unfinished."""
    for name in ("meta.json", "train_targets.bin", "val_targets.bin"):
        (folder / name).unlink(missing_ok=True)


def finish(folder, tokenizer, train, val, sources, replaced=0, **more):
    """Write tokenizer.json, then meta.json with the SHA-256 of each source: now the corpus is complete."""
    remove_unfinished(folder)
    with replacing(folder / "tokenizer.json") as file:
        file.write(tokenizer.to_str(pretty=True))
    meta = {"vocab_size": tokenizer.get_vocab_size(), "train": train.counts(), "val": val.counts()}
    meta |= {"invalid_bytes_replaced": replaced, "sources": sources} | more
    with replacing(folder / "meta.json") as file:
        file.write(json.dumps(meta, indent=1) + "\n")
    print(f"{folder}: {train.words:,} words ({train.tokens:,} tokens) to train on, {val.words:,} to validate")


def sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ----------------------------------------------------------------------------------------------------
# Tokens


class Piece(NamedTuple):
    text: str  # a line with its line break, or a part of a very long line
    first: bool  # begins a document
    last: bool  # ends a document


def split_documents(lines, longest=0):
    """
    Lines, or parts of very long ones -> Pieces. A document ends at an empty line, which is left out with the line
    break before it, at "", the end of a file, and after `longest` lines, unless that is 0. Each line begins with a
    space, so that it has the same tokens as a sentence on its own.
    """
    held, first = None, True  # a piece is held back until we know whether its document ends with it
    line_starts, count = True, 0
    for line in chain(lines, [""]):
        empty = line == "" or (line_starts and not line.strip())
        full = line_starts and longest > 0 and count == longest
        ends = empty or full
        if held is not None:
            yield Piece(held.removesuffix("\n") if ends else held, first, ends)
            held, first = None, ends
        if ends:
            line_starts, count = True, 0
        if empty:
            continue
        if line_starts:
            count += 1
            if not line.startswith(" "):
                line = " " + line
        held, line_starts = line, line.endswith("\n")


def train_tokenizer(pieces, vocab_size):
    """Train byte-level BPE (Sennrich et al. 2016, arXiv:1508.07909): any bytes can be encoded, none is changed."""
    tokenizer = Tokenizer(models.BPE())
    lines = pre_tokenizers.Split("\n", "merged_with_previous")
    words = pre_tokenizers.ByteLevel(add_prefix_space=False)  # split_documents has added it
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([lines, words])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts_to_learn_from(pieces), trainer)
    words = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([lines, words])
    bos = (BOS, tokenizer.token_to_id(BOS))
    template = processors.TemplateProcessing(f"{BOS} $A", f"{BOS} $A {BOS} $B", special_tokens=[bos])
    tokenizer.post_processor = template
    return tokenizer


def tokenizer_of(corpus, name):
    """The tokenizer of a prepared corpus, for data/NAME; UserError if it is one of single characters."""
    if not re.fullmatch(r"[\w-]+", corpus):
        raise UserError(f"tokenizer = {corpus!r}: name a corpus, a folder under data/")
    if corpus == name:
        raise UserError(f"tokenizer = {corpus!r}: is the corpus that is being made; name another one")
    tokenizer = read_tokenizer(find(corpus))
    if BOS not in tokenizer.get_vocab():
        raise UserError(
            f"tokenizer = {corpus!r}: has no {BOS}, with which a document begins; name another corpus"
        )
    return tokenizer


def texts_to_learn_from(pieces):
    """
    Yield the texts of pieces, with long words in parts of 100 characters because the trainer's time and memory
    grow with the length of a word. After LEARNED characters of them, only the first 1,000 of each are used.
    """
    learned = 0
    for text, _, _ in pieces:
        for number, part in enumerate(LONG_WORD.split(text)):  # what is between long words, a long word, ...
            if number % 2 == 0:
                yield part
                continue
            if learned > LEARNED:
                part = part[:1000]
            learned += len(part)
            for start in range(0, len(part), 100):
                yield part[start : start + 100]


def read_tokenizer(folder):
    """The tokenizer of a run or corpus; a "</s>" in a text is text to it."""
    path = Path(folder) / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises no narrower one
        remedy = "the corpus has the same file, data/NAME/tokenizer.json"
        raise UserError(f"{path}: cannot be read ({error}); {remedy}") from error
    tokenizer.encode_special_tokens = True
    return tokenizer


def start_of(tokenizer):
    """The id of the token that every text starts after: <s>, or a line break in a tokenizer of characters."""
    ids = tokenizer.get_vocab()
    start = ids.get(BOS, ids.get("\n"))
    if start is None:
        raise UserError(f"this tokenizer has no {BOS}, the token that a text begins after")
    return start


class Split:
    """A token file being written, and its counts."""

    def __init__(self, file):
        self.file, self.words, self.documents, self.tokens = file, 0, 0, 0

    def add(self, ids):
        try:
            self.file.write(np.array(ids, dtype="<u2").tobytes())
        except OSError as error:  # two files are open; here we know which one it is
            path = Path(self.file.name).with_suffix("").with_suffix("")  # without PROCESS.unfinished
            not_written(path, 2 * self.tokens, error)
        self.tokens += len(ids)

    def counts(self):
        return {"words": self.words, "documents": self.documents, "tokens": self.tokens}


def encode(pieces, tokenizer, split_of):
    """Write each document as <s> text </s> to split_of(its number)."""
    tokenizer = Tokenizer.from_str(tokenizer.to_str())
    tokenizer.encode_special_tokens = True  # a "</s>" in the text is text
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # split_documents has added it
    bos, eos = tokenizer.token_to_id(BOS), tokenizer.token_to_id(EOS)
    document, before = 0, ""
    for batch in batches(pieces):
        encodings = tokenizer.encode_batch_fast([piece.text for piece in batch], add_special_tokens=False)
        for (text, first, last), encoding in zip(batch, encodings):
            split = split_of(document)
            split.add([bos] * first + encoding.ids + [eos] * last)
            split.words += len(text.split())
            if before.strip() and text[:1].strip():  # a word longer than a piece, counted before
                split.words -= 1
            before = text[-1:]
            if last:
                split.documents += 1
                document += 1


def batches(pieces):
    """Lists of Pieces with about BATCH characters each."""
    batch, size = [], 0
    for piece in pieces:
        batch.append(piece)
        size += len(piece.text)
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def is_held_out(document, share):
    """True if a document, given by its number, is kept for validation: the same ones on every machine."""
    return zlib.crc32(b"%d" % document) < share * 2**32


def hold_out_the_end(train, val, tokenizer, share):
    """Move the last share of the tokens to validation, as one document: for texts with too few documents."""
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


# ----------------------------------------------------------------------------------------------------
# Using a corpus


def find(name, needed=True):
    """
    The folder of a corpus. One that has a recipe is made first, by one process while others wait. With
    needed=False only toy is made, and any other missing corpus gives None.
    """
    meta = look_for(f"{name}/meta.json")
    if meta and not lock_of(name).exists():
        return meta.parent
    if needed or name == "toy":
        with making(name):
            meta = look_for(f"{name}/meta.json")  # another process may have made it meanwhile
            if not meta and name in RECIPES:
                return recipe(name).make(name)
        if not meta:
            remedy = f"make it with: {command_for(name)}"
            there = [path.parent.name for path in data_folder().glob("*/meta.json")]
            close = nearest(name, [*RECIPES, *there])
            if close:
                remedy = f"did you mean {close!r}? Or {remedy}"
            raise UserError(f"corpus = {name!r}: there is no {data_folder() / name}; {remedy}")
    return meta.parent if meta else None


def find_for(s):
    """
    The folder of the corpus. If need be, the first process makes it, then the first one of each machine that has
    its own folders. UserError, in all processes, if it is not the same everywhere or does not fit the model.
    """
    for makes in (rank() == 0, local_rank() == 0):
        with together():
            if makes:
                make_all(s)
    with together():
        corpus = find(s.corpus)
        check_fit(corpus, s)
    refuse_different(corpus)
    return corpus


def make_all(s):
    """Make or fetch what training with settings s reads, unless it is there."""
    find(s.corpus)
    if s.eval_pairs:
        from corpora.benchmarks import find_benchmark

        for task in s.eval_pairs.split(","):
            find_benchmark(task)


def check_fit(corpus, s):
    """Raise UserError if a corpus, given by its folder, is damaged or does not fit the model."""
    meta = read_meta(corpus)
    entries, length = meta["vocab_size"], meta.get("context", s.context)
    if entries > s.vocab_size:
        remedy = f"{corpus} has {entries} tokens; set vocab_size = {entries} or more"
        raise UserError(f"vocab_size = {s.vocab_size}: {remedy}")
    if length != s.context:
        remedy = f"{corpus} is made of sequences of {length} tokens; set context = {length}"
        raise UserError(f"context = {s.context}: {remedy}")
    if s.documents == "apart" and BOS not in read_tokenizer(corpus).get_vocab():
        raise UserError(f"documents = 'apart': {corpus} is not cut into documents; set documents = 'joined'")


def data_digest(corpus):
    """SHA-256 of a corpus's tokenizer, counts and source digests: the same wherever its files lie."""
    meta = json.loads((corpus / "meta.json").read_text(encoding="utf-8"))
    parts = [(corpus / "tokenizer.json").read_text(encoding="utf-8"), meta["train"], meta["val"]]
    return hashlib.sha256(json.dumps(parts + sorted(meta["sources"].values())).encode()).hexdigest()


def refuse_different(corpus):
    """Raise UserError if the corpus, given by its folder, differs between machines."""
    first, *others = from_all((data_digest(corpus), corpus, platform.node()))
    for digest, folder, machine in others:
        if digest != first[0]:
            remedy = "copy it from there, or make both with the same command"
            raise UserError(f"{folder} on {machine} is another corpus than on {first[2]}: {remedy}")


def look_for(place):
    """The path of a file or folder in the first data folder that has it; None if none has."""
    for folder in data_folders():
        if (folder / place).exists():
            return folder / place


def data_folders():
    """The folders to look for data in: NANORNN_DATA, data/ in the working directory, the repository's data/."""
    folders = [Path("data"), ROOT / "data"]
    if os.environ.get("NANORNN_DATA"):
        folders.insert(0, Path(os.environ["NANORNN_DATA"]).expanduser())
    return folders


def data_folder():
    """The folder to make data in; see the top of this file."""
    here = Path("data")
    if here.is_dir() or Path.cwd() == ROOT or not os.access(ROOT, os.W_OK):
        return here
    return ROOT / "data"


@contextmanager
def making(name):
    """
    Hold the lock of data/NAME, or of a folder given by its absolute path, while this is open; a second process
    waits here. The lock's file is deleted in the end; if the process is killed, the file stays, but unlocked.
    Windows has no such locks.
    """
    path = lock_of(name)
    file = lock(path) if find_spec("fcntl") else None
    try:
        yield
    finally:
        if file:
            path.unlink(missing_ok=True)
            file.close()


def lock_of(name):
    """The file that a process which makes data/NAME holds locked."""
    return data_folder() / f"{name}.lock"


def lock(path):
    """Create and lock a file, once no other process has it -> the open file; None if it cannot be written."""
    from fcntl import LOCK_EX, LOCK_NB, flock  # not on Windows

    waited = False
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = open(path, "w")
        except OSError:  # reported when the data itself is written
            return None
        try:
            flock(file, LOCK_EX | LOCK_NB)
        except BlockingIOError:
            if not waited:
                print(f"{path.with_suffix('')}: waiting for another process that makes it", flush=True)
            waited = True
            flock(file, LOCK_EX)
        except OSError:  # a shared folder without locks
            return file
        if os.fstat(file.fileno()).st_nlink:
            return file
        file.close()  # the other process has deleted it


def check_name(corpus):
    """Raise UserError for a corpus that cannot name a folder under data/."""
    if not re.fullmatch(r"[\w-]+", corpus):
        raise UserError(f"corpus = {corpus!r} cannot name a folder under data/: use letters, digits, - and _")


def read_meta(folder):
    """The content of a corpus's meta.json; UserError if its token files have another length or vocabulary."""
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        Tokenizer.from_file(str(folder / "tokenizer.json"))
        if not isinstance(meta["sources"], dict):
            raise ValueError("meta.json does not list its sources")
        for split in ("train", "val"):
            check_tokens(folder / f"{split}.bin", meta[split], meta["vocab_size"])
    except Exception as error:  # a broken tokenizer raises no other
        again = f"prepare it again: {command_for(folder.name)}"
        raise UserError(f"{folder}: this corpus is damaged ({reason(error)}); {again}")
    return meta


def command_for(name):
    """The command that makes a corpus."""
    return f"python data.py {name}" if name in RECIPES else f"python data.py text {name} FILES..."


def check_tokens(path, counts, vocab_size):
    """Raise ValueError if a token file or its targets do not have the tokens that were counted."""
    if not path.exists():
        raise ValueError(f"{path.name} is missing")
    tokens = np.memmap(path, dtype="<u2", mode="r")
    if "words" not in counts or len(tokens) != counts["tokens"] or tokens.max() >= vocab_size:
        raise ValueError(f"{path.name} is not the text that was counted")
    if len(targets_of(path, tokens)) != len(tokens):
        raise ValueError(f"{path.stem}_targets.bin is not as long as {path.name}")


class Blocks:
    """
    A token file cut every `context` tokens into blocks of `context` + 1 tokens, so that every token but the first
    is a target once: that of the token before it. The shorter rest is only validated on. Other targets, or none,
    are in a second file of the same length. Training reads an endless sequence of permutations of the blocks, each
    seeded by (seed, epoch): what a step reads depends on nothing but its number.
    """

    def __init__(self, path, context, seed=0):
        if os.path.getsize(path) < 4:
            raise UserError(f"{path}: no text in it; prepare the corpus again, with more text or --val=FILES")
        self.tokens = np.memmap(path, dtype="<u2", mode="r")
        self.targets = targets_of(path, self.tokens)
        self.context, self.seed = context, seed
        self.n = (len(self.tokens) - 1) // context
        self.epoch, self.order = None, None

    def rows(self, start, count):
        """`count` blocks of the sequence, from number `start` on -> tokens, targets, each (count, context)."""
        return self.read([self.block_at(position) for position in range(start, start + count)])

    def block_at(self, position):
        """The number of the block at a position of the endless sequence."""
        epoch, place = divmod(position, self.n)
        if epoch != self.epoch:
            self.epoch, self.order = epoch, np.random.default_rng([self.seed, epoch]).permutation(self.n)
        return int(self.order[place])

    def read(self, blocks):
        """Blocks by number, all of one length -> tokens, targets (B, context); -100 where there is no target."""
        tokens, targets = self.cut(self.tokens[:-1], blocks), self.cut(self.targets[1:], blocks)
        if self.targets is not self.tokens:
            targets = targets.where(targets != NO_TARGET, -100)
        return tokens, targets

    def cut(self, ids, blocks):
        """These blocks of a sequence of ids, (B, context)."""
        starts = [block * self.context for block in blocks]
        rows = [ids[start : start + self.context] for start in starts]
        return torch.from_numpy(np.stack(rows).astype(np.int64))

    def in_order(self, count, tokens=0):
        """
        Yield every token once: batches of `count` blocks in order, then the shorter rest of the text. If
        `tokens` is not 0 and the text has more, yield only that many, in blocks spread evenly over it.
        """
        if 0 < tokens < len(self.tokens):
            n = max(1, tokens // self.context)
            for start in range(0, n, count):
                yield self.read([i * self.n // n for i in range(start, min(start + count, n))])
            return
        for start in range(0, self.n, count):
            yield self.read(range(start, min(start + count, self.n)))
        if len(self.tokens) - 1 > self.n * self.context:
            yield self.read([self.n])


def on_device(x, device):
    """A tensor on the device. The copy to a GPU is asynchronous, from pinned memory."""
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)


def targets_of(path, tokens):
    """The targets in train_targets.bin beside train.bin, one for each token; without such a file, the tokens."""
    path = Path(path).with_stem(f"{Path(path).stem}_targets")
    return np.memmap(path, dtype="<u2", mode="r") if path.exists() else tokens


# ----------------------------------------------------------------------------------------------------
# The command


def recipe(name):
    """The module of corpora/ that makes a corpus of RECIPES: its make(name) returns the corpus's folder."""
    return import_module(f"corpora.{RECIPES[name]}")


def main(args):
    from corpora import download

    words = [os.path.expanduser(arg) for arg in args if not arg.startswith("-")]
    flags = [arg for arg in args if arg.startswith("-")]
    match words:
        case ["text", name, _, *_]:
            check_name(name)
            make = partial(prepare, name, words[2:], configure(Settings(), flags))
        case ["copying"] | ["copying", _]:
            name, copying = words[-1], recipe("copying")
            check_name(name)
            make = partial(copying.make, name, configure(copying.Settings(), flags))
        case ["pile-10m" | "pile-100m" as name, *files]:
            pile = recipe(name)
            make = partial(pile.make, name, files, configure(pile.Settings(), flags))
        case [name] | ["shakespeare" as name, _] if name in RECIPES:
            refuse_settings(name, flags)
            make = partial(recipe(name).make, *words)
        case [name] | ["blimp" | "ewok_vocabulary" | "bear" | "glue" as name, _] if name in download.SETS:
            refuse_settings(name, flags)
            make = partial(download.obtain, *words)
        case _:
            configure(Settings(), flags)  # which may print --help
            refuse_words(words, ["text", *RECIPES, *download.SETS])
    with making(name):
        corpus = make()
        if corpus:
            first = look_for(f"{corpus.name}/meta.json").parent
            if not first.samefile(corpus):
                remedy = "unset NANORNN_DATA, or use another name"
                raise UserError(f"{corpus} is made, but training would read {first}, which comes first: {remedy}")
            print(f"train on it: {train_command(corpus)}")


def train_command(corpus):
    """The command that trains the default model on a corpus, given by its folder."""
    script = shlex.quote(str(Path(sys.argv[0]).with_name("train.py")))
    if corpus.name == "toy":
        return f"python {script}"
    meta = json.loads((corpus / "meta.json").read_text(encoding="utf-8"))
    flags = f"--corpus={corpus.name} --run={corpus.name} --vocab_size={meta['vocab_size']} --eval_pairs="
    if "context" in meta:
        flags += f" --context={meta['context']}"
    return f"python {script} {flags}"


def refuse_settings(name, flags):
    configure(Settings(), flags)  # which may print --help, and knows misspelt names
    if flags:
        raise UserError(f"{name} is always made the same way: no settings, please")


def refuse_words(words, choices):
    """Raise UserError for a command that names nothing to prepare, or has too few or too many words."""
    if not words:
        raise UserError(f"what to prepare? python data.py {' | '.join(choices)} (see --help)")
    one_of("what to prepare", words[0], choices)
    usage = {"text": "text NAME FILES...", "copying": "copying [NAME]"}
    usage |= {name: f"{name} [FILE]" for name in ("shakespeare", "blimp", "ewok_vocabulary", "bear", "glue")}
    raise UserError(f"{' '.join(words)}: write python data.py {usage.get(words[0], words[0])} (see --help)")


if __name__ == "__main__":
    run_script(main)
