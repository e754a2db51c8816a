"""
S4D and Hyena as long convolutions, in place of baselines.py's loop over time and of its direct convolution.

One Fourier transform of a whole text would leak rounding errors of later tokens into earlier outputs. So the text
is halved until its pieces are short, and each piece is multiplied by a Toeplitz matrix. Then, from pairs of
pieces up to the two halves of the text, Fourier transforms compute what each first half, which lies entirely in
the past of its second half, contributes to it. This is O(T log^2 T), and later tokens change no bit of earlier
outputs.
"""

import math

import torch
import torch.nn.functional as F

PIECE = 64  # tokens, at most


def hyena_convolve(self, u, f, T):
    """Fast form of baselines.Hyena.convolve."""
    past = u.shape[1] - T
    y = causal_convolution(u[:, past:], f[:T])
    if past:
        y = y + after(u[:, :past].mT, f.mT, T).mT
    return y


def s4d_run(self, x, log_decay, C, h):
    """Fast form of baselines.S4D.run: the state's decaying waves, summed over time and read after each step."""
    T = x.shape[1]
    y, last = causal_convolution(x, waves(C, log_decay, T)), sum_of_waves(x, log_decay)
    if h is not None:
        y = y + waves(C * log_decay.exp() * h, log_decay, T)
        last = last + (T * log_decay).exp() * h
    return y, last


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
        y = y + F.pad(after(early, k.unsqueeze(1), size), (size, 0)).flatten(2)
        size *= 2
    return y[..., :T].mT


def after(x, k, n):
    """The contribution of x (..., T), convolved with k (..., any length), to the n outputs after it, (..., n)."""
    T = x.shape[-1]
    both = torch.fft.rfft(x, T + n) * torch.fft.rfft(k, T + n)
    return torch.fft.irfft(both, T + n)[..., T:]


# S4D's waves exp(t decay) for all t would be N times as large as a sequence. With t = i size + j they are
# products far_i near_j of some 2 sqrt(T) N numbers, so that each sum over them is two small ones.


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
