"""Full and read-only disks: one line, and once there is room the same command continues. Long with --long."""

import os
import re
import shutil
import subprocess
import sys
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import data
import evaluate
import train
from conftest import TINY, bits
from corpora import toyland
from support.console import run_script
from support.files import damage
from support.settings import UserError

import pytest
import torch
from processes import fork, lines_of_text, needs_fork, unfinished
from test_kills import WHOLE
from test_strangers import gzip_bomb, write_pairs

PAGE = 4096


class SmallDisk:
    """A file system of its own that can be full to the page, or read-only."""

    def __init__(self, folder, size):
        self.folder, self.ballast = folder, folder / "ballast"
        self.mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs")

    def mount(self, *how):
        done = subprocess.run(["mount", *how, str(self.folder)], capture_output=True, text=True)
        if done.returncode:
            raise OSError(done.stderr)

    def leave(self, room):
        """Fill all but so many bytes."""
        self.ballast.unlink(missing_ok=True)
        left = os.statvfs(self.folder)
        with open(self.ballast, "wb") as file:
            os.posix_fallocate(file.fileno(), 0, left.f_bavail * left.f_frsize - room)

    def read_only(self, yes=True):
        self.mount("-o", f"remount,{'ro' if yes else 'rw'}")


@pytest.fixture
def small_disk(prepared, tmp_path, monkeypatch):
    """The current folder: a copy of the prepared one on a disk of 24 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        disk = SmallDisk(folder, "24m")
    except OSError as error:
        pytest.skip(f"no small disk: mount is not permitted ({error})")
    try:
        shutil.copytree(prepared, folder / "work")
        monkeypatch.chdir(folder / "work")
        monkeypatch.delenv("NANORNN_DATA", raising=False)
        yield disk
    finally:
        monkeypatch.undo()
        subprocess.run(["umount", "-l", str(folder)], check=True)


def make_corpus():
    with pytest.MonkeyPatch.context() as patch:  # seconds less
        patch.setattr(toyland, "minimal_pairs", lambda: {"a": [{"sentence_good": "a", "sentence_bad": "b"}]})
        toyland.write("data/toyland", words=3000)


JOBS = {  # name -> what writes, the folders that it writes to, the files that it makes
    "train.py": (
        lambda: train.main(train.Settings(**TINY | dict(run="new", max_steps=4, eval_every=2))),
        "out/new",
        WHOLE - {"previous.pt"},
    ),
    "evaluate.py": (
        lambda: evaluate.main(evaluate.Settings(run="out/tiny", tasks="pairs.jsonl", device="cpu")),
        "out/tiny",
        {"pairs_pairs.jsonl.part", "pairs_pairs.jsonl", "results.json"},
    ),
    "data.py": (
        lambda: data.prepare("new", ["text.txt"], data.Settings(vocab_size=300, val_share=0.1)),
        "data/new",
        {"train.bin", "val.bin", "tokenizer.json", "meta.json"},
    ),
    "toyland.py": (make_corpus, "data/toyland", {"train.txt", "val.txt", "a.jsonl"}),
}


def attempt(job, capsys):
    """-> the file that could not be written, as the one line names it; None if all could."""
    capsys.readouterr()
    try:
        job()
        return None
    except UserError as error:
        said = lines_of_text(capsys.readouterr().err) + [str(error)]
        assert len(said) == 1, said
    known = re.fullmatch(r"(\S+): not written after [\d,]+ bytes \((.+)\); what was there is kept.*", said[0])
    assert known and known[2] in ("No space left on device", "Read-only file system"), said
    assert not unfinished()
    for file in Path("out").rglob("*.pt"):
        assert not damage(file)
    return Path(known[1])


def content(folder):
    """The files of a folder, checkpoints by what they hold; but the times of a run, which are never the same."""
    files = [file for file in sorted(Path(folder).rglob("*")) if file.is_file()]
    files = [file for file in files if file.name != "times.jsonl"]
    read = {".pt": lambda file: bits(torch.load(file, weights_only=True))}
    return {str(file): read.get(file.suffix, Path.read_bytes)(file) for file in files}


def done_before(name, job, folder):
    """Its files when nothing is in the way; then they are taken away again."""
    write_pairs("pairs.jsonl", 400, paradigms=4)
    shutil.copytree("out/tiny", "tiny before")
    job()
    made = content(folder)
    shutil.rmtree(folder)
    if folder == "out/tiny":
        shutil.copytree("tiny before", "out/tiny")
    return made


@pytest.mark.parametrize("name", JOBS)
def test_a_full_disk_is_one_line_and_the_same_command_continues(small_disk, times, figure, capsys, name):
    """The room is changed page by page, so that every file is in turn the one that does not fit."""
    job, folder, files = JOBS[name]
    reference = done_before(name, job, folder)
    rooms = range(0, 400 * PAGE, PAGE)
    refused, continued, named = 0, 0, set()
    for room in times([0, 5 * PAGE], rooms):
        shutil.rmtree(folder, ignore_errors=True)
        if folder == "out/tiny":
            shutil.copytree("tiny before", "out/tiny")
        small_disk.leave(room)
        file = attempt(job, capsys)
        small_disk.ballast.unlink()
        if file is None:
            break
        named.add(file.name)
        refused += 1
        assert attempt(job, capsys) is None
        continued += content(folder) == reference
    last = {"learning_curve.svg", "results.json"}  # these have the room of what was removed before them
    assert named >= times(set(), files - last), files - named
    figure(f"full disk: {name}", continued, refused, "one clear line; with room the same command continues")


@pytest.mark.parametrize("name", JOBS)
def test_a_disk_that_turns_read_only_is_one_line(small_disk, times, figure, capsys, name):
    """At the first file that is opened for writing, at the second, ..."""
    job, folder, files = JOBS[name]
    reference = done_before(name, job, folder)
    refused, continued, named = 0, 0, set()
    for count in times([1, 3], range(1, 100)):
        shutil.rmtree(folder, ignore_errors=True)
        if folder == "out/tiny":
            shutil.copytree("tiny before", "out/tiny")
        with read_only_at(count, small_disk) as happened:
            file = attempt(job, capsys)
        small_disk.read_only(False)
        if file is None:
            if not happened:
                break
            continue  # busy: another file was open for writing, and the disk stayed as it was
        named.add(file.name)
        refused += 1
        assert attempt(job, capsys) is None
        continued += content(folder) == reference
    assert named >= times(set(), files - {"val.bin"}), files - named
    figure(f"read-only disk: {name}", continued, refused, "one clear line; once writable the same continues")


watching = []  # [how many more files, the disk, what has happened]; an audit hook cannot be taken away


def watch(event, args):
    if event == "open" and watching and str(args[1])[0] in "wa" and "work" in str(Path(args[0]).absolute()):
        watching[0] -= 1
        if watching[0] == 0:
            count, disk, happened = watching
            watching.clear()
            happened.append(True)
            try:
                disk.read_only()
            except OSError:
                pass


@contextmanager
def read_only_at(count, disk):
    """The disk is made read-only when the file of that number is opened for writing."""
    if watch not in hooks:
        hooks.append(watch)
        sys.addaudithook(watch)
    happened = []
    watching[:] = [count, disk, happened]
    yield happened
    watching.clear()


hooks = []


@needs_fork
def test_a_packed_text_that_grows_for_ever_leaves_memory_flat(small_disk, times, figure):
    """It ends when the disk is full, and needs little more memory than a small text."""
    megabytes, memory = times(4, 200), []
    Path("bomb.gz").write_bytes(gzip_bomb(megabytes))
    small_disk.leave(1 << 21)
    for text in ("text.txt", "bomb.gz"):
        command = ["text", "new", text, "--vocab_size=300"]
        process = fork(partial(run_script, lambda _: data.main(command)), small_disk.folder.parent / "said")
        memory.append(os.wait4(process.pid, 0)[2].ru_maxrss / 1024)
    complained = lines_of_text((small_disk.folder.parent / "said").read_text())
    assert len(complained) == 1 and "data/new/train.bin: not written" in complained[0], complained
    assert not unfinished() and memory[1] < memory[0] + 300
    note = f"{megabytes} MB: one clear line, memory flat"
    figure("a packed text that grows for ever", 1, 1, note, peak_megabytes=round(memory[1]))
