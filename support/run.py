"""
A run: the folder out/RUN, what is saved in it, logged and resumed.

    checkpoint.pt   the last one       previous.pt   the one before       best.pt   the best by validation
    chck_10M.pt     the weights after 10 million words, where they are asked for
    damaged.pt      a checkpoint.pt that could not be read, where previous.pt took its place
    before_decay.pt with schedule = "wsd": from here the run is continued when it is made longer
    log.jsonl       losses and scores, the same whenever the run is repeated       times.jsonl   its speed
"""

import json
import math
import platform
import shlex
import time
from collections import defaultdict
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path

from data import data_digest, read_tokenizer
from model import Config, load
from support.files import append, damage, read, remove_unfinished, replacing, save
from support.parallel import gathered, own_part, shared
from support.processes import (
    from_all,
    from_first,
    rank,
    restarts,
    sum_over_processes,
    wait_for_all,
    world_size,
)
from support.settings import UserError, naming

# Settings that may change when a run is resumed: how long, where and how often.
MAY_CHANGE = {"run", "epochs", "max_steps", "accumulate", "device", "kernels", "compile", "fresh"}
MAY_CHANGE |= {"log_every", "eval_every", "eval_tokens", "save_every", "checkpoints"}
MAY_CHANGE |= {"parallel", "checkpoint_activations"}

DECAY = 0.2  # share of the steps, at the end, in which the learning rate of schedule = "wsd" falls
MILLION = 1_000_000
# Millions of words read after which checkpoints = "babylm" keeps the weights: BabyLM's rule of 2025.
MARKS = (*range(1, 10), *range(10, 100, 10), *range(100, 1001, 100))


def differences(then, now, may_change):
    """The settings that have changed since, in words; "" if none has."""
    changed = [x for x in then | now if x not in may_change and then.get(x) != now.get(x)]
    return "; ".join(f"{name} {then.get(name)!r} then, {now.get(name)!r} now" for name in changed)


class Diverged(UserError):
    """A loss, gradient or weight is NaN or inf; compare.py continues with its other runs."""


