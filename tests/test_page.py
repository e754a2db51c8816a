"""The page that plays: what it computes is what PyTorch computes, in node and in a real browser."""

import json
import math
import re
import shutil
import subprocess
from base64 import b64decode
from pathlib import Path

import train
from conftest import ROOT
from model import Config, LanguageModel, load
from tools import page

import numpy as np
import pytest
import torch

MODELS = {
    "a": dict(mixer="hgrn2"),
    "b": dict(mixer="mingru", expand=2, tie_embeddings=True),
    "c": dict(mixer="attention", position="rope"),
}
TEXT = "The cat sees the dogs; it's 12 o'clock, été."
RUN = """
const content = JSON.parse(require("fs").readFileSync(process.argv[2]));
const tokenizer = new Tokenizer(content.tokenizer);
const found = content.models.map(data => {
  const model = new Model(data), ids = tokenizer.encode(process.argv[3]), { logits, memories } = model.read(ids);
  return { ids, logits: logits.map(x => [...x]), reads: memories.map(memory => model.reads(memory, 0)),
           shares: memories.map(memory => model.triangle(memory, null)), scores: scores(model, ids),
           forced: model.read(ids, 0.5).logits.map(x => [...x]) };
});
console.log(JSON.stringify(found));
"""


@pytest.fixture
def runs(workplace, tiny):
    """Three runs of a few steps, out/a, b and c."""
    for name, model in MODELS.items():
        train.main(tiny(run=name, n_layer=3, max_steps=6, **model))
    return [f"out/{name}" for name in MODELS]


def parts(path):
    """The page's program and its content."""
    text = Path(path).read_text(encoding="utf-8")
    content = re.search(r'type="application/json">(.*?)</script>', text, re.S)[1]
    return re.search(r"<script>\n(.*?)</script>", text, re.S)[1], content


@pytest.fixture
def computed(runs):
    """The page's program run by node on TEXT: logits, scores and shares of each model."""
    if not shutil.which("node"):
        pytest.skip("no node")
    program, content = parts(page.main([*runs, "--file=page.html"]))
    Path("page.js").write_text(f"{program}\n{{ {RUN} }}", encoding="utf-8")
    Path("content.json").write_text(content, encoding="utf-8")
    command = ["node", "page.js", "content.json", TEXT]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@torch.no_grad()
def rounded(model):
    """A model with its matrices rounded as the page has them."""
    for weight in model.parameters():
        if weight.ndim > 1:
            scale, steps = page.quantised(weight)
            weight.copy_(scale * steps)
    return model


def rebuilt(data):
    """What a page has of a model -> the LanguageModel."""
    shape = {name: data[name] for name in page.SHAPE}
    model = LanguageModel(Config(position="rope" if data["mixer"] == "attention" else "none", **shape))
    weights = {}
    for name, packed in data["weights"].items():
        if "values" in packed:
            weights[name] = torch.tensor(np.frombuffer(b64decode(packed["values"]), np.float32))
        else:
            steps = np.frombuffer(b64decode(packed["steps"]), np.int8).reshape(packed["shape"])
            weights[name] = torch.tensor(
                steps * np.frombuffer(b64decode(packed["scale"]), np.float32)[:, None]
            )
    if data["tie_embeddings"]:
        weights["head.weight"] = weights["embed.weight"]
    model.load_state_dict(weights)
    return model.eval()


def test_its_numbers_are_pytorchs(runs, computed):
    """Tokens to the letter, logits and log-probabilities to 1e-4, of the weights as the page rounds them."""
    for run, found in zip(runs, computed):
        model, tokenizer, _ = load(run)
        ids = tokenizer.encode(TEXT).ids
        assert found["ids"] == ids and len(ids) > 15
        with torch.no_grad():
            logits = rounded(model)(torch.tensor([ids]))[0][0]
        torch.testing.assert_close(torch.tensor(found["logits"]), logits, rtol=0, atol=1e-4)
        log_p = logits[:-1].log_softmax(-1).gather(1, torch.tensor(ids[1:])[:, None]).flatten()
        torch.testing.assert_close(torch.tensor(found["scores"]), log_p, rtol=0, atol=1e-4)


def test_the_rounding_changes_little(runs):
    for run in runs:
        model, tokenizer, _ = load(run)
        tokens = torch.tensor([tokenizer.encode(TEXT).ids])
        with torch.no_grad():
            exact = model(tokens)[0]
            assert (rounded(model)(tokens)[0] - exact).abs().max() < 0.05 * exact.abs().max()


def inside(run, layer):
    """The input and the module of a layer's mixer, and a floor, where there is one."""
    model, tokenizer, _ = load(run, kernels="loop")
    rounded(model)
    seen = []
    mixer = model.layers[layer].mixer
    mixer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs))
    with torch.no_grad():
        model(torch.tensor([tokenizer.encode(TEXT).ids]))
    x, _, *floor = seen[0]
    return mixer, x[0], *floor


@torch.no_grad()
def test_what_is_read_is_query_times_decay_times_key(runs, computed):
    """... of HGRN2, token by token; shares sum to 1 in every model, and minGRU's are of the memory itself."""
    mixer, x, floor = inside(runs[0], 1)
    K = x.shape[-1] // mixer.n_head
    q = torch.nn.functional.silu(mixer.query(x))[:, :K] * K**-0.5
    f = (floor + (1 - floor) * mixer.forget(x).sigmoid())[:, :K]
    for t, row in enumerate(computed[0]["reads"][1]):
        for s, value in enumerate(row):
            expected = (q[t] * f[s + 1 : t + 1].prod(0) * (1 - f[s])).sum()
            assert math.isclose(value, expected, rel_tol=1e-3, abs_tol=1e-6)
    for found in computed:
        for row in (row for layer in found["shares"] for row in layer):
            assert math.isclose(sum(row), 1, abs_tol=1e-6) and min(row) >= 0
    assert all(math.isclose(sum(row), 1, abs_tol=1e-6) for row in computed[1]["reads"][2])
    assert computed[0]["forced"] != computed[0]["logits"] and computed[2]["forced"] == computed[2]["logits"]


