"""The device and the dtype that a script computes in."""

import ctypes
import re
import sys

from kernels import FORMS, has_triton, triton_compiles
from support.settings import UserError, one_of

import torch

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # of <malloc.h>, in bytes


def find_device(name, dtype="float32"):
    """
    "auto", "cuda", "cuda:1", "mps" or "cpu" -> torch.device; auto is the first one available. A CPU keeps freed
    memory from then on.
    """
    found = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", name):
        raise UserError(f"device = {name!r}: can be auto, cuda, cuda:1 and so on, mps or cpu")
    kind = next(kind for kind in found if found[kind]) if name == "auto" else name.split(":")[0]
    if not found[kind]:
        raise UserError(f"device = {name!r}: PyTorch finds none here; --device=cpu works everywhere")
    if ":" in name and int(name.split(":")[1]) >= torch.cuda.device_count():
        raise UserError(f"device = {name!r}: there are {torch.cuda.device_count()} GPUs here")
    if kind == "mps" and dtype == "float64":
        raise UserError("dtype = 'float64': there is none on a Mac's GPU (mps); set device = 'cpu'")
    if kind == "cpu":
        keep_freed_memory()
    return torch.device(kind if name == "auto" else name)


def keep_freed_memory():
    """
    Keep the memory of freed tensors for the next ones. By default glibc returns blocks of some megabytes to the
    system, which clears them page by page when they are asked for again: a seventh or more of a training step.
    """
    if sys.platform == "linux":
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(MMAP_THRESHOLD, 2**25)  # its limit: larger blocks still come from the system
        mallopt(TRIM_THRESHOLD, 2**31 - 1)


def fastest_dtype(kind):
    """bfloat16 where the hardware multiplies it, else float16 on CUDA, else float32."""
    if kind == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    can = getattr(torch.cpu, "get_capabilities", dict)()
    return "bfloat16" if kind == "cpu" and (can.get("avx512_bf16") or can.get("amx_bf16")) else "float32"


def check_kernels(form, device):
    """Raise UserError if the recurrences cannot run in this form on the device."""
    one_of("kernels", form, FORMS)
    if form == "triton" and not has_triton(device := find_device(device)):
        here = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        needs = f"needs Triton and an NVIDIA GPU (A100 or newer); here is {here}"
        raise UserError(f"kernels = 'triton': {needs}; set kernels = 'auto'")


def dtype_of(s, device):
    """The dtype to compute in: the one that is set, or the fastest of the device if that is "auto"."""
    return getattr(torch, fastest_dtype(device.type) if s.dtype == "auto" else s.dtype)


def compiles(s, device):
    """Return True if blocks are compiled: on CUDA or where asked, but never with loops."""
    if s.compile == "auto":
        return device.type == "cuda" and s.kernels != "loop" and triton_compiles()
    return s.compile == "yes"
