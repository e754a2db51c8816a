"""
How likely a language model finds a text: the sum of log p(token | tokens before it), exactly, with little reading.

Texts that begin alike are a tree, one node for each token after its past:

    <s> The cats that Mary saw - sleep .          10 nodes in place of 22 tokens; the last one
                               - sleeps .         of a text is asked for, not read
                               - are asleep .

What a causal model makes of a node depends on its past alone, and is the same in every text. So nearly all of a
model, embedding, norms, linear layers, logits, reads the nodes (1, N); only what mixes along time is shown the
texts (B, T), padded on the right, and inside it each linear layer reads the nodes again. No model knows of it:
hooks on its modules turn the one layout into the other on the way in and out. So any mixer gains, also one with a
large state, or with one that grows, and no state is ever copied.
"""

from contextlib import contextmanager

import torch
import torch.nn.functional as F

import data
from checkpoint import World, sum_over_processes
from layers import Linear, linear_cross_entropy, next_token_log_p

BATCH_TOKENS = {"cpu": 512, "mps": 4096, "cuda": 16_384}  # nodes of a batch: a CPU works in its caches
TIMES = 4  # at most so many times as many tokens, with padding, in the texts of a batch


def score_texts(model, texts, each_batch=lambda done: None):
    """
    [(ids, first), ...] -> the natural logarithm of p(ids[first:] | ids[:first]) of each, in their order; `first`
    is at least 1. each_batch(how many texts were finished) is called after each batch.
    """
    scores, device = [0.0] * len(texts), model.embed.weight.device
    order = sorted(range(len(texts)), key=lambda i: texts[i][0][:-1])  # so that neighbours begin alike
    for some in batches(order, texts, BATCH_TOKENS[device.type]):
        tokens, paths = as_tree([texts[i][0][:-1] for i in some])
        with reading_nodes(model, *layouts(paths, device)):
            x, _ = model.features(torch.tensor([tokens or [0]], device=device))
        queries = []  # (the text that asks, the node after which, the token)
        for i, path in zip(some, paths):
            ids, first = texts[i]
            queries += [(i, path[t - 1], ids[t]) for t in range(first, len(ids))]
        answer(model, x[0], queries, scores)
        each_batch(len(some))
    return scores


def batches(order, texts, most):
    """Yield the texts' numbers in order, so many at once that their trees have about `most` nodes."""
    some, nodes, longest, before = [], 0, 0, []
    for i in order:
        ids = texts[i][0][:-1]
        new, longest = len(ids) - common(before, ids), max(longest, len(ids))
        if some and (nodes + new > most or (len(some) + 1) * longest > TIMES * most):
            yield some
            some, nodes, new, longest = [], 0, len(ids), len(ids)
        some.append(i)
        nodes, before = nodes + new, ids
    if some:
        yield some


def as_tree(rows):
    """Sorted lists of tokens -> the token of each node, and for each list the numbers of its nodes."""
    tokens, paths, before = [], [], []
    for row in rows:
        shared = common(before, row)
        new = range(len(tokens), len(tokens) + len(row) - shared)
        paths.append([*paths[-1][:shared], *new] if paths else list(new))
        tokens += row[shared:]
        before = row
    return tokens, paths


def common(one, other):
    """How many tokens two lists begin with alike."""
    for count, (a, b) in enumerate(zip(one, other)):
        if a != b:
            return count
    return min(len(one), len(other))


def layouts(paths, device):
    """-> the node at each place of the texts (B, T), padded with a text's last; a place of each node (N,)."""
    longest, places = max(map(len, paths)), {}
    for row, path in enumerate(paths):
        for t, node in enumerate(path):
            places.setdefault(node, row * longest + t)
    nodes = [path + (path[-1:] or [0]) * (longest - len(path)) for path in paths]
    return torch.tensor(nodes, device=device), torch.tensor([*places.values()], device=device)


