"""
Speed and memory: our models beside what one would otherwise run, on this machine.

    python bench.py train       training steps over sequence length, and the memory they take
    python bench.py generate    one token at a time, at the start of a text and far into it
    python bench.py score       minimal pairs, beside lm-eval's harness
    python bench.py start       from `python train.py` to the first step
    python bench.py minrnn      a layer of minGRU and minLSTM beside GRU's and LSTM's; see bench_minrnn.py
    python bench.py kernels     the recurrences alone, over sequence length; see bench_kernels.py
    python bench.py compile     what the Triton kernels take of GPUs that are not here; see compile_kernels.py

All models have the same width, depth and tokens, about the same number of parameters, and take turns in one
process, so that whatever else the machine does meets all of them; figures are medians. The peers come with
`pip install transformers "lm_eval[hf]" flash-linear-attention`; one that is not here is a row that says so. Writes
results/bench_cpu.json (or _cuda, _mps, compile.json); `python figures.py results/bench_cpu.json` draws it.
"""

from start import begin

begin(__name__)  # before torch is loaded

import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from tokenizers import Tokenizer
from torch import nn

import bench_kernels
import bench_minrnn
import compile_kernels
import data
from benchmarks import ask, read_benchmark
from checkpoint import replacing
from config import at_least, configure, fail, one_of, progress, reason, run_script
from evaluate import score_subtask
from layers import linear
from model import Config, LanguageModel, find_device
from scores import as_tree, encode
from train import NextToken

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # PyTorch's profiler, which measures memory


@dataclass
class Settings:
    what: str = ""  # train, generate, score, start, minrnn, kernels or compile
    models: str = ""  # which, with commas between; none: all
    d_model: int = 256  # width of all models
    n_layer: int = 6  # blocks of ours and of the Transformers; the LSTM and GRU have more, to be as large
    n_head: int = 4
    d_mlp: int = 704
    vocab_size: int = 4096
    shapes: str = "8x256 4x512 2x1024 1x2048 1x4096"  # sequences x tokens in a training step
    sizes: str = ""  # sequences x tokens x width of minrnn's layers, like "64x512x64"; none: the paper's
    positions: str = "16 256 1024 4096"  # tokens already read when generation is timed
    pairs: str = "blimp"  # minimal pairs to score: toyland, blimp, a file; see evaluate.py
    pairs_each: int = 1000  # of each paradigm
    kernels: str = ""  # which recurrences, with commas between; none: all
    minutes: float = 8.0  # after which no more of them are begun
    repeats: int = 9  # timings to take the median of
    threads: int = 0  # of the CPU; 0: as many as PyTorch takes
    device: str = "auto"  # cuda, mps, cpu; auto: the first of these there is
    dtype: str = "float32"  # float32, or bfloat16 by autocast
    results: str = ""  # the file that figures are added to; none: results/bench_DEVICE.json

    def check(self):
        one_of("what", self.what, BENCHMARKS)
        at_least(1, self, "d_model", "n_layer", "n_head", "d_mlp", "vocab_size", "pairs_each", "repeats")
        at_least(0, self, "threads")
        one_of("dtype", self.dtype, ("float32", "bfloat16"))
        find_device(self.device)
        sizes = dict(d_model=self.d_model, n_head=self.n_head, vocab_size=self.vocab_size)
        Config(**sizes, position="rope").check()
        if os.path.isdir(self.results):
            fail(f"results = {self.results!r} is a folder: name a file in it")
        for name in self.models.split(",") if self.models else ():
            one_of("models", name, MODELS)
        for name in self.kernels.split(",") if self.kernels else ():
            one_of("kernels", name, bench_kernels.KERNELS)
        for name, like in (("shapes", "8x256 1x4096"), ("sizes", "64x512x64"), ("positions", "16 4096")):
            for word in getattr(self, name).split():
                numbers = word.split("x")
                if len(numbers) != like.split()[0].count("x") + 1 or not all(map(whole, numbers)):
                    fail(f"{name} are like '{like}', whole numbers from 1 up, not {word!r}")


