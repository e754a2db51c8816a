"""What counting gives: an n-gram model's scores are those of Kneser and Ney's equations, with dictionaries."""

import json
import math
from collections import Counter, defaultdict
from pathlib import Path

import data
import evaluate
from corpora import toyland
from support.files import fingerprint, save
from support.settings import configure
from tools import ngram

import numpy as np
import pytest

ORDERS = 1, 2, 3, 4, 5


@pytest.fixture(scope="module")
def toyland_corpus(tmp_path_factory):
    """A folder with data/english: 10,000 words of toyland's stories and 400 tokens for validation."""
    folder = tmp_path_factory.mktemp("ngram")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        text = "\n\n".join(toyland.stories(words=10_000))
        Path("text.txt").write_text(text, encoding="utf-8")
        data.prepare("english", ["text.txt"], data.Settings(vocab_size=400, val_share=0.05))
    return folder


@pytest.fixture
def corpus(toyland_corpus, monkeypatch):
    """The current folder is the one above -> the token ids of train.bin and val.bin."""
    monkeypatch.chdir(toyland_corpus)
    monkeypatch.delenv("NANORNN_DATA", raising=False)
    return [np.fromfile(f"data/english/{split}.bin", dtype="<u2").tolist() for split in ("train", "val")]


def run_ngram(*args):
    return ngram.main(configure(ngram.Settings(), list(args), word="corpus"))


class KneserNey:
    """Interpolated Kneser-Ney by dictionaries, one token at a time, in float64."""

    def __init__(self, tokens, order, vocab_size, bos, discount=0.75):
        self.order, self.vocab_size, self.discount = order, vocab_size, discount
        self.counts = defaultdict(dict)  # context -> {token: count}
        frequency, preceding = Counter(), defaultdict(set)
        for n in range(1, order + 1):
            for i in range(len(tokens) - n + 1):
                gram = tuple(tokens[i : i + n])
                frequency[gram] += 1
                preceding[gram].add(tokens[i - 1] if i > 0 else None)
        for gram in frequency:
            count = len(preceding[gram] - {None}) or 1
            if len(gram) == order or (gram[0] == bos and len(gram) > 1):
                count = frequency[gram]
            self.counts[gram[:-1]][gram[-1]] = count

    def p(self, token, context):
        """The probability of a token after a context of at most order - 1 tokens; None: below the unigram."""
        if context is None:
            return 1 / self.vocab_size
        lower = self.p(token, context[1:] if context else None)
        counts = self.counts.get(context)
        if not counts:
            return lower
        kept = max(counts.get(token, 0) - self.discount, 0)
        return (kept + self.discount * len(counts) * lower) / sum(counts.values())

    def log_p(self, ids, first):
        contexts = [tuple(ids[max(0, t - self.order + 1) : t]) for t in range(len(ids))]
        return sum(math.log(self.p(ids[t], contexts[t])) for t in range(first, len(ids)))


def texts_of(train, val):
    """Texts as evaluate.encode makes them: with and without <s>, seen and unseen, short and long."""
    texts = [([1, *val[i : i + 9]], 1) for i in range(5, len(val) - 9, 40)]
    texts += [(train[i : i + 12], 4) for i in range(0, 4000, 199)]
    texts += [(list(range(399, 340, -1)), 1), ([1], 1), ([7, 8], 1), (train[:6], 1), (train[-6:], 2)]
    return texts


@pytest.mark.parametrize("order", ORDERS)
def test_every_score_equals_brute_force(corpus, order):
    """Of single tokens, of texts and of the whole validation text, whose perplexity agrees to 1e-9."""
    train, val = corpus
    folder = run_ngram("english", f"--order={order}")
    model, tokenizer, settings = ngram.load(folder)
    exact = KneserNey(train, order, tokenizer.get_vocab_size(), tokenizer.token_to_id("<s>"))
    texts, done = texts_of(train, val), []
    found = model.score_texts(texts, done.append)
    assert found == pytest.approx([exact.log_p(*text) for text in texts], rel=1e-9)
    assert sum(done) == len(texts) and found[texts.index(([1], 1))] == 0
    tokens = model.score_texts([(val[: t + 1], t) for t in range(1, 300)])
    assert tokens == pytest.approx([exact.log_p(val[: t + 1], t) for t in range(1, 300)], rel=1e-9)
    (score,) = model.score_texts([(val, 1)])
    perplexities = [math.exp(-x / (len(val) - 1)) for x in (score, exact.log_p(val, 1))]
    assert perplexities[0] == pytest.approx(perplexities[1], rel=1e-9)
    assert model.size == sum(map(len, exact.counts.values()))
    assert settings.step * settings.batch_size * settings.context == len(train)


