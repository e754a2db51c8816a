"""
What happens to machines and files, many times over: kill -9, damage, full disks, signals, numbers that are none,
files from strangers. `make test` tries a few of each; `make test-long` all, and keeps the figures for the README.
"""

import gzip
import hashlib
import io
import json
import math
import os
import pickle
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from conftest import ROOT, TINY, bits, contents, log, same, saved, stories

import checkpoint
import data
import evaluate
import sample
from corpora import toyland
import train
from support.settings import configure

# a run whose checkpoint of 40 MB takes a while to write; dropout on; over the ends of epochs
HEAVY = dict(
    d_model=256, n_head=4, d_mlp=768, n_layer=4, context=8, batch_size=8, dropout=0.1,
    max_steps=60, eval_every=9, save_every=2, learning_rate=1e-3,
)  # fmt: skip
WHOLE = {"checkpoint.pt", "previous.pt", "best.pt", "settings.json", "tokenizer.json", "log.jsonl"}
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")


def flags(settings):
    return [f"--{name}={value}" for name, value in settings.items()]


def launch(*command, launcher=()):
    """A script of ours as a user starts it, in the current folder."""
    command = [sys.executable, *launcher, str(ROOT / command[0]), *map(str, command[1:])]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(*command, launcher=()):
    process = launch(*command, launcher=launcher)
    said, complained = process.communicate(timeout=600)
    assert process.returncode == 0, complained
    return said


def wait_until(condition, process):
    """Look often; False if the process ended first."""
    while process.poll() is None:
        if condition():
            return True
        time.sleep(0.001)
    return False


def lines_of(run):
    path = Path("out", run, "log.jsonl")
    return path.read_bytes().count(b"\n") if path.exists() else 0


def being_saved(run, since):
    """Whether a checkpoint is being written that was begun after `since`."""
    try:
        return Path("out", run, "checkpoint.pt.unfinished").stat().st_mtime > since
    except OSError:
        return False


def all_finite(x):
    if isinstance(x, dict):
        return all(map(all_finite, x.values()))
    if isinstance(x, list):
        return all(map(all_finite, x))
    if isinstance(x, torch.Tensor):
        return bool(x.isfinite().all())
    return not isinstance(x, float) or math.isfinite(x)


def lines_of_text(said):
    """Without progress bars."""
    return [line for line in said.splitlines() if line.strip() and "%|" not in line]


def unfinished():
    return [str(path) for path in Path(".").rglob("*.unfinished")]


# ----------------------------------------------------------------------------------------------------
# kill -9


def kill_once(run, settings, r, aimed):
    """Kill a run at a random moment, or aimed inside a save -> whether it was killed, whether inside a save."""
    began = time.time()
    process = launch("train.py", "tiny.py", f"--run={run}", *flags(settings))
    if aimed or r.random() < 0.7:  # else: anywhere, also while it starts
        lines = lines_of(run) + r.randrange(1, 4)
        wait_until(lambda: lines_of(run) >= lines and being_saved(run, began) >= aimed, process)
        time.sleep(r.random() * (0.05 if aimed else 1))
    else:
        time.sleep(r.random() * 4)
    process.kill()
    process.communicate()
    return process.returncode == -signal.SIGKILL, being_saved(run, began)


def is_whole(run):
    """All checkpoints there are undamaged, and the one that loads is no older than the last finished save."""
    files = [file for file in Path("out", run).glob("*.pt") if file.name != "best.pt"]
    steps = [record["step"] for record in log(run) if "loss" in record]
    finished = (steps[-1] - 1) // 2 * 2 if steps else -1  # a step is taken after what came before was saved
    if finished < 0 and not files:
        return True
    return not any(map(checkpoint.damage, files)) and checkpoint.read(Path("out", run))[0]["step"] >= finished


