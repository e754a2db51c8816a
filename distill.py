"""
Train a student on its data and on its teachers' predictions of every next token.

    python train.py; python distill.py                              on toyland
    python distill.py config/hgrn2_10m.py --teacher=out/hgrn2_10m   the paper's, at equal size

The loss is (1 - alpha) cross-entropy + alpha temperature^2 KL(teacher || student), the mean over
tokens (Hinton et al. 2015, arXiv:1503.02531). A teacher may have any architecture and size, but
needs the tokenizer of the corpus. Everything else is as in train.py: settings, training loop and
the folder out/RUN, which is out/NAME_distilled if out/NAME is the teacher's.
"""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import data
import train
from evaluate import checkpoint_of
from kernels import at_least_float32
from model import load
from support.console import progress, run_script, say
from support.devices import dtype_of, find_device
from support.files import damage
from support.processes import from_all, join_processes, leave_processes, together
from support.settings import UserError, configure, naming, one_of

import torch
import torch.nn.functional as F
from torch import nn


@dataclass
class Settings(train.Settings):
    """A student and how to teach it."""

    teacher: str = ""  # run folder or checkpoint of the teacher, or of several: out/a,out/b
    alpha: float = 0.5  # weight of the divergence from the teacher; cross-entropy has the rest
    temperature: float = 1.0  # both distributions are softened by it; BabyLlama: 2
    mean_of: str = "logits"  # what is averaged over several teachers: logits or probabilities
    sum_positions: bool = False  # multiply the divergence by context, as BabyLlama's code does
    teacher_is: str = ""  # filled in: hashes of the teachers' checkpoints, checked when a run resumes

    def check(self):
        super().check()
        if not 0 <= self.alpha <= 1:
            raise UserError(f"alpha = {self.alpha}: must be from 0, all cross-entropy, to 1, all divergence")
        if not 0 < self.temperature < float("inf"):
            raise UserError(f"temperature = {self.temperature}: must be a number above 0, such as 1 or 2")
        one_of("mean_of", self.mean_of, ("logits", "probabilities"))
        if not all(self.teacher.split(",")):
            raise UserError(f"teacher = {self.teacher!r}: name the run that teaches, like --teacher=out/toy")


class Distillation(nn.Module):
    """Cross-entropy of the next token and divergence from the teachers, in place of model.NextToken."""

    def __init__(self, model, teachers, s):
        super().__init__()
        self.model, self.teachers = model, nn.ModuleList(teachers)
        self.temperature, self.mean_of = s.temperature, s.mean_of
        # temperature^2 keeps the two gradients on one scale
        self.hard, self.soft = 1 - s.alpha, s.alpha * s.temperature**2
        if s.sum_positions:
            # BabyLlama's divergence is PyTorch's "batchmean", divided by the sequences of a batch but not by the
            # positions in each, while its cross-entropy is a mean over both.
            self.soft *= s.context

    def forward(self, tokens, targets):
        """
        tokens, targets (B, T), -100 where there is no target -> {"loss": hard ce + soft kl, "ce": cross-entropy,
        "kl": KL(teachers || student) at the temperature}, means over targets.
        """
        with torch.no_grad():
            taught = [teacher(tokens, reset=teacher.document_starts(tokens))[0] for teacher in self.teachers]
            taught = torch.stack(at_least_float32(*taught))
            if self.mean_of == "logits":
                q = F.softmax(taught.mean(dim=0) / self.temperature, dim=-1)  # (B, T, vocab)
            else:
                q = F.softmax(taught / self.temperature, dim=-1).mean(dim=0)
        logits, _ = self.model(tokens, reset=self.model.document_starts(tokens))
        (logits,) = at_least_float32(logits)
        log_p = F.log_softmax(logits / self.temperature, dim=-1)
        real = targets != -100
        kl = F.kl_div(log_p, q, reduction="none").sum(dim=-1)[real].mean()  # sum over v of q_v log(q_v / p_v)
        ce = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        return {"loss": self.hard * ce + self.soft * kl, "ce": ce.detach(), "kl": kl.detach()}


