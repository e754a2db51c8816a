"""
Train a language model.

    python train.py                                             config/toy.py: minutes on a laptop
    torchrun --nproc_per_node=4 train.py config/hgrn2_10m.py    the paper's run, on four GPUs
                                                                (torchrun ... -- train.py ... to add --run=NAME)

Makes out/RUN: checkpoint.pt, previous.pt, best.pt, settings.json, tokenizer.json, log.jsonl, learning_curve.svg.
The same command again continues, to the bit, a run that was stopped: Ctrl-C and SIGTERM save first.
"""

from start import begin

begin(__name__)  # before torch is loaded

import importlib.util
import math
import sys
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import data
from checkpoint import Run, Stop, Stopped, World, alone_in, join, leave_group, say, wait_for_all
from config import at_least, configure, fail, one_of, progress, run_script
from layers import BlockLinear, Linear, linear_cross_entropy
from model import Config, LanguageModel, find_device, read_tokenizer
from scores import validation


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
    dtype: str = "auto"  # float32, bfloat16, float16, float64; auto: the fastest that is safe here
    compile: str = "auto"  # torch.compile: yes, no; auto: on CUDA
    log_every: int = 10  # steps between lines of the log
    eval_every: int = 0  # steps between evaluations; 0: after each epoch
    save_every: int = 0  # steps between checkpoints; 0: after each evaluation
    checkpoints: str = ""  # babylm: also keep what a submission needs, chck_1M.pt for 1M words read and so on
    eval_pairs: str = ""  # minimal pairs to score at each evaluation, in training's dtype, such as toyland
    best_by: str = "loss"  # what best.pt is best at: loss (on the validation text) or pairs (macro score)
    fresh: bool = False  # forget what out/RUN holds and start anew

    def check(self):
        super().check()
        at_least(1, self, "batch_size", "accumulate", "log_every")
        at_least(0, self, "epochs", "max_steps", "eval_every", "save_every", "warmup", "seed")
        at_least(0, self, "learning_rate", "min_lr", "weight_decay", "beta1", "beta2", "grad_clip")
        one_of("optimizer", self.optimizer, ("adamw", "adam"))
        one_of("schedule", self.schedule, ("linear", "cosine", "constant"))
        data.check_name(self.corpus)
        find_device(self.device, self.dtype)
        one_of("dtype", self.dtype, ("auto", "float32", "bfloat16", "float16", "float64"))
        one_of("compile", self.compile, ("auto", "yes", "no"))
        one_of("checkpoints", self.checkpoints or "babylm", ("babylm",))
        one_of("best_by", self.best_by, ("loss", "pairs"))
        data.check_tasks("eval_pairs", self.eval_pairs)
        if self.best_by == "pairs" and not self.eval_pairs:
            fail("best_by = 'pairs', but eval_pairs names none: set eval_pairs = 'toyland', say")
        if self.min_lr > self.learning_rate:
            fail(f"min_lr = {self.min_lr} is above learning_rate = {self.learning_rate}, the highest one")
        if not self.max_steps and not self.epochs:
            fail("max_steps = 0 and epochs = 0: nothing to do; set one of them")
        parts = self.accumulate * World.size
        if self.batch_size % parts:
            fail(f"batch_size = {self.batch_size} is not a multiple of accumulate x processes = {parts}")
        if self.beta1 >= 1 or self.beta2 >= 1:
            fail(f"beta1 = {self.beta1}, beta2 = {self.beta2}: must be below 1")
        if self.seed >= 2**32:
            fail(f"seed = {self.seed}: must be below 2^32")
        if not self.run.strip(". ") or set(self.run) & set('/\\:*?"<>|') or not self.run.isprintable():
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


