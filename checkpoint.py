"""
Checkpoints that survive kill -9, full disks and flipped bits.

A file is written beside its name, forced to disk, then renamed: at every moment either the old or the new one is
whole. Checkpoints are ordinary PyTorch files (zip archives) that carry the SHA-256 of their own bytes as the
archive's comment, and are loaded with weights_only=True, so nothing in them is executed.

    checkpoint.pt   the last one       previous.pt   the one before       best.pt   the best by validation
"""

import hashlib
import json
import os
import struct
import sys
from contextlib import contextmanager
from pathlib import Path

import torch

from config import fail, reason

DIGEST = 64  # letters in a SHA-256
SUFFIX = struct.pack("<H", DIGEST)  # a zip archive ends with the length of its comment, then the comment


def save(state, path, previous=None):
    """Write `state` (tensors, numbers, strings, lists, dicts) to `path`; what was there stays as `previous`."""
    with replacing(path, "wb", previous) as file:
        hashing = HashingFile(file)
        torch.save(state, hashing)
        file.seek(-len(SUFFIX), os.SEEK_END)  # the empty comment's length
        file.write(SUFFIX + hashing.digest.hexdigest().encode())


def read(path, device="cpu"):
    """
    A checkpoint file, or the last good one of a run folder -> (state, its path).
    A damaged file is named on stderr and the one before it is taken; with none left the script ends.
    """
    path = Path(path)
    candidates = [path / "checkpoint.pt", path / "previous.pt"] if path.is_dir() else [path]
    found = [candidate for candidate in candidates if candidate.exists()]
    for candidate in found:
        problem = damage(candidate)
        if not problem:
            return torch.load(candidate, map_location=device, weights_only=True), candidate
        print(f"{candidate} is damaged ({problem}) and is not used", file=sys.stderr)
    fail(f"{path}: no {'intact ' if found else ''}checkpoint here; train.py makes one: python train.py config/toy.py")


def damage(path):
    """What is wrong with a checkpoint file; None if its bytes are those that were written."""
    try:
        with open(path, "rb") as file:
            digest, left = hashlib.sha256(), os.path.getsize(path) - len(SUFFIX) - DIGEST
            while left > 0:
                piece = file.read(min(left, 1 << 20))
                digest.update(piece)
                left -= len(piece)
            digest.update(b"\0\0")  # where the comment's length was still 0
            whole = file.read() == SUFFIX + digest.hexdigest().encode()
    except OSError as error:
        return reason(error)
    return None if whole else "its SHA-256 does not match: cut short, altered, or not written by nanoRNN"


def read_log(folder):
    """The records of out/RUN/log.jsonl; a line cut short by a kill is left out."""
    path, records = Path(folder) / "log.jsonl", []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records


def fingerprint(path):
    """The SHA-256 that a checkpoint carries."""
    with open(path, "rb") as file:
        file.seek(-DIGEST, os.SEEK_END)
        return file.read().decode()


class HashingFile:
    """A file that hashes what passes through it."""

    def __init__(self, file):
        self.file, self.digest = file, hashlib.sha256()

    def write(self, data):
        self.digest.update(data)
        return self.file.write(data)

    def flush(self):
        self.file.flush()


@contextmanager
def replacing(path, mode="w", previous=None):
    """
    A new file that takes the place of `path` once it is complete and on disk; the old one can stay under another
    name. If writing fails, the old file is untouched, the new one removed, and the script ends with a line on why.
    """
    path = Path(path)
    unfinished = path.with_name(path.name + ".unfinished")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(unfinished, mode, **({} if "b" in mode else {"encoding": "utf-8", "newline": "\n"})) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if previous and path.exists():
            path.replace(previous)
        unfinished.replace(path)
        sync_folder(path.parent)
    except BaseException as error:
        size = unfinished.stat().st_size if unfinished.exists() else 0
        unfinished.unlink(missing_ok=True)
        if not isinstance(error, OSError):
            raise
        fail(f"{path}: could not be written after {size:,} bytes ({reason(error)}); what was there before is kept")


