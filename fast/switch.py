"""
The classes that have faster methods, and the subclasses that use them.

A fast method does what the plain one did when the fast one was written. If the text of the plain method, or of
what it calls (FAST), has been changed since, by a student, say, the plain method runs and a warning says so. A
change of the loops in kernels.py takes effect only with kernels = "loop".
"""

import functools
import hashlib
import inspect
import re
import sys
import warnings
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

from fast.convolution import hyena_convolve, s4d_run
from fast.layers import (
    block_linear_forward,
    gru_run,
    hgrn2_forward,
    linear_forward,
    lstm_run,
    min_gru_forward,
    min_lstm_forward,
    rms_norm_forward,
    swiglu_forward,
)
from fast.linear import HAS_AVX512
from fast.losses import distillation_forward, next_token_forward

from torch import nn


class Fast(NamedTuple):
    """A faster method, and what it was written for: the digest of the plain one and of the functions it calls."""

    name: str
    method: object
    digest: str
    calls: tuple = ()


FAST = {
    "model.NextToken": Fast("forward", next_token_forward, "699b2432", ("LanguageModel.forward",)),
    "model.RMSNorm": Fast("forward", rms_norm_forward, "267371e1"),
    "model.SwiGLU": Fast("forward", swiglu_forward, "4e595116"),
    "model.HGRN2": Fast("forward", hgrn2_forward, "288220ba", ("log_forget_gate",)),
    "model.MinGRU": Fast("forward", min_gru_forward, "eb3f5209", ("g",)),
    "model.MinLSTM": Fast("forward", min_lstm_forward, "b9be030f", ("g",)),
    "baselines.LSTM": Fast("run", lstm_run, "5e983e2f"),
    "baselines.GRU": Fast("run", gru_run, "f619ee1f"),
    "baselines.BlockLinear": Fast("forward", block_linear_forward, "1735b46f"),
    "baselines.S4D": Fast("run", s4d_run, "5560d423"),
    "baselines.Hyena": Fast("convolve", hyena_convolve, "53e274cd"),
    "distill.Distillation": Fast("forward", distillation_forward, "048c6c00", ("train.LanguageModel.forward",)),
}


@functools.cache
def fast_class(plain):
    """A class -> its subclass with the fast method; the class itself if there is none, or its text has changed."""
    if plain is nn.Linear:
        return subclass(plain, "forward", linear_forward) if HAS_AVX512 else plain
    fast = FAST.get(name_of(plain))
    if fast is None:
        return plain
    if digest_of(plain, fast) not in (fast.digest, None):
        warnings.warn(
            f"{name_of(plain)} has been changed, so it runs as it is written, without its fast form"
        )
        return plain
    return subclass(plain, fast.name, fast.method)


def subclass(plain, name, method):
    own = {"plain": plain, "__module__": plain.__module__, "__reduce_ex__": reduce_to_plain, name: method}
    return type(plain.__name__, (plain,), own)


def reduce_to_plain(self, protocol):
    """Have pickle and copy store the plain class, which can be found by its name, and make it fast again."""
    return new_module, (self.plain,), self.__dict__


def new_module(plain):
    cls = fast_class(plain)
    return cls.__new__(cls)


def name_of(cls):
    """ "model.HGRN2" for HGRN2 of model.py, wherever it was imported from; also in a script that is being run."""
    file = cls.__module__.rpartition(".")[2]
    if file == "__main__":
        file = Path(getattr(sys.modules["__main__"], "__file__", "")).stem
    return f"{file}.{cls.__name__}"


def digest_of(plain, fast):
    """A digest of the plain method and what it calls, without docstrings, comments and layout; None if unknown."""
    module = sys.modules[plain.__module__]
    functions = [getattr(plain, fast.name)] + [attrgetter(name)(module) for name in fast.calls]
    try:
        text = "".join(inspect.getsource(function) for function in functions)
    except (OSError, TypeError):  # Python without the sources
        return None
    text = re.sub(r'(?s:""".*?""")|#.*', "", text)
    return hashlib.sha256("".join(text.split()).encode()).hexdigest()[:8]
