"""
Installed packages that have the name of a script of ours, such as Hugging Face's `kernels` and `evaluate`.

Where Python is started in this folder, another library that imports such a package gets our file. What the file
lacks, it therefore takes from the package, by its own `__getattr__`; see the end of kernels.py.
"""

import importlib
import sys
from importlib.machinery import PathFinder
from pathlib import Path

from support.settings import ROOT

packages = {}  # name: the package, None if none is installed


def attribute_of_package(script, name):
    """Attribute `name` of the installed package called `script`, as our module is; else AttributeError."""
    if script not in packages:
        packages[script] = load_package(script)
    if packages[script] is None:
        raise AttributeError(f"module {script!r} has no attribute {name!r}")
    return getattr(packages[script], name)


def load_package(name):
    """The installed package, loaded as if we had no module of that name; afterwards the name means ours again."""
    elsewhere = [folder for folder in sys.path if Path(folder).resolve() != ROOT]
    if "." in name or not PathFinder.find_spec(name, elsewhere):
        return None
    everywhere, ours = sys.path, sys.modules.pop(name)
    sys.path = elsewhere
    try:
        package = importlib.import_module(name)
        if hasattr(package, "__path__"):
            ours.__path__ = package.__path__  # where it finds its own modules that are imported later
        return package
    finally:
        sys.path, sys.modules[name] = everywhere, ours
