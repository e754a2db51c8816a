"""
A language model with an exchangeable sequence mixer, the part of a layer that lets a token use earlier ones.

    tokens -> embed -> n_layer x [ x + mixer(norm(x)), then x + mlp(norm(x)) ] -> norm -> logits

Read from top to bottom. All models share Config, LanguageModel and Block, and differ in the mixers further down.
All of it is plain PyTorch and runs as it stands. By default, kernels.use_kernels swaps in faster forms with the
same results; a class that you change runs as you wrote it. To add a mixer, write a class with the same forward
and name it in MIXERS.

Shapes:  B batch   T time   D model width   H heads   K, V key and value width of a head   E expanded width
"""

import math
from dataclasses import asdict, dataclass, fields
from functools import partial
from inspect import signature
from types import SimpleNamespace

from baselines import BASELINES, GEGLU, CausalConv1d, initialise_baseline
from kernels import FORMS, at_least_float32, fill, g, gated_linear_attention, linear_scan, use_kernels
from support.settings import UserError, at_least, one_of

import torch
import torch.nn.functional as F
from torch import nn

DOCUMENT_START = 1  # the id of <s> in the tokenizers of data.py


@dataclass
class Config:
    """The shape of a model. `mixer` may name a pattern that repeats over the layers: "hgrn2 hgrn2 attention"."""

    mixer: str = "hgrn2"  # what mixes along time, or a pattern such as "hgrn2 hgrn2 attention"
    n_layer: int = 6  # blocks
    d_model: int = 256  # width of the residual stream
    n_head: int = 4  # heads of HGRN2, attention, mLSTM, sLSTM and Aaren
    d_mlp: int = 704  # width inside the MLP, the same in all layers
    expand: int = 1  # width inside minGRU, LSTM, Mamba and others, in multiples of d_model
    d_state: int = 16  # size of the state of each channel of Mamba or S4D
    context: int = 256  # tokens in a training sequence
    vocab_size: int = 16_000  # entries of the tokenizer, at most 65,536
    dropout: float = 0.0  # share of features dropped after the embedding and after each mixer and MLP
    norm: str = "rmsnorm"  # rmsnorm, layernorm or layernorm_nobias
    norm_eps: float = 1e-6  # added to the variance in every norm
    mlp: str = "swiglu"  # swiglu, gelu, geglu or none
    position: str = "none"  # how attention knows the order: none, rope (Llama) or learned (GPT-2)
    conv: int = 0  # width of a causal convolution before each mixer (minRNN's language models: 4); 0: none
    tie_embeddings: bool = False  # one matrix for the embedding and the output layer
    documents: str = "joined"  # in a training sequence: joined, or apart (each <s> clears the state)

    def check(self):
        """Raise UserError if no such model can be built."""
        at_least(
            1, self, "n_layer", "d_model", "n_head", "d_mlp", "expand", "d_state", "context", "vocab_size"
        )
        at_least(0, self, "dropout", "norm_eps", "conv")
        for name, choices in (("mixer", MIXERS), ("norm", NORMS), ("mlp", MLPS)):
            for word in getattr(self, name).split() or [""]:
                one_of(name, word, choices)
        for word in self.mixer.split():
            if hasattr(MIXERS[word], "check"):  # what this mixer alone requires
                MIXERS[word].check(self)
            if self.documents == "apart" and "reset" not in signature(MIXERS[word].forward).parameters:
                why = "cannot forget what came before; its forward has no argument `reset`"
                raise UserError(f"documents = 'apart': mixer {word!r} {why}")
        one_of("documents", self.documents, ("joined", "apart"))
        one_of("position", self.position, ("none", "rope", "learned"))
        if self.d_model % self.n_head:
            raise UserError(f"n_head = {self.n_head} does not divide d_model = {self.d_model}")
        if self.position == "rope" and self.d_model // self.n_head % 2:
            width = self.d_model // self.n_head
            raise UserError(f"position = 'rope' needs an even d_model / n_head, not {width}")
        if self.vocab_size > 65_536:
            limit = "token files hold 16-bit numbers, so at most 65536"
            raise UserError(f"vocab_size = {self.vocab_size}: {limit}")
        if self.dropout >= 1:
            raise UserError(f"dropout = {self.dropout}: must be below 1")


