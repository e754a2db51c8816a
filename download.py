"""
Benchmarks and texts from their official homes: into data/, whole or not at all.

    obtain(name)     a benchmark of SETS, as `python data.py blimp` does
    fetch(url)       a file, continued where an earlier try was cut off, be it by kill -9
    hub(home)        files of a data set on the Hugging Face hub, whose library continues by itself
    members(path)    what is expected of a .zip or .tar.gz, and nothing else

Archives are not unpacked to disk. What they hold is read into memory, checked, and written under names of our own:
no name, link or length in an archive can do harm, and one that has such a thing is refused.
"""

import gzip
import hashlib
import re
import shutil
import stat
import time
import zipfile
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from http.client import HTTPException
from pathlib import Path
from tarfile import open as open_tar
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from checkpoint import not_written, replacing
from config import fail, progress, reason

WAITS = 1, 3, 9  # seconds before each further try
LARGEST = 1 << 29  # bytes that an archive may hold
DOWNLOADS = Path("data/downloads")  # what is on its way


@dataclass
class Part:
    place: str  # in a data folder: a .zip, or a folder of .jsonl.gz
    home: str  # address of an archive, or owner/name@revision on the Hugging Face hub
    names: str  # the files there: folder/pattern
    rows: int | dict | None  # lines of all of them, or {name: lines} of those that are wanted
    size: int  # bytes of all files: what is known, or else more than can be
    sha256: str = ""  # of all files joined in the order of their names, where it is known
    rights: str = "published for research"


def table(text):
    """ "rte 2490 139" -> {"rte.train.jsonl": 2490, "rte.valid.jsonl": 139}; 0: there is no such file."""
    rows = re.findall(r"(\S+) (\d+) (\d+)", text)
    counts = [(f"{task}.train.jsonl", int(train)) for task, train, _ in rows]
    counts += [(f"{task}.valid.jsonl", int(valid)) for task, _, valid in rows]
    return {name: count for name, count in counts if count}


def supplement(*counts):
    names = "hypernym qa_congruence_easy qa_congruence_tricky subject_aux_inversion turn_taking"
    return {f"{name}.jsonl": count for name, count in zip(names.split(), counts)}


# The organisers' files of 2025 in their home of 2026: names and revision are those of public scripts; hashes could
# not be looked up, so lines are counted.
EVALS = "BabyLM-community/BabyLM-2026-Strict-Evals@8d52da9424a9ff30b9e8266c4f751aba9c504233"
FULL, FAST = "evaluation_data/full_eval", "evaluation_data/fast_eval"
# The same of 2024: OSF packs a folder as it is asked for. Not seen either.
OSF = "https://files.osf.io/v1/resources/ad7qg/providers/osfstorage/66358ec34664da20a0ed6acc/?zip="
GLUE = "boolq 9427 1635 mnli 10000 4908 mrpc 3668 204 multirc 27243 2424 "
GLUE += "qqp 10000 20215 rte 2490 139 wsc 554 52"
GLUE_OF_2024 = "cola 8551 522 mnli-mm 0 4916 qnli 104743 2732 sst2 67349 436"  # left out since
BLIMP = "https://codeload.github.com/alexwarstadt/blimp/tar.gz/3e56b06fcabca9b30822fc66435fca6b1aa40bb1"
# Their pipeline of 2024, for its list of words: not seen either.
PIPELINE = "https://codeload.github.com/babylm/evaluation-pipeline-2024/tar.gz/refs/heads/main"
BEAR = "https://codeload.github.com/lm-pub-quiz/BEAR/tar.gz/725b4e3139d0a5fdf914b0419ba744273dddc689"
M = 10**6

