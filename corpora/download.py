"""
Benchmarks from their official homes: into data/, complete and checked, or not at all.

    obtain(name)     a benchmark of SETS, as `python data.py blimp` does
    fetch(url)       the bytes at a URL
    hub(home)        files of a dataset on the Hugging Face hub, whose library resumes interrupted downloads

Archives are never unpacked to disk: their expected files are read into memory, checked, and written under names of
our own.
"""

import csv
import gzip
import hashlib
import io
import json
import shutil
import tarfile
import zipfile
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from http.client import HTTPException
from urllib.request import Request, urlopen

import data
from support.files import replacing
from support.settings import UserError, reason

LARGEST = 1 << 29  # bytes of a download, and of an archive once unpacked


@dataclass
class Part:
    place: str  # where it belongs in a data folder: a .zip, a .jsonl.gz, or a folder of .gz
    home: str  # URL of an archive, or owner/name@revision on the Hugging Face hub
    names: str  # the files there: folder/pattern
    rows: int | dict | None  # lines of all files, or {name: lines} of the wanted ones; None: not counted
    size: int  # bytes of all files: the exact number if known, otherwise an upper limit
    sha256: str = ""  # of all files joined in the order of their names, if known
    rights: str = "published for research"

    @property
    def in_archive(self):
        return self.home.startswith("http")


