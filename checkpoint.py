"""
Runs that survive kill -9, full disks and flipped bits.

A file is written beside its name, forced to disk, then renamed: at every moment either the old or the new one
is whole. Checkpoints are ordinary PyTorch files (zip archives) that carry the SHA-256 of their own bytes as the
archive's comment, and are loaded with weights_only=True, so nothing in them is executed.

    checkpoint.pt   the last one       previous.pt   the one before       best.pt   the best by validation
    chck_10M.pt     the weights after 10 million words, where they are asked for
"""

import errno
import hashlib
import json
import math
import os
import signal
import struct
import sys
import time
from collections import defaultdict
from contextlib import contextmanager, suppress
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.distributed as dist
from tqdm import tqdm

from config import fail, reason

DIGEST = 64  # letters in a SHA-256
SUFFIX = struct.pack("<H", DIGEST)  # a zip archive ends with the length of its comment, then the comment


def save(state, path, previous=None):
    """Write `state` (tensors, numbers, strings, lists, dicts); what was at `path` stays as `previous`."""
    with replacing(path, "wb", previous) as file:
        hashing = HashingFile(file)
        try:
            torch.save(state, hashing)
        except RuntimeError as error:
            raise hashing.error or error  # a full disk, say, behind PyTorch's "unexpected pos"
        file.seek(-len(SUFFIX), os.SEEK_END)  # the empty comment's length
        file.write(SUFFIX + hashing.digest.hexdigest().encode())


def read(path):
    """
    A checkpoint file, or the last good one of a run folder -> (state, on the CPU, its path).
    A damaged file is named on stderr and the one before it is taken; with none left the script ends.
    """
    path = Path(path)
    candidates = [path / "checkpoint.pt", path / "previous.pt"] if path.is_dir() else [path]
    found = [candidate for candidate in candidates if candidate.exists()]
    for candidate in found:
        problem = damage(candidate)
        try:
            if not problem:
                return torch.load(candidate, map_location="cpu", weights_only=True), candidate
        except Exception as error:  # whatever PyTorch says to a stranger's file with a right digest
            problem = f"more than numbers and text, and nothing in a file is executed: {type(error).__name__}"
        print(f"{candidate} is damaged ({problem}) and is not used", file=sys.stderr)
    if found:
        fail(f"{path}: no intact checkpoint here; take best.pt if there is one, or train anew with --fresh")
    fail(f"{path}: no checkpoint here; make one: python train.py config/toy.py")


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


def fingerprint(path):
    """The SHA-256 that a checkpoint carries; of a damaged one, something else."""
    with open(path, "rb") as file:
        file.seek(max(0, os.path.getsize(path) - DIGEST))
        return file.read().decode("ascii", "replace")


class HashingFile:
    """A file that hashes what passes through it."""

    def __init__(self, file):
        self.file, self.digest, self.error = file, hashlib.sha256(), None

    def write(self, data):
        self.digest.update(data)
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self):
        self.file.flush()


@contextmanager
def replacing(path, mode="w", previous=None):
    """
    A new file that takes the place of `path` once it is complete and on disk; the old can stay as `previous`.
    If writing fails, the old file is untouched, the new one removed, and the script ends with a line on why.
    """
    path = Path(path)
    unfinished = path.with_name(path.name + ".unfinished")
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": "\n"}
    file = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(unfinished, mode, **text)
        yield file
        file.flush()
        os.fsync(file.fileno())
        file.close()
        if previous and path.exists():
            path.replace(previous)
        unfinished.replace(path)
        sync_folder(path.parent)
    except BaseException as error:
        if file:
            with suppress(OSError):  # what its buffer holds does not fit either
                file.close()
        size = unfinished.stat().st_size if unfinished.exists() else 0
        with suppress(OSError):  # on a disk that is read-only by now
            unfinished.unlink()
        if isinstance(error, OSError):
            not_written(path, size, error)
        raise


