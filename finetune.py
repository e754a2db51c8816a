"""
Fine-tune a run on GLUE and SuperGLUE: classify a sentence, or a pair of sentences.

    python finetune.py out/english_small --tasks=rte,wsc --protocol=2024 --seeds="[0, 1, 2]"
    python finetune.py out/toy/best.pt     every task whose files are here
    torchrun --nproc_per_node=4 finetune.py out/english_small   four fits at once, same numbers

A classification head reads the features of the text's last token, and all weights are trained,
once for each seed. Inputs, lengths, head, optimizer, epochs, choice of the best epoch and metric
are those of the BabyLM challenge of the year, see RULES, with one exception: the script of 2025
reads the first token, which is always <s>. A causal model knows nothing there and answers with one
class, so here the last token is read in every year, as in 2026. All three years choose the best
epoch on the validation file that is then scored, which flatters: compare with the untrained model
(same configuration, new weights), chosen in the same way, and with the best single label for all
items ("majority").

Prints a table and adds the benchmark `glue` to the run's results.json. Each finished fit is a line
of glue_predictions.jsonl beside it, from which the same command resumes.
"""

import copy
import json
import math
import re
from collections import defaultdict
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from statistics import fmean, stdev
from typing import NamedTuple

import data
import evaluate
import train
from corpora.benchmarks import read_texts
from corpora.download import GLUE, GLUE_OF_2024
from evaluate import beside, digest
from kernels import at_least_float32, use_kernels
from model import LanguageModel, load
from support.console import only_first_speaks, progress, run_script
from support.devices import compiles, dtype_of, find_device
from support.files import append, can_write, in_turn, replacing, write_json
from support.parallel import compile_blocks
from support.processes import (
    alone,
    from_all,
    from_first,
    join_processes,
    leave_processes,
    rounds,
    together,
)
from support.settings import UserError, configure, naming, one_of

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers.processors import TemplateProcessing
from torch import nn

INPUTS = {  # task -> its first text and, for pairs, its second one, with the fields that they are made of
    "boolq": ("{question}", "{passage}"),
    "cola": ("{sentence}",),
    "mnli": ("{premise}", "{hypothesis}"),
    "mrpc": ("{sentence1}", "{sentence2}"),
    "multirc": ("Question: {question} Answer: {answer}", "{paragraph}"),
    "qnli": ("{question}", "{sentence}"),
    "qqp": ("{question1}", "{question2}"),
    "rte": ("{sentence1}", "{sentence2}"),
    "sst2": ("{sentence}",),
    "wsc": ('Does "{span2_text}" refer to "{span1_text}" in this passage?', "{text}"),
}
METRICS_OF = {"mrpc": "f1", "qqp": "f1", "cola": "mcc"}  # all others: accuracy
ALSO_SCORED = {"mnli": "mnli-mm"}  # with the same model: MNLI's sentences from other sources
ROWS = GLUE | GLUE_OF_2024  # file -> lines that it has in BabyLM's data
SAMPLED = {"mnli": 392_702, "qqp": 363_846}  # training rows in 2024; since 2025 there are 10,000 of each
PREDICTIONS = "glue_predictions.jsonl"
STUDENT_T = 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262  # for 2, 3, ... 10 seeds
THRESHOLD = 0.1  # points by which an epoch must beat the best so far; otherwise it counts against patience
BATCH = 64  # texts that are classified at once, sorted by length
GROUP = 16  # rows of a batch that a CPU reads at once


def linear_head(width, classes):
    """The head of 2024, as transformers' AutoModelForSequenceClassification has it."""
    head = nn.Linear(width, classes, bias=False)
    nn.init.normal_(head.weight, std=0.02)
    return head


def mlp_head(width, classes):
    """The head of 2025 and 2026. Its norms have no weights."""
    return nn.Sequential(
        nn.LayerNorm(width, elementwise_affine=False),
        nn.Linear(width, width),
        nn.GELU(),
        nn.LayerNorm(width, elementwise_affine=False),
        nn.Dropout(0.1),
        nn.Linear(width, classes),
    )


