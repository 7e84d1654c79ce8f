"""Load weights: the folder that `timm.create_model("local-dir:...")` opens, and every other WEIGHTS argument."""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError
from safetensors.torch import load_file

from nolabel import console
from nolabel.errors import DataError, UsageError
from nolabel.networks.arguments import as_tuples
from nolabel.networks.backbones import Backbone, backbone
from nolabel.networks.positions import WAYS, Resampling
from nolabel.weights.pickled import read_pickled


class Loaded(NamedTuple):
    """A backbone with the preprocessing its weights were trained with."""

    backbone: Backbone
    image_size: int
    """Side in pixels of the (global) crops it was trained on."""
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str
    name: str
    """The WEIGHTS argument as given, for results and captions."""
    fingerprint: str
    """First 16 hex digits of the SHA-256 of all tensors."""
    limits: tuple[float, float] | None = None
    """Values that were black and white in files of more than 8 bits: the setting `range` of the run."""


class Preprocessing(NamedTuple):
    """Preparation of images for a network; the defaults are timm's."""

    image_size: int = 224
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    interpolation: str = "bicubic"

    def as_cfg(self) -> dict[str, Any]:
        """The preprocessing in the words of a config.json."""
        size = (3, self.image_size, self.image_size)
        return {"input_size": size, "mean": self.mean, "std": self.std, "interpolation": self.interpolation}


MAX_SIDE = 16_384
"""Largest side in pixels that weights may ask for."""


OWN = "nolabel"
"""Key of a config.json for facts that timm does not know."""
INTERPOLATIONS = ("bicubic", "bilinear", "nearest", "nearest-exact")


def load_weights(spec: str | Path, backbone_name: str | None = None, allow_pth: bool = False) -> Loaded:
    """The backbone that a WEIGHTS argument names.

    A run folder, a folder in timm's layout, a `.safetensors` file (or a `.pth` one with `allow_pth`) together with
    `backbone_name`, `random:BACKBONE`, or a timm name whose weights are in the local cache. Nothing is downloaded.
    """
    text = str(spec)
    if text.startswith("random:"):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            net = backbone(text.removeprefix("random:"))
        return _loaded(net, text, _own_preprocessing(net))
    path = Path(text)
    for folder in (path / "weights", path):
        if (folder / "config.json").is_file():
            return _from_folder(folder, text, allow_pth)
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