# fmt: off
SETS = {
    "blimp": [
        Part("blimp/blimp.zip", BLIMP, "data/*.jsonl", 67_000, 29_576_684,
             "93e7675caabd9d0d81e7145ab25f59ae8a2528fb69c5394e6e52707b427c3397", "CC BY 4.0"),
        Part("babylm_eval/blimp_filtered.zip", EVALS, f"{FULL}/blimp_filtered/*.jsonl", 59_875, 50 * M),
        Part("babylm_eval/blimp_fast.zip", EVALS, f"{FAST}/blimp_fast/*.jsonl", 13_400, 50 * M),
    ],
    "supplement": [
        Part("babylm_eval/supplement_filtered", EVALS, f"{FULL}/supplement_filtered/*.jsonl",
             supplement(842, 64, 165, 3867, 280), 10 * M),
        Part("babylm_eval/supplement_fast", EVALS, f"{FAST}/supplement_fast/*.jsonl",
             supplement(50, 50, 50, 50, 50), 10 * M),
    ],
    "ewok": [  # locked, and kept so
        Part("ewok/ewok_fast.zip", EVALS, f"{FAST}/ewok_fast.zip", None, 34_719,
             "310ffb7d7006533d116a2e58e3b89b05a0812cc27a83153b83e46c3cd10d95ba", "CC BY 4.0 with terms of use"),
    ],
    "ewok_vocabulary": [Part("ewok/vocab.txt", PIPELINE, "ewok/vocab.txt", None, 2 * M)],
    "bear": [
        Part("bear/BEAR.zip", BEAR, "BEAR/*.json*", 12_197, 1_329_992,
             "e6746ec4736cfbd688eebde2086d747ea5c63ea2aecc2198dd6ffd42ceafd572", "no licence; Wikidata's facts"),
        Part("bear/BEAR-big.zip", BEAR, "BEAR-big/*.json*", 41_471, 5_616_881,
             "0bfa07b7951801e49b1f7b8a194ce78c9357e6d0b2debe339f3cf3c550eb47ca", "no licence; Wikidata's facts"),
    ],
    "glue": [
        Part("glue", EVALS, f"{FULL}/glue_filtered/*.jsonl", table(GLUE), 200 * M),
        Part("glue", OSF, "glue_filtered/*.jsonl", table(GLUE_OF_2024), 200 * M),
    ],
}
# fmt: on
GATED = " ".join(
    """
EWoK-core-1.0 is given to those who accept its terms, and is never to lie on a disk as plain text: log in at
huggingface.co/datasets/ewok-core/ewok-core-1.0 and accept them, write its items as lines of JSON to
ewok-core-1.0/ewok-core-1.0.jsonl, lock that with the password ewok (zip -e) as data/ewok/ewok-core-1.0.zip, and
delete the plain file. For ewok_filtered, BabyLM's choice of it: python data.py ewok_vocabulary. Without all this
there is ewok_fast.
""".split()
)


# ----------------------------------------------------------------------------------------------------
# A benchmark


def obtain(name, folders, file=None):
    """What of a benchmark is in none of the data folders is fetched, or taken from `file`, an archive of it."""
    for part in SETS[name]:
        there = [folder / part.place for folder in folders if complete(folder / part.place, part)]
        packed = part.home.startswith("http")
        if there:
            print(f"{there[0]}: already there")
        elif file and packed:
            store(part, members(Path(file), part), f"{file}: ", f"is it {part.home}?")
        elif not file:
            print(f"data/{part.place}: from {part.home} ({part.rights})")
            (from_archive if packed else from_hub)(part, DOWNLOADS / name)
        else:
            print(f"data/{part.place}: not of {file}; to fetch it: python data.py {name}")
    shutil.rmtree(DOWNLOADS / name, ignore_errors=True)
    if name == "ewok" and not any((folder / "ewok/ewok-core-1.0.zip").exists() for folder in folders):
        fail(GATED)


def complete(path, part):
    """Whether a part is there: its file, or each one in its folder, packed or not."""
    if not isinstance(part.rows, dict):
        return path.is_file()
    return all((path / name).is_file() or (path / f"{name}.gz").is_file() for name in part.rows)


def from_archive(part, folder):
    by_hand = f"fetch {part.home} by hand, and then: python data.py {folder.name} FILE"
    path = folder / "archive"  # of several parts, perhaps
    if not path.exists():
        fetch(part.home, path, by_hand)
    with discarding(folder):
        store(part, members(path, part), f"{part.home}: ", by_hand)
    if part is [other for other in SETS[folder.name] if other.home == part.home][-1]:
        path.unlink()