@dataclass
class Rules:
    """The fine-tuning recipe of one year."""

    tasks: str
    length: int  # tokens that a text is cut to
    head: object  # head(width of the model, classes) -> module
    training: dict  # settings of train.py
    of_task: dict = field(default_factory=dict)  # {task: settings in which it differs}
    warmup: float = 0.0  # share of the steps
    final: float = 0.0  # the last learning rate, as a share of the highest
    patience: int = 0  # epochs without improvement after which a fit ends; 0: never early
    drop_last: bool = False  # leave out the last batch of an epoch, which is smaller


RULES = {
    "2024": Rules(
        tasks="boolq cola mnli mnli-mm mrpc multirc qnli qqp rte sst2 wsc",
        length=128,
        head=linear_head,
        training=dict(learning_rate=5e-5, batch_size=64, epochs=10, schedule="linear", weight_decay=0.0),
        patience=3,
    ),
    "2025": Rules(
        tasks="boolq mnli mrpc multirc qqp rte wsc",
        length=512,
        head=mlp_head,
        training=dict(
            learning_rate=3e-5, batch_size=32, epochs=10, schedule="cosine", weight_decay=0.01, grad_clip=0.0
        ),
        of_task={"boolq": {"batch_size": 16}, "multirc": {"batch_size": 16}, "wsc": {"epochs": 30}},
        warmup=0.06,
        final=0.1,
        drop_last=True,
    ),
}
RULES["2026"] = RULES["2025"]
CHANGEABLE = "learning_rate", "batch_size", "epochs"


@dataclass
class Settings:
    run: str = "out/toy"  # a run folder, or a checkpoint in one
    tasks: str = ""  # tasks of the year, comma-separated; none: all whose files are here
    protocol: str = "2024"  # the BabyLM challenge of 2024, 2025 or 2026
    seeds: list = field(default_factory=lambda: [0])  # each task is fine-tuned once with each of them
    untrained: bool = True  # also fine-tune a model with new weights, to compare with
    learning_rate: float = 0.0  # its peak; 0: the year's
    batch_size: int = 0  # 0: the year's
    epochs: int = 0  # 0: the year's
    device: str = "auto"  # cuda, mps, cpu; auto: the first one available
    dtype: str = "auto"  # of training: float32, bfloat16, float16; auto: the fastest that is safe here
    kernels: str = "auto"  # form that the model runs in: auto, loop, torch or triton; see use_kernels
    compile: str = "no"  # torch.compile: yes, no; auto: on CUDA; worth its minutes only for large tasks
    results: str = ""  # also write the results here, such as results/toy.json

    def check(self):
        one_of("protocol", self.protocol, tuple(RULES))
        own = RULES[self.protocol].tasks.split()
        for task in self.tasks.split(",") if self.tasks else []:
            if task not in own and any(task in rules.tasks.split() for rules in RULES.values()):
                what = f"not among the tasks of {self.protocol}, {', '.join(own)}"
                raise UserError(f"tasks = {task!r}: {what}; --protocol=2024 has it")
            one_of("tasks", task, own)
            if self.tasks.split(",").count(task) > 1:
                raise UserError(f"tasks = {self.tasks!r}: {task} is there twice; leave one out")
        if not self.seeds or len(set(map(str, self.seeds))) < len(self.seeds):
            raise UserError(f"seeds = {self.seeds}: name at least one, each once, like --seeds='[0, 1, 2]'")
        for seed in self.seeds:
            if type(seed) is not int or not 0 <= seed < 2**32:
                raise UserError(f"seeds = {self.seeds}: must be whole numbers, from 0 to 2^32 - 1")
        one_of("dtype", self.dtype, ("auto", "float32", "bfloat16", "float16"))
        with alone():  # processes do not share batches here
            recipe(self, "rte", 0, 1).check()
        evaluate.Settings(device=self.device, results=self.results).check()


