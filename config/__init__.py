"""
Settings: dataclass defaults, then a file, then flags; the last word wins.

    python train.py config/toy.py --n_layer=4 --fresh

A settings file holds lines `name = literal`. It is parsed, never executed. A name that does not exist, a
value of the wrong type or one that cannot work ends the script with one line on stderr and status 2.
"""

import ast
import difflib
import inspect
import io
import json
import os
import re
import signal
import statistics
import sys
import time
from contextlib import contextmanager, redirect_stderr
from dataclasses import fields, replace
from pathlib import Path

from tqdm import tqdm

from start import answer, leave

OF_ANOTHER = dict.fromkeys(("models", "learning_rates", "seeds", "against"), "compare.py")
OF_ANOTHER |= dict.fromkeys(("teacher", "alpha", "temperature"), "distill.py")


def configure(defaults, args, word=None, default=None):
    """
    configure(Settings(), ["config/small.py", "--n_layer=4"]) -> Settings with those fields replaced.

    A bare word is a settings file (`default` if there is none) or a run folder to take settings from; where
    `word` names a field, it is that field's value. --help prints all settings. settings.check() has the last say.
    """
    settings = replace(defaults, **given(defaults, args, word, default))
    settings.check()
    return settings


def given(defaults, args, word=None, default=None):
    """The same as {name: value}, only what a file or flag names, and not yet checked together."""
    if "--help" in args or "-h" in args:
        print_help(defaults)
        sys.exit(0)
    flags = {}
    for arg in args:
        if arg.startswith("-"):
            flags |= read_flag(arg, defaults)
    words = [arg for arg in args if not arg.startswith("-")] or [default] * bool(default)
    if word and len(words) > 1:
        fail(f"{' '.join(words)}: one at a time, please")
    if word or not words:
        return ({word: words[0]} if words else {}) | flags
    settings = {"run": Path(words[-1]).stem}  # unless one of them names it
    for arg in words:
        settings |= read_file(arg, defaults)
        if os.path.isdir(arg):  # as it may have been copied from another place
            settings["run"] = Path(arg).resolve().name
    return settings | flags


def read_flag(arg, defaults):
    """ "--n_layer=4" -> {"n_layer": 4}; "--fresh" alone is True."""
    name, equals, text = arg.lstrip("-").partition("=")
    default = value_of(name, defaults, f"--{name}")
    if not equals:
        if isinstance(default, bool):
            return {name: True}
        fail(f"--{name} has no value: write --{name}={default}")
    if isinstance(default, str):
        return {name: text}
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        value = text
    return {name: typed(name, value, defaults, f"--{name}")}


def read_file(path, defaults):
    """Lines `n_layer = 4` -> {"n_layer": 4}. A run folder stands for the settings.json in it."""
    path = Path(path) / "settings.json" if os.path.isdir(path) else Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        fail(f"{path}: cannot read these settings ({reason(error)}); nanoRNN's own are in config/")
    try:
        if path.suffix == ".json":
            return {name: typed(name, value, defaults, path) for name, value in json.loads(text).items()}
        lines = ast.parse(text).body
    except (SyntaxError, ValueError, AttributeError, RecursionError, MemoryError) as error:
        fail(f"{path}:{getattr(error, 'lineno', 0) or 1}: expected lines `name = literal` ({error.args[0]})")
    settings = {}
    for line in lines:
        try:
            (target,), value = line.targets, ast.literal_eval(line.value)
            name = target.id
        except (AttributeError, ValueError, TypeError, RecursionError, MemoryError):
            fail(f"{path}:{line.lineno}: expected `name = literal`; settings files are read, not executed")
        keys = [ast.unparse(key) for key in getattr(line.value, "keys", ())]
        if twice := [key for key in keys if keys.count(key) > 1] or [name] * (name in settings):
            fail(f"{path}:{line.lineno}: {twice[0]} is there twice; leave one out")
        settings[name] = typed(name, value, defaults, f"{path}:{line.lineno}")
    return settings


def value_of(name, defaults, where):
    """The default of a setting; an unknown name is an error that suggests the right one."""
    names = [field.name for field in fields(defaults)]
    if name in names:
        return getattr(defaults, name)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    hint = f"did you mean '{close[0]}'?" if close else "--help lists all of them"
    hint = f"that is one of {OF_ANOTHER[name]}'s" if name in OF_ANOTHER else hint
    fail(f"{where}: there is no setting '{name}'; {hint}")


def typed(name, value, defaults, where):
    """The value, if it has the type of the default; whole numbers may stand for floats."""
    default = value_of(str(name), defaults, where)
    if isinstance(default, float) and type(value) is int and abs(value) < 1e300:
        value = float(value)
    if type(value) is not type(default):
        fail(f"{where}: {name} = {value!r} is not of type {type(default).__name__}, like {default!r}")
    return value


