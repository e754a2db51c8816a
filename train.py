"""
Train a language model.

    python train.py                                             config/toy.py: minutes on a laptop
    torchrun --nproc_per_node=4 train.py config/hgrn2_10m.py    the paper's run, on four GPUs
    torchrun --nproc_per_node=4 -- train.py ... --run=NAME      without --, torchrun takes --run

Makes out/RUN: checkpoint.pt, previous.pt, best.pt, settings.json, tokenizer.json, log.jsonl,
learning_curve.svg. Ctrl-C and SIGTERM save; the same command resumes, bit for bit on a CPU.
"""

import math
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import data
from kernels import use_kernels
from model import Config, LanguageModel, NextToken
from support.console import progress, run_script, say
from support.devices import check_kernels, compiles, dtype_of, find_device
from support.files import alone_in
from support.parallel import compile_blocks, recompute_blocks, shard, whole, whole_model
from support.processes import Stop, Stopped, join_processes, launched, leave_processes, rank, world_size
from support.run import DECAY, Run, best_evaluation, read_log
from support.settings import UserError, at_least, configure, one_of

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel


@dataclass
class Settings(Config):
    """A model and how to train it."""

    corpus: str = "toy"  # a folder under data/; see data.py
    run: str = "run"  # folder under out/ for all output; default: the settings file's name
    batch_size: int = 16  # sequences in a step, over all processes
    accumulate: int = 1  # passes into which a process splits its share of the batch, to save memory
    epochs: int = 1  # times through the corpus
    max_steps: int = 0  # steps to take; 0: as many as the epochs need
    optimizer: str = "adamw"  # adamw, adam or muon (for the linear layers of the blocks; adamw for the rest)
    learning_rate: float = 1e-3  # its peak, after the warmup
    muon_times: float = 1.0  # Muon's learning rate, in multiples of learning_rate
    min_lr: float = 0.0  # learning rate at the end
    warmup: int = 0  # steps in which the learning rate rises from 0 to its peak
    schedule: str = "cosine"  # linear, cosine, constant or wsd (constant, then down in the last fifth)
    weight_decay: float = 0.1  # for matrices; not for norms, biases and what a module's no_decay names
    beta1: float = 0.9  # Adam's memory of the gradient
    beta2: float = 0.95  # and of its square
    grad_clip: float = 1.0  # norm that the gradient is clipped to; 0: no clipping
    seed: int = 0  # for the initial weights, the order of the data, dropout
    device: str = "auto"  # cuda, mps, cpu; auto: the first one available
    dtype: str = "auto"  # float32, bfloat16, float16, float64; auto: the fastest that is safe here
    kernels: str = "auto"  # form of the recurrences and layers: auto, loop, torch or triton; see use_kernels
    compile: str = "auto"  # torch.compile: yes, no; auto: on CUDA; never with kernels = loop
    parallel: str = "ddp"  # with several processes, each has the whole model (ddp) or a share (fsdp)
    checkpoint_activations: bool = False  # recompute each block in the backward pass: saves memory
    log_every: int = 10  # steps between lines of the log
    eval_every: int = 0  # steps between evaluations; 0: after each epoch
    eval_tokens: int = 0  # at most so many tokens of validation text each time, spread evenly; 0: all
    save_every: int = 0  # steps between checkpoints; 0: after each evaluation
    checkpoints: str = ""  # babylm: also keep what a submission needs, chck_1M.pt after 1M words and so on
    eval_pairs: str = ""  # minimal pairs to score at each evaluation, such as toyland
    best_by: str = "loss"  # what best.pt is best at: loss (on the validation text) or pairs (macro score)
    from_run: str = ""  # --from=RUN: begin with the weights of that run folder or checkpoint
    fresh: bool = False  # discard what out/RUN holds and start over

    def check(self):
        super().check()
        at_least(1, self, "batch_size", "accumulate", "log_every")
        at_least(0, self, "epochs", "max_steps", "eval_every", "eval_tokens", "save_every", "warmup", "seed")
        at_least(0, self, "learning_rate", "min_lr", "muon_times", "weight_decay")
        at_least(0, self, "beta1", "beta2", "grad_clip")
        one_of("optimizer", self.optimizer, ("adamw", "adam", "muon"))
        one_of("schedule", self.schedule, ("linear", "cosine", "constant", "wsd"))
        data.check_name(self.corpus)
        find_device(self.device, self.dtype)
        one_of("dtype", self.dtype, ("auto", "float32", "bfloat16", "float16", "float64"))
        one_of("compile", self.compile, ("auto", "yes", "no"))
        one_of("parallel", self.parallel, ("ddp", "fsdp"))
        check_kernels(self.kernels, self.device)
        if self.compile == "yes" and self.kernels == "loop":
            raise UserError("compile = 'yes', but kernels = 'loop': loops are not compiled; leave out one")
        one_of("checkpoints", self.checkpoints or "babylm", ("babylm",))
        one_of("best_by", self.best_by, ("loss", "pairs"))
        if self.eval_pairs:
            from corpora.benchmarks import check_tasks

            check_tasks("eval_pairs", self.eval_pairs)
        if self.best_by == "pairs" and not self.eval_pairs:
            raise UserError("best_by = 'pairs', but eval_pairs names none: set eval_pairs = 'toyland', say")
        if self.min_lr > self.learning_rate:
            raise UserError(f"min_lr = {self.min_lr} is above learning_rate = {self.learning_rate}")
        if not self.max_steps and not self.epochs:
            raise UserError("max_steps = 0 and epochs = 0: nothing to do; set one of them")
        parts = self.accumulate * launched()
        if self.batch_size % parts:
            what = f"is not a multiple of accumulate x processes = {parts}"
            raise UserError(f"batch_size = {self.batch_size} {what}")
        if self.beta1 >= 1 or self.beta2 >= 1:
            raise UserError(f"beta1 = {self.beta1}, beta2 = {self.beta2}: must be below 1")
        if self.seed >= 2**32:
            raise UserError(f"seed = {self.seed}: must be below 2^32")
        if not self.run.strip(". ") or set(self.run) & set('/\\:*?"<>|') or not self.run.isprintable():
            raise UserError(f"run = {self.run!r} cannot name a folder")