def recipe(s, task, seed, rows):
    """train.py's settings for a fit of a task with so many training rows."""
    rules = RULES[s.protocol]
    how = rules.training | rules.of_task.get(task, {}) | changed(s)
    batches = rows // how["batch_size"] if rules.drop_last else math.ceil(rows / how["batch_size"])
    how["max_steps"] = how["epochs"] * max(1, batches)
    how["warmup"] = int(rules.warmup * how["max_steps"])
    how["min_lr"] = rules.final * how["learning_rate"]
    running = {name: getattr(s, name) for name in ("device", "dtype", "kernels", "compile")}
    return train.Settings(**how | running, seed=seed, beta2=0.999)


def changed(s):
    """The settings that replace the year's."""
    return {name: getattr(s, name) for name in CHANGEABLE if getattr(s, name)}


def main(s):
    """Fine-tune with settings s -> the content of results.json."""
    device = find_device(s.device)
    with together():  # each machine has its own files, or shared ones
        model, tokenizer, trained = load(s.run, kernels=None)
        tasks = read_tasks(s)
    length = RULES[s.protocol].length
    if trained.position == "learned" or "hyena" in trained.mixer.split():
        length = min(length, trained.context)  # all that such a model can read
    tasks = [task.encode(tokenizer, length) for task in tasks]
    evaluate.check_same(s.run, trained.digest, [task.digest for task in tasks])
    how = {"dtype": str(dtype_of(s, device))[6:], "length": length} | changed(s)
    what = {"protocol": s.protocol, "checkpoint": trained.digest}
    writable = from_first(lambda: can_write(trained.checkpoint.parent))
    fits = Fits(beside(trained.checkpoint, PREDICTIONS) if writable else None, what | how)
    fits.complete(s, tasks, partial(model_for, model, trained))
    found = {}
    for task in tasks:
        for name in task.valid:
            if not s.tasks or name in s.tasks.split(","):
                found[name] = result_of(s, task, name, fits) | {"how": how}
    results = from_first(lambda: merged(s, found, model, trained, writable))
    print_table(results["benchmarks"]["glue"], found, s)
    if s.results:
        from_first(lambda: write_json(s.results, results))
    return results


def model_for(model, config, seed, untrained):
    """A copy of the model to fine-tune, or one of the same configuration with new weights."""
    if not untrained:
        return copy.deepcopy(model)
    torch.manual_seed(seed)
    return LanguageModel(config).eval()


# ----------------------------------------------------------------------------------------------------
# Reading the tasks


class Items(NamedTuple):
    """A file's items: the one or two texts of each, or their tokens once encoded, and their labels."""

    texts: list
    labels: list


@dataclass
class Task:
    name: str
    train: Items
    valid: dict  # {name: Items}; MNLI has two
    expected_rows: int  # training rows that BabyLM's file has; here there may be fewer
    digest: str = ""  # of all items and labels, once they are encoded

    def encode(self, tokenizer, length):
        """The task with tokens in place of texts: <s> text, or <s> text <s> text, cut to `length` tokens."""
        start = data.start_of(tokenizer)
        bos = tokenizer.id_to_token(start)
        one, two = [bos, "$A"], [bos, "$A", bos, "$B:0"]
        tokenizer.post_processor = TemplateProcessing(one, two, special_tokens=[(bos, start)])
        tokenizer.enable_truncation(length)  # of a pair, the longer text is cut first
        train, *valid = (encode_items(tokenizer, x) for x in (self.train, *self.valid.values()))
        valid = dict(zip(self.valid, valid))
        return replace(self, train=train, valid=valid, digest=digest([train, [*valid.values()]]))


def encode_items(tokenizer, items):
    """Items with tokens in place of texts; a lone surrogate, which JSON allows, is read as "?"."""
    clean = [[text.encode("utf-8", "replace").decode("utf-8") for text in texts] for texts in items.texts]
    texts = [tuple(x) if len(x) > 1 else x[0] for x in clean]
    return Items([x.ids for x in tokenizer.encode_batch_fast(texts)], items.labels)


