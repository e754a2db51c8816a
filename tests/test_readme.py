"""The repository's claims about itself: the README's lines, numbers and commands, and the sizes it promises."""

import ast
import json
import math
import re
import shutil
import subprocess
from dataclasses import fields
from pathlib import Path
from statistics import fmean, stdev

import compare
import data
import distill
import evaluate
import finetune
import kernels
import sample
import train
from compare import count_numbers, difference
from finetune import half_width
from model import MIXERS
from support.run import runs_at_best_rate
from tools import agree, bench, export, ngram, page, submit

import pytest
import torch
from markdown_it import MarkdownIt
from test_model import build

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
USAGE = (ROOT / "USAGE.md").read_text(encoding="utf-8")
LESSON = (ROOT / "lesson.md").read_text(encoding="utf-8")
DETAILS = (ROOT / "results" / "README.md").read_text(encoding="utf-8")
PAGES = README + USAGE + LESSON + DETAILS
WORDS = " ".join(PAGES.split())  # in one line


def results(name):
    return json.loads((ROOT / "results" / f"{name}.json").read_text(encoding="utf-8"))


def toyland_score(name):
    return results(name)["benchmarks"]["toyland"]["score"]


def rows():
    """The results tables of the README, made from results/."""
    for label, names in (
        ("HGRN2, bfloat16", ["toy", "toy_1", "toy_2"]),
        ("HGRN2, float32", ["toy_float32_0", "toy_float32_1", "toy_float32_2"]),
    ):
        scores = [toyland_score(name) for name in names]
        perplexity = sum(results(name)["perplexity"] for name in names) / len(names)
        each = ", ".join(f"{score:.1f}" for score in scores)
        yield f"| {label}, three seeds | **{sum(scores) / len(scores):.1f}** ({each}) | {perplexity:.2f} |"
    yield f"| HGRN2, untrained | {results('toy')['training'][0]['pairs']['toyland']['score']:.1f} | |"
    unigram, bigram = (ROOT / "results" / "toyland_check.txt").read_text(encoding="utf-8").split()[-2:]
    yield f"| counting words (unigram) | {unigram} | |"
    yield f"| counting pairs of words (bigram) | {bigram} | |"
    log = results("english_small")["training"]
    yield f"from {log[0]['val_loss']:.2f} to {log[-1]['val_loss']:.2f}"
    facts = results("toy_facts")["benchmarks"]
    ewok, bear = facts["toyland_ewok"], facts["toyland_bear"]
    yield f"**{ewok['score']:.1f} %** of toyland's EWoK (chance is 50)"
    yield f"**{bear['score']:.1f} %** of its BEAR (chance is {bear['chance']:.1f})"


ENGLISH = {
    "blimp": "BLiMP, 67 paradigms",
    "blimp_filtered": "BLiMP as BabyLM filters it",
    "supplement": "BLiMP-Supplement",
    "ewok_filtered": "EWoK",
    "bear": "BEAR",
}


def table_of_english():
    """What evaluate.py found of english_small, beside BabyHGRN's HGRN2."""
    found, counted = (results(name)["benchmarks"] for name in ("english_small", "english_3gram"))
    (paper,) = [row for row in results("papers")["rows"] if row["name"] == "HGRN2 360M, BabyLM 10M"]
    yield "| | verdicts | HGRN2, 1.8M parameters | counting (trigram) | chance | the paper's, 366.8M |"
    yield "|---|--:|--:|--:|--:|--:|"
    for name, title in ENGLISH.items():
        x, theirs = found[name], paper["benchmarks"].get(name)
        n = sum(y["n"] for y in x["subtasks"].values())
        score = f"{x['score']:.1f} ± {x['interval']:.1f}"
        floor = f"{counted_score(counted[name]):.1f} | {x.get('chance', 50):.1f}"
        yield f"| {title} | {n:,} | {score} | {floor} | {theirs or ''} |"
        for reading, score in list(x.get("readings", {}).items())[1:]:
            floor = f"{counted[name]['readings'][reading]:.1f}"
            reading = reading.replace("|", r"\|")  # a bar alone would end the cell
            yield f"| EWoK read as {reading} | {n:,} | {score:.1f} | {floor} | 50.0 | |"


def counted_score(x):
    """An n-gram model's score on a benchmark; on EWoK in the reading of 2024 (its file is of 2026)."""
    return x.get("readings", {}).get("p(T1|C1) > p(T2|C1)", x["score"])


def table_of_counting():
    """What n-gram models of five orders know of the text that english_small reads."""
    yield f"| | n-grams | loss, nats | {' | '.join(ASKED.values())} |"
    yield "|---|--:|--:|--:|--:|--:|"
    names = [f"english_{order}gram" for order in range(1, 6)]
    for name in [*names, "english_small_2026"]:
        found = results(name)
        title, size = "HGRN2, `english_small`", ""
        if name in names:
            title, size = f"order {found['settings']['order']}", f"{found['parameters']:,}"
        scores = (found["benchmarks"][task] for task in ASKED)
        each = " | ".join(f"{x['score']:.1f} ± {x['interval']:.1f}" for x in scores)
        yield f"| {title} | {size} | {math.log(found['perplexity']):.3f} | {each} |"


OF_2026 = {
    "blimp_filtered": "BLiMP, filtered",
    "supplement": "BLiMP-Supplement",
    "ewok_filtered": "EWoK, by context",
    "entity_tracking": "entity tracking",
    "reading": "reading",
}


