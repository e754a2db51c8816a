"""The repository's claims about itself: the README's lines, numbers and commands, and the sizes it promises."""

import ast
import json
import re
from pathlib import Path

import pytest
import torch
from test_model import build

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


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
    yield f"| the same, untrained | {results('toy')['training'][0]['pairs']['toyland']['score']:.1f} | |"
    unigram, bigram = (ROOT / "results" / "toyland_check.txt").read_text(encoding="utf-8").split()[-2:]
    yield f"| counting words (unigram) | {unigram} | |"
    yield f"| counting pairs of words (bigram) | {bigram} | |"
    blimp = results("english_small")["benchmarks"]["blimp"]
    yield f"{blimp['score']:.1f} ± {blimp['interval']:.1f} %"


def table_of_faults():
    """What `make test-long` found, a row a fault."""
    yield "| fault | held | what counts |"
    yield "|---|--:|---|"
    for name, x in results("faults").items():
        yield f"| {name} | {x['good']} of {x['of']} | {x['note']} |"


def test_the_table_of_faults_is_that_of_the_result_file():
    table = "\n".join(table_of_faults())
    assert f"\n\n{table}\n\n" in README, f"README.md, Tests, should hold\n{table}"


def test_numbers_are_those_of_the_result_files():
    for row in rows():
        assert row in README


def test_line_links_lead_to_what_they_name():
    links = re.findall(r"\[`(\w+)`\]\((\w+\.py)#L(\d+)\)", README)
    assert len(links) >= 8
    for name, file, line in links:
        text = (ROOT / file).read_text(encoding="utf-8").splitlines()[int(line) - 1]
        assert re.match(rf"(class|def) {name}\b", text), f"{file}:{line} is {text!r}"


def test_links_to_files_lead_somewhere():
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target


def test_commands_name_scripts_and_settings_files_that_exist():
    commands = re.findall(r"(?:python|train\.py) ([\w/]+\.py)", README)
    assert len(commands) >= 8
    for path in commands:
        assert (ROOT / path).exists(), path


def functions():
    for path in ROOT.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                yield node.end_lineno - node.lineno + 1, f"{path.name}: {node.name}"


def test_files_and_functions_are_short():
    """train.py under 300 lines, model.py under 500, no function above 40."""
    assert len((ROOT / "train.py").read_text(encoding="utf-8").splitlines()) < 300
    assert len((ROOT / "model.py").read_text(encoding="utf-8").splitlines()) < 500
    assert max(functions()) < (41,)


SIZES = {"hgrn2": 32 * 8, "mingru": 32, "minlstm": 32, "attention": 2 * 10 * 32}


@pytest.mark.parametrize("mixer, size", SIZES.items())
def test_states_have_the_size_that_the_table_of_mixers_gives(mixer, size):
    """D = 32, H = 4, T = 10: D^2 / H, D, D and 2 T D numbers a layer."""
    model = build(mixer=mixer)
    for state in model(torch.randint(50, (1, 10)))[1]:
        parts = state if isinstance(state, tuple) else (state,)
        assert sum(part.numel() for part in parts) == size