def main(s, progress=progress):
    """Train a student with settings s -> the student."""
    join_processes(find_device(s.device))
    with together():  # each machine has its own copy of the teachers, or a shared one
        teachers = find_teachers(s)
    s = replace(s, teacher_is=",".join(checkpoint[:16] for _, _, checkpoint in teachers.values()))
    if len(set(from_all(s.teacher_is))) > 1:
        raise UserError(f"teacher = {s.teacher!r}: not the same checkpoint on all machines; copy it")

    def objective(model):  # called by train.main once it has a corpus, before it writes anything
        check_tokenizers(s, teachers)
        dtype = dtype_of(s, find_device(s.device))
        for name, (teacher, *_) in teachers.items():
            say(f"teacher: {name}, {sum(p.numel() for p in teacher.parameters()) / 1e6:.1f}M parameters")
        return Distillation(model, [frozen(teacher, dtype) for teacher, *_ in teachers.values()], s)

    return train.main(s, objective, progress)


def find_teachers(s, planned=()):
    """
    {name: (model, SHA-256 of its tokenizer, of its checkpoint)}; UserError if a teacher is missing, damaged or
    does not fit. Teachers yet to be trained are in `planned`, {name: settings}: only their tokenizer is returned.
    """
    teachers = {}
    for name in s.teacher.split(","):
        file, where = checkpoint_of(name), f"teacher = {name!r}"
        if name in planned:
            check_fit(where, planned[name], s)
            teachers[name] = None, digest(data.find(planned[name].corpus)), None
            continue
        if not file.is_file():
            raise UserError(
                f"{where}: there is no {file}; train it first, or name another run folder or checkpoint"
            )
        if problem := damage(file):
            raise UserError(
                f"{where}: {file} is damaged ({problem}); name another checkpoint, such as its best.pt"
            )
        with naming(where):
            model, _, its = load(file, kernels=s.kernels)
        check_fit(where, its, s)
        teachers[name] = model, digest(file.parent), its.digest
    return teachers


def check_fit(where, its, s):
    """Raise UserError if a model of settings `its` cannot teach a student of settings s."""
    if its.vocab_size != s.vocab_size:
        raise UserError(
            f"{where} has vocab_size = {its.vocab_size}, the student {s.vocab_size}: set them equal"
        )
    if its.context < s.context and (its.position == "learned" or "hyena" in its.mixer):
        raise UserError(f"{where} reads at most {its.context} tokens: set context = {its.context} or less")


def digest(folder):
    """SHA-256 of the tokenizer of a run or corpus."""
    return hashlib.sha256((folder / "tokenizer.json").read_text(encoding="utf-8").encode()).hexdigest()


def check_tokenizers(s, teachers):
    """Raise UserError if a teacher has another tokenizer than the corpus."""
    corpus = data.find(s.corpus)
    for name, (_, tokenizer, _) in teachers.items():
        if tokenizer != digest(corpus):
            remedy = f"train one with corpus = {s.corpus!r}, or set the corpus that this one has read"
            raise UserError(f"teacher = {name!r} has another tokenizer than {corpus}: {remedy}")


def frozen(teacher, dtype):
    """
    A teacher without gradients. In bfloat16 or float16 the linear layers of its blocks are stored in that dtype,
    which halves their memory and changes no bit of the logits: autocast would cast them at each use.
    """
    teacher = teacher.to(torch.float64 if dtype == torch.float64 else torch.float32)
    if dtype in (torch.bfloat16, torch.float16):
        spared = {id(p) for p in train.undecayed(teacher)}  # some of these are used in float32
        for layer in teacher.layers.modules():
            if isinstance(layer, nn.Linear) and id(layer.weight) not in spared:
                layer.to(dtype)
    return teacher.requires_grad_(False)


def with_own_run(s):
    """The settings, with another run name if the student, named after the same file, would replace its teacher."""
    taken = Path("out", s.run).resolve() in [checkpoint_of(name).parent.resolve() for name in s.teacher.split(",")]
    return replace(s, run=f"{s.run}_distilled") if taken else s


def script(args):
    main(with_own_run(configure(Settings(), args, default="config/distill_toy.py")))
    leave_processes()


if __name__ == "__main__":
    run_script(script)
