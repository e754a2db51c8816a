"""An exported folder is the run: the same logits, tokens and texts, in anybody's transformers."""

import ast
import gzip
import json
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import asdict
from pathlib import Path

import sample
from conftest import ROOT
from corpora import benchmarks
from model import MIXERS, Config, LanguageModel, load
from support import files
from tools import export

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

transformers = pytest.importorskip("transformers")
from transformers import (  # noqa: E402
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    dynamic_module_utils,
)

TINY = dict(vocab_size=300, n_layer=3, d_model=16, n_head=2, d_mlp=24, context=64)
KINDS = [dict(mixer=mixer, tie_embeddings=i % 2 == 0) for i, mixer in enumerate(MIXERS)] + [
    dict(mixer="hgrn2 attention", tie_embeddings=True, position="rope"),
    dict(mixer="attention hgrn2 mingru", norm="layernorm", mlp="gelu", position="learned"),
    dict(mixer="mingru", conv=4, expand=2, mlp="none"),
]
ODD = [
    "The cat.", "", " two  spaces ", "a\nline", "é日本🙂👩‍👩‍👧", "</s> <s><pad>", "x" * 70,
    "The cat sees the dog.\n",
]  # fmt: skip


def isolated(tmp_path_factory):
    """transformers copies modelling files before it imports them: not to where the user has theirs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
        patch.setattr(sys, "path", sys.path[:])  # to which it adds the place
        for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
            patch.delitem(sys.modules, name)
        yield


own_cache = pytest.fixture(autouse=True)(isolated)


def make_run(name, tokenizer="data/tiny/tokenizer.json", **settings):
    """A run folder with an untrained model of opinions -> the model."""
    torch.manual_seed(0)
    config = Config(**TINY | settings)
    model = LanguageModel(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.2 * torch.randn_like(weight)
    Path(name).mkdir(parents=True)
    state = {"settings": asdict(config) | {"corpus": "tiny"}, "model": model.state_dict()}
    files.save(state, Path(name, "checkpoint.pt"))
    shutil.copy(tokenizer, Path(name, "tokenizer.json"))
    return model


def exported(run, **settings):
    return str(export.main(export.Settings(run=run, **settings)))


def opened(folder, kind=AutoModelForCausalLM, **options):
    """The model in a folder, if nothing is missing from it and nothing left over."""
    options |= {"trust_remote_code": True, "output_loading_info": True}
    model, said = kind.from_pretrained(folder, **options)
    new = {"score.weight"} if kind is AutoModelForSequenceClassification else set()
    assert set(said["missing_keys"]) == new and not said["unexpected_keys"] and not said["mismatched_keys"]
    return model.eval()


def package_of(model):
    """The name under which Python knows the folder that transformers has copied the model's code to."""
    return type(model).__module__.rpartition(".")[0]


def tokenizer_of(folder, **options):
    return AutoTokenizer.from_pretrained(folder, trust_remote_code=True, **options)


def near(x, y, tolerance=1e-5):
    return ((x - y).abs().max() / y.abs().max()).item() <= tolerance


def tokens(*shape):
    return torch.randint(3, 300, shape, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def hybrid(workplace):
    """A run of two mixers, its model, and the folder it is exported to."""
    model = make_run("out/hybrid", mixer="hgrn2 attention", position="rope", tie_embeddings=True)
    return model, exported("out/hybrid")


# ----------------------------------------------------------------------------------------------------
# The same model


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: " ".join(map(str, kind.values())))
@torch.no_grad()
def test_logits_features_and_texts_are_ours(workplace, kind):
    """Texts with the states carried along: after the prompt, a token is all that is read."""
    ours = make_run("out/run", **kind)
    folder, x = exported("out/run"), tokens(2, 40)
    model = opened(folder)
    assert near(model(x).logits, ours(x)[0])
    assert near(opened(folder, AutoModel)(x).last_hidden_state, ours.features(x)[0])
    lengths = []
    model.get_input_embeddings().register_forward_hook(lambda module, args, x: lengths.append(x.shape[1]))
    y = model.generate(x[:1, :5], max_new_tokens=20, do_sample=False, eos_token_id=None)
    assert y[0, 5:].tolist() == greedy(ours, x[0, :5].tolist(), 20)
    assert lengths == [5] + [1] * 19


