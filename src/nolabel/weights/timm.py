"""Weights in timm's folder layout: `timm.create_model("local-dir:FOLDER", pretrained=True)` opens it."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import timm
from timm.models import save_for_hf
from torch import Tensor

from nolabel.files import temporary_name
from nolabel.networks.backbones import Backbone
from nolabel.weights.format import Format
from nolabel.weights.load import LIMITS, Loaded


def save_weights(
    net: Backbone,
    folder: Path,
    image_size: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    limits: tuple[float, float] | None = None,
) -> None:
    """Write `folder`/model.safetensors and config.json in timm's layout; the files are replaced one by one.

    They hold no time and no path, so equal weights give equal bytes.
    """
    temporary = temporary_name(folder)
    data = {"input_size": (3, image_size, image_size), "mean": mean, "std": std, "crop_pct": 0.875}
    temporary.mkdir(parents=True)
    try:
        save_for_hf(net.model, str(temporary), model_args=net.args, data_config=data, safe_serialization=True)
        if limits is not None:
            _add_limits(temporary / "config.json", limits)
        folder.mkdir(parents=True, exist_ok=True)
        umask = os.umask(0)
        os.umask(umask)
        for name in ("model.safetensors", "config.json"):
            os.chmod(temporary / name, 0o666 & ~umask)  # safetensors writes 0600: colleagues could not read it
            os.replace(temporary / name, folder / name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _add_limits(file: Path, limits: tuple[float, float]) -> None:
    config = json.loads(file.read_text(encoding="utf-8")) | {LIMITS: list(limits)}
    file.write_text(json.dumps(config, indent=2), encoding="utf-8")


def _save(loaded: Loaded, folder: Path) -> None:
    save_weights(loaded.backbone, folder, loaded.image_size, loaded.mean, loaded.std, loaded.limits)


def _open(folder: Path) -> Callable[[Tensor], Tensor]:
    model: Callable[[Tensor], Tensor] = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0).eval()
    return model


FORMAT = Format("a folder of model.safetensors and config.json", _save, _open)