def read_tasks(s):
    """The tasks asked for or, if none is, those of the year whose files are here: a Task for each model to fit."""
    asked = s.tasks.split(",") if s.tasks else RULES[s.protocol].tasks.split()
    own = {also: task for task, also in ALSO_SCORED.items()}
    tasks = []
    for name in dict.fromkeys(own.get(name, name) for name in asked):
        try:
            tasks.append(read_task(name, s.protocol))
        except NotHere as error:
            if s.tasks:
                raise
            print(f"left out: {error}")
    if not tasks:
        raise UserError("no task has its files here; fetch them: python data.py glue")
    for name in set(asked) & set(own):
        if s.tasks and not any(name in task.valid for task in tasks):
            find(name, "valid")
    return tasks


def read_task(name, protocol):
    """Read the files of a task. NotHere if one is missing; UserError, with file and line, if one is not whole."""
    train = read_items(find(name, "train"), name)
    valid = {name: read_items(find(name, "valid"), name)}
    also = ALSO_SCORED.get(name)
    if also in RULES[protocol].tasks.split() and look_for(also, "valid"):
        valid[also] = read_items(find(also, "valid"), name)
    for scored, items in valid.items():
        rows = ROWS[f"{scored}.valid.jsonl"]
        if len(items.labels) != rows:
            what = f"{len(items.labels):,} lines and not {rows:,}"
            raise UserError(f"{find(scored, 'valid')}: {what}; fetch it again: python data.py glue")
    sampled = SAMPLED.get(name) if protocol == "2024" else None
    return Task(name, train, valid, sampled or ROWS[f"{name}.train.jsonl"])


class NotHere(UserError):
    """A file that no data folder has."""


def find(task, split):
    """The path of a task's file; NotHere if no data folder has it."""
    path = look_for(task, split)
    if path:
        return path
    place = data.data_folder() / "glue" / f"{task}.{split}.jsonl.gz"
    where = f"put it at {place}, or set NANORNN_DATA to the folder that holds it"
    raise NotHere(f"{task}: {where}, or fetch it: python data.py glue")


def look_for(task, split):
    """The path of a task's file, or else of a part of it; None if no data folder has one."""
    for name in (split, f"{split}_part"):
        for end in ("jsonl.gz", "jsonl"):
            path = data.look_for(f"glue/{task}.{name}.{end}")
            if path:
                return path


def read_items(path, task):
    """Read a task's file -> Items. UserError with file and line if one is not an item of the task."""
    items = Items([], [])
    for file, text in read_texts(path, r".*\.jsonl(\.gz)?"):
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                with naming(f"{file}:{number}"):
                    texts, label = read_item(line, task)
                items.texts.append(texts)
                items.labels.append(label)
    if not items.labels:
        raise UserError(f"{path}: no items in it; fetch it again: python data.py glue")
    return items


def read_item(line, task):
    """A line of a task's file -> its texts, one or two, and its label."""
    try:
        record = dict(json.loads(line))
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"not an item of {task} ({error}); is the file complete?")
    names = re.findall(r"{(\w+)}", " ".join(INPUTS[task]))
    for name in [*names, "label"]:
        if name not in record:
            raise UserError(f"no field {name!r}, which an item of {task} has; is this its file?")
        if name != "label" and not isinstance(record[name], str):
            raise UserError(f"{name} = {record[name]!r} is not text")
    label, classes = record["label"], classes_of(task)
    if type(label) is not int or not 0 <= label < classes:
        possible = ", ".join(map(str, range(classes)))
        raise UserError(f"label = {label!r}: the labels of {task} are {possible}")
    return [text.format_map(record) for text in INPUTS[task]], label


def classes_of(task):
    return 3 if task == "mnli" else 2


# ----------------------------------------------------------------------------------------------------
# One fit: a task, a seed, a model


