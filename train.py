"""
Train a language model.

    python train.py                                             the default job, config/toy.py: minutes on a laptop
    torchrun --nproc_per_node=4 train.py config/hgrn2_10m.py    the paper's run, on four GPUs

Makes out/RUN: checkpoint.pt, previous.pt, best.pt, settings.json, tokenizer.json, log.jsonl, learning_curve.svg.
The same command again continues, to the bit, a run that was stopped: Ctrl-C and SIGTERM save first.
"""

import json
import math
import os
import signal
import sys
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

import checkpoint
import data
from config import at_least, configure, fail, one_of, run_script
from kernels import linear_cross_entropy
from model import Config, LanguageModel, read_tokenizer


@dataclass
class Settings(Config):
    """A model and how to train it."""

    corpus: str = "toy"  # a folder under data/; see data.py
    run: str = "run"  # the folder under out/ that everything goes to; the settings file's name unless given
    batch_size: int = 16  # sequences in a step, over all processes
    accumulate: int = 1  # passes that a process splits its share of the batch into, to save memory
    epochs: int = 1  # times through the corpus
    max_steps: int = 0  # steps to take; 0: as epochs say
    optimizer: str = "adamw"  # adamw or adam
    learning_rate: float = 1e-3  # the highest one
    min_lr: float = 0.0  # the last one
    warmup: int = 0  # steps to rise from 0 to the highest
    schedule: str = "cosine"  # linear, cosine or constant
    weight_decay: float = 0.1  # for matrices; not for norms, biases, floors, minRNN's gates
    beta1: float = 0.9  # Adam's memory of the gradient
    beta2: float = 0.95  # and of its square
    grad_clip: float = 1.0  # longest gradient; 0: any
    seed: int = 0  # of the initial weights, the order of the data, dropout
    device: str = "auto"  # cuda, mps, cpu; auto: the first of these there is
    dtype: str = "auto"  # float32, bfloat16, float16 (with a scaler), float64; auto: the fastest that is safe here
    compile: str = "auto"  # torch.compile: yes, no; auto: on CUDA
    log_every: int = 10  # steps between lines of the log
    eval_every: int = 0  # steps between evaluations; 0: after each epoch
    save_every: int = 0  # steps between checkpoints; 0: after each evaluation
    eval_pairs: str = ""  # minimal pairs to score at each evaluation, such as toyland
    best_by: str = "loss"  # what best.pt is best at: loss (on the validation text) or pairs (mean score)
    fresh: bool = False  # forget what out/RUN holds and start anew

    def check(self):
        super().check()
        at_least(1, self, "batch_size", "accumulate", "log_every")
        at_least(0, self, "epochs", "max_steps", "learning_rate", "min_lr", "warmup", "weight_decay", "grad_clip")
        at_least(0, self, "beta1", "beta2", "seed", "eval_every", "save_every")
        one_of("optimizer", self.optimizer, ("adamw", "adam"))
        one_of("schedule", self.schedule, ("linear", "cosine", "constant"))
        one_of("device", self.device.split(":")[0], ("auto", "cuda", "mps", "cpu"))
        one_of("dtype", self.dtype, ("auto", "float32", "bfloat16", "float16", "float64"))
        one_of("compile", self.compile, ("auto", "yes", "no"))
        one_of("best_by", self.best_by, ("loss", "pairs") if self.eval_pairs else ("loss",))
        if not self.max_steps and not self.epochs:
            fail("max_steps = 0 and epochs = 0: nothing to do; set one of them")
        if self.batch_size % (self.accumulate * World.size):
            fail(f"batch_size = {self.batch_size} is not a multiple of accumulate x processes = {self.accumulate * World.size}")
        if not self.run or set(self.run) & set('/\\:*?"<>|'):
            fail(f"run = {self.run!r} cannot name a folder")