def greedy(model, prompt, count):
    return list(sample.generate(model, list(prompt), sample.Settings(temperature=0.0, tokens=count)))


@torch.no_grad()
def test_a_trained_run_too_and_in_bfloat16_almost(workplace):
    ours, _, _ = load("out/tiny")
    x, small = tokens(2, 16), exported("out/tiny", to="small", dtype="bfloat16")
    assert near(opened(exported("out/tiny"))(x).logits, ours(x)[0])
    low = opened(small, torch_dtype=torch.bfloat16)
    assert low.dtype == torch.bfloat16 and near(low(x).logits.float(), ours(x)[0], 0.03)
    sizes = [Path(x, "model.safetensors").stat().st_size for x in ("out/tiny/hf/tiny", "small")]
    assert sizes[1] < 0.6 * sizes[0]


@pytest.mark.parametrize(
    "settings, said",
    [
        (dict(mixer="attention", position="learned"), "21 tokens: this model has learned 20 positions"),
        (dict(mixer="hgrn2 hyena"), "21 tokens: this model's filter has 20"),
    ],
    ids=["learned positions", "Hyena"],
)
def test_models_with_an_end_say_how_far_they_reach(workplace, settings, said):
    make_run("out/run", context=20, **settings)
    folder = exported("out/run")
    assert opened(folder).config.max_position_embeddings == tokenizer_of(folder).model_max_length == 20
    with pytest.raises(Exception, match=said):
        opened(folder)(tokens(1, 21))


@pytest.mark.parametrize("kernels", ["auto", "loop", "torch"])
@torch.no_grad()
def test_kernels_choose_the_form_and_change_no_result(workplace, kernels):
    ours = make_run("out/run", mixer="hgrn2 mingru lstm mamba")
    x, model = tokens(2, 12), opened(exported("out/run"), kernels=kernels)
    assert model.config.kernels == kernels and near(model(x).logits, ours(x)[0])
    folder = package_of(model)
    assert sys.modules[f"{folder}.kernels"].form == kernels
    is_fast = type(model.model.nanornn.norm).forward.__module__ == f"{folder}.fast_layers"
    assert is_fast == (kernels != "loop")


def test_an_unknown_form_of_kernels_is_refused(hybrid):
    with pytest.raises(Exception, match="did you mean 'triton'"):
        opened(hybrid[1], kernels="tritone")


def test_a_model_that_reads_without_end_sets_no_longest_text(hybrid):
    """transformers then neither truncates texts nor pads them to a million tokens."""
    theirs = tokenizer_of(hybrid[1])
    assert opened(hybrid[1]).config.max_position_embeddings == 1_000_000
    assert theirs.model_max_length == int(1e30)
    assert len(theirs("The cat.", padding="max_length", truncation=True)["input_ids"]) < 20


def test_a_pipeline_needs_but_the_folder(hybrid):
    write = transformers.pipeline("text-generation", model=hybrid[1], trust_remote_code=True, device="cpu")
    (written,) = write("The cat", max_new_tokens=5, do_sample=False)
    assert written["generated_text"].startswith("The cat")


# ----------------------------------------------------------------------------------------------------
# The tokenizer


def test_the_tokenizer_is_ours_with_a_start_before_each_text(hybrid):
    """And it writes no space where a line begins."""
    ours, theirs = load("out/hybrid")[1], tokenizer_of(hybrid[1])
    for text in ODD:
        ids = ours.encode(text, add_special_tokens=False).ids
        assert theirs(text)["input_ids"] == theirs(text, padding=True)["input_ids"] == [1, *ids], text
        assert theirs(text, add_special_tokens=False)["input_ids"] == ids, text
        written = ours.decode(ids, skip_special_tokens=False)
        assert theirs.decode(ids) == written.removeprefix(" ").replace("\n ", "\n"), text
    assert theirs("a", "b")["input_ids"].count(1) == 2
    assert [theirs.bos_token_id, theirs.pad_token_id, theirs.eos_token_id] == [1, 0, 2]
    assert set(theirs(["a", "the cat"], padding=True)) == {"input_ids", "attention_mask"}


