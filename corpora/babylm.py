"""
BabyLM's corpora of 10 and 100 million words, in the release of 2026: python data.py babylm-10m

They are fetched from the Hugging Face hub unless data/ or NANORNN_DATA has them, and their words are counted. The
organisers' dev files are the validation text.
"""

import data
from corpora.download import hub
from support.console import progress
from support.settings import UserError, reason

DOMAINS = "bnc_spoken childes gutenberg open_subtitles simple_wiki switchboard".split()
BABYLM = {  # folder -> repository@revision, megabytes, ending of the file names, words of each file
    "babylm-10m": (
        "BabyLM-community/BabyLM-2026-Strict-Small@c92ab16b4f08858304b0815706065b3354d8fc0a",
        55,
        ".train.txt",
        (762_073, 2_841_101, 2_557_721, 2_282_877, 1_531_437, 24_791),
    ),
    "babylm-100m": (
        "BabyLM-community/BabyLM-2026-Strict@9e57baaaa91ac3c638746be14d1d5fa6c789f4cf",
        550,
        ".train.txt",
        (7_620_671, 28_410_878, 25_576_896, 22_828_747, 15_314_317, 248_491),
    ),
    "babylm-dev": (
        "BabyLM-community/BabyLM-dev@169f42e32d0aaf65ec6b91d55bafad27a3afc729",
        57,
        ".dev",
        (1_252_593, 2_716_591, 2_819_070, 2_077_019, 1_405_366, 148_340),
    ),
}


def make(name):
    """
    Make data/babylm-10m or -100m -> its folder. A line of these files is an utterance, a paragraph or a title.
    Empty lines end documents; transcripts of speech go on without one for very long, so a document also ends after
    20 lines. <s>, which every score starts from, is thus read some 50,000 times in 10 million words.
    """
    files = text_files(name)
    with data.making("babylm-dev"):
        val_files = text_files("babylm-dev")
    return data.prepare(name, files, data.Settings(longest=20), val_files)


def text_files(name):
    """The paths of the text files of data/NAME or of NANORNN_DATA, fetched if needed, with their words counted."""
    home, size, ending, words = BABYLM[name]
    repo = f"huggingface.co/datasets/{home.partition('@')[0]}"
    names = [domain + ending for domain in DOMAINS]
    there = [x / name for x in data.data_folders() if all((x / name / file).is_file() for file in names)]
    folder = there[0] if there else data.data_folder() / name
    by_hand = f"fetch {', '.join(names)} of {repo} by hand, into {folder}"
    if there:
        print(f"{folder}: the text is already there")
    else:
        print(f"{folder}: fetching the text from {repo}, {size} MB")
        hub(home, names, folder, by_hand)
    for file, count in zip(names, words):
        check_words(folder / file, count, by_hand)
    return [str(folder / file) for file in names]


def check_words(path, expected, by_hand):
    """Refuse a text without the expected words, by str.split or bytes.split: which was used is not documented."""
    words = words_of_bytes = 0
    try:
        bar = progress(total=path.stat().st_size, desc="counting words", unit="B")
        with bar, open(path, "rb") as file:
            for line in file:
                words += len(line.decode("utf-8", "replace").split())
                words_of_bytes += len(line.split())
                bar.update(len(line))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({reason(error)}); {by_hand}")
    if expected not in (words, words_of_bytes):
        remedy = f"delete it and try again, or {by_hand}"
        raise UserError(f"{path}: {words:,} words in place of {expected:,}; {remedy}")