class LanguageModel(nn.Module):
    """p(token[t+1] | token[0..t]), for every t at once."""

    def __init__(self, config):
        super().__init__()
        self.embed = nn.Embedding(config.vocab_size, config.d_model)
        learned = config.position == "learned"  # LearnedPositions has a dropout of its own
        self.dropout = nn.Dropout(0.0 if learned else config.dropout)
        self.layers = nn.ModuleList(layers(config))
        floors = ForgetFloors(config)
        self.floors = floors if floors.layers else None
        self.apart = config.documents == "apart"
        self.norm = make_norm(config, layer=0)
        self.head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.head.weight = self.embed.weight
        initialise(self, config)

    def forward(self, tokens, states=None, reset=None):
        """
        tokens (B, T) -> logits (B, T, vocab), and the state of each layer after the last token. Where reset
        (B, T) is True, everything before that token is forgotten; see document_starts. sample.py calls features
        and head itself, for the last token alone.
        """
        x, states = self.features(tokens, states, reset)
        return self.head(x), states

    def features(self, tokens, states=None, reset=None):
        """tokens (B, T) -> the features that `head` turns into logits, (B, T, D), and the new states."""
        x, new_states = self.dropout(self.embed(tokens)), []  # (B, T, D)
        floors = self.floors() if self.floors else {}
        given = {} if reset is None else {"reset": reset}
        for layer, state in zip(self.layers, states or [None] * len(self.layers), strict=True):
            floor = [floors[layer.depth]] if layer.depth in floors else []
            x, state = layer(x, state, *floor, **given)
            new_states.append(state)
        return self.norm(x), new_states

    def document_starts(self, tokens):
        """tokens (B, T) of consecutive documents -> the `reset` that keeps them apart; None if they are joined."""
        return tokens == DOCUMENT_START if self.apart else None


def layers(config):
    """Yield the layers between the embedding and the last norm; each has forward(x, state=None) -> x, state."""
    if config.position == "learned":
        yield LearnedPositions(config)
    for layer in range(config.n_layer):
        if config.conv:
            yield CausalConv(config)
        yield Block(config, layer)


class NextToken(nn.Module):
    """The mean cross-entropy of the next token: what training minimises, and the module that DDP wraps."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, tokens, targets):
        """tokens, targets (B, T), -100 where there is no target -> {"loss": mean over targets}."""
        logits, _ = self.model(tokens, reset=self.model.document_starts(tokens))
        (logits,) = at_least_float32(logits)  # (B, T, vocab)
        return {"loss": F.cross_entropy(logits.flatten(0, 1), targets.flatten())}


class Block(nn.Module):
    """A mixer along time, then an MLP over channels; each normalises its input and adds to the residual stream."""

    def __init__(self, config, layer):
        super().__init__()
        self.depth = layer
        self.mixer_norm = make_norm(config, layer)
        self.mixer = MIXERS[nth(config.mixer, layer)](config, layer)
        self.mlp = MLPS[nth(config.mlp, layer)](config)
        self.mlp_norm = make_norm(config, layer) if self.mlp else None
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x, state=None, *floor, **given):
        """x (B, T, D) -> x, state. The mixer gets the rest: `reset`, and if it is HGRN2 its floor."""
        y, state = self.mixer(self.mixer_norm(x), state, *floor, **given)
        x = x + self.dropout(y)
        if self.mlp:
            x = x + self.dropout(self.mlp(self.mlp_norm(x)))
        return x, state


def nth(pattern, layer):
    """nth("mlstm mlstm slstm", 5) -> "slstm": patterns repeat over the layers."""
    names = pattern.split()
    return names[layer % len(names)]


def make_norm(config, layer):
    """The norm of a layer. The one after the last layer is of the same kind as the first layer's."""
    return NORMS[nth(config.norm, layer)](config.d_model, config.norm_eps)