def table_of_2026():
    """What evaluate.py found of english_small by the rules of 2026, and of reading times without punctuation."""
    found = results("english_small_2026")["benchmarks"]
    yield "| | items | score | chance |"
    yield "|---|--:|--:|--:|"
    for name, title in OF_2026.items():
        x = found[name]
        n = max(y["n"] for y in x["subtasks"].values())
        chance = f"{x.get('chance', 50):.1f}"
        if name == "reading":
            chance = "0"
        else:
            n = sum(y["n"] for y in x["subtasks"].values())
        yield f"| {title} | {n:,} | {x['score']:.1f} ± {x['interval']:.1f} | {chance} |"


def table_of_reading():
    """Reading times, in both kinds, by whose tokens and with which words."""
    found = results("english_small_2026")["benchmarks"]["reading"]
    yield "| surprisal of | eye tracking | self-paced |"
    yield "|---|--:|--:|"
    titles = {"the organisers' tokens": {kind: x["score"] for kind, x in found["subtasks"].items()}}
    for title, score in found["readings"].items():
        title, kind = title.rsplit(", ", 1)
        titles.setdefault(title, {})[kind] = score
    for title, x in titles.items():
        yield f"| {title} | {x['eye_tracking']:.2f} | {x['self_paced']:.2f} |"


def table_of_glue():
    """What finetune.py found of english_small, beside the untrained model and the majority class."""
    found = results("english_small_glue")["benchmarks"]["glue"]["subtasks"]
    yield "| | metric | items | fine-tuned | untrained | majority class | training rows |"
    yield "|---|---|--:|--:|--:|--:|--:|"
    for task, x in found.items():
        rows = f"{x['rows']:,}"
        if "partial" in x:
            rows += f" of {x['partial']['of']:,}"
        untrained = f"{x['untrained']:.1f}" if "untrained" in x else ""
        cells = [task, x["metric"], f"{x['n']:,}", f"{x['score']:.1f} ± {x['interval']:.1f}"]
        yield f"| {' | '.join([*cells, untrained, format(x['majority'], '.1f'), rows])} |"


def table_of_agreement():
    """What agree.py found: the largest relative difference of a score, over both protocols."""
    rows = results("agreement")
    tasks = list(dict.fromkeys(row["benchmark"] for row in rows))
    pairs = (max(row["pairs"] for row in rows if row["benchmark"] == task) for task in tasks)
    titles = [f"{task}, {count:,} pairs" for task, count in zip(tasks, pairs)]
    yield f"| | {' | '.join(titles)} | verdicts that differ |"
    yield "|---|" + "--:|" * (len(tasks) + 1)
    peers = dict.fromkeys((row["peer"], row["version"]) for row in rows)
    for peer in peers:
        own = [row for row in rows if (row["peer"], row["version"]) == peer]
        worst = [max((x["relative"] for x in own if x["benchmark"] == task), default=None) for task in tasks]
        each = " | ".join("not asked" if x is None else f"{x:.1e}".replace("e-0", "e-") for x in worst)
        yield f"| {' '.join(peer)} | {each} | {sum(row['verdicts'] for row in own)} |"


TABLES = (
    table_of_english,
    table_of_agreement,
    table_of_counting,
    table_of_2026,
    table_of_reading,
    table_of_glue,
)


@pytest.mark.parametrize("table", TABLES)
def test_the_tables_of_scores_are_those_of_the_result_files(table):
    table = "\n".join(table())
    assert f"\n\n{table}\n\n" in PAGES, f"README.md or results/README.md should hold\n{table}"


def test_scores_agree_with_everybody_elses():
    """At least a thousand pairs of BLiMP a protocol and tool, by the checkpoint that the README speaks of."""
    rows, ours = results("agreement"), results("english_small")["checkpoint"]
    peers = {(row["peer"], row["transformers"].split(".")[0]) for row in rows}
    assert {("lm_eval", "5"), ("minicons", "5"), ("transformers", "4"), ("transformers", "5")} <= peers
    for row in rows:
        assert row["relative"] <= 5e-6 and row["verdicts"] == 0 and row.get("logits", 0) <= 1e-5
        assert row["checkpoint"] == ours and (row["benchmark"] != "blimp" or row["pairs"] >= 1000)


def table_of_comparison():
    """What compare.py found of the mixers on toyland, the best first."""
    rows = results("compare_toy")["rows"]
    yield "| model | parameters | state | learning rate | loss | toyland | tokens/s |"
    yield "|---|--:|--:|--:|--:|--:|--:|"
    for name, row in sorted(rows.items(), key=lambda x: -x[1]["best"]["macro"]):
        best = row["best"]
        score = f"{best['macro']:.1f} ± {best['interval']:.1f}"
        yield (
            f"| {name} | {row['parameters']:,} | {row['state']:,} | {best['learning_rate']:g} "
            f"| {best['val_loss']:.3f} | {score} | {best['tokens_per_second']:,.0f} |"
        )


def test_minrnns_speed_is_that_of_the_result_file():
    rows = results("bench_cpu")["minrnn"]["rows"]
    few, many = (
        next(x for x in rows if (x["model"], x["B"], x["T"]) == ("minGRU", B, 512))["times_the_loop"]
        for B in (8, 64)
    )
    assert f"minGRU {few:.1f} times as fast as a GRU in a loop on 8 sequences of 512 tokens" in WORDS
    assert f"512 tokens and {many:.1f} times on 64" in WORDS