class Classifier(nn.Module):
    """A language model with a head that reads the features of a text's last token."""

    def __init__(self, model, head):
        super().__init__()
        self.model, self.head = model, head

    def forward(self, tokens, targets):
        """tokens, targets (B, T), -100 except at the last token, the label -> {"loss": mean}."""
        last = (targets != -100).int().argmax(dim=1)
        labels = targets.gather(1, last[:, None]).squeeze(1)
        return {"loss": F.cross_entropy(self.classify(tokens, last), labels)}

    def classify(self, tokens, last):
        """
        tokens (B, T), position of each text's last token (B,) -> logits (B, classes). On a CPU a few rows are read
        at a time, without the padding that none of them needs.
        """
        rows = GROUP if tokens.device.type == "cpu" else len(tokens)
        read = [self.last_features(*part) for part in zip(tokens.split(rows), last.split(rows))]
        return at_least_float32(self.head(torch.cat(read)))[0]

    def last_features(self, tokens, last):
        x, _ = self.model.features(tokens[:, : last.max() + 1])  # (B, T, D)
        return x[torch.arange(len(x), device=x.device), last]


class Fit:
    """A run as train.take_step sees it: settings, optimizer and the step it is at."""

    def __init__(self, module, how, dtype, device):
        self.model, self.s, self.device = module, how, device
        self.step, self.steps = 0, how.max_steps
        self.optimizer = train.make_optimizer(module, how)
        for group in self.optimizer.param_groups:
            group["weight_decay"] = how.weight_decay  # of all weights, norms and biases included
        self.scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)

    def took_step(self, rate, losses, norm):
        self.step += 1
        self.loss = losses["loss"]


class Batches:
    """The training items in random batches, reshuffled each epoch; a batch is sorted by length and padded."""

    def __init__(self, items, how):
        self.items, self.seed = items, how.seed
        self.per_epoch = how.max_steps // how.epochs

    def rows(self, start, count):
        """The `count` rows from row `start` on, counted over epochs -> tokens, targets (B, T)."""
        epoch, number = divmod(start // count, self.per_epoch)
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.items.labels))
        some = order[number * count : (number + 1) * count]
        some = sorted(some, key=lambda i: len(self.items.texts[i]))
        tokens, last = padded([self.items.texts[i] for i in some])
        targets = torch.full_like(tokens, -100)
        targets[torch.arange(len(some)), last] = torch.tensor([self.items.labels[i] for i in some])
        return tokens, targets


def padded(texts):
    """Lists of tokens -> (B, T), padded on the right, and the position of each one's last token (B,)."""
    longest = max(map(len, texts))
    tokens = torch.tensor([ids + [0] * (longest - len(ids)) for ids in texts])
    return tokens, torch.tensor([len(ids) - 1 for ids in texts])


def fine_tune(model, task, how, protocol):
    """
    Fine-tune a model on an encoded task -> {"epoch": the best one, "predictions": {name: labels of its items}}.
    `how` are the settings of train.py. The model is changed.
    """
    device, rules = find_device(how.device), RULES[protocol]
    dtype = dtype_of(how, device)
    torch.manual_seed(how.seed)
    module = Classifier(model, rules.head(model.embed.embedding_dim, classes_of(task.name))).to(device)
    use_kernels(how.kernels, module)
    fit, batches = Fit(module, how, dtype, device), Batches(task.train, how)
    autocast = torch.autocast(device.type, dtype, enabled=dtype in (torch.bfloat16, torch.float16))
    if compiles(how, device):
        compile_blocks(module)
    best, worse, found = -math.inf, 0, {}
    with progress(total=fit.steps, unit="step", desc=f"{task.name}, seed {how.seed}") as bar:
        for epoch in range(1, how.epochs + 1):
            module.train()
            for _ in range(batches.per_epoch):
                train.take_step(fit, module, autocast, batches)
                bar.update()
            predictions = predict(module, task.valid[task.name].texts)
            score = validation_score(protocol, task, predictions)
            bar.set_postfix_str(f"epoch {epoch}, loss {fit.loss:.3f}, {score:.1f} %")
            worse = 0 if score > best + THRESHOLD else worse + 1
            if score > best:
                best, found = score, {"epoch": epoch, "predictions": {task.name: predictions}}
                for name in list(task.valid)[1:]:
                    found["predictions"][name] = predict(module, task.valid[name].texts)
            if rules.patience and worse == rules.patience:
                break
    return found


