"""
Files that survive kill -9, full disks and flipped bits.

A file is written beside its name, forced to disk, then renamed: at every moment either the old or the new one
is whole. Checkpoints are ordinary PyTorch files (zip archives) that carry the SHA-256 of their own bytes as
the archive's comment, and are loaded with weights_only=True, so nothing in them is executed.
"""

import errno
import hashlib
import json
import os
import struct
import sys
import tempfile
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path

from support.processes import rank, together
from support.settings import UserError, reason

import torch

DIGEST = 64  # hex digits of a SHA-256
ALTERED = "its SHA-256 does not match: cut short, altered, or not written by nanoRNN"
SUFFIX = struct.pack("<H", DIGEST)  # a zip archive ends with the length of its comment, then the comment


def save(state, path, previous=None):
    """Write `state` (tensors, numbers, strings, lists, dicts); what was at `path` stays as `previous`."""
    with replacing(path, "w+b", previous) as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:
            raise error.__context__ or error  # a full disk, say, behind PyTorch's "unexpected pos"
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(-len(SUFFIX), os.SEEK_END)  # the empty comment's length
        file.write(SUFFIX + digest.encode())


def read(path):
    """
    Read a checkpoint file, or the last good one of a run folder -> (state, on the CPU, its path). A damaged
    file is named on stderr and the one before it is taken; UserError if none is left. state["digest"] is the
    SHA-256 of what was read, whatever train.py has written to that path meanwhile.
    """
    path = Path(path)
    if path.is_file() and path.suffix != ".pt":
        with open(path, "rb") as file:
            if file.read(2) != b"PK":
                remedy = f"name the run's folder, {path.parent}, or a .pt file in it"
                raise UserError(f"{path}: not a checkpoint; {remedy}")
    candidates = [path / "checkpoint.pt", path / "previous.pt"] if path.is_dir() else [path]
    found = [candidate for candidate in candidates if candidate.exists()]
    for candidate in found:
        problem = ALTERED
        try:
            with open(candidate, "rb") as file:
                digest = intact_digest(file)
                if digest:
                    file.seek(0)
                    saved = torch.load(file, map_location="cpu", weights_only=True)
                    return saved | {"digest": digest}, candidate
        except FileNotFoundError:  # renamed to previous.pt this moment
            continue
        except OSError as error:
            problem = reason(error)
        except Exception as error:  # PyTorch's, for a file with a right digest that nanoRNN has not written
            problem = f"more than numbers and text, and nothing in a file is executed: {type(error).__name__}"
        print(f"{candidate} is damaged ({problem}) and is not used", file=sys.stderr)
    if found:
        raise UserError(
            f"{path}: no intact checkpoint here; take best.pt if there is one, or train anew with --fresh"
        )
    raise UserError(f"{path}: no checkpoint here; make one: python train.py config/toy.py")


def damage(path):
    """The problem with a checkpoint file, in words; None if its bytes are those that were written."""
    try:
        with open(path, "rb") as file:
            return None if intact_digest(file) else ALTERED
    except OSError as error:
        return reason(error)


def intact_digest(file):
    """The SHA-256 that an open checkpoint carries, if it matches its bytes; else None."""
    digest = hashlib.sha256()
    left = os.fstat(file.fileno()).st_size - len(SUFFIX) - DIGEST
    while left > 0:
        piece = file.read(min(left, 1 << 20))
        digest.update(piece)
        left -= len(piece)
    digest.update(b"\0\0")  # where the comment's length was still 0
    whole = file.read() == SUFFIX + digest.hexdigest().encode()
    return digest.hexdigest() if whole else None


def fingerprint(path):
    """The SHA-256 that a checkpoint carries, unless it is damaged."""
    with open(path, "rb") as file:
        file.seek(max(0, os.path.getsize(path) - DIGEST))
        return file.read().decode("ascii", "replace")


@contextmanager
def replacing(path, mode="w", previous=None):
    """
    Open a new file that takes the place of `path` once it is complete and on disk; the old one can stay as
    `previous`. If writing fails, the old file is untouched, the new one removed, and UserError says why.
    """
    path = Path(path)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.unfinished")  # two processes may write one path
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": "\n"}
    file = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(unfinished, mode, **text)
        yield file
        file.flush()
        os.fsync(file.fileno())
        file.close()
        if previous and path.exists():
            path.replace(previous)
        unfinished.replace(path)
        sync_folder(path.parent)
    except BaseException as error:
        if file:
            with suppress(OSError):  # what its buffer holds does not fit either
                file.close()
        size = unfinished.stat().st_size if unfinished.exists() else 0
        with suppress(OSError):  # on a disk that is read-only by now
            unfinished.unlink()
        if isinstance(error, OSError):
            not_written(path, size, error)
        raise


def remove_unfinished(folder):
    """Delete what `replacing` left in a folder when its process was killed."""
    for file in folder.glob("*.unfinished"):
        file.unlink()


def write_json(path, content):
    with replacing(path) as file:
        file.write(json.dumps(content, indent=1) + "\n")
    print(f"written: {path}")


@contextmanager
def in_turn(path):
    """Context manager: wait for the lock of a file and hold it. Windows has no such locks."""
    with open(path, "rb") as file:
        if find_spec("fcntl"):
            import fcntl

            with suppress(OSError):  # a network's file system may have no locks
                fcntl.flock(file, fcntl.LOCK_EX)
        yield


def can_write(folder):
    """False if a folder is read-only; other errors, such as a full disk, show when a file is written."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError as error:
        return error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS)


def append(path, record):
    """Add a line of JSON to a file. If that fails, the file stays as it was, and UserError says why."""
    size = path.stat().st_size if path.exists() else 0
    try:
        with open(path, "a", encoding="utf-8", newline="\n") as file:
            file.write(json.dumps(record) + "\n")
    except OSError as error:
        with suppress(OSError):
            os.truncate(path, size)
        not_written(path, size, error)


def not_written(path, size, error):
    """Raise UserError for a file that could not be written."""
    full = error.errno in (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", None))  # Windows has none
    when = "there is room" if full else "files can be written there"
    kept = f"what was there is kept: once {when}, the same command continues"
    raise UserError(f"{path}: not written after {size:,} bytes ({reason(error)}); {kept}")


@contextmanager
def alone_in(folder):
    """Context manager that locks a run's folder (not on Windows): two processes in it would mix their logs."""
    handle = None
    with together():
        if rank() == 0:
            folder.mkdir(parents=True, exist_ok=True)
            handle = lock(folder) if find_spec("fcntl") else None
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)  # as the end of the process does, kill -9 included
        if rank() == 0:
            with suppress(OSError):
                folder.rmdir()  # if nothing was written there


def lock(folder):
    """Lock a folder -> its open handle; UserError if another process holds the lock."""
    import fcntl  # not on Windows

    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise UserError(f"{folder}: another process is training there; wait until it ends, or set --run=NAME")
    except OSError:  # a network's file system may have no locks
        pass
    return handle


def sync_folder(folder):
    """Force a rename to disk, where the system lets a folder be opened."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)