class RMSNorm(nn.RMSNorm):
    """x / sqrt(mean(x^2) + eps) * weight, in float32 at least (Zhang & Sennrich 2019, arXiv:1910.07467)."""

    def forward(self, x):
        (x,) = at_least_float32(x)
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight


class SwiGLU(nn.Module):
    """down(silu(gate x) * up x), the MLP of Llama and HGRN2 (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, config):
        super().__init__()
        self.gate = nn.Linear(config.d_model, config.d_mlp, bias=False)
        self.up = nn.Linear(config.d_model, config.d_mlp, bias=False)
        self.down = nn.Linear(config.d_mlp, config.d_model, bias=False)

    def forward(self, x):
        return self.down(F.silu(self.gate(x)) * self.up(x))


class GELU(nn.Module):
    """down(gelu(up x)) with biases and GPT-2's tanh form of GELU (Hendrycks & Gimpel 2016, arXiv:1606.08415)."""

    def __init__(self, config):
        super().__init__()
        self.up = nn.Linear(config.d_model, config.d_mlp)
        self.down = nn.Linear(config.d_mlp, config.d_model)

    def forward(self, x):
        return self.down(F.gelu(self.up(x), approximate="tanh"))


class LearnedPositions(nn.Module):
    """Adds a learned vector per position, as GPT-2 does. State: the document's length so far, int or (B, 1)."""

    depth = None  # not a block

    def __init__(self, config):
        super().__init__()
        self.table = nn.Embedding(config.context, config.d_model)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x, state=None, reset=None):
        """x (B, T, D) -> x plus positions, new state. UserError if there may be more tokens than positions."""
        start = 0 if state is None else state
        known = self.table.num_embeddings
        end = x.shape[1] + (start if isinstance(start, int) else int(start.max()))
        if end > known:
            raise UserError(f"{end} tokens: this model has learned {known} positions; shorten the text")
        if reset is None and isinstance(start, int):
            return self.dropout(x + self.table.weight[start:end]), end
        t = torch.arange(x.shape[1], device=x.device)
        position = t - document_begins(x, reset, first=-start)
        return self.dropout(x + self.table(position)), position[:, -1:] + 1


class CausalConv(nn.Module):
    """Adds to the stream a causal convolution of it, as minRNN does before a mixer. State: the last inputs."""

    depth = None

    def __init__(self, config):
        super().__init__()
        self.conv = CausalConv1d(config.d_model, config.conv)

    def forward(self, x, state=None, reset=None):
        y, state = self.conv(x, state, reset)
        return x + y, state


# ----------------------------------------------------------------------------------------------------
# The mixers: forward(x, state=None, reset=None) -> y, state; HGRN2 takes its floor before reset.
#     x, y    (B, T, D)
#     state   everything the mixer remembers of the past, float32 in recurrences; None before the first token
#     reset   (B, T), True where a document begins: there the old state is multiplied by 0, while the weight of
#             the new input is unchanged. A mixer without this argument works only with documents = "joined".