def sync_folder(folder):
    """Force a rename to disk, where the system lets a folder be opened."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)


# What a resumed run may set otherwise than before: how long, where and how often.
MAY_CHANGE = {"epochs", "max_steps", "accumulate", "device", "compile", "log_every", "eval_every", "save_every", "fresh", "run"}


# ----------------------------------------------------------------------------------------------------
# A run: what is saved, logged and continued


class Run:
    """The model, its optimizer, how far they are, and the folder out/RUN that they are kept in."""

    def __init__(self, s, device, dtype, steps, blocks, corpus):
        self.s, self.device, self.dtype, self.steps, self.blocks = s, device, dtype, steps, blocks
        self.folder = Path("out") / s.run
        torch.manual_seed(s.seed)
        self.model = LanguageModel(s).to(device, torch.float64 if dtype == torch.float64 else torch.float32)
        self.optimizer = make_optimizer(self.model, s)
        self.scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
        self.step, self.evaluated, self.best = 0, -1, None
        self.unchecked = []  # (step, loss, gradient norm) that nobody has looked at yet
        if s.fresh and World.rank == 0:
            for name in ("checkpoint.pt", "previous.pt", "best.pt", "log.jsonl", "results.json"):
                (self.folder / name).unlink(missing_ok=True)
        if not s.fresh and any((self.folder / name).exists() for name in ("checkpoint.pt", "previous.pt")):
            self.resume()
        if World.rank == 0:
            self.prepare_folder(corpus)
        million = sum(p.numel() for p in self.model.parameters()) / 1e6
        say(f"{s.mixer}, {million:.1f}M parameters, {str(dtype)[6:]} on {device}, step {self.step:,} of {steps:,}")

    def resume(self):
        """Take up the last checkpoint, if it is of the same settings."""
        saved, path = checkpoint.read(self.folder, self.device)
        changed = [
            f"{name}: {saved['settings'].get(name)!r} then, {value!r} now"
            for name, value in asdict(self.s).items()
            if name not in MAY_CHANGE and saved["settings"].get(name) != value
        ]
        if changed:
            fail(f"{path} was made with other settings ({'; '.join(changed)}); set them back, or start anew with --fresh")
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.scaler.load_state_dict(saved["scaler"])
        self.step, self.evaluated, self.best = saved["step"], saved["evaluated"], saved["best"]
        if self.step >= self.steps:
            say(f"{self.folder} is done: {self.step:,} of {self.steps:,} steps. More: --max_steps=N; anew: --fresh")

    def prepare_folder(self, corpus):
        """Settings and tokenizer beside the checkpoints; a log that ends where the checkpoint does."""
        with checkpoint.replacing(self.folder / "settings.json") as file:
            file.write(json.dumps(asdict(self.s) | {"fresh": False}, indent=1) + "\n")
        with checkpoint.replacing(self.folder / "tokenizer.json") as file:
            file.write((corpus / "tokenizer.json").read_text(encoding="utf-8"))
        old = checkpoint.read_log(self.folder) if self.step else []
        with checkpoint.replacing(self.folder / "log.jsonl") as file:
            for record in old:
                if record["step"] <= (self.evaluated if "val_loss" in record else self.step):
                    file.write(json.dumps(record) + "\n")

    def due(self, every):
        """Whether something done `every` steps is due; 0 means at the end of each epoch. Always so at both ends."""
        epochs = [step * self.s.batch_size // self.blocks for step in (self.step - 1, self.step)]
        return self.step in (0, self.steps) or (self.step % every == 0 if every else epochs[0] < epochs[1])

    def save(self):
        """Write checkpoint.pt; the one before stays as previous.pt."""
        self.check_finite()
        if World.rank == 0:
            checkpoint.save(self.state(), self.folder / "checkpoint.pt", self.folder / "previous.pt")

    def state(self):
        """All that a resumed run needs; order of data and dropout follow from the step."""
        parts = {"model": self.model, "optimizer": self.optimizer, "scaler": self.scaler}
        place = {"step": self.step, "evaluated": self.evaluated, "best": self.best}
        return {"settings": asdict(self.s)} | {name: part.state_dict() for name, part in parts.items()} | place

    def log_step(self):
        """Log the last step's loss. Returns a line to show."""
        step, loss, norm = self.unchecked[-1]
        self.check_finite()
        (loss,) = sum_over_processes(loss.item() / World.size)
        rate = self.optimizer.param_groups[0]["lr"]
        self.log({"loss": loss, "grad_norm": norm.item(), "learning_rate": rate})
        return f"loss {loss:.3f}, lr {rate:.1e}"

    def log_evaluation(self, record):
        """Log an evaluation and keep the weights if they are the best so far. Returns a line to show."""
        score = -record["val_loss"]
        if self.s.best_by == "pairs":
            score = sum(scores["score"] for scores in record["pairs"].values()) / len(record["pairs"])
        self.evaluated = self.step
        if self.best is None or score > self.best:
            self.best = score
            if World.rank == 0:
                checkpoint.save(self.state(), self.folder / "best.pt")
        self.log(record)
        return f"val {record['val_loss']:.3f}" + "".join(f", {k} {v['score']:.1f} %" for k, v in record.get("pairs", {}).items())

    def log(self, record):
        if World.rank == 0:
            record = {"step": self.step, "epoch": self.step * self.s.batch_size / self.blocks} | record
            with open(self.folder / "log.jsonl", "a", encoding="utf-8", newline="\n") as file:
                file.write(json.dumps(record) + "\n")

    def check_finite(self):
        """End the run if a loss or gradient of the steps since the last look was not a number; nothing is saved."""
        for step, loss, norm in self.unchecked:
            if not (loss.isfinite() and (norm.isfinite() or self.scaler.is_enabled())):
                rate = learning_rate(step - 1, self.s, self.steps)
                last = self.folder / "checkpoint.pt"
                fail(
                    f"step {step}: the loss is {loss.item()}, the gradient's norm {norm.item()}, at learning rate {rate:.2g}. "
                    f"Lower learning_rate or grad_clip; {last if last.exists() else 'nothing'} is the last good checkpoint"
                )
        self.unchecked = []

    def autocast(self):
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype in (torch.bfloat16, torch.float16))

    def finish(self):
        """A picture of the log, and what to do next."""
        if World.rank == 0:
            from figures import learning_curve  # not above: matplotlib takes a second to load

            picture = learning_curve(self.folder)
            say(f"{self.folder}: learning curve in {picture}; next: python evaluate.py {self.folder}")
        if World.size > 1:
            dist.destroy_process_group()