class Run:
    """A model in training, its progress, and its folder out/RUN."""

    def __init__(self, s, model, optimizer, scaler, corpus, blocks):
        """Start anew, or resume from the folder's last checkpoint. There are `blocks` blocks in an epoch."""
        self.s, self.blocks, self.folder = s, blocks, Path("out") / s.run
        self.model, self.optimizer, self.scaler = model, optimizer, scaler
        self.tokens_per_step = s.batch_size * s.context
        self.steps = self.planned = count_steps(asdict(s), blocks)  # now, and when it was last started
        self.device = model.embed.weight.device
        self.step, self.evaluated, self.best = 0, -1, None  # updates done, last one evaluated, best score
        self.saved = None  # the step and last evaluation in checkpoint.pt
        self.corpus, self.tokenizer = data_digest(corpus), read_tokenizer(corpus)
        self.marks = find_marks(s, corpus, blocks)
        self.unchecked = []  # (step, learning rate, losses, gradient norm), not yet checked for NaN and inf
        self.fresh = s.fresh and not restarts()
        self.taken = None  # the checkpoint that the first process has read
        if not self.fresh:
            self.refuse_elsewhere()
        self.load(shared(partial(self.find_start, corpus), self.tensors()))
        if rank() == 0:
            self.prepare_folder(corpus)
        self.clock = self.step, time.perf_counter()  # when the throughput was last measured
        self.began = self.clock[1]

    def refuse_elsewhere(self):
        """Raise UserError if this run lies on another machine: the first one would begin it anew."""
        there = (self.folder / "checkpoint.pt").exists()
        first, *others = from_all(platform.node() if there else None)
        for machine in others:
            if machine and not first:
                remedy = "start that one with --node_rank=0, copy the folder, or use --run=NAME or --fresh"
                raise UserError(f"{self.folder} is on {machine} and not on the first machine: {remedy}")

    def find_start(self, corpus):
        """
        Return what to begin with: the content of the folder's last checkpoint, else the weights of another run,
        else {}. UserError if the folder's run was made with other settings.
        """
        if not self.fresh:
            kept = sorted(self.folder.glob("chck_*.pt"))
            if any((self.folder / name).exists() for name in ("checkpoint.pt", "previous.pt")):
                return self.last_checkpoint()
            if kept:
                self.refuse_another_run(*read(kept[0]))
        return {"model": self.weights_of(self.s.from_run, corpus)} if self.s.from_run else {}

    def last_checkpoint(self):
        """The content of the last checkpoint, if its settings are the same, and the steps planned then."""
        saved, self.taken = read(self.folder)
        self.refuse_another_run(saved, self.taken)
        planned = count_steps(saved["settings"], self.blocks)
        early = self.folder / "before_decay.pt"
        longer = self.s.schedule == "wsd" and self.steps > planned
        if longer and saved["step"] > decay_start(planned) and early.exists():
            best = saved.get("best")
            saved, self.taken = read(early)
            if saved.get("best") != best:
                saved["best"] = None  # best.pt is of the steps that are undone
        if not {"optimizer", "scaler", "evaluated", "best"} <= saved.keys():
            what = "holds weights alone, or is of an earlier version"
            raise UserError(f"{self.taken}: {what}; go on from them with --from={self.taken} --run=NAME")
        if saved["model"].keys() != self.model.state_dict().keys():
            what = "its weights have other names than this model's"
            raise UserError(f"{self.taken}: {what}; use the version of nanoRNN that trained it")
        if self.s.best_by == "loss" and saved["settings"].get("eval_tokens", 0) != self.s.eval_tokens:
            saved["best"] = None  # it was the best on another text
        return saved | {"planned": planned}

    def tensors(self):
        """The tensors that those of a checkpoint are placed and sharded like; optimizer state like its weight."""
        weights = [weight for group in self.optimizer.param_groups for weight in group["params"]]
        return {"model": self.model.state_dict(), "optimizer": {"state": dict(enumerate(weights))}}

    def load(self, start):
        """Load what find_start has found."""
        for name in ("model", "optimizer", "scaler"):
            if start.get(name):  # the scaler's is empty unless it was used
                getattr(self, name).load_state_dict(start[name])
        if "step" in start:
            self.step, self.evaluated, self.best = start["step"], start["evaluated"], start["best"]
            self.saved, self.planned = (self.step, self.evaluated), start["planned"]

    def weights_of(self, source, corpus):
        """The weights of another run; UserError unless its model and its tokenizer are the same."""
        where = f"from_run = {source!r}"
        with naming(where):
            model, tokenizer, its = load(source, kernels=None)
        shape = {field.name for field in fields(Config)} - {"dropout", "context", "documents"}
        if self.s.position == "learned" or "hyena" in self.s.mixer:
            shape.add("context")
        then, now = ({name: getattr(x, name) for name in sorted(shape)} for x in (its, self.s))
        listed = differences(then, now, may_change=())
        if listed:
            raise UserError(f"{where} is another model ({listed}): set these as they are there")
        if tokenizer.to_str() != read_tokenizer(corpus).to_str():
            raise UserError(f"{where} has another tokenizer than {corpus}: set the corpus that it has read")
        return model.state_dict()

    def refuse_another_run(self, saved, path):
        """Raise UserError if a checkpoint was made with other settings or from another corpus."""
        then = asdict(type(self.s)()) | saved["settings"]  # of an earlier version, perhaps, with fewer
        now, may_change = asdict(self.s), MAY_CHANGE
        if then.get("teacher_is") == now.get("teacher_is"):
            may_change = MAY_CHANGE | {"teacher"}  # the same one, by another path
        listed = differences(then, now, may_change)
        if listed:
            remedy = "set them back, or use --run=NAME (with --from to keep the weights) or --fresh"
            raise UserError(f"{path} was made with other settings ({listed}): {remedy}")
        if saved.get("corpus") != self.corpus:
            remedy = "start anew with --fresh"
            raise UserError(f"{path} is of another corpus by the name {self.s.corpus!r}: {remedy}")

    def prepare_folder(self, corpus):
        """Write settings and tokenizer beside the checkpoints, and cut the logs off where the checkpoint is."""
        remove_unfinished(self.folder)
        if self.fresh:
            for name in ("checkpoint.pt", "previous.pt", "damaged.pt", "best.pt", "before_decay.pt", "chck_*.pt"):
                for path in self.folder.glob(name):
                    path.unlink()
        for step, names in self.marks.items():
            if self.taken and step > self.step:  # kept by a plan that may have been another
                for name in names:
                    (self.folder / name).unlink(missing_ok=True)
        last = self.folder / "checkpoint.pt"
        if self.taken == self.folder / "previous.pt" and last.exists():
            # the next save would keep it in place of the good one
            last.replace(self.folder / "damaged.pt")
        with replacing(self.folder / "settings.json") as file:
            file.write(json.dumps(self.settings(), indent=1) + "\n")
        with replacing(self.folder / "tokenizer.json") as file:
            file.write((corpus / "tokenizer.json").read_text(encoding="utf-8"))
        for name in ("log.jsonl", "times.jsonl"):
            with replacing(self.folder / name) as file:
                for record in read_log(self.folder, name):
                    if record["step"] <= (self.evaluated if "val_loss" in record else self.step):
                        file.write(json.dumps(record) + "\n")

    def evaluation_is_due(self):
        """Return True before the first step, after every eval_every steps or each epoch, and at the end; once."""
        return self.evaluated < self.step and (self.step == 0 or self.due(self.s.eval_every))

    def save_is_due(self):
        """Return True after every save_every steps or, if that is 0, after each evaluation; once."""
        if self.saved == (self.step, self.evaluated):
            return False
        if self.s.save_every:
            return self.due(self.s.save_every)
        return self.evaluated == self.step

    def due(self, every):
        """Return True every so many steps, or after each epoch if that is 0, and at the end."""
        if self.step >= self.steps:
            return True
        if every:
            return self.step % every == 0
        epoch = self.step * self.s.batch_size // self.blocks
        return epoch > (self.step - 1) * self.s.batch_size // self.blocks

    def save(self):
        """Write checkpoint.pt; the one before stays as previous.pt."""
        self.check_weights()
        self.write(self.state(), "checkpoint.pt", "previous.pt")
        self.saved = self.step, self.evaluated
        wait_for_all()  # torchrun kills the one that saves soon after another has left

    def keep_weights(self):
        """
        Write chck_1M.pt, say, if this is its step: the weights without the optimizer; and before_decay.pt. This is
        called before a step is saved, so all marks up to the step that a run resumes from are on disk. A mark that
        is intact is not written again.
        """
        for name in self.marks.get(self.step, ()):
            self.check_weights()
            if from_first(lambda: damage(self.folder / name)):  # none yet, or not whole
                self.write(self.weights(), name)
            wait_for_all()
        if self.s.schedule == "wsd" and self.step == decay_start(self.steps):
            self.check_weights()
            self.write(self.state(), "before_decay.pt")

    def write(self, state, name, previous=None):
        """Write a checkpoint into the folder: all processes call this, the first one writes."""
        state = gathered(state)
        if rank() == 0:
            save(state, self.folder / name, previous and self.folder / previous)

    def state(self):
        """Everything that resuming needs; the order of the data and dropout follow from the step."""
        return self.weights() | {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "evaluated": self.evaluated,
            "best": self.best,
        }

    def weights(self):
        """The weights of the model, with its settings, its step and the digest of its corpus."""
        weights = self.model.state_dict()
        return {"settings": self.settings(), "model": weights, "step": self.step, "corpus": self.corpus}

    def settings(self):
        """The settings to keep: all but `kernels`, which each process chooses, and `fresh`."""
        return {name: value for name, value in asdict(self.s).items() if name not in ("fresh", "kernels")}

    def log(self, record):
        """Add a line to log.jsonl: only what another run with these settings would log too, so no times."""
        if rank() == 0:
            record = {"step": self.step, "epoch": self.step * self.s.batch_size / self.blocks} | record
            append(self.folder / "log.jsonl", record)

    def took_step(self, rate, losses, norm):
        """Note an update of the weights: its learning rate, {name: loss}, the gradient's norm."""
        self.step += 1
        self.unchecked.append((self.step, rate, losses, norm))

    def log_step(self):
        """Log the last update. Returns a line to show."""
        _, rate, losses, norm = self.unchecked[-1]
        self.check_finite()
        means = sum_over_processes(*(x.item() / world_size() for x in losses.values()))
        losses = dict(zip(losses, means))
        norm = norm.item() if norm.isfinite() else None  # none: a step that the scaler of float16 skipped
        self.log(losses | {"grad_norm": norm, "learning_rate": rate})
        self.log_time()
        shown = "".join(f"{name} {losses[name]:.3f}, " for name in losses)
        return f"step {self.step:,}, {shown}lr {rate:.1e}"

    def log_time(self):
        """Add a line to times.jsonl; seconds count from the start of this process's training."""
        now, (step, then) = time.perf_counter(), self.clock
        speed = (self.step - step) * self.tokens_per_step / (now - then)
        self.clock = self.step, now
        record = {"step": self.step, "tokens": self.step * self.tokens_per_step}
        record |= {"seconds": round(now - self.began, 3), "tokens_per_second": round(speed)}
        if rank() == 0:
            append(self.folder / "times.jsonl", record)

    def log_evaluation(self, loss, accuracy, pairs):
        """
        Log the validation loss, {"tokens": per cent right, "sequences": ...} of a corpus of answers, and
        {task: {"score": ..., "subtasks": ...}}, if pairs are scored, with their macro score; keep the weights
        if they are the best. Returns a line to show.
        """
        self.check_weights()
        if not math.isfinite(loss):
            self.refuse(self.step, f"the validation loss is {loss}")
        scored = {"macro": macro_score(pairs), "pairs": pairs} if pairs else {}
        score = scored["macro"] if self.s.best_by == "pairs" else -loss
        self.evaluated = self.step
        if self.best is None or score > self.best:
            self.best = score
            self.write(self.state(), "best.pt")
        answers = {"accuracy": accuracy} if accuracy else {}
        self.log({"val_loss": loss} | answers | scored)
        self.clock = self.step, time.perf_counter()
        best = best_evaluation(read_log(self.folder))
        scores = "".join(f", {name} right {accuracy[name]:.1f} %" for name in accuracy)
        scores += "".join(f", {task} {pairs[task]['score']:.1f} %" for task in pairs)
        macro = f", macro {scored['macro']:.1f} %" if len(pairs) > 1 else ""
        return f"val {loss:.3f}{scores}{macro}" + (f" (best: step {best['step']:,})" if best else "")

    def check_finite(self):
        """Raise Diverged if a loss or gradient since the last check is NaN or inf, before anything is saved."""
        scaled = self.scaler.is_enabled()  # a float16 gradient may overflow: the scaler skips that step
        bad = [x for x in self.unchecked if not (x[2]["loss"].isfinite() and (scaled or x[3].isfinite()))]
        if sum_over_processes(len(bad))[0]:  # one process with a bad loss is enough: all end at one step
            if not bad:
                raise Diverged("the loss of another process is NaN or inf")
            step, rate, losses, norm = bad[0]
            loss = losses["loss"].item()
            self.refuse(step, f"the loss is {loss:.4g}, the gradient's norm {norm.item():.4g}", rate)
        self.unchecked = []
        if scaled and self.scaler.get_scale() < 1:
            raise UserError(f"step {self.step}: float16 overflows at every scale; set dtype = 'float32'")

    def check_weights(self):
        """Raise Diverged if a loss, a gradient or a weight is NaN or inf: a step need not use all weights."""
        self.check_finite()
        weights = self.model.named_parameters()
        bad = [name for name, weight in weights if not own_part(weight).isfinite().all()]
        if sum_over_processes(len(bad))[0]:
            self.refuse(self.step, f"{bad[0] if bad else 'a weight'} contains NaN or inf")

    def refuse(self, step, what, rate=None):
        """Raise Diverged, with a command that resumes at half the rate; nothing is saved."""
        rate = self.optimizer.param_groups[-1]["lr"] if rate is None else rate  # the last is never Muon's
        script = "distill.py" if hasattr(self.s, "teacher") else "train.py"
        command = ["python", script, str(self.folder), f"--learning_rate={self.s.learning_rate / 2:.2g}"]
        if self.s.min_lr:
            command.append(f"--min_lr={self.s.min_lr / 2:.2g}")
        last = self.folder / "checkpoint.pt"
        if last.exists():
            command += [f"--from={last}", f"--run={self.folder.name}_lower"]
            remedy = "Go on from the last good checkpoint at half the rate"
        else:
            command.append("--fresh")
            remedy = "Start anew at half the rate"
        where = f"step {step}: {what}, at a learning rate of {rate:.2g}"
        raise Diverged(f"{where}. {remedy}: {shlex.join(command)}")