def test_what_a_tool_adds_is_a_token_and_what_a_corpus_has_is_text(hybrid):
    """A tool appends "</s>", prepends "<s>" or adds tokens of its own; inside a text all but the last are text."""
    ours, theirs = load("out/hybrid")[1], tokenizer_of(hybrid[1])
    text = ours.encode("The cat.", add_special_tokens=False).ids
    assert theirs("The cat." + theirs.eos_token)["input_ids"] == [1, *text, 2]
    assert theirs(theirs.bos_token + "The cat.", add_special_tokens=False)["input_ids"] == [1, *text]
    assert theirs.decode([1, *text, 2, 0], skip_special_tokens=True) == "The cat."
    theirs.add_special_tokens({"additional_special_tokens": ["<|user|>"]})
    theirs.save_pretrained("again")
    for tokenizer in (theirs, tokenizer_of("again")):
        added = tokenizer.convert_tokens_to_ids("<|user|>")
        assert added == 300
        assert tokenizer("<|user|>The cat.<|user|>")["input_ids"] == [1, added, *text, added]
        for inside in ("The </s> cat", "a<s>b", "The</s>\n", "<pad> is", "\U000f5a17 </s> \U000fa751"):
            assert tokenizer(inside)["input_ids"][1:] == ours.encode(inside, add_special_tokens=False).ids


def test_a_start_that_a_tool_turns_off_and_on_comes_back(hybrid):
    """lm-pub-quiz sets add_bos_token and sets it back, which does no harm after what the model card says."""
    theirs = tokenizer_of(hybrid[1])
    expected = theirs("The cat.")["input_ids"]
    assert "`tokenizer.add_bos_token = True` yourself" in Path(hybrid[1], "README.md").read_text()
    theirs.add_bos_token = True
    before = theirs.add_bos_token
    theirs.add_bos_token = True
    theirs.add_bos_token = before
    assert theirs("The cat.")["input_ids"] == expected


def test_single_characters_have_no_start_of_their_own(workplace):
    """Nor padding: a line break, after which their texts begin, is text as well and must be written out."""
    characters = sorted(set("\n The cat,\nsees.ABC"))
    tokenizer = Tokenizer(models.WordLevel({x: i for i, x in enumerate(characters)}, unk_token=" "))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.save("characters.json")
    ours = make_run("out/letters", "characters.json", mixer="mingru", vocab_size=len(characters))
    folder = exported("out/letters")
    theirs, x = tokenizer_of(folder), torch.tensor([[0, 5, 3]])
    assert theirs("The\ncat")["input_ids"] == [0, *tokenizer.encode("The\ncat").ids]
    assert theirs.decode(theirs("The\ncat")["input_ids"], skip_special_tokens=True) == "\nThe\ncat"
    written = opened(folder).generate(x, max_new_tokens=12, do_sample=False)
    assert written[0, 3:].tolist() == greedy(ours, [0, 5, 3], 12)


# ----------------------------------------------------------------------------------------------------
# The folder