class HGRN2(nn.Module):
    """
    A gated linear RNN whose memory is a matrix (Qin et al. 2024, arXiv:2404.07904).

        f_t = floor + (1 - floor) * sigmoid(W_f x_t)     what to keep      (K,)
        S_t = diag(f_t) S_{t-1} + (1 - f_t) i_t^T        the memory        (K, V)
        o_t = S_t^T q_t                                  the output        (V,)

    Row k of S is a running average of the inputs i; f_t[k] is how slowly it moves. The floor rises with depth, so
    upper layers have to remember for longer. q is scaled by K^-1/2, as in flash-linear-attention.
    """

    def __init__(self, config, layer):
        super().__init__()
        D = config.d_model
        self.query = nn.Linear(D, D, bias=False)
        self.forget = nn.Linear(D, D, bias=False)
        self.input = nn.Linear(D, D, bias=False)
        self.norm = make_norm(config, layer)
        self.output = nn.Linear(D, D, bias=False)
        self.n_head = config.n_head

    def forward(self, x, state=None, floor=0.0, reset=None):
        """`floor` (D,) comes from the model's ForgetFloors."""
        q = F.silu(self.query(x)) * (x.shape[-1] // self.n_head) ** -0.5  # (B, T, D)
        log_f = log_forget_gate(self.forget(x), floor)
        k = -torch.expm1(log_f)  # 1 - f, exact even where f is near 1
        log_f = fill(log_f, reset, -math.inf)
        i = self.input(x)
        q, k, i, log_f = (z.unflatten(-1, (self.n_head, -1)) for z in (q, k, i, log_f))  # (B, T, H, K or V)
        o, S = gated_linear_attention(q, k, i, log_f, state)  # (B, T, H, V), (B, H, K, V)
        return self.output(self.norm(o.flatten(2))), S


def log_forget_gate(z, floor):
    """
    z (..., D), floor (D,) in [0, 1) -> log f, where f = floor + (1 - floor) sigmoid(z), in float32 at least. It is
    computed as logsigmoid(log(floor + e^z) - log(1 - floor)), which is exact even where f is near 1.
    """
    z, floor = at_least_float32(z, torch.as_tensor(floor, device=z.device))
    return F.logsigmoid(torch.logaddexp(z, floor.log()) - torch.log1p(-floor))


class ForgetFloors(nn.Module):
    """
    Learned lower bounds for HGRN2's forget gates, one table for the stack: 0 in the first layer, then rising,
    always below 1.

        P = softmax(table) over the layers,   floor_l = P_1 + ... + P_l     (l = 0 is the first layer)
    """

    no_decay = ("table",)

    def __init__(self, config):
        super().__init__()
        self.table = nn.Parameter(torch.zeros(config.n_layer, config.d_model))
        self.layers = [layer for layer in range(config.n_layer) if nth(config.mixer, layer) == "hgrn2"]

    def forward(self):
        """{number of an HGRN2 layer: its floor (D,)}."""
        P = self.table.softmax(dim=0)
        return {layer: P[1 : layer + 1].sum(dim=0) for layer in self.layers}


class MinGRU(nn.Module):
    """
    A GRU whose gates do not see the state, so all steps train in parallel (Feng et al. 2024, arXiv:2410.01201).

        z_t = sigmoid(W_z x_t)                      how much is new     (E,)
        h_t = (1 - z_t) h_{t-1} + z_t g(W_h x_t)    the memory          (E,)

    with g(x) = x + 0.5 for x >= 0, else sigmoid(x), which keeps h positive, as the paper's log space requires. The
    output is W_o h_t. Unlike the paper's code, we scan in real space, which is more accurate.
    """

    no_decay = ("update", "candidate")  # as in the official code

    def __init__(self, config, layer):
        super().__init__()
        D, E = config.d_model, config.expand * config.d_model
        self.update = nn.Linear(D, E)
        self.candidate = nn.Linear(D, E)
        self.output = nn.Linear(E, D)

    def forward(self, x, state=None, reset=None):
        gate, candidate = at_least_float32(self.update(x), self.candidate(x))
        z, keep = torch.sigmoid(gate), torch.sigmoid(-gate)  # keep = 1 - z, exact even where z is near 1
        h = linear_scan(fill(keep, reset, 0.0), z * g(candidate), state)  # (B, T, E)
        return self.output(h), h[:, -1].clone()


class MinLSTM(nn.Module):
    """
    An LSTM whose gates do not see the state (Feng et al. 2024, arXiv:2410.01201).

        f_t, i_t = sigmoid(W_f x_t), sigmoid(W_i x_t)              what to keep, what to add      (E,)
        h_t = (f_t h_{t-1} + i_t g(W_h x_t)) / (f_t + i_t)         the memory, an average         (E,)

    with g, output and scan as in minGRU.
    """

    no_decay = ("forget", "input", "candidate")

    def __init__(self, config, layer):
        super().__init__()
        D, E = config.d_model, config.expand * config.d_model
        self.forget = nn.Linear(D, E)
        self.input = nn.Linear(D, E)
        self.candidate = nn.Linear(D, E)
        self.output = nn.Linear(E, D)

    def forward(self, x, state=None, reset=None):
        f, i, candidate = at_least_float32(self.forget(x), self.input(x), self.candidate(x))
        log_ratio = F.logsigmoid(f) - F.logsigmoid(i)  # log(f_t / i_t), finite even where both underflow
        keep, new = torch.sigmoid(log_ratio), torch.sigmoid(-log_ratio)  # f / (f + i), i / (f + i)
        h = linear_scan(fill(keep, reset, 0.0), new * g(candidate), state)  # (B, T, E)
        return self.output(h), h[:, -1].clone()


class Attention(nn.Module):
    """
    Causal softmax attention, the mixer of Transformers (Vaswani et al. 2017, arXiv:1706.03762).

        o_t = sum_{s <= t} softmax_s(q_t . k_s / sqrt(K)) v_s

    position = "rope": Llama's, with rotated q and k and no biases; "learned": GPT-2's, with biases.
    The state is the keys and values of all tokens so far (the only state in this file that grows) and, where
    documents are apart, the index (B, 1) of the token that began the current one.
    """

    def __init__(self, config, layer):
        super().__init__()
        D, bias = config.d_model, config.position == "learned"
        self.query = nn.Linear(D, D, bias)
        self.key = nn.Linear(D, D, bias)
        self.value = nn.Linear(D, D, bias)
        self.output = nn.Linear(D, D, bias)
        self.n_head, self.rope = config.n_head, config.position == "rope"
        self.dropout = config.dropout if config.position == "learned" else 0.0  # of the weights, as in GPT-2

    def forward(self, x, state=None, reset=None):
        q, k, v = self.query(x), self.key(x), self.value(x)  # (B, T, D)
        q, k, v = (z.unflatten(-1, (self.n_head, -1)).transpose(1, 2) for z in (q, k, v))  # (B, H, T, K)
        start = 0 if state is None else state[0].shape[2]
        if self.rope:
            q, k = rotate(q, start), rotate(k, start)
        if state is not None:
            k, v = torch.cat([state[0], k], dim=2), torch.cat([state[1], v], dim=2)  # (B, H, start + T, K)
        T, mask = q.shape[2], None
        first = () if state is None else state[2:]  # where documents are apart, one tensor (B, 1)
        if start > 0 and T > 1:  # several tokens after earlier ones: each sees up to itself
            mask = torch.ones(T, start + T, dtype=torch.bool, device=x.device).tril(start)
        if reset is not None or first:  # each token sees only its own document
            begins = document_begins(x, reset, start, *first)  # (B, T)
            t = torch.arange(start + T, device=x.device)
            mask = ((t <= t[start:, None]) & (t >= begins.unsqueeze(-1))).unsqueeze(1)  # (B, 1, T, start + T)
            first = (begins[:, -1:],)
        dropout = self.dropout if self.training else 0.0
        causal = mask is None and T > 1  # a single token sees all of them
        o = F.scaled_dot_product_attention(q, k, v, mask, dropout, causal)  # (B, H, T, K)
        return self.output(o.transpose(1, 2).flatten(2)), (k, v, *first)


def document_begins(x, reset, start=0, first=0):
    """
    For each token of x (B, T, D), the index (B, T) of the token that begins its document; before any reset, that
    is `first`, an int or (B, 1). Indices count from `start`.
    """
    t = torch.arange(start, start + x.shape[1], device=x.device)
    reset = torch.zeros_like(x[..., 0], dtype=torch.bool) if reset is None else reset
    return torch.where(reset, t, first).cummax(dim=1).values


def rotate(x, start, base=10_000):
    """
    Rotary positions (Su et al. 2021, arXiv:2104.09864): features j and j + K/2 of token t are rotated by the angle
    t base^(-2j/K). x (B, H, T, K), its first token at position `start`.
    """
    T, K = x.shape[-2:]
    speed = base ** (-torch.arange(0, K, 2, device=x.device, dtype=torch.float32) / K)  # (K/2,)
    angle = torch.arange(start, start + T, device=x.device, dtype=torch.float32)[:, None] * speed  # (T, K/2)
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    left, right = x.chunk(2, dim=-1)
    return torch.cat([left * cos - right * sin, right * cos + left * sin], dim=-1)


NORMS = {"rmsnorm": RMSNorm, "layernorm": nn.LayerNorm, "layernorm_nobias": partial(nn.LayerNorm, bias=False)}
MLPS = {"swiglu": SwiGLU, "gelu": GELU, "geglu": GEGLU, "none": lambda config: None}
MIXERS = {"hgrn2": HGRN2, "mingru": MinGRU, "minlstm": MinLSTM, "attention": Attention} | BASELINES


# ----------------------------------------------------------------------------------------------------
# Initialisation


def initialise(model, config):
    """
    The papers' initialisations, in one place. What is not listed keeps PyTorch's default.

        embedding, linear layers          N(0, 0.02)                      GPT-2, Llama, flash-linear-attention
        HGRN2's four projections          Xavier uniform, gain 2^-2.5     flash-linear-attention of 2024
        MLP's down projection             N(0, 0.02 / sqrt(2 n_layer))    the same; GPT-2
        attention's output in GPT-2       N(0, 0.02 / sqrt(2 n_layer))    GPT-2
        biases of these                   0                               all
        minGRU, minLSTM, convolution      PyTorch's default               the official minRNN code
        the mixers of baselines.py        what its initialise_baseline says
        table of HGRN2's floors           0: layer l's floor is l / n_layer in all channels
    """
    small = 0.02 / math.sqrt(2 * config.n_layer)
    for module in model.modules():
        initialise_baseline(module, config)
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, (SwiGLU, GELU, Attention, LanguageModel)):
            for name, linear in module.named_children():
                if isinstance(linear, nn.Linear):
                    residual = name == "down" or (name == "output" and config.position == "learned")
                    nn.init.normal_(linear.weight, std=small if residual else 0.02)
                    if linear.bias is not None:
                        nn.init.zeros_(linear.bias)
        if isinstance(module, HGRN2):
            for linear in (module.query, module.forget, module.input, module.output):
                nn.init.xavier_uniform_(linear.weight, gain=2**-2.5)


