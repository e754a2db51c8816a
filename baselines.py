"""
The mixers that HGRN2, minGRU and minLSTM are compared with, each with the same interface as those in model.py:

    forward(x, state=None, reset=None) -> y, state      x, y (B, T, D); state None before the first token

S4D and Hyena have no `reset`: what they forget depends only on how many tokens ago it was.

Shapes:  B batch   T time   D model width   H heads   E expanded width   N states of a channel   K width of a head
"""

import math

from kernels import at_least_float32, fill, gated_linear_attention, linear_scan, selective_scan
from support.settings import UserError

import torch
import torch.nn.functional as F
from torch import nn

# ----------------------------------------------------------------------------------------------------
# LSTM and GRU: their gates see the state, so each step waits for the one before


class LSTM(nn.Module):
    """
    Long short-term memory (Hochreiter & Schmidhuber 1997; Gers et al. 2000 for the forget gate).

        i_t, f_t, o_t = sigmoid(W x_t + R h_{t-1} + b)               what to add, keep and show    (E,) each
        c_t = f_t c_{t-1} + i_t tanh(W_g x_t + R_g h_{t-1} + b_g)    the memory                    (E,)
        h_t = o_t tanh(c_t)                                          what the gates see            (E,)

    The output is W_o h_t. `cell` holds the weights, named and initialised as in torch.nn.LSTM.
    """

    library = nn.LSTM

    def __init__(self, config, layer):
        super().__init__()
        D, E = config.d_model, config.expand * config.d_model
        self.cell = self.library(D, E, batch_first=True)
        self.output = nn.Linear(E, D)

    def forward(self, x, state=None, reset=None):
        with torch.autocast(x.device.type, enabled=False):
            h, state = self.run(x.to(self.cell.weight_hh_l0.dtype), state, reset)
        return self.output(h), state

    @torch.compiler.disable  # it would unroll all steps
    def run(self, x, state, reset=None):
        """x (B, T, D) -> every h_t (B, T, E); the last h and c, each (B, E)."""
        W, R, b, b_R = self.cell.parameters()
        h, c = x.new_zeros(2, len(x), R.shape[1]) if state is None else state
        hs = []
        for t, Wx in enumerate(F.linear(x, W, b).unbind(1)):
            if reset is not None:
                h, c = (z.masked_fill(reset[:, t, None], 0.0) for z in (h, c))
            i, f, g, o = (Wx + F.linear(h, R, b_R)).chunk(4, dim=-1)  # (B, E)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            hs.append(h)
        return torch.stack(hs, dim=1), (h, c)


class GRU(LSTM):
    """
    Gated recurrent units in torch.nn.GRU's form; Cho et al. 2014, arXiv:1406.1078, have R_n (r_t h_{t-1}).

        r_t, z_t = sigmoid(W x_t + R h_{t-1} + b)                 what to look at, what to keep    (E,) each
        n_t = tanh(W_n x_t + b_n + r_t (R_n h_{t-1} + c_n))       what is new                      (E,)
        h_t = z_t h_{t-1} + (1 - z_t) n_t                         the memory                       (E,)

    The output is W_o h_t. In minGRU z and n do not see h, and there is no r.
    """

    library = nn.GRU

    @torch.compiler.disable
    def run(self, x, state, reset=None):
        """x (B, T, D) -> every h_t (B, T, E); the last h (B, E)."""
        W, R, b, b_R = self.cell.parameters()
        h = x.new_zeros(len(x), R.shape[1]) if state is None else state
        hs = []
        for t, Wx in enumerate(F.linear(x, W, b).unbind(1)):
            if reset is not None:
                h = h.masked_fill(reset[:, t, None], 0.0)
            r, z, n = Wx.chunk(3, dim=-1)  # (B, E)
            r_R, z_R, n_R = F.linear(h, R, b_R).chunk(3, dim=-1)
            r, z = (r + r_R).sigmoid(), (z + z_R).sigmoid()
            h = z * h + (1 - z) * (n + r * n_R).tanh()
            hs.append(h)
        return torch.stack(hs, dim=1), h