def test_kill_9_at_any_moment_loses_nothing_that_was_saved(workplace, times, figure):
    """Runs killed again and again until their end; a third of the kills, at least, land inside the save."""
    settings = HEAVY | dict(max_steps=times(8, 60))
    finish("train.py", "tiny.py", "--run=never", *flags(settings))
    reference, r = contents("never"), random.Random(0)
    kills = inside = whole = whole_inside = ended = 0
    while kills < times(2, 50) or inside < times(1, 15):
        run = f"killed{ended}"
        killed, within = kill_once(run, settings, r, aimed=kills % 2)
        if killed:
            good = is_whole(run)
            kills, inside = kills + 1, inside + within
            whole, whole_inside = whole + good, whole_inside + (good and within)
        else:
            same(contents(run), reference)
            ended += 1
    finish("train.py", "tiny.py", f"--run=killed{ended}", *flags(settings))
    equal = sum(contents(f"killed{i}") == reference for i in range(ended + 1))
    for i in range(ended + 1):
        assert {file.name for file in Path("out", f"killed{i}").iterdir()} == WHOLE | {"learning_curve.svg"}
    note = "the restart loads a whole checkpoint, none older than the last finished save"
    figure("kill -9 of a run in training", whole, kills, note)
    figure("kill -9 inside the save", whole_inside, inside, note)
    figure(
        "runs killed again and again", equal, ended + 1, "at the end equal, to the bit, to one never killed"
    )


def children(process):
    """The processes that torchrun has started."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            pid, rest = stat.parent.name, stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(rest[1]) == process.pid and "--run=" in Path("/proc", pid, "cmdline").read_text():
            yield int(pid)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_torchrun_continues_a_run_whose_process_was_killed(workplace, times, figure):
    """One of two processes is killed, once or twice; --fresh counts for the first start only."""
    steps = times(10, 60)
    settings = HEAVY | dict(d_model=64, d_mlp=96, eval_every=7, max_steps=steps)
    finish("train.py", "tiny.py", "--run=never", *flags(settings), launcher=[*TORCHRUN, "--"])
    reference, r, runs, equal, kills = contents("never"), random.Random(0), times(1, 6), 0, 0
    for i in range(runs):
        launcher = [*TORCHRUN, "--max-restarts=3", "--"]
        command = "train.py", "tiny.py", f"--run=killed{i}", "--fresh", *flags(settings)
        process = launch(*command, launcher=launcher)
        for step in sorted(r.sample(range(2, steps - 4), 1 + i % 2)):
            if wait_until(lambda: lines_of(f"killed{i}") > step, process):
                victims = sorted(children(process))
                os.kill(r.choice(victims), signal.SIGKILL)
                kills += 1
                gone = lambda: not set(victims) & set(children(process))  # noqa: E731
                assert wait_until(gone, process)
        said, complained = process.communicate(timeout=600)
        assert process.returncode == 0, said + complained
        equal += contents(f"killed{i}") == reference
    figure("torchrun: one of two processes killed", equal, runs, "restarted; equal to the bit", kills=kills)


# ----------------------------------------------------------------------------------------------------
# Damaged files


STATE = {"step": 7, "weights": {"w": torch.arange(9000.0)}, "text": "a", "list": [1, 2.5, None]}


def flip_a_bit(raw, r):
    i = r.randrange(len(raw))
    return raw[:i] + bytes([raw[i] ^ 1 << r.randrange(8)]) + raw[i + 1 :]


def truncate(raw, r):
    return raw[: r.randrange(len(raw))]


def zero_a_block(raw, r):
    start = r.randrange(len(raw) - 4096)
    if not any(raw[start : start + 4096]):  # zero already: no damage
        return zero_a_block(raw, r)
    return raw[:start] + bytes(4096) + raw[start + 4096 :]


DAMAGE = {"flipped bits": flip_a_bit, "files cut short": truncate, "4 KiB blocks of zeros": zero_a_block}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(tmp_path, times, figure, capsys, kind):
    for step in (6, 7):
        checkpoint.save(STATE | {"step": step}, tmp_path / "checkpoint.pt", tmp_path / "previous.pt")
    file, r, refused, count = tmp_path / "checkpoint.pt", random.Random(0), 0, times(10, 100)
    raw = file.read_bytes()
    for _ in range(count):
        file.write_bytes(DAMAGE[kind](raw, r))
        state, path = checkpoint.read(tmp_path)
        named = capsys.readouterr().err.startswith(f"{file} is damaged")
        refused += named and path == tmp_path / "previous.pt" and state["step"] == 6
    figure(f"checkpoints with {kind}", refused, count, "refused by name, the one before is taken")


@pytest.mark.parametrize("kind", DAMAGE)
def test_all_scripts_go_on_from_the_checkpoint_before(workplace, tiny, capsys, kind):
    """train.py ends with what an undamaged run has; evaluate.py and sample.py work with what is left."""
    before, file, r = contents(), Path("out/tiny/checkpoint.pt"), random.Random(1)
    file.write_bytes(DAMAGE[kind](file.read_bytes(), r))
    write_pairs("pairs.jsonl", 2)
    for work in (
        lambda: evaluate.main(evaluate.Settings(run="out/tiny", tasks="pairs.jsonl", device="cpu")),
        lambda: sample.main(sample.Settings(run="out/tiny", tokens=2, device="cpu")),
        lambda: train.main(tiny()),
    ):
        work()
        assert f"{file} is damaged" in capsys.readouterr().err
    same(contents(), before)


def write_pairs(path, count, paradigms=1):
    pairs = [
        {
            "sentence_good": f"The cat sees {i} dogs.",
            "sentence_bad": f"dogs {i} the.",
            "UID": f"p{i % paradigms}",
        }
        for i in range(count)
    ]
    Path(path).write_text("".join(json.dumps(pair) + "\n" for pair in pairs))


# ----------------------------------------------------------------------------------------------------
# Files from strangers


class Malice:
    """Unpickled, it leaves a file named `executed` in the folder above."""

    def __reduce__(self):
        return os.system, ("touch ../executed",)


def with_code(write):
    buffer = io.BytesIO()
    write({"model": Malice(), "settings": {}}, buffer)
    return buffer.getvalue()


def with_digest(raw):
    """A zip archive with the digest that ours carry as its comment."""
    body = raw[: -len(checkpoint.SUFFIX)]
    return body + checkpoint.SUFFIX + hashlib.sha256(body + b"\0\0").hexdigest().encode()


def zipped(*names, text="[1]", link=False):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            info = zipfile.ZipInfo(name)
            info.external_attr = (0o120777 if link else 0o644) << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, text)
    return buffer.getvalue()


def bomb(megabytes):
    """A zip archive of a thousandth of the size, whose one member is so many megabytes of zeros."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("bomb.jsonl", "w", force_zip64=True) as file:
            for _ in range(megabytes):
                file.write(bytes(1 << 20))
    return buffer.getvalue()


