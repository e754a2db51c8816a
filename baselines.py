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
from kernels import gated_linear_attention, linear_scan
from layers import BlockLinear, CausalConv1d, Linear, at_least_float32, split_heads

# ----------------------------------------------------------------------------------------------------
# LSTM and GRU: their gates see the state, so each step waits for the one before


class LSTM(nn.Module):
    """
    Long short-term memory (Hochreiter & Schmidhuber 1997; Gers et al. 2000 for the forget gate), the library's.

        i_t, f_t, o_t = sigmoid(W x_t + R h_{t-1} + b)            what to add, keep and show    (E,) each
        c_t = f_t c_{t-1} + i_t tanh(W_g x_t + R_g h_{t-1} + b_g)    the memory                 (E,)
        h_t = o_t tanh(c_t)                                       what the gates see            (E,)

    The output is W_o h_t. Names and initialisation are those of torch.nn.LSTM.
    """

    library = nn.LSTM

    def __init__(self, config, layer):
        super().__init__()
        D, E = config.d_model, config.expand * config.d_model
        self.cell = self.library(D, E, batch_first=True)
        self.output = Linear(E, D)

    def forward(self, x, state=None):
        with torch.autocast(x.device.type, enabled=False):
            h, state = self.run(x.to(self.cell.weight_hh_l0.dtype), state)
        return self.output(h), state

    @torch.compiler.disable  # it would write out all steps
    def run(self, x, state):
        """x (B, T, D) -> every h_t (B, T, E); the last h and c, each (B, E)."""
        h, last = self.cell(x, state and tuple(z.unsqueeze(0) for z in state))
        return h, tuple(z.squeeze(0) for z in last)


class LSTMLoop(LSTM):
    """The same LSTM written out."""

    @torch.compiler.disable
    def run(self, x, state):
        W, R, b, b_R = self.cell.parameters()
        h, c = state or x.new_zeros(2, len(x), R.shape[1])
        hs = []
        for Wx in F.linear(x, W, b).unbind(1):
            i, f, g, o = (Wx + F.linear(h, R, b_R)).chunk(4, dim=-1)  # (B, E)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            hs.append(h)
        return torch.stack(hs, dim=1), (h, c)


class GRU(LSTM):
    """
    Gated recurrent units (Cho et al. 2014, arXiv:1406.1078), the library's.

        r_t, z_t = sigmoid(W x_t + R h_{t-1} + b)                 what to look at, what to keep    (E,) each
        n_t = tanh(W_n x_t + b_n + r_t (R_n h_{t-1} + c_n))       what is new                      (E,)
        h_t = z_t h_{t-1} + (1 - z_t) n_t                         the memory                       (E,)

    The output is W_o h_t. In minGRU z and n do not see h, and there is no r.
    """

    library = nn.GRU

    @torch.compiler.disable
    def run(self, x, state):
        """x (B, T, D) -> every h_t (B, T, E); the last (B, E)."""
        h, last = self.cell(x, None if state is None else state.unsqueeze(0))
        return h, last.squeeze(0)


class GRULoop(GRU):
    """The same GRU written out."""

    @torch.compiler.disable
    def run(self, x, state):
        W, R, b, b_R = self.cell.parameters()
        h = x.new_zeros(len(x), R.shape[1]) if state is None else state
        hs = []
        for Wx in F.linear(x, W, b).unbind(1):
            (r, z, n), (r_R, z_R, n_R) = Wx.chunk(3, dim=-1), F.linear(h, R, b_R).chunk(3, dim=-1)  # (B, E)
            r, z = (r + r_R).sigmoid(), (z + z_R).sigmoid()
            h = z * h + (1 - z) * (n + r * n_R).tanh()
            hs.append(h)
        return torch.stack(hs, dim=1), h


# ----------------------------------------------------------------------------------------------------
# Exponential gates: weights e^s of any size, kept in range by the largest so far, m_t. Numerator and denominator
# are both e^m_t too small, so m cancels; no gradient goes through it.