def table_of_copying():
    """What evaluate.py found of selective copying: runs named copying_MIXER_LAYERS."""
    yield "| | letters right | sequences right |"
    yield "|---|--:|--:|"
    for name in ("mingru_3", "minlstm_3", "mingru_1"):
        accuracy, (mixer, layers) = results(f"copying_{name}")["accuracy"], name.split("_")
        title = f"{mixer.replace('gru', 'GRU').replace('lstm', 'LSTM')}, {layers} layer"
        plural = "s" * (layers != "1")
        yield f"| {title}{plural} | {accuracy['tokens']:.1f} % | {accuracy['sequences']:.1f} % |"


def table_of_teaching():
    """What compare.py found of a teacher on toyland and of its students, over five seeds."""
    found = results("compare_distill")
    yield "| | parameters | validation loss | toyland | less the student alone |"
    yield "|---|--:|--:|--:|--:|"
    for name, row in found["rows"].items():
        best = row["best"]
        x = found["differences"].get(name, {}).get("toyland")
        less = f"{x['mean']:+.1f} ± {x['interval']:.1f}" if x else ""
        score = f"{best['macro']:.1f} ± {best['interval']:.1f}"
        yield f"| {name} | {row['parameters']:,} | {best['val_loss']:.3f} | {score} | {less} |"


ASKED = {"blimp_filtered": "BLiMP, filtered", "supplement": "BLiMP-Supplement", "ewok_filtered": "EWoK"}
MORE = {"bear": "BEAR", "entity_tracking": "entity tracking", "glue": "GLUE: RTE, WSC, MRPC"}  # of one comparison

# Differences of two rows of the paper: a title and the names of both in papers.json.
LLAMA = "Llama less HGRN2, 360M", "Llama 360M, BabyLM 10M", "HGRN2 360M, BabyLM 10M"
TAUGHT = "HGRN2 1B, taught, less the same untaught", "BabyHGRN 1B, Pile 10M, distilled", "BabyHGRN 1B, Pile 10M"


def table_of_babyhgrn(scale="small", papers=(LLAMA,)):
    """The paper's question at a scale, then what counting gives, and what the paper found."""
    found, counted = results(f"babyhgrn_{scale}"), results("english_3gram")
    paper = {x["name"]: x["benchmarks"] for x in results("papers")["rows"]}
    scored = next(iter(found["rows"].values()))["benchmarks"]
    asked = {task: title for task, title in (ASKED | MORE).items() if task in scored}
    yield f"| | validation loss | {' | '.join(asked.values())} |"
    yield "|---|--:|" + "--:|" * len(asked)
    for name, row in found["rows"].items():
        scores = (
            f"{x['score']:.1f} ± {x['interval']:.1f}" for x in (row["benchmarks"][task] for task in asked)
        )
        losses = [run["best"]["val_loss"] for run in runs_at_best_rate(row)]
        yield f"| {name} | {fmean(losses):.3f} ± {half_width(losses):.3f} | {' | '.join(scores)} |"
    for name, x in found["differences"].items():
        each = (difference(task, x[task]) for task in ("loss", *asked))
        yield f"| **{name}, less {found['settings']['against']}** | {' | '.join(each)} |"
    scores = (counted["benchmarks"].get(task) for task in asked)
    each = " | ".join(f"{counted_score(x):.1f}" if x else "" for x in scores)
    yield f"| counting (trigram) | {math.log(counted['perplexity']):.3f} | {each} |"
    for title, one, other in papers:
        pairs = ((paper[one].get(task), paper[other].get(task)) for task in asked)
        each = ("" if None in pair else f"{pair[0] - pair[1]:+.1f}" for pair in pairs)
        yield f"| the paper: {title} | | {' | '.join(each)} |"


def table_of_tiny():
    """BabyHGRN's question at the tiny scale."""
    yield from table_of_babyhgrn("tiny", (LLAMA, TAUGHT))


def table_of_taught():
    """HGRN2 with and without a teacher on a quarter of the ten million words, beside an untrained one."""
    yield from table_of_babyhgrn("taught", (TAUGHT,))


def table_of_shakespeare():
    """The minRNN paper's language models on Shakespeare, and its losses, of models of another size."""
    paper = results("papers")["minrnn"]["shakespeare"]
    yield "| | parameters | lowest loss | at step | the paper's: loss | at step |"
    yield "|---|--:|--:|--:|--:|--:|"
    for name, row in results("compare_shakespeare")["rows"].items():
        best, theirs = row["best"], paper[name]
        cells = [f"{row['parameters']:,}", f"{best['val_loss']:.3f}", f"{best['step']:,.0f}"]
        yield f"| {name} | {' | '.join(cells)} | {theirs['loss']:.3f} | {theirs['step']:,} |"


def table_of_domains():
    """BLiMP by phenomenon after each domain of the text alone, and after all the others."""
    rows = results("babyhgrn_domains")["rows"]
    tasks = {"blimp_filtered": "BLiMP, filtered", "supplement": "BLiMP-Supplement"}
    yield f"| | {' | '.join(rows)} |"
    yield "|---|" + "--:|" * len(rows)
    for task, title in tasks.items():
        each = (f"{row['benchmarks'][task]['score']:.1f}" for row in rows.values())
        yield f"| **{title}** | {' | '.join(each)} |"
    by_term = {name: scores_by_term(row["benchmarks"]["blimp_filtered"]) for name, row in rows.items()}
    for term in sorted(by_term["all"], key=lambda term: -by_term["all"][term]):
        yield f"| {term.replace('_', ' ')} | {' | '.join(f'{x[term]:.1f}' for x in by_term.values())} |"


def scores_by_term(benchmark):
    """{phenomenon: mean score of its paradigms}"""
    terms = {}
    for x in benchmark["subtasks"].values():
        terms.setdefault(x["term"], []).append(x["score"])
    return {term: fmean(scores) for term, scores in terms.items()}