def from_hub(part, folder):
    repo = f"huggingface.co/datasets/{part.home.partition('@')[0]}"
    zipped = "zipped " if part.place.endswith(".zip") and part.rows else ""
    by_hand = f"fetch {part.names} of {repo} by hand and put it {zipped}at data/{part.place}"
    by_hand += f". {GATED}" * (folder.name == "ewok")
    hub(part.home, part.names, folder, by_hand)
    paths = [path for path in folder.glob(part.names) if expected(path.as_posix(), part)]
    files = {path.name: path.read_bytes() for path in paths}
    with discarding(folder):
        store(part, files, f"{repo}: ", by_hand)


@contextmanager
def discarding(folder):
    """What is wrong is not kept: the next try begins anew."""
    try:
        yield
    except SystemExit:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def store(part, files, source, by_hand):
    """{name: bytes} -> the part's place in data/, if they are what they should be."""
    problem = difference(part, files)
    if problem:
        fail(f"{source}{problem}; {by_hand}")
    place, raw = Path("data") / part.place, [files[name] for name in sorted(files)]
    if part.rows is None:  # a file as it is
        with replacing(place, "wb") as file:
            file.write(raw[0])
    elif place.suffix == ".zip":
        folder = part.names.split("/")[-2]
        with replacing(place, "wb") as file, zipfile.ZipFile(file, "w") as archive:
            for name in sorted(files):
                archive.writestr(zipfile.ZipInfo(f"{folder}/{name}"), files[name], zipfile.ZIP_DEFLATED)
    else:
        for name in sorted(files):
            with replacing(place / f"{name}.gz", "wb") as file:
                file.write(gzip.compress(files[name], mtime=0))
    print(f"{place}: {len(files)} files, {sum(map(len, raw)):,} bytes, checked")


def difference(part, files):
    """How {name: bytes} differ from what they should be; None if they do not."""
    if not files:
        return f"{part.names} is not in it"
    counts = {name: raw.count(b"\n") + (raw[-1:] not in (b"", b"\n")) for name, raw in files.items()}
    if isinstance(part.rows, dict):
        for name, rows in part.rows.items():
            if counts.get(name) != rows:
                return f"{name} has {counts.get(name, 0):,} lines in place of {rows:,}"
    elif part.rows is not None and sum(counts.values()) != part.rows:
        return f"{len(files)} files with {sum(counts.values()):,} lines in place of {part.rows:,}"
    joined = hashlib.sha256(b"".join(files[name] for name in sorted(files))).hexdigest()
    if part.sha256 and joined != part.sha256:
        return f"the files have SHA-256 {joined[:12]}... in place of {part.sha256[:12]}..."


# ----------------------------------------------------------------------------------------------------
# Archives


def members(path, part):
    """{name: bytes} of a part's files in a .zip or .tar.gz, which is refused if anything in it is odd."""
    files, room = {}, part.size
    try:
        for name, odd, size, file in each_in_zip(path) if zipfile.is_zipfile(path) else each_in_tar(path):
            base, odd = name.rpartition("/")[2], odd_name(name) or odd
            if not odd and expected(name, part) and base in files:
                odd = "is there twice"
            elif not odd and expected(name, part):
                files[base] = file().read(room + 1)
                room -= max(size, len(files[base]))
                odd = "is larger than all that is expected" if room < 0 else None
            if odd:
                fail(f"{path}: {name!r} in it {odd}; nothing of this archive was used")
    except Exception as error:  # a broken archive can raise many
        fail(f"{path}: cannot be read ({reason(error)}); fetch it again")
    return files


def expected(name, part):
    """Whether a path in an archive or on the hub, below whatever folders, is that of a part's file."""
    folder, _, pattern = part.names.rpartition("/")
    above, _, name = name.rpartition("/")
    listed = not isinstance(part.rows, dict) or name in part.rows
    return f"/{above}".endswith(f"/{folder}") and fnmatchcase(name, pattern) and listed


def odd_name(name):
    if name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", name):
        return "has an absolute name"
    if ".." in re.split(r"[/\\]", name):
        return "leads out of its folder"
    if "\\" in name or "\0" in name:
        return "has a name that means another on some systems"


def each_in_zip(path):
    """(name, what is odd about it, size that it promises, function that opens it) of each file in a .zip."""
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            kind = stat.S_IFMT(entry.external_attr >> 16)
            odd = "is a link, or no file" if kind not in (0, stat.S_IFREG, stat.S_IFDIR) else None
            odd = odd or ("is locked" if entry.flag_bits & 1 else None)
            yield entry.orig_filename, odd, entry.file_size, partial(archive.open, entry)


