"""Pictures of what a trained model remembers, from its forget gates as it reads a text."""

import json
import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from baselines import MLSTM, Mamba
from evaluate import encode, validation_text
from model import HGRN2, MIXERS, Block, MinGRU, MinLSTM, load, log_forget_gate
from support.console import progress
from support.files import replacing
from support.settings import UserError
from tools.figures_style import COLORS, DOTTED, WIDTH, add_legend, keep, label, plt

import torch
import torch.nn.functional as F

BLOCKS = 64  # of the validation text to average over
WORDS = 48  # fit under a picture
ROWS = 64  # channels of a layer that a picture of gates has room for


@dataclass
class Settings:
    """Settings of `memory` and `gates`."""

    run: str = "out/toy"  # a run folder, or a checkpoint in one
    text: str = ""  # what the model reads; none: from the validation text of its corpus
    picture: str = ""  # the file to draw; none: memory.svg or gates.svg in the run's folder

    def check(self):
        check_picture(self.picture)


def check_picture(name):
    """Raise UserError if a picture is asked for by a name that is none."""
    if name and Path(name).suffix not in (".svg", ".png"):
        raise UserError(f"picture = {name!r}: name a file that ends in .svg or .png")


def draw_memory(s):
    """
    Draw the half-life of each channel of s.run, averaged over a text; medians by layer also go into memory.json in
    the run's folder. Returns the picture's path.
    """
    model, tokenizer, trained = load(s.run)
    mixers = gated_mixers(model)
    texts = read_texts(s, tokenizer, trained)
    gates = [forget_gates(model, mixers, tokens) for tokens in progress(texts, desc="reading")]
    lives = {}
    for n in mixers:
        means = torch.stack([log_f[n].mean(0) for log_f in gates])  # of each text
        lives[n] = half_life(means.mean(0))
    run = trained.checkpoint.parent.name
    count = sum(tokens.numel() for tokens in texts)
    figure, axis = plt.subplots(figsize=(WIDTH, 4.4), dpi=200)
    axis.set_title(f"{label(run)}: how long each channel remembers, on average over {count:,} tokens")
    axis.axhline(trained.context, label="length of its training sequences", **DOTTED)
    draw_half_lives(axis, mixers, lives, floors_of(model))
    longest = max(life.max().item() for life in lives.values())
    axis.set_ylim(0.1, 2 * max(longest, trained.context))
    add_legend(figure, columns=3)
    path = keep(figure, s.picture or trained.checkpoint.with_name("memory.svg"))
    found = {"run": run, "checkpoint": trained.digest, "tokens": count}
    found["medians"] = {n: round(life.median().item(), 2) for n, life in lives.items()}
    with replacing(trained.checkpoint.with_name("memory.json")) as file:
        file.write(json.dumps(found, indent=1) + "\n")
    return path


def draw_half_lives(axis, mixers, lives, floors):
    """Draw {layer number: half-lives (channels,)} above those of their floors, sorted in each head."""
    many = sum(map(len, lives.values())) > 1000  # which would make a large file if they were not pixels
    style = {"fill": True, "baseline": 1e-9, "rasterized": many}
    blue = style | {"color": COLORS["sky"], "label": "half-life of a channel"}
    dark = style | {"color": "#555555", "label": "the least its floor allows"}
    for place, (n, mixer) in enumerate(mixers.items()):
        n_head = getattr(mixer, "n_head", 1)
        floor = half_life(floors[n].log()) if n in floors else torch.zeros_like(lives[n])
        heads = zip(lives[n].chunk(n_head), floor.chunk(n_head))
        for head, (life, least) in enumerate(heads):
            left = place + 0.9 * head / n_head
            edges = torch.linspace(left, left + 0.85 / n_head, len(life) + 1).numpy()
            order = life.argsort()
            axis.stairs(life[order].numpy(), edges, **blue)
            if least.any():
                axis.stairs(least[order].numpy(), edges, **dark)
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter("{x:,.9g}")
    axis.grid(axis="y")
    labels = [f"layer {n}\nmedian {life.median():.2g}" for n, life in lives.items()]
    axis.set_xticks([place + 0.45 for place in range(len(labels))], labels)
    axis.set(xlim=(-0.1, len(labels)), ylabel="half-life in tokens")
    axis.set_xlabel("channels, sorted in each head")


def draw_gates(s):
    """Draw what each channel of s.run forgets at each token of a text, the last layer on top. Returns the path."""
    model, tokenizer, trained = load(s.run)
    mixers = gated_mixers(model)
    tokens = read_texts(s, tokenizer, trained)[0]
    if not s.text:
        tokens = tokens[:, :32]
    if tokens.numel() > WORDS:
        raise UserError(f"text: {tokens.numel()} tokens, and a picture has room for {WORDS}: shorten it")
    gates = forget_gates(model, mixers, tokens)
    height = 1.6 + min(9, 1.5 * len(gates))
    figure, axes = plt.subplots(len(gates), figsize=(WIDTH, height), squeeze=False)
    axes = axes[::-1, 0]
    for axis, (n, log_f) in zip(axes, gates.items()):
        image = draw_forgotten(axis, log_f, getattr(mixers[n], "n_head", 1))
        axis.set_ylabel(f"layer {n}", rotation=0, ha="right", va="center")
    words = [word_of(tokenizer, token) for token in tokens[0].tolist()]
    style = {"rotation": 50 if len(words) <= 32 else 90, "rotation_mode": "anchor", "va": "center"}
    axes[0].set_xticks(range(len(words)), words, ha="right", **style)
    if len(gates) > 1:
        axes[-1].xaxis.tick_top()
        axes[-1].set_xticks(range(len(words)), words, ha="left", **style)
    bar = figure.colorbar(image, ax=axes, aspect=40, format="{x:.0%}")
    bar.set_label("share that a channel forgets")
    run = label(trained.checkpoint.parent.name)
    rows = f"rows are channels, at most {ROWS} a layer, in each head the slowest on top"
    figure.suptitle(f"{run}: how much is forgotten at each word\n{rows}")
    return keep(figure, s.picture or trained.checkpoint.with_name("gates.svg"))