def one_of(name, value, choices):
    """Refuse a value that is not among the choices."""
    if value not in choices:
        close = difflib.get_close_matches(value, choices, n=1)
        hint = f"did you mean '{close[0]}'? Possible: " if close else "possible: "
        fail(f"{name} = {value!r}: {hint}{', '.join(choices)}")


def at_least(least, settings, *names):
    """Refuse numbers below the least that makes sense, and those that are not numbers."""
    for name in names:
        value = getattr(settings, name)
        if not least <= value < float("inf"):
            fail(f"{name} = {value}: must be a number, at least {least}")


def print_help(defaults):
    """Every setting with its default and the comment beside it, read from the dataclasses themselves."""
    script = sys.modules["__main__"]
    print((script.__doc__ or "").strip() + "\n\nSettings:")
    for cls in reversed(type(defaults).__mro__[:-1]):
        lines = re.findall(r"^    (\w+): \w+ = .*?  # (.*)$", inspect.getsource(cls), re.MULTILINE)
        for name, meaning in lines:
            print(f"  --{name}={getattr(defaults, name)}".ljust(32) + meaning)


def reason(error):
    """What went wrong, without the path that an OSError repeats."""
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start:,} is not UTF-8"
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error)


def progress(iterable=None, **options):
    """A tqdm bar; in a log file a line every half minute instead."""
    quiet = int(os.environ.get("RANK", 0)) > 0  # one bar for all the processes that torchrun starts
    patience = 0.1 if sys.stderr.isatty() else 30
    options |= {"delay": patience, "mininterval": patience}
    return tqdm(iterable, disable=quiet, unit_scale=True, dynamic_ncols=True, **options)


class Share:
    """One job's share of a bar over many, in place of a bar of its own; and a clock."""

    def __init__(self, bar, name):
        self.bar, self.name, self.speeds = bar, name, []

    def __call__(self, total, initial, unit):
        """What progress() is called with; one share of the bar is `total` units."""
        self.total, self.done, self.since = total, 0, time.perf_counter()
        if not self.bar.disable:
            self.bar.initial += initial / total  # done before: it says nothing of what is left
        self.bar.update(initial / total)
        return self

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def update(self, units):
        self.done += units
        self.bar.update(min(units / self.total, self.bar.total - self.bar.n))  # sums of shares are not exact

    def set_postfix_str(self, text, refresh=False):
        """Called when all units so far are really done, as by a GPU."""
        now = time.perf_counter()
        self.speeds += [self.done / (now - self.since)] * bool(self.done)
        self.done, self.since = 0, now
        self.bar.set_postfix_str(f"{self.name}: {text}", refresh)

    def speed(self):
        """Units per second, the median between texts: what comes seldom, as a start does, has no part in it."""
        return statistics.median(self.speeds) if self.speeds else None


@contextmanager
def naming(where):
    """Put a file, or a place in it, before what fail() says within."""
    try:
        with redirect_stderr(io.StringIO()) as said:
            yield
    except SystemExit as end:
        if end.code != 2:
            raise
        fail(f"{where}: {said.getvalue().strip()}")


def fail(message, kind=SystemExit):
    """End the script: the message on stderr, exit status 2. A kind of SystemExit says which end it is."""
    close_bars()
    print(message, file=sys.stderr)
    raise kind(2)


def close_bars():
    """Before a last message: or they would be drawn again, below it."""
    for bar in list(getattr(tqdm, "_instances", ())):
        bar.close()


def run_script(main):
    """main(arguments); Ctrl-C and SIGTERM end it with one line, exit status 130."""
    if hasattr(sys.stdout, "reconfigure"):  # not in a notebook
        sys.stdout.reconfigure(errors="replace")  # where a screen or file knows few letters
    try:
        answer(signal.default_int_handler)  # an exception, so that files half-written are removed on the way
        main(sys.argv[1:])
        sys.stdout.flush()
    except KeyboardInterrupt:
        leave()
    except BrokenPipeError:  # whoever read the output, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (MemoryError, RuntimeError) as error:  # numpy's and PyTorch's own, of a GPU or a CPU
        if not (isinstance(error, MemoryError) or re.search("out of memory|allocate memory", str(error))):
            raise
        what = str(error).strip().partition("\n")[0]
        fail(
            f"not enough memory ({what}): lower batch_size, context or the model's sizes, or raise accumulate"
        )
    except OSError as error:  # a name too long, a file where a folder should be
        fail(f"{error.filename or 'a file'}: {reason(error)}")
    finally:
        answer(leave)
