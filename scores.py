"""
How likely a language model finds a text: the sum of log p(token | tokens before it), exactly, with little reading.

A recurrent model can stop anywhere, copy its state, and go on in two ways. So the texts are sorted, so that
neighbours begin alike, and cut into families: what a family shares is read once, the state after it is copied to
each member, and each reads on from there.

    The cats that Mary saw | sleep.          12 inputs in place of 16
                           | sleeps.
                           | are asleep.

No score changes, for a causal model says the same of a prefix whatever comes after it. Families are read together
where their prefixes are of one length, the rests in order of their lengths, padded on the right.
"""

from collections import defaultdict

import torch

import data
from checkpoint import World, sum_over_processes
from layers import linear_cross_entropy, next_token_log_p

BATCH_TOKENS = {"cpu": 512, "mps": 4096, "cuda": 16_384}  # of a batch: a CPU works in its caches
STATE_BYTES = {"cpu": 1 << 28, "mps": 1 << 30, "cuda": 1 << 33}  # of the states that a batch has
COPY = 1  # what copying a state costs, in tokens that could be read instead


def score_texts(model, texts, each_batch=lambda done: None):
    """
    [(ids, first), ...] -> the natural logarithm of p(ids[first:] | ids[:first]) of each, in their order; `first`
    is at least 1. each_batch(how many texts were finished) is called after each batch.
    """
    scores, device = [0.0] * len(texts), model.embed.weight.device
    order = sorted(range(len(texts)), key=lambda i: texts[i][0][:-1])
    by_length = defaultdict(list)  # of the prefix that a family shares; 0: read alone
    for start, end, shared in families([texts[i][0][:-1] for i in order]):
        by_length[shared].append(order[start:end])
    most = most_states(read(model, [[0]])[1], 1, device)
    for shared, all_families in sorted(by_length.items()):
        if shared == 0:
            members = [i for family in all_families for i in family]
            read_on(model, texts, members, scores, most, each_batch)
            continue
        size = min(most, max(1, BATCH_TOKENS[device.type] // shared))
        for some in split(all_families, size):
            states = read_prefixes(model, texts, some, shared, scores)
            parents = {i: row for row, family in enumerate(some) for i in family}
            each_batch(sum(len(texts[i][0]) - 1 == shared for i in parents))
            copies = most_states(states, len(some), device)
            read_on(model, texts, parents, scores, copies, each_batch, shared, states)
    return scores


def read_prefixes(model, texts, some, shared, scores):
    """
    Read the first `shared` tokens of some families; add to the scores what the model says of them and of each
    member's own token after them. Returns the states, a row a family.
    """
    tokens = [texts[family[0]][0][:shared] for family in some]
    x, states = read(model, tokens)
    queries = []  # (the text it is about, the row of x after which, the token)
    for row, family in enumerate(some):
        for i in family:
            ids, first = texts[i]
            queries += [(i, row * shared + t, ids[t + 1]) for t in range(first - 1, shared)]
    answer(model, x.flatten(0, 1), queries, scores)
    return states


def read_on(model, texts, members, scores, most, each_batch, shared=0, states=None):
    """Read the rest of each text after its first `shared` tokens; `members` {text: its row of the states}."""
    rest = sorted((i for i in members if len(texts[i][0]) - 1 > shared), key=lambda i: -len(texts[i][0]))
    while rest:
        longest = len(texts[rest[0]][0]) - 1 - shared
        size = min(most, max(1, BATCH_TOKENS[model.embed.weight.device.type] // longest))
        some, rest = rest[:size], rest[size:]
        copies = fork(states, torch.tensor([members[i] for i in some])) if states else None
        x, _ = read(model, [texts[i][0][shared:-1] for i in some], copies)
        queries = []
        for row, i in enumerate(some):
            ids, first = texts[i]
            steps = range(max(first - 1 - shared, 0), len(ids) - 1 - shared)
            queries += [(i, row * longest + t, ids[shared + t + 1]) for t in steps]
        answer(model, x.flatten(0, 1), queries, scores)
        each_batch(len(some))


def read(model, rows, states=None):
    """Lists of tokens -> what the model makes of them (B, T, D), padded on the right, and the states after."""
    longest = max(map(len, rows))
    tokens = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    return model.features(tokens.to(model.embed.weight.device), states)


def answer(model, x, queries, scores):
    """Add log p(token) after each row asked for to the score of the text that asks; x (N, D)."""
    if queries:
        owners, rows, tokens = zip(*queries)
        log_p = next_token_log_p(x, model.head.weight, torch.tensor(rows), torch.tensor(tokens)).tolist()
        for i, value in zip(owners, log_p):
            scores[i] += value


def families(rows):
    """
    Sorted lists of tokens -> [(start, end, tokens shared), ...] in order, that leave the fewest tokens to read:
    rows[start:end] share so many, or a row stands alone and shares 0. The more rows, the less they share: those
    with a common prefix are one family if that saves more than the best that its parts can do.
    """
    runs = [[0, 0, 0, []]]  # open, each inside the one before: [tokens shared, start, saved by parts, parts]
    for i, row in enumerate(rows):
        shared = common(row, rows[i + 1]) if i + 1 < len(rows) else 0
        start, saved, parts = i, 0, [(i, i + 1, 0)]
        while runs[-1][0] > shared:  # the innermost run ends with this row
            length, start, saved_by_parts, before = runs.pop()
            saved, parts = saved + saved_by_parts, before + parts
            whole = (i - start) * length - (i + 1 - start) * COPY
            if whole >= saved and whole > 0:
                saved, parts = whole, [(start, i + 1, length)]
        if runs[-1][0] < shared:
            runs.append([shared, start, saved, parts])
        else:
            runs[-1][2] += saved
            runs[-1][3] += parts
    return runs[0][3]


def common(one, other):
    """How many tokens two lists begin with alike."""
    for count, (a, b) in enumerate(zip(one, other)):
        if a != b:
            return count
    return min(len(one), len(other))


def fork(state, rows):
    """The same state for each row that is named, as often as it is named; numbers are shared by all."""
    if isinstance(state, torch.Tensor):
        return state[rows.to(state.device)]
    if isinstance(state, (list, tuple)):
        return type(state)(fork(part, rows) for part in state)
    return state


def most_states(states, rows, device):
    """How many states like these, which are of so many rows, there is room for; at least 1."""
    return max(1, STATE_BYTES[device.type] * rows // max(1, size_of(states)))


def size_of(state):
    """Bytes of all tensors in a state."""
    if isinstance(state, torch.Tensor):
        return state.numel() * state.element_size()
    return sum(map(size_of, state)) if isinstance(state, (list, tuple)) else 0


def split(items, size):
    """[items[:size], items[size:2 size], ...]"""
    return [items[start : start + size] for start in range(0, len(items), size)]


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