def count_steps(settings, blocks):
    """The steps that settings, as a dictionary, ask for on a corpus of so many blocks."""
    return settings["max_steps"] or math.ceil(settings["epochs"] * blocks / settings["batch_size"])


def decay_start(steps):
    """The step from which the learning rate of schedule = "wsd" falls."""
    return steps - math.ceil(DECAY * steps)


def find_marks(s, corpus, blocks):
    """
    {step: [chck_1M.pt, ...]}: when each is due, at the step that ends nearest to so many words, or at the last one
    if that falls short by a thousandth: ten epochs of 9,999,894 words come to 100M. Words are counted as shares of
    an epoch, which has `blocks` blocks.
    """
    marks = defaultdict(list)
    if s.checkpoints == "babylm":
        words = json.loads((corpus / "meta.json").read_text(encoding="utf-8"))["train"]["words"]
        if not words:
            remedy = f"counts words, and {corpus} has none with spaces between; leave it out"
            raise UserError(f"checkpoints = 'babylm' {remedy}")
        steps = count_steps(asdict(s), blocks)
        for mark in MARKS:
            step = mark * MILLION * blocks / (words * s.batch_size)
            if steps < step <= 1.001 * steps:
                step = steps
            marks[max(1, round(step))].append(f"chck_{mark}M.pt")
        if s.from_run:
            print("checkpoints = 'babylm' counts the words of this run, not those that the other one has read")
    return marks


def macro_score(pairs):
    """The unweighted mean over benchmarks: {task: {"score": per cent}} -> per cent."""
    return sum(task["score"] for task in pairs.values()) / len(pairs)


def best_evaluation(log):
    """The first of the records with the highest macro score; None if no pairs were scored."""
    return max((x for x in log if "macro" in x), key=lambda x: x["macro"], default=None)


def runs_at_best_rate(row):
    """A row's runs (of compare.py) at its best learning rate, one per seed; [] if the row has no best."""
    if not row["best"]:
        return []
    return [run for run in row["runs"] if run["learning_rate"] == row["best"]["learning_rate"]]


def read_log(folder, name="log.jsonl"):
    """The records of a run's log.jsonl or times.jsonl, up to the first damaged line, as a kill leaves one."""
    path, records = Path(folder, name), []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else []:
        try:
            record = json.loads(line)
            int(record["step"])
        except (ValueError, TypeError, KeyError, RecursionError):
            break
        records.append(record)
    return records