def main(s, objective=NextToken, progress=progress):
    """Train with s; `objective(model)` is a module (tokens, targets) -> loss or [loss, ce, kl]. Returns model."""
    device, dtype = start(s)
    corpus = find_corpus(s)
    train, val = (data.Blocks(corpus / f"{split}.bin", s.context, s.seed) for split in ("train", "val"))
    if not train.n:
        fail(f"{corpus}: {len(train.tokens)} tokens are not enough for context = {s.context}; lower it")
    steps = s.max_steps or math.ceil(s.epochs * train.n / s.batch_size)
    torch.manual_seed(s.seed)
    model = LanguageModel(s).to(device, torch.float64 if dtype == torch.float64 else torch.float32)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    module = objective(model)
    autocast = torch.autocast(device.type, dtype, enabled=dtype in (torch.bfloat16, torch.float16))
    with alone_in(Path("out") / s.run):
        run = Run(s, model, make_optimizer(model, s), scaler, corpus, steps, train.n)
        million = sum(p.numel() for p in model.parameters()) / 1e6
        say(
            f"{s.mixer}, {million:.1f}M parameters, {str(dtype)[6:]} on {device}; step {run.step:,} of {steps:,}"
        )
        if run.step < steps or run.evaluated < run.step:
            loop(run, parallel(compiled(module, s)), autocast, train, val, progress)
        finish(run)
    return model


def loop(run, module, autocast, train, val, progress):
    """Evaluate, save and take steps until the last one is done, or until all processes are asked to stop."""
    s, size = run.s, run.s.batch_size * run.s.context
    with progress(total=run.steps * size, initial=run.step * size, unit="tok") as bar, Stop() as stop:
        try:
            while True:
                run.keep()
                stop.check()
                if run.evaluated < run.step and (run.step == 0 or run.due(s.eval_every)):
                    bar.set_postfix_str(validate(run, autocast, val, stop), refresh=False)
                    if not s.save_every:
                        run.save()
                if s.save_every and run.due(s.save_every) and run.saved != (run.step, run.evaluated):
                    run.save()
                if run.step >= run.steps:
                    break
                take_step(run, module, autocast, train)
                bar.update(size)
                if run.step % s.log_every == 0:
                    bar.set_postfix_str(run.log_step(), refresh=False)
        except Stopped:
            run.save()
            again = "without --fresh " if s.fresh else ""
            say(f"stopped at step {run.step:,} of {run.steps:,} and saved; the same command {again}continues")
            sys.exit(130)


def take_step(run, module, autocast, train):
    """One update of the weights from the next batch: each process has its rows, in `accumulate` parts."""
    s, parts, loss = run.s, run.s.accumulate * World.size, 0
    torch.manual_seed((s.seed * 1_000_003 + run.step) * World.size + World.rank)  # for dropout
    rate = learning_rate(run.step, s, run.steps)
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    rows = train.rows(run.step * s.batch_size, s.batch_size)
    tokens, targets = (x.to(run.device).chunk(parts) for x in rows)
    for part in range(World.rank, parts, World.size):
        more_to_come = part + World.size < parts
        with module.no_sync() if more_to_come and World.size > 1 else nullcontext():
            with autocast:
                part_loss = module(tokens[part], targets[part]) / s.accumulate
            run.scaler.scale(part_loss.flatten()[0]).backward()
        loss += part_loss.detach()
    run.scaler.unscale_(run.optimizer)
    norm = nn.utils.clip_grad_norm_(run.model.parameters(), s.grad_clip or math.inf)
    run.scaler.step(run.optimizer)
    run.scaler.update()
    run.optimizer.zero_grad()
    run.step += 1
    run.unchecked.append((run.step, rate, loss, norm))


def learning_rate(step, s, steps):
    """A line up for `warmup` steps, then a line, half a cosine or nothing down to min_lr at the end."""
    if step < s.warmup:
        return s.learning_rate * (step + 1) / s.warmup
    done = (step - s.warmup) / max(1, steps - s.warmup)
    left = {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}[s.schedule]
    return s.min_lr + (s.learning_rate - s.min_lr) * left


