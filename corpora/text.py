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
NOT_TEXT = {  # what a file is -> its first bytes
    "UTF-16": (b"\xff\xfe", b"\xfe\xff"),
    "a PDF": (b"%PDF-",),
    "a document in RTF": (b"{\\rtf",),
    "an Office document": (b"\xd0\xcf\x11\xe0",),
    "a zip archive or a document": (b"PK\3\4",),
    "a 7z archive": (b"7z\xbc\xaf",),
    "a RAR archive": (b"Rar!\x1a",),
    "packed by xz": (b"\xfd7zXZ",),
    "packed by zstd": (b"\x28\xb5\x2f\xfd",),
    "packed by bzip2": (b"BZh91AY&SY",),
    "a Parquet file": (b"PAR1\x15",),
    "an Arrow file": (b"ARROW1\0", b"FEA1\0"),
    "an Arrow stream": (b"\xff\xff\xff\xff",),
    "an Avro file": (b"Obj\1",),
    "an HDF5 file": (b"\x89HDF",),
    "a SQLite database": (b"SQLite format 3\0",),
    "a NumPy array": (b"\x93NUMPY",),
    "a pickle": (b"\x80\2", b"\x80\3", b"\x80\4", b"\x80\5", b"]q\0", b"}q\0", b"(lp0\n", b"(dp0\n"),
}
NO_LETTER = re.compile("[\0-\x08\x0e-\x1a\x1c-\x1f\x7f\ufffd]")  # control characters, bytes not in UTF-8


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
    for pattern in map(os.path.expanduser, patterns):
        found = [pattern]
        if not os.path.isfile(pattern):  # "[1].txt" may be a file's name
            found = sorted(glob.glob(pattern)) or [pattern]
        for path in found:
            check_file(path)
            files.setdefault(os.path.realpath(path), Path(path))
    return files


def check_file(path):
    """Raise UserError for a path that is not a file."""
    if os.path.isfile(path):
        return
    if os.path.isdir(path):
        raise UserError(f"{path}: a folder, not a text file; name files in it, such as {path}/*.txt")
    if os.path.exists(path):
        raise UserError(f"{path}: a pipe or device, but text is read twice; save it to a file first")
    raise UserError(f"{path or repr(path)}: there is no such text file")


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
    kind = kind_of_binary(file.peek(1024)[:1024])
    if kind:
        raise UnicodeError(f"this is {kind}, not UTF-8 text: unpack or convert it")
    return io.TextIOWrapper(file, "utf-8-sig", errors="surrogateescape")


def kind_of_binary(begin):
    """The kind of file that begins with these bytes, such as "a PDF"; None if it is UTF-8 text."""
    for kind, first_bytes in NOT_TEXT.items():
        if begin.startswith(first_bytes):
            return kind
    if begin[257:262] == b"ustar":
        return "a tar archive"
    if begin[6:9] == b"\0\0{":  # after the length of its header
        return "a safetensors file"
    text = begin.decode("utf-8", "replace")
    if 4 * begin.count(0) > len(begin) or 2 * len(NO_LETTER.findall(text)) > len(text):
        return "binary data or another encoding"