@torch.no_grad()
@torch.compiler.set_stance("force_eager")  # texts have many lengths
def predict(module, texts, batch_size=BATCH):
    """Lists of tokens -> the label of each, read in batches of like lengths, in float32."""
    module.eval()
    labels = [0] * len(texts)
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    device = next(module.parameters()).device
    for start in range(0, len(texts), batch_size):
        some = order[start : start + batch_size]
        tokens, last = padded([texts[i] for i in some])
        logits = module.classify(tokens.to(device), last.to(device))
        if not logits.isfinite().all():
            raise UserError("the model's answers are NaN or inf; lower --learning_rate")
        for i, label in zip(some, logits.argmax(dim=1).tolist()):
            labels[i] = label
    return labels


def validation_score(protocol, task, predictions):
    """The number by which the best epoch is chosen."""
    metric = METRICS_OF.get(task.name, "accuracy")
    if protocol == "2024":
        metric = "f1" if classes_of(task.name) == 2 else "accuracy"
    return METRICS[metric](task.valid[task.name].labels, predictions)


# ----------------------------------------------------------------------------------------------------
# Metrics, in per cent, of labels and predictions


def accuracy(labels, predicted):
    return 100 * float(np.mean(np.equal(labels, predicted)))


def f1(labels, predicted):
    """The harmonic mean of precision and recall of label 1; 0 if it is neither there nor predicted."""
    there, said = np.equal(labels, 1), np.equal(predicted, 1)
    total = there.sum() + said.sum()
    return 200 * float((there & said).sum() / total) if total else 0.0


def mcc(labels, predicted):
    """Matthews' correlation of two labels: Pearson's of 0s and 1s; 0 if one side is constant."""
    if len(set(labels)) < 2 or len(set(predicted)) < 2:
        return 0.0
    return 100 * float(np.corrcoef(labels, predicted)[0, 1])


METRICS = {"accuracy": accuracy, "f1": f1, "mcc": mcc}


def half_width(values):
    """Half of the 95 % interval of a mean over seeds, by Student's t; slightly too wide for more than ten."""
    n = len(values)
    return STUDENT_T[min(n, 10) - 2] * stdev(values) / n**0.5


def interval_over_items(metric, labels, predicted):
    """Half the 95 % interval of one fit's score: 1.96 standard deviations over 500 resamples (bootstrap)."""
    labels, predicted, scores = np.array(labels), np.array(predicted), []
    draw = np.random.default_rng(0)
    for _ in range(500):
        some = draw.integers(len(labels), size=len(labels))
        scores.append(metric(labels[some], predicted[some]))
    return 1.96 * float(np.std(scores))


# ----------------------------------------------------------------------------------------------------
# Results


