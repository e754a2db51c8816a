"""
The Pile in small: BabyHGRN's samples of 10 and 100 million words (arXiv:2412.15978, Table 1 and Section 2.1).

    python data.py pile-10m [FILES...] [--seed=1]      from files of a copy: .jsonl, .jsonl.gz or .jsonl.zst
    python data.py pile-100m [FILES...]

Each line of a copy is {"text": ..., "meta": {"pile_set_name": ...}}. Of every domain documents are drawn at random
until its quota of words is full; the last one is cut, so that quotas hold to the word. Without files, the Pile's
validation text is fetched, for 100M its test text too (EleutherAI/pile_val_test on the Hugging Face hub, 1.4 and
1.3 GB). They have every domain. To score models on the Pile too, name files of its training text instead.
The copy monology/pile-uncopyrighted lacks OpenWebText2, which is 31 % of the sample. The paper's own samples,
PatrickHaller/pile-10M-words and -100M-words, are in parquet by all signs, which takes a library not used here.
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
from importlib import import_module
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

from checkpoint import replacing
from config import fail, progress, reason
from download import hub

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


def sample(name, files, seed=0, quotas=None):
    """
    data/NAME/pile.txt for NAME pile-10m or pile-100m, an empty line between documents. Files are read twice, to
    choose and to copy, so that memory holds no text; the same files and seed give the same bytes.
    """
    column = ("pile-10m", "pile-100m").index(name)
    quotas = quotas or {domain: words[column] for domain, words in QUOTAS.items()}
    files = files or fetch_copy(name, column + 1)
    chosen = choose(files, quotas, random.Random(seed))
    path = Path("data") / name / "pile.txt"
    with replacing(path) as file:
        for place, line in lines(files, "copying the documents"):
            if place in chosen:
                text, _ = document(line, place)
                file.write(tidy(text, chosen[place]) + "\n\n")
    print(f"{path}: {sum(chosen.values()):,} words in {len(chosen):,} documents")
    return path


def fetch_copy(name, count):
    folder, names = Path("data/pile"), ["val.jsonl", "test.jsonl"][:count]
    if not all((folder / file).exists() for file in names):
        print(f"{name}: fetching {' and '.join(names)} of huggingface.co/datasets/{COPY}, {count * 1.4} GB")
        hub(COPY, names, folder, f"name files of a copy of the Pile: python data.py {name} FILES...")
    return [folder / file for file in names]


def choose(files, quotas, rng):
    """
    {(file, line): words to take}. Each document draws a number; those with the smallest of their domain are in, as
    many as fill the quota. They are kept in a heap with the largest number on top, the next to go.
    """
    heaps, words = {domain: [] for domain in quotas}, dict.fromkeys(quotas, 0)
    for place, line in lines(files, "choosing documents"):
        text, domain = document(line, place)
        domain, size, number = domain if domain in quotas else "Others", len(text.split()), rng.random()
        heap, quota = heaps[domain], quotas[domain]
        if size and (words[domain] < quota or number < -heap[0][0]):
            heapq.heappush(heap, (-number, place, size))
            words[domain] += size
            while words[domain] - heap[0][2] >= quota:
                words[domain] -= heapq.heappop(heap)[2]
    short = [f"{x} {words[x]:,} of {quotas[x]:,} words" for x in quotas if words[x] < quotas[x]]
    if short:
        where = ", ".join(map(str, files))
        fail(f"too little of the Pile in {where}: {', '.join(short)}; name more of its files")
    chosen = {place: size for heap in heaps.values() for _, place, size in heap}
    for domain, heap in heaps.items():
        chosen[heap[0][1]] -= words[domain] - quotas[domain]
    return chosen


def document(line, place):
    """A line of the Pile -> its text and its domain."""
    try:
        record = json.loads(line)
        return record["text"] + "", record["meta"]["pile_set_name"] + ""
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        what = f"not a document of the Pile ({type(error).__name__})"
        fail(f"{place[0]}:{place[1]}: {what}; is the file whole?")


def tidy(text, words):
    """The first so many words of a text, without empty lines, which would end the document."""
    end = next(islice(re.finditer(r"\S+", text), words - 1, None)).end()
    text = text[:end].encode("utf-8", "replace").decode()  # JSON may hold halves of characters
    return "\n".join(line for line in text.splitlines() if line.strip())


def lines(files, purpose):
    """((file, number), line) of each line of plain or packed files."""
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
            except Exception as error:  # what unpacks has its own
                fail(f"{path}: cannot be read ({reason(error)}); is the file whole?")
            done += path.stat().st_size


@contextmanager
def unpacked(raw, path):
    """An open file, or what is packed in it."""
    if path.suffix == ".gz":
        yield gzip.open(raw)
    elif path.suffix != ".zst":
        yield io.BufferedReader(raw)
    elif find_spec("compression"):  # Python 3.14
        yield import_module("compression.zstd").ZstdFile(raw)
    elif tool := shutil.which("zstd"):
        with subprocess.Popen(
            [tool, "-dcq"], stdin=raw, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as process:
            yield process.stdout
            if process.wait():
                raise ValueError("zstd could not unpack it")
    else:
        fail(f"{path}: to unpack .zst takes Python 3.14, or the program zstd; install one, or unpack it")
