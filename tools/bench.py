"""
Speed and memory: our models beside what one would otherwise run, on this machine.

    python -m tools.bench train     training steps over sequence length, and the memory they take
    python -m tools.bench generate  one token at a time, at the start of a text and far into it
    python -m tools.bench score     minimal pairs, beside lm-eval's harness
    python -m tools.bench start     from `python train.py` to the first step
    python -m tools.bench minrnn    a layer of minGRU and minLSTM beside GRU's and LSTM's; see
                                    bench_minrnn.py
    python -m tools.bench kernels   the recurrences alone, over sequence length; see
                                    bench_kernels.py
    python -m tools.bench compile   registers and shared memory of the Triton kernels, compiled for
                                    GPUs that are not here; see compile_kernels.py

All models have the same width, read the same tokens and have about the same number of parameters;
for that, PyTorch's LSTM and GRU have more layers. They are measured alternately in one process;
times are medians, in `score` a sum. The peers come with `pip install transformers "lm_eval[hf]"
flash-linear-attention`; one that is missing or runs out of memory gets a row that says so. Each
benchmark replaces its own entry in results/bench_cpu.json (or _cuda, _mps; compile.json); draw the
figures with `python -m tools.figures results/bench_cpu.json`.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

if not __package__:  # `python tools/bench.py` would look for our modules beside it
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import support  # noqa: F401  (before torch is loaded: see there)
from model import Config
from support.console import run_script
from support.devices import find_device
from support.settings import UserError, at_least, configure, one_of
from tools import bench_kernels, bench_minrnn, bench_models, compile_kernels
from tools.measure import machine, read_results, set_up, write_results

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # PyTorch's profiler, which measures memory

BENCHMARKS = {
    "train": bench_models.train,
    "generate": bench_models.generate,
    "score": bench_models.score,
    "start": bench_models.start,
    "minrnn": bench_minrnn.measure,
    "kernels": bench_kernels.measure,
    "compile": compile_kernels.measure,
}
EXAMPLES = {"shapes": "8x256", "sizes": "64x512x64", "positions": "16"}


@dataclass
class Settings:
    what: str = ""  # train, generate, score, start, minrnn, kernels or compile
    models: str = ""  # which models, comma-separated; none: all
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
    recurrences: str = ""  # which ones, comma-separated; none: all
    repeats: int = 9  # timings to take the median of
    device: str = "auto"  # cuda, cuda:1, mps, cpu; auto: the first one available
    compiled: str = "auto"  # training steps by torch.compile, peers' too: yes, no; auto: on CUDA both
    dtype: str = "float32"  # float32, or bfloat16 by autocast
    results: str = ""  # the file that figures are added to; none: results/bench_DEVICE.json

    def check(self):
        """Raise UserError if a setting cannot work."""
        one_of("what", self.what, BENCHMARKS)
        at_least(1, self, "d_model", "n_layer", "n_head", "d_mlp", "vocab_size", "pairs_each", "repeats")
        one_of("compiled", self.compiled, ("auto", "yes", "no"))
        one_of("dtype", self.dtype, ("float32", "bfloat16"))
        find_device(self.device)
        Config(d_model=self.d_model, n_head=self.n_head, vocab_size=self.vocab_size, position="rope").check()
        for name, choices in (("models", bench_models.MODELS), ("recurrences", bench_kernels.KERNELS)):
            words = getattr(self, name)
            for word in words.split(",") if words else ():
                one_of(name, word, choices)
        for name in EXAMPLES:
            self.numbers(name)

    def chosen(self, name, choices):
        """Return those of the choices that a setting like "HGRN2,minGRU" names; all if it is empty."""
        words = getattr(self, name)
        return [choice for choice in choices if not words or choice in words.split(",")]

    def numbers(self, name):
        """Return a setting like "8x256 1x4096" as [(8, 256), (1, 4096)]."""
        sizes, example = [], EXAMPLES[name]
        for word in getattr(self, name).split():
            numbers = word.split("x")
            positive = all(number.isdecimal() and int(number) > 0 for number in numbers)
            if not positive or len(numbers) != len(example.split("x")):
                raise UserError(f"{name} are like '{example}', whole numbers from 1 up, not {word!r}")
            sizes.append(tuple(map(int, numbers)))
        return sizes


def main(s):
    """Measure, replace this benchmark's entry in the results file, print and return its rows."""
    set_up(s)
    device = find_device(s.device)
    name = "compile" if s.what == "compile" else f"bench_{device.type}"
    path = Path(s.results or f"results/{name}.json")
    results = read_results(path)
    about = machine(s)
    if s.what == "train":
        about |= bench_models.limits(s)
    if s.what == "kernels":
        about |= bench_kernels.limits(device)
    rows = BENCHMARKS[s.what](s)
    if not rows:
        raise UserError(f"{s.what} measures none of models = {s.models!r}")
    of_models = s.what in ("train", "generate", "score", "start")
    results[f"{s.what}_{s.dtype}" if of_models else s.what] = about | {"rows": rows}
    write_results(path, results)
    for row in rows:
        print("  ".join(f"{name} {as_text(value)}" for name, value in row.items()))
    print(f"written: {path}")
    if s.what != "compile":
        print(f"draw it: python -m tools.figures {path}")
    wrong = [row for row in rows if row.get("wrong")]
    if wrong:
        raise UserError(f"{len(wrong)} of {len(rows)} kernels are wrong")
    return rows


def as_text(value):
    """A number with commas, and with four digits if it is a float."""
    if type(value) is float:
        return f"{value:,.4g}"
    return f"{value:,}" if type(value) is int else value


if __name__ == "__main__":
    run_script(lambda args: main(configure(Settings(), args, word="what")))
