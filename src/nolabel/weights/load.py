"""Weights out and in: the folder that `timm.create_model("local-dir:...")` opens, and every WEIGHTS argument."""

import hashlib
import json
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import torch
from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError
from safetensors.torch import load_file

from nolabel.errors import DataError, UsageError
from nolabel.networks.backbones import Backbone, backbone


class Loaded(NamedTuple):
    """A backbone with the preprocessing its weights were trained with."""

    backbone: Backbone
    image_size: int
    """Side in pixels of the (global) crops it was trained on."""
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str
    name: str
    """What was asked for, for results and captions."""
    fingerprint: str
    """First 16 hex digits of the SHA-256 of all tensors."""


def load_weights(spec: str | Path, backbone_name: str | None = None, allow_pth: bool = False) -> Loaded:
    """The backbone that a WEIGHTS argument names.

    A run folder, a folder in timm's layout, a `.safetensors` file (or a `.pth` one with `allow_pth`) together with
    `backbone_name`, `random:BACKBONE`, or a timm name whose weights lie in the local cache. Nothing is downloaded.
    """
    text = str(spec)
    if text.startswith("random:"):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            net = backbone(text.removeprefix("random:"))
        return _loaded(net, text, getattr(net.model, "pretrained_cfg", {}))
    path = Path(text)
    for folder in (path / "weights", path):
        if (folder / "config.json").is_file():
            return _from_folder(folder, text)
    if (path / "config.yaml").is_file():
        raise UsageError(f"{path} is a run without weights yet: its first checkpoint writes {path}/weights.")
    if path.is_file():
        return _from_file(path, backbone_name, allow_pth)
    if path.exists() or "/" in text or text.endswith((".safetensors", ".pth")):
        raise UsageError(
            f"There are no weights at {path}: neither a run, nor a folder with config.json and model.safetensors,\n"
            "nor a .safetensors file. `random:BACKBONE` evaluates an untrained network."
        )
    return _from_cache(text)


def _from_folder(folder: Path, name: str) -> Loaded:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        args = {k: tuple(v) if isinstance(v, list) else v for k, v in config.get("model_args", {}).items()}
        args.pop("num_classes", None)
        net = backbone(config["architecture"], args)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(
            f"{folder}/config.json is damaged ({error}). Copy the folder again, or resume the run."
        ) from error
    _fill(net, _read(folder / "model.safetensors"), folder)
    return _loaded(net, name, config.get("pretrained_cfg", {}))


def _from_file(path: Path, backbone_name: str | None, allow_pth: bool) -> Loaded:
    if path.suffix != ".safetensors" and not allow_pth:
        raise UsageError(f"{path} is not a .safetensors file. If you trust where a .pth comes from, add --allow-pth.")
    if backbone_name is None:
        raise UsageError(f"{path} is a bare weight file: say what it is with --backbone NAME, a timm name.")
    tensors = _read(path) if path.suffix == ".safetensors" else _read_pth(path)
    net = backbone(backbone_name)
    _fill(net, tensors, path)
    return _loaded(net, str(path), getattr(net.model, "pretrained_cfg", {}))


def _from_cache(name: str) -> Loaded:
    net = backbone(name)
    file = try_to_load_from_cache(net.model.pretrained_cfg.get("hf_hub_id") or "none", "model.safetensors")
    if not isinstance(file, str):
        raise UsageError(f"The weights of {name} are not in the local cache, and nolabel downloads nothing.")
    _fill(net, _read(Path(file)), Path(file))
    return _loaded(net, name, net.model.pretrained_cfg)


def _read(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise DataError(
            f"{path} is damaged or missing ({error}). Copy it again, or resume the run that made it."
        ) from error


def _read_pth(path: Path) -> dict[str, torch.Tensor]:
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
        return {k: v for k, v in loaded.items() if isinstance(v, torch.Tensor)}
    except (UnpicklingError, RuntimeError, ValueError, EOFError, OSError, AttributeError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path} is damaged or holds more than tensors: {first[:300]}") from error


def _fill(net: Backbone, tensors: dict[str, torch.Tensor], source: Path) -> None:
    classifier = getattr(net.model, "pretrained_cfg", {}).get("classifier") or ()
    names = tuple(f"{n}." for n in ([classifier] if isinstance(classifier, str) else classifier))
    try:
        net.model.load_state_dict({k: v for k, v in tensors.items() if not k.startswith(names)})
    except RuntimeError as error:
        first = " ".join(str(error).split())[:300]
        raise DataError(f"The tensors of {source} do not fit {net.name}: {first}") from error


def _loaded(net: Backbone, name: str, cfg: dict[str, Any]) -> Loaded:
    size = cfg.get("input_size", (3, 224, 224))[-1]
    mean, std = (tuple(float(x) for x in cfg.get(k, d)) for k, d in (("mean", (0.5,) * 3), ("std", (0.5,) * 3)))
    digest = hashlib.sha256()
    for key, tensor in sorted(net.model.state_dict().items()):
        digest.update(key.encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy() if tensor.ndim else str(tensor.item()).encode())
    net.eval().requires_grad_(False)
    return Loaded(net, size, mean, std, cfg.get("interpolation", "bicubic"), name, digest.hexdigest()[:16])  # type: ignore[arg-type]