class Aaren(nn.Module):
    """
    Attention as a recurrent network: the query is learned, and the same for all t (Feng et al. 2024,
    arXiv:2405.13956). With s_t = query . W_k x_t / sqrt(K) and m_t = max(m_{t-1}, s_t), in each head

        a_t = e^(m_{t-1} - m_t) a_{t-1} + e^(s_t - m_t) [v_t 1]     sums of values and of weights    (V + 1,)
        o_t = a_t[:V] / a_t[V]                                      the average of all v so far      (V,)

    which is softmax over s_1 .. s_t, and as a scan is minGRU's. The output is W_o o_t.
    """

    def __init__(self, config, layer):
        super().__init__()
        D, H = config.d_model, config.n_head
        self.query = nn.Parameter(torch.randn(H, D // H))
        self.key = Linear(D, D, bias=False)
        self.value = Linear(D, D, bias=False)
        self.output = Linear(D, D, bias=False)

    def forward(self, x, state=None):
        H, K = self.query.shape
        k, v = at_least_float32(split_heads(self.key(x), H), split_heads(self.value(x), H))  # (B, T, H, K)
        s = (k * self.query).sum(-1) * K**-0.5  # (B, T, H)
        m, a = (torch.full_like(s[:, 0], -math.inf), None) if state is None else state
        m = torch.cat([m.unsqueeze(1), s.detach()], dim=1).cummax(dim=1).values  # from m_0 on
        keep, weight = torch.exp(m[:, :-1] - m[:, 1:]), torch.exp(s - m[:, 1:])
        weighted = F.pad(v, (0, 1), value=1.0) * weight.unsqueeze(-1)  # (B, T, H, V + 1)
        a = linear_scan(keep.repeat_interleave(K + 1, dim=-1), weighted.flatten(2), a)
        o = split_heads(a, H)
        return self.output((o[..., :-1] / o[..., -1:]).flatten(2)), (m[:, -1], a[:, -1])


class MLSTM(nn.Module):
    """
    xLSTM's matrix memory (Beck et al. 2024, arXiv:2405.04517). With u, z = W_u x, W_z x and c = silu(conv(u)),
    q, k = W_q c, W_k c / sqrt(K) and v = W_v u, in each head

        log i_t, log f_t = W_i [q k v], logsigmoid(W_f [q k v])     to add, to keep, of the whole head    (1,)
        m_t = max(log f_t + m_{t-1}, log i_t)                       the stabiliser                        (1,)
        S_t = e^(log f_t + m_{t-1} - m_t) S_{t-1} + e^(log i_t - m_t) k_t [v_t 1]^T     the memory    (K, V + 1)
        h_t = S_t^T q_t [:V] / max(|S_t^T q_t [V]|, e^-m_t)         what it answers                       (V,)

    The output is W_o ((norm(h) + skip c) silu(z)). It has an MLP's width inside: of xLSTM's blocks with it, none
    has another MLP. expand = 2 is the paper's.
    """

    def __init__(self, config, layer):
        super().__init__()
        D, E, H = config.d_model, config.expand * config.d_model, config.n_head
        self.up = Linear(D, 2 * E, bias=False)
        self.conv = CausalConv1d(E, 4)
        self.query = BlockLinear(E, E // 4)
        self.key = BlockLinear(E, E // 4)
        self.value = BlockLinear(E, E // 4)
        self.gates = Linear(3 * E, 2 * H)
        self.norm = HeadNorm(E, config.norm_eps)
        self.skip = nn.Parameter(torch.ones(E))
        self.output = Linear(E, D, bias=False)
        self.n_head = H

    def forward(self, x, state=None):
        past, S, m = state or (None, None, x.new_zeros(len(x), self.n_head, dtype=torch.float32))
        u, z = self.up(x).chunk(2, dim=-1)  # (B, T, E)
        c, past = self.conv(u, past)
        c = F.silu(c)
        q, k, v = self.query(c), self.key(c), self.value(u)
        gates, m = at_least_float32(self.gates(torch.cat([q, k, v], dim=-1)), m)
        log_i, log_f = gates[..., : self.n_head], F.logsigmoid(gates[..., self.n_head :])  # (B, T, H)
        m = running_max(log_f, log_i, m)  # from m_0 on
        q, k, v = (split_heads(w, self.n_head) for w in (q, k, v))  # (B, T, H, K or V)
        m_before, m = m[:, :-1, :, None], m[:, 1:, :, None]  # (B, T, H, 1)
        k = k * (torch.exp(log_i.unsqueeze(-1) - m) * k.shape[-1] ** -0.5).to(k.dtype)
        log_f, v = log_f.unsqueeze(-1) + m_before - m, F.pad(v, (0, 1), value=1.0)
        h, S = gated_linear_attention(q, k, v, log_f, S)  # (B, T, H, V + 1), (B, H, K, V + 1)
        n = torch.maximum(h[..., -1:].abs(), torch.exp(-m)) + 1e-6  # infinite is right too: then h is 0
        h = self.norm(h[..., :-1] / n)  # (B, T, E)
        return self.output((h + self.skip * c) * F.silu(z)), (past, S, m[:, -1, :, 0])

    @staticmethod
    def check(config):
        """End with one line where the blocks of 4 do not divide the width inside."""
        width = config.expand * config.d_model
        if width % 4:
            fail(f"mixer = 'mlstm' needs expand x d_model to be a multiple of 4, not {width}")


@torch.no_grad()
def running_max(log_f, log_i, m):
    """log_f, log_i (B, T, H), m_0 (B, H) -> all m_t = max(log_f_t + m_{t-1}, log_i_t), (B, T + 1, H)."""
    m = torch.cat([m.unsqueeze(1), log_i], dim=1)
    f = F.pad(log_f, (0, 0, 1, 0))
    step = 1  # of how many steps m_t knows, and f_t is the sum
    while step < m.shape[1]:
        m = torch.cat([m[:, :step], torch.maximum(m[:, step:], f[:, step:] + m[:, :-step])], dim=1)
        f = torch.cat([f[:, :step], f[:, step:] + f[:, :-step]], dim=1)
        step *= 2
    return m


class SLSTM(nn.Module):
    """
    xLSTM's scalar memory: an LSTM with exponential gates (Beck et al. 2024, arXiv:2405.04517). With silu(conv(x))
    in x's place for i and f, W and R one block per head,

        log i_t, log f_t, z_t, o_t = i~, logsigmoid(f~), tanh(z~), sigmoid(o~),  each ~ = W x_t + R h_{t-1} + b
        m_t = max(log f_t + m_{t-1}, log i_t)                                           the stabiliser    (D,)
        c_t = e^(log f_t + m_{t-1} - m_t) c_{t-1} + e^(log i_t - m_t) z_t               the memory        (D,)
        n_t = e^(log f_t + m_{t-1} - m_t) n_{t-1} + e^(log i_t - m_t)                   its weight        (D,)
        h_t = o_t c_t / n_t                                                             what gates see    (D,)

    The output is norm(h). The paper has an MLP after it, GEGLU.
    """

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

    def forward(self, x, state=None):
        past, state = state or (None, None)
        c, past = self.conv(x, past)
        c = F.silu(c)
        gates = self.input(c), self.forget(c), self.candidate(x), self.show(x)
        gates = torch.cat([split_heads(w, len(self.bias)) for w in gates], dim=-1)  # (B, T, H, 4 K)
        with torch.autocast(x.device.type, enabled=False):
            gates, R, b = at_least_float32(gates, self.recurrent, self.bias)
            h, state = self.run(gates.permute(1, 2, 0, 3) + b, R, state)
        return self.norm(h), (past, state)

    @torch.compiler.disable  # it would write out all steps
    def run(self, gates, R, state):
        """gates (T, H, B, 4 K), R (H, K, 4 K) -> every h_t (B, T, H, K); the last h, c, n, m (B, 4, H, K)."""
        if state is None:
            h = c = n = gates.new_zeros(gates[0, ..., : R.shape[1]].shape)  # (H, B, K)
            m = torch.full_like(h, -math.inf)
        else:
            h, c, n, m = state.permute(1, 2, 0, 3)
        hs = []
        for Wx in gates:
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
        self.gate = Linear(config.d_model, config.d_mlp, bias=False)
        self.up = Linear(config.d_model, config.d_mlp, bias=False)
        self.down = Linear(config.d_mlp, config.d_model, bias=False)

    def forward(self, x):
        return self.down(F.gelu(self.gate(x)) * self.up(x))


class HeadNorm(nn.Module):
    """LayerNorm of each head apart, without a bias: (B, T, H, V) -> (B, T, H V), in float32 at least."""

    def __init__(self, width, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x):
        (x,) = at_least_float32(x)
        return F.layer_norm(x, x.shape[-1:], eps=self.eps).flatten(2) * self.weight


def initialise_baseline(module, config):
    """
    The papers' initialisations of the mixers above, in one place; what is not listed keeps PyTorch's default.

        LSTM, GRU                         U(-E^-1/2, E^-1/2)              torch.nn.LSTM
        Aaren's projections and query     N(0, 0.02) and N(0, 1)          chosen here: the paper does not say
        mLSTM, sLSTM, GEGLU: linear       N(0, sqrt(2 / 5 d_model))       the xlstm package, for these four
        mLSTM's and GEGLU's last layer    N(0, 2 / (n_layer sqrt(d_model)))
        mLSTM's gates                     weights 0, biases of i N(0, 0.1), of f from 3 to 6 over the heads
        sLSTM's gates                     R 0, biases of f from 5 to -7 over a head, steeper in lower layers
    """
    small, last = (2 / 5 / config.d_model) ** 0.5, 2 / config.n_layer / config.d_model**0.5
    if isinstance(module, Aaren):
        for linear in (module.key, module.value, module.output):
            nn.init.normal_(linear.weight, std=0.02)
    if isinstance(module, (MLSTM, SLSTM, GEGLU)):
        for name, linear in module.named_children():
            if isinstance(linear, (Linear, BlockLinear)):
                nn.init.normal_(linear.weight, std=last if name in ("output", "down") else small)
    if isinstance(module, MLSTM):
        nn.init.zeros_(module.gates.weight)
        i, f = module.gates.bias.detach().chunk(2)
        nn.init.normal_(i, std=0.1)
        f.copy_(torch.linspace(3, 6, len(f)))
    if isinstance(module, SLSTM):
        depth = module.layer / max(1, config.n_layer - 1)
        f = module.bias.detach().chunk(4, dim=-1)[1]  # (H, 1, K)
        f.copy_(5 - 12 * torch.linspace(0, 1, f.shape[-1]) ** (0.3 + 1.3 * depth))


BASELINES = {
    "lstm": LSTM,
    "lstm_loop": LSTMLoop,
    "gru": GRU,
    "gru_loop": GRULoop,
    "aaren": Aaren,
    "mlstm": MLSTM,
    "slstm": SLSTM,
}
