"""What toyland promises: the same text everywhere, tests it does not give away, real formats."""

import hashlib
import inspect
import json
import re
import subprocess
import sys
import zipfile
from functools import cache

from conftest import ROOT
from corpora import toyland

import pytest

FIRST_20K_WORDS = "ec1eb85773385e6a6354434274d33302ea7830182389ad31087b5ba2b53ad51a"


@cache
def training_text():
    """Teller and stories that a corpus of 300,000 words begins with."""
    teller, texts, words = toyland.Teller(0), [], 0
    while words < 300_000:
        texts.append(toyland.story(teller))
        words += len(texts[-1].split())
    return teller, texts


@pytest.fixture(autouse=True)
def told_once(monkeypatch):
    """Whoever asks for 300,000 words gets those that training_text has made already: seconds less."""
    stories = toyland.stories

    def told(seed=0, words=1_000_000):
        return iter(training_text()[1]) if (seed, words) == (0, 300_000) else stories(seed, words)

    monkeypatch.setattr(toyland, "stories", told)


@cache
def pairs():
    return toyland.minimal_pairs()


@cache
def told_text():
    return "\n".join(training_text()[1])


def sentences(uid):
    return [(pair["sentence_good"], pair["sentence_bad"]) for pair in pairs()[uid]]


def test_the_same_seed_gives_the_same_bytes_on_every_machine():
    text = "\n\n".join(toyland.stories(seed=0, words=20_000))
    assert hashlib.sha256(text.encode()).hexdigest() == FIRST_20K_WORDS


def samples():
    """A story, a pair of each paradigm, items as EWoK and BEAR have them."""
    pairs = [
        toyland.attempt(toyland.Teller(uid, True), make) for uid, (make, *_) in toyland.PARADIGMS.items()
    ]
    return repr((next(toyland.stories()), pairs, toyland.ewok_items(3), toyland.bear_relations()))


def test_the_stories_do_not_depend_on_the_hash_seed_of_python():
    """They are the same in another process with a seed of its own."""
    code = "from corpora import toyland\n" + inspect.getsource(samples) + "print(samples())"
    environment = {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "1"}
    command = [sys.executable, "-c", code]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ended.stdout == samples() + "\n"


def test_another_seed_tells_other_stories():
    assert list(toyland.stories(1, 500)) != list(toyland.stories(2, 500))


def test_a_longer_text_begins_with_the_shorter_one():
    short, long = list(toyland.stories(0, 1000)), list(toyland.stories(0, 3000))
    assert long[: len(short)] == short and 1000 <= len(" ".join(short).split()) < 1200


def test_the_stories_use_no_held_out_combination():
    teller, texts = training_text()
    assert texts[:100] == [text for text, _ in zip(toyland.stories(0), range(100))]
    assert len(teller.used) > 2500
    assert not any(toyland.held_out(*combination) for combination in teller.used)


@pytest.mark.parametrize("uid", toyland.PARADIGMS)
def test_the_tests_use_only_held_out_combinations(uid):
    teller = toyland.Teller(uid, examiner=True)
    for _ in range(200):
        toyland.attempt(teller, toyland.PARADIGMS[uid][0])
    assert teller.used and all(toyland.held_out(*combination) for combination in teller.used)
    assert teller.used.isdisjoint(training_text()[0].used)


def subject_and_verb(line):
    """Read off the words: "The old dogs have often slept near the barn." -> ("dog", "sleep")."""
    nouns = {form: noun for noun in toyland.COMMON for form in (noun, toyland.plural_of(noun))}
    nouns |= {name: name for name in toyland.NAMES}
    verbs = {
        form: verb
        for kind in ("rest", "handle", "meet", "reflect", "think", "say")
        for verb in toyland.WORDS[kind]
        for form in toyland.conjugate(verb)
    }
    skipped = set("has have had is are was were will can must didn't doesn't don't not ever".split())
    skipped |= set(toyland.WORDS["adverb"])
    before = {"the", "a", "an", "only", "even", "then", *toyland.WORDS["alive"]}
    words = re.findall(r"[\w']+", line)
    while words and words[0].lower() in before:
        words.pop(0)
    if words and (noun := nouns.get(words.pop(0))):
        while words and words[0] in skipped:
            words.pop(0)
        if words and (verb := verbs.get(words[0])):
            return noun, verb


def test_no_sentence_of_the_stories_begins_with_a_held_out_subject_and_verb():
    lines = [line for text in training_text()[1] for line in text.split("\n")]
    found = {combination for line in lines if (combination := subject_and_verb(line))}
    assert len(found) > 1000
    assert not any(toyland.held_out(*combination) for combination in found)


def test_the_sentences_of_the_tests_begin_with_held_out_subjects_and_verbs():
    found = {c for uid in pairs() for good, _ in sentences(uid) if (c := subject_and_verb(good))}
    assert len(found) > 100
    assert all(toyland.held_out(*combination) for combination in found)


def test_no_good_or_bad_sentence_of_a_test_is_in_the_stories():
    lines = {line for text in training_text()[1] for line in text.split("\n")}
    for uid in pairs():
        assert not lines & {text for pair in sentences(uid) for text in pair}, uid


def test_there_are_at_least_sixteen_paradigms():
    assert len(toyland.PARADIGMS) >= 16


def test_the_paradigms_have_names_and_terms_of_blimp(real_data):
    with zipfile.ZipFile(real_data("blimp/blimp.zip")) as blimp:
        for uid, (record, *_) in pairs().items():
            theirs = json.loads(blimp.read(f"data/{uid}.jsonl").splitlines()[0])
            for name in ("field", "linguistics_term", "UID"):
                assert record[name] == theirs[name], uid
            assert set(record) <= set(theirs), uid


