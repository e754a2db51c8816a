"""
Tiny Shakespeare in single characters, as nanoGPT and the papers use it: python data.py shakespeare [FILE]

The first 90 % is the training text, the rest is for validation. The vocabulary is the text's own 65 characters,
and the text is one stream without <s>, so that losses compare with the papers': a text begins as if after a
line break. A character that Shakespeare does not use is read as a space.
"""

import gzip
import hashlib
import zlib

import data
from corpora.download import fetch
from support.files import replacing
from support.settings import UserError, reason

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
BYTES, SHA256 = 1_115_394, "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"  # of that file
FILE = "tinyshakespeare.txt"  # in a data folder, plain or .gz


def make(name="shakespeare", file=None):
    """Make data/shakespeare of the text in `file`, or in a data folder, or fetched -> the corpus's folder."""
    text = read(file).decode("ascii")
    characters = {character: i for i, character in enumerate(sorted(set(text)))}
    folder = data.data_folder() / name
    data.mark_unfinished(folder)
    cut = len(text) * 9 // 10
    train = write_tokens(folder / "train.bin", text[:cut], characters)
    val = write_tokens(folder / "val.bin", text[cut:], characters)
    data.finish(folder, character_tokenizer(characters, " "), train, val, {FILE: SHA256})
    return folder


def write_tokens(path, text, ids):
    """Write a text as a token file, by {character: id} -> its Split."""
    with replacing(path, "wb") as file:
        split = data.Split(file)
        split.add([ids[character] for character in text])
    split.words, split.documents = len(text.split()), 1
    return split


def character_tokenizer(ids, unknown):
    """{character: id} -> a tokenizer with a token per character; other characters are read as `unknown`."""
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


def read(file=None):
    """The text's bytes, from a file, plain or .gz; without one, from a data folder or from the web."""
    home = data.data_folder() / FILE
    by_hand = f"fetch {URL} by hand and put it at {home}"
    path = file or data.look_for(FILE) or data.look_for(f"{FILE}.gz")
    if path is None:
        text = fetch(URL, by_hand)
        check(text, URL, by_hand)
        with replacing(home, "wb") as copy:
            copy.write(text)
        return text
    try:
        with gzip.open(path) if str(path).endswith(".gz") else open(path, "rb") as opened:
            text = opened.read(BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read ({reason(error)}); {by_hand}")
    check(text, path, by_hand)
    return text


def check(text, source, by_hand):
    """Refuse a text that differs from the papers' in any byte."""
    if hashlib.sha256(text).hexdigest() != SHA256:
        what = f"not tiny Shakespeare, {BYTES:,} bytes of SHA-256 {SHA256[:12]}..."
        raise UserError(f"{source}: {what}; {by_hand}")
