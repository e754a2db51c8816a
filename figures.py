"""
Every picture, from the files that runs and evaluations write.

    python figures.py out/toy                     the learning curve of a run, as train.py draws it at its end
    python figures.py results/toy.json            the same from a result file, for the README
    python figures.py results/compare_toy.json    many models, as compare.py found them
    python figures.py results/bench_cpu.json      speed and memory, as bench.py measured them; its kernels apart

    python figures.py memory out/toy              how long each channel of a run remembers what it reads
    python figures.py gates out/toy --text="..."  what its channels forget at which word
    python figures.py phenomena out/a out/b       which runs fail where; or the rows of a result file of compare.py
"""

import io
import json
import math
import re
from collections import defaultdict
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from matplotlib.ticker import LogLocator

import data
from baselines import MLSTM, Mamba
from checkpoint import fingerprint, macro_score, read_log, replacing
from config import at_least, configure, fail, progress, run_script
from layers import log_forget_gate
from model import HGRN2, MIXERS, MinGRU, MinLSTM, load
from scores import encode

matplotlib.rcParams |= {
    "svg.hashsalt": "nanornn",  # the same picture is the same file
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}


def learning_curve(folder):
    """Draw out/RUN/learning_curve.svg: losses and, where pairs were scored, what was learned when. Its path."""
    return draw(read_log(folder), {}, Path(folder) / "learning_curve.svg", Path(folder).name)


def draw(log, benchmarks, path, title):
    """
    Records of log.jsonl and the benchmarks of a results.json -> a picture at `path`: losses; the score of a task;
    when each paradigm was learned or, of benchmarks scored only at the end, how well each phenomenon is known.
    """
    scored = [record for record in log if record.get("pairs")]
    learned = {task: rows_of(scored, task, benchmarks) for task in (scored[0]["pairs"] if scored else ())}
    panels = [(4.2, 3.5, draw_losses, log, title)]  # width, height in inches, what draws it
    panels += [(4.2, 3.5, draw_accuracy, log)] * any("accuracy" in record for record in log)
    panels += [(4.2, 3.5, draw_scores, scored)] * bool(scored)
    for task in sorted(learned, key=lambda x: -len(learned[x])):
        width = 3 + min(4.5, max(2.5, 0.4 * len(scored)))
        panels.append((width, 0.8 + 0.2 * len(learned[task]), draw_learning, scored, learned[task], task))
    for task in sorted(set(benchmarks) - set(learned)):
        if len(phenomena(benchmarks[task])) <= 30:  # not BEAR's relations
            panels.append(
                (6, 0.8 + 0.2 * len(phenomena(benchmarks[task])), draw_knowledge, benchmarks[task], task)
            )
    return keep(lay_out(panels), path)


def lay_out(panels):
    """
    [(width, height, function, arguments...), ...] -> a figure, each panel in the first column with room for it.
    Heat maps keep their height; the others share what is left of their column.
    """
    heights = [panel[1] for panel in panels]
    longest, columns = max(7 if len(panels) > 2 else 4.5, sum(heights) / 2.5, *heights), []
    for panel in panels:
        for column in columns:
            if sum(other[1] for other in column) + panel[1] <= longest:
                column.append(panel)
                break
        else:
            columns.append([panel])
    widths = [max(panel[0] for panel in column) for column in columns]
    figure = plt.figure(figsize=(sum(widths), longest), layout="constrained")
    parts = figure.subfigures(1, len(columns), width_ratios=widths, squeeze=False)
    for part, column in zip(parts.flat, columns):
        elastic = [panel[2] is not draw_learning for panel in column]
        left = longest - sum(panel[1] for panel in column)
        heights = [panel[1] + left * grows / max(1, sum(elastic)) for panel, grows in zip(column, elastic)]
        heights.append(1e-6 if any(elastic) else left + 1e-6)
        grid = part.add_gridspec(len(heights), 1, height_ratios=heights)
        for place, (_, _, function, *arguments) in enumerate(column):
            function(part.add_subplot(grid[place]), *arguments)
    return figure


def keep(figure, path):
    """Write the picture to `path`, whole or not at all, and forget it. Returns the path."""
    kind, picture = Path(path).suffix[1:], io.BytesIO()
    figure.savefig(picture, format=kind, metadata={"Date": None} if kind == "svg" else None)
    picture = picture.getvalue()
    if kind == "svg":
        picture = re.sub(rb"\n *(<!--.*-->)?", b"\n", picture)  # its margins are a tenth of it
    with replacing(path, "wb") as file:
        file.write(picture)
    plt.close(figure)
    return path


def draw_losses(axis, log, title):
    """Training loss, thin, and validation loss, bold, over epochs; of a student its cross-entropy alone."""
    loss = "ce" if any("ce" in record for record in log) else "loss"
    styles = {
        loss: ("training", dict(lw=0.8, alpha=0.6)),
        "val_loss": ("validation", dict(lw=2, color="C1", marker="o", ms=3)),
    }
    for name, (label, style) in styles.items():
        points = [(record["epoch"], record[name]) for record in log if name in record]
        if points:
            axis.plot(*zip(*points), label=f"{label}, {points[-1][1]:.3f} at the end", **style)
    steps = [record["step"] / record["epoch"] for record in log if record["epoch"]][:1]
    epoch = "epoch" + "".join(f" of {x:,.0f} steps" for x in steps)
    axis.set(title=f"{title}: loss per token, nats", xlabel=epoch)
    axis.grid(alpha=0.25)
    if axis.lines:
        axis.legend()


