"""
Linear layers at the full speed of a CPU: y_t = W x_t + b.

PyTorch gives float32 products to the library MKL, which uses only half the vector width of an AMD processor. It
also brings oneDNN, for bfloat16, which uses the full width in float32 too: 490 in place of 210 GFLOP/s on two
cores with AVX-512. The gradients are products of the same kind, dx = dy W and dW = dy^T x.
"""

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

ROWS_FOR_ONEDNN = 16  # below, a product is too small to gain


def onednn_pays(x):
    """True if x @ weight.T is faster by oneDNN: float32, enough rows, a CPU with AVX-512."""
    rows = x.numel() // max(1, x.shape[-1])
    return HAS_AVX512 and x.dtype == torch.float32 and x.device.type == "cpu" and rows >= ROWS_FOR_ONEDNN


def has_avx512():
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_f")) and torch.backends.mkldnn.is_available()


HAS_AVX512 = has_avx512()


def product(x, weight, bias=None):
    """x (..., D), weight (E, D), bias (E,) -> x weight^T + bias (..., E). Without a gradient."""
    if onednn_pays(x):
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


class Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        return product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        x, weight = ctx.saved_tensors
        dx = product(dy, weight.T) if ctx.needs_input_grad[0] else None
        x, dy = x.flatten(0, -2), dy.flatten(0, -2)
        dweight = None
        if ctx.needs_input_grad[1]:  # oneDNN copies the first of two transposed factors: the narrower one
            dweight = product(x.T, dy.T).T if x.shape[1] < dy.shape[1] else product(dy.T, x.T)
        return dx, dweight, dy.sum(0) if ctx.has_bias else None


def linear(x, weight, bias=None):
    """F.linear, differentiable once: x (..., D), weight (E, D), bias (E,) -> x weight^T + bias (..., E)."""
    if onednn_pays(x) and not torch.is_autocast_enabled("cpu") and not torch.compiler.is_compiling():
        return Product.apply(x, weight, bias)
    return F.linear(x, weight, bias)