# The organisers' files of 2025 in their repository of 2026. Names and revision are those of public scripts. Hashes
# were not available, so lines are counted.
EVALS = "BabyLM-community/BabyLM-2026-Strict-Evals@8d52da9424a9ff30b9e8266c4f751aba9c504233"
FULL, FAST = "evaluation_data/full_eval", "evaluation_data/fast_eval"
# GlobalPIQA comes from its authors, as the organisers have it. Names and revisions are those of public scripts.
# Not tried yet.
PARALLEL = "mrlbenchmarks/global-piqa-parallel@b0b18516a8bc2cb1106bce3dd4db32848ca715ea"
NONPARALLEL = "mrlbenchmarks/global-piqa-nonparallel@6777742fa3634c0583cda3b7f8a482ea7b1b0937"
# The same for 2024: OSF packs the folder on request. Not tried yet, hashes not available.
OSF = "https://files.osf.io/v1/resources/ad7qg/providers/osfstorage/66358ec34664da20a0ed6acc/?zip="
BLIMP = "https://codeload.github.com/alexwarstadt/blimp/tar.gz/3e56b06fcabca9b30822fc66435fca6b1aa40bb1"
# The organisers' pipeline of 2024, for its word list. Not tried yet.
PIPELINE = "https://codeload.github.com/babylm/evaluation-pipeline-2024/tar.gz/refs/heads/main"
BEAR = "https://codeload.github.com/lm-pub-quiz/BEAR/tar.gz/725b4e3139d0a5fdf914b0419ba744273dddc689"
SUPPLEMENT = {
    "hypernym.jsonl": 842,
    "qa_congruence_easy.jsonl": 64,
    "qa_congruence_tricky.jsonl": 165,
    "subject_aux_inversion.jsonl": 3867,
    "turn_taking.jsonl": 280,
}
GLUE = {
    "boolq.train.jsonl": 9427, "boolq.valid.jsonl": 1635,
    "mnli.train.jsonl": 10000, "mnli.valid.jsonl": 4908,
    "mrpc.train.jsonl": 3668, "mrpc.valid.jsonl": 204,
    "multirc.train.jsonl": 27243, "multirc.valid.jsonl": 2424,
    "qqp.train.jsonl": 10000, "qqp.valid.jsonl": 20215,
    "rte.train.jsonl": 2490, "rte.valid.jsonl": 139,
    "wsc.train.jsonl": 554, "wsc.valid.jsonl": 52,
}  # fmt: skip
GLUE_OF_2024 = {  # dropped since
    "cola.train.jsonl": 8551, "cola.valid.jsonl": 522,
    "qnli.train.jsonl": 104743, "qnli.valid.jsonl": 2732,
    "sst2.train.jsonl": 67349, "sst2.valid.jsonl": 436,
    "mnli-mm.valid.jsonl": 4916,
}  # fmt: skip
COMPS = {
    "comps_base.jsonl": 49_340,
    "comps_wugs.jsonl": 13_896,
    "comps_wugs_dist-before.jsonl": 13_896,
    "comps_wugs_dist-in-between.jsonl": 13_896,
}
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
        Part("babylm_eval/supplement_filtered", EVALS, f"{FULL}/supplement_filtered/*.jsonl", SUPPLEMENT, 10 * M),
        Part("babylm_eval/supplement_fast", EVALS, f"{FAST}/supplement_fast/*.jsonl",
             dict.fromkeys(SUPPLEMENT, 50), 10 * M),
    ],
    "ewok": [  # password-protected, and kept so
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
        Part("glue", EVALS, f"{FULL}/glue_filtered/*.jsonl", GLUE, 200 * M),
        Part("glue", OSF, "glue_filtered/*.jsonl", GLUE_OF_2024, 200 * M),
    ],
    "entity_tracking": [  # packed, for its authors ask that it not lie open in repositories
        Part("babylm_eval/entity_tracking.zip", EVALS, f"{FULL}/entity_tracking/*.jsonl", 9483, 7_519_163,
             "351d678fdb0949f627a332f328582075a3702d98164d34c2c9ba1fc5e51122c4"),
    ],
    "comps": [Part("babylm_eval/comps", EVALS, f"{FULL}/comps/*.jsonl", COMPS, 100 * M)],
    "wug": [  # of 2025; not tried yet
        Part("babylm_eval/wug", EVALS, f"{FULL}/wug_adj_nominalization/*.jsonl",
             {"wug_adj_nominalization.jsonl": 200}, 37_187,
             "f308a861e0861ef4d6a25c1e5a43ef4f29cd8238362a3bf9dd5855f0a78177d4"),
        Part("babylm_eval/wug", EVALS, f"{FULL}/wug_past_tense/*.jsonl", {"wug_past_tense.jsonl": 50}, M),
    ],
    "reading": [  # a line of names, and 1,726 words
        Part("babylm_eval/reading", EVALS, f"{FULL}/reading/*.csv", {"reading_data.csv": 1727}, 615_013,
             "45204bc7ccfb10bdb6140797b5e60e83e9a85cc62d195a84ad4566cb429f0065"),
    ],
    "global_piqa": [
        Part("babylm_eval/global_piqa/global_piqa_parallel.jsonl.gz", PARALLEL, "data/parallel_eng_latn.tsv",
             103, M, rights="CC BY-SA 4.0, for evaluation only"),
        Part("babylm_eval/global_piqa/global_piqa_nonparallel.jsonl.gz", NONPARALLEL,
             "data/nonparallel_eng_latn.tsv", 100, M, rights="CC BY-SA 4.0, for evaluation only"),
    ],
}
# fmt: on
GATED = (
    "EWoK-core-1.0 is given to those who accept its terms, and must never lie on a disk as plain text: log in at "
    "huggingface.co/datasets/ewok-core/ewok-core-1.0 and accept them, write its items as lines of JSON to "
    "ewok-core-1.0/ewok-core-1.0.jsonl, lock that with the password ewok (zip -e) as data/ewok/ewok-core-1.0.zip, "
    "and delete the plain file. For ewok_filtered, BabyLM's selection from it: python data.py ewok_vocabulary. "
    "Without all this there is ewok_fast."
)


# ----------------------------------------------------------------------------------------------------
# A benchmark