def main(s, objective=NextToken, progress=progress):
    """Train with settings s -> the model. `objective(model)` is a module like NextToken; it may log more."""
    device = join_processes(find_device(s.device))
    dtype = dtype_of(s, device)
    corpus = data.find_for(s)
    train, val = (data.Blocks(corpus / f"{split}.bin", s.context, s.seed) for split in ("train", "val"))
    if not train.n:
        what = f"{len(train.tokens)} tokens are not enough for context = {s.context}"
        raise UserError(f"{corpus}: {what}; lower it")
    torch.manual_seed(s.seed)
    model = LanguageModel(s).to(torch.float64 if dtype == torch.float64 else torch.float32)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    autocast = torch.autocast(device.type, dtype, enabled=dtype in (torch.bfloat16, torch.float16))
    module = objective(model)
    use_kernels(s.kernels, module)  # swaps in the fast forms of the plain classes
    if s.parallel == "fsdp" and world_size() > 1:
        shard(module, device)  # each process keeps its share of the weights
    module.to(device)
    if device.type == "cuda":
        from support.memory import say_memory  # not above: only GPUs need it

        say_memory(module, s, autocast, compiles(s, device))
    if compiles(s, device):
        compile_blocks(module)
    if s.checkpoint_activations:
        recompute_blocks(module)
    with alone_in(Path("out") / s.run):
        run = Run(s, model, make_optimizer(model, s), scaler, corpus, train.n)
        size = f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f}M parameters"
        where = f"step {run.step:,} of {run.steps:,}, {run.tokens_per_step:,} tokens each"
        say(f"{s.mixer}, {size}, {str(dtype)[6:]} on {device}; {where}")
        if run.step < run.steps:
            warn_of_rates(run)
            if s.parallel == "ddp" and world_size() > 1:
                module = DistributedDataParallel(module, gradient_as_bucket_view=True)
        loop(run, module, autocast, train, val, progress)
        finish(run)
    return model


def loop(run, module, autocast, train, val, progress):
    """Train to the last step, or until all processes are asked to stop: then save, and raise Stopped."""
    tokens = run.tokens_per_step
    with progress(total=run.steps * tokens, initial=run.step * tokens, unit="tok") as bar, Stop() as stop:
        try:
            while True:
                run.keep_weights()
                stop.check()
                if run.evaluation_is_due():
                    bar.set_postfix_str(validate(run, autocast, val, stop), refresh=False)
                if run.save_is_due():
                    run.save()
                if run.step >= run.steps:
                    break
                take_step(run, module, autocast, train)
                bar.update(tokens)
                if run.step % run.s.log_every == 0:
                    bar.set_postfix_str(run.log_step(), refresh=False)
        except Stopped:
            run.save()
            again = "the same command without --fresh" if run.s.fresh else "the same command"
            say(f"stopped at step {run.step:,} of {run.steps:,} and saved; {again} continues")
            raise


def take_step(run, module, autocast, train):
    """One update of the weights from the next batch: each process has its rows, in `accumulate` parts."""
    s, size = run.s, world_size()
    parts, sums = s.accumulate * size, {}
    ddp = isinstance(module, DistributedDataParallel)
    torch.manual_seed((s.seed * 1_000_003 + run.step) * size + rank())  # for dropout
    rate = learning_rate(run.step, s, run.steps)
    for group in run.optimizer.param_groups:
        group["lr"] = rate * group.get("times", 1)
    rows = train.rows(run.step * s.batch_size, s.batch_size)
    tokens, targets = (data.on_device(x, run.device).chunk(parts) for x in rows)
    for part in range(rank(), parts, size):
        last = part + size >= parts  # after which DDP averages the gradients of all processes
        with module.no_sync() if ddp and not last else nullcontext():
            with autocast:
                losses = module(tokens[part], targets[part])
            run.scaler.scale(losses["loss"] / s.accumulate).backward()
        for name, loss in losses.items():
            sums[name] = sums.get(name, 0) + loss.detach() / s.accumulate
    run.scaler.unscale_(run.optimizer)
    norm = whole(nn.utils.clip_grad_norm_(run.model.parameters(), s.grad_clip or math.inf))
    run.scaler.step(run.optimizer)
    run.scaler.update()
    run.optimizer.zero_grad(set_to_none=not ddp)  # DDP keeps gradients in its buckets
    run.took_step(rate, sums, norm)


