"""Weights in timm's folder layout: `timm.create_model("local-dir:FOLDER", pretrained=True)` opens it."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
from timm.models import save_for_hf
from torch import Tensor

from nolabel import files
from nolabel.files import temporary_name
from nolabel.networks.backbones import Backbone
from nolabel.weights.format import Format
from nolabel.weights.load import OWN, Loaded


def save_weights(
    net: Backbone,
    folder: Path,
    image_size: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    interpolation: str = "bicubic",
    limits: tuple[float, float] | None = None,
) -> None:
    """Write `folder`/model.safetensors and config.json in timm's layout; the files are replaced one by one.

    They hold no time and no path, so equal weights give equal bytes. A way to resample position embeddings that is not
    timm's is in config.json under `nolabel`, which timm passes over.
    """
    temporary = temporary_name(folder)
    data = {"input_size": (3, image_size, image_size), "mean": mean, "std": std, "crop_pct": 0.875}
    data["interpolation"] = interpolation
    temporary.mkdir(parents=True)
    try:
        save_for_hf(net.model, str(temporary), model_args=net.args, data_config=data, safe_serialization=True)
        own: dict[str, Any] = {} if net.positions == "timm" else {"positions": net.positions}
        own |= {} if limits is None else {"range": limits}
        if own:
            config = json.loads((temporary / "config.json").read_text(encoding="utf-8"))
            files.write_json(temporary / "config.json", config | {OWN: own})
        folder.mkdir(parents=True, exist_ok=True)
        umask = os.umask(0)
        os.umask(umask)
        for name in ("model.safetensors", "config.json"):
            os.chmod(temporary / name, 0o666 & ~umask)  # safetensors writes 0600: colleagues could not read it
            os.replace(temporary / name, folder / name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _save(loaded: Loaded, folder: Path) -> None:
    images = loaded.image_size, loaded.mean, loaded.std, loaded.interpolation, loaded.limits
    save_weights(loaded.backbone, folder, *images)


def _open(folder: Path) -> Callable[[Tensor], Tensor]:
    model: Callable[[Tensor], Tensor] = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0).eval()
    return model


FORMAT = Format("a folder of model.safetensors and config.json", _save, _open)
