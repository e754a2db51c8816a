"""
Training, generation, scoring and the start of a run: our language models beside those of transformers and PyTorch.

All have about the same number of parameters. A model that is not installed, or that fails, say for lack of
memory, is a row {"failed": reason}. Called by tools.bench, whose settings `s` are those of every function here.
"""

import os
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import data
from corpora.benchmarks import ask, read_benchmark
from evaluate import encode, score_subtask
from fast.generation import StepGraph
from fast.linear import linear
from fast.scoring import as_tree
from kernels import use_kernels
from model import Config, LanguageModel, NextToken
from support.console import progress
from support.devices import find_device
from support.parallel import compile_blocks
from support.settings import ROOT, UserError
from tools.measure import Clock, in_own_process, peak_of_process, take_turns

import torch
from torch import nn

# ----------------------------------------------------------------------------------------------------
# The models: each function returns a module that maps (tokens, targets), both (B, T), to {"loss": ...}


def ours(s, **options):
    """Our language model and its training loss, in their fast forms."""
    sizes = dict(n_layer=s.n_layer, d_model=s.d_model, n_head=s.n_head, d_mlp=s.d_mlp)
    config = Config(vocab_size=s.vocab_size, tie_embeddings=True, **sizes, **options)
    module = NextToken(LanguageModel(config))
    use_kernels("auto", module)
    return module


class Theirs(nn.Module):
    """A model of transformers, or one with the same interface, with its own loss."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, tokens, targets):
        output = self.model(input_ids=tokens, labels=tokens, use_cache=False)  # it shifts the labels itself
        return {"loss": output.loss}


def llama(s):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=s.vocab_size, hidden_size=s.d_model, intermediate_size=s.d_mlp,
        num_hidden_layers=s.n_layer, num_attention_heads=s.n_head, num_key_value_heads=s.n_head,
        max_position_embeddings=8192, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return Theirs(LlamaForCausalLM(config))


def fla_hgrn2(s):
    """flash-linear-attention's HGRN2, whose kernels need a GPU."""
    from fla.models import HGRN2Config, HGRN2ForCausalLM

    config = HGRN2Config(
        vocab_size=s.vocab_size, hidden_size=s.d_model, intermediate_size=s.d_mlp, num_hidden_layers=s.n_layer,
        num_heads=s.n_head, expand_ratio=None, tie_word_embeddings=True,
    )  # fmt: skip
    return Theirs(HGRN2ForCausalLM(config))


class TorchRNN(nn.Module):
    """
    PyTorch's own LSTM or GRU between an embedding and an output layer. A layer of it has `matrices` square
    matrices; there are as many layers as give it the parameters of our blocks.
    """

    def __init__(self, s, kind, matrices):
        super().__init__()
        block = 4 * s.d_model**2 + 3 * s.d_model * s.d_mlp
        n_layer = round(s.n_layer * block / (matrices * s.d_model**2))
        self.embed = nn.Embedding(s.vocab_size, s.d_model)
        self.rnn = kind(s.d_model, s.d_model, n_layer, batch_first=True)
        self.head = nn.Linear(s.d_model, s.vocab_size, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens, targets):
        x, _ = self.rnn(self.embed(tokens))
        logits = self.head(x)
        return {"loss": nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())}


MODELS = {
    "HGRN2": partial(ours, mixer="hgrn2"),
    "minGRU": partial(ours, mixer="mingru"),
    "minLSTM": partial(ours, mixer="minlstm"),
    "our Llama": partial(ours, mixer="attention", position="rope"),
    "transformers Llama": llama,
    "fla HGRN2": fla_hgrn2,
    "torch LSTM": partial(TorchRNN, kind=nn.LSTM, matrices=8),
    "torch GRU": partial(TorchRNN, kind=nn.GRU, matrices=6),
}
GENERATING = ["HGRN2", "minGRU", "minLSTM", "our Llama", "transformers Llama"]
WITH_GRAPH = "HGRN2, CUDA graph"
SCORING = ["HGRN2", "minGRU", "our Llama"]
PEER = "transformers Llama"  # that lm-eval scores with


def make(s, name):
    """Return a model on the device; ImportError if it is not installed."""
    torch.manual_seed(0)
    return MODELS[name](s).to(find_device(s.device))


def autocast(s):
    return torch.autocast(find_device(s.device).type, torch.bfloat16, enabled=s.dtype == "bfloat16")


def random_tokens(s, B, T):
    """Return tokens and targets, both (B, T), on the device."""
    tokens = torch.randint(s.vocab_size, (B, T + 1), device=find_device(s.device))
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


@torch.no_grad()
def limits(s):
    """Floating-point operations per second of an MLP's matrix product, by our linear layer and by PyTorch's."""
    device = find_device(s.device)
    x = torch.randn(2048, s.d_model, device=device)
    weight = torch.randn(s.d_mlp, s.d_model, device=device)
    makers = {
        "flops": lambda: partial(linear, x, weight),
        "flops_of_torch": lambda: partial(nn.functional.linear, x, weight),
    }
    with autocast(s):
        times = take_turns(makers, Clock(device), range(10 * s.repeats))
    flops = 2 * len(x) * s.d_model * s.d_mlp
    return {name: flops / times[name]["seconds"] for name in makers}