def test_only_safetensors_holds_weights_and_each_once(hybrid):
    ours, folder = hybrid
    names = {path.name for path in Path(folder).iterdir()}
    assert names - set(export.modelling_code()) == {
        "README.md", "LICENSE", "config.json", "generation_config.json", "model.safetensors",
        "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    weights = pytest.importorskip("safetensors.torch").load_file(Path(folder, "model.safetensors"))
    expected = {f"model.nanornn.{name}": x for name, x in ours.named_parameters()}
    assert set(weights) == set(expected) and all(
        torch.equal(weights[name], expected[name]) for name in weights
    )
    with open(Path(folder, "model.safetensors"), "rb") as file:
        length = int.from_bytes(file.read(8), "little")
    assert length % 8 == 0  # so that numbers begin where a processor likes it
    config = json.loads(Path(folder, "config.json").read_text())
    assert config["nanornn_checkpoint"] == files.fingerprint("out/hybrid/checkpoint.pt")


def test_the_modelling_file_needs_pytorch_and_transformers_alone(hybrid, tmp_path):
    """In an isolated Python, somewhere else: the same logits, and nothing of ours imported."""
    code = f"""
import sys, torch
from pathlib import Path
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained({str(Path(hybrid[1]).resolve())!r}, trust_remote_code=True)
with torch.no_grad():
    torch.save(model.eval()(torch.arange(3, 33)[None]).logits, "logits.pt")
files = [getattr(x, "__file__", None) or "" for x in sys.modules.values()]
assert Path({str(ROOT)!r}) not in [Path(file).parent for file in files]
"""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    environment = os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "-I", "-c", code], cwd=elsewhere, env=environment, check=True)
    with torch.no_grad():
        assert near(torch.load(elsewhere / "logits.pt"), hybrid[0](torch.arange(3, 33)[None])[0])


def test_two_folders_and_nanornn_live_in_one_process(workplace):
    """Operators have names of their own in each, so that each has its own values and gradients."""
    models = []
    for name in ("one", "two"):
        ours = make_run(f"out/{name}", mixer="hgrn2 mingru")
        models.append(opened(exported(f"out/{name}", to=name)))
    x, gradients = tokens(2, 20), []
    outputs = [ours(x)[0], *(model(x).logits for model in models)]
    for y, model in zip(outputs, [ours, *(model.model.nanornn for model in models)]):
        y.square().sum().backward()
        gradients.append(model.layers[1].mixer.update.weight.grad)
    assert near(gradients[1], gradients[0]) and near(gradients[2], gradients[0])
    operators = [sys.modules[f"{package_of(model)}.fast_operators"] for model in models]
    spaces = {module.NAMESPACE for module in operators}
    assert len(spaces | {"nanornn"}) == 3 and all(
        hasattr(getattr(torch.ops, space), "scan") for space in spaces
    )


def test_the_code_is_our_files_flat_and_no_more():
    """Each file imports only its neighbours, PyTorch, transformers and what Python has, or does without."""
    code = export.modelling_code()
    names = {name.removesuffix(".py") for name in code}
    assert next(iter(code)) == "modeling_nanornn.py"
    assert names >= {"model", "kernels", "baselines", "settings", "fast_layers", "fast_recurrences"}
    assert not names & {"files", "processes", "console", "run", "data", "train", "evaluate", "fast_scoring"}
    for name, text in code.items():
        tree = ast.parse(text, name)
        guarded = {id(x) for block in ast.walk(tree) if isinstance(block, ast.Try) for x in ast.walk(block)}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert (node.module or node.names[0].name) in names
            elif isinstance(node, (ast.Import, ast.ImportFrom)) and id(node) not in guarded:
                modules = [node.module] if isinstance(node, ast.ImportFrom) else [x.name for x in node.names]
                tops = {module.partition(".")[0] for module in modules}
                assert tops <= sys.stdlib_module_names | {"torch", "transformers"}, (name, tops)


def test_transformers_finds_all_files_and_comes_to_an_end(hybrid):
    """Version 4.51 looks for imports in the first file alone, and never ends where files import each other."""
    folder = Path(hybrid[1])
    seen = dynamic_module_utils.get_relative_imports(folder / "modeling_nanornn.py")
    assert {f"{name}.py" for name in seen} | {"modeling_nanornn.py"} == set(export.modelling_code())
    for name in seen:
        assert dynamic_module_utils.get_relative_imports(folder / f"{name}.py") == []


@torch.no_grad()
def test_another_version_in_a_folder_of_the_same_name_is_its_own(workplace):
    """As the exports of a run are, before and after it is trained anew with changed code."""
    ours, x = make_run("out/one", mixer="hgrn2 mingru"), tokens(2, 9)
    old = opened(exported("out/one"))
    file = Path(exported("out/one", to="other/one"), "model.py")
    file.write_text(
        file.read_text().replace("return self.norm(x), new_states", "return 2 * self.norm(x), new_states")
    )
    new = opened("other/one")
    assert near(new(x).logits, 2 * ours(x)[0]) and near(old(x).logits, ours(x)[0])


