"""The precision that a model is computed in where the settings leave it open.

Most chat models are stored in bfloat16. A processor without instructions for it converts every number on the way, and
is then some forty times slower than in float32 (docs/performance.md). The rule looks at no clock, so that it is the
same every time.
"""

from __future__ import annotations

import platform
import warnings
from functools import cache

import torch

from turnwise.models.settings import DType


@cache
def multiplies_bfloat16() -> bool:
    """Whether this processor has instructions for products in bfloat16."""
    if platform.machine().lower() in ("x86_64", "amd64"):
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    try:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    except AttributeError:  # a torch without oneDNN, which has no such products
        return False


def lacks_bfloat16(device: str) -> bool:
    """Whether ``device`` is a processor without such instructions."""
    return torch.device(device).type == "cpu" and not multiplies_bfloat16()


def chosen_dtype(dtype: DType, device: str) -> DType:
    """``dtype``; where it is "auto" (as stored), float32 on a processor without products in bfloat16."""
    return "float32" if dtype == "auto" and lacks_bfloat16(device) else dtype


def warn_if_slow(dtype: DType, device: str) -> None:
    """Warn of bfloat16 that was asked for on a processor without products in it."""
    if dtype == "bfloat16" and lacks_bfloat16(device):
        warnings.warn(
            "model.dtype=bfloat16: this processor has no instructions for it and is many times slower than in float32; "
            "leave model.dtype out, or set model.dtype=float32",
            stacklevel=3,
        )