def test_what_a_page_cannot_show_is_refused(runs, tiny, refusal):
    assert "of what? python -m tools.page out/toy" in refusal(page.main, [])
    train.main(tiny(run="d", mixer="mamba", max_steps=1))
    said = refusal(page.main, ["out/d"])
    assert "mixer = 'mamba'; a page computes models with 'hgrn2' or 'mingru' or 'attention'" in said
    train.main(tiny(run="e", mlp="gelu", max_steps=1))
    assert "mlp = 'gelu'; a page computes models with 'swiglu'" in refusal(page.main, ["out/e"])
    train.main(tiny(run="f", position="learned", max_steps=1))
    assert "position = 'learned'; a page computes models with 'none' or 'rope'" in refusal(
        page.main, ["out/f"]
    )
    train.main(tiny(run="g", vocab_size=400, max_steps=1))
    assert "the model has 400 entries, its tokenizer 300" in refusal(page.main, ["out/g"])
    assert page.main(["out/a/best.pt"]) == Path("out/a/page.html")
    path = Path("out/c/tokenizer.json")
    path.write_text(path.read_text().replace('"<pad>"', '"<pat>"'))
    assert "has another tokenizer than out/a" in refusal(page.main, ["out/a", "out/c"])


# ----------------------------------------------------------------------------------------------------
# In a browser


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium; its driver keeps what the page logs."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="no selenium")
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (program and driver):
        pytest.skip("no chromium and chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield browser
    browser.quit()


PAGE = ROOT / "results" / "page.html"


@pytest.fixture
def opened(browser):
    """The committed page, opened."""
    browser.set_window_size(1100, 900)
    browser.get(PAGE.as_uri())
    assert browser.execute_script("return document.body.dataset.ready") == "yes"
    yield browser
    assert [entry for entry in browser.get_log("browser") if entry["level"] != "INFO"] == []


def test_typing_changes_what_comes_next(opened):
    """... by keyboard alone: the text, then the tokens, then the slider."""
    keys = pytest.importorskip("selenium.webdriver.common.keys").Keys
    field = opened.find_element("id", "text")
    field.clear()
    field.send_keys("The wolves near the forest")
    before = opened.find_element("id", "next").text
    field.send_keys(" jump")
    assert opened.find_element("id", "next").text != before
    token = opened.find_element("css selector", "#tokens button[aria-current=true]")
    assert token.text.strip() == "jump" and opened.execute_script("return page.at") == 6
    token.send_keys(keys.ARROW_LEFT)
    chosen = opened.switch_to.active_element
    assert chosen.text.strip() == "forest" and opened.find_element("id", "next").text == before
    opened.find_element("id", "gate").send_keys(keys.ARROW_RIGHT)
    assert (
        opened.find_element("id", "forced").is_selected() and opened.find_element("id", "next").text != before
    )


def test_its_numbers_in_the_browser_are_those_of_its_runs_in_pytorch(opened):
    """The page's weights, unpacked here, in model.py: logits to 1e-4."""
    _, content = parts(PAGE)
    text = "The woman who praised the men"
    field = opened.find_element("id", "text")
    field.clear()
    field.send_keys(text)
    for m, data in enumerate(json.loads(content)["models"]):
        model = rebuilt(data)
        ids = opened.execute_script("return page.tokens")
        logits = torch.tensor(opened.execute_script(f"return page.found[{m}].logits.map(x => [...x])"))
        with torch.no_grad():
            torch.testing.assert_close(logits, model(torch.tensor([ids]))[0][0], rtol=0, atol=1e-4)


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [390, 1100])
def test_it_fits_and_can_be_read(opened, width, dark):
    """On a phone and on a desk nothing runs over the edge; contrast is 4.5 at least, in the dark as well."""
    screen = dict(width=width, height=900, deviceScaleFactor=1, mobile=width < 500)
    opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    feature = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    wide = "return document.documentElement.scrollWidth"
    assert opened.execute_script(wide) <= width
    style = "const style = getComputedStyle(document.documentElement); return style.getPropertyValue(arguments[0])"
    colors = {
        name: opened.execute_script(style, f"--{name}").strip() for name in ("back", "text", "soft", "mark")
    }
    assert (luminance(colors["back"]) < 0.5) == dark
    for name in ("text", "soft", "mark"):
        low, high = sorted(luminance(colors[x]) for x in (name, "back"))
        assert (high + 0.05) / (low + 0.05) >= 4.5, name
    opened.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def luminance(color):
    """Relative luminance of "#rrggbb" (WCAG 2)."""
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear))


def test_the_committed_page_is_the_program_of_the_template():
    template = page.TEMPLATE.read_text(encoding="utf-8")
    text = PAGE.read_text(encoding="utf-8")
    before, after = template.split(page.PLACE)
    assert text.startswith(before) and text.endswith(after) and len(text) < 1_000_000
    assert [m["name"] for m in json.loads(parts(PAGE)[1])["models"]] == ["HGRN2", "minGRU", "Transformer"]
    assert not re.search(r"https?://", text)