def append(path, record):
    """Add a line of JSON to a file; if that fails, the file stays as it was, and the script ends likewise."""
    size = path.stat().st_size if path.exists() else 0
    try:
        with open(path, "a", encoding="utf-8", newline="\n") as file:
            file.write(json.dumps(record) + "\n")
    except OSError as error:
        with suppress(OSError):
            os.truncate(path, size)
        not_written(path, size, error)


def not_written(path, size, error):
    """End the script."""
    full = error.errno in (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", None))  # Windows has none
    when = "there is room" if full else "files can be written there"
    kept = f"what was there is kept: once {when}, the same command continues"
    fail(f"{path}: not written after {size:,} bytes ({reason(error)}); {kept}")


@contextmanager
def alone_in(folder):
    """Hold a run's folder while this is open: two processes in it would mix their logs. Windows cannot."""
    handle = None
    if World.rank == 0 and find_spec("fcntl"):
        import fcntl

        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            fail(f"{folder}: another process is training there; wait until it ends, or set --run=NAME")
        except OSError:  # a network's file system may have no locks
            pass
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)  # as the end of the process does, kill -9 included


def sync_folder(folder):
    """Force a rename to disk, where the system lets a folder be opened."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)


# ----------------------------------------------------------------------------------------------------
# A run: what is saved, logged and continued

# What a run may set otherwise when it is continued: how long, where and how often.
MAY_CHANGE = {"run", "epochs", "max_steps", "accumulate", "device", "compile", "fresh"}
MAY_CHANGE |= {"log_every", "eval_every", "save_every", "checkpoints"}

# Words read, in millions, after which weights are kept, by the name that a submission gives them: chck_10M.
MILLION = 1_000_000
MARKS = {"babylm": (*range(1, 10), *range(10, 100, 10), *range(100, 1001, 100))}  # the challenge of 2025


def differences(then, now, may_change):
    """Settings that contradict those of before, in words; "" if none does."""
    changed = [x for x in then | now if x not in may_change and then.get(x) != now.get(x)]
    return "; ".join(f"{name} {then.get(name)!r} then, {now.get(name)!r} now" for name in changed)


class Diverged(SystemExit):
    """The end of a script whose loss, gradient or weights are not numbers; compare.py goes on with other runs."""


class Run:
    """A model in training, how far it is, and the folder out/RUN that it is kept in."""

    def __init__(self, s, model, optimizer, scaler, corpus, steps, blocks):
        """Fresh, or as the folder's last checkpoint says. `steps` in all, `blocks` in an epoch."""
        self.s, self.steps, self.blocks, self.folder = s, steps, blocks, Path("out") / s.run
        self.model, self.optimizer, self.scaler = model, optimizer, scaler
        self.device = model.embed.weight.device
        self.step, self.evaluated, self.best = 0, -1, None  # updates done, last one evaluated, best score
        self.saved = None  # the step and last evaluation in checkpoint.pt
        self.corpus = data_digest(corpus)
        self.marks = find_marks(s, corpus, blocks)
        self.unchecked = []  # (step, learning rate, losses, gradient norm) that nobody has looked at yet
        last, previous, best = (self.folder / f"{name}.pt" for name in ("checkpoint", "previous", "best"))
        kept = sorted(self.folder.glob("chck_*.pt"))
        fresh = s.fresh and not World.restarts
        taken = self.resume() if not fresh and (last.exists() or previous.exists()) else None
        if kept and not taken and not fresh:  # killed before the first checkpoint
            self.refuse_another_run(*read(kept[0]))
        wait_for_all()  # no file changes before all processes have read it
        if World.rank == 0:
            for file in [last, previous, best, *kept] * fresh + [*self.folder.glob("*.unfinished")]:
                file.unlink(missing_ok=True)
            if taken == previous and last.exists():  # the next save would keep it in place of the good one
                last.replace(self.folder / "damaged.pt")
            self.prepare_folder(corpus)

    def resume(self):
        """Take up the last checkpoint, if it is of the same settings. Returns its path."""
        saved, path = read(self.folder)
        self.refuse_another_run(saved, path)
        if not {"optimizer", "scaler", "evaluated", "best"} <= saved.keys():
            fail(f"{path}: holds weights alone, nothing to go on from; start anew with --fresh")
        for name in ("model", "optimizer", "scaler"):
            if saved[name]:  # the scaler's is empty unless it was used
                getattr(self, name).load_state_dict(saved[name])
        self.step, self.evaluated, self.best = saved["step"], saved["evaluated"], saved["best"]
        self.saved = self.step, self.evaluated
        return path

    def refuse_another_run(self, saved, path):
        """End the script if a checkpoint is of other settings or another corpus."""
        then, now = saved["settings"], asdict(self.s)
        same = {"teacher"} if then.get("teacher_is") == now.get("teacher_is") else set()  # by another path
        if listed := differences(then, now, MAY_CHANGE | same):
            fail(
                f"{path} was made with other settings ({listed}): set them back, or use --run=NAME or --fresh"
            )
        if saved.get("corpus") != self.corpus:
            fail(f"{path} is of another corpus by the name {self.s.corpus!r}: start anew with --fresh")

    def prepare_folder(self, corpus):
        """Settings and tokenizer beside the checkpoints, and a log that ends where the checkpoint does."""
        with replacing(self.folder / "settings.json") as file:
            file.write(json.dumps(asdict(self.s) | {"fresh": False}, indent=1) + "\n")
        with replacing(self.folder / "tokenizer.json") as file:
            file.write((corpus / "tokenizer.json").read_text(encoding="utf-8"))
        with replacing(self.folder / "log.jsonl") as file:
            for record in read_log(self.folder):
                if record["step"] <= (self.evaluated if "val_loss" in record else self.step):
                    file.write(json.dumps(record) + "\n")

    def due(self, every):
        """Whether it is time for what is done every so many steps; 0: after each epoch. Always so at the end."""
        epoch, before = (step * self.s.batch_size // self.blocks for step in (self.step, self.step - 1))
        return self.step >= self.steps or (self.step % every == 0 if every else epoch > before)

    def save(self):
        """Write checkpoint.pt; the one before stays as previous.pt."""
        self.check_finite()
        self.check_weights()
        if World.rank == 0:
            save(self.state(), self.folder / "checkpoint.pt", self.folder / "previous.pt")
        self.saved = self.step, self.evaluated
        wait_for_all()  # torchrun kills the one that saves soon after another has left

    def keep(self):
        """
        Write chck_1M.pt, say, if this is its step: the weights without the optimizer. It comes before all that
        saves the step, so the marks up to any step that a run goes on from are on disk. One that is whole stays.
        """
        for name in self.marks.get(self.step, ()):
            self.check_finite()
            self.check_weights()
            if World.rank == 0 and damage(self.folder / name):  # none yet, or not whole
                save(self.weights(), self.folder / name)
            wait_for_all()

    def state(self):
        """All that a continued run needs; the order of the data and dropout follow from the step."""
        parts = {name: getattr(self, name).state_dict() for name in ("optimizer", "scaler")}
        return self.weights() | parts | {"evaluated": self.evaluated, "best": self.best}

    def weights(self):
        """All that a model needs, and what it is of."""
        place = {"step": self.step, "corpus": self.corpus}
        return {"settings": asdict(self.s), "model": self.model.state_dict()} | place

    def log(self, record):
        """One line in log.jsonl: only what the next run with the same settings would log too, so no times."""
        if World.rank == 0:
            record = {"step": self.step, "epoch": self.step * self.s.batch_size / self.blocks} | record
            append(self.folder / "log.jsonl", record)

    def log_step(self):
        """Log the last update. Returns a line to show."""
        _, rate, losses, norm = self.unchecked[-1]
        self.check_finite()
        losses = sum_over_processes(*(x / World.size for x in losses.flatten().tolist()))
        losses = dict(zip(("loss", "ce", "kl"), losses))  # the last two where a teacher is listened to
        norm = norm.item() if norm.isfinite() else None  # none: a step that the scaler of float16 left out
        self.log(losses | {"grad_norm": norm, "learning_rate": rate})
        return ", ".join(f"{name} {losses[name]:.3f}" for name in losses) + f", lr {rate:.1e}"

    def log_evaluation(self, loss, accuracy, pairs):
        """
        Log the validation loss, {"tokens": per cent right, "sequences": ...} of a corpus of answers, and {task:
        {"score": ..., "subtasks": ...}}, if pairs are scored, with their macro score; keep the weights if they are
        the best. Returns a line to show.
        """
        self.check_weights()
        if not math.isfinite(loss):
            self.refuse(self.step, f"the validation loss is {loss}")
        scored = {"macro": macro_score(pairs), "pairs": pairs} if pairs else {}
        score = scored["macro"] if self.s.best_by == "pairs" else -loss
        self.evaluated = self.step
        if self.best is None or score > self.best:
            self.best = score
            if World.rank == 0:
                save(self.state(), self.folder / "best.pt")
        answers = {"accuracy": accuracy} if accuracy else {}
        self.log({"val_loss": loss} | answers | scored)
        best = best_evaluation(read_log(self.folder))
        scores = "".join(f", {name} right {accuracy[name]:.1f} %" for name in accuracy)
        scores += "".join(f", {task} {pairs[task]['score']:.1f} %" for task in pairs)
        macro = f", macro {scored['macro']:.1f} %" if len(pairs) > 1 else ""
        return f"val {loss:.3f}{scores}{macro}" + (f" (best: step {best['step']:,})" if best else "")

    def harvest(self):
        """What a run has brought besides its last weights, in lines."""
        best = best_evaluation(read_log(self.folder))
        if best:
            where = f"step {best['step']:,}, epoch {best['epoch']:.2f}"
            is_it = self.s.best_by == "pairs" and self.best == best["macro"]
            file = self.folder / "best.pt" if is_it else f"best.pt is the best by {self.s.best_by}"
            yield f"best macro score: {best['macro']:.1f} % at {where}; {file}"
        names = [name for step in sorted(self.marks) for name in self.marks[step]]
        kept = [name for name in names if (self.folder / name).exists()]
        if names:
            yield f"kept for BabyLM: {', '.join(kept) or f'none; {names[0]} is due at step {min(self.marks):,}'}"

    def check_finite(self):
        """End the script if a loss or gradient since the last look is not a number, before anything is saved."""
        # a float16 gradient may overflow: the scaler leaves out that step
        can = self.scaler.is_enabled()
        bad = [x for x in self.unchecked if not (x[2].isfinite().all() and (can or x[3].isfinite()))]
        if sum_over_processes(len(bad))[0]:  # the loss of one process is enough, for all end at one step
            if not bad:
                raise Diverged(2)  # another process says why
            step, rate, losses, norm = bad[0]
            loss = losses.flatten()[0].item()
            self.refuse(step, f"the loss is {loss:.4g}, the gradient's norm {norm.item():.4g}", rate)
        self.unchecked = []
        if self.scaler.is_enabled() and self.scaler.get_scale() < 1:
            fail(f"step {self.step}: float16 overflows at every scale; set dtype = 'float32'")

    def check_weights(self):
        """The same for the weights, of which a step need not use all."""
        for name, weight in self.model.named_parameters():
            if not weight.isfinite().all():
                self.refuse(self.step, f"{name} holds what is not a number")

    def refuse(self, step, what, rate=None):
        """End the script, with nothing saved."""
        last = self.folder / "checkpoint.pt"
        rate = self.optimizer.param_groups[0]["lr"] if rate is None else rate
        known = f"the last good checkpoint is {last if last.exists() else 'none yet'}"
        fail(
            f"step {step}: {what}, at a learning rate of {rate:.2g}. Lower it, or grad_clip; {known}",
            Diverged,
        )


def find_marks(s, corpus, blocks):
    """
    {step: [chck_1M.pt, ...]}: when each is due, at the step that ends nearest to so many words, so that ten epochs
    of 9,999,894 words come to 100M. Words are counted as shares of an epoch, which has `blocks` blocks.
    """
    words = json.loads((corpus / "meta.json").read_text(encoding="utf-8"))["train"]["words"]
    marks = defaultdict(list)
    for mark in MARKS.get(s.checkpoints, ()):
        step = mark * MILLION * blocks / (words * s.batch_size)
        marks[max(1, round(step))].append(f"chck_{mark}M.pt")
    return marks


def macro_score(pairs):
    """The unweighted mean over benchmarks: {task: {"score": per cent}} -> per cent."""
    return sum(task["score"] for task in pairs.values()) / len(pairs)


def best_evaluation(log):
    """The first of the records with the highest macro score; None if no pairs were scored."""
    return max((x for x in log if "macro" in x), key=lambda x: x["macro"], default=None)


def data_digest(corpus):
    """What a corpus is, wherever its files lie: its tokenizer, its counts, the digests of its sources."""
    meta = json.loads((corpus / "meta.json").read_text(encoding="utf-8"))
    parts = [(corpus / "tokenizer.json").read_text(encoding="utf-8"), meta["train"], meta["val"]]
    return hashlib.sha256(json.dumps(parts + sorted(meta["sources"].values())).encode()).hexdigest()


def read_log(folder):
    """The records of a run's log.jsonl, up to a line that is none, as one cut short by a kill."""
    path, records = Path(folder) / "log.jsonl", []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else []:
        try:
            record = json.loads(line)
            int(record["step"])
        except (ValueError, TypeError, KeyError, RecursionError):
            break
        records.append(record)
    return records


# ----------------------------------------------------------------------------------------------------
# Many processes, and stopping them all at one step


class World:
    """The processes that torchrun started; without it, one of one."""

    rank = int(os.environ.get("RANK", 0))
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    size = int(os.environ.get("WORLD_SIZE", 1))
    restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))  # by torchrun, after one was killed