def draw_accuracy(axis, log):
    """Of a corpus of answers, such as copying, the share that is right, over epochs."""
    records = [record for record in log if "accuracy" in record]
    for name in records[0]["accuracy"]:
        scores = [record["accuracy"][name] for record in records]
        label = f"{name}, {scores[-1]:.1f} at the end"
        axis.plot([record["epoch"] for record in records], scores, marker="o", ms=3, label=label)
    axis.set(title="per cent of answers right", xlabel="epoch")
    axis.grid(alpha=0.25)
    axis.legend()


def draw_scores(axis, records):
    """The score of each task, the macro score over them in bold, its best marked, over epochs."""
    epochs = [record["epoch"] for record in records]
    macro = [macro_score(record["pairs"]) for record in records]
    tasks = sorted(records[0]["pairs"])
    for task in tasks if len(tasks) > 1 else []:
        scores = [record["pairs"][task]["score"] for record in records]
        axis.plot(epochs, scores, lw=1.2, marker="o", ms=3, label=f"{task}, {scores[-1]:.1f} last")
    name = "macro score" if len(tasks) > 1 else tasks[0]
    label = f"{name}, {macro[-1]:.1f} last"
    axis.plot(epochs, macro, lw=2, color="black", marker="o", ms=3, label=label)
    best = macro.index(max(macro))
    label = f"best, {macro[best]:.1f} at epoch {round(epochs[best], 2):g}"
    axis.plot(epochs[best], macro[best], "*", ms=14, color="#d7301f", zorder=3, label=label)
    axis.axhline(50, color="black", ls=":", lw=1, label="chance of a pair")
    axis.set(title="per cent of pairs judged rightly", xlabel="epoch")
    axis.grid(alpha=0.25)
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, fontsize=7.5, columnspacing=1)


def rows_of(records, task, benchmarks):
    """{name: [score in each record]}: a paradigm each; if they are many, and it is known, a phenomenon each."""
    scores = [record["pairs"][task]["subtasks"] for record in records]
    rows = {paradigm: [x[paradigm] for x in scores] for paradigm in scores[0]}
    return by_term(
        rows, {x: y.get("term") for result in benchmarks.values() for x, y in result["subtasks"].items()}
    )


def by_term(rows, terms):
    """{paradigm: [scores]} -> {phenomenon: means of them} if there are many paradigms, and it is known of all."""
    if len(rows) <= 30 or not all(terms.get(paradigm) for paradigm in rows):
        return rows
    grouped = defaultdict(list)
    for paradigm, row in rows.items():
        grouped[terms[paradigm]].append(row)
    return {term: [sum(x) / len(x) for x in zip(*group)] for term, group in grouped.items()}


