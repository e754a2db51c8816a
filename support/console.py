"""Progress bars, messages, and how a script ends."""

import os
import re
import signal
import sys
import threading
import time
from _thread import interrupt_main
from contextlib import contextmanager, redirect_stderr, redirect_stdout

from support.processes import Stopped, launched, local_rank, rank
from support.settings import UserError, reason

from tqdm import tqdm


def run_script(main):
    """
    Run main(arguments). A UserError, lack of memory or an unusable file ends with one line on stderr and exit
    status 2; Ctrl-C and SIGTERM, which raise KeyboardInterrupt here, with one line and exit status 130.
    """
    if hasattr(sys.stdout, "reconfigure"):  # not in a notebook
        sys.stdout.reconfigure(errors="replace")  # for screens and files that lack some letters
    if signal.getsignal(signal.SIGTERM) != signal.SIG_IGN:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.unraisablehook = repeat_ctrl_c
    try:
        main(sys.argv[1:])
        sys.stdout.flush()
    except Stopped:  # main has said so
        sys.exit(130)
    except KeyboardInterrupt:
        leave("stopped", 130)
    except BrokenPipeError:  # whoever read the output, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except UserError as error:
        if local_rank() > 0:  # the first process refuses the same, and torchrun then ends this one, as a rule
            wait_to_be_ended()
        leave(error, 2)
    except OSError as error:  # a name too long, a file where a folder should be
        leave(f"{error.filename or 'a file'}: {reason(error)}", 2)
    except (MemoryError, RuntimeError) as error:  # numpy's and PyTorch's own, of a GPU or a CPU
        if "closed by peer" in str(error):  # another process has ended, and torchrun ends this one, as a rule
            wait_to_be_ended()
        if isinstance(error, RuntimeError) and not re.search("out of memory|allocate memory", str(error)):
            raise
        what = str(error).strip().partition("\n")[0]
        remedy = "lower batch_size, context or the model's sizes, or raise accumulate"
        leave(f"not enough memory ({what}): {remedy}", 2)


def refuse_torchrun():
    """Raise UserError in a single-process script: several processes would overwrite each other's files."""
    if launched() > 1:
        raise UserError("this script is one process: start it with python, not torchrun")


@contextmanager
def only_first_speaks():
    """Context manager: all processes but the first print nothing, not even that they were stopped."""
    if rank() == 0:
        yield
        return
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        try:
            yield
        except KeyboardInterrupt:
            raise Stopped


def repeat_ctrl_c(lost):
    """Repeat a KeyboardInterrupt that Python lost, as it does one raised while garbage is collected."""
    if issubclass(lost.exc_type, KeyboardInterrupt):
        threading.Timer(0.1, interrupt_main).start()
    else:
        sys.__unraisablehook__(lost)


def wait_to_be_ended():
    """Wait for torchrun to end this process; return if it does not within five seconds."""
    try:
        time.sleep(5)
    except KeyboardInterrupt:
        if local_rank() == 0:
            leave("stopped", 130)
        sys.exit(2)


def leave(message, status):
    """Exit with a status and a last line on stderr."""
    close_bars()
    print(message, file=sys.stderr)
    sys.exit(status)


def say(message):
    """Print a line, once for all processes, without breaking the progress bar."""
    if rank() == 0:
        tqdm.write(message)


def progress(iterable=None, **options):
    """A tqdm bar; in a log file a line every half minute instead."""
    patience = 0.1 if sys.stderr.isatty() else 30
    options |= {"delay": patience, "mininterval": patience}
    return tqdm(iterable, disable=rank() > 0, unit_scale=True, dynamic_ncols=True, **options)


def close_bars():
    """Close all progress bars, before a last message: tqdm would draw them again below it."""
    for bar in list(getattr(tqdm, "_instances", ())):
        bar.close()
