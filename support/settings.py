"""
Settings: dataclass defaults, then a file, then flags; the last word wins.

    python train.py config/toy.py --n_layer=4 --fresh

A settings file holds lines `name = literal`. It is parsed, never executed. A name that does not exist, a
value of the wrong type or one that cannot work raises UserError.
"""

import ast
import difflib
import inspect
import json
import os
import re
import shlex
import sys
import textwrap
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


class UserError(Exception):
    """A user's mistake, in one line; console.run_script prints it and exits with status 2."""


@contextmanager
def naming(where):
    """Prefix the message of a UserError raised inside with a file, or a place in it."""
    try:
        yield
    except UserError as error:
        raise type(error)(f"{where}: {error}") from error


# Setting -> the script that has it, for a hint in the others.
OF_ANOTHER = dict.fromkeys(("models", "learning_rates", "seeds", "against"), "compare.py")
OF_ANOTHER |= dict.fromkeys(("teacher", "alpha", "temperature"), "distill.py")
FLAGS = {"from": "from_run"}  # a Python keyword cannot name a field
USUAL = {  # setting or value -> its names in other projects
    "learning_rate": "lr rate",
    "batch_size": "bs",
    "max_steps": "steps iters max_iters iterations",
    "n_layer": "layers depth num_layers num_hidden_layers",
    "n_head": "heads num_heads num_attention_heads",
    "d_model": "dim width hidden_size n_embd",
    "context": "block_size seq_len max_length",
    "weight_decay": "wd",
    "eval_every": "eval_interval eval_steps",
    "log_every": "log_interval logging_steps",
    "mixer": "model arch",
    "corpus": "data dataset",
    "to": "out output out_dir",
    "run": "name out output out_dir",
    "tasks": "benchmarks",
    "device": "gpu cuda",
    "tokens": "length max_tokens max_new_tokens",
    "samples": "n num_samples",
    "float32": "fp32",
    "float16": "fp16 half",
    "bfloat16": "bf16",
    "attention": "transformer gpt gpt2 llama",
}
NOT_PATHS = "prompt", "text"  # settings in which ~ is not the home folder
HELP = {"--help", "-h", "--help=all"}
SCREEN = 40, 100  # lines and columns that --help should fit
WRAP = dict(initial_indent="  ", subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def configure(defaults, args, word=None, default=None):
    """
    configure(Settings(), ["config/small.py", "--n_layer=4"]) -> Settings with those fields replaced.

    A bare word is a settings file (`default` if there is none) or a run folder to take settings from; or, if
    `word` names a field, the value of that field. --help explains the settings. The result is checked.
    """
    settings = replace(defaults, **given(defaults, args, word, default))
    settings.check()
    return settings


def given(defaults, args, word=None, default=None):
    """The settings that a file or flag names, {name: value}, each of the right type, not yet checked together."""
    words, settings = read_args(args, defaults)
    if default and not words:
        words = [default]
    asked = HELP & set(args)
    if word and len(words) > 1 and not asked:
        raise UserError(f"{' '.join(words)}: one at a time, please")
    if word == "run" and words:
        check_run(words[0])
    if word and words:
        settings = {word: words[0]} | settings
    else:
        settings = read_files(words, defaults) | settings
    if asked:
        print_help(replace(defaults, **settings), settings if "--help=all" not in args else None)
        sys.exit(0)
    return settings


def read_args(args, defaults):
    """["config/small.py", "--n_layer=4"] -> (["config/small.py"], {"n_layer": 4})."""
    words, settings = [], {}
    args = [arg for arg in args if arg not in HELP]
    for arg, following in zip(args, [*args[1:], ""]):
        if arg.startswith("-"):
            settings |= read_flag(arg, following, defaults)
        else:
            check_word(arg, defaults)
            words.append(os.path.expanduser(arg))
    return words, settings


def read_flag(arg, following, defaults):
    """ "--n_layer=4" -> {"n_layer": 4}; "--fresh" alone is True. `following` is the next argument."""
    flag, equals, text = arg.lstrip("-").partition("=")
    name = FLAGS.get(flag, flag)
    default = value_of(name, defaults, f"--{flag}")
    if not equals:
        if isinstance(default, bool) and following not in ("True", "False", "true", "false"):
            return {name: True}
        value = default
        if following and not following.startswith("-"):
            value = shlex.quote(following)
        raise UserError(f"--{flag} has no value: write --{flag}={value}")
    value = text
    if not isinstance(default, str):
        try:
            value = ast.literal_eval(text.title() if isinstance(default, bool) else text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            pass  # not of the right type then
    return {name: typed(name, value, defaults, f"--{flag}")}


def check_word(text, defaults):
    """Raise UserError for a word that was meant as a flag: n_layer=4, or one with a dash from a word processor."""
    name, equals, value = text.lstrip("\u2013\u2014\u2212").partition("=")
    close = nearest(name, list(vars(defaults)))
    if close and (equals or name == close) and not os.path.exists(text):
        raise UserError(f"{text}: did you mean --{close}={value or 'VALUE'}?")


def check_run(path):
    """Raise UserError for a folder of runs, and for a run that is not there if another has nearly its name."""
    close = nearest(Path(path).name, [folder.name for folder in Path("out").glob("*")])
    if close and not os.path.exists(path):
        raise UserError(f"{path}: there is no such run; did you mean out/{close}?")
    runs = sorted(Path(path).glob("*/checkpoint.pt"))
    if runs and not os.path.exists(Path(path, "checkpoint.pt")):
        raise UserError(f"{path}: a folder of runs; name one of them, such as {runs[0].parent}")


def read_files(paths, defaults):
    """The settings of files and run folders, the last word wins; the last path also names the run."""
    settings = {"run": Path(paths[-1]).stem} if paths else {}
    for path in paths:
        settings |= read_file(path, defaults)
        if os.path.isdir(path):  # as it may have been copied from another place
            settings["run"] = Path(path).resolve().name
    return settings


def read_file(path, defaults, above=()):
    """
    Lines `n_layer = 4` -> {"n_layer": 4}. A run folder stands for the settings.json in it. A line
    `base = "OTHER.py"` takes whatever is not set here from that file, in the same folder; `above` are the files
    that led to this one by their base.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        path = path / "settings.json"
    if not path.exists() and (ROOT / path).exists():  # config/toy.py, from any folder
        path = ROOT / path
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        hint = "nanoRNN's own are in config/"
        close = nearest(path.stem, [file.stem for file in ROOT.glob("config/*.py")])
        if close and not path.exists():
            hint = f"did you mean config/{close}.py?"
        if path.suffix == ".pt":
            hint = f"to train as that run was, name its folder, {path.parent}"
        raise UserError(f"{path}: cannot read these settings ({reason(error)}); {hint}") from error
    lines = read_json(text, path) if path.suffix == ".json" else read_literals(text, path)
    base, where = lines.pop("base", ("", path))
    above = (*above, path.name)
    if not isinstance(base, str) or base in above:
        raise UserError(f"{where}: base = {base!r} is not another settings file in this folder")
    settings = read_file(path.parent / base, defaults, above) if base else {}
    return settings | {name: typed(name, value, defaults, where) for name, (value, where) in lines.items()}


def read_json(text, path):
    """The text of a settings.json -> {name: (value, where it stands)}."""
    try:
        settings = dict(json.loads(text))
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: expected settings as JSON, {{name: value}} ({error})") from error
    if "benchmarks" in settings:
        raise UserError(f"{path}: results, not settings; to train as that run was, name its folder")
    return {name: (value, path) for name, value in settings.items()}


def read_literals(text, path):
    """Lines `name = literal` -> {name: (value, where it stands)}. Nothing is executed."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = getattr(error, "lineno", 0) or 1
        raise UserError(f"{path}:{line}: expected lines `name = literal` ({error.args[0]})") from error
    settings = {}
    for line in tree.body:
        where = f"{path}:{line.lineno}"
        try:
            (target,), value = line.targets, ast.literal_eval(line.value)
            name = target.id
        except (AttributeError, ValueError, TypeError, RecursionError, MemoryError) as error:
            rule = "settings files are read, not executed"
            raise UserError(f"{where}: expected `name = literal`; {rule}") from error
        keys = [ast.unparse(key) for key in getattr(line.value, "keys", ())]
        twice = [key for key in keys if keys.count(key) > 1]
        if name in settings:
            twice.append(name)
        if twice:
            raise UserError(f"{where}: {twice[0]} is there twice; leave one out")
        settings[name] = value, where
    return settings


def value_of(name, defaults, where):
    """The default of a setting; an unknown name is an error that suggests the right one."""
    names = [field.name for field in fields(defaults)]
    if name in names:
        return getattr(defaults, name)
    close = nearest(name, names)
    hint = "--help=all lists all of them"
    if close:
        hint = f"did you mean '{close}'?"
    if str(where).endswith(".json"):
        hint = "the file is of another version of nanoRNN: use that, or take it out"
    if name in OF_ANOTHER:
        hint = f"that is one of {OF_ANOTHER[name]}'s"
    raise UserError(f"{where}: there is no setting '{name}'; {hint}")


def nearest(word, choices):
    """The choice that a misspelt or shortened word, or its USUAL name, probably means; None if none is near."""
    plain = {re.sub(r"[\W_]", "", choice.lower()): choice for choice in choices}
    word = word.lower().replace("-", "_")
    for choice, others in USUAL.items():
        if choice in choices and word in others.split():
            return choice
    word = word.replace("_", "")
    begun = [choice for choice in plain if choice.startswith(word) and len(word) > 2]
    close = begun or difflib.get_close_matches(word, plain, n=1)
    return plain[close[0]] if close else None


def typed(name, value, defaults, where):
    """The value, if it has the type of the default; whole numbers may stand for floats, ~ for the home folder."""
    default = value_of(str(name), defaults, where)
    if isinstance(default, float) and type(value) is int and abs(value) < 1e300:
        return float(value)
    if type(value) is not type(default):
        kind = type(default).__name__
        raise UserError(f"{where}: {name} = {value!r} is not of type {kind}, like {default!r}")
    if isinstance(value, str) and name not in NOT_PATHS:
        return ",".join(map(os.path.expanduser, value.split(",")))
    return value


def one_of(name, value, choices):
    """Raise UserError, with a suggestion, if a value is not among the choices."""
    if value not in choices:
        close = nearest(value, choices)
        hint = f"did you mean '{close}'? Possible: " if close else "possible: "
        error = UserError(f"{name} = {value!r}: {hint}{', '.join(choices)}")
        error.choices = {name: list(choices)}
        raise error


def at_least(least, settings, *names):
    """Raise UserError for numbers below `least`, and for NaN and inf."""
    for name in names:
        value = getattr(settings, name)
        if not least <= value < float("inf"):
            raise UserError(f"{name} = {value}: must be a number, at least {least}")


def print_help(settings, named=None):
    """
    Print the script's docstring and its settings. If they do not fit a screen, only those that a file or flag has
    `named` are explained, and the others listed; with None, all are explained.
    """
    script = (sys.modules["__main__"].__doc__ or "").strip()
    explained, (lines, columns) = explain(settings), SCREEN
    if named is None or script.count("\n") + sum(map(len, explained.values())) < lines - 3:
        named = explained
    else:
        explained = explain(settings, most_choices=12)
    print(f"{script}\n\nSettings:")
    for name in explained:
        if name in named:
            print("\n".join(explained[name]))
    others = " ".join(f"--{name}={getattr(settings, name)}" for name in explained if name not in named)
    if others:
        print(f"Others, which --help=all explains:\n{textwrap.fill(others, columns - 2, **WRAP)}")


def explain(settings, most_choices=99):
    """{name: lines with a setting's value, the comment beside it in the dataclass, and its possible values}"""
    explained = {}
    for cls in reversed(type(settings).__mro__[:-1]):
        found = re.findall(r"^    (\w+): \w+ = .*?(?:  # (.*))?$", inspect.getsource(cls), re.MULTILINE)
        for name, meaning in found:
            value = textwrap.shorten(str(getattr(settings, name)), 80, placeholder=" ...")
            choices = choices_of(name, settings)
            if len(choices) <= most_choices and not all(choice in meaning for choice in choices):
                meaning = f"{meaning}; possible: {', '.join(choices)}"
            lines = [" " * 28 + line for line in textwrap.wrap(meaning, 70)] or [""]
            head = f"  --{name}={value}"
            if len(head) < 27:
                lines[0] = head.ljust(28) + lines[0].strip()
            else:
                lines.insert(0, head)
            explained[name] = lines
    return explained


def choices_of(name, settings):
    """The possible values of a setting that is one of some words: its check lists them when it gets another."""
    if isinstance(getattr(settings, name), str):
        try:
            replace(settings, **{name: "?"}).check()
        except UserError as error:
            return getattr(error, "choices", {}).get(name, [])
    return []


def reason(error):
    """The message of an error, without the path that an OSError repeats."""
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start:,} is not UTF-8"
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error)