def obtain(name, archive=None):
    """Fetch those parts of a benchmark that no data folder has, or take them from an archive fetched by hand."""
    fetched = {}  # URL -> an open archive, which may hold several parts
    for part in SETS[name]:
        there = find_complete(part)
        place = data.data_folder() / part.place
        if there:
            print(f"{there}: already there")
        elif archive and not part.in_archive:
            print(f"{place}: not of {archive}; to fetch it: python data.py {name}")
        elif archive:
            with open(archive, "rb") as file:
                store(part, members(file, archive, part), archive, f"is it {part.home}?")
        else:
            print(f"{place}: from {part.home} ({part.rights})")
            if part.in_archive:
                from_archive(part, name, fetched)
            else:
                from_hub(part, name)
    if name == "ewok" and not data.look_for("ewok/ewok-core-1.0.zip"):
        raise UserError(GATED)


def find_complete(part):
    """The path of a part, its file or a folder with every file of it, plain or .gz; None if no folder has it."""
    if not isinstance(part.rows, dict):
        return data.look_for(part.place)
    for folder in data.data_folders():
        place = folder / part.place
        if all((place / name).is_file() or (place / f"{name}.gz").is_file() for name in part.rows):
            return place


def from_archive(part, name, fetched):
    by_hand = f"fetch {part.home} by hand, and then: python data.py {name} FILE"
    if part.home not in fetched:
        fetched[part.home] = io.BytesIO(fetch(part.home, by_hand))
    store(part, members(fetched[part.home], part.home, part), part.home, by_hand)


def from_hub(part, name):
    repo = f"huggingface.co/datasets/{part.home.partition('@')[0]}"
    zipped = "zipped " if part.place.endswith(".zip") and part.rows else ""
    place = data.data_folder() / part.place
    by_hand = f"fetch {part.names} of {repo} by hand and put it {zipped}at {place}"
    if part.names.endswith(".tsv"):
        by_hand += ", each row a line of JSON"
    if name == "ewok":
        by_hand += f". {GATED}"
    folder = data.data_folder() / f"{name}.download"
    hub(part.home, part.names, folder, by_hand)
    paths = [path for path in folder.glob(part.names) if is_expected(path.as_posix(), part)]
    files = {path.name: path.read_bytes() for path in paths}
    shutil.rmtree(folder)  # also if they are wrong, or the library would take them for complete next time
    if part.names.endswith(".tsv"):
        files = {name: as_json_lines(raw, repo, by_hand) for name, raw in files.items()}
    store(part, files, repo, by_hand)


def store(part, files, source, by_hand):
    """Write {name: bytes} to the part's place in data/, if the files are what they should be."""
    problem = difference(part, files)
    if problem:
        raise UserError(f"{source}: {problem}; {by_hand}")
    place, names = data.data_folder() / part.place, sorted(files)
    if part.rows is None:  # a file as it is
        with replacing(place, "wb") as file:
            file.write(files[names[0]])
    elif place.suffix == ".gz":
        with replacing(place, "wb") as file:
            file.write(gzip.compress(files[names[0]], mtime=0))
    elif place.suffix == ".zip":
        folder = part.names.split("/")[-2]
        with replacing(place, "wb") as file, zipfile.ZipFile(file, "w") as archive:
            for name in names:
                archive.writestr(zipfile.ZipInfo(f"{folder}/{name}"), files[name], zipfile.ZIP_DEFLATED)
    else:
        for name in names:
            with replacing(place / f"{name}.gz", "wb") as file:
                file.write(gzip.compress(files[name], mtime=0))
    print(f"{place}: {len(files)} files, {sum(map(len, files.values())):,} bytes, checked")


def as_json_lines(raw, source, by_hand):
    """The bytes of a table with tabs between its columns and a number in `label` -> a line of JSON a row."""
    try:
        text = io.StringIO(raw.decode("utf-8-sig"), newline="")
        rows = list(csv.DictReader(text, delimiter="\t", strict=True))
        lines = [json.dumps(row | {"label": int(row["label"])}) + "\n" for row in rows]
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        raise UserError(f"{source}: not a table with labels ({reason(error)}); {by_hand}")
    return "".join(lines).encode()


