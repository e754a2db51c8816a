"""The first lines of every script: from here on Ctrl-C ends it with one line, even while torch is loading."""

import importlib.util
import os
import signal
import sys


def begin(name):
    """Called with __name__, so that signals are answered in a script that is run, not in one that is imported."""
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # for torch: by default, threads stall a busy laptop
    if name == "__main__":
        if sys.version_info < (3, 11) or not importlib.util.find_spec("torch"):
            sys.stderr.write(
                "nanoRNN needs Python 3.11 or newer and what is in requirements.txt: make setup\n"
            )
            sys.exit(2)
        answer(leave)


def answer(handler):
    """Let Ctrl-C and SIGTERM call the handler, unless they are ignored, as in the background of a shell."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, handler)


def leave(*signal_and_frame):
    """At once, and not by an exception, which a library could lose: there is nothing to save or to tidy up."""
    os.write(2, b"\nstopped\n")
    os._exit(130)
