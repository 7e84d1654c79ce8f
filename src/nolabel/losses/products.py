"""The dtype in which products of losses and heads are computed."""

import torch
from torch import Tensor

LOGITS_AT_ONCE = 2**24


def product_dtype(x: Tensor) -> torch.dtype:
    """Dtype of large products with `x`: bf16 under its autocast (float16 has too little range), else float32."""
    device = x.device.type
    mixed = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.bfloat16
    return torch.bfloat16 if mixed else torch.promote_types(x.dtype, torch.float32)