# ----------------------------------------------------------------------------------------------------
# Training


def train(s):
    """Return a row for each shape, model and way to run it: time, throughput, peak memory of a training step."""
    shapes, device = s.numbers("shapes"), find_device(s.device)
    names = s.chosen("models", MODELS)
    if device.type != "cuda":
        names = [name for name in names if name != "fla HGRN2"]
    cases = [(name, compiled, B, T) for B, T in shapes for name in names for compiled in ways_to_run(s)]
    rows = {}
    for name, compiled, B, T in progress(cases, desc="memory"):
        row = {"model": name, "compiled": compiled, "B": B, "T": T}
        rows[name, compiled, B, T] = row | in_own_process(s, size_and_memory, name, compiled, B, T)
    clock = Clock(device)
    for shape in progress(shapes, desc="time"):
        here = [case for case in cases if case[2:] == shape and "failed" not in rows[case]]
        # On a GPU one model at a time: it may not hold several large ones and their optimizers.
        groups = [here] if device.type == "cpu" else [[case] for case in here]
        for group in groups:
            if any(compiled for _, compiled, _, _ in group):
                torch.compiler.reset()  # or code that other models share with these would be compiled too often
            makers = {case: partial(make_step, s, *case) for case in group}
            for case, time_taken in take_turns(makers, clock, range(s.repeats)).items():
                rows[case] |= time_taken
    for row in rows.values():
        if "seconds" in row:
            row["tokens_per_second"] = row["B"] * row["T"] / row["seconds"]
    return list(rows.values())


def ways_to_run(s):
    """Return [compiled or not, ...]: both on CUDA, where train.py compiles and a peer may fail compiled."""
    if s.compiled == "auto":
        return [False, True] if find_device(s.device).type == "cuda" else [False]
    return [s.compiled == "yes"]


def size_and_memory(s, name, compiled, B, T):
    """Return the number of parameters, and the bytes that steps of B x T take beyond those of steps of 1 x 16."""
    step, device, peaks = Step(s, name, compiled), find_device(s.device), []
    for shape in ((1, 16), (B, T)):
        if compiled:
            torch.compiler.reset()  # as training's one shape is compiled
        step(*random_tokens(s, *shape))
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)  # the compiler times kernels in memory of its own
        step(*random_tokens(s, *shape))
        peaks.append(peak_of_process(device))
    peak = None if None in peaks else max(0, peaks[1] - peaks[0])
    return {"peak_bytes": peak, "parameters": sum(p.numel() for p in step.module.parameters())}


def make_step(s, name, compiled, B, T):
    return partial(Step(s, name, compiled), *random_tokens(s, B, T))


class Step:
    """A training step: forward, backward, clipping, AdamW."""

    def __init__(self, s, name, compiled):
        self.s, self.module = s, make(s, name)
        self.optimizer = torch.optim.AdamW(self.module.parameters(), lr=1e-4, fused=True)
        if compiled and isinstance(self.module, NextToken):
            compile_blocks(self.module)  # as train.py does
        elif compiled:
            self.module = torch.compile(self.module, dynamic=False)

    def __call__(self, tokens, targets):
        with autocast(self.s):
            loss = self.module(tokens, targets)["loss"]
        loss.backward()
        nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()


# ----------------------------------------------------------------------------------------------------
# Generation


@torch.inference_mode()
def generate(s):
    """Return a row for each position and model: the time of one more token there."""
    rows, names, clock = [], generating(s), Clock(find_device(s.device))
    for (position,) in progress(s.numbers("positions")):
        text, _ = random_tokens(s, 1, position)
        makers = {name: partial(make_reader, s, name, text) for name in names}
        with autocast(s):
            times = take_turns(makers, clock, range(10 * s.repeats))
        for name in names:
            row = {"model": name, "position": position} | times[name]
            if "seconds" in row:
                row["tokens_per_second"] = 1 / row["seconds"]
            rows.append(row)
    return rows


def generating(s):
    """Return the names of the models to measure; on CUDA, HGRN2 twice."""
    names = s.chosen("models", GENERATING)
    if find_device(s.device).type == "cuda" and "HGRN2" in names:
        names.append(WITH_GRAPH)
    return names


def make_reader(s, name, text):
    """Return a function that reads one more token after the text."""
    model = make(s, "HGRN2" if name == WITH_GRAPH else name).eval().model
    reader = Reader(model)
    for piece in text.split(512, dim=1):
        reader.read(piece)
    if isinstance(model, LanguageModel) and text.device.type == "cpu":
        use_kernels("loop", model)  # as sample.py does
    if name == WITH_GRAPH:
        reader.features = StepGraph(model, reader.past)
    return partial(reader.read, text[:, :1])