def whole(number):
    return number.isdecimal() and int(number) > 0


# ----------------------------------------------------------------------------------------------------
# The models. Each maker takes the settings -> a module whose forward(tokens, targets) is the loss.


def ours(mixer, **more):
    def make(s):
        sizes = dict(n_layer=s.n_layer, d_model=s.d_model, n_head=s.n_head, d_mlp=s.d_mlp)
        config = Config(mixer=mixer, vocab_size=s.vocab_size, tie_embeddings=True, **sizes, **more)
        return NextToken(LanguageModel(config))

    return make


class Theirs(nn.Module):
    """A model of transformers with its own loss."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, tokens, targets):
        return self.model(input_ids=tokens, labels=targets, shift_labels=targets, use_cache=False).loss


def llama(s):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=s.vocab_size, hidden_size=s.d_model, intermediate_size=s.d_mlp,
        num_hidden_layers=s.n_layer, num_attention_heads=s.n_head, num_key_value_heads=s.n_head,
        max_position_embeddings=8192, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return Theirs(LlamaForCausalLM(config))


def gpt2(s):
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=s.vocab_size, n_embd=s.d_model, n_layer=s.n_layer, n_head=s.n_head, n_inner=3 * s.d_mlp // 2,
        n_positions=8192, bos_token_id=1, eos_token_id=2, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    return Theirs(GPT2LMHeadModel(config))


class TorchRNN(nn.Module):
    """PyTorch's own LSTM or GRU between an embedding and an output layer."""

    def __init__(self, rnn, s):
        super().__init__()
        self.embed = nn.Embedding(s.vocab_size, s.d_model)
        self.rnn = rnn
        self.head = nn.Linear(s.d_model, s.vocab_size, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens, targets):
        x, _ = self.rnn(self.embed(tokens))
        return nn.functional.cross_entropy(self.head(x).flatten(0, 1), targets.flatten())


def torch_rnn(kind, matrices):
    """So many layers, of so many square matrices each, that there are as many parameters as in our blocks."""

    def make(s):
        block = 4 * s.d_model**2 + 3 * s.d_model * s.d_mlp
        layers = round(s.n_layer * block / (matrices * s.d_model**2))
        return TorchRNN(kind(s.d_model, s.d_model, layers, batch_first=True), s)

    return make


MODELS = {
    "HGRN2": ours("hgrn2"),
    "minGRU": ours("mingru"),
    "minLSTM": ours("minlstm"),
    "our Llama": ours("attention", position="rope"),
    "transformers Llama": llama,
    "transformers GPT-2": gpt2,
    "torch LSTM": torch_rnn(nn.LSTM, 8),
    "torch GRU": torch_rnn(nn.GRU, 6),
}


def names(s, among=MODELS):
    """The models asked for, of those that make sense."""
    return [name for name in among if not s.models or name in s.models.split(",")]


def make(s, name):
    """A model on the device; None if it is not installed."""
    torch.manual_seed(0)
    try:
        return MODELS[name](s).to(find_device(s.device))
    except ImportError:
        return None


def autocast(s):
    return torch.autocast(find_device(s.device).type, torch.bfloat16, enabled=s.dtype == "bfloat16")


# ----------------------------------------------------------------------------------------------------
# Measuring


def take_turns(tasks, repeats, bar=None):
    """{name: function} -> {name: median seconds}, each called once in turn, after two rounds to warm up."""
    seconds = {name: [] for name in tasks}
    for turn in range(-2, repeats):
        for name, task in tasks.items():
            began = time.perf_counter()
            task()
            if torch.accelerator.is_available():
                torch.accelerator.synchronize()
            if turn >= 0:
                seconds[name].append(time.perf_counter() - began)
            if bar is not None:
                bar.update()
    return {name: statistics.median(times) for name, times in seconds.items()}


class Step:
    """A training step: forward, backward, clipping, AdamW."""

    def __init__(self, module, s):
        self.module, self.s = module, s
        self.optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4, fused=True)

    def __call__(self, tokens, targets):
        with autocast(self.s):
            loss = self.module(tokens, targets)
        loss.backward()
        nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()


