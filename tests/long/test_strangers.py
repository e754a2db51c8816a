"""Files from strangers: nothing in them is executed, nothing written elsewhere. Long with --long."""

import gzip
import hashlib
import io
import json
import os
import pickle
import random
import shutil
import zipfile
from pathlib import Path

import data
import evaluate
import sample
import train
from support.files import SUFFIX, damage
from support.settings import UserError, configure

import torch
from processes import lines_of_text


def write_pairs(path, count, paradigms=1):
    """A file of minimal pairs."""
    with open(path, "w") as file:
        for i in range(count):
            pair = {"sentence_good": f"The cat sees {i} dogs.", "sentence_bad": f"dogs {i} the."}
            file.write(json.dumps(pair | {"UID": f"p{i % paradigms}"}) + "\n")


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
    body = raw[: -len(SUFFIX)]
    return body + SUFFIX + hashlib.sha256(body + b"\0\0").hexdigest().encode()


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
        with_another = ["data.py", "text", "new", "strange.txt", "text.txt"]
        status = 0 if kind == "depth" else 2  # brackets are text
        yield f"a text: {kind}", ["strange.txt"], raw, with_another, status
        yield f"a packed text: {kind}", ["strange.gz"], raw, ["data.py", "text", "new", "strange.gz"], 2
    calling = b"run = open('../executed', 'w')"
    yield "settings that import", ["strange.py"], code.encode(), ["train.py", "strange.py"], 2
    yield "settings that call", ["strange.py"], calling, ["train.py", "strange.py"], 2
    reading = [*scoring[:-1], "--tasks=pairs.zip"]
    above, absolute = "../outside.jsonl", str(Path("../outside.jsonl").resolve())
    yield "a zip that leads above", ["pairs.zip"], zipped(above, "../../outside.jsonl"), reading, 2
    yield "a zip that leads elsewhere", ["pairs.zip"], zipped(absolute), reading, 2
    yield "a zip with a link", ["pairs.zip"], zipped("a.jsonl", text="/etc/passwd", link=True), reading, 2
    yield "a zip that grows for ever", ["pairs.zip"], bomb(megabytes), reading, 2
    packed = [*scoring[:-1], "--tasks=pairs.jsonl.gz"]
    yield "pairs that grow for ever", ["pairs.jsonl.gz"], gzip_bomb(megabytes), packed, 2


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
    assert not damage("signed.pt")


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
        said = []
        try:
            MAINS[script](args)
            ended = 0
        except UserError as error:
            ended, said = 2, [str(error)]
        except Exception as error:
            ended = repr(error)
        said = lines_of_text(capsys.readouterr().err) + said
        named = sum("is not used" in line for line in said)  # each damaged file has a line
        lines = 1 + named if status else 0
        if ended != status or len(said) != lines:
            unclear.append((what, ended, said))
        harmless += outside(workplace) == before
    print(*unclear, sep="\n")
    clear = len(files) - len(unclear)
    figure("files from strangers", harmless, len(files), "nothing executed, nothing written outside")
    note = "one clear line; or read as text, or left out"
    figure("files from strangers, answered", clear, len(files), note)