def test_each_paradigm_has_two_hundred_different_pairs():
    for uid in pairs():
        assert len(pairs()[uid]) == len(set(sentences(uid))) == 200, uid


@pytest.mark.parametrize("uid", toyland.PARADIGMS)
def test_both_sentences_of_a_pair_are_equally_long_and_differ_minimally(uid):
    for good, bad in sentences(uid):
        assert good != bad
        good, bad = toyland.tokens(good), toyland.tokens(bad)
        assert len(good) == len(bad)
        assert sorted(good) == sorted(bad) or sum(g != b for g, b in zip(good, bad)) <= 2


def test_word_frequency_is_no_help():
    unigram, _ = toyland.counting_models(300_000)
    for uid in pairs():
        assert 48 <= toyland.accuracy(unigram, pairs()[uid]) <= 52, uid


def test_pairs_of_neighbouring_words_are_little_help():
    _, bigram = toyland.counting_models(300_000)
    scores = [toyland.accuracy(bigram, pairs()[uid]) for uid in pairs()]
    assert sum(scores) / len(scores) < 70


def test_bad_sentences_never_occur_in_the_stories():
    """The stories hold no mistake of the kinds that a regular expression can find."""
    text = "\n".join(training_text()[1])
    plurals = "|".join(toyland.plural_of(noun) for noun in toyland.COMMON + toyland.THINGS)
    singulars = "|".join(toyland.COMMON + toyland.THINGS)
    for mistake in (
        rf"\b([Tt]his|[Tt]hat|[Ee]very|[Ee]ach|[Aa]n?) ({plurals})\b",
        rf"\b([Tt]hese|[Tt]hose|[Mm]any|[Tt]wo|[Tt]hree|[Mm]ost) ({singulars})\b",
        rf"^(The|These|Many) ({plurals}) (is|was|has|doesn't)\b",
        rf"^(The|This|A|Every|Each) ({singulars}) (are|were|have|don't)\b",
        r"[Tt]here (is|was|are|were) (all|most|every|each)\b",
        r"\b(?!that)(\w+) \1\b",
        r" [,.?]|  ",
    ):
        assert not re.search(mistake, text, re.MULTILINE), mistake
    for line in text.split("\n"):
        if " ever " in line:
            assert re.match(r"Only|Had|Has|Have", line) or " not ever " in line, line


def test_any_construction_may_open_a_story():
    openings = {text.split("\n")[0].split()[0] for text in training_text()[1]}
    assert {"Mia", "The", "These", "No", "There", "Only", "Has", "Had", "What", "Who"} <= openings


def test_every_word_of_the_tests_is_met_often_in_the_stories():
    counts = toyland.word_counts()
    for uid in pairs():
        for text in sum(sentences(uid), ()):
            assert min(counts[word] for word in toyland.tokens(text)) >= 5, text
    assert 400 < len(counts) < 1000


def told(relation, x, y):
    """The wordings in which the stories state a fact, be it within a longer sentence."""
    wordings = toyland.wordings(relation)
    return [wording for wording in wordings if toyland.fill(wording, X=x, Y=y) in told_text()]


def test_every_fact_is_told_in_two_wordings_and_never_in_the_third():
    for relation in toyland.FACTS:
        for x, y in toyland.facts(relation):
            wordings = told(relation, x, y)
            assert len(wordings) == 2 and toyland.unspoken(relation, x) not in wordings, (x, y)


def test_no_story_contradicts_a_fact():
    for relation in toyland.FACTS:
        truth = toyland.facts(relation)
        for x, y in [(x, y) for x, _ in truth for _, y in truth if (x, y) not in truth]:
            assert not told(relation, x, y), (x, y)


def test_ewok_items_are_fair_and_new():
    items = toyland.ewok_items()
    text = "\n".join(training_text()[1])
    assert len(items) >= 100 and len({item["Domain"] for item in items}) >= 3
    for item in items:
        contexts, targets = (item["Context1"], item["Context2"]), (item["Target1"], item["Target2"])
        assert len(set(contexts)) == len(set(targets)) == 2
        assert len({len(text.split()) for text in targets}) == 1
        assert not any(sentence in text for sentence in targets)


def test_bear_relations_have_three_templates_and_right_answers():
    records, metadata = toyland.bear_relations()
    assert set(records) == set(metadata) and len(records) >= 4
    for relation, facts in records.items():
        labels = metadata[relation]["answer_space_labels"]
        assert len(metadata[relation]["templates"]) == 3
        assert len(labels) == len(metadata[relation]["answer_space_ids"]) == len(set(labels))
        assert all("[X]" in t and "[Y]" in t for t in metadata[relation]["templates"])
        assert all(labels[fact["answer_idx"]] == fact["obj_label"] for fact in facts)


def test_a_folder_is_written_whole_and_again_the_same(tmp_path):
    toyland.write(tmp_path / "a", words=4000)
    toyland.write(tmp_path / "b", words=4000)
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert not [file for file in files if file.suffix == ".tmp"]
    assert all((tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes() for file in files)
    assert {"train.txt", "val.txt", "bear/metadata_relations.json"} <= {file.as_posix() for file in files}
    assert len(list((tmp_path / "a" / "blimp").iterdir())) == len(toyland.PARADIGMS)
    train, val = ((tmp_path / "a" / name).read_bytes() for name in ("train.txt", "val.txt"))
    assert b"\r" not in train and b"\n\n\n" not in train and 20 < len(train) / len(val) < 60
    assert not set(train.decode().split("\n\n")) & set(val.decode().split("\n\n")) - {""}


def test_print_shows_stories_and_a_pair_of_each_paradigm(capsys):
    toyland.main(["--print=100"])
    said = capsys.readouterr().out
    assert all(uid in said for uid in toyland.PARADIGMS)