def table_of_recipes(corpus="toy", task="toyland", title="toyland"):
    """Muon and documents kept apart against the plain recipe, seed by seed."""
    found = results(f"compare_recipe_{corpus}")
    speed = found["rows"]["plain"]["best"]["tokens_per_second"]
    yield f"| | validation loss | less plain | {title} | less plain | steps to plain's loss | time of a step |"
    yield "|---|--:|--:|--:|--:|--:|--:|"
    for name, row in found["rows"].items():
        less, runs = found["differences"].get(name), runs_at_best_rate(row)
        scores = [(run["best"].get("pairs", {}) | run.get("benchmarks", {}))[task]["score"] for run in runs]
        loss = fmean(run["best"]["val_loss"] for run in runs)
        each = [f"{loss:.3f}", less and difference("loss", less["loss"])]
        each += [f"{fmean(scores):.1f}", less and difference(task, less[task])]
        each.append(steps_to(found["rows"]["plain"], row))
        each.append(f"{speed / row['best']['tokens_per_second']:.2f}")
        yield f"| {name} | {' | '.join(x or '' for x in each)} |"


def table_of_recipes_on_english():
    yield from table_of_recipes("english", "blimp_filtered", "BLiMP, filtered")


def steps_to(plain, row):
    """The first evaluations of a row that reach the last loss of the plain recipe, seed by seed: "150 to 200"."""
    steps = []
    for run, other in zip(runs_at_best_rate(row), runs_at_best_rate(plain)):
        goal = other["evaluations"][-1]["val_loss"]
        steps += [next((x["step"] for x in run["evaluations"] if x["val_loss"] <= goal), math.inf)]
    low, high = min(steps), max(steps)
    if high == math.inf:
        return "not reached"
    return f"{low}" if low == high else f"{low} to {high}"


def table_of_kinds():
    """Six kinds of model on a quarter of the ten million words; one seed, intervals over pairs."""
    rates = results("babyhgrn_rates")["rows"]
    yield f"| | parameters | 400 steps at 1e-2, 2e-2, 4e-2 | validation loss | {' | '.join(ASKED.values())} |"
    yield "|---|--:|--:|--:|--:|--:|--:|"
    for name, row in results("babyhgrn_mixers")["rows"].items():
        tried = ", ".join(f"{run['best']['val_loss']:.3f}" for run in rates[name]["runs"])
        scores = (row["benchmarks"][task] for task in ASKED)
        each = " | ".join(f"{x['score']:.1f} ± {x['interval']:.1f}" for x in scores)
        yield f"| {name} | {row['parameters']:,} | {tried} | {row['best']['val_loss']:.3f} | {each} |"


def table_of_text():
    """HGRN2's loss and BLiMP after a quarter of the text, after all of it, and after two passes."""
    yield "| | words read, million | validation loss | BLiMP, filtered |"
    yield "|---|--:|--:|--:|"
    part, whole = results("english_quarter")["rows"]["HGRN2"], results("babyhgrn_small")["rows"]["HGRN2"]
    twice, steps = results("english_small"), whole["best"]["step"] / whole["best"]["epoch"]
    last = part["evaluations"][-1]
    each = [("a quarter, one seed", last["step"] / steps, last["val_loss"], part["benchmarks"])]
    losses = [run["best"]["val_loss"] for run in runs_at_best_rate(whole)]
    each.append(("the whole, three seeds", whole["best"]["epoch"], fmean(losses), whole["benchmarks"]))
    last = twice["training"][-1]
    each.append(("twice, `english_small`", last["epoch"], last["val_loss"], twice["benchmarks"]))
    for title, passes, loss, scores in each:
        score = f"{scores['blimp_filtered']['score']:.1f}"
        yield f"| {title} | {whole['words'] * passes / 1e6:.1f} | {loss:.3f} | {score} |"


def table_of_choices():
    """Losses of a recipe with one thing changed, after 300 steps; also by the word, since vocabularies differ."""
    rows = results("compare_choices")["rows"]
    yield "| | parameters | loss a token | nats a word | less the recipe |"
    yield "|---|--:|--:|--:|--:|"
    words = {name: row["best"]["val_loss"] * row["tokens_per_word"] for name, row in rows.items()}
    for name, row in rows.items():
        less = "" if name == "recipe" else f"{words[name] - words['recipe']:+.3f}"
        loss = row["best"]["val_loss"]
        yield f"| {name} | {row['parameters']:,} | {loss:.3f} | {words[name]:.3f} | {less} |"


def table_of_quarter():
    """What was tried on a quarter of the ten million words: one seed each, intervals over pairs."""
    yield "| | flags | validation loss | BLiMP, filtered |"
    yield "|---|---|--:|--:|"
    for name, row in results("english_quarter")["rows"].items():
        loss, x = row["evaluations"][-1]["val_loss"], row["benchmarks"]["blimp_filtered"]
        flags = f"`{row['flags']}`" if row["flags"] else ""
        yield f"| {name} | {flags} | {loss:.3f} | {x['score']:.1f} ± {x['interval']:.1f} |"


@pytest.mark.parametrize(
    "table",
    [
        table_of_quarter,
        table_of_comparison,
        table_of_copying,
        table_of_teaching,
        table_of_babyhgrn,
        table_of_tiny,
        table_of_taught,
        table_of_shakespeare,
        table_of_domains,
        table_of_recipes,
        table_of_recipes_on_english,
        table_of_kinds,
        table_of_text,
        table_of_choices,
    ],
)
def test_the_tables_of_comparisons_are_those_of_the_result_files(table):
    table = "\n".join(table())
    assert f"\n\n{table}\n\n" in PAGES, f"README.md or results/README.md should hold\n{table}"