@torch.no_grad()
def validate(run, autocast, val, stop):
    """Loss on all of the validation text, accuracy of answers, minimal pairs if any. Returns a line to show."""
    run.check_finite()
    run.model.eval()
    with autocast:
        loss, answers = validation(run.model, val.in_order(run.s.batch_size), stop.check)
    pairs = {}
    if run.s.eval_pairs:
        from evaluate import accuracy  # not above: evaluate.py is a script that stands on its own

        tokenizer, tasks = read_tokenizer(run.folder), run.s.eval_pairs.split(",")
        with autocast:
            pairs = {task: accuracy(run.model, tokenizer, task, stop.check) for task in tasks}
    run.model.train()
    return run.log_evaluation(loss, answers, pairs)


def finish(run):
    """Draw the log and say what to do next."""
    if World.rank == 0:
        from figures import learning_curve  # not above: matplotlib takes a second to load

        say(f"done: {run.step:,} of {run.steps:,} steps; learning curve: {learning_curve(run.folder)}")
        for line in run.harvest():
            say(line)
        say(f"next: python evaluate.py {run.folder}; longer: --max_steps=N; anew: --fresh")


# ----------------------------------------------------------------------------------------------------
# Setting up


def start(s):
    """Join the other processes; choose device and number format."""
    device = find_device(s.device)
    if device.type == "cuda":
        device = find_device(f"cuda:{World.local_rank if World.size > 1 else device.index or 0}")
        torch.cuda.set_device(device)
    if World.size > 1 and not dist.is_initialized():
        nccl = device.type == "cuda" and dist.is_nccl_available()  # Windows has none
        join("cpu:gloo,cuda:nccl" if nccl else "gloo")
    return device, getattr(torch, fastest_dtype(device.type) if s.dtype == "auto" else s.dtype)


def fastest_dtype(kind):
    """bfloat16 where the hardware multiplies it, else float16 on CUDA, else float32."""
    if kind == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    can = getattr(torch.cpu, "get_capabilities", dict)()
    return "bfloat16" if kind == "cpu" and (can.get("avx512_bf16") or can.get("amx_bf16")) else "float32"


def find_corpus(s):
    """The folder of the corpus. The first process makes what can be made, the others wait. Its tokens must fit."""
    if World.rank == 0:
        data.find(s.corpus)
        for task in s.eval_pairs.split(",") if s.eval_pairs else []:
            data.find_benchmark(task)
    wait_for_all()
    corpus = data.find(s.corpus)
    meta = data.read_meta(corpus)
    entries, length = meta["vocab_size"], meta.get("context", s.context)
    if entries > s.vocab_size:
        fail(
            f"vocab_size = {s.vocab_size}: {corpus} has {entries} tokens; set vocab_size = {entries} or more"
        )
    if length != s.context:
        fail(
            f"context = {s.context}: {corpus} is made of sequences of {length} tokens; set context = {length}"
        )
    return corpus


def make_optimizer(model, s):
    """Adam or AdamW. Matrices decay; norms, biases, floors and UndecayedLinear do not."""
    kinds = (Linear, BlockLinear, nn.Embedding, nn.LSTM, nn.GRU)
    layers = [module for module in model.modules() if type(module) in kinds]
    matrices = {id(p) for layer in layers for p in layer.parameters() if p.ndim > 1}
    decayed, others = [], []
    for parameter in model.parameters():
        (decayed if id(parameter) in matrices else others).append(parameter)
    groups = [{"params": decayed, "weight_decay": s.weight_decay}, {"params": others, "weight_decay": 0.0}]
    adam = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[s.optimizer]
    return adam(groups, lr=s.learning_rate, betas=(s.beta1, s.beta2), fused=True)


def compiled(module, s):
    """torch.compile on CUDA, or where asked. The plain model is what gets saved, so no names change."""
    can = next(module.parameters()).is_cuda and importlib.util.find_spec("triton")
    if s.compile == "no" or (s.compile == "auto" and not can):
        return module
    torch._dynamo.config.recompile_limit = max(8, 2 * s.n_layer)  # HGRN2's code differs by the layer's number
    return torch.compile(module)


def parallel(module):
    """DDP, which averages the gradients of all processes."""
    return DistributedDataParallel(module) if World.size > 1 else module


if __name__ == "__main__":
    run_script(lambda args: leave_group(main(configure(Settings(), args, default="config/toy.py"))))