@contextmanager
def reading_nodes(model, nodes, places):
    """Inside, model.features takes the nodes of a tree (1, N), in the order of `places`, and gives theirs."""

    def to_texts(x):  # (1, N, D) -> (B, T, D)
        return F.embedding(nodes, x[0]) if x.dim() == 3 and x.shape[:2] == (1, len(places)) else x

    def to_nodes(x):  # (B, T, D) -> (1, N, D)
        return x.flatten(0, 1)[places].unsqueeze(0) if x.dim() == 3 and x.shape[:2] == nodes.shape else x

    def surround(module, before, after):
        hooks.append(module.register_forward_pre_hook(lambda _, inputs: (before(inputs[0]), *inputs[1:])))
        hooks.append(module.register_forward_hook(lambda _, inputs, outputs: after(outputs)))

    hooks = []
    for layer in model.layers:
        mixer = getattr(layer, "mixer", layer)  # or what else mixes along time: a convolution, positions
        surround(mixer, to_texts, lambda outputs: (to_nodes(outputs[0]), None))
        for module in mixer.modules():
            if isinstance(module, Linear):
                surround(module, to_nodes, to_texts)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def answer(model, x, queries, scores):
    """Add log p(token) after each node asked for to the score of the text that asks; x (N, D)."""
    if queries:
        owners, nodes, tokens = zip(*queries)
        log_p = next_token_log_p(x, model.head.weight, torch.tensor(nodes), torch.tensor(tokens)).tolist()
        for i, value in zip(owners, log_p):
            scores[i] += value


# ----------------------------------------------------------------------------------------------------
# Of a whole corpus


@torch.no_grad()
def validation(model, batches, each_batch=lambda: None):
    """
    Batches (tokens, targets), shared by all processes -> the mean loss of a target, in nats; and, if there are
    targets at some places only, as in copying, {"tokens": per cent right, "sequences": per cent with all right}.
    """
    sums, device = [0.0] * 5, model.embed.weight.device
    for tokens, targets in batches:
        each_batch()
        tokens, targets = (x[World.rank :: World.size].to(device) for x in (tokens, targets))
        if len(tokens):
            sums = [a + b for a, b in zip(sums, tally(model, tokens, targets))]
    loss, count, right, all_right, sequences = sum_over_processes(*sums)
    shares = {"tokens": (right, count), "sequences": (all_right, sequences)} if sequences else {}
    return loss / count, {name: 100 * part / whole for name, (part, whole) in shares.items()}


def tally(model, tokens, targets):
    """-> summed loss, targets; of answers also how many are right, in how many sequences all, and sequences."""
    x, _ = model.features(tokens)
    there = targets != -100
    count = there.sum().item()
    loss = linear_cross_entropy(x, model.head.weight, targets).item() * count
    if there.all():
        return loss, count, 0, 0, 0
    right = model.head(x).argmax(dim=-1) == targets  # never where there is no target
    return loss, count, right.sum().item(), (right == there).all(dim=1).sum().item(), len(tokens)


# ----------------------------------------------------------------------------------------------------
# From text to tokens


def encode(tokenizer, texts, protocol="2024"):
    """
    [(context, text), ...] -> [(ids, first), ...]: what is read, and the first token of it that is scored.

        a text without context    <s> text, all but <s> scored
        a text after a context    context text, without <s>; in 2025 with it; the text's tokens scored

    In 2024 the text begins with a space in both cases, in 2025 only after a context. What a context ends with that
    is blank counts to the text, as in lm-evaluation-harness.
    """
    bos, always = data.start_of(tokenizer), " " if protocol == "2024" else ""
    whole = [context + " " + text if context else always + text for context, text in texts]
    contexts = sorted({context for context, _ in texts if context})
    lengths = dict(zip(contexts, map(len, encode_all(tokenizer, [x.rstrip() for x in contexts]))))
    encoded = []
    for (context, _), ids in zip(texts, encode_all(tokenizer, whole)):
        starts = [] if lengths.get(context) and protocol == "2024" else [bos]
        encoded.append((starts + ids, len(starts) + lengths.get(context, 0)))
    return encoded


def encode_all(tokenizer, texts):
    """Texts -> their tokens, without <s>; a lone surrogate, which JSON allows, is read as "?"."""
    texts = [text.encode("utf-8", "replace").decode("utf-8") for text in texts]
    return [x.ids for x in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