def learning_rate(step, s, steps):
    """The learning rate of a step: a linear rise for `warmup` steps, then down to min_lr unless constant."""
    if step < s.warmup:
        return s.learning_rate * (step + 1) / s.warmup
    done = (step - s.warmup) / max(1, steps - s.warmup)
    left = {
        "linear": 1 - done,
        "cosine": (1 + math.cos(math.pi * done)) / 2,
        "constant": 1.0,
        "wsd": min(1.0, (steps - step) / (DECAY * steps)),
    }[s.schedule]
    return s.min_lr + (s.learning_rate - s.min_lr) * left


def warn_of_rates(run):
    """Say if the learning rate rises for most of the run, or jumps because the run was made longer."""
    s, steps = run.s, run.steps
    if 2 * s.warmup > steps:
        top = learning_rate(min(s.warmup, steps) - 1, s, steps)
        what = f"the learning rate rises for most of the {steps:,} steps, to {top:.2g}"
        say(f"warmup = {s.warmup:,}: {what}; lower warmup, or raise max_steps")
    if run.planned != steps and 0 < run.step < steps:
        then = learning_rate(min(run.step, run.planned) - 1, s, run.planned)
        now = learning_rate(run.step, s, steps)
        if abs(now - then) > 0.1 * then:
            jump = f"the learning rate jumps from {then:.2g} to {now:.2g}"
            say(f"{run.planned:,} steps were planned, now {steps:,}: {jump}; schedule = 'wsd' has none")


@torch.no_grad()
def validate(run, autocast, val, stop):
    """Log validation loss, accuracy where only some tokens are targets, minimal pairs if any -> a line to show."""
    import evaluate  # not above: a training step needs none of it

    run.check_finite()
    model, pairs = whole_model(run.model, run.s).eval(), {}
    batches = val.in_order(evaluate.VALIDATION_BATCH, run.s.eval_tokens)
    with autocast, torch.compiler.set_stance("force_eager"):  # texts have many lengths
        loss, answers = evaluate.validation(model, batches, stop.check)
        if run.s.eval_pairs:
            for task in run.s.eval_pairs.split(","):
                pairs[task] = evaluate.score_task(model, run.tokenizer, task, stop.check)
    model.train()
    return run.log_evaluation(loss, answers, pairs)


def finish(run):
    """Draw the log and say what to do next."""
    if rank() == 0:
        from tools.figures import learning_curve  # not above: matplotlib takes a second to load

        done = f"{run.step:,} of {run.steps:,} steps, {run.step * run.tokens_per_step:,} tokens"
        say(f"done: {done}; learning curve: {learning_curve(run.folder)}")
        best = best_evaluation(read_log(run.folder))
        if best:
            say(f"best macro score: {best['macro']:.1f} % at step {best['step']:,}")
        say(f"next: python evaluate.py {run.folder}; longer: --max_steps=N; anew: --fresh")


# ----------------------------------------------------------------------------------------------------
# Setting up


def make_optimizer(model, s):
    """The optimizer. Matrices get weight decay; norms, biases and what a module lists in `no_decay` do not."""
    spared = {id(p) for p in undecayed(model)}
    decayed = [p for p in model.parameters() if p.ndim > 1 and id(p) not in spared]
    others = [p for p in model.parameters() if p.ndim <= 1 or id(p) in spared]
    groups = [{"params": decayed, "weight_decay": s.weight_decay}, {"params": others, "weight_decay": 0.0}]
    how = {"lr": s.learning_rate, "betas": (s.beta1, s.beta2), "fused": True}
    if s.optimizer == "muon":
        from support.muon import Muon, matrices_of_layers  # not above: only Muon needs it

        return Muon(groups, matrices_of_layers(model), s.muon_times, **how)
    return {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[s.optimizer](groups, **how)


def undecayed(model):
    """Yield the parameters that a module lists in `no_decay`, which names its parameters or whole submodules."""
    for module in model.modules():
        for name in getattr(module, "no_decay", ()):
            part = getattr(module, name)
            yield from part.parameters() if isinstance(part, nn.Module) else [part]


def script(args):
    s = configure(Settings(), args, default="config/toy.py")
    if s.max_steps and "--epochs" in str(args) and "--max_steps" not in str(args):
        raise UserError(f"epochs = {s.epochs:g} has no effect beside max_steps = {s.max_steps}: add --max_steps=0")
    main(s)
    leave_processes()


if __name__ == "__main__":
    run_script(script)