def difference(part, files):
    """The first difference of {name: bytes} from the expected files, as a message; None if there is none."""
    if not files:
        return f"{part.names} is not in it"
    rows = {name: len(raw.splitlines()) for name, raw in files.items()}
    if isinstance(part.rows, dict):
        for name, expected in part.rows.items():
            if rows.get(name) != expected:
                return f"{name} has {rows.get(name, 0):,} lines in place of {expected:,}"
    elif part.rows is not None and sum(rows.values()) != part.rows:
        return f"{len(files)} files with {sum(rows.values()):,} lines in place of {part.rows:,}"
    digest = hashlib.sha256(b"".join(files[name] for name in sorted(files))).hexdigest()
    if part.sha256 and digest != part.sha256:
        return f"the files have SHA-256 {digest[:12]}... in place of {part.sha256[:12]}..."


# ----------------------------------------------------------------------------------------------------
# Archives


def members(archive, source, part):
    """{name: bytes} of a part's files in a .zip or .tar.gz, given as an open file."""
    files, room = {}, part.size
    try:
        for path, open_member in entries(archive):
            if is_expected(path, part):
                with open_member() as member:
                    raw = member.read(room + 1)
                room -= len(raw)
                if room < 0:
                    raise ValueError(f"{path} is larger than expected")
                files[path.rpartition("/")[2]] = raw
    except Exception as error:  # a broken archive can raise many
        raise UserError(f"{source}: cannot be read ({reason(error)}); fetch it again")
    return files


def entries(file):
    """Yield (path, function that opens it) for each file in an open .zip or .tar.gz."""
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            for path in archive.namelist():
                yield path, partial(archive.open, path)
        return
    file.seek(0)
    unpacked = 0
    with tarfile.open(fileobj=file, mode="r:gz") as archive:
        for entry in archive:
            unpacked += entry.size
            if unpacked > LARGEST:
                raise ValueError(f"more than {LARGEST >> 20} MB once unpacked")
            if entry.isfile():
                yield entry.name, partial(archive.extractfile, entry)


def is_expected(path, part):
    """True if a path in an archive or on the hub, below whatever folders, is that of a part's file."""
    folder, _, pattern = part.names.rpartition("/")
    above, _, name = path.rpartition("/")
    wanted = not isinstance(part.rows, dict) or name in part.rows
    return wanted and f"/{above}".endswith(f"/{folder}") and fnmatchcase(name, pattern)


# ----------------------------------------------------------------------------------------------------
# The network


def hub(home, pattern, folder, by_hand):
    """Download files of owner/name@revision on the Hugging Face hub to a folder, with the hub's own library."""
    repo, _, revision = home.partition("@")
    try:
        from huggingface_hub import HfApi, snapshot_download  # comes with tokenizers

        which = {"repo_type": "dataset", "revision": revision or None}
        HfApi().repo_info(repo, **which)  # fails at once where the download would retry for half a minute
        snapshot_download(repo, **which, allow_patterns=pattern, local_dir=folder)
    except Exception as error:  # it has many
        why = reason(error).strip() or type(error).__name__
        why = why.splitlines()[0].removeprefix("Got: ")
        raise UserError(f"huggingface.co/datasets/{repo}: cannot be fetched ({why}); {by_hand}")


def fetch(url, by_hand):
    """Download a file of at most LARGEST bytes -> its bytes. UserError with the remedy `by_hand` if that fails."""
    print(f"fetching {url}")
    request = Request(url, headers={"User-Agent": "nanoRNN"})
    try:
        with urlopen(request, timeout=30) as answer:
            raw = answer.read(LARGEST + 1)
            if len(raw) > LARGEST:
                raise HTTPException(f"more than {LARGEST >> 20} MB")
            if answer.length:  # bytes that were promised and did not come
                raise HTTPException(f"the connection was cut after {len(raw):,} bytes")
            return raw
    except (OSError, HTTPException) as error:
        cause = getattr(error, "reason", None)  # urllib wraps an OSError
        why = reason(cause if isinstance(cause, OSError) else error)
        raise UserError(f"{url}: cannot be fetched ({why}); {by_hand}")
