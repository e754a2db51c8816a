"""
Selective copying (Gu & Dao 2023, arXiv:2312.00752), sampled as in minRNN's official code:

    python data.py copying [NAME] [--length=64] [--tokens=8] [--sequences=100000] [--seed=0]

    inputs     . . c . . a . . . c . ? ? ?
    targets                          c a c

Each sequence is noise (.) with letters at random places, then as many markers (?), at which the letters must be
predicted in order. A block of training is one sequence, and before the markers there are no targets.
"""

from dataclasses import dataclass

import data
from corpora.shakespeare import character_tokenizer
from support.console import progress
from support.files import replacing
from support.settings import UserError, at_least

import numpy as np

CHARACTERS = "?abcdefghijklmn."  # the 16 tokens: marker, letters to copy, noise
MARKER, NOISE = 0, 15
VALIDATION = 1000  # sequences
BATCH = 1000  # sequences drawn at once


@dataclass
class Settings:
    length: int = 64  # of the noise, including the letters in it
    tokens: int = 8  # letters to copy
    sequences: int = 100_000  # to train on
    seed: int = 0  # of the sequences

    def check(self):
        at_least(0, self, "seed")
        at_least(1, self, "length", "tokens", "sequences")
        if self.tokens > self.length:
            most = f"no more than length = {self.length} can lie in the noise"
            raise UserError(f"tokens = {self.tokens}: {most}")


def make(name="copying", s=Settings()):
    """Sample the corpus data/NAME -> its folder."""
    folder = data.data_folder() / name
    data.mark_unfinished(folder)
    train = write(folder / "train.bin", s.sequences, np.random.default_rng([s.seed, 0]), s)
    val = write(folder / "val.bin", VALIDATION, np.random.default_rng([s.seed, 1]), s)
    ids = {character: i for i, character in enumerate(CHARACTERS)}
    tokenizer = character_tokenizer(ids, CHARACTERS[NOISE])
    sources = {file: data.sha256(folder / file) for file in ("train.bin", "val.bin")}
    data.finish(folder, tokenizer, train, val, sources, context=s.length + s.tokens)
    return folder


def write(path, count, generator, s):
    """Write `count` sequences, and their targets beside them -> the Split of the inputs."""
    targets_path = path.with_stem(f"{path.stem}_targets")
    with replacing(path, "wb") as inputs_file, replacing(targets_path, "wb") as targets_file:
        inputs, targets = data.Split(inputs_file), data.Split(targets_file)
        targets.add([data.NO_TARGET])  # a target stands where the next token would
        for start in progress(range(0, count, BATCH), desc=path.stem):
            input_rows, target_rows = sample(generator, min(BATCH, count - start), s)
            inputs.add(input_rows.ravel())
            targets.add(target_rows.ravel())
        inputs.add([NOISE])
    inputs.words, inputs.documents = count * s.tokens, count
    return inputs


def sample(generator, count, s):
    """Draw sequences -> inputs, targets (count, length + tokens)."""
    places = generator.random((count, s.length)).argsort(axis=1)[:, : s.tokens]
    places = np.sort(places, axis=1)  # (count, tokens)
    letters = 1 + (generator.random((count, s.tokens)) * (NOISE - 1)).astype(np.int64)
    inputs = np.full((count, s.length + s.tokens), NOISE)
    targets = np.full_like(inputs, data.NO_TARGET)
    np.put_along_axis(inputs, places, letters, axis=1)
    inputs[:, s.length :], targets[:, s.length :] = MARKER, letters
    return inputs, targets