def table_of_faults():
    """What `make test-long` found, a row a fault, with the scripts or moments that it was tried at."""
    yield "| fault | held | what counts |"
    yield "|---|--:|---|"
    rows = {}
    for name, x in results("faults").items():
        fault, _, where = name.partition(": ")
        rows.setdefault((fault, x["note"]), []).append((where, x["good"], x["of"]))
    for (fault, note), each in rows.items():
        places = ", ".join(where for where, _, _ in each if where)
        held, of = (sum(x[n] for x in each) for n in (1, 2))
        yield f"| {fault}{places and f' ({places})'} | {held} of {of} | {note} |"


SPEED_OF = ["HGRN2", "minGRU", "our Llama", "transformers Llama"]


SCORING = "BLiMP, pairs/s, 10.5 million parameters, on a CPU without AVX-512; theirs by lm-eval"


def table_of_speed():
    """What bench.py found: each figure, and how many times transformers' Llama's it is."""
    bench = results("bench_cpu")

    def row(title, benchmark, what, unit=1, last="transformers Llama", **where):
        rows = [x for x in bench[benchmark]["rows"] if all(x[key] == where[key] for key in where)]
        found = {x["model"]: x[what] / unit for x in rows}
        theirs = max(found[name] for name in found if last in name)
        each = [f"{found[name]:,.0f} ({found[name] / theirs:.2f})" for name in SPEED_OF[:-1]]
        return f"| {title} | {' | '.join(each)} | {theirs:,.0f} |"

    yield "| | HGRN2 | minGRU | our Llama | transformers' Llama |"
    yield "|---|--:|--:|--:|--:|"
    for B, T in ((8, 256), (2, 1024), (1, 4096)):
        title = f"training on {B} x {T:,} tokens: tokens/s"
        yield row(title, "train_float32", "tokens_per_second", B=B, T=T)
        if T in (256, 4096):
            yield row(f"{title}, bfloat16", "train_bfloat16", "tokens_per_second", B=B, T=T)
    yield row("memory of a step of 1 x 2,048: MB", "train_float32", "peak_bytes", 1e6, B=1, T=2048)
    yield row("generation after 16 tokens: tokens/s", "generate_float32", "tokens_per_second", position=16)
    yield row(
        "generation after 4,096 tokens: tokens/s", "generate_float32", "tokens_per_second", position=4096
    )
    yield row(SCORING, "score_float32", "pairs_per_second", last="lm-eval")


def sentences_on_speed():
    """How fast products are here, what share of that a step reaches, and how soon the first one is done."""
    bench = results("bench_cpu")
    train = bench["train_float32"]
    yield f"{train['flops'] / 1e9:.0f} in place of {train['flops_of_torch'] / 1e9:.0f} GFLOP/s"
    step = next(x for x in train["rows"] if (x["model"], x["B"], x["T"]) == ("HGRN2", 8, 256))
    flops = 6 * step["parameters"] * step["B"] * step["T"]
    yield f"{flops / 1e9:.0f} GFLOP, {flops / train['flops']:.2f} s at that rate"
    yield f"HGRN2's takes {step['seconds']:.2f} s"
    yield f"{100 * bench['score_float32']['rows'][0]['tokens_read']:.0f} % of BLiMP's tokens are read"
    yield f"first step is done {bench['start_float32']['rows'][0]['seconds_to_first_step']:.1f} s after"


def table_of_kernels():
    """What `bench.py compile` found for bfloat16, a row a kernel: the most of any shape."""
    rows = [x for x in results("compile")["compile"]["rows"] if "bfloat16" in x["for"]]
    cards = {"A100": 80, "A6000": 86, "H100": 90, "B200": 100, "RTX 5090": 120}
    yield f"| kernel | registers on {', '.join(cards)} | spilled | shared memory, KB | on tensor cores |"
    yield "|---|--:|--:|--:|---|"
    for name in dict.fromkeys(x["kernel"] for x in rows):
        found = [x for x in rows if x["kernel"] == name]
        registers = [max(x["registers"] for x in found if x["capability"] == cards[card]) for card in cards]
        shared = max(x["shared_bytes"] for x in found) / 1024
        products = "all products" if all(x["mma"] for x in found) else "has none"
        spilled = max(x["spilled_bytes"] for x in found)
        yield f"| `{name}` | {', '.join(map(str, registers))} | {spilled} | {shared:.0f} | {products} |"


KERNELS = ("chunk_states", "chunk_outputs", "value_gradients", "key_gradients")


def table_of_tiles():
    """Microseconds of HGRN2's kernels on an H200, with the fastest tiles for chunks of 32 and 64, and before."""
    tiles = results("h200")["tiles"]
    yield "| | `chunk_states`, forward and back | `chunk_outputs` | `value_gradients` | `key_gradients` | sum |"
    yield "|---|--:|--:|--:|--:|--:|"
    before = tiles["tiles_of_before"]
    ways = {"chunks of 32, tiles as they are": fastest_tiles(32)}
    ways["chunks of 32, tiles chosen by counting instructions"] = [
        [before[kernel] for kernel in before if kernel.startswith(name)] for name in KERNELS
    ]
    ways["chunks of 64 with wgmma, the best tiles, ptxas 13.5"] = fastest_tiles(64)
    for title, times in ways.items():
        each = (" + ".join(f"{x:.0f}" for x in kernel) for kernel in times)
        yield f"| {title} | {' | '.join(each)} | {sum(map(sum, times)):,.0f} |"


