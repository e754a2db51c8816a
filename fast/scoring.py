"""
Log-probabilities of texts, with each shared prefix read only once: in place of evaluate.score_plainly, with the
same result.

Texts with shared prefixes form a tree, one node for each token after its past:

    <s> The cats that Mary saw - sleep .          10 nodes in place of 22 tokens; the last one
                               - sleeps .         of a text is asked for, not read
                               - are asleep .

What a causal model computes at a node depends on its past alone, and is the same in every text. So nearly all
of a model, embedding, norms, MLPs, logits, reads the nodes (1, N). Only what mixes along time reads the texts
(B, T), padded on the right, and inside it the linear layers that map each token by itself (PER_TOKEN) read the
nodes again. So every mixer gains, even one with a large or growing state, and no state is ever copied.
"""

from contextlib import contextmanager

from fast.losses import has_plain_head, next_token_log_p
from fast.switch import Fast, digest_of, name_of
from kernels import plain_class
from model import LanguageModel

import torch
import torch.nn.functional as F

BATCH_TOKENS = {  # nodes of a batch
    "cpu": 512,  # works in its caches
    "mps": 4096,
    "cuda": 4096,  # so that the 2,000 sentences of a paradigm of BLiMP are work for several GPUs
}
PADDING = 4  # the texts of a batch, with padding, have at most this many times BATCH_TOKENS tokens
PER_TOKEN = {  # mixer: its layers that map (B, T, ...) to (B, T, ...), each token by itself
    "model.HGRN2": ("query", "forget", "input", "output"),
    "model.MinGRU": ("update", "candidate", "output"),
    "model.MinLSTM": ("forget", "input", "candidate", "output"),
    "model.Attention": ("query", "key", "value", "output"),
    "baselines.LSTM": ("output",),
    "baselines.GRU": ("output",),
    "baselines.Aaren": ("key", "value", "output"),
    "baselines.MLSTM": ("up", "gates", "output"),
    "baselines.Mamba": ("input", "select", "step", "output"),
    "baselines.S4D": ("output",),
    "baselines.Hyena": ("input", "output"),
}

MLPS = {"model.SwiGLU", "model.GELU", "baselines.GEGLU"}
AROUND = ("LanguageModel.features", "Block.forward", "SwiGLU.forward", "GELU.forward", "GEGLU.forward")
AS_WRITTEN = Fast("forward", None, "11a7ba45", AROUND)  # what has to be as it was when this file was written


def fits(model):
    """True if the logits are features x head.weight, and everything but the mixers maps each token by itself."""
    mlps = {name_of(plain_class(layer.mlp)) for layer in model.layers if getattr(layer, "mlp", None)}
    changed = digest_of(LanguageModel, AS_WRITTEN) not in (AS_WRITTEN.digest, None)
    return mlps <= MLPS and has_plain_head(model) and not changed


def tree_batches(texts, device):
    """Batches of the indices of texts, in which neighbours share long prefixes."""
    order = sorted(range(len(texts)), key=lambda i: texts[i][0][:-1])
    return batches(order, texts, BATCH_TOKENS[device.type])


def score_tree(model, texts):
    """evaluate.score_plainly for a batch of tree_batches, reading each shared prefix once."""
    device = model.embed.weight.device
    tokens, paths = as_tree([ids[:-1] for ids, _ in texts])
    if not tokens:  # no text has a token to score
        return [0.0] * len(texts)
    with reading_nodes(model, *layouts(paths, device)):
        x, _ = model.features(torch.tensor([tokens], device=device))
    queries = []  # (the text that asks, the node after which, the token)
    for i, ((ids, first), path) in enumerate(zip(texts, paths)):
        queries += [(i, path[t - 1], ids[t]) for t in range(first, len(ids))]
    return answer(model, x[0], queries, len(texts))


def batches(order, texts, most):
    """Yield indices of texts in order, as many at a time as make a tree of about `most` nodes."""
    some, nodes, longest, before = [], 0, 0, []
    for i in order:
        ids = texts[i][0][:-1]
        new, longest = len(ids) - common(before, ids), max(longest, len(ids))
        if some and (nodes + new > most or (len(some) + 1) * longest > PADDING * most):
            yield some
            some, nodes, new, longest = [], 0, len(ids), len(ids)
        some.append(i)
        nodes, before = nodes + new, ids
    if some:
        yield some


def as_tree(rows):
    """Sorted lists of tokens -> the token of each node of their tree, and the nodes of each list."""
    tokens, paths, before = [], [], []
    for row in rows:
        shared = common(before, row)
        new = range(len(tokens), len(tokens) + len(row) - shared)
        paths.append([*paths[-1][:shared], *new] if paths else list(new))
        tokens += row[shared:]
        before = row
    return tokens, paths


def common(one, other):
    """The length of the prefix that two lists share."""
    for count, (a, b) in enumerate(zip(one, other)):
        if a != b:
            return count
    return min(len(one), len(other))


def layouts(paths, device):
    """The node at each place of the texts (B, T), padded with a text's last; a place of each node (N,)."""
    longest, places = max(map(len, paths)), {}
    for row, path in enumerate(paths):
        for t, node in enumerate(path):
            places.setdefault(node, row * longest + t)
    nodes = [path + (path[-1:] or [0]) * (longest - len(path)) for path in paths]
    return torch.tensor(nodes, device=device), torch.tensor([*places.values()], device=device)


@contextmanager
def reading_nodes(model, nodes, places):
    """While open, model.features maps the nodes of a tree (1, N), in the order of `places`, to their features."""

    def to_texts(x):
        """(1, N, D) -> (B, T, D); any other shape stays, such as that of a single step."""
        return F.embedding(nodes, x[0]) if x.ndim > 2 and x.shape[:2] == (1, len(places)) else x

    def to_nodes(x):
        """(B, T, D) -> (1, N, D); any other shape stays."""
        return x.flatten(0, 1)[places].unsqueeze(0) if x.ndim > 2 and x.shape[:2] == nodes.shape else x

    def surround(module, before, after):
        hooks.append(module.register_forward_pre_hook(lambda _, inputs: (before(inputs[0]), *inputs[1:])))
        hooks.append(module.register_forward_hook(lambda _, inputs, outputs: after(outputs)))

    hooks = []
    for layer in model.layers:
        mixer = getattr(layer, "mixer", layer)  # or what else mixes along time: a convolution, positions
        surround(mixer, to_texts, lambda outputs: (to_nodes(outputs[0]), None))
        for name in PER_TOKEN.get(name_of(plain_class(mixer)), ()):
            surround(getattr(mixer, name), to_nodes, to_texts)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def answer(model, x, queries, count):
    """The score of each of `count` texts: its sum of log p(token) after each node that it asks for; x (N, D)."""
    scores = [0.0] * count
    if queries:
        owners, nodes, tokens = zip(*queries)
        log_p = next_token_log_p(x, model.head.weight, torch.tensor(nodes), torch.tensor(tokens)).tolist()
        for i, value in zip(owners, log_p):
            scores[i] += value
    return scores
