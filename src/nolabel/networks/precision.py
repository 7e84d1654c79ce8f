"""Precision of a forward pass: fp32, or mixed with bf16 or fp16."""

from typing import Literal

import torch

Precision = Literal["fp32", "bf16", "fp16"]

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: str | torch.device, precision: Precision) -> torch.autocast:
    """A context in which products on `device` are computed in bf16 or fp16; fp32 changes nothing."""
    dtype = DTYPES[precision]
    return torch.autocast(torch.device(device).type, dtype, enabled=dtype != torch.float32)