def batch(s, B, T):
    tokens = torch.randint(s.vocab_size, (B, T + 1), device=find_device(s.device))
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


def train(s):
    """-> a row for each shape and model. Memory comes first: a process starts with its parent's peak."""
    shapes = [tuple(map(int, shape.split("x"))) for shape in s.shapes.split()]
    rows = [{"model": name, "B": B, "T": T} for B, T in shapes for name in names(s)]
    for row in progress(rows, desc="memory"):
        with ProcessPoolExecutor(1, get_context("spawn")) as alone:
            row["peak_bytes"] = alone.submit(peak_memory, s, *row.values()).result()
    steps = {name: module and Step(module, s) for name in names(s) for module in [make(s, name)]}
    with progress(total=len(rows) * (s.repeats + 2), desc="time") as bar:
        for B, T in shapes:
            tokens, targets = batch(s, B, T)
            tasks = {name: lambda f=step: f(tokens, targets) for name, step in steps.items() if step}
            seconds = take_turns(tasks, s.repeats, bar)
            for row in rows:
                if (row["B"], row["T"]) == (B, T) and row["model"] in seconds:
                    row["seconds"] = seconds[row["model"]]
                    row["tokens_per_second"] = B * T / row["seconds"]
                    row["parameters"] = sum(p.numel() for p in steps[row["model"]].module.parameters())
    return rows


def peak_memory(s, name, B, T):
    """Bytes that steps of B x T take above what the same process took for steps of 1 x 16; None where unknown."""
    set_threads(s)
    module, peaks = make(s, name), []
    if not module:
        return None
    step = Step(module, s)
    for shape in ((1, 16), (B, T)):
        for _ in range(2):
            step(*batch(s, *shape))
        peaks.append(peak_of_this_process(s))
    return peaks[1] - peaks[0] if None not in peaks else None


def peak_of_this_process(s):
    """Bytes: the GPU's if that is where we are, else the process's; None where neither is known."""
    device = find_device(s.device).type
    if device != "cpu":
        return torch.cuda.max_memory_allocated() if device == "cuda" else None
    try:
        import resource  # not on Windows
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@torch.inference_mode()
def generate(s):
    """-> a row for each model and position: the time of one more token there."""
    rows, models = [], {name: make(s, name) for name in names(s, [x for x in MODELS if "torch" not in x])}
    for position in progress(list(map(int, s.positions.split()))):
        text, _ = batch(s, 1, position)
        readers = {name: Reader(module.eval().model) for name, module in models.items() if module}
        with autocast(s):
            for reader in readers.values():
                for piece in text.split(512, dim=1):
                    reader.read(piece)
            tasks = {name: lambda f=reader: f.read(text[:, :1]) for name, reader in readers.items()}
            seconds = take_turns(tasks, 10 * s.repeats)
        for name in models:
            rows.append({"model": name, "position": position})
            if name in seconds:
                rows[-1] |= {"seconds": seconds[name], "tokens_per_second": 1 / seconds[name]}
    return rows


class Reader:
    """Reads tokens (1, T) after all that it has read -> logits of the next one."""

    def __init__(self, model):
        self.model, self.past = model, None

    def read(self, tokens):
        if isinstance(self.model, LanguageModel):
            x, self.past = self.model.features(tokens, self.past)
            return self.model.head(x[:, -1])
        output = self.model(tokens, past_key_values=self.past, use_cache=True, logits_to_keep=1)
        self.past = output.past_key_values
        return output.logits


