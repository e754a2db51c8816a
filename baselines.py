"""
The mixers that HGRN2, minGRU and minLSTM are compared with, each behind the same contract as those of model.py:

    forward(x, state=None) -> y, state      x, y (B, T, D); state None before the first token

Shapes:  B batch   T time   D model width   H heads   E expanded width   N states of a channel   K width of a head
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from config import fail
from kernels import selective_scan
from layers import CausalConv1d, Linear, UndecayedLinear, at_least_float32, gated_unit


class Mamba(nn.Module):
    """
    A state space whose step and read-out the input selects, S6 (Gu & Dao 2023, arXiv:2312.00752).

        x_t = silu(conv4(W_x u_t)),  z_t = W_z u_t        of the input u_t               (E,)
        dt_t = softplus(W_dt W_r x_t)                     how far to step                (E,)
        B_t, C_t = W_B x_t, W_C x_t                       where to write, where to read  (N,)
        h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t^T        the memory, A negative         (E, N)
        y_t = W_o (silu(z_t) * (h_t C_t + skip * x_t))    what it answers                (D,)

    A large dt_t forgets and writes, a small one passes x_t by. It is a whole block: give it mlp = "none".
    """

    def __init__(self, config, layer):
        super().__init__()
        D, E, N = config.d_model, config.expand * config.d_model, config.d_state
        self.sizes = math.ceil(D / 16), N, N
        self.input = Linear(D, 2 * E, bias=False)
        self.conv = CausalConv1d(E, 4)
        self.select = Linear(E, sum(self.sizes), bias=False)
        self.step = Linear(self.sizes[0], E)
        self.log_A = nn.Parameter(torch.empty(E, N))
        self.skip = nn.Parameter(torch.empty(E))
        self.output = Linear(E, D, bias=False)

    def forward(self, x, state=None):
        seen, h = state or (None, None)
        x, z = self.input(x).chunk(2, dim=-1)  # (B, T, E)
        x, seen = self.conv(x, seen)
        x = F.silu(x)
        dt, B, C = self.select(x).split(self.sizes, dim=-1)
        log_A, dt = at_least_float32(self.log_A, self.step(dt))
        y, h = selective_scan(x, F.softplus(dt), -log_A.exp(), B, C, h)  # (B, T, E), (B, E, N)
        return self.output(gated_unit(z, (y + self.skip * x).type_as(z))), (seen, h)


class S4D(nn.Module):
    """
    Diagonal state spaces, the same at every step (Gu et al. 2022, arXiv:2206.11893).

        h_t = exp(dt A) h_{t-1} + x_t                                       the memory, complex  (D, N/2)
        y_t = 2 Re(sum over N/2 of C (exp(dt A) - 1) / A h_t) + skip x_t    what it answers      (D,)

    and a gated linear layer of gelu(y_t). No weight here depends on the input, so a whole text is one convolution,
    with the answer to a single 1. d_state = N counts real numbers: N/2 decaying waves, each with its conjugate.
    """

    def __init__(self, config, layer):
        super().__init__()
        D, N = config.d_model, config.d_state
        self.log_dt = nn.Parameter(torch.empty(D))
        self.log_decay = nn.Parameter(torch.empty(D, N // 2))  # A = -exp(log_decay) + i frequency
        self.frequency = nn.Parameter(torch.empty(D, N // 2))
        self.read = nn.Parameter(torch.empty(D, N // 2, 2))  # C
        self.skip = nn.Parameter(torch.empty(D))
        self.output = Linear(D, 2 * D)

    def forward(self, x, state=None):
        own = self.log_dt, self.log_decay, self.frequency, self.read, self.skip
        x, log_dt, log_decay, frequency, read, skip = at_least_float32(x, *own)
        A = torch.complex(-log_decay.exp(), frequency)  # (D, N/2)
        decay, T = log_dt.exp().unsqueeze(-1) * A, x.shape[1]
        C = torch.view_as_complex(read) * (decay.exp() - 1) / A
        y = causal_convolution(x, waves(C, decay, T)) + skip * x
        last = sum_of_waves(x, decay)  # (B, D, N/2)
        if state is not None:
            y = y + waves(C * decay.exp() * state, decay, T)
            last = last + (T * decay).exp() * state
        return F.glu(self.output(F.gelu(y)), dim=-1), last

    @staticmethod
    def check(config):
        if config.d_state % 2:
            fail(f"d_state = {config.d_state}: s4d needs an even one, for its states are pairs")


class Hyena(nn.Module):
    """
    A long convolution between two gates, its filter made by a network (Poli et al. 2023, arXiv:2302.10866).

        q_t, k_t, v_t = conv3(W x)_t                                          two gates, a value   (D,)
        y_t = W_o (q_t * (sum over s <= t of filter_{t-s} u_s + skip u_t))    u_t = k_t * v_t      (D,)
        filter_i = MLP(position_i) * exp(-rate i / (L - 1))                   i < L = context      (D,)

    Order 2, as the authors' language models have it: an MLP with two layers of 64 inside and sin(w ...) for its
    activation, of positions of 33 numbers, which are trained too. The state is every u_s so far, since the filter
    weighs each anew at each step: it grows, and with it the cost of a token. So Hyena does not generate cheaply.
    """

    def __init__(self, config, layer):
        super().__init__()
        D = config.d_model
        self.input = Linear(D, 3 * D)
        self.conv = CausalConv1d(3 * D, 3)
        self.positions = nn.Parameter(torch.empty(config.context, 33))
        self.filter = nn.ModuleList(UndecayedLinear(*sizes) for sizes in ((33, 64), (64, 64), (64, 64)))
        self.w = nn.Parameter(torch.empty(64))
        self.filter_output = UndecayedLinear(64, D, bias=False)
        self.skip = nn.Parameter(torch.empty(D))
        self.output = Linear(D, D)

    def forward(self, x, state=None):
        seen, past = state or (None, None)
        x, seen = self.conv(self.input(x), seen)
        q, k, v = at_least_float32(*x.chunk(3, dim=-1))
        u, T = k * v, x.shape[1]
        whole = u if past is None else torch.cat([past, u], dim=1)
        f = self.make_filter(whole.shape[1])
        y = causal_convolution(u, f) + self.skip * u
        if past is not None:
            y = y + aftermath(past.mT, f.mT, T).mT
        return self.output(q * y), (seen, whole)

    def make_filter(self, length):
        """Its first values, (length, D), never in an autocast type; ends the script past the last."""
        context, D = len(self.positions), len(self.skip)
        if length > context:
            fail(f"{length} tokens: this model's filter has {context}; shorten the text or write less")
        with torch.autocast(self.skip.device.type, enabled=False):
            z = self.positions[:length]
            for layer in self.filter:
                z = torch.sin(self.w * layer(z))
            z, w = at_least_float32(self.filter_output(z), self.w)
        share = torch.linspace(0, 1, context, dtype=w.dtype, device=w.device)[:length, None]  # of the context
        fastest, slowest = math.log(100) / 0.3, math.log(100) / 1.5  # to 1/100 over 0.3 or 1.5 contexts
        return z * torch.exp(-share * torch.linspace(slowest, fastest, D, dtype=w.dtype, device=w.device))


# A convolution as long as the text. One Fourier transform of it all would let the rounding errors of later tokens
# into earlier outputs. So the text is halved until its pieces are short. Each is multiplied by a Toeplitz matrix;
# then, from pairs of pieces to the two halves of the text, what a first half adds to its second half, where all of
# it is past, goes through Fourier transforms. It is O(T log^2 T), and what comes later changes no bit.

PIECE = 64  # tokens, at most


def causal_convolution(x, k):
    """y_t = sum over s <= t of k_{t-s} x_s: x (B, T, D), k (T, D) -> (B, T, D)."""
    T = x.shape[1]
    halvings = max(0, math.ceil(math.log2(T / PIECE)))
    size = math.ceil(T / 2**halvings)
    x, k = F.pad(x.mT, (0, size * 2**halvings - T)), k.mT.contiguous()  # (B, D, T and some), (D, T)
    with torch.autocast(x.device.type, enabled=False):
        toeplitz = F.pad(k[:, :size], (size - 1, 0)).unfold(1, size, 1).flip(2)  # (D, t, s): k_{t-s}
        y = torch.einsum("dts, bdps -> bdpt", toeplitz, x.unflatten(2, (-1, size))).flatten(2)
    for _ in range(halvings):
        early = x.unflatten(2, (-1, 2, size))[:, :, :, 0]  # (B, D, pairs, size)
        y = y + F.pad(aftermath(early, k.unsqueeze(1), size), (size, 0)).flatten(2)
        size *= 2
    return y[..., :T].mT


def aftermath(x, k, n):
    """What x (..., T) adds to the n outputs after it, (..., n), when it is convolved with k (..., any length)."""
    T = x.shape[-1]
    both = torch.fft.rfft(x, T + n) * torch.fft.rfft(k, T + n)
    return torch.fft.irfft(both, T + n)[..., T:]


# S4D's waves exp(t decay) for all t would be N times as large as a sequence. With t = i size + j they are products
# far_i near_j of some 2 sqrt(T) N numbers, so that each sum over them is two small ones.


def near_and_far(decay, T):
    """decay (D, N/2) -> exp(j decay), exp(i size decay), both about (sqrt(T), D, N/2), size * len(far) >= T."""
    size = math.ceil(math.sqrt(T))
    near = torch.arange(size, dtype=decay.real.dtype, device=decay.device)
    far = size * near[: math.ceil(T / size)]
    return [torch.exp(t[:, None, None] * decay) for t in (near, far)]


def waves(C, decay, T):
    """2 Re(sum over n of C exp(t decay)) for t < T: C (..., D, N/2), decay (D, N/2) -> (..., T, D)."""
    near, far = near_and_far(decay, T)
    both = torch.einsum("...idn, jdn -> ...ijd", C.unsqueeze(-3) * far, near)
    return 2 * both.real.flatten(-3, -2)[..., :T, :]


def sum_of_waves(x, decay):
    """sum over t of exp((T - 1 - t) decay) x_t: x (B, T, D), decay (D, N/2) -> (B, D, N/2)."""
    near, far = near_and_far(decay, x.shape[1])
    x = F.pad(x.flip(1), (0, 0, 0, len(near) * len(far) - x.shape[1])).unflatten(1, (len(far), len(near)))
    return (torch.einsum("bijd, jdn -> bidn", x.to(near.dtype), near) * far).sum(1)


def initialise_baseline(module, config):
    """
    The papers' initialisations of the mixers above, in one place; what is not listed keeps PyTorch's default.

        Mamba   A                      -1, -2 .. -N in each channel                       state-spaces/mamba
                step                   U(-r, r), r = (d_model / 16)^-1/2                  the same
                its bias               dt log-uniform in 0.001 .. 0.1                     the same
                skip                   1                                                  the same
                output                 PyTorch's default / sqrt(n_layer)                  the same
        S4D     A                      -1/2 + i pi n, n = 0 .. N / 2 - 1, S4D-Lin         state-spaces/s4
                dt                     log-uniform in 0.001 .. 0.1                        the same
                C, skip                N(0, 1), C complex                                 the same
        Hyena   positions              i / (L - 1), cos and -sin of f 2 pi i / L          HazyResearch/safari
                linear layers          N(0, 0.02), biases 0; output / sqrt(2 n_layer)     the same
                w, skip                14, N(0, 1)                                        the same
    """
    for kind, start in ((Mamba, start_mamba), (S4D, start_s4d), (Hyena, start_hyena)):
        if isinstance(module, kind):
            with torch.no_grad():
                start(module, config)


def start_mamba(mixer, config):
    r = mixer.step.in_features**-0.5
    mixer.log_A.copy_(torch.arange(1, config.d_state + 1).log())
    nn.init.uniform_(mixer.step.weight, -r, r)
    dt = log_uniform(mixer.step.bias, 1e-3, 1e-1).exp()
    mixer.step.bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # softplus of this is dt
    nn.init.ones_(mixer.skip)
    mixer.output.weight.div_(math.sqrt(config.n_layer))


def start_s4d(mixer, config):
    log_uniform(mixer.log_dt, 1e-3, 1e-1)
    nn.init.constant_(mixer.log_decay, math.log(0.5))
    mixer.frequency.copy_(math.pi * torch.arange(config.d_state // 2))
    nn.init.normal_(mixer.read, std=0.5**0.5)
    nn.init.normal_(mixer.skip)


def log_uniform(x, low, high):
    """Fill x with logarithms of numbers between low and high."""
    return nn.init.uniform_(x, math.log(low), math.log(high))


def start_hyena(mixer, config):
    for linear in (mixer.input, *mixer.filter, mixer.filter_output, mixer.output):
        nn.init.normal_(linear.weight, std=0.02)
        if linear.bias is not None:
            nn.init.zeros_(linear.bias)
    mixer.output.weight.div_(math.sqrt(2 * config.n_layer))
    nn.init.constant_(mixer.w, 14)
    nn.init.normal_(mixer.skip)
    L, wide = config.context, dict(dtype=torch.float64, device=mixer.w.device)
    i, f = torch.arange(L, **wide).unsqueeze(-1), torch.linspace(1e-4, 15, 16, **wide)
    angle = 2 * math.pi / L * i * f
    mixer.positions.copy_(torch.cat([i / max(1, L - 1), angle.cos(), -angle.sin()], dim=1))


BASELINES = {"mamba": Mamba, "s4d": S4D, "hyena": Hyena}