def join(backend):
    """Meet the other processes, in a room of this restart's own: the last one's addresses lead nowhere."""
    store, rank, size = next(dist.rendezvous("env://"))
    store = dist.PrefixStore(f"restart {World.restarts}", store)  # github.com/pytorch/pytorch/issues/135712
    dist.init_process_group(backend, store=store, rank=rank, world_size=size)


def leave_group(result=None):
    """The last thing that all processes do together: from here on each is alone. Returns what came of it."""
    if World.size > 1:
        dist.destroy_process_group()
        World.size = 1
    return result


def sum_over_processes(*numbers):
    """The sum of each number over all processes."""
    if World.size == 1:
        return numbers
    total = torch.tensor(numbers, dtype=torch.float64)
    dist.all_reduce(total)
    return total.tolist()


def wait_for_all():
    """Return when every process has come here."""
    sum_over_processes(0)


def say(message):
    """A line on the screen, once, without breaking the progress bar."""
    if World.rank == 0:
        tqdm.write(message)


class Stopped(Exception):
    """All processes have agreed to stop."""


class Stop:
    """While this is open, Ctrl-C and SIGTERM are noted; check() raises Stopped in all processes at one step."""

    def __enter__(self):
        self.asked = None  # when
        numbers = {signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)}
        numbers -= {number for number in numbers if signal.getsignal(number) == signal.SIG_IGN}  # nohup
        self.before = {number: signal.signal(number, self.ask) for number in numbers}
        return self

    def ask(self, number, frame):
        now = time.monotonic()
        if self.asked and number == signal.SIGINT and now - self.asked > 1:  # torchrun repeats the first
            raise KeyboardInterrupt
        self.asked = self.asked or now

    def check(self):
        if sum_over_processes(self.asked is not None)[0]:
            raise Stopped

    def __exit__(self, *error):
        for number, handler in self.before.items():
            signal.signal(number, handler)