@pytest.mark.parametrize("order", ORDERS)
def test_probabilities_sum_to_one(corpus, order):
    """After contexts that were seen, that were not, and those of which only the end was seen."""
    model, _, _ = ngram.load(run_ngram("english", f"--order={order}", "--discount=0.4", "--run=sums"))
    train, _ = corpus
    for context in (
        [1],
        train[50:54],
        train[:3],
        train[-4:],
        [399, 398, 397, 396],
        [399, *train[50:53]],
        [0],
    ):
        scores = model.score_texts([([*context, token], len(context)) for token in range(model.vocab_size)])
        assert sum(map(math.exp, scores)) == pytest.approx(1, abs=1e-12), context


def test_texts_of_the_same_tokens_tie_for_the_unigram(corpus):
    """Exactly, whatever the order of the tokens: a tie is a verdict of its own."""
    model, _, _ = ngram.load(run_ngram("english", "--order=1"))
    _, val = corpus
    for start in range(1, 200, 10):
        text = val[start : start + 20]
        orders = text, sorted(text), text[::-1]
        assert len(set(model.score_texts([([1, *ids], 1) for ids in orders]))) == 1


def test_evaluate_scores_it_like_a_run(corpus):
    """Perplexity and verdicts are those of brute force; the results say what was counted."""
    train, val = corpus
    pairs = [("The dog saw Mia.", "Saw dog the Mia."), ("Tom is old.", "Tom are old.")]
    lines = [json.dumps({"sentence_good": good, "sentence_bad": bad}) for good, bad in pairs]
    Path("pairs.jsonl").write_text("\n".join(lines))
    folder = run_ngram("english")
    results = evaluate.main(evaluate.Settings(run=str(folder), tasks="pairs.jsonl", dtype="float64"))
    _, tokenizer, settings = ngram.load(folder)
    exact = KneserNey(train, 3, tokenizer.get_vocab_size(), tokenizer.token_to_id("<s>"))
    loss = -exact.log_p(val, 1) / (len(val) - 1)
    assert results["perplexity"] == pytest.approx(math.exp(loss), rel=1e-9)
    rows = map(json.loads, (folder / "pairs_pairs.jsonl").read_text().splitlines())
    for row, texts in zip(rows, pairs, strict=True):
        expected = [exact.log_p(*text) for text in evaluate.encode(tokenizer, [("", x) for x in texts])]
        assert [row["good"], row["bad"]] == pytest.approx(expected, rel=1e-9)
    assert results["tokens"] == len(train) and results["checkpoint"] == settings.digest
    assert results["parameters"] == sum(map(len, exact.counts.values()))


def test_a_run_folder_is_small_known_and_the_same_each_time(corpus):
    folder = run_ngram("english")
    first = fingerprint(folder / "checkpoint.pt")
    assert folder == run_ngram("english", "--order=3") == Path("out/english_3gram")
    model, tokenizer, settings = ngram.load(folder / "checkpoint.pt")
    assert settings.digest == first == fingerprint(settings.checkpoint)
    assert (settings.corpus, settings.mixer, settings.run) == ("english", "3-gram", "english_3gram")
    assert tokenizer.to_str() == data.Tokenizer.from_file("data/english/tokenizer.json").to_str()
    assert settings.checkpoint.stat().st_size < 10 * model.size
    assert ngram.is_ngram(folder) and ngram.is_ngram(folder / "checkpoint.pt")
    trained = Path("out/trained")
    trained.mkdir(parents=True)
    save({"model": {}, "settings": {}}, trained / "checkpoint.pt")
    for content in ({"mixer": "hgrn2", "corpus": "english"}, {"mixer": 3, "order": 3}, ["mixer"], "3-gram"):
        (trained / "settings.json").write_text(json.dumps(content))
        assert not ngram.is_ngram(trained) and not ngram.is_ngram(trained / "checkpoint.pt")
    assert not ngram.is_ngram("out/none") and not ngram.is_ngram("data/english")


