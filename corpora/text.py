"""Text files to make a corpus from: which ones are meant, whether they are text, and their lines."""

import glob
import gzip
import io
import os
import re
import zlib
from pathlib import Path

from support.console import progress
from support.settings import UserError, reason

MAX_LINE = 1 << 16  # characters; a longer line comes in parts
NOT_TEXT = {  # the first bytes of files that are often taken for text
    b"\xff\xfe": "this is UTF-16; save it as UTF-8",
    b"\xfe\xff": "this is UTF-16; save it as UTF-8",
    b"PK\3\4": "a zip archive or a document, not text; unpack it, or save it as text",
    b"%PDF": "a PDF, not text; save it as text",
    b"\xfd7zXZ": "packed by xz; unpack it",
    b"\x28\xb5\x2f\xfd": "packed by zstd; unpack it",
    b"BZh": "packed by bzip2; unpack it",
    b"PAR1\x15": "a Parquet file, not text; export its text",
    b"ARROW1\0": "an Arrow file, not text; export its text",
    b"\x93NUMPY": "a NumPy array, not text",
    b"\x80\2": "a pickle, not text",
    b"\x80\3": "a pickle, not text",
    b"\x80\4": "a pickle, not text",
    b"\x80\5": "a pickle, not text",
}


def find_files(patterns, val_patterns):
    """
    Two lists of names and patterns such as "dev/*.gz" -> two lists of files, to train and to validate on. All must
    exist; a file is taken once, and one to validate on is not trained on, by whatever path it is named.
    """
    files, val_files = expand(patterns), expand(val_patterns)
    train_files = [path for place, path in files.items() if place not in val_files]
    if not train_files:
        val = ",".join(val_patterns)
        raise UserError(f"val = {val!r}: these are all the files there are; leave some to train on")
    return train_files, list(val_files.values())


def expand(patterns):
    """["a.txt", "dev/*.gz"] -> {the file's absolute path: its path as given}, each file once, in order."""
    files = {}
    for pattern in patterns:
        found = [pattern]
        if not os.path.isfile(pattern):  # "[1].txt" may be a file's name
            found = sorted(glob.glob(pattern)) or [pattern]
        for path in found:
            if not os.path.isfile(path):
                raise UserError(f"{path or repr(path)}: there is no such text file")
            files.setdefault(os.path.realpath(path), Path(path))
    return files


class Text:
    """
    The lines of text files, plain or .gz, each with its line break, and "" at the end of each file. A line above
    MAX_LINE comes in parts, cut before a space. Bytes that are not UTF-8 become U+FFFD; `replaced` counts them.
    """

    def __init__(self, files, purpose):
        self.files, self.purpose, self.replaced = files, purpose, 0

    def __iter__(self):
        self.replaced, done = 0, 0
        total = sum(path.stat().st_size for path in self.files)
        with progress(total=total, desc=self.purpose, unit="B") as bar:
            for path in self.files:
                try:
                    with open(path, "rb") as raw:
                        for line in lines(open_text(raw, path)):
                            bar.update(done + raw.tell() - bar.n)
                            yield self.clean(line)
                except (OSError, EOFError, zlib.error, UnicodeError) as error:
                    raise UserError(f"{path}: cannot be read ({reason(error)})")
                done += path.stat().st_size
                yield ""

    def clean(self, text):
        if not text.isascii():
            text, replaced = re.subn("[\ud800-\udfff]", "\ufffd", text)
            self.replaced += replaced
        return text


def lines(file):
    """The lines of an open text file, with their line breaks; one above MAX_LINE in parts, cut before a space."""
    rest = ""
    while part := file.readline(MAX_LINE):
        part, rest = rest + part, ""
        cut = max(part.rfind(" "), part.rfind("\t"))
        if cut > 0 and not part.endswith("\n"):
            part, rest = part[:cut], part[cut:]
        yield part
    if rest:
        yield rest


def open_text(raw, path):
    """An open binary file, plain or gzipped -> an open text file; UnicodeError if it is not text."""
    packed = path.suffix == ".gz" or raw.peek(2)[:2] == b"\x1f\x8b"
    file = gzip.open(raw) if packed else raw
    begin = file.peek(1024)[:1024]
    for first_bytes, remedy in NOT_TEXT.items():
        if begin.startswith(first_bytes):
            raise UnicodeError(remedy)
    if begin[257:262] == b"ustar":
        raise UnicodeError("a tar archive, not text; unpack it")
    if begin.count(0) > len(begin) // 4:
        raise UnicodeError("this is UTF-16; save it as UTF-8")
    return io.TextIOWrapper(file, "utf-8-sig", errors="surrogateescape")