def score(s):
    """
    -> rows: pairs/s of ours, and of lm-eval with a Llama of the same size at its best batch size. They take turns
    paradigm by paradigm, each read once, after two small ones to warm up and to find that size.
    """
    subtasks = [x._replace(records=x.records[: s.pairs_each]) for x in read_benchmark(s.pairs).values()]
    asked = [question for x in subtasks for record in x.records for question in ask(x, record)]
    sentences = [text for context, text in asked]
    tokenizer = data.train_tokenizer(((text, True, True) for text in sentences * 2), s.vocab_size)
    rows, tasks, share = [], {}, tokens_read(tokenizer, subtasks)
    for name in progress(names(s, ["HGRN2", "minGRU", "our Llama"]), desc="memory"):
        with ProcessPoolExecutor(1, get_context("spawn")) as alone:
            peak = alone.submit(peak_of_scoring, s, name, subtasks[0], tokenizer.to_str()).result()
        rows.append({"model": name, "pairs": len(sentences) // 2, "peak_bytes": peak, "tokens_read": share})
        tasks[name] = partial(score_subtask, make(s, name).model.eval(), tokenizer)
    peer = "lm-eval, transformers Llama, batches of"
    theirs = {f"{peer} {size}": lm_eval(tokenizer, size, s) for size in (16, 64, 256)}
    with torch.inference_mode(), autocast(s):
        small = subtasks[0]._replace(records=subtasks[0].records[:100])
        tasks |= fastest({name: task for name, task in theirs.items() if task}, small, s)
        for task in tasks.values():
            task(small)
        seconds = dict.fromkeys(tasks, 0.0)
        for subtask in progress(subtasks, unit="paradigm"):
            for name, task in tasks.items():
                began = time.perf_counter()
                task(subtask)
                seconds[name] += time.perf_counter() - began
    peer = next((name for name in tasks if "lm-eval" in name), "lm-eval")
    rows.append({"model": peer, "pairs": len(sentences) // 2})
    for row in rows:
        if row["model"] in seconds:
            row["pairs_per_second"] = row["pairs"] / seconds[row["model"]]
    return rows


def tokens_read(tokenizer, subtasks):
    """The share of the subtasks' tokens that are read: what texts share is read once."""
    every = read = 0
    for subtask in subtasks:
        texts = [text for record in subtask.records for text in ask(subtask, record)]
        rows = sorted(ids[:-1] for ids, _ in encode(tokenizer, texts))
        every += sum(map(len, rows))
        read += len(as_tree(rows)[0])
    return read / every


def fastest(tasks, subtask, s):
    """Of {name: function of a subtask} the one that is done first; {} of none."""
    seconds = take_turns({name: lambda f=task: f(subtask) for name, task in tasks.items()}, repeats=3)
    return {name: tasks[name] for name in sorted(tasks, key=seconds.get)[:1]}


def peak_of_scoring(s, name, subtask, tokenizer):
    """Bytes that a process takes in all, PyTorch included, to score a subtask."""
    set_threads(s)
    with torch.inference_mode(), autocast(s):
        score_subtask(make(s, name).model.eval(), Tokenizer.from_str(tokenizer), subtask)
    return peak_of_this_process(s)


def lm_eval(tokenizer, size, s):
    """A function that has lm-eval score a subtask as it does BLiMP; None if it is not here or not asked for."""
    module = make(s, "transformers Llama") if names(s, ["transformers Llama"]) else None
    try:
        from lm_eval.api.instance import Instance
        from lm_eval.models.huggingface import HFLM
        from transformers import PreTrainedTokenizerFast
    except ImportError:
        return None
    if not module:
        return None
    words = dict(bos_token=data.BOS, eos_token=data.EOS, pad_token=data.PAD)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **words)
    lm = HFLM(pretrained=module.model.eval(), tokenizer=wrapped, batch_size=size, max_length=512)

    def score(subtask):
        texts = [text for record in subtask.records for _, text in ask(subtask, record)]
        asked = [Instance("loglikelihood", {}, ("", " " + text), i) for i, text in enumerate(texts)]
        return lm.loglikelihood(asked, disable_tqdm=True)

    return score


def start(s):
    """-> one row: the time from the command to the first step of the default run, its data prepared."""
    place, seconds = data.find("toy").parent.resolve(), []
    here = Path(__file__).resolve().parent
    command = [sys.executable, str(here / "train.py"), str(here / "config" / "toy.py"), "--log_every=1"]
    for _ in progress(range(s.repeats)):
        with TemporaryDirectory() as folder:
            began, log = time.perf_counter(), Path(folder, "out", "toy", "log.jsonl")
            run = subprocess.Popen(
                command, cwd=folder, env=os.environ | {"NANORNN_DATA": str(place)},
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            while run.poll() is None and not (log.exists() and '"loss"' in log.read_text(encoding="utf-8")):
                time.sleep(0.01)
            seconds.append(time.perf_counter() - began)
            if run.poll() is not None:
                fail(f"{' '.join(command)}: ended before its first step; run it to see why")
            run.kill()
            run.wait()
    return [{"model": "train.py config/toy.py", "seconds_to_first_step": statistics.median(seconds)}]


OF_MODELS = {"train": train, "generate": generate, "score": score, "start": start}
BENCHMARKS = OF_MODELS | {"minrnn": bench_minrnn.measure, "kernels": bench_kernels.measure}
BENCHMARKS |= {"compile": compile_kernels.measure}


# ----------------------------------------------------------------------------------------------------
# Results


def set_threads(s):
    if s.threads:
        torch.set_num_threads(s.threads)


def machine(s):
    """Where this was measured."""
    device = find_device(s.device)
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    name = torch.cuda.get_device_name() if device.type == "cuda" else capabilities.get("cpu_name")
    vectors = "AVX-512" if capabilities.get("avx512_f") else "AVX2" if capabilities.get("avx2") else ""
    return {
        "device": f"{name or platform.processor()} {vectors}".strip() if device.type == "cpu" else name,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "system": platform.system(),
    }


@torch.no_grad()
def products_per_second(s):
    """The machine's limit: floating-point operations per second of an MLP's matrix product, ours and PyTorch's."""
    x, weight = torch.randn(2048, s.d_model), torch.randn(s.d_mlp, s.d_model)
    x, weight = x.to(find_device(s.device)), weight.to(find_device(s.device))
    with autocast(s):
        tasks = {
            "flops": lambda: linear(x, weight),
            "flops_of_torch": lambda: nn.functional.linear(x, weight),
        }
        seconds = take_turns(tasks, 10 * s.repeats)
    return {name: 2 * x.numel() * len(weight) / seconds[name] for name in seconds}


def main(s):
    """Measure, print a table, add it to the results file."""
    set_threads(s)
    about = machine(s)
    if s.what in OF_MODELS:
        about |= products_per_second(s)
    if s.what == "kernels":
        about |= bench_kernels.limits(find_device(s.device))
    rows = BENCHMARKS[s.what](s)
    name = "compile" if s.what == "compile" else f"bench_{find_device(s.device).type}"
    path = Path(s.results or f"results/{name}.json")
    results = measured_before(path)
    key = f"{s.what}_{s.dtype}" if s.what in OF_MODELS else s.what
    results[key] = about | {"rows": kept(s, results.get(key, {}).get("rows", ())) + rows}
    with replacing(path) as file:
        file.write(as_text(results))
    for row in rows:
        print("  ".join(f"{name} {show(value)}" for name, value in row.items()))
    print(f"written: {path}" + f"; python figures.py {path} draws it" * (s.what != "compile"))
    if wrong := [row for row in rows if row.get("wrong")]:
        fail(f"{len(wrong)} of {len(rows)} kernels are wrong")
    return rows


def measured_before(path):
    """What a results file holds."""
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except ValueError as error:
        fail(f"{path}: not a results file of bench.py ({reason(error)}); move it away")


def kept(s, rows):
    """Of the rows in the file those that are not measured again: of the kernels that are not asked for."""
    asked = s.kernels.split(",") if s.what == "kernels" and s.kernels else ()
    return [row for row in rows if asked and row["kernel"] not in asked]


def as_text(results):
    """JSON, with a line for each row."""
    return re.sub(r"{[^{}]*}", lambda row: " ".join(row[0].split()), json.dumps(results, indent=1)) + "\n"


def show(value):
    return f"{value:,.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else value


if __name__ == "__main__":
    run_script(lambda args: main(configure(Settings(), args, word="what")))