# ----------------------------------------------------------------------------------------------------
# Exponential gates: weights e^s of any size, kept in range by the largest exponent so far, m_t. Numerator and
# denominator are both divided by e^m_t, so m cancels; no gradient goes through it.


class Aaren(nn.Module):
    """
    Attention as a recurrent network: the query is learned, and the same for all t (Feng et al. 2024,
    arXiv:2405.13956). With s_t = query . W_k x_t / sqrt(K) and m_t = max(m_{t-1}, s_t), in each head

        a_t = e^(m_{t-1} - m_t) a_{t-1} + e^(s_t - m_t) [v_t 1]     sums of values and of weights    (V + 1,)
        o_t = a_t[:V] / a_t[V]                                      the average of all v so far      (V,)

    which is a softmax over s_1 .. s_t. a_t is a linear scan, as in minGRU. The output is W_o o_t.
    """

    no_decay = ("query",)

    def __init__(self, config, layer):
        super().__init__()
        D, H = config.d_model, config.n_head
        self.query = nn.Parameter(torch.randn(H, D // H))
        self.key = nn.Linear(D, D, bias=False)
        self.value = nn.Linear(D, D, bias=False)
        self.output = nn.Linear(D, D, bias=False)

    def forward(self, x, state=None, reset=None):
        H, K = self.query.shape
        k, v = at_least_float32(self.key(x), self.value(x))
        k, v = k.unflatten(-1, (H, K)), v.unflatten(-1, (H, K))  # (B, T, H, K)
        s = (k * self.query).sum(-1) * K**-0.5  # (B, T, H)
        m, a = (torch.full_like(s[:, 0], -math.inf), None) if state is None else state
        log_f = fill(torch.zeros_like(s), reset, -math.inf)
        m = stabiliser(log_f, s, m)  # from m_0 on
        keep, weight = torch.exp(log_f + m[:, :-1] - m[:, 1:]), torch.exp(s - m[:, 1:])
        weighted = F.pad(v, (0, 1), value=1.0) * weight.unsqueeze(-1)  # (B, T, H, V + 1)
        a = linear_scan(keep.repeat_interleave(K + 1, dim=-1), weighted.flatten(2), a)
        o = a.unflatten(-1, (H, K + 1))
        return self.output((o[..., :-1] / o[..., -1:]).flatten(2)), (m[:, -1].clone(), a[:, -1].clone())


class MLSTM(nn.Module):
    """
    xLSTM's matrix memory (Beck et al. 2024, arXiv:2405.04517). With u, z = W_u x, W_z x, c =
    silu(conv(u)), q, k = W_q c, W_k c and v = W_v u, in each head (the gates read q, k and v of all heads)

        log i_t, log f_t = W_i [q k v], logsigmoid(W_f [q k v])     input, forget gate of a whole head    (1,)
        m_t = max(log f_t + m_{t-1}, log i_t)                       the stabiliser                        (1,)
        S_t = e^(log f_t + m_{t-1} - m_t) S_{t-1} + e^(log i_t - m_t) k_t [v_t 1]^T / sqrt(K)  memory  (K, V + 1)
        h_t = S_t^T q_t [:V] / max(|S_t^T q_t [V]|, e^-m_t)         the output                            (V,)

    The output is W_o ((norm(h) + skip c) silu(z)). It is as wide inside as an MLP, so xLSTM's mLSTM blocks
    have no separate MLP. The paper has expand = 2.
    """

    def __init__(self, config, layer):
        super().__init__()
        D, E, H = config.d_model, config.expand * config.d_model, config.n_head
        self.up = nn.Linear(D, 2 * E, bias=False)
        self.conv = CausalConv1d(E, 4)
        self.query = BlockLinear(E, E // 4)
        self.key = BlockLinear(E, E // 4)
        self.value = BlockLinear(E, E // 4)
        self.gates = nn.Linear(3 * E, 2 * H)
        self.norm = HeadNorm(E, config.norm_eps)
        self.skip = nn.Parameter(torch.ones(E))
        self.output = nn.Linear(E, D, bias=False)
        self.n_head = H

    def forward(self, x, state=None, reset=None):
        past, S, m = state or (None, None, x.new_zeros(len(x), self.n_head, dtype=torch.float32))
        u, z = self.up(x).chunk(2, dim=-1)  # (B, T, E)
        c, past = self.conv(u, past, reset)
        c = F.silu(c)
        q, k, v = self.query(c), self.key(c), self.value(u)
        gates, m = at_least_float32(self.gates(torch.cat([q, k, v], dim=-1)), m)
        log_i, log_f = gates[..., : self.n_head], F.logsigmoid(gates[..., self.n_head :])  # (B, T, H)
        log_f = fill(log_f, reset, -math.inf)
        m = stabiliser(log_f, log_i, m)  # from m_0 on
        q, k, v = (w.unflatten(-1, (self.n_head, -1)) for w in (q, k, v))  # (B, T, H, K or V)
        m_before, m = m[:, :-1, :, None], m[:, 1:, :, None]  # (B, T, H, 1)
        k = k * (torch.exp(log_i.unsqueeze(-1) - m) * k.shape[-1] ** -0.5).to(k.dtype)
        log_f, v = log_f.unsqueeze(-1) + m_before - m, F.pad(v, (0, 1), value=1.0)
        h, S = gated_linear_attention(q, k, v, log_f, S)  # (B, T, H, V + 1), (B, H, K, V + 1)
        n = torch.maximum(h[..., -1:].abs(), torch.exp(-m)) + 1e-6  # inf is fine, too: then h is 0
        h = self.norm(h[..., :-1] / n)  # (B, T, E)
        return self.output((h + self.skip * c) * F.silu(z)), (past, S, m[:, -1, :, 0].clone())

    @staticmethod
    def check(config):
        """Raise UserError unless the inner width is a multiple of 4."""
        width = config.expand * config.d_model
        if width % 4:
            raise UserError(f"mixer = 'mlstm' needs expand x d_model to be a multiple of 4, not {width}")


@torch.no_grad()
def stabiliser(log_f, log_i, m):
    """
    log_f, log_i (B, T, H), m_0 (B, H) -> all m_t = max(log_f_t + m_{t-1}, log_i_t), (B, T + 1, H). Two
    consecutive steps make one of the same form, whose log f is the sum of theirs, so each round of the loop
    doubles how far back a step reaches.
    """
    m, reach = torch.cat([m.unsqueeze(1), log_i], dim=1), 1
    log_f = F.pad(log_f, (0, 0, 1, 0), value=-math.inf)  # for m_0, before which there is nothing
    while reach < m.shape[1]:
        m = torch.cat([m[:, :reach], torch.maximum(log_f[:, reach:] + m[:, :-reach], m[:, reach:])], dim=1)
        log_f = torch.cat([log_f[:, :reach], log_f[:, reach:] + log_f[:, :-reach]], dim=1)
        reach *= 2
    return m


class SLSTM(nn.Module):
    """
    xLSTM's scalar memory: an LSTM with exponential gates (Beck et al. 2024, arXiv:2405.04517). The
    gates i and f read silu(conv(x)) in place of x; W and R have one block per head:

        i~, f~, z~, o~ = W x_t + R h_{t-1} + b, each with its own weights
        log i_t, log f_t, z_t, o_t = i~, logsigmoid(f~), tanh(z~), sigmoid(o~)          gates, new value  (D,) each
        m_t = max(log f_t + m_{t-1}, log i_t)                                           the stabiliser    (D,)
        c_t = e^(log f_t + m_{t-1} - m_t) c_{t-1} + e^(log i_t - m_t) z_t               the memory        (D,)
        n_t = e^(log f_t + m_{t-1} - m_t) n_{t-1} + e^(log i_t - m_t)                   its weight        (D,)
        h_t = o_t c_t / n_t                                                             what gates see    (D,)

    The output is norm(h). The paper follows it with an MLP, GEGLU.
    """

    no_decay = ("recurrent", "bias")

    def __init__(self, config, layer):
        super().__init__()
        D, H = config.d_model, config.n_head
        self.conv = CausalConv1d(D, 4)
        self.input = BlockLinear(D, H)
        self.forget = BlockLinear(D, H)
        self.candidate = BlockLinear(D, H)
        self.show = BlockLinear(D, H)
        self.recurrent = nn.Parameter(torch.zeros(H, D // H, 4 * D // H))
        self.bias = nn.Parameter(torch.zeros(H, 1, 4 * D // H))
        self.norm = HeadNorm(D, config.norm_eps)
        self.layer = layer

    def forward(self, x, state=None, reset=None):
        past, state = state or (None, None)
        c, past = self.conv(x, past, reset)
        c = F.silu(c)
        gates = self.input(c), self.forget(c), self.candidate(x), self.show(x)
        gates = torch.cat([w.unflatten(-1, (len(self.bias), -1)) for w in gates], dim=-1)  # (B, T, H, 4 K)
        with torch.autocast(x.device.type, enabled=False):
            gates, R, b = at_least_float32(gates, self.recurrent, self.bias)
            h, state = self.run(gates.permute(1, 2, 0, 3) + b, R, state, reset)
        return self.norm(h), (past, state)

    @torch.compiler.disable
    def run(self, gates, R, state, reset=None):
        """gates (T, H, B, 4 K), R (H, K, 4 K) -> every h_t (B, T, H, K); the last h, c, n, m (B, 4, H, K)."""
        if state is None:
            h = c = n = gates.new_zeros(gates[0, ..., : R.shape[1]].shape)  # (H, B, K)
            m = torch.full_like(h, -math.inf)
        else:
            h, c, n, m = state.permute(1, 2, 0, 3)
        hs = []
        for t, Wx in enumerate(gates):
            if reset is not None:
                begins = reset[:, t, None]  # (B, 1)
                h, m = h.masked_fill(begins, 0.0), m.masked_fill(begins, -math.inf)  # f = 0 then clears c, n
            i, f, z, o = torch.baddbmm(Wx, h, R).chunk(4, dim=-1)  # (H, B, K)
            f = F.logsigmoid(f) + m
            m = torch.maximum(f, i).detach()
            f, i = (f - m).exp(), (i - m).exp()
            c = f * c + i * z.tanh()
            n = f * n + i
            h = o.sigmoid() * c / n
            hs.append(h)
        return torch.stack(hs).permute(2, 0, 1, 3), torch.stack([h, c, n, m]).permute(2, 0, 1, 3)


class GEGLU(nn.Module):
    """down(gelu(gate x) * up x): the MLP of xLSTM's sLSTM blocks (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, config):
        super().__init__()
        self.gate = nn.Linear(config.d_model, config.d_mlp, bias=False)
        self.up = nn.Linear(config.d_model, config.d_mlp, bias=False)
        self.down = nn.Linear(config.d_mlp, config.d_model, bias=False)

    def forward(self, x):
        return self.down(F.gelu(self.gate(x)) * self.up(x))


class HeadNorm(nn.Module):
    """LayerNorm of each head separately, without a bias: (B, T, H, V) -> (B, T, H V), in float32 at least."""

    def __init__(self, width, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x):
        (x,) = at_least_float32(x)
        return F.layer_norm(x, x.shape[-1:], eps=self.eps).flatten(2) * self.weight


class BlockLinear(nn.Module):
    """Multiplies each of `blocks` equal parts of x by a matrix of its own: forward(x), x and y (B, T, width)."""

    def __init__(self, width, blocks):
        super().__init__()
        size = width // blocks
        self.weight = nn.Parameter(torch.randn(blocks, size, size) * (2 / 5 / size) ** 0.5)

    def forward(self, x):
        return torch.einsum("bthi,hoi->btho", x.unflatten(-1, (len(self.weight), -1)), self.weight).flatten(2)


class CausalConv1d(nn.Conv1d):
    """
    y_t = bias + sum over i < width of weight_i x_{t - width + 1 + i} in each channel: forward(x, state=None,
    reset=None) -> y, state, with x and y (B, T, channels). The state is the last width - 1 inputs. Inputs before
    the first token, or from before a reset, count as 0.
    """

    no_decay = ("weight",)

    def __init__(self, channels, width):
        super().__init__(channels, channels, width, groups=channels)

    def forward(self, x, state=None, reset=None):
        T, past = x.shape[1], self.kernel_size[0] - 1
        if state is None:
            state = x.new_zeros(x.shape[0], past, x.shape[2])
        seen = torch.cat([state, x], dim=1)  # (B, past + T, channels)
        if reset is None:
            return super().forward(seen.mT).mT, seen[:, T:].clone()
        document = F.pad(reset.cumsum(dim=1), (past, 0)).unsqueeze(-1)  # (B, past + T, 1)
        y = self.bias
        for i in range(past + 1):
            own = document[:, i : i + T] == document[:, past:]
            y = y + seen[:, i : i + T] * own * self.weight[:, 0, i]
        return y, seen[:, T:] * (document[:, T:] == document[:, -1:])


# ----------------------------------------------------------------------------------------------------
# State spaces and long convolutions


class Mamba(nn.Module):
    """
    A state space model whose step, input and readout depend on the token, S6 (Gu & Dao 2023, arXiv:2312.00752).

        x_t = silu(conv4(W_x u_t)),  z_t = W_z u_t        of the input u_t               (E,)
        dt_t = softplus(W_dt W_r x_t)                     how far to step                (E,)
        B_t, C_t = W_B x_t, W_C x_t                       where to write, where to read  (N,)
        h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t^T        the memory, A negative         (E, N)
        y_t = W_o (silu(z_t) * (h_t C_t + skip * x_t))    the output                     (D,)

    A large dt_t forgets and writes, a small one skips x_t. Mamba is a whole block: use it with mlp = "none".
    """

    no_decay = ("log_A",)

    def __init__(self, config, layer):
        super().__init__()
        D, E, N = config.d_model, config.expand * config.d_model, config.d_state
        self.sizes = math.ceil(D / 16), N, N
        self.input = nn.Linear(D, 2 * E, bias=False)
        self.conv = CausalConv1d(E, 4)
        self.select = nn.Linear(E, sum(self.sizes), bias=False)
        self.step = nn.Linear(self.sizes[0], E)
        self.log_A = nn.Parameter(torch.empty(E, N))
        self.skip = nn.Parameter(torch.empty(E))
        self.output = nn.Linear(E, D, bias=False)

    def forward(self, x, state=None, reset=None):
        seen, h = state or (None, None)
        x, z = self.input(x).chunk(2, dim=-1)  # (B, T, E)
        x, seen = self.conv(x, seen, reset)
        x = F.silu(x)
        dt, B, C = self.select(x).split(self.sizes, dim=-1)
        log_A, dt = at_least_float32(self.log_A, self.step(dt))
        dt, new = F.softplus(dt), x
        if reset is not None:  # a step of 2^64 forgets all; what it writes, dt_t x_t, stays as it was
            new = (x * torch.where(reset.unsqueeze(-1), dt * 2.0**-64, 1.0)).type_as(x)
            dt = fill(dt, reset, 2.0**64)
        y, h = selective_scan(new, dt, -log_A.exp(), B, C, h)  # (B, T, E), (B, E, N)
        return self.output(F.silu(z) * (y + self.skip * x).type_as(z)), (seen, h)


class S4D(nn.Module):
    """
    A diagonal state space model with the same dynamics at every step (Gu et al. 2022, arXiv:2206.11893).

        h_t = exp(dt A) h_{t-1} + x_t                                       the memory, complex  (D, N/2)
        y_t = 2 Re(sum over N/2 of C (exp(dt A) - 1) / A h_t) + skip x_t    the output           (D,)

    and a gated linear layer of gelu(y_t). No weight here depends on the input, so a whole text can also be
    convolved at once with the impulse response (fast/convolution.py). d_state = N counts real numbers: N/2
    decaying waves, each with its conjugate.
    """

    no_decay = ("log_decay", "frequency", "read")

    def __init__(self, config, layer):
        super().__init__()
        D, N = config.d_model, config.d_state
        self.log_dt = nn.Parameter(torch.empty(D))
        self.log_decay = nn.Parameter(torch.empty(D, N // 2))  # A = -exp(log_decay) + i frequency
        self.frequency = nn.Parameter(torch.empty(D, N // 2))
        self.read = nn.Parameter(torch.empty(D, N // 2, 2))  # C
        self.skip = nn.Parameter(torch.empty(D))
        self.output = nn.Linear(D, 2 * D)

    def forward(self, x, state=None):
        own = self.log_dt, self.log_decay, self.frequency, self.read, self.skip
        x, log_dt, log_decay, frequency, read, skip = at_least_float32(x, *own)
        A = torch.complex(-log_decay.exp(), frequency)  # (D, N/2)
        dt_A = log_dt.exp().unsqueeze(-1) * A
        C = torch.view_as_complex(read) * (dt_A.exp() - 1) / A
        y, h = self.run(x, dt_A, C, state)
        return F.glu(self.output(F.gelu(y + skip * x)), dim=-1), h

    def run(self, x, dt_A, C, h):
        """x (B, T, D), dt_A, C (D, N/2), h (B, D, N/2) or None -> every 2 Re(C h_t) (B, T, D), the last h."""
        decay, y = dt_A.exp(), []
        h = torch.zeros_like(decay) if h is None else h
        for x_t in x.unbind(1):
            h = decay * h + x_t.unsqueeze(-1)  # (B, D, N/2)
            y.append(2 * (C * h).real.sum(-1))
        return torch.stack(y, dim=1), h

    @staticmethod
    def check(config):
        if config.d_state % 2:
            raise UserError(f"d_state = {config.d_state}: s4d needs an even one, for its states are pairs")


class Hyena(nn.Module):
    """
    A long convolution between two gates, its filter made by a small network (Poli et al. 2023, arXiv:2302.10866).

        q_t, k_t, v_t = conv3(W x)_t                                          two gates, a value   (D,)
        y_t = W_o (q_t * (sum over s <= t of filter_{t-s} u_s + skip u_t))    u_t = k_t * v_t      (D,)
        filter_i = MLP(position_i) * exp(-rate i / (L - 1))                   i < L = context      (D,)

    Order 2, as in the authors' language models: the MLP has two layers of 64 inside and the activation sin(w ...),
    and reads position encodings of 33 numbers, which are trained too. The state is every u_s so far, since the
    filter reweights all of them at each step. It grows, and so does the cost of a token: generation is slow.
    """

    no_decay = ("positions", "filter", "filter_output")

    def __init__(self, config, layer):
        super().__init__()
        D = config.d_model
        self.input = nn.Linear(D, 3 * D)
        self.conv = CausalConv1d(3 * D, 3)
        self.positions = nn.Parameter(torch.empty(config.context, 33))
        self.filter = nn.ModuleList(nn.Linear(*sizes) for sizes in ((33, 64), (64, 64), (64, 64)))
        self.w = nn.Parameter(torch.empty(64))
        self.filter_output = nn.Linear(64, D, bias=False)
        self.skip = nn.Parameter(torch.empty(D))
        self.output = nn.Linear(D, D)

    def forward(self, x, state=None):
        seen, past = state or (None, None)
        x, seen = self.conv(self.input(x), seen)
        q, k, v = at_least_float32(*x.chunk(3, dim=-1))
        u = k * v
        whole = u if past is None else torch.cat([past, u], dim=1)
        y = self.convolve(whole, self.make_filter(whole.shape[1]), u.shape[1]) + self.skip * u
        return self.output(q * y), (seen, whole)

    def convolve(self, u, f, T):
        """u (B, L, D), f (L, D) -> the last T of all y_t = sum over s <= t of f_{t-s} u_s, (B, T, D)."""
        with torch.autocast(u.device.type, enabled=False):
            u = F.pad(u.mT, (len(f) - 1, 0))  # (B, D, 2 L - 1)
            return F.conv1d(u, f.flip(0).mT.unsqueeze(1), groups=u.shape[1]).mT[:, -T:]

    def make_filter(self, length):
        """The first `length` values of the filter, (length, D), in float32 at least; UserError if it has fewer."""
        context, D = len(self.positions), len(self.skip)
        if length > context:
            raise UserError(f"{length} tokens: this model's filter has {context}; shorten the text")
        with torch.autocast(self.skip.device.type, enabled=False):
            z = self.positions[:length]
            for layer in self.filter:
                z = torch.sin(self.w * layer(z))
            z, w = at_least_float32(self.filter_output(z), self.w)
        share = torch.linspace(0, 1, context, dtype=w.dtype, device=w.device)[:length, None]  # of the context
        fastest, slowest = math.log(100) / 0.3, math.log(100) / 1.5  # to 1/100 over 0.3 or 1.5 contexts
        return z * torch.exp(-share * torch.linspace(slowest, fastest, D, dtype=w.dtype, device=w.device))


# ----------------------------------------------------------------------------------------------------
# Initialisation


def initialise_baseline(module, config):
    """
    The papers' initialisations of the mixers above, in one place; what is not listed keeps PyTorch's default.

        LSTM    all, and GRU           U(-E^-1/2, E^-1/2)                                 torch.nn.LSTM
        Aaren   projections, query     N(0, 0.02), N(0, 1)                                chosen here
        mLSTM   linear layers          N(0, (2 / 5 d_model)^1/2)                          the xlstm package
                output                 N(0, 2 / (n_layer d_model^1/2))                    the same
                gates                  weights 0, biases of i N(0, 0.1), of f 3 .. 6      the same
        sLSTM   linear layers          N(0, (2 / 5 d_model)^1/2)                          the same
                R, biases of f         0, 5 .. -7 in each head, steeper in lower layers   the same
        GEGLU   gate and up, down      as mLSTM's linear layers, as its output            the same
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
    initialisers = {
        Aaren: init_aaren, MLSTM: init_mlstm, SLSTM: init_slstm, GEGLU: init_xlstm,
        Mamba: init_mamba, S4D: init_s4d, Hyena: init_hyena,
    }  # fmt: skip
    with torch.no_grad():
        for kind, initialiser in initialisers.items():
            if isinstance(module, kind):
                initialiser(module, config)


def init_aaren(mixer, config):
    for linear in (mixer.key, mixer.value, mixer.output):
        nn.init.normal_(linear.weight, std=0.02)


def init_xlstm(module, config):
    for name, linear in module.named_children():
        if isinstance(linear, (nn.Linear, BlockLinear)):
            last = name in ("output", "down")
            std = 2 / config.n_layer / config.d_model**0.5 if last else (2 / 5 / config.d_model) ** 0.5
            nn.init.normal_(linear.weight, std=std)


def init_mlstm(mixer, config):
    init_xlstm(mixer, config)
    nn.init.zeros_(mixer.gates.weight)
    i, f = mixer.gates.bias.chunk(2)
    nn.init.normal_(i, std=0.1)
    f.copy_(torch.linspace(3, 6, len(f)))


def init_slstm(mixer, config):
    init_xlstm(mixer, config)
    depth = mixer.layer / max(1, config.n_layer - 1)
    f = mixer.bias.chunk(4, dim=-1)[1]  # (H, 1, K)
    f.copy_(5 - 12 * torch.linspace(0, 1, f.shape[-1]) ** (0.3 + 1.3 * depth))


def init_mamba(mixer, config):
    r = mixer.step.in_features**-0.5
    mixer.log_A.copy_(torch.arange(1, config.d_state + 1).log())
    nn.init.uniform_(mixer.step.weight, -r, r)
    dt = log_uniform(mixer.step.bias, 1e-3, 1e-1).exp()
    mixer.step.bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # softplus of this is dt
    nn.init.ones_(mixer.skip)
    mixer.output.weight.div_(math.sqrt(config.n_layer))


def init_s4d(mixer, config):
    log_uniform(mixer.log_dt, 1e-3, 1e-1)
    nn.init.constant_(mixer.log_decay, math.log(0.5))
    mixer.frequency.copy_(math.pi * torch.arange(config.d_state // 2))
    nn.init.normal_(mixer.read, std=0.5**0.5)
    nn.init.normal_(mixer.skip)


def log_uniform(x, low, high):
    """Fill x uniformly between log(low) and log(high)."""
    return x.uniform_(math.log(low), math.log(high))


def init_hyena(mixer, config):
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


BASELINES = {
    "lstm": LSTM, "gru": GRU, "aaren": Aaren, "mlstm": MLSTM, "slstm": SLSTM, "mamba": Mamba, "s4d": S4D,
    "hyena": Hyena,
}  # fmt: skip