class NextToken(nn.Module):
    """Mean cross-entropy of the next token. The one module that DDP and torch.compile wrap."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, tokens, targets):
        """tokens, targets (B, T) -> loss. The logits (B, T, vocab) are made a slice at a time."""
        x, _ = self.model.features(tokens)
        return linear_cross_entropy(x, self.model.head.weight, targets)


def main(s, objective=NextToken):
    """Train with settings s; `objective(model)` is a module (tokens, targets) -> loss. Returns the model."""
    device, dtype = start(s)
    corpus = find_corpus(s)
    train, val = (data.Blocks(corpus / f"{split}.bin", s.context, s.seed) for split in ("train", "val"))
    steps = s.max_steps or math.ceil(s.epochs * train.n / s.batch_size)
    run = Run(s, device, dtype, steps, train.n, corpus)
    module = wrap(objective(run.model), s, device)
    tokens_in_step = s.batch_size * s.context
    with progress_bar(steps * tokens_in_step, run.step * tokens_in_step) as bar, Stop() as stop:
        try:
            while True:
                if run.evaluated < run.step and run.due(s.eval_every):
                    bar.set_postfix_str(evaluate(run, val, stop))
                    if not s.save_every:
                        run.save()
                if s.save_every and run.due(s.save_every):
                    run.save()
                if run.step == steps:
                    break
                stop.check()
                take_step(run, module, train)
                bar.update(tokens_in_step)
                if run.step % s.log_every == 0:
                    bar.set_postfix_str(run.log_step())
        except Stopped:
            run.save()
            say(f"stopped at step {run.step:,} of {steps:,}; {run.folder} is saved, the same command continues")
            sys.exit(130)
    run.finish()
    return run.model


def take_step(run, module, train):
    """One update of the weights from the next batch."""
    s = run.s
    torch.manual_seed((s.seed * 1_000_003 + run.step) * World.size + World.rank)  # dropout is a function of the step
    for group in run.optimizer.param_groups:
        group["lr"] = learning_rate(run.step, s, run.steps)
    tokens, targets = (x.to(run.device) for x in train.rows(run.step * s.batch_size, s.batch_size))
    loss, parts = 0, s.accumulate * World.size
    for part in range(World.rank, parts, World.size):
        last = part + World.size >= parts
        with nullcontext() if last or World.size == 1 else module.no_sync(), run.autocast():
            part_loss = module(tokens.chunk(parts)[part], targets.chunk(parts)[part]) / s.accumulate
            run.scaler.scale(part_loss).backward()
        loss += part_loss.detach()
    run.scaler.unscale_(run.optimizer)
    norm = nn.utils.clip_grad_norm_(run.model.parameters(), s.grad_clip or math.inf)
    run.scaler.step(run.optimizer)
    run.scaler.update()
    run.optimizer.zero_grad()
    run.step += 1
    run.unchecked.append((run.step, loss, norm))


def learning_rate(step, s, steps):
    """A straight line up for `warmup` steps, then a line, half a cosine or nothing down to min_lr at the last step."""
    if step < s.warmup:
        return s.learning_rate * (step + 1) / s.warmup
    done = (step - s.warmup) / max(1, steps - s.warmup)
    left = {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}[s.schedule]
    return s.min_lr + (s.learning_rate - s.min_lr) * left


@torch.no_grad()
def evaluate(run, val, stop):
    """Loss on all validation text, and minimal pairs if asked for; keeps the best weights. Returns a line to show."""
    run.check_finite()
    run.model.eval()
    total, count, objective = 0.0, 0, NextToken(run.model)
    for tokens, targets in val.in_order(run.s.batch_size):
        stop.check()
        tokens, targets = (x[World.rank :: World.size].to(run.device) for x in (tokens, targets))
        if len(tokens):
            with run.autocast():
                total += objective(tokens, targets).item() * targets.numel()
            count += targets.numel()
    total, count = sum_over_processes(total, count)
    record = {"val_loss": total / count}
    if run.s.eval_pairs:
        record["pairs"] = {name: scores for name, scores in score_pairs(run, stop)}
    run.model.train()
    return run.log_evaluation(record)


def score_pairs(run, stop):
    """Accuracy on each set of minimal pairs: name, {"score": mean, "subtasks": {paradigm: accuracy}}."""
    import evaluate  # not above: evaluate.py is a script of its own, needed here only if asked for

    tokenizer = read_tokenizer(run.folder)
    for name in run.s.eval_pairs.split(","):
        with run.autocast():
            yield name, evaluate.accuracy(run.model, tokenizer, name, each_batch=stop.check)


# ----------------------------------------------------------------------------------------------------
# Setting up


def start(s):
    """Join the other processes; choose device and number format."""
    device = s.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if (device.startswith("cuda") and not torch.cuda.is_available()) or (device == "mps" and not torch.backends.mps.is_available()):
        fail(f"device = {s.device!r}: PyTorch finds none here; --device=cpu works everywhere")
    if World.size > 1:
        device = f"cuda:{World.local_rank}" if device == "cuda" else device
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo")
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
        torch.set_float32_matmul_precision("high")
    dtype = s.dtype if s.dtype != "auto" else fastest_dtype(torch.device(device).type)
    return torch.device(device), getattr(torch, dtype)


def fastest_dtype(device):
    """bfloat16 where the hardware multiplies it, else float16 on GPUs, else float32."""
    if device == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    can = getattr(torch.cpu, "get_capabilities", dict)()
    return "bfloat16" if device == "cpu" and (can.get("avx512_bf16") or can.get("amx_bf16")) else "float32"


def find_corpus(s):
    """The folder of the corpus; the first process makes it if need be, the others wait. Its tokens must fit the model."""
    if World.rank == 0:
        data.find(s.corpus)
    sum_over_processes(0)
    corpus = data.find(s.corpus)
    entries = json.loads((corpus / "meta.json").read_text(encoding="utf-8"))["vocab_size"]
    if entries > s.vocab_size:
        fail(f"vocab_size = {s.vocab_size}: {corpus} has tokens up to {entries}; set vocab_size = {entries} or more")
    return corpus


def make_optimizer(model, s):
    """Adam or AdamW; only matrices decay: type(...) is nn.Linear leaves out UndecayedLinear."""
    matrices = {m.weight for m in model.modules() if type(m) in (nn.Linear, nn.Embedding)}
    groups = [
        {"params": [p for p in model.parameters() if p in matrices], "weight_decay": s.weight_decay},
        {"params": [p for p in model.parameters() if p not in matrices], "weight_decay": 0.0},
    ]
    adam = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[s.optimizer]
    return adam(groups, lr=s.learning_rate, betas=(s.beta1, s.beta2), fused=True)


def wrap(module, s, device):
    """torch.compile and DDP around the objective. Only run.model is saved, so no names change."""
    if s.compile == "yes" or (s.compile == "auto" and device.type == "cuda"):
        module = torch.compile(module)
    return DistributedDataParallel(module) if World.size > 1 else module


def progress_bar(total, done):
    """A bar in tokens: speed and time left come with it."""
    patience = 0.1 if sys.stderr.isatty() else 30
    return tqdm(total=total, initial=done, unit="tok", unit_scale=True, disable=World.rank > 0, mininterval=patience)


if __name__ == "__main__":
    run_script(lambda args: main(configure(Settings(), args if any(not a.startswith("-") for a in args) else ["config/toy.py", *args])))
