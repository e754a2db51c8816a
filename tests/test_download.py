"""What is fetched is complete and checked; an archive gives the files expected of it and no more."""

import gzip
import hashlib
import http.server
import io
import json
import random
import re
import shutil
import subprocess
import tarfile
import threading
import zipfile
from collections import Counter
from fnmatch import fnmatchcase
from pathlib import Path
from types import SimpleNamespace

import data
import evaluate
import sample
import train
from conftest import ROOT, stories
from corpora import babylm, benchmarks, download, pile, shakespeare
from data import read_tokenizer
from support.settings import configure

import numpy as np
import pytest


class Home(http.server.BaseHTTPRequestHandler):
    """Serves `files`; `trouble`, a function of (handler, content), may answer in their place."""

    files, trouble, asked = {}, None, []

    def do_GET(self):
        self.asked.append(self.path)
        content = self.files.get(self.path)
        if self.trouble:
            self.trouble(content)
        elif content is None:
            self.answer(404, b"no such file")
        else:
            self.answer(200, content)

    def answer(self, status, content, promised=None):
        self.send_response(status)
        self.send_header("Content-Length", str(promised or len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args):
        pass


@pytest.fixture
def home(tmp_path, monkeypatch):
    """home("/a", content, trouble) -> the address of a file that is served; home.asked: the paths asked for."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NANORNN_DATA", raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    handler = type("Handler", (Home,), {"files": {}, "asked": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()

    def serve(path, content, trouble=None):
        handler.files[path], handler.trouble = content, trouble
        return f"http://127.0.0.1:{server.server_port}{path}"

    serve.asked = handler.asked
    yield serve
    server.shutdown()
    server.server_close()


CONTENT = random.Random(0).randbytes(300_000)


def fetch(url):
    return download.fetch(url, "fetch it by hand")


def left():
    """The files below the current folder."""
    return sorted(str(path) for path in Path().rglob("*") if path.is_file())


def test_a_file_is_fetched_with_one_request(home):
    assert fetch(home("/a", CONTENT)) == CONTENT and home.asked == ["/a"]


def test_a_cut_connection_is_one_line(home, refusal):
    url = home("/a", CONTENT, lambda handler, content: handler.answer(200, content[:4000], len(content)))
    said = refusal(fetch, url)
    assert said == f"{url}: cannot be fetched (the connection was cut after 4,000 bytes); fetch it by hand\n"


@pytest.mark.parametrize("code", [404, 503])
def test_an_error_of_the_server_is_one_line(home, refusal, code):
    url = home("/a", CONTENT, lambda handler, content: handler.answer(code, b"an error"))
    said = refusal(fetch, url)
    assert re.fullmatch(rf"{url}: cannot be fetched \(HTTP Error {code}: [\w ]+\); fetch it by hand\n", said)


def test_a_download_that_goes_on_for_ever_is_left(home, refusal, monkeypatch):
    monkeypatch.setattr(download, "LARGEST", 1 << 20)
    url = home("/a", bytes(3 << 20))
    assert refusal(fetch, url) == f"{url}: cannot be fetched (more than 1 MB); fetch it by hand\n"


def test_without_a_network_there_is_one_line(home, refusal):
    said = refusal(fetch, "http://127.0.0.1:9/a")
    assert said == "http://127.0.0.1:9/a: cannot be fetched (Connection refused); fetch it by hand\n"


# ----------------------------------------------------------------------------------------------------
# Archives

PART = download.Part("set/set.zip", "http://127.0.0.1:9/a", "inner/*.jsonl", 2, 20)
GOOD = {"top/inner/a.jsonl": b'{"a": 1}\n', "top/inner/b.jsonl": b'{"b": 2}\n', "top/README.md": b"hello\n"}


def zipped(files):
    """{name: bytes} -> a .zip."""
    with io.BytesIO() as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, raw in files.items():
                archive.writestr(zipfile.ZipInfo(name), raw, zipfile.ZIP_DEFLATED)
        return file.getvalue()


def tarred(files, **links):
    """{name: bytes}, name=target -> a .tar.gz."""
    with io.BytesIO() as file:
        with tarfile.open(fileobj=file, mode="w:gz", compresslevel=1) as archive:
            for name, raw in files.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(raw)
                archive.addfile(entry, io.BytesIO(raw))
            for name, target in links.items():
                entry = tarfile.TarInfo(f"inner/{name}.jsonl")
                entry.type, entry.linkname = tarfile.SYMTYPE, target
                archive.addfile(entry)
        return file.getvalue()


def lying_zip():
    """One file says that it holds 1 byte, and holds more."""
    raw = bytearray(zipped(GOOD | {"inner/c.jsonl": b"x" * 10_000}))
    for header, offset in ((b"PK\1\2", 24), (b"PK\3\4", 22)):
        place = raw.rindex(header) + offset
        raw[place : place + 4] = (1).to_bytes(4, "little")
    return bytes(raw)


def altered_zip():
    """One file has another checksum than the archive says of it."""
    raw = bytearray(zipped(GOOD))
    for header, offset in ((b"PK\1\2", 16), (b"PK\3\4", 14)):
        raw[raw.index(header) + offset] ^= 1
    return bytes(raw)


def huge_tar():
    """Nothing but a header, by which 10 GB follow."""
    entry = tarfile.TarInfo("inner/c.jsonl")
    entry.size = 10 << 30
    return gzip.compress(entry.tobuf())


BOMB = GOOD | {"inner/c.jsonl": bytes(5_000_000)}
BROKEN = {  # an archive, and words of what is said
    "a zip cut short": (zipped(GOOD)[:-30], "not a gzip file"),
    "a zip that lies about a size": (lying_zip(), "Bad CRC-32 for file 'inner/c.jsonl'"),
    "a zip with a wrong checksum": (altered_zip(), "Bad CRC-32 for file 'top/inner/a.jsonl'"),
    "a zip with a bomb": (zipped(BOMB), "inner/c.jsonl is larger than expected"),
    "a tar cut short": (tarred(GOOD)[:150], "ended before the end-of-stream"),
    "a tar of 10 GB by its header": (huge_tar(), "cannot be read (more than 19 MB once unpacked)"),
    "a tar with a bomb": (tarred(BOMB), "inner/c.jsonl is larger than expected"),
    "a tar with a link among its files": (
        tarred({"inner/b.jsonl": b"1\n"}, a="/etc/passwd"), "1 files with 1 lines in place of 2"
    ),
    "plain text": (b"<html>log in first</html>", "not a gzip file"),
    "nothing": (b"", "empty file"),
}  # fmt: skip


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """archive(bytes) takes the set from such an archive, fetched by hand."""
    folder = tmp_path / "work place"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(download, "SETS", {"set": [PART]})
    monkeypatch.setattr(download, "LARGEST", 20_000_000)

    def call(raw):
        Path("by hand").write_bytes(raw)
        download.obtain("set", "by hand")

    return call


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_of_an_archive_the_expected_files_are_taken(archive, pack):
    archive(pack(GOOD))
    with zipfile.ZipFile("data/set/set.zip") as found:
        assert found.namelist() == ["inner/a.jsonl", "inner/b.jsonl"]
        assert found.read("inner/b.jsonl") == GOOD["top/inner/b.jsonl"]
    first = Path("data/set/set.zip").read_bytes()
    Path("data/set/set.zip").unlink()
    archive(pack(dict(reversed(GOOD.items()))))
    assert Path("data/set/set.zip").read_bytes() == first, "the same files give the same bytes"


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_names_in_an_archive_do_not_say_where_to_write(archive, tmp_path, pack):
    """Absolute or leading above, a name is only compared with what is expected."""
    archive(pack({"../inner/a.jsonl": b"1\n", "/inner/b.jsonl": b"2\n", "../../outside": b"3\n"}))
    files = [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()]
    assert sorted(files) == ["work place/by hand", "work place/data/set/set.zip"]
    with zipfile.ZipFile("data/set/set.zip") as found:
        assert found.namelist() == ["inner/a.jsonl", "inner/b.jsonl"]


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_archive_is_one_line_and_writes_nothing(archive, refusal, tmp_path, name):
    raw, words = BROKEN[name]
    said = refusal(archive, raw)
    assert said.startswith("by hand: ") and words in said and said.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "work place", tmp_path / "work place" / "by hand"]


def test_an_archive_that_unpacks_for_ever_is_left_in_time(archive, refusal, monkeypatch):
    monkeypatch.setattr(download, "LARGEST", 1_000_000)
    assert "more than 0 MB once unpacked" in refusal(archive, tarred(GOOD | {"unexpected": bytes(5_000_000)}))


def test_a_set_that_lacks_a_line_is_refused(archive, refusal):
    said = refusal(archive, zipped({"inner/a.jsonl": b"1\n"}))
    assert said == "by hand: 1 files with 1 lines in place of 2; is it http://127.0.0.1:9/a?\n"


# ----------------------------------------------------------------------------------------------------
# Benchmarks from their homes


def repository(zip_of_files, folders):
    """A .tar.gz as GitHub makes it of a repository that holds such files, and others."""
    files = {"repo-1/README.md": b"read me\n", "repo-1/raw_results/summary.jsonl": b"{}\n"}
    for path in zip_of_files:
        with zipfile.ZipFile(path) as archive:
            files |= {f"repo-1/{name}": archive.read(name) for name in archive.namelist()}
    assert {name.split("/")[1] for name in files} >= set(folders)
    return tarred(files)


@pytest.fixture
def hub(monkeypatch):
    """hub.files: {path: bytes} on the Hugging Face hub, whatever the data set; hub.asked: [(name, revision)]."""
    import huggingface_hub

    there = SimpleNamespace(files={}, asked=[])

    def snapshot_download(repo, repo_type, revision, allow_patterns, local_dir):
        there.asked.append((repo, revision))
        patterns = [allow_patterns] if isinstance(allow_patterns, str) else allow_patterns
        for name, raw in there.files.items():
            if any(fnmatchcase(name, pattern) for pattern in patterns):
                path = Path(local_dir, name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(raw)

    def repo_info(self, repo, **options):
        if not there.files:
            raise ConnectionError("Got: no network\nand more about it")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", repo_info)
    return there


def rehome(monkeypatch, name, url):
    """Let the archives of a benchmark come from url."""
    for part in download.SETS[name]:
        if part.home.startswith("http"):
            monkeypatch.setattr(part, "home", url)


def unzipped(path, above=""):
    with zipfile.ZipFile(path) as archive:
        return {above + name: archive.read(name) for name in archive.namelist()}


def test_blimp_comes_whole(home, hub, real_data, monkeypatch, capsys):
    """From GitHub as a .tar.gz, and BabyLM's forms of it from the hub; a second call fetches nothing."""
    rehome(monkeypatch, "blimp", home("/blimp", repository([real_data("blimp/blimp.zip")], ["data"])))
    hub.files |= unzipped(real_data("babylm_eval/blimp_filtered.zip"), "evaluation_data/full_eval/")
    hub.files |= unzipped(real_data("babylm_eval/blimp_fast.zip"), "evaluation_data/fast_eval/")
    data.main(["blimp"])
    assert left() == [f"data/{part.place}" for part in sorted(download.SETS["blimp"], key=lambda x: x.place)]
    assert [revision for _, revision in hub.asked] == [download.EVALS.partition("@")[2]] * 2
    for part in download.SETS["blimp"]:
        assert unzipped(Path("data", part.place)) == unzipped(real_data(part.place))
    capsys.readouterr()
    data.main(["blimp"])
    assert capsys.readouterr().out.count("already there") == 3
    assert len(home.asked) == 1 and len(hub.asked) == 2


def test_bear_comes_whole_from_one_archive_fetched_once(home, real_data, monkeypatch):
    packed = repository([real_data("bear/BEAR.zip"), real_data("bear/BEAR-big.zip")], ["BEAR", "BEAR-big"])
    rehome(monkeypatch, "bear", home("/bear", packed))
    data.main(["bear"])
    assert left() == ["data/bear/BEAR-big.zip", "data/bear/BEAR.zip"] and len(home.asked) == 1
    for name in ("bear/BEAR.zip", "bear/BEAR-big.zip"):
        assert unzipped(Path("data", name)) == unzipped(real_data(name))


def test_an_archive_fetched_by_hand_needs_no_network(home, real_data):
    Path("bear.tar.gz").write_bytes(
        repository([real_data(f"bear/{x}.zip") for x in ("BEAR", "BEAR-big")], ["BEAR"])
    )
    data.main(["bear", "bear.tar.gz"])
    assert unzipped("data/bear/BEAR.zip") == unzipped(real_data("bear/BEAR.zip")) and home.asked == []


def test_one_altered_byte_is_refused_and_the_set_fetched_anew(home, real_data, monkeypatch, refusal):
    sets = [real_data("bear/BEAR.zip"), real_data("bear/BEAR-big.zip")]
    good = repository(sets, ["BEAR"])
    name = "repo-1/BEAR/P103.jsonl"
    files = unzipped(sets[0], "repo-1/") | unzipped(sets[1], "repo-1/")
    url = home("/bear", tarred(files | {name: files[name].replace(b"Q", b"R", 1)}))
    rehome(monkeypatch, "bear", url)
    said = refusal(data.main, ["bear"])
    assert re.match(rf"{url}: the files have SHA-256 .* by hand, and then: python data.py bear FILE\n", said)
    assert left() == []
    home("/bear", good)
    data.main(["bear"])
    assert left() == ["data/bear/BEAR-big.zip", "data/bear/BEAR.zip"]


def test_the_supplement_comes_from_the_hub(home, hub, real_data):
    for name, above in (("supplement_filtered", "full_eval"), ("supplement_fast", "fast_eval")):
        for file in real_data(f"babylm_eval/{name}").iterdir():
            hub.files[f"evaluation_data/{above}/{name}/{file.stem}"] = gzip.decompress(file.read_bytes())
    data.main(["supplement"])
    for file in real_data("babylm_eval").glob("supplement_*/*"):
        ours = Path("data/babylm_eval", file.parent.name, file.name)
        assert gzip.decompress(ours.read_bytes()) == gzip.decompress(file.read_bytes())
    assert sum(len(x.records) for x in benchmarks.read_benchmark("supplement").values()) == 5218
    assert len(left()) == 10


def test_entity_tracking_and_reading_come_from_the_hub(home, hub, real_data):
    full = "evaluation_data/full_eval/"
    hub.files |= unzipped(real_data("babylm_eval/entity_tracking.zip"), full)
    table = gzip.decompress(real_data("babylm_eval/reading/reading_data.csv.gz").read_bytes())
    hub.files[f"{full}reading/reading_data.csv"] = table
    data.main(["entity_tracking"])
    data.main(["reading"])
    assert left() == ["data/babylm_eval/entity_tracking.zip", "data/babylm_eval/reading/reading_data.csv.gz"]
    theirs = unzipped(real_data("babylm_eval/entity_tracking.zip"))
    assert unzipped("data/babylm_eval/entity_tracking.zip") == theirs
    assert gzip.decompress(Path("data/babylm_eval/reading/reading_data.csv.gz").read_bytes()) == table


def test_comps_and_wug_come_from_the_hub(home, hub, real_data, refusal):
    full = "evaluation_data/full_eval/"
    adjectives = real_data("babylm_eval/wug/wug_adj_nominalization.jsonl.gz").read_bytes()
    hub.files[f"{full}wug_adj_nominalization/wug_adj_nominalization.jsonl"] = gzip.decompress(adjectives)
    hub.files[f"{full}wug_past_tense/wug_past_tense.jsonl"] = b"{}\n" * 50
    hub.files |= {f"{full}comps/{name}": b"{}\n" * n for name, n in download.COMPS.items()}
    data.main(["wug"])
    data.main(["comps"])
    places = [f"comps/{name}.gz" for name in sorted(download.COMPS)]
    places += ["wug/wug_adj_nominalization.jsonl.gz", "wug/wug_past_tense.jsonl.gz"]
    assert left() == sorted(f"data/babylm_eval/{place}" for place in places)
    Path("data/babylm_eval/comps/comps_wugs.jsonl.gz").unlink()
    hub.files[f"{full}comps/comps_wugs.jsonl"] = b"{}\n"
    assert ": comps_wugs.jsonl has 1 lines in place of 13,896; fetch " in refusal(data.main, ["comps"])


def piqa(rows, solutions):
    """A file of GlobalPIQA as its authors publish it, with a quotation mark and a line break in its fields."""
    names = ["prompt", *(f"solution{i}" for i in range(solutions)), "label", "example_id"]
    lines = ["\t".join(names)]
    for row in range(rows):
        lines.append("\t".join(['"To ""open""\na jar,"', *["twist"] * solutions, "1", f"eng_{row}"]))
    return ("\n".join(lines) + "\n").encode()


def test_global_piqa_comes_as_lines_of_json(home, hub):
    hub.files["data/parallel_eng_latn.tsv"] = piqa(103, 4)
    hub.files["data/nonparallel_eng_latn.tsv"] = piqa(100, 2)
    data.main(["global_piqa"])
    folder = "data/babylm_eval/global_piqa/global_piqa_"
    assert left() == [f"{folder}nonparallel.jsonl.gz", f"{folder}parallel.jsonl.gz"]
    lines = gzip.decompress(Path(f"{folder}parallel.jsonl.gz").read_bytes()).splitlines()
    record = json.loads(lines[102])
    assert len(lines) == 103 and (record["label"], record["example_id"]) == (1, "eng_102")
    assert record["prompt"] == 'To "open"\na jar,' and record["solution3"] == "twist"


@pytest.mark.parametrize(
    "table, problem",
    [
        (piqa(102, 4), "1 files with 102 lines in place of 103"),
        (piqa(103, 4).replace(b"label", b"answer"), "not a table with labels ('label')"),
        (piqa(103, 4).replace(b"\t1\t", b"\tx\t"), "not a table with labels (invalid literal"),
        (piqa(103, 4)[:-40] + b'"', "not a table with labels ("),
    ],
)
def test_another_table_is_one_line_and_writes_nothing(home, hub, refusal, table, problem):
    hub.files["data/parallel_eng_latn.tsv"] = table
    said = refusal(data.main, ["global_piqa"])
    assert said.startswith(f"huggingface.co/datasets/mrlbenchmarks/global-piqa-parallel: {problem}")
    assert said.endswith("global_piqa_parallel.jsonl.gz, each row a line of JSON\n") and said.count("\n") == 1
    assert left() == []


@pytest.fixture
def glue(home, hub, monkeypatch):
    """GLUE with as many lines as it has, nothing on them: seven tasks on the hub, four in an archive."""
    ours, theirs = ({name: b"{}\n" * n for name, n in part.rows.items()} for part in download.SETS["glue"])
    hub.files |= {f"evaluation_data/full_eval/glue_filtered/{name}": raw for name, raw in ours.items()}
    rehome(
        monkeypatch, "glue", home("/?zip=", zipped({f"glue_filtered/{x}": theirs[x] for x in theirs} | GOOD))
    )
    return hub


def test_glue_comes_from_its_two_homes(glue):
    data.main(["glue"])
    tasks = "boolq cola mnli mrpc multirc qnli qqp rte sst2 wsc".split()
    names = {f"{task}.{split}" for task in tasks for split in ("train", "valid")} | {"mnli-mm.valid"}
    assert left() == sorted(f"data/glue/{name}.jsonl.gz" for name in names)


def test_of_an_archive_by_hand_what_is_not_in_it_is_said(glue, capsys):
    (theirs,) = (part for part in download.SETS["glue"] if part.home.startswith("http"))
    content = {f"glue_filtered/{name}": b"{}\n" * n for name, n in theirs.rows.items()}
    Path("by hand.zip").write_bytes(zipped(content | GOOD))
    data.main(["glue", "by hand.zip"])
    assert left() == ["by hand.zip", *sorted(f"data/glue/{name}.gz" for name in theirs.rows)]
    assert "data/glue: not of by hand.zip; to fetch it: python data.py glue\n" in capsys.readouterr().out


def test_glue_with_a_line_too_few_is_refused_by_name(glue, refusal):
    name = "evaluation_data/full_eval/glue_filtered/rte.valid.jsonl"
    glue.files[name] = glue.files[name][:-3]
    said = refusal(data.main, ["glue"])
    assert "BabyLM-2026-Strict-Evals: rte.valid.jsonl has 138 lines in place of 139; fetch " in said
    assert said.endswith("put it at data/glue\n") and left() == []


def test_ewok_stays_locked_and_the_way_to_the_rest_is_told(home, hub, real_data, refusal):
    hub.files["evaluation_data/fast_eval/ewok_fast.zip"] = real_data("ewok/ewok_fast.zip").read_bytes()
    said = refusal(data.main, ["ewok"])
    assert said == download.GATED + "\n" and said.count("\n") == 1
    assert "huggingface.co/datasets/ewok-core/ewok-core-1.0" in said and "data/ewok/ewok-core-1.0.zip" in said
    assert left() == ["data/ewok/ewok_fast.zip"]
    assert Path("data/ewok/ewok_fast.zip").read_bytes() == real_data("ewok/ewok_fast.zip").read_bytes()
    Path("data/ewok/ewok-core-1.0.zip").write_bytes(b"")
    data.main(["ewok"])  # now it has both


def test_the_words_of_ewok_come_out_of_the_pipelines_archive(home, monkeypatch):
    words = "the\nis\ncafé\n".encode()
    rehome(monkeypatch, "ewok_vocabulary", home("/pipeline", tarred({"x-main/ewok/vocab.txt": words} | GOOD)))
    data.main(["ewok_vocabulary"])
    assert left() == ["data/ewok/vocab.txt"] and Path("data/ewok/vocab.txt").read_bytes() == words


def test_what_is_in_the_shared_folder_is_used_as_it_is(home, hub, real_data, monkeypatch, capsys):
    monkeypatch.setenv("NANORNN_DATA", str(real_data("")))
    for name in ("blimp", "supplement", "ewok", "bear", "shakespeare"):
        data.main([name])
    assert capsys.readouterr().out.count("already there") == 8 and not hub.asked
    assert sorted(path.name for path in Path("data").iterdir()) == ["shakespeare"]
    assert Path("data/shakespeare/meta.json").exists()


def test_the_table_puts_benchmarks_where_evaluation_looks_for_them():
    places = {part.place for parts in download.SETS.values() for part in parts}
    looked_for = {place for place in benchmarks.BENCHMARKS.values() if not place.startswith("toyland")}
    inside = {
        "babylm_eval/global_piqa",
        "babylm_eval/reading",
        "babylm_eval/wug",
    }  # of which some name the files
    places, looked_for = ({folder_of(place, inside) for place in some} for some in (places, looked_for))
    assert places - {"glue", "ewok/vocab.txt"} == looked_for - {"ewok/ewok-core-1.0.zip"}


def folder_of(place, folders):
    """The one of the folders that holds a place, or else the place itself."""
    return next((folder for folder in folders if f"{place}/".startswith(f"{folder}/")), place)


@pytest.mark.parametrize(
    "name", [*download.SETS, "babylm-10m", "babylm-100m", "pile-10m", "pile-100m", "shakespeare"]
)
def test_without_a_network_one_line_says_what_to_fetch_and_where_to_put_it(
    home, hub, refusal, monkeypatch, name
):
    for parts in download.SETS:
        rehome(monkeypatch, parts, "http://127.0.0.1:9/a")
    monkeypatch.setattr(shakespeare, "URL", "http://127.0.0.1:9/a")
    said = refusal(data.main, [name])
    assert said.count("\n") == 1 and re.search(
        r"cannot be fetched \((no network|Connection refused)\); ", said
    )
    assert re.search(rf"python data.py {name} FILE|by hand(,| and put it( zipped)?) (at|into) data/", said)
    assert left() == []


# ----------------------------------------------------------------------------------------------------
# Corpora


@pytest.fixture
def little_babylm(home, hub, monkeypatch):
    """BabyLM in small: the same names, and counts of words that are right."""
    table = {}
    for seed, (name, (where, size, ending, _)) in enumerate(babylm.BABYLM.items()):
        texts = {x + ending: stories(5, seed=10 * seed + i) for i, x in enumerate(babylm.DOMAINS)}
        texts = {x: texts[x].replace("\n\n", "\n") for x in texts} if name == "babylm-10m" else texts
        if name != "babylm-100m":  # the hub of these tests knows a name only once
            hub.files |= {x: texts[x].encode() for x in texts}
        table[name] = (where, size, ending, tuple(len(text.split()) for text in texts.values()))
    monkeypatch.setattr(babylm, "BABYLM", table)
    return hub


def test_a_run_that_names_babylm_gets_it(little_babylm):
    """Six domains to train on, the organisers' dev files to validate; <s> at least every 20 lines."""
    folder = data.find("babylm-10m")
    meta = data.read_meta(folder)
    assert folder == Path("data/babylm-10m") and meta["train"]["words"] == sum(babylm.BABYLM["babylm-10m"][3])
    assert meta["val"]["words"] == sum(babylm.BABYLM["babylm-dev"][3]) and meta["val"]["documents"] == 6 * 5
    assert meta["train"]["documents"] == 6 * 2  # of 30 lines without an empty one: 20 and 10
    assert data.find("babylm-10m") == folder and len(little_babylm.asked) == 2, "fetched once, two folders"


def test_a_text_with_a_word_too_few_is_refused(little_babylm, refusal):
    name = "childes.train.txt"
    little_babylm.files[name] = b" ".join(little_babylm.files[name].split()[:-1])
    words = babylm.BABYLM["babylm-10m"][3][1]
    said = refusal(data.main, ["babylm-10m"])
    assert said.startswith(f"data/babylm-10m/{name}: {words - 1:,} words in place of {words:,}; delete it")
    assert not Path("data/babylm-10m/meta.json").exists()


DOMAINS = [*pile.QUOTAS, "ArXiv", "Github"]
DOMAINS.remove("Others")


def documents_of_the_pile(count, seed=0):
    """Lines of a made-up Pile: each word names its domain and its document; some texts are empty or odd."""
    r = random.Random(seed)
    for i in range(count):
        domain = r.choice(DOMAINS)
        word = f"{domain.replace(' ', '_')}:{seed}:{i}"
        text = r.choice(["\n\n", " ", "\r\n \n\t"]).join([word] * r.choice([0, 1, 7, 30]))
        yield json.dumps(
            {"text": text + r.choice(["", "\n\n", "\u2028\u2028"]), "meta": {"pile_set_name": domain}}
        )


@pytest.fixture
def little_pile(home, monkeypatch):
    """A Pile of two files, with quotas of about a tenth of it -> counts the words of a sample by domain."""
    quotas = {domain: (137 + 10 * i, 200) for i, domain in enumerate(pile.QUOTAS)}
    monkeypatch.setattr(pile, "QUOTAS", quotas)
    Path("a.jsonl").write_text("\n".join(documents_of_the_pile(700)) + "\n\n")
    Path("b.jsonl.gz").write_bytes(gzip.compress("\n".join(documents_of_the_pile(700, seed=1)).encode()))

    def count(path):
        domains = (word.split(":")[0].replace("_", " ") for word in Path(path).read_text().split())
        return Counter(domain if domain in pile.QUOTAS else "Others" for domain in domains)

    return count


def test_the_sample_of_the_pile_has_its_quotas_to_the_word(little_pile):
    data.main(["pile-10m", "a.jsonl", "*.gz", "--seed=3"])
    assert little_pile("data/pile-10m/pile.txt") == {
        domain: words for domain, (words, _) in pile.QUOTAS.items()
    }
    text = Path("data/pile-10m/pile.txt").read_text()
    documents = [set(document.split()) for document in text.strip().split("\n\n")]
    assert all(len(words) == 1 for words in documents), "an empty line ends a document, and nothing else does"
    assert len(set.union(*documents)) == len(documents), "each is drawn once"
    meta = data.read_meta(data.find("pile-10m"))
    assert meta["train"]["documents"] + meta["val"]["documents"] == len(documents)
    assert meta["train"]["words"] + meta["val"]["words"] == sum(words for words, _ in pile.QUOTAS.values())


def test_the_same_seed_draws_the_same_bytes_and_another_others(little_pile):
    files, texts = [Path("a.jsonl"), Path("b.jsonl.gz")], []
    for seed in (1, 1, 2):
        texts.append(pile.sample("pile-10m", files, seed).read_bytes())
    assert texts[0] == texts[1] != texts[2]


def test_every_document_is_drawn_as_often_as_any_other(home):
    """40 of one word each, quota 10: over 400 seeds each is in about a quarter of the samples (5 sigma: 43)."""
    line = '{"text": "word", "meta": {"pile_set_name": "FreeLaw"}}\n'
    Path("a.jsonl").write_text(line * 40)
    drawn = Counter()
    for seed in range(400):
        drawn.update(
            number for _, number in pile.choose([Path("a.jsonl")], {"FreeLaw": 10}, random.Random(seed))
        )
    assert sum(drawn.values()) == 4000 and all(abs(drawn[number] - 100) < 43 for number in range(1, 41))


def test_too_little_of_the_pile_is_said_by_domain(little_pile, refusal, monkeypatch):
    monkeypatch.setattr(pile, "QUOTAS", pile.QUOTAS | {"FreeLaw": (10**6, 1), "Others": (10**6, 1)})
    said = refusal(data.main, ["pile-10m", "a.jsonl"])
    assert re.fullmatch(
        r"too little of the Pile in a.jsonl: FreeLaw [\d,]+ of 1,000,000 words, Others .*\n", said
    )
    assert not list(Path("data").iterdir())


@pytest.mark.parametrize(
    "line", ["{", "[]", '{"text": 3, "meta": {"pile_set_name": "x"}}', '{"text": "x"}', "[" * 9999]
)
def test_a_line_that_is_no_document_is_named(little_pile, refusal, line):
    with open("a.jsonl", "a") as file:
        file.write(line)
    said = refusal(data.main, ["pile-10m", "a.jsonl"])
    assert re.match(r"a\.jsonl:702: not a document of the Pile \(", said) and said.count("\n") == 1
    assert not list(Path("data").iterdir())


def test_a_pile_packed_by_zstd_is_read(little_pile, refusal):
    if not shutil.which("zstd"):
        pytest.skip("no zstd here")
    subprocess.run(["zstd", "-q", "a.jsonl", "-o", "c.jsonl.zst"], check=True)
    subprocess.run(["gzip", "-k", "a.jsonl"], check=True)
    texts = [
        pile.sample("pile-10m", [Path(x)]).read_bytes() for x in ("a.jsonl", "a.jsonl.gz", "c.jsonl.zst")
    ]
    assert texts[0] == texts[1] == texts[2]
    Path("c.jsonl.zst").write_bytes(Path("c.jsonl.zst").read_bytes()[:-100])
    said = refusal(pile.sample, "pile-10m", [Path("c.jsonl.zst")])
    assert said.startswith("c.jsonl.zst") and said.endswith("is the file whole?\n") and said.count("\n") == 1


# ----------------------------------------------------------------------------------------------------
# Shakespeare, a token per character

PLAY = "First Citizen:\nBefore we proceed any further, hear me speak.\n\nAll:\nSpeak, speak.\n\n" * 40


@pytest.fixture
def play(tmp_path, monkeypatch):
    """A short play that counts as Shakespeare's here, as bytes; nothing but the current folder has data."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NANORNN_DATA", raising=False)
    monkeypatch.setattr(shakespeare, "BYTES", len(PLAY))
    monkeypatch.setattr(shakespeare, "SHA256", hashlib.sha256(PLAY.encode()).hexdigest())
    monkeypatch.setattr(shakespeare, "URL", "http://127.0.0.1:9/input.txt")  # where nobody answers
    return PLAY.encode()


def read_play():
    """(text of train.bin, text of val.bin, number of characters known) of data/shakespeare."""
    tokenizer = read_tokenizer("data/shakespeare")
    parts = [np.fromfile(f"data/shakespeare/{split}.bin", dtype="<u2").tolist() for split in ("train", "val")]
    return *map(tokenizer.decode, parts), tokenizer.get_vocab_size()


def test_shakespeare_has_the_papers_counts(tmp_path, monkeypatch, real_data):
    """65 characters, 1,003,854 to train on and 111,540 to validate: every one as it was."""
    monkeypatch.chdir(tmp_path)
    file = real_data("tinyshakespeare.txt.gz")
    data.main(["shakespeare", str(file)])
    train, val, size = read_play()
    assert (len(train), len(val), size) == (1_003_854, 111_540, 65)
    assert (train + val).encode() == gzip.decompress(file.read_bytes())
    meta = json.loads(Path("data/shakespeare/meta.json").read_text())
    assert meta["vocab_size"] == 65 and meta["train"]["tokens"] == 1_003_854


@pytest.mark.parametrize(
    "place", ["given", "given.gz", "data/tinyshakespeare.txt", "data/tinyshakespeare.txt.gz", "far"]
)
def test_shakespeare_is_found_where_it_is(play, monkeypatch, place):
    path = Path("far/tinyshakespeare.txt" if place == "far" else place)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(gzip.compress(play) if path.suffix == ".gz" else play)
    if place == "far":
        monkeypatch.setenv("NANORNN_DATA", "far")
    data.main(["shakespeare"] + [place] * place.startswith("given"))
    assert "".join(read_play()[:2]) == PLAY
    assert data.find("shakespeare") == Path("data/shakespeare")


def test_shakespeare_is_fetched_once(home, play, monkeypatch, capsys):
    monkeypatch.setattr(shakespeare, "URL", home("/input.txt", play))
    assert data.find("shakespeare") == Path("data/shakespeare")
    assert Path("data/tinyshakespeare.txt").read_bytes() == play and "".join(read_play()[:2]) == PLAY
    data.main(["shakespeare"])
    assert home.asked == ["/input.txt"] and "train on it: python " in capsys.readouterr().out


@pytest.mark.parametrize("change", [lambda x: x[:-1], lambda x: x + b"x", lambda x: x.replace(b"F", b"f")])
def test_another_text_is_one_line_and_leaves_nothing(home, play, monkeypatch, refusal, change):
    monkeypatch.setattr(shakespeare, "URL", home("/input.txt", change(play)))
    said = refusal(data.find, "shakespeare")
    assert said.count("\n") == 1 and said.startswith(shakespeare.URL + ": ")
    assert said.endswith(f"fetch {shakespeare.URL} by hand and put it at data/tinyshakespeare.txt\n")
    assert left() == []


@pytest.mark.parametrize("mixer", ["mingru", "attention"])
def test_a_run_of_characters_trains_evaluates_and_keeps_its_line_breaks(play, mixer, capsys):
    """From the text alone, by the settings of config/, in miniature; evaluated on its perplexity alone."""
    Path("data").mkdir()
    Path("data/tinyshakespeare.txt").write_bytes(play)
    config = {"mingru": "mingru", "attention": "gpt"}[mixer]
    small = (
        "n_layer=1 d_model=16 n_head=2 d_mlp=32 context=64 batch_size=16 max_steps=60 warmup=5 dropout=0.0"
    )
    flags = [f"--{flag}" for flag in small.split()] + [
        "--learning_rate=2e-2",
        "--device=cpu",
        "--dtype=float32",
    ]
    s = configure(train.Settings(), [str(ROOT / f"config/{config}_shakespeare.py"), *flags, "--run=play"])
    train.main(s)
    results = evaluate.main(evaluate.Settings(run="out/play", device="cpu"))
    assert results["benchmarks"] == {} and results["perplexity"] < 20
    capsys.readouterr()
    sample.main(sample.Settings(run="out/play", prompt="All:\nSp", tokens=50, temperature=0.0, device="cpu"))
    said = capsys.readouterr().out
    assert said.startswith("All:\nSp") and len(said) == len("All:\nSp") + 50 + len("\n")


def test_a_character_that_shakespeare_does_not_use_is_read_as_a_space(play):
    Path("play.txt").write_bytes(play)
    tokenizer = read_tokenizer(shakespeare.make(file="play.txt"))
    ids = tokenizer.encode("An é, a </s>:\n\n 🙂", add_special_tokens=False).ids
    assert tokenizer.decode(ids) == "An  , a   s :\n\n  "
    assert tokenizer.decode([data.start_of(tokenizer)]) == "\n"