def fastest_tiles(chunk):
    """For each kernel the microseconds with its fastest tile; for chunks of 32 that is the tile in kernels.py."""
    times = []
    for name in KERNELS:
        rows = [x for x in results("h200")["tiles"]["rows"] if (x["chunk"], x["kernel"]) == (chunk, name)]
        best = min(rows, key=lambda x: sum(x["microseconds"]))
        times.append(best["microseconds"])
        assert chunk != 32 or tuple(best["tile"]) == kernels.TILES[torch.bfloat16][name]
    return times


def on_an_h200():
    """What results/README.md says of the H200 in its sentences."""
    found = results("h200")
    ours, theirs = found["forward_microseconds"].values()
    yield f"takes {ours:.0f} µs as one operator, flash-linear-attention's `chunk_gla` {theirs:.0f}."
    steps = found["hgrn2_10m"]
    first, last = steps[1], steps[-1]  # without compiling
    speed = (last["tokens"] - first["tokens"]) / (last["seconds"] - first["seconds"])
    yield f"trains at {round(speed, -3):,.0f} tokens a second (steps {first['step']} to {last['step']})"
    milliseconds = {
        (x["model"], x["pass"]): 1e3 * x["seconds"]
        for x in found["scans"]
        if x["kernel"] == "linear_scan" and x["T"] == 2048
    }
    forward, both = (milliseconds["ours", way] for way in ("forward", "forward and backward"))
    yield f"{forward:.2f} ms forward and {both:.1f} ms with its gradient on 16 sequences of 2,048 tokens"
    forward, both = (milliseconds["fla chunk_hgrn", way] for way in ("forward", "forward and backward"))
    yield f"`chunk_hgrn` takes {forward:.2f} and {both:.2f}"


def test_what_is_said_of_the_h200_is_in_the_result_file():
    table = "\n".join(table_of_tiles())
    assert f"\n\n{table}\n\n" in DETAILS, f"results/README.md should hold\n{table}"
    for sentence in on_an_h200():
        assert sentence in WORDS, sentence


def test_the_table_of_kernels_is_that_of_the_result_file():
    table, rows = "\n".join(table_of_kernels()), results("compile")["compile"]["rows"]
    assert f"\n\n{table}\n\n" in PAGES, f"README.md or results/README.md should hold\n{table}"
    wrong = [x for x in rows if x["wrong"]]
    assert not wrong and f"all {len(rows):,} compiled kernels pass these checks" in WORDS


def test_the_section_on_speed_is_that_of_the_result_file():
    table = "\n".join(table_of_speed())
    assert f"\n\n{table}\n\n" in PAGES, f"README.md or results/README.md should hold\n{table}"
    for sentence in sentences_on_speed():
        assert sentence in WORDS, sentence


def test_the_table_of_faults_is_that_of_the_result_file():
    table = "\n".join(table_of_faults())
    assert f"\n\n{table}\n\n" in PAGES, f"README.md or results/README.md should hold\n{table}"