class Fits:
    """The finished fits of a checkpoint, {(task, seed, untrained): fit}, each a line of a file."""

    def __init__(self, path, what):
        self.path, self.what, self.found = path, what, {}
        self.known = from_first(self.read) if path else {}

    def read(self):
        """The file's fits of this checkpoint, {key: fit}; the lines of others are removed."""
        with in_turn(self.path.with_name("tokenizer.json")):
            lines = self.path.read_bytes().split(b"\n") if self.path.exists() else [b""]
            fits = [fit for fit in map(self.parse, lines) if fit]
            if len(fits) < len(lines) - 1 or lines[-1]:
                with replacing(self.path) as file:
                    file.writelines(json.dumps(fit) + "\n" for fit in fits)
        return {fit["key"]: fit for fit in fits}

    def parse(self, line):
        """A line of the file, if it is a whole fit of this checkpoint; else None."""
        try:
            fit = json.loads(line)
            same = fit["checkpoint"] == self.what["checkpoint"]
            return fit if same and fit["key"] and fit["predictions"] else None
        except (ValueError, KeyError, TypeError, RecursionError):
            return None

    def complete(self, s, tasks, make_model):
        """
        Find all fits that s asks for, and make those that are not in the file, one per process at a time. Large
        tasks come first, so that fits of similar size run side by side.
        """
        missing = []
        for task in sorted(tasks, key=lambda task: -len(task.train.labels)):
            for seed in s.seeds:
                for untrained in [False, True] if s.untrained else [False]:
                    known = self.known.get(self.key(task, seed, untrained))
                    if known:
                        self.found[task.name, seed, untrained] = known
                    else:
                        missing.append((task, seed, untrained))
        for own, _ in rounds(missing):
            with together():
                made = [self.make(s, *wanted, make_model) for wanted in own]
            for fit in chain(*from_all(made)):
                self.add(fit)

    def key(self, task, seed, untrained):
        return digest([self.what, task.name, task.digest, seed, untrained])

    def make(self, s, task, seed, untrained, make_model):
        """Fine-tune a model -> the fit, a line of the file."""
        how, key = recipe(s, task.name, seed, len(task.train.labels)), self.key(task, seed, untrained)
        fit = {"key": key, "task": task.name, "seed": seed, "untrained": untrained} | self.what
        with naming(f"{task.name}, seed {seed}"), alone():
            return fit | fine_tune(make_model(seed, untrained), task, how, s.protocol)

    def add(self, fit):
        """Keep a fit; the first process adds it to the file."""
        self.found[fit["task"], fit["seed"], fit["untrained"]] = fit
        if self.path:
            from_first(lambda: self.write(fit))

    def write(self, fit):
        with in_turn(self.path.with_name("tokenizer.json")):
            append(self.path, fit)


def result_of(s, task, name, fits):
    """The entry of a task in the results: means over seeds with their 95 % interval, in per cent."""
    metric = METRICS_OF.get(name, "accuracy")
    labels, seeds = task.valid[name].labels, []
    for seed in s.seeds:
        fit = fits.found[task.name, seed, False]
        score = METRICS[metric](labels, fit["predictions"][name])
        seeds.append({"seed": seed, "epoch": fit["epoch"], "score": score})
        if s.untrained:
            other = fits.found[task.name, seed, True]
            seeds[-1]["untrained"] = METRICS[metric](labels, other["predictions"][name])
    scores = [x["score"] for x in seeds]
    found = {"score": fmean(scores), "n": len(labels), "term": "", "metric": metric, "seeds": seeds}
    if len(scores) > 1:
        found["interval"] = half_width(scores)
    else:
        predicted = fits.found[task.name, s.seeds[0], False]["predictions"][name]
        found["interval"] = interval_over_items(METRICS[metric], labels, predicted)
    found["majority"] = max(METRICS[metric](labels, [x] * len(labels)) for x in range(classes_of(task.name)))
    if s.untrained:
        found["untrained"] = fmean(x["untrained"] for x in seeds)
    rows = len(task.train.labels)
    found["rows"] = rows
    if rows < task.expected_rows:
        found["partial"] = {"rows": rows, "of": task.expected_rows}
    return found


def merged(s, found, model, trained, writable):
    """
    The run's results.json with these tasks in benchmarks.glue, beside those that were fine-tuned before, each with
    its own settings, and what else is known of this checkpoint. It is written if the folder can be written to.
    """
    path = beside(trained.checkpoint, "results.json")
    what = {"protocol": s.protocol, "checkpoint": trained.digest}
    with in_turn(trained.checkpoint.with_name("tokenizer.json")):
        results = evaluate.read_results(path, what)
        if not results:  # the dtype of evaluate.py is its own; that of fine-tuning is in `how`
            as_evaluated = evaluate.Settings(protocol=s.protocol)
            results = evaluate.identity(as_evaluated, trained.digest) | evaluate.about(model, trained)
        known = results["benchmarks"].get("glue", {"subtasks": {}})
        results["benchmarks"]["glue"] = glue_of(known["subtasks"] | found, s.protocol)
        if writable:
            write_json(path, results)
        else:
            print(f"\nnot written: {path}, for this folder is read-only; --results=FILE writes a copy")
    return results