# ----------------------------------------------------------------------------------------------------
# Loading a run


def load(path, device="cpu", kernels="auto"):
    """
    Load a run folder's checkpoint.pt, or another checkpoint in it -> (model in eval mode, tokenizer, settings).

    settings.checkpoint is the file that was read, .digest the SHA-256 of its bytes, .step the number of updates,
    .corpus_is what data_digest gave for its corpus; Config's settings that it lacks get their defaults.
    `kernels` is passed to use_kernels; None keeps the plain classes. UserError if the checkpoint is missing,
    damaged or of another version.
    """
    from data import read_tokenizer  # not above: a model alone needs neither
    from support.files import read

    if kernels is not None:
        one_of("kernels", kernels, FORMS)
    saved, path = read(path)
    try:
        names = {field.name for field in fields(Config)}
        config = Config(**{name: value for name, value in saved["settings"].items() if name in names})
        about = {"checkpoint": path, "digest": saved["digest"], "step": saved.get("step", 0)}
        about["corpus_is"] = saved.get("corpus")
        settings = SimpleNamespace(**asdict(config) | saved["settings"] | about)
        model = LanguageModel(config)
        model.load_state_dict(saved["model"])
    except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        why = str(error).strip().splitlines()[-1].strip()
        if isinstance(error, KeyError):  # a custom mixer, say
            why = f"nothing here is called {why}"
        remedy = "use the version, and the script, that trained it"
        raise UserError(f"{path}: not a model of this version of nanoRNN ({why}); {remedy}") from error
    tokenizer = read_tokenizer(path.parent)
    if tokenizer.get_vocab_size() > config.vocab_size:
        words = f"{tokenizer.get_vocab_size():,} entries, the model {config.vocab_size:,}"
        raise UserError(f"{path.with_name('tokenizer.json')}: not this model's, it has {words}")
    if kernels is not None:
        use_kernels(kernels, model)
    return model.to(device).eval(), tokenizer, settings