def _from_folder(folder: Path, name: str, allow_pth: bool) -> Loaded:
    tensors = _read_folder(folder, allow_pth)
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        args = {k: as_tuples(v) for k, v in config.get("model_args", {}).items() if k != "num_classes"}
        positions = _read_positions(config.get(OWN, {}))
        net = backbone(config["architecture"], args, most_bytes=_most_bytes(tensors), positions=positions)
        cfg = read_preprocessing(config.get("pretrained_cfg", config))  # older files have it beside the architecture
        limits = _read_limits(config.get(OWN, {}))
    except UsageError as error:
        raise DataError(f"{folder}/config.json is damaged, or its network cannot be used here:\n{error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError) as error:
        raise DataError(
            f"{folder}/config.json is damaged ({error}). Copy the folder again, or resume the run."
        ) from error
    _fill(net, tensors, folder)
    _note_defaults(folder / "config.json", config.get("pretrained_cfg", config), cfg)
    return _loaded(net, name, cfg)._replace(limits=limits)


def _from_file(path: Path, backbone_name: str | None, allow_pth: bool) -> Loaded:
    if path.suffix != ".safetensors" and not allow_pth:
        raise UsageError(f"{path} is not a .safetensors file. If you trust where a .pth comes from, add --allow-pth.")
    if backbone_name is None:
        raise UsageError(f"{path} is a bare weight file: name its network with --backbone NAME, a timm name.")
    tensors = _read(path) if path.suffix == ".safetensors" else read_pickled(path)
    net = backbone(backbone_name)
    _fill(net, tensors, path)
    cfg = _own_preprocessing(net)
    _note_defaults(path, {}, cfg)
    return _loaded(net, str(path), cfg)


def _from_cache(name: str) -> Loaded:
    net = backbone(name)
    file = try_to_load_from_cache(net.model.pretrained_cfg.get("hf_hub_id") or "none", "model.safetensors")
    if not isinstance(file, str):
        raise UsageError(f"The weights of {name} are not in the local cache, and nolabel downloads nothing.")
    _fill(net, _read(Path(file)), Path(file))
    return _loaded(net, name, _own_preprocessing(net))


def _read(path: Path) -> dict[str, torch.Tensor]:
    try:
        if path.exists() and not path.is_file():
            raise OSError("it is no file")  # a pipe would wait for ever
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise DataError(
            f"{path} is damaged or missing ({error}). Copy it again, or resume the run that made it."
        ) from error


def _read_folder(folder: Path, allow_pth: bool) -> dict[str, torch.Tensor]:
    """The tensors beside a config.json. A pickle is read only if it is allowed and there is nothing else."""
    pickles = [folder / name for name in ("pytorch_model.bin", "model.pth", "pytorch_model.pth")]
    pickles = [path for path in pickles if path.is_file()]
    if (folder / "model.safetensors").exists() or not pickles:
        return _read(folder / "model.safetensors")
    if not allow_pth:
        raise UsageError(
            f"{folder} holds its weights as {pickles[0].name}, a pickle, and no model.safetensors.\n"
            "If you trust where it comes from, add --allow-pth: only its tensors are read."
        )
    return read_pickled(pickles[0])


def _fill(net: Backbone, tensors: dict[str, torch.Tensor], source: Path) -> None:
    classifier = getattr(net.model, "pretrained_cfg", {}).get("classifier") or ()
    names = tuple(f"{n}." for n in ([classifier] if isinstance(classifier, str) else classifier))
    try:
        net.model.load_state_dict({k: v for k, v in tensors.items() if not k.startswith(names)})
    except RuntimeError as error:
        first = " ".join(str(error).split())[:300]
        raise DataError(f"The tensors of {source} do not fit {net.name}: {first}") from error


def _most_bytes(tensors: dict[str, torch.Tensor]) -> int:
    """Largest size in bytes of a network with these weights, in float32, with room for tables that are not stored."""
    return 8 * sum(t.numel() for t in tensors.values()) + 2**28


def read_preprocessing(cfg: Any) -> Preprocessing:
    """The `pretrained_cfg` of a config.json; missing keys get timm's defaults. ValueError names a wrong key."""
    if not isinstance(cfg, Mapping):
        raise ValueError(f"pretrained_cfg is {repr(cfg)[:100]}: expected a mapping")
    cfg_values = {key: cfg.get(key, default) for key, default in Preprocessing().as_cfg().items()}
    size, mean, std, interpolation = cfg_values.values()
    expected = ""
    if not (_is_numbers(size) and all(isinstance(n, int) and 0 < n <= MAX_SIDE for n in size) and size[0] == 3):
        key, expected = "input_size", f"[3, height, width] with sides up to {MAX_SIDE}"
    elif not (_is_numbers(mean) and all(0 <= x <= 1 for x in mean)):
        key, expected = "mean", "three numbers from 0 to 1"
    elif not (_is_numbers(std) and all(0 < x <= 1 for x in std)):
        key, expected = "std", "three numbers above 0, at most 1"
    elif interpolation not in INTERPOLATIONS:
        key, expected = "interpolation", f"one of {', '.join(INTERPOLATIONS)}"
    if expected:
        raise ValueError(f"pretrained_cfg.{key} is {repr(cfg_values[key])[:100]}: expected {expected}")
    return Preprocessing(size[-1], tuple(map(float, mean)), tuple(map(float, std)), interpolation)  # type: ignore[arg-type]


def _read_positions(own: Any) -> Resampling:
    """The way to resample position embeddings in nolabel's part of a config.json. ValueError for one that is none."""
    way = own.get("positions", "timm")
    if way not in WAYS:
        raise ValueError(f"{OWN}.positions is {repr(way)[:100]}: expected one of {', '.join(WAYS)}")
    return way  # type: ignore[no-any-return]


def _read_limits(own: Any) -> tuple[float, float] | None:
    """The range of values in nolabel's part of a config.json. ValueError for what is none."""
    value = own.get("range")
    if value is None:
        return None
    numbers = isinstance(value, list) and len(value) == 2 and all(type(x) in (int, float) for x in value)
    if not numbers or not -math.inf < value[0] < value[1] < math.inf:
        raise ValueError(f"{OWN}.range is {repr(value)[:100]}: expected two numbers, the lower one first")
    return float(value[0]), float(value[1])


def _is_numbers(value: Any) -> bool:
    """Whether `value` is a list of three finite numbers."""
    numbers = isinstance(value, (list, tuple)) and all(type(x) in (int, float) for x in value)
    return numbers and len(value) == 3 and all(abs(x) < math.inf for x in value)


def _note_defaults(path: Path, given: Mapping[str, Any], cfg: Preprocessing) -> None:
    """Name on stderr the preprocessing that a file does not hold and that was taken instead."""
    words = {
        "mean": f"mean {_numbers(cfg.mean)}",
        "std": f"std {_numbers(cfg.std)}",
        "input_size": f"{cfg.image_size} px",
        "interpolation": cfg.interpolation,
    }
    taken = [text for key, text in words.items() if key not in given]
    if taken:
        console.note(f"note: {path} does not hold how its images were prepared. Taken from timm: {', '.join(taken)}.")


def _numbers(values: tuple[float, ...]) -> str:
    return " ".join(f"{x:g}" for x in values)


def _own_preprocessing(net: Backbone) -> Preprocessing:
    """Preprocessing that timm has for the network."""
    return read_preprocessing(getattr(net.model, "pretrained_cfg", {}))


def _loaded(net: Backbone, name: str, cfg: Preprocessing) -> Loaded:
    digest = hashlib.sha256()
    for key, tensor in sorted(net.model.state_dict().items()):
        digest.update(key.encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy() if tensor.ndim else str(tensor.item()).encode())
    net.eval().requires_grad_(False)
    return Loaded(net, cfg.image_size, cfg.mean, cfg.std, cfg.interpolation, name, digest.hexdigest()[:16])