def draw_learning(axis, records, rows, task):
    """A row a paradigm, a column an evaluation: what was learned first is on top."""
    names, numbers = sorted(rows, key=lambda x: -sum(rows[x])), len(records) <= 20  # that there is room for
    draw_heat(axis, [rows[name] for name in names], size=7 if numbers else 0)
    shown = range(0, len(records), -(-len(records) // 12))
    axis.set_yticks(range(len(names)), [name.replace("_", " ") for name in names], fontsize=8)
    axis.set_xticks(shown, [f"{round(records[i]['epoch'], 2):g}" for i in shown])
    colors = "" if numbers else "; red is 0, yellow 50, blue 100"
    axis.set(title=f"{task}: per cent right", xlabel=f"epoch{colors}")


def draw_heat(axis, rows, size):
    """Per cents right as colours that the colour-blind tell apart too, and as numbers of a size, if not 0."""
    axis.imshow(rows, cmap="RdYlBu", vmin=0, vmax=100, aspect="auto")
    for row, scores in enumerate(rows if size else []):
        for column, score in enumerate(scores):
            color = "white" if abs(score - 50) > 35 else "black"
            axis.text(column, row, f"{score:.0f}", ha="center", va="center", fontsize=size, color=color)
    axis.spines[:].set_visible(False)


def phenomena(result):
    """A benchmark's entry in results.json -> {phenomenon, domain or relation: its subtasks}."""
    terms = defaultdict(list)
    for uid, subtask in result["subtasks"].items():
        terms[(subtask["term"] or uid).replace("_", " ")].append(subtask)
    return terms


def draw_knowledge(axis, result, task):
    """A bar a phenomenon, domain or relation, with a line at chance and the 95 % interval."""
    terms = phenomena(result)
    means = {term: sum(x["score"] for x in xs) / len(xs) for term, xs in terms.items()}
    names = sorted(means, key=means.get)
    spread = [sum(x["interval"] ** 2 for x in terms[name]) ** 0.5 / len(terms[name]) for name in names]
    axis.barh(names, [means[name] for name in names], xerr=spread, color="#74add1", ecolor="#333333")
    axis.axvline(result.get("chance", 50), color="black", ls=":", lw=1)
    axis.tick_params(axis="y", labelsize=8)
    n = sum(x["n"] for x in result["subtasks"].values())
    axis.set(title=f"{task}: per cent right of {n:,}, score {result['score']:.1f}", xlim=(0, 100))


# ----------------------------------------------------------------------------------------------------
# Inside a run: its forget gates, caught while it reads


@dataclass
class Settings:
    """Of `memory` and `gates`."""

    run: str = "out/toy"  # a run folder, or a checkpoint in one
    text: str = ""  # what the model reads; none: from the validation text of its corpus
    layer: int = 0  # this one alone, the first is 1; 0: all that have forget gates
    picture: str = ""  # the file to draw; none: memory.svg or gates.svg in the run's folder

    def check(self):
        at_least(0, self, "layer")
        if self.picture and Path(self.picture).suffix not in (".svg", ".png"):
            fail(f"picture = {self.picture!r}: name a file that ends in .svg or .png")


GATES = {  # mixer: its linear layers of which the forget gates f are made, and log f
    HGRN2: (["forget"], lambda mixer, z: log_forget_gate(z, mixer.floors(mixer.layer))),
    MinGRU: (["update"], lambda mixer, z: F.logsigmoid(-z)),  # f = 1 - z
    MinLSTM: (["forget", "input"], lambda mixer, f, i: F.logsigmoid(F.logsigmoid(f) - F.logsigmoid(i))),
    Mamba: (["step"], lambda mixer, dt: -(F.softplus(dt).unsqueeze(-1) * mixer.log_A.exp()).flatten(1)),
    MLSTM: (["gates"], lambda mixer, z: F.logsigmoid(z[:, mixer.n_head :])),
}
BLOCKS = 64  # of the validation text make an average
WORDS = 48  # have room under a picture
ROWS = 768  # of pixels are enough for all the panels of one


def draw_memory(s):
    """
    How long each channel of s.run remembers: its half-life over a text, above its floor's -> the path. The layers'
    medians are also in a .json beside the picture.
    """
    model, tokenizer, trained = load(s.run)
    mixers, texts = gated_mixers(model, s.layer), texts_for(s, tokenizer, trained)
    gates = [forget_gates(model, mixers, tokens) for tokens in progress(texts, desc="reading")]
    lives = {n: half_life(torch.stack([log_f[n].mean(0) for log_f in gates])) for n in mixers}
    figure, axis = plt.subplots(figsize=(9, 4.4), dpi=200, layout="constrained")
    for place, (n, mixer) in enumerate(mixers.items()):
        draw_half_lives(axis, place, lives[n], half_lives_of_floors(mixer), getattr(mixer, "n_head", 1))
    for patch in axis.patches:
        patch.set_rasterized(sum(map(len, lives.values())) > 1000)  # or the file would be large
    longest = max(trained.context, *(life.max().item() for life in lives.values()))
    axis.axhline(trained.context, color="black", ls=":", lw=1, label="length of its training sequences")
    axis.set(yscale="log", ylim=(0.1, 2 * longest), xlim=(-0.1, len(mixers)), ylabel="half-life, tokens")
    axis.yaxis.set_major_formatter("{x:,.9g}")
    axis.grid(axis="y", alpha=0.25)
    layer, median = ("layer ", "median ") if len(mixers) <= 8 else ("", "")  # there is room for
    names = [f"{layer}{n}\n{median}{life.median():.2g}" for n, life in lives.items()]
    axis.set_xticks([place + 0.45 for place in range(len(mixers))], names, fontsize=9 if layer else 7)
    heads = " in each head" * any(hasattr(mixer, "n_head") for mixer in mixers.values())
    axis.set_xlabel(f"layers and the medians of their channels, which are sorted{heads}")
    run, count = trained.checkpoint.parent.name, sum(map(torch.numel, texts))
    axis.set_title(f"{run}: how long each channel remembers, on average over {count:,} tokens")
    by_label = {label: x for x, label in zip(*axis.get_legend_handles_labels())}
    figure.legend(by_label.values(), by_label, loc="outside lower center", ncols=3)
    path = Path(s.picture or trained.checkpoint.with_name("memory.svg"))
    medians = {n: round(life.median().item(), 2) for n, life in lives.items()}
    found = {"run": run, "checkpoint": fingerprint(trained.checkpoint), "tokens": count, "medians": medians}
    beside = path.with_suffix(".json")
    if beside.exists() and '"medians"' not in beside.read_text(encoding="utf-8", errors="replace"):
        fail(f"picture = {str(path)!r}: {beside}, where its numbers would go, is another file; name another")
    with replacing(beside) as file:
        file.write(json.dumps(found, indent=1) + "\n")
    return keep(figure, path)


def draw_half_lives(axis, place, lives, floors, n_head):
    """A layer's half-lives (N,), sorted in each head, side by side from `place` to 0.9 beside it."""
    width = 0.9 / n_head
    floors = torch.zeros_like(lives) if floors is None else floors
    for head, (life, floor) in enumerate(zip(lives.chunk(n_head), floors.chunk(n_head))):
        order = life.argsort()
        edges = torch.linspace(place + head * width, place + (head + 0.95) * width, len(life) + 1).numpy()
        kinds = {
            "half-life of a channel": (life, "#74add1"),
            "the least its floor allows": (floor, "#555555"),
        }
        for label, (values, color) in kinds.items():
            if values.any():
                shown = values[order].numpy()
                axis.stairs(shown, edges, fill=True, baseline=1e-9, color=color, label=label)


def draw_gates(s):
    """What each channel of s.run forgets at each token of a text, a panel a layer, the last on top -> the path."""
    model, tokenizer, trained = load(s.run)
    mixers, tokens = gated_mixers(model, s.layer), texts_for(s, tokenizer, trained)[0]
    if s.text and tokens.numel() > WORDS:
        fail(f"text: {tokens.numel()} tokens, and a picture has room for {WORDS}: shorten it")
    tokens = tokens if s.text else tokens[:, :32]
    gates = forget_gates(model, mixers, tokens)
    figure = plt.figure(figsize=(9, 1.6 + min(9, 1.5 * len(gates))), layout="constrained")
    axes = figure.subplots(len(gates), squeeze=False)[::-1, 0]
    for axis, (n, log_f) in zip(axes, gates.items()):
        n_head = getattr(mixers[n], "n_head", 1) if len(gates) <= 6 else 1  # there is no room to part them
        image = draw_forgotten(axis, log_f, n_head, ROWS // len(gates))
        axis.set_ylabel(f"layer {n}", rotation=0, ha="right", va="center", labelpad=8)
    words = [word_of(tokenizer, token) for token in tokens[0].tolist()]
    options = dict(rotation_mode="anchor", va="center", parse_math=False)
    options["rotation"] = 50 if len(words) <= 32 else 90
    axes[0].set_xticks(range(len(words)), words, ha="right", **options)
    if len(gates) > 1:
        axes[-1].xaxis.tick_top()
        axes[-1].set_xticks(range(len(words)), words, ha="left", **options)
    bar = figure.colorbar(image, ax=axes, aspect=40, format="{x:.0%}")
    bar.set_label("forgotten of what a channel holds")
    run = trained.checkpoint.parent.name
    figure.suptitle(f"{run}: what each channel forgets at each word; what forgets least is on top")
    return keep(figure, s.picture or trained.checkpoint.with_name("gates.svg"))


def draw_forgotten(axis, log_f, n_head, most):
    """log f (T, N) -> an image of 1 - f, a row a channel, sorted in each head; every few of them if too many."""
    heads = []
    for gates in log_f.T.chunk(n_head):  # (N / n_head, T)
        heads.append(1 - gates[gates.mean(1).argsort(descending=True)][:: -(-log_f.shape[1] // most)].exp())
    image = axis.imshow(
        torch.cat(heads).numpy(), cmap="magma_r", vmin=0, vmax=1, aspect="auto", interpolation="none"
    )
    edges = [head * len(heads[0]) - 0.5 for head in range(n_head)]
    for edge in edges[1:]:
        axis.axhline(edge, color="white", lw=2)
    names = [f"head {head + 1}" for head in range(n_head)] if n_head > 1 else []
    axis.set_yticks([edge + len(heads[0]) / 2 for edge in edges][: len(names)], names, fontsize=7)
    axis.set_xticks([])
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    return image


INSIDE = {"memory": draw_memory, "gates": draw_gates}


def gated_mixers(model, layer=0):
    """{number, from 1 on: mixer} of the layers with forget gates, or of one; ends the script if there is none."""
    mixers = dict(enumerate((block.mixer for block in model.layers if hasattr(block, "mixer")), start=1))
    names = {kind: name for name, kind in MIXERS.items()}
    gated = {n: mixer for n, mixer in mixers.items() if type(mixer) in GATES}
    if not gated:
        known = ", ".join(names[kind] for kind in GATES)
        fail(f"mixer = {names[type(mixers[1])]!r} has no forget gates to draw; there are those of {known}")
    if layer and layer not in gated:
        fail(f"layer = {layer}: the layers with forget gates are {', '.join(map(str, gated))}")
    return {layer: gated[layer]} if layer else gated


@torch.inference_mode()
def forget_gates(model, mixers, tokens):
    """What mixers {number: mixer} keep as the model reads tokens (1, T): {number: log f (T, N)}."""
    linears = {n: [getattr(mixer, name) for name in GATES[type(mixer)][0]] for n, mixer in mixers.items()}
    seen, hooks = {}, []
    for linear in sum(linears.values(), []):
        hooks.append(linear.register_forward_hook(lambda module, _, output: seen.update({module: output[0]})))
    model.features(tokens)
    for hook in hooks:
        hook.remove()
    return {n: GATES[type(mixer)][1](mixer, *(seen[x] for x in linears[n])) for n, mixer in mixers.items()}


def half_life(log_f):
    """log f (T, N) -> in how many tokens, at this mean, channels forget half of what they hold, (N,)."""
    return math.log(2) / -log_f.double().mean(0).clamp(max=-1e-6)  # finite also where f = 1 in float32


def half_lives_of_floors(mixer):
    """What HGRN2's f >= floor means for its half-lives, (N,): 0 where the floor is 0. None of other mixers."""
    if isinstance(mixer, HGRN2):
        return half_life(mixer.floors(mixer.layer).detach().log().unsqueeze(0))


def texts_for(s, tokenizer, trained):
    """[tokens (1, T)]: of s.text or, spread over the validation text, blocks as long as in training."""
    if s.text:
        ((tokens, _),) = encode(tokenizer, [("", s.text)], protocol="2025")
        return [torch.tensor([tokens])]
    corpus, own = data.find(trained.corpus, needed=False), trained.checkpoint.with_name("tokenizer.json")
    if not corpus or (corpus / "tokenizer.json").read_bytes() != own.read_bytes():
        fail(
            f"{s.run}: its corpus {trained.corpus!r} is not here: say what to read, --text='The cat sleeps.'"
        )
    blocks = data.Blocks(corpus / "val.bin", trained.context)
    return [blocks.read([n])[0] for n in range(0, max(1, blocks.n), max(1, -(-blocks.n // BLOCKS)))]


def word_of(tokenizer, token):
    """A token as a label: no space around it, but a letter where it is nothing else."""
    word = tokenizer.decode([token], skip_special_tokens=False)
    return word.strip() or {" ": "␣", "\n": "↵", "\t": "⇥"}.get(word, repr(word))


def compare_phenomena(paths):
    """Run folders or result files -> the paths of pictures, one of each benchmark of pairs, beside the first."""
    tables, terms = defaultdict(dict), {}
    for path in paths or fail("phenomena of what? python figures.py phenomena out/toy results/toy_1.json"):
        for model, benchmarks in scores_of(path, terms):
            for task, scores in benchmarks.items():
                tables[task][model] = scores
    for task, rows in tables.items():
        path = paths[0] if paths[0].is_dir() else paths[0].with_suffix("")
        yield draw_phenomena(rows, path.with_name(f"{path.name}_{task}.svg"), task, terms)


def scores_of(path, terms):
    """Yields (model, {benchmark: {paradigm: per cent right}}) of a result file, and adds to the terms."""
    file = path / "results.json" if path.is_dir() else path
    try:
        results = json.loads(file.read_text(encoding="utf-8"))
        if "comparison" in results:
            for row in results["rows"].values():
                for found in row.get("benchmarks", {}).values():
                    terms.update((uid, x["term"]) for uid, x in found["subtasks"].items())
            yield from ((name, best_scores(row)) for name, row in results["rows"].items() if row["best"])
            return
        pairs = {task: x["subtasks"] for task, x in results["benchmarks"].items() if "chance" not in x}
        terms.update((uid, x["term"]) for subtasks in pairs.values() for uid, x in subtasks.items())
        name = file.parent.name if file.name == "results.json" else file.stem
        yield name, {task: {uid: x["score"] for uid, x in y.items()} for task, y in pairs.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        fail(f"{path}: no run folder with a results.json, nor a result file of evaluate.py or compare.py")


def best_scores(row):
    """A model of compare.py's results -> {benchmark: {paradigm: score}}, means over the seeds at its best rate."""
    runs = [x["best"] for x in row["runs"] if x["learning_rate"] == row["best"]["learning_rate"]]
    runs = [run.get("pairs", {}) for run in runs]
    scores = {task: mean([run[task]["subtasks"] for run in runs]) for task in runs[0]}
    for task, found in row.get("benchmarks", {}).items():  # of the whole evaluation, in place of training's
        if not task.startswith(("bear", "toyland_bear")):
            scores[task] = {uid: x["score"] for uid, x in found["subtasks"].items()}
    return scores


def mean(records):
    return {name: sum(record[name] for record in records) / len(records) for name in records[0]}


def draw_phenomena(rows, path, title, terms={}):
    """
    {model: {paradigm: per cent right}} -> a picture at `path`: a row a model, a column a paradigm, or a phenomenon
    if they are many and `terms`, {paradigm: phenomenon}, has them all. What is best, or easiest, comes first.
    """
    shared = [name for name in next(iter(rows.values())) if all(name in scores for scores in rows.values())]
    if not shared:
        fail(f"{title}: {', '.join(rows)} have no paradigm in common")
    means = {model: sum(scores[name] for name in shared) / len(shared) for model, scores in rows.items()}
    models = sorted(rows, key=means.get, reverse=True)
    columns = by_term({name: [rows[model][name] for model in models] for name in shared}, terms)
    names = sorted(columns, key=lambda name: -sum(columns[name]))
    size = (max(6, 2 + 0.27 * len(names)), 2.8 + 0.25 * len(models))
    figure, axis = plt.subplots(figsize=size, layout="constrained")
    draw_heat(axis, list(zip(*(columns[name] for name in names))), size=7)
    axis.set_yticks(range(len(models)), [f"{model}  {means[model]:.1f}" for model in models])
    axis.xaxis.tick_top()
    options = dict(fontsize=8, rotation=50, ha="left", rotation_mode="anchor")
    axis.set_xticks(range(len(names)), [name.replace("_", " ") for name in names], **options)
    axis.tick_params(length=0)
    axis.set_xlabel(f"{title}: per cent right; beside the names, means of {len(shared)} paradigms")
    return keep(figure, path)


BENCHMARKS = {  # in bench.py's results -> (what to draw over what, its name)
    "train_float32": [
        ("T", "tokens_per_second", "training, float32: tokens/s"),
        ("T", "peak_bytes", "memory of the step: MB"),
    ],
    "train_bfloat16": [("T", "tokens_per_second", "training, bfloat16: tokens/s")],
    "generate_float32": [("position", "tokens_per_second", "writing: tokens/s")],
    "score_float32": [("model", "pairs_per_second", "scoring: minimal pairs/s")],
}
AXES = {"T": "tokens in a sequence", "position": "tokens before it", "model": ""}
COLORS = {"HGRN2": "#d7301f", "minGRU": "#fc8d59", "minLSTM": "#fdbb84", "our Llama": "#8856a7"}
COLORS |= {"transformers Llama": "#045a8d", "transformers GPT-2": "#74a9cf", "torch LSTM": "#238b45"}
COLORS |= {"torch GRU": "#99d8c9"}


def draw_bench(results, path):
    """bench.py's results -> a picture at `path`: a panel a figure, a line a model, peers dashed."""
    panels = [(key, *panel) for key in BENCHMARKS if key in results for panel in BENCHMARKS[key]]
    rows = -(-len(panels) // 3)
    figure, axes = plt.subplots(rows, 3, figsize=(13, 3.8 * rows), squeeze=False, layout="constrained")
    for axis, (key, over, what, title) in zip(axes.flat, panels):
        draw_panel(axis, results[key]["rows"], over, what)
        axis.set(title=title, xlabel=AXES[over])
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=8)
    return keep(figure, path)


def draw_panel(axis, rows, over, what):
    """Lines over a number, or bars where the rows are models."""
    unit = 1e6 if what.endswith("bytes") else 1
    rows = [row for row in rows if row.get(what) is not None]
    names = list(dict.fromkeys(row["model"] for row in rows))
    for name in names:
        values = [row[what] / unit for row in rows if row["model"] == name]
        color = next((COLORS[known] for known in COLORS if known in name), "gray")
        if over == "model":
            axis.barh(name.replace(", transformers Llama", ""), values, color=color)
            continue
        peer = name.split()[0] in ("transformers", "torch")
        places = [row[over] for row in rows if row["model"] == name]
        axis.plot(places, values, label=name, color=color, ls="--" if peer else "-", marker="o", ms=3)
    if over == "model":
        axis.invert_yaxis()
    else:
        axis.set_xscale("log", base=2)
        axis.set_xticks(places, [f"{place:,}" for place in places])
        axis.set_ylim(0)
        axis.yaxis.set_major_formatter("{x:,.0f}")
        axis.grid(alpha=0.25)


KERNELS = {"linear_scan": "linear scan", "gated_linear_attention": "gated linear attention"}
KERNELS |= {"selective_scan": "selective scan"}
WAYS = {"ours": "#d7301f", "ours, k given": "#fc8d59", "ours in PyTorch": "#fdbb84", "loop": "#8856a7"}
WAYS |= {"fla chunk_hgrn": "#045a8d", "fla chunk_gla": "#045a8d", "fla fused_recurrent_hgrn": "#74a9cf"}
WAYS |= {"accelerated-scan": "#238b45", "mamba_ssm": "#238b45"}


def draw_kernels(rows, path):
    """Rows of `bench.py kernels` -> a picture at `path`: time over T, a column a kernel, a row a direction."""
    names = [name for name in KERNELS if any(row["kernel"] == name and "seconds" in row for row in rows)]
    passes = list(dict.fromkeys(row["pass"] for row in rows if "pass" in row))
    size = dict(figsize=(4.4 * len(names), 3.4 * len(passes)), squeeze=False, layout="constrained")
    figure, axes = plt.subplots(len(passes), len(names), **size)
    for line, direction in zip(axes, passes):
        for axis, name in zip(line, names):
            found = [row for row in rows if row["kernel"] == name and row.get("pass") == direction]
            draw_times(axis, [row for row in found if "seconds" in row])
            axis.set_xlabel(f"{AXES['T']}, {min(row['B'] * row['T'] for row in found):,} in all")
            axis.set_title(f"{KERNELS[name]}, {direction}: ms")
    labels = {label: line for axis in axes.flat for line, label in zip(*axis.get_legend_handles_labels())}
    figure.legend(labels.values(), labels, loc="outside lower center", ncols=5)
    return keep(figure, path)


def draw_times(axis, rows):
    """A line a way, peers dashed; below them what no kernel can reach."""
    for name in dict.fromkeys(row["model"] for row in rows):
        points = [(row["T"], 1e3 * row["seconds"]) for row in rows if row["model"] == name]
        dashes = "-" if name.startswith("ours") else "--"
        axis.plot(*zip(*points), label=name, color=WAYS.get(name, "gray"), ls=dashes, marker="o", ms=3)
    floor = {row["T"]: 1e3 * row["floor_seconds"] for row in rows}
    axis.fill_between(
        list(floor), list(floor.values()), alpha=0.25, color="gray", lw=0, label="the machine's limit"
    )
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_ylim(min(floor.values()) / 2)
    axis.set_xticks(list(floor), [f"{T:,}" for T in floor], fontsize=7)
    axis.yaxis.set_major_formatter("{x:,g}")
    axis.grid(alpha=0.25)


LAYERS = {"minGRU": "#d7301f", "minLSTM": "#fc8d59", "Mamba": "#8856a7", "torch GRU": "#74a9cf"}
LAYERS |= {"GRU, a loop": "#045a8d", "LSTM, a loop": "#238b45", "torch LSTM": "#99d8c9"}
CLAIMS = {("minGRU", 512): 175, ("minLSTM", 512): 235, ("minGRU", 4096): 1324, ("minLSTM", 4096): 1361}


def draw_minrnn(rows, path):
    """Rows of `bench.py minrnn` -> a picture at `path`: time and memory over T, two panels for each B and D."""
    rows = [row for row in rows if "seconds" in row]
    kinds = list(dict.fromkeys((row["B"], row["D"]) for row in rows))
    size = dict(figsize=(10, 4.2 * len(kinds)), squeeze=False, layout="constrained")
    figure, axes = plt.subplots(len(kinds), 2, **size)
    for line, (B, D) in zip(axes, kinds):
        found = [row for row in rows if (row["B"], row["D"]) == (B, D)]
        panels = ("seconds", 1e3, "time: ms"), ("peak_bytes", 1e-6, "memory: MB")
        for axis, (what, unit, title) in zip(line, panels):
            for name in LAYERS:
                points = [(row["T"], unit * row[what]) for row in found if row["model"] == name and row[what]]
                dashes = "-" if name in ("minGRU", "minLSTM", "Mamba") else "--"
                axis.plot(
                    *zip(*points) or ((), ()), label=name, color=LAYERS[name], ls=dashes, marker="o", ms=3
                )
            axis.set_xscale("log", base=2)
            axis.set_yscale("log")
            axis.set(title=f"a layer of width {D}, {B} sequences, {title}", xlabel=AXES["T"])
            lengths = sorted({row["T"] for row in found})
            axis.set_xticks(lengths, [f"{T:,}" for T in lengths])
            axis.yaxis.set_major_formatter("{x:,g}")
            axis.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
            axis.yaxis.set_minor_formatter("{x:,g}")
            axis.grid(alpha=0.25)
        line[0].set_xlabel(f"{AXES['T']}\n{times_the_loop(found)}")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=7)
    return keep(figure, path)


def times_the_loop(rows):
    """How many times as fast as their loops minGRU and minLSTM are, beside what their paper says, in lines."""
    said = [row for row in rows if "times_the_loop" in row and (row["model"], row["T"]) in CLAIMS]
    lines = ["{model} at T = {T:,}: {times_the_loop:,.1f} times its loop".format(**row) for row in said]
    return "\n".join(f"{x} (paper: {CLAIMS[row['model'], row['T']]:,})" for x, row in zip(lines, said))


def draw_leaderboard(rows, columns, path):
    """
    Rows of evaluate.compare -> a picture at `path`: a panel a benchmark, a bar a run, with its interval if there
    is one, the paper's in gray.
    """
    shared = [x for x in columns if all(x in row["benchmarks"] for row in rows)]
    rows = sorted(rows, key=lambda row: (not row.get("paper"), sum(row["benchmarks"][x] for x in shared)))
    size = (3 + 2.2 * len(columns), 1.2 + 0.24 * len(rows))
    options = dict(figsize=size, sharey=True, squeeze=False, layout="constrained")
    figure, axes = plt.subplots(1, len(columns), **options)
    colors = ["#bbbbbb" if row.get("paper") else "#d7301f" for row in rows]
    for axis, column in zip(axes.flat, columns):
        scores = [row["benchmarks"].get(column, 0) for row in rows]
        widths = [row.get("intervals", {}).get(column, 0) for row in rows]
        axis.barh(range(len(rows)), scores, xerr=widths, color=colors, error_kw={"elinewidth": 1})
        for place, (row, score, width) in enumerate(zip(rows, scores, widths)):
            said, color = (f"{score:.1f}", "black") if column in row["benchmarks"] else ("not scored", "gray")
            box = dict(facecolor="white", edgecolor="none", pad=0.5)  # over the line at chance
            axis.text(score + width + 1.5, place, said, va="center", fontsize=7, color=color, bbox=box)
        if column not in ("bear", "bear_big", "toyland_bear"):
            axis.axvline(50, color="black", ls=":", lw=1)
        axis.set(title=column.replace("_", " "), xlim=(0, 100 if max(scores) > 30 else 30))
    names = [row["name"] + " (paper)" * row.get("paper", False) for row in rows]
    axes[0, 0].set_yticks(range(len(rows)), names, fontsize=8)
    figure.supxlabel("per cent right", fontsize=9)
    return keep(figure, path)


MARKERS = "osD^v<>PX*hp"


def draw_comparison(results, path):
    """
    Results of compare.py -> a picture at `path`: each model's score, or loss if no pairs were scored, over epochs
    at its best learning rate; against the size of its state, if there are more than two; over learning rates, if
    there are several; less another's, if there are differences.
    """
    what, title = ("macro", "per cent right") if results["tasks"] else ("val_loss", "validation loss")
    rows = {name: row for name, row in results["rows"].items() if row["best"]}
    colors = [plt.cm.tab20(2 * i % 20 + i // 10) for i in range(len(rows))]
    styles = {
        name: dict(color=color, marker=marker, ms=5)
        for name, color, marker in zip(rows, colors, cycle(MARKERS))
    }
    panels = [draw_over_epochs]
    panels += [draw_over_sizes] * (len({row["state"] for row in rows.values()}) > 2)
    panels += [draw_over_rates] * any(len(row["rates"]) > 1 for row in rows.values())
    differ = bool(results.get("differences"))
    size = (0.5 + 4.5 * (len(panels) + differ), 4.8)
    figure, axes = plt.subplots(1, len(panels) + differ, figsize=size, squeeze=False, layout="constrained")
    for axis, panel in zip(axes[0], panels):
        panel(axis, rows, styles, what)
        axis.sharey(axes[0, 0])
        axis.grid(alpha=0.25)
        if results["tasks"]:
            axis.axhline(50, color="black", ls=":", lw=1)
    axes[0, 0].set_title(f"{results['comparison']}: {title}")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=6)
    if differ:
        draw_differences(axes[0, -1], results, styles)
    return keep(figure, path)


def draw_over_epochs(axis, rows, styles, what):
    """At the best learning rate, means over seeds."""
    for name, row in rows.items():
        rate = row["best"]["learning_rate"]
        runs = [x["evaluations"] for x in row["runs"] if x["learning_rate"] == rate]
        means = [(x[0]["epoch"], sum(y[what] for y in x) / len(x)) for x in zip(*runs)]
        axis.plot(*zip(*means), label=name, **styles[name])
    axis.set_xlabel("epoch")


def draw_over_sizes(axis, rows, styles, what):
    """The best, with its interval."""
    for name, row in rows.items():
        options = dict(yerr=row["best"].get("interval"), ls="", capsize=3)
        axis.errorbar(max(1, row["state"]), row["best"][what], **options, **styles[name])
    axis.set(title="the best of each", xlabel="numbers in the state of a sequence", xscale="log")


def draw_over_rates(axis, rows, styles, what):
    """Of the models that were tried at more than one."""
    rows = {name: row for name, row in rows.items() if len(row["rates"]) > 1}
    for name, row in rows.items():
        found = sorted((x["learning_rate"], x[what]) for x in row["rates"])
        axis.plot(*zip(*found), **styles[name])
    axis.set(title="the best at each rate", xlabel="learning rate", xscale="log")
    rates = sorted({x["learning_rate"] for row in rows.values() for x in row["rates"]})
    axis.set_xticks(rates, [f"{rate:g}" for rate in rates], minor=False)
    axis.minorticks_off()


def draw_differences(axis, results, styles):
    """How much better or worse than one of the rows the others are, by the first score or the loss."""
    what = [*results["tasks"], "loss"][0]
    found = {name: x[what] for name, x in results["differences"].items() if x}
    for place, (name, x) in enumerate(found.items()):
        axis.errorbar(x["mean"], place, xerr=x.get("interval"), capsize=3, **styles[name])
        said = f"{x['mean']:+.2f}" + (f" ± {x['interval']:.2f}" if "interval" in x else "")
        box = dict(facecolor="white", edgecolor="none", pad=0.5)  # over the line at 0
        axis.text(x["mean"], place + 0.12, said, ha="center", va="bottom", fontsize=8, bbox=box)
    axis.axvline(0, color="black", ls=":", lw=1)
    axis.margins(x=0.25)
    axis.set_yticks(range(len(found)), found)
    axis.set_ylim(-0.5, len(found) - 0.3)
    unit = "nats" if what == "loss" else "points"
    axis.set_title(f"{what.replace('_', ' ')}, {unit} above {results['settings']['against']!r}")


def draw_examined(results, path):
    """What evaluate.py says of the best of each row of a comparison, beside the paper's rows, at `path`."""
    rows = []
    for name, row in results["rows"].items():
        if found := row.get("benchmarks"):
            scores = {task: x["score"] for task, x in found.items()}
            widths = {task: x["interval"] for task, x in found.items()}
            rows.append(
                {"name": name, "parameters": row["parameters"], "benchmarks": scores, "intervals": widths}
            )
    columns = list(rows[0]["benchmarks"])
    paper = [row | {"paper": True} for row in results["paper"] if set(columns) & set(row["benchmarks"])]
    return draw_leaderboard(rows + paper, columns, path)


APART = {"kernels": draw_kernels, "minrnn": draw_minrnn}  # of bench.py's results, a picture each


def draw_results(path):
    """Draw what a result file holds, beside it -> the pictures' paths."""
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        log, benchmarks = results.get("training"), results.get("benchmarks")
        apart = {name: results[name]["rows"] for name in APART if results.get(name, {}).get("rows")}
    except (ValueError, AttributeError):
        results = log = apart = None
    for name, rows in (apart or {}).items():
        yield APART[name](rows, path.with_name(f"{path.stem}_{name}.svg"))
    if results and "comparison" in results:
        yield draw_comparison(results, path.with_suffix(".svg"))
        examined = any(row.get("benchmarks") for row in results["rows"].values())
        if examined:
            yield draw_examined(results, path.with_name(f"{path.stem}_benchmarks.svg"))
        if results["tasks"] or examined:
            yield from compare_phenomena([path])
    elif results and set(results) & set(BENCHMARKS):
        yield draw_bench(results, path.with_suffix(".svg"))
    elif log is not None and benchmarks is not None:
        yield draw(log, benchmarks, path.with_suffix(".svg"), path.stem)
    elif not apart:
        fail(f"{path}: not a result file of evaluate.py, compare.py or bench.py")


def main(args):
    if {"-h", "--help"} & set(args[:1]):
        return print(__doc__.strip())
    if not args:
        fail("of what? python figures.py out/toy, or python figures.py results/toy.json")
    if args[0] in INSIDE:
        return print(INSIDE[args[0]](configure(Settings(), args[1:], word="run")))
    if args[0] == "phenomena":
        pictures = list(compare_phenomena([Path(arg) for arg in args[1:]]))
        pictures or fail(f"{' '.join(args[1:])}: no scores of pairs; make some: python evaluate.py {args[1]}")
        return print(*pictures, sep="\n")
    for path in map(Path, args):
        if path.is_dir() and read_log(path):
            print(learning_curve(path))
        elif path.suffix == ".json" and path.exists():
            print(*draw_results(path), sep="\n")
        else:
            fail(f"{path}: neither a run folder with a log.jsonl nor a result file")


if __name__ == "__main__":
    run_script(main)
