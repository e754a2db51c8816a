"""
The Pile in small: BabyHGRN's samples of 10 and 100 million words (arXiv:2412.15978, Table 1 and Section 2.1).

    python data.py pile-10m [FILES...] [--seed=1]      from files of a copy: .jsonl, .jsonl.gz or .jsonl.zst
    python data.py pile-100m [FILES...]

Each line of a copy is {"text": ..., "meta": {"pile_set_name": ...}}. From every domain, documents are drawn at
random until its quota of words is reached; the last one is cut, so that quotas hold to the word. Without files,
the Pile's validation text is fetched, and for 100M its test text too (EleutherAI/pile_val_test on the Hugging
Face hub, 1.4 and 1.3 GB). They have every domain. To evaluate models on the Pile as well, name files of its
training text. The copy monology/pile-uncopyrighted lacks OpenWebText2, which is 31 % of the sample. The paper's
own samples, PatrickHaller/pile-10M-words and -100M-words, appear to be Parquet files, which take a library not
used here.
"""

import gzip
import heapq
import io
import json
import random
import re
import shutil
import subprocess
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice

import data
from corpora.download import hub
from corpora.text import expand
from support.console import progress
from support.files import replacing
from support.settings import UserError, at_least, reason

QUOTAS = {  # words of 10M, words of 100M
    "Pile-CC": (4_900_155, 49_214_555),
    "OpenWebText2": (3_078_791, 30_344_790),
    "FreeLaw": (946_382, 9_471_436),
    "USPTO Backgrounds": (261_159, 2_519_390),
    "Wikipedia (en)": (187_094, 1_855_709),
    "PubMed Central": (142_698, 1_449_273),
    "PubMed Abstracts": (118_427, 1_175_838),
    "Others": (365_188, 3_968_870),
}
COPY = "EleutherAI/pile_val_test"  # the newest revision: which one is current could not be looked up


@dataclass
class Settings:
    seed: int = 0  # of the sample

    def check(self):
        at_least(0, self, "seed")


def make(name, files=(), s=Settings()):
    """Make data/pile-10m or -100m from files of a copy of the Pile, or from fetched ones -> its folder."""
    text = sample(name, list(expand(files).values()), s.seed)
    return data.prepare(name, [str(text)], data.Settings())


def sample(name, files, seed=0):
    """
    Write data/NAME/pile.txt for NAME pile-10m or pile-100m, with an empty line between documents -> its path.
    Files are read twice, to choose documents and to copy them, so that no text is held in memory. The same files
    and seed give the same bytes.
    """
    size = ("pile-10m", "pile-100m").index(name)
    quotas = {domain: words[size] for domain, words in QUOTAS.items()}
    if not files:
        with data.making("pile"):
            files = fetch_copy(name, ["val.jsonl", "test.jsonl"][: size + 1])
    chosen = choose(files, quotas, random.Random(seed))
    path = data.data_folder() / name / "pile.txt"
    with replacing(path) as file:
        for place, line in lines(files, "copying the documents"):
            if place in chosen:
                text, domain = document(line, place)
                file.write(tidy(text, chosen[place]) + "\n\n")
    print(f"{path}: {sum(chosen.values()):,} words in {len(chosen):,} documents")
    return path


def fetch_copy(name, files):
    """The paths of these files of the Pile in a data folder, fetched into data/pile if they are not there."""
    there = [data.look_for(f"pile/{file}") for file in files]
    if all(there):
        return there
    folder, home = data.data_folder() / "pile", f"huggingface.co/datasets/{COPY}"
    print(f"{name}: fetching {' and '.join(files)} of {home}, {1.4 if len(files) == 1 else 2.7} GB")
    hub(COPY, files, folder, f"name files of a copy of the Pile: python data.py {name} FILES...")
    return [folder / file for file in files]


def choose(files, quotas, rng):
    """
    Draw documents -> {(file, line): words to take}. Each document gets a random number, and those with the
    smallest numbers of their domain are chosen, as many as fill the quota. A heap holds them with the largest
    number on top, the next one to be dropped.
    """
    heaps, words = {domain: [] for domain in quotas}, dict.fromkeys(quotas, 0)
    for place, line in lines(files, "choosing documents"):
        text, domain = document(line, place)
        if domain not in quotas:
            domain = "Others"
        size, number = len(text.split()), rng.random()
        heap, quota = heaps[domain], quotas[domain]
        if size and (words[domain] < quota or number < -heap[0][0]):
            heapq.heappush(heap, (-number, place, size))
            words[domain] += size
            while words[domain] - heap[0][2] >= quota:
                words[domain] -= heapq.heappop(heap)[2]
    check_quotas(words, quotas, files)
    chosen = {place: size for heap in heaps.values() for _, place, size in heap}
    for domain, heap in heaps.items():
        chosen[heap[0][1]] -= words[domain] - quotas[domain]
    return chosen


def check_quotas(words, quotas, files):
    """Refuse files that have too few words of a domain."""
    short = [f"{x} {words[x]:,} of {quotas[x]:,} words" for x in quotas if words[x] < quotas[x]]
    if short:
        where = ", ".join(map(str, files))
        raise UserError(f"too little of the Pile in {where}: {', '.join(short)}; name more of its files")


def document(line, place):
    """A line of the Pile -> its text and its domain."""
    try:
        record = json.loads(line)
        text, domain = record["text"], record["meta"]["pile_set_name"]
        if not isinstance(text, str) or not isinstance(domain, str):
            raise TypeError
        return text, domain
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        what = f"not a document of the Pile ({type(error).__name__})"
        raise UserError(f"{place[0]}:{place[1]}: {what}; is the file whole?")


def tidy(text, words):
    """The first so many words of a text, without empty lines, which would end the document."""
    end = next(islice(re.finditer(r"\S+", text), words - 1, None)).end()
    text = text[:end].encode("utf-8", "replace").decode()  # JSON may hold halves of characters
    return "\n".join(line for line in text.splitlines() if line.strip())


def lines(files, purpose):
    """Yield ((file, line number), line) for each line of plain or compressed files."""
    done, total = 0, sum(path.stat().st_size for path in files)
    with progress(total=total, desc=purpose, unit="B") as bar:
        for path in files:
            try:
                with open(path, "rb", buffering=0) as raw, unpacked(raw, path) as file:
                    for number, line in enumerate(file, 1):
                        if number % 100 == 0:
                            bar.update(done + raw.tell() - bar.n)
                        if line.strip():
                            yield (path, number), line
            except UserError:
                raise
            except Exception as error:  # each compression has its own
                raise UserError(f"{path}: cannot be read ({reason(error)}); is the file whole?")
            done += path.stat().st_size


@contextmanager
def unpacked(raw, path):
    """An open file, decompressed if its name ends in .gz or .zst."""
    if path.suffix == ".gz":
        yield gzip.open(raw)
    elif path.suffix != ".zst":
        yield io.BufferedReader(raw)
    elif tool := shutil.which("zstd"):
        command = [tool, "-dcq"]
        pipes = dict(stdin=raw, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        with subprocess.Popen(command, **pipes) as process:
            yield process.stdout
            if process.wait():
                raise ValueError("zstd could not unpack it")
    else:
        raise UserError(f"{path}: to read .zst takes the program zstd; install it, or unpack the file")