def glue_of(subtasks, protocol):
    """The benchmark in the results: the unweighted mean over its tasks."""
    tasks = RULES[protocol].tasks.split()
    missing = [task for task in tasks if task not in subtasks]
    return {
        "score": fmean(x["score"] for x in subtasks.values()),
        "interval": math.hypot(*(x["interval"] for x in subtasks.values())) / len(subtasks),
        "subtasks": {task: subtasks[task] for task in tasks if task in subtasks},
        "missing": missing,
        "partial": bool(missing) or any("partial" in x for x in subtasks.values()),
    }


def leaderboard_predictions(run, protocol):
    """
    {"rte": {"predictions": [{"id": "rte_0", "pred": 1}, ...]}, ...} of a run or checkpoint, as a leaderboard takes
    them: of the first seed in its results. Empty if it has not been fine-tuned under this protocol.
    """
    checkpoint = evaluate.checkpoint_of(run)
    results = evaluate.read_results(beside(checkpoint, "results.json"), {"protocol": protocol})
    if not results or "glue" not in results["benchmarks"]:
        return {}
    glue, found = results["benchmarks"]["glue"], defaultdict(dict)
    what = {"protocol": protocol, "checkpoint": results["checkpoint"]}
    path, parse = beside(checkpoint, PREDICTIONS), Fits(None, what).parse
    lines = path.read_bytes().splitlines() if path.exists() else []
    for fit in filter(None, map(parse, lines)):
        for task, labels in fit["predictions"].items():
            scored = glue["subtasks"].get(task)
            if not scored or fit["untrained"] or fit["seed"] != scored["seeds"][0]["seed"]:
                continue
            wanted = what | scored.get("how", {})
            if all(fit.get(name) == wanted.get(name) for name in {*wanted, *CHANGEABLE}):
                rows = [{"id": f"{task}_{i}", "pred": label} for i, label in enumerate(labels)]
                found[task] = {"predictions": rows}
    return dict(found)


def print_table(glue, found, s):
    """Print the tasks just fine-tuned, beside what the untrained model and one label for all items score."""
    title = f"\nglue, protocol {s.protocol}".ljust(24)
    print(f"{title}metric     per cent    95 %  untrained  majority      n")
    for task, x in found.items():
        untrained = f"{x['untrained']:.1f}" if "untrained" in x else ""
        scores = f"{x['score']:10.1f}  ± {x['interval']:4.1f}{untrained:>11}{x['majority']:10.1f}"
        line = f"  {task:21}{x['metric']:9}{scores}{x['n']:7,}"
        if "partial" in x:
            line += f"  trained on {x['partial']['rows']:,} of {x['partial']['of']:,} rows"
        print(line)
    title = f"mean of {len(glue['subtasks'])} tasks"
    print(f"{title:32}{glue['score']:10.1f}  ± {glue['interval']:4.1f}")
    if glue["missing"]:
        print(f"not all of the year's tasks: {', '.join(glue['missing'])} are missing")
    kind = "seeds (Student's t)" if len(s.seeds) > 1 else "items (bootstrap) of one seed"
    print(f"95 %: half the interval over the {kind}; untrained: the same model with new weights;")
    print("majority: the best score of one label for all items")


def script(args):
    with only_first_speaks():
        s = configure(Settings(), args, word="run")
        device = join_processes(find_device(s.device))
        main(replace(s, device=str(device)))
        leave_processes()


if __name__ == "__main__":
    run_script(script)