# ----------------------------------------------------------------------------------------------------
# Many processes, and stopping them all at one step


class World:
    """The processes that torchrun started; alone, one of one."""

    rank, local_rank, size = (int(os.environ.get(name, value)) for name, value in (("RANK", 0), ("LOCAL_RANK", 0), ("WORLD_SIZE", 1)))


def sum_over_processes(*numbers):
    """The sum of each number over all processes; also makes them wait for each other."""
    if World.size == 1:
        return numbers
    total = torch.tensor(numbers, dtype=torch.float64)
    dist.all_reduce(total)
    return total.tolist()


class Stopped(Exception):
    """All processes have agreed to stop."""


class Stop:
    """While this is open, Ctrl-C and SIGTERM are noted, and check() raises Stopped in all processes at once."""

    def __enter__(self):
        self.asked = None  # when
        self.before = {number: signal.signal(number, self.ask) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def ask(self, number, frame):
        now = time.monotonic()
        if self.asked and number == signal.SIGINT and now - self.asked > 1:  # torchrun repeats the first at once
            raise KeyboardInterrupt
        self.asked = self.asked or now

    def check(self):
        if sum_over_processes(self.asked is not None)[0]:
            raise Stopped

    def __exit__(self, *error):
        for number, handler in self.before.items():
            signal.signal(number, handler)


def say(message):
    if World.rank == 0:
        tqdm.write(message)