def test_the_same_run_makes_the_same_folder(hybrid):
    before = {path.name: path.read_bytes() for path in Path(hybrid[1]).iterdir()}
    exported("out/hybrid")
    assert before == {path.name: path.read_bytes() for path in Path(hybrid[1]).iterdir()}


def test_the_folder_has_the_name_of_the_run_and_a_card(workplace):
    """With the scores of the checkpoint that it holds, not of another."""
    shutil.copytree("out/tiny", "out/my.run")
    digest = files.fingerprint("out/my.run/checkpoint.pt")
    found = {"protocol": "2024", "benchmarks": {"blimp": {"score": 71.25}}, "perplexity": 12.345}
    for checkpoint, scored in ((digest, True), ("0" * 64, False)):
        Path("out/my.run/results.json").write_text(json.dumps(found | {"checkpoint": checkpoint}))
        folder = Path(exported("out/my.run"))
        assert folder == Path("out/my.run/hf/my_run")
        card = (folder / "README.md").read_text()
        assert (
            card.startswith("---\nlicense: mit\n") and "| trained on | tiny, 30 steps of 256 tokens |" in card
        )
        assert ("| blimp | 71.2 |" in card and "| 12.35 |" in card) == scored
    found = found | {"perplexity": None, "checkpoint": digest}  # its validation text was not there
    Path("out/my.run/results.json").write_text(json.dumps(found))
    card = (Path(exported("out/my.run")) / "README.md").read_text()
    assert "| blimp | 71.2 |" in card and "perplexity" not in card
    assert "MIT License" in (folder / "LICENSE").read_text()
    assert exported("out/my.run/best.pt") == "out/my.run/hf/my_run_best"
    assert opened(folder)


def test_a_folder_half_written_is_no_model(hybrid, monkeypatch):
    """Neither the old one nor the new, mixed: until all else is there, config.json is not."""
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(export, "write_weights", lambda *args: 1 / 0)
        exported("out/hybrid")
    assert not Path(hybrid[1], "config.json").exists()
    assert opened(exported("out/hybrid"))  # and the next try is not refused


@pytest.mark.parametrize(
    "settings, said",
    [
        (dict(run="out/none"), "out/none: no checkpoint here; make one: python train.py config/toy.py\n"),
        (dict(to="text.txt"), "to = 'text.txt' holds something else already: name a new folder\n"),
        (dict(to="data"), "to = 'data' holds something else already: name a new folder\n"),
    ],
)
def test_what_cannot_be_exported_is_said_and_nothing_written(workplace, refusal, settings, said):
    before = sorted(workplace.rglob("*"))
    assert refusal(export.main, export.Settings(**dict(run="out/tiny") | settings)) == said
    assert sorted(workplace.rglob("*")) == before


def test_an_unknown_dtype_is_refused(refusal):
    said = refusal(export.Settings(dtype="bfloat61").check)
    assert said == "dtype = 'bfloat61': did you mean 'bfloat16'? Possible: float32, bfloat16, float16\n"


# ----------------------------------------------------------------------------------------------------
# The leaderboard's predictions

PAIRS = {"blimp_filtered": {"anaphor": 3, "island": 2}, "supplement": {"turn_taking": 2}}