def each_in_tar(path):
    """The same of a .tar.gz."""
    with gzip.open(path) as raw, open_tar(fileobj=Limited(raw), mode="r|") as archive:
        for entry in archive:
            odd = None if entry.isfile() or entry.isdir() else "is a link, or no file"
            yield entry.name, odd, entry.size, partial(archive.extractfile, entry)


class Limited:
    """A file that may not go on for ever."""

    def __init__(self, file):
        self.file, self.room = file, LARGEST

    def read(self, size):
        raw = self.file.read(size)
        self.room -= len(raw)
        if self.room < 0:
            raise ValueError(f"more than {LARGEST >> 20} MB once unpacked")
        return raw


# ----------------------------------------------------------------------------------------------------
# The network


def hub(home, pattern, folder, by_hand):
    """Files of owner/name@revision on the Hugging Face hub -> folder, by the hub's own library."""
    repo, _, revision = home.partition("@")
    try:
        from huggingface_hub import HfApi, snapshot_download  # comes with tokenizers

        which = {"repo_type": "dataset", "revision": revision or None}
        HfApi().repo_info(repo, **which)  # what fails here would be tried for half a minute there
        snapshot_download(repo, **which, allow_patterns=pattern, local_dir=folder)
    except Exception as error:  # it has many
        why = (reason(error).strip() or type(error).__name__).splitlines()[0].removeprefix("Got: ")
        fail(f"huggingface.co/datasets/{repo}: cannot be fetched ({why}); {by_hand}")


def fetch(url, path, by_hand, size=0, sha256=""):
    """The file at url -> path. What has come of it is kept as path.part, and the next try asks for the rest."""
    print(f"fetching {url}")
    part = path.with_name(path.name + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    for wait in (*WAITS, None):
        try:
            receive(url, part, size)
            break
        except (OSError, HTTPException) as error:
            if getattr(error, "filename", None) == str(part):  # this disk, not the network
                not_written(part, 0, error)
            if wait is None or not passing(error):
                fail(f"{url}: cannot be fetched ({cause(error)}); {by_hand}")
            time.sleep(wait)
    length = part.stat().st_size
    with open(part, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if length > LARGEST or (size and (length, digest) != (size, sha256)):
        part.unlink()
        known = f"{size:,} bytes of SHA-256 {sha256[:12]}..." if size else f"at most {LARGEST >> 20} MB"
        fail(f"{url}: {length:,} bytes of SHA-256 {digest[:12]}... in place of {known}; {by_hand}")
    part.replace(path)


def receive(url, part, size):
    """One try: add to the file `part` what it lacks, or write it anew if the server will not send a rest."""
    done = part.stat().st_size if part.exists() else 0
    if size and done == size:
        return
    headers = {"User-Agent": "nanoRNN"} | ({"Range": f"bytes={done}-"} if done else {})
    with urlopen(Request(url, headers=headers), timeout=30) as answer:
        if answer.status != 206:
            done = 0
        elif not answer.headers.get("Content-Range", "").startswith(f"bytes {done}-"):
            raise HTTPException("the server sent another part than was asked for")
        total = size or None if answer.length is None else done + answer.length
        bar = progress(total=total, initial=done, desc=part.stem, unit="B")
        with bar, open(part, "ab", buffering=0) as file:
            file.truncate(done)
            while done <= (size or LARGEST) and (raw := answer.read(1 << 16)):
                append(file, raw, done)
                done += len(raw)
                bar.update(len(raw))
        if answer.length and done <= (size or LARGEST):  # what it still owes
            raise HTTPException(f"the connection was cut after {done:,} bytes")


def append(file, raw, done):
    """Write all of it, or end the script."""
    try:
        while raw:
            raw = raw[file.write(raw) :]
    except OSError as error:
        not_written(Path(file.name), done, error)


def passing(error):
    """Whether another try may help: not where there is no network or no such file."""
    if isinstance(error, HTTPError):
        return error.code >= 500 or error.code in (408, 429)
    return not isinstance(error, URLError)


def cause(error):
    if isinstance(error, HTTPError):
        return f"HTTP {error.code}, {error.reason}"
    return reason(error.reason if isinstance(getattr(error, "reason", None), Exception) else error)