def test_a_mistake_is_one_clear_line(corpus, refusal):
    """Nothing is written then, and a run that was trained is never replaced."""
    assert "data/englisch; did you mean 'english'?" in refusal(run_ngram, "englisch", "--run=new")
    for wrong in ("--order=0", "--order=6", "--discount=0.0", "--discount=1.0", "--order=2.5"):
        said = refusal(run_ngram, "english", wrong, "--run=new")
        assert said.startswith(wrong[2:7]) or said.startswith("--order: "), said
        assert said.count("\n") == 1
    Path("out/hgrn2").mkdir(parents=True, exist_ok=True)
    save({"model": {}, "settings": {}}, "out/hgrn2/checkpoint.pt")
    before = Path("out/hgrn2/checkpoint.pt").read_bytes()
    assert "out/hgrn2: holds a run that was trained" in refusal(run_ngram, "english", "--run=hgrn2")
    assert "out/hgrn2/checkpoint.pt: not an n-gram model" in refusal(ngram.load, "out/hgrn2")
    assert Path("out/hgrn2/checkpoint.pt").read_bytes() == before and not Path("out/new").exists()


def test_a_damaged_file_is_named(corpus, refusal):
    folder = run_ngram("english", "--order=2", "--run=damaged")
    path = folder / "checkpoint.pt"
    content = path.read_bytes()
    for damaged in (content[:-1000], content[:5000] + b"?" + content[5001:], b""):
        path.write_bytes(damaged)
        said = refusal(ngram.load, folder)
        assert f"{path} is damaged" in said and "make it again: python -m tools.ngram" in said
    path.unlink()
    assert "no intact n-gram model here" in refusal(ngram.load, folder)


@pytest.mark.parametrize("bos", [None, 1])
def test_any_sequence_of_tokens_is_counted_right(bos):
    """Of few tokens and of many, with an n-gram that is only at the beginning, with and without <s>."""
    for seed in range(20):
        r = np.random.default_rng(seed)
        vocab_size = int(r.integers(2, 12))
        tokens = [vocab_size, *r.integers(0, vocab_size, r.integers(5, 200)).tolist()]
        order = 1 + seed % 5
        tables = ngram.count(np.array(tokens, dtype="<u2"), order, vocab_size + 1, bos)
        model = ngram.NGram(tables, 0.75, vocab_size + 1)
        exact = KneserNey(tokens, order, vocab_size + 1, bos)
        texts = [(r.integers(0, vocab_size + 1, 8).tolist(), 1) for _ in range(10)] + [(tokens, 1)]
        assert model.score_texts(texts) == pytest.approx([exact.log_p(*x) for x in texts], rel=1e-9), seed


def test_a_corpus_without_enough_text_is_refused(corpus, refusal):
    """One with fewer tokens than the order, and one whose targets are answers."""
    Path("word.txt").write_text("cat\n")
    Path("val.txt").write_text("dog\n")
    data.prepare("word", ["word.txt"], data.Settings(vocab_size=260, val="val.txt"))
    tokens = np.fromfile("data/word/train.bin", dtype="<u2")[:4]
    tokens.tofile("data/word/train.bin")
    meta = json.loads(Path("data/word/meta.json").read_text())
    meta["train"]["tokens"] = 4
    Path("data/word/meta.json").write_text(json.dumps(meta))
    assert "4 tokens are too few for order = 5" in refusal(run_ngram, "word", "--order=5")
    tokens.tofile("data/word/train_targets.bin")
    assert "its targets are answers" in refusal(run_ngram, "word")
    assert not list(Path("out").glob("word*"))