@pytest.fixture
def scored(workplace, monkeypatch):
    """A run with scores of a made-up BLiMP and Supplement: the good one better, worse, equal, better, ..."""
    monkeypatch.setattr(benchmarks, "ALL", {})  # how many pairs there should be
    scores = [(-1.0, -2.0), (-2.0, -1.0), (-3.0, -3.0)]
    Path("data/babylm_eval/supplement_filtered").mkdir(parents=True)
    for task, paradigms in PAIRS.items():
        rows = [
            dict(uid=uid, i=i, good=scores[i][0], bad=scores[i][1])
            for uid, n in paradigms.items()
            for i in range(n)
        ]
        Path(f"out/tiny/pairs_{task}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        for uid, n in paradigms.items():
            pairs = [{"sentence_good": f"Good {i}.\nA", "sentence_bad": f"Bad {i}.\nA"} for i in range(n)]
            text = "".join(json.dumps(pair) + "\n" for pair in pairs)
            if task == "supplement":
                Path(f"data/babylm_eval/supplement_filtered/{uid}.jsonl").write_text(text)
                continue
            with zipfile.ZipFile("data/babylm_eval/blimp_filtered.zip", "a") as archive:
                archive.writestr(f"blimp_filtered/{uid}.jsonl", text)
    found = {"blimp_filtered": {"score": 100 * (2 / 3 + 1 / 2) / 2}, "supplement": {"score": 50}}
    Path("out/tiny/results.json").write_text(json.dumps({"protocol": "2024", "benchmarks": found}))
    return Path("out/tiny")


def predicted(folder):
    path = export.main(export.Settings(run=str(folder), predictions=True))
    return json.loads(gzip.decompress(path.read_bytes()))


def test_predictions_are_as_the_leaderboard_collects_them(scored, capsys):
    found = predicted(scored)
    assert list(found) == ["blimp", "blimp_supplement"]
    assert found["blimp"]["anaphor"] == {
        "predictions": [
            {"id": "anaphor_0", "pred": " Good 0.\nA"},
            {"id": "anaphor_1", "pred": " Bad 1.\nA"},
            {"id": "anaphor_2", "pred": " Good 2.\nA"},
        ]
    }
    assert {uid: len(x["predictions"]) for uid, x in found["blimp_supplement"].items()} == {"turn_taking": 2}
    said = capsys.readouterr().out
    assert "ewok: left out, for this file would hold its texts" in said and "glue: left out" in said


def test_what_has_no_scores_is_left_out_of_the_predictions(scored, capsys):
    (scored / "pairs_supplement.jsonl").unlink()
    assert list(predicted(scored)) == ["blimp"]
    assert "blimp_supplement: left out, there is no pairs_supplement.jsonl" in capsys.readouterr().out


def test_predictions_are_of_the_checkpoint_that_was_scored_last(scored, refusal):
    """What results.json does not tell of is of an earlier one; a kept checkpoint has its own."""
    results = json.loads((scored / "results.json").read_text())
    one = {"blimp_filtered": results["benchmarks"]["blimp_filtered"]}
    (scored / "results.json").write_text(json.dumps(results | {"benchmarks": one}))
    assert list(predicted(scored)) == ["blimp"]
    assert "best.pt: needs scores by protocol 2024" in refusal(predicted, scored / "best.pt")
    for name in ("results.json", "pairs_blimp_filtered.jsonl"):
        (scored / name).rename(scored / f"best_{name}")
    assert list(predicted(scored / "best.pt")) == ["blimp"]
    one["blimp_filtered"]["score"] = 99
    (scored / "best_results.json").write_text(json.dumps(results | {"benchmarks": one}))
    assert "not the scores that results.json was made from" in refusal(predicted, scored / "best.pt")


def test_predictions_need_all_scores_by_the_protocol_of_2024(scored, refusal):
    settings, path = export.Settings(run=str(scored), predictions=True), scored / "pairs_blimp_filtered.jsonl"
    rows = path.read_text().splitlines(keepends=True)
    path.write_text("".join(rows[:-1]))
    assert "not the scores of all 5 pairs; evaluate the run again" in refusal(export.main, settings)
    path.write_text("".join(rows[1:]))
    assert "not the scores of all 5 pairs; evaluate the run again" in refusal(export.main, settings)
    path.write_text("".join(rows) + "{}\n")
    assert refusal(export.main, settings).startswith(f"{path}:6: not a pair's scores")
    (scored / "results.json").write_text('{"protocol": "2025"}')
    assert "needs scores by protocol 2024" in refusal(export.main, settings)
    assert not list(scored.glob("*predictions*"))
