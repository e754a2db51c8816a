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
import sys
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


OF_ANOTHER = dict.fromkeys(("models", "learning_rates", "seeds", "against"), "compare.py")
OF_ANOTHER |= dict.fromkeys(("teacher", "alpha", "temperature"), "distill.py")


def configure(defaults, args, word=None, default=None):
    """
    configure(Settings(), ["config/small.py", "--n_layer=4"]) -> Settings with those fields replaced.

    A bare word is a settings file (`default` if there is none) or a run folder to take settings from; or, if
    `word` names a field, the value of that field. --help prints all settings. The result is checked.
    """
    settings = replace(defaults, **given(defaults, args, word, default))
    settings.check()
    return settings


def given(defaults, args, word=None, default=None):
    """The settings that a file or flag names, {name: value}, each of the right type, not yet checked together."""
    if "--help" in args or "-h" in args:
        print_help(defaults)
        sys.exit(0)
    flags = {}
    for arg in args:
        if arg.startswith("-"):
            flags |= read_flag(arg, defaults)
    words = [arg for arg in args if not arg.startswith("-")] or [default] * bool(default)
    if word and len(words) > 1:
        raise UserError(f"{' '.join(words)}: one at a time, please")
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
        raise UserError(f"--{name} has no value: write --{name}={default}")
    if isinstance(default, str):
        return {name: text}
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        value = text
    return {name: typed(name, value, defaults, f"--{name}")}


def read_file(path, defaults):
    """
    Lines `n_layer = 4` -> {"n_layer": 4}. A run folder stands for the settings.json in it. A line
    `base = "OTHER.py"` takes whatever is not set here from that file, in the same folder.
    """
    path = Path(path) / "settings.json" if os.path.isdir(path) else Path(path)
    if not path.exists() and (ROOT / path).exists():  # config/toy.py, from any folder
        path = ROOT / path
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        where = "nanoRNN's own are in config/"
        raise UserError(f"{path}: cannot read these settings ({reason(error)}); {where}") from error
    lines = read_json(text, path) if path.suffix == ".json" else read_literals(text, path)
    base = lines.pop("base", (None, None))[0]
    settings = read_file(path.parent / base, defaults) if base else {}
    return settings | {name: typed(name, value, defaults, where) for name, (value, where) in lines.items()}


def read_json(text, path):
    """The text of a settings.json -> {name: (value, where it stands)}."""
    try:
        return {name: (value, path) for name, value in dict(json.loads(text)).items()}
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: expected settings as JSON, {{name: value}} ({error})") from error


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
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    hint = f"did you mean '{close[0]}'?" if close else "--help lists all of them"
    hint = f"that is one of {OF_ANOTHER[name]}'s" if name in OF_ANOTHER else hint
    raise UserError(f"{where}: there is no setting '{name}'; {hint}")


def typed(name, value, defaults, where):
    """The value, if it has the type of the default; whole numbers may stand for floats."""
    default = value_of(str(name), defaults, where)
    if isinstance(default, float) and type(value) is int and abs(value) < 1e300:
        value = float(value)
    if type(value) is not type(default):
        raise UserError(
            f"{where}: {name} = {value!r} is not of type {type(default).__name__}, like {default!r}"
        )
    return value


def one_of(name, value, choices):
    """Raise UserError, with a suggestion, if a value is not among the choices."""
    if value not in choices:
        close = difflib.get_close_matches(value, choices, n=1)
        hint = f"did you mean '{close[0]}'? Possible: " if close else "possible: "
        raise UserError(f"{name} = {value!r}: {hint}{', '.join(choices)}")


def at_least(least, settings, *names):
    """Raise UserError for numbers below `least`, and for NaN and inf."""
    for name in names:
        value = getattr(settings, name)
        if not least <= value < float("inf"):
            raise UserError(f"{name} = {value}: must be a number, at least {least}")


def print_help(defaults):
    """Every setting with its default and the comment beside it, read from the dataclasses themselves."""
    script = sys.modules["__main__"]
    print((script.__doc__ or "").strip() + "\n\nSettings:")
    for cls in reversed(type(defaults).__mro__[:-1]):
        lines = re.findall(r"^    (\w+): \w+ = .*?  # (.*)$", inspect.getsource(cls), re.MULTILINE)
        for name, meaning in lines:
            print(f"  --{name}={getattr(defaults, name)}".ljust(32) + meaning)


def reason(error):
    """The message of an error, without the path that an OSError repeats."""
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start:,} is not UTF-8"
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error)