def in_passing():
    """Numbers of results/README.md that README.md has in its sentences, and others that stand in sentences."""
    worst = max(row["relative"] for row in results("agreement"))
    yield f"difference of a score is {worst:.1e}, and no verdict differs".replace("e-0", "e-")
    yield f"three layers of minGRU find {results('copying_mingru_3')['accuracy']['tokens']:.1f} % of the letters"
    taught = results("compare_distill")["differences"]["taught"]["toyland"]
    yield f"a student gains {taught['mean']:.1f} ± {taught['interval']:.1f} points"
    rows, less = results("babyhgrn_taught")["rows"], results("babyhgrn_taught")["differences"]["HGRN2, taught"]
    loss, blimp = less["loss"], less["blimp_filtered"]
    yield f"lowers the loss by {-loss['mean']:.3f} ± {loss['interval']:.3f}"
    yield f"changes BLiMP by {blimp['mean']:.1f} ± {blimp['interval']:.1f} points"
    alone, taught = (rows[name]["best"]["tokens_per_second"] for name in ("HGRN2", "HGRN2, taught"))
    yield f"A step of a student takes {alone / taught:.1f} times as long"
    early, late = (gain_of_students(rows, number) for number in (1, -1))
    yield f"are {early} points ahead of their teachers after 0.7 million words and {late} after 2.6 million"
    small, quarter = results("babyhgrn_small"), results("english_quarter")["rows"]
    yield from of_domains([scores_by_term(run["benchmarks"]["blimp_filtered"]) for run in rows["HGRN2"]["runs"]])
    less = small["differences"]["Llama"]
    blimp, loss = less["blimp_filtered"], less["loss"]
    yield f"ahead of Llama on BLiMP by {-blimp['mean']:.1f} ± {blimp['interval']:.1f} points"
    yield f"Llama's loss is lower by {-loss['mean']:.3f} ± {loss['interval']:.3f}"
    tasks = small["rows"]["HGRN2"]["runs"][0]["benchmarks"]["glue"]["subtasks"].values()
    yield f"always giving the most frequent label ({fmean(x['majority'] for x in tasks):.1f})"
    ours, theirs = (quarter[name]["benchmarks"]["blimp_filtered"]["score"] for name in ("HGRN2", "Llama"))
    yield f"HGRN2 leads by {ours - theirs:.1f} points in one seed"
    losses = [run["best"]["val_loss"] for run in small["rows"]["HGRN2"]["runs"]]
    gain = quarter["HGRN2"]["evaluations"][-1]["val_loss"] - fmean(losses)
    yield f"Four times the text is worth {gain:.2f} nats a token and two points"
    scores = [run["benchmarks"]["blimp_filtered"]["score"] for run in small["rows"]["HGRN2"]["runs"]]
    gain, width = fmean(scores) - ours, 2 * half_width(scores)  # sqrt(1 + 1/3) is twice sqrt(1/3)
    yield f"A seed moves HGRN2 by {stdev(scores):.1f} points (standard deviation)"
    yield f"the gain may be anything from {gain - width:.1f} to {gain + width:.1f}"
    kinds, rates = results("babyhgrn_mixers")["rows"], results("babyhgrn_rates")["rows"].values()
    seeds = (
        [run["benchmarks"]["blimp_filtered"]["score"] for run in row["runs"]] for row in small["rows"].values()
    )
    deviation = fmean(stdev(each) ** 2 for each in seeds) ** 0.5
    yield f"by {deviation:.1f} points (standard deviation) at the small scale"
    tried = [[run["best"]["val_loss"] for run in row["runs"]] for row in rates]
    yield f"is the best of them or within {max(losses[1] - min(losses) for losses in tried):.3f} of it"
    blimp = {name: row["benchmarks"]["blimp_filtered"]["score"] for name, row in kinds.items()}
    *last, lowest, _, _, highest = sorted(blimp, key=blimp.get)
    assert set(last) == {"Llama", "LSTM"}
    yield f"the other four lie within {blimp[highest] - blimp[lowest]:.1f} points"
    more, fewer = (
        quarter[name]["evaluations"][-1]["val_loss"] * quarter[name]["tokens_per_word"]
        for name in ("16,000 entries, 1e-2 for AdamW", "1e-2 for AdamW")
    )
    yield f"by the word 16,000 entries have {more:.2f} nats, 8,000 at the same rates {fewer:.2f}"
    last = {name: row["evaluations"][-1]["val_loss"] for name, row in quarter.items()}
    ours, theirs = last["4e-3 for AdamW"] - last["HGRN2"], last["Llama, 4e-3 for AdamW"] - last["Llama"]
    yield f"is worth {ours:.2f} nats to HGRN2 and {theirs:.2f} to Llama over 4e-3 for AdamW"
    medians = results("memory_english_small")["medians"]
    first, second = (f"{medians[n]:.1f}" for n in "12")
    third, fourth = (f"{medians[n]:.2g}" for n in "34")
    first_two = f"{first} and {second} tokens in the first two layers"
    yield f"is {first_two}, {third} in the third and {fourth} in the fourth"
    faults = results("faults").values()
    yield f"{sum(x['good'] for x in faults):,} of {sum(x['of'] for x in faults):,} cases"
    lost = (100 - relative_clauses(name) for name in ("HGRN2", "minLSTM"))
    yield "HGRN2 and minLSTM for example in {:.0f} and {:.0f} of 100 pairs".format(*lost)
    scores = float32_scores("anaphor_gender_agreement") + float32_scores("principle_A_domain_2")
    yield f"judge at least {min(scores):.0f} % of the pairs of both"


def of_domains(seeds):
    """What is said of parts of the text, and how far seeds move each phenomenon: {phenomenon: score} of each."""
    found = {name: x["benchmarks"]["blimp_filtered"] for name, x in results("babyhgrn_domains")["rows"].items()}
    totals = [x["score"] for x in found.values()]
    yield f"The totals lie within {max(totals) - min(totals):.1f} points"
    moved = {term: stdev(x[term] for x in seeds) for term in seeds[0]}
    loud, other = (round(moved[term]) for term in ("npi_licensing", "irregular_forms"))
    assert loud == round(moved["quantifiers"])
    assert round(moved["anaphor_agreement"]) == round(moved["s-selection"]) == 1
    yield f"quantifiers and negative polarity items by {loud} points (standard deviation)"
    yield f"points (standard deviation) and irregular forms by {other}"
    talk, *others = sorted(scores_by_term(x)["anaphor_agreement"] for x in found.values())
    yield f"anaphors are below chance, {talk:.0f} %, where every other part gives {others[0]:.0f} % or more"
    *others, wikipedia = sorted(scores_by_term(x)["s-selection"] for x in found.values())
    yield f"s-selection is at {wikipedia:.0f} %, where every other part gives {others[-1]:.0f} % or less"


def gain_of_students(rows, number):
    """The students' lead over their teachers on a fifth of BLiMP at an evaluation in training: "2.4 ± 2.6"."""
    scores = (
        [run["evaluations"][number]["pairs"]["blimp_fast"]["score"] for run in rows[name]["runs"]]
        for name in ("HGRN2, taught", "HGRN2")
    )
    each = [student - teacher for student, teacher in zip(*scores)]
    return f"{fmean(each):.1f} ± {half_width(each):.1f}"


def float32_scores(paradigm):
    """The scores of the three float32 runs of config/toy.py on a paradigm of toyland."""
    names = ("toy_float32_0", "toy_float32_1", "toy_float32_2")
    return [results(name)["benchmarks"]["toyland"]["subtasks"][paradigm]["score"] for name in names]


def relative_clauses(name):
    """A mixer's score at its best on verbs whose subject a relative clause is in the way of."""
    row = results("compare_toy")["rows"][name]
    (run,) = (x for x in row["runs"] if x["learning_rate"] == row["best"]["learning_rate"])
    return run["best"]["pairs"]["toyland"]["subtasks"]["distractor_agreement_relative_clause"]


def test_numbers_are_those_of_the_result_files():
    for row in [*rows(), *in_passing()]:
        assert row in WORDS, row