def draw_forgotten(axis, log_f, n_head):
    """
    Draw 1 - f as an image, from log f (T, channels): a row per channel, sorted in each head. Of more than ROWS
    channels it draws every second, third, ...
    """
    every = math.ceil(log_f.shape[1] / ROWS)
    heads = []
    for gates in log_f.T.chunk(n_head):
        order = gates.mean(1).argsort(descending=True)
        heads.append(1 - gates[order[::every]].exp())
    image = axis.imshow(torch.cat(heads).numpy(), cmap="magma_r", vmin=0, vmax=1, aspect="auto")
    for head in range(1, n_head):
        axis.axhline(head * len(heads[0]) - 0.5, color="white", linewidth=2)
    axis.set(xticks=[], yticks=[])
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    return image


PICTURES = {"memory": draw_memory, "gates": draw_gates}


# ----------------------------------------------------------------------------------------------------
# Forget gates


GATED = (HGRN2, MinGRU, MinLSTM, Mamba, MLSTM)


def gated_mixers(model):
    """{layer number, from 1 on: mixer} of the layers with forget gates. UserError if there is none."""
    mixers = [block.mixer for block in model.layers if isinstance(block, Block)]
    gated = {n: mixer for n, mixer in enumerate(mixers, start=1) if isinstance(mixer, GATED)}
    if not gated:
        names = ", ".join(name for name, kind in MIXERS.items() if issubclass(kind, GATED))
        raise UserError(f"{type(mixers[0]).__name__} has no forget gates to draw; there are those of {names}")
    return gated


def floors_of(model):
    """{layer number, from 1 on: lower bounds of its forget gates (channels,)} of the layers that have any."""
    floors = model.floors() if model.floors else {}
    return {layer + 1: floor.detach() for layer, floor in floors.items()}


@torch.inference_mode()
def forget_gates(model, mixers, tokens):
    """Run the model on tokens (1, T) -> {layer number: log f (T, channels)} of mixers {layer number: mixer}."""
    outputs, hooks = {n: {} for n in mixers}, []
    for n, mixer in mixers.items():
        for name, child in mixer.named_children():
            hooks.append(child.register_forward_hook(partial(remember, outputs[n], name)))
    model.features(tokens)
    for hook in hooks:
        hook.remove()
    floors = floors_of(model)
    return {n: log_forget(mixer, outputs[n], floors.get(n))[0] for n, mixer in mixers.items()}


def remember(outputs, name, module, inputs, output):
    """Keep the output of a module: a forward hook, once the first two arguments are given."""
    outputs[name] = output


def log_forget(mixer, outputs, floor):
    """log f (1, T, channels) of a mixer, from the outputs {name: (1, T, ...)} of its linear layers."""
    if isinstance(mixer, HGRN2):
        return log_forget_gate(outputs["forget"], floor)
    if isinstance(mixer, MinGRU):
        return F.logsigmoid(-outputs["update"])  # f = 1 - z
    if isinstance(mixer, MinLSTM):
        log_ratio = F.logsigmoid(outputs["forget"]) - F.logsigmoid(outputs["input"])
        return F.logsigmoid(log_ratio)  # f / (f + i)
    if isinstance(mixer, Mamba):
        dt = F.softplus(outputs["step"]).unsqueeze(-1)
        return -(dt * mixer.log_A.exp()).flatten(2)
    return F.logsigmoid(outputs["gates"][..., mixer.n_head :])  # mLSTM: one gate a head


def half_life(log_f):
    """Number of tokens after which a channel with this mean log f has forgotten half of what it held."""
    return math.log(2) / -log_f.detach().double().clamp(max=-1e-6)  # finite even where f rounds to 1


# ----------------------------------------------------------------------------------------------------
# Texts


def read_texts(s, tokenizer, trained):
    """List of tokens (1, T): s.text or, spread over the validation text, blocks as long as in training."""
    if s.text:
        ((tokens, _),) = encode(tokenizer, [("", s.text)], protocol="2025")
        return [torch.tensor([tokens])]
    try:
        blocks = validation_text(trained)
    except UserError as error:
        raise UserError(f"{s.run}: {error}; say what to read, --text='The cat sleeps.'") from error
    n = max(1, blocks.n)  # a text shorter than a block is read as it is
    return [blocks.read([block])[0] for block in range(0, n, math.ceil(n / BLOCKS))]


def word_of(tokenizer, token):
    """A token as a label: without the space around it, but with a letter for one that is only space."""
    word = tokenizer.decode([token], skip_special_tokens=False)
    return word.strip() or {" ": "␣", "\n": "↵", "\t": "⇥"}.get(word, repr(word))