class Reader:
    """A model, and its state or cache after the tokens read so far."""

    def __init__(self, model):
        self.model, self.past, self.features = model, None, getattr(model, "features", None)

    def read(self, tokens):
        """Read tokens (1, T) and return the logits of the next one."""
        if isinstance(self.model, LanguageModel):
            x, self.past = self.features(tokens, self.past)
            return self.model.head(x[:, -1])
        output = self.model(tokens, past_key_values=self.past, use_cache=True, logits_to_keep=1)
        self.past = output.past_key_values
        return output.logits


# ----------------------------------------------------------------------------------------------------
# Scoring


def score(s):
    """
    Return rows of minimal pairs per second: ours, and lm-eval's with a Llama of the same size in batches of three
    sizes. They take turns paradigm by paradigm, each read once.
    """
    subtasks = [x._replace(records=x.records[: s.pairs_each]) for x in read_benchmark(s.pairs).values()]
    texts = [text for subtask in subtasks for text in texts_of(subtask)]
    # the texts twice, because train_tokenizer merges only what occurs at least twice
    tokenizer = data.train_tokenizer(((text, True, True) for text in texts * 2), s.vocab_size)
    pairs, share = len(texts) // 2, tokens_read(tokenizer, subtasks)
    rows = {
        name: {"model": name, "pairs": pairs, "tokens_read": share} for name in s.chosen("models", SCORING)
    }
    scorers = {name: partial(our_scorer, s, name, tokenizer) for name in rows}
    if s.chosen("models", [PEER]):
        for size in (16, 64, 256):
            name = f"lm-eval, {PEER}, batches of {size}"
            rows[name] = {"model": name, "pairs": pairs}
            scorers[name] = partial(lm_eval, s, size, tokenizer)

    first = subtasks[0]._replace(records=subtasks[0].records[:100])
    makers = {name: partial(in_sequence, scorers[name], [first, first, *subtasks]) for name in rows}
    turns = progress(subtasks, unit="paradigm")
    with torch.inference_mode(), autocast(s):
        times = take_turns(makers, Clock(find_device(s.device)), turns, average=sum)
    for name, row in rows.items():
        row |= times[name]
        if "seconds" in row:
            row["pairs_per_second"] = pairs / row["seconds"]
    return list(rows.values())


def in_sequence(make, items):
    """Return a function that calls the function make() with the next item whenever it is called."""
    function, items = make(), iter(items)
    return lambda: function(next(items))


def texts_of(subtask):
    """The texts of a subtask's pairs, without their contexts."""
    return [text for record in subtask.records for _, text in ask(subtask, record)]


def tokens_read(tokenizer, subtasks):
    """Share of the subtasks' tokens that are read: a beginning that texts share is read once."""
    every = read = 0
    for subtask in subtasks:
        asked = [question for record in subtask.records for question in ask(subtask, record)]
        rows = sorted(ids[:-1] for ids, _ in encode(tokenizer, asked))
        nodes, _ = as_tree(rows)
        every += sum(map(len, rows))
        read += len(nodes)
    return read / every


def our_scorer(s, name, tokenizer):
    """Return a function that scores a subtask with a model of ours."""
    return partial(score_subtask, make(s, name).model.eval(), tokenizer)


def lm_eval(s, size, tokenizer):
    """Return a function that has lm-eval score a subtask as it does BLiMP, in batches of `size`."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
    from transformers import PreTrainedTokenizerFast

    names = dict(bos_token=data.BOS, eos_token=data.EOS, pad_token=data.PAD)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
    model = make(s, PEER).model.eval()
    lm = HFLM(pretrained=model, tokenizer=wrapped, batch_size=size, max_length=512)

    def score(subtask):
        texts = enumerate(texts_of(subtask))
        requests = [Instance("loglikelihood", {}, ("", " " + text), i) for i, text in texts]
        return lm.loglikelihood(requests, disable_tqdm=True)

    return score


# ----------------------------------------------------------------------------------------------------
# Start


def start(s):
    """Return one row: the time from the command to the first step of the default run, its data prepared."""
    seconds = [seconds_to_first_step() for _ in progress(range(s.repeats))]
    return [{"model": "train.py config/toy.py", "seconds_to_first_step": statistics.median(seconds)}]


def seconds_to_first_step():
    """Start the default run in a new folder, wait for the first loss in its log, end it."""
    command = [sys.executable, str(ROOT / "train.py"), str(ROOT / "config" / "toy.py"), "--log_every=1"]
    environment = os.environ | {"NANORNN_DATA": str(data.find("toy").parent.resolve())}
    quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with TemporaryDirectory() as folder:
        log = Path(folder, "out", "toy", "log.jsonl")
        began = time.perf_counter()
        run = subprocess.Popen(command, cwd=folder, env=environment, **quiet)
        while not log.exists() or '"loss"' not in log.read_text(encoding="utf-8"):
            if run.poll() is not None:
                raise UserError(f"{' '.join(command)}: ended before its first step; run it to see why")
            time.sleep(0.01)
        seconds = time.perf_counter() - began
        run.kill()
        run.wait()
    return seconds