def test_line_links_lead_to_what_they_name():
    links = re.findall(r"\[`(\w+)`\]\((?:\.\./)?([\w/]+\.py)#L(\d+)\)", PAGES)
    assert len(links) >= 8
    for name, file, line in links:
        text = (ROOT / file).read_text(encoding="utf-8").splitlines()[int(line) - 1]
        assert re.match(rf"(class|def) {name}\b", text), f"{file}:{line} is {text!r}"


MARKDOWN = MarkdownIt().enable("table")
PATHS = ("README.md", "USAGE.md", "lesson.md", "exercises.md", "results/README.md")


@pytest.mark.parametrize("path", PATHS)
def test_a_page_is_rendered_as_it_is_meant(path):
    """Every table is one, with as many cells in each row; every link leads somewhere; code blocks are closed."""
    text = (ROOT / path).read_text(encoding="utf-8")
    tokens = MARKDOWN.parse(text)
    tables = re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE)
    assert len(tables) == sum(token.type == "table_open" for token in tokens)
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()}) == 1, table
    assert text.count("```") % 2 == 0
    for target in links(tokens):
        if not target.startswith("https://"):
            file, _, place = target.partition("#")
            there = ((ROOT / path).parent / file).resolve() if file else ROOT / path
            assert there.exists(), target
            if place and not re.fullmatch(r"L\d+", place):
                headings = re.findall(r"(?m)^#+ (.*)", there.read_text(encoding="utf-8"))
                assert place in [re.sub(r"[^\w -]", "", x).lower().replace(" ", "-") for x in headings], (
                    target
                )


def links(tokens):
    """The targets of all links and pictures."""
    for token in tokens:
        for inner in token.children or ():
            yield from (value for name, value in inner.attrs.items() if name in ("href", "src"))


SETTINGS = {
    "data": data, "train": train, "distill": distill, "compare": compare, "evaluate": evaluate,
    "finetune": finetune, "sample": sample, "tools.agree": agree, "tools.bench": bench, "tools.export": export,
    "tools.ngram": ngram, "tools.page": page, "tools.submit": submit,
}  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
def test_commands_name_scripts_files_and_settings_that_exist(path):
    text = (ROOT / path).read_text(encoding="utf-8").replace("\\\n", " ")
    commands = re.findall(r"python (?:-m (tools\.\w+)|(\w+)\.py)((?: +[^\s`)&]+)*)", text)
    assert commands
    for module, script, rest in commands:
        name = module or script
        assert (ROOT / f"{name.replace('.', '/')}.py").exists() or name == "my", name
        for file in re.findall(r"config/\w+\.py", rest):
            assert (ROOT / file).exists(), file
        if name in SETTINGS:
            known = {field.name for field in fields(SETTINGS[name].Settings)} | {"from", "help"}
            asked = re.findall(r"(?<= --)\w+", rest.split("#")[0])
            assert set(asked) <= known, (name, set(asked) - known)


@pytest.mark.skipif(not shutil.which("make"), reason="no make here")
@pytest.mark.parametrize("scale", ["tiny", "small", "medium", "paper"])
def test_make_babyhgrn_goes_from_the_text_to_the_table(scale):
    """For each of its scales; the text is BabyLM's where none lies in TEXT."""
    command = [
        "make",
        "--dry-run",
        "--always-make",  # also where it has been made before
        "babyhgrn",
        f"SCALE={scale}",
        "TEXT=nowhere",
        "TASKS=supplement,ewok_fast",
        "--assume-old=.venv/runtime",
    ]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout
    files = re.search(r"for file in (.+); do", said)[1].split()
    assert files[0] == f"config/babyhgrn_{scale}.py" and all((ROOT / file).exists() for file in files)
    assert re.search(r"compare\.py \$file --tasks=supplement,ewok_fast ", said)
    assert ("tools.ngram english" in said) == (scale == "small")
    assert ("text english" in said) == (scale != "paper") and ("torchrun" in said) == (scale == "paper")


def functions():
    for path in ROOT.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                yield node.end_lineno - node.lineno + 1, f"{path.name}: {node.name}"


def test_files_and_functions_are_short():
    """train.py under 300 lines, model.py under 525, no function above 40."""
    assert len((ROOT / "train.py").read_text(encoding="utf-8").splitlines()) < 300
    assert len((ROOT / "model.py").read_text(encoding="utf-8").splitlines()) < 525
    assert max(functions()) < (41,)


def rows_of_mixers():
    """The README's table of mixers: {mixer: (its state's size as a formula, the same at D 256, T 512)}"""
    lines = re.findall(r"(?m)^\| `(\w+)` \|[^|]+\|[^|]+\| ([^|]+) \| ([\d,]+) \|", README)
    return {name: (formula, int(number.replace(",", ""))) for name, formula, number in lines}


@pytest.mark.parametrize("mixer", MIXERS)
def test_states_have_the_size_that_the_table_of_mixers_gives(mixer):
    """Formula and number, against the states of models."""
    formula, number = rows_of_mixers()[mixer]
    formula = re.sub(r"(?<=[\w)]) (?=[\w(])", "*", formula)
    for D, T, size in ((32, 10, None), (256, 512, number)):
        with torch.no_grad():
            model = build(mixer=mixer, n_layer=1, d_model=D, context=512)
            (state,) = model(torch.randint(50, (1, T)))[1]
        lengths = dict(D=D, E=D, T=T, H=4, K=D // 4, N=16)
        assert count_numbers(state) == eval(formula, lengths) and size in (None, count_numbers(state))