def gzip_bomb(megabytes, text=b" ab cd"):
    """Megabytes of a text; members of a .gz may follow each other."""
    return gzip.compress(text * ((1 << 20) // len(text))) * megabytes


def strange_files(megabytes):
    """What to put where, and the command that is to read it."""
    code, r = "import os\nos.system('touch ../executed')\n", random.Random(0)
    torch_file, torch_old = with_code(torch.save), pickle.dumps(Malice())
    junk = {"a pickle": torch_old, "noise": r.randbytes(5000), "depth": b"[" * 100_000}
    training = ["train.py", "tiny.py", "--max_steps=31"]
    scoring = ["evaluate.py", "out/tiny", "--device=cpu", "--tasks=pairs.jsonl"]
    writing = ["sample.py", "out/tiny", "--device=cpu", "--tokens=2"]
    both = ["out/tiny/checkpoint.pt", "out/tiny/previous.pt"]
    for kind, raw in {"code": torch_file, "signed code": with_digest(torch_file), **junk}.items():
        for command in (training, scoring, writing):
            yield f"checkpoint.pt: {kind}, {command[0]}", both, raw, command, 2
        best = [[*command[:1], "out/tiny/best.pt", *command[2:]] for command in (scoring, writing)]
        for command in best:
            yield f"best.pt: {kind}, {command[0]}", ["out/tiny/best.pt"], raw, command, 2
    for kind, raw in junk.items():
        again = ["train.py", "out/tiny", "--fresh"]
        yield f"settings.json: {kind}", ["out/tiny/settings.json"], raw, again, 2
        yield f"log.jsonl: {kind}", ["out/tiny/log.jsonl"], raw, training, 0
        for name in ("meta.json", "tokenizer.json", "train.bin", "val.bin"):
            yield f"data's {name}: {kind}", [f"data/tiny/{name}"], raw, training, 2
        for name in ("results.json", "pairs_pairs.jsonl.part"):
            yield f"{name}: {kind}", [f"out/tiny/{name}"], raw, scoring, 0
        for name in ("pairs.jsonl", "pairs.zip", "pairs.jsonl.gz"):
            command = [*scoring[:-1], f"--tasks={name}"]
            yield f"{name}: {kind}", [name], raw, command, 2
        yield f"a settings file: {kind}", ["strange.py"], raw, ["train.py", "strange.py"], 2
        yield (
            f"a text: {kind}",
            ["strange.txt"],
            raw,
            ["data.py", "text", "new", "strange.txt", "text.txt"],
            0,
        )
        yield f"a packed text: {kind}", ["strange.gz"], raw, ["data.py", "text", "new", "strange.gz"], 2
    yield "settings that import", ["strange.py"], code.encode(), ["train.py", "strange.py"], 2
    yield (
        "settings that call",
        ["strange.py"],
        b"run = open('../executed', 'w')",
        ["train.py", "strange.py"],
        2,
    )
    reading = [*scoring[:-1], "--tasks=pairs.zip"]
    above, absolute = "../outside.jsonl", str(Path("../outside.jsonl").resolve())
    yield "a zip that leads above", ["pairs.zip"], zipped(above, "../../outside.jsonl"), reading, 2
    yield "a zip that leads elsewhere", ["pairs.zip"], zipped(absolute), reading, 2
    yield "a zip with a link", ["pairs.zip"], zipped("a.jsonl", text="/etc/passwd", link=True), reading, 2
    yield "a zip that grows for ever", ["pairs.zip"], bomb(megabytes), reading, 2
    yield (
        "pairs that grow for ever",
        ["pairs.jsonl.gz"],
        gzip_bomb(megabytes),
        [*reading[:-1], "--tasks=pairs.jsonl.gz"],
        2,
    )


MAINS = {
    "train.py": lambda args: train.main(configure(train.Settings(), args)),
    "evaluate.py": lambda args: evaluate.main(configure(evaluate.Settings(), args, word="run")),
    "sample.py": lambda args: sample.main(configure(sample.Settings(), args, word="run")),
    "data.py": lambda args: data.main(args),
}


def test_the_strange_files_would_do_harm(workplace):
    """To a reader that unpickles them: a control."""
    pickle.loads(pickle.dumps(Malice()))
    assert Path("../executed").exists()
    Path("signed.pt").write_bytes(with_digest(with_code(torch.save)))
    assert not checkpoint.damage("signed.pt")


def test_a_strange_tokenizer_in_a_run_is_one_line(workplace, refusal):
    Path("out/tiny/tokenizer.json").write_bytes(pickle.dumps(Malice()))
    said = refusal(sample.main, sample.Settings(run="out/tiny", device="cpu"))
    assert "out/tiny/tokenizer.json" in said and said.count("\n") == 1 and not Path("../executed").exists()


def outside(workplace):
    """Everything beside the workplace."""
    return {path for path in workplace.parent.rglob("*") if workplace not in (path, *path.parents)}


def test_files_from_strangers_execute_and_write_nothing(prepared, workplace, times, figure, capsys):
    """Each is one clear line and status 2, or else taken for the text that it is, or for no log and no results."""
    before, files = outside(workplace), list(strange_files(times(300, 4000)))
    files = files if times(0, 1) else random.Random(0).sample(files, 12) + files[-6:-1]
    harmless, unclear = 0, []
    for what, places, raw, (script, *args), status in files:
        shutil.rmtree(workplace / "out")
        shutil.copytree(prepared, workplace, dirs_exist_ok=True)
        write_pairs("pairs.jsonl", 4)
        for place in places:
            Path(place).write_bytes(raw)
        capsys.readouterr()
        try:
            MAINS[script](args)
            ended = 0
        except SystemExit as end:
            ended = end.code
        except Exception as error:
            ended = repr(error)
        said = lines_of_text(capsys.readouterr().err)
        lines = (
            1 + sum("is not used" in line for line in said) if status else 0
        )  # each damaged file has a line
        if ended != status or len(said) != lines:
            unclear.append((what, ended, said))
        harmless += outside(workplace) == before
    print(*unclear, sep="\n")
    clear = len(files) - len(unclear)
    figure("files from strangers", harmless, len(files), "nothing executed, nothing written outside")
    figure(
        "files from strangers, answered", clear, len(files), "one clear line; or read as text, or left out"
    )


def test_a_packed_text_that_grows_for_ever_leaves_memory_flat(small_disk, times, figure):
    """It ends when the disk is full, and needs little more memory than a small text."""
    megabytes, memory = times(8, 200), []
    Path("bomb.gz").write_bytes(gzip_bomb(megabytes))
    small_disk.leave(1 << 22)
    for text in ("text.txt", "bomb.gz"):
        process = launch("data.py", "text", "new", text, "--vocab_size=300")
        complained = lines_of_text(process.stderr.read())
        memory.append(os.wait4(process.pid, 0)[2].ru_maxrss / 1024)
    assert len(complained) == 1 and "data/new/train.bin: not written" in complained[0], complained
    assert not unfinished() and memory[1] < memory[0] + 300
    note = f"{megabytes} MB: one clear line, memory flat"
    figure("a packed text that grows for ever", 1, 1, note, peak_megabytes=round(memory[1]))


# ----------------------------------------------------------------------------------------------------
# Full and read-only disks


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
        WHOLE - {"previous.pt"} | {"learning_curve.svg"},
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
    """-> the file that could not be written, as the one line on stderr names it; None if all could."""
    capsys.readouterr()
    try:
        job()
        return None
    except SystemExit as end:
        said = lines_of_text(capsys.readouterr().err)
        assert end.code == 2 and len(said) == 1, said
    known = re.fullmatch(r"(\S+): not written after [\d,]+ bytes \((.+)\); what was there is kept.*", said[0])
    assert known and known[2] in ("No space left on device", "Read-only file system"), said
    assert not unfinished()
    for file in Path("out").rglob("*.pt"):
        assert not checkpoint.damage(file)
    return Path(known[1])


def content(folder):
    """The files of a folder; checkpoints by what they hold."""
    files = [file for file in sorted(Path(folder).rglob("*")) if file.is_file()]
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


# ----------------------------------------------------------------------------------------------------
# Signals


BUSY = dict(run="busy", max_steps=1_000_000)
MOMENTS = {  # when -> the command, what to wait for, and for how many seconds at most the signal then waits
    "start-up": (["train.py", "tiny.py", *flags(BUSY)], lambda: True, 2),
    "making data": (["train.py", "toy.py", *flags(BUSY)], lambda: Path("data/toyland").exists(), 5),
    "training": (["train.py", "tiny.py", *flags(BUSY)], lambda: lines_of("busy") > 3, 1),
    "validation": (
        ["train.py", "tiny.py", *flags(BUSY | dict(eval_every=1, eval_pairs="many.jsonl"))],
        lambda: Path("out/busy/log.jsonl").exists(),
        3,
    ),
    "saving": (
        ["train.py", "tiny.py", *flags(HEAVY | dict(save_every=1) | BUSY)],
        lambda: lines_of("busy") > 1 and being_saved("busy", 0),
        0.1,
    ),
    "evaluate.py": (
        ["evaluate.py", "out/tiny", "--tasks=many.jsonl"],
        lambda: Path("out/tiny/pairs_many.jsonl.part").exists(),
        2,
    ),
    "sample.py": (["sample.py", "out/tiny", "--tokens=1000000", "--temperature=0"], lambda: True, 4),
    "data.py": (["data.py", "text", "big", "big.txt", "--vocab_size=2000"], lambda: True, 4),
}


def catches_signals(process):
    """Whether the script has come to its first line. Before that, Python itself is starting."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    caught = int(re.search(r"SigCgt:\s*(\w+)", status)[1], 16)
    return caught >> (signal.SIGTERM - 1) & 1


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="looks into /proc")
@pytest.mark.parametrize("when", MOMENTS)
def test_signals_at_any_moment_end_with_one_line(workplace, times, figure, when):
    """Status 130; saved if there is what to save; nothing half-written; gone within five seconds."""
    command, ready, delay = MOMENTS[when]
    r, count, good, slowest = random.Random(0), times(when in ("start-up", "training", "data.py"), 6), 0, 0
    if not count:
        pytest.skip("with --long")
    shutil.copy(ROOT / "config" / "toy.py", "toy.py")
    write_pairs("many.jsonl", 120_000, paradigms=120)  # none of the jobs ends by itself
    Path("big.txt").write_text("".join(stories(400, seed) for seed in range(150)))
    for number in range(count):
        for made in ("out/busy", "data/toyland", "data/toy"):
            shutil.rmtree(made, ignore_errors=True)
        process = launch(*command)
        assert wait_until(lambda: catches_signals(process), process) and wait_until(ready, process)
        time.sleep(r.random() * delay)
        process.send_signal([signal.SIGTERM, signal.SIGINT][(number + len(when)) % 2])
        began = time.monotonic()
        said = "".join(process.communicate(timeout=60))
        slowest = max(slowest, time.monotonic() - began)
        lines = [line for line in said.splitlines() if "stopped" in line]
        assert process.returncode == 130 and len(lines) == 1 and "Traceback" not in said, said
        assert not unfinished()
        if lines[0].startswith("stopped at step"):
            assert f"stopped at step {saved(run='busy')['step']:,} of" in lines[0]
        assert lines[0].startswith("stopped at step") or when not in ("training", "validation", "saving"), (
            said
        )
        good += times(True, time.monotonic() - began < 5)
    figure(f"Ctrl-C and SIGTERM: {when}", good, count, "one line, 130, within 5 s", slowest=round(slowest, 1))


ASLEEP = f"""
import sys; sys.path.insert(0, {str(ROOT)!r})
import time, train
from support.settings import configure
from support.console import run_script
train.take_step = lambda *rest: print("asleep", flush=True) or time.sleep(60)
run_script(lambda args: train.main(configure(train.Settings(), args)))
"""


def test_a_second_ctrl_c_after_a_second_ends_at_once(workplace):
    """The first waits for a step that takes a minute."""
    Path("asleep.py").write_text(ASLEEP)
    process = launch(workplace / "asleep.py", "tiny.py", "--run=busy")
    while "asleep" not in process.stdout.readline():
        pass
    process.send_signal(signal.SIGINT)
    time.sleep(1.2)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30)[1].count("stopped") == 1 and process.returncode == 130


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="has no SIGHUP")
def test_a_run_started_by_nohup_goes_on_when_the_terminal_closes():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with checkpoint.Stop() as stop:
            signal.raise_signal(signal.SIGHUP)
            stop.check()
    finally:
        signal.signal(signal.SIGHUP, before)


STEPS = f"""
import os, sys; sys.path.insert(0, {str(ROOT)!r})
import checkpoint, train
from support.settings import configure
from support.console import run_script
save = checkpoint.Run.save
def save_and_tell(run):
    save(run)
    open("step of " + os.environ["RANK"], "w").write(str(run.step))
checkpoint.Run.save = save_and_tell
run_script(lambda args: train.main(configure(train.Settings(), args)))
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("whom", ["torchrun", "one of two"])
def test_a_signal_under_torchrun_stops_both_at_one_step(workplace, times, figure, whom):
    Path("steps.py").write_text(STEPS)
    together, count = 0, times(whom == "torchrun", 5)
    if not count:
        pytest.skip("with --long")
    for _ in range(count):
        shutil.rmtree("out/busy", ignore_errors=True)
        command = workplace / "steps.py", "tiny.py", *flags(BUSY)
        process = launch(*command, launcher=[*TORCHRUN, "--"])
        assert wait_until(lambda: lines_of("busy") > 5, process)
        target = process.pid if whom == "torchrun" else sorted(children(process))[-1]
        os.kill(target, signal.SIGTERM)
        said = process.communicate(timeout=120)[0]
        steps = {Path(f"step of {rank}").read_text() for rank in (0, 1)} | {str(saved(run="busy")["step"])}
        together += len(steps) == 1 and said.count("stopped at step") == 1
    figure(f"SIGTERM to {whom}", together, count, "both stop at one step, which is saved")


# ----------------------------------------------------------------------------------------------------
# Numbers that are none


class SpoiltLoss(torch.nn.Module):
    def __init__(self, model, run_at, value):
        super().__init__()
        self.inner, self.calls, self.at, self.value = train.NextToken(model), 0, run_at, value

    def forward(self, tokens, targets):
        self.calls += 1
        return self.inner(tokens, targets) * (self.value if self.calls == self.at else 1)


def spoil(run, where, value, tokens):
    """Before the seventh step."""
    embed, head = run.model.embed.weight, run.model.head.weight
    if where == "weight":
        head.data[3, 3] = value
    if where == "weight that no text uses":
        embed.data[0, 0] = value  # <pad>
    if where == "batch":
        embed.data[tokens[0, 0]] = value
    if where == "gradient":
        handle = embed.register_hook(lambda grad: handle.remove() or grad * value)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_numbers_that_are_none_stop_the_run(workplace, tiny, times, figure, refusal, monkeypatch, dtype):
    """NaN or infinity: one line with step, learning rate, last good checkpoint; what is on disk stays finite."""
    take_step, good, count = train.take_step, 0, 0
    places = ["weight", "weight that no text uses", "batch", "loss", "gradient"]
    for where in random.Random(dtype).sample(places, times(2, 5)):
        for value in (math.nan, math.inf)[: times(1, 2)]:
            for log_every in (1, 10)[: times(1, 2)]:

                def take_spoilt_step(run, module, autocast, blocks):
                    if run.step == 6:
                        spoil(run, where, value, blocks.rows(6 * 16, 16)[0])
                    take_step(run, module, autocast, blocks)

                monkeypatch.setattr(train, "take_step", take_spoilt_step)
                s = tiny(fresh=True, save_every=5, eval_every=5, log_every=log_every, dtype=dtype)
                at = 7 if where == "loss" else 0
                objective = lambda model: SpoiltLoss(model, at, value)  # noqa: E731
                count += 1
                if where == "gradient" and dtype == "float16":  # the scaler leaves out that step
                    train.main(s, objective)
                    good += saved()["step"] == 30 and all_finite(saved()) and all_finite(log())
                    continue
                said = refusal(train.main, s, objective)
                clear = re.search(
                    r"step (7|10): .* learning rate of [\d.e-]+\. .*out/tiny/checkpoint.pt\n", said
                )
                files = saved(), saved("best.pt"), log()
                good += bool(clear) and all(map(all_finite, files)) and files[0]["step"] == 5
                assert (
                    not math.isnan(sum(record["step"] for record in log()))
                    and max(r["step"] for r in log()) <= 10
                )
    left_out = "; a step whose gradient alone is spoilt is left out" * (dtype == "float16")
    note = "stopped; step, learning rate, last good checkpoint named; files finite" + left_out
    figure(f"NaN and infinity, {dtype}", good, count, note)


def test_a_run_in_float16_continues_to_the_bit(workplace, tiny):
    """With the scale of its gradients."""
    train.main(tiny(run="whole", dtype="float16", save_every=15))
    train.main(tiny(run="halves", dtype="float16", save_every=15))
    shutil.copy("out/halves/previous.pt", "out/halves/checkpoint.pt")
    assert saved(run="halves")["step"] == 15 and saved(run="halves")["scaler"]["_growth_tracker"] == 15
    train.main(tiny(run="halves", dtype="float16", save_every=15))
    same(contents("halves"), contents("whole"))
